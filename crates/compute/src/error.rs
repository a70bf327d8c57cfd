//! What can go wrong, said so that the caller knows what to do.

use std::sync::Arc;

use truthdb_engine::{AppendError, ReadError};

use crate::token::Token;

/// An error of state, modules, queries or replay.
///
/// Nothing here loses data: state is derived, and the log is what was committed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// This node does not run what was asked for.
    #[error("this node does not run the role `{role}`; ask a node that does, or add it to `roles`")]
    Role {
        /// `compute`, `query` or `replay`.
        role: &'static str,
    },
    /// There is no such module, or it was removed.
    #[error("there is no module {module:?}; `truthdb module list` names those that there are")]
    NoSuchModule {
        /// The name.
        module: String,
    },
    /// No module with this hash was published.
    #[error("no module with hash {hash} was published; publish its bytes first")]
    NotPublished {
        /// BLAKE3 in hexadecimal.
        hash: String,
    },
    /// The module has no table with this name.
    #[error("module {module:?} has no table {table:?}; it has: {tables}")]
    NoSuchTable {
        /// The module.
        module: String,
        /// The name that was asked for.
        table: String,
        /// Those that there are.
        tables: String,
    },
    /// There is no such partition.
    #[error("there is no partition {partition}; the database has {count}")]
    NoSuchPartition {
        /// The one asked for.
        partition: u32,
        /// How many there are.
        count: u32,
    },
    /// The request contradicts itself, or a limit.
    #[error("{reason}")]
    Invalid {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A component that is not accepted as a module. Nothing was stored.
    #[error("the module is refused: {reason}")]
    Refused {
        /// The import, limit or rule.
        reason: String,
    },
    /// The state has not reached what was asked for within the deadline. Retryable.
    #[error(
        "module {module:?} has applied partition {partition} up to {applied}, not yet {wanted}; ask again, or with a longer deadline"
    )]
    NotYet {
        /// The module.
        module: String,
        /// The partition.
        partition: u32,
        /// What is applied.
        applied: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// The module is halted before what was asked for.
    #[error("module {module:?} is halted in partition {partition} at event {sequence}: {reason}")]
    Halted {
        /// The module.
        module: String,
        /// The partition.
        partition: u32,
        /// First event of the batch that it is halted at.
        sequence: u64,
        /// Why, and what to do.
        reason: String,
    },
    /// The moment lies before the module's first state.
    #[error(
        "module {module:?} has no state in partition {partition} at event {sequence}; {reason}"
    )]
    NoState {
        /// The module.
        module: String,
        /// The partition.
        partition: u32,
        /// What was asked for.
        sequence: u64,
        /// Since when it has one.
        reason: String,
    },
    /// The token names other partitions than the database has.
    #[error("token {token} does not fit a database of {count} partitions")]
    ForeignToken {
        /// The token.
        token: Token,
        /// How many partitions there are.
        count: u32,
    },
    /// The deadline passed. Nothing was changed; retryable.
    #[error("the query did not end within its deadline of {deadline_ms} ms")]
    Deadline {
        /// The deadline in milliseconds.
        deadline_ms: u64,
    },
    /// A guest failed while it answered. Nothing was changed.
    #[error("module {module:?} failed: {reason}")]
    Guest {
        /// The module.
        module: String,
        /// What happened.
        reason: String,
    },
    /// An operator or caller stopped the work.
    #[error("stopped on request")]
    Cancelled,
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Read(#[from] ReadError),
    /// A control event could not be appended. The source says whether it may have been.
    #[error("the decision could not be recorded in the log")]
    Append(#[from] AppendError),
    /// Derived files cannot be read or written. The log is not concerned.
    #[error("{what} failed; state is derived and will be made again from the log")]
    Storage {
        /// What was done.
        what: String,
        /// The error of the disk, or what is wrong with the file.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread {
        /// The operating system's error.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The database stops, or the partition's fold does not run.
    #[error("the fold of partition {partition} does not run: {reason}")]
    Stopped {
        /// The partition.
        partition: u32,
        /// Why.
        reason: String,
    },
}

impl ComputeError {
    /// Whether the same request may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ComputeError::NotYet { .. } | ComputeError::Deadline { .. } => true,
            ComputeError::Append(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// Whether a decision may have been recorded although this error is returned.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, ComputeError::Append(error) if error.may_have_happened())
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> ComputeError {
        ComputeError::Invalid {
            reason: reason.into(),
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
