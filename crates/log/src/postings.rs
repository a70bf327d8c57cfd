//! Lists of events in a segment index: ascending event indexes as variable-length differences, with
//! places to skip to.
//!
//! The first and last event stand in the list's row. A list of more than [`SKIP_INTERVAL`] postings
//! begins with
//! skips: for every 512th posting {event u32, bytes u32: where the differences that follow it
//! begin, counted from the
//! first difference}. Then come the differences of all postings but the first.

use crate::paged::{IndexError, PagedReader, Section, get_u32};

/// Postings between two skips.
const SKIP_INTERVAL: u32 = 512;
/// Bytes of a skip.
const SKIP_BYTES: u64 = 8;

/// A list as its row describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PostingList {
    /// Postings in it; at least 1.
    pub(crate) count: u32,
    /// Its first event.
    pub(crate) first: u32,
    /// Its last event.
    pub(crate) last: u32,
    /// Where it begins in its section's payload, in bytes.
    pub(crate) position: u32,
}

/// Bytes of a list's description in a row.
pub(crate) const LIST_BYTES: usize = 16;

impl PostingList {
    /// Appends the encoded list to `out`.
    pub(crate) fn append(events: &[u32], out: &mut Vec<u8>) -> PostingList {
        let position = u32::try_from(out.len()).expect("postings of a segment stay below 4 GiB");
        let (first, last) = (events[0], events[events.len() - 1]);
        let count = u32::try_from(events.len()).expect("a segment holds fewer than 2^32 events");
        let skips = usize::try_from(skip_count(count)).expect("32 bits fit usize");
        let skips_start = out.len();
        out.resize(skips_start + skips * 8, 0);
        let start = out.len();
        for (i, pair) in events.windows(2).enumerate() {
            append_varint(pair[1] - pair[0], out);
            if (i + 1).is_multiple_of(SKIP_INTERVAL as usize) {
                let at = skips_start + ((i + 1) / SKIP_INTERVAL as usize - 1) * 8;
                let bytes = u32::try_from(out.len() - start).expect("less than 4 GiB, as above");
                out[at..at + 4].copy_from_slice(&pair[1].to_le_bytes());
                out[at + 4..at + 8].copy_from_slice(&bytes.to_le_bytes());
            }
        }
        PostingList {
            count,
            first,
            last,
            position,
        }
    }

    pub(crate) fn encode(&self) -> [u8; LIST_BYTES] {
        let mut bytes = [0; LIST_BYTES];
        for (i, value) in [self.count, self.first, self.last, self.position]
            .iter()
            .enumerate()
        {
            bytes[i * 4..i * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> PostingList {
        PostingList {
            count: get_u32(bytes, 0),
            first: get_u32(bytes, 4),
            last: get_u32(bytes, 8),
            position: get_u32(bytes, 12),
        }
    }

    /// Whether the numbers can belong together.
    pub(crate) fn is_plausible(&self, event_count: u64) -> bool {
        self.count > 0
            && self.first <= self.last
            && u64::from(self.last) < event_count
            && self.count - 1 <= self.last - self.first
            && (self.count > 1 || self.first == self.last)
    }

    /// Calls `visit` with the events number `start..end` of the list, ascending.
    pub(crate) fn visit(
        &self,
        reader: &PagedReader,
        section: &Section,
        start: u32,
        end: u32,
        mut visit: impl FnMut(u32),
    ) -> Result<(), IndexError> {
        let end = end.min(self.count);
        if start >= end {
            return Ok(());
        }
        if start == 0 {
            visit(self.first);
        }
        if end == 1 {
            return Ok(());
        }
        let (event, bytes) = self.skip(reader, section, start / SKIP_INTERVAL)?;
        let from = u64::from(self.position) + u64::from(skip_count(self.count)) * SKIP_BYTES;
        let mut stream = reader.stream(section, from + u64::from(bytes));
        let mut number = start / SKIP_INTERVAL * SKIP_INTERVAL;
        let mut event = event;
        if number > 0 && number == start {
            visit(event);
        }
        while number + 1 < end {
            let step = stream.read_varint()?;
            let next = event
                .checked_add(step)
                .filter(|next| step > 0 && *next <= self.last);
            event = next.ok_or_else(|| stream.bad("postings leave their list"))?;
            number += 1;
            if number >= start {
                visit(event);
            }
        }
        Ok(())
    }

    /// Number of postings at or before `event`.
    pub(crate) fn count_up_to(
        &self,
        reader: &PagedReader,
        section: &Section,
        event: u32,
    ) -> Result<u32, IndexError> {
        if event < self.first {
            return Ok(0);
        }
        if event >= self.last {
            return Ok(self.count);
        }
        // The last skip at or before the event.
        let (mut low, mut high) = (0, skip_count(self.count));
        while low < high {
            let middle = low.midpoint(high) + 1;
            let middle = middle.min(high);
            if self.skip(reader, section, middle)?.0 <= event {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let start = low * SKIP_INTERVAL;
        let mut count = start;
        self.visit(
            reader,
            section,
            start,
            start.saturating_add(SKIP_INTERVAL),
            |posting| {
                count += u32::from(posting <= event);
            },
        )?;
        Ok(count)
    }

    /// The event of the posting number `skip * SKIP_INTERVAL`, and where the differences after it begin.
    fn skip(
        &self,
        reader: &PagedReader,
        section: &Section,
        skip: u32,
    ) -> Result<(u32, u32), IndexError> {
        if skip == 0 {
            return Ok((self.first, 0));
        }
        let mut bytes = [0; 8];
        let position = u64::from(self.position) + u64::from(skip - 1) * SKIP_BYTES;
        let mut stream = reader.stream(section, position);
        stream.read_exact(&mut bytes)?;
        let event = get_u32(&bytes, 0);
        if event < self.first || event > self.last {
            return Err(stream.bad("a skip leaves its list"));
        }
        Ok((event, get_u32(&bytes, 4)))
    }
}

/// Number of skips of a list.
fn skip_count(count: u32) -> u32 {
    count.saturating_sub(1) / SKIP_INTERVAL
}

fn append_varint(mut value: u32, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("7 bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("7 bits"));
}
