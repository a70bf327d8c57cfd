//! What the tests of files on disk share: places, records, golden files, walks over all faults.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test takes what it needs, and may panic"
)]

use std::fmt::Write as _;
use std::sync::Arc;

use truthdb_io::Storage;
use truthdb_io::sim::{SimFault, SimWorld};
use truthdb_state::*;

pub(crate) const TIME: u64 = 1_700_000_000_000_000_000;

pub(crate) fn place() -> StatePlace {
    StatePlace {
        database_id: *b"sixteen bytes id",
        partition: 3,
    }
}

pub(crate) fn delta_place() -> DeltaPlace {
    DeltaPlace {
        place: place(),
        module: "delays".to_owned(),
        generation: 2,
    }
}

pub(crate) fn storage(world: &SimWorld) -> Arc<dyn Storage> {
    world.storage()
}

/// Fields with their bytes, then what follows them.
pub(crate) fn dump(bytes: &[u8], fields: &[(&str, usize)]) -> String {
    let mut text = String::new();
    let mut at = 0;
    for (name, length) in fields {
        let hex: String = bytes[at..at + length]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        writeln!(text, "{at:6} {name:<20} {hex}").unwrap();
        at += length;
    }
    let rest = &bytes[at..];
    let zeros = rest.iter().all(|byte| *byte == 0);
    let length = rest.len();
    writeln!(
        text,
        "{at:6} {:<20} {length} bytes, all zero: {zeros}",
        "rest"
    )
    .unwrap();
    text
}

/// Compares with `tests/golden/<name>.txt`; `TRUTHDB_BLESS=1` writes it anew.
pub(crate) fn check(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("TRUTHDB_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}; run with TRUTHDB_BLESS=1"));
    assert_eq!(
        golden, text,
        "{name} differs; is this meant to be a new version of the format?"
    );
}

/// Runs `work` in a fresh world with `fault` at operation 0, then at operation 1, and so on, until one
/// run meets no fault any more. `work` may fail; `judge` is given the world after the fault.
pub(crate) fn at_every_operation<S>(
    fault: SimFault,
    prepare: impl Fn(&SimWorld) -> S,
    work: impl Fn(&SimWorld),
    judge: impl Fn(&SimWorld, S, u64),
) {
    for passes in 0.. {
        let world = SimWorld::new(passes);
        let prepared = prepare(&world);
        let boots = world.boots();
        world.fail_nth(None, passes, fault);
        work(&world);
        if world.clear_planned() > 0 {
            assert!(passes > 5, "there were operations to fail");
            return;
        }
        assert_eq!(world.boots() > boots, fault == SimFault::Crash);
        judge(&world, prepared, passes);
    }
}
