//! Keys from a serial line: bytes of a terminal, with the escape sequences of VT100 and its heirs.
//!
//! A lone Escape is told from the beginning of a sequence by what follows: nothing within
//! [`ESCAPE_WAIT_MS`], for which the caller says when that time is over.

use super::Key;

/// How long a sequence may take after its Escape, in milliseconds.
pub const ESCAPE_WAIT_MS: u64 = 60;
/// Longer sequences are noise.
const SEQUENCE_BYTES_MAX: usize = 8;
/// Bytes of a UTF-8 character.
const UTF8_BYTES_MAX: usize = 4;

/// Takes bytes, gives keys.
#[derive(Debug, Default)]
pub struct Decoder {
    sequence: Vec<u8>,
    utf8: Vec<u8>,
    last_was_return: bool,
}

impl Decoder {
    /// A decoder at the beginning.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes a byte. A key is given when one is complete.
    pub fn byte(&mut self, byte: u8) -> Option<Key> {
        let after_return = std::mem::take(&mut self.last_was_return);
        if !self.sequence.is_empty() {
            return self.continue_sequence(byte);
        }
        if !self.utf8.is_empty() || byte >= 0x80 {
            return self.continue_utf8(byte);
        }
        match byte {
            0x1b => {
                self.sequence.push(byte);
                None
            }
            b'\r' => {
                self.last_was_return = true;
                Some(Key::Enter)
            }
            // Terminals that send both mean one key.
            b'\n' => (!after_return).then_some(Key::Enter),
            b'\t' => Some(Key::Tab),
            0x08 | 0x7f => Some(Key::Backspace),
            0x01 => Some(Key::Advanced),
            0x05 => Some(Key::Export),
            0x0b => Some(Key::Layout),
            0x12 => Some(Key::Rescan),
            0x15 => Some(Key::Delete),
            byte if byte >= b' ' => Some(Key::Char(char::from(byte))),
            _ => None,
        }
    }

    /// Nothing came for a while: an Escape that waits was the key.
    pub fn pause(&mut self) -> Option<Key> {
        self.utf8.clear();
        let waited = std::mem::take(&mut self.sequence);
        (waited == [0x1b]).then_some(Key::Escape)
    }

    /// Whether an Escape waits for what follows.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.sequence.is_empty()
    }

    fn continue_sequence(&mut self, byte: u8) -> Option<Key> {
        if byte == 0x1b {
            // Two in a row: the first was the key.
            return (self.sequence.len() == 1).then_some(Key::Escape);
        }
        self.sequence.push(byte);
        let is_complete = match self.sequence.len() {
            2 => byte != b'[' && byte != b'O',
            _ => (0x40..=0x7e).contains(&byte) && byte != b'[',
        };
        if !is_complete && self.sequence.len() < SEQUENCE_BYTES_MAX {
            return None;
        }
        let sequence = std::mem::take(&mut self.sequence);
        Some(match &sequence[1..] {
            b"[A" | b"OA" => Key::Up,
            b"[B" | b"OB" => Key::Down,
            b"[C" | b"OC" => Key::Right,
            b"[D" | b"OD" => Key::Left,
            b"[Z" => Key::BackTab,
            b"[5~" => Key::PageUp,
            b"[6~" => Key::PageDown,
            b"[3~" => Key::Delete,
            b"OQ" | b"[12~" | b"[[B" => Key::Advanced,
            b"[15~" | b"[[E" => Key::Rescan,
            b"[19~" => Key::Export,
            b"[20~" => Key::Layout,
            _ => return None,
        })
    }

    fn continue_utf8(&mut self, byte: u8) -> Option<Key> {
        self.utf8.push(byte);
        if let Ok(text) = std::str::from_utf8(&self.utf8) {
            let c = text.chars().next();
            self.utf8.clear();
            return c.filter(|c| !c.is_control()).map(Key::Char);
        }
        if self.utf8.len() >= UTF8_BYTES_MAX || byte < 0x80 {
            self.utf8.clear();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = Decoder::new();
        let mut keys: Vec<Key> = bytes
            .iter()
            .filter_map(|byte| decoder.byte(*byte))
            .collect();
        keys.extend(decoder.pause());
        keys
    }

    #[test]
    fn what_terminals_send() {
        for (bytes, expected) in [
            (
                &b"a\r\nb\n"[..],
                &[Key::Char('a'), Key::Enter, Key::Char('b'), Key::Enter][..],
            ),
            (
                b"\x1b[A\x1bOB\x1b[C\x1b[D",
                &[Key::Up, Key::Down, Key::Right, Key::Left],
            ),
            (b"\x1b", &[Key::Escape]),
            (b"\x1b\x1b", &[Key::Escape, Key::Escape]),
            (b"\x1bOQ\x1b[12~\x1b[[B\x01", &[Key::Advanced; 4]),
            (
                b"\x1b[15~\x12\x1b[19~\x05",
                &[Key::Rescan, Key::Rescan, Key::Export, Key::Export],
            ),
            (
                b"\x7f\x08\t\x1b[Z",
                &[Key::Backspace, Key::Backspace, Key::Tab, Key::BackTab],
            ),
            ("ü€".as_bytes(), &[Key::Char('ü'), Key::Char('€')]),
            (b"\xff\xfe\x00x", &[Key::Char('x')]),
        ] {
            assert_eq!(keys(bytes), expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn noise_gives_no_control_characters_and_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for key in keys(&bytes) {
                if let Key::Char(c) = key {
                    prop_assert!(!c.is_control());
                }
            }
            // Whatever came before, a plain key is understood after a pause.
            let mut decoder = Decoder::new();
            for byte in bytes {
                decoder.byte(byte);
            }
            decoder.pause();
            prop_assert_eq!(decoder.byte(b'a'), Some(Key::Char('a')));
        }
    }
}
