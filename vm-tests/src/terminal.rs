//! What a terminal on the serial line shows: the text since the screen was last drawn from its top, without the
//! sequences that steer the terminal.

/// Clears a terminal.
const CLEAR: &str = "\x1b[2J";
/// Begins at the top again.
const HOME: &str = "\x1b[H";

/// The page that is shown last and whole: drawn up to the sequence that clears what is below it.
#[must_use]
pub fn page(serial: &str) -> String {
    let whole = serial.rfind("\x1b[J").unwrap_or(0);
    let drawn = &serial[..whole];
    let from = drawn.rfind(HOME).or_else(|| drawn.rfind(CLEAR));
    plain(&drawn[from.unwrap_or(0)..])
}

/// A text without escape sequences and returns.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                // Up to the letter that ends the sequence.
                let _ = chars.find(|c| c.is_ascii_alphabetic());
            }
            '\r' => {}
            c => out.push(c),
        }
    }
    out
}

/// The line behind the one that begins so.
#[must_use]
pub fn line_after<'a>(page: &'a str, begin: &str) -> Option<&'a str> {
    let mut lines = page.lines();
    lines.find(|line| line.starts_with(begin))?;
    lines.next().map(str::trim).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_page_is_shown() {
        let first = "\x1b[2J\x1b[HFirst\x1b[K\r\nline\x1b[K\r\n\x1b[J";
        assert_eq!(page(first), "First\nline\n");
        let second = format!("{first}\x1b[HSecond\x1b[K\r\n\x1b[J");
        assert_eq!(page(&second), "Second\n");
        // Half of a page is none: the one before it counts.
        assert_eq!(page(&format!("{second}\x1b[HThi")), "Second\n");
        assert_eq!(page("BIOS"), "");
    }

    #[test]
    fn lines_are_found_by_the_one_before() {
        assert_eq!(line_after("Token:\ntdb_1\n", "Token"), Some("tdb_1"));
        assert_eq!(line_after("Token:\n\n", "Token"), None);
        assert_eq!(line_after("x", "Token"), None);
    }
}
