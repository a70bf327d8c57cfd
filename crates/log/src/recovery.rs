//! What opening does with the end of an unsealed segment: a decision table, and its execution.
//!
//! A power cut leaves a *torn tail*: writes that were in flight are there in part, or not at all,
//! in any order. Nobody was told that they are durable, so they may be cut. *Damage* to
//! acknowledged data looks alike. What tells the two apart is evidence: every header says up to
//! which offset everything was durable when it was submitted ([`BatchHeader::flushed_offset`]). If
//! any later header says so of the place that is broken, it was durable once. A segment whose
//! successor exists was durable to its end, and the successor's header says where that is.
//!
//! Order of writes: sync the file (so that what is accepted here stays), read, zero what is cut,
//! sync. A crash anywhere leaves a segment for which the same table gives the same answer.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use truthdb_io::{AlignedBuf, BLOCK_BYTES, File, OpenMode, Storage};

use crate::batch::{BATCH_HEADER_BYTES, BatchHeader, header_checksum};
use crate::canary::{Canary, planted};
use crate::decision::{Decision, Observation, decide};
use crate::error::{CorruptReason, Corruption, Until};
use crate::layout::{FormatError, Place, align_block, array_at, is_zero, to_u64, to_usize};
use crate::scan::{ScannedBatch, Windows};
use crate::segment::{
    SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind, segment_data_end_max, segment_path,
};
use crate::source::{ActiveItem, NoBytes, Source, checked_batch};

/// After the mark of a clean stop only this much is searched for later writes, which there are none
/// of, so that a start after a clean stop does not read the whole preallocated rest.
pub const CLEAN_STOP_PROBE_BYTES: u64 = 1 << 20;

/// Where a closed segment ends, as its successor's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentEnd {
    /// The successor's [`SegmentHeader::previous_checksum`].
    pub last_checksum: u64,
    /// The successor's [`SegmentHeader::base_sequence`].
    pub next_sequence: u64,
}

impl SegmentEnd {
    /// The end of the segment before this one.
    pub fn before(successor: &SegmentHeader) -> SegmentEnd {
        SegmentEnd {
            last_checksum: successor.previous_checksum,
            next_sequence: successor.base_sequence,
        }
    }
}

/// Whether recovery may change the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Sync first, and cut a torn tail.
    Repair,
    /// Change nothing, say only what would be done.
    Look,
}

/// What was cut, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Where the cut begins, in bytes.
    pub offset: u64,
    /// Bytes from there to the end of the last block that was not zero.
    pub bytes: u64,
    /// Name of the rule that applied.
    pub rule: &'static str,
}

/// An unsealed segment after recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredSegment {
    /// The segment's header.
    pub header: SegmentHeader,
    /// Offset of the first byte after the last batch or mark, 8-aligned.
    pub tail_offset: u64,
    /// Checksum of the last batch header or mark, also of an earlier segment: the next header's
    /// `previous_checksum`.
    pub last_checksum: u64,
    /// Sequence of the next event.
    pub next_sequence: u64,
    /// Time of the last event or mark of this segment, nanoseconds since 1970 UTC; 0 if there is
    /// none.
    pub last_timestamp_ns: u64,
    /// Batches found, marks not counted.
    pub batch_count: u64,
    /// Highest `flushed_sequence` of a header: what was certainly acknowledged, or could have been.
    pub flushed_sequence: u64,
    /// The last header is the mark of a clean stop.
    pub clean_stop: bool,
    /// The torn tail, if there was one.
    pub cut: Option<Cut>,
}

impl RecoveredSegment {
    /// A segment that was made just now: there is nothing in it to be read.
    pub fn just_made(header: &SegmentHeader) -> RecoveredSegment {
        RecoveredSegment {
            header: *header,
            tail_offset: SEGMENT_HEADER_BYTES,
            last_checksum: header.previous_checksum,
            next_sequence: header.base_sequence,
            last_timestamp_ns: 0,
            batch_count: 0,
            flushed_sequence: 0,
            clean_stop: false,
            cut: None,
        }
    }

    /// Where the next group goes: the first block boundary at or after the tail.
    pub fn write_offset(&self) -> u64 {
        align_block(self.tail_offset)
    }
}

/// Why a partition cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// Acknowledged data is damaged.
    #[error(
        "{path} is damaged at offset {offset}, sequences from {first_sequence}{}: {rule}",
        Until(*last_sequence)
    )]
    Corrupt {
        /// File, relative to the data directory.
        path: String,
        /// Where in the file, in bytes.
        offset: u64,
        /// First sequence that is concerned.
        first_sequence: u64,
        /// Last sequence that is concerned, as far as anything says.
        last_sequence: Option<u64>,
        /// Name of the rule that applied.
        rule: &'static str,
        /// What differs.
        #[source]
        reason: CorruptReason,
    },
    /// A newer release wrote this.
    #[error("{path} was written by a newer release")]
    NewerFormat {
        /// File, relative to the data directory.
        path: String,
        /// The versions.
        #[source]
        source: FormatError,
    },
    /// A segment is not there.
    #[error(
        "{path} is missing: restore it from a backup (segments from {first_segment} on are kept)"
    )]
    MissingSegment {
        /// The file, relative to the data directory.
        path: String,
        /// First segment that must be there.
        first_segment: u32,
    },
    /// A segment that must be sealed has no footer.
    #[error("{path} has no valid footer, though a later segment is sealed")]
    MissingFooter {
        /// The file, relative to the data directory.
        path: String,
    },
    /// Two neighbours do not fit.
    #[error("{path} does not follow the segment before it: {field} differs")]
    BrokenChain {
        /// The later file, relative to the data directory.
        path: String,
        /// Name of the field.
        field: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// File, relative to the data directory.
        path: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

impl RecoveryError {
    pub(crate) fn format(path: &str, offset: u64, first_sequence: u64, error: FormatError) -> Self {
        let path = path.to_owned();
        if matches!(error, FormatError::NewerFormat { .. }) {
            return RecoveryError::NewerFormat {
                path,
                source: error,
            };
        }
        RecoveryError::Corrupt {
            path,
            offset,
            first_sequence,
            last_sequence: None,
            rule: "damaged or foreign block",
            reason: error.into(),
        }
    }

    pub(crate) fn io(action: &'static str, path: &str, source: io::Error) -> Self {
        RecoveryError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl From<Corruption> for RecoveryError {
    fn from(corruption: Corruption) -> RecoveryError {
        let Corruption {
            path,
            offset,
            first_sequence,
            last_sequence,
            reason,
        } = corruption;
        let rule = "damaged data";
        RecoveryError::Corrupt {
            path,
            offset,
            first_sequence,
            last_sequence,
            rule,
            reason,
        }
    }
}

/// Reads an unsealed segment from its start, hands every batch that belongs to the log to `visit`,
/// and cuts a torn tail.
///
/// `end` is what the successor's header says, for a closed segment; then the segment must reach
/// exactly that, and whatever follows (the remains of an interrupted seal) is left alone.
///
/// # Errors
///
/// [`RecoveryError`]. Batches before the damage were visited by then. Nothing was changed, unless
/// the error says that cutting failed.
pub fn recover_segment(
    storage: &dyn Storage,
    place: Place,
    end: Option<SegmentEnd>,
    mode: RecoveryMode,
    visit: &mut dyn FnMut(ScannedBatch),
) -> Result<RecoveredSegment, RecoveryError> {
    let path = segment_path(place.partition, place.segment);
    let open_mode = match mode {
        RecoveryMode::Repair => OpenMode::ReadWrite,
        RecoveryMode::Look => OpenMode::Read,
    };
    let io = |action: &'static str| {
        let path = path.clone();
        move |source| RecoveryError::Io {
            action,
            path,
            source,
        }
    };
    let file = storage.open(&path, open_mode).map_err(io("open"))?;
    if mode == RecoveryMode::Repair {
        file.sync().map_err(io("sync"))?;
    }
    let header = read_header(&file, &place, &path)?;
    let length = file.len().map_err(io("find the length of"))?;
    // A block cut short by hand or by a lost length is not data.
    let data_end = length - length % to_u64(BLOCK_BYTES);
    let walk = Walk {
        storage,
        file,
        path,
        header,
        end,
        data_end,
    };
    let (recovered, verdict) = walk.run(visit)?;
    let Some(cut) = verdict else {
        return Ok(recovered);
    };
    if mode == RecoveryMode::Repair && end.is_none() {
        walk.cut(&cut)?;
    }
    let cut = (cut.bytes > 0).then_some(cut);
    Ok(RecoveredSegment { cut, ..recovered })
}

fn read_header(
    file: &Arc<dyn File>,
    place: &Place,
    path: &str,
) -> Result<SegmentHeader, RecoveryError> {
    let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
    let read = file.read_at(&mut block, BLOCK_BYTES, 0);
    let read = read.map_err(|source| RecoveryError::io("read the header of", path, source))?;
    let header = SegmentHeader::decode(&block[..read])
        .and_then(|header| header.check_place(place).map(|()| header))
        .map_err(|error| RecoveryError::format(path, 0, 0, error))?;
    if header.kind == SegmentKind::Packed {
        // Packed files get their name only when they are complete.
        return Err(RecoveryError::MissingFooter {
            path: path.to_owned(),
        });
    }
    Ok(header)
}

/// An unsealed segment being recovered.
struct Walk<'a> {
    storage: &'a dyn Storage,
    file: Arc<dyn File>,
    path: String,
    header: SegmentHeader,
    end: Option<SegmentEnd>,
    data_end: u64,
}

/// What was found at a position that is not whole.
struct Broken {
    /// Where a header was expected, padding skipped.
    offset: u64,
    /// If this was durable, evidence is a header that says so of anything beyond this offset.
    durable_beyond: u64,
    /// Where later headers are looked for: not in the body of a believed header, where payload
    /// could look like one.
    headers_from: u64,
    observation: Observation,
    last_sequence: Option<u64>,
    reason: CorruptReason,
}

impl Broken {
    fn at(offset: u64) -> Broken {
        let observation = Observation {
            blank: false,
            header_ok: false,
            mine: false,
            chained: false,
            body_ok: false,
            evidence: false,
            later: false,
        };
        Broken {
            offset,
            durable_beyond: offset,
            headers_from: offset + 1,
            observation,
            last_sequence: None,
            reason: CorruptReason::Blank,
        }
    }

    fn because(self, reason: CorruptReason) -> Broken {
        Broken { reason, ..self }
    }
}

/// What lies after a broken position.
struct Rest {
    evidence: bool,
    later: bool,
    /// Highest sequence that any later header names.
    last_sequence: Option<u64>,
    /// End of the last block that is not zero.
    debris_end: u64,
}

impl Walk<'_> {
    /// Accepts what is whole, then decides on what is not. Returns the cut that is due; none for a
    /// closed segment.
    fn run(
        &self,
        visit: &mut dyn FnMut(ScannedBatch),
    ) -> Result<(RecoveredSegment, Option<Cut>), RecoveryError> {
        let mut windows = self.windows(SEGMENT_HEADER_BYTES)?;
        let mut state = RecoveredSegment {
            header: self.header,
            tail_offset: SEGMENT_HEADER_BYTES,
            last_checksum: self.header.previous_checksum,
            next_sequence: self.header.base_sequence,
            last_timestamp_ns: 0,
            batch_count: 0,
            flushed_sequence: 0,
            clean_stop: false,
            cut: None,
        };
        loop {
            if self.end == Some(state.end()) {
                return Ok((state, None));
            }
            match self.observe(&mut windows, &state)? {
                Ok(ActiveItem {
                    header,
                    header_checksum,
                    batch,
                }) => {
                    state.accept(&header, header_checksum);
                    if let Some(batch) = batch {
                        visit(ScannedBatch {
                            offset: header.offset,
                            batch,
                        });
                    }
                }
                Err(broken) => {
                    drop(windows);
                    let cut = self.judge(&broken, &state)?;
                    return Ok((state, Some(cut)));
                }
            }
        }
    }

    fn windows(&self, start: u64) -> Result<Windows, RecoveryError> {
        let end = self.data_end.max(start);
        Windows::new(self.storage, Arc::clone(&self.file), start, end)
            .map_err(|source| RecoveryError::io("read", &self.path, source))
    }

    /// Looks at the place where the next header is expected.
    fn observe(
        &self,
        windows: &mut Windows,
        state: &RecoveredSegment,
    ) -> Result<Result<ActiveItem, Broken>, RecoveryError> {
        let tail = state.tail_offset;
        let boundary = align_block(tail);
        let mut offset = tail;
        if tail < boundary && is_zero(&self.get(windows, tail, boundary - tail)?) {
            offset = boundary;
        }
        let mut broken = Broken::at(offset);
        let block_end = (offset + 1).next_multiple_of(to_u64(BLOCK_BYTES));
        if offset >= self.data_end || is_zero(&self.get(windows, offset, block_end - offset)?) {
            broken.observation.blank = true;
            return Ok(Err(broken));
        }
        let header_end = offset + to_u64(BATCH_HEADER_BYTES);
        if header_end > self.data_end {
            let (needed, end) = (header_end, self.data_end);
            return Ok(Err(broken.because(CorruptReason::BeyondEnd { needed, end })));
        }
        let encoded = self.get(windows, offset, to_u64(BATCH_HEADER_BYTES))?;
        let header = match BatchHeader::decode(&encoded) {
            Ok(header) => header,
            Err(error @ FormatError::NewerFormat { .. }) => {
                return Err(RecoveryError::format(
                    &self.path,
                    offset,
                    state.next_sequence,
                    error,
                ));
            }
            Err(error) => return Ok(Err(broken.because(error.into()))),
        };
        broken.observation.header_ok = true;
        if let Err(error) = header.check_place(&self.header.place, offset) {
            return Ok(Err(broken.because(error.into())));
        }
        broken.observation.mine = true;
        broken.last_sequence = Some(header.next_sequence() - 1);
        if let Err(reason) = state.check_chain(&header) {
            // What is missing lies before this header, perhaps in the padding that was skipped.
            broken.durable_beyond = tail;
            broken.headers_from = offset;
            return Ok(Err(broken.because(reason)));
        }
        broken.observation.chained = true;
        broken.headers_from = header.end_offset();
        let header_checksum = header_checksum(&array_at(&encoded, 0));
        if header.mark {
            return Ok(Ok(ActiveItem {
                header,
                header_checksum,
                batch: None,
            }));
        }
        if header.end_offset() > self.data_end {
            let (needed, end) = (header.end_offset(), self.data_end);
            return Ok(Err(broken.because(CorruptReason::BeyondEnd { needed, end })));
        }
        let body = self.get(windows, header_end, header.body_bytes.into())?;
        Ok(match checked_batch(&header, body) {
            Ok(batch) => Ok(ActiveItem {
                header,
                header_checksum,
                batch: Some(batch),
            }),
            Err(error) => Err(broken.because(error.into())),
        })
    }

    fn get(&self, windows: &mut Windows, at: u64, bytes: u64) -> Result<Bytes, RecoveryError> {
        windows.get(at, to_usize(bytes)).map_err(|no_bytes| {
            let source = match no_bytes {
                NoBytes::Io(offset, source) => {
                    io::Error::new(source.kind(), format!("at offset {offset}: {source}"))
                }
                NoBytes::Short(_) => io::ErrorKind::UnexpectedEof.into(),
            };
            RecoveryError::io("read", &self.path, source)
        })
    }

    /// Applies the table to what is not whole.
    fn judge(&self, broken: &Broken, state: &RecoveredSegment) -> Result<Cut, RecoveryError> {
        let rest = self.search_rest(broken, state.clean_stop)?;
        let observation = Observation {
            evidence: rest.evidence || self.end.is_some(),
            later: rest.later,
            ..broken.observation
        };
        let rule = decide(observation);
        match rule.decision {
            Decision::EndOfLog | Decision::CutTornTail => {
                let bytes = rest.debris_end.saturating_sub(broken.offset);
                Ok(Cut {
                    offset: broken.offset,
                    bytes,
                    rule: rule.name,
                })
            }
            Decision::Refuse | Decision::Accept => {
                let known = [broken.last_sequence, rest.last_sequence];
                let successor = self.end.map(|end| end.next_sequence - 1);
                let last = known.into_iter().chain([successor]).flatten().max();
                Err(RecoveryError::Corrupt {
                    path: self.path.clone(),
                    offset: broken.offset,
                    first_sequence: state.next_sequence,
                    last_sequence: last.filter(|last| *last >= state.next_sequence),
                    rule: rule.name,
                    reason: broken.reason.clone(),
                })
            }
        }
    }

    /// Looks for headers and for anything but zeros after a broken position.
    fn search_rest(&self, broken: &Broken, clean_stop: bool) -> Result<Rest, RecoveryError> {
        let block_bytes = to_u64(BLOCK_BYTES);
        let start = broken.offset - broken.offset % block_bytes;
        let mut rest = Rest {
            evidence: false,
            later: false,
            last_sequence: None,
            debris_end: broken.offset,
        };
        let mut end = self.data_end;
        if clean_stop && broken.observation.blank {
            end = end.min(start + CLEAN_STOP_PROBE_BYTES);
        }
        let mut windows = self.windows(start)?;
        let mut at = start;
        while at < end {
            let block = self.get(&mut windows, at, block_bytes)?;
            let skip = to_usize(broken.offset.saturating_sub(at));
            if !is_zero(&block[skip..]) {
                rest.debris_end = at + block_bytes;
                rest.later |= at > start;
            }
            if at >= broken.headers_from
                && let Some(header) = self.header_at(&block, at)
            {
                rest.evidence |=
                    header.flushed_offset > broken.durable_beyond && !planted(Canary::DropEvidence);
                let known = (header.next_sequence() - 1).max(header.flushed_sequence);
                rest.last_sequence = rest.last_sequence.max(Some(known));
            }
            at += block_bytes;
        }
        Ok(rest)
    }

    fn header_at(&self, block: &[u8], offset: u64) -> Option<BatchHeader> {
        let header = BatchHeader::decode(block).ok()?;
        header.check_place(&self.header.place, offset).ok()?;
        Some(header)
    }

    /// Zeroes what is cut, gives the file back its size, and syncs.
    fn cut(&self, cut: &Cut) -> Result<(), RecoveryError> {
        let io = |source| RecoveryError::io("cut the torn tail of", &self.path, source);
        zero_range(&self.file, cut.offset..cut.offset + cut.bytes).map_err(io)?;
        let segment_bytes = self.header.segment_bytes;
        let length = self.file.len().map_err(io)?;
        if length > segment_bytes && cut.offset <= segment_data_end_max(segment_bytes) {
            self.file.set_len(segment_bytes).map_err(io)?;
        } else if length < segment_bytes {
            self.file.allocate(segment_bytes).map_err(io)?;
        }
        if cut.bytes > 0 || length != segment_bytes {
            self.file.sync().map_err(io)?;
        }
        Ok(())
    }
}

impl RecoveredSegment {
    fn end(&self) -> SegmentEnd {
        SegmentEnd {
            last_checksum: self.last_checksum,
            next_sequence: self.next_sequence,
        }
    }

    fn check_chain(&self, header: &BatchHeader) -> Result<(), CorruptReason> {
        let pairs = [
            ("first sequence", self.next_sequence, header.first_sequence),
            (
                "previous checksum",
                self.last_checksum,
                header.previous_checksum,
            ),
        ];
        match pairs
            .into_iter()
            .find(|(_, expected, found)| expected != found)
        {
            Some(_) if planted(Canary::SkipChainCheck) => Ok(()),
            Some((field, expected, found)) => Err(CorruptReason::Order {
                field,
                expected,
                found,
            }),
            None => Ok(()),
        }
    }

    fn accept(&mut self, header: &BatchHeader, checksum: u64) {
        self.tail_offset = header.end_offset();
        self.last_checksum = checksum;
        self.next_sequence = header.next_sequence();
        self.last_timestamp_ns = self.last_timestamp_ns.max(header.timestamp_ns);
        self.batch_count += u64::from(!header.mark);
        self.flushed_sequence = self.flushed_sequence.max(header.flushed_sequence);
        self.clean_stop = header.clean_stop;
    }
}

/// Writes zeros over a range. The bytes before it in its first block are written again as they are.
pub(crate) fn zero_range(file: &Arc<dyn File>, range: Range<u64>) -> io::Result<()> {
    let block_bytes = to_u64(BLOCK_BYTES);
    let kept = to_usize(range.start % block_bytes);
    let mut at = range.start;
    if kept > 0 && range.start < range.end {
        let block_at = range.start - to_u64(kept);
        let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
        if file.read_at(&mut block, BLOCK_BYTES, block_at)? < BLOCK_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        block[kept..].fill(0);
        file.write_at(&block, BLOCK_BYTES, block_at)?;
        at = block_at + block_bytes;
    }
    let zeros = AlignedBuf::new_zeroed(1 << 20);
    while at < range.end {
        let bytes = to_usize((align_block(range.end) - at).min(to_u64(zeros.len())));
        file.write_at(&zeros, bytes, at)?;
        at += to_u64(bytes);
    }
    Ok(())
}
