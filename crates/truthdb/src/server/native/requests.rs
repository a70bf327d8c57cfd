//! Reads, subscriptions and look-ups of a connection, each a task.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::Notify;
use truthdb_api::ApiError;
use truthdb_api::native::{
    self, CREDIT_BYTES_MIN, CursorState, Direction, FRAME_HEADER_BYTES, PAGE_BYTES_MAX, PagePieces,
    Position, Read, StreamHead, Subscribe, SubscribeStart, Text, run_bytes,
};
use truthdb_log::StoredBatch;

use super::outbox::Outbox;
use crate::server::Shared;
use crate::server::errors::read_error;
use crate::server::scan::{
    HEARTBEAT_DEFAULT, Scan, ScanPage, SubscribeFrom, Subscription, SubscriptionItem,
};

/// Bytes of a page when the client names none: with the heads of its runs it still fits one frame.
const PAGE_BYTES_DEFAULT: usize = PAGE_BYTES_MAX / 16 * 15;
/// Bytes of the smallest page that a client may ask for.
const PAGE_BYTES_MIN: usize = 4 << 10;
/// Bytes of a page before its runs.
const PAGE_HEAD_BYTES: usize = FRAME_HEADER_BYTES + 24;

/// What a client asks for.
pub(super) enum Request {
    /// A read.
    Read(Read),
    /// A subscription.
    Subscribe(Subscribe),
    /// A stream's head.
    StreamHead {
        /// The partition of a system stream.
        partition: u32,
        /// The stream.
        stream: Text,
    },
    /// A cursor.
    CursorGet {
        /// The partition.
        partition: u32,
        /// Its name.
        name: Text,
    },
}

/// Bytes that may still be sent for a request.
pub(super) struct Credit {
    bytes: Mutex<u64>,
    granted: Notify,
}

impl Credit {
    pub(super) fn new(bytes: u32) -> Credit {
        Credit {
            bytes: Mutex::new(bytes.into()),
            granted: Notify::new(),
        }
    }

    pub(super) fn grant(&self, bytes: u32) {
        let mut credit = self.bytes.lock();
        *credit = credit.saturating_add(bytes.into());
        drop(credit);
        self.granted.notify_one();
    }

    /// Waits until there are `wanted` bytes, and says how many there are.
    async fn at_least(&self, wanted: usize) -> usize {
        loop {
            let bytes = usize::try_from(*self.bytes.lock()).unwrap_or(usize::MAX);
            if bytes >= wanted {
                return bytes;
            }
            self.granted.notified().await;
        }
    }

    fn spend(&self, bytes: usize) {
        let mut credit = self.bytes.lock();
        let bytes = u64::try_from(bytes).expect("frames are bounded");
        *credit = credit
            .checked_sub(bytes)
            .expect("no page is sent beyond the credit");
    }
}

/// Answers a request to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    credit: Arc<Credit>,
    id: u32,
    request: Request,
) {
    let answer = Answer {
        shared,
        outbox,
        credit,
        id,
    };
    let outcome = match request {
        Request::Read(read) => answer.read(read).await,
        Request::Subscribe(subscribe) => answer.subscribe(subscribe).await,
        Request::StreamHead { partition, stream } => answer.stream_head(partition, stream).await,
        Request::CursorGet { partition, name } => answer.cursor(partition, name).await,
    };
    if let Err(error) = outcome {
        answer
            .send(|out| native::encode_error(out, id, &error))
            .await;
    }
}

struct Answer {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    credit: Arc<Credit>,
    id: u32,
}

impl Answer {
    async fn send(&self, encode: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        encode(&mut out);
        self.outbox.push(vec![out.freeze()]).await;
    }

    async fn read(&self, read: Read) -> Result<(), ApiError> {
        self.shared.check_partition(read.partition)?;
        let backward = read.direction == Direction::Backward;
        let page_bytes = match usize::try_from(read.page_bytes).unwrap_or(usize::MAX) {
            0 => PAGE_BYTES_DEFAULT,
            wanted => wanted.clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX),
        };
        let (mut scan, mut page) = Scan::new(read)?.next(&self.shared, page_bytes).await?;
        loop {
            let position = page.position;
            if scan.is_done() {
                if !page.batches.is_empty() {
                    self.send_page(page, backward).await;
                }
                self.send(|out| native::encode_end(out, self.id, position))
                    .await;
                return Ok(());
            }
            // While one page is on its way, the next one is read.
            let send = async {
                if !page.batches.is_empty() {
                    self.send_page(page, backward).await;
                }
            };
            let ((), next) = tokio::join!(send, scan.next(&self.shared, page_bytes));
            (scan, page) = next?;
        }
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<(), ApiError> {
        let from = match subscribe.start {
            SubscribeStart::First => SubscribeFrom::First,
            SubscribeStart::Sequence(sequence) => SubscribeFrom::Sequence(sequence),
            SubscribeStart::Timestamp(time) => SubscribeFrom::Time(time),
            SubscribeStart::Head => SubscribeFrom::Head,
            SubscribeStart::Cursor(name) => SubscribeFrom::Cursor(name.as_str().to_owned()),
        };
        let heartbeat = match subscribe.heartbeat_ms {
            0 => HEARTBEAT_DEFAULT,
            ms => Duration::from_millis(ms.into()),
        };
        let shared = &self.shared;
        let filter = subscribe.filter;
        let mut subscription =
            Subscription::open(shared, subscribe.partition, from, filter, heartbeat).await?;
        loop {
            match subscription.next(PAGE_BYTES_DEFAULT).await? {
                SubscriptionItem::Events(page) => self.send_page(page, false).await,
                SubscriptionItem::CaughtUp(position) => {
                    self.send(|out| native::encode_caught_up(out, self.id, position))
                        .await;
                }
                SubscriptionItem::Heartbeat(position) => {
                    self.send(|out| native::encode_heartbeat(out, self.id, position))
                        .await;
                }
            }
        }
    }

    async fn stream_head(&self, partition: u32, stream: Text) -> Result<(), ApiError> {
        let engine = self.shared.engine.clone();
        let name = stream.as_str().to_owned();
        let system = truthdb_event::is_system_stream(&name);
        let home = if system {
            partition
        } else {
            engine.partition_of(&name)
        };
        self.shared.check_partition(home)?;
        let read = move || engine.stream_head(&name, system.then_some(home));
        let head = self
            .shared
            .readers
            .run(read)
            .await?
            .map_err(|error| read_error(&error))?;
        let last = head.map(|head| (head.last_revision, head.last_sequence));
        let head = StreamHead {
            partition: home,
            last,
        };
        self.send(|out| native::encode_stream_head_reply(out, self.id, head))
            .await;
        Ok(())
    }

    async fn cursor(&self, partition: u32, name: Text) -> Result<(), ApiError> {
        self.shared.check_partition(partition)?;
        let engine = self.shared.engine.clone();
        let read = move || engine.cursor(partition, name.as_str());
        let cursor = self
            .shared
            .readers
            .run(read)
            .await?
            .map_err(|error| read_error(&error))?;
        let state = cursor.map(|cursor| CursorState {
            position: cursor.position,
            sequence: cursor.sequence,
            timestamp_ns: cursor.timestamp_ns,
        });
        self.send(|out| native::encode_cursor_reply(out, self.id, state))
            .await;
        Ok(())
    }

    /// Sends the events of a page in as many frames as their sizes and the credit make of them.
    async fn send_page(&self, page: ScanPage, backward: bool) {
        let head_sequence = page.position.head_sequence;
        let mut rest = Rest::new(&page.batches, backward);
        while !rest.is_empty() {
            // A client holds back less than that, so it comes; and then any event fits.
            let wanted = (PAGE_HEAD_BYTES + rest.bytes()).min(CREDIT_BYTES_MIN);
            let credit = self.credit.at_least(wanted).await;
            let budget = credit.min(FRAME_HEADER_BYTES + PAGE_BYTES_MAX);
            let mut frame = PagePieces::begin(self.id);
            let mut last = 0;
            while let Some(run) = rest.take(budget, frame.frame_bytes(), frame.run_count() == 0) {
                let count = run.event_count;
                let (first, time) = (run.first_sequence, run.timestamp_ns);
                frame.push_run(first, time, count, &run.body, page.is_dense);
                last = if backward {
                    run.first_sequence
                } else {
                    run.last_sequence()
                };
            }
            let position = if rest.is_empty() {
                page.position
            } else {
                Position {
                    position: last,
                    head_sequence,
                }
            };
            self.credit.spend(frame.frame_bytes());
            self.outbox.push(frame.finish(position)).await;
        }
    }
}

/// What of a page is still to be sent.
struct Rest<'a> {
    batches: &'a [StoredBatch],
    /// Events of the first batch that are left.
    range: Range<u32>,
    backward: bool,
}

impl<'a> Rest<'a> {
    fn new(batches: &'a [StoredBatch], backward: bool) -> Rest<'a> {
        let range = 0..batches.first().map_or(0, |batch| batch.event_count);
        Rest {
            batches,
            range,
            backward,
        }
    }

    fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// About how many bytes the runs take; at least that.
    fn bytes(&self) -> usize {
        self.batches
            .iter()
            .map(|batch| run_bytes(0, batch.body.len()))
            .sum()
    }

    /// The next run that fits a frame of `budget` bytes of which `used` are taken. In an empty
    /// frame there is always one: a single event fits the credit.
    fn take(&mut self, budget: usize, used: usize, empty: bool) -> Option<StoredBatch> {
        let batch = self.batches.first()?;
        let room = budget.saturating_sub(used);
        let whole = self.range == (0..batch.event_count);
        let range = if whole && run_bytes(0, batch.body.len()) <= room {
            self.range.clone()
        } else {
            self.fitting(batch, room, empty)?
        };
        let run = batch.select(range.clone());
        if self.backward {
            self.range.end = range.start;
        } else {
            self.range.start = range.end;
        }
        if self.range.is_empty() {
            *self = Rest::new(&self.batches[1..], self.backward);
        }
        Some(run)
    }

    fn fitting(&self, batch: &StoredBatch, room: usize, empty: bool) -> Option<Range<u32>> {
        let lengths: Vec<usize> = batch.events().map(|event| event.bytes.len()).collect();
        let at = |index: u32| lengths[usize::try_from(index).expect("a u32 fits")];
        let (mut count, mut bytes) = (0, 0);
        let left = self.range.end - self.range.start;
        while count < left {
            let next = if self.backward {
                self.range.end - 1 - count
            } else {
                self.range.start + count
            };
            let more = bytes + at(next);
            let fits = run_bytes(usize::try_from(count + 1).expect("a u32 fits"), more) <= room;
            let first = empty && count == 0;
            if !fits && !first {
                break;
            }
            bytes = more;
            count += 1;
        }
        if count == 0 {
            return None;
        }
        Some(if self.backward {
            self.range.end - count..self.range.end
        } else {
            self.range.start..self.range.start + count
        })
    }
}
