//! Trim: removing whole sealed segments from the start of a partition, as a fact in the log.
//!
//! Order, and what a crash leaves: (1) the `$trim` event is committed: nothing is gone yet, the
//! first sequence is raised
//! for readers; (2) the trim point is made durable in `trim.bin`: from now on missing segments
//! before it are no loss; (3) the
//! maintenance removes their files, oldest first. A crash after (1) or (2) only means that files
//! are removed later:
//! opening finds the event, or the file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use truthdb_event::EventBuilder;
use truthdb_log::TrimPoint;

use crate::append::{AppendSink, Preparer, TRIM_EVENT_TYPE, TRIM_STREAM, WaitSink};
use crate::error::{AppendError, TrimError};
use crate::queue::QueuedAppend;
use crate::shared::{PartitionShared, Segment, SegmentBody};

/// How far to trim. Only whole sealed segments go, so a little more than asked for may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrimTo {
    /// Segments whose events all come before this sequence.
    Sequence(u64),
    /// Segments whose events are all older than this, nanoseconds UTC.
    Time(u64),
    /// Oldest segments, until the partition's files take at most this many bytes.
    Bytes(u64),
}

/// What a trim would remove. Nothing has happened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrimPlan {
    /// The partition.
    pub partition: u32,
    /// Segments that go.
    pub segments: Vec<u32>,
    /// Bytes of their files.
    pub bytes: u64,
    /// Events in them.
    pub events: u64,
    /// First sequence left afterwards.
    pub first_sequence: u64,
    /// First segment left afterwards.
    pub first_segment: u32,
}

/// Bytes of a segment's file, if it is sealed.
fn sealed_bytes(segment: &Segment) -> Option<(u64, truthdb_log::Footer)> {
    match segment.body() {
        SegmentBody::Sealed(sealed) => Some((sealed.footer.file_bytes()?, sealed.footer)),
        SegmentBody::Unsealed(_) => None,
    }
}

/// Works out what a trim would remove.
pub(crate) fn plan_trim(shared: &PartitionShared, to: TrimTo) -> TrimPlan {
    let view = shared.view();
    let mut plan = TrimPlan {
        partition: shared.partition,
        segments: Vec::new(),
        bytes: 0,
        events: 0,
        first_sequence: view.first_sequence,
        first_segment: view.segments.first().map_or(1, |segment| segment.number),
    };
    let mut left: u64 = view
        .segments
        .iter()
        .map(|segment| match segment.body() {
            SegmentBody::Sealed(sealed) => sealed.footer.file_bytes().unwrap_or(0),
            SegmentBody::Unsealed(unsealed) => unsealed.end_offset.load(Ordering::Acquire),
        })
        .sum();
    for pair in view.segments.windows(2) {
        let Some((bytes, footer)) = sealed_bytes(&pair[0]) else {
            break;
        };
        let goes = match to {
            TrimTo::Sequence(sequence) => footer.last_sequence < sequence,
            TrimTo::Time(time) => footer.last_timestamp_ns < time,
            TrimTo::Bytes(bytes) => left > bytes,
        };
        // What the state of modules needs stays: see `Engine::set_trim_floor`.
        let needed = footer.last_sequence >= shared.trim_floor.load(Ordering::Acquire);
        if !goes || needed {
            break;
        }
        left = left.saturating_sub(bytes);
        if footer.last_sequence < view.first_sequence {
            // Trimmed before; its file is about to go.
            continue;
        }
        plan.segments.push(pair[0].number);
        plan.bytes += bytes;
        plan.events += footer.event_count();
        plan.first_sequence = pair[1].base_sequence;
        plan.first_segment = pair[1].number;
    }
    plan
}

/// The payload of a `$trim` event.
pub(crate) fn encode_point(point: TrimPoint) -> Vec<u8> {
    format!(
        "{{\"first_segment\":{},\"first_sequence\":{}}}",
        point.first_segment, point.first_sequence
    )
    .into_bytes()
}

/// Reads the payload of a `$trim` event.
pub(crate) fn decode_point(payload: &[u8]) -> Option<TrimPoint> {
    let text = std::str::from_utf8(payload).ok()?;
    let rest = text
        .strip_prefix("{\"first_segment\":")?
        .strip_suffix('}')?;
    let (segment, sequence) = rest.split_once(",\"first_sequence\":")?;
    Some(TrimPoint {
        first_segment: segment.parse().ok()?,
        first_sequence: sequence.parse().ok()?,
    })
}

/// Raises the readable start when the `$trim` event is committed.
struct TrimSink {
    shared: Arc<PartitionShared>,
    point: TrimPoint,
    then: Arc<dyn AppendSink>,
}

impl AppendSink for TrimSink {
    fn complete(
        &self,
        tag: u64,
        result: Result<crate::Appended, AppendError>,
        batch: Box<crate::AppendBatch>,
    ) {
        if result.is_ok() {
            self.shared.set_trim_point(self.point);
        }
        self.then.complete(tag, result, batch);
    }
}

/// Queues the `$trim` event of a plan; the sink hears of its commit.
pub(crate) fn submit_trim(
    shared: &Arc<PartitionShared>,
    preparer: &Preparer,
    plan: &TrimPlan,
    then: Arc<dyn AppendSink>,
    tag: u64,
) -> Result<(), AppendError> {
    let point = TrimPoint {
        first_segment: plan.first_segment,
        first_sequence: plan.first_sequence,
    };
    let payload = encode_point(point);
    let builder = EventBuilder::new(TRIM_STREAM, TRIM_EVENT_TYPE)
        .content_type("application/json")
        .payload(&payload);
    let batch = preparer.prepare_system(shared.partition, &builder)?;
    let sink = Arc::new(TrimSink {
        shared: Arc::clone(shared),
        point,
        then,
    });
    let append = QueuedAppend { batch, sink, tag };
    shared.queue.push(append).map_err(|(error, _)| error)
}

/// Records a trim and returns at once: what the maintenance does, which must not wait for a writer
/// that may wait for it.
pub(crate) fn record_trim(
    shared: &Arc<PartitionShared>,
    preparer: &Preparer,
    plan: &TrimPlan,
) -> Result<(), TrimError> {
    submit_trim(shared, preparer, plan, WaitSink::new(), 0).map_err(TrimError::Append)
}

/// Records a trim and waits until it is committed.
pub(crate) fn trim(
    shared: &Arc<PartitionShared>,
    preparer: &Preparer,
    plan: &TrimPlan,
) -> Result<(), TrimError> {
    let wait = WaitSink::new();
    let sink = Arc::clone(&wait) as Arc<dyn AppendSink>;
    submit_trim(shared, preparer, plan, sink, 0).map_err(TrimError::Append)?;
    wait.wait().map(|_| ()).map_err(TrimError::Append)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trim_payload_round_trips() {
        let point = TrimPoint {
            first_segment: 7,
            first_sequence: 1234,
        };
        assert_eq!(decode_point(&encode_point(point)), Some(point));
        assert_eq!(decode_point(b"{\"first_segment\":1}"), None);
    }
}
