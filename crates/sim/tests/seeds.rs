//! The smoke of the simulation: some hundred seeds, and that a seed is a run.

use truthdb_sim::seeds::{run_seed, run_seeds};

/// Seeds from 1 on.
const SMOKE_SEEDS: u64 = 150;

#[test]
fn the_first_seeds_find_nothing() {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let totals = run_seeds(1, SMOKE_SEEDS, jobs, &|_| {}).unwrap_or_else(|failure| {
        panic!("{failure}");
    });
    assert_eq!(totals.runs, SMOKE_SEEDS);
    assert!(
        totals.acknowledged > 5_000 && totals.restarts > 1_000,
        "{totals:?}"
    );
}

#[test]
fn the_same_seed_is_the_same_run_to_the_bit() {
    let mut hashes = Vec::new();
    for seed in [1, 2, 3, 14, 20, 36] {
        let first = run_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
        let again = run_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(first, again, "seed {seed}");
        hashes.push(first.trace_hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 6, "different seeds are different runs");
}
