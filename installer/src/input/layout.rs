//! Keyboard layouts: which character a key gives, on the keyboards of several countries.
//!
//! Keys are named by the kernel's codes, which are those of the place on a US keyboard. What a layout
//! does not say, the one it is based on does. Dead keys give their sign at once: nobody types accented
//! letters here, and a serial number may hold a caret.

use super::Key;

/// A keyboard's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// United States.
    Us,
    /// Germany and Austria.
    German,
    /// France.
    French,
    /// Denmark, Norway, Sweden and Finland.
    Nordic,
}

impl Layout {
    /// All layouts, in the order the key goes through them.
    pub const ALL: [Layout; 4] = [Layout::Us, Layout::German, Layout::French, Layout::Nordic];

    /// What the screen calls it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Layout::Us => "US",
            Layout::German => "Deutsch",
            Layout::French => "Français",
            Layout::Nordic => "Nordic",
        }
    }

    /// The one behind it.
    #[must_use]
    pub fn next(self) -> Layout {
        let at = Layout::ALL.iter().position(|layout| *layout == self);
        Layout::ALL[(at.unwrap_or(0) + 1) % Layout::ALL.len()]
    }
}

/// A key going down, with what was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyPress {
    /// The kernel's code.
    pub code: u16,
    /// Either shift key.
    pub shift: bool,
    /// The right Alt key.
    pub alt_gr: bool,
    /// Caps lock is on.
    pub caps: bool,
}

/// The rows of a keyboard, by the kernel's codes: digits, upper, middle and lower letters. The key
/// beside the left shift, which US keyboards lack, has code 86.
const ROWS: [(u16, usize); 4] = [(2, 12), (16, 12), (30, 11), (44, 10)];
/// The key left of the 1, the key of the US backslash, and the one beside the left shift.
const EXTRA: [u16; 3] = [41, 43, 86];

/// Characters of a layout, plain and with shift, in the order of [`ROWS`] and then [`EXTRA`].
struct Table {
    plain: [&'static str; 5],
    shift: [&'static str; 5],
    alt_gr: &'static [(u16, char)],
}

const US: Table = Table {
    plain: [
        "1234567890-=",
        "qwertyuiop[]",
        "asdfghjkl;'",
        "zxcvbnm,./",
        "`\\<",
    ],
    shift: [
        "!@#$%^&*()_+",
        "QWERTYUIOP{}",
        "ASDFGHJKL:\"",
        "ZXCVBNM<>?",
        "~|>",
    ],
    alt_gr: &[],
};

const GERMAN: Table = Table {
    plain: [
        "1234567890ß´",
        "qwertzuiopü+",
        "asdfghjklöä",
        "yxcvbnm,.-",
        "^#<",
    ],
    shift: [
        "!\"§$%&/()=?`",
        "QWERTZUIOPÜ*",
        "ASDFGHJKLÖÄ",
        "YXCVBNM;:_",
        "°'>",
    ],
    alt_gr: &[
        (3, '²'),
        (4, '³'),
        (8, '{'),
        (9, '['),
        (10, ']'),
        (11, '}'),
        (12, '\\'),
        (16, '@'),
        (18, '€'),
        (27, '~'),
        (50, 'µ'),
        (86, '|'),
    ],
};

const FRENCH: Table = Table {
    plain: [
        "&é\"'(-è_çà)=",
        "azertyuiop^$",
        "qsdfghjklmù",
        "wxcvbn,;:!",
        "²*<",
    ],
    shift: [
        "1234567890°+",
        "AZERTYUIOP¨£",
        "QSDFGHJKLM%",
        "WXCVBN?./§",
        "²µ>",
    ],
    alt_gr: &[
        (3, '~'),
        (4, '#'),
        (5, '{'),
        (6, '['),
        (7, '|'),
        (8, '`'),
        (9, '\\'),
        (10, '^'),
        (11, '@'),
        (12, ']'),
        (13, '}'),
        (18, '€'),
        (27, '¤'),
    ],
};

const NORDIC: Table = Table {
    plain: [
        "1234567890+´",
        "qwertyuiopå¨",
        "asdfghjklöä",
        "zxcvbnm,.-",
        "§'<",
    ],
    shift: [
        "!\"#¤%&/()=?`",
        "QWERTYUIOPÅ^",
        "ASDFGHJKLÖÄ",
        "ZXCVBNM;:_",
        "½*>",
    ],
    alt_gr: &[
        (3, '@'),
        (4, '£'),
        (5, '$'),
        (6, '€'),
        (8, '{'),
        (9, '['),
        (10, ']'),
        (11, '}'),
        (12, '\\'),
        (27, '~'),
        (50, 'µ'),
        (86, '|'),
    ],
};

impl Layout {
    fn table(self) -> &'static Table {
        match self {
            Layout::Us => &US,
            Layout::German => &GERMAN,
            Layout::French => &FRENCH,
            Layout::Nordic => &NORDIC,
        }
    }

    /// The character a key gives; `None` for one that gives none.
    #[must_use]
    pub fn character(self, press: KeyPress) -> Option<char> {
        const SPACE: u16 = 57;
        let table = self.table();
        if press.code == SPACE {
            return Some(' ');
        }
        if press.alt_gr {
            let found = table.alt_gr.iter().find(|(code, _)| *code == press.code);
            return found.map(|(_, c)| *c);
        }
        let (row, at) = place(press.code)?;
        let plain = table.plain[row].chars().nth(at)?;
        // Caps lock acts on letters only.
        let shifted = press.shift != (press.caps && plain.is_alphabetic());
        if shifted {
            table.shift[row].chars().nth(at)
        } else {
            Some(plain)
        }
    }

    /// The key, if it is one that the flow knows.
    #[must_use]
    pub fn key(self, press: KeyPress) -> Option<Key> {
        let named = match press.code {
            1 => Key::Escape,
            14 => Key::Backspace,
            15 if press.shift => Key::BackTab,
            15 => Key::Tab,
            28 | 96 => Key::Enter,
            60 => Key::Advanced,
            63 => Key::Rescan,
            66 => Key::Export,
            67 => Key::Layout,
            103 => Key::Up,
            105 => Key::Left,
            106 => Key::Right,
            108 => Key::Down,
            104 => Key::PageUp,
            109 => Key::PageDown,
            111 => Key::Delete,
            code => {
                return keypad(code)
                    .or_else(|| self.character(press))
                    .map(Key::Char);
            }
        };
        Some(named)
    }
}

fn place(code: u16) -> Option<(usize, usize)> {
    if let Some(at) = EXTRA.iter().position(|extra| *extra == code) {
        return Some((ROWS.len(), at));
    }
    ROWS.iter().enumerate().find_map(|(row, (first, count))| {
        let at = usize::from(code.checked_sub(*first)?);
        (at < *count).then_some((row, at))
    })
}

/// The numeric keypad, with Num Lock as it should be.
fn keypad(code: u16) -> Option<char> {
    let c = match code {
        55 => '*',
        71..=73 => char::from_digit(u32::from(code - 71) + 7, 10)?,
        74 => '-',
        75..=77 => char::from_digit(u32::from(code - 75) + 4, 10)?,
        78 => '+',
        79..=81 => char::from_digit(u32::from(code - 79) + 1, 10)?,
        82 => '0',
        83 => '.',
        98 => '/',
        _ => return None,
    };
    Some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(code: u16) -> KeyPress {
        KeyPress {
            code,
            shift: false,
            alt_gr: false,
            caps: false,
        }
    }

    fn types(layout: Layout, code: u16, shift: bool, alt_gr: bool) -> Option<char> {
        layout.character(KeyPress {
            shift,
            alt_gr,
            ..press(code)
        })
    }

    #[test]
    fn every_row_of_every_layout_is_complete() {
        for layout in Layout::ALL {
            let table = layout.table();
            let lengths = ROWS.iter().map(|(_, count)| *count).chain([EXTRA.len()]);
            for (row, length) in lengths.enumerate() {
                assert_eq!(table.plain[row].chars().count(), length, "{layout:?} {row}");
                assert_eq!(table.shift[row].chars().count(), length, "{layout:?} {row}");
            }
        }
    }

    #[test]
    fn the_keys_that_differ_between_countries() {
        // The key right of T, the one right of L, and the first of the digits.
        let keys = |layout| [21, 39, 2].map(|code| types(layout, code, false, false).unwrap());
        assert_eq!(keys(Layout::Us), ['y', ';', '1']);
        assert_eq!(keys(Layout::German), ['z', 'ö', '1']);
        assert_eq!(keys(Layout::French), ['y', 'm', '&']);
        assert_eq!(keys(Layout::Nordic), ['y', 'ö', '1']);
        assert_eq!(types(Layout::French, 2, true, false), Some('1'));
        assert_eq!(types(Layout::German, 16, false, true), Some('@'));
        assert_eq!(types(Layout::Nordic, 3, false, true), Some('@'));
        assert_eq!(types(Layout::French, 11, false, true), Some('@'));
        assert_eq!(types(Layout::German, 12, true, false), Some('?'));
        assert_eq!(types(Layout::Us, 43, true, false), Some('|'));
        assert_eq!(types(Layout::Us, 41, false, false), Some('`'));
    }

    #[test]
    fn every_layout_reaches_what_serial_numbers_and_addresses_are_made_of() {
        for layout in Layout::ALL {
            let reachable: Vec<char> = (0..128)
                .flat_map(|code| {
                    [(false, false), (true, false), (false, true)]
                        .map(|(shift, alt_gr)| types(layout, code, shift, alt_gr))
                })
                .flatten()
                .collect();
            for c in ('a'..='z')
                .chain('A'..='Z')
                .chain('0'..='9')
                .chain("-_./:@ ".chars())
            {
                assert!(reachable.contains(&c), "{layout:?} cannot type {c:?}");
            }
        }
    }

    #[test]
    fn caps_lock_changes_letters_and_leaves_digits() {
        let caps = |code| {
            Layout::Us.character(KeyPress {
                caps: true,
                ..press(code)
            })
        };
        assert_eq!((caps(30), caps(2)), (Some('A'), Some('1')));
    }

    #[test]
    fn named_keys_are_the_same_everywhere() {
        for layout in Layout::ALL {
            assert_eq!(layout.key(press(28)), Some(Key::Enter));
            assert_eq!(layout.key(press(72)), Some(Key::Char('8')));
            assert_eq!(layout.key(press(125)), None);
        }
    }
}
