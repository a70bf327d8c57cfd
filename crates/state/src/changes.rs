//! What one batch changed: rows with their new values, sorted, packed in the bytes of the delta log.
//!
//! Invariants: (table, key) ascends strictly; every row was really changed when a commit or a diff
//! made it. The same change always has the same bytes.

use crate::limits::{KEY_BYTES_MAX, TABLES_MAX, VALUE_BYTES_MAX, small, to_usize};

/// Bytes before the key of each change: table, key length, value length.
const CHANGE_HEADER_BYTES: usize = 10;
/// Value length of a row that was deleted.
const DELETED: u32 = u32::MAX;

/// One changed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// Index of the table.
    pub table: u32,
    /// Key of the row.
    pub key: &'a [u8],
    /// The new value; none if the row was deleted.
    pub value: Option<&'a [u8]>,
}

/// Changed rows in the order of (table, key).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    bytes: Vec<u8>,
    count: u32,
    /// Where the last change begins in `bytes`.
    last: usize,
}

/// Why bytes are not changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("change {index} at byte {offset} is not valid: {reason}")]
pub struct CorruptChanges {
    /// Index of the change.
    pub index: u32,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// What is wrong.
    pub reason: &'static str,
}

impl Changes {
    /// No changes.
    pub fn new() -> Changes {
        Changes::default()
    }

    /// Number of changed rows.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The changes in order.
    pub fn iter(&self) -> ChangesIter<'_> {
        ChangesIter { rest: &self.bytes }
    }

    /// The bytes that [`Changes::decode`] reads.
    pub fn encoded(&self) -> &[u8] {
        &self.bytes
    }

    /// The highest table that was changed.
    pub fn last_table(&self) -> Option<u32> {
        self.last_change().map(|change| change.table)
    }

    fn last_change(&self) -> Option<Change<'_>> {
        ChangesIter {
            rest: &self.bytes[self.last..],
        }
        .next()
    }

    /// Appends a change.
    ///
    /// # Panics
    /// If it does not follow the last one, or exceeds a limit of rows: a bug of the caller.
    pub fn push(&mut self, table: u32, key: &[u8], value: Option<&[u8]>) {
        assert!(
            self.last_change()
                .is_none_or(|last| (last.table, last.key) < (table, key)),
            "changes are pushed in order"
        );
        assert!(
            table < TABLES_MAX
                && key.len() <= KEY_BYTES_MAX
                && value.is_none_or(|value| value.len() <= VALUE_BYTES_MAX),
            "changed rows keep to the limits"
        );
        self.last = self.bytes.len();
        let [low, high, ..] = small(key.len()).to_le_bytes();
        let value_bytes = value.map_or(DELETED, |value| small(value.len()));
        self.bytes.extend_from_slice(&table.to_le_bytes());
        self.bytes.extend_from_slice(&[low, high]);
        self.bytes.extend_from_slice(&value_bytes.to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.count += 1;
    }

    /// Reads `count` changes that fill `bytes` exactly.
    ///
    /// # Errors
    /// [`CorruptChanges`] if a limit, the order, the count or a length does not hold. Nothing is
    /// allocated before everything was checked.
    pub fn decode(bytes: &[u8], count: u32) -> Result<Changes, CorruptChanges> {
        let mut at = 0;
        let mut last = 0;
        let mut previous: Option<(u32, &[u8])> = None;
        for index in 0..count {
            let wrong = |reason| CorruptChanges {
                index,
                offset: at,
                reason,
            };
            let (change, length) = parse(&bytes[at..]).map_err(wrong)?;
            if previous.is_some_and(|previous| previous >= (change.table, change.key)) {
                return Err(wrong("it does not follow the one before"));
            }
            previous = Some((change.table, change.key));
            last = at;
            at += length;
        }
        if at != bytes.len() {
            return Err(CorruptChanges {
                index: count,
                offset: at,
                reason: "there are bytes after the last change",
            });
        }
        Ok(Changes {
            bytes: bytes.to_vec(),
            count,
            last,
        })
    }
}

/// The change that `bytes` begin with, and its length.
fn parse(bytes: &[u8]) -> Result<(Change<'_>, usize), &'static str> {
    let (header, rest) = bytes
        .split_first_chunk::<CHANGE_HEADER_BYTES>()
        .ok_or("it is cut short")?;
    let [t0, t1, t2, t3, k0, k1, v0, v1, v2, v3] = *header;
    let table = u32::from_le_bytes([t0, t1, t2, t3]);
    let key_bytes = usize::from(u16::from_le_bytes([k0, k1]));
    let value_bytes = u32::from_le_bytes([v0, v1, v2, v3]);
    if table >= TABLES_MAX {
        return Err("its table is beyond the limit");
    }
    if key_bytes > KEY_BYTES_MAX {
        return Err("its key is longer than a key may be");
    }
    let (key, rest) = rest.split_at_checked(key_bytes).ok_or("it is cut short")?;
    let value = if value_bytes == DELETED {
        None
    } else {
        let value_bytes = to_usize(value_bytes.into());
        if value_bytes > VALUE_BYTES_MAX {
            return Err("its value is longer than a value may be");
        }
        Some(rest.get(..value_bytes).ok_or("it is cut short")?)
    };
    let length = CHANGE_HEADER_BYTES + key_bytes + value.map_or(0, <[u8]>::len);
    Ok((Change { table, key, value }, length))
}

/// Iterator over [`Changes`].
#[derive(Debug, Clone)]
pub struct ChangesIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for ChangesIter<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let (change, length) = parse(self.rest).expect("changes were checked when they were made");
        self.rest = &self.rest[length..];
        Some(change)
    }
}

impl<'a> IntoIterator for &'a Changes {
    type Item = Change<'a>;
    type IntoIter = ChangesIter<'a>;

    fn into_iter(self) -> ChangesIter<'a> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Changes {
        let mut changes = Changes::new();
        changes.push(0, b"a", Some(b"1"));
        changes.push(0, b"ab", None);
        changes.push(2, b"", Some(b""));
        changes.push(2, b"EWR", Some(b"delayed"));
        changes
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let changes = sample();
        let again = Changes::decode(changes.encoded(), changes.len()).unwrap();
        assert_eq!(again, changes);
        assert_eq!(again.last_table(), Some(2));
        let found: Vec<_> = again
            .iter()
            .map(|change| (change.table, change.key))
            .collect();
        assert_eq!(found, [(0, &b"a"[..]), (0, b"ab"), (2, b""), (2, b"EWR")]);
        let found: Vec<_> = again.iter().map(|change| change.value).collect();
        assert_eq!(found, [Some(&b"1"[..]), None, Some(b""), Some(b"delayed")]);
        assert_eq!(Changes::decode(b"", 0).unwrap(), Changes::new());
        assert_eq!(Changes::new().last_table(), None);
    }

    #[test]
    fn every_prefix_is_refused() {
        let changes = sample();
        for length in 0..changes.encoded().len() {
            let prefix = &changes.encoded()[..length];
            assert!(Changes::decode(prefix, changes.len()).is_err(), "{length}");
        }
        for count in [0, 3, 5] {
            assert!(Changes::decode(changes.encoded(), count).is_err());
        }
    }

    #[test]
    fn an_accepted_flip_encodes_to_what_was_read() {
        let changes = sample();
        for at in 0..changes.encoded().len() {
            for bit in 0..8 {
                let mut bytes = changes.encoded().to_vec();
                bytes[at] ^= 1 << bit;
                let Ok(accepted) = Changes::decode(&bytes, changes.len()) else {
                    continue;
                };
                let mut again = Changes::new();
                for change in &accepted {
                    again.push(change.table, change.key, change.value);
                }
                assert_eq!(again, accepted);
                assert_eq!(again.encoded(), bytes);
            }
        }
    }

    #[test]
    fn a_hostile_count_or_length_allocates_nothing() {
        assert!(Changes::decode(b"", u32::MAX).is_err());
        let mut bytes = sample().encoded().to_vec();
        bytes[6..10].copy_from_slice(&(DELETED - 1).to_le_bytes());
        let error = Changes::decode(&bytes, 4).unwrap_err();
        assert_eq!((error.index, error.offset), (0, 0));
    }

    #[test]
    #[should_panic(expected = "in order")]
    fn changes_out_of_order_are_a_bug() {
        let mut changes = sample();
        changes.push(2, b"EWR", None);
    }
}
