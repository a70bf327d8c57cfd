//! What a database says about itself: the manifest and the schema, one block each.

use truthdb_io::BLOCK_BYTES;

use crate::layout::{FieldReader, FieldWriter, FormatError, Place, check_preamble, put_checksum};
use crate::segment::{SEGMENT_VERSION, check_segment_bytes};

/// Newest version of the manifest, and the one written.
pub const MANIFEST_VERSION: u16 = 1;
/// Newest version of the whole format, and the one written. A newer one is refused before anything
/// else is read.
pub const FORMAT_VERSION: u16 = 1;
/// Most partitions of a database.
pub const PARTITIONS_MAX: u32 = 1024;

const MANIFEST: &str = "manifest";
const SCHEMA: &str = "schema";
const MANIFEST_MAGIC: [u8; 4] = *b"TMAN";
const SCHEMA_MAGIC: [u8; 4] = *b"TSCH";

/// What is fixed when a database is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    /// Random id of the database; every header names it.
    pub database_id: [u8; 16],
    /// Number of partitions.
    pub partition_count: u32,
    /// Size of a segment in bytes.
    pub segment_bytes: u64,
    /// Random seed of the hashes in the indexes, so that nobody outside can craft collisions.
    pub key_seed: [u8; 16],
    /// When the database was made, nanoseconds since 1970 UTC.
    pub created_ns: u64,
}

impl std::fmt::Debug for Manifest {
    /// Leaves the seed out: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifest")
            .field("database_id", &self.database_id)
            .field("partition_count", &self.partition_count)
            .field("segment_bytes", &self.segment_bytes)
            .field("created_ns", &self.created_ns)
            .finish_non_exhaustive()
    }
}

impl Manifest {
    /// The manifest block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK_BYTES];
        FieldWriter::new(&mut block, 8)
            .bytes(&MANIFEST_MAGIC)
            .u16(MANIFEST_VERSION)
            .u16(0)
            .bytes(&self.database_id)
            .u32(self.partition_count)
            .u32(0)
            .u64(self.segment_bytes)
            .bytes(&self.key_seed)
            .u64(self.created_ns);
        put_checksum(&mut block);
        block
    }

    /// Reads a manifest block.
    ///
    /// # Errors
    ///
    /// What is wrong, with the name of the field.
    pub fn decode(block: &[u8]) -> Result<Manifest, FormatError> {
        check_preamble(
            MANIFEST,
            block,
            BLOCK_BYTES,
            MANIFEST_MAGIC,
            MANIFEST_VERSION,
        )?;
        let mut fields = FieldReader::new(&block[..BLOCK_BYTES], 14);
        let reserved_flags = fields.u16();
        let database_id = fields.array();
        let (partition_count, reserved) = (fields.u32(), fields.u32());
        let manifest = Manifest {
            database_id,
            partition_count,
            segment_bytes: fields.u64(),
            key_seed: fields.array(),
            created_ns: fields.u64(),
        };
        let zero = reserved_flags == 0 && reserved == 0 && fields.rest_is_zero();
        let field = |holds: bool, field, found, reason| {
            let error = FormatError::Field {
                structure: MANIFEST,
                field,
                found,
                reason,
            };
            if holds { Ok(()) } else { Err(error) }
        };
        field(zero, "reserved bytes", 1, "zero")?;
        let partitions = u64::from(manifest.partition_count);
        let possible = (1..=PARTITIONS_MAX).contains(&manifest.partition_count);
        field(possible, "partition count", partitions, "1 to 1024")?;
        let bytes = manifest.segment_bytes;
        match check_segment_bytes(bytes) {
            Ok(()) => Ok(manifest),
            Err(reason) => field(false, "segment bytes", bytes, reason).map(|()| manifest),
        }
    }

    /// The place of a segment of this database.
    pub fn place(&self, partition: u32, segment: u32) -> Place {
        Place {
            database_id: self.database_id,
            partition,
            segment,
        }
    }
}

/// Versions and limits of the format that a database was made with. The first thing that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// Version of the whole format.
    pub format_version: u16,
    /// Version of segment headers, footers and packed blocks.
    pub segment_version: u16,
    /// Version of batch headers.
    pub batch_version: u16,
    /// Version of the manifest.
    pub manifest_version: u16,
    /// Events of a batch at most.
    pub batch_events_max: u32,
    /// Bytes of a batch at most.
    pub batch_bytes_max: u32,
    /// Bytes of a payload at most.
    pub event_payload_bytes_max: u32,
    /// Bytes of an event's metadata at most.
    pub metadata_bytes_max: u32,
    /// Tags of an event at most.
    pub tags_max: u32,
    /// Metadata keys of an event at most.
    pub metadata_keys_max: u32,
}

impl Schema {
    /// What this program writes.
    pub const CURRENT: Schema = Schema {
        format_version: FORMAT_VERSION,
        segment_version: SEGMENT_VERSION,
        batch_version: crate::BATCH_VERSION,
        manifest_version: MANIFEST_VERSION,
        batch_events_max: limit_u32(truthdb_event::BATCH_EVENTS_MAX),
        batch_bytes_max: limit_u32(truthdb_event::BATCH_BYTES_MAX),
        event_payload_bytes_max: limit_u32(truthdb_event::EVENT_PAYLOAD_BYTES_MAX),
        metadata_bytes_max: limit_u32(truthdb_event::METADATA_BYTES_MAX),
        tags_max: limit_u32(truthdb_event::TAGS_MAX),
        metadata_keys_max: limit_u32(truthdb_event::METADATA_KEYS_MAX),
    };

    /// The schema block. Its version field is the version of the whole format, so that an older
    /// program refuses a newer database by name and reads nothing else of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK_BYTES];
        FieldWriter::new(&mut block, 8)
            .bytes(&SCHEMA_MAGIC)
            .u16(self.format_version)
            .u16(self.segment_version)
            .u16(self.batch_version)
            .u16(self.manifest_version)
            .u32(self.batch_events_max)
            .u32(self.batch_bytes_max)
            .u32(self.event_payload_bytes_max)
            .u32(self.metadata_bytes_max)
            .u32(self.tags_max)
            .u32(self.metadata_keys_max);
        put_checksum(&mut block);
        block
    }

    /// Reads a schema block.
    ///
    /// # Errors
    ///
    /// What is wrong; [`FormatError::NewerFormat`] if a newer release made the database.
    pub fn decode(block: &[u8]) -> Result<Schema, FormatError> {
        check_preamble(SCHEMA, block, BLOCK_BYTES, SCHEMA_MAGIC, FORMAT_VERSION)?;
        let mut fields = FieldReader::new(&block[..BLOCK_BYTES], 12);
        let schema = Schema {
            format_version: fields.u16(),
            segment_version: fields.u16(),
            batch_version: fields.u16(),
            manifest_version: fields.u16(),
            batch_events_max: fields.u32(),
            batch_bytes_max: fields.u32(),
            event_payload_bytes_max: fields.u32(),
            metadata_bytes_max: fields.u32(),
            tags_max: fields.u32(),
            metadata_keys_max: fields.u32(),
        };
        if !fields.rest_is_zero() {
            let (field, reason) = ("reserved bytes", "zero");
            return Err(FormatError::Field {
                structure: SCHEMA,
                field,
                found: 1,
                reason,
            });
        }
        schema.check_limits()?;
        Ok(schema)
    }

    /// A database made with larger limits than this program's may hold what it cannot read.
    fn check_limits(&self) -> Result<(), FormatError> {
        let current = Schema::CURRENT;
        let pairs = [
            (
                "events of a batch",
                self.batch_events_max,
                current.batch_events_max,
            ),
            (
                "bytes of a batch",
                self.batch_bytes_max,
                current.batch_bytes_max,
            ),
            (
                "bytes of a payload",
                self.event_payload_bytes_max,
                current.event_payload_bytes_max,
            ),
            (
                "bytes of metadata",
                self.metadata_bytes_max,
                current.metadata_bytes_max,
            ),
            ("tags of an event", self.tags_max, current.tags_max),
            (
                "metadata keys of an event",
                self.metadata_keys_max,
                current.metadata_keys_max,
            ),
        ];
        for (field, found, supported) in pairs {
            if found > supported {
                let (found, reason) = (found.into(), "at most the limit of this program");
                return Err(FormatError::Field {
                    structure: SCHEMA,
                    field,
                    found,
                    reason,
                });
            }
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "asserted; u32::try_from is not const"
)]
const fn limit_u32(limit: usize) -> u32 {
    assert!(limit <= u32::MAX as usize);
    limit as u32
}
