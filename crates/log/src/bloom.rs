//! A Bloom filter over stream keys, with a byte layout of its own because it is part of a file format.
//!
//! Ten bits and seven probes a key: 0.8 % false positives (Bloom 1970; probes by double hashing, Kirsch and
//! Mitzenmacher 2006). The keys are uniform hashes already, so that nothing is hashed here.

use crate::keys::StreamKey;

/// Bits of the filter for each key.
pub(crate) const BITS_PER_KEY: u64 = 10;
/// Bits that are tested for a key.
pub(crate) const PROBES: u32 = 7;

/// The filter.
#[derive(Debug)]
pub(crate) struct Bloom {
    words: Vec<u64>,
}

impl Bloom {
    /// An empty filter for `keys` keys.
    pub(crate) fn new(keys: u64) -> Bloom {
        let words = (keys * BITS_PER_KEY).div_ceil(64).max(1);
        Bloom {
            words: vec![0; usize::try_from(words).expect("the filter fits memory")],
        }
    }

    /// The filter of a file: little-endian words.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Bloom {
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        Bloom {
            words: bytes.chunks_exact(8).map(word).collect(),
        }
    }

    /// The words of the filter.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds a key.
    pub(crate) fn insert(&mut self, key: StreamKey) {
        let bits = self.words.len() as u64 * 64;
        for bit in probes(key, bits) {
            self.words[word_of(bit)] |= 1 << (bit % 64);
        }
    }

    /// Whether the key may have been added.
    pub(crate) fn may_contain(&self, key: StreamKey) -> bool {
        let bits = self.words.len() as u64 * 64;
        probes(key, bits).all(|bit| self.words[word_of(bit)] & (1 << (bit % 64)) != 0)
    }
}

fn probes(key: StreamKey, bits: u64) -> impl Iterator<Item = u64> {
    let (first, step) = (key.low(), key.high() | 1);
    (0..u64::from(PROBES)).map(move |i| {
        let hash = first.wrapping_add(i.wrapping_mul(step));
        // The upper half of the product: a number below `bits`, without a division.
        u64::try_from((u128::from(hash) * u128::from(bits)) >> 64).expect("less than `bits`")
    })
}

fn word_of(bit: u64) -> usize {
    usize::try_from(bit / 64).expect("64-bit addresses")
}
