//! Which snapshots to keep: the newest ones, and of the others fewer the older they are.
//!
//! A pure function of the sequences. At the age of a sequences (behind the newest snapshot) time is
//! divided into slots whose width is a power of two near a / 2^k; the first snapshot of each slot
//! stays. Slots are aligned to absolute sequences and nest, so that the first of a wide slot is the
//! first of the narrow slot it was in before: what is kept now was never thrown away earlier.
//!
//! A snapshot need not have the states of all modules. Slots are filled for each module's generation by
//! itself, and ages are those behind the newest snapshot of all.

/// Which snapshots to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// The newest so many stay.
    pub keep_last: usize,
    /// Beyond them stay about 2^`slots_log2` for each doubling of the age.
    pub slots_log2: u32,
}

impl Default for PrunePolicy {
    /// The newest 4, and 16 for each doubling of the age: from a past sequence back to the nearest
    /// snapshot it is an eighth of its age at most, and twice the interval in which they were taken.
    fn default() -> PrunePolicy {
        PrunePolicy {
            keep_last: 4,
            slots_log2: 4,
        }
    }
}

impl PrunePolicy {
    /// The newest of `sequences` (ascending), which stay whatever they hold. At least one.
    pub fn newest<'s>(&self, sequences: &'s [u64]) -> &'s [u64] {
        let count = self.keep_last.max(1).min(sequences.len());
        &sequences[sequences.len() - count..]
    }

    /// Those of `sequences` (ascending), the snapshots that have one state, that stay for it, ascending:
    /// the first of each slot, and the last. `newest` is the newest snapshot of all.
    pub fn kept(&self, sequences: &[u64], newest: u64) -> Vec<u64> {
        let mut kept: Vec<u64> = Vec::new();
        let mut previous = None;
        for sequence in sequences {
            let width = self.slot_width(newest.saturating_sub(*sequence));
            let slot = (sequence >> width) << width;
            // Slots get narrower towards the newest: the one before may reach into this one.
            let is_first = previous.is_none_or(|previous| previous < slot);
            if is_first || Some(sequence) == sequences.last() {
                kept.push(*sequence);
            }
            previous = Some(*sequence);
        }
        kept
    }

    /// Sequences of a slot at an age.
    pub fn slot(&self, age: u64) -> u64 {
        1 << self.slot_width(age).min(u64::BITS - 1)
    }

    /// The width of slots at an age, as the exponent of two.
    fn slot_width(&self, age: u64) -> u32 {
        age.checked_ilog2()
            .map_or(0, |log2| log2.saturating_sub(self.slots_log2))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(keep_last: usize, slots_log2: u32) -> PrunePolicy {
        PrunePolicy {
            keep_last,
            slots_log2,
        }
    }

    /// Those that stay if all have one state.
    fn kept(policy: PrunePolicy, sequences: &[u64]) -> Vec<u64> {
        let newest = sequences.last().copied().unwrap_or(0);
        let mut kept = policy.kept(sequences, newest);
        kept.extend(policy.newest(sequences));
        kept.sort_unstable();
        kept.dedup();
        kept
    }

    #[test]
    fn the_newest_stay_and_the_old_get_fewer() {
        let all: Vec<u64> = (1..=1000).map(|n| n * 100).collect();
        let some = kept(policy(5, 2), &all);
        assert_eq!(some[some.len() - 5..], all[995..]);
        assert!(some.len() < 45, "{} kept", some.len());
        let gaps: Vec<u64> = some.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps[0] > 8_000, "{gaps:?}");
        assert_eq!(kept(policy(0, 2), &[7]), [7]);
        assert_eq!(kept(policy(3, 0), &[]), [0; 0]);
        assert_eq!(kept(policy(usize::MAX, 63), &all), all);
        assert_eq!(kept(policy(1, 0), &[1, u64::MAX]), [1, u64::MAX]);
    }

    #[test]
    fn what_one_state_has_is_thinned_by_its_age_behind_the_newest_of_all() {
        let of_one: Vec<u64> = (1..=100).map(|n| n * 100).collect();
        let near = policy(4, 3).kept(&of_one, 10_000);
        let far = policy(4, 3).kept(&of_one, 1_000_000);
        assert!(far.len() < near.len(), "{far:?} {near:?}");
        assert_eq!((far[0], far[far.len() - 1]), (100, 10_000));
        assert_eq!(
            (policy(4, 3).slot(999_999), policy(4, 3).slot(0)),
            (1 << 16, 1)
        );
    }

    proptest! {
        /// Snapshots are taken and pruned over and over, as a server does.
        #[test]
        fn the_nearest_snapshot_is_never_far(
            steps in prop::collection::vec(1_u64..2000, 1..300),
            keep_last in 1_usize..6,
            slots_log2 in 1_u32..6,
        ) {
            let policy = policy(keep_last, slots_log2);
            let (mut now, mut all, mut left) = (0, Vec::new(), Vec::new());
            for step in steps {
                now += step;
                all.push(now);
                left.push(now);
                left = kept(policy, &left);
                // Pruning in steps keeps what pruning at once would, or more.
                prop_assert!(kept(policy, &all).iter().all(|sequence| left.contains(sequence)));
                prop_assert_eq!(&kept(policy, &left), &left);
            }
            for at in all.iter().skip(1) {
                let before = left.iter().rev().find(|sequence| *sequence <= at);
                let age = now - at;
                // Two slots of the width at the age of the slots' far end, and one interval.
                let allowed = 4 * ((age >> slots_log2) + 1) + 2 * 2000;
                let from = before.copied().unwrap_or(0);
                prop_assert!(at - from <= allowed, "{at} of {now}: {from}, {left:?}");
            }
            prop_assert!(left.len() <= keep_last + (1 << slots_log2) * 2 * 20);
        }
    }
}
