//! The life of modules, and snapshots, over HTTP/JSON.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use truthdb_api::{ApiError, v1};
use truthdb_compute::MODULE_BYTES_MAX;

use super::{HttpError, Query, bytes_body, json_body};
use crate::server::{Shared, modules};
use crate::state_json;

type Answer = Result<Json<Value>, HttpError>;

/// An activation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivateBody {
    hash: String,
    mode: Option<String>,
    wasi: Option<String>,
    #[serde(default)]
    limits: std::collections::BTreeMap<String, u64>,
}

/// A halt or a resumption.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReasonBody {
    partition: Option<u32>,
    #[serde(default)]
    reason: String,
}

/// Events that are left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SkipBody {
    partition: u32,
    first_sequence: u64,
    last_sequence: u64,
    #[serde(default)]
    reason: String,
}

/// Nothing: the path says it all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

/// A snapshot.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotBody {
    partition: Option<u32>,
}

/// Which snapshots stay.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PruneBody {
    partition: Option<u32>,
    keep_last: u32,
    #[serde(default)]
    slots_log2: u32,
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let all = modules::list(&shared).await?;
    Ok(Json(json!({
        "modules": all.modules.iter().map(state_json::module).collect::<Vec<_>>(),
        "folds": all.folds.iter().map(state_json::fold).collect::<Vec<_>>(),
    })))
}

pub(super) async fn publish(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let most = MODULE_BYTES_MAX;
    let (wasm, _bytes) = bytes_body(&shared, &headers, body, "module_bytes_max", most).await?;
    let published = modules::publish(&shared, wasm).await?;
    Ok(Json(state_json::published(&published)))
}

pub(super) async fn one(State(shared): State<Arc<Shared>>, Path(module): Path<String>) -> Answer {
    let found = modules::get(&shared, module).await?;
    Ok(Json(state_json::module(&found)))
}

pub(super) async fn activate(
    State(shared): State<Arc<Shared>>,
    Path(module): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (body, _bytes): (ActivateBody, _) = json_body(&shared, &headers, body).await?;
    let mode = match body.mode.as_deref() {
        None | Some("rebuild") => v1::ActivationMode::Rebuild,
        Some("continue") => v1::ActivationMode::Continue,
        Some("migrate") => v1::ActivationMode::Migrate,
        Some(other) => {
            let message = format!("mode is {other:?}; there are rebuild, continue and migrate");
            return Err(ApiError::invalid_argument(message).into());
        }
    };
    let limits = body.limits.into_iter();
    let request = v1::ActivateRequest {
        hash: body.hash,
        module,
        mode: mode.into(),
        limits: limits
            .map(|(name, value)| v1::ModuleLimit { name, value })
            .collect(),
        wasi: body.wasi.unwrap_or_default(),
    };
    let decided = modules::activate(&shared, request).await?;
    Ok(Json(state_json::decision(&decided)))
}

pub(super) async fn halt(
    State(shared): State<Arc<Shared>>,
    Path(module): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (body, _bytes): (ReasonBody, _) = json_body(&shared, &headers, body).await?;
    let request = v1::HaltRequest {
        module,
        partition: body.partition,
        reason: body.reason,
    };
    let decided = modules::halt(&shared, request).await?;
    Ok(Json(state_json::decision(&decided)))
}

pub(super) async fn resume(
    State(shared): State<Arc<Shared>>,
    Path(module): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (body, _bytes): (ReasonBody, _) = json_body(&shared, &headers, body).await?;
    let request = v1::ResumeRequest {
        module,
        partition: body.partition,
        reason: body.reason,
    };
    let decided = modules::resume(&shared, request).await?;
    Ok(Json(state_json::decision(&decided)))
}

pub(super) async fn skip(
    State(shared): State<Arc<Shared>>,
    Path(module): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (body, _bytes): (SkipBody, _) = json_body(&shared, &headers, body).await?;
    let request = v1::SkipRequest {
        module,
        partition: body.partition,
        first_sequence: body.first_sequence,
        last_sequence: body.last_sequence,
        reason: body.reason,
    };
    let decided = modules::skip(&shared, request).await?;
    Ok(Json(state_json::decision(&decided)))
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Path(module): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (EmptyBody {}, _bytes) = json_body(&shared, &headers, body).await?;
    let decided = modules::remove(&shared, v1::RemoveRequest { module }).await?;
    Ok(Json(state_json::decision(&decided)))
}

fn snapshots(answer: &v1::ListSnapshotsResponse) -> Json<Value> {
    let all: Vec<Value> = answer.snapshots.iter().map(state_json::snapshot).collect();
    Json(json!({ "snapshots": all }))
}

pub(super) async fn list_snapshots(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = Query::parse(query.as_deref(), &["partition"])?;
    let partition = super::partition(&query)?;
    Ok(snapshots(
        &modules::list_snapshots(&shared, partition).await?,
    ))
}

pub(super) async fn take_snapshot(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (body, _bytes): (SnapshotBody, _) = json_body(&shared, &headers, body).await?;
    let taken = modules::take_snapshot(&shared, body.partition).await?;
    Ok(Json(
        json!({"token": state_json::token(taken.token.as_ref())}),
    ))
}

pub(super) async fn prune_snapshots(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (body, _bytes): (PruneBody, _) = json_body(&shared, &headers, body).await?;
    let request = v1::PruneSnapshotsRequest {
        partition: body.partition,
        keep_last: body.keep_last,
        slots_log2: body.slots_log2,
    };
    Ok(snapshots(
        &modules::prune_snapshots(&shared, request).await?,
    ))
}
