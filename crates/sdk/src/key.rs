//! Keys whose bytes sort as their values do.
//!
//! | type | bytes |
//! |---|---|
//! | `u8` … `u128` | big-endian |
//! | `i8` … `i128` | big-endian, sign bit flipped |
//! | `bool` | 0 or 1 |
//! | `String`, `Vec<u8>` | the bytes, each 0 followed by 255, then 0 0 |
//! | `[u8; N]` | the bytes |
//! | `()` | none |
//! | tuples | one after another |
//!
//! The encoding is prefix-free for each type, so that the rows of a tuple's first parts are a range.

/// A type that can be a key. Implementations must keep order: `a < b` exactly if their bytes are.
pub trait Key: Sized {
    /// Appends the bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes a value off the front of `bytes`; `None` if there is none.
    fn decode(bytes: &mut &[u8]) -> Option<Self>;
}

macro_rules! unsigned {
    ($($type:ty),*) => {$(
        impl Key for $type {
            #[expect(clippy::big_endian_bytes, reason = "big-endian bytes sort as numbers do")]
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            #[expect(clippy::big_endian_bytes, reason = "big-endian bytes sort as numbers do")]
            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                let (first, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(<$type>::from_be_bytes(*first))
            }
        }
    )*};
}

unsigned!(u8, u16, u32, u64, u128);

macro_rules! signed {
    ($($type:ty as $unsigned:ty),*) => {$(
        impl Key for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                (self.cast_unsigned() ^ (1 << (<$unsigned>::BITS - 1))).encode(out);
            }

            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                let flipped = <$unsigned as Key>::decode(bytes)?;
                Some((flipped ^ (1 << (<$unsigned>::BITS - 1))).cast_signed())
            }
        }
    )*};
}

signed!(i8 as u8, i16 as u16, i32 as u32, i64 as u64, i128 as u128);

impl Key for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        match <u8 as Key>::decode(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Key for () {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(_: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

impl<const N: usize> Key for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*first)
    }
}

impl Key for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        escape(self, out);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        unescape(bytes)
    }
}

impl Key for String {
    fn encode(&self, out: &mut Vec<u8>) {
        escape(self.as_bytes(), out);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        Self::from_utf8(unescape(bytes)?).ok()
    }
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() + 2);
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(255);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn unescape(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    loop {
        match (*bytes.get(at)?, bytes.get(at + 1)) {
            (0, Some(0)) => break,
            (0, Some(255)) => {
                out.push(0);
                at += 2;
            }
            (0, _) => return None,
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    *bytes = &bytes[at + 2..];
    Some(out)
}

macro_rules! tuples {
    ($(($($part:ident $index:tt),+))*) => {$(
        impl<$($part: Key),+> Key for ($($part,)+) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$index.encode(out);)+
            }

            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                Some(($($part::decode(bytes)?,)+))
            }
        }
    )*};
}

tuples! {
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
}

/// The bytes of a key.
pub(crate) fn encoded<K: Key>(key: &K) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    key.encode(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_back<K: Key + PartialEq + std::fmt::Debug>(key: &K) {
        let bytes = encoded(key);
        let mut rest = &bytes[..];
        assert_eq!(K::decode(&mut rest).as_ref(), Some(key));
        assert!(rest.is_empty());
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            assert_eq!(K::decode(&mut rest), None, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn numbers_sort_as_their_bytes(a: (i64, u32), b: (i64, u32)) {
            prop_assert_eq!(a.cmp(&b), encoded(&a).cmp(&encoded(&b)));
            read_back(&a);
        }

        #[test]
        fn texts_sort_as_their_bytes(a: (Vec<u8>, i8), b: (Vec<u8>, i8)) {
            prop_assert_eq!(a.cmp(&b), encoded(&a).cmp(&encoded(&b)));
            read_back(&a);
        }

        #[test]
        fn strings_come_back(a: (String, bool, [u8; 3], u128)) {
            read_back(&a);
        }

        #[test]
        fn other_bytes_never_panic(bytes: Vec<u8>) {
            let _ = <(String, i16, bool)>::decode(&mut &bytes[..]);
            let _ = <(Vec<u8>, u64)>::decode(&mut &bytes[..]);
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        assert_eq!(encoded(&1u16), [0, 1]);
        assert_eq!(encoded(&-1i8), [0x7f]);
        assert_eq!(encoded(&"a\0".to_owned()), [b'a', 0, 255, 0, 0]);
        assert_eq!(encoded(&()), []);
    }
}
