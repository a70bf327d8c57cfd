//! Aligned memory for direct I/O.
//!
//! [`AlignedBuf`] is one owner's memory: reads land in it. An [`AppendChunk`] is shared: one
//! [`ChunkWriter`] appends, the disk reads what is frozen, any number of readers see what is
//! published.
//!
//! Invariants of a chunk: `published <= frozen <= len <= capacity`; bytes below `frozen` never
//! change as long as anybody but the writer can see the chunk. The writer makes mutable slices only
//! at or above `frozen`, everybody else makes shared slices only below it, so that the two never
//! overlap. This file is the unsafe core of the crate's memory and holds no other logic.
#![allow(
    unsafe_code,
    reason = "memory aligned as Vec cannot, shared between one writer and many readers"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::BLOCK_BYTES;

/// Owned heap memory that begins on a multiple of [`BLOCK_BYTES`] and is initialised from the
/// start.
struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is owned by the region and reached only through the types below, which are
// plain owners of bytes.
unsafe impl Send for Region {}
// SAFETY: a shared region gives out nothing but its address; who may touch which bytes is decided
// by the types below.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed memory of at least `bytes` bytes, rounded up to whole blocks, at least one.
    fn new_zeroed(bytes: usize) -> Region {
        let bytes = bytes.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Region::layout(bytes);
        // SAFETY: the layout is not of size zero: at least one block.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Region { start, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, BLOCK_BYTES).expect("sizes of buffers stay below isize::MAX")
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    /// Nobody may write to these bytes as long as the slice lives.
    unsafe fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.bytes);
        // SAFETY: `range.start` is within the allocation (asserted).
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: the range lies within the allocation, which is initialised and lives as long as
        // `self`; the caller promises that nobody writes.
        unsafe { slice::from_raw_parts(start.as_ptr(), range.len()) }
    }

    /// The bytes of `range`, for writing.
    ///
    /// # Safety
    /// No other slice over any of these bytes may live as long as this one does.
    #[expect(
        clippy::mut_from_ref,
        reason = "the region is shared; the caller promises that the bytes are not"
    )]
    unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.bytes);
        // SAFETY: `range.start` is within the allocation (asserted).
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: the range lies within the allocation, which is initialised and lives as long as
        // `self`; the caller promises that the slice is the only one over it.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), range.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new_zeroed` with the same layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), Region::layout(self.bytes)) }
    }
}

/// Heap memory aligned to [`BLOCK_BYTES`], whole blocks long.
pub struct AlignedBuf {
    region: Region,
}

impl AlignedBuf {
    /// Zeroed memory of `bytes` bytes, rounded up to whole blocks; at least one block. Aborts when
    /// memory is out.
    pub fn new_zeroed(bytes: usize) -> AlignedBuf {
        AlignedBuf {
            region: Region::new_zeroed(bytes),
        }
    }

    /// The address, for the kernel.
    pub(crate) fn as_ptr_mut(&mut self) -> *mut u8 {
        self.region.start.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the region has this one owner, borrowed as shared here: nobody can write
        // meanwhile.
        unsafe { self.region.slice(0..self.region.bytes) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the region has this one owner, borrowed exclusively here.
        unsafe { self.region.slice_mut(0..self.region.bytes) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("bytes", &self.region.bytes)
            .finish()
    }
}

/// Append-only memory, aligned to [`BLOCK_BYTES`]: written by one [`ChunkWriter`], read by many.
pub struct AppendChunk {
    region: Region,
    /// Bytes that will never change; the disk may read them. Only the writer stores.
    frozen: AtomicUsize,
    /// Bytes that readers may see, at most `frozen`. Only the writer stores.
    published: AtomicUsize,
}

impl AppendChunk {
    /// Size in bytes, whole blocks.
    pub fn capacity(&self) -> usize {
        self.region.bytes
    }

    /// The bytes that the writer has published. A later call may give more, never less.
    pub fn published(&self) -> &[u8] {
        let published = self.published.load(Ordering::Acquire);
        // SAFETY: `published <= frozen`, and the writer does not write below `frozen`; a chunk is
        // only reset when its writer is the sole owner, and this borrow proves that there is an
        // owner.
        unsafe { self.region.slice(0..published) }
    }

    /// A view of published bytes that owns its share of the chunk.
    ///
    /// # Panics
    /// If `range` ends beyond what is published.
    pub fn view(self: &Arc<Self>, range: Range<usize>) -> ChunkView {
        let published = self.published.load(Ordering::Acquire);
        assert!(
            range.start <= range.end && range.end <= published,
            "view of {range:?}, but only {published} bytes are published"
        );
        ChunkView {
            chunk: Arc::clone(self),
            range,
        }
    }

    /// Frozen bytes, for the disk.
    ///
    /// # Panics
    /// If `range` ends beyond what is frozen: the bytes could still change under the device.
    pub(crate) fn frozen(&self, range: Range<usize>) -> &[u8] {
        let frozen = self.frozen.load(Ordering::Acquire);
        assert!(
            range.start <= range.end && range.end <= frozen,
            "write of {range:?}, but only {frozen} bytes are frozen"
        );
        // SAFETY: as in `published`: the writer does not write below `frozen`.
        unsafe { self.region.slice(range) }
    }
}

impl fmt::Debug for AppendChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppendChunk")
            .field("capacity", &self.region.bytes)
            .field("frozen", &self.frozen)
            .field("published", &self.published)
            .finish()
    }
}

/// Published bytes of an [`AppendChunk`] together with a share of the chunk; no copy.
#[derive(Debug, Clone)]
pub struct ChunkView {
    chunk: Arc<AppendChunk>,
    /// Within the published bytes (checked when made; they never become fewer while this share
    /// exists).
    range: Range<usize>,
}

impl AsRef<[u8]> for ChunkView {
    fn as_ref(&self) -> &[u8] {
        &self.chunk.published()[self.range.clone()]
    }
}

/// The one writer of an [`AppendChunk`].
#[derive(Debug)]
pub struct ChunkWriter {
    chunk: Arc<AppendChunk>,
    len: usize,
}

impl ChunkWriter {
    /// A new chunk of `capacity` bytes, rounded up to whole blocks; at least one block. Aborts when
    /// memory is out.
    pub fn new(capacity: usize) -> ChunkWriter {
        let chunk = AppendChunk {
            region: Region::new_zeroed(capacity),
            frozen: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
        };
        ChunkWriter {
            chunk: Arc::new(chunk),
            len: 0,
        }
    }

    /// Starts over in a chunk that nobody else holds, without allocating; the chunk comes back if
    /// somebody does (an operation in flight, a reader, a view).
    pub fn reuse(mut chunk: Arc<AppendChunk>) -> Result<ChunkWriter, Arc<AppendChunk>> {
        // `get_mut` succeeds only for the last strong owner with no weak one, so that no other
        // writer exists either.
        let Some(own) = Arc::get_mut(&mut chunk) else {
            return Err(chunk);
        };
        *own.frozen.get_mut() = 0;
        *own.published.get_mut() = 0;
        Ok(ChunkWriter { chunk, len: 0 })
    }

    /// The chunk, for readers and for [`crate::WriteSource`].
    pub fn chunk(&self) -> &Arc<AppendChunk> {
        &self.chunk
    }

    /// Ends writing.
    pub fn into_chunk(self) -> Arc<AppendChunk> {
        self.chunk
    }

    /// Bytes appended.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a position in the chunk, not a collection's size"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that can still be appended.
    pub fn remaining(&self) -> usize {
        self.chunk.capacity() - self.len
    }

    /// Bytes that are frozen.
    pub fn frozen_len(&self) -> usize {
        // The writer is the only one that stores.
        self.chunk.frozen.load(Ordering::Relaxed)
    }

    /// Bytes that are published.
    pub fn published_len(&self) -> usize {
        self.chunk.published.load(Ordering::Relaxed)
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.spare(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends zeros up to length `len`.
    ///
    /// # Panics
    /// If `len` is below the current length or above the capacity.
    pub fn zero_fill_to(&mut self, len: usize) {
        assert!(
            len >= self.len,
            "zero fill to {len}, but {} bytes are there",
            self.len
        );
        self.spare(len - self.len).fill(0);
    }

    /// Appends `bytes` bytes and returns them for filling. What they hold before is unspecified
    /// (initialised, but possibly left over from the chunk's earlier use).
    ///
    /// # Panics
    /// If they do not fit.
    pub fn spare(&mut self, bytes: usize) -> &mut [u8] {
        assert!(
            bytes <= self.remaining(),
            "append of {bytes} bytes, {} remain",
            self.remaining()
        );
        let start = self.len;
        self.len += bytes;
        self.get_mut(start..start + bytes)
    }

    /// Appended bytes that are not frozen yet.
    ///
    /// # Panics
    /// If `range` begins below the frozen length or ends beyond what is appended.
    pub fn get_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        let frozen = self.frozen_len();
        assert!(
            frozen <= range.start && range.start <= range.end && range.end <= self.len,
            "change of {range:?}, but bytes below {frozen} are frozen and {} are appended",
            self.len
        );
        // SAFETY: this is the chunk's only writer and it is borrowed exclusively; everybody else
        // makes slices below `frozen` only.
        unsafe { self.chunk.region.slice_mut(range) }
    }

    /// Overwrites appended bytes from `at` on.
    ///
    /// # Panics
    /// If `at` is below the frozen length or the bytes end beyond what is appended.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.get_mut(at..at + bytes.len()).copy_from_slice(bytes);
    }

    /// Makes all bytes below `len` immutable: they may be given to the disk.
    ///
    /// # Panics
    /// If `len` is beyond what is appended or below what is frozen.
    pub fn freeze(&mut self, len: usize) {
        assert!(
            len <= self.len,
            "freeze of {len} bytes, but only {} are appended",
            self.len
        );
        assert!(len >= self.frozen_len(), "what is frozen stays frozen");
        // Pairs with the Acquire in `AppendChunk::frozen`.
        self.chunk.frozen.store(len, Ordering::Release);
    }

    /// Lets readers see all bytes below `len`.
    ///
    /// # Panics
    /// If `len` is beyond what is frozen or below what is published.
    pub fn publish(&mut self, len: usize) {
        assert!(
            len <= self.frozen_len(),
            "publish of {len} bytes that are not all frozen"
        );
        assert!(
            len >= self.published_len(),
            "what is published stays published"
        );
        // Pairs with the Acquire in `AppendChunk::published`.
        self.chunk.published.store(len, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn aligned_buf_is_zeroed_whole_blocks_at_a_block_address() {
        for (asked, got) in [
            (0, BLOCK_BYTES),
            (1, BLOCK_BYTES),
            (4096, 4096),
            (4097, 8192),
        ] {
            let mut buf = AlignedBuf::new_zeroed(asked);
            assert_eq!(buf.len(), got);
            assert_eq!(buf.as_ptr_mut().addr() % BLOCK_BYTES, 0);
            assert!(buf.iter().all(|byte| *byte == 0));
            buf[got - 1] = 7;
            assert_eq!(buf.as_ref()[got - 1], 7);
        }
    }

    #[test]
    fn readers_see_published_bytes_while_the_writer_appends() {
        let mut writer = ChunkWriter::new(8192);
        let chunk = Arc::clone(writer.chunk());
        let reader = thread::spawn(move || {
            let mut seen = 0;
            while seen < 100 * 8 {
                let bytes = chunk.published();
                assert!(bytes.len() >= seen);
                seen = bytes.len();
                for (index, word) in bytes.chunks_exact(8).enumerate() {
                    assert_eq!(word, (index as u64).to_le_bytes());
                }
                thread::yield_now();
            }
            chunk.view(8..16).as_ref().to_vec()
        });
        for index in 0..100_u64 {
            writer.extend_from_slice(&[0; 8]);
            writer.patch(writer.len() - 8, &index.to_le_bytes());
            writer.freeze(writer.len());
            writer.publish(writer.len());
        }
        assert_eq!(reader.join().unwrap(), 1_u64.to_le_bytes());
        assert_eq!(writer.chunk().frozen(0..8), 0_u64.to_le_bytes());
    }

    #[test]
    fn writing_beside_a_living_reader_slice_is_sound() {
        let mut writer = ChunkWriter::new(4096);
        let chunk = Arc::clone(writer.chunk());
        writer.extend_from_slice(b"abc");
        writer.freeze(3);
        writer.publish(3);
        let published = chunk.published();
        writer.extend_from_slice(b"def");
        writer.get_mut(3..4)[0] = b'D';
        writer.zero_fill_to(8);
        assert_eq!(published, b"abc");
        writer.freeze(8);
        assert_eq!(chunk.frozen(3..8), b"Def\0\0");
        assert_eq!(published, b"abc");
    }

    #[test]
    fn a_chunk_is_reused_only_when_nobody_else_holds_it() {
        let mut writer = ChunkWriter::new(4096);
        writer.extend_from_slice(b"old");
        writer.freeze(3);
        writer.publish(3);
        let view = writer.chunk().view(0..3);
        let chunk = ChunkWriter::reuse(writer.into_chunk()).unwrap_err();
        assert_eq!(view.as_ref(), b"old");
        drop(view);
        let weak = Arc::downgrade(&chunk);
        let chunk = ChunkWriter::reuse(chunk).unwrap_err();
        drop(weak);
        let mut writer = ChunkWriter::reuse(chunk).unwrap();
        assert_eq!((writer.len(), writer.chunk().published().len()), (0, 0));
        writer.extend_from_slice(b"new");
        writer.zero_fill_to(4096);
        assert_eq!(writer.remaining(), 0);
        writer.freeze(4096);
        writer.publish(4096);
        assert_eq!(&writer.chunk().published()[..4], b"new\0");
    }

    #[test]
    fn views_and_buffers_become_shared_bytes_without_a_copy() {
        let mut writer = ChunkWriter::new(4096);
        writer.extend_from_slice(b"abcdef");
        writer.freeze(6);
        writer.publish(6);
        let address = writer.chunk().published()[2..].as_ptr();
        let bytes = bytes::Bytes::from_owner(writer.chunk().view(2..5));
        assert_eq!((&bytes[..], bytes.as_ptr()), (&b"cde"[..], address));
        drop(writer);
        assert_eq!(&bytes[..], b"cde", "the view keeps the chunk");
        let buf = AlignedBuf::new_zeroed(4096);
        let address = buf.as_ptr();
        assert_eq!(bytes::Bytes::from_owner(buf).as_ptr(), address);
    }

    #[test]
    #[should_panic(expected = "are frozen")]
    fn frozen_bytes_cannot_be_patched() {
        let mut writer = ChunkWriter::new(4096);
        writer.zero_fill_to(16);
        writer.freeze(8);
        writer.patch(7, &[1]);
    }

    #[test]
    #[should_panic(expected = "not all frozen")]
    fn only_frozen_bytes_are_published() {
        let mut writer = ChunkWriter::new(4096);
        writer.zero_fill_to(16);
        writer.publish(8);
    }

    #[test]
    #[should_panic(expected = "published")]
    fn a_view_of_unpublished_bytes_is_refused() {
        let mut writer = ChunkWriter::new(4096);
        writer.zero_fill_to(16);
        writer.freeze(16);
        writer.chunk().view(0..1);
    }
}
