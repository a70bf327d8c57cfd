//! `fuzz-smoke`: all targets, on a stable toolchain, from a seed.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use lexopt::prelude::{Long, ValueExt as _};
use truthdb_fuzz::{Mutator, TARGETS, Target};

const USAGE: &str = "\
Usage: fuzz-smoke [--runs N] [--seed S] [--target NAME]
       N mutated inputs for each target (default 20000), from seed S (default 1).";

/// What is running, for the panic message: target, seed, number of the input, the input.
static CURRENT: Mutex<(&str, u64, u64, Vec<u8>)> = Mutex::new(("", 0, 0, Vec::new()));

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (mut runs, mut seed, mut only) = (20_000, 1, None);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("runs") => runs = parser.value()?.parse()?,
            Long("seed") => seed = parser.value()?.parse()?,
            Long("target") => only = Some(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let wanted = |target: &&Target| only.as_ref().is_none_or(|name| name == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    ensure!(!targets.is_empty(), "there is no target {only:?}");
    std::panic::set_hook(Box::new(|panic| {
        let current = CURRENT
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let (target, seed, number, input) = &*current;
        let hex = input.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("text can be written to a string");
            hex
        });
        eprintln!("{panic}\ninput {number} of target {target}, seed {seed}:\n{hex}");
        eprintln!("again: cargo xtask fuzz --target {target} --seed {seed}");
    }));
    for target in &targets {
        smoke(target, seed, runs);
        println!("{}: {runs} inputs from seed {seed}", target.name);
    }
    println!("{} passed, 0 failed", targets.len());
    Ok(())
}

/// Runs the seeds of a target, then mutations of them. A panic ends the program.
fn smoke(target: &Target, seed: u64, runs: u64) {
    let seeds = (target.seeds)();
    let mut mutator = Mutator::new(&seeds, seed);
    let mutated = (0..runs).map(|_| mutator.next_input());
    for (number, input) in (0..).zip(seeds.iter().cloned().chain(mutated)) {
        {
            let mut current = CURRENT
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *current = (target.name, seed, number, input.clone());
        }
        (target.run)(&input);
    }
}
