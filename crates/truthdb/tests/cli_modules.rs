//! `module`, `query`, `snapshot` and `replay` as processes, against a real server and its files.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod cli_support;
mod modules_support;
mod server_support;

use cli_support::cli;
use modules_support::{append, cli_patient};
use serde_json::json;
use server_support::Server;
use truthdb_guests::{Guest, wasm};

fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn a_new_module_is_a_folder_and_bytes_are_inspected_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().display().to_string();
    let new = [
        "module",
        "new",
        "late-aircraft",
        "--kind",
        "processor",
        "--into",
        &into,
    ];
    let made = cli(&new).ok();
    assert!(made.stdout.contains("README.md"), "{}", made.stdout);
    assert!(dir.path().join("late-aircraft/src/lib.rs").exists());
    cli(&new).fails(4);
    cli(&["module", "new", "Bad_Name", "--into", &into]).fails(2);

    let balance = file(&dir, "balance.wasm", &wasm(Guest::Balance));
    let shown = cli(&["--json", "module", "inspect", &balance]).ok().json();
    assert_eq!(
        (&shown["module"], &shown["kind"]),
        (&json!("balance"), &json!("processor"))
    );
    assert_eq!(shown["tables"][0]["name"], "accounts");
    let text = cli(&["module", "inspect", &balance]).ok().stdout;
    assert!(text.contains("account-* / deposit"), "{text}");
    let nonsense = file(&dir, "nonsense.wasm", b"nonsense");
    let told = cli(&["module", "inspect", &nonsense]).fails(10);
    assert!(told.contains("nonsense.wasm is no module"), "{told}");
    cli(&["module", "inspect", "/nowhere"]).fails(4);
}

#[test]
fn a_module_lives_and_is_asked_and_its_state_is_replayed_without_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, "", &["--partitions", "2"]);
    let balance = file(&dir, "balance.wasm", &wasm(Guest::Balance));
    let richest = file(&dir, "richest.wasm", &wasm(Guest::Richest));
    let published = cli_patient(&server, &["--json", "module", "publish", &balance])
        .ok()
        .json();
    assert_eq!(published["module"], "balance");
    let hash = published["hash"].as_str().unwrap();
    let activate = ["--json", "module", "activate", &hash[..16], "--wait"];
    assert_eq!(cli_patient(&server, &activate).ok().json()["generation"], 1);
    cli_patient(&server, &["module", "upgrade", &richest, "--wait"]).ok();
    let told = cli_patient(&server, &["module", "activate", "0000"]).fails(10);
    assert!(told.contains("NOT_FOUND"), "{told}");
    let told = cli_patient(
        &server,
        &["module", "activate", hash, "--limit", "memory=1"],
    )
    .fails(10);
    assert!(told.contains("there is no limit"), "{told}");

    let first = append(&server, "account-1", "deposit", "100");
    let last = append(&server, "account-1", "withdraw", "30");
    let get = ["--json", "query", "get", "balance", "accounts", "account-1"];
    let now = [&get[..], &["--min-sequence", &last]].concat();
    let now = cli_patient(&server, &now).ok().json();
    assert_eq!(modules_support::balance(&now["rows"][0]), 70);
    let then = [&get[..], &["--at", &first]].concat();
    let then = cli_patient(&server, &then).ok().json();
    assert_eq!(modules_support::balance(&then["rows"][0]), 100);
    let shown = cli_patient(
        &server,
        &["query", "get", "balance", "accounts", "account-1"],
    )
    .ok();
    assert!(shown.stdout.contains("token: 0:"), "{}", shown.stdout);
    let none = cli_patient(&server, &["query", "get", "balance", "accounts", "nobody"]).ok();
    assert!(none.stdout.contains("no such key"), "{}", none.stdout);
    let scan = [
        "--json",
        "query",
        "scan",
        "balance",
        "accounts",
        "--prefix",
        "raw:account-",
    ];
    let rows = cli_patient(&server, &scan).ok().json_lines();
    assert_eq!(rows[0]["key_text"], "account-1", "{rows:?}");
    assert!(rows.last().unwrap()["token"].is_string());
    let top = cli_patient(&server, &["--json", "query", "run", "richest", "3"])
        .ok()
        .json();
    assert_eq!(top["rows"][0]["key_text"], "account-1");
    let shown = cli_patient(&server, &["query", "run", "richest", "3"]).ok();
    let fuel = format!("fuel: {}", top["fuel"]);
    assert!(
        top["fuel"].as_u64() > Some(0) && shown.stdout.contains(&fuel),
        "{}",
        shown.stdout
    );
    let told = cli_patient(&server, &["query", "run", "richest", "many"]).fails(10);
    assert!(told.contains("MODULE_FAILED"), "{told}");
    cli_patient(&server, &["query", "get", "balance", "accounts", "u8:300"]).fails(2);
    cli_patient(&server, &["query", "get", "balance", "nothing", "x"]).fails(10);

    let listed = cli_patient(&server, &["module", "list"]).ok().stdout;
    assert!(
        listed.contains("balance") && listed.contains("live"),
        "{listed}"
    );
    let status = cli_patient(&server, &["module", "status", "balance"])
        .ok()
        .stdout;
    assert!(status.contains(hash), "{status}");
    assert!(
        cli_patient(&server, &["status"])
            .ok()
            .stdout
            .contains("richest")
    );
    cli_patient(
        &server,
        &["module", "halt", "balance", "--reason", "to look"],
    )
    .ok();
    cli_patient(&server, &["module", "resume", "balance"]).ok();
    cli_patient(&server, &["module", "remove", "richest"]).fails(2);
    cli_patient(&server, &["module", "remove", "richest", "--yes"]).ok();
    let taken = cli_patient(&server, &["--json", "snapshot", "take"])
        .ok()
        .json();
    assert!(taken["token"].as_str().unwrap().contains("1:"), "{taken}");
    cli_patient(&server, &["snapshot", "list"]).ok();
    cli_patient(
        &server,
        &["--json", "snapshot", "prune", "--keep-last", "1"],
    )
    .ok();
    let verified = cli_patient(&server, &["--json", "replay", "--verify"])
        .ok()
        .json();
    assert_eq!(verified["true"], true, "{verified}");
    let live = cli_patient(&server, &get).ok().json();

    let data = server.data.display().to_string();
    let offline = |arguments: &[&str]| cli(&[&["--data", &data], arguments].concat());
    offline(&["replay", "balance"]).fails(6);
    server.stop_cleanly();
    replays(&dir, &offline, &live);
}

fn replays(
    dir: &tempfile::TempDir,
    offline: &dyn Fn(&[&str]) -> cli_support::Ended,
    live: &serde_json::Value,
) {
    let states = offline(&["--json", "replay", "balance"]).ok().json_lines();
    assert_eq!(states.len(), 2);
    for (state, stamp) in states.iter().zip(live["stamps"].as_array().unwrap()) {
        assert_eq!(state["fingerprint"], stamp["fingerprint"], "{state}");
    }
    let rows = dir.path().join("rows.json").display().to_string();
    offline(&["replay", "balance", "--rows-to", &rows]).ok();
    let rows = std::fs::read_to_string(rows).unwrap();
    assert!(
        rows.contains("\"key_text\":\"account-1\"") && rows.contains("accounts"),
        "{rows}"
    );
    let changes = offline(&["replay", "balance", "--changes-from", "1"])
        .ok()
        .json_lines();
    assert!(
        !changes.is_empty() && changes[0]["fingerprint"].is_string(),
        "{changes:?}"
    );
    let verified = offline(&["--json", "replay", "--verify"]).ok().json();
    assert_eq!(verified["true"], true, "{verified}");
    let balance = dir.path().join("balance.wasm").display().to_string();
    let same = offline(&["--json", "replay", "balance", "--compare", &balance])
        .ok()
        .json_lines();
    assert!(same.iter().all(|one| one["differing"] == 0), "{same:?}");
    let tally = file(dir, "tally.wasm", &wasm(Guest::Tally));
    let other = offline(&["replay", "balance", "--compare", &tally]);
    // Code with other tables can be compared with nothing: that is said, and not shown as a difference.
    assert!(
        other.code == 10 || other.stdout.contains("rows differ"),
        "{other:?}"
    );
    offline(&["replay", "nobody"]).fails(10);
    offline(&["replay", "balance", "--code", "00"]).fails(10);
    cli(&["replay", "balance"]).fails(2);
}
