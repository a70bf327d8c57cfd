//! States of the past that somebody asked for: made once, kept for the next question about the same
//! moment, bounded in memory.
//!
//! One is either a version in memory, or a snapshot on disk under the deltas that lead from it to the
//! moment: of that one, a question reads the chunks that it touches and nothing else.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use truthdb_state::{Fingerprint, PastView, Sink, SnapshotError, View};

/// Past states that are kept, all modules.
const STATES_MAX: usize = 32;
/// Bytes that they take together; the newest is kept whatever it takes.
const STATES_BYTES_MAX: u64 = 256 << 20;

/// Rows of a version.
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    /// In memory.
    Memory(View),
    /// In a snapshot, under deltas.
    Disk(Arc<PastView>),
}

impl Rows {
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        match self {
            Rows::Memory(view) => view.fingerprint(),
            Rows::Disk(past) => past.fingerprint(),
        }
    }

    /// The value of a key. An error is one of the snapshot: the state can still be made otherwise.
    pub(crate) fn get(&self, table: u32, key: &[u8]) -> Result<Option<Vec<u8>>, SnapshotError> {
        match self {
            Rows::Memory(view) => Ok(view.get(table, key).map(<[u8]>::to_vec)),
            Rows::Disk(past) => past.get(table, key),
        }
    }

    /// As [`View::scan`]. After an error `sink` may have been told rows.
    pub(crate) fn scan(
        &self,
        table: u32,
        (start, end): (&[u8], Option<&[u8]>),
        limit: u64,
        reverse: bool,
        sink: Sink<'_>,
    ) -> Result<bool, SnapshotError> {
        match self {
            Rows::Memory(view) => Ok(view.scan(table, start, end, limit, reverse, sink)),
            Rows::Disk(past) => past.scan(table, start, end, limit, reverse, sink),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Rows::Memory(view) => view.memory_bytes(),
            Rows::Disk(past) => past.overlay_bytes(),
        }
    }
}

/// Whose state, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) partition: u32,
    pub(crate) module: String,
    pub(crate) line: u32,
    pub(crate) sequence: u64,
}

/// The states that are kept.
#[derive(Default)]
pub(crate) struct PastStates(Mutex<VecDeque<(Moment, Rows)>>);

impl PastStates {
    pub(crate) fn find(&self, moment: &Moment) -> Option<Rows> {
        let states = self.0.lock();
        let found = states.iter().find(|(of, _)| of == moment);
        found.map(|(_, rows)| rows.clone())
    }

    pub(crate) fn keep(&self, moment: Moment, rows: Rows) {
        let mut states = self.0.lock();
        states.retain(|(of, _)| *of != moment);
        states.push_back((moment, rows));
        forget_oldest(&mut states, STATES_BYTES_MAX);
    }
}

fn forget_oldest(states: &mut VecDeque<(Moment, Rows)>, bytes_max: u64) {
    let mut bytes: u64 = states.iter().map(|(_, rows)| rows.bytes()).sum();
    while (states.len() > STATES_MAX || bytes > bytes_max)
        && states.len() > 1
        && let Some((_, rows)) = states.pop_front()
    {
        bytes -= rows.bytes();
    }
}

#[cfg(test)]
mod tests {
    use truthdb_state::Tables;

    use super::*;

    fn moment(sequence: u64) -> Moment {
        Moment {
            partition: 0,
            module: "m".to_owned(),
            line: 1,
            sequence,
        }
    }

    fn rows(bytes: usize) -> Rows {
        let mut tables = Tables::new(1);
        tables.begin();
        tables.set(0, b"key", &vec![7; bytes]).unwrap();
        tables.commit();
        Rows::Memory(tables.view())
    }

    #[test]
    fn what_is_kept_is_bounded_by_number_and_by_bytes() {
        let past = PastStates::default();
        for sequence in 0..40 {
            past.keep(moment(sequence), rows(10));
        }
        let kept = (0..40).filter(|at| past.find(&moment(*at)).is_some());
        assert_eq!(kept.count(), STATES_MAX);
        // Kept once for a moment.
        past.keep(moment(39), rows(10));
        assert!(past.find(&moment(8)).is_some());

        let one = rows(100_000).bytes();
        let mut states = (0..5).map(|at| (moment(at), rows(100_000))).collect();
        forget_oldest(&mut states, 3 * one + 1);
        assert_eq!(states.len(), 3);
        forget_oldest(&mut states, 1);
        assert_eq!(states[0].0, moment(4), "the newest is kept");
    }
}
