//! What is wrong with disks and files, seen from outside: damage, files that are missing or not theirs, and a disk that
//! is full or only read. Each is named, costs what it must and no more, and is over when its cause is gone.

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

use cli_support::{At, Ended, cli, cli_at, cli_with_input, lines_of_events};
use serde_json::Value;
use server_support::Server;

/// The least that a segment may be.
const SEGMENT_BYTES: &str = "16777216";
/// Enough for a sealed segment in each of two partitions.
const EVENTS: u64 = 40_000;

/// Runs a command on a data directory.
fn on(data: &Path, arguments: &[&str]) -> Ended {
    let own = ["--data", data.to_str().unwrap()];
    let all: Vec<&str> = own.iter().chain(arguments).copied().collect();
    cli(&all)
}

fn init(data: &Path, partitions: &str) {
    let sizes = ["--partitions", partitions, "--segment-bytes", SEGMENT_BYTES];
    let arguments: Vec<&str> = ["init"].into_iter().chain(sizes).collect();
    on(data, &arguments).ok();
}

fn append(server: impl Into<At>, events: u64) {
    let input = lines_of_events("s", events, 20);
    let arguments = ["append", "--ndjson", "-", "--batch-events", "10"];
    cli_with_input(server, &arguments, &input).ok();
}

fn segment(data: &Path, partition: u32, number: u32) -> PathBuf {
    data.join(format!(
        "partition-{partition:04}/wal/segment-{number:08}.log"
    ))
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

fn partition_status(server: &Server, partition: usize) -> Value {
    let status = cli_at(server, &["--json", "status"]).ok().json();
    status["partitions"][partition].clone()
}

/// A stream of each of two partitions.
fn streams(server: &Server) -> [String; 2] {
    let home = |stream: &String| {
        let head = server.get(&format!("/v1/streams/{stream}/head")).json();
        head["partition"].as_u64()
    };
    let names: Vec<String> = (0..20).map(|n| format!("s-{n}")).collect();
    [0, 1].map(|partition| {
        let found = names.iter().find(|name| home(name) == Some(partition));
        found.unwrap().clone()
    })
}

/// Partition 0 answers nothing and says why, naming this file; partition 1 serves.
fn check_fenced(server: &Server, streams: &[String; 2], file: &str) -> String {
    let status = partition_status(server, 0);
    assert_eq!(status["state"], "fenced", "{status}");
    let reason = status["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(file), "{reason}");
    assert_eq!(partition_status(server, 1)["state"], "serving");
    assert_eq!(server.get("/readyz").status, 503);
    for arguments in [
        &["read", "--partition", "0"][..],
        &["read", &streams[0]],
        &["append", &streams[0], "t"],
    ] {
        let message = cli_at(server, arguments).fails(5);
        assert!(message.contains("PARTITION_FENCED"), "{message}");
        assert!(message.contains(file), "{message}");
    }
    let read = ["--json", "read", "--partition", "1", "--limit", "5"];
    assert_eq!(cli_at(server, &read).ok().json_lines().len(), 5);
    cli_at(server, &["append", &streams[1], "t"]).ok();
    reason
}

#[test]
fn damage_in_the_tail_is_named_and_fenced_and_cut_only_by_an_explicit_choice() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data, "2");
    let server = Server::start(&dir, "", &[]);
    append(&server, 2000);
    let streams = streams(&server);
    let committed = partition_status(&server, 0)["committed_sequence"]
        .as_u64()
        .unwrap();
    server.stop_cleanly();
    damage(&segment(&data, 0, 1), 400_000);

    let mut server = Server::start(&dir, "", &[]);
    server.allow_log("fenced");
    server.allow_log("not served");
    server.allow_log("not stopped cleanly");
    let file = "partition-0000/wal/segment-00000001.log";
    let reason = check_fenced(&server, &streams, file);
    assert!(reason.contains("offset"), "{reason}");
    assert!(reason.contains("sequence"), "{reason}");
    server.stop_cleanly();

    let cut = ["--json", "repair", "cut-tail", "--partition", "0"];
    let plan = on(&data, &cut).ok().json();
    assert_eq!(plan["executed"], false);
    let loss = plan["loss"].as_str().unwrap().to_owned();
    let first_lost = plan["plan"]["lost_first_sequence"].as_u64().unwrap();
    assert!((2..=committed).contains(&first_lost), "{plan}");
    let with = |loss: &str| {
        let all: Vec<&str> = cut.iter().copied().chain(["--yes", loss]).collect();
        on(&data, &all)
    };
    with("none").fails(2);
    assert_eq!(on(&data, &["verify"]).code, 5, "nothing was changed yet");
    assert_eq!(with(&loss).ok().json()["executed"], true);
    let mut server = Server::start(&dir, "", &[]);
    server.allow_log("index");
    let status = partition_status(&server, 0);
    assert_eq!(status["state"], "serving", "{status}");
    assert_eq!(status["committed_sequence"], first_lost - 1);
    cli_at(&server, &["append", &streams[0], "t"]).ok();
    server.stop_cleanly();
}

#[test]
fn damage_of_a_sealed_segment_is_named_and_fenced_by_the_read_that_meets_it_and_mended_from_a_backup()
 {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data, "2");
    let server = Server::start(&dir, "", &[]);
    append(&server, EVENTS);
    let streams = streams(&server);
    server.stop_cleanly();
    let backup = dir.path().join("backup");
    let backup = backup.to_str().unwrap();
    on(&data, &["backup", backup]).ok();
    damage(&segment(&data, 0, 1), 1_000_000);

    // A start does not read what is sealed: the partition serves until somebody needs the damaged place.
    let mut server = Server::start(&dir, "", &[]);
    server.allow_log("a read met damage");
    server.allow_log("not stopped cleanly");
    server.allow_log("verification found something");
    assert_eq!(partition_status(&server, 0)["state"], "serving");
    let file = "partition-0000/wal/segment-00000001.log";
    let message = cli_at(&server, &["read", "--partition", "0"]).fails(5);
    assert!(message.contains("PARTITION_FENCED"), "{message}");
    for part in [file, "offset", "sequence"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    check_fenced(&server, &streams, file);
    let verified = cli_at(&server, &["--json", "verify"]);
    assert_eq!(verified.code, 5);
    let finding = verified.json()["findings"][0].clone();
    assert_eq!(finding["path"], file, "{finding}");
    assert!(
        finding["offset"].as_u64().unwrap() <= 1_000_000,
        "{finding}"
    );
    server.stop_cleanly();

    let restore = [
        "repair",
        "restore-segment",
        "--partition",
        "0",
        "--segment",
        "1",
    ];
    let restore: Vec<&str> = restore
        .into_iter()
        .chain(["--from", backup, "--yes", "none"])
        .collect();
    on(&data, &restore).ok();
    let server = Server::start(&dir, "", &[]);
    let count = |partition: &str| {
        let read = ["--json", "read", "--partition", partition];
        cli_at(&server, &read).ok().json_lines().len()
    };
    // One event more: partition 1 took an append while its neighbour was fenced.
    assert_eq!(
        count("0") + count("1"),
        usize::try_from(EVENTS).unwrap() + 1
    );
    server.stop_cleanly();
}

#[test]
fn a_missing_foreign_or_duplicated_segment_fences_its_partition_until_it_is_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data, "2");
    let server = Server::start(&dir, "", &[]);
    append(&server, EVENTS);
    let streams = streams(&server);
    server.stop_cleanly();
    let other = dir.path().join("other");
    init(&other, "2");
    let (first, aside) = (segment(&data, 0, 1), dir.path().join("aside"));
    fs::copy(&first, &aside).unwrap();

    let name = "segment-00000001.log";
    let cases: [(&str, &dyn Fn()); 3] = [
        ("missing", &|| fs::remove_file(&first).unwrap()),
        ("database", &|| {
            fs::copy(segment(&other, 0, 1), &first).unwrap();
        }),
        ("segment", &|| {
            fs::copy(segment(&data, 0, 2), &first).unwrap();
        }),
    ];
    for (word, change) in cases {
        change();
        let mut server = Server::start(&dir, "", &[]);
        server.allow_log("fenced");
        server.allow_log("not served");
        server.allow_log("not stopped cleanly");
        let reason = check_fenced(&server, &streams, name);
        assert!(reason.contains(word), "{reason}");
        server.stop_cleanly();
        fs::copy(&aside, &first).unwrap();
    }
    let server = Server::start(&dir, "", &[]);
    assert_eq!(server.get("/readyz").status, 200);
    cli_at(&server, &["append", &streams[0], "t"]).ok();
    server.stop_cleanly();
    on(&data, &["verify"]).ok();
}

/// A file system of its own, in memory; taken away at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` where mounting is not allowed: then there is nothing to see.
    fn mount(at: &Path, mebibytes: u32) -> Option<Tmpfs> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "truthdb-test"])
            .arg(at)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Tmpfs(at.to_owned())),
            other => {
                eprintln!("SKIPPED: this user may not mount a file system: {other:?}");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let output = std::process::Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Whatever still has a file open keeps it until then.
        let ended = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_refuses_appends_keeps_reads_and_goes_on_by_itself_when_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let Some(disk) = Tmpfs::mount(&data, 44) else {
        return;
    };
    init(&data, "1");
    let mut server = Server::start(&dir, "[engine]\ncompression = \"none\"\n", &[]);
    server.allow_log("cannot prepare the next segment");
    server.allow_log("sealed in place");
    let input = lines_of_events("s", 1000, 10);
    let append = ["--json", "append", "--ndjson", "-", "--batch-events", "100"];
    let mut acknowledged = 0;
    // Two segments fit, a third does not.
    let message = loop {
        assert!(acknowledged < 60, "the disk is never full");
        let ended = cli_with_input(&server, &append, &input);
        if ended.code != 0 {
            break ended.fails(11);
        }
        acknowledged += 1;
    };
    assert!(message.contains("DISK_FULL"), "{message}");
    assert!(
        message.contains("16777216"),
        "the bytes that are needed: {message}"
    );
    let status = partition_status(&server, 0);
    assert_eq!(status["state"], "read-only", "{status}");
    assert!(
        status["reason"].as_str().unwrap().contains("space"),
        "{status}"
    );
    let committed = status["committed_sequence"].as_u64().unwrap();
    assert!(committed >= acknowledged * 1000, "{status}");
    let read = ["--json", "read", "--partition", "0"];
    let count = |server: &Server| -> u64 {
        let lines = cli_at(server, &read).ok().json_lines().len();
        u64::try_from(lines).unwrap()
    };
    assert_eq!(count(&server), committed);

    // A larger disk, and nobody tells the server.
    disk.remount("size=200m");
    #[expect(clippy::disallowed_methods, reason = "a test's own patience")]
    let begun = std::time::Instant::now();
    loop {
        let status = partition_status(&server, 0);
        if status["state"] == "serving" {
            break;
        }
        assert!(begun.elapsed() < server_support::PATIENCE, "{status}");
    }
    cli_with_input(&server, &append, &input).ok();
    assert_eq!(count(&server), committed + 1000);
    server.stop_cleanly();
    let server = Server::start(&dir, "", &[]);
    assert_eq!(count(&server), committed + 1000);
    server.stop_cleanly();
    on(&data, &["verify"]).ok();
    drop(disk);
}

#[test]
fn a_disk_that_is_only_read_is_an_error_of_the_machine_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let Some(disk) = Tmpfs::mount(&data, 100) else {
        return;
    };
    init(&data, "1");
    let server = Server::start(&dir, "", &[]);
    append(&server, 100);
    server.stop_cleanly();
    disk.remount("ro");
    for arguments in [&["serve"][..], &["verify"]] {
        let message = on(&data, arguments).fails(4);
        let lower = message.to_lowercase();
        assert!(
            lower.contains("read-only file system"),
            "{arguments:?}: {message}"
        );
        assert!(message.contains("what to do"), "{arguments:?}: {message}");
    }
    // Looking needs no lock.
    on(&data, &["inspect"]).ok();
    disk.remount("rw");
    let server = Server::start(&dir, "", &[]);
    let read = ["--json", "read", "--partition", "0"];
    assert_eq!(cli_at(&server, &read).ok().json_lines().len(), 100);
    cli_at(&server, &["append", "after", "t"]).ok();
    server.stop_cleanly();
    drop(disk);
}
