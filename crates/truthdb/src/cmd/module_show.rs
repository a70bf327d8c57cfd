//! Modules as tables for people: `truthdb module` and `truthdb status`.

use truthdb_api::v1;

use super::output::{self, Output};
use crate::exit::Failure;
use crate::state_json;

/// Digits of a hash that are enough to name it.
const HASH_DIGITS: usize = 12;

/// The beginning of a hash.
pub(crate) fn short(hash: &[u8]) -> String {
    let mut text = output::hex(hash);
    text.truncate(HASH_DIGITS);
    text
}

/// The generations of all modules, then what is halted or waits, with what to do.
///
/// # Errors
///
/// As [`Output::text`].
pub(crate) fn modules(out: &mut Output, modules: &[v1::ModuleStatus]) -> Result<(), Failure> {
    let header = [
        "module",
        "kind",
        "gen",
        "code",
        "partition",
        "state",
        "applied",
        "of",
        "rows",
        "bytes",
    ];
    let mut table = output::table(&header, &[2, 4, 6, 7, 8, 9]);
    for module in modules {
        let kind = state_json::kind(module.kind());
        for one in &module.generations {
            let mut state = state_json::fold_state(one.state());
            if !one.current {
                state.push_str(" (beside)");
            }
            table.add_row(vec![
                module.module.clone(),
                kind.clone(),
                one.generation.to_string(),
                short(&one.hash),
                one.partition.to_string(),
                state,
                one.applied_sequence.to_string(),
                one.committed_sequence.to_string(),
                one.rows.to_string(),
                output::bytes(one.bytes),
            ]);
        }
        if module.generations.is_empty() {
            let mut row = vec![
                module.module.clone(),
                kind,
                String::new(),
                short(&module.hash),
            ];
            row.extend([String::new(), "not active".to_owned()]);
            table.add_row(row);
        }
    }
    out.table(&table)?;
    for module in modules {
        for one in &module.generations {
            if one.reason.is_empty() {
                continue;
            }
            let at = match one.halted_sequence {
                0 => String::new(),
                sequence => format!(" at event {sequence}"),
            };
            out.line(&format!(
                "\n{} is {} in partition {}{at}: {}",
                module.module,
                state_json::fold_state(one.state()),
                one.partition,
                one.reason
            ))?;
            if !one.action.is_empty() {
                out.line(&format!("  what to do: {}", one.action))?;
            }
        }
    }
    Ok(())
}

/// Problems of folds that persist.
///
/// # Errors
///
/// As [`Output::text`].
pub(crate) fn problems(out: &mut Output, folds: &[v1::FoldStatus]) -> Result<(), Failure> {
    for fold in folds.iter().filter(|fold| !fold.problem.is_empty()) {
        out.line(&format!(
            "the fold of partition {}: {}",
            fold.partition, fold.problem
        ))?;
    }
    Ok(())
}

/// What an answer was computed from.
///
/// # Errors
///
/// As [`Output::text`].
pub(crate) fn stamps(out: &mut Output, stamps: &[v1::Stamp]) -> Result<(), Failure> {
    let header = [
        "partition",
        "module",
        "gen",
        "sequence",
        "time",
        "fingerprint",
    ];
    let mut table = output::table(&header, &[0, 2, 3]);
    for stamp in stamps {
        table.add_row(vec![
            stamp.partition.to_string(),
            stamp.module.clone(),
            stamp.generation.to_string(),
            stamp.sequence.to_string(),
            output::timestamp(stamp.timestamp_ns),
            output::hex(&stamp.fingerprint),
        ]);
    }
    out.table(&table)
}
