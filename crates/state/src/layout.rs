//! Little-endian fields at fixed places, checksums, and what can be wrong with a structure.

use crate::limits::to_u64;

/// Where derived state belongs. Every structure on disk is bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatePlace {
    /// Id of the database.
    pub database_id: [u8; 16],
    /// Partition, from 0.
    pub partition: u32,
}

impl StatePlace {
    /// The partition's directory, relative to the data directory.
    pub(crate) fn directory(&self) -> String {
        format!("partition-{:04}", self.partition)
    }
}

/// What is wrong with a structure on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateFormatError {
    /// There are fewer or more bytes than the structure has.
    #[error("{structure} has {found} bytes, {expected} are expected")]
    Length {
        /// Name of the structure.
        structure: &'static str,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The four letters that begin the structure are others.
    #[error("{structure} does not begin with its magic letters")]
    Magic {
        /// Name of the structure.
        structure: &'static str,
    },
    /// A checksum or hash does not match the bytes.
    #[error("{what} of the {structure} does not match its bytes")]
    Checksum {
        /// Name of the structure.
        structure: &'static str,
        /// Which checksum.
        what: &'static str,
    },
    /// The structure was written by a newer release.
    #[error(
        "{structure} has format version {found}, this program reads versions up to {supported}"
    )]
    NewerFormat {
        /// Name of the structure.
        structure: &'static str,
        /// Version on disk.
        found: u16,
        /// Newest version that this program reads.
        supported: u16,
    },
    /// A field holds what it never may, though the checksum matches.
    #[error("{field} of the {structure} is not valid: {reason}")]
    Field {
        /// Name of the structure.
        structure: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it should hold.
        reason: &'static str,
    },
    /// The structure belongs elsewhere.
    #[error("{field} of the {structure} is another than that of its place")]
    Misplaced {
        /// Name of the structure.
        structure: &'static str,
        /// Name of the field.
        field: &'static str,
    },
}

/// Appends fields.
#[derive(Debug, Default)]
pub(crate) struct FieldWriter {
    pub(crate) bytes: Vec<u8>,
}

impl FieldWriter {
    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Zeros up to a length.
    pub(crate) fn zeros_to(&mut self, length: usize) -> &mut Self {
        assert!(self.bytes.len() <= length, "the fields fit the structure");
        self.bytes.resize(length, 0);
        self
    }
}

/// Takes fields off the front; every read is checked against what is there.
#[derive(Debug, Clone)]
pub(crate) struct FieldReader<'a> {
    structure: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(structure: &'static str, bytes: &'a [u8]) -> FieldReader<'a> {
        FieldReader {
            structure,
            bytes,
            at: 0,
        }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], StateFormatError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or_else(|| StateFormatError::Length {
            structure: self.structure,
            expected: to_u64(self.at).saturating_add(to_u64(length)),
            found: to_u64(self.bytes.len()),
        })?;
        self.at += length;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], StateFormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, StateFormatError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, StateFormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, StateFormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, StateFormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `length` bytes must be zero.
    pub(crate) fn reserved(&mut self, length: usize) -> Result<(), StateFormatError> {
        if is_zero(self.bytes(length)?) {
            Ok(())
        } else {
            Err(self.field("reserved", "reserved bytes are zero"))
        }
    }

    /// Everything from here on must be zero.
    pub(crate) fn padding(&mut self) -> Result<(), StateFormatError> {
        self.reserved(self.bytes.len() - self.at)
    }

    pub(crate) fn field(&self, field: &'static str, reason: &'static str) -> StateFormatError {
        StateFormatError::Field {
            structure: self.structure,
            field,
            reason,
        }
    }

    pub(crate) fn misplaced(&self, field: &'static str) -> StateFormatError {
        StateFormatError::Misplaced {
            structure: self.structure,
            field,
        }
    }

    /// Takes `checksum u64 | magic | version u16` off the front. The checksum is of everything
    /// behind itself, under `seed`.
    ///
    /// The magic comes first, so that a wrong kind of structure is called that; the version last, so
    /// that a damaged one is not taken for a newer one.
    pub(crate) fn preamble(
        &mut self,
        magic: [u8; 4],
        version: u16,
        seed: u64,
    ) -> Result<u64, StateFormatError> {
        let structure = self.structure;
        let stored = self.u64()?;
        if self.array::<4>()? != magic {
            return Err(StateFormatError::Magic { structure });
        }
        if stored != checksum(&self.bytes[8..], seed) {
            let what = "the checksum";
            return Err(StateFormatError::Checksum { structure, what });
        }
        let found = self.u16()?;
        if found > version {
            return Err(StateFormatError::NewerFormat {
                structure,
                found,
                supported: version,
            });
        }
        if found == 0 {
            return Err(self.field("version", "versions begin with 1"));
        }
        Ok(stored)
    }

    /// Takes database id and partition off the front, which must be those of `place`.
    pub(crate) fn place(&mut self, place: &StatePlace) -> Result<(), StateFormatError> {
        if self.array::<16>()? != place.database_id {
            return Err(self.misplaced("database id"));
        }
        if self.u32()? != place.partition {
            return Err(self.misplaced("partition"));
        }
        Ok(())
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<32>();
    chunks.iter().all(|chunk| *chunk == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

/// xxHash64.
pub(crate) fn checksum(bytes: &[u8], seed: u64) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, seed)
}

/// Puts the checksum of everything behind the first 8 bytes into them, and gives it.
pub(crate) fn put_checksum(bytes: &mut [u8], seed: u64) -> u64 {
    let value = checksum(&bytes[8..], seed);
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    value
}
