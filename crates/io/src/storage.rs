//! Files and queues of I/O: the traits that the real and the simulated disk implement.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::{AlignedBuf, AppendChunk};

/// Offsets, lengths and addresses of direct I/O are multiples of this many bytes.
///
/// 4096 is the physical block of the devices in use, a multiple of every logical block size (512,
/// 4096), and the unit in which a torn write can leave old and new bytes side by side.
pub const BLOCK_BYTES: usize = 4096;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing file, reads only.
    Read,
    /// Existing file, reads and writes.
    ReadWrite,
    /// New file; fails with `AlreadyExists` if there is one.
    CreateNew,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// File name without its directory.
    pub name: String,
    /// Length in bytes (0 for a directory).
    pub bytes: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A tree of files below one root directory. Paths are relative, `/`-separated, and never contain
/// `..`.
///
/// Calls block. Errors are those of the operating system, unchanged.
pub trait Storage: Send + Sync + 'static {
    /// Opens a file for direct I/O.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// Entries of a directory, sorted by name. `NotFound` if there is no such directory.
    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>>;
    /// Creates a directory and its parents and syncs the parent; succeeds if it exists.
    fn durable_create_dir(&self, path: &str) -> io::Result<()>;
    /// Renames a file over whatever is at `to` and syncs the directories of both. The file itself
    /// must be synced already.
    fn durable_rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file and syncs its directory.
    fn durable_remove(&self, path: &str) -> io::Result<()>;
    /// Syncs a directory, so that files created in it survive a power cut.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// A queue of asynchronous operations for one thread.
    fn queue(&self, depth: usize) -> io::Result<Box<dyn IoQueue>>;
    /// Takes the exclusive lock on `path` (created if missing), held until the returned guard is
    /// dropped or the process ends. `WouldBlock` if another process holds it; the file's text (at
    /// most 256 bytes) then says who.
    fn lock(&self, path: &str, holder: &str) -> io::Result<Box<dyn Send + Sync>>;
    /// Bytes free to this process on the file system, and its size.
    fn space(&self) -> io::Result<Space>;
    /// Which room this is: `io_uring`, `blocking` or `simulated`.
    fn backend(&self) -> &'static str;
}

/// Space of the file system below a [`Storage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that an unprivileged process may still allocate.
    pub free_bytes: u64,
    /// Size of the file system in bytes.
    pub total_bytes: u64,
}

/// An open file. Reads and writes are positioned; offsets and lengths are multiples of
/// [`BLOCK_BYTES`].
#[expect(
    clippy::len_without_is_empty,
    reason = "a length that is asked of the disk and can fail"
)]
pub trait File: Send + Sync + 'static {
    /// Current length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads up to `buf.len()` bytes at `offset`; the result is short only at the end of the file.
    fn read_at(&self, buf: &mut AlignedBuf, bytes: usize, offset: u64) -> io::Result<usize>;
    /// Writes the first `bytes` bytes of `buf` at `offset`, all or an error. Not durable before
    /// [`File::sync`].
    fn write_at(&self, buf: &AlignedBuf, bytes: usize, offset: u64) -> io::Result<()>;
    /// Reserves disk space for `bytes` bytes from the start, extending the file; reads give zeros.
    /// `StorageFull` if there is none.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Sets the length.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes data and length durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
    /// For downcasting to the implementation's own file inside its queue.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Where the bytes of a queued write come from.
#[derive(Debug, Clone)]
pub struct WriteSource {
    /// The chunk; kept alive by the operation.
    pub chunk: Arc<AppendChunk>,
    /// First byte within the chunk; a multiple of [`BLOCK_BYTES`].
    pub start: usize,
    /// Number of bytes; a multiple of [`BLOCK_BYTES`].
    pub bytes: usize,
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// The tag given at submission.
    pub tag: u64,
    /// Success, or the operating system's error. A short write is reported as `WriteZero`.
    pub result: io::Result<()>,
    /// The buffer of a read, with the number of bytes read.
    pub read: Option<(AlignedBuf, usize)>,
}

/// A queue of I/O operations owned by one thread.
///
/// Operations may complete in any order. At most `depth` (given to [`Storage::queue`]) may be in
/// flight; submitting more is a bug and panics.
pub trait IoQueue: Send {
    /// Queues a write. With `durable`, completion means that the data is on stable storage
    /// (`RWF_DSYNC`).
    fn write(
        &mut self,
        file: &Arc<dyn File>,
        source: WriteSource,
        offset: u64,
        durable: bool,
        tag: u64,
    );
    /// As [`IoQueue::write`], by the calling thread itself, which waits for it: the completion is
    /// there at the next look. Takes fewer changes of thread, so it is quicker when nothing else
    /// could be done meanwhile. A queue may as well queue it.
    fn write_at_once(
        &mut self,
        file: &Arc<dyn File>,
        source: WriteSource,
        offset: u64,
        durable: bool,
        tag: u64,
    ) {
        self.write(file, source, offset, durable, tag);
    }
    /// Queues a read of `bytes` bytes into `buf`.
    fn read(&mut self, file: &Arc<dyn File>, buf: AlignedBuf, bytes: usize, offset: u64, tag: u64);
    /// Queues an `fdatasync`.
    fn sync(&mut self, file: &Arc<dyn File>, tag: u64);
    /// Gives everything queued to the device and moves finished operations to `completions`. Does
    /// not block.
    fn poll(&mut self, completions: &mut Vec<Completion>);
    /// Like `poll`, but blocks until an operation finishes, the waker is used, or `timeout_ns`
    /// passes.
    fn wait(&mut self, completions: &mut Vec<Completion>, timeout_ns: Option<u64>);
    /// How long [`IoQueue::wait`] looks for something to do before it sleeps, from now on. Trades CPU
    /// time for the time that waking a thread takes; between two looks other threads may run. A
    /// queue may do without.
    fn spin(&mut self, _: Duration) {}
    /// Operations submitted and not yet returned.
    fn in_flight(&self) -> usize;
    /// A handle with which any thread ends a [`IoQueue::wait`]. Waking a queue that does not wait
    /// makes its next wait return at once.
    fn waker(&self) -> Waker;
}

/// Ends the wait of an [`IoQueue`] from another thread; cheap when nobody waits.
#[derive(Clone)]
pub struct Waker(pub(crate) Arc<dyn Wake>);

impl Waker {
    /// Wakes the queue's thread.
    pub fn wake(&self) {
        self.0.wake();
    }
}

/// What a [`Waker`] calls.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}
