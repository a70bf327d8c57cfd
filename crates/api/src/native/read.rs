//! Read and Subscribe, and the filter that both carry.
//!
//! ```text
//! Read payload:
//!  0 u8 scope (0 partition, 1 stream)   1 u8 direction (0 forward, 1 backward)
//!  2 u8 start (0 edge, 1 sequence, 2 timestamp, 3 revision)   3 u8 zero
//!  4 u32 partition   8 u64 start_value   16 u64 max_events (0: no bound)
//! 24 u64 until_sequence (0: none)   32 u32 credit_bytes   36 u32 page_bytes (0: the server's)
//! 40 u8 length, stream (empty unless scope 1)   filter
//!
//! Subscribe payload:
//!  0 u32 partition   4 u8 start (0 first, 1 sequence, 2 timestamp, 3 head, 4 cursor)   5 u8 zero
//!  6 u16 heartbeat_ms (0: the server's)   8 u64 start_value   16 u32 credit_bytes   20 u32 zero
//! 24 u8 length, cursor name (empty unless start 4)   filter
//!
//! filter: u8 streams (0 all, 1 one, 2 prefix, 3 all with the system's), u8 length, name,
//!         u8 match_count, matches.   match: u8 n, (u8 length, type)*, u8 n, (u8 length, tag)*
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{FRAME_HEADER_BYTES, Kind, begin_frame, end_frame};
use super::wire::{DecodeError, EncodeError, Reader, Text};
use crate::{FILTER_MATCHES_MAX, FILTER_NAMES_MAX};

/// Bytes of the longest Page payload that a server makes, unless a single event needs more.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// The smallest credit to begin with: a Page with the largest event.
pub const CREDIT_BYTES_MIN: usize =
    FRAME_HEADER_BYTES + super::page::PAGE_FIXED_BYTES + super::run_bytes(1, EVENT_BYTES_MAX);

const EVENT_BYTES_MAX: usize = truthdb_event::EVENT_BYTES_MAX;

/// The shortest heartbeat interval, in milliseconds.
pub const HEARTBEAT_MS_MIN: u16 = 100;

/// The longest heartbeat interval, in milliseconds.
pub const HEARTBEAT_MS_MAX: u16 = 60_000;

/// Direction of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    #[default]
    Forward,
    /// Newest first.
    Backward,
}

/// One alternative: an event whose type is one of `types` (or `types` is empty) and that has all of
/// `tags`. Not both may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventMatch {
    /// Any of these.
    pub types: Vec<Text>,
    /// All of these.
    pub tags: Vec<Text>,
}

/// Whose events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StreamFilter {
    /// All but the system's.
    #[default]
    All,
    /// Those of one stream.
    One(Text),
    /// Those of streams whose names begin so.
    Prefix(Text),
    /// All, also the system's.
    AllWithSystem,
}

/// Which events are wanted: of these streams, and (unless `matches` is empty) matching any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Streams.
    pub streams: StreamFilter,
    /// Alternatives.
    pub matches: Vec<EventMatch>,
}

impl Filter {
    /// Whether an event passes.
    pub fn accepts(&self, event: &truthdb_event::EventRef<'_>) -> bool {
        let stream = event.stream();
        let stream_accepted = match &self.streams {
            StreamFilter::All => !truthdb_event::is_system_stream(stream),
            StreamFilter::One(name) => stream == name.as_str(),
            StreamFilter::Prefix(prefix) => stream.starts_with(prefix.as_str()),
            StreamFilter::AllWithSystem => true,
        };
        stream_accepted
            && (self.matches.is_empty() || self.matches.iter().any(|one| one.accepts(event)))
    }

    fn check(&self) -> Result<(), EncodeError> {
        if self.matches.is_empty() {
            Ok(())
        } else {
            check_matches(&self.matches)
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        let none = Text::default();
        let (kind, name) = match &self.streams {
            StreamFilter::All => (0, &none),
            StreamFilter::One(name) => (1, name),
            StreamFilter::Prefix(prefix) => (2, prefix),
            StreamFilter::AllWithSystem => (3, &none),
        };
        out.put_u8(kind);
        name.encode(out);
        encode_matches(out, &self.matches);
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let kind = reader.u8("filter streams")?;
        let name = reader.text("filter stream")?;
        let streams = match (kind, name.is_empty()) {
            (0, true) => StreamFilter::All,
            (1, false) => StreamFilter::One(name),
            (2, _) => StreamFilter::Prefix(name),
            (3, true) => StreamFilter::AllWithSystem,
            _ => {
                return Err(DecodeError::Illegal {
                    field: "filter streams",
                });
            }
        };
        Ok(Self {
            streams,
            matches: decode_matches(reader)?,
        })
    }
}

impl EventMatch {
    /// Whether an event matches.
    pub fn accepts(&self, event: &truthdb_event::EventRef<'_>) -> bool {
        let event_type = event.event_type();
        let type_accepted =
            self.types.is_empty() || self.types.iter().any(|name| name.as_str() == event_type);
        type_accepted
            && self
                .tags
                .iter()
                .all(|wanted| event.tags().any(|tag| tag == wanted.as_str()))
    }
}

pub(super) fn check_matches(matches: &[EventMatch]) -> Result<(), EncodeError> {
    EncodeError::check("matches", matches.len(), FILTER_MATCHES_MAX)?;
    for one in matches {
        EncodeError::check("types", one.types.len(), FILTER_NAMES_MAX)?;
        EncodeError::check("tags", one.tags.len(), FILTER_NAMES_MAX)?;
    }
    Ok(())
}

/// Writes alternatives that [`check_matches`] has passed.
pub(super) fn encode_matches(out: &mut BytesMut, matches: &[EventMatch]) {
    let count = |n: usize| u8::try_from(n).expect("checked by the caller");
    out.put_u8(count(matches.len()));
    for one in matches {
        for names in [&one.types, &one.tags] {
            out.put_u8(count(names.len()));
            names.iter().for_each(|name| name.encode(out));
        }
    }
}

pub(super) fn decode_matches(reader: &mut Reader) -> Result<Vec<EventMatch>, DecodeError> {
    let count = usize::from(reader.u8("match_count")?);
    if count > FILTER_MATCHES_MAX {
        return Err(DecodeError::Illegal {
            field: "match_count",
        });
    }
    let mut matches = Vec::new();
    for _ in 0..count {
        let types = decode_names(reader, "types")?;
        let tags = decode_names(reader, "tags")?;
        if types.is_empty() && tags.is_empty() {
            return Err(DecodeError::Illegal { field: "match" });
        }
        matches.push(EventMatch { types, tags });
    }
    Ok(matches)
}

fn decode_names(reader: &mut Reader, field: &'static str) -> Result<Vec<Text>, DecodeError> {
    let count = usize::from(reader.u8(field)?);
    if count > FILTER_NAMES_MAX {
        return Err(DecodeError::Illegal { field });
    }
    (0..count).map(|_| reader.text(field)).collect()
}

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadScope {
    /// A partition.
    Partition,
    /// One stream of it.
    Stream(Text),
}

/// Where a read starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadStart {
    /// At the first event (forward) or the last (backward).
    #[default]
    Edge,
    /// At this sequence, inclusive; of a partition.
    Sequence(u64),
    /// Forward: at the first event of this time or later; backward: at the last of it or earlier.
    Timestamp(u64),
    /// At this revision, inclusive; of a stream.
    Revision(u64),
}

/// A read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Of a partition or of one stream.
    pub scope: ReadScope,
    /// The partition.
    pub partition: u32,
    /// Direction.
    pub direction: Direction,
    /// Start.
    pub start: ReadStart,
    /// End after so many events; 0: no bound.
    pub max_events: u64,
    /// Forward: nothing after this sequence; 0: no bound.
    pub until_sequence: u64,
    /// The credit to begin with, at least [`CREDIT_BYTES_MIN`].
    pub credit_bytes: u32,
    /// Bytes of a Page that the client likes best; 0: the server's choice.
    pub page_bytes: u32,
    /// Which events; with [`ReadScope::Stream`] only `matches`.
    pub filter: Filter,
}

impl Read {
    /// Writes the frame.
    ///
    /// # Errors
    /// A filter above its limits; nothing was written then.
    pub fn encode(&self, out: &mut BytesMut, request_id: u32) -> Result<(), EncodeError> {
        self.filter.check()?;
        let begin = begin_frame(out, Kind::Read, request_id);
        let none = Text::default();
        let (scope, stream) = match &self.scope {
            ReadScope::Partition => (0, &none),
            ReadScope::Stream(name) => (1, name),
        };
        let (start, value) = match self.start {
            ReadStart::Edge => (0, 0),
            ReadStart::Sequence(value) => (1, value),
            ReadStart::Timestamp(value) => (2, value),
            ReadStart::Revision(value) => (3, value),
        };
        out.put_u8(scope);
        out.put_u8(u8::from(self.direction == Direction::Backward));
        out.put_u8(start);
        out.put_u8(0);
        out.put_u32_le(self.partition);
        out.put_u64_le(value);
        out.put_u64_le(self.max_events);
        out.put_u64_le(self.until_sequence);
        out.put_u32_le(self.credit_bytes);
        out.put_u32_le(self.page_bytes);
        stream.encode(out);
        self.filter.encode(out);
        end_frame(out, begin);
        Ok(())
    }

    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let scope = reader.u8("scope")?;
        let direction = match reader.u8("direction")? {
            0 => Direction::Forward,
            1 => Direction::Backward,
            _ => return Err(DecodeError::Illegal { field: "direction" }),
        };
        let start = reader.u8("start")?;
        reader.zero_u8("reserved")?;
        let partition = reader.u32("partition")?;
        let value = reader.u64("start_value")?;
        let start = match (start, value, scope) {
            (0, 0, _) => ReadStart::Edge,
            (1, value, 0) => ReadStart::Sequence(value),
            (2, value, 0) => ReadStart::Timestamp(value),
            (3, value, 1) => ReadStart::Revision(value),
            _ => return Err(DecodeError::Illegal { field: "start" }),
        };
        let max_events = reader.u64("max_events")?;
        let until_sequence = reader.u64("until_sequence")?;
        let credit_bytes = reader.u32("credit_bytes")?;
        let page_bytes = reader.u32("page_bytes")?;
        let stream = reader.text("stream")?;
        let scope = match (scope, stream.is_empty()) {
            (0, true) => ReadScope::Partition,
            (1, false) => ReadScope::Stream(stream),
            _ => return Err(DecodeError::Illegal { field: "scope" }),
        };
        let filter = Filter::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            scope,
            partition,
            direction,
            start,
            max_events,
            until_sequence,
            credit_bytes,
            page_bytes,
            filter,
        })
    }
}

/// Where a subscription starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SubscribeStart {
    /// At the first event there is.
    #[default]
    First,
    /// At this sequence, inclusive; one beyond the end waits for it.
    Sequence(u64),
    /// At the first event of this time or later.
    Timestamp(u64),
    /// After the last event committed now.
    Head,
    /// After the position of this cursor of the partition.
    Cursor(Text),
}

/// A subscription. Its first answer is a Heartbeat that says where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// The partition.
    pub partition: u32,
    /// Start.
    pub start: SubscribeStart,
    /// Longest time without a frame; 0: the server's choice.
    pub heartbeat_ms: u16,
    /// The credit to begin with, at least [`CREDIT_BYTES_MIN`].
    pub credit_bytes: u32,
    /// Which events.
    pub filter: Filter,
}

impl Subscribe {
    /// Writes the frame.
    ///
    /// # Errors
    /// A filter above its limits; nothing was written then.
    pub fn encode(&self, out: &mut BytesMut, request_id: u32) -> Result<(), EncodeError> {
        self.filter.check()?;
        let begin = begin_frame(out, Kind::Subscribe, request_id);
        let none = Text::default();
        let (start, value, cursor) = match &self.start {
            SubscribeStart::First => (0, 0, &none),
            SubscribeStart::Sequence(value) => (1, *value, &none),
            SubscribeStart::Timestamp(value) => (2, *value, &none),
            SubscribeStart::Head => (3, 0, &none),
            SubscribeStart::Cursor(name) => (4, 0, name),
        };
        out.put_u32_le(self.partition);
        out.put_u8(start);
        out.put_u8(0);
        out.put_u16_le(self.heartbeat_ms);
        out.put_u64_le(value);
        out.put_u32_le(self.credit_bytes);
        out.put_u32_le(0);
        cursor.encode(out);
        self.filter.encode(out);
        end_frame(out, begin);
        Ok(())
    }

    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let partition = reader.u32("partition")?;
        let start = reader.u8("start")?;
        reader.zero_u8("reserved")?;
        let heartbeat_ms = reader.u16("heartbeat_ms")?;
        let value = reader.u64("start_value")?;
        let credit_bytes = reader.u32("credit_bytes")?;
        if reader.u32("reserved")? != 0 {
            return Err(DecodeError::Illegal { field: "reserved" });
        }
        let cursor = reader.text("cursor")?;
        let start = match (start, value, cursor.is_empty()) {
            (0, 0, true) => SubscribeStart::First,
            (1, value, true) => SubscribeStart::Sequence(value),
            (2, value, true) => SubscribeStart::Timestamp(value),
            (3, 0, true) => SubscribeStart::Head,
            (4, 0, false) => SubscribeStart::Cursor(cursor),
            _ => return Err(DecodeError::Illegal { field: "start" }),
        };
        let interval_is_legal =
            heartbeat_ms == 0 || (HEARTBEAT_MS_MIN..=HEARTBEAT_MS_MAX).contains(&heartbeat_ms);
        if !interval_is_legal {
            return Err(DecodeError::Illegal {
                field: "heartbeat_ms",
            });
        }
        let filter = Filter::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            partition,
            start,
            heartbeat_ms,
            credit_bytes,
            filter,
        })
    }
}
