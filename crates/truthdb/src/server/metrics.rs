//! Counters of the network side, and the Prometheus page of everything.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use truthdb_api::v1;
use truthdb_engine::EngineStatus;

/// Upper bounds of the latency histogram's buckets, microseconds. Doubling from 50 µs to about 13 s.
const BUCKETS_US: [u64; 19] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 204_800, 409_600,
    819_200, 1_638_400, 3_276_800, 6_553_600, 13_107_200,
];

/// Latencies of one kind of request.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Latency {
    /// Counts one request.
    pub(crate) fn record(&self, taken: Duration) {
        let us = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS_US.iter().position(|bound| us <= *bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn render(&self, page: &mut String, operation: &str) {
        let name = "truthdb_request_duration_seconds";
        let mut total = 0;
        for (bound, bucket) in BUCKETS_US.iter().zip(&self.buckets) {
            total += bucket.load(Ordering::Relaxed);
            let le = seconds(*bound);
            let _ = writeln!(
                page,
                "{name}_bucket{{operation=\"{operation}\",le=\"{le}\"}} {total}"
            );
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = seconds(self.sum_us.load(Ordering::Relaxed));
        let _ = writeln!(
            page,
            "{name}_bucket{{operation=\"{operation}\",le=\"+Inf\"}} {count}"
        );
        let _ = writeln!(page, "{name}_sum{{operation=\"{operation}\"}} {sum}");
        let _ = writeln!(page, "{name}_count{{operation=\"{operation}\"}} {count}");
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Counters of the network side.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Open connections of the gRPC and HTTP port.
    pub http_connections: AtomicI64,
    /// Open connections of the native port.
    pub native_connections: AtomicI64,
    /// Connections that were taken.
    pub connections_accepted: AtomicU64,
    /// Connections that were refused because there were too many.
    pub connections_refused: AtomicU64,
    /// Connections that ended for a timeout.
    pub connections_timed_out: AtomicU64,
    /// TLS handshakes that failed.
    pub tls_failures: AtomicU64,
    /// Open subscriptions.
    pub subscriptions: AtomicI64,
    /// Subscriptions that were cut off because their client was too slow.
    pub slow_consumers: AtomicU64,
    /// Requests refused for a missing, wrong or insufficient token.
    pub access_refused: AtomicU64,
    /// Appends by the native protocol, frame read to reply written.
    pub native_append: Latency,
    /// Unary requests by gRPC and HTTP that append.
    pub append: Latency,
    /// Other unary requests by gRPC and HTTP.
    pub other: Latency,
}

/// Counts up now and down at the end.
pub(crate) struct Gauge<'a>(&'a AtomicI64);

impl<'a> Gauge<'a> {
    /// One more.
    pub(crate) fn enter(value: &'a AtomicI64) -> Gauge<'a> {
        value.fetch_add(1, Ordering::Relaxed);
        Gauge(value)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the page says about modules.
#[derive(Default)]
pub(crate) struct Modules {
    status: v1::ListModulesResponse,
    /// Snapshots by partition: how many, and their bytes.
    snapshots: Vec<(u32, u64, u64)>,
}

/// Numbers of each generation of a module: name, kind, help, value.
type ModuleMetric = (
    &'static str,
    &'static str,
    &'static str,
    fn(&v1::GenerationStatus) -> u64,
);

/// The numbers of each generation of a module.
pub(crate) const MODULE_METRICS: &[ModuleMetric] = &[
    (
        "truthdb_module_applied_sequence",
        "gauge",
        "Its state holds everything up to here.",
        |one| one.applied_sequence,
    ),
    (
        "truthdb_module_lag_events",
        "gauge",
        "Committed events that it has not applied.",
        |one| one.committed_sequence.saturating_sub(one.applied_sequence),
    ),
    (
        "truthdb_module_halted",
        "gauge",
        "1: it stopped at a batch and waits for an operator.",
        |one| u64::from(one.state() == v1::FoldState::Halted),
    ),
    (
        "truthdb_module_rows",
        "gauge",
        "Rows of its tables.",
        |one| one.rows,
    ),
    (
        "truthdb_module_bytes",
        "gauge",
        "Bytes of keys and values of its tables.",
        |one| one.bytes,
    ),
    (
        "truthdb_module_events_total",
        "counter",
        "Events given to it.",
        |one| one.events,
    ),
    (
        "truthdb_module_emitted_total",
        "counter",
        "Derived events that it appended.",
        |one| one.emitted,
    ),
    (
        "truthdb_module_fuel_total",
        "counter",
        "Fuel that it used.",
        |one| one.fuel,
    ),
];

impl Modules {
    /// Looks at modules and snapshots.
    pub(crate) fn look(shared: &super::Shared) -> Modules {
        if !super::modules::folds(shared) {
            return Modules::default();
        }
        let status = super::modules::snapshot_of_all(shared);
        // A folder that cannot be read is told by the fold's own problem.
        let all = shared.compute.snapshots(None).unwrap_or_default();
        let of = |partition: u32| {
            let own = all.iter().filter(|one| one.partition == partition);
            own.fold((partition, 0, 0), |(p, count, bytes), one| {
                (p, count + 1, bytes + one.bytes)
            })
        };
        let snapshots = status.folds.iter().map(|fold| of(fold.partition)).collect();
        Modules { status, snapshots }
    }

    /// Adds what it knows to the page.
    pub(crate) fn render(&self, text: &mut String, queries_waiting: usize) {
        let mut page = Page(std::mem::take(text));
        page.single(
            "truthdb_queries_waiting",
            "gauge",
            "Questions about state that wait for a thread.",
            queries_waiting,
        );
        for (name, kind, help, value) in MODULE_METRICS {
            page.head(name, kind, help);
            for module in &self.status.modules {
                for one in &module.generations {
                    let _ = writeln!(
                        page.0,
                        "{name}{{module=\"{}\",partition=\"{}\",generation=\"{}\"}} {}",
                        module.module,
                        one.partition,
                        one.generation,
                        value(one)
                    );
                }
            }
        }
        let folds = &self.status.folds;
        page.each(
            "truthdb_snapshot_sequence",
            "Sequence of the newest snapshot of state; 0: none.",
            folds
                .iter()
                .map(|fold| (fold.partition, fold.snapshot_sequence)),
        );
        page.each(
            "truthdb_snapshots",
            "Snapshots of state.",
            self.snapshots
                .iter()
                .map(|(partition, count, _)| (*partition, *count)),
        );
        page.each(
            "truthdb_snapshot_bytes",
            "Bytes of the snapshots of state, shared chunks once for each.",
            self.snapshots
                .iter()
                .map(|(partition, _, bytes)| (*partition, *bytes)),
        );
        *text = page.0;
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A gauge of each partition.
    fn each(&mut self, name: &str, help: &str, values: impl Iterator<Item = (u32, u64)>) {
        self.head(name, "gauge", help);
        for (partition, value) in values {
            let _ = writeln!(self.0, "{name}{{partition=\"{partition}\"}} {value}");
        }
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
}

/// Gauges of each partition: name, help, value.
type PartitionGauge = (
    &'static str,
    &'static str,
    fn(&truthdb_engine::PartitionStatus) -> u64,
);

/// The gauges of each partition.
pub(crate) const PARTITION_GAUGES: &[PartitionGauge] = &[
    (
        "truthdb_first_sequence",
        "First sequence that is there.",
        |p| p.first_sequence,
    ),
    (
        "truthdb_committed_sequence",
        "Last sequence acknowledged and visible.",
        |p| p.committed,
    ),
    (
        "truthdb_appended_sequence",
        "Last sequence accepted in memory.",
        |p| p.appended,
    ),
    ("truthdb_segments", "Segments of all kinds.", |p| {
        p.segments.into()
    }),
    ("truthdb_segments_sealed", "Sealed segments.", |p| {
        p.sealed_segments.into()
    }),
    ("truthdb_segments_packed", "Packed segments.", |p| {
        p.packed_segments.into()
    }),
    (
        "truthdb_segment_bytes",
        "Bytes of all segment files.",
        |p| p.bytes,
    ),
    (
        "truthdb_queue_batches",
        "Appends that wait for the writer.",
        |p| p.queue_batches,
    ),
    (
        "truthdb_queue_bytes",
        "Bytes of appends that wait for the writer.",
        |p| p.queue_bytes,
    ),
];

/// Metrics of the network side that are one number: name, kind, help, value.
type ServerMetric = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Metrics) -> i64,
);

fn count(value: &AtomicU64) -> i64 {
    i64::try_from(value.load(Ordering::Relaxed)).unwrap_or(i64::MAX)
}

/// The metrics of the network side.
pub(crate) const SERVER_METRICS: &[ServerMetric] = &[
    (
        "truthdb_http_connections",
        "gauge",
        "Open connections of the gRPC and HTTP port.",
        |m| m.http_connections.load(Ordering::Relaxed),
    ),
    (
        "truthdb_native_connections",
        "gauge",
        "Open connections of the native port.",
        |m| m.native_connections.load(Ordering::Relaxed),
    ),
    (
        "truthdb_connections_accepted_total",
        "counter",
        "Connections taken.",
        |m| count(&m.connections_accepted),
    ),
    (
        "truthdb_connections_refused_total",
        "counter",
        "Connections above the limit.",
        |m| count(&m.connections_refused),
    ),
    (
        "truthdb_connections_timed_out_total",
        "counter",
        "Connections closed for a timeout.",
        |m| count(&m.connections_timed_out),
    ),
    (
        "truthdb_tls_failures_total",
        "counter",
        "TLS handshakes that failed.",
        |m| count(&m.tls_failures),
    ),
    (
        "truthdb_subscriptions",
        "gauge",
        "Open subscriptions.",
        |m| m.subscriptions.load(Ordering::Relaxed),
    ),
    (
        "truthdb_slow_consumers_total",
        "counter",
        "Clients cut off for being too slow.",
        |m| count(&m.slow_consumers),
    ),
    (
        "truthdb_access_refused_total",
        "counter",
        "Requests without a sufficient token.",
        |m| count(&m.access_refused),
    ),
];

/// The Prometheus page.
pub(crate) fn render(metrics: &Metrics, status: &EngineStatus, reads_waiting: usize) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    page.head("truthdb_info", "gauge", "What runs here.");
    let _ = writeln!(
        page.0,
        "truthdb_info{{version=\"{}\",io_backend=\"{}\",durability=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION"),
        status.backend,
        status.durability.name()
    );
    let free = status.free_bytes;
    page.single(
        "truthdb_disk_free_bytes",
        "gauge",
        "Free bytes of the file system.",
        free,
    );
    page.single(
        "truthdb_disk_bytes",
        "gauge",
        "Size of the file system.",
        status.total_bytes,
    );
    page.single(
        "truthdb_reads_waiting",
        "gauge",
        "Reads that wait for a thread.",
        reads_waiting,
    );
    for (name, kind, help, value) in SERVER_METRICS {
        page.single(name, kind, help, value(metrics));
    }
    page.head(
        "truthdb_partition_state",
        "gauge",
        "1 for the state the partition is in.",
    );
    for partition in &status.partitions {
        let (number, state) = (partition.partition, partition.state.name());
        let _ = writeln!(
            page.0,
            "truthdb_partition_state{{partition=\"{number}\",state=\"{state}\"}} 1"
        );
    }
    for (name, help, value) in PARTITION_GAUGES {
        page.head(name, "gauge", help);
        for partition in &status.partitions {
            let number = partition.partition;
            let _ = writeln!(
                page.0,
                "{name}{{partition=\"{number}\"}} {}",
                value(partition)
            );
        }
    }
    let names = truthdb_engine::Counters::default().entries();
    for (index, (name, _)) in names.iter().enumerate() {
        let metric = format!("truthdb_{name}_total");
        page.head(
            &metric,
            "counter",
            &format!("Engine: {}.", name.replace('_', " ")),
        );
        for partition in &status.partitions {
            let (number, value) = (partition.partition, partition.counters.entries()[index].1);
            let _ = writeln!(page.0, "{metric}{{partition=\"{number}\"}} {value}");
        }
    }
    let name = "truthdb_request_duration_seconds";
    page.head(
        name,
        "histogram",
        "From the request's arrival to its answer.",
    );
    metrics.native_append.render(&mut page.0, "native_append");
    metrics.append.render(&mut page.0, "append");
    metrics.other.render(&mut page.0, "other");
    page.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_metric() {
        let page = include_str!("../../../../docs/operations.md");
        let server = SERVER_METRICS.iter().map(|(name, ..)| (*name).to_owned());
        let partition = PARTITION_GAUGES.iter().map(|(name, ..)| (*name).to_owned());
        let counters = truthdb_engine::Counters::default().entries();
        let counters = counters
            .iter()
            .map(|(name, _)| format!("truthdb_{name}_total"));
        let module = MODULE_METRICS.iter().map(|(name, ..)| (*name).to_owned());
        let others = [
            "truthdb_queries_waiting",
            "truthdb_snapshot_sequence",
            "truthdb_snapshots",
            "truthdb_snapshot_bytes",
        ];
        let module = module.chain(others.map(str::to_owned));
        for name in server.chain(partition).chain(counters).chain(module) {
            assert!(
                page.contains(&format!("`{name}`")),
                "docs/operations.md lacks {name}"
            );
        }
    }

    #[test]
    fn a_latency_counts_in_its_bucket_and_every_wider_one() {
        let latency = Latency::default();
        latency.record(Duration::from_micros(70));
        latency.record(Duration::from_secs(60));
        let mut page = String::new();
        latency.render(&mut page, "x");
        assert!(page.contains("le=\"0.000050\"} 0\n"));
        assert!(page.contains("le=\"0.000100\"} 1\n"));
        assert!(page.contains("le=\"13.107200\"} 1\n"));
        assert!(page.contains("le=\"+Inf\"} 2\n"));
        assert!(page.contains("_sum{operation=\"x\"} 60.000070\n"));
    }
}
