//! Reading the log in whole batches, page by page.

use std::collections::VecDeque;

use truthdb_engine::{
    Direction, Engine, Filter, PAGE_EVENTS_MAX, ReadError, ReadFrom, ReadRequest,
};
use truthdb_log::StoredBatch;

/// Bytes of a page: the memory of a reader.
const READ_BYTES: usize = 1 << 20;

/// Reads a partition's committed batches in order. The boundaries are those of the appends.
#[derive(Debug)]
pub(crate) struct LogReader {
    engine: Engine,
    partition: u32,
    /// First sequence that the next page begins with.
    next: u64,
    batches: VecDeque<StoredBatch>,
}

impl LogReader {
    /// A reader whose first batch begins at `next`, which must be the first event of a batch.
    pub(crate) fn new(engine: &Engine, partition: u32, next: u64) -> LogReader {
        LogReader {
            engine: engine.clone(),
            partition,
            next,
            batches: VecDeque::new(),
        }
    }

    /// The next batch, `None` if it is not committed or ends after `last`.
    pub(crate) fn next_batch(&mut self, last: u64) -> Result<Option<StoredBatch>, ReadError> {
        if self.batches.is_empty() && self.next <= last.min(self.engine.committed(self.partition)) {
            self.read_page()?;
        }
        match self.batches.front() {
            Some(batch) if batch.last_sequence() <= last => Ok(self.batches.pop_front()),
            _ => Ok(None),
        }
    }

    fn read_page(&mut self) -> Result<(), ReadError> {
        let page = self.engine.read(&ReadRequest {
            partition: self.partition,
            from: ReadFrom::Sequence(self.next),
            direction: Direction::Forward,
            filter: Filter::default(),
            events_max: PAGE_EVENTS_MAX,
            bytes_max: READ_BYTES,
        })?;
        let events: usize = page.batches.iter().map(|b| b.event_count as usize).sum();
        self.batches = page.batches.into();
        // The page's bound of events may have cut its last batch; that of bytes never cuts one.
        if events >= PAGE_EVENTS_MAX && self.batches.len() > 1 {
            self.batches.pop_back();
        }
        if let Some(last) = self.batches.back() {
            self.next = last.last_sequence() + 1;
        }
        Ok(())
    }
}

/// The batch of a committed event, as far as a page of this one event holds it; none if the event is not
/// committed.
pub(crate) fn batch_at(
    engine: &Engine,
    partition: u32,
    sequence: u64,
) -> Result<Option<StoredBatch>, ReadError> {
    if sequence == 0 || sequence > engine.committed(partition) {
        return Ok(None);
    }
    let page = engine.read(&ReadRequest {
        partition,
        from: ReadFrom::Sequence(sequence),
        direction: Direction::Forward,
        filter: Filter::default(),
        events_max: 1,
        bytes_max: 1,
    })?;
    Ok(page.batches.into_iter().next())
}

/// The time of an event in the log, nanoseconds UTC; none if it is gone, or not there yet.
pub(crate) fn time_in_log(engine: &Engine, partition: u32, sequence: u64) -> Option<u64> {
    let batch = batch_at(engine, partition, sequence).ok()??;
    Some(batch.timestamp_ns)
}

/// Gives every committed event from a sequence on with one of these types to `take`, in order, and
/// says up to which sequence was looked.
pub(crate) fn read_types_from(
    engine: &Engine,
    partition: u32,
    from: u64,
    types: &[&str],
    mut take: impl FnMut(truthdb_log::StoredEvent<'_>),
) -> Result<u64, ReadError> {
    let mut request = ReadRequest {
        partition,
        from: ReadFrom::Sequence(from),
        direction: Direction::Forward,
        filter: Filter {
            types: types.iter().map(|name| (*name).to_owned()).collect(),
            ..Filter::default()
        },
        events_max: PAGE_EVENTS_MAX,
        bytes_max: READ_BYTES,
    };
    loop {
        let page = engine.read(&request)?;
        for batch in &page.batches {
            batch.events().for_each(&mut take);
        }
        match page.next {
            Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
            // What was committed after the page was read is looked at again.
            Some(next) => return Ok(next.saturating_sub(1).min(page.committed)),
            None => return Ok(page.committed),
        }
    }
}
