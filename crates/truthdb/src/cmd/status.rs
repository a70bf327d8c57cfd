//! `truthdb status`: what a server is doing.

use serde_json::{Value, json};
use truthdb_api::v1;

use super::connect::{self, GrpcArgs, block_on, call_failure};
use super::module_show;
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::Failure;
use crate::state_json;

/// Show what a server is doing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to ask.
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let status = block_on(async {
        let mut admin = connect::admin(globals, &args.grpc).await?;
        Ok(admin
            .status(v1::StatusRequest {})
            .await
            .map_err(call_failure)?
            .into_inner())
    })?;
    let mut out = Output::new();
    if globals.json {
        out.json(&as_json(&status))?;
        return out.flush();
    }
    let mut facts = output::facts();
    let mut fact = |name: &str, value: String| {
        facts.add_row(vec![name.to_owned(), value]);
    };
    fact("database", output::hex(&status.database_id));
    fact("version", status.server_version.clone());
    fact("roles", status.roles.join(", "));
    fact("directory", status.data_directory.clone());
    fact("up", duration(status.uptime_ms));
    fact("durability", durability(status.durability).to_owned());
    fact("disk i/o", status.io_backend.clone());
    let (free, total) = (status.disk_free_bytes, status.disk_total_bytes);
    fact(
        "disk free",
        format!("{} of {}", output::bytes(free), output::bytes(total)),
    );
    fact("connections", status.connections.to_string());
    out.table(&facts)?;
    out.line("")?;
    out.table(&partitions(&status.partitions))?;
    for partition in status
        .partitions
        .iter()
        .filter(|partition| !partition.reason.is_empty())
    {
        out.line(&format!(
            "partition {}: {}",
            partition.partition, partition.reason
        ))?;
    }
    if !status.modules.is_empty() {
        out.line("")?;
        module_show::modules(&mut out, &status.modules)?;
    }
    module_show::problems(&mut out, &status.folds)?;
    out.flush()
}

fn partitions(partitions: &[v1::PartitionStatus]) -> comfy_table::Table {
    let header = [
        "partition",
        "state",
        "first",
        "committed",
        "segments",
        "sealed",
        "bytes",
        "backlog",
        "last event",
    ];
    let mut table = output::table(&header, &[0, 2, 3, 4, 5, 6, 7]);
    for partition in partitions {
        let segments = partition.sealed_segments + partition.closed_segments + 1;
        table.add_row(vec![
            partition.partition.to_string(),
            state(partition.state).to_owned(),
            partition.first_sequence.to_string(),
            partition.committed_sequence.to_string(),
            segments.to_string(),
            partition.sealed_segments.to_string(),
            output::bytes(partition.segment_bytes),
            partition.backlog_batches.to_string(),
            output::timestamp(partition.last_timestamp_ns),
        ]);
    }
    table
}

fn durability(durability: i32) -> &'static str {
    match v1::Durability::try_from(durability) {
        Ok(v1::Durability::FlushEachGroup) => "flush-each-group",
        Ok(v1::Durability::FlushInterval) => "flush-interval",
        Ok(v1::Durability::Os) => "os",
        _ => "unknown",
    }
}

fn state(state: i32) -> &'static str {
    match v1::PartitionState::try_from(state) {
        Ok(v1::PartitionState::Serving) => "serving",
        Ok(v1::PartitionState::Recovering) => "recovering",
        Ok(v1::PartitionState::ReadOnly) => "read-only",
        Ok(v1::PartitionState::Stopped) => "stopped",
        Ok(v1::PartitionState::Fenced) => "fenced",
        _ => "unknown",
    }
}

fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

fn as_json(status: &v1::StatusResponse) -> Value {
    let partitions: Vec<Value> = status
        .partitions
        .iter()
        .map(|partition| {
            json!({
                "partition": partition.partition,
                "state": state(partition.state),
                "reason": partition.reason,
                "first_sequence": partition.first_sequence,
                "appended_sequence": partition.appended_sequence,
                "flushed_sequence": partition.flushed_sequence,
                "committed_sequence": partition.committed_sequence,
                "active_segment": partition.active_segment,
                "sealed_segments": partition.sealed_segments,
                "closed_segments": partition.closed_segments,
                "segment_bytes": partition.segment_bytes,
                "index_bytes": partition.index_bytes,
                "event_bytes": partition.event_bytes,
                "backlog_batches": partition.backlog_batches,
                "backlog_bytes": partition.backlog_bytes,
                "subscriptions": partition.subscriptions,
                "last_timestamp_ns": partition.last_timestamp_ns,
                "chain": output::hex(&partition.chain),
            })
        })
        .collect();
    json!({
        "database_id": output::hex(&status.database_id),
        "server_version": status.server_version,
        "roles": status.roles,
        "data_directory": status.data_directory,
        "uptime_ms": status.uptime_ms,
        "durability": durability(status.durability),
        "io_backend": status.io_backend,
        "disk_free_bytes": status.disk_free_bytes,
        "disk_total_bytes": status.disk_total_bytes,
        "connections": status.connections,
        "partitions": partitions,
        "modules": status.modules.iter().map(state_json::module).collect::<Vec<_>>(),
        "folds": status.folds.iter().map(state_json::fold).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_names_its_two_largest_units() {
        assert_eq!(duration(59_999), "59 s");
        assert_eq!(duration(61_000), "1 min 1 s");
        assert_eq!(duration(3_600_000), "1 h 0 min");
        assert_eq!(duration(90_000_000), "1 d 1 h");
    }
}
