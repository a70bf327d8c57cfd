//! Modules on a running server, over HTTP and gRPC.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of what is shared"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::server_support::{Answer, PATIENCE, Server};

/// Publishes bytes over HTTP.
pub fn publish(server: &Server, wasm: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(server.http).unwrap();
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
    let published = publish(server, wasm);
    assert_eq!(published.status, 200, "{}", published.body);
    let published = published.json();
    let (module, hash) = (published["module"].as_str().unwrap(), &published["hash"]);
    let mut body = activation;
    body["hash"] = hash.clone();
    let decided = server.post(&format!("/v1/modules/{module}/activate"), &body.to_string());
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

/// The same, whatever becomes of it.
pub fn try_append(server: &Server, stream: &str, event_type: &str, text: &str) -> Answer {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(text);
    let body = json!({"events": [
        {"stream": stream, "type": event_type, "content_type": "text/plain",
            "payload_base64": payload},
    ]});
    server.post("/v1/append", &body.to_string())
}

/// The first number of a row's value: the balance of an account.
pub fn balance(row: &Value) -> i64 {
    use base64::Engine as _;
    let value = row["value_base64"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(value);
    i64::from_le_bytes(bytes.unwrap()[..8].try_into().unwrap())
}
