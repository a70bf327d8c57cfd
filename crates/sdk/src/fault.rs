//! What a handler returns when it cannot go on.

use std::fmt;

/// Why a module cannot process an event. It halts at the batch, with this text in its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    reason: String,
}

impl Fault {
    /// A fault with a text for operators: what was wrong with which event, and what to do.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }

    /// The text.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}

/// Why a validator refuses an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The module's own number of the reason.
    pub code: u32,
    /// For the person whose append is refused.
    pub message: String,
}

impl Rejection {
    /// Code of the SDK itself: the payload is not what the handler expects.
    pub const BAD_PAYLOAD: u32 = u32::MAX;

    /// A refusal with the module's own number and a text.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl From<Fault> for Rejection {
    /// A payload that cannot be decoded is a reason to refuse the event.
    fn from(fault: Fault) -> Self {
        Self::new(Self::BAD_PAYLOAD, fault.reason)
    }
}
