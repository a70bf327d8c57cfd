//! Compiled artefacts kept from one start to the next.
//!
//! An artefact is machine code: loading one is `unsafe`, so each is stored with a keyed checksum
//! over what it was compiled from, for which engine, and its bytes. An artefact that does not
//! match is as good as none. The component stays the truth; artefacts are never sent anywhere and
//! never taken from anyone.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::Engine;
use wasmtime::component::Component;

/// Where artefacts are kept. Both calls may fail silently: what is not found is compiled again.
pub trait ArtefactCache: Send + Sync {
    /// The bytes stored under this name, if there are any.
    fn load(&self, name: &str) -> Option<Vec<u8>>;

    /// Keeps bytes under a name of letters, digits, `-` and `.`; replaces what was there.
    fn store(&self, name: &str, bytes: &[u8]);
}

/// Artefacts as files of a directory, which is made when it is first needed.
#[derive(Debug)]
pub struct DirectoryCache {
    directory: PathBuf,
    temporaries: AtomicU64,
}

impl DirectoryCache {
    /// A cache in this directory. It must be writable by nobody else.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            temporaries: AtomicU64::new(0),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a lost or torn artefact is compiled again: the directory needs no flush"
    )]
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, path).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    }
}

impl ArtefactCache for DirectoryCache {
    fn load(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.directory.join(name)).ok()
    }

    fn store(&self, name: &str, bytes: &[u8]) {
        // Without the file the next start compiles again; there is nobody to tell who could act.
        let _ = self.write(&self.directory.join(name), bytes);
    }
}

/// The door between the host and the caller's cache: names, seals and checks artefacts.
pub(crate) struct Artefacts {
    cache: Option<Box<dyn ArtefactCache>>,
    key: [u8; 32],
}

impl Artefacts {
    pub(crate) fn new(cache: Option<Box<dyn ArtefactCache>>, key: [u8; 32]) -> Self {
        Self { cache, key }
    }

    /// The component, from the cache or compiled (and then kept).
    pub(crate) fn component(
        &self,
        engine: &Engine,
        wasm: &[u8],
        hash: &blake3::Hash,
    ) -> wasmtime::Result<Component> {
        let Some(cache) = &self.cache else {
            return Component::from_binary(engine, wasm);
        };
        let compatibility = compatibility(engine);
        let name = format!("{}-{}.bin", hash.to_hex(), &compatibility.to_hex()[..16]);
        if let Some(sealed) = cache.load(&name)
            && let Some(artefact) = self.open(&sealed, hash, &compatibility)
            && let Ok(component) = deserialize(engine, artefact)
        {
            return Ok(component);
        }
        let component = Component::from_binary(engine, wasm)?;
        cache.store(
            &name,
            &self.seal(&component.serialize()?, hash, &compatibility),
        );
        Ok(component)
    }

    fn checksum(
        &self,
        artefact: &[u8],
        hash: &blake3::Hash,
        compatibility: &blake3::Hash,
    ) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"truthdb artefact 1");
        hasher.update(hash.as_bytes());
        hasher.update(compatibility.as_bytes());
        hasher.update(artefact);
        hasher.finalize()
    }

    fn seal(&self, artefact: &[u8], hash: &blake3::Hash, compatibility: &blake3::Hash) -> Vec<u8> {
        let mut sealed = self
            .checksum(artefact, hash, compatibility)
            .as_bytes()
            .to_vec();
        sealed.extend_from_slice(artefact);
        sealed
    }

    /// The artefact in sealed bytes, if nothing about it is wrong.
    fn open<'a>(
        &self,
        sealed: &'a [u8],
        hash: &blake3::Hash,
        compatibility: &blake3::Hash,
    ) -> Option<&'a [u8]> {
        let (found, artefact) = sealed.split_first_chunk::<32>()?;
        // Comparing hashes takes constant time.
        (self.checksum(artefact, hash, compatibility) == blake3::Hash::from_bytes(*found))
            .then_some(artefact)
    }
}

#[expect(
    unsafe_code,
    reason = "the engine has no other way to load an artefact"
)]
fn deserialize(engine: &Engine, artefact: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes are those that `serialize` of this crate returned for an engine of the
    // same compatibility hash: the caller has verified a keyed checksum over both.
    unsafe { Component::deserialize(engine, artefact) }
}

/// A hash of everything about an engine that its artefacts depend on.
fn compatibility(engine: &Engine) -> blake3::Hash {
    let mut hasher = Blake3Hasher(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize()
}

/// Feeds what `Hash` writes into BLAKE3.
pub(crate) struct Blake3Hasher(pub(crate) blake3::Hasher);

impl Hasher for Blake3Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let hash = self.0.finalize();
        let first = hash.as_bytes().first_chunk::<8>();
        first.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> blake3::Hash {
        blake3::hash(text.as_bytes())
    }

    #[test]
    fn every_change_of_a_sealed_artefact_is_noticed() {
        let artefacts = Artefacts::new(None, [1; 32]);
        let (component, engine) = (hash("component"), hash("engine"));
        let sealed = artefacts.seal(b"machine code", &component, &engine);
        assert_eq!(
            artefacts.open(&sealed, &component, &engine),
            Some(&b"machine code"[..])
        );
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert_eq!(artefacts.open(&flipped, &component, &engine), None);
            assert_eq!(artefacts.open(&sealed[..at], &component, &engine), None);
        }
        assert_eq!(artefacts.open(&sealed, &engine, &engine), None);
        assert_eq!(artefacts.open(&sealed, &component, &component), None);
        let other_key = Artefacts::new(None, [2; 32]);
        assert_eq!(other_key.open(&sealed, &component, &engine), None);
    }

    #[test]
    fn a_directory_keeps_what_was_stored_last() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DirectoryCache::new(folder.path().join("made/when/needed"));
        assert_eq!(cache.load("a.bin"), None);
        cache.store("a.bin", b"one");
        cache.store("a.bin", b"two");
        assert_eq!(cache.load("a.bin").unwrap(), b"two");
        let files = fs::read_dir(folder.path().join("made/when/needed")).unwrap();
        assert_eq!(files.count(), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = DirectoryCache::new(file.join("below"));
        cache.store("a.bin", b"one");
        assert_eq!(cache.load("a.bin"), None);
    }
}
