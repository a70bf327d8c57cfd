//! The engine: what the server, the tools and the simulator hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use truthdb_event::partition_of;
use truthdb_io::World;

use crate::append::{AppendBatch, AppendSink, EncodedEvents, Preparer, WaitSink};
use crate::append::{CURSOR_EVENT_TYPE, CURSOR_STREAM_PREFIX};
use crate::config::EngineConfig;
use crate::error::{AppendError, ReadError, TrimError};
use crate::maintenance::Maintenance;
use crate::open::{OpenReport, PartitionSlot};
use crate::pages::{read_page, read_stream_page};
use crate::queue::QueuedAppend;
use crate::request::{
    Appended, Cursor, Direction, Filter, ReadFrom, ReadPage, ReadRequest, RevisionFrom, StreamHead,
    StreamPage, StreamReadRequest,
};
use crate::shared::{MaintenanceSignal, PartitionShared, Segment, SegmentBody, is_sealed};
use crate::status::{EngineStatus, PartitionState, PartitionStatus, add};
use crate::trim::{self, TrimPlan, TrimTo, plan_trim};
use crate::writer::PartitionWriter;

/// Stack of a writer's thread, bytes: a gate may run foreign code on it.
const WRITER_STACK_BYTES: usize = 8 << 20;

/// An open database. Cloning is cheap; the last clone does not stop it: call [`Engine::shutdown`].
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) world: World,
    pub(crate) config: Arc<EngineConfig>,
    pub(crate) manifest: truthdb_log::Manifest,
    pub(crate) preparer: Arc<Preparer>,
    pub(crate) partitions: Vec<PartitionSlot>,
    pub(crate) report: OpenReport,
    pub(crate) signal: Arc<MaintenanceSignal>,
    pub(crate) threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    /// Held until the engine is shut down.
    pub(crate) lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

/// What a shutdown left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Partitions that were marked as cleanly stopped.
    pub clean: Vec<u32>,
    /// Partitions that had failed before, with the reason.
    pub failed: Vec<(u32, String)>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("partitions", &self.inner.partitions.len())
            .finish_non_exhaustive()
    }
}

/// The machines of an engine that somebody else drives: a simulator, or a test.
pub struct Stepper {
    pub(crate) writers: Vec<Option<PartitionWriter>>,
    pub(crate) maintenance: Maintenance,
}

impl Stepper {
    /// Lets the writer of a partition do what it can. `None`: it has finished (or the partition has none).
    /// Else how long to wait at most before the next step, nanoseconds; `Some(None)`: until
    /// something happens.
    pub fn step_writer(&mut self, partition: usize) -> Option<Option<u64>> {
        let next = self.writers[partition].as_mut()?.step();
        if next.is_none() {
            self.writers[partition] = None;
        }
        next
    }

    /// Waits for the disk of a partition's writer, at most this long, and takes what it answers.
    pub fn wait_writer(&mut self, partition: usize, timeout_ns: Option<u64>) {
        if let Some(writer) = &mut self.writers[partition] {
            writer.wait(timeout_ns);
        }
    }

    /// Does one piece of maintenance. Says whether there was any.
    pub fn step_maintenance(&mut self) -> bool {
        self.maintenance.step()
    }
}

/// The end of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedEnd {
    /// Number of the segment.
    pub segment: u32,
    /// Its last sequence.
    pub last_sequence: u64,
    /// Its chain hash, which covers all of the partition's history up to it.
    pub chain: [u8; 32],
}

fn sealed_end(segment: &Segment) -> Option<SealedEnd> {
    let SegmentBody::Sealed(sealed) = segment.body() else {
        return None;
    };
    Some(SealedEnd {
        segment: segment.number,
        last_sequence: sealed.footer.last_sequence,
        chain: sealed.footer.chain,
    })
}

impl Engine {
    /// Opens a database and starts its threads: one writer for each partition, one for maintenance.
    ///
    /// Damaged partitions come up fenced, the others serve.
    ///
    /// # Errors
    /// What keeps the whole database from opening; see [`crate::OpenError`].
    pub fn open(world: World, config: EngineConfig) -> Result<Engine, crate::OpenError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (engine, stepper) = Engine::open_with(world, config, cores)?;
        let mut threads = engine.inner.threads.lock();
        let cpus = engine.inner.config.writer_cpus.clone();
        for (partition, writer) in stepper.writers.into_iter().enumerate() {
            let Some(writer) = writer else { continue };
            let cpu = (!cpus.is_empty()).then(|| cpus[partition % cpus.len().max(1)]);
            let name = format!("writer-{partition}");
            let builder = std::thread::Builder::new().name(name);
            let spawned = builder.stack_size(WRITER_STACK_BYTES).spawn(move || {
                if let Some(cpu) = cpu
                    && let Err(error) = truthdb_io::pin_current_thread(cpu)
                {
                    tracing::warn!(partition, cpu, error = %error, "cannot pin the writer; it runs unpinned");
                }
                writer.run();
            });
            threads.push(spawned.map_err(|source| crate::OpenError::Thread { source })?);
        }
        let maintenance = stepper.maintenance;
        let spawned = std::thread::Builder::new()
            .name("maintenance".to_owned())
            .spawn(move || maintenance.run());
        threads.push(spawned.map_err(|source| crate::OpenError::Thread { source })?);
        drop(threads);
        Ok(engine)
    }

    /// What opening found and did.
    pub fn report(&self) -> &OpenReport {
        &self.inner.report
    }

    /// The database's id.
    pub fn database_id(&self) -> [u8; 16] {
        self.inner.manifest.database_id
    }

    /// How many partitions the database has.
    pub fn partition_count(&self) -> u32 {
        self.inner.manifest.partition_count
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    /// The partition of a stream.
    pub fn partition_of(&self, stream: &str) -> u32 {
        partition_of(stream, self.partition_count())
    }

    /// Validates and hashes a batch on the caller's thread.
    ///
    /// # Errors
    /// Everything that is wrong with the batch as such; nothing is written.
    pub fn prepare(
        &self,
        partition: Option<u32>,
        events: EncodedEvents,
    ) -> Result<Box<AppendBatch>, AppendError> {
        self.inner.preparer.prepare(partition, events, false)
    }

    /// As [`Engine::prepare`], for events that the database itself appends: facts about modules,
    /// and events that modules derive. Names that begin with `$` are allowed, and no gate is asked.
    ///
    /// # Errors
    /// Everything that is wrong with the batch as such; nothing is written.
    pub fn prepare_own(
        &self,
        partition: u32,
        events: EncodedEvents,
    ) -> Result<Box<AppendBatch>, AppendError> {
        self.inner.preparer.prepare(Some(partition), events, true)
    }

    /// Hands a batch to its partition's writer. Does not block; the outcome goes to the sink.
    ///
    /// # Errors
    /// Why it was refused at the door, with the batch. The sink is not called then.
    pub fn append(
        &self,
        batch: Box<AppendBatch>,
        sink: Arc<dyn AppendSink>,
        tag: u64,
    ) -> Result<(), (AppendError, Box<AppendBatch>)> {
        if !self.inner.config.ingest {
            return Err((AppendError::NoIngest, batch));
        }
        let shared = match self.slot(batch.partition()) {
            PartitionSlot::Open(shared) => shared,
            PartitionSlot::Fenced { partition, reason } => {
                let error = AppendError::Fenced {
                    partition: *partition,
                    reason: Arc::clone(reason),
                };
                return Err((error, batch));
            }
        };
        if let Some(reason) = shared.fence() {
            let error = AppendError::Fenced {
                partition: shared.partition,
                reason: Arc::clone(reason),
            };
            return Err((error, batch));
        }
        shared
            .queue
            .push(QueuedAppend { batch, sink, tag })
            .map_err(|(error, append)| {
                if matches!(error, AppendError::Overloaded { .. }) {
                    add(&shared.counters.overloaded, 1);
                }
                (error, append.batch)
            })
    }

    /// Appends a batch and waits for the outcome.
    ///
    /// # Errors
    /// As the sink would be told.
    pub fn append_blocking(&self, batch: Box<AppendBatch>) -> Result<Appended, AppendError> {
        let sink = WaitSink::new();
        self.append(batch, Arc::clone(&sink) as Arc<dyn AppendSink>, 0)
            .map_err(|(error, _)| error)?;
        sink.wait()
    }

    fn slot(&self, partition: u32) -> &PartitionSlot {
        &self.inner.partitions[partition as usize]
    }

    /// A partition that may be read.
    pub(crate) fn shared(&self, partition: u32) -> Result<&Arc<PartitionShared>, ReadError> {
        let shared = self.opened(partition)?;
        match shared.fence() {
            None => Ok(shared),
            Some(reason) => Err(ReadError::Fenced {
                partition,
                reason: Arc::clone(reason),
            }),
        }
    }

    /// A partition that was opened, although it may have been fenced since.
    fn opened(&self, partition: u32) -> Result<&Arc<PartitionShared>, ReadError> {
        match self.inner.partitions.get(partition as usize) {
            Some(PartitionSlot::Open(shared)) => Ok(shared),
            Some(PartitionSlot::Fenced { partition, reason }) => Err(ReadError::Fenced {
                partition: *partition,
                reason: Arc::clone(reason),
            }),
            None => Err(ReadError::NoSuchPartition {
                partition,
                count: self.partition_count(),
            }),
        }
    }

    /// Reads one page of a partition. Blocks on the disk unless [`Engine::is_in_memory`].
    ///
    /// # Errors
    /// See [`ReadError`]. One that met damage fences the partition.
    pub fn read(&self, request: &ReadRequest) -> Result<ReadPage, ReadError> {
        let shared = self.shared(request.partition)?;
        let page = read_page(shared, &self.inner.preparer.hasher, request);
        page.inspect_err(|error| fence_if_damaged(shared, error))
    }

    /// Reads one page of a stream. May block on the disk.
    ///
    /// # Errors
    /// See [`ReadError`]. One that met damage fences the partition.
    pub fn read_stream(&self, request: &StreamReadRequest) -> Result<StreamPage, ReadError> {
        let partition = self.stream_partition(&request.stream, request.partition)?;
        let shared = self.shared(partition)?;
        let page = read_stream_page(shared, &self.inner.preparer.hasher, request);
        page.inspect_err(|error| fence_if_damaged(shared, error))
    }

    fn stream_partition(&self, stream: &str, partition: Option<u32>) -> Result<u32, ReadError> {
        let owner = self.partition_of(stream);
        match (truthdb_event::is_system_stream(stream), partition) {
            (true, Some(partition)) => Ok(partition),
            (true, None) => Err(ReadError::Invalid {
                reason: format!("stream {stream} exists in each partition: say which partition"),
            }),
            (false, Some(partition)) if partition != owner => Err(ReadError::Invalid {
                reason: format!("stream {stream} belongs to partition {owner}, not {partition}"),
            }),
            (false, _) => Ok(owner),
        }
    }

    /// The end of a stream as far as committed, `None` if it has no event.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn stream_head(
        &self,
        stream: &str,
        partition: Option<u32>,
    ) -> Result<Option<StreamHead>, ReadError> {
        let request = StreamReadRequest {
            stream: stream.to_owned(),
            partition,
            from: RevisionFrom::Start,
            direction: Direction::Backward,
            events_max: 1,
            bytes_max: 1,
        };
        match self.read_stream(&request) {
            Ok(page) => Ok(page.events().first().map(|event| StreamHead {
                partition: page.partition,
                last_revision: event.revision,
                last_sequence: event.sequence,
            })),
            Err(ReadError::StreamNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A cursor of a partition, `None` if it was never committed.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn cursor(&self, partition: u32, name: &str) -> Result<Option<Cursor>, ReadError> {
        let request = StreamReadRequest {
            stream: format!("{CURSOR_STREAM_PREFIX}{name}"),
            partition: Some(partition),
            from: RevisionFrom::Start,
            direction: Direction::Backward,
            events_max: 1,
            bytes_max: 1,
        };
        match self.read_stream(&request) {
            Ok(page) => Ok(page.events().first().and_then(cursor_of)),
            Err(ReadError::StreamNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All cursors of a partition with their newest positions, by name. Reads every cursor commit
    /// that is left.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn cursors(&self, partition: u32) -> Result<Vec<(String, Cursor)>, ReadError> {
        let mut newest = std::collections::BTreeMap::new();
        let mut request = ReadRequest {
            partition,
            from: ReadFrom::Start,
            direction: Direction::Forward,
            filter: Filter {
                types: vec![CURSOR_EVENT_TYPE.to_owned()],
                ..Filter::default()
            },
            events_max: 10_000,
            bytes_max: 4 << 20,
        };
        loop {
            let page = self.read(&request)?;
            for event in page.events() {
                let stream = event.event().stream().to_owned();
                if let (Some(name), Some(cursor)) =
                    (stream.strip_prefix(CURSOR_STREAM_PREFIX), cursor_of(&event))
                {
                    newest.insert(name.to_owned(), cursor);
                }
            }
            match page.next {
                Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
                _ => return Ok(newest.into_iter().collect()),
            }
        }
    }

    /// Last committed sequence of a partition; 0 if it has no event or was not opened.
    pub fn committed(&self, partition: u32) -> u64 {
        self.opened(partition)
            .map_or(0, |shared| shared.committed())
    }

    /// First sequence of a partition that retention has left; 1 if it was not opened.
    pub fn first_sequence(&self, partition: u32) -> u64 {
        self.opened(partition)
            .map_or(1, |shared| shared.view().first_sequence)
    }

    /// The newest sealed segment of a partition; all before it are sealed too.
    pub fn last_sealed(&self, partition: u32) -> Option<SealedEnd> {
        let view = self.opened(partition).ok()?.view();
        view.segments.iter().rev().find_map(|s| sealed_end(s))
    }

    /// A sealed segment of a partition; none if it was trimmed, or is not sealed.
    pub fn sealed_segment(&self, partition: u32, segment: u32) -> Option<SealedEnd> {
        let view = self.opened(partition).ok()?.view();
        let found = view.segments.binary_search_by_key(&segment, |s| s.number);
        sealed_end(&view.segments[found.ok()?])
    }

    /// Has a function called with the last committed sequence after each group commit, on the
    /// writer's thread: it must be
    /// cheap and must not block.
    pub fn on_commit(&self, partition: u32, hook: Box<dyn Fn(u64) + Send + Sync>) {
        if let Ok(shared) = self.opened(partition) {
            shared.hooks.write().push(hook);
        }
    }

    /// Whether a forward read from this sequence finds it in the tail cache, so that it needs no disk.
    pub fn is_in_memory(&self, partition: u32, sequence: u64) -> bool {
        let Ok(shared) = self.shared(partition) else {
            return true;
        };
        if sequence > shared.committed() {
            return true;
        }
        let view = shared.view();
        let Some(segment) = view.locate(sequence).map(|index| &view.segments[index]) else {
            return false;
        };
        let SegmentBody::Unsealed(unsealed) = segment.body() else {
            return false;
        };
        let start = unsealed.index.read().locate_sequence(sequence);
        let Some(start) = start else { return false };
        let tail = shared.tail.read();
        let first = tail
            .chunks
            .iter()
            .find(|chunk| chunk.segment == segment.number);
        first.is_some_and(|chunk| chunk.offset <= start.offset)
    }

    /// Keeps events from a sequence on from being trimmed, by retention or on request, until it is
    /// set anew: those that say which modules are active. `u64::MAX` keeps nothing.
    pub fn set_trim_floor(&self, partition: u32, sequence: u64) {
        if let Ok(shared) = self.shared(partition) {
            shared.trim_floor.store(sequence, Ordering::Release);
        }
    }

    /// What a trim would remove. Nothing happens yet.
    ///
    /// # Errors
    /// If there is no such partition, or it is fenced.
    pub fn trim_plan(&self, partition: u32, to: TrimTo) -> Result<TrimPlan, ReadError> {
        Ok(plan_trim(self.shared(partition)?, to))
    }

    /// Records a planned trim in the log and waits for its commit. The files are removed in the
    /// background; reads begin
    /// at the new first sequence at once. An empty plan does nothing.
    ///
    /// # Errors
    /// Nothing was removed then, unless the error says that the outcome is unknown.
    pub fn trim(&self, plan: &TrimPlan) -> Result<(), TrimError> {
        let partition = plan.partition;
        let Ok(shared) = self.shared(partition) else {
            return Err(TrimError::NoSuchPartition { partition });
        };
        if !self.inner.config.ingest {
            return Err(TrimError::Append(AppendError::NoIngest));
        }
        if plan.segments.is_empty() {
            return Ok(());
        }
        trim::trim(shared, &self.inner.preparer, plan)
    }

    /// As [`Engine::trim`], without waiting: the sink hears of the commit. An empty plan is refused, and
    /// so is one that an earlier trim has overtaken.
    ///
    /// # Errors
    /// Why it was refused at the door; the sink is not called then.
    pub fn submit_trim(
        &self,
        plan: &TrimPlan,
        sink: Arc<dyn AppendSink>,
        tag: u64,
    ) -> Result<(), TrimError> {
        let partition = plan.partition;
        let Ok(shared) = self.shared(partition) else {
            return Err(TrimError::NoSuchPartition { partition });
        };
        if !self.inner.config.ingest {
            return Err(TrimError::Append(AppendError::NoIngest));
        }
        if plan.segments.is_empty() {
            return Err(TrimError::Append(AppendError::EmptyBatch));
        }
        trim::submit_trim(shared, &self.inner.preparer, plan, sink, tag).map_err(TrimError::Append)
    }

    /// State and figures of everything.
    pub fn status(&self) -> EngineStatus {
        let space = self.inner.world.storage.space().ok();
        EngineStatus {
            database_id: self.database_id(),
            backend: self.inner.world.storage.backend(),
            durability: self.inner.config.durability,
            ingest: self.inner.config.ingest,
            partitions: self
                .inner
                .partitions
                .iter()
                .enumerate()
                .map(status_of)
                .collect(),
            free_bytes: space.map_or(0, |space| space.free_bytes),
            total_bytes: space.map_or(0, |space| space.total_bytes),
        }
    }

    /// Refuses new appends, finishes those accepted, flushes, marks each partition as cleanly
    /// stopped and joins all threads.
    /// A second call does nothing.
    pub fn shutdown(&self) -> ShutdownReport {
        self.begin_shutdown();
        let mut threads = std::mem::take(&mut *self.inner.threads.lock());
        // The maintenance thread goes last: it seals what the writers closed.
        let maintenance = threads.pop();
        join(threads);
        self.inner.signal.stop();
        join(maintenance);
        self.end_shutdown()
    }

    /// Stops all threads where they are, without finishing anything: to the data directory it is as
    /// if the process had been
    /// killed. For tests of recovery.
    #[doc(hidden)]
    pub fn abandon(&self) {
        for slot in &self.inner.partitions {
            if let PartitionSlot::Open(shared) = slot {
                shared.abandoned.store(true, Ordering::Release);
                shared.queue.close("the engine was abandoned".into());
            }
        }
        self.inner.signal.stop();
        join(std::mem::take(&mut *self.inner.threads.lock()));
        self.inner.lock.lock().take();
    }

    /// The first half of a shutdown; a [`Stepper`]'s owner then steps until nothing is left.
    pub fn begin_shutdown(&self) {
        for slot in &self.inner.partitions {
            if let PartitionSlot::Open(shared) = slot {
                shared.queue.close("the server is stopping".into());
                shared.stop_requested.store(true, Ordering::Release);
                shared.queue.wake();
            }
        }
    }

    /// The second half of a shutdown: gives the lock back and says how it went.
    pub fn end_shutdown(&self) -> ShutdownReport {
        let mut report = ShutdownReport {
            clean: Vec::new(),
            failed: Vec::new(),
        };
        for (partition, slot) in (0u32..).zip(&self.inner.partitions) {
            match slot {
                PartitionSlot::Open(shared) => match shared.state() {
                    PartitionState::Stopped { reason } => report.failed.push((partition, reason)),
                    _ => report.clean.push(partition),
                },
                PartitionSlot::Fenced { reason, .. } => {
                    report.failed.push((partition, reason.to_string()));
                }
            }
        }
        self.inner.lock.lock().take();
        report
    }
}

/// Damage of the log that a read met concerns everybody who relies on the partition. Damaged indexes do not: they are
/// made again.
fn fence_if_damaged(shared: &PartitionShared, error: &ReadError) {
    if error.is_corruption() {
        shared.set_fence(&crate::error::chain(error));
    }
}

fn join(threads: impl IntoIterator<Item = std::thread::JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the engine panicked; the next start recovers");
        }
    }
}

fn cursor_of(event: &truthdb_log::StoredEvent<'_>) -> Option<Cursor> {
    let position = event
        .event()
        .payload()
        .try_into()
        .ok()
        .map(u64::from_le_bytes)?;
    Some(Cursor {
        position,
        sequence: event.sequence,
        timestamp_ns: event.timestamp_ns,
    })
}

fn status_of((partition, slot): (usize, &PartitionSlot)) -> PartitionStatus {
    let partition = u32::try_from(partition).expect("partitions are limited");
    let mut status = PartitionStatus {
        partition,
        state: PartitionState::Open,
        first_sequence: 1,
        committed: 0,
        appended: 0,
        timestamp_ns: 0,
        segments: 0,
        sealed_segments: 0,
        packed_segments: 0,
        active_segment: 0,
        bytes: 0,
        sealed_event_bytes: 0,
        chain: None,
        queue_batches: 0,
        queue_bytes: 0,
        counters: crate::Counters::default(),
    };
    let shared = match slot {
        PartitionSlot::Open(shared) => shared,
        PartitionSlot::Fenced { reason, .. } => {
            status.state = PartitionState::Fenced {
                reason: reason.to_string(),
            };
            return status;
        }
    };
    let view = shared.view();
    status.state = shared.state();
    status.first_sequence = view.first_sequence;
    status.committed = shared.committed();
    status.appended = shared
        .appended
        .load(Ordering::Acquire)
        .max(status.committed);
    status.timestamp_ns = shared.timestamp_ns.load(Ordering::Acquire);
    status.segments = u32::try_from(view.segments.len()).unwrap_or(u32::MAX);
    for segment in &view.segments {
        match segment.body() {
            SegmentBody::Sealed(sealed) => {
                status.sealed_segments += 1;
                if sealed.footer.kind == truthdb_log::SegmentKind::Packed {
                    status.packed_segments += 1;
                }
                status.bytes += sealed.footer.file_bytes().unwrap_or(0);
                status.sealed_event_bytes += sealed.footer.event_bytes;
                status.chain = Some(sealed.footer.chain);
            }
            SegmentBody::Unsealed(unsealed) => {
                status.bytes += unsealed.end_offset.load(Ordering::Acquire);
            }
        }
    }
    let active = view.segments.last().filter(|segment| !is_sealed(segment));
    status.active_segment = active.map_or(0, |segment| segment.number);
    let (batches, bytes) = shared.queue.depth();
    status.queue_batches = batches as u64;
    status.queue_bytes = bytes as u64;
    status.counters = shared.counters.load();
    status
}
