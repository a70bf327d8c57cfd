//! A whole history verifies; every kind of damage is found, named, and does not hide what lies behind it.

use truthdb_io::sim::SimWorld;

use super::*;
use crate::active_index::EventKeys;
use crate::heads::{HeadRuns, HeadsIdentity, SealedSegments};
use crate::keys::IdHash;
use crate::pack::Compression;
use crate::seal::{SealRequest, seal_segment};
use crate::segment::TrimPoint;
use crate::test_log::{Shape, TestLog};

const SMALL: Shape = Shape {
    batches: 6,
    events: 2,
    payload: 60,
    noise: true,
};
const FULL: Shape = Shape {
    batches: 3,
    events: 20,
    payload: 700,
    noise: true,
};
const LONG: Shape = Shape {
    batches: 40,
    events: 20,
    payload: 700,
    noise: true,
};

/// Two sealed segments (one packed, one in place) and an unsealed one, with indexes and heads.
fn history(second: Shape) -> (SimWorld, TestLog) {
    let sim = SimWorld::new(3);
    let storage: Arc<dyn Storage> = sim.storage();
    let mut log = TestLog::new();
    let (mut footers, mut previous_chain) = (Vec::new(), ZERO_HASH);
    for (i, shape) in [SMALL, second, SMALL].into_iter().enumerate() {
        let segment = log.segment(shape);
        segment.write(&sim);
        if i == 2 {
            break;
        }
        let request = SealRequest {
            place: segment.place,
            data_end: segment.data_end,
            previous_chain,
            trim: TrimPoint::NONE,
            compression: Compression::None,
            key_check: log.keys.seed().check(),
            index: &segment.index,
        };
        let footer = seal_segment(&storage, &request).unwrap().footer;
        previous_chain = footer.chain;
        footers.push(footer);
    }
    let chain_of = |segment: u32| Some(footers[usize::try_from(segment - 1).unwrap()].chain);
    let sealed = SealedSegments {
        first: 1,
        last: 2,
        chain_of: &chain_of,
    };
    let identity = HeadsIdentity {
        database_id: log.manifest.database_id,
        partition: 0,
        key_check: log.keys.seed().check(),
    };
    let (mut runs, _) =
        HeadRuns::open(&storage, "partition-0000/index", identity, &sealed).unwrap();
    for footer in &footers {
        let path = segment_index_path(0, footer.place.segment);
        let binding = segment_binding(footer, identity.key_check);
        runs.add_segment(&SegmentIndex::open(&storage, &path, &binding).unwrap())
            .unwrap();
    }
    (sim, log)
}

const DEEP: bool = true;

fn verify(sim: &SimWorld, log: &TestLog, deep: bool) -> VerifyReport {
    let storage: Arc<dyn Storage> = sim.storage();
    let mut progress = |_: VerifyProgress<'_>| ControlFlow::Continue(());
    verify_database(&storage, &log.manifest, &[], deep, &mut progress)
}

#[test]
fn a_whole_history_has_no_error_and_shows_its_chain() {
    let (sim, log) = history(FULL);
    let report = verify(&sim, &log, DEEP);
    assert_eq!(report.findings, []);
    assert_eq!((report.segments, report.events), (3, log.next_sequence - 1));
    assert_eq!(report.chains.len(), 1);
    assert_eq!((report.chains[0].0, report.chains[0].1), (0, 2));
    let storage: Arc<dyn Storage> = sim.storage();
    let mut go_on = |_: VerifyProgress<'_>| ControlFlow::Continue(());
    let online = verify_open_database(&storage, &log.manifest, &[], false, &|_| 1, &mut go_on);
    assert_eq!((online.findings.len(), online.segments), (0, 2));
}

#[test]
fn a_flipped_bit_anywhere_in_a_sealed_segment_is_found() {
    let (sim, log) = history(FULL);
    for segment in [1, 2] {
        let path = segment_path(0, segment);
        let whole = sim.read_file(&path).unwrap();
        // Each region has one checksum or several: the first batches are flipped densely, the rest
        // is sampled.
        let step = |at: usize| {
            if (4096..4096 + 160).contains(&at) {
                1
            } else {
                131
            }
        };
        let mut at = 0;
        while at < whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            sim.write_file(&path, &damaged).unwrap();
            let report = verify(&sim, &log, false);
            let named = report.findings.iter().any(|finding| finding.path == path);
            assert!(named, "segment {segment} byte {at}: {:?}", report.findings);
            if at + 4096 < whole.len() {
                assert_eq!(
                    report.severity(),
                    Some(Severity::Error),
                    "segment {segment} byte {at}"
                );
            }
            at += step(at);
        }
        sim.write_file(&path, &whole).unwrap();
    }
}

#[test]
fn all_damage_of_a_segment_is_found_not_only_the_first() {
    let (sim, log) = history(LONG);
    let path = segment_path(0, 2);
    for offset in [50_000, 250_000, 500_000] {
        sim.corrupt(&path, offset, 1).unwrap();
    }
    let report = verify(&sim, &log, DEEP);
    let errors: Vec<_> = report
        .findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .collect();
    assert_eq!(errors.len(), 3, "{errors:?}");
    for (error, offset) in errors.iter().zip([50_000, 250_000, 500_000]) {
        assert_eq!(error.path, path);
        let found = error.offset.unwrap();
        assert!((found..found + 20_000).contains(&offset), "{error:?}");
        let (first, last) = (error.first_sequence.unwrap(), error.last_sequence.unwrap());
        assert_eq!(last, first + 19, "the batch is named: {error:?}");
    }
    assert!(
        report.events > log.next_sequence / 2,
        "what is whole is read"
    );
}

#[test]
fn unreadable_blocks_are_found() {
    let (sim, log) = history(LONG);
    sim.make_unreadable(&segment_path(0, 2), 120_000, 4096)
        .unwrap();
    let report = verify(&sim, &log, DEEP);
    assert_eq!(report.severity(), Some(Severity::Error));
    let finding = &report.findings[0];
    assert_eq!(finding.offset, Some(120_000 / 4096 * 4096));
    assert!(finding.what.starts_with("cannot be read"), "{finding:?}");
}

#[test]
fn a_missing_or_swapped_segment_is_found() {
    let (sim, log) = history(FULL);
    let (first, second) = (segment_path(0, 1), segment_path(0, 2));
    let bytes = sim.read_file(&second).unwrap();
    sim.remove_file(&second).unwrap();
    let report = verify(&sim, &log, DEEP);
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.path == second && f.what == "is missing")
    );
    sim.write_file(&second, &sim.read_file(&first).unwrap())
        .unwrap();
    let report = verify(&sim, &log, DEEP);
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.path == second && f.severity == Severity::Error)
    );
    sim.write_file(&second, &bytes).unwrap();
    assert_eq!(verify(&sim, &log, DEEP).findings, []);
}

#[test]
fn a_segment_of_a_rewritten_history_breaks_the_chain() {
    let (sim, log) = history(FULL);
    let (other, _) = history(Shape {
        payload: 699,
        ..FULL
    });
    let path = segment_path(0, 2);
    sim.write_file(&path, &other.read_file(&path).unwrap())
        .unwrap();
    let report = verify(&sim, &log, DEEP);
    let third = segment_path(0, 3);
    let broken = report
        .findings
        .iter()
        .find(|finding| finding.path == third)
        .unwrap();
    assert!(broken.what.contains("previous checksum"), "{broken:?}");
}

#[test]
fn indexes_that_contradict_the_events_are_found_though_their_checksums_hold() {
    let (sim, log) = history(FULL);
    let storage: Arc<dyn Storage> = sim.storage();
    let (reader, _) = SegmentReader::open(storage.as_ref(), log.manifest.place(0, 1)).unwrap();
    let footer = reader.footer().unwrap().unwrap();
    let mut wrong = ActiveIndex::new(1);
    for n in 0..footer.event_count() {
        let (stream, id) = (StreamKey(9), IdHash(n));
        wrong.push(&EventKeys {
            stream,
            revision: n,
            previous_sequence: 0,
            id,
            facets: &[],
        });
    }
    let path = segment_index_path(0, 1);
    let binding = segment_binding(&footer, log.keys.seed().check());
    crate::index::write_index(&storage, &path, &binding, &wrong).unwrap();
    let report = verify(&sim, &log, false);
    assert_eq!(
        report.severity(),
        Some(Severity::Warning),
        "{:?}",
        report.findings
    );
    assert_eq!(report.findings[0].path, path);
    sim.remove_file(&path).unwrap();
    let report = verify(&sim, &log, false);
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].severity, Severity::Warning);
}

#[test]
fn damaged_heads_are_a_warning() {
    let (sim, log) = history(FULL);
    let path = "partition-0000/index/heads-00000002-00000002.run";
    sim.corrupt(path, 4200, 1).unwrap();
    let report = verify(&sim, &log, false);
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert_eq!(
        (
            report.findings[0].path.as_str(),
            report.findings[0].severity
        ),
        (path, Severity::Warning)
    );
}

#[test]
fn a_torn_tail_is_a_note_and_damage_before_a_mark_an_error() {
    let (sim, log) = history(FULL);
    let path = segment_path(0, 3);
    let bytes = sim.read_file(&path).unwrap();
    let mut torn = bytes.clone();
    let end = 4096 * 8;
    assert!(torn[end..].iter().all(|byte| *byte == 0));
    torn[end..end + 9].copy_from_slice(b"torn tail");
    sim.write_file(&path, &torn).unwrap();
    let report = verify(&sim, &log, DEEP);
    assert_eq!(
        report.severity(),
        Some(Severity::Note),
        "{:?}",
        report.findings
    );
    let mut damaged = bytes;
    damaged[4096 * 3 + 200] ^= 1;
    sim.write_file(&path, &damaged).unwrap();
    let report = verify(&sim, &log, DEEP);
    assert_eq!(report.severity(), Some(Severity::Error));
    assert!(report.findings[0].first_sequence.is_some());
}

#[test]
fn a_segment_without_a_footer_before_a_sealed_one_is_an_error() {
    let (sim, log) = history(FULL);
    let path = segment_path(0, 1);
    let length = sim.read_file(&path).unwrap().len() as u64;
    sim.corrupt(&path, length - 100, 1).unwrap();
    let report = verify(&sim, &log, DEEP);
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.path == path && f.severity == Severity::Error)
    );
}

#[test]
fn progress_reaches_the_total_and_can_end_the_work() {
    let (sim, log) = history(LONG);
    let storage: Arc<dyn Storage> = sim.storage();
    let mut seen = Vec::new();
    verify_database(&storage, &log.manifest, &[0], false, &mut |progress| {
        assert!(progress.bytes_done <= progress.bytes_total);
        seen.push(progress.bytes_done);
        ControlFlow::Continue(())
    });
    assert!(seen.is_sorted() && seen.len() >= 2, "{seen:?}");
    let mut stop = |_: VerifyProgress<'_>| ControlFlow::Break(());
    let report = verify_database(&storage, &log.manifest, &[], false, &mut stop);
    assert!(report.interrupted && report.findings.is_empty());
}

#[test]
fn what_is_trimmed_while_it_is_verified_is_no_finding() {
    // Trimmed before it is read, while it is, and after that.
    for (at_start, reads) in [(true, 0), (false, 1), (false, 2)] {
        let (sim, log) = history(LONG);
        let storage: Arc<dyn Storage> = sim.storage();
        let (seen, first) = (std::cell::Cell::new(0), std::cell::Cell::new(1));
        let remove = |segment: u32| {
            first.set(segment + 1);
            sim.remove_file(&segment_path(0, segment)).unwrap();
            sim.remove_file(&segment_index_path(0, segment)).unwrap();
        };
        let first_segment = |_: u32| {
            if at_start && first.get() == 1 {
                remove(1);
            }
            first.get()
        };
        let mut progress = |_: VerifyProgress<'_>| {
            seen.set(seen.get() + 1);
            if seen.get() == reads {
                remove(1);
            }
            ControlFlow::Continue(())
        };
        let report = verify_open_database(
            &storage,
            &log.manifest,
            &[],
            true,
            &first_segment,
            &mut progress,
        );
        assert_eq!(first.get(), 2);
        assert_eq!(report.findings, [], "{at_start} {reads}");
        assert_eq!((report.chains[0].0, report.chains[0].1), (0, 2));
    }
    // Missing without a trim is one.
    let (sim, log) = history(LONG);
    let storage: Arc<dyn Storage> = sim.storage();
    sim.remove_file(&segment_path(0, 2)).unwrap();
    let mut go_on = |_: VerifyProgress<'_>| ControlFlow::Continue(());
    let report = verify_open_database(&storage, &log.manifest, &[], true, &|_| 1, &mut go_on);
    assert_eq!(report.severity(), Some(Severity::Error));
}
