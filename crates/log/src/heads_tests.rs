//! Runs of stream heads against a map, through merges, left-overs of crashes, and damage.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::active_index::{ActiveIndex, EventKeys};
use crate::index::{SegmentBinding, write_index};
use crate::keys::IdHash;
use crate::test_storage::MemoryStorage;

const DIR: &str = "partition-0000/index";
const IDENTITY_OF_TEST: HeadsIdentity = HeadsIdentity {
    database_id: [9; 16],
    partition: 0,
    key_check: 5,
};

fn chain(segment: u32) -> [u8; 32] {
    [u8::try_from(segment % 251).unwrap(); 32]
}

fn key(n: u64) -> StreamKey {
    let half = |seed| u128::from(xxh64(&n.to_le_bytes(), seed));
    StreamKey(half(3) << 64 | half(4))
}

/// A history of segments with 10 events each, and what its heads are.
struct History {
    files: Arc<MemoryStorage>,
    storage: Arc<dyn Storage>,
    heads: BTreeMap<StreamKey, StreamHead>,
    next_sequence: u64,
    segments: u32,
}

impl History {
    fn new() -> History {
        let (files, storage) = MemoryStorage::shared();
        History {
            files,
            storage,
            heads: BTreeMap::new(),
            next_sequence: 1,
            segments: 0,
        }
    }

    /// Writes the index of the next segment: some streams of its own, some that all segments share.
    fn seal(&mut self) -> SegmentIndex {
        self.segments += 1;
        let mut active = ActiveIndex::new(self.next_sequence);
        for n in 0..10u64 {
            let stream = if n < 4 {
                key(n)
            } else {
                key(u64::from(self.segments) * 100 + n)
            };
            let head = self.heads.get(&stream).copied();
            let revision = head.map_or(0, |head| head.next_revision);
            let previous_sequence = head.map_or(0, |head| head.last_sequence);
            let id = IdHash(n);
            active.push(&EventKeys {
                stream,
                revision,
                previous_sequence,
                id,
                facets: &[],
            });
            let head = StreamHead {
                next_revision: revision + 1,
                last_sequence: self.next_sequence,
            };
            self.heads.insert(stream, head);
            self.next_sequence += 1;
        }
        let binding = self.binding(self.segments);
        let path = format!("{DIR}/segment-{:08}.idx", self.segments);
        write_index(&self.storage, &path, &binding, &active).unwrap();
        SegmentIndex::open(&self.storage, &path, &binding).unwrap()
    }

    fn binding(&self, segment: u32) -> SegmentBinding {
        SegmentBinding {
            database_id: IDENTITY_OF_TEST.database_id,
            partition: 0,
            segment,
            base_sequence: u64::from(segment - 1) * 10 + 1,
            event_count: 10,
            key_check: IDENTITY_OF_TEST.key_check,
            chain: chain(segment),
        }
    }

    fn index(&self, segment: u32) -> SegmentIndex {
        let path = format!("{DIR}/segment-{segment:08}.idx");
        SegmentIndex::open(&self.storage, &path, &self.binding(segment)).unwrap()
    }

    fn open_from(&self, first: u32) -> Result<(HeadRuns, Vec<RejectedRun>), HeadsError> {
        let chain_of = |segment: u32| (segment + 1 >= first).then(|| chain(segment));
        let sealed = SealedSegments {
            first,
            last: self.segments,
            chain_of: &chain_of,
        };
        HeadRuns::open(&self.storage, DIR, IDENTITY_OF_TEST, &sealed)
    }

    fn open(&self) -> (HeadRuns, Vec<RejectedRun>) {
        self.open_from(1).unwrap()
    }

    fn with_runs(segments: u32, merge: bool) -> (History, HeadRuns) {
        let mut history = History::new();
        let (mut runs, _) = history.open();
        for _ in 0..segments {
            let index = history.seal();
            runs.add_segment(&index).unwrap();
            while merge && runs.merge_once().unwrap() {}
        }
        (history, runs)
    }

    fn assert_heads(&self, runs: &HeadRuns) {
        for (key, head) in &self.heads {
            assert_eq!(runs.get(*key).unwrap(), Some(*head));
        }
        assert_eq!(runs.get(key(77_777_777)).unwrap(), None);
    }

    fn run_names(&self) -> Vec<String> {
        let names = self.files.names().into_iter();
        names
            .filter_map(|n| {
                n.rsplit('/')
                    .next()
                    .filter(|n| n.starts_with("heads"))
                    .map(Into::into)
            })
            .collect()
    }
}

fn segments_of(runs: &HeadRuns) -> Vec<(u32, u32)> {
    runs.runs()
        .iter()
        .map(|run| (*run.segments().start(), *run.segments().end()))
        .collect()
}

#[test]
fn heads_are_right_after_any_number_of_segments_and_merges() {
    let mut history = History::new();
    let (mut runs, _) = history.open();
    for segments in 1..=70u32 {
        let index = history.seal();
        runs.add_segment(&index).unwrap();
        while runs.merge_once().unwrap() {}
        assert!(
            runs.runs().len() <= 3 * (1 + segments.ilog(4) as usize),
            "{:?}",
            segments_of(&runs)
        );
        history.assert_heads(&runs);
        let (reopened, rejected) = history.open();
        assert!(rejected.is_empty() && reopened.missing().is_empty());
        assert_eq!(segments_of(&reopened), segments_of(&runs));
        history.assert_heads(&reopened);
    }
    assert_eq!(segments_of(&runs), [(1, 64), (65, 68), (69, 69), (70, 70)]);
    assert_eq!(history.run_names().len(), 4, "inputs of merges are removed");
}

#[test]
fn a_reader_keeps_its_runs_while_they_are_merged() {
    let (history, mut runs) = History::with_runs(4, false);
    let before = runs.clone();
    assert!(runs.merge_once().unwrap());
    history.assert_heads(&before);
    history.assert_heads(&runs);
}

#[test]
fn left_overs_of_a_crash_in_a_merge_are_removed() {
    // After the rename, before the inputs are removed.
    let (history, mut runs) = History::with_runs(4, false);
    let inputs: Vec<_> = (1..=4)
        .map(|n| {
            (
                n,
                history.files.get(&format!("{DIR}/{}", run_file_name(n, n))),
            )
        })
        .collect();
    runs.merge_once().unwrap();
    for removed in 0..4 {
        for (n, bytes) in inputs.iter().skip(removed) {
            history
                .files
                .put(&format!("{DIR}/{}", run_file_name(*n, *n)), bytes.clone());
        }
        let (reopened, rejected) = history.open();
        assert!(rejected.is_empty());
        assert_eq!(segments_of(&reopened), [(1, 4)]);
        assert_eq!(history.run_names(), [run_file_name(1, 4)]);
        history.assert_heads(&reopened);
    }
    // Before the rename.
    let (history, _) = History::with_runs(4, false);
    history
        .files
        .put(&format!("{DIR}/{}.new", run_file_name(1, 4)), vec![1, 2, 3]);
    let (reopened, _) = history.open();
    assert_eq!(history.run_names().len(), 4);
    history.assert_heads(&reopened);
}

#[test]
fn missing_and_foreign_runs_are_gaps_to_be_filled() {
    let (history, _) = History::with_runs(7, true);
    history
        .storage
        .durable_remove(&format!("{DIR}/{}", run_file_name(6, 6)))
        .unwrap();
    let foreign = history.files.get(&format!("{DIR}/{}", run_file_name(7, 7)));
    history
        .files
        .put(&format!("{DIR}/{}", run_file_name(5, 5)), foreign.clone());
    history
        .files
        .put(&format!("{DIR}/{}", run_file_name(8, 8)), foreign);
    let (mut runs, rejected) = history.open();
    assert_eq!(
        rejected.iter().map(|r| r.segments).collect::<Vec<_>>(),
        [(5, 5), (8, 8)]
    );
    assert_eq!(runs.missing(), [5..=6]);
    assert!(matches!(
        runs.get(key(1)),
        Err(HeadsError::Missing {
            first: 5,
            last: 6,
            ..
        })
    ));
    for gap in runs.missing() {
        gap.for_each(|segment| runs.add_segment(&history.index(segment)).unwrap());
    }
    history.assert_heads(&runs);
    assert_eq!(
        segments_of(&history.open().0),
        [(1, 4), (5, 5), (6, 6), (7, 7)]
    );
}

#[test]
fn a_damaged_wide_run_gives_way_to_its_inputs_or_is_rebuilt() {
    let (history, _) = History::with_runs(5, true);
    let wide = format!("{DIR}/{}", run_file_name(1, 4));
    let mut bytes = history.files.get(&wide);
    bytes[100] ^= 1;
    history.files.put(&wide, bytes);
    let (mut runs, rejected) = history.open();
    assert_eq!(rejected[0].segments, (1, 4));
    assert_eq!(runs.missing(), [1..=4]);
    (1..=4).for_each(|segment| runs.add_segment(&history.index(segment)).unwrap());
    assert!(runs.merge_once().unwrap());
    history.assert_heads(&runs);
}

#[test]
fn heads_of_trimmed_segments_are_kept_and_their_loss_refuses_to_open() {
    let (history, _) = History::with_runs(6, true);
    let (runs, _) = history.open_from(6).unwrap();
    history.assert_heads(&runs);
    let wide = format!("{DIR}/{}", run_file_name(1, 4));
    let mut bytes = history.files.get(&wide);
    bytes[20] ^= 1;
    history.files.put(&wide, bytes);
    let error = history.open_from(6).unwrap_err();
    assert!(
        matches!(
            error,
            HeadsError::Lost {
                first: 1,
                last: 4,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        history.run_names().contains(&run_file_name(1, 4)),
        "what may be rescued is not removed"
    );
}

#[test]
fn a_flipped_bit_anywhere_in_a_run_is_noticed_or_without_effect() {
    let (history, runs) = History::with_runs(16, true);
    assert_eq!(segments_of(&runs), [(1, 16)]);
    let path = format!("{DIR}/{}", run_file_name(1, 16));
    let bytes = history.files.get(&path);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        history.files.put(&path, damaged);
        let open = HeadRun::open(
            &history.storage,
            DIR,
            &IDENTITY_OF_TEST,
            (1, 16),
            &chain(16),
        );
        let checked = open.and_then(|run| {
            for (key, head) in &history.heads {
                if let Ok(found) = run.get(*key) {
                    assert_eq!(found, Some(*head), "byte {at}");
                }
            }
            run.check()
        });
        assert!(checked.unwrap_err().is_rebuildable(), "byte {at}");
    }
    for len in (0..bytes.len()).step_by(512) {
        history.files.put(&path, bytes[..len].to_vec());
        let open = HeadRun::open(
            &history.storage,
            DIR,
            &IDENTITY_OF_TEST,
            (1, 16),
            &chain(16),
        );
        assert!(open.unwrap_err().is_rebuildable(), "{len} bytes");
    }
}

#[test]
fn the_filter_lets_few_strangers_through() {
    let mut bloom = Bloom::new(20_000);
    (0..20_000).for_each(|n| bloom.insert(key(n * 2)));
    assert!((0..20_000).all(|n| bloom.may_contain(key(n * 2))));
    let strangers = (0..20_000)
        .filter(|n| bloom.may_contain(key(n * 2 + 1)))
        .count();
    assert!(
        strangers < 20_000 * 12 / 1000,
        "{strangers} of 20000 false positives"
    );
}

#[test]
fn run_names_are_exact() {
    assert_eq!(
        parse_run_file_name("heads-00000001-00000008.run"),
        Some((1, 8))
    );
    for name in [
        "heads-1-8.run",
        "heads-00000008-00000001.run",
        "heads-00000000-00000001.run",
        "heads-00000001-00000008.run.new",
    ] {
        assert_eq!(parse_run_file_name(name), None, "{name}");
    }
}

#[test]
fn the_format_is_the_golden_one() {
    let (history, _) = History::with_runs(4, true);
    let bytes = history.files.get(&format!("{DIR}/{}", run_file_name(1, 4)));
    crate::test_golden::check("stream-heads-1.hex", &crate::test_golden::hex(&bytes));
}
