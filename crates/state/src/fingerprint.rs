//! The fingerprint of a state: a hash of a multiset of rows that is kept up to date row by row.
//!
//! Each row has a BLAKE3 hash; the fingerprint is the sum of these hashes modulo 2^256. Adding and
//! removing a row costs one hash whatever the size of the state, and neither the order of the
//! changes nor the shape of the tree has an influence. It tells apart states that differ by
//! accident or by a bug. Who may choose the rows and computes long enough can make two states with
//! one sum; the hashes of the chunks of a snapshot do not have this limit.

use std::fmt;

use crate::limits::small;

/// Bytes of a fingerprint.
pub const FINGERPRINT_BYTES: usize = 32;

/// Four letters before the bytes of each row, so that no other hash of the database is one of a row.
const ROW_DOMAIN: [u8; 4] = *b"TROW";
/// Domain, table and key length.
const ROW_PREFIX_BYTES: usize = 12;
/// Rows up to this many bytes, prefix included, are hashed in one call.
const ROW_BUFFER_BYTES: usize = 512;

/// Sum of the hashes of all rows modulo 2^256; of no rows it is zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fingerprint {
    /// Little-endian limbs.
    limbs: [u64; 4],
}

impl Fingerprint {
    /// The fingerprint of no rows.
    pub const EMPTY: Fingerprint = Fingerprint { limbs: [0; 4] };

    /// The fingerprint of one row alone.
    pub fn of_row(table: u32, key: &[u8], value: &[u8]) -> Fingerprint {
        let mut prefix = [0; ROW_PREFIX_BYTES];
        prefix[..4].copy_from_slice(&ROW_DOMAIN);
        prefix[4..8].copy_from_slice(&table.to_le_bytes());
        prefix[8..].copy_from_slice(&small(key.len()).to_le_bytes());
        let key_end = ROW_PREFIX_BYTES + key.len();
        let end = key_end + value.len();
        let hash = if end <= ROW_BUFFER_BYTES {
            let mut row = [0; ROW_BUFFER_BYTES];
            row[..ROW_PREFIX_BYTES].copy_from_slice(&prefix);
            row[ROW_PREFIX_BYTES..key_end].copy_from_slice(key);
            row[key_end..end].copy_from_slice(value);
            blake3::hash(&row[..end])
        } else {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&prefix).update(key).update(value);
            hasher.finalize()
        };
        Fingerprint::from_bytes(hash.as_bytes())
    }

    /// The 32 bytes as a little-endian number.
    pub fn from_bytes(bytes: &[u8; FINGERPRINT_BYTES]) -> Fingerprint {
        let (words, _) = bytes.as_chunks::<8>();
        let mut limbs = [0; 4];
        for (limb, word) in limbs.iter_mut().zip(words) {
            *limb = u64::from_le_bytes(*word);
        }
        Fingerprint { limbs }
    }

    /// The sum as 32 little-endian bytes: how it is stored, sent and shown.
    pub fn to_bytes(self) -> [u8; FINGERPRINT_BYTES] {
        let mut bytes = [0; FINGERPRINT_BYTES];
        let (words, _) = bytes.as_chunks_mut::<8>();
        for (word, limb) in words.iter_mut().zip(self.limbs) {
            *word = limb.to_le_bytes();
        }
        bytes
    }

    /// Adds the rows of another multiset.
    pub fn add(&mut self, other: Fingerprint) {
        let mut carry = false;
        for (limb, add) in self.limbs.iter_mut().zip(other.limbs) {
            let (sum, first) = limb.overflowing_add(add);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *limb = sum;
            carry = first || second;
        }
    }

    /// Takes the rows of another multiset away.
    pub fn subtract(&mut self, other: Fingerprint) {
        let mut borrow = false;
        for (limb, take) in self.limbs.iter_mut().zip(other.limbs) {
            let (rest, first) = limb.overflowing_sub(take);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            *limb = rest;
            borrow = first || second;
        }
    }

    /// Reads the 64 hexadecimal digits that [`fmt::Display`] writes; none for anything else.
    pub fn from_hex(text: &str) -> Option<Fingerprint> {
        let hash = blake3::Hash::from_hex(text).ok()?;
        Some(Fingerprint::from_bytes(hash.as_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    /// 64 hexadecimal digits, in the order of [`Fingerprint::to_bytes`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(table: u32, key: &[u8], value: &[u8]) -> Fingerprint {
        Fingerprint::of_row(table, key, value)
    }

    #[test]
    fn the_hash_of_a_row_is_part_of_the_format() {
        assert_eq!(
            row(3, b"EWR", b"delayed").to_bytes(),
            *blake3::hash(b"TROW\x03\0\0\0\x03\0\0\0EWRdelayed").as_bytes()
        );
        let long = vec![7; ROW_BUFFER_BYTES];
        let mut bytes = b"TROW\0\0\0\0\x01\0\0\0k".to_vec();
        bytes.extend(&long);
        assert_eq!(
            row(0, b"k", &long).to_bytes(),
            *blake3::hash(&bytes).as_bytes()
        );
    }

    #[test]
    fn table_key_and_value_do_not_run_into_each_other() {
        let rows = [
            row(0, b"ab", b"c"),
            row(0, b"a", b"bc"),
            row(1, b"ab", b"c"),
            row(0, b"abc", b""),
            row(0, b"", b"abc"),
        ];
        for (i, a) in rows.iter().enumerate() {
            assert!(rows[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn sums_carry_over_all_limbs() {
        let mut sum = Fingerprint::from_bytes(&[0xff; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        sum.add(Fingerprint::from_bytes(&one));
        assert_eq!(sum, Fingerprint::EMPTY);
        sum.subtract(Fingerprint::from_bytes(&one));
        assert_eq!(sum.to_bytes(), [0xff; 32]);
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_removal_undoes(a: [u8; 32], b: [u8; 32], c: [u8; 32]) {
            let [a, b, c] = [a, b, c].map(|bytes| Fingerprint::from_bytes(&bytes));
            let mut forward = a;
            forward.add(b);
            forward.add(c);
            let mut backward = c;
            backward.add(b);
            backward.add(a);
            prop_assert_eq!(forward, backward);
            forward.subtract(b);
            forward.subtract(a);
            prop_assert_eq!(forward, c);
            prop_assert_eq!(Fingerprint::from_hex(&a.to_string()), Some(a));
        }
    }
}
