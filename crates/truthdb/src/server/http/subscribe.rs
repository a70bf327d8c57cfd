//! Subscriptions as server-sent events.
//!
//! Each event's id is its sequence, and a heartbeat's is the position, so that a browser that
//! reconnects with `Last-Event-ID` goes on exactly where it was.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Extension, RawQuery, State};
use axum::response::Sse;
use axum::response::sse::Event;
use futures::{Stream, StreamExt as _};
use http::HeaderMap;
use serde_json::json;
use truthdb_api::native::Position;
use truthdb_api::{ApiError, ErrorCode};

use super::events::filter;
use super::json::{EventJson, time_of};
use super::{HttpError, Query, path_number};
use crate::server::Shared;
use crate::server::access::Standing;
use crate::server::grpc::answers;
use crate::server::scan::{HEARTBEAT_DEFAULT, SubscribeFrom, Subscription, SubscriptionItem};

/// Bytes of events that are read at once.
const PAGE_BYTES: usize = 256 << 10;

pub(super) async fn subscribe(
    State(shared): State<Arc<Shared>>,
    Extension(standing): Extension<Standing>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, HttpError> {
    let known = [
        "partition",
        "from",
        "from_time",
        "cursor",
        "type",
        "tag",
        "stream_prefix",
        "include_system",
    ];
    let query = Query::parse(query.as_deref(), &known)?;
    let partition = match query.one("partition") {
        Some(text) => path_number("partition", text)?,
        None if shared.engine.partition_count() == 1 => 0,
        None => return Err(ApiError::invalid_argument("`partition` is missing").into()),
    };
    let from = start(&query, &headers)?;
    let filter = filter(&query)?;
    let mut subscription =
        Subscription::open(&shared, partition, from, filter, HEARTBEAT_DEFAULT).await?;
    let stream = answers(&shared, standing, |sender| async move {
        loop {
            match subscription.next(PAGE_BYTES).await? {
                SubscriptionItem::Events(page) => {
                    let stored = page.batches.iter().flat_map(|batch| batch.events());
                    let events: Vec<Event> = stored
                        .map(|stored| {
                            sse(
                                "event",
                                stored.sequence,
                                &EventJson::new(partition, &stored),
                            )
                        })
                        .collect::<Result<_, _>>()?;
                    sender.send(events).await?;
                }
                SubscriptionItem::CaughtUp(at) => {
                    sender.send(vec![position("caught_up", at)?]).await?;
                }
                SubscriptionItem::Heartbeat(at) => {
                    sender.send(vec![position("heartbeat", at)?]).await?;
                }
            }
        }
    });
    let events = stream.flat_map(|answer| {
        futures::stream::iter(answer.unwrap_or_else(|status| {
            let error = ApiError::from_status(&status);
            // An error is JSON; a stream that ends without one would be worse.
            Event::default()
                .event("error")
                .json_data(error)
                .into_iter()
                .collect()
        }))
    });
    Ok(Sse::new(events.map(Ok)))
}

fn start(query: &Query, headers: &HeaderMap) -> Result<SubscribeFrom, ApiError> {
    if let Some(last) = headers.get("last-event-id") {
        let last = last.to_str().ok().and_then(|text| text.parse::<u64>().ok());
        let last = last.ok_or_else(|| {
            ApiError::invalid_argument("Last-Event-ID is not the id of an event of this stream")
        })?;
        return Ok(SubscribeFrom::Sequence(last.saturating_add(1)));
    }
    match (
        query.one("from"),
        query.one("from_time"),
        query.one("cursor"),
    ) {
        (None, None, None) => Ok(SubscribeFrom::First),
        (Some("head"), None, None) => Ok(SubscribeFrom::Head),
        (Some(text), None, None) => Ok(SubscribeFrom::Sequence(path_number("from", text)?)),
        (None, Some(time), None) => Ok(SubscribeFrom::Time(time_of("from_time", time)?)),
        (None, None, Some(name)) => Ok(SubscribeFrom::Cursor(name.to_owned())),
        _ => Err(ApiError::invalid_argument(
            "from, from_time and cursor exclude each other",
        )),
    }
}

fn position(name: &'static str, at: Position) -> Result<Event, ApiError> {
    let data = json!({"position": at.position, "head_sequence": at.head_sequence});
    sse(name, at.position, &data)
}

fn sse(name: &'static str, id: u64, data: &impl serde::Serialize) -> Result<Event, ApiError> {
    Event::default()
        .event(name)
        .id(id.to_string())
        .json_data(data)
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))
}
