//! The native protocol's side of the server.
//!
//! A connection is one task that reads and one that writes, with an [`Outbox`] between them and the
//! engine. Appends go to the engine as their frames are read, and are answered by the engine's
//! thread putting the result into the outbox, which wakes the writing task at most once for all that
//! has gathered; the answer to a lone append it writes to an idle plain socket itself. Reads and
//! subscriptions are tasks of their own that send what their credit allows.

mod outbox;
mod requests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use truthdb_api::native::{
    self, AppendEntry, AppendFrame, ClientFrame, ExpectedRevision, Hello, Text, Welcome,
    frame_bytes_wanted, split_frame,
};
use truthdb_api::{ApiError, ErrorCode};
use truthdb_engine::{AppendCondition, AppendSink, ConditionItem, CursorUpdate, EncodedEvents};

use super::Shared;
use super::access::{Operation, native_operation};
use super::config::Role;
use super::convert::loss_window_ms;
use super::errors::append_error;
use super::listen::{Serve, TimedStream};
use super::metrics::Metrics;
use super::tokens::Principal;

use outbox::{Outbox, Streams, Tag};
use requests::{Credit, Request};

/// Bytes of unanswered appends of a connection, above which nothing is read from it.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
/// The buffer of a connection on which nothing happens.
const BUFFER_BYTES_MIN: usize = 4 << 10;
/// The buffer of a busy connection.
const BUFFER_BYTES_MAX: usize = 256 << 10;
/// Frames above this size reserve their bytes before they are read.
const FRAME_BYTES_FREE: usize = 64 << 10;
/// Reads and subscriptions of one connection at once.
const REQUESTS_MAX: usize = 1024;

/// Serves the native port.
pub(crate) struct NativeService {
    shared: Arc<Shared>,
    operations: Operations,
}

/// The table's entries of the frames, looked up once.
struct Operations {
    append: &'static Operation,
    read: &'static Operation,
    subscribe: &'static Operation,
    stream_head: &'static Operation,
    cursor_get: &'static Operation,
}

impl NativeService {
    /// A service for these connections.
    pub(crate) fn new(shared: Arc<Shared>) -> NativeService {
        let operations = Operations {
            append: native_operation("Append"),
            read: native_operation("Read"),
            subscribe: native_operation("Subscribe"),
            stream_head: native_operation("StreamHead"),
            cursor_get: native_operation("CursorGet"),
        };
        NativeService { shared, operations }
    }
}

impl Serve for NativeService {
    fn refusal(&self) -> Vec<u8> {
        let error = ApiError::overloaded("the limit of connections is reached", 1000);
        let mut out = BytesMut::new();
        native::encode_error(&mut out, 0, &error);
        out.to_vec()
    }

    fn gauge<'a>(&self, metrics: &'a Metrics) -> &'a AtomicI64 {
        &metrics.native_connections
    }

    async fn serve(&self, stream: TimedStream) {
        let direct = stream.plain();
        let (input, mut output) = tokio::io::split(stream);
        let mut reader = FrameReader::new(Arc::clone(&self.shared), input);
        let session = match self.greet(&mut reader, &mut output).await {
            Ok(session) => session,
            Err(Some(error)) => {
                tracing::debug!("a connection was refused: {error}");
                let mut out = BytesMut::new();
                native::encode_error(&mut out, 0, &error);
                // The client may be gone; then there is nobody to tell.
                let _ = output.write_all(&out).await;
                let _ = output.shutdown().await;
                return;
            }
            Err(None) => return,
        };
        self.converse(session, reader, output, direct).await;
    }
}

/// What is known of a connection after its greeting.
struct Session {
    token: Bytes,
    principal: Option<Arc<Principal>>,
    generation: u64,
}

/// Reads frames; counts the time and the memory that they take.
struct FrameReader {
    shared: Arc<Shared>,
    input: ReadHalf<TimedStream>,
    buffer: BytesMut,
    reserve: usize,
    /// Memory of a frame that is being read, beyond [`FRAME_BYTES_FREE`].
    reserved: Option<tokio::sync::OwnedSemaphorePermit>,
    /// When the frame must be complete that has begun.
    deadline: Option<Instant>,
}

impl FrameReader {
    fn new(shared: Arc<Shared>, input: ReadHalf<TimedStream>) -> FrameReader {
        FrameReader {
            shared,
            input,
            buffer: BytesMut::new(),
            reserve: BUFFER_BYTES_MIN,
            reserved: None,
            deadline: None,
        }
    }

    /// The next frame that is already there.
    fn buffered(&mut self) -> Result<Option<native::RawFrame>, ApiError> {
        let frame = split_frame(&mut self.buffer).map_err(|error| {
            if let native::DecodeError::FrameTooLarge {
                payload_bytes,
                limit,
            } = error
            {
                ApiError::limit_exceeded("frame_bytes_max", limit, payload_bytes)
            } else {
                ApiError::invalid_argument(error.to_string())
            }
        })?;
        if frame.is_some() {
            self.deadline = None;
        }
        Ok(frame)
    }

    /// Waits for more bytes; false at the end of the connection.
    async fn more(&mut self) -> Result<bool, ApiError> {
        let wanted = frame_bytes_wanted(&self.buffer)
            .map_err(|error| ApiError::invalid_argument(error.to_string()))?;
        if self.buffer.is_empty() {
            // An idle connection keeps no large buffer.
            self.reserved = None;
            self.deadline = None;
            if self.buffer.capacity() > self.reserve {
                self.buffer = BytesMut::new();
            }
        } else if self.deadline.is_none() {
            self.deadline = Some(Instant::now() + self.shared.config.limits.request_timeout);
        }
        if wanted > FRAME_BYTES_FREE && self.reserved.is_none() {
            self.reserved = Some(self.reserve_frame(wanted).await?);
        }
        let missing = wanted.saturating_sub(self.buffer.len());
        self.buffer.reserve(self.reserve.max(missing));
        let read = self.input.read_buf(&mut self.buffer);
        let outcome = match self.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, read)
                .await
                .map_err(|_| incomplete())?,
            None => read.await,
        };
        match outcome {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.reserve = if count >= self.reserve {
                    (self.reserve * 2).min(BUFFER_BYTES_MAX)
                } else if count < self.reserve / 4 {
                    (self.reserve / 2).max(BUFFER_BYTES_MIN)
                } else {
                    self.reserve
                };
                Ok(true)
            }
            Err(error) => {
                tracing::debug!("a connection ended: {error}");
                Ok(false)
            }
        }
    }

    /// Waits until there is memory for a frame of this size.
    async fn reserve_frame(
        &self,
        bytes: usize,
    ) -> Result<tokio::sync::OwnedSemaphorePermit, ApiError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).expect("frames are bounded");
        let permit = Arc::clone(&self.shared.inflight_kib).acquire_many_owned(kib);
        let deadline = self.deadline.unwrap_or_else(Instant::now);
        match tokio::time::timeout_at(deadline, permit).await {
            Ok(permit) => permit.map_err(|_| super::stopping_error()),
            Err(_) => Err(ApiError::overloaded(
                "too many bytes of requests are in flight",
                1000,
            )),
        }
    }
}

fn incomplete() -> ApiError {
    ApiError::new(ErrorCode::Deadline, "a frame was not complete in time")
        .with_outcome(truthdb_api::Outcome::DidNotHappen)
}

impl NativeService {
    /// Hello and Welcome. `Err(None)`: the connection ended by itself.
    async fn greet(
        &self,
        reader: &mut FrameReader,
        output: &mut WriteHalf<TimedStream>,
    ) -> Result<Session, Option<ApiError>> {
        let first = async {
            loop {
                if let Some(frame) = reader.buffered()? {
                    return Ok(Some(frame));
                }
                // A stranger's first bytes may claim any length; a Hello is short.
                if frame_bytes_wanted(&reader.buffer).is_ok_and(|n| n > FRAME_BYTES_FREE) {
                    return Err(ApiError::invalid_argument(
                        "the first frame must be a Hello",
                    ));
                }
                if !reader.more().await? {
                    return Ok(None);
                }
            }
        };
        let limit = self.shared.config.limits.handshake_timeout;
        let frame = match tokio::time::timeout(limit, first).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Err(None),
            Ok(Err(error)) => return Err(Some(error)),
            Err(_) => return Err(Some(incomplete())),
        };
        let Ok(ClientFrame::Hello(hello)) = ClientFrame::decode(frame) else {
            return Err(Some(ApiError::invalid_argument(
                "the first frame must be a Hello",
            )));
        };
        let version = hello.negotiate().ok_or_else(|| {
            ApiError::invalid_argument(format!(
                "this server speaks version {} of the native protocol, the client {} to {}",
                native::PROTOCOL_VERSION,
                hello.version_min,
                hello.version_max
            ))
        })?;
        let session = self.recognise(hello).await?;
        let mut out = BytesMut::new();
        self.welcome(version).encode(&mut out);
        output.write_all(&out).await.map_err(|_| None)?;
        Ok(session)
    }

    async fn recognise(&self, hello: Hello) -> Result<Session, ApiError> {
        let Some(tokens) = self.shared.access.tokens() else {
            return Ok(Session {
                token: Bytes::new(),
                principal: None,
                generation: 0,
            });
        };
        let generation = tokens.generation();
        let token = (!hello.token.is_empty()).then_some(&hello.token[..]);
        let principal = tokens
            .verify(token)
            .await
            .inspect_err(|_| self.count_refused())?;
        Ok(Session {
            token: hello.token,
            principal: Some(principal),
            generation,
        })
    }

    fn count_refused(&self) {
        let refused = &self.shared.metrics.access_refused;
        refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn welcome(&self, version: u16) -> Welcome {
        let engine = &self.shared.engine;
        let bit = |role, bit| {
            if self.shared.config.runs(role) {
                bit
            } else {
                0
            }
        };
        let limits = super::convert::limits();
        let durability = engine.config().durability;
        Welcome {
            version,
            roles: bit(Role::Ingest, native::ROLE_INGEST)
                | bit(Role::Compute, native::ROLE_COMPUTE)
                | bit(Role::Query, native::ROLE_QUERY)
                | bit(Role::Replay, native::ROLE_REPLAY),
            partition_count: engine.partition_count(),
            database_id: engine.database_id(),
            durability: native_durability(durability),
            loss_window_ms: u32::try_from(loss_window_ms(durability)).unwrap_or(u32::MAX),
            limits: native::Limits {
                frame_bytes_max: u32::try_from(native::FRAME_BYTES_MAX).expect("16 MiB"),
                batch_bytes_max: limits.batch_bytes_max,
                batch_events_max: limits.batch_events_max,
                event_payload_bytes_max: limits.event_payload_bytes_max,
                metadata_bytes_max: limits.metadata_bytes_max,
                in_flight_bytes_max: u32::try_from(IN_FLIGHT_BYTES_MAX).expect("16 MiB"),
            },
            server_version: Text::new(env!("CARGO_PKG_VERSION")).expect("versions are short"),
        }
    }

    async fn converse(
        &self,
        session: Session,
        reader: FrameReader,
        output: WriteHalf<TimedStream>,
        direct: Option<Arc<TcpStream>>,
    ) {
        let durability = native_durability(self.shared.engine.config().durability);
        let outbox = Outbox::new(&self.shared, IN_FLIGHT_BYTES_MAX, durability, direct);
        let outbox = Arc::new(outbox);
        let writer = outbox::write_loop(Arc::clone(&self.shared), Arc::clone(&outbox), output);
        let mut writer = std::pin::pin!(writer);
        let mut conversation = Conversation {
            shared: Arc::clone(&self.shared),
            operations: &self.operations,
            outbox: Arc::clone(&outbox),
            session,
            requests: Arc::default(),
        };
        let ended = tokio::select! {
            ended = conversation.run(reader) => ended,
            // The client is gone, or took nothing for too long.
            () = &mut writer => {
                conversation.cancel_all();
                return;
            }
        };
        conversation.cancel_all();
        if let Err(error) = ended {
            tracing::debug!("a connection is closed: {error}");
            let mut out = BytesMut::new();
            native::encode_error(&mut out, 0, &error);
            outbox.push_now(out.freeze());
        }
        // What was appended is still answered.
        outbox.close();
        writer.await;
    }
}

fn native_durability(durability: truthdb_engine::Durability) -> native::Durability {
    match durability {
        truthdb_engine::Durability::FlushEachGroup => native::Durability::FlushEachGroup,
        truthdb_engine::Durability::FlushInterval(_) => native::Durability::FlushInterval,
        truthdb_engine::Durability::Os => native::Durability::Os,
    }
}

/// Reads and subscriptions that are under way.
type Requests = Arc<Mutex<HashMap<u32, RequestHandle>>>;

struct RequestHandle {
    operation: &'static Operation,
    credit: Arc<Credit>,
    abort: tokio::task::AbortHandle,
}

/// The reading side of a connection.
struct Conversation<'a> {
    shared: Arc<Shared>,
    operations: &'a Operations,
    outbox: Arc<Outbox>,
    session: Session,
    requests: Requests,
}

impl Conversation<'_> {
    /// Reads and answers until the connection ends. An error concerns the whole connection.
    async fn run(&mut self, mut reader: FrameReader) -> Result<(), ApiError> {
        let mut stopping = self.shared.stopping();
        let mut tokens = self.shared.access.tokens().map(|tokens| tokens.changes());
        // What changed since the greeting and before the line above is not told.
        self.recognise_again().await?;
        loop {
            let outbox = Arc::clone(&self.outbox);
            let more = async {
                outbox.room().await;
                reader.more().await
            };
            let going_on = tokio::select! {
                more = more => more?,
                () = changed(&mut tokens) => true,
                () = super::stopped(&mut stopping) => {
                    return Err(super::stopping_error());
                }
            };
            if !going_on {
                return Ok(());
            }
            self.recognise_again().await?;
            while let Some(frame) = reader.buffered()? {
                self.handle(frame)?;
            }
        }
    }

    /// A token may have been revoked since, which ends the connection, or have lost permissions, which
    /// ends what needs them.
    async fn recognise_again(&mut self) -> Result<(), ApiError> {
        let Some(tokens) = self.shared.access.tokens() else {
            return Ok(());
        };
        let generation = tokens.generation();
        if generation != self.session.generation {
            let principal = tokens.verify(Some(&self.session.token)).await;
            self.session.principal = Some(principal.inspect_err(|_| self.count_refused())?);
            self.session.generation = generation;
            self.cancel_refused();
        }
        Ok(())
    }

    /// Ends the requests that the token no longer allows.
    fn cancel_refused(&self) {
        let mut refused = Vec::new();
        self.requests.lock().retain(|id, request| {
            let Err(error) = self.admit(request.operation) else {
                return true;
            };
            request.abort.abort();
            refused.push((*id, error));
            false
        });
        for (id, error) in refused {
            self.answer_error(id, &error);
        }
    }

    fn count_refused(&self) {
        let refused = &self.shared.metrics.access_refused;
        refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn cancel_all(&self) {
        for (_, request) in self.requests.lock().drain() {
            request.abort.abort();
        }
    }

    fn admit(&self, operation: &'static Operation) -> Result<(), ApiError> {
        let principal = self.session.principal.as_deref();
        self.shared
            .access
            .admit_principal(operation, principal)
            .inspect_err(|_| self.count_refused())
    }

    fn handle(&mut self, raw: native::RawFrame) -> Result<(), ApiError> {
        let id = raw.request_id;
        let frame = match ClientFrame::decode(raw) {
            Ok(frame) => frame,
            Err(error) => {
                let error = ApiError::invalid_argument(format!("an illegal frame: {error}"));
                // Without an id nobody could be answered.
                if id == 0 {
                    return Err(error);
                }
                self.answer_error(id, &error);
                return Ok(());
            }
        };
        let outcome = match frame {
            ClientFrame::Append(frame) => {
                self.append(frame);
                Ok(())
            }
            ClientFrame::Read(read) => {
                let credit = read.credit_bytes;
                self.begin(id, credit, self.operations.read, Request::Read(read))
            }
            ClientFrame::Subscribe(subscribe) => {
                let credit = subscribe.credit_bytes;
                let operation = self.operations.subscribe;
                self.begin(id, credit, operation, Request::Subscribe(subscribe))
            }
            ClientFrame::StreamHead { partition, stream } => {
                let request = Request::StreamHead { partition, stream };
                self.begin(id, u32::MAX, self.operations.stream_head, request)
            }
            ClientFrame::CursorGet { partition, name } => {
                let request = Request::CursorGet { partition, name };
                self.begin(id, u32::MAX, self.operations.cursor_get, request)
            }
            ClientFrame::Credit { bytes } => {
                // One that has just ended may still get credit.
                if let Some(request) = self.requests.lock().get(&id) {
                    request.credit.grant(bytes);
                }
                Ok(())
            }
            ClientFrame::Cancel => {
                if let Some(request) = self.requests.lock().remove(&id) {
                    request.abort.abort();
                }
                Ok(())
            }
            ClientFrame::Ping { nonce } => {
                let mut out = BytesMut::new();
                native::encode_pong(&mut out, id, nonce);
                self.outbox.push_now(out.freeze());
                Ok(())
            }
            ClientFrame::Hello(_) => Err(ApiError::invalid_argument("a second Hello")),
            ClientFrame::Skipped => Ok(()),
        };
        match outcome {
            Err(error) if id == 0 => Err(error),
            Err(error) => {
                self.answer_error(id, &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn answer_error(&self, id: u32, error: &ApiError) {
        let mut out = BytesMut::new();
        native::encode_error(&mut out, id, error);
        self.outbox.push_now(out.freeze());
    }

    /// Starts a task for a read, a subscription or a look-up, if the token allows it.
    fn begin(
        &self,
        id: u32,
        credit: u32,
        operation: &'static Operation,
        request: Request,
    ) -> Result<(), ApiError> {
        self.admit(operation)?;
        if id == 0 {
            return Err(ApiError::invalid_argument(
                "a request needs an id that is not 0",
            ));
        }
        let least = u32::try_from(native::CREDIT_BYTES_MIN).expect("some MiB");
        if credit < least {
            let reason = format!("the first credit is {credit} bytes, {least} are needed");
            return Err(ApiError::invalid_argument(reason));
        }
        let mut requests = self.requests.lock();
        if requests.len() >= REQUESTS_MAX {
            let reason = format!("{REQUESTS_MAX} requests of this connection are under way");
            return Err(ApiError::overloaded(reason, 100));
        }
        if requests.contains_key(&id) {
            return Err(ApiError::invalid_argument(format!(
                "request id {id} is in use"
            )));
        }
        let credit = Arc::new(Credit::new(credit));
        let task = requests::run(
            Arc::clone(&self.shared),
            Arc::clone(&self.outbox),
            Arc::clone(&credit),
            id,
            request,
        );
        let registry = Arc::downgrade(&self.requests);
        let task = self.shared.tracker.spawn(async move {
            task.await;
            if let Some(registry) = registry.upgrade() {
                registry.lock().remove(&id);
            }
        });
        // The lock is held: the task cannot remove itself before it is entered.
        requests.insert(
            id,
            RequestHandle {
                operation,
                credit,
                abort: task.abort_handle(),
            },
        );
        Ok(())
    }

    fn append(&self, frame: AppendFrame) {
        let admitted = self.admit(self.operations.append);
        let now_ns = self.shared.clock.monotonic_ns();
        for entry in frame.into_entries() {
            let (id, outcome) = match (entry, &admitted) {
                (Err((id, error)), _) => (
                    id,
                    Err(ApiError::invalid_argument(format!(
                        "an illegal append: {error}"
                    ))),
                ),
                (Ok(entry), Err(error)) => (entry.request_id, Err(error.clone())),
                (Ok(entry), Ok(())) => (entry.request_id, self.append_entry(entry, now_ns)),
            };
            if let Err(error) = outcome {
                self.outbox.refuse(id, error);
            }
        }
    }

    fn append_entry(&self, entry: AppendEntry, now_ns: u64) -> Result<(), ApiError> {
        let AppendEntry {
            request_id,
            head,
            events,
        } = entry;
        let streams = streams_of(&events);
        let cursor = head.cursor.is_some();
        let checksums = events.iter().map(|(checksum, _)| checksum).collect();
        let encoded = EncodedEvents {
            bytes: events.data().clone(),
            checksums: Some(checksums),
            expected: head
                .expectations
                .into_iter()
                .map(|one| (one.stream.as_str().to_owned(), expected(one.expected)))
                .collect(),
            condition: head.condition.map(|condition| AppendCondition {
                items: condition.matches.iter().map(condition_item).collect(),
                after: condition.after_sequence,
            }),
            cursor: head.cursor.map(|cursor| CursorUpdate {
                name: cursor.name.as_str().to_owned(),
                position: cursor.position,
            }),
        };
        let engine = &self.shared.engine;
        let batch = engine
            .prepare(Some(head.partition), encoded)
            .map_err(|error| append_error(&error))?;
        let bytes = batch.stored_bytes();
        self.outbox.enter(bytes);
        let sink: Arc<dyn AppendSink> = Arc::clone(&self.outbox) as Arc<dyn AppendSink>;
        engine
            .append(
                batch,
                sink,
                Tag {
                    request_id,
                    streams,
                    cursor,
                    begun_ns: now_ns,
                }
                .pack(),
            )
            .map_err(|(error, _)| {
                self.outbox.leave(bytes);
                append_error(&error)
            })
    }
}

/// Ends when the tokens have changed; never without tokens.
async fn changed(tokens: &mut Option<watch::Receiver<u64>>) {
    // An error means that the store is gone with the server, which says so itself.
    if let Some(tokens) = tokens
        && tokens.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn condition_item(one: &native::EventMatch) -> ConditionItem {
    let names = |names: &[Text]| names.iter().map(|name| name.as_str().to_owned()).collect();
    ConditionItem {
        types: names(&one.types),
        tags: names(&one.tags),
    }
}

fn expected(expected: ExpectedRevision) -> truthdb_engine::ExpectedRevision {
    match expected {
        ExpectedRevision::Any => truthdb_engine::ExpectedRevision::Any,
        ExpectedRevision::NoStream => truthdb_engine::ExpectedRevision::NoStream,
        ExpectedRevision::StreamExists => truthdb_engine::ExpectedRevision::Exists,
        ExpectedRevision::Exact(revision) => truthdb_engine::ExpectedRevision::Exact(revision),
    }
}

/// Of how many streams the events are. Bytes that are no events count as one: the engine refuses
/// them.
fn streams_of(events: &native::AppendEvents) -> Streams {
    let name = |bytes| {
        truthdb_event::EventRef::parse_trusted(bytes)
            .ok()
            .map(|e| e.stream())
    };
    match events.len() {
        0 => return Streams::None,
        1 => return Streams::One,
        _ => {}
    }
    let mut streams = events.iter().map(|(_, bytes)| name(bytes));
    let first = streams.next();
    if streams.any(|stream| Some(stream) != first) {
        Streams::Several
    } else {
        Streams::One
    }
}
