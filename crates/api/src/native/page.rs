//! Page: events of a read or subscription, in the layout in which the log stores them.
//!
//! ```text
//! Page payload: 0 u64 position   8 u64 head_sequence   16 u32 run_count   20 u32 zero   24 runs
//! A run, events of one batch with consecutive sequences:
//!  0 u64 first_sequence   8 u64 timestamp_ns   16 u32 event_count   20 u32 body_bytes   24 body
//! body: checksums u64[n] | revisions u64[n] | lengths u32[n] | the canonical events back to back
//! ```
//!
//! An unfiltered read passes stored batches on as they are; a filter cuts a batch into runs. Within
//! a run events are in ascending order, also in a backward read: only the runs are descending then.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Position;
use super::append::sum_lengths;
use super::frame::{FRAME_HEADER_BYTES, Kind, begin_frame, end_frame, put_frame_bytes};
use super::wire::{DecodeError, Reader, to_u32, to_usize};

/// Bytes of a Page's payload before the runs.
pub(super) const PAGE_FIXED_BYTES: usize = 24;
const RUN_FIXED_BYTES: usize = 24;
const ROW_BYTES: usize = 20;

/// Bytes of a run in a Page: its head, the table, and the events.
pub const fn run_bytes(event_count: usize, event_bytes: usize) -> usize {
    RUN_FIXED_BYTES + event_count * ROW_BYTES + event_bytes
}

/// Events of one batch with consecutive sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The sequence of its first event.
    pub first_sequence: u64,
    /// The timestamp of all its events.
    pub timestamp_ns: u64,
    /// How many, at least 1.
    pub event_count: u32,
    body: Bytes,
}

/// One event of a run. The checksum is the server's word for what it read; compare it with
/// `event_checksum(&event)` to be sure of the way here too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// Its place in the partition.
    pub sequence: u64,
    /// Its place in its stream.
    pub revision: u64,
    /// When it was appended.
    pub timestamp_ns: u64,
    /// xxh64 of the canonical bytes, seed 0.
    pub checksum: u64,
    /// The canonical bytes; they share the page's memory.
    pub event: Bytes,
}

impl Run {
    /// The highest sequence of the run.
    pub fn last_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.event_count) - 1
    }

    /// Its table and events, as stored.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its events, in ascending order.
    pub fn events(&self) -> RunEvents {
        let count = to_usize(self.event_count);
        let mut rest = self.body.clone();
        let checksums = rest.split_to(count * 8);
        let revisions = rest.split_to(count * 8);
        let lengths = rest.split_to(count * 4);
        RunEvents {
            sequence: self.first_sequence,
            timestamp_ns: self.timestamp_ns,
            checksums,
            revisions,
            lengths,
            data: rest,
        }
    }
}

/// The events of a [`Run`]; owns what it needs.
#[derive(Clone, Debug)]
pub struct RunEvents {
    sequence: u64,
    timestamp_ns: u64,
    checksums: Bytes,
    revisions: Bytes,
    lengths: Bytes,
    data: Bytes,
}

impl Iterator for RunEvents {
    type Item = EventRow;

    fn next(&mut self) -> Option<EventRow> {
        if self.lengths.is_empty() {
            return None;
        }
        let event = self.data.split_to(to_usize(self.lengths.get_u32_le()));
        let sequence = self.sequence;
        self.sequence += 1;
        Some(EventRow {
            sequence,
            revision: self.revisions.get_u64_le(),
            timestamp_ns: self.timestamp_ns,
            checksum: self.checksums.get_u64_le(),
            event,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.lengths.len() / 4;
        (count, Some(count))
    }
}

impl ExactSizeIterator for RunEvents {}

/// Events of a read or subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The place of the read after this page.
    pub position: Position,
    runs: Vec<Run>,
    payload_bytes: usize,
}

impl Page {
    /// The runs, in the read's order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// What the page costs of the credit: the whole frame.
    pub fn credit_bytes(&self) -> u32 {
        to_u32(FRAME_HEADER_BYTES + self.payload_bytes)
    }

    /// How many events there are.
    pub fn event_count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.event_count)).sum()
    }

    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let payload_bytes = payload.len();
        let mut reader = Reader::new(payload);
        let position = reader.u64("position")?;
        let head_sequence = reader.u64("head_sequence")?;
        let count = to_usize(reader.u32("run_count")?);
        if reader.u32("reserved")? != 0 {
            return Err(DecodeError::Illegal { field: "reserved" });
        }
        if count > reader.remaining() / RUN_FIXED_BYTES {
            return Err(DecodeError::Truncated { field: "runs" });
        }
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            runs.push(decode_run(&mut reader)?);
        }
        reader.finish()?;
        Ok(Self {
            position: Position {
                position,
                head_sequence,
            },
            runs,
            payload_bytes,
        })
    }
}

fn decode_run(reader: &mut Reader) -> Result<Run, DecodeError> {
    let first_sequence = reader.u64("first_sequence")?;
    let timestamp_ns = reader.u64("timestamp_ns")?;
    let event_count = reader.u32("event_count")?;
    let body_bytes = to_usize(reader.u32("body_bytes")?);
    let body = reader.bytes(body_bytes, "body")?;
    let count = to_usize(event_count);
    let table_bytes = count
        .checked_mul(ROW_BYTES)
        .filter(|bytes| *bytes <= body.len());
    let table_bytes = table_bytes.ok_or(DecodeError::Illegal {
        field: "event_count",
    })?;
    let data_bytes = (body.len() - table_bytes) as u64;
    if sum_lengths(&body[count * 16..table_bytes]) != data_bytes {
        return Err(DecodeError::Illegal { field: "lengths" });
    }
    // Sequences start at 1, and a run's last one must exist.
    let last_exists = first_sequence.checked_add(u64::from(event_count)).is_some();
    if count == 0 || first_sequence == 0 || !last_exists {
        return Err(DecodeError::Illegal {
            field: "first_sequence",
        });
    }
    Ok(Run {
        first_sequence,
        timestamp_ns,
        event_count,
        body,
    })
}

/// Writes a Page of single events into a buffer, run by run.
#[derive(Debug)]
pub struct PageEncoder {
    start: usize,
    run_count: u32,
}

impl PageEncoder {
    /// Begins the frame at the end of `out`.
    pub fn begin(out: &mut BytesMut, request_id: u32) -> Self {
        let start = begin_frame(out, Kind::Page, request_id);
        out.put_bytes(0, PAGE_FIXED_BYTES);
        Self {
            start,
            run_count: 0,
        }
    }

    /// Adds a run of single events: checksum, revision, canonical bytes.
    pub fn push_rows(
        &mut self,
        out: &mut BytesMut,
        first_sequence: u64,
        timestamp_ns: u64,
        rows: &[(u64, u64, &[u8])],
    ) {
        let event_bytes: usize = rows.iter().map(|(_, _, event)| event.len()).sum();
        let body_bytes = rows.len() * ROW_BYTES + event_bytes;
        out.reserve(RUN_FIXED_BYTES + body_bytes);
        put_run_head(
            out,
            first_sequence,
            timestamp_ns,
            to_u32(rows.len()),
            to_u32(body_bytes),
        );
        self.run_count += 1;
        rows.iter()
            .for_each(|(checksum, _, _)| out.put_u64_le(*checksum));
        rows.iter()
            .for_each(|(_, revision, _)| out.put_u64_le(*revision));
        rows.iter()
            .for_each(|(_, _, event)| out.put_u32_le(to_u32(event.len())));
        rows.iter().for_each(|(_, _, event)| out.put_slice(event));
    }

    /// Bytes of the frame so far, header included: what it will cost of the credit.
    pub fn frame_bytes(&self, out: &BytesMut) -> usize {
        out.len() - self.start
    }

    /// How many runs there are.
    pub fn run_count(&self) -> u32 {
        self.run_count
    }

    /// Ends the frame; returns its bytes, header included.
    pub fn finish(self, out: &mut BytesMut, position: Position) -> usize {
        put_fixed(&mut out[self.start..], position, self.run_count);
        end_frame(out, self.start)
    }
}

fn put_run_head(
    out: &mut BytesMut,
    first_sequence: u64,
    timestamp_ns: u64,
    event_count: u32,
    body_bytes: u32,
) {
    out.put_u64_le(first_sequence);
    out.put_u64_le(timestamp_ns);
    out.put_u32_le(event_count);
    out.put_u32_le(body_bytes);
}

/// Fills in, at the start of a frame, what is known at its end.
fn put_fixed(frame: &mut [u8], position: Position, run_count: u32) {
    let mut fixed = &mut frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + PAGE_FIXED_BYTES];
    fixed.put_u64_le(position.position);
    fixed.put_u64_le(position.head_sequence);
    fixed.put_u32_le(run_count);
}

/// Bodies below this are copied into the frame: a piece of its own would cost more than the copy.
const PIECE_BYTES_MIN: usize = 4096;

/// A Page of stored batches, in pieces to be sent one after another: large bodies can be passed on
/// as they are, in the memory that they were read into.
#[derive(Debug)]
pub struct PagePieces {
    /// The frame without the bodies in `bodies`.
    written: BytesMut,
    /// Bodies, each with the length of `written` that goes before it.
    bodies: Vec<(usize, Bytes)>,
    bodies_bytes: usize,
    run_count: u32,
}

impl PagePieces {
    /// Begins a Page of a request.
    pub fn begin(request_id: u32) -> Self {
        let mut written = BytesMut::new();
        let start = begin_frame(&mut written, Kind::Page, request_id);
        assert_eq!(start, 0, "the frame is alone in its buffer");
        written.put_bytes(0, PAGE_FIXED_BYTES);
        Self {
            written,
            bodies: Vec::new(),
            bodies_bytes: 0,
            run_count: 0,
        }
    }

    /// Adds a stored batch (table and events) as it is. With `share`, a large one is not copied: the
    /// frame then holds on to whatever memory it lies in until it is sent.
    pub fn push_run(
        &mut self,
        first_sequence: u64,
        timestamp_ns: u64,
        event_count: u32,
        body: &Bytes,
        share: bool,
    ) {
        let body_bytes = to_u32(body.len());
        put_run_head(
            &mut self.written,
            first_sequence,
            timestamp_ns,
            event_count,
            body_bytes,
        );
        if !share || body.len() < PIECE_BYTES_MIN {
            self.written.put_slice(body);
        } else {
            self.bodies_bytes += body.len();
            self.bodies.push((self.written.len(), body.clone()));
        }
        self.run_count += 1;
    }

    /// Bytes of the frame so far, header included: what it will cost of the credit.
    pub fn frame_bytes(&self) -> usize {
        self.written.len() + self.bodies_bytes
    }

    /// How many runs there are.
    pub fn run_count(&self) -> u32 {
        self.run_count
    }

    /// Ends the frame, and returns its pieces in order; none is empty.
    pub fn finish(mut self, position: Position) -> Vec<Bytes> {
        put_fixed(&mut self.written, position, self.run_count);
        let frame_bytes = self.frame_bytes();
        put_frame_bytes(&mut self.written, frame_bytes);
        let mut written = self.written.freeze();
        let mut pieces = Vec::with_capacity(self.bodies.len() * 2 + 1);
        let mut at = 0;
        for (end, body) in self.bodies {
            pieces.push(written.split_to(end - at));
            pieces.push(body);
            at = end;
        }
        if !written.is_empty() {
            pieces.push(written);
        }
        pieces
    }
}
