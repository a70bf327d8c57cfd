//! A copy-on-write B+tree from bytes to bytes: one table in one version.
//!
//! Model: nodes behind `Arc`. A clone of the tree is the root's `Arc` and a few numbers; both trees
//! then share all nodes. A change copies the nodes on its path that somebody else holds too, once,
//! and changes the others in place: without retained versions nothing is ever copied, with one
//! retained every n changes a node is copied at most once in n.
//!
//! Invariants: keys ascend over all leaves; no leaf and no inner node is empty; all leaves have the
//! same depth; `rows`, `row_bytes` and `memory` describe exactly the nodes below the root. The shape
//! depends on the history and is nobody's business: fingerprints and chunks do not.

use std::sync::Arc;

use crate::packed::{Packed, common_prefix};

/// A leaf that uses more than this many bytes is split, unless it holds a single row.
pub(crate) const LEAF_BYTES_MAX: usize = 4096;
/// An inner node with more children is split.
pub(crate) const CHILDREN_MAX: usize = 64;
/// A leaf that uses fewer bytes is merged with a neighbour where the two fit in
/// [`LEAF_MERGED_BYTES_MAX`].
const LEAF_BYTES_MIN: usize = LEAF_BYTES_MAX / 4;
const LEAF_MERGED_BYTES_MAX: usize = LEAF_BYTES_MAX / 4 * 3;
/// The same for inner nodes, in children.
const CHILDREN_MIN: usize = CHILDREN_MAX / 4;
const CHILDREN_MERGED_MAX: usize = CHILDREN_MAX / 4 * 3;
/// Two counters before each node.
const ARC_BYTES: usize = 16;

const _: () = assert!(LEAF_BYTES_MIN * 2 <= LEAF_MERGED_BYTES_MAX);
const _: () = assert!(CHILDREN_MIN * 2 <= CHILDREN_MERGED_MAX);

/// A node of the tree.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// Rows.
    Leaf(Packed),
    /// Children.
    Inner(Inner),
}

/// Children and the keys that separate them: keys below separator `i` are in child `i` or before,
/// all others after it.
#[derive(Debug, Clone)]
pub(crate) struct Inner {
    /// One fewer than children; without values.
    pub(crate) separators: Packed,
    pub(crate) children: Vec<Arc<Node>>,
}

impl Inner {
    /// Bytes allocated besides the children themselves.
    pub(crate) fn own_memory(&self) -> usize {
        self.separators.memory() + self.children.capacity() * size_of::<Arc<Node>>()
    }

    pub(crate) fn child_index(&self, key: &[u8]) -> usize {
        match self.separators.search(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }
}

impl Node {
    pub(crate) fn memory(&self) -> usize {
        let own = match self {
            Node::Leaf(rows) => rows.memory(),
            Node::Inner(inner) => inner.own_memory(),
        };
        own + size_of::<Node>() + ARC_BYTES
    }

    fn is_small(&self) -> bool {
        match self {
            Node::Leaf(rows) => rows.used() < LEAF_BYTES_MIN,
            Node::Inner(inner) => inner.children.len() < CHILDREN_MIN,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(rows) => rows.len() == 0,
            Node::Inner(inner) => inner.children.is_empty(),
        }
    }
}

/// One table in one version.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    root: Option<Arc<Node>>,
    rows: u64,
    row_bytes: u64,
    tally: Tally,
}

/// Bytes that changes allocate, free and copy.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Of all nodes below the root.
    memory: usize,
    /// Of nodes that were copied because another version holds them, since the tree was made.
    copied: u64,
}

impl Tally {
    fn replace(&mut self, before: usize, after: usize) {
        self.memory = self.memory + after - before;
    }
}

/// A node that was split off, and the lowest key that belongs to it.
pub(crate) type Sibling = (Vec<u8>, Arc<Node>);

/// Told the value that a change replaces.
pub(crate) type Seen<'a> = &'a mut dyn FnMut(Option<&[u8]>);

impl Tree {
    pub(crate) fn root(&self) -> Option<&Arc<Node>> {
        self.root.as_ref()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of all keys and values.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    /// Bytes allocated for the nodes of this version.
    pub(crate) fn memory(&self) -> usize {
        self.tally.memory
    }

    pub(crate) fn copied(&self) -> u64 {
        self.tally.copied
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Leaf(rows) => return rows.search(key).ok().map(|at| rows.value(at)),
                Node::Inner(inner) => node = &inner.children[inner.child_index(key)],
            }
        }
    }

    /// A tree of these nodes; `rows` and `row_bytes` are theirs.
    pub(crate) fn of(root: Option<Arc<Node>>, rows: u64, row_bytes: u64, memory: usize) -> Tree {
        Tree {
            root,
            rows,
            row_bytes,
            tally: Tally { memory, copied: 0 },
        }
    }

    /// Sets a row. Unless the value is the one that is there, `seen` is told the old value, and the
    /// answer is true.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8], seen: Seen<'_>) -> bool {
        let Some(root) = &mut self.root else {
            seen(None);
            let mut rows = Packed::default();
            rows.push(key, value);
            let root = Node::Leaf(rows);
            self.tally.replace(0, root.memory());
            self.root = Some(Arc::new(root));
            self.rows = 1;
            self.row_bytes = bytes_of(key, value.len());
            return true;
        };
        let mut replaced = None;
        let mut told = |old: Option<&[u8]>| {
            replaced = Some(old.map(<[u8]>::len));
            seen(old);
        };
        let sibling = set_in(root, key, value, &mut told, &mut self.tally);
        let Some(old) = replaced else {
            return false;
        };
        self.row_bytes += bytes_of(key, value.len());
        match old {
            Some(old) => self.row_bytes -= bytes_of(key, old),
            None => self.rows += 1,
        }
        if let Some((separator, right)) = sibling {
            let left = std::mem::replace(root, Arc::clone(&right));
            let mut separators = Packed::default();
            separators.push(&separator, b"");
            let children = vec![left, right];
            let node = Node::Inner(Inner {
                separators,
                children,
            });
            self.tally.replace(0, node.memory());
            *root = Arc::new(node);
        }
        true
    }

    /// Removes a row; `seen` is told its value. False if there is none.
    pub(crate) fn remove(&mut self, key: &[u8], seen: Seen<'_>) -> bool {
        let Some(value_bytes) = self.get(key).map(<[u8]>::len) else {
            return false;
        };
        self.rows -= 1;
        self.row_bytes -= bytes_of(key, value_bytes);
        let root = self.root.as_mut().expect("a tree with a row has a root");
        remove_in(root, key, seen, &mut self.tally);
        loop {
            let next = match &**root {
                Node::Inner(inner) if inner.children.len() == 1 => Arc::clone(&inner.children[0]),
                node if node.is_empty() => {
                    self.tally.replace(node.memory(), 0);
                    self.root = None;
                    return true;
                }
                _ => return true,
            };
            self.tally.replace(root.memory(), 0);
            *root = next;
        }
    }
}

fn bytes_of(key: &[u8], value: usize) -> u64 {
    crate::limits::to_u64(key.len() + value)
}

/// The node for changing: itself if nobody else holds it, a copy otherwise.
fn own<'n>(node: &'n mut Arc<Node>, tally: &mut Tally) -> &'n mut Node {
    // Nobody can take a second reference meanwhile: it would have to come from this one.
    if Arc::strong_count(node) != 1 {
        let copy = Node::clone(node);
        tally.replace(node.memory(), copy.memory());
        tally.copied += crate::limits::to_u64(copy.memory());
        *node = Arc::new(copy);
    }
    Arc::get_mut(node).expect("this is the only reference")
}

fn own_inner<'n>(node: &'n mut Arc<Node>, tally: &mut Tally) -> &'n mut Inner {
    match own(node, tally) {
        Node::Inner(inner) => inner,
        Node::Leaf(_) => unreachable!("the caller saw an inner node"),
    }
}

fn own_leaf<'n>(node: &'n mut Arc<Node>, tally: &mut Tally) -> &'n mut Packed {
    match own(node, tally) {
        Node::Leaf(rows) => rows,
        Node::Inner(_) => unreachable!("the caller saw a leaf"),
    }
}

fn set_in(
    node: &mut Arc<Node>,
    key: &[u8],
    value: &[u8],
    seen: Seen<'_>,
    tally: &mut Tally,
) -> Option<Sibling> {
    match &**node {
        Node::Leaf(rows) => {
            let found = rows.search(key);
            match found {
                Ok(at) if rows.value(at) == value => return None,
                Ok(at) => seen(Some(rows.value(at))),
                Err(_) => seen(None),
            }
            set_in_leaf(own_leaf(node, tally), found, key, value, tally)
        }
        Node::Inner(inner) => {
            let at = inner.child_index(key);
            let inner = own_inner(node, tally);
            let sibling = set_in(&mut inner.children[at], key, value, seen, tally)?;
            insert_child(inner, at, sibling, tally)
        }
    }
}

fn set_in_leaf(
    rows: &mut Packed,
    found: Result<usize, usize>,
    key: &[u8],
    value: &[u8],
    tally: &mut Tally,
) -> Option<Sibling> {
    let before = rows.memory();
    let at = match found {
        Ok(at) => {
            rows.replace(at, value);
            at
        }
        Err(at) => {
            rows.insert(at, key, value);
            at
        }
    };
    let sibling = (rows.used() > LEAF_BYTES_MAX && rows.len() > 1).then(|| {
        let right = rows.split_off(rows.split_at(at));
        let separator = separator(rows.key(rows.len() - 1), right.key(0)).to_vec();
        let right = Node::Leaf(right);
        tally.replace(0, right.memory());
        (separator, Arc::new(right))
    });
    tally.replace(before, rows.memory());
    sibling
}

/// The shortest key that is above `left` and not above `right`.
pub(crate) fn separator<'k>(left: &[u8], right: &'k [u8]) -> &'k [u8] {
    &right[..=common_prefix(left, right)]
}

fn insert_child(
    inner: &mut Inner,
    at: usize,
    (separator, right): Sibling,
    tally: &mut Tally,
) -> Option<Sibling> {
    let before = inner.own_memory();
    inner.separators.insert(at, &separator, b"");
    if inner.children.len() == inner.children.capacity() {
        inner.children.reserve_exact(1 + inner.children.len() / 4);
    }
    inner.children.insert(at + 1, right);
    let sibling = (inner.children.len() > CHILDREN_MAX).then(|| {
        // Children that come in order leave full nodes behind.
        let keep = if at + 2 == inner.children.len() {
            CHILDREN_MAX - 1
        } else {
            inner.children.len() / 2
        };
        let children = inner.children.split_off(keep);
        inner.children.shrink_to(keep + 1);
        let separators = inner.separators.split_off(keep);
        let separator = inner.separators.key(keep - 1).to_vec();
        inner.separators.remove(keep - 1);
        let right = Node::Inner(Inner {
            separators,
            children,
        });
        tally.replace(0, right.memory());
        (separator, Arc::new(right))
    });
    tally.replace(before, inner.own_memory());
    sibling
}

/// Removes a row that is known to be there.
fn remove_in(node: &mut Arc<Node>, key: &[u8], seen: Seen<'_>, tally: &mut Tally) {
    match &**node {
        Node::Leaf(_) => {
            let rows = own_leaf(node, tally);
            let at = rows.search(key).expect("the caller saw the row");
            seen(Some(rows.value(at)));
            let before = rows.memory();
            rows.remove(at);
            tally.replace(before, rows.memory());
        }
        Node::Inner(inner) => {
            let at = inner.child_index(key);
            let inner = own_inner(node, tally);
            remove_in(&mut inner.children[at], key, seen, tally);
            let before = inner.own_memory();
            if inner.children[at].is_empty() {
                tally.replace(inner.children[at].memory(), 0);
                remove_child(inner, at);
            } else if inner.children[at].is_small() {
                merge_with_neighbour(inner, at, tally);
            }
            tally.replace(before, inner.own_memory());
        }
    }
}

fn remove_child(inner: &mut Inner, at: usize) {
    inner.children.remove(at);
    if inner.separators.len() > 0 {
        inner.separators.remove(at.saturating_sub(1));
    }
}

/// Merges a small child with the one beside it, if the two fit well in one.
fn merge_with_neighbour(inner: &mut Inner, at: usize, tally: &mut Tally) {
    for left in [Some(at), at.checked_sub(1)].into_iter().flatten() {
        let right = left + 1;
        if right >= inner.children.len() || !fit(&inner.children[left], &inner.children[right]) {
            continue;
        }
        let taken = Arc::clone(&inner.children[right]);
        let target = own(&mut inner.children[left], tally);
        let before = target.memory();
        match (&mut *target, &*taken) {
            (Node::Leaf(rows), Node::Leaf(more)) => {
                for row in 0..more.len() {
                    let (key, value) = more.row(row);
                    rows.push(key, value);
                }
            }
            (Node::Inner(target), Node::Inner(more)) => {
                target.separators.push(inner.separators.key(left), b"");
                for separator in 0..more.separators.len() {
                    target.separators.push(more.separators.key(separator), b"");
                }
                target.children.extend(more.children.iter().map(Arc::clone));
            }
            _ => unreachable!("all leaves have the same depth"),
        }
        let after = target.memory();
        tally.replace(before + taken.memory(), after);
        inner.children.remove(right);
        inner.separators.remove(left);
        return;
    }
}

fn fit(left: &Node, right: &Node) -> bool {
    match (left, right) {
        (Node::Leaf(left), Node::Leaf(right)) => {
            left.used() + right.used() <= LEAF_MERGED_BYTES_MAX
        }
        (Node::Inner(left), Node::Inner(right)) => {
            left.children.len() + right.children.len() <= CHILDREN_MERGED_MAX
        }
        _ => unreachable!("all leaves have the same depth"),
    }
}
