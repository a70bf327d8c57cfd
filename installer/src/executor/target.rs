//! What a plan is carried out on: one trait, and its implementation for disks and image files.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::plan::TargetIdentity;

/// Alignment that direct reads need, in memory and on the disk.
const DIRECT_ALIGN_BYTES: usize = 4096;
/// A disk that is pulled out fails first and vanishes from sysfs a moment later: so often is it looked for.
const GONE_LOOKS: u32 = 15;
/// Time between two looks.
const GONE_INTERVAL: Duration = Duration::from_millis(100);

/// A disk or something like it.
pub trait Target {
    /// Bytes of the whole disk.
    fn size_bytes(&self) -> u64;
    /// Writes; durable only after [`Target::flush`].
    ///
    /// # Errors
    ///
    /// What the operating system says; some of the bytes may have been written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads from the medium, not from a cache, as far as the operating system lets us.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Makes everything written so far durable.
    ///
    /// # Errors
    ///
    /// What the operating system says; what was written since the last flush may be lost.
    fn flush(&mut self) -> io::Result<()>;
    /// Whether this still is the disk of the plan.
    ///
    /// # Errors
    ///
    /// How it differs, for people.
    fn check_identity(&mut self, expected: &TargetIdentity) -> Result<(), String>;
    /// Whether the disk of the plan is no longer there: asked after an error, to tell a disk that was
    /// taken out from one that fails.
    fn is_gone(&mut self, expected: &TargetIdentity) -> bool;
    /// The path for programs that read it.
    fn path(&self) -> &Path;
}

/// Looks a disk up again by its path, right before it is written.
pub type IdentityProbe = Box<dyn Fn(&Path) -> Result<TargetIdentity, String> + Send>;

/// A block device or an image file.
pub struct FileTarget {
    path: PathBuf,
    size_bytes: u64,
    file: File,
    /// For reads past the page cache; `None` where the file system has no direct I/O.
    direct: Option<File>,
    identity: Option<IdentityProbe>,
    bounce: Vec<u8>,
}

impl FileTarget {
    /// Opens a disk for itself alone (`O_EXCL`, held until the target is dropped): a disk of which
    /// something is mounted or otherwise in use is refused by the kernel. `identity` is asked again
    /// right before the first write.
    ///
    /// # Errors
    ///
    /// What the operating system says; `EBUSY` for a disk in use.
    pub fn open_disk(path: &Path, identity: IdentityProbe) -> io::Result<FileTarget> {
        let exclusive = OFlags::EXCL.union(OFlags::CLOEXEC);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags(exclusive))
            .open(path)?;
        FileTarget::with(path, file, Some(identity))
    }

    /// Makes an image file of this many bytes, all zero and sparse. A file that is there is replaced.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn create_image(path: &Path, size_bytes: u64) -> io::Result<FileTarget> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.set_len(size_bytes)?;
        FileTarget::with(path, file, None)
    }

    /// Opens an image file as it is.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open_image(path: &Path) -> io::Result<FileTarget> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        FileTarget::with(path, file, None)
    }

    /// Opens something to be read only: every write fails.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open_to_read(path: &Path) -> io::Result<FileTarget> {
        let file = File::open(path)?;
        FileTarget::with(path, file, None)
    }

    fn with(
        path: &Path,
        mut file: File,
        identity: Option<IdentityProbe>,
    ) -> io::Result<FileTarget> {
        let size_bytes = file.seek(SeekFrom::End(0))?;
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(flags(OFlags::DIRECT.union(OFlags::CLOEXEC)))
            .open(path)
            .ok();
        Ok(FileTarget {
            path: path.to_owned(),
            size_bytes,
            file,
            direct,
            identity,
            bounce: Vec::new(),
        })
    }

    /// Whether the device behind the open file, or its entry in sysfs, is another or none.
    fn looks_gone(&mut self, identity: &IdentityProbe, expected: &TargetIdentity) -> bool {
        let is_empty = self.file.seek(SeekFrom::End(0)).unwrap_or(0) == 0;
        is_empty
            || identity(&self.path).map_or(true, |found| {
                found.size_bytes == 0 || found.disk_sequence != expected.disk_sequence
            })
    }

    /// Reads past the page cache. The answer is whether it was possible.
    fn read_direct(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<bool> {
        let Some(direct) = &self.direct else {
            return Ok(false);
        };
        let start = offset / DIRECT_ALIGN_BYTES as u64 * DIRECT_ALIGN_BYTES as u64;
        let before = usize::try_from(offset - start).unwrap_or(0);
        let length = (before + bytes.len()).next_multiple_of(DIRECT_ALIGN_BYTES);
        self.bounce.resize(length + DIRECT_ALIGN_BYTES, 0);
        let shift = self.bounce.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
        let buffer = &mut self.bounce[shift..shift + length];
        let mut filled = 0;
        while filled < before + bytes.len() {
            match direct.read_at(&mut buffer[filled..], start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An odd tail, or a file system that takes the flag and not the read.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        bytes.copy_from_slice(&buffer[before..before + bytes.len()]);
        Ok(true)
    }
}

fn flags(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).unwrap_or(0)
}

impl Target for FileTarget {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        if self.read_direct(offset, bytes)? {
            return Ok(());
        }
        // Second best: have the kernel forget what it holds, which it does for clean pages.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        self.file.read_exact_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn check_identity(&mut self, expected: &TargetIdentity) -> Result<(), String> {
        if self.size_bytes != expected.size_bytes {
            return Err(format!(
                "it has {} bytes, not {}",
                self.size_bytes, expected.size_bytes
            ));
        }
        let Some(identity) = &self.identity else {
            return Ok(());
        };
        let found = identity(&self.path)?;
        for (what, found, expected) in [
            ("serial number", &found.serial, &expected.serial),
            ("WWN", &found.wwn, &expected.wwn),
            ("model", &found.model, &expected.model),
        ] {
            if found != expected {
                return Err(format!("its {what} is {found:?}, not {expected:?}"));
            }
        }
        if found.sector_bytes != expected.sector_bytes
            || found.disk_sequence != expected.disk_sequence
        {
            return Err("it was unplugged and plugged in again, or replaced".into());
        }
        Ok(())
    }

    fn is_gone(&mut self, expected: &TargetIdentity) -> bool {
        let Some(identity) = self.identity.take() else {
            return false;
        };
        let mut is_gone = self.looks_gone(&identity, expected);
        for _ in 1..GONE_LOOKS {
            if is_gone {
                break;
            }
            std::thread::sleep(GONE_INTERVAL);
            is_gone = self.looks_gone(&identity, expected);
        }
        self.identity = Some(identity);
        is_gone
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
