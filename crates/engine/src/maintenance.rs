//! What goes on beside the appends: making the next segment, sealing closed ones, merging indexes, trimming.
//!
//! One thread for the database. Each [`Maintenance::step`] does one piece of work, so that a
//! simulator can stop between
//! any two. Nothing here is needed for an acknowledgement, except that the writer waits when no
//! segment is prepared.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use truthdb_io::{AlignedBuf, OpenMode, World};
use truthdb_log::{
    ActiveIndex, Compression, HeadRuns, Manifest, Place, SealRequest, SealStep, SegmentHeader,
    SegmentKind, TrimPoint, seal_segment_beside, segment_index_path, segment_new_path,
    write_trim_point,
};

use crate::append::TRIM_STREAM;
use crate::config::EngineConfig;
use crate::sealed::{OpenSegments, Sealed};
use crate::shared::{MaintenanceSignal, PartitionShared, Prepared, Segment, SegmentBody, Unsealed};
use crate::status::{PartitionState, add};
use crate::trim::{TrimTo, plan_trim, record_trim};

/// How often retention is looked at, and a failed preparation is tried again.
const INTERVAL: Duration = Duration::from_millis(500);
/// Zeros written at the start of a prepared segment, so that its first small groups do not wait for any.
const PREPARED_ZEROS_BYTES: usize = 1 << 20;

/// Why a segment could not be sealed now.
#[derive(Debug, thiserror::Error)]
enum SealFailure {
    #[error("the seal failed")]
    Seal(#[from] truthdb_log::SealError),
    #[error("the new index cannot be read")]
    Index(#[from] crate::error::ReadError),
    #[error("the stream heads could not be stored")]
    Heads(#[from] truthdb_log::HeadsError),
}

/// So many closed segments of all partitions, and seals hurry: they read ahead, and do not pause.
const HURRY_AT: usize = 2;
/// Pause after each MiB that a seal has written: a flush of an append is not to find much more than that.
const WRITE_PAUSE: Duration = Duration::from_millis(4);

/// See the module's description.
pub(crate) struct Maintenance {
    world: World,
    config: Arc<EngineConfig>,
    partitions: Vec<Arc<PartitionShared>>,
    files: Arc<OpenSegments>,
    signal: Arc<MaintenanceSignal>,
    preparer: Arc<crate::append::Preparer>,
    /// Partitions whose last seal failed, with the monotonic time to try again: one bad segment
    /// must not keep the others waiting.
    retry_at: Vec<u64>,
    /// Trim points that this process made durable.
    stored_trims: Vec<Option<TrimPoint>>,
    manifest: Manifest,
    retention_at: u64,
    /// Whether it runs beside writers, on a thread of its own.
    is_paced: bool,
}

impl Maintenance {
    pub(crate) fn new(
        world: World,
        config: Arc<EngineConfig>,
        partitions: Vec<Arc<PartitionShared>>,
        files: Arc<OpenSegments>,
        signal: Arc<MaintenanceSignal>,
        preparer: Arc<crate::append::Preparer>,
        manifest: Manifest,
    ) -> Maintenance {
        let retry_at = vec![0; partitions.len()];
        let stored_trims = vec![None; partitions.len()];
        Maintenance {
            world,
            config,
            partitions,
            files,
            signal,
            preparer,
            retry_at,
            stored_trims,
            manifest,
            retention_at: 0,
            is_paced: false,
        }
    }

    /// Works until the engine is shut down and nothing closed is left unsealed.
    pub(crate) fn run(mut self) {
        self.is_paced = true;
        if let Err(error) = truthdb_io::lower_current_thread_priority() {
            tracing::debug!(error = %error, "the maintenance thread keeps the priority of the others");
        }
        loop {
            while self.step() {}
            if self.signal.is_stopping() {
                return;
            }
            self.signal.wait(INTERVAL);
        }
    }

    /// Does one piece of work. Says whether there was any.
    pub(crate) fn step(&mut self) -> bool {
        for index in 0..self.partitions.len() {
            let shared = Arc::clone(&self.partitions[index]);
            if self.prepare(index, &shared)
                || self.seal(index, &shared)
                || self.merge(index, &shared)
                || self.remove_trimmed(index, &shared)
            {
                return true;
            }
        }
        self.retention()
    }

    fn is_due(&self, index: usize) -> bool {
        self.world.clock.monotonic_ns() >= self.retry_at[index]
    }

    fn retry_later(&mut self, index: usize) {
        let interval = u64::try_from(INTERVAL.as_nanos()).expect("half a second fits");
        self.retry_at[index] = self.world.clock.monotonic_ns() + interval;
    }

    fn may_prepare(&self, index: usize, shared: &PartitionShared) -> bool {
        self.config.ingest
            && shared.needs_prepared()
            && !self.signal.is_stopping()
            && self.is_due(index)
            && !matches!(shared.state(), PartitionState::Stopped { .. })
    }

    /// Makes the file of the next segment ahead of its use.
    fn prepare(&mut self, index: usize, shared: &PartitionShared) -> bool {
        if !self.may_prepare(index, shared) {
            return false;
        }
        let (number, new_path) = next_segment(shared);
        match self.make_segment_file(shared, number, &new_path) {
            Ok(prepared) => {
                shared.put_prepared(prepared);
                true
            }
            Err(error) => {
                if let Err(cleanup) = remove_if_there(&self.world, &new_path) {
                    tracing::warn!(path = %new_path, error = %cleanup, "cannot remove the unfinished file");
                }
                self.note_prepare_error(shared, &new_path, &error);
                self.retry_later(index);
                false
            }
        }
    }

    fn note_prepare_error(&self, shared: &PartitionShared, path: &str, error: &std::io::Error) {
        let full = matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        if shared.disk_full().is_none() {
            tracing::warn!(path, error = %error,
                "cannot prepare the next segment; appends stop when the active one is full. \
                Free space (or mend the disk): the server goes on by itself");
        }
        let free = self
            .world
            .storage
            .space()
            .map_or(0, |space| space.free_bytes);
        // Any failure to make the file has the same effect and the same cure as a full disk: wait,
        // and try again.
        shared.set_disk_full(Some((
            if full {
                free.min(shared.segment_bytes - 1)
            } else {
                free
            },
            shared.segment_bytes,
        )));
        shared.queue.wake();
    }

    fn make_segment_file(
        &self,
        shared: &PartitionShared,
        number: u32,
        new_path: &str,
    ) -> std::io::Result<Prepared> {
        remove_if_there(&self.world, new_path)?;
        let file = self.world.storage.open(new_path, OpenMode::CreateNew)?;
        file.allocate(shared.segment_bytes)?;
        let zeros = AlignedBuf::new_zeroed(PREPARED_ZEROS_BYTES);
        file.write_at(&zeros, PREPARED_ZEROS_BYTES, 0)?;
        file.sync()?;
        let index = shared
            .spare_indexes
            .lock()
            .pop()
            .unwrap_or_else(|| ActiveIndex::new(1));
        let header = SegmentHeader {
            kind: SegmentKind::Active,
            place: Place {
                database_id: shared.database_id,
                partition: shared.partition,
                segment: number,
            },
            base_sequence: 1,
            segment_bytes: shared.segment_bytes,
            previous_checksum: 0,
            trim: TrimPoint::NONE,
            created_ns: self.world.clock.utc_ns(),
        };
        Ok(Prepared {
            header,
            new_path: new_path.to_owned(),
            file,
            index,
            zeroed_until: PREPARED_ZEROS_BYTES as u64,
        })
    }

    /// Seals the oldest closed segment.
    fn seal(&mut self, index: usize, shared: &PartitionShared) -> bool {
        if !self.is_due(index) {
            return false;
        }
        let view = shared.view();
        let unsealed = view
            .segments
            .iter()
            .position(|s| !crate::shared::is_sealed(s));
        let Some(at) = unsealed else { return false };
        let segment = &view.segments[at];
        let SegmentBody::Unsealed(body) = segment.body() else {
            return false;
        };
        if !body.closed.load(Ordering::Acquire) {
            return false;
        }
        let previous_chain = match at.checked_sub(1).map(|before| view.segments[before].body()) {
            Some(SegmentBody::Sealed(before)) => before.footer.chain,
            Some(SegmentBody::Unsealed(_)) => return false,
            None => shared.chain_before_first(),
        };
        match self.seal_one(shared, segment, &body, previous_chain) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(path = %segment.path, error = %crate::error::chain(&error),
                    "cannot seal the segment; it stays readable, and sealing is tried again");
                self.retry_later(index);
                false
            }
        }
    }

    fn seal_one(
        &self,
        shared: &PartitionShared,
        segment: &Segment,
        body: &Arc<Unsealed>,
        previous_chain: [u8; 32],
    ) -> Result<(), SealFailure> {
        let end_offset = body.end_offset.load(Ordering::Acquire);
        let result = {
            let index = body.index.read();
            let request = SealRequest {
                place: body.header.place,
                data_end: end_offset,
                previous_chain,
                trim: body.header.trim,
                compression: if self.config.compress {
                    Compression::Zstd
                } else {
                    Compression::None
                },
                key_check: self.files.hasher.seed().check(),
                index: &index,
            };
            let is_gentle = self.is_last_closed();
            let mut failed = false;
            seal_segment_beside(&self.world.storage, &request, is_gentle, &mut |step| {
                self.while_sealing(step, &mut failed);
            })?
        };
        add(&shared.counters.seals, 1);
        add(
            &shared.counters.packed_bytes_saved,
            end_offset.saturating_sub(result.bytes_after),
        );
        let sealed = Arc::new(Sealed::new(result.footer, &self.files, &shared.counters));
        // Heads first: a reader that finds the segment sealed must find its streams in the runs.
        let index = sealed.index()?;
        let mut heads = HeadRuns::clone(&shared.heads.read());
        if heads.last_segment() < segment.number {
            heads.add_segment(&index)?;
            *shared.heads.write() = Arc::new(heads);
        }
        let old = segment.set_sealed(sealed);
        shared.queue.wake();
        recycle(shared, old, body);
        Ok(())
    }

    /// After each MiB of a seal: next segments are made where the writer took the last one, since it cannot wait for
    /// the seal; and what is written is spread over time, as long as no other segment waits. What fails is left to
    /// [`Maintenance::prepare`], after the seal.
    fn while_sealing(&self, step: SealStep, failed: &mut bool) {
        for (index, other) in self.partitions.iter().enumerate() {
            if *failed || !self.may_prepare(index, other) {
                continue;
            }
            let (number, new_path) = next_segment(other);
            match self.make_segment_file(other, number, &new_path) {
                Ok(prepared) => other.put_prepared(prepared),
                Err(_) => *failed = true,
            }
        }
        let has_time = self.is_last_closed() && !self.signal.is_stopping();
        if self.is_paced && step == SealStep::Written && has_time {
            self.signal.wait(WRITE_PAUSE);
        }
    }

    /// Whether at most the segment being sealed waits for its seal, in all partitions: they share this thread.
    fn is_last_closed(&self) -> bool {
        let closed = self.partitions.iter().map(|one| one.closed_segments());
        closed.sum::<usize>() < HURRY_AT
    }

    /// Merges four runs of stream heads into one, if there are.
    fn merge(&mut self, index: usize, shared: &PartitionShared) -> bool {
        if !self.is_due(index) || self.signal.is_stopping() {
            return false;
        }
        let mut heads = HeadRuns::clone(&shared.heads.read());
        match heads.merge_once() {
            Ok(true) => {
                *shared.heads.write() = Arc::new(heads);
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(partition = shared.partition, error = %crate::error::chain(&error),
                    "cannot merge the runs of stream heads; look-ups go on with more of them");
                self.retry_later(index);
                false
            }
        }
    }

    /// Removes one segment that was trimmed, once the trim point is durable.
    fn remove_trimmed(&mut self, index: usize, shared: &PartitionShared) -> bool {
        if !self.is_due(index) || !shared.has_removable() {
            return false;
        }
        let point = shared.trim_point();
        if self.stored_trims[index] != Some(point) {
            let storage = self.world.storage.as_ref();
            let stored = write_trim_point(storage, &self.manifest, shared.partition, point);
            if let Err(error) = stored {
                tracing::warn!(partition = shared.partition, error = %crate::error::chain(&error),
                    "cannot store the trim point; trimmed files stay until that works");
                self.retry_later(index);
                return false;
            }
            self.stored_trims[index] = Some(point);
        }
        let Some(segment) = shared.take_removable() else {
            return false;
        };
        let paths = [
            segment.path.clone(),
            segment_index_path(shared.partition, segment.number),
        ];
        self.files.forget(shared.partition, segment.number);
        shared.cache.forget(shared.partition, segment.number);
        for path in paths {
            if let Err(error) = remove_if_there(&self.world, &path) {
                tracing::warn!(path = %path, error = %error,
                    "cannot remove a trimmed file; the next start tries again");
            }
        }
        add(&shared.counters.trimmed_segments, 1);
        true
    }

    /// Applies the retention policy now and then.
    fn retention(&mut self) -> bool {
        let policy = self.config.retention;
        let now = self.world.clock.monotonic_ns();
        if !self.config.ingest
            || (policy.age_max.is_none() && policy.bytes_max.is_none())
            || now < self.retention_at
            || self.signal.is_stopping()
        {
            return false;
        }
        self.retention_at =
            now + u64::try_from(INTERVAL.as_nanos()).expect("half a second fits") * 20;
        // Of a damaged partition nothing is removed.
        for shared in self.partitions.iter().filter(|one| one.fence().is_none()) {
            let utc = self.world.clock.utc_ns();
            let before = policy.age_max.map(|age| {
                TrimTo::Time(utc.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
            });
            for to in before
                .into_iter()
                .chain(policy.bytes_max.map(TrimTo::Bytes))
            {
                let plan = plan_trim(shared, to);
                if plan.segments.is_empty() {
                    continue;
                }
                if let Err(error) = record_trim(shared, &self.preparer, &plan) {
                    tracing::warn!(partition = shared.partition, stream = TRIM_STREAM,
                        error = %crate::error::chain(&error),
                        "retention could not be recorded; nothing was removed");
                }
            }
        }
        false
    }
}

/// Number of the segment after the newest one, and the path of its file until it is entered.
fn next_segment(shared: &PartitionShared) -> (u32, String) {
    let view = shared.view();
    let number = view.segments.last().map_or(0, |segment| segment.number) + 1;
    (number, segment_new_path(shared.partition, number))
}

/// Keeps the memory of an index that no reader uses any more.
fn recycle(shared: &PartitionShared, old: SegmentBody, body: &Arc<Unsealed>) {
    drop(old);
    // A reader may still hold it; then its memory is freed with the last of them.
    let mut spare = shared.spare_indexes.lock();
    if spare.len() < 2 && Arc::strong_count(body) == 1 {
        let mut index = body.index.write();
        spare.push(std::mem::replace(&mut *index, ActiveIndex::new(1)));
    }
}

fn remove_if_there(world: &World, path: &str) -> std::io::Result<()> {
    match world.storage.durable_remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
