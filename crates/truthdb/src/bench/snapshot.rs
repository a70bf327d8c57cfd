//! `truthdb bench snapshot`: how long a snapshot takes, and whom it keeps waiting.

use std::time::Duration;

use serde_json::json;
use truthdb_compute::{At, ComputeConfig, GetRequest, ReadOptions};
use truthdb_io::{Clock as _, SystemClock};
use truthdb_module::Workload;

use super::Common;
use super::machine::WorkDir;
use super::natives::{CODES, Code, Measured, Modules, ModulesArg, account_key};
use super::node::{Node, Numbers, append, token};
use super::report::Report;
use super::stats::{Latencies, Spread, number};
use crate::exit::{ExitClass, Failure};
use crate::server::compute::compute_failure;

/// How long a snapshot takes, and whom it keeps waiting.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    modules: ModulesArg,
    /// Rows of the table.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    keys: u32,
    /// Random rows that change between two snapshots.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    changed: u64,
    /// Seconds of appends at rest that those beside a snapshot are compared with.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// A snapshot is not waited for longer than this, seconds.
const SNAPSHOT_S_MAX: u64 = 600;
/// Pause between two probing appends.
const PROBE_PAUSE: Duration = Duration::from_micros(500);

/// Appends one event at a time, and sees when it is applied.
struct Probe<'a> {
    node: &'a Node,
    keys: u32,
    next: u64,
    numbers: Numbers,
}

/// What a probe saw.
#[derive(Clone)]
struct Seen {
    append: Latencies,
    applied: Latencies,
}

impl Seen {
    fn new() -> Seen {
        Seen {
            append: Latencies::new(),
            applied: Latencies::new(),
        }
    }
}

impl Probe<'_> {
    fn once(&mut self, seen: &mut Seen) -> Result<(), Failure> {
        let account = format!("account-{}", self.numbers.below(self.keys.into()));
        let event = (account.clone(), "deposit", "1".to_owned());
        let clock = SystemClock::new();
        let appended = append(&self.node.engine, self.next, std::iter::once(event))?;
        self.next += 1;
        let acknowledged = clock.monotonic_ns();
        let request = GetRequest {
            module: "balance".to_owned(),
            table: "accounts".to_owned(),
            key: account_key(&account),
            partition: None,
            options: ReadOptions {
                at: At::Now,
                min_sequence: Some(token(appended.last_sequence)),
                ..ReadOptions::default()
            },
        };
        self.node.compute.get(&request).map_err(compute_failure)?;
        seen.append.record_ns(acknowledged);
        seen.applied
            .record_ns(clock.monotonic_ns().saturating_sub(acknowledged));
        std::thread::sleep(PROBE_PAUSE);
        Ok(())
    }
}

/// One snapshot.
struct Round {
    seconds: f64,
    bytes: u64,
    quiet: Seen,
    beside: Seen,
    start_ms: f64,
}

fn newest(node: &Node) -> Result<(u64, u64), Failure> {
    let snapshots = node.compute.snapshots(None).map_err(compute_failure)?;
    let newest = snapshots.iter().max_by_key(|one| one.sequence);
    Ok(newest.map_or((0, 0), |one| (one.sequence, one.bytes)))
}

fn measure(
    args: &Args,
    modules: &Modules,
    data: &std::path::Path,
    code: Code,
) -> Result<Vec<Round>, Failure> {
    // Snapshots are taken when asked for and at no other time.
    let config = ComputeConfig {
        snapshot_every_events: 0,
        ..ComputeConfig::default()
    };
    let mut node = Node::open(data, modules, code, config.clone())?;
    node.activate(modules, Measured::Balance)?;
    let every = (0..args.keys).map(|n| (format!("account-{n}"), "deposit", "1".to_owned()));
    let mut every = every.peekable();
    let mut next = 1;
    while every.peek().is_some() {
        append(&node.engine, next, every.by_ref().take(1000))?;
        next += 1000;
    }
    node.wait_applied("balance")?;
    let workload = Workload::Balance {
        accounts: args.keys,
    };
    let mut numbers = Numbers::new(4);
    let mut rounds = Vec::new();
    // The first snapshot writes every chunk and is told apart: one more than is asked for.
    for _ in 0..=args.common.rounds {
        node.fill(workload, &mut numbers, next, args.changed, 1000)?;
        next += args.changed;
        node.wait_applied("balance")?;
        let mut round = take(args, &node, &mut next)?;
        node.close();
        let clock = SystemClock::new();
        node = Node::open(data, modules, code, config.clone())?;
        node.wait_applied("balance")?;
        round.start_ms = clock.monotonic_ns() as f64 / 1e6;
        rounds.push(round);
    }
    node.close();
    std::fs::remove_dir_all(data).map_err(|error| {
        Failure::environment(format!("cannot remove {}", data.display()), error)
    })?;
    Ok(rounds)
}

/// Takes a snapshot, while a probe appends before and beside it.
fn take(args: &Args, node: &Node, next: &mut u64) -> Result<Round, Failure> {
    let mut probe = Probe {
        node,
        keys: args.keys,
        next: *next,
        numbers: Numbers::new(*next),
    };
    let (mut quiet, mut beside) = (Seen::new(), Seen::new());
    let clock = SystemClock::new();
    while clock.monotonic_ns() < args.seconds * 1_000_000_000 {
        probe.once(&mut quiet)?;
    }
    let asked = SystemClock::new();
    let mark = node.compute.snapshot_now(None).map_err(compute_failure)?;
    let wanted = mark.get(0).unwrap_or(0);
    let bytes = loop {
        probe.once(&mut beside)?;
        let (sequence, bytes) = newest(node)?;
        if sequence >= wanted {
            break bytes;
        }
        if asked.monotonic_ns() > SNAPSHOT_S_MAX * 1_000_000_000 {
            let message = format!("there is no snapshot {SNAPSHOT_S_MAX} s after it was asked for");
            return Err(Failure::new(ExitClass::Internal, message));
        }
    };
    *next = probe.next;
    Ok(Round {
        seconds: asked.monotonic_ns() as f64 / 1e9,
        bytes,
        quiet,
        beside,
        start_ms: 0.0,
    })
}

fn row(code: Code, what: &str, rounds: &[Round]) -> (Vec<String>, serde_json::Value) {
    let spread = |of: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
    let seconds = spread(&|round| round.seconds);
    let megabytes = spread(&|round| round.bytes as f64 / 1e6);
    let figures = [
        spread(&|round| round.quiet.append.us(0.99)),
        spread(&|round| round.beside.append.us(0.99)),
        spread(&|round| round.quiet.applied.us(1.0)),
        spread(&|round| round.beside.applied.us(1.0)),
    ];
    let start = spread(&|round| round.start_ms);
    let mut row = vec![code.name().to_owned(), what.to_owned(), seconds.text(2)];
    row.push(megabytes.text(1));
    row.extend(figures.iter().map(|figure| figure.text(0)));
    row.push(start.text(0));
    let value = json!({
        "code": code.name(), "what": what, "seconds": seconds.json(), "mb": megabytes.json(),
        "append_p99_us_quiet": figures[0].json(), "append_p99_us_beside": figures[1].json(),
        "applied_max_us_quiet": figures[2].json(), "applied_max_us_beside": figures[3].json(),
        "start_ms": start.json(),
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
    let mut report = Report::new("snapshot", work.path());
    let (mut printed, mut values) = (Vec::new(), Vec::new());
    for code in CODES {
        let rounds = measure(args, &modules, &work.path().join("data"), code)?;
        let (first, later) = rounds.split_at(1);
        for (what, rounds) in [("the first", first), ("a later one", later)] {
            let (row, value) = row(code, what, rounds);
            printed.push(row);
            values.push(value);
        }
    }
    report.section(
        format!(
            "{} rows, {} random ones changed between two snapshots",
            number(args.keys.into(), 0),
            number(args.changed as f64, 0)
        ),
        &[
            "fold",
            "snapshot",
            "seconds",
            "MB",
            "append p99 us",
            "beside it",
            "applied max us",
            "beside it",
            "start ms",
        ],
        printed,
        json!({"keys": args.keys, "changed": args.changed, "snapshots": values}),
    );
    report.note(
        "seconds: from asking until it is published. MB: all chunks of it, those that it shares with the one \
         before included. append: a durable append of one event; applied: from its acknowledgement until a get \
         sees it; each before the snapshot, and beside it while it is written. start: a clean start \
         until the state of everything committed is there, one epoch of guest calls included.",
    );
    Ok(report)
}
