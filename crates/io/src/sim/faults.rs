//! What can go wrong in the simulated world, and when.

use std::io;

use super::prng::SimPrng;

/// A kind of operation, for [`super::SimWorld::fail_nth`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimOp {
    /// Opening an existing file.
    Open,
    /// Creating a file.
    Create,
    /// A read, queued or not.
    Read,
    /// A write, queued or not.
    Write,
    /// A sync of a file, queued or not.
    Sync,
    /// Reserving space.
    Allocate,
    /// Setting a length.
    SetLen,
    /// Listing a directory.
    List,
    /// Creating a directory.
    CreateDir,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Remove,
    /// Syncing a directory.
    SyncDir,
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimFault {
    /// It fails with `EIO`. A write may have been stored in part; after a failed sync some of the
    /// file's volatile blocks never become durable, whatever a later sync says.
    Error,
    /// It fails with `ENOSPC` and does nothing.
    NoSpace,
    /// It succeeds and does nothing: a lost write, a sync or directory change that is not durable.
    /// Where there is nothing to lose (reads, opens, lists) it fails with `EIO`.
    Lost,
    /// A write lands on another block or another file, a read returns another block; both succeed.
    /// Other operations fail with `EIO`.
    Misdirected,
    /// A read fails with `EIO`, and so does every later read of its blocks until they are written
    /// again. Other operations fail with `EIO`.
    Latent,
    /// Power fails while the operation is under way: it may have happened, in part or not at all.
    Crash,
}

/// Probabilities in parts per million of operations, and the speed of the disk.
///
/// The default is a healthy disk that reorders.
#[derive(Debug, Clone)]
pub struct SimFaults {
    /// Reads that fail with `EIO`.
    pub read_error_ppm: u32,
    /// Reads that find their blocks unreadable from now on.
    pub latent_error_ppm: u32,
    /// Reads that return another block of the file.
    pub misdirected_read_ppm: u32,
    /// Writes that fail with `EIO`.
    pub write_error_ppm: u32,
    /// Writes that are acknowledged and never stored.
    pub lost_write_ppm: u32,
    /// Writes that land elsewhere.
    pub misdirected_write_ppm: u32,
    /// Syncs that fail with `EIO`.
    pub sync_error_ppm: u32,
    /// Creations of files and directories, reservations and growing lengths that fail with
    /// `ENOSPC`.
    pub no_space_ppm: u32,
    /// Creations, renames, removals and syncs of directories that fail with `EIO`.
    pub directory_error_ppm: u32,
    /// Operations of any kind during which power fails.
    pub crash_ppm: u32,
    /// Durable writes that, like a device flush, also make durable what was written before them.
    /// The others are forced to the medium alone (`FUA`). The default is one half: code that needs
    /// the flush must sync.
    pub durable_write_flushes_ppm: u32,
    /// Shortest time of an operation in nanoseconds.
    pub latency_ns_min: u64,
    /// Longest time of an operation in nanoseconds, unless it is slow.
    pub latency_ns_max: u64,
    /// Operations that take `slow_factor` times as long.
    pub slow_ppm: u32,
    /// How much longer slow operations take.
    pub slow_factor: u64,
    /// Whether operations of a queue complete in another order than they were submitted in.
    pub reorder: bool,
}

impl Default for SimFaults {
    fn default() -> SimFaults {
        SimFaults {
            read_error_ppm: 0,
            latent_error_ppm: 0,
            misdirected_read_ppm: 0,
            write_error_ppm: 0,
            lost_write_ppm: 0,
            misdirected_write_ppm: 0,
            sync_error_ppm: 0,
            no_space_ppm: 0,
            directory_error_ppm: 0,
            crash_ppm: 0,
            durable_write_flushes_ppm: 500_000,
            latency_ns_min: 20_000,
            latency_ns_max: 400_000,
            slow_ppm: 0,
            slow_factor: 50,
            reorder: true,
        }
    }
}

impl SimFaults {
    /// The fault of one operation, if any.
    pub(super) fn draw(&self, op: SimOp, prng: &mut SimPrng) -> Option<SimFault> {
        let choices: &[(u32, SimFault)] = match op {
            SimOp::Read => &[
                (self.read_error_ppm, SimFault::Error),
                (self.latent_error_ppm, SimFault::Latent),
                (self.misdirected_read_ppm, SimFault::Misdirected),
            ],
            SimOp::Write => &[
                (self.write_error_ppm, SimFault::Error),
                (self.lost_write_ppm, SimFault::Lost),
                (self.misdirected_write_ppm, SimFault::Misdirected),
            ],
            SimOp::Sync => &[(self.sync_error_ppm, SimFault::Error)],
            SimOp::Create | SimOp::CreateDir => &[
                (self.no_space_ppm, SimFault::NoSpace),
                (self.directory_error_ppm, SimFault::Error),
            ],
            SimOp::Allocate | SimOp::SetLen => &[(self.no_space_ppm, SimFault::NoSpace)],
            SimOp::Rename | SimOp::Remove | SimOp::SyncDir => {
                &[(self.directory_error_ppm, SimFault::Error)]
            }
            SimOp::Open | SimOp::List => &[],
        };
        if prng.chance_ppm(self.crash_ppm) {
            return Some(SimFault::Crash);
        }
        choices
            .iter()
            .find(|(ppm, _)| prng.chance_ppm(*ppm))
            .map(|(_, fault)| *fault)
    }

    /// How long one operation takes, in nanoseconds.
    pub(super) fn latency_ns(&self, prng: &mut SimPrng) -> u64 {
        let latency = prng.between(self.latency_ns_min, self.latency_ns_max);
        if prng.chance_ppm(self.slow_ppm) {
            latency.saturating_mul(self.slow_factor)
        } else {
            latency
        }
    }
}

/// A fault that waits for its operation.
#[derive(Debug)]
pub(super) struct Planned {
    /// Which operations count; all if none.
    pub(super) op: Option<SimOp>,
    /// How many of them pass before.
    pub(super) passes: u64,
    pub(super) fault: SimFault,
}

/// What an operation under a fault that does not succeed gives.
pub(super) fn fault_error(fault: SimFault) -> io::Error {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    match fault {
        SimFault::NoSpace => io::Error::from_raw_os_error(ENOSPC),
        SimFault::Crash => power_failed(),
        _ => io::Error::from_raw_os_error(EIO),
    }
}

/// What everything gives that belongs to an earlier boot.
pub(super) fn power_failed() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the simulated machine has lost power",
    )
}
