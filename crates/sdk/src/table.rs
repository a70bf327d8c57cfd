//! Tables with types.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use crate::key::encoded;
use crate::{Key, Value, store};

/// Rows that one call of the host brings at most.
const SCAN_ROWS: u32 = 1000;

/// A table of the module, or (for validators and queries) of another.
///
/// A row that cannot be decoded stops the module: its key or value is not of the types that the
/// table was declared with.
pub struct Table<K, V> {
    index: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("index", &self.index).finish()
    }
}

impl<K: Key, V: Value> Table<K, V> {
    /// The table at this index of the manifest. The macros call it; a module has no reason to.
    #[doc(hidden)]
    pub const fn at(index: u32) -> Self {
        Self {
            index,
            types: PhantomData,
        }
    }

    /// Its index in the manifest.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The value of a key.
    ///
    /// # Panics
    ///
    /// If the value in the table is not a `V`: a trap, in a guest.
    pub fn get(&self, key: &K) -> Option<V> {
        store::get(self.index, &encoded(key)).map(|bytes| self.value(&bytes))
    }

    /// Sets the value of a key.
    pub fn set(&self, key: &K, value: &V) {
        let mut bytes = Vec::with_capacity(64);
        value.encode(&mut bytes);
        store::set(self.index, &encoded(key), &bytes);
    }

    /// Removes a row; the answer is whether there was one.
    pub fn delete(&self, key: &K) -> bool {
        store::delete(self.index, &encoded(key))
    }

    /// Sets the value of a key to what a function makes of it; `None` removes the row.
    pub fn update(&self, key: &K, change: impl FnOnce(Option<V>) -> Option<V>) {
        let old = self.get(key);
        let was_there = old.is_some();
        match change(old) {
            Some(new) => self.set(key, &new),
            None if was_there => {
                self.delete(key);
            }
            None => {}
        }
    }

    /// All rows, in the order of keys.
    pub fn rows(&self) -> Rows<K, V> {
        self.bytes_range(Vec::new(), None)
    }

    /// The rows of a range of keys.
    pub fn range(&self, range: impl RangeBounds<K>) -> Rows<K, V> {
        let (start, end) = bounds(&range);
        self.bytes_range(start, end)
    }

    /// The rows whose keys begin with the bytes of `prefix`: for a tuple, its first parts.
    pub fn prefix(&self, prefix: &impl Key) -> Rows<K, V> {
        let start = encoded(prefix);
        let end = successor(&start);
        self.bytes_range(start, end)
    }

    /// Removes the rows of a range of keys; the answer is how many there were.
    pub fn delete_range(&self, range: impl RangeBounds<K>) -> u64 {
        let (start, end) = bounds(&range);
        store::delete_range(self.index, &start, end.as_deref())
    }

    fn bytes_range(&self, start: Vec<u8>, end: Option<Vec<u8>>) -> Rows<K, V> {
        Rows {
            table: Self::at(self.index),
            start,
            end,
            reverse: false,
            page: VecDeque::new(),
            more: true,
            left: usize::MAX,
        }
    }

    fn value(&self, mut bytes: &[u8]) -> V {
        match V::decode(&mut bytes) {
            Some(value) if bytes.is_empty() => value,
            _ => panic!(
                "a value of table {} is not of the declared type: give the table a new version and \
                 rebuild",
                self.index
            ),
        }
    }

    fn key(&self, mut bytes: &[u8]) -> K {
        match K::decode(&mut bytes) {
            Some(key) if bytes.is_empty() => key,
            _ => panic!(
                "a key of table {} is not of the declared type: give the table a new version and \
                 rebuild",
                self.index
            ),
        }
    }
}

/// A range of keys as a range of bytes.
fn bounds<K: Key>(range: &impl RangeBounds<K>) -> (Vec<u8>, Option<Vec<u8>>) {
    let start = match range.start_bound() {
        Bound::Included(key) => encoded(key),
        Bound::Excluded(key) => after(encoded(key)),
        Bound::Unbounded => Vec::new(),
    };
    let end = match range.end_bound() {
        Bound::Included(key) => Some(after(encoded(key))),
        Bound::Excluded(key) => Some(encoded(key)),
        Bound::Unbounded => None,
    };
    (start, end)
}

/// The first bytes after a key.
fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// The first bytes that do not begin with a prefix; `None` if there are none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 255)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// The rows of a range, fetched in pages. Rows that are written meanwhile may be seen or not.
pub struct Rows<K, V> {
    table: Table<K, V>,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    reverse: bool,
    page: VecDeque<(Vec<u8>, Vec<u8>)>,
    more: bool,
    left: usize,
}

impl<K: Key, V: Value> Rows<K, V> {
    /// From the last to the first.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.reverse = !self.reverse;
        self
    }

    /// At most so many: no more than needed are fetched.
    #[must_use]
    pub fn limit(mut self, rows: usize) -> Self {
        self.left = rows;
        self
    }

    fn fetch(&mut self) {
        let limit = u32::try_from(self.left).unwrap_or(u32::MAX).min(SCAN_ROWS);
        let page = store::scan(
            self.table.index,
            &self.start,
            self.end.as_deref(),
            limit,
            self.reverse,
        );
        self.more = page.more;
        self.page = page
            .rows()
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect();
        match self.page.back() {
            Some((last, _)) if self.reverse => self.end = Some(last.clone()),
            Some((last, _)) => self.start = after(last.clone()),
            None => self.more = false,
        }
    }
}

impl<K: Key, V: Value> Iterator for Rows<K, V> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        if self.left == 0 {
            return None;
        }
        if self.page.is_empty() && self.more {
            self.fetch();
        }
        let (key, value) = self.page.pop_front()?;
        self.left -= 1;
        Some((self.table.key(&key), self.table.value(&value)))
    }
}
