//! `truthdb bench as-of`: rows as of random points of a long history.

use serde_json::json;
use truthdb_compute::{At, ComputeConfig, GetRequest, ReadOptions};
use truthdb_io::{Clock as _, SystemClock};
use truthdb_module::Workload;

use super::Common;
use super::machine::WorkDir;
use super::natives::{CODES, Code, Measured, Modules, ModulesArg, account_key};
use super::node::{Node, Numbers, token};
use super::report::Report;
use super::stats::{Latencies, Spread, number};
use crate::exit::{ExitClass, Failure};
use crate::server::compute::compute_failure;

/// Rows that are asked for as of each point.
const QUESTIONS: u32 = 10;

/// Rows as of random points of a long history.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    modules: ModulesArg,
    /// Events of the history; each changes one row.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..=1_000_000_000))]
    events: u64,
    /// Events of each batch.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Rows of the table.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,
    /// Points of each round.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    points: u64,
}

/// What is asked, and how long the answers took.
#[derive(Default)]
struct Kinds {
    /// A point that nobody has asked about.
    fresh: Vec<Latencies>,
    /// Other rows as of the same point, the next few.
    next: Vec<Latencies>,
    /// Other rows as of the same point, later ones.
    again: Vec<Latencies>,
    /// A point among the last events, whose states are in memory.
    recent: Vec<Latencies>,
}

/// A history, and what can be said of it without any module.
struct Past {
    /// Last sequence of each batch.
    ends: Vec<u64>,
    /// The account of each event, in order.
    accounts: Vec<u32>,
    batch: u64,
}

impl Past {
    /// How often an account was moved by the last batch that ends at a sequence or before.
    fn movements(&self, account: u32, sequence: u64) -> u32 {
        let batches = self.ends.partition_point(|end| *end <= sequence);
        let events = usize::try_from(batches as u64 * self.batch).unwrap_or(usize::MAX);
        let known = &self.accounts[..events.min(self.accounts.len())];
        let count = known.iter().filter(|one| **one == account).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

fn fill(args: &Args, node: &Node) -> Result<Past, Failure> {
    let workload = Workload::Balance {
        accounts: args.keys,
    };
    let mut numbers = Numbers::new(1);
    let mut again = numbers.clone();
    let ends = node.fill(workload, &mut numbers, 1, args.events, args.batch)?;
    let accounts = (0..args.events)
        .map(|_| u32::try_from(again.below(args.keys.into())).unwrap_or(0))
        .collect();
    node.wait_applied("balance")?;
    Ok(Past {
        ends,
        accounts,
        batch: args.batch,
    })
}

/// Asks for an account as of a sequence; checks the answer, and says how long it took.
fn ask(node: &Node, past: &Past, account: u32, sequence: u64) -> Result<u64, Failure> {
    let request = GetRequest {
        module: "balance".to_owned(),
        table: "accounts".to_owned(),
        key: account_key(&format!("account-{account}")),
        partition: None,
        options: ReadOptions {
            at: At::Token(token(sequence)),
            ..ReadOptions::default()
        },
    };
    let clock = SystemClock::new();
    let answer = node.compute.get(&request);
    let took = clock.monotonic_ns();
    let answer = answer.map_err(compute_failure)?;
    let movements = answer
        .rows
        .first()
        .and_then(|row| row.value.last_chunk::<4>())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let expected = past.movements(account, sequence);
    if movements != expected {
        let message = format!(
            "account {account} had {expected} movements as of event {sequence}; the answer says {movements}"
        );
        return Err(Failure::new(ExitClass::Damaged, message));
    }
    Ok(took)
}

fn measure(
    args: &Args,
    modules: &Modules,
    data: &std::path::Path,
    code: Code,
) -> Result<(Kinds, usize), Failure> {
    let node = Node::open(data, modules, code, ComputeConfig::default())?;
    node.activate(modules, Measured::Balance)?;
    let past = fill(args, &node)?;
    node.close();
    // Nothing but the newest state is in memory after a start.
    let node = Node::open(data, modules, code, ComputeConfig::default())?;
    node.wait_applied("balance")?;
    let snapshots = node.compute.snapshots(None).map_err(compute_failure)?.len();
    let last = past.ends.last().copied().unwrap_or(1);
    let mut numbers = Numbers::new(2);
    let mut kinds = Kinds::default();
    for _ in 0..args.common.rounds {
        let [mut fresh, mut next, mut again] = [(); 3].map(|()| Latencies::new());
        for _ in 0..args.points {
            let sequence = 1 + numbers.below(last);
            for question in 0..QUESTIONS {
                let account = u32::try_from(numbers.below(args.keys.into())).unwrap_or(0);
                let took = ask(&node, &past, account, sequence)?;
                match question {
                    0 => fresh.record_ns(took),
                    1..=5 => next.record_ns(took),
                    _ => again.record_ns(took),
                }
            }
        }
        kinds.fresh.push(fresh);
        kinds.next.push(next);
        kinds.again.push(again);
    }
    node.close();
    measure_recent(args, modules, data, code, past, &mut kinds)?;
    std::fs::remove_dir_all(data).map_err(|error| {
        Failure::environment(format!("cannot remove {}", data.display()), error)
    })?;
    Ok((kinds, snapshots))
}

/// Appends a little more, so that there are recent states in memory, and asks about these.
fn measure_recent(
    args: &Args,
    modules: &Modules,
    data: &std::path::Path,
    code: Code,
    mut past: Past,
    kinds: &mut Kinds,
) -> Result<(), Failure> {
    let node = Node::open(data, modules, code, ComputeConfig::default())?;
    let more = 100 * args.batch;
    let workload = Workload::Balance {
        accounts: args.keys,
    };
    let mut numbers = Numbers::new(3);
    let mut again = numbers.clone();
    let before = past.ends.last().copied().unwrap_or(0);
    let ends = node.fill(workload, &mut numbers, args.events + 1, more, args.batch)?;
    past.ends.extend(ends);
    past.accounts
        .extend((0..more).map(|_| u32::try_from(again.below(args.keys.into())).unwrap_or(0)));
    node.wait_applied("balance")?;
    let last = past.ends.last().copied().unwrap_or(1);
    for _ in 0..args.common.rounds {
        let mut recent = Latencies::new();
        for _ in 0..args.points {
            let sequence = before + 1 + numbers.below(last - before);
            let account = u32::try_from(numbers.below(args.keys.into())).unwrap_or(0);
            recent.record_ns(ask(&node, &past, account, sequence)?);
        }
        kinds.recent.push(recent);
    }
    node.close();
    Ok(())
}

fn row(code: Code, what: &str, rounds: &[Latencies]) -> (Vec<String>, serde_json::Value) {
    let ms = |q: f64| Spread::of(rounds.iter().map(|round| round.us(q) / 1e3));
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(ms);
    let mut row = vec![code.name().to_owned(), what.to_owned()];
    row.extend([p50, p90, p99, max].iter().map(|ms| ms.text(3)));
    let value = json!({
        "code": code.name(), "what": what, "p50_ms": p50.json(), "p90_ms": p90.json(),
        "p99_ms": p99.json(), "max_ms": max.json(),
    });
    (row, value)
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    if !args.events.is_multiple_of(args.batch) {
        return Err(Failure::usage("--events must be a multiple of --batch"));
    }
    let modules = Modules::new(&args.modules)?;
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("as-of", work.path());
    let (mut printed, mut values) = (Vec::new(), Vec::new());
    let mut kept = 0;
    for code in CODES {
        let (kinds, snapshots) = measure(args, &modules, &work.path().join("data"), code)?;
        kept = snapshots;
        for (what, rounds) in [
            ("any point, first question", &kinds.fresh),
            ("the same point, 5 more rows", &kinds.next),
            ("the same point, later rows", &kinds.again),
            ("a recent point", &kinds.recent),
        ] {
            let (row, value) = row(code, what, rounds);
            printed.push(row);
            values.push(value);
        }
    }
    report.section(
        format!(
            "{} events in batches of {}, {} rows, {kept} snapshots kept, {} random points a round",
            number(args.events as f64, 0),
            args.batch,
            number(args.keys.into(), 0),
            args.points
        ),
        &["fold", "question", "p50 ms", "p90 ms", "p99 ms", "max ms"],
        printed,
        json!({"events": args.events, "batch": args.batch, "keys": args.keys,
               "points": args.points, "snapshots": kept, "questions": values}),
    );
    report.note(
        "One row each, in this process, one question at a time. All but the last are asked after a start, so that \
         the past is on disk alone; each answer is compared with what the events say.",
    );
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::Past;

    #[test]
    fn movements_are_those_of_whole_batches() {
        let past = Past {
            ends: vec![4, 7],
            accounts: vec![1, 2, 1, 1],
            batch: 2,
        };
        let movements = [0, 3, 4, 6, 7, 9].map(|sequence| past.movements(1, sequence));
        assert_eq!(movements, [0, 0, 1, 1, 3, 3]);
    }
}
