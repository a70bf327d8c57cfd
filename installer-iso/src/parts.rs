//! What an artefact is made of: parts of others, our programs, and files that were given to the build. Its bill of
//! materials names exactly these.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::hash;

/// Our programs that draw screens, and so have fonts in them.
const WITH_FONTS: [&str; 2] = ["truthdb-console", "truthdb-installer"];

/// A part that others wrote, besides the crates of our programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The kernel.
    Linux,
    /// The EFI stub of a unified kernel image.
    Stub,
    /// The first process, mounts, DHCP, time.
    BusyBox,
    /// Programs for the data's file system.
    E2fsprogs,
    /// The C library in the two before.
    Musl,
    /// Rust's standard library with its own C library, in each of our programs.
    RustStd,
    /// The fonts of the screens.
    Fonts,
}

/// What an artefact is made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Contents {
    /// Parts of others.
    pub(crate) parts: BTreeSet<Part>,
    /// Packages of ours, built from this tree.
    pub(crate) packages: BTreeSet<&'static str>,
    /// Components of which only their own makers know what is in them.
    pub(crate) given: Vec<Value>,
}

impl Contents {
    /// Parts of others.
    pub(crate) fn of(parts: &[Part]) -> Self {
        Self {
            parts: parts.iter().copied().collect(),
            ..Self::default()
        }
    }

    /// One of our programs, built from this tree.
    pub(crate) fn program(package: &'static str) -> Self {
        let mut parts = BTreeSet::from([Part::RustStd]);
        if WITH_FONTS.contains(&package) {
            parts.insert(Part::Fonts);
        }
        Self {
            parts,
            packages: BTreeSet::from([package]),
            given: Vec::new(),
        }
    }

    /// A file that was given: its hash, and if a bill of materials of just this file lies beside it, what that says.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(crate) fn given(name: &str, path: &Path) -> Result<Self> {
        let sha256 = hash::of_file(path)?;
        let component = json!({
            "type": "file",
            "name": name,
            "description": "given to the build as a file, not made by it",
            "hashes": [{ "alg": "SHA-256", "content": sha256 }],
        });
        let mut given = vec![component];
        given.extend(described(path, &sha256).unwrap_or_default());
        Ok(Self {
            given,
            ..Self::default()
        })
    }

    /// These and those.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.parts.extend(&other.parts);
        self.packages.extend(&other.packages);
        self.given.extend(other.given.iter().cloned());
        self
    }
}

/// The components that the bill of materials beside a file lists, if it is of a file with this hash.
fn described(path: &Path, sha256: &str) -> Option<Vec<Value>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".cdx.json");
    let bill: Value = serde_json::from_slice(&std::fs::read(PathBuf::from(name)).ok()?).ok()?;
    let of = &bill["metadata"]["component"]["hashes"][0]["content"];
    let components = bill["components"].as_array()?;
    (of == sha256).then(|| components.clone())
}

/// A library whose version and hash are read from this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Library {
    /// Its version, if it says one.
    pub(crate) version: Option<String>,
    /// Hash of its file.
    pub(crate) sha256: String,
}

impl Library {
    /// Reads a static C library of musl.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub(crate) fn musl(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self {
            version: version_in(&bytes),
            sha256: hash::of_bytes(&bytes),
        })
    }
}

/// musl keeps its version as a string of its own: three numbers, and a zero behind them.
fn version_in(library: &[u8]) -> Option<String> {
    let strings = library.split(|byte| !byte.is_ascii_graphic() && *byte != b' ');
    let text = strings.filter_map(|bytes| std::str::from_utf8(bytes).ok());
    let is_version = |text: &&str| {
        let numbers: Vec<&str> = text.split('.').collect();
        let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        numbers.len() == 3 && numbers.iter().all(is_number)
    };
    text.filter(|text| text.starts_with("1."))
        .find(is_version)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_bring_what_they_are_linked_with() {
        let server = Contents::program("truthdb");
        assert_eq!(server.parts, BTreeSet::from([Part::RustStd]));
        let all = Contents::of(&[Part::Linux])
            .and(&server)
            .and(&Contents::program("truthdb-console"));
        let parts = [Part::Linux, Part::RustStd, Part::Fonts];
        assert_eq!(all.parts, BTreeSet::from(parts));
        let packages = ["truthdb", "truthdb-console"];
        assert_eq!(all.packages, BTreeSet::from(packages));
    }

    #[test]
    fn a_given_file_is_named_with_its_hash_and_described_only_by_its_own_bill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("truthdb");
        std::fs::write(&path, "program").unwrap();
        let alone = Contents::given("truthdb", &path).unwrap();
        assert!(alone.packages.is_empty() && alone.parts.is_empty());
        assert_eq!(alone.given.len(), 1);
        let sha256 = hash::of_bytes(b"program");
        assert_eq!(alone.given[0]["name"], "truthdb");
        assert_eq!(alone.given[0]["hashes"][0]["content"], sha256);
        let text = alone.given[0].to_string();
        assert!(!text.contains(&*folder.path().to_string_lossy()), "{text}");

        let bill = |sha256: &str| {
            json!({
                "metadata": { "component": { "hashes": [{ "content": sha256 }] } },
                "components": [{ "name": "serde" }],
            })
        };
        let beside = folder.path().join("truthdb.cdx.json");
        std::fs::write(&beside, bill(&sha256).to_string()).unwrap();
        let described = Contents::given("truthdb", &path).unwrap();
        assert_eq!(described.given.len(), 2);
        assert_eq!(described.given[1]["name"], "serde");
        std::fs::write(&beside, bill(&"0".repeat(64)).to_string()).unwrap();
        assert_eq!(Contents::given("truthdb", &path).unwrap(), alone);
    }

    #[test]
    fn the_version_of_a_library_is_found_in_it() {
        let library = b"!<arch>\n\0x1.2.3\0 1.2.4.5\0\x011.2.5\0rest";
        assert_eq!(version_in(library).as_deref(), Some("1.2.5"));
        assert_eq!(version_in(b"no version"), None);
    }
}
