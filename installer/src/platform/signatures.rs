//! What a disk or a partition holds, told by its signatures. Nothing is mounted, nothing is believed:
//! any bytes may be there.

use std::io::{self, Read, Seek, SeekFrom};

/// Characters of a label that are shown.
const LABEL_CHARS_MAX: usize = 40;
/// Superblocks of Linux RAID with version 0.90 and 1.0 lie near the end.
const RAID_MAGIC: [u8; 4] = 0xa92b_4efcu32.to_le_bytes();

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What it is, for people.
    pub kind: &'static str,
    /// Its label; empty when it has none.
    pub label: String,
}

impl Signature {
    /// In words: `ext4 "srv"`.
    #[must_use]
    pub fn text(&self) -> String {
        if self.label.is_empty() {
            self.kind.to_owned()
        } else {
            format!("{} \"{}\"", self.kind, self.label)
        }
    }
}

/// A signature at a fixed place from the beginning.
struct Magic {
    kind: &'static str,
    at: u64,
    bytes: &'static [u8],
    /// Place and length of the label.
    label: Option<(u64, usize)>,
}

const fn magic(kind: &'static str, at: u64, bytes: &'static [u8]) -> Magic {
    Magic {
        kind,
        at,
        bytes,
        label: None,
    }
}

const fn labelled(kind: &'static str, at: u64, bytes: &'static [u8], label: (u64, usize)) -> Magic {
    Magic {
        kind,
        at,
        bytes,
        label: Some(label),
    }
}

/// From the documentation of each format.
const MAGICS: [Magic; 26] = [
    labelled("ext4", 0x438, &[0x53, 0xef], (0x478, 16)),
    labelled("XFS", 0, b"XFSB", (108, 12)),
    labelled("Btrfs", 0x1_0040, b"_BHRfS_M", (0x1_012b, 64)),
    labelled("FAT", 0x52, b"FAT32", (0x47, 11)),
    labelled("FAT", 0x36, b"FAT1", (0x2b, 11)),
    magic("NTFS", 3, b"NTFS    "),
    magic("exFAT", 3, b"EXFAT   "),
    magic("BitLocker", 3, b"-FVE-FS-"),
    labelled("ISO 9660", 0x8001, b"CD001", (0x8028, 32)),
    magic("LVM", 0x218, b"LVM2 001"),
    magic("LVM", 0x18, b"LVM2 001"),
    magic("LUKS", 0, b"LUKS\xba\xbe"),
    magic("Linux RAID", 0, &RAID_MAGIC),
    magic("Linux RAID", 4096, &RAID_MAGIC),
    magic("swap", 4086, b"SWAPSPACE2"),
    magic("F2FS", 1024, &0xf2f5_2010u32.to_le_bytes()),
    magic("SquashFS", 0, b"hsqs"),
    magic("VMFS", 1 << 20, &0xc001_d00du32.to_le_bytes()),
    magic(
        "bcache",
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
    ),
    magic("HFS+", 1024, b"H+\x00\x04"),
    magic("APFS", 32, b"NXSB"),
    magic("ReFS", 3, b"ReFS\x00\x00\x00\x00"),
    magic("JFS", 0x8000, b"JFS1"),
    magic("ReiserFS", 0x1_0034, b"ReIsEr"),
    magic("Ceph BlueStore", 0, b"bluestore block device"),
    magic("DRBD", 0, &[0x83, 0x74, 0x02, 0x6b]),
];

/// What lies between these bytes of a disk.
///
/// # Errors
///
/// Those of the reader; a range that is too short for a signature is none.
pub fn probe<R: Read + Seek>(disk: &mut R, start: u64, bytes: u64) -> io::Result<Vec<Signature>> {
    let mut found: Vec<Signature> = Vec::new();
    let mut add = |kind: &'static str, label: String| {
        if !found.iter().any(|known| known.kind == kind) {
            found.push(Signature { kind, label });
        }
    };
    for magic in &MAGICS {
        if read_at(disk, (start, bytes), magic.at, magic.bytes.len())?.as_deref()
            != Some(magic.bytes)
        {
            continue;
        }
        let label = match magic.label {
            Some((at, length)) => read_at(disk, (start, bytes), at, length)?,
            None => None,
        };
        add(
            magic.kind,
            label.map_or_else(String::new, |label| clean(&label)),
        );
    }
    // Version 1.0 lies 8 KiB before the end on a multiple of 4 KiB, 0.90 in the last whole 64 KiB.
    let ends = [
        bytes.checked_sub(8 << 10).map(|at| at / 4096 * 4096),
        (bytes / (64 << 10))
            .checked_sub(1)
            .map(|at| at * (64 << 10)),
    ];
    for at in ends.into_iter().flatten() {
        if read_at(disk, (start, bytes), at, 4)?.is_some_and(|found| found == RAID_MAGIC) {
            add("Linux RAID", String::new());
        }
    }
    for (kind, from_end, magic) in [
        ("firmware RAID", 512, &[0xde, 0x11, 0xde, 0x11][..]),
        ("firmware RAID", 1024, b"Intel Raid ISM Cfg Sig. "),
    ] {
        let Some(at) = bytes.checked_sub(from_end) else {
            continue;
        };
        if read_at(disk, (start, bytes), at, magic.len())?.as_deref() == Some(magic) {
            add(kind, String::new());
        }
    }
    if is_zfs(disk, start, bytes)? {
        add("ZFS", String::new());
    }
    Ok(found)
}

/// ZFS keeps a ring of uberblocks from 128 KiB on, in either byte order.
fn is_zfs<R: Read + Seek>(disk: &mut R, start: u64, bytes: u64) -> io::Result<bool> {
    const MAGIC: u64 = 0x00ba_b10c;
    let Some(ring) = read_at(disk, (start, bytes), 128 << 10, 128 << 10)? else {
        return Ok(false);
    };
    Ok(ring.chunks_exact(1024).any(|slot| {
        let mut first = [0u8; 8];
        first.copy_from_slice(&slot[..8]);
        let value = u64::from_le_bytes(first);
        value == MAGIC || value.swap_bytes() == MAGIC
    }))
}

/// Bytes of a range; `None` where the range ends before.
fn read_at<R: Read + Seek>(
    disk: &mut R,
    (start, bytes): (u64, u64),
    at: u64,
    length: usize,
) -> io::Result<Option<Vec<u8>>> {
    if at.checked_add(length as u64).is_none_or(|end| end > bytes) {
        return Ok(None);
    }
    let mut found = vec![0u8; length];
    disk.seek(SeekFrom::Start(start.saturating_add(at)))?;
    match disk.read_exact(&mut found) {
        Ok(()) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn clean(label: &[u8]) -> String {
    let text = String::from_utf8_lossy(label);
    let end = text.find('\0').unwrap_or(text.len());
    text[..end]
        .chars()
        .filter(|c| !c.is_control() && *c != '\u{fffd}')
        .take(LABEL_CHARS_MAX)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// The partitions of an MBR: first and last sector of each. `None` when there is no MBR, or only the
/// one that protects a GPT.
#[must_use]
pub fn mbr_partitions(sector: &[u8]) -> Option<Vec<(u32, u64, u64)>> {
    const PROTECTIVE: u8 = 0xee;
    if sector.get(510..512) != Some(&[0x55, 0xaa][..]) {
        return None;
    }
    let entries = sector[446..510].chunks_exact(16);
    let mut partitions = Vec::new();
    for (number, entry) in (1u32..).zip(entries) {
        if entry[0] & 0x7f != 0 {
            // The boot code of a FAT without a table ends with the same two bytes.
            return None;
        }
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([
                entry[at],
                entry[at + 1],
                entry[at + 2],
                entry[at + 3],
            ]))
        };
        let (kind, first, count) = (entry[4], word(8), word(12));
        if kind == PROTECTIVE {
            return None;
        }
        if kind != 0 && count > 0 {
            partitions.push((number, first, first + count - 1));
        }
    }
    (!partitions.is_empty()).then_some(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    #[test]
    fn every_signature_is_found_alone_and_with_its_label() {
        for magic in &MAGICS {
            let mut disk = vec![0u8; 2 << 20];
            let at = usize::try_from(magic.at).unwrap();
            disk[at..at + magic.bytes.len()].copy_from_slice(magic.bytes);
            if let Some((at, _)) = magic.label {
                let at = usize::try_from(at).unwrap();
                disk[at..at + 5].copy_from_slice(b"HOME ");
            }
            let found = probe(&mut Cursor::new(disk), 0, 2 << 20).unwrap();
            assert_eq!(found.len(), 1, "{}", magic.kind);
            assert_eq!(found[0].kind, magic.kind);
            let label = if magic.label.is_some() { "HOME" } else { "" };
            assert_eq!(found[0].label, label, "{}", magic.kind);
        }
    }

    #[test]
    fn signatures_at_the_end_and_in_rings_are_found() {
        let bytes = 2u64 << 20;
        for (at, magic, kind) in [
            (bytes - (8 << 10), &RAID_MAGIC[..], "Linux RAID"),
            (bytes - (64 << 10), &RAID_MAGIC, "Linux RAID"),
            (bytes - 512, &[0xde, 0x11, 0xde, 0x11], "firmware RAID"),
            (bytes - 1024, b"Intel Raid ISM Cfg Sig. ", "firmware RAID"),
            ((128 << 10) + 7 * 1024, &0x00ba_b10cu64.to_le_bytes(), "ZFS"),
        ] {
            let mut disk = vec![0u8; 2 << 20];
            let at = usize::try_from(at).unwrap();
            disk[at..at + magic.len()].copy_from_slice(magic);
            let found = probe(&mut Cursor::new(disk), 0, bytes).unwrap();
            assert_eq!(
                found.iter().map(|found| found.kind).collect::<Vec<_>>(),
                [kind]
            );
        }
    }

    #[test]
    fn an_mbr_is_told_from_what_looks_like_one() {
        let mut sector = vec![0u8; 512];
        assert_eq!(mbr_partitions(&sector), None);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(mbr_partitions(&sector), None);
        sector[450] = 0x83;
        sector[454] = 1;
        sector[458] = 10;
        assert_eq!(mbr_partitions(&sector), Some(vec![(1, 1, 10)]));
        sector[450] = 0xee;
        assert_eq!(mbr_partitions(&sector), None);
        assert_eq!(mbr_partitions(&sector[..100]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(
            bytes in prop::collection::vec(any::<u8>(), 0..9000),
            start in 0u64..9000,
            length in any::<u64>(),
        ) {
            probe(&mut Cursor::new(&bytes), start, length).unwrap();
            let _ = mbr_partitions(&bytes);
        }
    }
}
