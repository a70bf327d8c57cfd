//! `cargo xtask`: every command a person or a CI runner needs, in one small program.
//!
//! It depends on no crate of the workspace (it starts their binaries instead), so that it compiles in
//! seconds and works while the workspace does not. It holds no product logic.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

mod appliance;
mod demo;
mod install;
mod modules;
mod process;
mod suite;
mod summary;
mod tidy;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

const USAGE: &str = "\
Usage: cargo xtask <command> [options]

  run    [--once] [--clean] [--static] [--data DIR] [--port N]
         Build the server, load a year of real flights, show what it can do, and leave it up.
         --once   stop the server after the demonstration
         --clean  remove everything that `run` made, and do nothing else
         --static with the static programs, as they are shipped
         --data   folder for everything it makes            (default: target/demo)
         --port   port of gRPC and HTTP; the native protocol takes the next one (default: 7433)

  test   [--quick] [--only STEP]...
         Everything that must pass. Installs what is missing. The last line counts.
         --quick  leave out long simulation, the static binary, licences, images, machines and the demonstration
         --only   run the named steps only

  tidy   The style rules that no other tool checks.

  sim [--seeds N] [--start S]
         Simulate the engine on a machine that fails, for many seeds.
  sim --seed N [--trace]
         One seed again; with its trace.
  canaries
         Plant bugs in the engine; the simulator must find each.
  crash [--kills N] [--seed S] [--seconds T] [--dir D]
         Kill real processes under load; every acknowledged event must be there.

  fuzz [--runs N] [--seed S] [--target NAME]
         Feed every decoder with mutated inputs, from a seed.

  modules [--musl]
         Build the example module from C, JavaScript and Python, and compare them with the Rust one.
         --musl   run faults and modules with the static build too: all must be the same
  kernel {installer,runtime}
         Build a kernel of the appliance, or find it in the cache.
  image {iso,runtime,disk} [options] [--boot]
         Build an image of the appliance. `image --help` lists the options: artefacts by path, formats, folder.
         --boot   start the result in QEMU, its serial line in this terminal
  vm     [--only NAME]... [--times]
         Build the images, and test them in virtual machines.
         --times  instead, count instructions from power on to the first picture and the first answer

  release [--out DIR] [--sign-key FILE --sign-certificate FILE]
         Everything that is published, under one version, with sums, bills of materials, provenance and sources.

  bench ...     `truthdb bench`, optimised
  flights ...   load the flights into a running server, or `--verify` them
";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command; the answer is whether all was well.
fn run() -> Result<bool> {
    let mut parser = lexopt::Parser::from_env();
    let command = match parser.next()? {
        Some(Value(command)) => command.string()?,
        Some(Long("help") | Short('h')) | None => {
            print!("{USAGE}");
            return Ok(true);
        }
        Some(other) => return Err(other.unexpected().into()),
    };
    match command.as_str() {
        "run" => demo::main(&mut parser),
        "test" => suite::main(&mut parser),
        "modules" => modules::main(&mut parser),
        "kernel" => appliance::kernel(&mut parser),
        "image" => appliance::image(&mut parser),
        "vm" => appliance::vm(&mut parser),
        "release" => appliance::release(&mut parser),
        "tidy" => {
            no_more(&mut parser)?;
            tidy::main()
        }
        other => tools::main(other, &mut parser).unwrap_or_else(|| {
            eprint!("{USAGE}");
            bail!("there is no command {other:?}")
        }),
    }
}

/// Refuses arguments that the command does not take.
fn no_more(parser: &mut lexopt::Parser) -> Result<()> {
    match parser.next()? {
        Some(argument) => Err(argument.unexpected().into()),
        None => Ok(()),
    }
}
