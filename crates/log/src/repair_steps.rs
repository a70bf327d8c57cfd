//! The steps of a repair plan, each safe against a crash: a new file is written beside, synced, and renamed.

use std::io;
use std::sync::Arc;

use truthdb_io::{AlignedBuf, BLOCK_BYTES, File, OpenMode, Storage};

use crate::batch::{BatchHeader, StoredBatch, body_checksum, header_checksum};
use crate::digest::Digest;
use crate::error::ReadError;
use crate::heads::{HeadRuns, HeadsError, HeadsIdentity, SealedSegments};
use crate::index::SegmentIndex;
use crate::keys::{KeyHasher, KeySeed};
use crate::layout::{Place, align_block, to_u64, to_usize};
use crate::manifest::Manifest;
use crate::reader::SegmentReader;
use crate::rebuild::rebuild_segment_index;
use crate::recovery::zero_range;
use crate::repair::{RepairError, io_error};
use crate::scan::SegmentScan;
use crate::seal::{segment_binding, segment_index_path};
use crate::segment::{
    Footer, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind, index_dir, parse_segment_name,
    segment_path, wal_dir,
};

/// Bytes of one copy.
const COPY_BYTES: usize = 1 << 20;

/// The whole batches at the start of a segment.
pub(crate) struct Prefix {
    pub(crate) header: SegmentHeader,
    pub(crate) next_sequence: u64,
    /// Where the damage begins, in bytes; `None` if there is none.
    pub(crate) damage: Option<u64>,
}

/// Reads a segment up to its first damage.
pub(crate) fn whole_prefix(
    storage: &Arc<dyn Storage>,
    place: Place,
) -> Result<Prefix, RepairError> {
    let (reader, header) = SegmentReader::open(storage.as_ref(), place)?;
    let mut scan = scan_all(storage, &reader, &header)?;
    let mut damage = None;
    loop {
        let offset = scan.position();
        match scan.next_batch() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(ReadError::Corrupt(corruption)) => damage = Some(corruption.offset),
            Err(ReadError::Io { .. }) => damage = Some(offset),
        }
    }
    Ok(Prefix {
        header,
        next_sequence: scan.next_sequence(),
        damage,
    })
}

/// A scan of all data, or of the whole file if its footer is gone.
fn scan_all(
    storage: &Arc<dyn Storage>,
    reader: &SegmentReader,
    header: &SegmentHeader,
) -> Result<SegmentScan, RepairError> {
    let length = reader
        .file()
        .len()
        .map_err(io_error(reader.path(), "measuring"))?;
    let footer = reader.footer().ok().flatten();
    let whole_blocks = length - length % to_u64(BLOCK_BYTES);
    let end = footer.map_or(whole_blocks, |footer| footer.data_end);
    Ok(SegmentScan::new(
        storage.as_ref(),
        Arc::clone(reader.file()),
        header,
        end,
    )?)
}

/// Copies a file durably; the target appears only when it is complete. Unreadable blocks become
/// zeros, so that what is readable of a
/// damaged file is kept.
pub(crate) fn copy_file(
    from: &Arc<dyn Storage>,
    source_path: &str,
    to: &Arc<dyn Storage>,
    target_path: &str,
) -> Result<(), RepairError> {
    let source = from
        .open(source_path, OpenMode::Read)
        .map_err(io_error(source_path, "opening"))?;
    let length = source.len().map_err(io_error(source_path, "measuring"))?;
    let temporary = format!("{target_path}.new");
    let target = create_new(to, &temporary)?;
    let mut buf = AlignedBuf::new_zeroed(COPY_BYTES);
    let mut offset = 0;
    while offset < length {
        let bytes = to_usize(align_block(length - offset)).min(COPY_BYTES);
        buf.fill(0);
        if source.read_at(&mut buf, bytes, offset).is_err() {
            // What a failed read leaves of its buffer is not said.
            buf = AlignedBuf::new_zeroed(COPY_BYTES);
            read_by_block(&source, &mut buf, bytes, offset);
        }
        target
            .write_at(&buf, bytes, offset)
            .map_err(io_error(&temporary, "writing"))?;
        offset += to_u64(bytes);
    }
    target
        .set_len(length)
        .map_err(io_error(&temporary, "cutting"))?;
    target.sync().map_err(io_error(&temporary, "syncing"))?;
    to.durable_rename(&temporary, target_path)
        .map_err(io_error(target_path, "renaming"))
}

fn read_by_block(source: &Arc<dyn File>, buf: &mut AlignedBuf, bytes: usize, offset: u64) {
    for at in (0..bytes).step_by(BLOCK_BYTES) {
        let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
        if source
            .read_at(&mut block, BLOCK_BYTES, offset + to_u64(at))
            .is_ok()
        {
            buf[at..at + BLOCK_BYTES].copy_from_slice(&block);
        }
    }
}

fn create_new(storage: &Arc<dyn Storage>, path: &str) -> Result<Arc<dyn File>, RepairError> {
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

/// Zeroes an unsealed segment from an offset on, and gives it its full size.
pub(crate) fn cut_at(
    storage: &Arc<dyn Storage>,
    path: &str,
    offset: u64,
    segment_bytes: u64,
) -> Result<(), RepairError> {
    let file = storage
        .open(path, OpenMode::ReadWrite)
        .map_err(io_error(path, "opening"))?;
    let length = file.len().map_err(io_error(path, "measuring"))?;
    let end = align_block(length.max(offset));
    zero_range(&file, offset..end).map_err(io_error(path, "cutting"))?;
    file.sync().map_err(io_error(path, "syncing"))?;
    file.set_len(end.min(segment_bytes))
        .map_err(io_error(path, "cutting"))?;
    file.allocate(segment_bytes)
        .map_err(io_error(path, "reserving"))?;
    file.sync().map_err(io_error(path, "syncing"))
}

/// Writes a segment anew as an unsealed one that holds its whole batches, in one group.
pub(crate) fn rewrite_prefix(storage: &Arc<dyn Storage>, place: Place) -> Result<(), RepairError> {
    let prefix = whole_prefix(storage, place)?;
    let (reader, _) = SegmentReader::open(storage.as_ref(), place)?;
    let path = segment_path(place.partition, place.segment);
    let temporary = format!("{path}.new");
    let header = SegmentHeader {
        kind: SegmentKind::Active,
        ..prefix.header
    };
    let mut scan = scan_all(storage, &reader, &prefix.header)?;
    let file = create_new(storage, &temporary)?;
    let mut writer = ActiveWriter {
        file: Arc::clone(&file),
        buf: AlignedBuf::new_zeroed(COPY_BYTES),
        filled: 0,
        offset: 0,
        place,
        previous_checksum: header.previous_checksum,
    };
    let failed = || io_error(&temporary, "writing");
    writer.write(&header.encode()).map_err(failed())?;
    while scan.next_sequence() < prefix.next_sequence {
        match scan.next_batch()? {
            Some(scanned) => writer.batch(&scanned.batch).map_err(failed())?,
            None => break,
        }
    }
    let data_end = writer.finish().map_err(failed())?;
    if data_end > header.segment_bytes {
        return Err(RepairError::Impossible(format!(
            "segment {} does not fit its size when it is written anew",
            place.segment
        )));
    }
    file.allocate(header.segment_bytes).map_err(failed())?;
    file.sync().map_err(failed())?;
    let mut check = SegmentScan::new(storage.as_ref(), file, &header, data_end)?;
    while check.next_batch()?.is_some() {}
    if check.next_sequence() != prefix.next_sequence {
        return Err(RepairError::PlanChanged);
    }
    storage
        .durable_rename(&temporary, &path)
        .map_err(io_error(&path, "renaming"))
}

/// Writes batches with new headers, back to back.
struct ActiveWriter {
    file: Arc<dyn File>,
    buf: AlignedBuf,
    filled: usize,
    offset: u64,
    place: Place,
    previous_checksum: u64,
}

impl ActiveWriter {
    fn batch(&mut self, batch: &StoredBatch) -> io::Result<()> {
        let header = BatchHeader {
            mark: false,
            clean_stop: false,
            place: self.place,
            offset: self.offset + to_u64(self.filled),
            first_sequence: batch.first_sequence,
            timestamp_ns: batch.timestamp_ns,
            previous_checksum: self.previous_checksum,
            body_checksum: body_checksum(&batch.body, batch.event_count),
            flushed_sequence: 0,
            flushed_offset: SEGMENT_HEADER_BYTES,
            event_count: batch.event_count,
            body_bytes: u32::try_from(batch.body_bytes()).expect("it was a u32 on disk"),
        };
        let encoded = header.encode();
        self.previous_checksum = header_checksum(&encoded);
        self.write(&encoded)?;
        self.write(&batch.body)?;
        let padding = batch.body_bytes().next_multiple_of(8) - batch.body_bytes();
        self.write(&[0; 8][..padding])
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.buf.len() - self.filled));
            self.buf[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
            if self.filled == self.buf.len() {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = self.filled.next_multiple_of(BLOCK_BYTES);
        self.buf[self.filled..bytes].fill(0);
        if bytes > 0 {
            self.file.write_at(&self.buf, bytes, self.offset)?;
            self.offset += to_u64(bytes);
            self.filled = 0;
        }
        Ok(())
    }

    /// Offset behind the last block.
    fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        Ok(self.offset)
    }
}

/// Reads a sealed segment whole and compares it with its footer.
pub(crate) fn check_sealed(
    storage: &Arc<dyn Storage>,
    path: &str,
    place: Place,
) -> Result<Footer, String> {
    let text = |error: &dyn std::error::Error| crate::verify::with_causes(error);
    let file = storage
        .open(path, OpenMode::Read)
        .map_err(|error| text(&error))?;
    let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
    file.read_at(&mut block, BLOCK_BYTES, 0)
        .map_err(|error| text(&error))?;
    let header = SegmentHeader::decode(&block)
        .and_then(|header| header.check_place(&place).map(|()| header))
        .map_err(|error| text(&error))?;
    let reader = SegmentReader::new(Arc::clone(&file), place, header.kind);
    let footer = reader.footer().map_err(|error| text(&error))?;
    let footer = footer.ok_or("it is not sealed")?;
    let sparse = reader.sparse_index(&footer).map_err(|error| text(&error))?;
    let mut digest = Digest::new(footer.kind, footer.base_sequence);
    let scan = SegmentScan::new(storage.as_ref(), file, &header, footer.data_end);
    for scanned in scan.map_err(|error| text(&error))? {
        digest.add(&scanned.map_err(|error| text(&error))?);
    }
    match digest.difference(&footer, &sparse) {
        None => Ok(footer),
        Some(field) => Err(format!(
            "its events give another {field} than its footer says"
        )),
    }
}

/// Copies a segment out of the backup, checks the copy, and puts it in place.
pub(crate) fn take_from_backup(
    storage: &Arc<dyn Storage>,
    backup: &Arc<dyn Storage>,
    path: &str,
    place: Place,
) -> Result<(), RepairError> {
    // Not under the name of an unfinished segment, which opening would remove without a word.
    let restored = format!("{path}.restored");
    copy_file(backup, path, storage, &restored)?;
    check_sealed(storage, &restored, place).map_err(|reason| RepairError::BackupDoesNotFit {
        path: path.to_owned(),
        reason,
    })?;
    storage
        .durable_rename(&restored, path)
        .map_err(io_error(path, "renaming"))
}

fn footer_of(storage: &Arc<dyn Storage>, place: Place) -> Result<Option<Footer>, ReadError> {
    SegmentReader::open(storage.as_ref(), place)?.0.footer()
}

/// Makes one segment's index anew.
pub(crate) fn rebuild_index(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    partition: u32,
    segment: u32,
) -> Result<(), RepairError> {
    let keys = KeyHasher::new(KeySeed(manifest.key_seed));
    let place = manifest.place(partition, segment);
    let Some(footer) = footer_of(storage, place)? else {
        return Err(RepairError::Impossible(format!(
            "segment {segment} is not sealed"
        )));
    };
    rebuild_segment_index(storage, &keys, &footer, |older| {
        let Ok(Some(footer)) = footer_of(storage, manifest.place(partition, older)) else {
            return Ok(None);
        };
        let binding = segment_binding(&footer, keys.seed().check());
        SegmentIndex::open(storage, &segment_index_path(partition, older), &binding).map(Some)
    })?;
    Ok(())
}

/// Makes the runs of stream heads of all sealed segments that no run covers.
pub(crate) fn rebuild_heads(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    partition: u32,
) -> Result<(), RepairError> {
    let wal = wal_dir(partition);
    let listed = storage.list(&wal).map_err(io_error(&wal, "listing"))?;
    let mut footers = Vec::new();
    for segment in listed
        .iter()
        .filter_map(|entry| parse_segment_name(&entry.name))
    {
        footers.extend(footer_of(storage, manifest.place(partition, segment))?);
    }
    let Some(first) = footers.first().map(|footer| footer.place.segment) else {
        return Ok(());
    };
    let last = footers.last().map_or(first, |footer| footer.place.segment);
    let key_check = KeySeed(manifest.key_seed).check();
    let chain_of = |segment: u32| {
        if segment + 1 == first {
            return Some(footers[0].previous_chain);
        }
        footers
            .iter()
            .find(|footer| footer.place.segment == segment)
            .map(|footer| footer.chain)
    };
    let sealed = SealedSegments {
        first,
        last,
        chain_of: &chain_of,
    };
    let identity = HeadsIdentity {
        database_id: manifest.database_id,
        partition,
        key_check,
    };
    let (mut runs, _) = HeadRuns::open(storage, &index_dir(partition), identity, &sealed)?;
    for segment in runs.missing().into_iter().flatten() {
        let Some(footer) = footers
            .iter()
            .find(|footer| footer.place.segment == segment)
        else {
            continue;
        };
        let binding = segment_binding(footer, key_check);
        let path = segment_index_path(partition, segment);
        let index = SegmentIndex::open(storage, &path, &binding).map_err(HeadsError::from)?;
        runs.add_segment(&index)?;
    }
    while runs.merge_once()? {}
    Ok(())
}
