//! What may differ from one start of a database to the next. (What may not is in the manifest.)

use std::time::Duration;

/// What an acknowledgement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged means on stable storage. The default.
    FlushEachGroup,
    /// Acknowledged means given to the kernel; a flush follows within the interval. A power cut may
    /// lose that much.
    FlushInterval(Duration),
    /// Acknowledged means given to the kernel, never flushed. For tests only.
    Os,
}

impl Durability {
    /// The name used in config files, answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Durability::FlushEachGroup => "flush-each-group",
            Durability::FlushInterval(_) => "flush-interval",
            Durability::Os => "os",
        }
    }
}

/// When whole sealed segments at the start of a partition's log may be removed. Off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Remove segments whose last event is older than this.
    pub age_max: Option<Duration>,
    /// Remove oldest segments while a partition's files take more than this many bytes.
    pub bytes_max: Option<u64>,
}

/// Settings of an [`crate::Engine`]. Sizes are bytes; "each partition" says which bounds multiply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// What an acknowledgement means.
    pub durability: Durability,
    /// Group writes in flight at once, each partition (1..=16).
    pub writes_in_flight_max: usize,
    /// A group is closed at this size, each partition (64 KiB..=16 MiB). A batch that is larger
    /// gets a group of its own.
    pub group_bytes_max: usize,
    /// Appends waiting for the writer: at most this many bytes, each partition.
    pub queue_bytes_max: usize,
    /// Appends waiting for the writer: at most this many batches, each partition.
    pub queue_batches_max: usize,
    /// Recent log data kept in memory for live readers, each partition.
    pub tail_cache_bytes: usize,
    /// Blocks of older log data kept in memory for point reads, whole database.
    pub read_cache_bytes: usize,
    /// Heads of recently used streams kept in memory, each partition (about 48 bytes each).
    pub stream_cache_entries: usize,
    /// Event ids remembered for idempotent appends, each partition (32 bytes each).
    pub idempotency_window_events: usize,
    /// Closed segments that may wait for their seal before appends are refused, each partition.
    pub closed_segments_max: usize,
    /// After this long without a new group, the writer leaves a mark that says what is flushed.
    pub mark_idle: Duration,
    /// Compress the blocks of packed segments with zstd.
    pub compress: bool,
    /// When old segments may be removed.
    pub retention: Retention,
    /// CPUs to pin the writer threads to, in partition order, reused from the start when there are
    /// more partitions. Empty: not pinned.
    pub writer_cpus: Vec<usize>,
    /// How long a writer looks for the next append before it sleeps, when its last group was one
    /// append of a lone caller. Costs so much CPU time an append, and saves the caller the time that
    /// waking a thread takes. Zero, and with more partitions than half of the CPUs: it sleeps at once.
    pub lone_writer_spin: Duration,
    /// Accept appends. Without it the engine only reads.
    pub ingest: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            durability: Durability::FlushEachGroup,
            writes_in_flight_max: 2,
            group_bytes_max: 1 << 20,
            queue_bytes_max: 16 << 20,
            queue_batches_max: 4096,
            tail_cache_bytes: 16 << 20,
            read_cache_bytes: 64 << 20,
            stream_cache_entries: 65_536,
            idempotency_window_events: 1_000_000,
            closed_segments_max: 4,
            mark_idle: Duration::from_millis(50),
            compress: false,
            retention: Retention::default(),
            writer_cpus: Vec::new(),
            lone_writer_spin: Duration::from_micros(100),
            ingest: true,
        }
    }
}
