//! Starting, stopping, and what is refused before anything runs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod server_support;

use serde_json::json;
use server_support::{Server, program};

#[test]
fn a_clean_stop_leaves_nothing_to_recover() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, "", &["--partitions", "2"]);
    assert_eq!(server.find_log("the log is open")["unclean_partitions"], 0);
    for number in 0..50 {
        let body = json!({"events": [{"stream": format!("s{number}"), "type": "t"}]});
        assert_eq!(server.post("/v1/append", &body.to_string()).status, 200);
    }
    server.stop_cleanly();
    let mut server = Server::start(&dir, "", &[]);
    let open = server.find_log("the log is open");
    assert_eq!(open["unclean_partitions"], 0, "{open}");
    let events = |partition| {
        let path = format!("/v1/partitions/{partition}/events?limit=1");
        server.get(&path).json()["head_sequence"].as_u64().unwrap()
    };
    assert_eq!(events(0) + events(1), 50);
    server.stop_cleanly();
}

#[test]
fn a_ports_file_says_where_the_server_listens() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ports.json");
    let server = Server::start(&dir, "", &["--ports-file", file.to_str().unwrap()]);
    let ports: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(ports["http"], server.http.to_string());
    assert_eq!(ports["native"], server.native.to_string());
    server.stop_cleanly();
}

fn fails(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let output = program()
        .args(arguments)
        .envs(environment.iter().copied())
        .env("TRUTHDB_LOG__FORMAT", "json")
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn each_class_of_failure_has_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let ports = [
        ("TRUTHDB_LISTEN__HTTP", "127.0.0.1:0"),
        ("TRUTHDB_LISTEN__NATIVE", "127.0.0.1:0"),
    ];
    let (code, _) = fails(&["no-such-command"], &[]);
    assert_eq!(code, 2);
    let (code, text) = fails(
        &["--data", data, "serve"],
        &[("TRUTHDB_NODE__ROLES", "[\"cook\"]")],
    );
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("is not a role"), "{text}");
    let (code, text) = fails(
        &["--data", data, "serve"],
        &[("TRUTHDB_LISTEN__HTTP", "0.0.0.0:0")],
    );
    assert_eq!(code, 3, "{text}");
    let (code, text) = fails(&["--data", data, "serve"], &ports);
    assert_eq!(code, 4, "a server makes no database unasked: {text}");
    assert!(text.contains("truthdb init"), "{text}");
    let (code, text) = fails(&["--data", data, "init", "--partitions", "3"], &[]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = fails(&["--data", data, "init"], &[]);
    assert_eq!(code, 4, "{text}");
    let server = Server::start(&dir, "", &[]);
    let (code, text) = fails(&["--data", data, "serve"], &ports);
    assert_eq!(code, 6, "{text}");
    let other = tempfile::tempdir().unwrap();
    let other = other.path().join("data");
    let taken = server.http.to_string();
    let (code, text) = fails(
        &[
            "--data",
            other.to_str().unwrap(),
            "serve",
            "--init-if-empty",
        ],
        &[("TRUTHDB_LISTEN__HTTP", &taken), ports[1]],
    );
    assert_eq!(code, 4, "the address is in use: {text}");
    server.stop_cleanly();
    std::fs::remove_file(std::path::Path::new(data).join("metadata/manifest.bin")).unwrap();
    let (code, text) = fails(&["--data", data, "serve", "--init-if-empty"], &ports);
    assert_eq!(code, 5, "a lost manifest is no fresh directory: {text}");
}

#[test]
fn a_configuration_is_checked_with_line_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[limits]\nconnections_max = 0\n").unwrap();
    let output = program()
        .args(["config", "check"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("bad.toml:2: limits.connections_max"),
        "{text}"
    );
    std::fs::write(&file, "[limits]\nconections_max = 1\n").unwrap();
    let output = program()
        .args(["config", "check"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("did you mean connections_max?"), "{text}");
}
