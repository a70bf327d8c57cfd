//! `truthdb bench ingest`: large batches beside a plain sequential write of the same block size and
//! flush cadence.

use serde_json::json;

use super::append::{Shape, cell};
use super::events::Payload;
use super::floor::{Floor, sequential_write};
use super::load::Load;
use super::machine::WorkDir;
use super::report::Report;
use super::stats::{Spread, number};
use super::target::Protocol;
use super::{Common, block_on};
use crate::exit::Failure;

/// Bytes of the plain sequential write of each round.
const PLAIN_BYTES: u64 = 512 << 20;

/// Large batches beside a plain sequential write of the same block size and flush cadence.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Writers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    clients: u64,
    /// Events of each append.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Payload bytes of each event; batch and payload together make at most 8 MiB.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=4_194_304))]
    size: u64,
    /// How the appends travel.
    #[arg(long, value_enum, default_value_t = Protocol::Native)]
    protocol: Protocol,
    /// Length of each measured window, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// Runs the command.
///
/// # Errors
///
/// Anything that makes the figures void; a batch above the limit.
pub(super) fn run(args: &Args) -> Result<Report, Failure> {
    if args.batch * (args.size + 128) > 8 << 20 {
        return Err(Failure::usage(format!(
            "--batch {} of --size {} make more than 8 MiB, the limit of a batch",
            args.batch, args.size
        )));
    }
    let work = WorkDir::new(&args.common.dir)?;
    let mut report = Report::new("ingest", work.path());
    let mut floor = Floor::new(work.path())?;
    let shape = Shape {
        load: Load {
            writers: args.clients,
            batch: usize::try_from(args.batch).expect("checked"),
            appends_per_s: None,
            payload: Payload::new(usize::try_from(args.size).expect("checked"), false),
        },
        durability: "flush-each-group".to_owned(),
        protocol: args.protocol,
        seconds: args.seconds,
    };
    let mut rounds = Vec::new();
    for _ in 0..args.common.rounds {
        let cell = block_on(cell(work.path(), &shape, &mut floor))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the mean size of groups, some MiB"
        )]
        let group_bytes = (cell.group_bytes.max(4096.0) as usize).next_multiple_of(4096);
        let path = work.path().join("plain.bin");
        let plain = sequential_write(&path, PLAIN_BYTES, group_bytes, 1)?;
        rounds.push((
            cell.events_per_s * args.size as f64,
            group_bytes as f64,
            plain,
        ));
    }
    let spread = |of: &dyn Fn(&(f64, f64, f64)) -> f64| Spread::of(rounds.iter().map(of));
    let bytes = spread(&|round| round.0 / 1e6);
    let group = spread(&|round| round.1 / 1024.0);
    let plain = spread(&|round| round.2 / 1e6);
    let share = spread(&|round| round.0 / round.2 * 100.0);
    report.section(
        format!(
            "{} writers, {} events of {} bytes per request",
            args.clients, args.batch, args.size
        ),
        &["payload MB/s", "KiB/flush", "plain write MB/s", "share %"],
        vec![vec![
            bytes.text(0),
            number(group.median, 0),
            plain.text(0),
            share.text(0),
        ]],
        json!({
            "clients": args.clients, "batch": args.batch, "payload_bytes": args.size,
            "payload_mb_per_s": bytes.json(), "kib_per_flush": group.json(),
            "plain_mb_per_s": plain.json(), "share_percent": share.json(),
        }),
    );
    report.note(
        "plain write: a preallocated new file, one thread, O_DIRECT, blocks of the mean group of \
         the same round, fdatasync after each, one at a time.",
    );
    Ok(report)
}
