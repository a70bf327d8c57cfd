//! Reads: find the place by an index, take it from the tail cache or the disk, check it, return
//! whole runs of events.
//!
//! Nothing here takes part in the writer's decisions except through [`batch_at`], [`stream_head`] and
//! [`sequence_of_revision`]. All of it may run on any thread; what needs the disk blocks for one
//! window at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use truthdb_log::{
    BATCH_HEADER_BYTES, BatchHeader, IndexError, SparseEntry, StoredBatch, StreamExtent,
    StreamHead, StreamKey,
};

use crate::error::ReadError;
use crate::group::TailChunk;
use crate::request::Resume;
use crate::shared::{PartitionShared, Segment, SegmentBody, View};
use crate::status::add;

/// Bytes that a scan reads from the disk at once.
pub(crate) const SCAN_BYTES: usize = 1 << 20;
/// Bytes that a scan reads from the disk at least.
const SCAN_BYTES_MIN: usize = 4096;
/// Bytes that a point read takes from the disk: the distance of sparse entries, and some of the next batch.
pub(crate) const POINT_BYTES: usize = 80 << 10;

/// A place in a segment where a batch begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Offset in the file, bytes.
    pub(crate) offset: u64,
    /// Sequence of the batch's first event.
    pub(crate) sequence: u64,
}

/// Batches that lie next to each other in a segment, checked.
pub(crate) struct Window {
    pub(crate) batches: Vec<StoredBatch>,
    /// Where the next batch begins, and its first sequence.
    pub(crate) next: Place,
    /// Nothing committed follows in the segment.
    pub(crate) at_end: bool,
    /// It came from the tail cache, whose memory it holds on to.
    pub(crate) in_memory: bool,
    /// Bytes of memory that the batches hold on to, about.
    pub(crate) held_bytes: usize,
}

pub(crate) fn index_error(path: &str, source: IndexError) -> ReadError {
    ReadError::Index {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

pub(crate) fn log_error(source: truthdb_log::ReadError) -> ReadError {
    ReadError::Log {
        source: Arc::new(source),
    }
}

/// Reads the batches at a place of a segment, about `bytes_max` bytes of them, at least one unless
/// it is the end.
pub(crate) fn window(
    shared: &PartitionShared,
    segment: &Segment,
    body: &SegmentBody,
    place: Place,
    bytes_max: usize,
) -> Result<Window, ReadError> {
    let Place { offset, sequence } = place;
    let mut in_memory = false;
    // A pool's buffer is as large as the largest scan, however little of it is used.
    let mut held_bytes = if bytes_max < SCAN_BYTES / 4 {
        bytes_max
    } else {
        SCAN_BYTES
    };
    let (batches, next_offset, end) = match body {
        SegmentBody::Unsealed(unsealed) => {
            let end = unsealed.end_offset.load(Ordering::Acquire);
            if offset >= end {
                return Ok(Window {
                    batches: Vec::new(),
                    next: place,
                    at_end: true,
                    in_memory: true,
                    held_bytes: 0,
                });
            }
            if let Some(found) = from_tail(shared, segment.number, offset, bytes_max) {
                in_memory = true;
                held_bytes = found.held_bytes;
                (found.batches, found.next, end)
            } else {
                let reader = &unsealed.reader;
                let page = reader
                    .read_batches(offset, end, sequence, bytes_max)
                    .map_err(log_error)?;
                add(&shared.counters.disk_read_bytes, page.1 - offset);
                (page.0, page.1, end)
            }
        }
        SegmentBody::Sealed(sealed) => {
            let end = sealed.footer.data_end;
            if offset >= end {
                return Ok(Window {
                    batches: Vec::new(),
                    next: place,
                    at_end: true,
                    in_memory: true,
                    held_bytes: 0,
                });
            }
            let open = sealed.open()?;
            let page = open
                .reader
                .read_batches(offset, end, sequence, bytes_max)
                .map_err(log_error)?;
            add(&shared.counters.disk_read_bytes, page.1 - offset);
            (page.0, page.1, end)
        }
    };
    let next_sequence = batches
        .last()
        .map_or(sequence, |last| last.last_sequence() + 1);
    let next = Place {
        offset: next_offset,
        sequence: next_sequence,
    };
    Ok(Window {
        at_end: next_offset >= end,
        batches,
        next,
        in_memory,
        held_bytes,
    })
}

/// What the tail cache has.
struct FromTail {
    batches: Vec<StoredBatch>,
    /// Offset of the next batch.
    next: u64,
    held_bytes: usize,
}

/// Takes batches from the tail cache, if it has that place. What is there was encoded by this process.
fn from_tail(
    shared: &PartitionShared,
    segment: u32,
    offset: u64,
    bytes_max: usize,
) -> Option<FromTail> {
    let TailChunk {
        offset: start,
        chunk,
        ..
    } = {
        let tail = shared.tail.read();
        let found = tail.chunks.iter().rev().find(|tail| {
            tail.segment == segment
                && tail.offset <= offset
                && offset < tail.offset + tail.chunk.published().len() as u64
        });
        found?.clone()
    };
    let published = chunk.published();
    let mut at = usize::try_from(offset - start).expect("a chunk's length fits memory");
    let stop = at.saturating_add(bytes_max);
    let mut batches = Vec::new();
    while at < published.len() && (at < stop || batches.is_empty()) {
        let Some(header) = header_at(published, at) else {
            at = (at + 1).next_multiple_of(truthdb_io::BLOCK_BYTES);
            continue;
        };
        let body = at + BATCH_HEADER_BYTES;
        let body_bytes = header.body_bytes as usize;
        if !header.mark {
            batches.push(StoredBatch {
                first_sequence: header.first_sequence,
                timestamp_ns: header.timestamp_ns,
                event_count: header.event_count,
                body: Bytes::from_owner(chunk.view(body..body + body_bytes)),
            });
        }
        at = usize::try_from(header.end_offset() - start).expect("a chunk's length fits memory");
    }
    Some(FromTail {
        batches,
        next: start + at.min(published.len()) as u64,
        held_bytes: chunk.capacity(),
    })
}

/// The batch header at a place of a chunk; none where a group's padding begins.
fn header_at(published: &[u8], at: usize) -> Option<BatchHeader> {
    let bytes = published.get(at..at + BATCH_HEADER_BYTES)?;
    if bytes[..8] == [0; 8] {
        return None;
    }
    Some(BatchHeader::decode(bytes).expect("the tail cache holds what this process encoded"))
}

/// Where to start reading a segment to find a sequence.
pub(crate) fn start_of(
    segment: &Segment,
    body: &SegmentBody,
    sequence: u64,
) -> Result<Place, ReadError> {
    let found = match body {
        SegmentBody::Unsealed(unsealed) => unsealed.index.read().locate_sequence(sequence),
        SegmentBody::Sealed(sealed) => {
            let sparse = sealed.sparse()?;
            let after = sparse.partition_point(|entry| entry.sequence <= sequence);
            after.checked_sub(1).map(|last| sparse[last])
        }
    };
    let first = Place {
        sequence: segment.base_sequence,
        offset: truthdb_log::SEGMENT_HEADER_BYTES,
    };
    Ok(found.map_or(first, |entry: SparseEntry| Place {
        offset: entry.offset,
        sequence: entry.sequence,
    }))
}

fn trimmed(shared: &PartitionShared, view: &View, sequence: u64) -> ReadError {
    ReadError::Trimmed {
        partition: shared.partition,
        sequence,
        first_sequence: view.first_sequence,
    }
}

/// The batch that holds a committed sequence.
pub(crate) fn batch_at(shared: &PartitionShared, sequence: u64) -> Result<StoredBatch, ReadError> {
    let view = shared.view();
    batch_in(shared, &view, sequence)
}

/// As [`batch_at`], in a view taken before.
pub(crate) fn batch_in(
    shared: &PartitionShared,
    view: &View,
    sequence: u64,
) -> Result<StoredBatch, ReadError> {
    assert!(
        sequence > 0 && sequence <= shared.committed(),
        "only what is committed is read"
    );
    let located = view
        .locate(sequence)
        .filter(|_| sequence >= view.first_sequence);
    let Some(index) = located else {
        return Err(trimmed(shared, view, sequence));
    };
    let segment = &view.segments[index];
    let body = segment.body();
    let start = start_of(segment, &body, sequence)?;
    if let Some(batch) = shared
        .cache
        .get(shared.partition, segment.number, start.offset, sequence)
    {
        return Ok(batch);
    }
    let mut place = start;
    loop {
        let window = window(shared, segment, &body, place, POINT_BYTES)?;
        let found = window
            .batches
            .partition_point(|batch| batch.last_sequence() < sequence);
        let batch = window.batches.get(found).cloned();
        // Committed bytes never change, so what was read of an unsealed segment stays true too.
        if place.offset == start.offset && !window.in_memory {
            shared.cache.put(
                shared.partition,
                segment.number,
                start.offset,
                window.batches,
            );
        }
        if let Some(batch) = batch {
            return Ok(batch);
        }
        if window.at_end {
            return Err(ReadError::Missing {
                path: segment.path.clone(),
                sequence,
            });
        }
        place = window.next;
    }
}

/// The end of a stream, uncommitted events included.
pub(crate) fn stream_head(
    shared: &PartitionShared,
    key: StreamKey,
) -> Result<Option<StreamHead>, ReadError> {
    let view = shared.view();
    for segment in view.segments.iter().rev() {
        match segment.body() {
            SegmentBody::Unsealed(unsealed) => {
                let head = unsealed.index.read().stream_head(key);
                if head.is_some() {
                    return Ok(head);
                }
            }
            SegmentBody::Sealed(_) => break,
        }
    }
    let runs = Arc::clone(&shared.heads.read());
    runs.get(key).map_err(|source| ReadError::Heads {
        source: Arc::new(source),
    })
}

/// The part of a stream in one segment.
type Part<'a> = (&'a Arc<Segment>, SegmentBody, StreamExtent);

/// The parts of a stream in the segments, newest first, as of a committed sequence.
struct Extents<'a> {
    shared: &'a PartitionShared,
    view: &'a View,
    key: StreamKey,
    committed: u64,
    /// Last sequence of the stream in segments not yet visited; `None`: not known yet.
    below: Option<u64>,
}

impl<'a> Extents<'a> {
    fn new(shared: &'a PartitionShared, view: &'a View, key: StreamKey, committed: u64) -> Self {
        Extents {
            shared,
            view,
            key,
            committed,
            below: None,
        }
    }

    fn first(&self) -> Result<Option<Part<'a>>, ReadError> {
        for segment in self.view.segments.iter().rev() {
            let body = segment.body();
            match &body {
                SegmentBody::Unsealed(unsealed) => {
                    let extent = unsealed.index.read().stream_at(self.key, self.committed);
                    if let Some(extent) = extent {
                        return Ok(Some((segment, body, extent)));
                    }
                }
                SegmentBody::Sealed(_) => break,
            }
        }
        let runs = Arc::clone(&self.shared.heads.read());
        let head = runs.get(self.key).map_err(|source| ReadError::Heads {
            source: Arc::new(source),
        })?;
        match head {
            Some(head) => self.at(head.last_sequence),
            None => Ok(None),
        }
    }

    /// The part that ends in this sequence.
    fn at(&self, sequence: u64) -> Result<Option<Part<'a>>, ReadError> {
        if sequence < self.view.first_sequence {
            return Ok(None);
        }
        let Some(index) = self.view.locate(sequence) else {
            return Ok(None);
        };
        let segment = &self.view.segments[index];
        let body = segment.body();
        let extent = match &body {
            SegmentBody::Unsealed(unsealed) => {
                unsealed.index.read().stream_at(self.key, self.committed)
            }
            SegmentBody::Sealed(sealed) => sealed
                .index()?
                .stream(self.key)
                .map_err(|source| index_error(&segment.path, source))?,
        };
        Ok(extent.map(|extent| (segment, body, extent)))
    }

    fn next(&mut self) -> Result<Option<Part<'a>>, ReadError> {
        let part = match self.below {
            None => self.first()?,
            Some(0) => None,
            Some(sequence) => self.at(sequence)?,
        };
        self.below = Some(
            part.as_ref()
                .map_or(0, |(_, _, extent)| extent.previous_sequence),
        );
        Ok(part)
    }
}

/// Which events of a stream there are, and the sequences of some of them.
pub(crate) struct StreamSlice {
    /// In the order of reading.
    pub(crate) sequences: Vec<u64>,
    /// Revision of the first of them.
    pub(crate) from_revision: u64,
    pub(crate) first_revision: u64,
    pub(crate) last_revision: u64,
}

/// Sequences of at most `max` events of a stream from a revision on (`None`: from its first, or last, event).
pub(crate) fn stream_slice(
    shared: &PartitionShared,
    view: &View,
    key: StreamKey,
    from: Option<u64>,
    forward: bool,
    max: usize,
) -> Result<Option<StreamSlice>, ReadError> {
    let mut extents = Extents::new(shared, view, key, shared.committed());
    let Some(newest) = extents.next()? else {
        return Ok(None);
    };
    let last_revision = newest.2.next_revision - 1;
    let mut parts = vec![newest];
    let lowest_wanted = match (forward, from) {
        (true, from) => from.unwrap_or(0),
        (false, from) => {
            let from = from.unwrap_or(last_revision).min(last_revision);
            (from + 1).saturating_sub(max as u64)
        }
    };
    // A page backward that ends where a part begins must know whether there is an older one: it says what comes next.
    let is_enough = |first: u64| first < lowest_wanted || first == lowest_wanted && forward;
    while parts
        .last()
        .is_some_and(|part| part.2.first_revision > 0 && !is_enough(part.2.first_revision))
    {
        match extents.next()? {
            Some(part) => parts.push(part),
            None => break,
        }
    }
    // All of the stream's revisions below the oldest part found were trimmed, unless the search
    // stopped before.
    let oldest = parts.last().map_or(0, |part| part.2.first_revision);
    let first_revision = if is_enough(oldest) { 0 } else { oldest };
    let mut slice = StreamSlice {
        sequences: Vec::new(),
        from_revision: 0,
        first_revision,
        last_revision,
    };
    if forward {
        slice.from_revision = lowest_wanted.max(first_revision);
        parts.reverse();
    } else {
        slice.from_revision = from.unwrap_or(last_revision).min(last_revision);
    }
    for (segment, body, extent) in parts {
        let left = max - slice.sequences.len();
        if left == 0 {
            break;
        }
        let out = &mut slice.sequences;
        let revision = slice.from_revision;
        let committed = extents.committed;
        match &body {
            SegmentBody::Unsealed(unsealed) => {
                let index = unsealed.index.read();
                if forward {
                    index.stream_forward(key, revision, committed, left, out);
                } else {
                    let revision = revision.min(extent.next_revision - 1);
                    index.stream_backward(key, revision, committed, left, out);
                }
            }
            SegmentBody::Sealed(sealed) => {
                let index = sealed.index()?;
                let result = if forward {
                    index.stream_forward(key, revision, left, out)
                } else {
                    let revision = revision.min(extent.next_revision - 1);
                    index.stream_backward(key, revision, left, out)
                };
                result.map_err(|source| index_error(&segment.path, source))?;
            }
        }
    }
    Ok(Some(slice))
}

/// Sequence of a committed event of a stream.
pub(crate) fn sequence_of_revision(
    shared: &PartitionShared,
    key: StreamKey,
    revision: u64,
) -> Result<Option<u64>, ReadError> {
    let view = shared.view();
    let slice = stream_slice(shared, &view, key, Some(revision), true, 1)?;
    Ok(slice
        .filter(|s| s.from_revision == revision)
        .and_then(|s| s.sequences.first().copied()))
}

/// Fetches the events with these sequences, in their order, neighbours of one batch together.
pub(crate) fn fetch(
    shared: &PartitionShared,
    view: &View,
    sequences: &[u64],
    forward: bool,
    bytes_max: usize,
) -> Result<Vec<StoredBatch>, ReadError> {
    let mut out: Vec<StoredBatch> = Vec::new();
    let mut bytes = 0;
    let mut at = 0;
    while at < sequences.len() && (bytes < bytes_max || out.is_empty()) {
        let batch = batch_in(shared, view, sequences[at])?;
        let first = at;
        let step = |a: u64, b: u64| if forward { a + 1 == b } else { b + 1 == a };
        while at + 1 < sequences.len()
            && step(sequences[at], sequences[at + 1])
            && (batch.first_sequence..=batch.last_sequence()).contains(&sequences[at + 1])
        {
            at += 1;
        }
        let (low, high) = if forward {
            (sequences[first], sequences[at])
        } else {
            (sequences[at], sequences[first])
        };
        let index = |sequence: u64| {
            u32::try_from(sequence - batch.first_sequence).expect("a batch's events are limited")
        };
        let run = batch.select(index(low)..index(high) + 1);
        bytes += run.body_bytes();
        out.push(run);
        at += 1;
    }
    Ok(out)
}

/// Takes the batches of a scan.
pub(crate) trait Visit {
    /// Takes a batch; whether the scan goes on.
    fn take(&mut self, batch: StoredBatch) -> bool;
    /// Bytes of batches that are still wanted. Asked before each read of the disk: 0 ends the scan
    /// there, so that nothing is read that would not be taken.
    fn bytes_wanted(&self) -> usize;
    /// The batches that come next lie in so many bytes of memory.
    fn note_held(&mut self, bytes: usize);
}

/// How a scan ended.
pub(crate) enum ScanEnd {
    /// Everything committed was taken.
    Reached,
    /// The taker had enough. Where the next scan goes on, if that is between two reads of the disk.
    Enough(Option<Resume>),
}

/// Reads batches forward from a sequence up to what is committed: the heart of every scan.
pub(crate) fn scan_forward(
    shared: &PartitionShared,
    view: &View,
    from: u64,
    resume: Option<Resume>,
    committed: u64,
    visit: &mut impl Visit,
) -> Result<ScanEnd, ReadError> {
    let mut sequence = from;
    let mut hint = resume;
    while sequence <= committed {
        let Some(index) = view.locate(sequence) else {
            return Err(trimmed(shared, view, sequence));
        };
        let segment = &view.segments[index];
        let body = segment.body();
        let sealed = matches!(body, SegmentBody::Sealed(_));
        let known = hint.take().filter(|hint| {
            (hint.sequence, hint.segment, hint.sealed) == (sequence, segment.number, sealed)
        });
        let mut place = match known {
            Some(Resume { offset, .. }) => Place { offset, sequence },
            None => start_of(segment, &body, sequence)?,
        };
        loop {
            let bytes = visit.bytes_wanted().clamp(SCAN_BYTES_MIN, SCAN_BYTES);
            let window = window(shared, segment, &body, place, bytes)?;
            place = window.next;
            visit.note_held(window.held_bytes);
            let mut batches = window.batches.into_iter();
            let mut goes_on = true;
            while goes_on && let Some(batch) = batches.next() {
                if batch.last_sequence() < sequence {
                    continue;
                }
                if batch.first_sequence > committed {
                    return Ok(ScanEnd::Reached);
                }
                sequence = batch.last_sequence() + 1;
                goes_on = visit.take(batch);
            }
            if !goes_on || (visit.bytes_wanted() == 0 && sequence <= committed) {
                // The caller may have taken less than the last batch; it compares the sequences.
                let resume = Resume {
                    sequence: place.sequence,
                    segment: segment.number,
                    sealed,
                    offset: place.offset,
                };
                let between = batches.len() == 0 && !window.at_end;
                return Ok(ScanEnd::Enough(between.then_some(resume)));
            }
            if window.at_end {
                break;
            }
        }
        let next_base = view.segments.get(index + 1).map(|next| next.base_sequence);
        if sequence <= committed && next_base != Some(sequence) {
            return Err(ReadError::Missing {
                path: segment.path.clone(),
                sequence,
            });
        }
    }
    Ok(ScanEnd::Reached)
}
