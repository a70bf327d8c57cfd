//! Decoders of derived state: the delta log, manifests of snapshots, chunks, lists of events.

use truthdb_event::event_checksum;
use truthdb_state::{
    Changes, Chunk, DELTA_RECORD_HEADER_BYTES, DeltaAt, DeltaFileHeader, DeltaRecordHeader,
    EventList, ListedHistory, SnapshotManifest, StatePlace,
};

use crate::seeds::golden;
use crate::with_checksum;

/// The place of the golden files.
const PLACE: StatePlace = StatePlace {
    database_id: *b"sixteen bytes id",
    partition: 3,
};

/// Headers and records of the delta log.
pub(crate) fn deltas() -> Vec<Vec<u8>> {
    [
        include_str!("../../crates/state/tests/golden/delta_file_header.txt"),
        include_str!("../../crates/state/tests/golden/delta_record.txt"),
    ]
    .map(golden)
    .to_vec()
}

/// Manifests and chunks.
pub(crate) fn snapshots() -> Vec<Vec<u8>> {
    [
        include_str!("../../crates/state/tests/golden/snapshot_manifest.txt"),
        include_str!("../../crates/state/tests/golden/chunk.txt"),
    ]
    .map(golden)
    .into_iter()
    .chain([list().encode(&PLACE)])
    .collect()
}

fn list() -> EventList {
    EventList {
        history: ListedHistory {
            segment: 2,
            last_sequence: 17,
            chain: [3; 32],
        },
        events: vec![(1, b"one".to_vec()), (17, b"another".to_vec())],
    }
}

/// The input with a checksum of all of it that lets it through under any seed: 0.
fn sealed(input: &[u8]) -> Vec<u8> {
    with_checksum(input, input.len())
}

/// What is accepted is written again as it was read.
pub(crate) fn delta(input: &[u8]) {
    for bytes in [
        input.to_vec(),
        with_checksum(input, truthdb_io::BLOCK_BYTES),
    ] {
        if let Ok(header) = DeltaFileHeader::decode(&bytes) {
            assert!(header.encode() == bytes[..truthdb_io::BLOCK_BYTES]);
        }
    }
    record(input);
    if let Some((count, rest)) = input.split_first_chunk::<4>()
        && let Ok(changes) = Changes::decode(rest, u32::from_le_bytes(*count))
    {
        let mut again = Changes::new();
        for change in &changes {
            again.push(change.table, change.key, change.value);
        }
        assert_eq!(again, changes);
    }
}

/// A record under the seed 0, at the place that it names; its checksums are made to fit.
fn record(input: &[u8]) {
    let Some((header, body)) = input.split_at_checked(DELTA_RECORD_HEADER_BYTES) else {
        return;
    };
    let u64_at =
        |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("the header is longer"));
    let at = DeltaAt {
        seed: 0,
        offset: u64_at(16),
        previous: u64_at(96),
    };
    // The body's checksum stands before the end of the header.
    let change_bytes = u32::from_le_bytes(*header[52..].first_chunk().expect("it is longer"));
    let changes = usize::try_from(change_bytes)
        .ok()
        .and_then(|n| body.get(..n));
    let mut fitted = header.to_vec();
    if let Some(changes) = changes {
        fitted[56..64].copy_from_slice(&event_checksum(changes).to_le_bytes());
    }
    let Ok(decoded) = DeltaRecordHeader::decode(&sealed(&fitted), at) else {
        return;
    };
    assert!(decoded.first_sequence() <= decoded.last_sequence());
    if let Ok(record) = decoded.with_changes(body) {
        let mut again = Vec::new();
        record.encode(at, &mut again);
        assert!(again[8..] == [&fitted[8..], &body[..again.len() - fitted.len()]].concat());
    }
}

/// An accepted manifest encodes to the same bytes; an accepted chunk has its hash, and rows in order.
pub(crate) fn snapshot(input: &[u8]) {
    let bytes = sealed(input);
    if let Ok(manifest) = SnapshotManifest::decode(&bytes) {
        assert!(manifest.encode() == bytes);
    }
    if let Ok(list) = EventList::decode(&bytes, &PLACE) {
        assert!(list.encode(&PLACE) == bytes);
    }
    if let Ok(chunk) = Chunk::decode(input.to_vec()) {
        assert!(chunk.raw() == input);
        rows_ascend(&chunk);
        let file = chunk.encode(&PLACE).expect("rows can be compressed");
        let padded = [
            file.clone(),
            vec![0; file.len().next_multiple_of(4096) - file.len()],
        ];
        let again = Chunk::decode_file(&padded.concat(), &PLACE, chunk.hash());
        assert_eq!(again.ok(), Some(chunk));
    }
    // Header and stored bytes with checksums that fit; the hash is the one that the header names.
    let mut file = with_checksum(input, 96);
    if let Some(length) = file.get(44..48).and_then(|bytes| bytes.first_chunk())
        && let Ok(length) = usize::try_from(u32::from_le_bytes(*length))
        && let Some(stored) = file.get(96..).and_then(|rest| rest.get(..length))
    {
        let checksum = event_checksum(stored).to_le_bytes();
        file[48..56].copy_from_slice(&checksum);
        file = with_checksum(&file, 96);
    }
    if let Some(hash) = file.get(56..88).and_then(|bytes| bytes.first_chunk()) {
        let hash = truthdb_state::ChunkHash(*hash);
        if let Ok(chunk) = Chunk::decode_file(&file, &PLACE, hash) {
            assert_eq!(chunk.hash(), hash);
            rows_ascend(&chunk);
        }
    }
}

fn rows_ascend(chunk: &Chunk) {
    let keys = (0..chunk.len()).map(|at| chunk.row(at).0);
    assert!(keys.is_sorted_by(|a, b| a < b));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_structure_has_a_valid_seed() {
        let deltas = deltas();
        assert!(DeltaFileHeader::decode(&deltas[0]).is_ok());
        let at = DeltaAt {
            seed: DeltaFileHeader::decode(&deltas[0]).unwrap().seed(),
            offset: 4096,
            previous: 0,
        };
        let header = DeltaRecordHeader::decode(&deltas[1], at).unwrap();
        assert_eq!(header.first_sequence(), 100);
        let snapshots = snapshots();
        assert!(SnapshotManifest::decode(&snapshots[0]).is_ok());
        assert_eq!(EventList::decode(&snapshots[2], &PLACE), Ok(list()));
        let hash = truthdb_state::ChunkHash(*snapshots[1][56..].first_chunk().unwrap());
        assert!(Chunk::decode_file(&snapshots[1], &PLACE, hash).is_ok());
    }
}
