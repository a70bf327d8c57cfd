//! The installer of TruthDB, from the disk up: what will be done to it as a value, its executor, the
//! flow of screens, what draws them, and what is known of the machine.
//!
//! Pure: [`plan`], [`flow`], [`ui::pages`], [`ui::draw`], [`ui::text`], [`node`]'s configuration.
//! Looking: [`platform`]. Writing: [`executor`]. [`app`] ties them together. [`plan`] and [`executor`] also
//! build the project's disk images; [`ui`] and [`input`] also serve the console of an installed node.
//!
//! What is absent: no crate of the database is used here, nothing is ever mounted, no shell is
//! started, and no network is needed.

pub mod answers;
pub mod app;
pub mod executor;
pub mod flow;
pub mod input;
pub mod log;
pub mod node;
pub mod plan;
pub mod platform;
pub mod ui;
pub mod work;
