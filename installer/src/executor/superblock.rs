//! What the superblock of an ext4 file system says. It is read directly: nothing is mounted, and nothing that is
//! read is believed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::Target;
use crate::plan::{ByteRange, DATA_LABEL};

/// Where it lies, from the beginning of the file system.
const AT: u64 = 1024;
/// Its bytes.
const BYTES: usize = 1024;
/// Bytes of a block of the file systems that are made here.
const BLOCK_BYTES: u64 = 4096;
/// The feature that says that the journal holds what was not carried out yet.
const NEEDS_RECOVERY: u32 = 4;
/// Magic number of a list of extents.
const EXTENTS: u16 = 0xf30a;
/// Bytes of the head of a list of extents, and of each entry.
const EXTENT_BYTES: usize = 12;
/// Entries of a list of extents in an inode.
const EXTENTS_MAX: u16 = 4;
/// Bytes of group descriptors that are read at once: a multiple of every size of a descriptor.
const DESCRIPTORS_BYTES: usize = 1 << 20;

/// Offsets in it, as the documentation of ext4 in the kernel has them.
mod field {
    pub(super) const BLOCKS_LOW: usize = 0x4;
    pub(super) const LOG_BLOCK_BYTES: usize = 0x18;
    pub(super) const BLOCKS_PER_GROUP: usize = 0x20;
    pub(super) const INODES_PER_GROUP: usize = 0x28;
    pub(super) const MOUNT_TIME: usize = 0x2c;
    pub(super) const MOUNT_COUNT: usize = 0x34;
    pub(super) const MAGIC: usize = 0x38;
    pub(super) const INODE_BYTES: usize = 0x58;
    pub(super) const INCOMPATIBLE: usize = 0x60;
    pub(super) const LABEL: usize = 0x78;
    pub(super) const DESCRIPTOR_BYTES: usize = 0xfe;
    /// A copy of the journal's list of extents.
    pub(super) const JOURNAL: usize = 0x10c;
    pub(super) const BLOCKS_HIGH: usize = 0x150;
    pub(super) const MOUNT_TIME_HIGH: usize = 0x275;
    /// Of a group descriptor: where the table of inodes begins.
    pub(super) const TABLE_LOW: usize = 0x8;
    pub(super) const TABLE_HIGH: usize = 0x28;
}

/// The superblock of a data partition.
#[derive(Clone, PartialEq, Eq)]
pub struct Superblock {
    bytes: [u8; BYTES],
}

impl Superblock {
    /// Reads the one of the data partition that begins at this byte.
    ///
    /// # Errors
    ///
    /// Why there is none, for people: it cannot be read, is not ext4, or has another label.
    pub fn read(target: &mut dyn Target, start: u64) -> Result<Superblock, String> {
        let mut bytes = [0; BYTES];
        target
            .read_at(start.saturating_add(AT), &mut bytes)
            .map_err(|error| format!("it cannot be read: {error}"))?;
        Superblock::parse(bytes)
    }

    /// The one of an image file.
    pub(super) fn of_image(file: &File) -> Result<Superblock, String> {
        let mut bytes = [0; BYTES];
        file.read_exact_at(&mut bytes, AT)
            .map_err(|error| error.to_string())?;
        Superblock::parse(bytes)
    }

    fn parse(bytes: [u8; BYTES]) -> Result<Superblock, String> {
        let found = Superblock { bytes };
        if found.u16_at(field::MAGIC) != 0xef53 {
            return Err("it holds no ext4 file system".into());
        }
        let label = &found.bytes[field::LABEL..field::LABEL + 16];
        let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
        if label != DATA_LABEL.as_bytes() {
            let label = String::from_utf8_lossy(label);
            return Err(format!(
                "its file system is called {label:?}, not {DATA_LABEL:?}"
            ));
        }
        Ok(found)
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from(self.u16_at(at)) | u32::from(self.u16_at(at + 2)) << 16
    }

    /// Whether it was never mounted. The time of a mount is 0 where the clock was never set, and the count of
    /// mounts after a check: neither is believed alone.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.u32_at(field::MOUNT_TIME) == 0
            && self.bytes[field::MOUNT_TIME_HIGH] == 0
            && self.u16_at(field::MOUNT_COUNT) == 0
            && !self.needs_recovery()
    }

    /// Whether it was not unmounted: the next mount carries out what its journal holds.
    #[must_use]
    pub fn needs_recovery(&self) -> bool {
        self.u32_at(field::INCOMPATIBLE) & NEEDS_RECOVERY != 0
    }

    /// What must be zero on the disk and is not written when the file system is made: the tables of inodes, by
    /// group, and the journal.
    pub(super) fn zero_ranges(&self, image: &File) -> io::Result<Vec<ByteRange>> {
        let impossible = || io::Error::from(io::ErrorKind::InvalidData);
        let descriptor_bytes = usize::from(self.u16_at(field::DESCRIPTOR_BYTES));
        let blocks = u64::from(self.u32_at(field::BLOCKS_LOW))
            | u64::from(self.u32_at(field::BLOCKS_HIGH)) << 32;
        let per_group = u64::from(self.u32_at(field::BLOCKS_PER_GROUP));
        if self.u32_at(field::LOG_BLOCK_BYTES) != 2 || descriptor_bytes != 64 || per_group == 0 {
            return Err(impossible());
        }
        let table_bytes = u64::from(self.u32_at(field::INODES_PER_GROUP))
            * u64::from(self.u16_at(field::INODE_BYTES));
        let mut ranges = Vec::new();
        let mut left = usize::try_from(blocks.div_ceil(per_group)).map_err(|_| impossible())?;
        let mut at = BLOCK_BYTES;
        let mut buffer = vec![0u8; DESCRIPTORS_BYTES];
        while left > 0 {
            let count = left.min(DESCRIPTORS_BYTES / descriptor_bytes);
            let read = &mut buffer[..count * descriptor_bytes];
            image.read_exact_at(read, at)?;
            at += read.len() as u64;
            left -= count;
            ranges.extend(read.chunks_exact(descriptor_bytes).map(|descriptor| {
                let table = |at: usize| u64::from(le32(&descriptor[at..]));
                let block = table(field::TABLE_LOW) | table(field::TABLE_HIGH) << 32;
                range(block, table_bytes)
            }));
        }
        ranges.extend(self.journal().ok_or_else(impossible)?);
        let end = blocks.saturating_mul(BLOCK_BYTES);
        if ranges
            .iter()
            .any(|range| range.start == 0 || range.end > end)
        {
            return Err(impossible());
        }
        Ok(ranges)
    }

    /// Where the journal lies; `None` when it is too scattered to be said in its inode.
    fn journal(&self) -> Option<Vec<ByteRange>> {
        let at = field::JOURNAL;
        let (magic, count, depth) = (self.u16_at(at), self.u16_at(at + 2), self.u16_at(at + 6));
        if magic != EXTENTS || depth != 0 || !(1..=EXTENTS_MAX).contains(&count) {
            return None;
        }
        let extents = (1..=usize::from(count)).map(|number| {
            let entry = at + number * EXTENT_BYTES;
            let high = u64::from(self.u16_at(entry + 6)) << 32;
            let block = u64::from(self.u32_at(entry + 8)) | high;
            range(block, u64::from(self.u16_at(entry + 4)) * BLOCK_BYTES)
        });
        Some(extents.collect())
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn range(block: u64, bytes: u64) -> ByteRange {
    let start = block.saturating_mul(BLOCK_BYTES);
    ByteRange {
        start,
        end: start.saturating_add(bytes),
    }
}

impl std::fmt::Debug for Superblock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Superblock")
            .field("is_unused", &self.is_unused())
            .field("needs_recovery", &self.needs_recovery())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[field::MAGIC..field::MAGIC + 2].copy_from_slice(&[0x53, 0xef]);
        bytes[field::LABEL..field::LABEL + 12].copy_from_slice(b"truthdb-data");
        bytes
    }

    #[test]
    fn each_trace_of_a_mount_is_seen() {
        assert!(Superblock::parse(sample()).unwrap().is_unused());
        for (at, value) in [
            (field::MOUNT_TIME, 2),
            (field::MOUNT_TIME_HIGH, 1),
            (field::MOUNT_COUNT, 1),
            (field::INCOMPATIBLE, 4),
        ] {
            let mut bytes = sample();
            bytes[at] = value;
            assert!(!Superblock::parse(bytes).unwrap().is_unused(), "{at}");
        }
    }

    #[test]
    fn what_is_none_of_ours_is_said() {
        let mut other = sample();
        other[field::LABEL + 12] = b'2';
        let said = Superblock::parse(other).unwrap_err();
        assert!(said.contains("truthdb-data2"), "{said}");
        let said = Superblock::parse([0; BYTES]).unwrap_err();
        assert!(said.contains("no ext4"), "{said}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            noise in prop::collection::vec(any::<u8>(), BYTES),
            groups in 0u8..9,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            let mut bytes: [u8; BYTES] = noise.try_into().unwrap();
            std::fs::write(&path, vec![7; 16 << 10]).unwrap();
            let file = File::open(&path).unwrap();
            for (at, value) in [
                (field::BLOCKS_LOW + 3, 0),
                (field::LOG_BLOCK_BYTES, 2),
                (field::BLOCKS_PER_GROUP + 3, groups),
            ] {
                let _ = Superblock { bytes }.zero_ranges(&file);
                bytes[at] = value;
            }
        }
    }
}
