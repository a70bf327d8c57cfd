//! Repair: an operator's explicit choice, first as a plan that says what is lost, then executed.
//!
//! Nothing here happens by itself. A plan is a pure value that can be printed and thought about;
//! executing it makes the
//! plan anew and refuses if it would be another. Every file that a step changes or removes is first copied to
//! `partition-N/damaged/`, durably. Segments are removed from the newest backward, so that a crash
//! never leaves a gap; after one,
//! the same choice gives a plan for the rest.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::Serialize;
use truthdb_io::{OpenMode, Storage};

use crate::error::ReadError;
use crate::heads::{HeadsError, parse_run_file_name};
use crate::manifest::Manifest;
use crate::paged::IndexError;
use crate::reader::SegmentReader;
use crate::recovery::{RecoveryError, RecoveryMode, SegmentEnd, recover_segment};
use crate::repair_steps::{self, Prefix};
use crate::seal::{SealError, segment_index_path};
use crate::segment::{
    Footer, SegmentHeader, index_dir, parse_segment_name, partition_dir, segment_path, wal_dir,
};

/// What the operator chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum RepairChoice {
    /// Cut the unsealed end of a partition at its first damage, although it was acknowledged.
    CutTail {
        /// Partition.
        partition: u32,
    },
    /// Cut a damaged sealed segment at its first damage, and everything after it.
    CutSegment {
        /// Partition.
        partition: u32,
        /// The damaged segment.
        segment: u32,
    },
    /// Take a whole copy of a sealed segment from a backup.
    RestoreSegment {
        /// Partition.
        partition: u32,
        /// The damaged or missing segment.
        segment: u32,
    },
    /// Make all indexes of a partition anew from its segments.
    RebuildIndexes {
        /// Partition.
        partition: u32,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum RepairStep {
    /// Copy a file aside.
    Keep {
        /// File, relative to the data directory.
        path: String,
        /// Where the copy goes.
        copy: String,
    },
    /// Remove a file.
    Remove {
        /// File, relative to the data directory.
        path: String,
    },
    /// Zero an unsealed segment from an offset on.
    CutAt {
        /// File, relative to the data directory.
        path: String,
        /// From where, in bytes.
        offset: u64,
    },
    /// Write a segment anew from its whole batches, as an unsealed one.
    RewritePrefix {
        /// Segment.
        segment: u32,
        /// Sequence that comes next then.
        next_sequence: u64,
    },
    /// Copy a file of the backup over the damaged one.
    TakeFromBackup {
        /// File, relative to the data directory and to the backup.
        path: String,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Make the index of a segment anew.
    RebuildIndex {
        /// Segment.
        segment: u32,
    },
    /// Make the runs of stream heads anew.
    RebuildHeads,
}

/// What would be done, and what would be lost by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairPlan {
    /// What was chosen.
    pub choice: RepairChoice,
    /// First sequence that is lost for good (but for the copies), if any.
    pub lost_first_sequence: Option<u64>,
    /// Last sequence that is lost, as far as anything says.
    pub lost_last_sequence: Option<u64>,
    /// Bytes of segments that are cut or removed.
    pub lost_bytes: u64,
    /// What else to know.
    pub notes: Vec<String>,
    /// What is done, in this order.
    pub steps: Vec<RepairStep>,
}

/// Why a repair cannot be planned or executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// There is no such damage.
    #[error("there is nothing to repair: {0}")]
    NothingToDo(String),
    /// This choice cannot mend it.
    #[error("this choice cannot mend it: {0}")]
    Impossible(String),
    /// The backup's file is not the one that belongs here.
    #[error("the backup's {path} does not fit: {reason}")]
    BackupDoesNotFit {
        /// File, relative to the backup.
        path: String,
        /// What does not fit.
        reason: String,
    },
    /// The files changed since the plan was made.
    #[error("the plan is out of date: the files changed since; make a new one")]
    PlanChanged,
    /// The operating system refused. Nothing was lost; the choice can be made again.
    #[error("{path}: {action} failed")]
    Io {
        /// File, relative to the data directory.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A segment cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A partition's segments are damaged in another way.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// Making an index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Making an index failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Making stream heads failed.
    #[error(transparent)]
    Heads(#[from] HeadsError),
}

pub(crate) fn io_error(path: &str, action: &'static str) -> impl FnOnce(io::Error) -> RepairError {
    move |source| RepairError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

impl fmt::Display for RepairPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.lost_first_sequence, self.lost_last_sequence) {
            (Some(first), Some(last)) => writeln!(f, "LOST: the events {first} to {last}")?,
            (Some(first), None) => writeln!(f, "LOST: the events from {first} on, if any")?,
            (None, _) => writeln!(f, "Lost: no event")?,
        }
        if self.lost_bytes > 0 {
            writeln!(
                f,
                "{} bytes of segments are cut or removed",
                self.lost_bytes
            )?;
        }
        for note in &self.notes {
            writeln!(f, "Note: {note}")?;
        }
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "{number}. {step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RepairStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RepairStep::Keep { path, copy } => write!(f, "copy {path} to {copy}"),
            RepairStep::Remove { path } => write!(f, "remove {path}"),
            RepairStep::CutAt { path, offset } => {
                write!(f, "cut {path} at offset {offset} (zeros from there on)")
            }
            RepairStep::RewritePrefix {
                segment,
                next_sequence,
            } => write!(
                f,
                "write segment {segment} anew with its whole batches up to event {}",
                next_sequence - 1
            ),
            RepairStep::TakeFromBackup { path, bytes } => {
                write!(
                    f,
                    "copy {path} ({bytes} bytes) from the backup and check it"
                )
            }
            RepairStep::RebuildIndex { segment } => {
                write!(f, "make the index of segment {segment} anew")
            }
            RepairStep::RebuildHeads => write!(f, "make the runs of stream heads anew"),
        }
    }
}

impl RepairChoice {
    /// The partition concerned.
    pub fn partition(&self) -> u32 {
        match self {
            RepairChoice::CutTail { partition }
            | RepairChoice::CutSegment { partition, .. }
            | RepairChoice::RestoreSegment { partition, .. }
            | RepairChoice::RebuildIndexes { partition } => *partition,
        }
    }
}

/// Makes the plan of a choice. Changes nothing. The database must not be open. `backup` is the root
/// of a backup, laid out like a
/// data directory; only [`RepairChoice::RestoreSegment`] needs it.
///
/// # Errors
///
/// [`RepairError`]: there is nothing to do, or not in this way.
pub fn plan_repair(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    choice: RepairChoice,
    backup: Option<&Arc<dyn Storage>>,
) -> Result<RepairPlan, RepairError> {
    let partition = choice.partition();
    let wal = wal_dir(partition);
    let listed = storage.list(&wal).map_err(io_error(&wal, "listing"))?;
    let mut segments: Vec<(u32, u64)> = listed
        .iter()
        .filter_map(|entry| Some((parse_segment_name(&entry.name)?, entry.bytes)))
        .collect();
    segments.sort_unstable();
    let plan = RepairPlan {
        choice,
        lost_first_sequence: None,
        lost_last_sequence: None,
        lost_bytes: 0,
        notes: Vec::new(),
        steps: Vec::new(),
    };
    let mut planner = Planner {
        storage,
        manifest,
        partition,
        segments,
        plan,
    };
    match choice {
        RepairChoice::CutTail { .. } => planner.cut_tail()?,
        RepairChoice::CutSegment { segment, .. } => planner.cut_segment(segment)?,
        RepairChoice::RestoreSegment { segment, .. } => {
            let reason = || "a backup is needed to restore from".to_owned();
            let backup = backup.ok_or_else(|| RepairError::Impossible(reason()))?;
            planner.restore_segment(backup, segment)?;
        }
        RepairChoice::RebuildIndexes { .. } => planner.rebuild_indexes()?,
    }
    Ok(planner.plan)
}

/// Executes a plan, after making it anew to see that it still holds. The database must not be open.
///
/// # Errors
///
/// [`RepairError::PlanChanged`], or what failed; the choice can be made again then.
pub fn execute_repair(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    plan: &RepairPlan,
    backup: Option<&Arc<dyn Storage>>,
) -> Result<(), RepairError> {
    if plan_repair(storage, manifest, plan.choice, backup)? != *plan {
        return Err(RepairError::PlanChanged);
    }
    let partition = plan.choice.partition();
    for step in &plan.steps {
        match step {
            RepairStep::Keep { path, copy } => {
                let directory = damaged_dir(partition);
                let made = storage.durable_create_dir(&directory);
                made.map_err(io_error(&directory, "creating"))?;
                repair_steps::copy_file(storage, path, storage, copy)?;
            }
            RepairStep::Remove { path } => {
                storage
                    .durable_remove(path)
                    .map_err(io_error(path, "removing"))?;
            }
            RepairStep::CutAt { path, offset } => {
                repair_steps::cut_at(storage, path, *offset, manifest.segment_bytes)?;
            }
            RepairStep::RewritePrefix { segment, .. } => {
                repair_steps::rewrite_prefix(storage, manifest.place(partition, *segment))?;
            }
            RepairStep::TakeFromBackup { path, .. } => {
                let reason = || "a backup is needed to restore from".to_owned();
                let backup = backup.ok_or_else(|| RepairError::Impossible(reason()))?;
                let RepairChoice::RestoreSegment { segment, .. } = plan.choice else {
                    continue;
                };
                let place = manifest.place(partition, segment);
                repair_steps::take_from_backup(storage, backup, path, place)?;
            }
            RepairStep::RebuildIndex { segment } => {
                repair_steps::rebuild_index(storage, manifest, partition, *segment)?;
            }
            RepairStep::RebuildHeads => repair_steps::rebuild_heads(storage, manifest, partition)?,
        }
    }
    Ok(())
}

/// Directory of the copies: `partition-0000/damaged`.
pub fn damaged_dir(partition: u32) -> String {
    format!("{}/damaged", partition_dir(partition))
}

struct Planner<'a> {
    storage: &'a Arc<dyn Storage>,
    manifest: &'a Manifest,
    partition: u32,
    /// Number and length, ascending.
    segments: Vec<(u32, u64)>,
    plan: RepairPlan,
}

impl Planner<'_> {
    fn open(&self, segment: u32) -> Result<(SegmentReader, SegmentHeader), ReadError> {
        let place = self.manifest.place(self.partition, segment);
        SegmentReader::open(self.storage.as_ref(), place)
    }

    fn footer(&self, segment: u32) -> Option<Footer> {
        self.open(segment).ok()?.0.footer().ok()?
    }

    fn path(&self, segment: u32) -> String {
        segment_path(self.partition, segment)
    }

    fn cut_tail(&mut self) -> Result<(), RepairError> {
        let first_unsealed = self
            .segments
            .iter()
            .position(|(s, _)| self.footer(*s).is_none());
        let unsealed = self.segments[first_unsealed.unwrap_or(self.segments.len())..].to_vec();
        for (index, (segment, _)) in unsealed.iter().enumerate() {
            let later: Vec<u32> = unsealed[index + 1..]
                .iter()
                .map(|(segment, _)| *segment)
                .collect();
            if let Some(sealed) = later.iter().find(|later| self.footer(**later).is_some()) {
                return Err(RepairError::Impossible(format!(
                    "segment {sealed} after it is sealed; restore segment {segment} from a backup, \
                     or cut it as a sealed segment"
                )));
            }
            let Err(error) = self.recover(*segment, later.first().copied()) else {
                continue;
            };
            let RecoveryError::Corrupt {
                offset,
                first_sequence,
                last_sequence,
                ..
            } = error
            else {
                return Err(error.into());
            };
            self.plan.lost_last_sequence = last_sequence;
            self.remove_later(&later);
            if offset == 0 {
                self.remove_whole(*segment)?;
            } else {
                self.plan.lost_first_sequence = Some(first_sequence);
                let length = self.length(*segment);
                self.plan.lost_bytes += length.saturating_sub(offset);
                self.keep(*segment);
                self.plan.steps.push(RepairStep::CutAt {
                    path: self.path(*segment),
                    offset,
                });
            }
            self.order_steps();
            return Ok(());
        }
        Err(RepairError::NothingToDo(
            "the unsealed end of the partition is whole".to_owned(),
        ))
    }

    /// The header itself is damaged: the segment goes as a whole, and the one before it is the end.
    fn remove_whole(&mut self, segment: u32) -> Result<(), RepairError> {
        let before = segment
            .checked_sub(1)
            .and_then(|before| self.footer(before));
        let Some(before) = before else {
            return Err(RepairError::Impossible(
                "the first block of the segment is damaged and no sealed segment precedes it; \
                 restore the partition from a backup"
                    .to_owned(),
            ));
        };
        self.plan.lost_first_sequence = Some(before.last_sequence + 1);
        self.plan.lost_bytes += self.length(segment);
        self.keep(segment);
        self.plan.steps.push(RepairStep::Remove {
            path: self.path(segment),
        });
        Ok(())
    }

    fn recover(&self, segment: u32, next: Option<u32>) -> Result<u64, RecoveryError> {
        let successor = next.and_then(|next| self.open(next).ok());
        let end = successor.map(|(_, header)| SegmentEnd::before(&header));
        let place = self.manifest.place(self.partition, segment);
        let storage = self.storage.as_ref();
        let recovered = recover_segment(storage, place, end, RecoveryMode::Look, &mut |_| {})?;
        Ok(recovered.next_sequence)
    }

    fn cut_segment(&mut self, segment: u32) -> Result<(), RepairError> {
        let place = self.manifest.place(self.partition, segment);
        let prefix = repair_steps::whole_prefix(self.storage, place)?;
        let Prefix {
            next_sequence,
            damage,
            ..
        } = prefix;
        let Some(damage) = damage else {
            return Err(RepairError::NothingToDo(format!(
                "the data of segment {segment} is whole"
            )));
        };
        let later: Vec<u32> = self
            .segments
            .iter()
            .map(|(s, _)| *s)
            .filter(|s| *s > segment)
            .collect();
        self.check_heads(segment)?;
        self.plan.lost_first_sequence = Some(next_sequence);
        self.plan.lost_last_sequence = self.footer(segment).map(|footer| footer.last_sequence);
        self.plan.lost_bytes += self.length(segment).saturating_sub(damage);
        self.remove_later(&later);
        self.keep(segment);
        self.plan.steps.push(RepairStep::RewritePrefix {
            segment,
            next_sequence,
        });
        let index = segment_index_path(self.partition, segment);
        if self.storage.open(&index, OpenMode::Read).is_ok() {
            self.plan.steps.push(RepairStep::Remove { path: index });
        }
        self.plan.notes.push(format!(
            "the chain hash of segment {segment} and all later ones will be others than before"
        ));
        self.order_steps();
        Ok(())
    }

    /// A run that covers trimmed segments knows what nothing else knows; it must not cover cut ones as well.
    fn check_heads(&self, cut: u32) -> Result<(), RepairError> {
        let oldest = self.segments.first().map_or(1, |(segment, _)| *segment);
        let names = self
            .storage
            .list(&index_dir(self.partition))
            .unwrap_or_default();
        let runs = names
            .iter()
            .filter_map(|entry| parse_run_file_name(&entry.name));
        for (first, last) in runs {
            if first < oldest && last >= cut {
                return Err(RepairError::Impossible(format!(
                    "the run of stream heads {first} to {last} covers trimmed and damaged segments; \
                     restore segment {cut} from a backup"
                )));
            }
        }
        Ok(())
    }

    fn restore_segment(
        &mut self,
        backup: &Arc<dyn Storage>,
        segment: u32,
    ) -> Result<(), RepairError> {
        let place = self.manifest.place(self.partition, segment);
        let path = self.path(segment);
        let misfit = |reason: String| RepairError::BackupDoesNotFit {
            path: path.clone(),
            reason,
        };
        let found = repair_steps::check_sealed(backup, &path, place).map_err(&misfit)?;
        let own = self.footer(segment);
        let before = segment
            .checked_sub(1)
            .and_then(|before| self.footer(before));
        if before
            .as_ref()
            .is_some_and(|before| before.chain != found.previous_chain)
        {
            return Err(misfit(
                "it does not continue the segment before it".to_owned(),
            ));
        }
        if own.as_ref().is_some_and(|own| own.chain != found.chain) {
            return Err(misfit(
                "it has another chain hash than the damaged one".to_owned(),
            ));
        }
        let next = self.open(segment + 1).ok();
        let next_footer = self.footer(segment + 1);
        if next_footer
            .as_ref()
            .is_some_and(|next| next.previous_chain != found.chain)
        {
            return Err(misfit("the next segment continues another one".to_owned()));
        }
        let continues = next.as_ref().is_none_or(|(_, header)| {
            header.previous_checksum == found.last_batch_checksum
                && header.base_sequence == found.last_sequence + 1
        });
        if !continues {
            return Err(misfit(
                "the next segment does not begin where it ends".to_owned(),
            ));
        }
        if own.is_none() && next.is_none() {
            self.plan.notes.push(format!(
                "nothing here says that the partition ended with event {} as the backup does: later ones, if \
                 there were any, are lost",
                found.last_sequence
            ));
            self.plan.lost_first_sequence = Some(found.last_sequence + 1);
        }
        if self.segments.iter().any(|(number, _)| *number == segment) {
            self.keep(segment);
        }
        let bytes = found.file_bytes().unwrap_or_default();
        self.plan
            .steps
            .push(RepairStep::TakeFromBackup { path, bytes });
        self.plan.steps.push(RepairStep::RebuildIndex { segment });
        Ok(())
    }

    fn rebuild_indexes(&mut self) -> Result<(), RepairError> {
        let oldest = self.segments.first().map_or(1, |(segment, _)| *segment);
        let sealed: Vec<u32> = self
            .segments
            .iter()
            .map(|(segment, _)| *segment)
            .filter(|segment| self.footer(*segment).is_some())
            .collect();
        if sealed.is_empty() {
            return Err(RepairError::NothingToDo(
                "the partition has no sealed segment".to_owned(),
            ));
        }
        let names = self
            .storage
            .list(&index_dir(self.partition))
            .unwrap_or_default();
        for entry in &names {
            match parse_run_file_name(&entry.name) {
                Some((first, _)) if first < oldest => self.plan.notes.push(format!(
                    "{} is kept: it knows the streams of trimmed segments",
                    entry.name
                )),
                Some(_) => {
                    let path = format!("{}/{}", index_dir(self.partition), entry.name);
                    self.plan.steps.push(RepairStep::Remove { path });
                }
                None => {}
            }
        }
        let rebuild = sealed
            .iter()
            .map(|segment| RepairStep::RebuildIndex { segment: *segment });
        self.plan.steps.extend(rebuild);
        self.plan.steps.push(RepairStep::RebuildHeads);
        Ok(())
    }

    /// Later segments are kept aside and removed, the newest first.
    fn remove_later(&mut self, later: &[u32]) {
        for segment in later.iter().rev() {
            let last = match self.footer(*segment) {
                Some(footer) => Some(footer.last_sequence),
                None => self.recover(*segment, None).ok().map(|next| next - 1),
            };
            self.plan.lost_last_sequence = self.plan.lost_last_sequence.max(last);
            self.plan.lost_bytes += self.length(*segment);
            self.keep(*segment);
            self.plan.steps.push(RepairStep::Remove {
                path: self.path(*segment),
            });
            let index = segment_index_path(self.partition, *segment);
            if self.storage.open(&index, OpenMode::Read).is_ok() {
                self.plan.steps.push(RepairStep::Remove { path: index });
            }
        }
    }

    fn length(&self, segment: u32) -> u64 {
        let found = self.segments.iter().find(|(number, _)| *number == segment);
        found.map_or(0, |(_, bytes)| *bytes)
    }

    fn keep(&mut self, segment: u32) {
        let directory = damaged_dir(self.partition);
        let taken = self.storage.list(&directory).unwrap_or_default();
        let name = |number: u32| format!("segment-{segment:08}.log.{number}");
        let is_free = |number: &u32| taken.iter().all(|entry| entry.name != name(*number));
        let number = (1..u32::MAX).find(is_free).unwrap_or(u32::MAX);
        let copy = format!("{directory}/{}", name(number));
        self.plan.steps.push(RepairStep::Keep {
            path: self.path(segment),
            copy,
        });
    }

    /// All copies first: nothing is changed before everything is safe.
    fn order_steps(&mut self) {
        self.plan
            .steps
            .sort_by_key(|step| !matches!(step, RepairStep::Keep { .. }));
    }
}

#[cfg(test)]
#[path = "repair_tests.rs"]
mod tests;
