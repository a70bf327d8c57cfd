//! Follows a partition from a durable cursor, and commits the cursor as it goes.
//!
//! Start a server first (`truthdb serve --init-if-empty`), then
//! `cargo run --example subscribe -- 127.0.0.1:7434`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use truthdb_client::{Client, ClientConfig, ClientError, Message, Subscribe};

const CURSOR: &str = "example-printer";

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let addr = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7434".to_owned());
    let client = Client::connect(ClientConfig::new(addr)).await?;
    let start = match client.cursor_get(0, CURSOR).await? {
        Some(_) => Subscribe::partition(0).from_cursor(CURSOR)?,
        None => Subscribe::partition(0),
    };
    let mut subscription = client.subscribe(start).await?;
    loop {
        match subscription.next().await? {
            Message::Events(page) => {
                for event in page {
                    println!("{} {}", event.sequence(), event.event().stream());
                }
                client
                    .cursor_commit(0, CURSOR, subscription.position())
                    .await?;
            }
            Message::CaughtUp(at) => println!("caught up at {}", at.position),
            Message::Heartbeat(at) => println!("still at {}", at.position),
            Message::Interrupted(error) => println!("reconnecting: {error}"),
        }
    }
}
