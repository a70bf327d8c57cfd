//! The conformance suite: facts about [`Storage`], [`File`] and [`IoQueue`] that hold everywhere.

use std::any::Any;
use std::io::ErrorKind;
use std::sync::Arc;

use truthdb_io::{
    AlignedBuf, BLOCK_BYTES, ChunkWriter, Completion, File, IoQueue, OpenMode, Storage, WriteSource,
};

const BLOCK: u64 = BLOCK_BYTES as u64;
const SECOND_NS: u64 = 1_000_000_000;

/// Makes an empty storage and what keeps it alive.
pub(crate) type Make<'a> = &'a dyn Fn() -> (Arc<dyn Storage>, Box<dyn Any>);

/// Asserts one fact about an empty storage.
type Fact = fn(&Arc<dyn Storage>);

/// Everything that one thread can ask.
pub(crate) fn run(make: Make<'_>) {
    let facts: [(&str, Fact); 16] = [
        ("open modes", open_modes),
        ("bad paths are refused", bad_paths_are_refused),
        (
            "reads are short at the end only",
            reads_are_short_at_the_end_only,
        ),
        ("allocation reads as zeros", allocation_reads_as_zeros),
        ("length can be set", length_can_be_set),
        ("list is sorted", list_is_sorted),
        ("rename replaces", rename_replaces),
        ("remove removes", remove_removes),
        ("lock excludes", lock_excludes),
        ("space is plausible", space_is_plausible),
        ("many operations in flight", many_operations_in_flight),
        ("queued reads at the end", queued_reads_at_the_end),
        ("queue errors are reported", queue_errors_are_reported),
        (
            "an early wake ends the next wait",
            an_early_wake_ends_the_next_wait,
        ),
        ("timeout elapses", timeout_elapses),
        (
            "a dropped queue has finished",
            a_dropped_queue_has_finished_what_the_device_got,
        ),
    ];
    for (name, fact) in facts {
        println!("{name}");
        let (storage, _keep) = make();
        fact(&storage);
    }
}

/// A wake from another thread ends a wait that has begun or is about to.
#[allow(dead_code, reason = "not for the simulation, which has one thread")]
pub(crate) fn run_wakes_between_threads(make: Make<'_>) {
    let (storage, _keep) = make();
    let mut queue = storage.queue(1).unwrap();
    let waker = queue.waker();
    let (turn, turns) = std::sync::mpsc::sync_channel::<()>(0);
    let thread = std::thread::spawn(move || {
        while turns.recv().is_ok() {
            waker.wake();
        }
    });
    for _ in 0..1000 {
        turn.send(()).unwrap();
        // Without the wake this would never return.
        queue.wait(&mut Vec::new(), None);
    }
    drop(turn);
    thread.join().unwrap();
}

/// Waits until `count` operations are finished.
pub(crate) fn finish(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count {
        queue.wait(&mut completions, Some(60 * SECOND_NS));
    }
    assert_eq!(queue.in_flight(), 0);
    completions
}

fn filled(blocks: usize, value: impl Fn(usize) -> u8) -> AlignedBuf {
    let mut buf = AlignedBuf::new_zeroed(blocks * BLOCK_BYTES);
    for (index, block) in buf.chunks_mut(BLOCK_BYTES).enumerate() {
        block.fill(value(index));
    }
    buf
}

fn create(storage: &Arc<dyn Storage>, path: &str, value: u8) -> Arc<dyn File> {
    let file = storage.open(path, OpenMode::CreateNew).unwrap();
    file.write_at(&filled(1, |_| value), BLOCK_BYTES, 0)
        .unwrap();
    file.sync().unwrap();
    file
}

fn first_byte(storage: &Arc<dyn Storage>, path: &str) -> u8 {
    let mut buf = AlignedBuf::new_zeroed(BLOCK_BYTES);
    let file = storage.open(path, OpenMode::Read).unwrap();
    assert_eq!(file.read_at(&mut buf, BLOCK_BYTES, 0).unwrap(), BLOCK_BYTES);
    buf[0]
}

fn open_modes(storage: &Arc<dyn Storage>) {
    for mode in [OpenMode::Read, OpenMode::ReadWrite] {
        let error = storage.open("file", mode).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    create(storage, "file", 7);
    let error = storage
        .open("file", OpenMode::CreateNew)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let error = storage
        .open("no/file", OpenMode::CreateNew)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let file = storage.open("file", OpenMode::Read).unwrap();
    file.write_at(&filled(1, |_| 9), BLOCK_BYTES, 0)
        .unwrap_err();
    assert_eq!(first_byte(storage, "file"), 7);
    let file = storage.open("file", OpenMode::ReadWrite).unwrap();
    file.write_at(&filled(1, |_| 9), BLOCK_BYTES, 0).unwrap();
    assert_eq!(first_byte(storage, "file"), 9);
    storage.durable_create_dir("dir").unwrap();
    storage.open("dir", OpenMode::Read).map(drop).unwrap_err();
}

fn bad_paths_are_refused(storage: &Arc<dyn Storage>) {
    for path in ["../x", "a/../x", "/x", "a//x", "./x", "a/", "a\0b"] {
        let error = storage
            .open(path, OpenMode::CreateNew)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path:?}");
        let error = storage.durable_create_dir(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path:?}");
        let error = storage.list(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path:?}");
    }
    let error = storage.open("", OpenMode::CreateNew).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

fn reads_are_short_at_the_end_only(storage: &Arc<dyn Storage>) {
    let file = storage.open("file", OpenMode::CreateNew).unwrap();
    let data = filled(3, |index| u8::try_from(index + 1).unwrap());
    file.write_at(&data, data.len(), 0).unwrap();
    file.set_len(2 * BLOCK + 100).unwrap();
    assert_eq!(file.len().unwrap(), 2 * BLOCK + 100);
    let mut buf = AlignedBuf::new_zeroed(4 * BLOCK_BYTES);
    assert_eq!(
        file.read_at(&mut buf, 4 * BLOCK_BYTES, 0).unwrap(),
        2 * BLOCK_BYTES + 100
    );
    assert_eq!(buf[..2 * BLOCK_BYTES + 100], data[..2 * BLOCK_BYTES + 100]);
    assert_eq!(
        file.read_at(&mut buf, BLOCK_BYTES, BLOCK).unwrap(),
        BLOCK_BYTES
    );
    assert_eq!(buf[0], 2);
    assert_eq!(file.read_at(&mut buf, BLOCK_BYTES, 2 * BLOCK).unwrap(), 100);
    assert_eq!(file.read_at(&mut buf, BLOCK_BYTES, 3 * BLOCK).unwrap(), 0);
    assert_eq!(file.read_at(&mut buf, BLOCK_BYTES, 90 * BLOCK).unwrap(), 0);
}

fn allocation_reads_as_zeros(storage: &Arc<dyn Storage>) {
    let file = create(storage, "file", 7);
    file.allocate(4 * BLOCK).unwrap();
    assert_eq!(file.len().unwrap(), 4 * BLOCK);
    let mut buf = filled(4, |_| 0xff);
    assert_eq!(
        file.read_at(&mut buf, 4 * BLOCK_BYTES, 0).unwrap(),
        4 * BLOCK_BYTES
    );
    assert!(buf[..BLOCK_BYTES].iter().all(|byte| *byte == 7));
    assert!(buf[BLOCK_BYTES..].iter().all(|byte| *byte == 0));
    file.allocate(BLOCK).unwrap();
    assert_eq!(file.len().unwrap(), 4 * BLOCK, "allocation never shortens");
}

fn length_can_be_set(storage: &Arc<dyn Storage>) {
    let file = create(storage, "file", 7);
    file.set_len(1000).unwrap();
    file.set_len(2 * BLOCK).unwrap();
    let mut buf = filled(2, |_| 0xff);
    assert_eq!(
        file.read_at(&mut buf, 2 * BLOCK_BYTES, 0).unwrap(),
        2 * BLOCK_BYTES
    );
    assert!(buf[..1000].iter().all(|byte| *byte == 7));
    assert!(
        buf[1000..].iter().all(|byte| *byte == 0),
        "what was cut off does not come back"
    );
    file.sync().unwrap();
}

fn list_is_sorted(storage: &Arc<dyn Storage>) {
    storage.durable_create_dir("dir/sub/deep").unwrap();
    storage.durable_create_dir("dir/sub").unwrap();
    for name in ["dir/b", "dir/a.2", "dir/a", "dir/sub/x"] {
        create(storage, name, 1);
    }
    let entries = storage.list("dir").unwrap();
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e.name.as_str(), e.bytes, e.is_dir))
        .collect();
    assert_eq!(
        seen,
        [
            ("a", BLOCK, false),
            ("a.2", BLOCK, false),
            ("b", BLOCK, false),
            ("sub", 0, true)
        ]
    );
    let root: Vec<_> = storage
        .list("")
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    assert_eq!(root, ["dir"]);
    assert_eq!(
        storage.list("nowhere").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        storage.durable_create_dir("dir/a").unwrap_err().kind(),
        ErrorKind::AlreadyExists,
        "a file is in the way"
    );
    storage.sync_dir("dir").unwrap();
    assert_eq!(
        storage.sync_dir("nowhere").unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

fn rename_replaces(storage: &Arc<dyn Storage>) {
    storage.durable_create_dir("one").unwrap();
    storage.durable_create_dir("two").unwrap();
    let old = create(storage, "two/file", 1);
    create(storage, "one/file.new", 2);
    storage.durable_rename("one/file.new", "two/file").unwrap();
    assert_eq!(first_byte(storage, "two/file"), 2);
    assert_eq!(storage.list("one").unwrap(), []);
    let mut buf = AlignedBuf::new_zeroed(BLOCK_BYTES);
    old.read_at(&mut buf, BLOCK_BYTES, 0).unwrap();
    assert_eq!(buf[0], 1, "an open file outlives its name");
    let error = storage
        .durable_rename("one/file.new", "two/file")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(first_byte(storage, "two/file"), 2);
}

fn remove_removes(storage: &Arc<dyn Storage>) {
    create(storage, "file", 1);
    storage.durable_remove("file").unwrap();
    assert_eq!(storage.list("").unwrap(), []);
    assert_eq!(
        storage.durable_remove("file").unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

fn lock_excludes(storage: &Arc<dyn Storage>) {
    let guard = storage.lock("lock", "first holder").unwrap();
    let error = storage.lock("lock", "second").map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(error.to_string().contains("first holder"), "{error}");
    let mut buf = AlignedBuf::new_zeroed(BLOCK_BYTES);
    let file = storage.open("lock", OpenMode::Read).unwrap();
    let bytes = file.read_at(&mut buf, BLOCK_BYTES, 0).unwrap();
    assert_eq!(&buf[..bytes], b"first holder");
    drop(guard);
    let _guard = storage.lock("lock", &"é".repeat(200)).unwrap();
    let error = storage.lock("lock", "third").map(drop).unwrap_err();
    assert!(error.to_string().ends_with(&"é".repeat(128)), "{error}");
}

fn space_is_plausible(storage: &Arc<dyn Storage>) {
    let space = storage.space().unwrap();
    assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);
}

fn many_operations_in_flight(storage: &Arc<dyn Storage>) {
    const BLOCKS: usize = 64;
    let file = storage.open("file", OpenMode::CreateNew).unwrap();
    file.allocate(BLOCKS as u64 * BLOCK).unwrap();
    let mut queue = storage.queue(BLOCKS).unwrap();
    let mut writer = ChunkWriter::new(BLOCKS * BLOCK_BYTES);
    for round in 0..3_u8 {
        for index in 0..BLOCKS {
            let value = u8::try_from(index).unwrap() + round;
            writer.spare(BLOCK_BYTES).fill(value);
        }
        writer.freeze(writer.len());
        for index in 0..BLOCKS {
            let start = index * BLOCK_BYTES;
            let source = WriteSource {
                chunk: Arc::clone(writer.chunk()),
                start,
                bytes: BLOCK_BYTES,
            };
            queue.write(&file, source, start as u64, index % 2 == 0, index as u64);
        }
        assert_eq!(queue.in_flight(), BLOCKS);
        assert_tags(&finish(queue.as_mut(), BLOCKS), BLOCKS);
        queue.sync(&file, 0);
        assert_tags(&finish(queue.as_mut(), 1), 1);

        for index in 0..BLOCKS {
            let buf = AlignedBuf::new_zeroed(BLOCK_BYTES);
            queue.read(&file, buf, BLOCK_BYTES, index as u64 * BLOCK, index as u64);
        }
        let reads = finish(queue.as_mut(), BLOCKS);
        assert_tags(&reads, BLOCKS);
        for read in reads {
            let (buf, bytes) = read.read.unwrap();
            assert_eq!(bytes, BLOCK_BYTES);
            let value = u8::try_from(read.tag).unwrap() + round;
            assert!(buf.iter().all(|byte| *byte == value));
        }
        // Nothing in flight keeps the chunk any more.
        writer = ChunkWriter::reuse(writer.into_chunk()).unwrap();
    }
}

fn assert_tags(completions: &[Completion], count: usize) {
    let mut tags: Vec<_> = completions
        .iter()
        .map(|completion| completion.tag)
        .collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..count as u64).collect::<Vec<_>>());
    for completion in completions {
        assert!(completion.result.is_ok(), "{completion:?}");
    }
}

fn queued_reads_at_the_end(storage: &Arc<dyn Storage>) {
    let file = create(storage, "file", 5);
    file.set_len(BLOCK + 10).unwrap();
    let mut queue = storage.queue(3).unwrap();
    for (tag, offset) in [(0, 0), (1, BLOCK), (2, 2 * BLOCK)] {
        queue.read(
            &file,
            AlignedBuf::new_zeroed(4 * BLOCK_BYTES),
            4 * BLOCK_BYTES,
            offset,
            tag,
        );
    }
    let mut reads = finish(queue.as_mut(), 3);
    assert_tags(&reads, 3);
    reads.sort_by_key(|read| read.tag);
    let bytes: Vec<_> = reads
        .iter()
        .map(|read| read.read.as_ref().unwrap().1)
        .collect();
    assert_eq!(bytes, [BLOCK_BYTES + 10, 10, 0]);
}

fn queue_errors_are_reported(storage: &Arc<dyn Storage>) {
    create(storage, "file", 5);
    let file = storage.open("file", OpenMode::Read).unwrap();
    let mut queue = storage.queue(1).unwrap();
    let mut writer = ChunkWriter::new(BLOCK_BYTES);
    writer.zero_fill_to(BLOCK_BYTES);
    writer.freeze(BLOCK_BYTES);
    let chunk = Arc::clone(writer.chunk());
    queue.write(
        &file,
        WriteSource {
            chunk,
            start: 0,
            bytes: BLOCK_BYTES,
        },
        0,
        true,
        3,
    );
    let completions = finish(queue.as_mut(), 1);
    assert_eq!(completions[0].tag, 3);
    assert!(
        completions[0].result.is_err(),
        "the file is open for reading only"
    );
    assert_eq!(first_byte(storage, "file"), 5);
}

fn an_early_wake_ends_the_next_wait(storage: &Arc<dyn Storage>) {
    let mut queue = storage.queue(1).unwrap();
    let waker = queue.waker();
    let mut completions = Vec::new();
    for _ in 0..3 {
        waker.wake();
        waker.clone().wake();
        // Without the wake this would never return.
        queue.wait(&mut completions, None);
    }
    assert!(completions.is_empty());
}

fn timeout_elapses(storage: &Arc<dyn Storage>) {
    let mut queue = storage.queue(1).unwrap();
    let mut completions = Vec::new();
    // Without the timeout these would never return.
    queue.wait(&mut completions, Some(0));
    queue.wait(&mut completions, Some(1_000_000));
    queue.wait(&mut completions, Some(1_000));
    queue.poll(&mut completions);
    assert!(completions.is_empty());
    // After waits that timed out, a wake still works.
    queue.waker().wake();
    queue.wait(&mut completions, None);
}

fn a_dropped_queue_has_finished_what_the_device_got(storage: &Arc<dyn Storage>) {
    const BYTES: usize = 64 * BLOCK_BYTES;
    let file = storage.open("file", OpenMode::CreateNew).unwrap();
    let mut queue = storage.queue(16).unwrap();
    let mut writer = ChunkWriter::new(BYTES);
    writer.spare(BYTES).fill(3);
    writer.freeze(BYTES);
    for tag in 0..8 {
        let chunk = Arc::clone(writer.chunk());
        let source = WriteSource {
            chunk,
            start: 0,
            bytes: BYTES,
        };
        queue.write(&file, source, tag * BYTES as u64, false, tag);
        let buf = AlignedBuf::new_zeroed(BYTES);
        queue.read(&file, buf, BYTES, 0, 100 + tag);
    }
    queue.poll(&mut Vec::new());
    drop(queue);
    // Nobody holds the chunk any more, and every write is there.
    ChunkWriter::reuse(writer.into_chunk()).unwrap();
    let mut buf = AlignedBuf::new_zeroed(BYTES);
    for index in 0..8 {
        let at = index * BYTES as u64;
        assert_eq!(file.read_at(&mut buf, BYTES, at).unwrap(), BYTES);
        assert!(buf.iter().all(|byte| *byte == 3));
    }
}
