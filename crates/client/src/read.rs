//! Reads, page by page, that survive a lost connection.

use std::vec;

use bytes::Bytes;
use tokio::time::timeout_at;
use truthdb_api::Outcome;
use truthdb_api::native::{self, Direction, Filter, ReadScope, ReadStart, ServerFrame, Text};
use truthdb_event::{EventRef, event_checksum};

use crate::client::{deadline_passed, unexpected};
use crate::connection::FrameStream;
use crate::{Client, ClientError};

/// What to read: of a partition or of a stream, in which direction, from where, how far.
#[derive(Clone, Debug)]
#[must_use]
pub struct Read {
    stream: Option<String>,
    partition: Option<u32>,
    direction: Direction,
    start: ReadStart,
    max_events: u64,
    until_sequence: u64,
    filter: Filter,
}

impl Read {
    /// All of a partition, oldest first.
    pub fn partition(partition: u32) -> Self {
        Self {
            stream: None,
            partition: Some(partition),
            direction: Direction::Forward,
            start: ReadStart::Edge,
            max_events: 0,
            until_sequence: 0,
            filter: Filter::default(),
        }
    }

    /// All of a stream, oldest first.
    pub fn stream(stream: impl Into<String>) -> Self {
        Self {
            stream: Some(stream.into()),
            partition: None,
            ..Self::partition(0)
        }
    }

    /// All of a system stream (`$…`) of a partition, oldest first.
    pub fn system_stream(partition: u32, stream: impl Into<String>) -> Self {
        Self {
            partition: Some(partition),
            ..Self::stream(stream)
        }
    }

    /// Newest first.
    pub fn backward(mut self) -> Self {
        self.direction = Direction::Backward;
        self
    }

    /// Of a partition: from this sequence, inclusive.
    pub fn from_sequence(mut self, sequence: u64) -> Self {
        self.start = ReadStart::Sequence(sequence);
        self
    }

    /// Of a partition: from this time, in nanoseconds since 1970 UTC.
    pub fn from_timestamp_ns(mut self, timestamp_ns: u64) -> Self {
        self.start = ReadStart::Timestamp(timestamp_ns);
        self
    }

    /// Of a stream: from this revision, inclusive.
    pub fn from_revision(mut self, revision: u64) -> Self {
        self.start = ReadStart::Revision(revision);
        self
    }

    /// At most so many events, at least 1.
    pub fn limit(mut self, max_events: u64) -> Self {
        self.max_events = max_events.max(1);
        self
    }

    /// Forward: nothing after this sequence.
    pub fn until_sequence(mut self, sequence: u64) -> Self {
        self.until_sequence = sequence;
        self
    }

    /// Only events that pass this filter.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }
}

/// A committed event, verified against its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedEvent {
    partition: u32,
    row: native::EventRow,
}

impl RecordedEvent {
    fn new(partition: u32, row: native::EventRow) -> Result<Self, ClientError> {
        if event_checksum(&row.event) != row.checksum {
            let message = format!("event {} does not have its checksum", row.sequence);
            return Err(ClientError::Protocol(message));
        }
        EventRef::parse_trusted(&row.event)?;
        Ok(Self { partition, row })
    }

    /// Its partition.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Its place in the partition.
    pub fn sequence(&self) -> u64 {
        self.row.sequence
    }

    /// Its place in its stream.
    pub fn revision(&self) -> u64 {
        self.row.revision
    }

    /// When it was appended, in nanoseconds since 1970 UTC.
    pub fn timestamp_ns(&self) -> u64 {
        self.row.timestamp_ns
    }

    /// xxHash64 of its canonical bytes.
    pub fn checksum(&self) -> u64 {
        self.row.checksum
    }

    /// Its canonical bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.row.event
    }

    /// Its parts: stream, type, id, payload and so on. Parses at each call; keep the result.
    pub fn event(&self) -> EventRef<'_> {
        EventRef::parse_trusted(&self.row.event).expect("parsed when it was received")
    }

    /// Its payload; shares the page's memory.
    pub fn payload(&self) -> Bytes {
        let payload = self.event().payload();
        self.row.event.slice_ref(payload)
    }
}

/// Events, and how far the read is with them.
#[derive(Clone, Debug)]
pub struct EventPage {
    events: Vec<RecordedEvent>,
    /// The last sequence looked at, and the partition's newest.
    pub position: native::Position,
}

impl EventPage {
    /// Verifies a page; `backward` turns the events of each run round.
    pub(crate) fn new(
        partition: u32,
        page: &native::Page,
        backward: bool,
    ) -> Result<Self, ClientError> {
        let count = page.runs().iter().map(|run| run.events().len()).sum();
        let mut events = Vec::with_capacity(count);
        for run in page.runs() {
            let begin = events.len();
            for row in run.events() {
                events.push(RecordedEvent::new(partition, row)?);
            }
            if backward {
                events[begin..].reverse();
            }
        }
        Ok(Self {
            events,
            position: page.position,
        })
    }

    /// The events, in the read's order.
    pub fn events(&self) -> &[RecordedEvent] {
        &self.events
    }
}

impl IntoIterator for EventPage {
    type Item = RecordedEvent;
    type IntoIter = vec::IntoIter<RecordedEvent>;

    fn into_iter(self) -> Self::IntoIter {
        self.events.into_iter()
    }
}

/// The pages of a read.
pub struct Pages {
    client: Client,
    request: native::Read,
    frames: Option<FrameStream>,
    events_left: u64,
    done: bool,
    tries: u32,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Pages {
    pub(crate) fn new(client: Client, read: Read) -> Result<Self, ClientError> {
        let (scope, partition) = match &read.stream {
            None => (ReadScope::Partition, read.partition.unwrap_or(0)),
            Some(stream) => {
                let partition = read
                    .partition
                    .unwrap_or_else(|| client.partition_of(stream));
                (ReadScope::Stream(Text::new(stream)?), partition)
            }
        };
        let request = native::Read {
            scope,
            partition,
            direction: read.direction,
            start: read.start,
            max_events: read.max_events,
            until_sequence: read.until_sequence,
            credit_bytes: client.config().window_bytes,
            page_bytes: 0,
            filter: read.filter,
        };
        let events_left = read.max_events;
        Ok(Self {
            client,
            request,
            frames: None,
            events_left,
            done: false,
            tries: 0,
        })
    }

    /// The next page; `None`: that was all. A page may be empty when a filter passes over many
    /// events. A lost connection is replaced, and the read goes on where it was. Safe to drop and
    /// call again.
    ///
    /// # Errors
    /// What the server refuses, or the last error when retries did not help.
    pub async fn next(&mut self) -> Result<Option<EventPage>, ClientError> {
        while !self.done {
            match self.next_frame().await {
                Ok(ServerFrame::Page(page)) => {
                    self.tries = 0;
                    return self.accept(&page).map(Some);
                }
                Ok(ServerFrame::End(_)) => self.done = true,
                Ok(_) => return Err(unexpected()),
                Err(error) => {
                    self.frames = None;
                    self.tries += 1;
                    let tries_max = self.client.config().retry.tries_max;
                    if !error.is_retryable() || self.tries >= tries_max {
                        self.done = true;
                        return Err(error);
                    }
                    tokio::time::sleep(self.client.pause_length(&error, self.tries)).await;
                }
            }
        }
        Ok(None)
    }

    /// All events that are left. Holds them in memory: bound the read by [`Read::limit`].
    ///
    /// # Errors
    /// As [`Pages::next`].
    pub async fn collect(mut self) -> Result<Vec<RecordedEvent>, ClientError> {
        let mut events = Vec::new();
        while let Some(page) = self.next().await? {
            events.extend(page);
        }
        Ok(events)
    }

    async fn next_frame(&mut self) -> Result<ServerFrame, ClientError> {
        let deadline = self.client.deadline();
        if self.frames.is_none() {
            let connection = self.client.connection(deadline).await?;
            let request = &self.request;
            let frames = connection.stream(|out, id| request.encode(out, id))?;
            self.frames = Some(frames);
        }
        let frames = self.frames.as_mut().ok_or_else(unexpected)?;
        match timeout_at(deadline, frames.next()).await {
            Ok(item) => Ok(item?),
            Err(_) => Err(deadline_passed("no page came", Outcome::DidNotHappen)),
        }
    }

    /// Takes a page over, and moves the request to where a repeated one must go on.
    fn accept(&mut self, page: &native::Page) -> Result<EventPage, ClientError> {
        let backward = self.request.direction == Direction::Backward;
        let events = EventPage::new(self.request.partition, page, backward)?;
        if self.events_left != 0 {
            self.events_left = self.events_left.saturating_sub(page.event_count());
            self.request.max_events = self.events_left;
            self.done = self.events_left == 0;
        }
        self.move_start(&events, backward);
        if let Some(frames) = &mut self.frames {
            frames.grant(page.credit_bytes(), self.client.config().window_bytes);
        }
        Ok(events)
    }

    fn move_start(&mut self, page: &EventPage, backward: bool) {
        match self.request.scope {
            ReadScope::Partition => {
                let position = page.position.position;
                match (backward, position) {
                    (true, 0 | 1) => self.done = true,
                    (true, _) => self.request.start = ReadStart::Sequence(position - 1),
                    (false, _) => {
                        self.request.start = ReadStart::Sequence(position.saturating_add(1))
                    }
                }
            }
            ReadScope::Stream(_) => {
                let Some(last) = page.events.last() else {
                    return;
                };
                match (backward, last.revision()) {
                    (true, 0) => self.done = true,
                    (true, revision) => self.request.start = ReadStart::Revision(revision - 1),
                    (false, revision) => {
                        self.request.start = ReadStart::Revision(revision.saturating_add(1))
                    }
                }
            }
        }
    }
}
