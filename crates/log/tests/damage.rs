//! Every byte flipped, every prefix: an error or the right answer, never wrong data, never a panic.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use images::*;
use truthdb_log::*;

/// Batches that the sample's headers say are durable.
fn evidenced(writer: &Writer) -> usize {
    let durable = |entry: &&SparseEntry| entry.offset < writer.flushed_offset;
    writer.sparse.iter().filter(durable).count()
}

fn is_prefix(part: &[StoredBatch], whole: &[StoredBatch]) -> bool {
    part.len() <= whole.len() && part == &whole[..part.len()]
}

#[test]
fn an_undamaged_sample_reads_back() {
    let writer = sample();
    let (batches, result) = recover(&world_with(&writer.image), None, RecoveryMode::Look);
    let recovered = result.unwrap();
    assert_eq!(batches, writer.batches);
    assert_eq!(recovered.next_sequence, writer.next_sequence);
    assert_eq!(recovered.last_checksum, writer.last_checksum);
    assert_eq!(recovered.write_offset(), writer.end());
    assert_eq!(recovered.cut, None);
    assert!(evidenced(&writer) >= 7);
    for image in [writer.sealed(), writer.packed()] {
        assert_eq!(
            read_sealed(&world_with(&image)).unwrap().unwrap(),
            writer.batches
        );
    }
}

#[test]
fn a_flipped_byte_of_an_unsealed_segment_is_never_wrong_data() {
    let writer = sample();
    let durable = evidenced(&writer);
    let mut image = writer.image.clone();
    image.resize(image.len() + 8192, 0);
    let sim = world_with(&image);
    let mut refused = 0;
    for offset in 0..image.len() {
        let mask = 1 << (offset % 8);
        sim.corrupt(PATH, offset as u64, mask).unwrap();
        let (batches, result) = recover(&sim, None, RecoveryMode::Look);
        assert!(is_prefix(&batches, &writer.batches), "offset {offset}");
        match result {
            Ok(_) => assert!(
                batches.len() >= durable,
                "offset {offset} lost durable data"
            ),
            Err(error) => {
                assert!(error.to_string().contains(PATH), "offset {offset}: {error}");
                refused += 1;
            }
        }
        sim.corrupt(PATH, offset as u64, mask).unwrap();
    }
    assert!(refused > 8000, "only {refused} refused");
}

#[test]
fn a_flipped_byte_of_a_closed_segment_is_refused_or_harmless() {
    let writer = sample();
    let sim = world_with(&writer.image);
    let end = SegmentEnd {
        last_checksum: writer.last_checksum,
        next_sequence: writer.next_sequence,
    };
    for offset in 0..writer.image.len() {
        sim.corrupt(PATH, offset as u64, 0x80).unwrap();
        let (batches, result) = recover(&sim, Some(end), RecoveryMode::Look);
        if result.is_ok() {
            assert_eq!(batches, writer.batches, "offset {offset}");
        }
        sim.corrupt(PATH, offset as u64, 0x80).unwrap();
    }
}

#[test]
fn a_flipped_byte_of_a_sealed_segment_is_an_error_or_harmless() {
    let writer = sample();
    for image in [writer.sealed(), writer.packed()] {
        let sim = world_with(&image);
        let mut noticed = 0;
        for offset in 0..image.len() {
            let mask = 1 << (offset % 8);
            sim.corrupt(PATH, offset as u64, mask).unwrap();
            match read_sealed(&sim) {
                Ok(Some(batches)) => assert_eq!(batches, writer.batches, "offset {offset}"),
                Ok(None) | Err(_) => noticed += 1,
            }
            sim.corrupt(PATH, offset as u64, mask).unwrap();
        }
        assert!(noticed > 8192, "only {noticed} noticed");
    }
}

#[test]
fn a_prefix_of_an_unsealed_segment_is_never_wrong_data() {
    let writer = sample();
    let sim = world_with(&[]);
    for length in (0..writer.image.len())
        .step_by(64)
        .chain([4095, 4096, 4097])
    {
        sim.write_file(PATH, &writer.image[..length]).unwrap();
        let (batches, _) = recover(&sim, None, RecoveryMode::Look);
        assert!(is_prefix(&batches, &writer.batches), "length {length}");
        let mut padded = writer.image[..length].to_vec();
        padded.resize(writer.image.len() + 4096, 0);
        sim.write_file(PATH, &padded).unwrap();
        let (batches, result) = recover(&sim, None, RecoveryMode::Look);
        assert!(
            is_prefix(&batches, &writer.batches),
            "padded length {length}"
        );
        assert_eq!(result.is_ok(), length >= 88, "padded length {length}");
    }
}

#[test]
fn a_prefix_of_a_sealed_segment_is_no_sealed_segment() {
    let writer = sample();
    for image in [writer.sealed(), writer.packed()] {
        let sim = world_with(&[]);
        for length in (0..image.len()).step_by(512) {
            sim.write_file(PATH, &image[..length]).unwrap();
            assert!(!matches!(read_sealed(&sim), Ok(Some(_))), "length {length}");
        }
    }
}

#[test]
fn an_unreadable_block_is_named() {
    let writer = sample();
    let sim = world_with(&writer.image);
    sim.make_unreadable(PATH, writer.groups[2], 4096).unwrap();
    let (batches, result) = recover(&sim, None, RecoveryMode::Repair);
    assert_eq!(batches.len(), 3, "what lies before it was read");
    let error = result.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains(&format!("offset {}", writer.groups[2])),
        "{source}"
    );
}
