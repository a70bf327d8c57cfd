//! The host of modules: WebAssembly components that fold, check, derive and answer.
//!
//! A [`Host`] inspects and compiles components of the package `truthdb:module` (its text is
//! `crates/sdk/wit/module.wit`), and runs [`Instance`]s of them against tables that the caller
//! hands in for each call. What a guest computes is a function of its code, its limits, and the
//! calls it got; nothing else reaches it.
//!
//! Invariants:
//! 1. **One call is all or nothing.** A call that returns an error has to be rolled back by the
//!    caller; its emits are gone. After any fault the instance is gone too.
//! 2. **No time, load, place or randomness of this process is visible to a guest.** Clocks are the
//!    time of the events, random numbers come from a seed that the caller derives from the log.
//! 3. **Growth that fails is a fault, never an answer**, so that no guest can branch on the memory
//!    of the machine.
//! 4. **Fuel bounds every call, epochs bound queries too**, in an engine of their own: fuel is a
//!    function of the code, an epoch is not, and must not stop a fold.
//! 5. **Every refusal and every fault has a type**, and names the import, the limit or the call.
//! 6. The only `unsafe` is the loading of artefacts that this crate compiled itself and finds
//!    unchanged by a keyed checksum.
//!
//! It does not keep tables, does not know the log, decides no policy (when a fresh instance is
//! due, what happens after a fault), and starts no thread of its own; the compiler uses the
//! process-wide pool of rayon. Threads that call into guests need a stack of at least
//! [`GUEST_STACK_BYTES_MIN`].

mod adapt;
mod bench;
mod cache;
mod columns;
mod fault;
mod host;
mod imports;
mod instance;
mod limits;
mod manifest;
mod scan;
mod state;
pub mod templates;
mod wasi;

pub use bench::{FoldBench, FoldTimes, MapTables, Workload};
pub use cache::{ArtefactCache, DirectoryCache};
pub use columns::{
    Answer, ColumnEvent, EVENT_PARTS, EventColumns, KeyRange, Moment, Page, Rejection, Verdict,
    metadata_pairs, push_metadata_pair,
};
pub use fault::{Halt, HaltClass, RefusedModule, TrapKind};
pub use host::{Host, HostConfig, HostError, Module, ModuleInfo, WasiProfile};
pub use instance::{Emit, Instance, InstanceContext, LogLevel, LogLine, Processed, module_seed};
pub use limits::*;
pub use manifest::{
    ABI_VERSION, Manifest, ModuleKind, NAME_BYTES_MAX, Subscription, TableDecl, VERSION_BYTES_MAX,
};
pub use state::{StateFault, StateRead, StateWrite};
