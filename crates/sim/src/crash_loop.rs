//! Real crashes: a child process appends under load on a real directory, the parent kills it and looks.
//!
//! The child writes a line for each acknowledged append to a pipe: whatever the parent has read was acknowledged
//! before the kill. After each kill the parent opens the database itself and reads everything.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use truthdb_engine::{
    Direction, EncodedEvents, Engine, EngineConfig, Filter, ReadFrom, ReadRequest,
};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::sim::SimPrng;
use truthdb_io::{Backend, FileStorage, SystemClock, World};
use truthdb_log::{CreateOptions, create_database};

const PARTITIONS: u32 = 2;
const THREADS: u64 = 4;
const SEGMENT_BYTES: u64 = 16 << 20;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides the moments of the kills and what is appended.
    pub seed: u64,
    /// Number of kills.
    pub kills: u64,
    /// Ends earlier after this time.
    pub time_max: Duration,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Kills done.
    pub kills: u64,
    /// Appends that were acknowledged.
    pub acknowledged: u64,
    /// Events that are stored.
    pub events: u64,
    /// Events stored in batches of which no acknowledgement was seen.
    pub unacknowledged: u64,
    /// Times of opening, nanoseconds, sorted.
    pub open_ns: Vec<u64>,
}

type Error = Box<dyn std::error::Error>;

fn world(dir: &Path) -> Result<World, Error> {
    let storage = FileStorage::open(dir, Backend::Auto)?;
    Ok(World::system(Arc::new(storage)))
}

/// The events of one append: they follow from its number alone.
fn batch(number: u64) -> Vec<Vec<u8>> {
    let mut prng = SimPrng::new(number);
    let stream = format!("stream-{}", number % 97);
    let one = |index: u64, prng: &mut SimPrng| {
        let bytes = if prng.below(40) == 0 {
            prng.between(10_000, 200_000)
        } else {
            prng.below(400)
        };
        let mut payload = vec![0; usize::try_from(bytes).expect("a payload")];
        prng.fill(&mut payload);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        id[8..].copy_from_slice(&index.to_le_bytes());
        let mut out = Vec::new();
        EventBuilder::new(&stream, "Appended")
            .id(EventId(id))
            .payload(&payload)
            .encode_into(&mut out)
            .expect("the events of the loop are valid");
        out
    };
    (0..1 + number % 3).map(|i| one(i, &mut prng)).collect()
}

/// The child: appends until it is killed; a line `number partition first_sequence` for each acknowledgement.
///
/// # Errors
/// If the database does not open or an append fails.
pub fn child(dir: &Path, first: u64) -> Result<(), Error> {
    let engine = Engine::open(world(dir)?, EngineConfig::default())?;
    let next = std::sync::atomic::AtomicU64::new(first);
    let result: Result<(), String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
                        let events = EncodedEvents {
                            bytes: Bytes::from(batch(number).concat()),
                            ..EncodedEvents::default()
                        };
                        let done = engine
                            .prepare(None, events)
                            .and_then(|batch| engine.append_blocking(batch));
                        let appended = match done {
                            Ok(appended) => appended,
                            Err(error) if error.is_retryable() => continue,
                            Err(error) => return Err(error.to_string()),
                        };
                        let line = format!(
                            "{number} {} {}\n",
                            appended.partition, appended.first_sequence
                        );
                        let mut out = std::io::stdout().lock();
                        out.write_all(line.as_bytes()).map_err(|e| e.to_string())?;
                        out.flush().map_err(|e| e.to_string())?;
                    }
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let joined = thread.join();
            joined.unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        })
    });
    Ok(result?)
}

/// Runs the loop in a new directory below `parent`, which must be on a real disk.
///
/// # Errors
/// What is wrong, with the seed.
pub fn run(
    parent: &Path,
    program: &Path,
    options: &Options,
    progress: &dyn Fn(&Outcome),
) -> Result<Outcome, Error> {
    let dir = tempfile::tempdir_in(parent)?;
    let create = CreateOptions {
        partition_count: PARTITIONS,
        segment_bytes: SEGMENT_BYTES,
        ..CreateOptions::default()
    };
    create_database(&world(dir.path())?, &create)?;
    let clock = SystemClock::new();
    let now = || truthdb_io::Clock::monotonic_ns(&clock);
    let started = now();
    let limit = u64::try_from(options.time_max.as_nanos()).unwrap_or(u64::MAX);
    let mut prng = SimPrng::new(options.seed);
    let mut outcome = Outcome::default();
    // By number: partition and first sequence.
    let mut acknowledged = BTreeMap::new();
    let mut next = 1;
    while outcome.kills < options.kills && now() - started < limit {
        let lines = kill_one(dir.path(), program, next, &mut prng)?;
        for line in lines {
            let mut parts = line.split(' ').map(str::parse::<u64>);
            let (Some(Ok(number)), Some(Ok(partition)), Some(Ok(first)), None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return Err(format!("the child wrote {line:?}").into());
            };
            acknowledged.insert(number, (partition, first));
        }
        outcome.kills += 1;
        outcome.acknowledged = acknowledged.len() as u64;
        // More numbers than the child can have used.
        next = acknowledged
            .keys()
            .next_back()
            .map_or(next, |last| last + 1)
            + 1000;
        let begun = now();
        let engine = Engine::open(world(dir.path())?, EngineConfig::default())?;
        outcome.open_ns.push(now() - begun);
        check(&engine, &acknowledged, &mut outcome)
            .map_err(|text| format!("seed {}, kill {}: {text}", options.seed, outcome.kills))?;
        if prng.coin() {
            engine.shutdown();
        } else {
            engine.abandon();
        }
        progress(&outcome);
    }
    outcome.open_ns.sort_unstable();
    Ok(outcome)
}

/// Starts a child, kills it at a random moment, and gives the whole lines it wrote.
fn kill_one(
    dir: &Path,
    program: &Path,
    first: u64,
    prng: &mut SimPrng,
) -> Result<Vec<String>, Error> {
    let mut child = Command::new(program)
        .arg("crash-child")
        .arg(dir)
        .arg(first.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = child.stdout.take().ok_or("the child has no pipe")?;
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        let mut reader = BufReader::new(pipe);
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return lines,
                Ok(_) => {}
            }
            // The last line may be cut: then its acknowledgement was not seen.
            if line.ends_with('\n') {
                lines.push(line.trim_end().to_owned());
                if lines.len() == 1 && sender.send(()).is_err() {
                    return lines;
                }
            }
        }
    });
    // One time in eight the moment may lie before the first acknowledgement: in recovery.
    if prng.below(8) != 0 {
        receiver.recv_timeout(Duration::from_secs(60)).ok();
    }
    let moment = Duration::from_micros(prng.below(400_000));
    receiver.recv_timeout(moment).ok();
    while let Ok(()) = receiver.try_recv() {}
    if let Some(status) = child.try_wait()? {
        return Err(format!("the child ended by itself: {status}").into());
    }
    child.kill()?;
    child.wait()?;
    reader
        .join()
        .map_err(|_| "the reader of the pipe panicked".into())
}

fn check(
    engine: &Engine,
    acknowledged: &BTreeMap<u64, (u64, u64)>,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let mut stored = BTreeMap::new();
    outcome.events = 0;
    for partition in 0..engine.partition_count() {
        if let Err(reason) = &engine.report().partitions[partition as usize].tail {
            return Err(format!("partition {partition} is fenced: {reason}"));
        }
        let mut revisions: BTreeMap<String, u64> = BTreeMap::new();
        let (mut sequence, mut time) = (1, 0);
        let mut request = ReadRequest {
            partition,
            from: ReadFrom::Start,
            direction: Direction::Forward,
            filter: Filter::default(),
            events_max: 100_000,
            bytes_max: 8 << 20,
        };
        loop {
            let page = engine
                .read(&request)
                .map_err(|e| crate::check::error_text(&e))?;
            for run in &page.batches {
                let events: Vec<_> = run.events().collect();
                let Some(first) = events.first() else {
                    continue;
                };
                let id = first.event().id().0;
                let number = id[..8].try_into().map_err(|_| "an id is 16 bytes")?;
                let number = u64::from_le_bytes(number);
                let expected = batch(number);
                let same = events.len() == expected.len()
                    && events.iter().zip(&expected).all(|(e, x)| e.bytes == &x[..]);
                if !same {
                    return Err(format!(
                        "batch {number} at {sequence} is not as it was appended"
                    ));
                }
                for event in &events {
                    let revision = revisions
                        .entry(event.event().stream().to_owned())
                        .or_default();
                    if (event.sequence, event.revision) != (sequence, *revision)
                        || event.timestamp_ns < time
                    {
                        return Err(format!("partition {partition} has a gap at {sequence}"));
                    }
                    (sequence, time, *revision) = (sequence + 1, event.timestamp_ns, *revision + 1);
                }
                let place = (u64::from(partition), first.sequence);
                if stored.insert(number, place).is_some() {
                    return Err(format!("batch {number} is stored twice"));
                }
                outcome.events += events.len() as u64;
            }
            match page.next {
                Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
                _ => break,
            }
        }
    }
    for (number, place) in acknowledged {
        if stored.get(number) != Some(place) {
            let found = stored.get(number);
            return Err(format!(
                "batch {number} was acknowledged at {place:?} and is at {found:?}"
            ));
        }
    }
    outcome.unacknowledged = (stored.len() - acknowledged.len()) as u64;
    Ok(())
}
