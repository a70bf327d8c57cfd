//! Between the engine's values and those of gRPC.

use truthdb_api::native::{EventMatch, Filter, StreamFilter, Text};
use truthdb_api::{ApiError, v1};
use truthdb_engine as engine;
use truthdb_event::EventRef;
use truthdb_log::{StoredBatch, StoredEvent};

use super::append::Acknowledged;
use super::scan::ScanPage;

/// What an acknowledgement means, as gRPC says it.
pub(crate) fn durability(durability: engine::Durability) -> v1::Durability {
    match durability {
        engine::Durability::FlushEachGroup => v1::Durability::FlushEachGroup,
        engine::Durability::FlushInterval(_) => v1::Durability::FlushInterval,
        engine::Durability::Os => v1::Durability::Os,
    }
}

/// How much acknowledged time a power failure may cost, milliseconds.
pub(crate) fn loss_window_ms(durability: engine::Durability) -> u64 {
    match durability {
        engine::Durability::FlushInterval(interval) => {
            u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
        }
        _ => 0,
    }
}

/// The limits of this version.
pub(crate) fn limits() -> v1::Limits {
    let number = |value: usize| u32::try_from(value).expect("limits are below 4 GiB");
    v1::Limits {
        stream_name_bytes_max: number(truthdb_event::STREAM_NAME_BYTES_MAX),
        event_type_bytes_max: number(truthdb_event::EVENT_TYPE_BYTES_MAX),
        content_type_bytes_max: number(truthdb_event::CONTENT_TYPE_BYTES_MAX),
        tags_max: number(truthdb_event::TAGS_MAX),
        metadata_bytes_max: number(truthdb_event::METADATA_BYTES_MAX),
        metadata_keys_max: number(truthdb_event::METADATA_KEYS_MAX),
        event_payload_bytes_max: number(truthdb_event::EVENT_PAYLOAD_BYTES_MAX),
        batch_events_max: number(truthdb_event::BATCH_EVENTS_MAX),
        batch_bytes_max: number(truthdb_event::BATCH_BYTES_MAX),
        cursor_name_bytes_max: number(engine::CURSOR_NAME_BYTES_MAX),
        filter_matches_max: number(truthdb_api::FILTER_MATCHES_MAX),
        filter_names_max: number(truthdb_api::FILTER_NAMES_MAX),
        expectations_max: number(truthdb_api::EXPECTATIONS_MAX),
    }
}

/// The answer to an append.
pub(crate) fn append_response(
    done: Acknowledged,
    durability: v1::Durability,
) -> v1::AppendResponse {
    let appended = done.appended;
    v1::AppendResponse {
        partition: appended.partition,
        first_sequence: appended.first_sequence,
        last_sequence: appended.last_sequence,
        timestamp_ns: appended.timestamp_ns,
        streams: done
            .streams
            .into_iter()
            .map(|(stream, last_revision)| v1::StreamRevision {
                stream,
                last_revision,
            })
            .collect(),
        already_appended: appended.duplicate,
        durability: durability.into(),
    }
}

/// One stored event.
pub(crate) fn event(partition: u32, batch: &StoredBatch, stored: &StoredEvent<'_>) -> v1::Event {
    let event: EventRef<'_> = stored.event();
    v1::Event {
        partition,
        sequence: stored.sequence,
        stream: event.stream().to_owned(),
        revision: stored.revision,
        id: batch.body.slice_ref(&stored.bytes[..16]),
        r#type: event.event_type().to_owned(),
        timestamp_ns: stored.timestamp_ns,
        content_type: event.content_type().to_owned(),
        tags: event.tags().map(str::to_owned).collect(),
        metadata: event
            .metadata()
            .map(|(key, value)| v1::MetadataEntry {
                key: key.to_owned(),
                value: value.to_owned(),
            })
            .collect(),
        payload: batch.body.slice_ref(event.payload()),
        checksum: stored.checksum,
    }
}

/// The events of a page, in the order of reading.
pub(crate) fn events(partition: u32, page: &ScanPage, backward: bool) -> Vec<v1::Event> {
    let mut events = Vec::new();
    for batch in &page.batches {
        let from = events.len();
        events.extend(
            batch
                .events()
                .map(|stored| event(partition, batch, &stored)),
        );
        if backward {
            events[from..].reverse();
        }
    }
    events
}

/// A short text of a request.
///
/// # Errors
///
/// `INVALID_ARGUMENT` naming the field, above 255 bytes.
pub(crate) fn text(field: &str, text: &str) -> Result<Text, ApiError> {
    Text::new(text).map_err(|error| ApiError::invalid_argument(format!("{field}: {error}")))
}

/// A filter as the scan takes it.
///
/// # Errors
///
/// `INVALID_ARGUMENT` or `LIMIT_EXCEEDED`.
pub(crate) fn filter(filter: Option<v1::EventFilter>) -> Result<Filter, ApiError> {
    let Some(filter) = filter else {
        return Ok(Filter::default());
    };
    let streams = match filter.streams {
        Some(v1::event_filter::Streams::Stream(name)) => StreamFilter::One(text("stream", &name)?),
        Some(v1::event_filter::Streams::StreamPrefix(prefix)) => {
            StreamFilter::Prefix(text("stream_prefix", &prefix)?)
        }
        None if filter.include_system => StreamFilter::AllWithSystem,
        None => StreamFilter::All,
    };
    let names = |field, names: &[String]| {
        let most = truthdb_api::FILTER_NAMES_MAX;
        if names.len() > most {
            return Err(limit("filter_names_max", most, names.len()));
        }
        names
            .iter()
            .map(|name| text(field, name))
            .collect::<Result<Vec<_>, _>>()
    };
    if filter.matches.len() > truthdb_api::FILTER_MATCHES_MAX {
        let most = truthdb_api::FILTER_MATCHES_MAX;
        return Err(limit("filter_matches_max", most, filter.matches.len()));
    }
    let mut matches = Vec::with_capacity(filter.matches.len());
    for one in &filter.matches {
        if one.types.is_empty() && one.tags.is_empty() {
            return Err(ApiError::invalid_argument("a match needs a type or a tag"));
        }
        matches.push(EventMatch {
            types: names("types", &one.types)?,
            tags: names("tags", &one.tags)?,
        });
    }
    Ok(Filter { streams, matches })
}

fn limit(name: &str, most: usize, actual: usize) -> ApiError {
    let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    ApiError::limit_exceeded(name, number(most), number(actual))
}
