//! Health, metrics, status, proofs and trims over HTTP/JSON.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use truthdb_api::{ApiError, ErrorCode, v1};
use truthdb_engine::PartitionState;

use super::json::TrimBody;
use super::{HttpError, json_body, path_number};
use crate::server::{Shared, grpc, metrics as page, modules};
use crate::state_json;

type Answer = Result<Json<Value>, HttpError>;

/// The process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Every partition serves.
pub(super) async fn readyz(State(shared): State<Arc<Shared>>) -> Result<Response, HttpError> {
    let engine = shared.engine.clone();
    let status = shared.readers.run(move || engine.status()).await?;
    let stopping = *shared.stopping().borrow();
    let serves =
        |state: &PartitionState| matches!(state, PartitionState::Open | PartitionState::ReadOnly);
    let ready = !stopping && status.partitions.iter().all(|one| serves(&one.state));
    let partitions: Vec<Value> = status
        .partitions
        .iter()
        .map(|one| json!({"partition": one.partition, "state": one.state.name()}))
        .collect();
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    // Names of modules are for those with a token; how many are in trouble is for everybody.
    let modules = modules::snapshot_of_all(&shared);
    let count = |state: v1::FoldState| {
        let generations = modules.modules.iter().flat_map(|one| &one.generations);
        generations.filter(|one| one.state() == state).count()
    };
    let body = json!({
        "ready": ready,
        "stopping": stopping,
        "partitions": partitions,
        "modules_halted": count(v1::FoldState::Halted),
        "modules_waiting": count(v1::FoldState::Waiting),
        "modules_catching_up": count(v1::FoldState::CatchingUp) + count(v1::FoldState::Loading),
    });
    Ok((code, Json(body)).into_response())
}

pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, HttpError> {
    let engine = shared.engine.clone();
    let own = Arc::clone(&shared);
    let look = move || (engine.status(), page::Modules::look(&own));
    let (status, modules) = shared.readers.run(look).await?;
    let mut text = page::render(&shared.metrics, &status, shared.readers.waiting());
    modules.render(&mut text, shared.queries.waiting());
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    Ok((kind, text).into_response())
}

pub(super) async fn openapi() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, super::openapi::document()).into_response()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) async fn database(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let facts = grpc::database(&shared);
    let limits = facts.limits.unwrap_or_default();
    Json(json!({
        "database_id": hex(&facts.database_id),
        "partition_count": facts.partition_count,
        "server_version": facts.server_version,
        "roles": facts.roles,
        "durability": shared.engine.config().durability.name(),
        "loss_window_ms": facts.loss_window_ms,
        "limits": {
            "stream_name_bytes_max": limits.stream_name_bytes_max,
            "event_type_bytes_max": limits.event_type_bytes_max,
            "content_type_bytes_max": limits.content_type_bytes_max,
            "tags_max": limits.tags_max,
            "metadata_bytes_max": limits.metadata_bytes_max,
            "metadata_keys_max": limits.metadata_keys_max,
            "event_payload_bytes_max": limits.event_payload_bytes_max,
            "batch_events_max": limits.batch_events_max,
            "batch_bytes_max": limits.batch_bytes_max,
            "cursor_name_bytes_max": limits.cursor_name_bytes_max,
            "filter_matches_max": limits.filter_matches_max,
            "filter_names_max": limits.filter_names_max,
            "expectations_max": limits.expectations_max,
        },
    }))
}

pub(super) async fn status(State(shared): State<Arc<Shared>>) -> Answer {
    let status = grpc::status(&shared).await?;
    let partitions: Vec<Value> = status.partitions.iter().map(partition_json).collect();
    Ok(Json(json!({
        "database_id": hex(&status.database_id),
        "server_version": status.server_version,
        "roles": status.roles,
        "data_directory": status.data_directory,
        "uptime_ms": status.uptime_ms,
        "durability": shared.engine.config().durability.name(),
        "io_backend": status.io_backend,
        "disk_free_bytes": status.disk_free_bytes,
        "disk_total_bytes": status.disk_total_bytes,
        "connections": status.connections,
        "partitions": partitions,
        "modules": status.modules.iter().map(state_json::module).collect::<Vec<_>>(),
        "folds": status.folds.iter().map(state_json::fold).collect::<Vec<_>>(),
    })))
}

fn partition_json(one: &v1::PartitionStatus) -> Value {
    let state = one
        .state()
        .as_str_name()
        .trim_start_matches("PARTITION_STATE_")
        .to_lowercase();
    json!({
        "partition": one.partition,
        "state": state,
        "reason": one.reason,
        "first_sequence": one.first_sequence,
        "appended_sequence": one.appended_sequence,
        "flushed_sequence": one.flushed_sequence,
        "committed_sequence": one.committed_sequence,
        "active_segment": one.active_segment,
        "sealed_segments": one.sealed_segments,
        "closed_segments": one.closed_segments,
        "segment_bytes": one.segment_bytes,
        "index_bytes": one.index_bytes,
        "event_bytes": one.event_bytes,
        "chain": hex(&one.chain),
        "backlog_batches": one.backlog_batches,
        "backlog_bytes": one.backlog_bytes,
        "subscriptions": one.subscriptions,
        "last_timestamp_ns": one.last_timestamp_ns,
    })
}

pub(super) async fn proof(
    State(shared): State<Arc<Shared>>,
    Path((partition, sequence)): Path<(String, String)>,
) -> Result<Response, HttpError> {
    let partition = path_number("partition", &partition)?;
    let sequence = path_number("sequence", &sequence)?;
    let proof = grpc::prove(&shared, partition, sequence).await?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, proof).into_response())
}

pub(super) async fn trim(
    State(shared): State<Arc<Shared>>,
    Path(partition): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let partition = path_number("partition", &partition)?;
    let (body, _bytes): (TrimBody, _) = json_body(&shared, &headers, body).await?;
    let before = |before| v1::TrimTarget {
        partition,
        before: Some(before),
    };
    let done = match (
        body.before_sequence,
        body.before_timestamp_ns,
        body.plan_token,
    ) {
        (Some(sequence), None, None) => {
            let target = before(v1::trim_target::Before::Sequence(sequence));
            grpc::trim_plan(&shared, target).await?
        }
        (None, Some(time), None) => {
            let target = before(v1::trim_target::Before::TimestampNs(time));
            grpc::trim_plan(&shared, target).await?
        }
        (None, None, Some(token)) => {
            let token = URL_SAFE_NO_PAD
                .decode(token)
                .map_err(|_| ApiError::new(ErrorCode::NotFound, "the plan is unknown"))?;
            grpc::trim_execute(&shared, Some(partition), &token).await?
        }
        _ => {
            let reason = "give one of before_sequence, before_timestamp_ns and plan_token";
            return Err(ApiError::invalid_argument(reason).into());
        }
    };
    let token = (!done.executed).then(|| URL_SAFE_NO_PAD.encode(&done.plan_token));
    Ok(Json(json!({
        "partition": done.partition,
        "segments": done.segments,
        "events": done.events,
        "bytes": done.bytes,
        "first_sequence": done.first_sequence,
        "executed": done.executed,
        "plan_token": token,
    })))
}
