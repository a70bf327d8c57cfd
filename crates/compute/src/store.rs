//! Derived files of a partition: the delta logs of its lines, and its snapshots.
//!
//! Nothing here is truth. What is damaged, missing, or does not fit the log is passed over, and the
//! state is made again; every error is an operator's message and a slower start, never a wrong row.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use truthdb_engine::{Direction, Engine, Filter, ReadFrom, ReadRequest};
use truthdb_io::{Storage, World};
use truthdb_module::Limits;
use truthdb_state::{
    CollectStep, DELTA_FILE_BYTES_DEFAULT, DeltaLog, DeltaPlace, DeltaReader, DeltaRecord,
    DeltaWriter, Fingerprint, NAME_BYTES_MAX, PastView, PrunePolicy, Snapshot, SnapshotError,
    SnapshotInput, SnapshotReader, SnapshotState, SnapshotStep, SnapshotStore, SnapshotTable,
    StatePlace, Tables,
};

use crate::answer::{FoldState, SnapshotInfo};
use crate::catalogue::{Catalogue, LineSpec};
use crate::config::ComputeConfig;
use crate::control::hex;
use crate::error::{ComputeError, chain};
use crate::line::{Delta, Line};
use crate::programs::Programs;
use crate::runner::Runner;
use crate::shared::{PartitionShared, Version};

/// Nanoseconds until something that failed is tried again.
const RETRY_NS: u64 = 1_000_000_000;

/// Files that one step removes.
const REMOVE_FILES: usize = 16;

/// A delta log that is written.
struct Writing {
    writer: Option<DeltaWriter>,
    /// Last sequence that the log accounts for, or would.
    last: u64,
}

/// What the fold of a partition writes.
pub(crate) struct Store {
    config: Arc<ComputeConfig>,
    files: Files,
    snapshots: Option<SnapshotStore>,
    writing: BTreeMap<(String, u32), Writing>,
    shared: Arc<PartitionShared>,
    /// The mark that a snapshot was last begun at.
    begun: u64,
    collecting: bool,
    retry_at: Option<u64>,
}

/// Where a partition's files are, for whoever reads them.
#[derive(Clone)]
struct Files {
    engine: Engine,
    programs: Arc<Programs>,
    storage: Arc<dyn Storage>,
    place: StatePlace,
}

/// What files could do for a runner.
pub(crate) struct Brought {
    pub(crate) runner: Runner,
    /// The state is that of the sequence that was asked for. Else it is that of a place from which a
    /// guest may go on.
    pub(crate) is_complete: bool,
}

/// A module's name, if it has at most so many bytes; else its beginning and its hash.
fn short(module: &str, bytes_max: usize) -> Cow<'_, str> {
    if module.len() <= bytes_max {
        return Cow::Borrowed(module);
    }
    let hash = hex(&blake3::hash(module.as_bytes()).as_bytes()[..8]);
    let kept = bytes_max.saturating_sub(hash.len() + 1);
    // No name has the mark.
    Cow::Owned(format!(
        "{}~{hash}",
        &module[..module.floor_char_boundary(kept)]
    ))
}

/// The time of an event in the log, nanoseconds UTC.
fn time_in_log(engine: &Engine, partition: u32, sequence: u64) -> Option<u64> {
    if sequence == 0 || sequence > engine.committed(partition) {
        return None;
    }
    let page = engine.read(&ReadRequest {
        partition,
        from: ReadFrom::Sequence(sequence),
        direction: Direction::Forward,
        filter: Filter::default(),
        events_max: 1,
        bytes_max: 1,
    });
    Some(page.ok()?.batches.first()?.timestamp_ns)
}

impl Files {
    fn new(engine: &Engine, world: &World, programs: &Arc<Programs>, partition: u32) -> Files {
        Files {
            engine: engine.clone(),
            programs: Arc::clone(programs),
            storage: Arc::clone(&world.storage),
            place: StatePlace {
                database_id: engine.database_id(),
                partition,
            },
        }
    }

    /// What ends the names of the delta logs that this process may use: one made under other semantics
    /// is another one.
    fn semantics(&self) -> String {
        format!(".{}", hex(&self.semantics_id(&Limits::default())[..4]))
    }

    /// What names the way in which this process makes states under these limits.
    fn semantics_id(&self, limits: &Limits) -> [u8; 32] {
        self.programs.runtime().semantics_id(limits)
    }

    fn deltas(&self, module: &str, line: u32) -> DeltaLog {
        let semantics = self.semantics();
        let place = DeltaPlace {
            place: self.place,
            module: format!(
                "{}{semantics}",
                short(module, NAME_BYTES_MAX - semantics.len())
            ),
            generation: line,
        };
        DeltaLog::new(Arc::clone(&self.storage), place)
    }

    /// Whether the log holds what a derived file was made from: files may be ahead of a log whose
    /// last groups were lost, and its sequences may have been given again.
    fn fits_log(&self, sequence: u64, timestamp_ns: u64) -> bool {
        let partition = self.place.partition;
        let first = self.engine.first_sequence(partition);
        let gone = sequence < first && sequence <= self.engine.committed(partition);
        gone || time_in_log(&self.engine, partition, sequence) == Some(timestamp_ns)
    }

    /// The newest usable state of a line in a snapshot after `after` and up to `until`. Damaged ones
    /// are given to `damaged`.
    fn in_snapshots(
        &self,
        reader: &SnapshotReader,
        spec: &LineSpec,
        after: u64,
        until: u64,
        damaged: &mut dyn FnMut(&SnapshotError),
    ) -> Option<(Tables, u64, u64)> {
        self.newest_of(reader, spec, after, until, damaged, |entry| {
            let Entry {
                snapshot,
                index,
                applied,
                timestamp_ns,
            } = entry;
            Ok((snapshot.load(index)?, applied, timestamp_ns))
        })
    }

    /// What `take` makes of the newest usable entry of a line after `after` and up to `until`.
    fn newest_of<T>(
        &self,
        reader: &SnapshotReader,
        spec: &LineSpec,
        after: u64,
        until: u64,
        damaged: &mut dyn FnMut(&SnapshotError),
        mut take: impl FnMut(Entry) -> Result<T, SnapshotError>,
    ) -> Option<T> {
        let mut below = until;
        while let Some(sequence) = reader.newest_at_or_before(below) {
            if sequence <= after {
                return None;
            }
            let found = self.entry_of(reader, spec, sequence, after);
            match found.and_then(|entry| entry.map(&mut take).transpose()) {
                Ok(Some(taken)) => return Some(taken),
                Ok(None) => {}
                Err(error) => damaged(&error),
            }
            below = sequence.checked_sub(1)?;
        }
        None
    }

    fn entry_of(
        &self,
        reader: &SnapshotReader,
        spec: &LineSpec,
        sequence: u64,
        after: u64,
    ) -> Result<Option<Entry>, SnapshotError> {
        let snapshot = reader.open(sequence)?;
        let manifest = snapshot.manifest();
        if !self.fits_log(sequence, manifest.timestamp_ns) {
            tracing::warn!(
                partition = self.place.partition,
                sequence,
                "the snapshot is not of this log's history and is passed over"
            );
            return Ok(None);
        }
        let entry = manifest.entries.iter().position(|entry| {
            entry.state.module == spec.module && entry.state.generation == spec.line
        });
        let Some(index) = entry else { return Ok(None) };
        let state = &manifest.entries[index].state;
        let applied = state.applied_sequence;
        let step = &spec.steps[spec.step_at(applied)];
        // A state that was made under other semantics is made again, not trusted.
        let semantics_id = self.semantics_id(&step.limits);
        let fits = step.hash == state.module_hash && semantics_id == state.semantics_id;
        if applied <= after || !fits {
            return Ok(None);
        }
        let time = if applied == sequence {
            Some(manifest.timestamp_ns)
        } else {
            time_in_log(&self.engine, self.place.partition, applied)
        };
        Ok(Some(Entry {
            snapshot,
            index,
            applied,
            timestamp_ns: time.unwrap_or(0),
        }))
    }

    /// A line's state at a sequence, as a snapshot after `after` and the deltas that lead on from it.
    /// None if they do not reach so far, or if the code and with it the tables changed in between.
    fn past_view(
        &self,
        reader: &SnapshotReader,
        spec: &LineSpec,
        after: u64,
        until: u64,
        damaged: &mut dyn FnMut(&SnapshotError),
    ) -> Option<PastView> {
        let mut view = self.newest_of(reader, spec, after, until, damaged, |entry| {
            Ok(PastView::new(Arc::new(entry.snapshot), entry.index))
        })?;
        if spec.step_at(view.sequence()) != spec.step_at(until) {
            return None;
        }
        let log = self.deltas(&spec.module, spec.line);
        let mut deltas = log.read_after(view.sequence()).ok()?;
        match view.advance(&mut deltas, until) {
            Ok(true) => Some(view),
            // The way through memory says what is wrong with them.
            Ok(false) | Err(_) => None,
        }
    }

    /// Brings a runner as near to a sequence as snapshots and deltas allow: with `is_exact` to it, if
    /// they reach so far, else to the last place before it from which a guest may go on.
    fn bring_to(
        &self,
        reader: Option<&SnapshotReader>,
        empty: Runner,
        near: Option<Runner>,
        until: u64,
        is_exact: bool,
        damaged: &mut dyn FnMut(&SnapshotError),
    ) -> Brought {
        let mut runner = near.unwrap_or(empty);
        let spec = Arc::clone(&runner.spec);
        let found = reader
            .and_then(|reader| self.in_snapshots(reader, &spec, runner.applied, until, damaged));
        if let Some((tables, applied, time)) = found {
            runner.reset(tables, applied, time);
        }
        if runner.applied == until {
            return Brought {
                runner,
                is_complete: true,
            };
        }
        let mut boundary = version_of(&mut runner);
        let is_complete = match self.apply_deltas(&mut runner, &mut boundary, until) {
            Ok(is_complete) => is_complete,
            Err(reason) => {
                tracing::warn!(
                    partition = self.place.partition,
                    module = spec.module,
                    sequence = runner.applied,
                    "the delta log cannot be used further: {reason}; the rest is made again from the log"
                );
                false
            }
        };
        let is_complete = is_complete && is_exact;
        if !is_complete {
            let tables = Tables::from_view(&boundary.view);
            runner.reset(tables, boundary.sequence, boundary.timestamp_ns);
        }
        Brought {
            runner,
            is_complete,
        }
    }

    /// Applies records up to a sequence. True if the records account for all of it.
    fn apply_deltas(
        &self,
        runner: &mut Runner,
        boundary: &mut Version,
        until: u64,
    ) -> Result<bool, String> {
        let log = self.deltas(&runner.spec.module, runner.spec.line);
        let mut reader = log
            .read_after(runner.applied)
            .map_err(|error| chain(&error))?;
        loop {
            let record = match reader.next_record() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(runner.applied >= until),
                Err(error) => return Err(chain(&error)),
            };
            if record.last_sequence > until {
                return Ok(true);
            }
            let (last, time) = (record.last_sequence, record.timestamp_ns);
            if !runner.apply_changes(&record.changes, last, time) {
                return Err("a record is of other tables".to_owned());
            }
            if runner.fingerprint() != record.fingerprint_after {
                return Err(format!(
                    "after event {last} the fingerprint is {}, recorded is {}",
                    runner.fingerprint(),
                    record.fingerprint_after
                ));
            }
            // Records end where memory begins anew: what begins behind its first batch is behind it.
            if runner.spec.memory_start(last + 1) > record.first_sequence {
                *boundary = version_of(runner);
            }
        }
    }
}

/// A line's state in an open snapshot.
struct Entry {
    snapshot: Snapshot,
    index: usize,
    applied: u64,
    timestamp_ns: u64,
}

fn version_of(runner: &mut Runner) -> Version {
    Version {
        sequence: runner.applied,
        timestamp_ns: runner.timestamp_ns,
        view: runner.view(),
    }
}

impl Store {
    pub(crate) fn new(
        engine: &Engine,
        world: &World,
        config: &Arc<ComputeConfig>,
        programs: &Arc<Programs>,
        shared: &Arc<PartitionShared>,
    ) -> Store {
        let mut store = Store {
            config: Arc::clone(config),
            files: Files::new(engine, world, programs, shared.partition),
            snapshots: None,
            writing: BTreeMap::new(),
            shared: Arc::clone(shared),
            begun: 0,
            collecting: true,
            retry_at: None,
        };
        store.open_snapshots();
        store
    }

    fn partition(&self) -> u32 {
        self.files.place.partition
    }

    fn open_snapshots(&mut self) -> bool {
        match SnapshotStore::open(Arc::clone(&self.files.storage), self.files.place) {
            Ok((snapshots, found)) => {
                for path in found.set_aside {
                    tracing::warn!(
                        path,
                        "a damaged snapshot lies aside; look at it, then remove it"
                    );
                }
                *self.shared.snapshots.write() = Some(snapshots.reader());
                self.snapshots = Some(snapshots);
                true
            }
            Err(error) => {
                tracing::warn!(partition = self.partition(), error = %chain(&error),
                    "snapshots cannot be opened; state is made from the log");
                false
            }
        }
    }

    /// A runner as far as files bring it, at a place from which the fold may go on.
    pub(crate) fn recover(&self, empty: Runner) -> Runner {
        let fresh = empty.again();
        let until = self.files.engine.committed(self.partition());
        let reader = self.snapshots.as_ref().map(SnapshotStore::reader);
        let mut damaged = |error: &SnapshotError| {
            let aside = self.snapshots.as_ref().and_then(|s| s.set_aside(error));
            tracing::warn!(partition = self.partition(), error = %chain(error), aside = ?aside,
                "a snapshot is damaged and set aside; an older one or the log is used");
        };
        let files = &self.files;
        let brought = files.bring_to(reader.as_ref(), empty, None, until, false, &mut damaged);
        let runner = brought.runner;
        let fits = runner.applied < runner.spec.first_sequence()
            || self.files.fits_log(runner.applied, runner.timestamp_ns);
        if fits {
            return runner;
        }
        tracing::warn!(
            partition = self.partition(),
            module = runner.spec.module,
            sequence = runner.applied,
            "the delta log is not of this log's history; the state is made again from the log"
        );
        fresh
    }

    /// Begins to write a line's deltas after its state.
    pub(crate) fn open(&mut self, module: &str, line: u32, applied: u64) {
        let writing = Writing {
            writer: None,
            last: applied,
        };
        self.writing.insert((module.to_owned(), line), writing);
    }

    pub(crate) fn close(&mut self, module: &str, line: u32) {
        if let Some(Writing {
            writer: Some(mut writer),
            ..
        }) = self.writing.remove(&(module.to_owned(), line))
            && let Err(error) = writer.sync()
        {
            tracing::debug!(module, error = %chain(&error), "the delta log was not flushed");
        }
    }

    /// Writes a record. What cannot be written is missing, and found missing when it is read.
    pub(crate) fn push_delta(&mut self, module: &str, line: u32, delta: &Delta, now: u64) {
        let log = self.files.deltas(module, line);
        let waits = self.retry_at.is_some_and(|at| now < at);
        let Some(writing) = self.writing.get_mut(&(module.to_owned(), line)) else {
            return;
        };
        let after = std::mem::replace(&mut writing.last, delta.last_sequence);
        if writing.writer.is_none() && !waits {
            match DeltaWriter::open(log, after, DELTA_FILE_BYTES_DEFAULT) {
                Ok(writer) => writing.writer = Some(writer),
                Err(error) => {
                    tracing::warn!(module, error = %chain(&error),
                        "the delta log cannot be written; a restart will take longer");
                    self.retry_at = Some(now + RETRY_NS);
                }
            }
        }
        let Some(writer) = &mut writing.writer else {
            return;
        };
        let record = DeltaRecord {
            first_sequence: writer.next_sequence(),
            last_sequence: delta.last_sequence,
            timestamp_ns: delta.timestamp_ns,
            changes: delta.changes.clone(),
            fingerprint_after: delta.fingerprint,
        };
        if let Err(error) = writer.append(&record) {
            tracing::warn!(module, error = %chain(&error),
                "the delta log cannot be written; a restart will take longer");
            writing.writer = None;
            self.retry_at = Some(now + RETRY_NS);
        }
    }

    /// Lets readers see what was written.
    pub(crate) fn flush(&mut self, sync: bool, now: u64) {
        for ((module, _), writing) in &mut self.writing {
            let Some(writer) = &mut writing.writer else {
                continue;
            };
            let result = if sync { writer.sync() } else { writer.flush() };
            if let Err(error) = result {
                tracing::warn!(module, error = %chain(&error),
                    "the delta log cannot be written; a restart will take longer");
                writing.writer = None;
                self.retry_at = Some(now + RETRY_NS);
            }
        }
    }

    /// Begins a snapshot at the newest mark, once the lines that answer have passed it and owe
    /// nothing before it.
    pub(crate) fn begin_snapshot(
        &mut self,
        catalogue: &Catalogue,
        lines: &mut [Line],
        now: u64,
    ) -> bool {
        let Some(mark) = catalogue.marks.last().copied() else {
            return false;
        };
        let Some(snapshots) = &mut self.snapshots else {
            return false;
        };
        if mark <= self.begun || snapshots.in_progress().is_some() || lines.is_empty() {
            return false;
        }
        let current = |line: &Line| {
            let life = catalogue.modules.get(&line.spec().module);
            life.and_then(|life| life.current())
                .is_some_and(|current| current.line == line.spec().line)
        };
        let waits = |line: &Line| {
            let stands = matches!(
                line.state,
                FoldState::Halted { .. } | FoldState::Waiting { .. } | FoldState::Loading
            );
            let behind = line.marked.as_ref().is_none_or(|m| m.sequence < mark);
            current(line) && !stands && (behind || line.stored_through() < mark)
        };
        if lines.iter().any(waits) {
            return false;
        }
        self.begun = mark;
        let partition = self.files.place.partition;
        let time = time_in_log(&self.files.engine, partition, mark);
        let mut inputs: Vec<SnapshotInput> = lines
            .iter_mut()
            .filter_map(|line| input_of(&self.files, line, mark))
            .collect();
        inputs.sort_by(|a, b| {
            (&a.state.module, a.state.generation).cmp(&(&b.state.module, b.state.generation))
        });
        let (Some(time), false) = (time, inputs.is_empty()) else {
            return false;
        };
        match snapshots.begin(mark, time, inputs) {
            Ok(()) => true,
            Err(SnapshotError::Exists { .. }) => false,
            Err(error) => {
                tracing::warn!(partition, sequence = mark, error = %chain(&error),
                    "no snapshot was made; the next one is tried at the next mark");
                self.retry_at = Some(now + RETRY_NS);
                false
            }
        }
    }

    /// Does one part of a snapshot or of the removal of old ones. Says whether there was any.
    pub(crate) fn step(&mut self, now: u64) -> bool {
        if self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        self.retry_at = None;
        if self.snapshots.is_none() && !self.open_snapshots() {
            self.retry_at = Some(now + RETRY_NS);
            return false;
        }
        let (partition, retention) = (self.partition(), self.config.snapshot_retention);
        let Some(snapshots) = &mut self.snapshots else {
            return false;
        };
        if snapshots.in_progress().is_some() {
            match snapshots.step() {
                Ok(SnapshotStep::Working(_)) => {}
                Ok(SnapshotStep::Published(done)) => {
                    tracing::info!(
                        partition,
                        sequence = done.sequence,
                        rows = done.rows,
                        written = done.chunks_written,
                        reused = done.chunks_reused,
                        "snapshot"
                    );
                    if let Err(error) = snapshots.prune(&retention) {
                        tracing::warn!(partition, error = %chain(&error), "old snapshots stay");
                    }
                    self.collecting = true;
                    self.flush(true, now);
                }
                Err(error) => {
                    tracing::warn!(partition, error = %chain(&error),
                        "the snapshot is given up; the next one is tried at the next mark");
                    self.retry_at = Some(now + RETRY_NS);
                }
            }
            return true;
        }
        if self.collecting {
            match snapshots.collect_step() {
                Ok(CollectStep::Working) => {}
                Ok(CollectStep::Done { .. }) => self.collecting = false,
                Err(error) => {
                    snapshots.set_aside(&error);
                    tracing::warn!(partition, error = %chain(&error), "unused chunks stay");
                    self.collecting = false;
                }
            }
            return true;
        }
        false
    }

    /// Removes some files of the delta logs that were made under other semantics. False: none is left.
    pub(crate) fn remove_foreign_deltas(&mut self, now: u64) -> bool {
        if self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        let semantics = self.files.semantics();
        let logs = DeltaLog::all_of(&self.files.storage, self.files.place);
        let removed = logs.and_then(|logs| {
            for log in logs {
                if log.place().module.ends_with(&semantics) {
                    continue;
                }
                let removed = log.remove_newest(REMOVE_FILES)?;
                if removed > 0 {
                    return Ok(Some((log.place().module.clone(), removed)));
                }
            }
            Ok(None)
        });
        match removed {
            Ok(Some((name, files))) => {
                let partition = self.partition();
                tracing::info!(
                    partition,
                    name,
                    files,
                    "deltas of other semantics are removed"
                );
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(partition = self.partition(), error = %chain(&error),
                    "deltas of other semantics stay until the next start");
                false
            }
        }
    }

    /// Removes the snapshots that a policy does not keep.
    pub(crate) fn prune(&mut self, policy: &PrunePolicy) -> Result<(), ComputeError> {
        let Some(snapshots) = &mut self.snapshots else {
            return Ok(());
        };
        let pruned = snapshots.prune(policy);
        self.collecting = true;
        pruned.map(|_| ()).map_err(|error| ComputeError::Storage {
            what: "removing old snapshots".to_owned(),
            source: Arc::new(error),
        })
    }

    pub(crate) fn newest_snapshot(&self) -> u64 {
        let sequences = self.snapshots.as_ref().map(SnapshotStore::sequences);
        sequences.and_then(|s| s.last().copied()).unwrap_or(0)
    }

    pub(crate) fn retry_at(&self) -> Option<u64> {
        self.retry_at
    }

    /// At a clean stop: what was written is made durable.
    pub(crate) fn finish(&mut self, now: u64) {
        self.flush(true, now);
    }
}

/// What of a line goes into a snapshot at a mark: the version at the mark, or at the last place before
/// it from which a fold may go on.
fn input_of(files: &Files, line: &mut Line, mark: u64) -> Option<SnapshotInput> {
    let marked = line
        .marked
        .take()
        .filter(|version| version.sequence == mark);
    let stored = line.stored_through();
    let version = marked.or_else(|| {
        let public = line.shared.get();
        let usable = |v: &&Version| v.sequence <= mark && v.sequence <= stored;
        public.retained.iter().rev().find(usable).cloned()
    })?;
    let spec = line.spec();
    let step = &spec.steps[spec.step_at(version.sequence)];
    let tables = step.manifest.tables.iter().map(|table| SnapshotTable {
        name: table.name.clone(),
        version: table.version,
    });
    Some(SnapshotInput {
        state: SnapshotState {
            module: spec.module.clone(),
            generation: spec.line,
            module_hash: step.hash,
            semantics_id: files.semantics_id(&step.limits),
            applied_sequence: version.sequence,
            tables: tables.collect(),
        },
        view: version.view,
    })
}

/// What readers use of the files of all partitions.
pub(crate) struct PastFiles {
    files: Vec<Files>,
    shared: Vec<Arc<PartitionShared>>,
}

impl PastFiles {
    pub(crate) fn new(
        engine: &Engine,
        world: &World,
        programs: &Arc<Programs>,
        shared: &[Arc<PartitionShared>],
    ) -> PastFiles {
        PastFiles {
            files: (0..engine.partition_count())
                .map(|partition| Files::new(engine, world, programs, partition))
                .collect(),
            shared: shared.to_vec(),
        }
    }

    fn reader(&self, partition: u32) -> Option<SnapshotReader> {
        self.shared[partition as usize].snapshots.read().clone()
    }

    /// A line's state at a sequence on disk, from a snapshot after `after`.
    pub(crate) fn past_view(
        &self,
        partition: u32,
        spec: &LineSpec,
        after: u64,
        sequence: u64,
    ) -> Option<PastView> {
        let reader = self.reader(partition)?;
        let files = &self.files[partition as usize];
        // A damaged one is told of by the way through memory, which looks at the same ones.
        files.past_view(&reader, spec, after, sequence, &mut |_| ())
    }

    /// As near to a sequence as files bring it.
    pub(crate) fn bring_to(
        &self,
        partition: u32,
        empty: Runner,
        near: Option<Runner>,
        sequence: u64,
    ) -> Brought {
        let reader = self.reader(partition);
        let mut damaged = |error: &SnapshotError| {
            tracing::warn!(partition, error = %chain(error),
                "a snapshot is damaged; an older one or the log is used");
        };
        let files = &self.files[partition as usize];
        files.bring_to(reader.as_ref(), empty, near, sequence, true, &mut damaged)
    }

    pub(crate) fn snapshots(&self, partition: u32) -> Result<Vec<SnapshotInfo>, ComputeError> {
        let Some(reader) = self.reader(partition) else {
            return Ok(Vec::new());
        };
        let mut infos = Vec::new();
        for sequence in reader.sequences() {
            let snapshot = match reader.open(sequence) {
                Ok(snapshot) => snapshot,
                Err(SnapshotError::Missing { .. }) => continue,
                Err(error) => {
                    return Err(ComputeError::Storage {
                        what: format!("reading the snapshot of event {sequence}"),
                        source: Arc::new(error),
                    });
                }
            };
            let manifest = snapshot.manifest();
            infos.push(SnapshotInfo {
                partition,
                sequence,
                timestamp_ns: manifest.timestamp_ns,
                modules: manifest
                    .entries
                    .iter()
                    .map(|entry| {
                        let state = &entry.state;
                        let (name, applied) = (state.module.clone(), state.applied_sequence);
                        (name, state.generation, applied, entry.fingerprint)
                    })
                    .collect(),
                bytes: manifest.entries.iter().map(|entry| entry.bytes).sum(),
            });
        }
        Ok(infos)
    }

    /// What is recorded about a line up to a sequence.
    pub(crate) fn recorded(&self, partition: u32, module: &str, line: u32, until: u64) -> Recorded {
        let files = &self.files[partition as usize];
        let log = files.deltas(module, line);
        let first = log.files().ok().and_then(|files| files.first().cloned());
        let deltas = first.and_then(|file| log.read_after(file.first_sequence - 1).ok());
        let mut snapshots = BTreeMap::new();
        for info in self.snapshots(partition).unwrap_or_default() {
            // One that is not of this log's history is not used either.
            if !files.fits_log(info.sequence, info.timestamp_ns) {
                continue;
            }
            for (name, generation, applied, fingerprint) in info.modules {
                if name == module && generation == line && applied <= until {
                    snapshots
                        .entry(applied)
                        .or_insert_with(Vec::new)
                        .push(fingerprint);
                }
            }
        }
        Recorded {
            deltas,
            next: None,
            snapshots,
        }
    }
}

/// What files record about one line, to be compared with a replay.
pub(crate) struct Recorded {
    deltas: Option<DeltaReader>,
    next: Option<DeltaRecord>,
    snapshots: BTreeMap<u64, Vec<Fingerprint>>,
}

impl Recorded {
    /// Fingerprints of the delta records that end at a sequence, or ended before it at no batch.
    pub(crate) fn deltas_at(&mut self, sequence: u64) -> Vec<Fingerprint> {
        let mut found = Vec::new();
        while let Some(reader) = &mut self.deltas {
            if self.next.is_none() {
                self.next = match reader.next_record() {
                    Ok(Some(record)) => Some(record),
                    // A torn end is no difference: it is not used either.
                    Ok(None) | Err(_) => None,
                };
                if self.next.is_none() {
                    self.deltas = None;
                }
            }
            match self.next.take() {
                Some(record) if record.last_sequence <= sequence => {
                    found.push(record.fingerprint_after);
                }
                later => {
                    self.next = later;
                    break;
                }
            }
        }
        found
    }

    /// Last sequence and fingerprint of the next delta record, if it is not after `until`.
    pub(crate) fn delta_until(&mut self, until: u64) -> Option<(u64, Fingerprint)> {
        if self.next.is_none() {
            let reader = self.deltas.as_mut()?;
            self.next = reader.next_record().ok().flatten();
        }
        let next = self.next.as_ref()?;
        (next.last_sequence <= until).then_some((next.last_sequence, next.fingerprint_after))
    }

    /// What is left of the states in snapshots, from a sequence on.
    pub(crate) fn snapshots_from(&mut self, first: u64) -> Vec<(u64, Fingerprint)> {
        let left = self.snapshots.split_off(&first).into_iter();
        left.flat_map(|(at, all)| all.into_iter().map(move |one| (at, one)))
            .collect()
    }

    /// Fingerprints of the states in snapshots that were applied up to a sequence.
    pub(crate) fn snapshots_at(&mut self, sequence: u64) -> Vec<Fingerprint> {
        self.snapshots.remove(&sequence).unwrap_or_default()
    }
}
