//! Bugs planted on purpose, so that the simulator can prove that it would find them.
//!
//! Compiled in only with the feature `canaries`, which nothing but the simulator's own tests turns
//! on; without it [`planted`] is the constant `false` and no planted bug is in the program. A
//! canary concerns the thread that planted it: simulations side by side do not disturb each other.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Canary {
    /// Appends are acknowledged when their write is submitted.
    AckBeforeWrite = 1,
    /// Groups are written without a flush, and acknowledged as durable.
    SkipFlush,
    /// Recovery takes no header as evidence: damage to acknowledged data looks like a torn tail.
    DropEvidence,
    /// Expected revisions are not compared.
    SkipRevisionCheck,
    /// Append conditions are not looked at.
    SkipCondition,
    /// The window of event ids begins empty after a restart.
    ForgetIds,
    /// Recovery accepts headers that do not follow the one before.
    SkipChainCheck,
    /// The next segment is entered while writes to the present one are in flight.
    RollInFlight,
    /// A page that ends inside a batch has one event too few.
    ShortPage,
    /// Readers see groups that are submitted and not yet durable.
    PublishEarly,
    /// Trimming removes one segment more than was asked for.
    TrimOneMore,
    /// Timestamps follow the clock when it goes back.
    FollowClock,
    /// A failed write is acknowledged.
    IgnoreWriteError,
}

impl Canary {
    /// All of them.
    pub const ALL: [Canary; 13] = [
        Canary::AckBeforeWrite,
        Canary::SkipFlush,
        Canary::DropEvidence,
        Canary::SkipRevisionCheck,
        Canary::SkipCondition,
        Canary::ForgetIds,
        Canary::SkipChainCheck,
        Canary::RollInFlight,
        Canary::ShortPage,
        Canary::PublishEarly,
        Canary::TrimOneMore,
        Canary::FollowClock,
        Canary::IgnoreWriteError,
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
