//! Durable appends straight into an engine of this process, without a network: for profiling the
//! writer. Each writer is a closed loop: its next batch goes out when the last one is acknowledged.
//!
//! ```text
//! cargo run --profile fast -p truthdb-engine --example bench_engine -- \
//!     [writers [batch [payload_bytes [seconds [writes_in_flight [directory]]]]]]
//! ```
//!
//! The directory must be on a real disk (not tmpfs); a database is made in a new folder of it and
//! removed at the end.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use truthdb_engine::{
    AppendBatch, AppendError, AppendSink, Appended, EncodedEvents, Engine, EngineConfig,
};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::{Backend, Clock, FileStorage, SystemClock, World};
use truthdb_log::{CreateOptions, create_database};

/// Time before the measured window, nanoseconds.
const WARM_UP_NS: u64 = 500_000_000;

type Outcome = (u64, Result<Appended, AppendError>, Box<AppendBatch>);

/// Collects acknowledgements for the one thread that drives all writers.
#[derive(Default)]
struct Done {
    outcomes: Mutex<Vec<Outcome>>,
    some: Condvar,
}

impl AppendSink for Done {
    fn complete(&self, tag: u64, result: Result<Appended, AppendError>, batch: Box<AppendBatch>) {
        let mut outcomes = self.outcomes.lock().expect("no holder of this lock panics");
        outcomes.push((tag, result, batch));
        if outcomes.len() == 1 {
            self.some.notify_one();
        }
    }
}

impl Done {
    /// Waits for acknowledgements and puts them into `into`, which is empty.
    fn take(&self, into: &mut Vec<Outcome>) {
        let outcomes = self.outcomes.lock().expect("no holder of this lock panics");
        let mut outcomes = self
            .some
            .wait_while(outcomes, |outcomes| outcomes.is_empty())
            .expect("no holder of this lock panics");
        std::mem::swap(&mut *outcomes, into);
    }
}

struct Settings {
    writers: u64,
    batch: u64,
    payload_bytes: u64,
    seconds: u64,
    writes_in_flight: u64,
    directory: PathBuf,
}

impl Settings {
    fn from_args() -> Settings {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let number = |index: usize, name: &str, default: u64| match args.get(index) {
            Some(text) => text
                .parse()
                .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
            None => default,
        };
        Settings {
            writers: number(0, "writers", 64).max(1),
            batch: number(1, "batch", 1).max(1),
            payload_bytes: number(2, "payload_bytes", 256),
            seconds: number(3, "seconds", 5).max(1),
            writes_in_flight: number(4, "writes_in_flight", 4),
            directory: args
                .get(5)
                .map_or_else(|| PathBuf::from("."), PathBuf::from),
        }
    }
}

/// Encodes the batches of all writers; every event has an id of its own.
struct Events {
    next_id: u64,
    payload: Vec<u8>,
    batch: u64,
}

impl Events {
    fn encode(&mut self, writer: u64) -> EncodedEvents {
        let stream = format!("bench-{writer}");
        let mut bytes = Vec::new();
        for _ in 0..self.batch {
            self.next_id += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.next_id.to_le_bytes());
            EventBuilder::new(&stream, "measured")
                .id(EventId(id))
                .payload(&self.payload)
                .encode_into(&mut bytes)
                .expect("the event is within its limits");
        }
        EncodedEvents {
            bytes: bytes.into(),
            ..EncodedEvents::default()
        }
    }
}

fn drive(engine: &Engine, settings: &Settings) -> (Vec<u64>, f64) {
    let clock = SystemClock::new();
    let payload_bytes = usize::try_from(settings.payload_bytes).expect("a length in memory");
    let mut events = Events {
        next_id: 0,
        payload: vec![0x5a; payload_bytes],
        batch: settings.batch,
    };
    let done = Arc::new(Done::default());
    let mut sent_ns = vec![0; usize::try_from(settings.writers).expect("a count in memory")];
    let mut latencies = Vec::with_capacity(4 << 20);
    let end = WARM_UP_NS + settings.seconds * 1_000_000_000;
    let mut send = |writer: u64, sent_ns: &mut u64| {
        let batch = engine
            .prepare(None, events.encode(writer))
            .expect("the batch is valid");
        *sent_ns = clock.monotonic_ns();
        let sink = Arc::clone(&done) as Arc<dyn AppendSink>;
        if let Err((error, _)) = engine.append(batch, sink, writer) {
            panic!("refused at the door: {error}");
        }
    };
    for (writer, sent_ns) in (0..).zip(&mut sent_ns) {
        send(writer, sent_ns);
    }
    let mut open = settings.writers;
    let mut outcomes = Vec::new();
    while open > 0 {
        done.take(&mut outcomes);
        let now = clock.monotonic_ns();
        for (writer, result, _) in outcomes.drain(..) {
            result.expect("the append succeeds");
            let sent_ns = &mut sent_ns[usize::try_from(writer).expect("a count in memory")];
            if (WARM_UP_NS..end).contains(&now) {
                latencies.push(now - *sent_ns);
            }
            if now < end {
                send(writer, sent_ns);
            } else {
                open -= 1;
            }
        }
    }
    (latencies, settings.seconds as f64)
}

#[expect(
    clippy::print_stdout,
    reason = "an example that prints what it measured"
)]
fn main() {
    let settings = Settings::from_args();
    let directory = tempfile::tempdir_in(&settings.directory).expect("a new folder");
    let storage = FileStorage::open(directory.path(), Backend::Auto).expect("a data directory");
    let world = World::system(Arc::new(storage));
    create_database(&world, &CreateOptions::default()).expect("a new database");
    let config = EngineConfig {
        writes_in_flight_max: usize::try_from(settings.writes_in_flight).expect("a small number"),
        ..EngineConfig::default()
    };
    let engine = Engine::open(world, config).expect("the database opens");
    let (mut latencies, seconds) = drive(&engine, &settings);
    let counters = engine.status().partitions[0].counters;
    engine.shutdown();

    latencies.sort_unstable();
    let quantile = |q: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index below the length"
        )]
        let index = ((latencies.len() - 1) as f64 * q) as usize;
        latencies[index] as f64 / 1000.0
    };
    let batches = latencies.len() as f64;
    println!(
        "{} writers x {} events of {} B, {} writes in flight, {}",
        settings.writers,
        settings.batch,
        settings.payload_bytes,
        settings.writes_in_flight,
        engine.status().backend,
    );
    println!(
        "events/s        {:.0}",
        batches * settings.batch as f64 / seconds
    );
    println!(
        "p50 / p99 us    {:.0} / {:.0}",
        quantile(0.50),
        quantile(0.99)
    );
    println!(
        "p99.9 / max us  {:.0} / {:.0}",
        quantile(0.999),
        quantile(1.0)
    );
    // The counters cover warm-up too, so only their ratios are of use here.
    let groups = counters.groups.max(1) as f64;
    println!("batches/group   {:.2}", counters.batches as f64 / groups);
    println!(
        "groups/s        {:.0}",
        batches / seconds * groups / counters.batches.max(1) as f64
    );
    let events = counters.events.max(1) as f64;
    println!(
        "event B/event   {:.1}",
        counters.event_bytes as f64 / events
    );
    println!(
        "group B/event   {:.1}",
        counters.group_bytes as f64 / events
    );
    println!(
        "zeroed B/event  {:.1}",
        counters.zeroed_bytes as f64 / events
    );
}
