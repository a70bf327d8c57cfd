//! Planted bugs: each must be found within its budget of seeds.

use truthdb_log::canary::{Canary, plant};

use crate::seeds::{Failure, run_seed};

/// The canaries and how many seeds, from 1 on, may be needed to find each.
pub const BUDGETS: [(Canary, u64); 13] = [
    (Canary::AckBeforeWrite, 100),
    (Canary::SkipFlush, 100),
    (Canary::DropEvidence, 600),
    (Canary::SkipRevisionCheck, 100),
    (Canary::SkipCondition, 100),
    (Canary::ForgetIds, 100),
    (Canary::SkipChainCheck, 600),
    (Canary::RollInFlight, 200),
    (Canary::ShortPage, 100),
    (Canary::PublishEarly, 100),
    (Canary::TrimOneMore, 600),
    (Canary::FollowClock, 100),
    (Canary::IgnoreWriteError, 200),
];

/// Plants a bug and runs seeds from 1 on until one finds it. The bug is gone afterwards.
pub fn hunt(canary: Canary, budget: u64) -> Option<Failure> {
    plant(Some(canary));
    let found = (1..=budget).find_map(|seed| run_seed(seed).err());
    plant(None);
    found
}
