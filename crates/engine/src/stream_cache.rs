//! Heads of recently used streams: a fixed, set-associative table that never allocates after creation.

use truthdb_log::{StreamHead as Head, StreamKey};

const WAYS: usize = 4;

#[derive(Clone, Copy)]
struct Entry {
    key: u128,
    head: Head,
}

const EMPTY: Entry = Entry {
    key: 0,
    head: Head {
        next_revision: 0,
        last_sequence: 0,
    },
};

/// See the module's description. An entry's place in its set is its age: the first is the most recently used.
pub(crate) struct StreamCache {
    entries: Vec<Entry>,
    sets: usize,
}

impl StreamCache {
    /// A cache of about `entries` heads (at least one set of four).
    pub(crate) fn new(entries: usize) -> StreamCache {
        let sets = entries.div_ceil(WAYS).max(1);
        StreamCache {
            entries: vec![EMPTY; sets * WAYS],
            sets,
        }
    }

    fn set(&mut self, key: StreamKey) -> &mut [Entry] {
        let wide = (key.0 >> 64) * (self.sets as u128);
        let set =
            usize::try_from(wide >> 64).expect("a product's upper half is below its second factor");
        &mut self.entries[set * WAYS..(set + 1) * WAYS]
    }

    /// The head of a stream, if it is here.
    pub(crate) fn get(&mut self, key: StreamKey) -> Option<Head> {
        let set = self.set(key);
        let way = set
            .iter()
            .position(|e| e.key == key.0 && e.head.next_revision > 0)?;
        set[..=way].rotate_right(1);
        Some(set[0].head)
    }

    /// Remembers a head; the least recently used one of its set makes room.
    pub(crate) fn put(&mut self, key: StreamKey, head: Head) {
        let set = self.set(key);
        let way = set.iter().position(|e| e.key == key.0).unwrap_or(WAYS - 1);
        set[..=way].rotate_right(1);
        set[0] = Entry { key: key.0, head };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_head_makes_room() {
        let mut cache = StreamCache::new(4);
        let head = |n| Head {
            next_revision: n,
            last_sequence: n * 10,
        };
        for n in 1..=4 {
            cache.put(StreamKey(n.into()), head(n));
        }
        assert_eq!(cache.get(StreamKey(1)), Some(head(1)));
        cache.put(StreamKey(5), head(5));
        assert_eq!(cache.get(StreamKey(2)), None);
        assert_eq!(cache.get(StreamKey(1)), Some(head(1)));
        cache.put(StreamKey(1), head(9));
        assert_eq!(cache.get(StreamKey(1)), Some(head(9)));
    }
}
