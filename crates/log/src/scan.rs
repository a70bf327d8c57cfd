//! Sequential reads of a whole segment, with reads kept in flight: recovery, replay, seal and
//! verification.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use truthdb_io::{AlignedBuf, Completion, File, IoQueue, Storage};

use crate::batch::StoredBatch;
use crate::error::ReadError;
use crate::layout::{Place, align_block, to_u64, to_usize};
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind, segment_path};
use crate::source::{Link, NoBytes, Source, Subject, next_active, next_packed};

/// Bytes of one read.
pub const SCAN_WINDOW_BYTES: usize = 1 << 20;
/// Reads in flight.
pub const SCAN_DEPTH: usize = 4;
/// Bytes of one read of a scan that goes on beside appends: what a group's write may have to wait
/// for at the device. Beside full scans (four reads of 1 MiB in flight) durable writes of 4 KiB took
/// 80 ms at the 99th percentile, beside gentle ones 0.8 ms (docs/adr/0007).
const GENTLE_WINDOW_BYTES: usize = 256 << 10;
/// Reads in flight of such a scan.
const GENTLE_DEPTH: usize = 1;
/// Buffers kept for the next reads while readers may still hold slices of them.
const RETIRED_MAX: usize = 2 * SCAN_DEPTH;

/// A buffer that slices of [`Bytes`] share with the scan, which reads into it again once they are
/// gone.
struct SharedBuf(Arc<AlignedBuf>);

impl AsRef<[u8]> for SharedBuf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// One read of the file.
struct Window {
    offset: u64,
    bytes: usize,
    /// `None` while in flight, or if the read failed.
    content: Option<Bytes>,
    failed: bool,
    buffer: Option<Arc<AlignedBuf>>,
}

/// The bytes of a file from a start to an end, read ahead in windows.
pub(crate) struct Windows {
    file: Arc<dyn File>,
    queue: Box<dyn IoQueue>,
    windows: VecDeque<Window>,
    retired: VecDeque<Arc<AlignedBuf>>,
    completions: Vec<Completion>,
    /// Where the next read begins.
    next_offset: u64,
    end: u64,
    /// [`SCAN_WINDOW_BYTES`], less for a small file.
    window_bytes: usize,
    depth: usize,
}

impl Windows {
    /// `start` and `end` are block boundaries within the file.
    pub(crate) fn new(
        storage: &dyn Storage,
        file: Arc<dyn File>,
        start: u64,
        end: u64,
    ) -> io::Result<Windows> {
        let queue = storage.queue(SCAN_DEPTH)?;
        let (windows, retired, completions) = (VecDeque::new(), VecDeque::new(), Vec::new());
        let next_offset = start;
        let window_bytes = to_usize(end - start).min(SCAN_WINDOW_BYTES);
        Ok(Windows {
            file,
            queue,
            windows,
            retired,
            completions,
            next_offset,
            end,
            window_bytes,
            depth: SCAN_DEPTH,
        })
    }

    /// Reads less at once, so that others get to the device in between. Before the first read.
    pub(crate) fn be_gentle(&mut self) {
        assert!(self.windows.is_empty(), "reads are in flight");
        self.window_bytes = self.window_bytes.min(GENTLE_WINDOW_BYTES);
        self.depth = GENTLE_DEPTH;
    }

    /// A buffer that nobody holds slices of any more, or a new one.
    fn buffer(&mut self) -> AlignedBuf {
        for _ in 0..self.retired.len() {
            let Some(candidate) = self.retired.pop_front() else {
                break;
            };
            match Arc::try_unwrap(candidate) {
                Ok(buffer) => return buffer,
                Err(held) => self.retired.push_back(held),
            }
        }
        AlignedBuf::new_zeroed(self.window_bytes)
    }

    /// Keeps reads in flight.
    fn submit(&mut self) {
        while self.next_offset < self.end && self.windows.len() < self.depth {
            let left = to_usize(self.end - self.next_offset);
            let bytes = left.min(self.window_bytes);
            let buffer = self.buffer();
            let offset = self.next_offset;
            self.queue.read(&self.file, buffer, bytes, offset, offset);
            let (content, failed, buffer) = (None, false, None);
            self.windows.push_back(Window {
                offset,
                bytes,
                content,
                failed,
                buffer,
            });
            self.next_offset += to_u64(bytes);
        }
        self.queue.poll(&mut self.completions);
        self.complete();
    }

    /// Whether a read can be submitted.
    fn has_room(&self) -> bool {
        self.next_offset < self.end && self.windows.len() < self.depth
    }

    fn complete(&mut self) {
        for completion in self.completions.drain(..) {
            let Some(window) = self.windows.iter_mut().find(|w| w.offset == completion.tag) else {
                continue;
            };
            match (completion.result, completion.read) {
                (Ok(()), Some((buffer, bytes))) if bytes == window.bytes => {
                    let buffer = Arc::new(buffer);
                    let content = Bytes::from_owner(SharedBuf(Arc::clone(&buffer)));
                    window.content = Some(content.slice(..bytes));
                    window.buffer = Some(buffer);
                }
                // Read again piece by piece when it is needed: the error then names its block.
                _ => window.failed = true,
            }
        }
    }

    /// Drops the windows that end at or before `offset`.
    fn release(&mut self, offset: u64) {
        while let Some(window) = self.windows.front() {
            let settled = window.content.is_some() || window.failed;
            if window.offset + to_u64(window.bytes) > offset || !settled {
                break;
            }
            let window = self.windows.pop_front();
            if let Some(buffer) = window.and_then(|window| window.buffer) {
                self.retired.push_back(buffer);
            }
            if self.retired.len() > RETIRED_MAX {
                self.retired.pop_front();
            }
        }
    }

    /// The part of the first window from `offset` on, at most `bytes`.
    fn front(&mut self, offset: u64, bytes: usize) -> Result<Bytes, NoBytes> {
        loop {
            self.release(offset);
            if self.has_room() {
                self.submit();
            }
            let Some(window) = self.windows.front() else {
                return Err(NoBytes::Short(offset + to_u64(bytes)));
            };
            if offset < window.offset {
                // A header that lies over the edge of a window is looked at twice by verification; the first
                // look has let the window go.
                return self.read_singly(offset, bytes);
            }
            let at = to_usize(offset - window.offset);
            if let Some(content) = &window.content
                && at < content.len()
            {
                return Ok(content.slice(at..content.len().min(at + bytes)));
            }
            if window.failed && at < window.bytes {
                let bytes = bytes.min(window.bytes - at);
                return self.read_singly(offset, bytes);
            }
            self.queue.wait(&mut self.completions, None);
            self.complete();
        }
    }

    /// Reads the blocks that hold a range, one by one, so that an unreadable one is named.
    fn read_singly(&self, offset: u64, bytes: usize) -> Result<Bytes, NoBytes> {
        let block_bytes = truthdb_io::BLOCK_BYTES;
        let start = offset - offset % to_u64(block_bytes);
        let end = align_block(offset + to_u64(bytes));
        let mut content = Vec::with_capacity(to_usize(end - start));
        let mut block = AlignedBuf::new_zeroed(block_bytes);
        let mut at = start;
        while at < end {
            match self.file.read_at(&mut block, block_bytes, at) {
                Ok(read) if read == block_bytes => content.extend_from_slice(&block),
                Ok(_) => return Err(NoBytes::Io(at, io::ErrorKind::UnexpectedEof.into())),
                Err(error) => return Err(NoBytes::Io(at, error)),
            }
            at += to_u64(block_bytes);
        }
        let skip = to_usize(offset - start);
        Ok(Bytes::from(content).slice(skip..skip + bytes))
    }
}

impl Source for Windows {
    fn get(&mut self, offset: u64, bytes: usize) -> Result<Bytes, NoBytes> {
        let end = offset + to_u64(bytes);
        if end > self.end {
            return Err(NoBytes::Short(end));
        }
        let first = self.front(offset, bytes)?;
        if first.len() == bytes {
            return Ok(first);
        }
        // Over the edge of a window: the only copy.
        let mut whole = Vec::with_capacity(bytes);
        whole.extend_from_slice(&first);
        while whole.len() < bytes {
            let piece = self.front(offset + to_u64(whole.len()), bytes - whole.len())?;
            whole.extend_from_slice(&piece);
        }
        Ok(Bytes::from(whole))
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        while self.queue.in_flight() > 0 {
            self.completions.clear();
            self.queue.wait(&mut self.completions, None);
        }
    }
}

/// A batch with its place in the segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedBatch {
    /// Offset of the batch's header, or of the packed block that holds it, in bytes.
    pub offset: u64,
    /// The events, checked.
    pub batch: StoredBatch,
}

/// All batches of a segment in order, checked: headers and places, the chain of headers, gapless
/// sequences, tables, events.
///
/// Bodies are slices of the read buffers; only those over the edge of a read are copied. At most
/// [`SCAN_DEPTH`] reads of [`SCAN_WINDOW_BYTES`] are in flight; memory beyond that is what the
/// caller keeps.
pub struct SegmentScan {
    windows: Windows,
    subject: Subject,
    position: u64,
    end: u64,
    link: Link,
    /// Batches of the packed block at this offset that were not returned yet.
    unpacked: (u64, std::vec::IntoIter<StoredBatch>),
    stopped: bool,
}

impl std::fmt::Debug for SegmentScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentScan")
            .field("subject", &self.subject)
            .field("position", &self.position)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl SegmentScan {
    /// Scans the data of a segment from its start up to `data_end`: the footer's, or the end of
    /// what is durable.
    ///
    /// # Errors
    ///
    /// [`ReadError::Io`] if no queue can be made.
    pub fn new(
        storage: &dyn Storage,
        file: Arc<dyn File>,
        header: &SegmentHeader,
        data_end: u64,
    ) -> Result<SegmentScan, ReadError> {
        let checksum = Some(header.previous_checksum);
        let link = Link {
            next_sequence: Some(header.base_sequence),
            checksum,
        };
        let SegmentHeader { place, kind, .. } = *header;
        SegmentScan::from(
            storage,
            file,
            place,
            kind,
            SEGMENT_HEADER_BYTES..data_end,
            link,
        )
    }

    /// Leaves the device to others as far as it can: for scans beside appends. To be called before
    /// the first batch.
    #[must_use]
    pub(crate) fn gentle(mut self) -> SegmentScan {
        self.windows.be_gentle();
        self
    }

    /// Scans from an offset where a batch or a packed block begins, such as that of a sparse entry,
    /// whose first event has `first_sequence`.
    ///
    /// # Errors
    ///
    /// [`ReadError::Io`] if no queue can be made.
    pub fn starting_at(
        storage: &dyn Storage,
        file: Arc<dyn File>,
        place: Place,
        kind: SegmentKind,
        range: std::ops::Range<u64>,
        first_sequence: u64,
    ) -> Result<SegmentScan, ReadError> {
        let link = Link {
            next_sequence: Some(first_sequence),
            checksum: None,
        };
        SegmentScan::from(storage, file, place, kind, range, link)
    }

    fn from(
        storage: &dyn Storage,
        file: Arc<dyn File>,
        place: Place,
        kind: SegmentKind,
        range: std::ops::Range<u64>,
        link: Link,
    ) -> Result<SegmentScan, ReadError> {
        let path = segment_path(place.partition, place.segment);
        let subject = Subject { path, place, kind };
        let block_bytes = to_u64(truthdb_io::BLOCK_BYTES);
        let start = range.start - range.start % block_bytes;
        let windows = Windows::new(storage, file, start, align_block(range.end).max(start));
        let windows = windows.map_err(|source| {
            let path = subject.path.clone();
            ReadError::Io {
                path,
                offset: range.start,
                source,
            }
        })?;
        Ok(SegmentScan {
            windows,
            subject,
            position: range.start,
            end: range.end,
            link,
            unpacked: (range.start, Vec::new().into_iter()),
            stopped: false,
        })
    }

    /// The next batch, `None` at the end. After an error there is nothing more.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the disk's, or what is damaged.
    pub fn next_batch(&mut self) -> Result<Option<ScannedBatch>, ReadError> {
        while !self.stopped {
            if let Some(batch) = self.unpacked.1.next() {
                return Ok(Some(ScannedBatch {
                    offset: self.unpacked.0,
                    batch,
                }));
            }
            match self.advance() {
                Ok(found) => self.stopped = !found,
                Err(error) => {
                    self.stopped = true;
                    let next_sequence = self.link.next_sequence.unwrap_or(0);
                    return Err(self.subject.error(error, next_sequence));
                }
            }
        }
        Ok(None)
    }

    /// Reads the next item; false at the end.
    fn advance(&mut self) -> Result<bool, crate::source::NoItem> {
        let (windows, end) = (&mut self.windows, self.end);
        match self.subject.kind {
            SegmentKind::Active => {
                let position = &mut self.position;
                let item = next_active(windows, &self.subject, position, end, &self.link)?;
                let Some(item) = item else { return Ok(false) };
                self.link.checksum = Some(item.header_checksum);
                self.link.next_sequence = Some(item.header.next_sequence());
                let batches: Vec<StoredBatch> = item.batch.into_iter().collect();
                self.unpacked = (item.header.offset, batches.into_iter());
            }
            SegmentKind::Packed => {
                let offset = self.position;
                let position = &mut self.position;
                let found = next_packed(windows, &self.subject, position, end, &self.link)?;
                let Some(batches) = found else {
                    return Ok(false);
                };
                if let Some(last) = batches.last() {
                    self.link.next_sequence = Some(last.last_sequence() + 1);
                }
                self.unpacked = (offset, batches.into_iter());
            }
        }
        Ok(true)
    }

    /// Checksum of the last header that was passed, batch or mark; that of the segment's header
    /// before the first. `None` in packed segments, which keep it in the footer, and before the
    /// first item of a scan that began in the middle.
    pub fn last_header_checksum(&self) -> Option<u64> {
        self.link
            .checksum
            .filter(|_| self.subject.kind == SegmentKind::Active)
    }

    /// Sequence that follows the last item that was passed: in a packed segment, the last block.
    pub fn next_sequence(&self) -> u64 {
        self.link.next_sequence.unwrap_or(1)
    }

    /// Offset of the first byte after the last item that was passed, 8-aligned.
    pub fn position(&self) -> u64 {
        self.position
    }
}

impl Iterator for SegmentScan {
    type Item = Result<ScannedBatch, ReadError>;

    fn next(&mut self) -> Option<Result<ScannedBatch, ReadError>> {
        self.next_batch().transpose()
    }
}

#[cfg(test)]
mod tests {
    use truthdb_io::OpenMode;
    use truthdb_io::sim::SimWorld;

    use super::*;

    #[test]
    fn bytes_over_the_edge_of_a_window_can_be_asked_for_again() {
        let sim = SimWorld::new(1);
        let storage = sim.storage();
        let file = storage.open("edge", OpenMode::CreateNew).unwrap();
        let mut block = AlignedBuf::new_zeroed(2 * SCAN_WINDOW_BYTES);
        for (index, byte) in block.iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).unwrap();
        }
        file.write_at(&block, block.len(), 0).unwrap();
        let end = to_u64(block.len());
        let mut windows = Windows::new(storage.as_ref(), file, 0, end).unwrap();
        let offset = SCAN_WINDOW_BYTES - 10;
        for _ in 0..2 {
            let bytes = windows.get(to_u64(offset), 64).ok().unwrap();
            assert_eq!(bytes[..], block[offset..offset + 64]);
        }
    }
}
