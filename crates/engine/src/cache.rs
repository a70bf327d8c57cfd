//! Windows of sealed segments that point reads used lately: parsed and checked batches, bounded in bytes.

use lru::LruCache;
use parking_lot::Mutex;
use truthdb_log::StoredBatch;

/// `(partition, segment, offset of the window)`
type Key = (u32, u32, u64);

struct Entry {
    batches: Vec<StoredBatch>,
    bytes: usize,
}

struct Inner {
    windows: LruCache<Key, Entry>,
    bytes: usize,
}

/// See the module's description. One for the database, shared by all partitions.
pub(crate) struct ReadCache {
    bytes_max: usize,
    inner: Mutex<Inner>,
}

/// What a batch costs besides its body.
const BATCH_OVERHEAD_BYTES: usize = 96;

impl ReadCache {
    pub(crate) fn new(bytes_max: usize) -> ReadCache {
        let inner = Inner {
            windows: LruCache::unbounded(),
            bytes: 0,
        };
        ReadCache {
            bytes_max,
            inner: Mutex::new(inner),
        }
    }

    /// The batch with this sequence from the window that begins at `offset`.
    pub(crate) fn get(
        &self,
        partition: u32,
        segment: u32,
        offset: u64,
        sequence: u64,
    ) -> Option<StoredBatch> {
        let mut inner = self.inner.lock();
        let batches = &inner.windows.get(&(partition, segment, offset))?.batches;
        let found = batches.partition_point(|batch| batch.last_sequence() < sequence);
        batches
            .get(found)
            .filter(|batch| batch.first_sequence <= sequence)
            .cloned()
    }

    /// Remembers a window; the least recently used ones make room.
    pub(crate) fn put(&self, partition: u32, segment: u32, offset: u64, batches: Vec<StoredBatch>) {
        // A batch's body may hold on to the whole block of memory it was read into, so that is what counts.
        let bodies: usize = batches
            .iter()
            .map(|b| b.body_bytes() + BATCH_OVERHEAD_BYTES)
            .sum();
        let bytes = bodies.max(crate::read::POINT_BYTES);
        if bytes > self.bytes_max {
            return;
        }
        let mut inner = self.inner.lock();
        if let Some(old) = inner
            .windows
            .put((partition, segment, offset), Entry { batches, bytes })
        {
            inner.bytes -= old.bytes;
        }
        inner.bytes += bytes;
        while inner.bytes > self.bytes_max {
            let Some((_, old)) = inner.windows.pop_lru() else {
                break;
            };
            inner.bytes -= old.bytes;
        }
    }

    /// Forgets the windows of a segment that is gone.
    pub(crate) fn forget(&self, partition: u32, segment: u32) {
        let mut inner = self.inner.lock();
        let gone: Vec<Key> = inner
            .windows
            .iter()
            .filter(|((p, s, _), _)| (*p, *s) == (partition, segment))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            if let Some(old) = inner.windows.pop(&key) {
                inner.bytes -= old.bytes;
            }
        }
    }
}
