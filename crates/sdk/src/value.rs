//! Values in a plain, documented encoding, so that other languages and tools can read them.
//!
//! | type | bytes |
//! |---|---|
//! | integers, floats | little-endian |
//! | `bool` | 0 or 1 |
//! | `String`, `Vec<u8>` | length as `u32`, then the bytes |
//! | `Option<T>` | 0, or 1 and the value |
//! | `Vec<T>` of other types | count as `u32`, then the values |
//! | `[u8; N]` | the bytes |
//! | `()` | none |
//! | tuples, and structs of [`record!`](crate::record) | the fields, one after another |

/// Bytes that are read from the front.
pub type Cursor<'a> = &'a [u8];

/// A type that can be a value of a table.
pub trait Value: Sized {
    /// Appends the bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes a value off the front of `bytes`; `None` if there is none.
    fn decode(bytes: &mut Cursor<'_>) -> Option<Self>;

    /// Appends the bytes of a list. Lists of bytes are one copy.
    fn encode_list(list: &[Self], out: &mut Vec<u8>) {
        write_count(list.len(), out);
        for value in list {
            value.encode(out);
        }
    }

    /// Takes a list off the front of `bytes`.
    fn decode_list(bytes: &mut Cursor<'_>) -> Option<Vec<Self>> {
        let count = read_count(bytes)?;
        // A count is not believed: memory grows with what is really there.
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(Self::decode(bytes)?);
        }
        Some(list)
    }
}

fn write_count(count: usize, out: &mut Vec<u8>) {
    // The host refuses values over 1 MiB, long before this saturates.
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
}

fn read_count(bytes: &mut Cursor<'_>) -> Option<usize> {
    usize::try_from(<u32 as Value>::decode(bytes)?).ok()
}

fn take<'a>(bytes: &mut Cursor<'a>, count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
                let (first, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(<$type>::from_le_bytes(*first))
            }
        }
    )*};
}

numbers!(u16, u32, u64, u128, i8, i16, i32, i64, i128, f32, f64);

impl Value for u8 {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        Some(first)
    }

    fn encode_list(list: &[Self], out: &mut Vec<u8>) {
        write_count(list.len(), out);
        out.extend_from_slice(list);
    }

    fn decode_list(bytes: &mut Cursor<'_>) -> Option<Vec<Self>> {
        let count = read_count(bytes)?;
        take(bytes, count).map(<[u8]>::to_vec)
    }
}

impl Value for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
        match <u8 as Value>::decode(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Value for () {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(_: &mut Cursor<'_>) -> Option<Self> {
        Some(())
    }
}

impl Value for String {
    fn encode(&self, out: &mut Vec<u8>) {
        u8::encode_list(self.as_bytes(), out);
    }

    fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
        Self::from_utf8(u8::decode_list(bytes)?).ok()
    }
}

impl<T: Value> Value for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        T::encode_list(self, out);
    }

    fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
        T::decode_list(bytes)
    }
}

impl<T: Value> Value for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
        if <bool as Value>::decode(bytes)? {
            T::decode(bytes).map(Some)
        } else {
            Some(None)
        }
    }
}

impl<const N: usize> Value for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
        take(bytes, N)?.try_into().ok()
    }
}

macro_rules! tuples {
    ($(($($part:ident $index:tt),+))*) => {$(
        impl<$($part: Value),+> Value for ($($part,)+) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$index.encode(out);)+
            }

            fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
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

/// A value, or a payload, as JSON. As a value it is a length and the text, as `String` is.
#[cfg(feature = "json")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Value for Json<T> {
    /// # Panics
    ///
    /// If the type has no JSON (a map whose keys are no strings). In a guest that is a trap.
    fn encode(&self, out: &mut Vec<u8>) {
        let text = serde_json::to_vec(&self.0).expect("the type has a JSON form");
        u8::encode_list(&text, out);
    }

    fn decode(bytes: &mut Cursor<'_>) -> Option<Self> {
        serde_json::from_slice(&u8::decode_list(bytes)?)
            .ok()
            .map(Self)
    }
}

#[cfg(feature = "json")]
impl<T: serde::de::DeserializeOwned> crate::Payload for Json<T> {
    fn decode(bytes: &[u8]) -> Result<Self, crate::Fault> {
        serde_json::from_slice(bytes)
            .map(Self)
            .map_err(|error| crate::Fault::new(format!("the payload is not as expected: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    crate::record! {
        /// All sorts.
        #[derive(Debug, Clone, PartialEq, Default)]
        struct Record {
            /// A number.
            count: u32,
            /// A text.
            name: String,
            /// Bytes.
            bytes: Vec<u8>,
            /// Numbers.
            numbers: Vec<i16>,
            /// Perhaps.
            perhaps: Option<(bool, u64)>,
        }
    }

    fn encoded<V: Value>(value: &V) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn records_come_back_whole_or_not_at_all(
            count: u32, name: String, bytes: Vec<u8>, numbers: Vec<i16>, perhaps: Option<(bool, u64)>
        ) {
            let record = Record { count, name, bytes, numbers, perhaps };
            let encoded = encoded(&record);
            let mut rest = &encoded[..];
            prop_assert_eq!(Record::decode(&mut rest), Some(record));
            prop_assert!(rest.is_empty());
            for cut in 0..encoded.len() {
                prop_assert_eq!(Record::decode(&mut &encoded[..cut]), None);
            }
        }

        #[test]
        fn other_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&mut &bytes[..]);
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        assert_eq!(encoded(&1u16), [1, 0]);
        assert_eq!(encoded(&"a".to_owned()), [1, 0, 0, 0, b'a']);
        assert_eq!(encoded(&Some(true)), [1, 1]);
        assert_eq!(encoded(&None::<u64>), [0]);
        assert_eq!(encoded(&vec![1u16, 2]), [2, 0, 0, 0, 1, 0, 2, 0]);
        assert_eq!(encoded(&[1u8, 2]), [1, 2]);
        assert_eq!(encoded(&0.5f64), 0.5f64.to_le_bytes());
    }

    #[test]
    fn a_count_is_not_believed() {
        assert_eq!(<Vec<u64>>::decode(&mut &[255, 255, 255, 255][..]), None);
        assert_eq!(<Vec<u8>>::decode(&mut &[255, 255, 255, 255][..]), None);
    }
}
