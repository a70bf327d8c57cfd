//! Time and randomness.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

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

impl World {
    /// The real clock and the operating system's randomness around `storage`.
    pub fn system(storage: Arc<dyn crate::Storage>) -> World {
        World {
            storage,
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SystemRandom),
        }
    }
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now at 0.
    pub fn new() -> SystemClock {
        SystemClock {
            start: monotonic_now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock that everybody else uses"
    )]
    fn utc_ns(&self) -> u64 {
        // A clock before 1970 reads as 1970: the callers only need that it is a time.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn monotonic_ns(&self) -> u64 {
        let since = monotonic_now().duration_since(self.start);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The monotonic clock itself, for the queues' own timeouts.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the clock that everybody else uses"
)]
pub(crate) fn monotonic_now() -> Instant {
    Instant::now()
}

/// The operating system's random source (`getrandom`).
#[derive(Debug, Clone, Copy)]
pub struct SystemRandom;

impl Random for SystemRandom {
    /// # Panics
    /// If the system has no random source: identities and keys made without one would collide.
    fn fill(&self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            panic!("the operating system's random source failed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_clock_is_after_2020_and_its_monotonic_time_never_decreases() {
        let clock = SystemClock::new();
        assert!(clock.utc_ns() > 1_577_836_800_000_000_000);
        let first = clock.monotonic_ns();
        assert!(clock.monotonic_ns() >= first);
    }

    #[test]
    fn system_random_fills_every_byte() {
        let mut seen = [0_u8; 64];
        // A byte stays 0 in all of 16 rounds with a probability of 2^-128.
        for _ in 0..16 {
            let mut bytes = [0_u8; 64];
            SystemRandom.fill(&mut bytes);
            for (seen, byte) in seen.iter_mut().zip(bytes) {
                *seen |= byte;
            }
        }
        assert!(seen.iter().all(|byte| *byte != 0));
    }
}
