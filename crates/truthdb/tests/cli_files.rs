//! The commands that work on files: backup, restore, verify, inspect and repair, and what they say
//! about directories that are damaged, incomplete, foreign, in use or from the future.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod cli_support;
mod server_support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cli_support::{At, Ended, cli, cli_at, cli_with_input, lines_of_events};
use serde_json::Value;
use server_support::Server;
use tempfile::TempDir;

/// Sequences of the database that [`filled`] makes; its segments end before 17,000 and 34,000.
const EVENTS: u64 = 40_000;

/// A stopped database with sealed segments.
fn filled(dir: &TempDir) -> PathBuf {
    let data = dir.path().join("data");
    on(&data, &["init", "--segment-bytes", "16777216"]).ok();
    let server = Server::start(dir, "", &[]);
    append(&server, EVENTS);
    server.stop_cleanly();
    data
}

fn append(server: impl Into<At>, events: u64) {
    let input = lines_of_events("s", events, 10);
    cli_with_input(server, &["append", "--ndjson", "-"], &input).ok();
}

/// Runs a command on a data directory.
fn on(data: &Path, arguments: &[&str]) -> Ended {
    let own = ["--data", data.to_str().unwrap()];
    let all: Vec<&str> = own.iter().chain(arguments).copied().collect();
    cli(&all)
}

/// What is done in the background is done some time; asks until it is.
fn wait_until(server: &Server, what: &str, holds: impl Fn(&Value) -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a test's own patience")]
    let begun = std::time::Instant::now();
    while begun.elapsed() < server_support::PATIENCE {
        let status = cli_at(server, &["--json", "status"]).ok().json();
        if holds(&status["partitions"][0]) {
            return;
        }
    }
    panic!("never: {what}");
}

fn wait_for_seals(server: &Server, segments: u64) {
    wait_until(server, "segments are sealed", |partition| {
        partition["sealed_segments"].as_u64().unwrap() >= segments
    });
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn segment(data: &Path, number: u32) -> PathBuf {
    data.join(format!("partition-0000/wal/segment-{number:08}.log"))
}

/// Turns a bit of a file.
fn damage(file: &Path, offset: u64) {
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, offset).unwrap();
    opened.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn chains(verdict: &Value) -> Value {
    assert_eq!(verdict["whole"], true, "{verdict}");
    verdict["chains"].clone()
}

#[test]
fn a_backup_under_load_is_whole_grows_incrementally_and_restores_to_the_same_chain() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    on(&data, &["init", "--segment-bytes", "16777216"]).ok();
    let server = Server::start(&dir, "", &[]);
    append(&server, 20_000);
    wait_for_seals(&server, 1);
    let target = dir.path().join("backup");
    let target_text = target.to_str().unwrap().to_owned();
    // Load, until the backups are made.
    let stop = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let (at, stop) = (At::from(&server), Arc::clone(&stop));
        move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Acquire) || rounds == 0 {
                append(at.clone(), 2000);
                rounds += 1;
            }
        }
    });
    let first = cli_at(&server, &["--json", "backup", &target_text, "--verify"])
        .ok()
        .json();
    assert_eq!(first["verified"], true);
    assert_eq!(first["files_kept"], 0);
    let last = first["partitions"][0]["last_sequence"].as_u64().unwrap();
    assert!(last >= 20_000, "{first}");
    let second = cli_at(&server, &["--json", "backup", &target_text])
        .ok()
        .json();
    stop.store(true, Ordering::Release);
    load.join().unwrap();
    assert!(second["files_kept"].as_u64().unwrap() >= 1, "{second}");
    assert!(second["partitions"][0]["last_sequence"].as_u64().unwrap() >= last);
    server.stop_cleanly();

    // The stopped directory as a third backup, and a restore of it.
    let third = on(&data, &["--json", "backup", &target_text, "--verify"])
        .ok()
        .json();
    assert!(third["files_kept"].as_u64().unwrap() >= 1, "{third}");
    let elsewhere = tempfile::tempdir().unwrap();
    let restored = elsewhere.path().join("data");
    let told = on(&restored, &["--json", "restore", &target_text])
        .ok()
        .json();
    let original = on(&data, &["--json", "verify"]).ok().json();
    assert_eq!(chains(&told["verification"]), chains(&original));
    let again = on(&restored, &["--json", "verify"]).ok().json();
    assert_eq!(again["events"], original["events"]);
    assert_eq!(told["database_id"], third["database_id"]);

    // It serves, and has every event.
    let mut server = Server::start(&elsewhere, "", &[]);
    server.allow_log("index");
    let read = cli_at(&server, &["--json", "read", "s-1", "--limit", "2"]).ok();
    assert_eq!(read.json_lines().len(), 2);
    cli_at(&server, &["append", "after", "restore"]).ok();
    server.stop_cleanly();
}

#[test]
fn a_backup_of_a_trimmed_database_restores_with_the_streams_whose_events_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    on(&data, &["init", "--segment-bytes", "16777216"]).ok();
    let server = Server::start(&dir, "", &[]);
    for _ in 0..2 {
        cli_at(&server, &["append", "gone", "t"]).ok();
    }
    append(&server, EVENTS);
    wait_for_seals(&server, 2);
    let trim = [
        "trim",
        "--partition",
        "0",
        "--before-sequence",
        "30000",
        "--yes",
    ];
    cli_at(&server, &trim).ok();
    wait_until(&server, "the trimmed file is removed", |_| {
        !segment(&data, 1).exists()
    });

    // From the server, and brought up to date: the run of the trimmed segment is there already.
    let target = dir.path().join("backup");
    let target_text = target.to_str().unwrap();
    let backup = ["--json", "backup", target_text, "--verify"];
    assert_eq!(cli_at(&server, &backup).ok().json()["verified"], true);
    let run = stored_run(&target);
    let again = cli_at(&server, &backup).ok().json();
    assert!(again["files_kept"].as_u64().unwrap() >= 2, "{again}");
    assert_eq!(stored_run(&target), run);
    server.stop_cleanly();
    // And from the closed directory.
    let offline = dir.path().join("offline");
    let offline_text = offline.to_str().unwrap();
    let made = on(&data, &["--json", "backup", offline_text, "--verify"]);
    assert_eq!(made.ok().json()["verified"], true);
    assert_eq!(stored_run(&offline).file_name(), run.file_name());

    for from in [target_text, offline_text] {
        let elsewhere = tempfile::tempdir().unwrap();
        let restored = elsewhere.path().join("data");
        on(&restored, &["restore", from]).ok();
        let mut server = Server::start(&elsewhere, "", &[]);
        server.allow_log("index");
        cli_at(&server, &["read", "gone"]).fails(10);
        let appended = cli_at(&server, &["--json", "append", "gone", "t"])
            .ok()
            .json();
        assert_eq!(appended["revision"], 2, "{appended}");
        server.stop_cleanly();
        on(&restored, &["verify"]).ok();
    }

    // A run that is damaged, or that the backup's index does not name, is missed.
    damage(&run, 5000);
    let message = on(&dir.path().join("x"), &["restore", target_text]).fails(5);
    assert!(message.contains("BLAKE3"), "{message}");
    let index = offline.join("backup.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let is_run = |file: &Value| file["path"].as_str().unwrap().contains("/heads-");
    value["files"]
        .as_array_mut()
        .unwrap()
        .retain(|file| !is_run(file));
    fs::write(&index, value.to_string()).unwrap();
    let attempt = on(&dir.path().join("y"), &["restore", offline_text]);
    assert_eq!(attempt.code, 5, "{attempt:?}");
    assert!(
        attempt
            .stdout
            .contains("stream heads of the trimmed segments"),
        "{attempt:?}"
    );
}

/// The one run of stream heads in a backup.
fn stored_run(backup: &Path) -> PathBuf {
    let entries = fs::read_dir(backup.join("partition-0000/index")).unwrap();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths[0].clone()
}

#[test]
fn a_backup_refuses_foreign_directories_and_databases_and_a_damaged_one_does_not_restore() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(&dir);
    let target = dir.path().join("backup");
    let target_text = target.to_str().unwrap();
    on(&data, &["backup", target_text]).ok();

    let other = dir.path().join("other");
    on(&other, &["init"]).ok();
    let message = on(&other, &["backup", target_text]).fails(10);
    assert!(
        message.contains("another") || message.contains("database"),
        "{message}"
    );
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("letter.txt"), "dear").unwrap();
    on(&data, &["backup", foreign.to_str().unwrap()]).fails(4);
    on(&data, &["restore", target_text]).fails(4);
    on(
        &dir.path().join("x"),
        &["restore", foreign.to_str().unwrap()],
    )
    .fails(4);

    let stored = fs::read_dir(target.join("partition-0000/wal")).unwrap();
    let stored = stored.map(|entry| entry.unwrap().path()).min().unwrap();
    damage(&stored, 100_000);
    let attempt = dir.path().join("attempt");
    let message = on(&attempt, &["restore", target_text]).fails(5);
    assert!(message.contains("BLAKE3"), "{message}");
    // What is left of the attempt is no database.
    on(&attempt, &["verify"]).fails(5);
    fs::remove_file(&stored).unwrap();
    on(&dir.path().join("attempt-2"), &["restore", target_text]).fails(5);
    let index = target.join("backup.json");
    let text = fs::read_to_string(&index)
        .unwrap()
        .replacen("\"format\": 1", "\"format\": 2", 1);
    fs::write(&index, text).unwrap();
    on(&dir.path().join("attempt-3"), &["restore", target_text]).fails(7);
}

#[test]
fn damage_is_found_named_and_repaired_from_a_backup_without_loss() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(&dir);
    let target = dir.path().join("backup");
    let target = target.to_str().unwrap();
    on(&data, &["backup", target]).ok();
    let whole = on(&data, &["--json", "verify"]).ok().json();
    let first = segment(&data, 1);
    damage(&first, 1_000_000);

    let ended = on(&data, &["--json", "verify"]);
    assert_eq!(ended.code, 5);
    let verdict = ended.json();
    assert_eq!(verdict["whole"], false);
    let finding = &verdict["findings"][0];
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["path"], "partition-0000/wal/segment-00000001.log");
    let table = on(&data, &["verify"]);
    assert_eq!(table.code, 5);
    assert!(table.stdout.contains("DAMAGED"), "{table:?}");
    let offset = finding["offset"].as_u64().unwrap().to_string();
    let file = first.to_str().unwrap();
    let explained = cli(&[
        "--json", "inspect", file, "--offset", &offset, "--limit", "1",
    ])
    .ok();
    assert!(
        explained.json()["problems"].as_u64().unwrap() >= 1,
        "{explained:?}"
    );
    // A backup would copy the damage: its verification says so.
    let copy = dir.path().join("damaged-copy");
    on(&data, &["backup", copy.to_str().unwrap(), "--verify"]).fails(5);

    let repair = [
        "repair",
        "restore-segment",
        "--partition",
        "0",
        "--segment",
        "1",
        "--from",
    ];
    let repair: Vec<&str> = repair.iter().copied().chain([target]).collect();
    let plan = on(&data, &repair).ok().stdout;
    assert!(plan.contains("Nothing was changed"), "{plan}");
    let wrong: Vec<&str> = repair.iter().copied().chain(["--yes", "1-2"]).collect();
    on(&data, &wrong).fails(2);
    assert_eq!(on(&data, &["verify"]).code, 5);
    let right: Vec<&str> = repair.iter().copied().chain(["--yes", "none"]).collect();
    on(&data, &right).ok();
    let after = on(&data, &["--json", "verify"]).ok().json();
    assert_eq!(chains(&after), chains(&whole));
}

#[test]
fn cutting_a_segment_names_the_loss_and_keeps_what_is_before() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(&dir);
    damage(&segment(&data, 2), 1_000_000);
    let cut = [
        "--json",
        "repair",
        "cut-segment",
        "--partition",
        "0",
        "--segment",
        "2",
    ];
    let plan = on(&data, &cut).ok().json();
    let loss = plan["loss"].as_str().unwrap().to_owned();
    assert_eq!(plan["executed"], false);
    assert_ne!(loss, "none");
    let lost = plan["plan"]["lost_first_sequence"].as_u64().unwrap();
    let yes: Vec<&str> = cut.iter().copied().chain(["--yes", &loss]).collect();
    assert_eq!(on(&data, &yes).ok().json()["executed"], true);
    assert!(data.join("partition-0000/damaged").is_dir());
    let mut server = Server::start(&dir, "", &[]);
    server.allow_log("");
    let status = cli_at(&server, &["--json", "status"]).ok().json();
    assert_eq!(status["partitions"][0]["committed_sequence"], lost - 1);
    cli_at(&server, &["append", "after", "repair"]).ok();
    drop(server);
    on(&data, &["repair", "cut-tail", "--partition", "7"]).fails(2);
    on(&data, &["repair", "cut-tail", "--partition", "0"]).fails(10);
    on(
        &data,
        &[
            "repair",
            "rebuild-indexes",
            "--partition",
            "0",
            "--yes",
            "none",
        ],
    )
    .ok();
}

#[test]
fn missing_foreign_and_swapped_segments_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(&dir);
    let case = |name: &str, change: &dyn Fn(&Path)| -> (i32, String) {
        let copy = dir.path().join(name);
        copy_dir(&data, &copy);
        change(&copy);
        let verify = on(&copy, &["--json", "verify"]);
        let backup = on(
            &copy,
            &[
                "backup",
                copy.with_extension("b").to_str().unwrap(),
                "--verify",
            ],
        );
        assert_eq!(verify.code, backup.code, "{name}: {verify:?} {backup:?}");
        let summary = on(&copy, &["--json", "inspect"]);
        let said = format!("{}{}", verify.stdout, summary.stdout);
        fs::remove_dir_all(&copy).unwrap();
        (verify.code, said)
    };
    let (code, said) = case("missing", &|data| {
        fs::remove_file(segment(data, 2)).unwrap()
    });
    assert_eq!(code, 5);
    assert!(said.contains("segment-00000002.log is missing"), "{said}");

    let other_dir = tempfile::tempdir().unwrap();
    let other = other_dir.path().join("data");
    on(&other, &["init", "--segment-bytes", "16777216"]).ok();
    let (code, said) = case("foreign", &|data| {
        fs::copy(segment(&other, 1), segment(data, 2)).unwrap();
    });
    assert_eq!(code, 5);
    assert!(said.contains("database id"), "{said}");

    let (code, said) = case("duplicated", &|data| {
        fs::copy(segment(data, 1), segment(data, 2)).unwrap();
    });
    assert_eq!(code, 5);
    assert!(said.contains("segment of the"), "{said}");
}

#[test]
fn a_directory_that_is_no_database_in_use_damaged_or_newer_has_its_own_error() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Nothing is there.
    on(&data, &["verify"]).fails(4);
    on(&data, &["init"]).ok();
    on(&data, &["init"]).fails(4);
    on(&data, &["verify"]).ok();

    // A server has it open: neither a second one nor a repair.
    let server = Server::start(&dir, "", &[]);
    let target = dir.path().join("b");
    for arguments in [
        &["verify"][..],
        &["serve"],
        &["backup", target.to_str().unwrap()],
        &["repair", "cut-tail", "--partition", "0"],
        &["prove", "1"],
    ] {
        let message = on(&data, arguments).fails(6);
        assert!(message.contains("in use"), "{message}");
    }
    // Looking is allowed.
    on(&data, &["inspect"]).ok();
    server.stop_cleanly();

    // A manifest that is damaged, empty, missing; a schema of a newer release.
    let manifest = data.join("metadata/manifest.bin");
    let kept = fs::read(&manifest).unwrap();
    damage(&manifest, 30);
    on(&data, &["verify"]).fails(5);
    on(&data, &["inspect"]).fails(5);
    let explained = cli(&["inspect", manifest.to_str().unwrap()]).ok().stdout;
    assert!(explained.contains("problem"), "{explained}");
    fs::write(&manifest, "").unwrap();
    on(&data, &["verify"]).fails(5);
    fs::remove_file(&manifest).unwrap();
    let message = on(&data, &["verify"]).fails(5);
    assert!(message.contains("missing"), "{message}");
    on(&data, &["serve", "--init-if-empty"]).fails(5);
    fs::write(&manifest, &kept).unwrap();
    on(&data, &["verify"]).ok();

    let schema = data.join("metadata/schema.bin");
    let mut block = fs::read(&schema).unwrap();
    block[12] = 99;
    let checksum = xxhash(&block[8..4096]);
    block[..8].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&schema, &block).unwrap();
    for arguments in [&["verify"][..], &["serve"], &["inspect"]] {
        let message = on(&data, arguments).fails(7);
        assert!(message.contains("99"), "{message}");
    }
}

/// xxHash64 with seed 0, from its specification, so that a test can forge a checksum.
fn xxhash(bytes: &[u8]) -> u64 {
    const P1: u64 = 0x9E37_79B1_85EB_CA87;
    const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
    const P3: u64 = 0x1656_67B1_9E37_79F9;
    const P4: u64 = 0x85EB_CA77_C2B2_AE63;
    assert_eq!(bytes.len() % 8, 0);
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let round = |acc: u64, input: u64| {
        acc.wrapping_add(input.wrapping_mul(P2))
            .rotate_left(31)
            .wrapping_mul(P1)
    };
    let mut lanes = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
    let mut at = 0;
    while at + 32 <= bytes.len() {
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = round(*value, word(at + lane * 8));
        }
        at += 32;
    }
    let turns = [1, 7, 12, 18];
    let mut hash = lanes.iter().zip(turns).fold(0u64, |hash, (lane, turn)| {
        hash.wrapping_add(lane.rotate_left(turn))
    });
    for lane in lanes {
        hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
    }
    hash = hash.wrapping_add(u64::try_from(bytes.len()).unwrap());
    while at < bytes.len() {
        hash = (hash ^ round(0, word(at)))
            .rotate_left(27)
            .wrapping_mul(P1)
            .wrapping_add(P4);
        at += 8;
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_of_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    // A file where a directory would have to be: also root cannot write there.
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let below = file.join("data");
    on(&below, &["init"]).fails(4);
    on(&below, &["verify"]).fails(4);
    let data = dir.path().join("data");
    on(&data, &["init"]).ok();
    on(&data, &["backup", below.to_str().unwrap()]).fails(4);
    on(&data, &["inspect", below.to_str().unwrap()]).fails(4);
}

#[test]
fn a_torn_tail_is_no_damage_and_every_kind_of_file_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(&dir);
    let server = Server::start(&dir, "", &[]);
    cli_at(&server, &["append", "last", "t", "kept"]).ok();
    server.stop_cleanly();
    let newest = fs::read_dir(data.join("partition-0000/wal")).unwrap();
    let newest = newest
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.extension().unwrap() == "log");
    let newest = newest.max().unwrap();
    // A write that was under way when the power went: bytes after the last block that counts.
    let inspected = cli(&[
        "--json",
        "inspect",
        newest.to_str().unwrap(),
        "--limit",
        "500",
    ])
    .ok()
    .json();
    let parts = inspected["parts"].as_array().unwrap();
    let zeros = parts.iter().find(|part| part["name"] == "zeros").unwrap();
    let free = zeros["offset"].as_u64().unwrap().next_multiple_of(4096);
    let file = fs::OpenOptions::new().write(true).open(&newest).unwrap();
    file.write_all_at(&[7; 5000], free).unwrap();
    drop(file);
    let verdict = on(&data, &["--json", "verify"]).ok().json();
    assert_eq!(verdict["whole"], true);
    assert_eq!(
        verdict["findings"].as_array().unwrap().len(),
        1,
        "{verdict}"
    );
    let mut server = Server::start(&dir, "", &[]);
    server.allow_log("torn tail");
    server.allow_log("cut");
    let read = cli_at(&server, &["--json", "read", "last"]).ok();
    assert_eq!(read.json_lines().len(), 1);
    server.stop_cleanly();

    let mut kinds = std::collections::BTreeSet::new();
    let partition = data.join("partition-0000");
    for directory in [
        data.join("metadata"),
        partition.join("wal"),
        partition.join("index"),
    ] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            // The lock, and preallocated segments that have no content yet.
            if path.extension().is_none_or(|extension| extension == "new") {
                continue;
            }
            let found = cli(&["--json", "inspect", path.to_str().unwrap(), "--events"])
                .ok()
                .json();
            assert_eq!(found["problems"], 0, "{found}");
            kinds.insert(found["kind"].as_str().unwrap().to_owned());
        }
    }
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    assert_eq!(
        kinds,
        [
            "event ids that a writer remembered at a clean stop",
            "format versions and limits of a database",
            "heads of streams",
            "index of a sealed segment",
            "manifest of a database",
            "segment of the log",
        ]
    );
}

#[test]
fn a_closed_directory_proves_its_events() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(&dir);
    let proof = on(
        &data,
        &["--json", "prove", "--stream", "s-3", "--revision", "0"],
    )
    .ok();
    assert_eq!(proof.json()["event"]["sequence"], 4);
    let by_sequence = on(&data, &["--json", "prove", "4"]).ok();
    assert_eq!(proof.stdout, by_sequence.stdout);
    let file = dir.path().join("proof.json");
    fs::write(&file, &proof.stdout).unwrap();
    let checked = cli(&["--json", "prove", "--check", file.to_str().unwrap()])
        .ok()
        .json();
    assert_eq!(checked["stream"], "s-3");
    on(&data, &["prove", "99999999"]).fails(10);
    on(
        &data,
        &["prove", "--stream", "s-3", "--revision", "99999999"],
    )
    .fails(10);
}
