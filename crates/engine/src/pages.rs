//! Pages: what a caller's read request becomes.

use truthdb_event::EventRef;
use truthdb_log::canary::{Canary, planted};
use truthdb_log::{FacetKey, KeyHasher, StoredBatch, StoredEvent};

use crate::error::ReadError;
use crate::read::{
    SCAN_BYTES, ScanEnd, Visit, batch_in, fetch, index_error, scan_forward, start_of, stream_slice,
    window,
};
use crate::request::{
    Direction, Filter, ReadFrom, ReadPage, ReadRequest, RevisionFrom, StreamPage, StreamReadRequest,
};
use crate::shared::{PartitionShared, Segment, SegmentBody, View};
use crate::status::add;

/// A page with a filter looks at this many bytes at most, so that a rare match cannot keep a thread for long.
const FILTER_SCAN_BYTES_MAX: usize = 8 << 20;
/// Most events of a page.
pub const PAGE_EVENTS_MAX: usize = 100_000;
/// Most bytes of a page (one batch more may be in it).
pub const PAGE_BYTES_MAX: usize = 16 << 20;

impl Filter {
    /// Whether an event passes.
    pub fn matches(&self, event: &EventRef<'_>) -> bool {
        let prefix = self
            .stream_prefix
            .as_deref()
            .is_none_or(|p| event.stream().starts_with(p));
        prefix
            && (self.types.is_empty() || self.types.iter().any(|t| t == event.event_type()))
            && self.tags.iter().all(|tag| event.tags().any(|t| t == tag))
    }
}

/// Facets that narrow a search; a filter by stream prefix alone has none.
struct FilterKeys {
    types: Vec<FacetKey>,
    tags: Vec<FacetKey>,
}

impl FilterKeys {
    fn of(filter: &Filter, hasher: &KeyHasher) -> Option<FilterKeys> {
        let keys = FilterKeys {
            types: filter
                .types
                .iter()
                .map(|t| hasher.event_type(t.as_bytes()))
                .collect(),
            tags: filter
                .tags
                .iter()
                .map(|t| hasher.tag(t.as_bytes()))
                .collect(),
        };
        (!keys.types.is_empty() || !keys.tags.is_empty()).then_some(keys)
    }

    /// Sequences of a segment, after `after` and up to `last`, that may match, ascending.
    fn candidates(
        &self,
        segment: &Segment,
        body: &SegmentBody,
        after: u64,
        last: u64,
    ) -> Result<Vec<u64>, ReadError> {
        let mut found: Option<Vec<u64>> = None;
        for tag in &self.tags {
            let postings = postings(segment, body, *tag, after, last)?;
            found = Some(match found {
                None => postings,
                Some(mut both) => {
                    both.retain(|sequence| postings.binary_search(sequence).is_ok());
                    both
                }
            });
        }
        if self.types.is_empty() {
            return Ok(found.unwrap_or_default());
        }
        let mut union = Vec::new();
        for event_type in &self.types {
            union.extend(postings(segment, body, *event_type, after, last)?);
        }
        union.sort_unstable();
        union.dedup();
        if let Some(found) = found {
            union.retain(|sequence| found.binary_search(sequence).is_ok());
        }
        Ok(union)
    }
}

fn postings(
    segment: &Segment,
    body: &SegmentBody,
    facet: FacetKey,
    after: u64,
    last: u64,
) -> Result<Vec<u64>, ReadError> {
    let mut out = Vec::new();
    match body {
        SegmentBody::Unsealed(unsealed) => {
            unsealed
                .index
                .read()
                .facet_after(facet, after, last, usize::MAX, &mut out);
        }
        SegmentBody::Sealed(sealed) => sealed
            .index()?
            .facet_after(facet, after, usize::MAX, &mut out)
            .map_err(|source| index_error(&segment.path, source))?,
    }
    Ok(out)
}

/// Collects runs of events up to the page's bounds.
struct PageBuilder<'a> {
    filter: &'a Filter,
    events_left: usize,
    bytes_left: usize,
    /// A page with no more room than this is full, because another read would be mostly wasted.
    bytes_spare: usize,
    scan_left: usize,
    held_bytes: usize,
    batches: Vec<StoredBatch>,
    /// Last sequence looked at.
    seen: Option<u64>,
}

impl PageBuilder<'_> {
    fn is_full(&self) -> bool {
        self.events_left == 0 || self.bytes_left == 0 || self.scan_left == 0
    }

    fn push(&mut self, run: StoredBatch) {
        self.bytes_left = self.bytes_left.saturating_sub(run.body_bytes());
        self.events_left -= run.event_count as usize;
        self.batches.push(run);
    }

    /// Takes what passes of a batch, from `from` on (forward) or back (backward). Returns whether
    /// there is room for more.
    fn take(&mut self, batch: &StoredBatch, from: u64, forward: bool) -> bool {
        self.scan_left = self.scan_left.saturating_sub(batch.body_bytes());
        let (first, last) = (batch.first_sequence, batch.last_sequence());
        let index =
            |sequence: u64| u32::try_from(sequence - first).expect("a batch's events are limited");
        let (mut low, mut high) = if forward {
            (from.max(first), last)
        } else {
            (first, from.min(last))
        };
        if self.filter.is_empty() {
            let most = self.events_left as u64;
            if forward {
                high = high.min(low + most - 1);
                if high < last && low < high && planted(Canary::ShortPage) {
                    self.push(batch.select(index(low)..index(high)));
                    self.seen = Some(high);
                    return false;
                }
            } else {
                low = low.max((high + 1).saturating_sub(most));
            }
            self.push(batch.select(index(low)..index(high) + 1));
            self.seen = Some(if forward { high } else { low });
            return !self.is_full();
        }
        let passing: Vec<u64> = batch
            .events()
            .filter(|e| (low..=high).contains(&e.sequence) && self.filter.matches(&e.event()))
            .map(|e| e.sequence)
            .collect();
        let mut runs = runs_of(&passing);
        if !forward {
            runs.reverse();
        }
        for (mut run_low, mut run_high) in runs {
            let most = self.events_left as u64;
            if forward {
                run_high = run_high.min(run_low + most - 1);
            } else {
                run_low = run_low.max((run_high + 1).saturating_sub(most));
            }
            self.push(batch.select(index(run_low)..index(run_high) + 1));
            if self.events_left == 0 {
                self.seen = Some(if forward { run_high } else { run_low });
                return false;
            }
        }
        self.seen = Some(if forward { high } else { low });
        !self.is_full()
    }
}

/// A forward scan into a page.
struct Scan<'a, 'b> {
    page: &'a mut PageBuilder<'b>,
    from: u64,
    /// The page has room for more.
    more: bool,
}

impl Visit for Scan<'_, '_> {
    fn take(&mut self, batch: StoredBatch) -> bool {
        self.more = self.page.take(&batch, self.from, true);
        self.more
    }

    fn bytes_wanted(&self) -> usize {
        let page = &*self.page;
        match page.filter.is_empty() {
            _ if !self.more => 0,
            // What passes a filter is not known before it is read.
            false => SCAN_BYTES,
            true if page.bytes_left <= page.bytes_spare => 0,
            true => page.bytes_left,
        }
    }

    fn note_held(&mut self, bytes: usize) {
        self.page.held_bytes += bytes;
    }
}

/// Ranges of consecutive numbers.
fn runs_of(sequences: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for sequence in sequences {
        match runs.last_mut() {
            Some((_, high)) if *high + 1 == *sequence => *high = *sequence,
            _ => runs.push((*sequence, *sequence)),
        }
    }
    runs
}

/// Reads one page of a partition.
pub(crate) fn read_page(
    shared: &PartitionShared,
    hasher: &KeyHasher,
    request: &ReadRequest,
) -> Result<ReadPage, ReadError> {
    let view = shared.view();
    let committed = shared.committed();
    let forward = request.direction == Direction::Forward;
    let filter_bound = if request.filter.is_empty() {
        usize::MAX
    } else {
        FILTER_SCAN_BYTES_MAX
    };
    let bytes_max = request.bytes_max.clamp(1, PAGE_BYTES_MAX);
    let mut page = PageBuilder {
        filter: &request.filter,
        events_left: request.events_max.clamp(1, PAGE_EVENTS_MAX),
        bytes_left: bytes_max,
        bytes_spare: bytes_max / 4,
        scan_left: filter_bound,
        held_bytes: 0,
        batches: Vec::new(),
        seen: None,
    };
    let from = match request.from {
        ReadFrom::Start if forward => view.first_sequence,
        ReadFrom::Start => committed,
        ReadFrom::Sequence(sequence) if forward => sequence.max(1),
        ReadFrom::Sequence(sequence) => sequence.min(committed),
        ReadFrom::Resume(resume) if forward => resume.sequence,
        ReadFrom::Resume(resume) => resume.sequence.min(committed),
        ReadFrom::Time(time) => sequence_at_time(shared, &view, time, committed, forward)?,
    };
    if from < view.first_sequence && committed >= view.first_sequence {
        if forward {
            let (partition, first_sequence) = (shared.partition, view.first_sequence);
            return Err(ReadError::Trimmed {
                partition,
                sequence: from,
                first_sequence,
            });
        }
        return Ok(empty_page(Direction::Backward, committed));
    }
    let keys = FilterKeys::of(&request.filter, hasher);
    let hint = match request.from {
        ReadFrom::Resume(resume) => Some(resume),
        _ => None,
    };
    let mut resume = None;
    let done = match (forward, &keys) {
        (true, None) => {
            let mut scan = Scan {
                page: &mut page,
                from,
                more: true,
            };
            match scan_forward(shared, &view, from, hint, committed, &mut scan)? {
                ScanEnd::Reached => true,
                ScanEnd::Enough(place) => {
                    resume = place;
                    false
                }
            }
        }
        (false, None) => scan_backward(shared, &view, from, &mut page)?,
        (true, Some(keys)) => by_keys_forward(shared, &view, keys, from, committed, &mut page)?,
        (false, Some(keys)) => by_keys_backward(shared, &view, keys, from, &mut page)?,
    };
    let bytes: usize = page.batches.iter().map(StoredBatch::body_bytes).sum();
    add(&shared.counters.reads, 1);
    add(&shared.counters.read_bytes, bytes as u64);
    let next = match (forward, done) {
        (true, true) => Some(from.max(committed + 1)),
        (true, false) => Some(page.seen.map_or(from, |seen| seen + 1)),
        (false, true) => None,
        (false, false) => page
            .seen
            .map(|seen| seen - 1)
            .filter(|next| *next >= view.first_sequence),
    };
    let at_end = if forward {
        next > Some(committed)
    } else {
        next.is_none()
    };
    Ok(ReadPage {
        batches: page.batches,
        held_bytes: (forward && keys.is_none()).then_some(page.held_bytes),
        direction: request.direction,
        next,
        resume: resume.filter(|resume| next == Some(resume.sequence)),
        at_end,
        committed,
    })
}

fn empty_page(direction: Direction, committed: u64) -> ReadPage {
    ReadPage {
        batches: Vec::new(),
        held_bytes: Some(0),
        direction,
        next: None,
        resume: None,
        at_end: true,
        committed,
    }
}

/// Batches from `from` back to the first one, in windows that begin at sparse entries.
fn scan_backward(
    shared: &PartitionShared,
    view: &View,
    from: u64,
    page: &mut PageBuilder<'_>,
) -> Result<bool, ReadError> {
    let mut sequence = from;
    while sequence >= view.first_sequence && sequence > 0 {
        let Some(index) = view.locate(sequence) else {
            break;
        };
        let segment = &view.segments[index];
        let body = segment.body();
        let start = start_of(segment, &body, sequence)?;
        let mut batches = Vec::new();
        let mut place = start;
        loop {
            let window = window(shared, segment, &body, place, crate::read::POINT_BYTES)?;
            let beyond = window
                .batches
                .last()
                .is_some_and(|b| b.last_sequence() >= sequence);
            batches.extend(
                window
                    .batches
                    .into_iter()
                    .filter(|b| b.first_sequence <= sequence),
            );
            if beyond || window.at_end {
                break;
            }
            place = window.next;
        }
        if batches.last().is_none_or(|b| b.last_sequence() < sequence) {
            return Err(ReadError::Missing {
                path: segment.path.clone(),
                sequence,
            });
        }
        for batch in batches.iter().rev() {
            if !page.take(batch, sequence, false) {
                return Ok(false);
            }
            sequence = batch.first_sequence - 1;
        }
    }
    Ok(true)
}

fn by_keys_forward(
    shared: &PartitionShared,
    view: &View,
    keys: &FilterKeys,
    from: u64,
    committed: u64,
    page: &mut PageBuilder<'_>,
) -> Result<bool, ReadError> {
    let first = view.locate(from).unwrap_or(0);
    for segment in &view.segments[first..] {
        if segment.base_sequence > committed {
            break;
        }
        let body = segment.body();
        let candidates = keys.candidates(segment, &body, from.saturating_sub(1), committed)?;
        let mut at = 0;
        while at < candidates.len() {
            let batch = batch_in(shared, view, candidates[at])?;
            if !page.take(&batch, from.max(candidates[at]), true) {
                return Ok(false);
            }
            at += candidates[at..].partition_point(|s| *s <= batch.last_sequence());
        }
    }
    Ok(true)
}

fn by_keys_backward(
    shared: &PartitionShared,
    view: &View,
    keys: &FilterKeys,
    from: u64,
    page: &mut PageBuilder<'_>,
) -> Result<bool, ReadError> {
    let Some(last) = view.locate(from) else {
        return Ok(true);
    };
    for segment in view.segments[..=last].iter().rev() {
        let body = segment.body();
        let mut candidates = keys.candidates(segment, &body, 0, from)?;
        candidates.retain(|sequence| (view.first_sequence..=from).contains(sequence));
        while let Some(sequence) = candidates.last().copied() {
            let batch = batch_in(shared, view, sequence)?;
            if !page.take(&batch, sequence, false) {
                return Ok(false);
            }
            candidates.truncate(candidates.partition_point(|s| *s < batch.first_sequence));
        }
    }
    Ok(true)
}

/// Forward: the first sequence at or after a time. Backward: the last one at or before it.
fn sequence_at_time(
    shared: &PartitionShared,
    view: &View,
    time: u64,
    committed: u64,
    forward: bool,
) -> Result<u64, ReadError> {
    // "The last one at or before" is the one before "the first one after".
    let bound = if forward {
        time
    } else {
        time.saturating_add(1)
    };
    let mut low = 0;
    let mut high = view.segments.len();
    while low < high {
        let middle = usize::midpoint(low, high);
        if first_timestamp(&view.segments[middle])? < bound {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let segment = low.saturating_sub(1);
    let start = start_of_time(&view.segments[segment], bound)?.max(view.first_sequence);
    let mut search = TimeSearch { bound, found: None };
    scan_forward(shared, view, start, None, committed, &mut search)?;
    let found = search.found.map_or(committed + 1, |first| first.max(start));
    Ok(if forward { found } else { found - 1 })
}

/// A scan for the first batch at or after a time.
struct TimeSearch {
    bound: u64,
    /// Its first sequence.
    found: Option<u64>,
}

impl Visit for TimeSearch {
    fn take(&mut self, batch: StoredBatch) -> bool {
        if batch.timestamp_ns >= self.bound {
            self.found = Some(batch.first_sequence);
        }
        self.found.is_none()
    }

    fn bytes_wanted(&self) -> usize {
        // Sparse entries lie closer than that.
        128 << 10
    }

    fn note_held(&mut self, _: usize) {}
}

fn first_timestamp(segment: &Segment) -> Result<u64, ReadError> {
    Ok(match segment.body() {
        SegmentBody::Unsealed(unsealed) => unsealed
            .index
            .read()
            .sparse()
            .first()
            .map_or(u64::MAX, |entry| entry.timestamp_ns),
        SegmentBody::Sealed(sealed) => sealed.footer.first_timestamp_ns,
    })
}

/// A sequence from which a scan finds the first event at or after a time.
fn start_of_time(segment: &Segment, time: u64) -> Result<u64, ReadError> {
    let entry = match segment.body() {
        SegmentBody::Unsealed(unsealed) => unsealed.index.read().locate_time(time),
        SegmentBody::Sealed(sealed) => {
            let sparse = sealed.sparse()?;
            let after = sparse.partition_point(|entry| entry.timestamp_ns < time);
            after.checked_sub(1).map(|last| sparse[last])
        }
    };
    Ok(entry.map_or(segment.base_sequence, |entry| entry.sequence))
}

/// Reads one page of a stream.
pub(crate) fn read_stream_page(
    shared: &PartitionShared,
    hasher: &KeyHasher,
    request: &StreamReadRequest,
) -> Result<StreamPage, ReadError> {
    let view = shared.view();
    let forward = request.direction == Direction::Forward;
    let from = match request.from {
        RevisionFrom::Start => None,
        RevisionFrom::Revision(revision) => Some(revision),
    };
    let key = hasher.stream(request.stream.as_bytes());
    let max = request.events_max.clamp(1, PAGE_EVENTS_MAX);
    let Some(slice) = stream_slice(shared, &view, key, from, forward, max)? else {
        return Err(ReadError::StreamNotFound {
            stream: request.stream.clone(),
        });
    };
    let bytes_max = request.bytes_max.clamp(1, PAGE_BYTES_MAX);
    let batches = fetch(shared, &view, &slice.sequences, forward, bytes_max)?;
    let count: u64 = batches
        .iter()
        .map(|batch| u64::from(batch.event_count))
        .sum();
    let bytes: usize = batches.iter().map(StoredBatch::body_bytes).sum();
    add(&shared.counters.reads, 1);
    add(&shared.counters.read_bytes, bytes as u64);
    let next = if forward {
        let next = slice.from_revision + count;
        (next <= slice.last_revision).then_some(next)
    } else {
        (slice.from_revision + 1)
            .checked_sub(count + 1)
            .filter(|next| *next >= slice.first_revision)
    };
    Ok(StreamPage {
        partition: shared.partition,
        batches,
        direction: request.direction,
        next,
        last_revision: slice.last_revision,
        first_revision: slice.first_revision,
    })
}

fn in_order(batches: &[StoredBatch], direction: Direction) -> Vec<StoredEvent<'_>> {
    let mut events = Vec::new();
    for batch in batches {
        let from = events.len();
        events.extend(batch.events());
        if direction == Direction::Backward {
            events[from..].reverse();
        }
    }
    events
}

impl ReadPage {
    /// The events in the order of reading.
    pub fn events(&self) -> Vec<StoredEvent<'_>> {
        in_order(&self.batches, self.direction)
    }

    /// How many events the page has.
    pub fn event_count(&self) -> usize {
        self.batches
            .iter()
            .map(|batch| batch.event_count as usize)
            .sum()
    }
}

impl StreamPage {
    /// The events in the order of reading.
    pub fn events(&self) -> Vec<StoredEvent<'_>> {
        in_order(&self.batches, self.direction)
    }

    /// How many events the page has.
    pub fn event_count(&self) -> usize {
        self.batches
            .iter()
            .map(|batch| batch.event_count as usize)
            .sum()
    }
}
