//! The one door to disk, clock and randomness.
//!
//! Everything below the network layer reaches the outside world through the traits here and nothing
//! else, so that a simulator can stand on the other side of the door. Three rooms lie behind it:
//! io_uring with `O_DIRECT` ([`FileStorage`] with [`Backend::Uring`]), plain blocking calls
//! ([`Backend::Blocking`], the same files and the same tests), and a simulated disk
//! ([`sim::SimStorage`]).
//!
//! Invariants:
//! 1. This is the only database crate with `unsafe`, `io_uring`, and alignment arithmetic.
//! 2. A buffer handed to a queue belongs to the operation until its completion is returned.
//! 3. Every function whose name says `durable` has flushed what it did, directory included, before
//!    it returns.
//!
//! It does not know what the bytes mean, does not retry, and never hides an error.

mod blocking;
mod buffer;
mod clock;
mod file;
mod pool;
pub mod sim;
mod storage;
mod thread;
mod uring;

pub use buffer::*;
pub use clock::*;
pub use file::{Backend, FileStorage, LOCK_HOLDER_BYTES_MAX};
pub use pool::{BufferPool, PooledBuf};
pub use storage::*;
pub use thread::{lower_current_thread_priority, pin_current_thread};
