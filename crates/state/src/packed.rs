//! A sorted run of rows in two allocations: what leaves and inner nodes of the tree are made of.
//!
//! Model: a slot for each row, sorted by key, and a heap that the slots point into. An insert moves
//! slots of 16 bytes, never rows; a value of the same length is replaced in place; bytes that no slot
//! points at are counted as dead and squeezed out when they are more than half. All keys of a run
//! begin with the same `skip` bytes. The slot holds the eight bytes after them, so that a search
//! seldom looks at the heap, whatever prefix the keys share.
//!
//! It knows nothing of nodes, sharing or versions.

use std::cmp::Ordering;

use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX, small};

/// Bits of a slot's lengths that hold the length of the value; the others hold that of the key.
const VALUE_BITS: u32 = 21;
/// Dead bytes below which squeezing does not pay.
const DEAD_BYTES_MIN: usize = 512;
/// Heads that a search looks at together.
const LANES: usize = 7;
/// Bytes of a prefix that are kept in the node itself.
const PREFIX_BYTES: usize = 24;
/// Most spare bytes that a growing heap asks for at once.
const SPARE_BYTES_MAX: usize = 1024;

// The overlay puts a tag before a value.
const _: () = assert!(VALUE_BYTES_MAX + 1 < 1 << VALUE_BITS);
const _: () = assert!(KEY_BYTES_MAX < 1 << (32 - VALUE_BITS));

/// Bytes that a row takes besides its key and value.
pub(crate) const SLOT_BYTES: usize = size_of::<Slot>();

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The eight bytes of the key after the common prefix as a big-endian number, zeros beyond its
    /// end.
    head: u64,
    /// Where the key begins in the heap; the value follows it.
    offset: u32,
    /// Length of the key above [`VALUE_BITS`], length of the value below.
    lengths: u32,
}

impl Slot {
    fn key_bytes(self) -> usize {
        (self.lengths >> VALUE_BITS) as usize
    }

    fn value_bytes(self) -> usize {
        (self.lengths & ((1 << VALUE_BITS) - 1)) as usize
    }

    fn start(self) -> usize {
        self.offset as usize
    }

    fn value_start(self) -> usize {
        self.start() + self.key_bytes()
    }

    fn end(self) -> usize {
        self.value_start() + self.value_bytes()
    }

    fn key(self, heap: &[u8]) -> &[u8] {
        &heap[self.start()..self.value_start()]
    }
}

fn lengths(key: usize, value: usize) -> u32 {
    small(key) << VALUE_BITS | small(value)
}

/// The first eight bytes as a big-endian number, zeros beyond the end: in the order of the bytes.
pub(crate) fn head(rest: &[u8]) -> u64 {
    let first = rest.first_chunk::<8>().copied().unwrap_or_else(|| {
        let mut bytes = [0; 8];
        bytes[..rest.len()].copy_from_slice(rest);
        bytes
    });
    u64::from_le_bytes(first).swap_bytes()
}

/// What is kept of a prefix in the node itself: bytes beyond a key are never compared, since no prefix is longer.
fn prefix_of(key: &[u8]) -> [u8; PREFIX_BYTES] {
    let mut prefix = [0; PREFIX_BYTES];
    let bytes = key.len().min(PREFIX_BYTES);
    prefix[..bytes].copy_from_slice(&key[..bytes]);
    prefix
}

/// Length of the longest prefix of both.
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Rows in ascending order of their keys.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    slots: Vec<Slot>,
    heap: Vec<u8>,
    /// Bytes that all keys begin with, at least.
    skip: usize,
    /// The first of them.
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the heap that no slot points at.
    dead: usize,
}

impl Clone for Packed {
    /// A copy with room for one more row, squeezed if that pays.
    fn clone(&self) -> Packed {
        if self.dead > self.heap.len() / 4 {
            return self.copy(0, self.len());
        }
        let mut heap = Vec::with_capacity(self.heap.len() + spare(self.heap.len()));
        heap.extend_from_slice(&self.heap);
        let mut slots = Vec::with_capacity(self.slots.len() + 1);
        slots.extend_from_slice(&self.slots);
        Packed {
            slots,
            heap,
            skip: self.skip,
            prefix: self.prefix,
            dead: self.dead,
        }
    }
}

fn spare(bytes: usize) -> usize {
    (bytes / 8).min(SPARE_BYTES_MAX)
}

impl Packed {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn key(&self, at: usize) -> &[u8] {
        self.slots[at].key(&self.heap)
    }

    pub(crate) fn value(&self, at: usize) -> &[u8] {
        let slot = self.slots[at];
        &self.heap[slot.value_start()..slot.end()]
    }

    pub(crate) fn row(&self, at: usize) -> (&[u8], &[u8]) {
        let slot = self.slots[at];
        self.heap[slot.start()..slot.end()].split_at(slot.key_bytes())
    }

    /// Bytes in use: what decides when a node is split or merged.
    pub(crate) fn used(&self) -> usize {
        self.heap.len() - self.dead + self.slots.len() * SLOT_BYTES
    }

    /// Bytes allocated.
    pub(crate) fn memory(&self) -> usize {
        self.heap.capacity() + self.slots.capacity() * SLOT_BYTES
    }

    /// Where the key is, or where it would be inserted.
    pub(crate) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let Some(first) = self.slots.first() else {
            return Err(0);
        };
        let skip = self.skip;
        if skip > 0 {
            // Most prefixes lie in the node itself, which spares two lines of the cache.
            let prefix = match self.prefix.get(..skip) {
                Some(prefix) => prefix,
                None => &first.key(&self.heap)[..skip],
            };
            match key[..key.len().min(skip)].cmp(prefix) {
                Ordering::Less => return Err(0),
                Ordering::Greater => return Err(self.len()),
                Ordering::Equal => {}
            }
        }
        let rest = &key[skip..];
        let wanted = head(rest);
        let at = self.first_head(wanted);
        let compare = |slot: &Slot| slot.key(&self.heap)[skip..].cmp(rest);
        match self.slots.get(at) {
            Some(slot) if slot.head == wanted => match compare(slot) {
                Ordering::Equal => return Ok(at),
                Ordering::Greater => return Err(at),
                Ordering::Less => {}
            },
            _ => return Err(at),
        }
        // Several keys with one head: they differ further on.
        let after = at + 1;
        let same = self.slots[after..].partition_point(|slot| slot.head == wanted);
        let found = self.slots[after..after + same].binary_search_by(compare);
        found.map(|at| after + at).map_err(|at| after + at)
    }

    /// The first slot whose head is not below `wanted`.
    ///
    /// Looks at several heads at once, so that the processor waits for all of them together: where a table is
    /// larger than the caches, that is most of what a search takes.
    fn first_head(&self, wanted: u64) -> usize {
        let (mut low, mut high) = (0, self.slots.len());
        while high - low > LANES {
            // At least one, since there are more than lanes.
            let step = (high - low) / (LANES + 1);
            let lanes: [u64; LANES] =
                std::array::from_fn(|lane| self.slots[low + (lane + 1) * step - 1].head);
            let below = lanes.iter().filter(|head| **head < wanted).count();
            if below < LANES {
                high = low + (below + 1) * step - 1;
            }
            low += below * step;
        }
        let rest = &self.slots[low..high];
        low + rest.iter().filter(|slot| slot.head < wanted).count()
    }

    /// Index of the first row whose key is not below `key`.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|at| at)
    }

    /// Inserts a row at the place that [`Packed::search`] gave.
    pub(crate) fn insert(&mut self, at: usize, key: &[u8], value: &[u8]) {
        match self.slots.first() {
            None => {
                self.heap.clear();
                (self.skip, self.dead) = (key.len(), 0);
                self.prefix = prefix_of(key);
            }
            Some(first) => {
                let prefix = &first.key(&self.heap)[..self.skip];
                if !key.starts_with(prefix) {
                    let skip = common_prefix(prefix, key);
                    self.set_skip(skip);
                }
            }
        }
        let offset = self.push_bytes(key, value);
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(1 + self.slots.len() / 4);
        }
        let slot = Slot {
            head: head(&key[self.skip..]),
            offset,
            lengths: lengths(key.len(), value.len()),
        };
        self.slots.insert(at, slot);
    }

    /// Appends a row whose key follows all others.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        debug_assert!(
            self.slots
                .last()
                .is_none_or(|last| last.key(&self.heap) < key)
        );
        self.insert(self.len(), key, value);
    }

    /// Replaces the value of a row.
    pub(crate) fn replace(&mut self, at: usize, value: &[u8]) {
        let slot = self.slots[at];
        if value.len() <= slot.value_bytes() {
            let start = slot.value_start();
            self.heap[start..start + value.len()].copy_from_slice(value);
            self.dead += slot.value_bytes() - value.len();
        } else {
            let mut key = [0; KEY_BYTES_MAX];
            let key = &mut key[..slot.key_bytes()];
            key.copy_from_slice(slot.key(&self.heap));
            if slot.end() == self.heap.len() {
                self.heap.truncate(slot.start());
            } else {
                self.dead += slot.end() - slot.start();
            }
            self.slots[at].offset = self.push_bytes(key, value);
        }
        self.slots[at].lengths = lengths(slot.key_bytes(), value.len());
        self.squeeze_if_due();
    }

    /// Removes a row.
    pub(crate) fn remove(&mut self, at: usize) {
        let slot = self.slots.remove(at);
        self.dead += slot.end() - slot.start();
        self.squeeze_if_due();
    }

    /// Keeps the first `at` rows and gives the others; both without dead bytes, and with the prefix
    /// that their keys share.
    pub(crate) fn split_off(&mut self, at: usize) -> Packed {
        let right = self.copy(at, self.len());
        *self = self.copy(0, at);
        right
    }

    /// Where to split so that both halves have about the same bytes; at least one row on each side.
    ///
    /// Must not be called with fewer than two rows. A row that was just appended to the end (or put
    /// before all others) goes alone: keys that come in order fill their leaves.
    pub(crate) fn split_at(&self, inserted: usize) -> usize {
        let last = self.len() - 1;
        if inserted == last {
            return last;
        }
        if inserted == 0 {
            return 1;
        }
        let half = self.used() / 2;
        let mut left = 0;
        for (at, slot) in self.slots.iter().enumerate() {
            left += slot.end() - slot.start() + SLOT_BYTES;
            if left >= half {
                return (at + 1).clamp(1, last);
            }
        }
        last
    }

    fn copy(&self, from: usize, to: usize) -> Packed {
        let slots = &self.slots[from..to];
        let bytes: usize = slots.iter().map(|slot| slot.end() - slot.start()).sum();
        let skip = match slots {
            [] => 0,
            [only] => only.key_bytes(),
            [first, .., last] => common_prefix(first.key(&self.heap), last.key(&self.heap)),
        };
        let mut copy = Packed {
            slots: Vec::with_capacity(slots.len() + 1),
            heap: Vec::with_capacity(bytes + spare(bytes)),
            skip,
            prefix: slots
                .first()
                .map(|first| prefix_of(first.key(&self.heap)))
                .unwrap_or_default(),
            dead: 0,
        };
        for slot in slots {
            let offset = small(copy.heap.len());
            copy.heap
                .extend_from_slice(&self.heap[slot.start()..slot.end()]);
            copy.slots.push(Slot {
                head: head(&slot.key(&self.heap)[skip..]),
                offset,
                lengths: slot.lengths,
            });
        }
        copy
    }

    fn push_bytes(&mut self, key: &[u8], value: &[u8]) -> u32 {
        let bytes = key.len() + value.len();
        if self.heap.capacity() - self.heap.len() < bytes {
            self.heap.reserve_exact(bytes.max(spare(self.heap.len())));
        }
        let offset = small(self.heap.len());
        self.heap.extend_from_slice(key);
        self.heap.extend_from_slice(value);
        offset
    }

    fn set_skip(&mut self, skip: usize) {
        self.skip = skip;
        for slot in &mut self.slots {
            slot.head = head(&slot.key(&self.heap)[skip..]);
        }
    }

    fn squeeze_if_due(&mut self) {
        if self.dead > DEAD_BYTES_MIN && self.dead > self.heap.len() / 2 {
            *self = self.copy(0, self.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn rows(packed: &Packed) -> Vec<(Vec<u8>, Vec<u8>)> {
        let row = |at| {
            let (key, value) = packed.row(at);
            (key.to_vec(), value.to_vec())
        };
        (0..packed.len()).map(row).collect()
    }

    fn set(packed: &mut Packed, key: &[u8], value: &[u8]) {
        match packed.search(key) {
            Ok(at) => packed.replace(at, value),
            Err(at) => packed.insert(at, key, value),
        }
    }

    #[test]
    fn keys_that_differ_only_by_trailing_zeros_are_different() {
        let mut packed = Packed::default();
        let keys: [&[u8]; 5] = [b"a\0\0", b"a", b"a\0", b"", b"a\0\0\0\0\0\0\0\0\0"];
        for key in keys {
            set(&mut packed, key, key);
        }
        let mut sorted = keys;
        sorted.sort_unstable();
        let found: Vec<_> = (0..packed.len()).map(|at| packed.key(at)).collect();
        assert_eq!(found, sorted);
        for key in keys {
            assert_eq!(packed.search(key).map(|at| packed.value(at)), Ok(key));
        }
        assert_eq!(packed.search(b"a\0\0\0"), Err(4));
    }

    #[test]
    fn replacing_over_and_over_does_not_grow_the_heap() {
        let mut packed = Packed::default();
        set(&mut packed, b"first", &[1; 100]);
        set(&mut packed, b"second", &[2; 100]);
        for round in 0..1000 {
            set(&mut packed, b"first", &vec![3; 90 + round % 40]);
            set(&mut packed, b"second", &vec![4; 90 + round % 37]);
        }
        assert!(packed.memory() < 4096, "{}", packed.memory());
        // Keys, and the values of the last round.
        let (first, second) = (5 + 129, 6 + 90);
        assert_eq!(packed.used() - 2 * SLOT_BYTES, first + second);
    }

    #[test]
    fn the_longest_key_and_value_fit() {
        let mut packed = Packed::default();
        let (key, value) = (vec![1; KEY_BYTES_MAX], vec![2; VALUE_BYTES_MAX]);
        set(&mut packed, &key, b"");
        set(&mut packed, &key, &value);
        assert_eq!(packed.row(0), (&key[..], &value[..]));
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            ops in prop::collection::vec(
                (prop::collection::vec(0_u8..3, 0..12), prop::option::of(0_usize..60)), 1..200),
            cut in 0_usize..200,
        ) {
            let mut packed = Packed::default();
            let mut model = BTreeMap::new();
            for (key, value) in ops {
                if let Some(bytes) = value {
                    let value = vec![7; bytes];
                    set(&mut packed, &key, &value);
                    model.insert(key, value);
                } else {
                    let found = packed.search(&key);
                    prop_assert_eq!(found.is_ok(), model.remove(&key).is_some());
                    found.into_iter().for_each(|at| packed.remove(at));
                }
            }
            let expected: Vec<_> = model.into_iter().collect();
            prop_assert_eq!(rows(&packed), &expected[..]);
            prop_assert_eq!(rows(&packed.clone()), &expected[..]);
            let cut = cut.min(packed.len());
            let right = packed.split_off(cut);
            prop_assert_eq!(rows(&packed), &expected[..cut]);
            prop_assert_eq!(rows(&right), &expected[cut..]);
        }
    }
}
