//! The client: connections, appends with safe retries, cursors and heads.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};
use truthdb_api::native::{self, Durability, Limits, ServerFrame, Text, Welcome};
use truthdb_api::{ApiError, ErrorCode, Outcome};

use crate::connection::Connection;
use crate::{ClientConfig, ClientError, NewBatch, Pages, Read, Subscribe, Subscription};

/// A committed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The partition.
    pub partition: u32,
    /// The sequence of the first event; the others follow without a gap.
    pub first_sequence: u64,
    /// The highest sequence of the commit; with a cursor, that is the cursor's own event.
    pub last_sequence: u64,
    /// The timestamp of all its events, in nanoseconds since 1970 UTC.
    pub timestamp_ns: u64,
    /// For each stream, in order of first appearance in the batch, the revision of its last event.
    pub last_revisions: Vec<u64>,
    /// True when these event ids had been appended before.
    pub already_appended: bool,
    /// What this acknowledgement means.
    pub durability: Durability,
}

/// Facts about the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its id.
    pub id: [u8; 16],
    /// How many partitions it has, for ever.
    pub partition_count: u32,
    /// What an acknowledgement of an append means.
    pub durability: Durability,
    /// With [`Durability::FlushInterval`]: how much acknowledged time a power failure may cost.
    pub loss_window: Duration,
    /// The server's limits.
    pub limits: Limits,
    /// The server's version.
    pub server_version: String,
}

impl From<&Welcome> for Database {
    fn from(welcome: &Welcome) -> Self {
        Self {
            id: welcome.database_id,
            partition_count: welcome.partition_count,
            durability: welcome.durability,
            loss_window: Duration::from_millis(u64::from(welcome.loss_window_ms)),
            limits: welcome.limits,
            server_version: welcome.server_version.as_str().to_owned(),
        }
    }
}

/// The newest event of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHead {
    /// The stream's partition.
    pub partition: u32,
    /// The newest revision.
    pub revision: u64,
    /// Its sequence.
    pub sequence: u64,
}

/// A durable cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The committed position.
    pub position: u64,
    /// The sequence of the event that committed it.
    pub sequence: u64,
    /// When it was committed.
    pub timestamp_ns: u64,
}

struct Slot {
    current: Mutex<Option<Arc<Connection>>>,
    /// Held while connecting, so that one task connects and the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

struct Inner {
    config: ClientConfig,
    database: Database,
    slots: Vec<Slot>,
    next_slot: AtomicUsize,
    in_flight: Arc<Semaphore>,
    in_flight_max: u32,
}

/// A client. Clones share its connections and bounds.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects once, to learn the database's facts. Lost connections are replaced when needed.
    ///
    /// Must be called within a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// A configuration out of its bounds; a server that cannot be reached, refuses the token, or
    /// presents another certificate. Not retried: a wrong address should show at once.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        config.check().map_err(ClientError::InvalidArgument)?;
        let connection = Arc::new(Connection::open(&config).await?);
        let database = Database::from(&connection.welcome);
        let slots: Vec<Slot> = (0..config.connections)
            .map(|_| Slot {
                current: Mutex::new(None),
                connecting: tokio::sync::Mutex::default(),
            })
            .collect();
        *slots[0].current.lock() = Some(connection);
        // An entry is somewhat larger than what it counts for as a batch; one must always fit.
        let in_flight_max = config.in_flight_bytes_max.max(native::FRAME_BYTES_MAX);
        let in_flight_max = in_flight_max.min(1 << 30);
        let inner = Inner {
            database,
            slots,
            next_slot: AtomicUsize::new(0),
            in_flight: Arc::new(Semaphore::new(in_flight_max)),
            in_flight_max: u32::try_from(in_flight_max).expect("at most 1 GiB"),
            config,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Facts about the database, as of the first connection.
    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    /// The partition of a stream.
    pub fn partition_of(&self, stream: &str) -> u32 {
        truthdb_event::partition_of(stream, self.inner.database.partition_count)
    }

    /// Appends a batch atomically, and returns when it is committed.
    ///
    /// A try that failed for now, or whose fate is unknown, is repeated with the same event ids, as
    /// long as the policy and the timeout allow. Dropping the future does not undo an append that
    /// was already sent.
    ///
    /// # Errors
    /// What the server refused for good; or the last error, with
    /// [`crate::Outcome::MayHaveHappened`] if any try may have succeeded:
    /// then append a clone of the same batch again.
    pub async fn append(&self, batch: NewBatch) -> Result<Appended, ClientError> {
        let (entry, partition) = batch.encode(self.inner.database.partition_count)?;
        let deadline = self.deadline();
        let mut permit = Some(self.permit(entry.len(), deadline).await?);
        let mut may_have_happened = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.try_append(&entry, &mut permit, deadline).await {
                Ok(batch) => return Ok(appended(partition, batch)),
                Err(error) => error,
            };
            // These are found only after the ids were looked up: they prove that no earlier try
            // has been committed.
            let settles = matches!(
                error.code(),
                ErrorCode::RevisionConflict | ErrorCode::ConditionFailed | ErrorCode::IdReused
            );
            may_have_happened |= error.outcome() == Outcome::MayHaveHappened;
            if settles || !self.pause(&error, tries, deadline).await {
                return Err(with_outcome(error, may_have_happened && !settles));
            }
        }
    }

    async fn try_append(
        &self,
        entry: &[u8],
        permit: &mut Option<OwnedSemaphorePermit>,
        deadline: Instant,
    ) -> Result<native::AppendedBatch, ClientError> {
        let connection = self.connection(deadline).await?;
        let held = match permit.take() {
            Some(held) => held,
            // The earlier try timed out and its bytes are still held by the connection.
            None => self.permit(entry.len(), deadline).await?,
        };
        let answer = match connection.append(entry, held) {
            Ok(answer) => answer,
            Err((error, held)) => {
                *permit = Some(held);
                return Err(error.into());
            }
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok((result, held))) => {
                *permit = Some(held);
                result.map_err(ClientError::from)
            }
            Ok(Err(_)) => Err(lost_answer()),
            Err(_) => Err(deadline_passed(
                "the append was not answered",
                Outcome::MayHaveHappened,
            )),
        }
    }

    async fn permit(
        &self,
        entry_bytes: usize,
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, ClientError> {
        let bytes = u32::try_from(entry_bytes)
            .unwrap_or(u32::MAX)
            .min(self.inner.in_flight_max);
        let semaphore = Arc::clone(&self.inner.in_flight);
        let semaphore = match semaphore.try_acquire_many_owned(bytes) {
            Ok(permit) => return Ok(permit),
            Err(_) => Arc::clone(&self.inner.in_flight),
        };
        match timeout_at(deadline, semaphore.acquire_many_owned(bytes)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                let why = "too many bytes of appends are under way";
                Err(deadline_passed(why, Outcome::DidNotHappen))
            }
        }
    }

    /// Reads events, page by page, of a partition or of one stream.
    ///
    /// # Errors
    /// A name above its limit. What the server refuses comes with the first page.
    pub fn read(&self, read: Read) -> Result<Pages, ClientError> {
        Pages::new(self.clone(), read)
    }

    /// Follows a partition: first what is there, then what comes. Returns when the server has said
    /// where the subscription starts: every event that is appended from then on will be delivered.
    ///
    /// # Errors
    /// What the server refuses, such as a cursor that was never committed.
    pub async fn subscribe(&self, subscribe: Subscribe) -> Result<Subscription, ClientError> {
        Subscription::start(self.clone(), subscribe).await
    }

    /// The newest event of a stream; `None`: it has no event.
    ///
    /// # Errors
    /// What the server refuses, or the last error when retries did not help.
    pub async fn stream_head(&self, stream: &str) -> Result<Option<StreamHead>, ClientError> {
        let (partition, stream) = (self.partition_of(stream), Text::new(stream)?);
        let frame = self.call(|out, id| native::encode_stream_head(out, id, partition, &stream));
        match frame.await? {
            ServerFrame::StreamHeadReply(head) => {
                Ok(head.last.map(|(revision, sequence)| StreamHead {
                    partition: head.partition,
                    revision,
                    sequence,
                }))
            }
            _ => Err(unexpected()),
        }
    }

    /// A durable cursor of a partition; `None`: it was never committed.
    ///
    /// # Errors
    /// What the server refuses, or the last error when retries did not help.
    pub async fn cursor_get(
        &self,
        partition: u32,
        name: &str,
    ) -> Result<Option<Cursor>, ClientError> {
        let name = crate::batch::cursor_name(name)?;
        let frame = self.call(|out, id| native::encode_cursor_get(out, id, partition, &name));
        match frame.await? {
            ServerFrame::CursorReply(state) => Ok(state.map(|state| Cursor {
                position: state.position,
                sequence: state.sequence,
                timestamp_ns: state.timestamp_ns,
            })),
            _ => Err(unexpected()),
        }
    }

    /// Commits a durable cursor of a partition on its own. To commit it together with events, use
    /// [`NewBatch::cursor`].
    ///
    /// # Errors
    /// As [`Client::append`].
    pub async fn cursor_commit(
        &self,
        partition: u32,
        name: &str,
        position: u64,
    ) -> Result<Appended, ClientError> {
        self.append(
            NewBatch::new()
                .partition(partition)
                .cursor(name, position)?,
        )
        .await
    }

    /// Asks for a sign of life; returns how long it took.
    ///
    /// # Errors
    /// A server that cannot be reached.
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let start = Instant::now();
        // A stream's head is looked up in memory for a name that cannot exist.
        let name = Text::new("$ping")?;
        self.call(|out, id| native::encode_stream_head(out, id, 0, &name))
            .await?;
        Ok(start.elapsed())
    }

    /// A request answered by one frame; all of them only read, so that a retry is always safe.
    async fn call(
        &self,
        encode: impl Fn(&mut bytes::BytesMut, u32),
    ) -> Result<ServerFrame, ClientError> {
        let deadline = self.deadline();
        self.retry(deadline, || async {
            let connection = self.connection(deadline).await?;
            let answer = connection.call(&encode)?;
            match timeout_at(deadline, answer).await {
                Ok(Ok(result)) => result.map_err(ClientError::from),
                Ok(Err(_)) => Err(lost_answer()),
                Err(_) => Err(deadline_passed("no answer", Outcome::DidNotHappen)),
            }
        })
        .await
    }

    /// Repeats `attempt` while it fails for now and there is time.
    pub(crate) async fn retry<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        deadline: Instant,
        attempt: impl Fn() -> F,
    ) -> Result<T, ClientError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) if self.pause(&error, tries, deadline).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits before another try; `false` at once when there should be none.
    async fn pause(&self, error: &ClientError, tries: u32, deadline: Instant) -> bool {
        let policy = &self.inner.config.retry;
        if !error.is_retryable() || tries >= policy.tries_max {
            return false;
        }
        let until = Instant::now() + self.pause_length(error, tries);
        if until >= deadline {
            return false;
        }
        sleep_until(until).await;
        true
    }

    pub(crate) fn pause_length(&self, error: &ClientError, tries: u32) -> Duration {
        let retry_after_ms = match error {
            ClientError::Api(error) => error.context.retry_after_ms.unwrap_or(0),
            _ => 0,
        };
        // Without randomness the pauses are merely not spread.
        let random = getrandom::u64().unwrap_or(0);
        self.inner
            .config
            .retry
            .pause(tries, random, Duration::from_millis(retry_after_ms))
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.inner.config.request_timeout
    }

    /// An open connection: the next slot's, connected anew if it was lost.
    pub(crate) async fn connection(
        &self,
        deadline: Instant,
    ) -> Result<Arc<Connection>, ClientError> {
        let slots = &self.inner.slots;
        let slot = match slots.len() {
            1 => &slots[0],
            n => &slots[self.inner.next_slot.fetch_add(1, Ordering::Relaxed) % n],
        };
        if let Some(connection) = slot.open() {
            return Ok(connection);
        }
        match timeout_at(deadline, self.reconnect(slot)).await {
            Ok(result) => result,
            Err(_) => Err(deadline_passed("no connection", Outcome::DidNotHappen)),
        }
    }

    async fn reconnect(&self, slot: &Slot) -> Result<Arc<Connection>, ClientError> {
        let _single = slot.connecting.lock().await;
        if let Some(connection) = slot.open() {
            return Ok(connection);
        }
        let config = &self.inner.config;
        let connection = Arc::new(Connection::open(config).await?);
        if connection.welcome.database_id != self.inner.database.id {
            return Err(ClientError::OtherDatabase {
                addr: config.addr.clone(),
            });
        }
        *slot.current.lock() = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

impl Slot {
    fn open(&self) -> Option<Arc<Connection>> {
        self.current
            .lock()
            .as_ref()
            .filter(|connection| connection.is_open())
            .map(Arc::clone)
    }
}

fn appended(partition: u32, batch: native::AppendedBatch) -> Appended {
    Appended {
        partition,
        first_sequence: batch.first_sequence,
        last_sequence: batch.last_sequence,
        timestamp_ns: batch.timestamp_ns,
        last_revisions: batch.last_revisions,
        already_appended: batch.already_appended,
        durability: batch.durability,
    }
}

/// The error with the outcome of all tries together.
fn with_outcome(error: ClientError, may_have_happened: bool) -> ClientError {
    match error {
        ClientError::Api(error) if may_have_happened => {
            ClientError::Api(error.with_outcome(Outcome::MayHaveHappened))
        }
        ClientError::Protocol(_) => error,
        // What failed now did not happen now, but an earlier try may have: say so.
        other if may_have_happened => {
            let code = other.code();
            let error = ApiError::new(code, other.to_string());
            ClientError::Api(error.with_outcome(Outcome::MayHaveHappened))
        }
        other => other,
    }
}

fn lost_answer() -> ClientError {
    ClientError::unavailable("the answer was lost", Outcome::MayHaveHappened)
}

pub(crate) fn unexpected() -> ClientError {
    ClientError::Protocol("an answer of another kind came".to_owned())
}

pub(crate) fn deadline_passed(why: &str, outcome: Outcome) -> ClientError {
    let message = format!("{why} before the deadline");
    ClientError::Api(ApiError::new(ErrorCode::Deadline, message).with_outcome(outcome))
}
