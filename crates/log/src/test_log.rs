//! A small log, built by hand: what the writer would leave on disk.

use std::collections::HashMap;

use truthdb_event::{EventBuilder, EventId, event_checksum};
use truthdb_io::sim::SimWorld;

use crate::active_index::ActiveIndex;
use crate::batch::{
    BATCH_HEADER_BYTES, BatchHeader, StoredBatch, body_checksum, header_checksum, table_bytes,
    write_table_row,
};
use crate::keys::{KeyHasher, KeySeed, StreamKey};
use crate::layout::Place;
use crate::manifest::Manifest;
use crate::rebuild::index_batch;
use crate::segment::{
    SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind, TrimPoint, segment_path,
};

/// One event as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestEvent {
    pub(crate) sequence: u64,
    pub(crate) revision: u64,
    pub(crate) canonical: Vec<u8>,
}

/// An unsealed segment.
pub(crate) struct TestSegment {
    pub(crate) place: Place,
    pub(crate) bytes: Vec<u8>,
    pub(crate) data_end: u64,
    pub(crate) index: ActiveIndex,
    pub(crate) events: Vec<TestEvent>,
    pub(crate) last_checksum: u64,
}

/// Partition 0 of a database, segment after segment.
pub(crate) struct TestLog {
    pub(crate) manifest: Manifest,
    pub(crate) keys: KeyHasher,
    pub(crate) next_sequence: u64,
    heads: HashMap<String, (u64, u64)>,
    previous_checksum: u64,
    segments: u32,
}

/// What the batches of a segment look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) batches: u64,
    pub(crate) events: u32,
    pub(crate) payload: usize,
    /// Payloads that do not compress.
    pub(crate) noise: bool,
}

impl TestLog {
    pub(crate) fn new() -> TestLog {
        let key_seed = [3; 16];
        TestLog {
            manifest: Manifest {
                database_id: *b"a test database!",
                partition_count: 1,
                segment_bytes: SEGMENT_BYTES_MIN,
                key_seed,
                created_ns: 1,
            },
            keys: KeyHasher::new(KeySeed(key_seed)),
            next_sequence: 1,
            heads: HashMap::new(),
            previous_checksum: 0,
            segments: 0,
        }
    }

    /// The next segment, unsealed, every batch a group of its own, with a mark at the end.
    pub(crate) fn segment(&mut self, shape: Shape) -> TestSegment {
        self.segments += 1;
        let place = self.manifest.place(0, self.segments);
        let header = SegmentHeader {
            kind: SegmentKind::Active,
            place,
            base_sequence: self.next_sequence,
            segment_bytes: SEGMENT_BYTES_MIN,
            previous_checksum: self.previous_checksum,
            trim: TrimPoint::NONE,
            created_ns: 5,
        };
        let mut segment = TestSegment {
            place,
            bytes: header.encode(),
            data_end: SEGMENT_HEADER_BYTES,
            index: ActiveIndex::new(self.next_sequence),
            events: Vec::new(),
            last_checksum: 0,
        };
        for batch in 0..shape.batches {
            self.append(&mut segment, shape, batch);
        }
        self.append_header(&mut segment, None);
        segment.last_checksum = self.previous_checksum;
        segment
    }

    fn append(&mut self, segment: &mut TestSegment, shape: Shape, batch: u64) {
        let mut body = vec![0; table_bytes(shape.events)];
        let base_sequence = segment.index.base_sequence();
        let mut previous: HashMap<StreamKey, u64> = HashMap::new();
        for row in 0..shape.events {
            let sequence = self.next_sequence + u64::from(row);
            let stream = format!("stream-{}", sequence % 5 + u64::from(self.segments % 2));
            let head = self.heads.entry(stream.clone()).or_default();
            let key = self.keys.stream(stream.as_bytes());
            previous
                .entry(key)
                .or_insert(if head.1 < base_sequence { head.1 } else { 0 });
            let revision = head.0;
            *head = (revision + 1, sequence);
            let payload: Vec<u8> = (0..shape.payload)
                .map(|i| match shape.noise {
                    true => {
                        blake3::hash(&(sequence * 65_536 + i as u64).to_le_bytes()).as_bytes()[0]
                    }
                    false => b'x',
                })
                .collect();
            let start = body.len();
            EventBuilder::new(
                &stream,
                ["made", "changed"][usize::try_from(sequence % 2).unwrap()],
            )
            .id(EventId::from_bytes(
                u128::from(sequence).swap_bytes().to_le_bytes(),
            ))
            .content_type("text/plain")
            .tag(&format!("tag-{}", sequence % 3))
            .metadata("causation_id", "c")
            .payload(&payload)
            .encode_into(&mut body)
            .unwrap();
            let canonical = body[start..].to_vec();
            let (checksum, length) = (event_checksum(&canonical), canonical.len());
            let length = u32::try_from(length).unwrap();
            write_table_row(&mut body, shape.events, row, checksum, revision, length);
            segment.events.push(TestEvent {
                sequence,
                revision,
                canonical,
            });
        }
        let stored = StoredBatch {
            first_sequence: self.next_sequence,
            timestamp_ns: 1_000_000 * u64::from(self.segments) + batch,
            event_count: shape.events,
            body: body.into(),
        };
        let offset = segment.bytes.len() as u64;
        index_batch(&mut segment.index, &self.keys, offset, &stored, |key, _| {
            previous[&key]
        });
        self.append_header(segment, Some(&stored));
        self.next_sequence += u64::from(shape.events);
    }

    /// A batch, or a mark, as a group of its own.
    fn append_header(&mut self, segment: &mut TestSegment, batch: Option<&StoredBatch>) {
        let offset = segment.bytes.len() as u64;
        let header = BatchHeader {
            mark: batch.is_none(),
            clean_stop: false,
            place: segment.place,
            offset,
            first_sequence: self.next_sequence,
            timestamp_ns: batch.map_or(9_000_000_000, |batch| batch.timestamp_ns),
            previous_checksum: self.previous_checksum,
            body_checksum: batch.map_or(0, |batch| body_checksum(&batch.body, batch.event_count)),
            flushed_sequence: self.next_sequence - 1,
            flushed_offset: offset,
            event_count: batch.map_or(0, |batch| batch.event_count),
            body_bytes: batch.map_or(0, |batch| u32::try_from(batch.body.len()).unwrap()),
        };
        let encoded: [u8; BATCH_HEADER_BYTES] = header.encode();
        self.previous_checksum = header_checksum(&encoded);
        segment.bytes.extend_from_slice(&encoded);
        if let Some(batch) = batch {
            segment.bytes.extend_from_slice(&batch.body);
        }
        let end = segment.bytes.len().next_multiple_of(4096);
        segment.bytes.resize(end, 0);
        segment.data_end = end as u64;
    }
}

impl TestSegment {
    /// Puts the file on the disk, with some of the preallocated rest.
    pub(crate) fn write(&self, sim: &SimWorld) {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + 1_000_000_usize.next_multiple_of(4096), 0);
        sim.write_file(&self.path(), &bytes).unwrap();
        sim.write_file("partition-0000/index/keep", b"").unwrap();
    }

    pub(crate) fn path(&self) -> String {
        segment_path(self.place.partition, self.place.segment)
    }
}
