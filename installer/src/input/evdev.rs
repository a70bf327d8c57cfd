//! Keyboards through the kernel's event devices, read without blocking and found again when plugged in.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use evdev::raw_stream::RawDevice;
use evdev::{EventType, KeyCode};

use super::{Key, KeyPress, Layout};

/// Where event devices are.
const DEVICES: &str = "/dev/input";

/// What the kernel says of a key that is held.
const REPEATED: i32 = 2;

/// Whether a key that is held is one that is pressed again and again. A decision is made once: what is on
/// the page behind it is not decided by the same press.
fn repeats(key: Key) -> bool {
    match key {
        Key::Enter | Key::Escape | Key::Advanced | Key::Rescan | Key::Export | Key::Layout => false,
        Key::Up
        | Key::Down
        | Key::Left
        | Key::Right
        | Key::Tab
        | Key::BackTab
        | Key::PageUp
        | Key::PageDown
        | Key::Backspace
        | Key::Delete
        | Key::Char(_) => true,
    }
}

/// The keys that are held, and what lock keys say: what a character depends on.
#[derive(Debug, Default)]
pub struct Held {
    shift: [bool; 2],
    alt_gr: bool,
    caps: bool,
}

impl Held {
    /// Takes an event of a key: 1 pressed, 2 repeated, 0 released. A key is given when one was typed.
    pub fn event(&mut self, code: u16, value: i32, layout: Layout) -> Option<Key> {
        const LEFT_SHIFT: u16 = 42;
        const RIGHT_SHIFT: u16 = 54;
        const RIGHT_ALT: u16 = 100;
        const CAPS_LOCK: u16 = 58;
        let down = value != 0;
        match code {
            LEFT_SHIFT => self.shift[0] = down,
            RIGHT_SHIFT => self.shift[1] = down,
            RIGHT_ALT => self.alt_gr = down,
            CAPS_LOCK => self.caps ^= value == 1,
            code if down => {
                let key = layout.key(KeyPress {
                    code,
                    shift: self.shift[0] || self.shift[1],
                    alt_gr: self.alt_gr,
                    caps: self.caps,
                });
                return key.filter(|key| value != REPEATED || repeats(*key));
            }
            _ => {}
        }
        None
    }
}

struct Keyboard {
    device: RawDevice,
    held: Held,
}

/// All keyboards of the machine.
#[derive(Default)]
pub struct Keyboards {
    open: BTreeMap<PathBuf, Keyboard>,
    /// Devices that are no keyboards, so that they are not opened again and again.
    others: BTreeMap<PathBuf, ()>,
}

impl Keyboards {
    /// None yet: call [`Keyboards::rescan`].
    #[must_use]
    pub fn new() -> Keyboards {
        Keyboards::default()
    }

    /// Opens what was plugged in, and forgets what was unplugged.
    pub fn rescan(&mut self) {
        let found: Vec<PathBuf> = std::fs::read_dir(DEVICES)
            .map(|entries| {
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| {
                        let name = path.file_name().unwrap_or_default();
                        name.to_string_lossy().starts_with("event")
                    })
                    .collect()
            })
            .unwrap_or_default();
        self.open.retain(|path, _| found.contains(path));
        self.others.retain(|path, ()| found.contains(path));
        for path in found {
            if self.open.contains_key(&path) || self.others.contains_key(&path) {
                continue;
            }
            match open_keyboard(&path) {
                Ok(Some(device)) => {
                    tracing::info!("keyboard {}: {:?}", path.display(), device.name());
                    let held = Held::default();
                    self.open.insert(path, Keyboard { device, held });
                }
                Ok(None) => {
                    self.others.insert(path, ());
                }
                // Its node may be there before it works: tried again with the next scan.
                Err(error) => tracing::debug!("{}: {error}", path.display()),
            }
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What to wait for.
    pub fn handles(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.open.values().map(|keyboard| keyboard.device.as_fd())
    }

    /// The keys that were typed since the last call.
    pub fn read(&mut self, layout: Layout) -> Vec<Key> {
        let mut keys = Vec::new();
        self.open.retain(|path, keyboard| {
            let Keyboard { device, held } = keyboard;
            match device.fetch_events() {
                Ok(events) => {
                    let pressed = events.filter(|event| event.event_type() == EventType::KEY);
                    keys.extend(
                        pressed.filter_map(|event| held.event(event.code(), event.value(), layout)),
                    );
                    true
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                Err(error) => {
                    tracing::info!("keyboard {} is gone: {error}", path.display());
                    false
                }
            }
        });
        keys
    }
}

/// Opens a device if it is a keyboard: something with an Enter key.
fn open_keyboard(path: &std::path::Path) -> io::Result<Option<RawDevice>> {
    let device = RawDevice::open(path)?;
    let keys = device.supported_keys();
    if !keys.is_some_and(|keys| keys.contains(KeyCode::KEY_ENTER)) {
        return Ok(None);
    }
    let flags = rustix::fs::fcntl_getfl(&device)?;
    rustix::fs::fcntl_setfl(&device, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(Some(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_decides_what_is_typed() {
        let mut held = Held::default();
        let mut type_all = |events: &[(u16, i32)]| {
            let typed = events
                .iter()
                .filter_map(|(code, value)| held.event(*code, *value, Layout::Us));
            typed.collect::<Vec<_>>()
        };
        let a = |c| vec![Key::Char(c)];
        assert_eq!(type_all(&[(30, 1), (30, 0)]), a('a'));
        assert_eq!(type_all(&[(54, 1), (30, 1), (30, 0), (54, 0)]), a('A'));
        assert_eq!(type_all(&[(58, 1), (58, 0), (30, 1), (30, 0)]), a('A'));
        assert_eq!(
            type_all(&[(58, 1), (58, 0), (30, 1), (30, 2), (30, 0)]),
            [a('a'), a('a')].concat()
        );
        // A key that decides something is taken once, however long it is held.
        for (code, key) in [(28, Key::Enter), (96, Key::Enter), (1, Key::Escape)] {
            let held = [(code, 1), (code, 2), (code, 2), (code, 0)];
            assert_eq!(type_all(&held), [key]);
        }
        let twice = [(28, 1), (28, 0), (28, 1), (28, 0)];
        assert_eq!(type_all(&twice), [Key::Enter; 2]);
    }
}
