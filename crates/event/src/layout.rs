//! Byte positions and limits of a canonical event.

/// Bytes before the first name: id, lengths and one reserved byte.
pub const EVENT_HEADER_BYTES: usize = 28;
/// Longest stream name, in bytes of UTF-8. The shortest is 1.
pub const STREAM_NAME_BYTES_MAX: usize = 255;
/// Longest event type, in bytes of UTF-8. The shortest is 1.
pub const EVENT_TYPE_BYTES_MAX: usize = 255;
/// Longest content type, in bytes of UTF-8. It may be empty.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Most tags of one event.
pub const TAGS_MAX: usize = 32;
/// Longest tag, in bytes of UTF-8. The shortest is 1.
pub const TAG_BYTES_MAX: usize = 255;
/// Longest metadata key, in bytes of UTF-8. The shortest is 1.
pub const METADATA_KEY_BYTES_MAX: usize = 255;
/// Most metadata keys of one event.
pub const METADATA_KEYS_MAX: usize = 64;
/// Longest encoded metadata section, in bytes: keys, values, and 3 bytes of lengths for each pair.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Longest payload, in bytes.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most events of one batch.
pub const BATCH_EVENTS_MAX: usize = 10_000;
/// Bytes of one batch at most: the canonical bytes of its events and 20 bytes of table for each.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest encoded tags section, in bytes.
pub const TAGS_BYTES_MAX: usize = TAGS_MAX * (1 + TAG_BYTES_MAX);
/// Longest canonical event, in bytes.
pub const EVENT_BYTES_MAX: usize = EVENT_HEADER_BYTES
    + STREAM_NAME_BYTES_MAX
    + EVENT_TYPE_BYTES_MAX
    + CONTENT_TYPE_BYTES_MAX
    + TAGS_BYTES_MAX
    + METADATA_BYTES_MAX
    + EVENT_PAYLOAD_BYTES_MAX;

/// Metadata key: the id of the event or command that caused this one.
pub const METADATA_CAUSATION_ID: &str = "causation_id";
/// Metadata key: the id shared by everything that belongs to one business conversation.
pub const METADATA_CORRELATION_ID: &str = "correlation_id";

pub(crate) const AT_PAYLOAD_BYTES: usize = 16;
pub(crate) const AT_METADATA_BYTES: usize = 20;
pub(crate) const AT_TAGS_BYTES: usize = 22;
pub(crate) const AT_STREAM_BYTES: usize = 24;
pub(crate) const AT_TYPE_BYTES: usize = 25;
pub(crate) const AT_CONTENT_TYPE_BYTES: usize = 26;
pub(crate) const AT_RESERVED: usize = 27;

const _: () = assert!(AT_RESERVED + 1 == EVENT_HEADER_BYTES);
const _: () = assert!(TAGS_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(METADATA_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(EVENT_BYTES_MAX < BATCH_BYTES_MAX);
