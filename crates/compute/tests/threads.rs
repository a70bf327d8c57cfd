//! The folds on threads of their own, on a real file system.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use truthdb_compute::*;
use truthdb_engine::{EncodedEvents, Engine, EngineConfig};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::{Backend, FileStorage, World};
use truthdb_log::{CreateOptions, create_database};
use truthdb_module::{Limits, WasiProfile};

fn open(dir: &std::path::Path) -> (Engine, Compute) {
    let storage = FileStorage::open(dir, Backend::Blocking).unwrap();
    let world = World::system(Arc::new(storage));
    let engine = Engine::open(world.clone(), EngineConfig::default()).unwrap();
    let runtime = Arc::new(support::runtime());
    let compute = Compute::open(&engine, &world, runtime, ComputeConfig::default()).unwrap();
    (engine, compute)
}

fn append(engine: &Engine, n: u64, stream: &str, event_type: &str, payload: &[u8]) -> Token {
    let mut id = [3; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    let mut bytes = Vec::new();
    EventBuilder::new(stream, event_type)
        .id(EventId::from_bytes(id))
        .payload(payload)
        .encode_into(&mut bytes)
        .unwrap();
    let input = EncodedEvents {
        bytes: Bytes::from(bytes),
        ..EncodedEvents::default()
    };
    let appended = engine
        .append_blocking(engine.prepare(None, input).unwrap())
        .unwrap();
    Token::of(appended.partition, appended.last_sequence)
}

#[test]
fn one_reads_ones_own_writes_and_everything_survives_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FileStorage::open(dir.path(), Backend::Blocking).unwrap();
    let options = CreateOptions {
        partition_count: 2,
        segment_bytes: 16 << 20,
        ..CreateOptions::default()
    };
    create_database(&World::system(Arc::new(storage)), &options).unwrap();
    let (engine, compute) = open(dir.path());
    let published = compute.publish(b"tally").unwrap();
    assert!(!published.existed && compute.publish(b"tally").unwrap().existed);
    let decided = compute
        .activate(&ActivateRequest {
            hash: published.hash,
            mode: ActivationMode::Rebuild,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        })
        .unwrap();
    assert_eq!(
        (decided.generation, decided.token.entries().count()),
        (1, 2)
    );
    for n in 1..200_u64 {
        let stream = format!("s{}", n % 5);
        let payload = n.to_string();
        let token = append(&engine, n, &stream, "order", payload.as_bytes());
        let partition = engine.partition_of(&stream);
        let answer = compute
            .get(&GetRequest {
                module: "tally".to_owned(),
                table: "last".to_owned(),
                key: stream.into_bytes(),
                partition: Some(partition),
                options: ReadOptions {
                    min_sequence: Some(token),
                    ..ReadOptions::default()
                },
            })
            .unwrap();
        assert_eq!(answer.rows[0].value, payload.as_bytes());
    }
    let status = compute.module("tally").unwrap();
    assert_eq!(status.generations.len(), 2);
    let refused = compute.publish(b"no module").unwrap_err();
    assert!(matches!(refused, ComputeError::Refused { .. }), "{refused}");
    compute.shutdown();
    engine.shutdown();

    let (engine, compute) = open(dir.path());
    let token = append(&engine, 1000, "s0", "order", b"last");
    let answer = compute
        .get(&GetRequest {
            module: "tally".to_owned(),
            table: "last".to_owned(),
            key: b"s0".to_vec(),
            partition: None,
            options: ReadOptions {
                min_sequence: Some(token),
                ..ReadOptions::default()
            },
        })
        .unwrap();
    assert_eq!(answer.rows.len(), 1);
    assert_eq!(answer.rows[0].value, b"last");
    let report = compute
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    compute.shutdown();
    engine.shutdown();
}
