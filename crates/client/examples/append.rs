//! Appends one event with an expectation, then reads its stream.
//!
//! Start a server first (`truthdb serve --init-if-empty`), then
//! `cargo run --example append -- 127.0.0.1:7434`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use truthdb_client::{Client, ClientConfig, ClientError, EventBuilder, NewBatch, Read};

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let addr = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7434".to_owned());
    let client = Client::connect(ClientConfig::new(addr)).await?;
    let payload = br#"{"cents":1250}"#;
    let event = EventBuilder::new("account-42", "deposited")
        .content_type("application/json")
        .tag("currency:EUR")
        .payload(payload);
    let appended = client.append(NewBatch::new().event(event)?).await?;
    println!(
        "appended as {} of partition {}",
        appended.first_sequence, appended.partition
    );

    let mut pages = client.read(Read::stream("account-42"))?;
    while let Some(page) = pages.next().await? {
        for event in page {
            let parts = event.event();
            let payload = String::from_utf8_lossy(parts.payload());
            println!(
                "revision {} {} {payload}",
                event.revision(),
                parts.event_type()
            );
        }
    }
    Ok(())
}
