//! What a question about the past costs: the nearest snapshot and the deltas after it.
//!
//! `cargo run --profile fast -p truthdb-state --example as_of <directory> [events] [interval]`.
//! Makes a history on disk (batches of 1000 events, each changes one of a million rows of 48 bytes),
//! takes a snapshot every `interval` events, prunes by the default policy, and then asks at random
//! points. A history that is there already is used again. The directory is on the disk to be measured;
//! files are read with `O_DIRECT` where the file system can. Times are of the wall, and of the
//! processor: beside other work only the latter says much.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a program for measuring"
)]

use std::path::Path;
use std::sync::Arc;

use truthdb_io::{Backend, Clock, FileStorage, Storage, SystemClock};
use truthdb_state::{
    CollectStep, DELTA_FILE_BYTES_DEFAULT, DeltaLog, DeltaPlace, DeltaRecord, DeltaWriter,
    PastRange, PastView, PrunePolicy, SnapshotInput, SnapshotState, SnapshotStep, SnapshotStore,
    SnapshotTable, StatePlace, Tables, View,
};

const KEYS: u64 = 1_000_000;
const BATCH: u64 = 1000;
const QUESTIONS: u64 = 60;

struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Keys begin alike, as those of one kind of thing do.
fn key(n: u64) -> [u8; 16] {
    let mut key = *b"account-........";
    key[8..].copy_from_slice(&Random(n).draw().to_le_bytes());
    key
}

/// The value that an event sets: the event's number, and what does not compress.
fn value(event: u64) -> [u8; 32] {
    let mut value = [0; 32];
    value[..16].copy_from_slice(&key(!event));
    value[16..24].copy_from_slice(&event.to_le_bytes());
    value
}

/// The row that an event changes.
fn row(event: u64) -> u64 {
    Random(event ^ 0x5555).draw() % KEYS
}

fn state(applied_sequence: u64) -> SnapshotState {
    SnapshotState {
        module: "example".to_owned(),
        generation: 1,
        module_hash: [0; 32],
        semantics_id: [0; 32],
        applied_sequence,
        tables: vec![SnapshotTable {
            name: "rows".to_owned(),
            version: 1,
        }],
    }
}

/// Time that this thread has had a processor, in nanoseconds.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// The longest of the writer's steps, and the time of all of them, in nanoseconds.
fn snapshot(
    store: &mut SnapshotStore,
    sequence: u64,
    view: View,
    clock: &SystemClock,
) -> (u64, u64) {
    let state = state(sequence);
    store
        .begin(sequence, 0, vec![SnapshotInput { state, view }])
        .unwrap();
    let (mut longest, mut total) = (0, 0);
    loop {
        let start = clock.monotonic_ns();
        let step = store.step().unwrap();
        let ns = clock.monotonic_ns() - start;
        (longest, total) = (longest.max(ns), total + ns);
        if matches!(step, SnapshotStep::Published(_)) {
            return (longest, total);
        }
    }
}

fn history(store: &mut SnapshotStore, log: &DeltaLog, events: u64, interval: u64) {
    let clock = SystemClock::new();
    let mut tables = Tables::new(1);
    let mut writer = DeltaWriter::open(log.clone(), 0, DELTA_FILE_BYTES_DEFAULT).unwrap();
    let (mut longest, mut in_snapshots) = (0, 0);
    let start = clock.monotonic_ns();
    for batch in 0..events / BATCH {
        tables.begin();
        for event in batch * BATCH + 1..=(batch + 1) * BATCH {
            tables.set(0, &key(row(event)), &value(event)).unwrap();
        }
        let last_sequence = (batch + 1) * BATCH;
        let record = DeltaRecord {
            first_sequence: batch * BATCH + 1,
            last_sequence,
            timestamp_ns: batch,
            changes: tables.commit(),
            fingerprint_after: tables.fingerprint(),
        };
        writer.append(&record).unwrap();
        if last_sequence.is_multiple_of(interval) {
            let (step, total) = snapshot(store, last_sequence, tables.view(), &clock);
            longest = longest.max(step);
            in_snapshots += total;
            store.prune(&PrunePolicy::default()).unwrap();
        }
    }
    writer.sync().unwrap();
    while store.collect_step().unwrap() == CollectStep::Working {}
    let seconds = |ns: u64| ns as f64 / 1e9;
    println!(
        "history: {events} events in {:.1} s, of them {:.1} s in snapshots, longest step {:.1} ms",
        seconds(clock.monotonic_ns() - start),
        seconds(in_snapshots),
        longest as f64 / 1e6
    );
    println!(
        "state: {} rows, {} bytes, {} bytes of memory; {} snapshots kept: {:?}",
        tables.rows(),
        tables.bytes(),
        tables.memory_bytes(),
        store.sequences().len(),
        store.sequences()
    );
}

fn line(name: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    let at = |share: usize| ms[(ms.len() - 1) * share / 100];
    println!(
        "{name:<44} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
        at(0),
        at(50),
        at(90),
        at(100)
    );
}

fn open(
    store: &SnapshotStore,
    log: &DeltaLog,
    at: u64,
    range: Option<PastRange>,
) -> Option<PastView> {
    let reader = store.reader();
    let nearest = reader.newest_at_or_before(at)?;
    let mut past = PastView::new(Arc::new(reader.open(nearest).unwrap()), 0);
    if let Some(range) = range {
        past.narrow(range);
    }
    let mut deltas = log.read_after(past.sequence()).unwrap();
    assert!(past.advance(&mut deltas, at).unwrap());
    Some(past)
}

fn questions(store: &SnapshotStore, log: &DeltaLog, events: u64) {
    let clock = SystemClock::new();
    let mut random = Random(7);
    let [
        mut point,
        mut point_cpu,
        mut whole,
        mut whole_cpu,
        mut deltas,
    ] = [const { Vec::new() }; 5];
    while whole.len() < usize::try_from(QUESTIONS).unwrap() {
        let at = random.draw() % (events / BATCH) * BATCH + BATCH;
        // The row that the last event before the point has changed, and so its value is known.
        let asked = key(row(at));
        let now = || [clock.monotonic_ns(), cpu_ns()];
        let ms = |start: [u64; 2]| {
            let end = now();
            [0, 1].map(|at| (end[at] - start[at]) as f64 / 1e6)
        };
        let start = now();
        let Some(past) = open(store, log, at, Some(PastRange::of_key(0, &asked))) else {
            continue;
        };
        assert_eq!(past.get(0, &asked).unwrap().unwrap(), value(at));
        let [wall, cpu] = ms(start);
        point.push(wall);
        point_cpu.push(cpu);
        let start = now();
        let past = open(store, log, at, None).unwrap();
        assert_eq!(past.get(0, &asked).unwrap().unwrap(), value(at));
        let [wall, cpu] = ms(start);
        whole.push(wall);
        whole_cpu.push(cpu);
        let base = past.state().unwrap().applied_sequence;
        deltas.push((past.sequence() - base) as f64 / 1000.0);
    }
    println!(
        "{:<44} {:>8} {:>8} {:>8} {:>8}",
        "", "min", "median", "p90", "max"
    );
    line("deltas between snapshot and point, thousands", deltas);
    line("get of one row as of a point, ms", point);
    line("the same, processor", point_cpu);
    line("view of all rows as of a point and get, ms", whole);
    line("the same, processor", whole_cpu);
    let (start, start_cpu) = (clock.monotonic_ns(), cpu_ns());
    let (loaded, _) = store.load_newest(events);
    let rows = loaded.unwrap().tables[0].rows();
    let wall = (clock.monotonic_ns() - start) as f64 / 1e6;
    let cpu = (cpu_ns() - start_cpu) as f64 / 1e6;
    println!("loading the newest snapshot, {rows} rows: {wall:.0} ms, processor {cpu:.0} ms");
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap();
    let mut number = |default| arguments.next().map_or(default, |n| n.parse().unwrap());
    let (events, interval) = (number(10_000_000), number(250_000));
    let storage: Arc<dyn Storage> =
        Arc::new(FileStorage::open(Path::new(&directory), Backend::Auto).unwrap());
    let place = StatePlace {
        database_id: [1; 16],
        partition: 0,
    };
    let (mut store, found) = SnapshotStore::open(Arc::clone(&storage), place).unwrap();
    let module = "example".to_owned();
    let place = DeltaPlace {
        place,
        module,
        generation: 1,
    };
    let log = DeltaLog::new(storage, place);
    if found.sequences.is_empty() {
        history(&mut store, &log, events, interval);
    }
    questions(&store, &log, events);
}
