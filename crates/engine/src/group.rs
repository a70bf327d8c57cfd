//! Groups: batches encoded back to back into an append chunk, to be written and flushed together.
//!
//! A group begins on a block boundary and is padded to the next one, so that a committed block is
//! never written again.
//! Its batches are encoded when they are accepted; what is known only at submission
//! (`flushed_sequence`, and with it
//! the chain of header checksums) is filled in by [`GroupEncoder::finish`].

use std::collections::VecDeque;
use std::sync::Arc;

use truthdb_io::{AppendChunk, BLOCK_BYTES, ChunkWriter, WriteSource};
use truthdb_log::{
    BATCH_HEADER_BYTES, BatchHeader, Place, TABLE_ROW_BYTES, body_checksum, header_checksum,
    padded_batch_bytes, write_table_row,
};

use crate::append::{AppendBatch, AppendSink};
use crate::request::Appended;

/// Chunks have at least this capacity, so that small groups share one.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Rounds up to whole blocks.
pub(crate) fn to_blocks(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Bytes of a batch in an unsealed segment: header, body, and padding to the next batch.
pub(crate) fn framed_bytes(batch: &AppendBatch) -> usize {
    usize::try_from(padded_batch_bytes(batch.stored_bytes())).expect("a batch's bytes are limited")
}

/// An append that waits for its group to be durable.
pub(crate) struct PendingReply {
    pub(crate) sink: Arc<dyn AppendSink>,
    pub(crate) tag: u64,
    pub(crate) appended: Appended,
    pub(crate) batch: Box<AppendBatch>,
}

/// A group that is complete and may be given to the disk.
pub(crate) struct FinishedGroup {
    pub(crate) source: WriteSource,
    /// Where it goes in the segment file.
    pub(crate) offset: u64,
    /// Length of its chunk up to its end: what to publish when it is durable.
    pub(crate) chunk_len: usize,
    pub(crate) last_sequence: u64,
    pub(crate) padding_bytes: usize,
}

struct PendingHeader {
    /// Where the header is in the chunk.
    at: usize,
    header: BatchHeader,
}

/// A chunk of the tail, with its place in the log.
#[derive(Clone)]
pub(crate) struct TailChunk {
    pub(crate) segment: u32,
    /// Offset in the segment file of the chunk's first byte.
    pub(crate) offset: u64,
    pub(crate) chunk: Arc<AppendChunk>,
}

struct OpenChunk {
    writer: ChunkWriter,
    segment: u32,
    offset: u64,
    /// Groups in this chunk that are submitted and not yet durable.
    in_flight: usize,
}

/// Encodes batches into groups. One for each partition; owned by its writer.
pub(crate) struct GroupEncoder {
    pub(crate) place: Place,
    /// Chunks with unpublished groups; the last one takes the current group.
    chunks: VecDeque<OpenChunk>,
    /// Chunks to use again, once no reader holds them.
    spare: Vec<Arc<AppendChunk>>,
    /// Where the current group begins in the last chunk, if one was begun.
    group_start: Option<usize>,
    headers: Vec<PendingHeader>,
    /// Offset in the segment file where the current or the next group begins.
    next_offset: u64,
    pub(crate) previous_checksum: u64,
}

impl GroupEncoder {
    pub(crate) fn new(place: Place, next_offset: u64, previous_checksum: u64) -> GroupEncoder {
        GroupEncoder {
            place,
            chunks: VecDeque::with_capacity(64),
            spare: Vec::with_capacity(64),
            group_start: None,
            headers: Vec::with_capacity(4096),
            next_offset,
            previous_checksum,
        }
    }

    /// Bytes of the current group so far, without padding.
    pub(crate) fn group_bytes(&self) -> usize {
        match (self.group_start, self.chunks.back()) {
            (Some(start), Some(open)) => open.writer.len() - start,
            _ => 0,
        }
    }

    /// Where the current group, or the next one if none is begun, will be written.
    pub(crate) fn group_offset(&self) -> u64 {
        self.next_offset
    }

    /// Whether `bytes` more fit the current group's chunk. With no group begun there is always room.
    pub(crate) fn fits_chunk(&self, bytes: usize) -> bool {
        match (self.group_start, self.chunks.back()) {
            (Some(start), Some(open)) => {
                let end = open.writer.len() + bytes;
                start + to_blocks(end - start) <= open.writer.len() + open.writer.remaining()
            }
            _ => true,
        }
    }

    /// Goes on in another segment. No group may be begun.
    pub(crate) fn enter_segment(&mut self, segment: u32, next_offset: u64) {
        assert!(self.group_start.is_none(), "a group lies in one segment");
        self.place.segment = segment;
        self.next_offset = next_offset;
    }

    /// Makes sure that a group is begun and has room. Returns a new chunk if one was needed.
    fn begin(&mut self, bytes: usize) -> Option<TailChunk> {
        if self.group_start.is_some() {
            return None;
        }
        let needed = to_blocks(bytes);
        let fits = self.chunks.back().is_some_and(|open| {
            open.segment == self.place.segment
                && open.offset + open.writer.len() as u64 == self.next_offset
                && open.writer.remaining() >= needed
        });
        let new = if fits {
            None
        } else {
            Some(self.open_chunk(needed))
        };
        let open = self.chunks.back().expect("a chunk was opened");
        self.group_start = Some(open.writer.len());
        new
    }

    fn open_chunk(&mut self, needed: usize) -> TailChunk {
        while self.chunks.front().is_some_and(|open| open.in_flight == 0) {
            self.chunks.pop_front();
        }
        let capacity = needed.max(CHUNK_BYTES);
        let mut writer = None;
        let mut index = 0;
        while writer.is_none() && index < self.spare.len() {
            if Arc::strong_count(&self.spare[index]) == 1
                && self.spare[index].capacity() >= capacity
            {
                match ChunkWriter::reuse(self.spare.swap_remove(index)) {
                    Ok(reused) => writer = Some(reused),
                    Err(held) => self.spare.push(held),
                }
            }
            index += 1;
        }
        let writer = writer.unwrap_or_else(|| ChunkWriter::new(capacity));
        let tail = TailChunk {
            segment: self.place.segment,
            offset: self.next_offset,
            chunk: Arc::clone(writer.chunk()),
        };
        self.chunks.push_back(OpenChunk {
            writer,
            segment: self.place.segment,
            offset: self.next_offset,
            in_flight: 0,
        });
        tail
    }

    /// Gives a chunk back that the tail cache no longer needs. Beyond `spare_max`, and larger ones,
    /// are freed.
    pub(crate) fn recycle(&mut self, chunk: Arc<AppendChunk>, spare_max: usize) {
        if chunk.capacity() == CHUNK_BYTES && self.spare.len() < spare_max {
            self.spare.push(chunk);
        }
    }

    /// Adds a batch to the current group. `revisions[i]` is the revision of its event `i`.
    /// Returns the batch's offset in the segment file, and a new chunk if one was begun.
    pub(crate) fn add(
        &mut self,
        batch: &AppendBatch,
        revisions: &[u64],
        first_sequence: u64,
        timestamp_ns: u64,
    ) -> (u64, Option<TailChunk>) {
        let framed = framed_bytes(batch);
        let new_chunk = self.begin(framed);
        let group_start = self.group_start.expect("a group was begun");
        let open = self.chunks.back_mut().expect("a group has a chunk");
        let at = open.writer.len();
        let event_count = u32::try_from(batch.events.len()).expect("a batch's events are limited");
        let body_bytes = batch.stored_bytes();
        let bytes = open.writer.spare(framed);
        let (head, rest) = bytes.split_at_mut(BATCH_HEADER_BYTES);
        head.fill(0);
        let (body, pad) = rest.split_at_mut(body_bytes);
        pad.fill(0);
        let mut write_at = batch.events.len() * TABLE_ROW_BYTES;
        for (index, event) in batch.events.iter().enumerate() {
            let row = u32::try_from(index).expect("a batch's events are limited");
            write_table_row(
                body,
                event_count,
                row,
                event.checksum,
                revisions[index],
                event.bytes,
            );
            let canonical = batch.event(index);
            body[write_at..write_at + canonical.len()].copy_from_slice(canonical);
            write_at += canonical.len();
        }
        let offset = self.next_offset + (at - group_start) as u64;
        let header = BatchHeader {
            mark: false,
            clean_stop: false,
            place: self.place,
            offset,
            first_sequence,
            timestamp_ns,
            previous_checksum: 0,
            body_checksum: body_checksum(body, event_count),
            flushed_sequence: 0,
            flushed_offset: 0,
            event_count,
            body_bytes: u32::try_from(body_bytes).expect("a batch's bytes are limited"),
        };
        self.headers.push(PendingHeader { at, header });
        (offset, new_chunk)
    }

    /// Makes a group of one mark: no events, it says what is flushed.
    pub(crate) fn add_mark(
        &mut self,
        next_sequence: u64,
        timestamp_ns: u64,
        clean_stop: bool,
    ) -> Option<TailChunk> {
        let new_chunk = self.begin(BATCH_HEADER_BYTES);
        let group_start = self.group_start.expect("a group was begun");
        let open = self.chunks.back_mut().expect("a group has a chunk");
        let at = open.writer.len();
        open.writer.spare(BATCH_HEADER_BYTES).fill(0);
        let header = BatchHeader {
            mark: true,
            clean_stop,
            place: self.place,
            offset: self.next_offset + (at - group_start) as u64,
            first_sequence: next_sequence,
            timestamp_ns,
            previous_checksum: 0,
            body_checksum: 0,
            flushed_sequence: 0,
            flushed_offset: 0,
            event_count: 0,
            body_bytes: 0,
        };
        self.headers.push(PendingHeader { at, header });
        new_chunk
    }

    /// Completes the current group: pads it, stamps what is flushed, chains its headers, and freezes it.
    pub(crate) fn finish(
        &mut self,
        flushed_sequence: u64,
        flushed_offset: u64,
        last_sequence: u64,
    ) -> FinishedGroup {
        let start = self.group_start.take().expect("a group was begun");
        let open = self.chunks.back_mut().expect("a group has a chunk");
        for PendingHeader { at, mut header } in self.headers.drain(..) {
            header.previous_checksum = self.previous_checksum;
            header.flushed_sequence = flushed_sequence;
            header.flushed_offset = flushed_offset;
            let encoded = header.encode();
            self.previous_checksum = header_checksum(&encoded);
            open.writer.patch(at, &encoded);
        }
        let used = open.writer.len() - start;
        let bytes = to_blocks(used);
        open.writer.zero_fill_to(start + bytes);
        open.writer.freeze(start + bytes);
        open.in_flight += 1;
        let offset = self.next_offset;
        self.next_offset += bytes as u64;
        FinishedGroup {
            source: WriteSource {
                chunk: Arc::clone(open.writer.chunk()),
                start,
                bytes,
            },
            offset,
            chunk_len: start + bytes,
            last_sequence,
            padding_bytes: bytes - used,
        }
    }

    /// A group is durable: readers may see its chunk up to `chunk_len`.
    pub(crate) fn publish(&mut self, chunk: &Arc<AppendChunk>, chunk_len: usize) {
        let open = self
            .chunks
            .iter_mut()
            .find(|open| Arc::ptr_eq(open.writer.chunk(), chunk))
            .expect("a chunk stays open while it has groups in flight");
        open.writer.publish(chunk_len);
        open.in_flight -= 1;
    }
}
