//! Hashes that prove what the log holds: a tree over each batch's events, a tree over each
//! segment's batches, and a chain
//! over the segments. BLAKE3, with a first byte that tells the kinds apart, so that no hash of one
//! kind passes for another.
//!
//! ```text
//! event leaf = H(0x00 ‖ sequence u64 ‖ revision u64 ‖ canonical bytes)
//! batch leaf = H(0x01 ‖ first_sequence u64 ‖ event_count u32 ‖ timestamp u64 ‖ tree(event leaves))
//! node       = H(0x02 ‖ left ‖ right); a node without a right neighbour moves up unchanged
//! chain      = H(0x03 ‖ database id ‖ partition u32 ‖ segment u32 ‖ base u64 ‖ last u64 ‖ root ‖
//! previous chain)
//! ```
//! Numbers are little-endian. The tree of no leaves is 32 zero bytes, as is the chain before the
//! first segment.

use crate::batch::{StoredBatch, StoredEvent};
use crate::layout::Place;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// The tree of no leaves, and the chain before the first segment.
pub const ZERO_HASH: Hash = [0; 32];

const DOMAIN_EVENT: u8 = 0;
const DOMAIN_BATCH: u8 = 1;
const DOMAIN_NODE: u8 = 2;
const DOMAIN_CHAIN: u8 = 3;

/// Leaf of an event.
pub fn event_leaf(sequence: u64, revision: u64, canonical: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[DOMAIN_EVENT]);
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&revision.to_le_bytes());
    hasher.update(canonical);
    hasher.finalize().into()
}

/// Leaf of a batch, from the tree of its events.
pub fn batch_leaf(first_sequence: u64, event_count: u32, timestamp_ns: u64, events: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[DOMAIN_BATCH]);
    hasher.update(&first_sequence.to_le_bytes());
    hasher.update(&event_count.to_le_bytes());
    hasher.update(&timestamp_ns.to_le_bytes());
    hasher.update(events);
    hasher.finalize().into()
}

/// Node above two others.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[DOMAIN_NODE]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// Chain hash of a segment with the events `base..=last` (`last` is `base - 1` if there is none).
pub fn chain_hash(place: &Place, base: u64, last: u64, root: &Hash, previous: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[DOMAIN_CHAIN]);
    hasher.update(&place.database_id);
    hasher.update(&place.partition.to_le_bytes());
    hasher.update(&place.segment.to_le_bytes());
    hasher.update(&base.to_le_bytes());
    hasher.update(&last.to_le_bytes());
    hasher.update(root);
    hasher.update(previous);
    hasher.finalize().into()
}

/// Leaf of a batch with the events that it holds.
pub fn leaf_of_batch(batch: &StoredBatch) -> Hash {
    let mut tree = TreeBuilder::default();
    for event in batch.events() {
        tree.push(leaf_of_event(&event));
    }
    batch_leaf(
        batch.first_sequence,
        batch.event_count,
        batch.timestamp_ns,
        &tree.root(),
    )
}

/// Leaf of an event as it is stored.
pub fn leaf_of_event(event: &StoredEvent<'_>) -> Hash {
    event_leaf(event.sequence, event.revision, event.bytes)
}

/// Builds the root of a tree from its leaves, one after the other, with one hash of memory for each level.
#[derive(Debug, Clone, Default)]
pub struct TreeBuilder {
    /// Complete subtrees, the largest first: those of the one bits of `count`.
    subtrees: Vec<Hash>,
    count: u64,
}

impl TreeBuilder {
    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut subtree = leaf;
        for _ in 0..self.count.trailing_ones() {
            let left = self
                .subtrees
                .pop()
                .expect("a subtree for each one bit of the count");
            subtree = node(&left, &subtree);
        }
        self.subtrees.push(subtree);
        self.count += 1;
    }

    /// Number of leaves so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Root of the leaves so far; [`ZERO_HASH`] if there is none.
    pub fn root(&self) -> Hash {
        let mut smaller_first = self.subtrees.iter().rev();
        let Some(smallest) = smaller_first.next() else {
            return ZERO_HASH;
        };
        smaller_first.fold(*smallest, |right, left| node(left, &right))
    }
}

/// A hash beside the way from a leaf to the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathStep {
    /// The neighbour's hash.
    pub hash: Hash,
    /// Whether the neighbour is on the left.
    pub is_left: bool,
}

/// Extracts the path of one leaf while the leaves go by, with O(log n) memory.
#[derive(Debug, Clone)]
pub struct PathBuilder {
    wanted: u64,
    /// Complete subtrees, the largest first, each with whether the wanted leaf lies in it.
    subtrees: Vec<(Hash, bool)>,
    count: u64,
    path: Vec<PathStep>,
}

impl PathBuilder {
    /// For the path of the leaf number `wanted`, from 0.
    pub fn new(wanted: u64) -> PathBuilder {
        PathBuilder {
            wanted,
            subtrees: Vec::new(),
            count: 0,
            path: Vec::new(),
        }
    }

    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut right = (leaf, self.count == self.wanted);
        for _ in 0..self.count.trailing_ones() {
            let left = self
                .subtrees
                .pop()
                .expect("a subtree for each one bit of the count");
            right = join(left, right, &mut self.path);
        }
        self.subtrees.push(right);
        self.count += 1;
    }

    /// The path from the leaf up, and the root. `None` if there were not enough leaves.
    pub fn finish(mut self) -> Option<(Vec<PathStep>, Hash)> {
        let mut right = self.subtrees.pop()?;
        while let Some(left) = self.subtrees.pop() {
            right = join(left, right, &mut self.path);
        }
        right.1.then_some((self.path, right.0))
    }
}

/// Joins two neighbours; if the wanted leaf lies in one of them, the other is a step of its path.
fn join(left: (Hash, bool), right: (Hash, bool), path: &mut Vec<PathStep>) -> (Hash, bool) {
    if left.1 {
        path.push(PathStep {
            hash: right.0,
            is_left: false,
        });
    } else if right.1 {
        path.push(PathStep {
            hash: left.0,
            is_left: true,
        });
    }
    (node(&left.0, &right.0), left.1 || right.1)
}

/// The root that a path leads to from a leaf.
pub fn root_of_path(leaf: Hash, path: &[PathStep]) -> Hash {
    path.iter().fold(leaf, |hash, step| match step.is_left {
        true => node(&step.hash, &hash),
        false => node(&hash, &step.hash),
    })
}

/// Number of steps of the path of leaf `index` in a tree of `count` leaves, and which of them have
/// the neighbour on the left,
/// from the leaf up. A path of another shape does not prove that the leaf has this index.
pub fn path_shape(mut index: u64, mut count: u64) -> Vec<bool> {
    let mut shape = Vec::new();
    while count > 1 {
        let is_right = index % 2 == 1;
        if is_right || index + 1 < count {
            shape.push(is_right);
        }
        index /= 2;
        count = count.div_ceil(2);
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, level by level.
    fn plain_root(leaves: &[Hash]) -> Hash {
        let mut level = leaves.to_vec();
        if level.is_empty() {
            return ZERO_HASH;
        }
        while level.len() > 1 {
            let pairs = level.chunks(2);
            level = pairs
                .map(|pair| {
                    if let [left, right] = pair {
                        node(left, right)
                    } else {
                        pair[0]
                    }
                })
                .collect();
        }
        level[0]
    }

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count)
            .map(|i| event_leaf(i + 1, i, &i.to_le_bytes()))
            .collect()
    }

    #[test]
    fn streamed_roots_are_those_of_the_definition() {
        for count in 0..70 {
            let leaves = leaves(count);
            let mut tree = TreeBuilder::default();
            leaves.iter().for_each(|leaf| tree.push(*leaf));
            assert_eq!(tree.root(), plain_root(&leaves), "{count} leaves");
            assert_eq!(tree.count(), count);
            assert!(tree.subtrees.len() <= 7);
        }
    }

    #[test]
    fn every_path_leads_to_the_root_and_has_the_shape_of_its_index() {
        for count in 1..40 {
            let leaves = leaves(count);
            for wanted in 0..count {
                let mut builder = PathBuilder::new(wanted);
                leaves.iter().for_each(|leaf| builder.push(*leaf));
                let (path, root) = builder.finish().unwrap();
                assert_eq!(root, plain_root(&leaves));
                let leaf = leaves[usize::try_from(wanted).unwrap()];
                assert_eq!(root_of_path(leaf, &path), root, "leaf {wanted} of {count}");
                let shape: Vec<bool> = path.iter().map(|step| step.is_left).collect();
                assert_eq!(shape, path_shape(wanted, count), "leaf {wanted} of {count}");
            }
            let mut builder = PathBuilder::new(count);
            leaves.iter().for_each(|leaf| builder.push(*leaf));
            assert_eq!(builder.finish(), None, "there is no such leaf");
        }
    }

    #[test]
    fn a_path_of_another_leaf_or_with_a_changed_step_does_not_lead_to_the_root() {
        let leaves = leaves(13);
        let mut builder = PathBuilder::new(5);
        leaves.iter().for_each(|leaf| builder.push(*leaf));
        let (path, root) = builder.finish().unwrap();
        assert_ne!(root_of_path(leaves[4], &path), root);
        for step in 0..path.len() {
            let mut changed = path.clone();
            changed[step].hash[0] ^= 1;
            assert_ne!(root_of_path(leaves[5], &changed), root);
            let mut changed = path.clone();
            changed[step].is_left = !changed[step].is_left;
            assert_ne!(root_of_path(leaves[5], &changed), root);
        }
    }

    #[test]
    fn kinds_of_hashes_are_told_apart_by_their_first_byte() {
        let place = Place {
            database_id: [1; 16],
            partition: 2,
            segment: 3,
        };
        let direct = |bytes: &[u8]| -> Hash { blake3::hash(bytes).into() };
        let mut event = vec![0];
        event.extend_from_slice(&7u64.to_le_bytes());
        event.extend_from_slice(&8u64.to_le_bytes());
        event.extend_from_slice(b"canonical");
        assert_eq!(event_leaf(7, 8, b"canonical"), direct(&event));
        let mut batch = vec![1];
        batch.extend_from_slice(&7u64.to_le_bytes());
        batch.extend_from_slice(&2u32.to_le_bytes());
        batch.extend_from_slice(&9u64.to_le_bytes());
        batch.extend_from_slice(&[5; 32]);
        assert_eq!(batch_leaf(7, 2, 9, &[5; 32]), direct(&batch));
        assert_eq!(
            node(&[1; 32], &[4; 32]),
            direct(&[&[2][..], &[1; 32], &[4; 32]].concat())
        );
        let mut chain = vec![3];
        chain.extend_from_slice(&[1; 16]);
        chain.extend_from_slice(&2u32.to_le_bytes());
        chain.extend_from_slice(&3u32.to_le_bytes());
        chain.extend_from_slice(&10u64.to_le_bytes());
        chain.extend_from_slice(&20u64.to_le_bytes());
        chain.extend_from_slice(&[6; 32]);
        chain.extend_from_slice(&[7; 32]);
        assert_eq!(
            chain_hash(&place, 10, 20, &[6; 32], &[7; 32]),
            direct(&chain)
        );
    }
}
