//! Planted bugs: each must be found within its budget of seeds.

use truthdb_log::canary::{Canary, plant};

use crate::seeds::{Failure, run_seed};

/// The canaries and how many seeds, from 1 on, may be needed to find each.
pub const BUDGETS: [(Canary, u64); 13] = [
    (Canary::AckBeforeWrite, 20),
    (Canary::SkipFlush, 20),
    (Canary::DropEvidence, 300),
    (Canary::SkipRevisionCheck, 20),
    (Canary::SkipCondition, 20),
    (Canary::ForgetIds, 20),
    (Canary::SkipChainCheck, 600),
    (Canary::RollInFlight, 300),
    (Canary::ShortPage, 20),
    (Canary::PublishEarly, 20),
    (Canary::TrimOneMore, 300),
    (Canary::FollowClock, 40),
    (Canary::IgnoreWriteError, 40),
];

/// Plants a bug and runs seeds from 1 on until one finds it. The bug is gone afterwards, and then the seed must find
/// nothing: what fails without the bug has not found it.
pub fn hunt(canary: Canary, budget: u64) -> Option<Failure> {
    (1..=budget).find_map(|seed| {
        plant(Some(canary));
        let found = run_seed(seed).err();
        plant(None);
        found.filter(|_| run_seed(seed).is_ok())
    })
}
