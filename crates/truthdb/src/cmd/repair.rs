//! `truthdb repair`: the operator's explicit ways out of damage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use truthdb_io::{Backend, FileStorage, Storage};
use truthdb_log::{
    MANIFEST_PATH, RepairChoice, RepairError, RepairPlan, execute_repair, plan_repair,
};

use super::backup_set::BackupSet;
use super::offline::{Offline, read_failure, recovery_failure};
use super::output::Output;
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};

/// Repair a damaged partition: plan, show, and only then do.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Works on the directory of --data, and no server may run on it. Without --yes the \
                  plan is printed\nand nothing is changed. Every file that is changed or removed is \
                  first copied to\n`partition-N/damaged/`."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
    /// Do it. The value names what is lost, as the plan says it: `none`, or the sequences, such as
    /// `4711-4720` or `4711-` (to the end).
    #[arg(long, global = true, value_name = "LOSS")]
    yes: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Cut the unsealed end of a partition at its first damage, although it was acknowledged.
    CutTail {
        /// The partition.
        #[arg(long, value_name = "NUMBER")]
        partition: u32,
    },
    /// Cut a damaged sealed segment at its first damage, and everything after it.
    CutSegment {
        /// The partition.
        #[arg(long, value_name = "NUMBER")]
        partition: u32,
        /// The damaged segment.
        #[arg(long, value_name = "NUMBER")]
        segment: u32,
    },
    /// Take a whole copy of a sealed segment from a backup. Nothing is lost.
    RestoreSegment {
        /// The partition.
        #[arg(long, value_name = "NUMBER")]
        partition: u32,
        /// The damaged or missing segment.
        #[arg(long, value_name = "NUMBER")]
        segment: u32,
        /// Directory of a backup, or a data directory of the same database.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
    /// Make all indexes of a partition anew from its segments. Nothing is lost.
    RebuildIndexes {
        /// The partition.
        #[arg(long, value_name = "NUMBER")]
        partition: u32,
    },
}

impl Action {
    fn choice(&self) -> RepairChoice {
        match self {
            Action::CutTail { partition } => RepairChoice::CutTail {
                partition: *partition,
            },
            Action::CutSegment { partition, segment } => RepairChoice::CutSegment {
                partition: *partition,
                segment: *segment,
            },
            Action::RestoreSegment {
                partition, segment, ..
            } => RepairChoice::RestoreSegment {
                partition: *partition,
                segment: *segment,
            },
            Action::RebuildIndexes { partition } => RepairChoice::RebuildIndexes {
                partition: *partition,
            },
        }
    }

    fn backup(&self) -> Result<Option<Arc<dyn Storage>>, Failure> {
        let Action::RestoreSegment { from, .. } = self else {
            return Ok(None);
        };
        if from.join(MANIFEST_PATH).exists() {
            let storage = FileStorage::open(from, Backend::Blocking).map_err(|error| {
                Failure::environment(format!("cannot use {}", from.display()), error)
            })?;
            return Ok(Some(Arc::new(storage)));
        }
        let (set, index) = BackupSet::open(from)?;
        set.view(&index).map(Some)
    }
}

/// What `--yes` must say.
fn loss(plan: &RepairPlan) -> String {
    match (plan.lost_first_sequence, plan.lost_last_sequence) {
        (None, _) => "none".to_owned(),
        (Some(first), None) => format!("{first}-"),
        (Some(first), Some(last)) => format!("{first}-{last}"),
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let Some(directory) = &globals.data else {
        return Err(Failure::usage(
            "repair needs --data: the data directory, without a server",
        ));
    };
    let offline = Offline::open(globals, directory, "repair")?;
    let choice = args.action.choice();
    offline.check_partition(choice.partition())?;
    let backup = args.action.backup()?;
    let (storage, manifest) = (offline.storage(), offline.manifest());
    let fail = |error| repair_failure(directory, error);
    let plan = plan_repair(storage, manifest, choice, backup.as_ref()).map_err(fail)?;
    let loss = loss(&plan);
    let agreed = match &args.yes {
        None => false,
        Some(given) if *given == loss => true,
        Some(given) => {
            let message = format!("--yes {given} is not what would be lost: that is {loss}");
            return Err(Failure::usage(message)
                .with_action("Look at the plan without --yes, and repeat what it says."));
        }
    };
    if agreed {
        execute_repair(storage, manifest, &plan, backup.as_ref()).map_err(fail)?;
    }
    let mut out = Output::new();
    if globals.json {
        out.json(&json!({"plan": plan, "loss": loss, "executed": agreed}))?;
        return out.flush();
    }
    out.text(&plan.to_string())?;
    if agreed {
        out.line("Done. Check it with `truthdb verify`, and start the server.")?;
    } else {
        out.line(&format!("Nothing was changed. To do it, add: --yes {loss}"))?;
    }
    out.flush()
}

fn repair_failure(directory: &Path, error: RepairError) -> Failure {
    let (class, action) = match error {
        RepairError::Read(error) => return read_failure(directory, error),
        RepairError::Recovery(error) => return recovery_failure(directory, error),
        RepairError::NothingToDo(_) => (
            ExitClass::Refused,
            "See what is damaged with `truthdb verify`.",
        ),
        RepairError::Impossible(_) => (
            ExitClass::Refused,
            "Choose another way: see `truthdb repair --help`.",
        ),
        RepairError::BackupDoesNotFit { .. } => (ExitClass::Damaged, "Use another backup."),
        RepairError::PlanChanged => (ExitClass::TryLater, "Make a new plan and look at it."),
        _ => (
            ExitClass::Environment,
            "When the disk is in order, repeat the command.",
        ),
    };
    let message = format!("{} was not repaired", directory.display());
    Failure::new(class, message)
        .with_source(error)
        .with_action(action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_named_in_one_word() {
        let mut plan = RepairPlan {
            choice: RepairChoice::CutTail { partition: 0 },
            lost_first_sequence: None,
            lost_last_sequence: None,
            lost_bytes: 0,
            notes: Vec::new(),
            steps: Vec::new(),
        };
        assert_eq!(loss(&plan), "none");
        plan.lost_first_sequence = Some(7);
        assert_eq!(loss(&plan), "7-");
        plan.lost_last_sequence = Some(9);
        assert_eq!(loss(&plan), "7-9");
    }
}
