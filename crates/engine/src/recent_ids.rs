//! Where a writer's window of event ids comes from at a start, and where it goes at a clean stop.
//!
//! The window reaches back a million events, which may lie in a thousand segments. So a clean stop
//! stores it in one file, and the start after it reads that. After a crash, or without the file, it
//! is filled from the indexes of the newest segments.

use truthdb_io::World;
use truthdb_log::canary::{Canary, planted};
use truthdb_log::{IdHash, IndexError, RecentIds, RecentIdsBinding, write_recent_ids};

use crate::error::ReadError;
use crate::id_window::IdWindow;
use crate::read::index_error;
use crate::shared::{PartitionShared, SegmentBody};

/// The window of a partition whose log ends as `end` says. `events`: how many it remembers.
///
/// # Errors
///
/// An index that cannot be read, nor made again.
pub(crate) fn load(
    world: &World,
    shared: &PartitionShared,
    end: &RecentIdsBinding,
    events: usize,
) -> Result<IdWindow, ReadError> {
    let view = shared.view();
    let from = end
        .next_sequence
        .saturating_sub(events as u64)
        .max(view.first_sequence);
    if planted(Canary::ForgetIds) || from >= end.next_sequence {
        return Ok(IdWindow::new(events, from));
    }
    match from_file(world, end, events, from) {
        Ok(Some(window)) => return Ok(window),
        Ok(None) => {}
        // After a crash the file is that of an earlier stop, or there is none: as it should be.
        Err(IndexError::Foreign { .. }) => {}
        Err(error) if error.is_rebuildable() && !matches!(error, IndexError::Corrupt { .. }) => {}
        Err(error) => {
            tracing::warn!(partition = shared.partition, error = %error,
                "the stored event ids cannot be used; they are read from the indexes instead");
        }
    }
    from_indexes(shared, events, from)
}

/// `None`: the file does not reach back far enough.
fn from_file(
    world: &World,
    end: &RecentIdsBinding,
    events: usize,
    from: u64,
) -> Result<Option<IdWindow>, IndexError> {
    let file = RecentIds::open(&world.storage, end)?;
    if file.first_sequence() > from {
        return Ok(None);
    }
    let mut window = IdWindow::new(events, from);
    window.begin_at(end.next_sequence - 1);
    file.visit(|sequence, id| {
        if sequence >= from {
            window.restore(sequence, id.0);
        }
    })?;
    Ok(Some(window))
}

fn from_indexes(shared: &PartitionShared, events: usize, from: u64) -> Result<IdWindow, ReadError> {
    let view = shared.view();
    let mut window = IdWindow::new(events, from);
    let first = view.locate(from).unwrap_or(0);
    for segment in &view.segments[first..] {
        match segment.body() {
            SegmentBody::Sealed(sealed) => {
                let visited = sealed
                    .index()?
                    .visit_ids(from, |sequence, id| window.push(sequence, id.0));
                visited.map_err(|source| index_error(&segment.path, source))?;
            }
            SegmentBody::Unsealed(unsealed) => {
                let index = unsealed.index.read();
                for (sequence, id) in (index.base_sequence()..).zip(index.ids()) {
                    if sequence >= from {
                        window.push(sequence, id.0);
                    }
                }
            }
        }
    }
    Ok(window)
}

/// Stores the window at a clean stop. A failure costs the next start some time and nothing else.
pub(crate) fn store(world: &World, end: &RecentIdsBinding, window: &IdWindow) {
    let mut ids: Vec<(IdHash, u64)> = window
        .entries()
        .map(|(hash, sequence)| (IdHash(hash), sequence))
        .collect();
    if let Err(error) = write_recent_ids(&world.storage, end, window.first_sequence(), &mut ids) {
        tracing::warn!(partition = end.partition, error = %crate::error::chain(&error),
            "the event ids could not be stored; the next start reads them from the indexes");
    }
}
