//! The service `truthdb.v1.Admin`.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::{Request, Response, Status};
use truthdb_api::{ApiError, ErrorCode, Outcome, v1};
use truthdb_engine::{BackupPartition, BackupSession, PartitionState, TrimPlan, TrimTo};

use super::{Answers, Sender, answers, standing, within};
use crate::server::errors::{read_error, trim_error, with_causes};
use crate::server::{Shared, convert, modules, run_apart};

/// Bytes of one chunk of a backup.
const CHUNK_BYTES: usize = 1 << 20;
/// Plans of trims that are remembered.
const TRIM_PLANS_MAX: usize = 64;
/// When work that is exclusive may be asked for again, milliseconds.
const BUSY_RETRY_MS: u64 = 5_000;
/// The least time between two reports of progress.
const PROGRESS_INTERVAL_NS: u64 = 1_000_000_000;

/// Plans of trims that may be executed, by their tokens.
#[derive(Default)]
pub(crate) struct TrimPlans {
    plans: HashMap<[u8; 16], TrimPlan>,
    order: std::collections::VecDeque<[u8; 16]>,
}

impl TrimPlans {
    fn put(&mut self, plan: TrimPlan) -> [u8; 16] {
        let token = *uuid::Uuid::new_v4().as_bytes();
        self.plans.insert(token, plan);
        self.order.push_back(token);
        if self.order.len() > TRIM_PLANS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.plans.remove(&oldest);
        }
        token
    }

    fn take(&mut self, partition: Option<u32>, token: &[u8]) -> Option<TrimPlan> {
        let token: [u8; 16] = token.try_into().ok()?;
        let plan = self.plans.get(&token)?;
        if partition.is_some_and(|partition| partition != plan.partition) {
            return None;
        }
        self.order.retain(|other| *other != token);
        self.plans.remove(&token)
    }
}

pub(super) struct AdminService {
    shared: Arc<Shared>,
}

impl AdminService {
    pub(super) fn new(shared: Arc<Shared>) -> AdminService {
        AdminService { shared }
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    type VerifyStream = Answers<v1::VerifyResponse>;
    type BackupStream = Answers<v1::BackupResponse>;

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        within(&request, status(&self.shared))
            .await
            .map(Response::new)
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let standing = standing(&request);
        let request = request.into_inner();
        if let Some(partition) = request.partition {
            self.shared.check_partition(partition)?;
        }
        let slot = Arc::clone(&self.shared.verify_slot)
            .try_acquire_owned()
            .map_err(|_| ApiError::overloaded("another verification is running", BUSY_RETRY_MS))?;
        let shared = Arc::clone(&self.shared);
        let work = |sender| async move {
            let runtime = tokio::runtime::Handle::current();
            let work = move || {
                let _slot = slot;
                verify(&shared, &request, &sender, &runtime)
            };
            run_apart(work).await
        };
        Ok(Response::new(answers(&self.shared, standing, work)))
    }

    async fn prove(
        &self,
        request: Request<v1::ProveRequest>,
    ) -> Result<Response<v1::ProveResponse>, Status> {
        let body = *request.get_ref();
        let call = async {
            let proof_json = prove(&self.shared, body.partition, body.sequence).await?;
            Ok(v1::ProveResponse { proof_json })
        };
        within(&request, call).await.map(Response::new)
    }

    async fn trim(
        &self,
        request: Request<v1::TrimRequest>,
    ) -> Result<Response<v1::TrimResponse>, Status> {
        let body = request.get_ref().request.clone();
        let call = async {
            match body {
                Some(v1::trim_request::Request::Plan(target)) => {
                    trim_plan(&self.shared, target).await
                }
                Some(v1::trim_request::Request::ExecutePlanToken(token)) => {
                    trim_execute(&self.shared, None, &token).await
                }
                None => Err(ApiError::invalid_argument(
                    "`plan` or `execute_plan_token` is needed",
                )),
            }
        };
        within(&request, call).await.map(Response::new)
    }

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let slot = Arc::clone(&self.shared.backup_slot)
            .try_acquire_owned()
            .map_err(|_| ApiError::overloaded("another backup is running", BUSY_RETRY_MS))?;
        let standing = standing(&request);
        let request = request.into_inner();
        let shared = Arc::clone(&self.shared);
        let work = |sender| async move {
            let runtime = tokio::runtime::Handle::current();
            let work = move || {
                let _slot = slot;
                Backup::new(&shared, &request, &sender, &runtime)?.run()
            };
            run_apart(work).await
        };
        Ok(Response::new(answers(&self.shared, standing, work)))
    }
}

/// What the node is doing.
pub(in crate::server) async fn status(
    shared: &Arc<Shared>,
) -> Result<v1::StatusResponse, ApiError> {
    let engine = shared.engine.clone();
    let reader = Arc::clone(shared);
    let (status, partitions, modules) = shared
        .readers
        .run(move || {
            let status = engine.status();
            let partitions = status.partitions.iter();
            let partitions: Vec<_> = partitions
                .map(|one| partition_status(&reader, one))
                .collect();
            (status, partitions, modules::snapshot_of_all(&reader))
        })
        .await?;
    let uptime_ns = shared
        .clock
        .monotonic_ns()
        .saturating_sub(shared.started_ns);
    let open = &shared.metrics;
    let connections = open.http_connections.load(Ordering::Relaxed)
        + open.native_connections.load(Ordering::Relaxed);
    Ok(v1::StatusResponse {
        database_id: status.database_id.to_vec().into(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        roles: shared
            .config
            .roles
            .iter()
            .map(|role| role.name().to_owned())
            .collect(),
        data_directory: shared.config.data.directory.display().to_string(),
        uptime_ms: uptime_ns / 1_000_000,
        durability: convert::durability(status.durability).into(),
        io_backend: status.backend.to_owned(),
        disk_free_bytes: status.free_bytes,
        disk_total_bytes: status.total_bytes,
        partitions,
        connections: u32::try_from(connections).unwrap_or(0),
        modules: modules.modules,
        folds: modules.folds,
    })
}

fn partition_status(
    shared: &Shared,
    partition: &truthdb_engine::PartitionStatus,
) -> v1::PartitionStatus {
    use v1::PartitionState as State;
    let (state, reason) = match &partition.state {
        PartitionState::Open => (State::Serving, String::new()),
        PartitionState::ReadOnly => (
            State::ReadOnly,
            "this node does not have the role `ingest`".to_owned(),
        ),
        PartitionState::DiskFull => (
            State::ReadOnly,
            "there is no space for another segment: free space or trim".to_owned(),
        ),
        PartitionState::Stopped { reason } => (State::Stopped, reason.clone()),
        PartitionState::Fenced { reason } => (State::Fenced, reason.clone()),
    };
    v1::PartitionStatus {
        partition: partition.partition,
        state: state.into(),
        reason,
        first_sequence: partition.first_sequence,
        appended_sequence: partition.appended,
        committed_sequence: partition.committed,
        active_segment: partition.active_segment,
        sealed_segments: partition.sealed_segments,
        closed_segments: partition
            .segments
            .saturating_sub(partition.sealed_segments + 1),
        segment_bytes: partition.bytes,
        backlog_batches: partition.queue_batches,
        backlog_bytes: partition.queue_bytes,
        last_timestamp_ns: partition.timestamp_ns,
        event_bytes: partition.sealed_event_bytes,
        flushed_sequence: match shared.engine.config().durability {
            truthdb_engine::Durability::FlushEachGroup => partition.committed,
            _ => 0,
        },
        index_bytes: index_bytes(shared, partition.partition),
        subscriptions: shared
            .subscriptions
            .get(usize::try_from(partition.partition).expect("a u32 fits"))
            .map_or(0, |count| count.load(Ordering::Relaxed)),
        chain: partition
            .chain
            .map_or_else(bytes::Bytes::new, |chain| chain.to_vec().into()),
    }
}

/// Bytes of a partition's indexes; what cannot be looked at counts nothing, it is derived anyway.
fn index_bytes(shared: &Shared, partition: u32) -> u64 {
    let directory = shared
        .config
        .data
        .directory
        .join(truthdb_log::index_dir(partition));
    let files = std::fs::read_dir(directory).into_iter().flatten();
    files
        .filter_map(|file| Some(file.ok()?.metadata().ok()?.len()))
        .sum()
}

/// An inclusion proof as JSON.
pub(in crate::server) async fn prove(
    shared: &Arc<Shared>,
    partition: u32,
    sequence: u64,
) -> Result<String, ApiError> {
    shared.check_partition(partition)?;
    let engine = shared.engine.clone();
    let committed = engine.committed(partition);
    if sequence == 0 || sequence > committed {
        let message =
            format!("partition {partition} has no event {sequence}; the last one is {committed}");
        return Err(ApiError::new(ErrorCode::NotFound, message).with_partition(partition));
    }
    let read = move || engine.prove(partition, sequence);
    let proof = shared
        .readers
        .run(read)
        .await?
        .map_err(|error| read_error(&error))?;
    serde_json::to_string(&proof)
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))
}

fn trim_response(plan: &TrimPlan, executed: bool, plan_token: &[u8]) -> v1::TrimResponse {
    v1::TrimResponse {
        partition: plan.partition,
        segments: plan.segments.clone(),
        events: plan.events,
        bytes: plan.bytes,
        first_sequence: plan.first_sequence,
        executed,
        plan_token: plan_token.to_vec().into(),
    }
}

/// Says what a trim would remove.
pub(in crate::server) async fn trim_plan(
    shared: &Arc<Shared>,
    target: v1::TrimTarget,
) -> Result<v1::TrimResponse, ApiError> {
    let to = match target.before {
        Some(v1::trim_target::Before::Sequence(sequence)) => TrimTo::Sequence(sequence),
        Some(v1::trim_target::Before::TimestampNs(time)) => TrimTo::Time(time),
        None => return Err(ApiError::invalid_argument("`before` is missing")),
    };
    shared.check_partition(target.partition)?;
    let engine = shared.engine.clone();
    let plan = move || engine.trim_plan(target.partition, to);
    let plan = shared
        .readers
        .run(plan)
        .await?
        .map_err(|error| read_error(&error))?;
    let token = shared.trim_plans.lock().put(plan.clone());
    Ok(trim_response(&plan, false, &token))
}

/// Does what a plan says, if it still holds.
pub(in crate::server) async fn trim_execute(
    shared: &Arc<Shared>,
    partition: Option<u32>,
    token: &[u8],
) -> Result<v1::TrimResponse, ApiError> {
    let unknown = || {
        ApiError::new(ErrorCode::NotFound, "the plan is unknown or outdated")
            .with_action("Make a new plan, look at it, and execute that.")
    };
    let plan = shared
        .trim_plans
        .lock()
        .take(partition, token)
        .ok_or_else(unknown)?;
    let engine = shared.engine.clone();
    let execute = move || {
        let to = TrimTo::Sequence(plan.first_sequence);
        let now = engine
            .trim_plan(plan.partition, to)
            .map_err(|error| read_error(&error))?;
        if now != plan {
            return Err(unknown());
        }
        engine.trim(&plan).map_err(|error| trim_error(&error))?;
        Ok(plan)
    };
    let done = shared.readers.run(execute).await??;
    tracing::info!(
        partition = done.partition,
        segments = done.segments.len(),
        first_sequence = done.first_sequence,
        "trimmed as an operator asked"
    );
    Ok(trim_response(&done, true, &[]))
}

/// Keeps work to a number of bytes a second.
struct Pace {
    bytes_per_second: u64,
    begun: tokio::time::Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Pace {
        Pace {
            bytes_per_second,
            begun: tokio::time::Instant::now(),
            bytes: 0,
        }
    }

    /// Waits as long as so many more bytes take.
    fn wait(&mut self, bytes: u64, runtime: &tokio::runtime::Handle) {
        self.bytes += bytes;
        let Some(due_ms) = self
            .bytes
            .saturating_mul(1000)
            .checked_div(self.bytes_per_second)
        else {
            return;
        };
        let due = self.begun + Duration::from_millis(due_ms);
        runtime.block_on(tokio::time::sleep_until(due));
    }
}

struct Backup<'a> {
    database_id: [u8; 16],
    session: BackupSession,
    /// Chain hashes of what the caller has, by path.
    have: HashMap<String, [u8; 32]>,
    data: &'a Path,
    timestamp_ns: u64,
    sender: &'a Sender<v1::BackupResponse>,
    runtime: &'a tokio::runtime::Handle,
    pace: Pace,
    files: u64,
    bytes: u64,
}

impl<'a> Backup<'a> {
    fn new(
        shared: &'a Shared,
        request: &v1::BackupRequest,
        sender: &'a Sender<v1::BackupResponse>,
        runtime: &'a tokio::runtime::Handle,
    ) -> Result<Backup<'a>, ApiError> {
        let session = shared
            .engine
            .backup()
            .map_err(|error| backup_error(&error))?;
        let segments = request.have.iter().map(|known| {
            let path = truthdb_log::segment_path(known.partition, known.segment);
            (path, &known.chain)
        });
        let heads = request.have_heads.iter().map(|known| {
            let name = truthdb_log::run_file_name(known.first_segment, known.last_segment);
            let directory = truthdb_log::index_dir(known.partition);
            (format!("{directory}/{name}"), &known.chain)
        });
        let mut have = HashMap::new();
        for (path, chain) in segments.chain(heads) {
            let chain: [u8; 32] = chain[..]
                .try_into()
                .map_err(|_| ApiError::invalid_argument("`chain` has 32 bytes"))?;
            have.insert(path, chain);
        }
        Ok(Backup {
            database_id: shared.engine.database_id(),
            session,
            have,
            data: &shared.config.data.directory,
            timestamp_ns: shared.clock.utc_ns(),
            sender,
            runtime,
            pace: Pace::new(request.bytes_per_second_max),
            files: 0,
            bytes: 0,
        })
    }

    fn send(&self, message: v1::backup_response::Message) -> Result<(), ApiError> {
        let message = v1::BackupResponse {
            message: Some(message),
        };
        self.sender.send_blocking(self.runtime, message)
    }

    fn is_known(&self, path: &str, chain: Option<[u8; 32]>) -> bool {
        chain.is_some_and(|chain| self.have.get(path) == Some(&chain))
    }

    fn run(mut self) -> Result<(), ApiError> {
        use v1::backup_response::Message;
        self.send(Message::Begin(self.begin()))?;
        for partition in self.session.partitions().to_vec() {
            for (path, bytes, chain) in files_of(&partition) {
                if !self.is_known(path, chain) {
                    self.send_file(path, bytes)?;
                }
            }
            if let Some(trim) = &partition.trim {
                self.send_bytes(&truthdb_log::trim_path(partition.partition), trim)?;
            }
        }
        self.send_file_of_disk("metadata/schema.bin")?;
        // Last: without a manifest an unfinished backup is no database.
        let manifest = self.session.manifest();
        self.send_bytes("metadata/manifest.bin", &manifest)?;
        self.send(Message::End(v1::BackupEnd {
            files: self.files,
            bytes: self.bytes,
        }))
    }

    fn begin(&self) -> v1::BackupBegin {
        let mut bytes = 0;
        let mut partitions = Vec::new();
        for partition in self.session.partitions() {
            let new = files_of(partition).filter(|(path, _, chain)| !self.is_known(path, *chain));
            bytes += new.map(|(_, bytes, _)| bytes).sum::<u64>();
            let sealed = partition.segments.iter().filter_map(|segment| {
                Some(v1::SegmentRef {
                    partition: partition.partition,
                    segment: segment.segment,
                    chain: segment.chain?.to_vec().into(),
                })
            });
            let heads = partition.heads.iter().map(|run| v1::HeadsRef {
                partition: partition.partition,
                first_segment: run.segments.0,
                last_segment: run.segments.1,
                chain: run.chain.to_vec().into(),
            });
            partitions.push(v1::BackupPartition {
                partition: partition.partition,
                first_sequence: partition.first_sequence,
                last_sequence: partition.last_sequence,
                sealed: sealed.collect(),
                heads: heads.collect(),
            });
        }
        v1::BackupBegin {
            database_id: self.database_id.to_vec().into(),
            timestamp_ns: self.timestamp_ns,
            partitions,
            bytes,
        }
    }

    fn send_file(&mut self, path: &str, bytes: u64) -> Result<(), ApiError> {
        use v1::backup_response::Message;
        self.send(Message::File(v1::BackupFile {
            path: path.to_owned(),
            bytes,
        }))?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < bytes {
            let data = self
                .session
                .read(path, offset, CHUNK_BYTES)
                .map_err(|error| backup_error(&error))?;
            if data.is_empty() {
                let message = format!("{path} ends before its {bytes} bytes");
                return Err(ApiError::new(ErrorCode::Internal, message));
            }
            hasher.update(&data);
            let length = u64::try_from(data.len()).expect("a chunk");
            self.send(Message::Chunk(v1::BackupChunk { offset, data }))?;
            offset += length;
            self.pace.wait(length, self.runtime);
        }
        self.end_file(&hasher, bytes)
    }

    fn end_file(&mut self, hasher: &blake3::Hasher, bytes: u64) -> Result<(), ApiError> {
        self.files += 1;
        self.bytes += bytes;
        let blake3 = hasher.finalize().as_bytes().to_vec().into();
        self.send(v1::backup_response::Message::FileEnd(v1::BackupFileEnd {
            blake3,
        }))
    }

    /// A small file that may not be there.
    fn send_file_of_disk(&mut self, path: &str) -> Result<(), ApiError> {
        match std::fs::read(self.data.join(path)) {
            Ok(bytes) => self.send_bytes(path, &bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                let message = format!("cannot read {path}: {error}");
                Err(ApiError::new(ErrorCode::Internal, message).with_outcome(Outcome::DidNotHappen))
            }
        }
    }

    fn send_bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), ApiError> {
        use v1::backup_response::Message;
        let length = u64::try_from(bytes.len()).expect("a length fits");
        self.send(Message::File(v1::BackupFile {
            path: path.to_owned(),
            bytes: length,
        }))?;
        let mut offset = 0;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let data = bytes::Bytes::copy_from_slice(chunk);
            self.send(Message::Chunk(v1::BackupChunk { offset, data }))?;
            offset += u64::try_from(chunk.len()).expect("a length fits");
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytes);
        self.end_file(&hasher, length)
    }
}

/// The files of a partition that never change once they are sealed or written: path, bytes, and chain hash.
fn files_of(
    partition: &BackupPartition,
) -> impl Iterator<Item = (&str, u64, Option<[u8; 32]>)> + '_ {
    let segments = partition.segments.iter();
    let segments = segments.map(|segment| (&*segment.path, segment.bytes, segment.chain));
    let heads = partition.heads.iter();
    segments.chain(heads.map(|run| (&*run.path, run.bytes, Some(run.chain))))
}

fn backup_error(error: &truthdb_engine::BackupError) -> ApiError {
    match error {
        truthdb_engine::BackupError::Partition(source) => read_error(source),
        other => {
            let text = with_causes(other);
            tracing::error!("a backup failed: {text}");
            ApiError::new(ErrorCode::Internal, text).with_outcome(Outcome::DidNotHappen)
        }
    }
}

/// Partition and segment of a file, as far as its path says.
fn place_of(path: &str) -> (u32, u32) {
    let mut parts = path.split('/');
    let partition = parts
        .next()
        .and_then(truthdb_log::parse_partition_dir)
        .unwrap_or(0);
    let segment = parts
        .next_back()
        .and_then(truthdb_log::parse_segment_name)
        .unwrap_or(0);
    (partition, segment)
}

/// Verifies sealed segments, telling progress and findings.
fn verify(
    shared: &Shared,
    request: &v1::VerifyRequest,
    sender: &Sender<v1::VerifyResponse>,
    runtime: &tokio::runtime::Handle,
) -> Result<(), ApiError> {
    use v1::verify_response::Message;
    let send = |message| {
        sender.send_blocking(
            runtime,
            v1::VerifyResponse {
                message: Some(message),
            },
        )
    };
    let mut pace = Pace::new(request.bytes_per_second_max);
    let mut told_ns = 0;
    let mut outcome = Ok(());
    let mut progress = |at: truthdb_log::VerifyProgress<'_>| {
        pace.wait(at.bytes_done.saturating_sub(pace.bytes), runtime);
        if *shared.stopping().borrow() {
            outcome = Err(crate::server::stopping_error());
            return ControlFlow::Break(());
        }
        let now_ns = shared.clock.monotonic_ns();
        if now_ns.saturating_sub(told_ns) >= PROGRESS_INTERVAL_NS {
            told_ns = now_ns;
            let (partition, segment) = place_of(at.path);
            outcome = send(Message::Progress(v1::VerifyProgress {
                partition,
                segment,
                bytes_done: at.bytes_done,
                bytes_total: at.bytes_total,
            }));
        }
        if outcome.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    let report = shared
        .engine
        .verify(request.partition, true, &mut progress)
        .map_err(|error| read_error(&error))?;
    outcome?;
    let mut findings = 0;
    for finding in &report.findings {
        // Notes are what the database deals with by itself.
        if finding.severity == truthdb_log::Severity::Note {
            continue;
        }
        findings += 1;
        let (partition, segment) = place_of(&finding.path);
        tracing::warn!(path = %finding.path, what = %finding.what, "verification found something");
        send(Message::Finding(v1::VerifyFinding {
            partition,
            segment,
            offset: finding.offset.unwrap_or(0),
            first_sequence: finding.first_sequence.unwrap_or(0),
            last_sequence: finding.last_sequence.unwrap_or(0),
            message: format!("{}: {}", finding.path, finding.what),
            command: finding.advice.to_owned(),
        }))?;
    }
    send(Message::Summary(v1::VerifySummary {
        segments: report.segments,
        events: report.events,
        bytes: report.bytes,
        findings,
    }))
}
