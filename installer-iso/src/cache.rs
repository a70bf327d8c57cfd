//! Results of slow steps, outside of the repository, each in a folder named by the hash of its inputs.
//!
//! A folder is there only when it is complete: it is made under another name, written to the disk and renamed, by one
//! process at a time. A fresh clone finds it; removing the cache loses time, nothing else.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::hash::{self, Inputs};
use crate::process::{self, disk_advice};

/// Digits of the key in a folder's name.
const KEY_DIGITS: usize = 24;
/// Begin of the names of folders in which something is made.
const MAKING: &str = "making-";
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
    /// is not what was made. Of results of one name one is made at a time: another process waits, and finds it.
    ///
    /// # Errors
    ///
    /// Those of `make`; its folder, which the error names, is then left for a look, and emptied by the next try.
    pub(crate) fn entry(
        &self,
        name: &str,
        inputs: &Inputs,
        check: impl Fn(&Path) -> Result<()>,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Entry> {
        let found = |folder| Entry {
            folder,
            cached: true,
        };
        if let Some(folder) = self.find(name, inputs, &check) {
            return Ok(found(folder));
        }
        // By name alone, and without the inputs' hash: what is left of tries with other inputs does not add up.
        let making = self.root.join(format!("{MAKING}{name}"));
        let _lock = self.lock(name)?;
        let folder = self.folder(name, inputs);
        if folder.is_dir() {
            let Err(error) = check(&folder) else {
                return Ok(found(folder));
            };
            println!("      what the cache has is damaged, and made again: {error:#}");
            remove_folder(&folder)?;
        }
        self.sweep(name)?;
        remove_folder(&making)?;
        std::fs::create_dir_all(&making).with_context(|| disk_advice(&making))?;
        make(&making).with_context(|| {
            format!(
                "what there is of it stays in {} for a look, and the next try empties it",
                making.display()
            )
        })?;
        // Otherwise the name could be on the disk before what it stands for, and a power cut leave empty files.
        flush(&making)?;
        process::give_name(&making, &folder)?;
        flush_one(&self.root)?;
        Ok(Entry {
            folder,
            cached: false,
        })
    }

    /// The right to make results of a name, until it is dropped.
    fn lock(&self, name: &str) -> Result<File> {
        std::fs::create_dir_all(&self.root).with_context(|| disk_advice(&self.root))?;
        let path = self.root.join(format!("{MAKING}{name}.lock"));
        let file = File::create(&path).with_context(|| disk_advice(&path))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                println!("      another process makes {name}: waiting for it");
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| locking(&path)),
        }
        file.lock().with_context(|| locking(&path))?;
        Ok(file)
    }

    /// Removes what interrupted builds left while their folders had the process's number in their names, and no next
    /// try found them.
    fn sweep(&self, name: &str) -> Result<()> {
        let begin = format!("{MAKING}{name}-");
        let listing = || format!("listing {}", self.root.display());
        for entry in std::fs::read_dir(&self.root).with_context(listing)? {
            let entry = entry.with_context(listing)?;
            let file_name = entry.file_name();
            let number = file_name
                .to_str()
                .and_then(|name| name.strip_prefix(&begin));
            if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn locking(path: &Path) -> String {
    format!(
        "locking {} (a cache is on a file system with locks: XDG_CACHE_HOME names another folder)",
        path.display()
    )
}

/// Removes a folder, if it is there.
fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Writes everything in a folder to the disk.
fn flush(folder: &Path) -> Result<()> {
    let listing = || format!("listing {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        let kind = entry.file_type().with_context(listing)?;
        if kind.is_dir() {
            flush(&entry.path())?;
        } else if kind.is_file() {
            flush_one(&entry.path())?;
        }
    }
    flush_one(folder)
}

fn flush_one(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.sync_all().with_context(|| disk_advice(path))
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

/// Holds files of a result against their noted hashes.
///
/// # Errors
///
/// Another hash, or no list, or one in which a file is missing.
pub(crate) fn check_sums(folder: &Path, names: &[&str]) -> Result<()> {
    let list = folder.join(SUMS);
    let text =
        std::fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    for name in names {
        let mut sums = text.lines().filter_map(|line| line.split_once("  "));
        let (sha256, _) = sums
            .find(|(_, of)| of == name)
            .with_context(|| format!("{} has no hash of {name}", list.display()))?;
        check_file(&folder.join(name), sha256)?;
    }
    Ok(())
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
        let failed = cache.entry("kernel", &inputs, whole, failing);
        assert!(!cache.folder("kernel", &inputs).exists());
        // For a look, in a place that is said.
        let left = root.path().join("making-kernel");
        let error = format!("{:#}", failed.unwrap_err());
        assert!(error.contains(&left.display().to_string()), "{error}");
        assert!(error.contains("broken"), "{error}");
        assert!(left.join("half").is_file());
        let make = |folder: &Path| {
            assert!(!folder.join("half").exists(), "begins with an empty folder");
            Ok(())
        };
        assert!(cache.entry("kernel", &inputs, whole, make).is_ok());
        assert!(!left.exists());
    }

    #[test]
    fn tries_do_not_add_up_whatever_their_inputs_and_processes() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        // As they were named before, and others that are none of ours to remove.
        for name in [
            "making-kernel-4711",
            "making-kernel-1",
            "making-kernel-other-4711",
            "kernel-4711",
            "making-other",
        ] {
            process::write(&root.path().join(name).join("half"), b"x").unwrap();
        }
        let failing = |_: &Path| anyhow::bail!("broken");
        for number in ["1", "2", "3"] {
            let inputs = Inputs::default().named("config", number);
            assert!(cache.entry("kernel", &inputs, whole, failing).is_err());
        }
        let entries = std::fs::read_dir(root.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "kernel-4711",
                "making-kernel",
                "making-kernel-other-4711",
                "making-kernel.lock",
                "making-other"
            ]
        );
    }

    #[test]
    fn whoever_comes_while_a_result_is_made_waits_and_finds_it() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let inputs = Inputs::default();
        let (other, key) = (cache.clone(), inputs.clone());
        let lock = root.path().join("making-kernel.lock");
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut waiting = None;
        let make = |folder: &Path| {
            // Nobody else could make it now, in this process or in another.
            let locked = File::open(&lock).unwrap().try_lock();
            assert!(matches!(locked, Err(TryLockError::WouldBlock)));
            waiting = Some(std::thread::spawn(move || {
                sender.send(()).unwrap();
                let never = |_: &Path| anyhow::bail!("made twice");
                other.entry("kernel", &key, whole, never).unwrap()
            }));
            receiver.recv().unwrap();
            process::write(&folder.join("result"), b"x")
        };
        let first = cache.entry("kernel", &inputs, whole, make).unwrap();
        let second = waiting.unwrap().join().unwrap();
        assert!(!first.cached && second.cached);
        assert_eq!(first.folder, second.folder);
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
        let check = |folder: &Path| check_sums(folder, &["result"]);
        let entry = || cache.entry("tool", &inputs, check, make).unwrap();
        let folder = entry().folder;
        assert!(entry().cached);
        std::fs::write(folder.join("result"), "wrong").unwrap();
        assert_eq!(cache.find("tool", &inputs, check), None);
        assert!(!entry().cached, "made again");
        assert!(entry().cached);
        std::fs::remove_file(folder.join("result")).unwrap();
        assert!(!entry().cached, "made again");
        // As a power cut leaves them where nothing was written to the disk: no list, empty files, an empty list.
        std::fs::remove_file(folder.join(SUMS)).unwrap();
        assert!(!entry().cached, "made again");
        for name in ["result", SUMS] {
            std::fs::write(folder.join(name), "").unwrap();
            assert_eq!(cache.find("tool", &inputs, check), None, "{name}");
            assert!(!entry().cached, "made again");
        }
        assert!(entry().cached);
        // A list of other files.
        note_sums(&folder, &[]).unwrap();
        assert!(!entry().cached, "made again");
    }
}
