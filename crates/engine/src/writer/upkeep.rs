//! What a writer does besides appends: flushing by the clock, zeros ahead, marks, and the clean stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use truthdb_io::{BLOCK_BYTES, WriteSource};
use truthdb_log::RecentIdsBinding;

use super::{
    CLEAN_STOP_SCAN_BYTES_MAX, PartitionWriter, TAG_ZERO, ZERO_GROUP_BYTES_MAX, ZERO_STEP_BYTES,
};
use crate::config::Durability;
use crate::group::to_blocks;
use crate::queue::RETRY_AFTER_MS;
use crate::status::add;

impl PartitionWriter {
    /// What is due besides appends. Returns as [`PartitionWriter::step`] does.
    pub(super) fn tidy_up(&mut self) -> Option<Option<u64>> {
        if self.shared.stop_requested.load(Ordering::Acquire) {
            self.stopping = true;
        }
        if self.stopped {
            self.refuse_waiting();
            if self.stopping && self.disk.in_flight() == 0 {
                self.finished = true;
            }
            return if self.finished { None } else { Some(None) };
        }
        let idle = self.in_flight.is_empty() && self.encoder.group_bytes() == 0;
        if self.stopping {
            return self.stop_step(idle && self.waiting.is_empty());
        }
        let now = self.now();
        let mut timeout = self.interval_flush(now);
        self.zero_ahead();
        if !self.marked && idle && self.config.durability == Durability::FlushEachGroup {
            let idle_ns = u64::try_from(self.config.mark_idle.as_nanos()).unwrap_or(u64::MAX);
            let due = self.last_group_ns.saturating_add(idle_ns);
            if now >= due {
                self.write_mark(false);
            } else {
                timeout = Some(timeout.unwrap_or(u64::MAX).min(due - now));
            }
        }
        if !self.waiting.is_empty() && self.in_flight.is_empty() {
            // Blocked on maintenance, which wakes this thread; look again in any case.
            timeout = Some(timeout.unwrap_or(u64::MAX).min(RETRY_AFTER_MS * 1_000_000));
        }
        Some(timeout)
    }

    fn interval_flush(&mut self, now: u64) -> Option<u64> {
        let Durability::FlushInterval(interval) = self.config.durability else {
            return None;
        };
        if self.written_sequence <= self.flushed_sequence || self.syncing.is_some() {
            return None;
        }
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let due = self.last_sync_ns.saturating_add(interval);
        if now >= due {
            self.submit_sync();
            return None;
        }
        Some(due - now)
    }

    /// Writes zeros ahead of small groups: the first write into reserved space costs a journal
    /// commit each time.
    fn zero_ahead(&mut self) {
        let offset = self.encoder.group_offset() + to_blocks(self.encoder.group_bytes()) as u64;
        let from = self.written_until.max(offset);
        let step = ZERO_STEP_BYTES as u64;
        if self.zeroing.is_some()
            || self.config.durability == Durability::Os
            || self.average_group_bytes >= ZERO_GROUP_BYTES_MAX
            || from - offset >= step / 2
            || from + step > self.data_end_max()
        {
            return;
        }
        let source = WriteSource {
            chunk: Arc::clone(&self.zeros),
            start: 0,
            bytes: ZERO_STEP_BYTES,
        };
        self.zeroing = Some((from, from + step));
        self.written_until = from + step;
        self.disk.write(&self.file, source, from, false, TAG_ZERO);
        add(&self.shared.counters.zeroed_bytes, step);
    }

    /// Writes a mark if there is room for one in the segment.
    fn write_mark(&mut self, clean_stop: bool) {
        self.marked = true;
        let offset = self.encoder.group_offset();
        let end = offset + BLOCK_BYTES as u64;
        let in_zeros = self
            .zeroing
            .is_some_and(|(from, to)| offset < to && from < end);
        if in_zeros {
            // Once the zeros have landed there will be another step.
            self.marked = false;
            return;
        }
        if end > self.data_end_max() {
            return;
        }
        let next = self.next_sequence;
        let chunk = self.encoder.add_mark(next, self.timestamp_ns, clean_stop);
        self.note_chunk(chunk);
        // With every group durable before it is acknowledged, everything before an idle writer's mark is.
        if self.config.durability == Durability::FlushEachGroup {
            self.flushed_offset = offset;
        }
        let group = self
            .encoder
            .finish(self.flushed_sequence, self.flushed_offset, next - 1);
        self.submit(group, true);
    }

    /// Towards a clean stop: everything accepted is written, then flushed, then marked.
    fn stop_step(&mut self, idle: bool) -> Option<Option<u64>> {
        if !idle || self.zeroing.is_some() || self.syncing.is_some() {
            return Some(None);
        }
        if self.flushed_sequence < self.next_sequence - 1
            && self.config.durability != Durability::Os
        {
            self.submit_sync();
            return Some(None);
        }
        if !self.clean_mark {
            self.clean_mark = true;
            self.write_mark(true);
            if !self.in_flight.is_empty() {
                return Some(None);
            }
        }
        let end = RecentIdsBinding {
            database_id: self.shared.database_id,
            partition: self.shared.partition,
            key_check: self.key_check,
            next_sequence: self.next_sequence,
            last_checksum: self.encoder.previous_checksum,
        };
        crate::recent_ids::store(&self.world, &end, &self.ids);
        let data = self.unsealed.end_offset.load(Ordering::Acquire);
        if data > CLEAN_STOP_SCAN_BYTES_MAX {
            self.shared.close_segment(&self.segment);
        }
        self.finished = true;
        None
    }
}
