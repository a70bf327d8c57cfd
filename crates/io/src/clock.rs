//! Time and randomness.

use std::sync::Arc;

/// Wall clock and monotonic clock.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since 1970-01-01T00:00:00Z. May jump in either direction.
    fn utc_ns(&self) -> u64;
    /// Nanoseconds since an arbitrary start; never decreases.
    fn monotonic_ns(&self) -> u64;
}

/// A source of random bytes.
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Disk, clock and randomness together: all that the log and the engine know of the world.
#[derive(Clone)]
pub struct World {
    /// The data directory.
    pub storage: Arc<dyn crate::Storage>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}
