//! Running a module natively, on a list of events, and finding out whether it keeps the rules.
//!
//! [`check`] folds the events many times: cut into batches in different ways, with fresh instances
//! (here: threads) at different places, and the tables carried over. Every run must leave the same
//! rows and the same derived events. A module that hides state in globals, counts calls, or looks at
//! the size of batches fails, with the first row that differs.
//!
//! It does not find what only shows as WebAssembly (limits, fuel): `truthdb replay --verify` does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use crate::key::encoded;
use crate::{
    Answer, Batch, Fault, Fold, Key, Level, Manifest, Moment, Page, Query, Rejection, Table,
    Validate, Value,
};

/// Rows by table and key.
type Rows = BTreeMap<(u32, Vec<u8>), Vec<u8>>;

/// Nanoseconds between two events that do not say when they were.
const SECOND: u64 = 1_000_000_000;
/// How many random ways to cut the events are tried, besides the plain ones.
const RANDOM_PLANS: u64 = 8;
/// Bytes of data in one page, as in the host.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::default());
}

/// What the host is natively.
#[derive(Default)]
struct World {
    rows: Rows,
    is_writable: bool,
    emits: Vec<Emitted>,
    logs: Vec<(Level, String)>,
}

/// An event of a test. Times are one second apart unless given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestEvent {
    stream: String,
    event_type: String,
    payload: Vec<u8>,
    metadata: Vec<(String, String)>,
    time: Option<u64>,
}

impl TestEvent {
    /// An event of a stream, with a type and a payload.
    pub fn new(stream: &str, event_type: &str, payload: impl AsRef<[u8]>) -> Self {
        Self {
            stream: stream.to_owned(),
            event_type: event_type.to_owned(),
            payload: payload.as_ref().to_vec(),
            metadata: Vec::new(),
            time: None,
        }
    }

    /// With a time, in nanoseconds since 1970 UTC. Times must not decrease.
    #[must_use]
    pub fn at(mut self, time: u64) -> Self {
        self.time = Some(time);
        self
    }

    /// With a metadata pair.
    #[must_use]
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A derived event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// Index, in the test's list, of the event that caused it.
    pub source: usize,
    /// Its stream.
    pub stream: String,
    /// Its type.
    pub event_type: String,
    /// Its content type.
    pub content_type: String,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// What a run left behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    manifest: Manifest,
    rows: Rows,
    /// Derived events, in order.
    pub emits: Vec<Emitted>,
    /// Messages of the last instance.
    pub logs: Vec<(Level, String)>,
}

impl Outcome {
    /// A row, as the table's types.
    ///
    /// # Panics
    ///
    /// If the value is not of the table's type.
    pub fn get<K: Key, V: Value>(&self, table: &Table<K, V>, key: &K) -> Option<V> {
        let bytes = self.rows.get(&(table.index(), encoded(key)))?;
        Some(V::decode(&mut &bytes[..]).expect("the value is of the table's type"))
    }

    /// How many rows there are in all tables.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Why a module did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A handler returned an error.
    Halted {
        /// Index, in the test's list, of the first event of the batch.
        first: usize,
        /// What it said.
        fault: Fault,
    },
    /// Two runs of the same events differ.
    Differs {
        /// How the events were cut in the run that differs from the plain one.
        plan: String,
        /// The first difference.
        what: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halted { first, fault } => {
                write!(
                    f,
                    "halted in the batch that begins with event {first}: {fault}"
                )
            }
            Self::Differs { plan, what } => write!(
                f,
                "the same events gave another outcome when run {plan}: {what}; does the module keep \
                 something outside of its tables?"
            ),
        }
    }
}

impl std::error::Error for Failure {}

/// How a list of events is cut: sizes of batches, taken in turn, and after how many batches an
/// instance is replaced, taken in turn.
struct Plan {
    name: String,
    batches: Vec<usize>,
    instances: Vec<usize>,
}

/// Folds the events in one batch and one instance.
///
/// # Errors
///
/// If a handler returns an error.
pub fn fold<M: Fold>(events: &[TestEvent]) -> Result<Outcome, Failure> {
    follow::<M>(
        events,
        &Plan {
            name: "in one batch".to_owned(),
            batches: vec![usize::MAX],
            instances: vec![usize::MAX],
        },
    )
}

/// Folds the events in many ways, and compares the outcomes.
///
/// # Errors
///
/// If a handler returns an error, or two outcomes differ.
pub fn check<M: Fold>(events: &[TestEvent]) -> Result<Outcome, Failure> {
    let expected = fold::<M>(events)?;
    for plan in plans() {
        let outcome = follow::<M>(events, &plan)?;
        if let Some(what) = difference(&expected, &outcome) {
            return Err(Failure::Differs {
                plan: plan.name,
                what,
            });
        }
    }
    Ok(expected)
}

fn plans() -> Vec<Plan> {
    let plan = |name: &str, batch: usize, instance: usize| Plan {
        name: name.to_owned(),
        batches: vec![batch],
        instances: vec![instance],
    };
    let mut plans = vec![
        plan("in one batch, again", usize::MAX, usize::MAX),
        plan("in batches of 1", 1, usize::MAX),
        plan("in batches of 1, each in a fresh instance", 1, 1),
        plan("in batches of 7, two to an instance", 7, 2),
    ];
    for seed in 1..=RANDOM_PLANS {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut numbers = |most: u64| -> Vec<usize> {
            let next = |_| usize::try_from(1 + random(&mut state) % most).unwrap_or(1);
            (0..64).map(next).collect()
        };
        plans.push(Plan {
            name: format!("in random batches and instances (plan {seed})"),
            batches: numbers(20),
            instances: numbers(5),
        });
    }
    plans
}

/// xorshift64: which cuts are tried is the same on every run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// One batch, and the indices of its events in the test's list.
struct Cut {
    batch: Batch,
    sources: Vec<usize>,
}

fn follow<M: Fold>(events: &[TestEvent], plan: &Plan) -> Result<Outcome, Failure> {
    let manifest = M::manifest();
    let mut outcome = Outcome {
        rows: Rows::new(),
        emits: Vec::new(),
        logs: Vec::new(),
        manifest,
    };
    let mut cuts = cut(events, plan, &outcome.manifest).into_iter().peekable();
    let mut instances = plan.instances.iter().copied().cycle();
    while cuts.peek().is_some() {
        let batches = instances.next().unwrap_or(usize::MAX);
        let share: Vec<Cut> = cuts.by_ref().take(batches).collect();
        let world = World {
            rows: std::mem::take(&mut outcome.rows),
            is_writable: true,
            ..World::default()
        };
        let (world, result) = instance(world, || fold_share::<M>(&share));
        result?;
        outcome.rows = world.rows;
        outcome.emits.extend(world.emits);
        outcome.logs = world.logs;
    }
    Ok(outcome)
}

fn fold_share<M: Fold>(share: &[Cut]) -> Result<(), Failure> {
    for cut in share {
        let emitted_before = WORLD.with_borrow(|world| world.emits.len());
        M::process(&cut.batch).map_err(|fault| Failure::Halted {
            first: cut.sources[0],
            fault,
        })?;
        // Within the batch a source is an index in the batch.
        WORLD.with_borrow_mut(|world| {
            for emitted in &mut world.emits[emitted_before..] {
                emitted.source = cut.sources[emitted.source];
            }
        });
    }
    Ok(())
}

/// Runs a piece of work in a world of its own: in a thread that has never run the module.
fn instance<T: Send>(world: World, work: impl FnOnce() -> T + Send) -> (World, T) {
    let in_thread = move || {
        WORLD.set(world);
        let result = work();
        (WORLD.take(), result)
    };
    std::thread::scope(|scope| {
        scope
            .spawn(in_thread)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn cut(events: &[TestEvent], plan: &Plan, manifest: &Manifest) -> Vec<Cut> {
    let mut sizes = plan.batches.iter().copied().cycle();
    let mut revisions = BTreeMap::<&str, u64>::new();
    let mut time = 0;
    let mut sequence = 0;
    let mut cuts = Vec::new();
    let mut rest = events;
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(usize::MAX).min(rest.len());
        let (now, later) = rest.split_at(size);
        let first = events.len() - rest.len();
        rest = later;
        let mut cut = Cut {
            batch: Batch::default(),
            sources: Vec::new(),
        };
        for (index, event) in now.iter().enumerate() {
            sequence += 1;
            time = event.time.unwrap_or(time + SECOND);
            let revision = revisions.entry(&event.stream).or_insert(0);
            if let Some(kind) = kind_of(manifest, event) {
                push(&mut cut.batch, event, kind, sequence, *revision, time);
                cut.sources.push(first + index);
            }
            *revision += 1;
        }
        // The host calls a module only for batches that have something for it.
        if !cut.batch.is_empty() {
            cuts.push(cut);
        }
    }
    cuts
}

fn push(batch: &mut Batch, event: &TestEvent, kind: u32, sequence: u64, revision: u64, time: u64) {
    batch.sequences.push(sequence);
    batch.times.push(time);
    batch.revisions.push(revision);
    batch.kinds.push(kind);
    let mut metadata = Vec::new();
    for (key, value) in &event.metadata {
        metadata.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
        let value_bytes = u16::try_from(value.len()).unwrap_or(u16::MAX);
        metadata.extend_from_slice(&value_bytes.to_le_bytes());
        metadata.extend_from_slice(key.as_bytes());
        metadata.extend_from_slice(value.as_bytes());
    }
    let id = u128::from(sequence).to_le_bytes();
    for part in [
        event.stream.as_bytes(),
        event.event_type.as_bytes(),
        &id,
        &metadata,
        &event.payload,
    ] {
        batch.data.extend_from_slice(part);
        batch
            .ends
            .push(u32::try_from(batch.data.len()).unwrap_or(u32::MAX));
    }
}

fn kind_of(manifest: &Manifest, event: &TestEvent) -> Option<u32> {
    let is_system = event.stream.starts_with('$');
    let index = manifest.subscriptions.iter().position(|wanted| {
        (!is_system || wanted.stream.starts_with('$'))
            && matches(&wanted.stream, &event.stream)
            && matches(&wanted.event_type, &event.event_type)
    })?;
    u32::try_from(index).ok()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// The first difference between two outcomes, in words.
fn difference(expected: &Outcome, outcome: &Outcome) -> Option<String> {
    let keys = expected.rows.keys().chain(outcome.rows.keys());
    for row in keys {
        let (one, other) = (expected.rows.get(row), outcome.rows.get(row));
        if one != other {
            let table = &expected.manifest.tables[row.0 as usize].name;
            return Some(format!(
                "in table {table}, key {:02x?} is {one:02x?} in one batch, and {other:02x?} here",
                row.1
            ));
        }
    }
    if expected.emits == outcome.emits {
        return None;
    }
    let at = expected
        .emits
        .iter()
        .zip(&outcome.emits)
        .take_while(|(one, other)| one == other)
        .count();
    Some(format!(
        "derived event {at} is {:?} in one batch, and {:?} here",
        expected.emits.get(at),
        outcome.emits.get(at)
    ))
}

/// Judges the events, all as one batch, against the tables that other modules' outcomes left behind.
pub fn validate<M: Validate>(
    owners: &[&Outcome],
    events: &[TestEvent],
) -> Vec<Result<(), Rejection>> {
    let manifest = M::manifest();
    let plan = Plan {
        name: String::new(),
        batches: vec![usize::MAX],
        instances: vec![usize::MAX],
    };
    let cuts = cut(events, &plan, &manifest);
    let mut verdicts = vec![Ok(()); events.len()];
    let world = World {
        rows: borrowed(&manifest, owners),
        ..World::default()
    };
    let (_, judged) = instance(world, || {
        let judge = |cut: &Cut| -> Vec<(usize, Result<(), Rejection>)> {
            let verdicts = cut.batch.iter().map(|event| M::judge(&event));
            cut.sources.iter().copied().zip(verdicts).collect()
        };
        cuts.iter().flat_map(judge).collect::<Vec<_>>()
    });
    for (index, verdict) in judged {
        verdicts[index] = verdict;
    }
    verdicts
}

/// Answers a question: `partitions` holds, for each partition, the outcomes of the modules that the
/// query reads. Steps are followed to their end.
///
/// # Errors
///
/// What the operator says.
pub fn query<M: Query>(
    partitions: &[&[&Outcome]],
    at: Moment,
    arguments: &[u8],
) -> Result<Page, Fault> {
    let manifest = M::manifest();
    let mut parts = Vec::new();
    for owners in partitions {
        let mut part = Page::default();
        let mut resume = Vec::new();
        loop {
            let world = World {
                rows: borrowed(&manifest, owners),
                ..World::default()
            };
            // Every step in an instance of its own: nothing may be kept but `resume`.
            let (_, answer) = instance(world, || M::run(at, arguments, &resume));
            let Answer { rows, resume: next } = answer?;
            for (key, value) in rows.rows() {
                part.push(key, value);
            }
            if !rows.more {
                break;
            }
            resume = next;
        }
        parts.push(part);
    }
    let (_, page) = instance(World::default(), || M::merge(arguments, parts));
    page
}

/// The rows that a module reads from others, under its own table numbers.
fn borrowed(manifest: &Manifest, owners: &[&Outcome]) -> Rows {
    let mut rows = Rows::new();
    for (index, table) in (0u32..).zip(&manifest.tables) {
        for owner in owners
            .iter()
            .filter(|owner| owner.manifest.name == table.module)
        {
            let of_owner = owner
                .manifest
                .tables
                .iter()
                .position(|owned| owned.name == table.name);
            for ((number, key), value) in &owner.rows {
                if Some(*number as usize) == of_owner {
                    rows.insert((index, key.clone()), value.clone());
                }
            }
        }
    }
    rows
}

pub(crate) fn get(table: u32, key: &[u8]) -> Option<Vec<u8>> {
    WORLD.with_borrow(|world| world.rows.get(&(table, key.to_vec())).cloned())
}

pub(crate) fn scan(
    table: u32,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u32,
    reverse: bool,
) -> Page {
    WORLD.with_borrow(|world| {
        let Some(range) = range(table, start, end) else {
            return Page::default();
        };
        let mut rows = world.rows.range(range);
        let mut page = Page::default();
        while let Some(((_, key), value)) = if reverse {
            rows.next_back()
        } else {
            rows.next()
        } {
            let bytes = page.data.len() + key.len() + value.len();
            let is_full = bytes > PAGE_BYTES_MAX && !page.ends.is_empty();
            if page.ends.len() / 2 >= limit as usize || is_full {
                page.more = true;
                break;
            }
            page.push(key, value);
        }
        page
    })
}

pub(crate) fn set(table: u32, key: &[u8], value: &[u8]) {
    write(|rows| rows.insert((table, key.to_vec()), value.to_vec()));
}

pub(crate) fn delete(table: u32, key: &[u8]) -> bool {
    write(|rows| rows.remove(&(table, key.to_vec())).is_some())
}

pub(crate) fn delete_range(table: u32, start: &[u8], end: Option<&[u8]>) -> u64 {
    write(|rows| {
        let Some(range) = range(table, start, end) else {
            return 0;
        };
        let keys: Vec<_> = rows.range(range).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            rows.remove(key);
        }
        keys.len() as u64
    })
}

type RowBound = Bound<(u32, Vec<u8>)>;

/// A range of one table; `None` if it is empty.
fn range(table: u32, start: &[u8], end: Option<&[u8]>) -> Option<(RowBound, RowBound)> {
    if end.is_some_and(|end| end <= start) {
        return None;
    }
    let end = match end {
        Some(end) => Bound::Excluded((table, end.to_vec())),
        None => table
            .checked_add(1)
            .map_or(Bound::Unbounded, |next| Bound::Excluded((next, Vec::new()))),
    };
    Some((Bound::Included((table, start.to_vec())), end))
}

fn write<T>(change: impl FnOnce(&mut Rows) -> T) -> T {
    WORLD.with_borrow_mut(|world| {
        assert!(
            world.is_writable,
            "only reducers and processors may write, and only within a call"
        );
        change(&mut world.rows)
    })
}

pub(crate) fn emit(
    source: u32,
    stream: &str,
    event_type: &str,
    content_type: &str,
    payload: &[u8],
) {
    WORLD.with_borrow_mut(|world| {
        world.emits.push(Emitted {
            source: source as usize,
            stream: stream.to_owned(),
            event_type: event_type.to_owned(),
            content_type: content_type.to_owned(),
            payload: payload.to_vec(),
        });
    });
}

pub(crate) fn log(level: Level, message: &str) {
    WORLD.with_borrow_mut(|world| world.logs.push((level, message.to_owned())));
}
