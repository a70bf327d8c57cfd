//! Derived files in checksummed pages: the part that segment indexes and runs of stream heads share.
//!
//! Page 0 is the header. Every other page is a checksum and 4088 bytes of payload. The checksum is
//! seeded with the
//! file's identity and the page's number, so that a page of another file or another place is never
//! taken for this one.
//! The file is written as `<name>.new`, synced, and renamed, so that a file under its name is
//! complete or damaged, never half
//! written.

use std::io;
use std::sync::Arc;

use truthdb_io::{AlignedBuf, File, OpenMode, Storage};
use xxhash_rust::xxh64::xxh64;

/// Bytes of a page, checksum included.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes of a page behind its checksum.
pub(crate) const PAYLOAD_BYTES: usize = PAGE_BYTES - 8;
/// Pages that one read or write moves at most.
const RUN_PAGES: usize = 16;

const _: () = assert!(PAGE_BYTES.is_multiple_of(truthdb_io::BLOCK_BYTES));

/// Why an index file cannot be used. All of them are cured by building the file again from its
/// segments, except [`IndexError::Io`] and [`IndexError::Newer`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The operating system's error.
    #[error("{path}: {action} failed")]
    Io {
        /// File.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A checksum or an inner relation does not hold.
    #[error("{path}: damaged at offset {offset}: {reason}")]
    Corrupt {
        /// File.
        path: String,
        /// Where, in bytes.
        offset: u64,
        /// What does not hold.
        reason: &'static str,
    },
    /// The file is whole, but belongs to another database, partition, segment, history or key seed.
    #[error("{path}: belongs elsewhere: its {field} is not the expected one")]
    Foreign {
        /// File.
        path: String,
        /// Which identity differs.
        field: &'static str,
    },
    /// Written by a newer version of TruthDB.
    #[error("{path}: format version {version} is newer than this program knows ({known})")]
    Newer {
        /// File.
        path: String,
        /// Version found.
        version: u16,
        /// Newest version known.
        known: u16,
    },
}

impl IndexError {
    /// Whether building the file again is the cure.
    pub fn is_rebuildable(&self) -> bool {
        match self {
            IndexError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            IndexError::Corrupt { .. } | IndexError::Foreign { .. } => true,
            IndexError::Newer { .. } => false,
        }
    }

    pub(crate) fn io(path: &str, action: &'static str) -> impl FnOnce(io::Error) -> IndexError {
        move |source| IndexError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }
}

/// A run of whole pages that hold one kind of thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Section {
    /// Where its first page begins.
    pub(crate) offset: u64,
    /// Bytes of payload.
    pub(crate) bytes: u64,
    /// Rows, where it has rows.
    pub(crate) rows: u64,
}

/// Bytes of a section's entry in a header.
pub(crate) const SECTION_ENTRY_BYTES: usize = 24;

impl Section {
    pub(crate) fn encode(&self) -> [u8; SECTION_ENTRY_BYTES] {
        let mut bytes = [0; SECTION_ENTRY_BYTES];
        put_u64(&mut bytes, 0, self.offset);
        put_u64(&mut bytes, 8, self.bytes);
        put_u64(&mut bytes, 16, self.rows);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Section {
        Section {
            offset: get_u64(bytes, 0),
            bytes: get_u64(bytes, 8),
            rows: get_u64(bytes, 16),
        }
    }

    /// Number of pages of a section of bytes.
    pub(crate) fn pages(&self) -> u64 {
        self.bytes.div_ceil(PAYLOAD_BYTES as u64)
    }

    /// Where the next section begins.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.pages() * PAGE_BYTES as u64
    }

    /// Whether it lies behind the header, on page boundaries, within a file of `file_bytes`.
    pub(crate) fn fits(&self, file_bytes: u64) -> bool {
        let pages = self.pages().checked_mul(PAGE_BYTES as u64);
        let end = pages.and_then(|bytes| bytes.checked_add(self.offset));
        self.offset >= PAGE_BYTES as u64
            && self.offset.is_multiple_of(PAGE_BYTES as u64)
            && end.is_some_and(|end| end <= file_bytes)
    }
}

/// Writes a paged file front to back, its header last.
pub(crate) struct PagedWriter {
    storage: Arc<dyn Storage>,
    path: String,
    file: Arc<dyn File>,
    seed: u64,
    buf: AlignedBuf,
    /// Offset in the file of the first page of `buf`.
    buf_offset: u64,
    /// Bytes of `buf` taken, checksums included.
    filled: usize,
    section: Section,
}

impl PagedWriter {
    /// Begins `<path>.new`; a left-over of that name is removed.
    pub(crate) fn create(
        storage: &Arc<dyn Storage>,
        path: &str,
        seed: u64,
    ) -> Result<PagedWriter, IndexError> {
        let temporary = format!("{path}.new");
        let file = match storage.open(&temporary, OpenMode::CreateNew) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                storage
                    .durable_remove(&temporary)
                    .map_err(IndexError::io(&temporary, "removing"))?;
                storage.open(&temporary, OpenMode::CreateNew)
            }
            other => other,
        };
        let file = file.map_err(IndexError::io(&temporary, "creating"))?;
        let buf = AlignedBuf::new_zeroed(RUN_PAGES * PAGE_BYTES);
        let storage = Arc::clone(storage);
        let (path, start) = (path.to_owned(), PAGE_BYTES as u64);
        let section = Section {
            offset: start,
            bytes: 0,
            rows: 0,
        };
        Ok(PagedWriter {
            storage,
            path,
            file,
            seed,
            buf,
            buf_offset: start,
            filled: 0,
            section,
        })
    }

    /// Adds bytes to the section.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), IndexError> {
        self.section.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.buf[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
        }
        Ok(())
    }

    /// Adds a row, which never crosses a page. Returns whether it is the first of its page.
    pub(crate) fn write_row(&mut self, row: &[u8]) -> Result<bool, IndexError> {
        let used = self.section.bytes % PAYLOAD_BYTES as u64;
        let free = PAYLOAD_BYTES as u64 - used;
        if free < row.len() as u64 {
            self.write(&vec![0; usize::try_from(free).expect("less than a page")])?;
        }
        self.section.rows += 1;
        let is_first = self.section.bytes.is_multiple_of(PAYLOAD_BYTES as u64);
        self.write(row)?;
        Ok(is_first)
    }

    /// Ends the section and begins the next on a fresh page.
    pub(crate) fn end_section(&mut self) -> Section {
        let section = self.section;
        self.filled = self.filled.next_multiple_of(PAGE_BYTES);
        self.section = Section {
            offset: section.end(),
            bytes: 0,
            rows: 0,
        };
        section
    }

    /// Gives what is buffered to the file, for a reader of finished sections.
    pub(crate) fn flush(&mut self) -> Result<(), IndexError> {
        assert!(
            self.filled.is_multiple_of(PAGE_BYTES),
            "a section is ended first"
        );
        self.write_out()
    }

    /// Reads pages of finished, flushed sections.
    pub(crate) fn reader(&self) -> PagedReader {
        PagedReader {
            path: self.path.clone(),
            file: Arc::clone(&self.file),
            seed: self.seed,
        }
    }

    /// Writes the header, makes the file durable and puts it in its place. `header` lacks only its checksum.
    pub(crate) fn finish(mut self, header: &[u8]) -> Result<(), IndexError> {
        self.flush()?;
        let temporary = format!("{}.new", self.path);
        self.buf[..PAGE_BYTES].fill(0);
        self.buf[..header.len()].copy_from_slice(header);
        let checksum = xxh64(&self.buf[8..PAGE_BYTES], 0);
        put_u64(&mut self.buf, 0, checksum);
        self.file
            .write_at(&self.buf, PAGE_BYTES, 0)
            .map_err(IndexError::io(&temporary, "writing"))?;
        self.file
            .sync()
            .map_err(IndexError::io(&temporary, "syncing"))?;
        let renamed = self.storage.durable_rename(&temporary, &self.path);
        renamed.map_err(IndexError::io(&self.path, "renaming"))
    }

    /// Bytes left in the page being filled, after room was made for a fresh one if need be.
    fn room(&mut self) -> Result<usize, IndexError> {
        if self.filled == self.buf.len() {
            self.write_out()?;
        }
        if self.filled.is_multiple_of(PAGE_BYTES) {
            self.filled += 8;
        }
        Ok(PAGE_BYTES - self.filled % PAGE_BYTES)
    }

    fn write_out(&mut self) -> Result<(), IndexError> {
        let bytes = self.filled.next_multiple_of(PAGE_BYTES);
        if bytes == 0 {
            return Ok(());
        }
        for (i, page) in self.buf[..bytes].chunks_exact_mut(PAGE_BYTES).enumerate() {
            let offset = self.buf_offset + (i * PAGE_BYTES) as u64;
            let checksum = page_checksum(page, self.seed, offset);
            put_u64(page, 0, checksum);
        }
        let result = self.file.write_at(&self.buf, bytes, self.buf_offset);
        result.map_err(IndexError::io(&self.path, "writing"))?;
        self.buf.fill(0);
        self.buf_offset += bytes as u64;
        self.filled = 0;
        Ok(())
    }
}

/// Reads and verifies pages.
pub(crate) struct PagedReader {
    path: String,
    file: Arc<dyn File>,
    seed: u64,
}

impl PagedReader {
    /// Opens a file and verifies its header's checksum; `seed_of` looks at the header and gives the
    /// seed of the pages.
    pub(crate) fn open(
        storage: &Arc<dyn Storage>,
        path: &str,
        seed_of: impl FnOnce(&[u8]) -> u64,
    ) -> Result<(PagedReader, Vec<u8>, u64), IndexError> {
        let file = storage
            .open(path, OpenMode::Read)
            .map_err(IndexError::io(path, "opening"))?;
        let file_bytes = file.len().map_err(IndexError::io(path, "measuring"))?;
        let mut buf = AlignedBuf::new_zeroed(PAGE_BYTES);
        let read = file
            .read_at(&mut buf, PAGE_BYTES, 0)
            .map_err(IndexError::io(path, "reading"))?;
        if read < PAGE_BYTES || xxh64(&buf[8..], 0) != get_u64(&buf, 0) {
            return Err(corrupt(path, 0, "the header's checksum does not fit"));
        }
        let header = buf[..PAGE_BYTES].to_vec();
        let reader = PagedReader {
            path: path.to_owned(),
            file,
            seed: seed_of(&header),
        };
        Ok((reader, header, file_bytes))
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    pub(crate) fn corrupt(&self, offset: u64, reason: &'static str) -> IndexError {
        corrupt(&self.path, offset, reason)
    }

    /// Reads `pages` pages of a section from its page number `first` into `buf` and verifies them.
    /// The payload of the i-th is then `payload(&buf, i)`.
    pub(crate) fn read_pages(
        &self,
        section: &Section,
        first: u64,
        pages: usize,
        buf: &mut AlignedBuf,
    ) -> Result<(), IndexError> {
        assert!(
            first + pages as u64 <= section.pages(),
            "pages of the section are asked for"
        );
        let offset = section.offset + first * PAGE_BYTES as u64;
        let bytes = pages * PAGE_BYTES;
        let read = self.file.read_at(buf, bytes, offset);
        if read.map_err(IndexError::io(&self.path, "reading"))? < bytes {
            return Err(self.corrupt(offset, "the file ends too early"));
        }
        for (i, page) in buf[..bytes].chunks_exact(PAGE_BYTES).enumerate() {
            let at = offset + (i * PAGE_BYTES) as u64;
            if page_checksum(page, self.seed, at) != get_u64(page, 0) {
                return Err(self.corrupt(at, "the page's checksum does not fit"));
            }
        }
        Ok(())
    }

    /// The whole payload of a section, in memory.
    pub(crate) fn read_section(&self, section: &Section) -> Result<Vec<u8>, IndexError> {
        let mut stream = self.stream(section, 0);
        let mut all = vec![0; usize::try_from(section.bytes).expect("a section fits memory")];
        stream.read_exact(&mut all)?;
        Ok(all)
    }

    /// A sequential reader of a section's payload from a byte position on.
    pub(crate) fn stream<'a>(&'a self, section: &Section, position: u64) -> SectionStream<'a> {
        SectionStream {
            reader: self,
            section: *section,
            position,
            buf: None,
            first: 0,
            pages: 0,
            next_pages: 1,
        }
    }

    /// Walks a table's rows from the first to the last.
    pub(crate) fn rows<'a>(&'a self, section: &Section, row_bytes: usize) -> Rows<'a> {
        Rows {
            stream: self.stream(section, 0),
            row_bytes,
            left: section.rows,
        }
    }
}

/// Reads a section's payload in order, few pages first, then up to 64 KiB at once.
pub(crate) struct SectionStream<'a> {
    reader: &'a PagedReader,
    section: Section,
    position: u64,
    buf: Option<AlignedBuf>,
    first: u64,
    pages: usize,
    next_pages: usize,
}

impl SectionStream<'_> {
    /// What is left of the page at the position; never empty.
    fn available(&mut self) -> Result<&[u8], IndexError> {
        let page = self.position / PAYLOAD_BYTES as u64;
        if self.position >= self.section.bytes {
            let offset = self.section.end();
            return Err(self
                .reader
                .corrupt(offset, "a section ends before what it should hold"));
        }
        if page < self.first || page >= self.first + self.pages as u64 {
            let left = usize::try_from(self.section.pages() - page).unwrap_or(usize::MAX);
            let pages = self.next_pages.min(left);
            let fits = self
                .buf
                .as_ref()
                .is_some_and(|buf| buf.len() >= pages * PAGE_BYTES);
            if !fits {
                self.buf = Some(AlignedBuf::new_zeroed(pages * PAGE_BYTES));
            }
            let buf = self.buf.as_mut().expect("made above");
            self.pages = 0;
            self.reader.read_pages(&self.section, page, pages, buf)?;
            (self.first, self.pages) = (page, pages);
            self.next_pages = (self.next_pages * 4).min(RUN_PAGES);
        }
        let within = to_usize(self.position % PAYLOAD_BYTES as u64);
        let end =
            to_usize((self.section.bytes - page * PAYLOAD_BYTES as u64).min(PAYLOAD_BYTES as u64));
        let buf = self.buf.as_ref().expect("read above");
        Ok(&payload(buf, to_usize(page - self.first))[within..end])
    }

    /// Fills `out` and moves on.
    pub(crate) fn read_exact(&mut self, mut out: &mut [u8]) -> Result<(), IndexError> {
        while !out.is_empty() {
            let available = self.available()?;
            let now = available.len().min(out.len());
            let (head, rest) = out.split_at_mut(now);
            head.copy_from_slice(&available[..now]);
            self.position += now as u64;
            out = rest;
        }
        Ok(())
    }

    /// The next unsigned LEB128 number of at most 32 bits.
    pub(crate) fn read_varint(&mut self) -> Result<u32, IndexError> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.available()?[0];
            self.position += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| self.bad("a number is too large"));
            }
        }
        Err(self.bad("a number does not end"))
    }

    pub(crate) fn bad(&self, reason: &'static str) -> IndexError {
        let page = self.position / PAYLOAD_BYTES as u64;
        self.reader
            .corrupt(self.section.offset + page * PAGE_BYTES as u64, reason)
    }
}

/// Rows of a table in order.
pub(crate) struct Rows<'a> {
    stream: SectionStream<'a>,
    row_bytes: usize,
    left: u64,
}

impl Rows<'_> {
    /// Copies the next row into `row`; `false` after the last.
    pub(crate) fn next(&mut self, row: &mut [u8]) -> Result<bool, IndexError> {
        if self.left == 0 {
            return Ok(false);
        }
        self.left -= 1;
        let used = self.stream.position % PAYLOAD_BYTES as u64;
        if PAYLOAD_BYTES as u64 - used < self.row_bytes as u64 {
            self.stream.position += PAYLOAD_BYTES as u64 - used;
        }
        self.stream.next_pages = RUN_PAGES;
        self.stream.read_exact(&mut row[..self.row_bytes])?;
        Ok(true)
    }
}

/// Payload of the i-th page of a buffer.
pub(crate) fn payload(buf: &[u8], page: usize) -> &[u8] {
    &buf[page * PAGE_BYTES + 8..(page + 1) * PAGE_BYTES]
}

fn page_checksum(page: &[u8], seed: u64, offset: u64) -> u64 {
    xxh64(&page[8..PAGE_BYTES], seed ^ offset)
}

fn corrupt(path: &str, offset: u64, reason: &'static str) -> IndexError {
    IndexError::Corrupt {
        path: path.to_owned(),
        offset,
        reason,
    }
}

pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("64-bit addresses")
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}
