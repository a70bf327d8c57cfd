//! The power button and Ctrl-Alt-Del: read from every input device, told to init as the signals that it knows. And what
//! is done when init cannot do it.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::RebootCommand;
use signal_hook::consts::SIGTERM;

use crate::paths::System;

/// Bytes of an event of the kernel on 64-bit machines: seconds, microseconds, type, code, value.
const EVENT_BYTES: usize = 24;
/// Type of a key's event.
const KEY: u16 = 1;

/// What the keys ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Stop everything and switch off.
    PowerOff,
    /// Stop everything and start again.
    Reboot,
}

/// Where it is noted what was asked of init, by this program and by the console: init does not tell.
const ASKED: &str = "power";
/// What the note says of a restart.
const RESTART: &str = "restart";
/// How long unmounting and init's own `sync` may take.
const FORCED_AFTER: Duration = Duration::from_secs(60);

/// Asks init, which runs the shutdown lines of its table first.
pub(crate) fn ask_init(system: &System, wish: Wish) {
    let (signal, note) = match wish {
        Wish::PowerOff => (Signal::USR2, "off"),
        Wish::Reboot => (Signal::TERM, RESTART),
    };
    let _ = std::fs::write(system.run(ASKED), note);
    let _ = kill_process(Pid::INIT, signal);
}

/// The last resort: has the kernel switch off or restart after a while, without anything that waits for a disk. On a
/// machine that goes down as it should, init kills this process long before.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn force(system: &System) -> Result<()> {
    // init sends SIGTERM to everybody, then syncs, which is what may hang; SIGKILL comes only after it.
    let ignored = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, ignored).context("ignoring SIGTERM")?;
    std::thread::sleep(FORCED_AFTER);
    rustix::system::reboot(forced(system)).context("forcing the end")
}

/// What was asked of init; to switch off if nobody knows.
fn forced(system: &System) -> RebootCommand {
    let asked = std::fs::read_to_string(system.run(ASKED)).unwrap_or_default();
    if asked == RESTART {
        RebootCommand::Restart
    } else {
        RebootCommand::PowerOff
    }
}

/// Keys that are down, across all keyboards.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    control: bool,
    alt: bool,
}

impl Keys {
    /// Takes an event in; the wish that it completes.
    pub(crate) fn take(&mut self, event: &[u8; EVENT_BYTES]) -> Option<Wish> {
        const CONTROL: [u16; 2] = [29, 97];
        const ALT: [u16; 2] = [56, 100];
        const DELETE: [u16; 2] = [111, 83];
        const POWER: u16 = 116;
        let kind = u16::from_le_bytes([event[16], event[17]]);
        let code = u16::from_le_bytes([event[18], event[19]]);
        let value = i32::from_le_bytes([event[20], event[21], event[22], event[23]]);
        if kind != KEY {
            return None;
        }
        let is_down = value != 0;
        if CONTROL.contains(&code) {
            self.control = is_down;
        } else if ALT.contains(&code) {
            self.alt = is_down;
        } else if code == POWER && value == 1 {
            return Some(Wish::PowerOff);
        } else if DELETE.contains(&code) && value == 1 && self.control && self.alt {
            return Some(Wish::Reboot);
        }
        None
    }
}

/// The input devices that are open.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    devices: Vec<(PathBuf, File)>,
}

impl Inputs {
    /// Opens devices that are new.
    pub(crate) fn look(&mut self, system: &System) {
        let Ok(entries) = std::fs::read_dir(system.path("dev/input")) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_event = entry.file_name().to_string_lossy().starts_with("event");
            if !is_event || self.devices.iter().any(|(known, _)| *known == path) {
                continue;
            }
            let flags = rustix::fs::OFlags::NONBLOCK.bits();
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags.cast_signed());
            if let Ok(file) = options.open(&path) {
                self.devices.push((path, file));
            }
        }
    }

    /// To wait for.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = rustix::fd::BorrowedFd<'_>> {
        self.devices.iter().map(|(_, file)| file.as_fd())
    }

    /// Reads everything that is there; a device that is gone is forgotten.
    pub(crate) fn read(&mut self, keys: &mut Keys) -> Option<Wish> {
        let mut wish = None;
        self.devices.retain_mut(|(_, device)| {
            let mut event = [0; EVENT_BYTES];
            loop {
                match device.read(&mut event) {
                    Ok(EVENT_BYTES) => {
                        // Every event counts for which keys are down; the first wish is the one.
                        let next = keys.take(&event);
                        wish = wish.or(next);
                    }
                    Ok(_) => return false,
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        wish
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: u16, value: i32) -> [u8; EVENT_BYTES] {
        let mut event = [0; EVENT_BYTES];
        event[16] = 1;
        event[18..20].copy_from_slice(&code.to_le_bytes());
        event[20..].copy_from_slice(&value.to_le_bytes());
        event
    }

    #[test]
    fn the_power_button_switches_off_when_pressed_not_when_released() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(&key(116, 1)), Some(Wish::PowerOff));
        assert_eq!(keys.take(&key(116, 0)), None);
    }

    #[test]
    fn delete_reboots_only_with_control_and_alt_down() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(&key(111, 1)), None);
        keys.take(&key(29, 1));
        keys.take(&key(100, 1));
        assert_eq!(keys.take(&key(111, 1)), Some(Wish::Reboot));
        keys.take(&key(29, 0));
        assert_eq!(keys.take(&key(111, 1)), None);
    }

    #[test]
    fn what_is_forced_is_what_was_asked() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        assert_eq!(forced(&system), RebootCommand::PowerOff);
        std::fs::create_dir_all(system.run("")).unwrap();
        for (note, command) in [
            (RESTART, RebootCommand::Restart),
            ("off", RebootCommand::PowerOff),
        ] {
            std::fs::write(system.run(ASKED), note).unwrap();
            assert_eq!(forced(&system), command);
        }
    }
}
