//! `heads-A-B.run`: where every stream ends that has an event in the sealed segments A..=B, and the
//! set of runs.
//!
//! A stream that the writer does not remember is looked up in the runs, newest first. Each run
//! keeps a Bloom filter in
//! memory (10 bits a stream) and the upper key half of each page's first row (0.5 bits a stream); a
//! lookup that the
//! filter lets through reads one page. Runs are merged four of a tier into one, so that there are few.
//!
//! Derived from the segment indexes, with one exception that matters: a run may cover segments that
//! were trimmed since, and
//! is then the only place that knows their streams' revisions. Such a run is never removed before
//! the one that replaces it is durable,
//! and if it is damaged, opening fails ([`HeadsError::Lost`]) instead of starting streams again at 0.
//!
//! Header page: 0 u64 checksum(8..4096) | 8 "THDR" | 12 u16 version | 14 u16 0 |
//! 16 \[16\] database id | 32 u32 partition | 36 u32 first_segment | 40 u32 last_segment | 44 u32 0 |
//! 48 u64 check of the key seed | 56 \[32\] chain hash of the last segment | 88 three sections {u64
//! offset, u64 bytes, u64 rows}: heads, bloom, sample.
//! Heads, sorted: {u128 key, u64 next_revision, u64 last_sequence}. Bloom: u64 words. Sample: u64 a page.
//!
//! Crash safety: (1) the merged run is written as `.new`, (2) synced and renamed, (3) its inputs
//! are removed. After a crash
//! in 1 the `.new` is removed at open; in 3 the remaining inputs are contained in the merged run
//! and removed at open.

use std::ops::RangeInclusive;
use std::sync::Arc;

use truthdb_io::{File, Storage};
use xxhash_rust::xxh64::xxh64;

use crate::active_index::StreamHead;
use crate::bloom::{BITS_PER_KEY, Bloom};
use crate::index::SegmentIndex;
use crate::keys::StreamKey;
use crate::paged::{
    IndexError, PAGE_BYTES, PagedReader, PagedWriter, Rows, SECTION_ENTRY_BYTES, Section, get_u16,
    get_u32, get_u64, put_u16, put_u32, put_u64,
};
use crate::table::{Table, TableKey, sample_from_bytes};

/// Version of the format.
pub const HEADS_VERSION: u16 = 1;
/// Runs of one tier that are merged into one.
pub const MERGE_RUNS: usize = 4;

const MAGIC: &[u8; 4] = b"THDR";
/// Header bytes that say whose run it is; their hash seeds the pages' checksums.
const IDENTITY: std::ops::Range<usize> = 8..88;
const HEADER_BYTES: usize = 88 + 3 * SECTION_ENTRY_BYTES;
const ROW_BYTES: usize = 32;
/// Names of the sections, in the order of the header.
pub(crate) const RUN_SECTION_NAMES: [&str; 3] = ["heads", "bloom", "sample"];

/// Why the stream heads of a partition cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadsError {
    /// A run's file cannot be used.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Runs of some segments are missing; [`HeadRuns::add_segment`] fills the gap.
    #[error("{directory}: no stream heads of the segments {first}..={last}")]
    Missing {
        /// Index directory.
        directory: String,
        /// First segment without a run.
        first: u32,
        /// Last segment of the gap.
        last: u32,
    },
    /// The heads of trimmed segments are damaged or missing; no segment is left to build them from.
    #[error(
        "{directory}: the stream heads of the trimmed segments {first}..={last} are damaged or missing; restore the \
         directory from a backup: without them streams would begin again at revision 0"
    )]
    Lost {
        /// Index directory.
        directory: String,
        /// First segment without a run.
        first: u32,
        /// Last segment of the gap.
        last: u32,
    },
}

/// Whose runs are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadsIdentity {
    /// Database.
    pub database_id: [u8; 16],
    /// Partition.
    pub partition: u32,
    /// [`crate::KeySeed::check`] of the database's seed.
    pub key_check: u64,
}

/// Name of the run of the segments `first..=last`.
pub fn run_file_name(first: u32, last: u32) -> String {
    format!("heads-{first:08}-{last:08}.run")
}

/// Segments of a run's file name.
pub fn parse_run_file_name(name: &str) -> Option<(u32, u32)> {
    let (first, last) = name
        .strip_prefix("heads-")?
        .strip_suffix(".run")?
        .split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first >= 1 && first <= last && run_file_name(first, last) == name).then_some((first, last))
}

/// Writes a run: heads in ascending order of their keys.
pub struct HeadRunWriter {
    writer: PagedWriter,
    header: [u8; HEADER_BYTES],
    sample: Vec<u64>,
    last_key: Option<StreamKey>,
}

impl HeadRunWriter {
    /// Begins the run of the segments `first..=last`; `chain` is the chain hash of the last.
    pub fn create(
        storage: &Arc<dyn Storage>,
        directory: &str,
        identity: &HeadsIdentity,
        first: u32,
        last: u32,
        chain: &[u8; 32],
    ) -> Result<HeadRunWriter, IndexError> {
        assert!(1 <= first && first <= last, "a run covers segments");
        let mut header = [0; HEADER_BYTES];
        header[8..12].copy_from_slice(MAGIC);
        put_u16(&mut header, 12, HEADS_VERSION);
        header[16..32].copy_from_slice(&identity.database_id);
        put_u32(&mut header, 32, identity.partition);
        put_u32(&mut header, 36, first);
        put_u32(&mut header, 40, last);
        put_u64(&mut header, 48, identity.key_check);
        header[56..88].copy_from_slice(chain);
        let path = format!("{directory}/{}", run_file_name(first, last));
        let writer = PagedWriter::create(storage, &path, xxh64(&header[IDENTITY], 0))?;
        Ok(HeadRunWriter {
            writer,
            header,
            sample: Vec::new(),
            last_key: None,
        })
    }

    /// Adds the next head.
    ///
    /// # Panics
    /// If the keys do not ascend: a bug of the caller.
    pub fn push(&mut self, key: StreamKey, head: StreamHead) -> Result<(), IndexError> {
        assert!(
            self.last_key.is_none_or(|last| last < key),
            "heads come in the order of their keys"
        );
        self.last_key = Some(key);
        let mut row = [0; ROW_BYTES];
        row[..16].copy_from_slice(&key.0.to_le_bytes());
        put_u64(&mut row, 16, head.next_revision);
        put_u64(&mut row, 24, head.last_sequence);
        if self.writer.write_row(&row)? {
            self.sample.push(key.high());
        }
        Ok(())
    }

    /// Makes the run durable under its name.
    pub fn finish(mut self) -> Result<(), IndexError> {
        let heads = self.writer.end_section();
        self.writer.flush()?;
        // The number of distinct streams is known only now, so the filter is made by a second pass
        // over the rows.
        let reader = self.writer.reader();
        let mut bloom = Bloom::new(heads.rows);
        let (mut rows, mut row) = (reader.rows(&heads, ROW_BYTES), [0; ROW_BYTES]);
        while rows.next(&mut row)? {
            bloom.insert(StreamKey::read(&row));
        }
        for word in bloom.words() {
            self.writer.write_row(&word.to_le_bytes())?;
        }
        let filter = self.writer.end_section();
        for high in &self.sample {
            self.writer.write_row(&high.to_le_bytes())?;
        }
        let sample = self.writer.end_section();
        for (i, section) in [heads, filter, sample].iter().enumerate() {
            let at = 88 + i * SECTION_ENTRY_BYTES;
            self.header[at..at + SECTION_ENTRY_BYTES].copy_from_slice(&section.encode());
        }
        self.writer.finish(&self.header)
    }
}

/// An open run.
pub struct HeadRun {
    reader: PagedReader,
    first: u32,
    last: u32,
    /// Chain hash of the last segment.
    chain: [u8; 32],
    table: Table,
    bloom: Bloom,
}

impl std::fmt::Debug for HeadRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeadRun")
            .field("segments", &self.segments())
            .finish_non_exhaustive()
    }
}

impl HeadRun {
    /// Opens a run and loads its filter and sample.
    pub fn open(
        storage: &Arc<dyn Storage>,
        directory: &str,
        identity: &HeadsIdentity,
        (first, last): (u32, u32),
        chain: &[u8; 32],
    ) -> Result<HeadRun, IndexError> {
        let path = format!("{directory}/{}", run_file_name(first, last));
        let seed = |header: &[u8]| xxh64(&header[IDENTITY], 0);
        let (reader, header, file_bytes) = PagedReader::open(storage, &path, seed)?;
        if &header[8..12] != MAGIC {
            return Err(reader.corrupt(8, "this is not a run of stream heads"));
        }
        let version = get_u16(&header, 12);
        if version > HEADS_VERSION {
            return Err(IndexError::Newer {
                path,
                version,
                known: HEADS_VERSION,
            });
        }
        let differs = [
            ("database id", header[16..32] != identity.database_id),
            ("partition", get_u32(&header, 32) != identity.partition),
            (
                "segment",
                (get_u32(&header, 36), get_u32(&header, 40)) != (first, last),
            ),
            ("key seed", get_u64(&header, 48) != identity.key_check),
            ("chain hash", header[56..88] != *chain),
        ];
        if let Some((field, _)) = differs.into_iter().find(|(_, differs)| *differs) {
            return Err(IndexError::Foreign { path, field });
        }
        let [heads, filter, sample] = run_sections_of(&header);
        if [heads, filter, sample]
            .iter()
            .any(|section| !section.fits(file_bytes))
        {
            return Err(reader.corrupt(88, "a section lies outside of the file"));
        }
        let words = heads
            .rows
            .checked_mul(BITS_PER_KEY)
            .map(|bits| bits.div_ceil(64).max(1));
        if words.and_then(|words| words.checked_mul(8)) != Some(filter.bytes) {
            return Err(reader.corrupt(88, "the filter has another size than its streams need"));
        }
        let samples = sample_from_bytes(&reader.read_section(&sample)?);
        let table = Table::new(heads, ROW_BYTES, 1, samples);
        let table = table.map_err(|reason| reader.corrupt(88, reason))?;
        let bloom = Bloom::from_bytes(&reader.read_section(&filter)?);
        Ok(HeadRun {
            reader,
            first,
            last,
            chain: *chain,
            table,
            bloom,
        })
    }

    /// Segments that it covers.
    pub fn segments(&self) -> RangeInclusive<u32> {
        self.first..=self.last
    }

    /// Chain hash of its last segment. With the segments it says which run this is: the same ones give the same bytes.
    pub fn chain(&self) -> [u8; 32] {
        self.chain
    }

    /// Its file, relative to the data directory.
    pub fn path(&self) -> &str {
        self.reader.path()
    }

    /// Its open file. A run never changes; a merge may take away its name.
    pub fn file(&self) -> &Arc<dyn File> {
        self.reader.file()
    }

    /// Number of distinct streams.
    pub fn stream_count(&self) -> u64 {
        self.table.section.rows
    }

    /// Bytes of memory held: filter and sample.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(self.bloom.words()) + self.table.memory_bytes()
    }

    /// The end of a stream as of the run's last segment, if it has an event in the run's segments.
    pub fn get(&self, key: StreamKey) -> Result<Option<StreamHead>, IndexError> {
        if !self.bloom.may_contain(key) {
            return Ok(None);
        }
        let mut row = [0; ROW_BYTES];
        let found = self.table.find(&self.reader, key, &mut row)?;
        Ok(found.then(|| head_of(&row)))
    }

    /// Reads every page and compares every relation within the file.
    pub fn check(&self) -> Result<(), IndexError> {
        let mut heads = self.heads();
        while let Some((key, _)) = heads.next_head()? {
            if !self.bloom.may_contain(key) {
                return Err(self.reader.corrupt(88, "the filter lacks a stream"));
            }
        }
        Ok(())
    }

    /// Walks the heads in the order of their keys.
    pub fn heads(&self) -> Heads<'_> {
        Heads {
            run: self,
            rows: self.reader.rows(&self.table.section, ROW_BYTES),
            last: None,
        }
    }

    fn tier(&self) -> u32 {
        (self.last - self.first + 1).ilog(4)
    }
}

/// Heads of a run in the order of their keys.
pub struct Heads<'a> {
    run: &'a HeadRun,
    rows: Rows<'a>,
    last: Option<StreamKey>,
}

impl Heads<'_> {
    /// The next head, `None` after the last.
    pub fn next_head(&mut self) -> Result<Option<(StreamKey, StreamHead)>, IndexError> {
        let mut row = [0; ROW_BYTES];
        if !self.rows.next(&mut row)? {
            return Ok(None);
        }
        let key = StreamKey::read(&row);
        if self.last.is_some_and(|last| key <= last) {
            let offset = self.run.table.section.offset;
            return Err(self.run.reader.corrupt(offset, "heads are not sorted"));
        }
        self.last = Some(key);
        Ok(Some((key, head_of(&row))))
    }
}

/// A damaged or foreign file that [`HeadRuns::open`] set aside.
#[derive(Debug)]
pub struct RejectedRun {
    /// Its segments.
    pub segments: (u32, u32),
    /// What is wrong with it.
    pub error: IndexError,
}

/// What [`HeadRuns::survey`] found.
#[derive(Debug)]
pub struct HeadsSurvey {
    /// The runs that can be used.
    pub runs: HeadRuns,
    /// Damaged and foreign ones.
    pub rejected: Vec<RejectedRun>,
    /// Segments of runs that a wider one replaces.
    pub obsolete: Vec<(u32, u32)>,
    /// [`HeadsError::Lost`], if heads of trimmed segments are gone.
    pub lost: Option<HeadsError>,
}

/// Which segments there are, for [`HeadRuns::open`].
pub struct SealedSegments<'a> {
    /// Oldest segment that still has its file.
    pub first: u32,
    /// Newest sealed segment; 0 if there is none.
    pub last: u32,
    /// Chain hash of a sealed segment; for the segment before `first` that which `first` names in its footer.
    /// `None` for older ones.
    pub chain_of: &'a dyn Fn(u32) -> Option<[u8; 32]>,
}

/// The runs of a partition, oldest first. Cloning is cheap and shares the open runs: the
/// maintenance thread changes its
/// own and publishes a clone.
#[derive(Clone)]
pub struct HeadRuns {
    storage: Arc<dyn Storage>,
    directory: String,
    identity: HeadsIdentity,
    runs: Vec<Arc<HeadRun>>,
    last_segment: u32,
}

impl std::fmt::Debug for HeadRuns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeadRuns")
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

impl HeadRuns {
    /// Opens the runs of a partition, removes left-overs, and says what was damaged.
    ///
    /// [`HeadRuns::missing`] are then the segments whose runs must be added before a lookup.
    ///
    /// # Errors
    /// [`HeadsError::Lost`] if heads of trimmed segments are gone; I/O errors; a run of a newer version.
    pub fn open(
        storage: &Arc<dyn Storage>,
        directory: &str,
        identity: HeadsIdentity,
        sealed: &SealedSegments<'_>,
    ) -> Result<(HeadRuns, Vec<RejectedRun>), HeadsError> {
        let listed = storage
            .list(directory)
            .map_err(IndexError::io(directory, "listing"))?;
        let HeadsSurvey {
            runs: set,
            rejected,
            obsolete,
            lost,
        } = HeadRuns::survey(storage, directory, identity, sealed)?;
        if let Some(lost) = lost {
            return Err(lost);
        }
        for entry in listed {
            if entry.name.starts_with("heads-") && entry.name.ends_with(".run.new") {
                set.remove(&entry.name)?;
            }
        }
        for (first, last) in obsolete
            .into_iter()
            .chain(rejected.iter().map(|r| r.segments))
        {
            set.remove(&run_file_name(first, last))?;
        }
        Ok((set, rejected))
    }

    /// Opens the runs of a partition and says what is wrong with them; changes nothing.
    ///
    /// # Errors
    /// I/O errors; a run of a newer version.
    pub fn survey(
        storage: &Arc<dyn Storage>,
        directory: &str,
        identity: HeadsIdentity,
        sealed: &SealedSegments<'_>,
    ) -> Result<HeadsSurvey, HeadsError> {
        let listed = match storage.list(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(IndexError::io(directory, "listing"))?,
        };
        let mut set = HeadRuns {
            storage: Arc::clone(storage),
            directory: directory.to_owned(),
            identity,
            runs: Vec::new(),
            last_segment: sealed.last,
        };
        let mut names: Vec<(u32, u32)> = listed
            .iter()
            .filter_map(|entry| parse_run_file_name(&entry.name))
            .collect();
        // By first segment, the widest first: a run contained in the one before it is an input of a
        // finished merge.
        names.sort_by_key(|(first, last)| (*first, std::cmp::Reverse(*last)));
        let (mut rejected, mut obsolete) = (Vec::new(), Vec::new());
        let mut next = 1;
        for (first, last) in names {
            if first < next && last < next {
                obsolete.push((first, last));
                continue;
            }
            match set.open_run(first, last, next, sealed) {
                Ok(run) => {
                    set.runs.push(Arc::new(run));
                    next = last + 1;
                }
                Err(error) if error.is_rebuildable() => {
                    let segments = (first, last);
                    rejected.push(RejectedRun { segments, error });
                }
                Err(error) => return Err(error.into()),
            }
        }
        let gap = set.missing().into_iter().next();
        let lost = gap.filter(|gap| *gap.start() < sealed.first).map(|gap| {
            let (first, last) = gap.into_inner();
            HeadsError::Lost {
                directory: set.directory.clone(),
                first,
                last: last.min(sealed.first - 1),
            }
        });
        Ok(HeadsSurvey {
            runs: set,
            rejected,
            obsolete,
            lost,
        })
    }

    fn open_run(
        &self,
        first: u32,
        last: u32,
        next: u32,
        sealed: &SealedSegments<'_>,
    ) -> Result<HeadRun, IndexError> {
        let path = || format!("{}/{}", self.directory, run_file_name(first, last));
        if last > sealed.last {
            return Err(IndexError::Foreign {
                path: path(),
                field: "last segment",
            });
        }
        if first < next {
            return Err(IndexError::Foreign {
                path: path(),
                field: "first segment",
            });
        }
        match (sealed.chain_of)(last) {
            Some(chain) => HeadRun::open(
                &self.storage,
                &self.directory,
                &self.identity,
                (first, last),
                &chain,
            ),
            // Every segment of the run is trimmed and its chain hash with it: the run's own word must do.
            None => {
                let (_, header, _) = PagedReader::open(&self.storage, &path(), |_| 0)?;
                let chain: [u8; 32] = header[56..88].try_into().expect("32 bytes");
                HeadRun::open(
                    &self.storage,
                    &self.directory,
                    &self.identity,
                    (first, last),
                    &chain,
                )
            }
        }
    }

    /// Ranges of sealed segments that no run covers, ascending.
    pub fn missing(&self) -> Vec<RangeInclusive<u32>> {
        let mut gaps = Vec::new();
        let mut next = 1;
        for run in &self.runs {
            if run.first > next {
                gaps.push(next..=run.first - 1);
            }
            next = run.last + 1;
        }
        if next <= self.last_segment {
            gaps.push(next..=self.last_segment);
        }
        gaps
    }

    /// Chain hash of a segment, if a run ends with it. For the last trimmed segment nothing else knows it while its
    /// successor has no footer.
    pub fn chain_of(&self, segment: u32) -> Option<[u8; 32]> {
        let run = self.runs.iter().find(|run| run.last == segment);
        run.map(|run| run.chain)
    }

    /// The runs that know streams of segments before `first`, oldest first. Once those are trimmed no segment gives
    /// these runs again: they are what a backup must hold.
    pub fn irreplaceable(&self, first: u32) -> &[Arc<HeadRun>] {
        &self.runs[..self.runs.partition_point(|run| run.first < first)]
    }

    /// The runs, oldest first.
    pub fn runs(&self) -> &[Arc<HeadRun>] {
        &self.runs
    }

    /// Newest segment covered or to be covered; 0 if there is none.
    pub fn last_segment(&self) -> u32 {
        self.last_segment
    }

    /// Bytes of memory held by all runs.
    pub fn memory_bytes(&self) -> usize {
        self.runs.iter().map(|run| run.memory_bytes()).sum()
    }

    /// The end of a stream as of the newest sealed segment; `None` if it has no event in sealed segments.
    pub fn get(&self, key: StreamKey) -> Result<Option<StreamHead>, HeadsError> {
        if let Some(gap) = self.missing().first() {
            let directory = self.directory.clone();
            return Err(HeadsError::Missing {
                directory,
                first: *gap.start(),
                last: *gap.end(),
            });
        }
        for run in self.runs.iter().rev() {
            if let Some(head) = run.get(key)? {
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// Writes and adds the run of one segment from its index: the next segment, or one of a gap.
    pub fn add_segment(&mut self, index: &SegmentIndex) -> Result<(), HeadsError> {
        let segment = index.binding().segment;
        let covered = self
            .runs
            .iter()
            .any(|run| run.segments().contains(&segment));
        assert!(
            !covered && segment <= self.last_segment + 1,
            "the segment is the next or one of a gap"
        );
        let chain = index.binding().chain;
        let mut writer = HeadRunWriter::create(
            &self.storage,
            &self.directory,
            &self.identity,
            segment,
            segment,
            &chain,
        )?;
        let mut streams = index.streams();
        while let Some((key, extent)) = streams.next_stream()? {
            writer.push(key, extent.head())?;
        }
        writer.finish()?;
        self.insert(segment, segment, &chain)
    }

    /// Merges four neighbouring runs of a tier into one, if there are; returns whether there were.
    /// Reads 64 KiB of each at a time.
    pub fn merge_once(&mut self) -> Result<bool, HeadsError> {
        let Some(start) = merge_start(&self.runs) else {
            return Ok(false);
        };
        let inputs: Vec<Arc<HeadRun>> = self.runs[start..start + MERGE_RUNS].to_vec();
        let (first, last) = (inputs[0].first, inputs[MERGE_RUNS - 1].last);
        let (_, header, _) =
            PagedReader::open(&self.storage, inputs[MERGE_RUNS - 1].path(), |_| 0)?;
        let chain: [u8; 32] = header[56..88].try_into().expect("32 bytes");
        let mut writer = HeadRunWriter::create(
            &self.storage,
            &self.directory,
            &self.identity,
            first,
            last,
            &chain,
        )?;
        merge_into(&inputs, &mut writer)?;
        writer.finish()?;
        self.runs.drain(start..start + MERGE_RUNS);
        self.insert(first, last, &chain)?;
        for run in inputs {
            self.remove(&run_file_name(run.first, run.last))?;
        }
        Ok(true)
    }

    fn insert(&mut self, first: u32, last: u32, chain: &[u8; 32]) -> Result<(), HeadsError> {
        let run = HeadRun::open(
            &self.storage,
            &self.directory,
            &self.identity,
            (first, last),
            chain,
        )?;
        let at = self.runs.partition_point(|run| run.last < first);
        self.runs.insert(at, Arc::new(run));
        self.last_segment = self.last_segment.max(last);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), IndexError> {
        let path = format!("{}/{name}", self.directory);
        self.storage
            .durable_remove(&path)
            .map_err(IndexError::io(&path, "removing"))
    }
}

/// Where four neighbours of the lowest tier begin, the oldest of them first.
fn merge_start(runs: &[Arc<HeadRun>]) -> Option<usize> {
    let starts = runs.windows(MERGE_RUNS).enumerate().filter(|(_, window)| {
        let contiguous = window
            .windows(2)
            .all(|pair| pair[0].last + 1 == pair[1].first);
        contiguous && window.iter().all(|run| run.tier() == window[0].tier())
    });
    starts
        .min_by_key(|(start, window)| (window[0].tier(), *start))
        .map(|(start, _)| start)
}

/// Chain hash of the last segment that a run covers, from the first page of its file; `None` if that page is none of
/// a run, or damaged, or of a newer version.
pub fn run_chain(page: &[u8]) -> Option<[u8; 32]> {
    let is_run = page.len() == PAGE_BYTES
        && get_u64(page, 0) == xxh64(&page[8..], 0)
        && &page[8..12] == MAGIC
        && get_u16(page, 12) <= HEADS_VERSION;
    is_run.then(|| page[56..88].try_into().expect("32 bytes"))
}

/// Merges runs, oldest first: of heads of one stream the newest stays.
fn merge_into(inputs: &[Arc<HeadRun>], writer: &mut HeadRunWriter) -> Result<(), IndexError> {
    let mut sources: Vec<Heads<'_>> = inputs.iter().map(|run| run.heads()).collect();
    let mut fronts = Vec::with_capacity(sources.len());
    for source in &mut sources {
        fronts.push(source.next_head()?);
    }
    while let Some(key) = fronts.iter().flatten().map(|(key, _)| *key).min() {
        let mut newest: Option<StreamHead> = None;
        for (source, front) in sources.iter_mut().zip(&mut fronts) {
            let Some((_, head)) = front.filter(|(front, _)| *front == key) else {
                continue;
            };
            let older = newest.replace(head);
            if older.is_some_and(|older| {
                older.last_sequence >= head.last_sequence
                    || older.next_revision >= head.next_revision
            }) {
                let offset = source.run.table.section.offset;
                return Err(source
                    .run
                    .reader
                    .corrupt(offset, "a stream ends before it ended"));
            }
            *front = source.next_head()?;
        }
        writer.push(key, newest.expect("one front has the least key"))?;
    }
    Ok(())
}

fn head_of(row: &[u8]) -> StreamHead {
    StreamHead {
        next_revision: get_u64(row, 16),
        last_sequence: get_u64(row, 24),
    }
}

/// Sections that a run's header lists.
pub(crate) fn run_sections_of(header: &[u8]) -> [Section; 3] {
    std::array::from_fn(|i| Section::decode(&header[88 + i * SECTION_ENTRY_BYTES..]))
}

#[cfg(test)]
#[path = "heads_tests.rs"]
mod tests;
