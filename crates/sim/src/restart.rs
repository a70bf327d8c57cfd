//! Restarts: what recovery must give back, and what it may not.

use std::sync::Arc;

use truthdb_engine::{AppendError, Direction, Durability, Engine, Filter, ReadFrom, ReadRequest};
use truthdb_io::sim::SimFaults;
use truthdb_log::StoredBatch;

use crate::model::{Batch, Verdict, is_system_event};
use crate::profile::Class;
use crate::sim::{Live, Sim, Violation, violation};

/// Attempts at opening with faults, before the machine is healthy again.
const FAULTY_ATTEMPTS: u32 = 2;
/// Attempts at opening in all.
const ATTEMPTS: u32 = 8;

enum Opening {
    /// Compared and running.
    Done,
    /// Once more.
    Again,
}

impl Sim {
    /// Opens the database after a crash, a kill, a stop, or for the first time, and compares it with the model.
    pub(crate) fn reopen(&mut self) -> Result<(), Violation> {
        self.live = None;
        let killed = std::mem::take(&mut self.killed);
        if killed {
            self.crash_planned = false;
        }
        if !killed {
            self.note_power_cut();
        }
        for attempt in 0..ATTEMPTS {
            self.figures.restarts += 1;
            if attempt == FAULTY_ATTEMPTS {
                self.world.clear_planned();
                self.crash_planned = false;
            }
            let faults = if attempt < FAULTY_ATTEMPTS {
                self.profile.faults.clone()
            } else {
                self.healthy()
            };
            self.world.set_faults(faults);
            if attempt >= FAULTY_ATTEMPTS {
                self.world.set_capacity(1 << 40);
                self.full = false;
            }
            let lying = std::mem::take(&mut self.lying);
            if lying {
                let count = 2 + self.draw(2);
                self.lose_writes(count);
            }
            match self.open_once(attempt, lying)? {
                Opening::Done => {
                    let faults = self.profile.faults.clone();
                    self.world.set_faults(faults);
                    if lying && !self.lost {
                        return self.append_and_lose_power();
                    }
                    return Ok(());
                }
                Opening::Again => self.live = None,
            }
            if self.lost {
                return Ok(());
            }
        }
        violation("the database does not open on a healthy machine")
    }

    fn note_power_cut(&mut self) {
        for side in &mut self.sides {
            side.cut = true;
        }
    }

    fn healthy(&self) -> SimFaults {
        SimFaults {
            durable_write_flushes_ppm: self.profile.faults.durable_write_flushes_ppm,
            reorder: self.profile.faults.reorder,
            ..SimFaults::default()
        }
    }

    fn open_once(&mut self, attempt: u32, lying: bool) -> Result<Opening, Violation> {
        self.boots = self.world.boots();
        self.inbox = Arc::default();
        let opened = Engine::open_stepped(self.world.world(), self.profile.config.clone());
        if self.world.boots() != self.boots {
            self.note_power_cut();
            return Ok(Opening::Again);
        }
        let excused = self.profile.class == Class::Errors && attempt < FAULTY_ATTEMPTS;
        let (engine, mut stepper) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let damaged = self.damage.as_ref().is_some_and(|d| d.concerns_database());
                if !excused && !damaged {
                    return violation(format!("the database does not open: {error}"));
                }
                if !excused && !self.mend() {
                    self.lost = true;
                }
                self.world.kill();
                return Ok(Opening::Again);
            }
        };
        if lying {
            // The writer's first writes go over what recovery should have cut: they are lost, too.
            for partition in 0..self.sides.len() {
                stepper.step_writer(partition);
                stepper.wait_writer(partition, Some(0));
            }
            self.world.clear_planned();
        }
        let reports: Vec<Result<(), String>> = engine
            .report()
            .partitions
            .iter()
            .map(|report| report.tail.as_ref().map(drop).map_err(String::clone))
            .collect();
        self.live = Some(Live { engine, stepper });
        let mut refused = false;
        for (partition, report) in reports.iter().enumerate() {
            let Err(reason) = report else {
                self.sides[partition].fenced = false;
                continue;
            };
            refused = true;
            let damaged = self.damage.as_ref().is_some_and(|d| d.concerns(partition));
            if !excused && !damaged {
                return violation(format!(
                    "partition {partition} is fenced without damage: {reason}"
                ));
            }
            if !reason.contains("partition-") {
                return violation(format!("a refusal that names no file: {reason}"));
            }
            self.sides[partition].fenced = true;
        }
        if refused && excused || refused && self.prng.coin() && self.mend() {
            self.world.kill();
            return Ok(Opening::Again);
        }
        let faults = self.healthy();
        self.world.set_faults(faults);
        self.compare_after_restart()
    }

    /// Takes bit rot back: then everything must be there again.
    fn mend(&mut self) -> bool {
        let mended = self.take_back();
        if mended {
            self.note(|| "  the damage is taken back".to_owned());
            self.mended = true;
            self.damage = None;
        }
        mended
    }

    fn compare_after_restart(&mut self) -> Result<Opening, Violation> {
        for partition in 0..self.sides.len() {
            if self.sides[partition].fenced {
                continue;
            }
            self.reconcile(partition)?;
            if self.world.boots() != self.boots {
                self.note_power_cut();
                return Ok(Opening::Again);
            }
            self.forget_boot(partition);
        }
        if self.draw(2) == 0 {
            self.check_all()?;
        }
        if self.world.boots() != self.boots {
            self.note_power_cut();
            return Ok(Opening::Again);
        }
        Ok(Opening::Done)
    }

    /// Compares where the log ends, and takes over what had not been acknowledged.
    fn reconcile(&mut self, partition: usize) -> Result<(), Violation> {
        let number = u32::try_from(partition).expect("partitions are few");
        let Some(live) = &self.live else {
            return Ok(());
        };
        let committed = live.engine.committed(number);
        let first = live.engine.first_sequence(number);
        let last = self.models[partition].last();
        if committed < last {
            self.check_loss(partition, committed)?;
            self.models[partition].truncate(committed);
        } else if committed > last {
            self.take_over(partition, last + 1, committed)?;
            if self.world.boots() != self.boots {
                return Ok(());
            }
        }
        let model = &mut self.models[partition];
        let side = &mut self.sides[partition];
        if committed < last && first <= model.first_sequence {
            // The trim was lost with the tail, or carried out before.
            model.first_sequence = first;
        }
        if first != model.first_sequence {
            return violation(format!(
                "partition {number} begins at {first} after a restart, trimmed was to {}",
                model.first_sequence
            ));
        }
        side.proven = side.proven.min(committed);
        // Recovery has flushed what it accepted.
        side.durable = committed;
        Ok(())
    }

    fn check_loss(&mut self, partition: usize, committed: u64) -> Result<(), Violation> {
        let side = &self.sides[partition];
        let model = &self.models[partition];
        let each = self.profile.config.durability == Durability::FlushEachGroup;
        let by_power = side.cut && !each && committed >= side.durable;
        let by_damage = self.damage.as_ref().is_some_and(|damage| {
            damage.concerns(partition)
                && (committed >= side.proven || damage.may_hit_proof() || !each)
        });
        if !by_power && !by_damage {
            return violation(format!(
                "partition {partition}: acknowledged events are lost: {committed} of {} are left, \
                 {} were durable, {} are proven",
                model.last(),
                side.durable,
                side.proven
            ));
        }
        let next = committed + 1;
        if model.get(next).batch_first != next {
            return violation(format!(
                "partition {partition}: half a batch is left at {committed}"
            ));
        }
        Ok(())
    }

    /// Batches that were handed over and not acknowledged, and are there: the first ones, whole, in order.
    fn take_over(&mut self, partition: usize, first: u64, last: u64) -> Result<(), Violation> {
        let side = &self.sides[partition];
        let open = side.pending.iter().filter(|pending| {
            let unknown = Some(AppendError::may_have_happened);
            match (&pending.result, unknown) {
                (None, _) => true,
                (Some(Err(error)), Some(unknown)) => unknown(error),
                _ => false,
            }
        });
        let limbo = side.limbo.iter().map(Arc::clone);
        let candidates: Vec<Arc<Batch>> = limbo.chain(open.map(|p| Arc::clone(&p.batch))).collect();
        let mut candidates = candidates.into_iter();
        let mut next = first;
        while next <= last {
            let Some(stored) = self.read_stored(partition, next)? else {
                return Ok(());
            };
            let model = &mut self.models[partition];
            let Some(batch) = candidates.next() else {
                return violation(format!(
                    "partition {partition}: nobody handed over what is at {next}"
                ));
            };
            if u64::from(stored.event_count) != batch.len() || !is_batch(&stored, &batch) {
                return violation(format!(
                    "partition {partition}: what is at {next} is not the next batch that was handed over"
                ));
            }
            let verdict = model.verdict(&batch);
            if !matches!(verdict, Verdict::Accept | Verdict::Unsure) {
                return violation(format!(
                    "partition {partition}: the batch at {next} is stored, the model says {verdict:?}"
                ));
            }
            if stored.timestamp_ns < model.last_timestamp() {
                return violation(format!("partition {partition}: time goes back at {next}"));
            }
            model.append(&batch, stored.timestamp_ns);
            for event in stored.events() {
                if let Some(text) = model.differs(&event) {
                    return violation(format!("partition {partition} after a restart: {text}"));
                }
            }
            next += batch.len();
        }
        Ok(())
    }

    /// The batch at a sequence; none if the disk refuses with an excuse.
    fn read_stored(
        &mut self,
        partition: usize,
        sequence: u64,
    ) -> Result<Option<StoredBatch>, Violation> {
        let Some(live) = &self.live else {
            return Ok(None);
        };
        let request = ReadRequest {
            partition: u32::try_from(partition).expect("partitions are few"),
            from: ReadFrom::Sequence(sequence),
            direction: Direction::Forward,
            filter: Filter::default(),
            events_max: 20_000,
            bytes_max: 1,
        };
        match live.engine.read(&request) {
            Ok(page) => match page.batches.into_iter().next() {
                Some(batch) if batch.first_sequence == sequence => Ok(Some(batch)),
                _ => violation(format!(
                    "partition {partition}: committed {sequence} is not there"
                )),
            },
            Err(error) if self.excuses_read(partition, &error) => {
                // What cannot be read cannot be taken over; the partition counts as refused.
                self.sides[partition].fenced = true;
                self.lost = true;
                Ok(None)
            }
            Err(error) => violation(format!("partition {partition} after a restart: {error}")),
        }
    }
}

fn is_batch(stored: &StoredBatch, batch: &Batch) -> bool {
    stored
        .events()
        .zip(batch.events())
        .all(|(event, spec)| match &spec.bytes {
            Some(bytes) => bytes == event.bytes,
            None => is_system_event(spec, event.bytes),
        })
}
