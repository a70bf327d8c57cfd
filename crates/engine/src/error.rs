//! Errors, one enum for each family of operations. Each says whether anything happened.

use std::io;
use std::sync::Arc;

use truthdb_event::EventError;

/// Why an append was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The events are not acceptable as such. Nothing was written; the same call will fail again.
    #[error("event {index} of the batch is invalid")]
    InvalidEvent {
        /// 0-based place in the batch.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: EventError,
    },
    /// A limit of the batch was exceeded. Nothing was written.
    #[error("{limit} is {actual}, the limit is {max}")]
    LimitExceeded {
        /// Name of the limit.
        limit: &'static str,
        /// What the batch had.
        actual: u64,
        /// What is allowed.
        max: u64,
    },
    /// The batch has no event and no cursor. Nothing was written.
    #[error("the batch is empty")]
    EmptyBatch,
    /// The request contradicts itself. Nothing was written.
    #[error("{reason}")]
    Invalid {
        /// What is wrong and what to do.
        reason: String,
    },
    /// An event's stream belongs to another partition than the batch. Nothing was written.
    #[error("stream {stream} belongs to partition {expected}, not {actual}")]
    WrongPartition {
        /// The stream.
        stream: String,
        /// Its partition.
        expected: u32,
        /// The partition of the request.
        actual: u32,
    },
    /// A stream is not at the expected revision. Nothing was written.
    #[error("stream {stream} is not at the expected revision: expected {expected}, found {}", Found(*actual))]
    RevisionConflict {
        /// The stream.
        stream: String,
        /// What the caller expected.
        expected: crate::ExpectedRevision,
        /// The stream's last revision, `None` if it has no event.
        actual: Option<u64>,
    },
    /// An event that the append condition forbids exists. Nothing was written.
    #[error("the append condition does not hold: event {sequence} matches it")]
    ConditionFailed {
        /// Sequence of one matching event.
        sequence: u64,
    },
    /// An event id was used before with other content, or only some of the batch's ids were.
    /// Nothing was written.
    #[error(
        "event id {id} was already used at sequence {sequence} for something else than this batch"
    )]
    IdReused {
        /// The id.
        id: truthdb_event::EventId,
        /// Where it was used.
        sequence: u64,
    },
    /// A queue is full. Nothing was written; try again later.
    #[error(
        "partition {partition} has too many appends waiting ({what}); try again in {retry_after_ms} ms"
    )]
    Overloaded {
        /// The partition.
        partition: u32,
        /// Which bound was met.
        what: &'static str,
        /// When a retry makes sense, milliseconds.
        retry_after_ms: u64,
    },
    /// No disk space for the next segment. Nothing was written; appends resume when there is space.
    #[error(
        "no space for the next segment of partition {partition}: {free_bytes} bytes free, {needed_bytes} needed"
    )]
    DiskFull {
        /// The partition.
        partition: u32,
        /// Bytes free.
        free_bytes: u64,
        /// Bytes a segment takes.
        needed_bytes: u64,
    },
    /// The partition takes no appends any more in this process. Nothing was written.
    #[error("partition {partition} does not accept appends: {reason}")]
    Stopped {
        /// The partition.
        partition: u32,
        /// Why, and what to do.
        reason: Arc<str>,
    },
    /// The write or its flush failed. The batch may or may not be in the log after a restart;
    /// append it again with the same ids then.
    #[error("the write of this batch failed; it may or may not be stored")]
    Unknown {
        /// The partition.
        partition: u32,
        /// What the disk said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Reading what a check needed failed. Nothing was written.
    #[error("a check of the append could not be made")]
    Check {
        /// What the read said.
        #[source]
        source: Arc<ReadError>,
    },
    /// There is no such partition.
    #[error("there is no partition {partition}; the database has {count}")]
    NoSuchPartition {
        /// What was asked for.
        partition: u32,
        /// How many there are.
        count: u32,
    },
    /// This node does not ingest.
    #[error("this node does not have the role `ingest`")]
    NoIngest,
    /// A validator refused an event. Nothing was written; the same batch may be accepted after
    /// other events.
    #[error("validator {validator} refuses event {index} of the batch: {message} (code {code})")]
    Rejected {
        /// The validator.
        validator: String,
        /// 0-based place in the batch.
        index: usize,
        /// The validator's own number of the reason.
        code: u32,
        /// The validator's reason.
        message: String,
    },
    /// A validator failed on the batch. Nothing was written.
    #[error("validator {validator} failed on the batch: {reason}")]
    ValidatorFailed {
        /// The validator.
        validator: String,
        /// What happened.
        reason: String,
    },
    /// A validator cannot decide yet. Nothing was written; try again later.
    #[error(
        "partition {partition} waits for its validator {validator} ({reason}); try again in {retry_after_ms} ms"
    )]
    ValidatorNotReady {
        /// The partition.
        partition: u32,
        /// The validator.
        validator: String,
        /// What it waits for.
        reason: String,
        /// When a retry makes sense, milliseconds.
        retry_after_ms: u64,
    },
}

struct Found(Option<u64>);

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(revision) => write!(f, "revision {revision}"),
            None => f.write_str("no stream"),
        }
    }
}

impl AppendError {
    /// Whether the batch may be stored in spite of the error.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, AppendError::Unknown { .. })
    }

    /// Whether the same append may succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            AppendError::Overloaded { .. }
                | AppendError::DiskFull { .. }
                | AppendError::ValidatorNotReady { .. }
        )
    }
}

/// Why a read failed. Reads change nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// There is no such partition.
    #[error("there is no partition {partition}; the database has {count}")]
    NoSuchPartition {
        /// What was asked for.
        partition: u32,
        /// How many there are.
        count: u32,
    },
    /// The partition could not be opened because acknowledged data is damaged.
    #[error("partition {partition} is fenced: {reason}")]
    Fenced {
        /// The partition.
        partition: u32,
        /// What is damaged and what to do.
        reason: Arc<str>,
    },
    /// The stream has no event.
    #[error("there is no stream {stream}")]
    StreamNotFound {
        /// The stream.
        stream: String,
    },
    /// The range begins before the first event that retention has left.
    #[error(
        "sequence {sequence} of partition {partition} was trimmed; the first one left is {first_sequence}"
    )]
    Trimmed {
        /// The partition.
        partition: u32,
        /// What was asked for.
        sequence: u64,
        /// The first sequence that can be read.
        first_sequence: u64,
    },
    /// The request contradicts itself.
    #[error("{reason}")]
    Invalid {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A segment could not be read: it is damaged, or the disk failed. Nothing of the damaged batch
    /// is returned.
    #[error("a segment could not be read")]
    Log {
        /// Which file, where, and which sequences.
        #[source]
        source: Arc<truthdb_log::ReadError>,
    },
    /// An index of a segment could not be read. It is derived: restart the server, or rebuild it
    /// with `truthdb repair`.
    #[error("the index of {path} could not be read")]
    Index {
        /// The segment.
        path: String,
        /// What is wrong.
        #[source]
        source: Arc<truthdb_log::IndexError>,
    },
    /// The index of stream heads could not be read. It is derived: restart the server, or rebuild
    /// it with `truthdb repair`.
    #[error("the index of stream heads could not be read")]
    Heads {
        /// What is wrong.
        #[source]
        source: Arc<truthdb_log::HeadsError>,
    },
    /// The index of a segment was missing or damaged and could not be made again.
    #[error("the index of a segment could not be made again")]
    Rebuild {
        /// What is wrong.
        #[source]
        source: Arc<truthdb_log::SealError>,
    },
    /// No proof could be made.
    #[error("the event cannot be proved")]
    Prove {
        /// Why.
        #[source]
        source: Arc<truthdb_log::ProveError>,
    },
    /// A committed event is not where the segments say it is.
    #[error("{path} should hold sequence {sequence} and does not; run `truthdb verify`")]
    Missing {
        /// The segment.
        path: String,
        /// The sequence.
        sequence: u64,
    },
}

impl ReadError {
    /// Whether stored data is damaged, rather than the request or the disk at fault.
    pub fn is_corruption(&self) -> bool {
        match self {
            ReadError::Log { source } => matches!(**source, truthdb_log::ReadError::Corrupt(_)),
            ReadError::Missing { .. } | ReadError::Fenced { .. } => true,
            _ => false,
        }
    }
}

/// Why a trim was not done.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrimError {
    /// The `$trim` event could not be appended.
    #[error("the trim could not be recorded in the log")]
    Append(#[source] AppendError),
    /// There is no such partition.
    #[error("there is no partition {partition}")]
    NoSuchPartition {
        /// What was asked for.
        partition: u32,
    },
}

/// An error and its sources on one line, for logs.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
