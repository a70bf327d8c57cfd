//! The face of the crate: what the server, the command line and the simulator hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use truthdb_engine::Engine;
use truthdb_io::World;

use crate::answer::*;
use crate::command::{Command, Order, Outcome, Reply};
use crate::config::{ComputeConfig, STACK_BYTES_MIN};
use crate::control::{hex, unhex};
use crate::error::ComputeError;
use crate::fold::Fold;
use crate::guest::{Inspected, Runtime};
use crate::programs::Programs;
use crate::read::Reads;
use crate::request::*;
use crate::shared::PartitionShared;
use crate::token::Token;

/// How often deadlines of running queries are looked at.
const TICK: Duration = Duration::from_millis(10);
/// The longest that a command waits for the fold to take it up and for its event to be committed.
const COMMAND_WAIT: Duration = Duration::from_secs(60);
/// How long a waiting command sleeps before it looks at the other partitions again.
const COPY_WAIT: Duration = Duration::from_millis(5);

/// State, modules and queries of an open database. Cloning is cheap; the last clone does not stop
/// the folds: call [`Compute::shutdown`], before the engine's.
///
/// All methods are synchronous and may be called from any thread; those that run guests do it on a
/// thread of their own with enough stack, and wait for it.
#[derive(Clone)]
pub struct Compute {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) config: Arc<ComputeConfig>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) programs: Arc<Programs>,
    pub(crate) partitions: Vec<Arc<PartitionShared>>,
    pub(crate) reads: Arc<Reads>,
    ticker: Arc<Ticker>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// Calls the runtime's tick while queries run.
#[derive(Default)]
struct Ticker {
    /// Running queries, and whether to stop.
    state: Mutex<(u32, bool)>,
    changed: Condvar,
}

impl Ticker {
    fn run(&self, runtime: &dyn Runtime) {
        let mut state = self.state.lock();
        while !state.1 {
            if state.0 == 0 {
                self.changed.wait(&mut state);
            } else {
                self.changed.wait_for(&mut state, TICK);
                runtime.tick();
            }
        }
    }

    fn begin(&self) -> TickGuard<'_> {
        self.state.lock().0 += 1;
        self.changed.notify_all();
        TickGuard(self)
    }

    fn stop(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }
}

struct TickGuard<'a>(&'a Ticker);

impl Drop for TickGuard<'_> {
    fn drop(&mut self) {
        self.0.state.lock().0 -= 1;
    }
}

/// The folds of a database that somebody else drives: a simulator, or a test.
pub struct ComputeStepper {
    folds: Vec<Fold>,
}

impl ComputeStepper {
    /// Lets the fold of a partition do a piece of what it can. `None`: there is more to do at once.
    /// Else how long to wait at most before the next step, nanoseconds; `Some(None)`: until
    /// something is committed or asked for.
    pub fn step(&mut self, partition: usize) -> Option<Option<u64>> {
        self.folds[partition].step()
    }
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compute")
            .field("partitions", &self.inner.partitions.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ComputeStepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComputeStepper")
            .field("folds", &self.folds.len())
            .finish_non_exhaustive()
    }
}

impl Compute {
    /// Opens state beside an engine and starts a fold for each partition.
    ///
    /// Call it before the engine is given any append: a validator that is active must not miss one.
    /// Appends are refused as retryable until each partition's validators have their state.
    ///
    /// # Errors
    /// If a thread cannot be started. Damaged derived files are no error: they are made again.
    pub fn open(
        engine: &Engine,
        world: &World,
        runtime: Arc<dyn Runtime>,
        config: ComputeConfig,
    ) -> Result<Compute, ComputeError> {
        let (compute, stepper) = Compute::open_with(engine, world, runtime, config, true)?;
        let inner = &compute.inner;
        let mut threads = Vec::new();
        let folds = inner.config.compute || inner.config.query;
        if folds {
            for fold in stepper.folds {
                let name = format!("fold-{}", fold.partition);
                threads.push(inner.spawn(&name, move || fold.run())?);
            }
            let programs = Arc::clone(&inner.programs);
            threads.push(inner.spawn("programs", move || programs.run())?);
        }
        let (ticker, runtime) = (Arc::clone(&inner.ticker), Arc::clone(&inner.runtime));
        threads.push(inner.spawn("ticker", move || ticker.run(runtime.as_ref()))?);
        *inner.threads.lock() = threads;
        Ok(compute)
    }

    /// As [`Compute::open`], without threads: the folds are driven by the stepper, programs are made
    /// where they are needed, and queries never wait: what is not applied is
    /// [`ComputeError::NotYet`].
    ///
    /// # Errors
    /// As [`Compute::open`].
    pub fn open_stepped(
        engine: &Engine,
        world: &World,
        runtime: Arc<dyn Runtime>,
        config: ComputeConfig,
    ) -> Result<(Compute, ComputeStepper), ComputeError> {
        Compute::open_with(engine, world, runtime, config, false)
    }

    fn open_with(
        engine: &Engine,
        world: &World,
        runtime: Arc<dyn Runtime>,
        mut config: ComputeConfig,
        threaded: bool,
    ) -> Result<(Compute, ComputeStepper), ComputeError> {
        config.stack_bytes = config.stack_bytes.max(STACK_BYTES_MIN);
        // Who cannot append cannot take part in the life of modules.
        config.compute &= engine.config().ingest;
        let config = Arc::new(config);
        let programs = Arc::new(Programs::new(engine, world, Arc::clone(&runtime), threaded));
        let partitions: Vec<Arc<PartitionShared>> = (0..engine.partition_count())
            .map(|partition| Arc::new(PartitionShared::new(partition)))
            .collect();
        let reads = Reads::new(engine, world, &config, &programs, &partitions, threaded);
        let folds = (0..engine.partition_count())
            .map(|partition| Fold::new(engine, world, &config, partition, &programs, &partitions))
            .collect();
        for shared in &partitions {
            let woken = Arc::clone(shared);
            let hook = Box::new(move |_| woken.signal.wake());
            engine.on_commit(shared.partition, hook);
        }
        let woken = partitions.clone();
        programs.on_change(Box::new(move || {
            for shared in &woken {
                shared.signal.wake();
            }
        }));
        let inner = Inner {
            engine: engine.clone(),
            config,
            runtime,
            programs,
            partitions,
            reads: Arc::new(reads),
            ticker: Arc::new(Ticker::default()),
            threads: Mutex::new(Vec::new()),
        };
        let compute = Compute {
            inner: Arc::new(inner),
        };
        Ok((compute, ComputeStepper { folds }))
    }

    /// Stops the folds and waits for them. What they had not stored is made again at the next start.
    /// A second call does nothing.
    pub fn shutdown(&self) {
        for shared in &self.inner.partitions {
            shared.stopping.store(true, Ordering::Release);
            shared.signal.wake();
        }
        self.inner.programs.stop();
        self.inner.ticker.stop();
        for thread in std::mem::take(&mut *self.inner.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a thread of the fold panicked; the next start makes state again");
            }
        }
        for shared in &self.inner.partitions {
            for command in std::mem::take(&mut *shared.commands.lock()) {
                command.reply.complete(Err(ComputeError::Stopped {
                    partition: shared.partition,
                    reason: "the server is stopping".to_owned(),
                }));
            }
        }
    }

    /// What is known of module bytes: hash, manifest, and the component that would be published.
    /// Nothing is stored.
    ///
    /// # Errors
    /// [`ComputeError::Refused`] says which import, limit or rule.
    pub fn inspect(&self, wasm: &[u8]) -> Result<Inspected, ComputeError> {
        if wasm.len() > MODULE_BYTES_MAX {
            return Err(ComputeError::Refused {
                reason: format!(
                    "it has {} bytes, MODULE_BYTES_MAX is {MODULE_BYTES_MAX}",
                    wasm.len()
                ),
            });
        }
        let inspected = self.inner.on_stack(|| self.inner.runtime.inspect(wasm))?;
        let inspected = inspected.map_err(|reason| ComputeError::Refused { reason })?;
        if inspected.bytes.len() > MODULE_BYTES_MAX {
            return Err(ComputeError::Refused {
                reason: format!(
                    "the component has {} bytes, MODULE_BYTES_MAX is {MODULE_BYTES_MAX}",
                    inspected.bytes.len()
                ),
            });
        }
        Ok(inspected)
    }

    /// Publishes a module: its bytes go into the log of each partition. It does nothing before it is
    /// activated. Publishing the same bytes again appends nothing.
    ///
    /// # Errors
    /// [`ComputeError::Refused`], or why it could not be recorded; half a publication is none.
    pub fn publish(&self, wasm: &[u8]) -> Result<Published, ComputeError> {
        let inspected = self.inspect(wasm)?;
        match self.command(0, Order::Publish(inspected))? {
            Outcome::Published(mut published) => {
                self.await_copies(&mut published.token);
                Ok(published)
            }
            Outcome::Decided(_) => Err(unexpected()),
        }
    }

    /// Activates a published module in all partitions: the first time, or as an upgrade. The event
    /// in the first partition is the decision; the others copy it, also over a crash.
    ///
    /// # Errors
    /// [`ComputeError::Refused`] if the code cannot run with these limits, and why it could not be
    /// recorded. Nothing changes then.
    pub fn activate(&self, request: &ActivateRequest) -> Result<Decided, ComputeError> {
        self.check_runs(request)?;
        self.decide(Order::Activate(request.clone()))
    }

    /// Makes the program before the decision, so that what cannot run is refused and what takes long
    /// to make is ready.
    fn check_runs(&self, request: &ActivateRequest) -> Result<(), ComputeError> {
        let published = self.inner.partitions[0].catalogue();
        if !published.codes.contains_key(&request.hash) {
            return Err(ComputeError::NotPublished {
                hash: hex(&request.hash),
            });
        }
        let bytes = self.module_bytes(&request.hash)?;
        let load = || {
            self.inner
                .runtime
                .load(&bytes, &request.limits, request.wasi)
        };
        let loaded = self.inner.on_stack(load)?;
        loaded
            .map(|_| ())
            .map_err(|reason| ComputeError::Refused { reason })
    }

    /// Removes a module from all partitions. Its states of before can still be asked for.
    ///
    /// # Errors
    /// If there is no such module, a validator needs it, or it could not be recorded.
    pub fn remove(&self, module: &str) -> Result<Decided, ComputeError> {
        self.decide(Order::Remove {
            module: module.to_owned(),
        })
    }

    /// Halts a module where it is, in one partition or all, until [`Compute::resume`].
    ///
    /// # Errors
    /// If there is no such module, or it could not be recorded.
    pub fn halt(
        &self,
        module: &str,
        partition: Option<u32>,
        reason: &str,
    ) -> Result<Decided, ComputeError> {
        self.each(partition, || Order::Halt {
            module: module.to_owned(),
            reason: reason.to_owned(),
        })
    }

    /// Lets a halted module try again at the batch that it stopped at. With no partition: wherever
    /// it is halted.
    ///
    /// # Errors
    /// If it is not halted, or it could not be recorded.
    pub fn resume(
        &self,
        module: &str,
        partition: Option<u32>,
        reason: &str,
    ) -> Result<Decided, ComputeError> {
        let order = || Order::Resume {
            module: module.to_owned(),
            reason: reason.to_owned(),
        };
        if partition.is_some() {
            return self.each(partition, order);
        }
        let mut decided: Option<Decided> = None;
        let mut refused = None;
        for partition in 0..self.inner.engine.partition_count() {
            match self.each(Some(partition), order) {
                Ok(one) => {
                    let all = decided.get_or_insert_with(|| one.clone());
                    one.token.entries().for_each(|(p, s)| all.token.set(p, s));
                }
                Err(error) => refused = Some(error),
            }
        }
        match (decided, refused) {
            (Some(decided), _) => Ok(decided),
            (None, Some(error)) => Err(error),
            (None, None) => Err(unexpected()),
        }
    }

    /// Records that a halted module is not given some events, which lets it go on.
    ///
    /// # Errors
    /// If it is not halted there, or has applied the events already, or it could not be recorded.
    pub fn skip(&self, request: &SkipRequest) -> Result<Decided, ComputeError> {
        self.each(Some(request.partition), || Order::Skip(request.clone()))
    }

    /// Asks for a snapshot in one partition or all. The token says where; each is written in the
    /// background once the fold has passed that place.
    ///
    /// # Errors
    /// If its place could not be recorded.
    pub fn snapshot_now(&self, partition: Option<u32>) -> Result<Token, ComputeError> {
        Ok(self.each(partition, || Order::Snapshot)?.token)
    }

    /// Removes the snapshots that a policy does not keep, in one partition or all.
    ///
    /// # Errors
    /// If a file cannot be removed; some may be gone.
    pub fn prune_snapshots(
        &self,
        partition: Option<u32>,
        policy: truthdb_state::PrunePolicy,
    ) -> Result<(), ComputeError> {
        self.each(partition, || Order::Prune(policy)).map(|_| ())
    }

    /// Hands a command to the fold of a partition without waiting, for whoever drives the folds.
    #[doc(hidden)]
    pub fn submit_publish(&self, inspected: Inspected) -> Arc<Reply> {
        self.submit(0, Order::Publish(inspected))
    }

    /// As [`Compute::activate`], without waiting and without making the program before.
    #[doc(hidden)]
    pub fn submit_activate(&self, request: ActivateRequest) -> Arc<Reply> {
        self.submit(0, Order::Activate(request))
    }

    /// As [`Compute::remove`], without waiting.
    #[doc(hidden)]
    pub fn submit_remove(&self, module: &str) -> Arc<Reply> {
        let module = module.to_owned();
        self.submit(0, Order::Remove { module })
    }

    /// As [`Compute::skip`], without waiting.
    #[doc(hidden)]
    pub fn submit_skip(&self, request: SkipRequest) -> Arc<Reply> {
        self.submit(request.partition, Order::Skip(request))
    }

    /// As [`Compute::resume`] in one partition, without waiting.
    #[doc(hidden)]
    pub fn submit_resume(&self, module: &str, partition: u32) -> Arc<Reply> {
        let (module, reason) = (module.to_owned(), String::new());
        self.submit(partition, Order::Resume { module, reason })
    }

    /// As [`Compute::halt`] in one partition, without waiting.
    #[doc(hidden)]
    pub fn submit_halt(&self, module: &str, partition: u32) -> Arc<Reply> {
        let (module, reason) = (module.to_owned(), String::new());
        self.submit(partition, Order::Halt { module, reason })
    }

    /// As [`Compute::snapshot_now`] in one partition, without waiting.
    #[doc(hidden)]
    pub fn submit_snapshot(&self, partition: u32) -> Arc<Reply> {
        self.submit(partition, Order::Snapshot)
    }

    fn submit(&self, partition: u32, order: Order) -> Arc<Reply> {
        let reply = Arc::new(Reply::default());
        let shared = &self.inner.partitions[partition as usize];
        if shared.is_stopping() {
            reply.complete(Err(ComputeError::Stopped {
                partition,
                reason: "the server is stopping".to_owned(),
            }));
            return reply;
        }
        shared.commands.lock().push_back(Command {
            order,
            reply: Arc::clone(&reply),
        });
        shared.signal.wake();
        reply
    }

    fn command(&self, partition: u32, order: Order) -> Result<Outcome, ComputeError> {
        if !self.inner.config.compute {
            return Err(ComputeError::Role { role: "compute" });
        }
        let count = self.inner.engine.partition_count();
        if partition >= count {
            return Err(ComputeError::NoSuchPartition { partition, count });
        }
        let reply = self.submit(partition, order);
        reply.wait(COMMAND_WAIT).unwrap_or_else(|| {
            Err(ComputeError::Stopped {
                partition,
                reason:
                    "it did not take the command up in time; the status says what it waits for, \
                         and the command may still be carried out"
                        .to_owned(),
            })
        })
    }

    fn decide(&self, order: Order) -> Result<Decided, ComputeError> {
        match self.command(0, order)? {
            Outcome::Decided(mut decided) => {
                self.await_copies(&mut decided.token);
                Ok(decided)
            }
            Outcome::Published(_) => Err(unexpected()),
        }
    }

    fn each(
        &self,
        partition: Option<u32>,
        order: impl Fn() -> Order,
    ) -> Result<Decided, ComputeError> {
        let partitions = match partition {
            Some(partition) => partition..partition.saturating_add(1),
            None => 0..self.inner.engine.partition_count(),
        };
        let mut all: Option<Decided> = None;
        for partition in partitions {
            match self.command(partition, order())? {
                Outcome::Decided(one) => {
                    let all = all.get_or_insert_with(|| one.clone());
                    one.token.entries().for_each(|(p, s)| all.token.set(p, s));
                }
                Outcome::Published(_) => return Err(unexpected()),
            }
        }
        all.ok_or_else(unexpected)
    }

    /// Waits a while for the other partitions' copies of the decision in the first one.
    fn await_copies(&self, token: &mut Token) {
        let Some(decided) = token.get(0) else { return };
        let first = &self.inner.partitions[0];
        let started = self.inner.reads.world.clock.monotonic_ns();
        let wait = u64::try_from(self.inner.config.decision_wait.as_nanos()).unwrap_or(u64::MAX);
        for shared in &self.inner.partitions {
            loop {
                let copied = shared.controlled() > 0 || decided == 0;
                let same = shared.catalogue().decisions.len() >= first.catalogue().decisions.len();
                let known = first.controlled() >= decided;
                if known && copied && same {
                    if shared.partition != 0 {
                        token.set(shared.partition, shared.controlled());
                    }
                    break;
                }
                let now = self.inner.reads.world.clock.monotonic_ns();
                if now.saturating_sub(started) > wait {
                    break;
                }
                shared.wait_controlled(u64::MAX, COPY_WAIT);
            }
        }
    }

    /// The bytes of a published module.
    ///
    /// # Errors
    /// [`ComputeError::NotPublished`], or why they cannot be read.
    pub fn module_bytes(&self, hash: &ModuleHash) -> Result<Bytes, ComputeError> {
        let inner = &self.inner;
        let known = |p: &&Arc<PartitionShared>| p.catalogue().codes.contains_key(hash);
        let partition = inner.partitions.iter().find(known);
        let partition = partition.ok_or_else(|| ComputeError::NotPublished { hash: hex(hash) })?;
        inner
            .programs
            .bytes(partition.partition, hash)
            .map_err(|reason| ComputeError::Invalid { reason })
    }

    /// A published module's hash from its hexadecimal, or from as many of its first digits as make
    /// it unique.
    ///
    /// # Errors
    /// If there is none, or several.
    pub fn find_published(&self, prefix: &str) -> Result<ModuleHash, ComputeError> {
        if let Some(hash) = unhex(prefix) {
            return Ok(hash);
        }
        let catalogue = self.inner.partitions[0].catalogue();
        let prefix_lower = prefix.to_ascii_lowercase();
        let mut found = catalogue
            .codes
            .keys()
            .filter(|hash| !prefix.is_empty() && hex(*hash).starts_with(&prefix_lower));
        match (found.next(), found.next()) {
            (Some(hash), None) => Ok(*hash),
            (None, _) => Err(ComputeError::NotPublished {
                hash: prefix.to_owned(),
            }),
            (Some(_), Some(_)) => Err(ComputeError::invalid(format!(
                "several published modules have a hash that begins with {prefix:?}; give more digits"
            ))),
        }
    }

    /// The value of a key, in the partitions that have it.
    ///
    /// # Errors
    /// See [`ComputeError`]; [`ComputeError::is_retryable`] says whether waiting helps.
    pub fn get(&self, request: &GetRequest) -> Result<RowsAnswer, ComputeError> {
        self.inner.guarded(request.options.at != At::Now, || {
            self.inner.reads.get(request)
        })
    }

    /// A page of a range of keys.
    ///
    /// # Errors
    /// See [`ComputeError`].
    pub fn scan(&self, request: &ScanRequest) -> Result<RowsAnswer, ComputeError> {
        let past = request.options.at != At::Now || request.page.is_some();
        self.inner.guarded(past, || self.inner.reads.scan(request))
    }

    /// The answer of a query operator.
    ///
    /// # Errors
    /// See [`ComputeError`].
    pub fn query(&self, request: &QueryRequest) -> Result<QueryAnswer, ComputeError> {
        self.inner.guarded(true, || {
            let _ticks = self.inner.ticker.begin();
            self.inner.reads.query(request)
        })
    }

    /// State of everything.
    pub fn status(&self) -> ComputeStatus {
        crate::status::status(&self.inner)
    }

    /// A module.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn module(&self, module: &str) -> Result<ModuleStatus, ComputeError> {
        let found = self
            .status()
            .modules
            .into_iter()
            .find(|m| m.module == module);
        found.ok_or_else(|| ComputeError::NoSuchModule {
            module: module.to_owned(),
        })
    }

    /// The snapshots of one partition or all, oldest first.
    ///
    /// # Errors
    /// If their folder cannot be read.
    pub fn snapshots(&self, partition: Option<u32>) -> Result<Vec<SnapshotInfo>, ComputeError> {
        let partitions = self.inner.reads.asked(partition, &ReadOptions::default())?;
        let mut snapshots = Vec::new();
        for partition in partitions {
            snapshots.extend(self.inner.reads.files.snapshots(partition)?);
        }
        Ok(snapshots)
    }

    /// Re-applies the log to a module, beside everything that runs.
    ///
    /// # Errors
    /// See [`ComputeError`]; [`ComputeError::Cancelled`] if the sink stopped it.
    pub fn replay(
        &self,
        request: &ReplayRequest,
        sink: &mut (dyn ReplaySink + Send),
    ) -> Result<Vec<ReplayedState>, ComputeError> {
        self.inner
            .guarded(true, || crate::replay::replay(&self.inner, request, sink))
    }

    /// Recomputes state from the log alone and compares it with everything that is recorded:
    /// checkpoints, snapshots, delta records, derived events, and the running folds.
    ///
    /// # Errors
    /// Why it could not be done. Differences are no error but in the report.
    pub fn verify(
        &self,
        request: &VerifyRequest,
        sink: &mut (dyn ReplaySink + Send),
    ) -> Result<VerifyReport, ComputeError> {
        self.inner
            .guarded(true, || crate::verify::verify(&self.inner, request, sink))
    }

    /// Replays two codes side by side and says which rows differ at the end, and after which batch
    /// they first did.
    ///
    /// # Errors
    /// See [`ComputeError`].
    pub fn compare(
        &self,
        request: &CompareRequest,
        sink: &mut (dyn ReplaySink + Send),
    ) -> Result<Vec<Comparison>, ComputeError> {
        self.inner
            .guarded(true, || crate::replay::compare(&self.inner, request, sink))
    }
}

fn unexpected() -> ComputeError {
    ComputeError::invalid("the fold answered another question than it was asked")
}

impl Inner {
    fn spawn(
        &self,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<std::thread::JoinHandle<()>, ComputeError> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(self.config.stack_bytes)
            .spawn(run)
            .map_err(|source| ComputeError::Thread {
                source: Arc::new(source),
            })
    }

    /// Runs something that may run guests on a thread with enough stack.
    fn on_stack<T: Send>(&self, run: impl FnOnce() -> T + Send) -> Result<T, ComputeError> {
        if !self.reads.threaded {
            return Ok(run());
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("guest".to_owned())
                .stack_size(self.config.stack_bytes)
                .spawn_scoped(scope, run)
                .map_err(|source| ComputeError::Thread {
                    source: Arc::new(source),
                })?;
            thread.join().map_err(|_| ComputeError::Guest {
                module: String::new(),
                reason: "the thread that ran it panicked".to_owned(),
            })
        })
    }

    /// As [`Inner::on_stack`], only if guests may be run.
    fn guarded<T: Send>(
        &self,
        guests: bool,
        run: impl FnOnce() -> Result<T, ComputeError> + Send,
    ) -> Result<T, ComputeError> {
        if guests { self.on_stack(run)? } else { run() }
    }
}
