//! `truthdb trim`: remove the oldest segments of a partition.

use serde_json::json;
use truthdb_api::v1;
use truthdb_api::v1::trim_request::Request;
use truthdb_api::v1::trim_target::Before;

use super::connect::{self, GrpcArgs, block_on, call_failure};
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::Failure;

/// Remove the oldest segments of a partition: plan, show, and only then do.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Only whole sealed segments go, so a little more than asked for may stay. Without \
                  --yes nothing\nis changed."
)]
#[command(group = clap::ArgGroup::new("before").required(true))]
pub(crate) struct Args {
    /// The partition.
    #[arg(long, value_name = "NUMBER")]
    partition: u32,
    /// Remove segments whose events all come before this sequence.
    #[arg(long, value_name = "SEQUENCE", group = "before")]
    before_sequence: Option<u64>,
    /// Remove segments whose events are all older than this: RFC 3339, or nanoseconds since 1970.
    #[arg(long, value_name = "TIME", value_parser = output::parse_time, group = "before")]
    before_time: Option<u64>,
    /// Do it: the events of these segments are lost for ever.
    #[arg(long)]
    yes: bool,
    /// Where to ask.
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let before = match (args.before_sequence, args.before_time) {
        (Some(sequence), _) => Before::Sequence(sequence),
        (None, Some(time)) => Before::TimestampNs(time),
        (None, None) => {
            return Err(Failure::usage(
                "--before-sequence or --before-time is needed",
            ));
        }
    };
    let target = v1::TrimTarget {
        partition: args.partition,
        before: Some(before),
    };
    let done = block_on(async {
        let mut admin = connect::admin(globals, &args.grpc).await?;
        let plan = v1::TrimRequest {
            request: Some(Request::Plan(target)),
        };
        let plan = admin.trim(plan).await.map_err(call_failure)?.into_inner();
        if !args.yes || plan.segments.is_empty() {
            return Ok(plan);
        }
        let token = plan.plan_token;
        let execute = v1::TrimRequest {
            request: Some(Request::ExecutePlanToken(token)),
        };
        Ok(admin
            .trim(execute)
            .await
            .map_err(call_failure)?
            .into_inner())
    })?;
    tell(&done, args.yes, globals.json)
}

fn tell(plan: &v1::TrimResponse, yes: bool, json: bool) -> Result<(), Failure> {
    let mut out = Output::new();
    if json {
        out.json(&json!({
            "partition": plan.partition,
            "segments": plan.segments,
            "events": plan.events,
            "bytes": plan.bytes,
            "first_sequence": plan.first_sequence,
            "executed": plan.executed,
        }))?;
        return out.flush();
    }
    let (Some(first), Some(last)) = (plan.segments.first(), plan.segments.last()) else {
        out.line("Nothing to remove: no whole sealed segment lies before that.")?;
        return out.flush();
    };
    let does = if plan.executed {
        "Removed"
    } else {
        "Would remove"
    };
    out.line(&format!(
        "{does} segments {first} to {last} of partition {}: {} events, {}.",
        plan.partition,
        plan.events,
        output::bytes(plan.bytes)
    ))?;
    out.line(&format!(
        "The first sequence that stays is {}.",
        plan.first_sequence
    ))?;
    if !yes {
        out.line(
            "Nothing was changed. With --yes it is done, and those events are lost for ever.",
        )?;
    }
    out.flush()
}
