//! The documents say what the code does: the error table, and a comment on everything in the
//! `.proto` file. `TRUTHDB_BLESS=1` rewrites the table.

use std::path::{Path, PathBuf};

use truthdb_api::error::{Outcome, TABLE};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn error_table() -> String {
    let mut table = String::from(
        "| code | HTTP | gRPC | outcome | retry | what to do |\n|---|--:|---|---|---|---|\n",
    );
    for info in TABLE {
        let outcome = match info.outcome {
            Outcome::DidNotHappen => "did not happen",
            Outcome::MayHaveHappened => "may have happened",
        };
        let retry = if info.retryable { "yes" } else { "no" };
        table += &format!(
            "| `{}` | {} | `{:?}` | {outcome} | {retry} | {} |\n",
            info.name, info.http, info.grpc, info.action
        );
    }
    table
}

#[test]
fn the_error_table_in_the_documentation_is_the_one_in_the_code() {
    const BEGIN: &str = "<!-- error table: begin -->\n";
    const END: &str = "<!-- error table: end -->";
    let path = repository("docs/api.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the begin mark");
    let (table, after) = rest.split_once(END).expect("the end mark");
    if std::env::var_os("TRUTHDB_BLESS").is_some() {
        std::fs::write(
            &path,
            format!("{before}{BEGIN}{}{END}{after}", error_table()),
        )
        .unwrap();
    } else {
        assert_eq!(table, error_table(), "run this test with TRUTHDB_BLESS=1");
    }
}

#[test]
fn the_smallest_credit_in_the_documentation_is_the_one_in_the_code() {
    let text = std::fs::read_to_string(repository("docs/api.md")).unwrap();
    let credit = format!("({} bytes;", truthdb_api::native::CREDIT_BYTES_MIN);
    assert!(text.contains(&credit), "{credit}");
}

#[test]
fn everything_in_the_proto_file_has_a_comment() {
    let path = repository("crates/api/proto/truthdb/v1/truthdb.proto");
    let text = std::fs::read_to_string(path).unwrap();
    let mut previous = "";
    let mut items = 0;
    for line in text.lines().map(str::trim) {
        let declares = ["message ", "enum ", "service ", "rpc ", "oneof "]
            .iter()
            .any(|word| line.starts_with(word));
        let assigns = line.ends_with(';') && line.contains(" = ") && !line.starts_with("//");
        if (declares || assigns) && !line.starts_with("syntax") {
            items += 1;
            assert!(previous.starts_with("//"), "no comment before: {line}");
        }
        previous = line;
    }
    assert!(items > 250, "{items} items were seen");
}

#[test]
fn the_descriptors_name_every_service() {
    for service in ["Log", "Admin", "Modules", "State"] {
        let found = truthdb_api::FILE_DESCRIPTOR_SET
            .windows(service.len())
            .any(|window| window == service.as_bytes());
        assert!(found, "{service}");
    }
}
