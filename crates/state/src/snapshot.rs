//! The manifest of a snapshot: which states it holds, and the chunks that their rows are in.
//!
//! One file of whole blocks under one checksum. It is small beside the chunks, and nothing in it is
//! believed before all of it was checked.

use crate::chunk::{ChunkHash, ChunkRef};
use crate::fingerprint::Fingerprint;
use crate::layout::{FieldReader, FieldWriter, StateFormatError, StatePlace, put_checksum};
use crate::limits::{KEY_BYTES_MAX, NAME_BYTES_MAX, TABLES_MAX, small, to_u64};

/// Newest version of the manifests of snapshots, and the one written.
pub const SNAPSHOT_VERSION: u16 = 1;
/// Most states in one snapshot.
pub const SNAPSHOT_ENTRIES_MAX: usize = 1024;
/// Most bytes of a manifest.
pub(crate) const SNAPSHOT_FILE_BYTES_MAX: u64 = 1 << 30;

const SNAPSHOT: &str = "manifest of the snapshot";
const SNAPSHOT_MAGIC: [u8; 4] = *b"TSNP";
/// Where the length of the manifest stands, in bytes.
const LENGTH_OFFSET: usize = 56;

/// A table as its module declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotTable {
    /// Name, at most [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Version of what its rows hold.
    pub version: u32,
}

/// Whose state it is, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotState {
    /// Name of the module, at most [`NAME_BYTES_MAX`] bytes.
    pub module: String,
    /// Its generation.
    pub generation: u32,
    /// BLAKE3 of the module's bytes.
    pub module_hash: [u8; 32],
    /// Id of the engine's semantics under which the state was made.
    pub semantics_id: [u8; 32],
    /// Last sequence that is folded into the state; not above that of the snapshot.
    pub applied_sequence: u64,
    /// The tables in the order of their indices.
    pub tables: Vec<SnapshotTable>,
}

/// One state in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Whose state it is.
    pub state: SnapshotState,
    /// Fingerprint of all rows.
    pub fingerprint: Fingerprint,
    /// Number of rows.
    pub rows: u64,
    /// Bytes of all keys and values.
    pub bytes: u64,
    /// The rows, in the order of (table, key).
    pub chunks: Vec<ChunkRef>,
}

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotManifest {
    /// Database and partition.
    pub place: StatePlace,
    /// The sequence that names it.
    pub sequence: u64,
    /// Time of that sequence, nanoseconds since 1970 UTC.
    pub timestamp_ns: u64,
    /// The states, in the order of module and generation.
    pub entries: Vec<SnapshotEntry>,
}

impl SnapshotManifest {
    /// The file, padded to a whole block.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = FieldWriter::default();
        fields
            .u64(0)
            .bytes(&SNAPSHOT_MAGIC)
            .u16(SNAPSHOT_VERSION)
            .u16(0)
            .bytes(&self.place.database_id)
            .u32(self.place.partition)
            .u32(small(self.entries.len()))
            .u64(self.sequence)
            .u64(self.timestamp_ns)
            .u64(0);
        for entry in &self.entries {
            encode_entry(&mut fields, entry);
        }
        let mut bytes = fields.bytes;
        let length = to_u64(bytes.len());
        bytes[LENGTH_OFFSET..LENGTH_OFFSET + 8].copy_from_slice(&length.to_le_bytes());
        bytes.resize(crate::blocks::align(bytes.len()), 0);
        put_checksum(&mut bytes, 0);
        bytes
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`StateFormatError`] if it is not exactly what [`SnapshotManifest::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotManifest, StateFormatError> {
        let mut fields = FieldReader::new(SNAPSHOT, bytes);
        fields.preamble(SNAPSHOT_MAGIC, SNAPSHOT_VERSION, 0)?;
        fields.reserved(2)?;
        let place = StatePlace {
            database_id: fields.array()?,
            partition: fields.u32()?,
        };
        let entry_count = fields.u32()?;
        let (sequence, timestamp_ns) = (fields.u64()?, fields.u64()?);
        let length = fields.u64()?;
        let mut entries: Vec<SnapshotEntry> = Vec::new();
        for _ in 0..entry_count {
            let entry = decode_entry(&mut fields)?;
            if entry.state.applied_sequence > sequence {
                return Err(fields.field("applied sequence", "it is not above the snapshot's"));
            }
            let name = |entry: &SnapshotEntry| {
                let state = &entry.state;
                (state.module.clone(), state.generation)
            };
            if entries
                .last()
                .is_some_and(|last| name(last) >= name(&entry))
            {
                return Err(fields.field("module", "modules ascend by name and generation"));
            }
            entries.push(entry);
        }
        if length != to_u64(fields.at()) || bytes.len() != crate::blocks::align(fields.at()) {
            return Err(fields.field("length", "it is that of the manifest"));
        }
        fields.padding()?;
        Ok(SnapshotManifest {
            place,
            sequence,
            timestamp_ns,
            entries,
        })
    }

    /// Names of all chunks, some perhaps more than once.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkHash> {
        self.entries
            .iter()
            .flat_map(|entry| entry.chunks.iter().map(|chunk| chunk.hash))
    }
}

fn name(fields: &mut FieldWriter, name: &str) {
    assert!(name.len() <= NAME_BYTES_MAX, "names were checked");
    let [length, ..] = small(name.len()).to_le_bytes();
    fields.u8(length).bytes(name.as_bytes());
}

fn encode_entry(fields: &mut FieldWriter, entry: &SnapshotEntry) {
    let state = &entry.state;
    name(fields, &state.module);
    fields
        .u32(state.generation)
        .bytes(&state.module_hash)
        .bytes(&state.semantics_id)
        .u64(state.applied_sequence)
        .bytes(&entry.fingerprint.to_bytes())
        .u64(entry.rows)
        .u64(entry.bytes)
        .u32(small(state.tables.len()))
        .u32(small(entry.chunks.len()));
    for table in &state.tables {
        name(fields, &table.name);
        fields.u32(table.version);
    }
    for chunk in &entry.chunks {
        let [low, high, ..] = small(chunk.first_key.len()).to_le_bytes();
        fields
            .bytes(&chunk.hash.0)
            .u32(chunk.table)
            .u32(chunk.rows)
            .u32(chunk.raw_bytes)
            .bytes(&[low, high])
            .bytes(&chunk.first_key);
    }
}

fn decode_name(fields: &mut FieldReader<'_>) -> Result<String, StateFormatError> {
    let length = usize::from(fields.u8()?);
    if length > NAME_BYTES_MAX {
        return Err(fields.field("name", "names have at most 64 bytes"));
    }
    let bytes = fields.bytes(length)?;
    let name = std::str::from_utf8(bytes).map_err(|_| fields.field("name", "names are UTF-8"))?;
    Ok(name.to_owned())
}

fn decode_entry(fields: &mut FieldReader<'_>) -> Result<SnapshotEntry, StateFormatError> {
    let module = decode_name(fields)?;
    let generation = fields.u32()?;
    let (module_hash, semantics_id) = (fields.array()?, fields.array()?);
    let applied_sequence = fields.u64()?;
    let fingerprint = Fingerprint::from_bytes(&fields.array()?);
    let (rows, bytes) = (fields.u64()?, fields.u64()?);
    let (table_count, chunk_count) = (fields.u32()?, fields.u32()?);
    if table_count > TABLES_MAX {
        return Err(fields.field("tables", "they are within the limit"));
    }
    let mut tables = Vec::new();
    for _ in 0..table_count {
        tables.push(SnapshotTable {
            name: decode_name(fields)?,
            version: fields.u32()?,
        });
    }
    let mut chunks: Vec<ChunkRef> = Vec::new();
    let mut left = rows;
    for _ in 0..chunk_count {
        let hash = ChunkHash(fields.array()?);
        let (table, rows, raw_bytes) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let key_bytes = usize::from(fields.u16()?);
        if table >= table_count || key_bytes > KEY_BYTES_MAX || rows == 0 {
            return Err(fields.field("chunk", "its rows are rows of a table"));
        }
        let first_key = fields.bytes(key_bytes)?;
        let follows = |last: &ChunkRef| (last.table, &last.first_key[..]) < (table, first_key);
        if !chunks.last().is_none_or(follows) {
            return Err(fields.field("chunk", "chunks ascend by table and key"));
        }
        left = left
            .checked_sub(rows.into())
            .ok_or_else(|| fields.field("rows", "they are those of the chunks"))?;
        chunks.push(ChunkRef {
            hash,
            table,
            rows,
            raw_bytes,
            first_key: first_key.to_vec(),
        });
    }
    if left > 0 {
        return Err(fields.field("rows", "they are those of the chunks"));
    }
    Ok(SnapshotEntry {
        state: SnapshotState {
            module,
            generation,
            module_hash,
            semantics_id,
            applied_sequence,
            tables,
        },
        fingerprint,
        rows,
        bytes,
        chunks,
    })
}
