//! The engine as its callers see it, on a real file system.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail the test")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use truthdb_engine::{
    AppendCondition, AppendError, Appended, BackupError, BackupSession, ConditionItem,
    CursorUpdate, Direction, EncodedEvents, Engine, EngineConfig, ExpectedRevision, Filter,
    ReadError, ReadFrom, ReadRequest, RevisionFrom, StreamReadRequest, TrimTo,
};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::{Backend, FileStorage, World};
use truthdb_log::{CreateOptions, MANIFEST_PATH, SCHEMA_PATH, Schema, create_database, trim_path};

const SEGMENT_BYTES: u64 = 16 << 20;

fn world(dir: &Path) -> World {
    World::system(Arc::new(FileStorage::open(dir, Backend::Auto).unwrap()))
}

fn temp() -> tempfile::TempDir {
    // Not in /tmp: that may be a tmpfs, which has no direct I/O.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn create(dir: &Path, partition_count: u32) {
    let options = CreateOptions {
        partition_count,
        segment_bytes: SEGMENT_BYTES,
        ..CreateOptions::default()
    };
    create_database(&world(dir), &options).unwrap();
}

fn open(dir: &Path) -> Engine {
    let config = EngineConfig {
        idempotency_window_events: 1000,
        ..EngineConfig::default()
    };
    Engine::open(world(dir), config).unwrap()
}

fn id(n: u64) -> EventId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(n + 1).to_le_bytes());
    EventId(bytes)
}

fn event(stream: &str, n: u64, payload: &[u8]) -> Vec<u8> {
    let tag = format!("n:{}", n % 10);
    let kind = if n.is_multiple_of(2) { "Even" } else { "Odd" };
    let mut bytes = Vec::new();
    EventBuilder::new(stream, kind)
        .id(id(n))
        .content_type("text/plain")
        .tag(&tag)
        .payload(payload)
        .encode_into(&mut bytes)
        .unwrap();
    bytes
}

fn encoded(events: Vec<Vec<u8>>) -> EncodedEvents {
    EncodedEvents {
        bytes: Bytes::from(events.concat()),
        ..EncodedEvents::default()
    }
}

fn append(engine: &Engine, events: EncodedEvents) -> Result<Appended, AppendError> {
    engine.append_blocking(engine.prepare(None, events)?)
}

fn page(engine: &Engine, from: ReadFrom, direction: Direction, filter: Filter) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut request = ReadRequest {
        partition: 0,
        from,
        direction,
        filter,
        events_max: 7,
        bytes_max: 1 << 20,
    };
    loop {
        let page = engine.read(&request).unwrap();
        out.extend(page.events().iter().map(|e| (e.sequence, e.revision)));
        match page.next {
            Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
            _ => return out,
        }
    }
}

fn stream_page(engine: &Engine, stream: &str, direction: Direction) -> Vec<u64> {
    let mut out = Vec::new();
    let mut request = StreamReadRequest {
        stream: stream.to_owned(),
        partition: None,
        from: RevisionFrom::Start,
        direction,
        events_max: 5,
        bytes_max: 1 << 20,
    };
    loop {
        let page = engine.read_stream(&request).unwrap();
        out.extend(page.events().iter().map(|e| e.revision));
        match page.next {
            Some(next) => request.from = RevisionFrom::Revision(next),
            None => return out,
        }
    }
}

#[test]
fn events_are_there_after_a_clean_and_after_an_abrupt_stop() {
    let dir = temp();
    create(dir.path(), 1);
    let mut expected = Vec::new();
    for round in 0..4u64 {
        let engine = open(dir.path());
        assert_eq!(engine.committed(0), expected.len() as u64);
        for n in 0..25 {
            let n = round * 25 + n;
            let stream = format!("s{}", n % 3);
            let appended = append(&engine, encoded(vec![event(&stream, n, b"x")])).unwrap();
            assert_eq!(appended.first_sequence, n + 1);
            assert_eq!(appended.last_revision, n / 3);
            assert!(appended.durable && !appended.duplicate);
            expected.push((n + 1, n / 3));
        }
        let all = page(
            &engine,
            ReadFrom::Start,
            Direction::Forward,
            Filter::default(),
        );
        assert_eq!(all, expected);
        let mut back = page(
            &engine,
            ReadFrom::Start,
            Direction::Backward,
            Filter::default(),
        );
        back.reverse();
        assert_eq!(back, expected);
        if round % 2 == 0 {
            engine.shutdown();
        } else {
            // The threads stop without a mark, as after a kill; the lock goes with the storage.
            engine.abandon();
        }
    }
    let engine = open(dir.path());
    let revisions: Vec<u64> = (0..34).collect();
    assert_eq!(stream_page(&engine, "s0", Direction::Forward), revisions);
    let mut back = stream_page(&engine, "s0", Direction::Backward);
    back.reverse();
    assert_eq!(back, revisions);
    engine.shutdown();
}

#[test]
fn expected_revisions_conditions_and_ids_are_checked() {
    let dir = temp();
    create(dir.path(), 1);
    let engine = open(dir.path());
    let expecting = |stream: &str, n: u64, expected| EncodedEvents {
        expected: vec![(stream.to_owned(), expected)],
        ..encoded(vec![event(stream, n, b"payload")])
    };
    let first = append(&engine, expecting("a", 1, ExpectedRevision::NoStream)).unwrap();
    // The same append again, with and without the expectation: the first result.
    for expected in [ExpectedRevision::NoStream, ExpectedRevision::Any] {
        let again = append(&engine, expecting("a", 1, expected)).unwrap();
        assert_eq!(
            Appended {
                duplicate: false,
                ..again
            },
            first
        );
        assert!(again.duplicate);
    }
    let error = append(&engine, expecting("a", 2, ExpectedRevision::NoStream)).unwrap_err();
    assert!(
        matches!(
            error,
            AppendError::RevisionConflict {
                actual: Some(0),
                ..
            }
        ),
        "{error}"
    );
    let error = append(&engine, expecting("b", 3, ExpectedRevision::Exists)).unwrap_err();
    assert!(
        matches!(error, AppendError::RevisionConflict { actual: None, .. }),
        "{error}"
    );
    append(&engine, expecting("a", 4, ExpectedRevision::Exact(0))).unwrap();
    // An id with other content.
    let error = append(&engine, encoded(vec![event("a", 4, b"other")])).unwrap_err();
    assert!(
        matches!(error, AppendError::IdReused { sequence: 2, .. }),
        "{error}"
    );

    let condition = |items: Vec<ConditionItem>, after, n| EncodedEvents {
        condition: Some(AppendCondition { items, after }),
        ..encoded(vec![event("c", n, b"")])
    };
    let item = |types: &[&str], tags: &[&str]| ConditionItem {
        types: types.iter().map(|t| (*t).to_owned()).collect(),
        tags: tags.iter().map(|t| (*t).to_owned()).collect(),
    };
    let error = append(&engine, condition(vec![item(&["Odd"], &["n:1"])], 0, 5)).unwrap_err();
    assert!(
        matches!(error, AppendError::ConditionFailed { sequence: 1 }),
        "{error}"
    );
    append(&engine, condition(vec![item(&["Odd"], &["n:1"])], 1, 5)).unwrap();
    append(&engine, condition(vec![item(&["Even"], &["n:1"])], 0, 6)).unwrap();
    let error = append(
        &engine,
        condition(vec![item(&[], &["n:9"]), item(&["Even"], &[])], 2, 7),
    );
    assert!(matches!(
        error,
        Err(AppendError::ConditionFailed { sequence: 4 })
    ));
    engine.shutdown();
}

#[test]
fn cursors_live_in_the_same_commit_as_their_events() {
    let dir = temp();
    create(dir.path(), 2);
    let engine = open(dir.path());
    let partition = engine.partition_of("orders");
    let with_cursor = EncodedEvents {
        cursor: Some(CursorUpdate {
            name: "billing".to_owned(),
            position: 41,
        }),
        ..encoded(vec![event("orders", 1, b"")])
    };
    let appended = append(&engine, with_cursor.clone()).unwrap();
    assert_eq!((appended.first_sequence, appended.last_sequence), (1, 1));
    assert!(append(&engine, with_cursor).unwrap().duplicate);
    assert_eq!(
        engine
            .cursor(partition, "billing")
            .unwrap()
            .unwrap()
            .position,
        41
    );
    let alone = EncodedEvents {
        cursor: Some(CursorUpdate {
            name: "billing".to_owned(),
            position: 42,
        }),
        ..EncodedEvents::default()
    };
    engine
        .append_blocking(engine.prepare(Some(partition), alone).unwrap())
        .unwrap();
    let cursors = engine.cursors(partition).unwrap();
    assert_eq!(cursors.len(), 1);
    assert_eq!(
        (cursors[0].0.as_str(), cursors[0].1.position),
        ("billing", 42)
    );
    assert_eq!(engine.cursor(1 - partition, "billing").unwrap(), None);
    engine.shutdown();
}

#[test]
fn segments_roll_seal_and_stay_readable_and_trim_removes_them() {
    let dir = temp();
    create(dir.path(), 1);
    let engine = open(dir.path());
    let payload = vec![7u8; 200_000];
    let mut n = 0;
    while engine.status().partitions[0].active_segment < 5 {
        let batch = (0..4)
            .map(|i| event(&format!("s{}", i % 2), n + i, &payload))
            .collect();
        match append(&engine, encoded(batch)) {
            Ok(_) => n += 4,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    let expected: Vec<u64> = (0..n / 2).collect();
    assert_eq!(stream_page(&engine, "s1", Direction::Forward), expected);
    let proof = engine.prove(0, 3).unwrap();
    let proven = truthdb_log::check_proof(&proof).unwrap();
    assert_eq!(proven.canonical, event("s0", 2, &payload));
    let report = engine
        .verify(None, true, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(report.findings, vec![]);
    assert!(report.events > 0);
    let tagged = Filter {
        tags: vec!["n:3".to_owned()],
        ..Filter::default()
    };
    let found = page(&engine, ReadFrom::Start, Direction::Forward, tagged.clone());
    assert_eq!(found.len() as u64, (n + 6) / 10);
    let mut back = page(&engine, ReadFrom::Start, Direction::Backward, tagged);
    back.reverse();
    assert_eq!(back, found);
    let by_type = Filter {
        types: vec!["Odd".to_owned()],
        ..Filter::default()
    };
    assert_eq!(
        page(&engine, ReadFrom::Start, Direction::Forward, by_type).len() as u64,
        n / 2
    );
    engine.shutdown();

    // All indexes gone: they are derived, so opening makes them again.
    let index = dir.path().join("partition-0000/index");
    for entry in std::fs::read_dir(&index).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let engine = open(dir.path());
    assert_eq!(stream_page(&engine, "s1", Direction::Forward), expected);
    let head = engine.stream_head("s0", None).unwrap().unwrap();
    assert_eq!(head.last_revision, n / 2 - 1);

    let plan = engine.trim_plan(0, TrimTo::Sequence(n / 2)).unwrap();
    assert!(!plan.segments.is_empty());
    engine.trim(&plan).unwrap();
    assert_eq!(engine.first_sequence(0), plan.first_sequence);
    let request = ReadRequest {
        partition: 0,
        from: ReadFrom::Sequence(1),
        direction: Direction::Forward,
        filter: Filter::default(),
        events_max: 10,
        bytes_max: 1 << 20,
    };
    assert!(matches!(
        engine.read(&request),
        Err(ReadError::Trimmed { .. })
    ));
    engine.shutdown();
    let engine = open(dir.path());
    assert_eq!(engine.first_sequence(0), plan.first_sequence);
    let rest = page(
        &engine,
        ReadFrom::Start,
        Direction::Forward,
        Filter::default(),
    );
    assert_eq!(rest.first().unwrap().0, plan.first_sequence);
    assert_eq!(rest.last().unwrap().0, n + 1);
    // A stream whose first events are gone keeps counting where it was.
    let appended = append(&engine, encoded(vec![event("s0", n + 10, b"")])).unwrap();
    assert_eq!(appended.last_revision, n / 2);
    engine.shutdown();
}

#[test]
fn a_second_engine_on_the_same_directory_is_refused() {
    let dir = temp();
    create(dir.path(), 1);
    let engine = open(dir.path());
    let error = Engine::open(world(dir.path()), EngineConfig::default()).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    engine.shutdown();
    open(dir.path()).shutdown();
}

/// Writes what a session consists of, as a restore does.
fn store(session: &BackupSession, dir: &Path) {
    let write = |path: &str, bytes: &[u8]| {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write(MANIFEST_PATH, &session.manifest());
    write(SCHEMA_PATH, &Schema::CURRENT.encode());
    for partition in session.partitions() {
        let segments = partition.segments.iter().map(|s| (&s.path, s.bytes));
        let heads = partition.heads.iter().map(|run| (&run.path, run.bytes));
        for (path, length) in segments.chain(heads) {
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < length {
                let read = session.read(path, bytes.len() as u64, 1 << 20).unwrap();
                assert!(!read.is_empty(), "{path} ends early");
                bytes.extend_from_slice(&read);
            }
            write(path, &bytes);
        }
        if let Some(trim) = &partition.trim {
            write(&trim_path(partition.partition), trim);
        }
    }
}

#[test]
fn a_page_backward_that_ends_where_the_history_was_trimmed_says_so() {
    let dir = temp();
    create(dir.path(), 1);
    let engine = open(dir.path());
    let payload = vec![7u8; 400_000];
    let mut filler = 1000;
    // Two events of the stream in each of the first three segments, the last of them with its end behind them.
    for revision in 0..6 {
        append(&engine, encoded(vec![event("s", revision, b"")])).unwrap();
        while revision % 2 == 1
            && u64::from(engine.status().partitions[0].active_segment) < revision / 2 + 2
        {
            match append(&engine, encoded(vec![event("filler", filler, &payload)])) {
                Ok(_) => filler += 1,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    }
    let backward = |events_max| {
        let request = StreamReadRequest {
            stream: "s".to_owned(),
            partition: None,
            from: RevisionFrom::Start,
            direction: Direction::Backward,
            events_max,
            bytes_max: 1 << 20,
        };
        let page = engine.read_stream(&request).unwrap();
        let revisions: Vec<u64> = page.events().iter().map(|e| e.revision).collect();
        (revisions, page.next)
    };
    assert_eq!(backward(4), (vec![5, 4, 3, 2], Some(1)));
    let kept = engine.status().partitions[0].active_segment;
    assert_eq!(kept, 4);
    // The second segment is the oldest one that stays.
    loop {
        let of_second = {
            let request = StreamReadRequest {
                stream: "s".to_owned(),
                partition: None,
                from: RevisionFrom::Revision(2),
                direction: Direction::Forward,
                events_max: 1,
                bytes_max: 1 << 20,
            };
            engine.read_stream(&request).unwrap().events()[0].sequence
        };
        let plan = engine.trim_plan(0, TrimTo::Sequence(of_second)).unwrap();
        if !plan.segments.is_empty() {
            engine.trim(&plan).unwrap();
            break;
        }
        // It is sealed at the pace of the maintenance.
        std::thread::yield_now();
    }
    assert_eq!(backward(3), (vec![5, 4, 3], Some(2)));
    assert_eq!(backward(4), (vec![5, 4, 3, 2], None));
    assert_eq!(backward(5), (vec![5, 4, 3, 2], None));
    assert_eq!(stream_page(&engine, "s", Direction::Backward), [5, 4, 3, 2]);
    engine.shutdown();
}

/// The runs of a backup cover every segment before its first, and those of several none that is not sealed in it.
fn check_heads_of(session: &BackupSession) {
    for partition in session.partitions() {
        let sealed = partition.segments.iter().filter(|s| s.chain.is_some());
        let last_sealed = sealed.map(|s| s.segment).max();
        let mut next = 1;
        for run in &partition.heads {
            assert_eq!(run.segments.0, next, "{partition:?}");
            let last_known = last_sealed.unwrap_or(partition.first_segment - 1);
            assert!(run.segments.1 <= last_known, "{partition:?}");
            next = run.segments.1 + 1;
        }
        assert!(next >= partition.first_segment, "{partition:?}");
        assert_eq!(partition.trim.is_some(), partition.first_segment > 1);
    }
}

#[test]
fn a_backup_of_a_trimmed_database_has_the_heads_of_trimmed_streams() {
    let dir = temp();
    create(dir.path(), 1);
    let engine = open(dir.path());
    // A stream of which every event will be gone.
    append(&engine, encoded(vec![event("early", 1_000_000, b"")])).unwrap();
    append(&engine, encoded(vec![event("early", 1_000_001, b"")])).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    // Sessions all the while: segments are sealed, their heads merged, and their files removed under them.
    let streams = std::thread::scope(|scope| {
        let sessions = scope.spawn(|| {
            let mut count = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                check_heads_of(&engine.backup().unwrap());
                count += 1;
            }
            count
        });
        let mut events = 0;
        let payload = vec![7u8; 400_000];
        while engine.status().partitions[0].active_segment < 12 {
            match append(&engine, encoded(vec![event("s0", events, &payload)])) {
                Ok(_) => events += 1,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            if events.is_multiple_of(50) {
                let plan = engine
                    .trim_plan(0, TrimTo::Bytes(2 * SEGMENT_BYTES))
                    .unwrap();
                if !plan.segments.is_empty() {
                    engine.trim(&plan).unwrap();
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Release);
        assert!(sessions.join().unwrap() > 0);
        events
    });
    // Seals and removals are the maintenance's, at its own pace.
    let session = loop {
        let plan = engine
            .trim_plan(0, TrimTo::Bytes(2 * SEGMENT_BYTES))
            .unwrap();
        if !plan.segments.is_empty() {
            engine.trim(&plan).unwrap();
        }
        let session = engine.backup().unwrap();
        if session.partitions()[0].first_segment > 4 {
            break session;
        }
        std::thread::yield_now();
    };
    let missing = session.read("partition-0000/wal/segment-00000001.log", 0, 4096);
    assert!(matches!(missing, Err(BackupError::NoSuchFile { .. })));
    let copy = temp();
    store(&session, copy.path());
    drop(session);

    let restored = open(copy.path());
    assert!(restored.report().partitions[0].tail.is_ok());
    assert_eq!(restored.committed(0), engine.committed(0));
    assert_eq!(restored.first_sequence(0), engine.first_sequence(0));
    for (stream, next) in [("early", 2), ("s0", streams)] {
        let appended = append(
            &restored,
            encoded(vec![event(stream, 2_000_000 + next, b"")]),
        );
        assert_eq!(appended.unwrap().last_revision, next, "{stream}");
    }
    let report = restored
        .verify(None, true, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(report.findings, vec![]);
    restored.shutdown();

    // Without the runs it must not open as if the streams were new.
    for entry in std::fs::read_dir(copy.path().join("partition-0000/index")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let fenced = open(copy.path());
    let reason = fenced.report().partitions[0].tail.clone().unwrap_err();
    assert!(
        reason.contains("stream heads of the trimmed segments"),
        "{reason}"
    );
    fenced.shutdown();
    engine.shutdown();
}
