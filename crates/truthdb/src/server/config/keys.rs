//! The table of all keys.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use toml::Value;
use truthdb_engine::Durability;

use super::{Config, IoBackend, LogFormat, Role, TlsMode};

/// One key of the configuration.
pub(super) struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name in the section.
    pub name: &'static str,
    /// Its default, as TOML.
    pub default: &'static str,
    /// What it accepts, for the reference.
    pub accepts: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Takes a value up, or says what is wrong with it.
    pub set: fn(&mut Config, &Value) -> Result<(), String>,
}

/// Every section with what it is about, in the order of the reference.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    (
        "data",
        "Where the database lives and how its disk is driven.",
    ),
    ("node", "What this node does."),
    ("listen", "Addresses."),
    ("tls", "Encryption of connections, of both ports."),
    ("auth", "Who may do what."),
    ("durability", "What the acknowledgement of an append means."),
    (
        "engine",
        "Memory, queues and groups of the engine. The defaults suit most machines.",
    ),
    (
        "compute",
        "Modules and the state that they make: see [modules](modules.md).",
    ),
    (
        "retention",
        "When old segments may be removed. Nothing is removed unless a key is set here.",
    ),
    (
        "limits",
        "Bounds of the network side, which keep memory bounded whatever clients do.",
    ),
    ("log", "The server's own messages (not the database's log)."),
];

fn text(value: &Value) -> Result<&str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("expected a string, found {}", found(value)))
}

fn boolean(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("expected true or false, found {}", found(value)))
}

fn found(value: &Value) -> String {
    format!("the {} {value}", value.type_str())
}

fn strings(value: &Value) -> Result<Vec<String>, String> {
    let array = value
        .as_array()
        .ok_or_else(|| format!("expected an array, found {}", found(value)))?;
    array
        .iter()
        .map(|item| text(item).map(str::to_owned))
        .collect()
}

fn number(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    let number = value
        .as_integer()
        .and_then(|number| u64::try_from(number).ok())
        .ok_or_else(|| format!("expected a number of {min} or more, found {}", found(value)))?;
    in_range(number, min, max)
}

fn in_range(number: u64, min: u64, max: u64) -> Result<u64, String> {
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(format!(
            "{number} is out of range: {min} to {max} are accepted"
        ))
    }
}

fn count(value: &Value, min: u64, max: u64) -> Result<usize, String> {
    usize::try_from(number(value, min, max)?).map_err(|error| error.to_string())
}

/// A number of bytes, or a string such as `"64 MiB"`.
fn bytes(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
    let Some(text) = value.as_str() else {
        return number(value, min, max);
    };
    let wrong = || {
        format!(
            "expected bytes such as 65536 or \"64 MiB\", found {}",
            found(value)
        )
    };
    let (unit, shift) = *UNITS
        .iter()
        .find(|(unit, _)| text.ends_with(unit))
        .ok_or_else(wrong)?;
    let number: u64 = text[..text.len() - unit.len()]
        .trim()
        .parse()
        .map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
    in_range(bytes, min, max)
}

fn size(value: &Value, min: u64, max: u64) -> Result<usize, String> {
    usize::try_from(bytes(value, min, max)?).map_err(|error| error.to_string())
}

fn micros(value: &Value, min: u64, max: u64) -> Result<Duration, String> {
    number(value, min, max).map(Duration::from_micros)
}

fn millis(value: &Value, min: u64, max: u64) -> Result<Duration, String> {
    number(value, min, max).map(Duration::from_millis)
}

fn seconds(value: &Value, min: u64, max: u64) -> Result<Duration, String> {
    number(value, min, max).map(Duration::from_secs)
}

/// An IP address with a port, or a name that resolves to one.
fn address(value: &Value) -> Result<SocketAddr, String> {
    let text = text(value)?;
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|error| format!("{text:?} is not an address such as 127.0.0.1:7433: {error}"))?;
    addresses
        .next()
        .ok_or_else(|| format!("{text:?} resolves to no address"))
}

fn one_of<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Result<T, String> {
    let text = text(value)?;
    choices
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| {
            let names: Vec<String> = choices
                .iter()
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            format!("{text:?} is not one of {}", names.join(", "))
        })
}

fn roles(value: &Value) -> Result<Vec<Role>, String> {
    let mut roles = Vec::new();
    for name in strings(value)? {
        let role = match name.as_str() {
            "ingest" => Role::Ingest,
            "query" => Role::Query,
            "replay" => Role::Replay,
            "compute" => Role::Compute,
            other => {
                return Err(format!(
                    "{other:?} is not a role: \"ingest\", \"compute\", \"query\" and \"replay\" are"
                ));
            }
        };
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    if roles.is_empty() {
        return Err("a node needs at least one role".into());
    }
    Ok(roles)
}

/// 0, or a number of at least `min`.
fn zero_or(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    match number(value, 0, max)? {
        0 => Ok(0),
        other => in_range(other, min, max),
    }
}

fn small(value: &Value, max: u64) -> Result<u32, String> {
    u32::try_from(number(value, 0, max)?).map_err(|error| error.to_string())
}

fn instances(value: &Value) -> Result<u32, String> {
    u32::try_from(number(value, 1, 1000)?).map_err(|error| error.to_string())
}

/// 0 is "no bound".
fn optional<T>(number: u64, value: impl FnOnce(u64) -> T) -> Option<T> {
    (number != 0).then(|| value(number))
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
const DAY_S: u64 = 86_400;

macro_rules! keys {
    ($($section:ident . $name:ident = $default:literal, $accepts:literal, $doc:literal, $set:expr;)*) => {
        /// Every key, in the order of the reference.
        pub(super) const KEYS: &[Key] = &[$(Key {
            section: stringify!($section),
            name: stringify!($name),
            default: $default,
            accepts: $accepts,
            doc: $doc,
            set: $set,
        },)*];
    };
}

keys! {
    data.directory = "\"/var/lib/truthdb\"", "path",
        "The data directory. `truthdb init` creates it; a server never makes one unasked.",
        |c, v| { c.data.directory = PathBuf::from(text(v)?); Ok(()) };
    data.io_backend = "\"auto\"", "\"auto\", \"io_uring\", \"blocking\"",
        "How the disk is driven. \"auto\" takes io_uring where the kernel allows it, and says so when it does not; \"io_uring\" refuses to start without it.",
        |c, v| { c.data.io_backend = one_of(v, &[("auto", IoBackend::Auto), ("io_uring", IoBackend::IoUring), ("blocking", IoBackend::Blocking)])?; Ok(()) };

    node.roles = "[\"ingest\", \"compute\", \"query\", \"replay\"]",
        "array of \"ingest\", \"compute\", \"query\", \"replay\"",
        "What this node does. ingest: appends, cursor commits, trims. compute: the folds; with ingest beside it also the life of modules, snapshots and checkpoints. query: reads, subscriptions, and questions about state. replay: work over the whole log, which is verification, proofs, backups and replays of state. A request that needs another role is answered with ROLE_DISABLED.",
        |c, v| { c.roles = roles(v)?; Ok(()) };

    listen.http = "\"127.0.0.1:7433\"", "address:port",
        "gRPC, HTTP/JSON, metrics and health, on one port. Port 0: one that is free.",
        |c, v| { c.listen.http = address(v)?; Ok(()) };
    listen.native = "\"127.0.0.1:7434\"", "address:port",
        "The native protocol, which the Rust client and the command line speak. Port 0: one that is free.",
        |c, v| { c.listen.native = address(v)?; Ok(()) };
    listen.allow_insecure_off_loopback = "false", "true, false",
        "Listen to other addresses than loopback although TLS or tokens are off. Anybody who reaches the port can then read, append and trim.",
        |c, v| { c.listen.allow_insecure_off_loopback = boolean(v)?; Ok(()) };

    tls.mode = "\"off\"", "\"off\", \"self-signed\", \"files\"",
        "\"self-signed\": the server makes a certificate at its first start, in server/tls of the data directory, and shows its SHA-256 fingerprint at every start, for clients to pin. \"files\": yours.",
        |c, v| { c.tls.mode = one_of(v, &[("off", TlsMode::Off), ("self-signed", TlsMode::SelfSigned), ("files", TlsMode::Files)])?; Ok(()) };
    tls.certificate_file = "\"\"", "path",
        "With mode \"files\": PEM with the certificate, then its intermediates.",
        |c, v| { c.tls.certificate_file = PathBuf::from(text(v)?); Ok(()) };
    tls.key_file = "\"\"", "path",
        "With mode \"files\": PEM with the private key.",
        |c, v| { c.tls.key_file = PathBuf::from(text(v)?); Ok(()) };
    tls.names = "[\"localhost\", \"127.0.0.1\", \"::1\"]", "array of host names and IP addresses",
        "With mode \"self-signed\": names and addresses in the certificate. They count when it is made, at the first start.",
        |c, v| { c.tls.names = strings(v)?; Ok(()) };

    auth.enabled = "false", "true, false",
        "Demand a token for every request but health checks. At the first start with it an admin token is made and shown once; `truthdb token` makes, lists and revokes others.",
        |c, v| { c.auth_enabled = boolean(v)?; Ok(()) };

    durability.mode = "\"flush-each-group\"", "\"flush-each-group\", \"flush-interval\", \"os\"",
        "\"flush-each-group\": acknowledged means on stable storage. \"flush-interval\": on stable storage within interval_ms; a power failure may cost that much. \"os\": handed to the operating system and never flushed, for tests.",
        |c, v| { c.engine.durability = one_of(v, &[("flush-each-group", Durability::FlushEachGroup), ("flush-interval", Durability::FlushInterval(Duration::ZERO)), ("os", Durability::Os)])?; Ok(()) };
    durability.interval_ms = "100", "1 to 60000",
        "With mode \"flush-interval\": the loss window, in milliseconds.",
        |c, v| { c.flush_interval = millis(v, 1, 60_000)?; Ok(()) };

    engine.writes_in_flight_max = "2", "1 to 16",
        "Group writes in flight at once, each partition.",
        |c, v| { c.engine.writes_in_flight_max = count(v, 1, 16)?; Ok(()) };
    engine.group_bytes_max = "\"1 MiB\"", "64 KiB to 16 MiB",
        "A group is closed at this size, each partition. A larger batch gets a group of its own.",
        |c, v| { c.engine.group_bytes_max = size(v, 64 * KIB, 16 * MIB)?; Ok(()) };
    engine.queue_bytes_max = "\"16 MiB\"", "8 MiB to 1 GiB",
        "Bytes of appends that wait for the writer, each partition. Above it appends are refused with OVERLOADED.",
        |c, v| { c.engine.queue_bytes_max = size(v, 8 * MIB, GIB)?; Ok(()) };
    engine.queue_batches_max = "4096", "1 to 1000000",
        "Appends that wait for the writer, each partition. Above it appends are refused with OVERLOADED.",
        |c, v| { c.engine.queue_batches_max = count(v, 1, 1_000_000)?; Ok(()) };
    engine.tail_cache_bytes = "\"16 MiB\"", "1 MiB to 16 GiB",
        "Recent log data kept in memory for live readers, each partition.",
        |c, v| { c.engine.tail_cache_bytes = size(v, MIB, 16 * GIB)?; Ok(()) };
    engine.read_cache_bytes = "\"64 MiB\"", "0 to 64 GiB",
        "Blocks of older log data kept in memory for point reads, whole database.",
        |c, v| { c.engine.read_cache_bytes = size(v, 0, 64 * GIB)?; Ok(()) };
    engine.stream_cache_entries = "65536", "1024 to 100000000",
        "Heads of recently used streams kept in memory, each partition; about 48 bytes each.",
        |c, v| { c.engine.stream_cache_entries = count(v, 1024, 100_000_000)?; Ok(()) };
    engine.idempotency_window_events = "1000000", "0 to 100000000",
        "Event ids remembered, so that a repeated append is recognised, each partition; about 24 bytes each.",
        |c, v| { c.engine.idempotency_window_events = count(v, 0, 100_000_000)?; Ok(()) };
    engine.closed_segments_max = "4", "1 to 64",
        "Full segments that may wait for their seal before appends are refused, each partition.",
        |c, v| { c.engine.closed_segments_max = count(v, 1, 64)?; Ok(()) };
    engine.mark_idle_ms = "50", "1 to 60000",
        "After so long without an append, milliseconds, the writer leaves a mark that says what is flushed.",
        |c, v| { c.engine.mark_idle = millis(v, 1, 60_000)?; Ok(()) };
    engine.lone_writer_spin_us = "100", "0 to 1000",
        "How long a partition's writer looks for the next append before it sleeps, microseconds, after it answered a caller that was alone. Shortens the appends of a lone writer and costs CPU time; off with more partitions than half of the CPUs.",
        |c, v| { c.engine.lone_writer_spin = micros(v, 0, 1000)?; Ok(()) };
    engine.compression = "\"none\"", "\"none\", \"zstd\"",
        "Compression of sealed segments, by block, where it saves more than 5 %.",
        |c, v| { c.engine.compress = one_of(v, &[("none", false), ("zstd", true)])?; Ok(()) };
    engine.writer_cpus = "[]", "array of CPU numbers",
        "CPUs that the writer threads are pinned to, in the order of the partitions, again from the start when there are more partitions. Empty: not pinned.",
        |c, v| {
            let array = v.as_array().ok_or_else(|| format!("expected an array, found {}", found(v)))?;
            c.engine.writer_cpus = array.iter().map(|cpu| count(cpu, 0, 1023)).collect::<Result<_, _>>()?;
            Ok(())
        };

    compute.snapshot_every_events = "100000", "0, or 100 to 1000000000000",
        "Events between two snapshots of state, each partition. A start goes on from the newest one. A fold far behind takes some on its way, 4 intervals apart. 0: only on request.",
        |c, v| { c.compute.snapshot_every_events = zero_or(v, 100, 1_000_000_000_000)?; Ok(()) };
    compute.snapshots_keep_last = "4", "1 to 10000",
        "The newest so many snapshots stay, each partition.",
        |c, v| { c.compute.snapshot_retention.keep_last = count(v, 1, 10_000)?; Ok(()) };
    compute.snapshots_slots_log2 = "4", "0 to 16",
        "Of the older snapshots about 2 to the power of this stay for each doubling of their age: the older, the sparser. They make questions about old moments cheap.",
        |c, v| { c.compute.snapshot_retention.slots_log2 = small(v, 16)?; Ok(()) };
    compute.checkpoint_every_events = "100000", "0, or 100 to 1000000000000",
        "Events between two state checkpoints in the log, each module: fingerprints that every replay must reproduce. 0: none.",
        |c, v| { c.compute.checkpoint_every_events = zero_or(v, 100, 1_000_000_000_000)?; Ok(()) };
    compute.retained_views = "64", "1 to 100000",
        "Versions of recent state kept in memory, each module and partition, so that questions about the last moments need no disk.",
        |c, v| { c.compute.retained_views = count(v, 1, 100_000)?; Ok(()) };
    compute.query_deadline_ms = "10000", "1 to 3600000",
        "The longest that a question about state may take, and what it may take if it does not say.",
        |c, v| { c.compute.query_deadline = millis(v, 1, 3_600_000)?; Ok(()) };
    compute.decision_wait_ms = "10000", "0 to 600000",
        "How long an activation waits for its copies in the other partitions before it is answered. They are made in any case.",
        |c, v| { c.compute.decision_wait = millis(v, 0, 600_000)?; Ok(()) };
    compute.query_threads = "4", "1 to 256",
        "Threads that answer questions about state.",
        |c, v| { c.modules.query_threads = count(v, 1, 256)?; Ok(()) };
    compute.queries_waiting_max = "256", "1 to 100000",
        "Questions about state that wait for a thread. Above it they are refused with OVERLOADED.",
        |c, v| { c.modules.queries_waiting_max = count(v, 1, 100_000)?; Ok(()) };
    compute.fold_instances_max = "128", "1 to 1000",
        "Instances of validators, reducers and processors at once. Each reserves 4 GiB of address space, not of memory.",
        |c, v| { c.modules.fold_instances_max = instances(v)?; Ok(()) };
    compute.query_instances_max = "32", "1 to 1000",
        "Instances of query operators at once. Each reserves 4 GiB of address space, not of memory.",
        |c, v| { c.modules.query_instances_max = instances(v)?; Ok(()) };
    compute.keep_compiled = "true", "true, false",
        "Keep compiled modules in server/modules of the data directory, with keyed checksums, so that a start does not compile them again.",
        |c, v| { c.modules.keep_compiled = boolean(v)?; Ok(()) };

    retention.age_max_s = "0", "0, or 60 and more",
        "Remove whole segments whose last event is older than this, in seconds. 0: keep for ever.",
        |c, v| {
            let age = number(v, 0, 100_000 * DAY_S)?;
            if age != 0 { in_range(age, 60, 100_000 * DAY_S)?; }
            c.engine.retention.age_max = optional(age, Duration::from_secs);
            Ok(())
        };
    retention.bytes_max = "0", "0, or 32 MiB and more",
        "Remove the oldest whole segments while the files of a partition take more than this. 0: no bound.",
        |c, v| {
            let most = bytes(v, 0, 1 << 60)?;
            if most != 0 { in_range(most, 32 * MIB, 1 << 60)?; }
            c.engine.retention.bytes_max = optional(most, |most| most);
            Ok(())
        };

    limits.connections_max = "12000", "1 to 1000000",
        "Connections at once, both ports together. One more is refused with a clear message.",
        |c, v| { c.limits.connections_max = count(v, 1, 1_000_000)?; Ok(()) };
    limits.request_bytes_max = "\"16 MiB\"", "1 MiB to 64 MiB",
        "Bytes of one request or frame. A batch of the largest legal size fits into 16 MiB.",
        |c, v| { c.limits.request_bytes_max = size(v, MIB, 64 * MIB)?; Ok(()) };
    limits.inflight_bytes_max = "\"256 MiB\"", "16 MiB to 64 GiB",
        "Bytes of requests that are being received or answered, whole server. Above it requests are refused with OVERLOADED.",
        |c, v| { c.limits.inflight_bytes_max = size(v, 16 * MIB, 64 * GIB)?; Ok(()) };
    limits.idle_timeout_s = "900", "1 to 86400",
        "A connection on which nothing happens for so long, in seconds, is closed. Clients of the native protocol send keep-alives.",
        |c, v| { c.limits.idle_timeout = seconds(v, 1, DAY_S)?; Ok(()) };
    limits.header_timeout_ms = "10000", "100 to 600000",
        "A request whose headers are not complete after so long ends the connection.",
        |c, v| { c.limits.header_timeout = millis(v, 100, 600_000)?; Ok(()) };
    limits.request_timeout_ms = "60000", "100 to 3600000",
        "A request body, or a frame of the native protocol, that is not complete so long after its first byte ends the connection.",
        |c, v| { c.limits.request_timeout = millis(v, 100, 3_600_000)?; Ok(()) };
    limits.handshake_timeout_ms = "10000", "100 to 600000",
        "A connection whose TLS handshake or first bytes are not there after so long is closed.",
        |c, v| { c.limits.handshake_timeout = millis(v, 100, 600_000)?; Ok(()) };
    limits.subscriptions_max = "10000", "1 to 1000000",
        "Subscriptions at once, all protocols together. One more is refused with OVERLOADED.",
        |c, v| { c.limits.subscriptions_max = count(v, 1, 1_000_000)?; Ok(()) };
    limits.outgoing_bytes_max = "\"4 MiB\"", "256 KiB to 256 MiB",
        "Bytes that wait to be sent on one connection. Above it the server takes no further request from it and reads nothing for it.",
        |c, v| { c.limits.outgoing_bytes_max = size(v, 256 * KIB, 256 * MIB)?; Ok(()) };
    limits.slow_consumer_timeout_s = "60", "1 to 86400",
        "A client that takes nothing of what waits for it for so long, in seconds, is cut off with SLOW_CONSUMER.",
        |c, v| { c.limits.slow_consumer_timeout = seconds(v, 1, DAY_S)?; Ok(()) };
    limits.network_threads = "0", "0 to 256",
        "Threads of the network side. 0: as many as CPUs.",
        |c, v| { c.limits.network_threads = count(v, 0, 256)?; Ok(()) };
    limits.read_threads = "4", "1 to 256",
        "Threads that read from the disk for requests.",
        |c, v| { c.limits.read_threads = count(v, 1, 256)?; Ok(()) };
    limits.reads_waiting_max = "1024", "1 to 100000",
        "Reads that wait for a thread. Above it reads are refused with OVERLOADED.",
        |c, v| { c.limits.reads_waiting_max = count(v, 1, 100_000)?; Ok(()) };
    limits.shutdown_timeout_s = "20", "0 to 600",
        "At a stop, requests that are being answered get so long, in seconds, before their connections are closed.",
        |c, v| { c.limits.shutdown_timeout = seconds(v, 0, 600)?; Ok(()) };

    log.level = "\"info\"",
        "\"error\", \"warn\", \"info\", \"debug\", \"trace\", or a filter such as \"info,truthdb=debug\"",
        "Which messages are written to standard error.",
        |c, v| {
            let text = text(v)?;
            text.parse::<tracing_subscriber::filter::Targets>()
                .map_err(|error| format!("{text:?} is not a level: {error}"))?;
            c.log.level = text.to_owned();
            Ok(())
        };
    log.format = "\"auto\"", "\"auto\", \"text\", \"json\"",
        "\"auto\": text on a terminal, one JSON object each line otherwise.",
        |c, v| { c.log.format = one_of(v, &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)])?; Ok(()) };
}
