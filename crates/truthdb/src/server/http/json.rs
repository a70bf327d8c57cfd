//! The JSON of requests and answers.
//!
//! A payload is a JSON value where its content type says JSON, and base64 otherwise, each under its
//! own name, so that nobody has to guess. Its text is kept as it was written, byte for byte.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use truthdb_api::ApiError;
use truthdb_engine as engine;
use truthdb_log::StoredEvent;

use crate::server::append::EventParts;

/// The content type of an event that names none.
const CONTENT_TYPE_DEFAULT: &str = "application/json";

/// Whether payloads of this type are JSON values here.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_lowercase().ends_with("+json")
}

/// An append.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppendBody<'a> {
    pub partition: Option<u32>,
    #[serde(default, borrow)]
    pub events: Vec<EventBody<'a>>,
    #[serde(default)]
    pub expectations: Vec<ExpectationBody>,
    pub condition: Option<ConditionBody>,
    pub cursor: Option<CursorBody>,
}

/// An event of an append.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventBody<'a> {
    pub id: Option<String>,
    pub stream: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub content_type: Option<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    #[serde(borrow)]
    pub payload: Option<&'a RawValue>,
    pub payload_base64: Option<String>,
}

impl EventBody<'_> {
    /// Appends the canonical bytes to `out`.
    pub(super) fn encode(&self, index: usize, out: &mut Vec<u8>) -> Result<(), ApiError> {
        let wrong = |reason: &str| {
            ApiError::invalid_argument(format!("event {index} of the batch: {reason}"))
        };
        let id = match &self.id {
            None => Vec::new(),
            Some(id) => uuid::Uuid::try_parse(id)
                .map_err(|_| wrong("`id` is not a UUID"))?
                .as_bytes()
                .to_vec(),
        };
        let decoded;
        let (payload, default) = match (self.payload, &self.payload_base64) {
            (Some(_), Some(_)) => {
                return Err(wrong("`payload` and `payload_base64` exclude each other"));
            }
            (Some(value), None) => (value.get().as_bytes(), CONTENT_TYPE_DEFAULT),
            (None, Some(text)) => {
                decoded = BASE64
                    .decode(text)
                    .map_err(|error| wrong(&format!("`payload_base64`: {error}")))?;
                (&decoded[..], "")
            }
            (None, None) => (&[][..], ""),
        };
        let content_type = self.content_type.as_deref().unwrap_or(default);
        if self.payload.is_some() && !is_json(content_type) {
            let reason = "`payload` is for JSON; give another content type as `payload_base64`";
            return Err(wrong(reason));
        }
        let parts = EventParts {
            id: &id,
            stream: &self.stream,
            event_type: &self.event_type,
            content_type,
            tags: &self.tags,
            metadata: self
                .metadata
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect(),
            payload,
        };
        parts.encode(index, out)
    }
}

/// What is expected of a stream.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectationBody {
    pub stream: String,
    pub expected: ExpectedBody,
    pub revision: Option<u64>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum ExpectedBody {
    Any,
    NoStream,
    StreamExists,
    Exact,
}

impl ExpectationBody {
    pub(super) fn expected(&self) -> Result<engine::ExpectedRevision, ApiError> {
        match (&self.expected, self.revision) {
            (ExpectedBody::Any, None) => Ok(engine::ExpectedRevision::Any),
            (ExpectedBody::NoStream, None) => Ok(engine::ExpectedRevision::NoStream),
            (ExpectedBody::StreamExists, None) => Ok(engine::ExpectedRevision::Exists),
            (ExpectedBody::Exact, Some(n)) => Ok(engine::ExpectedRevision::Exact(n)),
            _ => Err(ApiError::invalid_argument(format!(
                "expectation on {}: `revision` goes with \"exact\", and only with it",
                self.stream
            ))),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConditionBody {
    #[serde(default)]
    pub after_sequence: u64,
    pub matches: Vec<MatchBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MatchBody {
    #[serde(default)]
    pub types: Vec<String>,
    #[serde(default)]
    pub tags: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CursorBody {
    pub name: String,
    pub position: u64,
}

/// A cursor's new position, its name being in the path.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PositionBody {
    pub position: u64,
}

/// A trim: what to plan, or a plan to execute.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrimBody {
    pub before_sequence: Option<u64>,
    pub before_timestamp_ns: Option<u64>,
    pub plan_token: Option<String>,
}

/// A committed event.
#[derive(Serialize)]
pub(super) struct EventJson {
    pub partition: u32,
    pub sequence: u64,
    pub stream: String,
    pub revision: u64,
    pub id: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub timestamp: String,
    pub timestamp_ns: u64,
    pub content_type: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

impl EventJson {
    pub(super) fn new(partition: u32, stored: &StoredEvent<'_>) -> EventJson {
        let event = stored.event();
        let json = is_json(event.content_type())
            .then(|| std::str::from_utf8(event.payload()).ok())
            .flatten()
            .and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let payload_base64 = json.is_none().then(|| BASE64.encode(event.payload()));
        EventJson {
            partition,
            sequence: stored.sequence,
            stream: event.stream().to_owned(),
            revision: stored.revision,
            id: uuid::Uuid::from_bytes(*event.id().as_bytes()).to_string(),
            event_type: event.event_type().to_owned(),
            timestamp: timestamp(stored.timestamp_ns),
            timestamp_ns: stored.timestamp_ns,
            content_type: event.content_type().to_owned(),
            tags: event.tags().map(str::to_owned).collect(),
            metadata: event
                .metadata()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            payload: json,
            payload_base64,
        }
    }
}

/// RFC 3339 with all nine digits: exact also where numbers are floating point.
pub(super) fn timestamp(ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map_or_else(|_| String::new(), |timestamp| format!("{timestamp:.9}"))
}

/// A time in a query: nanoseconds since 1970 UTC, or RFC 3339.
pub(super) fn time_of(name: &str, text: &str) -> Result<u64, ApiError> {
    if let Ok(ns) = text.parse::<u64>() {
        return Ok(ns);
    }
    text.parse::<jiff::Timestamp>()
        .ok()
        .and_then(|timestamp| u64::try_from(timestamp.as_nanosecond()).ok())
        .ok_or_else(|| {
            ApiError::invalid_argument(format!(
                "{name}={text:?} is neither RFC 3339 nor nanoseconds since 1970"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(json: &str) -> Result<Vec<u8>, ApiError> {
        let body: EventBody<'_> = serde_json::from_str(json).unwrap();
        let mut out = Vec::new();
        body.encode(0, &mut out)?;
        Ok(out)
    }

    #[test]
    fn a_json_payload_is_stored_as_it_was_written() {
        let bytes = encode(r#"{"stream":"s","type":"t","payload":{"b": 1.50,  "a":2}}"#).unwrap();
        let event = truthdb_event::EventRef::parse(&bytes).unwrap();
        assert_eq!(event.payload(), br#"{"b": 1.50,  "a":2}"#);
        assert_eq!(event.content_type(), "application/json");
    }

    #[test]
    fn another_payload_is_base64_and_mixing_is_refused() {
        let bytes = encode(r#"{"stream":"s","type":"t","payload_base64":"AAE="}"#).unwrap();
        assert_eq!(
            truthdb_event::EventRef::parse(&bytes).unwrap().payload(),
            [0, 1]
        );
        for wrong in [
            r#"{"stream":"s","type":"t","payload":1,"payload_base64":"AA=="}"#,
            r#"{"stream":"s","type":"t","payload":1,"content_type":"text/plain"}"#,
            r#"{"stream":"s","type":"t","payload_base64":"?"}"#,
            r#"{"stream":"s","type":"t","id":"7"}"#,
        ] {
            assert!(encode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_exact() {
        assert_eq!(
            timestamp(1_700_000_000_000_000_001),
            "2023-11-14T22:13:20.000000001Z"
        );
        assert_eq!(
            time_of("t", "2023-11-14T22:13:20.000000001Z").unwrap(),
            1_700_000_000_000_000_001
        );
        assert_eq!(time_of("t", "5").unwrap(), 5);
        assert!(time_of("t", "yesterday").is_err());
    }
}
