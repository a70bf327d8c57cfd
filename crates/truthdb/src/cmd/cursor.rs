//! `truthdb cursor`: durable positions.

use serde_json::json;
use truthdb_api::v1;

use super::connect::{self, GrpcArgs, block_on, call_failure, client, client_failure};
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};

/// Show, commit and list durable cursors.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show a cursor's committed position.
    Get {
        /// The cursor.
        name: String,
        /// Its partition.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        partition: u32,
    },
    /// Commit a cursor's position durably. A lower one than before rewinds it.
    Commit {
        /// The cursor.
        name: String,
        /// The position: normally the last sequence that was processed.
        position: u64,
        /// Its partition.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        partition: u32,
    },
    /// List the cursors of a partition, by name.
    List {
        /// The partition.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        partition: u32,
        /// Only names that begin so.
        #[arg(long, value_name = "PREFIX", default_value = "")]
        prefix: String,
        /// Where to ask.
        #[command(flatten)]
        grpc: GrpcArgs,
    },
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let cursors = block_on(async {
        match &args.action {
            Action::Get { name, partition } => get(globals, name, *partition).await,
            Action::Commit {
                name,
                position,
                partition,
            } => {
                let client = client(globals).await?;
                let committed = client.cursor_commit(*partition, name, *position).await;
                committed.map_err(client_failure)?;
                get(globals, name, *partition).await
            }
            Action::List {
                partition,
                prefix,
                grpc,
            } => list(globals, grpc, *partition, prefix).await,
        }
    })?;
    let mut out = Output::new();
    if globals.json {
        for cursor in &cursors {
            out.json(&json!({
                "partition": cursor.partition,
                "name": cursor.name,
                "position": cursor.position,
                "sequence": cursor.sequence,
                "timestamp": output::timestamp(cursor.timestamp_ns),
                "timestamp_ns": cursor.timestamp_ns,
            }))?;
        }
        return out.flush();
    }
    let header = ["cursor", "partition", "position", "sequence", "committed"];
    let mut table = output::table(&header, &[1, 2, 3]);
    for cursor in &cursors {
        table.add_row(vec![
            cursor.name.clone(),
            cursor.partition.to_string(),
            cursor.position.to_string(),
            cursor.sequence.to_string(),
            output::timestamp(cursor.timestamp_ns),
        ]);
    }
    out.table(&table)?;
    out.flush()
}

async fn get(globals: &Globals, name: &str, partition: u32) -> Result<Vec<v1::Cursor>, Failure> {
    let client = client(globals).await?;
    let found = client
        .cursor_get(partition, name)
        .await
        .map_err(client_failure)?;
    let Some(cursor) = found else {
        let message = format!("cursor {name} of partition {partition} was never committed");
        return Err(Failure::new(ExitClass::Refused, message)
            .with_action("See `truthdb cursor list` for those that were."));
    };
    Ok(vec![v1::Cursor {
        partition,
        name: name.to_owned(),
        position: cursor.position,
        sequence: cursor.sequence,
        timestamp_ns: cursor.timestamp_ns,
    }])
}

async fn list(
    globals: &Globals,
    grpc: &GrpcArgs,
    partition: u32,
    prefix: &str,
) -> Result<Vec<v1::Cursor>, Failure> {
    let mut log = connect::log(globals, grpc).await?;
    let mut cursors = Vec::new();
    let mut request = v1::CursorListRequest {
        partition,
        prefix: prefix.to_owned(),
        page_size: 1000,
        ..v1::CursorListRequest::default()
    };
    loop {
        let page = log
            .cursor_list(request.clone())
            .await
            .map_err(call_failure)?
            .into_inner();
        cursors.extend(page.cursors);
        if page.next_page_token.is_empty() {
            return Ok(cursors);
        }
        request.page_token = page.next_page_token;
    }
}
