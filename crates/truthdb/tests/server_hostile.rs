//! Requests that are wrong, and clients that mean no good: each gets a documented error, and the
//! server keeps its memory and goes on.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod server_support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bytes::BytesMut;
use serde_json::json;
use server_support::{Answer, PATIENCE, Server};
use truthdb_api::native::{self, ClientFrame, Hello, ServerFrame};
use truthdb_api::{ApiError, ErrorCode};

fn hello() -> BytesMut {
    let mut out = BytesMut::new();
    let version = native::PROTOCOL_VERSION;
    Hello {
        version_min: version,
        version_max: version,
        token: Default::default(),
    }
    .encode(&mut out)
    .unwrap();
    out
}

/// A raw connection of the native protocol.
struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Raw {
    fn connect(server: &Server) -> Raw {
        let stream = TcpStream::connect(server.native).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw {
            stream,
            buffer: BytesMut::new(),
        }
    }

    fn greeted(server: &Server) -> Raw {
        let mut raw = Raw::connect(server);
        raw.send(&hello());
        assert!(matches!(raw.frame(), Some((0, ServerFrame::Welcome(_)))));
        raw
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame; `None` at the end of the connection.
    fn frame(&mut self) -> Option<(u32, ServerFrame)> {
        loop {
            if let Some(raw) = native::split_frame(&mut self.buffer).unwrap() {
                return Some((raw.request_id, ServerFrame::decode(raw).unwrap()));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
            }
        }
    }

    fn error(&mut self, id: u32) -> ApiError {
        match self.frame() {
            Some((found, ServerFrame::Error(error))) if found == id => error,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn wrong_requests_get_documented_errors() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(
        &dir,
        "[limits]\nrequest_bytes_max = \"1 MiB\"\n",
        &["--partitions", "4"],
    );
    let append = |value: serde_json::Value| server.post("/v1/append", &value.to_string());
    let one = |stream: &str| json!([{"stream": stream, "type": "t"}]);
    assert_eq!(append(json!({"events": one("s")})).status, 200);
    let home = server.get("/v1/streams/s/head").json()["partition"]
        .as_u64()
        .unwrap();

    let wrong = append(json!({"events": one("s"), "partition": (home + 1) % 4}));
    assert_eq!(wrong.error(400, "WRONG_PARTITION")["partition"], home);
    let expectations = json!([{"stream": "s", "expected": "no_stream"}]);
    let conflict = append(json!({"events": one("s"), "expectations": expectations}));
    let conflict = conflict.error(409, "REVISION_CONFLICT");
    assert_eq!(
        (&conflict["actual_revision"], &conflict["outcome"]),
        (&json!(0), &json!("DID_NOT_HAPPEN"))
    );
    server
        .get("/v1/streams/none/events")
        .error(404, "STREAM_NOT_FOUND");
    server
        .get("/v1/partitions/9/events")
        .error(404, "NOT_FOUND");
    server
        .get("/v1/partitions/x/events")
        .error(400, "INVALID_ARGUMENT");
    server
        .get("/v1/partitions/0/events?form=1")
        .error(400, "INVALID_ARGUMENT");
    server
        .get("/v1/partitions/0/events?limit=10001")
        .error(413, "LIMIT_EXCEEDED");
    server.get("/v1/nothing").error(404, "NOT_FOUND");
    server
        .http("DELETE", "/v1/append", &[], "")
        .error(405, "INVALID_ARGUMENT");
    server
        .post("/v1/append", "{\"events\": [")
        .error(400, "INVALID_ARGUMENT");
    append(json!({"evnets": []})).error(400, "INVALID_ARGUMENT");
    append(json!({"events": []})).error(400, "INVALID_ARGUMENT");
    append(json!({"events": one("$cursor/x")})).error(400, "INVALID_ARGUMENT");
    let long = "s".repeat(256);
    let limit = append(json!({"events": one(&long)})).error(413, "LIMIT_EXCEEDED");
    assert_eq!(limit["limit"], "stream_name_bytes_max", "{limit}");
    let big = json!({"events": [{"stream": "s", "type": "t", "payload": "x".repeat(2 << 20)}]});
    let limit = append(big).error(413, "LIMIT_EXCEEDED");
    assert_eq!(limit["limit"], "request_bytes_max");
    // Nothing of all that was appended.
    assert_eq!(server.get("/v1/streams/s/head").json()["last_revision"], 0);
    server.stop_cleanly();
}

#[tokio::test]
async fn a_message_of_grpc_above_the_limit_is_refused_before_it_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "[limits]\nrequest_bytes_max = \"1 MiB\"\n", &[]);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.http));
    let channel = channel.unwrap().connect().await.unwrap();
    let mut log = truthdb_api::v1::log_client::LogClient::new(channel);
    let request = |bytes: usize| truthdb_api::v1::AppendRequest {
        events: vec![truthdb_api::v1::NewEvent {
            id: vec![1; 16].into(),
            stream: "s".to_owned(),
            r#type: "t".to_owned(),
            payload: vec![0; bytes].into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let status = log.append(request(2 << 20)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    // Nothing was appended, and the connection goes on.
    let done = log.append(request(100)).await.unwrap().into_inner();
    assert_eq!(done.first_sequence, 1);
    server.stop_cleanly();
}

#[tokio::test]
async fn bytes_that_are_no_message_of_grpc_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.http));
    let channel = channel.unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    // Field 2 of AppendRequest is a varint; this is a cursor cut short.
    let nonsense = prost_types::Any {
        type_url: "\u{1}".repeat(9),
        value: vec![0xff; 40],
    };
    let path = http::uri::PathAndQuery::from_static("/truthdb.v1.Log/Append");
    let codec = tonic_prost::ProstCodec::<prost_types::Any, ()>::default();
    let status = grpc
        .unary(tonic::Request::new(nonsense), path, codec)
        .await
        .unwrap_err();
    assert!(
        matches!(
            status.code(),
            tonic::Code::Internal | tonic::Code::InvalidArgument
        ),
        "{status:?}"
    );
    server.stop_cleanly();
}

#[test]
fn wrong_frames_are_refused_and_the_connection_goes_on_where_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);

    let mut stranger = Raw::connect(&server);
    stranger.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_ne!(stranger.error(0).code, ErrorCode::Internal);
    assert!(stranger.frame().is_none());

    let mut old = Raw::connect(&server);
    let mut out = BytesMut::new();
    Hello {
        version_min: 900,
        version_max: 901,
        token: Default::default(),
    }
    .encode(&mut out)
    .unwrap();
    old.send(&out);
    assert_eq!(old.error(0).code, ErrorCode::InvalidArgument);

    let mut huge = Raw::greeted(&server);
    huge.send(&[0xff; 12]);
    assert_eq!(huge.error(0).code, ErrorCode::LimitExceeded);
    assert!(huge.frame().is_none(), "the next frame's place is unknown");

    let mut raw = Raw::greeted(&server);
    // A read whose payload is cut short, an unknown kind, an id of nobody.
    for kind in [native::Kind::Read as u8, 0x3f] {
        let mut frame = vec![3, 0, 0, 0, kind, 0, 0, 0, 7, 0, 0, 0];
        frame.extend_from_slice(&[1, 2, 3]);
        raw.send(&frame);
        assert_eq!(raw.error(7).code, ErrorCode::InvalidArgument);
    }
    let mut out = BytesMut::new();
    native::encode_cancel(&mut out, 99);
    native::encode_ping(&mut out, 8, 42);
    raw.send(&out);
    assert_eq!(raw.frame(), Some((8, ServerFrame::Pong { nonce: 42 })));

    // An append whose checksum does not fit its bytes.
    let mut event = Vec::new();
    truthdb_event::EventBuilder::new("s", "t")
        .id(truthdb_event::EventId::from_bytes([1; 16]))
        .encode_into(&mut event)
        .unwrap();
    let length = [u32::try_from(event.len()).unwrap()];
    let mut entry = BytesMut::new();
    let head = native::AppendHead::default();
    native::encode_append_entry(&mut entry, 5, &head, &[12345], &length, &event).unwrap();
    let mut out = BytesMut::new();
    let mut encoder = native::AppendFrameEncoder::begin(&mut out);
    encoder.push(&mut out, 5, &entry);
    encoder.finish(&mut out);
    assert!(matches!(
        ClientFrame::decode(native::split_frame(&mut out.clone()).unwrap().unwrap()),
        Ok(ClientFrame::Append(_))
    ));
    raw.send(&out);
    match raw.frame() {
        Some((0, ServerFrame::AppendReply(results))) => {
            let error = results[0].1.as_ref().unwrap_err();
            assert_eq!(
                (results[0].0, error.code),
                (5, ErrorCode::InvalidArgument),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    drop((stranger, old, huge, raw));
    server.stop_cleanly();
}

#[test]
fn a_client_that_drips_its_request_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[limits]\nheader_timeout_ms = 200\nhandshake_timeout_ms = 200\n\
                  request_timeout_ms = 200\nidle_timeout_s = 1\n";
    let server = Server::start(&dir, config, &[]);
    let mut rest = Vec::new();
    // Headers that never end.
    let mut http = TcpStream::connect(server.http).unwrap();
    http.set_read_timeout(Some(PATIENCE)).unwrap();
    http.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-drip: ")
        .unwrap();
    let _ = http.read_to_end(&mut rest);
    // A body that never ends.
    let mut http = TcpStream::connect(server.http).unwrap();
    http.set_read_timeout(Some(PATIENCE)).unwrap();
    http.write_all(b"POST /v1/append HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        .unwrap();
    rest.clear();
    let _ = http.read_to_end(&mut rest);
    Answer::parse(&rest).error(504, "DEADLINE");
    // A Hello that never comes, and a frame that never ends.
    let mut silent = Raw::connect(&server);
    assert_eq!(silent.error(0).code, ErrorCode::Deadline);
    let mut dripping = Raw::greeted(&server);
    dripping.send(&[40, 0, 0, 0, 3]);
    assert_eq!(dripping.error(0).code, ErrorCode::Deadline);
    // Nothing at all.
    let mut idle = Raw::greeted(&server);
    assert!(idle.frame().is_none());
    assert_eq!(server.get("/healthz").status, 200);
    server.stop_cleanly();
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_one_too_many_is_told_so() {
    const IDLE: usize = 10_000;
    const BYTES_EACH_MAX: u64 = 24 << 10;
    let dir = tempfile::tempdir().unwrap();
    let config = format!("[limits]\nconnections_max = {IDLE}\n");
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    // Both ends of a connection are files: one here, one in the server, which inherits the limit.
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let server = Server::start(&dir, &config, &[]);
    let before = server.resident_bytes();
    let http: Vec<TcpStream> = (0..IDLE / 2)
        .map(|_| TcpStream::connect(server.http).unwrap())
        .collect();
    let mut native: Vec<Raw> = (0..IDLE / 2).map(|_| Raw::connect(&server)).collect();
    for raw in &mut native {
        raw.send(&hello());
    }
    for raw in &mut native {
        assert!(matches!(raw.frame(), Some((0, ServerFrame::Welcome(_)))));
    }
    // The last HTTP connections are taken before they are counted full: each port says so itself.
    let mut refused = Raw::connect(&server);
    assert_eq!(refused.error(0).code, ErrorCode::Overloaded);
    let mut bytes = Vec::new();
    let mut too_many = TcpStream::connect(server.http).unwrap();
    too_many.set_read_timeout(Some(PATIENCE)).unwrap();
    too_many.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes).error(503, "OVERLOADED");
    let each = server.resident_bytes().saturating_sub(before) / (IDLE as u64);
    eprintln!("{each} bytes of resident memory for each idle connection");
    assert!(
        each < BYTES_EACH_MAX,
        "{each} bytes for each idle connection"
    );
    drop(http);
    // A place is free again as soon as the server has seen that one is gone.
    native.pop();
    loop {
        let mut again = Raw::connect(&server);
        again.send(&hello());
        match again.frame() {
            Some((0, ServerFrame::Welcome(_))) => break,
            Some((0, ServerFrame::Error(error))) => assert_eq!(error.code, ErrorCode::Overloaded),
            None => {}
            other => panic!("{other:?}"),
        }
    }
    drop(native);
    server.stop_cleanly();
}
