//! How a writer asks its gate.

use std::sync::atomic::Ordering;

use super::PartitionWriter;
use crate::append::AppendBatch;
use crate::error::AppendError;
use crate::gate::{GateBatch, GateVerdict};

impl PartitionWriter {
    /// Takes the gate that somebody left for this writer.
    pub(super) fn take_gate(&mut self) {
        if !self.shared.gate_waiting.load(Ordering::Relaxed) {
            return;
        }
        self.shared.gate_waiting.store(false, Ordering::Release);
        if let Some(mut gate) = self.shared.gate.lock().take() {
            gate.attached(self.next_sequence);
            self.gate = Some(gate);
        }
    }

    /// What the gate has against a batch that passed all other checks.
    pub(super) fn ask_gate(&mut self, batch: &AppendBatch) -> Option<AppendError> {
        let gate = self.gate.as_mut()?;
        if batch.own || batch.user_events == 0 || !gate.is_armed() {
            return None;
        }
        let now = self.world.clock.utc_ns();
        self.revisions.clear();
        let mut heads = self.heads.clone();
        for event in &batch.events {
            let head = &mut heads[event.stream];
            self.revisions.push(head.next_revision);
            head.next_revision += 1;
        }
        let stored = GateBatch {
            batch,
            revisions: &self.revisions,
            first_sequence: self.next_sequence,
            timestamp_ns: self.timestamp_ns.max(now),
        }
        .to_stored();
        match gate.decide(&stored) {
            GateVerdict::Accept => None,
            GateVerdict::Refuse(error) => Some(error),
        }
    }
}
