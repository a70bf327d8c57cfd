//! A simulated machine with an engine and its folds, stepped by one thread, and native guests.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "support of several test binaries, each of which uses a part"
)]

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use truthdb_compute::*;
use truthdb_engine::{
    AppendBatch, AppendError, AppendSink, Appended, EncodedEvents, Engine, EngineConfig, Stepper,
};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::sim::SimWorld;
use truthdb_log::{CreateOptions, create_database};
use truthdb_module::*;

/// The format's smallest segment.
const SEGMENT_BYTES: u64 = 16 << 20;

#[derive(Default)]
pub struct Inbox(Mutex<Vec<(u64, Result<Appended, AppendError>)>>);

impl AppendSink for Inbox {
    fn complete(&self, tag: u64, result: Result<Appended, AppendError>, _batch: Box<AppendBatch>) {
        self.0.lock().push((tag, result));
    }
}

/// A database that is stepped.
pub struct Machine {
    pub world: SimWorld,
    pub partitions: u32,
    pub config: ComputeConfig,
    pub live: Option<Live>,
    /// The program is another version, and says so.
    pub is_upgraded: bool,
    /// `tally` computes something else.
    pub is_wrong: bool,
    next: u64,
    boots: u64,
    inbox: Arc<Inbox>,
}

pub struct Live {
    pub engine: Engine,
    pub compute: Compute,
    stepper: Stepper,
    folds: ComputeStepper,
}

impl Machine {
    pub fn new(partitions: u32) -> Machine {
        let world = SimWorld::new(7);
        let options = CreateOptions {
            partition_count: partitions,
            segment_bytes: SEGMENT_BYTES,
            ..CreateOptions::default()
        };
        create_database(&world.world(), &options).unwrap();
        let mut machine = Machine {
            world,
            partitions,
            config: ComputeConfig {
                snapshot_every_events: 0,
                checkpoint_every_events: 0,
                ..ComputeConfig::default()
            },
            live: None,
            is_upgraded: false,
            is_wrong: false,
            next: 0,
            boots: 0,
            inbox: Arc::default(),
        };
        machine.open();
        machine
    }

    pub fn open(&mut self) {
        self.try_open().expect("the power did not fail");
    }

    /// `None`: the power failed meanwhile.
    pub fn try_open(&mut self) -> Option<()> {
        self.boots = self.world.boots();
        let world = self.world.world();
        let config = EngineConfig {
            tail_cache_bytes: 1 << 20,
            ..EngineConfig::default()
        };
        let (engine, stepper) = match Engine::open_stepped(world.clone(), config) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(!self.is_up(), "{error}");
                return None;
            }
        };
        let plain = if self.is_wrong {
            Quirk::Twice
        } else {
            Quirk::None
        };
        let runtime: Arc<dyn Runtime> = if self.is_upgraded {
            Arc::new(Upgraded(runtime_of(plain)))
        } else {
            Arc::new(runtime_of(plain))
        };
        let (compute, folds) =
            Compute::open_stepped(&engine, &world, runtime, self.config.clone()).unwrap();
        self.live = Some(Live {
            engine,
            compute,
            stepper,
            folds,
        });
        self.settle();
        self.is_up().then_some(())
    }

    /// The process ends at once; what the kernel has stays.
    pub fn kill(&mut self) {
        self.live = None;
        self.world.kill();
    }

    /// The power fails.
    pub fn crash(&mut self) {
        self.live = None;
        self.world.crash();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.open();
    }

    pub fn compute(&self) -> &Compute {
        &self.live.as_ref().unwrap().compute
    }

    pub fn engine(&self) -> &Engine {
        &self.live.as_ref().unwrap().engine
    }

    /// Whether the simulated machine is still the one that was opened.
    pub fn is_up(&self) -> bool {
        self.world.boots() == self.boots
    }

    /// One step of everything. Says whether anything is still going on.
    pub fn step(&mut self) -> bool {
        let Some(live) = &mut self.live else {
            return false;
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
                Some(Some(wait)) if wait < 1_000_000_000 => busy = true,
                Some(_) => {}
            }
        }
        live.stepper.step_maintenance();
        busy
    }

    /// One step of each fold, while nothing is written or committed.
    pub fn step_folds(&mut self) {
        let live = self.live.as_mut().unwrap();
        for partition in 0..self.partitions as usize {
            live.folds.step(partition);
        }
    }

    /// Lets the writers take what is queued; what they write is not committed yet.
    pub fn step_writers(&mut self) {
        let live = self.live.as_mut().unwrap();
        for partition in 0..self.partitions as usize {
            live.stepper.step_writer(partition);
        }
    }

    /// Lets the writers commit all that is queued, while the folds rest.
    pub fn commit(&mut self) {
        for partition in 0..self.partitions as usize {
            self.commit_partition(partition);
        }
    }

    /// Lets one writer commit all that is queued, while everything else rests.
    pub fn commit_partition(&mut self, partition: usize) {
        for _ in 0..100 {
            let live = self.live.as_mut().unwrap();
            live.stepper.step_writer(partition);
            live.stepper.wait_writer(partition, Some(1_000_000));
            live.stepper.step_writer(partition);
        }
    }

    /// Hands a batch to the writer of its partition.
    pub fn queue(&mut self, events: &[(&str, &str, &[u8])]) -> Result<(), AppendError> {
        let mut bytes = Vec::new();
        for (stream, event_type, payload) in events {
            self.next += 1;
            let mut id = [9; 16];
            id[..8].copy_from_slice(&self.next.to_le_bytes());
            EventBuilder::new(stream, event_type)
                .id(EventId::from_bytes(id))
                .payload(payload)
                .encode_into(&mut bytes)
                .unwrap();
        }
        let input = EncodedEvents {
            bytes: Bytes::from(bytes),
            ..EncodedEvents::default()
        };
        let engine = self.engine();
        let batch = engine.prepare(None, input)?;
        let sink = Arc::clone(&self.inbox) as Arc<dyn AppendSink>;
        engine
            .append(batch, sink, self.next)
            .map_err(|(error, _)| error)
    }

    /// Outcomes of what was queued, taken out.
    pub fn outcomes(&self) -> Vec<Result<Appended, AppendError>> {
        let outcomes = std::mem::take(&mut *self.inbox.0.lock());
        outcomes.into_iter().map(|(_, result)| result).collect()
    }

    /// Steps until nothing happens any more.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..100_000 {
            if !self.is_up() {
                return;
            }
            if self.step() {
                quiet = 0;
            } else {
                quiet += 1;
                if quiet > 8 {
                    return;
                }
            }
        }
        panic!("it does not come to rest: {:?}", self.compute().status());
    }

    /// Appends a batch of events of one partition and steps until it is answered.
    pub fn try_append(&mut self, events: &[(&str, &str, &[u8])]) -> Result<Appended, AppendError> {
        self.queue(events)?;
        for _ in 0..10_000 {
            self.step();
            if let Some((_, result)) = self.inbox.0.lock().pop() {
                return result;
            }
            if !self.is_up() {
                break;
            }
        }
        assert!(!self.is_up(), "the append is not answered");
        Err(AppendError::EmptyBatch)
    }

    pub fn append(&mut self, events: &[(&str, &str, &[u8])]) -> Appended {
        self.try_append(events).unwrap()
    }

    pub fn wait(&mut self, reply: &Reply) {
        for _ in 0..100_000 {
            if reply.is_done() || !self.is_up() {
                break;
            }
            self.step();
        }
        assert!(
            reply.is_done() || !self.is_up(),
            "the command has no outcome"
        );
        self.settle();
    }

    /// Files that are made from the log, and may be removed.
    pub fn derived_files(&self) -> Vec<String> {
        let parts = ["/deltas/", "/snapshots/", "modules/"];
        let is_derived = |path: &String| parts.iter().any(|part| path.contains(part));
        self.world.paths().into_iter().filter(is_derived).collect()
    }

    pub fn publish(&mut self, bytes: &[u8]) -> ModuleHash {
        let inspected = self.compute().inspect(bytes).unwrap();
        let hash = inspected.hash;
        let reply = self.compute().submit_publish(inspected);
        self.wait(&reply);
        assert!(reply.error().is_none(), "{:?}", reply.error());
        hash
    }

    pub fn activate(&mut self, bytes: &[u8], mode: ActivationMode) {
        let hash = self.publish(bytes);
        let reply = self.compute().submit_activate(ActivateRequest {
            hash,
            mode,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        });
        self.wait(&reply);
        assert!(reply.error().is_none(), "{:?}", reply.error());
    }

    /// All rows of a table, now or as of a token.
    pub fn rows(&self, module: &str, table: &str, at: At) -> RowsAnswer {
        self.try_rows(module, table, at).unwrap()
    }

    pub fn try_rows(&self, module: &str, table: &str, at: At) -> Result<RowsAnswer, ComputeError> {
        self.compute().scan(&ScanRequest {
            module: module.to_owned(),
            table: table.to_owned(),
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
        })
    }

    /// The count of a key in table `counts`, summed over partitions.
    pub fn count(&self, module: &str, key: &str) -> u64 {
        let answer = self.rows(module, "counts", At::Now);
        let rows = answer.rows.iter().filter(|row| row.key == key.as_bytes());
        rows.map(|row| u64::from_le_bytes(row.value.clone().try_into().unwrap()))
            .sum()
    }

    pub fn fingerprints(&self, module: &str, table: &str) -> Vec<(u32, u64, Fingerprint)> {
        let answer = self.rows(module, table, At::Now);
        answer
            .stamps
            .iter()
            .map(|s| (s.partition, s.sequence, s.fingerprint))
            .collect()
    }
}

fn manifest(name: &str, kind: ModuleKind, types: &[&str], tables: &[(&str, &str)]) -> Manifest {
    Manifest {
        name: name.to_owned(),
        version: "1".to_owned(),
        abi: ABI_VERSION,
        kind,
        subscriptions: types
            .iter()
            .map(|event_type| Subscription {
                stream: "*".to_owned(),
                event_type: (*event_type).to_owned(),
            })
            .collect(),
        tables: tables
            .iter()
            .map(|(name, module)| TableDecl {
                name: (*name).to_owned(),
                version: 1,
                module: (*module).to_owned(),
            })
            .collect(),
    }
}

/// What a native test module does differently from the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    /// Counts events by type, keeps the last payload of each stream.
    None,
    /// Counts twice.
    Twice,
    /// Keeps how often its guest was called in its own memory, and writes it down.
    Impure,
    /// Traps at a payload `boom`.
    Boom,
    /// Emits an event for each.
    Emits,
}

pub struct Tally {
    pub name: &'static str,
    pub quirk: Quirk,
}

struct TallyGuest {
    quirk: Quirk,
    calls: u64,
}

impl NativeCode for Tally {
    fn manifest(&self) -> Manifest {
        let kind = if self.quirk == Quirk::Emits {
            ModuleKind::Processor
        } else {
            ModuleKind::Reducer
        };
        manifest(
            self.name,
            kind,
            &["order", "depart", "arrive", "boom"],
            &[("counts", ""), ("last", "")],
        )
    }

    fn guest(&self, _context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(TallyGuest {
            quirk: self.quirk,
            calls: 0,
        }))
    }
}

fn add(tables: &mut FoldTables, key: &[u8], by: u64) -> Result<(), StateFault> {
    let old = tables.get(0, key)?;
    let old = old.map_or(0, |old| u64::from_le_bytes(old.try_into().unwrap()));
    tables.set(0, key, &(old + by).to_le_bytes())
}

impl TallyGuest {
    fn fold(&mut self, tables: &mut FoldTables, batch: &EventColumns) -> Result<Processed, Halt> {
        let mut processed = Processed::default();
        self.calls += 1;
        for index in 0..batch.len() {
            let event = batch.get(index).unwrap();
            let by = if self.quirk == Quirk::Twice { 2 } else { 1 };
            add(tables, event.event_type.as_bytes(), by)?;
            tables.set(1, event.stream.as_bytes(), event.payload)?;
            if self.quirk == Quirk::Boom && event.payload == b"boom" {
                return Err(Halt::Trap {
                    call: "process",
                    kind: TrapKind::Unreachable,
                });
            }
            if self.quirk == Quirk::Emits {
                processed.emits.push(Emit {
                    source: u32::try_from(index).unwrap(),
                    stream: format!("echo-{}", event.stream),
                    event_type: "echoed".to_owned(),
                    content_type: String::new(),
                    payload: event.payload.to_vec(),
                });
            }
        }
        if self.quirk == Quirk::Impure {
            tables.set(0, b"calls", &self.calls.to_le_bytes())?;
        }
        Ok(processed)
    }
}

impl Guest for TallyGuest {
    fn process(
        &mut self,
        mut tables: Box<FoldTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<FoldTables>, Result<Processed, Halt>) {
        let result = self.fold(&mut tables, batch);
        (tables, result)
    }
}

/// Refuses `arrive` in a stream whose last payload is not `departed`.
struct Guard;

struct GuardGuest;

impl NativeCode for Guard {
    fn manifest(&self) -> Manifest {
        manifest(
            "guard",
            ModuleKind::Validator,
            &["arrive"],
            &[("last", "tally")],
        )
    }

    fn guest(&self, _context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(GuardGuest))
    }
}

impl Guest for GuardGuest {
    fn validate(
        &mut self,
        mut tables: Box<ReadTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<ReadTables>, Result<Vec<Verdict>, Halt>) {
        let verdicts = (0..batch.len())
            .map(|index| {
                let event = batch.get(index).unwrap();
                let last = tables.get(0, event.stream.as_bytes()).unwrap();
                if last.as_deref() == Some(b"departed") {
                    Verdict::Accept
                } else {
                    Verdict::Reject(Rejection {
                        code: 7,
                        message: "it has not departed".to_owned(),
                    })
                }
            })
            .collect();
        (tables, Ok(verdicts))
    }
}

/// Refuses an `order` once this many are counted.
pub const CAP: u64 = 2000;

struct Cap;

struct CapGuest;

impl NativeCode for Cap {
    fn manifest(&self) -> Manifest {
        manifest(
            "cap",
            ModuleKind::Validator,
            &["order"],
            &[("counts", "tally")],
        )
    }

    fn guest(&self, _context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(CapGuest))
    }
}

impl Guest for CapGuest {
    fn validate(
        &mut self,
        mut tables: Box<ReadTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<ReadTables>, Result<Vec<Verdict>, Halt>) {
        let count = tables.get(0, b"order").unwrap();
        let count = count.map_or(0, |count| u64::from_le_bytes(count.try_into().unwrap()));
        let verdict = if count < CAP {
            Verdict::Accept
        } else {
            Verdict::Reject(Rejection {
                code: 8,
                message: format!("{count} orders are enough"),
            })
        };
        (tables, Ok(vec![verdict; batch.len()]))
    }
}

/// Sums a count over partitions; the argument is the key.
struct Sum;

struct SumGuest;

impl NativeCode for Sum {
    fn manifest(&self) -> Manifest {
        manifest("sum", ModuleKind::Query, &[], &[("counts", "tally")])
    }

    fn guest(&self, _context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(SumGuest))
    }
}

impl Guest for SumGuest {
    fn run(
        &mut self,
        mut tables: Box<ReadTables>,
        _at: &Moment,
        arguments: &[u8],
        resume: &[u8],
    ) -> (Box<ReadTables>, Result<Answer, Halt>) {
        let mut answer = Answer::default();
        if resume.is_empty() {
            // Two steps, so that the resumption is seen.
            answer.rows.more = true;
            answer.resume = b"again".to_vec();
            return (tables, Ok(answer));
        }
        match tables.get(0, arguments) {
            Ok(count) => {
                if let Some(count) = count {
                    answer.rows.push(arguments, &count);
                }
            }
            Err(fault) => return (tables, Err(fault.into())),
        }
        (tables, Ok(answer))
    }

    fn merge(&mut self, arguments: &[u8], parts: Vec<Page>) -> Result<Page, Halt> {
        let mut sum = 0;
        for part in &parts {
            for (_, value) in part.rows() {
                sum += u64::from_le_bytes(value.try_into().unwrap());
            }
        }
        let mut page = Page::default();
        page.push(arguments, &sum.to_le_bytes());
        Ok(page)
    }
}

/// As long as a module's name may be.
pub const LONG_NAME: &str = "a-name-of-sixty-four-bytes-which-is-as-many-as-a-module-may-have";

/// Bytes of `tally-twice` that need several chunks.
pub fn big() -> Vec<u8> {
    vec![b'x'; 2 * CODE_CHUNK_BYTES + 17]
}

/// Another version of the program.
struct Upgraded(NativeRuntime);

impl Runtime for Upgraded {
    fn inspect(&self, wasm: &[u8]) -> Result<Inspected, String> {
        self.0.inspect(wasm)
    }

    fn load(
        &self,
        wasm: &[u8],
        limits: &Limits,
        wasi: WasiProfile,
    ) -> Result<Arc<dyn Program>, String> {
        self.0.load(wasm, limits, wasi)
    }

    fn semantics_id(&self, limits: &Limits) -> [u8; 32] {
        self.0.semantics_id(limits).map(|byte| !byte)
    }
}

pub fn runtime() -> NativeRuntime {
    runtime_of(Quirk::None)
}

fn runtime_of(plain: Quirk) -> NativeRuntime {
    let tally = |quirk| Tally {
        name: "tally",
        quirk,
    };
    let echo = || Tally {
        name: "echo",
        quirk: Quirk::Emits,
    };
    NativeRuntime::default()
        .with(b"tally", tally(plain))
        .with(b"tally-twice", tally(Quirk::Twice))
        .with(&big(), tally(Quirk::Twice))
        .with(b"tally-impure", tally(Quirk::Impure))
        .with(b"tally-boom", tally(Quirk::Boom))
        .with(
            b"long",
            Tally {
                name: LONG_NAME,
                quirk: Quirk::None,
            },
        )
        .with(b"echo", echo())
        .with(b"echo-again", echo())
        .with(b"guard", Guard)
        .with(b"cap", Cap)
        .with(b"sum", Sum)
}
