//! Starting and stopping.
//!
//! Start: configuration, log, directory (never made unasked), engine (which recovers), TLS, tokens,
//! sockets. Stop: no more connections and requests, what is under way is answered, then the engine
//! flushes and marks its partitions, so that the next start has nothing to recover.

use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use truthdb_compute::Compute;
use truthdb_engine::{Engine, OpenError, PartitionState};
use truthdb_io::{Backend, FileStorage, World};
use truthdb_log::{
    CreateOptions, DirectoryError, DirectoryState, create_database, directory_state,
};

use super::access::Access;
use super::compute;
use super::config::{Config, IoBackend, Role, TlsMode};
use super::http::HttpService;
use super::metrics::Metrics;
use super::native::NativeService;
use super::readers::ReaderPool;
use super::tokens::{Permission, TokenDirectory, TokenError, TokenStore};
use super::{Shared, grpc, listen, logging, tls};
use crate::exit::{ExitClass, Failure};

/// Stack of the network threads.
const STACK_BYTES: usize = 2 << 20;
/// Open files that are not connections: segments, indexes, the runtime's own.
const OPEN_FILES_OWN: u64 = 512;
/// Decisions about modules that are under way at once; each takes a thread while it waits.
const DECISIONS_MAX: usize = 8;
/// Name of the token that is made at the first start.
const FIRST_TOKEN: &str = "first-admin";

/// What `truthdb serve` is told besides the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServeOptions {
    /// Make a database with these options if the directory is empty or absent.
    pub init_if_empty: Option<CreateOptions>,
    /// Write the bound addresses to this file, as JSON, when the server is ready.
    pub ports_file: Option<PathBuf>,
}

/// The real world below a data directory, and why io_uring is not used although it was tried.
///
/// # Errors
///
/// `environment` when the configuration demands io_uring and the kernel refuses.
pub(crate) fn open_world(
    directory: &Path,
    backend: IoBackend,
) -> Result<(World, Option<String>), Failure> {
    let backend = match backend {
        IoBackend::Auto => Backend::Auto,
        IoBackend::IoUring => Backend::Uring,
        IoBackend::Blocking => Backend::Blocking,
    };
    let storage = FileStorage::open(directory, backend).map_err(|error| {
        Failure::environment(
            "io_uring is demanded (data.io_backend) and not to be had",
            error,
        )
        .with_action("Allow io_uring to this process, or set data.io_backend = \"auto\".")
    })?;
    let reason = storage.fallback_reason();
    Ok((World::system(Arc::new(storage)), reason))
}

/// The failure of a directory that cannot be opened or made.
pub(crate) fn directory_failure(directory: &Path, error: DirectoryError) -> Failure {
    let class = match &error {
        DirectoryError::Locked { .. } => ExitClass::Locked,
        DirectoryError::NewerFormat { .. } => ExitClass::NewerFormat,
        DirectoryError::Missing { .. }
        | DirectoryError::Empty { .. }
        | DirectoryError::Damaged { .. }
        | DirectoryError::UnexpectedPartition { .. } => ExitClass::Damaged,
        DirectoryError::Option { .. } => ExitClass::Usage,
        _ => ExitClass::Environment,
    };
    let action = match &error {
        DirectoryError::Io { source, .. } | DirectoryError::Unreadable { source, .. } => {
            Some(disk_action(source))
        }
        _ => None,
    };
    let failure = Failure::new(
        class,
        format!("cannot open the database in {}", directory.display()),
    )
    .with_source(error);
    match action {
        Some(action) => failure.with_action(action),
        None => failure,
    }
}

/// What to do about an error of the disk.
fn disk_action(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => {
            "Mount the disk for writing; nothing was changed on it. `truthdb inspect` only reads."
        }
        ErrorKind::PermissionDenied => "Let this user read and write the directory and its files.",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "Free space on the disk.",
        _ => "See that the disk is in order (dmesg, SMART), and start again.",
    }
}

/// Makes a database.
///
/// # Errors
///
/// Those of the directory.
pub(crate) fn create(
    world: &World,
    directory: &Path,
    options: &CreateOptions,
) -> Result<[u8; 16], Failure> {
    create_database(world, options)
        .map(|manifest| manifest.database_id)
        .map_err(|error| directory_failure(directory, error))
}

/// Runs the server until it is told to stop.
///
/// # Errors
///
/// Whatever keeps it from starting, by class.
pub(crate) fn run(config: Config, options: &ServeOptions) -> Result<(), Failure> {
    logging::start(&config.log);
    let directory = std::path::absolute(&config.data.directory)
        .map_err(|error| Failure::environment("the data directory's path is not usable", error))?;
    raise_open_files(config.limits.connections_max);
    let (world, refused) = open_world(&directory, config.data.io_backend)?;
    if let Some(reason) = refused {
        tracing::info!("io_uring is not to be had here ({reason}): blocking calls are used");
    }
    if let Some(create_options) = &options.init_if_empty {
        init_if_empty(&world, &directory, create_options)?;
    }
    let clock = Arc::clone(&world.clock);
    let opened_ns = clock.monotonic_ns();
    let engine = Engine::open(world.clone(), config.engine.clone())
        .map_err(|error| open_failure(&directory, error))?;
    let taken_ms = (clock.monotonic_ns() - opened_ns) / 1_000_000;
    tell_recovery(&engine, taken_ms);
    // Before the first append: a validator must not miss one.
    let outcome = compute::open(&config, &directory, &engine, &world).and_then(|compute| {
        let outcome = serve(config, options, &directory, &engine, &compute, clock);
        compute.shutdown();
        outcome
    });
    let report = engine.shutdown();
    for (partition, reason) in &report.failed {
        tracing::warn!(partition, reason = %reason, "this partition was not stopped cleanly");
    }
    tracing::info!(clean_partitions = report.clean.len(), "stopped");
    outcome
}

/// Raises the limit of open files as far as it goes without privileges, and tells if that is not
/// enough for all connections.
fn raise_open_files(connections_max: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open files cannot be raised: {error}");
    }
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let needed = u64::try_from(connections_max)
        .unwrap_or(u64::MAX)
        .saturating_add(OPEN_FILES_OWN);
    if most < needed {
        tracing::info!(
            open_files_max = most,
            connections_max,
            "the limit of open files is below limits.connections_max: raise it (ulimit -n, \
             LimitNOFILE) to make use of all connections"
        );
    }
}

pub(crate) fn open_failure(directory: &Path, error: OpenError) -> Failure {
    match error {
        OpenError::Directory(error) => directory_failure(directory, error),
        error @ OpenError::Config { .. } => {
            Failure::new(ExitClass::Config, "the engine refuses the configuration")
                .with_source(error)
        }
        error => Failure::environment("the engine cannot start", error),
    }
}

fn init_if_empty(world: &World, directory: &Path, options: &CreateOptions) -> Result<(), Failure> {
    let state = directory_state(world.storage.as_ref())
        .map_err(|error| directory_failure(directory, error))?;
    if state != DirectoryState::Database {
        let id = create(world, directory, options)?;
        tracing::info!(
            directory = %directory.display(),
            partitions = options.partition_count,
            database = %hex(&id),
            "made a database, because the directory was empty"
        );
    }
    Ok(())
}

fn tell_recovery(engine: &Engine, taken_ms: u64) {
    let (mut events, mut unclean) = (0, 0);
    for partition in &engine.report().partitions {
        if let Ok(tail) = &partition.tail {
            events += tail.events;
            unclean += usize::from(!tail.clean_stop);
        }
    }
    tracing::info!(
        partitions = engine.partition_count(),
        scanned_events = events,
        unclean_partitions = unclean,
        taken_ms,
        "the log is open"
    );
}

fn serve(
    config: Config,
    options: &ServeOptions,
    directory: &Path,
    engine: &Engine,
    compute: &Compute,
    clock: Arc<dyn truthdb_io::Clock>,
) -> Result<(), Failure> {
    let tls_ready = tls::set_up(&config.tls, directory).map_err(|error| {
        let class = match (&error, config.tls.mode) {
            (tls::TlsError::Unusable { .. }, TlsMode::Files) => ExitClass::Config,
            _ => ExitClass::Environment,
        };
        Failure::new(class, "TLS cannot be set up").with_source(error)
    })?;
    let tokens = if config.auth_enabled {
        first_token(directory, clock.utc_ns())?;
        let store = TokenStore::open(directory, Arc::clone(&clock)).map_err(token_failure)?;
        Some(store)
    } else {
        None
    };
    let limits = &config.limits;
    let no_readers = |error| Failure::environment("the reader threads cannot start", error);
    let readers = ReaderPool::start("reader", limits.read_threads, limits.reads_waiting_max)
        .map_err(no_readers)?;
    let (threads, waiting) = (
        config.modules.query_threads,
        config.modules.queries_waiting_max,
    );
    let threads = if config.runs(Role::Query) { threads } else { 0 };
    let queries = ReaderPool::start("query", threads, waiting).map_err(no_readers)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime
        .thread_name("network")
        .thread_stack_size(STACK_BYTES)
        .enable_all();
    if limits.network_threads > 0 {
        runtime.worker_threads(limits.network_threads);
    }
    let runtime = runtime
        .build()
        .map_err(|error| Failure::environment("the network threads cannot start", error))?;
    let (stop, stopping) = watch::channel(false);
    let shared = Arc::new(Shared {
        engine: engine.clone(),
        compute: compute.clone(),
        access: Access::new(tokens, config.roles.clone()),
        metrics: Arc::new(Metrics::default()),
        readers,
        queries,
        decisions: Arc::new(Semaphore::new(DECISIONS_MAX)),
        verify_state_slot: Arc::new(Semaphore::new(1)),
        started_ns: clock.monotonic_ns(),
        clock,
        connections: Arc::new(Semaphore::new(limits.connections_max)),
        inflight_kib: Arc::new(Semaphore::new(limits.inflight_bytes_max / 1024)),
        verify_slot: Arc::new(Semaphore::new(1)),
        backup_slot: Arc::new(Semaphore::new(1)),
        trim_plans: parking_lot::Mutex::default(),
        tracker: TaskTracker::new(),
        subscriptions: (0..engine.partition_count())
            .map(|_| AtomicU32::new(0))
            .collect(),
        commits: follow_commits(engine),
        stopping,
        config,
    });
    let outcome = runtime.block_on(listen_until_stopped(&shared, options, tls_ready, stop));
    shared.queries.stop();
    shared.readers.stop();
    // What did not end in time ends here.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn follow_commits(engine: &Engine) -> Vec<watch::Receiver<u64>> {
    (0..engine.partition_count())
        .map(|partition| {
            let (sender, receiver) = watch::channel(engine.committed(partition));
            let hook = move |committed| {
                sender.send_replace(committed);
            };
            engine.on_commit(partition, Box::new(hook));
            receiver
        })
        .collect()
}

fn token_failure(error: TokenError) -> Failure {
    let class = match &error {
        TokenError::Damaged { .. } => ExitClass::Damaged,
        TokenError::Refused(_) => ExitClass::Refused,
        TokenError::Io { .. } => ExitClass::Environment,
    };
    Failure::new(class, "the access tokens cannot be used").with_source(error)
}

/// Makes the first token when there is none, and shows it, once, on standard output.
fn first_token(directory: &Path, now_ns: u64) -> Result<(), Failure> {
    let tokens = TokenDirectory::new(directory);
    if !tokens.list().map_err(token_failure)?.is_empty() {
        return Ok(());
    }
    let created = jiff::Timestamp::from_nanosecond(i128::from(now_ns))
        .map_or_else(|_| String::new(), |now| now.to_string());
    let token = tokens
        .create(FIRST_TOKEN, &[Permission::Admin], created)
        .map_err(token_failure)?;
    let text =
        format!("The first access token, with every permission. It is shown only now:\n{token}\n");
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::environment("cannot show the first access token", error))
}

struct Bound {
    http: SocketAddr,
    native: SocketAddr,
}

async fn listen_until_stopped(
    shared: &Arc<Shared>,
    options: &ServeOptions,
    tls: Option<tls::ServerTls>,
    stop: watch::Sender<bool>,
) -> Result<(), Failure> {
    let bind = |key: &str, address: SocketAddr| {
        listen::bind(address)
            .and_then(|listener| Ok((listener.local_addr()?, listener)))
            .map_err(|error| {
                Failure::environment(format!("cannot listen on {address} (listen.{key})"), error)
                    .with_action("End what uses the address, or choose another one.")
            })
    };
    let (http, http_listener) = bind("http", shared.config.listen.http)?;
    let (native, native_listener) = bind("native", shared.config.listen.native)?;
    let bound = Bound { http, native };
    let routes = grpc::routes(shared).await.map_err(|error| {
        Failure::new(ExitClass::Internal, "the gRPC descriptors are broken").with_source(error)
    })?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    if let Some(tokens) = shared.access.tokens().map(Arc::clone) {
        let mut stopping = shared.stopping();
        tokio::spawn(async move {
            tokio::select! {
                () = tokens.watch() => {}
                () = super::stopped(&mut stopping) => {}
            }
        });
    }
    let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
    let http_service = Arc::new(HttpService::new(Arc::clone(shared), routes));
    let native_service = Arc::new(NativeService::new(Arc::clone(shared)));
    let accepting = [
        tokio::spawn(listen::accept_loop(
            Arc::clone(shared),
            http_listener,
            acceptor.clone(),
            http_service,
        )),
        tokio::spawn(listen::accept_loop(
            Arc::clone(shared),
            native_listener,
            acceptor,
            native_service,
        )),
    ];
    if let Some(path) = &options.ports_file {
        write_ports(path, &bound, tls.as_ref())?;
    }
    tell_start(shared, &bound, tls.as_ref());
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(
        signal,
        "stopping: no more requests are taken, those under way are answered"
    );
    stop.send_replace(true);
    for task in accepting {
        task.await.map_err(|error| {
            Failure::new(ExitClass::Internal, "accepting connections failed").with_source(error)
        })?;
    }
    shared.tracker.close();
    let limit = shared.config.limits.shutdown_timeout;
    if tokio::time::timeout(limit, shared.tracker.wait())
        .await
        .is_err()
    {
        let left = shared.tracker.len();
        tracing::warn!(
            left,
            "not everything ended in time (limits.shutdown_timeout_s): it is cut"
        );
    }
    Ok(())
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::environment("cannot wait for signals", error))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tell_start(shared: &Shared, bound: &Bound, tls: Option<&tls::ServerTls>) {
    let status = shared.engine.status();
    let roles: Vec<&str> = shared.config.roles.iter().map(|role| role.name()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        database = %hex(&status.database_id),
        partitions = status.partitions.len(),
        roles = %roles.join(","),
        durability = status.durability.name(),
        io_backend = status.backend,
        http = %bound.http,
        native = %bound.native,
        tls = tls.is_some(),
        tokens = shared.access.tokens().is_some(),
        "TruthDB is ready"
    );
    if let Some(tls) = tls {
        tracing::info!(sha256 = %tls.fingerprint, "the certificate that clients pin");
    }
    if shared.config.listen.allow_insecure_off_loopback {
        let exposed = !bound.http.ip().is_loopback() || !bound.native.ip().is_loopback();
        let secure = tls.is_some() && shared.access.tokens().is_some();
        if exposed && !secure {
            tracing::warn!(
                "listening to the network without TLS and tokens, as \
                 listen.allow_insecure_off_loopback says: anybody can read, append and trim"
            );
        }
    }
    for partition in &status.partitions {
        if let PartitionState::Fenced { reason } = &partition.state {
            let number = partition.partition;
            tracing::error!(partition = number, reason = %reason, "this partition is not served");
        }
    }
}

/// Tells a supervisor or a test where the server listens: written whole, or not at all.
fn write_ports(path: &Path, bound: &Bound, tls: Option<&tls::ServerTls>) -> Result<(), Failure> {
    let value = json!({
        "http": bound.http.to_string(),
        "native": bound.native.to_string(),
        "tls_fingerprint": tls.map(|tls| tls.fingerprint.as_str()),
        "pid": std::process::id(),
    });
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{value}\n"))
        .and_then(|()| rustix::fs::rename(&temporary, path).map_err(Into::into))
        .map_err(|error| {
            Failure::environment(
                format!("cannot write the ports file {}", path.display()),
                error,
            )
        })
}
