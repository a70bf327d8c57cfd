//! The service `truthdb.v1.Log`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use truthdb_api::native::{
    Direction, Filter, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN, Position, Read, ReadScope, ReadStart,
    StreamFilter,
};
use truthdb_api::{ApiError, ErrorCode, v1};
use truthdb_engine::{CursorUpdate, EncodedEvents, Engine, StreamReadRequest};

use super::{Answers, Sender, answers, standing, within};
use crate::server::Shared;
use crate::server::append::{append, encode_request};
use crate::server::convert;
use crate::server::errors::read_error;
use crate::server::scan::{HEARTBEAT_DEFAULT, Scan, SubscribeFrom, Subscription, SubscriptionItem};

/// Bytes of one message of a read or subscription, about.
const MESSAGE_BYTES: usize = 256 << 10;
/// Unanswered appends of one AppendStream.
const STREAM_APPENDS_MAX: usize = 1024;
/// Items of a page when the client names no number, and at most.
const PAGE_ITEMS_DEFAULT: u32 = 100;
const PAGE_ITEMS_MAX: u32 = 1000;
/// Events that one page of a list of streams looks at, at most.
const LIST_EVENTS_MAX: u64 = 100_000;

pub(super) struct LogService {
    shared: Arc<Shared>,
}

impl LogService {
    pub(super) fn new(shared: Arc<Shared>) -> LogService {
        LogService { shared }
    }
}

fn scan_of(shared: &Shared, request: v1::ReadRequest) -> Result<Scan, ApiError> {
    let direction = match request.direction() {
        v1::Direction::Unspecified | v1::Direction::Forward => Direction::Forward,
        v1::Direction::Backward => Direction::Backward,
    };
    let filter = convert::filter(request.filter)?;
    let (scope, partition, start) = match request.scope {
        None => return Err(ApiError::invalid_argument("`scope` is missing")),
        Some(v1::read_request::Scope::Partition(scope)) => {
            let start = match scope.start {
                None => ReadStart::Edge,
                Some(v1::partition_scope::Start::Sequence(at)) => ReadStart::Sequence(at),
                Some(v1::partition_scope::Start::TimestampNs(at)) => ReadStart::Timestamp(at),
            };
            (ReadScope::Partition, scope.partition, start)
        }
        Some(v1::read_request::Scope::Stream(scope)) => {
            let home = stream_partition(shared, &scope.stream, scope.partition)?;
            let start = scope.revision.map_or(ReadStart::Edge, ReadStart::Revision);
            (
                ReadScope::Stream(convert::text("stream", &scope.stream)?),
                home,
                start,
            )
        }
    };
    shared.check_partition(partition)?;
    Scan::new(Read {
        scope,
        partition,
        direction,
        start,
        max_events: request.max_events,
        until_sequence: request.until_sequence,
        credit_bytes: 0,
        page_bytes: 0,
        filter,
    })
}

/// The partition of a stream: given for one of the system, else that of its name.
pub(in crate::server) fn stream_partition(
    shared: &Shared,
    stream: &str,
    given: Option<u32>,
) -> Result<u32, ApiError> {
    if stream.is_empty() {
        return Err(ApiError::invalid_argument("`stream` is missing"));
    }
    if truthdb_event::is_system_stream(stream) {
        let partition = given.ok_or_else(|| {
            ApiError::invalid_argument("a stream of the system needs its partition")
        })?;
        shared.check_partition(partition)?;
        return Ok(partition);
    }
    let own = shared.engine.partition_of(stream);
    match given {
        Some(given) if given != own => {
            let message = format!("stream {stream} belongs to partition {own}, not {given}");
            Err(ApiError::new(ErrorCode::WrongPartition, message)
                .with_stream(stream)
                .with_partition(own))
        }
        _ => Ok(own),
    }
}

fn position(position: Position) -> v1::Position {
    v1::Position {
        position: position.position,
        head_sequence: position.head_sequence,
    }
}

#[tonic::async_trait]
impl v1::log_server::Log for LogService {
    type AppendStreamStream = Answers<v1::AppendReply>;
    type ReadStream = Answers<v1::ReadResponse>;
    type SubscribeStream = Answers<v1::SubscribeResponse>;

    async fn get_database(
        &self,
        _request: Request<v1::GetDatabaseRequest>,
    ) -> Result<Response<v1::GetDatabaseResponse>, Status> {
        Ok(Response::new(database(&self.shared)))
    }

    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let call = append_one(&self.shared, request.get_ref());
        within(&request, call).await.map(Response::new)
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let shared = Arc::clone(&self.shared);
        let standing = standing(&request);
        let mut requests = request.into_inner();
        let work = |sender: Sender<v1::AppendReply>| async move {
            let sender = Arc::new(sender);
            let slots = Arc::new(Semaphore::new(STREAM_APPENDS_MAX));
            while let Some(request) = requests.next().await {
                let request = request.map_err(|status| ApiError::from_status(&status))?;
                let slot = Arc::clone(&slots)
                    .acquire_owned()
                    .await
                    .expect("never closed");
                // The first step hands the batch to the engine: in the order of the requests.
                let (shared, sender) = (Arc::clone(&shared), Arc::clone(&sender));
                let mut call = Box::pin(async move {
                    let result = match append_one(&shared, &request).await {
                        Ok(done) => v1::append_reply::Result::Appended(done),
                        Err(error) => v1::append_reply::Result::Error((&error).into()),
                    };
                    let request_id = request.request_id;
                    drop(slot);
                    sender
                        .send(v1::AppendReply {
                            request_id,
                            result: Some(result),
                        })
                        .await
                });
                if futures::poll!(&mut call).is_pending() {
                    // An error means that the client is gone, which the next request will show.
                    tokio::spawn(async move { drop(call.await) });
                }
            }
            let all = u32::try_from(STREAM_APPENDS_MAX).expect("a small constant");
            let _all = slots.acquire_many(all).await.expect("never closed");
            Ok(())
        };
        Ok(Response::new(answers(&self.shared, standing, work)))
    }

    async fn read(
        &self,
        request: Request<v1::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let standing = standing(&request);
        let request = request.into_inner();
        let backward = request.direction() == v1::Direction::Backward;
        let mut scan = scan_of(&self.shared, request)?;
        let shared = Arc::clone(&self.shared);
        // The first page decides whether the call fails as such.
        let (next, mut page) = scan.next(&shared, MESSAGE_BYTES).await?;
        scan = next;
        let work = |sender: Sender<v1::ReadResponse>| async move {
            loop {
                let events = convert::events(scan.partition(), &page, backward);
                let done = scan.is_done();
                if !events.is_empty() || done {
                    let position = page.position;
                    sender
                        .send(v1::ReadResponse {
                            events,
                            position: position.position,
                            head_sequence: position.head_sequence,
                        })
                        .await?;
                }
                if done {
                    return Ok(());
                }
                (scan, page) = scan.next(&shared, MESSAGE_BYTES).await?;
            }
        };
        Ok(Response::new(answers(&self.shared, standing, work)))
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        use v1::subscribe_response::Message;
        let standing = standing(&request);
        let mut subscription = subscription_of(&self.shared, request.into_inner()).await?;
        let partition = subscription.partition();
        let work = |sender: Sender<v1::SubscribeResponse>| async move {
            loop {
                let message = match subscription.next(MESSAGE_BYTES).await? {
                    SubscriptionItem::Events(page) => Message::Events(v1::EventBatch {
                        events: convert::events(partition, &page, false),
                        position: page.position.position,
                    }),
                    SubscriptionItem::CaughtUp(at) => Message::CaughtUp(position(at)),
                    SubscriptionItem::Heartbeat(at) => Message::Heartbeat(position(at)),
                };
                sender
                    .send(v1::SubscribeResponse {
                        message: Some(message),
                    })
                    .await?;
            }
        };
        Ok(Response::new(answers(&self.shared, standing, work)))
    }

    async fn get_stream_head(
        &self,
        request: Request<v1::GetStreamHeadRequest>,
    ) -> Result<Response<v1::GetStreamHeadResponse>, Status> {
        let body = request.get_ref();
        let call = stream_head(&self.shared, &body.stream, body.partition);
        within(&request, call).await.map(Response::new)
    }

    async fn cursor_get(
        &self,
        request: Request<v1::CursorGetRequest>,
    ) -> Result<Response<v1::Cursor>, Status> {
        let body = request.get_ref();
        let call = cursor_get(&self.shared, body.partition, &body.name);
        within(&request, call).await.map(Response::new)
    }

    async fn cursor_commit(
        &self,
        request: Request<v1::CursorCommitRequest>,
    ) -> Result<Response<v1::Cursor>, Status> {
        let body = request.get_ref();
        let call = async {
            let cursor = body
                .cursor
                .as_ref()
                .ok_or_else(|| ApiError::invalid_argument("`cursor` is missing"))?;
            cursor_commit(&self.shared, body.partition, &cursor.name, cursor.position).await
        };
        within(&request, call).await.map(Response::new)
    }

    async fn cursor_list(
        &self,
        request: Request<v1::CursorListRequest>,
    ) -> Result<Response<v1::CursorListResponse>, Status> {
        let call = cursor_list(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn list_streams(
        &self,
        request: Request<v1::ListStreamsRequest>,
    ) -> Result<Response<v1::ListStreamsResponse>, Status> {
        let call = list_streams(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }
}

/// The database's facts.
pub(in crate::server) fn database(shared: &Shared) -> v1::GetDatabaseResponse {
    let durability = shared.engine.config().durability;
    v1::GetDatabaseResponse {
        database_id: shared.engine.database_id().to_vec().into(),
        partition_count: shared.engine.partition_count(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        roles: shared
            .config
            .roles
            .iter()
            .map(|role| role.name().to_owned())
            .collect(),
        limits: Some(convert::limits()),
        durability: convert::durability(durability).into(),
        loss_window_ms: convert::loss_window_ms(durability),
    }
}

async fn append_one(
    shared: &Arc<Shared>,
    request: &v1::AppendRequest,
) -> Result<v1::AppendResponse, ApiError> {
    let _bytes = shared.reserve_bytes(prost::Message::encoded_len(request))?;
    let begun_ns = shared.clock.monotonic_ns();
    let events = encode_request(request)?;
    if request.partition.is_none() && request.events.is_empty() {
        return Err(ApiError::invalid_argument(
            "without events `partition` is needed",
        ));
    }
    let done = append(shared, request.partition, events).await?;
    let taken_ns = shared.clock.monotonic_ns().saturating_sub(begun_ns);
    shared.metrics.append.record(Duration::from_nanos(taken_ns));
    let durability = convert::durability(shared.engine.config().durability);
    Ok(convert::append_response(done, durability))
}

async fn subscription_of(
    shared: &Arc<Shared>,
    request: v1::SubscribeRequest,
) -> Result<Subscription, ApiError> {
    use v1::subscribe_request::Start;
    let from = match request.start {
        None => SubscribeFrom::First,
        Some(Start::Sequence(sequence)) => SubscribeFrom::Sequence(sequence),
        Some(Start::TimestampNs(time)) => SubscribeFrom::Time(time),
        Some(Start::Head(v1::Empty {})) => SubscribeFrom::Head,
        Some(Start::Cursor(name)) => SubscribeFrom::Cursor(name),
    };
    let heartbeat = match request.heartbeat_ms {
        0 => HEARTBEAT_DEFAULT,
        ms if (u32::from(HEARTBEAT_MS_MIN)..=u32::from(HEARTBEAT_MS_MAX)).contains(&ms) => {
            Duration::from_millis(ms.into())
        }
        ms => {
            let reason = format!("heartbeat_ms is {ms}: 0 or 100 to 60000 are accepted");
            return Err(ApiError::invalid_argument(reason));
        }
    };
    let filter = convert::filter(request.filter)?;
    Subscription::open(shared, request.partition, from, filter, heartbeat).await
}

/// The end of a stream.
pub(in crate::server) async fn stream_head(
    shared: &Arc<Shared>,
    stream: &str,
    partition: Option<u32>,
) -> Result<v1::GetStreamHeadResponse, ApiError> {
    let home = stream_partition(shared, stream, partition)?;
    let system = truthdb_event::is_system_stream(stream);
    let (engine, name) = (shared.engine.clone(), stream.to_owned());
    let read = move || engine.stream_head(&name, system.then_some(home));
    let head = shared
        .readers
        .run(read)
        .await?
        .map_err(|error| read_error(&error))?;
    Ok(v1::GetStreamHeadResponse {
        partition: home,
        exists: head.is_some(),
        last_revision: head.map_or(0, |head| head.last_revision),
        last_sequence: head.map_or(0, |head| head.last_sequence),
    })
}

fn cursor(partition: u32, name: String, cursor: &truthdb_engine::Cursor) -> v1::Cursor {
    v1::Cursor {
        partition,
        name,
        position: cursor.position,
        sequence: cursor.sequence,
        timestamp_ns: cursor.timestamp_ns,
    }
}

/// A cursor that was committed.
pub(in crate::server) async fn cursor_get(
    shared: &Arc<Shared>,
    partition: u32,
    name: &str,
) -> Result<v1::Cursor, ApiError> {
    shared.check_partition(partition)?;
    let (engine, asked) = (shared.engine.clone(), name.to_owned());
    let read = move || engine.cursor(partition, &asked);
    let found = shared
        .readers
        .run(read)
        .await?
        .map_err(|error| read_error(&error))?;
    let found = found.ok_or_else(|| {
        let message = format!("partition {partition} has no cursor {name}");
        ApiError::new(ErrorCode::NotFound, message).with_partition(partition)
    })?;
    Ok(cursor(partition, name.to_owned(), &found))
}

/// Commits a cursor; the position that is committed already writes nothing.
pub(in crate::server) async fn cursor_commit(
    shared: &Arc<Shared>,
    partition: u32,
    name: &str,
    position: u64,
) -> Result<v1::Cursor, ApiError> {
    match cursor_get(shared, partition, name).await {
        Ok(now) if now.position == position => return Ok(now),
        Ok(_) => {}
        Err(error) if error.code == ErrorCode::NotFound && partition_exists(shared, partition) => {}
        Err(error) => return Err(error),
    }
    let update = CursorUpdate {
        name: name.to_owned(),
        position,
    };
    let events = EncodedEvents {
        cursor: Some(update),
        ..EncodedEvents::default()
    };
    let done = append(shared, Some(partition), events).await?;
    Ok(v1::Cursor {
        partition,
        name: name.to_owned(),
        position,
        sequence: done.appended.first_sequence,
        timestamp_ns: done.appended.timestamp_ns,
    })
}

fn partition_exists(shared: &Shared, partition: u32) -> bool {
    shared.check_partition(partition).is_ok()
}

fn page_size(asked: u32) -> Result<usize, ApiError> {
    let size = match asked {
        0 => PAGE_ITEMS_DEFAULT,
        asked if asked <= PAGE_ITEMS_MAX => asked,
        asked => {
            let (most, asked) = (u64::from(PAGE_ITEMS_MAX), u64::from(asked));
            return Err(ApiError::limit_exceeded("page_size", most, asked));
        }
    };
    Ok(usize::try_from(size).expect("a small number"))
}

/// The cursors of a partition, by name.
pub(in crate::server) async fn cursor_list(
    shared: &Arc<Shared>,
    request: v1::CursorListRequest,
) -> Result<v1::CursorListResponse, ApiError> {
    let partition = request.partition;
    shared.check_partition(partition)?;
    let size = page_size(request.page_size)?;
    let engine = shared.engine.clone();
    let read = move || engine.cursors(partition);
    let mut cursors = shared
        .readers
        .run(read)
        .await?
        .map_err(|error| read_error(&error))?;
    cursors.retain(|(name, _)| {
        // The token is the last name of the page before.
        name.starts_with(&request.prefix) && name.as_bytes() > &request.page_token[..]
    });
    cursors.sort_by(|(left, _), (right, _)| left.cmp(right));
    let more = cursors.len() > size;
    cursors.truncate(size);
    let next_page_token = match cursors.last() {
        Some((name, _)) if more => name.clone().into_bytes().into(),
        _ => bytes::Bytes::new(),
    };
    let cursors = cursors
        .into_iter()
        .map(|(name, found)| cursor(partition, name, &found))
        .collect();
    Ok(v1::CursorListResponse {
        cursors,
        next_page_token,
    })
}

/// The streams of a partition, in the order of their first event that is there.
pub(in crate::server) async fn list_streams(
    shared: &Arc<Shared>,
    request: v1::ListStreamsRequest,
) -> Result<v1::ListStreamsResponse, ApiError> {
    shared.check_partition(request.partition)?;
    let size = page_size(request.page_size)?;
    let from = match &request.page_token[..] {
        [] => 0,
        token => {
            let token = token.try_into().map_err(|_| {
                ApiError::invalid_argument("`page_token` is not from an answer to this request")
            })?;
            u64::from_le_bytes(token)
        }
    };
    let prefix = convert::text("prefix", &request.prefix)?;
    let streams = if prefix.as_str().is_empty() {
        StreamFilter::All
    } else {
        StreamFilter::Prefix(prefix)
    };
    let start = if from == 0 {
        ReadStart::Edge
    } else {
        ReadStart::Sequence(from)
    };
    let scan = Scan::new(Read {
        scope: ReadScope::Partition,
        partition: request.partition,
        direction: Direction::Forward,
        start,
        max_events: LIST_EVENTS_MAX,
        until_sequence: 0,
        credit_bytes: 0,
        page_bytes: 0,
        filter: Filter {
            streams,
            matches: Vec::new(),
        },
    })?;
    let engine = shared.engine.clone();
    shared
        .readers
        .run(move || streams_page(&engine, scan, size))
        .await?
}

fn streams_page(
    engine: &Engine,
    mut scan: Scan,
    size: usize,
) -> Result<v1::ListStreamsResponse, ApiError> {
    let partition = scan.partition();
    let mut streams = Vec::new();
    let mut seen = HashSet::new();
    loop {
        let page = scan.page(engine, 1 << 20)?;
        for stored in page.batches.iter().flat_map(|batch| batch.events()) {
            let event = stored.event();
            let name = event.stream();
            if seen.contains(name) || !is_first(engine, partition, name, stored.revision)? {
                continue;
            }
            seen.insert(name.to_owned());
            let system = truthdb_event::is_system_stream(name);
            let head = engine
                .stream_head(name, system.then_some(partition))
                .map_err(|error| read_error(&error))?;
            let Some(head) = head else { continue };
            streams.push(v1::StreamInfo {
                stream: name.to_owned(),
                last_revision: head.last_revision,
                last_sequence: head.last_sequence,
            });
            if streams.len() == size {
                let next = stored.sequence + 1;
                let next_page_token = next.to_le_bytes().to_vec().into();
                return Ok(v1::ListStreamsResponse {
                    streams,
                    next_page_token,
                });
            }
        }
        if scan.is_done() {
            let at = page.position;
            let whole = at.position >= at.head_sequence;
            let next = if whole {
                Vec::new()
            } else {
                (at.position + 1).to_le_bytes().to_vec()
            };
            return Ok(v1::ListStreamsResponse {
                streams,
                next_page_token: next.into(),
            });
        }
    }
}

/// Whether an event is the first of its stream that trims have left.
fn is_first(
    engine: &Engine,
    partition: u32,
    stream: &str,
    revision: u64,
) -> Result<bool, ApiError> {
    if revision == 0 || engine.first_sequence(partition) <= 1 {
        return Ok(revision == 0);
    }
    let system = truthdb_event::is_system_stream(stream);
    let page = engine
        .read_stream(&StreamReadRequest {
            stream: stream.to_owned(),
            partition: system.then_some(partition),
            from: truthdb_engine::RevisionFrom::Start,
            direction: truthdb_engine::Direction::Forward,
            events_max: 1,
            bytes_max: 1,
        })
        .map_err(|error| read_error(&error))?;
    Ok(page.first_revision == revision)
}
