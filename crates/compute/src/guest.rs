//! What the fold asks of a runtime for modules: narrow enough that a native test double fits.
//!
//! [`WasmRuntime`] is the product's. The simulator and the tests bring their own, with guests that
//! are fast, or impure on purpose.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use truthdb_module::{
    Answer, EventColumns, Halt, Host, Instance, InstanceContext, Limits, Manifest, Module, Moment,
    Page, Processed, Verdict, WasiProfile,
};

use crate::request::ModuleHash;
use crate::tables::{FoldTables, ReadTables};

/// What is known of a module's bytes before anything runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The component that is published: the bytes that were given, or made of them.
    pub bytes: Bytes,
    /// BLAKE3 of `bytes`.
    pub hash: ModuleHash,
    /// What the module says about itself.
    pub manifest: Manifest,
}

/// Turns module bytes into programs. All methods may be called from any thread.
pub trait Runtime: Send + Sync + 'static {
    /// Checks bytes and reads their manifest.
    ///
    /// # Errors
    /// Why they are no module, in words for the person who publishes.
    fn inspect(&self, wasm: &[u8]) -> Result<Inspected, String>;

    /// Makes a program. May take long, unless it was made before.
    ///
    /// # Errors
    /// Why these bytes cannot run with these limits, in words.
    fn load(
        &self,
        wasm: &[u8],
        limits: &Limits,
        wasi: WasiProfile,
    ) -> Result<Arc<dyn Program>, String>;

    /// What a result depends on besides module and log: engine, flags, cost table, limits, ABI.
    fn semantics_id(&self, limits: &Limits) -> [u8; 32];

    /// Called at a steady pace while queries run: what their deadlines are counted in.
    fn tick(&self) {}
}

/// Code that is ready to run.
pub trait Program: Send + Sync {
    /// What the module says about itself.
    fn manifest(&self) -> &Manifest;

    /// A guest with fresh memory.
    ///
    /// # Errors
    /// Why it cannot be made.
    fn instantiate(&self, context: &InstanceContext) -> Result<Box<dyn Guest>, Halt>;
}

/// A guest with its memory. After an error it must not be called again. Guests of one kind are asked
/// only for what that kind does; the rest may stay as it is here.
pub trait Guest: Send {
    /// Folds a batch into tables. On an error the caller rolls them back.
    fn process(
        &mut self,
        tables: Box<FoldTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<FoldTables>, Result<Processed, Halt>) {
        let _ = batch;
        (tables, Err(Halt::Gone))
    }

    /// Takes over tables that other code has filled. On an error the caller rolls them back.
    fn migrate(
        &mut self,
        tables: Box<FoldTables>,
        previous: &Manifest,
        at: &Moment,
    ) -> (Box<FoldTables>, Result<Processed, Halt>) {
        let _ = (previous, at);
        (tables, Ok(Processed::default()))
    }

    /// Judges events before their append.
    fn validate(
        &mut self,
        tables: Box<ReadTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<ReadTables>, Result<Vec<Verdict>, Halt>) {
        let _ = batch;
        (tables, Err(Halt::Gone))
    }

    /// One step of a query in one partition.
    fn run(
        &mut self,
        tables: Box<ReadTables>,
        at: &Moment,
        arguments: &[u8],
        resume: &[u8],
    ) -> (Box<ReadTables>, Result<Answer, Halt>) {
        let _ = (at, arguments, resume);
        (tables, Err(Halt::Gone))
    }

    /// One page from those of all partitions.
    ///
    /// # Errors
    /// Why the call stopped.
    fn merge(&mut self, arguments: &[u8], parts: Vec<Page>) -> Result<Page, Halt> {
        let _ = (arguments, parts);
        Err(Halt::Gone)
    }

    /// Fuel that all its calls used; 0 for code that is not metered.
    fn fuel_used(&self) -> u64 {
        0
    }
}

/// Modules as WebAssembly components.
#[derive(Debug)]
pub struct WasmRuntime {
    host: Host,
}

impl WasmRuntime {
    /// Runs modules in this host.
    pub fn new(host: Host) -> WasmRuntime {
        WasmRuntime { host }
    }
}

struct WasmProgram(Module);

struct WasmGuest(Instance);

impl Runtime for WasmRuntime {
    fn inspect(&self, wasm: &[u8]) -> Result<Inspected, String> {
        let reason = |error| crate::error::chain(&error);
        let component = match self.host.adapt(wasm).map_err(reason)? {
            Cow::Borrowed(same) => Bytes::copy_from_slice(same),
            Cow::Owned(made) => Bytes::from(made),
        };
        let info = self.host.inspect(&component).map_err(reason)?;
        Ok(Inspected {
            bytes: component,
            hash: info.hash,
            manifest: info.manifest,
        })
    }

    fn load(
        &self,
        wasm: &[u8],
        limits: &Limits,
        wasi: WasiProfile,
    ) -> Result<Arc<dyn Program>, String> {
        let module = self
            .host
            .compile(wasm, limits, wasi)
            .map_err(|error| crate::error::chain(&error))?;
        Ok(Arc::new(WasmProgram(module)))
    }

    fn semantics_id(&self, limits: &Limits) -> [u8; 32] {
        self.host.semantics_id(limits)
    }

    fn tick(&self) {
        self.host.tick();
    }
}

impl Program for WasmProgram {
    fn manifest(&self) -> &Manifest {
        &self.0.info().manifest
    }

    fn instantiate(&self, context: &InstanceContext) -> Result<Box<dyn Guest>, Halt> {
        Ok(Box::new(WasmGuest(self.0.instantiate(context)?)))
    }
}

impl Guest for WasmGuest {
    fn process(
        &mut self,
        tables: Box<FoldTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<FoldTables>, Result<Processed, Halt>) {
        self.0.process(tables, batch)
    }

    fn migrate(
        &mut self,
        tables: Box<FoldTables>,
        previous: &Manifest,
        at: &Moment,
    ) -> (Box<FoldTables>, Result<Processed, Halt>) {
        self.0.migrate(tables, previous, at)
    }

    fn validate(
        &mut self,
        tables: Box<ReadTables>,
        batch: &Arc<EventColumns>,
    ) -> (Box<ReadTables>, Result<Vec<Verdict>, Halt>) {
        self.0.validate(tables, batch)
    }

    fn run(
        &mut self,
        tables: Box<ReadTables>,
        at: &Moment,
        arguments: &[u8],
        resume: &[u8],
    ) -> (Box<ReadTables>, Result<Answer, Halt>) {
        self.0.run(tables, at, arguments, resume)
    }

    fn merge(&mut self, arguments: &[u8], parts: Vec<Page>) -> Result<Page, Halt> {
        self.0.merge(arguments, parts)
    }

    fn fuel_used(&self) -> u64 {
        self.0.fuel_used()
    }
}
