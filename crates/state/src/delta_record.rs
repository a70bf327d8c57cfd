//! The bytes of the delta log: the header of a file, and records.
//!
//! A record's checksum is seeded with the identity of its file (database, partition, module,
//! generation, first sequence) and covers its offset and the checksum of the record before: a record
//! of another file, another place, or an earlier life of the file is never taken for this one.

use crate::changes::Changes;
use crate::fingerprint::{FINGERPRINT_BYTES, Fingerprint};
use crate::layout::{
    FieldReader, FieldWriter, StateFormatError, StatePlace, checksum, is_zero, put_checksum,
};
use crate::limits::{NAME_BYTES_MAX, small, to_u64, to_usize};
use crate::tables::{TableError, Tables};

/// Newest version of files of the delta log and of their records, and the one written.
pub const DELTA_VERSION: u16 = 1;
/// Bytes of the header of a file: one block.
pub const DELTA_FILE_HEADER_BYTES: usize = truthdb_io::BLOCK_BYTES;
/// Bytes of a record before its changes.
pub const DELTA_RECORD_HEADER_BYTES: usize = 104;

const FILE: &str = "header of the delta log's file";
const FILE_MAGIC: [u8; 4] = *b"TDLT";
const RECORD: &str = "record of the delta log";
const RECORD_MAGIC: [u8; 4] = *b"TDRC";
/// Records are padded to a multiple of this.
const RECORD_ALIGN: usize = 8;
/// What of a file's header is its identity: everything behind checksum, magic and version.
const IDENTITY_START: usize = 16;
const IDENTITY_END: usize = 49 + NAME_BYTES_MAX;

/// Which delta log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaPlace {
    /// Database and partition.
    pub place: StatePlace,
    /// Name of the module: 1 to [`NAME_BYTES_MAX`] bytes.
    pub module: String,
    /// Generation of the module.
    pub generation: u32,
}

/// The header of one file of the delta log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaFileHeader {
    /// Which delta log it belongs to.
    pub log: DeltaPlace,
    /// First sequence of the first record. It is also in the file's name.
    pub first_sequence: u64,
}

impl DeltaFileHeader {
    /// The first block of a file.
    ///
    /// # Panics
    /// If the module's name is too long or empty: names are checked when modules are published.
    pub fn encode(&self) -> Vec<u8> {
        let module = self.log.module.as_bytes();
        assert!(
            (1..=NAME_BYTES_MAX).contains(&module.len()),
            "a module's name has 1 to {NAME_BYTES_MAX} bytes"
        );
        let [module_bytes, ..] = small(module.len()).to_le_bytes();
        let mut fields = FieldWriter::default();
        fields
            .u64(0)
            .bytes(&FILE_MAGIC)
            .u16(DELTA_VERSION)
            .u16(0)
            .bytes(&self.log.place.database_id)
            .u32(self.log.place.partition)
            .u32(self.log.generation)
            .u64(self.first_sequence)
            .u8(module_bytes)
            .bytes(module)
            .zeros_to(DELTA_FILE_HEADER_BYTES);
        put_checksum(&mut fields.bytes, 0);
        fields.bytes
    }

    /// Reads the first block of a file.
    ///
    /// # Errors
    /// [`StateFormatError`] if it is not exactly what [`DeltaFileHeader::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<DeltaFileHeader, StateFormatError> {
        let block = FieldReader::new(FILE, bytes).bytes(DELTA_FILE_HEADER_BYTES)?;
        let mut fields = FieldReader::new(FILE, block);
        fields.preamble(FILE_MAGIC, DELTA_VERSION, 0)?;
        fields.reserved(2)?;
        let place = StatePlace {
            database_id: fields.array()?,
            partition: fields.u32()?,
        };
        let generation = fields.u32()?;
        let first_sequence = fields.u64()?;
        let module_bytes = usize::from(fields.u8()?);
        if !(1..=NAME_BYTES_MAX).contains(&module_bytes) {
            return Err(fields.field("module", "names have 1 to 64 bytes"));
        }
        let module = std::str::from_utf8(fields.bytes(module_bytes)?)
            .map_err(|_| fields.field("module", "names are UTF-8"))?
            .to_owned();
        fields.padding()?;
        Ok(DeltaFileHeader {
            log: DeltaPlace {
                place,
                module,
                generation,
            },
            first_sequence,
        })
    }

    /// Seed of the checksums of the file's records.
    pub fn seed(&self) -> u64 {
        checksum(&self.encode()[IDENTITY_START..IDENTITY_END], 0)
    }
}

/// What one or more batches changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaRecord {
    /// First sequence that it accounts for: the one after the record before.
    pub first_sequence: u64,
    /// Last sequence that it accounts for. Events that changed nothing may be accounted for by the
    /// record of the next batch: the changes are those of the batch that ends here.
    pub last_sequence: u64,
    /// Time of the batch, nanoseconds since 1970 UTC.
    pub timestamp_ns: u64,
    /// The changed rows.
    pub changes: Changes,
    /// Fingerprint of the state with these changes.
    pub fingerprint_after: Fingerprint,
}

/// A record does not lead to the state that it was written for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrongDelta {
    /// The state has another fingerprint than the record says.
    #[error(
        "after sequence {sequence} the state's fingerprint is {found}, the delta log says {expected}: \
         rebuild the state from the log"
    )]
    Fingerprint {
        /// Last sequence of the record.
        sequence: u64,
        /// What the record says.
        expected: Fingerprint,
        /// What the state has.
        found: Fingerprint,
    },
    /// The record is of other tables.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl DeltaRecord {
    /// Applies the record, and compares the fingerprint.
    ///
    /// # Errors
    /// [`WrongDelta`]; the tables are useless then, because a record before this one is missing, or
    /// the record is of another history.
    pub fn apply_to(&self, tables: &mut Tables) -> Result<(), WrongDelta> {
        tables.apply(&self.changes)?;
        let found = tables.fingerprint();
        if found == self.fingerprint_after {
            return Ok(());
        }
        Err(WrongDelta::Fingerprint {
            sequence: self.last_sequence,
            expected: self.fingerprint_after,
            found,
        })
    }

    /// Appends the bytes of the record to `out`, and gives its checksum.
    ///
    /// # Panics
    /// If the changes have 4 GiB or more: batches are bounded far below.
    pub fn encode(&self, at: DeltaAt, out: &mut Vec<u8>) -> u64 {
        let changes = self.changes.encoded();
        let mut fields = FieldWriter::default();
        fields
            .u64(0)
            .bytes(&RECORD_MAGIC)
            .u16(DELTA_VERSION)
            .u16(0)
            .u64(at.offset)
            .u64(self.first_sequence)
            .u64(self.last_sequence)
            .u64(self.timestamp_ns)
            .u32(self.changes.len())
            .u32(small(changes.len()))
            .u64(checksum(changes, at.seed))
            .bytes(&self.fingerprint_after.to_bytes())
            .u64(at.previous);
        let value = put_checksum(&mut fields.bytes, at.seed);
        out.extend_from_slice(&fields.bytes);
        out.extend_from_slice(changes);
        out.resize(out.len().next_multiple_of(RECORD_ALIGN), 0);
        value
    }

    /// Bytes of the record with its padding.
    pub fn encoded_bytes(&self) -> usize {
        (DELTA_RECORD_HEADER_BYTES + self.changes.encoded().len()).next_multiple_of(RECORD_ALIGN)
    }
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaAt {
    /// Seed of its file, from [`DeltaFileHeader::seed`].
    pub seed: u64,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Checksum of the record before in the file; 0 for the first.
    pub previous: u64,
}

/// The fixed part of a record, checked, before its changes are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaRecordHeader {
    /// The record without its changes.
    record: DeltaRecord,
    change_count: u32,
    change_bytes: u32,
    change_checksum: u64,
    at: DeltaAt,
    checksum: u64,
}

impl DeltaRecordHeader {
    /// Reads the header of a record.
    ///
    /// # Errors
    /// [`StateFormatError`] if it is not the header of a record at this place.
    pub fn decode(bytes: &[u8], at: DeltaAt) -> Result<DeltaRecordHeader, StateFormatError> {
        let header = FieldReader::new(RECORD, bytes).bytes(DELTA_RECORD_HEADER_BYTES)?;
        let mut fields = FieldReader::new(RECORD, header);
        let checksum = fields.preamble(RECORD_MAGIC, DELTA_VERSION, at.seed)?;
        fields.reserved(2)?;
        if fields.u64()? != at.offset {
            return Err(fields.misplaced("offset"));
        }
        let (first_sequence, last_sequence) = (fields.u64()?, fields.u64()?);
        if first_sequence == 0 || last_sequence < first_sequence {
            return Err(fields.field("sequences", "the last is not below the first"));
        }
        let timestamp_ns = fields.u64()?;
        let (change_count, change_bytes) = (fields.u32()?, fields.u32()?);
        let change_checksum = fields.u64()?;
        let fingerprint_after = Fingerprint::from_bytes(&fields.array::<FINGERPRINT_BYTES>()?);
        if fields.u64()? != at.previous {
            return Err(fields.misplaced("previous checksum"));
        }
        Ok(DeltaRecordHeader {
            record: DeltaRecord {
                first_sequence,
                last_sequence,
                timestamp_ns,
                changes: Changes::new(),
                fingerprint_after,
            },
            change_count,
            change_bytes,
            change_checksum,
            at,
            checksum,
        })
    }

    /// First sequence of the record.
    pub fn first_sequence(&self) -> u64 {
        self.record.first_sequence
    }

    /// Last sequence of the record.
    pub fn last_sequence(&self) -> u64 {
        self.record.last_sequence
    }

    /// Bytes of the changes that follow.
    pub fn change_bytes(&self) -> usize {
        to_usize(self.change_bytes.into())
    }

    /// Where the next record begins.
    pub fn next(&self) -> DeltaAt {
        let bytes = to_u64(DELTA_RECORD_HEADER_BYTES) + u64::from(self.change_bytes);
        DeltaAt {
            offset: (self.at.offset + bytes).next_multiple_of(to_u64(RECORD_ALIGN)),
            previous: self.checksum,
            ..self.at
        }
    }

    /// The record with its changes, read from the bytes behind the header, padding included.
    ///
    /// # Errors
    /// [`StateFormatError`] if they are not the changes that the header was written for.
    pub fn with_changes(self, bytes: &[u8]) -> Result<DeltaRecord, StateFormatError> {
        let mut fields = FieldReader::new(RECORD, bytes);
        let changes = fields.bytes(self.change_bytes())?;
        if checksum(changes, self.at.seed) != self.change_checksum {
            return Err(StateFormatError::Checksum {
                structure: RECORD,
                what: "the checksum of the changes",
            });
        }
        let changes = Changes::decode(changes, self.change_count)
            .map_err(|_| fields.field("changes", "they are not changes in order"))?;
        let end = (DELTA_RECORD_HEADER_BYTES + fields.at()).next_multiple_of(RECORD_ALIGN);
        let padding = end - DELTA_RECORD_HEADER_BYTES - fields.at();
        if !is_zero(fields.bytes(padding)?) {
            return Err(fields.field("padding", "it is zero"));
        }
        Ok(DeltaRecord {
            changes,
            ..self.record
        })
    }
}
