//! `truthdb bench recover`: time to start, after a clean stop, after a kill, and by history.

use std::path::Path;

use serde_json::json;
use truthdb_engine::{Engine, EngineConfig};
use truthdb_io::{BLOCK_BYTES, Clock as _, SystemClock};

use super::child::Server;
use super::events::{Author, Payload};
use super::machine::WorkDir;
use super::report::Report;
use super::stats::{Spread, number};
use super::target::{Protocol, Target, open_engine};
use super::{Common, block_on};
use crate::cmd::output::note;
use crate::exit::Failure;

/// Segments of the long history: the smallest there are, bytes.
const SMALL_SEGMENT_BYTES: u64 = 16 << 20;
/// Segments of the killed server: the default, bytes.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Payload of the long history's events: zeros, so that compressed segments take little space.
const HISTORY_PAYLOAD_BYTES: usize = 4096;
/// Events of each append of the long history: about 1 MiB.
const HISTORY_BATCH: usize = 250;
/// Payload and batch of the events that are recovered.
const TAIL_PAYLOAD_BYTES: usize = 256;
const TAIL_BATCH: usize = 100;

/// Time to start: after a clean stop, after a kill, and by length of the history.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Lengths of the history in sealed segments, ascending; 1600 stand for 100 GB of 64 MiB each.
    #[arg(long, value_delimiter = ',', default_value = "0,100,400",
        value_parser = clap::value_parser!(u32).range(0..=100_000))]
    segments: Vec<u32>,
    /// How full the active segment is when the server is killed, percent.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=95))]
    full_percent: u64,
}

fn config() -> EngineConfig {
    EngineConfig {
        compress: true,
        ..EngineConfig::default()
    }
}

/// Opens an engine and says how long that took, milliseconds.
fn timed_open(data: &Path) -> Result<(Engine, f64), Failure> {
    let clock = SystemClock::new();
    let start = clock.monotonic_ns();
    let engine = open_engine(data, config(), SMALL_SEGMENT_BYTES)?;
    Ok((engine, (clock.monotonic_ns() - start) as f64 / 1e6))
}

async fn fill(engine: &Engine, author: &mut Author, segments: u32) -> Result<(), Failure> {
    let mut target = Target::Engine(engine.clone());
    while engine.status().partitions[0].sealed_segments < segments {
        target.append(author, HISTORY_BATCH).await?;
    }
    Ok(())
}

/// Start times after clean stops, by number of sealed segments.
fn by_history(data: &Path, args: &Args) -> Result<Vec<(u32, u64, Spread, Spread)>, Failure> {
    let mut author = Author::new(0, &Payload::new(HISTORY_PAYLOAD_BYTES, true));
    let mut rows = Vec::new();
    for segments in &args.segments {
        let (engine, _) = timed_open(data)?;
        block_on(fill(&engine, &mut author, *segments))?;
        let event_bytes = engine.committed(0) * (HISTORY_PAYLOAD_BYTES as u64);
        engine.shutdown();
        let (mut opened, mut ready) = (Vec::new(), Vec::new());
        for _ in 0..args.common.rounds {
            let (engine, ms) = timed_open(data)?;
            engine.shutdown();
            opened.push(ms);
            let server = Server::start(data, &[])?;
            ready.push(server.start_ns as f64 / 1e6);
            server.stop()?;
        }
        let (opened, ready) = (Spread::of(opened), Spread::of(ready));
        note(&format!(
            "{segments} sealed segments: open {} ms",
            opened.text(1)
        ));
        rows.push((*segments, event_bytes, opened, ready));
    }
    Ok(rows)
}

/// Start times after kills: milliseconds of opening, events recovered.
fn after_kill(work: &Path, args: &Args) -> Result<Vec<(f64, u64)>, Failure> {
    let payload = Payload::new(TAIL_PAYLOAD_BYTES, false);
    // Header, then for each event a table row, a header and short names; whole blocks.
    let batch_bytes = (128 + TAIL_BATCH * (20 + 28 + 15 + TAIL_PAYLOAD_BYTES)) as u64;
    let batches =
        SEGMENT_BYTES * args.full_percent / 100 / batch_bytes.next_multiple_of(BLOCK_BYTES as u64);
    let mut rounds = Vec::new();
    for _ in 0..args.common.rounds {
        let data = work.join("killed");
        block_on(async {
            let server = Server::start(&data, &[])?;
            let mut target = Target::connect(&server, Protocol::Native).await?;
            let mut author = Author::new(0, &payload);
            for _ in 0..batches {
                target.append(&mut author, TAIL_BATCH).await?;
            }
            server.kill()
        })?;
        let (engine, ms) = timed_open(&data)?;
        rounds.push((ms, engine.committed(0)));
        engine.shutdown();
        let expected = batches * TAIL_BATCH as u64;
        super::compare(
            super::events::Digest {
                events: expected,
                sum: 0,
            },
            super::events::Digest {
                events: engine.committed(0),
                sum: 0,
            },
        )?;
        std::fs::remove_dir_all(&data)
            .map_err(|error| Failure::environment("cannot remove the measured database", error))?;
    }
    Ok(rounds)
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void; lengths that do not ascend.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    if !args.segments.is_sorted() {
        return Err(Failure::usage(
            "--segments: give the lengths in ascending order",
        ));
    }
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("recover", work.path());
    let killed = after_kill(work.path(), args)?;
    let opened = Spread::of(killed.iter().map(|round| round.0));
    let events = Spread::of(killed.iter().map(|round| round.1 as f64));
    report.section(
        format!(
            "After kill -9, the active segment {} % full",
            args.full_percent
        ),
        &["open ms", "events recovered"],
        vec![vec![opened.text(1), number(events.median, 0)]],
        json!({"open_ms": opened.json(), "events": events.json()}),
    );
    let rows = by_history(&work.path().join("history"), args)?;
    report.section(
        "After a clean stop, by length of the history",
        &["sealed segments", "event MB", "open ms", "server ready ms"],
        rows.iter()
            .map(|(segments, bytes, opened, ready)| {
                vec![
                    segments.to_string(),
                    number(*bytes as f64 / 1e6, 0),
                    opened.text(1),
                    ready.text(1),
                ]
            })
            .collect(),
        rows.iter()
            .map(|(segments, bytes, opened, ready)| {
                json!({
                    "sealed_segments": segments, "event_bytes": bytes,
                    "open_ms": opened.json(), "ready_ms": ready.json(),
                })
            })
            .collect(),
    );
    report.note(
        "open: opening the log and its indexes. server ready: from the start of the process until \
         its ports listen. The history consists of segments that the engine itself sealed, of \
         events with 4 KiB of zeros, compressed, so that their number is real and their space \
         small; what a start reads of a sealed segment does not depend on its size.",
    );
    Ok(report)
}
