//! The engine: what happens between a request and the log.
//!
//! Each partition has one writer, a synchronous state machine that orders, checks, encodes, writes
//! and acknowledges
//! ([`Engine::append`]); readers take immutable views of segments and of the tail in memory
//! ([`Engine::read`]); one
//! maintenance thread prepares, seals, packs, merges and trims.
//!
//! Invariants:
//! 1. An append is acknowledged when it is as durable as the configuration promises, in order of
//!    sequences, never before.
//! 2. Sequences of a partition and revisions of a stream are gapless; timestamps never decrease,
//!    whatever the clock does.
//! 3. Checks (expected revisions, conditions, event ids) are decided against exactly the state
//!    before the append.
//! 4. Queues are bounded in bytes and in batches; over the bound the caller gets an error at once.
//! 5. Nothing here names a clock, a file system, a thread pool or a runtime: all of it comes
//!    through [`truthdb_io::World`],
//!    so that a simulator can drive the same machines ([`Engine::open_stepped`]).
//!
//! It does not know protocols or permissions, keeps no state besides the log and its indexes, and
//! never retries an I/O error.

mod append;
mod audit;
mod backup;
mod cache;
mod checks;
mod config;
mod engine;
mod error;
mod gate;
mod group;
mod id_window;
mod maintenance;
mod open;
mod pages;
mod queue;
mod read;
mod recent_ids;
mod request;
mod sealed;
mod shared;
mod status;
mod stream_cache;
mod trim;
mod writer;

#[cfg(test)]
mod interleaving_tests;

pub use append::{
    AppendBatch, AppendSink, CONDITION_ITEMS_MAX, CONDITION_NAMES_MAX, CURSOR_EVENT_TYPE,
    CURSOR_NAME_BYTES_MAX, CURSOR_STREAM_PREFIX, EncodedEvents, SYSTEM_PREFIX, TRIM_EVENT_TYPE,
    TRIM_STREAM,
};
pub use backup::{BackupError, BackupHeads, BackupPartition, BackupSegment, BackupSession};
pub use config::{Durability, EngineConfig, Retention};
pub use engine::{Engine, SealedEnd, ShutdownReport, Stepper};
pub use error::{AppendError, ReadError, TrimError};
pub use gate::{AppendGate, GateBatch, GateVerdict};
pub use open::{OpenError, OpenReport, PartitionReport, RecoveredTail};
pub use pages::{PAGE_BYTES_MAX, PAGE_EVENTS_MAX};
pub use request::*;
pub use status::{Counters, EngineStatus, PartitionState, PartitionStatus};
pub use trim::{TrimPlan, TrimTo};
