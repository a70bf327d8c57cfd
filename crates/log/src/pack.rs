//! Writing a segment densely: batches back to back in blocks, without padding, perhaps compressed.

use std::io;
use std::sync::Arc;

use truthdb_io::{AlignedBuf, BLOCK_BYTES, File};

use crate::active_index::SparseEntry;
use crate::batch::StoredBatch;
use crate::layout::{Place, align_block, align8};
use crate::segment::{
    Codec, FOOTER_BYTES, Footer, PACKED_BATCH_HEADER_BYTES, PACKED_BLOCK_HEADER_BYTES,
    PACKED_BLOCK_RAW_BYTES, PackedBlockHeader, SEGMENT_HEADER_BYTES, SegmentHeader,
    encode_sparse_index, sparse_index_bytes, stored_checksum,
};

/// Whether packed blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Stored as they are.
    #[default]
    None,
    /// By zstd, level 3, each block that shrinks by more than 5 %.
    Zstd,
}

/// Level of zstd: its own default, about 300 MB/s on one core.
const ZSTD_LEVEL: i32 = 3;
/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;

/// Size of the packed file without compression, computed while the batches go by.
#[derive(Debug, Default)]
pub(crate) struct PackedSize {
    data_bytes: u64,
    blocks: u64,
    raw_bytes: usize,
}

impl PackedSize {
    pub(crate) fn add(&mut self, batch: &StoredBatch) {
        let bytes = record_bytes(batch);
        if self.raw_bytes > 0 && self.raw_bytes + bytes > PACKED_BLOCK_RAW_BYTES {
            self.end_block();
        }
        self.raw_bytes += bytes;
    }

    fn end_block(&mut self) {
        self.data_bytes += (PACKED_BLOCK_HEADER_BYTES + self.raw_bytes) as u64;
        self.blocks += 1;
        self.raw_bytes = 0;
    }

    /// Bytes of the whole file.
    pub(crate) fn file_bytes(mut self) -> u64 {
        if self.raw_bytes > 0 {
            self.end_block();
        }
        sealed_file_bytes(
            align_block(SEGMENT_HEADER_BYTES + self.data_bytes),
            self.blocks,
        )
    }
}

/// Bytes of a sealed file whose data ends at a block boundary.
pub(crate) fn sealed_file_bytes(data_end: u64, sparse_entries: u64) -> u64 {
    align_block(data_end + sparse_index_bytes(sparse_entries)) + FOOTER_BYTES
}

/// Bytes of a batch in a block before compression, padding included.
fn record_bytes(batch: &StoredBatch) -> usize {
    PACKED_BATCH_HEADER_BYTES + batch.body_bytes().next_multiple_of(8)
}

/// Writes the packed file front to back. Nothing is durable before [`PackWriter::finish`].
pub(crate) struct PackWriter {
    file: Arc<dyn File>,
    place: Place,
    buf: AlignedBuf,
    filled: usize,
    /// Offset in the file of the first byte of `buf`.
    buf_offset: u64,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    compressed: Vec<u8>,
    raw: Vec<u8>,
    /// Of the block being filled.
    first_sequence: u64,
    first_timestamp_ns: u64,
    batch_count: u32,
    event_count: u32,
    sparse: Vec<SparseEntry>,
}

impl PackWriter {
    pub(crate) fn new(
        file: Arc<dyn File>,
        header: &SegmentHeader,
        compression: Compression,
    ) -> io::Result<PackWriter> {
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd => Some(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
        };
        let mut writer = PackWriter {
            file,
            place: header.place,
            buf: AlignedBuf::new_zeroed(WRITE_BYTES),
            filled: 0,
            buf_offset: 0,
            compressor,
            compressed: Vec::new(),
            raw: Vec::new(),
            first_sequence: 0,
            first_timestamp_ns: 0,
            batch_count: 0,
            event_count: 0,
            sparse: Vec::new(),
        };
        writer.write(&header.encode())?;
        Ok(writer)
    }

    /// Adds the next batch.
    pub(crate) fn push(&mut self, batch: &StoredBatch) -> io::Result<()> {
        let full = self.raw.len() + record_bytes(batch) > PACKED_BLOCK_RAW_BYTES;
        if full && !self.raw.is_empty() {
            self.end_block()?;
        }
        if self.raw.is_empty() {
            self.first_sequence = batch.first_sequence;
            self.first_timestamp_ns = batch.timestamp_ns;
        }
        let body_bytes = narrow(batch.body_bytes());
        self.raw.extend_from_slice(&batch.event_count.to_le_bytes());
        self.raw.extend_from_slice(&body_bytes.to_le_bytes());
        self.raw
            .extend_from_slice(&batch.timestamp_ns.to_le_bytes());
        self.raw.extend_from_slice(&batch.body);
        self.raw.resize(self.raw.len().next_multiple_of(8), 0);
        self.batch_count += 1;
        self.event_count += batch.event_count;
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let mut codec = Codec::None;
        if let Some(compressor) = &mut self.compressor {
            self.compressed.clear();
            self.compressed
                .reserve(zstd::zstd_safe::compress_bound(self.raw.len()));
            compressor.compress_to_buffer(&self.raw, &mut self.compressed)?;
            if self.compressed.len() * 100 < self.raw.len() * 95 {
                codec = Codec::Zstd;
            }
        }
        let stored = match codec {
            Codec::None => std::mem::take(&mut self.raw),
            Codec::Zstd => std::mem::take(&mut self.compressed),
        };
        let offset = self.position();
        let raw_bytes = if codec == Codec::None {
            stored.len()
        } else {
            self.raw.len()
        };
        let header = PackedBlockHeader {
            codec,
            place: self.place,
            offset,
            first_sequence: self.first_sequence,
            batch_count: self.batch_count,
            raw_bytes: narrow(raw_bytes),
            stored_bytes: narrow(stored.len()),
            event_count: self.event_count,
            stored_checksum: stored_checksum(&stored),
        };
        self.write(&header.encode())?;
        self.write(&stored)?;
        let padded = align8(self.position());
        self.zero_to(padded)?;
        let (sequence, timestamp_ns) = (self.first_sequence, self.first_timestamp_ns);
        self.sparse.push(SparseEntry {
            sequence,
            offset,
            timestamp_ns,
        });
        match codec {
            Codec::None => self.raw = stored,
            Codec::Zstd => self.compressed = stored,
        }
        self.raw.clear();
        (self.batch_count, self.event_count) = (0, 0);
        Ok(())
    }

    /// Writes the last block, the sparse index and the footer, which `footer` makes of data end,
    /// sparse offset and number of
    /// sparse entries, and makes the file durable. Returns the footer and the file's length.
    pub(crate) fn finish(
        mut self,
        footer: impl FnOnce(u64, u64) -> Footer,
    ) -> io::Result<(Footer, u64)> {
        if !self.raw.is_empty() {
            self.end_block()?;
        }
        let data_end = align_block(self.position());
        self.zero_to(data_end)?;
        let footer = footer(data_end, self.sparse.len() as u64);
        let sparse = encode_sparse_index(&self.sparse);
        self.write(&sparse)?;
        self.write(&footer.encode())?;
        let file_bytes = self.position();
        self.write_out()?;
        self.file.sync()?;
        Ok((footer, file_bytes))
    }

    fn position(&self) -> u64 {
        self.buf_offset + self.filled as u64
    }

    /// Bytes handed to the device so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.buf_offset
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.filled));
            self.buf[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
            if self.filled == WRITE_BYTES {
                self.write_out()?;
            }
        }
        Ok(())
    }

    /// Less than a block of zeros.
    fn zero_to(&mut self, position: u64) -> io::Result<()> {
        let zeros = [0; BLOCK_BYTES];
        let bytes = usize::try_from(position - self.position()).expect("less than a block");
        self.write(&zeros[..bytes])
    }

    fn write_out(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            assert!(
                self.filled.is_multiple_of(BLOCK_BYTES),
                "sections end on block boundaries"
            );
            self.file
                .write_at(&self.buf, self.filled, self.buf_offset)?;
            self.buf_offset += self.filled as u64;
            self.filled = 0;
        }
        Ok(())
    }
}

fn narrow(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a batch and a block stay far below 4 GiB")
}
