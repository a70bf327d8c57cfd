//! What can be wrong with an event.

/// Why bytes are not a canonical event, or why an event cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// There are fewer bytes than the lengths announce.
    #[error("event is cut short: {needed} bytes are needed, {available} are there")]
    TooShort {
        /// Bytes that the header and its lengths announce.
        needed: usize,
        /// Bytes that were given.
        available: usize,
    },
    /// There are more bytes than the lengths announce.
    #[error("{extra} bytes follow the end of the event")]
    TrailingBytes {
        /// Bytes too many.
        extra: usize,
    },
    /// The reserved byte is not zero.
    #[error("reserved byte of the event header is {value}, not 0")]
    Reserved {
        /// What it is.
        value: u8,
    },
    /// A field is empty that must not be.
    #[error("{field} is empty")]
    Empty {
        /// Name of the field.
        field: &'static str,
    },
    /// A limit is exceeded.
    #[error("{field} is {actual}, the limit is {max}")]
    LimitExceeded {
        /// Name of the field and its unit.
        field: &'static str,
        /// What the event has.
        actual: usize,
        /// What is allowed.
        max: usize,
    },
    /// A name is not UTF-8.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// Name of the field.
        field: &'static str,
    },
    /// A name holds a control character.
    #[error("{field} holds the control character U+{code:04X}")]
    ControlCharacter {
        /// Name of the field.
        field: &'static str,
        /// The code point.
        code: u32,
    },
    /// The lengths inside a section do not add up to the section's length.
    #[error("lengths inside the {field} section do not add up")]
    Section {
        /// Name of the section.
        field: &'static str,
    },
    /// A tag or a metadata key occurs twice.
    #[error("{field} {name:?} occurs twice")]
    Duplicate {
        /// Name of the field.
        field: &'static str,
        /// The value that occurs twice.
        name: String,
    },
}
