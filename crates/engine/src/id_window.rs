//! The event ids of the last N events of a partition: what makes a repeated append harmless.
//!
//! A fixed table with linear probing and backward-shift deletion: no tombstones, hence no rehash that would stall the
//! writer, and no allocation after creation. Ids are kept as keyed 64-bit hashes; a hit is a candidate that the caller
//! confirms by reading the event.

/// See the module's description.
pub(crate) struct IdWindow {
    /// `(hash, sequence)`; sequence 0 means empty, since sequences start at 1.
    slots: Vec<(u64, u64)>,
    /// Hashes in order of sequence, a ring: which one leaves when the window is full.
    order: Vec<u64>,
    /// Sequence of the oldest id in the window.
    oldest: u64,
    /// How many ids the window holds.
    len: usize,
}

impl IdWindow {
    /// A window of `events` ids (at least 1). Takes about 30 bytes an id, touched only as it fills.
    pub(crate) fn new(events: usize) -> IdWindow {
        let events = events.max(1);
        IdWindow {
            slots: vec![(0, 0); events + events / 3 + 1],
            order: vec![0; events],
            oldest: 1,
            len: 0,
        }
    }

    fn home(&self, hash: u64) -> usize {
        let wide = u128::from(hash) * (self.slots.len() as u128);
        usize::try_from(wide >> 64).expect("a product's upper half is below its second factor")
    }

    fn order_index(&self, sequence: u64) -> usize {
        usize::try_from(sequence % (self.order.len() as u64)).expect("a remainder of a usize fits")
    }

    /// The newest sequence with this id hash, if the window has one.
    pub(crate) fn get(&self, hash: u64) -> Option<u64> {
        let mut newest = None;
        let mut slot = self.home(hash);
        while self.slots[slot].1 != 0 {
            if self.slots[slot].0 == hash {
                newest = newest.max(Some(self.slots[slot].1));
            }
            slot = self.next(slot);
        }
        newest
    }

    /// Adds the id of `sequence`, which must follow the last one added (or be the first).
    pub(crate) fn push(&mut self, sequence: u64, hash: u64) {
        if self.len == 0 {
            self.oldest = sequence;
        }
        assert_eq!(
            sequence,
            self.oldest + self.len as u64,
            "ids enter in order of sequence"
        );
        if self.len == self.order.len() {
            self.remove_oldest();
        }
        let at = self.order_index(sequence);
        self.order[at] = hash;
        self.len += 1;
        let mut slot = self.home(hash);
        while self.slots[slot].1 != 0 {
            slot = self.next(slot);
        }
        self.slots[slot] = (hash, sequence);
    }

    fn next(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() {
            0
        } else {
            slot + 1
        }
    }

    fn remove_oldest(&mut self) {
        let sequence = self.oldest;
        let hash = self.order[self.order_index(sequence)];
        let mut hole = self.home(hash);
        while self.slots[hole] != (hash, sequence) {
            assert_ne!(
                self.slots[hole].1, 0,
                "every id in the window is in its table"
            );
            hole = self.next(hole);
        }
        // Move later members of the run back over the hole while that brings them no further than their home.
        let mut slot = self.next(hole);
        while self.slots[slot].1 != 0 {
            let home = self.home(self.slots[slot].0);
            let distance_home = (slot + self.slots.len() - home) % self.slots.len();
            let distance_hole = (slot + self.slots.len() - hole) % self.slots.len();
            if distance_home >= distance_hole {
                self.slots[hole] = self.slots[slot];
                hole = slot;
            }
            slot = self.next(slot);
        }
        self.slots[hole] = (0, 0);
        self.oldest += 1;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::IdWindow;

    proptest! {
        #[test]
        fn window_agrees_with_a_model(hashes in prop::collection::vec(0u64..40, 1..300), size in 1usize..50) {
            // Few distinct values, spread over the whole range, so that runs wrap and collide.
            let spread = |hash: u64| hash.wrapping_mul(0x0666_6666_6666_6667);
            let mut window = IdWindow::new(size);
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
        }
    }
}
