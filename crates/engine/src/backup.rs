//! Backups: a consistent set of files while appends go on.
//!
//! A session fixes, for each partition, the segments and the committed end of the unsealed ones.
//! Sealed segments are
//! immutable files, copied as they are and skipped by a target that has them already (same chain
//! hash); of an unsealed
//! segment the committed bytes are copied, which recovery takes for a segment that was stopped there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use truthdb_io::{AlignedBuf, BLOCK_BYTES, File, OpenMode};
use truthdb_log::Manifest;

use crate::engine::Engine;
use crate::error::ReadError;
use crate::shared::{Segment, SegmentBody};

/// Most bytes of one [`BackupSession::read`].
const READ_BYTES_MAX: usize = 1 << 20;

/// Why a backup failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A partition cannot be read.
    #[error("a partition cannot be backed up")]
    Partition(#[source] ReadError),
    /// A file cannot be read.
    #[error("{path} cannot be read at offset {offset}")]
    Io {
        /// The file.
        path: String,
        /// Where, bytes.
        offset: u64,
        /// What the disk said.
        #[source]
        source: std::io::Error,
    },
    /// There is no such segment in the session.
    #[error("segment {segment} of partition {partition} is not part of this backup")]
    NoSuchSegment {
        /// The partition.
        partition: u32,
        /// The segment.
        segment: u32,
    },
}

/// A segment of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSegment {
    /// Its number.
    pub segment: u32,
    /// Path relative to the data directory.
    pub path: String,
    /// Bytes to copy.
    pub bytes: u64,
    /// Chain hash if it is sealed: a target that has this segment with this hash need not copy it.
    pub chain: Option<[u8; 32]>,
}

/// A partition of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPartition {
    /// Its number.
    pub partition: u32,
    /// First sequence in the backup.
    pub first_sequence: u64,
    /// Last sequence in the backup.
    pub last_sequence: u64,
    /// First segment.
    pub first_segment: u32,
    /// Its segments, oldest first.
    pub segments: Vec<BackupSegment>,
}

struct OpenFile {
    partition: u32,
    segment: u32,
    path: String,
    bytes: u64,
    file: Arc<dyn File>,
}

/// A consistent set of files. Holds them open, so that a trim in between takes nothing away.
pub struct BackupSession {
    manifest: Manifest,
    partitions: Vec<BackupPartition>,
    files: Vec<OpenFile>,
}

impl std::fmt::Debug for BackupSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupSession")
            .field("partitions", &self.partitions)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Fixes what a backup consists of.
    ///
    /// # Errors
    /// If a partition is fenced, or a file cannot be opened.
    pub fn backup(&self) -> Result<BackupSession, BackupError> {
        let mut session = BackupSession {
            manifest: self.inner.manifest,
            partitions: Vec::new(),
            files: Vec::new(),
        };
        for partition in 0..self.partition_count() {
            let shared = self.shared(partition).map_err(BackupError::Partition)?;
            // The view first: what is committed afterwards may lie in a segment that the view does not have.
            let view = shared.view();
            let mut plan = BackupPartition {
                partition,
                first_sequence: view.first_sequence,
                last_sequence: 0,
                first_segment: view.segments.first().map_or(1, |segment| segment.number),
                segments: Vec::new(),
            };
            for segment in &view.segments {
                let (entry, file) = self.open_segment(segment)?;
                session.files.push(OpenFile {
                    partition,
                    segment: segment.number,
                    path: entry.path.clone(),
                    bytes: entry.bytes,
                    file,
                });
                plan.segments.push(entry);
            }
            plan.last_sequence = shared.committed();
            session.partitions.push(plan);
        }
        Ok(session)
    }

    fn open_segment(
        &self,
        segment: &Segment,
    ) -> Result<(BackupSegment, Arc<dyn File>), BackupError> {
        let (bytes, chain, file) = match segment.body() {
            SegmentBody::Unsealed(unsealed) => {
                let bytes = unsealed.end_offset.load(Ordering::Acquire);
                (bytes, None, Arc::clone(&unsealed.file))
            }
            SegmentBody::Sealed(sealed) => {
                let storage = &self.inner.world.storage;
                let file = storage
                    .open(&segment.path, OpenMode::Read)
                    .map_err(|source| BackupError::Io {
                        path: segment.path.clone(),
                        offset: 0,
                        source,
                    })?;
                let bytes = sealed.footer.file_bytes().unwrap_or(0);
                (bytes, Some(sealed.footer.chain), file)
            }
        };
        let path = segment.path.clone();
        Ok((
            BackupSegment {
                segment: segment.number,
                path,
                bytes,
                chain,
            },
            file,
        ))
    }
}

impl BackupSession {
    /// The manifest block, to be stored as `metadata/manifest.bin`.
    pub fn manifest(&self) -> Vec<u8> {
        self.manifest.encode()
    }

    /// The partitions.
    pub fn partitions(&self) -> &[BackupPartition] {
        &self.partitions
    }

    /// Reads bytes of a segment; fewer than asked for only at its end, none beyond it. `offset` is
    /// a multiple of 4096.
    ///
    /// # Errors
    /// If the segment is not part of the session, or the disk fails.
    pub fn read(
        &self,
        partition: u32,
        segment: u32,
        offset: u64,
        bytes_max: usize,
    ) -> Result<Bytes, BackupError> {
        let found = self
            .files
            .iter()
            .find(|f| (f.partition, f.segment) == (partition, segment));
        let Some(open) = found else {
            return Err(BackupError::NoSuchSegment { partition, segment });
        };
        let left = usize::try_from(open.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = left.min(bytes_max).min(READ_BYTES_MAX);
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        let mut buf = AlignedBuf::new_zeroed(bytes.next_multiple_of(BLOCK_BYTES));
        let aligned = buf.len();
        let read = open
            .file
            .read_at(&mut buf, aligned, offset)
            .map_err(|source| BackupError::Io {
                path: open.path.clone(),
                offset,
                source,
            })?;
        Ok(Bytes::from_owner(buf).slice(..bytes.min(read)))
    }
}
