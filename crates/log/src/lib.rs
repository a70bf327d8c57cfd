//! .

mod active_index;
mod chain;
mod keys;

pub use active_index::*;
pub use keys::*;
