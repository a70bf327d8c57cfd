//! The installer of TruthDB, from the disk up: what will be done to it as a value, its executor, the
//! flow of screens, and what draws them.
//!
//! [`plan`] is pure, [`executor`] writes. The same two build the project's disk images. No crate of
//! the database is used here: the installer knows files and hashes, not events.

pub mod executor;
pub mod plan;
