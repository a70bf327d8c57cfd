//! The life of modules, as gRPC and HTTP have in common: requests and answers are those of `v1`.
//!
//! Decisions wait for the log, so they run apart from the network threads and a few at a time. What is
//! only looked at goes to the readers.

use std::sync::Arc;

use bytes::Bytes;
use truthdb_api::{ApiError, v1};
use truthdb_compute::{
    ActivateRequest, ActivationMode, Compute, ComputeError, Decided, FoldState, GenerationStatus,
    MODULE_BYTES_MAX, ModuleHash, ModuleStatus, PartitionFold, REASON_BYTES_MAX, SkipRequest,
    SnapshotInfo, Token,
};
use truthdb_module::{Limits, ModuleKind, WasiProfile};

use super::Shared;
use super::config::Role;
use super::errors::compute_error;

/// The most of `slots_log2`.
pub(crate) const SLOTS_LOG2_MAX: u32 = 16;
/// When a decision that found too many others should come again, milliseconds.
const BUSY_RETRY_MS: u64 = 500;

/// Runs a decision on a thread of its own.
async fn decide<T: Send + 'static>(
    shared: &Arc<Shared>,
    decision: impl FnOnce(&Compute) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // The table of operations has seen to `compute`; events of the database's own need this too.
    if !shared.config.runs(Role::Ingest) {
        return Err(ApiError::role_disabled(Role::Ingest.name()));
    }
    let slot = Arc::clone(&shared.decisions)
        .try_acquire_owned()
        .map_err(|_| {
            ApiError::overloaded(
                "too many decisions about modules are under way",
                BUSY_RETRY_MS,
            )
        })?;
    let compute = shared.compute.clone();
    let work = move || {
        let _slot = slot;
        decision(&compute)
    };
    super::run_apart(work).await
}

fn text(error: ComputeError) -> ApiError {
    compute_error(&error)
}

/// Publishes a module.
pub(crate) async fn publish(
    shared: &Arc<Shared>,
    wasm: Bytes,
) -> Result<v1::PublishResponse, ApiError> {
    check_bytes(wasm.len())?;
    let published = decide(shared, move |compute| compute.publish(&wasm).map_err(text)).await?;
    tracing::info!(
        module = %published.module,
        hash = %hex(&published.hash),
        existed = published.existed,
        "a module was published"
    );
    Ok(v1::PublishResponse {
        module: published.module,
        hash: bytes_of(&published.hash),
        bytes: published.bytes,
        kind: kind(published.kind).into(),
        existed: published.existed,
        token: Some(token(&published.token)),
    })
}

/// Refuses more bytes than a module may have.
pub(crate) fn check_bytes(bytes: usize) -> Result<(), ApiError> {
    if bytes <= MODULE_BYTES_MAX {
        return Ok(());
    }
    let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    Err(ApiError::limit_exceeded(
        "module_bytes_max",
        number(MODULE_BYTES_MAX),
        number(bytes),
    ))
}

/// Activates published code.
pub(crate) async fn activate(
    shared: &Arc<Shared>,
    request: v1::ActivateRequest,
) -> Result<v1::DecisionResponse, ApiError> {
    let limits = limits(&request.limits)?;
    let wasi = match request.wasi.as_str() {
        "" => WasiProfile::None,
        name => WasiProfile::from_name(name).ok_or_else(|| {
            ApiError::invalid_argument(format!("wasi={name:?} is neither none nor deterministic"))
        })?,
    };
    let mode = match request.mode() {
        v1::ActivationMode::Unspecified | v1::ActivationMode::Rebuild => ActivationMode::Rebuild,
        v1::ActivationMode::Continue => ActivationMode::Continue,
        v1::ActivationMode::Migrate => ActivationMode::Migrate,
    };
    let decided = decide(shared, move |compute| {
        let hash = compute.find_published(&request.hash).map_err(text)?;
        if !request.module.is_empty() {
            check_module(compute, &request.module, &hash)?;
        }
        let activate = ActivateRequest {
            hash,
            mode,
            limits,
            wasi,
        };
        compute.activate(&activate).map_err(text)
    })
    .await?;
    Ok(decision(&decided, "a module was activated"))
}

/// Refuses code of another module than the one named.
fn check_module(compute: &Compute, module: &str, hash: &ModuleHash) -> Result<(), ApiError> {
    let status = compute.status();
    let of_module = |one: &ModuleStatus| one.published.iter().any(|(known, _)| known == hash);
    match status.modules.iter().find(|one| of_module(one)) {
        Some(found) if found.module != module => Err(ApiError::invalid_argument(format!(
            "the code {} is of module {}, not of {module}",
            hex(hash),
            found.module
        ))),
        _ => Ok(()),
    }
}

/// The defaults with what the request changes.
fn limits(changes: &[v1::ModuleLimit]) -> Result<Limits, ApiError> {
    let mut limits = Limits::default();
    for change in changes {
        set_limit(&mut limits, &change.name, change.value).map_err(ApiError::invalid_argument)?;
    }
    Ok(limits)
}

/// Changes one limit by its name.
///
/// # Errors
///
/// The names that there are, or the most that the limit can be.
pub(crate) fn set_limit(limits: &mut Limits, name: &str, value: u64) -> Result<(), String> {
    let small = || {
        u32::try_from(value)
            .map_err(|_| format!("{name}={value}: at most {} is possible", u32::MAX))
    };
    match name {
        "memory_bytes" => limits.memory_bytes = value,
        "table_elements" => limits.table_elements = small()?,
        "fuel_per_call" => limits.fuel_per_call = value,
        "fuel_per_event" => limits.fuel_per_event = value,
        "emits_per_call" => limits.emits_per_call = small()?,
        "emit_bytes_per_call" => limits.emit_bytes_per_call = value,
        "log_bytes_per_call" => limits.log_bytes_per_call = small()?,
        "fuel_per_query" => limits.fuel_per_query = value,
        "query_ticks" => limits.query_ticks = value,
        other => {
            let known: Vec<&str> = limits.fields().iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "there is no limit {other:?}; there are {}",
                known.join(", ")
            ));
        }
    }
    limits
        .check()
        .map_err(|(name, asked, most)| format!("{name}={asked}: at most {most} is possible"))
}

fn reason(text: &str) -> Result<String, ApiError> {
    let (most, actual) = (REASON_BYTES_MAX, text.len());
    if actual > most {
        let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        return Err(ApiError::limit_exceeded(
            "reason_bytes_max",
            number(most),
            number(actual),
        ));
    }
    Ok(text.to_owned())
}

/// Halts a module.
pub(crate) async fn halt(
    shared: &Arc<Shared>,
    request: v1::HaltRequest,
) -> Result<v1::DecisionResponse, ApiError> {
    let reason = reason(&request.reason)?;
    let decided = decide(shared, move |compute| {
        let halted = compute.halt(&request.module, request.partition, &reason);
        halted.map_err(text)
    })
    .await?;
    Ok(decision(&decided, "a module was halted"))
}

/// Lets a module go on.
pub(crate) async fn resume(
    shared: &Arc<Shared>,
    request: v1::ResumeRequest,
) -> Result<v1::DecisionResponse, ApiError> {
    let reason = reason(&request.reason)?;
    let decided = decide(shared, move |compute| {
        let resumed = compute.resume(&request.module, request.partition, &reason);
        resumed.map_err(text)
    })
    .await?;
    Ok(decision(&decided, "a module was resumed"))
}

/// Skips events.
pub(crate) async fn skip(
    shared: &Arc<Shared>,
    request: v1::SkipRequest,
) -> Result<v1::DecisionResponse, ApiError> {
    let skip = SkipRequest {
        reason: reason(&request.reason)?,
        module: request.module,
        partition: request.partition,
        first_sequence: request.first_sequence,
        last_sequence: request.last_sequence,
    };
    let decided = decide(shared, move |compute| compute.skip(&skip).map_err(text)).await?;
    Ok(decision(&decided, "a module skips events"))
}

/// Removes a module.
pub(crate) async fn remove(
    shared: &Arc<Shared>,
    request: v1::RemoveRequest,
) -> Result<v1::DecisionResponse, ApiError> {
    let decided = decide(shared, move |compute| {
        compute.remove(&request.module).map_err(text)
    })
    .await?;
    Ok(decision(&decided, "a module was removed"))
}

fn decision(decided: &Decided, what: &str) -> v1::DecisionResponse {
    tracing::info!(
        module = %decided.module,
        generation = decided.generation,
        at = %decided.token,
        "{what}"
    );
    v1::DecisionResponse {
        module: decided.module.clone(),
        generation: decided.generation,
        token: Some(token(&decided.token)),
    }
}

/// Refuses to tell about folds that do not run here.
fn check_folds(shared: &Shared) -> Result<(), ApiError> {
    if folds(shared) {
        return Ok(());
    }
    Err(ApiError::role_disabled(Role::Compute.name()))
}

/// Whether this node folds.
pub(crate) fn folds(shared: &Shared) -> bool {
    shared.config.compute.compute || shared.config.compute.query
}

/// All modules and folds; empty on a node that does not fold.
pub(crate) fn snapshot_of_all(shared: &Shared) -> v1::ListModulesResponse {
    if !folds(shared) {
        return v1::ListModulesResponse::default();
    }
    let status = shared.compute.status();
    v1::ListModulesResponse {
        modules: status.modules.iter().map(module).collect(),
        folds: status.partitions.iter().map(fold).collect(),
    }
}

/// All modules and folds.
pub(crate) async fn list(shared: &Arc<Shared>) -> Result<v1::ListModulesResponse, ApiError> {
    check_folds(shared)?;
    let own = Arc::clone(shared);
    shared.readers.run(move || snapshot_of_all(&own)).await
}

/// One module.
pub(crate) async fn get(shared: &Arc<Shared>, name: String) -> Result<v1::ModuleStatus, ApiError> {
    check_folds(shared)?;
    let compute = shared.compute.clone();
    let look = move || compute.module(&name).map_err(text);
    shared.readers.run(look).await?.map(|found| module(&found))
}

/// The snapshots that there are.
pub(crate) async fn list_snapshots(
    shared: &Arc<Shared>,
    partition: Option<u32>,
) -> Result<v1::ListSnapshotsResponse, ApiError> {
    check_folds(shared)?;
    let compute = shared.compute.clone();
    let look = move || compute.snapshots(partition).map_err(text);
    let snapshots = shared.readers.run(look).await??;
    Ok(snapshots_response(&snapshots))
}

/// Asks for a snapshot.
pub(crate) async fn take_snapshot(
    shared: &Arc<Shared>,
    partition: Option<u32>,
) -> Result<v1::TakeSnapshotResponse, ApiError> {
    let taken = decide(shared, move |compute| {
        compute.snapshot_now(partition).map_err(text)
    })
    .await?;
    Ok(v1::TakeSnapshotResponse {
        token: Some(token(&taken)),
    })
}

/// Removes snapshots.
pub(crate) async fn prune_snapshots(
    shared: &Arc<Shared>,
    request: v1::PruneSnapshotsRequest,
) -> Result<v1::ListSnapshotsResponse, ApiError> {
    if request.keep_last == 0 || request.slots_log2 > SLOTS_LOG2_MAX {
        return Err(ApiError::invalid_argument(format!(
            "keep_last is at least 1, and slots_log2 at most {SLOTS_LOG2_MAX}"
        )));
    }
    let mut policy = shared.config.compute.snapshot_retention;
    policy.keep_last = usize::try_from(request.keep_last).unwrap_or(usize::MAX);
    policy.slots_log2 = request.slots_log2;
    let removed = decide(shared, move |compute| {
        let partition = request.partition;
        let mut removed = compute.snapshots(partition).map_err(text)?;
        compute.prune_snapshots(partition, policy).map_err(text)?;
        let left = compute.snapshots(partition).map_err(text)?;
        removed.retain(|one| {
            let is_same = |other: &SnapshotInfo| {
                (other.partition, other.sequence) == (one.partition, one.sequence)
            };
            !left.iter().any(is_same)
        });
        Ok(removed)
    })
    .await?;
    tracing::info!(removed = removed.len(), "snapshots were pruned as asked");
    Ok(snapshots_response(&removed))
}

fn snapshots_response(snapshots: &[SnapshotInfo]) -> v1::ListSnapshotsResponse {
    let snapshots = snapshots.iter().map(|one| v1::Snapshot {
        partition: one.partition,
        sequence: one.sequence,
        timestamp_ns: one.timestamp_ns,
        bytes: one.bytes,
        modules: one
            .modules
            .iter()
            .map(
                |(module, generation, applied, fingerprint)| v1::SnapshotModule {
                    module: module.clone(),
                    generation: *generation,
                    applied_sequence: *applied,
                    fingerprint: bytes_of(&fingerprint.to_bytes()),
                },
            )
            .collect(),
    });
    v1::ListSnapshotsResponse {
        snapshots: snapshots.collect(),
    }
}

/// A token, as gRPC says it.
pub(crate) fn token(token: &Token) -> v1::Token {
    let position = |(partition, sequence)| v1::TokenPosition {
        partition,
        sequence,
    };
    v1::Token {
        positions: token.entries().map(position).collect(),
    }
}

fn fold(fold: &PartitionFold) -> v1::FoldStatus {
    v1::FoldStatus {
        partition: fold.partition,
        applied_sequence: fold.applied,
        committed_sequence: fold.committed,
        snapshot_sequence: fold.snapshot,
        problem: fold.problem.clone().unwrap_or_default(),
    }
}

/// A module, as gRPC says it.
pub(crate) fn module(status: &ModuleStatus) -> v1::ModuleStatus {
    let generation = |one| generation(&status.module, one);
    v1::ModuleStatus {
        module: status.module.clone(),
        kind: kind(status.kind).into(),
        tables: status.tables.clone(),
        hash: bytes_of(&status.module_hash),
        generations: status.generations.iter().map(generation).collect(),
        published: status
            .published
            .iter()
            .map(|(hash, bytes)| v1::PublishedCode {
                hash: bytes_of(hash),
                bytes: *bytes,
            })
            .collect(),
    }
}

fn generation(module: &str, one: &GenerationStatus) -> v1::GenerationStatus {
    use v1::FoldState as State;
    let (state, reason, halted) = match &one.state {
        FoldState::Live => (State::Live, "", 0),
        FoldState::CatchingUp => (State::CatchingUp, "", 0),
        FoldState::Loading => (State::Loading, "", 0),
        FoldState::Halted { sequence, reason } => (State::Halted, reason.as_str(), *sequence),
        FoldState::Waiting { reason } => (State::Waiting, reason.as_str(), 0),
        FoldState::Retired => (State::Retired, "", 0),
    };
    let action = match state {
        State::Halted => what_to_do(module, one.partition, halted),
        _ => String::new(),
    };
    v1::GenerationStatus {
        partition: one.partition,
        generation: one.generation,
        hash: bytes_of(&one.module_hash),
        mode: mode(one.mode).into(),
        current: one.current,
        activated_sequence: one.activated_at,
        applied_sequence: one.applied,
        committed_sequence: one.committed,
        state: state.into(),
        reason: reason.to_owned(),
        action,
        halted_sequence: halted,
        fingerprint: bytes_of(&one.fingerprint.to_bytes()),
        rows: one.rows,
        bytes: one.bytes,
        events: one.events,
        emitted: one.emitted,
        emitted_through: one.emitted_through,
        fuel: one.fuel,
    }
}

/// The ways out of a halt, as commands.
fn what_to_do(module: &str, partition: u32, sequence: u64) -> String {
    format!(
        "Look at the event: truthdb read --partition {partition} --from-sequence {sequence} --limit 1. \
         Then correct the module (truthdb module upgrade FILE --mode continue), or leave events out \
         (truthdb module skip {module} --partition {partition} --first {sequence} --last {sequence}), \
         or, if the cause lay outside, let it try again (truthdb module resume {module})."
    )
}

fn kind(kind: ModuleKind) -> v1::ModuleKind {
    match kind {
        ModuleKind::Validator => v1::ModuleKind::Validator,
        ModuleKind::Reducer => v1::ModuleKind::Reducer,
        ModuleKind::Processor => v1::ModuleKind::Processor,
        ModuleKind::Query => v1::ModuleKind::Query,
    }
}

fn mode(mode: ActivationMode) -> v1::ActivationMode {
    match mode {
        ActivationMode::Rebuild => v1::ActivationMode::Rebuild,
        ActivationMode::Continue => v1::ActivationMode::Continue,
        ActivationMode::Migrate => v1::ActivationMode::Migrate,
    }
}

/// Bytes of a hash or a fingerprint.
pub(crate) fn bytes_of(hash: &[u8; 32]) -> Bytes {
    Bytes::copy_from_slice(hash)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_set_by_its_name_and_no_other() {
        let mut limits = Limits::default();
        for (name, _) in limits.fields() {
            set_limit(&mut limits, name, 7).unwrap();
        }
        assert!(limits.fields().iter().all(|(_, value)| *value == 7));
        let error = set_limit(&mut limits, "memory", 7).unwrap_err();
        assert!(error.contains("memory_bytes, table_elements"), "{error}");
        let error = set_limit(&mut limits, "memory_bytes", 2 << 30).unwrap_err();
        assert!(error.contains("at most 268435456"), "{error}");
    }
}
