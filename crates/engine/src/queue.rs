//! The bounded queue between callers and a partition's writer.
//!
//! Bounded in bytes and in batches: over a bound the caller gets an error at once, so memory never
//! grows with load.
//! The writer takes everything that waits by swapping two deques under the lock, so the lock is
//! held for a moment only
//! and neither side allocates in steady state.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use truthdb_io::Waker;

use crate::append::{AppendBatch, AppendSink};
use crate::error::AppendError;

/// An append that waits for the writer.
pub(crate) struct QueuedAppend {
    pub(crate) batch: Box<AppendBatch>,
    pub(crate) sink: Arc<dyn AppendSink>,
    pub(crate) tag: u64,
}

struct Inner {
    waiting: VecDeque<QueuedAppend>,
    bytes: usize,
    /// Why nothing is taken any more.
    closed: Option<Arc<str>>,
    waker: Option<Waker>,
}

/// See the module's description.
pub(crate) struct AppendQueue {
    partition: u32,
    bytes_max: usize,
    batches_max: usize,
    inner: Mutex<Inner>,
}

/// Milliseconds after which a refused caller should try again: a few group commits of a slow disk.
pub(crate) const RETRY_AFTER_MS: u64 = 10;

impl AppendQueue {
    pub(crate) fn new(partition: u32, bytes_max: usize, batches_max: usize) -> AppendQueue {
        AppendQueue {
            partition,
            bytes_max,
            batches_max,
            inner: Mutex::new(Inner {
                waiting: VecDeque::with_capacity(batches_max),
                bytes: 0,
                closed: None,
                waker: None,
            }),
        }
    }

    /// Sets whom to wake when something arrives.
    pub(crate) fn set_waker(&self, waker: Waker) {
        self.inner.lock().waker = Some(waker);
    }

    /// Wakes the writer for a reason other than an append.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &self.inner.lock().waker {
            waker.wake();
        }
    }

    /// Hands an append over, or gives it back with the reason.
    pub(crate) fn push(&self, append: QueuedAppend) -> Result<(), (AppendError, QueuedAppend)> {
        let bytes = append.batch.stored_bytes();
        let mut inner = self.inner.lock();
        if let Some(reason) = &inner.closed {
            let reason = Arc::clone(reason);
            return Err((
                AppendError::Stopped {
                    partition: self.partition,
                    reason,
                },
                append,
            ));
        }
        // One batch always fits an empty queue, whatever the bound: no legal batch may be refused for ever.
        let what = if inner.waiting.len() >= self.batches_max {
            Some("queue_batches_max")
        } else if inner.bytes + bytes > self.bytes_max && !inner.waiting.is_empty() {
            Some("queue_bytes_max")
        } else {
            None
        };
        if let Some(what) = what {
            let error = AppendError::Overloaded {
                partition: self.partition,
                what,
                retry_after_ms: RETRY_AFTER_MS,
            };
            return Err((error, append));
        }
        let was_empty = inner.waiting.is_empty();
        inner.bytes += bytes;
        inner.waiting.push_back(append);
        let waker = if was_empty { inner.waker.clone() } else { None };
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Moves everything that waits to `taken`, which must be empty.
    pub(crate) fn take_all(&self, taken: &mut VecDeque<QueuedAppend>) {
        assert!(
            taken.is_empty(),
            "appends taken before would be lost in the swap"
        );
        let mut inner = self.inner.lock();
        std::mem::swap(&mut inner.waiting, taken);
        inner.bytes = 0;
    }

    /// Takes nothing any more; what waits stays for the writer to answer.
    pub(crate) fn close(&self, reason: Arc<str>) {
        let mut inner = self.inner.lock();
        inner.closed.get_or_insert(reason);
        if let Some(waker) = &inner.waker {
            waker.wake();
        }
    }

    /// Batches and bytes that wait.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.waiting.len(), inner.bytes)
    }
}
