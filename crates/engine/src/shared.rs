//! What the writer, the maintenance and the readers of a partition share.
//!
//! Readers take immutable views: the list of segments behind one `Arc`, each segment's body behind
//! another, the tail
//! cache's chunks by reference. Locks are held for a few pointer copies or index look-ups, never across I/O.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};
use truthdb_io::{BLOCK_BYTES, File};
use truthdb_log::canary::{Canary, planted};
use truthdb_log::{
    ActiveIndex, HeadRuns, SegmentHeader, SegmentKind, SegmentReader, TrimPoint, segment_path,
};

use crate::cache::ReadCache;
use crate::group::TailChunk;
use crate::queue::AppendQueue;
use crate::sealed::Sealed;
use crate::status::{AtomicCounters, PartitionState};

/// A segment that is not sealed: the active one, or one that waits for its seal.
pub(crate) struct Unsealed {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn File>,
    pub(crate) reader: SegmentReader,
    /// Its events' index; the writer pushes, readers look up what is committed.
    pub(crate) index: RwLock<ActiveIndex>,
    /// Everything before this offset of the file is committed.
    pub(crate) end_offset: AtomicU64,
    /// No more is written to it; it waits for its seal.
    pub(crate) closed: AtomicBool,
}

/// What a segment is at the moment.
#[derive(Clone)]
pub(crate) enum SegmentBody {
    Unsealed(Arc<Unsealed>),
    Sealed(Arc<Sealed>),
}

/// A segment of a partition.
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) base_sequence: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) path: String,
    body: RwLock<SegmentBody>,
}

impl Segment {
    pub(crate) fn new(
        number: u32,
        base_sequence: u64,
        segment_bytes: u64,
        path: String,
        body: SegmentBody,
    ) -> Segment {
        Segment {
            number,
            base_sequence,
            segment_bytes,
            path,
            body: RwLock::new(body),
        }
    }

    pub(crate) fn body(&self) -> SegmentBody {
        self.body.read().clone()
    }

    /// The seal is made: from now on readers use the sealed file. Returns what was before.
    pub(crate) fn set_sealed(&self, sealed: Arc<Sealed>) -> SegmentBody {
        std::mem::replace(&mut *self.body.write(), SegmentBody::Sealed(sealed))
    }
}

/// The segments of a partition, oldest first, and where its readable history begins.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) first_sequence: u64,
}

impl View {
    /// Index of the segment that has, or would have, this sequence.
    pub(crate) fn locate(&self, sequence: u64) -> Option<usize> {
        self.segments
            .partition_point(|s| s.base_sequence <= sequence)
            .checked_sub(1)
    }
}

/// Chunks of the most recent log data, oldest first.
#[derive(Default)]
pub(crate) struct Tail {
    pub(crate) chunks: VecDeque<TailChunk>,
    /// Sum of their capacities.
    pub(crate) bytes: usize,
}

/// The next segment's file, made ahead by the maintenance.
pub(crate) struct Prepared {
    /// The header it will get, but for what is known only then.
    pub(crate) header: SegmentHeader,
    /// Its name until it is entered.
    pub(crate) new_path: String,
    pub(crate) file: Arc<dyn File>,
    pub(crate) index: ActiveIndex,
    /// Zeros are written up to here.
    pub(crate) zeroed_until: u64,
}

/// Work signal for the maintenance thread.
#[derive(Default)]
pub(crate) struct MaintenanceSignal {
    due: Mutex<bool>,
    changed: Condvar,
    stopping: AtomicBool,
}

impl MaintenanceSignal {
    pub(crate) fn wake(&self) {
        *self.due.lock() = true;
        self.changed.notify_one();
    }

    /// The engine stops: what is closed is still sealed, nothing else is begun.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits until woken or the time is over.
    pub(crate) fn wait(&self, timeout: std::time::Duration) {
        let mut due = self.due.lock();
        if !*due {
            self.changed.wait_for(&mut due, timeout);
        }
        *due = false;
    }
}

/// Called with the last committed sequence after each group commit.
pub(crate) type CommitHook = Box<dyn Fn(u64) + Send + Sync>;

/// See the module's description.
pub(crate) struct PartitionShared {
    pub(crate) database_id: [u8; 16],
    pub(crate) partition: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) cache: Arc<ReadCache>,
    pub(crate) queue: AppendQueue,
    pub(crate) committed: AtomicU64,
    pub(crate) appended: AtomicU64,
    pub(crate) timestamp_ns: AtomicU64,
    pub(crate) view: RwLock<Arc<View>>,
    pub(crate) tail: RwLock<Tail>,
    /// Replaced as a whole by the maintenance.
    pub(crate) heads: RwLock<Arc<HeadRuns>>,
    pub(crate) hooks: RwLock<Vec<CommitHook>>,
    /// A gate that the writer has not taken yet.
    pub(crate) gate: Mutex<Option<Box<dyn crate::AppendGate>>>,
    pub(crate) gate_waiting: AtomicBool,
    /// Events from here on are not trimmed.
    pub(crate) trim_floor: AtomicU64,
    pub(crate) counters: Arc<AtomicCounters>,
    pub(crate) stop_requested: AtomicBool,
    pub(crate) abandoned: AtomicBool,
    /// The trim that was committed last.
    trim: Mutex<TrimPoint>,
    /// Chain hash that the oldest segment's footer must name as its predecessor's.
    chain_before_first: Mutex<[u8; 32]>,
    state: RwLock<PartitionState>,
    prepared: Mutex<Option<Prepared>>,
    /// The writer has taken the prepared file and has not entered it yet: the next number is in use.
    entering: AtomicBool,
    /// Free and needed bytes when the last preparation failed for want of space.
    full: Mutex<Option<(u64, u64)>>,
    pub(crate) spare_indexes: Mutex<Vec<ActiveIndex>>,
    maintenance: Arc<MaintenanceSignal>,
}

/// What a partition begins with; made by recovery.
pub(crate) struct SharedStart {
    pub(crate) database_id: [u8; 16],
    pub(crate) partition: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) cache: Arc<ReadCache>,
    pub(crate) queue: AppendQueue,
    pub(crate) committed: u64,
    pub(crate) timestamp_ns: u64,
    pub(crate) view: View,
    pub(crate) heads: HeadRuns,
    pub(crate) state: PartitionState,
    pub(crate) counters: Arc<AtomicCounters>,
    pub(crate) trim: TrimPoint,
    pub(crate) chain_before_first: [u8; 32],
    pub(crate) maintenance: Arc<MaintenanceSignal>,
}

impl PartitionShared {
    pub(crate) fn new(start: SharedStart) -> PartitionShared {
        PartitionShared {
            database_id: start.database_id,
            partition: start.partition,
            segment_bytes: start.segment_bytes,
            cache: start.cache,
            queue: start.queue,
            committed: AtomicU64::new(start.committed),
            appended: AtomicU64::new(start.committed),
            timestamp_ns: AtomicU64::new(start.timestamp_ns),
            view: RwLock::new(Arc::new(start.view)),
            tail: RwLock::new(Tail::default()),
            heads: RwLock::new(Arc::new(start.heads)),
            hooks: RwLock::new(Vec::new()),
            gate: Mutex::new(None),
            gate_waiting: AtomicBool::new(false),
            trim_floor: AtomicU64::new(u64::MAX),
            counters: start.counters,
            stop_requested: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            trim: Mutex::new(start.trim),
            chain_before_first: Mutex::new(start.chain_before_first),
            state: RwLock::new(start.state),
            prepared: Mutex::new(None),
            entering: AtomicBool::new(false),
            full: Mutex::new(None),
            spare_indexes: Mutex::new(Vec::new()),
            maintenance: start.maintenance,
        }
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read())
    }

    /// Replaces the view by a changed copy.
    pub(crate) fn change_view<R>(&self, change: impl FnOnce(&mut View) -> R) -> R {
        let mut guard = self.view.write();
        let mut view = View::clone(&guard);
        let result = change(&mut view);
        *guard = Arc::new(view);
        result
    }

    pub(crate) fn state(&self) -> PartitionState {
        let state = self.state.read().clone();
        match (&state, *self.full.lock()) {
            (PartitionState::Open, Some(_)) if self.prepared.lock().is_none() => {
                PartitionState::DiskFull
            }
            _ => state,
        }
    }

    pub(crate) fn set_state(&self, state: PartitionState) {
        *self.state.write() = state;
    }

    pub(crate) fn wake_maintenance(&self) {
        self.maintenance.wake();
    }

    /// Closed segments that wait for their seal.
    pub(crate) fn closed_segments(&self) -> usize {
        let view = self.view.read();
        let closed = |segment: &&Arc<Segment>| match &*segment.body.read() {
            SegmentBody::Unsealed(unsealed) => unsealed.closed.load(Ordering::Acquire),
            SegmentBody::Sealed(_) => false,
        };
        view.segments
            .iter()
            .rev()
            .take_while(|s| !is_sealed(s))
            .filter(closed)
            .count()
    }

    /// Whether the next segment is to be prepared. While the writer enters the one it took, the
    /// answer is no: that one's file still has the name that the next preparation would use.
    pub(crate) fn needs_prepared(&self) -> bool {
        let prepared = self.prepared.lock();
        prepared.is_none() && !self.entering.load(Ordering::Acquire)
    }

    pub(crate) fn put_prepared(&self, prepared: Prepared) {
        *self.prepared.lock() = Some(prepared);
        *self.full.lock() = None;
        self.queue.wake();
    }

    pub(crate) fn take_prepared(&self) -> Option<Prepared> {
        let mut prepared = self.prepared.lock();
        let taken = prepared.take();
        self.entering.store(taken.is_some(), Ordering::Release);
        taken
    }

    pub(crate) fn set_disk_full(&self, free_and_needed: Option<(u64, u64)>) {
        *self.full.lock() = free_and_needed;
    }

    pub(crate) fn disk_full(&self) -> Option<(u64, u64)> {
        *self.full.lock()
    }

    pub(crate) fn trim_point(&self) -> TrimPoint {
        *self.trim.lock()
    }

    pub(crate) fn chain_before_first(&self) -> [u8; 32] {
        *self.chain_before_first.lock()
    }

    /// A trim was committed: its start is that of the readable history from now on.
    pub(crate) fn set_trim_point(&self, point: TrimPoint) {
        let mut trim = self.trim.lock();
        if point.first_sequence <= trim.first_sequence {
            return;
        }
        *trim = point;
        drop(trim);
        self.change_view(|view| {
            view.first_sequence = view.first_sequence.max(point.first_sequence)
        });
        self.maintenance.wake();
    }

    /// Whether the oldest segment was trimmed.
    pub(crate) fn has_removable(&self) -> bool {
        let view = self.view();
        let mut wanted = self.trim_point().first_segment;
        if wanted > 1 && planted(Canary::TrimOneMore) {
            wanted += 1;
        }
        view.segments.len() > 1 && view.segments[0].number < wanted && is_sealed(&view.segments[0])
    }

    /// Takes the oldest segment out of the view if it was trimmed.
    pub(crate) fn take_removable(&self) -> Option<Arc<Segment>> {
        if !self.has_removable() {
            return None;
        }
        let first = Arc::clone(self.view().segments.first()?);
        let SegmentBody::Sealed(sealed) = first.body() else {
            return None;
        };
        *self.chain_before_first.lock() = sealed.footer.chain;
        self.change_view(|view| Some(view.segments.remove(0)))
    }

    /// Marks a segment as complete: nothing is written to it any more.
    pub(crate) fn close_segment(&self, segment: &Segment) {
        if let SegmentBody::Unsealed(unsealed) = &*segment.body.read() {
            unsealed.closed.store(true, Ordering::Release);
        }
        self.wake_maintenance();
    }

    /// Closes the last segment and makes the prepared one the last.
    pub(crate) fn enter_segment(
        &self,
        prepared: Prepared,
        header: &SegmentHeader,
    ) -> (Arc<Segment>, Arc<Unsealed>) {
        let mut index = prepared.index;
        index.reset(header.base_sequence);
        let reader = SegmentReader::new(
            Arc::clone(&prepared.file),
            header.place,
            SegmentKind::Active,
        );
        let unsealed = Arc::new(Unsealed {
            header: *header,
            file: prepared.file,
            reader,
            index: RwLock::new(index),
            end_offset: AtomicU64::new(BLOCK_BYTES as u64),
            closed: AtomicBool::new(false),
        });
        let segment = Arc::new(Segment::new(
            header.place.segment,
            header.base_sequence,
            header.segment_bytes,
            segment_path(header.place.partition, header.place.segment),
            SegmentBody::Unsealed(Arc::clone(&unsealed)),
        ));
        self.change_view(|view| {
            if let Some(last) = view.segments.last() {
                self.close_segment(last);
            }
            view.segments.push(Arc::clone(&segment));
        });
        self.entering.store(false, Ordering::Release);
        (segment, unsealed)
    }
}

pub(crate) fn is_sealed(segment: &Segment) -> bool {
    matches!(&*segment.body.read(), SegmentBody::Sealed(_))
}
