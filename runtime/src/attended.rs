//! Waiting for the disk, attended: the lines of `/etc/inittab` that show the node and listen to its power button come
//! after the disk, so what may keep a person waiting shows the service console and listens itself.
//!
//! init takes its signals only when the lines before are through, and keeps them until then. So nothing is done about
//! a wish to go down but to return soon, without an error: init is told, and goes down by itself.

use std::fmt;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::log;
use crate::paths::System;
use crate::power::{Inputs, Keys, Wish, ask_init};

/// Signals that init goes down for.
const GOING_DOWN: [Signal; 4] = [Signal::TERM, Signal::USR1, Signal::USR2, Signal::POWER];

/// The node is asked to go down: whoever waits returns.
#[derive(Debug)]
pub(crate) struct GoingDown;

impl fmt::Display for GoingDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the node is asked to go down")
    }
}

impl std::error::Error for GoingDown {}

/// A way to wait.
pub(crate) trait Wait {
    /// Time since some moment, which does not jump.
    fn elapsed(&self) -> Duration;

    /// Waits so long at most.
    ///
    /// # Errors
    ///
    /// The node is asked to go down.
    fn pause(&mut self, time: Duration) -> Result<(), GoingDown>;

    /// Shows the state to whoever waits in front of the machine, from now on.
    fn show(&mut self);
}

/// The machine's way.
pub(crate) struct Attended<'a> {
    system: &'a System,
    inputs: Inputs,
    keys: Keys,
    ask_init: fn(&System, Wish),
    console: Option<Child>,
}

impl<'a> Attended<'a> {
    /// Listens from now on.
    pub(crate) fn new(system: &'a System) -> Self {
        let mut inputs = Inputs::default();
        inputs.look(system);
        Self {
            system,
            inputs,
            keys: Keys::default(),
            ask_init,
            console: None,
        }
    }

    /// Whether init has a signal that it goes down for: from here, from the console, or from the kernel.
    fn is_going_down(&self) -> bool {
        let status = std::fs::read_to_string(self.system.path("proc/1/status"));
        has_pending(&status.unwrap_or_default(), &GOING_DOWN)
    }
}

impl Wait for Attended<'_> {
    fn elapsed(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::try_from(now).unwrap_or_default()
    }

    fn pause(&mut self, time: Duration) -> Result<(), GoingDown> {
        self.inputs.look(self.system);
        let descriptors = self.inputs.descriptors();
        let mut waiting: Vec<PollFd<'_>> = descriptors
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        let time = Timespec::try_from(time).unwrap_or_default();
        // An error is a signal, or no memory: it is looked again.
        let _ = poll(&mut waiting, Some(&time));
        drop(waiting);
        if let Some(wish) = self.inputs.read(&mut self.keys) {
            log::keep(self.system, "power", &format!("{wish:?}"));
            (self.ask_init)(self.system, wish);
            return Err(GoingDown);
        }
        if self.is_going_down() {
            return Err(GoingDown);
        }
        Ok(())
    }

    fn show(&mut self) {
        if self.console.is_some() {
            return;
        }
        match Command::new(self.system.path("bin/truthdb-console")).spawn() {
            Ok(console) => self.console = Some(console),
            Err(error) => {
                let line = format!("the service console cannot be started: {error}");
                log::keep(self.system, "prepare", &line);
            }
        }
    }
}

impl Drop for Attended<'_> {
    /// The table starts a console of its own, which finds screen and serial line free.
    fn drop(&mut self) {
        if let Some(console) = &mut self.console {
            let _ = console.kill();
            let _ = console.wait();
        }
    }
}

/// Whether one of these signals waits for a process, by its `status`.
fn has_pending(status: &str, signals: &[Signal]) -> bool {
    let masks = status.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        let is_pending = key == "ShdPnd" || key == "SigPnd";
        is_pending.then(|| u64::from_str_radix(value.trim(), 16).ok())?
    });
    let pending = masks.fold(0, |all, mask| all | mask);
    let is_set = |signal: &Signal| pending >> (signal.as_raw() - 1) & 1 == 1;
    signals.iter().any(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody is told anything: PID 1 of a build machine is not ours.
    fn attended(system: &System) -> Attended<'_> {
        let mut attended = Attended::new(system);
        attended.ask_init = |_, _| ();
        attended
    }

    fn system() -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for path in ["proc/1", "dev/input", "run/truthdb", "bin"] {
            std::fs::create_dir_all(system.path(path)).unwrap();
        }
        (folder, system)
    }

    #[test]
    fn the_power_button_ends_a_wait_at_once_and_is_in_the_log() {
        let (_folder, system) = system();
        let mut event = [0; 24];
        (event[16], event[18], event[20]) = (1, 116, 1);
        std::fs::write(system.path("dev/input/event0"), event).unwrap();
        assert!(attended(&system).pause(Duration::from_secs(60)).is_err());
        let log = std::fs::read_to_string(system.run("log")).unwrap();
        assert_eq!(log, "power: PowerOff\n");
    }

    #[test]
    fn a_signal_that_init_keeps_for_later_ends_a_wait() {
        let (_folder, system) = system();
        let status = |pending: &str| {
            let text = format!(
                "Name:\tinit\nSigPnd:\t0000000000000000\nShdPnd:\t{pending}\nSigBlk:\t4a07\n"
            );
            std::fs::write(system.path("proc/1/status"), text).unwrap();
            attended(&system).pause(Duration::ZERO).is_err()
        };
        assert!(!status("0000000000000000"));
        // A child that ended is none of them: 17.
        assert!(!status("0000000000010000"));
        // To start again, to switch off, and one of them beside a child's end: 15, 12.
        assert!(status("0000000000004000"));
        assert!(status("0000000000000800"));
        assert!(status("0000000000010800"));
    }

    #[test]
    fn the_console_is_started_once_and_ends_with_the_wait() {
        let (_folder, system) = system();
        // Nothing there: it is waited without.
        attended(&system).show();
        let log = std::fs::read_to_string(system.run("log")).unwrap();
        assert!(log.contains("console cannot be started"), "{log}");
        // A console that writes its number and stays.
        let script = format!(
            "echo $$ >> {0}\nexec sleep 1000",
            system.run("pids").display()
        );
        crate::data::tests::program(&system, "bin/truthdb-console", &script);
        let mut wait = attended(&system);
        wait.show();
        wait.show();
        let number = loop {
            match std::fs::read_to_string(system.run("pids")) {
                Ok(text) if text.ends_with('\n') => break text,
                _ => std::thread::yield_now(),
            }
        };
        drop(wait);
        let number = number.trim();
        assert!(!number.contains('\n'), "{number}");
        assert!(!std::path::Path::new("/proc").join(number).exists());
    }
}
