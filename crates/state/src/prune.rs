//! Which snapshots to keep: the newest ones, and of the others fewer the older they are.
//!
//! A pure function of the sequences. At the age of a sequences (behind the newest snapshot) time is
//! divided into slots whose width is a power of two near a / 2^k; the first snapshot of each slot
//! stays. Slots are aligned to absolute sequences and nest, so that the first of a wide slot is the
//! first of the narrow slot it was in before: what is kept now was never thrown away earlier.

/// Which snapshots to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// The newest so many stay.
    pub keep_last: usize,
    /// Beyond them stay about 2^`slots_log2` for each doubling of the age.
    pub slots_log2: u32,
}

impl Default for PrunePolicy {
    /// The newest 4, and 16 for each doubling of the age: between a past sequence and the snapshot
    /// before it lies about a tenth of its age at most.
    fn default() -> PrunePolicy {
        PrunePolicy {
            keep_last: 4,
            slots_log2: 4,
        }
    }
}

impl PrunePolicy {
    /// Those of `sequences` (ascending) that stay, ascending. The newest always does.
    pub fn kept(&self, sequences: &[u64]) -> Vec<u64> {
        let Some(newest) = sequences.last() else {
            return Vec::new();
        };
        let last = sequences.len() - self.keep_last.clamp(1, sequences.len());
        let mut kept: Vec<u64> = Vec::new();
        let mut previous = None;
        for (at, sequence) in sequences.iter().enumerate() {
            let width = self.slot_width(newest - sequence);
            let slot = (sequence >> width) << width;
            // Slots get narrower towards the newest: the one before may reach into this one.
            let is_first = previous.is_none_or(|previous| previous < slot);
            if at >= last || is_first {
                kept.push(*sequence);
            }
            previous = Some(*sequence);
        }
        kept
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

    #[test]
    fn the_newest_stay_and_the_old_get_fewer() {
        let all: Vec<u64> = (1..=1000).map(|n| n * 100).collect();
        let kept = policy(5, 2).kept(&all);
        assert_eq!(kept[kept.len() - 5..], all[995..]);
        assert!(kept.len() < 45, "{} kept", kept.len());
        let gaps: Vec<u64> = kept.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps[0] > 8_000, "{gaps:?}");
        assert_eq!(policy(0, 2).kept(&[7]), [7]);
        assert_eq!(policy(3, 0).kept(&[]), [0; 0]);
        assert_eq!(policy(usize::MAX, 63).kept(&all), all);
        assert_eq!(policy(1, 0).kept(&[1, u64::MAX]), [1, u64::MAX]);
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
            let (mut now, mut all, mut kept) = (0, Vec::new(), Vec::new());
            for step in steps {
                now += step;
                all.push(now);
                kept.push(now);
                kept = policy.kept(&kept);
                // Pruning in steps keeps what pruning at once would, or more.
                prop_assert!(policy.kept(&all).iter().all(|sequence| kept.contains(sequence)));
                prop_assert_eq!(&policy.kept(&kept), &kept);
            }
            for at in all.iter().skip(1) {
                let before = kept.iter().rev().find(|sequence| *sequence <= at);
                let age = now - at;
                // Two slots of the width at the age of the slots' far end, and one interval.
                let allowed = 4 * ((age >> slots_log2) + 1) + 2 * 2000;
                let from = before.copied().unwrap_or(0);
                prop_assert!(at - from <= allowed, "{at} of {now}: {from}, {kept:?}");
            }
            prop_assert!(kept.len() <= keep_last + (1 << slots_log2) * 2 * 20);
        }
    }
}
