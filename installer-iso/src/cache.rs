//! Results of slow steps, outside of the repository, each in a folder named by the hash of its inputs.
//!
//! A folder is there only when it is complete: it is made under another name and renamed. A fresh clone finds it;
//! removing the cache loses time, nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::hash::{self, Inputs};
use crate::process::{self, disk_advice};

/// Digits of the key in a folder's name.
const KEY_DIGITS: usize = 24;
/// The list of hashes in a result's folder, as `sha256sum` writes it.
const SUMS: &str = "SHA256SUMS";

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
        let folder = self.downloads_folder();
        std::fs::create_dir_all(&folder).with_context(|| disk_advice(&folder))?;
        Ok(folder)
    }

    /// Where that folder is, or would be.
    pub(crate) fn downloads_folder(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// Where the result with these inputs is, or would be.
    pub(crate) fn folder(&self, name: &str, inputs: &Inputs) -> PathBuf {
        self.root
            .join(format!("{name}-{}", &inputs.key()[..KEY_DIGITS]))
    }

    /// The result with these inputs, if it is there and `check` finds nothing wrong with it.
    pub(crate) fn find(
        &self,
        name: &str,
        inputs: &Inputs,
        check: impl Fn(&Path) -> Result<()>,
    ) -> Option<PathBuf> {
        let folder = self.folder(name, inputs);
        (folder.is_dir() && check(&folder).is_ok()).then_some(folder)
    }

    /// The result with these inputs, made by `make` in an empty folder if it is not there, or if `check` finds that it
    /// is not what was made.
    ///
    /// # Errors
    ///
    /// Those of `make`; its folder is then left for a look, and emptied by the next try.
    pub(crate) fn entry(
        &self,
        name: &str,
        inputs: &Inputs,
        check: impl Fn(&Path) -> Result<()>,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Entry> {
        let folder = self.folder(name, inputs);
        if folder.is_dir() {
            let Err(error) = check(&folder) else {
                return Ok(Entry {
                    folder,
                    cached: true,
                });
            };
            println!("      what the cache has is damaged, and made again: {error:#}");
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
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

/// Refuses a file that has not the hash that was noted when it was made.
///
/// # Errors
///
/// Another hash, or a file that cannot be read.
pub(crate) fn check_file(path: &Path, sha256: &str) -> Result<()> {
    let found = hash::of_file(path)?;
    ensure!(
        found == sha256,
        "{} has the SHA-256 {found}, and had {sha256} when it was made",
        path.display()
    );
    Ok(())
}

/// Notes the hashes of files of a result.
///
/// # Errors
///
/// A file that cannot be read, or a full disk.
pub(crate) fn note_sums(folder: &Path, names: &[&str]) -> Result<()> {
    let mut text = String::new();
    for name in names {
        text.push_str(&format!("{}  {name}\n", hash::of_file(&folder.join(name))?));
    }
    process::write(&folder.join(SUMS), text.as_bytes())
}

/// Holds a result against its noted hashes; one that has none, made before they were noted, is taken as it is.
///
/// # Errors
///
/// Another hash, or a list that is none.
pub(crate) fn check_sums(folder: &Path) -> Result<()> {
    let list = folder.join(SUMS);
    if !list.exists() {
        return Ok(());
    }
    let text =
        std::fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    for line in text.lines() {
        let (sha256, name) = line
            .split_once("  ")
            .with_context(|| format!("{} is no list of hashes", list.display()))?;
        check_file(&folder.join(name), sha256)?;
    }
    Ok(())
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

    fn whole(_: &Path) -> Result<()> {
        Ok(())
    }

    #[test]
    fn a_result_is_made_once_for_its_inputs() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let inputs = Inputs::default().named("config", "1");
        let make = |folder: &Path| Ok(std::fs::write(folder.join("result"), "x")?);
        let first = cache.entry("kernel", &inputs, whole, make).unwrap();
        assert!(!first.cached && first.folder.join("result").is_file());
        let never = |_: &Path| anyhow::bail!("made again");
        assert!(cache.entry("kernel", &inputs, whole, never).unwrap().cached);
        let other = Inputs::default().named("config", "2");
        assert!(cache.entry("kernel", &other, whole, never).is_err());
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
        assert!(cache.entry("kernel", &inputs, whole, failing).is_err());
        assert!(!cache.folder("kernel", &inputs).exists());
        let make = |folder: &Path| {
            assert!(!folder.join("half").exists(), "begins with an empty folder");
            Ok(())
        };
        assert!(cache.entry("kernel", &inputs, whole, make).is_ok());
    }

    #[test]
    fn a_result_that_is_not_what_was_made_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let inputs = Inputs::default();
        let make = |folder: &Path| {
            std::fs::write(folder.join("result"), "whole")?;
            note_sums(folder, &["result"])
        };
        let entry = || cache.entry("tool", &inputs, check_sums, make).unwrap();
        let folder = entry().folder;
        assert!(entry().cached);
        std::fs::write(folder.join("result"), "wrong").unwrap();
        assert_eq!(cache.find("tool", &inputs, check_sums), None);
        assert!(!entry().cached, "made again");
        assert!(entry().cached);
        std::fs::remove_file(folder.join("result")).unwrap();
        assert!(!entry().cached, "made again");
        // As it was before hashes were noted.
        std::fs::remove_file(folder.join(SUMS)).unwrap();
        std::fs::write(folder.join("result"), "wrong").unwrap();
        assert!(entry().cached);
    }
}
