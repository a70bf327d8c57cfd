//! Planted bugs: a simulator that finds nothing proves nothing.
#![cfg(feature = "canaries")]

use truthdb_log::canary::Canary;
use truthdb_sim::canaries::{BUDGETS, STATE_BUDGETS, hunt, hunt_state};

#[test]
fn every_canary_is_found_within_its_budget() {
    let missed: Vec<_> = BUDGETS
        .into_iter()
        .filter(|(canary, budget)| hunt(*canary, *budget).is_none())
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn every_canary_of_state_is_found_within_its_budget() {
    let missed: Vec<_> = STATE_BUDGETS
        .into_iter()
        .filter(|(canary, budget)| {
            let found = hunt_state(*canary, *budget).map(|failure| failure.seed);
            eprintln!("{}: {found:?} of {budget}", canary.name());
            found.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn every_canary_of_state_has_a_budget_and_a_line_in_the_documentation() {
    let all = truthdb_compute::canary::Canary::ALL.len() + truthdb_state::canary::Canary::ALL.len();
    assert_eq!(STATE_BUDGETS.len(), all);
    let table = include_str!("../src/canaries.md");
    for (canary, budget) in STATE_BUDGETS {
        let line = format!("| `{}` | {budget} |", canary.name());
        assert!(table.contains(&line), "the table lacks {line}");
    }
}

#[test]
fn every_canary_has_a_budget_and_a_line_in_the_documentation() {
    let table = include_str!("../src/canaries.md");
    for canary in Canary::ALL {
        let budget = BUDGETS.iter().find(|(other, _)| *other == canary);
        let (_, budget) = budget.unwrap_or_else(|| panic!("{canary:?} has no budget"));
        let line = format!("| `{canary:?}` | {budget} |");
        assert!(table.contains(&line), "the table lacks {line}");
    }
}
