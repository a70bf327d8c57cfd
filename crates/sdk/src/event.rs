//! Events as a module sees them.

use crate::Fault;

/// Parts of an event in [`Batch::data`]: stream, type, id, metadata, payload.
const PARTS: usize = 5;

/// One committed batch, as columns: item `i` of each list belongs to event `i`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Place in the partition's log.
    pub sequences: Vec<u64>,
    /// Nanoseconds since 1970 UTC.
    pub times: Vec<u64>,
    /// Index in the event's stream.
    pub revisions: Vec<u64>,
    /// Index of the handler.
    pub kinds: Vec<u32>,
    /// Where each part of each event ends in `data`.
    pub ends: Vec<u32>,
    /// The parts.
    pub data: Vec<u8>,
}

impl Batch {
    /// How many events there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The event at an index; `None` past the end.
    pub fn get(&self, index: usize) -> Option<Event<'_>> {
        (index < self.len()).then_some(Event { batch: self, index })
    }

    /// The events, in the order of the log.
    pub fn iter(&self) -> impl Iterator<Item = Event<'_>> {
        (0..self.len()).map(|index| Event { batch: self, index })
    }

    fn part(&self, index: usize, part: usize) -> &[u8] {
        let at = index * PARTS + part;
        let begin = match at {
            0 => 0,
            _ => self.ends[at - 1] as usize,
        };
        &self.data[begin..self.ends[at] as usize]
    }
}

/// An event. Cheap to copy: it refers to its batch.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    batch: &'a Batch,
    index: usize,
}

impl<'a> Event<'a> {
    /// Its place in the batch.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its place in the partition's log. For a validator: the place that it would get.
    pub fn sequence(&self) -> u64 {
        self.batch.sequences[self.index]
    }

    /// Its time, nanoseconds since 1970 UTC.
    pub fn time(&self) -> u64 {
        self.batch.times[self.index]
    }

    /// Its index in its stream, from 0.
    pub fn revision(&self) -> u64 {
        self.batch.revisions[self.index]
    }

    /// Index of the handler, in the order of the `on` lines.
    pub fn kind(&self) -> u32 {
        self.batch.kinds[self.index]
    }

    /// Name of its stream.
    pub fn stream(&self) -> &'a str {
        text(self.batch.part(self.index, 0))
    }

    /// Its type.
    pub fn event_type(&self) -> &'a str {
        text(self.batch.part(self.index, 1))
    }

    /// Its 128-bit id.
    pub fn id(&self) -> [u8; 16] {
        self.batch
            .part(self.index, 2)
            .try_into()
            .unwrap_or_default()
    }

    /// A value of its metadata.
    pub fn metadata(&self, key: &str) -> Option<&'a str> {
        let mut bytes = self.batch.part(self.index, 3);
        loop {
            let (&key_bytes, rest) = bytes.split_first()?;
            let (value_bytes, rest) = rest.split_first_chunk::<2>()?;
            let (found, rest) = rest.split_at_checked(usize::from(key_bytes))?;
            let value_bytes = usize::from(u16::from_le_bytes(*value_bytes));
            let (value, rest) = rest.split_at_checked(value_bytes)?;
            if found == key.as_bytes() {
                return Some(text(value));
            }
            bytes = rest;
        }
    }

    /// Its payload as bytes.
    pub fn payload(&self) -> &'a [u8] {
        self.batch.part(self.index, 4)
    }

    /// Its payload as a type.
    ///
    /// # Errors
    ///
    /// What the type says, with the sequence of the event.
    pub fn decode<P: Payload>(&self) -> Result<P, Fault> {
        P::decode(self.payload()).map_err(|fault| {
            Fault::new(format!(
                "event {} ({} in {}): {}",
                self.sequence(),
                self.event_type(),
                self.stream(),
                fault.reason()
            ))
        })
    }

    /// The events before it in the same batch: for validators, whose tables do not know them yet.
    pub fn earlier(&self) -> impl Iterator<Item = Event<'a>> + use<'a> {
        let batch = self.batch;
        (0..self.index).map(move |index| Event { batch, index })
    }
}

/// The host gives names in UTF-8.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// What payloads are decoded into.
pub trait Payload: Sized {
    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for operators.
    fn decode(bytes: &[u8]) -> Result<Self, Fault>;
}

/// No payload is looked at.
impl Payload for () {
    fn decode(_: &[u8]) -> Result<Self, Fault> {
        Ok(())
    }
}

/// The bytes as they are.
impl Payload for Vec<u8> {
    fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        Ok(bytes.to_vec())
    }
}

/// UTF-8 text.
impl Payload for String {
    fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| Fault::new("the payload is not UTF-8"))
    }
}
