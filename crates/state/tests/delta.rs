//! The delta log on a simulated disk: order, gaps, supersession, damage, faults and crashes.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use images::*;
use truthdb_io::BLOCK_BYTES;
use truthdb_io::sim::{SimFault, SimWorld};
use truthdb_state::*;

/// Records as a module makes them, one for each batch of `batch` sequences, and the state after each.
fn records(count: u64, batch: u64) -> (Vec<DeltaRecord>, Vec<Fingerprint>) {
    let mut tables = Tables::new(2);
    let mut records = Vec::new();
    let mut states = vec![Fingerprint::EMPTY];
    for n in 0..count {
        tables.begin();
        for row in 0..n % 4 {
            let key = format!("key-{:03}", (n * 7 + row * 13) % 50);
            let value = vec![n as u8; (n % 60) as usize];
            tables
                .set((row % 2) as u32, key.as_bytes(), &value)
                .unwrap();
        }
        if n % 5 == 4 {
            tables
                .delete_range(0, b"key-010", Some(b"key-012"))
                .unwrap();
        }
        let changes = tables.commit();
        states.push(tables.fingerprint());
        records.push(DeltaRecord {
            first_sequence: n * batch + 1,
            last_sequence: (n + 1) * batch,
            timestamp_ns: TIME + n,
            changes,
            fingerprint_after: tables.fingerprint(),
        });
    }
    (records, states)
}

fn log(world: &SimWorld) -> DeltaLog {
    DeltaLog::new(storage(world), delta_place())
}

fn write(world: &SimWorld, records: &[DeltaRecord], file_bytes: u64) -> Result<(), DeltaError> {
    let applied = records[0].first_sequence - 1;
    let mut writer = DeltaWriter::open(log(world), applied, file_bytes)?;
    for record in records {
        writer.append(record)?;
    }
    writer.sync()
}

/// Records after a sequence, and the error at the end if there is one.
fn read(world: &SimWorld, after: u64) -> (Vec<DeltaRecord>, Option<DeltaError>) {
    let mut found = Vec::new();
    let mut reader = match log(world).read_after(after) {
        Ok(reader) => reader,
        Err(error) => return (found, Some(error)),
    };
    loop {
        match reader.next_record() {
            Ok(Some(record)) => found.push(record),
            Ok(None) => return (found, None),
            Err(error) => return (found, Some(error)),
        }
    }
}

#[test]
fn records_are_read_from_every_sequence_on() {
    let world = SimWorld::new(1);
    let (records, states) = records(200, 3);
    write(&world, &records, 8 * 1024).unwrap();
    let files = log(&world).files().unwrap();
    assert!(files.len() > 3, "{files:?}");
    for after in 0..=600 {
        let (found, error) = read(&world, after);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(found, records[(after / 3) as usize..], "after {after}");
    }
    let mut tables = Tables::new(2);
    for (n, record) in records.iter().enumerate() {
        record.apply_to(&mut tables).unwrap();
        assert_eq!(tables.fingerprint(), states[n + 1]);
    }
}

#[test]
fn a_missing_record_is_noticed_by_the_fingerprint() {
    let (records, _) = records(20, 1);
    let mut tables = Tables::new(2);
    records[..6]
        .iter()
        .for_each(|record| record.apply_to(&mut tables).unwrap());
    assert!(!records[6].changes.is_empty() && !records[7].changes.is_empty());
    let error = records[7..]
        .iter()
        .find_map(|record| record.apply_to(&mut tables).err());
    assert!(
        matches!(error, Some(WrongDelta::Fingerprint { .. })),
        "{error:?}"
    );
    let error = records[6].apply_to(&mut Tables::new(0)).unwrap_err();
    assert!(matches!(error, WrongDelta::Table(_)), "{error}");
}

#[test]
fn records_are_readable_after_a_flush_and_the_last_block_grows() {
    let world = SimWorld::new(1);
    let (records, _) = records(100, 1);
    let mut writer = DeltaWriter::open(log(&world), 0, DELTA_FILE_BYTES_DEFAULT).unwrap();
    for (n, record) in records.iter().enumerate() {
        writer.append(record).unwrap();
        writer.flush().unwrap();
        let (found, error) = read(&world, 0);
        assert!(error.is_none());
        assert_eq!(found, records[..=n]);
    }
    writer.flush().unwrap();
    assert_eq!(writer.next_sequence(), 101);
}

#[test]
fn a_large_record_is_one_record() {
    let world = SimWorld::new(1);
    let mut tables = Tables::new(1);
    tables.begin();
    for n in 0..5_u8 {
        tables.set(0, &[n], &vec![n; VALUE_BYTES_MAX]).unwrap();
    }
    let record = DeltaRecord {
        first_sequence: 1,
        last_sequence: 9,
        timestamp_ns: TIME,
        changes: tables.commit(),
        fingerprint_after: tables.fingerprint(),
    };
    let (mut rest, _) = records(12, 1);
    let rest = rest.split_off(9);
    let all = [vec![record], rest].concat();
    write(&world, &all, 1 << 20).unwrap();
    assert_eq!(read(&world, 0).0, all);
    assert_eq!(read(&world, 9).0, all[1..]);
}

#[test]
fn a_rebuilt_state_supersedes_what_was_there() {
    let world = SimWorld::new(1);
    let (old, _) = records(30, 1);
    write(&world, &old, 4096 + 2048).unwrap();
    // The state is rebuilt from sequence 11 on, with another history.
    let mut new = old[10..20].to_vec();
    new.iter_mut().for_each(|record| record.timestamp_ns += 1);
    write(&world, &new, 1 << 20).unwrap();
    let (found, error) = read(&world, 0);
    assert!(error.is_none());
    assert_eq!(found, [&old[..10], &new[..]].concat());
    assert!(
        log(&world)
            .files()
            .unwrap()
            .iter()
            .all(|file| file.first_sequence <= 11),
        "later files are removed"
    );
}

#[test]
fn a_gap_is_reported_and_never_stepped_over() {
    let world = SimWorld::new(1);
    let (records, _) = records(40, 1);
    write(&world, &records[..10], 1 << 20).unwrap();
    write(&world, &records[15..], 1 << 20).unwrap();
    let (found, error) = read(&world, 0);
    assert_eq!(found, records[..10]);
    assert!(
        matches!(error, Some(DeltaError::Gap { missing: 11 })),
        "{error:?}"
    );
    assert_eq!(read(&world, 15).0, records[15..]);
    assert_eq!(read(&world, 40).0, []);
    // Before the first file.
    log(&world).remove_through(15).unwrap();
    let (found, error) = read(&world, 3);
    assert!(found.is_empty());
    assert!(
        matches!(error, Some(DeltaError::Gap { missing: 4 })),
        "{error:?}"
    );
}

#[test]
fn files_that_nobody_needs_are_removed() {
    let world = SimWorld::new(1);
    let (records, _) = records(200, 1);
    write(&world, &records, 8 * 1024).unwrap();
    let files = log(&world).files().unwrap();
    let (second, third) = (files[1].first_sequence, files[2].first_sequence);
    assert_eq!(log(&world).remove_through(second - 2).unwrap(), 0);
    assert_eq!(log(&world).remove_through(third - 1).unwrap(), 2);
    assert_eq!(read(&world, third - 1).0, records[third as usize - 1..]);
    assert_eq!(log(&world).remove_all().unwrap(), files.len() - 2);
    assert_eq!(log(&world).remove_all().unwrap(), 0);
}

#[test]
fn files_of_other_logs_and_other_names_are_not_read() {
    let world = SimWorld::new(1);
    let (records, _) = records(10, 1);
    write(&world, &records, 1 << 20).unwrap();
    let path = log(&world).files().unwrap()[0].path.clone();
    assert_eq!(
        path,
        "partition-0003/deltas/delays-00000002/deltas-00000001.log"
    );
    let image = world.read_file(&path).unwrap();
    let others = [
        DeltaPlace {
            generation: 3,
            ..delta_place()
        },
        DeltaPlace {
            module: "delay".to_owned(),
            ..delta_place()
        },
        DeltaPlace {
            place: StatePlace {
                partition: 4,
                ..place()
            },
            ..delta_place()
        },
        DeltaPlace {
            place: StatePlace {
                database_id: [1; 16],
                ..place()
            },
            ..delta_place()
        },
    ];
    for other in others {
        let other_log = DeltaLog::new(storage(&world), other);
        let mut writer = DeltaWriter::open(other_log.clone(), 0, 1 << 20).unwrap();
        writer.append(&records[0]).unwrap();
        writer.sync().unwrap();
        world
            .write_file(&other_log.files().unwrap()[0].path, &image)
            .unwrap();
        let mut reader = other_log.read_after(0).unwrap();
        assert!(reader.next_record().unwrap().is_none());
        assert_eq!(reader.cut().unwrap().offset, 0);
    }
    let renamed = path.replace("00000001.log", "00000005.log");
    world.write_file(&renamed, &image).unwrap();
    world
        .write_file(&path.replace("1.log", "1.txt"), b"")
        .unwrap();
    assert_eq!(log(&world).files().unwrap().len(), 2);
    let (found, _) = read(&world, 4);
    assert!(found.is_empty());
}

/// Whatever was done to the bytes, what is read is what was written, up to some record.
fn is_prefix(world: &SimWorld, records: &[DeltaRecord]) -> usize {
    let (found, error) = read(world, 0);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(found[..], records[..found.len()]);
    found.len()
}

#[test]
fn every_flipped_byte_and_every_cut_ends_the_log_there() {
    let world = SimWorld::new(1);
    let (records, _) = records(30, 1);
    write(&world, &records, 1 << 20).unwrap();
    let path = log(&world).files().unwrap()[0].path.clone();
    let image = world.read_file(&path).unwrap();
    assert!(image.len() > 2 * BLOCK_BYTES, "{} bytes", image.len());
    let used = DELTA_FILE_HEADER_BYTES
        + records
            .iter()
            .map(DeltaRecord::encoded_bytes)
            .sum::<usize>();
    for at in 0..image.len() {
        let mut flipped = image.clone();
        flipped[at] ^= 1 << (at % 8);
        world.write_file(&path, &flipped).unwrap();
        let read = is_prefix(&world, &records);
        assert_eq!(read < records.len(), at < used, "byte {at}");
    }
    for length in 0..image.len() {
        world.write_file(&path, &image[..length]).unwrap();
        let read = is_prefix(&world, &records);
        assert_eq!(read < records.len(), length < used, "length {length}");
    }
}

#[test]
fn an_error_of_the_disk_stops_the_writer_and_nothing_else() {
    let (records, _) = records(60, 1);
    for fault in [SimFault::Error, SimFault::NoSpace] {
        at_every_operation(
            fault,
            |_| {},
            |world| {
                let Ok(mut writer) = DeltaWriter::open(log(world), 0, 6 * 1024) else {
                    return;
                };
                for record in &records {
                    let result = writer.append(record).and_then(|()| writer.flush());
                    if let Err(error) = result {
                        assert!(matches!(error, DeltaError::Io { .. }), "{error}");
                        assert!(matches!(writer.append(record), Err(DeltaError::Stopped)));
                        assert!(matches!(writer.flush(), Err(DeltaError::Stopped)));
                        assert!(matches!(writer.sync(), Err(DeltaError::Stopped)));
                        return;
                    }
                }
                writer.sync().ok();
            },
            |world, (), _| {
                let read = is_prefix(world, &records) as u64;
                // The log goes on where the state is, and is whole if that is where it ended.
                let rest = &records[read as usize..];
                if !rest.is_empty() {
                    write(world, rest, 1 << 20).unwrap();
                }
                assert_eq!(is_prefix(world, &records), records.len());
            },
        );
    }
}

#[test]
fn a_crash_at_any_operation_loses_nothing_that_was_synced() {
    let (records, _) = records(60, 1);
    let synced = std::cell::Cell::new(0);
    at_every_operation(
        SimFault::Crash,
        |_| synced.set(0),
        |world| {
            let Ok(mut writer) = DeltaWriter::open(log(world), 0, 6 * 1024) else {
                return;
            };
            for (n, record) in records.iter().enumerate() {
                let result = writer.append(record).and_then(|()| writer.flush());
                if result.is_err() || n % 9 == 8 && writer.sync().is_err() {
                    return;
                }
                if n % 9 == 8 {
                    synced.set(n + 1);
                }
            }
        },
        |world, (), passes| {
            let read = match read(world, 0) {
                (found, None | Some(DeltaError::Gap { .. })) => {
                    assert_eq!(found[..], records[..found.len()]);
                    found.len()
                }
                (_, Some(error)) => panic!("{error}"),
            };
            assert!(
                read >= synced.get(),
                "operation {passes}: {read} of {}",
                synced.get()
            );
        },
    );
}

#[test]
fn golden_file_header_and_record() {
    let header = DeltaFileHeader {
        log: delta_place(),
        first_sequence: 100,
    };
    let bytes = header.encode();
    let layout = [
        ("checksum", 8),
        ("magic", 4),
        ("version", 2),
        ("reserved", 2),
        ("database_id", 16),
        ("partition", 4),
        ("generation", 4),
        ("first_sequence", 8),
        ("module_bytes", 1),
        ("module", 6),
    ];
    check("delta_file_header", &dump(&bytes, &layout));
    assert_eq!(DeltaFileHeader::decode(&bytes).unwrap(), header);

    let mut changes = Changes::new();
    changes.push(0, b"EWR", Some(b"12"));
    changes.push(1, b"N14228", None);
    let record = DeltaRecord {
        first_sequence: 100,
        last_sequence: 103,
        timestamp_ns: TIME,
        changes,
        fingerprint_after: Fingerprint::of_row(0, b"EWR", b"12"),
    };
    let at = DeltaAt {
        seed: header.seed(),
        offset: 4096,
        previous: 0,
    };
    let mut bytes = Vec::new();
    record.encode(at, &mut bytes);
    assert_eq!(bytes.len(), record.encoded_bytes());
    let layout = [
        ("checksum", 8),
        ("magic", 4),
        ("version", 2),
        ("reserved", 2),
        ("offset", 8),
        ("first_sequence", 8),
        ("last_sequence", 8),
        ("timestamp_ns", 8),
        ("change_count", 4),
        ("change_bytes", 4),
        ("change_checksum", 8),
        ("fingerprint_after", 32),
        ("previous_checksum", 8),
        ("table 0", 4),
        ("key_bytes 0", 2),
        ("value_bytes 0", 4),
        ("key 0", 3),
        ("value 0", 2),
        ("table 1", 4),
        ("key_bytes 1", 2),
        ("deleted 1", 4),
        ("key 1", 6),
    ];
    check("delta_record", &dump(&bytes, &layout));
    let decoded = DeltaRecordHeader::decode(&bytes, at).unwrap();
    let body = &bytes[DELTA_RECORD_HEADER_BYTES..];
    assert_eq!(decoded.with_changes(body).unwrap(), record);
}
