//! The maintenance works at the very moments at which the writer enters a segment.
//!
//! In a server they are two threads. Here the storage lets the maintenance take its steps before and after the
//! rename that gives a prepared file its name, which is between taking that file and entering it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::sim::SimWorld;
use truthdb_io::{DirEntry, File, IoQueue, OpenMode, Space, Storage, World};
use truthdb_log::{CreateOptions, create_database, segment_path};

use crate::engine::Stepper;
use crate::maintenance::Maintenance;
use crate::{
    AppendBatch, AppendError, AppendSink, Appended, Direction, EncodedEvents, Engine, EngineConfig,
    Filter, PartitionState, ReadFrom, ReadRequest,
};

const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments that the test fills.
const SEGMENTS: u32 = 4;

/// A disk on which the maintenance steps in when a segment gets its name.
struct Interleaving {
    disk: Arc<dyn Storage>,
    maintenance: Mutex<Option<Maintenance>>,
    /// Pieces of work done in between.
    between: AtomicU64,
}

impl Interleaving {
    /// The maintenance does what there is to do, unless it is what calls.
    fn step_in(&self) {
        let Some(mut maintenance) = self.maintenance.try_lock() else {
            return;
        };
        while maintenance.as_mut().is_some_and(Maintenance::step) {
            self.between.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Storage for Interleaving {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.disk.open(path, mode)
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        self.disk.list(path)
    }

    fn durable_create_dir(&self, path: &str) -> io::Result<()> {
        self.disk.durable_create_dir(path)
    }

    fn durable_rename(&self, from: &str, to: &str) -> io::Result<()> {
        let is_entered = (2..=SEGMENTS).any(|segment| to == segment_path(0, segment));
        if !is_entered {
            return self.disk.durable_rename(from, to);
        }
        self.step_in();
        let renamed = self.disk.durable_rename(from, to);
        self.step_in();
        renamed
    }

    fn durable_remove(&self, path: &str) -> io::Result<()> {
        self.disk.durable_remove(path)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn IoQueue>> {
        self.disk.queue(depth)
    }

    fn lock(&self, path: &str, holder: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path, holder)
    }

    fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }

    fn backend(&self) -> &'static str {
        self.disk.backend()
    }
}

/// Takes answers.
#[derive(Default)]
struct Answers(Mutex<Vec<Result<Appended, AppendError>>>);

impl AppendSink for Answers {
    fn complete(&self, _: u64, result: Result<Appended, AppendError>, _: Box<AppendBatch>) {
        self.0.lock().push(result);
    }
}

fn event(number: u64) -> EncodedEvents {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(number + 1).to_le_bytes());
    let payload = vec![7; 1 << 20];
    let mut bytes = Vec::new();
    EventBuilder::new("s", "t")
        .id(EventId(id))
        .payload(&payload)
        .encode_into(&mut bytes)
        .unwrap();
    EncodedEvents {
        bytes: Bytes::from(bytes),
        ..EncodedEvents::default()
    }
}

#[test]
fn the_next_segment_is_not_prepared_while_the_writer_enters_the_one_before() {
    let sim = SimWorld::new(7);
    let options = CreateOptions {
        partition_count: 1,
        segment_bytes: SEGMENT_BYTES,
        ..CreateOptions::default()
    };
    create_database(&sim.world(), &options).unwrap();
    let storage = Arc::new(Interleaving {
        disk: sim.storage(),
        maintenance: Mutex::new(None),
        between: AtomicU64::new(0),
    });
    let world = World {
        storage: Arc::clone(&storage) as Arc<dyn Storage>,
        ..sim.world()
    };
    let (engine, stepper) = Engine::open_stepped(world, EngineConfig::default()).unwrap();
    let Stepper {
        mut writers,
        mut maintenance,
    } = stepper;
    while maintenance.step() {}
    *storage.maintenance.lock() = Some(maintenance);
    let writer = writers[0].as_mut().unwrap();
    let answers = Arc::new(Answers::default());
    let mut appended = 0;
    while engine.status().partitions[0].active_segment < SEGMENTS {
        let batch = engine.prepare(None, event(appended)).unwrap();
        let sink = Arc::clone(&answers) as Arc<dyn AppendSink>;
        engine
            .append(batch, sink, 0)
            .map_err(|(error, _)| error)
            .unwrap();
        while answers.0.lock().is_empty() {
            let timeout = writer.step().expect("the writer goes on");
            if answers.0.lock().is_empty() {
                writer.wait(timeout);
            }
        }
        match answers.0.lock().remove(0) {
            Ok(done) => {
                appended += 1;
                assert_eq!(done.last_sequence, appended);
            }
            // The maintenance has not sealed yet: it does, outside of the writer's step.
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        if let Some(maintenance) = storage.maintenance.lock().as_mut() {
            while maintenance.step() {}
        }
    }
    assert_eq!(engine.status().partitions[0].state, PartitionState::Open);
    engine.abandon();

    // What was acknowledged is in the files that have the names, not in ones that lost theirs.
    sim.crash();
    let (engine, _stepper) = Engine::open_stepped(sim.world(), EngineConfig::default()).unwrap();
    assert!(
        engine.report().partitions[0].tail.is_ok(),
        "{:?}",
        engine.report()
    );
    assert_eq!(engine.committed(0), appended);
    let mut request = ReadRequest {
        partition: 0,
        from: ReadFrom::Start,
        direction: Direction::Forward,
        filter: Filter::default(),
        events_max: 5,
        bytes_max: 8 << 20,
    };
    let mut read = 0;
    loop {
        let page = engine.read(&request).unwrap();
        read += page.events().len() as u64;
        match page.next {
            Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
            _ => break,
        }
    }
    assert_eq!(read, appended);
}
