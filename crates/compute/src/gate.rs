//! Validators: who may refuse an append, with the state as of exactly the event before.
//!
//! The writer of a partition asks on its own thread. So that the state is that of the event before,
//! committed or not, the gate folds what the writer encodes into runners of its own, ahead of the
//! fold; a write that fails stops the partition for good, so what was folded ahead is never taken
//! back. A verdict is not recorded: the presence of the event is the verdict, and the activations in
//! the same log say which validator gave it.
//!
//! Every control event that may change who decides, or by what state, closes the gate until the fold
//! has read it; appends are refused as retryable for those milliseconds, and at the start until the
//! state is there. No append slips through undecided.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use truthdb_engine::{AppendError, AppendGate, Engine, GateBatch, GateVerdict};
use truthdb_log::StoredBatch;
use truthdb_module::{EventColumns, InstanceContext, ModuleKind, Verdict, module_seed};

use crate::answer::FoldState;
use crate::canary::{Canary, planted};
use crate::catalogue::{Catalogue, EPOCH_EVENTS, Generation, LineSpec, Step, is_control};
use crate::control::{Fact, SNAPSHOT_STREAM, decode_control};
use crate::guest::{Guest, Program};
use crate::line::Line;
use crate::past::Rows;
use crate::programs::{Found, Programs};
use crate::query::step_of;
use crate::reader::LogReader;
use crate::runner::{Runner, Source, fill_columns};
use crate::shared::PartitionShared;
use crate::tables::ReadTables;

/// Bytes of encoded batches that wait to be folded ahead; over it they are folded at once.
const AHEAD_BYTES: usize = 1 << 20;
/// Milliseconds after which a refused caller should try again.
const RETRY_AFTER_MS: u64 = 20;

/// A validator that decides.
struct Validator {
    generation: Generation,
    program: Arc<dyn Program>,
    /// For each of its tables: the runner's key, and the table's index there.
    tables: Vec<(String, u32)>,
    /// The guest, and the epoch that it was made in.
    guest: Option<(u64, Box<dyn Guest>)>,
}

#[derive(Default)]
struct State {
    /// Sequence that the writer's next event gets; 0 before it has taken the gate.
    next_sequence: u64,
    /// Nobody has said yet who decides.
    starting: bool,
    /// The newest control event that may change who decides, or by what state.
    closed_by: u64,
    /// The control events up to here are taken into account.
    opened_through: u64,
    /// Why nobody can decide.
    reason: String,
    validators: BTreeMap<String, Validator>,
    runners: BTreeMap<String, Runner>,
    /// Encoded batches that are not folded ahead yet.
    ahead: VecDeque<StoredBatch>,
    ahead_bytes: usize,
    /// Encoded batches are kept.
    recording: bool,
    columns: Arc<EventColumns>,
    metadata: Vec<u8>,
}

struct Shared {
    partition: u32,
    database_id: [u8; 16],
    armed: AtomicBool,
    state: Mutex<State>,
    fold: Arc<PartitionShared>,
}

/// The writer's side.
struct Gate(Arc<Shared>);

/// The fold's side.
pub(crate) struct GateLink {
    engine: Engine,
    programs: Arc<Programs>,
    shared: Arc<Shared>,
}

fn owners(generation: &Generation) -> impl Iterator<Item = &str> {
    generation
        .manifest
        .tables
        .iter()
        .map(|table| table.module.as_str())
}

impl State {
    fn is_closed(&self) -> bool {
        self.starting || self.closed_by > self.opened_through
    }

    /// Whether somebody decides, or is to: any change of modules then matters.
    fn is_used(&self) -> bool {
        self.is_closed() || !self.validators.is_empty()
    }

    fn close(&mut self, sequence: u64, reason: &str) {
        self.closed_by = self.closed_by.max(sequence);
        reason.clone_into(&mut self.reason);
        self.recording = true;
    }

    fn record(&mut self, batch: StoredBatch) {
        if self.is_closed() && self.ahead_bytes > AHEAD_BYTES {
            // Nobody folds them while it is closed: who opens it waits for the fold to pass them.
            self.forget_ahead();
        }
        self.ahead_bytes += batch.body_bytes();
        self.ahead.push_back(batch);
    }

    /// First sequence of what is kept: what is encoded from here on is recorded.
    fn recorded(&self) -> u64 {
        let front = self.ahead.front();
        front.map_or(self.next_sequence, |batch| batch.first_sequence)
    }

    /// Whether everything that a runner has not applied is kept.
    fn reaches(&self, module: &str, applied: u64) -> Result<(), String> {
        let recorded = self.recorded();
        if applied + 1 < recorded {
            return Err(format!(
                "the state of {module} has reached {applied}, needed is {}",
                recorded - 1
            ));
        }
        Ok(())
    }

    fn forget_ahead(&mut self) {
        self.ahead.clear();
        self.ahead_bytes = 0;
    }

    /// Folds ahead what was encoded.
    fn catch_up(&mut self) -> Result<(), (String, String)> {
        let kept = usize::from(planted(Canary::ValidateLate));
        while self.ahead.len() > kept
            && let Some(batch) = self.ahead.pop_front()
        {
            self.ahead_bytes -= batch.body_bytes();
            for (module, runner) in &mut self.runners {
                if batch.last_sequence() <= runner.applied {
                    continue;
                }
                note_marks(runner, &batch);
                if let Err(stop) = runner.apply(&batch) {
                    let reason = stop.to_string();
                    return Err((module.clone(), reason));
                }
            }
        }
        Ok(())
    }
}

/// A mark in a batch ends the memory of guests after it, also of those ahead of the fold.
fn note_marks(runner: &mut Runner, batch: &StoredBatch) {
    for stored in batch.events() {
        if stored.event().stream() != SNAPSHOT_STREAM {
            continue;
        }
        if runner
            .spec
            .marks
            .last()
            .is_none_or(|last| *last < stored.sequence)
        {
            let mut spec = crate::catalogue::LineSpec::clone(&runner.spec);
            Arc::make_mut(&mut spec.marks).push(stored.sequence);
            runner.set_spec(Arc::new(spec));
        }
    }
}

impl AppendGate for Gate {
    fn attached(&mut self, next_sequence: u64) {
        self.0.state.lock().next_sequence = next_sequence;
        self.0.fold.signal.wake();
    }

    fn is_armed(&self) -> bool {
        self.0.armed.load(Ordering::Acquire)
    }

    fn decide(&mut self, batch: &StoredBatch) -> GateVerdict {
        let mut state = self.0.state.lock();
        if state.is_closed() {
            self.0.fold.signal.wake();
            return self.not_ready(&state);
        }
        if let Err((module, reason)) = state.catch_up() {
            // The batch that asks is not encoded: the fold can catch up with all that is.
            let sequence = state.next_sequence - 1;
            state.close(sequence, &format!("module {module} stopped: {reason}"));
            self.0.fold.signal.wake();
            return self.not_ready(&state);
        }
        let state = &mut *state;
        for (name, validator) in &mut state.validators {
            let verdict = validator.decide(
                name,
                &self.0,
                &mut state.runners,
                &mut state.columns,
                &mut state.metadata,
                batch,
            );
            if let Some(error) = verdict {
                return GateVerdict::Refuse(error);
            }
        }
        GateVerdict::Accept
    }

    fn encoded(&mut self, batch: &GateBatch<'_>) {
        let mut state = self.0.state.lock();
        state.next_sequence = batch.last_sequence() + 1;
        let needed = state.recording || batch.is_own();
        if !needed {
            return;
        }
        let stored = batch.to_stored();
        if batch.is_own() {
            self.note_control(&mut state, &stored);
        }
        if state.recording {
            state.record(stored);
            if state.ahead_bytes > AHEAD_BYTES && !state.is_closed() {
                // A failure shows again when somebody asks.
                if let Err((module, reason)) = state.catch_up() {
                    let sequence = state.next_sequence - 1;
                    state.close(sequence, &format!("module {module} stopped: {reason}"));
                }
            }
        }
    }
}

impl Gate {
    fn not_ready(&self, state: &State) -> GateVerdict {
        let names: Vec<&str> = state.validators.keys().map(String::as_str).collect();
        GateVerdict::Refuse(AppendError::ValidatorNotReady {
            partition: self.0.partition,
            validator: names.join(", "),
            reason: state.reason.clone(),
            retry_after_ms: RETRY_AFTER_MS,
        })
    }

    /// Closes the gate at a control event that may change who decides.
    fn note_control(&self, state: &mut State, batch: &StoredBatch) {
        for stored in batch.events() {
            let event = stored.event();
            if !is_control(&event) || event.stream() == SNAPSHOT_STREAM {
                continue;
            }
            let Some(control) = decode_control(event.payload()) else {
                continue;
            };
            let concerns = match &control.fact {
                Fact::Activated { module_kind, .. } => {
                    state.is_used() || module_kind == ModuleKind::Validator.name()
                }
                Fact::Published { .. } | Fact::StateCheckpoint { .. } => false,
                _ => state.is_used(),
            };
            if concerns {
                state.close(stored.sequence, "a decision about modules is taken up");
                self.0.armed.store(true, Ordering::Release);
            }
        }
    }
}

impl Validator {
    fn decide(
        &mut self,
        name: &str,
        shared: &Shared,
        runners: &mut BTreeMap<String, Runner>,
        columns: &mut Arc<EventColumns>,
        metadata: &mut Vec<u8>,
        batch: &StoredBatch,
    ) -> Option<AppendError> {
        let manifest = Arc::clone(&self.generation.manifest);
        let events = fill_columns(Arc::make_mut(columns), metadata, batch, &manifest, |_| {
            false
        });
        if events == 0 {
            return None;
        }
        let failed = |reason: String| AppendError::ValidatorFailed {
            validator: name.to_owned(),
            reason,
        };
        let epoch = batch.first_sequence / EPOCH_EVENTS;
        let kept = self.guest.take().filter(|(made_in, _)| *made_in == epoch);
        let mut guest = match kept {
            Some((_, guest)) => guest,
            None => {
                let hash = &self.generation.hash;
                let context = InstanceContext {
                    seed: module_seed(&shared.database_id, hash, shared.partition),
                    sequence: (epoch * EPOCH_EVENTS).saturating_sub(1),
                    time: batch.timestamp_ns,
                };
                match self.program.instantiate(&context) {
                    Ok(guest) => guest,
                    Err(halt) => return Some(failed(halt.to_string())),
                }
            }
        };
        let mut tables = Box::new(ReadTables::default());
        for (module, index) in &self.tables {
            let Some(runner) = runners.get_mut(module) else {
                return Some(failed(format!("the state of {module} is not there")));
            };
            tables.tables.push((Rows::Memory(runner.view()), *index));
        }
        let (_, verdicts) = guest.validate(tables, columns);
        let verdicts = match verdicts {
            Ok(verdicts) => verdicts,
            Err(halt) => return Some(failed(halt.to_string())),
        };
        if verdicts.len() != events {
            return Some(failed(format!(
                "it gave {} verdicts on {events} events",
                verdicts.len()
            )));
        }
        self.guest = Some((epoch, guest));
        for (index, verdict) in verdicts.into_iter().enumerate() {
            if let Verdict::Reject(rejection) = verdict {
                let sequence = columns.sequences.get(index).copied();
                let place = sequence.unwrap_or(batch.first_sequence) - batch.first_sequence;
                return Some(AppendError::Rejected {
                    validator: name.to_owned(),
                    index: usize::try_from(place).unwrap_or(usize::MAX),
                    code: rejection.code,
                    message: rejection.message,
                });
            }
        }
        None
    }
}

/// What is to decide from now on.
#[derive(Default)]
struct Served {
    validators: BTreeMap<String, Validator>,
    runners: BTreeMap<String, Runner>,
}

impl Served {
    /// Takes the place of what decided before, if nothing between the runners and what is recorded is
    /// missing.
    fn enter(self, state: &mut State) -> Result<(), String> {
        for (module, runner) in &self.runners {
            state.reaches(module, runner.applied)?;
        }
        let oldest = self.runners.values().map(|runner| runner.applied).min();
        while let (Some(oldest), Some(front)) = (oldest, state.ahead.front())
            && front.last_sequence() <= oldest
        {
            let bytes = front.body_bytes();
            state.ahead.pop_front();
            state.ahead_bytes -= bytes;
        }
        state.validators = self.validators;
        state.runners = self.runners;
        if state.runners.is_empty() {
            state.forget_ahead();
        }
        Ok(())
    }
}

/// A module's current line, and how its tables are made.
fn line_of<'a>(
    catalogue: &Catalogue,
    module: &str,
    lines: &'a [Line],
) -> Result<(&'a Line, LineSpec), String> {
    let life = catalogue.modules.get(module);
    let number = life
        .and_then(|life| life.current())
        .map(|current| current.line);
    let number = number.ok_or_else(|| format!("module {module} is not active"))?;
    let spec = catalogue
        .line(module, number)
        .ok_or_else(|| format!("module {module} is not active"))?;
    let line = lines
        .iter()
        .find(|line| line.spec().module == module && line.spec().line == number)
        .ok_or_else(|| format!("the state of {module} is being made"))?;
    if let (Some((sequence, _)), _) | (None, FoldState::Halted { sequence, .. }) =
        (&line.halt, &line.state)
    {
        return Err(format!("module {module} is halted at event {sequence}"));
    }
    Ok((line, spec))
}

/// Whether the folds have come to what is recorded, so that runners are worth making.
fn reached(
    state: &State,
    catalogue: &Catalogue,
    wanted: &[(String, Generation)],
    lines: &[Line],
) -> Result<(), String> {
    for (_, generation) in wanted {
        for owner in owners(generation) {
            let (line, _) = line_of(catalogue, owner, lines)?;
            state.reaches(owner, line.runner.applied)?;
        }
    }
    Ok(())
}

impl GateLink {
    /// Puts the gate before the partition's appends, closed until the catalogue is known.
    pub(crate) fn new(
        engine: &Engine,
        partition: u32,
        programs: &Arc<Programs>,
        fold: &Arc<PartitionShared>,
    ) -> GateLink {
        let shared = Arc::new(Shared {
            partition,
            database_id: engine.database_id(),
            armed: AtomicBool::new(true),
            state: Mutex::new(State {
                starting: true,
                reason: "the modules of the partition are being read".to_owned(),
                ..State::default()
            }),
            fold: Arc::clone(fold),
        });
        if engine.config().ingest
            && let Err(error) = engine.set_gate(partition, Box::new(Gate(Arc::clone(&shared))))
        {
            tracing::debug!(partition, error = %error, "a fenced partition has no gate");
        }
        GateLink {
            engine: engine.clone(),
            programs: Arc::clone(programs),
            shared,
        }
    }

    /// Says why the gate stays closed where nobody will open it.
    pub(crate) fn explain(&self, reason: &str) {
        reason.clone_into(&mut self.shared.state.lock().reason);
    }

    /// Brings who decides in line with the catalogue, which holds everything up to `controlled`.
    pub(crate) fn step(&mut self, catalogue: &Catalogue, controlled: u64, lines: &[Line]) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        if !state.is_closed() || controlled < state.closed_by {
            return false;
        }
        let wanted: Vec<(String, Generation)> = catalogue
            .validators()
            .map(|(name, generation)| (name.to_owned(), generation.clone()))
            .collect();
        if wanted.is_empty() {
            state.validators.clear();
            state.runners.clear();
            state.forget_ahead();
            state.recording = false;
            state.starting = false;
            state.opened_through = state.closed_by;
            self.shared.armed.store(false, Ordering::Release);
            return true;
        }
        state.recording = true;
        if state.next_sequence == 0 {
            return false;
        }
        let closed_by = state.closed_by;
        if let Err(reason) = reached(&state, catalogue, &wanted, lines) {
            state.reason = reason;
            return false;
        }
        // Up to an epoch of guest calls: the writer must not wait for them at the gate.
        drop(state);
        let served = self.serve(catalogue, &wanted, lines);
        let mut state = shared.state.lock();
        if state.closed_by != closed_by {
            // Something else is to be taken into account; the fold reads it first.
            return false;
        }
        let opened = served.and_then(|served| served.enter(&mut state));
        match opened {
            Ok(()) => {
                state.starting = false;
                state.opened_through = state.closed_by;
                self.shared.armed.store(true, Ordering::Release);
                true
            }
            Err(reason) => {
                state.reason = reason;
                false
            }
        }
    }

    /// Makes validators and the runners that they read.
    fn serve(
        &self,
        catalogue: &Catalogue,
        wanted: &[(String, Generation)],
        lines: &[Line],
    ) -> Result<Served, String> {
        let mut served = Served::default();
        let runners = &mut served.runners;
        for (name, generation) in wanted {
            let program = self.program(name, &step_of(generation))?;
            for owner in owners(generation) {
                if !runners.contains_key(owner) {
                    let runner = self.runner(catalogue, owner, lines)?;
                    runners.insert(owner.to_owned(), runner);
                }
            }
            let mut tables = Vec::new();
            for table in &generation.manifest.tables {
                let runner = &runners[&table.module];
                let names = &runner.current_step().manifest.tables;
                let index = names.iter().position(|t| t.name == table.name);
                let index = index
                    .and_then(|index| u32::try_from(index).ok())
                    .ok_or_else(|| {
                        format!(
                            "module {} has no table {} any more",
                            table.module, table.name
                        )
                    })?;
                tables.push((table.module.clone(), index));
            }
            let validator = Validator {
                generation: generation.clone(),
                program,
                tables,
                guest: None,
            };
            served.validators.insert(name.clone(), validator);
        }
        Ok(served)
    }

    /// The code that a step runs, if it is ready.
    fn program(&self, name: &str, step: &Step) -> Result<Arc<dyn Program>, String> {
        match self.programs.get(self.shared.partition, step) {
            Found::Ready(program) => Ok(program),
            Found::Loading => Err(format!("the code of {name} is being made ready")),
            Found::Failed(reason) => Err(reason.to_string()),
        }
    }

    /// A runner of a module's current tables that has applied what the fold has.
    fn runner(
        &self,
        catalogue: &Catalogue,
        module: &str,
        lines: &[Line],
    ) -> Result<Runner, String> {
        let (line, spec) = line_of(catalogue, module, lines)?;
        // Who opens it and has no code for the next event would close it again at once.
        for step in &spec.steps[spec.step_at(line.runner.applied)..] {
            self.program(module, step)?;
        }
        // The guest's memory must be what the fold's guest has: it is run from where that began.
        let source = Source::Background(Arc::clone(&self.programs));
        let (spec, partition) = (Arc::new(spec), self.shared.partition);
        let database_id = self.shared.database_id;
        let base = line.shared.get().retained.back().cloned();
        let mut runner = match base {
            Some(version) => Runner::at(
                database_id,
                partition,
                spec,
                source,
                truthdb_state::Tables::from_view(&version.view),
                version.sequence,
                version.timestamp_ns,
            ),
            None => Runner::new(database_id, partition, spec, source),
        };
        let mut reader = LogReader::new(&self.engine, partition, runner.applied + 1);
        while runner.applied < line.runner.applied {
            let batch = reader.next_batch(line.runner.applied);
            let batch = batch.map_err(|error| crate::error::chain(&error))?;
            let Some(batch) = batch else { break };
            runner.apply(&batch).map_err(|stop| stop.to_string())?;
        }
        Ok(runner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_while_nobody_folds_it_is_bounded() {
        let batch = |first_sequence| StoredBatch {
            first_sequence,
            timestamp_ns: 1,
            event_count: 1,
            body: vec![0; AHEAD_BYTES / 3].into(),
        };
        let mut state = State {
            starting: true,
            ..State::default()
        };
        for sequence in 1..100 {
            state.record(batch(sequence));
            let bytes: usize = state.ahead.iter().map(StoredBatch::body_bytes).sum();
            assert_eq!(state.ahead_bytes, bytes);
            assert!(bytes <= AHEAD_BYTES + AHEAD_BYTES / 3, "{bytes}");
            let last = state.ahead.back().map(|batch| batch.first_sequence);
            assert_eq!(last, Some(sequence), "nothing is missing at the end");
        }
    }
}
