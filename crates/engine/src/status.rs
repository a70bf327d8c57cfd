//! What an engine says about itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Durability;

/// State of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionState {
    /// Reads and appends.
    Open,
    /// Reads only: this node does not ingest.
    ReadOnly,
    /// Reads; appends are refused until there is space for another segment.
    DiskFull,
    /// Reads; appends are refused for good in this process, because a write or its flush failed or
    /// the engine stops.
    Stopped {
        /// Why, and what to do.
        reason: String,
    },
    /// Nothing: acknowledged data is damaged.
    Fenced {
        /// What is damaged, and what to do.
        reason: String,
    },
}

impl PartitionState {
    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            PartitionState::Open => "open",
            PartitionState::ReadOnly => "read-only",
            PartitionState::DiskFull => "disk-full",
            PartitionState::Stopped { .. } => "stopped",
            PartitionState::Fenced { .. } => "fenced",
        }
    }
}

/// State of a database.
#[derive(Debug, Clone)]
pub struct EngineStatus {
    /// The database's id.
    pub database_id: [u8; 16],
    /// `io_uring`, `blocking` or `simulated`.
    pub backend: &'static str,
    /// What an acknowledgement means.
    pub durability: Durability,
    /// Whether appends are accepted.
    pub ingest: bool,
    /// Each partition, by number.
    pub partitions: Vec<PartitionStatus>,
    /// Bytes free on the file system of the data directory.
    pub free_bytes: u64,
    /// Size of that file system in bytes.
    pub total_bytes: u64,
}

/// State and figures of a partition.
#[derive(Debug, Clone)]
pub struct PartitionStatus {
    /// Its number.
    pub partition: u32,
    /// Its state.
    pub state: PartitionState,
    /// First sequence that retention has left.
    pub first_sequence: u64,
    /// Last committed sequence; 0 if there is none.
    pub committed: u64,
    /// Last sequence accepted by the writer.
    pub appended: u64,
    /// Timestamp of the last accepted event, nanoseconds UTC.
    pub timestamp_ns: u64,
    /// Segments of all kinds.
    pub segments: u32,
    /// Sealed segments.
    pub sealed_segments: u32,
    /// Packed ones among them.
    pub packed_segments: u32,
    /// Number of the segment that takes appends.
    pub active_segment: u32,
    /// Bytes of all segment files (an unsealed one counts up to its last commit).
    pub bytes: u64,
    /// Bytes of the events in sealed segments: canonical bytes and table rows.
    pub sealed_event_bytes: u64,
    /// Chain hash of the newest sealed segment; `None` if there is none.
    pub chain: Option<[u8; 32]>,
    /// Appends waiting for the writer.
    pub queue_batches: u64,
    /// Their bytes.
    pub queue_bytes: u64,
    /// What happened since the start.
    pub counters: Counters,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened since the start of the process. Each only grows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Names and values, in the order of declaration.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct AtomicCounters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl AtomicCounters {
            pub(crate) fn load(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Batches committed.
    batches,
    /// Events committed.
    events,
    /// Canonical bytes of the committed events and their table rows.
    event_bytes,
    /// Groups written.
    groups,
    /// Bytes of the groups written, with headers and padding.
    group_bytes,
    /// Padding bytes among them.
    padding_bytes,
    /// Marks written.
    marks,
    /// Durable writes and flushes.
    flushes,
    /// Bytes written with zeros ahead of the data.
    zeroed_bytes,
    /// Segments sealed.
    seals,
    /// Bytes that packing gave back.
    packed_bytes_saved,
    /// Segments removed by retention or trim.
    trimmed_segments,
    /// Appends answered from an earlier one with the same ids.
    duplicates,
    /// Appends refused for a revision or a condition.
    conflicts,
    /// Appends refused because a queue was full or the disk was.
    overloaded,
    /// Pages read.
    reads,
    /// Bytes of events read.
    read_bytes,
    /// Blocks of reads that came from the disk, in bytes.
    disk_read_bytes,
    /// Derived indexes made again because they were missing or damaged.
    index_rebuilds,
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
