//! Sealing: a closed segment gets its footer, in place or packed into a new file, and its index.
//!
//! **Crash consistency.** The events are durable before sealing begins, and no step removes the
//! only copy of one.
//!
//! In place:
//! 1. write the sparse index behind the data, sync — a crash leaves bytes behind the end of the
//!    data, where nobody believes
//!    them: the end of a closed segment is proven by its successor or by its marks;
//! 2. write the footer behind it, sync — the same, until
//! 3. the file is cut right behind the footer, sync — only now its last block is a footer that
//!    names the file's length:
//!    the segment is sealed. (If the footer happens to lie at the end of the preallocated file,
//!    step 2 seals it.)
//!
//! Packed:
//! 1. write `segment-N.log.new` with its footer, sync — a crash leaves a `.new` that is removed at
//!    open and by the next
//!    attempt;
//! 2. read it back from the disk and recompute root and counts;
//! 3. rename it over the segment, sync the directory — before, the unsealed file is there, after,
//!    the sealed one.
//!
//! Then the index file is written, itself by `.new` and rename; a crash before it leaves a sealed
//! segment whose index is
//! written by the next call.
//!
//! So a call after any crash finds the segment unsealed and does all again with the same result, or
//! sealed and only
//! sees to the index.

use std::io;
use std::sync::Arc;

use truthdb_io::{AlignedBuf, File, OpenMode, Storage};

use crate::active_index::ActiveIndex;
use crate::digest::Digest;
use crate::error::ReadError;
use crate::index::{SegmentBinding, SegmentIndex, write_index};
use crate::layout::{Place, align_block};
use crate::merkle::Hash;
use crate::pack::{Compression, PackWriter, PackedSize, sealed_file_bytes};
use crate::paged::IndexError;
use crate::reader::SegmentReader;
use crate::scan::{ScannedBatch, SegmentScan};
use crate::segment::{
    FOOTER_BYTES, Footer, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind, TrimPoint,
    encode_sparse_index, index_dir, segment_new_path, segment_path,
};

/// A segment is packed if that saves more than this share of the file, in percent.
pub const PACK_SAVING_MIN: u64 = 10;

/// Why a segment could not be sealed. The segment is as readable as before; the same call may be made again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The segment cannot be read, or is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The index cannot be written.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The operating system refused.
    #[error("{path}: {action} failed")]
    Io {
        /// File, relative to the data directory.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The segment does not hold what the caller knows of it.
    #[error("{path}: its {field} is {found}, expected {expected}; it was left as it is")]
    Unexpected {
        /// File, relative to the data directory.
        path: String,
        /// What differs.
        field: &'static str,
        /// What the caller knows.
        expected: u64,
        /// What the segment holds.
        found: u64,
    },
    /// A sealed file, read back, is not what was written: the disk or the memory is faulty.
    #[error("{path}: its {field} is another than before when read back; it was left as it is")]
    ReadBack {
        /// File, relative to the data directory.
        path: String,
        /// What differs.
        field: &'static str,
    },
}

/// What to seal, and how.
#[derive(Debug)]
pub struct SealRequest<'a> {
    /// Which segment.
    pub place: Place,
    /// Where its data ends, in bytes: the end of the last group.
    pub data_end: u64,
    /// Chain hash of the segment before; [`crate::ZERO_HASH`] for the first.
    pub previous_chain: Hash,
    /// Trim point to be noted in the footer.
    pub trim: TrimPoint,
    /// Whether packed blocks are compressed.
    pub compression: Compression,
    /// [`crate::KeySeed::check`] of the database's seed.
    pub key_check: u64,
    /// Index of all events of the segment.
    pub index: &'a ActiveIndex,
}

/// What sealing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The footer.
    pub footer: Footer,
    /// Length of the file before, in bytes; the same as after if the segment was sealed already.
    pub bytes_before: u64,
    /// Length of the sealed file in bytes.
    pub bytes_after: u64,
}

/// Path of a segment's index file: `partition-0000/index/segment-00000001.idx`.
pub fn segment_index_path(partition: u32, segment: u32) -> String {
    format!("{}/segment-{segment:08}.idx", index_dir(partition))
}

/// What the index of a sealed segment must say of itself.
pub fn segment_binding(footer: &Footer, key_check: u64) -> SegmentBinding {
    SegmentBinding {
        database_id: footer.place.database_id,
        partition: footer.place.partition,
        segment: footer.place.segment,
        base_sequence: footer.base_sequence,
        event_count: footer.event_count(),
        key_check,
        chain: footer.chain,
    }
}

/// What a seal did last; after each MiB or so it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealStep {
    /// Read and checked.
    Read,
    /// Written.
    Written,
}

/// How a seal behaves beside appends.
struct Beside<'a> {
    /// One small read of the device at a time.
    is_gentle: bool,
    meanwhile: &'a mut dyn FnMut(SealStep),
}

impl Beside<'_> {
    fn scan(
        &self,
        storage: &Arc<dyn Storage>,
        file: &Arc<dyn File>,
        header: &SegmentHeader,
        data_end: u64,
    ) -> Result<SegmentScan, ReadError> {
        let scan = SegmentScan::new(storage.as_ref(), Arc::clone(file), header, data_end)?;
        Ok(if self.is_gentle { scan.gentle() } else { scan })
    }

    /// The next batch; tells when it begins another MiB.
    fn next_batch(&mut self, scan: &mut SegmentScan) -> Result<Option<ScannedBatch>, ReadError> {
        let before = SegmentScan::position(scan) >> 20;
        let batch = scan.next_batch()?;
        if SegmentScan::position(scan) >> 20 > before {
            (self.meanwhile)(SealStep::Read);
        }
        Ok(batch)
    }
}

/// As [`seal_segment_beside`], with the device to itself.
#[cfg(test)]
pub(crate) fn seal_segment(
    storage: &Arc<dyn Storage>,
    request: &SealRequest<'_>,
) -> Result<Sealed, SealError> {
    seal_segment_beside(storage, request, false, &mut |_| {})
}

/// Seals a closed segment and writes its index file; see the module's documentation for the order.
/// Reads the segment
/// twice (once more to pack it) through a queue of its own; memory: 12 MiB and the tree of one batch.
/// `is_gentle`: one small read at a time, since appends need the device. `meanwhile` is called after every MiB or so,
/// may do other work, and may take its time.
///
/// # Errors
///
/// [`SealError`]; nothing is lost.
pub fn seal_segment_beside(
    storage: &Arc<dyn Storage>,
    request: &SealRequest<'_>,
    is_gentle: bool,
    meanwhile: &mut dyn FnMut(SealStep),
) -> Result<Sealed, SealError> {
    let mut beside = Beside {
        is_gentle,
        meanwhile,
    };
    let (reader, header) = SegmentReader::open(storage.as_ref(), request.place)?;
    let bytes_before = reader
        .file()
        .len()
        .map_err(io_error(reader.path(), "measuring"))?;
    let sealed = match reader.footer()? {
        Some(footer) => Sealed {
            footer,
            bytes_before,
            bytes_after: bytes_before,
        },
        None => seal_data(
            storage,
            request,
            &reader,
            &header,
            bytes_before,
            &mut beside,
        )?,
    };
    check_against(request, reader.path(), &sealed.footer)?;
    let path = segment_index_path(request.place.partition, request.place.segment);
    let binding = segment_binding(&sealed.footer, request.key_check);
    match SegmentIndex::open(storage, &path, &binding) {
        Ok(_) => {}
        Err(error) if error.is_rebuildable() => {
            write_index(storage, &path, &binding, request.index)?
        }
        Err(error) => return Err(error.into()),
    }
    Ok(sealed)
}

/// Compares what is known of the segment with what its footer says.
fn check_against(request: &SealRequest<'_>, path: &str, footer: &Footer) -> Result<(), SealError> {
    let index = request.index;
    let expected = [
        ("base sequence", index.base_sequence(), footer.base_sequence),
        ("event count", index.event_count(), footer.event_count()),
    ];
    if let Some((field, expected, found)) = expected.into_iter().find(|(_, a, b)| a != b) {
        return Err(SealError::Unexpected {
            path: path.to_owned(),
            field,
            expected,
            found,
        });
    }
    if footer.previous_chain != request.previous_chain {
        return Err(SealError::ReadBack {
            path: path.to_owned(),
            field: "previous chain hash",
        });
    }
    Ok(())
}

fn seal_data(
    storage: &Arc<dyn Storage>,
    request: &SealRequest<'_>,
    reader: &SegmentReader,
    header: &SegmentHeader,
    bytes_before: u64,
    beside: &mut Beside<'_>,
) -> Result<Sealed, SealError> {
    let (mut digest, mut packed) = (
        Digest::new(SegmentKind::Active, header.base_sequence),
        PackedSize::default(),
    );
    let mut batches = beside.scan(storage, reader.file(), header, request.data_end)?;
    while let Some(scanned) = beside.next_batch(&mut batches)? {
        digest.add(&scanned);
        packed.add(&scanned.batch);
    }
    let last_batch_checksum = batches
        .last_header_checksum()
        .unwrap_or(header.previous_checksum);
    let data_end = align_block(batches.position());
    drop(batches);
    let footer = |kind, data_end, sparse_entries| Footer {
        kind,
        place: request.place,
        base_sequence: header.base_sequence,
        last_sequence: digest.last_sequence(),
        batch_count: digest.batch_count(),
        first_timestamp_ns: digest.first_timestamp_ns,
        last_timestamp_ns: digest.last_timestamp_ns,
        data_end,
        sparse_offset: data_end,
        sparse_entries,
        event_bytes: digest.event_bytes,
        last_batch_checksum,
        root: digest.root(),
        previous_chain: request.previous_chain,
        chain: digest.chain(&request.place, &request.previous_chain),
        trim: request.trim,
    };
    let in_place = footer(SegmentKind::Active, data_end, digest.sparse.len() as u64);
    check_against(request, reader.path(), &in_place)?;
    let in_place_bytes = sealed_file_bytes(data_end, in_place.sparse_entries);
    let may_save = request.compression != Compression::None
        || saves_enough(packed.file_bytes(), in_place_bytes);
    if may_save && digest.event_count > 0 {
        let batches = beside.scan(storage, reader.file(), header, request.data_end)?;
        let source = (header, batches);
        let packed = pack(storage, request, source, &footer, in_place_bytes, beside)?;
        if let Some((footer, bytes_after)) = packed {
            return Ok(Sealed {
                footer,
                bytes_before,
                bytes_after,
            });
        }
    }
    let path = reader.path();
    let file = storage
        .open(path, OpenMode::ReadWrite)
        .map_err(io_error(path, "opening"))?;
    let sparse = encode_sparse_index(&digest.sparse);
    write_in_place(&file, &in_place, &sparse).map_err(io_error(path, "sealing"))?;
    Ok(Sealed {
        footer: in_place,
        bytes_before,
        bytes_after: in_place_bytes,
    })
}

fn saves_enough(packed_bytes: u64, in_place_bytes: u64) -> bool {
    packed_bytes * 100 < in_place_bytes * (100 - PACK_SAVING_MIN)
}

/// Steps 1 to 3 of sealing in place.
fn write_in_place(file: &Arc<dyn File>, footer: &Footer, sparse: &[u8]) -> io::Result<()> {
    let mut buf = AlignedBuf::new_zeroed(sparse.len());
    buf[..sparse.len()].copy_from_slice(sparse);
    file.write_at(&buf, sparse.len(), footer.sparse_offset)?;
    file.sync()?;
    let block = footer.encode();
    let footer_offset = footer.sparse_offset + sparse.len() as u64;
    buf[..block.len()].copy_from_slice(&block);
    file.write_at(&buf, block.len(), footer_offset)?;
    file.sync()?;
    file.set_len(footer_offset + FOOTER_BYTES)?;
    file.sync()
}

/// Packs into a new file and puts it in place; `None` if it turned out not to save enough, or there
/// is no room for it.
fn pack(
    storage: &Arc<dyn Storage>,
    request: &SealRequest<'_>,
    (header, mut batches): (&SegmentHeader, SegmentScan),
    footer: &impl Fn(SegmentKind, u64, u64) -> Footer,
    in_place_bytes: u64,
    beside: &mut Beside<'_>,
) -> Result<Option<(Footer, u64)>, SealError> {
    let Place {
        partition, segment, ..
    } = request.place;
    let (path, new_path) = (
        segment_path(partition, segment),
        segment_new_path(partition, segment),
    );
    let file = create_new(storage, &new_path)?;
    let packed_header = SegmentHeader {
        kind: SegmentKind::Packed,
        ..*header
    };
    let written = (|| -> Result<(Footer, u64), SealError> {
        let failed = || io_error(&new_path, "packing");
        let mut writer =
            PackWriter::new(file, &packed_header, request.compression).map_err(failed())?;
        while let Some(scanned) = beside.next_batch(&mut batches)? {
            let before = writer.written_bytes();
            writer.push(&scanned.batch).map_err(failed())?;
            if writer.written_bytes() > before {
                (beside.meanwhile)(SealStep::Written);
            }
        }
        let footer = |data_end, entries| footer(SegmentKind::Packed, data_end, entries);
        writer.finish(footer).map_err(failed())
    })();
    let remove = || {
        storage
            .durable_remove(&new_path)
            .map_err(io_error(&new_path, "removing"))
    };
    let (footer, bytes) = match written {
        Ok((footer, bytes)) if saves_enough(bytes, in_place_bytes) => (footer, bytes),
        Ok(_) => return remove().map(|()| None),
        Err(SealError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            return remove().map(|()| None);
        }
        Err(error) => return Err(error),
    };
    check_packed(storage, request.place, &new_path, &footer, beside)?;
    storage
        .durable_rename(&new_path, &path)
        .map_err(io_error(&path, "renaming"))?;
    Ok(Some((footer, bytes)))
}

fn create_new(storage: &Arc<dyn Storage>, path: &str) -> Result<Arc<dyn File>, SealError> {
    match storage.open(path, OpenMode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            storage
                .durable_remove(path)
                .map_err(io_error(path, "removing"))?;
            storage
                .open(path, OpenMode::CreateNew)
                .map_err(io_error(path, "creating"))
        }
        other => other.map_err(io_error(path, "creating")),
    }
}

/// Reads a packed file back from the disk, every byte that matters.
fn check_packed(
    storage: &Arc<dyn Storage>,
    place: Place,
    path: &str,
    expected: &Footer,
    beside: &mut Beside<'_>,
) -> Result<(), SealError> {
    let differs = |field| SealError::ReadBack {
        path: path.to_owned(),
        field,
    };
    let file = storage
        .open(path, OpenMode::Read)
        .map_err(io_error(path, "opening"))?;
    let mut block = AlignedBuf::new_zeroed(4096);
    let header_bytes = usize::try_from(SEGMENT_HEADER_BYTES).expect("a block");
    file.read_at(&mut block, header_bytes, 0)
        .map_err(io_error(path, "reading"))?;
    let header = SegmentHeader::decode(&block).map_err(|_| differs("header"))?;
    let reader = SegmentReader::new(Arc::clone(&file), place, header.kind);
    if reader.footer()?.as_ref() != Some(expected) {
        return Err(differs("footer"));
    }
    let sparse = reader.sparse_index(expected)?;
    let mut digest = Digest::new(SegmentKind::Packed, expected.base_sequence);
    let mut scan = beside.scan(storage, &file, &header, expected.data_end)?;
    while let Some(scanned) = beside.next_batch(&mut scan)? {
        digest.add(&scanned);
    }
    match digest.difference(expected, &sparse) {
        Some(field) => Err(differs(field)),
        None => Ok(()),
    }
}

fn io_error(path: &str, action: &'static str) -> impl FnOnce(io::Error) -> SealError {
    move |source| SealError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

#[cfg(test)]
#[path = "seal_tests.rs"]
mod tests;
