//! Modules that are hostile, or cut off, on a running server: what they do is contained and named, everything else
//! goes on, and after a kill at any point the old version runs or the new one.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod cli_support;
mod modules_support;
mod server_support;

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cli_support::cli;
use modules_support::{
    append, append_once, balance, deploy, get, post, publish, publish_at, retried,
};
use serde_json::{Value, json};
use server_support::{Server, http_at};
use truthdb_guests::{Guest, raw_reducer, wasm};

/// What `FUNCTION_BYTES_MAX` is, in the contract of modules.
const FUNCTION_BYTES_MAX: usize = 1 << 20;
/// Kills of the process in the middle of an upgrade.
const KILLS: u64 = 12;

/// A custom section: bytes that change a module's hash and length, and nothing of what it does.
fn padded(module: &[u8], mark: u8, padding: usize) -> Vec<u8> {
    let mut content = vec![4, b'm', b'a', b'r', b'k'];
    content.resize(content.len() + padding, mark);
    let mut bytes = module.to_vec();
    bytes.push(0);
    let mut length = content.len();
    while length > 127 {
        bytes.push(0x80 | length.to_le_bytes()[0]);
        length >>= 7;
    }
    bytes.push(length.to_le_bytes()[0]);
    bytes.extend(content);
    bytes
}

/// What must go on whatever another module does: an append, and a query that sees it.
fn others_go_on(server: &Server, deposits: &mut i64) {
    *deposits += 1;
    let token = append(server, "account-1", "deposit", "1");
    let path = format!("/v1/state/balance/accounts/row?key=account-1&min_sequence={token}");
    let row = get(server, &path).json();
    assert_eq!(balance(&row["rows"][0]), *deposits, "{row}");
}

#[test]
fn bytes_that_must_not_run_are_refused_by_name_and_nothing_else_is_concerned() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    deploy(&server, &wasm(Guest::Balance), json!({}));
    let mut deposits = 0;
    let import = r#"(component (import "wasi:sockets/tcp@0.2.3" (instance))"#;
    let memory = |pages: &str| {
        let greedy = format!("(memory (export \"memory\") {pages})");
        raw_reducer("", "").replacen("(memory (export \"memory\") 2)", &greedy, 1)
    };
    let bombs = [
        (
            "(drop (i32.const 1))".repeat(FUNCTION_BYTES_MAX / 3 + 1),
            String::new(),
        ),
        (
            String::new(),
            format!("(func (local {}))", "i64 ".repeat(20_000)),
        ),
        (String::new(), "(func)".repeat(100_001)),
        (String::new(), "(table 200000 funcref)".to_owned()),
    ];
    let mut hostile = vec![
        (b"not wasm at all".to_vec(), "WebAssembly"),
        (b"\0asm\x0d\0\x01\0\xff\xff\xff".to_vec(), ""),
        (
            raw_reducer("", "")
                .replacen("(component", import, 1)
                .into_bytes(),
            "wasi:sockets/tcp@0.2.3",
        ),
        // Two gigabytes.
        (memory("32768").into_bytes(), "memory_bytes"),
        (memory("1 65536").into_bytes(), ""),
    ];
    let names = [
        "FUNCTION_BYTES_MAX",
        "FUNCTION_LOCALS_MAX",
        "FUNCTIONS_MAX",
        "table_elements",
    ];
    for ((process, rest), name) in bombs.into_iter().zip(names) {
        hostile.push((raw_reducer(&process, &rest).into_bytes(), name));
    }
    for (bytes, part) in hostile {
        let wasm = if bytes.starts_with(b"(component") {
            wat::parse_bytes(&bytes).unwrap().into_owned()
        } else {
            bytes
        };
        let answer = publish(&server, &wasm);
        // A memory that may grow that far is no fault until it does.
        if !(part.is_empty() && answer.status == 200) {
            let error = answer.error(422, "MODULE_REFUSED");
            assert_eq!(error["outcome"], "DID_NOT_HAPPEN");
            assert!(
                error["message"].as_str().unwrap().contains(part),
                "{part}: {error}"
            );
        }
        others_go_on(&server, &mut deposits);
    }
    let listed = get(&server, "/v1/modules").json();
    let active = listed["modules"].as_array().unwrap().iter();
    let active = active.filter(|one| !one["generations"].as_array().unwrap().is_empty());
    assert_eq!(active.count(), 1, "{listed}");
    assert_eq!(get(&server, "/readyz").json()["modules_halted"], 0);
    server.stop_cleanly();
}

#[test]
fn a_module_that_fails_at_an_event_is_halted_there_and_says_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, "", &[]);
    server.allow_log("hostile");
    let limits = json!({"limits": {"fuel_per_call": 500_000_000, "fuel_per_event": 1000, "memory_bytes": 8 << 20}});
    deploy(&server, &wasm(Guest::Hostile), limits);
    deploy(&server, &wasm(Guest::Balance), json!({}));
    let path = "/v1/state/hostile/notes/row?key=a";
    let (mut deposits, mut notes) = (0, 0);
    let faults = [
        ("panic", "unreachable"),
        ("loop", "fuel"),
        ("eat", "memory_bytes"),
        ("recurse", "outside of its memory"),
        ("emit-system", "$module"),
        ("long-key", "KEY_BYTES_MAX"),
    ];
    for (halts, (fault, part)) in (1..).zip(faults) {
        for _ in 0..3 {
            notes += 1;
            append(&server, "hostile", "note", "a");
        }
        let bad = append(&server, "hostile", fault, "2000");
        let sequence: u64 = bad.split_once(':').unwrap().1.parse().unwrap();
        let later = append(&server, "hostile", "note", "a");
        others_go_on(&server, &mut deposits);
        let error = get(&server, &format!("{path}&min_sequence={later}"));
        let error = error.error(409, "MODULE_HALTED");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part), "{fault}: {message}");
        assert_eq!(error["sequence"], sequence);
        // Everything up to the event before is there, and nothing of it or after it.
        let row = get(&server, path).json();
        assert_eq!(balance(&row["rows"][0]), notes, "{fault}: {row}");
        let status = get(&server, "/v1/modules/hostile").json();
        let generation = &status["generations"][0];
        assert_eq!(generation["state"], "halted", "{status}");
        assert!(
            generation["reason"].as_str().unwrap().contains(part),
            "{status}"
        );
        assert_eq!(get(&server, "/readyz").json()["modules_halted"], 1);
        // One line at ERROR that names what, where and why.
        let line = server.wait_log("the module is halted");
        assert_eq!(line["level"], "ERROR");
        assert_eq!(
            (&line["module"], &line["partition"], &line["sequence"]),
            (&json!("hostile"), &json!(0), &json!(sequence)),
            "{line}"
        );
        assert!(line["message"].as_str().unwrap().contains(part), "{line}");
        let skip = json!({"partition": 0, "first_sequence": sequence, "last_sequence": sequence, "reason": fault});
        let skipped = post(&server, "/v1/modules/hostile/skip", &skip.to_string());
        assert_eq!(skipped.status, 200, "{}", skipped.body);
        notes += 1;
        let row = get(&server, &format!("{path}&min_sequence={later}")).json();
        assert_eq!(balance(&row["rows"][0]), notes, "{fault}: {row}");
        assert_eq!(server.count_logs("ERROR", ""), halts);
    }
    server.stop_cleanly();
    // A start says nothing of stops that are over.
    Server::start(&dir, "", &[]).stop_cleanly();
}

/// Sends so much of an upload and no more.
fn part_of_an_upload(server: &Server, wasm: &[u8], bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.http).unwrap();
    let head = format!(
        "POST /v1/modules HTTP/1.1\r\nhost: test\r\ncontent-type: application/wasm\r\ncontent-length: {}\r\n\r\n",
        wasm.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&wasm[..bytes]).unwrap();
    stream
}

/// Hashes of the generations that answer, one for each partition; none while they are being made.
fn current(server: &Server) -> Option<Vec<String>> {
    let status = get(server, "/v1/modules/balance").json();
    let generations = status["generations"].as_array().unwrap();
    let current = generations.iter().filter(|one| one["current"] == true);
    let live = generations.iter().all(|one| one["state"] == "live");
    let hash = |one: &Value| one["hash"].as_str().unwrap().to_owned();
    let hashes: Vec<String> = current.map(hash).collect();
    (live && hashes.len() == 2 && generations.len() == 2).then_some(hashes)
}

fn total(server: &Server) -> i64 {
    let rows = get(server, "/v1/state/balance/accounts/rows?limit=1000").json();
    rows["rows"].as_array().unwrap().iter().map(balance).sum()
}

/// Deposits that are in the log.
fn stored(server: &Server) -> i64 {
    (0..8)
        .map(|account| {
            let head = server
                .get(&format!("/v1/streams/account-{account}/head"))
                .json();
            head["last_revision"]
                .as_i64()
                .map_or(0, |revision| revision + 1)
        })
        .sum()
}

/// Uploads and upgrades to a version beside appends, and kills the server: within the upload, anywhere, after the
/// publication, after the activation. Answers the appends that were acknowledged.
fn upgrade_and_kill(server: Server, module: &[u8], point: u64) -> i64 {
    let stage = point % 4;
    if stage == 0 {
        let bytes = module.len() / 10 * usize::try_from(point % 10).unwrap();
        let _stream = part_of_an_upload(&server, module, bytes);
        append(&server, "account-7", "deposit", "1");
        server.kill();
        return 1;
    }
    let mut acknowledged = 0;
    let reached = AtomicU64::new(1);
    let http = server.http;
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| {
            // Whatever becomes of it: the server may be gone.
            let _ = std::panic::catch_unwind(|| {
                let hash = publish_at(http, module).json()["hash"].clone();
                reached.store(2, Ordering::Release);
                let body = json!({ "hash": hash }).to_string();
                let headers = [("content-type", "application/json")];
                http_at(
                    http,
                    "POST",
                    "/v1/modules/balance/activate",
                    &headers,
                    &body,
                );
                reached.store(3, Ordering::Release);
            });
        });
        let mut left = point * 3;
        for n in 0.. {
            let stream = format!("account-{}", n % 8);
            let answer = append_once(&server, &stream, "deposit", "1");
            acknowledged += i64::from(answer.status == 200);
            if reached.load(Ordering::Acquire) >= stage {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
        }
        let pid = rustix::process::Pid::from_raw(server.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        upgrade.join().unwrap();
    });
    server.kill();
    acknowledged
}

#[test]
fn an_upload_or_an_upgrade_that_is_killed_leaves_the_old_version_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut server = Server::start(&dir, "", &["--partitions", "2"]);
        server.allow_log("torn tail was cut");
        server
    };
    let mut server = start();
    let plain = wasm(Guest::Balance);
    let (mut old, _) = deploy(&server, &plain, json!({}));
    let (mut upgraded, mut acknowledged) = (0, 0);
    for kill in 1..=KILLS {
        // Several chunks in the log.
        let module = padded(&plain, u8::try_from(kill).unwrap(), 5 << 20);
        acknowledged += upgrade_and_kill(server, &module, kill);
        server = start();
        let hashes = loop {
            if let Some(hashes) = current(&server) {
                break hashes;
            }
        };
        assert_eq!(hashes[0], hashes[1], "not half of the partitions");
        let deposits = stored(&server);
        assert!(deposits >= acknowledged, "{deposits} of {acknowledged}");
        while total(&server) < deposits {}
        assert_eq!(total(&server), deposits, "kill {kill}");
        // Published again it is the same module: whole, and fit to run.
        let again = retried(|| publish(&server, &module)).json();
        if hashes[0] == old {
            assert_ne!(again["hash"], json!(old));
        } else {
            upgraded += 1;
            assert_eq!(
                again["hash"],
                json!(hashes[0]),
                "no other version was asked for"
            );
            assert_eq!(again["existed"], true);
            old.clone_from(&hashes[0]);
        }
    }
    let (last, _) = deploy(&server, &padded(&plain, 0, 5 << 20), json!({}));
    loop {
        if current(&server).is_some_and(|hashes| hashes.iter().all(|hash| *hash == last)) {
            break;
        }
    }
    let fingerprints = fingerprints(&server);
    server.stop_cleanly();
    eprintln!("{upgraded} of {KILLS} kills came after the upgrade");

    // Everything derived is gone: the same rows, by the same fingerprints.
    remove_derived(&dir.path().join("data"));
    let server = Server::start(&dir, "", &[]);
    while current(&server).is_none() {}
    assert_eq!(self::fingerprints(&server), fingerprints);
    server.stop_cleanly();
    let data = dir.path().join("data").display().to_string();
    let verified = cli(&["--data", &data, "--json", "replay", "--verify"])
        .ok()
        .json();
    assert_eq!(verified["true"], true, "{verified}");
}

/// Partition, rows and fingerprint of what answers, as of what is committed.
fn fingerprints(server: &Server) -> Vec<(Value, Value)> {
    let rows = get(server, "/v1/state/balance/accounts/rows?limit=1000").json();
    let stamps = rows["stamps"].as_array().unwrap().iter();
    stamps
        .map(|stamp| (stamp["partition"].clone(), stamp["fingerprint"].clone()))
        .collect()
}

/// Removes deltas, snapshots, and the copies and compilations of modules.
fn remove_derived(data: &Path) {
    let mut removed = 0;
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if ["deltas", "snapshots", "modules"].contains(&name.as_str()) {
                std::fs::remove_dir_all(entry.path()).unwrap();
                removed += 1;
            } else if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    assert!(removed >= 3, "there was nothing derived");
}
