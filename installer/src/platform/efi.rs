//! Variables of the firmware: the boot entry, as best effort.
//!
//! A refused write must never fail an installation: the fallback path starts the disk without any
//! variable. Our own entries are found by name and reused, the lowest number first; those of others
//! are never touched. What was written is read back, since some firmware only says that it wrote.
//! `BootNext` sends the machine to the disk once, even where the medium is first in the order.

use std::io::{self, Write as _};
use std::path::PathBuf;

use uuid::Uuid;

use super::System;
use super::machine::clock_s;
use crate::flow::Disk;
use crate::plan::{BOOT_ENTRY_NAME, ESP_NAME, Plan, system_path};

/// Where variables are.
pub const VARIABLES: &str = "sys/firmware/efi/efivars";
/// The firmware's own variables (UEFI 2.10, 3.3).
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Those of boot loaders; the stub tells which partition it was started from.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Our own.
const TRUTHDB: &str = "6f1a7c52-3b9e-4f0d-8a64-d27e5b90c318";
/// When the machine was last sent to its disk: seconds since 1970, 8 bytes, the least first.
const SENT_TO_DISK: &str = "TruthDBSentToDisk";
/// Kept, and visible at boot and at run time.
const ATTRIBUTES: u32 = 7;
/// An entry that the boot manager considers.
const ACTIVE: u32 = 1;
/// Longer variables are none of ours.
const VARIABLE_BYTES_MAX: usize = 64 << 10;

/// The value of one of the firmware's variables, without its attributes.
#[must_use]
pub fn read_global(system: &System, name: &str) -> Option<Vec<u8>> {
    read(system, name, GLOBAL)
}

fn read(system: &System, name: &str, vendor: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path(system, name, vendor)).ok()?;
    (bytes.len() <= VARIABLE_BYTES_MAX).then(|| bytes.get(4..).map(<[u8]>::to_vec))?
}

fn path(system: &System, name: &str, vendor: &str) -> PathBuf {
    system.path(&format!("{VARIABLES}/{name}-{vendor}"))
}

/// The partition that this program was started from, as the stub left it.
#[must_use]
pub fn boot_partition(system: &System) -> Option<Uuid> {
    let value = read(system, "LoaderDevicePartUUID", LOADER)?;
    let text: Vec<u16> = value
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    Uuid::try_parse(&String::from_utf16(&text).ok()?).ok()
}

/// What a boot entry starts.
struct Entry {
    name: String,
    number: u32,
    first_sector: u64,
    last_sector: u64,
    partition: Uuid,
    path: String,
}

/// Registers a plan's boot entry, makes it the first, and the one to be started next.
///
/// # Errors
///
/// Why the disk starts by its fallback path only, for people. Nothing of others was changed.
pub fn register(system: &System, plan: &Plan) -> Result<(), String> {
    let Some(entry) = &plan.boot_entry else {
        return Err("none was wanted".into());
    };
    let number = register_entry(
        system,
        &Entry {
            name: entry.name.clone(),
            number: plan.esp.number,
            first_sector: plan.esp.first_sector,
            last_sector: plan.esp.last_sector,
            partition: plan.esp.id,
            path: entry.path.clone(),
        },
    )?;
    if let Err(reason) = start_next(system, number) {
        // The order of the entries is what counts.
        tracing::warn!(reason, "BootNext");
    }
    Ok(())
}

/// Sends the machine to the system on a disk at its next start, and notes when that was.
///
/// # Errors
///
/// Why it would come back to what is first in its order, for people.
pub fn start_disk_next(system: &System, disk: &Disk) -> Result<(), String> {
    let damaged = || "the system on the disk is damaged".to_owned();
    let esp = disk.partitions.iter().find(|old| old.name == ESP_NAME);
    let (esp, found) = esp.zip(disk.truthdb.as_ref()).ok_or_else(damaged)?;
    let version = found.version.as_ref().map_err(|_| damaged())?;
    let number = register_entry(
        system,
        &Entry {
            name: BOOT_ENTRY_NAME.to_owned(),
            number: esp.number,
            first_sector: esp.first_sector,
            last_sector: esp.last_sector,
            partition: esp.id.ok_or_else(damaged)?,
            path: system_path(version),
        },
    )?;
    // Noted before: a machine that is sent without it might be sent for ever.
    write(system, SENT_TO_DISK, TRUTHDB, &clock_s().to_le_bytes())
        .map_err(|error| format!("the firmware keeps no note ({error})"))?;
    start_next(system, number)
}

/// When this machine was last sent to its disk.
#[must_use]
pub fn sent_to_disk_s(system: &System) -> Option<u64> {
    let value = read(system, SENT_TO_DISK, TRUTHDB)?;
    value.try_into().ok().map(u64::from_le_bytes)
}

fn start_next(system: &System, number: u16) -> Result<(), String> {
    let wanted = number.to_le_bytes();
    write(system, "BootNext", GLOBAL, &wanted)
        .map_err(|error| format!("the firmware refuses to start it next ({error})"))?;
    if read_global(system, "BootNext").as_deref() == Some(&wanted[..]) {
        Ok(())
    } else {
        Err("the firmware did not keep that it is to be started next".into())
    }
}

/// Makes an entry the first; its number.
fn register_entry(system: &System, entry: &Entry) -> Result<u16, String> {
    let names = system.names(VARIABLES);
    if names.is_empty() {
        return Err("the firmware's variables cannot be reached".into());
    }
    let option = load_option(entry);
    let numbers: Vec<u16> = names.iter().filter_map(|name| boot_number(name)).collect();
    let is_ours = |number: &u16| {
        read_global(system, &boot_name(*number))
            .is_some_and(|value| description(&value) == entry.name)
    };
    let own: Vec<u16> = numbers.iter().copied().filter(is_ours).collect();
    let number = own
        .first()
        .copied()
        .or_else(|| (0..=u16::MAX).find(|number| !numbers.contains(number)))
        .ok_or_else(|| "the firmware has no room for another entry".to_owned())?;
    let refused = |what: &str, error: &io::Error| format!("the firmware refuses {what}: {error}");
    let is_there = || read_global(system, &boot_name(number)).as_deref() == Some(&option[..]);
    if !is_there() {
        write(system, &boot_name(number), GLOBAL, &option)
            .map_err(|error| refused("the boot entry", &error))?;
    }
    let order = read_global(system, "BootOrder").unwrap_or_default();
    let mut new_order = number.to_le_bytes().to_vec();
    for other in order
        .chunks_exact(2)
        .filter(|other| **other != number.to_le_bytes())
    {
        new_order.extend_from_slice(other);
    }
    if new_order != order {
        write(system, "BootOrder", GLOBAL, &new_order)
            .map_err(|error| refused("a new order of boot entries", &error))?;
    }
    let is_first =
        read_global(system, "BootOrder").is_some_and(|now| now.starts_with(&number.to_le_bytes()));
    if is_there() && is_first {
        Ok(number)
    } else {
        Err("the firmware did not keep the boot entry".into())
    }
}

fn boot_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

fn boot_number(file: &str) -> Option<u16> {
    let digits = file
        .strip_prefix("Boot")?
        .strip_suffix(&format!("-{GLOBAL}"))?;
    (digits.len() == 4).then(|| u16::from_str_radix(digits, 16).ok())?
}

/// Name of a load option: attributes, length of the path, then the text.
fn description(value: &[u8]) -> String {
    let text: Vec<u16> = value
        .get(6..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&text)
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// A load option (UEFI 2.10, 3.1.3): the partition by its GUID, then the file.
fn load_option(entry: &Entry) -> Vec<u8> {
    let sectors = entry.last_sector.saturating_sub(entry.first_sector) + 1;
    // A node for media: hard drive, with a GUID as its signature.
    let mut path = vec![4, 1, 42, 0];
    path.extend_from_slice(&entry.number.to_le_bytes());
    path.extend_from_slice(&entry.first_sector.to_le_bytes());
    path.extend_from_slice(&sectors.to_le_bytes());
    path.extend_from_slice(&entry.partition.to_bytes_le());
    path.extend_from_slice(&[2, 2]);
    let file = utf16(&format!("\\{}", entry.path.replace('/', "\\")));
    path.extend_from_slice(&[4, 4]);
    path.extend_from_slice(
        &u16::try_from(file.len() + 4)
            .unwrap_or(u16::MAX)
            .to_le_bytes(),
    );
    path.extend_from_slice(&file);
    path.extend_from_slice(&[0x7f, 0xff, 4, 0]);
    let mut option = ACTIVE.to_le_bytes().to_vec();
    option.extend_from_slice(&u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
    option.extend_from_slice(&utf16(&entry.name));
    option.extend_from_slice(&path);
    option
}

/// Writes a variable in the one call that efivarfs wants. The kernel marks most variables immutable;
/// its mark on ours is lifted, as far as the file system knows such marks.
fn write(system: &System, name: &str, vendor: &str, value: &[u8]) -> io::Result<()> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let path = path(system, name, vendor);
    if let Ok(file) = std::fs::File::open(&path)
        && let Ok(flags) = ioctl_getflags(&file)
        && flags.contains(IFlags::IMMUTABLE)
    {
        ioctl_setflags(&file, flags.difference(IFlags::IMMUTABLE))?;
    }
    let mut bytes = ATTRIBUTES.to_le_bytes().to_vec();
    bytes.extend_from_slice(value);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    file.write_all(&bytes)?;
    file.sync_all().or_else(|error| match error.kind() {
        // A file system of variables has nothing to sync.
        io::ErrorKind::InvalidInput => Ok(()),
        _ => Err(error),
    })
}
