//! Walking over the rows of one version of a table, forward and backward.

use std::sync::Arc;

use crate::packed::Packed;
use crate::tree::{Node, Tree};

/// What is told each row; false means that the row was not taken and the walk ends.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// A place between the rows of a tree; borrowed from it.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'t> {
    /// Inner nodes from the root down, with the child taken.
    path: Vec<(&'t Arc<Node>, usize)>,
    /// The leaf and the row in it; none beyond the last row or before the first.
    leaf: Option<(&'t Arc<Node>, usize)>,
}

fn rows(leaf: &Node) -> &Packed {
    match leaf {
        Node::Leaf(rows) => rows,
        Node::Inner(_) => unreachable!("a path ends in a leaf"),
    }
}

fn children(node: &Node) -> &[Arc<Node>] {
    match node {
        Node::Inner(inner) => &inner.children,
        Node::Leaf(_) => unreachable!("a path leads over inner nodes"),
    }
}

impl<'t> Cursor<'t> {
    /// At the first row whose key is not below `key`.
    pub(crate) fn at_or_after(tree: &'t Tree, key: &[u8]) -> Cursor<'t> {
        let mut cursor = Cursor::descend(tree, Some(key));
        if let Some((leaf, at)) = cursor.leaf
            && at == rows(leaf).len()
        {
            cursor.next_leaf();
        }
        cursor
    }

    /// At the last row whose key is below `key`; at the last of all without one.
    pub(crate) fn before(tree: &'t Tree, key: Option<&[u8]>) -> Cursor<'t> {
        let mut cursor = Cursor::descend(tree, key);
        if let Some((leaf, at)) = cursor.leaf {
            let end = if key.is_some() { at } else { rows(leaf).len() };
            match end.checked_sub(1) {
                Some(at) => cursor.leaf = Some((leaf, at)),
                None => cursor.previous_leaf(),
            }
        }
        cursor
    }

    /// At the lower bound of `key` in the leaf it belongs to, which may be the leaf's end; without
    /// key in the last leaf.
    fn descend(tree: &'t Tree, key: Option<&[u8]>) -> Cursor<'t> {
        let mut cursor = Cursor {
            path: Vec::new(),
            leaf: None,
        };
        let Some(mut node) = tree.root() else {
            return cursor;
        };
        loop {
            match &**node {
                Node::Leaf(rows) => {
                    let at = key.map_or(0, |key| rows.lower_bound(key));
                    cursor.leaf = Some((node, at));
                    return cursor;
                }
                Node::Inner(inner) => {
                    let last = inner.children.len() - 1;
                    let at = key.map_or(last, |key| inner.child_index(key));
                    cursor.path.push((node, at));
                    node = &inner.children[at];
                }
            }
        }
    }

    /// The row it stands at.
    pub(crate) fn row(&self) -> Option<(&'t [u8], &'t [u8])> {
        self.leaf.map(|(leaf, at)| rows(leaf).row(at))
    }

    /// To the next row.
    pub(crate) fn advance(&mut self) {
        if let Some((leaf, at)) = self.leaf {
            if at + 1 < rows(leaf).len() {
                self.leaf = Some((leaf, at + 1));
            } else {
                self.next_leaf();
            }
        }
    }

    /// To the row before.
    pub(crate) fn retreat(&mut self) {
        if let Some((leaf, at)) = self.leaf {
            match at.checked_sub(1) {
                Some(at) => self.leaf = Some((leaf, at)),
                None => self.previous_leaf(),
            }
        }
    }

    fn next_leaf(&mut self) {
        self.leaf = None;
        while let Some((node, at)) = self.path.pop() {
            let children = children(node);
            if at + 1 < children.len() {
                self.path.push((node, at + 1));
                let mut below = &children[at + 1];
                while let Node::Inner(inner) = &**below {
                    self.path.push((below, 0));
                    below = &inner.children[0];
                }
                self.leaf = Some((below, 0));
                return;
            }
        }
    }

    fn previous_leaf(&mut self) {
        self.leaf = None;
        while let Some((node, at)) = self.path.pop() {
            if let Some(at) = at.checked_sub(1) {
                self.path.push((node, at));
                let mut below = &children(node)[at];
                while let Node::Inner(inner) = &**below {
                    let last = inner.children.len() - 1;
                    self.path.push((below, last));
                    below = &inner.children[last];
                }
                self.leaf = Some((below, rows(below).len() - 1));
                return;
            }
        }
    }

    /// Steps over the largest node that both cursors stand at the first row of and that is one and
    /// the same; false if there is none.
    pub(crate) fn skip_shared(&mut self, other: &mut Cursor<'t>) -> bool {
        let (Some((leaf, 0)), Some((other_leaf, 0))) = (self.leaf, other.leaf) else {
            return false;
        };
        if !Arc::ptr_eq(leaf, other_leaf) {
            return false;
        }
        // Both stand at the first row of the node above as long as they took its first child.
        let steps = self.path.iter().rev().zip(other.path.iter().rev());
        let levels = steps
            .take_while(|((a, at), (b, other_at))| *at == 0 && *other_at == 0 && Arc::ptr_eq(a, b))
            .count();
        for cursor in [self, other] {
            cursor.path.truncate(cursor.path.len() - levels);
            cursor.next_leaf();
        }
        true
    }
}

/// Tells `sink` up to `limit` rows from `start` (included) to `end` (excluded; none is the end of the
/// table) in ascending order. True if there are more.
pub(crate) fn scan_forward(
    tree: &Tree,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u64,
    sink: Sink<'_>,
) -> bool {
    let mut cursor = Cursor::at_or_after(tree, start);
    let mut left = limit;
    // Leaf by leaf: the end of the range is looked for once in each.
    while let Some((leaf, from)) = cursor.leaf {
        let rows = rows(leaf);
        let to = match end {
            Some(end) if rows.key(rows.len() - 1) >= end => rows.lower_bound(end),
            _ => rows.len(),
        };
        for at in from..to {
            let (key, value) = rows.row(at);
            if left == 0 || !sink(key, value) {
                return true;
            }
            left -= 1;
        }
        if to < rows.len() {
            return false;
        }
        cursor.next_leaf();
    }
    false
}

/// Like [`scan_forward`], in descending order.
pub(crate) fn scan_backward(
    tree: &Tree,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u64,
    sink: Sink<'_>,
) -> bool {
    let mut cursor = Cursor::before(tree, end);
    let mut left = limit;
    while let Some((leaf, last)) = cursor.leaf {
        let rows = rows(leaf);
        let from = if rows.key(0) < start {
            rows.lower_bound(start)
        } else {
            0
        };
        for at in (from..=last).rev() {
            let (key, value) = rows.row(at);
            if left == 0 || !sink(key, value) {
                return true;
            }
            left -= 1;
        }
        if from > 0 {
            return false;
        }
        cursor.previous_leaf();
    }
    false
}
