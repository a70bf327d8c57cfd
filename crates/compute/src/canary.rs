//! Bugs planted on purpose, so that the simulator can prove that it would find them.
//!
//! Compiled in only with the feature `canaries`, which nothing but the simulator's own tests turns
//! on; without it [`planted`] is the constant `false`. A canary concerns the thread that planted it.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Canary {
    /// Guests keep their memory where they are to begin anew.
    KeepGuest = 1,
    /// Derived events that are stored are appended again after a restart.
    DeriveTwice,
    /// A batch's changes are stored before its derived events are.
    StoreEarly,
    /// Validators do not see what the last batch before theirs did.
    ValidateLate,
}

impl Canary {
    /// All of them.
    pub const ALL: [Canary; 4] = [
        Canary::KeepGuest,
        Canary::DeriveTwice,
        Canary::StoreEarly,
        Canary::ValidateLate,
    ];
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
