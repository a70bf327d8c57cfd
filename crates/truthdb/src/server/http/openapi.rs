//! The OpenAPI description of HTTP/JSON, made from the table of operations.

use serde_json::{Map, Value, json};

use crate::server::access::{Door, Need, OPERATIONS, Operation};

/// What the description says about a route: method, path, summary, query parameters, whether it
/// takes a body (a schema's name), and what it answers (a schema's name, or a media type).
struct About {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    query: &'static [(&'static str, &'static str)],
    body: Option<&'static str>,
    answer: &'static str,
}

const READ_QUERY: &[(&str, &str)] = &[
    ("from", "Sequence to start at, inclusive."),
    (
        "from_time",
        "Time to start at: RFC 3339, or nanoseconds since 1970 UTC.",
    ),
    ("direction", "`forward` (default) or `backward`."),
    (
        "limit",
        "At most this many events, 1 to 10000; 100 without it.",
    ),
    ("until", "Forward only: nothing after this sequence."),
    (
        "type",
        "Only events of this type; may be repeated: any of them.",
    ),
    (
        "tag",
        "Only events with this tag; may be repeated: all of them.",
    ),
    ("stream_prefix", "Only streams whose names begin so."),
    (
        "include_system",
        "`true`: also the system's streams, whose names begin with `$`.",
    ),
];
const STREAM_QUERY: &[(&str, &str)] = &[
    ("from", "Revision to start at, inclusive."),
    ("direction", "`forward` (default) or `backward`."),
    (
        "limit",
        "At most this many events, 1 to 10000; 100 without it.",
    ),
    (
        "partition",
        "Only for streams of the system, which exist once in each partition.",
    ),
];
const LIST_QUERY: &[(&str, &str)] = &[
    ("prefix", "Only names that begin so."),
    ("limit", "At most this many, up to 1000; 100 without it."),
    ("page_token", "`next_page_token` of the answer before."),
];
const SUBSCRIBE_QUERY: &[(&str, &str)] = &[
    (
        "partition",
        "The partition; may be left out when there is only one.",
    ),
    (
        "from",
        "Sequence to start at, inclusive, or `head` for what comes only.",
    ),
    (
        "from_time",
        "Time to start at: RFC 3339, or nanoseconds since 1970 UTC.",
    ),
    ("cursor", "Start after the position of this cursor."),
    (
        "type",
        "Only events of this type; may be repeated: any of them.",
    ),
    (
        "tag",
        "Only events with this tag; may be repeated: all of them.",
    ),
    ("stream_prefix", "Only streams whose names begin so."),
    (
        "include_system",
        "`true`: also the system's streams, whose names begin with `$`.",
    ),
];

const PARTITION_QUERY: &[(&str, &str)] = &[("partition", "Only this partition; without it all.")];
const ROW_QUERY: &[(&str, &str)] = &[
    (
        "key",
        "The key. Its parts are given one after another, such as `key=N14228&key=u64:17`: `text:` \
         (without a prefix too), `u8:` to `u128:`, `i8:` to `i128:`, `bool:`, `hex:`, `raw:`.",
    ),
    AT,
    AS_OF,
    MIN_SEQUENCE,
    DEADLINE,
    GENERATION,
    PARTITION_QUERY[0],
];
const ROWS_QUERY: &[(&str, &str)] = &[
    ("start", "Keys from here on, included; parts as for `key`."),
    ("end", "Keys before this; parts as for `key`."),
    (
        "prefix",
        "Only keys that begin so; parts as for `key`. The beginning of a text is `raw:`.",
    ),
    ("reverse", "`true`: the last key first."),
    (
        "limit",
        "At most this many rows, 1 to 10000; 100 without it.",
    ),
    (
        "page",
        "`next` of the answer before; it also holds the moment.",
    ),
    AT,
    AS_OF,
    MIN_SEQUENCE,
    DEADLINE,
    GENERATION,
    PARTITION_QUERY[0],
];
const AT: (&str, &str) = (
    "at",
    "As of exactly these sequences: a token, such as `0:17` or `0:17,1:4`. The answer has the same \
     rows for ever.",
);
const AS_OF: (&str, &str) = (
    "as_of",
    "As of this time: RFC 3339, or nanoseconds since 1970 UTC.",
);
const MIN_SEQUENCE: (&str, &str) = (
    "min_sequence",
    "Wait until the state holds at least these sequences: a token.",
);
const DEADLINE: (&str, &str) = ("deadline_ms", "Answer within so many milliseconds.");
const GENERATION: (&str, &str) = (
    "generation",
    "Ask this generation instead of the one that was current at the moment.",
);

const fn get(path: &'static str, summary: &'static str, answer: &'static str) -> About {
    About {
        method: "GET",
        path,
        summary,
        query: &[],
        body: None,
        answer,
    }
}

const fn query(
    path: &'static str,
    summary: &'static str,
    query: &'static [(&'static str, &'static str)],
    answer: &'static str,
) -> About {
    About {
        method: "GET",
        path,
        summary,
        query,
        body: None,
        answer,
    }
}

const fn post(
    path: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
) -> About {
    About {
        method: "POST",
        path,
        summary,
        query: &[],
        body: Some(body),
        answer,
    }
}

const ROUTES: &[About] = &[
    get("/healthz", "The process answers.", "text/plain"),
    get(
        "/readyz",
        "Whether every partition serves; 503 if not.",
        "Ready",
    ),
    get("/openapi.json", "This description.", "application/json"),
    get(
        "/metrics",
        "Metrics in the text format of Prometheus.",
        "text/plain",
    ),
    get(
        "/v1/database",
        "Facts that do not change, and limits.",
        "Database",
    ),
    get(
        "/v1/status",
        "What the node and its partitions are doing.",
        "Status",
    ),
    post(
        "/v1/append",
        "Append one batch atomically.",
        "Append",
        "Appended",
    ),
    query(
        "/v1/subscribe",
        "Follow a partition by server-sent events.",
        SUBSCRIBE_QUERY,
        "text/event-stream",
    ),
    query(
        "/v1/streams/{stream}/events",
        "Read a stream.",
        STREAM_QUERY,
        "StreamPage",
    ),
    query(
        "/v1/streams/{stream}/head",
        "The newest revision of a stream.",
        &[("partition", "Only for streams of the system.")],
        "StreamHead",
    ),
    query(
        "/v1/partitions/{partition}/events",
        "Read a partition.",
        READ_QUERY,
        "Page",
    ),
    query(
        "/v1/partitions/{partition}/streams",
        "The streams of a partition.",
        LIST_QUERY,
        "Streams",
    ),
    query(
        "/v1/partitions/{partition}/cursors",
        "The cursors of a partition.",
        LIST_QUERY,
        "Cursors",
    ),
    get(
        "/v1/partitions/{partition}/cursors/{name}",
        "A cursor.",
        "Cursor",
    ),
    post(
        "/v1/partitions/{partition}/cursors/{name}",
        "Commit a cursor's position.",
        "Position",
        "Cursor",
    ),
    get(
        "/v1/partitions/{partition}/events/{sequence}/proof",
        "An inclusion proof of an event.",
        "application/json",
    ),
    post(
        "/v1/partitions/{partition}/trim",
        "Plan a trim, or execute a plan.",
        "Trim",
        "Trimmed",
    ),
    get(
        "/v1/modules",
        "All modules and folds: how far they are, and what is halted.",
        "Modules",
    ),
    post(
        "/v1/modules",
        "Publish a module: the body is its bytes. It does nothing before it is activated.",
        "application/wasm",
        "Published",
    ),
    get("/v1/modules/{module}", "One module.", "Module"),
    post(
        "/v1/modules/{module}/activate",
        "Activate published code: the first time, or as an upgrade.",
        "Activate",
        "Decision",
    ),
    post(
        "/v1/modules/{module}/halt",
        "Halt a module where it is, until it is resumed.",
        "Reason",
        "Decision",
    ),
    post(
        "/v1/modules/{module}/resume",
        "Let a halted module try again at the batch that it stopped at.",
        "Reason",
        "Decision",
    ),
    post(
        "/v1/modules/{module}/skip",
        "Record that a halted module is not given some events.",
        "Skip",
        "Decision",
    ),
    post(
        "/v1/modules/{module}/remove",
        "Remove a module. Its states of before can still be asked for.",
        "Nothing",
        "Decision",
    ),
    query(
        "/v1/snapshots",
        "The snapshots of state, oldest first.",
        PARTITION_QUERY,
        "Snapshots",
    ),
    post(
        "/v1/snapshots",
        "Ask for a snapshot; it is written in the background.",
        "TakeSnapshot",
        "Token",
    ),
    post(
        "/v1/snapshots/prune",
        "Remove snapshots that need not stay; answers the removed ones.",
        "Prune",
        "Snapshots",
    ),
    query(
        "/v1/state/{module}/{table}/row",
        "The value of one key, in the partitions that have it.",
        ROW_QUERY,
        "Rows",
    ),
    query(
        "/v1/state/{module}/{table}/rows",
        "A page of a range of keys, in order.",
        ROWS_QUERY,
        "Rows",
    ),
    post(
        "/v1/query/{operator}",
        "The answer of a query operator.",
        "Query",
        "QueryAnswer",
    ),
];

/// The description, as JSON text.
pub(crate) fn document() -> String {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let Door::Http(method, path) = operation.door else {
            continue;
        };
        let about = ROUTES
            .iter()
            .find(|about| about.method == method && about.path == path)
            .expect("every route is described, which a test checks");
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method.to_lowercase()] = describe(operation, about);
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "TruthDB",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "An event-sourced database. Errors are JSON of schema Error, with the \
                            HTTP status of their code. Numbers are 64-bit; `timestamp` gives the \
                            time exactly also where numbers are floating point.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:7433"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
        },
    });
    let mut text = serde_json::to_string_pretty(&document).expect("values are JSON");
    text.push('\n');
    text
}

fn describe(operation: &Operation, about: &About) -> Value {
    let mut summary = about.summary.to_owned();
    match operation.need {
        Need::Nothing => {}
        Need::Token => summary.push_str(" Needs a valid token."),
        Need::Permission(permission) => {
            summary.push_str(&format!(" Needs the permission `{}`.", permission.name()));
        }
    }
    if let Some(role) = operation.role {
        summary.push_str(&format!(" Needs the role `{}`.", role.name()));
    }
    let parameters: Vec<Value> = path_parameters(about.path)
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": schema_of(name)}))
        .chain(about.query.iter().map(|(name, text)| {
            json!({"name": name, "in": "query", "description": text, "schema": {"type": "string"}})
        }))
        .collect();
    let content = if about.answer.contains('/') {
        json!({about.answer: {}})
    } else {
        json!({"application/json": {"schema": reference(about.answer)}})
    };
    let error = json!({
        "description": "The request failed.",
        "content": {"application/json": {"schema": reference("Error")}},
    });
    let mut described = json!({
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": {"description": "Done.", "content": content}, "default": error},
    });
    if operation.need != Need::Nothing {
        described["security"] = json!([{"token": []}]);
    }
    if let Some(body) = about.body {
        let content = if body.contains('/') {
            json!({body: {}})
        } else {
            json!({"application/json": {"schema": reference(body)}})
        };
        described["requestBody"] = json!({"required": true, "content": content});
    }
    described
}

fn path_parameters(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.split('{')
        .skip(1)
        .filter_map(|part| part.split('}').next())
}

fn schema_of(name: &str) -> Value {
    match name {
        "partition" | "sequence" => integer(),
        _ => json!({"type": "string"}),
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn integer() -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0})
}

fn string() -> Value {
    json!({"type": "string"})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn nullable_integer() -> Value {
    json!({"type": ["integer", "null"], "format": "int64", "minimum": 0})
}

/// An object; the names in `required` must be there.
fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn schemas() -> Value {
    let mut all = data_schemas();
    for more in [operation_schemas(), module_schemas(), state_schemas()] {
        if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
            all.extend(more);
        }
    }
    all
}

/// What events and their pages look like.
fn data_schemas() -> Value {
    let text_map = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let boolean = json!({"type": "boolean"});
    json!({
        "Error": object(&["code", "message", "outcome", "retryable"], json!({
            "code": string(), "message": string(),
            "outcome": {"enum": ["DID_NOT_HAPPEN", "MAY_HAVE_HAPPENED"]},
            "retryable": boolean, "action": string(), "actual_revision": integer(),
            "sequence": integer(), "retry_after_ms": integer(), "limit": string(),
            "limit_value": integer(), "role": string(), "stream": string(),
            "partition": integer(), "module": string(), "event_index": integer(),
            "reason_code": integer(),
        })),
        "NewEvent": object(&["stream", "type"], json!({
            "id": {"type": "string", "format": "uuid",
                "description": "Makes a repeated append idempotent. Without it the server makes one."},
            "stream": string(), "type": string(),
            "content_type": {"type": "string",
                "description": "`application/json` when there is a `payload` and nothing is said."},
            "tags": list(string()), "metadata": text_map,
            "payload": {"description": "A JSON value, stored as it is written."},
            "payload_base64": {"type": "string", "description": "Any other payload."},
        })),
        "Append": object(&["events"], json!({
            "partition": integer(), "events": list(reference("NewEvent")),
            "expectations": list(object(&["stream", "expected"], json!({
                "stream": string(),
                "expected": {"enum": ["any", "no_stream", "stream_exists", "exact"]},
                "revision": integer(),
            }))),
            "condition": object(&["matches"], json!({
                "after_sequence": integer(),
                "matches": list(object(&[], json!({
                    "types": list(string()), "tags": list(string()),
                }))),
            })),
            "cursor": object(&["name", "position"], json!({
                "name": string(), "position": integer(),
            })),
        })),
        "Appended": object(&["partition", "first_sequence", "last_sequence"], json!({
            "partition": integer(), "first_sequence": integer(), "last_sequence": integer(),
            "timestamp_ns": integer(),
            "streams": list(object(&["stream", "last_revision"], json!({
                "stream": string(), "last_revision": integer(),
            }))),
            "already_appended": boolean, "durability": string(),
        })),
        "Event": object(&["partition", "sequence", "stream", "revision", "id", "type"], json!({
            "partition": integer(), "sequence": integer(), "stream": string(),
            "revision": integer(), "id": {"type": "string", "format": "uuid"}, "type": string(),
            "timestamp": {"type": "string", "format": "date-time"}, "timestamp_ns": integer(),
            "content_type": string(), "tags": list(string()), "metadata": text_map,
            "payload": {"description": "When the content type says JSON."},
            "payload_base64": {"type": "string", "description": "Otherwise."},
        })),
        "Page": object(&["events", "next", "position", "head_sequence"], json!({
            "events": list(reference("Event")),
            "next": {"type": ["integer", "null"], "format": "int64",
                "description": "`from` of the next page; null: nothing is left."},
            "position": integer(), "head_sequence": integer(),
        })),
        "StreamPage": object(&["partition", "events", "next"], json!({
            "partition": integer(), "events": list(reference("Event")),
            "next": nullable_integer(),
        })),
    })
}

/// What the other operations take and give.
fn operation_schemas() -> Value {
    let boolean = json!({"type": "boolean"});
    json!({
        "StreamHead": object(&["partition", "exists"], json!({
            "partition": integer(), "exists": boolean, "last_revision": nullable_integer(),
            "last_sequence": nullable_integer(),
        })),
        "Cursor": object(&["partition", "name", "position"], json!({
            "partition": integer(), "name": string(), "position": integer(),
            "sequence": integer(), "timestamp_ns": integer(),
        })),
        "Cursors": object(&["cursors"], json!({
            "cursors": list(reference("Cursor")),
            "next_page_token": {"type": ["string", "null"]},
        })),
        "Streams": object(&["streams"], json!({
            "streams": list(object(&["stream", "last_revision", "last_sequence"], json!({
                "stream": string(), "last_revision": integer(), "last_sequence": integer(),
            }))),
            "next_page_token": {"type": ["string", "null"]},
        })),
        "Position": object(&["position"], json!({"position": integer()})),
        "Trim": object(&[], json!({
            "before_sequence": integer(), "before_timestamp_ns": integer(),
            "plan_token": string(),
        })),
        "Trimmed": object(&["partition", "segments", "executed"], json!({
            "partition": integer(), "segments": list(integer()), "events": integer(),
            "bytes": integer(), "first_sequence": integer(), "executed": boolean,
            "plan_token": {"type": ["string", "null"]},
        })),
        "Ready": object(&["ready", "partitions"], json!({
            "ready": boolean, "stopping": boolean,
            "partitions": list(object(&["partition", "state"], json!({
                "partition": integer(), "state": string(),
            }))),
            "modules_halted": integer(), "modules_waiting": integer(),
            "modules_catching_up": integer(),
        })),
        "Database": {"type": "object"},
        "Status": {"type": "object"},
    })
}

/// A moment as text.
fn token() -> Value {
    json!({"type": "string", "description": "`partition:sequence`, separated by commas."})
}

/// What the life of modules takes and gives.
fn module_schemas() -> Value {
    let boolean = json!({"type": "boolean"});
    let kind = json!({"enum": ["validator", "reducer", "processor", "query"]});
    let mode = json!({"enum": ["rebuild", "continue", "migrate"]});
    let state = json!({"enum": [
        "live", "catching-up", "loading", "halted", "waiting", "retired",
    ]});
    json!({
        "Published": object(&["module", "hash"], json!({
            "module": string(), "hash": string(), "bytes": integer(), "kind": kind,
            "existed": boolean, "token": token(),
        })),
        "Activate": object(&["hash"], json!({
            "hash": {"type": "string",
                "description": "Of the published code, or as many of its first digits as make it unique."},
            "mode": mode,
            "wasi": {"enum": ["none", "deterministic"]},
            "limits": {"type": "object", "additionalProperties": integer()},
        })),
        "Reason": object(&[], json!({"partition": integer(), "reason": string()})),
        "Skip": object(&["partition", "first_sequence", "last_sequence"], json!({
            "partition": integer(), "first_sequence": integer(), "last_sequence": integer(),
            "reason": string(),
        })),
        "Nothing": object(&[], json!({})),
        "Decision": object(&["module", "generation", "token"], json!({
            "module": string(), "generation": integer(), "token": token(),
        })),
        "Module": object(&["module", "kind", "generations"], json!({
            "module": string(), "kind": kind, "tables": list(string()), "hash": string(),
            "generations": list(object(&["partition", "generation", "state"], json!({
                "partition": integer(), "generation": integer(), "hash": string(), "mode": mode,
                "current": boolean, "activated_sequence": integer(),
                "applied_sequence": integer(), "committed_sequence": integer(), "state": state,
                "reason": string(), "action": string(), "halted_sequence": nullable_integer(),
                "fingerprint": string(), "rows": integer(), "bytes": integer(),
                "events": integer(), "emitted": integer(), "emitted_through": integer(),
                "fuel": integer(),
            }))),
            "published": list(object(&["hash", "bytes"], json!({
                "hash": string(), "bytes": integer(),
            }))),
        })),
        "Modules": object(&["modules", "folds"], json!({
            "modules": list(reference("Module")),
            "folds": list(object(&["partition"], json!({
                "partition": integer(), "applied_sequence": integer(),
                "committed_sequence": integer(), "snapshot_sequence": integer(),
                "problem": string(),
            }))),
        })),
        "Snapshots": object(&["snapshots"], json!({
            "snapshots": list(object(&["partition", "sequence"], json!({
                "partition": integer(), "sequence": integer(), "timestamp": string(),
                "timestamp_ns": integer(), "bytes": integer(),
                "modules": list(object(&["module", "generation"], json!({
                    "module": string(), "generation": integer(), "applied_sequence": integer(),
                    "fingerprint": string(),
                }))),
            }))),
        })),
        "TakeSnapshot": object(&[], json!({"partition": integer()})),
        "Token": object(&["token"], json!({"token": token()})),
        "Prune": object(&["keep_last"], json!({
            "partition": integer(), "keep_last": integer(), "slots_log2": integer(),
        })),
    })
}

/// What questions about state take and give.
fn state_schemas() -> Value {
    let row = |mut properties: Value| {
        for name in ["key", "value"] {
            properties[format!("{name}_base64")] = string();
            properties[format!("{name}_text")] =
                json!({"type": "string", "description": "Where the bytes are text."});
        }
        list(object(&["key_base64", "value_base64"], properties))
    };
    json!({
        "Stamp": object(&["partition", "module", "sequence", "fingerprint"], json!({
            "partition": integer(), "module": string(), "generation": integer(),
            "hash": string(), "sequence": integer(), "timestamp": string(),
            "timestamp_ns": integer(), "fingerprint": string(),
        })),
        "Rows": object(&["rows", "stamps", "token", "next"], json!({
            "rows": row(json!({"partition": integer()})),
            "stamps": list(reference("Stamp")), "token": token(),
            "next": {"type": ["string", "null"],
                "description": "`page` of the next request; null: nothing follows."},
        })),
        "Query": object(&[], json!({
            "arguments_text": string(), "arguments_base64": string(), "at": token(),
            "as_of": string(), "min_sequence": token(), "deadline_ms": integer(),
            "generation": integer(), "partition": integer(),
        })),
        "QueryAnswer": object(&["rows", "stamps", "token"], json!({
            "rows": row(json!({})), "operator_hash": string(),
            "stamps": list(reference("Stamp")), "token": token(), "fuel": integer(),
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TRUTHDB_BLESS=1 cargo test` writes the file.
    #[test]
    fn the_description_is_the_one_in_the_docs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        if std::env::var_os("TRUTHDB_BLESS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, document(), "run the tests once with TRUTHDB_BLESS=1");
    }

    #[test]
    fn every_described_route_is_an_operation_and_every_schema_exists() {
        for about in ROUTES {
            let door = Door::Http(about.method, about.path);
            assert!(
                OPERATIONS.iter().any(|one| one.door == door),
                "{}",
                about.path
            );
        }
        let text = document();
        let document: Value = serde_json::from_str(&text).unwrap();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(
                document["components"]["schemas"][name].is_object(),
                "{name}"
            );
        }
    }
}
