//! What `truthdb module new` writes: it builds, passes its tests, and is a module of its kind.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

use std::path::Path;
use std::process::Command;

use truthdb_module::{Host, HostConfig, ModuleKind, templates};

fn cargo(folder: &Path, arguments: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/modules/new");
    let output = Command::new(cargo)
        .current_dir(folder)
        .args(arguments)
        // The workspace has fetched what a module needs.
        .args(["--quiet", "--offline", "--target-dir"])
        .arg(target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_new_module_builds_and_passes_its_tests() {
    let host = Host::new(HostConfig {
        fold_instances_max: 1,
        query_instances_max: 1,
        ..HostConfig::default()
    })
    .unwrap();
    for kind in [
        ModuleKind::Reducer,
        ModuleKind::Processor,
        ModuleKind::Validator,
        ModuleKind::Query,
    ] {
        let name = format!("new-{kind}");
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in templates::render(kind, &name).unwrap() {
            let file = folder.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        cargo(folder.path(), &["test"]);
        // Not the release profile, to be quick; the module is the same.
        cargo(
            folder.path(),
            &["build", "--target", "wasm32-unknown-unknown"],
        );
        let file = format!("wasm32-unknown-unknown/debug/new_{kind}.wasm");
        let core = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/modules/new")
            .join(file);
        let core = std::fs::read(core).unwrap();
        let component = host.adapt(&core).unwrap();
        let info = host.inspect(&component).unwrap();
        assert_eq!(info.manifest.kind, kind);
        assert_eq!(info.manifest.name, name);
    }
}
