//! `truthdb bench append`: durable appends by several numbers of writers.

use std::path::Path;

use serde_json::json;

use super::child::{Metrics, Server};
use super::events::{Digest, Payload};
use super::floor::{FLOOR_WRITES, Floor};
use super::load::{Load, Running, WARM_UP, Written};
use super::machine::{Device, DeviceCounters, WorkDir, cpu_ns, rss_mib};
use super::report::Report;
use super::stats::{Latencies, Spread, number};
use super::target::{Protocol, Target, open_engine};
use super::{Common, block_on, compare};
use crate::cmd::output::note;
use crate::exit::Failure;

/// Segments of the engine in this process, bytes: the server's default.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Durable appends by several numbers of writers, each of which waits for its acknowledgement.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Numbers of writers.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256",
        value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: Vec<u64>,
    /// Events of each append.
    #[arg(long, value_delimiter = ',', default_value = "1,100",
        value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: Vec<u64>,
    /// Payload bytes of each event.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=4_194_304))]
    size: u64,
    /// What an acknowledgement means.
    #[arg(long, default_value = "flush-each-group",
        value_parser = ["flush-each-group", "flush-interval", "os"])]
    durability: String,
    /// How the appends travel. Several: each cell is measured with one after the other, so that they
    /// can be compared.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "native")]
    protocol: Vec<Protocol>,
    /// Length of the measured window, seconds; half a second of warm-up comes before it.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Writers that are added to numbers of writers for batches above 1 only up to this many.
    #[arg(long, default_value_t = 16)]
    batch_clients_max: u64,
}

/// One measured cell of one round.
pub(super) struct Cell {
    /// Durable writes each second of the device, before and after.
    pub floor_per_s: f64,
    /// Times of those writes.
    pub floor: Latencies,
    /// What the writers saw.
    pub written: Written,
    /// Events each second.
    pub events_per_s: f64,
    server_cpu: Option<f64>,
    client_cpu: Option<f64>,
    rss_mib: Option<f64>,
    device_bytes_per_event: Option<f64>,
    device_flushes_per_request: Option<f64>,
    flushes_per_request: f64,
    /// Bytes that the engine wrote for each group.
    pub group_bytes: f64,
    log_bytes_per_event: f64,
}

/// What a cell is.
pub(super) struct Shape {
    /// The load.
    pub load: Load,
    /// `durability.mode`.
    pub durability: String,
    /// How the appends travel.
    pub protocol: Protocol,
    /// Length of the window.
    pub seconds: u64,
}

/// Counters at one edge of the window.
struct Edge {
    server_cpu: Option<u64>,
    client_cpu: Option<u64>,
    device: Option<DeviceCounters>,
    batches: f64,
    events: f64,
    flushes: f64,
    groups: f64,
    group_bytes: f64,
}

/// Where the counters of an edge come from.
enum Counted<'a> {
    Server(&'a Server),
    Engine(&'a truthdb_engine::Engine),
}

impl Counted<'_> {
    fn edge(&self, device: Option<&Device>) -> Result<Edge, Failure> {
        let counter: Box<dyn Fn(&str) -> f64> = match self {
            Counted::Server(server) => {
                let page: Metrics = server.metrics()?;
                Box::new(move |name| page.sum(&format!("truthdb_{name}_total")))
            }
            Counted::Engine(engine) => {
                let status = engine.status();
                Box::new(move |name| {
                    let all = status.partitions.iter().flat_map(|p| p.counters.entries());
                    all.filter(|entry| entry.0 == name)
                        .map(|entry| entry.1 as f64)
                        .sum()
                })
            }
        };
        let server_cpu = match self {
            Counted::Server(server) => cpu_ns(&server.process()),
            Counted::Engine(_) => None,
        };
        Ok(Edge {
            server_cpu,
            client_cpu: cpu_ns("self"),
            device: device.and_then(Device::counters),
            batches: counter("batches"),
            events: counter("events"),
            flushes: counter("flushes"),
            groups: counter("groups"),
            group_bytes: counter("group_bytes"),
        })
    }
}

/// Measures one cell: floor, load on a fresh server, floor, and everything read back.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) async fn cell(
    directory: &Path,
    shape: &Shape,
    floor: &mut Floor,
) -> Result<Cell, Failure> {
    let before = floor.measure(FLOOR_WRITES)?;
    let data = directory.join("data");
    let (cell, acknowledged) = if shape.protocol == Protocol::Engine {
        let config = truthdb_engine::EngineConfig {
            durability: engine_durability(&shape.durability),
            ..truthdb_engine::EngineConfig::default()
        };
        let engine = open_engine(&data, config, SEGMENT_BYTES)?;
        let target = Target::Engine(engine.clone());
        let measured = measure(&target, &Counted::Engine(&engine), shape, directory).await?;
        let after = floor.measure(FLOOR_WRITES)?;
        let found = target.read_all(&shape.load.payload).await?;
        engine.shutdown();
        (measured.with_floor(&before, &after), found)
    } else {
        let settings = [("DURABILITY__MODE", shape.durability.clone())];
        let server = Server::start(&data, &settings)?;
        let target = Target::connect(&server, shape.protocol).await?;
        let measured = measure(&target, &Counted::Server(&server), shape, directory).await?;
        let after = floor.measure(FLOOR_WRITES)?;
        drop(target);
        let reader = Target::connect(&server, Protocol::Native).await?;
        let found = reader.read_all(&shape.load.payload).await?;
        drop(reader);
        server.stop()?;
        (measured.with_floor(&before, &after), found)
    };
    compare(cell.written.acknowledged, acknowledged)?;
    std::fs::remove_dir_all(&data)
        .map_err(|error| Failure::environment("cannot remove the measured database", error))?;
    Ok(cell)
}

fn engine_durability(name: &str) -> truthdb_engine::Durability {
    use truthdb_engine::Durability;
    match name {
        "os" => Durability::Os,
        "flush-interval" => Durability::FlushInterval(std::time::Duration::from_millis(100)),
        _ => Durability::FlushEachGroup,
    }
}

async fn measure(
    target: &Target,
    counted: &Counted<'_>,
    shape: &Shape,
    directory: &Path,
) -> Result<Cell, Failure> {
    let device = Device::below(directory);
    let mut running = Running::start(target, &shape.load);
    tokio::time::sleep(WARM_UP).await;
    let first = counted.edge(device.as_ref())?;
    running.begin_window();
    tokio::time::sleep(std::time::Duration::from_secs(shape.seconds)).await;
    let seconds = running.end_window();
    let last = counted.edge(device.as_ref())?;
    let process = match counted {
        Counted::Server(server) => server.process(),
        Counted::Engine(_) => "self".to_owned(),
    };
    let rss_mib = rss_mib(&process);
    let written = running.finish(seconds).await?;
    Ok(Cell::new(&first, &last, written, rss_mib, shape.load.batch))
}

impl Cell {
    fn new(first: &Edge, last: &Edge, written: Written, rss: Option<f64>, batch: usize) -> Cell {
        // Counters are read a little outside the window, so ratios are of counters only.
        let events = (last.events - first.events).max(1.0);
        let requests = (last.batches - first.batches).max(1.0);
        let per_million = |from: Option<u64>, to: Option<u64>| {
            Some((to?.checked_sub(from?)?) as f64 / 1e9 / events * 1e6)
        };
        let device = first.device.zip(last.device);
        let groups = (last.groups - first.groups).max(1.0);
        let group_bytes = last.group_bytes - first.group_bytes;
        Cell {
            floor_per_s: 0.0,
            floor: Latencies::new(),
            events_per_s: written.latencies.count() as f64 * batch as f64 / written.seconds,
            written,
            server_cpu: per_million(first.server_cpu, last.server_cpu),
            client_cpu: per_million(first.client_cpu, last.client_cpu),
            rss_mib: rss,
            device_bytes_per_event: device
                .map(|(a, b)| (b.written_bytes - a.written_bytes) as f64 / events),
            device_flushes_per_request: device
                .map(|(a, b)| (b.flushes - a.flushes) as f64 / requests),
            flushes_per_request: (last.flushes - first.flushes) / requests,
            group_bytes: group_bytes / groups,
            log_bytes_per_event: group_bytes / events,
        }
    }

    fn with_floor(
        mut self,
        before: &super::floor::FloorFigures,
        after: &super::floor::FloorFigures,
    ) -> Cell {
        self.floor_per_s = f64::midpoint(before.writes_per_s, after.writes_per_s);
        self.floor = before.latencies.clone();
        self.floor.add(&after.latencies);
        self
    }
}

const HEADER: &[&str] = &[
    "events/s",
    "MB/s",
    "x floor",
    "p50 us",
    "p50 - floor us",
    "p99 us",
    "p99.9 us",
    "p99.99 us",
    "server CPU s/M",
    "client CPU s/M",
    "RSS MiB",
    "log B/event",
    "device B/event",
    "flushes/request",
    "device flushes/request",
];

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("append", work.path());
    let payload = Payload::new(usize::try_from(args.size).expect("checked"), false);
    let mut shapes: Vec<(Shape, Vec<Cell>)> = Vec::new();
    for batch in &args.batch {
        for writers in &args.clients {
            if *batch > 1 && *writers > args.batch_clients_max {
                continue;
            }
            let batch = usize::try_from(*batch).expect("checked");
            let load = Load {
                writers: *writers,
                batch,
                appends_per_s: None,
                payload: payload.clone(),
            };
            for protocol in &args.protocol {
                let shape = Shape {
                    load: load.clone(),
                    durability: args.durability.clone(),
                    protocol: *protocol,
                    seconds: args.seconds,
                };
                shapes.push((shape, Vec::new()));
            }
        }
    }
    let mut floor = Floor::new(work.path())?;
    for round in 1..=args.common.rounds {
        for (shape, cells) in &mut shapes {
            let cell = block_on(cell(work.path(), shape, &mut floor))?;
            note(&format!(
                "round {round}: {} x {}, {}: {} events/s, p50 {} us (floor {} writes/s)",
                shape.load.writers,
                shape.load.batch,
                shape.protocol.name(),
                number(cell.events_per_s, 0),
                number(cell.written.latencies.us(0.5), 0),
                number(cell.floor_per_s, 0),
            ));
            cells.push(cell);
        }
    }
    let all_floors: Vec<f64> = shapes
        .iter()
        .flat_map(|(_, cells)| cells.iter().map(|c| c.floor_per_s))
        .collect();
    for (shape, cells) in &shapes {
        section(&mut report, shape, cells, args.size);
    }
    report.note(format!(
        "floor: {} durable writes/s of 4 KiB, measured before and after each of {} cells; \
         median (lowest–highest) over {} rounds of {} s; {}-byte payloads, {}",
        Spread::of(all_floors.iter().copied()).text(0),
        all_floors.len(),
        args.common.rounds,
        args.seconds,
        args.size,
        args.durability,
    ));
    report.note("Every cell was read back: count and digest are those of what was acknowledged.");
    if args.protocol.contains(&Protocol::Engine) {
        report.note("engine: no network; client CPU and RSS are those of this one process.");
    }
    Ok(report)
}

fn section(report: &mut Report, shape: &Shape, cells: &[Cell], size: u64) {
    let spread = |of: &dyn Fn(&Cell) -> f64| Spread::of(cells.iter().map(of));
    let optional = |of: &dyn Fn(&Cell) -> Option<f64>, decimals: usize| {
        let known: Option<Vec<f64>> = cells.iter().map(of).collect();
        known.map_or_else(
            || "-".to_owned(),
            |f| number(Spread::of(f).median, decimals),
        )
    };
    let rate = spread(&|cell| cell.events_per_s);
    let ratio = spread(&|cell| cell.events_per_s / cell.floor_per_s);
    let over = spread(&|cell| cell.written.latencies.us(0.5) - cell.floor.us(0.5));
    let quantile = |q: f64| number(spread(&|cell| cell.written.latencies.us(q)).median, 0);
    let row = vec![
        rate.text(0),
        number(rate.median * size as f64 / 1e6, 2),
        ratio.text(2),
        quantile(0.5),
        over.text(0),
        quantile(0.99),
        quantile(0.999),
        quantile(0.9999),
        optional(&|cell| cell.server_cpu, 1),
        optional(&|cell| cell.client_cpu, 1),
        optional(&|cell| cell.rss_mib, 0),
        number(spread(&|cell| cell.log_bytes_per_event).median, 0),
        optional(&|cell| cell.device_bytes_per_event, 0),
        number(spread(&|cell| cell.flushes_per_request).median, 3),
        optional(&|cell| cell.device_flushes_per_request, 3),
    ];
    let rounds: Vec<_> = cells.iter().map(cell_json).collect();
    let (writers, batch) = (shape.load.writers, shape.load.batch);
    report.section(
        format!(
            "{writers} writers, {batch} events per request, {}",
            shape.protocol.name()
        ),
        HEADER,
        vec![row],
        json!({
            "writers": writers, "batch": batch, "payload_bytes": size,
            "durability": shape.durability, "protocol": shape.protocol.name(),
            "seconds": shape.seconds, "events_per_s": rate.json(), "x_floor": ratio.json(),
            "p50_minus_floor_us": over.json(), "rounds": rounds,
        }),
    );
}

fn cell_json(cell: &Cell) -> serde_json::Value {
    let Digest { events, .. } = cell.written.acknowledged;
    json!({
        "events_per_s": cell.events_per_s,
        "latency": cell.written.latencies.json(),
        "floor_writes_per_s": cell.floor_per_s,
        "floor_latency": cell.floor.json(),
        "server_cpu_s_per_million_events": cell.server_cpu,
        "client_cpu_s_per_million_events": cell.client_cpu,
        "rss_mib": cell.rss_mib,
        "log_bytes_per_event": cell.log_bytes_per_event,
        "device_bytes_per_event": cell.device_bytes_per_event,
        "flushes_per_request": cell.flushes_per_request,
        "device_flushes_per_request": cell.device_flushes_per_request,
        "events_read_back": events,
    })
}
