//! `truthdb bench replay`: sequential scans of segment files, beside a plain read of the same files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use truthdb_engine::EngineConfig;
use truthdb_io::{Clock as _, OpenMode, SystemClock, World};
use truthdb_log::{
    SegmentScan, SegmentState, discover_segments, open_database_layout, segment_path,
};

use super::events::{Digest, Payload};
use super::floor::sequential_read;
use super::load::{Load, Running};
use super::machine::{WorkDir, thread_cpu_ns};
use super::report::Report;
use super::stats::Spread;
use super::target::{Target, open_engine, wrong_event};
use super::{Common, block_on, compare};
use crate::exit::{ExitClass, Failure};
use crate::server::config::IoBackend;
use crate::server::open_world;

/// Offline sequential scan of segment files beside a plain read of the same files.
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

/// The segment files of partition 0 with their lengths in bytes.
///
/// # Errors
///
/// `environment`: they cannot be listed.
pub(super) fn segment_files(data: &Path) -> Result<Vec<(PathBuf, u64)>, Failure> {
    let folder = data.join(truthdb_log::wal_dir(0));
    let failed = |error: std::io::Error| {
        Failure::environment(format!("cannot list {}", folder.display()), error)
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "log")
        {
            files.push((entry.path(), entry.metadata().map_err(failed)?.len()));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads files plainly; bytes each second.
///
/// # Errors
///
/// `environment`: the disk's.
pub(super) fn raw_read(files: &[(PathBuf, u64)]) -> Result<f64, Failure> {
    let (bytes, seconds) = sequential_read(files)?;
    Ok(bytes as f64 / seconds)
}

/// A segment and where its data ends.
struct Piece {
    segment: u32,
    end: u64,
    sealed: bool,
}

struct Scanned {
    bytes: u64,
    seconds: f64,
    cpu_seconds: Option<f64>,
    digest: Digest,
}

/// Scans segments: reads, checks every checksum, decodes every event.
fn scan(world: &World, pieces: &[Piece], payload: &Payload) -> Result<Scanned, Failure> {
    let failed = |error: truthdb_log::ReadError| {
        Failure::new(ExitClass::Damaged, "cannot scan what was just written").with_source(error)
    };
    let storage = world.storage.as_ref();
    let clock = SystemClock::new();
    let (start, cpu_start) = (clock.monotonic_ns(), thread_cpu_ns());
    let (mut bytes, mut digest) = (0, Digest::default());
    for piece in pieces {
        let path = segment_path(0, piece.segment);
        let io = |error| Failure::environment(format!("cannot read {path}"), error);
        let file = storage.open(&path, OpenMode::Read).map_err(io)?;
        let mut block = truthdb_io::AlignedBuf::new_zeroed(truthdb_io::BLOCK_BYTES);
        file.read_at(&mut block, truthdb_io::BLOCK_BYTES, 0)
            .map_err(io)?;
        let header = truthdb_log::SegmentHeader::decode(&block).map_err(|error| {
            Failure::new(ExitClass::Damaged, format!("{path} is damaged")).with_source(error)
        })?;
        let mut scan = SegmentScan::new(storage, file, &header, piece.end).map_err(failed)?;
        while let Some(found) = scan.next_batch().map_err(failed)? {
            for event in found.batch.events() {
                if !digest.read(&event.event(), payload) {
                    return Err(wrong_event(event.sequence));
                }
            }
        }
        bytes += piece.end;
    }
    let seconds = (clock.monotonic_ns() - start) as f64 / 1e9;
    let cpu_ns = cpu_start.zip(thread_cpu_ns()).map(|(from, to)| to - from);
    Ok(Scanned {
        bytes,
        seconds,
        cpu_seconds: cpu_ns.map(|ns| ns as f64 / 1e9),
        digest,
    })
}

/// Fills a database and says what it holds and where its unsealed data ends.
fn fill(data: &Path, args: &Args, payload: &Payload) -> Result<(Digest, Vec<Piece>), Failure> {
    let engine = open_engine(data, EngineConfig::default(), 64 << 20)?;
    let load = Load {
        writers: 16,
        batch: 100,
        appends_per_s: None,
        payload: payload.clone(),
    };
    let written = block_on(async {
        let running = Running::start(&Target::Engine(engine.clone()), &load);
        tokio::time::sleep(Duration::from_secs(args.fill_seconds)).await;
        running.finish(0.0).await
    })?;
    let session = engine.backup().map_err(|error| {
        Failure::environment("cannot list the segments that were just written", error)
    })?;
    let mut unsealed = Vec::new();
    for partition in session.partitions() {
        for segment in &partition.segments {
            // Only a seal has a chain.
            if segment.chain.is_none() {
                let (segment, end) = (segment.segment, segment.bytes);
                unsealed.push(Piece {
                    segment,
                    end,
                    sealed: false,
                });
            }
        }
    }
    drop(session);
    // Not a shutdown, which would seal what is to be scanned unsealed too.
    engine.abandon();
    Ok((written.acknowledged, unsealed))
}

/// All segments: sealed ones with the ends their footers tell, the others as far as was committed.
fn pieces(world: &World, unsealed: Vec<Piece>) -> Result<Vec<Piece>, Failure> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::environment("cannot list the segments that were just written", error)
    };
    let layout = open_database_layout(world, "measuring").map_err(|e| failed(e.into()))?;
    let found = discover_segments(world.storage.as_ref(), 0, &layout.manifest)
        .map_err(|e| failed(e.into()))?;
    let mut pieces = Vec::new();
    for info in found.segments {
        match info.state {
            SegmentState::Sealed(footer) => {
                let segment = info.place.segment;
                pieces.push(Piece {
                    segment,
                    end: footer.data_end,
                    sealed: true,
                });
            }
            SegmentState::Unsealed(_) => {}
        }
    }
    let sealed: Vec<u32> = pieces.iter().map(|piece| piece.segment).collect();
    pieces.extend(
        unsealed
            .into_iter()
            .filter(|piece| !sealed.contains(&piece.segment)),
    );
    Ok(pieces)
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    let work = WorkDir::new(&args.common.dir)?;
    let data = work.path().join("data");
    let mut report = Report::new("replay", work.path());
    let payload = Payload::new(usize::try_from(args.size).expect("checked"), false);
    let (acknowledged, unsealed) = fill(&data, args, &payload)?;
    let (world, _) = open_world(&data, IoBackend::Auto)?;
    let pieces = pieces(&world, unsealed)?;
    let files: Vec<(PathBuf, u64)> = pieces
        .iter()
        .map(|piece| (data.join(segment_path(0, piece.segment)), piece.end))
        .collect();
    let (mut raw, mut scanned) = (Vec::new(), Vec::new());
    for round in 0..args.common.rounds {
        // Each comes first in half of the rounds.
        if round % 2 == 0 {
            raw.push(raw_read(&files)?);
            scanned.push(scan(&world, &pieces, &payload)?);
        } else {
            scanned.push(scan(&world, &pieces, &payload)?);
            raw.push(raw_read(&files)?);
        }
    }
    for pass in &scanned {
        compare(acknowledged, pass.digest)?;
    }
    let rate = Spread::of(scanned.iter().map(|s| s.bytes as f64 / s.seconds / 1e6));
    let events = Spread::of(scanned.iter().map(|s| s.digest.events as f64 / s.seconds));
    let plain = Spread::of(raw.iter().map(|rate| rate / 1e6));
    let share = Spread::of(
        scanned
            .iter()
            .zip(&raw)
            .map(|(s, raw)| s.bytes as f64 / s.seconds / raw * 100.0),
    );
    let known: Option<Vec<f64>> = scanned
        .iter()
        .map(|s| s.cpu_seconds.map(|cpu| s.bytes as f64 / cpu / 1e6))
        .collect();
    let core = known.map(Spread::of);
    let sealed = pieces.iter().filter(|piece| piece.sealed).count();
    report.section(
        format!(
            "{} sealed and {} unsealed segments, {} events of {} bytes",
            sealed,
            pieces.len() - sealed,
            acknowledged.events,
            args.size
        ),
        &[
            "scan MB/s",
            "events/s",
            "plain read MB/s",
            "share %",
            "MB per CPU second",
        ],
        vec![vec![
            rate.text(0),
            events.text(0),
            plain.text(0),
            share.text(0),
            core.map_or_else(|| "-".to_owned(), |core| core.text(0)),
        ]],
        json!({
            "sealed_segments": sealed, "unsealed_segments": pieces.len() - sealed,
            "events": acknowledged.events, "scan_mb_per_s": rate.json(),
            "events_per_s": events.json(), "plain_mb_per_s": plain.json(),
            "share_percent": share.json(), "mb_per_cpu_second": core.map(|core| core.json()),
        }),
    );
    report.note(
        "scan: read past the page cache, verify every checksum and the chain, decode every event, \
         compare it with what its writer wrote. plain read: the same bytes by direct reads of \
         1 MiB, one at a time; the scan keeps four in flight. MB per CPU second: what one core \
         decodes when the disk is no bound, submission of the reads included.",
    );
    Ok(report)
}
