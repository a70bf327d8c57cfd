//! Verification of the runs of stream heads: each whole within itself, and together without a gap before the oldest
//! segment, because of trimmed segments nothing else knows the streams.

use std::io;
use std::sync::Arc;

use truthdb_io::Storage;

use crate::heads::{
    HeadRuns, HeadsError, HeadsIdentity, HeadsSurvey, SealedSegments, run_file_name,
};
use crate::keys::KeySeed;
use crate::manifest::Manifest;
use crate::paged::IndexError;
use crate::segment::{Footer, index_dir};
use crate::verify::{LOOK, REBUILD, with_causes};
use crate::verify_report::Severity;

/// How often the runs of an open database are looked at, if merges take files away meanwhile.
const ATTEMPTS: u32 = 5;
const RESTORE_HEADS: &str = "restore the database from a backup: without these files, streams of \
                             trimmed segments would begin again at revision 0";

/// One thing that is wrong with the runs of a partition.
pub(crate) struct HeadsFinding {
    pub(crate) severity: Severity,
    pub(crate) path: String,
    pub(crate) what: String,
    pub(crate) advice: &'static str,
}

/// Verifies the runs of a partition. `first` is its oldest segment, `footers` those of its sealed segments, and
/// `is_open` says that the database may merge runs meanwhile.
pub(crate) fn verify_heads(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    partition: u32,
    first: u32,
    footers: &[Footer],
    is_open: bool,
) -> Vec<HeadsFinding> {
    let directory = index_dir(partition);
    let look = || survey(storage, manifest, partition, first, footers, is_open);
    let mut found = look();
    if is_open {
        // A merge between the listing and the opening of a run looks like a loss. Then it is looked again.
        for _ in 1..ATTEMPTS {
            if !found.as_ref().is_ok_and(may_have_moved) {
                break;
            }
            found = look();
        }
    }
    match found {
        Ok(survey) => findings(&directory, first, survey),
        Err(error) => vec![HeadsFinding {
            severity: Severity::Error,
            what: without_path(&directory, &error),
            path: directory,
            advice: LOOK,
        }],
    }
}

fn may_have_moved(survey: &HeadsSurvey) -> bool {
    let is_gone = |error: &IndexError| match error {
        IndexError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    };
    survey.lost.is_some() || survey.rejected.iter().any(|run| is_gone(&run.error))
}

fn survey(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    partition: u32,
    first: u32,
    footers: &[Footer],
    is_open: bool,
) -> Result<HeadsSurvey, HeadsError> {
    let identity = HeadsIdentity {
        database_id: manifest.database_id,
        partition,
        key_check: KeySeed(manifest.key_seed).check(),
    };
    let chain_of = |segment: u32| {
        let own = footers
            .iter()
            .find(|footer| footer.place.segment == segment);
        let next = footers
            .iter()
            .find(|footer| footer.place.segment == segment + 1);
        own.map(|own| own.chain)
            .or_else(|| next.map(|next| next.previous_chain))
    };
    let last = match (is_open, footers.last()) {
        // What was sealed since the segments were listed is as good.
        (true, _) => u32::MAX - 1,
        (false, Some(newest)) => newest.place.segment,
        (false, None) => first - 1,
    };
    let sealed = SealedSegments {
        first,
        last,
        chain_of: &chain_of,
    };
    HeadRuns::survey(storage, &index_dir(partition), identity, &sealed)
}

fn findings(directory: &str, first: u32, survey: HeadsSurvey) -> Vec<HeadsFinding> {
    let rejected = survey
        .rejected
        .into_iter()
        .map(|run| (run.segments, run.error));
    let mut wrong: Vec<((u32, u32), IndexError)> = rejected.collect();
    for run in survey.runs.runs() {
        if let Err(error) = run.check() {
            wrong.push((run.segments().into_inner(), error));
        }
    }
    let mut findings = Vec::new();
    for (segments, error) in wrong {
        let path = format!("{directory}/{}", run_file_name(segments.0, segments.1));
        let (severity, advice) = if segments.0 < first {
            (Severity::Error, RESTORE_HEADS)
        } else {
            (Severity::Warning, REBUILD)
        };
        findings.push(HeadsFinding {
            severity,
            what: without_path(&path, &error),
            path,
            advice,
        });
    }
    if let Some(lost) = survey.lost {
        findings.push(HeadsFinding {
            severity: Severity::Error,
            path: directory.to_owned(),
            what: without_path(directory, &lost),
            advice: RESTORE_HEADS,
        });
    }
    findings
}

/// An error with its causes; its message begins with a path that is told apart.
fn without_path(path: &str, error: &dyn std::error::Error) -> String {
    let text = with_causes(error);
    let rest = text
        .strip_prefix(path)
        .and_then(|text| text.strip_prefix(": "));
    rest.map_or_else(|| text.clone(), str::to_owned)
}
