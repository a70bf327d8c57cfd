//! The frame: 12 bytes of header, then the payload. All numbers are little-endian.
//!
//! ```text
//! 0 u32 payload_bytes   4 u8 kind   5 u8 flags   6 u16 zero   8 u32 request_id   12 payload
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::wire::{DecodeError, to_usize};

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 12;

/// Bytes of the longest payload.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Kinds with this bit may be skipped by a receiver that does not know them; any other unknown kind
/// is an error.
pub const KIND_SKIPPABLE: u8 = 0x40;

/// Kinds of frame. A server's kinds have bit 7 set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: the first frame.
    Hello = 0x01,
    /// Client: one or more batches to append.
    Append = 0x02,
    /// Client: a read.
    Read = 0x03,
    /// Client: a subscription.
    Subscribe = 0x04,
    /// Client: more bytes that may be sent for a read or subscription.
    Credit = 0x05,
    /// Client: ends a read or subscription.
    Cancel = 0x06,
    /// Client: asks for a sign of life.
    Ping = 0x07,
    /// Client: asks for a stream's head.
    StreamHead = 0x08,
    /// Client: asks for a cursor.
    CursorGet = 0x09,
    /// Server: the answer to Hello.
    Welcome = 0x81,
    /// Server: results of one or more appends.
    AppendReply = 0x82,
    /// Server: events of a read or subscription.
    Page = 0x83,
    /// Server: a read is complete.
    End = 0x84,
    /// Server: a subscription has delivered all that was there.
    CaughtUp = 0x85,
    /// Server: a subscription's place, when nothing else says it.
    Heartbeat = 0x86,
    /// Server: the answer to Ping.
    Pong = 0x87,
    /// Server: a stream's head.
    StreamHeadReply = 0x88,
    /// Server: a cursor.
    CursorReply = 0x89,
    /// Server: a request, or with request id 0 the connection, failed.
    Error = 0x8f,
}

/// A frame whose payload has not been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// Its kind: a [`Kind`], or one that this version does not know.
    pub kind: u8,
    /// Which request it belongs to; 0: the connection, or (Append, AppendReply) many.
    pub request_id: u32,
    /// The payload.
    pub payload: Bytes,
}

/// Takes one frame off the front of `input`; `None` until a whole one is there. The payload shares
/// `input`'s memory.
///
/// # Errors
/// [`DecodeError::FrameTooLarge`] or illegal header bytes: close the connection, the boundary of
/// the next frame is unknown.
pub fn split_frame(input: &mut BytesMut) -> Result<Option<RawFrame>, DecodeError> {
    let Some(payload_bytes) = peek_payload_bytes(input)? else {
        return Ok(None);
    };
    if input.len() < FRAME_HEADER_BYTES + payload_bytes {
        return Ok(None);
    }
    input.advance(4);
    let kind = input.get_u8();
    if input.get_u8() != 0 || input.get_u16_le() != 0 {
        return Err(DecodeError::Illegal { field: "flags" });
    }
    let request_id = input.get_u32_le();
    let payload = input.split_to(payload_bytes).freeze();
    Ok(Some(RawFrame {
        kind,
        request_id,
        payload,
    }))
}

/// Bytes to have in the buffer before [`split_frame`] can succeed: the header, or the whole frame
/// when its header is there. A reader can reserve so much at once.
///
/// # Errors
/// As [`split_frame`].
pub fn frame_bytes_wanted(input: &[u8]) -> Result<usize, DecodeError> {
    Ok(FRAME_HEADER_BYTES + peek_payload_bytes(input)?.unwrap_or(0))
}

fn peek_payload_bytes(mut input: &[u8]) -> Result<Option<usize>, DecodeError> {
    if input.len() < FRAME_HEADER_BYTES {
        return Ok(None);
    }
    let payload_bytes = to_usize(input.get_u32_le());
    if payload_bytes > FRAME_BYTES_MAX {
        return Err(DecodeError::FrameTooLarge {
            payload_bytes: payload_bytes as u64,
            limit: FRAME_BYTES_MAX as u64,
        });
    }
    Ok(Some(payload_bytes))
}

/// Begins a frame; give the result to [`end_frame`] when the payload is written.
#[must_use]
pub fn begin_frame(out: &mut BytesMut, kind: Kind, request_id: u32) -> usize {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind as u8);
    out.put_u8(0);
    out.put_u16_le(0);
    out.put_u32_le(request_id);
    start
}

/// Ends the frame that [`begin_frame`] began at `start`, and returns its bytes, header included.
///
/// # Panics
/// A payload above [`FRAME_BYTES_MAX`]: the writer must have kept to the limits.
pub fn end_frame(out: &mut BytesMut, start: usize) -> usize {
    let frame_bytes = out.len() - start;
    put_frame_bytes(&mut out[start..], frame_bytes);
    frame_bytes
}

/// Writes the length of a frame, header included, at its start.
///
/// # Panics
/// As [`end_frame`].
pub(super) fn put_frame_bytes(frame: &mut [u8], frame_bytes: usize) {
    let payload_bytes = frame_bytes - FRAME_HEADER_BYTES;
    assert!(
        payload_bytes <= FRAME_BYTES_MAX,
        "a frame of {payload_bytes} bytes was written"
    );
    let length = super::wire::to_u32(payload_bytes);
    frame[..4].copy_from_slice(&length.to_le_bytes());
}
