//! Segment files: names, header block, packed blocks, sparse index, footer block.

use truthdb_io::BLOCK_BYTES;

use crate::active_index::SparseEntry;
use crate::layout::{
    FieldReader, FieldWriter, FormatError, Place, check_place, check_preamble, checksum,
    put_checksum, to_u64, to_usize, u64_at,
};

/// Length of the header at the start of a segment file: one block. Data begins here.
pub const SEGMENT_HEADER_BYTES: u64 = BLOCK_BYTES as u64;
/// Length of the footer at the end of a sealed segment file: one block.
pub const FOOTER_BYTES: u64 = BLOCK_BYTES as u64;
/// Smallest size of a segment.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 20;
/// Largest size of a segment.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Size of a segment unless the database was made with another.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// Newest version of header, footer and packed blocks, and the one written.
pub const SEGMENT_VERSION: u16 = 1;
/// Length of the header of a packed block.
pub const PACKED_BLOCK_HEADER_BYTES: usize = 96;
/// Length of the record before each body in a packed block.
pub const PACKED_BATCH_HEADER_BYTES: usize = 16;
/// Raw bytes of a packed block at most, unless it holds a single batch.
pub const PACKED_BLOCK_RAW_BYTES: usize = 256 * 1024;
/// Length of a sparse index entry.
pub const SPARSE_ENTRY_BYTES: usize = 24;

const SEGMENT_MAGIC: [u8; 4] = *b"TSEG";
const FOOTER_MAGIC: [u8; 4] = *b"TFTR";
const PACKED_MAGIC: [u8; 4] = *b"TPKB";
const HEADER: &str = "segment header";
const FOOTER: &str = "segment footer";
const PACKED: &str = "packed block header";
const SPARSE: &str = "sparse index";

const _: () = assert!(SEGMENT_BYTES_MIN >= 2 * truthdb_event::BATCH_BYTES_MAX as u64);
const _: () = assert!(PACKED_BLOCK_HEADER_BYTES.is_multiple_of(8));

/// Where the data of an unsealed segment of this size must end at the latest: the last block is
/// kept for the footer, so that nothing a client sends can ever be mistaken for one.
pub const fn segment_data_end_max(segment_bytes: u64) -> u64 {
    segment_bytes - FOOTER_BYTES
}

/// How the data of a segment is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// Batches with headers of their own, in groups that begin on a block.
    Active,
    /// Blocks of many batches, perhaps compressed.
    Packed,
}

impl SegmentKind {
    fn code(self) -> u16 {
        match self {
            SegmentKind::Active => 1,
            SegmentKind::Packed => 2,
        }
    }

    fn decode(structure: &'static str, code: u16) -> Result<SegmentKind, FormatError> {
        match code {
            1 => Ok(SegmentKind::Active),
            2 => Ok(SegmentKind::Packed),
            _ => Err(FormatError::Field {
                structure,
                field: "kind",
                found: code.into(),
                reason: "1 (active layout) or 2 (packed)",
            }),
        }
    }
}

/// First segment and sequence that a partition still had when a structure was written; earlier ones
/// were trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimPoint {
    /// First segment kept.
    pub first_segment: u32,
    /// First sequence kept.
    pub first_sequence: u64,
}

impl TrimPoint {
    /// Nothing was trimmed.
    pub const NONE: TrimPoint = TrimPoint {
        first_segment: 1,
        first_sequence: 1,
    };
}

/// First block of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// How the data is laid out.
    pub kind: SegmentKind,
    /// Which segment this is.
    pub place: Place,
    /// Sequence of the first event in the segment.
    pub base_sequence: u64,
    /// Size of segments of this database, in bytes.
    pub segment_bytes: u64,
    /// Checksum of the last batch header or mark of the segment before; 0 for the first segment.
    ///
    /// The header of a new segment may become durable only when everything in the segment before
    /// is: recovery takes this field as the proof of where the segment before ends.
    pub previous_checksum: u64,
    /// Trim point when the header was written.
    pub trim: TrimPoint,
    /// When the segment was begun, nanoseconds since 1970 UTC.
    pub created_ns: u64,
}

impl SegmentHeader {
    /// The header block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK_BYTES];
        FieldWriter::new(&mut block, 8)
            .bytes(&SEGMENT_MAGIC)
            .u16(SEGMENT_VERSION)
            .u16(self.kind.code())
            .place(&self.place)
            .u64(self.base_sequence)
            .u64(self.segment_bytes)
            .u64(self.previous_checksum)
            .u32(self.trim.first_segment)
            .u32(0)
            .u64(self.trim.first_sequence)
            .u64(self.created_ns);
        put_checksum(&mut block);
        block
    }

    /// Reads a header block.
    ///
    /// # Errors
    ///
    /// What is wrong, with the name of the field.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, FormatError> {
        check_preamble(HEADER, block, BLOCK_BYTES, SEGMENT_MAGIC, SEGMENT_VERSION)?;
        let mut fields = FieldReader::new(&block[..BLOCK_BYTES], 14);
        let kind = SegmentKind::decode(HEADER, fields.u16())?;
        let place = fields.place();
        let (base_sequence, segment_bytes) = (fields.u64(), fields.u64());
        let previous_checksum = fields.u64();
        let (first_segment, reserved) = (fields.u32(), fields.u32());
        let trim = TrimPoint {
            first_segment,
            first_sequence: fields.u64(),
        };
        let created_ns = fields.u64();
        let field = |holds, field, found, reason| require(HEADER, holds, field, found, reason);
        field(
            reserved == 0 && fields.rest_is_zero(),
            "reserved bytes",
            1,
            "zero",
        )?;
        field(place.segment > 0, "segment", 0, "at least 1")?;
        field(base_sequence > 0, "base sequence", 0, "at least 1")?;
        check_segment_bytes(segment_bytes).map_err(|reason| FormatError::Field {
            structure: HEADER,
            field: "segment bytes",
            found: segment_bytes,
            reason,
        })?;
        check_trim(HEADER, trim, place.segment, base_sequence)?;
        Ok(SegmentHeader {
            kind,
            place,
            base_sequence,
            segment_bytes,
            previous_checksum,
            trim,
            created_ns,
        })
    }

    /// Checks that the header was written for this place.
    ///
    /// # Errors
    ///
    /// [`FormatError::Misplaced`] names the field that differs.
    pub fn check_place(&self, place: &Place) -> Result<(), FormatError> {
        check_place(HEADER, place, &self.place)
    }
}

/// Checks a size for segments.
///
/// # Errors
///
/// What it should be.
pub fn check_segment_bytes(segment_bytes: u64) -> Result<(), &'static str> {
    if !segment_bytes.is_multiple_of(to_u64(BLOCK_BYTES)) {
        return Err("a multiple of 4096");
    }
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
        return Err("16 MiB to 1 GiB");
    }
    Ok(())
}

fn check_trim(
    structure: &'static str,
    trim: TrimPoint,
    segment: u32,
    base_sequence: u64,
) -> Result<(), FormatError> {
    let TrimPoint {
        first_segment,
        first_sequence,
    } = trim;
    let in_order = 0 < first_segment && first_segment <= segment;
    require(
        structure,
        in_order,
        "first segment",
        first_segment.into(),
        "1 to the segment itself",
    )?;
    let in_order = 0 < first_sequence && first_sequence <= base_sequence;
    require(
        structure,
        in_order,
        "first sequence",
        first_sequence,
        "1 to the base sequence",
    )
}

fn require(
    structure: &'static str,
    holds: bool,
    field: &'static str,
    found: u64,
    reason: &'static str,
) -> Result<(), FormatError> {
    if holds {
        Ok(())
    } else {
        Err(FormatError::Field {
            structure,
            field,
            found,
            reason,
        })
    }
}

/// Last block of a sealed segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// How the data is laid out.
    pub kind: SegmentKind,
    /// Which segment this is.
    pub place: Place,
    /// Sequence of the first event in the segment.
    pub base_sequence: u64,
    /// Sequence of the last event; `base_sequence - 1` if there is none.
    pub last_sequence: u64,
    /// Number of batches, marks not counted.
    pub batch_count: u64,
    /// Time of the first event, nanoseconds since 1970 UTC; 0 if there is none.
    pub first_timestamp_ns: u64,
    /// Time of the last event, nanoseconds since 1970 UTC; 0 if there is none.
    pub last_timestamp_ns: u64,
    /// Offset of the first byte after the data and its padding; a multiple of the block.
    pub data_end: u64,
    /// Offset of the sparse index; a multiple of the block.
    pub sparse_offset: u64,
    /// Entries of the sparse index.
    pub sparse_entries: u64,
    /// Bytes of table rows and canonical events.
    pub event_bytes: u64,
    /// Checksum of the last batch header or mark before the segment was packed: the next segment's
    /// [`SegmentHeader::previous_checksum`].
    pub last_batch_checksum: u64,
    /// BLAKE3 root over the batches.
    pub root: [u8; 32],
    /// Chain hash of the segment before.
    pub previous_chain: [u8; 32],
    /// Chain hash of this segment.
    pub chain: [u8; 32],
    /// Trim point when the segment was sealed.
    pub trim: TrimPoint,
}

impl Footer {
    /// Number of events.
    pub fn event_count(&self) -> u64 {
        self.last_sequence + 1 - self.base_sequence
    }

    /// Bytes that the sparse index takes, with its checksum and without padding.
    pub fn sparse_bytes(&self) -> u64 {
        sparse_index_bytes(self.sparse_entries)
    }

    /// The footer block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK_BYTES];
        FieldWriter::new(&mut block, 8)
            .bytes(&FOOTER_MAGIC)
            .u16(SEGMENT_VERSION)
            .u16(self.kind.code())
            .place(&self.place)
            .u64(self.base_sequence)
            .u64(self.last_sequence)
            .u64(self.event_count())
            .u64(self.batch_count)
            .u64(self.first_timestamp_ns)
            .u64(self.last_timestamp_ns)
            .u64(self.data_end)
            .u64(self.sparse_offset)
            .u64(self.sparse_entries)
            .u64(self.event_bytes)
            .u64(self.last_batch_checksum)
            .bytes(&self.root)
            .bytes(&self.previous_chain)
            .bytes(&self.chain)
            .u32(self.trim.first_segment)
            .u32(0)
            .u64(self.trim.first_sequence);
        put_checksum(&mut block);
        block
    }

    /// Reads a footer block.
    ///
    /// # Errors
    ///
    /// What is wrong, with the name of the field. [`FormatError::Magic`] and
    /// [`FormatError::Checksum`] say that the block is no footer at all, as in every unsealed
    /// segment.
    pub fn decode(block: &[u8]) -> Result<Footer, FormatError> {
        check_preamble(FOOTER, block, BLOCK_BYTES, FOOTER_MAGIC, SEGMENT_VERSION)?;
        let mut fields = FieldReader::new(&block[..BLOCK_BYTES], 14);
        let kind = SegmentKind::decode(FOOTER, fields.u16())?;
        let place = fields.place();
        let (base_sequence, last_sequence) = (fields.u64(), fields.u64());
        let event_count = fields.u64();
        let footer = Footer {
            kind,
            place,
            base_sequence,
            last_sequence,
            batch_count: fields.u64(),
            first_timestamp_ns: fields.u64(),
            last_timestamp_ns: fields.u64(),
            data_end: fields.u64(),
            sparse_offset: fields.u64(),
            sparse_entries: fields.u64(),
            event_bytes: fields.u64(),
            last_batch_checksum: fields.u64(),
            root: fields.array(),
            previous_chain: fields.array(),
            chain: fields.array(),
            trim: {
                let (first_segment, reserved) = (fields.u32(), fields.u32());
                require(
                    FOOTER,
                    reserved == 0,
                    "reserved bytes",
                    reserved.into(),
                    "zero",
                )?;
                TrimPoint {
                    first_segment,
                    first_sequence: fields.u64(),
                }
            },
        };
        require(FOOTER, fields.rest_is_zero(), "reserved bytes", 1, "zero")?;
        footer.check_fields(event_count)?;
        Ok(footer)
    }

    fn check_fields(&self, event_count: u64) -> Result<(), FormatError> {
        let field = |holds, field, found, reason| require(FOOTER, holds, field, found, reason);
        field(self.place.segment > 0, "segment", 0, "at least 1")?;
        field(self.base_sequence > 0, "base sequence", 0, "at least 1")?;
        let after_last = self.last_sequence.checked_add(1);
        let counted = after_last.and_then(|after| after.checked_sub(self.base_sequence));
        let last = self.last_sequence;
        field(
            counted.is_some(),
            "last sequence",
            last,
            "at least the base sequence - 1",
        )?;
        let agrees = counted == Some(event_count);
        field(
            agrees,
            "event count",
            event_count,
            "last sequence + 1 - base sequence",
        )?;
        let batches = self.batch_count;
        let possible = batches <= event_count && (batches > 0) == (event_count > 0);
        field(possible, "batch count", batches, "1 to the event count")?;
        let (first, last) = (self.first_timestamp_ns, self.last_timestamp_ns);
        field(
            first <= last,
            "first timestamp",
            first,
            "at most the last timestamp",
        )?;
        let block = to_u64(BLOCK_BYTES);
        let aligned = self.data_end >= SEGMENT_HEADER_BYTES && self.data_end.is_multiple_of(block);
        field(
            aligned,
            "data end",
            self.data_end,
            "a block boundary after the header",
        )?;
        let aligned =
            self.sparse_offset >= self.data_end && self.sparse_offset.is_multiple_of(block);
        field(
            aligned,
            "sparse offset",
            self.sparse_offset,
            "a block boundary after the data",
        )?;
        let possible = self.sparse_entries <= self.batch_count;
        field(
            possible,
            "sparse entries",
            self.sparse_entries,
            "at most one for each batch",
        )?;
        check_trim(FOOTER, self.trim, self.place.segment, self.base_sequence)
    }

    /// Checks that the footer was written for this place and a file of this length.
    ///
    /// # Errors
    ///
    /// [`FormatError::Misplaced`] names the field that differs.
    pub fn check_place(&self, place: &Place, file_bytes: u64) -> Result<(), FormatError> {
        check_place(FOOTER, place, &self.place)?;
        let expected = self.file_bytes();
        if expected != Some(file_bytes) {
            let expected =
                expected.map_or_else(|| "an impossible length".into(), |n| n.to_string());
            return Err(FormatError::misplaced(
                FOOTER,
                "file length",
                expected,
                file_bytes,
            ));
        }
        Ok(())
    }

    /// Length of the file that ends in this footer.
    pub fn file_bytes(&self) -> Option<u64> {
        let sparse = self
            .sparse_entries
            .checked_mul(to_u64(SPARSE_ENTRY_BYTES))?
            .checked_add(8)?;
        let sparse_end = self.sparse_offset.checked_add(sparse)?;
        sparse_end
            .checked_next_multiple_of(to_u64(BLOCK_BYTES))?
            .checked_add(FOOTER_BYTES)
    }
}

/// Codec of a packed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Stored as it is.
    None,
    /// One zstd frame.
    Zstd,
}

/// Header of a packed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedBlockHeader {
    /// How the block is stored.
    pub codec: Codec,
    /// Database, partition and segment that the block was written for.
    pub place: Place,
    /// Place of this header in its file, in bytes.
    pub offset: u64,
    /// Sequence of the first event.
    pub first_sequence: u64,
    /// Batches in the block, at least 1.
    pub batch_count: u32,
    /// Bytes of the block before compression.
    pub raw_bytes: u32,
    /// Bytes of the block in the file, without padding.
    pub stored_bytes: u32,
    /// Events in the block.
    pub event_count: u32,
    /// xxHash64 of the stored bytes.
    pub stored_checksum: u64,
}

impl PackedBlockHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; PACKED_BLOCK_HEADER_BYTES] {
        let mut bytes = [0u8; PACKED_BLOCK_HEADER_BYTES];
        FieldWriter::new(&mut bytes, 8)
            .bytes(&PACKED_MAGIC)
            .u16(SEGMENT_VERSION)
            .u8(match self.codec {
                Codec::None => 0,
                Codec::Zstd => 1,
            })
            .u8(0)
            .place(&self.place)
            .u64(self.offset)
            .u64(self.first_sequence)
            .u32(self.batch_count)
            .u32(self.raw_bytes)
            .u32(self.stored_bytes)
            .u32(self.event_count)
            .u64(self.stored_checksum);
        put_checksum(&mut bytes);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// What is wrong, with the name of the field.
    pub fn decode(bytes: &[u8]) -> Result<PackedBlockHeader, FormatError> {
        let length = PACKED_BLOCK_HEADER_BYTES;
        check_preamble(PACKED, bytes, length, PACKED_MAGIC, SEGMENT_VERSION)?;
        let field = |holds, field, found, reason| require(PACKED, holds, field, found, reason);
        let mut fields = FieldReader::new(&bytes[..length], 14);
        let (codec, reserved) = (fields.u8(), fields.u8());
        field(reserved == 0, "reserved bytes", reserved.into(), "zero")?;
        field(codec <= 1, "codec", codec.into(), "0 (none) or 1 (zstd)")?;
        let header = PackedBlockHeader {
            codec: if codec == 0 { Codec::None } else { Codec::Zstd },
            place: fields.place(),
            offset: fields.u64(),
            first_sequence: fields.u64(),
            batch_count: fields.u32(),
            raw_bytes: fields.u32(),
            stored_bytes: fields.u32(),
            event_count: fields.u32(),
            stored_checksum: fields.u64(),
        };
        field(fields.rest_is_zero(), "reserved bytes", 1, "zero")?;
        header.check_fields()?;
        Ok(header)
    }

    fn check_fields(&self) -> Result<(), FormatError> {
        let field = |holds, field, found, reason| require(PACKED, holds, field, found, reason);
        field(
            self.offset.is_multiple_of(8),
            "offset",
            self.offset,
            "a multiple of 8",
        )?;
        field(self.first_sequence > 0, "first sequence", 0, "at least 1")?;
        let batches = self.batch_count;
        field(batches > 0, "batch count", batches.into(), "at least 1")?;
        let possible = self.event_count >= batches;
        field(
            possible,
            "event count",
            self.event_count.into(),
            "at least one for each batch",
        )?;
        let raw = u64::from(self.raw_bytes);
        field(
            raw <= PACKED_RAW_BYTES_MAX,
            "raw bytes",
            raw,
            "a block, or one batch of any size",
        )?;
        let stored = u64::from(self.stored_bytes);
        let possible = match self.codec {
            Codec::None => stored == raw,
            Codec::Zstd => stored < raw,
        };
        field(
            possible,
            "stored bytes",
            stored,
            "the raw bytes, less if compressed",
        )?;
        let last = self.first_sequence.checked_add(self.event_count.into());
        field(
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
    pub fn check_place(&self, place: &Place, offset: u64) -> Result<(), FormatError> {
        check_place(PACKED, place, &self.place)?;
        if self.offset != offset {
            return Err(FormatError::misplaced(
                PACKED,
                "offset",
                offset,
                self.offset,
            ));
        }
        Ok(())
    }

    /// Checks the stored bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError::Checksum`].
    pub fn check_stored(&self, stored: &[u8]) -> Result<(), FormatError> {
        let (found, computed) = (self.stored_checksum, checksum(stored));
        if found == computed {
            return Ok(());
        }
        Err(FormatError::Checksum {
            structure: "packed block",
            found,
            computed,
        })
    }

    /// Offset of the first byte after the block and its padding.
    pub fn end_offset(&self) -> u64 {
        let stored = u64::from(self.stored_bytes).next_multiple_of(8);
        self.offset + to_u64(PACKED_BLOCK_HEADER_BYTES) + stored
    }
}

/// Raw bytes of a packed block at most: the largest batch with its record.
const PACKED_RAW_BYTES_MAX: u64 =
    truthdb_event::BATCH_BYTES_MAX as u64 + PACKED_BATCH_HEADER_BYTES as u64 + 8;

/// Checksum of a packed block's stored bytes.
pub fn stored_checksum(stored: &[u8]) -> u64 {
    checksum(stored)
}

/// Bytes of a sparse index with this many entries, with its checksum and without padding.
pub const fn sparse_index_bytes(entries: u64) -> u64 {
    entries * SPARSE_ENTRY_BYTES as u64 + 8
}

/// The sparse index's bytes: entries, then the checksum over them. Padded to whole blocks.
pub fn encode_sparse_index(entries: &[SparseEntry]) -> Vec<u8> {
    let unpadded = to_usize(sparse_index_bytes(to_u64(entries.len())));
    let mut bytes = vec![0u8; unpadded.next_multiple_of(BLOCK_BYTES)];
    let mut fields = FieldWriter::new(&mut bytes, 0);
    for entry in entries {
        fields
            .u64(entry.sequence)
            .u64(entry.offset)
            .u64(entry.timestamp_ns);
    }
    let value = checksum(&bytes[..unpadded - 8]);
    FieldWriter::new(&mut bytes, unpadded - 8).u64(value);
    bytes
}

/// Reads a sparse index of so many entries.
///
/// # Errors
///
/// [`FormatError::TooShort`], [`FormatError::Checksum`], or [`FormatError::Field`] if the entries
/// do not ascend.
pub fn decode_sparse_index(bytes: &[u8], entries: u64) -> Result<Vec<SparseEntry>, FormatError> {
    let needed = entries
        .saturating_mul(to_u64(SPARSE_ENTRY_BYTES))
        .saturating_add(8);
    let available = to_u64(bytes.len());
    if needed > available {
        return Err(FormatError::TooShort {
            structure: SPARSE,
            needed,
            available,
        });
    }
    let end = to_usize(needed) - 8;
    let (found, computed) = (u64_at(bytes, end), checksum(&bytes[..end]));
    if found != computed {
        return Err(FormatError::Checksum {
            structure: SPARSE,
            found,
            computed,
        });
    }
    let rows = bytes[..end].chunks_exact(SPARSE_ENTRY_BYTES);
    let decoded: Vec<SparseEntry> = rows
        .map(|row| SparseEntry {
            sequence: u64_at(row, 0),
            offset: u64_at(row, 8),
            timestamp_ns: u64_at(row, 16),
        })
        .collect();
    for pair in decoded.windows(2) {
        let ascend = pair[0].sequence < pair[1].sequence && pair[0].offset < pair[1].offset;
        require(SPARSE, ascend, "entry", pair[1].sequence, "entries ascend")?;
    }
    Ok(decoded)
}

/// Directory of a partition: `partition-0000`.
pub fn partition_dir(partition: u32) -> String {
    format!("partition-{partition:04}")
}

/// Directory of a partition's segments: `partition-0000/wal`.
pub fn wal_dir(partition: u32) -> String {
    format!("partition-{partition:04}/wal")
}

/// Directory of a partition's indexes: `partition-0000/index`.
pub fn index_dir(partition: u32) -> String {
    format!("partition-{partition:04}/index")
}

/// Path of a segment: `partition-0000/wal/segment-00000001.log`.
pub fn segment_path(partition: u32, segment: u32) -> String {
    format!("partition-{partition:04}/wal/segment-{segment:08}.log")
}

/// Path of a segment that is being prepared or packed: [`segment_path`] with `.new`. Left over by a
/// crash, it is removed.
pub fn segment_new_path(partition: u32, segment: u32) -> String {
    format!("{}.new", segment_path(partition, segment))
}

/// The segment of a file name in the `wal` directory; `None` if it is not exactly such a name.
pub fn parse_segment_name(name: &str) -> Option<u32> {
    let segment: u32 = name
        .strip_prefix("segment-")?
        .strip_suffix(".log")?
        .parse()
        .ok()?;
    (segment > 0 && format!("segment-{segment:08}.log") == name).then_some(segment)
}

/// The partition of a directory name; `None` if it is not exactly such a name.
pub fn parse_partition_dir(name: &str) -> Option<u32> {
    let partition: u32 = name.strip_prefix("partition-")?.parse().ok()?;
    (partition_dir(partition) == name).then_some(partition)
}
