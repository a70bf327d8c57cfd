//! `truthdb-node`: everything in the installed appliance between BusyBox init and the server that is more than one
//! line of `/etc/inittab`.
//!
//! One small static program with a verb for each line that starts it. Verbs that start a server or a client wait
//! until it makes sense, slow down when it keeps failing, and then *become* it (`exec`), so that init watches the
//! real process. The program mounts nothing, speaks no network protocol, and knows no database: BusyBox mounts, asks
//! for addresses and sets the clock. It runs as root; the server does not.
#![allow(
    clippy::print_stderr,
    reason = "its messages are for the console, before there is a log"
)]

mod config;
mod data;
mod launch;
mod log;
mod network;
mod paths;
mod power;
mod state;
mod stop;
mod time;
mod watch;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::paths::System;

const USAGE: &str = "usage: truthdb-node prepare | ready | watch | network | time | serve | stop";

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    // udhcpc starts this program under another name, with the event as first argument.
    let is_event = program.ends_with("udhcpc-event");
    let verb = arguments.next().unwrap_or_default();
    let system = System::real();
    let outcome = if is_event {
        network::event(&system, &verb)
    } else {
        run(&system, &verb)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("truthdb-node {verb}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(system: &System, verb: &str) -> Result<()> {
    match verb {
        "prepare" => data::prepare(system),
        "ready" => data::ready(system),
        "watch" => watch::run(system),
        "network" => network::run(system),
        "time" => time::run(system),
        "serve" => launch::serve(system),
        "stop" => stop::run(system),
        _ => bail!("{USAGE}"),
    }
}
