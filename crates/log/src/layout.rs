//! Reading and writing little-endian fields at fixed places of a structure.

/// Where a structure lies. Every header on disk names it, so that a block in the wrong place is
/// noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Id of the database.
    pub database_id: [u8; 16],
    /// Partition, from 0.
    pub partition: u32,
    /// Segment of the partition, from 1.
    pub segment: u32,
}

/// Rounds up to a multiple of 8, the alignment of batches.
pub(crate) const fn align8(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}

/// Rounds up to a whole block.
pub(crate) const fn align_block(bytes: u64) -> u64 {
    bytes.next_multiple_of(truthdb_io::BLOCK_BYTES as u64)
}

/// A length in memory as a number on disk.
pub(crate) fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("lengths in memory fit 64 bits")
}

/// A number from disk as a length in memory; lengths that do not fit are cut to one that no buffer
/// has.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Writes fields one after the other into a zeroed structure.
pub(crate) struct FieldWriter<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> FieldWriter<'a> {
    pub(crate) fn new(bytes: &'a mut [u8], at: usize) -> FieldWriter<'a> {
        FieldWriter { bytes, at }
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + value.len()].copy_from_slice(value);
        self.at += value.len();
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

    pub(crate) fn place(&mut self, place: &Place) -> &mut Self {
        self.bytes(&place.database_id)
            .u32(place.partition)
            .u32(place.segment)
    }
}

/// Reads fields one after the other. Running over the end is a bug: callers check the length first.
pub(crate) struct FieldReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> FieldReader<'a> {
        FieldReader { bytes, at }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let value = array_at(self.bytes, self.at);
        self.at += N;
        value
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(crate) fn place(&mut self) -> Place {
        Place {
            database_id: self.array(),
            partition: self.u32(),
            segment: self.u32(),
        }
    }

    /// Whether everything from here to the end is zero.
    pub(crate) fn rest_is_zero(&self) -> bool {
        is_zero(&self.bytes[self.at..])
    }
}

/// `N` bytes at `at`; the caller knows that they are there.
#[inline]
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..]
        .first_chunk()
        .expect("the caller checked the length")
}

/// The u64 at `at`; the caller knows that it is there.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// The u32 at `at`; the caller knows that it is there.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<32>();
    chunks.iter().all(|chunk| *chunk == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

/// xxHash64 with seed 0, the checksum of every structure.
#[inline]
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, 0)
}

/// Puts the checksum of everything after the first 8 bytes into the first 8 bytes.
pub(crate) fn put_checksum(bytes: &mut [u8]) {
    let value = checksum(&bytes[8..]);
    bytes[..8].copy_from_slice(&value.to_le_bytes());
}

/// What is wrong with a structure on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// There are fewer bytes than the structure has.
    #[error("{structure} is cut short: {needed} bytes are needed, {available} are there")]
    TooShort {
        /// Name of the structure.
        structure: &'static str,
        /// Its length in bytes.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// The four letters that begin the structure are others.
    #[error("{structure} does not begin with its magic letters")]
    Magic {
        /// Name of the structure.
        structure: &'static str,
    },
    /// The checksum does not match the bytes.
    #[error("checksum of the {structure} is {found:016x}, its bytes give {computed:016x}")]
    Checksum {
        /// Name of the structure.
        structure: &'static str,
        /// What is stored.
        found: u64,
        /// What the bytes give.
        computed: u64,
    },
    /// The structure was written by a newer release.
    #[error(
        "{structure} has format version {found}, this program reads versions up to {supported}: \
         use the release that wrote it, or a newer one"
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
    #[error("{field} of the {structure} is {found}: {reason}")]
    Field {
        /// Name of the structure.
        structure: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should.
        reason: &'static str,
    },
    /// A field says that the structure belongs elsewhere.
    #[error("{field} of the {structure} is {found}, expected {expected}")]
    Misplaced {
        /// Name of the structure.
        structure: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What belongs here.
        expected: String,
        /// What is stored.
        found: String,
    },
}

impl FormatError {
    pub(crate) fn misplaced(
        structure: &'static str,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> FormatError {
        FormatError::Misplaced {
            structure,
            field,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Checks length, magic, checksum and version of a structure that begins `checksum u64 | magic |
/// version u16`.
///
/// The magic comes first, so that a wrong kind of block is called that; the version last, so that a
/// damaged version is not taken for a newer one.
pub(crate) fn check_preamble(
    structure: &'static str,
    bytes: &[u8],
    length: usize,
    magic: [u8; 4],
    version: u16,
) -> Result<(), FormatError> {
    if bytes.len() < length {
        return Err(FormatError::TooShort {
            structure,
            needed: to_u64(length),
            available: to_u64(bytes.len()),
        });
    }
    if array_at::<4>(bytes, 8) != magic {
        return Err(FormatError::Magic { structure });
    }
    let (found, computed) = (u64_at(bytes, 0), checksum(&bytes[8..length]));
    if found != computed {
        return Err(FormatError::Checksum {
            structure,
            found,
            computed,
        });
    }
    let found = u16::from_le_bytes(array_at(bytes, 12));
    if found > version {
        return Err(FormatError::NewerFormat {
            structure,
            found,
            supported: version,
        });
    }
    if found == 0 {
        return Err(FormatError::Field {
            structure,
            field: "version",
            found: 0,
            reason: "versions begin with 1",
        });
    }
    Ok(())
}

/// Checks that a structure belongs where it was found.
pub(crate) fn check_place(
    structure: &'static str,
    expected: &Place,
    found: &Place,
) -> Result<(), FormatError> {
    if expected == found {
        return Ok(());
    }
    let hex = |id: &[u8; 16]| format!("{:032x}", u128::from_le_bytes(*id).swap_bytes());
    Err(if expected.database_id != found.database_id {
        let (expected, found) = (hex(&expected.database_id), hex(&found.database_id));
        FormatError::misplaced(structure, "database id", expected, found)
    } else if expected.partition != found.partition {
        FormatError::misplaced(structure, "partition", expected.partition, found.partition)
    } else {
        FormatError::misplaced(structure, "segment", expected.segment, found.segment)
    })
}
