//! What can go wrong when the log is read.

use std::io;

use crate::batch::CorruptBatch;
use crate::layout::FormatError;

/// Why a read of a segment failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The disk refused.
    #[error("cannot read {path} at offset {offset}")]
    Io {
        /// File, relative to the data directory.
        path: String,
        /// Where in the file, in bytes.
        offset: u64,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// What was read is not what was written.
    #[error(transparent)]
    Corrupt(#[from] Box<Corruption>),
}

/// Damage found in a file: where, what it concerns, and what differs.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} is damaged at offset {offset} (sequences from {first_sequence}{})",
    Until(*last_sequence)
)]
pub struct Corruption {
    /// File, relative to the data directory.
    pub path: String,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// First sequence that the damage concerns.
    pub first_sequence: u64,
    /// Last sequence that it concerns, as far as known.
    pub last_sequence: Option<u64>,
    /// What differs.
    #[source]
    pub reason: CorruptReason,
}

pub(crate) struct Until(pub(crate) Option<u64>);

impl std::fmt::Display for Until {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(last) => write!(f, " to {last}"),
            None => write!(f, " on"),
        }
    }
}

/// What differs from what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptReason {
    /// A header, footer or index.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The body of a batch.
    #[error(transparent)]
    Batch(#[from] CorruptBatch),
    /// A batch does not follow the one before it.
    #[error("{field} is {found}, but {expected} follows what lies before")]
    Order {
        /// Name of the field.
        field: &'static str,
        /// What follows.
        expected: u64,
        /// What is stored.
        found: u64,
    },
    /// A structure reaches beyond the end of the data.
    #[error("it reaches to offset {needed}, the data ends at {end}")]
    BeyondEnd {
        /// Where the structure would end, in bytes.
        needed: u64,
        /// Where the data ends, in bytes.
        end: u64,
    },
    /// A packed block does not unpack to what its header says.
    #[error("the packed block does not unpack: {reason}")]
    Unpack {
        /// What is wrong.
        reason: String,
    },
    /// Zeros where acknowledged data was.
    #[error("there are only zeros where data was")]
    Blank,
}
