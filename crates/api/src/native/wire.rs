//! Primitives of the native protocol: little-endian numbers, short texts, and their errors.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes that are no legal frame. The connection they came over cannot be trusted any further when
/// the frame's own boundaries are wrong ([`DecodeError::FrameTooLarge`]); otherwise only the
/// request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A frame that says it is longer than `FRAME_BYTES_MAX`.
    #[error("a frame of {payload_bytes} bytes exceeds the limit of {limit}")]
    FrameTooLarge {
        /// Bytes that the header claims.
        payload_bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The payload ends within a field.
    #[error("the frame ends within `{field}`")]
    Truncated {
        /// The field.
        field: &'static str,
    },
    /// Bytes are left after the last field.
    #[error("{bytes} bytes too many after the last field")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// A field with a value that it cannot have.
    #[error("`{field}` has an illegal value")]
    Illegal {
        /// The field.
        field: &'static str,
    },
    /// A kind of frame that this side does not know.
    #[error("unknown kind of frame {kind:#04x}")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
}

/// A value that does not fit its field: the caller's to correct; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {actual} exceeds the limit of {limit}")]
pub struct EncodeError {
    /// The field.
    pub field: &'static str,
    /// What was given: bytes of a text, items of a list.
    pub actual: usize,
    /// The limit.
    pub limit: usize,
}

impl EncodeError {
    /// Fails unless `actual` is within `limit`.
    pub(crate) fn check(
        field: &'static str,
        actual: usize,
        limit: usize,
    ) -> Result<(), EncodeError> {
        if actual <= limit {
            Ok(())
        } else {
            Err(EncodeError {
                field,
                actual,
                limit,
            })
        }
    }
}

/// A text of 0..=255 bytes of UTF-8 that shares the buffer it was read from.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Text(Bytes);

impl Text {
    /// Bytes of the longest text.
    pub const BYTES_MAX: usize = 255;

    /// Copies a text.
    ///
    /// # Errors
    /// More than 255 bytes.
    pub fn new(text: &str) -> Result<Self, EncodeError> {
        EncodeError::check("text", text.len(), Self::BYTES_MAX)?;
        Ok(Self(Bytes::copy_from_slice(text.as_bytes())))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes a length byte and the text.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let length = u8::try_from(self.0.len()).expect("checked when it was made");
        out.put_u8(length);
        out.put_slice(&self.0);
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TryFrom<&str> for Text {
    type Error = EncodeError;

    fn try_from(text: &str) -> Result<Self, EncodeError> {
        Self::new(text)
    }
}

/// Takes fields off a payload, in order, without copying.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(crate) fn new(payload: Bytes) -> Self {
        Self { rest: payload }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn need(&self, bytes: usize, field: &'static str) -> Result<(), DecodeError> {
        if self.rest.len() < bytes {
            Err(DecodeError::Truncated { field })
        } else {
            Ok(())
        }
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.need(1, field)?;
        Ok(self.rest.get_u8())
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.need(2, field)?;
        Ok(self.rest.get_u16_le())
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.need(4, field)?;
        Ok(self.rest.get_u32_le())
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.need(8, field)?;
        Ok(self.rest.get_u64_le())
    }

    pub(crate) fn id(&mut self, field: &'static str) -> Result<[u8; 16], DecodeError> {
        self.need(16, field)?;
        let mut id = [0; 16];
        self.rest.copy_to_slice(&mut id);
        Ok(id)
    }

    pub(crate) fn bytes(&mut self, n: usize, field: &'static str) -> Result<Bytes, DecodeError> {
        self.need(n, field)?;
        Ok(self.rest.split_to(n))
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<Text, DecodeError> {
        let length = usize::from(self.u8(field)?);
        let bytes = self.bytes(length, field)?;
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Text(bytes)),
            Err(_) => Err(DecodeError::Illegal { field }),
        }
    }

    /// A field that must be zero in this version.
    pub(crate) fn zero_u8(&mut self, field: &'static str) -> Result<(), DecodeError> {
        if self.u8(field)? == 0 {
            Ok(())
        } else {
            Err(DecodeError::Illegal { field })
        }
    }

    /// A field that must be zero in this version.
    pub(crate) fn zero_u16(&mut self, field: &'static str) -> Result<(), DecodeError> {
        if self.u16(field)? == 0 {
            Ok(())
        } else {
            Err(DecodeError::Illegal { field })
        }
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::TrailingBytes { bytes }),
        }
    }
}

/// A length that comes from a wire `u32`.
pub(crate) fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("usize has at least 32 bits on every supported target")
}

/// A length whose bound the caller has checked.
pub(crate) fn to_u32(value: usize) -> u32 {
    u32::try_from(value).expect("bounded by the frame's size")
}
