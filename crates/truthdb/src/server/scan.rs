//! Reading and following, the same for every protocol.
//!
//! A [`Scan`] is a read in progress: it takes page after page from the engine, filters, and keeps
//! its place, so that no protocol has to know how the engine pages. A [`Subscription`] is a forward
//! scan of a partition that waits at the end instead of stopping.
//!
//! Pages that lie in memory are read where they are asked for; others on the reader pool.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use truthdb_api::native::{Direction, Filter, Position, Read, ReadScope, ReadStart, StreamFilter};
use truthdb_api::{ApiError, ErrorCode, Outcome};
use truthdb_engine as engine;
use truthdb_engine::{Engine, ReadFrom, ReadRequest, RevisionFrom, StreamReadRequest};
use truthdb_log::{StoredBatch, StoredEvent};

use super::Shared;
use super::errors::read_error;

/// Events of one page at most.
const PAGE_EVENTS_MAX: usize = 10_000;
/// Heartbeat interval when the client names none.
pub(crate) const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(5);

/// One page of a scan.
#[derive(Debug, Default)]
pub(crate) struct ScanPage {
    /// Runs of events, in the order of reading; ascending inside a run.
    pub batches: Vec<StoredBatch>,
    /// The batches are most of the memory that they hold on to, so that they may be kept as they
    /// are until they are sent.
    pub is_dense: bool,
    /// The scan's place after the page.
    pub position: Position,
    /// Nothing is left (of a subscription: it has caught up).
    pub at_end: bool,
}

#[derive(Debug, Clone)]
enum Place {
    Partition(ReadFrom),
    Stream(String, RevisionFrom),
}

/// A read in progress.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    partition: u32,
    place: Place,
    direction: engine::Direction,
    filter: Filter,
    pushed: engine::Filter,
    /// Events still wanted.
    remaining: u64,
    /// Nothing after this sequence.
    until: u64,
    position: u64,
    next_revision: Option<u64>,
    done: bool,
}

/// The part of a filter that the engine can apply by its indexes. The scan applies the whole filter
/// again, so that this may be less.
fn pushed(filter: &Filter) -> engine::Filter {
    let mut pushed = engine::Filter::default();
    match &filter.streams {
        StreamFilter::One(name) | StreamFilter::Prefix(name) => {
            pushed.stream_prefix = Some(name.as_str().to_owned());
        }
        StreamFilter::All | StreamFilter::AllWithSystem => {}
    }
    if let [only] = &filter.matches[..] {
        pushed.types = only
            .types
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect();
        pushed.tags = only
            .tags
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect();
    }
    pushed
}

impl Scan {
    /// A read as a client asks for it.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` for what does not go together.
    pub(crate) fn new(read: Read) -> Result<Scan, ApiError> {
        let direction = match read.direction {
            Direction::Forward => engine::Direction::Forward,
            Direction::Backward => engine::Direction::Backward,
        };
        if read.until_sequence != 0 && read.direction == Direction::Backward {
            return Err(ApiError::invalid_argument(
                "until_sequence needs a forward read",
            ));
        }
        let mut filter = read.filter;
        let place = match (read.scope, read.start) {
            (ReadScope::Partition, ReadStart::Edge) => Place::Partition(ReadFrom::Start),
            (ReadScope::Partition, ReadStart::Sequence(sequence)) => {
                // Sequences begin at 1; 0 means "from the start" as well.
                Place::Partition(ReadFrom::Sequence(sequence.max(1)))
            }
            (ReadScope::Partition, ReadStart::Timestamp(time)) => {
                Place::Partition(ReadFrom::Time(time))
            }
            (ReadScope::Stream(name), start) => {
                if filter.streams != StreamFilter::All {
                    let reason = "a read of a stream takes no filter of streams";
                    return Err(ApiError::invalid_argument(reason));
                }
                let from = match start {
                    ReadStart::Edge => RevisionFrom::Start,
                    ReadStart::Revision(revision) => RevisionFrom::Revision(revision),
                    _ => return Err(ApiError::invalid_argument("a stream starts at a revision")),
                };
                filter.streams = StreamFilter::AllWithSystem;
                Place::Stream(name.as_str().to_owned(), from)
            }
            (ReadScope::Partition, ReadStart::Revision(_)) => {
                return Err(ApiError::invalid_argument("a partition has no revisions"));
            }
        };
        Ok(Scan {
            partition: read.partition,
            place,
            direction,
            pushed: pushed(&filter),
            filter,
            remaining: if read.max_events == 0 {
                u64::MAX
            } else {
                read.max_events
            },
            until: if read.until_sequence == 0 {
                u64::MAX
            } else {
                read.until_sequence
            },
            position: 0,
            next_revision: None,
            done: false,
        })
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// The partition that is read.
    pub(crate) fn partition(&self) -> u32 {
        self.partition
    }

    /// Everything up to this sequence (backward: down to it) was delivered or passed over.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Of a stream: the revision to go on from, `None` if nothing is left.
    pub(crate) fn next_revision(&self) -> Option<u64> {
        self.next_revision
    }

    fn is_in_memory(&self, engine: &Engine) -> bool {
        match (&self.place, self.direction) {
            (Place::Partition(ReadFrom::Sequence(sequence)), engine::Direction::Forward) => {
                engine.is_in_memory(self.partition, *sequence)
            }
            (Place::Partition(ReadFrom::Resume(resume)), engine::Direction::Forward) => {
                engine.is_in_memory(self.partition, resume.sequence())
            }
            _ => false,
        }
    }

    /// Takes the next page; from memory at once, else on the reader pool.
    ///
    /// # Errors
    ///
    /// Those of the read.
    pub(crate) async fn next(
        self,
        shared: &Arc<Shared>,
        bytes_max: usize,
    ) -> Result<(Scan, ScanPage), ApiError> {
        let mut scan = self;
        if scan.is_in_memory(&shared.engine) {
            let page = scan.page(&shared.engine, bytes_max)?;
            return Ok((scan, page));
        }
        let engine = shared.engine.clone();
        shared
            .readers
            .run(move || {
                let page = scan.page(&engine, bytes_max)?;
                Ok((scan, page))
            })
            .await?
    }

    /// Takes the next page on this thread.
    ///
    /// # Errors
    ///
    /// Those of the read.
    pub(crate) fn page(&mut self, engine: &Engine, bytes_max: usize) -> Result<ScanPage, ApiError> {
        if self.done {
            let committed = engine.committed(self.partition);
            let position = Position {
                position: self.position,
                head_sequence: committed,
            };
            return Ok(ScanPage {
                position,
                at_end: true,
                ..ScanPage::default()
            });
        }
        let events_max = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(PAGE_EVENTS_MAX);
        match self.place.clone() {
            Place::Partition(from) => self.partition_page(engine, from, events_max, bytes_max),
            Place::Stream(name, from) => {
                self.stream_page(engine, name, from, events_max, bytes_max)
            }
        }
    }

    fn partition_page(
        &mut self,
        engine: &Engine,
        from: ReadFrom,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<ScanPage, ApiError> {
        let request = ReadRequest {
            partition: self.partition,
            from,
            direction: self.direction,
            filter: self.pushed.clone(),
            events_max,
            bytes_max,
        };
        let page = engine.read(&request).map_err(|error| read_error(&error))?;
        let forward = self.direction == engine::Direction::Forward;
        match page.next {
            Some(next) => {
                let known = page.resume.map(ReadFrom::Resume);
                self.place = Place::Partition(known.unwrap_or(ReadFrom::Sequence(next)));
                self.position = if forward { next - 1 } else { next + 1 };
            }
            None => {
                self.done = true;
                self.position = if forward { page.committed } else { 1 };
            }
        }
        self.done |= page.at_end || (forward && self.position >= self.until);
        let mut scanned = self.finish(page.batches, page.committed)?;
        let bytes: usize = scanned.batches.iter().map(StoredBatch::body_bytes).sum();
        scanned.is_dense = page.held_bytes.is_some_and(|held| held / 2 <= bytes);
        Ok(scanned)
    }

    fn stream_page(
        &mut self,
        engine: &Engine,
        name: String,
        from: RevisionFrom,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<ScanPage, ApiError> {
        let system = truthdb_event::is_system_stream(&name);
        let request = StreamReadRequest {
            partition: system.then_some(self.partition),
            stream: name.clone(),
            from,
            direction: self.direction,
            events_max,
            bytes_max,
        };
        let page = engine
            .read_stream(&request)
            .map_err(|error| read_error(&error))?;
        self.partition = page.partition;
        self.position = match (page.batches.last(), self.direction) {
            (Some(last), engine::Direction::Forward) => last.last_sequence(),
            (Some(last), engine::Direction::Backward) => last.first_sequence,
            (None, _) => self.position,
        };
        self.next_revision = page.next;
        match page.next {
            Some(next) => self.place = Place::Stream(name, RevisionFrom::Revision(next)),
            None => self.done = true,
        }
        self.done |= self.position >= self.until && self.direction == engine::Direction::Forward;
        let committed = engine.committed(page.partition);
        self.finish(page.batches, committed)
    }

    /// Filters, counts, and closes the page.
    fn finish(&mut self, batches: Vec<StoredBatch>, committed: u64) -> Result<ScanPage, ApiError> {
        let mut kept = Vec::with_capacity(batches.len());
        let forward = self.direction == engine::Direction::Forward;
        for batch in batches {
            if self.remaining == 0 {
                break;
            }
            for mut run in self.runs(&batch)? {
                let count = u64::from(run.end - run.start);
                if count > self.remaining {
                    let wanted = u32::try_from(self.remaining).expect("less than a u32");
                    run = if forward {
                        run.start..run.start + wanted
                    } else {
                        run.end - wanted..run.end
                    };
                }
                self.remaining -= u64::from(run.end - run.start);
                kept.push(batch.select(run));
                if self.remaining == 0 {
                    break;
                }
            }
        }
        if self.remaining == 0 {
            self.done = true;
            if let Some(last) = kept.last() {
                self.position = if forward {
                    last.last_sequence()
                } else {
                    last.first_sequence
                };
            }
        }
        if forward {
            self.position = self.position.min(self.until);
        }
        let position = Position {
            position: self.position,
            head_sequence: committed,
        };
        Ok(ScanPage {
            batches: kept,
            is_dense: false,
            position,
            at_end: self.done,
        })
    }

    /// The runs of a batch's events that pass the filter, in the order of reading.
    fn runs(&self, batch: &StoredBatch) -> Result<Vec<Range<u32>>, ApiError> {
        let whole = 0..batch.event_count;
        let takes_all =
            self.filter.streams == StreamFilter::AllWithSystem && self.filter.matches.is_empty();
        let to_the_end = batch.last_sequence() <= self.until;
        if takes_all && to_the_end {
            return Ok(vec![whole]);
        }
        // What most reads ask for: all but the system's own streams.
        let takes_users =
            self.filter.streams == StreamFilter::All && self.filter.matches.is_empty();
        let of_system = |event: StoredEvent<'_>| truthdb_event::is_system_event(event.bytes);
        if takes_users && to_the_end && !batch.events().any(of_system) {
            return Ok(vec![whole]);
        }
        let mut runs: Vec<Range<u32>> = Vec::new();
        for (index, stored) in (0..batch.event_count).zip(batch.events()) {
            let event = stored
                .try_event()
                .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
            if stored.sequence > self.until || !self.filter.accepts(&event) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == index => run.end = index + 1,
                _ => runs.push(index..index + 1),
            }
        }
        if self.direction == engine::Direction::Backward {
            runs.reverse();
        }
        Ok(runs)
    }
}

/// What a subscription delivers.
#[derive(Debug)]
pub(crate) enum SubscriptionItem {
    /// Events.
    Events(ScanPage),
    /// All that was there has been delivered.
    CaughtUp(Position),
    /// Where it is, when there was nothing else to say.
    Heartbeat(Position),
}

/// Where a subscription starts.
#[derive(Debug, Clone)]
pub(crate) enum SubscribeFrom {
    /// At the first event there is.
    First,
    /// At this sequence.
    Sequence(u64),
    /// At the first event of this time or later.
    Time(u64),
    /// After what is committed now.
    Head,
    /// After the position of this cursor.
    Cursor(String),
}

/// A subscription.
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    scan: Option<Scan>,
    commits: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    partition: u32,
    position: u64,
    heartbeat: Duration,
    last_item: Instant,
    opened: bool,
    caught_up: bool,
    _slot: super::Slot,
}

impl Subscription {
    /// Opens a subscription.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` (partition, cursor), `OVERLOADED` (too many subscriptions), those of reading.
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        partition: u32,
        from: SubscribeFrom,
        filter: Filter,
        heartbeat: Duration,
    ) -> Result<Subscription, ApiError> {
        shared.check_partition(partition)?;
        let slot = shared.subscription_slot(partition)?;
        // Before the start is looked up, so that no commit is missed in between.
        let commits = shared.commits(partition);
        let engine = shared.engine.clone();
        let start = shared
            .readers
            .run(move || start_of(&engine, partition, from))
            .await??;
        let mut scan = Scan::new(Read {
            scope: ReadScope::Partition,
            partition,
            direction: Direction::Forward,
            start: ReadStart::Sequence(start),
            max_events: 0,
            until_sequence: 0,
            credit_bytes: 0,
            page_bytes: 0,
            filter,
        })?;
        scan.position = start - 1;
        Ok(Subscription {
            shared: Arc::clone(shared),
            scan: Some(scan),
            commits,
            stopping: shared.stopping(),
            partition,
            position: start - 1,
            heartbeat,
            last_item: Instant::now(),
            opened: false,
            caught_up: false,
            _slot: slot,
        })
    }

    /// The partition that is followed.
    pub(crate) fn partition(&self) -> u32 {
        self.partition
    }

    fn place(&self) -> Position {
        let head_sequence = self.shared.engine.committed(self.partition);
        Position {
            position: self.position,
            head_sequence,
        }
    }

    /// The next item. May be dropped while it waits without losing anything.
    ///
    /// # Errors
    ///
    /// Those of reading; `UNAVAILABLE` when the server stops.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Result<SubscriptionItem, ApiError> {
        if !self.opened {
            self.opened = true;
            return Ok(self.said(SubscriptionItem::Heartbeat(self.place())));
        }
        loop {
            if *self.stopping.borrow() {
                return Err(
                    ApiError::new(ErrorCode::Unavailable, "the server is shutting down")
                        .with_outcome(Outcome::DidNotHappen),
                );
            }
            let committed = *self.commits.borrow_and_update();
            if self.position < committed {
                if let Some(page) = self.page(bytes_max).await? {
                    return Ok(self.said(SubscriptionItem::Events(page)));
                }
            } else if !self.caught_up {
                self.caught_up = true;
                return Ok(self.said(SubscriptionItem::CaughtUp(self.place())));
            } else {
                let due = self.last_item + self.heartbeat;
                tokio::select! {
                    changed = self.commits.changed() => {
                        changed.expect("the engine outlives its subscriptions");
                    }
                    _ = self.stopping.changed() => {}
                    () = tokio::time::sleep_until(due) => {
                        return Ok(self.said(SubscriptionItem::Heartbeat(self.place())));
                    }
                }
            }
            if self.last_item + self.heartbeat <= Instant::now() {
                return Ok(self.said(SubscriptionItem::Heartbeat(self.place())));
            }
        }
    }

    fn said(&mut self, item: SubscriptionItem) -> SubscriptionItem {
        self.last_item = Instant::now();
        item
    }

    /// Reads one page; `None` if the filter passed over all of it.
    async fn page(&mut self, bytes_max: usize) -> Result<Option<ScanPage>, ApiError> {
        let mut scan = self.scan.clone().expect("a subscription keeps its scan");
        // The end of the last page is not the end of the subscription.
        scan.done = false;
        let (scan, page) = scan.next(&self.shared, bytes_max).await?;
        self.position = page.position.position.max(self.position);
        self.scan = Some(scan);
        // Falling behind by more than a page ends being live; the next end is told again.
        if !page.at_end {
            self.caught_up = false;
        }
        Ok((!page.batches.is_empty()).then_some(page))
    }
}

/// The first sequence that a subscription may deliver.
fn start_of(engine: &Engine, partition: u32, from: SubscribeFrom) -> Result<u64, ApiError> {
    let first = engine.first_sequence(partition);
    match from {
        SubscribeFrom::First => Ok(first.max(1)),
        SubscribeFrom::Sequence(sequence) => {
            let sequence = sequence.max(1);
            if sequence < first {
                return Err(ApiError::sequence_trimmed(sequence, first).with_partition(partition));
            }
            Ok(sequence)
        }
        SubscribeFrom::Head => Ok(engine.committed(partition) + 1),
        SubscribeFrom::Cursor(name) => {
            let cursor = engine
                .cursor(partition, &name)
                .map_err(|error| read_error(&error))?;
            let cursor = cursor.ok_or_else(|| {
                let message = format!("partition {partition} has no cursor {name}");
                ApiError::new(ErrorCode::NotFound, message).with_partition(partition)
            })?;
            let next = cursor.position.saturating_add(1);
            if next < first {
                return Err(ApiError::sequence_trimmed(next, first).with_partition(partition));
            }
            Ok(next)
        }
        SubscribeFrom::Time(time) => {
            let request = ReadRequest {
                partition,
                from: ReadFrom::Time(time),
                direction: engine::Direction::Forward,
                filter: engine::Filter::default(),
                events_max: 1,
                bytes_max: 1,
            };
            let page = engine.read(&request).map_err(|error| read_error(&error))?;
            Ok(match page.batches.first() {
                Some(batch) => batch.first_sequence,
                None => page.committed + 1,
            })
        }
    }
}
