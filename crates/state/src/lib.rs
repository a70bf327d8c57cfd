//! Derived state: the tables that modules fold events into, and how they survive a restart.
//!
//! Model: a module has a set of ordered tables in each partition. [`Tables`] is the version that its
//! single writer works on, one batch at a time; a [`View`] is a version that readers keep while the
//! writer goes on. A commit gives the [`Changes`] of its batch and keeps the [`Fingerprint`]. A
//! [`DeltaWriter`] keeps the changes of each batch on disk, a [`SnapshotStore`] whole states.
//!
//! Invariants:
//! 1. Nothing here is truth: whatever is lost or damaged is made again from the log. Every error of
//!    the disk means "rebuild", none means that events were lost.
//! 2. Equal rows have equal fingerprints, whatever order, shape or history they have.
//! 3. A view never changes.
//!
//! It knows no events and no modules' code, decides nothing about when to write what, and reaches
//! the disk only through [`truthdb_io::Storage`].

mod blocks;
mod builder;
#[doc(hidden)]
pub mod canary;
mod changes;
mod chunk;
mod collect;
mod cursor;
mod delta;
mod delta_record;
mod event_list;
mod fingerprint;
mod layout;
mod limits;
mod overlay;
mod packed;
mod past;
mod prune;
mod snapshot;
mod snapshot_writer;
mod store;
mod tables;
#[cfg(test)]
mod tables_tests;
mod tree;
mod view;

pub use builder::*;
pub use changes::*;
pub use chunk::*;
pub use collect::CollectStep;
pub use cursor::Sink;
pub use delta::*;
pub use delta_record::*;
pub use event_list::*;
pub use fingerprint::*;
pub use layout::{StateFormatError, StatePlace};
pub use limits::{KEY_BYTES_MAX, NAME_BYTES_MAX, TABLES_MAX, VALUE_BYTES_MAX};
pub use past::*;
pub use prune::*;
pub use snapshot::*;
pub use snapshot_writer::{SnapshotInput, SnapshotProgress, SnapshotStep};
pub use store::*;
pub use tables::*;
pub use view::*;
