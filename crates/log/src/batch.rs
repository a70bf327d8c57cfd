//! Batches: the header that binds a batch to its place, and the body with its table of events.
//!
//! A body is `checksums u64[n] | revisions u64[n] | lengths u32[n] | n canonical events`, the same
//! on disk, in packed blocks, in the tail cache and on the way to a reader. The header's
//! `body_checksum` covers the table only; the table holds the checksum of each event. So stamping
//! revisions rehashes no payload, and one event can be checked alone.

use std::ops::Range;

use bytes::Bytes;
use truthdb_event::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, EventError, EventRef, event_checksum};

use crate::layout::{
    FieldReader, FieldWriter, FormatError, Place, align8, check_place, check_preamble, checksum,
    put_checksum, to_u64, to_usize, u32_at, u64_at,
};

/// Length of a batch header in bytes.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Bytes of table for each event of a body.
pub const TABLE_ROW_BYTES: usize = 20;
/// First bytes of a batch header after its checksum.
pub const BATCH_MAGIC: [u8; 4] = *b"TBAT";
/// Newest version of the batch header, and the one written.
pub const BATCH_VERSION: u16 = 1;

const FLAG_MARK: u16 = 1;
const FLAG_CLEAN_STOP: u16 = 2;
const STRUCTURE: &str = "batch header";

const _: () = assert!(BATCH_HEADER_BYTES.is_multiple_of(8));

/// What can be wrong with a batch header.
pub type BatchHeaderError = FormatError;

/// Header of a batch in a segment of the active layout, or a mark.
///
/// A mark is a header without events. It only says what is durable, so that damage to the last
/// acknowledged batch is told from a torn tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// A mark: no events.
    pub mark: bool,
    /// The mark of a clean stop: nothing was written after it. Only with `mark`.
    pub clean_stop: bool,
    /// Database, partition and segment that the header was written for.
    pub place: Place,
    /// Place of this header in its file, in bytes.
    pub offset: u64,
    /// Sequence of the first event; for a mark the sequence that the next event will get.
    pub first_sequence: u64,
    /// Time of all events of the batch, nanoseconds since 1970 UTC; never less than that of the
    /// batch before.
    pub timestamp_ns: u64,
    /// Checksum of the header before this one in the partition, batch or mark, also across
    /// segments; 0 for the first.
    pub previous_checksum: u64,
    /// Checksum of the table, [`body_checksum`]; 0 for a mark.
    pub body_checksum: u64,
    /// Highest sequence that was known durable when this was submitted; 0 for none.
    pub flushed_sequence: u64,
    /// Everything in this file before this offset was known durable when this was submitted: the
    /// end of a group, a multiple of the block, at least [`crate::SEGMENT_HEADER_BYTES`]. This, not
    /// the sequence, is what recovery asks, since marks have no sequence of their own.
    pub flushed_offset: u64,
    /// Number of events; 0 for a mark.
    pub event_count: u32,
    /// Length of the body in bytes, without padding; 0 for a mark.
    pub body_bytes: u32,
}

impl BatchHeader {
    /// The header's bytes, checksum first. The first 8 bytes are what the next header's
    /// `previous_checksum` must be: [`header_checksum`].
    pub fn encode(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0u8; BATCH_HEADER_BYTES];
        let mut flags = 0;
        if self.mark {
            flags |= FLAG_MARK;
        }
        if self.clean_stop {
            flags |= FLAG_CLEAN_STOP;
        }
        FieldWriter::new(&mut bytes, 8)
            .bytes(&BATCH_MAGIC)
            .u16(BATCH_VERSION)
            .u16(flags)
            .place(&self.place)
            .u64(self.offset)
            .u64(self.first_sequence)
            .u64(self.timestamp_ns)
            .u64(self.previous_checksum)
            .u64(self.body_checksum)
            .u64(self.flushed_sequence)
            .u32(self.event_count)
            .u32(self.body_bytes)
            .u64(self.flushed_offset);
        put_checksum(&mut bytes);
        bytes
    }

    /// Reads a header, and believes it only as far as it is consistent in itself: checksum, magic,
    /// version, counts. Whether it belongs where it was found is [`BatchHeader::check_place`]'s
    /// question.
    ///
    /// # Errors
    ///
    /// What is wrong, with the name of the field.
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, BatchHeaderError> {
        check_preamble(
            STRUCTURE,
            bytes,
            BATCH_HEADER_BYTES,
            BATCH_MAGIC,
            BATCH_VERSION,
        )?;
        let mut fields = FieldReader::new(&bytes[..BATCH_HEADER_BYTES], 14);
        let flags = fields.u16();
        let header = BatchHeader {
            mark: flags & FLAG_MARK != 0,
            clean_stop: flags & FLAG_CLEAN_STOP != 0,
            place: fields.place(),
            offset: fields.u64(),
            first_sequence: fields.u64(),
            timestamp_ns: fields.u64(),
            previous_checksum: fields.u64(),
            body_checksum: fields.u64(),
            flushed_sequence: fields.u64(),
            event_count: fields.u32(),
            body_bytes: fields.u32(),
            flushed_offset: fields.u64(),
        };
        let known_flags = flags & !(FLAG_MARK | FLAG_CLEAN_STOP) == 0;
        require(known_flags, "flags", flags.into(), "a flag of version 1")?;
        require(fields.rest_is_zero(), "reserved bytes", 1, "zero")?;
        header.check_fields()?;
        Ok(header)
    }

    fn check_fields(&self) -> Result<(), BatchHeaderError> {
        let (count, bytes) = (u64::from(self.event_count), u64::from(self.body_bytes));
        require(
            self.offset.is_multiple_of(8),
            "offset",
            self.offset,
            "a multiple of 8",
        )?;
        require(self.first_sequence > 0, "first sequence", 0, "at least 1")?;
        if self.mark {
            require(count == 0, "event count", count, "0 for a mark")?;
            require(bytes == 0, "body bytes", bytes, "0 for a mark")?;
            return require(self.body_checksum == 0, "body checksum", 1, "0 for a mark");
        }
        require(!self.clean_stop, "flags", 2, "a clean stop is a mark")?;
        require(count > 0, "event count", count, "at least 1")?;
        require(
            count <= to_u64(BATCH_EVENTS_MAX),
            "event count",
            count,
            "at most the limit",
        )?;
        let table = to_u64(table_bytes(self.event_count));
        require(
            bytes > table,
            "body bytes",
            bytes,
            "more than the table of its events",
        )?;
        require(
            bytes <= to_u64(BATCH_BYTES_MAX),
            "body bytes",
            bytes,
            "at most the limit",
        )?;
        let last = self.first_sequence.checked_add(count);
        require(
            last.is_some(),
            "first sequence",
            self.first_sequence,
            "room for its events",
        )
    }

    /// Checks that the header was written for this place.
    ///
    /// # Errors
    ///
    /// [`FormatError::Misplaced`] names the field that differs.
    pub fn check_place(&self, place: &Place, offset: u64) -> Result<(), BatchHeaderError> {
        check_place(STRUCTURE, place, &self.place)?;
        if self.offset != offset {
            return Err(FormatError::misplaced(
                STRUCTURE,
                "offset",
                offset,
                self.offset,
            ));
        }
        Ok(())
    }

    /// Sequence that follows the batch's last event; for a mark its own `first_sequence`.
    pub fn next_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.event_count)
    }

    /// Offset of the first byte after the batch and its padding.
    pub fn end_offset(&self) -> u64 {
        self.offset + padded_batch_bytes(to_usize(self.body_bytes.into()))
    }
}

fn require(
    holds: bool,
    field: &'static str,
    found: u64,
    reason: &'static str,
) -> Result<(), FormatError> {
    if holds {
        Ok(())
    } else {
        Err(FormatError::Field {
            structure: STRUCTURE,
            field,
            found,
            reason,
        })
    }
}

/// The checksum of an encoded header: what the next header's `previous_checksum` must be.
pub fn header_checksum(encoded: &[u8; BATCH_HEADER_BYTES]) -> u64 {
    u64_at(encoded, 0)
}

/// Bytes of the table of a body with this many events.
pub const fn table_bytes(event_count: u32) -> usize {
    event_count as usize * TABLE_ROW_BYTES
}

/// Bytes of a body: table and canonical events, without padding.
pub const fn body_bytes(event_count: u32, canonical_bytes: usize) -> usize {
    table_bytes(event_count) + canonical_bytes
}

/// Bytes that a batch takes in a segment of the active layout: header, body and padding to a
/// multiple of 8.
pub const fn padded_batch_bytes(body_bytes: usize) -> u64 {
    BATCH_HEADER_BYTES as u64 + align8(body_bytes as u64)
}

/// Writes one row of a body's table in place.
///
/// # Panics
///
/// If `index` is not below `event_count`, or the body is shorter than its table.
pub fn write_table_row(
    body: &mut [u8],
    event_count: u32,
    index: u32,
    checksum: u64,
    revision: u64,
    length: u32,
) {
    assert!(
        index < event_count,
        "row {index} of a table of {event_count}"
    );
    let (count, index) = (to_usize(event_count.into()), to_usize(index.into()));
    FieldWriter::new(body, index * 8).u64(checksum);
    FieldWriter::new(body, count * 8 + index * 8).u64(revision);
    FieldWriter::new(body, count * 16 + index * 4).u32(length);
}

/// Checksum of a body's table, which a batch header holds.
///
/// # Panics
///
/// If the body is shorter than its table.
pub fn body_checksum(body: &[u8], event_count: u32) -> u64 {
    checksum(&body[..table_bytes(event_count)])
}

/// What is wrong with a batch whose header was believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptBatch {
    /// The table is not what the header's checksum covers.
    #[error("checksum of the batch's table is {found:016x}, its bytes give {computed:016x}")]
    Table {
        /// What the header holds.
        found: u64,
        /// What the bytes give.
        computed: u64,
    },
    /// The lengths in the table do not add up to the body.
    #[error("the events of the batch take {needed} bytes, its body has {available} for them")]
    Lengths {
        /// Sum of the lengths in the table.
        needed: u64,
        /// Bytes of the body after the table.
        available: u64,
    },
    /// An event's bytes are not those that its checksum covers.
    #[error("checksum of event {sequence} is {found:016x}, its bytes give {computed:016x}")]
    Event {
        /// Sequence of the event.
        sequence: u64,
        /// What the table holds.
        found: u64,
        /// What the bytes give.
        computed: u64,
    },
    /// An event's checksum holds, but its bytes are not an event.
    #[error("event {sequence} is not a canonical event")]
    Canonical {
        /// Sequence of the event.
        sequence: u64,
        /// What is wrong.
        #[source]
        source: EventError,
    },
}

/// The events of one append as they are read, whatever kind of segment (or memory) they came from.
///
/// Cloning shares the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    /// Sequence of the first event.
    pub first_sequence: u64,
    /// Time of all events of the batch, nanoseconds since 1970 UTC.
    pub timestamp_ns: u64,
    /// Number of events, at least 1.
    pub event_count: u32,
    /// Table and canonical events.
    pub body: Bytes,
}

/// One event of a [`StoredBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEvent<'a> {
    /// Place in the partition, from 1.
    pub sequence: u64,
    /// Place in the stream, from 0.
    pub revision: u64,
    /// Time of the event, nanoseconds since 1970 UTC.
    pub timestamp_ns: u64,
    /// Checksum of `bytes`, [`event_checksum`].
    pub checksum: u64,
    /// Canonical bytes.
    pub bytes: &'a [u8],
}

impl<'a> StoredEvent<'a> {
    /// The event's parts.
    ///
    /// # Panics
    ///
    /// If the bytes are not an event: call it on batches that were verified, as all that a reader
    /// returns are.
    pub fn event(&self) -> EventRef<'a> {
        self.try_event().expect("the batch was verified")
    }

    /// The event's parts.
    ///
    /// # Errors
    ///
    /// What is wrong with the bytes.
    pub fn try_event(&self) -> Result<EventRef<'a>, EventError> {
        EventRef::parse_trusted(self.bytes)
    }
}

impl StoredBatch {
    /// Sequence of the last event.
    pub fn last_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.event_count) - 1
    }

    /// Bytes of table and events.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// Bytes of the canonical events alone.
    pub fn canonical_bytes(&self) -> usize {
        self.body
            .len()
            .saturating_sub(table_bytes(self.event_count))
    }

    /// Checks that the table's lengths add up, that every event has its checksum, and that it is an
    /// event.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), CorruptBatch> {
        let rows = Rows::of(&self.body, self.event_count)?;
        let mut at = rows.table;
        for index in 0..rows.count {
            let end = at + rows.length(index);
            let bytes = &self.body[at..end];
            let sequence = self.first_sequence + to_u64(index);
            let (found, computed) = (rows.checksum(index), event_checksum(bytes));
            if found != computed {
                return Err(CorruptBatch::Event {
                    sequence,
                    found,
                    computed,
                });
            }
            EventRef::parse_trusted(bytes)
                .map_err(|source| CorruptBatch::Canonical { sequence, source })?;
            at = end;
        }
        Ok(())
    }

    /// The events in order. Meant for verified batches: ends early where the lengths do not fit the
    /// body.
    pub fn events(&self) -> Events<'_> {
        Events {
            batch: self,
            index: 0,
            at: table_bytes(self.event_count),
        }
    }

    /// The event at `index`, `None` if there are fewer. Costs a sum over the lengths before it.
    pub fn event(&self, index: u32) -> Option<StoredEvent<'_>> {
        if index >= self.event_count {
            return None;
        }
        let table = table_bytes(self.event_count);
        let lengths = to_usize(self.event_count.into()) * 16;
        let before: usize = (0..to_usize(index.into()))
            .map(|row| to_usize(u32_at(&self.body, lengths + row * 4).into()))
            .sum();
        Events {
            batch: self,
            index,
            at: table + before,
        }
        .next()
    }

    /// The event with this sequence, `None` if it is not in this batch.
    pub fn event_at(&self, sequence: u64) -> Option<StoredEvent<'_>> {
        let index = sequence.checked_sub(self.first_sequence)?;
        self.event(u32::try_from(index).ok()?)
    }

    /// A batch of the events with these indexes, with a body of its own; all of them shares the
    /// body.
    ///
    /// # Panics
    ///
    /// If the range is empty or reaches beyond the batch.
    pub fn select(&self, range: Range<u32>) -> StoredBatch {
        assert!(
            range.start < range.end && range.end <= self.event_count,
            "{range:?}"
        );
        if range == (0..self.event_count) {
            return self.clone();
        }
        let count = range.end - range.start;
        let events = || {
            let skipped = to_usize(range.start.into());
            self.events().skip(skipped).take(to_usize(count.into()))
        };
        let canonical: usize = events().map(|event| event.bytes.len()).sum();
        let mut body = vec![0u8; body_bytes(count, canonical)];
        let mut at = table_bytes(count);
        for (index, event) in (0..count).zip(events()) {
            let length = u32::try_from(event.bytes.len()).expect("it was a u32 in the old table");
            write_table_row(
                &mut body,
                count,
                index,
                event.checksum,
                event.revision,
                length,
            );
            body[at..at + event.bytes.len()].copy_from_slice(event.bytes);
            at += event.bytes.len();
        }
        StoredBatch {
            first_sequence: self.first_sequence + u64::from(range.start),
            timestamp_ns: self.timestamp_ns,
            event_count: count,
            body: Bytes::from(body),
        }
    }
}

/// A table whose lengths were checked against the body.
struct Rows<'a> {
    body: &'a [u8],
    count: usize,
    table: usize,
}

impl<'a> Rows<'a> {
    fn of(body: &'a [u8], event_count: u32) -> Result<Rows<'a>, CorruptBatch> {
        let count = to_usize(event_count.into());
        let table = table_bytes(event_count);
        let lengths_at = count * 16;
        let available = to_u64(body.len()).checked_sub(to_u64(table));
        let Some(available) = available else {
            return Err(CorruptBatch::Lengths {
                needed: to_u64(table),
                available: 0,
            });
        };
        let needed: u64 = (0..count)
            .map(|row| u64::from(u32_at(body, lengths_at + row * 4)))
            .sum();
        if needed != available {
            return Err(CorruptBatch::Lengths { needed, available });
        }
        Ok(Rows { body, count, table })
    }

    fn checksum(&self, index: usize) -> u64 {
        u64_at(self.body, index * 8)
    }

    fn length(&self, index: usize) -> usize {
        to_usize(u32_at(self.body, self.count * 16 + index * 4).into())
    }
}

/// Events of a batch in order.
#[derive(Debug, Clone)]
pub struct Events<'a> {
    batch: &'a StoredBatch,
    index: u32,
    at: usize,
}

impl<'a> Iterator for Events<'a> {
    type Item = StoredEvent<'a>;

    fn next(&mut self) -> Option<StoredEvent<'a>> {
        let StoredBatch {
            event_count,
            ref body,
            ..
        } = *self.batch;
        if self.index >= event_count {
            return None;
        }
        let (count, row) = (to_usize(event_count.into()), to_usize(self.index.into()));
        let length = to_usize(u32_at(body, count * 16 + row * 4).into());
        let bytes = body.get(self.at..self.at.checked_add(length)?)?;
        let event = StoredEvent {
            sequence: self.batch.first_sequence + u64::from(self.index),
            revision: u64_at(body, count * 8 + row * 8),
            timestamp_ns: self.batch.timestamp_ns,
            checksum: u64_at(body, row * 8),
            bytes,
        };
        self.index += 1;
        self.at += length;
        Some(event)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = to_usize((self.batch.event_count - self.index).into());
        (0, Some(left))
    }
}
