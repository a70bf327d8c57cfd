//! `truthdb bench validate`: what a validator in the way of appends costs.

use std::time::Duration;

use serde_json::json;
use truthdb_compute::ComputeConfig;
use truthdb_io::{Clock as _, SystemClock};
use truthdb_module::Workload;

use super::Common;
use super::floor::{FLOOR_WRITES, Floor};
use super::load::WARM_UP;
use super::machine::WorkDir;
use super::natives::{Code, Measured, Modules, ModulesArg};
use super::node::{Node, Numbers, Writers, Writing};
use super::report::Report;
use super::stats::{Latencies, Spread};
use crate::exit::Failure;

/// What a validator in the way of appends costs.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    modules: ModulesArg,
    /// Writers at once, one after another.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [1, 16],
        value_parser = clap::value_parser!(u64).range(1..=256)
    )]
    clients: Vec<u64>,
    /// Events of each append, one after another.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [1, 100],
        value_parser = clap::value_parser!(u64).range(1..=1000)
    )]
    batch: Vec<u64>,
    /// Rows of the table that the validator reads.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    keys: u32,
    /// Length of each measurement in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Nothing, and no module at all.
    Open,
    /// Only the reducer whose rows a validator would read.
    Folded(Code),
    /// The reducer and a validator.
    Validated(Code),
}

const GATES: [Gate; 5] = [
    Gate::Open,
    Gate::Folded(Code::Native),
    Gate::Validated(Code::Native),
    Gate::Folded(Code::Wasm),
    Gate::Validated(Code::Wasm),
];

impl Gate {
    fn name(self) -> String {
        match self {
            Gate::Open => "no module".to_owned(),
            Gate::Folded(code) => format!("reducer, {}", code.name()),
            Gate::Validated(code) => format!("and validator, {}", code.name()),
        }
    }

    fn code(self) -> Code {
        match self {
            Gate::Open => Code::Native,
            Gate::Folded(code) | Gate::Validated(code) => code,
        }
    }
}

/// One window.
struct Window {
    events_per_s: f64,
    latencies: Latencies,
    floor_us: f64,
}

fn measure(
    args: &Args,
    modules: &Modules,
    directory: &std::path::Path,
    gate: Gate,
) -> Result<Vec<Window>, Failure> {
    let data = directory.join("data");
    let node = Node::open(&data, modules, gate.code(), ComputeConfig::default())?;
    let workload = Workload::Balance {
        accounts: args.keys,
    };
    let count = u64::from(args.keys);
    node.fill(workload, &mut Numbers::new(1), 1, count, 1000)?;
    if gate != Gate::Open {
        node.activate(modules, Measured::Balance)?;
        node.wait_applied("balance")?;
    }
    if let Gate::Validated(_) = gate {
        node.activate(modules, Measured::Covered)?;
    }
    let mut windows = Vec::new();
    let mut next = count + 1;
    let mut floor = Floor::new(directory)?;
    for &writers in &args.clients {
        for &batch in &args.batch {
            let writing = Writing {
                writers,
                batch,
                accounts: args.keys,
                event_type: "withdraw",
                pause: Duration::ZERO,
            };
            let mut device = floor.measure(FLOOR_WRITES)?.latencies;
            let running = Writers::start(&node.engine, writing, next);
            std::thread::sleep(WARM_UP);
            let clock = SystemClock::new();
            running.measure(true);
            std::thread::sleep(Duration::from_secs(args.seconds));
            running.measure(false);
            let seconds = clock.monotonic_ns() as f64 / 1e9;
            let (latencies, first) = running.finish()?;
            next = first;
            device.add(&floor.measure(FLOOR_WRITES)?.latencies);
            windows.push(Window {
                events_per_s: (latencies.count() * batch) as f64 / seconds,
                latencies,
                floor_us: device.us(0.5),
            });
        }
    }
    node.close();
    std::fs::remove_dir_all(&data).map_err(|error| {
        Failure::environment(format!("cannot remove {}", data.display()), error)
    })?;
    Ok(windows)
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let modules = Modules::new(&args.modules)?;
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("validate", work.path());
    let mut cells: Vec<Vec<Vec<Window>>> = GATES.iter().map(|_| Vec::new()).collect();
    for _ in 0..args.common.rounds {
        for (gate, rounds) in GATES.iter().zip(&mut cells) {
            rounds.push(measure(args, &modules, work.path(), *gate)?);
        }
    }
    let mut load = 0;
    for &writers in &args.clients {
        for &batch in &args.batch {
            let mut printed = Vec::new();
            let mut values = Vec::new();
            for (gate, rounds) in GATES.iter().zip(&cells) {
                let spread = |of: &dyn Fn(&Window) -> f64| {
                    Spread::of(rounds.iter().map(|windows| of(&windows[load])))
                };
                let rate = spread(&|window| window.events_per_s);
                let quantiles =
                    [0.5, 0.99, 0.999].map(|q| spread(&|window| window.latencies.us(q)));
                let floor = spread(&|window| window.floor_us);
                let mut row = vec![gate.name(), rate.text(0)];
                row.extend(quantiles.iter().map(|quantile| quantile.text(0)));
                row.push(floor.text(0));
                printed.push(row);
                values.push(json!({
                    "gate": gate.name(), "events_per_s": rate.json(), "p50_us": quantiles[0].json(),
                    "p99_us": quantiles[1].json(), "p99_9_us": quantiles[2].json(),
                    "floor_p50_us": floor.json(),
                }));
            }
            report.section(
                format!("{writers} writers, {batch} events an append"),
                &[
                    "gate",
                    "events/s",
                    "p50 us",
                    "p99 us",
                    "p99.9 us",
                    "floor p50 us",
                ],
                printed,
                json!({"writers": writers, "batch": batch, "gates": values}),
            );
            load += 1;
        }
    }
    report.note(format!(
        "An engine in this process, one partition, durable appends of withdrawals from one of {} accounts, each \
         of which the validator looks up. The reducer folds on a thread of its own and competes for the CPUs; \
         the validator runs on the writer's.",
        args.keys
    ));
    Ok(report)
}
