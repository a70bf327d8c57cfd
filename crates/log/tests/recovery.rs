//! Torn tails, damage, and what tells them apart.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use images::*;
use truthdb_io::sim::SimWorld;
use truthdb_io::{ChunkWriter, Completion, OpenMode, Storage, WriteSource};
use truthdb_log::*;

fn refused(result: Result<RecoveredSegment, RecoveryError>) -> (&'static str, u64, Option<u64>) {
    match result.unwrap_err() {
        RecoveryError::Corrupt {
            rule,
            offset,
            last_sequence,
            ..
        } => (rule, offset, last_sequence),
        other => panic!("{other}"),
    }
}

#[test]
fn torn_tail_is_cut_and_reported() {
    let mut writer = sample();
    let acknowledged = writer.batches.clone();
    let (tail, checksum) = (writer.end(), writer.last_checksum);
    writer.flushed();
    writer.group(&[&[9000]]);
    let mut image = writer.image.clone();
    let torn = tail as usize + 5000;
    image[torn] ^= 1;
    let sim = world_with(&image);
    let (batches, result) = recover(&sim, None, RecoveryMode::Repair);
    let recovered = result.unwrap();
    assert_eq!(batches, acknowledged);
    let bytes = writer.end() - tail;
    assert_eq!(
        recovered.cut,
        Some(Cut {
            offset: tail,
            bytes,
            rule: "torn body"
        })
    );
    assert_eq!(recovered.last_checksum, checksum);
    let file = sim.read_file(PATH).unwrap();
    assert_eq!(file[..tail as usize], image[..tail as usize]);
    assert!(file[tail as usize..].iter().all(|byte| *byte == 0));
    assert_eq!(file.len() as u64, SEGMENT_BYTES_MIN);
    let (batches, result) = recover(&sim, None, RecoveryMode::Repair);
    assert_eq!(
        (batches.len(), result.unwrap().cut),
        (acknowledged.len(), None)
    );
}

#[test]
fn looking_changes_nothing() {
    let writer = sample();
    let mut image = writer.image.clone();
    let last = *writer.groups.last().unwrap() as usize;
    image[last + 20] ^= 1;
    let sim = world_with(&image);
    let (_, result) = recover(&sim, None, RecoveryMode::Look);
    assert_eq!(result.unwrap().cut.unwrap().rule, "torn header");
    assert_eq!(sim.read_file(PATH).unwrap(), image);
}

#[test]
fn a_batch_within_a_group_is_cut_and_the_one_before_it_kept() {
    let mut writer = Writer::new(&header(SegmentKind::Active));
    writer.group(&[&[10], &[20]]);
    let second = writer.sparse[1].offset as usize;
    let mut image = writer.image.clone();
    image[second + 150] ^= 1;
    let sim = world_with(&image);
    let (batches, result) = recover(&sim, None, RecoveryMode::Repair);
    assert_eq!(batches, writer.batches[..1]);
    let recovered = result.unwrap();
    assert_eq!(recovered.tail_offset, second as u64);
    assert_eq!(recovered.write_offset(), 8192);
    let file = sim.read_file(PATH).unwrap();
    assert_eq!(file[..second], image[..second]);
    assert!(file[second..].iter().all(|byte| *byte == 0));
}

#[test]
fn damage_to_acknowledged_data_is_refused_and_named() {
    let writer = sample();
    let at = writer.groups[1];
    for (byte, rule) in [
        (20, "damaged durable header"),
        (1000, "damaged durable body"),
    ] {
        let mut image = writer.image.clone();
        image[at as usize + byte] ^= 1;
        let sim = world_with(&image);
        let (batches, result) = recover(&sim, None, RecoveryMode::Repair);
        assert_eq!(batches, writer.batches[..2]);
        assert_eq!(refused(result), (rule, at, Some(writer.next_sequence - 1)));
        assert_eq!(sim.read_file(PATH).unwrap(), image, "nothing was changed");
    }
    let mut image = writer.image.clone();
    image[at as usize..at as usize + 4096].fill(0);
    let (_, result) = recover(&world_with(&image), None, RecoveryMode::Repair);
    assert_eq!(refused(result).0, "zeros in place of durable data");
}

/// A mark has no sequence: only the flushed offset tells that it was durable. Without it, damage to
/// the mark would take the acknowledged batch behind it along.
#[test]
fn damage_to_a_durable_mark_is_refused() {
    let mut writer = Writer::new(&header(SegmentKind::Active));
    writer.group(&[&[10]]);
    writer.flushed();
    writer.group(&[]);
    writer.flushed();
    writer.group(&[&[20]]);
    let mut image = writer.image.clone();
    image[writer.groups[1] as usize + 30] ^= 1;
    let (_, result) = recover(&world_with(&image), None, RecoveryMode::Repair);
    assert_eq!(refused(result).0, "damaged durable header");
}

/// The second batch of a group, small enough for the padding's place, is zeroed; the next group
/// still follows.
#[test]
fn a_durable_batch_lost_in_what_looks_like_padding_is_refused() {
    let mut writer = Writer::new(&header(SegmentKind::Active));
    writer.group(&[&[10], &[20]]);
    writer.flushed();
    writer.group(&[&[30]]);
    let mut image = writer.image.clone();
    image[writer.sparse[1].offset as usize..8192].fill(0);
    let (_, result) = recover(&world_with(&image), None, RecoveryMode::Repair);
    assert_eq!(refused(result).0, "durable data lost before it");

    let mut writer = Writer::new(&header(SegmentKind::Active));
    writer.group(&[&[10], &[20]]);
    writer.group(&[&[30]]);
    let mut image = writer.image.clone();
    image[writer.sparse[1].offset as usize..8192].fill(0);
    let (batches, result) = recover(&world_with(&image), None, RecoveryMode::Repair);
    assert_eq!(batches.len(), 1);
    assert_eq!(result.unwrap().cut.unwrap().rule, "orphan of a lost write");
}

#[test]
fn writes_in_flight_behind_a_missing_one_are_cut() {
    let mut writer = Writer::new(&header(SegmentKind::Active));
    writer.group(&[&[10]]);
    writer.flushed();
    writer.group(&[&[20]]);
    writer.group(&[&[30]]);
    let mut image = writer.image.clone();
    image[8192..12288].fill(0);
    let (batches, result) = recover(&world_with(&image), None, RecoveryMode::Repair);
    assert_eq!(batches.len(), 1);
    let cut = result.unwrap().cut.unwrap();
    assert_eq!((cut.offset, cut.bytes), (8192, 8192));
    assert_eq!(cut.rule, "missing write before later ones");
}

#[test]
fn a_block_of_another_place_is_refused() {
    let writer = sample();
    let last = *writer.groups.last().unwrap() as usize;
    let mut image = writer.image.clone();
    image.copy_within(4096..8192, last);
    let (_, result) = recover(&world_with(&image), None, RecoveryMode::Repair);
    assert_eq!(refused(result).0, "block of another place");
}

#[test]
fn a_closed_segment_must_reach_what_its_successor_says() {
    let writer = sample();
    let end = SegmentEnd {
        last_checksum: writer.last_checksum,
        next_sequence: writer.next_sequence,
    };
    let (batches, result) = recover(&world_with(&writer.image), Some(end), RecoveryMode::Repair);
    assert_eq!(batches, writer.batches);
    result.unwrap();

    // The remains of an interrupted seal are no torn tail.
    let (batches, result) = recover(
        &world_with(&writer.sealed()),
        Some(end),
        RecoveryMode::Repair,
    );
    assert_eq!(
        (batches.len(), result.unwrap().cut),
        (writer.batches.len(), None)
    );

    let mut image = writer.image.clone();
    let last = *writer.groups.last().unwrap() as usize;
    image[last..].fill(0);
    let (_, result) = recover(&world_with(&image), Some(end), RecoveryMode::Repair);
    let expected = (
        "zeros in place of durable data",
        last as u64,
        Some(writer.next_sequence - 1),
    );
    assert_eq!(refused(result), expected);
}

#[test]
fn a_clean_stop_is_seen_and_its_rest_is_not_read() {
    let mut writer = sample();
    writer.clean_stop();
    let mut image = writer.image.clone();
    image.resize(SEGMENT_BYTES_MIN as usize, 0);
    let sim = world_with(&image);
    sim.make_unreadable(PATH, SEGMENT_BYTES_MIN / 2, 4096)
        .unwrap();
    let (_, result) = recover(&sim, None, RecoveryMode::Look);
    let recovered = result.unwrap();
    assert!(recovered.clean_stop);
    assert_eq!(recovered.cut, None);
}

/// A newer release's batch must never be cut as a torn tail.
#[test]
fn a_newer_batch_is_refused_by_name() {
    let writer = sample();
    let mut image = writer.image.clone();
    let last = *writer.groups.last().unwrap() as usize;
    image[last + 12] = 2;
    let checksum = xxhash_rust::xxh64::xxh64(&image[last + 8..last + 128], 0);
    image[last..last + 8].copy_from_slice(&checksum.to_le_bytes());
    let (_, result) = recover(&world_with(&image), None, RecoveryMode::Repair);
    assert!(matches!(result, Err(RecoveryError::NewerFormat { .. })));
}

/// Power fails while groups are in flight: what was acknowledged is there, and what is there was
/// written, in order.
#[test]
fn acknowledged_groups_survive_a_power_cut_at_any_moment() {
    let mut cuts = 0;
    for seed in 0..60 {
        let sim = SimWorld::new(seed);
        sim.write_file(PATH, &header(SegmentKind::Active).encode())
            .unwrap();
        let storage = sim.storage();
        let file = storage.open(PATH, OpenMode::ReadWrite).unwrap();
        file.allocate(1 << 20).unwrap();
        file.sync().unwrap();
        let mut queue = storage.queue(4).unwrap();
        let mut writer = Writer::new(&header(SegmentKind::Active));
        let mut ends = Vec::new();
        let (mut finished, mut acknowledged) = (Vec::new(), 0);
        for round in 0..8 + seed % 7 {
            while queue.in_flight() >= 3 {
                let mut completions: Vec<Completion> = Vec::new();
                queue.wait(&mut completions, None);
                finished.extend(completions.iter().map(|completion| completion.tag as usize));
            }
            while finished.contains(&acknowledged) {
                (writer.flushed_offset, writer.flushed_sequence) = ends[acknowledged];
                acknowledged += 1;
            }
            let start = writer.image.len();
            let bytes = (seed * 37 + round * 911) as usize % 6000;
            writer.group(&[&[bytes], &[3, 5]]);
            ends.push((writer.end(), writer.next_sequence - 1));
            let bytes = writer.image.len() - start;
            let mut appender = ChunkWriter::new(bytes);
            appender.extend_from_slice(&writer.image[start..]);
            appender.freeze(bytes);
            let chunk = appender.into_chunk();
            let source = WriteSource {
                chunk,
                start: 0,
                bytes,
            };
            queue.write(&file, source, start as u64, true, round);
            queue.poll(&mut Vec::new());
        }
        let last_acknowledged = acknowledged
            .checked_sub(1)
            .map_or(BASE - 1, |last| ends[last].1);
        sim.crash();
        let (batches, result) = recover(&sim, None, RecoveryMode::Repair);
        let recovered = result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(
            recovered.next_sequence > last_acknowledged,
            "seed {seed} lost acknowledged data"
        );
        assert_eq!(batches, writer.batches[..batches.len()], "seed {seed}");
        cuts += usize::from(recovered.cut.is_some());
        let (again, result) = recover(&sim, None, RecoveryMode::Repair);
        assert_eq!((again, result.unwrap().cut), (batches, None), "seed {seed}");
    }
    assert!(cuts > 10, "only {cuts} torn tails: the test shows nothing");
}

/// A second power cut while the torn tail is being zeroed changes nothing.
#[test]
fn a_power_cut_during_the_cut_is_recovered_from() {
    let mut writer = sample();
    writer.flushed();
    let acknowledged = writer.batches.len();
    writer.group(&[&[9000], &[10]]);
    writer.group(&[&[9000]]);
    let mut image = writer.image.clone();
    image[writer.groups[7] as usize + 4200] ^= 1;
    for seed in 0..40 {
        let sim = SimWorld::new(seed);
        sim.write_file(PATH, &image).unwrap();
        sim.fail_nth(None, 10 + seed, truthdb_io::sim::SimFault::Crash);
        let _interrupted = recover(&sim, None, RecoveryMode::Repair);
        sim.clear_planned();
        let (batches, result) = recover(&sim, None, RecoveryMode::Repair);
        assert_eq!(batches, writer.batches[..acknowledged], "seed {seed}");
        result.unwrap();
    }
}

#[test]
fn scans_read_batches_over_the_edges_of_windows() {
    let mut writer = Writer::new(&header(SegmentKind::Active));
    for round in 0..40 {
        writer.group(&[&[200_000 + round * 1000], &[3; 50]]);
    }
    writer.group(&[&[4_000_000]]);
    let sim = world_with(&writer.sealed());
    assert_eq!(read_sealed(&sim).unwrap().unwrap(), writer.batches);
    let (reader, _) = SegmentReader::open(sim.storage().as_ref(), PLACE).unwrap();
    let footer = reader.footer().unwrap().unwrap();
    let entries = reader.sparse_index(&footer).unwrap();
    for entry in &entries {
        let (batches, _) = reader
            .read_batches(entry.offset, footer.data_end, entry.sequence, 1)
            .unwrap();
        assert_eq!(batches[0].first_sequence, entry.sequence);
        assert_eq!(sparse_floor(&entries, entry.sequence, BASE), *entry);
    }
}
