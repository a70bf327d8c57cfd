//! What is opened: at a start, the list of control events in place of the indexes of the segments; for a
//! question about the past, the chunks of a snapshot that it touches.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

mod events;
mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use truthdb_compute::*;
use truthdb_engine::{Engine, EngineConfig};
use truthdb_io::{Backend, DirEntry, File, FileStorage, IoQueue, OpenMode, Space, Storage, World};
use truthdb_log::{CreateOptions, create_database};
use truthdb_module::{Limits, WasiProfile};

/// A file system that remembers what was opened.
struct Watched {
    inner: FileStorage,
    opened: Mutex<Vec<String>>,
}

impl Storage for Watched {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.opened.lock().push(path.to_owned());
        self.inner.open(path, mode)
    }
    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        self.inner.list(path)
    }
    fn durable_create_dir(&self, path: &str) -> io::Result<()> {
        self.inner.durable_create_dir(path)
    }
    fn durable_rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.durable_rename(from, to)
    }
    fn durable_remove(&self, path: &str) -> io::Result<()> {
        self.inner.durable_remove(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.inner.sync_dir(path)
    }
    fn queue(&self, depth: usize) -> io::Result<Box<dyn IoQueue>> {
        self.inner.queue(depth)
    }
    fn lock(&self, path: &str, holder: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.inner.lock(path, holder)
    }
    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }
}

struct Opened {
    engine: Engine,
    compute: Compute,
    storage: Arc<Watched>,
}

impl Opened {
    fn new(dir: &Path) -> Opened {
        let storage = Arc::new(Watched {
            inner: FileStorage::open(dir, Backend::Blocking).unwrap(),
            opened: Mutex::default(),
        });
        let world = World::system(Arc::clone(&storage) as Arc<dyn Storage>);
        let engine = Engine::open(world.clone(), EngineConfig::default()).unwrap();
        let config = ComputeConfig {
            checkpoint_every_events: 1,
            ..ComputeConfig::default()
        };
        let runtime = Arc::new(support::runtime());
        let compute = Compute::open(&engine, &world, runtime, config).unwrap();
        Opened {
            engine,
            compute,
            storage,
        }
    }

    fn append(&self, n: u64, stream: &str, event_type: &str, payload: &[u8]) -> Token {
        let event = events::encoded(n, stream, event_type, payload);
        events::append(&self.engine, event).unwrap()
    }

    fn activate_tally(&self) {
        let hash = self.compute.publish(b"tally").unwrap().hash;
        let activate = ActivateRequest {
            hash,
            mode: ActivationMode::Rebuild,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        };
        self.compute.activate(&activate).unwrap();
    }

    /// The last payload of a stream at a moment.
    fn last(&self, stream: &str, at: At) -> Vec<u8> {
        let request = GetRequest {
            module: "tally".to_owned(),
            table: "last".to_owned(),
            key: stream.as_bytes().to_vec(),
            partition: None,
            options: ReadOptions {
                at,
                ..ReadOptions::default()
            },
        };
        self.compute.get(&request).unwrap().rows.remove(0).value
    }

    fn count(&self, token: &Token) -> Vec<u8> {
        let request = GetRequest {
            module: "tally".to_owned(),
            table: "counts".to_owned(),
            key: b"order".to_vec(),
            partition: None,
            options: ReadOptions {
                min_sequence: Some(token.clone()),
                ..ReadOptions::default()
            },
        };
        self.compute.get(&request).unwrap().rows.remove(0).value
    }

    /// Takes a snapshot, and waits until there are so many.
    fn snapshot(&self, count: usize) {
        self.compute.snapshot_now(None).unwrap();
        while self.compute.snapshots(None).unwrap().len() < count {
            std::thread::yield_now();
        }
    }

    fn stop(self) {
        self.compute.shutdown();
        self.engine.shutdown();
    }
}

/// Segments whose indexes a start opens.
fn indexes_opened(dir: &Path, token: &Token, count: &[u8]) -> Vec<String> {
    let opened = Opened::new(dir);
    assert_eq!(opened.count(token), count);
    let paths = opened.storage.opened.lock().clone();
    opened.stop();
    let name = |path: &String| {
        Some(
            path.rsplit_once("segment-")?
                .1
                .strip_suffix(".idx")?
                .to_owned(),
        )
    };
    paths.iter().filter_map(name).collect()
}

#[test]
fn a_start_opens_no_index_of_segments_whose_control_events_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FileStorage::open(dir.path(), Backend::Blocking).unwrap();
    let options = CreateOptions {
        partition_count: 1,
        segment_bytes: 16 << 20,
        ..CreateOptions::default()
    };
    create_database(&World::system(Arc::new(storage)), &options).unwrap();
    let opened = Opened::new(dir.path());
    opened.activate_tally();
    let payload = vec![b'x'; 900 << 10];
    for n in 0..90 {
        opened.append(2 * n, "s1", "other", &payload);
        opened.append(2 * n + 1, "s1", "order", b"y");
    }
    while opened
        .engine
        .last_sealed(0)
        .is_none_or(|end| end.segment < 4)
    {
        std::thread::yield_now();
    }
    let token = opened.append(1000, "s1", "order", b"z");
    let count = opened.count(&token);
    opened.stop();
    let listed = ["00000002", "00000003", "00000004"];
    let indexes = indexes_opened(dir.path(), &token, &count);
    assert!(
        !indexes.iter().any(|name| listed.contains(&&name[..])),
        "{indexes:?}"
    );
    let list = dir.path().join("partition-0000/control-events.bin");
    std::fs::remove_file(&list).unwrap();
    let indexes = indexes_opened(dir.path(), &token, &count);
    assert!(
        listed.iter().all(|name| indexes.iter().any(|i| i == name)),
        "{indexes:?}"
    );
    assert!(list.exists(), "it is made again");
}

#[test]
fn a_question_about_the_past_opens_the_chunks_that_it_touches() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FileStorage::open(dir.path(), Backend::Blocking).unwrap();
    let options = CreateOptions {
        partition_count: 1,
        segment_bytes: 64 << 20,
        ..CreateOptions::default()
    };
    create_database(&World::system(Arc::new(storage)), &options).unwrap();
    let opened = Opened::new(dir.path());
    opened.activate_tally();
    // A state of some 60 chunks, with a snapshot before the moment and another after it.
    let payload = |n: u64| format!("{n:061440}").into_bytes();
    for n in 0..60 {
        opened.append(n, &format!("s{n}"), "order", &payload(n));
    }
    opened.snapshot(1);
    opened.append(60, "s7", "order", b"seven");
    let moment = opened.append(61, "s8", "order", b"eight");
    let token = opened.append(62, "s7", "order", b"later");
    opened.count(&token);
    opened.snapshot(2);
    opened.stop();

    let opened = Opened::new(dir.path());
    opened.count(&token);
    assert_eq!(opened.last("s7", At::Now), b"later");
    opened.storage.opened.lock().clear();
    assert_eq!(opened.last("s5", At::Token(moment.clone())), payload(5));
    let chunks = || {
        let opened = opened.storage.opened.lock();
        opened
            .iter()
            .filter(|path| path.contains("/chunks/"))
            .count()
    };
    assert_eq!(chunks(), 1, "{:?}", opened.storage.opened.lock());
    // What deltas have written lies over the snapshot, and the same moment is not made again.
    for (stream, value) in [("s7", &b"seven"[..]), ("s8", b"eight")] {
        assert_eq!(opened.last(stream, At::Token(moment.clone())), value);
    }
    assert_eq!(chunks(), 1);
    opened.stop();
}
