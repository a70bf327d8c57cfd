//! The licences of everything in an image, as one text: those of each part of others and where its source is, and
//! those of the crates that our programs are built from. It is in the image, and on the medium.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cache::Cache;
use crate::fetch;
use crate::manifest::{Manifest, SourcePackage};
use crate::process::{output, tool};
use crate::sbom;

/// What files with licences are called, in capital letters, up to a dot or hyphen.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];
/// Ends of files that have such names, and are no texts.
const SOURCE_CODE: [&str; 4] = ["rs", "c", "h", "py"];

/// Where a licence text is.
#[derive(Debug, Clone, Copy)]
enum Text {
    /// A file of this repository.
    Here(&'static str),
    /// A file in upstream's archive of a source package.
    Source(&'static str, &'static str),
    /// What Debian says of the boot stub, in its package.
    Stub,
}

/// Parts of others that are no crates, and where their texts are.
const PARTS: [(&str, &[Text]); 8] = [
    (
        "Linux",
        &[
            Text::Here("installer-iso/licences/Linux-COPYING.txt"),
            Text::Here("installer-iso/licences/Linux-syscall-note.txt"),
            Text::Here("installer-iso/licences/GPL-2.0.txt"),
        ],
    ),
    (
        "systemd-boot-efi",
        &[
            Text::Stub,
            Text::Here("installer-iso/licences/LGPL-2.1.txt"),
            Text::Here("installer-iso/licences/gnu-efi-copyright.txt"),
        ],
    ),
    ("busybox", &[Text::Source("busybox", "LICENSE")]),
    ("e2fsprogs", &[Text::Source("e2fsprogs", "NOTICE")]),
    (
        "musl",
        &[Text::Here("installer-iso/licences/musl-COPYRIGHT.txt")],
    ),
    (
        "Rust's standard library",
        &[Text::Here("installer-iso/licences/rust-std.txt")],
    ),
    (
        "Inter (font)",
        &[Text::Here("installer/assets/fonts/LICENSE-Inter.txt")],
    ),
    (
        "DejaVu Sans Mono (font)",
        &[Text::Here("installer/assets/fonts/LICENSE-DejaVu.txt")],
    ),
];

/// The text. `stub` is the folder into which the stub's package is unpacked.
///
/// # Errors
///
/// cargo cannot say what our programs are built from, or a part has no licence.
pub(crate) fn text(
    root: &Path,
    cache: &Cache,
    manifest: &Manifest,
    stub: &Path,
    packages: &[&str],
) -> Result<String> {
    let read = |text: Text| match text {
        Text::Here(path) => read(&root.join(path)),
        Text::Source(package, file) => in_source(cache, manifest.source(package)?, file),
        Text::Stub => {
            let folder = stub.join("usr/share/doc").join(&manifest.stub.package);
            read(&folder.join("copyright"))
        }
    };
    let mut text = head(manifest);
    text.push_str(&of_parts(&read)?);
    let own = read(Text::Here("LICENSE"))?;
    section(&mut text, "TruthDB", &own);
    for (licence, crates) in of_crates(root, packages)? {
        section(&mut text, &crates.join(", "), &licence);
    }
    Ok(text)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// A file of upstream's archive.
fn in_source(cache: &Cache, package: &SourcePackage, file: &str) -> Result<String> {
    let archive = fetch::source(cache, package)?.swap_remove(0);
    output(
        tool("tar")
            .args(["--wildcards", "--no-wildcards-match-slash"])
            .args(["--to-stdout", "-xf"])
            .arg(&archive)
            .arg(format!("*/{file}")),
    )
}

/// A section for each of [`PARTS`].
fn of_parts(read: &dyn Fn(Text) -> Result<String>) -> Result<String> {
    let mut all = String::new();
    for (name, texts) in PARTS {
        let mut content = Vec::new();
        for text in texts {
            let text =
                read(*text).with_context(|| format!("reading the licence of {name}: {text:?}"))?;
            ensure!(!text.trim().is_empty(), "the licence of {name} is empty");
            content.push(text.trim().to_owned());
        }
        section(&mut all, name, &content.join("\n\n\n"));
    }
    Ok(all)
}

fn head(manifest: &Manifest) -> String {
    let mut text = String::from(
        "What this image is made of, and under which licences.\n\n\
         The programs below are free software under the GNU General Public License, version 2, and parts of them\n\
         under the GNU Lesser General Public License. Their complete sources, as they were used, with patches,\n\
         configurations and the recipes of the build, are published beside this image, as `sources` of the same\n\
         version; upstream's and Debian's files have these hashes (SHA-256):\n\n",
    );
    let mut add = |name: &str, version: &str, licence: &str, files: &[(&str, &str)]| {
        text.push_str(&format!("{name} {version}: {licence}\n"));
        for (file, sha256) in files {
            text.push_str(&format!("  {sha256}  {file}\n"));
        }
    };
    let kernel = &manifest.kernel;
    add(
        "Linux",
        &kernel.version,
        "GPL-2.0-only WITH Linux-syscall-note",
        &[(&kernel.file, &kernel.sha256)],
    );
    for source in &manifest.source {
        let files = source.files.each_ref();
        let files = files.map(|file| (file.name.as_str(), file.sha256.as_str()));
        add(&source.name, &source.version, &source.license, &files);
    }
    text.push_str(&of_stub(manifest));
    text
}

/// The stub is Debian's program as it is, and its source is not packed: it does not stand among those whose are.
fn of_stub(manifest: &Manifest) -> String {
    let stub = &manifest.stub;
    format!(
        "\nThe program that the firmware starts is the boot stub of Debian's package {} {}, unchanged, under the\n\
         GNU Lesser General Public License, version 2.1 or later. Its source is Debian's source package `systemd`\n\
         of the same version, which Debian publishes (https://snapshot.debian.org/package/systemd/). The package\n\
         was this file:\n\n  \
         {}  {}\n",
        stub.package, stub.version, stub.sha256, stub.file
    )
}

fn section(text: &mut String, title: &str, content: &str) {
    let line = "=".repeat(78);
    text.push_str(&format!(
        "\n{line}\n{title}\n{line}\n\n{}\n",
        content.trim()
    ));
}

/// The licence texts of the crates, each once, with the crates that have it.
fn of_crates(root: &Path, packages: &[&str]) -> Result<BTreeMap<String, Vec<String>>> {
    let used: BTreeSet<(String, String)> = sbom::crates(root, packages)?
        .iter()
        .map(|one| (words(one, "name"), words(one, "version")))
        .collect();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let listed = output(tool(cargo).current_dir(root).args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        "x86_64-unknown-linux-musl",
    ]))
    .context("asking cargo for the places of crates")?;
    let listed: Value = serde_json::from_str(&listed).context("in what cargo says")?;
    let all = listed["packages"]
        .as_array()
        .context("cargo lists no crates")?;
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in all.iter().filter(|one| !one["source"].is_null()) {
        let (name, version) = (words(one, "name"), words(one, "version"));
        if !used.contains(&(name.clone(), version.clone())) {
            continue;
        }
        let title = format!("{name} {version} ({})", words(one, "license"));
        let manifest = PathBuf::from(words(one, "manifest_path"));
        let folder = manifest.parent().context("a crate lies in a folder")?;
        let mut found = licence_files(folder)?;
        if found.is_empty() {
            // Some crates name a licence, and bring no text.
            found.push(format!(
                "The licence of this crate is {}.",
                words(one, "license")
            ));
        }
        for text in found {
            texts.entry(text).or_default().push(title.clone());
        }
    }
    Ok(texts)
}

fn words(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// The texts of a crate, also of sources of others that it brings in folders of its own.
fn licence_files(folder: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    find_licences(folder, &mut paths)?;
    paths.sort();
    let mut texts = Vec::new();
    for path in &paths {
        let bytes = std::fs::read(path);
        let bytes = bytes.with_context(|| format!("reading {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    Ok(texts)
}

fn find_licences(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
        let kind = entry.file_type();
        let kind = kind.with_context(|| format!("looking at {}", entry.path().display()))?;
        if kind.is_dir() {
            find_licences(&entry.path(), found)?;
        } else if kind.is_file() && is_licence(&entry.path()) {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn is_licence(path: &Path) -> bool {
    let end = path.extension().unwrap_or_default().to_string_lossy();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begin = name.to_uppercase();
    let begin = begin.split(['.', '-', '_']).next().unwrap_or_default();
    NAMES.contains(&begin) && !SOURCE_CODE.contains(&&*end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_licences_are_known_by_their_names() {
        for (name, is) in [
            ("LICENSE", true),
            ("LICENSE-MIT", true),
            ("license-apache-2.0", true),
            ("COPYING.LESSER", true),
            ("NOTICE.md", true),
            ("licenses.rs", false),
            ("license.rs", false),
            ("README.md", false),
        ] {
            assert_eq!(is_licence(Path::new(name)), is, "{name}");
        }
    }

    #[test]
    fn every_part_has_a_section_with_its_text() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let of_part = |text: Text| match text {
            Text::Here(path) => read(&root.join(path)),
            Text::Source(package, file) => Ok(format!("{file} of {package}")),
            Text::Stub => Ok("what Debian says of the stub".into()),
        };
        let text = of_parts(&of_part).unwrap();
        let line = "=".repeat(78);
        for (name, says) in [
            ("Linux", "Linux-syscall-note"),
            ("Linux", "GNU GENERAL PUBLIC LICENSE"),
            ("systemd-boot-efi", "what Debian says of the stub"),
            ("systemd-boot-efi", "GNU LESSER GENERAL PUBLIC LICENSE"),
            ("systemd-boot-efi", "GNU EFI"),
            ("busybox", "LICENSE of busybox"),
            ("e2fsprogs", "NOTICE of e2fsprogs"),
            ("musl", "Rich Felker"),
            ("Rust's standard library", "The Rust Project Developers"),
            ("Inter (font)", "SIL Open Font License"),
            ("DejaVu Sans Mono (font)", "Bitstream"),
        ] {
            let (_, section) = text
                .split_once(&format!("{line}\n{name}\n{line}\n"))
                .unwrap_or_else(|| panic!("{name} has no section"));
            let section = section.split(&line).next().unwrap();
            assert!(section.contains(says), "{name}: {says}");
        }
        let empty = of_parts(&|_| Ok(String::new())).unwrap_err();
        assert!(empty.to_string().contains("is empty"), "{empty}");
    }

    /// With another Rust, somebody looks at what its standard library is linked with.
    #[test]
    fn the_text_about_rust_is_of_the_version_that_builds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let toolchain: toml::Value =
            toml::from_str(&read(&root.join("rust-toolchain.toml")).unwrap()).unwrap();
        let version = toolchain["toolchain"]["channel"].as_str().unwrap();
        let text = read(&root.join("installer-iso/licences/rust-std.txt")).unwrap();
        let first = format!("The standard library of Rust {version},");
        assert!(text.starts_with(&first), "{first}");
    }

    #[test]
    fn texts_of_sources_inside_of_a_crate_are_found_and_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("vendor/c");
        std::fs::create_dir_all(&inside).unwrap();
        for (path, text) in [
            (folder.path().join("LICENSE"), "one"),
            (inside.join("COPYING"), "other"),
            (inside.join("LICENSE.txt"), "one"),
            (inside.join("license.c"), "code"),
        ] {
            std::fs::write(path, text).unwrap();
        }
        assert_eq!(licence_files(folder.path()).unwrap(), ["one", "other"]);
    }

    #[test]
    fn the_head_says_where_sources_are_and_each_text_stands_once() {
        let manifest: Manifest = toml::from_str(crate::manifest::tests::ours()).unwrap();
        let head = head(&manifest);
        for part in [
            "Linux 6.12",
            "busybox",
            "e2fsprogs",
            &manifest.kernel.sha256,
        ] {
            assert!(head.contains(part), "{part}: {head}");
        }
        // What is not packed is not said to be.
        let (packed, stub) = head
            .split_once("\n\nThe program that the firmware")
            .unwrap();
        assert!(packed.contains("are published beside this image") && !stub.contains("beside"));
        assert!(!packed.contains("systemd"), "{packed}");
        for part in [&manifest.stub.version, &manifest.stub.sha256, "`systemd`"] {
            assert!(stub.contains(part), "{part}: {stub}");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let texts = of_crates(root, &["truthdb-node"]).unwrap();
        let crates: Vec<&String> = texts.values().flatten().collect();
        assert!(
            crates.iter().any(|title| title.starts_with("serde ")),
            "{crates:?}"
        );
        assert!(!crates.iter().any(|title| title.starts_with("wasmtime ")));
    }
}
