//! `truthdb bench half-load`: latencies at half of what the server can do.

use serde_json::json;

use super::append::{Cell, Shape, cell};
use super::events::Payload;
use super::floor::Floor;
use super::load::Load;
use super::machine::WorkDir;
use super::report::Report;
use super::stats::{Spread, number};
use super::target::Protocol;
use super::{Common, block_on};
use crate::exit::Failure;

/// Writes of the device's own tail figure in each round: enough for a 99.9th percentile.
const TAIL_WRITES: u64 = 5000;

/// Latency of durable appends at half of what the server can do.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Writers.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: u64,
    /// Payload bytes of each event.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=65_536))]
    size: u64,
    /// Length of each measured window, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("half-load", work.path());
    let mut floor = Floor::new(work.path())?;
    let payload = Payload::new(usize::try_from(args.size).expect("checked"), false);
    let mut rounds: Vec<(Cell, Cell, f64)> = Vec::new();
    for _ in 0..args.common.rounds {
        let full = Shape {
            load: Load {
                writers: args.clients,
                batch: 1,
                appends_per_s: None,
                payload: payload.clone(),
            },
            durability: "flush-each-group".to_owned(),
            protocol: Protocol::Native,
            seconds: args.seconds,
        };
        let most = block_on(cell(work.path(), &full, &mut floor))?;
        let load = Load {
            appends_per_s: Some(most.events_per_s / 2.0),
            ..full.load.clone()
        };
        let before = floor.measure(TAIL_WRITES)?;
        let half = block_on(cell(work.path(), &Shape { load, ..full }, &mut floor))?;
        let after = floor.measure(TAIL_WRITES)?;
        let mut tail = before.latencies;
        tail.add(&after.latencies);
        rounds.push((most, half, tail.us(0.999)));
    }
    let spread = |of: &dyn Fn(&(Cell, Cell, f64)) -> f64| Spread::of(rounds.iter().map(of));
    let most = spread(&|(most, _, _)| most.events_per_s);
    let rate = spread(&|(_, half, _)| half.events_per_s);
    let quantile = |q: f64| spread(&|(_, half, _)| half.written.latencies.us(q));
    let device = spread(&|(_, _, tail)| *tail);
    let ratio = spread(&|(_, half, tail)| half.written.latencies.us(0.999) / tail);
    report.section(
        format!(
            "{} writers, 1 event per request, paced at half of their maximum",
            args.clients
        ),
        &[
            "maximum events/s",
            "paced events/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "device p99.9 us",
            "p99.9 / device p99.9",
        ],
        vec![vec![
            number(most.median, 0),
            number(rate.median, 0),
            quantile(0.5).text(0),
            quantile(0.99).text(0),
            quantile(0.999).text(0),
            device.text(0),
            ratio.text(2),
        ]],
        json!({
            "clients": args.clients, "payload_bytes": args.size,
            "maximum_events_per_s": most.json(), "paced_events_per_s": rate.json(),
            "p50_us": quantile(0.5).json(), "p99_us": quantile(0.99).json(),
            "p99_9_us": quantile(0.999).json(), "device_p99_9_us": device.json(),
            "ratio": ratio.json(),
        }),
    );
    report.note(format!(
        "device: {TAIL_WRITES} durable overwrites of 4 KiB before and {TAIL_WRITES} after each \
         paced window. An append that waits for its predecessor counts from when it was due."
    ));
    Ok(report)
}
