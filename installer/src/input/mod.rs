//! Keys, wherever they come from: keyboards by evdev, and serial lines.

pub mod evdev;
mod layout;
pub mod serial;

pub use layout::{KeyPress, Layout};

/// A key, as the flow understands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Enter.
    Enter,
    /// Escape: back.
    Escape,
    /// Arrow.
    Up,
    /// Arrow.
    Down,
    /// Arrow.
    Left,
    /// Arrow.
    Right,
    /// Next field.
    Tab,
    /// Previous field.
    BackTab,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// Removes a character.
    Backspace,
    /// Empties a field.
    Delete,
    /// Everything that can be set: F2, on a serial line Ctrl-A.
    Advanced,
    /// Look again: F5, on a serial line Ctrl-R.
    Rescan,
    /// Write the logs to a stick: F8, on a serial line Ctrl-E.
    Export,
    /// The keyboard's next layout: F9.
    Layout,
    /// A character.
    Char(char),
}
