//! Bugs planted on purpose, so that the simulator can prove that it would find them.
//!
//! Compiled in only with the feature `canaries`, which nothing but the simulator's own tests turns
//! on; without it [`planted`] is the constant `false`. A canary concerns the thread that planted it.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Canary {
    /// A snapshot is named, and says that it is, one sequence later than its state.
    SnapshotOffByOne = 1,
    /// One record of the delta log in eight is not written; the next one covers its sequences.
    LostDelta,
}

impl Canary {
    /// All of them.
    pub const ALL: [Canary; 2] = [Canary::SnapshotOffByOne, Canary::LostDelta];
}

#[cfg(feature = "canaries")]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Canary>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug for everything that runs on this thread from now on, or none.
#[cfg(feature = "canaries")]
pub fn plant(canary: Option<Canary>) {
    PLANTED.set(canary);
}

/// Whether this bug is planted.
#[cfg(feature = "canaries")]
pub fn planted(canary: Canary) -> bool {
    PLANTED.get() == Some(canary)
}

/// Whether this bug is planted: never, without the feature `canaries`.
#[cfg(not(feature = "canaries"))]
#[inline(always)]
pub const fn planted(_canary: Canary) -> bool {
    false
}
