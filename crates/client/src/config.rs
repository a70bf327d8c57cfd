//! How a client connects, waits and retries.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use truthdb_api::native;

/// How the connection is protected.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Tls {
    /// Not at all: for the same machine, or a network that is protected otherwise.
    #[default]
    None,
    /// TLS, and the server's certificate is known by the SHA-256 of its DER encoding. Names and
    /// dates of the certificate do not matter then.
    PinnedFingerprint([u8; 32]),
    /// TLS, and the server's certificate descends from one of these certificates (PEM).
    Roots(Vec<u8>),
}

/// When and how often a failed call is tried again.
///
/// Only errors that are retryable are; the pauses grow from `pause_min` to `pause_max`, each drawn
/// at random between half of it and all of it.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Tries in all, at least 1.
    pub tries_max: u32,
    /// The first pause.
    pub pause_min: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries_max: 20,
            pause_min: Duration::from_millis(10),
            pause_max: Duration::from_secs(2),
        }
    }
}

impl RetryPolicy {
    /// The pause before try number `tries + 1`, given a random number and the server's wish.
    pub(crate) fn pause(&self, tries: u32, random: u64, retry_after: Duration) -> Duration {
        let doublings = tries.saturating_sub(1).min(16);
        let full = self
            .pause_min
            .saturating_mul(1 << doublings)
            .min(self.pause_max);
        let half = full / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        (half + Duration::from_nanos(random % span)).max(retry_after)
    }
}

/// How to reach a server, and within which bounds.
#[derive(Clone)]
pub struct ClientConfig {
    /// Host and port of the native protocol, such as `127.0.0.1:7434`.
    pub addr: String,
    /// Protection of the connection.
    pub tls: Tls,
    /// With [`Tls::Roots`]: the name the certificate must have, if not the host of `addr`.
    pub server_name: Option<String>,
    /// The bearer token, if the server asks for one; at most 4096 bytes.
    pub token: Option<String>,
    /// Connections, 1..=64. One is best for throughput unless the network is the bound.
    pub connections: usize,
    /// Longest time to establish a connection, greeting included.
    pub connect_timeout: Duration,
    /// Longest time of a call, retries included. A page of a read, and the start of a
    /// subscription, count as a call.
    pub request_timeout: Duration,
    /// Bytes of appends that may be under way; further appends wait. At least one batch fits.
    pub in_flight_bytes_max: usize,
    /// Bytes of pages that may be under way for each read and subscription, at least 8 MiB.
    pub window_bytes: u32,
    /// Longest time without a sign of life in a subscription is three times this; 100 ms..=60 s.
    pub heartbeat: Duration,
    /// Retries.
    pub retry: RetryPolicy,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret and must not reach a log.
        f.debug_struct("ClientConfig")
            .field("addr", &self.addr)
            .field("token", &self.token.as_ref().map(|_| "given"))
            .field("connections", &self.connections)
            .field("request_timeout", &self.request_timeout)
            .field("in_flight_bytes_max", &self.in_flight_bytes_max)
            .finish_non_exhaustive()
    }
}

/// The smallest [`ClientConfig::window_bytes`]: the largest event, and as much again less a page,
/// so that credit is returned in large steps and the largest event still always fits.
pub const WINDOW_BYTES_MIN: u32 = 8 * 1024 * 1024;

const _: () = assert!(WINDOW_BYTES_MIN as usize * 3 / 4 >= native::CREDIT_BYTES_MIN);

impl ClientConfig {
    /// The defaults: no TLS, no token, one connection, 30 s for a call, 64 MiB under way.
    pub fn new(addr: impl Into<String>) -> Self {
        Self {
            addr: addr.into(),
            tls: Tls::None,
            server_name: None,
            token: None,
            connections: 1,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            in_flight_bytes_max: 64 * 1024 * 1024,
            window_bytes: 16 * 1024 * 1024,
            heartbeat: Duration::from_secs(5),
            retry: RetryPolicy::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=64).contains(&self.connections) {
            return Err(format!(
                "connections is {}, allowed are 1 to 64",
                self.connections
            ));
        }
        if self.retry.tries_max == 0 {
            return Err("retry.tries_max is 0; 1 means no retry".to_owned());
        }
        if self.window_bytes < WINDOW_BYTES_MIN {
            let window_bytes = self.window_bytes;
            return Err(format!(
                "window_bytes is {window_bytes}, at least {WINDOW_BYTES_MIN}"
            ));
        }
        let token_bytes = self.token.as_ref().map_or(0, String::len);
        if token_bytes > native::TOKEN_BYTES_MAX {
            return Err(format!("the token has {token_bytes} bytes"));
        }
        let heartbeat_ms = self.heartbeat.as_millis();
        let legal = u128::from(native::HEARTBEAT_MS_MIN)..=u128::from(native::HEARTBEAT_MS_MAX);
        if !legal.contains(&heartbeat_ms) {
            return Err(format!(
                "heartbeat is {heartbeat_ms} ms, allowed are 100 to 60000"
            ));
        }
        Ok(())
    }

    pub(crate) fn heartbeat_ms(&self) -> u16 {
        u16::try_from(self.heartbeat.as_millis()).expect("checked when the client was made")
    }

    pub(crate) fn hello(&self) -> native::Hello {
        native::Hello {
            version_min: native::PROTOCOL_VERSION,
            version_max: native::PROTOCOL_VERSION,
            token: self.token.clone().map_or_else(Bytes::new, Bytes::from),
        }
    }
}
