//! `flights-load`: appends a year of flights to a server, in the order of time, and can read them back.
//!
//! One batch is under way for each partition, so that each partition holds its events in the order
//! of time, also
//! when the server asks for a repetition; the next batches are made meanwhile.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use truthdb_client::{Client, ClientConfig, NewBatch, Read};
use truthdb_flights::{History, Moment, batches};

/// Batches made ahead, for each partition.
const BATCHES_AHEAD_MAX: usize = 4;

/// Appends the flights of 2013 from New York to a server: 1,001,615 events of 4,044 streams.
///
/// Loading again appends nothing: each event has the same id every time.
#[derive(Debug, Parser)]
#[command(name = "flights-load", version)]
struct Arguments {
    /// Host and port of the server's native protocol.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7434")]
    server: String,
    /// Token to present to the server.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "TRUTHDB_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Most events of a batch. A batch never holds events of two hours, so that derived state can be asked for
    /// as of each full hour of the year.
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch_events: u16,
    /// Read everything back and compare it, event by event and in order, instead of loading.
    #[arg(long)]
    verify: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let mut config = ClientConfig::new(&arguments.server);
    config.token = arguments.token;
    let client = Client::connect(config).await.context("connecting")?;
    let history = Arc::new(History::load()?);
    let partitions = partitions(&client, &history);
    let start = Instant::now();
    let (done, events) = if arguments.verify {
        ("verified", verify(&client, &history, partitions).await?)
    } else if is_loaded(&client, &history, &partitions).await? {
        println!(
            "the flights are already there ({} events)",
            HumanCount(count(&history))
        );
        return Ok(());
    } else {
        let batch_events = usize::from(arguments.batch_events);
        (
            "loaded",
            load(&client, &history, partitions, batch_events).await?,
        )
    };
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{done} {} events in {seconds:.1} s ({} a second)",
        HumanCount(events),
        HumanCount(rate(events, start.elapsed()))
    );
    Ok(())
}

/// The moments of each partition, in order.
fn partitions(client: &Client, history: &History) -> BTreeMap<u32, Vec<Moment>> {
    let mut partitions: BTreeMap<u32, Vec<Moment>> = BTreeMap::new();
    for moment in history.moments() {
        let partition = client.partition_of(&history.stream(*moment));
        partitions.entry(partition).or_default().push(*moment);
    }
    partitions
}

/// Whether the last event of each partition is there; then all before it are, as they were appended in order.
async fn is_loaded(
    client: &Client,
    history: &History,
    partitions: &BTreeMap<u32, Vec<Moment>>,
) -> Result<bool> {
    for moments in partitions.values() {
        let Some(last) = moments.last() else { continue };
        let stream = history.stream(*last);
        let events = moments
            .iter()
            .filter(|moment| history.stream(**moment) == stream)
            .count();
        let head = client
            .stream_head(&stream)
            .await
            .context("looking for the flights")?;
        if head.is_none_or(|head| head.revision + 1 < events as u64) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Appends all events; returns how many.
async fn load(
    client: &Client,
    history: &Arc<History>,
    partitions: BTreeMap<u32, Vec<Moment>>,
    batch_events: usize,
) -> Result<u64> {
    let bar = progress("loading", count(history))?;
    let mut tasks = JoinSet::new();
    for moments in partitions.into_values() {
        let (send, mut receive) = mpsc::channel(BATCHES_AHEAD_MAX);
        let history = Arc::clone(history);
        let made = tokio::task::spawn_blocking(move || -> Result<()> {
            for moments in batches(&moments, batch_events) {
                let mut batch = NewBatch::new();
                for moment in moments {
                    history
                        .event(*moment, |event| batch.push(event))
                        .context("making a batch")?;
                }
                if send.blocking_send(batch).is_err() {
                    // The receiver failed and says why.
                    return Ok(());
                }
            }
            Ok(())
        });
        let (client, bar) = (client.clone(), bar.clone());
        tasks.spawn(async move {
            let mut events = 0;
            while let Some(batch) = receive.recv().await {
                let batch_events = batch.len() as u64;
                client.append(batch).await.context("appending")?;
                events += batch_events;
                bar.inc(batch_events);
            }
            made.await.context("making batches")??;
            Ok(events)
        });
    }
    sum(tasks, &bar).await
}

/// Reads all partitions and compares; returns how many events were equal.
async fn verify(
    client: &Client,
    history: &Arc<History>,
    partitions: BTreeMap<u32, Vec<Moment>>,
) -> Result<u64> {
    let bar = progress("verifying", count(history))?;
    let mut tasks = JoinSet::new();
    for (partition, moments) in partitions {
        let (client, history, bar) = (client.clone(), Arc::clone(history), bar.clone());
        tasks.spawn(
            async move { verify_partition(&client, &history, partition, &moments, &bar).await },
        );
    }
    sum(tasks, &bar).await
}

async fn verify_partition(
    client: &Client,
    history: &History,
    partition: u32,
    moments: &[Moment],
    bar: &ProgressBar,
) -> Result<u64> {
    let mut pages = client.read(Read::partition(partition)).context("reading")?;
    let mut expected = moments.iter();
    let mut revisions: BTreeMap<String, u64> = BTreeMap::new();
    let mut bytes = Vec::new();
    while let Some(page) = pages.next().await.context("reading")? {
        let mut events = 0;
        for recorded in page.events() {
            let sequence = recorded.sequence();
            let stream = recorded.event().stream();
            if !stream.starts_with("aircraft/") {
                continue;
            }
            let Some(moment) = expected.next() else {
                bail!("partition {partition}: event {sequence} of {stream} is one too many");
            };
            bytes.clear();
            history
                .event(*moment, |event| event.encode_into(&mut bytes))
                .context("encoding")?;
            ensure!(
                recorded.bytes()[..] == bytes[..],
                "partition {partition}: event {sequence} is not the {} of {} at {}",
                moment.kind.name(),
                history.stream(*moment),
                moment.at
            );
            let revision = revisions.entry(stream.to_owned()).or_default();
            ensure!(
                recorded.revision() == *revision,
                "partition {partition}: event {sequence} has revision {}, not {revision}",
                recorded.revision()
            );
            *revision += 1;
            events += 1;
        }
        bar.inc(events);
    }
    let missing = expected.len();
    ensure!(
        missing == 0,
        "partition {partition}: the last {missing} events are missing"
    );
    Ok(moments.len() as u64)
}

/// Waits for all tasks; the first error ends the others.
async fn sum(mut tasks: JoinSet<Result<u64>>, bar: &ProgressBar) -> Result<u64> {
    let mut events = 0;
    while let Some(partition) = tasks.join_next().await {
        events += partition.context("a task ended early")??;
    }
    bar.finish_and_clear();
    Ok(events)
}

fn progress(what: &'static str, events: u64) -> Result<ProgressBar> {
    let template = "{msg} [{wide_bar}] {human_pos} of {human_len} events, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).context("progress bar")?;
    Ok(ProgressBar::new(events)
        .with_style(style)
        .with_message(what))
}

fn count(history: &History) -> u64 {
    history.moments().len() as u64
}

/// Events a second.
fn rate(events: u64, elapsed: Duration) -> u64 {
    let micros = u64::try_from(elapsed.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    events.saturating_mul(1_000_000) / micros
}
