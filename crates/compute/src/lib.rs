//! State from the log: the life of modules, the fold, and questions about now and any moment before.
//!
//! Each partition has one fold, a stepped machine that gives every committed batch to the modules of
//! the partition and keeps what they make of it as tables ([`Compute`]). Publishing, activating,
//! upgrading, halting, skipping and removing a module are events in the partition's own log, and so
//! are checkpoints of state; what is true of modules is read from there and nowhere else.
//!
//! Invariants:
//! 1. State is a function of the log: equal logs give equal tables, whenever a process was
//!    restarted, from whatever snapshot it went on, and on whichever machine.
//! 2. One guest call is one committed batch. A guest's memory ends at places that the log alone
//!    decides ([`EPOCH_EVENTS`], snapshot marks, changes of code), and recovery goes on only there.
//! 3. A guest that fails stops its module in its partition, at that batch, until an operator's
//!    decision, which is an event. Nothing is skipped silently; appends and other modules go on.
//! 4. Derived events are appended exactly once, also over crashes, and compared when replayed.
//! 5. Everything on disk here is derived and may be deleted: it loses time, never state.
//! 6. Queries cannot write, and never delay an append.
//!
//! It does not know protocols or permissions, decides nothing by time, and does not know how a guest
//! is run: that is a [`Runtime`].

mod answer;
pub mod canary;
mod catalogue;
mod command;
mod compute;
mod config;
mod control;
mod control_list;
mod decide;
mod emit;
mod error;
mod files;
mod fold;
mod gate;
mod guest;
mod line;
mod native;
mod outgoing;
mod past;
mod programs;
mod query;
mod read;
mod reader;
mod replay;
mod request;
mod runner;
mod shared;
mod status;
mod store;
mod tables;
mod token;
mod verify;

pub use answer::*;
pub use catalogue::EPOCH_EVENTS;
pub use command::Reply;
pub use compute::{Compute, ComputeStepper};
pub use config::{ComputeConfig, STACK_BYTES_MIN};
pub use control::{
    CODE_CHUNK_BYTES, CODE_CHUNK_TYPE, CODE_STREAM_PREFIX, CONTROL_TYPE, CONTROL_VERSION,
    MODULE_STREAM_PREFIX, SNAPSHOT_STREAM,
};
pub use emit::{DERIVED_BATCH, DERIVED_BY, DERIVED_INDEX, DERIVED_SOURCE};
pub use error::ComputeError;
pub use guest::{Guest, Inspected, Program, Runtime, WasmRuntime};
pub use native::{NativeCode, NativeRuntime};
pub use query::QUERY_PART_BYTES_MAX;
pub use request::*;
pub use tables::{BATCH_WRITE_BYTES_MAX, FoldTables, ReadTables};
pub use token::{Token, TokenError};
