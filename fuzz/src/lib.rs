//! Every decoder of outside input, fed with bytes that nobody meant.
//!
//! A [`Target`] takes any bytes, decodes them, and panics if an invariant breaks: what was accepted must be
//! whole, and must encode to the same bytes again. `fuzz-smoke` runs all targets on a stable toolchain, from
//! valid inputs that are mutated by a seeded generator; cargo-fuzz runs the same functions guided by coverage.
//!
//! Structures on disk carry a checksum, which mutated bytes would hardly ever have. [`with_checksum`] gives it to
//! them, so that the code behind the checksum is reached too.
//!
//! This crate does not decide what is valid; it only asks the crates that do.

mod mutate;
mod seeds;
mod state;
mod targets;

pub use mutate::{Mutator, Random};
pub use targets::{TARGETS, Target, with_checksum};
