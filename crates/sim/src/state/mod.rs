//! Worlds with modules: state, snapshots, the life of modules and queries under crashes.
//!
//! Beside [`crate::Sim`], whose model knows every event, this simulation asks whether state follows
//! from the log: after crashes at any operation, with derived files lost or damaged, whatever the
//! order of steps. What a scan or a query operator answered once must be answered again for ever at its
//! token; a validator must have decided each guarded batch, and by the state of exactly the event before
//! it; derived events must be there exactly once; at the end everything recorded is verified against the log,
//! and counts against a reading of the log that uses no fold.
//!
//! It damages derived files only: that the log survives what can be survived is the other
//! simulation's question.

mod guests;
mod judge;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use truthdb_compute::{
    ActivateRequest, ActivationMode, At, Compute, ComputeConfig, ComputeError, ComputeStepper,
    FoldState, NoSink, PAGE_ROWS_MAX, QueryAnswer, QueryRequest, ReadOptions, Reply, RowsAnswer,
    ScanRequest, SkipRequest, VerifyRequest,
};
use truthdb_engine::{
    AppendBatch, AppendError, AppendSink, Appended, Direction, EncodedEvents, Engine, EngineConfig,
    Filter, ReadFrom, ReadRequest, Stepper,
};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::sim::{SimFault, SimFaults, SimPrng, SimWorld};
use truthdb_log::{CreateOptions, create_database};
use truthdb_module::{Limits, WasiProfile};

use self::guests::{BOOM, CODES, ECHO, GUARDED, ORDER, Quirk, runtime};
use crate::seeds::Failure;
use crate::sim::{Violation, violation};

/// The format's smallest segment.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Steps in which everything comes to rest once nothing fails any more.
const SETTLE_STEPS: u32 = 50_000;
/// Answers that are remembered.
const SEEN_MAX: usize = 24;

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateFigures {
    /// Events appended by the simulation and acknowledged.
    pub acknowledged: u64,
    /// Restarts of all kinds.
    pub restarts: u64,
    /// Activations that were decided.
    pub activations: u64,
    /// Answers that were asked for again and were the same.
    pub compared: u64,
    /// Verdicts that were found to follow from the state of the event before.
    pub judged: u64,
    /// Derived events at the end.
    pub derived: u64,
    /// Derived files that were removed or damaged.
    pub damaged: u64,
    /// Hash over operations, data, results and times.
    pub trace_hash: u64,
}

/// What became of the appends; the tag is the partition.
#[derive(Default)]
struct Outcomes {
    acknowledged: u64,
    /// What the validator said: partition, index of the event in its batch, words.
    refused: Vec<(u32, u64, String)>,
}

#[derive(Default)]
struct Inbox(Mutex<Outcomes>);

impl Inbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Outcomes> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl AppendSink for Inbox {
    fn complete(&self, tag: u64, result: Result<Appended, AppendError>, batch: Box<AppendBatch>) {
        let mut outcomes = self.lock();
        match result {
            Ok(_) => outcomes.acknowledged += batch.event_count() as u64,
            Err(AppendError::Rejected { index, message, .. }) => {
                let partition = u32::try_from(tag).expect("partitions are few");
                outcomes.refused.push((partition, index as u64, message));
            }
            Err(_) => {}
        }
    }
}

/// An answer that is to be had again.
enum Seen {
    Rows(&'static str, RowsAnswer),
    Sum(QueryAnswer),
}

struct Live {
    engine: Engine,
    compute: Compute,
    stepper: Stepper,
    folds: ComputeStepper,
    replies: Vec<(Arc<Reply>, bool)>,
}

/// See the module's description.
struct StateSim {
    world: SimWorld,
    prng: SimPrng,
    partitions: u32,
    engine_config: EngineConfig,
    compute_config: ComputeConfig,
    live: Option<Live>,
    boots: u64,
    next_id: u64,
    skipped: bool,
    seen: Vec<Seen>,
    inbox: Arc<Inbox>,
    figures: StateFigures,
}

/// Runs one seed; a panic is a violation like others.
///
/// # Errors
/// What was wrong.
pub fn run_state_seed(seed: u64) -> Result<StateFigures, Failure> {
    let result = catch_unwind(AssertUnwindSafe(|| StateSim::new(seed).run()));
    let violation = match result {
        Ok(Ok(figures)) => return Ok(figures),
        Ok(Err(violation)) => violation,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Violation(format!("panic: {}", text.unwrap_or("of an unknown kind")))
        }
    };
    Err(Failure::of_state(seed, violation))
}

impl StateSim {
    fn new(seed: u64) -> StateSim {
        let mut prng = SimPrng::new(seed ^ 0x464f_4c44_5354_4154);
        let world = SimWorld::new(seed);
        let partitions = 1 + u32::try_from(prng.below(3)).expect("below 3");
        let choose = |prng: &mut SimPrng, from: &[u64]| {
            let index = prng.below(from.len() as u64);
            from[usize::try_from(index).expect("an index")]
        };
        StateSim {
            partitions,
            engine_config: EngineConfig {
                tail_cache_bytes: 1 << 20,
                ..EngineConfig::default()
            },
            compute_config: ComputeConfig {
                snapshot_every_events: choose(&mut prng, &[0, 40, 300]),
                checkpoint_every_events: choose(&mut prng, &[0, 20, 200]),
                retained_views: if prng.coin() { 1 } else { 8 },
                ..ComputeConfig::default()
            },
            boots: world.boots(),
            world,
            prng,
            live: None,
            next_id: 0,
            skipped: false,
            seen: Vec::new(),
            inbox: Arc::default(),
            figures: StateFigures::default(),
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.prng.below(below)
    }

    fn draw_partition(&mut self) -> u32 {
        let count = u64::from(self.partitions);
        u32::try_from(self.draw(count)).expect("partitions are few")
    }

    fn run(&mut self) -> Result<StateFigures, Violation> {
        let options = CreateOptions {
            partition_count: self.partitions,
            segment_bytes: SEGMENT_BYTES,
            ..CreateOptions::default()
        };
        if let Err(error) = create_database(&self.world.world(), &options) {
            return violation(format!("a healthy machine cannot make a database: {error}"));
        }
        self.world.set_faults(SimFaults {
            latency_ns_max: 200_000,
            ..SimFaults::default()
        });
        self.open()?;
        let actions = 60 + self.draw(120);
        for _ in 0..actions {
            self.act()?;
            if self.world.boots() != self.boots {
                self.reopen()?;
            }
        }
        self.world.clear_planned();
        self.settle()?;
        self.check()?;
        self.kill();
        self.reopen()?;
        self.settle()?;
        self.check()?;
        self.figures.acknowledged = self.inbox.lock().acknowledged;
        self.figures.trace_hash = self.world.trace_hash();
        Ok(self.figures)
    }

    fn act(&mut self) -> Result<(), Violation> {
        match self.draw(40) {
            0..12 => self.append(),
            12..22 => {
                for _ in 0..=self.draw(60) {
                    self.step();
                }
            }
            22..25 => self.activate(),
            25 => self.remove(),
            26..28 => self.lift(),
            28..30 => self.mark(),
            30..33 => self.look()?,
            33 => {
                self.settle()?;
                if self.world.boots() == self.boots {
                    self.compare_seen()?;
                    self.judge_refusals()?;
                }
            }
            34 if self.prng.coin() => self.world.crash(),
            35 => {
                let passes = self.draw(300);
                self.world.fail_nth(None, passes, SimFault::Crash);
            }
            36 if self.prng.coin() => {
                self.kill();
                self.reopen()?;
            }
            _ => self.run_a_while(),
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), Violation> {
        self.boots = self.world.boots();
        let world = self.world.world();
        let opened = Engine::open_stepped(world.clone(), self.engine_config.clone());
        let (engine, stepper) = match opened {
            Ok(opened) => opened,
            Err(_) if self.world.boots() != self.boots => return Ok(()),
            Err(error) => return violation(format!("the engine does not open: {error}")),
        };
        let config = self.compute_config.clone();
        let opened = Compute::open_stepped(&engine, &world, Arc::new(runtime()), config);
        let (compute, folds) = match opened {
            Ok(opened) => opened,
            Err(error) => return violation(format!("state does not open: {error}")),
        };
        self.live = Some(Live {
            engine,
            compute,
            stepper,
            folds,
            replies: Vec::new(),
        });
        Ok(())
    }

    fn kill(&mut self) {
        self.live = None;
        self.world.kill();
    }

    /// Starts again, perhaps after derived files were lost or damaged.
    fn reopen(&mut self) -> Result<(), Violation> {
        for _ in 0..50 {
            self.live = None;
            // What was refused by a state that may be lost cannot be looked at any more.
            self.inbox.lock().refused.clear();
            self.figures.restarts += 1;
            if self.draw(3) == 0 {
                self.damage();
            }
            self.open()?;
            if self.live.is_some() && self.world.boots() == self.boots {
                return Ok(());
            }
            self.world.clear_planned();
        }
        violation("the database does not open on a healthy machine")
    }

    fn damage(&mut self) {
        let is_derived = |path: &String| {
            ["/deltas/", "/snapshots/", "modules/"]
                .iter()
                .any(|part| path.contains(part))
        };
        let paths: Vec<String> = self.world.paths().into_iter().filter(is_derived).collect();
        if paths.is_empty() {
            return;
        }
        let all = self.draw(4) == 0;
        let chosen = usize::try_from(self.draw(paths.len() as u64)).expect("an index");
        for (index, path) in paths.iter().enumerate() {
            if !all && index != chosen {
                continue;
            }
            self.figures.damaged += 1;
            let bytes = self
                .world
                .read_file(path)
                .map_or(0, |bytes| bytes.len() as u64);
            if all || bytes == 0 || self.prng.coin() {
                let _ = self.world.remove_file(path);
            } else {
                let offset = self.draw(bytes);
                let _ = self.world.corrupt(path, offset, 1 << self.prng.below(8));
            }
        }
    }

    fn step(&mut self) {
        let partition = self.draw_partition() as usize;
        let what = self.draw(4);
        let Some(live) = &mut self.live else { return };
        match what {
            0 => {
                live.stepper.step_writer(partition);
            }
            1 => live.stepper.wait_writer(partition, Some(1_000_000)),
            2 => {
                live.folds.step(partition);
            }
            _ => {
                live.stepper.step_maintenance();
            }
        }
    }

    fn append(&mut self) {
        for _ in 0..=self.draw(4) {
            let count = 1 + self.draw(3);
            let stream = match self.draw(12) {
                guarded @ 0..3 => format!("{GUARDED}{guarded}"),
                free => format!("s{free}"),
            };
            let mut bytes = Vec::new();
            for _ in 0..count {
                self.next_id += 1;
                let mut id = [5; 16];
                id[..8].copy_from_slice(&self.next_id.to_le_bytes());
                let text = self.next_id.to_string();
                let payload = if self.draw(60) == 0 {
                    BOOM
                } else {
                    text.as_bytes()
                };
                let event_type = if self.draw(5) == 0 { "other" } else { ORDER };
                EventBuilder::new(&stream, event_type)
                    .id(EventId::from_bytes(id))
                    .payload(payload)
                    .encode_into(&mut bytes)
                    .expect("a small event");
            }
            let Some(live) = &self.live else { return };
            let input = EncodedEvents {
                bytes: Bytes::from(bytes),
                ..EncodedEvents::default()
            };
            let Ok(batch) = live.engine.prepare(None, input) else {
                return;
            };
            let sink = Arc::clone(&self.inbox) as Arc<dyn AppendSink>;
            let partition = live.engine.partition_of(&stream);
            // Refused is refused: the simulation does not count what it handed over.
            let _ = live.engine.append(batch, sink, u64::from(partition));
        }
    }

    fn activate(&mut self) {
        let index = self.draw(CODES.len() as u64);
        let (bytes, ..) = CODES[usize::try_from(index).expect("an index")];
        let mode = match self.draw(4) {
            0 => ActivationMode::Continue,
            1 => ActivationMode::Migrate,
            _ => ActivationMode::Rebuild,
        };
        let Some(live) = &mut self.live else { return };
        let Ok(inspected) = live.compute.inspect(bytes) else {
            return;
        };
        let hash = inspected.hash;
        live.replies
            .push((live.compute.submit_publish(inspected), false));
        let reply = live.compute.submit_activate(ActivateRequest {
            hash,
            mode,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        });
        live.replies.push((reply, true));
    }

    fn remove(&mut self) {
        let index = self.draw(4);
        let name = ["tally", "echo", "guard", "sum"][usize::try_from(index).expect("an index")];
        if let Some(live) = &mut self.live {
            live.replies.push((live.compute.submit_remove(name), false));
        }
    }

    /// Lets a halted module go on: over the event, or once more.
    fn lift(&mut self) {
        let coin = self.prng.coin();
        let Some(live) = &mut self.live else { return };
        let status = live.compute.status();
        for module in &status.modules {
            for generation in &module.generations {
                let FoldState::Halted { .. } = generation.state else {
                    continue;
                };
                let (name, partition) = (module.module.clone(), generation.partition);
                let reply = if coin {
                    self.skipped = true;
                    // The whole batch, which has three events at most.
                    let first = generation.applied + 1;
                    live.compute.submit_skip(SkipRequest {
                        module: name,
                        partition,
                        first_sequence: first,
                        last_sequence: (first + 2).min(live.engine.committed(partition)),
                        reason: "it cannot bear it".to_owned(),
                    })
                } else {
                    live.compute.submit_resume(&name, partition)
                };
                live.replies.push((reply, false));
            }
        }
    }

    fn mark(&mut self) {
        let partition = self.draw_partition();
        if let Some(live) = &mut self.live {
            live.replies
                .push((live.compute.submit_snapshot(partition), false));
        }
    }

    fn scan(&self, module: &str, at: At) -> Option<Result<RowsAnswer, ComputeError>> {
        let live = self.live.as_ref()?;
        Some(live.compute.scan(&ScanRequest {
            module: module.to_owned(),
            table: "counts".to_owned(),
            start: Vec::new(),
            end: None,
            reverse: false,
            limit: PAGE_ROWS_MAX,
            page: None,
            partition: None,
            options: ReadOptions {
                at,
                ..ReadOptions::default()
            },
        }))
    }

    fn sum(&self, at: At) -> Option<Result<QueryAnswer, ComputeError>> {
        let live = self.live.as_ref()?;
        Some(live.compute.query(&QueryRequest {
            operator: "sum".to_owned(),
            arguments: ORDER.as_bytes().to_vec(),
            partition: None,
            options: ReadOptions {
                at,
                ..ReadOptions::default()
            },
        }))
    }

    /// Asks for the present and remembers the answer.
    fn look(&mut self) -> Result<(), Violation> {
        let (name, seen) = match self.draw(3) {
            0 => ("sum", self.sum(At::Now).map(|sum| sum.map(Seen::Sum))),
            other => {
                let name = if other == 1 { "tally" } else { "echo" };
                let rows = self.scan(name, At::Now);
                (
                    name,
                    rows.map(|rows| rows.map(|rows| Seen::Rows(name, rows))),
                )
            }
        };
        match seen {
            Some(Ok(seen)) => {
                if let Seen::Sum(sum) = &seen {
                    self.check_sum(sum)?;
                }
                if self.seen.len() >= SEEN_MAX {
                    let index = self.draw(SEEN_MAX as u64);
                    self.seen
                        .swap_remove(usize::try_from(index).expect("an index"));
                }
                self.seen.push(seen);
                Ok(())
            }
            None
            | Some(Err(
                ComputeError::NoSuchModule { .. }
                | ComputeError::NotYet { .. }
                | ComputeError::Halted { .. }
                | ComputeError::Read(_),
            )) => Ok(()),
            Some(Err(error)) => violation(format!("a look at {name} fails: {error}")),
        }
    }

    /// What was answered once is answered again.
    fn compare_seen(&mut self) -> Result<(), Violation> {
        for expected in &self.seen {
            let (name, token, again) = match expected {
                Seen::Rows(name, rows) => {
                    let token = rows.token();
                    let again = self.scan(name, At::Token(token.clone()));
                    let again = again.map(|r| {
                        r.map(|again| (again.rows == rows.rows, format!("{again:?}, was {rows:?}")))
                    });
                    (*name, token, again)
                }
                Seen::Sum(sum) => {
                    let token = sum.token();
                    let again = self.sum(At::Token(token.clone()));
                    let again = again
                        .map(|r| r.map(|again| (again == *sum, format!("{again:?}, was {sum:?}"))));
                    ("sum", token, again)
                }
            };
            match again {
                Some(Ok((true, _))) => self.figures.compared += 1,
                Some(Ok((false, now))) => {
                    return violation(format!(
                        "{name} at {token} is now {now}; decided was: {}",
                        self.decided()
                    ));
                }
                // A halted module may be behind; then it is asked another time.
                None | Some(Err(ComputeError::Halted { .. } | ComputeError::NotYet { .. })) => {}
                Some(Err(_)) if self.world.boots() != self.boots => return Ok(()),
                Some(Err(error)) => return violation(format!("{name} at {token}: {error}")),
            }
        }
        Ok(())
    }

    /// The control events of all partitions, for whoever reads a violation.
    fn decided(&self) -> String {
        let Some(live) = &self.live else {
            return String::new();
        };
        let mut text = String::new();
        for partition in 0..self.partitions {
            let page = live.engine.read(&ReadRequest {
                partition,
                from: ReadFrom::Start,
                direction: Direction::Forward,
                filter: Filter {
                    types: vec![truthdb_compute::CONTROL_TYPE.to_owned()],
                    ..Filter::default()
                },
                events_max: 10_000,
                bytes_max: 4 << 20,
            });
            for stored in page.iter().flat_map(truthdb_engine::ReadPage::events) {
                let event = stored.event();
                let payload = String::from_utf8_lossy(event.payload()).into_owned();
                let (sequence, stream) = (stored.sequence, event.stream());
                text.push_str(&format!("\n{partition}:{sequence} {stream} {payload}"));
            }
        }
        text
    }

    /// Steps everything, but not to the end.
    fn run_a_while(&mut self) {
        for _ in 0..self.draw(40) {
            let Some(live) = &mut self.live else { return };
            for partition in 0..self.partitions as usize {
                live.stepper.step_writer(partition);
                live.stepper.wait_writer(partition, Some(1_000_000));
                live.stepper.step_writer(partition);
                live.folds.step(partition);
            }
        }
    }

    /// Steps everything until nothing happens any more.
    fn settle(&mut self) -> Result<(), Violation> {
        let mut quiet = 0;
        for _ in 0..SETTLE_STEPS {
            if self.world.boots() != self.boots {
                self.reopen()?;
            }
            let Some(live) = &mut self.live else {
                return violation("nothing is open");
            };
            let mut busy = false;
            for partition in 0..self.partitions as usize {
                live.stepper.step_writer(partition);
                live.stepper.wait_writer(partition, Some(1_000_000));
                live.stepper.step_writer(partition);
            }
            for partition in 0..self.partitions as usize {
                match live.folds.step(partition) {
                    None => busy = true,
                    Some(Some(wait)) => busy |= wait < 2_000_000_000,
                    Some(None) => {}
                }
            }
            live.stepper.step_maintenance();
            for (reply, is_activation) in &live.replies {
                self.figures.activations +=
                    u64::from(*is_activation && reply.is_done() && reply.error().is_none());
            }
            live.replies.retain(|(reply, _)| !reply.is_done());
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet > 8 {
                return Ok(());
            }
        }
        let status = self.live.as_ref().map(|live| live.compute.status());
        violation(format!("it does not come to rest: {status:?}"))
    }

    /// Everything recorded follows from the log, and the counts are those of the log.
    fn check(&mut self) -> Result<(), Violation> {
        self.compare_seen()?;
        self.judge_refusals()?;
        self.judge_accepted()?;
        let Some(live) = &self.live else {
            return violation("nothing is open");
        };
        let report = live.compute.verify(&VerifyRequest::default(), &mut NoSink);
        let report = match report {
            Ok(report) => report,
            Err(error) => return violation(format!("it cannot be verified: {error}")),
        };
        if let Some(difference) = report.differences.first() {
            return violation(format!("not true: {difference:?}"));
        }
        self.figures.derived = events_of(&live.engine, self.partitions, ECHO)?.iter().sum();
        let status = live.compute.status();
        let orders = events_of(&live.engine, self.partitions, ORDER)?;
        for module in &status.modules {
            for generation in module.generations.iter().filter(|g| g.current) {
                let code = CODES
                    .iter()
                    .find(|(bytes, ..)| blake3_of(bytes) == generation.module_hash);
                let rebuilt = generation.mode == ActivationMode::Rebuild;
                let live_now = generation.state == FoldState::Live;
                let Some((_, name, quirk)) = code else {
                    return violation("a code that nobody published is active");
                };
                let folds = !matches!(quirk, Quirk::Guards | Quirk::Sums(_));
                if self.skipped || !rebuilt || !live_now || !folds {
                    continue;
                }
                let factor = if *quirk == Quirk::Twice { 2 } else { 1 };
                let partition = generation.partition;
                let expected = orders[partition as usize] * factor;
                let found = self.count(name, partition)?;
                if found != expected {
                    return violation(format!(
                        "{name} in partition {partition} counts {found}, the log has {expected}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn count(&self, module: &str, partition: u32) -> Result<u64, Violation> {
        let answer = match self.scan(module, At::Now) {
            Some(Ok(answer)) => answer,
            other => return violation(format!("{module} cannot be read: {other:?}")),
        };
        let row = answer
            .rows
            .iter()
            .find(|row| row.partition == partition && row.key == ORDER.as_bytes());
        let value = row.and_then(|row| row.value.clone().try_into().ok());
        Ok(value.map_or(0, u64::from_le_bytes))
    }
}

fn blake3_of(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// How many events of a type each partition's log has.
fn events_of(engine: &Engine, partitions: u32, event_type: &str) -> Result<Vec<u64>, Violation> {
    let mut counts = Vec::new();
    for partition in 0..partitions {
        let mut request = ReadRequest {
            partition,
            from: ReadFrom::Start,
            direction: Direction::Forward,
            filter: Filter::default(),
            events_max: 10_000,
            bytes_max: 4 << 20,
        };
        let mut count = 0;
        loop {
            let page = match engine.read(&request) {
                Ok(page) => page,
                Err(error) => return violation(format!("the log cannot be read: {error}")),
            };
            let events = page.events();
            count += events
                .iter()
                .filter(|stored| stored.event().event_type() == event_type)
                .count() as u64;
            match page.next {
                Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
                _ => break,
            }
        }
        counts.push(count);
    }
    Ok(counts)
}
