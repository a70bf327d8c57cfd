//! The host's functions: imports in a guest, a map of the thread natively.

#[cfg(target_arch = "wasm32")]
pub(crate) use crate::guest::{delete, delete_range, emit, get, log, scan, set};

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::{delete, delete_range, emit, get, log, scan, set};
