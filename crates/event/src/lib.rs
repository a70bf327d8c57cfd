//! Canonical event bytes: one layout for the wire, the log and the hash tree.
//!
//! An event is encoded once, by whoever creates it, and the same bytes are checksummed, stored,
//! hashed and sent to readers. [`EventBuilder`] writes them, [`EventRef`] reads them in place.
//!
//! Invariants:
//! 1. An accepted encoding is exact: every length agrees, nothing is left over, and reserved bytes
//!    are zero.
//!    There is one encoding for one event, so equal events have equal bytes and equal hashes.
//! 2. Names are UTF-8 without control characters; the payload is opaque.
//! 3. The limits here are checked at the door, so that nothing behind it needs to.
//!
//! It does not know sequences, revisions or timestamps (the log gives those), and does no I/O.

mod build;
mod error;
mod id;
mod layout;
mod parse;
mod partition;

pub use build::EventBuilder;
pub use error::EventError;
pub use id::{EventId, EventIdError};
pub use layout::*;
pub use parse::{EventRef, Metadata, Tags};
pub use partition::{PARTITION_SEED, is_system_event, is_system_stream, partition_of};

/// Place of an event in its partition: gapless, from 1. 0 means "before the first event".
pub type Sequence = u64;

/// Place of an event in its stream: gapless, from 0.
pub type Revision = u64;

/// The checksum stored with every event: xxHash64 of its canonical bytes with seed 0.
///
/// # Examples
///
/// ```
/// assert_eq!(truthdb_event::event_checksum(b""), 0xef46_db37_51d8_e999);
/// ```
#[inline]
pub fn event_checksum(canonical: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(canonical, 0)
}
