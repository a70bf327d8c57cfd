//! The partition table: made in memory, and read from disks of which nothing is believed.

use std::io::{self, Read, Seek, SeekFrom};

use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use uuid::Uuid;

use super::{Cause, Run, SparseImage, Target};
use crate::plan::{MIB, Mode, OldPartition, Plan, PlannedPartition};

/// More entries than this are damage or malice: tables have 128.
const ENTRIES_MAX: u32 = 1024;
/// Bytes of an entry: 128, and multiples of it by the standard.
const ENTRY_BYTES: (u32, u32) = (128, 1024);

/// A partition table that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// GUID of the disk.
    pub disk_id: Uuid,
    /// Its partitions, by number.
    pub partitions: Vec<OldPartition>,
}

/// What was found where a table is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableState {
    /// No table.
    Absent,
    /// Something that was one.
    Damaged(String),
    /// A valid one.
    Valid(Table),
}

impl TableState {
    /// The table, if it is valid.
    #[must_use]
    pub fn valid(&self) -> Option<&Table> {
        match self {
            TableState::Valid(table) => Some(table),
            TableState::Absent | TableState::Damaged(_) => None,
        }
    }
}

/// Reads both copies of a GPT, the primary first.
///
/// # Errors
///
/// Those of the reader. A table that is not valid is no error.
pub fn read_table<R: Read + Seek>(
    disk: &mut R,
    sector_bytes: u32,
) -> io::Result<(TableState, TableState)> {
    let sector_bytes = u64::from(sector_bytes);
    let bytes = disk.seek(SeekFrom::End(0))?;
    let Some(last) = (bytes / sector_bytes)
        .checked_sub(1)
        .filter(|last| *last > 2)
    else {
        return Ok((TableState::Absent, TableState::Absent));
    };
    Ok((
        read_copy(disk, sector_bytes, 1, last)?,
        read_copy(disk, sector_bytes, last, last)?,
    ))
}

fn read_copy<R: Read + Seek>(
    disk: &mut R,
    sector_bytes: u64,
    sector: u64,
    last: u64,
) -> io::Result<TableState> {
    disk.seek(SeekFrom::Start(sector * sector_bytes))?;
    let damaged = |reason: String| Ok(TableState::Damaged(reason));
    let header = match GPTHeader::read_from(disk) {
        Ok(header) => header,
        Err(gptman::Error::InvalidSignature) => return Ok(TableState::Absent),
        Err(gptman::Error::Io(error)) => return Err(error),
        Err(error) => return damaged(error.to_string()),
    };
    let (least, most) = ENTRY_BYTES;
    let entry_bytes = header.size_of_partition_entry;
    if header.number_of_partition_entries > ENTRIES_MAX
        || !(least..=most).contains(&entry_bytes)
        || header.partition_entry_lba > last
    {
        return damaged("its header describes an impossible table".into());
    }
    match header.read_partitions(disk, sector_bytes) {
        Ok(entries) => Ok(TableState::Valid(Table {
            disk_id: Uuid::from_bytes_le(header.disk_guid),
            partitions: (1u32..).zip(&entries).filter_map(old_partition).collect(),
        })),
        Err(gptman::Error::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        Err(error) => damaged(error.to_string()),
    }
}

fn old_partition((number, entry): (u32, &GPTPartitionEntry)) -> Option<OldPartition> {
    entry.is_used().then(|| OldPartition {
        number,
        first_sector: entry.starting_lba,
        last_sector: entry.ending_lba,
        kind: Some(Uuid::from_bytes_le(entry.partition_type_guid)),
        id: Some(Uuid::from_bytes_le(entry.unique_partition_guid)),
        name: entry.partition_name.as_str().to_owned(),
    })
}

/// The bytes of both copies.
pub(super) struct Tables {
    /// The first MiB of the disk: protective MBR, header, entries.
    pub(super) primary: Vec<u8>,
    /// Where the backup begins.
    pub(super) backup_start: u64,
    /// From there to the end of the disk: entries, header.
    pub(super) backup: Vec<u8>,
}

/// Makes the table of a plan.
pub(super) fn make(plan: &Plan) -> Result<Tables, Cause> {
    let sector_bytes = u64::from(plan.target.sector_bytes);
    let disk_bytes = plan.target.size_bytes / sector_bytes * sector_bytes;
    let refused = |error: &dyn std::fmt::Display| Cause::Table(error.to_string());
    let mut disk = SparseImage::new(disk_bytes);
    let mut table = GPT::new_from(&mut disk, sector_bytes, plan.disk_id.to_bytes_le())
        .map_err(|error| refused(&error))?;
    for partition in [&plan.esp, &plan.data] {
        table[partition.number] = entry(partition);
    }
    GPT::write_protective_mbr_into(&mut disk, sector_bytes).map_err(|error| refused(&error))?;
    table
        .write_into(&mut disk)
        .map_err(|error| refused(&error))?;
    let backup_start = (table.header.last_usable_lba + 1) * sector_bytes;
    let backup_bytes = disk_bytes - backup_start;
    Ok(Tables {
        primary: read(&mut disk, 0, MIB).map_err(|error| refused(&error))?,
        backup: read(&mut disk, backup_start, backup_bytes).map_err(|error| refused(&error))?,
        backup_start,
    })
}

fn entry(partition: &PlannedPartition) -> GPTPartitionEntry {
    GPTPartitionEntry {
        partition_type_guid: partition.kind.to_bytes_le(),
        unique_partition_guid: partition.id.to_bytes_le(),
        starting_lba: partition.first_sector,
        ending_lba: partition.last_sector,
        attribute_bits: 0,
        partition_name: partition.name.as_str().into(),
    }
}

fn read(disk: &mut SparseImage, start: u64, bytes: u64) -> io::Result<Vec<u8>> {
    disk.seek(SeekFrom::Start(start))?;
    let mut found = Vec::new();
    Read::by_ref(disk).take(bytes).read_to_end(&mut found)?;
    Ok(found)
}

/// With data to be kept: the disk must still have exactly the partitions of the plan.
pub(super) fn check_kept(run: &mut Run<'_>) -> Result<(), Cause> {
    if run.plan.mode == Mode::Install {
        return Ok(());
    }
    let (primary, backup) = read_both(run)?;
    let table = primary.valid().or_else(|| backup.valid());
    let table =
        table.ok_or_else(|| Cause::OtherDisk("it has no partition table any more".into()))?;
    compare(run.plan, table).map_err(Cause::OtherDisk)
}

/// Both copies on the disk must be the plan's.
pub(super) fn verify(run: &mut Run<'_>) -> Result<(), Cause> {
    let (primary, backup) = read_both(run)?;
    for (what, state) in [
        ("the partition table", primary),
        ("the backup partition table", backup),
    ] {
        let reason = match &state {
            TableState::Valid(table) => compare(run.plan, table).err(),
            TableState::Absent => Some("it is missing".to_owned()),
            TableState::Damaged(reason) => Some(reason.clone()),
        };
        if let Some(reason) = reason {
            return Err(Cause::NotAsPlanned { what, reason });
        }
    }
    Ok(())
}

fn read_both(run: &mut Run<'_>) -> Result<(TableState, TableState), Cause> {
    let sector_bytes = run.plan.target.sector_bytes;
    let bytes = run.target.size_bytes();
    let mut disk = TargetReader::new(run.target, 0, bytes);
    read_table(&mut disk, sector_bytes).map_err(|source| Cause::Read {
        offset: disk.last_offset(),
        source,
    })
}

fn compare(plan: &Plan, table: &Table) -> Result<(), String> {
    if table.disk_id != plan.disk_id {
        return Err(format!(
            "its GUID is {}, not {}",
            table.disk_id, plan.disk_id
        ));
    }
    let expected: Vec<OldPartition> = [&plan.esp, &plan.data]
        .into_iter()
        .map(|partition| OldPartition {
            number: partition.number,
            first_sector: partition.first_sector,
            last_sector: partition.last_sector,
            kind: Some(partition.kind),
            id: Some(partition.id),
            name: partition.name.clone(),
        })
        .collect();
    if table.partitions != expected {
        return Err("its partitions are other ones".to_owned());
    }
    Ok(())
}

/// Bytes that are read from the target at once.
const CACHE_BYTES: u64 = 64 << 10;
/// Blocks that are kept: parsers read a few bytes at a time, here and there by turns.
const CACHE_BLOCKS: usize = 8;

/// A range of a target, as a reader.
pub(super) struct TargetReader<'a> {
    target: &'a mut dyn Target,
    start: u64,
    bytes: u64,
    position: u64,
    /// The blocks read last, the latest at the end.
    cache: Vec<(u64, Vec<u8>)>,
}

impl<'a> TargetReader<'a> {
    pub(super) fn new(target: &'a mut dyn Target, start: u64, bytes: u64) -> TargetReader<'a> {
        TargetReader {
            target,
            start,
            bytes,
            position: 0,
            cache: Vec::new(),
        }
    }

    /// The byte of the disk that was read last.
    pub(super) fn last_offset(&self) -> u64 {
        self.start + self.position
    }

    /// Makes the block with the current position the latest one.
    fn fetch(&mut self, block: u64) -> io::Result<()> {
        if let Some(at) = self.cache.iter().position(|(known, _)| *known == block) {
            let found = self.cache.remove(at);
            self.cache.push(found);
            return Ok(());
        }
        let length = CACHE_BYTES.min(self.bytes - block);
        let mut bytes = if self.cache.len() < CACHE_BLOCKS {
            Vec::new()
        } else {
            self.cache.remove(0).1
        };
        bytes.resize(usize::try_from(length).unwrap_or(0), 0);
        self.target.read_at(self.start + block, &mut bytes)?;
        self.cache.push((block, bytes));
        Ok(())
    }
}

impl Read for TargetReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.bytes {
            return Ok(0);
        }
        let block = self.position / CACHE_BYTES * CACHE_BYTES;
        self.fetch(block)?;
        let Some((_, bytes)) = self.cache.last() else {
            return Ok(0);
        };
        let within = usize::try_from(self.position - block).unwrap_or(0);
        let length = out.len().min(bytes.len() - within);
        out[..length].copy_from_slice(&bytes[within..within + length]);
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for TargetReader<'_> {
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

impl io::Write for TargetReader<'_> {
    // The FAT library asks for a writer even to read.
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
