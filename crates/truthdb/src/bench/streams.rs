//! `truthdb bench streams`: what millions of streams cost: memory, look-ups, appends with an expected revision.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use truthdb_client::{Client, EventBuilder, ExpectedRevision, NewBatch};
use truthdb_io::{Clock as _, SystemClock};

use super::child::Server;
use super::machine::{WorkDir, random, rss_mib};
use super::report::Report;
use super::stats::{Latencies, Spread, number};
use super::target::connect;
use super::{Common, block_on};
use crate::cmd::output::note;
use crate::exit::{ExitClass, Failure};

/// Appends in flight while the streams are made.
const FILLERS: u64 = 16;
/// New streams of each append while they are made.
const BATCH: u64 = 1000;
/// Requests in flight while look-ups and appends are measured.
const CALLERS: u64 = 16;
/// Streams from this number on are never made.
const NEVER_MADE: u64 = 1 << 40;
/// After the fill, time for seals and merges to come to rest, at most.
const SETTLE_S_MAX: u64 = 120;

/// Millions of streams: memory, look-ups, appends with an expected revision.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Streams, one event each.
    #[arg(long, default_value_t = 5_000_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    streams: u64,
    /// Requests of each kind in each round.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(16..=10_000_000))]
    requests: u64,
    /// Payload bytes of each event.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(0..=65_536))]
    size: u64,
}

/// A kind of request that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The head of a stream that is there.
    Head,
    /// The head of a stream that is not.
    Absent,
    /// An append to a stream that is there, with its exact revision.
    Exact,
    /// An append that makes a stream, with "no stream" expected.
    Create,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Head, "head of a stream"),
    (Kind::Absent, "head of an absent stream"),
    (Kind::Exact, "append, exact revision"),
    (Kind::Create, "append, no stream"),
];

fn failed(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(ExitClass::Network, what).with_source(error)
}

fn wrong(stream: &str, what: &str) -> Failure {
    Failure::new(ExitClass::Damaged, format!("stream {stream} {what}"))
}

fn name(stream: u64) -> String {
    format!("account-{stream:010}")
}

/// Streams appended to with an exact revision, so that each is taken once: a permutation of the
/// streams, walked from round to round.
struct Walk {
    streams: u64,
    step: u64,
    at: u64,
}

impl Walk {
    fn new(streams: u64) -> Walk {
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let mut step = (streams / 2 + u64::from(random()) % (streams / 3)) | 1;
        while gcd(step, streams) != 1 {
            step += 1;
        }
        Walk {
            streams,
            step,
            at: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.at = (self.at + self.step) % self.streams;
        self.at
    }
}

/// Makes streams `first..last` in appends of [`BATCH`] events.
async fn fill(client: &Client, args: &Args) -> Result<f64, Failure> {
    let clock = SystemClock::new();
    let next = Arc::new(Mutex::new(0));
    let payload = Arc::new(vec![0x5a; usize::try_from(args.size).expect("checked")]);
    let mut fillers = JoinSet::new();
    for _ in 0..FILLERS {
        let (client, next, payload) = (client.clone(), Arc::clone(&next), Arc::clone(&payload));
        let streams = args.streams;
        fillers.spawn(async move {
            loop {
                let first = {
                    let mut next = next.lock();
                    let first = *next;
                    *next = (first + BATCH).min(streams);
                    if first / 1_000_000 != *next / 1_000_000 {
                        note(&format!("{} streams", *next));
                    }
                    first
                };
                if first == streams {
                    return Ok(());
                }
                let mut batch = NewBatch::new();
                for stream in first..(first + BATCH).min(streams) {
                    batch
                        .push(EventBuilder::new(&name(stream), "opened").payload(&payload))
                        .map_err(|error| failed("the batch is not legal", error))?;
                }
                client
                    .append(batch)
                    .await
                    .map_err(|error| failed("an append failed", error))?;
            }
        });
    }
    finish(fillers).await?;
    Ok(args.streams as f64 / (clock.monotonic_ns() as f64 / 1e9))
}

async fn finish(mut tasks: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(joined) = tasks.join_next().await {
        joined.map_err(|error| {
            Failure::new(ExitClass::Internal, "a caller panicked").with_source(error)
        })??;
    }
    Ok(())
}

/// Waits until every full segment is sealed, so that the figures are those of a server at rest.
async fn settle(server: &Server) -> Result<(), Failure> {
    for _ in 0..SETTLE_S_MAX * 4 {
        let metrics = server.metrics()?;
        let unsealed = metrics.sum("truthdb_segments") - metrics.sum("truthdb_segments_sealed");
        if unsealed <= 1.5 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Err(Failure::new(
        ExitClass::Internal,
        format!("segments are still not sealed {SETTLE_S_MAX} s after the last append"),
    ))
}

/// One request, and whether its answer is what it must be.
async fn request(client: &Client, kind: Kind, stream: u64) -> Result<(), Failure> {
    let stream = name(stream);
    match kind {
        Kind::Head => match client.stream_head(&stream).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(wrong(&stream, "is gone")),
            Err(error) => Err(failed("a look-up failed", error)),
        },
        Kind::Absent => match client.stream_head(&stream).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(wrong(&stream, "is there and was never made")),
            Err(error) => Err(failed("a look-up failed", error)),
        },
        Kind::Exact | Kind::Create => {
            let expected = match kind {
                Kind::Exact => ExpectedRevision::Exact(0),
                _ => ExpectedRevision::NoStream,
            };
            let batch = NewBatch::new()
                .event(EventBuilder::new(&stream, "changed"))
                .and_then(|batch| batch.expect(&stream, expected))
                .map_err(|error| failed("the batch is not legal", error))?;
            let appended = client
                .append(batch)
                .await
                .map_err(|error| failed("an append failed", error))?;
            if appended.already_appended {
                return Err(wrong(&stream, "had this append already"));
            }
            Ok(())
        }
    }
}

/// Requests of one kind, [`CALLERS`] at a time.
async fn measure(
    client: &Client,
    kind: Kind,
    streams: Vec<u64>,
) -> Result<(f64, Latencies), Failure> {
    let clock = Arc::new(SystemClock::new());
    let latencies = Arc::new(Mutex::new(Latencies::new()));
    let requests = streams.len();
    let waiting = Arc::new(Mutex::new(streams));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, clock) = (client.clone(), Arc::clone(&clock));
        let (latencies, waiting) = (Arc::clone(&latencies), Arc::clone(&waiting));
        callers.spawn(async move {
            loop {
                let Some(stream) = waiting.lock().pop() else {
                    return Ok(());
                };
                let start = clock.monotonic_ns();
                request(&client, kind, stream).await?;
                latencies
                    .lock()
                    .record_ns(clock.monotonic_ns().saturating_sub(start));
            }
        });
    }
    finish(callers).await?;
    let rate = requests as f64 / (clock.monotonic_ns() as f64 / 1e9);
    let latencies = latencies.lock().clone();
    Ok((rate, latencies))
}

/// What the rounds of one kind gave.
#[derive(Default)]
struct Rounds {
    rates: Vec<f64>,
    latencies: Vec<Latencies>,
}

impl Rounds {
    fn row(&self, what: &str) -> (Vec<String>, serde_json::Value) {
        let rate = Spread::of(self.rates.iter().copied());
        let quantile = |q: f64| Spread::of(self.latencies.iter().map(|round| round.us(q)));
        let row = vec![
            what.to_owned(),
            rate.text(0),
            quantile(0.5).text(0),
            quantile(0.99).text(0),
            quantile(0.999).text(0),
        ];
        let value = json!({
            "what": what, "requests_per_s": rate.json(), "p50_us": quantile(0.5).json(),
            "p99_us": quantile(0.99).json(), "p99_9_us": quantile(0.999).json(),
        });
        (row, value)
    }
}

/// What a run found besides latencies.
struct Figures {
    fill_per_s: f64,
    rss_mib_filled: f64,
    rss_mib_started: f64,
    start_ms: f64,
    kinds: Vec<(&'static str, Rounds)>,
}

fn rss_of(server: &Server) -> Result<f64, Failure> {
    rss_mib(&server.process())
        .ok_or_else(|| Failure::new(ExitClass::Environment, "the server ended"))
}

async fn work_through(args: &Args, directory: &std::path::Path) -> Result<Figures, Failure> {
    let data = directory.join("data");
    let server = Server::start(&data, &[])?;
    let client = connect(&server).await?;
    let fill_per_s = fill(&client, args).await?;
    settle(&server).await?;
    let rss_mib_filled = rss_of(&server)?;
    drop(client);
    server.stop()?;
    let server = Server::start(&data, &[])?;
    let (start_ms, rss_mib_started) = (server.start_ns as f64 / 1e6, rss_of(&server)?);
    let client = connect(&server).await?;
    let mut kinds: Vec<(&'static str, Rounds)> = KINDS
        .iter()
        .map(|(_, what)| (*what, Rounds::default()))
        .collect();
    let (mut looked, mut changed) = (Walk::new(args.streams), Walk::new(args.streams));
    let mut unmade = args.streams;
    for _ in 0..args.common.rounds {
        for ((kind, _), (_, rounds)) in KINDS.iter().zip(&mut kinds) {
            let streams = (0..args.requests)
                .map(|_| match kind {
                    Kind::Head => looked.next(),
                    Kind::Exact => changed.next(),
                    Kind::Absent => NEVER_MADE + u64::from(random()),
                    Kind::Create => {
                        unmade += 1;
                        unmade - 1
                    }
                })
                .collect();
            let (rate, latencies) = measure(&client, *kind, streams).await?;
            rounds.rates.push(rate);
            rounds.latencies.push(latencies);
        }
    }
    drop(client);
    server.stop()?;
    Ok(Figures {
        fill_per_s,
        rss_mib_filled,
        rss_mib_started,
        start_ms,
        kinds,
    })
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    if args.requests * u64::from(args.common.rounds) > args.streams {
        return Err(Failure::new(
            ExitClass::Usage,
            "--requests times --rounds must not exceed --streams: each stream is appended to once",
        ));
    }
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("streams", work.path());
    let figures = block_on(work_through(args, work.path()))?;
    let (rows, values): (Vec<_>, Vec<_>) = figures
        .kinds
        .iter()
        .map(|(what, rounds)| rounds.row(what))
        .unzip();
    report.section(
        format!(
            "{} streams, {CALLERS} requests at a time, random streams",
            args.streams
        ),
        &["request", "requests/s", "p50 us", "p99 us", "p99.9 us"],
        rows,
        json!({
            "streams": args.streams, "new_streams_per_s": figures.fill_per_s,
            "rss_mib_filled": figures.rss_mib_filled, "rss_mib_started": figures.rss_mib_started,
            "start_ms": figures.start_ms, "requests": values,
        }),
    );
    report.note(format!(
        "{} new streams/s in batches of {BATCH}; resident memory of the server {} MiB after the \
         last of them, {} MiB after a clean stop and a start, which took {} ms.",
        number(figures.fill_per_s, 0),
        number(figures.rss_mib_filled, 0),
        number(figures.rss_mib_started, 0),
        number(figures.start_ms, 0),
    ));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::Walk;

    #[test]
    fn a_walk_meets_every_stream_once() {
        let mut walk = Walk::new(5000);
        let mut seen: Vec<u64> = (0..5000).map(|_| walk.next()).collect();
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..5000));
    }
}
