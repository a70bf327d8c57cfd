//! An instance of a module: the calls, and what comes back of each.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::{
    ComponentNamedList, ComponentType, Instance as Guest, Lift, Lower, TypedFunc,
};

use crate::imports::{Ctx, Slot, over};
use crate::wasi::Wasi;
use crate::{
    Answer, EventColumns, Halt, Manifest, Module, ModuleKind, Moment, PAGE_BYTES_MAX, Page,
    REASON_BYTES_MAX, RESUME_BYTES_MAX, StateRead, StateWrite, Verdict, WasiProfile,
};

/// How much a message matters, in the module's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
pub enum LogLevel {
    /// Every step.
    #[component(name = "trace")]
    Trace,
    /// For the module's author.
    #[component(name = "debug")]
    Debug,
    /// Standard output, under the deterministic profile of WASI.
    #[component(name = "info")]
    Info,
    /// Standard error, under the deterministic profile of WASI.
    #[component(name = "warn")]
    Warn,
    /// Something is wrong.
    #[component(name = "error")]
    Error,
}

/// A message of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: LogLevel,
    /// The text; cut where the call's allowance ended.
    pub message: String,
}

/// A derived event, as the module gave it. Names and lengths are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emit {
    /// Index in the batch of the event that caused it.
    pub source: u32,
    /// The stream it goes to. Never one of the database's own.
    pub stream: String,
    /// Its type.
    pub event_type: String,
    /// Content type of the payload; may be empty.
    pub content_type: String,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Emit {
    /// Bytes that count against the limit of a call.
    pub fn bytes(&self) -> usize {
        self.stream.len() + self.event_type.len() + self.content_type.len() + self.payload.len()
    }
}

/// What a successful call of `process` or `migrate` left behind, besides the writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processed {
    /// Derived events, in the order in which they were emitted. Empty after `migrate`.
    pub emits: Vec<Emit>,
    /// Messages, in order.
    pub logs: Vec<LogLine>,
    /// Bytes of messages over the limit, which are lost.
    pub log_bytes_dropped: u64,
    /// Fuel used. Equal on every machine.
    pub fuel: u64,
}

/// Where in its partition's log an instance is made. All of it comes from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceContext {
    /// Seed of random numbers, see [`module_seed`].
    pub seed: [u8; 32],
    /// Sequence of the last event before.
    pub sequence: u64,
    /// Its time, nanoseconds since 1970 UTC.
    pub time: u64,
}

/// The seed of a module's random numbers (deterministic profile of WASI): a function of what is the
/// same on every replay. Each call mixes the sequence of its first event in.
pub fn module_seed(database: &[u8], module_hash: &[u8; 32], partition: u32) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("truthdb module random seed 1");
    hasher.update(&(database.len() as u64).to_le_bytes());
    hasher.update(database);
    hasher.update(module_hash);
    hasher.update(&partition.to_le_bytes());
    *hasher.finalize().as_bytes()
}

type Batch = (Arc<EventColumns>,);
type Folded = (Result<(), String>,);
type Asked = (Moment, Vec<u8>, Vec<u8>);
type Merged = (Vec<u8>, Vec<Page>);

/// The exports of each world.
enum Calls {
    Validator {
        validate: TypedFunc<Batch, (Vec<Verdict>,)>,
    },
    Fold {
        process: TypedFunc<Batch, Folded>,
        migrate: TypedFunc<(Manifest,), Folded>,
    },
    Query {
        run: TypedFunc<Asked, (Result<Answer, String>,)>,
        merge: TypedFunc<Merged, (Result<Page, String>,)>,
    },
}

/// A guest with its memory. Not shared: one thread calls it, one call at a time.
pub struct Instance {
    module: Module,
    /// `None` after a fault.
    store: Option<Store<Ctx>>,
    calls: Calls,
    seed: [u8; 32],
    logs: Vec<crate::LogLine>,
    fuel_used: u64,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("module", &self.module.info().manifest.name)
            .field("is_gone", &self.store.is_none())
            .finish_non_exhaustive()
    }
}

impl Instance {
    pub(crate) fn new(module: &Module, context: &InstanceContext) -> Result<Self, Halt> {
        let limits = *module.limits();
        let wasi = match module.wasi() {
            WasiProfile::None => Wasi::none(),
            WasiProfile::Deterministic => Wasi::at(&context.seed, context.sequence, context.time),
        };
        let (mut store, guest) = start(module.pre(), Ctx::new(limits, wasi), limits.fuel_per_call)?;
        let calls = match module.info().manifest.kind {
            ModuleKind::Validator => Calls::Validator {
                validate: export(&mut store, &guest, "validate")?,
            },
            ModuleKind::Reducer | ModuleKind::Processor => Calls::Fold {
                process: export(&mut store, &guest, "process")?,
                migrate: export(&mut store, &guest, "migrate")?,
            },
            ModuleKind::Query => Calls::Query {
                run: export(&mut store, &guest, "run")?,
                merge: export(&mut store, &guest, "merge")?,
            },
        };
        let tables = module.info().manifest.tables.len();
        store.data_mut().tables = u32::try_from(tables).unwrap_or(u32::MAX);
        Ok(Self {
            module: module.clone(),
            store: Some(store),
            calls,
            seed: context.seed,
            logs: Vec::new(),
            fuel_used: 0,
        })
    }

    /// The module it is of.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Messages of the last call that stopped: often the guest's own words on why. Those of a
    /// successful call are in its result.
    pub fn take_logs(&mut self) -> Vec<LogLine> {
        std::mem::take(&mut self.logs)
    }

    /// Fuel that all its calls used, but for one that was stopped. Equal on every machine.
    pub fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    /// Folds one committed batch into `state`. On an error the caller rolls `state` back.
    ///
    /// The tables travel into the call and come back with the answer, whatever it is; the batch is
    /// shared for the time of the call, so that its memory can be used again.
    pub fn process<S: StateWrite>(
        &mut self,
        state: Box<S>,
        batch: &Arc<EventColumns>,
    ) -> (Box<S>, Result<Processed, Halt>) {
        let function = match &self.calls {
            Calls::Fold { process, .. } => *process,
            _ => return (state, Err(self.no_such_call("process"))),
        };
        let fuel = self.module.limits().fuel(batch.len());
        let (state, result) = self.call(
            "process",
            &function,
            (Arc::clone(batch),),
            Slot::Write(state),
            fuel,
            &Position::of(batch),
        );
        let result = result.and_then(|((answer,), fuel)| self.processed(answer, fuel));
        (back(state), result)
    }

    /// Lets this code take over tables that `previous` has filled. On an error the caller rolls
    /// `state` back.
    pub fn migrate<S: StateWrite>(
        &mut self,
        state: Box<S>,
        previous: &Manifest,
        at: &Moment,
    ) -> (Box<S>, Result<Processed, Halt>) {
        let function = match &self.calls {
            Calls::Fold { migrate, .. } => *migrate,
            _ => return (state, Err(self.no_such_call("migrate"))),
        };
        let fuel = self.module.limits().migrate_fuel();
        let (state, result) = self.call(
            "migrate",
            &function,
            (previous.clone(),),
            Slot::Write(state),
            fuel,
            &Position::at(at),
        );
        let result = result.and_then(|((answer,), fuel)| self.processed(answer, fuel));
        (back(state), result)
    }

    /// Judges the events of a batch before it is appended: one verdict for each.
    pub fn validate<S: StateRead>(
        &mut self,
        state: Box<S>,
        batch: &Arc<EventColumns>,
    ) -> (Box<S>, Result<Vec<Verdict>, Halt>) {
        let function = match &self.calls {
            Calls::Validator { validate } => *validate,
            _ => return (state, Err(self.no_such_call("validate"))),
        };
        let fuel = self.module.limits().fuel(batch.len());
        let (state, result) = self.call(
            "validate",
            &function,
            (Arc::clone(batch),),
            Slot::Read(state),
            fuel,
            &Position::of(batch),
        );
        let result = result.and_then(|((verdicts,), _)| self.verdicts(verdicts, batch.len()));
        (back(state), result)
    }

    /// One step of a query on one partition. `resume` is empty at first, then what the last step
    /// returned. [`Halt::Refused`] leaves the instance usable.
    pub fn run<S: StateRead>(
        &mut self,
        state: Box<S>,
        at: &Moment,
        arguments: &[u8],
        resume: &[u8],
    ) -> (Box<S>, Result<Answer, Halt>) {
        let function = match &self.calls {
            Calls::Query { run, .. } => *run,
            _ => return (state, Err(self.no_such_call("run"))),
        };
        let fuel = self.module.limits().fuel_per_query;
        let (state, result) = self.call(
            "run",
            &function,
            (*at, arguments.to_vec(), resume.to_vec()),
            Slot::Read(state),
            fuel,
            &Position::at(at),
        );
        let result = result.and_then(|((answer,), _)| {
            let answer = answer.map_err(refused)?;
            self.check_page("run", &answer.rows)?;
            self.check_resume(&answer)?;
            Ok(answer)
        });
        (back(state), result)
    }

    /// The answer from all rows of all partitions, in the order of partitions.
    /// [`Halt::Refused`] leaves the instance usable.
    ///
    /// # Errors
    ///
    /// Why the call stopped.
    pub fn merge(&mut self, arguments: &[u8], parts: Vec<Page>) -> Result<Page, Halt> {
        let function = match &self.calls {
            Calls::Query { merge, .. } => *merge,
            _ => return Err(self.no_such_call("merge")),
        };
        let fuel = self.module.limits().fuel_per_query;
        let parameters = (arguments.to_vec(), parts);
        let position = Position::default();
        let (_, result) = self.call("merge", &function, parameters, Slot::Empty, fuel, &position);
        let ((answer,), _) = result?;
        let page = answer.map_err(refused)?;
        self.check_page("merge", &page)?;
        Ok(page)
    }

    /// Makes one call. The tables come back whatever happens; on any error the guest is dropped.
    fn call<P, R>(
        &mut self,
        call: &'static str,
        function: &TypedFunc<P, R>,
        parameters: P,
        state: Slot,
        fuel: u64,
        position: &Position,
    ) -> (Slot, Result<(R, u64), Halt>)
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        self.logs.clear();
        let Some(mut store) = self.store.take() else {
            return (state, Err(Halt::Gone));
        };
        let ctx = store.data_mut();
        ctx.state = state;
        ctx.events = position.events;
        ctx.emits.clear();
        ctx.emit_bytes = 0;
        ctx.logs.clear();
        ctx.log_bytes = 0;
        ctx.log_bytes_dropped = 0;
        ctx.wasi.begin(&self.seed, position.sequence, position.time);
        let result = guarded(call, &mut store, fuel, |store| {
            let answer = function.call(&mut *store, parameters)?;
            Ok((answer, fuel - store.get_fuel()?))
        });
        let ctx = store.data_mut();
        ctx.flush_wasi();
        let state = std::mem::take(&mut ctx.state);
        match &result {
            Ok((_, used)) => {
                self.fuel_used = self.fuel_used.saturating_add(*used);
                self.store = Some(store);
            }
            Err(_) => self.logs = std::mem::take(&mut ctx.logs),
        }
        (state, result)
    }

    fn processed(&mut self, answer: Result<(), String>, fuel: u64) -> Result<Processed, Halt> {
        let ctx = self.store.as_mut().ok_or(Halt::Gone)?.data_mut();
        if let Err(reason) = answer {
            self.logs = std::mem::take(&mut ctx.logs);
            self.store = None;
            return Err(refused(reason));
        }
        Ok(Processed {
            emits: std::mem::take(&mut ctx.emits),
            logs: std::mem::take(&mut ctx.logs),
            log_bytes_dropped: ctx.log_bytes_dropped,
            fuel,
        })
    }

    fn verdicts(
        &mut self,
        mut verdicts: Vec<Verdict>,
        events: usize,
    ) -> Result<Vec<Verdict>, Halt> {
        if verdicts.len() != events {
            let reason = format!("{} verdicts for {events} events", verdicts.len());
            return Err(self.broken("validate", reason));
        }
        for verdict in &mut verdicts {
            if let Verdict::Reject(rejection) = verdict {
                cut(&mut rejection.message);
            }
        }
        Ok(verdicts)
    }

    fn check_page(&mut self, call: &'static str, page: &Page) -> Result<(), Halt> {
        if !page.is_well_formed() {
            let reason = "the offsets of the page are not those of whole rows".to_owned();
            return Err(self.broken(call, reason));
        }
        if page.data.len() > PAGE_BYTES_MAX && page.len() > 1 {
            self.store = None;
            return Err(over(
                "PAGE_BYTES_MAX",
                PAGE_BYTES_MAX as u64,
                page.data.len() as u64,
            ));
        }
        Ok(())
    }

    fn check_resume(&mut self, answer: &Answer) -> Result<(), Halt> {
        let bytes = answer.resume.len();
        if bytes > RESUME_BYTES_MAX {
            self.store = None;
            return Err(over(
                "RESUME_BYTES_MAX",
                RESUME_BYTES_MAX as u64,
                bytes as u64,
            ));
        }
        if answer.rows.more && bytes == 0 {
            let reason = "it wants to go on and gives nothing to resume with".to_owned();
            return Err(self.broken("run", reason));
        }
        Ok(())
    }

    /// Drops the guest for an answer that breaks the contract.
    fn broken(&mut self, call: &'static str, reason: String) -> Halt {
        self.store = None;
        Halt::BadAnswer { call, reason }
    }

    fn no_such_call(&self, call: &'static str) -> Halt {
        Halt::NoSuchCall {
            call,
            kind: self.module.info().manifest.kind,
        }
    }
}

/// Where a call stands in the log.
#[derive(Default)]
struct Position {
    events: u32,
    sequence: u64,
    time: u64,
}

impl Position {
    /// Of a batch: its first sequence, the time of its last event.
    fn of(batch: &EventColumns) -> Self {
        Self {
            events: u32::try_from(batch.len()).unwrap_or(u32::MAX),
            sequence: batch.sequences.first().copied().unwrap_or_default(),
            time: batch.times.last().copied().unwrap_or_default(),
        }
    }

    fn at(moment: &Moment) -> Self {
        Self {
            events: 0,
            sequence: moment.sequence,
            time: moment.time,
        }
    }
}

/// Makes a store and the guest in it.
pub(crate) fn start(
    pre: &wasmtime::component::InstancePre<Ctx>,
    ctx: Ctx,
    fuel: u64,
) -> Result<(Store<Ctx>, Guest), Halt> {
    let mut store = Store::new(pre.engine(), ctx);
    store.limiter(|ctx| ctx);
    let guest = guarded("start", &mut store, fuel, |store| pre.instantiate(store))?;
    Ok((store, guest))
}

/// Runs guest code with so much fuel, and names what stopped it. After an error the store must be
/// dropped: code of the host that panics within the guest's call leaves the guest half done.
pub(crate) fn guarded<R>(
    call: &'static str,
    store: &mut Store<Ctx>,
    fuel: u64,
    run: impl FnOnce(&mut Store<Ctx>) -> wasmtime::Result<R>,
) -> Result<R, Halt> {
    let query_ticks = store.data().limits.query_ticks;
    store.set_epoch_deadline(query_ticks);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        store.set_fuel(fuel)?;
        run(store)
    }));
    match outcome {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Halt::of(&error, call, fuel, query_ticks)),
        Err(panic) => Err(Halt::HostPanic {
            call,
            message: panic_text(&*panic),
        }),
    }
}

/// A function that the guest exports, with its type checked.
pub(crate) fn export<P, R>(
    store: &mut Store<Ctx>,
    guest: &Guest,
    call: &'static str,
) -> Result<TypedFunc<P, R>, Halt>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    guest
        .get_typed_func(&mut *store, call)
        .map_err(|error| Halt::BadAnswer {
            call,
            reason: format!("{error:#}"),
        })
}

/// The concrete tables again, out of the slot they went in with.
fn back<S: StateRead>(slot: Slot) -> Box<S> {
    let any: Box<dyn Any> = match slot {
        Slot::Read(state) => state,
        Slot::Write(state) => state,
        Slot::Empty => unreachable!("nothing takes the tables out of a call"),
    };
    any.downcast()
        .unwrap_or_else(|_| unreachable!("the tables are those that went in"))
}

fn refused(mut reason: String) -> Halt {
    cut(&mut reason);
    Halt::Refused { reason }
}

/// Cuts a guest's text at [`REASON_BYTES_MAX`].
fn cut(text: &mut String) {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}
