//! Whether a segment index is right: within itself, and against the events.

use crate::active_index::ActiveIndex;
use crate::index::{FACET_ROW_BYTES, STREAM_ROW_BYTES, SegmentIndex};
use crate::keys::FacetKey;
use crate::paged::{IndexError, Section};
use crate::postings::PostingList;
use crate::table::TableKey;

impl SegmentIndex {
    /// Reads every page and compares every relation within the file.
    ///
    /// # Errors
    ///
    /// The first thing that does not hold.
    pub fn check(&self) -> Result<(), IndexError> {
        self.walk(&mut |_, _| true, &mut |_, _| true).map(|_| ())
    }

    /// The first part in which the index says something else than the events do; `None` if it is
    /// right. Previous sequences
    /// are compared only if `with_previous`.
    ///
    /// # Errors
    ///
    /// Those of [`SegmentIndex::check`].
    pub(crate) fn difference(
        &self,
        events: &ActiveIndex,
        with_previous: bool,
    ) -> Result<Option<&'static str>, IndexError> {
        let mut streams = events.streams_sorted().into_iter();
        let mut facets = events.facets_sorted().into_iter();
        let mut postings = Vec::new();
        let base = events.base_sequence();
        let equal = |expected: &[u32], found: &[u64]| {
            let expected = expected.iter().map(|event| base + u64::from(*event));
            expected.eq(found.iter().copied())
        };
        let mut stream_is_right = |row: &crate::index::StreamRow, found: &[u64]| {
            let Some(slot) = streams.next() else {
                return false;
            };
            postings.clear();
            let (key, expected) = events.stream_postings(slot, &mut postings);
            let mut extent = self.extent(row);
            if !with_previous {
                extent.previous_sequence = expected.previous_sequence;
            }
            key == row.key && extent == expected && equal(&postings, found)
        };
        let mut facet_postings = Vec::new();
        let mut facet_is_right = |key: FacetKey, found: &[u64]| {
            let Some(slot) = facets.next() else {
                return false;
            };
            facet_postings.clear();
            key == events.facet_postings(slot, &mut facet_postings) && equal(&facet_postings, found)
        };
        if let Some(part) = self.walk(&mut stream_is_right, &mut facet_is_right)? {
            return Ok(Some(part));
        }
        if streams.next().is_some() || facets.next().is_some() {
            return Ok(Some("number of streams, types or tags"));
        }
        let mut ids_are_right = true;
        self.visit_ids(base, |sequence, id| {
            ids_are_right &= events.id(sequence) == Some(id)
        })?;
        Ok((!ids_are_right).then_some("ids"))
    }

    /// Walks all rows with their postings; stops where a visitor says no, and names the part.
    fn walk(
        &self,
        stream: &mut dyn FnMut(&crate::index::StreamRow, &[u64]) -> bool,
        facet: &mut dyn FnMut(FacetKey, &[u64]) -> bool,
    ) -> Result<Option<&'static str>, IndexError> {
        let mut postings = Vec::new();
        let mut rows = self.reader.rows(&self.streams.section, STREAM_ROW_BYTES);
        let (mut bytes, mut last, mut total) = ([0; STREAM_ROW_BYTES], None, 0);
        while rows.next(&mut bytes)? {
            let row = self.decode_stream(&bytes)?;
            self.check_order(
                &self.streams.section,
                last.is_none_or(|last| last < row.key),
            )?;
            last = Some(row.key);
            total += u64::from(row.list.count);
            self.read_list(&self.stream_postings, &row.list, &mut postings)?;
            if !stream(&row, &postings) {
                return Ok(Some("streams"));
            }
        }
        if total != self.binding.event_count {
            let offset = self.streams.section.offset;
            return Err(self
                .reader
                .corrupt(offset, "the streams' events are not all events"));
        }
        let mut rows = self.reader.rows(&self.facets.section, FACET_ROW_BYTES);
        let (mut bytes, mut last) = ([0; FACET_ROW_BYTES], None);
        while rows.next(&mut bytes)? {
            let key = FacetKey::read(&bytes);
            self.check_order(&self.facets.section, last.is_none_or(|last| last < key))?;
            last = Some(key);
            let list = self.decode_list(&bytes[8..], self.facets.section.offset)?;
            self.read_list(&self.facet_postings, &list, &mut postings)?;
            if !facet(key, &postings) {
                return Ok(Some("types and tags"));
            }
        }
        self.visit_ids(self.binding.base_sequence, |_, _| {})?;
        Ok(None)
    }

    fn check_order(&self, section: &Section, ascends: bool) -> Result<(), IndexError> {
        match ascends {
            true => Ok(()),
            false => Err(self.reader.corrupt(section.offset, "rows are not sorted")),
        }
    }

    fn read_list(
        &self,
        section: &Section,
        list: &PostingList,
        out: &mut Vec<u64>,
    ) -> Result<(), IndexError> {
        out.clear();
        self.append_postings(section, list, 0, list.count, out)?;
        if out.last() != Some(&(self.binding.base_sequence + u64::from(list.last))) {
            let reason = "postings do not end where their row says";
            return Err(self.reader.corrupt(section.offset, reason));
        }
        Ok(())
    }
}
