//! Derived events: what processors emit, appended exactly once.
//!
//! A derived event lies in an ordinary stream, in that stream's partition. Its provenance (module,
//! generation, source partition, source sequence, source batch, index) is in metadata whose names
//! only the database can give, and a tag makes the events of one module from one source partition
//! findable. They are appended in the order of (source batch, index), one append in flight for each
//! target, so the last one that is stored says which are: after a restart everything up to it is
//! dropped, everything after it is appended. A batch's changes are stored, as a delta or snapshot,
//! only after its derived events are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::canary::{Canary, planted};
use bytes::Bytes;
use parking_lot::Mutex;
use truthdb_engine::{
    AppendBatch, AppendError, AppendSink, Appended, Direction, EncodedEvents, Engine, Filter,
    ReadError, ReadFrom, ReadRequest,
};
use truthdb_event::{
    BATCH_EVENTS_MAX, EventBuilder, EventId, EventRef, METADATA_CAUSATION_ID,
    METADATA_CORRELATION_ID,
};
use truthdb_module::{Emit, EventColumns, metadata_pairs};

/// Metadata key: module and generation, `name/number`.
pub const DERIVED_BY: &str = "$by";
/// Metadata key: partition and sequence of the source event, `partition/sequence`.
pub const DERIVED_SOURCE: &str = "$source";
/// Metadata key: last sequence of the source batch.
pub const DERIVED_BATCH: &str = "$batch";
/// Metadata key: place of the event among those of its source batch.
pub const DERIVED_INDEX: &str = "$index";
/// Bytes of one append of derived events, about; below the limit of a batch by the largest event.
const APPEND_BYTES: usize = 2 << 20;
/// A line stops applying while this many source batches wait for their derived events.
pub(crate) const OUTBOX_BATCHES_MAX: usize = 256;
/// It also stops over this many bytes of waiting derived events.
const OUTBOX_BYTES_MAX: usize = 16 << 20;

/// An emitted event with where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Derived {
    pub(crate) index: u32,
    pub(crate) source_sequence: u64,
    causation: String,
    correlation: String,
    pub(crate) emit: Emit,
}

/// Place of a derived event among those of one module and source partition: batch, index.
pub(crate) type Place = (u64, u32);

/// The tag of the events that a module derives from a partition.
pub(crate) fn derived_tag(module: &str, partition: u32) -> String {
    format!("$by/{module}/{partition}")
}

/// Adds to emitted events what their batch knows of their sources.
pub(crate) fn derive(columns: &EventColumns, emits: Vec<Emit>) -> Result<Vec<Derived>, String> {
    let mut derived = Vec::with_capacity(emits.len());
    for (index, emit) in (0u32..).zip(emits) {
        let source = usize::try_from(emit.source)
            .ok()
            .and_then(|at| columns.get(at));
        let Some(source) = source else {
            return Err(format!(
                "it emitted an event for event {} of the batch",
                emit.source
            ));
        };
        let causation = EventId::from_bytes(source.id).to_string();
        let correlation = metadata_pairs(source.metadata)
            .find(|(key, _)| *key == METADATA_CORRELATION_ID)
            .map_or_else(|| causation.clone(), |(_, value)| value.to_owned());
        if truthdb_event::is_system_stream(&emit.stream) || emit.event_type.starts_with('$') {
            return Err(format!(
                "it emitted an event of the database's own stream {} or type {}",
                emit.stream, emit.event_type
            ));
        }
        let check = builder(&emit).id(EventId::from_bytes([1; 16])).check();
        check.map_err(|error| format!("it emitted what is no event: {error}"))?;
        derived.push(Derived {
            index,
            source_sequence: source.sequence,
            causation,
            correlation,
            emit,
        });
    }
    Ok(derived)
}

fn builder(emit: &Emit) -> EventBuilder<'_> {
    EventBuilder::new(&emit.stream, &emit.event_type)
        .content_type(&emit.content_type)
        .payload(&emit.payload)
}

/// Who derives, from where.
#[derive(Debug, Clone)]
pub(crate) struct Deriver {
    pub(crate) database_id: [u8; 16],
    pub(crate) module: String,
    pub(crate) partition: u32,
    /// 0, but for the canary [`Canary::DeriveTwice`], whose events are not to look the same.
    pub(crate) salt: u64,
}

impl Deriver {
    /// See [`Deriver::salt`](Self#structfield.salt).
    pub(crate) fn salt(engine: &Engine, partition: u32) -> u64 {
        if planted(Canary::DeriveTwice) {
            engine.committed(partition)
        } else {
            0
        }
    }

    /// The canonical event. The same source always gives the same bytes.
    pub(crate) fn encode(
        &self,
        generation: u32,
        batch: u64,
        derived: &Derived,
    ) -> Result<Vec<u8>, truthdb_event::EventError> {
        let index = derived.index;
        let name = format!(
            "{}/{generation}/{}/{batch}/{index}",
            self.module, self.partition
        );
        let mut hasher = blake3::Hasher::new_derive_key("truthdb derived event id 1");
        hasher.update(&self.database_id);
        hasher.update(name.as_bytes());
        if self.salt != 0 {
            hasher.update(&self.salt.to_le_bytes());
        }
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        let (by, source) = (
            format!("{}/{generation}", self.module),
            format!("{}/{}", self.partition, derived.source_sequence),
        );
        let (batch, index) = (batch.to_string(), index.to_string());
        let tag = derived_tag(&self.module, self.partition);
        let mut bytes = Vec::new();
        builder(&derived.emit)
            .id(EventId::from_bytes(id))
            .tag(&tag)
            .metadata(METADATA_CAUSATION_ID, &derived.causation)
            .metadata(METADATA_CORRELATION_ID, &derived.correlation)
            .metadata(DERIVED_BY, &by)
            .metadata(DERIVED_SOURCE, &source)
            .metadata(DERIVED_BATCH, &batch)
            .metadata(DERIVED_INDEX, &index)
            .encode_into(&mut bytes)?;
        Ok(bytes)
    }

    /// The last derived event that a partition has; `None` if there is none.
    pub(crate) fn last_stored(
        &self,
        engine: &Engine,
        target: u32,
    ) -> Result<Option<Place>, ReadError> {
        let mut request = ReadRequest {
            partition: target,
            from: ReadFrom::Start,
            direction: Direction::Backward,
            filter: Filter {
                tags: vec![derived_tag(&self.module, self.partition)],
                ..Filter::default()
            },
            events_max: 1,
            bytes_max: 1,
        };
        loop {
            let page = engine.read(&request)?;
            for batch in &page.batches {
                if let Some(place) = batch.events().filter_map(|e| place_of(&e.event())).max() {
                    return Ok(Some(place));
                }
            }
            match page.next {
                Some(next) => request.from = ReadFrom::Sequence(next),
                None => return Ok(None),
            }
        }
    }
}

/// The place of a derived event.
pub(crate) fn place_of(event: &EventRef<'_>) -> Option<Place> {
    let batch = event.metadata_value(DERIVED_BATCH)?.parse().ok()?;
    let index = event.metadata_value(DERIVED_INDEX)?.parse().ok()?;
    Some((batch, index))
}

struct Waiting {
    place: Place,
    bytes: Vec<u8>,
}

struct InFlight {
    tag: u64,
    /// Place of its last event.
    last: Place,
    events: usize,
}

struct Target {
    /// Last event that is known to be stored.
    stored: Option<Place>,
    waiting: VecDeque<Waiting>,
    in_flight: Option<InFlight>,
    /// Monotonic time before which nothing is tried, after a refusal.
    retry_at: u64,
}

/// Outcomes of appends, told by writers' threads.
#[derive(Default)]
pub(crate) struct Outcomes {
    done: Mutex<Vec<(u64, Result<Appended, AppendError>)>>,
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Outcomes {
    pub(crate) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Outcomes {
        Outcomes {
            done: Mutex::new(Vec::new()),
            wake: Some(wake),
        }
    }

    pub(crate) fn take(&self) -> Vec<(u64, Result<Appended, AppendError>)> {
        std::mem::take(&mut *self.done.lock())
    }
}

impl AppendSink for Outcomes {
    fn complete(&self, tag: u64, result: Result<Appended, AppendError>, _batch: Box<AppendBatch>) {
        self.done.lock().push((tag, result));
        if let Some(wake) = &self.wake {
            wake();
        }
    }
}

/// Derived events of one line on their way into the log.
pub(crate) struct Outbox {
    deriver: Deriver,
    engine: Engine,
    outcomes: Arc<Outcomes>,
    targets: BTreeMap<u32, Target>,
    /// Source batches that were handed over and are not all stored, ascending.
    open: VecDeque<u64>,
    waiting_bytes: usize,
    next_tag: u64,
    /// Events appended.
    pub(crate) emitted: u64,
    /// Why nothing more is appended.
    pub(crate) stuck: Option<String>,
}

impl Outbox {
    pub(crate) fn new(
        engine: &Engine,
        deriver: Deriver,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Outbox {
        Outbox {
            deriver,
            engine: engine.clone(),
            outcomes: Arc::new(Outcomes::new(wake)),
            targets: BTreeMap::new(),
            open: VecDeque::new(),
            waiting_bytes: 0,
            next_tag: 0,
            emitted: 0,
            stuck: None,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open.len() >= OUTBOX_BATCHES_MAX || self.waiting_bytes >= OUTBOX_BYTES_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Everything that was handed over up to this source batch is stored; `applied` if nothing is
    /// open.
    pub(crate) fn stored_through(&self, applied: u64) -> u64 {
        self.open.front().map_or(applied, |first| first - 1)
    }

    /// Takes what a batch with this last sequence emitted.
    ///
    /// # Errors
    /// If a target cannot be asked what it has stored. Nothing was taken then.
    pub(crate) fn push(
        &mut self,
        generation: u32,
        batch: u64,
        derived: &[Derived],
    ) -> Result<(), ReadError> {
        let partition_of = |d: &Derived| self.engine.partition_of(&d.emit.stream);
        let targets: Vec<u32> = derived.iter().map(partition_of).collect();
        for target in &targets {
            if !self.targets.contains_key(target) {
                let stored = if planted(Canary::DeriveTwice) {
                    None
                } else {
                    self.deriver.last_stored(&self.engine, *target)?
                };
                self.targets.insert(*target, Target::new(stored));
            }
        }
        let mut any = false;
        for (target, derived) in targets.iter().zip(derived) {
            let place = (batch, derived.index);
            let target = self.targets.get_mut(target).expect("it was put there");
            if target.stored.is_some_and(|stored| place <= stored) {
                continue;
            }
            let bytes = self
                .deriver
                .encode(generation, batch, derived)
                .expect("emitted events were checked when they were made");
            self.waiting_bytes += bytes.len();
            target.waiting.push_back(Waiting { place, bytes });
            any = true;
        }
        if any {
            self.open.push_back(batch);
        }
        Ok(())
    }

    /// Takes outcomes and hands appends to the writers. Says whether anything happened.
    pub(crate) fn pump(&mut self, now: u64) -> bool {
        let mut any = false;
        for (tag, result) in self.outcomes.take() {
            any = true;
            self.settle(tag, result, now);
        }
        if self.stuck.is_some() {
            return any;
        }
        let numbers: Vec<u32> = self.targets.keys().copied().collect();
        for number in numbers {
            any |= self.send(number, now);
        }
        any
    }

    /// When to look again, if a refusal is waited for.
    pub(crate) fn retry_at(&self) -> Option<u64> {
        let waits = |t: &&Target| !t.waiting.is_empty() && t.in_flight.is_none();
        self.targets
            .values()
            .filter(waits)
            .map(|t| t.retry_at)
            .min()
    }

    fn settle(&mut self, tag: u64, result: Result<Appended, AppendError>, now: u64) {
        let found = self
            .targets
            .iter_mut()
            .find(|(_, t)| t.in_flight.as_ref().is_some_and(|f| f.tag == tag));
        let Some((number, target)) = found else {
            return;
        };
        let Some(flight) = target.in_flight.take() else {
            return;
        };
        match result {
            Ok(_) => {
                target.stored = Some(flight.last);
                for _ in 0..flight.events {
                    if let Some(waiting) = target.waiting.pop_front() {
                        self.waiting_bytes -= waiting.bytes.len();
                    }
                }
                self.emitted += flight.events as u64;
                let first = self
                    .targets
                    .values()
                    .filter_map(|t| t.waiting.front().map(|w| w.place.0))
                    .min();
                while self
                    .open
                    .front()
                    .is_some_and(|batch| first.is_none_or(|first| *batch < first))
                {
                    self.open.pop_front();
                }
            }
            Err(error) if error.is_retryable() => target.retry_at = now + RETRY_NS,
            Err(error) => {
                // Stored or not: the next start asks the log.
                self.stuck = Some(format!(
                    "derived events cannot be appended to partition {number}: {}; restart when the cause is gone",
                    crate::error::chain(&error)
                ));
            }
        }
    }

    fn send(&mut self, number: u32, now: u64) -> bool {
        let Some(target) = self.targets.get_mut(&number) else {
            return false;
        };
        if target.in_flight.is_some() || target.waiting.is_empty() || now < target.retry_at {
            return false;
        }
        let mut bytes = Vec::new();
        let mut events = 0;
        let mut last = (0, 0);
        for waiting in target.waiting.iter().take(BATCH_EVENTS_MAX) {
            if events > 0 && bytes.len() + waiting.bytes.len() > APPEND_BYTES {
                break;
            }
            bytes.extend_from_slice(&waiting.bytes);
            events += 1;
            last = waiting.place;
        }
        let input = EncodedEvents {
            bytes: Bytes::from(bytes),
            ..EncodedEvents::default()
        };
        let prepared = match self.engine.prepare_own(number, input) {
            Ok(prepared) => prepared,
            Err(error) => {
                self.stuck = Some(format!("derived events are refused: {error}"));
                return true;
            }
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        target.in_flight = Some(InFlight { tag, last, events });
        let sink = Arc::clone(&self.outcomes) as Arc<dyn AppendSink>;
        if let Err((error, _)) = self.engine.append(prepared, sink, tag) {
            self.settle(tag, Err(error), now);
        }
        true
    }
}

/// Nanoseconds until a refused append is tried again.
pub(crate) const RETRY_NS: u64 = 10_000_000;

impl Target {
    fn new(stored: Option<Place>) -> Target {
        Target {
            stored,
            waiting: VecDeque::new(),
            in_flight: None,
            retry_at: 0,
        }
    }
}
