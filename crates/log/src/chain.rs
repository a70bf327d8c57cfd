//! Postings of many keys in one flat array, linked backward, with jump pointers.
//!
//! Each node knows the previous node of its key and one node further back, chosen so that any
//! ancestor is reached in
//! O(log n) steps (Myers, "An applicative random-access stack", 1983). Appending is O(1) and moves nothing.

/// "No node".
pub(crate) const NONE: u32 = u32::MAX;

/// One posting: 16 bytes.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Index of the event in its segment.
    event: u32,
    /// The previous posting of the same key, or itself at the first.
    parent: u32,
    /// A posting further back, or itself at the first.
    jump: u32,
    /// Postings of the key before this one.
    depth: u32,
}

/// Postings of all keys of one kind.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    nodes: Vec<Node>,
}

impl Chains {
    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.nodes.clear();
    }

    /// Makes room for `postings` in all.
    pub(crate) fn reserve(&mut self, postings: usize) {
        self.nodes
            .reserve(postings.saturating_sub(self.nodes.len()));
    }

    /// Bytes of memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }

    /// Adds a posting after `parent` ([`NONE`] for the first of its key) and returns it.
    pub(crate) fn push(&mut self, parent: u32, event: u32) -> u32 {
        let new =
            u32::try_from(self.nodes.len()).expect("a segment holds fewer than 2^32 postings");
        assert!(new != NONE, "a segment holds fewer than 2^32 - 1 postings");
        let node = if parent == NONE {
            Node {
                event,
                parent: new,
                jump: new,
                depth: 0,
            }
        } else {
            let above = self.node(parent);
            assert!(above.event <= event, "postings of a key never go back");
            let first = self.node(above.jump);
            let second = self.node(first.jump);
            let even = above.depth - first.depth == first.depth - second.depth;
            let jump = if even { first.jump } else { parent };
            Node {
                event,
                parent,
                jump,
                depth: above.depth + 1,
            }
        };
        self.nodes.push(node);
        new
    }

    /// Event of a posting.
    pub(crate) fn event(&self, node: u32) -> u32 {
        self.node(node).event
    }

    /// Postings of the key up to and including `node`.
    pub(crate) fn count(&self, node: u32) -> u32 {
        self.node(node).depth + 1
    }

    /// The last posting of the key at or before `node` whose event is at most `event`.
    pub(crate) fn at_or_before(&self, mut node: u32, event: u32) -> Option<u32> {
        loop {
            let here = self.node(node);
            if here.event <= event {
                return Some(node);
            }
            if here.parent == node {
                return None;
            }
            node = if self.node(here.jump).event > event {
                here.jump
            } else {
                here.parent
            };
        }
    }

    /// The posting of the key with `depth` postings before it; `depth` is at most that of `node`.
    pub(crate) fn at_depth(&self, mut node: u32, depth: u32) -> u32 {
        loop {
            let here = self.node(node);
            assert!(depth <= here.depth, "an ancestor is asked for");
            if here.depth == depth {
                return node;
            }
            node = if self.node(here.jump).depth >= depth {
                here.jump
            } else {
                here.parent
            };
        }
    }

    /// Calls `visit` with the events at depths `depths` of the key of `node`, last first.
    pub(crate) fn visit_backward(
        &self,
        node: u32,
        depths: std::ops::Range<u32>,
        mut visit: impl FnMut(u32),
    ) {
        if depths.is_empty() {
            return;
        }
        let mut node = self.at_depth(node, depths.end - 1);
        loop {
            let here = self.node(node);
            visit(here.event);
            if here.depth == depths.start {
                return;
            }
            node = here.parent;
        }
    }

    fn node(&self, node: u32) -> Node {
        self.nodes[usize::try_from(node).expect("32 bits fit usize")]
    }
}
