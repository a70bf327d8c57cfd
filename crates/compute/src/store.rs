//! Derived files of a partition as its fold writes them: the delta logs of its lines, and its snapshots.
//!
//! Nothing here is truth. What is damaged, missing, or does not fit the log is passed over, and the
//! state is made again; every error is an operator's message and a slower start, never a wrong row.

use std::collections::BTreeMap;
use std::sync::Arc;

use truthdb_engine::Engine;
use truthdb_io::World;
use truthdb_state::{
    CollectStep, DELTA_FILE_BYTES_DEFAULT, DeltaLog, DeltaRecord, DeltaWriter, PrunePolicy,
    SnapshotError, SnapshotInput, SnapshotState, SnapshotStep, SnapshotStore, SnapshotTable,
};

use crate::answer::FoldState;
use crate::catalogue::Catalogue;
use crate::config::ComputeConfig;
use crate::error::{ComputeError, chain};
use crate::files::Files;
use crate::line::{Delta, Line};
use crate::programs::Programs;
use crate::reader::time_in_log;
use crate::runner::Runner;
use crate::shared::{PartitionShared, Version};

/// Nanoseconds until something that failed is tried again.
const RETRY_NS: u64 = 1_000_000_000;

/// Files that one step removes.
const REMOVE_FILES: usize = 16;

/// How many of the configured intervals lie between the snapshots of a line that is far behind the log: a
/// question about few rows reads over as many deltas in a moment.
const CATCH_UP_INTERVALS: u64 = 4;

/// A delta log that is written.
struct Writing {
    writer: Option<DeltaWriter>,
    /// Last sequence that the log accounts for, or would.
    last: u64,
    /// Where a snapshot was last begun, or the line went on.
    snapshot: u64,
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
            snapshot: applied,
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
        let inputs: Vec<SnapshotInput> = lines
            .iter_mut()
            .filter_map(|line| input_at(&self.files, line, mark))
            .collect();
        self.begin(mark, inputs, now)
    }

    /// Begins a snapshot of one line where it stands, if it is far behind the log's end and from its last
    /// one: marks are served when all lines have come to the newest, and until then, or in a rebuild, there
    /// would be none. It must stand where a fold may go on. Those that retention would not keep are not made.
    pub(crate) fn begin_catch_up(&mut self, line: &mut Line, end: u64, now: u64) -> bool {
        let every = self.config.snapshot_every_events;
        let applied = line.runner.applied;
        let behind = end.saturating_sub(applied);
        if every == 0 || behind < every.saturating_mul(2) || line.stored_through() < applied {
            return false;
        }
        let slot = self.config.snapshot_retention.slot(behind);
        let distance = every.saturating_mul(CATCH_UP_INTERVALS).max(slot);
        let key = (line.spec().module.clone(), line.spec().line);
        let is_due = |writing: &Writing| applied / distance > writing.snapshot / distance;
        // A place with a snapshot of other lines is passed over.
        let is_free = |snapshots: &SnapshotStore| {
            snapshots.in_progress().is_none() && !snapshots.sequences().contains(&applied)
        };
        if !self.writing.get(&key).is_some_and(is_due)
            || !self.snapshots.as_ref().is_some_and(is_free)
        {
            return false;
        }
        let version = line.version();
        let input = input_of(&self.files, line, version);
        self.begin(applied, vec![input], now)
    }

    fn begin(&mut self, sequence: u64, inputs: Vec<SnapshotInput>, now: u64) -> bool {
        let partition = self.partition();
        let time = time_in_log(&self.files.engine, partition, sequence);
        let (Some(time), Some(snapshots), false) = (time, &mut self.snapshots, inputs.is_empty())
        else {
            return false;
        };
        for SnapshotInput { state, .. } in &inputs {
            let key = (state.module.clone(), state.generation);
            if let Some(writing) = self.writing.get_mut(&key) {
                writing.snapshot = writing.snapshot.max(state.applied_sequence);
            }
        }
        match snapshots.begin(sequence, time, inputs) {
            Ok(()) => true,
            Err(SnapshotError::Exists { .. }) => false,
            Err(error) => {
                tracing::warn!(partition, sequence, error = %chain(&error),
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
fn input_at(files: &Files, line: &mut Line, mark: u64) -> Option<SnapshotInput> {
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
    Some(input_of(files, line, version))
}

fn input_of(files: &Files, line: &Line, version: Version) -> SnapshotInput {
    let spec = line.spec();
    let step = &spec.steps[spec.step_at(version.sequence)];
    let tables = step.manifest.tables.iter().map(|table| SnapshotTable {
        name: table.name.clone(),
        version: table.version,
    });
    SnapshotInput {
        state: SnapshotState {
            module: spec.module.clone(),
            generation: spec.line,
            module_hash: step.hash,
            semantics_id: files.semantics_id(&step.limits),
            applied_sequence: version.sequence,
            tables: tables.collect(),
        },
        view: version.view,
    }
}
