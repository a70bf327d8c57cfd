//! Verification: does everything that is recorded follow from the log?
//!
//! One pass over the log for each line recomputes its state and compares it on the way with the
//! checkpoints in the log, the delta records and the snapshots on disk, and the derived events in
//! all partitions; at the end with what the running fold shows. Lines that ended are gone through up
//! to their end: answers as of then come from what is recorded of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use truthdb_engine::{
    Direction, Engine, Filter, PAGE_EVENTS_MAX, ReadError, ReadFrom, ReadRequest,
};

use crate::answer::*;
use crate::catalogue::{Catalogue, Life};
use crate::compute::Inner;
use crate::control::hex;
use crate::control_list;
use crate::emit::{DERIVED_BY, Derived, Deriver, Place, derived_tag, place_of};
use crate::error::ComputeError;
use crate::files::Recorded;
use crate::replay::{Pace, Replayer, catalogue, require_replay, target};
use crate::request::{ReadOptions, VerifyRequest};
use crate::runner::Source;
use crate::shared::Version;

/// A stored derived event: its place, its sequence, its canonical bytes.
type Stored = (Place, u64, Vec<u8>);

/// Stored derived events of one module and source partition in one target, in order.
struct StoredDerived {
    engine: Engine,
    request: ReadRequest,
    page: VecDeque<Stored>,
    at_end: bool,
    /// Generations of the line: what others of the module derived is not looked at.
    generations: Vec<u32>,
    /// The first ones may have been trimmed.
    may_lack_first: bool,
}

impl StoredDerived {
    fn new(
        engine: &Engine,
        module: &str,
        source: u32,
        target: u32,
        generations: &[u32],
    ) -> StoredDerived {
        StoredDerived {
            engine: engine.clone(),
            request: ReadRequest {
                partition: target,
                from: ReadFrom::Sequence(engine.first_sequence(target)),
                direction: Direction::Forward,
                filter: Filter {
                    tags: vec![derived_tag(module, source)],
                    ..Filter::default()
                },
                events_max: PAGE_EVENTS_MAX,
                bytes_max: 1 << 20,
            },
            page: VecDeque::new(),
            at_end: false,
            generations: generations.to_vec(),
            may_lack_first: engine.first_sequence(target) > 1,
        }
    }

    fn front(&mut self) -> Result<Option<&Stored>, ReadError> {
        while self.page.is_empty() && !self.at_end {
            let page = self.engine.read(&self.request)?;
            for batch in &page.batches {
                for stored in batch.events() {
                    let event = stored.event();
                    let by = event
                        .metadata_value(DERIVED_BY)
                        .and_then(|by| by.rsplit('/').next());
                    let by = by.and_then(|number| number.parse().ok());
                    if !by.is_some_and(|by: u32| self.generations.contains(&by)) {
                        continue;
                    }
                    if let Some(place) = place_of(&event) {
                        self.page
                            .push_back((place, stored.sequence, stored.bytes.to_vec()));
                    }
                }
            }
            match page.next {
                Some(next) if !page.at_end => self.request.from = ReadFrom::Sequence(next),
                _ => self.at_end = true,
            }
        }
        Ok(self.page.front())
    }
}

/// What is being compared of one line.
struct Check<'a> {
    inner: &'a Inner,
    partition: u32,
    deriver: Deriver,
    checkpoints: BTreeMap<u64, [u8; 32]>,
    recorded: Recorded,
    derived: BTreeMap<u32, StoredDerived>,
    generations: Vec<u32>,
    /// Derived events up to this source sequence must be stored.
    stored_through: u64,
    verified: VerifiedModule,
    differences: Vec<Difference>,
}

impl Check<'_> {
    fn differs(&mut self, sequence: u64, what: &str, recorded: String, replayed: String) {
        self.differences.push(Difference {
            partition: self.partition,
            module: self.deriver.module.clone(),
            generation: self.verified.stamp.generation,
            sequence,
            what: what.to_owned(),
            recorded,
            replayed,
        });
    }

    fn after_batch(&mut self, replayer: &Replayer) {
        let sequence = replayer.runner.applied;
        let fingerprint = replayer.runner.fingerprint();
        if let Some(recorded) = self.checkpoints.remove(&sequence) {
            self.verified.checkpoints += 1;
            if recorded != fingerprint.to_bytes() {
                self.differs(
                    sequence,
                    "state-checkpoint",
                    hex(&recorded),
                    fingerprint.to_string(),
                );
            }
        }
        for recorded in self.recorded.deltas_at(sequence) {
            self.verified.deltas += 1;
            if recorded != fingerprint {
                self.differs(
                    sequence,
                    "delta",
                    recorded.to_string(),
                    fingerprint.to_string(),
                );
            }
        }
        for recorded in self.recorded.snapshots_at(sequence) {
            self.verified.snapshots += 1;
            if recorded != fingerprint {
                self.differs(
                    sequence,
                    "snapshot",
                    recorded.to_string(),
                    fingerprint.to_string(),
                );
            }
        }
    }

    /// Compares what a batch emits with what is stored.
    fn compare_derived(
        &mut self,
        generation: u32,
        batch: u64,
        derived: &[Derived],
    ) -> Result<(), ComputeError> {
        for derived in derived {
            let target = self.inner.engine.partition_of(&derived.emit.stream);
            let bytes = self.deriver.encode(generation, batch, derived);
            let bytes = bytes.map_err(|error| ComputeError::invalid(error.to_string()))?;
            let place = (batch, derived.index);
            let stored = self.stored(target);
            let found = match stored.front()? {
                Some((at, sequence, stored)) if *at == place => Some((*sequence, *stored == bytes)),
                _ => None,
            };
            match found {
                Some((sequence, same)) => {
                    let stored = self.stored(target);
                    stored.page.pop_front();
                    stored.may_lack_first = false;
                    self.verified.derived += 1;
                    if !same {
                        let text = "an event with other content".to_owned();
                        self.differs(sequence, "derived event", text, describe(derived));
                    }
                }
                None if batch <= self.stored_through && !self.stored(target).may_lack_first => {
                    self.differs(batch, "derived event", "none".to_owned(), describe(derived));
                }
                None => {}
            }
        }
        self.surplus(batch)
    }

    fn stored(&mut self, target: u32) -> &mut StoredDerived {
        let (engine, deriver) = (&self.inner.engine, &self.deriver);
        let generations = &self.generations;
        self.derived.entry(target).or_insert_with(|| {
            let (module, source) = (&deriver.module, deriver.partition);
            StoredDerived::new(engine, module, source, target, generations)
        })
    }

    /// What the replay did not come to: it stopped before, or no batch ends there.
    fn at_end(&mut self, replayer: &mut Replayer, life: &Life, is_folded: bool) {
        let stop = match &replayer.halted {
            Some((sequence, reason)) => format!("a stop at event {sequence}: {reason}"),
            None => "no state there".to_owned(),
        };
        for (sequence, recorded) in std::mem::take(&mut self.checkpoints) {
            self.differs(sequence, "state-checkpoint", hex(&recorded), stop.clone());
        }
        let first = replayer.runner.spec.first_sequence();
        for (sequence, recorded) in self.recorded.snapshots_from(first) {
            self.differs(sequence, "snapshot", recorded.to_string(), stop.clone());
        }
        let Some((sequence, reason)) = replayer.halted.take() else {
            return;
        };
        if let Some((last, recorded)) = self.recorded.delta_until(replayer.target) {
            self.differs(last, "delta", recorded.to_string(), stop);
        }
        // The stop of a line that ended may have been lifted by what took over.
        let halted = life.halts.iter().any(|halt| halt.sequence == sequence);
        if is_folded && !halted {
            self.differs(sequence, "live state", "no stop".to_owned(), reason);
        }
    }

    fn compare_live(&mut self, version: &Version, replayer: &Replayer) {
        if version.sequence != replayer.runner.applied {
            return;
        }
        self.verified.live = true;
        let (shown, replayed) = (version.view.fingerprint(), replayer.runner.fingerprint());
        if shown != replayed {
            let (shown, replayed) = (shown.to_string(), replayed.to_string());
            self.differs(version.sequence, "live state", shown, replayed);
        }
    }

    /// What is stored up to a source batch and was not emitted.
    fn surplus(&mut self, batch: u64) -> Result<(), ComputeError> {
        for target in 0..self.inner.engine.partition_count() {
            loop {
                let stored = self.stored(target);
                let surplus = match stored.front()? {
                    Some((place, sequence, _)) if place.0 <= batch => *sequence,
                    _ => break,
                };
                stored.page.pop_front();
                let text = format!("an event in partition {target}");
                self.differs(surplus, "derived event", text, "none".to_owned());
            }
        }
        Ok(())
    }
}

fn describe(derived: &Derived) -> String {
    format!(
        "{} in stream {} for event {}",
        derived.emit.event_type, derived.emit.stream, derived.source_sequence
    )
}

/// See [`crate::Compute::verify`].
pub(crate) fn verify(
    inner: &Inner,
    request: &VerifyRequest,
    sink: &mut (dyn ReplaySink + Send),
) -> Result<VerifyReport, ComputeError> {
    require_replay(inner)?;
    let mut report = VerifyReport::default();
    let mut pace = Pace::new(sink);
    let options = ReadOptions {
        at: request.to.clone(),
        ..ReadOptions::default()
    };
    let mut known = request.module.is_none();
    for partition in inner.reads.asked(request.partition, &options)? {
        let target = target(inner, partition, &request.to)?;
        let catalogue = catalogue(inner, partition)?;
        if request.module.is_none() {
            let storage = &*inner.reads.world.storage;
            let differs = control_list::compare(&inner.engine, storage, partition)?;
            report.differences.extend(differs);
        }
        for (module, line, end) in catalogue.lines() {
            let wanted = request.module.as_ref();
            if wanted.is_some_and(|wanted| *wanted != module) {
                continue;
            }
            known = true;
            let of = LineOf {
                catalogue: &catalogue,
                partition,
                module: &module,
                line,
                end,
            };
            verify_line(inner, &of, target, &mut pace, &mut report)?;
        }
    }
    match &request.module {
        Some(module) if !known => Err(ComputeError::NoSuchModule {
            module: module.clone(),
        }),
        _ => Ok(report),
    }
}

/// A line of a partition.
struct LineOf<'a> {
    catalogue: &'a Catalogue,
    partition: u32,
    module: &'a str,
    line: u32,
    /// Last sequence that concerns it.
    end: u64,
}

fn verify_line(
    inner: &Inner,
    of: &LineOf<'_>,
    target: u64,
    pace: &mut Pace<'_>,
    report: &mut VerifyReport,
) -> Result<(), ComputeError> {
    let (partition, module, line) = (of.partition, of.module, of.line);
    let target = target.min(of.end);
    let no_module = || ComputeError::NoSuchModule {
        module: module.to_owned(),
    };
    let spec = of.catalogue.line(module, line).ok_or_else(no_module)?;
    let life = of.catalogue.modules.get(module).ok_or_else(no_module)?;
    if of.end < spec.first_sequence() {
        return Ok(());
    }
    let mine = |number: u32| life.generation(number).is_some_and(|g| g.line == line);
    let all = life.checkpoints.iter().filter(|c| mine(c.generation));
    let checkpoints: BTreeMap<_, _> = all.map(|c| (c.sequence, c.fingerprint)).collect();
    let live = inner.partitions[partition as usize].line(module, line);
    // A line that ended is given up once it owes nothing: then its end is a checkpoint.
    let settled = checkpoints.contains_key(&of.end).then_some(of.end);
    let shown = live.as_ref().map(|line| line.get().emitted_through);
    let source = Source::Here(Arc::clone(&inner.programs));
    let emits = !spec.turns.is_empty();
    let mut replayer = Replayer::new(inner, partition, spec, source, target);
    let members = life.generations.iter().filter(|g| g.line == line);
    let mut check = Check {
        inner,
        partition,
        deriver: Deriver {
            database_id: inner.engine.database_id(),
            module: module.to_owned(),
            partition,
            salt: 0,
        },
        checkpoints: checkpoints
            .range(..=target)
            .map(|(s, f)| (*s, *f))
            .collect(),
        recorded: inner.reads.files.recorded(partition, module, line, target),
        derived: BTreeMap::new(),
        generations: members.map(|g| g.number).collect(),
        stored_through: settled.or(shown).unwrap_or(0),
        verified: VerifiedModule {
            stamp: replayer.stamp(),
            checkpoints: 0,
            snapshots: 0,
            deltas: 0,
            derived: 0,
            live: false,
            unverified: replayer.trimmed(),
        },
        differences: Vec::new(),
    };
    while check.verified.unverified.is_none() {
        let replayed = match replayer.next() {
            Ok(Some(replayed)) => replayed,
            Ok(None) => break,
            // Nothing keeps the code of a line that ended from being trimmed.
            Err(ComputeError::Guest { reason, .. }) if of.end != u64::MAX => {
                check.verified.unverified = Some(reason);
                break;
            }
            Err(error) => return Err(error),
        };
        let last = replayed.batch.last_sequence();
        check.verified.stamp.generation = replayer.runner.current_step().generation;
        check.after_batch(&replayer);
        if replayer.runner.spec.emits_at(last) && !replayed.applied.derived.is_empty() {
            let generation = replayer.runner.current_step().generation;
            check.compare_derived(generation, last, &replayed.applied.derived)?;
        }
        pace.step(&replayer, replayed.applied.events)?;
    }
    pace.tell(&replayer)?;
    check.verified.stamp = replayer.stamp();
    if check.verified.unverified.is_none() {
        if emits {
            check.surplus(replayer.runner.applied)?;
        }
        check.at_end(&mut replayer, life, of.end == u64::MAX);
        if let Some(line) = live {
            check.compare_live(&line.version().0, &replayer);
        }
    }
    report.modules.push(check.verified);
    report.differences.append(&mut check.differences);
    Ok(())
}
