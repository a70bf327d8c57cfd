//! The example modules once more, as native code: what stands beside WebAssembly in the tables. Both are
//! run by the same folds, on the same tables, and must give the same fingerprints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use truthdb_compute::{
    FoldTables, Guest, NativeCode, NativeRuntime, ReadTables, Runtime, WasmRuntime,
};
use truthdb_module::{
    Answer, EventColumns, Halt, InstanceContext, KeyRange, Manifest, Moment, Page, Processed,
    Rejection, StateRead as _, Verdict, Workload,
};

use crate::exit::{ExitClass, Failure};
use crate::server::compute::measured_host;

/// Rows that the operator looks at in one step, as the example does.
const STEP_ROWS: u32 = 1000;

/// Where the modules come from.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ModulesArg {
    /// Folder with the example modules as WebAssembly. They are made by `cargo build --profile guest
    /// --target wasm32-unknown-unknown --target-dir target/modules -p truthdb-example-balance -p
    /// truthdb-example-tally -p truthdb-example-covered -p truthdb-example-richest`.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "target/modules/wasm32-unknown-unknown/guest"
    )]
    modules: PathBuf,
}

/// How a module's code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// As a component.
    Wasm,
    /// Linked into this program.
    Native,
}

impl Code {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Code::Wasm => "WebAssembly",
            Code::Native => "native",
        }
    }
}

/// Both, in the order of the tables.
pub(super) const CODES: [Code; 2] = [Code::Wasm, Code::Native];

/// A module that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measured {
    /// A stateless fold.
    Tally,
    /// A get and a put for each event.
    Balance,
    /// A validator that reads a row for each event.
    Covered,
    /// An operator that looks at all rows.
    Richest,
}

impl Measured {
    fn name(self) -> &'static str {
        match self {
            Measured::Tally => "tally",
            Measured::Balance => "balance",
            Measured::Covered => "covered",
            Measured::Richest => "richest",
        }
    }

    /// What stands for the native module where bytes are published.
    fn stand_in(self) -> Vec<u8> {
        format!("native {}", self.name()).into_bytes()
    }
}

/// The modules in both forms.
pub(super) struct Modules {
    folder: PathBuf,
}

impl Modules {
    /// Looks for them.
    ///
    /// # Errors
    ///
    /// `usage`: there are none.
    pub(super) fn new(args: &ModulesArg) -> Result<Modules, Failure> {
        let modules = Modules {
            folder: args.modules.clone(),
        };
        modules.wasm(Measured::Balance)?;
        Ok(modules)
    }

    fn file(&self, module: Measured) -> PathBuf {
        self.folder
            .join(format!("truthdb_example_{}.wasm", module.name()))
    }

    fn wasm(&self, module: Measured) -> Result<Vec<u8>, Failure> {
        let file = self.file(module);
        std::fs::read(&file).map_err(|error| {
            Failure::environment(format!("cannot read the module {}", file.display()), error)
                .with_action(
                    "Build the example modules (see `truthdb bench reduce --help`), and name their folder \
                     with --modules.",
                )
        })
    }

    /// What is published for a module.
    ///
    /// # Errors
    ///
    /// Its file cannot be read.
    pub(super) fn bytes(&self, module: Measured, code: Code) -> Result<Vec<u8>, Failure> {
        match code {
            Code::Wasm => self.wasm(module),
            Code::Native => Ok(module.stand_in()),
        }
    }

    /// A runtime for these modules. Compiled code is kept below `cache`.
    ///
    /// # Errors
    ///
    /// The WebAssembly engine does not start, or a module is not what it should be.
    pub(super) fn runtime(&self, code: Code, cache: &Path) -> Result<Arc<dyn Runtime>, Failure> {
        let wasm = WasmRuntime::new(measured_host(cache)?);
        if code == Code::Wasm {
            return Ok(Arc::new(wasm));
        }
        let mut natives = NativeRuntime::default();
        for module in [
            Measured::Tally,
            Measured::Balance,
            Measured::Covered,
            Measured::Richest,
        ] {
            // The manifests are the modules' own, so that both forms read and write the same tables.
            let inspected = wasm.inspect(&self.wasm(module)?).map_err(|reason| {
                let file = self.file(module);
                Failure::new(ExitClass::Usage, format!("{}: {reason}", file.display()))
            })?;
            let native = Native {
                module,
                manifest: inspected.manifest,
            };
            natives = natives.with(&module.stand_in(), native);
        }
        Ok(Arc::new(natives.with(NOTHING, Nothing)))
    }
}

/// Stands for a module that wants no event: what a replay costs before any fold.
pub(super) const NOTHING: &[u8] = b"native nothing";

struct Nothing;

impl NativeCode for Nothing {
    fn manifest(&self) -> Manifest {
        Manifest {
            name: "nothing".to_owned(),
            version: "1".to_owned(),
            abi: truthdb_module::ABI_VERSION,
            kind: truthdb_module::ModuleKind::Reducer,
            subscriptions: vec![truthdb_module::Subscription {
                stream: "nothing".to_owned(),
                event_type: "nothing".to_owned(),
            }],
            tables: Vec::new(),
        }
    }

    fn guest(&self, _: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(NativeGuest(Measured::Tally)))
    }
}

struct Native {
    module: Measured,
    manifest: Manifest,
}

impl NativeCode for Native {
    fn manifest(&self) -> Manifest {
        self.manifest.clone()
    }

    fn guest(&self, _: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(NativeGuest(self.module)))
    }
}

struct NativeGuest(Measured);

impl Guest for NativeGuest {
    fn process(
        &mut self,
        mut tables: Box<FoldTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<FoldTables>, Result<Processed, Halt>) {
        let workload = match self.0 {
            Measured::Tally => Workload::Tally,
            _ => Workload::Balance { accounts: 0 },
        };
        let folded = workload.fold_natively(&mut *tables, batch);
        (
            tables,
            folded.map(|()| Processed::default()).map_err(Halt::from),
        )
    }

    fn validate(
        &mut self,
        mut tables: Box<ReadTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<ReadTables>, Result<Vec<Verdict>, Halt>) {
        let mut verdicts = Vec::with_capacity(batch.len());
        for index in 0..batch.len() {
            match judge(&mut tables, batch, index) {
                Ok(verdict) => verdicts.push(verdict),
                Err(halt) => return (tables, Err(halt)),
            }
        }
        (tables, Ok(verdicts))
    }

    fn run(
        &mut self,
        mut tables: Box<ReadTables>,
        _: &Moment,
        arguments: &[u8],
        resume: &[u8],
    ) -> (Box<ReadTables>, Result<Answer, Halt>) {
        let answer = step(&mut tables, count(arguments), resume);
        (tables, answer)
    }

    fn merge(&mut self, arguments: &[u8], parts: Vec<Page>) -> Result<Page, Halt> {
        let mut all = Vec::new();
        for part in &parts {
            all.extend(
                part.rows()
                    .map(|(name, value)| (name.to_vec(), balance(value))),
            );
        }
        Ok(best(all, count(arguments)))
    }
}

/// The key of an account's row.
pub(super) fn account_key(stream: &str) -> Vec<u8> {
    let mut key = stream.as_bytes().to_vec();
    key.extend_from_slice(&[0, 0]);
    key
}

/// The balance at the front of a row's value.
fn balance(value: &[u8]) -> i64 {
    value
        .first_chunk()
        .map_or(0, |bytes| i64::from_le_bytes(*bytes))
}

/// What the validator of the example says of an event.
fn judge(tables: &mut ReadTables, batch: &EventColumns, index: usize) -> Result<Verdict, Halt> {
    let amount =
        |payload: &[u8]| -> Option<u32> { std::str::from_utf8(payload).ok()?.parse().ok() };
    let reject = |code, message: String| Ok(Verdict::Reject(Rejection { code, message }));
    let Some(event) = batch.get(index) else {
        return Err(Halt::Gone);
    };
    let Some(asked) = amount(event.payload) else {
        return reject(1, "no amount".to_owned());
    };
    if event.event_type == "deposit" {
        return Ok(Verdict::Accept);
    }
    let mut held = tables
        .get(0, &account_key(event.stream))
        .map_err(Halt::from)?
        .map_or(0, |value| balance(&value));
    for earlier in (0..index).filter_map(|earlier| batch.get(earlier)) {
        if earlier.stream == event.stream {
            let moved = amount(earlier.payload).map_or(0, i64::from);
            held += if earlier.event_type == "deposit" {
                moved
            } else {
                -moved
            };
        }
    }
    if i64::from(asked) > held {
        return reject(2, format!("{} holds {held}, not {asked}", event.stream));
    }
    Ok(Verdict::Accept)
}

fn count(arguments: &[u8]) -> usize {
    std::str::from_utf8(arguments)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// One step of the operator of the example: the best of the next rows.
fn step(tables: &mut ReadTables, count: usize, resume: &[u8]) -> Result<Answer, Halt> {
    let mut start = Vec::new();
    if !resume.is_empty() {
        start.extend_from_slice(resume);
        start.extend_from_slice(&[0, 0, 0]);
    }
    let range = KeyRange { start, end: None };
    let page = tables
        .scan(0, &range, STEP_ROWS, false)
        .map_err(Halt::from)?;
    let mut rows = Vec::with_capacity(page.len());
    for (key, value) in page.rows() {
        let name = key.strip_suffix(&[0, 0]).unwrap_or(key);
        rows.push((name.to_vec(), balance(value)));
    }
    let more = page.more;
    let resume = rows.last().filter(|_| more).map(|(name, _)| name.clone());
    let mut rows = best(rows, count);
    rows.more = more;
    Ok(Answer {
        rows,
        resume: resume.unwrap_or_default(),
    })
}

fn best(mut accounts: Vec<(Vec<u8>, i64)>, count: usize) -> Page {
    accounts.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    accounts.truncate(count);
    let mut page = Page::default();
    for (name, balance) in accounts {
        page.push(&name, &balance.to_le_bytes());
    }
    page
}
