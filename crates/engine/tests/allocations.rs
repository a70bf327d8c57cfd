//! In steady state the writer allocates nothing for an append, and a handful of things when it enters
//! a segment: the segment's own shared state, and the view that readers see it through.
//!
//! The machines are driven by hand, so that everything that the writer's thread would do happens
//! between two readings of this thread's allocation counter, and nothing else does. The counter is
//! per thread and this file is a program of its own with one test.
#![allow(
    clippy::unwrap_used,
    clippy::vec_box,
    reason = "what fails here fails the test; the engine hands out boxes, and unpacking them would allocate"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use truthdb_engine::{
    AppendBatch, AppendError, AppendSink, Appended, EncodedEvents, Engine, EngineConfig, Stepper,
};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::{Backend, FileStorage, World};
use truthdb_log::{CreateOptions, create_database};

const SEGMENT_BYTES: u64 = 16 << 20;
const STREAMS: u64 = 64;
const BATCHES_PER_ROUND: u64 = 64;
const EVENTS_PER_BATCH: u64 = 4;
const PAYLOAD_BYTES: usize = 256;
/// One segment's state is a few objects, whatever the load was; 16 when this was written.
const ENTERING_ALLOCATIONS_MAX: u64 = 32;

/// Keeps the batches until the test frees them, as the server does.
#[derive(Default)]
struct Acknowledged {
    count: AtomicU64,
    batches: Mutex<Vec<Box<AppendBatch>>>,
}

impl AppendSink for Acknowledged {
    fn complete(&self, _: u64, result: Result<Appended, AppendError>, batch: Box<AppendBatch>) {
        result.expect("the append succeeds");
        self.batches.lock().push(batch);
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

struct Load {
    engine: Engine,
    stepper: Stepper,
    sink: Arc<Acknowledged>,
    next_id: u64,
}

impl Load {
    fn new(dir: &Path) -> Load {
        let world = World::system(Arc::new(FileStorage::open(dir, Backend::Auto).unwrap()));
        let options = CreateOptions {
            segment_bytes: SEGMENT_BYTES,
            ..CreateOptions::default()
        };
        create_database(&world, &options).unwrap();
        let config = EngineConfig {
            tail_cache_bytes: 4 << 20,
            idempotency_window_events: 10_000,
            ..EngineConfig::default()
        };
        let (engine, stepper) = Engine::open_stepped(world, config).unwrap();
        let sink = Arc::new(Acknowledged::default());
        sink.batches
            .lock()
            .reserve(usize::try_from(BATCHES_PER_ROUND).unwrap());
        Load {
            engine,
            stepper,
            sink,
            next_id: 0,
        }
    }

    fn batch(&mut self, stream: u64) -> Box<AppendBatch> {
        let stream = format!("stream-{stream}");
        let payload = [0x5a; PAYLOAD_BYTES];
        let mut bytes = Vec::new();
        for _ in 0..EVENTS_PER_BATCH {
            self.next_id += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.next_id.to_le_bytes());
            EventBuilder::new(&stream, "happened")
                .id(EventId(id))
                .payload(&payload)
                .encode_into(&mut bytes)
                .unwrap();
        }
        let events = EncodedEvents {
            bytes: bytes.into(),
            ..EncodedEvents::default()
        };
        self.engine.prepare(None, events).unwrap()
    }

    /// Appends a round of batches and steps until all are acknowledged. Returns how many times the
    /// writer allocated.
    fn round(&mut self) -> u64 {
        let target = self.sink.count.load(Ordering::Relaxed) + BATCHES_PER_ROUND;
        for stream in 0..BATCHES_PER_ROUND {
            let batch = self.batch(stream % STREAMS);
            let sink = Arc::clone(&self.sink) as Arc<dyn AppendSink>;
            self.engine.append(batch, sink, stream).unwrap();
        }
        let mut allocations = 0;
        while self.sink.count.load(Ordering::Relaxed) < target {
            let stepper = &mut self.stepper;
            let counted = allocation_counter::measure(|| {
                let timeout = stepper.step_writer(0).expect("the writer runs");
                // The rest of a wait is for wake-ups, and here nobody else would send one.
                stepper.wait_writer(0, Some(timeout.unwrap_or(1_000_000).min(1_000_000)));
            });
            allocations += counted.count_total;
            // Seals and preallocates, which the maintenance thread would do meanwhile.
            while self.stepper.step_maintenance() {}
        }
        self.sink.batches.lock().clear();
        allocations
    }

    fn active_segment(&self) -> u32 {
        self.engine.status().partitions[0].active_segment
    }

    /// Rounds until `segments` more segments were entered.
    fn enter_segments(&mut self, segments: u32) -> Counted {
        let end = self.active_segment() + segments;
        let mut counted = Counted::default();
        while self.active_segment() < end {
            let before = self.active_segment();
            let allocations = self.round();
            if self.active_segment() == before {
                counted.rounds += 1;
                counted.by_appends += allocations;
            } else {
                counted.by_entering.push(allocations);
            }
        }
        counted
    }
}

#[derive(Debug, Default)]
struct Counted {
    /// Rounds that stayed in their segment.
    rounds: u64,
    /// Allocations in those.
    by_appends: u64,
    /// Allocations in each of the rounds that entered a segment.
    by_entering: Vec<u64>,
}

#[test]
fn the_writer_allocates_for_a_new_segment_and_never_for_an_append() {
    // Not in /tmp: that may be a tmpfs, which has no direct I/O.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut load = Load::new(dir.path());
    load.enter_segments(3);
    let counted = load.enter_segments(2);
    assert!(counted.rounds * BATCHES_PER_ROUND > 10_000, "{counted:?}");
    assert_eq!(counted.by_appends, 0, "{counted:?}");
    let most = counted.by_entering.iter().max().copied();
    assert!(
        most.is_some_and(|most| most <= ENTERING_ALLOCATIONS_MAX),
        "{counted:?}"
    );
}
