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
    (Canary::SkipChainCheck, 1500),
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

/// A bug planted where state is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateCanary {
    /// In the fold.
    Fold(truthdb_compute::canary::Canary),
    /// In delta logs and snapshots.
    Files(truthdb_state::canary::Canary),
}

impl StateCanary {
    /// Its name, as in the documentation.
    pub fn name(self) -> String {
        match self {
            StateCanary::Fold(canary) => format!("{canary:?}"),
            StateCanary::Files(canary) => format!("{canary:?}"),
        }
    }

    fn plant(self, planted: bool) {
        match self {
            StateCanary::Fold(canary) => {
                truthdb_compute::canary::plant(planted.then_some(canary));
            }
            StateCanary::Files(canary) => {
                truthdb_state::canary::plant(planted.then_some(canary));
            }
        }
    }
}

/// As [`BUDGETS`], for worlds with modules ([`crate::run_state_seed`]).
pub const STATE_BUDGETS: [(StateCanary, u64); 6] = {
    use truthdb_compute::canary::Canary as Fold;
    use truthdb_state::canary::Canary as Files;
    [
        (StateCanary::Fold(Fold::KeepGuest), 40),
        (StateCanary::Fold(Fold::DeriveTwice), 40),
        (StateCanary::Fold(Fold::StoreEarly), 300),
        (StateCanary::Fold(Fold::ValidateLate), 40),
        (StateCanary::Files(Files::SnapshotOffByOne), 40),
        (StateCanary::Files(Files::LostDelta), 40),
    ]
};

/// As [`hunt`], in worlds with modules.
pub fn hunt_state(canary: StateCanary, budget: u64) -> Option<Failure> {
    (1..=budget).find_map(|seed| {
        canary.plant(true);
        let found = crate::run_state_seed(seed).err();
        canary.plant(false);
        found.filter(|_| crate::run_state_seed(seed).is_ok())
    })
}
