//! Writes that lie over rows: those of a running batch over the tables, those of deltas over a snapshot.
//!
//! An overlay is a tree whose values begin with a tag: the row is deleted, or what follows is its new
//! value. A merged scan tells each row once, and where both have a key the overlay's word counts.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::convert::Infallible;

use crate::builder::TreeBuilder;
use crate::changes::{Change, Changes};
use crate::cursor::{Cursor, Sink};
use crate::limits::{small, to_usize};
use crate::packed::head;
use crate::past::PastRange;
use crate::tree::Tree;

/// The first byte of a value in an overlay.
const DELETED: u8 = 0;
const WRITTEN: u8 = 1;

/// What an overlay says of a row: its new value, or that it is deleted.
pub(crate) fn written(value: &[u8]) -> Option<&[u8]> {
    let (tag, value) = value
        .split_first()
        .expect("values in an overlay have a tag");
    (*tag == WRITTEN).then_some(value)
}

/// Writes a row, or with no value its deletion. `tagged` is room for the value with its tag.
pub(crate) fn overlay_write(
    overlay: &mut Tree,
    key: &[u8],
    value: Option<&[u8]>,
    tagged: &mut Vec<u8>,
) {
    overlay.set(key, tag(value, tagged), &mut |_| {});
}

fn tag<'t>(value: Option<&[u8]>, tagged: &'t mut Vec<u8>) -> &'t [u8] {
    tagged.clear();
    tagged.push(value.map_or(DELETED, |_| WRITTEN));
    tagged.extend_from_slice(value.unwrap_or_default());
    tagged
}

/// Changes of many batches, to be laid over rows at once: sorted first, they cost a fraction of what
/// they would one by one.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    batches: Vec<Changes>,
    rows: Vec<GatheredRow>,
    /// What all keys of a table begin with, by table.
    prefixes: BTreeMap<u32, Vec<u8>>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct GatheredRow {
    table: u32,
    /// Which batch: the later one counts.
    batch: u32,
    offset: u32,
    /// The beginning of the key behind the table's prefix, once that is known.
    head: u64,
}

impl Gathered {
    /// Adds the changes of a batch; with a range only those in it.
    pub(crate) fn add(&mut self, changes: Changes, range: Option<&PastRange>) {
        let batch = small(self.batches.len());
        let before = self.rows.len();
        let mut last: Option<(u32, &[u8])> = None;
        for (offset, change) in changes.iter_offsets() {
            let Change { table, key, .. } = change;
            match range {
                Some(range) if range.is_before(table, key) => break,
                Some(range) if !range.holds(table, key) => continue,
                _ => {}
            }
            // Keys ascend: what the first and the last one share, all do.
            if last.is_none_or(|(of, _)| of != table) {
                if let Some((of, key)) = last {
                    share(&mut self.prefixes, of, key);
                }
                share(&mut self.prefixes, table, key);
            }
            last = Some((table, key));
            self.rows.push(GatheredRow {
                table,
                batch,
                offset,
                head: 0,
            });
        }
        if let Some((table, key)) = last {
            share(&mut self.prefixes, table, key);
        }
        if self.rows.len() > before {
            self.bytes += changes.encoded().len();
            self.batches.push(changes);
        }
    }

    /// Bytes of the batches that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lays everything over the rows below `overlays`, one for each table, and is empty again.
    ///
    /// # Panics
    /// If a change is of a table without overlay.
    pub(crate) fn fold_into(&mut self, overlays: &mut [Tree]) {
        let Gathered {
            batches,
            mut rows,
            prefixes,
            ..
        } = std::mem::take(self);
        let change = |row: &GatheredRow| batches[to_usize(row.batch.into())].at(row.offset);
        for row in &mut rows {
            let prefix = prefixes.get(&row.table).map_or(0, Vec::len);
            row.head = head(&change(row).key[prefix..]);
        }
        // Each batch is a run in order: a stable sort merges runs, and keeps the later batch behind.
        rows.sort_by(|a, b| {
            (a.table, a.head)
                .cmp(&(b.table, b.head))
                .then_with(|| change(a).key.cmp(change(b).key))
        });
        let mut tagged = Vec::new();
        for rows in rows.chunk_by(|a, b| a.table == b.table) {
            let overlay = &mut overlays[to_usize(rows[0].table.into())];
            let mut built = (overlay.rows() == 0).then(TreeBuilder::default);
            let mut rows = rows.iter().peekable();
            while let Some(row) = rows.next() {
                let Change { key, value, .. } = change(row);
                let is_written_later =
                    |next: &&GatheredRow| next.head == row.head && change(next).key == key;
                if rows.peek().is_some_and(is_written_later) {
                    continue;
                }
                match &mut built {
                    Some(built) => built.push(key, tag(value, &mut tagged)),
                    None => overlay_write(overlay, key, value, &mut tagged),
                }
            }
            if let Some(built) = built {
                *overlay = built.finish();
            }
        }
    }
}

/// Makes the prefix of a table's keys one of this key too.
fn share(prefixes: &mut BTreeMap<u32, Vec<u8>>, table: u32, key: &[u8]) {
    let prefix = prefixes.entry(table).or_insert_with(|| key.to_vec());
    let shared = prefix.iter().zip(key).take_while(|(a, b)| a == b).count();
    prefix.truncate(shared);
}

/// Rows in order, one at a time.
pub(crate) trait Rows {
    /// Why the next row cannot be had.
    type Error;
    /// The present row; none at the end.
    fn row(&self) -> Option<(&[u8], &[u8])>;
    /// To the next row.
    fn step(&mut self) -> Result<(), Self::Error>;
}

/// The rows of a tree in one direction.
pub(crate) struct TreeRows<'t> {
    cursor: Cursor<'t>,
    reverse: bool,
}

impl<'t> TreeRows<'t> {
    /// From the beginning of a range on, or with `reverse` from its end.
    pub(crate) fn new(
        tree: &'t Tree,
        (start, end): (&[u8], Option<&[u8]>),
        reverse: bool,
    ) -> TreeRows<'t> {
        let cursor = if reverse {
            Cursor::before(tree, end)
        } else {
            Cursor::at_or_after(tree, start)
        };
        TreeRows { cursor, reverse }
    }
}

impl Rows for TreeRows<'_> {
    type Error = Infallible;

    fn row(&self) -> Option<(&[u8], &[u8])> {
        self.cursor.row()
    }

    fn step(&mut self) -> Result<(), Infallible> {
        if self.reverse {
            self.cursor.retreat();
        } else {
            self.cursor.advance();
        }
        Ok(())
    }
}

/// Tells `sink` up to `limit` rows of a range, as they are under the overlay. `rows` begins at the
/// range's beginning, or with `reverse` at its end. True if there are more.
pub(crate) fn scan_merged<R: Rows>(
    mut rows: R,
    overlay: &Tree,
    (start, end): (&[u8], Option<&[u8]>),
    limit: u64,
    reverse: bool,
    sink: Sink<'_>,
) -> Result<bool, R::Error> {
    let mut writes = TreeRows::new(overlay, (start, end), reverse);
    let is_within = |key: &[u8]| {
        if reverse {
            key >= start
        } else {
            end.is_none_or(|end| key < end)
        }
    };
    let mut left = limit;
    loop {
        let row = rows.row().filter(|(key, _)| is_within(key));
        let write = writes.row().filter(|(key, _)| is_within(key));
        let order = match (row, write) {
            (None, None) => return Ok(false),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((key, _)), Some((written, _))) if reverse => written.cmp(key),
            (Some((key, _)), Some((written, _))) => key.cmp(written),
        };
        let told = match write.filter(|_| order.is_ge()) {
            Some((key, value)) => written(value).map(|value| (key, value)),
            None => row,
        };
        if let Some((key, value)) = told {
            if left == 0 || !sink(key, value) {
                return Ok(true);
            }
            left -= 1;
        }
        if order.is_ge() {
            match writes.step() {
                Ok(()) => {}
                Err(never) => match never {},
            }
        }
        // Where both have the key, the write hides the row.
        if order.is_le() {
            rows.step()?;
        }
    }
}
