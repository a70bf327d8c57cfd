//! Events as JSON lines, in the same shape as over HTTP: what `read` and `subscribe` print, `append`
//! takes.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use truthdb_client::{EventBuilder, EventId, NewBatch, RecordedEvent};

use super::output;

/// The content type of a JSON payload that names none.
const CONTENT_TYPE_DEFAULT: &str = "application/json";

/// Whether payloads of this type are JSON values here.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_lowercase().ends_with("+json")
}

/// A committed event.
#[derive(Serialize)]
pub(crate) struct EventJson<'a> {
    partition: u32,
    sequence: u64,
    stream: &'a str,
    revision: u64,
    id: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    timestamp: String,
    timestamp_ns: u64,
    content_type: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> EventJson<'a> {
    /// An event as the client got it.
    pub(crate) fn new(recorded: &'a RecordedEvent) -> EventJson<'a> {
        let event = recorded.event();
        // A payload that spans lines would break the lines of the output.
        let json = is_json(event.content_type())
            .then(|| std::str::from_utf8(event.payload()).ok())
            .flatten()
            .filter(|text| !text.contains(['\n', '\r']))
            .and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let payload_base64 = json.is_none().then(|| BASE64.encode(event.payload()));
        EventJson {
            partition: recorded.partition(),
            sequence: recorded.sequence(),
            stream: event.stream(),
            revision: recorded.revision(),
            id: event.id().to_string(),
            event_type: event.event_type(),
            timestamp: output::timestamp(recorded.timestamp_ns()),
            timestamp_ns: recorded.timestamp_ns(),
            content_type: event.content_type(),
            tags: event.tags().collect(),
            metadata: event.metadata().collect(),
            payload: json,
            payload_base64,
        }
    }
}

/// One line of events to append. What only a committed event has is accepted and ignored, so that
/// what was read can be appended elsewhere.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventLine<'a> {
    id: Option<String>,
    /// The event's stream.
    pub stream: String,
    #[serde(rename = "type")]
    event_type: String,
    content_type: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    payload_base64: Option<String>,
    #[serde(rename = "partition")]
    _partition: Option<IgnoredAny>,
    #[serde(rename = "sequence")]
    _sequence: Option<IgnoredAny>,
    #[serde(rename = "revision")]
    _revision: Option<IgnoredAny>,
    #[serde(rename = "timestamp")]
    _timestamp: Option<IgnoredAny>,
    #[serde(rename = "timestamp_ns")]
    _timestamp_ns: Option<IgnoredAny>,
}

impl EventLine<'_> {
    /// Adds the event to a batch.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub(crate) fn push_to(&self, batch: &mut NewBatch) -> Result<(), String> {
        let decoded;
        let (payload, default) = match (self.payload, &self.payload_base64) {
            (Some(_), Some(_)) => {
                return Err("`payload` and `payload_base64` exclude each other".to_owned());
            }
            (Some(value), None) => (value.get().as_bytes(), CONTENT_TYPE_DEFAULT),
            (None, Some(text)) => {
                decoded = BASE64
                    .decode(text)
                    .map_err(|error| format!("`payload_base64`: {error}"))?;
                (&decoded[..], "")
            }
            (None, None) => (&[][..], ""),
        };
        let content_type = self.content_type.as_deref().unwrap_or(default);
        if self.payload.is_some() && !is_json(content_type) {
            let reason = "`payload` is for JSON; give another content type as `payload_base64`";
            return Err(reason.to_owned());
        }
        let mut event = EventBuilder::new(&self.stream, &self.event_type)
            .content_type(content_type)
            .payload(payload);
        if let Some(id) = &self.id {
            let id: EventId = id.parse().map_err(|error| format!("`id`: {error}"))?;
            event = event.id(id);
        }
        for tag in &self.tags {
            event = event.tag(tag);
        }
        for (key, value) in &self.metadata {
            event = event.metadata(key, value);
        }
        batch
            .push(event)
            .map(|_| ())
            .map_err(|error| super::chain_text(&error))
    }
}

/// A payload in a few words for a line of a table: text as it is, anything else by its size.
pub(crate) fn preview(payload: &[u8], chars_max: usize) -> String {
    let text = match std::str::from_utf8(payload) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !c.is_whitespace()) => text,
        _ => return format!("<{} bytes>", payload.len()),
    };
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == chars_max {
            line.push('…');
            break;
        }
        line.push(if c.is_whitespace() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(line: &str) -> Result<NewBatch, String> {
        let mut batch = NewBatch::new();
        let line: EventLine<'_> = serde_json::from_str(line).map_err(|e| e.to_string())?;
        line.push_to(&mut batch)?;
        Ok(batch)
    }

    #[test]
    fn a_line_that_was_read_can_be_appended_elsewhere_with_its_id() {
        let line = r#"{"partition":0,"sequence":7,"stream":"s","revision":3,
            "id":"01010101-0101-0101-0101-010101010101","type":"t","timestamp":"x",
            "timestamp_ns":5,"content_type":"application/json","payload":{"a":1}}"#;
        let batch = push(line).unwrap();
        assert_eq!(
            batch.ids().collect::<Vec<_>>(),
            [EventId::from_bytes([1; 16])]
        );
    }

    #[test]
    fn a_line_with_a_wrong_field_or_value_is_refused() {
        for wrong in [
            r#"{"stream":"s"}"#,
            r#"{"stream":"s","type":"t","paylaod":1}"#,
            r#"{"stream":"s","type":"t","payload":1,"payload_base64":"AA=="}"#,
            r#"{"stream":"s","type":"t","payload":1,"content_type":"text/plain"}"#,
            r#"{"stream":"","type":"t"}"#,
            r#"{"stream":"s","type":"t","id":"7"}"#,
        ] {
            assert!(push(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_preview_is_one_short_line() {
        assert_eq!(preview(b"{\"a\":\n1}", 60), "{\"a\": 1}");
        assert_eq!(preview(b"abcdef", 3), "abc…");
        assert_eq!(preview(&[0, 1, 2], 60), "<3 bytes>");
    }
}
