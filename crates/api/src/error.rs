//! The one list of failures, and how each travels over gRPC, HTTP and the native protocol.
//!
//! A failure says what went wrong ([`ErrorCode`]), whether anything was changed ([`Outcome`]),
//! whether a retry may help, and what to do. [`TABLE`] holds the defaults of every code; the table
//! in the user's documentation is tested against it.

use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::v1;

/// Name of the binary gRPC trailer that carries a serialised [`v1::ErrorDetail`].
pub const GRPC_TRAILER: &str = "truthdb-error-bin";

/// Whether a failed request changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// Nothing was changed, for certain.
    DidNotHappen,
    /// It may have been done; repeat it with the same event ids to have it done exactly once.
    MayHaveHappened,
}

impl Outcome {
    /// The name on the wire: `DID_NOT_HAPPEN` or `MAY_HAVE_HAPPENED`.
    pub fn name(self) -> &'static str {
        match self {
            Self::DidNotHappen => "DID_NOT_HAPPEN",
            Self::MayHaveHappened => "MAY_HAVE_HAPPENED",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DidNotHappen => "did not happen",
            Self::MayHaveHappened => "may have happened",
        })
    }
}

/// What holds for every error of one code, unless the error itself says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCodeInfo {
    /// The code.
    pub code: ErrorCode,
    /// Its name on the wire, such as `REVISION_CONFLICT`.
    pub name: &'static str,
    /// The gRPC status.
    pub grpc: tonic::Code,
    /// The HTTP status.
    pub http: u16,
    /// The default outcome.
    pub outcome: Outcome,
    /// Whether the same request may succeed later without anybody changing anything else.
    pub retryable: bool,
    /// What to do, for people.
    pub action: &'static str,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $code:ident $name:literal $grpc:ident $http:literal $outcome:ident
       $retryable:literal $action:literal;)*) => {
        /// What went wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $name)] $code,)*
        }

        /// Every code with what holds for it, in the order of the `.proto` file.
        pub const TABLE: &[ErrorCodeInfo] = &[
            $(ErrorCodeInfo {
                code: ErrorCode::$code,
                name: $name,
                grpc: tonic::Code::$grpc,
                http: $http,
                outcome: Outcome::$outcome,
                retryable: $retryable,
                action: $action,
            },)*
        ];

        impl ErrorCode {
            /// What holds for every error of this code.
            pub fn info(self) -> &'static ErrorCodeInfo {
                &TABLE[self as usize]
            }
        }

        impl From<ErrorCode> for v1::ErrorCode {
            fn from(code: ErrorCode) -> Self {
                match code { $(ErrorCode::$code => Self::$code,)* }
            }
        }

        impl From<v1::ErrorCode> for ErrorCode {
            /// An unspecified code, or one of a newer server, counts as [`ErrorCode::Internal`].
            fn from(code: v1::ErrorCode) -> Self {
                match code {
                    v1::ErrorCode::Unspecified => Self::Internal,
                    $(v1::ErrorCode::$code => Self::$code,)*
                }
            }
        }
    };
}

error_codes! {
    /// The request breaks a rule of the interface; the message names the field.
    InvalidArgument "INVALID_ARGUMENT" InvalidArgument 400 DidNotHappen false
        "Correct the request.";
    /// A named limit was exceeded.
    LimitExceeded "LIMIT_EXCEEDED" InvalidArgument 413 DidNotHappen false
        "Send less at once; `limit` and `limit_value` say which limit and how much.";
    /// A stream does not belong to the partition named, or a batch covers several partitions.
    WrongPartition "WRONG_PARTITION" InvalidArgument 400 DidNotHappen false
        "Compute the partition from the stream name, and send one batch for each partition.";
    /// The stream is not at the expected revision.
    RevisionConflict "REVISION_CONFLICT" Aborted 409 DidNotHappen false
        "Read the stream up to `actual_revision`, decide again, and append with that revision.";
    /// An event that matches the append condition exists.
    ConditionFailed "CONDITION_FAILED" Aborted 409 DidNotHappen false
        "Read on from the condition's sequence, decide again, and append with the new one.";
    /// An event id was used before with other content, or only some of the batch's ids were.
    IdReused "ID_REUSED" AlreadyExists 409 DidNotHappen false
        "Give new events new ids; retry a batch only unchanged and whole.";
    /// A bounded queue is full.
    Overloaded "OVERLOADED" ResourceExhausted 429 DidNotHappen true
        "Retry after `retry_after_ms`, with growing pauses.";
    /// No room for further events; reads go on.
    DiskFull "DISK_FULL" ResourceExhausted 507 DidNotHappen false
        "Free space: trim, or give the data directory a larger disk.";
    /// The partition stopped in this process after a failed write or flush.
    PartitionStopped "PARTITION_STOPPED" Unavailable 503 MayHaveHappened false
        "Check the disk, then restart the server; repeat the append with the same event ids.";
    /// Acknowledged data of the partition is corrupt; it neither reads nor takes appends.
    PartitionFenced "PARTITION_FENCED" DataLoss 503 DidNotHappen false
        "See the partition's status for the command to inspect and repair it.";
    /// The stream has no event.
    StreamNotFound "STREAM_NOT_FOUND" NotFound 404 DidNotHappen false
        "Check the stream's name.";
    /// The place asked for was removed by retention.
    SequenceTrimmed "SEQUENCE_TRIMMED" OutOfRange 410 DidNotHappen false
        "Start at `sequence`, the first that is still there, or use a backup.";
    /// This node does not run the role that the request needs.
    RoleDisabled "ROLE_DISABLED" Unimplemented 501 DidNotHappen false
        "Ask a node that runs the role, or add it to `roles` in the configuration.";
    /// No token, or an unknown one.
    Unauthenticated "UNAUTHENTICATED" Unauthenticated 401 DidNotHappen false
        "Send a valid token.";
    /// The token does not allow this.
    PermissionDenied "PERMISSION_DENIED" PermissionDenied 403 DidNotHappen false
        "Use a token with the permission that the message names.";
    /// The deadline passed first.
    Deadline "DEADLINE" DeadlineExceeded 504 MayHaveHappened true
        "Repeat with the same event ids and a later deadline.";
    /// The client took events more slowly than they came for too long, and was cut off.
    SlowConsumer "SLOW_CONSUMER" ResourceExhausted 429 DidNotHappen true
        "Subscribe again from the last position, and take events faster.";
    /// What was asked for does not exist.
    NotFound "NOT_FOUND" NotFound 404 DidNotHappen false
        "Check the name or number in the message.";
    /// A bug of the server.
    Internal "INTERNAL" Internal 500 MayHaveHappened false
        "Report it with the server's log.";
    /// The server is starting or shutting down, or cannot be reached.
    Unavailable "UNAVAILABLE" Unavailable 503 MayHaveHappened true
        "Retry with the same event ids, with growing pauses.";
    /// A validator refused an event.
    Rejected "REJECTED" FailedPrecondition 422 DidNotHappen false
        "Correct the event that `event_index` names, or decide again on what has happened since.";
    /// Bytes that are not accepted as a module.
    ModuleRefused "MODULE_REFUSED" InvalidArgument 422 DidNotHappen false
        "Build the module without the import, or within the limit, that the message names.";
    /// A module failed on this request.
    ModuleFailed "MODULE_FAILED" FailedPrecondition 422 DidNotHappen false
        "Correct what the module was given, or the module, and upgrade it.";
    /// A module is halted before what was asked for.
    ModuleHalted "MODULE_HALTED" FailedPrecondition 409 DidNotHappen false
        "See `truthdb module status`; then upgrade the module, skip the events, or resume it.";
    /// State has not reached what was asked for.
    NotYet "NOT_YET" Unavailable 503 DidNotHappen true
        "Ask again in a moment, or with a longer deadline.";
    /// The moment lies before the module's first state.
    NoState "NO_STATE" OutOfRange 404 DidNotHappen false
        "Ask for a later moment; the message says since when there is state.";
}

impl ErrorCode {
    /// The name on the wire, such as `REVISION_CONFLICT`.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The HTTP status.
    pub fn http_status(self) -> u16 {
        self.info().http
    }

    /// The gRPC status.
    pub fn grpc_code(self) -> tonic::Code {
        self.info().grpc
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The numbers and names of a failure; which are there depends on the code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorContext {
    /// What to do, when it differs from the code's own [`ErrorCodeInfo::action`].
    pub action: Option<String>,
    /// Revision conflict: the stream's newest revision; `None` when it has no event.
    pub actual_revision: Option<u64>,
    /// Condition failed: the matching event. Trimmed: the first sequence that is still there.
    pub sequence: Option<u64>,
    /// Wait at least this many milliseconds before a retry.
    pub retry_after_ms: Option<u64>,
    /// The name of the limit that was exceeded.
    pub limit: Option<String>,
    /// The limit itself.
    pub limit_value: Option<u64>,
    /// The role that is needed.
    pub role: Option<String>,
    /// The stream concerned.
    pub stream: Option<String>,
    /// The partition concerned.
    pub partition: Option<u32>,
    /// The module concerned.
    pub module: Option<String>,
    /// Rejected: the refused event's place in the batch, from 0.
    pub event_index: Option<u32>,
    /// Rejected: the validator's own number of the reason.
    pub reason_code: Option<u32>,
}

/// A failure, as every protocol reports it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{code}: {message} ({outcome}; {})", self.action())]
#[serde(into = "JsonError", from = "JsonError")]
pub struct ApiError {
    /// What went wrong.
    pub code: ErrorCode,
    /// Whether anything was changed.
    pub outcome: Outcome,
    /// Whether the same request may succeed later without anybody changing anything else.
    pub retryable: bool,
    /// What happened, to what; for people.
    pub message: String,
    /// Numbers and names that belong to the code.
    pub context: Box<ErrorContext>,
}

impl ApiError {
    /// An error with the outcome and the retryability that the code has by default.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let info = code.info();
        Self {
            code,
            outcome: info.outcome,
            retryable: info.retryable,
            message: message.into(),
            context: Box::default(),
        }
    }

    /// A request that breaks a rule; the message names the field.
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// A limit that was exceeded, by its name in `Limits`.
    pub fn limit_exceeded(limit: &str, limit_value: u64, actual: u64) -> Self {
        let message = format!("{actual} exceeds the limit {limit} of {limit_value}");
        let mut error = Self::new(ErrorCode::LimitExceeded, message);
        error.context.limit = Some(limit.to_owned());
        error.context.limit_value = Some(limit_value);
        error
    }

    /// A stream that is not at the expected revision; `actual` is `None` when it has no event.
    pub fn revision_conflict(stream: &str, expected: &str, actual: Option<u64>) -> Self {
        let found = actual.map_or_else(|| "no event".to_owned(), |n| format!("revision {n}"));
        let message = format!("stream {stream}: expected {expected}, found {found}");
        let mut error = Self::new(ErrorCode::RevisionConflict, message);
        error.context.actual_revision = actual;
        error.context.stream = Some(stream.to_owned());
        error
    }

    /// An append condition that the event at `sequence` violates.
    pub fn condition_failed(sequence: u64) -> Self {
        let message = format!("event {sequence} matches the append condition");
        let mut error = Self::new(ErrorCode::ConditionFailed, message);
        error.context.sequence = Some(sequence);
        error
    }

    /// A full queue; the caller may come again after `retry_after_ms`.
    pub fn overloaded(message: impl Into<String>, retry_after_ms: u64) -> Self {
        let mut error = Self::new(ErrorCode::Overloaded, message);
        error.context.retry_after_ms = Some(retry_after_ms);
        error
    }

    /// A place that retention removed; `first` is the first sequence that is still there.
    pub fn sequence_trimmed(asked: u64, first: u64) -> Self {
        let message = format!("sequence {asked} was trimmed; the log begins at {first}");
        let mut error = Self::new(ErrorCode::SequenceTrimmed, message);
        error.context.sequence = Some(first);
        error
    }

    /// A role that this node does not run.
    pub fn role_disabled(role: &str) -> Self {
        let message = format!("this node does not run the role `{role}`");
        let mut error = Self::new(ErrorCode::RoleDisabled, message);
        error.context.role = Some(role.to_owned());
        error
    }

    /// The same error with another outcome than the code's default.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// The same error, concerning this partition.
    #[must_use]
    pub fn with_partition(mut self, partition: u32) -> Self {
        self.context.partition = Some(partition);
        self
    }

    /// The same error, concerning this stream.
    #[must_use]
    pub fn with_stream(mut self, stream: impl Into<String>) -> Self {
        self.context.stream = Some(stream.into());
        self
    }

    /// The same error, concerning this module.
    #[must_use]
    pub fn with_module(mut self, module: impl Into<String>) -> Self {
        self.context.module = Some(module.into());
        self
    }

    /// The same error with an action of its own instead of the code's.
    #[must_use]
    pub fn with_action(mut self, action: impl Into<String>) -> Self {
        self.context.action = Some(action.into());
        self
    }

    /// What to do, for people.
    pub fn action(&self) -> &str {
        self.context
            .action
            .as_deref()
            .unwrap_or_else(|| self.code.info().action)
    }

    /// The serialised [`v1::ErrorDetail`]: the gRPC trailer and the native protocol's error bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        v1::ErrorDetail::from(self).encode_to_vec()
    }

    /// Reads what [`ApiError::to_bytes`] wrote.
    ///
    /// # Errors
    /// Bytes that are no `ErrorDetail`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        v1::ErrorDetail::decode(bytes).map(Self::from)
    }

    /// Reads the error out of a gRPC status. A status that no TruthDB server made (a proxy's, a
    /// lost connection's) becomes the code that comes nearest, with an outcome on the safe side.
    pub fn from_status(status: &tonic::Status) -> Self {
        if let Some(value) = status.metadata().get_bin(GRPC_TRAILER)
            && let Ok(bytes) = value.to_bytes()
            && let Ok(error) = Self::from_bytes(&bytes)
        {
            return error;
        }
        let code = match status.code() {
            tonic::Code::InvalidArgument => ErrorCode::InvalidArgument,
            tonic::Code::DeadlineExceeded => ErrorCode::Deadline,
            tonic::Code::NotFound => ErrorCode::NotFound,
            tonic::Code::PermissionDenied => ErrorCode::PermissionDenied,
            tonic::Code::Unauthenticated => ErrorCode::Unauthenticated,
            tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown => {
                ErrorCode::Unavailable
            }
            _ => ErrorCode::Internal,
        };
        let outcome = match code {
            ErrorCode::InvalidArgument
            | ErrorCode::NotFound
            | ErrorCode::PermissionDenied
            | ErrorCode::Unauthenticated => Outcome::DidNotHappen,
            _ => Outcome::MayHaveHappened,
        };
        Self::new(code, status.message()).with_outcome(outcome)
    }
}

impl From<ApiError> for tonic::Status {
    fn from(error: ApiError) -> Self {
        let mut metadata = tonic::metadata::MetadataMap::new();
        let detail = Bytes::from(error.to_bytes());
        metadata.insert_bin(
            GRPC_TRAILER,
            tonic::metadata::MetadataValue::from_bytes(&detail),
        );
        Self::with_metadata(error.code.grpc_code(), error.message, metadata)
    }
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

fn option(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

impl From<&ApiError> for v1::ErrorDetail {
    fn from(error: &ApiError) -> Self {
        let context = &error.context;
        Self {
            code: v1::ErrorCode::from(error.code).into(),
            message: error.message.clone(),
            outcome: match error.outcome {
                Outcome::DidNotHappen => v1::Outcome::DidNotHappen,
                Outcome::MayHaveHappened => v1::Outcome::MayHaveHappened,
            }
            .into(),
            retryable: error.retryable,
            action: error.action().to_owned(),
            actual_revision: context.actual_revision,
            sequence: context.sequence,
            retry_after_ms: context.retry_after_ms,
            limit: text(context.limit.as_ref()),
            limit_value: context.limit_value,
            role: text(context.role.as_ref()),
            stream: text(context.stream.as_ref()),
            partition: context.partition,
            module: text(context.module.as_ref()),
            event_index: context.event_index,
            reason_code: context.reason_code,
        }
    }
}

impl From<v1::ErrorDetail> for ApiError {
    fn from(detail: v1::ErrorDetail) -> Self {
        let code = ErrorCode::from(detail.code());
        let outcome = match detail.outcome() {
            v1::Outcome::DidNotHappen => Outcome::DidNotHappen,
            // Unknown means: do not claim that nothing happened.
            v1::Outcome::MayHaveHappened | v1::Outcome::Unspecified => Outcome::MayHaveHappened,
        };
        Self {
            code,
            outcome,
            retryable: detail.retryable,
            message: detail.message,
            context: Box::new(ErrorContext {
                action: option(detail.action).filter(|action| action != code.info().action),
                actual_revision: detail.actual_revision,
                sequence: detail.sequence,
                retry_after_ms: detail.retry_after_ms,
                limit: option(detail.limit),
                limit_value: detail.limit_value,
                role: option(detail.role),
                stream: option(detail.stream),
                partition: detail.partition,
                module: option(detail.module),
                event_index: detail.event_index,
                reason_code: detail.reason_code,
            }),
        }
    }
}

/// [`ApiError`] as JSON: flat, with the names of `ErrorDetail`.
#[derive(Serialize, Deserialize)]
struct JsonError {
    code: ErrorCode,
    message: String,
    outcome: Outcome,
    retryable: bool,
    #[serde(default)]
    action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actual_revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit_value: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    module: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_index: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason_code: Option<u32>,
}

impl From<ApiError> for JsonError {
    fn from(error: ApiError) -> Self {
        let action = error.action().to_owned();
        let context = *error.context;
        Self {
            code: error.code,
            message: error.message,
            outcome: error.outcome,
            retryable: error.retryable,
            action,
            actual_revision: context.actual_revision,
            sequence: context.sequence,
            retry_after_ms: context.retry_after_ms,
            limit: context.limit,
            limit_value: context.limit_value,
            role: context.role,
            stream: context.stream,
            partition: context.partition,
            module: context.module,
            event_index: context.event_index,
            reason_code: context.reason_code,
        }
    }
}

impl From<JsonError> for ApiError {
    fn from(json: JsonError) -> Self {
        Self {
            code: json.code,
            outcome: json.outcome,
            retryable: json.retryable,
            message: json.message,
            context: Box::new(ErrorContext {
                action: option(json.action).filter(|action| action != json.code.info().action),
                actual_revision: json.actual_revision,
                sequence: json.sequence,
                retry_after_ms: json.retry_after_ms,
                limit: json.limit,
                limit_value: json.limit_value,
                role: json.role,
                stream: json.stream,
                partition: json.partition,
                module: json.module,
                event_index: json.event_index,
                reason_code: json.reason_code,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> ApiError {
        let mut error = ApiError::revision_conflict("order-1", "no stream", Some(7));
        *error.context = ErrorContext {
            action: Some("do this".into()),
            actual_revision: Some(7),
            sequence: Some(8),
            retry_after_ms: Some(9),
            limit: Some("tags_max".into()),
            limit_value: Some(32),
            role: Some("ingest".into()),
            stream: Some("order-1".into()),
            partition: Some(3),
            module: Some("covered".into()),
            event_index: Some(4),
            reason_code: Some(5),
        };
        error
    }

    #[test]
    fn table_is_in_the_order_of_the_enum_and_of_the_proto_file() {
        for (index, info) in TABLE.iter().enumerate() {
            assert_eq!(info.code as usize, index);
            let wire = v1::ErrorCode::from(info.code);
            assert_eq!(wire as usize, index + 1, "{}", info.name);
            assert_eq!(wire.as_str_name(), format!("ERROR_CODE_{}", info.name));
            assert_eq!(ErrorCode::from(wire), info.code);
        }
    }

    #[test]
    fn every_error_survives_grpc_bytes_and_json() {
        let mut all: Vec<ApiError> = TABLE
            .iter()
            .map(|info| ApiError::new(info.code, "what happened"))
            .collect();
        all.push(full());
        for error in all {
            assert_eq!(ApiError::from_bytes(&error.to_bytes()).unwrap(), error);
            let status = tonic::Status::from(error.clone());
            assert_eq!(status.code(), error.code.grpc_code());
            assert_eq!(ApiError::from_status(&status), error);
            let json = serde_json::to_string(&error).unwrap();
            assert_eq!(serde_json::from_str::<ApiError>(&json).unwrap(), error);
        }
    }

    #[test]
    fn a_strangers_status_never_claims_that_an_append_did_not_happen() {
        for code in [
            tonic::Code::Unavailable,
            tonic::Code::Unknown,
            tonic::Code::Cancelled,
        ] {
            let error = ApiError::from_status(&tonic::Status::new(code, "proxy"));
            assert_eq!(error.outcome, Outcome::MayHaveHappened);
            assert!(error.retryable);
        }
    }

    #[test]
    fn an_unspecified_outcome_counts_as_may_have_happened() {
        let error = ApiError::from(v1::ErrorDetail::default());
        assert_eq!(error.outcome, Outcome::MayHaveHappened);
        assert_eq!(error.code, ErrorCode::Internal);
    }
}
