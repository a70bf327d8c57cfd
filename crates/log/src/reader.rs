//! Positioned reads of a segment, for queries.

use std::sync::Arc;

use bytes::Bytes;
use truthdb_io::{AlignedBuf, BLOCK_BYTES, BufferPool, File, OpenMode, PooledBuf, Storage};

use crate::active_index::SparseEntry;
use crate::batch::StoredBatch;
use crate::error::{CorruptReason, Corruption, ReadError};
use crate::layout::{FormatError, Place, align_block, to_u64, to_usize};
use crate::segment::{
    FOOTER_BYTES, Footer, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind, decode_sparse_index,
    segment_path,
};
use crate::source::{Link, NoBytes, NoItem, Source, Subject, next_active, next_packed};

/// Bytes of one read at least: a little more than the distance of sparse entries.
const READ_BYTES_MIN: u64 = 96 * 1024;
/// Bytes of one read at most, unless one batch or block is larger.
const READ_BYTES_MAX: u64 = 4 << 20;

/// Reads batches of one segment at any offset. Shared by all readers; holds no buffer of its own.
///
/// Everything returned was checked on the way: header and place, table, and every event.
#[derive(Clone)]
pub struct SegmentReader {
    file: Arc<dyn File>,
    subject: Subject,
    buffers: Option<Arc<BufferPool>>,
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader")
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

impl SegmentReader {
    /// A reader over an open file whose header is known.
    pub fn new(file: Arc<dyn File>, place: Place, kind: SegmentKind) -> SegmentReader {
        let path = segment_path(place.partition, place.segment);
        SegmentReader {
            file,
            subject: Subject { path, place, kind },
            buffers: None,
        }
    }

    /// Takes the memory of its reads from a pool from now on.
    #[must_use]
    pub fn with_buffers(mut self, buffers: &Arc<BufferPool>) -> SegmentReader {
        self.buffers = Some(Arc::clone(buffers));
        self
    }

    /// Opens a segment and checks its header.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the disk's, or a header that is damaged or not this segment's.
    pub fn open(
        storage: &dyn Storage,
        place: Place,
    ) -> Result<(SegmentReader, SegmentHeader), ReadError> {
        let path = segment_path(place.partition, place.segment);
        let opened = storage.open(&path, OpenMode::Read);
        let file = opened.map_err(|source| ReadError::Io {
            path,
            offset: 0,
            source,
        })?;
        let mut reader = SegmentReader::new(file, place, SegmentKind::Active);
        let block = reader.read_blocks(0, SEGMENT_HEADER_BYTES)?;
        let header = SegmentHeader::decode(&block)
            .and_then(|header| header.check_place(&place).map(|()| header))
            .map_err(|error| reader.damaged(0, 0, error))?;
        reader.subject.kind = header.kind;
        Ok((reader, header))
    }

    /// The open file.
    pub fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Path relative to the data directory.
    pub fn path(&self) -> &str {
        &self.subject.path
    }

    /// Which segment this is.
    pub fn place(&self) -> &Place {
        &self.subject.place
    }

    /// How the data is laid out.
    pub fn kind(&self) -> SegmentKind {
        self.subject.kind
    }

    /// The footer of a sealed segment; `None` if the file does not end in one.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the disk's, or a footer that is not this segment's or from a newer release.
    pub fn footer(&self) -> Result<Option<Footer>, ReadError> {
        let length = self.file.len().map_err(|source| self.io(0, source))?;
        if length < SEGMENT_HEADER_BYTES + FOOTER_BYTES
            || !length.is_multiple_of(to_u64(BLOCK_BYTES))
        {
            return Ok(None);
        }
        let offset = length - FOOTER_BYTES;
        let block = self.read_blocks(offset, FOOTER_BYTES)?;
        match Footer::decode(&block) {
            Ok(footer) => {
                let checked = footer.check_place(&self.subject.place, length);
                checked.map_err(|error| self.damaged(offset, footer.base_sequence, error))?;
                Ok(Some(footer))
            }
            Err(FormatError::Magic { .. } | FormatError::Checksum { .. }) => Ok(None),
            Err(error) => Err(self.damaged(offset, 0, error)),
        }
    }

    /// The sparse index of a sealed segment.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the disk's, or an index that is damaged.
    pub fn sparse_index(&self, footer: &Footer) -> Result<Vec<SparseEntry>, ReadError> {
        let offset = footer.sparse_offset;
        let block = self.read_blocks(offset, align_block(footer.sparse_bytes()))?;
        decode_sparse_index(&block, footer.sparse_entries)
            .map_err(|error| self.damaged(offset, footer.base_sequence, error))
    }

    /// Reads batches from `offset`, where a batch or a packed block begins, up to `end_offset`,
    /// until they hold `bytes_max` bytes or more (at least one batch, or one packed block). Returns
    /// them with the offset to go on from, which is `end_offset` or more at the end. Marks are
    /// skipped.
    ///
    /// `first_sequence` is what the caller expects first; it is checked, and named in errors.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the disk's, or what is damaged.
    pub fn read_batches(
        &self,
        offset: u64,
        end_offset: u64,
        first_sequence: u64,
        bytes_max: usize,
    ) -> Result<(Vec<StoredBatch>, u64), ReadError> {
        let mut bytes = align_block(to_u64(bytes_max)).clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        loop {
            let start = offset - offset % to_u64(BLOCK_BYTES);
            let end = align_block(end_offset).min(start.saturating_add(bytes));
            if start >= end {
                return Ok((Vec::new(), offset));
            }
            let block = self.read_blocks(start, end - start)?;
            let mut source = Buffer {
                start,
                bytes: block,
            };
            let walk = self.walk(&mut source, offset, end_offset, first_sequence, bytes_max);
            match walk? {
                Walk::Read(batches, next_offset) => return Ok((batches, next_offset)),
                Walk::Short(needed) => bytes = align_block(needed) - start,
            }
        }
    }

    /// Reads batches out of a buffer until it has enough, or the buffer has no more.
    fn walk(
        &self,
        source: &mut Buffer,
        offset: u64,
        end: u64,
        first_sequence: u64,
        bytes_max: usize,
    ) -> Result<Walk, ReadError> {
        let mut batches = Vec::new();
        let mut bytes = 0;
        let mut position = offset;
        let mut link = Link {
            next_sequence: Some(first_sequence),
            checksum: None,
        };
        while bytes < bytes_max || batches.is_empty() {
            let before = position;
            let next = match self.subject.kind {
                SegmentKind::Active => {
                    next_active(source, &self.subject, &mut position, end, &link).map(|item| {
                        item.map(|item| {
                            link.checksum = Some(item.header_checksum);
                            item.batch.into_iter().collect()
                        })
                    })
                }
                SegmentKind::Packed => {
                    next_packed(source, &self.subject, &mut position, end, &link)
                }
            };
            let next_sequence = link.next_sequence.unwrap_or(first_sequence);
            let found: Vec<StoredBatch> = match next {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(NoItem::Bytes(NoBytes::Short(_))) if before > offset => {
                    return Ok(Walk::Read(batches, before));
                }
                Err(NoItem::Bytes(NoBytes::Short(needed)))
                    if align_block(needed) <= align_block(end) =>
                {
                    return Ok(Walk::Short(needed));
                }
                Err(error) => return Err(self.subject.error(error, next_sequence)),
            };
            if let Some(last) = found.last() {
                link.next_sequence = Some(last.last_sequence() + 1);
            }
            bytes += found.iter().map(StoredBatch::body_bytes).sum::<usize>();
            batches.extend(found);
        }
        Ok(Walk::Read(batches, position))
    }

    fn read_blocks(&self, offset: u64, bytes: u64) -> Result<Bytes, ReadError> {
        let bytes = to_usize(bytes);
        let mut buffer = match &self.buffers {
            Some(buffers) => buffers.take(bytes),
            None => PooledBuf::own(AlignedBuf::new_zeroed(bytes)),
        };
        let read = self
            .file
            .read_at(&mut buffer, bytes, offset)
            .map_err(|source| self.io(offset, source))?;
        if read < bytes {
            return Err(self.io(
                offset + to_u64(read),
                std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        // Nothing beyond what was read is shown: a pooled buffer may hold other bytes there.
        Ok(Bytes::from_owner(buffer).slice(..bytes))
    }

    fn io(&self, offset: u64, source: std::io::Error) -> ReadError {
        ReadError::Io {
            path: self.subject.path.clone(),
            offset,
            source,
        }
    }

    fn damaged(&self, offset: u64, first_sequence: u64, error: FormatError) -> ReadError {
        let path = self.subject.path.clone();
        let reason = CorruptReason::Format(error);
        Box::new(Corruption {
            path,
            offset,
            first_sequence,
            last_sequence: None,
            reason,
        })
        .into()
    }
}

/// Where to begin reading for a sequence: the last sparse entry at or before it, or the start of
/// the data.
pub fn sparse_floor(entries: &[SparseEntry], sequence: u64, base_sequence: u64) -> SparseEntry {
    let after = entries.partition_point(|entry| entry.sequence <= sequence);
    floor_entry(entries, after, base_sequence)
}

/// Where to begin reading for the first event at or after a time: the last sparse entry before it,
/// or the start of the data.
pub fn sparse_floor_time(
    entries: &[SparseEntry],
    timestamp_ns: u64,
    base_sequence: u64,
) -> SparseEntry {
    let after = entries.partition_point(|entry| entry.timestamp_ns < timestamp_ns);
    floor_entry(entries, after, base_sequence)
}

fn floor_entry(entries: &[SparseEntry], after: usize, base_sequence: u64) -> SparseEntry {
    let start = SparseEntry {
        sequence: base_sequence,
        offset: SEGMENT_HEADER_BYTES,
        timestamp_ns: 0,
    };
    after
        .checked_sub(1)
        .and_then(|index| entries.get(index))
        .copied()
        .unwrap_or(start)
}

/// What came out of a buffer.
enum Walk {
    /// Batches, and where to go on.
    Read(Vec<StoredBatch>, u64),
    /// Nothing: the first item needs bytes up to this offset.
    Short(u64),
}

/// One read of a file.
struct Buffer {
    start: u64,
    bytes: Bytes,
}

impl Source for Buffer {
    fn get(&mut self, offset: u64, bytes: usize) -> Result<Bytes, NoBytes> {
        let end = offset + to_u64(bytes);
        if offset < self.start || end > self.start + to_u64(self.bytes.len()) {
            return Err(NoBytes::Short(end));
        }
        let at = to_usize(offset - self.start);
        Ok(self.bytes.slice(at..at + bytes))
    }
}
