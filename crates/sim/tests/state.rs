//! Worlds with modules: some seeds, and that a seed is a run.

use truthdb_sim::run_state_seed;

/// Seeds from 1 on.
const SMOKE_SEEDS: u64 = 24;

#[test]
fn the_first_worlds_with_modules_find_nothing() {
    let (mut restarts, mut activations, mut compared, mut derived, mut damaged) = (0, 0, 0, 0, 0);
    let mut judged = 0;
    for seed in 1..=SMOKE_SEEDS {
        let figures = run_state_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
        restarts += figures.restarts;
        activations += figures.activations;
        compared += figures.compared;
        derived += figures.derived;
        damaged += figures.damaged;
        judged += figures.judged;
    }
    assert!(
        restarts > 50
            && activations > 20
            && compared > 100
            && derived > 300
            && damaged > 10
            && judged > 50,
        "{restarts} restarts, {activations} activations, {compared} compared, {derived} derived, {damaged} damaged, {judged} judged"
    );
}

#[test]
fn the_same_seed_is_the_same_world_to_the_bit() {
    for seed in [4, 7] {
        let first = run_state_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
        let again = run_state_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(first, again, "seed {seed}");
    }
}
