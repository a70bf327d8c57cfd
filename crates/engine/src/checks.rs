//! What an append must pass before it is encoded: idempotency, expected revisions, the append condition.
//!
//! All are decided by the writer against exactly the state before the append, including what is
//! encoded and not yet
//! committed; so decisions are serialised with the log.

use std::sync::Arc;

use truthdb_log::canary::{Canary, planted};
use truthdb_log::{FacetKey, StreamHead, StreamKey};

use crate::append::{AppendBatch, PreparedItem};
use crate::error::{AppendError, ReadError};
use crate::id_window::IdWindow;
use crate::read;
use crate::request::{Appended, ExpectedRevision};
use crate::shared::{PartitionShared, Segment, SegmentBody};
use crate::stream_cache::StreamCache;

/// Reused vectors of the condition check.
#[derive(Default)]
pub(crate) struct Scratch {
    candidates: Vec<u64>,
    postings: Vec<u64>,
    union: Vec<u64>,
}

/// Whether a batch was appended before.
pub(crate) enum Duplicate {
    No,
    Of(Appended),
    /// Its ids are in flight.
    NotYetCommitted,
}

fn check_failed(source: ReadError) -> AppendError {
    AppendError::Check {
        source: Arc::new(source),
    }
}

/// Looks the batch's event ids up in the window.
pub(crate) fn find_duplicate(
    shared: &PartitionShared,
    ids: &IdWindow,
    batch: &AppendBatch,
) -> Result<Duplicate, AppendError> {
    let user_events = &batch.events[..batch.user_events];
    for (index, event) in user_events.iter().enumerate() {
        let Some(sequence) = ids.get(event.id_hash.0) else {
            continue;
        };
        if sequence > shared.committed() {
            return Ok(Duplicate::NotYetCommitted);
        }
        let first = sequence.saturating_sub(index as u64);
        if let Some(appended) = same_batch(shared, batch, first)? {
            return Ok(Duplicate::Of(appended));
        }
        if sequence < shared.view().first_sequence {
            // Trimmed, and with it what the id stood for.
            continue;
        }
        let stored = read::batch_at(shared, sequence).map_err(check_failed)?;
        let stored_id = stored.event_at(sequence).map(|e| e.event().id());
        if stored_id == Some(event.id) {
            return Err(AppendError::IdReused {
                id: event.id,
                sequence,
            });
        }
    }
    Ok(Duplicate::No)
}

/// Whether the stored events from `first` on are exactly those of the batch.
fn same_batch(
    shared: &PartitionShared,
    batch: &AppendBatch,
    first: u64,
) -> Result<Option<Appended>, AppendError> {
    if first == 0 || first > shared.committed() || first < shared.view().first_sequence {
        return Ok(None);
    }
    let stored = read::batch_at(shared, first).map_err(check_failed)?;
    // Behind a caller's events there may be a cursor; the database's own come alone.
    let user_events = stored
        .events()
        .take_while(|event| batch.own || !truthdb_event::is_system_stream(event.event().stream()))
        .count();
    if stored.first_sequence != first || user_events != batch.user_events {
        return Ok(None);
    }
    let mut last_revision = 0;
    for (event, stored) in batch.events[..batch.user_events]
        .iter()
        .zip(stored.events())
    {
        if stored.checksum != event.checksum || stored.event().id() != event.id {
            return Ok(None);
        }
        last_revision = stored.revision;
    }
    Ok(Some(Appended {
        partition: shared.partition,
        first_sequence: first,
        last_sequence: first + batch.user_events as u64 - 1,
        timestamp_ns: stored.timestamp_ns,
        last_revision,
        durable: true,
        duplicate: true,
    }))
}

/// The end of a stream, encoded and not yet committed events included. A stream without events has
/// next revision 0.
pub(crate) fn stream_head(
    shared: &PartitionShared,
    cache: &mut StreamCache,
    key: StreamKey,
) -> Result<StreamHead, AppendError> {
    if let Some(head) = cache.get(key) {
        return Ok(head);
    }
    let head = read::stream_head(shared, key).map_err(check_failed)?;
    Ok(head.unwrap_or(StreamHead {
        next_revision: 0,
        last_sequence: 0,
    }))
}

/// Compares the expected revisions with the streams' heads.
pub(crate) fn expected_revisions(
    batch: &AppendBatch,
    heads: &[StreamHead],
) -> Result<(), AppendError> {
    for (index, (stream, head)) in batch.streams.iter().zip(heads).enumerate() {
        let actual = head.next_revision.checked_sub(1);
        let holds = match stream.expected {
            ExpectedRevision::Any => true,
            ExpectedRevision::NoStream => actual.is_none(),
            ExpectedRevision::Exists => actual.is_some(),
            ExpectedRevision::Exact(revision) => actual == Some(revision),
        };
        if !holds && !planted(Canary::SkipRevisionCheck) {
            return Err(AppendError::RevisionConflict {
                stream: batch.stream_name(index),
                expected: stream.expected,
                actual,
            });
        }
    }
    Ok(())
}

/// After a conflict of revisions: was it this very batch that moved the stream? Then it is a
/// repeated append, however
/// long ago the first one was.
pub(crate) fn appended_before(
    shared: &PartitionShared,
    batch: &AppendBatch,
    heads: &[StreamHead],
) -> Result<Option<Appended>, AppendError> {
    for (stream, head) in batch.streams.iter().zip(heads) {
        let next = match stream.expected {
            ExpectedRevision::NoStream => 0,
            ExpectedRevision::Exact(revision) => revision.saturating_add(1),
            ExpectedRevision::Any | ExpectedRevision::Exists => continue,
        };
        if next >= head.next_revision || stream.first_event >= batch.user_events {
            continue;
        }
        let found = read::sequence_of_revision(shared, stream.key, next).map_err(check_failed)?;
        let first = found.and_then(|s| s.checked_sub(stream.first_event as u64));
        if let Some(first) = first {
            return same_batch(shared, batch, first);
        }
    }
    Ok(None)
}

/// Looks for an event that the batch's append condition forbids.
pub(crate) fn condition(
    shared: &PartitionShared,
    batch: &AppendBatch,
    scratch: &mut Scratch,
) -> Result<Option<u64>, AppendError> {
    if batch.condition.is_empty() || planted(Canary::SkipCondition) {
        return Ok(None);
    }
    let view = shared.view();
    for segment in view.segments.iter().rev() {
        let body = segment.body();
        for item in &batch.condition {
            let found = match_item(segment, &body, item, batch.condition_after, scratch)
                .map_err(check_failed)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        if segment.base_sequence <= batch.condition_after.saturating_add(1) {
            break;
        }
    }
    Ok(None)
}

/// The first event of a segment that has all tags and one of the types of an item.
fn match_item(
    segment: &Segment,
    body: &SegmentBody,
    item: &PreparedItem,
    after: u64,
    scratch: &mut Scratch,
) -> Result<Option<u64>, ReadError> {
    let Scratch {
        candidates,
        postings,
        union,
    } = scratch;
    // With one name, one posting decides.
    let most = if item.tags.len() + item.types.len() == 1 {
        1
    } else {
        usize::MAX
    };
    candidates.clear();
    let mut first = true;
    for tag in &item.tags {
        postings.clear();
        facet_after(segment, body, (*tag, after, most), postings)?;
        if first {
            std::mem::swap(candidates, postings);
            first = false;
        } else {
            candidates.retain(|sequence| postings.binary_search(sequence).is_ok());
        }
        if candidates.is_empty() {
            return Ok(None);
        }
    }
    if item.types.is_empty() {
        return Ok(candidates.first().copied());
    }
    union.clear();
    for event_type in &item.types {
        facet_after(segment, body, (*event_type, after, most), union)?;
    }
    union.sort_unstable();
    if first {
        return Ok(union.first().copied());
    }
    Ok(candidates
        .iter()
        .copied()
        .find(|sequence| union.binary_search(sequence).is_ok()))
}

fn facet_after(
    segment: &Segment,
    body: &SegmentBody,
    (facet, after, most): (FacetKey, u64, usize),
    out: &mut Vec<u64>,
) -> Result<(), ReadError> {
    match body {
        SegmentBody::Unsealed(unsealed) => {
            unsealed
                .index
                .read()
                .facet_after(facet, after, u64::MAX, most, out);
            Ok(())
        }
        SegmentBody::Sealed(sealed) => sealed
            .index()?
            .facet_after(facet, after, most, out)
            .map_err(|source| read::index_error(&segment.path, source)),
    }
}
