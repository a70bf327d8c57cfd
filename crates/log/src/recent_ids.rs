//! `recent-ids.bin`: the event ids that a partition's writer remembered when it stopped cleanly.
//!
//! Derived: the ids are in the indexes too, but those of a million events may lie in a thousand
//! segments, and a start would have to open all of their indexes. The file is bound to the end of
//! the log by the checksum of its last header, which covers all before it; so a file of another
//! stop, or of a log that was cut or repaired since, is never taken for this one. It is left where
//! it is when appends go on, and replaced at the next clean stop.
//!
//! Header page: 0 u64 checksum(8..4096) | 8 "TIDS" | 12 u16 version | 14 u16 0 |
//! 16 \[16\] database id | 32 u32 partition | 36 u32 0 | 40 u64 check of the key seed |
//! 48 u64 next_sequence | 56 u64 checksum of the log's last header | 64 u64 first_sequence |
//! 72 one section {u64 offset, u64 bytes, u64 rows}.
//!
//! Rows, sorted by hash: {u64 hash of the id, u32 how many sequences before next_sequence its event
//! is, from 1}. All events from first_sequence on have theirs.

use std::ops::Range;
use std::sync::Arc;

use truthdb_io::Storage;
use xxhash_rust::xxh64::xxh64;

use crate::keys::IdHash;
use crate::paged::{
    IndexError, PAYLOAD_BYTES, PagedReader, PagedWriter, SECTION_ENTRY_BYTES, Section, get_u16,
    get_u32, get_u64, put_u16, put_u32, put_u64,
};
use crate::segment::index_dir;

/// Version of the format.
pub const RECENT_IDS_VERSION: u16 = 1;

const MAGIC: &[u8; 4] = b"TIDS";
/// Header bytes that say whose ids they are; their hash seeds the pages' checksums.
pub(crate) const IDENTITY: Range<usize> = 8..SECTION_AT;
pub(crate) const SECTION_AT: usize = 72;
pub(crate) const ROW_BYTES: usize = 12;

/// The end of a log that a file of recent ids belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecentIdsBinding {
    /// Database.
    pub database_id: [u8; 16],
    /// Partition.
    pub partition: u32,
    /// [`crate::KeySeed::check`] of the database's seed.
    pub key_check: u64,
    /// Sequence that the next event gets.
    pub next_sequence: u64,
    /// Checksum of the log's last header, mark or batch; 0 if there is none.
    pub last_checksum: u64,
}

/// Path of the file: `partition-0000/index/recent-ids.bin`.
pub fn recent_ids_path(partition: u32) -> String {
    format!("{}/recent-ids.bin", index_dir(partition))
}

/// Writes the file, durably and atomically. `ids` are hashes and sequences, in any order; they
/// come back sorted. Every event from `first_sequence` on must be among them; earlier ones are left
/// out.
///
/// # Errors
///
/// [`IndexError::Io`]. The log is not touched.
///
/// # Panics
///
/// If an id's sequence is not below `next_sequence`, or more than a `u32` below it.
pub fn write_recent_ids(
    storage: &Arc<dyn Storage>,
    binding: &RecentIdsBinding,
    first_sequence: u64,
    ids: &mut [(IdHash, u64)],
) -> Result<(), IndexError> {
    ids.sort_unstable_by_key(|(hash, sequence)| (hash.0, *sequence));
    let mut header = [0; SECTION_AT + SECTION_ENTRY_BYTES];
    header[8..12].copy_from_slice(MAGIC);
    put_u16(&mut header, 12, RECENT_IDS_VERSION);
    header[16..32].copy_from_slice(&binding.database_id);
    put_u32(&mut header, 32, binding.partition);
    put_u64(&mut header, 40, binding.key_check);
    put_u64(&mut header, 48, binding.next_sequence);
    put_u64(&mut header, 56, binding.last_checksum);
    put_u64(&mut header, 64, first_sequence);
    let path = recent_ids_path(binding.partition);
    let mut writer = PagedWriter::create(storage, &path, xxh64(&header[IDENTITY], 0))?;
    for (hash, sequence) in ids
        .iter()
        .filter(|(_, sequence)| *sequence >= first_sequence)
    {
        let before = binding.next_sequence - sequence;
        let before = u32::try_from(before).expect("the window is smaller than a u32");
        assert!(before > 0, "an id of an event that is not there");
        let mut row = [0; ROW_BYTES];
        put_u64(&mut row, 0, hash.0);
        put_u32(&mut row, 8, before);
        writer.write_row(&row)?;
    }
    let section = writer.end_section();
    header[SECTION_AT..].copy_from_slice(&section.encode());
    writer.finish(&header)
}

/// An open file of recent ids that belongs to this end of this log.
pub struct RecentIds {
    reader: PagedReader,
    rows: Section,
    next_sequence: u64,
    first_sequence: u64,
}

impl std::fmt::Debug for RecentIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecentIds")
            .field("path", &self.reader.path())
            .finish_non_exhaustive()
    }
}

pub(crate) fn section_of(header: &[u8]) -> Section {
    Section::decode(&header[SECTION_AT..])
}

impl RecentIds {
    /// Opens the file.
    ///
    /// # Errors
    ///
    /// [`IndexError`]; if it [`IndexError::is_rebuildable`], the ids come from the indexes instead.
    pub fn open(
        storage: &Arc<dyn Storage>,
        expected: &RecentIdsBinding,
    ) -> Result<RecentIds, IndexError> {
        let path = recent_ids_path(expected.partition);
        let seed = |header: &[u8]| xxh64(&header[IDENTITY], 0);
        let (reader, header, file_bytes) = PagedReader::open(storage, &path, seed)?;
        if &header[8..12] != MAGIC {
            return Err(reader.corrupt(8, "this is not a file of recent ids"));
        }
        let version = get_u16(&header, 12);
        if version > RECENT_IDS_VERSION {
            let known = RECENT_IDS_VERSION;
            return Err(IndexError::Newer {
                path,
                version,
                known,
            });
        }
        let fields = [
            ("database id", header[16..32] != expected.database_id),
            ("partition", get_u32(&header, 32) != expected.partition),
            ("key seed", get_u64(&header, 40) != expected.key_check),
            (
                "next sequence",
                get_u64(&header, 48) != expected.next_sequence,
            ),
            (
                "last checksum",
                get_u64(&header, 56) != expected.last_checksum,
            ),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, differs)| *differs) {
            return Err(IndexError::Foreign { path, field });
        }
        let rows = section_of(&header);
        let rows_per_page = (PAYLOAD_BYTES / ROW_BYTES) as u64;
        if !rows.fits(file_bytes) || rows.rows.div_ceil(rows_per_page) != rows.pages() {
            return Err(reader.corrupt(SECTION_AT as u64, "its rows do not fit the file"));
        }
        Ok(RecentIds {
            reader,
            rows,
            next_sequence: expected.next_sequence,
            first_sequence: get_u64(&header, 64),
        })
    }

    /// The ids of all events from this sequence on are there.
    pub fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// Visits sequence and id of every event, in the order of the hashes.
    ///
    /// # Errors
    ///
    /// [`IndexError`]. What was visited before it is true.
    pub fn visit(&self, mut visit: impl FnMut(u64, IdHash)) -> Result<(), IndexError> {
        let mut rows = self.reader.rows(&self.rows, ROW_BYTES);
        let mut row = [0; ROW_BYTES];
        let mut last = 0;
        while rows.next(&mut row)? {
            let (hash, before) = (get_u64(&row, 0), u64::from(get_u32(&row, 8)));
            let sequence = self.next_sequence.checked_sub(before);
            let sequence = sequence.filter(|sequence| {
                before > 0 && *sequence >= self.first_sequence.max(1) && hash >= last
            });
            let Some(sequence) = sequence else {
                let reason = "a row is out of its order, or of no event";
                return Err(self.reader.corrupt(self.rows.offset, reason));
            };
            last = hash;
            visit(sequence, IdHash(hash));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use truthdb_io::sim::SimWorld;

    use super::*;

    const BINDING: RecentIdsBinding = RecentIdsBinding {
        database_id: [7; 16],
        partition: 0,
        key_check: 5,
        next_sequence: 2000,
        last_checksum: 99,
    };

    fn storage() -> Arc<dyn Storage> {
        let storage = SimWorld::new(1).storage();
        storage.durable_create_dir(&index_dir(0)).unwrap();
        storage
    }

    fn all(file: &RecentIds) -> Result<Vec<(u64, u64)>, IndexError> {
        let mut found = Vec::new();
        file.visit(|sequence, hash| found.push((sequence, hash.0)))?;
        found.sort_unstable();
        Ok(found)
    }

    fn write(storage: &Arc<dyn Storage>, first: u64) -> Vec<(u64, u64)> {
        let hash = |sequence: u64| sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut ids: Vec<_> = (900..2000).map(|at| (IdHash(hash(at)), at)).collect();
        write_recent_ids(storage, &BINDING, first, &mut ids).unwrap();
        (first..2000).map(|at| (at, hash(at))).collect()
    }

    #[test]
    fn what_was_written_comes_back() {
        let storage = storage();
        let written = write(&storage, 1000);
        let file = RecentIds::open(&storage, &BINDING).unwrap();
        assert_eq!(file.first_sequence(), 1000);
        assert_eq!(all(&file).unwrap(), written);
    }

    #[test]
    fn bytes_are_those_of_the_golden_file() {
        let (memory, storage) = crate::test_storage::MemoryStorage::shared();
        let mut ids = [
            (IdHash(0x22), 1998),
            (IdHash(0x11), 1999),
            (IdHash(0x33), 1990),
        ];
        write_recent_ids(&storage, &BINDING, 1998, &mut ids).unwrap();
        let bytes = memory.get(&recent_ids_path(0));
        crate::test_golden::check("recent-ids-1.hex", &crate::test_golden::hex(&bytes));
    }

    #[test]
    fn a_file_of_another_end_of_the_log_is_foreign_and_a_missing_one_rebuildable() {
        let storage = storage();
        let missing = RecentIds::open(&storage, &BINDING).unwrap_err();
        assert!(missing.is_rebuildable(), "{missing}");
        write(&storage, 1000);
        let others = [
            RecentIdsBinding {
                database_id: [8; 16],
                ..BINDING
            },
            RecentIdsBinding {
                key_check: 6,
                ..BINDING
            },
            RecentIdsBinding {
                next_sequence: 2001,
                ..BINDING
            },
            RecentIdsBinding {
                last_checksum: 98,
                ..BINDING
            },
        ];
        for other in others {
            let error = RecentIds::open(&storage, &other).unwrap_err();
            assert!(matches!(error, IndexError::Foreign { .. }), "{error}");
        }
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let storage = storage();
        let written = write(&storage, 1500);
        let path = recent_ids_path(0);
        let file = storage
            .open(&path, truthdb_io::OpenMode::ReadWrite)
            .unwrap();
        let bytes = usize::try_from(file.len().unwrap()).unwrap();
        let mut whole = truthdb_io::AlignedBuf::new_zeroed(bytes);
        file.read_at(&mut whole, bytes, 0).unwrap();
        // Pages are full of rows but for the last; the flips go through all parts of one.
        for at in (0..bytes).step_by(7) {
            let mut flipped = truthdb_io::AlignedBuf::new_zeroed(bytes);
            flipped.copy_from_slice(&whole);
            flipped[at] ^= 0x10;
            file.write_at(&flipped, bytes, 0).unwrap();
            let read = RecentIds::open(&storage, &BINDING).and_then(|file| all(&file));
            assert!(read.is_err(), "offset {at}");
        }
        file.write_at(&whole, bytes, 0).unwrap();
        for length in (0..bytes).step_by(512) {
            file.set_len(length as u64).unwrap();
            let read = RecentIds::open(&storage, &BINDING).and_then(|file| all(&file));
            assert!(read.is_err(), "cut at {length}");
        }
        file.set_len(bytes as u64).unwrap();
        file.write_at(&whole, bytes, 0).unwrap();
        let file = RecentIds::open(&storage, &BINDING).unwrap();
        assert_eq!(all(&file).unwrap(), written);
    }
}
