//! What every structure on disk looks like, field by field, for `inspect`.

use serde::Serialize;

use crate::layout::{checksum, is_zero, u32_at, u64_at};
use crate::proof::hex;

/// A part of a file, explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Where it begins in the file, in bytes. Inside compressed blocks: in the block's content.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Name of the structure or field.
    pub name: String,
    /// What it holds.
    pub value: String,
    /// A remark, for what the value means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Node>,
}

impl Node {
    pub(crate) fn new(offset: u64, length: u64, name: &str, value: impl Into<String>) -> Node {
        Node {
            offset,
            length,
            name: name.to_owned(),
            value: value.into(),
            note: None,
            problem: None,
            parts: Vec::new(),
        }
    }

    pub(crate) fn problem(mut self, problem: impl Into<String>) -> Node {
        self.problem = Some(problem.into());
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Node {
        self.note = Some(note.into());
        self
    }

    /// Number of problems in it and its parts.
    pub fn problem_count(&self) -> u64 {
        u64::from(self.problem.is_some()) + self.parts.iter().map(Node::problem_count).sum::<u64>()
    }
}

/// How a field is shown.
#[derive(Clone, Copy)]
pub(crate) enum Show {
    /// xxHash64 of the structure behind the field.
    Checksum,
    /// Four letters that must be these.
    Magic(&'static str),
    /// A little-endian number.
    Number,
    /// A number, with what its values mean.
    Code(&'static [&'static str]),
    /// Bit names, from bit 0.
    Flags(&'static [&'static str]),
    /// A number in hexadecimal.
    Hash,
    /// Bytes in hexadecimal.
    Bytes,
    /// Nanoseconds since 1970.
    Time,
    /// Not shown: who has it can craft colliding names.
    Secret,
    /// Must be zero.
    Zero,
}

/// A field: name, bytes, how it is shown.
pub(crate) type Field = (&'static str, usize, Show);

use Show::{Bytes, Checksum, Code, Flags, Hash, Magic, Number, Secret, Time, Zero};

pub(crate) const SEGMENT_HEADER: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TSEG")),
    ("version", 2, Number),
    ("kind", 2, Code(&["", "active layout", "packed"])),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("segment", 4, Number),
    ("base_sequence", 8, Number),
    ("segment_bytes", 8, Number),
    ("previous_checksum", 8, Hash),
    ("first_segment", 4, Number),
    ("reserved", 4, Zero),
    ("first_sequence", 8, Number),
    ("created", 8, Time),
];

pub(crate) const FOOTER: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TFTR")),
    ("version", 2, Number),
    ("kind", 2, Code(&["", "active layout", "packed"])),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("segment", 4, Number),
    ("base_sequence", 8, Number),
    ("last_sequence", 8, Number),
    ("event_count", 8, Number),
    ("batch_count", 8, Number),
    ("first_timestamp", 8, Time),
    ("last_timestamp", 8, Time),
    ("data_end", 8, Number),
    ("sparse_offset", 8, Number),
    ("sparse_entries", 8, Number),
    ("event_bytes", 8, Number),
    ("last_batch_checksum", 8, Hash),
    ("root", 32, Bytes),
    ("previous_chain", 32, Bytes),
    ("chain", 32, Bytes),
    ("first_segment", 4, Number),
    ("reserved", 4, Zero),
    ("first_sequence", 8, Number),
];

pub(crate) const BATCH_HEADER: &[Field] = &[
    ("header_checksum", 8, Checksum),
    ("magic", 4, Magic("TBAT")),
    ("version", 2, Number),
    ("flags", 2, Flags(&["mark", "clean stop"])),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("segment", 4, Number),
    ("offset", 8, Number),
    ("first_sequence", 8, Number),
    ("timestamp", 8, Time),
    ("previous_checksum", 8, Hash),
    ("body_checksum", 8, Hash),
    ("flushed_sequence", 8, Number),
    ("event_count", 4, Number),
    ("body_bytes", 4, Number),
    ("flushed_offset", 8, Number),
];

pub(crate) const PACKED_BLOCK: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TPKB")),
    ("version", 2, Number),
    ("codec", 1, Code(&["none", "zstd"])),
    ("reserved", 1, Zero),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("segment", 4, Number),
    ("offset", 8, Number),
    ("first_sequence", 8, Number),
    ("batch_count", 4, Number),
    ("raw_bytes", 4, Number),
    ("stored_bytes", 4, Number),
    ("event_count", 4, Number),
    ("stored_checksum", 8, Hash),
];

pub(crate) const MANIFEST: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TMAN")),
    ("version", 2, Number),
    ("reserved", 2, Zero),
    ("database_id", 16, Bytes),
    ("partition_count", 4, Number),
    ("reserved", 4, Zero),
    ("segment_bytes", 8, Number),
    ("key_seed", 16, Secret),
    ("created", 8, Time),
];

pub(crate) const SCHEMA: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TSCH")),
    ("format_version", 2, Number),
    ("segment_version", 2, Number),
    ("batch_version", 2, Number),
    ("manifest_version", 2, Number),
    ("batch_events_max", 4, Number),
    ("batch_bytes_max", 4, Number),
    ("event_payload_bytes_max", 4, Number),
    ("metadata_bytes_max", 4, Number),
    ("tags_max", 4, Number),
    ("metadata_keys_max", 4, Number),
];

pub(crate) const TRIM: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TTRM")),
    ("version", 2, Number),
    ("reserved", 2, Zero),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("first_segment", 4, Number),
    ("first_sequence", 8, Number),
];

pub(crate) const INDEX_HEADER: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TIDX")),
    ("version", 2, Number),
    ("reserved", 2, Zero),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("segment", 4, Number),
    ("base_sequence", 8, Number),
    ("event_count", 8, Number),
    ("key_check", 8, Hash),
    ("chain", 32, Bytes),
    ("stream_stride", 8, Number),
    ("facet_stride", 8, Number),
];

pub(crate) const RUN_HEADER: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("THDR")),
    ("version", 2, Number),
    ("reserved", 2, Zero),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("first_segment", 4, Number),
    ("last_segment", 4, Number),
    ("reserved", 4, Zero),
    ("key_check", 8, Hash),
    ("chain", 32, Bytes),
];

pub(crate) const RECENT_IDS_HEADER: &[Field] = &[
    ("checksum", 8, Checksum),
    ("magic", 4, Magic("TIDS")),
    ("version", 2, Number),
    ("reserved", 2, Zero),
    ("database_id", 16, Bytes),
    ("partition", 4, Number),
    ("reserved", 4, Zero),
    ("key_check", 8, Hash),
    ("next_sequence", 8, Number),
    ("last_checksum", 8, Hash),
    ("first_sequence", 8, Number),
];

/// Explains a structure that begins `bytes`, is `length` bytes long and lies at `offset`. Bytes
/// behind the last field are
/// `rest` bytes of another explanation, then zeros.
pub(crate) fn structure(
    name: &str,
    offset: u64,
    bytes: &[u8],
    length: usize,
    fields: &[Field],
    rest: usize,
) -> Node {
    let mut node = Node::new(offset, length as u64, name, "");
    let mut at = 0;
    for (field, size, show) in fields {
        let Some(value) = bytes.get(at..at + size) else {
            node.problem = Some(format!("is cut short: {} of {length} bytes", bytes.len()));
            return node;
        };
        node.parts.push(show_field(
            offset + at as u64,
            field,
            value,
            *show,
            bytes,
            length,
        ));
        at += size;
    }
    if bytes.len() < length {
        node.problem = Some(format!("is cut short: {} of {length} bytes", bytes.len()));
    } else if !is_zero(&bytes[at + rest..length]) {
        let (offset, size) = (offset + (at + rest) as u64, (length - at - rest) as u64);
        let reserved = Node::new(offset, size, "reserved", "not zero");
        node.parts.push(reserved.problem("must be zero"));
    }
    node
}

fn show_field(
    offset: u64,
    name: &str,
    value: &[u8],
    show: Show,
    whole: &[u8],
    length: usize,
) -> Node {
    let number = value
        .iter()
        .rev()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let node = |text: String| Node::new(offset, value.len() as u64, name, text);
    match show {
        Checksum => {
            let shown = node(format!("{number:016x}"));
            let computed = whole.get(8..length).map(checksum);
            match computed {
                Some(computed) if computed == number => shown.note("fits"),
                Some(computed) => shown.problem(format!("the bytes give {computed:016x}")),
                None => shown,
            }
        }
        Magic(expected) => {
            let shown = node(String::from_utf8_lossy(value).escape_debug().to_string());
            match value == expected.as_bytes() {
                true => shown,
                false => shown.problem(format!("must be {expected}")),
            }
        }
        Number => node(number.to_string()),
        Code(names) => {
            let known = usize::try_from(number)
                .ok()
                .and_then(|code| names.get(code));
            match known.filter(|name| !name.is_empty()) {
                Some(name) => node(number.to_string()).note(*name),
                None => node(number.to_string()).problem("has no meaning"),
            }
        }
        Flags(names) => {
            let set = |bit: &usize| number >> bit & 1 == 1;
            let named: Vec<&str> = (0..names.len()).filter(set).map(|bit| names[bit]).collect();
            let shown = node(number.to_string());
            match number >> names.len() {
                0 if named.is_empty() => shown,
                0 => shown.note(named.join(", ")),
                _ => shown.problem("has bits without a meaning"),
            }
        }
        Hash => node(format!("{number:016x}")),
        Bytes => node(hex(value)),
        Time => node(number.to_string()).note(time_text(number)),
        Secret => node("(secret)".to_owned()),
        Zero if number == 0 => node("0".to_owned()),
        Zero => node(number.to_string()).problem("must be zero"),
    }
}

/// Nanoseconds since 1970 as `2026-01-31T23:59:59.000000001Z`.
pub(crate) fn time_text(ns: u64) -> String {
    let (seconds, nanos) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days from a March-based year (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// A row of a batch's table.
pub(crate) struct TableRow {
    pub(crate) checksum: u64,
    pub(crate) revision: u64,
    pub(crate) length: u32,
}

/// Reads a row of a table of `count` rows, if the body is long enough.
pub(crate) fn table_row(body: &[u8], count: usize, row: usize) -> Option<TableRow> {
    (body.len() >= count.checked_mul(20)?).then(|| TableRow {
        checksum: u64_at(body, row * 8),
        revision: u64_at(body, count * 8 + row * 8),
        length: u32_at(body, count * 16 + row * 4),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            time_text(951_782_400_000_000_001),
            "2000-02-29T00:00:00.000000001Z"
        );
        assert_eq!(
            time_text(4_107_542_399_999_999_999),
            "2100-02-28T23:59:59.999999999Z"
        );
    }
}
