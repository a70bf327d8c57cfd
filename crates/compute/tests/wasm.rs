//! Components as guests, on threads and a real file system.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

mod events;

use std::sync::Arc;

use truthdb_compute::*;
use truthdb_engine::{AppendError, Engine, EngineConfig};
use truthdb_guests::Guest;
use truthdb_io::{Backend, FileStorage, World};
use truthdb_log::{CreateOptions, create_database};
use truthdb_module::{Host, HostConfig, Limits, WasiProfile};

fn open(dir: &std::path::Path) -> (Engine, Compute) {
    let storage = FileStorage::open(dir, Backend::Blocking).unwrap();
    let world = World::system(Arc::new(storage));
    let engine = Engine::open(world.clone(), EngineConfig::default()).unwrap();
    let config = HostConfig {
        fold_instances_max: 16,
        query_instances_max: 4,
        ..HostConfig::default()
    };
    let runtime = Arc::new(WasmRuntime::new(Host::new(config).unwrap()));
    let compute = Compute::open(&engine, &world, runtime, ComputeConfig::default()).unwrap();
    (engine, compute)
}

fn append(
    engine: &Engine,
    n: u64,
    stream: &str,
    event_type: &str,
    payload: &[u8],
) -> Result<Token, AppendError> {
    events::append(engine, events::encoded(n, stream, event_type, payload))
}

fn activate(compute: &Compute, guest: Guest) {
    let published = compute.publish(&truthdb_guests::wasm(guest)).unwrap();
    compute
        .activate(&ActivateRequest {
            hash: published.hash,
            mode: ActivationMode::Rebuild,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        })
        .unwrap();
}

#[test]
fn components_fold_validate_and_verify() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FileStorage::open(dir.path(), Backend::Blocking).unwrap();
    let options = CreateOptions {
        partition_count: 1,
        segment_bytes: 16 << 20,
        ..CreateOptions::default()
    };
    create_database(&World::system(Arc::new(storage)), &options).unwrap();
    let (engine, compute) = open(dir.path());
    activate(&compute, Guest::Balance);
    activate(&compute, Guest::Covered);
    let mut token = append(&engine, 1, "account-1", "deposit", b"100").unwrap();
    let refused = append(&engine, 2, "account-1", "withdraw", b"500").unwrap_err();
    assert!(matches!(refused, AppendError::Rejected { .. }), "{refused}");
    for n in 3..60 {
        token = append(&engine, n, "account-1", "deposit", b"1").unwrap();
    }
    let rows = |compute: &Compute, at: At, min: Option<Token>| {
        let manifest = compute.module("balance").unwrap();
        compute
            .scan(&ScanRequest {
                module: "balance".to_owned(),
                table: manifest.tables[0].clone(),
                start: Vec::new(),
                end: None,
                reverse: false,
                limit: 100,
                page: None,
                partition: None,
                options: ReadOptions {
                    at,
                    min_sequence: min,
                    ..ReadOptions::default()
                },
            })
            .unwrap()
    };
    let answer = rows(&compute, At::Now, Some(token));
    assert_eq!(answer.rows.len(), 1);
    activate(&compute, Guest::Richest);
    let ask = |compute: &Compute, at: At| {
        let request = QueryRequest {
            operator: "richest".to_owned(),
            arguments: b"1".to_vec(),
            partition: None,
            options: ReadOptions {
                at,
                ..ReadOptions::default()
            },
        };
        compute.query(&request).unwrap()
    };
    let asked = ask(&compute, At::Token(answer.token()));
    assert!(asked.fuel > 0);
    assert_eq!(ask(&compute, At::Token(answer.token())), asked);
    let report = compute
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    compute.shutdown();
    engine.shutdown();
    let (engine, compute) = open(dir.path());
    assert_eq!(rows(&compute, At::Token(answer.token()), None), answer);
    assert_eq!(ask(&compute, At::Token(answer.token())), asked);
    compute.shutdown();
    engine.shutdown();
}
