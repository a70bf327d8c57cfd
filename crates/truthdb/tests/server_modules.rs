//! Modules and state over HTTP and gRPC, against the real program and real WebAssembly.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod cli_support;
mod modules_support;
mod server_support;

use modules_support::{append, append_once, balance, deploy, get, post, publish, try_append};
use serde_json::json;
use server_support::Server;
use truthdb_api::v1;
use truthdb_api::v1::modules_client::ModulesClient;
use truthdb_api::v1::state_client::StateClient;
use truthdb_guests::{Guest, raw_reducer, wasm};

const ALL: &str = "";

#[tokio::test]
async fn a_module_is_published_activated_asked_and_removed_over_both_faces() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, ALL, &["--partitions", "2"]);
    let (hash, _) = deploy(&server, &wasm(Guest::Balance), json!({}));
    let again = publish(&server, &wasm(Guest::Balance)).json();
    assert_eq!(
        (&again["existed"], &again["hash"]),
        (&json!(true), &json!(hash))
    );

    let first = append(&server, "account-1", "deposit", "100");
    let second = append(&server, "account-1", "withdraw", "30");
    let path = "/v1/state/balance/accounts/row?key=account-1";
    // One's own write is seen by saying so; the question waits for it.
    let now = get(&server, &format!("{path}&min_sequence={second}")).json();
    assert_eq!(balance(&now["rows"][0]), 70, "{now}");
    assert_eq!(now["rows"][0]["key_text"], "account-1");
    assert_eq!(now["stamps"].as_array().unwrap().len(), 2);
    let then = get(&server, &format!("{path}&at={first}")).json();
    assert_eq!(balance(&then["rows"][0]), 100, "{then}");
    assert_eq!(then["token"], first);
    let time = then["stamps"][0]["timestamp"].as_str().unwrap();
    let by_time = get(&server, &format!("{path}&as_of={time}")).json();
    assert_eq!(balance(&by_time["rows"][0]), 100, "{by_time}");
    append(&server, "account-1", "deposit", "1");
    assert_eq!(get(&server, &format!("{path}&at={first}")).json(), then);

    // The same over gRPC, with a page for each row.
    let url = format!("http://{}", server.http);
    let mut state = StateClient::connect(url.clone()).await.unwrap();
    let mut last = String::new();
    for number in 2..6 {
        last = append(&server, &format!("account-{number}"), "deposit", "5");
    }
    let (partition, sequence) = last.split_once(':').unwrap();
    let position = v1::TokenPosition {
        partition: partition.parse().unwrap(),
        sequence: sequence.parse().unwrap(),
    };
    let mut request = v1::StateScanRequest {
        module: "balance".into(),
        table: "accounts".into(),
        prefix: b"account-".to_vec().into(),
        page_size: 1,
        options: Some(v1::StateOptions {
            min_sequence: Some(v1::Token {
                positions: vec![position],
            }),
            ..v1::StateOptions::default()
        }),
        ..v1::StateScanRequest::default()
    };
    let mut keys = Vec::new();
    loop {
        let page = state.scan(request.clone()).await.unwrap().into_inner();
        keys.extend(page.rows.iter().map(|row| row.key.to_vec()));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert!(
        keys.is_sorted() && keys.contains(&b"account-1\0\0".to_vec()),
        "{keys:?}"
    );

    deploy(&server, &wasm(Guest::Richest), json!({}));
    let ask = v1::StateQueryRequest {
        operator: "richest".into(),
        arguments: b"1".to_vec().into(),
        options: None,
    };
    let answer = state.query(ask.clone()).await.unwrap().into_inner();
    assert_eq!(&answer.rows[0].key[..], b"account-1");
    let http = post(&server, "/v1/query/richest", "{\"arguments_text\": \"1\"}").json();
    assert_eq!(http["rows"][0]["key_text"], "account-1", "{http}");
    assert!(answer.fuel > 0 && http["fuel"] == answer.fuel, "{http}");
    let wrong = v1::StateQueryRequest {
        arguments: b"many".to_vec().into(),
        ..ask
    };
    let error = truthdb_api::ApiError::from_status(&state.query(wrong).await.unwrap_err());
    assert_eq!(error.code, truthdb_api::ErrorCode::ModuleFailed, "{error}");
    assert_eq!(error.context.module.as_deref(), Some("richest"));

    let listed = get(&server, "/v1/modules").json();
    let names: Vec<_> = listed["modules"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 2, "{listed}");
    let status = get(&server, "/v1/status").json();
    assert_eq!(status["modules"][0]["module"], "balance", "{status}");
    let metrics = get(&server, "/metrics").body;
    assert!(
        metrics.contains("truthdb_module_rows{module=\"balance\""),
        "{metrics}"
    );

    let mut modules = ModulesClient::connect(url).await.unwrap();
    let remove = v1::RemoveRequest {
        module: "richest".into(),
    };
    modules.remove(remove).await.unwrap();
    post(&server, "/v1/query/richest", "{\"arguments_text\": \"1\"}").error(404, "NOT_FOUND");
    get(&server, "/v1/state/balance/nothing/row?key=x").error(404, "NOT_FOUND");
    get(&server, "/v1/state/nobody/accounts/row?key=x").error(404, "NOT_FOUND");
    get(&server, "/v1/state/balance/accounts/row?key=u8:300").error(400, "INVALID_ARGUMENT");
    server.stop_cleanly();
}

#[test]
fn a_validator_refuses_by_name_and_number_and_the_log_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, ALL, &[]);
    deploy(&server, &wasm(Guest::Balance), json!({}));
    let (_, token) = deploy(&server, &wasm(Guest::Covered), json!({}));
    append(&server, "account-1", "deposit", "10");
    let refused = try_append(&server, "account-1", "withdraw", "11");
    let error = refused.error(422, "REJECTED");
    assert_eq!(error["module"], "covered", "{error}");
    assert_eq!(
        (&error["event_index"], &error["reason_code"]),
        (&json!(0), &json!(2))
    );
    assert_eq!(error["outcome"], "DID_NOT_HAPPEN");
    append(&server, "account-1", "withdraw", "10");
    let head = get(&server, "/v1/streams/account-1/head").json();
    assert_eq!(head["last_revision"], 1, "{head} {token}");
    server.stop_cleanly();
    // Who runs no modules lets nothing through that a validator would have to see.
    let server = Server::start(&dir, "[node]\nroles = [\"ingest\"]\n", &[]);
    let refused = append_once(&server, "account-1", "withdraw", "1").error(503, "NOT_YET");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("does not run the role compute"),
        "{message}"
    );
    server.stop_cleanly();
}

#[test]
fn what_is_no_module_is_refused_by_name_and_nothing_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, ALL, &[]);
    let error = publish(&server, b"not wasm at all").error(422, "MODULE_REFUSED");
    assert_eq!(error["outcome"], "DID_NOT_HAPPEN");
    let import = r#"(component (import "wasi:sockets/tcp@0.2.3" (instance))"#;
    let socket = raw_reducer("", "").replacen("(component", import, 1);
    let error = publish(&server, &wat::parse_str(socket).unwrap()).error(422, "MODULE_REFUSED");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("wasi:sockets/tcp@0.2.3"), "{message}");
    let greedy = raw_reducer("", "").replacen(
        "(memory (export \"memory\") 2)",
        "(memory (export \"memory\") 32768)",
        1,
    );
    let greedy = publish(&server, &wat::parse_str(greedy).unwrap());
    // Two gigabytes are more than any module may have: refused when published, or when activated.
    let hash = greedy.json()["hash"].clone();
    if greedy.status == 200 {
        let body = json!({"hash": hash}).to_string();
        post(&server, "/v1/modules/raw/activate", &body).error(422, "MODULE_REFUSED");
    } else {
        greedy.error(422, "MODULE_REFUSED");
    }
    let (hash, _) = deploy(&server, &wasm(Guest::Tally), json!({}));
    let body = json!({"hash": hash, "limits": {"memory_bytes": 2_147_483_648_u64}}).to_string();
    post(&server, "/v1/modules/tally/activate", &body).error(400, "INVALID_ARGUMENT");
    let body = json!({"hash": hash}).to_string();
    post(&server, "/v1/modules/balance/activate", &body).error(400, "INVALID_ARGUMENT");
    post(&server, "/v1/modules/tally/activate", "{\"hash\": \"00\"}").error(404, "NOT_FOUND");
    let listed = get(&server, "/v1/modules").json();
    let names = listed["modules"].as_array().unwrap().iter();
    let active = names.filter(|one| !one["generations"].as_array().unwrap().is_empty());
    assert_eq!(active.count(), 1, "{listed}");
    server.stop_cleanly();
}

#[test]
fn a_module_that_fails_is_halted_and_named_and_everything_else_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir, ALL, &[]);
    server.allow_log("hostile");
    server.allow_log("halted");
    let limits = json!({"limits": {"fuel_per_call": 50_000_000, "fuel_per_event": 1000}});
    deploy(&server, &wasm(Guest::Hostile), limits);
    deploy(&server, &wasm(Guest::Balance), json!({}));
    let good = append(&server, "hostile", "note", "a");
    let path = "/v1/state/hostile/notes/row?key=a";
    let noted = get(&server, &format!("{path}&min_sequence={good}")).json();
    assert_eq!(noted["rows"].as_array().unwrap().len(), 1, "{noted}");
    for (fault, part) in [("panic", ""), ("loop", "fuel"), ("error", "as asked")] {
        let bad = append(&server, "hostile", fault, "as asked");
        let sequence: u64 = bad.split_once(':').unwrap().1.parse().unwrap();
        // Whoever waits for it hears that it will not come.
        let error = get(&server, &format!("{path}&min_sequence={bad}")).error(409, "MODULE_HALTED");
        assert_eq!(error["module"], "hostile");
        assert_eq!(error["sequence"], sequence);
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        // The state before it can still be asked for, and the other module goes on.
        assert_eq!(get(&server, path).status, 200);
        let other = append(&server, "account-1", "deposit", "1");
        let row = format!("/v1/state/balance/accounts/row?key=account-1&min_sequence={other}");
        assert_eq!(get(&server, &row).status, 200);
        let status = get(&server, "/v1/modules/hostile").json();
        let generation = &status["generations"][0];
        assert_eq!(generation["state"], "halted", "{status}");
        assert_eq!(generation["halted_sequence"], sequence);
        let action = generation["action"].as_str().unwrap();
        assert!(action.contains("truthdb module skip hostile"), "{action}");
        assert_eq!(get(&server, "/readyz").json()["modules_halted"], 1);
        let metric = "truthdb_module_halted{module=\"hostile\",partition=\"0\",generation=\"1\"} 1";
        assert!(get(&server, "/metrics").body.contains(metric));
        // Resuming does not help: it stops again. Skipping does.
        let skip = json!({"partition": 0, "first_sequence": sequence, "last_sequence": sequence,
            "reason": "a test"});
        let skipped = post(&server, "/v1/modules/hostile/skip", &skip.to_string());
        assert_eq!(skipped.status, 200, "{}", skipped.body);
        let after = append(&server, "hostile", "note", "a");
        let row = get(&server, &format!("{path}&min_sequence={after}"));
        assert_eq!(row.status, 200, "{}", row.body);
    }
    post(&server, "/v1/modules/hostile/resume", "{}").error(400, "INVALID_ARGUMENT");
    let halted = post(
        &server,
        "/v1/modules/hostile/halt",
        "{\"reason\": \"by hand\"}",
    );
    assert_eq!(halted.status, 200, "{}", halted.body);
    let next = append(&server, "hostile", "note", "a");
    get(&server, &format!("{path}&min_sequence={next}")).error(409, "MODULE_HALTED");
    assert_eq!(
        post(&server, "/v1/modules/hostile/resume", "{}").status,
        200
    );
    let row = get(&server, &format!("{path}&min_sequence={next}"));
    assert_eq!(row.status, 200, "{}", row.body);
    server.stop_cleanly();
}

#[tokio::test]
async fn state_is_the_same_after_a_restart_and_is_verified_by_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, ALL, &[]);
    deploy(&server, &wasm(Guest::Balance), json!({}));
    let mut last = String::new();
    for number in 0..200 {
        last = append(&server, &format!("account-{}", number % 7), "deposit", "3");
    }
    let taken = post(&server, "/v1/snapshots", "{}").json();
    let token = taken["token"].as_str().unwrap();
    let path = format!("/v1/state/balance/accounts/rows?min_sequence={last}");
    let before = get(&server, &path).json();
    let stamp = before["stamps"][0].clone();
    server.stop_cleanly();
    let server = Server::start(&dir, ALL, &[]);
    let after = get(
        &server,
        &format!("/v1/state/balance/accounts/rows?at={last}"),
    )
    .json();
    assert_eq!(after["rows"], before["rows"], "{token}");
    assert_eq!(after["stamps"][0]["fingerprint"], stamp["fingerprint"]);
    let mut state = StateClient::connect(format!("http://{}", server.http))
        .await
        .unwrap();
    // What is written beside it may put the fold behind for a moment; then nothing live is compared.
    loop {
        let summary = verified(&mut state).await;
        assert_eq!(summary.differences, 0, "{summary:?}");
        if summary.modules.iter().any(|one| one.live) {
            break;
        }
    }
    server.stop_cleanly();
}

async fn verified(state: &mut StateClient<tonic::transport::Channel>) -> v1::StateVerifySummary {
    let mut messages = state
        .verify(v1::StateVerifyRequest::default())
        .await
        .unwrap()
        .into_inner();
    while let Some(message) = messages.message().await.unwrap() {
        if let Some(v1::state_verify_response::Message::Summary(found)) = message.message {
            return found;
        }
    }
    panic!("the verification has no summary");
}

#[test]
fn each_role_alone_says_what_it_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, ALL, &[]);
    deploy(&server, &wasm(Guest::Balance), json!({}));
    let last = append(&server, "account-1", "deposit", "5");
    server.stop_cleanly();
    let roles = |names: &str| format!("[node]\nroles = [{names}]\n");
    let row = "/v1/state/balance/accounts/row?key=account-1";

    let server = Server::start(&dir, &roles("\"query\""), &[]);
    let answer = get(&server, &format!("{row}&min_sequence={last}")).json();
    assert_eq!(balance(&answer["rows"][0]), 5, "{answer}");
    let error = publish(&server, b"x").error(501, "ROLE_DISABLED");
    assert_eq!(error["role"], "compute");
    server.stop_cleanly();

    let server = Server::start(&dir, &roles("\"compute\""), &[]);
    let error = publish(&server, b"x").error(501, "ROLE_DISABLED");
    assert_eq!(error["role"], "ingest");
    assert_eq!(
        get(&server, row).error(501, "ROLE_DISABLED")["role"],
        "query"
    );
    assert_eq!(get(&server, "/v1/modules/balance").status, 200);
    server.stop_cleanly();

    let server = Server::start(&dir, &roles("\"replay\""), &[]);
    assert_eq!(
        get(&server, row).error(501, "ROLE_DISABLED")["role"],
        "query"
    );
    let error = get(&server, "/v1/modules").error(501, "ROLE_DISABLED");
    assert_eq!(error["role"], "compute");
    server.stop_cleanly();

    let server = Server::start(&dir, &roles("\"ingest\""), &[]);
    append(&server, "account-1", "deposit", "5");
    assert_eq!(
        get(&server, "/v1/modules").error(501, "ROLE_DISABLED")["role"],
        "compute"
    );
    server.stop_cleanly();
}
