//! Valid inputs to start from: what the encoders write, and the golden files of the format.

use bytes::BytesMut;
use truthdb_api::native;
use truthdb_event::{EventBuilder, EventId};

/// Canonical events.
pub(crate) fn events() -> Vec<Vec<u8>> {
    let small = EventBuilder::new("s", "t").id(EventId::from_bytes([1; 16]));
    let full = EventBuilder::new("account-1", "deposited")
        .id(EventId::from_bytes([7; 16]))
        .content_type("application/json")
        .tag("currency:EUR")
        .tag("branch:7")
        .metadata("causation_id", "4711")
        .metadata("business_time", "2013-01-01T10:15:00Z")
        .payload(br#"{"cents":100}"#);
    [small, full].map(encoded).to_vec()
}

fn encoded(event: EventBuilder<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    event.encode_into(&mut bytes).expect("the seeds are valid");
    bytes
}

/// Frames of the native protocol, alone and in a row.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let stream = native::Text::new("account-1").expect("a short name");
    let position = native::Position {
        position: 5,
        head_sequence: 9,
    };
    let writers: [fn(&mut BytesMut, &native::Text, native::Position); 9] = [
        |out, _, _| native::encode_credit(out, 3, 65_536),
        |out, _, _| native::encode_cancel(out, 3),
        |out, _, _| native::encode_ping(out, 4, 42),
        |out, _, _| native::encode_pong(out, 4, 42),
        |out, stream, _| native::encode_stream_head(out, 5, 1, stream),
        |out, stream, _| native::encode_cursor_get(out, 6, 1, stream),
        |out, _, position| native::encode_end(out, 7, position),
        |out, _, position| native::encode_caught_up(out, 7, position),
        |out, _, _| append_frame(out),
    ];
    let mut row = BytesMut::new();
    let mut frames = Vec::new();
    for write in writers {
        let start = row.len();
        write(&mut row, &stream, position);
        frames.push(row[start..].to_vec());
    }
    frames.push(row.to_vec());
    frames
}

fn append_frame(out: &mut BytesMut) {
    let events = events();
    let checksums: Vec<u64> = events
        .iter()
        .map(|e| truthdb_event::event_checksum(e))
        .collect();
    let lengths: Vec<u32> = events
        .iter()
        .map(|e| u32::try_from(e.len()).expect("small events"))
        .collect();
    let mut entry = BytesMut::new();
    let head = native::AppendHead::default();
    native::encode_append_entry(&mut entry, 0, &head, &checksums, &lengths, &events.concat())
        .expect("the seeds are valid");
    let mut frame = native::AppendFrameEncoder::begin(out);
    frame.push(out, 11, &entry);
    frame.finish(out);
}

/// A golden file of one structure (`offset name hexadecimal` in each line), filled up with zeros to whole
/// blocks where the structure is a block.
pub(crate) fn golden(text: &str) -> Vec<u8> {
    const BLOCK_BYTES: usize = 4096;
    let mut bytes = Vec::new();
    let mut is_block = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let offset = words.next().and_then(|word| word.parse::<usize>().ok());
        let (Some(offset), Some(value)) = (offset, words.next_back()) else {
            continue;
        };
        is_block |= line.contains("all zero");
        if offset != bytes.len() || value.len() % 2 != 0 {
            continue;
        }
        let digits = (0..value.len()).step_by(2);
        let Some(field) = digits
            .map(|at| u8::from_str_radix(&value[at..at + 2], 16).ok())
            .collect::<Option<Vec<u8>>>()
        else {
            continue;
        };
        bytes.extend(field);
    }
    if is_block && bytes.len() < BLOCK_BYTES && !text.contains("all zero: false") {
        bytes.resize(BLOCK_BYTES, 0);
    }
    bytes
}

/// Structures of the data directory.
pub(crate) fn structures() -> Vec<Vec<u8>> {
    [
        include_str!("../../crates/log/tests/golden/batch_header.txt"),
        include_str!("../../crates/log/tests/golden/clean_stop_mark.txt"),
        include_str!("../../crates/log/tests/golden/manifest.txt"),
        include_str!("../../crates/log/tests/golden/packed_block.txt"),
        include_str!("../../crates/log/tests/golden/schema.txt"),
        include_str!("../../crates/log/tests/golden/segment_footer.txt"),
        include_str!("../../crates/log/tests/golden/segment_header.txt"),
    ]
    .map(golden)
    .to_vec()
}

/// Inclusion proofs.
pub(crate) fn proofs() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../crates/log/tests/golden/proof-1.json").to_vec()]
}

#[cfg(test)]
mod tests {
    use truthdb_log::{BatchHeader, Footer, Manifest, PackedBlockHeader, Schema, SegmentHeader};

    #[test]
    fn each_structure_has_a_valid_seed() {
        let seeds = super::structures();
        let any = |is_valid: fn(&[u8]) -> bool| seeds.iter().any(|seed| is_valid(seed));
        assert!(any(|seed| BatchHeader::decode(seed).is_ok()));
        assert!(any(|seed| Manifest::decode(seed).is_ok()));
        assert!(any(|seed| PackedBlockHeader::decode(seed).is_ok()));
        assert!(any(|seed| Schema::decode(seed).is_ok()));
        assert!(any(|seed| Footer::decode(seed).is_ok()));
        assert!(any(|seed| SegmentHeader::decode(seed).is_ok()));
    }
}
