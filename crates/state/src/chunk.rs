//! Chunks: runs of rows that snapshots are made of, named by the hash of their rows.
//!
//! Where a chunk ends depends on the rows in it alone: after a row whose key's hash is small for the
//! row's length, once the chunk has [`CHUNK_BYTES_MIN`], or when it has [`CHUNK_BYTES_MAX`]. So equal
//! tables have equal chunks whatever their history, and a change in one place leaves the chunks of
//! other places as they are: a snapshot writes only those that no snapshot before it has.

use crate::cursor::Cursor;
use crate::layout::{
    FieldReader, FieldWriter, StateFormatError, StatePlace, checksum, put_checksum,
};
use crate::limits::{KEY_BYTES_MAX, TABLES_MAX, VALUE_BYTES_MAX, small, to_u64, to_usize};
use crate::view::View;

/// Newest version of chunks, and the one written.
pub const CHUNK_VERSION: u16 = 1;
/// A chunk has at least so many bytes before compression, unless it is the last of its table.
pub const CHUNK_BYTES_MIN: usize = 16 * 1024;
/// A chunk has about so many bytes more than the minimum on average.
pub const CHUNK_BYTES_MEAN: usize = 48 * 1024;
/// A chunk that has so many bytes ends.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a chunk's file before its rows.
pub const CHUNK_HEADER_BYTES: usize = 96;

/// Bytes before the key of each row.
const ROW_HEADER_BYTES: usize = 6;
/// Bytes before the rows.
const ROWS_HEADER_BYTES: usize = 8;
/// Most bytes of a chunk before compression: the last row may go over the limit.
const RAW_BYTES_MAX: usize =
    ROWS_HEADER_BYTES + CHUNK_BYTES_MAX + ROW_HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX;
/// Most bytes of a chunk's file: one that does not compress is stored as it is.
pub(crate) const CHUNK_FILE_BYTES_MAX: u64 =
    crate::blocks::align(CHUNK_HEADER_BYTES + RAW_BYTES_MAX) as u64;
/// Seed of the hash of keys that says where chunks end.
const BOUNDARY_SEED: u64 = 0x5452_5554_4843_484b;
/// Compression that costs little.
const ZSTD_LEVEL: i32 = 1;
const CODEC_NONE: u8 = 0;
const CODEC_ZSTD: u8 = 1;

const CHUNK: &str = "chunk";
const CHUNK_MAGIC: [u8; 4] = *b"TCHK";

/// Name of a chunk: BLAKE3 of its table, number of rows and rows, before compression.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash(pub [u8; 32]);

impl std::fmt::Display for ChunkHash {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkHash({self})")
    }
}

/// A row's length in a chunk, in bytes.
fn row_bytes(key: &[u8], value: &[u8]) -> usize {
    ROW_HEADER_BYTES + key.len() + value.len()
}

/// Whether a chunk may end after this row: of all bytes, about one in [`CHUNK_BYTES_MEAN`].
fn is_boundary(key: &[u8], value: &[u8]) -> bool {
    let share = u128::from(checksum(key, BOUNDARY_SEED)) * u128::from(to_u64(CHUNK_BYTES_MEAN));
    share < u128::from(to_u64(row_bytes(key, value))) << 64
}

/// How far the chunks of a version are made.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChunkPosition {
    table: u32,
    /// First key that may follow.
    start: Vec<u8>,
}

/// A chunk before compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    raw: Vec<u8>,
    table: u32,
    /// Where each row begins in `raw`.
    starts: Vec<u32>,
}

impl Chunk {
    /// The next chunk of a version; none at its end.
    pub(crate) fn next(view: &View, position: &mut ChunkPosition) -> Option<Chunk> {
        while let Some(tree) = view.tree(position.table) {
            let mut cursor = Cursor::at_or_after(tree, &position.start);
            let mut chunk = Chunk {
                raw: vec![0; ROWS_HEADER_BYTES],
                table: position.table,
                starts: Vec::new(),
            };
            while let Some((key, value)) = cursor.row() {
                chunk.push(key, value);
                let bytes = chunk.raw.len() - ROWS_HEADER_BYTES;
                if bytes >= CHUNK_BYTES_MAX || bytes >= CHUNK_BYTES_MIN && is_boundary(key, value) {
                    break;
                }
                cursor.advance();
            }
            if let Some(last) = chunk.len().checked_sub(1) {
                // The lowest key above the last one.
                position.start = [chunk.row(last).0, &[0]].concat();
                let rows = small(chunk.len());
                chunk.raw[..4].copy_from_slice(&chunk.table.to_le_bytes());
                chunk.raw[4..8].copy_from_slice(&rows.to_le_bytes());
                return Some(chunk);
            }
            position.table += 1;
            position.start.clear();
        }
        None
    }

    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.starts.push(small(self.raw.len()));
        let [low, high, ..] = small(key.len()).to_le_bytes();
        self.raw.extend_from_slice(&[low, high]);
        self.raw
            .extend_from_slice(&small(value.len()).to_le_bytes());
        self.raw.extend_from_slice(key);
        self.raw.extend_from_slice(value);
    }

    /// Reads a chunk before compression.
    ///
    /// # Errors
    /// [`StateFormatError`] if limits, order, count or lengths do not hold.
    pub fn decode(raw: Vec<u8>) -> Result<Chunk, StateFormatError> {
        let mut fields = FieldReader::new(CHUNK, &raw);
        let table = fields.u32()?;
        let rows = fields.u32()?;
        if table >= TABLES_MAX {
            return Err(fields.field("table", "it is within the limit"));
        }
        let mut starts = Vec::new();
        let mut previous: Option<&[u8]> = None;
        for _ in 0..rows {
            starts.push(small(fields.at()));
            let key_bytes = usize::from(fields.u16()?);
            let value_bytes = to_usize(fields.u32()?.into());
            if key_bytes > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX {
                return Err(fields.field("lengths", "they are within the limits"));
            }
            let key = fields.bytes(key_bytes)?;
            fields.bytes(value_bytes)?;
            if previous.is_some_and(|previous| previous >= key) {
                return Err(fields.field("keys", "they ascend"));
            }
            previous = Some(key);
        }
        if fields.at() != raw.len() || rows == 0 {
            return Err(fields.field("rows", "they fill the chunk"));
        }
        Ok(Chunk { raw, table, starts })
    }

    /// Table of the rows.
    pub fn table(&self) -> u32 {
        self.table
    }

    /// Number of rows, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "no chunk is empty")]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Key and value of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, at: usize) -> (&[u8], &[u8]) {
        let start = to_usize(self.starts[at].into());
        let header = &self.raw[start..start + ROW_HEADER_BYTES];
        let key_bytes = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let end = self
            .starts
            .get(at + 1)
            .map_or(self.raw.len(), |end| to_usize((*end).into()));
        self.raw[start + ROW_HEADER_BYTES..end].split_at(key_bytes)
    }

    /// Index of the first row whose key is not below `key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.row(middle).0 < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Its name.
    pub fn hash(&self) -> ChunkHash {
        ChunkHash(*blake3::hash(&self.raw).as_bytes())
    }

    /// Bytes before compression.
    pub fn raw_bytes(&self) -> u32 {
        small(self.raw.len())
    }

    /// The bytes that the hash is of.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The chunk's file, without the padding to a whole block.
    ///
    /// # Errors
    /// The compressor's.
    pub fn encode(&self, place: &StatePlace) -> std::io::Result<Vec<u8>> {
        let compressed = zstd::bulk::compress(&self.raw, ZSTD_LEVEL)?;
        let (codec, stored) = if compressed.len() < self.raw.len() {
            (CODEC_ZSTD, &compressed)
        } else {
            (CODEC_NONE, &self.raw)
        };
        let mut fields = FieldWriter::default();
        fields
            .u64(0)
            .bytes(&CHUNK_MAGIC)
            .u16(CHUNK_VERSION)
            .u8(codec)
            .u8(0)
            .bytes(&place.database_id)
            .u32(place.partition)
            .u32(0)
            .u32(self.raw_bytes())
            .u32(small(stored.len()))
            .u64(checksum(stored, 0))
            .bytes(&self.hash().0)
            .zeros_to(CHUNK_HEADER_BYTES);
        put_checksum(&mut fields.bytes, 0);
        fields.bytes(stored);
        Ok(fields.bytes)
    }

    /// Reads a chunk's file, padding included. It must be the chunk of this name, of this place.
    ///
    /// # Errors
    /// [`StateFormatError`] if it is not exactly that.
    pub fn decode_file(
        bytes: &[u8],
        place: &StatePlace,
        hash: ChunkHash,
    ) -> Result<Chunk, StateFormatError> {
        let mut file = FieldReader::new(CHUNK, bytes);
        let header = file.bytes(CHUNK_HEADER_BYTES)?;
        let mut fields = FieldReader::new(CHUNK, header);
        fields.preamble(CHUNK_MAGIC, CHUNK_VERSION, 0)?;
        let codec = fields.u8()?;
        fields.reserved(1)?;
        fields.place(place)?;
        fields.reserved(4)?;
        let (raw_bytes, stored_bytes) = (fields.u32()?, fields.u32()?);
        let stored_checksum = fields.u64()?;
        if fields.array()? != hash.0 {
            return Err(fields.misplaced("hash"));
        }
        fields.padding()?;
        let raw_bytes = to_usize(raw_bytes.into());
        if raw_bytes > RAW_BYTES_MAX {
            return Err(fields.field("raw bytes", "they are within the limit"));
        }
        let stored = file.bytes(to_usize(stored_bytes.into()))?;
        if checksum(stored, 0) != stored_checksum {
            let (structure, what) = (CHUNK, "the checksum of the rows");
            return Err(StateFormatError::Checksum { structure, what });
        }
        let raw = match codec {
            CODEC_NONE => stored.to_vec(),
            CODEC_ZSTD => zstd::bulk::decompress(stored, raw_bytes)
                .map_err(|_| fields.field("rows", "they unpack to what the header says"))?,
            _ => return Err(fields.field("codec", "it is 0 or 1")),
        };
        if raw.len() != raw_bytes {
            return Err(fields.field("raw bytes", "they are what the rows unpack to"));
        }
        if bytes.len() != crate::blocks::align(file.at()) {
            return Err(file.field("length", "the file ends with the rows' last block"));
        }
        file.padding()?;
        if *blake3::hash(&raw).as_bytes() != hash.0 {
            let (structure, what) = (CHUNK, "the hash");
            return Err(StateFormatError::Checksum { structure, what });
        }
        Chunk::decode(raw)
    }
}

/// A chunk as a snapshot refers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its name.
    pub hash: ChunkHash,
    /// Table of its rows.
    pub table: u32,
    /// Number of rows, at least 1.
    pub rows: u32,
    /// Bytes before compression.
    pub raw_bytes: u32,
    /// Key of its first row.
    pub first_key: Vec<u8>,
}

impl ChunkRef {
    /// What a snapshot says about a chunk.
    pub fn of(chunk: &Chunk) -> ChunkRef {
        ChunkRef::of_hashed(chunk, chunk.hash())
    }

    /// The same for a chunk whose hash is known.
    pub(crate) fn of_hashed(chunk: &Chunk, hash: ChunkHash) -> ChunkRef {
        ChunkRef {
            hash,
            table: chunk.table(),
            rows: small(chunk.len()),
            raw_bytes: chunk.raw_bytes(),
            first_key: chunk.row(0).0.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tables;

    fn chunks(view: &View) -> Vec<Chunk> {
        let mut position = ChunkPosition::default();
        std::iter::from_fn(|| Chunk::next(view, &mut position)).collect()
    }

    fn hashes(view: &View) -> std::collections::BTreeSet<ChunkHash> {
        chunks(view).iter().map(Chunk::hash).collect()
    }

    fn key(n: u32) -> Vec<u8> {
        format!("aircraft/N{n:06}").into_bytes()
    }

    fn filled(rows: u32, order: impl Fn(u32) -> u32) -> Tables {
        let mut tables = Tables::new(2);
        for batch in 0..rows.div_ceil(1000) {
            tables.begin();
            for n in batch * 1000..rows.min(batch * 1000 + 1000) {
                let n = order(n);
                tables.set(n % 2, &key(n), &[7; 40]).unwrap();
            }
            tables.commit();
        }
        tables
    }

    #[test]
    fn equal_rows_have_equal_chunks_whatever_their_history() {
        const ROWS: u32 = 30_000;
        let ascending = filled(ROWS, |n| n).view();
        let mut other = filled(ROWS, |n| (n * 7919) % ROWS);
        for n in 0..5_000 {
            other.begin();
            other
                .set(n % 2, format!("gone {n}").as_bytes(), &[9; 100])
                .unwrap();
            other.set(n % 2, &key(n), b"meanwhile").unwrap();
            other.commit();
        }
        other.begin();
        other.delete_range(0, b"gone", Some(b"gonf")).unwrap();
        other.delete_range(1, b"gone", Some(b"gonf")).unwrap();
        (0..5_000).for_each(|n| other.set(n % 2, &key(n), &[7; 40]).unwrap());
        other.commit();
        assert_eq!(chunks(&ascending), chunks(&other.view()));
        assert!(chunks(&ascending).len() > 20);
    }

    #[test]
    fn few_changes_make_few_chunks() {
        const ROWS: u32 = 100_000;
        let mut tables = filled(ROWS, |n| n);
        let before = hashes(&tables.view());
        // Values that change, rows that come and rows that go, in ten places.
        tables.begin();
        for n in 0..10 {
            let at = n * 9_973 + 17;
            tables.set(at % 2, &key(at), b"other").unwrap();
            tables.delete(at % 2, &key(at + 2)).unwrap();
            let new = [key(at), b"x".to_vec()].concat();
            tables.set(at % 2, &new, &[3; 90]).unwrap();
        }
        tables.commit();
        let after = hashes(&tables.view());
        let new = after.difference(&before).count();
        assert!(before.len() > 80, "{} chunks", before.len());
        assert!(
            (5..=20).contains(&new),
            "{new} of {} chunks are new",
            after.len()
        );
    }

    #[test]
    fn chunks_are_of_a_useful_size() {
        let view = filled(100_000, |n| n).view();
        let chunks = chunks(&view);
        let bytes: usize = chunks.iter().map(|chunk| chunk.raw.len()).sum();
        let mean = bytes / chunks.len();
        assert!(
            (40 * 1024..100 * 1024).contains(&mean),
            "mean of {mean} bytes"
        );
        let small = chunks
            .iter()
            .filter(|chunk| chunk.raw.len() < CHUNK_BYTES_MIN);
        assert!(
            small.count() <= 2,
            "only the last chunk of a table is small"
        );
        let rows: usize = chunks.iter().map(Chunk::len).sum();
        assert_eq!(rows as u64, view.rows());
    }

    #[test]
    fn a_file_is_read_back_and_nothing_else_is() {
        let mut tables = filled(50, |n| n);
        let [chunk, _] = &chunks(&tables.view())[..] else {
            panic!("one chunk a table");
        };
        let place = StatePlace {
            database_id: [5; 16],
            partition: 1,
        };
        let mut file = chunk.encode(&place).unwrap();
        file.resize(crate::blocks::align(file.len()), 0);
        let hash = chunk.hash();
        assert_eq!(Chunk::decode_file(&file, &place, hash).unwrap(), *chunk);
        for at in 0..file.len() {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(Chunk::decode_file(&flipped, &place, hash).is_err(), "{at}");
            assert!(
                Chunk::decode_file(&file[..at], &place, hash).is_err(),
                "{at}"
            );
        }
        let other = StatePlace {
            partition: 2,
            ..place
        };
        assert!(Chunk::decode_file(&file, &other, hash).is_err());
        assert!(Chunk::decode_file(&file, &place, ChunkHash([1; 32])).is_err());
    }

    #[test]
    fn a_row_of_the_largest_size_is_a_chunk() {
        let mut tables = Tables::new(1);
        tables.begin();
        for n in 0..3_u8 {
            // Bytes that do not compress.
            let mut value = vec![0; VALUE_BYTES_MAX];
            blake3::Hasher::new()
                .update(&[n])
                .finalize_xof()
                .fill(&mut value);
            tables.set(0, &[n; KEY_BYTES_MAX], &value).unwrap();
        }
        tables.commit();
        let place = StatePlace {
            database_id: [5; 16],
            partition: 1,
        };
        let chunks = chunks(&tables.view());
        assert_eq!(chunks.len(), 3);
        for chunk in &chunks {
            let mut file = chunk.encode(&place).unwrap();
            file.resize(crate::blocks::align(file.len()), 0);
            assert!(to_u64(file.len()) <= CHUNK_FILE_BYTES_MAX);
            assert_eq!(
                Chunk::decode_file(&file, &place, chunk.hash()).unwrap(),
                *chunk
            );
        }
    }
}
