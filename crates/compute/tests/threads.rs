//! The folds on threads of their own, on a real file system.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

mod events;
mod support;

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use truthdb_compute::*;
use truthdb_engine::{AppendError, Engine, EngineConfig};
use truthdb_io::{Backend, FileStorage, World};
use truthdb_log::{CreateOptions, create_database};
use truthdb_module::{Limits, WasiProfile};

fn open(dir: &std::path::Path) -> (Engine, Compute) {
    open_with(dir, Arc::new(support::runtime()))
}

fn open_with(dir: &std::path::Path, runtime: Arc<dyn Runtime>) -> (Engine, Compute) {
    let storage = FileStorage::open(dir, Backend::Blocking).unwrap();
    let world = World::system(Arc::new(storage));
    let engine = Engine::open(world.clone(), EngineConfig::default()).unwrap();
    let compute = Compute::open(&engine, &world, runtime, ComputeConfig::default()).unwrap();
    (engine, compute)
}

fn append(engine: &Engine, n: u64, stream: &str, event_type: &str, payload: &[u8]) -> Token {
    try_append(engine, n, stream, event_type, payload).unwrap()
}

fn try_append(
    engine: &Engine,
    n: u64,
    stream: &str,
    event_type: &str,
    payload: &[u8],
) -> Result<Token, AppendError> {
    events::append_once(engine, events::encoded(n, stream, event_type, payload))
}

fn create(dir: &std::path::Path, partition_count: u32) {
    let storage = FileStorage::open(dir, Backend::Blocking).unwrap();
    let options = CreateOptions {
        partition_count,
        segment_bytes: 16 << 20,
        ..CreateOptions::default()
    };
    create_database(&World::system(Arc::new(storage)), &options).unwrap();
}

/// A runtime whose code `tally` is made ready in the background only once somebody lets it.
struct Slow {
    runtime: NativeRuntime,
    let_go: (Mutex<bool>, Condvar),
}

impl Runtime for Slow {
    fn inspect(&self, wasm: &[u8]) -> Result<Inspected, String> {
        self.runtime.inspect(wasm)
    }

    fn load(
        &self,
        wasm: &[u8],
        limits: &Limits,
        wasi: WasiProfile,
    ) -> Result<Arc<dyn Program>, String> {
        let background = std::thread::current().name() == Some("programs");
        if background && wasm == b"tally" {
            let mut let_go = self.let_go.0.lock();
            while !*let_go {
                self.let_go.1.wait(&mut let_go);
            }
        }
        self.runtime.load(wasm, limits, wasi)
    }

    fn semantics_id(&self, limits: &Limits) -> [u8; 32] {
        self.runtime.semantics_id(limits)
    }
}

#[test]
fn a_validator_decides_once_all_code_is_ready_and_does_not_stop_again() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), 1);
    let slow = Arc::new(Slow {
        runtime: support::runtime(),
        let_go: (Mutex::new(false), Condvar::new()),
    });
    let (engine, compute) = open_with(dir.path(), Arc::clone(&slow) as Arc<dyn Runtime>);
    for code in [&b"tally"[..], b"guard"] {
        let published = compute.publish(code).unwrap();
        compute
            .activate(&ActivateRequest {
                hash: published.hash,
                mode: ActivationMode::Rebuild,
                limits: Limits::default(),
                wasi: WasiProfile::None,
            })
            .unwrap();
    }
    // Nobody has asked for the code of the module whose tables are read but who opens the gate.
    loop {
        match try_append(&engine, 1, "s1", "depart", b"departed") {
            Err(AppendError::ValidatorNotReady { reason, .. })
                if reason == "the code of tally is being made ready" =>
            {
                break;
            }
            Err(AppendError::ValidatorNotReady { .. }) => std::thread::yield_now(),
            other => panic!("it is not asked, or not for its code: {other:?}"),
        }
    }
    *slow.let_go.0.lock() = true;
    slow.let_go.1.notify_all();
    loop {
        match try_append(&engine, 1, "s1", "depart", b"departed") {
            Err(AppendError::ValidatorNotReady { .. }) => std::thread::yield_now(),
            Ok(_) => break,
            Err(error) => panic!("{error}"),
        }
    }
    append(&engine, 2, "s1", "arrive", b"landed");
    let refused = try_append(&engine, 3, "s1", "arrive", b"again").unwrap_err();
    assert!(matches!(refused, AppendError::Rejected { .. }), "{refused}");
    compute.shutdown();
    engine.shutdown();
}

#[test]
fn one_reads_ones_own_writes_and_everything_survives_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), 2);
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
