//! The fold of a partition: a stepped machine that owns all modules of it.
//!
//! [`Fold::step`] does a bounded piece of everything that can be done now and says how long to wait
//! for more. In production a thread of its own calls it; a simulator calls it instead. It never
//! blocks an append: it reads what is committed, and its own events go through the same queue as
//! everybody's.
//!
//! Invariants:
//! 1. The control events of everything that is applied are in the catalogue: no batch is applied
//!    beyond them.
//! 2. A line that stops, waits or fails stops alone.
//! 3. What is shown (versions, fingerprints) follows from the log up to its sequence.
//! 4. The first partition's log holds the decisions; the others copy them in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use truthdb_engine::{Direction, Engine, ReadError, RevisionFrom, StreamReadRequest};
use truthdb_event::EventRef;
use truthdb_io::World;
use truthdb_module::ModuleKind;

use crate::answer::FoldState;
use crate::catalogue::{Catalogue, LineSpec};
use crate::command::Command;
use crate::config::ComputeConfig;
use crate::control::{self, CONTROL_TYPE, Fact, hex};
use crate::control_list::ControlList;
use crate::emit::{Deriver, Outbox};
use crate::gate::GateLink;
use crate::line::{Advance, Line};
use crate::outgoing::Outgoing;
use crate::programs::Programs;
use crate::reader::{LogReader, read_types_from};
use crate::runner::{Runner, Source};
use crate::shared::PartitionShared;
use crate::store::Store;

/// Events that a step applies, about: what it may delay the rest of the fold by.
const STEP_EVENTS: u64 = 4096;
/// Batches that a step applies to one line.
const STEP_BATCHES: u32 = 256;
/// Events for which a step writes one more part of a snapshot: so one is done in some hundred thousand
/// events, also when the log is far ahead, and the fold spends most of its time on events.
const PART_EVENTS: u64 = 512;
/// Nanoseconds until a failed read is tried again.
const READ_RETRY_NS: u64 = 100_000_000;

/// See the module's description.
pub(crate) struct Fold {
    pub(crate) engine: Engine,
    pub(crate) world: World,
    pub(crate) config: Arc<ComputeConfig>,
    pub(crate) partition: u32,
    pub(crate) programs: Arc<Programs>,
    pub(crate) shared: Arc<PartitionShared>,
    /// All partitions, by number.
    pub(crate) peers: Vec<Arc<PartitionShared>>,
    pub(crate) catalogue: Catalogue,
    pub(crate) controlled: u64,
    /// Last control event in the catalogue, and in the one that is shown.
    taken: u64,
    shown: u64,
    list: ControlList,
    pub(crate) lines: Vec<Line>,
    pub(crate) outgoing: Outgoing,
    pub(crate) store: Store,
    pub(crate) gate: GateLink,
    /// The lines have to be brought in line with the catalogue.
    pub(crate) changed: bool,
    /// Retired lines that owe nothing, and up to where: this is on its way into the log.
    completed: BTreeMap<(String, u32), u64>,
    read_retry_at: u64,
    /// No delta log of other semantics is left.
    swept: bool,
    /// Sequence of the last snapshot mark that this process asked for.
    mark_asked: u64,
    /// Events that the last step applied.
    applied_events: u64,
}

impl Fold {
    pub(crate) fn new(
        engine: &Engine,
        world: &World,
        config: &Arc<ComputeConfig>,
        partition: u32,
        programs: &Arc<Programs>,
        peers: &[Arc<PartitionShared>],
    ) -> Fold {
        let shared = Arc::clone(&peers[partition as usize]);
        let store = Store::new(engine, world, config, programs, &shared);
        let mut fold = Fold {
            outgoing: Outgoing::new(engine, partition, waker(&shared)),
            gate: GateLink::new(engine, partition, programs, &shared),
            engine: engine.clone(),
            world: world.clone(),
            config: Arc::clone(config),
            partition,
            programs: Arc::clone(programs),
            shared,
            peers: peers.to_vec(),
            catalogue: Catalogue::default(),
            controlled: 0,
            taken: 0,
            shown: 0,
            list: ControlList::new(engine, world, partition),
            lines: Vec::new(),
            store,
            changed: true,
            completed: BTreeMap::new(),
            read_retry_at: 0,
            swept: false,
            mark_asked: 0,
            applied_events: 0,
        };
        // Who validates is known before the first append, if the log can be read.
        match fold.read_control() {
            Ok(_) if fold.catalogue.validators().next().is_none() => {
                fold.gate.step(&fold.catalogue, fold.controlled, &[]);
            }
            Ok(_) if !(config.compute || config.query) => fold.gate.explain(
                "this node does not run the role compute; append where it is run, or add it here",
            ),
            Ok(_) => {}
            Err(error) => fold.set_problem(Some(crate::error::chain(&error))),
        }
        fold
    }

    /// Steps until the fold is stopped.
    pub(crate) fn run(mut self) {
        while !self.shared.is_stopping() {
            if let Some(wait) = self.step() {
                self.shared
                    .signal
                    .wait(wait.map(std::time::Duration::from_nanos));
            }
        }
        self.outgoing.finish();
        let now = self.now();
        self.store.finish(now);
        if self.config.compute {
            self.list.write(self.controlled, true);
        }
    }

    fn now(&self) -> u64 {
        self.world.clock.monotonic_ns()
    }

    /// Does a piece of what can be done now. `None`: there is more to do at once. Else how long to
    /// wait at most before the next step, nanoseconds; `Some(None)`: until woken.
    pub(crate) fn step(&mut self) -> Option<Option<u64>> {
        let now = self.now();
        let mut busy = false;
        if now >= self.read_retry_at {
            match self.follow(now) {
                Ok(any) => {
                    busy |= any;
                    self.set_problem(None);
                }
                Err(error) => {
                    self.read_retry_at = now + READ_RETRY_NS;
                    self.set_problem(Some(crate::error::chain(&error)));
                }
            }
        }
        if self.config.compute {
            busy |= self.outgoing.pump(now);
            busy |= self.store_deltas(now);
            self.list.write(self.controlled, false);
            // The program of before still finds what it left, until this one has come to the same.
            let is_known = self.controlled > 0 && !self.changed;
            if !self.swept && is_known && self.lines.iter().all(Line::is_proven) {
                let any = self.store.remove_foreign_deltas(now);
                self.swept = !any;
                busy |= any;
            }
        }
        for line in &mut self.lines {
            if let Some(outbox) = &mut line.outbox {
                busy |= outbox.pump(now);
            }
            // The first partition's fold waits for rebuilt generations of all.
            if line.publish() && self.partition != 0 {
                self.peers[0].signal.wake();
            }
        }
        if self.config.compute {
            // After readers see what was applied: a part may wait for the disk.
            for _ in 0..=self.applied_events / PART_EVENTS {
                if !self.store.step(now) {
                    break;
                }
                busy = true;
            }
        }
        self.outgoing.tell(self.controlled);
        self.shared
            .snapshot
            .store(self.store.newest_snapshot(), Ordering::Release);
        if busy { None } else { Some(self.wait_ns(now)) }
    }

    fn set_problem(&self, problem: Option<String>) {
        let mut shown = self.shared.problem.lock();
        if *shown != problem {
            if let Some(problem) = &problem {
                tracing::warn!(partition = self.partition, "the fold waits: {problem}");
            }
            *shown = problem;
        }
    }

    fn wait_ns(&self, now: u64) -> Option<u64> {
        let mut at = self.outgoing.retry_at();
        let mut sooner = |time: Option<u64>| {
            if let Some(time) = time {
                at = Some(at.map_or(time, |at| at.min(time)));
            }
        };
        for line in &self.lines {
            sooner(line.wait_until());
            sooner(line.outbox.as_ref().and_then(Outbox::retry_at));
        }
        if self.read_retry_at > now {
            sooner(Some(self.read_retry_at));
        }
        sooner(self.store.retry_at());
        at.map(|at| at.saturating_sub(now).max(1_000_000))
    }

    /// Follows the log: control events first, then what they decide.
    fn follow(&mut self, now: u64) -> Result<bool, ReadError> {
        let mut busy = self.read_control()?;
        if self.changed {
            self.sync_lines()?;
            self.keep_from_trim()?;
            self.changed = false;
            busy = true;
        }
        if self.config.compute {
            busy |= self.decide();
        }
        busy |= self.apply_lines(now)?;
        busy |= self
            .gate
            .step(&self.catalogue, self.controlled, &self.lines);
        Ok(busy)
    }

    /// Takes the control events that were committed since.
    fn read_control(&mut self) -> Result<bool, ReadError> {
        let committed = self.engine.committed(self.partition);
        if committed <= self.controlled {
            return Ok(false);
        }
        let first = self.engine.first_sequence(self.partition);
        if self.controlled == 0
            && let Some(listed) = self.list.load()?
        {
            for (sequence, bytes) in &listed.events {
                if let Ok(event) = EventRef::parse(bytes) {
                    self.take_control(*sequence, &event, bytes);
                }
            }
            self.controlled = listed.last_sequence;
        }
        let from = (self.controlled + 1).max(first);
        let (engine, partition) = (self.engine.clone(), self.partition);
        let looked = read_types_from(&engine, partition, from, &[CONTROL_TYPE], |stored| {
            // After a read that failed half-way some are known.
            if stored.sequence > self.taken {
                self.take_control(stored.sequence, &stored.event(), stored.bytes);
            }
        })?;
        self.controlled = looked.max(self.controlled);
        if self.taken > self.shown || self.controlled == looked && self.shared.controlled() == 0 {
            self.changed = true;
            self.shown = self.taken;
            *self.shared.catalogue.write() = Arc::new(self.catalogue.clone());
            if self.partition == 0 {
                for peer in &self.peers {
                    peer.signal.wake();
                }
            }
        }
        self.shared.set_controlled(self.controlled);
        Ok(true)
    }

    fn take_control(&mut self, sequence: u64, event: &EventRef<'_>, bytes: &[u8]) {
        let unknown = self.catalogue.unknown.len();
        self.catalogue.apply(sequence, event);
        if self.config.compute {
            self.list.note(sequence, bytes);
        }
        self.taken = sequence;
        if self.catalogue.unknown.len() > unknown {
            tracing::warn!(
                partition = self.partition,
                sequence,
                "a control event is not understood and has no effect here: is this program older than the one that wrote it?"
            );
        }
    }

    /// Lines that are folded, each with the last sequence that concerns it.
    fn wanted_lines(&self) -> BTreeMap<(String, u32), u64> {
        let mut wanted = BTreeMap::new();
        for (module, line) in self.catalogue.active_lines() {
            wanted.insert((module, line), u64::MAX);
        }
        for (module, life) in &self.catalogue.modules {
            for generation in &life.generations {
                let Some(end) = generation.retired_at else {
                    continue;
                };
                let key = (module.clone(), generation.line);
                let owes = generation.manifest.kind == ModuleKind::Processor
                    && generation.current_from.is_some()
                    && !life
                        .halts
                        .iter()
                        .any(|halt| halt.generation == generation.number)
                    && self.completed.get(&key).is_none_or(|done| *done < end)
                    && !life.checkpoints.iter().any(|c| {
                        let of = life.generation(c.generation);
                        c.sequence >= end && of.is_some_and(|of| of.line == generation.line)
                    });
                if owes && self.config.compute {
                    let until = wanted.entry(key).or_insert(0);
                    *until = (*until).max(end);
                }
            }
        }
        wanted
    }

    fn sync_lines(&mut self) -> Result<(), ReadError> {
        let wanted = self.wanted_lines();
        for ((module, number), until) in &wanted {
            let Some(spec) = self.catalogue.line(module, *number) else {
                continue;
            };
            let known = self
                .lines
                .iter()
                .position(|line| line.spec().module == *module && line.spec().line == *number);
            let index = match known {
                Some(index) => index,
                None => {
                    let line = self.new_line(spec.clone())?;
                    self.shared
                        .lines
                        .write()
                        .insert((module.clone(), *number), Arc::clone(&line.shared));
                    self.lines.push(line);
                    self.lines.len() - 1
                }
            };
            let life = &self.catalogue.modules[module];
            let mine = |generation: u32| {
                life.generation(generation)
                    .is_some_and(|g| g.line == *number)
            };
            let checkpoints = life
                .checkpoints
                .iter()
                .filter(|c| mine(c.generation))
                .map(|c| (c.sequence, c.fingerprint))
                .collect();
            let halt = life.halts.iter().rev().find(|halt| mine(halt.generation));
            let halt = halt.map(|halt| (halt.sequence, halt.reason.clone()));
            self.lines[index].refresh(spec, checkpoints, *until, halt);
        }
        self.drop_lines(|line| {
            !wanted.contains_key(&(line.spec().module.clone(), line.spec().line))
        });
        Ok(())
    }

    /// Keeps the events from being trimmed that say what the active modules are.
    fn keep_from_trim(&self) -> Result<(), ReadError> {
        let mut floor = u64::MAX;
        let first = self.engine.first_sequence(self.partition);
        for (module, life) in &self.catalogue.modules {
            let live = life.generations.iter().filter(|g| g.retired_at.is_none());
            let codes = live.map(|g| format!("{}{}", control::CODE_STREAM_PREFIX, hex(&g.hash)));
            let mut streams: Vec<String> = codes.collect();
            if streams.is_empty() {
                continue;
            }
            // The module's own stream has events in many segments: looking for its first one would
            // open all of them.
            match self.catalogue.first_facts.get(module) {
                Some(sequence) if *sequence >= first => floor = floor.min(*sequence),
                _ => streams.push(control::module_stream(module)),
            }
            for stream in streams {
                floor = floor.min(first_of_stream(&self.engine, self.partition, stream)?);
            }
        }
        self.engine.set_trim_floor(self.partition, floor);
        Ok(())
    }

    fn drop_lines(&mut self, is_over: impl Fn(&Line) -> bool) {
        let (shared, store) = (&self.shared, &mut self.store);
        self.lines.retain(|line| {
            let over = is_over(line);
            if over {
                let key = (line.spec().module.clone(), line.spec().line);
                line.shared
                    .update(|public| public.state = FoldState::Retired);
                shared.lines.write().remove(&key);
                store.close(&key.0, key.1);
            }
            !over
        });
    }

    /// A line as far as derived files bring it.
    fn new_line(&mut self, spec: LineSpec) -> Result<Line, ReadError> {
        let spec = Arc::new(spec);
        let source = Source::Background(Arc::clone(&self.programs));
        let empty = Runner::new(
            self.engine.database_id(),
            self.partition,
            Arc::clone(&spec),
            source,
        );
        let runner = self.store.recover(empty);
        tracing::info!(
            partition = self.partition,
            module = spec.module,
            line = spec.line,
            sequence = runner.applied,
            "state goes on from here"
        );
        if self.config.compute {
            self.store.open(&spec.module, spec.line, runner.applied);
        }
        let processes = spec
            .steps
            .iter()
            .any(|s| s.manifest.kind == ModuleKind::Processor);
        let outbox = (processes && self.config.compute).then(|| {
            let deriver = Deriver {
                database_id: self.engine.database_id(),
                module: spec.module.clone(),
                partition: self.partition,
                salt: Deriver::salt(&self.engine, self.partition),
            };
            Outbox::new(&self.engine, deriver, waker(&self.shared))
        });
        let next = runner.applied + 1;
        let reader = LogReader::new(&self.engine, self.partition, next);
        Ok(Line::new(runner, reader, outbox))
    }

    /// Whether a line's tables answer queries of the present.
    fn is_current(&self, line: &Line) -> bool {
        let life = self.catalogue.modules.get(&line.spec().module);
        let current = life.and_then(|life| life.current());
        current.is_some_and(|current| current.line == line.spec().line)
    }

    fn apply_lines(&mut self, now: u64) -> Result<bool, ReadError> {
        let mut left = STEP_EVENTS;
        let mut busy = false;
        // Those that answer go first: a rebuild beside them must not delay them.
        for shadows in [false, true] {
            for index in 0..self.lines.len() {
                if self.is_current(&self.lines[index]) == shadows {
                    continue;
                }
                let (any, events) = self.apply_line(index, now, left)?;
                busy |= any;
                left = left.saturating_sub(events);
            }
            if left == 0 {
                break;
            }
        }
        self.applied_events = STEP_EVENTS - left;
        if let Some(over) = self.lines.iter().position(Line::is_over) {
            busy |= self.retire(over);
        }
        Ok(busy)
    }

    fn apply_line(
        &mut self,
        index: usize,
        now: u64,
        budget: u64,
    ) -> Result<(bool, u64), ReadError> {
        let retained = self.config.retained_views;
        let mut used = 0;
        let mut busy = false;
        for _ in 0..STEP_BATCHES {
            let line = &mut self.lines[index];
            match line.advance(self.controlled, now, retained)? {
                Advance::Applied { events } => {
                    busy = true;
                    // Batches without events for the module cost something too.
                    used += events.max(1);
                    self.note_boundary(index);
                }
                Advance::Stopped { sequence, reason } => {
                    busy = true;
                    self.record_halt(index, sequence, reason);
                    break;
                }
                Advance::Idle => break,
            }
            if used >= budget {
                break;
            }
        }
        Ok((busy, used))
    }

    /// A line has done all that its turn asked for: that is recorded, and it goes.
    fn retire(&mut self, index: usize) -> bool {
        if !self.outgoing.is_empty() {
            return false;
        }
        self.record_checkpoint(index);
        let key = {
            let spec = self.lines[index].spec();
            (spec.module.clone(), spec.line)
        };
        self.completed
            .insert(key.clone(), self.lines[index].runner.applied);
        self.drop_lines(|line| (line.spec().module.as_str(), line.spec().line) == (&key.0, key.1));
        self.changed = true;
        true
    }

    /// Where a recovery may go on: marks are served, and checkpoints are due, here.
    fn note_boundary(&mut self, index: usize) {
        if !self.config.compute || !self.lines[index].runner.is_at_boundary() {
            return;
        }
        let applied = self.lines[index].runner.applied;
        let every = self.config.checkpoint_every_events;
        let line = &self.lines[index];
        let due = every > 0 && applied >= line.checkpoint.saturating_add(every);
        let marked = self.catalogue.marks.binary_search(&applied).is_ok();
        // At the end of a turn it says that nothing is owed any more: that is for `retire` to say.
        let ends = applied >= line.until;
        if (due || marked) && applied > line.checkpoint && !ends && !line.is_halted() {
            self.record_checkpoint(index);
        }
        let line = &mut self.lines[index];
        if marked {
            line.marked = Some(line.version());
        } else if !line.is_halted() {
            let now = self.world.clock.monotonic_ns();
            self.store.begin_catch_up(line, self.controlled, now);
        }
    }

    fn record_checkpoint(&mut self, index: usize) {
        let runtime = self.programs.runtime();
        let line = &mut self.lines[index];
        let step = line.runner.current_step();
        let fact = Fact::StateCheckpoint {
            generation: step.generation,
            hash: hex(&step.hash),
            semantics_id: hex(&runtime.semantics_id(&step.limits)),
            sequence: line.runner.applied,
            fingerprint: hex(&line.runner.fingerprint().to_bytes()),
        };
        line.checkpoint = line.runner.applied;
        let stream = control::module_stream(&line.spec().module);
        self.append_fact(&stream, fact);
    }

    fn record_halt(&mut self, index: usize, sequence: u64, reason: String) {
        let line = &self.lines[index];
        let generation = line.runner.current_step().generation;
        tracing::error!(
            partition = self.partition,
            module = line.spec().module,
            generation,
            sequence,
            "the module is halted: {reason}"
        );
        let known = line.halt.as_ref().is_some_and(|(at, _)| *at == sequence);
        if !known && self.config.compute {
            let stream = control::module_stream(&line.spec().module);
            let fact = Fact::Halted {
                generation,
                sequence,
                reason,
            };
            self.append_fact(&stream, fact);
        }
    }

    /// Appends a fact that nobody waits for.
    pub(crate) fn append_fact(&mut self, stream: &str, fact: Fact) {
        match control::encode_control(self.world.random.as_ref(), stream, "", fact) {
            Ok(events) => self.outgoing.push(vec![events], None),
            Err(error) => tracing::warn!(stream, error = %error, "a fact could not be encoded"),
        }
    }

    /// Gives the delta log what is owed to nobody any more, and marks positions for snapshots.
    fn store_deltas(&mut self, now: u64) -> bool {
        let mut any = false;
        for line in &mut self.lines {
            let stored = line.stored_through();
            let ready = line.deltas.partition_point(|d| d.last_sequence <= stored);
            if ready > 0 {
                any = true;
                let (module, number) = (line.spec().module.clone(), line.spec().line);
                for delta in line.deltas.drain(..ready) {
                    self.store.push_delta(&module, number, &delta, now);
                }
            }
        }
        if any {
            self.store.flush(false, now);
        }
        any |= self
            .store
            .begin_snapshot(&self.catalogue, &mut self.lines, now);
        let every = self.config.snapshot_every_events;
        let last = self
            .catalogue
            .marks
            .last()
            .copied()
            .unwrap_or(0)
            .max(self.mark_asked);
        let folds = !self.lines.is_empty();
        if every > 0 && folds && self.controlled >= last + every && self.outgoing.is_empty() {
            self.mark_asked = self.controlled;
            self.append_fact(control::SNAPSHOT_STREAM, Fact::Snapshot {});
            any = true;
        }
        any
    }

    /// Copies decisions, carries out commands, and lets rebuilt generations take over.
    fn decide(&mut self) -> bool {
        // One at a time, each with the catalogue of everything before.
        if !self.outgoing.is_empty() || self.controlled < self.outgoing.stored {
            return false;
        }
        if self.partition != 0 && self.copy_decision() {
            return true;
        }
        let command = self.shared.commands.lock().pop_front();
        if let Some(Command { order, reply }) = command {
            self.carry_out(order, reply);
            return true;
        }
        self.partition == 0 && self.switch_caught_up()
    }
}

/// Sequence of the first event of a stream; the end of all if it has none.
fn first_of_stream(engine: &Engine, partition: u32, stream: String) -> Result<u64, ReadError> {
    let page = engine.read_stream(&StreamReadRequest {
        stream,
        partition: Some(partition),
        from: RevisionFrom::Start,
        direction: Direction::Forward,
        events_max: 1,
        bytes_max: 1,
    });
    match page {
        Ok(page) => Ok(page.batches.first().map_or(u64::MAX, |b| b.first_sequence)),
        Err(ReadError::StreamNotFound { .. }) => Ok(u64::MAX),
        Err(error) => Err(error),
    }
}

/// Wakes the fold of a partition.
pub(crate) fn waker(shared: &Arc<PartitionShared>) -> Box<dyn Fn() + Send + Sync> {
    let shared = Arc::clone(shared);
    Box::new(move || shared.signal.wake())
}
