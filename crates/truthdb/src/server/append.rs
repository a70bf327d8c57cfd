//! Appending from the network side: encoding, handing over, waiting.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use truthdb_api::{ApiError, ErrorCode, Outcome, v1};
use truthdb_engine::{
    AppendBatch, AppendCondition, AppendError, AppendSink, Appended, ConditionItem, CursorUpdate,
    EncodedEvents, Engine, ExpectedRevision, ReadFrom, ReadRequest,
};
use truthdb_event::{EventBuilder, EventId, EventRef};

use super::Shared;
use super::errors::{append_error, invalid_event, read_error};

/// An event from a client, not yet encoded.
pub(crate) struct EventParts<'a> {
    pub id: &'a [u8],
    pub stream: &'a str,
    pub event_type: &'a str,
    pub content_type: &'a str,
    pub tags: &'a [String],
    pub metadata: Vec<(&'a str, &'a str)>,
    pub payload: &'a [u8],
}

impl EventParts<'_> {
    /// Appends the canonical bytes to `out`.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` or `LIMIT_EXCEEDED`, naming the event by its place in the batch.
    pub(crate) fn encode(&self, index: usize, out: &mut Vec<u8>) -> Result<(), ApiError> {
        let mut builder = EventBuilder::new(self.stream, self.event_type)
            .id(event_id(index, self.id)?)
            .content_type(self.content_type)
            .payload(self.payload);
        for tag in self.tags {
            builder = builder.tag(tag);
        }
        for (key, value) in &self.metadata {
            builder = builder.metadata(key, value);
        }
        builder
            .encode_into(out)
            .map(|_| ())
            .map_err(|error| invalid_event(index, &error))
    }
}

/// The client's id, or a new one when it gave none.
fn event_id(index: usize, id: &[u8]) -> Result<EventId, ApiError> {
    if id.is_empty() {
        return Ok(EventId::from_bytes(*uuid::Uuid::now_v7().as_bytes()));
    }
    let bytes = <[u8; 16]>::try_from(id).map_err(|_| {
        let length = id.len();
        ApiError::invalid_argument(format!(
            "event {index} of the batch: an id has 16 bytes, this one {length}"
        ))
    })?;
    Ok(EventId::from_bytes(bytes))
}

/// A gRPC append as the engine takes it.
///
/// # Errors
///
/// `INVALID_ARGUMENT` or `LIMIT_EXCEEDED`, naming the field.
pub(crate) fn encode_request(request: &v1::AppendRequest) -> Result<EncodedEvents, ApiError> {
    let mut bytes = Vec::with_capacity(prost::Message::encoded_len(request));
    for (index, event) in request.events.iter().enumerate() {
        let metadata = event
            .metadata
            .iter()
            .map(|entry| (entry.key.as_str(), entry.value.as_str()))
            .collect();
        let parts = EventParts {
            id: &event.id,
            stream: &event.stream,
            event_type: &event.r#type,
            content_type: &event.content_type,
            tags: &event.tags,
            metadata,
            payload: &event.payload,
        };
        parts.encode(index, &mut bytes)?;
    }
    let expected = request
        .expectations
        .iter()
        .map(|expectation| Ok((expectation.stream.clone(), expected_revision(expectation)?)))
        .collect::<Result<_, ApiError>>()?;
    let condition = request.condition.as_ref().map(|condition| AppendCondition {
        items: condition
            .matches
            .iter()
            .map(|one| ConditionItem {
                types: one.types.clone(),
                tags: one.tags.clone(),
            })
            .collect(),
        after: condition.after_sequence,
    });
    let cursor = request.cursor.as_ref().map(|cursor| CursorUpdate {
        name: cursor.name.clone(),
        position: cursor.position,
    });
    Ok(EncodedEvents {
        bytes: Bytes::from(bytes),
        checksums: None,
        expected,
        condition,
        cursor,
    })
}

fn expected_revision(expectation: &v1::StreamExpectation) -> Result<ExpectedRevision, ApiError> {
    let revision = expectation.revision;
    let expected = match expectation.expected() {
        v1::ExpectedRevision::Unspecified => {
            let message = format!(
                "expectation on {}: `expected` is missing",
                expectation.stream
            );
            return Err(ApiError::invalid_argument(message));
        }
        v1::ExpectedRevision::Any => ExpectedRevision::Any,
        v1::ExpectedRevision::NoStream => ExpectedRevision::NoStream,
        v1::ExpectedRevision::StreamExists => ExpectedRevision::Exists,
        v1::ExpectedRevision::Exact => return Ok(ExpectedRevision::Exact(revision)),
    };
    if revision != 0 {
        let message = format!(
            "expectation on {}: `revision` goes with EXACT",
            expectation.stream
        );
        return Err(ApiError::invalid_argument(message));
    }
    Ok(expected)
}

/// Hands one append's result to the task that waits for it.
struct OneResult(Mutex<Option<oneshot::Sender<Result<Appended, AppendError>>>>);

impl AppendSink for OneResult {
    fn complete(&self, _tag: u64, result: Result<Appended, AppendError>, batch: Box<AppendBatch>) {
        if let Some(sender) = self.0.lock().take() {
            // Whoever asked may be gone; the append stays done.
            let _ = sender.send(result);
        }
        drop(batch);
    }
}

/// An acknowledged append with the newest revision of each of its streams, in order of first
/// appearance.
pub(crate) struct Acknowledged {
    pub appended: Appended,
    pub streams: Vec<(String, u64)>,
}

/// Appends and waits.
///
/// # Errors
///
/// Those of the append.
pub(crate) async fn append(
    shared: &Arc<Shared>,
    partition: Option<u32>,
    events: EncodedEvents,
) -> Result<Acknowledged, ApiError> {
    let streams = distinct_streams(&events.bytes);
    let has_cursor = events.cursor.is_some();
    let batch = shared
        .engine
        .prepare(partition, events)
        .map_err(|error| append_error(&error))?;
    let (sender, receiver) = oneshot::channel();
    let sink = Arc::new(OneResult(Mutex::new(Some(sender))));
    shared
        .engine
        .append(batch, sink, 0)
        .map_err(|(error, _)| append_error(&error))?;
    let mut appended = receiver
        .await
        .map_err(|_| {
            ApiError::new(
                ErrorCode::Unavailable,
                "the engine stopped before it answered",
            )
            .with_outcome(Outcome::MayHaveHappened)
        })?
        .map_err(|error| append_error(&error))?;
    let streams = match &streams[..] {
        [] => Vec::new(),
        [only] => vec![(only.clone(), appended.last_revision)],
        _ => {
            let count = streams.len();
            let engine = shared.engine.clone();
            let revisions = if engine.is_in_memory(appended.partition, appended.first_sequence) {
                stream_revisions(&engine, &appended, count)
            } else {
                let read = move || stream_revisions(&engine, &appended, count);
                shared.readers.run(read).await.and_then(|result| result)
            };
            // It is done: an error here must not look like one of the append.
            revisions.unwrap_or_else(|error| {
                tracing::warn!("the revisions of an append could not be read back: {error}");
                Vec::new()
            })
        }
    };
    if has_cursor && !streams.is_empty() {
        // The cursor's own event comes after the caller's.
        appended.last_sequence += 1;
    }
    Ok(Acknowledged { appended, streams })
}

/// The streams of encoded events, in order of first appearance. Stops at bytes that are no event,
/// which the engine refuses.
fn distinct_streams(bytes: &[u8]) -> Vec<String> {
    let mut streams: Vec<String> = Vec::new();
    let mut known = std::collections::HashSet::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Ok(length) = EventRef::parse_prefix(rest) else {
            break;
        };
        let Some(event) = rest.get(..length) else {
            break;
        };
        let Ok(event) = EventRef::parse_trusted(event) else {
            break;
        };
        let is_last = streams.last().is_some_and(|last| last == event.stream());
        if !is_last && known.insert(event.stream().to_owned()) {
            streams.push(event.stream().to_owned());
        }
        at += length;
    }
    streams
}

/// Reads a committed batch back, for the newest revision of each of its first `count` streams.
pub(crate) fn stream_revisions(
    engine: &Engine,
    appended: &Appended,
    count: usize,
) -> Result<Vec<(String, u64)>, ApiError> {
    let mut streams: Vec<(String, u64)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let mut next = appended.first_sequence;
    while next <= appended.last_sequence {
        let request = ReadRequest {
            partition: appended.partition,
            from: ReadFrom::Sequence(next),
            direction: truthdb_engine::Direction::Forward,
            filter: truthdb_engine::Filter::default(),
            events_max: usize::try_from(appended.last_sequence - next + 1).unwrap_or(usize::MAX),
            bytes_max: truthdb_event::BATCH_BYTES_MAX,
        };
        let page = engine.read(&request).map_err(|error| read_error(&error))?;
        let Some(last) = page.batches.last() else {
            break;
        };
        next = last.last_sequence() + 1;
        let stored = page.batches.iter().flat_map(|batch| batch.events());
        for stored in stored.filter(|stored| stored.sequence <= appended.last_sequence) {
            let event = stored.event();
            let place = *places.entry(event.stream().to_owned()).or_insert_with(|| {
                streams.push((event.stream().to_owned(), 0));
                streams.len() - 1
            });
            streams[place].1 = stored.revision;
        }
    }
    // A cursor committed with the batch is not one of the caller's streams.
    streams.truncate(count);
    Ok(streams)
}
