//! `segment-N.idx`: the index of one sealed segment, on disk.
//!
//! Derived: it can always be built again from the segment, and it is bound to it by the segment's chain hash.
//! An open index holds at most 32 KiB in memory whatever the segment's size; queries read single
//! pages and verify them.
//!
//! Header page: 0 u64 checksum(8..4096) | 8 "TIDX" | 12 u16 version | 14 u16 0 |
//! 16 \[16\] database id | 32 u32 partition | 36 u32 segment | 40 u64 base_sequence |
//! 48 u64 event_count | 56 u64 check of the key seed | 64 \[32\] chain | 96 u64 sample stride of
//! streams | 104 u64 sample stride of facets | 112 seven sections {u64 offset, u64 bytes, u64 rows}: streams,
//! stream postings, facets, facet postings, ids, stream sample, facet sample.
//!
//! Streams, sorted by key: {u128 key, u64 first_revision, u64 previous_sequence, list}. Facets,
//! sorted by key:
//! {u64 key, list}. list = {u32 count, u32 first, u32 last, u32 position of its postings}. Ids: u64
//! hash of each event id
//! in sequence order.

use std::sync::Arc;

use truthdb_io::Storage;
use xxhash_rust::xxh64::xxh64;

use crate::active_index::{ActiveIndex, StreamExtent};
use crate::keys::{FacetKey, IdHash, StreamKey};
use crate::paged::{
    IndexError, PAYLOAD_BYTES, PagedReader, PagedWriter, Rows, SECTION_ENTRY_BYTES, Section,
    get_u16, get_u32, get_u64, put_u16, put_u32, put_u64, to_usize,
};
use crate::postings::{LIST_BYTES, PostingList};
use crate::table::{Table, sample_from_bytes, stride_for};

/// Version of the format.
pub const INDEX_VERSION: u16 = 1;

const MAGIC: &[u8; 4] = b"TIDX";
/// Entries of a table's sample in memory at most: 16 KiB.
const SAMPLE_MAX: usize = 2048;
/// Header bytes that say whose index it is; their hash seeds the pages' checksums.
const IDENTITY: std::ops::Range<usize> = 8..112;
const SECTIONS: usize = 7;
const HEADER_BYTES: usize = 112 + SECTIONS * SECTION_ENTRY_BYTES;
pub(crate) const STREAM_ROW_BYTES: usize = 32 + LIST_BYTES;
pub(crate) const FACET_ROW_BYTES: usize = 8 + LIST_BYTES;

/// What an index of a sealed segment must say of itself to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentBinding {
    /// Database.
    pub database_id: [u8; 16],
    /// Partition.
    pub partition: u32,
    /// Segment number.
    pub segment: u32,
    /// Sequence of the segment's first event (of the next event, if it has none).
    pub base_sequence: u64,
    /// Number of events in the segment.
    pub event_count: u64,
    /// [`crate::KeySeed::check`] of the database's seed.
    pub key_check: u64,
    /// Chain hash of the segment's footer.
    pub chain: [u8; 32],
}

impl SegmentBinding {
    fn encode(&self, strides: [u64; 2]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[8..12].copy_from_slice(MAGIC);
        put_u16(&mut header, 12, INDEX_VERSION);
        header[16..32].copy_from_slice(&self.database_id);
        put_u32(&mut header, 32, self.partition);
        put_u32(&mut header, 36, self.segment);
        put_u64(&mut header, 40, self.base_sequence);
        put_u64(&mut header, 48, self.event_count);
        put_u64(&mut header, 56, self.key_check);
        header[64..96].copy_from_slice(&self.chain);
        put_u64(&mut header, 96, strides[0]);
        put_u64(&mut header, 104, strides[1]);
        header
    }

    pub(crate) fn decode(header: &[u8]) -> SegmentBinding {
        SegmentBinding {
            database_id: header[16..32].try_into().expect("16 bytes"),
            partition: get_u32(header, 32),
            segment: get_u32(header, 36),
            base_sequence: get_u64(header, 40),
            event_count: get_u64(header, 48),
            key_check: get_u64(header, 56),
            chain: header[64..96].try_into().expect("32 bytes"),
        }
    }

    /// The first field in which a file's identity differs from this one.
    fn difference(&self, found: &SegmentBinding) -> Option<&'static str> {
        [
            ("database id", self.database_id != found.database_id),
            ("partition", self.partition != found.partition),
            ("segment", self.segment != found.segment),
            ("base sequence", self.base_sequence != found.base_sequence),
            ("event count", self.event_count != found.event_count),
            ("key seed", self.key_check != found.key_check),
            ("chain hash", self.chain != found.chain),
        ]
        .into_iter()
        .find_map(|(field, differs)| differs.then_some(field))
    }
}

/// Names of the sections, in the order of the header.
pub(crate) const SECTION_NAMES: [&str; SECTIONS] = [
    "streams",
    "stream_postings",
    "facets",
    "facet_postings",
    "ids",
    "stream_sample",
    "facet_sample",
];

/// Writes the index file of a sealed segment, durably and atomically: a crash leaves the old file,
/// none, or the new one.
pub fn write_index(
    storage: &Arc<dyn Storage>,
    path: &str,
    binding: &SegmentBinding,
    index: &ActiveIndex,
) -> Result<(), IndexError> {
    assert!(
        binding.base_sequence == index.base_sequence()
            && binding.event_count == index.event_count(),
        "the index is that of the segment"
    );
    let streams = index.streams_sorted();
    let facets = index.facets_sorted();
    let strides = [
        stride_for(pages_of(streams.len(), STREAM_ROW_BYTES), SAMPLE_MAX),
        stride_for(pages_of(facets.len(), FACET_ROW_BYTES), SAMPLE_MAX),
    ];
    let mut header = binding.encode(strides);
    let mut writer = PagedWriter::create(storage, path, xxh64(&header[IDENTITY], 0))?;
    let mut sections = [Section::default(); SECTIONS];
    let (mut events, mut postings) = (Vec::new(), Vec::new());

    let mut stream_sample = Vec::new();
    for slot in streams {
        events.clear();
        let (key, extent) = index.stream_postings(slot, &mut events);
        let mut row = [0; STREAM_ROW_BYTES];
        row[..16].copy_from_slice(&key.0.to_le_bytes());
        put_u64(&mut row, 16, extent.first_revision);
        put_u64(&mut row, 24, extent.previous_sequence);
        row[32..].copy_from_slice(&PostingList::append(&events, &mut postings).encode());
        if writer.write_row(&row)? {
            stream_sample.push(key.high());
        }
    }
    sections[0] = writer.end_section();
    writer.write(&postings)?;
    sections[1] = writer.end_section();

    postings.clear();
    let mut facet_sample = Vec::new();
    for slot in facets {
        events.clear();
        let key = index.facet_postings(slot, &mut events);
        let mut row = [0; FACET_ROW_BYTES];
        row[..8].copy_from_slice(&key.0.to_le_bytes());
        row[8..].copy_from_slice(&PostingList::append(&events, &mut postings).encode());
        if writer.write_row(&row)? {
            facet_sample.push(key.0);
        }
    }
    sections[2] = writer.end_section();
    writer.write(&postings)?;
    sections[3] = writer.end_section();

    for id in index.ids() {
        writer.write_row(&id.0.to_le_bytes())?;
    }
    sections[4] = writer.end_section();
    for (i, sample) in [stream_sample, facet_sample].iter().enumerate() {
        for high in sample.iter().step_by(to_usize(strides[i])) {
            writer.write_row(&high.to_le_bytes())?;
        }
        sections[5 + i] = writer.end_section();
    }
    for (section, at) in sections.iter().zip((112..).step_by(SECTION_ENTRY_BYTES)) {
        header[at..at + SECTION_ENTRY_BYTES].copy_from_slice(&section.encode());
    }
    writer.finish(&header)
}

fn pages_of(rows: usize, row_bytes: usize) -> usize {
    rows.div_ceil(PAYLOAD_BYTES / row_bytes)
}

/// An open index of a sealed segment.
pub struct SegmentIndex {
    pub(crate) reader: PagedReader,
    pub(crate) binding: SegmentBinding,
    pub(crate) streams: Table,
    pub(crate) stream_postings: Section,
    pub(crate) facets: Table,
    pub(crate) facet_postings: Section,
    ids: Section,
}

impl std::fmt::Debug for SegmentIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentIndex")
            .field("path", &self.reader.path())
            .finish_non_exhaustive()
    }
}

/// A row of the streams table.
pub(crate) struct StreamRow {
    pub(crate) key: StreamKey,
    first_revision: u64,
    previous_sequence: u64,
    pub(crate) list: PostingList,
}

impl SegmentIndex {
    /// Opens an index and reads its header and samples. An error that
    /// [`IndexError::is_rebuildable`] means: write it anew.
    pub fn open(
        storage: &Arc<dyn Storage>,
        path: &str,
        expected: &SegmentBinding,
    ) -> Result<SegmentIndex, IndexError> {
        let seed = |header: &[u8]| xxh64(&header[IDENTITY], 0);
        let (reader, header, file_bytes) = PagedReader::open(storage, path, seed)?;
        if &header[8..12] != MAGIC {
            return Err(reader.corrupt(8, "this is not a segment index"));
        }
        let version = get_u16(&header, 12);
        if version > INDEX_VERSION {
            let path = path.to_owned();
            return Err(IndexError::Newer {
                path,
                version,
                known: INDEX_VERSION,
            });
        }
        let binding = SegmentBinding::decode(&header);
        if let Some(field) = expected.difference(&binding) {
            return Err(IndexError::Foreign {
                path: path.to_owned(),
                field,
            });
        }
        let sections = sections_of(&header);
        if sections.iter().any(|section| !section.fits(file_bytes)) {
            return Err(reader.corrupt(112, "a section lies outside of the file"));
        }
        if sections[4].rows != binding.event_count || sections[4].bytes != binding.event_count * 8 {
            return Err(reader.corrupt(112, "there is another number of ids than of events"));
        }
        let table = |table: usize, row_bytes, stride, sample: usize| {
            let section = &sections[sample];
            if section.bytes > (SAMPLE_MAX * 8) as u64 {
                return Err(reader.corrupt(112, "a sample is larger than it may be"));
            }
            let sample = sample_from_bytes(&reader.read_section(section)?);
            Table::new(sections[table], row_bytes, stride, sample)
                .map_err(|reason| reader.corrupt(112, reason))
        };
        let streams = table(0, STREAM_ROW_BYTES, get_u64(&header, 96), 5)?;
        let facets = table(2, FACET_ROW_BYTES, get_u64(&header, 104), 6)?;
        let (stream_postings, facet_postings, ids) = (sections[1], sections[3], sections[4]);
        Ok(SegmentIndex {
            reader,
            binding,
            streams,
            stream_postings,
            facets,
            facet_postings,
            ids,
        })
    }

    /// Whose index it is.
    pub fn binding(&self) -> &SegmentBinding {
        &self.binding
    }

    /// Number of distinct streams in the segment.
    pub fn stream_count(&self) -> u64 {
        self.streams.section.rows
    }

    /// Number of distinct types and tags in the segment.
    pub fn facet_count(&self) -> u64 {
        self.facets.section.rows
    }

    /// Bytes of memory held while open.
    pub fn memory_bytes(&self) -> usize {
        self.streams.memory_bytes() + self.facets.memory_bytes() + size_of::<SegmentIndex>()
    }

    /// The stream's part of the segment.
    pub fn stream(&self, key: StreamKey) -> Result<Option<StreamExtent>, IndexError> {
        Ok(self.find_stream(key)?.map(|row| self.extent(&row)))
    }

    /// Appends to `out`, ascending, the sequences of at most `max` events of the stream from
    /// `from_revision` on.
    pub fn stream_forward(
        &self,
        key: StreamKey,
        from_revision: u64,
        max: usize,
        out: &mut Vec<u64>,
    ) -> Result<(), IndexError> {
        let Some(row) = self.find_stream(key)? else {
            return Ok(());
        };
        let start = saturating_u32(from_revision.saturating_sub(row.first_revision));
        let end = start.saturating_add(saturating_u32(max as u64));
        self.append_postings(&self.stream_postings, &row.list, start, end, out)
    }

    /// Appends to `out`, descending, the sequences of at most `max` events of the stream from
    /// `from_revision` back.
    pub fn stream_backward(
        &self,
        key: StreamKey,
        from_revision: u64,
        max: usize,
        out: &mut Vec<u64>,
    ) -> Result<(), IndexError> {
        let Some(row) = self.find_stream(key)? else {
            return Ok(());
        };
        let Some(steps) = from_revision.checked_sub(row.first_revision) else {
            return Ok(());
        };
        let end = saturating_u32(steps.saturating_add(1)).min(row.list.count);
        let start = end.saturating_sub(saturating_u32(max as u64));
        let from = out.len();
        self.append_postings(&self.stream_postings, &row.list, start, end, out)?;
        out[from..].reverse();
        Ok(())
    }

    /// Appends to `out`, ascending, the sequences of at most `max` events with the facet after
    /// `after_sequence`.
    pub fn facet_after(
        &self,
        facet: FacetKey,
        after_sequence: u64,
        max: usize,
        out: &mut Vec<u64>,
    ) -> Result<(), IndexError> {
        let Some(list) = self.find_facet(facet)? else {
            return Ok(());
        };
        let start = match after_sequence.checked_sub(self.binding.base_sequence) {
            None => 0,
            Some(event) => {
                list.count_up_to(&self.reader, &self.facet_postings, saturating_u32(event))?
            }
        };
        let end = start.saturating_add(saturating_u32(max as u64));
        self.append_postings(&self.facet_postings, &list, start, end, out)
    }

    /// Sequence of the segment's last event with the facet.
    pub fn facet_last(&self, facet: FacetKey) -> Result<Option<u64>, IndexError> {
        let list = self.find_facet(facet)?;
        Ok(list.map(|list| self.binding.base_sequence + u64::from(list.last)))
    }

    /// Calls `visit` with the hashes of the ids of the events from `from_sequence` on, in sequence
    /// order, up to the segment's end.
    pub fn visit_ids(
        &self,
        from_sequence: u64,
        mut visit: impl FnMut(u64, IdHash),
    ) -> Result<(), IndexError> {
        let base = self.binding.base_sequence;
        let skip = from_sequence.saturating_sub(base);
        let mut stream = self.reader.stream(&self.ids, skip.saturating_mul(8));
        for event in skip..self.binding.event_count {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes)?;
            visit(base + event, IdHash(u64::from_le_bytes(bytes)));
        }
        Ok(())
    }

    /// Walks the segment's streams in the order of their keys.
    pub fn streams(&self) -> StreamRows<'_> {
        let rows = self.reader.rows(&self.streams.section, STREAM_ROW_BYTES);
        StreamRows {
            index: self,
            rows,
            last: None,
        }
    }

    fn find_stream(&self, key: StreamKey) -> Result<Option<StreamRow>, IndexError> {
        let mut row = [0; STREAM_ROW_BYTES];
        if !self.streams.find(&self.reader, key, &mut row)? {
            return Ok(None);
        }
        self.decode_stream(&row).map(Some)
    }

    fn find_facet(&self, key: FacetKey) -> Result<Option<PostingList>, IndexError> {
        let mut row = [0; FACET_ROW_BYTES];
        if !self.facets.find(&self.reader, key, &mut row)? {
            return Ok(None);
        }
        self.decode_list(&row[8..], self.facets.section.offset)
            .map(Some)
    }

    pub(crate) fn decode_stream(&self, row: &[u8]) -> Result<StreamRow, IndexError> {
        let offset = self.streams.section.offset;
        let row = StreamRow {
            key: crate::table::TableKey::read(row),
            first_revision: get_u64(row, 16),
            previous_sequence: get_u64(row, 24),
            list: self.decode_list(&row[32..], offset)?,
        };
        if row.previous_sequence >= self.binding.base_sequence {
            return Err(self.reader.corrupt(
                offset,
                "a stream's previous event is not before the segment",
            ));
        }
        if row
            .first_revision
            .checked_add(u64::from(row.list.count))
            .is_none()
        {
            return Err(self
                .reader
                .corrupt(offset, "a stream's revision is out of range"));
        }
        Ok(row)
    }

    pub(crate) fn decode_list(&self, bytes: &[u8], offset: u64) -> Result<PostingList, IndexError> {
        let list = PostingList::decode(bytes);
        if !list.is_plausible(self.binding.event_count) {
            return Err(self
                .reader
                .corrupt(offset, "a row's list of events cannot be"));
        }
        Ok(list)
    }

    pub(crate) fn extent(&self, row: &StreamRow) -> StreamExtent {
        StreamExtent {
            first_revision: row.first_revision,
            next_revision: row.first_revision + u64::from(row.list.count),
            previous_sequence: row.previous_sequence,
            first_sequence: self.binding.base_sequence + u64::from(row.list.first),
            last_sequence: self.binding.base_sequence + u64::from(row.list.last),
        }
    }

    pub(crate) fn append_postings(
        &self,
        section: &Section,
        list: &PostingList,
        start: u32,
        end: u32,
        out: &mut Vec<u64>,
    ) -> Result<(), IndexError> {
        let base = self.binding.base_sequence;
        list.visit(&self.reader, section, start, end, |event| {
            out.push(base + u64::from(event))
        })
    }
}

/// Streams of a segment in the order of their keys.
pub struct StreamRows<'a> {
    index: &'a SegmentIndex,
    rows: Rows<'a>,
    last: Option<StreamKey>,
}

impl StreamRows<'_> {
    /// The next stream, `None` after the last.
    pub fn next_stream(&mut self) -> Result<Option<(StreamKey, StreamExtent)>, IndexError> {
        let mut row = [0; STREAM_ROW_BYTES];
        if !self.rows.next(&mut row)? {
            return Ok(None);
        }
        let row = self.index.decode_stream(&row)?;
        if self.last.is_some_and(|last| row.key <= last) {
            let offset = self.index.streams.section.offset;
            return Err(self.index.reader.corrupt(offset, "streams are not sorted"));
        }
        self.last = Some(row.key);
        Ok(Some((row.key, self.index.extent(&row))))
    }
}

/// Sections that an index header lists.
pub(crate) fn sections_of(header: &[u8]) -> [Section; SECTIONS] {
    std::array::from_fn(|i| Section::decode(&header[112 + i * SECTION_ENTRY_BYTES..]))
}

fn saturating_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
