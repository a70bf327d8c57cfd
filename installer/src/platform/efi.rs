//! Variables of the firmware: the boot entry, as best effort.
//!
//! A refused write must never fail an installation: the fallback path starts the disk without any
//! variable. Our own entries are found by name and reused, the lowest number first; those of others
//! are never touched. What was written is read back, since some firmware only says that it wrote.

use std::io::{self, Write as _};
use std::path::PathBuf;

use uuid::Uuid;

use super::System;
use crate::plan::Plan;

/// Where variables are.
pub const VARIABLES: &str = "sys/firmware/efi/efivars";
/// The firmware's own variables (UEFI 2.10, 3.3).
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Those of boot loaders; the stub tells which partition it was started from.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
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

/// Registers a plan's boot entry, and makes it the first.
///
/// # Errors
///
/// Why the disk starts by its fallback path only, for people. Nothing of others was changed.
pub fn register(system: &System, plan: &Plan) -> Result<(), String> {
    let Some(entry) = &plan.boot_entry else {
        return Err("none was wanted".into());
    };
    let names = system.names(VARIABLES);
    if names.is_empty() {
        return Err("the firmware's variables cannot be reached".into());
    }
    let option = load_option(plan, &entry.name, &entry.path);
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
    write(system, &boot_name(number), &option)
        .map_err(|error| refused("the boot entry", &error))?;
    let order = read_global(system, "BootOrder").unwrap_or_default();
    let mut new_order = number.to_le_bytes().to_vec();
    for other in order
        .chunks_exact(2)
        .filter(|other| **other != number.to_le_bytes())
    {
        new_order.extend_from_slice(other);
    }
    if new_order != order {
        write(system, "BootOrder", &new_order)
            .map_err(|error| refused("a new order of boot entries", &error))?;
    }
    let is_kept = read_global(system, &boot_name(number)).as_deref() == Some(&option[..])
        && read_global(system, "BootOrder")
            .is_some_and(|now| now.starts_with(&number.to_le_bytes()));
    if is_kept {
        Ok(())
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
fn load_option(plan: &Plan, name: &str, file: &str) -> Vec<u8> {
    let sectors = plan.esp.last_sector - plan.esp.first_sector + 1;
    // A node for media: hard drive, with a GUID as its signature.
    let mut path = vec![4, 1, 42, 0];
    path.extend_from_slice(&plan.esp.number.to_le_bytes());
    path.extend_from_slice(&plan.esp.first_sector.to_le_bytes());
    path.extend_from_slice(&sectors.to_le_bytes());
    path.extend_from_slice(&plan.esp.id.to_bytes_le());
    path.extend_from_slice(&[2, 2]);
    let file = utf16(&format!("\\{}", file.replace('/', "\\")));
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
    option.extend_from_slice(&utf16(name));
    option.extend_from_slice(&path);
    option
}

/// Writes a variable in the one call that efivarfs wants. The kernel marks most variables immutable;
/// its mark on ours is lifted, as far as the file system knows such marks.
fn write(system: &System, name: &str, value: &[u8]) -> io::Result<()> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let path = path(system, name, GLOBAL);
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
