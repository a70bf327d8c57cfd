//! The gate: who else may refuse an append, on the writer's thread, serialised with the log.
//!
//! A partition's writer asks its gate about every batch that passed all other checks, and tells it
//! of every batch that was given its sequences. So a gate that folds what it is told decides with
//! the state as of exactly the event before, what is encoded and not yet committed included. That
//! is safe because a partition whose write failed stops for good in that process: what the gate
//! has folded either commits, or no decision follows.
//!
//! The engine knows nothing of what a gate does; without one an append costs one branch more.

use std::sync::Arc;

use bytes::Bytes;
use truthdb_log::{StoredBatch, TABLE_ROW_BYTES, write_table_row};

use crate::append::AppendBatch;
use crate::error::AppendError;

/// What a gate says about a batch.
#[derive(Debug, Clone)]
pub enum GateVerdict {
    /// It may be appended.
    Accept,
    /// It is not appended; the caller gets this error.
    Refuse(AppendError),
}

/// Decides on appends to a partition. Called on its writer's thread, one call at a time: what takes
/// long here delays every append of the partition.
pub trait AppendGate: Send {
    /// From now on the gate hears of every batch; the next event gets this sequence.
    fn attached(&mut self, next_sequence: u64);

    /// Whether [`AppendGate::decide`] has to be asked at all.
    fn is_armed(&self) -> bool;

    /// Decides on a caller's batch as it would be stored. It may be asked about a batch again
    /// before the next one is encoded.
    fn decide(&mut self, batch: &StoredBatch) -> GateVerdict;

    /// A batch was given its sequences: every batch, in order, without a gap.
    fn encoded(&mut self, batch: &GateBatch<'_>);
}

/// A batch that was given its sequences and is not committed yet.
pub struct GateBatch<'a> {
    pub(crate) batch: &'a AppendBatch,
    pub(crate) revisions: &'a [u64],
    pub(crate) first_sequence: u64,
    pub(crate) timestamp_ns: u64,
}

impl std::fmt::Debug for GateBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GateBatch")
            .field("first_sequence", &self.first_sequence)
            .field("events", &self.batch.events.len())
            .finish_non_exhaustive()
    }
}

impl GateBatch<'_> {
    /// Sequence of its first event.
    pub fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// Sequence of its last event, those of the engine's own included.
    pub fn last_sequence(&self) -> u64 {
        self.first_sequence + self.batch.events.len() as u64 - 1
    }

    /// Whether the database appended it itself ([`crate::Engine::prepare_own`]).
    pub fn is_own(&self) -> bool {
        self.batch.own
    }

    /// A copy of it as it will be read.
    pub fn to_stored(&self) -> StoredBatch {
        let count = u32::try_from(self.batch.events.len()).expect("a batch's events are limited");
        let table = self.batch.events.len() * TABLE_ROW_BYTES;
        let mut body = vec![0; self.batch.stored_bytes()];
        let mut at = table;
        for (index, event) in self.batch.events.iter().enumerate() {
            let row = u32::try_from(index).expect("a batch's events are limited");
            let revision = self.revisions[index];
            write_table_row(&mut body, count, row, event.checksum, revision, event.bytes);
            let canonical = self.batch.event(index);
            body[at..at + canonical.len()].copy_from_slice(canonical);
            at += canonical.len();
        }
        StoredBatch {
            first_sequence: self.first_sequence,
            timestamp_ns: self.timestamp_ns,
            event_count: count,
            body: Bytes::from(body),
        }
    }
}

impl crate::Engine {
    /// Puts a gate before the appends of a partition, in the place of the one that was there. Its
    /// writer takes it at its next step, and says so by [`AppendGate::attached`].
    ///
    /// # Errors
    /// If there is no such partition, or it is fenced.
    pub fn set_gate(
        &self,
        partition: u32,
        gate: Box<dyn AppendGate>,
    ) -> Result<(), crate::ReadError> {
        let shared = Arc::clone(self.shared(partition)?);
        *shared.gate.lock() = Some(gate);
        shared
            .gate_waiting
            .store(true, std::sync::atomic::Ordering::Release);
        shared.queue.wake();
        Ok(())
    }
}
