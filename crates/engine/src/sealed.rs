//! Sealed segments: opened when they are needed, closed again when others are.
//!
//! A database may have thousands of sealed segments. Only their footers stay in memory; files,
//! sparse indexes and
//! segment indexes are opened on demand and kept in one bounded, least-recently-used table.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use truthdb_io::{BufferPool, World};
use truthdb_log::{
    Footer, IndexError, KeyHasher, SealError, SegmentIndex, SegmentReader, SparseEntry,
    rebuild_segment_index, segment_binding, segment_index_path,
};

use crate::error::ReadError;
use crate::read::{SCAN_BYTES, log_error};
use crate::status::{AtomicCounters, add};

/// Sealed segments that are open at once. Each takes a file or two and up to 100 KiB.
const OPEN_SEGMENTS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// Buffers of scans that are kept for the next one.
const SCAN_BUFFERS_MAX: usize = 16;

/// An open sealed segment.
pub(crate) struct OpenSegment {
    pub(crate) reader: SegmentReader,
    sparse: OnceLock<Arc<[SparseEntry]>>,
    index: OnceLock<Arc<SegmentIndex>>,
    /// Held while the index is opened or made again, so that it is done once.
    opening: Mutex<()>,
}

/// The open segments of a database.
pub(crate) struct OpenSegments {
    world: World,
    pub(crate) hasher: KeyHasher,
    open: Mutex<LruCache<(u32, u32), Arc<OpenSegment>>>,
    /// Footers of all sealed segments, by partition and segment: what their indexes are checked against.
    footers: RwLock<BTreeMap<(u32, u32), Footer>>,
    /// Memory of scans.
    pub(crate) buffers: Arc<BufferPool>,
}

impl OpenSegments {
    pub(crate) fn new(world: World, hasher: KeyHasher) -> OpenSegments {
        OpenSegments {
            world,
            hasher,
            open: Mutex::new(LruCache::new(OPEN_SEGMENTS_MAX)),
            footers: RwLock::new(BTreeMap::new()),
            buffers: BufferPool::new(SCAN_BYTES, SCAN_BUFFERS_MAX),
        }
    }

    /// Forgets a segment whose file is gone or was replaced.
    pub(crate) fn forget(&self, partition: u32, segment: u32) {
        self.open.lock().pop(&(partition, segment));
        self.footers.write().remove(&(partition, segment));
    }

    /// Opens the index of a sealed segment; makes it again if it is missing or damaged, older ones
    /// that it needs first.
    fn open_index(
        &self,
        partition: u32,
        segment: u32,
        counters: &AtomicCounters,
    ) -> Result<Option<SegmentIndex>, SealError> {
        let footer = self.footers.read().get(&(partition, segment)).copied();
        let Some(footer) = footer else {
            return Ok(None);
        };
        let path = segment_index_path(partition, segment);
        let binding = segment_binding(&footer, self.hasher.seed().check());
        match SegmentIndex::open(&self.world.storage, &path, &binding) {
            Ok(index) => Ok(Some(index)),
            Err(error) if error.is_rebuildable() => {
                tracing::warn!(path = %path, error = %error,
                    "segment index is made again from its segment");
                add(&counters.index_rebuilds, 1);
                let older = |segment| match self.open_index(partition, segment, counters) {
                    Ok(index) => Ok(index),
                    Err(SealError::Index(error)) => Err(error),
                    Err(source) => Err(IndexError::Io {
                        path: segment_index_path(partition, segment),
                        action: "making an older index again",
                        source: std::io::Error::other(source),
                    }),
                };
                rebuild_segment_index(&self.world.storage, &self.hasher, &footer, older).map(Some)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A sealed segment: its footer, and the way to its file.
pub(crate) struct Sealed {
    pub(crate) footer: Footer,
    files: Arc<OpenSegments>,
    counters: Arc<AtomicCounters>,
}

impl Sealed {
    pub(crate) fn new(
        footer: Footer,
        files: &Arc<OpenSegments>,
        counters: &Arc<AtomicCounters>,
    ) -> Sealed {
        let place = footer.place;
        files
            .footers
            .write()
            .insert((place.partition, place.segment), footer);
        Sealed {
            footer,
            files: Arc::clone(files),
            counters: Arc::clone(counters),
        }
    }

    /// The open segment; opens it if it is not.
    pub(crate) fn open(&self) -> Result<Arc<OpenSegment>, ReadError> {
        let place = self.footer.place;
        let key = (place.partition, place.segment);
        if let Some(open) = self.files.open.lock().get(&key) {
            return Ok(Arc::clone(open));
        }
        let storage = self.files.world.storage.as_ref();
        let (reader, _) = SegmentReader::open(storage, place).map_err(log_error)?;
        let open = Arc::new(OpenSegment {
            reader: reader.with_buffers(&self.files.buffers),
            sparse: OnceLock::new(),
            index: OnceLock::new(),
            opening: Mutex::new(()),
        });
        self.files.open.lock().put(key, Arc::clone(&open));
        Ok(open)
    }

    /// The sparse index.
    pub(crate) fn sparse(&self) -> Result<Arc<[SparseEntry]>, ReadError> {
        let open = self.open()?;
        if let Some(sparse) = open.sparse.get() {
            return Ok(Arc::clone(sparse));
        }
        let sparse: Arc<[SparseEntry]> = open
            .reader
            .sparse_index(&self.footer)
            .map_err(log_error)?
            .into();
        Ok(Arc::clone(open.sparse.get_or_init(|| sparse)))
    }

    /// The segment's index; made again from the segment if it is missing or damaged.
    pub(crate) fn index(&self) -> Result<Arc<SegmentIndex>, ReadError> {
        let open = self.open()?;
        if let Some(index) = open.index.get() {
            return Ok(Arc::clone(index));
        }
        let _once = open.opening.lock();
        if let Some(index) = open.index.get() {
            return Ok(Arc::clone(index));
        }
        let place = self.footer.place;
        let index = self
            .files
            .open_index(place.partition, place.segment, &self.counters)
            .map_err(|source| ReadError::Rebuild {
                source: Arc::new(source),
            })?
            .expect("a sealed segment has registered its footer");
        Ok(Arc::clone(open.index.get_or_init(|| Arc::new(index))))
    }
}
