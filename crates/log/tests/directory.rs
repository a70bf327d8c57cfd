//! Making and opening a database's directory, and finding its segments.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use images::{TIME, Writer};
use truthdb_io::sim::{SimFault, SimWorld};
use truthdb_io::{OpenMode, Storage};
use truthdb_log::*;

fn options(partition_count: u32) -> CreateOptions {
    CreateOptions {
        partition_count,
        segment_bytes: SEGMENT_BYTES_MIN,
        ..CreateOptions::default()
    }
}

fn create(sim: &SimWorld, partitions: u32) -> Manifest {
    create_database(&sim.world(), &options(partitions)).unwrap()
}

fn open(sim: &SimWorld) -> Result<DatabaseLayout, DirectoryError> {
    open_database_layout(&sim.world(), "a test")
}

fn discover(sim: &SimWorld, manifest: &Manifest) -> Result<Discovery, RecoveryError> {
    discover_segments(sim.storage().as_ref(), 0, manifest)
}

fn path(segment: u32) -> String {
    segment_path(0, segment)
}

#[test]
fn a_new_database_opens_and_has_one_empty_segment_each_partition() {
    let sim = SimWorld::new(1);
    let manifest = create(&sim, 3);
    sim.crash();
    let layout = open(&sim).unwrap();
    assert_eq!(layout.manifest, manifest);
    assert_eq!(layout.schema, Schema::CURRENT);
    assert_eq!(layout.foreign, Vec::<String>::new());
    for partition in 0..3 {
        let found = discover_segments(sim.storage().as_ref(), partition, &manifest).unwrap();
        assert_eq!(found.segments.len(), 1);
        assert_eq!(found.trim, TrimPoint::NONE);
        let place = manifest.place(partition, 1);
        let storage = sim.storage();
        let recovered = recover_segment(
            storage.as_ref(),
            place,
            None,
            RecoveryMode::Repair,
            &mut |_| {},
        );
        let recovered = recovered.unwrap();
        assert_eq!(
            (recovered.next_sequence, recovered.write_offset()),
            (1, 4096)
        );
    }
}

#[test]
fn a_database_is_made_beside_what_an_appliance_keeps_there_and_beside_nothing_else() {
    let sim = SimWorld::new(1);
    for other in ["server", "config", "log", "lost+found"] {
        sim.storage().durable_create_dir(other).unwrap();
    }
    create(&sim, 1);
    assert_eq!(open(&sim).unwrap().foreign, Vec::<String>::new());
    let sim = SimWorld::new(1);
    sim.storage().durable_create_dir("pictures").unwrap();
    let refused = create_database(&sim.world(), &options(1)).unwrap_err();
    assert!(matches!(refused, DirectoryError::NotEmpty { .. }));
}

#[test]
fn a_power_cut_while_making_a_database_leaves_it_complete_or_to_be_made_again() {
    let mut interrupted = 0;
    let operations = {
        let sim = SimWorld::new(0);
        create(&sim, 2);
        sim.operations()
    };
    for moment in 0..operations {
        let sim = SimWorld::new(moment);
        sim.fail_nth(None, moment, SimFault::Crash);
        let created = create_database(&sim.world(), &options(2));
        sim.clear_planned();
        if created.is_ok() {
            continue;
        }
        let state = directory_state(sim.storage().as_ref());
        match state.unwrap_or_else(|error| panic!("moment {moment}: {error}")) {
            DirectoryState::Database => drop(open(&sim).unwrap()),
            DirectoryState::Interrupted | DirectoryState::Fresh => {
                interrupted += 1;
                let error = open(&sim).unwrap_err();
                let expected = matches!(
                    error,
                    DirectoryError::Interrupted | DirectoryError::NotInitialised
                );
                assert!(expected, "moment {moment}: {error}");
                create(&sim, 2);
                assert_eq!(open(&sim).unwrap().foreign, Vec::<String>::new());
            }
        }
    }
    assert!(interrupted > 10);
}

#[test]
fn a_database_is_never_made_over_another() {
    let sim = SimWorld::new(1);
    create(&sim, 1);
    let again = create_database(&sim.world(), &options(1));
    assert!(matches!(again, Err(DirectoryError::NotEmpty { .. })));
    let sim = SimWorld::new(2);
    sim.write_file("holiday.jpg", b"something").unwrap();
    let again = create_database(&sim.world(), &options(1));
    assert!(matches!(again, Err(DirectoryError::NotEmpty { path }) if path == "holiday.jpg"));
}

#[test]
fn missing_empty_damaged_unreadable_and_newer_are_different_errors() {
    let sim = SimWorld::new(1);
    assert!(matches!(open(&sim), Err(DirectoryError::NotInitialised)));
    create(&sim, 2);
    let image = sim.image();
    for path in [MANIFEST_PATH, SCHEMA_PATH] {
        sim.remove_file(path).unwrap();
        assert!(
            matches!(open(&sim), Err(DirectoryError::Missing { .. })),
            "{path}"
        );
        let again = create_database(&sim.world(), &options(2));
        assert!(again.is_err(), "a database without {path} is not fresh");
        sim.restore(&image);
        sim.write_file(path, b"").unwrap();
        assert!(
            matches!(open(&sim), Err(DirectoryError::Empty { .. })),
            "{path}"
        );
        sim.restore(&image);
        sim.corrupt(path, 100, 1).unwrap();
        assert!(
            matches!(open(&sim), Err(DirectoryError::Damaged { .. })),
            "{path}"
        );
        sim.restore(&image);
        sim.make_unreadable(path, 0, 4096).unwrap();
        assert!(
            matches!(open(&sim), Err(DirectoryError::Unreadable { .. })),
            "{path}"
        );
        sim.restore(&image);
        let mut block = sim.read_file(path).unwrap();
        block[12] = 9;
        let checksum = xxhash_rust::xxh64::xxh64(&block[8..], 0);
        block[..8].copy_from_slice(&checksum.to_le_bytes());
        sim.write_file(path, &block).unwrap();
        let error = open(&sim).unwrap_err();
        assert!(matches!(
            error,
            DirectoryError::NewerFormat {
                found: 9,
                supported: 1,
                ..
            }
        ));
        sim.restore(&image);
    }
    for name in sim
        .paths()
        .into_iter()
        .filter(|path| path.starts_with("partition-0001"))
    {
        sim.remove_file(&name).unwrap();
    }
    drop(open(&sim).unwrap());
    let manifest = read_manifest(sim.storage().as_ref()).unwrap();
    let missing = discover_segments(sim.storage().as_ref(), 1, &manifest);
    assert!(matches!(missing, Err(RecoveryError::MissingSegment { .. })));
}

#[test]
fn foreign_files_are_named_and_a_foreign_partition_is_refused() {
    let sim = SimWorld::new(1);
    create(&sim, 1);
    sim.write_file("notes.txt", b"x").unwrap();
    sim.write_file("partition-0000/core", b"x").unwrap();
    sim.write_file("metadata/old", b"x").unwrap();
    sim.write_file("server/tokens.toml", b"x").unwrap();
    let expected = ["notes.txt", "metadata/old", "partition-0000/core"];
    assert_eq!(open(&sim).unwrap().foreign, expected);
    sim.write_file("partition-0007/wal/segment-00000001.log", b"x")
        .unwrap();
    assert!(matches!(
        open(&sim),
        Err(DirectoryError::UnexpectedPartition { .. })
    ));
}

#[test]
fn a_database_opens_once_at_a_time() {
    let sim = SimWorld::new(1);
    create(&sim, 1);
    let first = open(&sim).unwrap();
    let second = open(&sim).unwrap_err();
    assert!(matches!(&second, DirectoryError::Locked { holder } if holder.contains("a test")));
    drop(first);
    open(&sim).unwrap();
}

/// Segments 1 to 3 sealed, 4 closed, 5 active.
fn history(sim: &SimWorld) -> Manifest {
    let manifest = create(sim, 1);
    let (mut base, mut previous, mut chain) = (1, 0, [0u8; 32]);
    for segment in 1..=5u32 {
        let header = SegmentHeader {
            kind: SegmentKind::Active,
            place: manifest.place(0, segment),
            base_sequence: base,
            segment_bytes: SEGMENT_BYTES_MIN,
            previous_checksum: previous,
            trim: TrimPoint::NONE,
            created_ns: TIME,
        };
        let mut writer = Writer::new(&header);
        writer.group(&[&[10], &[20]]);
        let mut image = writer.image.clone();
        if segment <= 3 {
            let mut footer = writer.footer(SegmentKind::Active, writer.end(), 2);
            footer.previous_chain = chain;
            footer.chain = [segment as u8; 32];
            footer.trim = TrimPoint::NONE;
            chain = footer.chain;
            image.extend(encode_sparse_index(&writer.sparse));
            image.extend(footer.encode());
        } else {
            image.resize(SEGMENT_BYTES_MIN as usize, 0);
        }
        sim.write_file(&path(segment), &image).unwrap();
        (base, previous) = (writer.next_sequence, writer.last_checksum);
    }
    manifest
}

#[test]
fn segments_are_found_by_their_names_alone() {
    let sim = SimWorld::new(1);
    let manifest = history(&sim);
    sim.write_file(&format!("{}.new", path(6)), b"half")
        .unwrap();
    sim.write_file("partition-0000/wal/readme", b"x").unwrap();
    let found = discover(&sim, &manifest).unwrap();
    let sealed: Vec<bool> = found
        .segments
        .iter()
        .map(|segment| segment.footer().is_some())
        .collect();
    assert_eq!(sealed, [true, true, true, false, false]);
    assert_eq!(found.segments[4].base_sequence(), 9);
    assert_eq!(found.removed, [format!("{}.new", path(6))]);
    assert_eq!(found.foreign, ["partition-0000/wal/readme"]);
    assert!(
        sim.storage()
            .open(&format!("{}.new", path(6)), OpenMode::Read)
            .is_err()
    );
}

#[test]
fn a_missing_swapped_or_foreign_segment_is_noticed() {
    let sim = SimWorld::new(1);
    let manifest = history(&sim);
    let image = sim.image();
    for segment in 1..=4 {
        sim.remove_file(&path(segment)).unwrap();
        let error = discover(&sim, &manifest).unwrap_err();
        let named = matches!(&error, RecoveryError::MissingSegment { path: missing, .. }
            if *missing == path(segment));
        assert!(named, "{error}");
        sim.restore(&image);
    }
    let two = sim.read_file(&path(2)).unwrap();
    let three = sim.read_file(&path(3)).unwrap();
    sim.write_file(&path(2), &three).unwrap();
    sim.write_file(&path(3), &two).unwrap();
    assert!(matches!(
        discover(&sim, &manifest),
        Err(RecoveryError::Corrupt { .. })
    ));
    sim.restore(&image);

    let foreign = Manifest {
        database_id: [9; 16],
        ..manifest
    };
    let error = discover(&sim, &foreign).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("database id"), "{source}");

    // An older copy of the whole partition in which segment 3 was sealed with another history.
    let mut footer = Footer::decode(&three[three.len() - 4096..]).unwrap();
    footer.previous_chain = [0xEE; 32];
    let mut image_of_three = three.clone();
    image_of_three.truncate(three.len() - 4096);
    image_of_three.extend(footer.encode());
    sim.write_file(&path(3), &image_of_three).unwrap();
    let error = discover(&sim, &manifest).unwrap_err();
    let named = matches!(
        &error,
        RecoveryError::BrokenChain {
            field: "previous chain hash",
            ..
        }
    );
    assert!(named, "{error}");
    sim.restore(&image);

    sim.corrupt(&path(2), two.len() as u64 - 4000, 1).unwrap();
    let error = discover(&sim, &manifest).unwrap_err();
    assert!(matches!(error, RecoveryError::MissingFooter { path: lost } if lost == path(2)));
}

/// The newest footer holds nothing that the data does not: losing it costs a seal, no data.
#[test]
fn a_lost_newest_footer_makes_the_segment_unsealed_again() {
    let sim = SimWorld::new(1);
    let manifest = history(&sim);
    let bytes = sim.read_file(&path(3)).unwrap().len() as u64;
    sim.corrupt(&path(3), bytes - 4000, 1).unwrap();
    let found = discover(&sim, &manifest).unwrap();
    assert!(found.segments[2].footer().is_none());
    let SegmentState::Unsealed(successor) = &found.segments[3].state else {
        panic!()
    };
    let storage = sim.storage();
    let (place, end) = (manifest.place(0, 3), Some(SegmentEnd::before(successor)));
    let mut batches = 0;
    let mut visit = |_| batches += 1;
    recover_segment(
        storage.as_ref(),
        place,
        end,
        RecoveryMode::Repair,
        &mut visit,
    )
    .unwrap();
    assert_eq!(batches, 2);
}

#[test]
fn trimmed_segments_may_be_missing_and_their_remains_are_removed() {
    let sim = SimWorld::new(1);
    let manifest = history(&sim);
    let trim = TrimPoint {
        first_segment: 3,
        first_sequence: 5,
    };
    write_trim_point(sim.storage().as_ref(), &manifest, 0, trim).unwrap();
    sim.remove_file(&path(1)).unwrap();
    let found = discover(&sim, &manifest).unwrap();
    assert_eq!(found.trim, trim);
    assert_eq!(found.removed, [path(2)]);
    assert_eq!(found.segments.len(), 3);
    assert_eq!(open(&sim).unwrap().foreign, Vec::<String>::new());
    sim.remove_file(&path(3)).unwrap();
    assert!(matches!(
        discover(&sim, &manifest),
        Err(RecoveryError::MissingSegment { .. })
    ));
}
