//! Control events: the life of modules as facts in each partition's own log.
//!
//! They lie in streams `$module/<name>` (decisions and facts about a module), `$code/<hash>` (a
//! module's bytes, in chunks) and `$snapshot` (positions at which all guests begin anew). Payloads
//! are JSON with a version, but for the chunks, which are raw bytes.
//!
//! A *decision* is made in the first partition's log; the others copy it, in the same order, so
//! that a crash between two partitions is finished by the next start and never undone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use truthdb_engine::EncodedEvents;
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::Random;
use truthdb_module::{Limits, Manifest, ModuleKind, Subscription, TableDecl, WasiProfile};

use crate::error::ComputeError;
use crate::request::{ActivationMode, ModuleHash};

/// Prefix of the streams with what happened to a module.
pub const MODULE_STREAM_PREFIX: &str = "$module/";
/// Prefix of the streams with a module's bytes; the rest is their BLAKE3 in hexadecimal.
pub const CODE_STREAM_PREFIX: &str = "$code/";
/// Stream of the positions of snapshots.
pub const SNAPSHOT_STREAM: &str = "$snapshot";
/// Type of an event with a piece of a module's bytes.
pub const CODE_CHUNK_TYPE: &str = "$code-chunk";
/// Type of all other control events; what it is, is in the payload's `kind`.
pub const CONTROL_TYPE: &str = "$module-control";
/// Bytes of a chunk: two of them fit a batch with room to spare.
pub const CODE_CHUNK_BYTES: usize = 2 << 20;
/// Version of the payloads.
pub const CONTROL_VERSION: u32 = 1;
const JSON: &str = "application/json";

/// A control event's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) version: u32,
    /// Names a decision, the same in all partitions; empty for facts of one partition.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) decision: String,
    #[serde(flatten)]
    pub(crate) fact: Fact,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Fact {
    /// The bytes are whole in this log, in the chunks before.
    Published {
        hash: String,
        bytes: u64,
        manifest: ManifestRecord,
    },
    Activated {
        generation: u32,
        hash: String,
        /// What the module does, so that a gate need not look it up.
        module_kind: String,
        mode: String,
        /// The new code is given events from here on; none: from the event after this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from_sequence: Option<u64>,
        limits: std::collections::BTreeMap<String, u64>,
        wasi: String,
        semantics_id: String,
    },
    /// A rebuilt generation answers from here on.
    Switched {
        generation: u32,
    },
    /// A module stopped at a batch.
    Halted {
        generation: u32,
        sequence: u64,
        reason: String,
    },
    /// The operator lets it try again.
    Resumed {
        generation: u32,
        reason: String,
    },
    /// The operator decided that events are not given to the module.
    Skipped {
        generation: u32,
        first_sequence: u64,
        last_sequence: u64,
        reason: String,
    },
    Removed {},
    StateCheckpoint {
        generation: u32,
        hash: String,
        semantics_id: String,
        sequence: u64,
        fingerprint: String,
    },
    /// All guests of the partition begin anew after this event, and a snapshot is made here.
    Snapshot {},
}

/// A manifest as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestRecord {
    name: String,
    version: String,
    abi: u32,
    kind: String,
    subscriptions: Vec<SubscriptionRecord>,
    tables: Vec<TableRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SubscriptionRecord {
    stream: String,
    event_type: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TableRecord {
    name: String,
    version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    module: String,
}

impl ManifestRecord {
    pub(crate) fn of(manifest: &Manifest) -> ManifestRecord {
        ManifestRecord {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            abi: manifest.abi,
            kind: manifest.kind.name().to_owned(),
            subscriptions: manifest
                .subscriptions
                .iter()
                .map(|wanted| SubscriptionRecord {
                    stream: wanted.stream.clone(),
                    event_type: wanted.event_type.clone(),
                })
                .collect(),
            tables: manifest
                .tables
                .iter()
                .map(|table| TableRecord {
                    name: table.name.clone(),
                    version: table.version,
                    module: table.module.clone(),
                })
                .collect(),
        }
    }

    pub(crate) fn manifest(&self) -> Option<Manifest> {
        Some(Manifest {
            name: self.name.clone(),
            version: self.version.clone(),
            abi: self.abi,
            kind: ModuleKind::from_name(&self.kind)?,
            subscriptions: self
                .subscriptions
                .iter()
                .map(|wanted| Subscription {
                    stream: wanted.stream.clone(),
                    event_type: wanted.event_type.clone(),
                })
                .collect(),
            tables: self
                .tables
                .iter()
                .map(|table| TableDecl {
                    name: table.name.clone(),
                    version: table.version,
                    module: table.module.clone(),
                })
                .collect(),
        })
    }
}

pub(crate) fn limits_record(limits: &Limits) -> std::collections::BTreeMap<String, u64> {
    let fields = limits.fields();
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Limits as recorded. Fields that are missing have their default: they are newer than the event.
pub(crate) fn limits_of(record: &std::collections::BTreeMap<String, u64>) -> Limits {
    let mut limits = Limits::default();
    for (name, value) in record {
        let narrow = u32::try_from(*value).unwrap_or(u32::MAX);
        match name.as_str() {
            "memory_bytes" => limits.memory_bytes = *value,
            "table_elements" => limits.table_elements = narrow,
            "fuel_per_call" => limits.fuel_per_call = *value,
            "fuel_per_event" => limits.fuel_per_event = *value,
            "fuel_per_query" => limits.fuel_per_query = *value,
            "emits_per_call" => limits.emits_per_call = narrow,
            "emit_bytes_per_call" => limits.emit_bytes_per_call = *value,
            "log_bytes_per_call" => limits.log_bytes_per_call = narrow,
            "query_ticks" => limits.query_ticks = *value,
            _ => {}
        }
    }
    limits
}

pub(crate) fn wasi_name(wasi: WasiProfile) -> &'static str {
    match wasi {
        WasiProfile::None => "none",
        WasiProfile::Deterministic => "deterministic",
    }
}

pub(crate) fn wasi_of(name: &str) -> Option<WasiProfile> {
    match name {
        "none" => Some(WasiProfile::None),
        "deterministic" => Some(WasiProfile::Deterministic),
        _ => None,
    }
}

pub(crate) fn mode_of(name: &str) -> Option<ActivationMode> {
    match name {
        "rebuild" => Some(ActivationMode::Rebuild),
        "continue" => Some(ActivationMode::Continue),
        "migrate" => Some(ActivationMode::Migrate),
        _ => None,
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// 32 bytes from their hexadecimal.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// A random event id.
fn new_id(random: &dyn Random) -> EventId {
    let mut id = [0; 16];
    random.fill(&mut id);
    // All zeros is no id.
    id[15] |= 1;
    EventId::from_bytes(id)
}

/// A random name of a decision.
pub(crate) fn new_decision(random: &dyn Random) -> String {
    let mut id = [0; 16];
    random.fill(&mut id);
    hex(&id)
}

/// The stream of a fact about a module.
pub(crate) fn module_stream(module: &str) -> String {
    format!("{MODULE_STREAM_PREFIX}{module}")
}

/// A control event, ready to be prepared.
pub(crate) fn encode_control(
    random: &dyn Random,
    stream: &str,
    decision: &str,
    fact: Fact,
) -> Result<EncodedEvents, ComputeError> {
    let control = Control {
        version: CONTROL_VERSION,
        decision: decision.to_owned(),
        fact,
    };
    let payload = serde_json::to_vec(&control)
        .map_err(|error| ComputeError::invalid(format!("a control event has no JSON: {error}")))?;
    let builder = EventBuilder::new(stream, CONTROL_TYPE)
        .id(new_id(random))
        .content_type(JSON)
        .payload(&payload);
    encode(&builder)
}

/// The events with a module's bytes, one batch each.
pub(crate) fn encode_code(
    random: &dyn Random,
    hash: &ModuleHash,
    bytes: &[u8],
) -> Result<Vec<EncodedEvents>, ComputeError> {
    let stream = format!("{CODE_STREAM_PREFIX}{}", hex(hash));
    let mut batches = Vec::new();
    for (index, chunk) in bytes.chunks(CODE_CHUNK_BYTES).enumerate() {
        let at = (index * CODE_CHUNK_BYTES).to_string();
        let builder = EventBuilder::new(&stream, CODE_CHUNK_TYPE)
            .id(new_id(random))
            .metadata("$offset", &at)
            .payload(chunk);
        batches.push(encode(&builder)?);
    }
    Ok(batches)
}

fn encode(builder: &EventBuilder<'_>) -> Result<EncodedEvents, ComputeError> {
    let mut bytes = Vec::new();
    builder
        .encode_into(&mut bytes)
        .map_err(|error| ComputeError::invalid(format!("a control event is no event: {error}")))?;
    Ok(EncodedEvents {
        bytes: Bytes::from(bytes),
        ..EncodedEvents::default()
    })
}

/// Reads a control event's payload. A newer version, or another kind, is `None`: what an older
/// program does not know it does not do, and says so.
pub(crate) fn decode_control(payload: &[u8]) -> Option<Control> {
    let control: Control = serde_json::from_slice(payload).ok()?;
    (control.version <= CONTROL_VERSION).then_some(control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_event_survives_its_payload() {
        let facts = [
            Fact::Switched { generation: 3 },
            Fact::Removed {},
            Fact::Snapshot {},
            Fact::Skipped {
                generation: 1,
                first_sequence: 1,
                last_sequence: 2,
                reason: "bad".to_owned(),
            },
        ];
        for fact in facts {
            let control = Control {
                version: CONTROL_VERSION,
                decision: "ab".to_owned(),
                fact,
            };
            let payload = serde_json::to_vec(&control).unwrap();
            assert_eq!(decode_control(&payload), Some(control));
        }
    }

    #[test]
    fn a_newer_version_and_other_bytes_are_not_understood() {
        assert_eq!(decode_control(br#"{"version":2,"kind":"removed"}"#), None);
        assert_eq!(decode_control(br#"{"version":1,"kind":"exploded"}"#), None);
        assert_eq!(decode_control(b"\xff"), None);
    }

    #[test]
    fn limits_survive_their_record() {
        let limits = Limits {
            fuel_per_call: 7,
            table_elements: 9,
            ..Limits::default()
        };
        assert_eq!(limits_of(&limits_record(&limits)), limits);
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        let hash = [0xa5; 32];
        assert_eq!(unhex(&hex(&hash)), Some(hash));
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex(&"é".repeat(32)), None);
    }
}
