//! The device's own figures, measured by plain calls of this thread: what no database can go below.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use truthdb_io::{AlignedBuf, BLOCK_BYTES, Clock as _, SystemClock};

use super::stats::Latencies;
use crate::exit::Failure;

/// Size of the file that is overwritten.
const FILE_BYTES: u64 = 4 << 20;
/// Writes of one measurement of the floor.
pub(super) const FLOOR_WRITES: u64 = 300;

/// A file that was written through once, so that overwriting it changes no metadata.
pub(super) struct Floor {
    file: File,
    path: PathBuf,
    block: AlignedBuf,
    clock: SystemClock,
    next: u64,
}

/// One measurement of the floor.
#[derive(Debug, Clone)]
pub(super) struct FloorFigures {
    /// Durable writes each second, one after another.
    pub writes_per_s: f64,
    /// How long each took.
    pub latencies: Latencies,
}

fn open(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = i32::try_from(flags.bits()).expect("the flags of open are an int in C");
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .custom_flags(flags)
        .open(path)
}

impl Floor {
    /// Makes the file below a directory on the device to measure.
    ///
    /// # Errors
    ///
    /// `environment`: the disk's errors, or a file system without `O_DIRECT`.
    pub(super) fn new(directory: &Path) -> Result<Floor, Failure> {
        let path = directory.join("floor.bin");
        let failed = |error| {
            Failure::environment(
                format!("cannot measure the disk with {}", path.display()),
                error,
            )
            .with_action("Give --dir a directory on a file system with direct I/O (not tmpfs).")
        };
        let file = open(&path, OFlags::DIRECT | OFlags::DSYNC).map_err(failed)?;
        let megabyte = AlignedBuf::new_zeroed(1 << 20);
        for offset in (0..FILE_BYTES).step_by(1 << 20) {
            rustix::io::pwrite(&file, &megabyte, offset).map_err(|e| failed(e.into()))?;
        }
        let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
        block.fill(0xa5);
        let clock = SystemClock::new();
        Ok(Floor {
            file,
            path: path.clone(),
            block,
            clock,
            next: 0,
        })
    }

    /// Overwrites blocks of 4 KiB one after another, each durable before the next.
    ///
    /// # Errors
    ///
    /// `environment`: the disk's.
    pub(super) fn measure(&mut self, writes: u64) -> Result<FloorFigures, Failure> {
        let mut latencies = Latencies::new();
        let start = self.clock.monotonic_ns();
        let mut before = start;
        for _ in 0..writes {
            rustix::io::pwrite(&self.file, &self.block, self.next).map_err(|error| {
                Failure::environment(
                    "a durable write of 4 KiB failed",
                    std::io::Error::from(error),
                )
            })?;
            self.next = (self.next + BLOCK_BYTES as u64) % FILE_BYTES;
            let now = self.clock.monotonic_ns();
            latencies.record_ns(now - before);
            before = now;
        }
        let seconds = (before - start) as f64 / 1e9;
        Ok(FloorFigures {
            writes_per_s: writes as f64 / seconds,
            latencies,
        })
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // The folder is temporary and goes as a whole; this only frees the space earlier.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes a new file from its start to its end in blocks, durable every `flush_bytes`: what a
/// sequential writer can reach. Returns bytes each second.
///
/// # Errors
///
/// `environment`: the disk's.
pub(super) fn sequential_write(
    path: &Path,
    total_bytes: u64,
    block_bytes: usize,
    blocks_per_flush: u64,
) -> Result<f64, Failure> {
    let failed = |error: std::io::Error| {
        Failure::environment(
            format!("cannot write {} sequentially", path.display()),
            error,
        )
    };
    let file = open(path, OFlags::DIRECT | OFlags::CREATE | OFlags::EXCL).map_err(failed)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, total_bytes)
        .map_err(|error| failed(error.into()))?;
    file.sync_all().map_err(failed)?;
    let mut block = AlignedBuf::new_zeroed(block_bytes);
    block.fill(0xa5);
    let clock = SystemClock::new();
    let start = clock.monotonic_ns();
    let mut written = 0;
    while written < total_bytes {
        for _ in 0..blocks_per_flush {
            rustix::io::pwrite(&file, &block, written).map_err(|error| failed(error.into()))?;
            written += block.len() as u64;
        }
        file.sync_data().map_err(failed)?;
    }
    let seconds = (clock.monotonic_ns() - start) as f64 / 1e9;
    std::fs::remove_file(path).map_err(failed)?;
    Ok(written as f64 / seconds)
}

/// Reads files from their starts to the given ends by direct reads of 1 MiB, one after another.
/// Returns the bytes and the seconds they took.
///
/// # Errors
///
/// `environment`: the disk's.
pub(super) fn sequential_read(files: &[(PathBuf, u64)]) -> Result<(u64, f64), Failure> {
    let mut buffer = AlignedBuf::new_zeroed(1 << 20);
    let clock = SystemClock::new();
    let start = clock.monotonic_ns();
    let mut total = 0;
    for (path, end) in files {
        let failed = |error: std::io::Error| {
            Failure::environment(format!("cannot read {}", path.display()), error)
        };
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("the flags of open are an int");
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(failed)?;
        let mut offset = 0;
        while offset < *end {
            let read = rustix::io::pread(&file, &mut buffer[..], offset)
                .map_err(|error| failed(error.into()))?;
            if read == 0 {
                break;
            }
            offset += read as u64;
        }
        total += offset.min(*end);
    }
    Ok((total, (clock.monotonic_ns() - start) as f64 / 1e9))
}
