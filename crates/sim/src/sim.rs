//! One run: an engine on a simulated machine, driven step by step from one seed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use truthdb_engine::{
    AppendBatch, AppendError, AppendSink, Appended, Durability, Engine, PartitionState, ReadError,
    Stepper, TrimTo,
};
use truthdb_io::sim::{SimFault, SimFaults, SimOp, SimPrng, SimWorld};
use truthdb_log::{CreateOptions, create_database};

use crate::damage::Damage;
use crate::model::{Batch, Partition};
use crate::profile::{Action, Class, Profile};
use crate::work;

/// The format's smallest segment.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Steps in which everything that was handed over must be answered once nothing fails any more.
const SETTLE_STEPS: u32 = 20_000;

/// What a run found to be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// `Err` of a [`Violation`] with this text.
pub(crate) fn violation<T>(text: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(text.into()))
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Batches handed over.
    pub submitted: u64,
    /// Batches acknowledged.
    pub acknowledged: u64,
    /// Events in the model at the end.
    pub events: u64,
    /// Restarts of all kinds.
    pub restarts: u64,
    /// Hash over operations, data, results, times and answers.
    pub trace_hash: u64,
}

#[derive(Default)]
pub(crate) struct Inbox(Mutex<Vec<(u64, Result<Appended, AppendError>)>>);

impl AppendSink for Inbox {
    fn complete(&self, tag: u64, result: Result<Appended, AppendError>, _batch: Box<AppendBatch>) {
        let mut inbox = self.0.lock().expect("no holder of this lock panics");
        inbox.push((tag, result));
    }
}

impl Inbox {
    pub(crate) fn take(&self) -> Vec<(u64, Result<Appended, AppendError>)> {
        std::mem::take(&mut *self.0.lock().expect("no holder of this lock panics"))
    }
}

/// A batch that the engine took and that is not settled.
pub(crate) struct Pending {
    pub(crate) tag: u64,
    pub(crate) batch: Arc<Batch>,
    pub(crate) result: Option<Result<Appended, AppendError>>,
    /// Last acknowledged sequence when it was handed over: its header proves that much.
    pub(crate) acknowledged: u64,
}

/// What the simulation knows of a partition besides the model.
pub(crate) struct Side {
    pub(crate) pending: VecDeque<Pending>,
    /// Batches whose write failed: stored or not.
    pub(crate) limbo: Vec<Arc<Batch>>,
    /// Everything up to here survives power cuts.
    pub(crate) durable: u64,
    /// Headers in the log prove that everything up to here was durable.
    pub(crate) proven: u64,
    /// Acknowledged sequences by time, for intervals of flushing.
    history: VecDeque<(u64, u64)>,
    last_step_ns: u64,
    gap_ns_max: u64,
    timeout: Option<Option<u64>>,
    /// Writes failed: later answers may build on what was not stored.
    pub(crate) unsure: bool,
    /// Refused by recovery, with a reason that the damage explains.
    pub(crate) fenced: bool,
    /// Power failed since the last recovery of this partition.
    pub(crate) cut: bool,
}

pub(crate) struct Live {
    pub(crate) engine: Engine,
    pub(crate) stepper: Stepper,
}

/// See the module's description.
pub struct Sim {
    pub(crate) world: SimWorld,
    pub(crate) prng: SimPrng,
    pub(crate) profile: Profile,
    pub(crate) models: Vec<Partition>,
    pub(crate) sides: Vec<Side>,
    pub(crate) live: Option<Live>,
    pub(crate) boots: u64,
    pub(crate) damage: Option<Damage>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) figures: Figures,
    /// The file system was made small.
    pub(crate) full: bool,
    /// The last restart was a kill, not a power cut.
    pub(crate) killed: bool,
    /// Power was to fail in this boot.
    pub(crate) crash_planned: bool,
    /// The disk loses what the next recovery writes.
    pub(crate) lying: bool,
    /// What was under way when the end of the log was torn for it.
    pub(crate) torn: Vec<Arc<Batch>>,
    /// Damage that nothing can open: the run ends here.
    pub(crate) lost: bool,
    /// The damage of this run was taken back.
    pub(crate) mended: bool,
    /// Batches of before, to be handed over again.
    past: Vec<Arc<Batch>>,
    next_tag: u64,
    answers: u64,
    pub(crate) log: Option<Vec<String>>,
}

impl Sim {
    /// A run that has not begun.
    pub fn new(seed: u64, keep_trace: bool) -> Sim {
        let mut prng = SimPrng::new(seed ^ 0x5349_4d55_4c41_5445);
        let profile = Profile::draw(&mut prng);
        let world = SimWorld::new(seed);
        world.keep_trace(keep_trace);
        let window = profile.config.idempotency_window_events;
        let side = |_| Side {
            pending: VecDeque::new(),
            limbo: Vec::new(),
            durable: 0,
            proven: 0,
            history: VecDeque::new(),
            last_step_ns: 0,
            gap_ns_max: 0,
            timeout: None,
            unsure: false,
            fenced: false,
            cut: false,
        };
        Sim {
            boots: world.boots(),
            models: (0..profile.partitions)
                .map(|_| Partition::new(window))
                .collect(),
            sides: (0..profile.partitions).map(side).collect(),
            world,
            prng,
            profile,
            live: None,
            damage: None,
            inbox: Arc::new(Inbox::default()),
            figures: Figures::default(),
            full: false,
            killed: false,
            crash_planned: false,
            lying: false,
            torn: Vec::new(),
            lost: false,
            mended: false,
            past: Vec::new(),
            next_tag: 0,
            answers: 0,
            log: keep_trace.then(Vec::new),
        }
    }

    /// What the seed decided.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The actions, and what the simulated machine did in between, if the trace is kept.
    pub fn trace(&self) -> Vec<String> {
        self.log.clone().unwrap_or_default()
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let trace = self.world.trace();
            log.extend(trace.into_iter().map(|line| format!("    {line}")));
            log.push(text());
            self.world.keep_trace(false);
            self.world.keep_trace(true);
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn run(&mut self) -> Result<Figures, Violation> {
        let options = CreateOptions {
            partition_count: self.profile.partitions,
            segment_bytes: SEGMENT_BYTES,
            ..CreateOptions::default()
        };
        if let Err(error) = create_database(&self.world.world(), &options) {
            return violation(format!("a healthy machine cannot make a database: {error}"));
        }
        self.reopen()?;
        for number in 0..self.profile.actions {
            let action = self.profile.action(&mut self.prng);
            self.note(|| format!("action {number}: {action:?}"));
            self.act(action)?;
            self.after()?;
            if self.lost {
                break;
            }
        }
        if !self.lost {
            self.finish()?;
        }
        self.figures.events = self.models.iter().map(Partition::last).sum();
        self.figures.trace_hash = self.world.trace_hash() ^ self.answers;
        Ok(self.figures)
    }

    pub(crate) fn draw(&mut self, below: u64) -> u64 {
        self.prng.below(below)
    }

    fn draw_partition(&mut self) -> usize {
        let count = u64::from(self.profile.partitions);
        usize::try_from(self.draw(count)).expect("partitions are few")
    }

    fn act(&mut self, action: Action) -> Result<(), Violation> {
        match action {
            Action::Append => {
                for _ in 0..=self.draw(self.profile.burst) {
                    let batch = work::batch(&mut self.prng, &self.profile, &self.models);
                    self.submit(Arc::new(batch))?;
                }
            }
            Action::Retry => self.retry()?,
            Action::Step => {
                let partition = self.draw_partition();
                self.step(partition);
            }
            Action::Wait => {
                let partition = self.draw_partition();
                self.wait(partition);
            }
            Action::Maintain => {
                if let Some(live) = &mut self.live {
                    live.stepper.step_maintenance();
                }
            }
            Action::Read => self.check_random_read()?,
            Action::ReadStream => self.check_random_stream()?,
            Action::Trim => self.trim()?,
            Action::Backup => self.check_backup()?,
            Action::Jump => {
                let span = 1_u64 << self.draw(42);
                let by = i64::try_from(self.draw(span)).expect("below 2^42");
                self.world
                    .jump_utc_ns(if self.prng.coin() { by } else { -by });
            }
            Action::Crash => {
                self.world.crash();
            }
            Action::CrashSoon => {
                let passes = self.draw(40);
                self.crash_planned = true;
                self.world.fail_nth(None, passes, SimFault::Crash);
            }
            Action::Kill => self.kill(),
            Action::Restart => self.stop_cleanly()?,
            Action::Damage => self.inflict()?,
            Action::Space => {
                self.full = !self.full;
                self.world
                    .set_capacity(if self.full { 1 << 20 } else { 1 << 40 });
            }
        }
        Ok(())
    }

    /// Hands a batch to the engine.
    pub(crate) fn submit(&mut self, batch: Arc<Batch>) -> Result<(), Violation> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let partition = batch.partition as usize;
        let alone = batch.users.is_empty().then_some(batch.partition);
        let tag = self.next_tag;
        self.next_tag += 1;
        let sink = Arc::clone(&self.inbox) as Arc<dyn AppendSink>;
        let result = match &batch.trim {
            Some(plan) => match live.engine.submit_trim(plan, sink, tag) {
                Ok(()) => Ok(()),
                Err(truthdb_engine::TrimError::Append(error)) => Err(error),
                Err(error) => return violation(format!("a planned trim: {error}")),
            },
            None => match live.engine.prepare(alone, work::encode(&batch)) {
                Ok(prepared) => live
                    .engine
                    .append(prepared, sink, tag)
                    .map_err(|(error, _)| error),
                Err(AppendError::LimitExceeded { .. }) => return Ok(()),
                Err(error) => return violation(format!("a valid batch is refused: {error}")),
            },
        };
        match result {
            Ok(()) => {
                self.figures.submitted += 1;
                let acknowledged = self.models[partition].last();
                self.sides[partition].pending.push_back(Pending {
                    tag,
                    batch: Arc::clone(&batch),
                    result: None,
                    acknowledged,
                });
                if batch.trim.is_none() {
                    self.past.push(batch);
                }
                Ok(())
            }
            Err(AppendError::Overloaded { .. }) => Ok(()),
            Err(AppendError::Fenced { reason, .. }) => {
                if self.may_be_fenced(partition) {
                    return Ok(());
                }
                violation(format!("partition {partition} is fenced: {reason}"))
            }
            Err(AppendError::Stopped { reason, .. }) => {
                if self.sides[partition].fenced || self.may_be_stopped() {
                    return Ok(());
                }
                violation(format!("partition {partition} stopped: {reason}"))
            }
            Err(error) => violation(format!("refused at the door: {error}")),
        }
    }

    /// Whether a failed write or a lost machine explains a stopped writer.
    pub(crate) fn may_be_stopped(&self) -> bool {
        self.profile.class == Class::Errors || self.world.boots() != self.boots
    }

    /// Whether damage explains that a partition neither reads nor takes appends: it was not opened, or a read met it.
    pub(crate) fn may_be_fenced(&self, partition: usize) -> bool {
        let damaged = self.damage.as_ref().is_some_and(|d| d.concerns(partition));
        self.sides[partition].fenced || damaged || self.may_be_stopped()
    }

    fn retry(&mut self) -> Result<(), Violation> {
        if self.past.is_empty() {
            return Ok(());
        }
        // Mostly recent ones, which are still in the window or in flight.
        let back = 1 + self.draw(self.past.len().min(20) as u64);
        let index = self.past.len() - usize::try_from(back).expect("at most 20");
        let batch = Arc::clone(&self.past[index]);
        let changed = self.draw(6) == 0 && batch.users.len() > 1;
        if !changed {
            return self.submit(batch);
        }
        // Some ids of before with others: never the same batch.
        let keep = batch.users.len() - 1;
        let part = Batch {
            partition: batch.partition,
            users: batch.users.iter().rev().take(keep).cloned().collect(),
            system: None,
            expected: Vec::new(),
            condition: None,
            cursor: None,
            trim: None,
        };
        self.submit(Arc::new(part))
    }

    pub(crate) fn step(&mut self, partition: usize) {
        let now = self.world.now_ns();
        let side = &mut self.sides[partition];
        let gap = now.saturating_sub(side.last_step_ns);
        side.gap_ns_max = side.gap_ns_max.max(gap);
        side.last_step_ns = now;
        if let Some(live) = &mut self.live {
            side.timeout = live.stepper.step_writer(partition);
        }
    }

    pub(crate) fn wait(&mut self, partition: usize) {
        let longest = 1 + self.draw(60_000_000);
        let timeout = self.sides[partition].timeout.flatten();
        if let Some(live) = &mut self.live {
            let timeout = timeout.map_or(longest, |timeout| timeout.min(longest));
            live.stepper.wait_writer(partition, Some(timeout));
        }
    }

    fn trim(&mut self) -> Result<(), Violation> {
        let partition = self.draw_partition();
        let Some(live) = &self.live else {
            return Ok(());
        };
        let model = &self.models[partition];
        if self.sides[partition].fenced || model.last() == 0 {
            return Ok(());
        }
        let number = u32::try_from(partition).expect("partitions are few");
        let sequence = model.first_sequence
            + self
                .prng
                .below(model.last() - model.first_sequence.min(model.last()) + 1);
        let before = match self.prng.below(3) {
            0 => TrimTo::Time(model.get(sequence).timestamp_ns),
            1 => TrimTo::Bytes(self.prng.below(64 << 20)),
            _ => TrimTo::Sequence(sequence),
        };
        let plan = match live.engine.trim_plan(number, before) {
            Ok(plan) => plan,
            Err(error) if self.excuses_read(partition, &error) => return Ok(()),
            Err(error) => return violation(format!("no trim plan: {error}")),
        };
        if plan.segments.is_empty() {
            return Ok(());
        }
        let first = plan.first_sequence;
        let too_much = match before {
            TrimTo::Sequence(sequence) => first > sequence,
            TrimTo::Time(time) => model.get(first - 1).timestamp_ns >= time,
            TrimTo::Bytes(_) => first > model.last() + 1,
        };
        if too_much {
            return violation(format!(
                "trim to {before:?} would remove all before {first}"
            ));
        }
        self.submit(Arc::new(work::trim(&plan)))
    }

    /// After each action: answers, watermarks, and a restart if the machine went down.
    pub(crate) fn after(&mut self) -> Result<(), Violation> {
        self.take_answers()?;
        if self.world.boots() != self.boots {
            return self.reopen();
        }
        self.check_watermarks()?;
        self.note_durable();
        let stopped = self.is_stopped();
        // An operator restarts what has stopped.
        if stopped && self.draw(8) == 0 {
            self.kill();
            return self.reopen();
        }
        Ok(())
    }

    /// The process dies. What was planned for later is dropped, lest power fails meanwhile.
    pub(crate) fn kill(&mut self) {
        self.world.clear_planned();
        self.world.kill();
        // An operation may be under way during which power fails.
        self.killed = !self.crash_planned;
    }

    pub(crate) fn take_answers(&mut self) -> Result<(), Violation> {
        for (tag, result) in self.inbox.take() {
            let mark = match &result {
                Ok(appended) => appended.first_sequence,
                Err(_) => 0,
            };
            self.answers = (self.answers.rotate_left(5) ^ tag ^ (mark << 20))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if self.log.is_some() {
                self.note(|| format!("  answer {tag}: {result:?}"));
            }
            let mut sides = self.sides.iter_mut();
            let found = sides.find_map(|side| side.pending.iter_mut().find(|p| p.tag == tag));
            match found {
                Some(pending) if pending.result.is_none() => pending.result = Some(result),
                _ => return violation(format!("answer {tag} came twice or to nothing")),
            }
        }
        for partition in 0..self.sides.len() {
            self.settle(partition)?;
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        let Some(live) = &self.live else { return false };
        let status = live.engine.status();
        let mut states = status.partitions.iter().map(|partition| &partition.state);
        states.any(|state| matches!(state, PartitionState::Stopped { .. }))
    }

    fn note_durable(&mut self) {
        let Some(live) = &self.live else { return };
        let status = live.engine.status();
        let faults = &self.profile.faults;
        for (partition, side) in self.sides.iter_mut().enumerate() {
            let acknowledged = self.models[partition].last();
            match self.profile.config.durability {
                Durability::FlushEachGroup => side.durable = side.durable.max(acknowledged),
                Durability::Os => {}
                Durability::FlushInterval(interval) => {
                    if status.partitions[partition].state != PartitionState::Open {
                        continue;
                    }
                    let now = self.world.now_ns();
                    let interval = u64::try_from(interval.as_nanos()).expect("milliseconds");
                    let slowest = faults.latency_ns_max * faults.slow_factor;
                    let gap = side.gap_ns_max.max(now - side.last_step_ns);
                    let slack = 2 * interval + 4 * slowest + 6 * gap;
                    side.history.push_back((now, acknowledged));
                    while let Some((then, sequence)) = side.history.front() {
                        if then + slack >= now {
                            break;
                        }
                        side.durable = side.durable.max(*sequence);
                        side.history.pop_front();
                    }
                }
            }
        }
    }

    /// Forgets what a restart of a partition makes void.
    pub(crate) fn forget_boot(&mut self, partition: usize) {
        let side = &mut self.sides[partition];
        side.pending.clear();
        side.limbo.clear();
        side.history.clear();
        side.last_step_ns = self.world.now_ns();
        side.timeout = None;
        side.cut = false;
        side.unsure = false;
    }

    fn check_watermarks(&mut self) -> Result<(), Violation> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        for (number, model) in (0u32..).zip(&self.models) {
            if self.sides[number as usize].fenced {
                continue;
            }
            let committed = live.engine.committed(number);
            if committed != model.last() {
                return violation(format!(
                    "partition {number} has committed {committed}, acknowledged is {}",
                    model.last()
                ));
            }
            let first = live.engine.first_sequence(number);
            if first != model.first_sequence {
                let asked = model.first_sequence;
                return violation(format!(
                    "partition {number} begins at {first}, trimmed was to {asked}"
                ));
            }
        }
        Ok(())
    }

    /// Steps everything until all that was handed over is answered.
    fn settle_all(&mut self) -> Result<(), Violation> {
        for _ in 0..SETTLE_STEPS {
            let answered = |side: &Side| side.fenced || side.pending.is_empty();
            if self.sides.iter().all(answered) || self.is_stopped() {
                return Ok(());
            }
            for partition in 0..self.sides.len() {
                self.step(partition);
                self.wait(partition);
            }
            if let Some(live) = &mut self.live {
                live.stepper.step_maintenance();
            }
            self.take_answers()?;
            if self.world.boots() != self.boots {
                return Ok(());
            }
        }
        violation("appends are not answered though nothing fails any more")
    }

    /// A clean stop, then a start.
    fn stop_cleanly(&mut self) -> Result<(), Violation> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        live.engine.begin_shutdown();
        for round in 0.. {
            if round == SETTLE_STEPS {
                return violation("a clean stop does not end");
            }
            let mut running = false;
            for partition in 0..self.sides.len() {
                self.step(partition);
                if self.sides[partition].timeout.is_some() {
                    running = true;
                    self.wait(partition);
                }
            }
            if let Some(live) = &mut self.live {
                live.stepper.step_maintenance();
            }
            self.take_answers()?;
            if self.world.boots() != self.boots {
                return Ok(());
            }
            if !running {
                break;
            }
        }
        self.check_watermarks()?;
        let stopped = self.is_stopped();
        for side in &mut self.sides {
            if !side.pending.is_empty() && !side.fenced {
                return violation("a clean stop left appends without an answer");
            }
        }
        for (side, model) in self.sides.iter_mut().zip(&self.models) {
            // A fenced partition flushes nothing: what it had before may have gone with the power.
            if !stopped && !side.fenced && self.profile.config.durability != Durability::Os {
                side.durable = model.last();
            }
        }
        if let Some(live) = self.live.take() {
            live.engine.end_shutdown();
        }
        self.kill();
        self.reopen()
    }

    /// Lets the machine be healthy again, answers everything, compares everything, crashes, compares again.
    fn finish(&mut self) -> Result<(), Violation> {
        self.heal();
        self.settle_all()?;
        self.after()?;
        self.check_all()?;
        if self.lost {
            return Ok(());
        }
        if self.draw(3) == 0 {
            self.stop_cleanly()?;
        } else if self.prng.coin() {
            self.kill();
        } else {
            self.world.crash();
        }
        self.after()?;
        self.check_all()?;
        self.live = None;
        Ok(())
    }

    /// No more faults from now on.
    pub(crate) fn heal(&mut self) {
        self.world.clear_planned();
        self.world.set_capacity(1 << 40);
        self.full = false;
        self.profile.faults = SimFaults {
            latency_ns_max: self.profile.faults.latency_ns_max,
            ..SimFaults::default()
        };
        self.world.set_faults(self.profile.faults.clone());
    }

    /// Loses the next writes, as a disk that lies.
    pub(crate) fn lose_writes(&mut self, count: u64) {
        for _ in 0..count {
            self.world.fail_nth(Some(SimOp::Write), 0, SimFault::Lost);
        }
    }

    /// Whether a read may fail so.
    pub(crate) fn excuses_read(&self, partition: usize, error: &ReadError) -> bool {
        let lost = self.world.boots() != self.boots;
        let errors = self.profile.class == Class::Errors;
        let damaged = self.damage.as_ref().is_some_and(|d| d.concerns(partition));
        let fenced = matches!(error, ReadError::Fenced { .. }) && self.may_be_fenced(partition);
        let of_disk = matches!(
            error,
            ReadError::Log { .. }
                | ReadError::Index { .. }
                | ReadError::Heads { .. }
                | ReadError::Rebuild { .. }
                | ReadError::Missing { .. }
        );
        fenced || of_disk && (lost || errors || damaged)
    }
}
