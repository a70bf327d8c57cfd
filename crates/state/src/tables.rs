//! The tables of one module in one partition: the version that their single writer works on.
//!
//! Model: committed rows in one tree for each table, and an overlay, a tree too, with the writes of
//! the running batch. Reads see the overlay; a commit folds it into the trees in key order, keeps the
//! fingerprint, and gives what really changed. A rollback drops the overlay: the trees were never
//! touched.
//!
//! Invariants: the fingerprint is that of the committed rows; [`Tables::view`] and what is derived
//! from it never contain a part of a batch. Nothing here fails half-way: writes are checked before
//! they enter the overlay, and a commit cannot fail.

use crate::changes::Changes;
use crate::cursor::{Cursor, Sink, scan_backward, scan_forward};
use crate::fingerprint::Fingerprint;
use crate::limits::{KEY_BYTES_MAX, TABLES_MAX, VALUE_BYTES_MAX, to_u64};
use crate::overlay::{TreeRows, overlay_write, scan_merged, written};
use crate::tree::Tree;
use crate::view::View;

/// Why a write to a table is refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The module has no such table.
    #[error("there is no table {table}: the module declares {table_count}")]
    UnknownTable {
        /// Index that was asked for.
        table: u32,
        /// Tables that there are.
        table_count: u32,
    },
    /// The key is too long.
    #[error("a key of {bytes} bytes is too long: keys have at most {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// Length in bytes.
        bytes: usize,
    },
    /// The value is too long.
    #[error("a value of {bytes} bytes is too long: values have at most {VALUE_BYTES_MAX}")]
    ValueTooLong {
        /// Length in bytes.
        bytes: usize,
    },
}

/// The tables of one module in one partition, with at most one running batch.
#[derive(Debug)]
pub struct Tables {
    trees: Vec<Tree>,
    fingerprint: Fingerprint,
    /// Writes of the running batch, for each table; empty between batches.
    overlay: Vec<Tree>,
    /// The value of one write with its tag.
    tagged: Vec<u8>,
    running: bool,
}

impl Tables {
    /// Empty tables with the indices from 0 to `table_count - 1`.
    ///
    /// # Panics
    /// If there are more than [`TABLES_MAX`]: manifests of modules are checked before.
    pub fn new(table_count: u32) -> Tables {
        assert!(table_count <= TABLES_MAX, "at most {TABLES_MAX} tables");
        let trees = (0..table_count).map(|_| Tree::default()).collect();
        Tables::of(trees, Fingerprint::EMPTY)
    }

    pub(crate) fn of(trees: Vec<Tree>, fingerprint: Fingerprint) -> Tables {
        let overlay = trees.iter().map(|_| Tree::default()).collect();
        Tables {
            trees,
            fingerprint,
            overlay,
            tagged: Vec::new(),
            running: false,
        }
    }

    /// Tables that go on from a version. Takes no time: nodes are shared until one side changes
    /// them.
    pub fn from_view(view: &View) -> Tables {
        Tables::of(view.trees().to_vec(), view.fingerprint())
    }

    /// The committed version. Takes the time of as many reference counts as there are tables.
    pub fn view(&mut self) -> View {
        View::new(self.trees.clone(), self.fingerprint)
    }

    /// Number of tables.
    pub fn table_count(&self) -> u32 {
        u32::try_from(self.trees.len()).expect("at most TABLES_MAX")
    }

    /// Fingerprint of the committed rows.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Committed rows of all tables.
    pub fn rows(&self) -> u64 {
        self.trees.iter().map(Tree::rows).sum()
    }

    /// Bytes of the keys and values of all committed rows.
    pub fn bytes(&self) -> u64 {
        self.trees.iter().map(Tree::row_bytes).sum()
    }

    /// Bytes allocated for the committed version. Versions that are retained share most of it; what
    /// they hold beyond it is at most what [`Tables::copied_bytes`] has grown by since they were
    /// taken.
    pub fn memory_bytes(&self) -> u64 {
        self.trees.iter().map(|tree| to_u64(tree.memory())).sum()
    }

    /// Bytes of nodes that had to be copied because a retained version holds them, since these
    /// tables were made. Only grows.
    pub fn copied_bytes(&self) -> u64 {
        self.trees.iter().map(Tree::copied).sum()
    }

    /// Bytes of keys and values in the running batch's writes, and one more for each row. Between
    /// batches 0.
    pub fn pending_bytes(&self) -> u64 {
        self.overlay.iter().map(Tree::row_bytes).sum()
    }

    /// Whether a batch is running.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Begins a batch.
    ///
    /// # Panics
    /// If one is running: a bug of the caller.
    pub fn begin(&mut self) {
        assert!(!self.running, "one batch at a time");
        self.running = true;
    }

    /// The value of a row, as the running batch sees it. None if there is no such row or table.
    pub fn get(&self, table: u32, key: &[u8]) -> Option<&[u8]> {
        let at = usize::try_from(table).ok()?;
        match self.overlay.get(at)?.get(key) {
            Some(value) => written(value),
            None => self.trees[at].get(key),
        }
    }

    /// Tells `sink` up to `limit` rows with keys from `start` (included) to `end` (excluded; none is
    /// the end of the table), as the running batch sees them; ascending, or descending with
    /// `reverse`. `sink` answers false if it did not take the row, and is then not asked again.
    /// True if the range has more rows than were taken.
    pub fn scan(
        &self,
        table: u32,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u64,
        reverse: bool,
        sink: Sink<'_>,
    ) -> bool {
        let Some(at) = self.index(table) else {
            return false;
        };
        let (tree, overlay) = (&self.trees[at], &self.overlay[at]);
        if overlay.rows() == 0 {
            scan_tree(tree, start, end, limit, reverse, sink)
        } else {
            let rows = TreeRows::new(tree, (start, end), reverse);
            match scan_merged(rows, overlay, (start, end), limit, reverse, sink) {
                Ok(more) => more,
                Err(never) => match never {},
            }
        }
    }

    fn index(&self, table: u32) -> Option<usize> {
        usize::try_from(table)
            .ok()
            .filter(|at| *at < self.trees.len())
    }

    fn writable(&self, table: u32) -> Result<usize, TableError> {
        assert!(self.running, "rows are written within a batch");
        let table_count = self.table_count();
        self.index(table)
            .ok_or(TableError::UnknownTable { table, table_count })
    }

    /// Sets a row within the running batch.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    ///
    /// # Panics
    /// If no batch is running: a bug of the caller.
    pub fn set(&mut self, table: u32, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        let at = self.writable(table)?;
        check_key(key)?;
        if value.len() > VALUE_BYTES_MAX {
            let bytes = value.len();
            return Err(TableError::ValueTooLong { bytes });
        }
        overlay_write(&mut self.overlay[at], key, Some(value), &mut self.tagged);
        Ok(())
    }

    /// Deletes a row within the running batch. False if there is none.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    ///
    /// # Panics
    /// If no batch is running: a bug of the caller.
    pub fn delete(&mut self, table: u32, key: &[u8]) -> Result<bool, TableError> {
        let at = self.writable(table)?;
        check_key(key)?;
        let exists = self.get(table, key).is_some();
        if exists {
            overlay_write(&mut self.overlay[at], key, None, &mut self.tagged);
        }
        Ok(exists)
    }

    /// Deletes the rows with keys from `start` (included) to `end` (excluded; none is the end of the
    /// table) within the running batch, and gives their number. Costs time and memory for each.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    ///
    /// # Panics
    /// If no batch is running: a bug of the caller.
    pub fn delete_range(
        &mut self,
        table: u32,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> Result<u64, TableError> {
        let at = self.writable(table)?;
        let mut keys = Vec::new();
        self.scan(table, start, end, u64::MAX, false, &mut |key, _| {
            keys.push(key.to_vec());
            true
        });
        for key in &keys {
            overlay_write(&mut self.overlay[at], key, None, &mut self.tagged);
        }
        Ok(to_u64(keys.len()))
    }

    /// Ends the running batch: its writes become the committed version. Gives the rows that are
    /// different now; setting a row to the value it had is no change.
    ///
    /// # Panics
    /// If no batch is running: a bug of the caller.
    pub fn commit(&mut self) -> Changes {
        assert!(self.running, "there is a batch to commit");
        let mut changes = Changes::new();
        for table in 0..self.table_count() {
            let at = self.index(table).expect("one of the tables");
            let overlay = std::mem::take(&mut self.overlay[at]);
            let mut writes = Cursor::at_or_after(&overlay, b"");
            while let Some((key, value)) = writes.row() {
                let value = written(value);
                if self.change(at, table, key, value) {
                    changes.push(table, key, value);
                }
                writes.advance();
            }
        }
        self.running = false;
        changes
    }

    /// Ends the running batch without a trace.
    ///
    /// # Panics
    /// If no batch is running: a bug of the caller.
    pub fn rollback(&mut self) {
        assert!(self.running, "there is a batch to roll back");
        self.overlay.fill(Tree::default());
        self.running = false;
    }

    /// Applies what an earlier commit gave, or a diff, to the committed version.
    ///
    /// # Errors
    /// [`TableError::UnknownTable`] if the changes are of tables that are not here; nothing has
    /// changed then.
    ///
    /// # Panics
    /// If a batch is running: a bug of the caller.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), TableError> {
        assert!(!self.running, "changes are applied between batches");
        if let Some(table) = changes.last_table()
            && self.index(table).is_none()
        {
            let table_count = self.table_count();
            return Err(TableError::UnknownTable { table, table_count });
        }
        for change in changes {
            let at = self
                .index(change.table)
                .expect("not above the last changed table");
            self.change(at, change.table, change.key, change.value);
        }
        Ok(())
    }

    /// Changes a committed row; false if it is as it was.
    fn change(&mut self, at: usize, table: u32, key: &[u8], value: Option<&[u8]>) -> bool {
        let mut fingerprint = self.fingerprint;
        let mut seen = |old: Option<&[u8]>| {
            if let Some(old) = old {
                fingerprint.subtract(Fingerprint::of_row(table, key, old));
            }
        };
        let changed = match value {
            Some(value) => self.trees[at].set(key, value, &mut seen),
            None => self.trees[at].remove(key, &mut seen),
        };
        if changed {
            if let Some(value) = value {
                fingerprint.add(Fingerprint::of_row(table, key, value));
            }
            self.fingerprint = fingerprint;
        }
        changed
    }
}

fn check_key(key: &[u8]) -> Result<(), TableError> {
    let bytes = key.len();
    if bytes > KEY_BYTES_MAX {
        return Err(TableError::KeyTooLong { bytes });
    }
    Ok(())
}

pub(crate) fn scan_tree(
    tree: &Tree,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u64,
    reverse: bool,
    sink: Sink<'_>,
) -> bool {
    if reverse {
        scan_backward(tree, start, end, limit, sink)
    } else {
        scan_forward(tree, start, end, limit, sink)
    }
}
