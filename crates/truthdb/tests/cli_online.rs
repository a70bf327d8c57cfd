//! The commands that talk to a server, as processes of their own: what they print, and how they end.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod cli_support;
mod server_support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;

use cli_support::{Ended, cli, cli_at, lines_of_events};
use serde_json::json;
use server_support::Server;

fn server(dir: &tempfile::TempDir) -> Server {
    Server::start(dir, "", &["--partitions", "2"])
}

#[test]
fn an_event_is_appended_read_back_and_refused_when_the_revision_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let id = "01010101-0101-0101-0101-010101010101";
    let append = [
        "append",
        "order-1",
        "placed",
        r#"{"cents":100}"#,
        "--id",
        id,
    ];
    let extra = [
        "--expect",
        "none",
        "--tag",
        "eur",
        "--metadata",
        "by=me",
        "--json",
    ];
    let arguments: Vec<&str> = append.iter().chain(&extra).copied().collect();
    let first = cli_at(&server, &arguments).ok().json();
    assert_eq!(first["sequence"], 1);
    assert_eq!(first["revision"], 0);
    assert_eq!(first["already_appended"], false);
    // The same id again is the same append.
    let again = cli_at(&server, &arguments).ok().json();
    assert_eq!(again["already_appended"], true);
    assert_eq!(again["sequence"], first["sequence"]);

    let refused = cli_at(
        &server,
        &["append", "order-1", "placed", "--expect", "none"],
    );
    let message = refused.fails(10);
    assert!(message.contains("REVISION_CONFLICT"), "{message}");
    assert!(message.contains("what to do:"), "{message}");

    let read = cli_at(&server, &["--json", "read", "order-1"]).ok().json();
    assert_eq!(read["id"], id);
    assert_eq!(read["payload"], json!({"cents": 100}));
    assert_eq!(read["content_type"], "application/json");
    assert_eq!(read["tags"], json!(["eur"]));
    assert_eq!(read["metadata"], json!({"by": "me"}));
    let table = cli_at(&server, &["read", "order-1"]).ok().stdout;
    assert!(table.contains("order-1@0"), "{table}");
    server.stop_cleanly();
}

#[test]
fn lines_keep_their_order_and_can_be_copied_to_another_stream_of_events() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let input = lines_of_events("s", 3000, 10);
    let done = cli_support::cli_with_input(
        &server,
        &["--json", "append", "--ndjson", "-", "--batch-events", "100"],
        &input,
    );
    assert_eq!(done.ok().json()["events"], 3000);
    for stream in ["s-0", "s-7"] {
        let out = cli_at(&server, &["--json", "read", stream]).ok();
        let numbers: Vec<u64> = out
            .json_lines()
            .iter()
            .map(|event| event["payload"]["n"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers.len(), 300);
        assert!(numbers.is_sorted(), "{stream}: {numbers:?}");
    }
    // What was read can be appended again, in the same batches: the ids make it harmless.
    let read = cli_at(&server, &["--json", "read", "--partition", "0"]).ok();
    let again = cli_support::cli_with_input(
        &server,
        &["--json", "append", "--ndjson", "-", "--batch-events", "100"],
        &read.stdout,
    );
    let again = again.ok().json();
    assert_eq!(again["events"], again["already_appended"]);

    let wrong = "{\"stream\":\"s\",\"type\":\"t\"}\n{\"stream\":\"s\"}\n";
    let refused = cli_support::cli_with_input(&server, &["append", "--ndjson", "-"], wrong);
    let message = refused.fails(2);
    assert!(message.contains("line 2"), "{message}");
    server.stop_cleanly();
}

#[test]
fn a_read_goes_both_ways_and_takes_filters_limits_and_starts() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let input = lines_of_events("s", 50, 5);
    cli_support::cli_with_input(&server, &["append", "--ndjson", "-"], &input).ok();
    let sequences = |arguments: &[&str]| -> Vec<u64> {
        let all: Vec<&str> = ["--json", "read"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let out = cli_at(&server, &all).ok();
        out.json_lines()
            .iter()
            .map(|event| event["sequence"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(sequences(&["--limit", "2", "--backward"]), [50, 49]);
    assert_eq!(sequences(&["--from-sequence", "48"]), [48, 49, 50]);
    assert_eq!(
        sequences(&["--from-sequence", "2", "--until-sequence", "3"]),
        [2, 3]
    );
    assert_eq!(sequences(&["--prefix", "s-1", "--limit", "2"]), [2, 7]);
    assert_eq!(sequences(&["--type", "odd", "--limit", "2"]), [2, 4]);
    assert_eq!(sequences(&["--type", "none-such"]), [0u64; 0]);
    assert_eq!(sequences(&["s-1", "--from-revision", "8"]), [42, 47]);
    assert_eq!(
        sequences(&["--from-time", "2000-01-01T00:00:00Z", "--limit", "1"]),
        [1]
    );
    cli_at(&server, &["read", "s-1", "--prefix", "x"]).fails(2);
    let missing = cli_at(&server, &["read", "nobody"]).fails(10);
    assert!(missing.contains("STREAM_NOT_FOUND"), "{missing}");
    cli_at(&server, &["read", "--from-time", "yesterday"]).fails(2);
    server.stop_cleanly();
}

#[test]
fn a_subscription_catches_up_goes_live_and_resumes_at_its_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let input = lines_of_events("s", 20, 2);
    cli_support::cli_with_input(&server, &["append", "--ndjson", "-"], &input).ok();
    let arguments = ["--json", "subscribe", "--cursor", "c", "--commit"];
    let with = |more: &[&str]| -> Ended {
        let all: Vec<&str> = arguments.iter().chain(more).copied().collect();
        cli_at(&server, &all)
    };
    let first = with(&["--limit", "5"]).ok().json_lines();
    assert_eq!(
        first
            .iter()
            .map(|e| e["sequence"].clone())
            .collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    let rest = with(&["--until-caught-up"]).ok().json_lines();
    assert_eq!(rest.first().unwrap()["sequence"], 6);
    assert_eq!(rest.last().unwrap()["sequence"], 20);
    let cursor = cli_at(&server, &["--json", "cursor", "get", "c"])
        .ok()
        .json();
    assert!(cursor["position"].as_u64().unwrap() >= 20, "{cursor}");

    // Live: the process prints an event that is appended while it waits.
    let mut child = cli_support::command_at(&server, &["--json", "subscribe", "--limit", "21"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..20 {
        lines.next().unwrap().unwrap();
    }
    cli_at(&server, &["append", "live", "now"]).ok();
    assert!(lines.next().unwrap().unwrap().contains("\"live\""));
    assert!(child.wait().unwrap().success());
    server.stop_cleanly();
}

#[test]
fn cursors_are_committed_listed_and_missed() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    cli_at(&server, &["cursor", "commit", "a", "7", "--partition", "1"]).ok();
    cli_at(&server, &["append", "x", "t", "--cursor", "with-event=3"]).ok();
    let listed = cli_at(&server, &["--json", "cursor", "list", "--partition", "1"]).ok();
    let listed = listed.json_lines();
    assert!(
        listed
            .iter()
            .any(|c| c["name"] == "a" && c["position"] == 7),
        "{listed:?}"
    );
    let missing = cli_at(&server, &["cursor", "get", "nobody"]).fails(10);
    assert!(missing.contains("never committed"), "{missing}");
    server.stop_cleanly();
}

#[test]
fn a_servers_log_is_verified_proven_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let init = [
        "init",
        "--segment-bytes",
        "16777216",
        "--data",
        data.to_str().unwrap(),
    ];
    cli(&init).ok();
    let server = Server::start(&dir, "", &[]);
    let input = lines_of_events("s", 18_000, 10);
    cli_support::cli_with_input(&server, &["append", "--ndjson", "-"], &input).ok();
    server.stop_cleanly();
    // The stop sealed what there was; a start finds it sealed.
    let server = Server::start(&dir, "", &[]);
    let status = cli_at(&server, &["--json", "status"]).ok().json();
    assert_eq!(status["partitions"][0]["state"], "serving");
    assert!(
        status["partitions"][0]["sealed_segments"].as_u64().unwrap() >= 1,
        "{status}"
    );
    assert!(cli_at(&server, &["status"]).ok().stdout.contains("serving"));

    let verified = cli_at(&server, &["--json", "verify"]).ok().json();
    assert_eq!(verified["whole"], true);
    assert!(verified["events"].as_u64().unwrap() > 0);

    let proof = cli_at(
        &server,
        &["--json", "prove", "--stream", "s-3", "--revision", "1"],
    )
    .ok();
    let chain = proof.json()["chain"].as_str().unwrap().to_owned();
    let file = dir.path().join("proof.json");
    std::fs::write(&file, &proof.stdout).unwrap();
    let file = file.to_str().unwrap();
    let checked = cli(&["--json", "prove", "--check", file, "--chain", &chain])
        .ok()
        .json();
    assert_eq!(checked["stream"], "s-3");
    assert_eq!(checked["revision"], 1);
    assert_eq!(checked["chain_compared"], true);
    let other = "00".repeat(32);
    cli(&["prove", "--check", file, "--chain", &other]).fails(5);
    // One character of the event changed: the proof proves nothing.
    let text = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, text.replacen("\"sequence\":", "\"sequence\":1", 1)).unwrap();
    cli(&["prove", "--check", file]).fails(5);
    cli_at(&server, &["prove", "999999"]).fails(10);
    cli_at(
        &server,
        &["prove", "--stream", "s-3", "--revision", "999999"],
    )
    .fails(10);

    let trim = [
        "--json",
        "trim",
        "--partition",
        "0",
        "--before-sequence",
        "18000",
    ];
    let plan = cli_at(&server, &trim).ok().json();
    assert_eq!(plan["executed"], false);
    assert_eq!(plan["segments"][0], 1);
    cli_at(&server, &["read", "--from-sequence", "1", "--limit", "1"]).ok();
    let yes: Vec<&str> = trim.iter().copied().chain(["--yes"]).collect();
    let done = cli_at(&server, &yes).ok().json();
    assert_eq!(done["executed"], true);
    assert_eq!(done["first_sequence"], plan["first_sequence"]);
    let gone = cli_at(&server, &["read", "--from-sequence", "1", "--limit", "1"]).fails(10);
    assert!(gone.contains("SEQUENCE_TRIMMED"), "{gone}");
    cli_at(&server, &["trim", "--partition", "0"]).fails(2);
    server.stop_cleanly();
}

#[test]
fn a_server_that_is_not_there_or_is_another_kind_of_port_is_told_apart() {
    let nobody = {
        // Bound and closed again: nothing listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    for arguments in [vec!["read"], vec!["append", "s", "t"], vec!["subscribe"]] {
        let all: Vec<&str> = ["--server", &nobody].into_iter().chain(arguments).collect();
        let message = cli(&all).fails(8);
        assert!(message.contains(&nobody), "{message}");
    }
    for arguments in [vec!["status"], vec!["verify"], vec!["cursor", "list"]] {
        let all: Vec<&str> = arguments.into_iter().chain(["--grpc", &nobody]).collect();
        let message = cli(&all).fails(8);
        assert!(message.contains(&nobody), "{message}");
    }
    // As JSON, on standard error, with the class.
    let ended = cli(&["--json", "status", "--grpc", &nobody]);
    assert_eq!(ended.code, 8);
    let error: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!(error["error"]["class"], "network");
}

#[test]
fn tokens_and_pinned_certificates_are_sent_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(
        &dir,
        "[auth]\nenabled = true\n[tls]\nmode = \"self-signed\"\n",
        &[],
    );
    let mut told = String::new();
    let stdout = server.stdout.as_mut().unwrap();
    stdout.read_line(&mut told).unwrap();
    let mut token = String::new();
    stdout.read_line(&mut token).unwrap();
    let token = token.trim();
    let pin = server.fingerprint.clone().unwrap();
    let with = |pin: &str, token: &str, arguments: &[&str]| {
        let own = ["--tls-fingerprint", pin, "--token", token];
        let all: Vec<&str> = own.iter().chain(arguments).copied().collect();
        cli_at(&server, &all)
    };
    with(&pin, token, &["append", "s", "t"]).ok();
    with(&pin, token, &["status"]).ok();
    let other = "ab".repeat(32);
    with(&other, token, &["read"]).fails(9);
    with(&other, token, &["status"]).fails(9);
    with(&pin, "wrong", &["read"]).fails(9);
    with(&pin, "wrong", &["status"]).fails(9);
    with("xyz", token, &["read"]).fails(2);
    server.stop_cleanly();
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &[]);
    let input = lines_of_events("s", 5000, 5);
    cli_support::cli_with_input(&server, &["append", "--ndjson", "-"], &input).ok();
    let mut child = cli_support::command_at(&server, &["--json", "read"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut begin = [0; 10];
    out.read_exact(&mut begin).unwrap();
    drop(out);
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "");
    // A full device is an error, though.
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut ended = cli_support::command_at(&server, &["--json", "read"]);
    let output = ended.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    std::io::stderr().flush().unwrap();
    server.stop_cleanly();
}
