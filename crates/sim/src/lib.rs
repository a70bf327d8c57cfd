//! The simulator: the engine and the log on a simulated machine, against a reference model, from one seed.
//!
//! [`Sim`] draws from its seed what the engine's settings are, what is asked of it, when its machines take a step,
//! and what goes wrong ([`Profile`]): power cuts and kills at any operation, errors of the disk, a full disk,
//! clock jumps, and damage that the disk does not report. After every action it compares answers and watermarks
//! with a model that is as simple as possible; after every restart all that is stored.
//!
//! Invariants:
//! 1. The same seed gives the same run, to the bit ([`Figures::trace_hash`]).
//! 2. A violation names the seed and the one command that replays it.
//! 3. The model is decided by what was handed over and answered, never by what the engine stores.
//!
//! It does not simulate the network, several machines, or threads of one engine running at once: machines take
//! turns at whole steps. [`crash_loop`] is what uses threads, real processes and a real file system.
//!
//! # What it would find
//!
//! A simulator that finds nothing proves nothing. With the feature `canaries` bugs can be planted
//! ([`truthdb_log::canary`]); each must be found within this many seeds, counted from 1
//! (`tests/canaries.rs`, `truthdb-sim canaries`):
//!
#![doc = include_str!("canaries.md")]

mod answers;
#[cfg(feature = "canaries")]
pub mod canaries;
mod check;
pub mod crash_loop;
mod damage;
mod model;
mod profile;
mod restart;
pub mod seeds;
mod sim;
mod state;
mod work;

pub use profile::{Action, Class, Profile};
pub use sim::{Figures, Sim, Violation};
pub use state::{StateFigures, run_state_seed};
