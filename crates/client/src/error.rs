//! What can go wrong for a caller of the client.

use truthdb_api::{ApiError, ErrorCode, Outcome};

/// A failed call.
///
/// [`ClientError::outcome`] says whether anything may have been changed, and
/// [`ClientError::is_retryable`] whether the same call may succeed later; the client has then
/// already retried as long as its [`RetryPolicy`](crate::RetryPolicy) and the timeout allowed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused, or could not be reached (code `UNAVAILABLE`), or did not answer in time
    /// (code `DEADLINE`).
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An event that breaks a rule or limit; nothing was sent.
    #[error("the event is not legal")]
    Event(#[from] truthdb_event::EventError),
    /// A batch whose events belong to several partitions; nothing was sent. Send one for each.
    #[error(
        "a batch covers one partition: stream {first} is in partition {first_partition}, \
         stream {second} in partition {second_partition}; send one batch for each"
    )]
    SeveralPartitions {
        /// The first event's stream.
        first: String,
        /// Its partition.
        first_partition: u32,
        /// A stream of another partition.
        second: String,
        /// That partition.
        second_partition: u32,
    },
    /// An argument that breaks a rule; nothing was sent.
    #[error("{0}")]
    InvalidArgument(String),
    /// The server presented another certificate than the pinned one.
    #[error("the server's certificate has the SHA-256 fingerprint {actual}, pinned is {pinned}")]
    PinMismatch {
        /// The pinned fingerprint, in hex.
        pinned: String,
        /// What the server presented, in hex.
        actual: String,
    },
    /// TLS could not be set up or agreed on.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The server sent what the protocol does not allow, or bytes whose checksum is wrong.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// A reconnect found another database under the same address.
    #[error("the server at {addr} now serves another database")]
    OtherDatabase {
        /// The address.
        addr: String,
    },
}

impl ClientError {
    /// The code, as the server would name it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Api(error) => error.code,
            Self::Event(_) | Self::InvalidArgument(_) => ErrorCode::InvalidArgument,
            Self::SeveralPartitions { .. } => ErrorCode::WrongPartition,
            Self::PinMismatch { .. } | Self::Tls(_) => ErrorCode::Unavailable,
            Self::Protocol(_) | Self::OtherDatabase { .. } => ErrorCode::Internal,
        }
    }

    /// Whether anything may have been changed.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Api(error) => error.outcome,
            Self::Protocol(_) => Outcome::MayHaveHappened,
            _ => Outcome::DidNotHappen,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything else.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Api(error) if error.retryable)
    }

    pub(crate) fn unavailable(message: impl Into<String>, outcome: Outcome) -> Self {
        Self::Api(ApiError::new(ErrorCode::Unavailable, message).with_outcome(outcome))
    }
}

impl From<truthdb_api::native::DecodeError> for ClientError {
    fn from(error: truthdb_api::native::DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<truthdb_api::native::EncodeError> for ClientError {
    fn from(error: truthdb_api::native::EncodeError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}
