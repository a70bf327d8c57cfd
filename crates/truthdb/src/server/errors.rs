//! The engine's errors as the interface's.

use std::error::Error;

use truthdb_api::{ApiError, ErrorCode, Outcome};
use truthdb_compute::ComputeError;
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
        AppendError::Rejected {
            validator,
            index,
            code,
            ..
        } => {
            let mut api = ApiError::new(ErrorCode::Rejected, text).with_module(validator);
            api.context.event_index = u32::try_from(*index).ok();
            api.context.reason_code = Some(*code);
            api
        }
        AppendError::ValidatorFailed { validator, .. } => {
            ApiError::new(ErrorCode::ModuleFailed, text).with_module(validator)
        }
        AppendError::ValidatorNotReady {
            partition,
            validator,
            retry_after_ms,
            ..
        } => {
            let mut api = ApiError::new(ErrorCode::NotYet, text)
                .with_module(validator)
                .with_partition(*partition)
                .with_action("Retry after `retry_after_ms`; `truthdb module status` says more.");
            api.context.retry_after_ms = Some(*retry_after_ms);
            api
        }
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

/// The interface's error for an operation on modules or state.
pub(crate) fn compute_error(error: &ComputeError) -> ApiError {
    let text = with_causes(error);
    let new = |code| ApiError::new(code, text.clone());
    let api = match error {
        ComputeError::Role { role } => return ApiError::role_disabled(role),
        ComputeError::NoSuchModule { module } | ComputeError::NoSuchTable { module, .. } => {
            new(ErrorCode::NotFound).with_module(module)
        }
        ComputeError::NotPublished { .. } => new(ErrorCode::NotFound),
        ComputeError::NoSuchPartition { partition, count } => {
            return no_such_partition(*partition, *count);
        }
        ComputeError::Refused { .. } => new(ErrorCode::ModuleRefused),
        ComputeError::NotYet {
            module,
            partition,
            applied,
            ..
        } => {
            let mut api = at(new(ErrorCode::NotYet), module, *partition);
            api.context.sequence = Some(*applied);
            api
        }
        ComputeError::Halted {
            module,
            partition,
            sequence,
            ..
        } => {
            let mut api = at(new(ErrorCode::ModuleHalted), module, *partition);
            api.context.sequence = Some(*sequence);
            api
        }
        ComputeError::NoState {
            module, partition, ..
        } => at(new(ErrorCode::NoState), module, *partition),
        ComputeError::Deadline { .. } => new(ErrorCode::Deadline)
            .with_action("Ask for less, or with a longer deadline (compute.query_deadline_ms)."),
        ComputeError::Guest { module, .. } => new(ErrorCode::ModuleFailed).with_module(module),
        ComputeError::Read(error) => return read_error(error),
        ComputeError::Append(error) => return append_error(error),
        // A command that was not taken up in time may still be carried out.
        ComputeError::Stopped { partition, .. } => {
            return new(ErrorCode::Unavailable)
                .with_partition(*partition)
                .with_action("See `truthdb module status`, and ask again.");
        }
        ComputeError::Cancelled => new(ErrorCode::Unavailable),
        ComputeError::Storage { .. } | ComputeError::Thread { .. } => {
            tracing::error!("an operation on state failed: {text}");
            new(ErrorCode::Internal)
        }
        _ => new(ErrorCode::InvalidArgument),
    };
    api.with_outcome(Outcome::DidNotHappen)
}

fn at(error: ApiError, module: &str, partition: u32) -> ApiError {
    error.with_module(module).with_partition(partition)
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

    #[test]
    fn an_error_about_state_names_its_module_and_says_that_nothing_happened() {
        let halted = ComputeError::Halted {
            module: "tally".into(),
            partition: 1,
            sequence: 7,
            reason: "it trapped".into(),
        };
        let error = compute_error(&halted);
        assert_eq!(error.code, ErrorCode::ModuleHalted);
        assert_eq!(error.outcome, Outcome::DidNotHappen);
        assert_eq!(error.context.module.as_deref(), Some("tally"));
        assert_eq!(
            (error.context.partition, error.context.sequence),
            (Some(1), Some(7))
        );
        let late = compute_error(&ComputeError::Deadline { deadline_ms: 5 });
        assert_eq!(late.outcome, Outcome::DidNotHappen);
        assert!(late.retryable);
        let unknown = ComputeError::Append(AppendError::Unknown {
            partition: 1,
            source: std::sync::Arc::new(std::io::Error::other("disk")),
        });
        assert_eq!(compute_error(&unknown).outcome, Outcome::MayHaveHappened);
    }

    #[test]
    fn a_validators_verdict_travels_whole() {
        let error = append_error(&AppendError::Rejected {
            validator: "covered".into(),
            index: 3,
            code: 9,
            message: "not covered".into(),
        });
        assert_eq!(error.code, ErrorCode::Rejected);
        assert_eq!(error.context.module.as_deref(), Some("covered"));
        assert_eq!(error.context.event_index, Some(3));
        assert_eq!(error.context.reason_code, Some(9));
        assert_eq!(error.outcome, Outcome::DidNotHappen);
        assert!(!error.retryable);
    }
}
