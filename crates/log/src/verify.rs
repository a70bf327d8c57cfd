//! Verification: every byte of the log that means something is read and held against everything
//! that is said of it.
//!
//! Of a closed database all of it; of an open one its sealed segments, which never change and only go when they are
//! trimmed. Nothing is written.
//! Checked are: headers, tables,
//! events, padding, gapless sequences and revisions, roots recomputed from the events, the chain
//! over all segments,
//! sparse indexes, index files against the events, and the runs of stream heads. `deep` also follows
//! every stream from segment to segment.
//!
//! Memory is bounded by one segment's index, whatever the size of the database. Damage does not end
//! the work: it goes on at
//! the next place that the sparse index knows.

use std::ops::ControlFlow;
use std::sync::Arc;

use truthdb_io::{AlignedBuf, OpenMode, Storage};

use crate::active_index::{ActiveIndex, SparseEntry};
use crate::digest::Digest;
use crate::error::ReadError;
use crate::index::SegmentIndex;
use crate::keys::{KeyHasher, KeySeed, StreamKey};
use crate::layout::{align_block, is_zero, to_usize};
use crate::manifest::Manifest;
use crate::merkle::{Hash, ZERO_HASH};
use crate::reader::SegmentReader;
use crate::rebuild::{index_batch, resolve, revision_gap};
use crate::recovery::{RecoveryError, RecoveryMode, SegmentEnd, recover_segment};
use crate::scan::ScannedBatch;
use crate::seal::{segment_binding, segment_index_path};
use crate::segment::{
    Footer, SEGMENT_HEADER_BYTES, SegmentHeader, parse_segment_name, segment_path, wal_dir,
};
use crate::source::Link;
use crate::verify_heads::{HeadsFinding, verify_heads};
use crate::verify_report::{Finding, Severity, VerifyProgress, VerifyReport};
use crate::verify_walk::Walk;

/// How often the runs of stream heads are looked at while trims go on.
const HEADS_ATTEMPTS: u32 = 8;
const RESTORE: &str = "restore this segment from a backup with `truthdb repair`";
pub(crate) const REBUILD: &str = "nothing: it is made again when the database is opened";
const TORN: &str = "nothing: it was never acknowledged and is cut when the database is opened";
const SEAL: &str = "nothing: it is sealed when the database is opened";
pub(crate) const LOOK: &str = "look at it with `truthdb inspect`";
const FOREIGN: &str = "move the file away if it is not yours";

/// Verifies partitions of a database that is closed; `partitions` are numbers, empty for all. `deep` also follows every
/// stream from segment to segment, and compares the links in the indexes.
///
/// `progress` is called after every MiB or so, and ends the work by [`ControlFlow::Break`]. What is wrong is in the
/// report; there is no error.
pub fn verify_database(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    partitions: &[u32],
    deep: bool,
    progress: &mut dyn FnMut(VerifyProgress<'_>) -> ControlFlow<()>,
) -> VerifyReport {
    let verifier = Verifier {
        storage,
        manifest,
        keys: KeyHasher::new(KeySeed(manifest.key_seed)),
        deep,
        is_open: false,
        first_segment: &|_| 0,
        progress,
        bytes_total: 0,
        report: VerifyReport::default(),
    };
    verifier.run(partitions)
}

/// As [`verify_database`], for one that is open: sealed segments only, and `first_segment` says of a partition which
/// segment is its oldest now. What a trim takes away meanwhile is no finding.
pub fn verify_open_database(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    partitions: &[u32],
    deep: bool,
    first_segment: &dyn Fn(u32) -> u32,
    progress: &mut dyn FnMut(VerifyProgress<'_>) -> ControlFlow<()>,
) -> VerifyReport {
    let verifier = Verifier {
        storage,
        manifest,
        keys: KeyHasher::new(KeySeed(manifest.key_seed)),
        deep,
        is_open: true,
        first_segment,
        progress,
        bytes_total: 0,
        report: VerifyReport::default(),
    };
    verifier.run(partitions)
}

struct Verifier<'a> {
    storage: &'a Arc<dyn Storage>,
    manifest: &'a Manifest,
    keys: KeyHasher,
    deep: bool,
    is_open: bool,
    /// The oldest segment that a partition has now; those before it were trimmed.
    first_segment: &'a dyn Fn(u32) -> u32,
    progress: &'a mut dyn FnMut(VerifyProgress<'_>) -> ControlFlow<()>,
    bytes_total: u64,
    report: VerifyReport,
}

/// What a segment must continue.
#[derive(Default)]
struct Before {
    /// Chain hash of the segment before, if it is known.
    chain: Option<Hash>,
    /// Sequence that comes next, if it is known.
    next_sequence: Option<u64>,
    /// Checksum of the last header before, if it is known.
    last_checksum: Option<u64>,
    /// Number of the segment before, if it has no footer.
    unsealed: Option<u32>,
}

impl Verifier<'_> {
    fn run(mut self, partitions: &[u32]) -> VerifyReport {
        let all: Vec<u32> = (0..self.manifest.partition_count).collect();
        let partitions = if partitions.is_empty() {
            &all
        } else {
            partitions
        };
        let files = |partition: u32| self.storage.list(&wal_dir(partition)).unwrap_or_default();
        let is_segment = |name: &str| parse_segment_name(name).is_some();
        self.bytes_total = partitions
            .iter()
            .flat_map(|partition| files(*partition))
            .filter(|entry| is_segment(&entry.name))
            .map(|entry| entry.bytes)
            .sum();
        for partition in partitions {
            if self.partition(*partition).is_break() {
                self.report.interrupted = true;
                break;
            }
        }
        self.report
    }

    fn partition(&mut self, partition: u32) -> ControlFlow<()> {
        let directory = wal_dir(partition);
        let entries = match self.storage.list(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                self.find(
                    Severity::Error,
                    &directory,
                    format!("cannot be listed: {error}"),
                    RESTORE,
                );
                return ControlFlow::Continue(());
            }
        };
        let mut segments = Vec::new();
        for entry in entries {
            match parse_segment_name(&entry.name) {
                Some(segment) => segments.push(segment),
                None if entry.name.ends_with(".new") => {}
                None => {
                    let path = format!("{directory}/{}", entry.name);
                    self.find(
                        Severity::Note,
                        &path,
                        "is not a file of the log".into(),
                        FOREIGN,
                    );
                }
            }
        }
        segments.sort_unstable();
        let footers = self.segments(partition, &segments)?;
        if let Some(newest) = footers.last() {
            let chain = crate::proof::hex(&newest.chain);
            self.report
                .chains
                .push((partition, newest.place.segment, chain));
        }
        self.heads(partition, &segments, footers);
        ControlFlow::Continue(())
    }

    /// Verifies segments one after another and gives the footers of those that are sealed and still there.
    fn segments(&mut self, partition: u32, segments: &[u32]) -> ControlFlow<(), Vec<Footer>> {
        let mut before = Before::default();
        if segments.first() == Some(&1) {
            before = Before {
                chain: Some(ZERO_HASH),
                next_sequence: Some(1),
                last_checksum: Some(0),
                unsealed: None,
            };
        }
        let mut footers = Vec::new();
        let mut last = None;
        for &segment in segments {
            let found = self.report.findings.len();
            if last.is_some_and(|last| last + 1 != segment) {
                let missing = segment_path(partition, segment - 1);
                if segment > (self.first_segment)(partition) {
                    self.find(Severity::Error, &missing, "is missing".into(), RESTORE);
                }
                before = Before::default();
            }
            last = Some(segment);
            let is_trimmed = |verifier: &Self| segment < (verifier.first_segment)(partition);
            if !is_trimmed(self) {
                before = self.segment(partition, segment, before, &mut footers)?;
            }
            if is_trimmed(self) {
                // Its files may be gone already; what was seen of them means nothing.
                self.report.findings.truncate(found);
                before = Before::default();
            }
        }
        ControlFlow::Continue(footers)
    }

    fn heads(&mut self, partition: u32, segments: &[u32], mut footers: Vec<Footer>) {
        // A trim meanwhile moves the oldest segment; each look is held against where it was.
        for _ in 0..HEADS_ATTEMPTS {
            let oldest = (self.first_segment)(partition);
            let Some(first) = segments.iter().copied().find(|one| *one >= oldest) else {
                return;
            };
            footers.retain(|footer| footer.place.segment >= first);
            let heads = verify_heads(
                self.storage,
                self.manifest,
                partition,
                first,
                &footers,
                self.is_open,
            );
            if heads.is_empty() {
                return;
            }
            if (self.first_segment)(partition) > first {
                continue;
            }
            for HeadsFinding {
                severity,
                path,
                what,
                advice,
            } in heads
            {
                self.find(severity, &path, what, advice);
            }
            return;
        }
    }

    /// Verifies one segment and says what its successor must continue.
    fn segment(
        &mut self,
        partition: u32,
        segment: u32,
        before: Before,
        footers: &mut Vec<Footer>,
    ) -> ControlFlow<(), Before> {
        let place = self.manifest.place(partition, segment);
        let (reader, header) = match SegmentReader::open(self.storage.as_ref(), place) {
            Ok(opened) => opened,
            Err(error) => {
                self.find_read(&error);
                return ControlFlow::Continue(Before::default());
            }
        };
        let footer = match reader.footer() {
            Ok(footer) => footer,
            Err(error) => {
                self.find_read(&error);
                return ControlFlow::Continue(Before::default());
            }
        };
        let path = reader.path();
        let follows = [
            (
                "base sequence",
                before
                    .next_sequence
                    .is_some_and(|next| next != header.base_sequence),
            ),
            (
                "previous checksum",
                before
                    .last_checksum
                    .is_some_and(|last| last != header.previous_checksum),
            ),
        ];
        for (field, differs) in follows {
            if differs {
                let what = format!("does not follow the segment before it: {field} differs");
                self.find(Severity::Error, path, what, RESTORE);
            }
        }
        match footer {
            Some(footer) => {
                if let Some(unsealed) = before.unsealed {
                    let what = "has no valid footer, though a later segment is sealed".to_owned();
                    self.find(
                        Severity::Error,
                        &segment_path(partition, unsealed),
                        what,
                        RESTORE,
                    );
                }
                let after = self.sealed(&reader, &header, &footer, &before)?;
                footers.push(footer);
                ControlFlow::Continue(after)
            }
            None if self.is_open => ControlFlow::Continue(Before::default()),
            None => ControlFlow::Continue(self.unsealed(&header)),
        }
    }

    fn sealed(
        &mut self,
        reader: &SegmentReader,
        header: &SegmentHeader,
        footer: &Footer,
        before: &Before,
    ) -> ControlFlow<(), Before> {
        let path = reader.path();
        let start_bytes = self.report.bytes;
        if header.base_sequence != footer.base_sequence || header.kind != footer.kind {
            let what = "header and footer contradict each other".to_owned();
            self.find(Severity::Error, path, what, RESTORE);
        }
        if before
            .chain
            .is_some_and(|chain| chain != footer.previous_chain)
        {
            let what = "the chain hash of the segment before it is another".to_owned();
            self.find(Severity::Error, path, what, RESTORE);
        }
        let sparse = reader.sparse_index(footer).unwrap_or_else(|error| {
            self.find_read(&error);
            Vec::new()
        });
        self.check_tail(reader, footer);
        let mut events = Events {
            digest: Digest::new(footer.kind, footer.base_sequence),
            index: ActiveIndex::new(footer.base_sequence),
            pending: Vec::new(),
            whole: true,
        };
        self.data(reader, header, footer, &sparse, &mut events)?;
        self.report.segments += 1;
        self.report.bytes = start_bytes + reader.file().len().unwrap_or(footer.data_end);
        if events.whole {
            if let Some(field) = events.digest.difference(footer, &sparse) {
                let what = format!("the events give another {field} than the footer says");
                self.find(Severity::Error, path, what, RESTORE);
            }
            self.check_index(footer, events);
        }
        ControlFlow::Continue(Before {
            chain: Some(footer.chain),
            next_sequence: Some(footer.last_sequence + 1),
            last_checksum: Some(footer.last_batch_checksum),
            unsealed: None,
        })
    }

    /// Reads all data of a sealed segment; after damage it goes on at the next entry of the sparse index.
    fn data(
        &mut self,
        reader: &SegmentReader,
        header: &SegmentHeader,
        footer: &Footer,
        sparse: &[SparseEntry],
        events: &mut Events,
    ) -> ControlFlow<()> {
        let mut start = SparseEntry {
            sequence: footer.base_sequence,
            offset: SEGMENT_HEADER_BYTES,
            timestamp_ns: 0,
        };
        let mut checksum = Some(header.previous_checksum);
        loop {
            let link = Link {
                next_sequence: Some(start.sequence),
                checksum: checksum.take(),
            };
            let walk = Walk::new(self.storage, reader, footer, start.offset, link);
            let damage = match walk {
                Ok(mut walk) => self.walk(&mut walk, footer, events)?,
                Err(error) => Some((start.offset, error)),
            };
            let Some((offset, error)) = damage else {
                return ControlFlow::Continue(());
            };
            events.whole = false;
            self.find_read(&error);
            match sparse.iter().find(|entry| entry.offset > offset) {
                Some(entry) => start = *entry,
                None => return ControlFlow::Continue(()),
            }
        }
    }

    /// Reads on to the end or to the next damage.
    fn walk(
        &mut self,
        walk: &mut Walk<'_>,
        footer: &Footer,
        events: &mut Events,
    ) -> ControlFlow<(), Option<(u64, ReadError)>> {
        let mut reported = walk.position;
        loop {
            let at = walk.position;
            let batches = match walk.next(footer) {
                Ok(Some(batches)) => batches,
                Ok(None) => break,
                Err(error) => return ControlFlow::Continue(Some((at, error))),
            };
            for scanned in batches {
                self.report.events += u64::from(scanned.batch.event_count);
                if events.whole {
                    self.add(walk.reader.path(), &scanned, events);
                }
            }
            if walk.position - reported >= 1 << 20 {
                self.report.bytes += walk.position - reported;
                reported = walk.position;
                self.tell(walk.reader.path())?;
            }
        }
        self.tell(walk.reader.path())?;
        ControlFlow::Continue(None)
    }

    fn add(&mut self, path: &str, scanned: &ScannedBatch, events: &mut Events) {
        let last_timestamp_ns = events.digest.last_timestamp_ns;
        if scanned.batch.timestamp_ns < last_timestamp_ns {
            let what = format!(
                "the time of the events from {} on goes back",
                scanned.batch.first_sequence
            );
            self.find(Severity::Error, path, what, LOOK);
        }
        events.digest.add(scanned);
        if let Some(gap) = revision_gap(&events.index, &self.keys, &scanned.batch) {
            let what = format!(
                "the revision is {}, but {} follows",
                gap.found, gap.expected
            );
            let sequence = Some(gap.sequence);
            self.report.findings.push(Finding {
                severity: Severity::Error,
                path: path.to_owned(),
                offset: Some(scanned.offset),
                first_sequence: sequence,
                last_sequence: sequence,
                what,
                advice: LOOK,
            });
            events.whole = false;
            return;
        }
        let pending = &mut events.pending;
        index_batch(
            &mut events.index,
            &self.keys,
            scanned.offset,
            &scanned.batch,
            |key, revision| {
                if revision > 0 {
                    pending.push((key, revision));
                }
                0
            },
        );
    }

    /// The bytes between data and footer that mean nothing must be zero.
    fn check_tail(&mut self, reader: &SegmentReader, footer: &Footer) {
        let end = footer.sparse_offset + footer.sparse_bytes();
        let bytes = to_usize(align_block(end) - footer.sparse_offset);
        let mut buf = AlignedBuf::new_zeroed(bytes);
        let is_read = reader.file().read_at(&mut buf, bytes, footer.sparse_offset);
        if !matches!(is_read, Ok(read) if read == bytes) {
            return;
        }
        if !is_zero(&buf[to_usize(footer.sparse_bytes())..bytes]) {
            self.find_at(
                Severity::Error,
                reader.path(),
                end,
                "padding is not zero",
                RESTORE,
            );
        }
    }

    fn check_index(&mut self, footer: &Footer, mut events: Events) {
        let path = segment_index_path(footer.place.partition, footer.place.segment);
        // Where older segments were trimmed, nothing says what came before.
        let with_previous = self.deep && self.check_streams(footer, &mut events);
        let binding = segment_binding(footer, self.keys.seed().check());
        let difference = SegmentIndex::open(self.storage, &path, &binding)
            .and_then(|index| index.difference(&events.index, with_previous));
        match difference {
            Ok(None) => {}
            Ok(Some(part)) => {
                let what = format!("its {part} are not those of the events");
                self.find(
                    Severity::Warning,
                    &path,
                    what,
                    "remove the file; it is made again",
                );
            }
            Err(error) => {
                let what = with_causes(&error);
                let what = what
                    .strip_prefix(&format!("{path}: "))
                    .unwrap_or(&what)
                    .to_owned();
                self.find(Severity::Warning, &path, what, REBUILD);
            }
        }
    }

    /// Each stream must go on where the newest older index that knows it says. Whether that is known
    /// of all of them.
    fn check_streams(&mut self, footer: &Footer, events: &mut Events) -> bool {
        let place = footer.place;
        let mut pending: Vec<StreamKey> = events.pending.iter().map(|(key, _)| *key).collect();
        pending.sort_unstable();
        for segment in (1..place.segment).rev() {
            let waiting = pending.clone();
            if pending.is_empty() {
                return true;
            }
            let Some(older) = self.index_of(place.partition, segment) else {
                return false;
            };
            if resolve(&mut events.index, &mut pending, &older).is_err() {
                return false;
            }
            for key in waiting
                .iter()
                .filter(|key| pending.binary_search(key).is_err())
            {
                let first = events
                    .index
                    .stream(*key)
                    .map(|extent| extent.first_revision);
                let before = older.stream(*key).ok().flatten();
                if let (Some(first), Some(before)) = (first, before)
                    && first != before.next_revision
                {
                    let path = segment_path(place.partition, place.segment);
                    let what = format!(
                        "a stream goes on with revision {first} after {} events (its last \
                         event before is {})",
                        before.next_revision, before.last_sequence
                    );
                    self.find(Severity::Error, &path, what, LOOK);
                }
            }
        }
        if !pending.is_empty() && footer.trim.first_segment == 1 {
            let path = segment_path(place.partition, place.segment);
            let what = format!("{} streams do not begin with revision 0", pending.len());
            self.find(Severity::Error, &path, what, LOOK);
        }
        pending.is_empty()
    }

    fn index_of(&self, partition: u32, segment: u32) -> Option<SegmentIndex> {
        let place = self.manifest.place(partition, segment);
        let (reader, _) = SegmentReader::open(self.storage.as_ref(), place).ok()?;
        let footer = reader.footer().ok()??;
        let binding = segment_binding(&footer, self.keys.seed().check());
        SegmentIndex::open(
            self.storage,
            &segment_index_path(partition, segment),
            &binding,
        )
        .ok()
    }

    fn unsealed(&mut self, header: &SegmentHeader) -> Before {
        let place = header.place;
        let next = segment_path(place.partition, place.segment + 1);
        let end = self.storage.open(&next, OpenMode::Read).ok().and_then(|_| {
            let place = self.manifest.place(place.partition, place.segment + 1);
            let (_, successor) = SegmentReader::open(self.storage.as_ref(), place).ok()?;
            Some(SegmentEnd::before(&successor))
        });
        let mut count = 0;
        let mut visit = |scanned: ScannedBatch| count += u64::from(scanned.batch.event_count);
        let storage = self.storage.as_ref();
        let recovered = recover_segment(storage, place, end, RecoveryMode::Look, &mut visit);
        self.report.events += count;
        self.report.segments += 1;
        let path = segment_path(place.partition, place.segment);
        match recovered {
            Ok(recovered) => {
                self.report.bytes += recovered.write_offset();
                if let Some(cut) = recovered.cut {
                    let what = format!("a torn tail of {} bytes: {}", cut.bytes, cut.rule);
                    self.find_at(Severity::Note, &path, cut.offset, &what, TORN);
                }
                if end.is_some() {
                    let what = "is closed and waits for its seal".to_owned();
                    self.find(Severity::Note, &path, what, SEAL);
                }
                Before {
                    chain: None,
                    next_sequence: Some(recovered.next_sequence),
                    last_checksum: Some(recovered.last_checksum),
                    unsealed: Some(place.segment),
                }
            }
            Err(error) => {
                self.find_recovery(&path, &error);
                Before {
                    unsealed: Some(place.segment),
                    ..Before::default()
                }
            }
        }
    }

    fn tell(&mut self, path: &str) -> ControlFlow<()> {
        let (bytes_done, bytes_total) = (self.report.bytes, self.bytes_total);
        (self.progress)(VerifyProgress {
            path,
            bytes_done,
            bytes_total,
        })
    }

    fn find(&mut self, severity: Severity, path: &str, what: String, advice: &'static str) {
        let finding = Finding {
            severity,
            path: path.to_owned(),
            offset: None,
            first_sequence: None,
            last_sequence: None,
            what,
            advice,
        };
        self.report.findings.push(finding);
    }

    fn find_at(
        &mut self,
        severity: Severity,
        path: &str,
        offset: u64,
        what: &str,
        advice: &'static str,
    ) {
        self.find(severity, path, what.to_owned(), advice);
        if let Some(finding) = self.report.findings.last_mut() {
            finding.offset = Some(offset);
        }
    }

    fn find_read(&mut self, error: &ReadError) {
        let finding = match error {
            ReadError::Io {
                path,
                offset,
                source,
            } => Finding {
                severity: Severity::Error,
                path: path.clone(),
                offset: Some(*offset),
                first_sequence: None,
                last_sequence: None,
                what: format!("cannot be read: {source}"),
                advice: RESTORE,
            },
            ReadError::Corrupt(corruption) => Finding {
                severity: Severity::Error,
                path: corruption.path.clone(),
                offset: Some(corruption.offset),
                first_sequence: Some(corruption.first_sequence),
                last_sequence: corruption.last_sequence,
                what: with_causes(&corruption.reason),
                advice: RESTORE,
            },
        };
        self.report.findings.push(finding);
    }

    fn find_recovery(&mut self, path: &str, error: &RecoveryError) {
        let mut finding = Finding {
            severity: Severity::Error,
            path: path.to_owned(),
            offset: None,
            first_sequence: None,
            last_sequence: None,
            what: with_causes(error),
            advice: "restore from a backup, or cut the damaged tail with `truthdb repair`",
        };
        if let RecoveryError::Corrupt {
            offset,
            first_sequence,
            last_sequence,
            ..
        } = error
        {
            finding.offset = Some(*offset);
            finding.first_sequence = Some(*first_sequence);
            finding.last_sequence = *last_sequence;
        }
        self.report.findings.push(finding);
    }
}

/// What the events of a segment add up to.
struct Events {
    digest: Digest,
    index: ActiveIndex,
    /// Streams that go on from an older segment, with their first revision here.
    pending: Vec<(StreamKey, u64)>,
    /// No damage so far.
    whole: bool,
}

/// An error with its causes, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
