//! The decoders, and what must hold for whatever they accept.

use truthdb_event::{EventBuilder, EventRef, event_checksum};
use truthdb_log::{
    BatchHeader, Footer, Manifest, PackedBlockHeader, Proof, Schema, SegmentHeader, SparseEntry,
    check_proof, decode_sparse_index, encode_sparse_index,
};

use crate::{seeds, state};

/// A decoder under test.
#[derive(Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Valid inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes any input. Panics if what was accepted is not right.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "event",
        seeds: seeds::events,
        run: event,
    },
    Target {
        name: "frames",
        seeds: seeds::frames,
        run: frames,
    },
    Target {
        name: "structures",
        seeds: seeds::structures,
        run: structures,
    },
    Target {
        name: "sparse-index",
        seeds: seeds::structures,
        run: sparse_index,
    },
    Target {
        name: "proof",
        seeds: seeds::proofs,
        run: proof,
    },
    Target {
        name: "delta",
        seeds: state::deltas,
        run: state::delta,
    },
    Target {
        name: "snapshot",
        seeds: state::snapshots,
        run: state::snapshot,
    },
];

/// An accepted event encodes to the bytes it was read from: there is one encoding for one event.
fn event(input: &[u8]) {
    let Ok(event) = EventRef::parse(input) else {
        return;
    };
    let mut builder = EventBuilder::new(event.stream(), event.event_type())
        .id(event.id())
        .content_type(event.content_type())
        .payload(event.payload());
    for tag in event.tags() {
        builder = builder.tag(tag);
    }
    for (key, value) in event.metadata() {
        builder = builder.metadata(key, value);
    }
    let mut again = Vec::new();
    builder
        .encode_into(&mut again)
        .expect("what is accepted can be written");
    assert!(again == input, "an accepted event has a second encoding");
    assert!(EventRef::parse_prefix(input).is_ok_and(|length| length == input.len()));
}

/// Frames of both sides are taken apart down to the events in them.
fn frames(input: &[u8]) {
    let frames = truthdb_api::native::fuzz_decode(input);
    // A frame has a header, an event more than one byte.
    assert!(
        frames <= input.len(),
        "{frames} frames and events in {} bytes",
        input.len()
    );
}

/// The input with the checksum that a structure on disk begins with: xxHash64 of what follows it.
pub fn with_checksum(input: &[u8], structure_bytes: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if let Some((checksum, rest)) = bytes.split_first_chunk_mut::<8>()
        && let Some(covered) = rest.get(..structure_bytes.saturating_sub(8))
    {
        *checksum = event_checksum(covered).to_le_bytes();
    }
    bytes
}

/// An accepted structure is written again as it was read.
fn structures(input: &[u8]) {
    for bytes in [128, 96, 4096].map(|length| with_checksum(input, length)) {
        if let Ok(header) = BatchHeader::decode(&bytes) {
            assert_eq!(BatchHeader::decode(&header.encode()).ok(), Some(header));
        }
        if let Ok(header) = PackedBlockHeader::decode(&bytes) {
            assert_eq!(
                PackedBlockHeader::decode(&header.encode()).ok(),
                Some(header)
            );
        }
        if let Ok(header) = SegmentHeader::decode(&bytes) {
            assert_eq!(SegmentHeader::decode(&header.encode()).ok(), Some(header));
        }
        if let Ok(footer) = Footer::decode(&bytes) {
            assert_eq!(Footer::decode(&footer.encode()).ok(), Some(footer));
        }
        if let Ok(manifest) = Manifest::decode(&bytes) {
            assert!(Manifest::decode(&manifest.encode()).is_ok_and(|again| again == manifest));
        }
        if let Ok(schema) = Schema::decode(&bytes) {
            assert!(Schema::decode(&schema.encode()).is_ok_and(|again| again == schema));
        }
    }
}

/// Any count of entries is checked against the bytes there are; accepted entries ascend.
fn sparse_index(input: &[u8]) {
    let Some((count, rest)) = input.split_first_chunk::<8>() else {
        return;
    };
    let count = u64::from_le_bytes(*count);
    if let Ok(entries) = decode_sparse_index(rest, count) {
        assert!(entries.is_sorted_by_key(|entry| entry.sequence));
    }
    let entries: Vec<SparseEntry> = input.chunks_exact(24).map(entry).collect();
    let count = u64::try_from(entries.len()).expect("a count in memory");
    if let Ok(again) = decode_sparse_index(&encode_sparse_index(&entries), count) {
        assert_eq!(again, entries);
    }
}

fn entry(bytes: &[u8]) -> SparseEntry {
    let u64_at =
        |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("the chunk has 24 bytes"));
    SparseEntry {
        sequence: u64_at(0),
        offset: u64_at(8),
        timestamp_ns: u64_at(16),
    }
}

/// A proof is refused or proves an event that it holds.
fn proof(input: &[u8]) {
    let Ok(proof) = serde_json::from_slice::<Proof>(input) else {
        return;
    };
    if check_proof(&proof).is_ok() {
        let again = serde_json::to_vec(&proof).expect("a proof is JSON");
        let again: Proof = serde_json::from_slice(&again).expect("a proof reads back");
        assert_eq!(again, proof);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_accepts_its_seeds() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            seeds.iter().for_each(|seed| (target.run)(seed));
        }
    }

    #[test]
    fn the_checksum_lets_a_changed_structure_through() {
        let manifest = seeds::structures()
            .into_iter()
            .find(|s| Manifest::decode(s).is_ok());
        let mut changed = manifest.expect("there is one");
        changed[16] ^= 1;
        assert!(Manifest::decode(&changed).is_err());
        assert!(Manifest::decode(&with_checksum(&changed, 4096)).is_ok());
    }
}
