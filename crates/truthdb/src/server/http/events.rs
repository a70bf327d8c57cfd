//! Appending, reading, cursors and lists over HTTP/JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use http::HeaderMap;
use serde_json::{Value, json};
use truthdb_api::native::{Direction, Read, ReadScope, ReadStart};
use truthdb_api::{ApiError, v1};
use truthdb_engine::{AppendCondition, ConditionItem, CursorUpdate, EncodedEvents};

use super::json::{AppendBody, EventJson, PositionBody, time_of};
use super::{HttpError, Query, json_body, path_number};
use crate::server::append::append as append_events;
use crate::server::scan::Scan;
use crate::server::{Shared, convert, grpc};

/// Events of one answer when the client names no number, and at most.
const LIMIT_DEFAULT: u64 = 100;
const LIMIT_MAX: u64 = 10_000;
/// Bytes of events in one answer, about.
const ANSWER_BYTES: usize = 4 << 20;

type Answer = Result<Json<Value>, HttpError>;

fn encode(body: &AppendBody<'_>) -> Result<EncodedEvents, ApiError> {
    let mut bytes = Vec::new();
    for (index, event) in body.events.iter().enumerate() {
        event.encode(index, &mut bytes)?;
    }
    let expected = body
        .expectations
        .iter()
        .map(|one| Ok((one.stream.clone(), one.expected()?)))
        .collect::<Result<_, ApiError>>()?;
    let condition = body.condition.as_ref().map(|condition| AppendCondition {
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
    let cursor = body.cursor.as_ref();
    let cursor = cursor.map(|cursor| CursorUpdate {
        name: cursor.name.clone(),
        position: cursor.position,
    });
    Ok(EncodedEvents {
        bytes: bytes.into(),
        checksums: None,
        expected,
        condition,
        cursor,
    })
}

pub(super) async fn append(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let begun_ns = shared.clock.monotonic_ns();
    let (raw, _bytes): (Box<serde_json::value::RawValue>, _) =
        json_body(&shared, &headers, body).await?;
    let (partition, events) = {
        let body: AppendBody<'_> = serde_json::from_str(raw.get()).map_err(|error| {
            ApiError::invalid_argument(format!("the body is not acceptable: {error}"))
        })?;
        if body.partition.is_none() && body.events.is_empty() {
            let reason = "without events `partition` is needed";
            return Err(ApiError::invalid_argument(reason).into());
        }
        (body.partition, encode(&body)?)
    };
    let done = append_events(&shared, partition, events).await?;
    let taken_ns = shared.clock.monotonic_ns().saturating_sub(begun_ns);
    shared.metrics.append.record(Duration::from_nanos(taken_ns));
    let appended = done.appended;
    let streams: Vec<Value> = done
        .streams
        .iter()
        .map(|(stream, revision)| json!({"stream": stream, "last_revision": revision}))
        .collect();
    Ok(Json(json!({
        "partition": appended.partition,
        "first_sequence": appended.first_sequence,
        "last_sequence": appended.last_sequence,
        "timestamp_ns": appended.timestamp_ns,
        "streams": streams,
        "already_appended": appended.duplicate,
        "durability": shared.engine.config().durability.name(),
    })))
}

fn direction(query: &Query) -> Result<Direction, ApiError> {
    match query.one("direction") {
        None | Some("forward") => Ok(Direction::Forward),
        Some("backward") => Ok(Direction::Backward),
        Some(text) => {
            let message = format!("direction={text:?} is neither forward nor backward");
            Err(ApiError::invalid_argument(message))
        }
    }
}

fn limit(query: &Query) -> Result<u64, ApiError> {
    match query.number("limit")?.unwrap_or(LIMIT_DEFAULT) {
        0 => Err(ApiError::invalid_argument("limit=0: at least 1")),
        limit if limit <= LIMIT_MAX => Ok(limit),
        limit => Err(ApiError::limit_exceeded("limit", LIMIT_MAX, limit)),
    }
}

/// The filter of a query.
pub(super) fn filter(query: &Query) -> Result<truthdb_api::native::Filter, ApiError> {
    let (types, tags) = (query.all("type"), query.all("tag"));
    let matches = if types.is_empty() && tags.is_empty() {
        Vec::new()
    } else {
        vec![v1::EventMatch { types, tags }]
    };
    let prefix = query.one("stream_prefix").map(str::to_owned);
    convert::filter(Some(v1::EventFilter {
        streams: prefix.map(v1::event_filter::Streams::StreamPrefix),
        matches,
        include_system: query.boolean("include_system")?,
    }))
}

/// What a read gathered for one answer.
struct Gathered {
    events: Vec<EventJson>,
    scan: Scan,
    head_sequence: u64,
}

async fn gather(
    shared: &Arc<Shared>,
    mut scan: Scan,
    backward: bool,
) -> Result<Gathered, ApiError> {
    let mut events = Vec::new();
    let mut bytes = 0;
    loop {
        let (next, page) = scan.next(shared, ANSWER_BYTES - bytes).await?;
        scan = next;
        for batch in &page.batches {
            bytes += batch.body.len();
            let from = events.len();
            let partition = scan.partition();
            events.extend(
                batch
                    .events()
                    .map(|stored| EventJson::new(partition, &stored)),
            );
            if backward {
                events[from..].reverse();
            }
        }
        if scan.is_done() || bytes >= ANSWER_BYTES {
            let head_sequence = page.position.head_sequence;
            return Ok(Gathered {
                events,
                scan,
                head_sequence,
            });
        }
    }
}

pub(super) async fn read_partition(
    State(shared): State<Arc<Shared>>,
    Path(partition): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let known = [
        "from",
        "from_time",
        "direction",
        "limit",
        "until",
        "type",
        "tag",
        "stream_prefix",
        "include_system",
    ];
    let query = Query::parse(query.as_deref(), &known)?;
    let partition = path_number("partition", &partition)?;
    shared.check_partition(partition)?;
    let start = match (query.number("from")?, query.one("from_time")) {
        (None, None) => ReadStart::Edge,
        (Some(sequence), None) => ReadStart::Sequence(sequence),
        (None, Some(time)) => ReadStart::Timestamp(time_of("from_time", time)?),
        _ => {
            return Err(ApiError::invalid_argument("from and from_time exclude each other").into());
        }
    };
    let direction = direction(&query)?;
    let backward = direction == Direction::Backward;
    let scan = Scan::new(Read {
        scope: ReadScope::Partition,
        partition,
        direction,
        start,
        max_events: limit(&query)?,
        until_sequence: query.number("until")?.unwrap_or(0),
        credit_bytes: 0,
        page_bytes: 0,
        filter: filter(&query)?,
    })?;
    let Gathered {
        events,
        scan,
        head_sequence,
    } = gather(&shared, scan, backward).await?;
    let position = scan.position();
    let next = if backward {
        position.checked_sub(1).filter(|next| *next > 0)
    } else {
        Some(position + 1)
    };
    Ok(Json(json!({
        "events": events,
        "next": next,
        "position": position,
        "head_sequence": head_sequence,
    })))
}

pub(super) async fn read_stream(
    State(shared): State<Arc<Shared>>,
    Path(stream): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let known = ["from", "direction", "limit", "partition"];
    let query = Query::parse(query.as_deref(), &known)?;
    let given = query
        .number("partition")?
        .map(|n| path_number("partition", &n.to_string()));
    let partition = grpc::stream_partition(&shared, &stream, given.transpose()?)?;
    let direction = direction(&query)?;
    let backward = direction == Direction::Backward;
    let scan = Scan::new(Read {
        scope: ReadScope::Stream(convert::text("stream", &stream)?),
        partition,
        direction,
        start: query
            .number("from")?
            .map_or(ReadStart::Edge, ReadStart::Revision),
        max_events: limit(&query)?,
        until_sequence: 0,
        credit_bytes: 0,
        page_bytes: 0,
        filter: truthdb_api::native::Filter::default(),
    })?;
    let Gathered { events, scan, .. } = gather(&shared, scan, backward).await?;
    Ok(Json(json!({
        "partition": partition,
        "events": events,
        "next": scan.next_revision(),
    })))
}

pub(super) async fn stream_head(
    State(shared): State<Arc<Shared>>,
    Path(stream): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = Query::parse(query.as_deref(), &["partition"])?;
    let given = query
        .number("partition")?
        .map(|n| path_number("partition", &n.to_string()));
    let head = grpc::stream_head(&shared, &stream, given.transpose()?).await?;
    let when = |value: u64| head.exists.then_some(value);
    Ok(Json(json!({
        "partition": head.partition,
        "exists": head.exists,
        "last_revision": when(head.last_revision),
        "last_sequence": when(head.last_sequence),
    })))
}

fn cursor_json(cursor: &v1::Cursor) -> Value {
    json!({
        "partition": cursor.partition,
        "name": cursor.name,
        "position": cursor.position,
        "sequence": cursor.sequence,
        "timestamp_ns": cursor.timestamp_ns,
    })
}

pub(super) async fn get_cursor(
    State(shared): State<Arc<Shared>>,
    Path((partition, name)): Path<(String, String)>,
) -> Answer {
    let partition = path_number("partition", &partition)?;
    let cursor = grpc::cursor_get(&shared, partition, &name).await?;
    Ok(Json(cursor_json(&cursor)))
}

pub(super) async fn commit_cursor(
    State(shared): State<Arc<Shared>>,
    Path((partition, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let partition = path_number("partition", &partition)?;
    let (body, _bytes): (PositionBody, _) = json_body(&shared, &headers, body).await?;
    let cursor = grpc::cursor_commit(&shared, partition, &name, body.position).await?;
    Ok(Json(cursor_json(&cursor)))
}

/// The parameters of a list: prefix, page size and page token.
fn list(query: Option<&str>) -> Result<(String, u32, bytes::Bytes), ApiError> {
    use base64::Engine as _;
    let query = Query::parse(query, &["prefix", "limit", "page_token"])?;
    let size = u32::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(u32::MAX);
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(query.one("page_token").unwrap_or_default())
        .map_err(|_| ApiError::invalid_argument("page_token is not from an answer"))?;
    Ok((
        query.one("prefix").unwrap_or_default().to_owned(),
        size,
        token.into(),
    ))
}

fn page_token(token: &[u8]) -> Option<String> {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    (!token.is_empty()).then(|| engine.encode(token))
}

pub(super) async fn list_cursors(
    State(shared): State<Arc<Shared>>,
    Path(partition): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let partition = path_number("partition", &partition)?;
    let (prefix, page_size, token) = list(query.as_deref())?;
    let request = v1::CursorListRequest {
        partition,
        prefix,
        page_size,
        page_token: token,
    };
    let page = grpc::cursor_list(&shared, request).await?;
    let cursors: Vec<Value> = page.cursors.iter().map(cursor_json).collect();
    let next = page_token(&page.next_page_token);
    Ok(Json(json!({"cursors": cursors, "next_page_token": next})))
}

pub(super) async fn list_streams(
    State(shared): State<Arc<Shared>>,
    Path(partition): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let partition = path_number("partition", &partition)?;
    let (prefix, page_size, token) = list(query.as_deref())?;
    let request = v1::ListStreamsRequest {
        partition,
        prefix,
        page_size,
        page_token: token,
    };
    let page = grpc::list_streams(&shared, request).await?;
    let streams: Vec<Value> = page
        .streams
        .iter()
        .map(|stream| {
            json!({
                "stream": stream.stream,
                "last_revision": stream.last_revision,
                "last_sequence": stream.last_sequence,
            })
        })
        .collect();
    let next = page_token(&page.next_page_token);
    Ok(Json(json!({"streams": streams, "next_page_token": next})))
}
