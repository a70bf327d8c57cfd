//! Modules on a running server, over HTTP and gRPC.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "each test file uses a part of what is shared"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli_support::{Ended, cli_at};
use crate::server_support::{Answer, PATIENCE, Server};

/// Publishes bytes over HTTP.
pub fn publish(server: &Server, wasm: &[u8]) -> Answer {
    publish_at(server.http, wasm)
}

/// The same, from another thread than the one that has the server.
pub fn publish_at(http: SocketAddr, wasm: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /v1/modules HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: \
         application/wasm\r\ncontent-length: {}\r\n\r\n",
        wasm.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(wasm).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes)
}

/// Publishes and activates a module over HTTP; answers its hash and the activation's token.
pub fn deploy(server: &Server, wasm: &[u8], activation: Value) -> (String, String) {
    let published = retried(|| publish(server, wasm));
    assert_eq!(published.status, 200, "{}", published.body);
    let published = published.json();
    let (module, hash) = (published["module"].as_str().unwrap(), &published["hash"]);
    let mut body = activation;
    body["hash"] = hash.clone();
    let decided = post(
        server,
        &format!("/v1/modules/{module}/activate"),
        &body.to_string(),
    );
    assert_eq!(decided.status, 200, "{}", decided.body);
    let token = decided.json()["token"].as_str().unwrap().to_owned();
    (hash.as_str().unwrap().to_owned(), token)
}

/// Appends one event whose payload is this text; answers its token.
pub fn append(server: &Server, stream: &str, event_type: &str, text: &str) -> String {
    let answer = try_append(server, stream, event_type, text);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    format!("{}:{}", answer["partition"], answer["last_sequence"])
}

/// The same, whatever becomes of it once a validator can decide.
pub fn try_append(server: &Server, stream: &str, event_type: &str, text: &str) -> Answer {
    retried(|| append_once(server, stream, event_type, text))
}

/// The same, asked once.
pub fn append_once(server: &Server, stream: &str, event_type: &str, text: &str) -> Answer {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(text);
    let body = json!({"events": [
        {"stream": stream, "type": event_type, "content_type": "text/plain",
            "payload_base64": payload},
    ]});
    server.post("/v1/append", &body.to_string())
}

/// Asks until it is answered.
pub fn get(server: &Server, path: &str) -> Answer {
    retried(|| server.get(path))
}

/// The same for what changes something, or has a body.
pub fn post(server: &Server, path: &str, body: &str) -> Answer {
    retried(|| server.post(path, body))
}

/// Runs a command on a server until it is answered.
pub fn cli_patient(server: &Server, arguments: &[&str]) -> Ended {
    let begun = Instant::now();
    loop {
        let ended = cli_at(server, arguments);
        if !ended.stderr.contains("NOT_YET") || begun.elapsed() > PATIENCE {
            return ended;
        }
    }
}

/// Asks again as long as the answer says that it may be given later, as any client has to: validators
/// and state are made ready beside what is asked.
pub fn retried(ask: impl Fn() -> Answer) -> Answer {
    let begun = Instant::now();
    loop {
        let answer = ask();
        let later = matches!(answer.status, 429 | 503).then(|| answer.json());
        let again = later.is_some_and(|error| error["retryable"] == true);
        if !again || begun.elapsed() > PATIENCE {
            return answer;
        }
    }
}

/// The first number of a row's value: the balance of an account.
pub fn balance(row: &Value) -> i64 {
    use base64::Engine as _;
    let value = row["value_base64"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(value);
    i64::from_le_bytes(bytes.unwrap()[..8].try_into().unwrap())
}
