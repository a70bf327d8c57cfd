//! Verification: does everything that is recorded follow from the log?
//!
//! One pass over the log for each line recomputes its state and compares it on the way with the
//! checkpoints in the log, the delta records and the snapshots on disk, and the derived events in
//! all partitions; at the end with what the running fold shows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use truthdb_engine::{
    Direction, Engine, Filter, PAGE_EVENTS_MAX, ReadError, ReadFrom, ReadRequest,
};

use crate::answer::*;
use crate::compute::Inner;
use crate::control::hex;
use crate::emit::{DERIVED_BY, Derived, Deriver, Place, derived_tag, place_of};
use crate::error::ComputeError;
use crate::replay::{Pace, Replayer, catalogue, require_replay, target};
use crate::request::{ReadOptions, VerifyRequest};
use crate::runner::Source;
use crate::store::Recorded;

/// Stored derived events of one module and source partition in one target, in order.
struct StoredDerived {
    engine: Engine,
    request: ReadRequest,
    page: VecDeque<(Place, u64, Vec<u8>)>,
    at_end: bool,
    /// Generations of the line: what others of the module derived is not looked at.
    generations: Vec<u32>,
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
        }
    }

    fn front(&mut self) -> Result<Option<&(Place, u64, Vec<u8>)>, ReadError> {
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
                    self.stored(target).page.pop_front();
                    self.verified.derived += 1;
                    if !same {
                        let text = "an event with other content".to_owned();
                        self.differs(sequence, "derived event", text, describe(derived));
                    }
                }
                None if batch <= self.stored_through => {
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
        for (module, line) in catalogue.active_lines() {
            if request
                .module
                .as_ref()
                .is_some_and(|wanted| *wanted != module)
            {
                continue;
            }
            known = true;
            verify_line(
                inner,
                partition,
                &module,
                line,
                target,
                &mut pace,
                &mut report,
            )?;
        }
    }
    match &request.module {
        Some(module) if !known => Err(ComputeError::NoSuchModule {
            module: module.clone(),
        }),
        _ => Ok(report),
    }
}

fn verify_line(
    inner: &Inner,
    partition: u32,
    module: &str,
    line: u32,
    target: u64,
    pace: &mut Pace<'_>,
    report: &mut VerifyReport,
) -> Result<(), ComputeError> {
    let catalogue = catalogue(inner, partition)?;
    let no_module = || ComputeError::NoSuchModule {
        module: module.to_owned(),
    };
    let spec = catalogue.line(module, line).ok_or_else(no_module)?;
    let life = catalogue.modules.get(module).ok_or_else(no_module)?;
    let mine = |number: u32| life.generation(number).is_some_and(|g| g.line == line);
    let checkpoints = life
        .checkpoints
        .iter()
        .filter(|c| mine(c.generation) && c.sequence <= target)
        .map(|c| (c.sequence, c.fingerprint))
        .collect();
    let live = inner.partitions[partition as usize].line(module, line);
    let source = Source::Here(Arc::clone(&inner.programs));
    let recorded = inner.reads.files.recorded(partition, module, line, target);
    let members = life.generations.iter().filter(|g| g.line == line);
    let spec_generations = members.map(|g| g.number).collect();
    let mut replayer = Replayer::new(inner, partition, spec, source, target);
    let mut check = Check {
        inner,
        partition,
        deriver: Deriver {
            database_id: inner.engine.database_id(),
            module: module.to_owned(),
            partition,
            salt: 0,
        },
        checkpoints,
        recorded,
        derived: BTreeMap::new(),
        generations: spec_generations,
        stored_through: live.as_ref().map_or(0, |line| line.get().emitted_through),
        verified: VerifiedModule {
            stamp: replayer.stamp(),
            checkpoints: 0,
            snapshots: 0,
            deltas: 0,
            derived: 0,
            live: false,
        },
        differences: Vec::new(),
    };
    while let Some(replayed) = replayer.next()? {
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
    if let Some((version, true)) = live.and_then(|line| {
        let (version, _) = line.version();
        let same = version.sequence == replayer.runner.applied;
        Some((version, same))
    }) {
        check.verified.live = true;
        let (shown, replayed) = (version.view.fingerprint(), replayer.runner.fingerprint());
        if shown != replayed {
            let sequence = version.sequence;
            check.differs(
                sequence,
                "live state",
                shown.to_string(),
                replayed.to_string(),
            );
        }
    }
    if let Some((sequence, reason)) = &replayer.halted {
        let halted = life.halts.iter().any(|halt| halt.sequence == *sequence);
        if !halted {
            check.differs(
                *sequence,
                "live state",
                "no stop".to_owned(),
                reason.clone(),
            );
        }
    }
    check.verified.stamp = replayer.stamp();
    report.modules.push(check.verified);
    report.differences.append(&mut check.differences);
    Ok(())
}
