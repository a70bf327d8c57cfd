//! TruthDB's one program: the server (`truthdb serve`) and the command line beside it.
//!
//! `cli` is the map of the commands, `cmd` has one module for each, `server` is everything that
//! `serve` runs, `exit` the one list of exit codes. The program prints failures in one place, here,
//! with the chain of their sources, and every failure has a class with its own exit code.

#![allow(
    rustdoc::invalid_html_tags,
    reason = "the comments of arguments are help texts for a terminal"
)]

mod bench;
mod cli;
mod cmd;
mod exit;
mod key_text;
mod server;
mod state_json;

use std::process::ExitCode;

use clap::Parser as _;

/// musl's own allocator costs about half of the throughput of a multi-threaded server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let json = cli.globals.json;
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(json);
            failure.class.code().into()
        }
    }
}
