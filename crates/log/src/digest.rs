//! What a segment's footer says of its events, computed from them: at sealing, after packing, and
//! by `verify`.

use crate::active_index::{SPARSE_INTERVAL_BYTES, SparseEntry};
use crate::layout::Place;
use crate::merkle::{Hash, TreeBuilder, chain_hash, leaf_of_batch};
use crate::scan::ScannedBatch;
use crate::segment::{Footer, SegmentKind};

/// Counts, times, tree and sparse index of the batches of a segment.
#[derive(Debug)]
pub(crate) struct Digest {
    kind: SegmentKind,
    base_sequence: u64,
    tree: TreeBuilder,
    pub(crate) event_count: u64,
    pub(crate) event_bytes: u64,
    pub(crate) first_timestamp_ns: u64,
    pub(crate) last_timestamp_ns: u64,
    pub(crate) sparse: Vec<SparseEntry>,
}

impl Digest {
    /// Of a segment without events so far.
    pub(crate) fn new(kind: SegmentKind, base_sequence: u64) -> Digest {
        Digest {
            kind,
            base_sequence,
            tree: TreeBuilder::default(),
            event_count: 0,
            event_bytes: 0,
            first_timestamp_ns: 0,
            last_timestamp_ns: 0,
            sparse: Vec::new(),
        }
    }

    /// Adds the next batch.
    pub(crate) fn add(&mut self, scanned: &ScannedBatch) {
        let ScannedBatch { offset, batch } = scanned;
        if self.event_count == 0 {
            self.first_timestamp_ns = batch.timestamp_ns;
        }
        self.last_timestamp_ns = batch.timestamp_ns;
        self.event_count += u64::from(batch.event_count);
        self.event_bytes += batch.body_bytes() as u64;
        self.tree.push(leaf_of_batch(batch));
        let is_due = self.sparse.last().is_none_or(|last| match self.kind {
            SegmentKind::Active => is_sparse_due(last.offset, *offset),
            SegmentKind::Packed => *offset > last.offset,
        });
        if is_due {
            let (sequence, timestamp_ns) = (batch.first_sequence, batch.timestamp_ns);
            self.sparse.push(SparseEntry {
                sequence,
                offset: *offset,
                timestamp_ns,
            });
        }
    }

    /// Number of batches.
    pub(crate) fn batch_count(&self) -> u64 {
        self.tree.count()
    }

    /// Sequence of the last event, `base - 1` if there is none.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.base_sequence + self.event_count - 1
    }

    /// Root over the batches.
    pub(crate) fn root(&self) -> Hash {
        self.tree.root()
    }

    /// Chain hash of the segment.
    pub(crate) fn chain(&self, place: &Place, previous: &Hash) -> Hash {
        chain_hash(
            place,
            self.base_sequence,
            self.last_sequence(),
            &self.root(),
            previous,
        )
    }

    /// The first field in which a footer says something else.
    pub(crate) fn difference(
        &self,
        footer: &Footer,
        sparse: &[SparseEntry],
    ) -> Option<&'static str> {
        [
            ("base sequence", footer.base_sequence != self.base_sequence),
            (
                "last sequence",
                footer.last_sequence != self.last_sequence(),
            ),
            ("batch count", footer.batch_count != self.batch_count()),
            ("event bytes", footer.event_bytes != self.event_bytes),
            (
                "first timestamp",
                footer.first_timestamp_ns != self.first_timestamp_ns,
            ),
            (
                "last timestamp",
                footer.last_timestamp_ns != self.last_timestamp_ns,
            ),
            ("root", footer.root != self.root()),
            (
                "chain hash",
                footer.chain != self.chain(&footer.place, &footer.previous_chain),
            ),
            ("sparse index", sparse != self.sparse),
        ]
        .into_iter()
        .find_map(|(field, differs)| differs.then_some(field))
    }
}

/// Whether a batch is the first at or after the next 64 KiB of data.
pub(crate) fn is_sparse_due(last_offset: u64, offset: u64) -> bool {
    offset / SPARSE_INTERVAL_BYTES > last_offset / SPARSE_INTERVAL_BYTES
}
