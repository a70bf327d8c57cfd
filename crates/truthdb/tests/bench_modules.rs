//! The measurements of modules, with the smallest numbers: that they run to their end, check what they
//! measured, and say it in both forms. The figures themselves are for nobody.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod cli_support;
mod server_support;

use cli_support::cli;
use truthdb_guests::Guest;

/// Runs a measurement; the answer is its report.
fn bench(arguments: &[&str]) -> serde_json::Value {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (guest, name) in [
        (Guest::Tally, "tally"),
        (Guest::Balance, "balance"),
        (Guest::Covered, "covered"),
        (Guest::Richest, "richest"),
    ] {
        let file = folder.path().join(format!("truthdb_example_{name}.wasm"));
        std::fs::write(file, truthdb_guests::wasm(guest)).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    let common = ["--modules", path, "--dir", path, "--rounds", "1"];
    let all: Vec<&str> = ["--json", "bench"]
        .iter()
        .chain(arguments)
        .chain(&common)
        .copied()
        .collect();
    let report = serde_json::from_str(&cli(&all).ok().stdout).unwrap();
    // Nothing but the modules is left.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    report
}

/// The figures of a section.
fn figures(report: &serde_json::Value, section: usize) -> &serde_json::Value {
    &report["sections"][section]["figures"]
}

#[test]
fn reduce_compares_folds_of_both_forms() {
    let report = bench(&[
        "reduce", "--events", "3000", "--batch", "100", "--keys", "50",
    ]);
    for section in 0..2 {
        let ways = figures(&report, section)["ways"].as_array().unwrap();
        let names: Vec<_> = ways
            .iter()
            .map(|way| way["way"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["log only", "native", "WebAssembly"]);
        assert_eq!(ways[1]["rows"], ways[2]["rows"]);
    }
    assert_eq!(figures(&report, 1)["ways"][2]["rows"], 50);
}

#[test]
fn query_asks_at_rest_and_under_load() {
    let report = bench(&["query", "--keys", "300", "--seconds", "1", "--writers", "1"]);
    let questions = figures(&report, 0)["questions"].as_array().unwrap();
    assert_eq!(questions.len(), 14);
    for question in questions {
        let is_loaded = question["when"] == "under load";
        let beside = question["events_per_s"]["median"].as_f64().unwrap();
        assert_eq!(beside > 0.0, is_loaded, "{question}");
    }
}

#[test]
fn as_of_checks_every_answer() {
    let report = bench(&[
        "as-of", "--events", "20000", "--batch", "100", "--keys", "40", "--points", "20",
    ]);
    assert_eq!(
        figures(&report, 0)["questions"].as_array().unwrap().len(),
        8
    );
}

#[test]
fn snapshot_is_waited_for() {
    let report = bench(&[
        "snapshot",
        "--keys",
        "2000",
        "--changed",
        "500",
        "--seconds",
        "1",
    ]);
    let snapshots = figures(&report, 0)["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 4);
    assert!(snapshots[0]["mb"]["median"].as_f64().unwrap() > 0.0);
}

#[test]
fn validate_has_a_row_for_each_gate() {
    let report = bench(&[
        "validate",
        "--keys",
        "500",
        "--seconds",
        "1",
        "--clients",
        "2",
        "--batch",
        "10",
    ]);
    let gates = figures(&report, 0)["gates"].as_array().unwrap();
    assert_eq!(gates.len(), 5);
    for gate in gates {
        assert!(
            gate["events_per_s"]["median"].as_f64().unwrap() > 0.0,
            "{gate}"
        );
    }
}

#[test]
fn without_modules_it_is_said_how_to_make_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let said = cli(&["bench", "reduce", "--modules", path, "--dir", path]);
    assert!(said.stderr.contains("--modules"), "{}", said.stderr);
}
