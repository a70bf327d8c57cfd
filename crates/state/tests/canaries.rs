//! The planted bugs do what they say: only then does it prove anything that the simulator finds them.
#![cfg(feature = "canaries")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use images::*;
use truthdb_io::sim::SimWorld;
use truthdb_state::canary::{Canary, plant};
use truthdb_state::*;

#[test]
fn a_snapshot_off_by_one_passes_for_whole_and_says_too_much() {
    let world = SimWorld::new(1);
    let (mut store, _) = SnapshotStore::open(storage(&world), place()).unwrap();
    let mut tables = Tables::new(1);
    let state = SnapshotState {
        module: "delays".to_owned(),
        generation: 1,
        module_hash: [0; 32],
        semantics_id: [0; 32],
        applied_sequence: 10,
        tables: vec![SnapshotTable {
            name: "t".to_owned(),
            version: 1,
        }],
    };
    let view = tables.view();
    plant(Some(Canary::SnapshotOffByOne));
    store
        .begin(10, TIME, vec![SnapshotInput { state, view }])
        .unwrap();
    plant(None);
    while let SnapshotStep::Working(_) = store.step().unwrap() {}
    let (loaded, passed_over) = store.load_newest(u64::MAX);
    assert!(passed_over.is_empty());
    let manifest = loaded.unwrap().manifest;
    assert_eq!(manifest.sequence, 11);
    assert_eq!(manifest.entries[0].state.applied_sequence, 11);
}

#[test]
fn a_lost_delta_leaves_no_gap_and_another_state() {
    let world = SimWorld::new(1);
    let log = DeltaLog::new(storage(&world), delta_place());
    let mut writer = DeltaWriter::open(log.clone(), 0, 1 << 20).unwrap();
    let mut tables = Tables::new(1);
    plant(Some(Canary::LostDelta));
    for n in 1..=20_u64 {
        tables.begin();
        tables.set(0, &[n as u8], b"row").unwrap();
        let record = DeltaRecord {
            first_sequence: n,
            last_sequence: n,
            timestamp_ns: TIME,
            changes: tables.commit(),
            fingerprint_after: tables.fingerprint(),
        };
        writer.append(&record).unwrap();
    }
    plant(None);
    writer.flush().unwrap();
    let mut reader = log.read_after(0).unwrap();
    let mut replayed = Tables::new(1);
    let mut wrong = 0;
    while let Some(record) = reader.next_record().unwrap() {
        wrong += u64::from(record.apply_to(&mut replayed).is_err());
    }
    assert_eq!(reader.position(), 20);
    assert_eq!(replayed.rows(), 18);
    // Records 8 and 16 are lost; all others from 9 to 20 lead to another state than they say.
    assert_eq!(wrong, 11);
}
