//! Making a segment's index anew from the segment itself.
//!
//! The events say everything but one thing: where a stream's last event before the segment is. That is looked
//! up in the indexes of older segments, newest first, so indexes are rebuilt from the oldest segment on.

use std::sync::Arc;

use truthdb_io::Storage;

use crate::active_index::{ActiveIndex, EventKeys};
use crate::batch::StoredBatch;
use crate::error::ReadError;
use crate::index::{SegmentIndex, write_index};
use crate::keys::{FacetKey, KeyHasher, StreamKey};
use crate::paged::IndexError;
use crate::reader::SegmentReader;
use crate::scan::SegmentScan;
use crate::seal::{SealError, segment_binding, segment_index_path};
use crate::segment::Footer;

/// Adds the events of a batch to an index. `previous_sequence` is asked for a stream that is new to it.
pub fn index_batch(
    index: &mut ActiveIndex,
    keys: &KeyHasher,
    offset: u64,
    batch: &StoredBatch,
    mut previous_sequence: impl FnMut(StreamKey, u64) -> u64,
) {
    index.push_batch(offset, batch.timestamp_ns);
    let mut facets: Vec<FacetKey> = Vec::new();
    for stored in batch.events() {
        let event = stored.event();
        facets.clear();
        facets.push(keys.event_type(event.event_type().as_bytes()));
        facets.extend(event.tags().map(|tag| keys.tag(tag.as_bytes())));
        let stream = keys.stream(event.stream().as_bytes());
        let known = index.stream(stream).is_some();
        let previous = if known {
            0
        } else {
            previous_sequence(stream, stored.revision)
        };
        index.push(&EventKeys {
            stream,
            revision: stored.revision,
            previous_sequence: previous,
            id: keys.id(event.id().as_bytes()),
            facets: &facets,
        });
    }
}

/// Makes the index of a sealed segment anew and writes it.
///
/// `older` gives the index of a segment before it, `None` if that segment was trimmed or never was.
///
/// # Errors
///
/// What cannot be read or written; the segment's damage.
pub fn rebuild_segment_index(
    storage: &Arc<dyn Storage>,
    keys: &KeyHasher,
    footer: &Footer,
    mut older: impl FnMut(u32) -> Result<Option<SegmentIndex>, IndexError>,
) -> Result<SegmentIndex, SealError> {
    let (reader, header) = SegmentReader::open(storage.as_ref(), footer.place)?;
    let file = Arc::clone(reader.file());
    let mut index = ActiveIndex::new(footer.base_sequence);
    let mut scan = SegmentScan::new(storage.as_ref(), file, &header, footer.data_end)?;
    let mut pending: Vec<StreamKey> = Vec::new();
    while let Some(scanned) = scan.next_batch()? {
        check_revisions(&index, keys, &scanned.batch, &reader, scanned.offset)?;
        index_batch(
            &mut index,
            keys,
            scanned.offset,
            &scanned.batch,
            |stream, revision| {
                if revision > 0 {
                    pending.push(stream);
                }
                0
            },
        );
    }
    pending.sort_unstable();
    for segment in (1..footer.place.segment).rev() {
        if pending.is_empty() {
            break;
        }
        let Some(older) = older(segment)? else { break };
        resolve(&mut index, &mut pending, &older)?;
    }
    let path = segment_index_path(footer.place.partition, footer.place.segment);
    let binding = segment_binding(footer, keys.seed().check());
    write_index(storage, &path, &binding, &index)?;
    Ok(SegmentIndex::open(storage, &path, &binding)?)
}

/// The first event of a batch whose revision does not follow that of its stream's last event in the segment.
pub(crate) fn revision_gap(
    index: &ActiveIndex,
    keys: &KeyHasher,
    batch: &StoredBatch,
) -> Option<RevisionGap> {
    let mut next = std::collections::HashMap::new();
    for stored in batch.events() {
        let stream = keys.stream(stored.event().stream().as_bytes());
        let known = || index.stream(stream).map(|extent| extent.next_revision);
        let expected = next.get(&stream).copied().or_else(known);
        if let Some(expected) = expected.filter(|expected| *expected != stored.revision) {
            let (sequence, found) = (stored.sequence, stored.revision);
            return Some(RevisionGap {
                sequence,
                expected,
                found,
            });
        }
        next.insert(stream, stored.revision.saturating_add(1));
    }
    None
}

/// An event with another revision than follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RevisionGap {
    pub(crate) sequence: u64,
    pub(crate) expected: u64,
    pub(crate) found: u64,
}

/// Refuses events whose revisions have gaps: the index would be built on sand.
fn check_revisions(
    index: &ActiveIndex,
    keys: &KeyHasher,
    batch: &StoredBatch,
    reader: &SegmentReader,
    offset: u64,
) -> Result<(), SealError> {
    let Some(gap) = revision_gap(index, keys, batch) else {
        return Ok(());
    };
    let RevisionGap {
        sequence,
        expected,
        found,
    } = gap;
    let corruption = crate::Corruption {
        path: reader.path().to_owned(),
        offset,
        first_sequence: sequence,
        last_sequence: Some(sequence),
        reason: crate::CorruptReason::Order {
            field: "revision",
            expected,
            found,
        },
    };
    Err(ReadError::from(Box::new(corruption)).into())
}

/// Finds the pending streams in an older index and takes those found off the list.
pub(crate) fn resolve(
    index: &mut ActiveIndex,
    pending: &mut Vec<StreamKey>,
    older: &SegmentIndex,
) -> Result<(), IndexError> {
    let mut found = Vec::new();
    // A row is 48 bytes and a lookup a page: walk the table if it is not much larger than the lookups.
    if older.stream_count() < pending.len() as u64 * 64 {
        let mut rows = older.streams();
        while let Some((stream, extent)) = rows.next_stream()? {
            if pending.binary_search(&stream).is_ok() {
                found.push((stream, extent.last_sequence));
            }
        }
    } else {
        for stream in pending.iter() {
            if let Some(extent) = older.stream(*stream)? {
                found.push((*stream, extent.last_sequence));
            }
        }
    }
    for (stream, last_sequence) in &found {
        index.set_previous(*stream, *last_sequence);
    }
    let is_found = |stream: &StreamKey| found.binary_search_by_key(stream, |(key, _)| *key).is_ok();
    pending.retain(|stream| !is_found(stream));
    Ok(())
}
