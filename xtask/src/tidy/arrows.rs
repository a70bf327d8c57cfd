//! Which crate may depend on which, and that each inherits the lints of the workspace.

use serde_json::Value;

use super::{File, Finding};

/// The crates of the workspace, and those of it that each may depend on. The order is the direction:
/// a crate depends only on crates above it.
const ARROWS: [(&str, &[&str]); 33] = [
    ("truthdb-event", &[]),
    ("truthdb-io", &[]),
    ("truthdb-log", &["truthdb-event", "truthdb-io"]),
    ("truthdb-state", &["truthdb-io"]),
    (
        "truthdb-engine",
        &["truthdb-event", "truthdb-io", "truthdb-log"],
    ),
    ("truthdb-sdk", &[]),
    ("truthdb-example-balance", &["truthdb-sdk"]),
    ("truthdb-example-covered", &["truthdb-sdk"]),
    ("truthdb-example-hostile", &["truthdb-sdk"]),
    ("truthdb-example-richest", &["truthdb-sdk"]),
    ("truthdb-example-tally", &["truthdb-sdk"]),
    ("truthdb-example-worldly", &["truthdb-sdk"]),
    ("truthdb-example-arrivals", &["truthdb-sdk"]),
    ("truthdb-example-delays", &["truthdb-sdk"]),
    ("truthdb-example-delays-next", &["truthdb-sdk"]),
    ("truthdb-example-late-aircraft", &["truthdb-sdk"]),
    ("truthdb-example-positions", &["truthdb-sdk"]),
    ("truthdb-example-top-routes", &["truthdb-sdk"]),
    ("truthdb-guests", &[]),
    ("truthdb-module", &["truthdb-guests"]),
    (
        "truthdb-compute",
        &[
            "truthdb-event",
            "truthdb-io",
            "truthdb-log",
            "truthdb-state",
            "truthdb-engine",
            "truthdb-guests",
            "truthdb-module",
        ],
    ),
    ("truthdb-api", &["truthdb-event"]),
    ("truthdb-client", &["truthdb-api", "truthdb-event"]),
    (
        "truthdb",
        &[
            "truthdb-event",
            "truthdb-io",
            "truthdb-log",
            "truthdb-engine",
            "truthdb-guests",
            "truthdb-module",
            "truthdb-compute",
            "truthdb-api",
            "truthdb-client",
        ],
    ),
    (
        "truthdb-sim",
        &[
            "truthdb-event",
            "truthdb-io",
            "truthdb-log",
            "truthdb-state",
            "truthdb-engine",
            "truthdb-guests",
            "truthdb-module",
            "truthdb-compute",
        ],
    ),
    (
        "truthdb-flights",
        &[
            "truthdb-event",
            "truthdb-io",
            "truthdb-log",
            "truthdb-engine",
            "truthdb-guests",
            "truthdb-module",
            "truthdb-compute",
            "truthdb-client",
        ],
    ),
    (
        "truthdb-fuzz",
        &[
            "truthdb-event",
            "truthdb-io",
            "truthdb-log",
            "truthdb-state",
            "truthdb-engine",
            "truthdb-api",
            "truthdb-guests",
            "truthdb-module",
        ],
    ),
    ("truthdb-installer", &[]),
    ("truthdb-console", &["truthdb-installer"]),
    ("truthdb-image", &["truthdb-installer"]),
    ("truthdb-node", &[]),
    ("truthdb-vm-tests", &[]),
    ("xtask", &[]),
];

/// Foreign crates that would open a second door to network, clock or randomness, and who may hold them.
const EDGES: [(&str, &[&str]); 10] = [
    (
        "tokio",
        &[
            "truthdb-api",
            "truthdb-client",
            "truthdb",
            "truthdb-flights",
        ],
    ),
    ("tonic", &["truthdb-api", "truthdb-client", "truthdb"]),
    ("axum", &["truthdb"]),
    ("hyper", &["truthdb"]),
    ("rustls", &["truthdb-client", "truthdb", "truthdb-console"]),
    ("wasmtime", &["truthdb-module"]),
    ("io-uring", &["truthdb-io"]),
    (
        "rustix",
        &[
            "truthdb-io",
            "truthdb",
            "truthdb-sim",
            "truthdb-installer",
            "truthdb-image",
            "truthdb-console",
            "truthdb-node",
        ],
    ),
    (
        "getrandom",
        &[
            "truthdb-io",
            "truthdb-event",
            "truthdb-client",
            "truthdb",
            "truthdb-installer",
        ],
    ),
    ("jiff", &["truthdb", "truthdb-flights"]),
];

/// Dependencies against the arrows. Development dependencies follow them too: a test that needs a crate from
/// further down belongs there.
pub(super) fn directions(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (package, dependency, is_own) in dependencies(metadata) {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package) else {
            findings.push(Finding::new(
                package,
                "is not in the table of arrows: add it there",
            ));
            continue;
        };
        if is_own && !allowed.contains(&dependency) {
            findings.push(Finding::new(
                package,
                format!("may not depend on {dependency}"),
            ));
        }
        if let Some((_, holders)) = EDGES.iter().find(|(name, _)| *name == dependency)
            && !holders.contains(&package)
        {
            let holders = holders.join(", ");
            findings.push(Finding::new(
                package,
                format!("may not depend on {dependency}: only {holders} may"),
            ));
        }
    }
    findings.dedup();
    findings
}

/// Each crate's `Cargo.toml` takes its lints from the workspace.
pub(super) fn lints_inherited(metadata: &Value, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in list(metadata, "packages") {
        let manifest = text(package, "manifest_path");
        let Some(file) = files.iter().find(|file| {
            file.name() == "Cargo.toml" && file.path.contains('/') && manifest.ends_with(&file.path)
        }) else {
            continue;
        };
        if !file
            .text
            .as_deref()
            .unwrap_or_default()
            .contains("[lints]\nworkspace = true\n")
        {
            findings.push(Finding::new(
                &file.path,
                "add `[lints]` with `workspace = true`",
            ));
        }
    }
    findings
}

/// Package, dependency, and whether the dependency is a crate of this workspace.
pub(super) fn dependencies(metadata: &Value) -> impl Iterator<Item = (&str, &str, bool)> {
    list(metadata, "packages").flat_map(|package| {
        list(package, "dependencies").map(|dependency| {
            (
                text(package, "name"),
                text(dependency, "name"),
                !dependency["path"].is_null(),
            )
        })
    })
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::test_files::file;
    use super::*;

    fn depends(package: &str, dependency: &str, path: Option<&str>) -> Value {
        let dependency = json!({ "name": dependency, "path": path });
        json!({ "packages": [{
            "name": package,
            "manifest_path": "/somewhere/crates/x/Cargo.toml",
            "dependencies": [dependency],
        }] })
    }

    #[test]
    fn an_arrow_of_the_table_is_allowed() {
        assert_eq!(
            directions(&depends("truthdb-log", "truthdb-io", Some("p"))),
            []
        );
    }

    #[test]
    fn an_arrow_against_the_direction_is_found() {
        let found = directions(&depends("truthdb-io", "truthdb-log", Some("p")));
        assert_eq!(
            found,
            [Finding::new("truthdb-io", "may not depend on truthdb-log")]
        );
    }

    #[test]
    fn xtask_may_depend_on_no_crate_of_the_workspace() {
        assert_eq!(
            directions(&depends("xtask", "truthdb-event", Some("p"))).len(),
            1
        );
    }

    #[test]
    fn an_asynchronous_engine_is_found() {
        assert_eq!(
            directions(&depends("truthdb-engine", "tokio", None)).len(),
            1
        );
        assert_eq!(directions(&depends("truthdb", "tokio", None)), []);
    }

    #[test]
    fn a_crate_outside_of_the_table_is_found() {
        assert_eq!(directions(&depends("truthdb-new", "anyhow", None)).len(), 1);
    }

    #[test]
    fn the_table_names_only_crates_above() {
        for (at, (name, allowed)) in ARROWS.iter().enumerate() {
            for dependency in *allowed {
                assert!(
                    ARROWS[..at].iter().any(|(above, _)| above == dependency),
                    "{name} names {dependency}"
                );
            }
        }
    }

    #[test]
    fn a_crate_without_the_lints_is_found() {
        let metadata = depends("x", "y", None);
        let with = file("crates/x/Cargo.toml", "[lints]\nworkspace = true\n");
        let without = file("crates/x/Cargo.toml", "[lints]\n");
        assert_eq!(lints_inherited(&metadata, &[with]), []);
        assert_eq!(lints_inherited(&metadata, &[without]).len(), 1);
    }
}
