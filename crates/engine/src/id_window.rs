//! The event ids of the last N events of a partition: what makes a repeated append harmless.
//!
//! A fixed table of buckets, one cache line each; an id may lie in two of them. Nothing is ever
//! removed: an entry whose
//! sequence has left the window counts as free. So a look-up touches two lines, an insertion the
//! same two, and neither
//! allocates or moves anything. Ids are kept as keyed 64-bit hashes; a hit is a candidate that the
//! caller confirms by
//! reading the event.

use hashbrown::HashMap;

/// Entries of a bucket: `(hash, sequence)`; sequence 0 means free, since sequences start at 1.
const WAYS: usize = 4;

/// 64 bytes. A plain array, so that a large table comes zeroed from the operating system and is
/// touched only as it fills;
/// such memory begins on a page, hence each bucket on a cache line.
type Bucket = [(u64, u64); WAYS];

/// See the module's description.
pub(crate) struct IdWindow {
    buckets: Vec<Bucket>,
    /// Ids whose two buckets were full: about one in ten thousand.
    overflow: HashMap<u64, u64>,
    /// How many events back an id is remembered.
    events: u64,
    /// Sequence of the newest id; 0 if there is none.
    newest: u64,
    /// Where the window began: ids of earlier events were never added.
    began: u64,
}

/// Overflowed ids are looked through for ones that left the window when there are this many, so
/// that they stay few.
const OVERFLOW_MAX: usize = 4096;

impl IdWindow {
    /// A window of `events` ids (at least 1) that gets those of all events from sequence `began` on.
    /// Takes 32 bytes an id, touched only as it fills.
    pub(crate) fn new(events: usize, began: u64) -> IdWindow {
        let events = events.max(1);
        IdWindow {
            // Half full: then two full buckets for one id are rare.
            buckets: vec![[(0, 0); WAYS]; events * 2 / WAYS + 1],
            overflow: HashMap::with_capacity(OVERFLOW_MAX * 2),
            events: events as u64,
            newest: 0,
            began,
        }
    }

    /// The ids of all events from this sequence on are there.
    pub(crate) fn first_sequence(&self) -> u64 {
        let left = (self.newest + 1).saturating_sub(self.events);
        self.began.max(left).max(1)
    }

    /// Hash and sequence of every id that is remembered, in no order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, u64)> {
        let entries = self.buckets.iter().flatten().copied();
        let overflow = self
            .overflow
            .iter()
            .map(|(hash, sequence)| (*hash, *sequence));
        entries
            .chain(overflow)
            .filter(|(_, sequence)| self.is_current(*sequence))
    }

    /// Before ids are restored: the newest of them is that of this sequence.
    pub(crate) fn begin_at(&mut self, newest: u64) {
        assert_eq!(self.newest, 0, "nothing was added yet");
        self.newest = newest;
    }

    /// Adds the id of a sequence up to that of [`IdWindow::begin_at`], each once, in any order.
    /// Quickest in the order of the hashes: then the buckets are touched one after another.
    pub(crate) fn restore(&mut self, sequence: u64, hash: u64) {
        assert!(sequence <= self.newest, "the newest is known");
        let homes = self.homes(hash);
        let free = homes.into_iter().find_map(|home| {
            let way = self.buckets[home]
                .iter()
                .position(|(_, sequence)| *sequence == 0);
            way.map(|way| (home, way))
        });
        match free {
            Some((home, way)) => self.buckets[home][way] = (hash, sequence),
            None => self.restore_overflow(sequence, hash),
        }
    }

    /// Of two ids with one hash the later one counts.
    fn restore_overflow(&mut self, sequence: u64, hash: u64) {
        let known = self.overflow.entry(hash).or_insert(sequence);
        *known = sequence.max(*known);
    }

    /// The two buckets of a hash.
    fn homes(&self, hash: u64) -> [usize; 2] {
        let count = self.buckets.len() as u128;
        let place = |hash: u64| {
            usize::try_from((u128::from(hash) * count) >> 64)
                .expect("a product's upper half is below its second factor")
        };
        [place(hash), place(hash.rotate_left(32))]
    }

    fn is_current(&self, sequence: u64) -> bool {
        sequence > 0 && sequence + self.events > self.newest
    }

    /// The newest sequence with this id hash, if the window has one.
    pub(crate) fn get(&self, hash: u64) -> Option<u64> {
        let mut newest = 0;
        for home in self.homes(hash) {
            for (other, sequence) in self.buckets[home] {
                if other == hash && sequence > newest {
                    newest = sequence;
                }
            }
        }
        if !self.overflow.is_empty() {
            newest = newest.max(self.overflow.get(&hash).copied().unwrap_or(0));
        }
        self.is_current(newest).then_some(newest)
    }

    /// Adds the id of `sequence`, which must be later than the last one added.
    pub(crate) fn push(&mut self, sequence: u64, hash: u64) {
        assert!(sequence > self.newest, "ids enter in order of sequence");
        self.newest = sequence;
        let homes = self.homes(hash);
        let current = |&(_, sequence): &(u64, u64)| self.is_current(sequence);
        let used = homes.map(|home| self.buckets[home].iter().filter(|e| current(e)).count());
        let home = homes[usize::from(used[1] < used[0])];
        let way = self.buckets[home].iter().position(|entry| !current(entry));
        match way {
            Some(way) => self.buckets[home][way] = (hash, sequence),
            None => self.push_overflow(sequence, hash),
        }
    }

    fn push_overflow(&mut self, sequence: u64, hash: u64) {
        if self.overflow.len() >= OVERFLOW_MAX {
            let (events, newest) = (self.events, self.newest);
            self.overflow
                .retain(|_, sequence| *sequence + events > newest);
        }
        self.overflow.insert(hash, sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::IdWindow;

    /// Few distinct values, spread over the whole range.
    fn spread(hash: u64) -> u64 {
        (hash + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    proptest! {
        #[test]
        fn window_agrees_with_a_model(hashes in prop::collection::vec(0u64..40, 1..300), size in 1usize..50) {
            let mut window = IdWindow::new(size, 1);
            for (i, hash) in hashes.iter().enumerate() {
                window.push(i as u64 + 1, spread(*hash));
                let mut model = HashMap::new();
                for (j, old) in hashes[..=i].iter().enumerate().skip((i + 1).saturating_sub(size)) {
                    model.insert(*old, j as u64 + 1);
                }
                for hash in 0..40 {
                    prop_assert_eq!(window.get(spread(hash)), model.get(&hash).copied());
                }
            }
            // Stored and restored, it is the same.
            let mut entries: Vec<_> = window.entries().collect();
            entries.sort_unstable();
            let mut restored = IdWindow::new(size, window.first_sequence());
            restored.begin_at(hashes.len() as u64);
            for (hash, sequence) in entries {
                restored.restore(sequence, hash);
            }
            prop_assert_eq!(restored.first_sequence(), window.first_sequence());
            for hash in 0..40 {
                prop_assert_eq!(restored.get(spread(hash)), window.get(spread(hash)));
            }
        }
    }

    #[test]
    fn every_id_of_a_full_window_is_found_and_overflow_stays_rare() {
        let events = 100_000;
        let mut window = IdWindow::new(events, 1);
        for sequence in 1..=3 * events as u64 {
            window.push(sequence, spread(sequence));
        }
        for sequence in 2 * events as u64 + 1..=3 * events as u64 {
            assert_eq!(window.get(spread(sequence)), Some(sequence));
        }
        assert_eq!(window.get(spread(2 * events as u64)), None);
        assert!(
            window.overflow.len() < events / 500,
            "{}",
            window.overflow.len()
        );
    }
}
