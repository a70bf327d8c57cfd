//! The writer of a partition: a synchronous state machine that orders, checks, encodes, writes and
//! acknowledges.
//!
//! [`PartitionWriter::step`] does everything that can be done now and says how long to wait for
//! more. In production a
//! thread of its own calls it; a simulator calls it instead and decides when and in what order the
//! disk answers.
//!
//! Invariants, checked where they could break:
//! 1. committed <= flushed (with `flush-each-group`) <= appended; each only grows.
//! 2. Acknowledgements leave in the order of sequences, and only when everything before them is as
//!    durable as asked.
//! 3. A block that was submitted is never written again; zeros are written ahead only where no data
//!    is or will be before they land.
//! 4. After a failed write or flush nothing is acknowledged any more in this process: a later
//!    success proves nothing.
//! 5. A segment is entered only when all writes to its predecessor are durable; so a successor
//!    proves its predecessor whole.

mod ask;
mod upkeep;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use truthdb_io::{
    AlignedBuf, AppendChunk, BLOCK_BYTES, ChunkWriter, Completion, File, IoQueue, World,
};
use truthdb_log::canary::{Canary, planted};
use truthdb_log::{
    EventKeys, Place, SegmentHeader, StreamHead, segment_data_end_max, segment_path,
};

use crate::checks::{self, Scratch};
use crate::config::{Durability, EngineConfig};
use crate::error::AppendError;
use crate::gate::{AppendGate, GateBatch};
use crate::group::{FinishedGroup, GroupEncoder, PendingReply, TailChunk, framed_bytes, to_blocks};
use crate::id_window::IdWindow;
use crate::queue::{QueuedAppend, RETRY_AFTER_MS};
use crate::request::Appended;
use crate::shared::{PartitionShared, Prepared, Segment, Unsealed};
use crate::status::{PartitionState, add};
use crate::stream_cache::StreamCache;

/// Zeros are written ahead in steps of this many bytes.
const ZERO_STEP_BYTES: usize = 1 << 20;
/// Zeros are written ahead only while groups are smaller than this on average: a larger write gains
/// nothing from it.
const ZERO_GROUP_BYTES_MAX: u64 = 64 * 1024;
/// At a clean stop a segment with more data than this is sealed, so that the next start has little to scan.
pub(crate) const CLEAN_STOP_SCAN_BYTES_MAX: u64 = 8 << 20;
/// Bytes at the start of a segment file before its data.
const SEGMENT_DATA_START: u64 = truthdb_log::SEGMENT_HEADER_BYTES;

const TAG_ZERO: u64 = u64::MAX;
const TAG_SYNC: u64 = u64::MAX - 1;

/// A write or header that was submitted.
struct InFlight {
    tag: u64,
    done: bool,
    /// What to publish: a chunk up to a length.
    chunk: (Arc<AppendChunk>, usize),
    end_offset: u64,
    last_sequence: u64,
    timestamp_ns: u64,
    bytes: u64,
    padding_bytes: u64,
    is_mark: bool,
    replies: Vec<PendingReply>,
}

/// What became of an append that the writer looked at.
enum Outcome {
    /// It is in the current group.
    Encoded,
    /// It was answered.
    Answered,
    /// It has to wait: for a segment, for space in flight, or for an earlier append with its ids.
    Blocked,
}

/// Where a writer goes on; made by recovery.
pub(crate) struct WriterStart {
    pub(crate) segment: Arc<Segment>,
    pub(crate) unsealed: Arc<Unsealed>,
    /// Where the next group goes.
    pub(crate) offset: u64,
    pub(crate) next_sequence: u64,
    pub(crate) previous_checksum: u64,
    pub(crate) timestamp_ns: u64,
    pub(crate) ids: IdWindow,
    /// Check of the database's key seed.
    pub(crate) key_check: u64,
}

/// See the module's description.
pub(crate) struct PartitionWriter {
    config: Arc<EngineConfig>,
    world: World,
    pub(crate) shared: Arc<PartitionShared>,
    disk: Box<dyn IoQueue>,
    completions: Vec<Completion>,

    segment: Arc<Segment>,
    unsealed: Arc<Unsealed>,
    file: Arc<dyn File>,
    encoder: GroupEncoder,
    /// Sequence that the next event gets.
    next_sequence: u64,
    timestamp_ns: u64,
    flushed_sequence: u64,
    /// Everything in the active segment before this offset is flushed.
    flushed_offset: u64,
    ids: IdWindow,
    key_check: u64,
    streams: StreamCache,
    scratch: Scratch,
    revisions: Vec<u64>,
    heads: Vec<StreamHead>,

    waiting: VecDeque<QueuedAppend>,
    replies: Vec<PendingReply>,
    /// Who else may refuse an append.
    gate: Option<Box<dyn AppendGate>>,
    reply_vectors: Vec<Vec<PendingReply>>,
    in_flight: VecDeque<InFlight>,
    next_tag: u64,

    zeros: Arc<AppendChunk>,
    zeroing: Option<(u64, u64)>,
    written_until: u64,
    average_group_bytes: u64,

    last_group_ns: u64,
    marked: bool,
    last_sync_ns: u64,
    /// Sequence and offset that a flush under way will have made durable.
    syncing: Option<(u64, u64)>,
    written_sequence: u64,
    /// The last group was one append, and nothing else was in flight: its caller is likely to be the
    /// only one, and to come again as soon as it has its answer.
    alone: bool,
    stopping: bool,
    clean_mark: bool,
    stopped: bool,
    finished: bool,
}

impl PartitionWriter {
    pub(crate) fn new(
        config: Arc<EngineConfig>,
        world: World,
        shared: Arc<PartitionShared>,
        start: WriterStart,
    ) -> io::Result<PartitionWriter> {
        // Beside the groups there may be one write of zeros and one flush.
        let disk = world.storage.queue(config.writes_in_flight_max + 2)?;
        shared.queue.set_waker(disk.waker());
        let mut zeros = ChunkWriter::new(ZERO_STEP_BYTES);
        zeros.zero_fill_to(ZERO_STEP_BYTES);
        zeros.freeze(ZERO_STEP_BYTES);
        let place = Place {
            database_id: shared.database_id,
            partition: shared.partition,
            segment: start.segment.number,
        };
        let now = world.clock.monotonic_ns();
        let flushed = start.next_sequence - 1;
        Ok(PartitionWriter {
            world,
            disk,
            completions: Vec::with_capacity(64),
            file: Arc::clone(&start.unsealed.file),
            segment: start.segment,
            unsealed: start.unsealed,
            encoder: GroupEncoder::new(place, start.offset, start.previous_checksum),
            next_sequence: start.next_sequence,
            timestamp_ns: start.timestamp_ns,
            flushed_sequence: flushed,
            flushed_offset: start.offset,
            ids: start.ids,
            key_check: start.key_check,
            streams: StreamCache::new(config.stream_cache_entries),
            scratch: Scratch::default(),
            revisions: Vec::with_capacity(truthdb_event::BATCH_EVENTS_MAX + 1),
            heads: Vec::with_capacity(truthdb_event::BATCH_EVENTS_MAX + 1),
            waiting: VecDeque::with_capacity(config.queue_batches_max),
            replies: Vec::with_capacity(config.queue_batches_max),
            gate: None,
            reply_vectors: (0..config.writes_in_flight_max + 2)
                .map(|_| Vec::with_capacity(config.queue_batches_max))
                .collect(),
            in_flight: VecDeque::with_capacity(config.writes_in_flight_max),
            next_tag: 0,
            zeros: zeros.into_chunk(),
            zeroing: None,
            written_until: start.offset,
            average_group_bytes: 0,
            last_group_ns: now,
            marked: false,
            last_sync_ns: now,
            syncing: None,
            written_sequence: flushed,
            alone: false,
            stopping: false,
            clean_mark: false,
            stopped: false,
            finished: false,
            config,
            shared,
        })
    }

    /// Steps until the engine is shut down.
    pub(crate) fn run(mut self) {
        while let Some(timeout) = self.step() {
            let spin = self.config.lone_writer_spin;
            let comes_soon = self.alone && self.in_flight.is_empty();
            self.disk
                .spin(if comes_soon { spin } else { Duration::ZERO });
            self.wait(timeout);
        }
    }

    /// Waits for the disk or a wake-up; the next step takes what came.
    pub(crate) fn wait(&mut self, timeout_ns: Option<u64>) {
        let mut completions = std::mem::take(&mut self.completions);
        self.disk.wait(&mut completions, timeout_ns);
        self.completions = completions;
    }

    /// Does all that can be done now. Returns how long to wait at most (`Some(None)`: until woken),
    /// or `None` when finished.
    pub(crate) fn step(&mut self) -> Option<Option<u64>> {
        if self.shared.abandoned.load(Ordering::Acquire) {
            return None;
        }
        let mut completions = std::mem::take(&mut self.completions);
        self.disk.poll(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.acknowledge();
        loop {
            if self.waiting.is_empty() {
                self.shared.queue.take_all(&mut self.waiting);
            }
            // After the queue: what was submitted once there was a gate must not pass without it.
            self.take_gate();
            if self.stopped {
                self.refuse_waiting();
                break;
            }
            let encoded = self.encode_waiting();
            let submitted = self.submit_group();
            if !encoded && !submitted {
                break;
            }
        }
        self.shared
            .appended
            .store(self.next_sequence - 1, Ordering::Release);
        self.tidy_up()
    }

    /// Where the active segment's data must end at the latest.
    fn data_end_max(&self) -> u64 {
        segment_data_end_max(self.segment.segment_bytes)
    }

    fn now(&self) -> u64 {
        self.world.clock.monotonic_ns()
    }

    /// Encodes what waits until something blocks. Says whether anything was taken.
    fn encode_waiting(&mut self) -> bool {
        let mut any = false;
        while let Some(append) = self.waiting.pop_front() {
            match self.process(append) {
                Outcome::Encoded | Outcome::Answered => any = true,
                Outcome::Blocked => break,
            }
        }
        any
    }

    fn answer(&self, append: QueuedAppend, result: Result<Appended, AppendError>) -> Outcome {
        append.sink.complete(append.tag, result, append.batch);
        Outcome::Answered
    }

    fn process(&mut self, append: QueuedAppend) -> Outcome {
        let batch = &append.batch;
        let counters = &self.shared.counters;
        match checks::find_duplicate(&self.shared, &self.ids, batch) {
            Ok(checks::Duplicate::No) => {}
            Ok(checks::Duplicate::Of(appended)) => {
                add(&counters.duplicates, 1);
                let appended = self.as_durable_as_known(appended);
                return self.answer(append, Ok(appended));
            }
            Ok(checks::Duplicate::NotYetCommitted) => {
                // The first append with these ids is in flight: its fate decides this one's.
                self.waiting.push_front(append);
                return Outcome::Blocked;
            }
            Err(error) => return self.answer(append, Err(error)),
        }
        self.heads.clear();
        for stream in &batch.streams {
            match checks::stream_head(&self.shared, &mut self.streams, stream.key) {
                Ok(head) => self.heads.push(head),
                Err(error) => return self.answer(append, Err(error)),
            }
        }
        if let Err(error) = checks::expected_revisions(batch, &self.heads) {
            return match checks::appended_before(&self.shared, batch, &self.heads) {
                Ok(Some(appended)) => {
                    add(&counters.duplicates, 1);
                    let appended = self.as_durable_as_known(appended);
                    self.answer(append, Ok(appended))
                }
                Ok(None) => {
                    add(&counters.conflicts, 1);
                    self.answer(append, Err(error))
                }
                Err(error) => self.answer(append, Err(error)),
            };
        }
        match checks::condition(&self.shared, batch, &mut self.scratch) {
            Ok(None) => {}
            Ok(Some(sequence)) => {
                add(&counters.conflicts, 1);
                return self.answer(append, Err(AppendError::ConditionFailed { sequence }));
            }
            Err(error) => return self.answer(append, Err(error)),
        }
        if let Some(error) = self.ask_gate(&append.batch) {
            add(&self.shared.counters.conflicts, 1);
            return self.answer(append, Err(error));
        }
        self.place(append)
    }

    /// What was acknowledged before may still wait for its flush.
    fn as_durable_as_known(&self, appended: Appended) -> Appended {
        Appended {
            durable: appended.last_sequence <= self.flushed_sequence,
            ..appended
        }
    }

    /// Finds room for a batch that passed all checks, and encodes it.
    fn place(&mut self, append: QueuedAppend) -> Outcome {
        let framed = framed_bytes(&append.batch);
        let group = self.encoder.group_bytes();
        let end = self.encoder.group_offset() + to_blocks(group + framed) as u64;
        // One block stays for the mark that protects the segment's last group.
        let fits_segment = end + BLOCK_BYTES as u64 <= self.data_end_max();
        if group > 0 {
            let full = group + framed > self.config.group_bytes_max;
            if full || !fits_segment || !self.encoder.fits_chunk(framed) {
                self.waiting.push_front(append);
                return Outcome::Blocked;
            }
        } else if !fits_segment && let Err(outcome) = self.roll() {
            return match outcome {
                None => {
                    self.waiting.push_front(append);
                    Outcome::Blocked
                }
                Some(error) => {
                    add(&self.shared.counters.overloaded, 1);
                    self.answer(append, Err(error))
                }
            };
        }
        self.encode(append);
        Outcome::Encoded
    }

    fn encode(&mut self, append: QueuedAppend) {
        let batch = &append.batch;
        let now = self.world.clock.utc_ns();
        self.timestamp_ns = if planted(Canary::FollowClock) {
            now
        } else {
            self.timestamp_ns.max(now)
        };
        let first_sequence = self.next_sequence;
        self.revisions.clear();
        let (offset, new_chunk) = {
            for event in &batch.events {
                let head = &mut self.heads[event.stream];
                self.revisions.push(head.next_revision);
                head.next_revision += 1;
            }
            self.encoder
                .add(batch, &self.revisions, first_sequence, self.timestamp_ns)
        };
        self.note_chunk(new_chunk);
        let mut index = self.unsealed.index.write();
        index.push_batch(offset, self.timestamp_ns);
        for (event, revision) in batch.events.iter().zip(&self.revisions) {
            let head = &mut self.heads[event.stream];
            let sequence = index.push(&EventKeys {
                stream: batch.streams[event.stream].key,
                revision: *revision,
                previous_sequence: head.last_sequence,
                id: event.id_hash,
                facets: &batch.facets[event.facets.0..event.facets.1],
            });
            assert_eq!(sequence, self.next_sequence, "index and writer count alike");
            head.last_sequence = sequence;
            self.ids.push(sequence, event.id_hash.0);
            self.next_sequence += 1;
        }
        drop(index);
        for (stream, head) in batch.streams.iter().zip(&self.heads) {
            self.streams.put(stream.key, *head);
        }
        if let Some(gate) = &mut self.gate {
            gate.encoded(&GateBatch {
                batch,
                revisions: &self.revisions,
                first_sequence,
                timestamp_ns: self.timestamp_ns,
            });
        }
        let last_user = batch.user_events.max(1) - 1;
        let appended = Appended {
            partition: self.shared.partition,
            first_sequence,
            last_sequence: first_sequence + last_user as u64,
            timestamp_ns: self.timestamp_ns,
            last_revision: self.revisions[last_user],
            durable: self.config.durability == Durability::FlushEachGroup,
            duplicate: false,
        };
        let QueuedAppend { batch, sink, tag } = append;
        self.replies.push(PendingReply {
            sink,
            tag,
            appended,
            batch,
        });
    }

    fn note_chunk(&mut self, chunk: Option<TailChunk>) {
        let Some(chunk) = chunk else { return };
        let keep = self.config.tail_cache_bytes;
        let spare_max = keep / crate::group::CHUNK_BYTES + 8;
        let mut tail = self.shared.tail.write();
        tail.bytes += chunk.chunk.capacity();
        tail.chunks.push_back(chunk);
        while tail.bytes > keep && tail.chunks.len() > 1 {
            let Some(old) = tail.chunks.pop_front() else {
                break;
            };
            tail.bytes -= old.chunk.capacity();
            self.encoder.recycle(old.chunk, spare_max);
        }
    }

    fn tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    /// Gives the current group to the disk, if there is one and there is room in flight.
    fn submit_group(&mut self) -> bool {
        let bytes = self.encoder.group_bytes();
        if bytes == 0 || self.in_flight.len() >= self.config.writes_in_flight_max {
            return false;
        }
        let start = self.encoder.group_offset();
        let end = start + to_blocks(bytes) as u64;
        if self
            .zeroing
            .is_some_and(|(from, to)| start < to && from < end)
        {
            return false;
        }
        let flushed = (self.flushed_sequence, self.flushed_offset);
        let group = self
            .encoder
            .finish(flushed.0, flushed.1, self.next_sequence - 1);
        self.average_group_bytes = (self.average_group_bytes * 7 + group.source.bytes as u64) / 8;
        self.submit(group, false);
        true
    }

    fn submit(&mut self, group: FinishedGroup, is_mark: bool) {
        let tag = self.tag();
        let durable = (is_mark || self.config.durability == Durability::FlushEachGroup)
            && !planted(Canary::SkipFlush);
        let bytes = group.source.bytes as u64;
        let mut replies = self.reply_vectors.pop().unwrap_or_default();
        std::mem::swap(&mut replies, &mut self.replies);
        self.in_flight.push_back(InFlight {
            tag,
            done: planted(Canary::AckBeforeWrite),
            chunk: (Arc::clone(&group.source.chunk), group.chunk_len),
            end_offset: group.offset + bytes,
            last_sequence: group.last_sequence,
            timestamp_ns: self.timestamp_ns,
            bytes,
            padding_bytes: group.padding_bytes as u64,
            is_mark,
            replies,
        });
        self.written_until = self.written_until.max(group.offset + bytes);
        // A lone caller sends nothing before it has its answer, so this thread may as well wait for
        // the disk itself.
        let lone = self.alone && self.in_flight.len() == 1 && self.waiting.is_empty();
        if lone && !is_mark && durable {
            self.disk
                .write_at_once(&self.file, group.source, group.offset, durable, tag);
        } else {
            self.disk
                .write(&self.file, group.source, group.offset, durable, tag);
        }
        if durable {
            add(&self.shared.counters.flushes, 1);
        }
        self.last_group_ns = self.now();
        self.marked = is_mark;
        if planted(Canary::PublishEarly) {
            self.publish_early();
        }
    }

    /// The canary [`Canary::PublishEarly`].
    fn publish_early(&mut self) {
        if let Some(write) = self.in_flight.back() {
            let published = &self.unsealed.end_offset;
            published.fetch_max(write.end_offset, Ordering::AcqRel);
            let committed = &self.shared.committed;
            committed.fetch_max(write.last_sequence, Ordering::AcqRel);
        }
    }

    fn complete(&mut self, completion: Completion) {
        if self.stopped {
            // Everything in flight was answered when the first of it failed.
            return;
        }
        if let Err(error) = completion.result
            && !planted(Canary::IgnoreWriteError)
        {
            self.fail(error);
            return;
        }
        match completion.tag {
            TAG_ZERO => self.zeroing = None,
            TAG_SYNC => {
                let (sequence, offset) = self.syncing.take().expect("a flush was submitted");
                self.flushed_sequence = self.flushed_sequence.max(sequence);
                self.flushed_offset = self.flushed_offset.max(offset);
            }
            tag => {
                let found = self.in_flight.iter_mut().find(|write| write.tag == tag);
                match found {
                    Some(write) => write.done = true,
                    None => assert!(
                        planted(Canary::AckBeforeWrite),
                        "a completion belongs to a write in flight"
                    ),
                }
            }
        }
    }

    /// Acknowledges, in order, what is done.
    fn acknowledge(&mut self) {
        let mut committed = None;
        while self.in_flight.front().is_some_and(|write| write.done) && !self.stopped {
            let Some(mut write) = self.in_flight.pop_front() else {
                break;
            };
            self.encoder.publish(&write.chunk.0, write.chunk.1);
            self.unsealed
                .end_offset
                .store(write.end_offset, Ordering::Release);
            self.written_sequence = write.last_sequence;
            if self.config.durability == Durability::FlushEachGroup {
                assert!(
                    write.last_sequence >= self.flushed_sequence,
                    "flushed only grows"
                );
                self.flushed_sequence = write.last_sequence;
                self.flushed_offset = write.end_offset;
            }
            self.shared
                .timestamp_ns
                .store(write.timestamp_ns, Ordering::Release);
            self.shared
                .committed
                .store(write.last_sequence, Ordering::Release);
            committed = Some(write.last_sequence);
            self.count(&write);
            let others = self.shared.queue.depth().0 + self.waiting.len() + self.in_flight.len();
            self.alone = write.replies.len() == 1 && others == 0;
            for reply in write.replies.drain(..) {
                let PendingReply {
                    sink,
                    tag,
                    appended,
                    batch,
                } = reply;
                if self.alone {
                    sink.complete_alone(tag, Ok(appended), batch);
                } else {
                    sink.complete(tag, Ok(appended), batch);
                }
            }
            self.reply_vectors.push(write.replies);
        }
        if let Some(committed) = committed {
            for hook in self.shared.hooks.read().iter() {
                hook(committed);
            }
        }
    }

    fn count(&self, write: &InFlight) {
        let counters = &self.shared.counters;
        if write.is_mark {
            add(&counters.marks, 1);
        }
        add(&counters.groups, 1);
        add(&counters.group_bytes, write.bytes);
        add(&counters.padding_bytes, write.padding_bytes);
        add(&counters.batches, write.replies.len() as u64);
        let events = write
            .replies
            .iter()
            .map(|r| r.batch.events.len() as u64)
            .sum();
        add(&counters.events, events);
        let bytes = write
            .replies
            .iter()
            .map(|r| r.batch.stored_bytes() as u64)
            .sum();
        add(&counters.event_bytes, bytes);
    }

    /// Goes on in the next segment. `Err(None)`: not now; `Err(Some(error))`: refuse the append.
    fn roll(&mut self) -> Result<(), Option<AppendError>> {
        let in_flight = !self.in_flight.is_empty() && !planted(Canary::RollInFlight);
        if in_flight || self.zeroing.is_some() || self.syncing.is_some() {
            return Err(None);
        }
        let end = self.unsealed.end_offset.load(Ordering::Acquire);
        if self.config.durability != Durability::FlushEachGroup && self.flushed_offset < end {
            // A successor proves its predecessor whole, so the predecessor is flushed first,
            // whatever is promised.
            self.submit_sync();
            return Err(None);
        }
        let closed = self.shared.closed_segments();
        if closed >= self.config.closed_segments_max {
            self.shared.wake_maintenance();
            return Err(Some(self.overloaded("closed_segments_max")));
        }
        let Some(prepared) = self.shared.take_prepared() else {
            self.shared.wake_maintenance();
            return Err(match self.shared.disk_full() {
                Some((free_bytes, needed_bytes)) => Some(AppendError::DiskFull {
                    partition: self.shared.partition,
                    free_bytes,
                    needed_bytes,
                }),
                None => None,
            });
        };
        let header = SegmentHeader {
            base_sequence: self.next_sequence,
            previous_checksum: self.encoder.previous_checksum,
            trim: self.shared.trim_point(),
            ..prepared.header
        };
        if let Err(error) = self.begin_segment(&prepared, &header) {
            self.fail(error);
            return Err(None);
        }
        let written_until = prepared.zeroed_until;
        let (segment, unsealed) = self.shared.enter_segment(prepared, &header);
        self.segment = segment;
        self.unsealed = unsealed;
        self.file = Arc::clone(&self.unsealed.file);
        self.encoder
            .enter_segment(self.segment.number, SEGMENT_DATA_START);
        self.written_until = written_until;
        self.flushed_offset = SEGMENT_DATA_START;
        self.shared.wake_maintenance();
        Ok(())
    }

    fn overloaded(&self, what: &'static str) -> AppendError {
        AppendError::Overloaded {
            partition: self.shared.partition,
            what,
            retry_after_ms: RETRY_AFTER_MS,
        }
    }

    /// Gives the prepared file its header and its name, durably. Nothing is in flight, so
    /// everything before is whole.
    fn begin_segment(&self, prepared: &Prepared, header: &SegmentHeader) -> io::Result<()> {
        let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
        block.copy_from_slice(&header.encode());
        prepared.file.write_at(&block, BLOCK_BYTES, 0)?;
        prepared.file.sync()?;
        let path = segment_path(header.place.partition, header.place.segment);
        self.world
            .storage
            .durable_rename(&prepared.new_path, &path)?;
        add(&self.shared.counters.flushes, 2);
        Ok(())
    }

    fn submit_sync(&mut self) {
        if self.syncing.is_none() {
            let end = self.unsealed.end_offset.load(Ordering::Acquire);
            self.syncing = Some((self.written_sequence, end));
            self.last_sync_ns = self.now();
            self.disk.sync(&self.file, TAG_SYNC);
            add(&self.shared.counters.flushes, 1);
        }
    }

    /// A write or flush failed: the end of this partition's appends in this process.
    fn fail(&mut self, error: io::Error) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        let path = &self.segment.path;
        let reason: Arc<str> = format!(
            "a write or flush of {path} failed ({error}); nothing more is written by this process. \
             Check the disk, then restart: recovery says what is stored"
        )
        .into();
        tracing::error!(partition = self.shared.partition, path = %path, error = %error,
            "write failed, partition stopped; check the disk and restart");
        self.shared.set_state(PartitionState::Stopped {
            reason: reason.to_string(),
        });
        self.shared.queue.close(Arc::clone(&reason));
        let source = Arc::new(error);
        let partition = self.shared.partition;
        for write in self.in_flight.drain(..) {
            for reply in write.replies {
                let error = AppendError::Unknown {
                    partition,
                    source: Arc::clone(&source),
                };
                reply.sink.complete(reply.tag, Err(error), reply.batch);
            }
        }
        for reply in self.replies.drain(..) {
            let error = AppendError::Stopped {
                partition,
                reason: Arc::clone(&reason),
            };
            reply.sink.complete(reply.tag, Err(error), reply.batch);
        }
        self.refuse_waiting();
    }

    fn refuse_waiting(&mut self) {
        let reason: Arc<str> = match self.shared.state() {
            PartitionState::Stopped { reason } => reason.into(),
            _ => "the server is stopping".into(),
        };
        let partition = self.shared.partition;
        while let Some(append) = self.waiting.pop_front() {
            let error = AppendError::Stopped {
                partition,
                reason: Arc::clone(&reason),
            };
            append.sink.complete(append.tag, Err(error), append.batch);
        }
    }
}
