//! `truthdb verify`: is the log what was written?

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use truthdb_api::v1;
use truthdb_api::v1::verify_response::Message;
use truthdb_io::Storage;
use truthdb_log::{Finding, Manifest, Severity, VerifyReport, verify_database};

use super::connect::{self, GrpcArgs, block_on, call_failure};
use super::offline::Offline;
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};

/// Check stored data: checksums, chains, roots, gaplessness.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --data the files are read here, and no server may run on them; everything is \
                  checked.\nWithout it the server checks its sealed segments while it serves. Damage \
                  gives exit code 5."
)]
pub(crate) struct Args {
    /// Only this partition.
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// With --data: do not follow every stream from segment to segment.
    #[arg(long)]
    shallow: bool,
    /// At a server: read at most so many bytes a second. 0: no bound.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    bytes_per_second: u64,
    /// Where to ask.
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// One thing that is wrong, as `--json` shows it.
#[derive(Serialize)]
struct Row {
    severity: &'static str,
    path: String,
    offset: Option<u64>,
    first_sequence: Option<u64>,
    last_sequence: Option<u64>,
    what: String,
    advice: String,
}

/// The end of a chain, as `--json` shows it.
#[derive(Serialize)]
struct Chain {
    partition: u32,
    segment: u32,
    chain: String,
}

/// What a verification says, as `--json` shows it.
#[derive(Serialize)]
pub(crate) struct Verdict {
    whole: bool,
    segments: u64,
    events: u64,
    bytes: u64,
    chains: Vec<Chain>,
    findings: Vec<Row>,
}

impl From<&Finding> for Row {
    fn from(finding: &Finding) -> Row {
        Row {
            severity: match finding.severity {
                Severity::Note => "note",
                Severity::Warning => "warning",
                Severity::Error => "error",
            },
            path: finding.path.clone(),
            offset: finding.offset,
            first_sequence: finding.first_sequence,
            last_sequence: finding.last_sequence,
            what: finding.what.clone(),
            advice: finding.advice.to_owned(),
        }
    }
}

impl From<v1::VerifyFinding> for Row {
    fn from(finding: v1::VerifyFinding) -> Row {
        let known = |value: u64| (value != 0).then_some(value);
        let (path, what) = match finding.message.split_once(": ") {
            Some((path, what)) => (path.to_owned(), what.to_owned()),
            None => (String::new(), finding.message),
        };
        // A server tells no notes; what mends itself is a warning.
        let severity = if finding.command.starts_with("nothing") {
            "warning"
        } else {
            "error"
        };
        Row {
            severity,
            path,
            offset: known(finding.offset),
            first_sequence: known(finding.first_sequence),
            last_sequence: known(finding.last_sequence),
            what,
            advice: finding.command,
        }
    }
}

impl From<&VerifyReport> for Verdict {
    fn from(report: &VerifyReport) -> Verdict {
        let chain = |(partition, segment, chain): &(u32, u32, String)| Chain {
            partition: *partition,
            segment: *segment,
            chain: chain.clone(),
        };
        Verdict {
            whole: report.severity() < Some(Severity::Error),
            segments: report.segments,
            events: report.events,
            bytes: report.bytes,
            chains: report.chains.iter().map(chain).collect(),
            findings: report.findings.iter().map(Row::from).collect(),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let verdict = match &globals.data {
        Some(directory) => offline(&args, globals, directory)?,
        None => block_on(online(&args, globals))?,
    };
    verdict.tell(globals.json)?;
    verdict.settle()
}

fn offline(args: &Args, globals: &Globals, directory: &Path) -> Result<Verdict, Failure> {
    let offline = Offline::open(globals, directory, "verify")?;
    let partitions: Vec<u32> = args.partition.into_iter().collect();
    for partition in &partitions {
        offline.check_partition(*partition)?;
    }
    let deep = !args.shallow;
    let (storage, manifest) = (offline.storage(), offline.manifest());
    Ok(verify_storage(
        storage,
        manifest,
        &partitions,
        deep,
        globals.json,
    ))
}

/// Verifies the files of a database, with a bar.
pub(crate) fn verify_storage(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    partitions: &[u32],
    deep: bool,
    quiet: bool,
) -> Verdict {
    let bar = output::byte_bar(0, quiet);
    bar.set_message("verifying");
    let mut progress = |at: truthdb_log::VerifyProgress<'_>| {
        bar.set_length(at.bytes_total);
        bar.set_position(at.bytes_done);
        ControlFlow::Continue(())
    };
    let report = verify_database(storage, manifest, partitions, deep, &mut progress);
    bar.finish_and_clear();
    Verdict::from(&report)
}

async fn online(args: &Args, globals: &Globals) -> Result<Verdict, Failure> {
    let mut admin = connect::admin(globals, &args.grpc).await?;
    let request = v1::VerifyRequest {
        partition: args.partition,
        bytes_per_second_max: args.bytes_per_second,
    };
    let mut messages = admin
        .verify(request)
        .await
        .map_err(call_failure)?
        .into_inner();
    let bar = output::byte_bar(0, globals.json);
    bar.set_message("verifying");
    let mut findings = Vec::new();
    while let Some(message) = messages.message().await.map_err(call_failure)? {
        match message.message {
            Some(Message::Progress(at)) => {
                bar.set_length(at.bytes_total);
                bar.set_position(at.bytes_done);
            }
            Some(Message::Finding(finding)) => findings.push(Row::from(finding)),
            Some(Message::Summary(summary)) => {
                bar.finish_and_clear();
                return Ok(Verdict {
                    whole: findings.iter().all(|row| row.severity != "error"),
                    segments: summary.segments,
                    events: summary.events,
                    bytes: summary.bytes,
                    chains: Vec::new(),
                    findings,
                });
            }
            None => {}
        }
    }
    Err(Failure::new(
        ExitClass::Network,
        "the verification broke off before its end",
    )
    .with_action("See the server's log, and start it again."))
}

impl Verdict {
    /// Prints it.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn tell(&self, json: bool) -> Result<(), Failure> {
        let mut out = Output::new();
        if json {
            out.json(self)?;
            return out.flush();
        }
        if !self.findings.is_empty() {
            let header = ["severity", "where", "offset", "sequences", "what"];
            let mut table = output::table(&header, &[2]);
            for row in &self.findings {
                table.add_row(vec![
                    row.severity.to_owned(),
                    row.path.clone(),
                    row.offset
                        .map(|offset| offset.to_string())
                        .unwrap_or_default(),
                    sequences(row),
                    row.what.clone(),
                ]);
            }
            out.table(&table)?;
            let mut told = Vec::new();
            for row in &self.findings {
                if !told.contains(&&row.advice) {
                    out.line(&format!("{}: {}", row.severity, row.advice))?;
                    told.push(&row.advice);
                }
            }
        }
        for chain in &self.chains {
            out.line(&format!(
                "partition {}: the chain ends at segment {} with {}",
                chain.partition, chain.segment, chain.chain
            ))?;
        }
        out.line(&format!(
            "{}: {} events in {} segments, {}, {} findings.",
            if self.whole { "Whole" } else { "DAMAGED" },
            self.events,
            self.segments,
            output::bytes(self.bytes),
            self.findings.len()
        ))?;
        out.flush()
    }

    /// Without what is said about indexes that no backup holds, because they are made from the segments. Stream heads
    /// of trimmed segments are none of these: what is wrong with them is an error.
    pub(crate) fn of_segments(mut self) -> Verdict {
        self.findings
            .retain(|row| row.severity == "error" || !row.path.contains("/index/"));
        self
    }

    /// Whether nothing is damaged.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The chain hash at the end of each partition.
    pub(crate) fn chains(&self) -> impl Iterator<Item = (u32, u32, &str)> {
        self.chains
            .iter()
            .map(|chain| (chain.partition, chain.segment, chain.chain.as_str()))
    }

    /// The exit code.
    ///
    /// # Errors
    ///
    /// `damaged`, if anything is.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        if self.whole {
            return Ok(());
        }
        let count = self
            .findings
            .iter()
            .filter(|row| row.severity == "error")
            .count();
        Err(
            Failure::new(ExitClass::Damaged, format!("{count} places are damaged"))
                .with_action("Restore from a backup, or see `truthdb repair --help`."),
        )
    }
}

fn sequences(row: &Row) -> String {
    match (row.first_sequence, row.last_sequence) {
        (None, None) => String::new(),
        (Some(first), Some(last)) => format!("{first}..={last}"),
        (Some(first), None) => format!("{first}.."),
        (None, Some(last)) => format!("..={last}"),
    }
}
