//! The index of one unsealed segment, in memory: filled by the writer, asked by readers.
//!
//! Memory: 24 bytes an event, 16 a facet of an event (its type and each tag), 53 to 64 a stream, 21
//! to 32 a distinct
//! facet, 24 for every 64 KiB of data. It is bounded by the segment's size, because every event
//! takes at least
//! 50 bytes of it and every tag at least 2. [`ActiveIndex::reset`] keeps the capacity, so that in the
//! steady state nothing is allocated. All queries take O(log n + results) steps.
//!
//! It knows nothing of what is committed: the writer pushes an event when it encodes it, and each
//! query takes the
//! last sequence that its caller may see. It does no I/O and takes no lock.

use hashbrown::HashTable;

use crate::chain::{Chains, NONE};
use crate::keys::{FacetKey, IdHash, StreamKey};

/// Data bytes between two sparse entries.
pub const SPARSE_INTERVAL_BYTES: u64 = 64 * 1024;

/// Where a batch begins: lets a reader start near a sequence or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseEntry {
    /// First sequence of the batch.
    pub sequence: u64,
    /// Offset of the batch (of its block, if packed) in the segment file, in bytes.
    pub offset: u64,
    /// Timestamp of the batch in nanoseconds UTC.
    pub timestamp_ns: u64,
}

/// What the index learns of an event.
#[derive(Debug, Clone, Copy)]
pub struct EventKeys<'a> {
    /// Stream of the event.
    pub stream: StreamKey,
    /// Revision of the event in its stream.
    pub revision: u64,
    /// Sequence of the stream's previous event, 0 if there is none. Looked at only for the stream's
    /// first event here.
    pub previous_sequence: u64,
    /// Hash of the event's id.
    pub id: IdHash,
    /// Its type and its tags.
    pub facets: &'a [FacetKey],
}

/// The end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHead {
    /// Revision that the stream's next event gets.
    pub next_revision: u64,
    /// Sequence of the stream's last event.
    pub last_sequence: u64,
}

/// The part of a stream that lies in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamExtent {
    /// Revision of its first event in the segment.
    pub first_revision: u64,
    /// One more than the revision of its last event in the segment.
    pub next_revision: u64,
    /// Sequence of its last event before the segment, 0 if there is none.
    pub previous_sequence: u64,
    /// Sequence of its first event in the segment.
    pub first_sequence: u64,
    /// Sequence of its last event in the segment.
    pub last_sequence: u64,
}

impl StreamExtent {
    /// The end of the stream as of this segment.
    pub fn head(&self) -> StreamHead {
        StreamHead {
            next_revision: self.next_revision,
            last_sequence: self.last_sequence,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct StreamSlot {
    key: StreamKey,
    first_revision: u64,
    previous_sequence: u64,
    first_event: u32,
    last_node: u32,
}

#[derive(Debug, Clone, Copy)]
struct FacetSlot {
    key: FacetKey,
    last_node: u32,
}

/// Index of an unsealed segment. See the module's documentation.
#[derive(Debug)]
pub struct ActiveIndex {
    base_sequence: u64,
    ids: Vec<u64>,
    stream_table: HashTable<u32>,
    stream_slots: Vec<StreamSlot>,
    stream_chains: Chains,
    facet_table: HashTable<u32>,
    facet_slots: Vec<FacetSlot>,
    facet_chains: Chains,
    sparse: Vec<SparseEntry>,
}

impl ActiveIndex {
    /// An empty index of a segment whose first event has `base_sequence`.
    pub fn new(base_sequence: u64) -> ActiveIndex {
        assert!(base_sequence > 0, "sequences start at 1");
        ActiveIndex {
            base_sequence,
            ids: Vec::new(),
            stream_table: HashTable::new(),
            stream_slots: Vec::new(),
            stream_chains: Chains::default(),
            facet_table: HashTable::new(),
            facet_slots: Vec::new(),
            facet_chains: Chains::default(),
            sparse: Vec::new(),
        }
    }

    /// Makes room for so many events, distinct streams and facets of events, so that the first
    /// segment does not pay for growth.
    pub fn reserve(&mut self, events: usize, streams: usize, facets: usize) {
        self.ids.reserve(events.saturating_sub(self.ids.len()));
        self.stream_chains.reserve(events);
        self.facet_chains.reserve(facets);
        self.stream_slots
            .reserve(streams.saturating_sub(self.stream_slots.len()));
        let slots = &self.stream_slots;
        self.stream_table
            .reserve(streams.saturating_sub(slots.len()), |slot| {
                slots[index(*slot)].key.low()
            });
    }

    /// Empties it for the next segment and keeps its memory.
    pub fn reset(&mut self, base_sequence: u64) {
        assert!(base_sequence > 0, "sequences start at 1");
        self.base_sequence = base_sequence;
        self.ids.clear();
        self.stream_table.clear();
        self.stream_slots.clear();
        self.stream_chains.clear();
        self.facet_table.clear();
        self.facet_slots.clear();
        self.facet_chains.clear();
        self.sparse.clear();
    }

    /// Sequence of the segment's first event.
    pub fn base_sequence(&self) -> u64 {
        self.base_sequence
    }

    /// Sequence that the next pushed event gets.
    pub fn next_sequence(&self) -> u64 {
        self.base_sequence + length(&self.ids)
    }

    /// Number of events.
    pub fn event_count(&self) -> u64 {
        length(&self.ids)
    }

    /// Number of distinct streams.
    pub fn stream_count(&self) -> u64 {
        length(&self.stream_slots)
    }

    /// Bytes of memory held, used or not.
    pub fn memory_bytes(&self) -> usize {
        self.ids.capacity() * size_of::<u64>()
            + self.stream_chains.memory_bytes()
            + self.facet_chains.memory_bytes()
            + self.stream_slots.capacity() * size_of::<StreamSlot>()
            + self.facet_slots.capacity() * size_of::<FacetSlot>()
            + self.stream_table.allocation_size()
            + self.facet_table.allocation_size()
            + self.sparse.capacity() * size_of::<SparseEntry>()
    }

    /// Notes where a batch begins, before its events are pushed. Keeps the first batch at or after
    /// each 64 KiB.
    pub fn push_batch(&mut self, offset: u64, timestamp_ns: u64) {
        let due = self
            .sparse
            .last()
            .is_none_or(|last| crate::digest::is_sparse_due(last.offset, offset));
        if due {
            self.sparse.push(SparseEntry {
                sequence: self.next_sequence(),
                offset,
                timestamp_ns,
            });
        }
    }

    /// Adds the next event and returns its sequence.
    ///
    /// # Panics
    /// If the revision does not follow that of the stream's last event here: a bug of the caller.
    pub fn push(&mut self, keys: &EventKeys<'_>) -> u64 {
        let sequence = self.next_sequence();
        let event = narrow(self.ids.len());
        self.ids.push(keys.id.0);
        self.push_stream(keys, event);
        for (i, facet) in keys.facets.iter().enumerate() {
            // A tag may hash like the type; one posting of an event is enough.
            if !keys.facets[..i].contains(facet) {
                self.push_facet(*facet, event);
            }
        }
        sequence
    }

    fn push_stream(&mut self, keys: &EventKeys<'_>, event: u32) {
        let slots = &mut self.stream_slots;
        let found = self.stream_table.find(keys.stream.low(), |slot| {
            slots[index(*slot)].key == keys.stream
        });
        if let Some(slot) = found {
            let slot = &mut slots[index(*slot)];
            let next = slot.first_revision + u64::from(self.stream_chains.count(slot.last_node));
            assert!(keys.revision == next, "revisions of a stream are gapless");
            slot.last_node = self.stream_chains.push(slot.last_node, event);
            return;
        }
        assert!(
            keys.previous_sequence < self.base_sequence,
            "the previous event of a stream that is new here lies before the segment"
        );
        let new = narrow(slots.len());
        slots.push(StreamSlot {
            key: keys.stream,
            first_revision: keys.revision,
            previous_sequence: keys.previous_sequence,
            first_event: event,
            last_node: self.stream_chains.push(NONE, event),
        });
        self.stream_table
            .insert_unique(keys.stream.low(), new, |slot| slots[index(*slot)].key.low());
    }

    fn push_facet(&mut self, key: FacetKey, event: u32) {
        let slots = &mut self.facet_slots;
        if let Some(slot) = self
            .facet_table
            .find(key.0, |slot| slots[index(*slot)].key == key)
        {
            let slot = &mut slots[index(*slot)];
            slot.last_node = self.facet_chains.push(slot.last_node, event);
            return;
        }
        let new = narrow(slots.len());
        slots.push(FacetSlot {
            key,
            last_node: self.facet_chains.push(NONE, event),
        });
        self.facet_table
            .insert_unique(key.0, new, |slot| slots[index(*slot)].key.0);
    }

    /// The stream's part of the segment, committed or not.
    pub fn stream(&self, key: StreamKey) -> Option<StreamExtent> {
        let slot = self.stream_slot(key)?;
        Some(self.extent(slot))
    }

    /// The end of the stream, if it has an event here.
    pub fn stream_head(&self, key: StreamKey) -> Option<StreamHead> {
        self.stream(key).map(|extent| extent.head())
    }

    /// The stream's part of the segment as of `last_sequence`.
    pub fn stream_at(&self, key: StreamKey, last_sequence: u64) -> Option<StreamExtent> {
        let slot = self.stream_slot(key)?;
        let node = self.visible(&self.stream_chains, slot.last_node, last_sequence)?;
        Some(self.extent(&StreamSlot {
            last_node: node,
            ..*slot
        }))
    }

    /// Appends to `out`, ascending, the sequences of at most `max` events of the stream from
    /// `from_revision` on, up to `last_sequence`.
    pub fn stream_forward(
        &self,
        key: StreamKey,
        from_revision: u64,
        last_sequence: u64,
        max: usize,
        out: &mut Vec<u64>,
    ) {
        let Some(slot) = self.stream_slot(key) else {
            return;
        };
        let Some(last) = self.visible(&self.stream_chains, slot.last_node, last_sequence) else {
            return;
        };
        let skip = from_revision.saturating_sub(slot.first_revision);
        self.ascending(&self.stream_chains, last, skip, max, out);
    }

    /// Appends to `out`, descending, the sequences of at most `max` events of the stream from
    /// `from_revision` back, up to `last_sequence`.
    pub fn stream_backward(
        &self,
        key: StreamKey,
        from_revision: u64,
        last_sequence: u64,
        max: usize,
        out: &mut Vec<u64>,
    ) {
        let Some(slot) = self.stream_slot(key) else {
            return;
        };
        let Some(last) = self.visible(&self.stream_chains, slot.last_node, last_sequence) else {
            return;
        };
        let Some(steps) = from_revision.checked_sub(slot.first_revision) else {
            return;
        };
        let end = saturating_u32(steps.saturating_add(1)).min(self.stream_chains.count(last));
        let start = end.saturating_sub(saturating_u32(max as u64));
        let base = self.base_sequence;
        self.stream_chains
            .visit_backward(last, start..end, |event| out.push(base + u64::from(event)));
    }

    /// Appends to `out`, ascending, the sequences of at most `max` events with the facet, after
    /// `after_sequence` and up to `last_sequence`.
    pub fn facet_after(
        &self,
        facet: FacetKey,
        after_sequence: u64,
        last_sequence: u64,
        max: usize,
        out: &mut Vec<u64>,
    ) {
        let Some(newest) = self.facet_node(facet) else {
            return;
        };
        let chains = &self.facet_chains;
        let Some(last) = self.visible(chains, newest, last_sequence) else {
            return;
        };
        let skip = self
            .visible(chains, last, after_sequence)
            .map_or(0, |node| chains.count(node));
        self.ascending(chains, last, u64::from(skip), max, out);
    }

    /// Sequence of the last event with the facet up to `last_sequence`.
    pub fn facet_last(&self, facet: FacetKey, last_sequence: u64) -> Option<u64> {
        let node = self.visible(&self.facet_chains, self.facet_node(facet)?, last_sequence)?;
        Some(self.base_sequence + u64::from(self.facet_chains.event(node)))
    }

    /// Hash of the id of an event.
    pub fn id(&self, sequence: u64) -> Option<IdHash> {
        let at = usize::try_from(sequence.checked_sub(self.base_sequence)?).ok()?;
        self.ids.get(at).copied().map(IdHash)
    }

    /// Hashes of the ids of all events, in sequence order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = IdHash> {
        self.ids.iter().copied().map(IdHash)
    }

    /// Where to start reading to find the event `sequence`: the last entry at or before it.
    pub fn locate_sequence(&self, sequence: u64) -> Option<SparseEntry> {
        locate_sequence(&self.sparse, sequence)
    }

    /// Where to start reading to find the first event at or after a time: the last entry before it.
    pub fn locate_time(&self, timestamp_ns: u64) -> Option<SparseEntry> {
        locate_time(&self.sparse, timestamp_ns)
    }

    /// All sparse entries, ascending.
    pub fn sparse(&self) -> &[SparseEntry] {
        &self.sparse
    }

    /// Numbers of the streams in the order of their keys: what an index file is written from.
    pub(crate) fn streams_sorted(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..narrow(self.stream_slots.len())).collect();
        order.sort_unstable_by_key(|slot| self.stream_slots[index(*slot)].key);
        order
    }

    /// Key and extent of the stream with a number, its events' indexes appended to `events`, ascending.
    pub(crate) fn stream_postings(
        &self,
        slot: u32,
        events: &mut Vec<u32>,
    ) -> (StreamKey, StreamExtent) {
        let slot = &self.stream_slots[index(slot)];
        self.all_postings(&self.stream_chains, slot.last_node, events);
        (slot.key, self.extent(slot))
    }

    /// Changes what was noted as the previous sequence of a stream of the segment: for an index
    /// that was made by a scan.
    pub(crate) fn set_previous(&mut self, stream: StreamKey, previous_sequence: u64) {
        assert!(
            previous_sequence < self.base_sequence,
            "the previous event lies before the segment"
        );
        let slots = &mut self.stream_slots;
        let slot = self
            .stream_table
            .find(stream.low(), |slot| slots[index(*slot)].key == stream);
        let slot = *slot.expect("the stream has an event in the segment");
        slots[index(slot)].previous_sequence = previous_sequence;
    }

    /// Numbers of the facets in the order of their keys.
    pub(crate) fn facets_sorted(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..narrow(self.facet_slots.len())).collect();
        order.sort_unstable_by_key(|slot| self.facet_slots[index(*slot)].key);
        order
    }

    /// Key of the facet with a number, its events' indexes appended to `events`, ascending.
    pub(crate) fn facet_postings(&self, slot: u32, events: &mut Vec<u32>) -> FacetKey {
        let slot = &self.facet_slots[index(slot)];
        self.all_postings(&self.facet_chains, slot.last_node, events);
        slot.key
    }

    fn all_postings(&self, chains: &Chains, last: u32, events: &mut Vec<u32>) {
        let start = events.len();
        chains.visit_backward(last, 0..chains.count(last), |event| events.push(event));
        events[start..].reverse();
    }

    fn extent(&self, slot: &StreamSlot) -> StreamExtent {
        let chains = &self.stream_chains;
        StreamExtent {
            first_revision: slot.first_revision,
            next_revision: slot.first_revision + u64::from(chains.count(slot.last_node)),
            previous_sequence: slot.previous_sequence,
            first_sequence: self.base_sequence + u64::from(slot.first_event),
            last_sequence: self.base_sequence + u64::from(chains.event(slot.last_node)),
        }
    }

    fn stream_slot(&self, key: StreamKey) -> Option<&StreamSlot> {
        let slots = &self.stream_slots;
        let slot = self
            .stream_table
            .find(key.low(), |slot| slots[index(*slot)].key == key)?;
        Some(&slots[index(*slot)])
    }

    fn facet_node(&self, key: FacetKey) -> Option<u32> {
        let slots = &self.facet_slots;
        let slot = self
            .facet_table
            .find(key.0, |slot| slots[index(*slot)].key == key)?;
        Some(slots[index(*slot)].last_node)
    }

    /// The last posting of a key that lies at or before a sequence.
    fn visible(&self, chains: &Chains, last: u32, sequence: u64) -> Option<u32> {
        let event = saturating_u32(sequence.checked_sub(self.base_sequence)?);
        chains.at_or_before(last, event)
    }

    fn ascending(&self, chains: &Chains, last: u32, skip: u64, max: usize, out: &mut Vec<u64>) {
        let count = chains.count(last);
        let start = saturating_u32(skip).min(count);
        let end = start.saturating_add(saturating_u32(max as u64)).min(count);
        let from = out.len();
        let base = self.base_sequence;
        chains.visit_backward(last, start..end, |event| out.push(base + u64::from(event)));
        out[from..].reverse();
    }
}

/// The last entry at or before a sequence.
pub(crate) fn locate_sequence(sparse: &[SparseEntry], sequence: u64) -> Option<SparseEntry> {
    let after = sparse.partition_point(|entry| entry.sequence <= sequence);
    sparse.get(after.checked_sub(1)?).copied()
}

/// The last entry before a time.
pub(crate) fn locate_time(sparse: &[SparseEntry], timestamp_ns: u64) -> Option<SparseEntry> {
    let after = sparse.partition_point(|entry| entry.timestamp_ns < timestamp_ns);
    sparse.get(after.checked_sub(1)?).copied()
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).expect("32 bits fit usize")
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).expect("a segment holds fewer than 2^32 events")
}

fn length<T>(items: &[T]) -> u64 {
    items.len() as u64
}

fn saturating_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "active_index_tests.rs"]
mod tests;
