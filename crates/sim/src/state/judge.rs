//! Whether validators decided by the state of exactly the event before, and queries by the tables.

use truthdb_compute::{At, ComputeError, MODULE_STREAM_PREFIX, QueryAnswer, Token};
use truthdb_engine::{Direction, Filter, ReadFrom, ReadRequest};

use super::guests::{CODES, GUARDED, ORDER, Quirk, is_refused};
use super::{StateSim, blake3_of};
use crate::sim::{Violation, violation};

/// Accepted batches that are looked at, at most.
const JUDGED_MAX: usize = 16;

impl StateSim {
    /// What `tally` counted as of a sequence; none if that cannot be asked now.
    fn counted(&self, partition: u32, sequence: u64) -> Result<Option<u64>, Violation> {
        match self.scan("tally", At::Token(Token::of(partition, sequence))) {
            Some(Ok(answer)) => {
                let row = answer.rows.iter().find(|row| row.key == ORDER.as_bytes());
                let value = row.and_then(|row| row.value.clone().try_into().ok());
                Ok(Some(value.map_or(0, u64::from_le_bytes)))
            }
            None | Some(Err(ComputeError::Halted { .. } | ComputeError::NotYet { .. })) => Ok(None),
            Some(Err(_)) if self.world.boots() != self.boots => Ok(None),
            Some(Err(error)) => violation(format!("tally at {partition}:{sequence}: {error}")),
        }
    }

    /// A validator that refused saw the state of the event before. To be asked when everything is at
    /// rest in the process that refused.
    pub(super) fn judge_refusals(&mut self) -> Result<(), Violation> {
        let refused = std::mem::take(&mut self.inbox.lock().refused);
        for (partition, index, said) in refused {
            let parts = said.split_once(':');
            let parts: Option<(u64, u64)> =
                parts.and_then(|(event, seen)| Some((event.parse().ok()?, seen.parse().ok()?)));
            let Some((event, seen)) = parts else {
                return violation(format!("a refusal says {said:?}"));
            };
            let first = event - index;
            let counted = self.counted(partition, first - 1)?;
            if counted.is_some_and(|counted| counted != seen) {
                return violation(format!(
                    "the batch at {partition}:{first} was refused by a count of {seen}, it was {counted:?}; \
                     orders are at {:?}; decided was: {}",
                    self.orders_at(partition),
                    self.decided()
                ));
            }
            self.figures.judged += u64::from(counted.is_some());
        }
        Ok(())
    }

    /// Of the batches that a validator had to look at, none is there that it had to refuse.
    pub(super) fn judge_accepted(&mut self) -> Result<(), Violation> {
        for partition in 0..self.partitions {
            let mut guarded = self.guarded_batches(partition)?;
            while guarded.len() > JUDGED_MAX {
                let index = self.draw(guarded.len() as u64);
                guarded.swap_remove(usize::try_from(index).expect("an index"));
            }
            for first in guarded {
                let counted = self.counted(partition, first - 1)?;
                if counted.is_some_and(is_refused) {
                    return violation(format!(
                        "the batch at {partition}:{first} is there at a count of {counted:?}; decided was: {}",
                        self.decided()
                    ));
                }
                self.figures.judged += u64::from(counted.is_some());
            }
        }
        Ok(())
    }

    /// Sequences of the orders in the log, for whoever reads a violation.
    fn orders_at(&self, partition: u32) -> Vec<u64> {
        let Some(live) = &self.live else {
            return Vec::new();
        };
        let page = live.engine.read(&ReadRequest {
            partition,
            from: ReadFrom::Start,
            direction: Direction::Forward,
            filter: Filter {
                types: vec![ORDER.to_owned()],
                ..Filter::default()
            },
            events_max: 10_000,
            bytes_max: 4 << 20,
        });
        let events = page.iter().flat_map(truthdb_engine::ReadPage::events);
        events.map(|stored| stored.sequence).collect()
    }

    /// First sequences of the batches that a validator had to look at: those after its activation.
    fn guarded_batches(&self, partition: u32) -> Result<Vec<u64>, Violation> {
        let Some(live) = &self.live else {
            return violation("nothing is open");
        };
        let decisions = format!("{MODULE_STREAM_PREFIX}guard");
        let (mut is_active, mut found) = (false, Vec::new());
        let mut request = ReadRequest {
            partition,
            from: ReadFrom::Start,
            direction: Direction::Forward,
            filter: Filter::default(),
            events_max: 10_000,
            bytes_max: 4 << 20,
        };
        loop {
            let page = match live.engine.read(&request) {
                Ok(page) => page,
                Err(error) => return violation(format!("the log cannot be read: {error}")),
            };
            for batch in &page.batches {
                let mut is_guarded = false;
                for stored in batch.events() {
                    let event = stored.event();
                    is_guarded |=
                        event.stream().starts_with(GUARDED) && event.event_type() == ORDER;
                    if event.stream() == decisions {
                        let fact = String::from_utf8_lossy(event.payload());
                        let is = |kind: &str| fact.contains(&format!("\"kind\":\"{kind}\""));
                        is_active = (is_active || is("activated")) && !is("removed");
                    }
                }
                if is_guarded && is_active {
                    found.push(batch.first_sequence);
                }
            }
            match page.next {
                Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
                _ => return Ok(found),
            }
        }
    }

    /// A query operator answers what the tables say at the same moment.
    pub(super) fn check_sum(&self, sum: &QueryAnswer) -> Result<(), Violation> {
        let token = sum.token();
        let Some(Ok(rows)) = self.scan("tally", At::Token(token.clone())) else {
            return Ok(());
        };
        let number = |value: &[u8]| value.try_into().map_or(0, u64::from_le_bytes);
        let of_tables: u64 = rows
            .rows
            .iter()
            .filter(|row| row.key == ORDER.as_bytes())
            .map(|row| number(&row.value))
            .sum();
        let code = CODES
            .iter()
            .find(|(bytes, ..)| blake3_of(bytes) == sum.operator_hash);
        let Some((_, _, Quirk::Sums(times))) = code else {
            return violation("the operator is none of the simulation");
        };
        let told = sum.rows.first().map_or(0, |row| number(&row.value));
        if told != of_tables * times {
            return violation(format!(
                "the query says {told} at {token}, {times} times the tables say {of_tables}"
            ));
        }
        Ok(())
    }
}
