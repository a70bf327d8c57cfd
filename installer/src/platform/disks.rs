//! The machine's disks, from sysfs: identity, what they hold, and why one is not offered.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::patience::{self, Look};
use super::{System, signatures};
use crate::executor::{FileTarget, Superblock, TableState, read_esp, read_table};
use crate::flow::{Disk, FoundSystem};
use crate::plan::{
    ByteRange, DATA_LABEL, DISK_BYTES_MIN, ESP_NAME, OldPartition, TargetIdentity, TargetKind,
    human_bytes,
};

/// Block devices that are no disks of the machine.
const NO_DISKS: [&str; 9] = [
    "loop", "ram", "zram", "sr", "fd", "md", "dm-", "mtdblock", "nbd",
];
/// Parts of a disk that are no disks of their own.
const NO_DISK_PARTS: [&str; 2] = ["boot", "rpmb"];
/// The beginning of the volume name of our installation media.
const MEDIUM_LABEL: &str = "TRUTHDB";
/// Bytes of a sector in sysfs, whatever the disk's sectors are.
const SYSFS_SECTOR_BYTES: u64 = 512;
/// Partitions of a disk that are looked into.
const PARTITIONS_MAX: usize = 64;

/// All disks, in the order of their names.
///
/// A disk that cannot be read, or does not answer in time, is among them, refused with the reason.
#[must_use]
pub fn all(system: &System, boot_partition: Option<Uuid>) -> Vec<Disk> {
    all_within(system, boot_partition, patience::DEADLINE)
}

/// The same with another deadline.
#[must_use]
pub fn all_within(system: &System, boot_partition: Option<Uuid>, deadline: Duration) -> Vec<Disk> {
    let names = system.names("sys/block");
    let mut disks: Vec<Disk> = names
        .iter()
        .filter(|name| !NO_DISKS.iter().any(|no| name.starts_with(no)))
        .filter(|name| !NO_DISK_PARTS.iter().any(|no| name.contains(no)))
        .filter_map(|name| describe(system, name))
        .collect();
    let looks = disks.iter().map(|disk| {
        let device = system.path(&format!("dev/{}", name_of(disk)));
        let (disk, path) = (disk.clone(), device.clone());
        let look = Box::new(move || open_and_look(disk, &path)) as Box<dyn FnOnce() -> Disk + Send>;
        Look { device, look }
    });
    let seen = patience::all(looks.collect(), deadline);
    for (disk, seen) in disks.iter_mut().zip(seen) {
        match seen {
            Some(seen) => *disk = seen,
            None => disk.refused = Some("it does not answer".into()),
        }
    }
    // Where the partition is not found, its medium has another way to be told.
    let has = |disk: &Disk, id| disk.partitions.iter().any(|old| old.id == Some(id));
    let boot = boot_partition.filter(|boot| disks.iter().any(|disk| has(disk, *boot)));
    for disk in disks.iter_mut().filter(|disk| disk.refused.is_none()) {
        let is_medium = match boot {
            Some(boot) => has(disk, boot),
            None => has_medium_label(disk),
        };
        disk.refused = if is_medium {
            Some("it holds this installer".into())
        } else {
            reason_against(system, disk)
        };
    }
    refuse_double_paths(&mut disks);
    disks
}

/// The kernel's name.
fn name_of(disk: &Disk) -> String {
    let name = disk.identity.path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Whether it looks like an installation medium: a copy that was not started looks the same.
fn has_medium_label(disk: &Disk) -> bool {
    let label = format!("ISO 9660 \"{MEDIUM_LABEL}");
    disk.contents.iter().any(|found| found.starts_with(&label))
}

/// Two paths with one name are one disk: writing to one of them is not safe.
fn refuse_double_paths(disks: &mut [Disk]) {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for disk in disks.iter() {
        *count.entry(disk.identity.wwn.clone()).or_default() += 1;
    }
    for disk in disks {
        let wwn = &disk.identity.wwn;
        if !wwn.is_empty() && count.get(wwn).is_some_and(|count| *count > 1) {
            disk.refused = Some("the machine sees it by several paths (multipath)".into());
        }
    }
}

/// Identity of a disk as sysfs tells it now.
///
/// # Errors
///
/// When the disk is gone.
pub fn identity(system: &System, path: &Path) -> Result<TargetIdentity, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let at = format!("sys/block/{name}");
    let size = system
        .number(&format!("{at}/size"))
        .ok_or_else(|| format!("{} is gone", path.display()))?;
    let sector_bytes = system
        .number(&format!("{at}/queue/logical_block_size"))
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(512);
    let first = |files: &[&str]| {
        let mut texts = files
            .iter()
            .map(|file| system.text(&format!("{at}/{file}")));
        texts.find(|text| !text.is_empty()).unwrap_or_default()
    };
    let mut serial = first(&["serial", "device/serial"]);
    if serial.is_empty() {
        serial = scsi_serial(system, &at);
    }
    Ok(TargetIdentity {
        kind: TargetKind::Disk,
        path: path.to_owned(),
        model: squeeze(&first(&["device/model", "device/name"])),
        serial: squeeze(&serial),
        wwn: squeeze(&first(&["wwid", "device/wwid"])),
        size_bytes: size.saturating_mul(SYSFS_SECTOR_BYTES),
        sector_bytes,
        disk_sequence: system.number(&format!("{at}/diskseq")),
    })
}

/// SCSI disks, SATA among them, tell their serial number in a page of 4 bytes and text.
fn scsi_serial(system: &System, at: &str) -> String {
    let page = std::fs::read(system.path(&format!("{at}/device/vpd_pg80"))).unwrap_or_default();
    let text = page.get(4..).unwrap_or_default();
    String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .collect::<String>()
}

/// One space where several are: makers pad names.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn bus(system: &System, name: &str) -> String {
    let link = std::fs::read_link(system.path(&format!("sys/block/{name}")));
    let link = link.unwrap_or_default().to_string_lossy().into_owned();
    let known = [
        ("/usb", "usb"),
        ("/ata", "sata"),
        ("/nvme", "nvme"),
        ("/virtio", "virtio"),
        ("/mmc", "mmc"),
    ];
    let found = known.iter().find(|(part, _)| link.contains(part));
    let guess = if name.starts_with("nvme") {
        "nvme"
    } else {
        "scsi"
    };
    found.map_or(guess, |(_, bus)| bus).to_owned()
}

/// What the kernel knows of a disk without asking it.
fn describe(system: &System, name: &str) -> Option<Disk> {
    let path = Path::new("/dev").join(name);
    let mut identity = identity(system, &path).ok()?;
    if identity.size_bytes == 0 {
        // A card reader without a card.
        return None;
    }
    identity.path = path;
    Some(Disk {
        bus: bus(system, name),
        contents: Vec::new(),
        partitions: Vec::new(),
        disk_id: None,
        truthdb: None,
        refused: None,
        identity,
    })
}

/// What is on it. This may take as long as the disk likes.
fn open_and_look(mut disk: Disk, device: &Path) -> Disk {
    match File::open(device) {
        Ok(mut file) => {
            if let Err(error) = look_inside(&mut disk, &mut file, device) {
                disk.refused = Some(format!("it cannot be read ({error})"));
            }
        }
        Err(error) => disk.refused = Some(format!("it cannot be opened ({error})")),
    }
    disk
}

fn reason_against(system: &System, disk: &Disk) -> Option<String> {
    let name = &name_of(disk);
    let at = format!("sys/block/{name}");
    if system.number(&format!("{at}/ro")) == Some(1) {
        return Some("it is write-protected".into());
    }
    if let Some(user) = in_use(system, name) {
        return Some(format!("it is in use ({user})"));
    }
    if disk.bus == "usb" {
        // Its kernel has no driver for that (runtime-kernel/kernel.config): a node keeps its data on its own disk.
        return Some("the installed system does not start from USB".into());
    }
    if !matches!(disk.identity.sector_bytes, 512 | 4096) {
        let bytes = disk.identity.sector_bytes;
        return Some(format!(
            "its sectors have {bytes} bytes; 512 and 4096 are supported"
        ));
    }
    if !disk.is_large_enough() {
        let least = human_bytes(DISK_BYTES_MIN);
        return Some(format!("it is too small: {least} are needed"));
    }
    None
}

/// Who uses a disk or one of its partitions.
fn in_use(system: &System, name: &str) -> Option<String> {
    let at = format!("sys/block/{name}");
    let parts = system
        .names(&at)
        .into_iter()
        .filter(|part| part.starts_with(name));
    let folders: Vec<String> = std::iter::once(at.clone())
        .chain(parts.map(|part| format!("{at}/{part}")))
        .collect();
    let mounts = system.text("proc/self/mountinfo");
    let swaps = system.text("proc/swaps");
    for folder in &folders {
        if let Some(holder) = system.names(&format!("{folder}/holders")).first() {
            return Some(format!("held by {holder}"));
        }
        let number = system.text(&format!("{folder}/dev"));
        let is_mounted = |line: &&str| line.split(' ').nth(2) == Some(&number[..]);
        if !number.is_empty()
            && let Some(line) = mounts.lines().find(is_mounted)
        {
            return Some(format!(
                "mounted at {}",
                line.split(' ').nth(4).unwrap_or("?")
            ));
        }
        let part = folder.rsplit('/').next().unwrap_or_default();
        let device = format!("/dev/{part}");
        if swaps
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&device[..]))
        {
            return Some("swap".into());
        }
    }
    None
}

fn look_inside(disk: &mut Disk, file: &mut File, device: &Path) -> std::io::Result<()> {
    let sector_bytes = disk.identity.sector_bytes;
    let size_bytes = disk.identity.size_bytes;
    let whole = signatures::probe(file, 0, size_bytes)?;
    let (primary, backup) = read_table(file, sector_bytes)?;
    if let Some(table) = primary.valid().or_else(|| backup.valid()) {
        disk.disk_id = Some(table.disk_id);
        disk.partitions = table.partitions.clone();
    } else {
        let mut sector = [0u8; 512];
        file.rewind()?;
        file.read_exact(&mut sector)?;
        let found = signatures::mbr_partitions(&sector).unwrap_or_default();
        disk.partitions = found
            .into_iter()
            .map(|(number, first_sector, last_sector)| OldPartition {
                number,
                first_sector,
                last_sector,
                kind: None,
                id: None,
                name: String::new(),
            })
            .collect();
    }
    let count = disk.partitions.len();
    if count > 0 {
        let plural = if count == 1 {
            "partition"
        } else {
            "partitions"
        };
        disk.contents
            .push(format!("a partition table with {count} {plural}"));
    } else if matches!(primary, TableState::Damaged(_)) || matches!(backup, TableState::Damaged(_))
    {
        disk.contents.push("a damaged partition table".into());
    } else if disk.disk_id.is_some() {
        disk.contents.push("an empty partition table".into());
    }
    disk.contents
        .extend(whole.iter().map(signatures::Signature::text));
    for old in disk.partitions.iter().take(PARTITIONS_MAX) {
        let range = range_of(old, sector_bytes);
        if range.start >= range.end || range.start >= size_bytes {
            continue;
        }
        let found = signatures::probe(
            file,
            range.start,
            range.bytes().min(size_bytes - range.start),
        )?;
        for signature in found {
            let text = signature.text();
            if !disk.contents.contains(&text) {
                disk.contents.push(text);
            }
        }
    }
    find_truthdb(disk, device, primary.valid().is_some());
    Ok(())
}

fn range_of(old: &OldPartition, sector_bytes: u32) -> ByteRange {
    let start = old.first_sector.saturating_mul(u64::from(sector_bytes));
    let end = old
        .last_sector
        .saturating_add(1)
        .saturating_mul(u64::from(sector_bytes));
    ByteRange { start, end }
}

/// Partitions with our names are a TruthDB, whatever state it is in.
fn find_truthdb(disk: &mut Disk, device: &Path, has_primary_table: bool) {
    let named = |name: &str| disk.partitions.iter().find(|old| old.name == name);
    let (Some(esp), Some(data)) = (named(ESP_NAME), named(DATA_LABEL)) else {
        return;
    };
    let data = range_of(data, disk.identity.sector_bytes);
    let range = range_of(esp, disk.identity.sector_bytes);
    let (found, is_unused) = match FileTarget::open_to_read(device) {
        Ok(mut target) => {
            let superblock = Superblock::read(&mut target, data.start);
            let is_unused = superblock.is_ok_and(|found| found.is_unused());
            (read_esp(&mut target, range), is_unused)
        }
        Err(error) => (Err(error.to_string()), false),
    };
    disk.truthdb = Some(FoundSystem {
        answers: found.as_ref().ok().and_then(|found| found.answers),
        is_complete: found.as_ref().is_ok_and(|found| found.is_complete),
        is_kept: found.as_ref().is_ok_and(|found| found.is_kept),
        is_unused,
        version: found.map(|found| found.version),
        has_primary_table,
    });
}
