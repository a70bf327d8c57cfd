//! SHA-256, of contents and of the inputs of a build step.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use ring::digest::{Context, SHA256, digest};

/// Hexadecimal SHA-256 of bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Hexadecimal SHA-256 of a file.
///
/// # Errors
///
/// What reading it says.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let bytes = file.read(&mut buffer)?;
            if bytes == 0 {
                return Ok(hex(context.finish().as_ref()));
            }
            context.update(&buffer[..bytes]);
        }
    };
    read().with_context(|| format!("hashing {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The inputs of a build step, and from them the name of its result in the cache. Each input has a name, so that
/// two inputs cannot be taken for one another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inputs {
    entries: Vec<(String, String)>,
}

impl Inputs {
    /// Adds an input by its content.
    pub(crate) fn content(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.entries
            .push((name.to_owned(), of_bytes(content.as_ref())));
        self
    }

    /// Adds an input by its hash, or by another text that stands for it.
    pub(crate) fn named(mut self, name: &str, text: &str) -> Self {
        self.entries.push((name.to_owned(), text.to_owned()));
        self
    }

    /// The key: the hash of all inputs.
    pub(crate) fn key(&self) -> String {
        let mut context = Context::new(&SHA256);
        for (name, value) in &self.entries {
            // Neither can hold a line feed that would not show as another input.
            context.update(format!("{name:?} {value:?}\n").as_bytes());
        }
        hex(context.finish().as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256() {
        assert_eq!(
            of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_key_depends_on_names_contents_and_their_borders() {
        let key = |entries: &[(&str, &str)]| {
            let add = |inputs: Inputs, (name, text): &(&str, &str)| inputs.named(name, text);
            entries.iter().fold(Inputs::default(), add).key()
        };
        assert_eq!(key(&[("a", "1")]), key(&[("a", "1")]));
        assert_ne!(key(&[("a", "1")]), key(&[("b", "1")]));
        assert_ne!(key(&[("a", "1\n\"b\" 2")]), key(&[("a", "1"), ("b", "2")]));
    }
}
