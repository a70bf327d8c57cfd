//! Batches to append, encoded as they are made.

use bytes::{Bytes, BytesMut};
use truthdb_api::native::{
    self, AppendCondition, AppendHead, CursorUpdate, EventMatch, ExpectedRevision,
    StreamExpectation, Text,
};
use truthdb_event::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, EVENT_HEADER_BYTES, EventBuilder, EventError, EventId,
    event_checksum, is_system_stream, partition_of,
};

use crate::ClientError;

/// Bytes that a batch counts for each event besides its canonical bytes.
const ROW_BYTES: usize = 20;

/// The events of one append, and what it depends on.
///
/// Events are encoded when they are added; an event without an id gets a UUIDv7. The ids make the
/// append idempotent: a clone of a batch can be appended again and has the same effect once.
///
/// ```
/// use truthdb_client::{EventBuilder, ExpectedRevision, NewBatch};
///
/// let batch = NewBatch::new()
///     .event(EventBuilder::new("order-1", "order-placed").payload(b"{}"))?
///     .event(EventBuilder::new("order-1", "order-paid").tag("customer-7"))?
///     .expect("order-1", ExpectedRevision::NoStream)?;
/// assert_eq!(batch.len(), 2);
/// # Ok::<(), truthdb_client::ClientError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct NewBatch {
    data: Vec<u8>,
    checksums: Vec<u64>,
    lengths: Vec<u32>,
    partition: Option<u32>,
    head: AppendHead,
}

impl NewBatch {
    /// A batch without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event.
    ///
    /// # Errors
    /// As [`NewBatch::push`].
    pub fn event(mut self, event: EventBuilder<'_>) -> Result<Self, ClientError> {
        self.push(event)?;
        Ok(self)
    }

    /// Adds an event and returns its id.
    ///
    /// # Errors
    /// An event that is not legal, one of a system stream (`$…`), or a batch that would exceed
    /// 10,000 events or 8 MiB. The batch is unchanged then.
    pub fn push(&mut self, event: EventBuilder<'_>) -> Result<EventId, ClientError> {
        let start = self.data.len();
        match event.encode_into(&mut self.data) {
            Ok(_) => {}
            Err(EventError::Empty { field: "event id" }) => {
                let id = EventId::from_bytes(uuid::Uuid::now_v7().into_bytes());
                event.id(id).encode_into(&mut self.data)?;
            }
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = self.check_last(start) {
            self.data.truncate(start);
            return Err(error);
        }
        let event = &self.data[start..];
        self.checksums.push(event_checksum(event));
        self.lengths
            .push(u32::try_from(event.len()).expect("an event has less than 8 MiB"));
        let id = event.first_chunk().expect("an event is longer than its id");
        Ok(EventId::from_bytes(*id))
    }

    fn check_last(&self, start: usize) -> Result<(), ClientError> {
        let stream = stream_of(&self.data[start..]);
        if is_system_stream(stream) {
            let message = format!("stream {stream}: names that begin with `$` are the system's");
            return Err(ClientError::InvalidArgument(message));
        }
        let events = self.checksums.len() + 1;
        let bytes = self.data.len() + events * ROW_BYTES;
        for (name, actual, limit) in [
            ("batch_events_max", events, BATCH_EVENTS_MAX),
            ("batch_bytes_max", bytes, BATCH_BYTES_MAX),
        ] {
            if actual > limit {
                let (limit, actual) = (limit as u64, actual as u64);
                return Err(truthdb_api::ApiError::limit_exceeded(name, limit, actual).into());
            }
        }
        Ok(())
    }

    /// Adds an expectation on a stream of the batch's partition, whether or not the batch writes
    /// it. At most one for each stream.
    ///
    /// # Errors
    /// A name above 255 bytes.
    pub fn expect(mut self, stream: &str, expected: ExpectedRevision) -> Result<Self, ClientError> {
        self.head.expectations.push(StreamExpectation {
            stream: Text::new(stream)?,
            expected,
        });
        Ok(self)
    }

    /// Fails the append if an event of the partition after `after_sequence` matches any of
    /// `matches`.
    #[must_use]
    pub fn condition(mut self, after_sequence: u64, matches: Vec<EventMatch>) -> Self {
        self.head.condition = Some(AppendCondition {
            after_sequence,
            matches,
        });
        self
    }

    /// Commits a cursor of the batch's partition with the events.
    ///
    /// # Errors
    /// A name that is empty or above 247 bytes.
    pub fn cursor(mut self, name: &str, position: u64) -> Result<Self, ClientError> {
        self.head.cursor = Some(CursorUpdate {
            name: cursor_name(name)?,
            position,
        });
        Ok(self)
    }

    /// Names the partition: needed for a batch without events; otherwise only checked.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.checksums.len()
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.checksums.is_empty()
    }

    /// The ids of the events, in order.
    pub fn ids(&self) -> impl Iterator<Item = EventId> {
        self.events().map(|event| {
            EventId::from_bytes(*event.first_chunk().expect("an event is longer than its id"))
        })
    }

    fn events(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.data[..];
        self.lengths.iter().map(move |length| {
            let length = usize::try_from(*length).expect("an event has less than 8 MiB");
            let (event, tail) = rest.split_at(length);
            rest = tail;
            event
        })
    }

    /// The batch's partition in a database of so many.
    fn find_partition(&self, partition_count: u32) -> Result<u32, ClientError> {
        let mut first: Option<(&str, u32)> = None;
        let mut previous = "";
        for stream in self.events().map(stream_of) {
            if stream == previous {
                continue;
            }
            previous = stream;
            let partition = partition_of(stream, partition_count);
            let (first, first_partition) = *first.get_or_insert((stream, partition));
            if first_partition != partition {
                return Err(ClientError::SeveralPartitions {
                    first: first.to_owned(),
                    first_partition,
                    second: stream.to_owned(),
                    second_partition: partition,
                });
            }
        }
        match (first.map(|(_, partition)| partition), self.partition) {
            (Some(found), Some(named)) if found != named => {
                let message =
                    format!("the batch's streams are in partition {found}, named was {named}");
                Err(ClientError::InvalidArgument(message))
            }
            (Some(found), _) => Ok(found),
            (None, Some(named)) if self.head.cursor.is_some() => Ok(named),
            (None, _) => Err(ClientError::InvalidArgument(
                "a batch without events needs a cursor and a partition".to_owned(),
            )),
        }
    }

    /// The entry of an Append frame, with request id 0, and the partition.
    pub(crate) fn encode(mut self, partition_count: u32) -> Result<(Bytes, u32), ClientError> {
        let partition = self.find_partition(partition_count)?;
        self.head.partition = partition;
        let mut out = BytesMut::new();
        native::encode_append_entry(
            &mut out,
            0,
            &self.head,
            &self.checksums,
            &self.lengths,
            &self.data,
        )?;
        Ok((out.freeze(), partition))
    }
}

/// The stream of an event that was encoded here.
fn stream_of(event: &[u8]) -> &str {
    let length = usize::from(event[24]);
    let name = &event[EVENT_HEADER_BYTES..EVENT_HEADER_BYTES + length];
    std::str::from_utf8(name).expect("it was encoded from a str")
}

pub(crate) fn cursor_name(name: &str) -> Result<Text, ClientError> {
    if name.is_empty() || name.len() > truthdb_api::CURSOR_NAME_BYTES_MAX {
        let message = format!(
            "a cursor's name has 1 to 247 bytes, this one {}",
            name.len()
        );
        return Err(ClientError::InvalidArgument(message));
    }
    Ok(Text::new(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_over_several_partitions_is_refused_and_names_both() {
        let mut batch = NewBatch::new();
        for n in 0..50 {
            batch
                .push(EventBuilder::new(&format!("stream-{n}"), "t"))
                .unwrap();
        }
        assert!(batch.clone().encode(1).is_ok());
        let error = batch.encode(7).unwrap_err();
        assert!(
            matches!(error, ClientError::SeveralPartitions { .. }),
            "{error}"
        );
        assert_eq!(error.outcome(), truthdb_api::Outcome::DidNotHappen);
    }

    #[test]
    fn ids_are_made_unless_given_and_a_refused_event_leaves_the_batch_unchanged() {
        let mut batch = NewBatch::new();
        let given = EventId::from_bytes([9; 16]);
        assert_eq!(
            batch.push(EventBuilder::new("a", "t").id(given)).unwrap(),
            given
        );
        let made = batch.push(EventBuilder::new("a", "t")).unwrap();
        assert_ne!(made, EventId::default());
        assert!(batch.push(EventBuilder::new("", "t")).is_err());
        assert!(batch.push(EventBuilder::new("$cursor/x", "t")).is_err());
        assert_eq!(batch.ids().collect::<Vec<_>>(), [given, made]);
    }

    #[test]
    fn a_batch_above_its_bytes_is_refused_by_the_limits_name() {
        let payload = vec![0; 4 * 1024 * 1024 - 100];
        let mut batch = NewBatch::new();
        batch
            .push(EventBuilder::new("a", "t").payload(&payload))
            .unwrap();
        batch
            .push(EventBuilder::new("a", "t").payload(&payload))
            .unwrap();
        let error = batch
            .push(EventBuilder::new("a", "t").payload(&payload))
            .unwrap_err();
        assert!(error.to_string().contains("batch_bytes_max"), "{error}");
        assert_eq!(batch.len(), 2);
    }

    #[test]
    fn a_cursor_alone_needs_its_partition() {
        let batch = NewBatch::new().cursor("c", 5).unwrap();
        assert!(batch.clone().encode(4).is_err());
        assert_eq!(batch.partition(3).encode(4).unwrap().1, 3);
    }
}
