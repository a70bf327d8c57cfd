//! FAT volumes on sticks, read and written without mounting: the answer file, and the logs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use fatfs::{FileSystem, FsOptions};

use super::patience::{self, Look};
use super::{System, signatures};
use crate::executor::read_table;

/// Label of the volume that holds the answers.
pub const ANSWERS_LABEL: &str = "TRUTHDB-CFG";
/// Name of the file with the answers.
pub const ANSWERS_FILE: &str = "truthdb-install.toml";
/// A larger file of answers is none.
const ANSWERS_BYTES_MAX: u64 = 64 << 10;

/// A part of a file, as a volume: what lies outside cannot be reached.
pub struct Window<T> {
    inner: T,
    start: u64,
    bytes: u64,
    position: u64,
}

impl<T> Window<T> {
    /// The bytes from `start` on.
    pub fn new(inner: T, start: u64, bytes: u64) -> Window<T> {
        Window {
            inner,
            start,
            bytes,
            position: 0,
        }
    }

    fn room(&self, wanted: usize) -> usize {
        let left = self.bytes.saturating_sub(self.position);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }
}

impl<T: Read + Seek> Read for Window<T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let room = self.room(out.len());
        self.inner
            .seek(SeekFrom::Start(self.start + self.position))?;
        let read = self.inner.read(&mut out[..room])?;
        self.position += read as u64;
        Ok(read)
    }
}

impl<T: Write + Seek> Write for Window<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len());
        self.inner
            .seek(SeekFrom::Start(self.start + self.position))?;
        let written = self.inner.write(&bytes[..room])?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T> Seek for Window<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// A FAT volume that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    device: String,
    start: u64,
    bytes: u64,
    label: String,
    is_removable: bool,
}

/// Every FAT volume: on whole disks and in partitions. A device that does not answer in time has none.
fn volumes(system: &System, deadline: Duration) -> Vec<Found> {
    let names = system.names("sys/block").into_iter();
    let looks = names.map(|name| {
        let device = system.path(&format!("dev/{name}"));
        let system = system.clone();
        let look = move || volumes_of(&system, &name).unwrap_or_default();
        Look {
            device,
            look: Box::new(look) as Box<dyn FnOnce() -> Vec<Found> + Send>,
        }
    });
    let found = patience::all(looks.collect(), deadline);
    found.into_iter().flatten().flatten().collect()
}

/// The volumes of one device; `None` if it is none, or cannot be opened.
fn volumes_of(system: &System, name: &str) -> Option<Vec<Found>> {
    let at = format!("sys/block/{name}");
    let sectors = system.number(&format!("{at}/size"))?;
    let mut file = File::open(system.path(&format!("dev/{name}"))).ok()?;
    let link = std::fs::read_link(system.path(&at)).unwrap_or_default();
    let is_removable = system.number(&format!("{at}/removable")) == Some(1)
        || link.to_string_lossy().contains("/usb");
    let bytes = sectors.saturating_mul(512);
    let sector_bytes = system.number(&format!("{at}/queue/logical_block_size"));
    let sector_bytes = sector_bytes
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(512);
    let mut found = Vec::new();
    for (start, length) in ranges(&mut file, bytes, sector_bytes) {
        if let Some(label) = fat_label(&mut file, start, length) {
            found.push(Found {
                device: name.to_owned(),
                start,
                bytes: length,
                label,
                is_removable,
            });
        }
    }
    Some(found)
}

/// The whole disk, and each of its partitions.
fn ranges(file: &mut File, bytes: u64, sector_bytes: u32) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, bytes)];
    let mut add = |first: u64, last: u64| {
        let start = first.saturating_mul(u64::from(sector_bytes));
        let end = last
            .saturating_add(1)
            .saturating_mul(u64::from(sector_bytes))
            .min(bytes);
        if start > 0 && start < end {
            ranges.push((start, end - start));
        }
    };
    if let Ok((primary, backup)) = read_table(file, sector_bytes)
        && let Some(table) = primary.valid().or_else(|| backup.valid())
    {
        for old in &table.partitions {
            add(old.first_sector, old.last_sector);
        }
        return ranges;
    }
    let mut sector = [0u8; 512];
    if file
        .rewind()
        .and_then(|()| file.read_exact(&mut sector))
        .is_ok()
    {
        for (_, first, last) in signatures::mbr_partitions(&sector).unwrap_or_default() {
            add(first, last);
        }
    }
    ranges
}

fn fat_label(file: &mut File, start: u64, bytes: u64) -> Option<String> {
    let found = signatures::probe(file, start, bytes).ok()?;
    let fat = found.into_iter().find(|found| found.kind == "FAT")?;
    Some(fat.label)
}

/// The text of the answer file, if there is a volume for it; an error when several claim to be it or
/// it cannot be read.
///
/// # Errors
///
/// Why it is not followed, for people.
pub fn answers(system: &System) -> Result<Option<String>, String> {
    answers_within(system, patience::DEADLINE)
}

/// The same with another deadline.
///
/// # Errors
///
/// Why it is not followed, for people.
pub fn answers_within(system: &System, deadline: Duration) -> Result<Option<String>, String> {
    let named: Vec<Found> = volumes(system, deadline)
        .into_iter()
        .filter(|volume| volume.label.eq_ignore_ascii_case(ANSWERS_LABEL))
        .collect();
    let volume = match &named[..] {
        [] => return Ok(None),
        [one] => one,
        _ => return Err(format!("several volumes are labelled {ANSWERS_LABEL}")),
    };
    let failed = |error: &dyn std::fmt::Display| {
        format!("{ANSWERS_FILE} on the volume {ANSWERS_LABEL} cannot be read: {error}")
    };
    let file = File::open(system.path(&format!("dev/{}", volume.device)))
        .map_err(|error| failed(&error))?;
    let window = ReadOnly(Window::new(file, volume.start, volume.bytes));
    let fat = FileSystem::new(window, FsOptions::new()).map_err(|error| failed(&error))?;
    let file = fat
        .root_dir()
        .open_file(ANSWERS_FILE)
        .map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    file.take(ANSWERS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| failed(&"it is no UTF-8 text"))
}

/// A volume that is only read: the library wants to be able to write.
struct ReadOnly<T>(T);

impl<T: Read> Read for ReadOnly<T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl<T: Seek> Seek for ReadOnly<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl<T> Write for ReadOnly<T> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a text to the first stick with room for it, under a name that is not taken. The answer says
/// where it is.
///
/// # Errors
///
/// What to do, for people. Neither disks nor the installation medium are written to.
pub fn export(system: &System, stem: &str, text: &str) -> Result<String, String> {
    let mut last =
        "no stick with a FAT file system was found. Plug one in, and try again.".to_owned();
    for volume in volumes(system, patience::DEADLINE) {
        let is_medium = volume.label.to_ascii_uppercase().starts_with("TRUTHDB")
            && !volume.label.eq_ignore_ascii_case(ANSWERS_LABEL);
        if !volume.is_removable || is_medium {
            continue;
        }
        let device = system.path(&format!("dev/{}", volume.device));
        match write_new(&device, &volume, stem, text) {
            Ok(name) => {
                let label = if volume.label.is_empty() {
                    "without a label"
                } else {
                    &volume.label
                };
                return Ok(format!("The logs are on the stick {label}, as {name}."));
            }
            Err(error) => {
                last = format!("the stick {} cannot be written to: {error}", volume.label)
            }
        }
    }
    Err(last)
}

fn write_new(device: &Path, volume: &Found, stem: &str, text: &str) -> io::Result<String> {
    const NAMES_MAX: u32 = 100;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)?;
    let window = Window::new(file.try_clone()?, volume.start, volume.bytes);
    let fat = FileSystem::new(window, FsOptions::new())?;
    let name = {
        let root = fat.root_dir();
        let taken = |name: &str| root.open_file(name).is_ok() || root.open_dir(name).is_ok();
        let name = (1..=NAMES_MAX)
            .map(|number| format!("{stem}-{number}.txt"))
            .find(|name| !taken(name))
            .ok_or(io::ErrorKind::AlreadyExists)?;
        let mut out = root.create_file(&name)?;
        out.write_all(text.as_bytes())?;
        out.flush()?;
        name
    };
    fat.unmount()?;
    file.sync_all()?;
    Ok(name)
}
