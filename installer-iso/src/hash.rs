//! SHA-256, of contents and of the inputs of a build step.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use ring::digest::{Context, SHA256, digest};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// What is hashed at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Hexadecimal SHA-256 of bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Hexadecimal SHA-256 of a file. Holes are not read: disk images are gigabytes of them.
///
/// # Errors
///
/// What reading it says.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; CHUNK_BYTES];
        let zeros = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < bytes {
            let start = match seek(&file, SeekFrom::Data(at)) {
                Ok(start) => start.min(bytes),
                Err(Errno::NXIO) => bytes,
                Err(error) => return Err(error.into()),
            };
            in_chunks(start - at, |length| {
                context.update(&zeros[..length]);
                Ok(())
            })?;
            if start == bytes {
                break;
            }
            let end = seek(&file, SeekFrom::Hole(start))?.min(bytes);
            seek(&file, SeekFrom::Start(start))?;
            in_chunks(end - start, |length| {
                file.read_exact(&mut buffer[..length])?;
                context.update(&buffer[..length]);
                Ok(())
            })?;
            at = end;
        }
        Ok(hex(context.finish().as_ref()))
    };
    read().with_context(|| format!("hashing {}", path.display()))
}

/// So many bytes, in pieces that a buffer holds.
fn in_chunks(
    mut bytes: u64,
    mut piece: impl FnMut(usize) -> std::io::Result<()>,
) -> std::io::Result<()> {
    while bytes > 0 {
        let length = usize::try_from(bytes).map_or(CHUNK_BYTES, |bytes| bytes.min(CHUNK_BYTES));
        piece(length)?;
        bytes -= length as u64;
    }
    Ok(())
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
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn hashes_are_those_of_sha256() {
        assert_eq!(
            of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_file_with_holes_has_the_hash_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        // Whole chunks and parts of them; a hole in front, between and behind.
        let length = 5 * CHUNK_BYTES + 4097;
        for data in [
            vec![],
            vec![0],
            vec![1, 3],
            vec![2 * CHUNK_BYTES + 7, length - 3],
        ] {
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(length as u64).unwrap();
            let mut bytes = vec![0; length];
            for at in data {
                bytes[at..at + 3].copy_from_slice(b"abc");
                file.write_all_at(b"abc", at as u64).unwrap();
            }
            assert_eq!(of_file(&path).unwrap(), of_bytes(&bytes));
        }
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(of_file(&path).unwrap(), of_bytes(b"abc"));
        std::fs::write(&path, b"").unwrap();
        assert_eq!(of_file(&path).unwrap(), of_bytes(b""));
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
