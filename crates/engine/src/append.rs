//! An append on the caller's side of the queue: parsed, validated and hashed before the writer sees it.
//!
//! Everything that costs time and needs no state is done here, on the caller's thread, so that the
//! one writer of a
//! partition only looks up, copies and counts.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use truthdb_event::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, EventBuilder, EventError, EventId, EventRef, event_checksum,
    is_system_stream, partition_of,
};
use truthdb_io::Random;
use truthdb_log::{FacetKey, IdHash, KeyHasher, StreamKey, TABLE_ROW_BYTES};

use crate::error::AppendError;
use crate::request::{AppendCondition, Appended, CursorUpdate, ExpectedRevision};

/// Most items of an append condition.
pub const CONDITION_ITEMS_MAX: usize = 16;
/// Most types or tags of one item of an append condition.
pub const CONDITION_NAMES_MAX: usize = 32;
/// Longest cursor name in bytes: with its prefix it is the name of a stream.
pub const CURSOR_NAME_BYTES_MAX: usize = 200;
/// Prefix of the streams that cursors are kept in.
pub const CURSOR_STREAM_PREFIX: &str = "$cursor/";
/// Type of the events that cursors are kept in; the payload is the position, u64 little-endian.
pub const CURSOR_EVENT_TYPE: &str = "$cursor";
/// Names of streams, types, tags and metadata keys that begin so are the database's own.
pub const SYSTEM_PREFIX: char = '$';
/// Stream of the events that record trims.
pub const TRIM_STREAM: &str = "$trim";
/// Type of the events that record trims; the payload is JSON.
pub const TRIM_EVENT_TYPE: &str = "$trim";

/// What a caller wants to append, encoded.
#[derive(Debug, Clone, Default)]
pub struct EncodedEvents {
    /// Canonical events back to back.
    pub bytes: Bytes,
    /// Their checksums, if the caller computed them: verified against the bytes, so that damage on
    /// the way is noticed.
    pub checksums: Option<Vec<u64>>,
    /// What the caller knows of streams of the batch. Streams not named: anything.
    pub expected: Vec<(String, ExpectedRevision)>,
    /// A condition over other events of the partition.
    pub condition: Option<AppendCondition>,
    /// A cursor to store in the same commit.
    pub cursor: Option<CursorUpdate>,
}

/// Receives the outcome of an append. Called on the writer's thread: it must be cheap and must not block.
pub trait AppendSink: Send + Sync {
    /// The append with this tag is done. The batch comes back so that its memory is freed elsewhere.
    fn complete(&self, tag: u64, result: Result<Appended, AppendError>, batch: Box<AppendBatch>);
}

/// One event of a prepared batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PreparedEvent {
    /// Where its canonical bytes begin in the batch's bytes.
    pub(crate) start: usize,
    pub(crate) bytes: u32,
    pub(crate) checksum: u64,
    pub(crate) id: EventId,
    pub(crate) id_hash: IdHash,
    /// Index into the batch's streams.
    pub(crate) stream: usize,
    /// Its type and tags: a range of the batch's facets.
    pub(crate) facets: (usize, usize),
}

/// One distinct stream of a prepared batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PreparedStream {
    pub(crate) key: StreamKey,
    pub(crate) expected: ExpectedRevision,
    /// Index of its first event in the batch.
    pub(crate) first_event: usize,
}

/// One item of a prepared condition.
#[derive(Debug, Clone)]
pub(crate) struct PreparedItem {
    pub(crate) types: Vec<FacetKey>,
    pub(crate) tags: Vec<FacetKey>,
}

/// A batch that is ready for the writer.
#[derive(Debug)]
pub struct AppendBatch {
    pub(crate) partition: u32,
    pub(crate) bytes: Bytes,
    /// Canonical bytes of the events that the engine itself adds (cursor, trim); they come after
    /// the caller's.
    pub(crate) system_bytes: Vec<u8>,
    pub(crate) events: Vec<PreparedEvent>,
    /// How many of the events are the caller's.
    pub(crate) user_events: usize,
    /// The database itself is the caller: no gate is asked.
    pub(crate) own: bool,
    pub(crate) streams: Vec<PreparedStream>,
    pub(crate) facets: Vec<FacetKey>,
    pub(crate) condition: Vec<PreparedItem>,
    pub(crate) condition_after: u64,
    /// Sum of the canonical bytes of all events.
    pub(crate) event_bytes: usize,
}

impl AppendBatch {
    /// Bytes the batch takes in the log, without its header and padding.
    pub fn stored_bytes(&self) -> usize {
        self.event_bytes + self.events.len() * TABLE_ROW_BYTES
    }

    /// The partition it goes to.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// How many events the caller gave.
    pub fn event_count(&self) -> usize {
        self.user_events
    }

    /// Canonical bytes of an event.
    pub(crate) fn event(&self, index: usize) -> &[u8] {
        let event = &self.events[index];
        let bytes = event.bytes as usize;
        if index < self.user_events {
            &self.bytes[event.start..event.start + bytes]
        } else {
            &self.system_bytes[event.start..event.start + bytes]
        }
    }

    /// Name of a stream of the batch.
    pub(crate) fn stream_name(&self, stream: usize) -> String {
        let bytes = self.event(self.streams[stream].first_event);
        EventRef::parse_trusted(bytes)
            .map_or_else(|_| String::new(), |event| event.stream().to_owned())
    }
}

/// Prepares batches for one database.
pub(crate) struct Preparer {
    pub(crate) hasher: KeyHasher,
    /// Where the ids of the engine's own events come from.
    pub(crate) random: Arc<dyn Random>,
    pub(crate) partition_count: u32,
}

/// Distinct streams up to this many are found by a linear search, more by a map.
const LINEAR_STREAMS_MAX: usize = 8;

struct StreamTable {
    streams: Vec<PreparedStream>,
    map: HashMap<u128, usize>,
}

impl StreamTable {
    fn index(&mut self, key: StreamKey, first_event: usize) -> usize {
        let new = self.streams.len();
        if new <= LINEAR_STREAMS_MAX {
            if let Some(index) = self.streams.iter().rposition(|s| s.key == key) {
                return index;
            }
        } else {
            if self.map.is_empty() {
                self.map
                    .extend(self.streams.iter().enumerate().map(|(i, s)| (s.key.0, i)));
            }
            let index = *self.map.entry(key.0).or_insert(new);
            if index != new {
                return index;
            }
        }
        self.streams.push(PreparedStream {
            key,
            expected: ExpectedRevision::Any,
            first_event,
        });
        new
    }
}

/// A batch of which some events are parsed.
struct Parsed {
    partition: Option<u32>,
    table: StreamTable,
    facets: Vec<FacetKey>,
    events: Vec<PreparedEvent>,
    /// Where the last event type lies, and its key.
    last_type: Option<(usize, usize, FacetKey)>,
    /// Names that begin with `$` are allowed.
    own: bool,
}

impl Preparer {
    /// Validates and hashes a batch of user events, or with `own` of the database's. With no
    /// partition given, it is that of the first event's stream.
    pub(crate) fn prepare(
        &self,
        partition: Option<u32>,
        input: EncodedEvents,
        own: bool,
    ) -> Result<Box<AppendBatch>, AppendError> {
        if let Some(partition) = partition
            && partition >= self.partition_count
        {
            return Err(AppendError::NoSuchPartition {
                partition,
                count: self.partition_count,
            });
        }
        let mut parsed = Parsed {
            partition,
            table: StreamTable {
                streams: Vec::new(),
                map: HashMap::new(),
            },
            facets: Vec::new(),
            events: Vec::new(),
            last_type: None,
            own,
        };
        let mut at = 0;
        while at < input.bytes.len() {
            at = self.parse_next(&mut parsed, &input, at)?;
        }
        let Parsed {
            partition,
            table,
            facets,
            events,
            ..
        } = parsed;
        if input
            .checksums
            .as_ref()
            .is_some_and(|given| given.len() != events.len())
        {
            return Err(invalid(
                "the number of checksums is not the number of events",
            ));
        }
        reject_repeated_ids(&events)?;
        let partition = match (partition, &input.cursor, events.is_empty()) {
            (_, None, true) => return Err(AppendError::EmptyBatch),
            (Some(partition), _, _) => partition,
            (None, ..) => return Err(invalid("a cursor without events needs a partition")),
        };
        let event_bytes = input.bytes.len();
        let mut batch = Box::new(AppendBatch {
            partition,
            bytes: input.bytes,
            system_bytes: Vec::new(),
            user_events: events.len(),
            own,
            events,
            streams: table.streams,
            facets,
            condition: Vec::new(),
            condition_after: 0,
            event_bytes,
        });
        self.apply_expected(&mut batch, &input.expected)?;
        if let Some(condition) = input.condition {
            self.apply_condition(&mut batch, condition)?;
        }
        if let Some(cursor) = input.cursor {
            self.add_cursor(&mut batch, &cursor)?;
        }
        check_limit(
            "BATCH_BYTES_MAX",
            batch.stored_bytes() as u64,
            BATCH_BYTES_MAX as u64,
        )?;
        Ok(batch)
    }

    /// Takes the event that begins at `at`, and says where the next one begins.
    fn parse_next(
        &self,
        parsed: &mut Parsed,
        input: &EncodedEvents,
        at: usize,
    ) -> Result<usize, AppendError> {
        let index = parsed.events.len();
        check_limit(
            "BATCH_EVENTS_MAX",
            index as u64 + 1,
            BATCH_EVENTS_MAX as u64,
        )?;
        let (event, end) = parse_event(&input.bytes, at, index)?;
        let owner = self.check_names(&event, index, parsed)?;
        match parsed.partition {
            None => parsed.partition = Some(owner),
            Some(partition) if partition == owner => {}
            Some(actual) => {
                let stream = event.stream().to_owned();
                return Err(AppendError::WrongPartition {
                    stream,
                    expected: owner,
                    actual,
                });
            }
        }
        let checksum = event_checksum(&input.bytes[at..end]);
        check_checksum(input.checksums.as_deref(), index, checksum)?;
        let key = self.hasher.stream(event.stream().as_bytes());
        let stream = parsed.table.index(key, index);
        let first_facet = parsed.facets.len();
        let name = event.event_type();
        // Batches are often of one type: hash it once for a run of equal ones.
        let type_key = match parsed.last_type {
            Some((start, end, key)) if &input.bytes[start..end] == name.as_bytes() => key,
            _ => self.hasher.event_type(name.as_bytes()),
        };
        let type_start = at + (name.as_ptr().addr() - input.bytes[at..].as_ptr().addr());
        parsed.last_type = Some((type_start, type_start + name.len(), type_key));
        parsed.facets.push(type_key);
        parsed
            .facets
            .extend(event.tags().map(|tag| self.hasher.tag(tag.as_bytes())));
        let id = event.id();
        parsed.events.push(PreparedEvent {
            start: at,
            bytes: u32::try_from(end - at).expect("an event's length is limited"),
            checksum,
            id,
            id_hash: self.hasher.id(id.as_bytes()),
            stream,
            facets: (first_facet, parsed.facets.len()),
        });
        Ok(end)
    }

    /// A batch of one event of the engine's own.
    pub(crate) fn prepare_system(
        &self,
        partition: u32,
        builder: &EventBuilder<'_>,
    ) -> Result<Box<AppendBatch>, AppendError> {
        let mut batch = Box::new(AppendBatch {
            partition,
            bytes: Bytes::new(),
            system_bytes: Vec::new(),
            events: Vec::new(),
            user_events: 0,
            own: true,
            streams: Vec::new(),
            facets: Vec::new(),
            condition: Vec::new(),
            condition_after: 0,
            event_bytes: 0,
        });
        self.add_system_event(&mut batch, builder)?;
        Ok(batch)
    }

    /// Refuses the database's own names in others' events, and gives the stream's partition.
    fn check_names(
        &self,
        event: &EventRef<'_>,
        index: usize,
        parsed: &Parsed,
    ) -> Result<u32, AppendError> {
        let stream = event.stream();
        let reserved = |name: &str| name.starts_with(SYSTEM_PREFIX);
        if parsed.own {
            let owner = is_system_stream(stream)
                .then_some(parsed.partition)
                .flatten();
            return Ok(owner.unwrap_or_else(|| partition_of(stream, self.partition_count)));
        }
        if is_system_stream(stream) || reserved(event.event_type()) {
            return Err(AppendError::Invalid {
                reason: format!(
                    "event {index}: stream names and event types that begin with `$` are the system's own; \
                     choose another name for {stream:?} / {:?}",
                    event.event_type()
                ),
            });
        }
        let keys = event.metadata().map(|(key, _)| key);
        if let Some(name) = event.tags().chain(keys).find(|name| reserved(name)) {
            return Err(AppendError::Invalid {
                reason: format!(
                    "event {index}: tags and metadata keys that begin with `$` are the system's own; \
                     choose another name for {name:?}"
                ),
            });
        }
        Ok(partition_of(stream, self.partition_count))
    }

    fn apply_expected(
        &self,
        batch: &mut AppendBatch,
        expected: &[(String, ExpectedRevision)],
    ) -> Result<(), AppendError> {
        for (stream, expected) in expected {
            let key = self.hasher.stream(stream.as_bytes());
            let Some(prepared) = batch.streams.iter_mut().find(|s| s.key == key) else {
                return Err(AppendError::Invalid {
                    reason: format!(
                        "an expected revision is given for stream {stream:?}, which has no event in the batch"
                    ),
                });
            };
            prepared.expected = *expected;
        }
        Ok(())
    }

    fn apply_condition(
        &self,
        batch: &mut AppendBatch,
        condition: AppendCondition,
    ) -> Result<(), AppendError> {
        let items = condition.items.len() as u64;
        check_limit("CONDITION_ITEMS_MAX", items, CONDITION_ITEMS_MAX as u64)?;
        if items == 0 {
            return Err(invalid("an append condition needs at least one item"));
        }
        for names in condition.items {
            let count = names.types.len().max(names.tags.len()) as u64;
            check_limit("CONDITION_NAMES_MAX", count, CONDITION_NAMES_MAX as u64)?;
            if count == 0 {
                return Err(invalid(
                    "an item of an append condition needs a type or a tag",
                ));
            }
            let types = names
                .types
                .iter()
                .map(|t| self.hasher.event_type(t.as_bytes()))
                .collect();
            let tags = names
                .tags
                .iter()
                .map(|t| self.hasher.tag(t.as_bytes()))
                .collect();
            batch.condition.push(PreparedItem { types, tags });
        }
        batch.condition_after = condition.after;
        Ok(())
    }

    fn add_cursor(
        &self,
        batch: &mut AppendBatch,
        cursor: &CursorUpdate,
    ) -> Result<(), AppendError> {
        if cursor.name.is_empty() {
            return Err(invalid("the name of a cursor must not be empty"));
        }
        let name_bytes = cursor.name.len() as u64;
        check_limit(
            "CURSOR_NAME_BYTES_MAX",
            name_bytes,
            CURSOR_NAME_BYTES_MAX as u64,
        )?;
        let stream = format!("{CURSOR_STREAM_PREFIX}{}", cursor.name);
        let position = cursor.position.to_le_bytes();
        let builder = EventBuilder::new(&stream, CURSOR_EVENT_TYPE).payload(&position);
        self.add_system_event(batch, &builder)
    }

    fn add_system_event(
        &self,
        batch: &mut AppendBatch,
        builder: &EventBuilder<'_>,
    ) -> Result<(), AppendError> {
        let index = batch.events.len();
        let start = batch.system_bytes.len();
        let source = |source: EventError| AppendError::InvalidEvent { index, source };
        let mut id = [0; 16];
        self.random.fill(&mut id);
        let builder = builder.clone().id(EventId(id));
        let bytes = builder
            .encode_into(&mut batch.system_bytes)
            .map_err(source)?;
        let canonical = &batch.system_bytes[start..start + bytes];
        let event = EventRef::parse(canonical).map_err(source)?;
        let first_facet = batch.facets.len();
        batch
            .facets
            .push(self.hasher.event_type(event.event_type().as_bytes()));
        batch.streams.push(PreparedStream {
            key: self.hasher.stream(event.stream().as_bytes()),
            expected: ExpectedRevision::Any,
            first_event: index,
        });
        batch.events.push(PreparedEvent {
            start,
            bytes: u32::try_from(bytes).expect("an event's length is limited"),
            checksum: event_checksum(canonical),
            id: event.id(),
            id_hash: self.hasher.id(event.id().as_bytes()),
            stream: batch.streams.len() - 1,
            facets: (first_facet, batch.facets.len()),
        });
        batch.event_bytes += bytes;
        Ok(())
    }
}

fn parse_event(
    bytes: &Bytes,
    at: usize,
    index: usize,
) -> Result<(EventRef<'_>, usize), AppendError> {
    let source = |source: EventError| AppendError::InvalidEvent { index, source };
    let length = EventRef::parse_prefix(&bytes[at..]).map_err(source)?;
    let end = at + length;
    let event = EventRef::parse(&bytes[at..end]).map_err(source)?;
    Ok((event, end))
}

fn check_checksum(given: Option<&[u64]>, index: usize, actual: u64) -> Result<(), AppendError> {
    match given.map(|given| given.get(index)) {
        None => Ok(()),
        Some(Some(given)) if *given == actual => Ok(()),
        Some(_) => Err(AppendError::Invalid {
            reason: format!(
                "the checksum of event {index} does not fit its bytes: they were damaged on the way; send them again"
            ),
        }),
    }
}

/// An id stands for one event: twice in a batch is a mistake of the caller.
fn reject_repeated_ids(events: &[PreparedEvent]) -> Result<(), AppendError> {
    if events.len() < 2 {
        return Ok(());
    }
    let mut hashes: Vec<(u64, usize)> = events
        .iter()
        .enumerate()
        .map(|(i, e)| (e.id_hash.0, i))
        .collect();
    hashes.sort_unstable();
    for pair in hashes.windows(2) {
        let (a, b) = (pair[0].1, pair[1].1);
        if pair[0].0 == pair[1].0 && events[a].id == events[b].id {
            return Err(AppendError::Invalid {
                reason: format!(
                    "events {a} and {b} of the batch have the same id {}",
                    events[a].id
                ),
            });
        }
    }
    Ok(())
}

fn check_limit(limit: &'static str, actual: u64, max: u64) -> Result<(), AppendError> {
    if actual > max {
        Err(AppendError::LimitExceeded { limit, actual, max })
    } else {
        Ok(())
    }
}

fn invalid(reason: &str) -> AppendError {
    AppendError::Invalid {
        reason: reason.to_owned(),
    }
}

/// A sink for one append whose caller waits on its own thread.
pub(crate) struct WaitSink {
    done: parking_lot::Mutex<Option<Result<Appended, AppendError>>>,
    signal: parking_lot::Condvar,
}

impl WaitSink {
    pub(crate) fn new() -> Arc<WaitSink> {
        Arc::new(WaitSink {
            done: parking_lot::Mutex::new(None),
            signal: parking_lot::Condvar::new(),
        })
    }

    pub(crate) fn wait(&self) -> Result<Appended, AppendError> {
        let mut done = self.done.lock();
        loop {
            match done.take() {
                Some(result) => return result,
                None => self.signal.wait(&mut done),
            }
        }
    }
}

impl AppendSink for WaitSink {
    fn complete(&self, _tag: u64, result: Result<Appended, AppendError>, _batch: Box<AppendBatch>) {
        *self.done.lock() = Some(result);
        self.signal.notify_one();
    }
}
