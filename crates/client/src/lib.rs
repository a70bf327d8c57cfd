//! Async client of TruthDB, over its native protocol.
//!
//! A [`Client`] is cheap to clone and meant to be shared by all tasks of a process: their appends
//! are coalesced into few frames over one connection. Appends are retried safely, because every
//! event has an id before the first try and the server appends an id once. Reads and subscriptions
//! survive a lost connection and go on after the last event delivered, with no gap and no duplicate.
//!
//! ```no_run
//! use truthdb_client::{Client, ClientConfig, EventBuilder, ExpectedRevision, NewBatch, Read};
//!
//! # async fn example() -> Result<(), truthdb_client::ClientError> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:7434")).await?;
//! let batch = NewBatch::new()
//!     .event(EventBuilder::new("order-1", "order-placed").payload(b"{\"cents\":100}"))?
//!     .expect("order-1", ExpectedRevision::NoStream)?;
//! let appended = client.append(batch).await?;
//! println!("event {} of partition {}", appended.first_sequence, appended.partition);
//!
//! let mut pages = client.read(Read::stream("order-1"))?;
//! while let Some(page) = pages.next().await? {
//!     for event in page.events() {
//!         println!("{} {}", event.revision(), event.event().event_type());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: memory is bounded by [`ClientConfig::in_flight_bytes_max`] for appends and by
//! [`ClientConfig::window_bytes`] for each read and subscription; every event that is delivered was
//! verified against its checksum; a failed call says whether anything may have happened.
//!
//! Not here: administration and listings (gRPC and HTTP have them), and any choice of partition
//! other than by the stream's name.

#![deny(missing_docs)]

mod batch;
mod client;
mod config;
mod connection;
mod error;
mod read;
mod subscribe;
mod tls;

pub use batch::NewBatch;
pub use client::{Appended, Client, Cursor, Database, StreamHead};
pub use config::{ClientConfig, RetryPolicy, Tls, WINDOW_BYTES_MIN};
pub use error::ClientError;
pub use read::{EventPage, Pages, Read, RecordedEvent};
pub use subscribe::{Message, Subscribe, Subscription};
pub use tls::{ByteStream, open_stream};

pub use truthdb_api::native::{
    Durability, EventMatch, ExpectedRevision, Filter, Limits, Position, StreamFilter,
    SubscribeStart, Text,
};
pub use truthdb_api::{ApiError, ErrorCode, Outcome};
pub use truthdb_event::{EventBuilder, EventId, EventRef};
