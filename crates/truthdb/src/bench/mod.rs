//! `truthdb bench`: figures of this machine, with the device's own beside them.
//!
//! Every figure of the database is taken from a server that is a process of its own, with a data
//! directory of its own, and stands beside what the device did just before and just after
//! ([`floor`]): the device of a shared machine changes by the minute, and only ratios hold. Every
//! measurement that writes ends by reading everything back. The method is in docs/benchmarks.md.

mod append;
mod as_of;
mod child;
mod events;
mod floor;
mod half_load;
mod ingest;
mod load;
mod machine;
mod natives;
mod node;
mod query;
mod query_network;
mod read;
mod recover;
mod reduce;
mod replay;
mod report;
mod snapshot;
mod soak;
mod stats;
mod streams;
mod target;
mod validate;

use std::future::Future;
use std::path::PathBuf;

use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};
use report::Report;

/// Measure this machine and this server.
///
/// Everything happens in a new folder below --dir, which must be on a real disk; it is removed at
/// the end. Use a release build, and a machine that does nothing else.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

/// What every measurement takes.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Directory on the disk to measure.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// How often everything is measured; the tables show the median and the lowest and highest.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Also write all figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Durable appends by several numbers of writers.
    Append(append::Args),
    /// One reader, everything from the first event to the last, over the network.
    Read(read::Args),
    /// Offline sequential scan of segment files beside a plain read of the same files.
    Replay(replay::Args),
    /// Time to start: after a clean stop, after a kill, and by length of the history.
    Recover(recover::Args),
    /// Large batches beside a plain sequential write of the same block size and flush cadence.
    Ingest(ingest::Args),
    /// The device alone: durable overwrites of 4 KiB, one after another.
    Floor(FloorArgs),
    /// Full load with slow readers for a long time: does memory stay flat?
    Soak(soak::Args),
    /// Latency of durable appends at half of what the server can do.
    HalfLoad(half_load::Args),
    /// Millions of streams: memory, look-ups, appends with an expected revision.
    Streams(streams::Args),
    /// Folds of a log by WebAssembly, and the same folds as native code.
    Reduce(reduce::Args),
    /// Questions about the present, at rest and while events pour in.
    Query(query::Args),
    /// Rows as of random points of a long history.
    AsOf(as_of::Args),
    /// How long a snapshot takes, and whom it keeps waiting.
    Snapshot(snapshot::Args),
    /// What a validator in the way of appends costs.
    Validate(validate::Args),
}

#[derive(Debug, clap::Args)]
struct FloorArgs {
    #[command(flatten)]
    common: Common,
    /// Writes of each round.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..))]
    writes: u64,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    if cfg!(debug_assertions) {
        crate::cmd::output::note(
            "This is a build without optimisation: its figures say nothing. Use --release.",
        );
    }
    let (report, common) = match args.what {
        What::Append(args) => (append::run(&args)?, args.common),
        What::Read(args) => (read::run(&args)?, args.common),
        What::Replay(args) => (replay::run(&args)?, args.common),
        What::Recover(args) => (recover::run(&args)?, args.common),
        What::Ingest(args) => (ingest::run(&args)?, args.common),
        What::Floor(args) => (measure_floor(&args)?, args.common),
        What::Soak(args) => (soak::run(&args)?, args.common),
        What::HalfLoad(args) => (half_load::run(&args)?, args.common),
        What::Streams(args) => (streams::run(&args)?, args.common),
        What::Reduce(args) => (reduce::run(&args)?, args.common),
        What::Query(args) => (query::run(&args)?, args.common),
        What::AsOf(args) => (as_of::run(&args)?, args.common),
        What::Snapshot(args) => (snapshot::run(&args)?, args.common),
        What::Validate(args) => (validate::run(&args)?, args.common),
    };
    report.print(globals.json, common.json_file.as_deref())
}

/// Runs the measuring side on one thread, so that most of the machine is left to the server.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::environment("the network threads cannot start", error))?
        .block_on(work)
}

fn measure_floor(args: &FloorArgs) -> Result<Report, Failure> {
    let work = machine::WorkDir::new(&args.common.dir)?;
    let mut floor = floor::Floor::new(work.path())?;
    let mut report = Report::new("floor", work.path());
    let mut rounds = Vec::new();
    for _ in 0..args.common.rounds {
        rounds.push(floor.measure(args.writes)?);
    }
    let spread =
        |of: &dyn Fn(&floor::FloorFigures) -> f64| stats::Spread::of(rounds.iter().map(of));
    let rate = spread(&|round| round.writes_per_s);
    let quantiles = [0.5, 0.99, 0.999].map(|q| spread(&|round| round.latencies.us(q)));
    let mut row = vec![rate.text(0)];
    row.extend(quantiles.iter().map(|quantile| quantile.text(0)));
    report.section(
        "Durable overwrites of 4 KiB (O_DIRECT, O_DSYNC), one thread, one after another",
        &["writes/s", "p50 us", "p99 us", "p99.9 us"],
        vec![row],
        serde_json::json!({
            "writes_per_s": rate.json(),
            "p50_us": quantiles[0].json(),
            "p99_us": quantiles[1].json(),
            "p99_9_us": quantiles[2].json(),
            "rounds": rounds.iter().map(|round| round.latencies.json()).collect::<Vec<_>>(),
        }),
    );
    Ok(report)
}

/// What was read back is not what was acknowledged: the worst that a measurement can find.
fn compare(acknowledged: events::Digest, found: events::Digest) -> Result<(), Failure> {
    if acknowledged == found {
        return Ok(());
    }
    let message = format!(
        "{} events were acknowledged and {} are there, or they are not the same ones",
        acknowledged.events, found.events
    );
    Err(Failure::new(ExitClass::Damaged, message))
}
