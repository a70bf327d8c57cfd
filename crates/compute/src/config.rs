//! What may differ from one start to the next.

use std::time::Duration;

use truthdb_state::PrunePolicy;

/// Settings of a [`crate::Compute`]. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeConfig {
    /// Fold the log, take part in the life of modules, write deltas, snapshots and checkpoints.
    pub compute: bool,
    /// Answer `get`, `scan` and `query`. Without `compute` the folds follow the log and write nothing.
    pub query: bool,
    /// Answer replays, verifications and comparisons.
    pub replay: bool,
    /// Events between snapshots, each partition; 0: only on request.
    pub snapshot_every_events: u64,
    /// Events between state checkpoints in the log, each module; 0: none.
    pub checkpoint_every_events: u64,
    /// Which snapshots stay.
    pub snapshot_retention: PrunePolicy,
    /// Versions of recent states kept in memory, each module and partition.
    pub retained_views: usize,
    /// The longest that a query may take, and what it may take if it does not say.
    pub query_deadline: Duration,
    /// How long a command waits for the copies of its decision in the other partitions.
    pub decision_wait: Duration,
    /// Stack of the threads that run guests.
    pub stack_bytes: usize,
}

/// The stack that guests need at least: wasmtime's own limit of a guest's stack, several times.
pub const STACK_BYTES_MIN: usize = 4 << 20;

impl Default for ComputeConfig {
    fn default() -> ComputeConfig {
        ComputeConfig {
            compute: true,
            query: true,
            replay: true,
            snapshot_every_events: 100_000,
            checkpoint_every_events: 100_000,
            snapshot_retention: PrunePolicy::default(),
            retained_views: 64,
            query_deadline: Duration::from_secs(10),
            decision_wait: Duration::from_secs(10),
            stack_bytes: 8 << 20,
        }
    }
}
