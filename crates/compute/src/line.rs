//! A line in a fold: a runner that follows the log, what it owes to the log, and what it shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use truthdb_engine::ReadError;
use truthdb_log::StoredBatch;

use crate::answer::FoldState;
use crate::canary::{Canary, planted};
use crate::catalogue::LineSpec;
use crate::emit::{Derived, Outbox};
use crate::reader::LogReader;
use crate::runner::{Applied, Runner, Stop};
use crate::shared::{LineShared, Version};

/// Nanoseconds until something outside that was in the way is tried again.
const WAIT_NS: u64 = 500_000_000;

/// What a line's step came to.
#[derive(Debug)]
pub(crate) enum Advance {
    /// A batch was applied.
    Applied { events: u64 },
    /// Nothing is left to apply now.
    Idle,
    /// The module stopped at the batch with this first sequence; new since the last step.
    Stopped { sequence: u64, reason: String },
}

/// A batch's changes, for the delta log.
#[derive(Debug)]
pub(crate) struct Delta {
    pub(crate) last_sequence: u64,
    pub(crate) timestamp_ns: u64,
    pub(crate) changes: truthdb_state::Changes,
    pub(crate) fingerprint: truthdb_state::Fingerprint,
}

/// See the module's description.
pub(crate) struct Line {
    pub(crate) runner: Runner,
    reader: LogReader,
    pub(crate) shared: Arc<LineShared>,
    /// The batch that the guest was stopped at, to be given to it again.
    pending: Option<StoredBatch>,
    pub(crate) state: FoldState,
    /// Monotonic time before which nothing is tried.
    wait_until: u64,
    pub(crate) outbox: Option<Outbox>,
    /// What the last batch emitted and no outbox has taken.
    unpushed: Option<(u32, u64, Vec<Derived>)>,
    /// Changes that are not handed to the delta log yet, ascending.
    pub(crate) deltas: Vec<Delta>,
    /// Last sequence that the deltas account for.
    covered: u64,
    /// A version at a snapshot mark, until the snapshot is begun.
    pub(crate) marked: Option<Version>,
    /// Recorded fingerprints still to come.
    checks: BTreeMap<u64, [u8; 32]>,
    /// Sequence of the last checkpoint.
    pub(crate) checkpoint: u64,
    /// Last sequence that concerns it: it is retired.
    pub(crate) until: u64,
    /// A recorded stop, to be kept until it is lifted.
    pub(crate) halt: Option<(u64, String)>,
    events: u64,
    fuel: u64,
    published: bool,
}

impl Line {
    pub(crate) fn new(mut runner: Runner, reader: LogReader, outbox: Option<Outbox>) -> Line {
        let version = Version {
            sequence: runner.applied,
            timestamp_ns: runner.timestamp_ns,
            view: runner.view(),
        };
        let shared = LineShared::new(&runner.spec.module, runner.spec.line, version);
        let runner_applied = runner.applied;
        Line {
            runner,
            reader,
            shared: Arc::new(shared),
            pending: None,
            state: FoldState::CatchingUp,
            wait_until: 0,
            outbox,
            unpushed: None,
            deltas: Vec::new(),
            covered: runner_applied,
            marked: None,
            checks: BTreeMap::new(),
            checkpoint: 0,
            until: u64::MAX,
            halt: None,
            events: 0,
            fuel: 0,
            published: false,
        }
    }

    pub(crate) fn spec(&self) -> &Arc<LineSpec> {
        &self.runner.spec
    }

    /// Goes on with what the catalogue now says.
    pub(crate) fn refresh(
        &mut self,
        spec: LineSpec,
        checkpoints: BTreeMap<u64, [u8; 32]>,
        until: u64,
        halt: Option<(u64, String)>,
    ) {
        let old = &self.runner.spec;
        // A stop that is only on its way into the log is not lifted by its absence there.
        let lifted = self.halt.is_some() && halt.is_none()
            || old.steps != spec.steps
            || old.skips != spec.skips;
        if **old != spec {
            self.runner.set_spec(Arc::new(spec));
        }
        let applied = self.runner.applied;
        self.checkpoint = checkpoints.keys().next_back().copied().unwrap_or(0);
        self.checks = checkpoints;
        self.checks.retain(|sequence, _| *sequence > applied);
        self.until = until;
        if lifted && halt.is_none() {
            self.lift();
        }
        self.halt = halt;
        self.published = false;
    }

    /// Lets it try again.
    pub(crate) fn lift(&mut self) {
        self.halt = None;
        self.wait_until = 0;
        self.set_state(FoldState::CatchingUp);
    }

    /// All derived events up to here are stored.
    pub(crate) fn stored_through(&self) -> u64 {
        let applied = self.runner.applied;
        if planted(Canary::StoreEarly) {
            return applied;
        }
        let stored = self
            .outbox
            .as_ref()
            .map_or(applied, |o| o.stored_through(applied));
        match &self.unpushed {
            Some((_, batch, _)) => stored.min(batch - 1),
            None => stored,
        }
    }

    /// Nothing is owed to the log.
    pub(crate) fn is_settled(&self) -> bool {
        self.unpushed.is_none() && self.outbox.as_ref().is_none_or(Outbox::is_empty)
    }

    /// Whether it has applied all of its turn and owes nothing.
    pub(crate) fn is_over(&self) -> bool {
        self.runner.applied >= self.until && self.is_settled()
    }

    /// Whether it has applied what is there and came to all fingerprints that are recorded.
    pub(crate) fn is_proven(&self) -> bool {
        self.state == FoldState::Live && self.checks.is_empty()
    }

    pub(crate) fn is_halted(&self) -> bool {
        matches!(self.state, FoldState::Halted { .. })
    }

    /// When to look again, if something is waited for.
    pub(crate) fn wait_until(&self) -> Option<u64> {
        matches!(self.state, FoldState::Waiting { .. }).then_some(self.wait_until)
    }

    fn set_state(&mut self, state: FoldState) {
        if self.state != state {
            self.state = state;
            self.published = false;
        }
    }

    fn wait_for(&mut self, reason: String, now: u64) {
        self.wait_until = now + WAIT_NS;
        self.set_state(FoldState::Waiting { reason });
    }

    /// Applies one batch, if there is one up to `last`.
    pub(crate) fn advance(
        &mut self,
        last: u64,
        now: u64,
        retained_max: usize,
    ) -> Result<Advance, ReadError> {
        if self.is_halted() || now < self.wait_until && self.wait_until().is_some() {
            return Ok(Advance::Idle);
        }
        if let Some(reason) = self.outbox.as_ref().and_then(|outbox| outbox.stuck.clone()) {
            self.wait_for(reason, now);
            return Ok(Advance::Idle);
        }
        if !self.push_derived(now) || self.outbox.as_ref().is_some_and(Outbox::is_full) {
            return Ok(Advance::Idle);
        }
        if self.runner.is_at_boundary() {
            self.keep_version(retained_max);
            self.cover();
        }
        let last = last.min(self.until);
        let batch = match self.pending.take() {
            Some(batch) => batch,
            None => match self.reader.next_batch(last) {
                Ok(Some(batch)) => batch,
                Ok(None) => {
                    self.set_state(FoldState::Live);
                    return Ok(Advance::Idle);
                }
                Err(ReadError::Trimmed { first_sequence, .. }) => {
                    self.wait_for(
                        format!(
                            "events before {first_sequence} were trimmed and there is no snapshot \
                             to go on from; activate with `continue`, or restore a snapshot"
                        ),
                        now,
                    );
                    return Ok(Advance::Idle);
                }
                Err(error) => return Err(error),
            },
        };
        if let Some((sequence, reason)) = self.halt.clone()
            && sequence <= batch.last_sequence()
        {
            self.pending = Some(batch);
            self.set_state(FoldState::Halted { sequence, reason });
            return Ok(Advance::Idle);
        }
        match self.runner.apply(&batch) {
            Ok(applied) => self.applied(&batch, applied, now),
            Err(stop) => {
                let sequence = batch.first_sequence;
                self.pending = Some(batch);
                Ok(self.stopped(sequence, stop, now))
            }
        }
    }

    fn stopped(&mut self, sequence: u64, stop: Stop, now: u64) -> Advance {
        match stop {
            Stop::Loading => self.set_state(FoldState::Loading),
            Stop::Host { reason } => self.wait_for(reason, now),
            Stop::Module { reason } => {
                let state = FoldState::Halted {
                    sequence,
                    reason: reason.clone(),
                };
                self.set_state(state);
                return Advance::Stopped { sequence, reason };
            }
        }
        Advance::Idle
    }

    fn applied(
        &mut self,
        batch: &StoredBatch,
        applied: Applied,
        now: u64,
    ) -> Result<Advance, ReadError> {
        self.set_state(FoldState::CatchingUp);
        self.published = false;
        self.events += applied.events;
        self.fuel += applied.fuel;
        for line in &applied.logs {
            tracing::debug!(module = self.runner.spec.module, level = ?line.level, "{}", line.message);
        }
        let last = batch.last_sequence();
        let fingerprint = self.runner.fingerprint();
        if !applied.derived.is_empty() && self.outbox.is_some() && self.spec().emits_at(last) {
            let generation = self.runner.current_step().generation;
            self.unpushed = Some((generation, last, applied.derived));
            self.push_derived(now);
        }
        if !applied.changes.is_empty() {
            self.covered = last;
            self.deltas.push(Delta {
                last_sequence: last,
                timestamp_ns: batch.timestamp_ns,
                changes: applied.changes,
                fingerprint,
            });
        }
        if let Some(recorded) = self.checks.remove(&last)
            && recorded != fingerprint.to_bytes()
        {
            let reason = format!(
                "the state after event {last} is not the one that was recorded in the log's \
                 checkpoint: fingerprint {}, recorded {}. Run `truthdb replay --verify`",
                crate::control::hex(&fingerprint.to_bytes()),
                crate::control::hex(&recorded)
            );
            tracing::error!(module = self.runner.spec.module, "{reason}");
            self.set_state(FoldState::Halted {
                sequence: batch.first_sequence,
                reason,
            });
        }
        Ok(Advance::Applied {
            events: applied.events,
        })
    }

    /// Accounts for batches without changes, so that a record ends where a recovery may go on.
    fn cover(&mut self) {
        if self.covered < self.runner.applied {
            self.covered = self.runner.applied;
            self.deltas.push(Delta {
                last_sequence: self.runner.applied,
                timestamp_ns: self.runner.timestamp_ns,
                changes: truthdb_state::Changes::new(),
                fingerprint: self.runner.fingerprint(),
            });
        }
    }

    /// Hands what the last batch emitted to the outbox. False if it has to wait.
    fn push_derived(&mut self, now: u64) -> bool {
        let Some((generation, batch, derived)) = self.unpushed.take() else {
            return true;
        };
        let Some(outbox) = &mut self.outbox else {
            return true;
        };
        match outbox.push(generation, batch, &derived) {
            Ok(()) => true,
            Err(error) => {
                self.unpushed = Some((generation, batch, derived));
                self.wait_for(crate::error::chain(&error), now);
                false
            }
        }
    }

    pub(crate) fn version(&mut self) -> Version {
        Version {
            sequence: self.runner.applied,
            timestamp_ns: self.runner.timestamp_ns,
            view: self.runner.view(),
        }
    }

    /// Keeps a version that recovery, as-of reads and snapshots can go on from.
    fn keep_version(&mut self, retained_max: usize) {
        let version = self.version();
        self.shared.update(|public| {
            let newer = public
                .retained
                .back()
                .is_none_or(|last| last.sequence < version.sequence);
            if newer {
                public.retained.push_back(version);
            }
            while public.retained.len() > retained_max.max(1) {
                public.retained.pop_front();
            }
        });
    }

    /// Shows readers what is applied. Says whether the line's state is another one now.
    pub(crate) fn publish(&mut self) -> bool {
        let stored = self.stored_through();
        let emitted = self.outbox.as_ref().map_or(0, |outbox| outbox.emitted);
        if self.published {
            return false;
        }
        self.published = self.is_settled();
        let version = self.version();
        let (state, events, fuel) = (self.state.clone(), self.events, self.fuel);
        let mut changed = false;
        self.shared.update(|public| {
            changed = public.state != state;
            public.version = version;
            public.state = state;
            public.events = events;
            public.emitted = emitted;
            public.fuel = fuel;
            public.emitted_through = stored;
        });
        changed
    }
}
