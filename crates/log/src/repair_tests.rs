//! Each choice mends what it is for, says before what it costs, keeps the originals, and survives crashes.

use std::ops::ControlFlow;

use truthdb_io::sim::{SimFault, SimWorld};

use super::*;
use crate::discover::discover_segments;
use crate::merkle::ZERO_HASH;
use crate::pack::Compression;
use crate::seal::{SealRequest, seal_segment};
use crate::test_log::{Shape, TestEvent, TestLog};
use crate::verify::verify_database;
use crate::verify_report::Severity;

const SMALL: Shape = Shape {
    batches: 6,
    events: 2,
    payload: 60,
    noise: true,
};
const FULL: Shape = Shape {
    batches: 8,
    events: 10,
    payload: 700,
    noise: true,
};

struct Fixture {
    sim: SimWorld,
    manifest: Manifest,
    /// Every event that was ever written.
    events: Vec<TestEvent>,
}

/// `sealed` segments, packed and in place by turns, then `unsealed` ones.
fn fixture(sealed: u32, unsealed: u32) -> Fixture {
    let sim = SimWorld::new(5);
    let storage: Arc<dyn Storage> = sim.storage();
    let mut log = TestLog::new();
    let (mut previous_chain, mut events) = (ZERO_HASH, Vec::new());
    for number in 1..=sealed + unsealed {
        let segment = log.segment(if number % 2 == 1 { SMALL } else { FULL });
        segment.write(&sim);
        events.extend(segment.events.iter().cloned());
        if number <= sealed {
            let request = SealRequest {
                place: segment.place,
                data_end: segment.data_end,
                previous_chain,
                trim: crate::segment::TrimPoint::NONE,
                compression: Compression::None,
                key_check: log.keys.seed().check(),
                index: &segment.index,
            };
            previous_chain = seal_segment(&storage, &request).unwrap().footer.chain;
        }
    }
    let manifest = log.manifest;
    repair_steps::rebuild_heads(&storage, &manifest, 0).unwrap();
    Fixture {
        sim,
        manifest,
        events,
    }
}

impl Fixture {
    fn storage(&self) -> Arc<dyn Storage> {
        self.sim.storage()
    }

    fn plan(&self, choice: RepairChoice) -> Result<RepairPlan, RepairError> {
        plan_repair(&self.storage(), &self.manifest, choice, None)
    }

    fn execute(&self, plan: &RepairPlan) -> Result<(), RepairError> {
        execute_repair(&self.storage(), &self.manifest, plan, None)
    }

    /// Opens the partition as a start does, and gives all events that are there.
    fn open(&self) -> Result<Vec<TestEvent>, RecoveryError> {
        let storage = self.storage();
        let found = discover_segments(storage.as_ref(), 0, &self.manifest)?;
        let mut events = Vec::new();
        let mut add = |batch: &crate::batch::StoredBatch| {
            events.extend(batch.events().map(|event| TestEvent {
                sequence: event.sequence,
                revision: event.revision,
                canonical: event.bytes.to_vec(),
            }));
        };
        for (index, info) in found.segments.iter().enumerate() {
            let place = info.place;
            if let Some(footer) = info.footer() {
                let (reader, header) = SegmentReader::open(storage.as_ref(), place).unwrap();
                let file = Arc::clone(reader.file());
                let scan =
                    crate::scan::SegmentScan::new(storage.as_ref(), file, &header, footer.data_end);
                scan.unwrap()
                    .for_each(|scanned| add(&scanned.unwrap().batch));
                continue;
            }
            let next = found.segments.get(index + 1).map(|next| next.place);
            let end = next.map(|place| {
                SegmentEnd::before(&SegmentReader::open(storage.as_ref(), place).unwrap().1)
            });
            let mode = RecoveryMode::Repair;
            recover_segment(storage.as_ref(), place, end, mode, &mut |s| add(&s.batch))?;
        }
        Ok(events)
    }

    fn worst(&self) -> Option<Severity> {
        let mut go_on = |_: crate::verify_report::VerifyProgress<'_>| ControlFlow::Continue(());
        let report = verify_database(&self.storage(), &self.manifest, &[], true, &mut go_on);
        report.severity()
    }

    fn read(&self, path: &str) -> Vec<u8> {
        self.sim.read_file(path).unwrap()
    }
}

fn kept(plan: &RepairPlan) -> Vec<(String, String)> {
    let keep = plan.steps.iter().filter_map(|step| match step {
        RepairStep::Keep { path, copy } => Some((path.clone(), copy.clone())),
        _ => None,
    });
    keep.collect()
}

#[test]
fn a_whole_partition_needs_no_repair() {
    let fixture = fixture(2, 2);
    for choice in [
        RepairChoice::CutTail { partition: 0 },
        RepairChoice::CutSegment {
            partition: 0,
            segment: 1,
        },
        RepairChoice::CutSegment {
            partition: 0,
            segment: 2,
        },
    ] {
        let error = fixture.plan(choice).unwrap_err();
        assert!(
            matches!(error, RepairError::NothingToDo(_)),
            "{choice:?}: {error}"
        );
    }
    assert_eq!(fixture.open().unwrap(), fixture.events);
}

/// Damages the second batch of segment 3, an unsealed one with a successor.
fn damaged_tail() -> Fixture {
    let fixture = fixture(2, 2);
    fixture
        .sim
        .corrupt(&segment_path(0, 3), 4096 + 4096 + 300, 1)
        .unwrap();
    fixture
}

#[test]
fn the_damaged_tail_is_cut_where_the_plan_says() {
    let fixture = damaged_tail();
    assert!(fixture.open().is_err());
    let plan = fixture
        .plan(RepairChoice::CutTail { partition: 0 })
        .unwrap();
    let first = fixture.events.iter().filter(|e| e.sequence <= 92).count() as u64 + 2 + 1;
    assert_eq!(plan.lost_first_sequence, Some(first));
    assert_eq!(
        plan.lost_last_sequence,
        fixture.events.last().map(|event| event.sequence)
    );
    let originals: Vec<Vec<u8>> = kept(&plan)
        .iter()
        .map(|(path, _)| fixture.read(path))
        .collect();
    assert_eq!(originals.len(), 2);
    fixture.execute(&plan).unwrap();
    for ((_, copy), original) in kept(&plan).iter().zip(originals) {
        assert_eq!(fixture.read(copy), original, "{copy}");
    }
    let events = fixture.open().unwrap();
    assert_eq!(events, fixture.events[..events.len()]);
    assert_eq!(events.len() as u64, first - 1);
    assert!(fixture.worst() < Some(Severity::Warning));
    let length = fixture.read(&segment_path(0, 3)).len() as u64;
    assert_eq!(length, fixture.manifest.segment_bytes, "appends can go on");
}

#[test]
fn a_plan_that_no_longer_holds_is_refused() {
    let fixture = damaged_tail();
    let plan = fixture
        .plan(RepairChoice::CutTail { partition: 0 })
        .unwrap();
    fixture
        .sim
        .corrupt(&segment_path(0, 3), 4096 + 300, 1)
        .unwrap();
    let before = fixture.read(&segment_path(0, 3));
    assert!(matches!(
        fixture.execute(&plan),
        Err(RepairError::PlanChanged)
    ));
    assert_eq!(fixture.read(&segment_path(0, 3)), before);
}

#[test]
fn an_unsealed_segment_without_its_first_block_is_removed_whole() {
    let fixture = fixture(2, 1);
    fixture.sim.corrupt(&segment_path(0, 3), 50, 1).unwrap();
    let plan = fixture
        .plan(RepairChoice::CutTail { partition: 0 })
        .unwrap();
    assert_eq!(plan.lost_first_sequence, Some(93));
    fixture.execute(&plan).unwrap();
    assert_eq!(fixture.open().unwrap(), fixture.events[..92]);
}

#[test]
fn a_damaged_sealed_segment_is_cut_and_everything_after_it() {
    for (segment, offset) in [(2u32, 30_000), (3, 4096 + 96 + 200)] {
        let fixture = fixture(4, 1);
        fixture
            .sim
            .corrupt(&segment_path(0, segment), offset, 1)
            .unwrap();
        let plan = fixture
            .plan(RepairChoice::CutSegment {
                partition: 0,
                segment,
            })
            .unwrap();
        let text = plan.to_string();
        assert!(text.starts_with("LOST: the events "), "{text}");
        let left = plan.lost_first_sequence.unwrap() - 1;
        assert!(left > 12 && plan.lost_last_sequence == Some(fixture.events.len() as u64));
        fixture.execute(&plan).unwrap();
        let left = usize::try_from(left).unwrap();
        assert_eq!(fixture.open().unwrap(), fixture.events[..left]);
        // Runs of heads that covered cut segments are set aside when the partition is opened.
        let rebuild = RepairChoice::RebuildIndexes { partition: 0 };
        fixture.execute(&fixture.plan(rebuild).unwrap()).unwrap();
        assert!(
            fixture.worst() < Some(Severity::Warning),
            "{:?}",
            fixture.worst()
        );
    }
}

#[test]
fn a_crash_at_any_operation_of_a_cut_leaves_a_partition_that_can_be_cut_again() {
    for choice in [
        RepairChoice::CutTail { partition: 0 },
        RepairChoice::CutSegment {
            partition: 0,
            segment: 2,
        },
    ] {
        let sealed = matches!(choice, RepairChoice::CutSegment { .. });
        let mut fixture = if sealed {
            fixture(3, 1)
        } else {
            damaged_tail()
        };
        if sealed {
            fixture.sim.corrupt(&segment_path(0, 2), 30_000, 1).unwrap();
        }
        let plan = fixture.plan(choice).unwrap();
        let left = usize::try_from(plan.lost_first_sequence.unwrap() - 1).unwrap();
        let fresh = fixture.sim.image();
        let all = std::mem::take(&mut fixture.events);
        for operation in (0..).step_by(3) {
            fixture.sim.restore(&fresh);
            fixture.sim.fail_nth(None, operation, SimFault::Crash);
            let boots = fixture.sim.boots();
            let done = fixture.execute(&plan).is_ok();
            if fixture.sim.boots() == boots {
                assert!(done && operation > 30);
                fixture.sim.clear_planned();
                break;
            }
            match fixture.plan(choice) {
                Ok(plan) => fixture.execute(&plan).unwrap(),
                Err(RepairError::NothingToDo(_)) => {}
                Err(error) => panic!("crash at {operation}: {error}"),
            }
            let events = fixture
                .open()
                .unwrap_or_else(|e| panic!("crash at {operation}: {e}"));
            assert_eq!(events, all[..left], "crash at {operation}");
        }
    }
}

#[test]
fn a_segment_is_restored_from_a_backup_that_fits() {
    let fixture = fixture(4, 1);
    let backup = SimWorld::new(6);
    let backup_storage: Arc<dyn Storage> = backup.storage();
    let (second, third) = (segment_path(0, 2), segment_path(0, 3));
    for path in [&second, &third] {
        backup.write_file(path, &fixture.read(path)).unwrap();
    }
    let choice = RepairChoice::RestoreSegment {
        partition: 0,
        segment: 2,
    };
    for is_missing in [false, true] {
        match is_missing {
            true => fixture.sim.remove_file(&second).unwrap(),
            false => fixture.sim.corrupt(&second, 30_000, 1).unwrap(),
        }
        assert_eq!(fixture.worst(), Some(Severity::Error));
        let storage = fixture.storage();
        let plan = plan_repair(&storage, &fixture.manifest, choice, Some(&backup_storage)).unwrap();
        assert_eq!((plan.lost_first_sequence, plan.lost_bytes), (None, 0));
        assert_eq!(kept(&plan).is_empty(), is_missing);
        execute_repair(&storage, &fixture.manifest, &plan, Some(&backup_storage)).unwrap();
        assert_eq!(fixture.open().unwrap(), fixture.events);
        assert!(fixture.worst() < Some(Severity::Warning));
    }
    // Another segment under this name, and a damaged copy.
    let misfit = |bytes: Vec<u8>| {
        backup.write_file(&second, &bytes).unwrap();
        let storage = fixture.storage();
        let error = plan_repair(&storage, &fixture.manifest, choice, Some(&backup_storage));
        assert!(
            matches!(error, Err(RepairError::BackupDoesNotFit { .. })),
            "{error:?}"
        );
    };
    misfit(fixture.read(&third));
    let mut damaged = fixture.read(&second);
    damaged[20_000] ^= 1;
    misfit(damaged);
    assert!(matches!(
        fixture.plan(choice),
        Err(RepairError::Impossible(_))
    ));
}

#[test]
fn indexes_are_made_anew_from_the_segments() {
    let fixture = fixture(5, 1);
    let paths: Vec<String> = fixture
        .sim
        .paths()
        .into_iter()
        .filter(|path| path.contains("/index/"))
        .collect();
    let before: Vec<Vec<u8>> = paths.iter().map(|path| fixture.read(path)).collect();
    for path in &paths {
        if path.ends_with(".idx") || path.ends_with(".run") {
            fixture.sim.write_file(path, b"rubbish").unwrap();
        }
    }
    let plan = fixture
        .plan(RepairChoice::RebuildIndexes { partition: 0 })
        .unwrap();
    assert_eq!(plan.lost_first_sequence, None);
    fixture.execute(&plan).unwrap();
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(
            fixture.read(path),
            before,
            "{path}: links to older segments included"
        );
    }
    assert!(fixture.worst() < Some(Severity::Warning));
}

#[test]
fn plans_are_printed_for_people() {
    let fixture = damaged_tail();
    let cut_tail = fixture
        .plan(RepairChoice::CutTail { partition: 0 })
        .unwrap();
    let rebuild = fixture
        .plan(RepairChoice::RebuildIndexes { partition: 0 })
        .unwrap();
    fixture.sim.corrupt(&segment_path(0, 2), 30_000, 1).unwrap();
    let cut = fixture
        .plan(RepairChoice::CutSegment {
            partition: 0,
            segment: 2,
        })
        .unwrap();
    crate::test_golden::check("repair-plans.txt", &format!("{cut_tail}\n{rebuild}\n{cut}"));
}
