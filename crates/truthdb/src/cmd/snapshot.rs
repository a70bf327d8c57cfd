//! `truthdb snapshot`: snapshots of state. They are derived: without them state is made from the log.

use serde_json::json;
use truthdb_api::v1;

use super::connect::{self, GrpcArgs, block_on, call_failure};
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::Failure;
use crate::state_json;

/// List, take and prune snapshots of state.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List snapshots, oldest first.
    List {
        /// Only of this partition.
        #[arg(long, value_name = "NUMBER")]
        partition: Option<u32>,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Ask for a snapshot. It is written in the background; appends and folds go on.
    Take {
        /// Only of this partition.
        #[arg(long, value_name = "NUMBER")]
        partition: Option<u32>,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
    /// Remove snapshots that need not stay.
    Prune {
        /// The newest so many stay.
        #[arg(long, value_name = "SNAPSHOTS", value_parser = clap::value_parser!(u32).range(1..))]
        keep_last: u32,
        /// Of the older ones about 2^LOG2 stay for each doubling of the age.
        #[arg(long, value_name = "LOG2", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=16))]
        slots_log2: u32,
        /// Only of this partition.
        #[arg(long, value_name = "NUMBER")]
        partition: Option<u32>,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        match args.action {
            Action::List { partition, grpc } => {
                let mut server = connect::modules(globals, &grpc).await?;
                let request = v1::ListSnapshotsRequest { partition };
                let answer = server.list_snapshots(request).await.map_err(call_failure)?;
                tell(&answer.into_inner().snapshots, globals.json)
            }
            Action::Take { partition, grpc } => {
                let mut server = connect::modules(globals, &grpc).await?;
                let request = v1::TakeSnapshotRequest { partition };
                let answer = server.take_snapshot(request).await.map_err(call_failure)?;
                let token = state_json::token(answer.into_inner().token.as_ref());
                let mut out = Output::new();
                if globals.json {
                    out.json(&json!({ "token": token }))?;
                } else {
                    out.line(&format!("Will be taken at {token}."))?;
                }
                out.flush()
            }
            Action::Prune {
                keep_last,
                slots_log2,
                partition,
                grpc,
            } => {
                let mut server = connect::modules(globals, &grpc).await?;
                let request = v1::PruneSnapshotsRequest {
                    partition,
                    keep_last,
                    slots_log2,
                };
                let answer = server
                    .prune_snapshots(request)
                    .await
                    .map_err(call_failure)?;
                if !globals.json {
                    output::note("Removed:");
                }
                tell(&answer.into_inner().snapshots, globals.json)
            }
        }
    })
}

fn tell(snapshots: &[v1::Snapshot], json: bool) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        for snapshot in snapshots {
            out.json(&state_json::snapshot(snapshot))?;
        }
        return out.flush();
    }
    let header = ["partition", "sequence", "time", "modules", "bytes"];
    let mut table = output::table(&header, &[0, 1, 4]);
    for snapshot in snapshots {
        let modules: Vec<String> = snapshot
            .modules
            .iter()
            .map(|one| format!("{} {}", one.module, one.generation))
            .collect();
        table.add_row(vec![
            snapshot.partition.to_string(),
            snapshot.sequence.to_string(),
            output::timestamp(snapshot.timestamp_ns),
            modules.join(", "),
            output::bytes(snapshot.bytes),
        ]);
    }
    out.table(&table)?;
    out.flush()
}
