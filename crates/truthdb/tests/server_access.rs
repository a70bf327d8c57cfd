//! Tokens and TLS: every operation is tried without a token, with a wrong one, and with one that
//! does not allow it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod server_support;

use std::io::BufRead as _;

use prost::Message as _;
use serde_json::json;
use server_support::{Server, field, next_sse, program};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use truthdb_client::{Client, ClientConfig, EventBuilder, NewBatch, Tls};

const AUTH: &str = "[auth]\nenabled = true\n";

/// Services that need no token.
const OPEN: &[&str] = &["grpc.health.v1.Health"];

fn first_token(server: &mut Server) -> String {
    let mut stdout = server.stdout.take().unwrap();
    let mut told = String::new();
    stdout.read_line(&mut told).unwrap();
    assert!(told.contains("shown only now"), "{told}");
    let mut token = String::new();
    stdout.read_line(&mut token).unwrap();
    token.trim().to_owned()
}

fn create_token(server: &Server, name: &str, permissions: &str) -> String {
    let output = program()
        .arg("--data")
        .arg(&server.data)
        .args(["token", "create", name, "--permissions", permissions])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Every method of the descriptors.
fn methods() -> Vec<(String, String)> {
    let mut methods = Vec::new();
    for bytes in [
        truthdb_api::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ] {
        for file in prost_types::FileDescriptorSet::decode(bytes).unwrap().file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}", file.package(), service.name());
                    methods.push((name, method.name().to_owned()));
                }
            }
        }
    }
    methods
}

/// Calls a method with an empty message; the status, if it failed.
async fn call(channel: &Channel, path: &str, token: Option<&str>) -> Result<(), tonic::Code> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let mut request = tonic::Request::new(());
    if let Some(token) = token {
        let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let path: http::uri::PathAndQuery = path.parse().unwrap();
    // Read as a stream, so that both kinds of method are answered by their headers.
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    grpc.server_streaming(request, path, codec)
        .await
        .map(|_| ())
        .map_err(|status| status.code())
}

#[tokio::test]
async fn nothing_answers_without_a_token_that_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, AUTH, &[]);
    let admin = first_token(&mut server);
    let reader = create_token(&server, "reader", "read");
    let writer = create_token(&server, "writer", "append");
    let asker = create_token(&server, "asker", "query");
    let deployer = create_token(&server, "deployer", "deploy");
    let mut wrong = admin.clone();
    wrong.replace_range(
        wrong.len() - 1..,
        if admin.ends_with('0') { "1" } else { "0" },
    );
    let channel = Endpoint::from_shared(format!("http://{}", server.http)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut walked = 0;
    for (service, method) in methods() {
        let path = format!("/{service}/{method}");
        if OPEN.contains(&service.as_str()) {
            assert_ne!(
                call(&channel, &path, None).await,
                Err(tonic::Code::Unauthenticated)
            );
            continue;
        }
        walked += 1;
        for token in [None, Some("nonsense"), Some("tdb_000000000000_00")] {
            let outcome = call(&channel, &path, token).await;
            assert_eq!(
                outcome,
                Err(tonic::Code::Unauthenticated),
                "{path} {token:?}"
            );
        }
        let denied = Err(tonic::Code::PermissionDenied);
        let is_admin = service.ends_with(".Admin");
        let writes = matches!(method.as_str(), "Append" | "AppendStream" | "CursorCommit");
        let free = service.starts_with("grpc.") || method == "GetDatabase";
        let of_modules = service.ends_with(".Modules");
        let questions = service.ends_with(".State") && method != "Verify";
        let looks = matches!(method.as_str(), "List" | "Get" | "ListSnapshots");
        let is_state = of_modules || service.ends_with(".State");
        let by_reader = call(&channel, &path, Some(&reader)).await;
        assert_eq!(
            by_reader == denied,
            (is_admin || writes || is_state) && !free,
            "{path} {by_reader:?}"
        );
        let by_asker = call(&channel, &path, Some(&asker)).await;
        assert_eq!(
            by_asker == denied,
            !(free || questions || of_modules && looks),
            "{path} {by_asker:?}"
        );
        let by_deployer = call(&channel, &path, Some(&deployer)).await;
        assert_eq!(
            by_deployer == denied,
            !(free || questions || of_modules),
            "{path} {by_deployer:?}"
        );
        let by_writer = call(&channel, &path, Some(&writer)).await;
        assert_eq!(
            by_writer == denied,
            !writes && !free,
            "{path} {by_writer:?}"
        );
        let by_admin = call(&channel, &path, Some(&admin)).await;
        assert_ne!(by_admin, denied, "{path}");
    }
    assert_eq!(walked, 31);
    // One wrong secret costs an Argon2 run; the walk above cost none.
    let outcome = call(&channel, "/truthdb.v1.Log/GetDatabase", Some(&wrong)).await;
    assert_eq!(outcome, Err(tonic::Code::Unauthenticated));
    drop(channel);
    server.stop_cleanly();
}

#[test]
fn every_route_demands_what_its_description_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, AUTH, &[]);
    let admin = first_token(&mut server);
    let reader = create_token(&server, "reader", "read");
    let writer = create_token(&server, "writer", "append");
    let asker = create_token(&server, "asker", "query");
    let deployer = create_token(&server, "deployer", "deploy");
    let description = server.get("/openapi.json").json();
    let mut walked = 0;
    for (pattern, methods) in description["paths"].as_object().unwrap() {
        let path = pattern
            .replace("{partition}", "0")
            .replace("{sequence}", "1")
            .replace("{stream}", "s")
            .replace("{name}", "c")
            .replace("{module}", "m")
            .replace("{table}", "t")
            .replace("{operator}", "o");
        for (method, about) in methods.as_object().unwrap() {
            let method = method.to_uppercase();
            let body = if method == "POST" { "{}" } else { "" };
            if about["security"].is_null() {
                assert_eq!(server.http(&method, &path, &[], body).status, 200, "{path}");
                continue;
            }
            walked += 1;
            let with = |token: &str, path: &str| {
                let value = format!("Bearer {token}");
                // A subscription does not end: its answer is seen by its head alone.
                let path = if path == "/v1/subscribe" {
                    "/v1/subscribe?partition=9"
                } else {
                    path
                };
                server
                    .http(&method, path, &[("authorization", &value)], body)
                    .status
            };
            server
                .http(&method, &path, &[], body)
                .error(401, "UNAUTHENTICATED");
            assert_eq!(with("nonsense", &path), 401, "{path}");
            let summary = about["summary"].as_str().unwrap();
            let needs = |name: &str| summary.contains(&format!("permission `{name}`"));
            let any = summary.contains("Needs a valid token");
            let known = ["read", "append", "query", "deploy", "admin"];
            assert!(any || known.into_iter().any(needs), "{summary}");
            let asks = needs("query");
            assert_eq!(with(&asker, &path) == 403, !any && !asks, "{path}");
            assert_eq!(
                with(&deployer, &path) == 403,
                !any && !asks && !needs("deploy"),
                "{path}"
            );
            assert_eq!(
                with(&reader, &path) == 403,
                !any && !needs("read"),
                "{path}"
            );
            assert_eq!(
                with(&writer, &path) == 403,
                !any && !needs("append"),
                "{path}"
            );
            assert_ne!(with(&admin, &path), 403, "{path}");
        }
    }
    assert_eq!(walked, 28);
    server.stop_cleanly();
}

#[tokio::test]
async fn a_revoked_token_ends_with_the_next_request_of_an_open_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, AUTH, &[]);
    let admin = first_token(&mut server);
    let writer = create_token(&server, "writer", "append");
    let connect = |token: Option<&str>| {
        let mut config = ClientConfig::new(server.native.to_string());
        config.token = token.map(str::to_owned);
        Client::connect(config)
    };
    let batch = || NewBatch::new().event(EventBuilder::new("s", "t")).unwrap();
    let error = connect(None).await.unwrap_err().to_string();
    assert!(error.contains("UNAUTHENTICATED"), "{error}");
    let client = connect(Some(&writer)).await.unwrap();
    client.append(batch()).await.unwrap();
    let refused = client.stream_head("s").await.unwrap_err().to_string();
    assert!(refused.contains("PERMISSION_DENIED"), "{refused}");
    revoke_token(&server, "writer");
    let error = client.append(batch()).await.unwrap_err().to_string();
    assert!(error.contains("UNAUTHENTICATED"), "{error}");
    connect(Some(&admin))
        .await
        .unwrap()
        .append(batch())
        .await
        .unwrap();
    drop(client);
    server.stop_cleanly();
}

fn revoke_token(server: &Server, name: &str) {
    let output = program()
        .arg("--data")
        .arg(&server.data)
        .args(["token", "revoke", name])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A request with a bearer token.
fn bearing<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// Nothing is said on these connections after they were opened: the server ends them on its own account.
#[tokio::test]
async fn what_a_revoked_token_began_ends_within_five_seconds_and_says_why() {
    use truthdb_api::v1::subscribe_response::Message as Grpc;
    const WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, AUTH, &[]);
    let admin = first_token(&mut server);
    let reader = create_token(&server, "reader", "read");
    let writer = create_token(&server, "writer", "append");
    let other = create_token(&server, "other", "read");
    let channel = Endpoint::from_shared(format!("http://{}", server.http)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut log = truthdb_api::v1::log_client::LogClient::new(channel);

    // Live subscriptions over gRPC, of the token that is revoked and of one that is not.
    let follow = truthdb_api::v1::SubscribeRequest {
        heartbeat_ms: 60_000,
        ..Default::default()
    };
    let mut live = Vec::new();
    for token in [&reader, &other] {
        let answer = log.subscribe(bearing(follow.clone(), token)).await.unwrap();
        let mut answer = answer.into_inner();
        while !matches!(
            answer.message().await.unwrap().unwrap().message,
            Some(Grpc::CaughtUp(_))
        ) {}
        live.push(answer);
    }
    let mut kept = live.pop().unwrap();
    let mut followed = live.pop().unwrap();
    // A stream of appends that has answered one.
    let (requests, queue) = tokio::sync::mpsc::channel(1);
    let queue = futures::stream::unfold(queue, |mut queue| async {
        Some((queue.recv().await?, queue))
    });
    requests
        .send(truthdb_api::v1::AppendRequest {
            request_id: 1,
            cursor: Some(truthdb_api::v1::CursorPosition {
                name: "c".to_owned(),
                position: 1,
            }),
            partition: Some(0),
            ..Default::default()
        })
        .await
        .unwrap();
    let appends = log.append_stream(bearing(queue, &writer)).await.unwrap();
    let mut appends = appends.into_inner();
    assert_eq!(appends.message().await.unwrap().unwrap().request_id, 1);
    // Server-sent events.
    let mut stream = std::net::TcpStream::connect(server.http).unwrap();
    stream
        .set_read_timeout(Some(server_support::PATIENCE))
        .unwrap();
    let request =
        format!("GET /v1/subscribe HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {reader}\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut events = std::io::BufReader::new(stream);
    while field(&next_sse(&mut events), "event") != "caught_up" {}
    // The native protocol.
    let mut config = ClientConfig::new(server.native.to_string());
    config.token = Some(reader.clone());
    let client = Client::connect(config).await.unwrap();
    let mut native = client
        .subscribe(truthdb_client::Subscribe::partition(0))
        .await
        .unwrap();
    while !matches!(
        native.next().await.unwrap(),
        truthdb_client::Message::CaughtUp(_)
    ) {}

    revoke_token(&server, "reader");
    revoke_token(&server, "writer");
    let ends = async {
        let status = followed.message().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains("revoked"), "{status:?}");
        let status = appends.message().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status:?}");
        let error = loop {
            // The client first says that it lost the connection, then that it got no other.
            match native.next().await {
                Ok(_) => {}
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("UNAUTHENTICATED"), "{error}");
        tokio::task::spawn_blocking(move || {
            loop {
                let event = next_sse(&mut events);
                if field(&event, "event") == "error" {
                    return field(&event, "data").to_owned();
                }
            }
        })
        .await
        .unwrap()
    };
    let told = tokio::time::timeout(WITHIN, ends).await.unwrap();
    assert!(told.contains("UNAUTHENTICATED"), "{told}");

    // Whose token still holds goes on.
    let mut config = ClientConfig::new(server.native.to_string());
    config.token = Some(admin);
    let append = NewBatch::new().event(EventBuilder::new("s", "t")).unwrap();
    let admin = Client::connect(config).await.unwrap();
    admin.append(append).await.unwrap();
    kept.message().await.unwrap().unwrap();
    drop((kept, log, native, client, admin, requests));
    server.stop_cleanly();
}

#[tokio::test]
async fn a_self_signed_certificate_is_kept_and_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[tls]\nmode = \"self-signed\"\n";
    let server = Server::start(&dir, config, &[]);
    let fingerprint = server.fingerprint.clone().unwrap();
    server.stop_cleanly();
    let server = Server::start(&dir, config, &[]);
    assert_eq!(server.fingerprint.as_ref(), Some(&fingerprint), "made once");
    let pinned = |text: &str| {
        let mut config = ClientConfig::new(server.native.to_string());
        config.tls = Tls::PinnedFingerprint(fingerprint_bytes(text));
        Client::connect(config)
    };
    let client = pinned(&fingerprint).await.unwrap();
    client
        .append(NewBatch::new().event(EventBuilder::new("s", "t")).unwrap())
        .await
        .unwrap();
    let other = fingerprint.replace(&fingerprint[..2], "00");
    assert!(pinned(&other).await.is_err());
    let pem = std::fs::read(server.data.join("server/tls/certificate.pem")).unwrap();
    let channel = Endpoint::from_shared(format!("https://localhost:{}", server.http.port()))
        .unwrap()
        .tls_config(
            ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(pem))
                .domain_name("localhost"),
        )
        .unwrap()
        .connect()
        .await
        .unwrap();
    let database = truthdb_api::v1::log_client::LogClient::new(channel)
        .get_database(truthdb_api::v1::GetDatabaseRequest {})
        .await
        .unwrap();
    assert_eq!(database.into_inner().partition_count, 1);
    // Plain HTTP at a TLS port is no request.
    assert_eq!(server.get("/healthz").status, 0);
    drop(client);
    server.stop_cleanly();
}

fn fingerprint_bytes(text: &str) -> [u8; 32] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

#[test]
fn a_token_is_listed_without_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, AUTH, &[]);
    let admin = first_token(&mut server);
    let output = program()
        .arg("--data")
        .arg(&server.data)
        .args(["--json", "token", "list"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let listed: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(listed["permissions"], json!(["admin"]));
    assert!(!text.contains(admin.rsplit('_').next().unwrap()));
    server.stop_cleanly();
}
