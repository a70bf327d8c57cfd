//! Files of the operating system below one root directory.

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::blocking::BlockingQueue;
use crate::uring::{self, UringQueue};
use crate::{AlignedBuf, BLOCK_BYTES, DirEntry, File, IoQueue, OpenMode, Space, Storage};

/// Longest text kept in a lock file, in bytes.
pub const LOCK_HOLDER_BYTES_MAX: usize = 256;

/// Zeros are written in pieces of this size where a file system cannot reserve space.
const ZERO_BYTES: usize = 1 << 20;

/// How a [`FileStorage`] reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where the kernel has it and lets this process use it, otherwise blocking calls.
    Auto,
    /// io_uring, or an error.
    Uring,
    /// `pwritev2`, `pread` and `fdatasync`, made by the queue's own thread.
    Blocking,
}

/// A directory of the real file system.
#[derive(Debug)]
pub struct FileStorage {
    root: PathBuf,
    uring: bool,
    fallback_reason: Option<String>,
    /// Cleared by the first file that the file system refuses to open with `O_DIRECT`.
    direct: Arc<AtomicBool>,
}

impl FileStorage {
    /// The tree below `root`. Touches no file: `root` need not exist yet, and
    /// [`Storage::durable_create_dir`] of the empty path creates it.
    ///
    /// # Errors
    /// With [`Backend::Uring`], `Unsupported` if io_uring cannot be used, saying why.
    pub fn open(root: &Path, backend: Backend) -> io::Result<FileStorage> {
        let root = std::path::absolute(root)?;
        let refusal = match backend {
            Backend::Auto | Backend::Uring => uring::probe().err(),
            Backend::Blocking => None,
        };
        let (uring, fallback_reason) = match (backend, refusal) {
            (Backend::Uring, Some(reason)) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
            (Backend::Blocking, _) => (false, None),
            (_, Some(reason)) => (false, Some(reason)),
            (_, None) => (true, None),
        };
        Ok(FileStorage {
            root,
            uring,
            fallback_reason,
            direct: Arc::new(AtomicBool::new(true)),
        })
    }

    /// Why [`Backend::Auto`] did not take io_uring; none if it did or was not asked.
    pub fn fallback_reason(&self) -> Option<String> {
        self.fallback_reason.clone()
    }

    /// Whether every file so far was opened with `O_DIRECT`. Where a file system refuses it, files
    /// go through the page cache: the same guarantees, one more copy.
    pub fn direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn file_path(&self, path: &str) -> io::Result<PathBuf> {
        if path.is_empty() {
            return Err(invalid_path(path));
        }
        self.dir_path(path)
    }

    /// Like `file_path`, but the empty path is the root.
    fn dir_path(&self, path: &str) -> io::Result<PathBuf> {
        check_path(path)?;
        Ok(if path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(path)
        })
    }
}

/// Paths are relative, `/`-separated, without empty, `.` and `..` parts. The empty path is the
/// root.
pub(crate) fn check_path(path: &str) -> io::Result<()> {
    let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if path.is_empty() || path.split('/').all(good) {
        Ok(())
    } else {
        Err(invalid_path(path))
    }
}

fn invalid_path(path: &str) -> io::Error {
    let text = format!("path {path:?} does not stay below the root");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Calls again as long as a signal interrupts.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

fn parent(path: &Path) -> &Path {
    // Only the root of the file system has no parent, and it is its own.
    path.parent().unwrap_or(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = retry(|| fs::open(path, flags, Mode::empty()))?;
    retry(|| fs::fsync(&dir))
}

/// Makes `path` and what is missing above it, and syncs the parent of each directory that may be
/// new.
fn create_dir_all(path: &Path) -> io::Result<()> {
    match retry(|| fs::mkdir(path, Mode::from_raw_mode(0o750))) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some() => {
            create_dir_all(parent(path))?;
            return create_dir_all(path);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let stat = retry(|| fs::stat(path))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    // Also when it was there: whoever made it may have lost power before the sync.
    sync_directory(parent(path))
}

impl Storage for FileStorage {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let path = self.file_path(path)?;
        let access = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::ReadWrite => OFlags::RDWR,
            OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let flags = access | OFlags::CLOEXEC;
        let permissions = Mode::from_raw_mode(0o640);
        let fd = match retry(|| fs::open(&path, flags | OFlags::DIRECT, permissions)) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                // Some kernels create the file before they refuse O_DIRECT: it may be there now,
                // but it was not before, so that O_EXCL has done its work.
                retry(|| fs::open(&path, flags.difference(OFlags::EXCL), permissions))
                    .inspect(|_| self.direct.store(false, Ordering::Relaxed))?
            }
            result => result?,
        };
        let stat = retry(|| fs::fstat(&fd))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::ISDIR.into());
        }
        Ok(Arc::new(OsFile::new(fd)))
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(self.dir_path(path)?)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result?,
            };
            let name = entry.file_name().into_string().map_err(|name| {
                let text = format!("file name {} is not UTF-8", name.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            let is_dir = metadata.is_dir();
            entries.push(DirEntry {
                name,
                bytes: if is_dir { 0 } else { metadata.len() },
                is_dir,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn durable_create_dir(&self, path: &str) -> io::Result<()> {
        create_dir_all(&self.dir_path(path)?)
    }

    fn durable_rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.file_path(from)?, self.file_path(to)?);
        retry(|| fs::rename(&from, &to))?;
        sync_directory(parent(&to))?;
        if parent(&from) == parent(&to) {
            Ok(())
        } else {
            sync_directory(parent(&from))
        }
    }

    fn durable_remove(&self, path: &str) -> io::Result<()> {
        let path = self.file_path(path)?;
        retry(|| fs::unlink(&path))?;
        sync_directory(parent(&path))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        sync_directory(&self.dir_path(path)?)
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn IoQueue>> {
        assert!(depth > 0, "a queue needs room for one operation");
        if self.uring {
            Ok(Box::new(UringQueue::new(depth)?))
        } else {
            Ok(Box::new(BlockingQueue::new(depth)))
        }
    }

    fn lock(&self, path: &str, holder: &str) -> io::Result<Box<dyn Send + Sync>> {
        let path = self.file_path(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let fd = retry(|| fs::open(&path, flags, Mode::from_raw_mode(0o640)))?;
        // flock belongs to the open file, so that it also keeps a second opener in this process
        // out.
        match retry(|| fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut text = [0_u8; LOCK_HOLDER_BYTES_MAX];
                let bytes = retry(|| rustix::io::pread(&fd, &mut text, 0))?;
                let text = format!("locked by {}", String::from_utf8_lossy(&text[..bytes]));
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            result => result?,
        }
        let text = &holder.as_bytes()[..holder.floor_char_boundary(LOCK_HOLDER_BYTES_MAX)];
        retry(|| fs::ftruncate(&fd, 0))?;
        retry(|| rustix::io::pwrite(&fd, text, 0))?;
        Ok(Box::new(fd))
    }

    fn space(&self) -> io::Result<Space> {
        let stat = retry(|| fs::statvfs(&self.root))?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn backend(&self) -> &'static str {
        if self.uring { "io_uring" } else { "blocking" }
    }
}

/// An open file of the operating system.
#[derive(Debug)]
pub(crate) struct OsFile {
    fd: OwnedFd,
}

impl OsFile {
    pub(crate) fn new(fd: OwnedFd) -> OsFile {
        OsFile { fd }
    }

    /// The file behind `file`.
    ///
    /// # Panics
    /// If `file` was opened by another kind of storage than the queue it is given to.
    pub(crate) fn of(file: &Arc<dyn File>) -> &OsFile {
        file.as_any()
            .downcast_ref()
            .expect("a queue gets files of its own storage only")
    }

    /// Reads up to `into.len()` bytes, fewer only at the end of the file.
    pub(crate) fn read_up_to(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let bytes = retry(|| rustix::io::pread(&self.fd, &mut into[done..], at))?;
            done += bytes;
            // Direct reads stop at an odd length only at the end of the file, and may not go on
            // from there.
            if bytes == 0 || !done.is_multiple_of(BLOCK_BYTES) {
                break;
            }
        }
        Ok(done)
    }

    /// Writes all of `bytes`; with `durable`, they are on stable storage when this returns.
    pub(crate) fn write_all(&self, bytes: &[u8], offset: u64, durable: bool) -> io::Result<()> {
        let flags = if durable {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let slices = [IoSlice::new(&bytes[done..])];
            let written = retry(|| rustix::io::pwritev2(&self.fd, &slices, at, flags))?;
            done += written;
            check_progress(written)?;
        }
        Ok(())
    }
}

/// A write that stopped inside a block cannot go on with direct I/O; the device or the file system
/// is out of room.
pub(crate) fn check_progress(written: usize) -> io::Result<()> {
    if written == 0 || !written.is_multiple_of(BLOCK_BYTES) {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Offsets and lengths of all operations are whole blocks.
///
/// # Panics
/// If they are not: a bug of the caller.
pub(crate) fn check_aligned(bytes: usize, offset: u64) {
    assert!(
        bytes.is_multiple_of(BLOCK_BYTES),
        "length {bytes} is not a multiple of {BLOCK_BYTES}"
    );
    assert!(
        offset.is_multiple_of(BLOCK_BYTES as u64),
        "offset {offset} is not a multiple of {BLOCK_BYTES}"
    );
}

impl AsFd for OsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        let stat = retry(|| fs::fstat(&self.fd))?;
        u64::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn read_at(&self, buf: &mut AlignedBuf, bytes: usize, offset: u64) -> io::Result<usize> {
        check_aligned(bytes, offset);
        self.read_up_to(&mut buf[..bytes], offset)
    }

    fn write_at(&self, buf: &AlignedBuf, bytes: usize, offset: u64) -> io::Result<()> {
        check_aligned(bytes, offset);
        self.write_all(&buf[..bytes], offset, false)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match retry(|| fs::fallocate(&self.fd, FallocateFlags::empty(), 0, bytes)) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.write_zeros(bytes),
            result => result,
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        retry(|| fs::ftruncate(&self.fd, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        retry(|| fs::fdatasync(&self.fd))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl OsFile {
    /// Reserves by writing what lies beyond the present end.
    fn write_zeros(&self, bytes: u64) -> io::Result<()> {
        const BLOCK: u64 = BLOCK_BYTES as u64;
        let zeros = AlignedBuf::new_zeroed(ZERO_BYTES);
        let present = self.len()?;
        if present >= bytes {
            return Ok(());
        }
        let mut at = present.next_multiple_of(BLOCK);
        let end = bytes.next_multiple_of(BLOCK);
        while at < end {
            let piece = usize::try_from(end - at).map_or(ZERO_BYTES, |rest| rest.min(ZERO_BYTES));
            self.write_all(&zeros[..piece], at, false)?;
            at += piece as u64;
        }
        self.set_len(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_reserved_by_zeros_where_the_file_system_cannot_reserve() {
        let file = OsFile::new(tempfile::tempfile().unwrap().into());
        let data = [7; BLOCK_BYTES];
        file.write_all(&data, 0, true).unwrap();
        let bytes = ZERO_BYTES + 3 * BLOCK_BYTES + 5;
        file.write_zeros(bytes as u64).unwrap();
        let mut into = vec![1; bytes + BLOCK_BYTES];
        assert_eq!(file.read_up_to(&mut into, 0).unwrap(), bytes);
        assert_eq!(into[..BLOCK_BYTES], data);
        assert!(into[BLOCK_BYTES..bytes].iter().all(|byte| *byte == 0));
        file.write_zeros(1).unwrap();
        assert_eq!(
            file.len().unwrap(),
            bytes as u64,
            "reserving never shortens"
        );
    }

    #[test]
    fn a_write_that_stops_inside_a_block_is_an_error() {
        check_progress(BLOCK_BYTES).unwrap();
        for written in [0, 1, BLOCK_BYTES + 512] {
            let error = check_progress(written).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WriteZero);
        }
    }
}
