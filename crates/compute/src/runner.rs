//! The runner: one line's tables and guest, and the one way in which a batch changes them.
//!
//! The fold, recovery, as-of reads, replay, verification and validators all run the same runner, so
//! that they cannot differ in what a batch means.
//!
//! Invariants:
//! 1. One guest call is one committed batch, filtered by subscription and skips.
//! 2. A guest lives from one memory start to the next ([`LineSpec::memory_start`]); all that it
//!    keeps beyond that is in the tables.
//! 3. A batch is applied whole or not at all: after an error the tables are those of before, and
//!    the runner may be asked again.
//!
//! It does no I/O and appends nothing: what a guest emits is handed on.

use std::sync::Arc;

use truthdb_log::StoredBatch;
use truthdb_module::{
    ColumnEvent, Emit, EventColumns, Halt, HaltClass, InstanceContext, LogLine, Manifest, Moment,
    module_seed, push_metadata_pair,
};
use truthdb_state::{Changes, Fingerprint, Tables, View};

use crate::canary::{Canary, planted};
use crate::catalogue::{LineSpec, Step};
use crate::emit::{Derived, derive};
use crate::guest::{Guest, Program};
use crate::programs::{Found, Programs};
use crate::tables::FoldTables;

/// What a batch did.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    pub(crate) changes: Changes,
    pub(crate) derived: Vec<Derived>,
    emits: Vec<Emit>,
    pub(crate) logs: Vec<LogLine>,
    /// Events that were given to the guest.
    pub(crate) events: u64,
    pub(crate) fuel: u64,
}

/// Why a batch was not applied. The tables are those of before.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Stop {
    /// The program is being made.
    #[error("its code is being made ready")]
    Loading,
    /// The module is at fault: the same batch would stop it again.
    #[error("{reason}")]
    Module { reason: String },
    /// This process or machine is in the way: later it may go on.
    #[error("{reason}")]
    Host { reason: String },
}

impl Stop {
    fn of(module: &str, halt: &Halt, logs: &[LogLine]) -> Stop {
        let words = logs.last().map_or_else(String::new, |line| {
            format!("; its last message: {}", line.message)
        });
        let reason = format!("module {module}: {halt}{words}");
        match halt.class() {
            HaltClass::Module => Stop::Module { reason },
            HaltClass::State | HaltClass::Host => Stop::Host { reason },
        }
    }
}

/// Where guests get their programs from.
#[derive(Clone)]
pub(crate) enum Source {
    /// Made in the background; until then [`Stop::Loading`].
    Background(Arc<Programs>),
    /// Made where they are needed.
    Here(Arc<Programs>),
    /// This one, whatever the step says.
    Fixed(Arc<dyn Program>),
}

impl Source {
    fn program(&self, partition: u32, step: &Step) -> Result<Arc<dyn Program>, Stop> {
        let found = match self {
            Source::Background(programs) => programs.get(partition, step),
            Source::Here(programs) => programs.load(partition, step),
            Source::Fixed(program) => Found::Ready(Arc::clone(program)),
        };
        match found {
            Found::Ready(program) => Ok(program),
            Found::Loading => Err(Stop::Loading),
            Found::Failed(reason) => Err(Stop::Host {
                reason: reason.to_string(),
            }),
        }
    }
}

struct LiveGuest {
    guest: Box<dyn Guest>,
    memory_start: u64,
    generation: u32,
}

/// See the module's description.
pub(crate) struct Runner {
    database_id: [u8; 16],
    partition: u32,
    pub(crate) spec: Arc<LineSpec>,
    source: Source,
    tables: Option<Box<FoldTables>>,
    /// Index of the step that the tables are of.
    step: usize,
    guest: Option<LiveGuest>,
    columns: Arc<EventColumns>,
    metadata: Vec<u8>,
    /// Memory start of the last batch; none where tables are that recovery may go on from.
    memory: Option<u64>,
    /// Last sequence that is applied.
    pub(crate) applied: u64,
    /// Time of the last batch that is applied, nanoseconds UTC; 0 before the first.
    pub(crate) timestamp_ns: u64,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("module", &self.spec.module)
            .field("line", &self.spec.line)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

fn table_count(manifest: &Manifest) -> u32 {
    u32::try_from(manifest.tables.len()).expect("the tables of a manifest are limited")
}

impl Runner {
    /// Empty tables before the line's first event.
    pub(crate) fn new(
        database_id: [u8; 16],
        partition: u32,
        spec: Arc<LineSpec>,
        source: Source,
    ) -> Runner {
        let tables = Tables::new(table_count(&spec.steps[0].manifest));
        let applied = spec.first_sequence() - 1;
        Runner::at(database_id, partition, spec, source, tables, applied, 0)
    }

    /// Goes on from tables at a sequence.
    pub(crate) fn at(
        database_id: [u8; 16],
        partition: u32,
        spec: Arc<LineSpec>,
        source: Source,
        tables: Tables,
        applied: u64,
        timestamp_ns: u64,
    ) -> Runner {
        Runner {
            database_id,
            partition,
            step: spec.step_at(applied),
            spec,
            source,
            tables: Some(Box::new(FoldTables::new(tables))),
            guest: None,
            columns: Arc::new(EventColumns::default()),
            metadata: Vec::new(),
            memory: None,
            applied,
            timestamp_ns,
        }
    }

    /// Empty tables before the line's first event, of the same module.
    pub(crate) fn again(&self) -> Runner {
        let (spec, source) = (Arc::clone(&self.spec), self.source.clone());
        Runner::new(self.database_id, self.partition, spec, source)
    }

    /// Goes on from other tables, at a place from which a guest may go on.
    pub(crate) fn reset(&mut self, tables: Tables, applied: u64, timestamp_ns: u64) {
        self.tables = Some(Box::new(FoldTables::new(tables)));
        self.step = self.spec.step_at(applied);
        self.guest = None;
        self.memory = None;
        self.applied = applied;
        self.timestamp_ns = timestamp_ns;
    }

    fn tables_mut(&mut self) -> &mut Tables {
        &mut self
            .tables
            .as_mut()
            .expect("a call gives the tables back")
            .tables
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self
            .tables
            .as_ref()
            .expect("a call gives the tables back")
            .tables
    }

    pub(crate) fn view(&mut self) -> View {
        self.tables_mut().view()
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.tables().fingerprint()
    }

    /// The step whose tables these are.
    pub(crate) fn current_step(&self) -> &Step {
        &self.spec.steps[self.step]
    }

    /// Goes on with a spec that knows more of the log. What it says of the past is the same, but for
    /// a code that takes over at a halt.
    pub(crate) fn set_spec(&mut self, spec: Arc<LineSpec>) {
        let generation = self.current_step().generation;
        if let Some(step) = spec.steps.iter().position(|s| s.generation == generation) {
            self.step = step;
        } else {
            self.step = spec.step_at(self.applied);
        }
        self.spec = spec;
    }

    /// Whether the next batch begins with a new memory: only there a recovery may go on, since
    /// nobody can tell what an older guest would have in its memory.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.memory
            .is_none_or(|memory| memory != self.spec.memory_start(self.applied + 1))
    }

    /// The tables that a later code of the line needs, filled with the rows of those with the same
    /// names.
    fn tables_for(&mut self, step: usize) -> Option<Tables> {
        let old = Arc::clone(&self.spec.steps[self.step].manifest);
        let new = Arc::clone(&self.spec.steps[step].manifest);
        let same = old.tables.len() == new.tables.len()
            && old
                .tables
                .iter()
                .zip(&new.tables)
                .all(|(a, b)| a.name == b.name);
        if same {
            return None;
        }
        let mut tables = Tables::new(table_count(&new));
        let view = self.view();
        for (index, table) in (0u32..).zip(&new.tables) {
            let Some(from) = old.tables.iter().position(|t| t.name == table.name) else {
                continue;
            };
            let from = u32::try_from(from).expect("the tables of a manifest are limited");
            let mut changes = Changes::new();
            view.scan(from, &[], None, u64::MAX, false, &mut |key, value| {
                changes.push(index, key, Some(value));
                true
            });
            tables
                .apply(&changes)
                .expect("the table is one of the new ones");
        }
        Some(tables)
    }

    /// Applies recorded changes of batches up to `last`, without running anything. False if they are
    /// not of these tables.
    pub(crate) fn apply_changes(
        &mut self,
        changes: &Changes,
        last: u64,
        timestamp_ns: u64,
    ) -> bool {
        let step = self.spec.step_at(last);
        if step != self.step {
            if let Some(tables) = self.tables_for(step) {
                self.tables = Some(Box::new(FoldTables::new(tables)));
            }
            self.step = step;
        }
        if self.tables_mut().apply(changes).is_err() {
            return false;
        }
        self.guest = None;
        self.memory = None;
        self.applied = last;
        self.timestamp_ns = timestamp_ns;
        true
    }

    /// Gives a batch to the guest. It must be the one after the last.
    pub(crate) fn apply(&mut self, batch: &StoredBatch) -> Result<Applied, Stop> {
        assert_eq!(
            batch.first_sequence,
            self.applied.max(self.spec.first_sequence() - 1) + 1,
            "batches are applied in order"
        );
        let step = self.spec.step_at(batch.first_sequence);
        let events = self.fill(batch, step);
        let changes_code = step != self.step;
        if events == 0 && !changes_code {
            self.finish(batch);
            return Ok(Applied::default());
        }
        let before = (self.step, self.tables.is_some());
        debug_assert!(before.1, "a call gives the tables back");
        let kept = if changes_code {
            self.take_over(step)
        } else {
            None
        };
        let result = self.call(batch, events, changes_code);
        match result {
            Ok(applied) => {
                self.finish(batch);
                Ok(applied)
            }
            Err(stop) => {
                if changes_code {
                    self.step = before.0;
                    if let Some(kept) = kept {
                        self.tables = Some(kept);
                    }
                }
                self.guest = None;
                Err(stop)
            }
        }
    }

    /// The tables of the next code take the place of the old ones, which are returned if they differ.
    fn take_over(&mut self, step: usize) -> Option<Box<FoldTables>> {
        let tables = self.tables_for(step);
        self.step = step;
        tables.and_then(|tables| self.tables.replace(Box::new(FoldTables::new(tables))))
    }

    fn finish(&mut self, batch: &StoredBatch) {
        self.memory = Some(self.spec.memory_start(batch.first_sequence));
        self.applied = batch.last_sequence();
        self.timestamp_ns = batch.timestamp_ns;
    }

    /// Fills the columns with the events that the step's subscriptions match.
    fn fill(&mut self, batch: &StoredBatch, step: usize) -> usize {
        let manifest = Arc::clone(&self.spec.steps[step].manifest);
        let skips = !self.spec.skips.is_empty();
        let spec = Arc::clone(&self.spec);
        let columns = Arc::make_mut(&mut self.columns);
        fill_columns(columns, &mut self.metadata, batch, &manifest, |sequence| {
            skips && spec.is_skipped(sequence)
        })
    }

    fn call(
        &mut self,
        batch: &StoredBatch,
        events: usize,
        changes_code: bool,
    ) -> Result<Applied, Stop> {
        let step = self.spec.steps[self.step].clone();
        self.make_guest(batch, &step)?;
        let mut live = self.guest.take().expect("a guest was made");
        let mut tables = self.tables.take().expect("a call gives the tables back");
        tables.tables.begin();
        let mut applied = Applied {
            events: events as u64,
            ..Applied::default()
        };
        let mut result = Ok(());
        if changes_code && step.migrate {
            let previous = self.previous_manifest();
            let at = Moment {
                sequence: self.applied,
                time: self.timestamp_ns,
            };
            let (back, outcome) = live.guest.migrate(tables, &previous, &at);
            tables = back;
            result = outcome.map(|processed| applied.take(processed));
        }
        if result.is_ok() && events > 0 {
            let (back, outcome) = live.guest.process(tables, &self.columns);
            tables = back;
            result = outcome.map(|processed| applied.take(processed));
        }
        match result {
            Ok(()) => {
                let derived = derive(&self.columns, std::mem::take(&mut applied.emits));
                let derived = match derived {
                    Ok(derived) => derived,
                    Err(reason) => {
                        tables.tables.rollback();
                        self.tables = Some(tables);
                        let module = &self.spec.module;
                        return Err(Stop::Module {
                            reason: format!("module {module}: {reason}"),
                        });
                    }
                };
                applied.derived = derived;
                applied.changes = tables.tables.commit();
                self.tables = Some(tables);
                self.guest = Some(live);
                Ok(applied)
            }
            Err(halt) => {
                tables.tables.rollback();
                let module = &self.spec.module;
                // The tables answered for the module's excess: it would exceed again.
                let stop = if std::mem::take(&mut tables.is_over) {
                    Stop::Module {
                        reason: format!("module {module}: {halt}"),
                    }
                } else {
                    Stop::of(module, &halt, &applied.logs)
                };
                self.tables = Some(tables);
                Err(stop)
            }
        }
    }

    fn previous_manifest(&self) -> Manifest {
        let index = self.step.saturating_sub(1);
        Manifest::clone(&self.spec.steps[index].manifest)
    }

    /// Makes sure that there is a guest with the memory that this batch is to find.
    fn make_guest(&mut self, batch: &StoredBatch, step: &Step) -> Result<(), Stop> {
        let memory_start = self.spec.memory_start(batch.first_sequence);
        let fits = self.guest.as_ref().is_some_and(|live| {
            live.generation == step.generation
                && (live.memory_start == memory_start || planted(Canary::KeepGuest))
        });
        if fits {
            return Ok(());
        }
        self.guest = None;
        let program = self.source.program(self.partition, step)?;
        let context = InstanceContext {
            seed: module_seed(&self.database_id, &step.hash, self.partition),
            sequence: memory_start.saturating_sub(1),
            time: batch.timestamp_ns,
        };
        let guest = program
            .instantiate(&context)
            .map_err(|halt| Stop::of(&self.spec.module, &halt, &[]))?;
        self.guest = Some(LiveGuest {
            guest,
            memory_start,
            generation: step.generation,
        });
        Ok(())
    }
}

impl Applied {
    fn take(&mut self, processed: truthdb_module::Processed) {
        self.emits.extend(processed.emits);
        self.logs.extend(processed.logs);
        self.fuel += processed.fuel;
    }
}

/// Fills columns with the events of a batch that a manifest's subscriptions match, and says how many
/// they are.
pub(crate) fn fill_columns(
    columns: &mut EventColumns,
    metadata: &mut Vec<u8>,
    batch: &StoredBatch,
    manifest: &Manifest,
    is_skipped: impl Fn(u64) -> bool,
) -> usize {
    columns.clear();
    for stored in batch.events() {
        let event = stored.event();
        let Some(kind) = manifest.subscription_of(event.stream(), event.event_type()) else {
            continue;
        };
        if is_skipped(stored.sequence) {
            continue;
        }
        metadata.clear();
        for (key, value) in event.metadata() {
            let fits = push_metadata_pair(metadata, key, value);
            debug_assert!(fits, "an event's metadata keeps to its limits");
        }
        columns.push(&ColumnEvent {
            sequence: stored.sequence,
            time: stored.timestamp_ns,
            revision: stored.revision,
            kind,
            stream: event.stream(),
            event_type: event.event_type(),
            id: *event.id().as_bytes(),
            metadata,
            payload: event.payload(),
        });
    }
    columns.len()
}
