//! `truthdb bench query`: questions about the present, at rest and while events pour in.

use std::time::Duration;

use serde_json::json;
use truthdb_compute::{
    At, ComputeConfig, ComputeError, GetRequest, QueryRequest, ReadOptions, ScanRequest,
};
use truthdb_io::{Clock as _, SystemClock};
use truthdb_module::Workload;

use super::Common;
use super::load::WARM_UP;
use super::machine::WorkDir;
use super::natives::{CODES, Code, Measured, Modules, ModulesArg, account_key};
use super::node::{Node, Numbers, Writers, Writing};
use super::query_network;
use super::report::Report;
use super::stats::{Latencies, Spread, number};
use crate::exit::{ExitClass, Failure};
use crate::server::compute::compute_failure;

/// Questions about the present, at rest and while events pour in.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    modules: ModulesArg,
    /// Rows of the table.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    keys: u32,
    /// Length of each measurement in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Writers beside the questions.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    writers: u64,
    /// Events of an append.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    batch: u64,
    /// Pause of a writer after each append, microseconds. 0: as fast as acknowledgements come.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pause_us: u64,
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Scan,
    Operator,
}

const KINDS: [Kind; 3] = [Kind::Get, Kind::Scan, Kind::Operator];
/// Rows of a scan.
const SCAN_ROWS: u32 = 100;

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Get => "get of a row",
            Kind::Scan => "scan of 100 rows",
            Kind::Operator => "operator over all rows",
        }
    }

    fn ask(self, node: &Node, key: Vec<u8>) -> Result<usize, ComputeError> {
        let options = ReadOptions {
            at: At::Now,
            ..ReadOptions::default()
        };
        let (module, table) = ("balance".to_owned(), "accounts".to_owned());
        match self {
            Kind::Get => {
                let request = GetRequest {
                    module,
                    table,
                    key,
                    partition: None,
                    options,
                };
                Ok(node.compute.get(&request)?.rows.len())
            }
            Kind::Scan => {
                let request = ScanRequest {
                    module,
                    table,
                    start: key,
                    end: None,
                    reverse: false,
                    limit: SCAN_ROWS,
                    page: None,
                    partition: None,
                    options,
                };
                Ok(node.compute.scan(&request)?.rows.len())
            }
            Kind::Operator => {
                let request = QueryRequest {
                    operator: "richest".to_owned(),
                    arguments: b"10".to_vec(),
                    partition: None,
                    options,
                };
                Ok(node.compute.query(&request)?.rows.len())
            }
        }
    }
}

/// One window: answers, and what the writers did meanwhile.
pub(super) struct Window {
    pub latencies: Latencies,
    pub seconds: f64,
    pub events_per_s: f64,
    pub append_p99_us: f64,
}

fn writing(args: &Args) -> Writing {
    Writing {
        writers: args.writers,
        batch: args.batch,
        accounts: args.keys,
        event_type: "deposit",
        pause: Duration::from_micros(args.pause_us),
    }
}

fn window(args: &Args, node: &Node, kind: Kind, next: Option<&mut u64>) -> Result<Window, Failure> {
    let writing = writing(args);
    let running = next
        .as_deref()
        .map(|first| Writers::start(&node.engine, writing, *first));
    if let Some(running) = &running {
        std::thread::sleep(WARM_UP);
        running.measure(true);
    }
    let mut latencies = Latencies::new();
    let mut numbers = Numbers::new(5);
    let window = SystemClock::new();
    while window.monotonic_ns() < args.seconds * 1_000_000_000 {
        let account = numbers.below(args.keys.into());
        let key = account_key(&format!("account-{account}"));
        let clock = SystemClock::new();
        let rows = kind.ask(node, key).map_err(compute_failure)?;
        latencies.record_ns(clock.monotonic_ns());
        if rows == 0 {
            return Err(Failure::new(
                ExitClass::Damaged,
                "a row that was written is not there",
            ));
        }
    }
    let seconds = window.monotonic_ns() as f64 / 1e9;
    let (mut events_per_s, mut append_p99_us) = (0.0, 0.0);
    if let (Some(running), Some(next)) = (running, next) {
        running.measure(false);
        let (written, first) = running.finish()?;
        *next = first;
        events_per_s = (written.count() * args.batch) as f64 / seconds;
        append_p99_us = written.us(0.99);
    }
    Ok(Window {
        latencies,
        seconds,
        events_per_s,
        append_p99_us,
    })
}

/// Windows by kind of question, at rest and under load in turn.
type Windows = Vec<[Vec<Window>; 2]>;

/// Leaves the database behind, closed.
fn measure(
    args: &Args,
    modules: &Modules,
    data: &std::path::Path,
    code: Code,
) -> Result<Windows, Failure> {
    let node = Node::open(data, modules, code, ComputeConfig::default())?;
    node.activate(modules, Measured::Balance)?;
    node.activate(modules, Measured::Richest)?;
    let every = (0..args.keys).map(|n| (format!("account-{n}"), "deposit", "1".to_owned()));
    let mut every = every.peekable();
    let mut next = 1;
    while every.peek().is_some() {
        super::node::append(&node.engine, next, every.by_ref().take(1000))?;
        next += 1000;
    }
    let workload = Workload::Balance {
        accounts: args.keys,
    };
    node.fill(
        workload,
        &mut Numbers::new(1),
        next,
        u64::from(args.keys),
        1000,
    )?;
    next += u64::from(args.keys);
    node.wait_applied("balance")?;
    // The operator's code is made ready beside; the first answers wait for it.
    let clock = SystemClock::new();
    while let Err(error) = Kind::Operator.ask(&node, Vec::new()) {
        if clock.monotonic_ns() > 60_000_000_000 {
            return Err(compute_failure(error));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut windows: Windows = KINDS.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for _ in 0..args.common.rounds {
        for (kind, [rest, load]) in KINDS.iter().zip(&mut windows) {
            rest.push(window(args, &node, *kind, None)?);
            load.push(window(args, &node, *kind, Some(&mut next))?);
        }
    }
    node.close();
    Ok(windows)
}

fn row(code: &str, kind: &str, when: &str, rounds: &[Window]) -> (Vec<String>, serde_json::Value) {
    let spread = |of: &dyn Fn(&Window) -> f64| Spread::of(rounds.iter().map(of));
    let quantiles = [0.5, 0.99, 0.999].map(|q| spread(&|window| window.latencies.us(q)));
    let events = spread(&|window| window.events_per_s);
    let append = spread(&|window| window.append_p99_us);
    let is_loaded = events.high > 0.0;
    let or_dash = |spread: &Spread| {
        if is_loaded {
            spread.text(0)
        } else {
            "-".to_owned()
        }
    };
    let mut row = vec![code.to_owned(), kind.to_owned(), when.to_owned()];
    row.extend(quantiles.iter().map(|quantile| quantile.text(1)));
    row.extend([or_dash(&events), or_dash(&append)]);
    let value = json!({
        "code": code, "question": kind, "when": when, "p50_us": quantiles[0].json(),
        "p99_us": quantiles[1].json(), "p99_9_us": quantiles[2].json(),
        "events_per_s": events.json(), "append_p99_us": append.json(),
    });
    (row, value)
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let modules = Modules::new(&args.modules)?;
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("query", work.path());
    let (mut printed, mut values) = (Vec::new(), Vec::new());
    let data = work.path().join("data");
    let mut add = |code: Code, kind: &str, [rest, load]: &[Vec<Window>; 2]| {
        for (when, rounds) in [("at rest", rest), ("under load", load)] {
            let (row, value) = row(code.name(), kind, when, rounds);
            printed.push(row);
            values.push(value);
        }
    };
    for code in CODES {
        let windows = measure(args, &modules, &data, code)?;
        for (kind, windows) in KINDS.iter().zip(&windows) {
            add(code, kind.name(), windows);
        }
        if code == Code::Wasm {
            let rounds = args.common.rounds;
            let windows = query_network::measure(&data, writing(args), args.seconds, rounds)?;
            add(code, "get of a row, by gRPC", &windows);
        }
        std::fs::remove_dir_all(&data).map_err(|error| {
            Failure::environment(format!("cannot remove {}", data.display()), error)
        })?;
    }
    report.section(
        format!(
            "{} rows; the load is {} writers, {} events an append, {} us pause",
            number(args.keys.into(), 0),
            args.writers,
            args.batch,
            args.pause_us
        ),
        &[
            "fold and operator",
            "question",
            "when",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "events/s beside",
            "append p99 us",
        ],
        printed,
        json!({"keys": args.keys, "writers": args.writers, "batch": args.batch,
               "pause_us": args.pause_us, "questions": values}),
    );
    report.note(
        "One question at a time, about the present; in this process, but for those by gRPC, which a server of its own \
         answers, with writers over the native protocol. A get and a scan run no code of a module; what differs \
         between the folds is how much of the CPUs they leave. The operator is the example `richest`.",
    );
    Ok(report)
}
