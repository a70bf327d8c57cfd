//! Keys and values of tables as text, on the command line and in URLs.
//!
//! A table's keys are bytes whose meaning only its module knows. What most modules use is the
//! encoding of the SDK, so that this is what can be written here: parts such as `u64:17` or
//! `text:N14228`, one after another. Anything else is written as `hex:` or `raw:`. Reading goes the
//! other way only for show: bytes never lose their exact form, which is given beside the text.

use std::fmt::Write as _;

/// What a part may begin with, for messages.
const FORMS: &str = "text:, u8: to u128:, i8: to i128:, bool:, hex:, raw:";

/// The bytes of a key from its parts.
///
/// | part | bytes |
/// |---|---|
/// | `text:abc`, or `abc` without any prefix | a `String` or `Vec<u8>` of the SDK: each 0 followed by 255, then 0 0 |
/// | `u8:` … `u128:` | big-endian |
/// | `i8:` … `i128:` | big-endian, sign bit flipped |
/// | `bool:` | 0 or 1 |
/// | `hex:` | these bytes |
/// | `raw:` | the text's own bytes, without an end mark |
///
/// # Errors
///
/// The part that is wrong, and what would be right.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for part in parts {
        let (form, rest) = match part.split_once(':') {
            Some((form, rest)) if is_form(form) => (form, rest),
            Some((form, _))
                if !form.is_empty() && form.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                return Err(format!(
                    "{part:?}: {form}: is no form of a key's part; there are {FORMS} (a text with a \
                     colon is written text:{part})"
                ));
            }
            _ => ("text", part),
        };
        push(form, rest, &mut out).map_err(|reason| format!("{part:?}: {reason}"))?;
    }
    Ok(out)
}

fn is_form(form: &str) -> bool {
    matches!(form, "text" | "hex" | "raw" | "bool") || integer(form).is_some()
}

/// Whether it is signed, and its width in bytes.
fn integer(form: &str) -> Option<(bool, usize)> {
    let signed = match form.as_bytes().first()? {
        b'u' => false,
        b'i' => true,
        _ => return None,
    };
    let width = match &form[1..] {
        "8" => 1,
        "16" => 2,
        "32" => 4,
        "64" => 8,
        "128" => 16,
        _ => return None,
    };
    Some((signed, width))
}

fn push(form: &str, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    match form {
        "text" => {
            for byte in text.bytes() {
                out.push(byte);
                if byte == 0 {
                    out.push(u8::MAX);
                }
            }
            out.extend_from_slice(&[0, 0]);
        }
        "raw" => out.extend_from_slice(text.as_bytes()),
        "hex" => out.extend_from_slice(&unhex(text)?),
        "bool" => out.push(match text {
            "true" | "1" => 1,
            "false" | "0" => 0,
            _ => return Err("it is neither true nor false".to_owned()),
        }),
        _ => {
            let (signed, width) = integer(form).ok_or_else(|| format!("there are {FORMS}"))?;
            push_integer(signed, width, text, out)?;
        }
    }
    Ok(())
}

#[expect(
    clippy::big_endian_bytes,
    reason = "big-endian bytes sort as numbers do: the SDK's keys"
)]
fn push_integer(signed: bool, width: usize, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let bits = width * 8;
    let wrong = || format!("it is no whole number of {bits} bits");
    let value = if signed {
        let value: i128 = text.parse().map_err(|_| wrong())?;
        let half = 1i128.checked_shl(u32::try_from(bits - 1).unwrap_or(127));
        if let Some(half) = half.filter(|_| bits < 128)
            && !(-half..half).contains(&value)
        {
            return Err(wrong());
        }
        value.cast_unsigned() ^ (1 << (bits - 1))
    } else {
        let value: u128 = text.parse().map_err(|_| wrong())?;
        if bits < 128 && value >> bits != 0 {
            return Err(wrong());
        }
        value
    };
    out.extend_from_slice(&value.to_be_bytes()[16 - width..]);
    Ok(())
}

/// Bytes from hexadecimal digits.
///
/// # Errors
///
/// What would be right.
pub(crate) fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || "hexadecimal bytes are pairs of 0 to 9 and a to f".to_owned();
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            u8::from_str_radix(pair, 16).map_err(|_| wrong())
        })
        .collect()
}

/// Bytes that are text, as text: of themselves; as `String` keys of the SDK, parts separated by `/`; or as
/// one `String` value of the SDK, which JSON values are too.
pub(crate) fn as_text(bytes: &[u8]) -> Option<String> {
    let plain = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).ok()?;
        (!text.chars().any(char::is_control)).then(|| text.to_owned())
    };
    if let Some((length, rest)) = bytes.split_first_chunk::<4>()
        && usize::try_from(u32::from_le_bytes(*length)) == Ok(rest.len())
        && !rest.is_empty()
    {
        return plain(rest);
    }
    match bytes.strip_suffix(&[0, 0]) {
        Some(inner) if !inner.is_empty() => {
            let parts = inner.split(|byte| *byte == 0);
            let mut text = String::new();
            // Between two parts are two zeros: every second piece is empty.
            for (index, part) in parts.enumerate() {
                match (index % 2, part) {
                    (0, part) => text.push_str(&plain(part)?),
                    (_, []) => text.push('/'),
                    _ => return None,
                }
            }
            Some(text)
        }
        _ => plain(bytes),
    }
}

/// Bytes for people: as text if they are, else as hexadecimal; cut after so many characters.
pub(crate) fn show(bytes: &[u8], chars_max: usize) -> String {
    let text = as_text(bytes).unwrap_or_else(|| {
        let mut text = String::from("hex:");
        for byte in bytes.iter().take(chars_max) {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    });
    if text.chars().count() <= chars_max {
        return text;
    }
    let cut: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// Two values for people, side by side: both as text if both are, else both as hexadecimal. Of long ones
/// only so many characters about the first difference; what is left out is said in bytes.
pub(crate) fn show_pair(left: &[u8], right: &[u8], chars_max: usize) -> (String, String) {
    let (left, right) = match (as_text(left), as_text(right)) {
        (Some(one), Some(other)) if one != other => (Shown::text(one), Shown::text(other)),
        _ => (Shown::digits(left), Shown::digits(right)),
    };
    let alike = left.text.chars().zip(right.text.chars());
    let alike = alike.take_while(|(one, other)| one == other).count();
    (left.about(alike, chars_max), right.about(alike, chars_max))
}

/// A value for people, cut after so many characters; what is left out is said in bytes.
pub(crate) fn show_counted(bytes: &[u8], chars_max: usize) -> String {
    let shown = as_text(bytes).map_or_else(|| Shown::digits(bytes), Shown::text);
    shown.about(0, chars_max)
}

/// A value as text, or as hexadecimal digits.
struct Shown {
    text: String,
    form: &'static str,
    /// Bytes of `text` for each byte of the value.
    width: usize,
}

impl Shown {
    fn text(text: String) -> Shown {
        let (form, width) = ("", 1);
        Shown { text, form, width }
    }

    fn digits(bytes: &[u8]) -> Shown {
        let text = bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        let (form, width) = ("hex:", 2);
        Shown { text, form, width }
    }

    /// So many characters, a quarter of them before `focus`, if there are that many.
    fn about(&self, focus: usize, chars_max: usize) -> String {
        let latest = self.text.chars().count().saturating_sub(chars_max);
        let start = focus.saturating_sub(chars_max / 4).min(latest);
        let start = start - start % self.width;
        let place = |n: usize| {
            let found = self.text.char_indices().nth(n);
            found.map_or(self.text.len(), |(at, _)| at)
        };
        let (from, to) = (place(start), place(start.saturating_add(chars_max)));
        let (before, after) = (from / self.width, (self.text.len() - to) / self.width);
        let mut shown = String::new();
        if before > 0 {
            let _ = write!(shown, "({before} bytes) …");
        }
        shown.push_str(self.form);
        shown.push_str(&self.text[from..to]);
        if after > 0 {
            let _ = write!(shown, "… ({after} bytes)");
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_sdks_encoding_one_after_another() {
        assert_eq!(key(["N1"]).unwrap(), b"N1\0\0");
        assert_eq!(key(["text:a:b", "u16:258"]).unwrap(), b"a:b\0\0\x01\x02");
        assert_eq!(key(["i8:-128", "i8:127"]).unwrap(), [0, 255]);
        assert_eq!(key(["i64:0"]).unwrap(), [128, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(key(["i128:-1"]).unwrap()[0], 0x7f);
        assert_eq!(
            key(["raw:ab", "hex:00ff", "bool:true"]).unwrap(),
            b"ab\0\xff\x01"
        );
        assert_eq!(key([]).unwrap(), b"");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (part, reason) in [
            ("u8:256", "no whole number of 8 bits"),
            ("u8:-1", "no whole number of 8 bits"),
            ("i8:128", "no whole number of 8 bits"),
            ("i64:9223372036854775808", "no whole number of 64 bits"),
            ("hex:0", "pairs"),
            ("bool:yes", "neither"),
            ("string:x", "no form"),
        ] {
            let error = key([part]).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn two_values_are_shown_where_they_differ_and_what_is_cut_is_counted() {
        let pair = |left: &[u8], right: &[u8]| show_pair(left, right, 8);
        assert_eq!(pair(b"abc", b"abd"), ("abc".to_owned(), "abd".to_owned()));
        let (left, right) = pair(b"0123456789abcdefghij", b"0123456789abXdefghij");
        assert_eq!(left, "(10 bytes) …abcdefgh… (2 bytes)");
        assert_eq!(right, "(10 bytes) …abXdefgh… (2 bytes)");
        let (left, right) = pair(b"0123456789ab", b"0123");
        assert_eq!(
            (&left[..], &right[..]),
            ("(2 bytes) …23456789… (2 bytes)", "0123")
        );
        assert_eq!(pair(b"a", &[1]), ("hex:61".to_owned(), "hex:01".to_owned()));
        let mut bytes = [7; 20];
        let zeros = bytes;
        bytes[18] = 0xff;
        let (left, right) = pair(&bytes, &zeros);
        assert_eq!(left, "(16 bytes) …hex:0707ff07");
        assert_eq!(right, "(16 bytes) …hex:07070707");
        // The same text in two encodings.
        let (left, right) = pair(b"a\0\0", b"a");
        assert_eq!((&left[..], &right[..]), ("hex:610000", "hex:61"));
        assert_eq!(
            show_counted("äöü-äöü-äöü".as_bytes(), 8),
            "äöü-äöü-… (6 bytes)"
        );
        assert_eq!(show_counted(b"12345678", 8), "12345678");
    }

    #[test]
    fn bytes_are_shown_as_text_only_if_they_are() {
        assert_eq!(show(b"N1\0\0", 20), "N1");
        assert_eq!(show(b"plain", 20), "plain");
        assert_eq!(show(&[1, 2], 20), "hex:0102");
        assert_eq!(show(b"abcdef", 4), "abc…");
        assert_eq!(as_text(b"a\0b"), None);
        assert_eq!(as_text(b"EWR\0\0UA\0\0").unwrap(), "EWR/UA");
        assert_eq!(as_text(b"EWR\0\xffUA\0\0"), None);
        assert_eq!(as_text(b"EWR\0x\0\0"), None);
        assert_eq!(as_text(b"\x03\0\0\0abc").unwrap(), "abc");
        assert_eq!(as_text(b"\x04\0\0\0abc"), None);
        assert_eq!(as_text(b""), Some(String::new()));
    }
}
