//! The database's own description and its directory.
//!
//! Order of writes when a database is made: the marker `metadata/creating`, every directory and first segment, the schema, and
//! the manifest last; then the marker goes. A crash leaves a directory with a marker and no manifest, which is neither
//! complete nor fresh, and which making the database again may sweep away because nobody ever wrote to it.

use std::io;

use truthdb_io::{AlignedBuf, BLOCK_BYTES, OpenMode, Storage, World};

use crate::layout::{
    FieldReader, FieldWriter, FormatError, Place, check_preamble, put_checksum, to_usize,
};
use crate::segment::{
    SEGMENT_BYTES_DEFAULT, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader, SegmentKind,
    TrimPoint, check_segment_bytes, index_dir, parse_partition_dir, partition_dir,
    segment_new_path, segment_path, wal_dir,
};

/// Path of the manifest.
pub const MANIFEST_PATH: &str = "metadata/manifest.bin";
/// Path of the schema.
pub const SCHEMA_PATH: &str = "metadata/schema.bin";
/// Path of the lock.
pub const LOCK_PATH: &str = "metadata/lock";
/// Path of the marker that is there while a database is being made.
pub const CREATING_PATH: &str = "metadata/creating";
/// Newest version of the manifest, and the one written.
pub const MANIFEST_VERSION: u16 = 1;
/// Newest version of the whole format, and the one written. A newer one is refused before anything else is read.
pub const FORMAT_VERSION: u16 = 1;
/// Most partitions of a database.
pub const PARTITIONS_MAX: u32 = 1024;

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
