//! Starting the machine again, and turning it off: by asking PID 1, which stops what runs and syncs.

use std::io;

use rustix::process::{Pid, Signal, kill_process};

use super::System;

/// What BusyBox init takes for "start again".
const RESTART: Signal = Signal::TERM;
/// What it takes for "turn off".
const TURN_OFF: Signal = Signal::USR2;
/// The file that says that PID 1 is BusyBox init: no other program is signalled.
const INITTAB: &str = "etc/inittab";

/// Starts the machine again.
///
/// # Errors
///
/// What the operating system says; `Unsupported` where PID 1 is something else.
pub fn reboot(system: &System) -> io::Result<()> {
    ask(system, RESTART)
}

/// Turns the machine off.
///
/// # Errors
///
/// What the operating system says; `Unsupported` where PID 1 is something else.
pub fn power_off(system: &System) -> io::Result<()> {
    ask(system, TURN_OFF)
}

fn ask(system: &System, signal: Signal) -> io::Result<()> {
    if !system.path(INITTAB).exists() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this is no TruthDB appliance",
        ));
    }
    rustix::fs::sync();
    kill_process(Pid::INIT, signal).map_err(Into::into)
}
