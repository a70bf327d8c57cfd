//! Backups: a consistent set of files while appends go on.
//!
//! A session fixes, for each partition, the segments and the committed end of the unsealed ones, where its history
//! begins, and the runs of stream heads that no segment can give again.
//! Sealed segments and runs are immutable files, copied as they are and skipped by a target that has them already (same
//! chain hash); of an unsealed segment the committed bytes are copied, which recovery takes for a segment that was
//! stopped there.
//!
//! Invariants: the runs cover every trimmed segment, and none that is unsealed in the same session; every file is held
//! open, so that neither a trim nor a merge takes anything away; what was committed before the session is in it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use truthdb_io::{AlignedBuf, BLOCK_BYTES, File, OpenMode};
use truthdb_log::{HeadRun, Manifest, TrimPoint, encode_trim_point};

use crate::engine::Engine;
use crate::error::ReadError;
use crate::shared::{PartitionShared, Segment, SegmentBody, View};

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
        source: io::Error,
    },
    /// There is no such file in the session.
    #[error("{path} is not part of this backup")]
    NoSuchFile {
        /// What was asked for.
        path: String,
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

/// A run of stream heads of a backup: where every stream ended in segments that may be trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupHeads {
    /// The first and the last segment that it covers.
    pub segments: (u32, u32),
    /// Path relative to the data directory.
    pub path: String,
    /// Bytes to copy.
    pub bytes: u64,
    /// Chain hash of its last segment: a target that has the run of these segments with this hash need not copy it.
    pub chain: [u8; 32],
}

/// A partition of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPartition {
    /// Its number.
    pub partition: u32,
    /// First sequence in the backup.
    pub first_sequence: u64,
    /// The backup goes up to this sequence at least; it is the last one committed when the session began.
    pub last_sequence: u64,
    /// First segment.
    pub first_segment: u32,
    /// Its segments, oldest first.
    pub segments: Vec<BackupSegment>,
    /// Runs of stream heads that cover the segments before the first one, oldest first; none if nothing was trimmed.
    pub heads: Vec<BackupHeads>,
    /// What the file at [`truthdb_log::trim_path`] is to hold; `None`: there is to be none, nothing was trimmed.
    pub trim: Option<Vec<u8>>,
}

struct OpenFile {
    bytes: u64,
    file: Arc<dyn File>,
}

/// What is open of a session, by path.
type OpenFiles = BTreeMap<String, OpenFile>;

/// A consistent set of files. Holds them open, so that a trim in between takes nothing away.
pub struct BackupSession {
    manifest: Manifest,
    partitions: Vec<BackupPartition>,
    files: OpenFiles,
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
            files: OpenFiles::new(),
        };
        for partition in 0..self.partition_count() {
            let shared = self.shared(partition).map_err(BackupError::Partition)?;
            // Each further attempt means that the maintenance sealed, merged or trimmed a segment between two of these
            // lines; so it ends.
            let (plan, files) = loop {
                if let Some(fixed) = self.fix_partition(shared)? {
                    break fixed;
                }
            };
            session.partitions.push(plan);
            session.files.extend(files);
        }
        Ok(session)
    }

    /// Fixes what a backup has of a partition; `None` if that changed meanwhile.
    fn fix_partition(
        &self,
        shared: &PartitionShared,
    ) -> Result<Option<(BackupPartition, OpenFiles)>, BackupError> {
        // The committed end before the ends of the files: they only grow, so that they hold at least so much.
        let last_sequence = shared.committed();
        let runs = Arc::clone(&shared.heads.read());
        let view = shared.view();
        let bodies: Vec<SegmentBody> = view.segments.iter().map(|s| s.body()).collect();
        // A segment is sealed after its heads were added, and runs are merged after that. If the runs are still the
        // same, they cover all that was trimmed from the view, and none that covers several is ahead of it.
        if !Arc::ptr_eq(&runs, &shared.heads.read()) {
            return Ok(None);
        }
        let first_segment = view.segments.first().map_or(1, |segment| segment.number);
        let mut plan = BackupPartition {
            partition: shared.partition,
            first_sequence: view.first_sequence,
            last_sequence,
            first_segment,
            segments: Vec::new(),
            heads: Vec::new(),
            trim: self.trim_of_backup(&view, shared.partition),
        };
        let mut files = OpenFiles::new();
        for (segment, body) in view.segments.iter().zip(&bodies) {
            let (entry, file) = match self.open_segment(segment, body) {
                Err(BackupError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && view_changed(shared, &view) =>
                {
                    return Ok(None);
                }
                opened => opened?,
            };
            let bytes = entry.bytes;
            files.insert(entry.path.clone(), OpenFile { bytes, file });
            plan.segments.push(entry);
        }
        for run in runs.irreplaceable(first_segment) {
            let (entry, file) = open_heads(run)?;
            let bytes = entry.bytes;
            files.insert(entry.path.clone(), OpenFile { bytes, file });
            plan.heads.push(entry);
        }
        Ok(Some((plan, files)))
    }

    /// Where the history of the backup begins, which may be before or after what the file on disk says at any moment.
    /// A trim that is still under way goes on from its event in the log.
    fn trim_of_backup(&self, view: &View, partition: u32) -> Option<Vec<u8>> {
        let first = view.segments.first()?;
        let point = TrimPoint {
            first_segment: first.number,
            first_sequence: first.base_sequence,
        };
        (point != TrimPoint::NONE)
            .then(|| encode_trim_point(&self.inner.manifest, partition, point))
    }

    fn open_segment(
        &self,
        segment: &Segment,
        body: &SegmentBody,
    ) -> Result<(BackupSegment, Arc<dyn File>), BackupError> {
        let (bytes, chain, file) = match body {
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

/// Whether segments were trimmed since the view was taken.
fn view_changed(shared: &PartitionShared, view: &View) -> bool {
    let first = |view: &View| view.segments.first().map(|segment| segment.number);
    first(&shared.view()) != first(view)
}

fn open_heads(run: &HeadRun) -> Result<(BackupHeads, Arc<dyn File>), BackupError> {
    let file = Arc::clone(run.file());
    let path = run.path().to_owned();
    let bytes = file.len().map_err(|source| BackupError::Io {
        path: path.clone(),
        offset: 0,
        source,
    })?;
    let entry = BackupHeads {
        segments: run.segments().into_inner(),
        path,
        bytes,
        chain: run.chain(),
    };
    Ok((entry, file))
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

    /// Reads bytes of a segment or a run; fewer than asked for only at its end, none beyond it. `path` is that of a
    /// [`BackupSegment`] or [`BackupHeads`], `offset` a multiple of 4096.
    ///
    /// # Errors
    /// If the file is not part of the session, or the disk fails.
    pub fn read(&self, path: &str, offset: u64, bytes_max: usize) -> Result<Bytes, BackupError> {
        let Some(open) = self.files.get(path) else {
            let path = path.to_owned();
            return Err(BackupError::NoSuchFile { path });
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
                path: path.to_owned(),
                offset,
                source,
            })?;
        Ok(Bytes::from_owner(buf).slice(..bytes.min(read)))
    }
}
