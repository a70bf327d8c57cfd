//! Where things lie on the disk, and what must be true of it.

use uuid::Uuid;

use super::{
    ByteRange, DATA_LABEL, ESP_NAME, ESP_TYPE, FileContent, LINUX_TYPE, Mode, OldPartition,
    PlanError, PlannedPartition, Request,
};

/// Bytes of a MiB: partitions begin and end on a multiple of it, which suits every sector and flash page.
pub const MIB: u64 = 1 << 20;
/// Bytes of the EFI system partition of an installed machine: two systems and a spare, with room.
pub const ESP_BYTES: u64 = 1024 * MIB;
/// The smallest EFI system partition with sectors of 512 bytes: FAT32 needs 65 525 clusters.
pub const ESP_BYTES_MIN_512: u64 = 64 * MIB;
/// The same with sectors of 4096 bytes, where a cluster is no smaller than a sector.
pub const ESP_BYTES_MIN_4096: u64 = 264 * MIB;
/// The smallest data partition: a few segments of one database partition.
pub const DATA_BYTES_MIN: u64 = 1024 * MIB;
/// The smallest disk that is offered to a person. Makers count in powers of ten.
pub const DISK_BYTES_MIN: u64 = 8_000_000_000;
/// Bytes that are erased at both ends of the disk and of every old partition. Signatures of LVM, RAID,
/// ZFS, LUKS and file systems lie within: ZFS has the widest, 512 KiB at either end.
pub const ERASED_AT_EDGES_BYTES: u64 = 4 * MIB;

/// Bytes of a system at most. It is read into memory to be repaired, from disks of which nothing is believed.
pub const SYSTEM_BYTES_MAX: u64 = 64 * MIB;

/// The clusters that fatfs chooses from this size on have 4096 bytes, below 512.
const LARGE_CLUSTERS_FROM_BYTES: u64 = 260 * MIB;
/// Places that are probed, spread evenly over the disk.
const PROBES_EVEN: u64 = 9;
/// The first power of two that is probed: no disk is smaller than 64 MiB.
const PROBE_POWER_FIRST: u32 = 26;
/// Inodes of the data partition, as long as each group needs no more: ext4 has at least one block of them
/// for each group, which are more from 4 TB on. A segment has a handful of files, so they never run out.
const INODES_AIM: u64 = 262_144;
/// Bytes of memory for the programs of e2fsprogs, which take 23 MB for 30 TB, and for buffers.
pub(super) const WORKING_BYTES: u64 = 64 * MIB;
/// Bytes of a block, of a group and of a group's descriptor in the data partition, and groups that share a place
/// for their bitmaps.
const BLOCK_BYTES: u64 = 4096;
const GROUP_BYTES: u64 = 128 * MIB;
const DESCRIPTOR_BYTES: u64 = 64;
const GROUPS_TOGETHER: u64 = 16;
/// Least and most bytes for each inode that mke2fs takes and that make sense.
const BYTES_PER_INODE: (u64, u64) = (MIB, 64 * MIB);
/// Sectors of a GPT at each end, besides the entries: header, and at the front the protective MBR.
const ENTRIES_BYTES: u64 = 128 * 128;
/// Version names are part of file names.
const VERSION_CHARS_MAX: usize = 40;

/// What must be true of a request before anything is computed from it.
pub(super) fn check_request(request: &Request) -> Result<(), PlanError> {
    let sector_bytes = request.target.sector_bytes;
    let (esp_min, esp_bytes) = match sector_bytes {
        512 => (ESP_BYTES_MIN_512, request.esp_bytes),
        4096 => (ESP_BYTES_MIN_4096, request.esp_bytes),
        other => return Err(PlanError::SectorSize(other)),
    };
    let refuse = |reason| Err(PlanError::Esp { esp_bytes, reason });
    if esp_bytes < esp_min {
        return refuse("it is too small for FAT32");
    }
    // Clusters of 512 bytes would be too many further up; the two ranges must not meet.
    if esp_bytes % MIB != 0 || esp_bytes > 8 * ESP_BYTES {
        return refuse("it must be a multiple of 1 MiB and at most 8 GiB");
    }
    let needed_bytes = MIB + esp_bytes + DATA_BYTES_MIN + MIB;
    if request.target.size_bytes < needed_bytes {
        return Err(PlanError::TooSmall {
            size_bytes: request.target.size_bytes,
            needed_bytes,
        });
    }
    let version = &request.runtime.version;
    if version.is_empty() || version.len() > VERSION_CHARS_MAX || !is_name(version) {
        return Err(PlanError::Version(version.clone()));
    }
    if request.mode != Mode::Install && !request.data_files.is_empty() {
        return Err(PlanError::FilesOfKeptData);
    }
    let paths = request
        .data_files
        .iter()
        .map(|FileContent { path, .. }| path);
    for path in paths.chain(request.data_directories.iter().map(|(path, _)| path)) {
        if !is_path(path) {
            return Err(PlanError::Path(path.clone()));
        }
    }
    Ok(())
}

/// The system must fit twice, for an update beside it, and once as the fallback.
pub(super) fn check_room(request: &Request, esp: &PlannedPartition) -> Result<(), PlanError> {
    let system_bytes = request.runtime.image.len() as u64;
    if system_bytes > SYSTEM_BYTES_MAX {
        return Err(PlanError::SystemTooLong { system_bytes });
    }
    let esp_bytes =
        (esp.last_sector - esp.first_sector + 1) * u64::from(request.target.sector_bytes);
    // Two copies now, one for the next version, and a fifth for the file system itself.
    let needed = system_bytes.saturating_mul(3).saturating_mul(6) / 5;
    if needed > esp_bytes {
        return Err(PlanError::SystemTooLarge {
            system_bytes,
            esp_bytes,
        });
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte))
}

/// Paths go into the scripts of tools: nothing in them may need quoting.
fn is_path(path: &str) -> bool {
    path.len() <= 200
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && is_name(part))
}

/// Partitions of a disk that is made anew.
pub(super) fn fresh(request: &Request) -> (Uuid, PlannedPartition, PlannedPartition) {
    let sector_bytes = u64::from(request.target.sector_bytes);
    let sectors = request.target.size_bytes / sector_bytes;
    let per_mib = MIB / sector_bytes;
    let last_usable = sectors - ENTRIES_BYTES / sector_bytes - 2;
    let esp_first = per_mib;
    let data_first = esp_first + request.esp_bytes / sector_bytes;
    let data_end = (last_usable + 1) / per_mib * per_mib;
    let esp = PlannedPartition {
        number: 1,
        kind: ESP_TYPE,
        id: request.seed.id("esp partition"),
        name: ESP_NAME.to_owned(),
        first_sector: esp_first,
        last_sector: data_first - 1,
    };
    let data = PlannedPartition {
        number: 2,
        kind: LINUX_TYPE,
        id: request.seed.id("data partition"),
        name: DATA_LABEL.to_owned(),
        first_sector: data_first,
        last_sector: data_end - 1,
    };
    (request.seed.id("disk"), esp, data)
}

/// The partitions of an earlier installation.
pub(super) fn kept(
    request: &Request,
) -> Result<(Uuid, PlannedPartition, PlannedPartition), PlanError> {
    let disk_id = request
        .old_disk_id
        .ok_or(PlanError::NothingToKeep("it has no GPT"))?;
    let find = |number: u32, name: &str, kind: Uuid, missing| {
        let is_it = |old: &&OldPartition| {
            old.number == number && old.name == name && old.kind == Some(kind)
        };
        let old = request.old_partitions.iter().find(is_it);
        let old = old.ok_or(PlanError::NothingToKeep(missing))?;
        Ok(PlannedPartition {
            number,
            kind,
            id: old.id.ok_or(PlanError::NothingToKeep(missing))?,
            name: name.to_owned(),
            first_sector: old.first_sector,
            last_sector: old.last_sector,
        })
    };
    let esp = find(1, ESP_NAME, ESP_TYPE, "its EFI system partition is missing")?;
    let data = find(2, DATA_LABEL, LINUX_TYPE, "its data partition is missing")?;
    if request.old_partitions.len() > 2 {
        return Err(PlanError::NothingToKeep(
            "it holds partitions of somebody else as well",
        ));
    }
    let sectors = request.target.size_bytes / u64::from(request.target.sector_bytes);
    let ordered = esp.first_sector < esp.last_sector
        && esp.last_sector < data.first_sector
        && data.first_sector < data.last_sector
        && data.last_sector < sectors;
    let sector_bytes = u64::from(request.target.sector_bytes);
    let esp_bytes = esp
        .last_sector
        .saturating_sub(esp.first_sector)
        .saturating_add(1)
        .saturating_mul(sector_bytes);
    let least = if sector_bytes == 512 {
        ESP_BYTES_MIN_512
    } else {
        ESP_BYTES_MIN_4096
    };
    let aligned = [esp.first_sector, data.first_sector, esp.last_sector + 1]
        .iter()
        .all(|sector| sector.saturating_mul(sector_bytes) % MIB == 0);
    if !ordered || !aligned || esp_bytes < least {
        return Err(PlanError::NothingToKeep(
            "its partitions are not as this program makes them",
        ));
    }
    Ok((disk_id, esp, data))
}

/// What is erased first. With data to be kept, only the beginning of the EFI system partition, which
/// is what makes it unreadable to firmware until all of it is there again.
pub(super) fn erased(
    request: &Request,
    esp: &PlannedPartition,
    data: &PlannedPartition,
) -> Vec<ByteRange> {
    let sector_bytes = u64::from(request.target.sector_bytes);
    let start_of = |sector: u64| sector.saturating_mul(sector_bytes);
    if request.mode != Mode::Install {
        let start = start_of(esp.first_sector);
        return vec![ByteRange {
            start,
            end: start + MIB,
        }];
    }
    let disk = ByteRange {
        start: 0,
        end: request.target.size_bytes / sector_bytes * sector_bytes,
    };
    let old = request.old_partitions.iter().map(|old| ByteRange {
        start: start_of(old.first_sector),
        end: start_of(old.last_sector.saturating_add(1)),
    });
    let new = [esp, data].map(|partition| ByteRange {
        start: start_of(partition.first_sector),
        end: start_of(partition.last_sector + 1),
    });
    let mut ranges: Vec<ByteRange> = std::iter::once(disk)
        .chain(old)
        .chain(new)
        .filter(|range| range.start < range.end && range.start < disk.end)
        .flat_map(|range| {
            let end = range.end.min(disk.end);
            let edge = ERASED_AT_EDGES_BYTES;
            let head = ByteRange {
                start: range.start,
                end: end.min(range.start + edge),
            };
            let tail = ByteRange {
                start: range.start.max(end.saturating_sub(edge)),
                end,
            };
            [head, tail]
        })
        .collect();
    ranges.sort();
    merge(&ranges)
}

/// Ranges that meet or overlap, as one.
pub(crate) fn merge(sorted: &[ByteRange]) -> Vec<ByteRange> {
    let mut merged: Vec<ByteRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(*range),
        }
    }
    merged
}

/// Places to probe: spread evenly for what breaks, and at powers of two for disks that fold places
/// behind their real end onto earlier ones, as forged flash does.
pub(super) fn probes(request: &Request) -> Vec<u64> {
    if request.mode != Mode::Install {
        return Vec::new();
    }
    let mibs = request.target.size_bytes / MIB;
    let even = (0..PROBES_EVEN).map(|at| mibs.saturating_sub(2) * at / (PROBES_EVEN - 1) * MIB);
    let powers = (PROBE_POWER_FIRST..u64::BITS).map(|power| 1u64 << power);
    let last = mibs.saturating_sub(2) * MIB;
    let mut places: Vec<u64> = even
        .chain(powers.take_while(|place| *place < last))
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Bytes that are written when an ext4 of this size is made, without the zeros of its tables and journal.
pub(super) fn filesystem_bytes(data_bytes: u64) -> u64 {
    let groups = data_bytes.div_ceil(GROUP_BYTES);
    let descriptors = (groups * DESCRIPTOR_BYTES).next_multiple_of(BLOCK_BYTES);
    // Copies of superblock and descriptors are in the groups 0, 1 and the powers of 3, 5 and 7.
    let powers = [3u64, 5, 7].map(|base| {
        let all = std::iter::successors(Some(base), |power| power.checked_mul(base));
        all.take_while(|power| *power < groups).count() as u64
    });
    let copies = 2 + powers.iter().sum::<u64>();
    let bitmaps = groups.div_ceil(GROUPS_TOGETHER) * BLOCK_BYTES;
    copies * (descriptors + BLOCK_BYTES) + bitmaps + MIB
}

/// Bytes for each inode of a data partition of this size.
pub(super) fn bytes_per_inode(data_bytes: u64) -> u64 {
    let (least, most) = BYTES_PER_INODE;
    (data_bytes / INODES_AIM)
        .next_power_of_two()
        .clamp(least, most)
}

/// Bytes of a cluster of the EFI system partition.
pub(crate) fn cluster_bytes(esp_bytes: u64, sector_bytes: u32) -> u32 {
    let wanted = if esp_bytes < LARGE_CLUSTERS_FROM_BYTES {
        512
    } else {
        4096
    };
    wanted.max(sector_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_meet_become_one() {
        let range = |start, end| ByteRange { start, end };
        let merged = merge(&[range(0, 4), range(2, 6), range(6, 7), range(9, 10)]);
        assert_eq!(merged, [range(0, 7), range(9, 10)]);
    }

    #[test]
    fn inodes_suit_small_and_huge_disks() {
        assert_eq!(bytes_per_inode(DATA_BYTES_MIN), MIB);
        assert_eq!(bytes_per_inode(1 << 40), 4 * MIB);
        assert_eq!(bytes_per_inode(30_000_000_000_000), 64 * MIB);
    }

    #[test]
    fn paths_that_a_script_would_have_to_quote_are_refused() {
        for bad in [
            "", "/a", "a/", "a//b", "a b", "../a", "a/./b", "a\"b", "a;b", "a\nb",
        ] {
            assert!(!is_path(bad), "{bad:?}");
        }
        assert!(is_path("config/truthdb.toml") && is_path("a-b_c+d"));
    }
}
