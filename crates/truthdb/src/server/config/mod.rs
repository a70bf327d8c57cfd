//! The server's configuration: one TOML file, environment overrides, and one table of all keys.
//!
//! `keys` holds the table: name, default, documentation and how a value is taken up. Everything else
//! follows from it: the defaults themselves, the parser, the commented default file and the
//! reference, so that none of them can say something else than the others.
//!
//! A key that the table does not know is a warning (an older program must survive a newer file); a
//! value that a known key does not accept is an error with file and line.

mod keys;
mod parse;
mod reference;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use truthdb_compute::ComputeConfig;
use truthdb_engine::EngineConfig;

pub(crate) use parse::{ConfigError, Loaded, load};
pub(crate) use reference::{default_file, reference_page};

/// Which backend drives the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IoBackend {
    /// io_uring when the kernel allows it, else blocking calls.
    Auto,
    /// io_uring or a failed start.
    IoUring,
    /// Blocking calls.
    Blocking,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Takes appends, cursor commits and trims.
    Ingest,
    /// Folds the log with modules, and takes part in their life.
    Compute,
    /// Answers reads, subscriptions, and questions about state.
    Query,
    /// Goes through the whole log: verification, proofs, backups, replays of state.
    Replay,
}

impl Role {
    /// The name in the configuration and in answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Ingest => "ingest",
            Role::Compute => "compute",
            Role::Query => "query",
            Role::Replay => "replay",
        }
    }
}

/// Where TLS comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// No TLS.
    Off,
    /// A certificate that the server makes at its first start.
    SelfSigned,
    /// Certificate and key from files.
    Files,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text for people.
    Text,
    /// One JSON object each line.
    Json,
}

/// Section `[data]`.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    pub directory: PathBuf,
    pub io_backend: IoBackend,
}

/// Section `[listen]`.
#[derive(Debug, Clone)]
pub(crate) struct Listen {
    pub http: SocketAddr,
    pub native: SocketAddr,
    pub allow_insecure_off_loopback: bool,
}

/// Section `[tls]`.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub mode: TlsMode,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    pub names: Vec<String>,
}

/// Section `[limits]`.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub connections_max: usize,
    pub request_bytes_max: usize,
    pub idle_timeout: Duration,
    pub header_timeout: Duration,
    pub request_timeout: Duration,
    pub handshake_timeout: Duration,
    pub subscriptions_max: usize,
    pub outgoing_bytes_max: usize,
    pub inflight_bytes_max: usize,
    pub slow_consumer_timeout: Duration,
    pub read_threads: usize,
    pub network_threads: usize,
    pub reads_waiting_max: usize,
    pub shutdown_timeout: Duration,
}

/// Section `[compute]`, except what the folds themselves are given.
#[derive(Debug, Clone)]
pub(crate) struct Modules {
    pub query_threads: usize,
    pub queries_waiting_max: usize,
    pub fold_instances_max: u32,
    pub query_instances_max: u32,
    pub keep_compiled: bool,
}

/// Section `[log]`.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub level: String,
    pub format: LogFormat,
}

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub data: Data,
    pub roles: Vec<Role>,
    pub listen: Listen,
    pub tls: Tls,
    pub auth_enabled: bool,
    pub limits: Limits,
    pub log: Log,
    pub engine: EngineConfig,
    pub modules: Modules,
    pub compute: ComputeConfig,
    /// `durability.interval_ms`, which counts only with `durability.mode = "flush-interval"`.
    pub flush_interval: Duration,
}

impl Config {
    /// Whether the node runs the role.
    pub(crate) fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// What holds when nothing is configured.
    pub(crate) fn defaults() -> Config {
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            data: Data {
                directory: PathBuf::new(),
                io_backend: IoBackend::Auto,
            },
            roles: Vec::new(),
            listen: Listen {
                http: unset,
                native: unset,
                allow_insecure_off_loopback: false,
            },
            tls: Tls {
                mode: TlsMode::Off,
                certificate_file: PathBuf::new(),
                key_file: PathBuf::new(),
                names: Vec::new(),
            },
            auth_enabled: false,
            limits: Limits {
                connections_max: 0,
                request_bytes_max: 0,
                idle_timeout: Duration::ZERO,
                header_timeout: Duration::ZERO,
                request_timeout: Duration::ZERO,
                handshake_timeout: Duration::ZERO,
                subscriptions_max: 0,
                outgoing_bytes_max: 0,
                inflight_bytes_max: 0,
                slow_consumer_timeout: Duration::ZERO,
                read_threads: 0,
                network_threads: 0,
                reads_waiting_max: 0,
                shutdown_timeout: Duration::ZERO,
            },
            log: Log {
                level: String::new(),
                format: LogFormat::Auto,
            },
            engine: EngineConfig::default(),
            modules: Modules {
                query_threads: 0,
                queries_waiting_max: 0,
                fold_instances_max: 0,
                query_instances_max: 0,
                keep_compiled: false,
            },
            compute: ComputeConfig::default(),
            flush_interval: Duration::ZERO,
        };
        for key in keys::KEYS {
            let value = parse::value(key.default).expect("defaults are TOML, which a test checks");
            (key.set)(&mut config, &value).expect("defaults are accepted, which a test checks");
        }
        config
            .finish()
            .expect("the defaults fit together, which a test checks");
        config
    }

    /// Puts values together that depend on each other.
    fn finish(&mut self) -> Result<(), String> {
        use truthdb_engine::Durability;
        if let Durability::FlushInterval(interval) = &mut self.engine.durability {
            *interval = self.flush_interval;
        }
        self.engine.ingest = self.runs(Role::Ingest);
        // Without `ingest` a node can only follow: it folds, and decides and writes nothing.
        let follows = self.runs(Role::Compute) && !self.runs(Role::Ingest);
        self.compute.compute = self.runs(Role::Compute) && !follows;
        self.compute.query = self.runs(Role::Query) || follows;
        self.compute.replay = self.runs(Role::Replay);
        if self.tls.mode == TlsMode::Files
            && (self.tls.certificate_file.as_os_str().is_empty()
                || self.tls.key_file.as_os_str().is_empty())
        {
            return Err("tls.mode = \"files\" needs tls.certificate_file and tls.key_file".into());
        }
        if self.listen.http == self.listen.native && self.listen.http.port() != 0 {
            return Err(format!(
                "listen.http and listen.native are the same address, {}; give each its own port",
                self.listen.http
            ));
        }
        self.check_exposure()
    }

    /// Refuses to listen to a network without TLS and tokens, unless told to in so many words.
    fn check_exposure(&self) -> Result<(), String> {
        let secure = self.tls.mode != TlsMode::Off && self.auth_enabled;
        if secure || self.listen.allow_insecure_off_loopback {
            return Ok(());
        }
        for (key, address) in [("http", self.listen.http), ("native", self.listen.native)] {
            if !address.ip().is_loopback() {
                return Err(format!(
                    "listen.{key} = \"{address}\" is not a loopback address, and {}: anybody on \
                     the network could read or append; set tls.mode and auth.enabled, or say \
                     listen.allow_insecure_off_loopback = true",
                    match (self.tls.mode, self.auth_enabled) {
                        (TlsMode::Off, false) => "neither TLS nor tokens are on",
                        (TlsMode::Off, true) => "TLS is off",
                        _ => "tokens are off",
                    }
                ));
            }
        }
        Ok(())
    }
}
