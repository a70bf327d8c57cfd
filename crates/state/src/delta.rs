//! The delta log: what each batch changed, so that a state can be had again without running modules.
//!
//! Model: one log for each (partition, module, generation), a row of files named by their first
//! sequence. A writer only ever appends to files that it made itself: after a restart the next record
//! begins a new file. A file begins where the one before ended, or supersedes what that one has from
//! there on (the state was rebuilt from an earlier sequence), or leaves a gap, which readers report.
//!
//! Invariants: records of a file follow each other without a gap and are chained by their checksums;
//! what does not follow is the file's end. It is derived data: a torn tail is cut silently, a file
//! that cannot be read ends where it cannot, and an error of the disk ends the writer, never the
//! partition. Durability comes with [`DeltaWriter::sync`] only.
//!
//! It does not compare states: [`DeltaRecord::apply_to`] does.

use std::io;
use std::sync::Arc;

use truthdb_io::{BLOCK_BYTES, File, OpenMode, Storage};

use crate::blocks;
use crate::canary::{Canary, planted};
use crate::delta_record::{
    DELTA_FILE_HEADER_BYTES, DELTA_RECORD_HEADER_BYTES, DeltaAt, DeltaFileHeader, DeltaPlace,
    DeltaRecord, DeltaRecordHeader,
};
use crate::layout::{StateFormatError, StatePlace, is_zero};
use crate::limits::{to_u64, to_usize};

/// Bytes after which a file is followed by the next one, by default.
pub const DELTA_FILE_BYTES_DEFAULT: u64 = 8 << 20;
/// Bytes of records that the writer gathers before it writes.
const GATHER_BYTES: usize = 256 * 1024;
/// Bytes that the reader reads at once.
const READ_BYTES: usize = 256 * 1024;

/// What went wrong with the delta log. State can always be rebuilt from the log of events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The operating system's error. A writer that had one is stopped.
    #[error(
        "{path}: {action} failed; the delta log is derived, the log of events is not concerned"
    )]
    Io {
        /// File or directory, relative to the data directory.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An earlier error stopped the writer.
    #[error("the delta log was stopped by an earlier error: open it again")]
    Stopped,
    /// Records are missing.
    #[error("the delta log has no record for sequence {missing}: rebuild the state from the log")]
    Gap {
        /// First sequence without a record.
        missing: u64,
    },
}

fn io_error(path: &str, action: &'static str) -> impl FnOnce(io::Error) -> DeltaError {
    move |source| DeltaError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// One file of the delta log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaFile {
    /// Path relative to the data directory.
    pub path: String,
    /// First sequence of its first record.
    pub first_sequence: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// The files of one delta log: listing, reading, removing. Clones are the same log.
#[derive(Clone)]
pub struct DeltaLog {
    storage: Arc<dyn Storage>,
    place: DeltaPlace,
    directory: String,
}

impl std::fmt::Debug for DeltaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeltaLog")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl DeltaLog {
    /// The log of a place. Touches no file.
    pub fn new(storage: Arc<dyn Storage>, place: DeltaPlace) -> DeltaLog {
        let directory = format!(
            "{}/deltas/{}-{:08}",
            place.place.directory(),
            place.module,
            place.generation
        );
        DeltaLog {
            storage,
            place,
            directory,
        }
    }

    /// All logs of a partition, whoever made them.
    ///
    /// # Errors
    /// [`DeltaError::Io`] if the directory cannot be listed.
    pub fn all_of(
        storage: &Arc<dyn Storage>,
        place: StatePlace,
    ) -> Result<Vec<DeltaLog>, DeltaError> {
        let directory = format!("{}/deltas", place.directory());
        let entries = match storage.list(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(io_error(&directory, "listing"))?,
        };
        let log_of = |name: &str| {
            let (module, generation) = name.rsplit_once('-')?;
            let place = DeltaPlace {
                place,
                module: module.to_owned(),
                generation: generation.parse().ok()?,
            };
            let log = DeltaLog::new(Arc::clone(storage), place);
            log.directory.ends_with(&format!("/{name}")).then_some(log)
        };
        Ok(entries.iter().filter_map(|e| log_of(&e.name)).collect())
    }

    /// Which log it is.
    pub fn place(&self) -> &DeltaPlace {
        &self.place
    }

    /// Its files in the order of their first sequences; none if there is no directory.
    ///
    /// # Errors
    /// [`DeltaError::Io`] if the directory cannot be listed.
    pub fn files(&self) -> Result<Vec<DeltaFile>, DeltaError> {
        let entries = match self.storage.list(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(io_error(&self.directory, "listing"))?,
        };
        let mut files: Vec<DeltaFile> = entries
            .into_iter()
            .filter_map(|entry| {
                Some(DeltaFile {
                    first_sequence: parse_file_name(&entry.name)?,
                    path: format!("{}/{}", self.directory, entry.name),
                    bytes: entry.bytes,
                })
            })
            .collect();
        files.sort_by_key(|file| file.first_sequence);
        Ok(files)
    }

    /// Reads the records that lead from the state after sequence `after` to later ones.
    ///
    /// # Errors
    /// [`DeltaError::Io`] if the directory cannot be listed.
    pub fn read_after(&self, after: u64) -> Result<DeltaReader, DeltaError> {
        let files = self.files()?;
        let start = files.partition_point(|file| file.first_sequence <= after.saturating_add(1));
        Ok(DeltaReader {
            log: self.clone(),
            next_file: start.saturating_sub(1),
            files,
            open: None,
            position: after,
            cut: None,
        })
    }

    /// Removes files without a record after `sequence`, oldest first. Gives their number.
    ///
    /// # Errors
    /// [`DeltaError::Io`]; some of them may be gone.
    pub fn remove_through(&self, sequence: u64) -> Result<usize, DeltaError> {
        let files = self.files()?;
        let mut removed = 0;
        for pair in files.windows(2) {
            if pair[1].first_sequence > sequence.saturating_add(1) {
                break;
            }
            self.remove(&pair[0])?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes everything, newest first, as for a module that is no more.
    ///
    /// # Errors
    /// [`DeltaError::Io`]; some files may be gone.
    pub fn remove_all(&self) -> Result<usize, DeltaError> {
        self.remove_newest(usize::MAX)
    }

    /// Removes at most so many files, newest first, and gives their number.
    ///
    /// # Errors
    /// [`DeltaError::Io`]; some files may be gone.
    pub fn remove_newest(&self, files_max: usize) -> Result<usize, DeltaError> {
        let files = self.files()?;
        let newest = files.iter().rev().take(files_max);
        newest.clone().try_for_each(|file| self.remove(file))?;
        Ok(newest.len())
    }

    fn remove(&self, file: &DeltaFile) -> Result<(), DeltaError> {
        blocks::remove(&*self.storage, &file.path).map_err(io_error(&file.path, "removing"))
    }

    fn file_path(&self, first_sequence: u64) -> String {
        format!("{}/deltas-{first_sequence:08}.log", self.directory)
    }
}

fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("deltas-")?.strip_suffix(".log")?;
    let is_number = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// Appends records. One writer for each log.
#[derive(Debug)]
pub struct DeltaWriter {
    log: DeltaLog,
    file_bytes: u64,
    /// First sequence of the next record.
    next_sequence: u64,
    file: Option<WriterFile>,
    stopped: bool,
}

struct WriterFile {
    path: String,
    file: Arc<dyn File>,
    at: DeltaAt,
    /// Bytes of the file from `gathered_offset` (a whole block) on that are not written, or only as
    /// the beginning of a block that has grown since.
    gathered: Vec<u8>,
    gathered_offset: u64,
    /// Bytes of `gathered` that are written.
    written: usize,
    is_name_durable: bool,
}

impl std::fmt::Debug for WriterFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriterFile")
            .field("path", &self.path)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl WriterFile {
    /// Gives everything gathered to the operating system.
    fn flush(&mut self) -> Result<(), DeltaError> {
        if self.written == self.gathered.len() {
            return Ok(());
        }
        blocks::write(&*self.file, &self.gathered, self.gathered_offset)
            .map_err(io_error(&self.path, "writing"))?;
        // The last block is kept: it is written again when it has grown.
        let whole = self.gathered.len() - self.gathered.len() % BLOCK_BYTES;
        self.gathered.drain(..whole);
        self.gathered_offset += to_u64(whole);
        self.written = self.gathered.len();
        Ok(())
    }

    fn sync(&mut self, storage: &dyn Storage, directory: &str) -> Result<(), DeltaError> {
        self.flush()?;
        self.file.sync().map_err(io_error(&self.path, "syncing"))?;
        if !self.is_name_durable {
            storage
                .sync_dir(directory)
                .map_err(io_error(directory, "syncing"))?;
            self.is_name_durable = true;
        }
        Ok(())
    }
}

impl DeltaWriter {
    /// Goes on after the state of sequence `applied`. What the log has beyond it is superseded: files
    /// that begin later are removed.
    ///
    /// # Errors
    /// [`DeltaError::Io`].
    pub fn open(log: DeltaLog, applied: u64, file_bytes: u64) -> Result<DeltaWriter, DeltaError> {
        log.storage
            .durable_create_dir(&log.directory)
            .map_err(io_error(&log.directory, "creating"))?;
        let files = log.files()?;
        for file in files.iter().rev() {
            if file.first_sequence <= applied {
                break;
            }
            log.remove(file)?;
        }
        Ok(DeltaWriter {
            log,
            file_bytes,
            next_sequence: applied + 1,
            file: None,
            stopped: false,
        })
    }

    /// First sequence that the next record must have.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Appends a record. It is readable after [`DeltaWriter::flush`], durable after
    /// [`DeltaWriter::sync`].
    ///
    /// # Errors
    /// [`DeltaError::Io`] if gathered records had to be written and could not; [`DeltaError::Stopped`]
    /// ever after.
    ///
    /// # Panics
    /// If the record does not begin at [`DeltaWriter::next_sequence`]: a bug of the caller.
    pub fn append(&mut self, record: &DeltaRecord) -> Result<(), DeltaError> {
        assert!(
            record.last_sequence >= record.first_sequence,
            "a record accounts for at least one sequence"
        );
        if self.stopped {
            return Err(DeltaError::Stopped);
        }
        if planted(Canary::LostDelta) && record.last_sequence.is_multiple_of(8) {
            return Ok(());
        }
        let lost = planted(Canary::LostDelta) && record.first_sequence > self.next_sequence;
        assert!(
            lost || record.first_sequence == self.next_sequence,
            "records follow each other"
        );
        let result = if lost {
            let first_sequence = self.next_sequence;
            self.append_or_fail(&DeltaRecord {
                first_sequence,
                ..record.clone()
            })
        } else {
            self.append_or_fail(record)
        };
        self.stopped = result.is_err();
        self.next_sequence = record.last_sequence + 1;
        result
    }

    fn append_or_fail(&mut self, record: &DeltaRecord) -> Result<(), DeltaError> {
        if let Some(file) = &mut self.file
            && file.at.offset + to_u64(record.encoded_bytes()) > self.file_bytes
        {
            file.sync(&*self.log.storage, &self.log.directory)?;
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = begin_file(&self.log, record.first_sequence)?;
                self.file.insert(file)
            }
        };
        let checksum = record.encode(file.at, &mut file.gathered);
        file.at.previous = checksum;
        file.at.offset = file.gathered_offset + to_u64(file.gathered.len());
        if file.gathered.len() >= GATHER_BYTES {
            file.flush()?;
        }
        Ok(())
    }

    /// Gives everything appended to the operating system: readers see it.
    ///
    /// # Errors
    /// As [`DeltaWriter::append`].
    pub fn flush(&mut self) -> Result<(), DeltaError> {
        if self.stopped {
            return Err(DeltaError::Stopped);
        }
        let result = self.file.as_mut().map_or(Ok(()), WriterFile::flush);
        self.stopped = result.is_err();
        result
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// As [`DeltaWriter::append`].
    pub fn sync(&mut self) -> Result<(), DeltaError> {
        if self.stopped {
            return Err(DeltaError::Stopped);
        }
        let (storage, directory) = (&*self.log.storage, &self.log.directory);
        let result = self
            .file
            .as_mut()
            .map_or(Ok(()), |file| file.sync(storage, directory));
        self.stopped = result.is_err();
        result
    }
}

fn begin_file(log: &DeltaLog, first_sequence: u64) -> Result<WriterFile, DeltaError> {
    let path = log.file_path(first_sequence);
    let header = DeltaFileHeader {
        log: log.place.clone(),
        first_sequence,
    };
    let file = blocks::create(&*log.storage, &path).map_err(io_error(&path, "creating"))?;
    let gathered = header.encode();
    Ok(WriterFile {
        at: DeltaAt {
            seed: header.seed(),
            offset: to_u64(gathered.len()),
            previous: 0,
        },
        path,
        file,
        gathered,
        gathered_offset: 0,
        written: 0,
        is_name_durable: false,
    })
}

/// Where a file of the delta log ended before its last byte.
#[derive(Debug, thiserror::Error)]
#[error("{path} is not read beyond offset {offset}")]
pub struct DeltaCut {
    /// Path relative to the data directory.
    pub path: String,
    /// Where reading ended, in bytes.
    pub offset: u64,
    /// Why.
    #[source]
    pub reason: CutReason,
}

/// Why a file of the delta log is not read further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CutReason {
    /// What follows is no record of this place.
    #[error(transparent)]
    Format(#[from] StateFormatError),
    /// The disk cannot read it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads records in the order of their sequences.
#[derive(Debug)]
pub struct DeltaReader {
    log: DeltaLog,
    files: Vec<DeltaFile>,
    next_file: usize,
    open: Option<ReaderFile>,
    /// Last sequence accounted for.
    position: u64,
    cut: Option<DeltaCut>,
}

struct ReaderFile {
    path: String,
    file: Arc<dyn File>,
    /// First sequence of the next file, which supersedes this one's records from there on.
    superseded_from: Option<u64>,
    at: DeltaAt,
    /// Last sequence of the record before.
    last_sequence: u64,
    /// Bytes of the file from `buffer_offset` on.
    buffer: Vec<u8>,
    buffer_offset: u64,
}

impl std::fmt::Debug for ReaderFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReaderFile")
            .field("path", &self.path)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl DeltaReader {
    /// Last sequence that the records so far account for.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The last file, if any, that ended before its last byte. No reason to worry for a file that was
    /// being written when the process ended.
    pub fn cut(&self) -> Option<&DeltaCut> {
        self.cut.as_ref()
    }

    /// The next record; none at the end of the log.
    ///
    /// # Errors
    /// [`DeltaError::Gap`] if later records are there, but not the next one. The reader is at its end
    /// then.
    pub fn next_record(&mut self) -> Result<Option<DeltaRecord>, DeltaError> {
        loop {
            let Some(file) = &mut self.open else {
                if self.next_file == self.files.len() {
                    return Ok(None);
                }
                self.open_next();
                continue;
            };
            match file.read(self.position) {
                Ok(Some(record)) if record.first_sequence > self.position + 1 => {
                    (self.open, self.next_file) = (None, self.files.len());
                    let missing = self.position + 1;
                    return Err(DeltaError::Gap { missing });
                }
                Ok(Some(record)) => {
                    self.position = record.last_sequence;
                    return Ok(Some(record));
                }
                Ok(None) => self.open = None,
                Err(reason) => {
                    self.cut = Some(DeltaCut {
                        path: file.path.clone(),
                        offset: file.at.offset,
                        reason,
                    });
                    self.open = None;
                }
            }
        }
    }

    fn open_next(&mut self) {
        let entry = &self.files[self.next_file];
        self.next_file += 1;
        let superseded_from = self
            .files
            .get(self.next_file)
            .map(|next| next.first_sequence);
        match ReaderFile::open(&self.log, entry, superseded_from) {
            Ok(file) => self.open = Some(file),
            Err(reason) => {
                self.cut = Some(DeltaCut {
                    path: entry.path.clone(),
                    offset: 0,
                    reason,
                });
            }
        }
    }
}

impl ReaderFile {
    fn open(
        log: &DeltaLog,
        entry: &DeltaFile,
        superseded_from: Option<u64>,
    ) -> Result<ReaderFile, CutReason> {
        let file = log.storage.open(&entry.path, OpenMode::Read)?;
        let buffer = blocks::read(&*file, 0, READ_BYTES)?;
        let header = DeltaFileHeader::decode(&buffer)?;
        let expected = DeltaFileHeader {
            log: log.place.clone(),
            first_sequence: entry.first_sequence,
        };
        if header != expected {
            let (structure, field) = ("header of the delta log's file", "identity");
            return Err(StateFormatError::Misplaced { structure, field }.into());
        }
        Ok(ReaderFile {
            path: entry.path.clone(),
            file,
            superseded_from,
            at: DeltaAt {
                seed: header.seed(),
                offset: to_u64(DELTA_FILE_HEADER_BYTES),
                previous: 0,
            },
            last_sequence: entry.first_sequence - 1,
            buffer,
            buffer_offset: 0,
        })
    }

    /// Up to `bytes` bytes at the present offset; fewer only at the end of the file.
    fn peek(&mut self, bytes: usize) -> io::Result<&[u8]> {
        let start = to_usize(self.at.offset - self.buffer_offset);
        if self.buffer.len().saturating_sub(start) < bytes {
            let wanted = bytes.max(READ_BYTES);
            self.buffer = blocks::read(&*self.file, self.at.offset, wanted)?;
            self.buffer_offset = self.at.offset;
            let end = bytes.min(self.buffer.len());
            return Ok(&self.buffer[..end]);
        }
        Ok(&self.buffer[start..start + bytes])
    }

    /// The next record after `position`; none at the end of what counts.
    fn read(&mut self, position: u64) -> Result<Option<DeltaRecord>, CutReason> {
        loop {
            let at = self.at;
            let bytes = self.peek(DELTA_RECORD_HEADER_BYTES)?;
            if is_zero(bytes) {
                return Ok(None);
            }
            let header = DeltaRecordHeader::decode(bytes, at)?;
            if header.first_sequence() != self.last_sequence + 1 {
                let (structure, field) = ("record of the delta log", "first sequence");
                return Err(StateFormatError::Misplaced { structure, field }.into());
            }
            let is_superseded = |from| header.first_sequence() >= from;
            if self.superseded_from.is_some_and(is_superseded) {
                return Ok(None);
            }
            let (next, last_sequence) = (header.next(), header.last_sequence());
            if last_sequence <= position {
                (self.at, self.last_sequence) = (next, last_sequence);
                continue;
            }
            // A length is believed only as far as the file reaches.
            let length = next.offset - at.offset;
            if at.offset + length > self.file.len()? {
                let structure = "record of the delta log";
                return Err(StateFormatError::Length {
                    structure,
                    expected: length,
                    found: self.file.len()?.saturating_sub(at.offset),
                }
                .into());
            }
            let record = self.peek(to_usize(length))?;
            let body = record.get(DELTA_RECORD_HEADER_BYTES..).unwrap_or_default();
            let record = header.with_changes(body)?;
            (self.at, self.last_sequence) = (next, last_sequence);
            return Ok(Some(record));
        }
    }
}
