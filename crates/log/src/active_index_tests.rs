//! The index against a model that keeps every event in a list.

use proptest::prelude::*;

use super::*;

const BASE: u64 = 1000;

#[derive(Debug, Clone)]
struct ModelEvent {
    stream: u8,
    revision: u64,
    facets: Vec<u8>,
}

fn stream_key(n: u8) -> StreamKey {
    StreamKey(u128::from(n) << 64 | 7)
}

fn facet_key(n: u8) -> FacetKey {
    FacetKey(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Streams begin at revision 5 here, as if five events of each lay in earlier segments.
const FIRST_REVISION: u64 = 5;

fn build(events: &[(u8, Vec<u8>)]) -> (ActiveIndex, Vec<ModelEvent>) {
    let mut index = ActiveIndex::new(77);
    // What a reset leaves behind must not show.
    index.push(&keys(3, 0, &[facet_key(1)]));
    index.push_batch(4096, 1);
    index.reset(BASE);
    let mut model: Vec<ModelEvent> = Vec::new();
    for (i, (stream, facets)) in events.iter().enumerate() {
        let seen = model.iter().filter(|e| e.stream == *stream).count() as u64;
        let revision = FIRST_REVISION + seen;
        let facet_keys: Vec<FacetKey> = facets.iter().copied().map(facet_key).collect();
        let sequence = index.push(&keys(*stream, revision, &facet_keys));
        assert_eq!(sequence, BASE + i as u64);
        model.push(ModelEvent {
            stream: *stream,
            revision,
            facets: facets.clone(),
        });
    }
    (index, model)
}

fn keys(stream: u8, revision: u64, facets: &[FacetKey]) -> EventKeys<'_> {
    EventKeys {
        stream: stream_key(stream),
        revision,
        previous_sequence: u64::from(stream),
        id: IdHash(revision),
        facets,
    }
}

fn sequences(model: &[ModelEvent], last: u64, keep: impl Fn(u64, &ModelEvent) -> bool) -> Vec<u64> {
    (BASE..)
        .zip(model)
        .filter(|(s, e)| *s <= last && keep(*s, e))
        .map(|(s, _)| s)
        .collect()
}

proptest! {
    #[test]
    fn answers_are_those_of_a_plain_list(
        events in prop::collection::vec((0u8..4, prop::collection::vec(0u8..5, 0..3)), 0..300),
        key in 0u8..5,
        revision in 0u64..120,
        after in BASE - 2..BASE + 320,
        last in BASE - 2..BASE + 320,
        max in 0usize..40,
    ) {
        let (index, model) = build(&events);
        let mut out = Vec::new();
        index.stream_forward(stream_key(key), revision, last, max, &mut out);
        let mut expected = sequences(&model, last, |_, e| e.stream == key && e.revision >= revision);
        expected.truncate(max);
        prop_assert_eq!(&out, &expected);

        out.clear();
        index.stream_backward(stream_key(key), revision, last, max, &mut out);
        let mut expected = sequences(&model, last, |_, e| e.stream == key && e.revision <= revision);
        expected.reverse();
        expected.truncate(max);
        prop_assert_eq!(&out, &expected);

        out.clear();
        index.facet_after(facet_key(key), after, last, max, &mut out);
        let all = sequences(&model, last, |_, e| e.facets.contains(&key));
        let expected: Vec<u64> = all.iter().copied().filter(|s| *s > after).take(max).collect();
        prop_assert_eq!(&out, &expected);
        prop_assert_eq!(index.facet_last(facet_key(key), last), all.last().copied());

        let of_stream = sequences(&model, last, |_, e| e.stream == key);
        let extent = index.stream_at(stream_key(key), last);
        prop_assert_eq!(extent.is_some(), !of_stream.is_empty());
        if let Some(extent) = extent {
            prop_assert_eq!(extent, StreamExtent {
                first_revision: FIRST_REVISION,
                next_revision: FIRST_REVISION + of_stream.len() as u64,
                previous_sequence: u64::from(key),
                first_sequence: of_stream[0],
                last_sequence: of_stream[of_stream.len() - 1],
            });
        }
    }
}

#[test]
fn any_ancestor_is_reached_in_a_logarithmic_number_of_steps() {
    let mut index = ActiveIndex::new(1);
    for revision in 0..100_000 {
        index.push(&EventKeys {
            previous_sequence: 0,
            ..keys(1, revision, &[facet_key(1)])
        });
    }
    // Quadratic walking would take minutes here.
    let mut out = Vec::new();
    for revision in 0..100_000 {
        out.clear();
        index.stream_forward(stream_key(1), revision, u64::MAX, 1, &mut out);
        assert_eq!(out, [revision + 1]);
        out.clear();
        index.facet_after(facet_key(1), revision, u64::MAX, 1, &mut out);
        assert_eq!(out, [revision + 1]);
    }
}

#[test]
fn reset_keeps_the_memory_and_nothing_else() {
    let events: Vec<_> = (0..5000u32)
        .map(|i| ((i % 200) as u8, vec![(i % 7) as u8]))
        .collect();
    let (mut index, _) = build(&events);
    let before = index.memory_bytes();
    index.reset(5);
    assert_eq!(
        (
            index.event_count(),
            index.stream_count(),
            index.sparse().len()
        ),
        (0, 0, 0)
    );
    assert_eq!(index.stream_head(stream_key(1)), None);
    assert_eq!(index.facet_last(facet_key(1), u64::MAX), None);
    let mut revisions = [0u64; 200];
    for (stream, facets) in &events {
        let revision = &mut revisions[usize::from(*stream)];
        let facets: Vec<FacetKey> = facets.iter().copied().map(facet_key).collect();
        index.push(&EventKeys {
            previous_sequence: 0,
            ..keys(*stream, *revision, &facets)
        });
        *revision += 1;
    }
    assert_eq!(
        index.memory_bytes(),
        before,
        "the same load needs no new memory"
    );
}

#[test]
fn memory_is_what_the_documentation_says() {
    let mut index = ActiveIndex::new(1);
    let events = 1 << 17;
    let facets: Vec<FacetKey> = (0..4).map(facet_key).collect();
    for i in 0..events {
        let stream = StreamKey(i << 64 | i);
        let keys = EventKeys {
            previous_sequence: 0,
            stream,
            revision: 0,
            id: IdHash(1),
            facets: &facets,
        };
        index.push(&keys);
    }
    let per_event = index.memory_bytes() as f64 / events as f64;
    assert!(
        per_event <= f64::from(24 + 4 * 16 + 64) + 1.0,
        "{per_event}"
    );
}

#[test]
fn a_type_and_a_tag_of_one_key_are_posted_once() {
    let mut index = ActiveIndex::new(1);
    index.push(&EventKeys {
        previous_sequence: 0,
        ..keys(1, 0, &[facet_key(1), facet_key(1)])
    });
    let mut out = Vec::new();
    index.facet_after(facet_key(1), 0, u64::MAX, 10, &mut out);
    assert_eq!(out, [1]);
}

#[test]
fn sparse_entries_are_the_first_batch_at_or_after_each_64_kib() {
    let mut index = ActiveIndex::new(10);
    let mut revision = 0;
    let mut expected = Vec::new();
    let mut window = None;
    for batch in 0..100u64 {
        let offset = 4096 + batch * 12_288;
        if window != Some(offset / SPARSE_INTERVAL_BYTES) {
            window = Some(offset / SPARSE_INTERVAL_BYTES);
            expected.push(SparseEntry {
                sequence: 10 + batch * 3,
                offset,
                timestamp_ns: batch / 2,
            });
        }
        index.push_batch(offset, batch / 2);
        for _ in 0..3 {
            index.push(&EventKeys {
                previous_sequence: 0,
                ..keys(1, revision, &[])
            });
            revision += 1;
        }
    }
    assert_eq!(index.sparse(), expected);
    assert_eq!(index.locate_sequence(9), None);
    assert_eq!(index.locate_sequence(10), Some(expected[0]));
    assert_eq!(
        index.locate_sequence(expected[2].sequence - 1),
        Some(expected[1])
    );
    assert_eq!(index.locate_sequence(u64::MAX), expected.last().copied());
    assert_eq!(index.locate_time(0), None);
    let time = expected[3].timestamp_ns;
    assert_eq!(
        index.locate_time(time),
        Some(expected[2]),
        "an entry at the time may follow others"
    );
    assert_eq!(index.locate_time(time + 1), Some(expected[3]));
}

#[test]
fn ids_are_in_sequence_order() {
    let (index, model) = build(&[(1, vec![]), (2, vec![]), (1, vec![])]);
    let expected: Vec<u64> = model.iter().map(|e| e.revision).collect();
    assert_eq!(index.ids().map(|id| id.0).collect::<Vec<_>>(), expected);
    assert_eq!(index.id(BASE + 2), Some(IdHash(FIRST_REVISION + 1)));
    assert_eq!(index.id(BASE - 1), None);
    assert_eq!(index.id(BASE + 3), None);
}
