//! Replays: the log applied again, beside everything that runs, from the first event on.
//!
//! A replay trusts the log and nothing else: no snapshot, no delta record. It changes nothing.

use std::ops::ControlFlow;
use std::sync::Arc;

use truthdb_log::StoredBatch;
use truthdb_module::{Limits, WasiProfile};

use crate::answer::*;
use crate::catalogue::{Catalogue, LineSpec, Step};
use crate::compute::Inner;
use crate::control::hex;
use crate::error::ComputeError;
use crate::guest::Program;
use crate::read::table_names;
use crate::reader::LogReader;
use crate::request::{At, CompareRequest, ReadOptions, ReplayCode, ReplayRequest};
use crate::runner::{Applied, Runner, Source, Stop};

/// Batches between two calls of a sink's `progress`.
const PROGRESS_BATCHES: u64 = 256;

/// One replay of one partition: a runner with its own reader.
pub(crate) struct Replayer {
    pub(crate) runner: Runner,
    reader: LogReader,
    pub(crate) partition: u32,
    pub(crate) target: u64,
    pub(crate) halted: Option<(u64, String)>,
}

/// A batch that was applied, or the one that the guest stopped at.
pub(crate) struct Replayed {
    pub(crate) batch: StoredBatch,
    pub(crate) applied: Applied,
}

impl Replayer {
    pub(crate) fn new(
        inner: &Inner,
        partition: u32,
        spec: LineSpec,
        source: Source,
        target: u64,
    ) -> Replayer {
        let database_id = inner.engine.database_id();
        let runner = Runner::new(database_id, partition, Arc::new(spec), source);
        let first = inner
            .engine
            .first_sequence(partition)
            .max(runner.applied + 1);
        Replayer {
            reader: LogReader::new(&inner.engine, partition, runner.applied + 1),
            runner,
            partition,
            target,
            halted: None,
        }
        .check_start(first)
    }

    fn check_start(mut self, first: u64) -> Replayer {
        if first > self.runner.applied + 1 {
            self.halted = Some((
                self.runner.applied + 1,
                format!("events before {first} were trimmed: what they gave cannot be recomputed"),
            ));
        }
        self
    }

    /// Why the state cannot be made again, before anything was applied.
    pub(crate) fn trimmed(&self) -> Option<String> {
        self.halted.as_ref().map(|(_, reason)| reason.clone())
    }

    /// Applies the next batch. `None` at the target, or once the guest stopped.
    pub(crate) fn next(&mut self) -> Result<Option<Replayed>, ComputeError> {
        if self.halted.is_some() {
            return Ok(None);
        }
        let Some(batch) = self.reader.next_batch(self.target)? else {
            return Ok(None);
        };
        match self.runner.apply(&batch) {
            Ok(applied) => Ok(Some(Replayed { batch, applied })),
            Err(Stop::Module { reason }) => {
                self.halted = Some((batch.first_sequence, reason));
                Ok(None)
            }
            Err(stop) => Err(ComputeError::Guest {
                module: self.runner.spec.module.clone(),
                reason: stop.to_string(),
            }),
        }
    }

    /// What the state was made from, as of the target, or as of where it stopped.
    pub(crate) fn stamp(&self) -> Stamp {
        let step = self.runner.current_step();
        Stamp {
            partition: self.partition,
            module: self.runner.spec.module.clone(),
            generation: step.generation,
            module_hash: step.hash,
            sequence: self.runner.applied,
            timestamp_ns: self.runner.timestamp_ns,
            fingerprint: self.runner.fingerprint(),
        }
    }

    fn finish(mut self) -> ReplayedState {
        ReplayedState {
            stamp: self.stamp(),
            tables: table_names(&self.runner.current_step().manifest),
            rows: self.runner.tables().rows(),
            view: self.runner.view(),
            halted: self.halted,
        }
    }
}

/// Where replays of a partition end.
pub(crate) fn target(inner: &Inner, partition: u32, at: &At) -> Result<u64, ComputeError> {
    let committed = inner.engine.committed(partition);
    let sequence = inner.reads.sequence_of(partition, at)?;
    match sequence {
        Some(sequence) if sequence > committed => Err(ComputeError::invalid(format!(
            "event {sequence} of partition {partition} is not committed; the last one is {committed}"
        ))),
        Some(sequence) => Ok(sequence),
        None => Ok(committed),
    }
}

pub(crate) fn require_replay(inner: &Inner) -> Result<(), ComputeError> {
    if inner.config.replay {
        Ok(())
    } else {
        Err(ComputeError::Role { role: "replay" })
    }
}

/// A partition's catalogue. Without folds nobody keeps one: it is read here.
pub(crate) fn catalogue(inner: &Inner, partition: u32) -> Result<Arc<Catalogue>, ComputeError> {
    let shared = &inner.partitions[partition as usize];
    if inner.config.compute || inner.config.query {
        return Ok(shared.catalogue());
    }
    let mut catalogue = Catalogue::default();
    let first = inner.engine.first_sequence(partition);
    let types = [crate::control::CONTROL_TYPE];
    crate::reader::read_types_from(&inner.engine, partition, first, &types, |stored| {
        catalogue.apply(stored.sequence, &stored.event());
    })?;
    let catalogue = Arc::new(catalogue);
    *shared.catalogue.write() = Arc::clone(&catalogue);
    Ok(catalogue)
}

/// How a code's tables are made in a partition.
pub(crate) fn plan(
    inner: &Inner,
    partition: u32,
    module: &str,
    code: &ReplayCode,
    target: u64,
) -> Result<(LineSpec, Source), ComputeError> {
    let catalogue = catalogue(inner, partition)?;
    let no_module = || ComputeError::NoSuchModule {
        module: module.to_owned(),
    };
    let here = Source::Here(Arc::clone(&inner.programs));
    match code {
        ReplayCode::Recorded { generation } => {
            let life = catalogue.modules.get(module).ok_or_else(no_module)?;
            let generation = match generation {
                Some(number) => life.generation(*number),
                None => life.at(target).or_else(|| life.current()),
            };
            let line = generation.ok_or_else(no_module)?.line;
            let spec = catalogue.line(module, line).ok_or_else(no_module)?;
            Ok((spec, here))
        }
        ReplayCode::Published { hash } => {
            let wasm = inner.programs.bytes(partition, hash);
            let wasm = wasm.map_err(|_| ComputeError::NotPublished { hash: hex(hash) })?;
            fixed(inner, &catalogue, module, &wasm)
        }
        ReplayCode::Bytes { wasm } => fixed(inner, &catalogue, module, wasm),
    }
}

/// A code from the first event on, under the limits of the module's current generation.
fn fixed(
    inner: &Inner,
    catalogue: &Catalogue,
    module: &str,
    wasm: &[u8],
) -> Result<(LineSpec, Source), ComputeError> {
    let refused = |reason| ComputeError::Refused { reason };
    let inspected = inner.runtime.inspect(wasm).map_err(refused)?;
    let current = catalogue
        .modules
        .get(module)
        .and_then(|life| life.current());
    let limits = current.map_or_else(Limits::default, |current| current.limits);
    let wasi = current.map_or(WasiProfile::None, |current| current.wasi);
    let program: Arc<dyn Program> = inner
        .runtime
        .load(&inspected.bytes, &limits, wasi)
        .map_err(refused)?;
    if !inspected.manifest.kind.owns_tables() {
        return Err(ComputeError::invalid(format!(
            "a {} has no tables to replay",
            inspected.manifest.kind
        )));
    }
    let step = Step {
        from_sequence: 1,
        generation: 0,
        hash: inspected.hash,
        manifest: Arc::new(inspected.manifest),
        limits,
        wasi,
        semantics_id: inner.runtime.semantics_id(&limits),
        migrate: false,
    };
    let spec = LineSpec {
        module: module.to_owned(),
        line: 0,
        steps: vec![step],
        skips: Vec::new(),
        marks: Arc::new(catalogue.marks.clone()),
        turns: Vec::new(),
    };
    Ok((spec, Source::Fixed(program)))
}

/// Tells a sink how far it is; stops the work if it says so.
pub(crate) struct Pace<'a> {
    sink: &'a mut (dyn ReplaySink + Send),
    batches: u64,
    events: u64,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(sink: &'a mut (dyn ReplaySink + Send)) -> Pace<'a> {
        Pace {
            sink,
            batches: 0,
            events: 0,
        }
    }

    pub(crate) fn step(&mut self, replayer: &Replayer, events: u64) -> Result<(), ComputeError> {
        self.batches += 1;
        self.events += events;
        if self.batches.is_multiple_of(PROGRESS_BATCHES) {
            self.tell(replayer)?;
        }
        Ok(())
    }

    pub(crate) fn tell(&mut self, replayer: &Replayer) -> Result<(), ComputeError> {
        let progress = Progress {
            partition: replayer.partition,
            sequence: replayer.runner.applied,
            target: replayer.target,
            events: self.events,
        };
        go_on(self.sink.progress(progress))
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), ComputeError> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ComputeError::Cancelled),
    }
}

fn partitions(inner: &Inner, partition: Option<u32>, to: &At) -> Result<Vec<u32>, ComputeError> {
    let options = ReadOptions {
        at: to.clone(),
        ..ReadOptions::default()
    };
    inner.reads.asked(partition, &options)
}

/// See [`crate::Compute::replay`].
pub(crate) fn replay(
    inner: &Inner,
    request: &ReplayRequest,
    sink: &mut (dyn ReplaySink + Send),
) -> Result<Vec<ReplayedState>, ComputeError> {
    require_replay(inner)?;
    let mut states = Vec::new();
    let mut pace = Pace::new(sink);
    for partition in partitions(inner, request.partition, &request.to)? {
        let target = target(inner, partition, &request.to)?;
        let (spec, source) = plan(inner, partition, &request.module, &request.code, target)?;
        let mut replayer = Replayer::new(inner, partition, spec, source, target);
        while let Some(replayed) = replayer.next()? {
            let Replayed { batch, applied } = replayed;
            pace.step(&replayer, applied.events)?;
            let wanted = request
                .changes_from
                .is_some_and(|from| batch.last_sequence() >= from);
            if wanted && !applied.changes.is_empty() {
                go_on(pace.sink.batch(ReplayedBatch {
                    partition,
                    first_sequence: batch.first_sequence,
                    last_sequence: batch.last_sequence(),
                    timestamp_ns: batch.timestamp_ns,
                    changes: applied.changes,
                    fingerprint: replayer.runner.fingerprint(),
                }))?;
            }
        }
        pace.tell(&replayer)?;
        states.push(replayer.finish());
    }
    Ok(states)
}

/// See [`crate::Compute::compare`].
pub(crate) fn compare(
    inner: &Inner,
    request: &CompareRequest,
    sink: &mut (dyn ReplaySink + Send),
) -> Result<Vec<Comparison>, ComputeError> {
    require_replay(inner)?;
    let mut comparisons = Vec::new();
    let mut pace = Pace::new(sink);
    for partition in partitions(inner, request.partition, &request.to)? {
        let target = target(inner, partition, &request.to)?;
        let side = |code: &ReplayCode| {
            let (spec, source) = plan(inner, partition, &request.module, code, target)?;
            Ok::<_, ComputeError>(Replayer::new(inner, partition, spec, source, target))
        };
        let (mut left, mut right) = (side(&request.left)?, side(&request.right)?);
        let mut first_batch = None;
        loop {
            // In step, so that the first batch after which they differ is found on the way.
            let (one, other) = (left.next()?, right.next()?);
            let batch = match (&one, &other) {
                (None, None) => break,
                (Some(replayed), _) | (None, Some(replayed)) => &replayed.batch,
            };
            let in_step = left.runner.applied == right.runner.applied;
            let differ = left.runner.fingerprint() != right.runner.fingerprint();
            if first_batch.is_none() && in_step && differ {
                first_batch = Some((batch.first_sequence, batch.last_sequence()));
            }
            let events = |side: &Option<Replayed>| side.as_ref().map_or(0, |r| r.applied.events);
            pace.step(&left, events(&one) + events(&other))?;
        }
        pace.tell(&left)?;
        comparisons.push(compare_states(request, left, right, first_batch));
    }
    Ok(comparisons)
}

fn compare_states(
    request: &CompareRequest,
    left: Replayer,
    right: Replayer,
    first_batch: Option<(u64, u64)>,
) -> Comparison {
    let partition = left.partition;
    let (left, right) = (left.finish(), right.finish());
    let (mut differing, mut rows) = (0, Vec::new());
    let mut names: Vec<&String> = left.tables.iter().chain(&right.tables).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        diff_table(&left, &right, name, &mut |row| {
            differing += 1;
            if rows.len() < request.rows_max {
                rows.push(row);
            }
        });
    }
    Comparison {
        partition,
        left: left.stamp,
        right: right.stamp,
        differing,
        rows,
        first_batch,
    }
}

/// Rows of a table, by name, that differ between two states.
fn diff_table(
    left: &ReplayedState,
    right: &ReplayedState,
    name: &str,
    tell: &mut dyn FnMut(RowDifference),
) {
    let rows = |state: &ReplayedState| {
        let mut rows = std::collections::BTreeMap::new();
        let index = state.tables.iter().position(|table| table == name);
        if let Some(index) = index.and_then(|index| u32::try_from(index).ok()) {
            state
                .view
                .scan(index, &[], None, u64::MAX, false, &mut |key, value| {
                    rows.insert(key.to_vec(), value.to_vec());
                    true
                });
        }
        rows
    };
    let (left, mut right) = (rows(left), rows(right));
    for (key, value) in left {
        let other = right.remove(&key);
        if other.as_ref() != Some(&value) {
            tell(RowDifference {
                table: name.to_owned(),
                key,
                left: Some(value),
                right: other,
            });
        }
    }
    for (key, value) in right {
        tell(RowDifference {
            table: name.to_owned(),
            key,
            left: None,
            right: Some(value),
        });
    }
}
