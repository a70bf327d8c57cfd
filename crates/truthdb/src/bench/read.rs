//! `truthdb bench read`: one reader over the network, from the first event to the last.

use std::time::Duration;

use serde_json::json;
use truthdb_io::{Clock as _, SystemClock};

use super::child::Server;
use super::events::{Digest, Payload};
use super::load::{Load, Running};
use super::machine::{WorkDir, cpu_ns};
use super::replay::{raw_read, segment_files};
use super::report::Report;
use super::stats::{Spread, number};
use super::target::{Protocol, Target};
use super::{Common, block_on, compare};
use crate::exit::Failure;

/// One reader, everything from the first event to the last, over the network.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    /// How long 16 writers fill the database before, in batches of 100, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    fill_seconds: u64,
    /// Payload bytes of each event.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=65_536))]
    size: u64,
}

/// One pass of the reader.
struct Pass {
    events_per_s: f64,
    server_cpu: Option<f64>,
    client_cpu: Option<f64>,
}

async fn pass(
    server: &Server,
    target: &Target,
    payload: &Payload,
    expected: Digest,
) -> Result<Pass, Failure> {
    let clock = SystemClock::new();
    let process = server.process();
    let (server_before, client_before) = (cpu_ns(&process), cpu_ns("self"));
    let start = clock.monotonic_ns();
    let found = target.read_all(payload).await?;
    let seconds = (clock.monotonic_ns() - start) as f64 / 1e9;
    compare(expected, found)?;
    let events = found.events.max(1) as f64;
    let per_million = |before: Option<u64>, after: Option<u64>| {
        Some((after?.checked_sub(before?)?) as f64 / 1e9 / events * 1e6)
    };
    Ok(Pass {
        events_per_s: events / seconds,
        server_cpu: per_million(server_before, cpu_ns(&process)),
        client_cpu: per_million(client_before, cpu_ns("self")),
    })
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let work = WorkDir::new(&args.common.dir)?;
    let data = work.path().join("data");
    let mut report = Report::new("read", work.path());
    let payload = Payload::new(usize::try_from(args.size).expect("checked"), false);
    let load = Load {
        writers: 16,
        batch: 100,
        appends_per_s: None,
        payload: payload.clone(),
    };
    let (mut first, mut second, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    let filled = block_on(async {
        let server = Server::start(&data, &[])?;
        let target = Target::connect(&server, Protocol::Native).await?;
        let running = Running::start(&target, &load);
        tokio::time::sleep(Duration::from_secs(args.fill_seconds)).await;
        let written = running.finish(0.0).await?;
        drop(target);
        server.stop()?;
        Ok(written.acknowledged)
    })?;
    for _ in 0..args.common.rounds {
        block_on(async {
            let server = Server::start(&data, &[])?;
            let target = Target::connect(&server, Protocol::Native).await?;
            first.push(pass(&server, &target, &payload, filled).await?);
            second.push(pass(&server, &target, &payload, filled).await?);
            drop(target);
            server.stop()
        })?;
        raw.push(raw_read(&segment_files(&data)?)?);
    }
    let rows = [("first", &first), ("second", &second)].map(|(name, passes)| {
        let rate = Spread::of(passes.iter().map(|pass| pass.events_per_s));
        let cpu = |of: &dyn Fn(&Pass) -> Option<f64>| {
            let known: Option<Vec<f64>> = passes.iter().map(of).collect();
            known.map_or_else(|| "-".to_owned(), |f| number(Spread::of(f).median, 2))
        };
        vec![
            name.to_owned(),
            rate.text(0),
            number(rate.median * args.size as f64 / 1e6, 1),
            cpu(&|pass| pass.server_cpu),
            cpu(&|pass| pass.client_cpu),
        ]
    });
    let rates = |passes: &[Pass]| {
        let rates: Vec<f64> = passes.iter().map(|pass| pass.events_per_s).collect();
        json!({"events_per_s": Spread::of(rates.iter().copied()).json(), "rounds": rates})
    };
    let raw = Spread::of(raw);
    report.section(
        format!(
            "One reader, {} events, all checksums verified by the client",
            filled.events
        ),
        &[
            "pass",
            "events/s",
            "MB/s",
            "server CPU s/M",
            "client CPU s/M",
        ],
        rows.into(),
        json!({
            "events": filled.events, "payload_bytes": args.size, "first": rates(&first),
            "second": rates(&second), "raw_direct_read_bytes_per_s": raw.json(),
        }),
    );
    report.note(format!(
        "first: right after the server's start; second: the same read again. Files are read past \
         the page cache (O_DIRECT), so both come from the disk as far as the server's own caches \
         do not hold them. A plain direct read of the same files, 1 MiB at a time, in the same \
         rounds: {} MB/s.",
        Spread {
            median: raw.median / 1e6,
            low: raw.low / 1e6,
            high: raw.high / 1e6
        }
        .text(0),
    ));
    Ok(report)
}
