//! Small segments, written by hand.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its own part"
)]

use std::sync::Arc;

use truthdb_event::{EventBuilder, EventId, event_checksum};
use truthdb_io::sim::SimWorld;
use truthdb_log::*;

pub const DATABASE_ID: [u8; 16] = *b"database-id-here";
pub const PATH: &str = "partition-0002/wal/segment-00000003.log";
pub const PLACE: Place = Place {
    database_id: DATABASE_ID,
    partition: 2,
    segment: 3,
};
pub const BASE: u64 = 100;
pub const PREVIOUS: u64 = 0x1122_3344_5566_7788;
pub const TIME: u64 = 1_700_000_000_000_000_000;

pub fn header(kind: SegmentKind) -> SegmentHeader {
    SegmentHeader {
        kind,
        place: PLACE,
        base_sequence: BASE,
        segment_bytes: SEGMENT_BYTES_MIN,
        previous_checksum: PREVIOUS,
        trim: TrimPoint {
            first_segment: 2,
            first_sequence: 50,
        },
        created_ns: TIME,
    }
}

pub fn event(sequence: u64, payload_bytes: usize) -> Vec<u8> {
    let mut id = [0u8; 16];
    id[..8].copy_from_slice(&sequence.to_le_bytes());
    id[15] = 1;
    let stream = format!("account-{}", sequence % 3);
    let payload: Vec<u8> = (0..payload_bytes)
        .map(|i| (i as u64 * 7 + sequence) as u8)
        .collect();
    let mut bytes = Vec::new();
    EventBuilder::new(&stream, "deposited")
        .id(EventId::from_bytes(id))
        .content_type("application/octet-stream")
        .tag("currency:EUR")
        .metadata("causation_id", "c-1")
        .payload(&payload)
        .encode_into(&mut bytes)
        .unwrap();
    bytes
}

pub fn batch(first_sequence: u64, payloads: &[usize]) -> StoredBatch {
    let events: Vec<Vec<u8>> = (first_sequence..)
        .zip(payloads)
        .map(|(sequence, bytes)| event(sequence, *bytes))
        .collect();
    let count = events.len() as u32;
    let mut body = vec![0u8; body_bytes(count, events.iter().map(Vec::len).sum())];
    let mut at = table_bytes(count);
    for (index, event) in events.iter().enumerate() {
        let (checksum, revision) = (event_checksum(event), first_sequence + index as u64);
        write_table_row(
            &mut body,
            count,
            index as u32,
            checksum,
            revision,
            event.len() as u32,
        );
        body[at..at + event.len()].copy_from_slice(event);
        at += event.len();
    }
    StoredBatch {
        first_sequence,
        timestamp_ns: TIME + first_sequence,
        event_count: count,
        body: body.into(),
    }
}

/// Writes groups into the image of a file.
pub struct Writer {
    pub image: Vec<u8>,
    pub place: Place,
    pub base_sequence: u64,
    pub next_sequence: u64,
    pub last_checksum: u64,
    pub flushed_offset: u64,
    pub flushed_sequence: u64,
    pub batches: Vec<StoredBatch>,
    pub sparse: Vec<SparseEntry>,
    /// Start of each group.
    pub groups: Vec<u64>,
}

impl Writer {
    pub fn new(header: &SegmentHeader) -> Writer {
        Writer {
            image: header.encode(),
            place: header.place,
            base_sequence: header.base_sequence,
            next_sequence: header.base_sequence,
            last_checksum: header.previous_checksum,
            flushed_offset: SEGMENT_HEADER_BYTES,
            flushed_sequence: header.base_sequence - 1,
            batches: Vec::new(),
            sparse: Vec::new(),
            groups: Vec::new(),
        }
    }

    pub fn end(&self) -> u64 {
        self.image.len() as u64
    }

    /// One group of batches with these payload sizes; no batches is a mark.
    pub fn group(&mut self, batches: &[&[usize]]) {
        assert_eq!(self.end() % 4096, 0);
        self.groups.push(self.end());
        if batches.is_empty() {
            self.push(None, false);
        }
        for payloads in batches {
            let batch = batch(self.next_sequence, payloads);
            self.push(Some(batch), false);
        }
        self.image
            .resize(self.image.len().next_multiple_of(4096), 0);
    }

    pub fn clean_stop(&mut self) {
        self.groups.push(self.end());
        self.push(None, true);
        self.image
            .resize(self.image.len().next_multiple_of(4096), 0);
    }

    fn push(&mut self, batch: Option<StoredBatch>, clean_stop: bool) {
        let body = batch
            .as_ref()
            .map(|batch| batch.body.clone())
            .unwrap_or_default();
        let event_count = batch.as_ref().map_or(0, |batch| batch.event_count);
        let header = BatchHeader {
            mark: batch.is_none(),
            clean_stop,
            place: self.place,
            offset: self.end(),
            first_sequence: self.next_sequence,
            timestamp_ns: TIME + self.next_sequence,
            previous_checksum: self.last_checksum,
            body_checksum: if batch.is_none() {
                0
            } else {
                body_checksum(&body, event_count)
            },
            flushed_sequence: self.flushed_sequence,
            flushed_offset: self.flushed_offset,
            event_count,
            body_bytes: body.len() as u32,
        };
        let encoded = header.encode();
        self.last_checksum = header_checksum(&encoded);
        self.next_sequence += u64::from(event_count);
        self.image.extend_from_slice(&encoded);
        self.image.extend_from_slice(&body);
        self.image.resize(self.image.len().next_multiple_of(8), 0);
        if let Some(batch) = batch {
            self.sparse.push(SparseEntry {
                sequence: batch.first_sequence,
                offset: header.offset,
                timestamp_ns: batch.timestamp_ns,
            });
            self.batches.push(batch);
        }
    }

    /// Everything so far is durable, and later headers say so.
    pub fn flushed(&mut self) {
        self.flushed_offset = self.end();
        self.flushed_sequence = self.next_sequence - 1;
    }

    pub fn footer(&self, kind: SegmentKind, data_end: u64, sparse_entries: u64) -> Footer {
        let first = self.batches.first();
        let last = self.batches.last();
        Footer {
            kind,
            place: self.place,
            base_sequence: self.base_sequence,
            last_sequence: self.next_sequence - 1,
            batch_count: self.batches.len() as u64,
            first_timestamp_ns: first.map_or(0, |batch| batch.timestamp_ns),
            last_timestamp_ns: last.map_or(0, |batch| batch.timestamp_ns),
            data_end,
            sparse_offset: data_end,
            sparse_entries,
            event_bytes: self
                .batches
                .iter()
                .map(|batch| batch.body.len() as u64)
                .sum(),
            last_batch_checksum: self.last_checksum,
            root: [0xA1; 32],
            previous_chain: [0xB2; 32],
            chain: [0xC3; 32],
            trim: TrimPoint {
                first_segment: 2,
                first_sequence: 50,
            },
        }
    }

    /// The file as a seal in place leaves it.
    pub fn sealed(&self) -> Vec<u8> {
        let mut image = self.image.clone();
        image.extend(encode_sparse_index(&self.sparse));
        let entries = self.sparse.len() as u64;
        image.extend(
            self.footer(SegmentKind::Active, self.end(), entries)
                .encode(),
        );
        image
    }

    /// The file as packing leaves it: one block stored as it is, one compressed.
    pub fn packed(&self) -> Vec<u8> {
        let mut image = header(SegmentKind::Packed).encode();
        let (first, second) = self.batches.split_at(self.batches.len() / 2);
        let mut sparse = Vec::new();
        for (codec, batches) in [(Codec::None, first), (Codec::Zstd, second)] {
            let mut raw = Vec::new();
            for batch in batches {
                raw.extend(batch.event_count.to_le_bytes());
                raw.extend((batch.body.len() as u32).to_le_bytes());
                raw.extend(batch.timestamp_ns.to_le_bytes());
                raw.extend_from_slice(&batch.body);
                raw.resize(raw.len().next_multiple_of(8), 0);
            }
            let stored = match codec {
                Codec::None => raw.clone(),
                Codec::Zstd => zstd::bulk::compress(&raw, 3).unwrap(),
            };
            let block = PackedBlockHeader {
                codec,
                place: self.place,
                offset: image.len() as u64,
                first_sequence: batches[0].first_sequence,
                batch_count: batches.len() as u32,
                raw_bytes: raw.len() as u32,
                stored_bytes: stored.len() as u32,
                event_count: batches.iter().map(|batch| batch.event_count).sum(),
                stored_checksum: stored_checksum(&stored),
            };
            sparse.push(SparseEntry {
                sequence: block.first_sequence,
                offset: block.offset,
                timestamp_ns: batches[0].timestamp_ns,
            });
            image.extend(block.encode());
            image.extend(stored);
            image.resize(image.len().next_multiple_of(8), 0);
        }
        image.resize(image.len().next_multiple_of(4096), 0);
        let data_end = image.len() as u64;
        image.extend(encode_sparse_index(&sparse));
        let footer = self.footer(SegmentKind::Packed, data_end, sparse.len() as u64);
        image.extend(footer.encode());
        image
    }
}

/// A segment of a few groups, marks among them; what is flushed is said by the last.
pub fn sample() -> Writer {
    let mut writer = Writer::new(&header(SegmentKind::Active));
    writer.group(&[&[10, 20], &[5]]);
    writer.group(&[&[300; 4]]);
    writer.flushed();
    writer.group(&[]);
    writer.group(&[&[0], &[1, 2, 3], &[40; 9]]);
    writer.flushed();
    writer.group(&[&[2000]]);
    writer.flushed();
    writer.group(&[]);
    writer.group(&[&[100, 100]]);
    writer
}

pub fn world_with(image: &[u8]) -> SimWorld {
    let sim = SimWorld::new(7);
    sim.write_file(PATH, image).unwrap();
    sim
}

/// Recovers the segment; the batches that were accepted, and the outcome.
pub fn recover(
    sim: &SimWorld,
    end: Option<SegmentEnd>,
    mode: RecoveryMode,
) -> (Vec<StoredBatch>, Result<RecoveredSegment, RecoveryError>) {
    let storage = sim.storage();
    let mut batches = Vec::new();
    let mut visit = |scanned: ScannedBatch| batches.push(scanned.batch);
    let result = recover_segment(storage.as_ref(), PLACE, end, mode, &mut visit);
    (batches, result)
}

/// Reads a sealed segment from its footer on: footer, sparse index, all data, twice.
pub fn read_sealed(sim: &SimWorld) -> Result<Option<Vec<StoredBatch>>, ReadError> {
    let storage = sim.storage();
    let (reader, header) = SegmentReader::open(storage.as_ref(), PLACE)?;
    let Some(footer) = reader.footer()? else {
        return Ok(None);
    };
    reader.sparse_index(&footer)?;
    let file = Arc::clone(reader.file());
    let scan = SegmentScan::new(storage.as_ref(), file, &header, footer.data_end)?;
    let scanned: Vec<StoredBatch> = scan
        .map(|item| item.map(|item| item.batch))
        .collect::<Result<_, _>>()?;
    let mut read = Vec::new();
    let mut offset = SEGMENT_HEADER_BYTES;
    loop {
        let next = read
            .last()
            .map_or(BASE, |batch: &StoredBatch| batch.last_sequence() + 1);
        let (batches, next_offset) = reader.read_batches(offset, footer.data_end, next, 1)?;
        if batches.is_empty() {
            break;
        }
        read.extend(batches);
        offset = next_offset;
    }
    assert_eq!(scanned, read, "two ways of reading agree");
    Ok(Some(read))
}
