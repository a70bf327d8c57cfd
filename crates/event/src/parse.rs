//! Reading canonical events in place.

use crate::layout::*;
use crate::{EventError, EventId};

/// A view over the canonical bytes of one event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EventRef<'a> {
    bytes: &'a [u8],
    stream: &'a str,
    event_type: &'a str,
    content_type: &'a str,
    tags: &'a [u8],
    metadata: &'a [u8],
    payload: &'a [u8],
}

/// The lengths in an event's header.
#[derive(Clone, Copy)]
struct Lengths {
    payload: usize,
    metadata: usize,
    tags: usize,
    stream: usize,
    event_type: usize,
    content_type: usize,
}

impl Lengths {
    fn read(bytes: &[u8]) -> Result<Lengths, EventError> {
        let Some(header) = bytes.first_chunk::<EVENT_HEADER_BYTES>() else {
            return Err(EventError::TooShort {
                needed: EVENT_HEADER_BYTES,
                available: bytes.len(),
            });
        };
        let u16_at = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let at = AT_PAYLOAD_BYTES;
        let payload =
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let lengths = Lengths {
            payload: usize::try_from(payload).unwrap_or(usize::MAX),
            metadata: u16_at(AT_METADATA_BYTES),
            tags: u16_at(AT_TAGS_BYTES),
            stream: usize::from(header[AT_STREAM_BYTES]),
            event_type: usize::from(header[AT_TYPE_BYTES]),
            content_type: usize::from(header[AT_CONTENT_TYPE_BYTES]),
        };
        if header[AT_RESERVED] != 0 {
            return Err(EventError::Reserved {
                value: header[AT_RESERVED],
            });
        }
        if lengths.stream == 0 {
            return Err(EventError::Empty { field: "stream" });
        }
        if lengths.event_type == 0 {
            return Err(EventError::Empty {
                field: "event type",
            });
        }
        check_limit("payload bytes", lengths.payload, EVENT_PAYLOAD_BYTES_MAX)?;
        check_limit("metadata bytes", lengths.metadata, METADATA_BYTES_MAX)?;
        check_limit("tags bytes", lengths.tags, TAGS_BYTES_MAX)?;
        Ok(lengths)
    }

    fn total(self) -> usize {
        EVENT_HEADER_BYTES
            + self.stream
            + self.event_type
            + self.content_type
            + self.tags
            + self.metadata
            + self.payload
    }
}

pub(crate) fn check_limit(
    field: &'static str,
    actual: usize,
    max: usize,
) -> Result<(), EventError> {
    if actual <= max {
        Ok(())
    } else {
        Err(EventError::LimitExceeded { field, actual, max })
    }
}

/// Refuses control characters (Unicode category Cc).
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), EventError> {
    // 0xC2 begins U+0080..=U+00BF, among them the control characters beyond ASCII.
    if name
        .bytes()
        .all(|byte| byte >= 0x20 && byte != 0x7F && byte != 0xC2)
    {
        return Ok(());
    }
    match name.chars().find(|character| character.is_control()) {
        Some(character) => Err(EventError::ControlCharacter {
            field,
            code: u32::from(character),
        }),
        None => Ok(()),
    }
}

impl<'a> EventRef<'a> {
    /// Length of the event that begins at `bytes`, from its header alone; the rest need not be
    /// there yet.
    ///
    /// # Errors
    ///
    /// [`EventError::TooShort`] if the header is not complete, and whatever is wrong with the
    /// header's lengths.
    pub fn parse_prefix(bytes: &[u8]) -> Result<usize, EventError> {
        Ok(Lengths::read(bytes)?.total())
    }

    /// Checks everything: exact length, limits, UTF-8, control characters, duplicates.
    ///
    /// For bytes from outside.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<EventRef<'a>, EventError> {
        let event = EventRef::parse_trusted(bytes)?;
        if event.id() == EventId::default() {
            return Err(EventError::Empty { field: "event id" });
        }
        check_name("stream", event.stream)?;
        check_name("event type", event.event_type)?;
        check_name("content type", event.content_type)?;
        check_tags(event.tags)?;
        check_metadata(event.metadata)?;
        Ok(event)
    }

    /// Checks that the lengths agree and that the names are UTF-8, and no more.
    ///
    /// For bytes whose checksum was verified, so that they are what [`EventRef::parse`] once
    /// accepted.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn parse_trusted(bytes: &'a [u8]) -> Result<EventRef<'a>, EventError> {
        let lengths = Lengths::read(bytes)?;
        let total = lengths.total();
        if bytes.len() < total {
            return Err(EventError::TooShort {
                needed: total,
                available: bytes.len(),
            });
        }
        if bytes.len() > total {
            return Err(EventError::TrailingBytes {
                extra: bytes.len() - total,
            });
        }
        let (stream, rest) = bytes[EVENT_HEADER_BYTES..].split_at(lengths.stream);
        let (event_type, rest) = rest.split_at(lengths.event_type);
        let (content_type, rest) = rest.split_at(lengths.content_type);
        let (tags, rest) = rest.split_at(lengths.tags);
        let (metadata, payload) = rest.split_at(lengths.metadata);
        Ok(EventRef {
            bytes,
            stream: text("stream", stream)?,
            event_type: text("event type", event_type)?,
            content_type: text("content type", content_type)?,
            tags,
            metadata,
            payload,
        })
    }

    /// The event's id.
    #[inline]
    pub fn id(&self) -> EventId {
        EventId(
            *self
                .bytes
                .first_chunk()
                .expect("the header is longer than the id"),
        )
    }

    /// Name of the stream.
    #[inline]
    pub fn stream(&self) -> &'a str {
        self.stream
    }

    /// Type of the event.
    #[inline]
    pub fn event_type(&self) -> &'a str {
        self.event_type
    }

    /// Content type of the payload; may be empty.
    #[inline]
    pub fn content_type(&self) -> &'a str {
        self.content_type
    }

    /// The tags, in the order given by the author.
    #[inline]
    pub fn tags(&self) -> Tags<'a> {
        Tags { rest: self.tags }
    }

    /// The metadata, keys and values, in the order given by the author.
    #[inline]
    pub fn metadata(&self) -> Metadata<'a> {
        Metadata {
            rest: self.metadata,
        }
    }

    /// The value of one metadata key.
    pub fn metadata_value(&self, key: &str) -> Option<&'a str> {
        self.metadata()
            .find(|(candidate, _)| *candidate == key)
            .map(|(_, value)| value)
    }

    /// The payload.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The canonical bytes.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl std::fmt::Debug for EventRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventRef")
            .field("id", &self.id())
            .field("stream", &self.stream)
            .field("event_type", &self.event_type)
            .field("content_type", &self.content_type)
            .field("tags", &self.tags().collect::<Vec<_>>())
            .field("metadata", &self.metadata().collect::<Vec<_>>())
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

fn text<'a>(field: &'static str, bytes: &'a [u8]) -> Result<&'a str, EventError> {
    std::str::from_utf8(bytes).map_err(|_| EventError::NotUtf8 { field })
}

/// Takes a byte string with a one-byte length off the front.
fn take_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// Takes a byte string with a two-byte length off the front.
fn take_long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

fn check_tags(mut rest: &[u8]) -> Result<(), EventError> {
    let mut seen = [""; TAGS_MAX];
    let mut count = 0;
    while !rest.is_empty() {
        let (tag, after) = take_short(rest).ok_or(EventError::Section { field: "tags" })?;
        rest = after;
        check_limit("number of tags", count + 1, TAGS_MAX)?;
        let tag = text("tag", tag)?;
        if tag.is_empty() {
            return Err(EventError::Empty { field: "tag" });
        }
        check_name("tag", tag)?;
        if seen[..count].contains(&tag) {
            return Err(EventError::Duplicate {
                field: "tag",
                name: tag.to_owned(),
            });
        }
        seen[count] = tag;
        count += 1;
    }
    Ok(())
}

fn check_metadata(mut rest: &[u8]) -> Result<(), EventError> {
    let error = || EventError::Section { field: "metadata" };
    let mut seen = [""; METADATA_KEYS_MAX];
    let mut count = 0;
    while !rest.is_empty() {
        let (key, after) = take_short(rest).ok_or_else(error)?;
        let (value, after) = take_long(after).ok_or_else(error)?;
        rest = after;
        check_limit("number of metadata keys", count + 1, METADATA_KEYS_MAX)?;
        let key = text("metadata key", key)?;
        if key.is_empty() {
            return Err(EventError::Empty {
                field: "metadata key",
            });
        }
        check_name("metadata key", key)?;
        text("metadata value", value)?;
        if seen[..count].contains(&key) {
            return Err(EventError::Duplicate {
                field: "metadata key",
                name: key.to_owned(),
            });
        }
        seen[count] = key;
        count += 1;
    }
    Ok(())
}

/// Tags of an event; ends early where the section is malformed, which [`EventRef::parse`] refuses.
#[derive(Debug, Clone)]
pub struct Tags<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Tags<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (tag, rest) = take_short(self.rest)?;
        self.rest = rest;
        std::str::from_utf8(tag).ok()
    }
}

/// Metadata of an event as (key, value); ends early where the section is malformed, which
/// [`EventRef::parse`] refuses.
#[derive(Debug, Clone)]
pub struct Metadata<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Metadata<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let (key, rest) = take_short(self.rest)?;
        let (value, rest) = take_long(rest)?;
        self.rest = rest;
        Some((
            std::str::from_utf8(key).ok()?,
            std::str::from_utf8(value).ok()?,
        ))
    }
}
