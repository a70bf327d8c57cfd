//! `truthdb-node`: everything in the installed appliance between BusyBox init and the server that is more than one
//! line of `/etc/inittab`.
//!
//! One small static program with a verb for each line that starts it. Verbs that start a server or a client wait
//! until it makes sense, slow down when it keeps failing, and then *become* it (`exec`), so that init watches the
//! real process; what goes wrong with them is in the log and in the state. Verbs that run once, before there is a
//! server or after it, say it on the console too. The program mounts nothing, speaks no network protocol, and knows
//! no database: BusyBox mounts, asks for addresses and sets the clock. It runs as root; the server does not.
#![allow(
    clippy::print_stderr,
    reason = "its messages are for the console, before the service console is there"
)]

mod attended;
mod cards;
mod check;
mod config;
mod data;
mod disk_log;
mod disks;
mod launch;
mod log;
mod network;
mod paths;
mod power;
mod starts;
mod state;
mod stop;
mod time;
mod token;
mod watch;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::paths::System;

const USAGE: &str =
    "usage: truthdb-node prepare | ready | token | watch | network | time | serve | stop | force";

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
        "prepare" => kept(system, verb, data::prepare(system)),
        "ready" => kept(system, verb, data::ready(system)),
        "stop" => kept(system, verb, stop::run(system)),
        "force" => power::force(system),
        "watch" => watch::run(system),
        "network" => said(system, "network", network::run(system)),
        "time" => said(system, "time", time::run(system)),
        "serve" => said(system, "server", launch::serve(system)),
        "token" => said(system, "token", token::run(system)),
        _ => bail!("{USAGE}"),
    }
}

/// What went wrong, also in the log, which nobody reads from its pipe yet, or any more.
fn kept(system: &System, verb: &str, outcome: Result<()>) -> Result<()> {
    outcome.inspect_err(|error| log::keep(system, verb, &format!("{error:#}")))
}

/// What went wrong, in log and state alone: the console shows the node's page by now.
fn said(system: &System, part: &str, outcome: Result<()>) -> Result<()> {
    if let Err(error) = outcome {
        starts::failed(system, part, &error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_goes_wrong_is_in_the_log_and_on_the_console_only_while_that_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        assert!(kept(&system, "ready", Err(anyhow!("no folder"))).is_err());
        let log = std::fs::read_to_string(system.run("log")).unwrap();
        assert_eq!(log, "ready: no folder\n");
        assert!(said(&system, "network", Err(anyhow!("no route"))).is_ok());
        assert_eq!(state::problem(&system, "network"), "no route");
    }
}
