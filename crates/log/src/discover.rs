//! Which segments a partition has, from its directory alone, and whether they fit together.
//!
//! Only the last block of sealed segments is read, and the first of the others, many at a time: a
//! start costs one small read for each segment, however long the history.

use std::io;
use std::sync::Arc;

use truthdb_io::{AlignedBuf, BLOCK_BYTES, Completion, File, OpenMode, Storage};

use crate::layout::{
    FieldReader, FieldWriter, FormatError, Place, check_place, check_preamble, put_checksum,
    to_u64, to_usize,
};
use crate::manifest::Manifest;
use crate::recovery::RecoveryError;
use crate::segment::{
    FOOTER_BYTES, Footer, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind, TrimPoint,
    parse_segment_name, partition_dir, segment_path, wal_dir,
};

/// Footers read at a time.
const DISCOVER_DEPTH: usize = 32;
/// Newest version of the trim file, and the one written.
pub const TRIM_VERSION: u16 = 1;

const TRIM_MAGIC: [u8; 4] = *b"TTRM";
const TRIM: &str = "trim point";

/// A segment as its footer, or its header, describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Which segment this is.
    pub place: Place,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// What is known of it.
    pub state: SegmentState,
}

/// Sealed or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentState {
    /// Complete, never to change.
    Sealed(Box<Footer>),
    /// Active, or closed and waiting for its seal: to be recovered.
    Unsealed(Box<SegmentHeader>),
}

impl SegmentInfo {
    /// Sequence of the first event.
    pub fn base_sequence(&self) -> u64 {
        match &self.state {
            SegmentState::Sealed(footer) => footer.base_sequence,
            SegmentState::Unsealed(header) => header.base_sequence,
        }
    }

    /// The footer, if it is sealed.
    pub fn footer(&self) -> Option<&Footer> {
        match &self.state {
            SegmentState::Sealed(footer) => Some(footer),
            SegmentState::Unsealed(_) => None,
        }
    }

    fn trim(&self) -> TrimPoint {
        match &self.state {
            SegmentState::Sealed(footer) => footer.trim,
            SegmentState::Unsealed(header) => header.trim,
        }
    }
}

/// What a partition's directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Segments in order: first the sealed ones, then those to be recovered; at least one.
    pub segments: Vec<SegmentInfo>,
    /// What is kept of the partition.
    pub trim: TrimPoint,
    /// Files that are not the log's, relative to the data directory; worth a warning.
    pub foreign: Vec<String>,
    /// Files removed because an interrupted preallocation, packing or trim left them.
    pub removed: Vec<String>,
}

/// Path of the file that says what was trimmed.
pub fn trim_path(partition: u32) -> String {
    format!("{}/trim.bin", partition_dir(partition))
}

/// Writes durably what is kept of a partition. Must return before the first segment below it is
/// removed, so that a missing segment is always either below this point or lost.
///
/// # Errors
///
/// [`RecoveryError::Io`].
pub fn write_trim_point(
    storage: &dyn Storage,
    manifest: &Manifest,
    partition: u32,
    trim: TrimPoint,
) -> Result<(), RecoveryError> {
    let path = trim_path(partition);
    let new_path = format!("{path}.new");
    let io = |source| RecoveryError::io("write", &path, source);
    remove_if_there(storage, &new_path).map_err(io)?;
    let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
    block.copy_from_slice(&encode_trim_point(manifest, partition, trim));
    let file = storage.open(&new_path, OpenMode::CreateNew).map_err(io)?;
    file.write_at(&block, BLOCK_BYTES, 0).map_err(io)?;
    file.sync().map_err(io)?;
    storage.durable_rename(&new_path, &path).map_err(io)
}

/// What is kept of a partition; [`TrimPoint::NONE`] if nothing was ever trimmed.
///
/// # Errors
///
/// [`RecoveryError`] if the file is there and cannot be read or is damaged.
pub fn read_trim_point(
    storage: &dyn Storage,
    manifest: &Manifest,
    partition: u32,
) -> Result<TrimPoint, RecoveryError> {
    let path = trim_path(partition);
    let io = |source| RecoveryError::io("read", &path, source);
    let file = match storage.open(&path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TrimPoint::NONE),
        result => result.map_err(io)?,
    };
    let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
    let read = file.read_at(&mut block, BLOCK_BYTES, 0).map_err(io)?;
    decode_trim(&block[..read], manifest, partition)
        .map_err(|error| RecoveryError::format(&path, 0, 0, error))
}

/// The file at [`trim_path`]: one block.
pub fn encode_trim_point(manifest: &Manifest, partition: u32, trim: TrimPoint) -> Vec<u8> {
    let place = manifest.place(partition, trim.first_segment);
    let mut block = vec![0u8; BLOCK_BYTES];
    FieldWriter::new(&mut block, 8)
        .bytes(&TRIM_MAGIC)
        .u16(TRIM_VERSION)
        .u16(0)
        .place(&place)
        .u64(trim.first_sequence);
    put_checksum(&mut block);
    block
}

fn decode_trim(
    block: &[u8],
    manifest: &Manifest,
    partition: u32,
) -> Result<TrimPoint, FormatError> {
    check_preamble(TRIM, block, BLOCK_BYTES, TRIM_MAGIC, TRIM_VERSION)?;
    let mut fields = FieldReader::new(&block[..BLOCK_BYTES], 14);
    let reserved = fields.u16();
    let place = fields.place();
    let trim = TrimPoint {
        first_segment: place.segment,
        first_sequence: fields.u64(),
    };
    check_place(TRIM, &manifest.place(partition, place.segment), &place)?;
    let possible = trim.first_segment > 0 && trim.first_sequence > 0;
    if !possible || reserved != 0 || !fields.rest_is_zero() {
        let (field, reason) = ("fields", "first segment and sequence from 1, then zeros");
        return Err(FormatError::Field {
            structure: TRIM,
            field,
            found: 0,
            reason,
        });
    }
    Ok(trim)
}

/// Lists a partition's segments, removes what interrupted work left, and checks that the segments
/// are complete and fit together.
///
/// # Errors
///
/// [`RecoveryError`], naming the file: missing, foreign, in the wrong place, from a newer release,
/// or not following its predecessor.
pub fn discover_segments(
    storage: &dyn Storage,
    partition: u32,
    manifest: &Manifest,
) -> Result<Discovery, RecoveryError> {
    let wal = wal_dir(partition);
    let io = |source| RecoveryError::io("list", &wal, source);
    let mut numbered = Vec::new();
    let (mut foreign, mut removed) = (Vec::new(), Vec::new());
    for entry in storage.list(&wal).map_err(io)? {
        let path = format!("{wal}/{}", entry.name);
        let unfinished = entry.name.strip_suffix(".new").and_then(parse_segment_name);
        match parse_segment_name(&entry.name) {
            Some(segment) if !entry.is_dir => numbered.push((segment, entry.bytes)),
            _ if unfinished.is_some() && !entry.is_dir => {
                let io = |source| RecoveryError::io("remove", &path, source);
                storage.durable_remove(&path).map_err(io)?;
                removed.push(path);
            }
            _ => foreign.push(path),
        }
    }
    numbered.sort_unstable();
    let known = read_trim_point(storage, manifest, partition)?;
    let keep = known.first_segment;
    for (segment, _) in numbered.iter().filter(|(segment, _)| *segment < keep) {
        let path = segment_path(partition, *segment);
        let io = |source| RecoveryError::io("remove", &path, source);
        storage.durable_remove(&path).map_err(io)?;
        removed.push(path);
    }
    numbered.retain(|(segment, _)| *segment >= keep);
    check_complete(partition, &numbered, known)?;
    let segments = describe(storage, partition, manifest, &numbered)?;
    let trim = trim_of(partition, &segments, known)?;
    check_chain(partition, &segments, trim)?;
    Ok(Discovery {
        segments,
        trim,
        foreign,
        removed,
    })
}

/// The newest trim point that the file or any segment names. Segments before it that are still
/// there are kept.
fn trim_of(
    partition: u32,
    segments: &[SegmentInfo],
    known: TrimPoint,
) -> Result<TrimPoint, RecoveryError> {
    let named = segments.iter().map(SegmentInfo::trim).chain([known]);
    let trim = named.max_by_key(|trim| trim.first_segment).unwrap_or(known);
    match segments.first() {
        Some(first) if first.place.segment > trim.first_segment => {
            let first_segment = trim.first_segment;
            let path = segment_path(partition, first_segment);
            Err(RecoveryError::MissingSegment {
                path,
                first_segment,
            })
        }
        Some(first) if first.place.segment < trim.first_segment => Ok(TrimPoint {
            first_segment: first.place.segment,
            first_sequence: first.base_sequence(),
        }),
        _ => Ok(trim),
    }
}

/// Names must go without a gap, and there must be one.
fn check_complete(
    partition: u32,
    numbered: &[(u32, u64)],
    known: TrimPoint,
) -> Result<(), RecoveryError> {
    let first_segment = known.first_segment;
    let gap = numbered.windows(2).find(|pair| pair[0].0 + 1 != pair[1].0);
    let missing = match (gap, numbered.first()) {
        (Some(pair), _) => pair[0].0 + 1,
        (None, None) => first_segment,
        (None, Some(_)) => return Ok(()),
    };
    let path = segment_path(partition, missing);
    Err(RecoveryError::MissingSegment {
        path,
        first_segment,
    })
}

/// Reads the footers, and the headers of those without.
fn describe(
    storage: &dyn Storage,
    partition: u32,
    manifest: &Manifest,
    numbered: &[(u32, u64)],
) -> Result<Vec<SegmentInfo>, RecoveryError> {
    let mut files = Vec::with_capacity(numbered.len());
    for (segment, bytes) in numbered {
        let place = manifest.place(partition, *segment);
        let path = segment_path(partition, *segment);
        let file = storage.open(&path, OpenMode::Read);
        let file = file.map_err(|source| RecoveryError::io("open", &path, source))?;
        files.push(Candidate {
            place,
            path,
            file,
            bytes: *bytes,
        });
    }
    let whole = |file: &Candidate| {
        file.bytes >= SEGMENT_HEADER_BYTES + FOOTER_BYTES
            && file.bytes.is_multiple_of(to_u64(BLOCK_BYTES))
    };
    let reads = files
        .iter()
        .filter(|file| whole(file))
        .map(|file| (file, file.bytes - FOOTER_BYTES));
    let mut footers = read_blocks(storage, reads.collect())?.into_iter();
    let mut segments = Vec::with_capacity(files.len());
    for file in &files {
        let footer = if whole(file) { footers.next() } else { None };
        let footer = match footer.map(|block| Footer::decode(&block)) {
            None | Some(Err(FormatError::Magic { .. } | FormatError::Checksum { .. })) => None,
            Some(footer) => Some(footer),
        };
        let checked = footer.map(|footer| {
            footer.and_then(|footer| footer.check_place(&file.place, file.bytes).map(|()| footer))
        });
        let offset = file.bytes.saturating_sub(FOOTER_BYTES);
        let state = match checked.transpose() {
            Ok(Some(footer)) => SegmentState::Sealed(Box::new(footer)),
            Ok(None) => SegmentState::Unsealed(Box::new(file.read_header()?)),
            Err(error) => return Err(RecoveryError::format(&file.path, offset, 0, error)),
        };
        segments.push(SegmentInfo {
            place: file.place,
            file_bytes: file.bytes,
            state,
        });
    }
    Ok(segments)
}

/// A file with the name of a segment.
struct Candidate {
    place: Place,
    path: String,
    file: Arc<dyn File>,
    bytes: u64,
}

impl Candidate {
    fn read_header(&self) -> Result<SegmentHeader, RecoveryError> {
        let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
        let read = self.file.read_at(&mut block, BLOCK_BYTES, 0);
        let io = |source| RecoveryError::io("read the header of", &self.path, source);
        let read = read.map_err(io)?;
        let header = SegmentHeader::decode(&block[..read])
            .and_then(|header| header.check_place(&self.place).map(|()| header))
            .map_err(|error| RecoveryError::format(&self.path, 0, 0, error))?;
        if header.kind == SegmentKind::Packed {
            return Err(RecoveryError::MissingFooter {
                path: self.path.clone(),
            });
        }
        Ok(header)
    }
}

/// Reads one block of each file, many at a time, and returns them in the order asked for.
fn read_blocks(
    storage: &dyn Storage,
    reads: Vec<(&Candidate, u64)>,
) -> Result<Vec<AlignedBuf>, RecoveryError> {
    let Some((first, _)) = reads.first() else {
        return Ok(Vec::new());
    };
    let mut queue = storage
        .queue(DISCOVER_DEPTH)
        .map_err(|source| RecoveryError::io("read", &first.path, source))?;
    let mut blocks: Vec<Option<AlignedBuf>> = reads.iter().map(|_| None).collect();
    let mut completions: Vec<Completion> = Vec::new();
    let mut failure = None;
    let mut next = 0;
    while next < reads.len() || queue.in_flight() > 0 {
        while next < reads.len() && queue.in_flight() < DISCOVER_DEPTH && failure.is_none() {
            let (candidate, offset) = reads[next];
            let buffer = AlignedBuf::new_zeroed(BLOCK_BYTES);
            queue.read(&candidate.file, buffer, BLOCK_BYTES, offset, to_u64(next));
            next += 1;
        }
        if queue.in_flight() == 0 {
            break;
        }
        queue.wait(&mut completions, None);
        for completion in completions.drain(..) {
            let index = to_usize(completion.tag);
            match (completion.result, completion.read) {
                (Ok(()), Some((buffer, BLOCK_BYTES))) => blocks[index] = Some(buffer),
                (Err(error), _) => failure = Some((index, error)),
                _ => failure = Some((index, io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
    if let Some((index, source)) = failure {
        return Err(RecoveryError::io(
            "read the footer of",
            &reads[index].0.path,
            source,
        ));
    }
    Ok(blocks
        .into_iter()
        .map(|block| block.expect("every read finished"))
        .collect())
}

/// Checks each segment against the one before.
fn check_chain(
    partition: u32,
    segments: &[SegmentInfo],
    trim: TrimPoint,
) -> Result<(), RecoveryError> {
    let broken = |info: &SegmentInfo, field| {
        let path = segment_path(partition, info.place.segment);
        Err(RecoveryError::BrokenChain { path, field })
    };
    let Some(first) = segments.first() else {
        return Ok(());
    };
    if first.base_sequence() != trim.first_sequence {
        return broken(first, "base sequence");
    }
    if first.place.segment == 1 {
        match &first.state {
            SegmentState::Sealed(footer) if footer.previous_chain != [0; 32] => {
                return broken(first, "previous chain hash");
            }
            SegmentState::Unsealed(header) if header.previous_checksum != 0 => {
                return broken(first, "previous checksum");
            }
            _ => {}
        }
    }
    for pair in segments.windows(2) {
        let [before, after] = pair else { continue };
        match (&before.state, &after.state) {
            (SegmentState::Sealed(before), SegmentState::Sealed(footer)) => {
                if footer.base_sequence != before.last_sequence + 1 {
                    return broken(after, "base sequence");
                }
                if footer.previous_chain != before.chain {
                    return broken(after, "previous chain hash");
                }
            }
            (SegmentState::Sealed(before), SegmentState::Unsealed(header)) => {
                if header.base_sequence != before.last_sequence + 1 {
                    return broken(after, "base sequence");
                }
                if header.previous_checksum != before.last_batch_checksum {
                    return broken(after, "previous checksum");
                }
            }
            (SegmentState::Unsealed(_), SegmentState::Sealed(_)) => {
                let path = segment_path(partition, before.place.segment);
                return Err(RecoveryError::MissingFooter { path });
            }
            // Checked when the earlier one is recovered: it must reach what the later header says.
            (SegmentState::Unsealed(_), SegmentState::Unsealed(_)) => {}
        }
    }
    Ok(())
}

fn remove_if_there(storage: &dyn Storage, path: &str) -> io::Result<()> {
    match storage.durable_remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
