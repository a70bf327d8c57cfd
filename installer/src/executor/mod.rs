//! Carries a [`Plan`] out, step by step, on a disk or on an image file.
//!
//! The order is what makes a power cut harmless. First both ends of the disk are erased, so that
//! nothing boots from it. Then everything is written and flushed. Only then come, in this order, the
//! backup partition table, the first sector of the EFI system partition, and the first MiB of the disk
//! with the primary table: a disk whose installation was interrupted is never bootable, and running
//! it again starts from nothing it has to trust. That everything was read back is noted last of all.
//!
//! File systems are never mounted. Each is made away from the disk (the EFI system partition in
//! memory, the data partition in a sparse scratch file by `mke2fs` and `debugfs`), and the blocks that
//! were written there are copied. So every write to the disk goes through one [`Target`], in an order
//! that is ours, and everything that was written is read back and compared.
//!
//! What this module does not do: it decides nothing. It needs no partition nodes, never asks the
//! kernel to read a partition table, and touches no disk but its target.

mod esp;
mod ext4;
mod probe;
mod sparse;
mod superblock;
mod tables;
mod target;
mod verify;

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::plan::{ByteRange, DataPlan, MIB, Plan, Sha256};

pub use esp::{EspContent, read_esp};
pub use ext4::Tools;
pub use sparse::SparseImage;
pub use superblock::Superblock;
pub use tables::{Table, TableState, read_table};
pub use target::{FileTarget, IdentityProbe, Target};

/// Bytes that are written or read in one call.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes at an edge of the disk that hold a partition table, whatever the sectors.
const EDGE_BYTES: usize = 64 << 10;

/// The steps, in order. A mode that keeps the data skips those that would write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Is it still the disk that was chosen?
    CheckTarget,
    /// Make both file systems away from the disk.
    Prepare,
    /// Erase what was there.
    Erase,
    /// Write and read back at places all over the disk.
    ProbeDisk,
    /// Copy the data partition.
    WriteData,
    /// Copy the EFI system partition, all but its first sector.
    WriteSystem,
    /// The backup partition table, then the sector that makes the system readable, then the first MiB.
    Activate,
    /// Read everything back.
    Verify,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Step; 8] = [
        Step::CheckTarget,
        Step::Prepare,
        Step::Erase,
        Step::ProbeDisk,
        Step::WriteData,
        Step::WriteSystem,
        Step::Activate,
        Step::Verify,
    ];

    /// What it is called on screens and in logs.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Step::CheckTarget => "Check that it is the chosen disk",
            Step::Erase => "Erase what was there",
            Step::ProbeDisk => "Test the disk",
            Step::Prepare => "Prepare the file systems",
            Step::WriteData => "Write the data partition",
            Step::WriteSystem => "Write the system",
            Step::Activate => "Make the disk bootable",
            Step::Verify => "Read everything back",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// How far the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The step that is being done.
    pub step: Step,
    /// Bytes of it that are done.
    pub done_bytes: u64,
    /// Bytes of it in all; 0 for a step that is not measured in bytes.
    pub total_bytes: u64,
}

/// What happened to the disk before an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// Nothing was written: the disk is as it was.
    Nothing,
    /// The old content is gone, and the disk does not boot. Doing it again is safe.
    NotBootable,
    /// The partition with the system is incomplete; the data partition was not written.
    SystemOnly,
    /// The old content is gone; everything was written and was not read back to its end. It may boot.
    NotVerified,
    /// The same of the system; the data partition was not written.
    SystemNotVerified,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Changed::Nothing => "Nothing was written to the disk.",
            Changed::NotBootable => {
                "What was on the disk is lost, at least in part, and it does not boot. Trying \
                 again is safe."
            }
            Changed::SystemOnly => {
                "The system on the disk is incomplete; the data was not touched. Trying again is safe."
            }
            Changed::NotVerified => {
                "What was on the disk is lost. A new system was written, which may start, and was not \
                 read back to its end: do not use it. Trying again is safe."
            }
            Changed::SystemNotVerified => {
                "The system was written, which may start, and was not read back to its end; the data \
                 was not touched. Trying again is safe."
            }
        })
    }
}

/// Why carrying out a plan stopped.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause} {changed}", step.title())]
pub struct ExecuteError {
    /// The step that failed.
    pub step: Step,
    /// What went wrong.
    #[source]
    pub cause: Cause,
    /// What it means for the disk.
    pub changed: Changed,
}

/// What went wrong. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The disk is not the one the plan was made for.
    #[error("this is not the disk that was chosen ({0}). Choose the disk again.")]
    OtherDisk(String),
    /// The data partition that was to be kept holds no data of ours.
    #[error(
        "there is no data to be kept on the disk's data partition: {0}. Install anew, or choose another disk."
    )]
    NoData(String),
    /// A write would have changed data that is kept: it was not made.
    #[error("the plan would have changed the data that it keeps, at byte {offset}. Report this.")]
    KeptData {
        /// Byte of the disk.
        offset: u64,
    },
    /// The disk was taken away in the middle.
    #[error(
        "the disk {0} is no longer there: it was taken out, or its cable, port or controller failed. \
         Connect it again and look again, or choose another disk."
    )]
    Gone(String),
    /// The disk refuses a write.
    #[error(
        "the disk refuses to write at byte {offset} ({source}). Replace it, or choose another one."
    )]
    Write {
        /// Byte of the disk.
        offset: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// The disk refuses a read.
    #[error(
        "the disk cannot be read at byte {offset} ({source}). Replace it, or choose another one."
    )]
    Read {
        /// Byte of the disk.
        offset: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// The disk cannot make writes durable.
    #[error("the disk refuses to flush its cache ({0}). Replace it, or choose another one.")]
    Flush(io::Error),
    /// What was read is not what was written.
    #[error(
        "the disk returns other bytes than were written, at byte {offset}. It is broken, or smaller \
         than it says. Replace it."
    )]
    Mismatch {
        /// Byte of the disk.
        offset: u64,
    },
    /// A structure on the disk is not as planned.
    #[error(
        "{what} is not as planned: {reason}. Try again; if it happens again, replace the disk."
    )]
    NotAsPlanned {
        /// The structure.
        what: &'static str,
        /// How it differs.
        reason: String,
    },
    /// A tool is missing or failed.
    #[error("{tool} failed: {reason}")]
    Tool {
        /// The program.
        tool: PathBuf,
        /// Its last words.
        reason: String,
    },
    /// The scratch directory cannot be used.
    #[error(
        "no scratch file in {directory}: {reason}. It must be on a file system with sparse files and room, \
         such as tmpfs."
    )]
    Scratch {
        /// The directory.
        directory: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file system could not be made in memory.
    #[error("the system partition cannot be made: {0}")]
    Fat(io::Error),
    /// The partition table could not be made.
    #[error("the partition table cannot be made: {0}")]
    Table(String),
}

/// Bytes that were written and what they must hash to.
#[derive(Debug, Clone, Copy)]
struct Written {
    range: ByteRange,
    sha256: Sha256,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Bytes written to the disk, all steps together.
    pub written_bytes: u64,
    /// Bytes read back and compared.
    pub verified_bytes: u64,
    /// What `e2fsck` said about the data partition, one line. One that is kept is looked at before anything
    /// is written, a new one afterwards.
    pub data_check: String,
}

struct Run<'a> {
    plan: &'a Plan,
    target: &'a mut dyn Target,
    tools: &'a Tools,
    progress: &'a mut dyn FnMut(Progress),
    step: Step,
    written: Vec<Written>,
    written_bytes: u64,
    /// Whether the sectors that make the disk start are being written, or are.
    may_start: bool,
}

/// Carries out the plan. Progress is told at the beginning of each step and about every MiB.
///
/// # Errors
///
/// [`ExecuteError`], which says the step, the cause, and what it means for the disk.
pub fn run(
    plan: &Plan,
    target: &mut dyn Target,
    tools: &Tools,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ExecuteError> {
    let mut run = Run {
        plan,
        target,
        tools,
        progress,
        step: Step::CheckTarget,
        written: Vec::new(),
        written_bytes: 0,
        may_start: false,
    };
    run.all().map_err(|cause| ExecuteError {
        step: run.step,
        changed: run.changed(),
        cause: run.or_gone(cause),
    })
}

/// Whether the scratch directory has room for what a plan makes there.
///
/// # Errors
///
/// [`Cause::Scratch`], with how much is missing.
pub fn check_room(plan: &Plan, tools: &Tools) -> Result<(), Cause> {
    ext4::check_room(plan, &tools.scratch)
}

impl Run<'_> {
    fn all(&mut self) -> Result<Report, Cause> {
        self.begin(Step::CheckTarget, 0);
        self.check_target()?;
        // What can be made without the disk is made before it is touched.
        self.begin(Step::Prepare, 0);
        let kept_data = ext4::check_kept(self)?;
        let data = ext4::make(self.plan, self.tools)?;
        let system = esp::make(self.plan)?;
        let tables = tables::make(self.plan)?;
        // That took seconds, in which a disk can be changed.
        self.check_target()?;

        self.begin(
            Step::Erase,
            self.plan.erase.iter().map(|range| range.bytes()).sum(),
        );
        self.erase()?;
        probe::run(self)?;
        if let Some(data) = data {
            data.copy(self)?;
        }
        esp::copy(self, &system)?;
        self.flush()?;
        self.begin(Step::Activate, 0);
        // With data to be kept, the table stays valid throughout; both copies are made equal again.
        self.write(tables.backup_start, &tables.backup)?;
        self.flush()?;
        self.may_start = true;
        esp::activate(self, &system)?;
        self.flush()?;
        self.write(0, &tables.primary)?;
        self.flush()?;
        let (verified_bytes, data_check) = verify::run(self)?;
        esp::complete(self, &system)?;
        Ok(Report {
            written_bytes: self.written_bytes,
            verified_bytes,
            data_check: kept_data.unwrap_or(data_check),
        })
    }

    fn check_target(&mut self) -> Result<(), Cause> {
        self.target
            .check_identity(&self.plan.target)
            .map_err(Cause::OtherDisk)?;
        tables::check_kept(self)
    }

    /// What a disk that is gone answers is chance ("no space left", "input/output error"), and what it
    /// means is not: that it is gone.
    fn or_gone(&mut self, cause: Cause) -> Cause {
        if matches!(cause, Cause::OtherDisk(_)) || !self.target.is_gone(&self.plan.target) {
            return cause;
        }
        tracing::error!(%cause, "the disk is gone");
        let target = &self.plan.target;
        let known = [&target.model, &target.serial].map(String::as_str);
        let mut name: Vec<&str> = known.into_iter().filter(|text| !text.is_empty()).collect();
        let path = format!("({})", target.path.display());
        name.push(&path);
        Cause::Gone(name.join(" "))
    }

    fn changed(&self) -> Changed {
        match (self.plan.destroys_data(), self.may_start) {
            _ if self.written_bytes == 0 => Changed::Nothing,
            (true, false) => Changed::NotBootable,
            (true, true) => Changed::NotVerified,
            (false, false) => Changed::SystemOnly,
            (false, true) => Changed::SystemNotVerified,
        }
    }

    fn begin(&mut self, step: Step, total_bytes: u64) {
        self.step = step;
        tracing::info!(step = step.title(), total_bytes, "begin");
        self.tell(0, total_bytes);
    }

    fn tell(&mut self, done_bytes: u64, total_bytes: u64) {
        (self.progress)(Progress {
            step: self.step,
            done_bytes,
            total_bytes,
        });
    }

    fn erase(&mut self) -> Result<(), Cause> {
        // First what makes the disk readable, alone and flushed: a power cut while the rest is
        // erased must not leave a table that leads to half a system.
        let ranges = self.plan.erase.clone();
        let zeros = vec![0u8; CHUNK_BYTES];
        if let (Some(first), Some(last)) = (ranges.first(), ranges.last()) {
            self.write_unchecked(first.start, &zeros[..EDGE_BYTES])?;
            if self.plan.destroys_data() {
                let edge = EDGE_BYTES as u64;
                self.write_unchecked(last.end.saturating_sub(edge), &zeros[..EDGE_BYTES])?;
            }
            self.flush()?;
        }
        let total: u64 = ranges.iter().map(|range| range.bytes()).sum();
        let mut done = 0;
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let bytes = (range.end - at).min(MIB);
                let piece = &zeros[..usize::try_from(bytes).unwrap_or(CHUNK_BYTES)];
                self.write_unchecked(at, piece)?;
                at += bytes;
                done += bytes;
                self.tell(done, total);
            }
        }
        self.flush()
    }

    /// Writes bytes that are read back at the end.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Cause> {
        self.write_unchecked(offset, bytes)?;
        self.written.push(Written {
            range: ByteRange {
                start: offset,
                end: offset + bytes.len() as u64,
            },
            sha256: Sha256::of(bytes),
        });
        Ok(())
    }

    /// Writes bytes that are overwritten later, or looked at in their own way.
    fn write_unchecked(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Cause> {
        let data = self.plan.range(&self.plan.data);
        let is_within = offset < data.end && data.start < offset + bytes.len() as u64;
        if is_within && self.plan.data_plan == DataPlan::Keep {
            return Err(Cause::KeptData { offset });
        }
        // Counted before: a write that fails may still have reached the disk.
        self.written_bytes += bytes.len() as u64;
        self.target
            .write_at(offset, bytes)
            .map_err(|source| Cause::Write { offset, source })
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Cause> {
        self.target
            .read_at(offset, bytes)
            .map_err(|source| Cause::Read { offset, source })
    }

    fn flush(&mut self) -> Result<(), Cause> {
        self.target.flush().map_err(Cause::Flush)
    }
}
