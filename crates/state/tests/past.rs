//! States of the past: from a snapshot and deltas, read chunk by chunk, equal to the views of then.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use std::sync::Arc;

use images::*;
use truthdb_io::sim::SimWorld;
use truthdb_state::*;

const BATCHES: u64 = 120;
const SNAPSHOT_EVERY: u64 = 40;

/// A history of batches of two sequences each on disk, with snapshots, and all views of it.
struct History {
    world: SimWorld,
    store: SnapshotStore,
    log: DeltaLog,
    /// After each batch; the first is that of no batch.
    views: Vec<View>,
}

fn history() -> History {
    let world = SimWorld::new(1);
    let (mut store, _) = SnapshotStore::open(storage(&world), place()).unwrap();
    let log = DeltaLog::new(storage(&world), delta_place());
    let mut writer = DeltaWriter::open(log.clone(), 0, 64 * 1024).unwrap();
    let mut tables = Tables::new(3);
    let mut views = vec![tables.view()];
    for batch in 1..=BATCHES {
        tables.begin();
        for n in 0..80 {
            let n = (batch * 37 + n * 11) % 3_000;
            let key = format!("key-{n:05}");
            let value = Fingerprint::of_row(0, key.as_bytes(), &batch.to_le_bytes());
            // The middle table stays empty.
            tables
                .set(
                    (n % 2 * 2) as u32,
                    key.as_bytes(),
                    value.to_string().as_bytes(),
                )
                .unwrap();
        }
        let gone = format!("key-{:05}", batch * 23 % 3_000);
        tables
            .delete_range(0, gone.as_bytes(), Some(format!("{gone}9").as_bytes()))
            .unwrap();
        let changes = tables.commit();
        let record = DeltaRecord {
            first_sequence: batch * 2 - 1,
            last_sequence: batch * 2,
            timestamp_ns: TIME + batch,
            changes,
            fingerprint_after: tables.fingerprint(),
        };
        writer.append(&record).unwrap();
        views.push(tables.view());
        if batch.is_multiple_of(SNAPSHOT_EVERY) {
            let table = |n| SnapshotTable {
                name: format!("t{n}"),
                version: 1,
            };
            let state = SnapshotState {
                module: "delays".to_owned(),
                generation: 2,
                module_hash: [0; 32],
                semantics_id: [0; 32],
                applied_sequence: batch * 2,
                tables: (0..3).map(table).collect(),
            };
            let view = tables.view();
            store
                .begin(batch * 2, TIME, vec![SnapshotInput { state, view }])
                .unwrap();
            while let SnapshotStep::Working(_) = store.step().unwrap() {}
        }
    }
    writer.sync().unwrap();
    History {
        world,
        store,
        log,
        views,
    }
}

fn past(history: &History, at: u64) -> PastView {
    let reader = history.store.reader();
    let mut past = match reader.newest_at_or_before(at) {
        Some(nearest) => PastView::new(Arc::new(reader.open(nearest).unwrap()), 0),
        None => PastView::empty(3, 0),
    };
    let mut deltas = history.log.read_after(past.sequence()).unwrap();
    assert!(past.advance(&mut deltas, at).unwrap());
    past
}

/// Readers go to other threads, and so may whoever writes snapshots and deltas.
#[test]
fn threads_may_share_what_is_read_and_take_what_is_written() {
    const fn shared<T: Send + Sync>() {}
    const fn moved<T: Send>() {}
    const {
        shared::<View>();
        shared::<PastView>();
        shared::<SnapshotReader>();
        shared::<DeltaLog>();
        moved::<Tables>();
        moved::<SnapshotStore>();
        moved::<DeltaWriter>();
        moved::<DeltaReader>();
    }
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

#[test]
fn every_state_of_the_past_is_what_it_was() {
    let history = history();
    for at in 0..=BATCHES * 2 {
        let past = past(&history, at);
        let then = &history.views[(at / 2) as usize];
        assert_eq!(past.fingerprint(), then.fingerprint(), "at {at}");
        assert_eq!(past.sequence(), at / 2 * 2);
        if at % 7 > 0 {
            continue;
        }
        for n in (0..3_000).step_by(17) {
            let key = format!("key-{n:05}");
            for table in 0..4 {
                let found = past.get(table, key.as_bytes()).unwrap();
                assert_eq!(
                    found.as_deref(),
                    then.get(table, key.as_bytes()),
                    "at {at}: {key}"
                );
            }
        }
        let ranges: [(&[u8], Option<&[u8]>); 6] = [
            (b"", None),
            (b"key-00500", Some(b"key-02500")),
            (b"key-01000", Some(b"key-01000")),
            (b"key-02000", Some(b"key-01000")),
            (b"z", None),
            (b"", Some(b"a")),
        ];
        for (start, end) in ranges {
            for (table, limit, reverse) in [
                (0, u64::MAX, false),
                (0, u64::MAX, true),
                (1, 10, false),
                (1, 10, true),
                (2, 100, false),
                (2, 100, true),
                (9, 1, false),
            ] {
                let (mut found, mut expected) = (Rows::new(), Rows::new());
                let more = past
                    .scan(table, start, end, limit, reverse, &mut |key, value| {
                        found.push((key.to_vec(), value.to_vec()));
                        true
                    })
                    .unwrap();
                let expected_more =
                    then.scan(table, start, end, limit, reverse, &mut |key, value| {
                        expected.push((key.to_vec(), value.to_vec()));
                        true
                    });
                assert_eq!(
                    (found, more),
                    (expected, expected_more),
                    "at {at}: {start:?} {end:?}"
                );
            }
        }
    }
}

#[test]
fn a_narrowed_view_knows_its_range() {
    let history = history();
    let reader = history.store.reader();
    let then = history.views.last().unwrap();
    let snapshot = Arc::new(reader.open(SNAPSHOT_EVERY * 2).unwrap());
    let narrowed = |range: PastRange| {
        let mut past = PastView::new(Arc::clone(&snapshot), 0);
        past.narrow(range);
        let mut deltas = history.log.read_after(past.sequence()).unwrap();
        assert!(past.advance(&mut deltas, BATCHES * 2).unwrap());
        assert_eq!(past.fingerprint(), then.fingerprint());
        past
    };
    for n in (0..3_000).step_by(101) {
        let key = format!("key-{n:05}");
        let past = narrowed(PastRange::of_key(0, key.as_bytes()));
        let found = past.get(0, key.as_bytes()).unwrap();
        assert_eq!(found.as_deref(), then.get(0, key.as_bytes()), "{key}");
        assert!(past.overlay_bytes() < 200);
    }
    let (start, end) = (b"key-00100".to_vec(), b"key-00200".to_vec());
    let range = PastRange {
        table: 2,
        start: start.clone(),
        end: Some(end.clone()),
    };
    let past = narrowed(range);
    let (mut found, mut expected) = (Rows::new(), Rows::new());
    let mut take = |key: &[u8], value: &[u8]| {
        found.push((key.to_vec(), value.to_vec()));
        true
    };
    past.scan(2, &start, Some(&end), 1000, true, &mut take)
        .unwrap();
    then.scan(2, &start, Some(&end), 1000, true, &mut |key, value| {
        expected.push((key.to_vec(), value.to_vec()));
        true
    });
    assert!(found.len() > 20);
    assert_eq!(found, expected);
    let outside = std::panic::AssertUnwindSafe(|| past.get(2, &end));
    assert!(std::panic::catch_unwind(outside).is_err());
}

#[test]
fn the_end_of_the_deltas_is_told() {
    let history = history();
    let snapshot = Arc::new(history.store.reader().open(SNAPSHOT_EVERY * 2).unwrap());
    let mut past = PastView::new(snapshot, 0);
    let mut deltas = history.log.read_after(past.sequence()).unwrap();
    assert!(!past.advance(&mut deltas, BATCHES * 2 + 1).unwrap());
    assert_eq!(past.sequence(), BATCHES * 2);
    assert_eq!(
        past.fingerprint(),
        history.views.last().unwrap().fingerprint()
    );
    assert!(past.overlay_bytes() > 0);
}

#[test]
fn records_that_do_not_follow_are_refused() {
    let history = history();
    let snapshot = Arc::new(history.store.reader().open(SNAPSHOT_EVERY * 2).unwrap());
    let mut past = PastView::new(snapshot, 0);
    let mut deltas = history.log.read_after(past.sequence() + 2).unwrap();
    let later = deltas.next_record().unwrap().unwrap();
    assert!(matches!(
        past.apply(later.clone()),
        Err(PastError::Gap { .. })
    ));
    let mut deltas = history.log.read_after(0).unwrap();
    let earlier = deltas.next_record().unwrap().unwrap();
    assert!(matches!(past.apply(earlier), Err(PastError::Gap { .. })));
    let mut foreign = Changes::new();
    foreign.push(3, b"k", None);
    let foreign = DeltaRecord {
        first_sequence: past.sequence() + 1,
        last_sequence: past.sequence() + 1,
        changes: foreign,
        ..later
    };
    assert!(matches!(past.apply(foreign), Err(PastError::Table(_))));
    let then = &history.views[SNAPSHOT_EVERY as usize];
    assert_eq!(past.fingerprint(), then.fingerprint());
    // One by one they lead to the same as at once.
    let mut deltas = history.log.read_after(past.sequence()).unwrap();
    while let Some(record) = deltas.next_record().unwrap() {
        past.apply(record).unwrap();
    }
    let now = history.views.last().unwrap();
    for table in 0..3 {
        let (mut found, mut expected) = (Rows::new(), Rows::new());
        past.scan(table, b"", None, u64::MAX, false, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            true
        })
        .unwrap();
        now.scan(table, b"", None, u64::MAX, false, &mut |key, value| {
            expected.push((key.to_vec(), value.to_vec()));
            true
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn a_damaged_chunk_is_an_error_for_those_who_touch_it_only() {
    let history = history();
    let past = past(&history, BATCHES * 2);
    let snapshot = history.store.reader().open(BATCHES * 2).unwrap();
    let chunks = &snapshot.manifest().entries[0].chunks;
    let (first, last) = (&chunks[0], &chunks[chunks.len() - 1]);
    let path = format!("partition-0003/snapshots/chunks/{}.bin", last.hash);
    history.world.corrupt(&path, 200, 1).unwrap();
    past.get(first.table, &first.first_key).unwrap().unwrap();
    let error = past.get(last.table, &last.first_key).unwrap_err();
    assert!(
        matches!(error, SnapshotError::Damaged { chunk: Some(_), .. }),
        "{error}"
    );
    assert!(
        past.scan(last.table, &last.first_key, None, 1, false, &mut |_, _| {
            true
        })
        .is_err()
    );
}
