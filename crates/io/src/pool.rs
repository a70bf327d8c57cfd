//! Buffers of large reads, used again and again.
//!
//! A scan reads megabyte after megabyte. Fresh memory for each read costs more than the read's copy
//! does: the allocator zeroes it, and the kernel maps it page by page. So a [`BufferPool`] keeps a
//! few buffers of one size. What a buffer held before is still in it: its taker must believe only
//! the bytes that a read has put there.
//!
//! It does not bound how many buffers are in use, only how many wait for their next use.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{AlignedBuf, BLOCK_BYTES};

/// Requests below this share of a buffer's size get memory of their own size instead.
const SHARE_MIN: usize = 4;

/// Buffers of one size that wait for their next use. Shared by all readers of a database.
#[derive(Debug)]
pub struct BufferPool {
    buffer_bytes: usize,
    kept_max: usize,
    kept: Mutex<Vec<AlignedBuf>>,
}

impl BufferPool {
    /// A pool of buffers of `buffer_bytes` bytes, rounded up to whole blocks, that keeps at most
    /// `kept_max` of them.
    pub fn new(buffer_bytes: usize, kept_max: usize) -> Arc<BufferPool> {
        Arc::new(BufferPool {
            buffer_bytes: buffer_bytes.next_multiple_of(BLOCK_BYTES),
            kept_max,
            kept: Mutex::new(Vec::with_capacity(kept_max)),
        })
    }

    /// A buffer of at least `bytes` bytes; what it holds is unspecified (initialised, but possibly
    /// left over from an earlier use). Goes back to the pool when dropped, if it is of its size.
    pub fn take(self: &Arc<Self>, bytes: usize) -> PooledBuf {
        if bytes > self.buffer_bytes || bytes < self.buffer_bytes / SHARE_MIN {
            return PooledBuf::own(AlignedBuf::new_zeroed(bytes));
        }
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        PooledBuf {
            buffer: Some(kept.unwrap_or_else(|| AlignedBuf::new_zeroed(self.buffer_bytes))),
            pool: Some(Arc::clone(self)),
        }
    }

    /// Buffers that wait for their next use.
    pub fn kept(&self) -> usize {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn put(&self, buffer: AlignedBuf) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.kept_max {
            kept.push(buffer);
        }
    }
}

/// A buffer that goes back to its pool when dropped.
#[derive(Debug)]
pub struct PooledBuf {
    /// There until dropped.
    buffer: Option<AlignedBuf>,
    pool: Option<Arc<BufferPool>>,
}

impl PooledBuf {
    /// A buffer that belongs to no pool.
    pub fn own(buffer: AlignedBuf) -> PooledBuf {
        PooledBuf {
            buffer: Some(buffer),
            pool: None,
        }
    }
}

impl Deref for PooledBuf {
    type Target = AlignedBuf;

    fn deref(&self) -> &AlignedBuf {
        self.buffer.as_ref().expect("it is there until dropped")
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut AlignedBuf {
        self.buffer.as_mut().expect("it is there until dropped")
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        if let (Some(pool), Some(buffer)) = (&self.pool, self.buffer.take()) {
            pool.put(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_other_sizes_do_not() {
        let pool = BufferPool::new(64 << 10, 2);
        let mut first = pool.take(60 << 10);
        first[0] = 7;
        let address = first.as_ref().as_ptr();
        drop(first);
        let again = pool.take(64 << 10);
        assert_eq!(again.as_ref().as_ptr(), address, "the same memory");
        assert_eq!(again[0], 7, "nobody clears it");
        drop([pool.take(1), pool.take(65 << 10)]);
        assert_eq!(pool.kept(), 0);
        drop((again, pool.take(64 << 10), pool.take(64 << 10)));
        assert_eq!(pool.kept(), 2, "no more than it may keep");
    }
}
