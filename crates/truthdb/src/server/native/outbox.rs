//! What waits to be sent on a connection, and the task that sends it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use truthdb_api::ApiError;
use truthdb_api::native::{AppendReplyEncoder, AppendedBatch, Durability};
use truthdb_engine::{AppendBatch, AppendError, AppendSink, Appended};

use crate::server::Shared;
use crate::server::append::stream_revisions;
use crate::server::errors::append_error;
use crate::server::listen::TimedStream;

/// Results in one reply frame at most: the longest errors still fit a frame.
const RESULTS_MAX: u32 = 4096;
/// Pieces of frames given to the socket at once.
const SLICES_MAX: usize = 64;
/// Appends under way of one connection at most.
const IN_FLIGHT_BATCHES_MAX: usize = 65_536;

/// What an append carries through the engine, in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// The client's id.
    pub request_id: u32,
    /// Of how many streams the batch is.
    pub streams: Streams,
    /// Whether a cursor is committed after its events.
    pub cursor: bool,
    /// When it came, monotonic nanoseconds; kept in steps of 1 µs and 29 bits, some 9 minutes.
    pub begun_ns: u64,
}

/// Of how many streams a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Streams {
    /// It has only a cursor.
    None = 0,
    /// One.
    One = 1,
    /// Two or more: their revisions are read back for the answer.
    Several = 2,
}

const TIME_BITS: u64 = (1 << 29) - 1;

impl Tag {
    pub(super) fn pack(self) -> u64 {
        u64::from(self.request_id)
            | (self.streams as u64) << 32
            | u64::from(self.cursor) << 34
            | ((self.begun_ns / 1000) & TIME_BITS) << 35
    }

    fn request_id(packed: u64) -> u32 {
        u32::try_from(packed & u64::from(u32::MAX)).expect("masked")
    }

    fn streams(packed: u64) -> Streams {
        match packed >> 32 & 3 {
            0 => Streams::None,
            1 => Streams::One,
            _ => Streams::Several,
        }
    }

    fn has_cursor(packed: u64) -> bool {
        packed >> 34 & 1 == 1
    }

    fn taken(packed: u64, now_ns: u64) -> Duration {
        Duration::from_micros(((now_ns / 1000).wrapping_sub(packed >> 35)) & TIME_BITS)
    }
}

struct Done {
    tag: u64,
    result: Result<Appended, AppendError>,
    batch: Box<AppendBatch>,
}

#[derive(Default)]
struct Inner {
    done: Vec<Done>,
    refused: Vec<(u32, ApiError)>,
    /// Frames, or pieces of frames.
    frames: VecDeque<Bytes>,
    frame_bytes: usize,
    in_flight_bytes: usize,
    in_flight_batches: usize,
    /// The writing task has been told that there is something.
    told: bool,
    /// The writing task holds bytes that go out before anything else.
    writing: bool,
    /// An answer that the engine's thread sends itself.
    answer: BytesMut,
    closed: bool,
}

/// What waits to be sent.
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    something: Notify,
    room: Notify,
    in_flight_max: usize,
    outgoing_max: usize,
    durability: Durability,
    shared: Arc<Shared>,
    /// The socket, when an answer may be written to it as it is.
    direct: Option<Arc<TcpStream>>,
}

impl AppendSink for Outbox {
    fn complete(&self, tag: u64, result: Result<Appended, AppendError>, batch: Box<AppendBatch>) {
        self.put(|inner| inner.done.push(Done { tag, result, batch }));
    }

    /// A lone caller waits for nothing but this: waking the writing task would only cost it time.
    fn complete_alone(
        &self,
        tag: u64,
        result: Result<Appended, AppendError>,
        batch: Box<AppendBatch>,
    ) {
        match (&self.direct, result) {
            (Some(socket), Ok(appended)) if Tag::streams(tag) != Streams::Several => {
                self.answer_at_once(socket, tag, appended, batch);
            }
            (_, result) => self.complete(tag, result, batch),
        }
    }
}

impl Outbox {
    /// An outbox of a connection. `direct`: its socket, if what is sent are plain frames.
    pub(super) fn new(
        shared: &Arc<Shared>,
        in_flight_max: usize,
        durability: Durability,
        direct: Option<Arc<TcpStream>>,
    ) -> Outbox {
        Outbox {
            inner: Mutex::default(),
            something: Notify::new(),
            room: Notify::new(),
            in_flight_max,
            outgoing_max: shared.config.limits.outgoing_bytes_max,
            durability,
            shared: Arc::clone(shared),
            direct,
        }
    }

    /// Writes an answer to the socket if nothing goes before it. What the socket does not take is
    /// left to the writing task.
    fn answer_at_once(
        &self,
        socket: &TcpStream,
        tag: u64,
        appended: Appended,
        batch: Box<AppendBatch>,
    ) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if inner.told || inner.writing || inner.closed {
            drop(guard);
            self.complete(tag, Ok(appended), batch);
            return;
        }
        inner.in_flight_bytes -= batch.stored_bytes();
        inner.in_flight_batches -= 1;
        let taken = Tag::taken(tag, self.shared.clock.monotonic_ns());
        self.shared.metrics.native_append.record(taken);
        inner.answer.clear();
        let mut encoder = AppendReplyEncoder::begin(&mut inner.answer);
        self.push_reply(&mut encoder, &mut inner.answer, tag, &appended);
        encoder.finish(&mut inner.answer);
        // An error is the writing task's to find.
        let written = socket.try_write(&inner.answer).unwrap_or(0);
        if written < inner.answer.len() {
            let rest = Bytes::copy_from_slice(&inner.answer[written..]);
            drop(guard);
            self.push_now(rest);
        } else {
            drop(guard);
        }
        self.room.notify_waiters();
    }

    fn push_reply(
        &self,
        encoder: &mut AppendReplyEncoder,
        out: &mut BytesMut,
        tag: u64,
        appended: &Appended,
    ) {
        let has_event = Tag::streams(tag) == Streams::One;
        let revisions = has_event
            .then_some(appended.last_revision)
            .into_iter()
            .collect();
        let batch = reply(tag, appended, revisions, self.durability);
        encoder.push_appended(out, Tag::request_id(tag), &batch);
    }

    fn put(&self, change: impl FnOnce(&mut Inner)) {
        let tell = {
            let mut inner = self.inner.lock();
            change(&mut inner);
            !std::mem::replace(&mut inner.told, true)
        };
        if tell {
            self.something.notify_one();
        }
    }

    /// An append goes to the engine.
    pub(super) fn enter(&self, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.in_flight_bytes += bytes;
        inner.in_flight_batches += 1;
    }

    /// It was refused at the door.
    pub(super) fn leave(&self, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.in_flight_bytes -= bytes;
        inner.in_flight_batches -= 1;
    }

    /// The answer to an append that was refused.
    pub(super) fn refuse(&self, request_id: u32, error: ApiError) {
        self.put(|inner| inner.refused.push((request_id, error)));
    }

    /// A small frame, at once.
    pub(super) fn push_now(&self, frame: Bytes) {
        self.put(|inner| {
            inner.frame_bytes += frame.len();
            inner.frames.push_back(frame);
        });
    }

    /// A frame in pieces, when there is room for it.
    pub(super) async fn push(&self, pieces: Vec<Bytes>) {
        self.wait(|inner| inner.frame_bytes < self.outgoing_max)
            .await;
        self.put(|inner| {
            inner.frame_bytes += pieces.iter().map(Bytes::len).sum::<usize>();
            inner.frames.extend(pieces);
        });
    }

    /// Waits until requests may be taken: not too much is under way or waits to be sent.
    pub(super) async fn room(&self) {
        self.wait(|inner| {
            inner.in_flight_bytes < self.in_flight_max
                && inner.in_flight_batches < IN_FLIGHT_BATCHES_MAX
                && inner.frame_bytes < self.outgoing_max
                && inner.refused.len() < IN_FLIGHT_BATCHES_MAX
        })
        .await;
    }

    async fn wait(&self, fits: impl Fn(&Inner) -> bool) {
        loop {
            let room = self.room.notified();
            let mut room = std::pin::pin!(room);
            // From here on a notification counts, so that none is missed after the look.
            room.as_mut().enable();
            if fits(&self.inner.lock()) {
                return;
            }
            room.await;
        }
    }

    /// Nothing more is taken; what is under way is still answered.
    pub(super) fn close(&self) {
        self.put(|inner| inner.closed = true);
    }
}

/// What the writing task took out of the outbox.
#[derive(Default)]
struct Load {
    done: Vec<Done>,
    refused: Vec<(u32, ApiError)>,
    frames: VecDeque<Bytes>,
}

impl Load {
    fn is_empty(&self) -> bool {
        self.done.is_empty() && self.refused.is_empty() && self.frames.is_empty()
    }
}

/// Sends what the outbox gets, until it is closed and everything is answered, or the client is
/// gone.
pub(super) async fn write_loop(
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    mut output: WriteHalf<TimedStream>,
) {
    let mut load = Load::default();
    let mut out = BytesMut::new();
    loop {
        let ended = {
            let mut inner = outbox.inner.lock();
            inner.told = false;
            std::mem::swap(&mut inner.done, &mut load.done);
            std::mem::swap(&mut inner.refused, &mut load.refused);
            std::mem::swap(&mut inner.frames, &mut load.frames);
            inner.frame_bytes = 0;
            let freed: usize = load.done.iter().map(|done| done.batch.stored_bytes()).sum();
            inner.in_flight_bytes -= freed;
            inner.in_flight_batches -= load.done.len();
            inner.writing = !load.is_empty();
            inner.closed && inner.in_flight_batches == 0
        };
        outbox.room.notify_waiters();
        if load.is_empty() {
            if ended {
                let _ = output.shutdown().await;
                return;
            }
            outbox.something.notified().await;
            continue;
        }
        encode_replies(&shared, &outbox, &mut load, &mut out);
        if let Err(error) = send(&mut output, &mut out, &mut load.frames).await {
            tracing::debug!("a connection ended: {error}");
            return;
        }
    }
}

async fn send(
    output: &mut WriteHalf<TimedStream>,
    out: &mut BytesMut,
    frames: &mut VecDeque<Bytes>,
) -> std::io::Result<()> {
    if !out.is_empty() {
        output.write_all(out).await?;
        out.clear();
    }
    while !frames.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        for (slice, frame) in slices.iter_mut().zip(&*frames) {
            *slice = IoSlice::new(frame);
        }
        let count = frames.len().min(SLICES_MAX);
        let mut written = output.write_vectored(&slices[..count]).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        while let Some(frame) = frames.front_mut() {
            if frame.len() > written {
                frame.advance(written);
                break;
            }
            written -= frame.len();
            frames.pop_front();
        }
    }
    output.flush().await
}

fn encode_replies(shared: &Arc<Shared>, outbox: &Arc<Outbox>, load: &mut Load, out: &mut BytesMut) {
    if load.done.is_empty() && load.refused.is_empty() {
        return;
    }
    let now_ns = shared.clock.monotonic_ns();
    let mut encoder = AppendReplyEncoder::begin(out);
    for Done { tag, result, batch } in load.done.drain(..) {
        let request_id = Tag::request_id(tag);
        shared.metrics.native_append.record(Tag::taken(tag, now_ns));
        drop(batch);
        match result {
            Ok(appended) if Tag::streams(tag) == Streams::Several => {
                answer_several(shared, outbox, tag, appended);
                continue;
            }
            Ok(appended) => outbox.push_reply(&mut encoder, out, tag, &appended),
            Err(error) => encoder.push_error(out, request_id, &append_error(&error)),
        }
        if encoder.len() >= RESULTS_MAX {
            encoder.finish(out);
            encoder = AppendReplyEncoder::begin(out);
        }
    }
    for (request_id, error) in load.refused.drain(..) {
        encoder.push_error(out, request_id, &error);
        if encoder.len() >= RESULTS_MAX {
            encoder.finish(out);
            encoder = AppendReplyEncoder::begin(out);
        }
    }
    encoder.finish(out);
}

fn reply(
    tag: u64,
    appended: &Appended,
    last_revisions: Vec<u64>,
    durability: Durability,
) -> AppendedBatch {
    // The cursor's own event comes after the caller's; alone it is the only one.
    let after = Tag::has_cursor(tag) && Tag::streams(tag) != Streams::None;
    AppendedBatch {
        first_sequence: appended.first_sequence,
        last_sequence: appended.last_sequence + u64::from(after),
        timestamp_ns: appended.timestamp_ns,
        last_revisions,
        already_appended: appended.duplicate,
        durability,
    }
}

/// Answers an append to several streams: their revisions are read back first.
fn answer_several(shared: &Arc<Shared>, outbox: &Arc<Outbox>, tag: u64, appended: Appended) {
    let (shared, outbox) = (Arc::clone(shared), Arc::clone(outbox));
    // Counts as under way until it is answered, so that a closing connection waits for it.
    outbox.enter(0);
    shared.tracker.clone().spawn(async move {
        let engine = shared.engine.clone();
        let read = move || stream_revisions(&engine, &appended, usize::MAX);
        let revisions = shared.readers.run(read).await.and_then(|result| result);
        let revisions = revisions.unwrap_or_else(|error| {
            tracing::warn!("the revisions of an append could not be read back: {error}");
            Vec::new()
        });
        let system = |stream: &str| truthdb_event::is_system_stream(stream);
        let revisions = revisions
            .into_iter()
            .filter(|(stream, _)| !system(stream))
            .map(|(_, revision)| revision)
            .collect();
        let mut out = BytesMut::new();
        let mut encoder = AppendReplyEncoder::begin(&mut out);
        let batch = reply(tag, &appended, revisions, outbox.durability);
        encoder.push_appended(&mut out, Tag::request_id(tag), &batch);
        encoder.finish(&mut out);
        outbox.push_now(out.freeze());
        outbox.leave(0);
        // The writing task may wait for this one only.
        outbox.put(|_| ());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_keeps_what_it_is_given() {
        for streams in [Streams::None, Streams::One, Streams::Several] {
            let packed = Tag {
                request_id: 0xdead_beef,
                streams,
                cursor: true,
                begun_ns: 7_000_000_000_000,
            }
            .pack();
            assert_eq!(Tag::request_id(packed), 0xdead_beef);
            assert!(Tag::has_cursor(packed));
            assert_eq!(Tag::streams(packed), streams);
            let later = 7_000_000_000_000 + 1_500_000;
            assert_eq!(Tag::taken(packed, later), Duration::from_micros(1500));
        }
    }
}
