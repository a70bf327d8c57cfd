//! The workload: batches that a seed decides.

use std::sync::Arc;

use bytes::Bytes;
use truthdb_engine::{
    AppendCondition, CURSOR_EVENT_TYPE, CURSOR_STREAM_PREFIX, ConditionItem, CursorUpdate,
    EncodedEvents, ExpectedRevision, Filter, TRIM_EVENT_TYPE, TRIM_STREAM, TrimPlan,
};
use truthdb_event::{EventBuilder, EventId, partition_of};
use truthdb_io::sim::SimPrng;

use crate::model::{Batch, EventSpec, Partition};
use crate::profile::Profile;

const KINDS: [&str; 4] = ["Opened", "Paid", "Moved", "Closed"];
const TAGS: [&str; 6] = ["a:1", "a:2", "b:1", "b:2", "c", "d"];

fn name(prng: &mut SimPrng, of: &[&str]) -> String {
    let index = prng.below(of.len() as u64);
    of[usize::try_from(index).expect("below a length")].to_owned()
}

fn names(prng: &mut SimPrng, of: &[&str], max: u64) -> Vec<String> {
    let mut out = Vec::new();
    for _ in 0..prng.below(max + 1) {
        let name = name(prng, of);
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

/// Name of a stream.
pub(crate) fn stream(prng: &mut SimPrng, profile: &Profile) -> String {
    format!("s-{}", prng.below(profile.streams))
}

/// One event of a stream.
pub(crate) fn event(prng: &mut SimPrng, profile: &Profile, stream: &str) -> Arc<EventSpec> {
    let bytes = if prng.chance_ppm(profile.large_ppm) {
        prng.between(200_000, 2_000_000)
    } else {
        prng.below(profile.payload_max + 1)
    };
    let mut payload = vec![0; usize::try_from(bytes).expect("a payload")];
    // Noise at the start, the rest compresses.
    let noise = payload.len().min(4096);
    prng.fill(&mut payload[..noise]);
    if payload.len() > noise && prng.coin() {
        prng.fill(&mut payload);
    }
    let mut id = [0; 16];
    prng.fill(&mut id);
    let kind = name(prng, &KINDS);
    let tags = names(prng, &TAGS, 3);
    let mut builder = EventBuilder::new(stream, &kind)
        .id(EventId(id))
        .payload(&payload);
    for tag in &tags {
        builder = builder.tag(tag);
    }
    let mut encoded = Vec::new();
    builder
        .encode_into(&mut encoded)
        .expect("the workload's events are valid");
    Arc::new(EventSpec {
        bytes: Some(encoded.into()),
        stream: stream.to_owned(),
        kind,
        tags,
        id: Some(EventId(id)),
        payload: Vec::new(),
    })
}

fn system(stream: String, kind: &str, payload: Vec<u8>) -> Arc<EventSpec> {
    Arc::new(EventSpec {
        bytes: None,
        stream,
        kind: kind.to_owned(),
        tags: Vec::new(),
        id: None,
        payload,
    })
}

fn expected(prng: &mut SimPrng, last: Option<u64>) -> ExpectedRevision {
    match prng.below(8) {
        0 => ExpectedRevision::NoStream,
        1 => ExpectedRevision::Exists,
        2 => ExpectedRevision::Exact(prng.below(4)),
        3 => ExpectedRevision::Any,
        _ => last.map_or(ExpectedRevision::NoStream, ExpectedRevision::Exact),
    }
}

/// A condition that may hold or not.
pub(crate) fn condition(prng: &mut SimPrng, last: u64) -> AppendCondition {
    let item = |prng: &mut SimPrng| {
        let mut item = ConditionItem {
            types: names(prng, &KINDS, 2),
            tags: names(prng, &TAGS, 2),
        };
        if item.types.is_empty() && item.tags.is_empty() {
            item.types.push(name(prng, &KINDS));
        }
        item
    };
    AppendCondition {
        items: (0..prng.between(1, 3)).map(|_| item(prng)).collect(),
        after: last.saturating_sub(prng.below(8)),
    }
}

/// A filter that passes some events.
pub(crate) fn filter(prng: &mut SimPrng, profile: &Profile) -> Filter {
    if prng.coin() {
        return Filter::default();
    }
    Filter {
        stream_prefix: (prng.below(3) == 0).then(|| stream(prng, profile)),
        types: names(prng, &KINDS, 2),
        tags: names(prng, &TAGS, 1),
    }
}

/// A new batch.
pub(crate) fn batch(prng: &mut SimPrng, profile: &Profile, models: &[Partition]) -> Batch {
    let count = profile.partitions;
    let first = stream(prng, profile);
    let partition = partition_of(&first, count);
    let model = &models[partition as usize];
    let cursor = (prng.below(6) == 0).then(|| CursorUpdate {
        name: format!("c{}", prng.below(3)),
        position: prng.next_u64(),
    });
    let alone = cursor.is_some() && prng.below(3) == 0;
    let mut users = Vec::new();
    if !alone {
        users.push(event(prng, profile, &first));
        for _ in 1..prng.between(1, profile.batch_max) {
            let other = stream(prng, profile);
            if partition_of(&other, count) == partition {
                users.push(event(prng, profile, &other));
            }
        }
    }
    let mut named = Vec::new();
    if prng.below(3) == 0 {
        for spec in &users {
            let last = model.streams.get(&spec.stream).map(|s| s.len() as u64 - 1);
            if !named.iter().any(|(stream, _)| *stream == spec.stream) {
                named.push((spec.stream.clone(), expected(prng, last)));
            }
        }
    }
    let with_condition = !users.is_empty() && prng.below(5) == 0;
    let system = cursor.as_ref().map(|cursor| {
        let stream = format!("{CURSOR_STREAM_PREFIX}{}", cursor.name);
        let position = cursor.position.to_le_bytes().to_vec();
        system(stream, CURSOR_EVENT_TYPE, position)
    });
    Batch {
        partition,
        users,
        system,
        expected: named,
        condition: with_condition.then(|| condition(prng, model.last())),
        cursor,
        trim: None,
    }
}

/// The batch that records a trim.
pub(crate) fn trim(plan: &TrimPlan) -> Batch {
    let payload = format!(
        "{{\"first_segment\":{},\"first_sequence\":{}}}",
        plan.first_segment, plan.first_sequence
    );
    Batch {
        partition: plan.partition,
        users: Vec::new(),
        system: Some(system(
            TRIM_STREAM.to_owned(),
            TRIM_EVENT_TYPE,
            payload.into_bytes(),
        )),
        expected: Vec::new(),
        condition: None,
        cursor: None,
        trim: Some(plan.clone()),
    }
}

/// The batch as the engine takes it.
pub(crate) fn encode(batch: &Batch) -> EncodedEvents {
    let mut bytes = Vec::new();
    for spec in &batch.users {
        bytes.extend_from_slice(spec.bytes.as_ref().expect("events of callers have bytes"));
    }
    EncodedEvents {
        bytes: Bytes::from(bytes),
        checksums: None,
        expected: batch.expected.clone(),
        condition: batch.condition.clone(),
        cursor: batch.cursor.clone(),
    }
}
