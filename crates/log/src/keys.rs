//! Keyed hashes by which streams, types, tags and event ids are found in the indexes.
//!
//! The database's random seed makes the hashes unpredictable, so that nobody outside can craft
//! names that collide.
//! A hit on a 64-bit key is a candidate, confirmed by reading the event; stream keys are wide
//! enough (128 bits)
//! that a collision is not expected in the life of a database, and readers compare the name all the same.

use std::fmt;

/// Bytes of secret that XXH3 is given; its own default has the same length.
const SECRET_BYTES: usize = 192;

/// The random seed of a database's index keys, fixed at creation and kept in its manifest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeySeed(pub [u8; 16]);

impl fmt::Debug for KeySeed {
    /// Shows only the public check value: who knows the seed can craft collisions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySeed(check {:016x})", self.check())
    }
}

impl KeySeed {
    /// A value that tells two seeds apart without giving either away; index files carry it.
    pub fn check(&self) -> u64 {
        let mut bytes = [0u8; 8];
        derive("truthdb 2026 index key seed check", self, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// Key of a stream: XXH3-128 of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(pub u128);

impl StreamKey {
    /// The upper half, by which tables are sampled.
    pub(crate) fn high(self) -> u64 {
        u64::try_from(self.0 >> 64).expect("the upper half of 128 bits fits 64")
    }

    /// The lower half, by which hash tables are addressed.
    pub(crate) fn low(self) -> u64 {
        u64::try_from(self.0 & u128::from(u64::MAX)).expect("the lower half of 128 bits fits 64")
    }
}

/// Key of an event type or a tag: XXH3-64 under a secret of its kind, so that a type and a tag of
/// one name differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FacetKey(pub u64);

/// Hash of an event id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdHash(pub u64);

/// Computes the keys of one database. About 800 bytes; make it once and share it.
#[derive(Clone)]
pub struct KeyHasher {
    seed: KeySeed,
    stream_secret: [u8; SECRET_BYTES],
    type_secret: [u8; SECRET_BYTES],
    tag_secret: [u8; SECRET_BYTES],
    id_secret: [u8; SECRET_BYTES],
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHasher")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl KeyHasher {
    /// Derives the secrets of each kind of key from the seed.
    pub fn new(seed: KeySeed) -> KeyHasher {
        let secret = |context| {
            let mut bytes = [0u8; SECRET_BYTES];
            derive(context, &seed, &mut bytes);
            bytes
        };
        KeyHasher {
            seed,
            stream_secret: secret("truthdb 2026 index key of a stream"),
            type_secret: secret("truthdb 2026 index key t (type)"),
            tag_secret: secret("truthdb 2026 index key g (tag)"),
            id_secret: secret("truthdb 2026 index key of an event id"),
        }
    }

    /// The seed it was made from.
    pub fn seed(&self) -> KeySeed {
        self.seed
    }

    /// Key of a stream name.
    pub fn stream(&self, name: &[u8]) -> StreamKey {
        StreamKey(xxhash_rust::xxh3::xxh3_128_with_secret(
            name,
            &self.stream_secret,
        ))
    }

    /// Key of an event type.
    pub fn event_type(&self, name: &[u8]) -> FacetKey {
        FacetKey(xxhash_rust::xxh3::xxh3_64_with_secret(
            name,
            &self.type_secret,
        ))
    }

    /// Key of a tag.
    pub fn tag(&self, tag: &[u8]) -> FacetKey {
        FacetKey(xxhash_rust::xxh3::xxh3_64_with_secret(
            tag,
            &self.tag_secret,
        ))
    }

    /// Hash of an event id (16 UUID bytes).
    pub fn id(&self, id: &[u8; 16]) -> IdHash {
        IdHash(xxhash_rust::xxh3::xxh3_64_with_secret(id, &self.id_secret))
    }
}

/// BLAKE3 in key-derivation mode: independent secrets for each context.
fn derive(context: &str, seed: &KeySeed, out: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(&seed.0);
    hasher.finalize_xof().fill(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_part_of_the_index_format() {
        let keys = KeyHasher::new(KeySeed([7; 16]));
        assert_eq!(
            format!(
                "{:032x} {:016x} {:016x} {:016x} {:016x}",
                keys.stream(b"order-1").0,
                keys.event_type(b"placed").0,
                keys.tag(b"placed").0,
                keys.id(&[9; 16]).0,
                keys.seed().check(),
            ),
            "a3f68d064a7af149da959c432fa11422 138cd19a11cf085a d755c66cdf5bab55 d0746bb4dd324172 \
             e11b85f5fa3d76a1",
        );
    }

    #[test]
    fn another_seed_gives_other_keys() {
        let (a, b) = (
            KeyHasher::new(KeySeed([0; 16])),
            KeyHasher::new(KeySeed([1; 16])),
        );
        assert_ne!(a.stream(b"s"), b.stream(b"s"));
        assert_ne!(a.event_type(b"s"), b.event_type(b"s"));
        assert_ne!(a.tag(b"s"), b.tag(b"s"));
        assert_ne!(a.id(&[0; 16]), b.id(&[0; 16]));
        assert_ne!(a.seed().check(), b.seed().check());
    }

    #[test]
    fn debug_output_does_not_reveal_the_seed() {
        let seed = KeySeed([0xab; 16]);
        let shown = format!("{seed:?} {:?}", KeyHasher::new(seed));
        assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
    }
}
