//! Facts about the simulated world: what is deterministic, what crashes leave, what faults do.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the suite is test code throughout"
)]

mod suite;

use std::io::ErrorKind;
use std::sync::Arc;

use truthdb_io::sim::{SimFault, SimFaults, SimOp, SimWorld};
use truthdb_io::{
    AlignedBuf, BLOCK_BYTES, ChunkWriter, Completion, File, IoQueue, OpenMode, Storage, WriteSource,
};

const BLOCK: u64 = BLOCK_BYTES as u64;

#[test]
fn simulated_storage_conforms() {
    for seed in 0..20 {
        for reorder in [false, true] {
            let make = || {
                let sim = SimWorld::new(seed);
                sim.set_faults(SimFaults {
                    reorder,
                    ..SimFaults::default()
                });
                (sim.storage() as Arc<dyn Storage>, Box::new(()) as _)
            };
            suite::run(&make);
        }
    }
}

fn buf(value: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::new_zeroed(BLOCK_BYTES);
    buf.fill(value);
    buf
}

fn chunk(blocks: usize, value: u8) -> ChunkWriter {
    let mut writer = ChunkWriter::new(blocks * BLOCK_BYTES);
    writer.spare(blocks * BLOCK_BYTES).fill(value);
    writer.freeze(writer.len());
    writer
}

fn write(
    queue: &mut dyn IoQueue,
    file: &Arc<dyn File>,
    data: &ChunkWriter,
    at: u64,
    durable: bool,
) {
    let source = WriteSource {
        chunk: Arc::clone(data.chunk()),
        start: 0,
        bytes: data.len(),
    };
    queue.write(file, source, at, durable, at);
}

/// A durable file of zeros.
fn file(sim: &SimWorld, path: &str, blocks: u64) -> Arc<dyn File> {
    sim.write_file(path, &vec![0; usize::try_from(blocks * BLOCK).unwrap()])
        .unwrap();
    sim.storage().open(path, OpenMode::ReadWrite).unwrap()
}

/// Does a bit of everything, under faults and crashes.
fn busy(seed: u64) -> SimWorld {
    let sim = SimWorld::new(seed);
    sim.keep_trace(true);
    sim.set_faults(SimFaults {
        read_error_ppm: 50_000,
        write_error_ppm: 50_000,
        lost_write_ppm: 50_000,
        misdirected_write_ppm: 50_000,
        sync_error_ppm: 50_000,
        directory_error_ppm: 50_000,
        crash_ppm: 20_000,
        slow_ppm: 50_000,
        ..SimFaults::default()
    });
    for round in 0..40 {
        let _ = step(&sim, round);
    }
    sim
}

fn step(sim: &SimWorld, round: u8) -> std::io::Result<()> {
    let world = sim.world();
    let path = format!("dir/{}", round % 4);
    world.storage.durable_create_dir("dir")?;
    let file = match world.storage.open(&path, OpenMode::ReadWrite) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            world.storage.open(&path, OpenMode::CreateNew)?
        }
        result => result?,
    };
    let mut random = [0; 8];
    world.random.fill(&mut random);
    file.write_at(
        &buf(random[0]),
        BLOCK_BYTES,
        BLOCK * u64::from(random[1] % 8),
    )?;
    let mut queue = world.storage.queue(8)?;
    let data = chunk(2, round);
    for index in 0..6 {
        write(
            queue.as_mut(),
            &file,
            &data,
            index * 2 * BLOCK,
            index % 2 == 0,
        );
    }
    let mut completions = Vec::new();
    queue.wait(&mut completions, Some(100_000));
    queue.read(&file, buf(0), BLOCK_BYTES, 0, 1);
    while queue.in_flight() > 0 {
        queue.wait(&mut completions, None);
    }
    file.sync()?;
    world
        .storage
        .durable_rename(&path, &format!("dir/{}", round % 5))
}

#[test]
fn the_same_seed_gives_the_same_trace_and_disk() {
    let mut hashes = Vec::new();
    for seed in 0..20 {
        let (one, two) = (busy(seed), busy(seed));
        assert_eq!(one.trace(), two.trace(), "seed {seed}");
        assert_eq!(one.trace_hash(), two.trace_hash(), "seed {seed}");
        assert_eq!(one.paths(), two.paths(), "seed {seed}");
        for path in one.paths() {
            let (one, two) = (one.read_file(&path).unwrap(), two.read_file(&path).unwrap());
            assert!(one == two, "seed {seed}, {path}");
        }
        hashes.push(one.trace_hash());
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 20, "different seeds give different traces");
}

#[test]
fn durable_writes_and_synced_writes_survive_every_crash() {
    for seed in 0..200 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 4);
        let mut queue = sim.storage().queue(4).unwrap();
        write(queue.as_mut(), &target, &chunk(1, 1), 0, true);
        write(queue.as_mut(), &target, &chunk(1, 2), BLOCK, false);
        suite::finish(queue.as_mut(), 2);
        queue.sync(&target, 0);
        suite::finish(queue.as_mut(), 1);
        target.write_at(&buf(3), BLOCK_BYTES, 2 * BLOCK).unwrap();
        target.sync().unwrap();
        write(queue.as_mut(), &target, &chunk(1, 4), 3 * BLOCK, true);
        suite::finish(queue.as_mut(), 1);
        sim.crash();
        let bytes = sim.read_file("file").unwrap();
        for (value, block) in (1..).zip(bytes.chunks(BLOCK_BYTES)) {
            assert!(
                block.iter().all(|byte| *byte == value),
                "seed {seed}, block {value}"
            );
        }
    }
}

/// What a crash made of one block, over many seeds.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    old: bool,
    new: bool,
    torn: bool,
}

impl Seen {
    const ALL: Seen = Seen {
        old: true,
        new: true,
        torn: true,
    };

    fn add(&mut self, block: &[u8], old: u8, new: u8) {
        for sector in block.chunks(512) {
            assert!(
                sector == [old; 512] || sector == [new; 512],
                "sectors are written whole"
            );
        }
        let (has_old, has_new) = (block.contains(&old), block.contains(&new));
        self.old |= !has_new;
        self.new |= !has_old;
        self.torn |= has_old && has_new;
    }
}

#[test]
fn volatile_writes_may_tear_at_sectors() {
    let mut seen = Seen::default();
    for seed in 0..3000 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 1);
        target.write_at(&buf(7), BLOCK_BYTES, 0).unwrap();
        assert_eq!(
            sim.read_file("file").unwrap(),
            [7; BLOCK_BYTES],
            "seen before the crash"
        );
        sim.crash();
        seen.add(&sim.read_file("file").unwrap(), 0, 7);
    }
    assert_eq!(seen, Seen::ALL);
}

#[test]
fn interrupted_durable_writes_may_tear_and_no_completion_was_seen() {
    let mut seen = Seen::default();
    for seed in 0..100 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 1);
        let mut queue = sim.storage().queue(1).unwrap();
        write(queue.as_mut(), &target, &chunk(1, 7), 0, true);
        let mut completions = Vec::new();
        queue.poll(&mut completions);
        assert!(completions.is_empty());
        sim.crash();
        queue.wait(&mut completions, None);
        assert_eq!(failure(&completions), ErrorKind::BrokenPipe);
        assert_eq!(queue.in_flight(), 0);
        seen.add(&sim.read_file("file").unwrap(), 0, 7);
    }
    assert_eq!(seen, Seen::ALL);
}

#[test]
fn a_write_that_was_never_given_to_the_device_leaves_nothing() {
    for seed in 0..50 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 1);
        let mut queue = sim.storage().queue(1).unwrap();
        write(queue.as_mut(), &target, &chunk(1, 7), 0, true);
        sim.crash();
        assert_eq!(sim.read_file("file").unwrap(), [0; BLOCK_BYTES]);
    }
}

#[test]
fn a_durable_write_does_not_always_flush_what_was_written_before() {
    let lost = |flushes_ppm| {
        let survives = |seed| {
            let sim = SimWorld::new(seed);
            sim.set_faults(SimFaults {
                durable_write_flushes_ppm: flushes_ppm,
                ..SimFaults::default()
            });
            let target = file(&sim, "file", 2);
            target.write_at(&buf(7), BLOCK_BYTES, 0).unwrap();
            let mut queue = sim.storage().queue(1).unwrap();
            write(queue.as_mut(), &target, &chunk(1, 8), BLOCK, true);
            suite::finish(queue.as_mut(), 1);
            sim.crash();
            sim.read_file("file").unwrap()[..BLOCK_BYTES] == [7; BLOCK_BYTES]
        };
        (0..50).filter(|seed| !survives(*seed)).count()
    };
    assert_eq!(lost(1_000_000), 0);
    assert!(lost(0) > 40);
}

#[test]
fn a_sync_covers_only_what_was_written_before_it_was_given() {
    let mut seen = Seen::default();
    for seed in 0..3000 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 1);
        let mut queue = sim.storage().queue(2).unwrap();
        queue.sync(&target, 9);
        write(queue.as_mut(), &target, &chunk(1, 7), 0, false);
        suite::finish(queue.as_mut(), 2);
        sim.crash();
        seen.add(&sim.read_file("file").unwrap(), 0, 7);
    }
    assert_eq!(seen, Seen::ALL);
}

#[test]
fn lengths_that_are_not_synced_may_be_lost_and_cut_bytes_stay_cut() {
    let (mut short, mut long) = (0, 0);
    for seed in 0..100 {
        let sim = SimWorld::new(seed);
        sim.write_file("file", &[5; 3 * BLOCK_BYTES]).unwrap();
        let target = sim.storage().open("file", OpenMode::ReadWrite).unwrap();
        target.set_len(BLOCK + 8).unwrap();
        sim.crash();
        let bytes = sim.read_file("file").unwrap();
        match bytes.len() {
            n if n == BLOCK_BYTES + 8 => short += 1,
            n if n == 3 * BLOCK_BYTES => long += 1,
            n => panic!("length {n}"),
        }
        assert!(bytes[..BLOCK_BYTES + 8].iter().all(|byte| *byte == 5));
        let target = sim.storage().open("file", OpenMode::ReadWrite).unwrap();
        target.set_len(8).unwrap();
        target.sync().unwrap();
        target.allocate(BLOCK).unwrap();
        sim.crash();
        let bytes = sim.read_file("file").unwrap();
        assert_eq!(bytes[..8], [5; 8]);
        assert!(bytes[8..].iter().all(|byte| *byte == 0));
    }
    assert!(short > 10 && long > 10);
}

#[test]
fn a_durable_write_beyond_the_durable_end_makes_the_length_durable() {
    for seed in 0..50 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 0);
        target.allocate(16 * BLOCK).unwrap();
        let mut queue = sim.storage().queue(1).unwrap();
        write(queue.as_mut(), &target, &chunk(1, 7), 3 * BLOCK, true);
        suite::finish(queue.as_mut(), 1);
        sim.crash();
        let bytes = sim.read_file("file").unwrap();
        assert_eq!(bytes.len(), 16 * BLOCK_BYTES);
        assert!(
            bytes[3 * BLOCK_BYTES..4 * BLOCK_BYTES]
                .iter()
                .all(|byte| *byte == 7)
        );
    }
}

#[test]
fn created_files_survive_only_with_their_directory_synced() {
    let mut kept = 0;
    for seed in 0..100 {
        let sim = SimWorld::new(seed);
        let storage = sim.storage();
        storage.durable_create_dir("dir").unwrap();
        storage.open("dir/synced", OpenMode::CreateNew).unwrap();
        storage.sync_dir("dir").unwrap();
        let loose = storage.open("dir/loose", OpenMode::CreateNew).unwrap();
        loose.sync().unwrap();
        sim.crash();
        let paths = sim.paths();
        assert!(paths.contains(&"dir/synced".to_owned()));
        kept += usize::from(paths.contains(&"dir/loose".to_owned()));
    }
    assert!(kept > 10 && kept < 90, "{kept}");
}

#[test]
fn renames_and_removals_are_durable_or_interrupted_as_a_whole() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..100 {
        let sim = SimWorld::new(seed);
        sim.write_file("a/one", b"one").unwrap();
        sim.write_file("b/two", b"two").unwrap();
        sim.write_file("gone", b"gone").unwrap();
        let storage = sim.storage();
        storage.durable_remove("gone").unwrap();
        sim.fail_nth(Some(SimOp::Rename), 0, SimFault::Crash);
        let error = storage.durable_rename("a/one", "b/two").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(sim.boots(), 2);
        if sim.paths() == ["a/one", "b/two"] {
            before += 1;
            assert_eq!(sim.read_file("b/two").unwrap(), b"two");
        } else {
            after += 1;
            assert_eq!(sim.paths(), ["b/two"]);
            assert_eq!(sim.read_file("b/two").unwrap(), b"one");
        }
        let storage = sim.storage();
        if storage.durable_rename("a/one", "b/two").is_ok() {
            sim.crash();
            assert_eq!(sim.paths(), ["b/two"]);
        }
    }
    assert!(before > 10 && after > 10);
}

#[test]
fn handles_of_an_earlier_boot_fail() {
    let sim = SimWorld::new(1);
    let storage = sim.storage();
    let old = file(&sim, "file", 1);
    let guard = storage.lock("lock", "me").unwrap();
    let mut queue = storage.queue(1).unwrap();
    sim.crash();
    let broken = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    broken(old.sync().unwrap_err());
    broken(old.len().unwrap_err());
    broken(old.write_at(&buf(1), BLOCK_BYTES, 0).unwrap_err());
    broken(storage.list("").unwrap_err());
    broken(storage.open("file", OpenMode::Read).map(drop).unwrap_err());
    queue.sync(&old, 1);
    let mut completions = Vec::new();
    queue.poll(&mut completions);
    assert_eq!(failure(&completions), ErrorKind::BrokenPipe);
    let _new = sim.storage().lock("lock", "again").unwrap();
    drop(guard);
    let error = sim.storage().lock("lock", "third").map(drop).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::WouldBlock,
        "an old guard releases nothing"
    );
}

fn failure(completions: &[Completion]) -> ErrorKind {
    assert_eq!(completions.len(), 1);
    completions[0].result.as_ref().unwrap_err().kind()
}

#[test]
fn killing_the_process_loses_nothing_that_was_given_to_the_kernel() {
    for seed in 0..20 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 2);
        target.write_at(&buf(7), BLOCK_BYTES, 0).unwrap();
        let mut queue = sim.storage().queue(1).unwrap();
        write(queue.as_mut(), &target, &chunk(1, 8), BLOCK, false);
        queue.poll(&mut Vec::new());
        sim.kill();
        assert!(target.sync().is_err());
        let bytes = sim.read_file("file").unwrap();
        assert!(bytes[..BLOCK_BYTES].iter().all(|byte| *byte == 7));
        assert!(bytes[BLOCK_BYTES..].iter().all(|byte| *byte == 8));
    }
}

#[test]
fn operations_complete_in_another_order_and_time_passes() {
    let tags = |reorder| {
        let sim = SimWorld::new(3);
        sim.set_faults(SimFaults {
            reorder,
            ..SimFaults::default()
        });
        let target = file(&sim, "file", 16);
        let mut queue = sim.storage().queue(16).unwrap();
        let data = chunk(1, 1);
        for index in 0..16 {
            write(queue.as_mut(), &target, &data, index * BLOCK, false);
        }
        let before = sim.now_ns();
        let done = suite::finish(queue.as_mut(), 16);
        assert!(sim.now_ns() > before);
        done.into_iter().map(|done| done.tag).collect::<Vec<_>>()
    };
    assert!(tags(false).is_sorted());
    assert!(!tags(true).is_sorted());
}

#[test]
fn planned_faults_strike_once_where_they_were_planned() {
    let sim = SimWorld::new(1);
    let target = file(&sim, "file", 4);
    sim.fail_nth(Some(SimOp::Sync), 1, SimFault::Error);
    target.write_at(&buf(1), BLOCK_BYTES, 0).unwrap();
    target.sync().unwrap();
    assert_eq!(target.sync().unwrap_err().raw_os_error(), Some(5));
    target.sync().unwrap();
    sim.fail_nth(Some(SimOp::Write), 0, SimFault::NoSpace);
    let error = target.write_at(&buf(1), BLOCK_BYTES, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    sim.fail_nth(Some(SimOp::Allocate), 0, SimFault::NoSpace);
    assert_eq!(
        target.allocate(9 * BLOCK).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    assert_eq!(target.len().unwrap(), 4 * BLOCK);
    sim.fail_nth(None, 5, SimFault::Error);
    assert_eq!(sim.clear_planned(), 1);
}

#[test]
fn every_operation_can_be_the_last_before_power_fails() {
    let count = {
        let sim = SimWorld::new(5);
        step(&sim, 0).unwrap();
        sim.operations()
    };
    assert!(count > 10);
    for nth in 0..count {
        let sim = SimWorld::new(5);
        sim.fail_nth(None, nth, SimFault::Crash);
        let result = step(&sim, 0);
        assert_eq!(sim.boots(), 2, "operation {nth}");
        assert!(result.is_err(), "operation {nth}");
        step(&sim, 0).unwrap_or_else(|error| panic!("operation {nth}: {error}"));
    }
}

#[test]
fn a_full_disk_says_so_and_changes_nothing() {
    let sim = SimWorld::new(1);
    sim.set_capacity(4 * BLOCK);
    let storage = sim.storage();
    let target = storage.open("file", OpenMode::CreateNew).unwrap();
    target.allocate(4 * BLOCK).unwrap();
    assert_eq!(storage.space().unwrap().free_bytes, 0);
    let full = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::StorageFull);
    full(target.allocate(5 * BLOCK).unwrap_err());
    full(target.set_len(5 * BLOCK).unwrap_err());
    full(
        target
            .write_at(&buf(1), BLOCK_BYTES, 4 * BLOCK)
            .unwrap_err(),
    );
    full(
        storage
            .open("other", OpenMode::CreateNew)
            .map(drop)
            .unwrap_err(),
    );
    assert_eq!(sim.paths(), ["file"]);
    target.write_at(&buf(1), BLOCK_BYTES, 3 * BLOCK).unwrap();
    target.set_len(BLOCK).unwrap();
    storage.open("other", OpenMode::CreateNew).unwrap();
}

#[test]
fn after_a_failed_sync_a_later_success_proves_nothing() {
    let mut lost = 0;
    for seed in 0..50 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 1);
        target.write_at(&buf(7), BLOCK_BYTES, 0).unwrap();
        sim.fail_nth(Some(SimOp::Sync), 0, SimFault::Error);
        target.sync().unwrap_err();
        target.sync().unwrap();
        assert_eq!(
            sim.read_file("file").unwrap(),
            [7; BLOCK_BYTES],
            "still seen"
        );
        sim.crash();
        lost += usize::from(sim.read_file("file").unwrap() != [7; BLOCK_BYTES]);
    }
    assert!(lost > 10 && lost < 40, "{lost}");
}

#[test]
fn lost_writes_are_acknowledged_and_never_stored() {
    let sim = SimWorld::new(1);
    let target = file(&sim, "file", 1);
    sim.fail_nth(Some(SimOp::Write), 0, SimFault::Lost);
    let mut queue = sim.storage().queue(1).unwrap();
    write(queue.as_mut(), &target, &chunk(1, 7), 0, true);
    assert!(suite::finish(queue.as_mut(), 1)[0].result.is_ok());
    assert_eq!(sim.read_file("file").unwrap(), [0; BLOCK_BYTES]);
}

#[test]
fn misdirected_writes_land_on_another_block_or_file() {
    let (mut same_file, mut other_file) = (0, 0);
    for seed in 0..100 {
        let sim = SimWorld::new(seed);
        let target = file(&sim, "file", 8);
        let _other = file(&sim, "other", 8);
        sim.fail_nth(Some(SimOp::Write), 0, SimFault::Misdirected);
        target.write_at(&buf(7), BLOCK_BYTES, 3 * BLOCK).unwrap();
        let blocks = |path| {
            let bytes = sim.read_file(path).unwrap();
            assert_eq!(bytes.len(), 8 * BLOCK_BYTES);
            bytes
                .chunks(BLOCK_BYTES)
                .filter(|block| block.contains(&7))
                .count()
        };
        let (here, there) = (blocks("file"), blocks("other"));
        assert_eq!(here + there, 1, "it lands somewhere, once");
        let right = sim.read_file("file").unwrap()[3 * BLOCK_BYTES] == 7;
        same_file += usize::from(here == 1 && !right);
        other_file += there;
    }
    assert!(same_file > 10 && other_file > 10);
}

#[test]
fn bit_rot_and_unreadable_blocks_stay_until_written_again() {
    let sim = SimWorld::new(1);
    let target = file(&sim, "file", 2);
    sim.corrupt("file", BLOCK + 5, 0b101).unwrap();
    assert_eq!(sim.read_file("file").unwrap()[BLOCK_BYTES + 5], 0b101);
    sim.crash();
    assert_eq!(sim.read_file("file").unwrap()[BLOCK_BYTES + 5], 0b101);
    assert!(target.sync().is_err());

    let target = sim.storage().open("file", OpenMode::ReadWrite).unwrap();
    sim.make_unreadable("file", BLOCK + 9, 1).unwrap();
    let mut into = buf(0);
    target.read_at(&mut into, BLOCK_BYTES, 0).unwrap();
    for _ in 0..2 {
        let error = target.read_at(&mut into, BLOCK_BYTES, BLOCK).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
    }
    target.write_at(&buf(1), BLOCK_BYTES, BLOCK).unwrap();
    target.read_at(&mut into, BLOCK_BYTES, BLOCK).unwrap();
    assert_eq!(into[5], 1);

    sim.fail_nth(Some(SimOp::Read), 0, SimFault::Latent);
    for _ in 0..2 {
        target.read_at(&mut into, BLOCK_BYTES, 0).unwrap_err();
    }
}

#[test]
fn an_image_brings_the_disk_back() {
    let sim = SimWorld::new(1);
    sim.write_file("dir/file", b"before").unwrap();
    let image = sim.image();
    sim.write_file("dir/file", b"after").unwrap();
    sim.remove_file("dir/file").unwrap();
    sim.write_file("new", b"").unwrap();
    sim.restore(&image);
    assert_eq!(sim.paths(), ["dir/file"]);
    assert_eq!(sim.read_file("dir/file").unwrap(), b"before");
    let other = SimWorld::new(2);
    other.restore(&image);
    assert_eq!(other.read_file("dir/file").unwrap(), b"before");
}

#[test]
fn clocks_pass_time_only_when_told() {
    let sim = SimWorld::new(1);
    let world = sim.world();
    let (utc, monotonic) = (world.clock.utc_ns(), world.clock.monotonic_ns());
    assert_eq!(world.clock.utc_ns(), utc);
    sim.advance_ns(500);
    assert_eq!(world.clock.utc_ns(), utc + 500);
    sim.jump_utc_ns(-1_000);
    assert_eq!(world.clock.utc_ns(), utc - 500);
    assert_eq!(world.clock.monotonic_ns(), monotonic + 500);
    let mut queue = world.storage.queue(1).unwrap();
    queue.wait(&mut Vec::new(), Some(1_000_000));
    assert_eq!(world.clock.monotonic_ns(), monotonic + 1_000_500);
}

#[test]
fn slow_disks_are_slow() {
    let time = |slow_ppm| {
        let sim = SimWorld::new(1);
        sim.set_faults(SimFaults {
            slow_ppm,
            slow_factor: 1000,
            ..SimFaults::default()
        });
        let target = file(&sim, "file", 1);
        target.sync().unwrap();
        sim.now_ns()
    };
    assert!(time(1_000_000) > 100 * time(0));
}

#[test]
#[should_panic(expected = "nothing can end")]
fn a_wait_that_nothing_can_end_is_a_bug() {
    let sim = SimWorld::new(1);
    let mut queue = sim.storage().queue(1).unwrap();
    queue.wait(&mut Vec::new(), None);
}

#[test]
#[should_panic(expected = "more than 1 operations in flight")]
fn a_queue_holds_no_more_than_its_depth() {
    let sim = SimWorld::new(1);
    let target = file(&sim, "file", 1);
    let mut queue = sim.storage().queue(1).unwrap();
    queue.sync(&target, 1);
    queue.sync(&target, 2);
}
