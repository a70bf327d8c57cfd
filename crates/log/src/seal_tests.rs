//! Sealing, undisturbed and with a crash at every operation.

use truthdb_io::Storage;
use truthdb_io::sim::{SimFault, SimWorld};

use super::*;
use crate::merkle::ZERO_HASH;
use crate::test_log::{Shape, TestEvent, TestLog, TestSegment};

const SPARSE_BATCHES: Shape = Shape {
    batches: 40,
    events: 1,
    payload: 100,
    noise: true,
};
const FULL_BATCHES: Shape = Shape {
    batches: 12,
    events: 90,
    payload: 640,
    noise: true,
};
const NOISE_BATCHES: Shape = Shape {
    batches: 4,
    events: 20,
    payload: 3000,
    noise: true,
};
const TEXT_BATCHES: Shape = Shape {
    batches: 12,
    events: 90,
    payload: 640,
    noise: false,
};

fn storage(sim: &SimWorld) -> Arc<dyn Storage> {
    sim.storage()
}

fn request<'a>(segment: &'a TestSegment, compression: Compression) -> SealRequest<'a> {
    SealRequest {
        place: segment.place,
        data_end: segment.data_end,
        previous_chain: ZERO_HASH,
        trim: TrimPoint::NONE,
        compression,
        key_check: 77,
        index: &segment.index,
    }
}

/// All events of a sealed segment, by two ways of reading.
fn read_all(storage: &Arc<dyn Storage>, segment: &TestSegment) -> Vec<TestEvent> {
    let (reader, header) = SegmentReader::open(storage.as_ref(), segment.place).unwrap();
    let footer = reader.footer().unwrap().expect("it is sealed");
    assert_eq!(header.base_sequence, segment.index.base_sequence());
    let sparse = reader.sparse_index(&footer).unwrap();
    let mut events = Vec::new();
    let file = Arc::clone(reader.file());
    let scan = SegmentScan::new(storage.as_ref(), file, &header, footer.data_end).unwrap();
    for scanned in scan {
        let batch = scanned.unwrap().batch;
        for event in batch.events() {
            let canonical = event.bytes.to_vec();
            events.push(TestEvent {
                sequence: event.sequence,
                revision: event.revision,
                canonical,
            });
        }
    }
    for entry in sparse {
        let (batches, _) = reader
            .read_batches(entry.offset, footer.data_end, entry.sequence, 1)
            .unwrap();
        assert_eq!(batches[0].first_sequence, entry.sequence);
        assert_eq!(batches[0].timestamp_ns, entry.timestamp_ns);
    }
    events
}

fn seal_new(shape: Shape, compression: Compression) -> (SimWorld, TestSegment, Sealed) {
    let sim = SimWorld::new(1);
    let segment = TestLog::new().segment(shape);
    segment.write(&sim);
    let sealed = seal_segment(&storage(&sim), &request(&segment, compression)).unwrap();
    (sim, segment, sealed)
}

#[test]
fn full_batches_are_sealed_in_place_and_small_ones_are_packed() {
    for (shape, compression, kind) in [
        (FULL_BATCHES, Compression::None, SegmentKind::Active),
        (NOISE_BATCHES, Compression::Zstd, SegmentKind::Active),
        (TEXT_BATCHES, Compression::None, SegmentKind::Active),
        (TEXT_BATCHES, Compression::Zstd, SegmentKind::Packed),
        (SPARSE_BATCHES, Compression::None, SegmentKind::Packed),
        (SPARSE_BATCHES, Compression::Zstd, SegmentKind::Packed),
    ] {
        let (sim, segment, sealed) = seal_new(shape, compression);
        assert_eq!(sealed.footer.kind, kind, "{shape:?} {compression:?}");
        assert_eq!(sealed.footer.last_batch_checksum, segment.last_checksum);
        assert_eq!(
            sealed.bytes_after,
            sim.read_file(&segment.path()).unwrap().len() as u64
        );
        assert_eq!(read_all(&storage(&sim), &segment), segment.events);
        let names = sim.paths();
        assert!(
            names.iter().all(|name| !name.ends_with(".new")),
            "{names:?}"
        );
    }
}

#[test]
fn packing_takes_the_padding_back() {
    let (_, segment, sealed) = seal_new(SPARSE_BATCHES, Compression::None);
    let own: usize = segment
        .events
        .iter()
        .map(|event| event.canonical.len() + 20)
        .sum();
    let overhead = sealed.bytes_after - own as u64;
    // Header, footer, sparse index, the rest of the last block, 16 to 23 bytes a batch.
    assert!(
        overhead < 4 * 4096 + 23 * SPARSE_BATCHES.batches,
        "{overhead}"
    );
    assert_eq!(sealed.footer.event_bytes, own as u64);
}

#[test]
fn root_and_chain_do_not_depend_on_how_a_segment_is_stored() {
    let (_, _, plain) = seal_new(TEXT_BATCHES, Compression::None);
    let (_, _, packed) = seal_new(TEXT_BATCHES, Compression::Zstd);
    assert_ne!(plain.footer.kind, packed.footer.kind);
    assert_eq!(plain.footer.root, packed.footer.root);
    assert_eq!(plain.footer.chain, packed.footer.chain);
}

#[test]
fn sealing_again_changes_nothing_and_brings_back_a_lost_index() {
    let (sim, segment, sealed) = seal_new(SPARSE_BATCHES, Compression::None);
    let index_path = segment_index_path(0, 1);
    let before = (
        sim.read_file(&segment.path()).unwrap(),
        sim.read_file(&index_path).unwrap(),
    );
    sim.remove_file(&index_path).unwrap();
    let again = seal_segment(&storage(&sim), &request(&segment, Compression::Zstd)).unwrap();
    assert_eq!(again.footer, sealed.footer);
    assert_eq!(again.bytes_before, again.bytes_after);
    assert_eq!(
        before,
        (
            sim.read_file(&segment.path()).unwrap(),
            sim.read_file(&index_path).unwrap()
        )
    );
}

#[test]
fn a_segment_without_events_is_sealed_in_place() {
    let (sim, segment, sealed) = seal_new(
        Shape {
            batches: 0,
            ..FULL_BATCHES
        },
        Compression::Zstd,
    );
    assert_eq!(sealed.footer.kind, SegmentKind::Active);
    assert_eq!(
        (sealed.footer.event_count(), sealed.footer.root),
        (0, ZERO_HASH)
    );
    assert_eq!(read_all(&storage(&sim), &segment), []);
}

#[test]
fn without_room_for_a_packed_file_the_segment_is_sealed_in_place() {
    let sim = SimWorld::new(1);
    let segment = TestLog::new().segment(SPARSE_BATCHES);
    segment.write(&sim);
    sim.fail_nth(Some(truthdb_io::sim::SimOp::Write), 0, SimFault::NoSpace);
    let sealed = seal_segment(&storage(&sim), &request(&segment, Compression::None)).unwrap();
    assert_eq!(sealed.footer.kind, SegmentKind::Active);
    assert_eq!(read_all(&storage(&sim), &segment), segment.events);
}

#[test]
fn a_segment_that_is_not_what_the_index_knows_is_left_alone() {
    let sim = SimWorld::new(1);
    let mut log = TestLog::new();
    let segment = log.segment(SPARSE_BATCHES);
    segment.write(&sim);
    let before = sim.read_file(&segment.path()).unwrap();
    let short = SealRequest {
        data_end: segment.data_end - 8192,
        ..request(&segment, Compression::None)
    };
    let error = seal_segment(&storage(&sim), &short).unwrap_err();
    assert!(
        matches!(
            error,
            SealError::Unexpected {
                field: "event count",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(sim.read_file(&segment.path()).unwrap(), before);
}

#[test]
fn damage_is_found_before_anything_is_written() {
    let sim = SimWorld::new(1);
    let segment = TestLog::new().segment(FULL_BATCHES);
    segment.write(&sim);
    sim.corrupt(&segment.path(), 100_000, 4).unwrap();
    let before = sim.read_file(&segment.path()).unwrap();
    let error = seal_segment(&storage(&sim), &request(&segment, Compression::None)).unwrap_err();
    assert!(
        matches!(error, SealError::Read(ReadError::Corrupt(_))),
        "{error}"
    );
    assert_eq!(sim.read_file(&segment.path()).unwrap(), before);
}

/// Power fails at each operation in turn; sealing again after the boot gives the same footer, and
/// every event is there.
fn crash_everywhere(shape: Shape, compression: Compression) {
    let segment = TestLog::new().segment(shape);
    let (_, _, expected) = seal_new(shape, compression);
    let sim = SimWorld::new(7);
    segment.write(&sim);
    let fresh = sim.image();
    let mut crashes = 0;
    for operation in 0.. {
        for seed_step in 0..3u64 {
            sim.restore(&fresh);
            // Another outcome of the same crash: the fate of volatile sectors is drawn anew.
            sim.advance_ns(1 + seed_step);
            sim.fail_nth(None, operation, SimFault::Crash);
            let boots = sim.boots();
            let first = seal_segment(&storage(&sim), &request(&segment, compression));
            if sim.boots() == boots {
                assert_eq!(first.unwrap().footer, expected.footer);
                sim.clear_planned();
                assert!(crashes > 10, "{crashes} crashes");
                return;
            }
            crashes += 1;
            let again = seal_segment(&storage(&sim), &request(&segment, compression));
            let again = again.unwrap_or_else(|error| panic!("crash at {operation}: {error}"));
            assert_eq!(again.footer, expected.footer, "crash at {operation}");
            sim.crash();
            assert_eq!(
                read_all(&storage(&sim), &segment),
                segment.events,
                "crash at {operation}"
            );
            let binding = segment_binding(&again.footer, 77);
            let index = SegmentIndex::open(&storage(&sim), &segment_index_path(0, 1), &binding);
            index.unwrap().check().unwrap();
        }
    }
}

#[test]
fn a_crash_at_any_operation_of_sealing_in_place_loses_nothing() {
    crash_everywhere(FULL_BATCHES, Compression::None);
}

#[test]
fn a_crash_at_any_operation_of_packing_loses_nothing() {
    crash_everywhere(SPARSE_BATCHES, Compression::None);
    crash_everywhere(TEXT_BATCHES, Compression::Zstd);
}

#[test]
fn an_error_at_any_operation_is_reported_and_loses_nothing() {
    for (shape, compression) in [
        (FULL_BATCHES, Compression::None),
        (SPARSE_BATCHES, Compression::Zstd),
    ] {
        let segment = TestLog::new().segment(shape);
        let sim = SimWorld::new(9);
        segment.write(&sim);
        let fresh = sim.image();
        for operation in 0.. {
            sim.restore(&fresh);
            sim.fail_nth(None, operation, SimFault::Error);
            let failed = seal_segment(&storage(&sim), &request(&segment, compression)).is_err();
            if sim.clear_planned() > 0 {
                assert!(!failed);
                break;
            }
            // A failed read ahead is read again piece by piece, and that succeeds.
            sim.kill();
            seal_segment(&storage(&sim), &request(&segment, compression)).unwrap();
            assert_eq!(
                read_all(&storage(&sim), &segment),
                segment.events,
                "error at {operation}"
            );
        }
    }
}

#[test]
fn a_seal_tells_what_it_does_and_gives_the_same_bytes_whatever_its_pace() {
    // More than two MiB, to be packed and to stay in place.
    let of_events = |events, batches| Shape {
        batches,
        events,
        payload: 640,
        noise: true,
    };
    for shape in [of_events(90, 60), of_events(1, 2500)] {
        let mut files = Vec::new();
        for is_gentle in [false, true] {
            let sim = SimWorld::new(1);
            let segment = TestLog::new().segment(shape);
            segment.write(&sim);
            let (mut read, mut written) = (0, 0);
            let request = request(&segment, Compression::None);
            let mut count = |step| match step {
                SealStep::Read => read += 1,
                SealStep::Written => written += 1,
            };
            let sealed =
                seal_segment_beside(&storage(&sim), &request, is_gentle, &mut count).unwrap();
            let is_packed = sealed.footer.kind == SegmentKind::Packed;
            assert_eq!(is_packed, shape.events == 1);
            assert!(read >= 2 && (written >= 1) == is_packed, "{read} {written}");
            files.push(sim.read_file(&segment_path(0, 1)).unwrap());
        }
        assert_eq!(files[0], files[1]);
    }
}
