//! Thin commands that build a program of the workspace with the right profile and pass arguments on to it.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::process::{cargo, run};

/// Seeds that `cargo xtask sim` runs when it is not told how many.
const SEEDS: u64 = 2000;

/// Runs the tool of this name with the arguments that are left; `None` if there is none.
pub(crate) fn main(name: &str, parser: &mut lexopt::Parser) -> Option<Result<bool>> {
    let mut run_tool = || {
        let arguments: Vec<OsString> = parser.raw_args()?.collect();
        let mut tool = match name {
            "sim" => sim(&sim_arguments(&arguments)),
            "canaries" => canaries(),
            "crash" => sim(&["crash-loop".into()]),
            "fuzz" => fuzz(),
            "bench" => program("truthdb", "truthdb", &[], &["bench".into()]),
            "flights" => program("truthdb-flights", "flights-load", &[], &[]),
            _ => return Ok(None),
        };
        if name != "sim" {
            tool.args(arguments);
        }
        run(&mut tool).map(|()| Some(true))
    };
    run_tool().transpose()
}

/// The simulator with a command of its own.
pub(crate) fn sim(arguments: &[OsString]) -> Command {
    program("truthdb-sim", "truthdb-sim", &[], arguments)
}

/// `--seed N` is one seed, to look at; anything else is many: `--seeds N` from `--start S`.
fn sim_arguments(arguments: &[OsString]) -> Vec<OsString> {
    let has = |name: &str| {
        let with_value = format!("{name}=");
        arguments
            .iter()
            .any(|argument| argument == name || argument.to_string_lossy().starts_with(&with_value))
    };
    let mut translated: Vec<OsString> = Vec::new();
    if has("--seed") {
        translated.push("run".into());
        translated.extend_from_slice(arguments);
        return translated;
    }
    translated.push("seeds".into());
    if !has("--seeds") {
        translated.push(format!("--count={SEEDS}").into());
    }
    for argument in arguments {
        let text = argument.to_string_lossy();
        match text.strip_prefix("--seeds") {
            Some(rest) => translated.push(format!("--count{rest}").into()),
            None => translated.push(argument.clone()),
        }
    }
    translated
}

/// The simulator with bugs planted in the engine, each of which it must find.
pub(crate) fn canaries() -> Command {
    program(
        "truthdb-sim",
        "truthdb-sim",
        &["--features", "canaries"],
        &["canaries".into()],
    )
}

/// The fuzz targets on the stable toolchain.
pub(crate) fn fuzz() -> Command {
    program("truthdb-fuzz", "fuzz-smoke", &[], &[])
}

/// A program of the workspace, optimised, to be given more arguments.
fn program(package: &str, binary: &str, features: &[&str], arguments: &[OsString]) -> Command {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--locked",
        "--profile",
        "fast",
        "--package",
        package,
    ]);
    command
        .args(["--bin", binary])
        .args(features)
        .arg("--")
        .args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_sim_become_commands_of_the_simulator() {
        let translated = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            sim_arguments(&arguments)
        };
        assert_eq!(translated(&[]), ["seeds", "--count=2000"]);
        assert_eq!(translated(&["--seeds", "9"]), ["seeds", "--count", "9"]);
        assert_eq!(
            translated(&["--start=3", "--seeds=9"]),
            ["seeds", "--start=3", "--count=9"]
        );
        assert_eq!(
            translated(&["--seed", "7", "--trace"]),
            ["run", "--seed", "7", "--trace"]
        );
    }
}
