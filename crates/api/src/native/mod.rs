//! The native protocol: frames over TCP or TLS that carry canonical event bytes both ways.
//!
//! A client sends Hello and waits for Welcome (or Error with request id 0, then the end). From then
//! on both sides send frames as they please: requests carry an id that the client chooses (never 0,
//! and not in use), and answers carry it back, in any order.
//!
//! Flow control: a read or subscription begins with a credit in bytes, and every Page costs its
//! whole frame, header included. The server never sends a Page beyond the credit it has. The client
//! grants what it consumed, and must never hold back more than the first credit less
//! [`CREDIT_BYTES_MIN`], so that the largest event always fits in the end. Everything else is
//! small and free of charge. Appends are bounded by the server no longer reading from the socket.
//!
//! Unknown kinds: those with bit [`KIND_SKIPPABLE`] are ignored, others answered with an error
//! (server) or taken as the end of the connection (client). Flags and reserved fields are zero and
//! checked; fields are added only together with a new protocol version.

mod append;
mod frame;
mod page;
mod read;
mod session;
mod wire;

use bytes::{BufMut, Bytes, BytesMut};

pub use append::{
    APPEND_FRAME_EVENTS_BYTES_MAX, AppendCondition, AppendEntry, AppendEvents, AppendFrame,
    AppendFrameEncoder, AppendHead, AppendReplyEncoder, AppendResult, AppendedBatch, CursorUpdate,
    ExpectedRevision, StreamExpectation, append_request_id_offset, encode_append_entry,
};
pub use frame::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, KIND_SKIPPABLE, Kind, RawFrame, begin_frame, end_frame,
    frame_bytes_wanted, split_frame,
};
pub use page::{EventRow, Page, PageEncoder, PagePieces, Run, RunEvents, run_bytes};
pub use read::{
    CREDIT_BYTES_MIN, Direction, EventMatch, Filter, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN,
    PAGE_BYTES_MAX, Read, ReadScope, ReadStart, StreamFilter, Subscribe, SubscribeStart,
};
pub use session::{
    Durability, Hello, Limits, MAGIC, PROTOCOL_VERSION, ROLE_COMPUTE, ROLE_INGEST, ROLE_QUERY,
    ROLE_REPLAY, TOKEN_BYTES_MAX, Welcome,
};
pub use wire::{DecodeError, EncodeError, Text};

use crate::ApiError;
use wire::Reader;

/// A frame from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// The first frame.
    Hello(Hello),
    /// Batches to append.
    Append(AppendFrame),
    /// A read.
    Read(Read),
    /// A subscription.
    Subscribe(Subscribe),
    /// So many more bytes may be sent for the request.
    Credit {
        /// Bytes granted.
        bytes: u32,
    },
    /// Ends the read or subscription; frames of it may still be under way. No answer.
    Cancel,
    /// Asks for a Pong with the same number and the same request id (which may be 0).
    Ping {
        /// Any number.
        nonce: u64,
    },
    /// Asks for a stream's head; only a system stream's partition matters.
    StreamHead {
        /// The partition of a system stream; for others it must be the name's own.
        partition: u32,
        /// The stream.
        stream: Text,
    },
    /// Asks for a cursor.
    CursorGet {
        /// The partition that holds it.
        partition: u32,
        /// Its name.
        name: Text,
    },
    /// Of a kind that this version does not know and may skip.
    Skipped,
}

impl ClientFrame {
    /// Decodes a frame that a client sent.
    ///
    /// # Errors
    /// A payload that is none of its kind, or an unknown kind that may not be skipped: answer with
    /// an error for `raw.request_id`, and go on.
    pub fn decode(raw: RawFrame) -> Result<Self, DecodeError> {
        let payload = raw.payload;
        const HELLO: u8 = Kind::Hello as u8;
        const APPEND: u8 = Kind::Append as u8;
        const READ: u8 = Kind::Read as u8;
        const SUBSCRIBE: u8 = Kind::Subscribe as u8;
        const CREDIT: u8 = Kind::Credit as u8;
        const CANCEL: u8 = Kind::Cancel as u8;
        const PING: u8 = Kind::Ping as u8;
        const STREAM_HEAD: u8 = Kind::StreamHead as u8;
        const CURSOR_GET: u8 = Kind::CursorGet as u8;
        match raw.kind {
            HELLO => Hello::decode(payload).map(Self::Hello),
            APPEND => AppendFrame::decode(payload).map(Self::Append),
            READ => Read::decode(payload).map(Self::Read),
            SUBSCRIBE => Subscribe::decode(payload).map(Self::Subscribe),
            CREDIT => read_all(payload, |r| {
                Ok(Self::Credit {
                    bytes: r.u32("bytes")?,
                })
            }),
            CANCEL => read_all(payload, |_| Ok(Self::Cancel)),
            PING => read_all(payload, |r| {
                Ok(Self::Ping {
                    nonce: r.u64("nonce")?,
                })
            }),
            STREAM_HEAD => read_all(payload, |r| {
                let partition = r.u32("partition")?;
                Ok(Self::StreamHead {
                    partition,
                    stream: r.text("stream")?,
                })
            }),
            CURSOR_GET => read_all(payload, |r| {
                let partition = r.u32("partition")?;
                Ok(Self::CursorGet {
                    partition,
                    name: r.text("name")?,
                })
            }),
            kind if kind & KIND_SKIPPABLE != 0 => Ok(Self::Skipped),
            kind => Err(DecodeError::UnknownKind { kind }),
        }
    }
}

/// A place in a partition, as of a read or subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Everything up to this sequence (backward: down to it) was delivered or passed over.
    pub position: u64,
    /// The partition's last committed sequence; 0: none.
    pub head_sequence: u64,
}

/// A stream's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHead {
    /// The stream's partition.
    pub partition: u32,
    /// The newest revision and its sequence; `None`: the stream has no event.
    pub last: Option<(u64, u64)>,
}

/// A durable cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorState {
    /// The committed position.
    pub position: u64,
    /// The sequence of the event that committed it.
    pub sequence: u64,
    /// When it was committed.
    pub timestamp_ns: u64,
}

/// A frame from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// The answer to Hello.
    Welcome(Welcome),
    /// Results of appends: request id and result.
    AppendReply(Vec<(u32, AppendResult)>),
    /// Events.
    Page(Page),
    /// The read is complete.
    End(Position),
    /// The subscription has delivered all that was there.
    CaughtUp(Position),
    /// The subscription's place.
    Heartbeat(Position),
    /// The answer to Ping.
    Pong {
        /// The ping's number.
        nonce: u64,
    },
    /// A stream's head.
    StreamHeadReply(StreamHead),
    /// A cursor; `None`: it was never committed.
    CursorReply(Option<CursorState>),
    /// The request failed; with request id 0 the connection, which is closed.
    Error(ApiError),
    /// Of a kind that this version does not know and may skip.
    Skipped,
}

impl ServerFrame {
    /// Decodes a frame that a server sent.
    ///
    /// # Errors
    /// A payload that is none of its kind, or an unknown kind that may not be skipped: close the
    /// connection.
    pub fn decode(raw: RawFrame) -> Result<Self, DecodeError> {
        const WELCOME: u8 = Kind::Welcome as u8;
        const APPEND_REPLY: u8 = Kind::AppendReply as u8;
        const PAGE: u8 = Kind::Page as u8;
        const END: u8 = Kind::End as u8;
        const CAUGHT_UP: u8 = Kind::CaughtUp as u8;
        const HEARTBEAT: u8 = Kind::Heartbeat as u8;
        const PONG: u8 = Kind::Pong as u8;
        const STREAM_HEAD_REPLY: u8 = Kind::StreamHeadReply as u8;
        const CURSOR_REPLY: u8 = Kind::CursorReply as u8;
        const ERROR: u8 = Kind::Error as u8;
        let payload = raw.payload;
        match raw.kind {
            WELCOME => Welcome::decode(payload).map(Self::Welcome),
            APPEND_REPLY => append::decode_reply(payload).map(Self::AppendReply),
            PAGE => Page::decode(payload).map(Self::Page),
            END => read_all(payload, decode_position).map(Self::End),
            CAUGHT_UP => read_all(payload, decode_position).map(Self::CaughtUp),
            HEARTBEAT => read_all(payload, decode_position).map(Self::Heartbeat),
            PONG => read_all(payload, |r| {
                Ok(Self::Pong {
                    nonce: r.u64("nonce")?,
                })
            }),
            STREAM_HEAD_REPLY => read_all(payload, decode_stream_head).map(Self::StreamHeadReply),
            CURSOR_REPLY => read_all(payload, decode_cursor).map(Self::CursorReply),
            ERROR => decode_error(&payload).map(Self::Error),
            kind if kind & KIND_SKIPPABLE != 0 => Ok(Self::Skipped),
            kind => Err(DecodeError::UnknownKind { kind }),
        }
    }
}

fn read_all<T>(
    payload: Bytes,
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut reader = Reader::new(payload);
    let value = read(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

fn decode_position(reader: &mut Reader) -> Result<Position, DecodeError> {
    let position = reader.u64("position")?;
    Ok(Position {
        position,
        head_sequence: reader.u64("head_sequence")?,
    })
}

fn decode_exists(reader: &mut Reader) -> Result<bool, DecodeError> {
    match reader.u8("exists")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Illegal { field: "exists" }),
    }
}

fn decode_stream_head(reader: &mut Reader) -> Result<StreamHead, DecodeError> {
    let partition = reader.u32("partition")?;
    let exists = decode_exists(reader)?;
    let last = (reader.u64("last_revision")?, reader.u64("last_sequence")?);
    Ok(StreamHead {
        partition,
        last: exists.then_some(last),
    })
}

fn decode_cursor(reader: &mut Reader) -> Result<Option<CursorState>, DecodeError> {
    let exists = decode_exists(reader)?;
    let state = CursorState {
        position: reader.u64("position")?,
        sequence: reader.u64("sequence")?,
        timestamp_ns: reader.u64("timestamp_ns")?,
    };
    Ok(exists.then_some(state))
}

fn decode_error(bytes: &[u8]) -> Result<ApiError, DecodeError> {
    ApiError::from_bytes(bytes).map_err(|_| DecodeError::Illegal { field: "error" })
}

/// Writes a Credit frame.
pub fn encode_credit(out: &mut BytesMut, request_id: u32, bytes: u32) {
    let start = begin_frame(out, Kind::Credit, request_id);
    out.put_u32_le(bytes);
    end_frame(out, start);
}

/// Writes a Cancel frame.
pub fn encode_cancel(out: &mut BytesMut, request_id: u32) {
    let start = begin_frame(out, Kind::Cancel, request_id);
    end_frame(out, start);
}

/// Writes a Ping frame.
pub fn encode_ping(out: &mut BytesMut, request_id: u32, nonce: u64) {
    let start = begin_frame(out, Kind::Ping, request_id);
    out.put_u64_le(nonce);
    end_frame(out, start);
}

/// Writes a Pong frame.
pub fn encode_pong(out: &mut BytesMut, request_id: u32, nonce: u64) {
    let start = begin_frame(out, Kind::Pong, request_id);
    out.put_u64_le(nonce);
    end_frame(out, start);
}

/// Writes a StreamHead frame.
pub fn encode_stream_head(out: &mut BytesMut, request_id: u32, partition: u32, stream: &Text) {
    let start = begin_frame(out, Kind::StreamHead, request_id);
    out.put_u32_le(partition);
    stream.encode(out);
    end_frame(out, start);
}

/// Writes a CursorGet frame.
pub fn encode_cursor_get(out: &mut BytesMut, request_id: u32, partition: u32, name: &Text) {
    let start = begin_frame(out, Kind::CursorGet, request_id);
    out.put_u32_le(partition);
    name.encode(out);
    end_frame(out, start);
}

fn encode_position(out: &mut BytesMut, kind: Kind, request_id: u32, position: Position) {
    let start = begin_frame(out, kind, request_id);
    out.put_u64_le(position.position);
    out.put_u64_le(position.head_sequence);
    end_frame(out, start);
}

/// Writes an End frame.
pub fn encode_end(out: &mut BytesMut, request_id: u32, position: Position) {
    encode_position(out, Kind::End, request_id, position);
}

/// Writes a CaughtUp frame.
pub fn encode_caught_up(out: &mut BytesMut, request_id: u32, position: Position) {
    encode_position(out, Kind::CaughtUp, request_id, position);
}

/// Writes a Heartbeat frame.
pub fn encode_heartbeat(out: &mut BytesMut, request_id: u32, position: Position) {
    encode_position(out, Kind::Heartbeat, request_id, position);
}

/// Writes a StreamHeadReply frame.
pub fn encode_stream_head_reply(out: &mut BytesMut, request_id: u32, head: StreamHead) {
    let start = begin_frame(out, Kind::StreamHeadReply, request_id);
    out.put_u32_le(head.partition);
    out.put_u8(u8::from(head.last.is_some()));
    let (revision, sequence) = head.last.unwrap_or_default();
    out.put_u64_le(revision);
    out.put_u64_le(sequence);
    end_frame(out, start);
}

/// Writes a CursorReply frame.
pub fn encode_cursor_reply(out: &mut BytesMut, request_id: u32, cursor: Option<CursorState>) {
    let start = begin_frame(out, Kind::CursorReply, request_id);
    out.put_u8(u8::from(cursor.is_some()));
    let state = cursor.unwrap_or(CursorState {
        position: 0,
        sequence: 0,
        timestamp_ns: 0,
    });
    out.put_u64_le(state.position);
    out.put_u64_le(state.sequence);
    out.put_u64_le(state.timestamp_ns);
    end_frame(out, start);
}

/// Writes an Error frame; request id 0 means the connection, which must then be closed.
pub fn encode_error(out: &mut BytesMut, request_id: u32, error: &ApiError) {
    let start = begin_frame(out, Kind::Error, request_id);
    out.put_slice(&error.to_bytes());
    end_frame(out, start);
}

/// Decodes any bytes as frames of both sides and walks through all that they hold: the entry for
/// fuzzing. Returns how many frames were whole.
pub fn fuzz_decode(input: &[u8]) -> usize {
    let mut buffer = BytesMut::from(input);
    let mut frames = 0;
    while let Ok(Some(raw)) = split_frame(&mut buffer) {
        frames += 1;
        if let Ok(ClientFrame::Append(frame)) = ClientFrame::decode(raw.clone()) {
            for entry in frame.into_entries().flatten() {
                frames += entry
                    .events
                    .iter()
                    .map(|(_, event)| event.len().min(1))
                    .sum::<usize>();
            }
        }
        if let Ok(ServerFrame::Page(page)) = ServerFrame::decode(raw) {
            for run in page.runs() {
                frames += run
                    .events()
                    .map(|row| row.event.len().min(1))
                    .sum::<usize>();
            }
        }
    }
    frames
}

#[cfg(test)]
mod tests;
