//! Collecting garbage: removing chunks that no snapshot refers to, a file at a time.
//!
//! First every published manifest is read that was not read before; if one cannot be, nothing is
//! removed. Then the directory is listed, and each chunk that neither a published snapshot refers to
//! (also one that was published meanwhile) nor the one being written needs is removed.

use std::collections::BTreeSet;

use crate::blocks;
use crate::chunk::ChunkHash;
use crate::store::{SnapshotError, SnapshotStore, io_error};

/// A collection under way.
#[derive(Debug)]
pub(crate) struct Collector {
    /// Chunks that published snapshots refer to.
    live: BTreeSet<ChunkHash>,
    /// Files to look at, in this order from the end.
    candidates: Vec<ChunkHash>,
    removed: u64,
}

impl Collector {
    /// Keeps chunks of a snapshot that was published meanwhile.
    pub(crate) fn keep(&mut self, chunks: &BTreeSet<ChunkHash>) {
        self.live.extend(chunks);
    }
}

/// What a step of a collection has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectStep {
    /// There is more to do.
    Working,
    /// All garbage is gone.
    Done {
        /// Chunks that the collection removed.
        removed: u64,
    },
}

impl SnapshotStore {
    /// Does the next part of a collection, beginning one if none is under way: reads one manifest, or
    /// lists the chunks, or removes one.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] if a manifest cannot be read: set it aside, then collect.
    /// [`SnapshotError::Io`] if a file cannot be removed or the directory not be listed. The
    /// collection is given up in both cases; what is referred to is still there.
    pub fn collect_step(&mut self) -> Result<CollectStep, SnapshotError> {
        let Some(mut collector) = self.collector.take() else {
            self.begin_collection()?;
            return Ok(CollectStep::Working);
        };
        while let Some(hash) = collector.candidates.pop() {
            let is_needed = self
                .writer
                .as_ref()
                .is_some_and(|writer| writer.needs(hash));
            if is_needed || collector.live.contains(&hash) {
                continue;
            }
            let path = self.shared.chunk_path(hash);
            blocks::remove(&*self.shared.storage, &path).map_err(io_error(&path, "removing"))?;
            collector.removed += 1;
            self.collector = Some(collector);
            return Ok(CollectStep::Working);
        }
        Ok(CollectStep::Done {
            removed: collector.removed,
        })
    }

    /// Reads one manifest that was not read yet; when all were, begins to remove.
    fn begin_collection(&mut self) -> Result<(), SnapshotError> {
        let (unread, live) = {
            let published = self.shared.published();
            let unread = published.iter().find(|(_, p)| p.contents.is_none());
            let unread = unread.map(|(sequence, _)| *sequence);
            let contents = published.values().filter_map(|p| p.contents.as_ref());
            let live: BTreeSet<ChunkHash> = match unread {
                Some(_) => BTreeSet::new(),
                None => contents.flat_map(|c| &c.chunks).copied().collect(),
            };
            (unread, live)
        };
        if let Some(sequence) = unread {
            self.shared.read_manifest(sequence)?;
            return Ok(());
        }
        let candidates = self.listed_chunks()?.into_iter().collect();
        self.collector = Some(Collector {
            live,
            candidates,
            removed: 0,
        });
        Ok(())
    }
}
