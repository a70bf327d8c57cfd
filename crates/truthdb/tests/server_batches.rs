//! Batches of several streams, against the real program.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    dead_code,
    reason = "what fails here fails the test; the support is shared with larger tests"
)]

mod server_support;

use server_support::Server;
use truthdb_client::{Client, ClientConfig, EventBuilder, NewBatch};

/// Such an append once aborted the server: it asked for room for as many revisions as there are numbers.
#[tokio::test]
async fn an_append_to_several_streams_is_answered_with_the_revision_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let client = Client::connect(ClientConfig::new(server.native.to_string()))
        .await
        .unwrap();
    let mut batch = NewBatch::new();
    for stream in ["a", "b", "a", "c", "a"] {
        batch.push(EventBuilder::new(stream, "counted")).unwrap();
    }
    let done = client.append(batch.clone()).await.unwrap();
    assert_eq!((done.first_sequence, done.last_sequence), (1, 5));
    assert_eq!(done.last_revisions, [2, 0, 0]);
    let again = client.append(batch).await.unwrap();
    assert!(again.already_appended);
    assert_eq!(again.last_revisions, [2, 0, 0]);
    drop(client);
    server.stop_cleanly();
}
