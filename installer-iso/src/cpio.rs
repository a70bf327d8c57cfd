//! A writer of cpio archives (format `newc`), as the kernel unpacks them into its first root file system.
//!
//! The same entries give the same bytes: paths are sorted, inode numbers count from 1, owner is root, times are
//! the epoch. Device nodes need no privileges here. Hard links and files above 4 GiB are not supported: the kernel
//! would take neither from us.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

/// Every header starts with it.
const MAGIC: &str = "070701";
/// Name of the last entry.
const TRAILER: &str = "TRAILER!!!";
/// Headers and contents begin at multiples of this.
const ALIGN_BYTES: usize = 4;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory with its permissions.
    Directory { mode: u32 },
    /// A file with its permissions and content.
    File { mode: u32, content: Vec<u8> },
    /// A symbolic link.
    Link { target: String },
    /// A character device.
    Device { mode: u32, major: u32, minor: u32 },
}

/// Entries of an archive by path; paths are relative and have no leading slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Node>,
}

impl Archive {
    /// Adds an entry, and directories (mode 755) above it that are not there.
    ///
    /// # Errors
    ///
    /// A path that is absolute, climbs, or is taken.
    pub(crate) fn add(&mut self, path: &str, node: Node) -> Result<()> {
        let bad = |part: &str| part.is_empty() || part == "." || part == "..";
        ensure!(
            !path.split('/').any(bad),
            "{path:?} is no path inside of an archive"
        );
        for (end, _) in path.match_indices('/') {
            let above = &path[..end];
            match self.entries.get(above) {
                Some(Node::Directory { .. }) => {}
                Some(_) => bail!("{path} lies below {above}, which is no directory"),
                None => {
                    let directory = Node::Directory { mode: 0o755 };
                    self.entries.insert(above.to_owned(), directory);
                }
            }
        }
        ensure!(
            self.entries.insert(path.to_owned(), node).is_none(),
            "{path} is in the archive twice"
        );
        Ok(())
    }

    /// The entries in the order in which they are written.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.entries
            .iter()
            .map(|(path, node)| (path.as_str(), node))
    }

    /// The bytes of the archive.
    ///
    /// # Errors
    ///
    /// A file of 4 GiB or more.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (inode, (path, node)) in (1u32..).zip(&self.entries) {
            let (mode, links, content, device): (u32, u32, &[u8], _) = match node {
                Node::Directory { mode } => (0o040_000 | mode, 2, &[], (0, 0)),
                Node::File { mode, content } => (0o100_000 | mode, 1, content, (0, 0)),
                Node::Link { target } => (0o120_777, 1, target.as_bytes(), (0, 0)),
                Node::Device { mode, major, minor } => (0o020_000 | mode, 1, &[], (*major, *minor)),
            };
            put(
                &mut out,
                path,
                [inode, mode, links, device.0, device.1],
                content,
            )?;
        }
        put(&mut out, TRAILER, [0, 0, 1, 0, 0], &[])?;
        Ok(out)
    }
}

/// One entry; the numbers are inode, mode, links, major and minor of a device.
fn put(out: &mut Vec<u8>, name: &str, numbers: [u32; 5], content: &[u8]) -> Result<()> {
    let [inode, mode, links, major, minor] = numbers;
    let Ok(bytes) = u32::try_from(content.len()) else {
        bail!(
            "{name} is too large for an initramfs: {} bytes",
            content.len()
        );
    };
    let name_bytes = u32::try_from(name.len() + 1)?;
    // inode, mode, uid, gid, links, mtime, size, device of the file system, device, name, checksum.
    let fields = [
        inode, mode, 0, 0, links, 0, bytes, 0, 0, major, minor, name_bytes, 0,
    ];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    align(out);
    out.extend_from_slice(content);
    align(out);
    Ok(())
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGN_BYTES), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> Node {
        Node::File {
            mode: 0o755,
            content: content.to_vec(),
        }
    }

    #[test]
    fn the_order_of_adding_does_not_matter() {
        let mut one = Archive::default();
        one.add("bin/b", file(b"2")).unwrap();
        one.add("bin/a", file(b"1")).unwrap();
        let mut other = Archive::default();
        other.add("bin/a", file(b"1")).unwrap();
        other.add("bin/b", file(b"2")).unwrap();
        assert_eq!(one.bytes().unwrap(), other.bytes().unwrap());
    }

    #[test]
    fn headers_are_as_the_kernel_reads_them() {
        let mut archive = Archive::default();
        let console = Node::Device {
            mode: 0o600,
            major: 5,
            minor: 1,
        };
        archive.add("dev/console", console).unwrap();
        let bytes = archive.bytes().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let header = "070701000000010000\
            41ED00000000000000000000000200000000000000000000000000000000000000000000000000000004\
            00000000dev\0";
        assert!(text.starts_with(header), "{text}");
        assert!(text.contains("00002180"), "a character device of mode 600");
        assert!(text.contains("0000000500000001"), "5, 1");
        assert!(text.trim_end_matches('\0').ends_with(TRAILER));
        assert_eq!(bytes.len() % ALIGN_BYTES, 0);
    }

    #[test]
    fn paths_that_leave_the_archive_or_are_taken_are_refused() {
        let mut archive = Archive::default();
        archive.add("init", file(b"")).unwrap();
        for path in ["/init", "../init", "a//b", "", "init", "init/below"] {
            assert!(archive.add(path, file(b"")).is_err(), "{path:?}");
        }
    }
}
