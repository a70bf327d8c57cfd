//! The engine's errors as the interface's.

use std::error::Error;

use truthdb_api::{ApiError, ErrorCode, Outcome};
use truthdb_engine::{AppendError, ReadError, TrimError};
use truthdb_event::EventError;

/// A message with the messages of its causes: what the edge prints.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The name in `Limits` of the limit that an event exceeds.
fn limit_name(field: &str) -> &str {
    match field {
        "stream" => "stream_name_bytes_max",
        "event type" => "event_type_bytes_max",
        "content type" => "content_type_bytes_max",
        "number of tags" | "tag" | "tags bytes" => "tags_max",
        "number of metadata keys" => "metadata_keys_max",
        "metadata key" | "metadata bytes" => "metadata_bytes_max",
        "payload bytes" => "event_payload_bytes_max",
        other => other,
    }
}

/// An event that is not acceptable, at this place of its batch.
pub(crate) fn invalid_event(index: usize, error: &EventError) -> ApiError {
    let message = format!("event {index} of the batch: {error}");
    if let EventError::LimitExceeded { field, max, .. } = error {
        let mut error = ApiError::new(ErrorCode::LimitExceeded, message);
        error.context.limit = Some(limit_name(field).to_owned());
        error.context.limit_value = u64::try_from(*max).ok();
        return error;
    }
    ApiError::invalid_argument(message)
}

fn no_such_partition(partition: u32, count: u32) -> ApiError {
    let message = format!("there is no partition {partition}; the database has {count}");
    ApiError::new(ErrorCode::NotFound, message).with_partition(partition)
}

/// The interface's error for an append that failed.
pub(crate) fn append_error(error: &AppendError) -> ApiError {
    let text = with_causes(error);
    let mut api = match error {
        AppendError::InvalidEvent { index, source } => return invalid_event(*index, source),
        AppendError::LimitExceeded { limit, actual, max } => {
            return ApiError::limit_exceeded(&limit.to_lowercase(), *max, *actual);
        }
        AppendError::WrongPartition {
            stream, expected, ..
        } => ApiError::new(ErrorCode::WrongPartition, text)
            .with_stream(stream)
            .with_partition(*expected),
        AppendError::RevisionConflict {
            stream,
            expected,
            actual,
        } => {
            return ApiError::revision_conflict(stream, &expected.to_string(), *actual);
        }
        AppendError::ConditionFailed { sequence } => return ApiError::condition_failed(*sequence),
        AppendError::IdReused { sequence, .. } => {
            let mut api = ApiError::new(ErrorCode::IdReused, text);
            api.context.sequence = Some(*sequence);
            api
        }
        AppendError::Overloaded {
            partition,
            retry_after_ms,
            ..
        } => ApiError::overloaded(text, *retry_after_ms).with_partition(*partition),
        AppendError::DiskFull { partition, .. } => {
            ApiError::new(ErrorCode::DiskFull, text).with_partition(*partition)
        }
        AppendError::Stopped { partition, .. } => {
            ApiError::new(ErrorCode::PartitionStopped, text).with_partition(*partition)
        }
        AppendError::Fenced { partition, .. } => {
            ApiError::new(ErrorCode::PartitionFenced, text).with_partition(*partition)
        }
        AppendError::Unknown { partition, .. } => {
            ApiError::new(ErrorCode::PartitionStopped, text).with_partition(*partition)
        }
        AppendError::Check { source } => return read_error(source),
        AppendError::NoSuchPartition { partition, count } => no_such_partition(*partition, *count),
        AppendError::NoIngest => return ApiError::role_disabled("ingest"),
        _ => ApiError::invalid_argument(text),
    };
    api.outcome = if error.may_have_happened() {
        Outcome::MayHaveHappened
    } else {
        Outcome::DidNotHappen
    };
    api
}

/// The interface's error for a read that failed.
pub(crate) fn read_error(error: &ReadError) -> ApiError {
    let text = with_causes(error);
    let api = match error {
        ReadError::NoSuchPartition { partition, count } => no_such_partition(*partition, *count),
        ReadError::Fenced { partition, .. } => {
            ApiError::new(ErrorCode::PartitionFenced, text).with_partition(*partition)
        }
        ReadError::StreamNotFound { stream } => {
            ApiError::new(ErrorCode::StreamNotFound, text).with_stream(stream)
        }
        ReadError::Trimmed {
            partition,
            sequence,
            first_sequence,
        } => ApiError::sequence_trimmed(*sequence, *first_sequence).with_partition(*partition),
        ReadError::Invalid { .. } => ApiError::invalid_argument(text),
        // The read that met damage fences the partition; the engine has told the operator.
        ReadError::Log { .. } | ReadError::Missing { .. } if error.is_corruption() => {
            ApiError::new(ErrorCode::PartitionFenced, text)
        }
        // Errors of the disk, and of indexes, that only this read has met.
        _ => {
            tracing::error!("a read failed: {text}");
            ApiError::new(ErrorCode::Internal, text)
        }
    };
    api.with_outcome(Outcome::DidNotHappen)
}

/// The interface's error for a trim that failed.
pub(crate) fn trim_error(error: &TrimError) -> ApiError {
    match error {
        TrimError::Append(source) => append_error(source),
        other => ApiError::new(ErrorCode::NotFound, with_causes(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_error_tells_whether_it_may_have_happened() {
        let unknown = AppendError::Unknown {
            partition: 1,
            source: std::sync::Arc::new(std::io::Error::other("disk")),
        };
        assert_eq!(append_error(&unknown).outcome, Outcome::MayHaveHappened);
        let stopped = AppendError::Stopped {
            partition: 1,
            reason: "x".into(),
        };
        assert_eq!(append_error(&stopped).outcome, Outcome::DidNotHappen);
        assert_eq!(append_error(&stopped).code, ErrorCode::PartitionStopped);
    }

    #[test]
    fn an_events_limit_has_the_name_that_the_interface_gives_it() {
        let source = EventError::LimitExceeded {
            field: "payload bytes",
            actual: 9,
            max: 8,
        };
        let error = append_error(&AppendError::InvalidEvent { index: 2, source });
        assert_eq!(error.code, ErrorCode::LimitExceeded);
        assert_eq!(
            error.context.limit.as_deref(),
            Some("event_payload_bytes_max")
        );
        assert_eq!(error.context.limit_value, Some(8));
        assert!(error.message.starts_with("event 2 of the batch"));
    }
}
