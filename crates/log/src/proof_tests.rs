//! Proofs of every event of a small history, and what is not one.

use truthdb_io::sim::SimWorld;

use super::*;
use crate::pack::Compression;
use crate::seal::{SealRequest, seal_segment};
use crate::segment::TrimPoint;
use crate::test_log::{Shape, TestLog, TestSegment};

const SHAPE: Shape = Shape {
    batches: 5,
    events: 3,
    payload: 50,
    noise: false,
};

/// Three segments: one packed and one in place, sealed, and one unsealed.
struct History {
    storage: Arc<dyn Storage>,
    segments: Vec<TestSegment>,
    footers: Vec<Footer>,
}

fn history() -> History {
    let sim = SimWorld::new(1);
    let storage: Arc<dyn Storage> = sim.storage();
    let mut log = TestLog::new();
    let shapes = [
        SHAPE,
        Shape {
            batches: 3,
            events: 60,
            payload: 900,
            noise: true,
        },
        SHAPE,
    ];
    let segments: Vec<TestSegment> = shapes.map(|shape| log.segment(shape)).into();
    let (mut footers, mut previous_chain) = (Vec::new(), ZERO_HASH);
    for (i, segment) in segments.iter().enumerate() {
        segment.write(&sim);
        if i < 2 {
            let request = SealRequest {
                place: segment.place,
                data_end: segment.data_end,
                previous_chain,
                trim: TrimPoint::NONE,
                compression: Compression::None,
                key_check: 1,
                index: &segment.index,
            };
            footers.push(seal_segment(&storage, &request).unwrap().footer);
            previous_chain = footers[i].chain;
        }
    }
    History {
        storage,
        segments,
        footers,
    }
}

impl History {
    fn prove(&self, sequence: u64) -> Result<Proof, ProveError> {
        let holds = |s: &&TestSegment| s.events.last().is_some_and(|e| sequence <= e.sequence);
        let number = self.segments.iter().position(|s| holds(&s)).unwrap_or(2);
        let segment = &self.segments[number];
        let how = match self.footers.get(number) {
            Some(footer) => ProveSegment::Sealed(footer),
            None => ProveSegment::Unsealed {
                data_end: segment.data_end,
                previous_chain: self.footers[number - 1].chain,
            },
        };
        let later = self.footers.get(number + 1..).unwrap_or(&[]);
        prove_event(&self.storage, segment.place, &how, sequence, later)
    }
}

#[test]
fn every_event_is_proven_up_to_the_newest_seal() {
    let history = history();
    let last = history.footers[1].chain;
    for event in history.segments.iter().flat_map(|segment| &segment.events) {
        let proof = history.prove(event.sequence).unwrap();
        let proven = check_proof(&proof).unwrap();
        assert_eq!(proven.canonical, event.canonical);
        assert_eq!(proof.event.revision, event.revision);
        match proven.sealed {
            true => assert_eq!((proven.chain, proven.segment), (last, 2)),
            false => assert_eq!(proven.segment, 3),
        }
        let json = serde_json::to_string(&proof).unwrap();
        assert_eq!(serde_json::from_str::<Proof>(&json).unwrap(), proof);
    }
}

#[test]
fn there_is_no_proof_of_an_event_that_is_not_there() {
    let history = history();
    assert!(matches!(
        history.prove(100_000),
        Err(ProveError::NoEvent {
            sequence: 100_000,
            ..
        })
    ));
    assert!(matches!(
        history.prove(0),
        Err(ProveError::NoEvent { sequence: 0, .. })
    ));
}

/// Changes one leaf of a JSON tree at a time.
fn mutations(value: &serde_json::Value) -> Vec<serde_json::Value> {
    use serde_json::Value;
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, inner)| {
                mutations(inner).into_iter().map(|changed| {
                    let mut map = map.clone();
                    map.insert(key.clone(), changed);
                    Value::Object(map)
                })
            })
            .collect(),
        Value::Array(items) => {
            let mut all = Vec::new();
            for (i, item) in items.iter().enumerate() {
                for changed in mutations(item) {
                    let mut items = items.clone();
                    items[i] = changed;
                    all.push(Value::Array(items));
                }
                let mut shorter = items.clone();
                shorter.remove(i);
                all.push(Value::Array(shorter));
            }
            all
        }
        Value::Number(number) => {
            let number = number.as_u64().unwrap();
            [number.wrapping_add(1), number.wrapping_sub(1)]
                .map(Value::from)
                .to_vec()
        }
        Value::Bool(flag) => vec![Value::Bool(!flag)],
        Value::String(text) if text == "left" => vec!["right".into()],
        Value::String(text) if text == "right" => vec!["left".into()],
        Value::String(text) => {
            let mut bytes = text.clone().into_bytes();
            let middle = bytes.len() / 2;
            bytes[middle] = if bytes[middle] == b'1' { b'2' } else { b'1' };
            vec![
                Value::String(String::from_utf8(bytes).unwrap()),
                Value::String(String::new()),
            ]
        }
        Value::Null => Vec::new(),
    }
}

#[test]
fn a_proof_with_any_field_changed_proves_nothing() {
    let history = history();
    for sequence in [1, 8, 15, 100] {
        let proof = history.prove(sequence).unwrap();
        let json = serde_json::to_value(&proof).unwrap();
        let mutations = mutations(&json);
        assert!(mutations.len() > 30);
        for changed in mutations {
            let Ok(changed) = serde_json::from_value::<Proof>(changed) else {
                continue;
            };
            if changed.segment.sealed != proof.segment.sealed && changed.later_segments.is_empty() {
                // Sealed or not is said by who publishes the chain hash, not by the hashes.
                continue;
            }
            assert!(check_proof(&changed).is_err(), "{changed:?}");
        }
    }
}

#[test]
fn the_proof_is_the_golden_one_that_the_stand_alone_verifier_is_tested_with() {
    let proof = history().prove(8).unwrap();
    let json = serde_json::to_string_pretty(&proof).unwrap() + "\n";
    crate::test_golden::check("proof-1.json", &json);
}
