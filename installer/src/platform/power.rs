//! Starting the machine again, and turning it off: by asking PID 1, which stops what runs and syncs.

use std::io;

use rustix::process::{Pid, Signal, kill_process};

use super::System;

/// What BusyBox init takes for "start again".
const RESTART: Signal = Signal::TERM;
/// What it takes for "turn off".
const TURN_OFF: Signal = Signal::USR2;
/// What the kernel calls PID 1, and what BusyBox init is called: no other program is signalled. A file such as
/// `/etc/inittab` would say what is installed, not what runs.
const PID_1: (&str, &str) = ("proc/1/comm", "init");

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

/// Whether PID 1 is one that can be asked.
fn is_asked(system: &System) -> bool {
    let (file, name) = PID_1;
    system.text(file) == name
}

/// Asks PID 1, if it is the one that knows these signals.
fn ask(system: &System, signal: Signal) -> io::Result<()> {
    if !is_asked(system) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this is no TruthDB appliance",
        ));
    }
    // Nothing is synced here: init does that, and a disk that hangs would keep it from being asked.
    kill_process(Pid::INIT, signal).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what refuses is tried: PID 1 of a build machine is not ours to signal.
    #[test]
    fn another_first_process_is_not_signalled() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(folder.path().join("proc/1")).unwrap();
        std::fs::create_dir_all(folder.path().join("etc")).unwrap();
        std::fs::write(folder.path().join("etc/inittab"), "").unwrap();
        for name in ["systemd\n", "tini\n", ""] {
            std::fs::write(folder.path().join("proc/1/comm"), name).unwrap();
            assert!(!is_asked(&system), "{name}");
            let error = ask(&system, TURN_OFF).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        }
        std::fs::remove_file(folder.path().join("etc/inittab")).unwrap();
        std::fs::write(folder.path().join("proc/1/comm"), "init\n").unwrap();
        assert!(is_asked(&system));
    }
}
