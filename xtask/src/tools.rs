//! Thin commands that build a program of the workspace with the right profile and pass all arguments on to it.

use anyhow::Result;

use crate::process::{cargo, run};

/// Runs the tool of this name with the arguments that are left; `None` if there is none.
pub(crate) fn main(name: &str, mut parser: lexopt::Parser) -> Option<Result<bool>> {
    let (package, binary, leading): (&str, &str, &[&str]) = match name {
        "bench" => ("truthdb", "truthdb", &["bench"]),
        "flights" => ("truthdb-flights", "flights-load", &[]),
        _ => return None,
    };
    let mut run_tool = || {
        let arguments = parser.raw_args()?;
        run(cargo()
            .args([
                "run",
                "--quiet",
                "--locked",
                "--profile",
                "fast",
                "--package",
                package,
                "--bin",
                binary,
                "--",
            ])
            .args(leading)
            .args(arguments))?;
        Ok(true)
    };
    Some(run_tool())
}
