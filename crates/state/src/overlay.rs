//! Writes that lie over rows: those of a running batch over the tables, those of deltas over a snapshot.
//!
//! An overlay is a tree whose values begin with a tag: the row is deleted, or what follows is its new
//! value. A merged scan tells each row once, and where both have a key the overlay's word counts.

use std::cmp::Ordering;
use std::convert::Infallible;

use crate::cursor::{Cursor, Sink};
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
    tagged.clear();
    tagged.push(value.map_or(DELETED, |_| WRITTEN));
    tagged.extend_from_slice(value.unwrap_or_default());
    overlay.set(key, tagged, &mut |_| {});
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
