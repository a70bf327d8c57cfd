//! The bytes of every structure on disk. `TRUTHDB_BLESS=1 cargo test -p truthdb-log --test golden`
//! writes the files anew; a difference in an existing file is a change of the format.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its data is small"
)]

mod images;

use std::fmt::Write as _;

use images::*;
use truthdb_io::sim::SimWorld;
use truthdb_log::*;

/// Fields with their bytes, then what follows them.
fn dump(bytes: &[u8], fields: &[(&str, usize)]) -> String {
    let mut text = String::new();
    let mut at = 0;
    for (name, length) in fields {
        let hex: String = bytes[at..at + length]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        writeln!(text, "{at:6} {name:<20} {hex}").unwrap();
        at += length;
    }
    let rest = &bytes[at..];
    let zeros = rest.iter().all(|byte| *byte == 0);
    writeln!(
        text,
        "{at:6} {:<20} {} bytes, all zero: {zeros}",
        "rest",
        rest.len()
    )
    .unwrap();
    text
}

fn check(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("TRUTHDB_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}; run with TRUTHDB_BLESS=1"));
    assert_eq!(
        golden, text,
        "{name} differs; is this meant to be a new version of the format?"
    );
}

const PLACE_FIELDS: [(&str, usize); 3] = [("database_id", 16), ("partition", 4), ("segment", 4)];

fn fields(parts: &[&[(&'static str, usize)]]) -> Vec<(&'static str, usize)> {
    parts.concat()
}

#[test]
fn batch_header() {
    let mut writer = Writer::new(&header(SegmentKind::Active));
    writer.group(&[&[10]]);
    writer.flushed();
    writer.group(&[&[1, 2]]);
    writer.flushed();
    writer.clean_stop();
    let layout = fields(&[
        &[
            ("header_checksum", 8),
            ("magic", 4),
            ("version", 2),
            ("flags", 2),
        ],
        &PLACE_FIELDS,
        &[
            ("offset", 8),
            ("first_sequence", 8),
            ("timestamp_ns", 8),
            ("previous_checksum", 8),
        ],
        &[
            ("body_checksum", 8),
            ("flushed_sequence", 8),
            ("event_count", 4),
            ("body_bytes", 4),
        ],
        &[("flushed_offset", 8)],
    ]);
    let at = writer.groups[1] as usize;
    check("batch_header", &dump(&writer.image[at..at + 128], &layout));
    let at = writer.groups[2] as usize;
    check(
        "clean_stop_mark",
        &dump(&writer.image[at..at + 128], &layout),
    );
    let header = BatchHeader::decode(&writer.image[at..]).unwrap();
    assert!(header.mark && header.clean_stop);
    assert_eq!(header.encode()[..], writer.image[at..at + 128]);
}

#[test]
fn batch_body() {
    let batch = batch(100, &[4, 2]);
    let layout = [
        ("checksum 0", 8),
        ("checksum 1", 8),
        ("revision 0", 8),
        ("revision 1", 8),
        ("length 0", 4),
        ("length 1", 4),
        ("id", 16),
        ("payload_bytes", 4),
        ("metadata_bytes", 2),
        ("tags_bytes", 2),
        ("stream_bytes", 1),
        ("type_bytes", 1),
        ("content_type_bytes", 1),
        ("reserved", 1),
        ("stream", 9),
        ("type", 9),
        ("content_type", 24),
        ("tag", 13),
        ("metadata", 18),
        ("payload", 4),
        ("event 1", batch.event(1).unwrap().bytes.len()),
    ];
    check("batch_body", &dump(&batch.body, &layout));
    batch.verify().unwrap();
}

#[test]
fn segment_header() {
    let layout = fields(&[
        &[("checksum", 8), ("magic", 4), ("version", 2), ("kind", 2)],
        &PLACE_FIELDS,
        &[
            ("base_sequence", 8),
            ("segment_bytes", 8),
            ("previous_checksum", 8),
        ],
        &[
            ("first_segment", 4),
            ("reserved", 4),
            ("first_sequence", 8),
            ("created_ns", 8),
        ],
    ]);
    let bytes = header(SegmentKind::Active).encode();
    check("segment_header", &dump(&bytes, &layout));
    assert_eq!(
        SegmentHeader::decode(&bytes).unwrap(),
        header(SegmentKind::Active)
    );
}

#[test]
fn segment_footer() {
    let layout = fields(&[
        &[("checksum", 8), ("magic", 4), ("version", 2), ("kind", 2)],
        &PLACE_FIELDS,
        &[
            ("base_sequence", 8),
            ("last_sequence", 8),
            ("event_count", 8),
            ("batch_count", 8),
        ],
        &[
            ("first_timestamp_ns", 8),
            ("last_timestamp_ns", 8),
            ("data_end", 8),
        ],
        &[
            ("sparse_offset", 8),
            ("sparse_entries", 8),
            ("event_bytes", 8),
        ],
        &[
            ("last_batch_checksum", 8),
            ("root", 32),
            ("previous_chain", 32),
            ("chain", 32),
        ],
        &[("first_segment", 4), ("reserved", 4), ("first_sequence", 8)],
    ]);
    let writer = sample();
    let footer = writer.footer(SegmentKind::Packed, writer.end(), 2);
    let bytes = footer.encode();
    check("segment_footer", &dump(&bytes, &layout));
    assert_eq!(Footer::decode(&bytes).unwrap(), footer);
}

#[test]
fn sparse_index() {
    let entry = |sequence| SparseEntry {
        sequence,
        offset: sequence * 64,
        timestamp_ns: TIME,
    };
    let entries = [entry(100), entry(2000)];
    let layout = [
        ("sequence 0", 8),
        ("offset 0", 8),
        ("timestamp 0", 8),
        ("sequence 1", 8),
        ("offset 1", 8),
        ("timestamp 1", 8),
        ("checksum", 8),
    ];
    let bytes = encode_sparse_index(&entries);
    check("sparse_index", &dump(&bytes, &layout));
    assert_eq!(decode_sparse_index(&bytes, 2).unwrap(), entries);
}

#[test]
fn packed_block() {
    let writer = sample();
    let image = writer.packed();
    let layout = fields(&[
        &[
            ("checksum", 8),
            ("magic", 4),
            ("version", 2),
            ("codec", 1),
            ("reserved", 1),
        ],
        &PLACE_FIELDS,
        &[
            ("offset", 8),
            ("first_sequence", 8),
            ("batch_count", 4),
            ("raw_bytes", 4),
        ],
        &[
            ("stored_bytes", 4),
            ("event_count", 4),
            ("stored_checksum", 8),
            ("reserved", 16),
        ],
        &[
            ("batch event_count", 4),
            ("batch body_bytes", 4),
            ("batch timestamp_ns", 8),
        ],
    ]);
    check("packed_block", &dump(&image[4096..4096 + 112], &layout));
    let header = PackedBlockHeader::decode(&image[4096..]).unwrap();
    assert_eq!(header.encode()[..], image[4096..4096 + 96]);
}

#[test]
fn manifest_schema_and_trim_point() {
    let manifest = Manifest {
        database_id: DATABASE_ID,
        partition_count: 4,
        segment_bytes: SEGMENT_BYTES_DEFAULT,
        key_seed: *b"a random secret!",
        created_ns: TIME,
    };
    let preamble: [(&str, usize); 3] = [("checksum", 8), ("magic", 4), ("version", 2)];
    let layout = fields(&[
        &preamble,
        &[
            ("reserved", 2),
            ("database_id", 16),
            ("partition_count", 4),
            ("reserved", 4),
        ],
        &[("segment_bytes", 8), ("key_seed", 16), ("created_ns", 8)],
    ]);
    check("manifest", &dump(&manifest.encode(), &layout));
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);

    let layout = fields(&[
        &preamble,
        &[
            ("segment_version", 2),
            ("batch_version", 2),
            ("manifest_version", 2),
        ],
        &[
            ("batch_events_max", 4),
            ("batch_bytes_max", 4),
            ("payload_bytes_max", 4),
        ],
        &[
            ("metadata_bytes_max", 4),
            ("tags_max", 4),
            ("metadata_keys_max", 4),
        ],
    ]);
    check("schema", &dump(&Schema::CURRENT.encode(), &layout));
    assert_eq!(
        Schema::decode(&Schema::CURRENT.encode()).unwrap(),
        Schema::CURRENT
    );

    let sim = SimWorld::new(1);
    let storage = sim.storage();
    truthdb_io::Storage::durable_create_dir(storage.as_ref(), "partition-0002").unwrap();
    let trim = TrimPoint {
        first_segment: 5,
        first_sequence: 1234,
    };
    write_trim_point(storage.as_ref(), &manifest, 2, trim).unwrap();
    let layout = fields(&[
        &preamble,
        &[("reserved", 2)],
        &PLACE_FIELDS,
        &[("first_sequence", 8)],
    ]);
    check(
        "trim_point",
        &dump(&sim.read_file(&trim_path(2)).unwrap(), &layout),
    );
    assert_eq!(
        read_trim_point(storage.as_ref(), &manifest, 2).unwrap(),
        trim
    );
}

#[test]
fn every_flipped_byte_of_a_block_structure_is_noticed() {
    let manifest = Manifest {
        database_id: DATABASE_ID,
        partition_count: 4,
        segment_bytes: SEGMENT_BYTES_DEFAULT,
        key_seed: [3; 16],
        created_ns: TIME,
    };
    let writer = sample();
    let footer = writer.footer(SegmentKind::Active, writer.end(), 2);
    let sparse = encode_sparse_index(&writer.sparse);
    let entries = writer.sparse.len() as u64;
    for at in 0..4096 {
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1 << (at % 8);
            bytes
        };
        assert!(
            Manifest::decode(&flipped(&manifest.encode())).is_err(),
            "{at}"
        );
        assert!(
            Schema::decode(&flipped(&Schema::CURRENT.encode())).is_err(),
            "{at}"
        );
        assert!(
            SegmentHeader::decode(&flipped(&writer.image[..4096])).is_err(),
            "{at}"
        );
        assert!(Footer::decode(&flipped(&footer.encode())).is_err(), "{at}");
        let decoded = decode_sparse_index(&flipped(&sparse), entries);
        assert_eq!(
            decoded.is_err(),
            at < sparse_index_bytes(entries) as usize,
            "{at}"
        );
    }
    for length in 0..4096 {
        assert!(Manifest::decode(&manifest.encode()[..length]).is_err());
        assert!(Schema::decode(&Schema::CURRENT.encode()[..length]).is_err());
        assert!(SegmentHeader::decode(&writer.image[..length]).is_err());
        assert!(Footer::decode(&footer.encode()[..length]).is_err());
        let too_short = decode_sparse_index(&sparse[..length], entries).is_err();
        assert_eq!(too_short, length < sparse_index_bytes(entries) as usize);
    }
}
