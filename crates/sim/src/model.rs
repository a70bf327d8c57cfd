//! The reference model: what a partition must hold, kept as simply as possible.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use truthdb_engine::{AppendCondition, Appended, CursorUpdate, ExpectedRevision, Filter, TrimPlan};
use truthdb_event::{EventId, EventRef};
use truthdb_log::StoredEvent;

/// An event as it was handed over.
#[derive(Debug)]
pub(crate) struct EventSpec {
    /// Canonical bytes; unknown for the engine's own events, whose ids are random.
    pub(crate) bytes: Option<Bytes>,
    /// Stream.
    pub(crate) stream: String,
    /// Type.
    pub(crate) kind: String,
    /// Tags.
    pub(crate) tags: Vec<String>,
    /// Id; none for the engine's own events.
    pub(crate) id: Option<EventId>,
    /// Payload of the engine's own events.
    pub(crate) payload: Vec<u8>,
}

/// A batch as it was handed over.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Its partition.
    pub(crate) partition: u32,
    /// The caller's events.
    pub(crate) users: Vec<Arc<EventSpec>>,
    /// The event that the engine adds for a cursor or a trim.
    pub(crate) system: Option<Arc<EventSpec>>,
    /// What the caller expects of streams.
    pub(crate) expected: Vec<(String, ExpectedRevision)>,
    /// The append condition.
    pub(crate) condition: Option<AppendCondition>,
    /// The cursor.
    pub(crate) cursor: Option<CursorUpdate>,
    /// The trim that the batch records.
    pub(crate) trim: Option<TrimPlan>,
}

impl Batch {
    /// All events in order.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Arc<EventSpec>> {
        self.users.iter().chain(&self.system)
    }

    /// Number of events.
    pub(crate) fn len(&self) -> u64 {
        self.users.len() as u64 + u64::from(self.system.is_some())
    }
}

/// A stored event.
#[derive(Debug)]
pub(crate) struct Stored {
    /// What was handed over.
    pub(crate) spec: Arc<EventSpec>,
    /// Bytes of an event of the engine's own, as they were read first.
    seen: OnceCell<Bytes>,
    /// Place in its stream.
    pub(crate) revision: u64,
    /// Its time.
    pub(crate) timestamp_ns: u64,
    /// Sequence of the first event of its batch.
    pub(crate) batch_first: u64,
    /// Number of the caller's events in its batch.
    batch_users: usize,
}

/// What the engine must answer to a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is stored.
    Accept,
    /// It was stored before, from this sequence on.
    Duplicate(u64),
    /// One of its ids was used for something else.
    IdReused,
    /// A stream is elsewhere: its last revision.
    Conflict(Option<u64>),
    /// A forbidden event exists.
    ConditionFailed,
    /// It depends on events that were trimmed.
    Unsure,
}

/// A partition.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    /// Its events; the sequence of the first is 1.
    pub(crate) events: Vec<Stored>,
    /// First sequence that was not trimmed.
    pub(crate) first_sequence: u64,
    /// Sequences of each stream's events.
    pub(crate) streams: BTreeMap<String, Vec<u64>>,
    ids: BTreeMap<[u8; 16], Vec<u64>>,
    /// Size of the window of event ids.
    pub(crate) window: u64,
}

fn at(sequence: u64) -> usize {
    usize::try_from(sequence - 1).expect("a sequence of the model")
}

impl Partition {
    /// An empty partition.
    pub(crate) fn new(window: usize) -> Partition {
        Partition {
            first_sequence: 1,
            window: window as u64,
            ..Partition::default()
        }
    }

    /// Last sequence.
    pub(crate) fn last(&self) -> u64 {
        self.events.len() as u64
    }

    /// The event of a sequence.
    pub(crate) fn get(&self, sequence: u64) -> &Stored {
        &self.events[at(sequence)]
    }

    /// Time of the last event.
    pub(crate) fn last_timestamp(&self) -> u64 {
        self.events.last().map_or(0, |event| event.timestamp_ns)
    }

    /// Stores a batch.
    pub(crate) fn append(&mut self, batch: &Batch, timestamp_ns: u64) {
        let batch_first = self.last() + 1;
        for spec in batch.events() {
            let sequence = self.last() + 1;
            let stream = self.streams.entry(spec.stream.clone()).or_default();
            let revision = stream.len() as u64;
            stream.push(sequence);
            if let Some(id) = spec.id {
                self.ids.entry(id.0).or_default().push(sequence);
            }
            self.events.push(Stored {
                spec: Arc::clone(spec),
                seen: OnceCell::new(),
                revision,
                timestamp_ns,
                batch_first,
                batch_users: batch.users.len(),
            });
        }
        if let Some(plan) = &batch.trim {
            self.first_sequence = self.first_sequence.max(plan.first_sequence);
        }
    }

    /// Forgets everything after a sequence.
    pub(crate) fn truncate(&mut self, last: u64) {
        while self.last() > last {
            let sequence = self.last();
            let event = self.events.pop().expect("there are more than asked for");
            if let Some(stream) = self.streams.get_mut(&event.spec.stream) {
                stream.retain(|s| *s != sequence);
            }
            if let Some(id) = event.spec.id
                && let Some(sequences) = self.ids.get_mut(&id.0)
            {
                sequences.retain(|s| *s != sequence);
            }
        }
        self.streams.retain(|_, sequences| !sequences.is_empty());
        self.ids.retain(|_, sequences| !sequences.is_empty());
    }

    /// Whether a batch is stored from `first` on, exactly.
    fn is_stored(&self, batch: &Batch, first: u64) -> bool {
        if first == 0 || first > self.last() || first < self.first_sequence {
            return false;
        }
        let head = self.get(first);
        head.batch_first == first
            && head.batch_users == batch.users.len()
            && batch
                .users
                .iter()
                .zip(&self.events[at(first)..])
                .all(|(spec, stored)| spec.bytes == stored.spec.bytes)
    }

    fn known_id(&self, id: &EventId) -> Option<u64> {
        let newest = *self.ids.get(&id.0)?.last()?;
        (newest + self.window > self.last()).then_some(newest)
    }

    /// What the engine must answer.
    pub(crate) fn verdict(&self, batch: &Batch) -> Verdict {
        for (index, spec) in batch.users.iter().enumerate() {
            let id = spec.id.as_ref().expect("events of callers have ids");
            let Some(sequence) = self.known_id(id) else {
                continue;
            };
            if sequence < self.first_sequence {
                return Verdict::Unsure;
            }
            let first = sequence.saturating_sub(index as u64);
            if self.is_stored(batch, first) {
                return Verdict::Duplicate(first);
            }
            return Verdict::IdReused;
        }
        match self.conflict(batch) {
            Verdict::Accept => {}
            verdict => return verdict,
        }
        match &batch.condition {
            Some(condition) => self.condition(condition),
            None => Verdict::Accept,
        }
    }

    /// The streams that the batch expects something of, in the order of their first events.
    fn expectations<'a>(
        &'a self,
        batch: &'a Batch,
    ) -> impl Iterator<Item = (usize, &'a str, ExpectedRevision, &'a [u64])> {
        let first_of = |(i, spec): &(usize, &Arc<EventSpec>)| {
            let mut before = batch.users[..*i].iter();
            !before.any(|other| other.stream == spec.stream)
        };
        let specs = batch.users.iter().enumerate().filter(first_of);
        specs.filter_map(move |(i, spec)| {
            let mut newest = batch.expected.iter().rev();
            let (_, expected) = newest.find(|(stream, _)| *stream == spec.stream)?;
            let sequences = self.streams.get(&spec.stream).map_or(&[][..], |s| s);
            Some((i, spec.stream.as_str(), *expected, sequences))
        })
    }

    fn conflict(&self, batch: &Batch) -> Verdict {
        let actual = |sequences: &[u64]| (sequences.len() as u64).checked_sub(1);
        let broken = self
            .expectations(batch)
            .find(|(_, _, expected, s)| !match expected {
                ExpectedRevision::Any => true,
                ExpectedRevision::NoStream => actual(s).is_none(),
                ExpectedRevision::Exists => actual(s).is_some(),
                ExpectedRevision::Exact(revision) => actual(s) == Some(*revision),
            });
        let Some((_, _, _, sequences)) = broken else {
            return Verdict::Accept;
        };
        for (index, _, expected, stream) in self.expectations(batch) {
            let next = match expected {
                ExpectedRevision::NoStream => 0,
                ExpectedRevision::Exact(revision) => revision.saturating_add(1),
                ExpectedRevision::Any | ExpectedRevision::Exists => continue,
            };
            let next = usize::try_from(next).unwrap_or(usize::MAX);
            let Some(sequence) = stream.get(next) else {
                continue;
            };
            if *sequence < self.first_sequence {
                return Verdict::Unsure;
            }
            let first = sequence.saturating_sub(index as u64);
            if self.is_stored(batch, first) {
                return Verdict::Duplicate(first);
            }
            break;
        }
        Verdict::Conflict(actual(sequences))
    }

    /// Whether an event matches a condition.
    pub(crate) fn matches(&self, condition: &AppendCondition, sequence: u64) -> bool {
        if sequence <= condition.after || sequence > self.last() {
            return false;
        }
        let spec = &self.get(sequence).spec;
        condition.items.iter().any(|item| {
            (item.types.is_empty() || item.types.contains(&spec.kind))
                && item.tags.iter().all(|tag| spec.tags.contains(tag))
        })
    }

    fn condition(&self, condition: &AppendCondition) -> Verdict {
        let mut found = (1..=self.last()).rev();
        match found.find(|sequence| self.matches(condition, *sequence)) {
            None => Verdict::Accept,
            Some(sequence) if sequence < self.first_sequence => Verdict::Unsure,
            Some(_) => Verdict::ConditionFailed,
        }
    }

    /// Whether an event passes a filter.
    pub(crate) fn passes(&self, filter: &Filter, sequence: u64) -> bool {
        let spec = &self.get(sequence).spec;
        let prefix = filter.stream_prefix.as_deref();
        prefix.is_none_or(|prefix| spec.stream.starts_with(prefix))
            && (filter.types.is_empty() || filter.types.contains(&spec.kind))
            && filter.tags.iter().all(|tag| spec.tags.contains(tag))
    }

    /// Whether the first events of a batch are stored from `first` on, and were trimmed since.
    pub(crate) fn was_stored(&self, batch: &Batch, first: u64) -> bool {
        let spec = batch.users.first();
        (1..self.first_sequence).contains(&first)
            && spec.is_some_and(|spec| spec.bytes == self.get(first).spec.bytes)
    }

    /// What the acknowledgement of a batch stored from `first` on must say, but for `duplicate` and `durable`.
    pub(crate) fn acknowledged(&self, partition: u32, first: u64) -> Appended {
        let head = self.get(first);
        let last = first + (head.batch_users as u64).max(1) - 1;
        Appended {
            partition,
            first_sequence: first,
            last_sequence: last,
            timestamp_ns: head.timestamp_ns,
            last_revision: self.get(last).revision,
            durable: true,
            duplicate: false,
        }
    }

    /// Compares an event that the engine returned. What differs, if anything.
    pub(crate) fn differs(&self, read: &StoredEvent<'_>) -> Option<String> {
        if read.sequence == 0 || read.sequence > self.last() {
            let (sequence, last) = (read.sequence, self.last());
            return Some(format!(
                "sequence {sequence} was returned, {last} is the last"
            ));
        }
        let stored = self.get(read.sequence);
        let pair = (read.revision, read.timestamp_ns);
        if pair != (stored.revision, stored.timestamp_ns) {
            let expected = (stored.revision, stored.timestamp_ns);
            return Some(format!(
                "sequence {}: (revision, time) {pair:?}, not {expected:?}",
                read.sequence
            ));
        }
        let same = match &stored.spec.bytes {
            Some(bytes) => bytes == read.bytes,
            None => {
                let seen = stored
                    .seen
                    .get_or_init(|| Bytes::copy_from_slice(read.bytes));
                seen == read.bytes && is_system_event(&stored.spec, read.bytes)
            }
        };
        (!same).then(|| format!("sequence {}: the bytes differ", read.sequence))
    }
}

/// Whether bytes are the event that the engine had to make.
pub(crate) fn is_system_event(spec: &EventSpec, bytes: &[u8]) -> bool {
    EventRef::parse(bytes).is_ok_and(|event| {
        event.stream() == spec.stream
            && event.event_type() == spec.kind
            && event.payload() == spec.payload
    })
}
