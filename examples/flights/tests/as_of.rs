//! Answers about the past of the flights, from everything that can give them: asked while they were the
//! present, from versions in memory, from snapshots and deltas after a restart, and from a replay that
//! begins with the first event. At a thousand random points, on both sides of an upgrade of a module, all
//! of them are the same bytes.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use truthdb_compute::*;
use truthdb_engine::{Durability, EncodedEvents, Engine, EngineConfig};
use truthdb_flights::{History, Moment, batches};
use truthdb_guests::Guest;
use truthdb_io::{Backend, FileStorage, World};
use truthdb_log::{CreateOptions, create_database};
use truthdb_module::{Host, HostConfig, Limits, WasiProfile};

const POINTS: usize = 1000;
/// Six weeks of the year: what a slow machine bears.
const EVENTS: usize = 100_000;
const PARTITIONS: u32 = 2;
const BATCH_EVENTS: usize = 1000;
/// Far more often than a server does, so that there are as many as in the history of years.
const SNAPSHOT_EVERY_EVENTS: u64 = 5_000;
/// Many times what the work takes on a machine at rest.
const DEADLINE: Duration = Duration::from_secs(300);

/// Module and tables that are looked at.
const LOOKED_AT: [(&str, &[&str]); 2] = [
    ("positions", &["aircraft", "airborne"]),
    ("delays", &["carriers", "routes"]),
];

/// xorshift64: the same points in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// A moment of the history that is asked about.
#[derive(Debug, Clone)]
struct Point {
    partition: u32,
    /// Within a batch or at its end.
    sequence: u64,
    /// What each module answered while this was the present.
    answers: Vec<Seen>,
}

/// What is compared: every byte of the rows, and what says that no other row differs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    generation: u32,
    fingerprint: Fingerprint,
    rows: blake3::Hash,
}

struct Node {
    engine: Engine,
    compute: Compute,
}

impl Node {
    fn open(folder: &Path, retained_views: usize) -> Node {
        let storage = FileStorage::open(folder, Backend::Blocking).unwrap();
        let world = World::system(Arc::new(storage));
        let config = EngineConfig {
            durability: Durability::Os,
            ..EngineConfig::default()
        };
        let engine = Engine::open(world.clone(), config).unwrap();
        let host = HostConfig {
            fold_instances_max: 32,
            query_instances_max: 4,
            ..HostConfig::default()
        };
        let runtime = Arc::new(WasmRuntime::new(Host::new(host).unwrap()));
        let config = ComputeConfig {
            snapshot_every_events: SNAPSHOT_EVERY_EVENTS,
            retained_views,
            query_deadline: DEADLINE,
            decision_wait: DEADLINE,
            ..ComputeConfig::default()
        };
        let compute = Compute::open(&engine, &world, runtime, config).unwrap();
        Node { engine, compute }
    }

    fn close(self) {
        self.compute.shutdown();
        self.engine.shutdown();
    }

    fn activate(&self, guest: Guest) {
        let published = self.compute.publish(&truthdb_guests::wasm(guest)).unwrap();
        let request = ActivateRequest {
            hash: published.hash,
            mode: ActivationMode::Rebuild,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        };
        self.compute.activate(&request).unwrap();
    }

    /// Appends a batch; the answer is its first and its last sequence.
    fn append(&self, history: &History, batch: &[Moment]) -> (u64, u64) {
        let mut bytes = Vec::new();
        for moment in batch {
            history
                .event(*moment, |event| event.encode_into(&mut bytes))
                .unwrap();
        }
        let input = EncodedEvents {
            bytes: Bytes::from(bytes),
            ..EncodedEvents::default()
        };
        loop {
            let prepared = self.engine.prepare(None, input.clone()).unwrap();
            match self.engine.append_blocking(prepared) {
                Err(error) if error.is_retryable() => std::thread::yield_now(),
                outcome => {
                    let appended = outcome.unwrap();
                    return (appended.first_sequence, appended.last_sequence);
                }
            }
        }
    }

    /// All rows of the tables of a module in a partition.
    fn look(&self, module: usize, partition: u32, options: &ReadOptions) -> Seen {
        let (module, tables) = LOOKED_AT[module];
        let mut rows = RowHasher::default();
        let mut stamp: Option<Stamp> = None;
        for (index, table) in (0u32..).zip(tables) {
            let mut request = ScanRequest {
                module: module.to_owned(),
                table: (*table).to_owned(),
                start: Vec::new(),
                end: None,
                reverse: false,
                limit: PAGE_ROWS_MAX,
                page: None,
                partition: Some(partition),
                options: options.clone(),
            };
            loop {
                let page = self.compute.scan(&request).unwrap();
                for row in &page.rows {
                    rows.push(index, &row.key, &row.value);
                }
                // The second table is asked at the moment of the first.
                request.options.at = At::Token(page.token());
                stamp = page.stamps.into_iter().next();
                match page.next {
                    Some(next) => request.page = Some(next),
                    None => break,
                }
            }
        }
        let stamp = stamp.unwrap();
        if let At::Token(token) = &options.at {
            assert_eq!(token.get(partition), Some(stamp.sequence));
        }
        Seen {
            generation: stamp.generation,
            fingerprint: stamp.fingerprint,
            rows: rows.finish(),
        }
    }

    fn look_at_all(&self, partition: u32, options: &ReadOptions) -> Vec<Seen> {
        (0..LOOKED_AT.len())
            .map(|module| self.look(module, partition, options))
            .collect()
    }

    /// Asks about all points, and compares with what was seen while they were the present.
    fn compare_points(&self, points: &[Point], how: &str) {
        for point in points {
            let answers = self.look_at_all(point.partition, &as_of(point, None));
            assert_eq!(answers, point.answers, "{how}: {point:?}");
        }
    }

    /// Waits until the second generation of `delays` has all there is, and answers in all partitions.
    fn wait_for_upgrade(&self) {
        for partition in 0..PARTITIONS {
            let rebuilt = ReadOptions {
                generation: Some(2),
                ..present(partition, self.engine.committed(partition))
            };
            self.look(1, partition, &rebuilt);
        }
        loop {
            let status = self.compute.module("delays").unwrap();
            let newest = status.generations.iter().filter(|one| one.generation == 2);
            if newest.filter(|one| one.current).count() == PARTITIONS as usize {
                return;
            }
            // The runner ends a test that hangs.
            std::thread::yield_now();
        }
    }

    /// The state of a generation at each of these sequences of a partition (ascending), by one replay that
    /// begins with the first event.
    fn replay(
        &self,
        module: usize,
        generation: u32,
        partition: u32,
        sequences: &[u64],
    ) -> Vec<Seen> {
        let mut walk = Walk {
            generation,
            waiting: sequences.iter().copied().collect(),
            rows: BTreeMap::new(),
            fingerprint: Fingerprint::EMPTY,
            seen: Vec::new(),
        };
        let request = ReplayRequest {
            module: LOOKED_AT[module].0.to_owned(),
            code: ReplayCode::Recorded {
                generation: Some(generation),
            },
            partition: Some(partition),
            to: At::Now,
            changes_from: Some(1),
        };
        let states = self.compute.replay(&request, &mut walk).unwrap();
        assert_eq!(states[0].halted, None);
        walk.tell_until(u64::MAX);
        walk.seen
    }
}

/// Follows a replay, and writes down what the tables hold at each sequence that is waited for.
struct Walk {
    generation: u32,
    waiting: std::collections::VecDeque<u64>,
    rows: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
    fingerprint: Fingerprint,
    seen: Vec<Seen>,
}

impl Walk {
    /// The tables are those of all sequences before this one.
    fn tell_until(&mut self, sequence: u64) {
        while self.waiting.front().is_some_and(|first| *first < sequence) {
            self.waiting.pop_front();
            let mut rows = RowHasher::default();
            for ((table, key), value) in &self.rows {
                rows.push(*table, key, value);
            }
            self.seen.push(Seen {
                generation: self.generation,
                fingerprint: self.fingerprint,
                rows: rows.finish(),
            });
        }
    }
}

impl ReplaySink for Walk {
    fn batch(&mut self, batch: ReplayedBatch) -> ControlFlow<()> {
        self.tell_until(batch.last_sequence);
        for change in batch.changes.iter() {
            let key = (change.table, change.key.to_vec());
            match change.value {
                Some(value) => self.rows.insert(key, value.to_vec()),
                None => self.rows.remove(&key),
            };
        }
        self.fingerprint = batch.fingerprint;
        ControlFlow::Continue(())
    }
}

/// A hash over rows in order, with their lengths.
#[derive(Default)]
struct RowHasher {
    bytes: Vec<u8>,
}

impl RowHasher {
    fn push(&mut self, table: u32, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(&table.to_le_bytes());
        for part in [key, value] {
            let length = u32::try_from(part.len()).unwrap();
            self.bytes.extend_from_slice(&length.to_le_bytes());
            self.bytes.extend_from_slice(part);
        }
    }

    fn finish(&self) -> blake3::Hash {
        blake3::hash(&self.bytes)
    }
}

fn as_of(point: &Point, generation: Option<u32>) -> ReadOptions {
    ReadOptions {
        at: At::Token(Token::of(point.partition, point.sequence)),
        generation,
        ..ReadOptions::default()
    }
}

/// What is applied, but at least this.
fn present(partition: u32, sequence: u64) -> ReadOptions {
    ReadOptions {
        min_sequence: Some(Token::of(partition, sequence)),
        ..ReadOptions::default()
    }
}

/// The batches of a partition, in order, each with the places of random points in it.
type Plan = Vec<(u32, Vec<Moment>, Vec<usize>)>;

/// Batches of all partitions in the order of time, with a thousand points.
fn plan(node: &Node, history: &History) -> Plan {
    let mut of_partitions = vec![Vec::new(); PARTITIONS as usize];
    for moment in &history.moments()[..EVENTS] {
        let partition = truthdb_event::partition_of(&history.stream(*moment), PARTITIONS);
        of_partitions[partition as usize].push(*moment);
    }
    assert_eq!(node.engine.partition_count(), PARTITIONS);
    let mut plan: Plan = Vec::new();
    for (partition, moments) in (0..).zip(&of_partitions) {
        for batch in batches(moments, BATCH_EVENTS) {
            plan.push((partition, batch.to_vec(), Vec::new()));
        }
    }
    plan.sort_by_key(|(partition, batch, _)| (batch[0].at, *partition));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut left = POINTS;
    while left > 0 {
        // Each event is as likely as any other.
        let mut event = random.below(EVENTS);
        for (_, batch, points) in &mut plan {
            if event < batch.len() {
                if !points.contains(&event) {
                    points.push(event);
                    left -= 1;
                }
                break;
            }
            event -= batch.len();
        }
    }
    plan
}

/// Appends batches, and asks about each point while it is the present.
fn load(node: &Node, history: &History, plan: &[(u32, Vec<Moment>, Vec<usize>)]) -> Vec<Point> {
    let mut points = Vec::new();
    let mut last = vec![0; PARTITIONS as usize];
    for (partition, batch, places) in plan {
        let before = places.iter().any(|place| place + 1 < batch.len()).then(|| {
            // Within a batch there is no state of its own: it is that of the batch before.
            node.look_at_all(*partition, &present(*partition, last[*partition as usize]))
        });
        let (first, end) = node.append(history, batch);
        last[*partition as usize] = end;
        for place in places {
            let is_end = place + 1 == batch.len();
            let answers = if is_end {
                node.look_at_all(*partition, &present(*partition, end))
            } else {
                before.clone().unwrap()
            };
            points.push(Point {
                partition: *partition,
                sequence: first + u64::try_from(*place).unwrap(),
                answers,
            });
        }
    }
    points
}

/// Compares the points of a partition and generation with a replay that begins with the first event.
/// `seen`: what was answered, by module and point.
fn compare_replay(
    node: &Node,
    module: usize,
    generation: u32,
    points: &[&Point],
    seen: &dyn Fn(&Point) -> Seen,
) {
    for partition in 0..PARTITIONS {
        let mut of_partition: Vec<&Point> = points
            .iter()
            .copied()
            .filter(|point| point.partition == partition)
            .collect();
        of_partition.sort_by_key(|point| point.sequence);
        let sequences: Vec<u64> = of_partition.iter().map(|point| point.sequence).collect();
        let replayed = node.replay(module, generation, partition, &sequences);
        assert_eq!(replayed.len(), of_partition.len());
        for (point, replayed) in of_partition.iter().zip(replayed) {
            assert_eq!(seen(point), replayed, "replay: {point:?}");
        }
    }
}

#[test]
fn a_thousand_points_of_the_past_are_the_same_bytes_from_memory_files_and_replay() {
    let history = History::load().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let storage = FileStorage::open(folder.path(), Backend::Blocking).unwrap();
    let options = CreateOptions {
        partition_count: PARTITIONS,
        ..CreateOptions::default()
    };
    create_database(&World::system(Arc::new(storage)), &options).unwrap();

    // While each point is the present; in the middle of the history the module is upgraded.
    let node = Node::open(folder.path(), 1024);
    node.activate(Guest::Positions);
    node.activate(Guest::Delays);
    let plan = plan(&node, &history);
    let (first_half, second_half) = plan.split_at(plan.len() / 2);
    let mut points = load(&node, &history, first_half);
    let before_upgrade = points.len();
    node.compare_points(&points, "from memory, before the upgrade");
    node.activate(Guest::DelaysNext);
    node.wait_for_upgrade();
    points.extend(load(&node, &history, second_half));
    assert_eq!(points.len(), POINTS);
    let generation_of = |point: &Point| point.answers[1].generation;
    for (index, point) in points.iter().enumerate() {
        assert_eq!(
            generation_of(point),
            if index < before_upgrade { 1 } else { 2 }
        );
    }

    // From versions in memory, and from files alone.
    node.compare_points(&points, "from memory, after the upgrade");
    node.close();
    let node = Node::open(folder.path(), 1);
    assert!(node.compute.snapshots(None).unwrap().len() > 10);
    node.compare_points(&points, "from snapshots and deltas");

    // From the first event on.
    for (module, generation) in [(0, 1), (1, 1), (1, 2)] {
        let answered: Vec<&Point> = points
            .iter()
            .filter(|point| point.answers[module].generation == generation)
            .collect();
        let seen = |point: &Point| point.answers[module].clone();
        compare_replay(&node, module, generation, &answered, &seen);
    }

    // What the new code would have said before its time can be asked for, and is what a replay says.
    let earlier: Vec<&Point> = points[..before_upgrade].iter().collect();
    compare_replay(&node, 1, 2, &earlier, &|point| {
        node.look(1, point.partition, &as_of(point, Some(2)))
    });
    let report = node
        .compute
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    node.close();
}
