//! The tables that guests see: those of the fold, which can be written, and versions to read.

use truthdb_module::{KeyRange, PAGE_BYTES_MAX, Page, StateFault, StateRead, StateWrite};
use truthdb_state::{SnapshotError, Tables};

use crate::past::Rows;

/// Bytes of keys and values that one batch may write, all its writes together.
pub const BATCH_WRITE_BYTES_MAX: u64 = 64 << 20;

/// The fold's own tables. A batch is running while a guest has them.
#[derive(Debug)]
pub struct FoldTables {
    pub(crate) tables: Tables,
    /// The running batch wrote more than [`BATCH_WRITE_BYTES_MAX`].
    pub(crate) is_over: bool,
}

impl FoldTables {
    pub(crate) fn new(tables: Tables) -> FoldTables {
        FoldTables {
            tables,
            is_over: false,
        }
    }
}

/// Versions of tables of other modules, for validators and query operators: table `i` of the guest
/// is a table of one of them.
#[derive(Debug, Default)]
pub struct ReadTables {
    /// For each table of the guest: the version, and the table's index in it.
    pub(crate) tables: Vec<(Rows, u32)>,
    /// The snapshot that a version lies in could not be read: the call's failure is not the guest's.
    pub(crate) damaged: Option<SnapshotError>,
}

fn fault(error: truthdb_state::TableError) -> StateFault {
    StateFault {
        reason: error.to_string(),
    }
}

/// Takes rows into a page until its bytes are used up; a first row always fits.
fn take(page: &mut Page, key: &[u8], value: &[u8]) -> bool {
    if !page.is_empty() && page.data.len() + key.len() + value.len() > PAGE_BYTES_MAX {
        return false;
    }
    page.push(key, value);
    true
}

impl StateRead for FoldTables {
    fn get(&mut self, table: u32, key: &[u8]) -> Result<Option<Vec<u8>>, StateFault> {
        Ok(self.tables.get(table, key).map(<[u8]>::to_vec))
    }

    fn scan(
        &mut self,
        table: u32,
        range: &KeyRange,
        limit: u32,
        reverse: bool,
    ) -> Result<Page, StateFault> {
        let mut page = Page::default();
        let end = range.end.as_deref();
        page.more = self.tables.scan(
            table,
            &range.start,
            end,
            limit.into(),
            reverse,
            &mut |key, value| take(&mut page, key, value),
        );
        Ok(page)
    }
}

impl StateWrite for FoldTables {
    fn set(&mut self, table: u32, key: &[u8], value: &[u8]) -> Result<(), StateFault> {
        let bytes = self.tables.pending_bytes() + (key.len() + value.len()) as u64;
        if bytes > BATCH_WRITE_BYTES_MAX {
            self.is_over = true;
            return Err(StateFault {
                reason: format!(
                    "the batch writes more than BATCH_WRITE_BYTES_MAX, {BATCH_WRITE_BYTES_MAX} bytes"
                ),
            });
        }
        self.tables.set(table, key, value).map_err(fault)
    }

    fn delete(&mut self, table: u32, key: &[u8]) -> Result<bool, StateFault> {
        self.tables.delete(table, key).map_err(fault)
    }

    fn delete_range(&mut self, table: u32, range: &KeyRange) -> Result<u64, StateFault> {
        self.tables
            .delete_range(table, &range.start, range.end.as_deref())
            .map_err(fault)
    }
}

/// A version, and the table's index in it.
fn find(tables: &[(Rows, u32)], table: u32) -> Result<(&Rows, u32), StateFault> {
    let index = usize::try_from(table).unwrap_or(usize::MAX);
    let (rows, table) = tables.get(index).ok_or_else(|| StateFault {
        reason: format!("there is no table {table}"),
    })?;
    Ok((rows, *table))
}

fn note_damage(damaged: &mut Option<SnapshotError>, error: SnapshotError) -> StateFault {
    let reason = crate::error::chain(&error);
    *damaged = Some(error);
    StateFault { reason }
}

impl StateRead for ReadTables {
    fn get(&mut self, table: u32, key: &[u8]) -> Result<Option<Vec<u8>>, StateFault> {
        let (rows, table) = find(&self.tables, table)?;
        rows.get(table, key)
            .map_err(|error| note_damage(&mut self.damaged, error))
    }

    fn scan(
        &mut self,
        table: u32,
        range: &KeyRange,
        limit: u32,
        reverse: bool,
    ) -> Result<Page, StateFault> {
        let (rows, table) = find(&self.tables, table)?;
        let mut page = Page::default();
        let range = (&range.start[..], range.end.as_deref());
        let more = rows.scan(table, range, limit.into(), reverse, &mut |key, value| {
            take(&mut page, key, value)
        });
        page.more = more.map_err(|error| note_damage(&mut self.damaged, error))?;
        Ok(page)
    }
}
