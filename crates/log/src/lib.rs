//! The log: how events lie on disk, and how they are found again.
//!
//! Model: a partition's log is a row of segments, preallocated → active → closed → sealed; only the
//! active one is written. The format is described byte by byte in `docs/format.md`.
//!
//! Invariants:
//! 1. Nothing read from disk is believed before its checksum, and its place, were checked.
//! 2. A committed block is never written again; a sealed segment never changes.
//! 3. Opening tells a torn tail from damage: the one is cut with a warning, the other refuses the
//!    partition.
//! 4. Indexes are derived: losing them loses time, not data.
//!
//! It does not decide what to append or when to flush, and it reaches disk, clock and randomness
//! only through [`truthdb_io::World`].

mod active_index;
mod batch;
mod bloom;
#[doc(hidden)]
pub mod canary;
mod chain;
mod decision;
mod digest;
mod directory;
mod discover;
mod error;
mod heads;
mod index;
mod index_check;
mod inspect;
mod inspect_index;
mod inspect_layout;
mod keys;
mod layout;
mod manifest;
mod merkle;
mod pack;
mod paged;
mod postings;
mod proof;
mod reader;
mod rebuild;
mod recent_ids;
mod recovery;
mod repair;
mod repair_steps;
mod scan;
mod seal;
mod segment;
mod source;
mod table;
mod verify;
mod verify_heads;
mod verify_report;
mod verify_walk;

pub use active_index::*;
pub use batch::*;
pub use decision::*;
pub use directory::*;
pub use discover::*;
pub use error::*;
pub use heads::*;
pub use index::*;
pub use inspect::*;
pub use inspect_layout::Node;
pub use keys::*;
pub use layout::{FormatError, Place};
pub use manifest::*;
pub use merkle::*;
pub use pack::Compression;
pub use paged::IndexError;
pub use proof::*;
pub use reader::{SegmentReader, sparse_floor, sparse_floor_time};
pub use rebuild::*;
pub use recent_ids::*;
pub use recovery::*;
pub use repair::*;
pub use scan::{SCAN_DEPTH, SCAN_WINDOW_BYTES, ScannedBatch, SegmentScan};
pub use seal::*;
pub use segment::*;
pub use verify::*;
pub use verify_report::*;

#[cfg(test)]
mod test_golden;
#[cfg(test)]
mod test_log;
#[cfg(test)]
mod test_storage;
