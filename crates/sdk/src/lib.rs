//! Write modules for TruthDB in Rust.
//!
//! A module is a few handlers of events, and tables of rows that they read and write:
//!
//! ```
//! use truthdb_sdk::prelude::*;
//!
//! truthdb_sdk::reducer! {
//!     /// Deposits by account.
//!     pub Deposits = "deposits";
//!     tables {
//!         totals: Table<String, u64> = 1,
//!     }
//!     on "account-*" / "deposit" (String) => deposit;
//! }
//!
//! fn deposit(tables: &Tables, event: &Event<'_>, amount: String) -> Result<(), Fault> {
//!     let amount: u64 = amount.parse().map_err(|_| Fault::new("the amount is no number"))?;
//!     let account = event.stream().to_owned();
//!     tables.totals.update(&account, |total| Some(total.unwrap_or(0) + amount));
//!     Ok(())
//! }
//!
//! # use truthdb_sdk::testing::{self, TestEvent};
//! let events = [
//!     TestEvent::new("account-1", "deposit", "5"),
//!     TestEvent::new("account-1", "deposit", "2"),
//! ];
//! let outcome = testing::check::<Deposits>(&events).unwrap();
//! assert_eq!(outcome.get(&Deposits::tables().totals, &"account-1".to_owned()), Some(7));
//! ```
//!
//! Built for `wasm32-unknown-unknown` as a `cdylib`, it is a core module that `truthdb module
//! publish` turns into a component: of one of the worlds in `wit/module.wit`, without any WASI. The
//! macros are [`reducer!`], [`processor!`], [`validator!`] and [`query!`].
//!
//! Rules that a module lives by:
//! 1. **Only tables are state.** Globals vanish at any time between two calls; handlers have no
//!    `self` to keep anything in.
//! 2. **A handler that returns an error halts the module** at that batch. Skipping an event is an
//!    operator's decision, not the module's.
//! 3. **Nothing is read but the event and the tables**: no clock (the event has a time), no random
//!    numbers, no iteration order of a `HashMap`.
//!
//! Natively (in tests) the tables are a map of the thread, and [`testing`] runs a module on a list
//! of events, cut into batches in many ways, and compares the outcomes.
//!
//! This crate does not know the host; the contract between the two is the WIT file.

mod event;
mod fault;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod key;
mod macros;
mod module;
mod store;
mod table;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod value;

pub use event::{Batch, Event, Payload};
pub use fault::{Fault, Rejection};
pub use key::Key;
pub use module::{
    ABI_VERSION, Answer, Emitter, Fold, Kind, Level, Manifest, Module, Moment, Page, Query,
    Subscription, TableDecl, Validate, log,
};
pub use table::{Rows, Table};
#[cfg(feature = "json")]
pub use value::Json;
pub use value::{Cursor, Value};

/// What a module needs most.
pub mod prelude {
    pub use crate::{
        Answer, Batch, Emitter, Event, Fault, Fold, Key, Level, Module, Moment, Page, Payload,
        Query, Rejection, Table, Validate, Value, log,
    };
}
