//! Questions about state, as gRPC and HTTP have in common: requests and answers are those of `v1`.
//!
//! They run in a pool of their own, so that slow ones take no place of a read; each has a deadline.

use std::ops::ControlFlow;
use std::sync::Arc;

use truthdb_api::{ApiError, v1};
use truthdb_compute::{
    At, Compute, ComputeError, GetRequest, Progress, QUERY_ARGUMENTS_BYTES_MAX, QueryAnswer,
    QueryRequest, ReadOptions, ReplaySink, RowsAnswer, ScanRequest, Stamp, Token, VerifyReport,
    VerifyRequest,
};

use super::Shared;
use super::errors::compute_error;
use super::modules::{bytes_of, token};

/// Rows of a page, if the request does not say.
const PAGE_ROWS_DEFAULT: u32 = 100;

async fn ask<T: Send + 'static>(
    shared: &Arc<Shared>,
    question: impl FnOnce(&Compute) -> Result<T, ComputeError> + Send + 'static,
) -> Result<T, ApiError> {
    let compute = shared.compute.clone();
    let answer = shared.queries.run(move || question(&compute)).await?;
    answer.map_err(|error| compute_error(&error))
}

/// A moment from its gRPC form.
fn token_of(field: &str, given: v1::Token) -> Result<Token, ApiError> {
    let wrong = |reason: &str| Err(ApiError::invalid_argument(format!("{field}: {reason}")));
    let mut token = Token::default();
    for position in given.positions {
        if token.get(position.partition).is_some() {
            return wrong("a partition is named twice");
        }
        token.set(position.partition, position.sequence);
    }
    if token.is_empty() {
        return wrong("it names no partition");
    }
    Ok(token)
}

/// Moment and bounds, and the one partition that is asked.
fn options(given: Option<v1::StateOptions>) -> Result<(ReadOptions, Option<u32>), ApiError> {
    let given = given.unwrap_or_default();
    let at = match given.moment {
        None => At::Now,
        Some(v1::state_options::Moment::At(token)) => At::Token(token_of("at", token)?),
        Some(v1::state_options::Moment::AsOfNs(time)) => At::Time(time),
    };
    let min_sequence = given
        .min_sequence
        .map(|token| token_of("min_sequence", token))
        .transpose()?;
    let options = ReadOptions {
        at,
        min_sequence,
        deadline_ms: (given.deadline_ms != 0).then_some(given.deadline_ms),
        generation: (given.generation != 0).then_some(given.generation),
    };
    Ok((options, given.partition))
}

/// One key.
pub(crate) async fn get(
    shared: &Arc<Shared>,
    request: v1::StateGetRequest,
) -> Result<v1::StateRows, ApiError> {
    let (options, partition) = options(request.options)?;
    let request = GetRequest {
        module: request.module,
        table: request.table,
        key: request.key.to_vec(),
        partition,
        options,
    };
    let answer = ask(shared, move |compute| compute.get(&request)).await?;
    Ok(rows(answer))
}

/// A page of a range of keys.
pub(crate) async fn scan(
    shared: &Arc<Shared>,
    request: v1::StateScanRequest,
) -> Result<v1::StateRows, ApiError> {
    let (options, partition) = options(request.options)?;
    let (mut start, mut end) = (request.start.to_vec(), request.end.map(|end| end.to_vec()));
    if !request.prefix.is_empty() {
        start = start.max(request.prefix.to_vec());
        end = match (end, ScanRequest::prefix_end(&request.prefix)) {
            (Some(end), Some(of_prefix)) => Some(end.min(of_prefix)),
            (end, of_prefix) => end.or(of_prefix),
        };
    }
    let scan = ScanRequest {
        module: request.module,
        table: request.table,
        start,
        end,
        reverse: request.reverse,
        limit: match request.page_size {
            0 => PAGE_ROWS_DEFAULT,
            rows => rows,
        },
        page: (!request.page_token.is_empty()).then(|| request.page_token.to_vec()),
        partition,
        options,
    };
    let answer = ask(shared, move |compute| compute.scan(&scan)).await?;
    Ok(rows(answer))
}

/// An operator's answer.
pub(crate) async fn query(
    shared: &Arc<Shared>,
    request: v1::StateQueryRequest,
) -> Result<v1::StateAnswer, ApiError> {
    let (most, actual) = (QUERY_ARGUMENTS_BYTES_MAX, request.arguments.len());
    if actual > most {
        let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        return Err(ApiError::limit_exceeded(
            "query_arguments_bytes_max",
            number(most),
            number(actual),
        ));
    }
    let (options, partition) = options(request.options)?;
    let request = QueryRequest {
        operator: request.operator,
        arguments: request.arguments.to_vec(),
        partition,
        options,
    };
    let answer = ask(shared, move |compute| compute.query(&request)).await?;
    Ok(answer_of(answer))
}

fn rows(answer: RowsAnswer) -> v1::StateRows {
    v1::StateRows {
        token: Some(token(&answer.token())),
        stamps: answer.stamps.iter().map(stamp).collect(),
        next_page_token: answer.next.unwrap_or_default().into(),
        rows: answer
            .rows
            .into_iter()
            .map(|row| v1::StateRow {
                partition: row.partition,
                key: row.key.into(),
                value: row.value.into(),
            })
            .collect(),
    }
}

fn answer_of(answer: QueryAnswer) -> v1::StateAnswer {
    v1::StateAnswer {
        token: Some(token(&answer.token())),
        stamps: answer.stamps.iter().map(stamp).collect(),
        operator_hash: bytes_of(&answer.operator_hash),
        fuel: answer.fuel,
        rows: answer
            .rows
            .into_iter()
            .map(|row| v1::AnswerRow {
                key: row.key.into(),
                value: row.value.into(),
            })
            .collect(),
    }
}

/// What an answer was computed from, as gRPC says it.
pub(crate) fn stamp(stamp: &Stamp) -> v1::Stamp {
    v1::Stamp {
        partition: stamp.partition,
        module: stamp.module.clone(),
        generation: stamp.generation,
        hash: bytes_of(&stamp.module_hash),
        sequence: stamp.sequence,
        timestamp_ns: stamp.timestamp_ns,
        fingerprint: bytes_of(&stamp.fingerprint.to_bytes()),
    }
}

/// Verifies state; `progress` is called now and then, and ends the work by `Break`.
///
/// # Errors
///
/// Why it could not be done.
pub(crate) fn verify(
    compute: &Compute,
    request: &v1::StateVerifyRequest,
    progress: &mut (dyn FnMut(v1::StateVerifyProgress) -> ControlFlow<()> + Send),
) -> Result<VerifyReport, ApiError> {
    struct Sink<'a>(&'a mut (dyn FnMut(v1::StateVerifyProgress) -> ControlFlow<()> + Send));
    impl ReplaySink for Sink<'_> {
        fn progress(&mut self, progress: Progress) -> ControlFlow<()> {
            (self.0)(v1::StateVerifyProgress {
                partition: progress.partition,
                sequence: progress.sequence,
                target_sequence: progress.target,
                events: progress.events,
            })
        }
    }
    let request = VerifyRequest {
        module: (!request.module.is_empty()).then(|| request.module.clone()),
        partition: request.partition,
        to: At::Now,
    };
    compute
        .verify(&request, &mut Sink(progress))
        .map_err(|error| compute_error(&error))
}

/// A report's messages: each difference, then the summary.
pub(crate) fn verify_messages(report: &VerifyReport) -> Vec<v1::StateVerifyResponse> {
    use v1::state_verify_response::Message;
    let difference = report.differences.iter().map(|one| {
        Message::Difference(v1::StateDifference {
            partition: one.partition,
            module: one.module.clone(),
            generation: one.generation,
            sequence: one.sequence,
            what: one.what.clone(),
            recorded: one.recorded.clone(),
            replayed: one.replayed.clone(),
        })
    });
    let modules = report.modules.iter().map(|one| v1::VerifiedModule {
        stamp: Some(stamp(&one.stamp)),
        checkpoints: one.checkpoints,
        snapshots: one.snapshots,
        deltas: one.deltas,
        derived: one.derived,
        live: one.live,
        unverified: one.unverified.clone().unwrap_or_default(),
    });
    let summary = v1::StateVerifySummary {
        modules: modules.collect(),
        differences: u64::try_from(report.differences.len()).unwrap_or(u64::MAX),
    };
    difference
        .chain([Message::Summary(summary)])
        .map(|message| v1::StateVerifyResponse {
            message: Some(message),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_each_partition_once() {
        let position = |partition, sequence| v1::TokenPosition {
            partition,
            sequence,
        };
        let positions = vec![position(0, 3), position(2, 9)];
        let token = token_of("at", v1::Token { positions }).unwrap();
        assert_eq!(token.to_string(), "0:3,2:9");
        let positions = vec![position(0, 3), position(0, 9)];
        for positions in [positions, Vec::new()] {
            let error = token_of("at", v1::Token { positions }).unwrap_err();
            assert!(error.message.starts_with("at: "), "{error}");
        }
    }
}
