//! The 128-bit id of an event.

use std::fmt;
use std::str::FromStr;

/// Identity of an event given by its author; appending the same id again is the same append.
///
/// Any 16 bytes are valid. The text form is that of a UUID, lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventId(pub [u8; 16]);

/// Text that is not an event id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an event id: expected 32 hexadecimal digits, \
     with or without the hyphens of a UUID"
)]
pub struct EventIdError {
    text: String,
}

impl EventId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> EventId {
        EventId(bytes)
    }

    /// The id's bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; 36];
        let mut at = 0;
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                at += 1;
            }
            text[at] = HEX[usize::from(byte >> 4)];
            text[at + 1] = HEX[usize::from(byte & 15)];
            at += 2;
        }
        f.pad(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventId({self})")
    }
}

impl FromStr for EventId {
    type Err = EventIdError;

    /// Accepts `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` and 32 digits without hyphens, in either
    /// case.
    fn from_str(text: &str) -> Result<EventId, EventIdError> {
        let error = || EventIdError {
            text: text.chars().take(64).collect(),
        };
        let hyphens_at: &[usize] = match text.len() {
            36 => &[8, 13, 18, 23],
            32 => &[],
            _ => return Err(error()),
        };
        let mut bytes = [0u8; 16];
        let mut digits = 0;
        for (index, character) in text.bytes().enumerate() {
            if hyphens_at.contains(&index) {
                if character != b'-' {
                    return Err(error());
                }
                continue;
            }
            let digit = match character {
                b'0'..=b'9' => character - b'0',
                b'a'..=b'f' => character - b'a' + 10,
                b'A'..=b'F' => character - b'A' + 10,
                _ => return Err(error()),
            };
            bytes[digits / 2] = bytes[digits / 2] << 4 | digit;
            digits += 1;
        }
        Ok(EventId(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_that_of_a_uuid() {
        let id = EventId(*b"\x01\x93\xaa\xbb\xcc\xdd\x7e\xff\x80\x11\x22\x33\x44\x55\x66\x77");
        assert_eq!(id.to_string(), "0193aabb-ccdd-7eff-8011-223344556677");
        assert_eq!("0193AABB-ccdd-7eff-8011-223344556677".parse(), Ok(id));
        assert_eq!("0193aabbccdd7eff8011223344556677".parse(), Ok(id));
        assert_eq!(
            format!("{id:?}"),
            "EventId(0193aabb-ccdd-7eff-8011-223344556677)"
        );
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "0193aabb",
            "0193aabb-ccdd-7eff-8011-22334455667g",
            "0193aabb+ccdd-7eff-8011-223344556677",
            "0193aabbc-cdd-7eff-8011-223344556677",
            "0193aabb-ccdd-7eff-8011-2233445566é",
            "-193aabbccdd7eff8011223344556677",
        ] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
    }
}
