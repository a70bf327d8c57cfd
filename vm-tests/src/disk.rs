//! Disk images of tests: layers over an image that is not changed, and damage.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Type of a Linux partition, as GPT stores it.
const LINUX_TYPE: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
/// What begins a superblock of Linux RAID.
const RAID_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
/// Its place with version 1.0, from the end of a disk.
const RAID_FROM_END: u64 = 8 << 10;
/// Bytes of a sector of the images.
const SECTOR_BYTES: u64 = 512;

/// Makes a disk that begins as `base` (an image: raw, qcow2 or VHD, by its name) and keeps what is written to itself.
///
/// # Errors
///
/// `qemu-img`'s.
pub fn overlay(base: &Path, to: &Path) -> Result<()> {
    let base = base
        .canonicalize()
        .with_context(|| format!("finding {}", base.display()))?;
    let format = match base.extension().and_then(|extension| extension.to_str()) {
        Some("qcow2") => "qcow2",
        Some("vhd") => "vpc",
        _ => "raw",
    };
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
        .arg(base)
        .arg(to))
}

/// Copies a raw image, without the bytes that are not there.
///
/// # Errors
///
/// `qemu-img`'s.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["convert", "-q", "-f", "raw", "-O", "raw"])
        .arg(from)
        .arg(to))
}

/// Copies a disk into a raw image, without the bytes that are not there.
///
/// # Errors
///
/// `qemu-img`'s.
pub fn flatten(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["convert", "-q", "-f", "qcow2", "-O", "raw"])
        .arg(from)
        .arg(to))
}

/// Makes an empty disk.
///
/// # Errors
///
/// `qemu-img`'s.
pub fn empty(to: &Path, bytes: u64) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(to)
        .arg(bytes.to_string()))
}

/// Overwrites bytes of a disk.
///
/// # Errors
///
/// `qemu-io`'s.
pub fn overwrite(disk: &Path, offset: u64, bytes: u64, pattern: u8) -> Result<()> {
    run(Command::new("qemu-io")
        .args(["-f", "qcow2", "-c"])
        .arg(format!("write -P {pattern} {offset} {bytes}"))
        .arg(disk))
}

/// Writes bytes to a disk: whole sectors.
///
/// # Errors
///
/// `qemu-io`'s.
pub fn write(disk: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let source = disk.with_extension("bytes");
    std::fs::write(&source, bytes).with_context(|| format!("writing {}", source.display()))?;
    run(Command::new("qemu-io")
        .args(["-f", "qcow2", "-c"])
        .arg(format!(
            "write -s {} {offset} {}",
            source.display(),
            bytes.len()
        ))
        .arg(disk))
}

/// Reads sectors of 512 bytes of a disk.
///
/// # Errors
///
/// `qemu-img`'s, or a disk that ends before.
pub fn read(disk: &Path, sector: u64, count: u64) -> Result<Vec<u8>> {
    let copy = disk.with_extension("sectors");
    run(Command::new("qemu-img")
        .args(["dd", "-f", "qcow2", "-O", "raw", "bs=512"])
        .arg(format!("skip={sector}"))
        // Counted from the beginning of the disk.
        .arg(format!("count={}", sector + count))
        .arg(format!("if={}", disk.display()))
        .arg(format!("of={}", copy.display())))?;
    let bytes = std::fs::read(&copy).with_context(|| format!("reading {}", copy.display()))?;
    ensure!(
        bytes.len() as u64 == count * SECTOR_BYTES,
        "{} ends before sector {}",
        disk.display(),
        sector + count
    );
    Ok(bytes)
}

/// Writes what another system leaves: a table of two partitions, with NTFS and ext4.
///
/// # Errors
///
/// `qemu-io`'s.
pub fn write_old_system(disk: &Path) -> Result<()> {
    const PARTITIONS: [(u8, u32, u32); 2] = [(0x07, 2048, 204_800), (0x83, 206_848, 409_600)];
    let mut table = vec![0; 512];
    for (entry, (kind, first, count)) in table[446..].chunks_mut(16).zip(PARTITIONS) {
        entry[4] = kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..16].copy_from_slice(&count.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    write(disk, 0, &table)?;
    let mut ntfs = vec![0; 512];
    ntfs[3..11].copy_from_slice(b"NTFS    ");
    write(disk, 2048 * SECTOR_BYTES, &ntfs)?;
    let mut ext4 = vec![0; 1024];
    ext4[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
    write(disk, 206_848 * SECTOR_BYTES + 1024, &ext4)
}

/// Writes what a mirror of two disks leaves: Linux RAID, version 1.0, near the end of a disk of this size.
///
/// # Errors
///
/// `qemu-io`'s.
pub fn write_old_raid(disk: &Path, bytes: u64) -> Result<()> {
    let mut superblock = vec![0; 512];
    superblock[..4].copy_from_slice(&RAID_MAGIC);
    write(disk, bytes - RAID_FROM_END, &superblock)
}

/// Whether there is something left of it.
///
/// # Errors
///
/// `qemu-img`'s.
pub fn has_old_raid(disk: &Path, bytes: u64) -> Result<bool> {
    let found = read(disk, (bytes - RAID_FROM_END) / SECTOR_BYTES, 1)?;
    Ok(found.starts_with(&RAID_MAGIC))
}

/// Refuses two disks of different content.
///
/// # Errors
///
/// Where they differ.
pub fn same(one: &Path, other: &Path) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["compare", "-q", "-f", "qcow2", "-F", "qcow2"])
        .args([one, other]))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let outcome = command.output();
    let outcome = outcome.with_context(|| {
        format!("cannot start {program}: `apt-get install qemu-utils` brings it")
    })?;
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    if !outcome.status.success() || said.contains("rror") {
        bail!("{program}: {}", said.trim());
    }
    Ok(())
}

/// CRC-32C without the final inversion, as ext4 has it.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let carry = if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            (crc >> 1) ^ carry
        })
    })
}

/// Where things are in the ext4 file system on the data partition of a raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext4 {
    /// The partition.
    pub start: u64,
    /// The superblock.
    pub superblock: u64,
    /// The table of inodes of the first group, with the root directory's.
    pub inode_table: u64,
}

impl Ext4 {
    /// Reads it from an image.
    ///
    /// # Errors
    ///
    /// No such partition or file system.
    pub fn find(image: &Path) -> Result<Ext4> {
        let file = File::open(image).with_context(|| format!("opening {}", image.display()))?;
        let read = |offset: u64, bytes: usize| -> Result<Vec<u8>> {
            let mut buffer = vec![0; bytes];
            file.read_exact_at(&mut buffer, offset)
                .context("reading the image")?;
            Ok(buffer)
        };
        let u32_at = |bytes: &[u8], at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |four| u32::from_le_bytes(*four))
        };
        let table = read(2 * SECTOR_BYTES, 128 * 128)?;
        let entry = table
            .chunks(128)
            .find(|entry| entry.starts_with(&LINUX_TYPE));
        let entry = entry.context("the image has no Linux partition")?;
        let first = entry[32..]
            .first_chunk()
            .map_or(0, |eight| u64::from_le_bytes(*eight));
        let start = first * SECTOR_BYTES;
        let superblock = read(start + 1024, 1024)?;
        ensure!(
            superblock[0x38..0x3a] == [0x53, 0xef],
            "the partition has no ext4"
        );
        let block_bytes = 1024u64 << u32_at(&superblock, 0x18);
        let descriptors = if block_bytes == 1024 { 2 } else { 1 };
        let descriptor = read(start + descriptors * block_bytes, 64)?;
        Ok(Ext4 {
            start,
            superblock: start + 1024,
            inode_table: start + u64::from(u32_at(&descriptor, 8)) * block_bytes,
        })
    }

    /// Leaves so many blocks free in the file system of a raw image, with a file whose blocks are only reserved.
    ///
    /// # Errors
    ///
    /// `debugfs`'s, of the package e2fsprogs.
    pub fn fill(&self, image: &Path, blocks_left: u64) -> Result<()> {
        let free = || -> Result<u64> {
            let said = self.debugfs(image, &["-R", "stats"])?;
            let free = said.lines().find_map(|l| l.strip_prefix("Free blocks:"));
            let free = free.and_then(|number| number.trim().parse().ok());
            free.with_context(|| format!("debugfs names no free blocks: {said}"))
        };
        // The list of the file's extents takes some itself.
        let blocks = free()?.saturating_sub(blocks_left + 1);
        // Not in the directory of the database, which is made in an empty one only.
        let commands = image.with_extension("debugfs");
        let text = format!("cd log\nwrite /dev/null fill\nfallocate fill 0 {blocks}\n");
        std::fs::write(&commands, text).context("writing commands for debugfs")?;
        let path = commands.to_str().context("a path that is no text")?;
        self.debugfs(image, &["-w", "-f", path])?;
        let left = free()?;
        ensure!(left <= blocks_left, "{left} blocks are still free");
        Ok(())
    }

    /// Marks the file system as one with errors, so that a check looks at all of it.
    ///
    /// # Errors
    ///
    /// `qemu-io`'s.
    pub fn mark_unclean(&self, image: &Path, disk: &Path) -> Result<()> {
        const STATE_AT: usize = 0x3a;
        const HAS_ERRORS: u16 = 2;
        const CHECKSUM_AT: usize = 0x3fc;
        let file = File::open(image).with_context(|| format!("opening {}", image.display()))?;
        // Two sectors, written as a whole.
        let mut superblock = vec![0; 1024];
        file.read_exact_at(&mut superblock, self.superblock)
            .context("reading the superblock")?;
        superblock[STATE_AT..STATE_AT + 2].copy_from_slice(&HAS_ERRORS.to_le_bytes());
        let checksum = crc32c(&superblock[..CHECKSUM_AT]);
        superblock[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        write(disk, self.superblock, &superblock)
    }

    /// Destroys the root directory's inode, and marks the file system as one with errors.
    ///
    /// # Errors
    ///
    /// `qemu-io`'s.
    pub fn damage(&self, image: &Path, disk: &Path) -> Result<()> {
        overwrite(disk, self.inode_table, 4096, 0xff)?;
        self.mark_unclean(image, disk)
    }

    /// Leaves nothing by which the file system is known.
    ///
    /// # Errors
    ///
    /// `qemu-io`'s.
    pub fn erase(&self, disk: &Path) -> Result<()> {
        overwrite(disk, self.superblock, 1024, 0)
    }

    /// Refuses a file system with errors, or one that was not unmounted.
    ///
    /// # Errors
    ///
    /// `qemu-img`'s, or what is wrong.
    pub fn check_clean(&self, disk: &Path) -> Result<()> {
        const CLEAN: [u8; 2] = [1, 0];
        const NEEDS_RECOVERY: u8 = 4;
        let superblock = read(disk, self.superblock / SECTOR_BYTES, 1)?;
        ensure!(
            superblock[0x3a..0x3c] == CLEAN,
            "the file system is marked as {:?}, clean is {CLEAN:?}",
            &superblock[0x3a..0x3c]
        );
        ensure!(
            superblock[0x60] & NEEDS_RECOVERY == 0,
            "the file system was not unmounted: its journal is to be recovered"
        );
        Ok(())
    }

    /// The text of a file in the file system of a raw image.
    ///
    /// # Errors
    ///
    /// `debugfs`'s, or there is no such file.
    pub fn file(&self, image: &Path, path: &str) -> Result<String> {
        let text = self.debugfs(image, &["-R", &format!("cat {path}")])?;
        ensure!(!text.is_empty(), "there is no {path} on the disk");
        Ok(text)
    }

    /// Removes a file from the file system of a raw image.
    ///
    /// # Errors
    ///
    /// `debugfs`'s.
    pub fn remove(&self, image: &Path, path: &str) -> Result<()> {
        self.debugfs(image, &["-w", "-R", &format!("rm {path}")])
            .map(|_| ())
    }

    /// What `debugfs` says, of the package e2fsprogs.
    fn debugfs(&self, image: &Path, arguments: &[&str]) -> Result<String> {
        let place = format!("{}?offset={}", image.display(), self.start);
        let mut debugfs = Command::new("/sbin/debugfs");
        let outcome = debugfs.args(arguments).arg(&place).output();
        let outcome = outcome.context("cannot start debugfs: `apt-get install e2fsprogs`")?;
        Ok(String::from_utf8_lossy(&outcome.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        const BYTES: u64 = 1 << 30;
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.qcow2");
        // Where QEMU is not installed, nothing else here works either.
        if empty(&disk, BYTES).is_err() {
            return;
        }
        assert!(!has_old_raid(&disk, BYTES).unwrap());
        write_old_raid(&disk, BYTES).unwrap();
        assert!(has_old_raid(&disk, BYTES).unwrap());
        write_old_system(&disk).unwrap();
        assert_eq!(read(&disk, 0, 1).unwrap()[510..], [0x55, 0xaa]);
        assert_eq!(read(&disk, 2048, 1).unwrap()[3..7], *b"NTFS");
        assert!(read(&disk, BYTES / 512, 1).is_err());
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // The check value of CRC-32C, before its final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
