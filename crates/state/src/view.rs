//! One version of the tables, for readers.
//!
//! A view never changes, costs nothing to clone, and may be read by any thread while the writer goes
//! on. It keeps the nodes alive that the writer has replaced since.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::changes::Changes;
use crate::cursor::{Cursor, Sink};
use crate::fingerprint::Fingerprint;
use crate::limits::to_u64;
use crate::tables::scan_tree;
use crate::tree::Tree;

/// A version of the tables of one module in one partition.
#[derive(Debug, Clone)]
pub struct View {
    trees: Arc<[Tree]>,
    fingerprint: Fingerprint,
}

/// Why two views cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the one version has {from} tables, the other {to}: only versions of the same tables have a difference"
)]
pub struct DifferentTables {
    /// Tables of the earlier version.
    pub from: u32,
    /// Tables of the later one.
    pub to: u32,
}

impl View {
    pub(crate) fn new(trees: Vec<Tree>, fingerprint: Fingerprint) -> View {
        View {
            trees: trees.into(),
            fingerprint,
        }
    }

    pub(crate) fn trees(&self) -> &[Tree] {
        &self.trees
    }

    /// Number of tables.
    pub fn table_count(&self) -> u32 {
        u32::try_from(self.trees.len()).expect("at most TABLES_MAX")
    }

    /// Fingerprint of all rows.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.trees.iter().map(Tree::rows).sum()
    }

    /// Rows of one table; 0 if there is no such table.
    pub fn table_rows(&self, table: u32) -> u64 {
        self.tree(table).map_or(0, Tree::rows)
    }

    /// Bytes of the keys and values of all rows.
    pub fn bytes(&self) -> u64 {
        self.trees.iter().map(Tree::row_bytes).sum()
    }

    /// Bytes allocated for the nodes of this version, most of which other versions share.
    pub fn memory_bytes(&self) -> u64 {
        self.trees.iter().map(|tree| to_u64(tree.memory())).sum()
    }

    pub(crate) fn tree(&self, table: u32) -> Option<&Tree> {
        self.trees.get(usize::try_from(table).ok()?)
    }

    /// The value of a row. None if there is no such row or table.
    pub fn get(&self, table: u32, key: &[u8]) -> Option<&[u8]> {
        self.tree(table)?.get(key)
    }

    /// Tells `sink` up to `limit` rows with keys from `start` (included) to `end` (excluded; none is
    /// the end of the table); ascending, or descending with `reverse`. `sink` answers false if it did
    /// not take the row, and is then not asked again. True if the range has more rows than were
    /// taken.
    pub fn scan(
        &self,
        table: u32,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u64,
        reverse: bool,
        sink: Sink<'_>,
    ) -> bool {
        self.tree(table)
            .is_some_and(|tree| scan_tree(tree, start, end, limit, reverse, sink))
    }

    /// What must be applied to this version to get `later`. Parts of the tables that both share are
    /// not looked at: versions of one history that are near to each other are compared quickly.
    ///
    /// # Errors
    /// [`DifferentTables`] if the numbers of tables differ.
    pub fn diff(&self, later: &View) -> Result<Changes, DifferentTables> {
        let (from, to) = (self.table_count(), later.table_count());
        if from != to {
            return Err(DifferentTables { from, to });
        }
        let mut changes = Changes::new();
        for (table, (from, to)) in (0..).zip(self.trees.iter().zip(later.trees.iter())) {
            diff_tables(from, to, &mut |key, value| changes.push(table, key, value));
        }
        Ok(changes)
    }
}

/// Told a key, and its later value.
type Differs<'a> = &'a mut dyn FnMut(&[u8], Option<&[u8]>);

/// Tells every key whose value differs, with the later value. Gives the number of rows compared.
fn diff_tables(from: &Tree, to: &Tree, differs: Differs<'_>) -> u64 {
    if let (Some(from), Some(to)) = (from.root(), to.root())
        && Arc::ptr_eq(from, to)
    {
        return 0;
    }
    let mut old = Cursor::at_or_after(from, b"");
    let mut new = Cursor::at_or_after(to, b"");
    let mut compared = 0;
    loop {
        let order = match (old.row(), new.row()) {
            (None, None) => return compared,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((before, _)), Some((after, _))) => before.cmp(after),
        };
        if order.is_eq() && old.skip_shared(&mut new) {
            continue;
        }
        compared += 1;
        let before = old.row().filter(|_| order.is_le());
        let after = new.row().filter(|_| order.is_ge());
        if let Some((key, _)) = before {
            old.advance();
            if after.is_none() {
                differs(key, None);
            }
        }
        if let Some((key, value)) = after {
            new.advance();
            if before.is_none_or(|(_, before)| before != value) {
                differs(key, Some(value));
            }
        }
    }
}

/// Rows that a diff of two tables compares.
#[cfg(test)]
pub(crate) fn compared_rows(from: &Tree, to: &Tree) -> u64 {
    diff_tables(from, to, &mut |_, _| {})
}
