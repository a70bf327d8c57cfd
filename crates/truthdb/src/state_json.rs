//! Modules and state as JSON: the same values in HTTP answers and in `--json` output.
//!
//! Keys and values of tables are bytes: `…_base64` holds them exactly, and `…_text` stands beside it
//! where they are text. Hashes and fingerprints are hexadecimal. A moment is text,
//! `partition:sequence` separated by commas, which is also how it is asked for.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use truthdb_api::v1;

use crate::key_text::as_text;

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A moment as text.
pub(crate) fn token(token: Option<&v1::Token>) -> String {
    let positions = token.map(|token| &token.positions[..]).unwrap_or_default();
    let positions: Vec<String> = positions
        .iter()
        .map(|one| format!("{}:{}", one.partition, one.sequence))
        .collect();
    positions.join(",")
}

/// A moment from its text.
///
/// # Errors
///
/// What is no moment.
pub(crate) fn parse_token(text: &str) -> Result<v1::Token, String> {
    let token: truthdb_compute::Token = text
        .parse()
        .map_err(|error: truthdb_compute::TokenError| error.to_string())?;
    let position = |(partition, sequence)| v1::TokenPosition {
        partition,
        sequence,
    };
    Ok(v1::Token {
        positions: token.entries().map(position).collect(),
    })
}

/// Where a page ends, as text for the next request; `None`: nothing follows.
pub(crate) fn page_token(token: &[u8]) -> Option<String> {
    (!token.is_empty()).then(|| URL_SAFE_NO_PAD.encode(token))
}

/// Bytes from [`page_token`]'s text.
pub(crate) fn parse_page_token(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// The name of a value of an enum of the interface, without its prefix, in lower case with hyphens.
fn name(full: &str, prefix: &str) -> String {
    full.trim_start_matches(prefix)
        .to_lowercase()
        .replace('_', "-")
}

/// What a module does.
pub(crate) fn kind(kind: v1::ModuleKind) -> String {
    name(kind.as_str_name(), "MODULE_KIND_")
}

/// How a generation began.
pub(crate) fn mode(mode: v1::ActivationMode) -> String {
    name(mode.as_str_name(), "ACTIVATION_MODE_")
}

/// Whether a generation folds.
pub(crate) fn fold_state(state: v1::FoldState) -> String {
    name(state.as_str_name(), "FOLD_STATE_")
}

/// A published module.
pub(crate) fn published(published: &v1::PublishResponse) -> Value {
    json!({
        "module": published.module,
        "hash": hex(&published.hash),
        "bytes": published.bytes,
        "kind": kind(published.kind()),
        "existed": published.existed,
        "token": token(published.token.as_ref()),
    })
}

/// A decision.
pub(crate) fn decision(decision: &v1::DecisionResponse) -> Value {
    json!({
        "module": decision.module,
        "generation": decision.generation,
        "token": token(decision.token.as_ref()),
    })
}

/// A module.
pub(crate) fn module(module: &v1::ModuleStatus) -> Value {
    let published: Vec<Value> = module
        .published
        .iter()
        .map(|code| json!({"hash": hex(&code.hash), "bytes": code.bytes}))
        .collect();
    json!({
        "module": module.module,
        "kind": kind(module.kind()),
        "tables": module.tables,
        "hash": hex(&module.hash),
        "generations": module.generations.iter().map(generation).collect::<Vec<_>>(),
        "published": published,
    })
}

fn generation(one: &v1::GenerationStatus) -> Value {
    json!({
        "partition": one.partition,
        "generation": one.generation,
        "hash": hex(&one.hash),
        "mode": mode(one.mode()),
        "current": one.current,
        "activated_sequence": one.activated_sequence,
        "applied_sequence": one.applied_sequence,
        "committed_sequence": one.committed_sequence,
        "state": fold_state(one.state()),
        "reason": one.reason,
        "action": one.action,
        "halted_sequence": (one.halted_sequence != 0).then_some(one.halted_sequence),
        "fingerprint": hex(&one.fingerprint),
        "rows": one.rows,
        "bytes": one.bytes,
        "events": one.events,
        "emitted": one.emitted,
        "emitted_through": one.emitted_through,
        "fuel": one.fuel,
    })
}

/// The fold of a partition.
pub(crate) fn fold(fold: &v1::FoldStatus) -> Value {
    json!({
        "partition": fold.partition,
        "applied_sequence": fold.applied_sequence,
        "committed_sequence": fold.committed_sequence,
        "snapshot_sequence": fold.snapshot_sequence,
        "problem": fold.problem,
    })
}

/// A snapshot.
pub(crate) fn snapshot(snapshot: &v1::Snapshot) -> Value {
    let modules: Vec<Value> = snapshot
        .modules
        .iter()
        .map(|one| {
            json!({
                "module": one.module,
                "generation": one.generation,
                "applied_sequence": one.applied_sequence,
                "fingerprint": hex(&one.fingerprint),
            })
        })
        .collect();
    json!({
        "partition": snapshot.partition,
        "sequence": snapshot.sequence,
        "timestamp": timestamp(snapshot.timestamp_ns),
        "timestamp_ns": snapshot.timestamp_ns,
        "modules": modules,
        "bytes": snapshot.bytes,
    })
}

/// What an answer was computed from.
pub(crate) fn stamp(stamp: &v1::Stamp) -> Value {
    json!({
        "partition": stamp.partition,
        "module": stamp.module,
        "generation": stamp.generation,
        "hash": hex(&stamp.hash),
        "sequence": stamp.sequence,
        "timestamp": timestamp(stamp.timestamp_ns),
        "timestamp_ns": stamp.timestamp_ns,
        "fingerprint": hex(&stamp.fingerprint),
    })
}

/// A key and a value.
pub(crate) fn row(partition: Option<u32>, key: &[u8], value: &[u8]) -> Value {
    let mut row = Map::new();
    if let Some(partition) = partition {
        row.insert("partition".to_owned(), partition.into());
    }
    for (name, bytes) in [("key", key), ("value", value)] {
        row.insert(format!("{name}_base64"), BASE64.encode(bytes).into());
        if let Some(text) = as_text(bytes) {
            row.insert(format!("{name}_text"), text.into());
        }
    }
    Value::Object(row)
}

/// Rows of tables.
pub(crate) fn rows(answer: &v1::StateRows) -> Value {
    let row = |one: &v1::StateRow| row(Some(one.partition), &one.key, &one.value);
    json!({
        "rows": answer.rows.iter().map(row).collect::<Vec<_>>(),
        "stamps": answer.stamps.iter().map(stamp).collect::<Vec<_>>(),
        "token": token(answer.token.as_ref()),
        "next": page_token(&answer.next_page_token),
    })
}

/// An operator's answer.
pub(crate) fn answer(answer: &v1::StateAnswer) -> Value {
    let row = |one: &v1::AnswerRow| row(None, &one.key, &one.value);
    json!({
        "rows": answer.rows.iter().map(row).collect::<Vec<_>>(),
        "operator_hash": hex(&answer.operator_hash),
        "stamps": answer.stamps.iter().map(stamp).collect::<Vec<_>>(),
        "token": token(answer.token.as_ref()),
        "fuel": answer.fuel,
    })
}

/// A time with nine digits; empty before the first event.
fn timestamp(ns: u64) -> String {
    if ns == 0 {
        return String::new();
    }
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map_or_else(|_| String::new(), |timestamp| format!("{timestamp:.9}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_their_text() {
        let parsed = parse_token("1:4,0:17").unwrap();
        assert_eq!(token(Some(&parsed)), "0:17,1:4");
        assert!(
            parse_token("17")
                .unwrap_err()
                .contains("partition:sequence")
        );
        assert_eq!(page_token(b""), None);
        let text = page_token(b"\x01ab").unwrap();
        assert_eq!(parse_page_token(&text).unwrap(), b"\x01ab");
    }

    #[test]
    fn bytes_are_exact_and_text_stands_beside_them() {
        let row = row(Some(2), b"N1\0\0", &[1, 0]);
        assert_eq!(row["key_text"], "N1");
        assert_eq!(row["key_base64"], "TjEAAA==");
        assert_eq!(row["value_base64"], "AQA=");
        assert!(row.get("value_text").is_none());
    }

    #[test]
    fn enums_have_readable_names() {
        assert_eq!(fold_state(v1::FoldState::CatchingUp), "catching-up");
        assert_eq!(kind(v1::ModuleKind::Query), "query");
        assert_eq!(mode(v1::ActivationMode::Rebuild), "rebuild");
    }
}
