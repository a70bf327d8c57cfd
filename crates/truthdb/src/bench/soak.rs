//! `truthdb bench soak`: full load with slow readers for a long time, and the server's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use truthdb_client::{Client, Read};

use super::child::Server;
use super::events::Payload;
use super::load::{Load, Running};
use super::machine::{WorkDir, rss_mib};
use super::report::Report;
use super::stats::number;
use super::target::{Protocol, Target, connect};
use super::{Common, block_on};
use crate::cmd::output::note;
use crate::exit::{ExitClass, Failure};

/// Memory may grow by this share from the second quarter to the last and still be called flat.
const GROWTH_MAX: f64 = 0.05;
/// Pause of a slow reader after each page.
const READER_PAUSE: Duration = Duration::from_millis(250);

/// Full load with slow readers for a long time: does memory stay flat?
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Length, minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Writers, one event per request.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: u64,
    /// Readers that take a page and then pause for a quarter of a second.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(0..=1000))]
    readers: u64,
    /// Disk space of the log, GiB: older segments are removed.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    keep_gib: u64,
}

struct Sample {
    seconds: u64,
    rss_mib: f64,
    appends: u64,
}

/// Runs the command. `--rounds` does not count here: one long run is the measurement.
///
/// # Errors
///
/// Anything that makes the figures void, and memory that is not flat.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("soak", work.path());
    let pages = Arc::new(AtomicU64::new(0));
    let samples = block_on(soak(args, work.path(), Arc::clone(&pages)))?;
    let quarter = samples.len() / 4;
    let most = |range: std::ops::Range<usize>| {
        samples[range]
            .iter()
            .map(|sample| sample.rss_mib)
            .fold(0.0, f64::max)
    };
    let (early, late) = (most(quarter..2 * quarter), most(3 * quarter..samples.len()));
    let growth = late / early - 1.0;
    let flat = growth <= GROWTH_MAX;
    let last = samples.last().map_or(0, |sample| sample.appends);
    let seconds = args.minutes * 60;
    report.section(
        format!(
            "{} writers, {} slow readers, {} minutes",
            args.clients, args.readers, args.minutes
        ),
        &[
            "appends/s",
            "pages read",
            "RSS MiB, 2nd quarter",
            "RSS MiB, 4th quarter",
            "growth %",
            "flat",
        ],
        vec![vec![
            number(last as f64 / seconds as f64, 0),
            number(pages.load(Ordering::Relaxed) as f64, 0),
            number(early, 1),
            number(late, 1),
            number(growth * 100.0, 1),
            if flat { "yes" } else { "no" }.to_owned(),
        ]],
        json!({
            "flat": flat, "growth": growth, "rss_mib_early": early, "rss_mib_late": late,
            "appends": last,
            "samples": samples.iter().map(|sample| json!({
                "seconds": sample.seconds, "rss_mib": sample.rss_mib, "appends": sample.appends,
            })).collect::<Vec<_>>(),
        }),
    );
    report.note(format!(
        "flat: the highest resident memory of the last quarter is at most {:.0} % above that of \
         the second quarter. The log is kept below {} GiB by retention.",
        GROWTH_MAX * 100.0,
        args.keep_gib
    ));
    Ok(report)
}

async fn soak(
    args: &Args,
    directory: &std::path::Path,
    pages: Arc<AtomicU64>,
) -> Result<Vec<Sample>, Failure> {
    let keep = (args.keep_gib << 30).to_string();
    let server = Server::start(&directory.join("data"), &[("RETENTION__BYTES_MAX", keep)])?;
    let target = Target::connect(&server, Protocol::Native).await?;
    let payload = Payload::new(256, false);
    let load = Load {
        writers: args.clients,
        batch: 1,
        appends_per_s: None,
        payload,
    };
    let running = Running::start(&target, &load);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..args.readers {
        readers.spawn(read_slowly(connect(&server).await?, Arc::clone(&pages)));
    }
    let mut samples = Vec::new();
    for seconds in 1..=args.minutes * 60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let rss_mib = rss_mib(&server.process()).ok_or_else(|| {
            Failure::new(ExitClass::Environment, "the server ended during the soak")
        })?;
        let appends = running.appends();
        if seconds % 60 == 0 {
            let minute = seconds / 60;
            note(&format!(
                "minute {minute}: {} MiB, {appends} appends",
                number(rss_mib, 1)
            ));
        }
        samples.push(Sample {
            seconds,
            rss_mib,
            appends,
        });
    }
    readers.abort_all();
    running.finish(0.0).await?;
    server.stop()?;
    Ok(samples)
}

/// Reads from the newest event on, a page at a time with pauses, and falls behind; begins at the
/// newest event again when retention has overtaken it.
async fn read_slowly(client: Client, pages_read: Arc<AtomicU64>) {
    let mut from = 1;
    loop {
        let Ok(mut pages) = client.read(Read::partition(0).from_sequence(from)) else {
            return;
        };
        while let Ok(Some(page)) = pages.next().await {
            from = page.position.position + 1;
            pages_read.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(READER_PAUSE).await;
        }
        if let Ok(Some(newest)) = client.stream_head("bench-0").await {
            from = newest.sequence;
        }
        tokio::time::sleep(READER_PAUSE).await;
    }
}
