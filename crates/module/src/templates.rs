//! The files that `truthdb module new` writes: a small module that builds and passes its tests.
//!
//! The SDK comes along as source, in the version that this host speaks, so that a new module needs
//! nothing of ours from a registry.

use crate::{ModuleKind, NAME_BYTES_MAX};

/// Version of `wit-bindgen` that the SDK is built with; a test holds it to the workspace's.
const BINDGEN_VERSION: &str = "0.60";

/// A name that a module cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no name for a new module: it must begin with a letter, and be at most \
     {NAME_BYTES_MAX} bytes of a to z, 0 to 9, and single `-`"
)]
pub struct BadName {
    /// The name.
    pub name: String,
}

/// Sources of the SDK, as path below `sdk/` and text.
const SDK: [(&str, &str); 12] = [
    ("src/event.rs", include_str!("../../sdk/src/event.rs")),
    ("src/fault.rs", include_str!("../../sdk/src/fault.rs")),
    ("src/guest.rs", include_str!("../../sdk/src/guest.rs")),
    ("src/key.rs", include_str!("../../sdk/src/key.rs")),
    ("src/lib.rs", include_str!("../../sdk/src/lib.rs")),
    ("src/macros.rs", include_str!("../../sdk/src/macros.rs")),
    ("src/module.rs", include_str!("../../sdk/src/module.rs")),
    ("src/store.rs", include_str!("../../sdk/src/store.rs")),
    ("src/table.rs", include_str!("../../sdk/src/table.rs")),
    ("src/testing.rs", include_str!("../../sdk/src/testing.rs")),
    ("src/value.rs", include_str!("../../sdk/src/value.rs")),
    ("wit/module.wit", include_str!("../../sdk/wit/module.wit")),
];

/// The files of a new module: relative paths with `/`, and their text.
///
/// # Errors
///
/// If the name cannot be that of a module and of a Rust crate.
pub fn render(kind: ModuleKind, name: &str) -> Result<Vec<(String, String)>, BadName> {
    if !is_name(name) {
        return Err(BadName {
            name: name.to_owned(),
        });
    }
    let source = match kind {
        ModuleKind::Reducer => include_str!("../templates/reducer.rs.txt"),
        ModuleKind::Processor => include_str!("../templates/processor.rs.txt"),
        ModuleKind::Validator => include_str!("../templates/validator.rs.txt"),
        ModuleKind::Query => include_str!("../templates/query.rs.txt"),
    };
    let fill = |text: &str| {
        text.replace("@NAME@", name)
            .replace("@CRATE@", &name.replace('-', "_"))
            .replace("@TYPE@", &type_name(name))
            .replace("@KIND@", kind.name())
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
            .replace("@RUST@", env!("CARGO_PKG_RUST_VERSION"))
            .replace("@BINDGEN@", BINDGEN_VERSION)
    };
    let own = [
        ("Cargo.toml", include_str!("../templates/Cargo.toml.txt")),
        ("README.md", include_str!("../templates/README.md.txt")),
        (".gitignore", include_str!("../templates/gitignore.txt")),
        ("src/lib.rs", source),
        (
            "sdk/Cargo.toml",
            include_str!("../templates/sdk.Cargo.toml.txt"),
        ),
    ];
    let own = own
        .into_iter()
        .map(|(path, text)| (path.to_owned(), fill(text)));
    let sdk = SDK
        .into_iter()
        .map(|(path, text)| (format!("sdk/{path}"), text.to_owned()));
    Ok(own.chain(sdk).collect())
}

/// Whether a name is one of a module, and of a crate.
fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(is_allowed)
        && !name.ends_with('-')
        && !name.contains("--")
        // Words of Rust that would be the name of the crate or the type.
        && !matches!(name, "sdk" | "self" | "super" | "crate" | "core" | "std" | "test" | "truthdb-sdk" | "tables")
}

/// `late-aircraft` as `LateAircraft`.
fn type_name(name: &str) -> String {
    let part = |part: &str| {
        let (first, rest) = part.split_at(1);
        first.to_uppercase() + rest
    };
    name.split('-').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_sdk_comes_along() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
        let mut files = Vec::new();
        for part in ["src", "wit"] {
            for entry in std::fs::read_dir(folder.join(part)).unwrap() {
                let name = entry.unwrap().file_name();
                files.push(format!("{part}/{}", name.to_str().unwrap()));
            }
        }
        files.sort();
        let embedded: Vec<_> = SDK.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(embedded, files);
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("wit-bindgen = {{ version = \"{BINDGEN_VERSION}\"")));
    }

    #[test]
    fn names_go_everywhere_and_nothing_is_left_open() {
        let files = render(ModuleKind::Processor, "late-aircraft").unwrap();
        let text = |path: &str| &files.iter().find(|(found, _)| found == path).unwrap().1;
        assert!(text("Cargo.toml").contains("name = \"late-aircraft\""));
        assert!(text("src/lib.rs").contains("pub LateAircraft = \"late-aircraft\";"));
        assert!(text("README.md").contains("late_aircraft.wasm"));
        for (path, text) in &files {
            for open in [
                "@NAME@",
                "@CRATE@",
                "@TYPE@",
                "@KIND@",
                "@VERSION@",
                "@RUST@",
                "@BINDGEN@",
            ] {
                assert!(!text.contains(open), "{path} has {open}");
            }
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for name in [
            "",
            "A",
            "1st",
            "a_b",
            "-a",
            "a-",
            "a--b",
            "crate",
            &"a".repeat(65),
        ] {
            assert!(render(ModuleKind::Reducer, name).is_err(), "{name:?}");
        }
    }
}
