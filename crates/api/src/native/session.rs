//! Frames about the connection: Hello and Welcome, ping and pong.

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{Kind, begin_frame, end_frame};
use super::wire::{DecodeError, EncodeError, Reader, Text};

/// The first eight bytes of a Hello's payload.
pub const MAGIC: [u8; 8] = *b"TRUTHDB\0";

/// The only version of the protocol so far.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bytes of the longest token.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// Role bit: appends.
pub const ROLE_INGEST: u16 = 1;
/// Role bit: modules.
pub const ROLE_COMPUTE: u16 = 2;
/// Role bit: reads and subscriptions.
pub const ROLE_QUERY: u16 = 4;
/// Role bit: replay.
pub const ROLE_REPLAY: u16 = 8;

/// A client's first frame: which versions it speaks, and who it is.
///
/// ```text
/// 0 [8] "TRUTHDB\0"   8 u16 version_min   10 u16 version_max   12 u16 token_bytes   14 token
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// The lowest version that the client speaks.
    pub version_min: u16,
    /// The highest version that the client speaks.
    pub version_max: u16,
    /// The bearer token; empty: none.
    pub token: Bytes,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret and must not reach a log.
        f.debug_struct("Hello")
            .field("version_min", &self.version_min)
            .field("version_max", &self.version_max)
            .field(
                "token",
                &if self.token.is_empty() {
                    "none"
                } else {
                    "given"
                },
            )
            .finish()
    }
}

impl Hello {
    /// Writes the frame.
    ///
    /// # Errors
    /// A token above [`TOKEN_BYTES_MAX`].
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        EncodeError::check("token", self.token.len(), TOKEN_BYTES_MAX)?;
        let start = begin_frame(out, Kind::Hello, 0);
        out.put_slice(&MAGIC);
        out.put_u16_le(self.version_min);
        out.put_u16_le(self.version_max);
        out.put_u16_le(u16::try_from(self.token.len()).expect("checked above"));
        out.put_slice(&self.token);
        end_frame(out, start);
        Ok(())
    }

    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        if reader.bytes(MAGIC.len(), "magic")? != MAGIC[..] {
            return Err(DecodeError::Illegal { field: "magic" });
        }
        let version_min = reader.u16("version_min")?;
        let version_max = reader.u16("version_max")?;
        let token_bytes = usize::from(reader.u16("token_bytes")?);
        if version_min > version_max || token_bytes > TOKEN_BYTES_MAX {
            return Err(DecodeError::Illegal { field: "version" });
        }
        let token = reader.bytes(token_bytes, "token")?;
        // A later version of Hello may be longer: it is the one frame that is read leniently,
        // because the version is agreed on only by it.
        Ok(Self {
            version_min,
            version_max,
            token,
        })
    }

    /// The version to speak, the highest that both sides know; `None`: refuse the connection.
    pub fn negotiate(&self) -> Option<u16> {
        (self.version_min..=self.version_max)
            .contains(&PROTOCOL_VERSION)
            .then_some(PROTOCOL_VERSION)
    }
}

/// What an acknowledgement of an append means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Durability {
    /// On stable storage.
    #[default]
    FlushEachGroup = 0,
    /// On stable storage within the loss window.
    FlushInterval = 1,
    /// Handed to the operating system; for tests.
    Os = 2,
}

impl Durability {
    pub(super) fn from_wire(value: u8) -> Result<Self, DecodeError> {
        match value {
            0 => Ok(Self::FlushEachGroup),
            1 => Ok(Self::FlushInterval),
            2 => Ok(Self::Os),
            _ => Err(DecodeError::Illegal {
                field: "durability",
            }),
        }
    }
}

/// The limits that a server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a frame's payload.
    pub frame_bytes_max: u32,
    /// Bytes of a batch: canonical event bytes + 20 for each event.
    pub batch_bytes_max: u32,
    /// Events of a batch.
    pub batch_events_max: u32,
    /// Bytes of an event's payload.
    pub event_payload_bytes_max: u32,
    /// Bytes of an event's encoded metadata.
    pub metadata_bytes_max: u32,
    /// Bytes of unanswered appends of this connection: above it the server stops reading from it.
    pub in_flight_bytes_max: u32,
}

/// The server's answer to Hello.
///
/// ```text
///  0 u16 version   2 u16 roles   4 u32 partition_count   8 [16] database_id
/// 24 u8 durability   25 u8 zero   26 u16 zero   28 u32 loss_window_ms
/// 32 u32 frame_bytes_max   36 u32 batch_bytes_max   40 u32 batch_events_max
/// 44 u32 event_payload_bytes_max   48 u32 metadata_bytes_max   52 u32 in_flight_bytes_max
/// 56 u8 length, server_version
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version of the protocol from here on.
    pub version: u16,
    /// Roles that the node runs: `ROLE_*` bits.
    pub roles: u16,
    /// Number of partitions, at least 1.
    pub partition_count: u32,
    /// The database.
    pub database_id: [u8; 16],
    /// What an acknowledgement means here.
    pub durability: Durability,
    /// With [`Durability::FlushInterval`]: how much acknowledged time a power failure may cost.
    pub loss_window_ms: u32,
    /// Limits.
    pub limits: Limits,
    /// The server's version, such as `0.1.0`.
    pub server_version: Text,
}

impl Welcome {
    /// Writes the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = begin_frame(out, Kind::Welcome, 0);
        out.put_u16_le(self.version);
        out.put_u16_le(self.roles);
        out.put_u32_le(self.partition_count);
        out.put_slice(&self.database_id);
        out.put_u8(self.durability as u8);
        out.put_u8(0);
        out.put_u16_le(0);
        out.put_u32_le(self.loss_window_ms);
        let limits = &self.limits;
        out.put_u32_le(limits.frame_bytes_max);
        out.put_u32_le(limits.batch_bytes_max);
        out.put_u32_le(limits.batch_events_max);
        out.put_u32_le(limits.event_payload_bytes_max);
        out.put_u32_le(limits.metadata_bytes_max);
        out.put_u32_le(limits.in_flight_bytes_max);
        self.server_version.encode(out);
        end_frame(out, start);
    }

    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let version = reader.u16("version")?;
        let roles = reader.u16("roles")?;
        let partition_count = reader.u32("partition_count")?;
        if partition_count == 0 {
            return Err(DecodeError::Illegal {
                field: "partition_count",
            });
        }
        let database_id = reader.id("database_id")?;
        let durability = Durability::from_wire(reader.u8("durability")?)?;
        reader.zero_u8("reserved")?;
        reader.zero_u16("reserved")?;
        let loss_window_ms = reader.u32("loss_window_ms")?;
        let limits = Limits {
            frame_bytes_max: reader.u32("frame_bytes_max")?,
            batch_bytes_max: reader.u32("batch_bytes_max")?,
            batch_events_max: reader.u32("batch_events_max")?,
            event_payload_bytes_max: reader.u32("event_payload_bytes_max")?,
            metadata_bytes_max: reader.u32("metadata_bytes_max")?,
            in_flight_bytes_max: reader.u32("in_flight_bytes_max")?,
        };
        let server_version = reader.text("server_version")?;
        reader.finish()?;
        Ok(Self {
            version,
            roles,
            partition_count,
            database_id,
            durability,
            loss_window_ms,
            limits,
            server_version,
        })
    }
}
