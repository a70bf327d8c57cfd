//! Snapshots on a simulated disk: old or new and never half, damage, pruning, collection.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use std::collections::BTreeMap;

use images::*;
use proptest::prelude::*;
use truthdb_io::Storage as _;
use truthdb_io::sim::{SimFault, SimWorld};
use truthdb_state::*;

fn store(world: &SimWorld) -> SnapshotStore {
    SnapshotStore::open(storage(world), place()).unwrap().0
}

fn state(module: &str, tables: &Tables, applied_sequence: u64) -> SnapshotState {
    let table = |n| SnapshotTable {
        name: format!("table-{n}"),
        version: n + 1,
    };
    SnapshotState {
        module: module.to_owned(),
        generation: 2,
        module_hash: [7; 32],
        semantics_id: [8; 32],
        applied_sequence,
        tables: (0..tables.table_count()).map(table).collect(),
    }
}

fn input(module: &str, tables: &mut Tables, applied_sequence: u64) -> SnapshotInput {
    SnapshotInput {
        state: state(module, tables, applied_sequence),
        view: tables.view(),
    }
}

/// Rows with values that do not compress much: `rows` of about 100 bytes.
fn filled(rows: u64, salt: u64) -> Tables {
    let mut tables = Tables::new(2);
    tables.begin();
    for n in 0..rows {
        set(&mut tables, n, salt);
    }
    tables.commit();
    tables
}

fn set(tables: &mut Tables, n: u64, salt: u64) {
    let key = format!("key-{n:06}");
    let value = Fingerprint::of_row(0, key.as_bytes(), &salt.to_le_bytes()).to_string();
    tables
        .set((n % 2) as u32, key.as_bytes(), value.as_bytes())
        .unwrap();
}

fn change(tables: &mut Tables, keys: impl Iterator<Item = u64>, salt: u64) {
    tables.begin();
    keys.for_each(|n| set(tables, n, salt));
    tables.commit();
}

fn finish(store: &mut SnapshotStore) -> Result<SnapshotProgress, SnapshotError> {
    loop {
        if let SnapshotStep::Published(progress) = store.step()? {
            return Ok(progress);
        }
    }
}

fn take(
    store: &mut SnapshotStore,
    sequence: u64,
    tables: &mut Tables,
) -> Result<SnapshotProgress, SnapshotError> {
    store.begin(sequence, TIME, vec![input("delays", tables, sequence)])?;
    finish(store)
}

fn collect(store: &mut SnapshotStore) -> u64 {
    loop {
        if let CollectStep::Done { removed } = store.collect_step().unwrap() {
            return removed;
        }
    }
}

fn chunk_files(world: &SimWorld) -> Vec<String> {
    let directory = "partition-0003/snapshots/chunks";
    let entries = world.storage().list(directory).unwrap();
    entries
        .into_iter()
        .map(|entry| format!("{directory}/{}", entry.name))
        .collect()
}

#[test]
fn what_was_saved_is_loaded() {
    let world = SimWorld::new(1);
    let (mut delays, mut places) = (filled(3_000, 1), filled(10, 2));
    let mut empty = Tables::new(0);
    let mut saved = store(&world);
    let inputs = vec![
        input("places", &mut places, 90),
        input("delays", &mut delays, 100),
        input("nothing", &mut empty, 0),
    ];
    saved.begin(100, TIME, inputs).unwrap();
    assert!(matches!(
        saved.begin(101, TIME, vec![]),
        Err(SnapshotError::InProgress)
    ));
    let progress = finish(&mut saved).unwrap();
    assert_eq!((progress.rows_done, progress.rows), (3_010, 3_010));
    assert!(progress.chunks_written > 4 && progress.chunks_reused == 0);
    let again = saved.begin(100, TIME, vec![]);
    assert!(matches!(
        again,
        Err(SnapshotError::Exists { sequence: 100 })
    ));
    assert!(matches!(saved.step(), Err(SnapshotError::NotInProgress)));

    let (opened, found) = SnapshotStore::open(storage(&world), place()).unwrap();
    assert_eq!(found.sequences, [100]);
    let (loaded, passed_over) = opened.load_newest(u64::MAX);
    let loaded = loaded.unwrap();
    assert!(passed_over.is_empty());
    assert_eq!(loaded.manifest.timestamp_ns, TIME);
    let modules: Vec<_> = loaded
        .manifest
        .entries
        .iter()
        .map(|e| &e.state.module[..])
        .collect();
    assert_eq!(modules, ["delays", "nothing", "places"]);
    assert_eq!(
        loaded.manifest.entries[2].state,
        state("places", &places, 90)
    );
    let expected = [&delays, &empty, &places].map(Tables::fingerprint);
    let found: Vec<_> = loaded.tables.iter().map(Tables::fingerprint).collect();
    assert_eq!(found, expected);
    assert!(opened.load_newest(99).0.is_none());
    assert_eq!(opened.reader().newest_at_or_before(99), None);
    assert_eq!(opened.reader().newest_at_or_before(500), Some(100));
    let missing = opened.reader().open(99);
    assert!(matches!(
        missing,
        Err(SnapshotError::Missing { sequence: 99 })
    ));
}

#[test]
fn equal_states_have_equal_files_whatever_their_history() {
    let files = |tables: &mut Tables, seed| {
        let world = SimWorld::new(seed);
        take(&mut store(&world), 10, tables).unwrap();
        let mut paths = chunk_files(&world);
        paths.push("partition-0003/snapshots/snapshot-00000010.bin".to_owned());
        let read = |path: String| (path.clone(), world.read_file(&path).unwrap());
        paths.into_iter().map(read).collect::<BTreeMap<_, _>>()
    };
    let mut other = filled(2_500, 9);
    change(&mut other, (0..2_500).rev().filter(|n| n % 3 == 0), 5);
    change(&mut other, (0..2_000).rev(), 4);
    other.begin();
    other.delete_range(0, b"key-002000", None).unwrap();
    other.delete_range(1, b"key-002000", None).unwrap();
    other.commit();
    assert_eq!(files(&mut filled(2_000, 4), 1), files(&mut other, 2));
}

#[test]
fn a_snapshot_writes_only_the_chunks_that_changed() {
    let world = SimWorld::new(1);
    let mut tables = filled(20_000, 1);
    let mut saved = store(&world);
    let first = take(&mut saved, 10, &mut tables).unwrap();
    assert!(first.chunks_written > 25, "{first:?}");
    change(&mut tables, [3_u64, 10_000, 10_002, 19_999].into_iter(), 2);
    for reopened in [false, true] {
        if reopened {
            saved = store(&world);
        }
        let sequence = saved.sequences().last().unwrap() + 10;
        let next = take(&mut saved, sequence, &mut tables).unwrap();
        let changed = if reopened { 0 } else { 3 };
        assert!(
            (changed..=2 * changed).contains(&next.chunks_written),
            "{next:?}"
        );
        assert!(next.chunks_reused > 20, "{next:?}");
    }
    assert_eq!(
        saved.load_newest(30).0.unwrap().tables[0].fingerprint(),
        tables.fingerprint()
    );
}

/// A rebuild beside others takes snapshots of its own state alone.
#[test]
fn snapshots_of_one_state_among_those_of_others() {
    let world = SimWorld::new(1);
    let (mut delays, mut places) = (filled(2_000, 1), filled(3_000, 2));
    let mut saved = store(&world);
    let both = |delays: &mut Tables, places: &mut Tables, at| {
        vec![input("delays", delays, at), input("places", places, at)]
    };
    let first = both(&mut delays, &mut places, 1000);
    saved.begin(1000, TIME, first).unwrap();
    finish(&mut saved).unwrap();
    take(&mut saved, 1500, &mut delays).unwrap();
    // What only an earlier snapshot of its state has is not written again.
    let next = both(&mut delays, &mut places, 2000);
    saved.begin(2000, TIME, next).unwrap();
    assert_eq!(finish(&mut saved).unwrap().chunks_written, 0);

    let reader = store(&world).reader();
    assert_eq!(
        reader.newest_of("places", 2, 1999),
        Some(1500),
        "not read yet"
    );
    reader.open(1500).unwrap();
    assert_eq!(reader.newest_of("places", 2, 1999), Some(1000));
    assert_eq!(reader.newest_of("places", 1, 999), None);

    // Nothing is taken from one state because another has a snapshot nearby.
    let mut saved = store(&world);
    take(&mut saved, 1001, &mut delays).unwrap();
    take(&mut saved, 1_000_000, &mut delays).unwrap();
    let policy = PrunePolicy {
        keep_last: 1,
        slots_log2: 1,
    };
    assert_eq!(saved.prune(&policy).unwrap(), [1001, 1500]);
    assert_eq!(saved.sequences(), [1000, 2000, 1_000_000]);
    collect(&mut saved);
    for sequence in saved.sequences() {
        saved.reader().open(sequence).unwrap().load_all().unwrap();
    }
}

#[test]
fn a_step_is_bounded_and_the_writer_of_rows_goes_on() {
    let world = SimWorld::new(1);
    let mut tables = filled(20_000, 1);
    let fingerprint = tables.fingerprint();
    let mut saved = store(&world);
    saved
        .begin(10, TIME, vec![input("delays", &mut tables, 10)])
        .unwrap();
    let mut before = saved.in_progress().unwrap();
    let mut steps = 0;
    loop {
        change(&mut tables, steps * 7..steps * 7 + 20, steps);
        let operations = world.operations();
        let step = saved.step().unwrap();
        // A file of a chunk: create, write, sync, and no more than four pieces.
        assert!(world.operations() - operations <= 6, "{step:?}");
        let SnapshotStep::Working(now) = step else {
            break;
        };
        let chunks = |p: SnapshotProgress| p.chunks_written + p.chunks_reused;
        assert!(chunks(now) - chunks(before) <= 1);
        assert!(now.rows_done - before.rows_done < 5_000);
        (before, steps) = (now, steps + 1);
    }
    assert!(steps > 30, "{steps} steps");
    let loaded = saved.load_newest(10).0.unwrap();
    assert_eq!(loaded.tables[0].fingerprint(), fingerprint);
    assert_ne!(tables.fingerprint(), fingerprint);
}

/// A world with the snapshots of sequences 9 and 10, and the fingerprints of the states at 10 and
/// 2000.
fn with_one(world: &SimWorld) -> [Fingerprint; 2] {
    let mut tables = filled(600, 1);
    take(&mut store(world), 9, &mut tables).unwrap();
    take(&mut store(world), 10, &mut tables).unwrap();
    let old = tables.fingerprint();
    change(&mut tables, [5, 501].into_iter(), 2);
    [old, tables.fingerprint()]
}

/// Takes the snapshot of sequence 2000, prunes that of 10, and collects; stops at the first error.
fn replace_by_second(world: &SimWorld) -> Result<(), SnapshotError> {
    let (mut saved, _) = SnapshotStore::open(storage(world), place())?;
    let mut tables = filled(600, 1);
    change(&mut tables, [5, 501].into_iter(), 2);
    take(&mut saved, 2000, &mut tables)?;
    let policy = PrunePolicy {
        keep_last: 1,
        slots_log2: 0,
    };
    // One whose manifest cannot be read stays: what it holds is not known.
    let pruned = saved.prune(&policy)?;
    assert!(pruned == [10] || pruned.is_empty(), "{pruned:?}");
    while saved.collect_step()? == CollectStep::Working {}
    Ok(())
}

/// Whatever happened: what is listed is whole, and the store goes on.
fn judge(world: &SimWorld, states: [Fingerprint; 2], what: &str) {
    let saved = store(world);
    let (loaded, passed_over) = saved.load_newest(u64::MAX);
    assert!(passed_over.is_empty(), "{what}: {passed_over:?}");
    let loaded = loaded.unwrap_or_else(|| panic!("{what}: none is left"));
    let is_new = match loaded.manifest.sequence {
        10 => 0,
        2000 => 1,
        other => panic!("{what}: snapshot {other}"),
    };
    assert_eq!(loaded.tables[0].fingerprint(), states[is_new], "{what}");
    // Another snapshot over whatever was left is whole, also after the garbage is gone.
    let mut saved = store(world);
    let mut tables = filled(600, 1);
    change(&mut tables, [5, 501].into_iter(), 2);
    take(&mut saved, 3000, &mut tables).unwrap();
    collect(&mut saved);
    for sequence in saved.sequences() {
        saved.reader().open(sequence).unwrap().load_all().unwrap();
    }
    let loaded = store(world).load_newest(3000).0.unwrap();
    assert_eq!(loaded.manifest.sequence, 3000, "{what}");
    assert_eq!(loaded.tables[0].fingerprint(), states[1], "{what}");
}

#[test]
fn an_error_at_any_operation_leaves_the_old_snapshot_or_the_new_one() {
    for fault in [SimFault::Error, SimFault::NoSpace] {
        at_every_operation(
            fault,
            with_one,
            |world| drop(replace_by_second(world)),
            |world, states, passes| {
                world.crash();
                judge(world, states, &format!("{fault:?} {passes}"));
            },
        );
    }
}

#[test]
fn a_crash_at_any_operation_leaves_the_old_snapshot_or_the_new_one() {
    at_every_operation(
        SimFault::Crash,
        with_one,
        |world| drop(replace_by_second(world)),
        |world, states, passes| judge(world, states, &format!("crash {passes}")),
    );
}

#[test]
fn a_disk_that_lies_gives_an_older_state_or_none_and_never_a_wrong_one() {
    for fault in [SimFault::Lost, SimFault::Misdirected, SimFault::Latent] {
        at_every_operation(
            fault,
            with_one,
            |world| drop(replace_by_second(world)),
            |world, states, passes| judge_lies(world, states, &format!("{fault:?} {passes}")),
        );
    }
}

/// After a lie of the disk a chunk that every snapshot shares may be bad: what is loaded is right.
fn judge_lies(world: &SimWorld, states: [Fingerprint; 2], what: &str) {
    let (loaded, passed_over) = store(world).load_newest(u64::MAX);
    for passed_over in &passed_over {
        assert!(passed_over.set_aside.is_some(), "{what}: {passed_over:?}");
    }
    if let Some(loaded) = loaded {
        let expected = states[usize::from(loaded.manifest.sequence == 2000)];
        assert_eq!(loaded.tables[0].fingerprint(), expected, "{what}");
    }
}

#[test]
fn every_flipped_byte_and_every_cut_is_found_set_aside_and_healed() {
    let world = SimWorld::new(1);
    let mut tables = filled(8, 1);
    let mut saved = store(&world);
    take(&mut saved, 10, &mut tables).unwrap();
    let chunks = chunk_files(&world);
    assert_eq!(chunks.len(), 2);
    let manifest = "partition-0003/snapshots/snapshot-00000010.bin".to_owned();
    for path in [&manifest, &chunks[0], &chunks[1]] {
        let image = world.read_file(path).unwrap();
        assert_eq!(image.len(), 4096);
        for at in 0..image.len() {
            let mut flipped = image.clone();
            flipped[at] ^= 1 << (at % 8);
            world.write_file(path, &flipped).unwrap();
            let error = saved
                .reader()
                .open(10)
                .and_then(|s| s.load_all())
                .unwrap_err();
            let SnapshotError::Damaged { path: damaged, .. } = &error else {
                panic!("{path} {at}: {error}");
            };
            assert_eq!(damaged, path);
            world.write_file(path, &image[..at]).unwrap();
            let cut = saved.reader().open(10).and_then(|s| s.load_all());
            assert!(cut.is_err(), "{path} {at}");
        }
        world.write_file(path, &image).unwrap();
        saved.reader().open(10).unwrap().load_all().unwrap();
    }
    // Set aside, and written again by the next snapshot.
    world.corrupt(&chunks[1], 100, 1).unwrap();
    change(&mut tables, std::iter::empty(), 0);
    let (loaded, passed_over) = saved.load_newest(10);
    assert!(loaded.is_none());
    let aside = format!("{}.bad", chunks[1]);
    assert_eq!(passed_over[0].set_aside.as_ref(), Some(&aside));
    world.read_file(&aside).unwrap();
    world.read_file(&format!("{manifest}.bad")).unwrap();
    assert!(saved.sequences().is_empty());
    let (mut reopened, found) = SnapshotStore::open(storage(&world), place()).unwrap();
    assert_eq!((found.sequences.len(), found.set_aside.len()), (0, 1));
    let progress = take(&mut reopened, 11, &mut tables).unwrap();
    assert_eq!(progress.chunks_written, 2);
    assert!(reopened.load_newest(11).0.is_some());
    assert_eq!(reopened.remove_set_aside().unwrap(), 2);
}

#[test]
fn a_rotten_shared_chunk_is_not_reused_once_it_was_found() {
    let world = SimWorld::new(1);
    let mut tables = filled(2_000, 1);
    let mut saved = store(&world);
    take(&mut saved, 10, &mut tables).unwrap();
    take(&mut saved, 20, &mut tables).unwrap();
    world.corrupt(&chunk_files(&world)[1], 1000, 4).unwrap();
    let (loaded, passed_over) = saved.load_newest(100);
    assert!(loaded.is_none());
    assert_eq!(passed_over.len(), 2, "both refer to it");
    let progress = take(&mut saved, 30, &mut tables).unwrap();
    assert!(progress.chunks_written >= 1);
    assert!(store(&world).load_newest(100).0.is_some());
}

#[test]
fn a_foreign_or_renamed_snapshot_is_refused() {
    let world = SimWorld::new(1);
    take(&mut store(&world), 10, &mut filled(8, 1)).unwrap();
    let image = world
        .read_file("partition-0003/snapshots/snapshot-00000010.bin")
        .unwrap();
    world
        .write_file("partition-0003/snapshots/snapshot-00000011.bin", &image)
        .unwrap();
    world
        .write_file("partition-0004/snapshots/snapshot-00000010.bin", &image)
        .unwrap();
    world
        .write_file("partition-0003/snapshots/snapshot-1.bin", &image)
        .unwrap();
    let saved = store(&world);
    assert_eq!(saved.sequences(), [10, 11]);
    let (loaded, passed_over) = saved.load_newest(11);
    assert_eq!(loaded.unwrap().manifest.sequence, 10);
    assert_eq!(passed_over[0].sequence, 11);
    let other = StatePlace {
        partition: 4,
        ..place()
    };
    let (other, _) = SnapshotStore::open(storage(&world), other).unwrap();
    assert!(other.load_newest(11).0.is_none());
}

#[test]
fn what_is_held_open_is_neither_pruned_nor_collected() {
    let world = SimWorld::new(1);
    let mut tables = filled(2_000, 1);
    let mut saved = store(&world);
    take(&mut saved, 1, &mut Tables::new(1)).unwrap();
    take(&mut saved, 10, &mut tables).unwrap();
    let held = saved.reader().open(10).unwrap();
    change(&mut tables, 0..2_000, 2);
    take(&mut saved, 2000, &mut tables).unwrap();
    let policy = PrunePolicy {
        keep_last: 1,
        slots_log2: 0,
    };
    assert_eq!(saved.prune(&policy).unwrap(), [0; 0]);
    assert_eq!(collect(&mut saved), 0);
    held.load(0).unwrap();
    drop(held);
    assert_eq!(saved.prune(&policy).unwrap(), [10]);
    assert!(collect(&mut saved) > 2);
    assert_eq!(saved.sequences(), [1, 2000]);
    assert!(saved.load_newest(2000).0.is_some());
}

#[derive(Debug, Clone)]
enum Op {
    Change(u64, u64),
    Begin,
    Step,
    Abort,
    Prune(usize, u32),
    Collect,
    Reopen,
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_u64..900, 1_u64..100).prop_map(|(from, count)| Op::Change(from, count)),
        3 => Just(Op::Begin),
        20 => Just(Op::Step),
        1 => Just(Op::Abort),
        2 => (1_usize..4, 0_u32..3).prop_map(|(last, slots)| Op::Prune(last, slots)),
        10 => Just(Op::Collect),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_is_published_is_whole_at_any_time(ops in prop::collection::vec(ops(), 1..150)) {
        let world = SimWorld::new(1);
        let mut tables = filled(1_000, 1);
        let mut saved = store(&world);
        let mut states = BTreeMap::new();
        for (sequence, op) in (1..).zip(ops) {
            match op {
                Op::Change(from, count) => change(&mut tables, from..from + count, sequence),
                Op::Begin if saved.in_progress().is_none() => {
                    let inputs = vec![input("delays", &mut tables, sequence)];
                    saved.begin(sequence, TIME, inputs).unwrap();
                    states.insert(sequence, tables.fingerprint());
                }
                Op::Step if saved.in_progress().is_some() => drop(saved.step().unwrap()),
                Op::Begin | Op::Step => {}
                Op::Abort => saved.abort(),
                Op::Prune(keep_last, slots_log2) => {
                    drop(saved.prune(&PrunePolicy { keep_last, slots_log2 }).unwrap());
                }
                Op::Collect => drop(saved.collect_step().unwrap()),
                Op::Reopen => saved = store(&world),
            }
            for sequence in saved.sequences() {
                let loaded = saved.reader().open(sequence).unwrap().load_all().unwrap();
                prop_assert_eq!(loaded.tables[0].fingerprint(), states[&sequence]);
            }
        }
        saved.abort();
        collect(&mut saved);
        collect(&mut saved);
        let referred: std::collections::BTreeSet<_> = saved
            .sequences()
            .into_iter()
            .flat_map(|s| saved.reader().open(s).unwrap().manifest().chunks().collect::<Vec<_>>())
            .collect();
        prop_assert_eq!(chunk_files(&world).len(), referred.len());
    }
}

#[test]
fn golden_manifest_and_chunk() {
    let mut tables = Tables::new(1);
    tables.begin();
    tables.set(0, b"EWR", b"12").unwrap();
    tables.set(0, b"JFK", b"-3").unwrap();
    tables.commit();
    let world = SimWorld::new(1);
    take(&mut store(&world), 4711, &mut tables).unwrap();
    let bytes = world
        .read_file("partition-0003/snapshots/snapshot-00004711.bin")
        .unwrap();
    let layout = [
        ("checksum", 8),
        ("magic", 4),
        ("version", 2),
        ("reserved", 2),
        ("database_id", 16),
        ("partition", 4),
        ("entry_count", 4),
        ("sequence", 8),
        ("timestamp_ns", 8),
        ("length", 8),
        ("module_bytes", 1),
        ("module", 6),
        ("generation", 4),
        ("module_hash", 32),
        ("semantics_id", 32),
        ("applied_sequence", 8),
        ("fingerprint", 32),
        ("rows", 8),
        ("bytes", 8),
        ("table_count", 4),
        ("chunk_count", 4),
        ("name_bytes", 1),
        ("name", 7),
        ("table_version", 4),
        ("chunk", 32),
        ("chunk_table", 4),
        ("chunk_rows", 4),
        ("chunk_raw_bytes", 4),
        ("first_key_bytes", 2),
        ("first_key", 3),
    ];
    check("snapshot_manifest", &dump(&bytes, &layout));
    let manifest = SnapshotManifest::decode(&bytes).unwrap();
    assert_eq!(manifest.encode(), bytes);
    let bytes = world.read_file(&chunk_files(&world)[0]).unwrap();
    let layout = [
        ("checksum", 8),
        ("magic", 4),
        ("version", 2),
        ("codec", 1),
        ("reserved", 1),
        ("database_id", 16),
        ("partition", 4),
        ("reserved", 4),
        ("raw_bytes", 4),
        ("stored_bytes", 4),
        ("stored_checksum", 8),
        ("hash", 32),
        ("reserved", 8),
        ("table", 4),
        ("rows", 4),
        ("key_bytes 0", 2),
        ("value_bytes 0", 4),
        ("key 0", 3),
        ("value 0", 2),
        ("key_bytes 1", 2),
        ("value_bytes 1", 4),
        ("key 1", 3),
        ("value 1", 2),
    ];
    check("chunk", &dump(&bytes, &layout));
}
