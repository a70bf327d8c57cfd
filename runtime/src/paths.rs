//! Where things are. One value instead of constants, so that tests have a system of their own in a folder.

use std::path::{Path, PathBuf};

/// A file system tree with everything that this program reads and writes.
#[derive(Debug, Clone)]
pub(crate) struct System {
    root: PathBuf,
}

impl System {
    /// The machine's.
    pub(crate) fn real() -> Self {
        Self { root: "/".into() }
    }

    /// One in a folder.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// A path from the root.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// What this program knows, for its other verbs and for the console. In memory.
    pub(crate) fn run(&self, name: &str) -> PathBuf {
        self.path("run/truthdb").join(name)
    }

    /// On the data partition.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.path("data").join(name)
    }
}
