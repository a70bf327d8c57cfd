//! Appending, reading and following over all three protocols, against the real program.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod server_support;

use std::io::{BufReader, Write as _};
use std::net::TcpStream;

use futures::StreamExt as _;
use serde_json::json;
use server_support::{PATIENCE, Server, field, next_sse};
use truthdb_api::v1;
use truthdb_api::v1::admin_client::AdminClient;
use truthdb_api::v1::log_client::LogClient;
use truthdb_client::{Client, ClientConfig, EventBuilder, ExpectedRevision, Message, NewBatch};

fn event(stream: &str, number: u64) -> v1::NewEvent {
    v1::NewEvent {
        stream: stream.to_owned(),
        r#type: "counted".to_owned(),
        content_type: "application/json".to_owned(),
        tags: vec![format!("n:{number}")],
        payload: number.to_string().into_bytes().into(),
        ..v1::NewEvent::default()
    }
}

async fn log_client(server: &Server) -> LogClient<tonic::transport::Channel> {
    LogClient::connect(format!("http://{}", server.http))
        .await
        .unwrap()
}

#[tokio::test]
async fn what_one_protocol_appends_all_of_them_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let mut grpc = log_client(&server).await;
    let appended = grpc
        .append(v1::AppendRequest {
            events: vec![event("a", 1)],
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((appended.first_sequence, appended.last_sequence), (1, 1));
    assert_eq!(appended.streams[0].stream, "a");

    let body = json!({"events": [
        {"stream": "a", "type": "counted", "payload": {"n": 2}},
        {"stream": "b", "type": "other", "payload_base64": "AAE=", "content_type": "x/y"},
    ]});
    let answer = server.post("/v1/append", &body.to_string()).json();
    assert_eq!(answer["last_sequence"], 3, "{answer}");
    assert_eq!(
        answer["streams"],
        json!([{"stream": "a", "last_revision": 1}, {"stream": "b", "last_revision": 0}])
    );

    let client = Client::connect(ClientConfig::new(server.native.to_string()))
        .await
        .unwrap();
    let batch = NewBatch::new()
        .event(EventBuilder::new("a", "counted").payload(b"3"))
        .unwrap()
        .expect("a", ExpectedRevision::Exact(1))
        .unwrap();
    let done = client.append(batch).await.unwrap();
    assert_eq!(done.first_sequence, 4);

    let page = server.get("/v1/partitions/0/events").json();
    let streams: Vec<&str> = page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["stream"].as_str().unwrap())
        .collect();
    assert_eq!(streams, ["a", "a", "b", "a"]);
    assert_eq!(page["events"][1]["payload"], json!({"n": 2}));
    assert_eq!(page["events"][2]["payload_base64"], "AAE=");
    assert_eq!(page["head_sequence"], 4);

    let backward = server
        .get("/v1/streams/a/events?direction=backward&limit=2")
        .json();
    let revisions: Vec<u64> = backward["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(revisions, [2, 1]);
    assert_eq!(backward["next"], 0);

    let scope = v1::read_request::Scope::Partition(v1::PartitionScope::default());
    let request = v1::ReadRequest {
        scope: Some(scope),
        ..Default::default()
    };
    let mut answers = grpc.read(request).await.unwrap().into_inner();
    let mut sequences = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        sequences.extend(answer.events.iter().map(|event| event.sequence));
    }
    assert_eq!(sequences, [1, 2, 3, 4]);

    let events = client
        .read(truthdb_client::Read::stream("a"))
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(
        events
            .iter()
            .map(|event| event.revision())
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
    drop(client);
    server.stop_cleanly();
}

#[tokio::test]
async fn a_subscription_of_each_protocol_gets_what_is_there_and_then_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let client = Client::connect(ClientConfig::new(server.native.to_string()))
        .await
        .unwrap();
    let append = |number: u64| {
        let payload = number.to_string();
        let builder = EventBuilder::new("s", "t").payload(payload.as_bytes());
        client.append(NewBatch::new().event(builder).unwrap())
    };
    append(1).await.unwrap();

    let mut native = client
        .subscribe(truthdb_client::Subscribe::partition(0))
        .await
        .unwrap();
    let mut grpc = log_client(&server)
        .await
        .subscribe(v1::SubscribeRequest::default())
        .await
        .unwrap()
        .into_inner();
    let http = TcpStream::connect(server.http).unwrap();
    http.set_read_timeout(Some(PATIENCE)).unwrap();
    (&http)
        .write_all(b"GET /v1/subscribe HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let mut sse = BufReader::new(http);

    // Each is told when it has caught up; only then does the next event come.
    let mut native_sequences = Vec::new();
    loop {
        match native.next().await.unwrap() {
            Message::Events(page) => {
                native_sequences.extend(page.events().iter().map(|event| event.sequence()));
            }
            Message::CaughtUp(_) => break,
            Message::Heartbeat(_) => {}
            Message::Interrupted(error) => panic!("{error}"),
        }
    }
    use v1::subscribe_response::Message as Grpc;
    let mut grpc_sequences = Vec::new();
    loop {
        match grpc.message().await.unwrap().unwrap().message.unwrap() {
            Grpc::Events(batch) => grpc_sequences.extend(batch.events.iter().map(|e| e.sequence)),
            Grpc::CaughtUp(_) => break,
            Grpc::Heartbeat(_) => {}
        }
    }
    let mut ids = Vec::new();
    loop {
        let fields = next_sse(&mut sse);
        match field(&fields, "event") {
            "event" => ids.push(field(&fields, "id").to_owned()),
            "caught_up" => break,
            _ => {}
        }
    }
    append(2).await.unwrap();
    while native_sequences.len() < 2 {
        if let Message::Events(page) = native.next().await.unwrap() {
            native_sequences.extend(page.events().iter().map(|event| event.sequence()));
        }
    }
    while grpc_sequences.len() < 2 {
        if let Some(Grpc::Events(batch)) = grpc.message().await.unwrap().unwrap().message {
            grpc_sequences.extend(batch.events.iter().map(|e| e.sequence));
        }
    }
    while ids.len() < 2 {
        let fields = next_sse(&mut sse);
        if field(&fields, "event") == "event" {
            ids.push(field(&fields, "id").to_owned());
        }
    }
    assert_eq!((native_sequences, grpc_sequences), (vec![1, 2], vec![1, 2]));
    assert_eq!(ids, ["1", "2"]);

    // A browser that reconnects says what it had.
    let again = TcpStream::connect(server.http).unwrap();
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    (&again)
        .write_all(b"GET /v1/subscribe HTTP/1.1\r\nhost: x\r\nlast-event-id: 1\r\n\r\n")
        .unwrap();
    let mut again = BufReader::new(again);
    let first = loop {
        let fields = next_sse(&mut again);
        if field(&fields, "event") == "event" {
            break fields;
        }
    };
    assert_eq!(field(&first, "id"), "2");
    drop((client, native, grpc, sse, again));
    server.stop_cleanly();
}

#[tokio::test]
async fn a_pipelined_append_stream_answers_each_request_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let requests = (0..500u64).map(|number| v1::AppendRequest {
        request_id: number,
        // Every tenth is refused, and the others are not harmed.
        events: if number % 10 == 9 {
            Vec::new()
        } else {
            vec![event("s", number)]
        },
        ..Default::default()
    });
    let requests = futures::stream::iter(requests.collect::<Vec<_>>());
    let mut answers = log_client(&server)
        .await
        .append_stream(requests)
        .await
        .unwrap()
        .into_inner();
    let (mut appended, mut refused) = (Vec::new(), Vec::new());
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.result.unwrap() {
            v1::append_reply::Result::Appended(done) => {
                appended.push((answer.request_id, done.first_sequence));
            }
            v1::append_reply::Result::Error(error) => {
                assert_eq!(error.code(), v1::ErrorCode::InvalidArgument);
                refused.push(answer.request_id);
            }
        }
    }
    appended.sort_unstable();
    assert_eq!((appended.len(), refused.len()), (450, 50));
    // Taken up in the order they were sent.
    assert!(appended.windows(2).all(|pair| pair[0].1 < pair[1].1));
    server.stop_cleanly();
}

#[tokio::test]
async fn cursors_streams_heads_status_metrics_and_health_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &["--partitions", "2"]);
    let mut grpc = log_client(&server).await;
    let database = grpc
        .get_database(v1::GetDatabaseRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(database.partition_count, 2);
    for name in ["x", "y", "z"] {
        for number in 0..3 {
            let request = v1::AppendRequest {
                events: vec![event(name, number)],
                ..Default::default()
            };
            grpc.append(request).await.unwrap();
        }
    }
    let mut listed = Vec::new();
    for partition in 0..2 {
        let mut page_token = bytes::Bytes::new();
        loop {
            let request = v1::ListStreamsRequest {
                partition,
                page_size: 1,
                page_token,
                ..Default::default()
            };
            let page = grpc.list_streams(request).await.unwrap().into_inner();
            listed.extend(
                page.streams
                    .into_iter()
                    .map(|s| (s.stream, s.last_revision)),
            );
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    listed.sort();
    assert_eq!(listed, [("x".into(), 2), ("y".into(), 2), ("z".into(), 2)]);
    let head = server.get("/v1/streams/x/head").json();
    assert_eq!(
        (&head["exists"], &head["last_revision"]),
        (&json!(true), &json!(2))
    );
    assert_eq!(server.get("/v1/streams/none/head").json()["exists"], false);

    server
        .get("/v1/partitions/1/cursors/c")
        .error(404, "NOT_FOUND");
    let committed = server
        .post("/v1/partitions/1/cursors/c", "{\"position\": 7}")
        .json();
    assert_eq!(committed["position"], 7, "{committed}");
    let again = server
        .post("/v1/partitions/1/cursors/c", "{\"position\": 7}")
        .json();
    assert_eq!(
        again["sequence"], committed["sequence"],
        "the same position writes nothing"
    );
    let cursors = server.get("/v1/partitions/1/cursors").json();
    assert_eq!(cursors["cursors"][0]["name"], "c");

    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://{}", server.http)).unwrap();
    let mut admin = AdminClient::new(channel.connect().await.unwrap());
    let status = admin
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.partitions.len(), 2);
    assert!(
        status
            .partitions
            .iter()
            .all(|p| p.state() == v1::PartitionState::Serving)
    );
    let mut verify = admin
        .verify(v1::VerifyRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut summary = None;
    while let Some(message) = verify.next().await {
        if let Some(v1::verify_response::Message::Summary(s)) = message.unwrap().message {
            summary = Some(s);
        }
    }
    assert_eq!(summary.unwrap().findings, 0);
    let mut backup = admin
        .backup(v1::BackupRequest::default())
        .await
        .unwrap()
        .into_inner();
    let (mut paths, mut ended) = (Vec::new(), false);
    while let Some(message) = backup.next().await {
        match message.unwrap().message.unwrap() {
            v1::backup_response::Message::File(file) => paths.push(file.path),
            v1::backup_response::Message::End(_) => ended = true,
            _ => {}
        }
    }
    assert!(
        ended && paths.last().unwrap() == "metadata/manifest.bin",
        "{paths:?}"
    );

    let head = server.get("/v1/streams/x/head").json();
    let (partition, sequence) = (&head["partition"], &head["last_sequence"]);
    let proof = server.get(&format!(
        "/v1/partitions/{partition}/events/{sequence}/proof"
    ));
    assert_eq!(proof.status, 200, "{}", proof.body);
    let plan = server
        .post("/v1/partitions/0/trim", "{\"before_sequence\": 1}")
        .json();
    assert_eq!(
        (&plan["executed"], &plan["segments"]),
        (&json!(false), &json!([]))
    );
    let token = plan["plan_token"].as_str().unwrap();
    let body = json!({"plan_token": token}).to_string();
    assert_eq!(
        server.post("/v1/partitions/0/trim", &body).json()["executed"],
        true
    );
    server
        .post("/v1/partitions/0/trim", &body)
        .error(404, "NOT_FOUND");

    let metrics = server.get("/metrics").body;
    for metric in [
        "truthdb_committed_sequence{partition=\"0\"}",
        "truthdb_events_total{partition=\"1\"}",
        "truthdb_request_duration_seconds_count{operation=\"append\"} 9",
        "truthdb_http_connections",
    ] {
        assert!(
            metrics.contains(metric),
            "{metric} is missing in\n{metrics}"
        );
    }
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.get("/readyz").json()["ready"], true);
    assert_eq!(server.get("/openapi.json").json()["openapi"], "3.1.0");
    server.stop_cleanly();
}

#[tokio::test]
async fn a_role_that_is_not_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    Server::start(&dir, "", &[]).stop_cleanly();
    let server = Server::start(&dir, "[node]\nroles = [\"query\"]\n", &[]);
    let body = json!({"events": [{"stream": "s", "type": "t"}]}).to_string();
    let error = server.post("/v1/append", &body).error(501, "ROLE_DISABLED");
    assert_eq!(error["role"], "ingest");
    let mut grpc = log_client(&server).await;
    let request = v1::AppendRequest {
        events: vec![event("s", 1)],
        ..Default::default()
    };
    let error = truthdb_api::ApiError::from_status(&grpc.append(request).await.unwrap_err());
    assert_eq!(error.context.role.as_deref(), Some("ingest"));
    let client = Client::connect(ClientConfig::new(server.native.to_string()))
        .await
        .unwrap();
    let batch = NewBatch::new().event(EventBuilder::new("s", "t")).unwrap();
    let error = client.append(batch).await.unwrap_err().to_string();
    assert!(error.contains("ingest"), "{error}");
    let proof = server.get("/v1/partitions/0/events/1/proof");
    assert_eq!(proof.error(501, "ROLE_DISABLED")["role"], "replay");
    assert_eq!(server.get("/v1/partitions/0/events").status, 200);
    drop(client);
    server.stop_cleanly();
}

#[tokio::test]
async fn a_batch_over_streams_with_a_cursor_is_answered_with_every_revision() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let client = Client::connect(ClientConfig::new(server.native.to_string()))
        .await
        .unwrap();
    // More events than one page of a read gives, so that the answer is put together from several.
    let mut batch = NewBatch::new().cursor("c", 5).unwrap();
    let payload = vec![b'x'; 2000];
    for number in 0..3000 {
        let stream = format!("s{}", number % 3);
        batch
            .push(EventBuilder::new(&stream, "t").payload(&payload))
            .unwrap();
    }
    let again = batch.clone();
    let done = client.append(batch).await.unwrap();
    assert_eq!(done.last_revisions, [999, 999, 999]);
    assert_eq!((done.first_sequence, done.last_sequence), (1, 3001));
    let repeated = client.append(again).await.unwrap();
    assert!(repeated.already_appended);
    assert_eq!(repeated.last_revisions, done.last_revisions);
    assert_eq!(repeated.last_sequence, done.last_sequence);
    let cursor = client.cursor_get(0, "c").await.unwrap().unwrap();
    assert_eq!((cursor.position, cursor.sequence), (5, 3001));
    // A cursor alone has no stream.
    let alone = NewBatch::new().partition(0).cursor("c", 6).unwrap();
    let alone = client.append(alone).await.unwrap();
    assert_eq!((alone.first_sequence, alone.last_sequence), (3002, 3002));
    assert_eq!(alone.last_revisions, Vec::<u64>::new());
    // A filter that nothing passes is told where it is all the same.
    let filter = truthdb_client::Filter {
        matches: vec![truthdb_client::EventMatch {
            types: vec![truthdb_client::Text::new("none").unwrap()],
            tags: Vec::new(),
        }],
        ..truthdb_client::Filter::default()
    };
    let subscribe = truthdb_client::Subscribe::partition(0).filter(filter);
    let mut subscription = client.subscribe(subscribe).await.unwrap();
    loop {
        match subscription.next().await.unwrap() {
            Message::CaughtUp(at) => break assert_eq!(at.position, 3002),
            Message::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    drop((client, subscription));
    server.stop_cleanly();
}
