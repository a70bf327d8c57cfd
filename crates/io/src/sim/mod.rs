//! A simulated world: disk, clock and randomness that depend on one seed and on what is done to
//! them.
//!
//! Model: a [`SimWorld`] is a machine. [`SimWorld::world`] boots it: the [`World`] it gives, and
//! everything opened through it, works until power fails, and answers `BrokenPipe` ever after. Boot
//! again for fresh handles. Time passes only as operations and waits take it. Queued operations
//! complete while time passes, in an order drawn from the seed.
//!
//! What survives a crash: durable writes, and what a completed sync covers. Of each other sector
//! (512 bytes) that was written any of its contents may be there; of each write under way all,
//! nothing, or some sectors; of each change of a directory that was not synced, all or nothing.
//!
//! Invariants:
//! 1. One thread, one seed, the same calls: the same results, times, and [`SimWorld::trace_hash`].
//! 2. A fault that is switched off draws no random number.
//!
//! It does not simulate several machines, partial failure of a directory's own blocks, or the
//! ordering that a journaling file system gives beyond what was synced.

mod disk;
mod faults;
mod handles;
mod names;
mod prng;
mod state;
mod trace;

use std::io;
use std::sync::{Arc, Mutex};

pub use faults::{SimFault, SimFaults, SimOp};
pub use handles::{SimClock, SimRandom, SimStorage};
pub use prng::SimPrng;

use disk::Disk;
use faults::Planned;
use handles::{Shared, lock};
use names::{Node, parent};
use state::State;

use crate::World;

/// A simulated machine; clones are the same machine.
#[derive(Clone)]
pub struct SimWorld {
    state: Shared,
    seed: u64,
}

/// The whole contents of a simulated disk, volatile parts included.
#[derive(Clone)]
pub struct SimImage {
    disk: Disk,
}

impl SimWorld {
    /// A machine with an empty disk of 1 TiB, booted, at 2024-01-01T00:00:00Z.
    pub fn new(seed: u64) -> SimWorld {
        SimWorld {
            state: Arc::new(Mutex::new(State::new(seed))),
            seed,
        }
    }

    /// The seed, for the message of a failure.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Disk, clock and randomness of the present boot.
    pub fn world(&self) -> World {
        World {
            storage: self.storage(),
            clock: self.clock(),
            random: self.random(),
        }
    }

    /// The disk of the present boot.
    pub fn storage(&self) -> Arc<SimStorage> {
        Arc::new(SimStorage::new(&self.state))
    }

    /// The clock; it goes on over crashes.
    pub fn clock(&self) -> Arc<SimClock> {
        Arc::new(SimClock {
            state: Arc::clone(&self.state),
        })
    }

    /// The randomness that the code under test sees. It does not influence the faults.
    pub fn random(&self) -> Arc<SimRandom> {
        Arc::new(SimRandom {
            state: Arc::clone(&self.state),
        })
    }

    /// Power fails now, and the machine boots again: handles of before are useless.
    pub fn crash(&self) {
        lock(&self.state).crash();
    }

    /// The process dies, as by `kill -9`, and the machine lives: the kernel finishes what is under
    /// way, nothing that was written is lost, and locks are free. Handles of before are useless.
    pub fn kill(&self) {
        lock(&self.state).kill();
    }

    /// How often the world was booted: 1 at first, one more after each crash, kill or restore.
    /// Tells whether a planned or random crash has struck.
    pub fn boots(&self) -> u64 {
        lock(&self.state).boots
    }

    /// Sets what goes wrong at random from now on.
    pub fn set_faults(&self, faults: SimFaults) {
        lock(&self.state).faults = faults;
    }

    /// What goes wrong at random.
    pub fn faults(&self) -> SimFaults {
        lock(&self.state).faults.clone()
    }

    /// Lets `fault` strike after `passes` more operations of kind `op` (of any kind, if none): 0 is
    /// the next one. Queued operations count when they are given to the device.
    pub fn fail_nth(&self, op: Option<SimOp>, passes: u64, fault: SimFault) {
        lock(&self.state).plan.push(Planned { op, passes, fault });
    }

    /// Drops the faults of [`SimWorld::fail_nth`] that have not struck; gives their number.
    pub fn clear_planned(&self) -> usize {
        std::mem::take(&mut lock(&self.state).plan).len()
    }

    /// Operations begun so far. Together with [`SimWorld::fail_nth`] a test can fail each in turn.
    pub fn operations(&self) -> u64 {
        lock(&self.state).operations
    }

    /// Simulated time since the first boot, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        lock(&self.state).now_ns
    }

    /// Lets time pass; operations that are due meanwhile complete.
    pub fn advance_ns(&self, ns: u64) {
        let mut state = lock(&self.state);
        let until = state.now_ns.saturating_add(ns);
        state.advance_to(until);
    }

    /// Moves the wall clock, forward or back; the monotonic clock goes on undisturbed.
    pub fn jump_utc_ns(&self, by: i64) {
        let mut state = lock(&self.state);
        state.utc_start_ns = state.utc_start_ns.saturating_add_signed(by);
    }

    /// Sets the size of the file system in bytes.
    pub fn set_capacity(&self, bytes: u64) {
        lock(&self.state).disk.capacity = bytes;
    }

    /// Bit rot: flips the bits of `mask` in the byte at `offset`, on the medium and in memory
    /// alike.
    ///
    /// # Errors
    /// If there is no file at `path`.
    pub fn corrupt(&self, path: &str, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = lock(&self.state);
        let inode = state.disk.names.file(path)?;
        state.disk.flip(inode, offset, mask);
        Ok(())
    }

    /// Latent sector errors: reads of these bytes' blocks fail with `EIO` until they are written.
    ///
    /// # Errors
    /// If there is no file at `path`.
    pub fn make_unreadable(&self, path: &str, offset: u64, bytes: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        let inode = state.disk.names.file(path)?;
        state.disk.make_unreadable(inode, offset, bytes);
        Ok(())
    }

    /// Contents of a file as they are seen now. Not an operation: no fault, no time.
    ///
    /// # Errors
    /// If there is no file at `path`, or a block of it is unreadable.
    pub fn read_file(&self, path: &str) -> io::Result<Vec<u8>> {
        let state = lock(&self.state);
        let inode = state.disk.names.file(path)?;
        let len = usize::try_from(state.disk.len(inode));
        let mut bytes = vec![0; len.map_err(|_| io::ErrorKind::FileTooLarge)?];
        state.disk.read(inode, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces or creates a file, durably, with its directories. Not an operation: no fault, no
    /// time.
    ///
    /// # Errors
    /// If the path is invalid or a file stands where a directory is needed.
    pub fn write_file(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        crate::file::check_path(path)?;
        let disk = &mut lock(&self.state).disk;
        for (end, _) in path.match_indices('/') {
            match disk.names.get(&path[..end]) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => disk.names.link(&path[..end], Node::Dir),
            }
            disk.names.sync(parent(&path[..end]));
        }
        let inode = match disk.names.get(path) {
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(inode)) => inode,
            None => {
                let inode = disk.create();
                disk.names.link(path, Node::File(inode));
                disk.names.sync(parent(path));
                inode
            }
        };
        disk.set_len(inode, 0);
        disk.write(inode, 0, bytes, false);
        disk.flush(inode, disk.stamp());
        Ok(())
    }

    /// Removes a file, durably. Not an operation: no fault, no time.
    ///
    /// # Errors
    /// If there is no file at `path`.
    pub fn remove_file(&self, path: &str) -> io::Result<()> {
        let disk = &mut lock(&self.state).disk;
        disk.names.file(path)?;
        disk.names.unlink(path);
        disk.names.sync(parent(path));
        disk.collect();
        Ok(())
    }

    /// Paths of all files, sorted.
    pub fn paths(&self) -> Vec<String> {
        lock(&self.state)
            .disk
            .names
            .files()
            .map(str::to_owned)
            .collect()
    }

    /// A copy of the disk; cheap, since unchanged blocks are shared. Operations under way are not
    /// in it.
    pub fn image(&self) -> SimImage {
        SimImage {
            disk: lock(&self.state).disk.clone(),
        }
    }

    /// Puts a copy of `image` in the disk's place and boots from it.
    pub fn restore(&self, image: &SimImage) {
        lock(&self.state).replace_disk(image.disk.clone());
    }

    /// A hash over all operations, their data, results, and times.
    pub fn trace_hash(&self) -> u64 {
        lock(&self.state).trace.hash()
    }

    /// Starts (or stops) keeping the trace as text as well.
    pub fn keep_trace(&self, keep: bool) {
        lock(&self.state).trace.keep_text(keep);
    }

    /// The trace since it is kept, one line per event.
    pub fn trace(&self) -> Vec<String> {
        lock(&self.state).trace.lines().to_vec()
    }
}

impl std::fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimWorld")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}
