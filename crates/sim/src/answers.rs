//! Answers of the engine against the model, in the order in which batches were handed over.

use std::sync::Arc;

use truthdb_engine::{AppendError, Appended, Durability};

use crate::model::{Batch, Verdict};
use crate::profile::Class;
use crate::sim::{Sim, Violation, violation};

impl Sim {
    /// Applies the answers at the front of a partition's queue: they were decided in that order.
    pub(crate) fn settle(&mut self, partition: usize) -> Result<(), Violation> {
        while self.sides[partition]
            .pending
            .front()
            .is_some_and(|p| p.result.is_some())
        {
            let Some(pending) = self.sides[partition].pending.pop_front() else {
                break;
            };
            match pending.result {
                Some(Ok(appended)) => {
                    self.figures.acknowledged += 1;
                    self.acknowledged(&pending.batch, appended)?;
                    if !appended.duplicate {
                        let side = &mut self.sides[partition];
                        side.proven = side.proven.max(pending.acknowledged);
                    }
                }
                Some(Err(error)) => {
                    self.refused(partition, &pending.batch, pending.acknowledged, &error)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    fn acknowledged(&mut self, batch: &Batch, appended: Appended) -> Result<(), Violation> {
        let partition = batch.partition as usize;
        let model = &mut self.models[partition];
        let verdict = model.verdict(batch);
        if !self.sides[partition].limbo.is_empty() && !appended.duplicate {
            return violation("an append was acknowledged after a failed write");
        }
        let expected = match verdict {
            Verdict::Duplicate(first) if appended.duplicate => {
                model.acknowledged(batch.partition, first)
            }
            // Answered before the trim that is in the model already was committed.
            Verdict::Unsure
                if appended.duplicate && model.was_stored(batch, appended.first_sequence) =>
            {
                model.acknowledged(batch.partition, appended.first_sequence)
            }
            Verdict::Accept | Verdict::Unsure if !appended.duplicate => {
                if appended.timestamp_ns < model.last_timestamp() {
                    return violation(format!(
                        "time goes back: {} after {}",
                        appended.timestamp_ns,
                        model.last_timestamp()
                    ));
                }
                let first = model.last() + 1;
                model.append(batch, appended.timestamp_ns);
                model.acknowledged(batch.partition, first)
            }
            verdict => {
                return violation(format!(
                    "acknowledged {appended:?}, the model says {verdict:?}"
                ));
            }
        };
        let promised = self.profile.config.durability == Durability::FlushEachGroup;
        if appended.durable {
            let side = &mut self.sides[partition];
            side.durable = side.durable.max(appended.last_sequence);
        }
        let durable = appended.durable == promised || appended.duplicate && appended.durable;
        let told = Appended {
            duplicate: false,
            durable: true,
            ..appended
        };
        if !durable || told != expected {
            return violation(format!("acknowledged {appended:?}, expected {expected:?}"));
        }
        Ok(())
    }

    fn refused(
        &mut self,
        partition: usize,
        batch: &Arc<Batch>,
        acknowledged: u64,
        error: &AppendError,
    ) -> Result<(), Violation> {
        let side = &mut self.sides[partition];
        let errors = self.profile.class == Class::Errors;
        let lost = self.world.boots() != self.boots;
        let damaged = self.damage.as_ref().is_some_and(|d| d.concerns(partition));
        if matches!(error, AppendError::Unknown { .. }) {
            side.limbo.push(Arc::clone(batch));
            side.unsure = true;
            if errors || lost {
                return Ok(());
            }
            return violation(format!("a write failed on a healthy disk: {error}"));
        }
        // What was decided on top of writes that failed cannot be told any more.
        if side.unsure {
            return Ok(());
        }
        side.unsure = matches!(error, AppendError::Stopped { .. });
        let model = &self.models[partition];
        let verdict = model.verdict(batch);
        let right = match error {
            AppendError::RevisionConflict { stream, actual, .. } => {
                let stream = model.streams.get(stream);
                let last = stream.and_then(|s| (s.len() as u64).checked_sub(1));
                // Out of the window of ids, only what is committed is recognised.
                let in_flight = matches!(verdict, Verdict::Duplicate(at) if at > acknowledged);
                verdict == Verdict::Unsure
                    || in_flight
                    || verdict == Verdict::Conflict(*actual) && last == *actual
            }
            AppendError::ConditionFailed { sequence } => {
                let condition = batch.condition.as_ref();
                let matches = condition.is_some_and(|c| model.matches(c, *sequence));
                matches && matches!(verdict, Verdict::ConditionFailed | Verdict::Unsure)
            }
            AppendError::IdReused { .. } => {
                matches!(verdict, Verdict::IdReused | Verdict::Unsure)
            }
            AppendError::Overloaded { what, .. } => *what == "closed_segments_max",
            AppendError::DiskFull { .. } => errors || lost || damaged,
            AppendError::Check { source } => {
                let excused = self.excuses_read(partition, source);
                excused || verdict == Verdict::Unsure
            }
            AppendError::Stopped { .. } => self.may_be_stopped(),
            _ => false,
        };
        if right {
            return Ok(());
        }
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        violation(format!(
            "partition {partition} refused ({text}), the model says {verdict:?}"
        ))
    }
}
