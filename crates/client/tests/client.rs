//! The client against a fake server that speaks the real frame codec over loopback sockets.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure is a failed test"
)]

mod fake;

use std::sync::Arc;
use std::time::Duration;

use fake::{OnAppend, Shared, listen, server};
use tokio_rustls::TlsAcceptor;
use truthdb_api::native::SubscribeStart;
use truthdb_client::{
    ApiError, Client, ClientConfig, ClientError, ErrorCode, EventBuilder, Message, NewBatch,
    Outcome, Read, RetryPolicy, Subscribe, Tls,
};

fn config(addr: String) -> ClientConfig {
    let mut config = ClientConfig::new(addr);
    config.retry = RetryPolicy {
        tries_max: 5,
        pause_min: Duration::from_micros(100),
        pause_max: Duration::from_millis(1),
    };
    config
}

async fn client(server: &Shared) -> Client {
    Client::connect(config(listen(server, None).await))
        .await
        .unwrap()
}

fn batch(stream: &str) -> NewBatch {
    NewBatch::new()
        .event(EventBuilder::new(stream, "tested").payload(b"payload"))
        .unwrap()
}

fn script(server: &Shared, actions: impl IntoIterator<Item = OnAppend>) {
    server.lock().script.extend(actions);
}

async fn append_many(client: &Client, count: usize) {
    for n in 0..count {
        client.append(batch(&format!("s-{n}"))).await.unwrap();
    }
}

#[tokio::test]
async fn appends_of_many_tasks_share_few_frames() {
    let server = server();
    let client = client(&server).await;
    for _ in 0..3 {
        let tasks: Vec<_> = (0..200)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move { client.append(batch(&format!("s-{n}"))).await })
            })
            .collect();
        let mut sequences = Vec::new();
        for task in tasks {
            sequences.push(task.await.unwrap().unwrap().first_sequence);
        }
        sequences.sort_unstable();
        sequences.dedup();
        assert_eq!(sequences.len(), 200);
    }
    let frames = server.lock().frames.clone();
    assert_eq!(frames.iter().sum::<usize>(), 600);
    assert!(frames.len() <= 12, "{frames:?}");
}

#[tokio::test]
async fn each_append_of_a_lone_writer_is_a_frame_of_its_own() {
    let server = server();
    let client = client(&server).await;
    append_many(&client, 20).await;
    assert_eq!(server.lock().frames, vec![1; 20]);
}

#[tokio::test]
async fn an_append_whose_answer_was_lost_is_retried_with_its_ids_and_happens_once() {
    let server = server();
    let client = client(&server).await;
    script(&server, [OnAppend::AppendThenClose]);
    let appended = client.append(batch("s")).await.unwrap();
    assert!(appended.already_appended);
    assert_eq!(appended.first_sequence, 1);
    let server = server.lock();
    assert_eq!((server.log.len(), server.connections), (1, 2));
}

#[tokio::test]
async fn an_append_that_never_reached_the_log_is_retried_until_it_does() {
    let server = server();
    let client = client(&server).await;
    let full = ApiError::overloaded("full", 1);
    script(
        &server,
        [OnAppend::Close, OnAppend::Refuse(full), OnAppend::Close],
    );
    assert!(!client.append(batch("s")).await.unwrap().already_appended);
    assert_eq!(server.lock().frames, [1, 1, 1, 1]);
}

#[tokio::test]
async fn a_refusal_is_not_retried_and_keeps_its_numbers() {
    let server = server();
    let client = client(&server).await;
    let conflict = ApiError::revision_conflict("s", "no stream", Some(41));
    script(&server, [OnAppend::Refuse(conflict)]);
    let error = client.append(batch("s")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.outcome()),
        (ErrorCode::RevisionConflict, Outcome::DidNotHappen)
    );
    let ClientError::Api(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.context.actual_revision, Some(41));
    assert_eq!(server.lock().frames, [1]);
}

#[tokio::test]
async fn a_certain_last_error_does_not_hide_that_an_earlier_try_may_have_happened() {
    let server = server();
    let client = client(&server).await;
    let denied = ApiError::new(ErrorCode::PermissionDenied, "no append on s");
    script(
        &server,
        [OnAppend::AppendThenClose, OnAppend::Refuse(denied)],
    );
    let error = client.append(batch("s")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PermissionDenied);
    assert_eq!(error.outcome(), Outcome::MayHaveHappened);
}

#[tokio::test]
async fn a_conflict_on_a_retry_proves_that_no_earlier_try_happened() {
    let server = server();
    let client = client(&server).await;
    let conflict = ApiError::revision_conflict("s", "no stream", Some(0));
    script(&server, [OnAppend::Close, OnAppend::Refuse(conflict)]);
    let error = client.append(batch("s")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::DidNotHappen);
}

#[tokio::test]
async fn tries_are_bounded_and_the_outcome_stays_open() {
    let server = server();
    let client = client(&server).await;
    script(&server, vec![OnAppend::Close; 50]);
    let error = client.append(batch("s")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.outcome()),
        (ErrorCode::Unavailable, Outcome::MayHaveHappened)
    );
    assert_eq!(server.lock().frames.len(), 5);
}

#[tokio::test]
async fn bytes_under_way_are_bounded_and_what_waits_did_not_happen() {
    let server = server();
    let mut config = config(listen(&server, None).await);
    config.in_flight_bytes_max = 16 << 20;
    config.request_timeout = Duration::from_millis(300);
    let client = Client::connect(config).await.unwrap();
    script(&server, vec![OnAppend::Swallow; 50]);
    let payload = vec![1; 4 * 1000 * 1000];
    let tasks: Vec<_> = (0..6)
        .map(|n| {
            let event = EventBuilder::new("s", "t").payload(&payload);
            let (client, batch) = (client.clone(), NewBatch::new().event(event).unwrap());
            tokio::spawn(async move { (n, client.append(batch).await.unwrap_err()) })
        })
        .collect();
    let mut waited = 0;
    for task in tasks {
        let (_, error) = task.await.unwrap();
        assert_eq!(error.code(), ErrorCode::Deadline);
        waited += usize::from(error.outcome() == Outcome::DidNotHappen);
    }
    assert_eq!(waited, 2);
}

async fn collect(client: &Client, subscribe: Subscribe, until: u64) -> (Vec<u64>, usize) {
    let mut subscription = client.subscribe(subscribe).await.unwrap();
    let (mut sequences, mut interruptions) = (Vec::new(), 0);
    while subscription.position() < until {
        match subscription.next().await.unwrap() {
            Message::Events(page) => sequences.extend(page.into_iter().map(|e| e.sequence())),
            Message::Interrupted(error) => {
                assert!(error.is_retryable(), "{error}");
                interruptions += 1;
            }
            Message::CaughtUp(_) | Message::Heartbeat(_) => {}
        }
    }
    (sequences, interruptions)
}

#[tokio::test]
async fn a_subscription_resumes_after_each_loss_without_gap_or_duplicate() {
    let server = server();
    let client = client(&server).await;
    append_many(&client, 100).await;
    server
        .lock()
        .events_before_close
        .extend([7, 1, 0, 30, 0, 0, 12]);
    let (sequences, interruptions) = collect(&client, Subscribe::partition(0), 100).await;
    assert_eq!(sequences, (1..=100).collect::<Vec<_>>());
    assert_eq!(interruptions, 7);
}

#[tokio::test]
async fn a_subscription_from_the_head_keeps_its_start_over_a_loss_before_the_first_event() {
    let server = server();
    let client = client(&server).await;
    append_many(&client, 5).await;
    let mut subscription = client
        .subscribe(Subscribe::partition(0).from_head())
        .await
        .unwrap();
    assert_eq!(subscription.position(), 5);
    // The connection is lost together with an append: it must not fall between the two starts.
    script(&server, [OnAppend::AppendThenClose]);
    client.append(batch("s")).await.unwrap();
    let sequence = loop {
        if let Message::Events(page) = subscription.next().await.unwrap() {
            break page.events()[0].sequence();
        }
    };
    assert_eq!(sequence, 6);
    let starts: Vec<_> = server
        .lock()
        .subscribes
        .iter()
        .map(|subscribe| subscribe.start.clone())
        .collect();
    assert_eq!(starts, [SubscribeStart::Head, SubscribeStart::Sequence(6)]);
}

#[tokio::test]
async fn credit_is_returned_so_that_far_more_than_the_window_flows() {
    let server = server();
    let mut config = config(listen(&server, None).await);
    config.window_bytes = truthdb_client::WINDOW_BYTES_MIN;
    let client = Client::connect(config).await.unwrap();
    let payload = vec![3; 4 * 1024 * 1024];
    for _ in 0..8 {
        let event = EventBuilder::new("s", "t").payload(&payload);
        client
            .append(NewBatch::new().event(event).unwrap())
            .await
            .unwrap();
    }
    let (sequences, _) = collect(&client, Subscribe::partition(0), 8).await;
    assert_eq!(sequences, (1..=8).collect::<Vec<_>>());
    let events = client
        .read(Read::partition(0))
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(events.len(), 8);
    assert!(server.lock().credits >= 12);
}

#[tokio::test]
async fn a_read_goes_on_where_it_was_when_the_connection_is_lost() {
    let server = server();
    let client = client(&server).await;
    append_many(&client, 30).await;
    for (read, expected) in [
        (Read::partition(0), (1..=30).collect::<Vec<u64>>()),
        (Read::partition(0).backward(), (1..=30).rev().collect()),
        (
            Read::partition(0).from_sequence(4).limit(20),
            (4..=23).collect(),
        ),
        (
            Read::partition(0).backward().from_sequence(25).limit(12),
            (14..=25).rev().collect(),
        ),
        (Read::stream("s").from_revision(2), (3..=30).collect()),
    ] {
        server.lock().events_before_close.extend([3, 5, 0]);
        let pages = client.read(read).unwrap();
        let events = pages.collect().await.unwrap();
        let sequences: Vec<u64> = events.iter().map(|event| event.sequence()).collect();
        assert_eq!(sequences, expected);
        server.lock().events_before_close.clear();
    }
    assert!(server.lock().connections > 10);
}

#[tokio::test]
async fn events_come_with_all_their_parts_and_a_damaged_one_is_refused() {
    let server = server();
    let client = client(&server).await;
    append_many(&client, 1).await;
    let events = client
        .read(Read::partition(0))
        .unwrap()
        .collect()
        .await
        .unwrap();
    let event = &events[0];
    assert_eq!(
        (event.event().stream(), event.event().event_type()),
        ("s-0", "tested")
    );
    assert_eq!(
        (event.sequence(), event.revision(), event.timestamp_ns()),
        (1, 0, 1_001)
    );
    assert_eq!(event.payload(), &b"payload"[..]);

    server.lock().damage = true;
    let error = client
        .read(Read::partition(0))
        .unwrap()
        .collect()
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("does not have its checksum"),
        "{error}"
    );
    let mut subscription = client.subscribe(Subscribe::partition(0)).await.unwrap();
    assert!(matches!(
        subscription.next().await,
        Err(ClientError::Protocol(_))
    ));
}

#[tokio::test]
async fn an_unknown_token_is_refused_at_once() {
    let server = server();
    server.lock().token = "secret".to_owned();
    let mut config = config(listen(&server, None).await);
    let error = Client::connect(config.clone()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unauthenticated);
    config.token = Some("secret".to_owned());
    let client = Client::connect(config).await.unwrap();
    assert!(client.ping().await.is_ok());
    assert!(!format!("{client:?}").contains("secret"));
}

#[tokio::test]
async fn another_database_under_the_same_address_is_noticed() {
    let server = server();
    let client = client(&server).await;
    server.lock().database_id = [8; 16];
    script(&server, [OnAppend::Close]);
    let error = client.append(batch("s")).await.unwrap_err();
    assert!(error.to_string().contains("another database"), "{error}");
    assert!(server.lock().log.is_empty());
}

#[tokio::test]
async fn heads_and_cursors_are_asked_for() {
    let server = server();
    let client = client(&server).await;
    assert_eq!(client.stream_head("s").await.unwrap(), None);
    append_many(&client, 2).await;
    let head = client.stream_head("s").await.unwrap().unwrap();
    assert_eq!((head.revision, head.sequence), (1, 2));
    assert_eq!(client.cursor_get(0, "c").await.unwrap(), None);
}

fn tls_server() -> (TlsAcceptor, Vec<u8>, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let der = made.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key.into())
        .unwrap();
    (
        TlsAcceptor::from(Arc::new(tls)),
        der.to_vec(),
        made.cert.pem(),
    )
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap()
}

#[tokio::test]
async fn only_the_pinned_certificate_is_accepted() {
    let server = server();
    let (acceptor, der, _) = tls_server();
    let mut config = config(listen(&server, Some(acceptor)).await);
    config.tls = Tls::PinnedFingerprint(sha256(&der));
    let client = Client::connect(config.clone()).await.unwrap();
    append_many(&client, 3).await;
    assert_eq!(server.lock().log.len(), 3);

    config.tls = Tls::PinnedFingerprint(sha256(b"another certificate"));
    let error = Client::connect(config).await.unwrap_err();
    let ClientError::PinMismatch { pinned, actual } = error else {
        panic!("{error}")
    };
    assert_ne!(pinned, actual);
    assert_eq!(actual.len(), 64);
}

#[tokio::test]
async fn roots_accept_their_certificate_under_its_name_only() {
    let server = server();
    let (acceptor, _, pem) = tls_server();
    let mut config = config(listen(&server, Some(acceptor)).await);
    config.tls = Tls::Roots(pem.into_bytes());
    let error = Client::connect(config.clone()).await.unwrap_err();
    assert!(matches!(error, ClientError::Tls(_)), "{error}");
    config.server_name = Some("localhost".to_owned());
    assert!(Client::connect(config.clone()).await.is_ok());
    config.tls = Tls::Roots(b"no certificate".to_vec());
    assert!(matches!(
        Client::connect(config).await,
        Err(ClientError::Tls(_))
    ));
}
