//! Reading a sealed segment for `verify`: its items in order, and the padding between them.

use std::sync::Arc;

use truthdb_io::Storage;

use crate::batch::BATCH_HEADER_BYTES;
use crate::error::{CorruptReason, ReadError};
use crate::layout::{align_block, is_zero, to_usize};
use crate::reader::SegmentReader;
use crate::scan::{ScannedBatch, Windows};
use crate::segment::{Footer, PACKED_BLOCK_HEADER_BYTES, PackedBlockHeader, SegmentKind};
use crate::source::{Link, NoItem, Source, Subject, next_active, next_packed};

/// Reads a segment's items and looks at the padding between them.
pub(crate) struct Walk<'a> {
    windows: Windows,
    subject: Subject,
    pub(crate) reader: &'a SegmentReader,
    pub(crate) position: u64,
    link: Link,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        storage: &Arc<dyn Storage>,
        reader: &'a SegmentReader,
        footer: &Footer,
        position: u64,
        link: Link,
    ) -> Result<Walk<'a>, ReadError> {
        let (path, place, kind) = (reader.path().to_owned(), *reader.place(), footer.kind);
        let start = position - position % 4096;
        let file = Arc::clone(reader.file());
        let windows = Windows::new(storage.as_ref(), file, start, align_block(footer.data_end));
        let windows = windows.map_err(|source| ReadError::Io {
            path: path.clone(),
            offset: position,
            source,
        })?;
        Ok(Walk {
            windows,
            subject: Subject { path, place, kind },
            reader,
            position,
            link,
        })
    }

    /// The batches of the next item; `None` at the end. At an error the position stays.
    pub(crate) fn next(&mut self, footer: &Footer) -> Result<Option<Vec<ScannedBatch>>, ReadError> {
        let next_sequence = self.link.next_sequence.unwrap_or(0);
        let mut position = self.position;
        let result = match self.subject.kind {
            SegmentKind::Active => self.next_active(&mut position, footer.data_end),
            SegmentKind::Packed => self.next_packed(&mut position, footer.data_end),
        };
        let result = result.map_err(|error| self.subject.error(error, next_sequence))?;
        self.position = position;
        Ok(result)
    }

    fn next_active(
        &mut self,
        position: &mut u64,
        end: u64,
    ) -> Result<Option<Vec<ScannedBatch>>, NoItem> {
        let item = next_active(&mut self.windows, &self.subject, position, end, &self.link)?;
        let Some(item) = item else { return Ok(None) };
        let header = item.header;
        let body_end = header.offset + BATCH_HEADER_BYTES as u64 + u64::from(header.body_bytes);
        self.check_padding(body_end, *position)?;
        self.link.checksum = Some(item.header_checksum);
        self.link.next_sequence = Some(header.next_sequence());
        let scanned = |batch| ScannedBatch {
            offset: header.offset,
            batch,
        };
        Ok(Some(item.batch.into_iter().map(scanned).collect()))
    }

    fn next_packed(
        &mut self,
        position: &mut u64,
        end: u64,
    ) -> Result<Option<Vec<ScannedBatch>>, NoItem> {
        let offset = *position;
        let encoded = match end.saturating_sub(offset) >= PACKED_BLOCK_HEADER_BYTES as u64 {
            true => Some(self.windows.get(offset, PACKED_BLOCK_HEADER_BYTES)?),
            false => None,
        };
        let found = next_packed(&mut self.windows, &self.subject, position, end, &self.link)?;
        let Some(batches) = found else {
            return Ok(None);
        };
        if let Some(header) = encoded.and_then(|bytes| PackedBlockHeader::decode(&bytes).ok()) {
            let stored = PACKED_BLOCK_HEADER_BYTES as u64 + u64::from(header.stored_bytes);
            self.check_padding(offset + stored, *position)?;
        }
        if let Some(last) = batches.last() {
            self.link.next_sequence = Some(last.last_sequence() + 1);
        }
        Ok(Some(
            batches
                .into_iter()
                .map(|batch| ScannedBatch { offset, batch })
                .collect(),
        ))
    }

    fn check_padding(&mut self, start: u64, end: u64) -> Result<(), NoItem> {
        if start < end && !is_zero(&self.windows.get(start, to_usize(end - start))?) {
            let reason = CorruptReason::Unpack {
                reason: "padding is not zero".to_owned(),
            };
            return Err(NoItem::Corrupt {
                offset: start,
                last_sequence: None,
                reason,
            });
        }
        Ok(())
    }
}
