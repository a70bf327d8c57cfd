//! `manifest.toml`: every input of an image, by version and hash.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// All pinned inputs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Source of both kernels.
    pub(crate) kernel: KernelSource,
    /// The EFI stub.
    pub(crate) stub: StubPackage,
    /// Programs that are built from source.
    pub(crate) source: Vec<SourcePackage>,
}

/// Debian's package of the kernel's source.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelSource {
    /// Name of the package.
    pub(crate) package: String,
    /// Its version.
    pub(crate) version: String,
    /// Name of its file.
    pub(crate) file: String,
    /// The file's hash.
    pub(crate) sha256: String,
    /// What the kernel says about when it was built.
    pub(crate) timestamp: String,
}

/// Debian's package with the EFI stub.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StubPackage {
    /// Name of the package.
    pub(crate) package: String,
    /// Its version.
    pub(crate) version: String,
    /// Name of its file.
    pub(crate) file: String,
    /// The file's hash.
    pub(crate) sha256: String,
    /// The stub inside of the package.
    pub(crate) path: String,
}

/// A source package of Debian: upstream's archive, and the packaging with its patches.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourcePackage {
    /// Name of the source package.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Its licence, as SPDX names it.
    pub(crate) license: String,
    /// Upstream's archive first, then the packaging.
    pub(crate) files: [PinnedFile; 2],
}

/// A file with its hash.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PinnedFile {
    /// Name in the archive's pool.
    pub(crate) name: String,
    /// Its hash.
    pub(crate) sha256: String,
}

impl Manifest {
    /// Reads and checks the manifest.
    ///
    /// # Errors
    ///
    /// What is wrong in it, with the line.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let manifest: Self = toml::from_str(text)?;
        let files = manifest.source.iter().flat_map(|source| &source.files);
        let pins = files.map(|file| (&file.name, &file.sha256)).chain([
            (&manifest.kernel.file, &manifest.kernel.sha256),
            (&manifest.stub.file, &manifest.stub.sha256),
        ]);
        for (name, sha256) in pins {
            ensure!(
                sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{name}: {sha256:?} is no SHA-256"
            );
            ensure!(!name.contains('/'), "{name:?} is no file name");
        }
        Ok(manifest)
    }

    /// The source package of that name.
    ///
    /// # Errors
    ///
    /// None of that name.
    pub(crate) fn source(&self, name: &str) -> Result<&SourcePackage> {
        let found = self.source.iter().find(|source| source.name == name);
        found.with_context(|| format!("manifest.toml pins no source package {name}"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The manifest of this repository.
    pub(crate) fn ours() -> &'static str {
        include_str!("../manifest.toml")
    }

    #[test]
    fn the_manifest_of_the_repository_is_valid() {
        let manifest = Manifest::parse(ours()).unwrap();
        assert!(manifest.kernel.package.starts_with("linux-source-6.12"));
        assert!(manifest.source("busybox").is_ok() && manifest.source("e2fsprogs").is_ok());
        assert!(manifest.source("bash").is_err());
    }

    #[test]
    fn a_hash_that_is_none_or_a_key_that_is_unknown_is_refused() {
        let short = ours().replace("e849faf3", "e849");
        let error = Manifest::parse(&short).unwrap_err().to_string();
        assert!(error.contains("linux-source-6.12_"), "{error}");
        let unknown = ours().replace("timestamp =", "time =");
        assert!(Manifest::parse(&unknown).is_err());
    }
}
