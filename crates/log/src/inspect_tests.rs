//! Every kind of file is explained; damage is named and never stops the explanation or the program.

use truthdb_io::sim::SimWorld;
use truthdb_io::{OpenMode, Storage};

use super::*;
use crate::manifest::Schema;
use crate::merkle::ZERO_HASH;
use crate::pack::Compression;
use crate::seal::{SealRequest, seal_segment, segment_index_path};
use crate::segment::{TrimPoint, segment_path};
use crate::test_log::{Shape, TestLog};

const SMALL: Shape = Shape {
    batches: 3,
    events: 2,
    payload: 30,
    noise: false,
};
const FULL: Shape = Shape {
    batches: 2,
    events: 5,
    payload: 900,
    noise: true,
};

/// A packed segment with its index, one sealed in place, an unsealed one, a run, and the small files.
fn files() -> (SimWorld, Vec<String>) {
    let sim = SimWorld::new(1);
    let storage: Arc<dyn Storage> = sim.storage();
    let mut log = TestLog::new();
    let mut previous_chain = ZERO_HASH;
    for (i, shape) in [SMALL, FULL, SMALL].into_iter().enumerate() {
        let segment = log.segment(shape);
        segment.write(&sim);
        if i == 2 {
            break;
        }
        let request = SealRequest {
            place: segment.place,
            data_end: segment.data_end,
            previous_chain,
            trim: TrimPoint::NONE,
            compression: Compression::None,
            key_check: log.keys.seed().check(),
            index: &segment.index,
        };
        let footer = seal_segment(&storage, &request).unwrap().footer;
        previous_chain = footer.chain;
        if i == 0 {
            let identity = crate::heads::HeadsIdentity {
                database_id: log.manifest.database_id,
                partition: 0,
                key_check: log.keys.seed().check(),
            };
            let mut run = crate::heads::HeadRunWriter::create(
                &storage,
                "partition-0000/index",
                &identity,
                1,
                1,
                &footer.chain,
            )
            .unwrap();
            let head = crate::active_index::StreamHead {
                next_revision: 3,
                last_sequence: 4,
            };
            run.push(crate::keys::StreamKey(5), head).unwrap();
            run.finish().unwrap();
        }
    }
    sim.write_file("metadata/manifest.bin", &log.manifest.encode())
        .unwrap();
    sim.write_file("metadata/schema.bin", &Schema::CURRENT.encode())
        .unwrap();
    let paths = vec![
        "metadata/manifest.bin".to_owned(),
        "metadata/schema.bin".to_owned(),
        segment_path(0, 1),
        segment_path(0, 2),
        segment_path(0, 3),
        segment_index_path(0, 1),
        "partition-0000/index/heads-00000001-00000001.run".to_owned(),
    ];
    (sim, paths)
}

const EVENTS: InspectOptions = InspectOptions {
    offset: 0,
    items_max: 20,
    events: true,
};

fn inspect(sim: &SimWorld, path: &str, options: InspectOptions) -> Inspection {
    let file = sim.storage().open(path, OpenMode::Read).unwrap();
    inspect_file(path, &file, options).unwrap()
}

#[test]
fn whole_files_are_explained_without_a_problem() {
    let (sim, paths) = files();
    let mut text = String::new();
    for path in &paths {
        let inspection = inspect(&sim, path, EVENTS);
        assert_eq!(inspection.problems, 0, "{}", inspection.to_text());
        assert_eq!(inspection.next_offset, None);
        text.push_str(&inspection.to_text());
        serde_json::to_string(&inspection).unwrap();
    }
    crate::test_golden::check("inspect.txt", &text);
}

#[test]
fn the_key_seed_is_not_shown() {
    let (sim, _) = files();
    let text = inspect(&sim, "metadata/manifest.bin", EVENTS).to_text();
    assert!(
        text.contains("(secret)") && !text.contains("030303"),
        "{text}"
    );
}

#[test]
fn a_flipped_bit_in_what_a_checksum_covers_is_a_problem() {
    let (sim, paths) = files();
    for path in &paths {
        let whole = sim.read_file(path).unwrap();
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
        for at in (0..=used).step_by(if used > 20_000 { 53 } else { 7 }) {
            if whole[at] == 0 {
                // Padding that means nothing is not covered by a checksum.
                continue;
            }
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            sim.write_file(path, &damaged).unwrap();
            let inspection = inspect(&sim, path, EVENTS);
            assert!(
                inspection.problems > 0,
                "{path} byte {at}: {}",
                inspection.to_text()
            );
        }
        sim.write_file(path, &whole).unwrap();
    }
}

#[test]
fn files_cut_anywhere_are_explained_as_far_as_they_go() {
    let (sim, paths) = files();
    for path in &paths {
        let whole = sim.read_file(path).unwrap();
        let len = whole.len().min(60_000);
        for cut in (0..len).step_by(777) {
            sim.write_file(path, &whole[..cut]).unwrap();
            inspect(&sim, path, EVENTS);
        }
        sim.write_file(path, &whole).unwrap();
    }
}

#[test]
fn after_a_damaged_batch_the_next_ones_are_shown() {
    let (sim, _) = files();
    let path = segment_path(0, 3);
    sim.corrupt(&path, 4096 + 20, 1).unwrap();
    let inspection = inspect(&sim, &path, InspectOptions::default());
    let names: Vec<&str> = inspection
        .parts
        .iter()
        .map(|part| part.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "segment header",
            "no batch",
            "batch",
            "batch",
            "mark",
            "zeros"
        ]
    );
    assert!(inspection.problems > 0);
}

#[test]
fn long_segments_come_in_pages() {
    let (sim, _) = files();
    let path = segment_path(0, 3);
    let mut options = InspectOptions {
        offset: 0,
        items_max: 2,
        events: false,
    };
    let mut items = Vec::new();
    loop {
        let page = inspect(&sim, &path, options);
        items.extend(page.parts.into_iter().skip(1));
        match page.next_offset {
            Some(offset) => options.offset = offset,
            None => break,
        }
    }
    let all = inspect(&sim, &path, InspectOptions::default());
    assert_eq!(items, all.parts[1..]);
}

#[test]
fn unreadable_blocks_and_foreign_files_are_shown_as_such() {
    let (sim, _) = files();
    let path = segment_path(0, 3);
    sim.make_unreadable(&path, 8192, 4096).unwrap();
    let inspection = inspect(&sim, &path, InspectOptions::default());
    let problem = inspection
        .parts
        .iter()
        .find_map(|part| part.problem.as_ref())
        .unwrap();
    assert!(problem.contains("cannot be read"), "{problem}");
    assert_eq!(inspection.parts.last().unwrap().name, "zeros");
    sim.write_file("notes.txt", b"hello").unwrap();
    assert_eq!(
        inspect(&sim, "notes.txt", EVENTS).kind,
        "not a file of the log"
    );
    sim.write_file("empty.log", b"").unwrap();
    assert!(inspect(&sim, "empty.log", EVENTS).problems > 0);
}
