//! `truthdb replay`: state made again from the log alone.
//!
//! With --data the log of a stopped database is applied here, beside nothing that runs, and nothing
//! is changed. Without it only `--verify` is possible: a server does it while it serves.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use truthdb_api::v1;
use truthdb_api::v1::state_verify_response::Message;
use truthdb_compute::{
    At, CompareRequest, Comparison, Compute, ComputeConfig, Progress, ReplayCode, ReplayRequest,
    ReplaySink, ReplayedBatch, ReplayedState, Token,
};
use truthdb_engine::{Engine, EngineConfig};

use super::config::load;
use super::connect::{self, GrpcArgs, block_on, call_failure};
use super::module;
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};
use crate::server::compute::{self, compute_failure};
use crate::server::{open_failure, open_world, state};
use crate::{key_text, state_json};

/// Characters of a key or value that are shown to people, unless they ask for all.
const SHOWN_CHARS: usize = 160;

/// Make state again from the log alone: to look at it, to verify it, to compare code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    truthdb --data DIR replay tally                      the fingerprint that the log gives\n  \
    truthdb --data DIR replay tally --rows-to rows.json  its rows, one JSON object a line\n  \
    truthdb --data DIR replay tally --changes-from 1000 --changes-to -\n  \
    truthdb --data DIR replay tally --compare new.wasm   which rows another code would give\n  \
    truthdb replay --verify                              is the state of a server true?\n\n\
With --data no server may run on the directory, and nothing in it is changed. A difference that --verify \
finds gives exit code 5.")]
pub(crate) struct Args {
    /// The module. For --verify it may be left out: all of them.
    #[arg(required_unless_present = "verify")]
    module: Option<String>,
    /// Compare everything recorded (checkpoints, snapshots, deltas, derived events, running state) with
    /// what the log gives.
    #[arg(long, conflicts_with_all = ["compare", "code", "generation", "rows_to", "changes_from", "at", "as_of"])]
    verify: bool,
    /// Replay this other code too, and show which rows differ and after which batch they first did: a
    /// file, or the hash of published code.
    #[arg(long, value_name = "FILE|HASH", conflicts_with_all = ["rows_to", "changes_from"])]
    compare: Option<String>,
    /// Replay this code from the first event on, instead of what the log says: a file, or the hash of
    /// published code.
    #[arg(long, value_name = "FILE|HASH")]
    code: Option<String>,
    /// Make the tables of this generation.
    #[arg(long, value_name = "NUMBER", conflicts_with = "code")]
    generation: Option<u32>,
    /// Only this partition.
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Stop at these sequences: a token, such as 0:17 or 0:17,1:4.
    #[arg(long, value_name = "TOKEN")]
    at: Option<Token>,
    /// Stop at this time: RFC 3339, or nanoseconds since 1970.
    #[arg(long, value_name = "TIME", value_parser = output::parse_time, conflicts_with = "at")]
    as_of: Option<u64>,
    /// Write the rows at the end to this file, one JSON object a line (`-`: standard output).
    #[arg(long, value_name = "FILE")]
    rows_to: Option<PathBuf>,
    /// Write what each batch from this sequence on changes.
    #[arg(long, value_name = "SEQUENCE")]
    changes_from: Option<u64>,
    /// Where to write the changes, one JSON object for each batch (`-`: standard output).
    #[arg(
        long,
        value_name = "FILE",
        requires = "changes_from",
        default_value = "-"
    )]
    changes_to: PathBuf,
    /// With --compare: show at most so many differing rows of each partition; all are counted.
    #[arg(long, value_name = "ROWS", default_value_t = 20)]
    rows_max: usize,
    /// With --compare: show long values whole, not only where they first differ. With --json they always
    /// are.
    #[arg(long, requires = "compare")]
    whole: bool,
    /// Where to ask, for --verify without --data.
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let Some(directory) = &globals.data else {
        if args.verify {
            return block_on(verify_online(&args, globals));
        }
        return Err(
            Failure::usage("a replay needs the data directory: --data").with_action(
                "Stop its server first, or copy the directory. --verify can ask a server.",
            ),
        );
    };
    let opened = Opened::new(globals, directory)?;
    let outcome = opened.work(&args, globals.json);
    opened.close();
    outcome
}

/// A stopped database, open for reading.
struct Opened {
    engine: Engine,
    compute: Compute,
}

impl Opened {
    fn new(globals: &Globals, directory: &Path) -> Result<Opened, Failure> {
        let mut config = load(globals)?;
        config.engine = EngineConfig {
            ingest: false,
            ..config.engine
        };
        config.compute = ComputeConfig {
            compute: false,
            query: false,
            replay: true,
            ..config.compute
        };
        let directory = std::path::absolute(directory).map_err(|error| {
            Failure::environment("the data directory's path is not usable", error)
        })?;
        let (world, _) = open_world(&directory, config.data.io_backend)?;
        let engine = Engine::open(world.clone(), config.engine.clone()).map_err(|error| {
            let failure = open_failure(&directory, error);
            match failure.class {
                ExitClass::Locked => failure.with_action(
                    "Stop the server that has it open, or ask it: leave out --data, with --verify.",
                ),
                _ => failure,
            }
        })?;
        let compute = compute::open(&config, &directory, &engine, &world)?;
        Ok(Opened { engine, compute })
    }

    fn close(self) {
        self.compute.shutdown();
        let _ = self.engine.shutdown();
    }

    fn work(&self, args: &Args, json: bool) -> Result<(), Failure> {
        if args.verify {
            return self.verify(args, json);
        }
        let module = args.module.clone().unwrap_or_default();
        let to = match (&args.at, args.as_of) {
            (Some(token), _) => At::Token(token.clone()),
            (None, Some(time)) => At::Time(time),
            (None, None) => At::Now,
        };
        let code = match &args.code {
            Some(text) => self.code(text)?,
            None => ReplayCode::Recorded {
                generation: args.generation,
            },
        };
        if let Some(other) = &args.compare {
            let request = CompareRequest {
                module,
                left: code,
                right: self.code(other)?,
                partition: args.partition,
                to,
                rows_max: args.rows_max,
            };
            let mut sink = Sink::new(json, None);
            let outcome = self.compute.compare(&request, &mut sink);
            sink.bar.finish_and_clear();
            let shown = if args.whole { usize::MAX } else { SHOWN_CHARS };
            return tell_comparisons(&outcome.map_err(compute_failure)?, json, shown);
        }
        let request = ReplayRequest {
            module,
            code,
            partition: args.partition,
            to,
            changes_from: args.changes_from,
        };
        let changes = match args.changes_from {
            Some(_) => Some(Lines::create(&args.changes_to)?),
            None => None,
        };
        let mut sink = Sink::new(json, changes);
        let outcome = self.compute.replay(&request, &mut sink);
        sink.bar.finish_and_clear();
        sink.finish()?;
        let states = outcome.map_err(compute_failure)?;
        if let Some(file) = &args.rows_to {
            write_rows(&states, file)?;
        }
        let is_taken = |file: &Path| file.as_os_str() == "-";
        let taken = args.rows_to.as_deref().is_some_and(is_taken)
            || args.changes_from.is_some() && is_taken(&args.changes_to);
        tell_states(&states, json, taken)
    }

    /// Code by the file that holds it, or by the hash that it was published under.
    fn code(&self, text: &str) -> Result<ReplayCode, Failure> {
        let file = Path::new(text);
        if file.is_file() {
            let inspected = self.compute.inspect(&module::read(file)?);
            let wasm: Bytes = inspected.map_err(compute_failure)?.bytes;
            return Ok(ReplayCode::Bytes { wasm });
        }
        let hash = self.compute.find_published(text).map_err(|error| {
            compute_failure(error).with_action(
                "Name a file that there is, or a hash that `truthdb module status` shows.",
            )
        })?;
        Ok(ReplayCode::Published { hash })
    }

    fn verify(&self, args: &Args, json: bool) -> Result<(), Failure> {
        let bar = bar(json);
        let request = v1::StateVerifyRequest {
            module: args.module.clone().unwrap_or_default(),
            partition: args.partition,
        };
        let report = state::verify(&self.compute, &request, &mut |progress| {
            show_progress(&bar, &progress);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let mut verdict = Verdict::default();
        for message in state::verify_messages(&report?) {
            verdict.take(message);
        }
        verdict.tell(json)
    }
}

fn bar(quiet: bool) -> ProgressBar {
    let bar = output::event_bar(0, quiet);
    bar.set_message("replaying");
    bar
}

fn show_progress(bar: &ProgressBar, progress: &v1::StateVerifyProgress) {
    bar.set_message(format!("partition {}", progress.partition));
    bar.set_length(progress.target_sequence);
    bar.set_position(progress.sequence);
}

/// Lines of JSON, to a file or to standard output.
struct Lines {
    out: Box<dyn Write + Send>,
    name: String,
}

impl Lines {
    fn create(path: &Path) -> Result<Lines, Failure> {
        let name = path.display().to_string();
        let out: Box<dyn Write + Send> = if path.as_os_str() == "-" {
            Box::new(std::io::stdout())
        } else {
            Box::new(File::create(path).map_err(|error| Self::failure(&name, error))?)
        };
        let out = Box::new(BufWriter::with_capacity(64 << 10, out));
        Ok(Lines { out, name })
    }

    fn failure(name: &str, error: std::io::Error) -> Failure {
        Failure::environment(format!("cannot write to {name}"), error)
    }

    fn write(&mut self, value: &Value) -> Result<(), Failure> {
        writeln!(self.out, "{value}").map_err(|error| Self::failure(&self.name, error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.out
            .flush()
            .map_err(|error| Self::failure(&self.name, error))
    }
}

/// Takes what a replay makes: shows how far it is, and writes changes.
struct Sink {
    bar: ProgressBar,
    changes: Option<Lines>,
    failed: Option<Failure>,
}

impl Sink {
    fn new(quiet: bool, changes: Option<Lines>) -> Sink {
        Sink {
            bar: bar(quiet),
            changes,
            failed: None,
        }
    }

    /// What went wrong while changes were written.
    fn finish(self) -> Result<(), Failure> {
        match (self.failed, self.changes) {
            (Some(failure), _) => Err(failure),
            (None, Some(lines)) => lines.finish(),
            (None, None) => Ok(()),
        }
    }
}

impl ReplaySink for Sink {
    fn batch(&mut self, batch: ReplayedBatch) -> ControlFlow<()> {
        let Some(lines) = &mut self.changes else {
            return ControlFlow::Continue(());
        };
        let changes: Vec<Value> = batch
            .changes
            .iter()
            .map(|change| {
                let mut row = state_json::row(None, change.key, change.value.unwrap_or_default());
                row["table"] = change.table.into();
                row["deleted"] = change.value.is_none().into();
                row
            })
            .collect();
        let written = lines.write(&json!({
            "partition": batch.partition,
            "first_sequence": batch.first_sequence,
            "last_sequence": batch.last_sequence,
            "timestamp_ns": batch.timestamp_ns,
            "changes": changes,
            "fingerprint": batch.fingerprint.to_string(),
        }));
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                self.failed = Some(failure);
                ControlFlow::Break(())
            }
        }
    }

    fn progress(&mut self, progress: Progress) -> ControlFlow<()> {
        self.bar
            .set_message(format!("partition {}", progress.partition));
        self.bar.set_length(progress.target);
        self.bar.set_position(progress.sequence);
        ControlFlow::Continue(())
    }
}

fn write_rows(states: &[ReplayedState], file: &Path) -> Result<(), Failure> {
    let mut lines = Lines::create(file)?;
    let mut failed = None;
    for one in states {
        for (table, name) in (0u32..).zip(&one.tables) {
            one.view
                .scan(table, &[], None, u64::MAX, false, &mut |key, value| {
                    let mut row = state_json::row(Some(one.stamp.partition), key, value);
                    row["table"] = name.as_str().into();
                    match lines.write(&row) {
                        Ok(()) => true,
                        Err(failure) => {
                            failed = Some(failure);
                            false
                        }
                    }
                });
        }
    }
    match failed {
        Some(failure) => Err(failure),
        None => lines.finish(),
    }
}

/// Says what was made; `taken`: standard output carries rows or changes.
fn tell_states(states: &[ReplayedState], json: bool, taken: bool) -> Result<(), Failure> {
    let mut out = Output::new();
    if json && !taken {
        for one in states {
            let mut value = state_json::stamp(&state::stamp(&one.stamp));
            value["rows"] = one.rows.into();
            value["tables"] = one.tables.clone().into();
            value["halted"] = match &one.halted {
                Some((sequence, reason)) => json!({"sequence": sequence, "reason": reason}),
                None => Value::Null,
            };
            out.json(&value)?;
        }
    } else if !taken {
        let header = [
            "partition",
            "module",
            "gen",
            "sequence",
            "rows",
            "fingerprint",
        ];
        let mut table = output::table(&header, &[0, 2, 3, 4]);
        for one in states {
            table.add_row(vec![
                one.stamp.partition.to_string(),
                one.stamp.module.clone(),
                one.stamp.generation.to_string(),
                one.stamp.sequence.to_string(),
                one.rows.to_string(),
                one.stamp.fingerprint.to_string(),
            ]);
        }
        out.table(&table)?;
    }
    out.flush()?;
    let halted = states.iter().find_map(|one| {
        let (sequence, reason) = one.halted.as_ref()?;
        Some(format!(
            "{} fails in partition {} at event {sequence}: {reason}; the state is that before it",
            one.stamp.module, one.stamp.partition
        ))
    });
    match halted {
        Some(message) => Err(Failure::new(ExitClass::Refused, message)),
        None => Ok(()),
    }
}

fn tell_comparisons(comparisons: &[Comparison], json: bool, shown: usize) -> Result<(), Failure> {
    let mut out = Output::new();
    for one in comparisons {
        if json {
            out.json(&comparison_json(one))?;
        } else {
            tell_comparison(&mut out, one, shown)?;
        }
    }
    out.flush()
}

fn comparison_json(one: &Comparison) -> Value {
    let rows: Vec<Value> = one
        .rows
        .iter()
        .map(|row| {
            let side = |value: &Option<Vec<u8>>| {
                value
                    .as_ref()
                    .map(|value| state_json::row(None, &row.key, value))
            };
            json!({
                "table": row.table,
                "key_text": key_text::as_text(&row.key),
                "left": side(&row.left),
                "right": side(&row.right),
            })
        })
        .collect();
    let first = one
        .first_batch
        .map(|(first, last)| json!({"first_sequence": first, "last_sequence": last}));
    json!({
        "partition": one.partition,
        "left": state_json::stamp(&state::stamp(&one.left)),
        "right": state_json::stamp(&state::stamp(&one.right)),
        "differing": one.differing,
        "rows": rows,
        "first_batch": first,
    })
}

fn tell_comparison(out: &mut Output, one: &Comparison, shown: usize) -> Result<(), Failure> {
    let partition = one.partition;
    if one.differing == 0 {
        out.line(&format!(
            "partition {partition}: both give the same {} at event {}",
            one.left.fingerprint, one.left.sequence
        ))?;
    } else {
        out.line(&format!(
            "partition {partition}: {} rows differ at event {}",
            one.differing, one.left.sequence
        ))?;
    }
    if let Some((first, last)) = one.first_batch {
        out.line(&format!(
            "  they first differ after the batch {first}..={last}: \
             truthdb read --partition {partition} --from-sequence {first} --until-sequence {last}"
        ))?;
    }
    for row in &one.rows {
        let nothing = || "(no row)".to_owned();
        let (left, right) = match (&row.left, &row.right) {
            (Some(left), Some(right)) => key_text::show_pair(left, right, shown),
            (Some(left), None) => (key_text::show_counted(left, shown), nothing()),
            (None, Some(right)) => (nothing(), key_text::show_counted(right, shown)),
            (None, None) => continue,
        };
        let key = key_text::show_counted(&row.key, shown);
        out.line(&format!("  {} {key}", row.table))?;
        out.line(&format!("    left:  {left}"))?;
        out.line(&format!("    right: {right}"))?;
    }
    let told = u64::try_from(one.rows.len()).unwrap_or(u64::MAX);
    match one.differing.saturating_sub(told) {
        0 => Ok(()),
        more => out.line(&format!("  {more} more rows differ: --rows-max shows more")),
    }
}

/// What a verification of state says.
#[derive(Default)]
struct Verdict {
    differences: Vec<v1::StateDifference>,
    summary: Option<v1::StateVerifySummary>,
}

impl Verdict {
    fn take(&mut self, message: v1::StateVerifyResponse) {
        match message.message {
            Some(Message::Difference(difference)) => self.differences.push(difference),
            Some(Message::Summary(summary)) => self.summary = Some(summary),
            Some(Message::Progress(_)) | None => {}
        }
    }

    fn tell(&self, json: bool) -> Result<(), Failure> {
        let Some(summary) = &self.summary else {
            let message = "the verification broke off before its end";
            return Err(Failure::new(ExitClass::Network, message)
                .with_action("See the server's log, and start it again."));
        };
        let mut out = Output::new();
        if json {
            out.json(&self.as_json(summary))?;
        } else {
            self.tell_text(&mut out, summary)?;
        }
        out.flush()?;
        match self.differences.len() {
            0 => Ok(()),
            count => Err(Failure::new(
                ExitClass::Damaged,
                format!("{count} recorded things do not follow from the log"),
            )
            .with_action(
                "Snapshots and deltas may be deleted: state is made again from the log. A checkpoint \
                 or a derived event that differs means that the code, the engine, or the machine did.",
            )),
        }
    }

    fn as_json(&self, summary: &v1::StateVerifySummary) -> Value {
        let modules: Vec<Value> = summary
            .modules
            .iter()
            .map(|one| {
                let mut value = match &one.stamp {
                    Some(stamp) => state_json::stamp(stamp),
                    None => json!({}),
                };
                value["checkpoints"] = one.checkpoints.into();
                value["snapshots"] = one.snapshots.into();
                value["deltas"] = one.deltas.into();
                value["derived"] = one.derived.into();
                value["live"] = one.live.into();
                if !one.unverified.is_empty() {
                    value["unverified"] = one.unverified.clone().into();
                }
                value
            })
            .collect();
        let differences: Vec<Value> = self
            .differences
            .iter()
            .map(|one| {
                json!({
                    "partition": one.partition,
                    "module": one.module,
                    "generation": one.generation,
                    "sequence": one.sequence,
                    "what": one.what,
                    "recorded": one.recorded,
                    "replayed": one.replayed,
                })
            })
            .collect();
        json!({
            "true": self.differences.is_empty(),
            "modules": modules,
            "differences": differences,
        })
    }

    fn tell_text(&self, out: &mut Output, summary: &v1::StateVerifySummary) -> Result<(), Failure> {
        let header = [
            "partition",
            "module",
            "gen",
            "sequence",
            "checkpoints",
            "snapshots",
            "deltas",
            "derived",
            "live",
            "fingerprint",
        ];
        let mut table = output::table(&header, &[0, 2, 3, 4, 5, 6, 7]);
        for one in &summary.modules {
            let stamp = one.stamp.clone().unwrap_or_default();
            table.add_row(vec![
                stamp.partition.to_string(),
                stamp.module,
                stamp.generation.to_string(),
                stamp.sequence.to_string(),
                one.checkpoints.to_string(),
                one.snapshots.to_string(),
                one.deltas.to_string(),
                one.derived.to_string(),
                if one.live { "yes" } else { "no" }.to_owned(),
                output::hex(&stamp.fingerprint),
            ]);
        }
        out.table(&table)?;
        for one in &self.differences {
            if one.module.is_empty() {
                out.line(&format!(
                    "{} of partition {} at event {}: recorded {}, the log has {}",
                    one.what, one.partition, one.sequence, one.recorded, one.replayed
                ))?;
                continue;
            }
            out.line(&format!(
                "{} of {} generation {} in partition {} at event {}: recorded {}, the log gives {}",
                one.what,
                one.module,
                one.generation,
                one.partition,
                one.sequence,
                one.recorded,
                one.replayed
            ))?;
        }
        let mut is_whole = true;
        for one in summary.modules.iter().filter(|m| !m.unverified.is_empty()) {
            let stamp = one.stamp.clone().unwrap_or_default();
            is_whole = false;
            out.line(&format!(
                "{} generation {} in partition {} cannot be verified: {}",
                stamp.module, stamp.generation, stamp.partition, one.unverified
            ))?;
        }
        match (self.differences.is_empty(), is_whole) {
            (true, true) => out.line("True: everything recorded follows from the log.")?,
            (true, false) => out.line("What can be verified is true: it follows from the log.")?,
            (false, _) => {}
        }
        Ok(())
    }
}

async fn verify_online(args: &Args, globals: &Globals) -> Result<(), Failure> {
    let mut server = connect::state(globals, &args.grpc).await?;
    let request = v1::StateVerifyRequest {
        module: args.module.clone().unwrap_or_default(),
        partition: args.partition,
    };
    let messages = server.verify(request).await.map_err(call_failure)?;
    let mut messages = messages.into_inner();
    let bar = bar(globals.json);
    let mut verdict = Verdict::default();
    while let Some(message) = messages.message().await.map_err(call_failure)? {
        if let Some(Message::Progress(progress)) = &message.message {
            show_progress(&bar, progress);
        }
        verdict.take(message);
    }
    bar.finish_and_clear();
    verdict.tell(globals.json)
}
