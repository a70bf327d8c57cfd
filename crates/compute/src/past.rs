//! States of the past that somebody asked for: made once, kept for the next question about the same
//! moment, bounded in memory.
//!
//! One is either a version in memory, or a snapshot on disk under the deltas that lead from it to the
//! moment: of that one, a question reads the chunks that it touches and nothing else.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use truthdb_state::{Fingerprint, PastRange, PastView, Sink, SnapshotError, View};

/// Past states that are kept, all modules.
const STATES_MAX: usize = 32;
/// Bytes that they take together; the newest is kept whatever it takes.
const STATES_BYTES_MAX: u64 = 256 << 20;

/// What a question needs of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All rows, in memory.
    Memory,
    /// All rows, wherever they are.
    All,
    /// These rows, wherever they are.
    Range(PastRange),
}

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

    fn has(&self, wanted: &Wanted) -> bool {
        match (self, wanted) {
            (Rows::Memory(_), _) => true,
            (Rows::Disk(_), Wanted::Memory) => false,
            (Rows::Disk(past), Wanted::All) => past.range().is_none(),
            (Rows::Disk(past), Wanted::Range(range)) => past.covers(range),
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

/// A state that is kept.
struct Kept {
    of: Moment,
    rows: Rows,
    /// Questions about the moment that it could not answer.
    missed: u32,
}

/// The states that are kept.
#[derive(Default)]
pub(crate) struct PastStates(Mutex<VecDeque<Kept>>);

impl PastStates {
    /// The state of a moment, if it is kept and has what is asked for; else how many questions about the
    /// moment were in vain before this one.
    pub(crate) fn find(&self, moment: &Moment, wanted: &Wanted) -> Result<Rows, u32> {
        let mut states = self.0.lock();
        let Some(kept) = states.iter_mut().find(|kept| kept.of == *moment) else {
            return Err(0);
        };
        if kept.rows.has(wanted) {
            return Ok(kept.rows.clone());
        }
        kept.missed += 1;
        Err(kept.missed)
    }

    pub(crate) fn keep(&self, of: Moment, rows: Rows) {
        let mut states = self.0.lock();
        let before = states.iter().position(|kept| kept.of == of);
        let missed = before.and_then(|at| states.remove(at));
        let missed = missed.map_or(0, |kept| kept.missed);
        states.push_back(Kept { of, rows, missed });
        forget_oldest(&mut states, STATES_BYTES_MAX);
    }
}

fn forget_oldest(states: &mut VecDeque<Kept>, bytes_max: u64) {
    let mut bytes: u64 = states.iter().map(|kept| kept.rows.bytes()).sum();
    while (states.len() > STATES_MAX || bytes > bytes_max)
        && states.len() > 1
        && let Some(kept) = states.pop_front()
    {
        bytes -= kept.rows.bytes();
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
        let is_kept = |at: u64| past.find(&moment(at), &Wanted::Memory).is_ok();
        let kept = (0..40).filter(|at| is_kept(*at));
        assert_eq!(kept.count(), STATES_MAX);
        // Kept once for a moment.
        past.keep(moment(39), rows(10));
        assert!(is_kept(8));

        let one = rows(100_000).bytes();
        let kept = |at| Kept {
            of: moment(at),
            rows: rows(100_000),
            missed: 0,
        };
        let mut states = (0..5).map(kept).collect();
        forget_oldest(&mut states, 3 * one + 1);
        assert_eq!(states.len(), 3);
        forget_oldest(&mut states, 1);
        assert_eq!(states[0].of, moment(4), "the newest is kept");
    }

    #[test]
    fn a_state_of_some_rows_answers_for_these_and_counts_what_else_is_asked() {
        let rows = |key: &[u8]| Wanted::Range(PastRange::of_key(0, key));
        let past = PastStates::default();
        assert_eq!(past.find(&moment(1), &rows(b"a")).unwrap_err(), 0);
        let mut view = PastView::empty(1, 1);
        view.narrow(PastRange::of_key(0, b"a"));
        past.keep(moment(1), Rows::Disk(Arc::new(view)));
        assert!(past.find(&moment(1), &rows(b"a")).is_ok());
        let missed = |wanted| past.find(&moment(1), &wanted).unwrap_err();
        assert_eq!([missed(rows(b"b")), missed(Wanted::All)], [1, 2]);
        // What is kept for the moment then has other rows; how often it was in vain is not forgotten.
        let mut other = PastView::empty(1, 1);
        other.narrow(PastRange::of_key(0, b"b"));
        past.keep(moment(1), Rows::Disk(Arc::new(other)));
        assert_eq!(missed(rows(b"a")), 3);
        past.keep(moment(1), Rows::Disk(Arc::new(PastView::empty(1, 1))));
        for wanted in [rows(b"a"), Wanted::All] {
            assert!(past.find(&moment(1), &wanted).is_ok());
        }
        assert_eq!(missed(Wanted::Memory), 4);
    }
}
