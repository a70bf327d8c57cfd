//! What the folds publish and readers take: versions of tables, catalogues, states.
//!
//! Locks are held for a few pointer copies, never across I/O or a guest's call.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use truthdb_state::{SnapshotReader, View};

use crate::answer::FoldState;
use crate::catalogue::Catalogue;
use crate::command::Command;

/// A version of a line's tables.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) sequence: u64,
    pub(crate) timestamp_ns: u64,
    pub(crate) view: View,
}

/// What is known of a line from outside.
#[derive(Debug, Clone)]
pub(crate) struct LinePublic {
    /// The newest version.
    pub(crate) version: Version,
    /// Older versions, at boundaries from which a fold may go on, ascending.
    pub(crate) retained: VecDeque<Version>,
    pub(crate) state: FoldState,
    pub(crate) events: u64,
    pub(crate) emitted: u64,
    pub(crate) fuel: u64,
    pub(crate) emitted_through: u64,
}

/// A line, as it is published by its fold.
#[derive(Debug)]
pub(crate) struct LineShared {
    pub(crate) module: String,
    pub(crate) line: u32,
    inner: Mutex<LinePublic>,
    changed: Condvar,
}

impl LineShared {
    pub(crate) fn new(module: &str, line: u32, version: Version) -> LineShared {
        LineShared {
            module: module.to_owned(),
            line,
            inner: Mutex::new(LinePublic {
                version,
                retained: VecDeque::new(),
                state: FoldState::CatchingUp,
                events: 0,
                emitted: 0,
                fuel: 0,
                emitted_through: 0,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn get(&self) -> LinePublic {
        self.inner.lock().clone()
    }

    pub(crate) fn version(&self) -> (Version, FoldState) {
        let inner = self.inner.lock();
        (inner.version.clone(), inner.state.clone())
    }

    /// The newest version in memory that is not after `sequence`, and whether it may be gone on from.
    pub(crate) fn version_at(&self, sequence: u64) -> Option<(Version, bool)> {
        let inner = self.inner.lock();
        if inner.version.sequence <= sequence {
            return Some((inner.version.clone(), false));
        }
        let at = inner.retained.partition_point(|v| v.sequence <= sequence);
        let found = at
            .checked_sub(1)
            .and_then(|last| inner.retained.get(last))?;
        Some((found.clone(), true))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut LinePublic)) {
        change(&mut self.inner.lock());
        self.changed.notify_all();
    }

    /// Waits for a change, at most this long. False if the time is over.
    pub(crate) fn wait_beyond(&self, sequence: u64, timeout: Duration) -> bool {
        let mut inner = self.inner.lock();
        if inner.version.sequence > sequence || matches!(inner.state, FoldState::Halted { .. }) {
            return true;
        }
        !self.changed.wait_for(&mut inner, timeout).timed_out()
    }
}

/// Wakes a thread that waits.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    due: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn wake(&self) {
        *self.due.lock() = true;
        self.changed.notify_all();
    }

    /// Waits until woken or the time is over.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut due = self.due.lock();
        while !*due {
            match timeout {
                Some(timeout) => {
                    if self.changed.wait_for(&mut due, timeout).timed_out() {
                        break;
                    }
                }
                None => self.changed.wait(&mut due),
            }
        }
        *due = false;
    }
}

/// Lines by module and line.
pub(crate) type Lines = BTreeMap<(String, u32), Arc<LineShared>>;

/// What the fold of a partition shares.
#[derive(Debug)]
pub(crate) struct PartitionShared {
    pub(crate) partition: u32,
    pub(crate) catalogue: RwLock<Arc<Catalogue>>,
    /// Control events up to here are in the catalogue.
    pub(crate) controlled: AtomicU64,
    pub(crate) lines: RwLock<Lines>,
    pub(crate) commands: Mutex<VecDeque<Command>>,
    pub(crate) signal: Signal,
    /// Readers that wait for `controlled`.
    waiters: Mutex<()>,
    controlled_changed: Condvar,
    pub(crate) stopping: AtomicBool,
    /// Sequence of the newest snapshot.
    pub(crate) snapshot: AtomicU64,
    pub(crate) problem: Mutex<Option<String>>,
    /// The partition's snapshots, once they are open.
    pub(crate) snapshots: RwLock<Option<SnapshotReader>>,
}

impl PartitionShared {
    pub(crate) fn new(partition: u32) -> PartitionShared {
        PartitionShared {
            partition,
            catalogue: RwLock::new(Arc::new(Catalogue::default())),
            controlled: AtomicU64::new(0),
            lines: RwLock::new(Lines::new()),
            commands: Mutex::new(VecDeque::new()),
            signal: Signal::default(),
            waiters: Mutex::new(()),
            controlled_changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            snapshot: AtomicU64::new(0),
            problem: Mutex::new(None),
            snapshots: RwLock::new(None),
        }
    }

    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.read())
    }

    pub(crate) fn line(&self, module: &str, line: u32) -> Option<Arc<LineShared>> {
        self.lines.read().get(&(module.to_owned(), line)).cloned()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn controlled(&self) -> u64 {
        self.controlled.load(Ordering::Acquire)
    }

    pub(crate) fn set_controlled(&self, sequence: u64) {
        self.controlled.store(sequence, Ordering::Release);
        let _guard = self.waiters.lock();
        self.controlled_changed.notify_all();
    }

    /// Waits until control events up to a sequence are known, or for any change, at most this long.
    pub(crate) fn wait_controlled(&self, wanted: u64, timeout: Duration) {
        let mut guard = self.waiters.lock();
        if self.controlled() < wanted {
            self.controlled_changed.wait_for(&mut guard, timeout);
        }
    }
}
