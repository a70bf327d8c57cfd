//! What a module is made of. The macros write the implementations.

use crate::{Batch, Event, Fault, Rejection, store};

/// The version of the contract between module and host.
pub const ABI_VERSION: u32 = 1;

/// What a module does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Accepts or refuses events before they are appended.
    Validator,
    /// Folds events into tables.
    Reducer,
    /// A reducer that also emits derived events.
    Processor,
    /// Answers questions from tables of other modules.
    Query,
}

/// A table in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDecl {
    /// Its name, with `-` for each `_` of the field.
    pub name: String,
    /// Version of its encoding.
    pub version: u32,
    /// The module that owns it; empty for the module itself.
    pub module: String,
}

/// Events that a module wants: exact names, or prefixes with a final `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Pattern of the stream's name.
    pub stream: String,
    /// Pattern of the event's type.
    pub event_type: String,
}

/// What a module says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its name.
    pub name: String,
    /// Its version, for people.
    pub version: String,
    /// The contract it is built for.
    pub abi: u32,
    /// What it does.
    pub kind: Kind,
    /// Which events it wants, in the order of the handlers.
    pub subscriptions: Vec<Subscription>,
    /// Its tables, in the order of the declaration.
    pub tables: Vec<TableDecl>,
}

/// Any module.
pub trait Module {
    /// What it is.
    fn manifest() -> Manifest;
}

/// Reducers and processors.
pub trait Fold: Module {
    /// Calls the handler of each event of a committed batch.
    ///
    /// # Errors
    ///
    /// What a handler says: the module halts.
    fn process(batch: &Batch) -> Result<(), Fault>;

    /// Takes over the tables of older code.
    ///
    /// # Errors
    ///
    /// What the function says: the upgrade does not happen.
    fn migrate(previous: &Manifest) -> Result<(), Fault>;
}

/// Validators.
pub trait Validate: Module {
    /// Judges one event. Tables are as of the event before the batch.
    ///
    /// # Errors
    ///
    /// Why it must not be appended.
    fn judge(event: &Event<'_>) -> Result<(), Rejection>;
}

/// Query operators.
pub trait Query: Module {
    /// One step on one partition. `resume` is empty at first, then what the last answer said.
    ///
    /// # Errors
    ///
    /// Why the question cannot be answered, for who asked.
    fn run(at: Moment, arguments: &[u8], resume: &[u8]) -> Result<Answer, Fault>;

    /// The answer from the rows of all partitions, in the order of partitions.
    ///
    /// # Errors
    ///
    /// Why the question cannot be answered, for who asked.
    fn merge(arguments: &[u8], parts: Vec<Page>) -> Result<Page, Fault>;
}

/// The moment that a query looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Last event that the tables hold.
    pub sequence: u64,
    /// Its time, nanoseconds since 1970 UTC.
    pub time: u64,
}

/// Rows as columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Two offsets into `data` for each row: the end of the key, the end of the value.
    pub ends: Vec<u32>,
    /// Keys and values.
    pub data: Vec<u8>,
    /// Whether there are more.
    pub more: bool,
}

impl Page {
    /// Adds a row. The host takes at most 1 MiB of data in a page of more than one row.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        for part in [key, value] {
            self.data.extend_from_slice(part);
            self.ends
                .push(u32::try_from(self.data.len()).unwrap_or(u32::MAX));
        }
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut begin = 0;
        self.ends.chunks_exact(2).map(move |ends| {
            let (key_end, value_end) = (ends[0] as usize, ends[1] as usize);
            let row = (&self.data[begin..key_end], &self.data[key_end..value_end]);
            begin = value_end;
            row
        })
    }
}

/// One step of a query's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its rows.
    pub rows: Page,
    /// Given to the next step; at most 1 KiB. Empty at the end.
    pub resume: Vec<u8>,
}

impl Answer {
    /// An answer of one step.
    pub fn whole(rows: Page) -> Self {
        Self {
            rows,
            resume: Vec::new(),
        }
    }
}

/// Where a processor's derived events go.
#[derive(Debug)]
pub struct Emitter {
    source: u32,
}

impl Emitter {
    /// An emitter for the event at this index of its batch. The glue makes it.
    #[doc(hidden)]
    pub fn of(source: usize) -> Self {
        Self {
            source: u32::try_from(source).unwrap_or(u32::MAX),
        }
    }

    /// Emits an event, caused by the one that is handled. It is appended exactly once.
    pub fn emit(&mut self, stream: &str, event_type: &str, content_type: &str, payload: &[u8]) {
        store::emit(self.source, stream, event_type, content_type, payload);
    }
}

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every step.
    Trace,
    /// For the module's author.
    Debug,
    /// What happened.
    Info,
    /// What is odd.
    Warn,
    /// What is wrong.
    Error,
}

/// Writes a message for operators. It is no state, and is cut at a limit.
pub fn log(level: Level, message: &str) {
    store::log(level, message);
}
