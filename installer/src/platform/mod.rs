//! The machine: what it has, and what can be asked of it.
//!
//! Everything that is read goes through [`System`], which has a root: `/` for a real machine, a folder
//! of fixtures for a test. Nothing that is read is believed: parsers take any bytes, and one device
//! that cannot be read, or does not answer, never ends the look at the others.

pub mod disks;
pub mod efi;
pub mod image;
pub mod machine;
pub mod patience;
pub mod power;
pub mod signatures;
pub mod sticks;

use std::path::{Path, PathBuf};

/// Files of sysfs and procfs larger than this are cut.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// Where the machine's files are.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
}

impl System {
    /// The real machine.
    #[must_use]
    pub fn real() -> System {
        System { root: "/".into() }
    }

    /// A folder that looks like one.
    #[must_use]
    pub fn at(root: &Path) -> System {
        System {
            root: root.to_owned(),
        }
    }

    /// A path of the machine, given without its leading `/`.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The text of a small file without space around it; empty if there is none. Control characters
    /// become spaces, since what devices are called ends up on screens.
    #[must_use]
    pub fn text(&self, path: &str) -> String {
        let bytes = std::fs::read(self.path(path)).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
        let text: String = String::from_utf8_lossy(bytes)
            .chars()
            .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
            .collect();
        text.trim().to_owned()
    }

    /// A number in a small file.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path).parse().ok()
    }

    /// Names in a folder, in order; none if it cannot be read.
    #[must_use]
    pub fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(path))
            .map(|entries| {
                let names = entries.flatten().map(|entry| entry.file_name());
                names.filter_map(|name| name.into_string().ok()).collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }
}

/// The value of a key on the kernel's command line; an empty text for a key without one.
#[must_use]
pub fn command_line_value(line: &str, key: &str) -> Option<String> {
    line.split_ascii_whitespace().find_map(|word| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        (name == key).then(|| value.to_owned())
    })
}
