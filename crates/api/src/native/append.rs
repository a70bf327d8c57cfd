//! Append and AppendReply: many batches in one frame, many results in one frame.
//!
//! ```text
//! Append payload: u32 entry_count, entries. An entry:
//!  0 u32 entry_bytes (after this field)    4 u32 request_id     8 u32 partition
//! 12 u16 expectation_count   14 u8 flags (bit 0 cursor, bit 1 condition)   15 u8 zero
//! 16 u32 event_count   20 u32 event_bytes
//! 24 expectations: (u8 kind, u64 revision, u8 length, stream)*
//!    cursor: u64 position, u8 length, name
//!    condition: u64 after_sequence, u8 match_count, matches as in a filter
//!    checksums u64[event_count], lengths u32[event_count], the canonical events back to back
//!
//! AppendReply payload: u32 result_count, results. A result:
//!  0 u32 request_id   4 u8 status (0 appended, 1 error)   5 u8 flags (bit 0 already appended)
//!  6 u8 durability    7 u8 zero   8 u32 body_bytes
//! 12 appended: u64 first_sequence, u64 last_sequence, u64 timestamp_ns, u64 last_revision of each
//!    stream in order of first appearance;   error: a serialised ErrorDetail
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{FRAME_BYTES_MAX, Kind, begin_frame, end_frame};
use super::read::{EventMatch, decode_matches, encode_matches};
use super::session::Durability;
use super::wire::{DecodeError, EncodeError, Reader, Text, to_u32, to_usize};
use crate::{ApiError, CURSOR_NAME_BYTES_MAX, EXPECTATIONS_MAX};

const ENTRY_FIXED_BYTES: usize = 24;
const RESULT_FIXED_BYTES: usize = 12;
const FLAG_CURSOR: u8 = 1;
const FLAG_CONDITION: u8 = 2;
const ROW_BYTES: usize = 12;

/// Bytes of entries after which a writer begins another Append frame. A single entry may be longer:
/// the largest batch fits a frame with room for its expectations.
pub const APPEND_FRAME_EVENTS_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(
    truthdb_event::BATCH_BYTES_MAX + EXPECTATIONS_MAX * (10 + Text::BYTES_MAX) + 1024 * 1024
        < FRAME_BYTES_MAX
);

/// What an append expects of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedRevision {
    /// Nothing.
    Any,
    /// No event yet.
    NoStream,
    /// At least one event.
    StreamExists,
    /// Exactly this newest revision.
    Exact(u64),
}

impl std::fmt::Display for ExpectedRevision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any revision"),
            Self::NoStream => f.write_str("no stream"),
            Self::StreamExists => f.write_str("an existing stream"),
            Self::Exact(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// An expectation on one stream of the batch's partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamExpectation {
    /// The stream.
    pub stream: Text,
    /// What is expected of it.
    pub expected: ExpectedRevision,
}

/// A cursor's new position, committed with the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorUpdate {
    /// The cursor's name, 1..=[`CURSOR_NAME_BYTES_MAX`] bytes.
    pub name: Text,
    /// The position.
    pub position: u64,
}

/// Fails the append if an event after `after_sequence` matches any of `matches`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendCondition {
    /// Events up to this one are known to the caller.
    pub after_sequence: u64,
    /// Alternatives.
    pub matches: Vec<EventMatch>,
}

/// All of an append but its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendHead {
    /// The partition.
    pub partition: u32,
    /// Expectations, at most one of each stream.
    pub expectations: Vec<StreamExpectation>,
    /// A cursor to commit in the same batch.
    pub cursor: Option<CursorUpdate>,
    /// An append condition.
    pub condition: Option<AppendCondition>,
}

/// The events of one append, as they came: whether they are legal is still to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendEvents {
    table: Bytes,
    data: Bytes,
    count: usize,
}

impl AppendEvents {
    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none (legal only with a cursor).
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The canonical bytes of all events, back to back.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Checksum (xxh64, seed 0, as the client computed it) and canonical bytes of each event.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &[u8])> {
        let (mut checksums, mut lengths) = self.table.split_at(self.count * 8);
        let mut data = &self.data[..];
        (0..self.count).map(move |_| {
            let checksum = checksums.get_u64_le();
            let (event, rest) = data.split_at(to_usize(lengths.get_u32_le()));
            data = rest;
            (checksum, event)
        })
    }
}

/// One append of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendEntry {
    /// Comes back with the result.
    pub request_id: u32,
    /// Partition, expectations, cursor, condition.
    pub head: AppendHead,
    /// The events.
    pub events: AppendEvents,
}

/// An Append frame: its entries' boundaries are known to be right, their contents are not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendFrame {
    entries: Bytes,
    count: usize,
}

impl AppendFrame {
    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let count = to_usize(reader.u32("entry_count")?);
        let entries = reader.bytes(reader.remaining(), "entries")?;
        let mut walk = &entries[..];
        for _ in 0..count {
            if walk.len() < ENTRY_FIXED_BYTES {
                return Err(DecodeError::Truncated { field: "entries" });
            }
            let entry_bytes = to_usize(walk.get_u32_le());
            if entry_bytes < ENTRY_FIXED_BYTES - 4 || entry_bytes > walk.len() {
                return Err(DecodeError::Illegal {
                    field: "entry_bytes",
                });
            }
            walk.advance(entry_bytes);
        }
        match walk.len() {
            0 => Ok(Self { entries, count }),
            bytes => Err(DecodeError::TrailingBytes { bytes }),
        }
    }

    /// How many appends there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Decodes the entries one by one. An entry that is not legal is an error for its request id
    /// and does not harm the others.
    pub fn into_entries(mut self) -> impl Iterator<Item = Result<AppendEntry, (u32, DecodeError)>> {
        (0..self.count).map(move |_| {
            let entry_bytes = to_usize(self.entries.get_u32_le());
            let mut entry = self.entries.split_to(entry_bytes);
            let request_id = entry.get_u32_le();
            decode_entry(request_id, entry).map_err(|error| (request_id, error))
        })
    }
}

fn decode_entry(request_id: u32, bytes: Bytes) -> Result<AppendEntry, DecodeError> {
    let mut reader = Reader::new(bytes);
    let partition = reader.u32("partition")?;
    let expectation_count = usize::from(reader.u16("expectation_count")?);
    let flags = reader.u8("flags")?;
    reader.zero_u8("reserved")?;
    let count = to_usize(reader.u32("event_count")?);
    let event_bytes = to_usize(reader.u32("event_bytes")?);
    if flags & !(FLAG_CURSOR | FLAG_CONDITION) != 0 {
        return Err(DecodeError::Illegal { field: "flags" });
    }
    if expectation_count > EXPECTATIONS_MAX {
        return Err(DecodeError::Illegal {
            field: "expectation_count",
        });
    }
    let mut head = AppendHead {
        partition,
        ..AppendHead::default()
    };
    for _ in 0..expectation_count {
        head.expectations.push(decode_expectation(&mut reader)?);
    }
    if flags & FLAG_CURSOR != 0 {
        let position = reader.u64("position")?;
        let name = reader.text("cursor name")?;
        if name.is_empty() || name.as_str().len() > CURSOR_NAME_BYTES_MAX {
            return Err(DecodeError::Illegal {
                field: "cursor name",
            });
        }
        head.cursor = Some(CursorUpdate { name, position });
    }
    if flags & FLAG_CONDITION != 0 {
        let after_sequence = reader.u64("after_sequence")?;
        let matches = decode_matches(&mut reader)?;
        head.condition = Some(AppendCondition {
            after_sequence,
            matches,
        });
    }
    let table_bytes = count.checked_mul(ROW_BYTES);
    let table_bytes = table_bytes.ok_or(DecodeError::Illegal {
        field: "event_count",
    })?;
    let table = reader.bytes(table_bytes, "event table")?;
    let data = reader.bytes(event_bytes, "events")?;
    reader.finish()?;
    if sum_lengths(&table[count * 8..]) != event_bytes as u64 {
        return Err(DecodeError::Illegal { field: "lengths" });
    }
    Ok(AppendEntry {
        request_id,
        head,
        events: AppendEvents { table, data, count },
    })
}

/// The sum of a table of `u32` lengths.
pub(super) fn sum_lengths(table: &[u8]) -> u64 {
    let (rows, _) = table.as_chunks::<4>();
    rows.iter()
        .map(|row| u64::from(u32::from_le_bytes(*row)))
        .sum()
}

fn decode_expectation(reader: &mut Reader) -> Result<StreamExpectation, DecodeError> {
    let kind = reader.u8("expected")?;
    let revision = reader.u64("revision")?;
    let expected = match (kind, revision) {
        (1, 0) => ExpectedRevision::Any,
        (2, 0) => ExpectedRevision::NoStream,
        (3, 0) => ExpectedRevision::StreamExists,
        (4, revision) => ExpectedRevision::Exact(revision),
        _ => return Err(DecodeError::Illegal { field: "expected" }),
    };
    let stream = reader.text("stream")?;
    Ok(StreamExpectation { stream, expected })
}

/// Where an entry that [`encode_append_entry`] wrote holds its request id (`u32`), so that the same
/// bytes can be sent again under another id.
pub const fn append_request_id_offset() -> usize {
    4
}

/// Writes one entry of an Append frame: `checksums` and `lengths` of the events, and their
/// canonical bytes back to back in `data`.
///
/// # Errors
/// Too many expectations or alternatives; nothing was written then.
///
/// # Panics
/// Tables that do not fit `data`, or more than a frame holds: the caller keeps to the batch limits.
pub fn encode_append_entry(
    out: &mut BytesMut,
    request_id: u32,
    head: &AppendHead,
    checksums: &[u64],
    lengths: &[u32],
    data: &[u8],
) -> Result<(), EncodeError> {
    EncodeError::check("expectations", head.expectations.len(), EXPECTATIONS_MAX)?;
    if let Some(cursor) = &head.cursor {
        EncodeError::check(
            "cursor name",
            cursor.name.as_str().len(),
            CURSOR_NAME_BYTES_MAX,
        )?;
    }
    if let Some(condition) = &head.condition {
        super::read::check_matches(&condition.matches)?;
    }
    assert_eq!(
        checksums.len(),
        lengths.len(),
        "one checksum and one length for each event"
    );
    let length_sum: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
    assert_eq!(
        length_sum,
        data.len() as u64,
        "the lengths are those of the data"
    );
    let start = out.len();
    out.reserve(ENTRY_FIXED_BYTES + 64 + checksums.len() * ROW_BYTES + data.len());
    out.put_u32_le(0);
    out.put_u32_le(request_id);
    out.put_u32_le(head.partition);
    out.put_u16_le(u16::try_from(head.expectations.len()).expect("checked above"));
    let cursor_flag = if head.cursor.is_some() {
        FLAG_CURSOR
    } else {
        0
    };
    let condition_flag = if head.condition.is_some() {
        FLAG_CONDITION
    } else {
        0
    };
    out.put_u8(cursor_flag | condition_flag);
    out.put_u8(0);
    out.put_u32_le(to_u32(checksums.len()));
    out.put_u32_le(to_u32(data.len()));
    for expectation in &head.expectations {
        let (kind, revision) = match expectation.expected {
            ExpectedRevision::Any => (1, 0),
            ExpectedRevision::NoStream => (2, 0),
            ExpectedRevision::StreamExists => (3, 0),
            ExpectedRevision::Exact(revision) => (4, revision),
        };
        out.put_u8(kind);
        out.put_u64_le(revision);
        expectation.stream.encode(out);
    }
    if let Some(cursor) = &head.cursor {
        out.put_u64_le(cursor.position);
        cursor.name.encode(out);
    }
    if let Some(condition) = &head.condition {
        out.put_u64_le(condition.after_sequence);
        encode_matches(out, &condition.matches);
    }
    checksums
        .iter()
        .for_each(|checksum| out.put_u64_le(*checksum));
    lengths.iter().for_each(|length| out.put_u32_le(*length));
    out.put_slice(data);
    let entry_bytes = to_u32(out.len() - start - 4);
    out[start..start + 4].copy_from_slice(&entry_bytes.to_le_bytes());
    Ok(())
}

/// Writes an Append frame into a buffer, entry by entry.
#[derive(Debug)]
pub struct AppendFrameEncoder {
    start: usize,
    count: u32,
}

impl AppendFrameEncoder {
    /// Begins the frame at the end of `out`.
    pub fn begin(out: &mut BytesMut) -> Self {
        let start = begin_frame(out, Kind::Append, 0);
        out.put_u32_le(0);
        Self { start, count: 0 }
    }

    /// Adds an entry that [`encode_append_entry`] wrote, under this request id.
    pub fn push(&mut self, out: &mut BytesMut, request_id: u32, entry: &[u8]) {
        let place = out.len() + append_request_id_offset();
        out.put_slice(entry);
        out[place..place + 4].copy_from_slice(&request_id.to_le_bytes());
        self.count += 1;
    }

    /// Whether an entry of so many bytes still belongs in this frame.
    pub fn has_room(&self, out: &BytesMut, entry_bytes: usize) -> bool {
        self.count == 0 || out.len() - self.start + entry_bytes <= APPEND_FRAME_EVENTS_BYTES_MAX
    }

    /// Ends the frame.
    pub fn finish(self, out: &mut BytesMut) {
        let place = self.start + super::frame::FRAME_HEADER_BYTES;
        out[place..place + 4].copy_from_slice(&self.count.to_le_bytes());
        end_frame(out, self.start);
    }
}

/// A committed batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendedBatch {
    /// The sequence of its first event.
    pub first_sequence: u64,
    /// The highest sequence of the commit; with a cursor, that is the cursor's own event.
    pub last_sequence: u64,
    /// The timestamp of all its events.
    pub timestamp_ns: u64,
    /// For each stream, in order of first appearance, the revision of its last event.
    pub last_revisions: Vec<u64>,
    /// True when these event ids had been appended before.
    pub already_appended: bool,
    /// What this acknowledgement means.
    pub durability: Durability,
}

/// The answer to one append.
pub type AppendResult = Result<AppendedBatch, ApiError>;

/// Writes an AppendReply frame into a buffer, result by result.
#[derive(Debug)]
pub struct AppendReplyEncoder {
    start: usize,
    count: u32,
}

impl AppendReplyEncoder {
    /// Begins the frame at the end of `out`.
    pub fn begin(out: &mut BytesMut) -> Self {
        let start = begin_frame(out, Kind::AppendReply, 0);
        out.put_u32_le(0);
        Self { start, count: 0 }
    }

    /// Adds a committed batch.
    pub fn push_appended(&mut self, out: &mut BytesMut, request_id: u32, batch: &AppendedBatch) {
        let body_bytes = 24 + batch.last_revisions.len() * 8;
        out.reserve(RESULT_FIXED_BYTES + body_bytes);
        out.put_u32_le(request_id);
        out.put_u8(0);
        out.put_u8(u8::from(batch.already_appended));
        out.put_u8(batch.durability as u8);
        out.put_u8(0);
        out.put_u32_le(to_u32(body_bytes));
        out.put_u64_le(batch.first_sequence);
        out.put_u64_le(batch.last_sequence);
        out.put_u64_le(batch.timestamp_ns);
        batch
            .last_revisions
            .iter()
            .for_each(|revision| out.put_u64_le(*revision));
        self.count += 1;
    }

    /// Adds a failed append.
    pub fn push_error(&mut self, out: &mut BytesMut, request_id: u32, error: &ApiError) {
        let body = error.to_bytes();
        out.put_u32_le(request_id);
        out.put_u8(1);
        out.put_slice(&[0; 3]);
        out.put_u32_le(to_u32(body.len()));
        out.put_slice(&body);
        self.count += 1;
    }

    /// How many results there are.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ends the frame.
    pub fn finish(self, out: &mut BytesMut) {
        let place = self.start + super::frame::FRAME_HEADER_BYTES;
        out[place..place + 4].copy_from_slice(&self.count.to_le_bytes());
        end_frame(out, self.start);
    }
}

pub(super) fn decode_reply(payload: Bytes) -> Result<Vec<(u32, AppendResult)>, DecodeError> {
    let mut reader = Reader::new(payload);
    let count = to_usize(reader.u32("result_count")?);
    if count > reader.remaining() / RESULT_FIXED_BYTES {
        return Err(DecodeError::Truncated { field: "results" });
    }
    let mut results = Vec::with_capacity(count);
    for _ in 0..count {
        results.push(decode_result(&mut reader)?);
    }
    reader.finish()?;
    Ok(results)
}

fn decode_result(reader: &mut Reader) -> Result<(u32, AppendResult), DecodeError> {
    let request_id = reader.u32("request_id")?;
    let status = reader.u8("status")?;
    let flags = reader.u8("flags")?;
    let durability = Durability::from_wire(reader.u8("durability")?)?;
    reader.zero_u8("reserved")?;
    let body_bytes = to_usize(reader.u32("body_bytes")?);
    let mut body = reader.bytes(body_bytes, "body")?;
    match (status, flags) {
        (0, 0 | 1) if body_bytes >= 24 && body_bytes.is_multiple_of(8) => {
            let batch = AppendedBatch {
                first_sequence: body.get_u64_le(),
                last_sequence: body.get_u64_le(),
                timestamp_ns: body.get_u64_le(),
                last_revisions: (0..body.len() / 8).map(|_| body.get_u64_le()).collect(),
                already_appended: flags == 1,
                durability,
            };
            Ok((request_id, Ok(batch)))
        }
        (1, 0) => Ok((request_id, Err(super::decode_error(&body)?))),
        _ => Err(DecodeError::Illegal { field: "status" }),
    }
}
