//! The index on disk answers as the one in memory, and damage never makes it answer otherwise.

use std::sync::Arc;

use proptest::prelude::*;
use truthdb_io::Storage;

use super::*;
use crate::active_index::EventKeys;
use crate::test_storage::MemoryStorage;

const PATH: &str = "partition-0000/index/segment-00000004.idx";
const BASE: u64 = 501;

fn binding(events: u64) -> SegmentBinding {
    SegmentBinding {
        database_id: *b"0123456789abcdef",
        partition: 3,
        segment: 4,
        base_sequence: BASE,
        event_count: events,
        key_check: 99,
        chain: [0xcc; 32],
    }
}

/// A spread of keys like that of hashes, and equal in every test run.
fn spread(n: u64) -> u64 {
    xxh64(&n.to_le_bytes(), 1)
}

fn stream_key(n: u64) -> StreamKey {
    StreamKey(u128::from(spread(n)) << 64 | u128::from(spread(n + 1)))
}

fn facet_key(n: u64) -> FacetKey {
    FacetKey(spread(n ^ 0xfff))
}

fn active(events: &[(u64, Vec<u64>)]) -> ActiveIndex {
    let mut index = ActiveIndex::new(BASE);
    let mut seen = std::collections::HashMap::new();
    for (stream, facets) in events {
        let revision = seen.entry(*stream).or_insert(stream * 10);
        let facets: Vec<FacetKey> = facets.iter().copied().map(facet_key).collect();
        index.push(&EventKeys {
            stream: stream_key(*stream),
            revision: *revision,
            previous_sequence: stream % 400,
            id: IdHash(spread(*revision) ^ stream),
            facets: &facets,
        });
        *revision += 1;
    }
    index
}

fn written(index: &ActiveIndex) -> (Arc<MemoryStorage>, Arc<dyn Storage>) {
    let (memory, storage) = MemoryStorage::shared();
    write_index(&storage, PATH, &binding(index.event_count()), index).unwrap();
    assert_eq!(memory.names(), [PATH], "no temporary file is left");
    (memory, storage)
}

fn open(storage: &Arc<dyn Storage>, index: &ActiveIndex) -> Result<SegmentIndex, IndexError> {
    SegmentIndex::open(storage, PATH, &binding(index.event_count()))
}

fn forward(index: &SegmentIndex, key: u64, from: u64, max: usize) -> Result<Vec<u64>, IndexError> {
    let mut out = Vec::new();
    index
        .stream_forward(stream_key(key), from, max, &mut out)
        .map(|()| out)
}

fn facets(index: &SegmentIndex, key: u64, after: u64, max: usize) -> Result<Vec<u64>, IndexError> {
    let mut out = Vec::new();
    index
        .facet_after(facet_key(key), after, max, &mut out)
        .map(|()| out)
}

fn assert_equal(disk: &SegmentIndex, memory: &ActiveIndex, key: u64, place: u64, max: usize) {
    assert_eq!(
        disk.stream(stream_key(key)).unwrap(),
        memory.stream(stream_key(key))
    );
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    let revision = key * 10 + place;
    disk.stream_forward(stream_key(key), revision, max, &mut found)
        .unwrap();
    memory.stream_forward(stream_key(key), revision, u64::MAX, max, &mut expected);
    disk.stream_backward(stream_key(key), revision, max, &mut found)
        .unwrap();
    memory.stream_backward(stream_key(key), revision, u64::MAX, max, &mut expected);
    disk.facet_after(facet_key(key), BASE - 2 + place, max, &mut found)
        .unwrap();
    memory.facet_after(
        facet_key(key),
        BASE - 2 + place,
        u64::MAX,
        max,
        &mut expected,
    );
    assert_eq!(found, expected);
    let last = memory.facet_last(facet_key(key), u64::MAX);
    assert_eq!(disk.facet_last(facet_key(key)).unwrap(), last);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_index_on_disk_answers_as_the_one_in_memory(
        events in prop::collection::vec((0u64..40, prop::collection::vec(0u64..6, 0..3)), 0..2500),
        queries in prop::collection::vec((0u64..42, 0u64..2600, 0usize..60), 30),
    ) {
        let memory = active(&events);
        let (_, storage) = written(&memory);
        let disk = open(&storage, &memory).unwrap();
        disk.check().unwrap();
        for (key, place, max) in queries {
            assert_equal(&disk, &memory, key, place, max);
        }
    }
}

#[test]
fn one_hot_stream_is_read_from_any_place_through_its_skips() {
    let events: Vec<_> = (0..20_000)
        .map(|i| (u64::from(i % 97 == 0), vec![i % 3]))
        .collect();
    let memory = active(&events);
    let (_, storage) = written(&memory);
    let disk = open(&storage, &memory).unwrap();
    disk.check().unwrap();
    for place in (0..20_000)
        .step_by(333)
        .chain([510, 511, 512, 513, 1023, 1024, 1025])
    {
        for key in 0..3 {
            assert_equal(&disk, &memory, key, place, 5);
        }
    }
    assert_equal(&disk, &memory, 0, 0, usize::MAX);
}

#[test]
fn many_streams_are_found_with_bounded_memory() {
    let events: Vec<_> = (0..400_000).map(|i| (i, vec![i % 5])).collect();
    let memory = active(&events);
    let (_, storage) = written(&memory);
    let disk = open(&storage, &memory).unwrap();
    assert_eq!(disk.stream_count(), 400_000);
    assert!(
        disk.memory_bytes() <= 33 * 1024,
        "{} bytes",
        disk.memory_bytes()
    );
    for key in (0..400_000).step_by(997) {
        assert_eq!(
            disk.stream(stream_key(key)).unwrap(),
            memory.stream(stream_key(key))
        );
        assert_eq!(disk.stream(stream_key(key + 1_000_000)).unwrap(), None);
    }
    let mut streams = disk.streams();
    let mut count = 0;
    while let Some((key, extent)) = streams.next_stream().unwrap() {
        count += 1;
        if count % 1000 == 0 {
            assert_eq!(Some(extent), memory.stream(key));
        }
    }
    assert_eq!(count, 400_000);
}

#[test]
fn keys_that_share_their_upper_half_over_several_pages_are_found() {
    let mut memory = ActiveIndex::new(BASE);
    let key = |n: u64| StreamKey(u128::from(n / 300) << 64 | u128::from(n));
    for n in 0..1200 {
        let (stream, id) = (key(n), IdHash(n));
        memory.push(&EventKeys {
            stream,
            revision: 0,
            previous_sequence: 0,
            id,
            facets: &[],
        });
    }
    let (_, storage) = written(&memory);
    let disk = open(&storage, &memory).unwrap();
    for n in 0..1200 {
        assert_eq!(disk.stream(key(n)).unwrap(), memory.stream(key(n)), "{n}");
    }
    assert_eq!(disk.stream(StreamKey(300)).unwrap(), None);
}

#[test]
fn ids_are_read_in_sequence_order_from_any_place() {
    let events: Vec<_> = (0..1300).map(|i| (i % 7, vec![])).collect();
    let memory = active(&events);
    let (_, storage) = written(&memory);
    let disk = open(&storage, &memory).unwrap();
    for from in [
        0,
        BASE,
        BASE + 510,
        BASE + 511,
        BASE + 1299,
        BASE + 1300,
        u64::MAX,
    ] {
        let mut next = from.max(BASE);
        disk.visit_ids(from, |sequence, id| {
            assert_eq!(sequence, next);
            assert_eq!(Some(id), memory.id(sequence));
            next += 1;
        })
        .unwrap();
        assert_eq!(next, from.max(BASE + 1300));
    }
}

#[test]
fn an_index_of_another_history_is_refused_by_the_field_that_differs() {
    let memory = active(&[(1, vec![2])]);
    let (_, storage) = written(&memory);
    let right = binding(1);
    let wrong = [
        (
            "database id",
            SegmentBinding {
                database_id: [0; 16],
                ..right.clone()
            },
        ),
        (
            "partition",
            SegmentBinding {
                partition: 0,
                ..right.clone()
            },
        ),
        (
            "segment",
            SegmentBinding {
                segment: 9,
                ..right.clone()
            },
        ),
        (
            "base sequence",
            SegmentBinding {
                base_sequence: 1,
                ..right.clone()
            },
        ),
        (
            "event count",
            SegmentBinding {
                event_count: 2,
                ..right.clone()
            },
        ),
        (
            "key seed",
            SegmentBinding {
                key_check: 1,
                ..right.clone()
            },
        ),
        (
            "chain hash",
            SegmentBinding {
                chain: [0; 32],
                ..right
            },
        ),
    ];
    for (expected, binding) in wrong {
        let error = SegmentIndex::open(&storage, PATH, &binding).unwrap_err();
        assert!(error.is_rebuildable());
        assert!(
            matches!(error, IndexError::Foreign { field, .. } if field == expected),
            "{error}"
        );
    }
}

#[test]
fn a_newer_format_is_named_and_not_rebuilt() {
    let memory = active(&[(1, vec![2])]);
    let (files, storage) = written(&memory);
    let mut bytes = files.get(PATH);
    put_u16(&mut bytes, 12, INDEX_VERSION + 1);
    let checksum = xxh64(&bytes[8..4096], 0);
    put_u64(&mut bytes, 0, checksum);
    files.put(PATH, bytes);
    let error = open(&storage, &memory).unwrap_err();
    assert!(!error.is_rebuildable());
    assert!(
        matches!(
            error,
            IndexError::Newer {
                version: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

/// Everything that a query can ask of a small index; only the right answer or an error may come.
fn all_answers(disk: &SegmentIndex) -> Result<Vec<Vec<u64>>, IndexError> {
    let mut answers = Vec::new();
    for key in 0..12 {
        answers.push(forward(disk, key, 0, usize::MAX)?);
        answers.push(facets(disk, key, 0, usize::MAX)?);
        let extent = disk.stream(stream_key(key))?;
        let numbers = extent.map(|e| vec![e.first_revision, e.previous_sequence, e.last_sequence]);
        answers.push(numbers.unwrap_or_default());
        answers.push(disk.facet_last(facet_key(key))?.into_iter().collect());
    }
    let mut ids = Vec::new();
    disk.visit_ids(0, |_, id| ids.push(id.0))?;
    answers.push(ids);
    Ok(answers)
}

fn small() -> ActiveIndex {
    active(
        &(0..900)
            .map(|i| (i % 10, vec![i % 4, 5 + i % 2]))
            .collect::<Vec<_>>(),
    )
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_or_without_effect() {
    let memory = small();
    let (files, storage) = written(&memory);
    let right = all_answers(&open(&storage, &memory).unwrap()).unwrap();
    let bytes = files.get(PATH);
    let mut noticed = 0;
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        files.put(PATH, damaged);
        match open(&storage, &memory).and_then(|disk| all_answers(&disk)) {
            Ok(answers) => assert_eq!(answers, right, "byte {at}"),
            Err(error) => {
                assert!(error.is_rebuildable(), "byte {at}: {error}");
                noticed += 1;
            }
        }
    }
    assert_eq!(
        noticed,
        bytes.len(),
        "each page is covered by a checksum, and each was read"
    );
}

#[test]
fn a_file_cut_anywhere_is_noticed() {
    let memory = small();
    let (files, storage) = written(&memory);
    let bytes = files.get(PATH);
    for len in (0..bytes.len())
        .step_by(512)
        .chain([1, 4095, 4097, bytes.len() - 1])
    {
        files.put(PATH, bytes[..len].to_vec());
        let error = open(&storage, &memory).unwrap_err();
        assert!(error.is_rebuildable(), "{len} bytes: {error}");
    }
}

#[test]
fn pages_in_each_others_places_are_noticed() {
    let memory = small();
    let (files, storage) = written(&memory);
    let bytes = files.get(PATH);
    let pages = bytes.len() / 4096;
    for a in 1..pages {
        for b in a + 1..pages {
            let mut swapped = bytes.clone();
            swapped[a * 4096..][..4096].copy_from_slice(&bytes[b * 4096..][..4096]);
            swapped[b * 4096..][..4096].copy_from_slice(&bytes[a * 4096..][..4096]);
            files.put(PATH, swapped);
            let result = open(&storage, &memory).and_then(|disk| all_answers(&disk));
            assert!(result.is_err(), "pages {a} and {b}");
        }
    }
}

#[test]
fn the_format_is_the_golden_one() {
    let memory = active(&(0..20).map(|i| (i % 3, vec![i % 2])).collect::<Vec<_>>());
    let (files, _) = written(&memory);
    crate::test_golden::check(
        "segment-index-1.hex",
        &crate::test_golden::hex(&files.get(PATH)),
    );
}
