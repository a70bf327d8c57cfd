//! A state of the past: a snapshot whose chunks are read when they are asked for, under the deltas
//! that lead from it to a later sequence.
//!
//! What a question costs is the chunks that it touches; making the view costs the deltas, and less of
//! them if it is only for one range of keys. Nothing of the snapshot is read beforehand. Every chunk is
//! checked against its hash; the fingerprint is the one that the last delta says, or the snapshot: it
//! cannot be recomputed without reading all rows.

use std::sync::{Arc, Mutex, PoisonError};

use crate::chunk::{Chunk, ChunkRef};
use crate::cursor::Sink;
use crate::delta::{DeltaError, DeltaReader};
use crate::delta_record::DeltaRecord;
use crate::fingerprint::Fingerprint;
use crate::limits::small;
use crate::overlay::{Gathered, Rows, scan_merged, written};
use crate::snapshot::{SnapshotEntry, SnapshotState};
use crate::store::{Snapshot, SnapshotError};
use crate::tables::TableError;
use crate::tree::Tree;

/// Chunks that a view keeps in memory, those used last: a few MiB.
const CHUNKS_KEPT: usize = 32;
/// Bytes of changes that are gathered before they are laid over the snapshot.
const GATHERED_BYTES_MAX: usize = 64 << 20;

/// The state of one module in one partition at a sequence of the past. Readable by several threads.
pub struct PastView {
    /// The snapshot, and the entry of it; none if everything is in the deltas.
    base: Option<(Arc<Snapshot>, usize)>,
    sequence: u64,
    fingerprint: Fingerprint,
    overlay: Vec<Tree>,
    /// The only rows that may be asked for, if not all.
    range: Option<PastRange>,
    /// Chunks by their index in the entry, the one used last at the end.
    kept: Mutex<Vec<(usize, Arc<Chunk>)>>,
}

/// Rows of one table from `start` (included) to `end` (excluded; none is the end of the table).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastRange {
    /// Index of the table.
    pub table: u32,
    /// First key.
    pub start: Vec<u8>,
    /// First key that is beyond it.
    pub end: Option<Vec<u8>>,
}

impl PastRange {
    /// The one row of a key.
    pub fn of_key(table: u32, key: &[u8]) -> PastRange {
        PastRange {
            table,
            start: key.to_vec(),
            end: Some([key, &[0]].concat()),
        }
    }

    pub(crate) fn holds(&self, table: u32, key: &[u8]) -> bool {
        table == self.table
            && key >= &self.start[..]
            && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// Whether all of it lies before a row.
    pub(crate) fn is_before(&self, table: u32, key: &[u8]) -> bool {
        let is_beyond = |end: &Vec<u8>| key >= &end[..];
        table > self.table || table == self.table && self.end.as_ref().is_some_and(is_beyond)
    }

    fn holds_range(&self, table: u32, start: &[u8], end: Option<&[u8]>) -> bool {
        let ends_within = match (end, &self.end) {
            (_, None) => true,
            (Some(end), Some(own)) => end <= &own[..],
            (None, Some(_)) => false,
        };
        table == self.table && start >= &self.start[..] && ends_within
    }
}

impl std::fmt::Debug for PastView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PastView")
            .field("state", &self.state())
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl PastView {
    /// The state of one entry of a snapshot, as it is there. The snapshot is kept open.
    ///
    /// # Panics
    /// If the snapshot has no such entry.
    pub fn new(snapshot: Arc<Snapshot>, entry: usize) -> PastView {
        let saved = &snapshot.manifest().entries[entry];
        PastView {
            sequence: saved.state.applied_sequence,
            fingerprint: saved.fingerprint,
            overlay: saved.state.tables.iter().map(|_| Tree::default()).collect(),
            base: Some((snapshot, entry)),
            range: None,
            kept: Mutex::default(),
        }
    }

    /// The state before any change: so many tables without rows, as of a sequence.
    pub fn empty(table_count: u32, sequence: u64) -> PastView {
        PastView {
            base: None,
            sequence,
            fingerprint: Fingerprint::EMPTY,
            overlay: (0..table_count).map(|_| Tree::default()).collect(),
            range: None,
            kept: Mutex::default(),
        }
    }

    /// Makes the view one of this range only: deltas of other rows are read over. To be called before
    /// deltas are applied.
    pub fn narrow(&mut self, range: PastRange) {
        self.range = Some(range);
    }

    /// The only rows that may be asked for, if not all.
    pub fn range(&self) -> Option<&PastRange> {
        self.range.as_ref()
    }

    /// Whether these rows may be asked for.
    pub fn covers(&self, rows: &PastRange) -> bool {
        let own = self.range.as_ref();
        own.is_none_or(|own| own.holds_range(rows.table, &rows.start, rows.end.as_deref()))
    }

    fn base(&self) -> Option<&SnapshotEntry> {
        let (snapshot, entry) = self.base.as_ref()?;
        Some(&snapshot.manifest().entries[*entry])
    }

    /// What the snapshot says whose state it is; its applied sequence is that of the snapshot.
    pub fn state(&self) -> Option<&SnapshotState> {
        Some(&self.base()?.state)
    }

    /// Last sequence that is folded into the state.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Fingerprint of the state, as the last delta or the snapshot says.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Number of tables.
    pub fn table_count(&self) -> u32 {
        small(self.overlay.len())
    }

    /// Bytes of the keys and values that deltas have written over the snapshot.
    pub fn overlay_bytes(&self) -> u64 {
        self.overlay.iter().map(Tree::row_bytes).sum()
    }

    /// Applies the records of `deltas` up to a sequence. True if the state is known to be that after
    /// `through`; false if the delta log ends before.
    ///
    /// # Errors
    /// [`PastError`]; the view must not be used then.
    pub fn advance(&mut self, deltas: &mut DeltaReader, through: u64) -> Result<bool, PastError> {
        let mut gathered = Gathered::default();
        let is_certain = loop {
            if self.sequence >= through {
                break true;
            }
            match deltas.next_record()? {
                Some(record) if record.last_sequence > through => break true,
                Some(record) => self.gather(record, &mut gathered)?,
                None => break false,
            }
            if gathered.bytes() >= GATHERED_BYTES_MAX {
                gathered.fold_into(&mut self.overlay);
            }
        };
        gathered.fold_into(&mut self.overlay);
        Ok(is_certain)
    }

    /// Applies one record, which must lead on from this state.
    ///
    /// # Errors
    /// [`PastError::Gap`] or [`PastError::Table`]; nothing was applied then.
    pub fn apply(&mut self, record: DeltaRecord) -> Result<(), PastError> {
        let mut gathered = Gathered::default();
        self.gather(record, &mut gathered)?;
        gathered.fold_into(&mut self.overlay);
        Ok(())
    }

    fn gather(&mut self, record: DeltaRecord, gathered: &mut Gathered) -> Result<(), PastError> {
        let follows = record.first_sequence <= self.sequence + 1;
        if !follows || record.last_sequence <= self.sequence {
            return Err(PastError::Gap {
                sequence: self.sequence,
                first_sequence: record.first_sequence,
                last_sequence: record.last_sequence,
            });
        }
        let table_count = self.table_count();
        if let Some(table) = record.changes.last_table()
            && table >= table_count
        {
            return Err(TableError::UnknownTable { table, table_count }.into());
        }
        self.sequence = record.last_sequence;
        self.fingerprint = record.fingerprint_after;
        gathered.add(record.changes, self.range.as_ref());
        Ok(())
    }

    fn overlay(&self, table: u32) -> Option<&Tree> {
        self.overlay.get(usize::try_from(table).ok()?)
    }

    /// The chunks of a table, and the index of the first in the entry.
    fn chunks(&self, table: u32) -> (usize, &[ChunkRef]) {
        let all = self.base().map_or(&[][..], |entry| &entry.chunks);
        let start = all.partition_point(|chunk| chunk.table < table);
        let end = all.partition_point(|chunk| chunk.table <= table);
        (start, &all[start..end])
    }

    fn chunk(&self, at: usize) -> Result<Arc<Chunk>, SnapshotError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = kept();
            if let Some(place) = kept.iter().position(|(index, _)| *index == at) {
                let found = kept.remove(place);
                let chunk = Arc::clone(&found.1);
                kept.push(found);
                return Ok(chunk);
            }
        }
        let (snapshot, entry) = self.base.as_ref().expect("chunks are those of a snapshot");
        let reference = &snapshot.manifest().entries[*entry].chunks[at];
        let chunk = Arc::new(snapshot.chunk(reference)?);
        let mut kept = kept();
        if kept.len() >= CHUNKS_KEPT {
            kept.remove(0);
        }
        kept.push((at, Arc::clone(&chunk)));
        Ok(chunk)
    }

    /// The value of a row. None if there is no such row or table.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] if a chunk cannot be read.
    ///
    /// # Panics
    /// If the view was narrowed to a range without this row: a bug of the caller.
    pub fn get(&self, table: u32, key: &[u8]) -> Result<Option<Vec<u8>>, SnapshotError> {
        let range = self.range.as_ref();
        assert!(
            range.is_none_or(|range| range.holds(table, key)),
            "the row is in the view's range"
        );
        let Some(overlay) = self.overlay(table) else {
            return Ok(None);
        };
        if let Some(value) = overlay.get(key) {
            return Ok(written(value).map(<[u8]>::to_vec));
        }
        let (first, chunks) = self.chunks(table);
        let after = chunks.partition_point(|chunk| &chunk.first_key[..] <= key);
        let Some(at) = after.checked_sub(1) else {
            return Ok(None);
        };
        let chunk = self.chunk(first + at)?;
        let row = chunk.lower_bound(key);
        if row == chunk.len() {
            return Ok(None);
        }
        let (found, value) = chunk.row(row);
        Ok((found == key).then(|| value.to_vec()))
    }

    /// Tells `sink` up to `limit` rows with keys from `start` (included) to `end` (excluded; none is
    /// the end of the table); ascending, or descending with `reverse`. `sink` answers false if it did
    /// not take the row, and is then not asked again. True if the range has more rows than were
    /// taken.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] if a chunk cannot be read; `sink` may have been told rows.
    ///
    /// # Panics
    /// If the view was narrowed to a range that does not hold this one: a bug of the caller.
    pub fn scan(
        &self,
        table: u32,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u64,
        reverse: bool,
        sink: Sink<'_>,
    ) -> Result<bool, SnapshotError> {
        let range = self.range.as_ref();
        assert!(
            range.is_none_or(|range| range.holds_range(table, start, end)),
            "the rows are in the view's range"
        );
        let Some(overlay) = self.overlay(table) else {
            return Ok(false);
        };
        let rows = ChunkRows::new(self, table, (start, end), reverse)?;
        scan_merged(rows, overlay, (start, end), limit, reverse, sink)
    }
}

/// Why a state of the past cannot be had this way: rebuild it from the log of events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PastError {
    /// The delta log cannot be read, or has a gap.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// A record does not lead on from the state.
    #[error(
        "deltas of sequences {first_sequence} to {last_sequence} do not follow the state after {sequence}"
    )]
    Gap {
        /// Sequence of the state.
        sequence: u64,
        /// First sequence of the record.
        first_sequence: u64,
        /// Last sequence of the record.
        last_sequence: u64,
    },
    /// A record is of other tables.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The rows of a table's chunks in one direction.
struct ChunkRows<'p> {
    view: &'p PastView,
    /// Index in the entry of the table's first chunk, and the number of its chunks.
    first: usize,
    count: usize,
    /// Present chunk of the table, and the row in it; none at the end.
    present: Option<(usize, Arc<Chunk>, usize)>,
    reverse: bool,
}

impl<'p> ChunkRows<'p> {
    fn new(
        view: &'p PastView,
        table: u32,
        (start, end): (&[u8], Option<&[u8]>),
        reverse: bool,
    ) -> Result<ChunkRows<'p>, SnapshotError> {
        let (first, chunks) = view.chunks(table);
        let mut rows = ChunkRows {
            view,
            first,
            count: chunks.len(),
            present: None,
            reverse,
        };
        if reverse {
            let below = |chunk: &ChunkRef| end.is_none_or(|end| &chunk.first_key[..] < end);
            if let Some(at) = chunks.partition_point(below).checked_sub(1) {
                let chunk = view.chunk(first + at)?;
                let row = end.map_or(chunk.len(), |end| chunk.lower_bound(end));
                // Its first key is below the end.
                rows.present = Some((at, chunk, row - 1));
            }
        } else if !chunks.is_empty() {
            let after = chunks.partition_point(|chunk| &chunk.first_key[..] <= start);
            let at = after.saturating_sub(1);
            let chunk = view.chunk(first + at)?;
            let row = chunk.lower_bound(start);
            if row == chunk.len() {
                rows.enter(at + 1)?;
            } else {
                rows.present = Some((at, chunk, row));
            }
        }
        Ok(rows)
    }

    /// To the first row of a chunk, or to the last one in reverse.
    fn enter(&mut self, at: usize) -> Result<(), SnapshotError> {
        self.present = None;
        if at < self.count {
            let chunk = self.view.chunk(self.first + at)?;
            let row = if self.reverse { chunk.len() - 1 } else { 0 };
            self.present = Some((at, chunk, row));
        }
        Ok(())
    }
}

impl Rows for ChunkRows<'_> {
    type Error = SnapshotError;

    fn row(&self) -> Option<(&[u8], &[u8])> {
        let (_, chunk, row) = self.present.as_ref()?;
        Some(chunk.row(*row))
    }

    fn step(&mut self) -> Result<(), SnapshotError> {
        let Some((at, chunk, row)) = &mut self.present else {
            return Ok(());
        };
        let at = *at;
        if self.reverse {
            match row.checked_sub(1) {
                Some(before) => *row = before,
                None => return self.enter(at.wrapping_sub(1)),
            }
        } else if *row + 1 < chunk.len() {
            *row += 1;
        } else {
            return self.enter(at + 1);
        }
        Ok(())
    }
}
