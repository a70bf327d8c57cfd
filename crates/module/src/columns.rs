//! Batches and pages as columns: what crosses between host and guest, in the shape it crosses in.
//!
//! A list of records with lists in them would cost several allocations in the guest for each
//! event; six flat lists cost six for the whole batch.

use wasmtime::component::{ComponentType, Lift, Lower};

/// Parts of an event in [`EventColumns::data`]: stream, type, id, metadata, payload.
pub const EVENT_PARTS: usize = 5;

/// The events of one committed batch that match a module's subscriptions, in log order: item `i`
/// of each column belongs to event `i`.
#[derive(Debug, Clone, Default, PartialEq, Eq, ComponentType, Lower)]
#[component(record)]
pub struct EventColumns {
    /// Place in the partition's log.
    pub sequences: Vec<u64>,
    /// Nanoseconds since 1970 UTC, from the log.
    pub times: Vec<u64>,
    /// Index in the event's stream.
    pub revisions: Vec<u64>,
    /// Index of the first subscription in the manifest that matches.
    pub kinds: Vec<u32>,
    /// [`EVENT_PARTS`] offsets into `data` for each event: where each part ends and the next begins.
    pub ends: Vec<u32>,
    /// The parts, one after another.
    pub data: Vec<u8>,
}

/// One event of [`EventColumns`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnEvent<'a> {
    /// Place in the partition's log.
    pub sequence: u64,
    /// Nanoseconds since 1970 UTC.
    pub time: u64,
    /// Index in the stream.
    pub revision: u64,
    /// Index of the subscription.
    pub kind: u32,
    /// Name of the stream.
    pub stream: &'a str,
    /// Type of the event.
    pub event_type: &'a str,
    /// The 128-bit id.
    pub id: [u8; 16],
    /// Encoded pairs, see [`push_metadata_pair`].
    pub metadata: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

impl EventColumns {
    /// How many events there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Forgets the events and keeps the memory.
    pub fn clear(&mut self) {
        self.sequences.clear();
        self.times.clear();
        self.revisions.clear();
        self.kinds.clear();
        self.ends.clear();
        self.data.clear();
    }

    /// Adds an event.
    ///
    /// # Panics
    ///
    /// If the batch grows over 4 GiB; a batch of the log is a few MiB at most.
    pub fn push(&mut self, event: &ColumnEvent<'_>) {
        self.sequences.push(event.sequence);
        self.times.push(event.time);
        self.revisions.push(event.revision);
        self.kinds.push(event.kind);
        let parts: [&[u8]; EVENT_PARTS] = [
            event.stream.as_bytes(),
            event.event_type.as_bytes(),
            &event.id,
            event.metadata,
            event.payload,
        ];
        for part in parts {
            self.data.extend_from_slice(part);
            self.ends
                .push(u32::try_from(self.data.len()).expect("a batch is far below 4 GiB"));
        }
    }

    /// The event at an index; `None` past the end, or if the columns do not fit each other.
    pub fn get(&self, index: usize) -> Option<ColumnEvent<'_>> {
        let first = index.checked_mul(EVENT_PARTS)?;
        let begin = match first {
            0 => 0,
            _ => *self.ends.get(first - 1)?,
        };
        let ends = self.ends.get(first..first + EVENT_PARTS)?;
        let mut at = begin as usize;
        let mut parts = [&[][..]; EVENT_PARTS];
        for (part, &end) in parts.iter_mut().zip(ends) {
            *part = self.data.get(at..end as usize)?;
            at = end as usize;
        }
        Some(ColumnEvent {
            sequence: *self.sequences.get(index)?,
            time: *self.times.get(index)?,
            revision: *self.revisions.get(index)?,
            kind: *self.kinds.get(index)?,
            stream: std::str::from_utf8(parts[0]).ok()?,
            event_type: std::str::from_utf8(parts[1]).ok()?,
            id: parts[2].try_into().ok()?,
            metadata: parts[3],
            payload: parts[4],
        })
    }
}

/// Appends a metadata pair in the encoding that guests get: key length (1 byte), value length
/// (2 bytes, little-endian), key, value. The answer is `false`, and nothing is appended, if a
/// length does not fit.
pub fn push_metadata_pair(out: &mut Vec<u8>, key: &str, value: &str) -> bool {
    let (Ok(key_bytes), Ok(value_bytes)) = (u8::try_from(key.len()), u16::try_from(value.len()))
    else {
        return false;
    };
    out.push(key_bytes);
    out.extend_from_slice(&value_bytes.to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(value.as_bytes());
    true
}

/// The pairs that [`push_metadata_pair`] appended; ends at the first that is damaged.
pub fn metadata_pairs(mut bytes: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    std::iter::from_fn(move || {
        let (&key_bytes, rest) = bytes.split_first()?;
        let (value_bytes, rest) = rest.split_first_chunk::<2>()?;
        let (key, rest) = rest.split_at_checked(usize::from(key_bytes))?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*value_bytes)))?;
        bytes = rest;
        Some((
            std::str::from_utf8(key).ok()?,
            std::str::from_utf8(value).ok()?,
        ))
    })
}

/// Keys from `start` on, before `end` if there is one, bytewise.
#[derive(Debug, Clone, Default, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub struct KeyRange {
    /// The first key that may be in it.
    pub start: Vec<u8>,
    /// The first key after it.
    pub end: Option<Vec<u8>>,
}

/// Rows as columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Page {
    /// Two offsets into `data` for each row: the end of its key, the end of its value.
    pub ends: Vec<u32>,
    /// Keys and values, one after another.
    pub data: Vec<u8>,
    /// Whether rows of the range are left.
    pub more: bool,
}

impl Page {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// If the page grows over 4 GiB; its limit is [`PAGE_BYTES_MAX`](crate::PAGE_BYTES_MAX).
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        for part in [key, value] {
            self.data.extend_from_slice(part);
            self.ends
                .push(u32::try_from(self.data.len()).expect("a page is far below 4 GiB"));
        }
    }

    /// The row at an index; `None` past the end, or if the offsets are wrong.
    pub fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let first = index.checked_mul(2)?;
        let begin = match first {
            0 => 0,
            _ => *self.ends.get(first - 1)? as usize,
        };
        let key_end = *self.ends.get(first)? as usize;
        let value_end = *self.ends.get(first + 1)? as usize;
        Some((
            self.data.get(begin..key_end)?,
            self.data.get(key_end..value_end)?,
        ))
    }

    /// Whether the offsets are those of whole rows that fill `data` exactly.
    pub fn is_well_formed(&self) -> bool {
        let last = self.ends.last().map_or(0, |&end| end as usize);
        self.ends.len().is_multiple_of(2) && self.ends.is_sorted() && last == self.data.len()
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.len()).map_while(|index| self.get(index))
    }
}

/// Why a validator refuses an event.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub struct Rejection {
    /// The module's own number of the reason.
    pub code: u32,
    /// For the person whose append is refused.
    pub message: String,
}

/// What a validator says to one event.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(variant)]
pub enum Verdict {
    /// It may be appended.
    #[component(name = "accept")]
    Accept,
    /// It must not be.
    #[component(name = "reject")]
    Reject(Rejection),
}

/// The moment that a query looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lower)]
#[component(record)]
pub struct Moment {
    /// Last event that the state holds.
    pub sequence: u64,
    /// Its time, nanoseconds since 1970 UTC.
    pub time: u64,
}

/// One step of a query's answer for one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub struct Answer {
    /// Its rows; [`Page::more`] says whether the query goes on.
    pub rows: Page,
    /// To be given back at the next step. Empty at the end.
    pub resume: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event<'a>(sequence: u64, stream: &'a str, payload: &'a [u8]) -> ColumnEvent<'a> {
        ColumnEvent {
            sequence,
            time: 10 * sequence,
            revision: sequence - 1,
            kind: 0,
            stream,
            event_type: "deposit",
            id: [7; 16],
            metadata: b"",
            payload,
        }
    }

    #[test]
    fn what_was_pushed_is_read_back() {
        let mut columns = EventColumns::default();
        columns.push(&event(1, "a", b"x"));
        columns.push(&event(2, "", b""));
        assert_eq!(columns.get(0), Some(event(1, "a", b"x")));
        assert_eq!(columns.get(1), Some(event(2, "", b"")));
        assert_eq!(columns.get(2), None);
        assert_eq!(columns.get(usize::MAX), None);
        columns.clear();
        assert!(columns.is_empty() && columns.get(0).is_none());
    }

    #[test]
    fn columns_that_do_not_fit_give_no_event() {
        let mut columns = EventColumns::default();
        columns.push(&event(1, "a", b"x"));
        columns.ends[2] = 0;
        assert_eq!(columns.get(0), None);
    }

    #[test]
    fn metadata_is_read_back_and_ends_where_it_is_cut() {
        let mut bytes = Vec::new();
        assert!(push_metadata_pair(&mut bytes, "causation_id", "abc"));
        assert!(push_metadata_pair(&mut bytes, "k", ""));
        assert!(!push_metadata_pair(&mut bytes, &"k".repeat(256), ""));
        let pairs: Vec<_> = metadata_pairs(&bytes).collect();
        assert_eq!(pairs, [("causation_id", "abc"), ("k", "")]);
        for cut in 0..bytes.len() {
            assert!(metadata_pairs(&bytes[..cut]).count() < 2);
        }
    }

    #[test]
    fn a_page_knows_whether_it_is_whole() {
        let mut page = Page::default();
        assert!(page.is_well_formed());
        page.push(b"k", b"value");
        page.push(b"l", b"");
        assert!(page.is_well_formed());
        assert_eq!(
            page.rows().collect::<Vec<_>>(),
            [(&b"k"[..], &b"value"[..]), (b"l", b"")]
        );
        page.ends.pop();
        assert!(!page.is_well_formed());
        page.ends = vec![3, 1];
        assert!(!page.is_well_formed());
        assert_eq!(page.get(0), None);
    }
}
