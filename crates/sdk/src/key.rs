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
    fn encode_key(&self, out: &mut Vec<u8>);

    /// Takes a value off the front of `bytes`; `None` if there is none.
    fn decode_key(bytes: &mut &[u8]) -> Option<Self>;
}

macro_rules! unsigned {
    ($($type:ty),*) => {$(
        impl Key for $type {
            fn encode_key(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            #[expect(clippy::big_endian_bytes, reason = "big-endian bytes sort as numbers do")]
            fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
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
            fn encode_key(&self, out: &mut Vec<u8>) {
                (self.cast_unsigned() ^ (1 << (<$unsigned>::BITS - 1))).encode_key(out);
            }

            fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
                let flipped = <$unsigned as Key>::decode_key(bytes)?;
                Some((flipped ^ (1 << (<$unsigned>::BITS - 1))).cast_signed())
            }
        }
    )*};
}

signed!(i8 as u8, i16 as u16, i32 as u32, i64 as u64, i128 as u128);

impl Key for bool {
    fn encode_key(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        match <u8 as Key>::decode_key(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Key for () {
    fn encode_key(&self, _: &mut Vec<u8>) {}

    fn decode_key(_: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

impl<const N: usize> Key for [u8; N] {
    fn encode_key(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*first)
    }
}

impl Key for Vec<u8> {
    fn encode_key(&self, out: &mut Vec<u8>) {
        escape(self, out);
    }

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        unescape(bytes)
    }
}

impl Key for String {
    fn encode_key(&self, out: &mut Vec<u8>) {
        escape(self.as_bytes(), out);
    }

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        Self::from_utf8(unescape(bytes)?).ok()
    }
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() + 2);
    // Most texts hold no 0, and are copied as they are.
    for (index, part) in bytes.split(|&byte| byte == 0).enumerate() {
        if index > 0 {
            out.extend_from_slice(&[0, 255]);
        }
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&[0, 0]);
}

fn unescape(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let zero = bytes.iter().position(|&byte| byte == 0)?;
        let (part, rest) = bytes.split_at(zero);
        out.extend_from_slice(part);
        let mark = *rest.get(1)?;
        *bytes = &rest[2..];
        match mark {
            0 => return Some(out),
            255 => out.push(0),
            _ => return None,
        }
    }
}

macro_rules! tuples {
    ($(($($part:ident $index:tt),+))*) => {$(
        impl<$($part: Key),+> Key for ($($part,)+) {
            fn encode_key(&self, out: &mut Vec<u8>) {
                $(self.$index.encode_key(out);)+
            }

            fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
                Some(($($part::decode_key(bytes)?,)+))
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
    key.encode_key(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_back<K: Key + PartialEq + std::fmt::Debug>(key: &K) {
        let bytes = encoded(key);
        let mut rest = &bytes[..];
        assert_eq!(K::decode_key(&mut rest).as_ref(), Some(key));
        assert!(rest.is_empty());
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            assert_eq!(K::decode_key(&mut rest), None, "cut at {cut}");
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
            let _ = <(String, i16, bool)>::decode_key(&mut &bytes[..]);
            let _ = <(Vec<u8>, u64)>::decode_key(&mut &bytes[..]);
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        assert_eq!(encoded(&1u16), [0, 1]);
        assert_eq!(encoded(&-1i8), [0x7f]);
        assert_eq!(encoded(&"a\0".to_owned()), [b'a', 0, 255, 0, 0]);
        assert_eq!(encoded(&()), [0u8; 0]);
    }
}
