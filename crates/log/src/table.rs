//! A sorted table of fixed rows in a paged file, found by key with one or few page reads.
//!
//! In memory lies a sample: the upper 64 bits of the first key of every `stride`-th page.

use truthdb_io::AlignedBuf;

use crate::paged::{IndexError, PAGE_BYTES, PAYLOAD_BYTES, PagedReader, Section, payload};

/// What a key looks like in a row; the order of the bytes in the file is little-endian.
pub(crate) trait TableKey: Copy + Ord {
    /// Reads it from the start of a row.
    fn read(row: &[u8]) -> Self;
    /// Its upper 64 bits.
    fn high(self) -> u64;
}

impl TableKey for crate::StreamKey {
    fn read(row: &[u8]) -> Self {
        crate::StreamKey(u128::from_le_bytes(row[..16].try_into().expect("16 bytes")))
    }

    fn high(self) -> u64 {
        crate::StreamKey::high(self)
    }
}

impl TableKey for crate::FacetKey {
    fn read(row: &[u8]) -> Self {
        crate::FacetKey(u64::from_le_bytes(row[..8].try_into().expect("8 bytes")))
    }

    fn high(self) -> u64 {
        self.0
    }
}

/// A table and its sample.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) section: Section,
    pub(crate) row_bytes: usize,
    stride: u64,
    sample: Vec<u64>,
}

impl Table {
    /// Checks the shape of a table and its sample against each other.
    pub(crate) fn new(
        section: Section,
        row_bytes: usize,
        stride: u64,
        sample: Vec<u64>,
    ) -> Result<Table, &'static str> {
        let rows_per_page = (PAYLOAD_BYTES / row_bytes) as u64;
        if section.pages() != section.rows.div_ceil(rows_per_page) {
            return Err("a table has another number of rows than its pages hold");
        }
        if stride == 0 || sample.len() as u64 != section.pages().div_ceil(stride) {
            return Err("a table's sample has another length than its pages need");
        }
        if !sample.is_sorted() {
            return Err("a table's sample is not sorted");
        }
        Ok(Table {
            section,
            row_bytes,
            stride,
            sample,
        })
    }

    /// Bytes of memory of the sample.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.sample.capacity() * size_of::<u64>()
    }

    /// Copies the row of `key` into `row` and returns whether there is one.
    pub(crate) fn find<K: TableKey>(
        &self,
        reader: &PagedReader,
        key: K,
        row: &mut [u8],
    ) -> Result<bool, IndexError> {
        // Keys with equal upper halves may lie on both sides of a sample.
        let first = self
            .sample
            .partition_point(|high| *high < key.high())
            .saturating_sub(1);
        let after = self.sample.partition_point(|high| *high <= key.high());
        let mut low = first as u64 * self.stride;
        let mut high = (after as u64 * self.stride).min(self.section.pages());
        let mut buf = AlignedBuf::new_zeroed(PAGE_BYTES);
        while low < high {
            let page = low.midpoint(high);
            reader.read_pages(&self.section, page, 1, &mut buf)?;
            let rows = self.rows_of(page, payload(&buf, 0));
            let at = partition(rows, self.row_bytes, |row| K::read(row) < key);
            let count = rows.len() / self.row_bytes;
            if at == count {
                low = page + 1;
            } else if K::read(&rows[at * self.row_bytes..]) == key {
                row[..self.row_bytes]
                    .copy_from_slice(&rows[at * self.row_bytes..][..self.row_bytes]);
                return Ok(true);
            } else if at > 0 {
                return Ok(false);
            } else {
                high = page;
            }
        }
        Ok(false)
    }

    /// The part of a page's payload that holds rows.
    fn rows_of<'a>(&self, page: u64, payload: &'a [u8]) -> &'a [u8] {
        let per_page = PAYLOAD_BYTES / self.row_bytes;
        let left = self.section.rows - page * per_page as u64;
        &payload[..per_page.min(usize::try_from(left).unwrap_or(per_page)) * self.row_bytes]
    }
}

/// Number of leading rows for which `before` holds.
fn partition(rows: &[u8], row_bytes: usize, before: impl Fn(&[u8]) -> bool) -> usize {
    let (mut low, mut high) = (0, rows.len() / row_bytes);
    while low < high {
        let middle = low.midpoint(high);
        if before(&rows[middle * row_bytes..]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Little-endian numbers of a sample section.
pub(crate) fn sample_from_bytes(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
        .collect()
}

/// Every how many pages a table of `pages` pages is sampled so that the sample stays within
/// `sample_max` entries.
pub(crate) fn stride_for(pages: usize, sample_max: usize) -> u64 {
    pages.div_ceil(sample_max).max(1) as u64
}
