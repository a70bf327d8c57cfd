//! Thin commands that build a program of the workspace with the right profile and pass all arguments on to it.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo, run};

/// Runs the tool of this name with the arguments that are left; `None` if there is none.
pub(crate) fn main(name: &str, parser: &mut lexopt::Parser) -> Option<Result<bool>> {
    let mut tool = match name {
        "fuzz" => fuzz(),
        "bench" => program("truthdb", "truthdb", &["bench"]),
        "flights" => program("truthdb-flights", "flights-load", &[]),
        _ => return None,
    };
    let mut run_tool = || {
        run(tool.args(parser.raw_args()?))?;
        Ok(true)
    };
    Some(run_tool())
}

/// The fuzz targets on the stable toolchain.
pub(crate) fn fuzz() -> Command {
    program("truthdb-fuzz", "fuzz-smoke", &[])
}

/// A program of the workspace, optimised, to be given more arguments.
fn program(package: &str, binary: &str, leading: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "--profile", "fast"]);
    command
        .args(["--package", package, "--bin", binary, "--"])
        .args(leading);
    command
}
