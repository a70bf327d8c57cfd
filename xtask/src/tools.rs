//! Thin commands that build a program of the workspace with the right profile and pass arguments on to it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::install::Libc;
use crate::process::{cargo, command, run};

/// Packages with optimised programs. They are always built as one selection, even if one program is wanted: another
/// selection has other features of common dependencies, and all of these would be compiled again.
const PACKAGES: [&str; 4] = ["truthdb", "truthdb-flights", "truthdb-fuzz", "truthdb-sim"];

/// Seeds that `cargo xtask sim` runs when it is not told how many.
const SEEDS: u64 = 2000;

/// Runs the tool of this name with the arguments that are left; `None` if there is none.
pub(crate) fn main(name: &str, parser: &mut lexopt::Parser) -> Option<Result<bool>> {
    let mut run_tool = || {
        let arguments: Vec<OsString> = parser.raw_args()?.collect();
        let tool = match name {
            "sim" => sim(&sim_arguments(&arguments), Libc::Host),
            "canaries" => canaries(Libc::Host),
            "crash" => sim(&["crash-loop".into()], Libc::Host),
            "fuzz" => fuzz(Libc::Host),
            "bench" => started("truthdb", &[], &["bench".into()], Libc::Host),
            "flights" => started("flights-load", &[], &[], Libc::Host),
            _ => return Ok(None),
        };
        let mut tool = tool?;
        if name != "sim" {
            tool.args(arguments);
        }
        run(&mut tool).map(|()| Some(true))
    };
    run_tool().transpose()
}

/// The simulator with a command of its own.
pub(crate) fn sim(arguments: &[OsString], libc: Libc) -> Result<Command> {
    started("truthdb-sim", &[], arguments, libc)
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
pub(crate) fn canaries(libc: Libc) -> Result<Command> {
    let features = ["--features", "truthdb-sim/canaries"];
    started("truthdb-sim", &features, &["canaries".into()], libc)
}

/// The fuzz targets on the stable toolchain.
pub(crate) fn fuzz(libc: Libc) -> Result<Command> {
    started("fuzz-smoke", &[], &[], libc)
}

/// A program that was just built, to be given more arguments.
pub(crate) fn started(
    name: &str,
    features: &[&str],
    arguments: &[OsString],
    libc: Libc,
) -> Result<Command> {
    let mut command = command(programs(&[name], features, libc)?.join(name));
    command.args(arguments);
    Ok(command)
}

/// Builds programs of [`PACKAGES`], optimised; the folder that they are in.
pub(crate) fn programs(names: &[&str], features: &[&str], libc: Libc) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--profile", "fast"]);
    if let Some(target) = libc.target()? {
        build.args(["--target", target]);
    }
    build.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    build.args(names.iter().flat_map(|name| ["--bin", name]));
    run(build.args(features))?;
    Ok(libc.folder("fast"))
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
