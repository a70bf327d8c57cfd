//! Single events, appended to an engine whose threads run.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses its part; a test that cannot go on ends, wherever it is"
)]

use bytes::Bytes;
use truthdb_compute::Token;
use truthdb_engine::{AppendError, EncodedEvents, Engine};
use truthdb_event::{EventBuilder, EventId};

/// One event, whose id follows from `n`.
pub fn encoded(n: u64, stream: &str, event_type: &str, payload: &[u8]) -> EncodedEvents {
    let mut id = [3; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    let mut bytes = Vec::new();
    EventBuilder::new(stream, event_type)
        .id(EventId::from_bytes(id))
        .payload(payload)
        .encode_into(&mut bytes)
        .unwrap();
    EncodedEvents {
        bytes: Bytes::from(bytes),
        ..EncodedEvents::default()
    }
}

/// Appends, once.
pub fn append_once(engine: &Engine, event: EncodedEvents) -> Result<Token, AppendError> {
    let appended = engine.append_blocking(engine.prepare(None, event).unwrap())?;
    Ok(Token::of(appended.partition, appended.last_sequence))
}

/// Appends, again while the engine asks for that.
pub fn append(engine: &Engine, event: EncodedEvents) -> Result<Token, AppendError> {
    loop {
        match append_once(engine, event.clone()) {
            Err(error) if error.is_retryable() => std::thread::yield_now(),
            outcome => return outcome,
        }
    }
}
