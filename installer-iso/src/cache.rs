//! Results of slow steps, outside of the repository, each in a folder named by the hash of its inputs.
//!
//! A folder is there only when it is complete: it is made under another name and renamed. A fresh clone finds it;
//! removing the cache loses time, nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::hash::Inputs;
use crate::process::disk_advice;

/// Digits of the key in a folder's name.
const KEY_DIGITS: usize = 24;

/// The cache.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// A result, and whether it was there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// False if this call made it.
    pub(crate) cached: bool,
}

impl Cache {
    /// The cache of this user: `$XDG_CACHE_HOME/truthdb/appliance`, by default below `~/.cache`.
    ///
    /// # Errors
    ///
    /// Neither variable is set.
    pub(crate) fn of_user() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = match set("XDG_CACHE_HOME") {
            Some(cache) => PathBuf::from(cache),
            None => PathBuf::from(set("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache"),
        };
        Ok(Self::at(base.join("truthdb/appliance")))
    }

    /// A cache in a folder.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// A folder for files that have their own hashes.
    ///
    /// # Errors
    ///
    /// What making it says.
    pub(crate) fn downloads(&self) -> Result<PathBuf> {
        let folder = self.root.join("downloads");
        std::fs::create_dir_all(&folder).with_context(|| disk_advice(&folder))?;
        Ok(folder)
    }

    /// Where the result with these inputs is, or would be.
    pub(crate) fn folder(&self, name: &str, inputs: &Inputs) -> PathBuf {
        self.root
            .join(format!("{name}-{}", &inputs.key()[..KEY_DIGITS]))
    }

    /// The result with these inputs, made by `make` in an empty folder if it is not there.
    ///
    /// # Errors
    ///
    /// Those of `make`; its folder is then left for a look, and emptied by the next try.
    pub(crate) fn entry(
        &self,
        name: &str,
        inputs: &Inputs,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Entry> {
        let folder = self.folder(name, inputs);
        if folder.is_dir() {
            return Ok(Entry {
                folder,
                cached: true,
            });
        }
        let process = std::process::id();
        let making = self.root.join(format!("making-{name}-{process}"));
        if making.exists() {
            std::fs::remove_dir_all(&making)
                .with_context(|| format!("emptying {}", making.display()))?;
        }
        std::fs::create_dir_all(&making).with_context(|| disk_advice(&making))?;
        make(&making)?;
        publish(&making, &folder)?;
        Ok(Entry {
            folder,
            cached: false,
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a cache may be lost in a power failure; the database's rename is for data"
)]
fn publish(making: &Path, folder: &Path) -> Result<()> {
    match std::fs::rename(making, folder) {
        // Another build of the same inputs was faster: its result is as good.
        Err(_) if folder.is_dir() => std::fs::remove_dir_all(making)
            .with_context(|| format!("removing {}", making.display())),
        other => other.with_context(|| format!("giving {} its name", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_made_once_for_its_inputs() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let inputs = Inputs::default().named("config", "1");
        let make = |folder: &Path| Ok(std::fs::write(folder.join("result"), "x")?);
        let first = cache.entry("kernel", &inputs, make).unwrap();
        assert!(!first.cached && first.folder.join("result").is_file());
        let never = |_: &Path| anyhow::bail!("made again");
        assert!(cache.entry("kernel", &inputs, never).unwrap().cached);
        let other = Inputs::default().named("config", "2");
        assert!(cache.entry("kernel", &other, never).is_err());
    }

    #[test]
    fn a_failed_step_leaves_no_result() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let inputs = Inputs::default();
        let failing = |folder: &Path| {
            std::fs::write(folder.join("half"), "x")?;
            anyhow::bail!("broken")
        };
        assert!(cache.entry("kernel", &inputs, failing).is_err());
        assert!(!cache.folder("kernel", &inputs).exists());
        let make = |folder: &Path| {
            assert!(!folder.join("half").exists(), "begins with an empty folder");
            Ok(())
        };
        assert!(cache.entry("kernel", &inputs, make).is_ok());
    }
}
