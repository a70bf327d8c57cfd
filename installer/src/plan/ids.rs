//! Hashes, and identifiers that follow from one seed.

use std::fmt;

use ring::digest::{Context, SHA256, digest};
use uuid::Uuid;

/// A SHA-256 hash. Shown as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Sha256 {
        Sha256::from_digest(&digest(&SHA256, bytes))
    }

    /// The hash that these 64 hexadecimal digits say.
    #[must_use]
    pub fn parse(text: &str) -> Option<Sha256> {
        let mut hash = [0u8; 32];
        if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Sha256(hash))
    }

    fn from_digest(digest: &ring::digest::Digest) -> Sha256 {
        let mut hash = [0u8; 32];
        hash.copy_from_slice(digest.as_ref());
        Sha256(hash)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where all identifiers of an installation come from.
///
/// Two machines must never share a seed: firmware finds its boot entry by the partition's GUID.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// A fixed seed, for reproducible images and tests.
    #[must_use]
    pub fn fixed(bytes: [u8; 32]) -> Seed {
        Seed(bytes)
    }

    /// A seed from the system's randomness.
    ///
    /// # Errors
    ///
    /// When the system has none.
    pub fn random() -> Result<Seed, getrandom::Error> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Seed(bytes))
    }

    fn derive(&self, role: &str) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(b"truthdb-installer ids 1\0");
        context.update(&self.0);
        context.update(role.as_bytes());
        Sha256::from_digest(&context.finish()).0
    }

    /// The identifier for a role, a version 8 UUID.
    #[must_use]
    pub fn id(&self, role: &str) -> Uuid {
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&self.derive(role)[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// Serial number of the EFI system partition's file system; never 0.
    #[must_use]
    pub fn volume_id(&self) -> u32 {
        let bytes = self.derive("esp volume");
        let [a, b, c, d, ..] = bytes;
        u32::from_le_bytes([a, b, c, d]).max(1)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever knows the seed knows nothing secret, but it is noise in a log.
        f.write_str("Seed(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_the_seed_and_differ_by_role() {
        let seed = Seed::fixed([7; 32]);
        assert_eq!(seed.id("disk"), Seed::fixed([7; 32]).id("disk"));
        assert_ne!(seed.id("disk"), seed.id("esp"));
        assert_ne!(seed.id("disk"), Seed::fixed([8; 32]).id("disk"));
        assert_eq!(seed.id("disk").get_version_num(), 8);
    }

    #[test]
    fn the_hash_is_the_standard_one() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256::of(b"").to_string(), empty);
        assert_eq!(Sha256::parse(empty), Some(Sha256::of(b"")));
        for wrong in ["", "e3", &empty[1..], &format!("+{}", &empty[1..])] {
            assert_eq!(Sha256::parse(wrong), None);
        }
    }
}
