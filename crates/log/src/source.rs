//! Where the readers take their bytes from, and how batches are found in them.

use bytes::Bytes;
use truthdb_io::BLOCK_BYTES;

use crate::batch::{
    BATCH_HEADER_BYTES, BatchHeader, CorruptBatch, StoredBatch, body_checksum, header_checksum,
};
use crate::error::{CorruptReason, Corruption, ReadError};
use crate::layout::{Place, align_block, array_at, is_zero, to_u64, to_usize, u32_at, u64_at};
use crate::segment::{
    Codec, PACKED_BATCH_HEADER_BYTES, PACKED_BLOCK_HEADER_BYTES, PackedBlockHeader, SegmentKind,
};

/// Why a source has no bytes.
pub(crate) enum NoBytes {
    /// The disk refused, at this offset.
    Io(u64, std::io::Error),
    /// The source holds less than was asked for; the offset of the end that is needed.
    Short(u64),
}

/// Bytes of a file, by offset.
pub(crate) trait Source {
    /// Exactly these bytes. Offsets of consecutive calls do not decrease much: a source may forget
    /// what lies a read window before.
    fn get(&mut self, offset: u64, bytes: usize) -> Result<Bytes, NoBytes>;
}

/// A file's identity for checks and error messages.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) path: String,
    pub(crate) place: Place,
    pub(crate) kind: SegmentKind,
}

/// What precedes the next item, as far as known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Link {
    /// Sequence that the next event must have.
    pub(crate) next_sequence: Option<u64>,
    /// `previous_checksum` that the next header must have.
    pub(crate) checksum: Option<u64>,
}

/// Why there is no item.
pub(crate) enum NoItem {
    Bytes(NoBytes),
    /// Damage at the offset; the last sequence is known if the header could be believed.
    Corrupt {
        offset: u64,
        last_sequence: Option<u64>,
        reason: CorruptReason,
    },
}

impl NoItem {
    fn corrupt(offset: u64, reason: impl Into<CorruptReason>) -> NoItem {
        NoItem::Corrupt {
            offset,
            last_sequence: None,
            reason: reason.into(),
        }
    }
}

impl From<NoBytes> for NoItem {
    fn from(no_bytes: NoBytes) -> NoItem {
        NoItem::Bytes(no_bytes)
    }
}

impl Subject {
    /// The error for the caller.
    pub(crate) fn error(&self, no_item: NoItem, next_sequence: u64) -> ReadError {
        match no_item {
            NoItem::Bytes(NoBytes::Io(offset, source)) => ReadError::Io {
                path: self.path.clone(),
                offset,
                source,
            },
            NoItem::Bytes(NoBytes::Short(offset)) => ReadError::Io {
                path: self.path.clone(),
                offset,
                source: std::io::ErrorKind::UnexpectedEof.into(),
            },
            NoItem::Corrupt {
                offset,
                last_sequence,
                reason,
            } => {
                let path = self.path.clone();
                let first_sequence = next_sequence;
                let last_sequence = last_sequence.filter(|last| *last >= first_sequence);
                Box::new(Corruption {
                    path,
                    offset,
                    first_sequence,
                    last_sequence,
                    reason,
                })
                .into()
            }
        }
    }
}

/// One header of the active layout, with the events if it is no mark.
pub(crate) struct ActiveItem {
    pub(crate) header: BatchHeader,
    pub(crate) header_checksum: u64,
    pub(crate) batch: Option<StoredBatch>,
}

/// The item at `position` of the active layout, which ends at `end`; `None` at the end. Moves
/// `position` over padding and over the item.
pub(crate) fn next_active(
    source: &mut dyn Source,
    subject: &Subject,
    position: &mut u64,
    end: u64,
    link: &Link,
) -> Result<Option<ActiveItem>, NoItem> {
    let boundary = align_block(*position);
    if *position < boundary.min(end) {
        let rest = source.get(*position, to_usize(boundary.min(end) - *position))?;
        if is_zero(&rest) {
            *position = boundary;
        }
    }
    if *position >= end {
        return Ok(None);
    }
    let offset = *position;
    let header_end = offset + to_u64(BATCH_HEADER_BYTES);
    if header_end > end {
        let reason = CorruptReason::BeyondEnd {
            needed: header_end,
            end,
        };
        return Err(NoItem::corrupt(offset, reason));
    }
    let encoded = source.get(offset, BATCH_HEADER_BYTES)?;
    let header = match BatchHeader::decode(&encoded) {
        Ok(header) => header,
        Err(_) if is_zero(&encoded) => {
            return Err(NoItem::corrupt(offset, CorruptReason::Blank));
        }
        Err(error) => return Err(NoItem::corrupt(offset, error)),
    };
    header
        .check_place(&subject.place, offset)
        .map_err(|error| NoItem::corrupt(offset, error))?;
    check_link(&header, link).map_err(|reason| NoItem::corrupt(offset, reason))?;
    let last_sequence = (!header.mark).then(|| header.next_sequence() - 1);
    let corrupt = |reason| NoItem::Corrupt {
        offset,
        last_sequence,
        reason,
    };
    if header.end_offset() > align_block(end) {
        return Err(corrupt(CorruptReason::BeyondEnd {
            needed: header.end_offset(),
            end,
        }));
    }
    let batch = if header.mark {
        None
    } else {
        let body = source.get(header_end, to_usize(header.body_bytes.into()))?;
        Some(checked_batch(&header, body).map_err(|error| corrupt(error.into()))?)
    };
    *position = header.end_offset();
    let header_checksum = header_checksum(&array_at(&encoded, 0));
    Ok(Some(ActiveItem {
        header,
        header_checksum,
        batch,
    }))
}

fn check_link(header: &BatchHeader, link: &Link) -> Result<(), CorruptReason> {
    if let Some(expected) = link
        .next_sequence
        .filter(|next| *next != header.first_sequence)
    {
        let found = header.first_sequence;
        return Err(CorruptReason::Order {
            field: "first sequence",
            expected,
            found,
        });
    }
    if let Some(expected) = link
        .checksum
        .filter(|checksum| *checksum != header.previous_checksum)
    {
        let found = header.previous_checksum;
        return Err(CorruptReason::Order {
            field: "previous checksum",
            expected,
            found,
        });
    }
    Ok(())
}

/// The batch of a believed header, if the table and every event are what was written.
pub(crate) fn checked_batch(
    header: &BatchHeader,
    body: Bytes,
) -> Result<StoredBatch, CorruptBatch> {
    let (found, computed) = (
        header.body_checksum,
        body_checksum(&body, header.event_count),
    );
    if found != computed {
        return Err(CorruptBatch::Table { found, computed });
    }
    let batch = StoredBatch {
        first_sequence: header.first_sequence,
        timestamp_ns: header.timestamp_ns,
        event_count: header.event_count,
        body,
    };
    batch.verify()?;
    Ok(batch)
}

/// The batches of the packed block at `position`, which ends at `end`; `None` at the end. Moves
/// `position` over the block.
pub(crate) fn next_packed(
    source: &mut dyn Source,
    subject: &Subject,
    position: &mut u64,
    end: u64,
    link: &Link,
) -> Result<Option<Vec<StoredBatch>>, NoItem> {
    let offset = *position;
    // Only the padding to a block may follow the last block of batches.
    if offset >= end {
        return Ok(None);
    }
    if end - offset < to_u64(BLOCK_BYTES) && is_zero(&source.get(offset, to_usize(end - offset))?) {
        *position = end;
        return Ok(None);
    }
    let data_at = offset + to_u64(PACKED_BLOCK_HEADER_BYTES);
    if data_at > end {
        let reason = CorruptReason::BeyondEnd {
            needed: data_at,
            end,
        };
        return Err(NoItem::corrupt(offset, reason));
    }
    let encoded = source.get(offset, PACKED_BLOCK_HEADER_BYTES)?;
    let header = PackedBlockHeader::decode(&encoded)
        .and_then(|header| header.check_place(&subject.place, offset).map(|()| header))
        .map_err(|error| NoItem::corrupt(offset, error))?;
    let last_sequence = Some(header.first_sequence + u64::from(header.event_count) - 1);
    let corrupt = |reason| NoItem::Corrupt {
        offset,
        last_sequence,
        reason,
    };
    if let Some(expected) = link
        .next_sequence
        .filter(|next| *next != header.first_sequence)
    {
        let found = header.first_sequence;
        return Err(corrupt(CorruptReason::Order {
            field: "first sequence",
            expected,
            found,
        }));
    }
    if header.end_offset() > end {
        return Err(corrupt(CorruptReason::BeyondEnd {
            needed: header.end_offset(),
            end,
        }));
    }
    let stored = source.get(data_at, to_usize(header.stored_bytes.into()))?;
    header
        .check_stored(&stored)
        .map_err(|error| corrupt(error.into()))?;
    let batches = unpack(&header, stored).map_err(corrupt)?;
    *position = header.end_offset();
    Ok(Some(batches))
}

/// The batches of a packed block whose stored bytes were checked.
fn unpack(header: &PackedBlockHeader, stored: Bytes) -> Result<Vec<StoredBatch>, CorruptReason> {
    let fail = |reason: &str| CorruptReason::Unpack {
        reason: reason.to_owned(),
    };
    let raw_bytes = to_usize(header.raw_bytes.into());
    let raw = match header.codec {
        Codec::None => stored,
        Codec::Zstd => {
            let raw = zstd::bulk::decompress(&stored, raw_bytes).map_err(|error| {
                CorruptReason::Unpack {
                    reason: error.to_string(),
                }
            })?;
            Bytes::from(raw)
        }
    };
    if raw.len() != raw_bytes {
        return Err(fail("its length is not that of its header"));
    }
    let mut batches = Vec::new();
    let mut at = 0;
    let mut next_sequence = header.first_sequence;
    let end_sequence = header.first_sequence + u64::from(header.event_count);
    while at < raw.len() {
        let body_at = at + PACKED_BATCH_HEADER_BYTES;
        if body_at > raw.len() {
            return Err(fail("a batch is cut short"));
        }
        let (event_count, body_bytes) = (u32_at(&raw, at), to_usize(u32_at(&raw, at + 4).into()));
        let timestamp_ns = u64_at(&raw, at + 8);
        let left = end_sequence - next_sequence;
        if body_bytes > raw.len() - body_at || event_count == 0 || u64::from(event_count) > left {
            return Err(fail("a batch is larger than its block"));
        }
        let body = raw.slice(body_at..body_at + body_bytes);
        let batch = StoredBatch {
            first_sequence: next_sequence,
            timestamp_ns,
            event_count,
            body,
        };
        batch.verify()?;
        next_sequence += u64::from(event_count);
        batches.push(batch);
        at = (body_at + body_bytes).next_multiple_of(8);
    }
    let counted = batches.len() == to_usize(header.batch_count.into());
    if next_sequence != end_sequence || !counted {
        return Err(fail(
            "it does not hold the batches and events of its header",
        ));
    }
    Ok(batches)
}
