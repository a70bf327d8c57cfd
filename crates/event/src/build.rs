//! Writing canonical events.

use crate::layout::*;
use crate::parse::{check_limit, check_name};
use crate::{EventError, EventId};

/// Collects the parts of an event and encodes them.
///
/// # Examples
///
/// ```
/// use truthdb_event::{EventBuilder, EventId, EventRef};
///
/// let mut bytes = Vec::new();
/// EventBuilder::new("account-1", "deposited")
///     .id(EventId::from_bytes([7; 16]))
///     .content_type("application/json")
///     .tag("currency:EUR")
///     .payload(br#"{"cents":100}"#)
///     .encode_into(&mut bytes)?;
/// assert_eq!(EventRef::parse(&bytes)?.stream(), "account-1");
/// # Ok::<(), truthdb_event::EventError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct EventBuilder<'a> {
    id: EventId,
    stream: &'a str,
    event_type: &'a str,
    content_type: &'a str,
    tags: Vec<&'a str>,
    metadata: Vec<(&'a str, &'a str)>,
    payload: &'a [u8],
}

impl<'a> EventBuilder<'a> {
    /// An event of a stream and type, without id, tags, metadata and payload.
    pub fn new(stream: &'a str, event_type: &'a str) -> EventBuilder<'a> {
        EventBuilder {
            id: EventId::default(),
            stream,
            event_type,
            content_type: "",
            tags: Vec::new(),
            metadata: Vec::new(),
            payload: &[],
        }
    }

    /// Sets the id. An event needs one; all zeros is none.
    pub fn id(mut self, id: EventId) -> Self {
        self.id = id;
        self
    }

    /// Sets the content type of the payload.
    pub fn content_type(mut self, content_type: &'a str) -> Self {
        self.content_type = content_type;
        self
    }

    /// Adds a tag.
    pub fn tag(mut self, tag: &'a str) -> Self {
        self.tags.push(tag);
        self
    }

    /// Adds a metadata pair.
    pub fn metadata(mut self, key: &'a str, value: &'a str) -> Self {
        self.metadata.push((key, value));
        self
    }

    /// Sets the payload.
    pub fn payload(mut self, payload: &'a [u8]) -> Self {
        self.payload = payload;
        self
    }

    fn tags_bytes(&self) -> usize {
        self.tags.iter().map(|tag| 1 + tag.len()).sum()
    }

    fn metadata_bytes(&self) -> usize {
        self.metadata
            .iter()
            .map(|(key, value)| 3 + key.len() + value.len())
            .sum()
    }

    /// Length of the encoding in bytes.
    pub fn encoded_bytes(&self) -> usize {
        EVENT_HEADER_BYTES
            + self.stream.len()
            + self.event_type.len()
            + self.content_type.len()
            + self.tags_bytes()
            + self.metadata_bytes()
            + self.payload.len()
    }

    /// What [`EventBuilder::encode_into`] refuses.
    ///
    /// # Errors
    ///
    /// The first limit exceeded, name that is empty or holds a control character, or duplicate.
    pub fn check(&self) -> Result<(), EventError> {
        if self.id == EventId::default() {
            return Err(EventError::Empty { field: "event id" });
        }
        check_text("stream", self.stream, STREAM_NAME_BYTES_MAX)?;
        check_text("event type", self.event_type, EVENT_TYPE_BYTES_MAX)?;
        if !self.content_type.is_empty() {
            check_text("content type", self.content_type, CONTENT_TYPE_BYTES_MAX)?;
        }
        check_limit("number of tags", self.tags.len(), TAGS_MAX)?;
        for (index, tag) in self.tags.iter().enumerate() {
            check_text("tag", tag, TAG_BYTES_MAX)?;
            if self.tags[..index].contains(tag) {
                return Err(EventError::Duplicate {
                    field: "tag",
                    name: (*tag).to_owned(),
                });
            }
        }
        check_limit(
            "number of metadata keys",
            self.metadata.len(),
            METADATA_KEYS_MAX,
        )?;
        for (index, (key, _)) in self.metadata.iter().enumerate() {
            check_text("metadata key", key, METADATA_KEY_BYTES_MAX)?;
            if self.metadata[..index]
                .iter()
                .any(|(earlier, _)| earlier == key)
            {
                let name = (*key).to_owned();
                return Err(EventError::Duplicate {
                    field: "metadata key",
                    name,
                });
            }
        }
        check_limit("metadata bytes", self.metadata_bytes(), METADATA_BYTES_MAX)?;
        check_limit("payload bytes", self.payload.len(), EVENT_PAYLOAD_BYTES_MAX)
    }

    /// Appends the canonical bytes to `out` and returns how many they are. On an error `out` is
    /// unchanged.
    ///
    /// # Errors
    ///
    /// Those of [`EventBuilder::check`].
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<usize, EventError> {
        self.check()?;
        let total = self.encoded_bytes();
        out.reserve(total);
        let start = out.len();
        out.extend_from_slice(self.id.as_bytes());
        let payload_bytes = u32::try_from(self.payload.len()).expect("the payload was checked");
        out.extend_from_slice(&payload_bytes.to_le_bytes());
        out.extend_from_slice(&length_u16(self.metadata_bytes()));
        out.extend_from_slice(&length_u16(self.tags_bytes()));
        let lengths = [self.stream, self.event_type, self.content_type];
        out.extend(lengths.map(|name| length_u8(name.len())));
        out.push(0);
        for name in lengths {
            out.extend_from_slice(name.as_bytes());
        }
        for tag in &self.tags {
            out.push(length_u8(tag.len()));
            out.extend_from_slice(tag.as_bytes());
        }
        for (key, value) in &self.metadata {
            out.push(length_u8(key.len()));
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(&length_u16(value.len()));
            out.extend_from_slice(value.as_bytes());
        }
        out.extend_from_slice(self.payload);
        debug_assert_eq!(out.len() - start, total);
        Ok(total)
    }
}

fn check_text(field: &'static str, text: &str, max: usize) -> Result<(), EventError> {
    if text.is_empty() {
        return Err(EventError::Empty { field });
    }
    check_limit(field, text.len(), max)?;
    check_name(field, text)
}

fn length_u8(bytes: usize) -> u8 {
    u8::try_from(bytes).expect("lengths were checked")
}

fn length_u16(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes)
        .expect("lengths were checked")
        .to_le_bytes()
}
