//! Making tables of rows that come sorted: what loading a snapshot does.
//!
//! Leaves are filled one after the other and the levels above them are made at the end; no row is
//! looked for, and nothing is moved twice. Rows out of order are an error, not a bug: they come from
//! a disk.

use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::limits::{KEY_BYTES_MAX, TABLES_MAX, VALUE_BYTES_MAX, to_u64};
use crate::packed::{Packed, SLOT_BYTES};
use crate::tables::Tables;
use crate::tree::{CHILDREN_MAX, Inner, LEAF_BYTES_MAX, Node, Sibling, Tree, separator};

/// How full leaves and inner nodes are made.
const LEAF_BYTES_BUILT: usize = LEAF_BYTES_MAX / 8 * 7;
const CHILDREN_BUILT: usize = CHILDREN_MAX / 8 * 7;

/// A row that cannot follow the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnsortedRow {
    /// Its table is not the present one or a later one, or there is no such table.
    #[error("a row of table {table} cannot follow rows of table {after} (of {table_count} tables)")]
    Table {
        /// Table of the row.
        table: u32,
        /// Table of the row before.
        after: u32,
        /// Tables that there are.
        table_count: u32,
    },
    /// Its key is not above the one before.
    #[error("row {row} of table {table} is not above the one before")]
    Key {
        /// Table of the row.
        table: u32,
        /// Index of the row in its table.
        row: u64,
    },
    /// Its key or value is too long.
    #[error("row {row} of table {table} exceeds the limits of rows")]
    TooLong {
        /// Table of the row.
        table: u32,
        /// Index of the row in its table.
        row: u64,
    },
}

/// Makes [`Tables`] of rows in the order of (table, key), and computes their fingerprint.
#[derive(Debug)]
pub struct TablesBuilder {
    trees: Vec<Tree>,
    table_count: u32,
    fingerprint: Fingerprint,
    table: u32,
    present: TreeBuilder,
}

impl TablesBuilder {
    /// For tables with the indices from 0 to `table_count - 1`.
    ///
    /// # Panics
    /// If there are more than [`TABLES_MAX`].
    pub fn new(table_count: u32) -> TablesBuilder {
        assert!(table_count <= TABLES_MAX, "at most {TABLES_MAX} tables");
        TablesBuilder {
            trees: Vec::new(),
            table_count,
            fingerprint: Fingerprint::EMPTY,
            table: 0,
            present: TreeBuilder::default(),
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`UnsortedRow`] if it does not follow the ones before, or exceeds a limit; the row was not
    /// added then.
    pub fn push(&mut self, table: u32, key: &[u8], value: &[u8]) -> Result<(), UnsortedRow> {
        if table < self.table || table >= self.table_count {
            return Err(UnsortedRow::Table {
                table,
                after: self.table,
                table_count: self.table_count,
            });
        }
        let row = if table == self.table {
            self.present.row_count
        } else {
            0
        };
        if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(UnsortedRow::TooLong { table, row });
        }
        if table == self.table && self.present.last_key().is_some_and(|last| last >= key) {
            return Err(UnsortedRow::Key { table, row });
        }
        self.enter(table);
        self.fingerprint.add(Fingerprint::of_row(table, key, value));
        self.present.push(key, value);
        Ok(())
    }

    fn enter(&mut self, table: u32) {
        while self.table < table {
            self.trees.push(std::mem::take(&mut self.present).finish());
            self.table += 1;
        }
    }

    /// The tables.
    pub fn finish(mut self) -> Tables {
        self.enter(self.table_count);
        Tables::of(self.trees, self.fingerprint)
    }
}

/// Makes a tree of rows that come in ascending order, leaf by leaf.
#[derive(Debug, Default)]
struct TreeBuilder {
    /// Finished nodes, each with the lowest key that belongs to it.
    leaves: Vec<Sibling>,
    /// The leaf being filled, and the lowest key that belongs to it.
    leaf: Packed,
    lowest: Vec<u8>,
    row_count: u64,
    row_bytes: u64,
    memory: usize,
}

impl TreeBuilder {
    /// The last key that was pushed.
    fn last_key(&self) -> Option<&[u8]> {
        self.leaf.len().checked_sub(1).map(|at| self.leaf.key(at))
    }

    /// Adds a row whose key is above all others.
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let row = key.len() + value.len() + SLOT_BYTES;
        if self.leaf.len() > 0 && self.leaf.used() + row > LEAF_BYTES_BUILT {
            let last = self.leaf.key(self.leaf.len() - 1);
            let lowest = separator(last, key).to_vec();
            self.finish_leaf();
            self.lowest = lowest;
        }
        self.leaf.push(key, value);
        self.row_count += 1;
        self.row_bytes += to_u64(key.len() + value.len());
    }

    fn finish_leaf(&mut self) {
        let rows = std::mem::take(&mut self.leaf);
        let lowest = std::mem::take(&mut self.lowest);
        let leaf = self.node(Node::Leaf(rows));
        self.leaves.push((lowest, leaf));
    }

    /// The tree.
    fn finish(mut self) -> Tree {
        if self.leaf.len() > 0 {
            self.finish_leaf();
        }
        let mut level = std::mem::take(&mut self.leaves);
        while level.len() > 1 {
            // Even shares, so that the last one is not too small.
            let nodes = level.len().div_ceil(CHILDREN_BUILT);
            let share = level.len().div_ceil(nodes);
            let mut above = Vec::with_capacity(nodes);
            let mut below = level.into_iter();
            while let Some((lowest, first)) = below.next() {
                let mut separators = Packed::default();
                let mut children = Vec::with_capacity(share);
                children.push(first);
                for (lowest, child) in below.by_ref().take(share - 1) {
                    separators.push(&lowest, b"");
                    children.push(child);
                }
                let node = Node::Inner(Inner {
                    separators,
                    children,
                });
                above.push((lowest, self.node(node)));
            }
            level = above;
        }
        let root = level.pop().map(|(_, root)| root);
        Tree::of(root, self.row_count, self.row_bytes, self.memory)
    }

    fn node(&mut self, node: Node) -> Arc<Node> {
        self.memory += node.memory();
        Arc::new(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_tables_are_those_that_were_written() {
        for rows in [0_u32, 1, 70, 5_000, 60_000] {
            let mut written = Tables::new(3);
            let mut builder = TablesBuilder::new(3);
            written.begin();
            for table in [0, 2] {
                for n in 0..rows {
                    let key = format!("{n:08}");
                    let value = vec![7; (n % 40) as usize];
                    written.set(table, key.as_bytes(), &value).unwrap();
                    builder.push(table, key.as_bytes(), &value).unwrap();
                }
            }
            written.commit();
            let mut built = builder.finish();
            assert_eq!(built.fingerprint(), written.fingerprint());
            let same = built.view().diff(&written.view()).unwrap();
            assert!(same.is_empty());
            assert_eq!(
                (built.rows(), built.bytes()),
                (written.rows(), written.bytes())
            );
            built
                .view()
                .trees()
                .iter()
                .for_each(crate::tables_tests::check_tree);
            // A built tree is one like any other.
            built.begin();
            assert_eq!(built.delete_range(2, b"", None), Ok(u64::from(rows)));
            built.commit();
            assert_eq!(built.rows(), u64::from(rows));
            built
                .view()
                .trees()
                .iter()
                .for_each(crate::tables_tests::check_tree);
        }
    }

    #[test]
    fn rows_out_of_order_are_refused() {
        let mut builder = TablesBuilder::new(2);
        builder.push(1, b"b", b"").unwrap();
        for (table, key) in [(1, b"b"), (1, b"a"), (0, b"c"), (2, b"c")] {
            assert!(builder.push(table, key, b"").is_err(), "{table} {key:?}");
        }
        let long = vec![0; VALUE_BYTES_MAX + 1];
        let error = builder.push(1, b"c", &long).unwrap_err();
        assert_eq!(error, UnsortedRow::TooLong { table: 1, row: 1 });
        builder.push(1, b"c", b"").unwrap();
        assert_eq!(builder.finish().rows(), 2);
    }
}
