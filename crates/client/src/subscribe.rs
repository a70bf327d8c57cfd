//! Subscriptions that reconnect by themselves.

use tokio::time::timeout;
use truthdb_api::native::{self, Filter, Position, ServerFrame, SubscribeStart, Text};
use truthdb_api::{ErrorCode, Outcome};

use crate::client::{deadline_passed, unexpected};
use crate::connection::FrameStream;
use crate::{Client, ClientError, EventPage};

/// What to follow, and from where.
#[derive(Clone, Debug)]
#[must_use]
pub struct Subscribe {
    partition: u32,
    start: SubscribeStart,
    filter: Filter,
}

impl Subscribe {
    /// All events of a partition, from the first there is.
    pub fn partition(partition: u32) -> Self {
        Self {
            partition,
            start: SubscribeStart::First,
            filter: Filter::default(),
        }
    }

    /// From this sequence, inclusive; one beyond the end waits for it.
    pub fn from_sequence(mut self, sequence: u64) -> Self {
        self.start = SubscribeStart::Sequence(sequence);
        self
    }

    /// From this time, in nanoseconds since 1970 UTC.
    pub fn from_timestamp_ns(mut self, timestamp_ns: u64) -> Self {
        self.start = SubscribeStart::Timestamp(timestamp_ns);
        self
    }

    /// Only what is appended from now on.
    pub fn from_head(mut self) -> Self {
        self.start = SubscribeStart::Head;
        self
    }

    /// After the position of a durable cursor of the partition.
    ///
    /// # Errors
    /// A name that is empty or above 247 bytes.
    pub fn from_cursor(mut self, name: &str) -> Result<Self, ClientError> {
        crate::batch::cursor_name(name)?;
        self.start = SubscribeStart::Cursor(Text::new(name)?);
        Ok(self)
    }

    /// Only events that pass this filter.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }
}

/// A message of a subscription.
#[derive(Clone, Debug)]
pub enum Message {
    /// Events, in order.
    Events(EventPage),
    /// All that was there has been delivered; from here on it is live.
    CaughtUp(Position),
    /// Nothing matched for a while; everything up to the position was passed over.
    Heartbeat(Position),
    /// The connection was lost, for this reason. The next call connects again and goes on after
    /// [`Subscription::position`]; nothing is lost. For logs and metrics.
    Interrupted(ClientError),
}

/// A subscription. Ends when dropped.
pub struct Subscription {
    client: Client,
    request: native::Subscribe,
    frames: Option<FrameStream>,
    position: u64,
    tries: u32,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("request", &self.request)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    pub(crate) async fn start(client: Client, subscribe: Subscribe) -> Result<Self, ClientError> {
        let request = native::Subscribe {
            partition: subscribe.partition,
            start: subscribe.start,
            heartbeat_ms: client.config().heartbeat_ms(),
            credit_bytes: client.config().window_bytes,
            filter: subscribe.filter,
        };
        let deadline = client.deadline();
        let (frames, position) = client
            .retry(deadline, || Self::connect(&client, &request, deadline))
            .await?;
        let mut subscription = Self {
            client,
            request,
            frames: Some(frames),
            position,
            tries: 0,
        };
        subscription.move_to(position);
        Ok(subscription)
    }

    /// Subscribes; returns where it starts, which the first frame says.
    async fn connect(
        client: &Client,
        request: &native::Subscribe,
        deadline: tokio::time::Instant,
    ) -> Result<(FrameStream, u64), ClientError> {
        let connection = client.connection(deadline).await?;
        let mut frames = connection.stream(|out, id| request.encode(out, id))?;
        match tokio::time::timeout_at(deadline, frames.next()).await {
            Ok(Ok(ServerFrame::Heartbeat(at))) => Ok((frames, at.position)),
            Ok(Ok(_)) => Err(unexpected()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(deadline_passed(
                "the subscription did not start",
                Outcome::DidNotHappen,
            )),
        }
    }

    /// The last sequence that was delivered or passed over: a good position for a cursor.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next message; waits for it as long as it takes. Reconnects by itself, for ever, with
    /// growing pauses. Safe to drop and call again.
    ///
    /// # Errors
    /// What a retry cannot help against, such as a place that was trimmed meanwhile or a token that
    /// is no longer valid. Another call tries again.
    pub async fn next(&mut self) -> Result<Message, ClientError> {
        if self.frames.is_none()
            && let Err(error) = self.resume().await
        {
            return self.interrupted(error);
        }
        let frames = self.frames.as_mut().ok_or_else(unexpected)?;
        let patience = self.client.config().heartbeat * 3;
        let item = match timeout(patience, frames.next()).await {
            Ok(item) => item.map_err(ClientError::from),
            Err(_) => {
                frames.give_up_connection("no sign of life");
                let why = "the subscription showed no sign of life";
                Err(ClientError::unavailable(why, Outcome::DidNotHappen))
            }
        };
        match item.and_then(|frame| self.accept(frame)) {
            Ok(message) => {
                self.tries = 0;
                Ok(message)
            }
            Err(error) => self.interrupted(error),
        }
    }

    async fn resume(&mut self) -> Result<(), ClientError> {
        if self.tries > 1 {
            // Nothing was delivered since the last loss: do not hammer.
            let error = ClientError::unavailable("", Outcome::DidNotHappen);
            tokio::time::sleep(self.client.pause_length(&error, self.tries - 1)).await;
        }
        let deadline = self.client.deadline();
        let (frames, position) = Self::connect(&self.client, &self.request, deadline).await?;
        if position != self.position {
            let expected = self.position;
            let message = format!("a subscription resumed after {position}, not {expected}");
            return Err(ClientError::Protocol(message));
        }
        self.frames = Some(frames);
        Ok(())
    }

    fn interrupted(&mut self, error: ClientError) -> Result<Message, ClientError> {
        self.frames = None;
        self.tries = self.tries.saturating_add(1);
        let again = error.is_retryable() || error.code() == ErrorCode::SlowConsumer;
        if again {
            Ok(Message::Interrupted(error))
        } else {
            Err(error)
        }
    }

    fn accept(&mut self, frame: ServerFrame) -> Result<Message, ClientError> {
        match frame {
            ServerFrame::Page(page) => {
                if page
                    .runs()
                    .first()
                    .is_some_and(|run| run.first_sequence <= self.position)
                {
                    let message = format!("events up to {} came again", self.position);
                    return Err(ClientError::Protocol(message));
                }
                let events = EventPage::new(self.request.partition, &page, false)?;
                self.move_to(page.position.position);
                if let Some(frames) = &mut self.frames {
                    frames.grant(page.credit_bytes(), self.client.config().window_bytes);
                }
                Ok(Message::Events(events))
            }
            ServerFrame::CaughtUp(at) => {
                self.move_to(at.position);
                Ok(Message::CaughtUp(at))
            }
            ServerFrame::Heartbeat(at) => {
                self.move_to(at.position);
                Ok(Message::Heartbeat(at))
            }
            _ => Err(unexpected()),
        }
    }

    /// Everything up to `position` is done: a repeated request goes on after it.
    fn move_to(&mut self, position: u64) {
        self.position = position;
        self.request.start = SubscribeStart::Sequence(position.saturating_add(1));
    }
}
