//! The simulated directories: a tree as it is seen, a tree as it is on the medium, and the changes
//! between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::prng::SimPrng;

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Link { path: String, node: Node },
    Rename { from: String, to: String },
    Unlink { path: String },
}

impl Change {
    fn dirs(&self) -> [&str; 2] {
        match self {
            Change::Link { path, .. } | Change::Unlink { path } => [parent(path); 2],
            Change::Rename { from, to } => [parent(from), parent(to)],
        }
    }

    fn apply(&self, tree: &mut BTreeMap<String, Node>) {
        match self {
            // A directory that is not there holds no names.
            Change::Link { path, node } if is_dir(tree, parent(path)) => {
                tree.insert(path.clone(), *node);
            }
            Change::Link { .. } => {}
            Change::Unlink { path } => {
                tree.remove(path);
            }
            // Nothing to rename if the creation was lost.
            Change::Rename { from, to } => {
                if let Some(node) = tree.remove(from) {
                    tree.insert(to.clone(), node);
                }
            }
        }
    }
}

/// The root is the empty path and always there.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    current: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    changes: Vec<Change>,
}

/// The directory of a path.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn is_dir(tree: &BTreeMap<String, Node>, path: &str) -> bool {
    path.is_empty() || tree.get(path) == Some(&Node::Dir)
}

impl Names {
    pub(super) fn get(&self, path: &str) -> Option<Node> {
        if path.is_empty() {
            Some(Node::Dir)
        } else {
            self.current.get(path).copied()
        }
    }

    /// The file at `path`.
    pub(super) fn file(&self, path: &str) -> io::Result<u64> {
        match self.get(path) {
            Some(Node::File(inode)) => Ok(inode),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn check_dir(&self, path: &str) -> io::Result<()> {
        match self.get(path) {
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Names and nodes directly in a directory, sorted.
    pub(super) fn entries(&self, dir: &str) -> impl Iterator<Item = (&str, Node)> {
        self.current.iter().filter_map(move |(path, node)| {
            let inside = parent(path) == dir;
            inside.then(|| (path.rsplit('/').next().unwrap_or(path), *node))
        })
    }

    /// All files, sorted by path.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        let files = self.current.iter().filter(|(_, node)| **node != Node::Dir);
        files.map(|(path, _)| path.as_str())
    }

    pub(super) fn link(&mut self, path: &str, node: Node) {
        self.change(Change::Link {
            path: path.to_owned(),
            node,
        });
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        self.change(Change::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
    }

    pub(super) fn unlink(&mut self, path: &str) {
        self.change(Change::Unlink {
            path: path.to_owned(),
        });
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.changes.push(change);
    }

    /// Makes changes in `dir` durable, with all that they build on.
    pub(super) fn sync(&mut self, dir: &str) {
        let mut dirs = BTreeSet::from([dir.to_owned()]);
        for change in &self.changes {
            if change.dirs().contains(&dir) {
                dirs.extend(change.dirs().map(str::to_owned));
            }
        }
        let durable = &mut self.durable;
        self.changes.retain(|change| {
            let synced = change.dirs().iter().any(|dir| dirs.contains(*dir));
            if synced {
                change.apply(durable);
            }
            !synced
        });
    }

    /// Of the changes that are not durable, each happens or not.
    pub(super) fn crash(&mut self, prng: &mut SimPrng) {
        for change in std::mem::take(&mut self.changes) {
            if prng.coin() {
                change.apply(&mut self.durable);
            }
        }
        self.current = self.durable.clone();
    }

    /// Files that some name leads to or may lead to after a crash.
    pub(super) fn inodes(&self) -> BTreeSet<u64> {
        let linked = self.changes.iter().filter_map(|change| match change {
            Change::Link { node, .. } => Some(*node),
            Change::Rename { .. } | Change::Unlink { .. } => None,
        });
        let named = self.current.values().chain(self.durable.values()).copied();
        let inode = |node| match node {
            Node::File(inode) => Some(inode),
            Node::Dir => None,
        };
        named.chain(linked).filter_map(inode).collect()
    }
}
