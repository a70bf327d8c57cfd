//! The licences of everything in an image, as one text: that of each program of others and where its source is, and
//! those of the crates that our programs are built from. It is in the image, and on the medium.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cache::Cache;
use crate::fetch;
use crate::manifest::Manifest;
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
/// Where each source package has its licence.
const SOURCES: [(&str, &str); 2] = [("busybox", "LICENSE"), ("e2fsprogs", "NOTICE")];

/// The text.
///
/// # Errors
///
/// cargo cannot say what our programs are built from, or a source package has no licence.
pub(crate) fn text(
    root: &Path,
    cache: &Cache,
    manifest: &Manifest,
    packages: &[&str],
) -> Result<String> {
    let mut text = head(manifest);
    for (name, file) in SOURCES {
        let package = manifest.source(name)?;
        let archive = fetch::source(cache, package)?.swap_remove(0);
        let licence = output(
            tool("tar")
                .args(["--wildcards", "--no-wildcards-match-slash"])
                .args(["--to-stdout", "-xf"])
                .arg(&archive)
                .arg(format!("*/{file}")),
        )
        .with_context(|| format!("reading the licence of {name}"))?;
        ensure!(licence.contains("GNU"), "{name} has no licence in {file}");
        section(&mut text, &format!("{name} {}", package.version), &licence);
    }
    let own = std::fs::read_to_string(root.join("LICENSE")).context("reading our licence")?;
    section(&mut text, "TruthDB", &own);
    for (licence, crates) in of_crates(root, packages)? {
        section(&mut text, &crates.join(", "), &licence);
    }
    Ok(text)
}

fn head(manifest: &Manifest) -> String {
    let mut text = String::from(
        "What this image is made of, and under which licences.\n\n\
         The programs below are free software under the GNU General Public License, version 2, or the GNU Lesser\n\
         General Public License. Their complete sources, as they were used, with patches, configurations and the\n\
         recipes of the build, are published beside this image, as `sources` of the same version; upstream's and\n\
         Debian's files have these hashes (SHA-256):\n\n",
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
    let stub = &manifest.stub;
    add(
        &stub.package,
        &stub.version,
        "LGPL-2.1-or-later",
        &[(&stub.file, &stub.sha256)],
    );
    for source in &manifest.source {
        let files = source.files.each_ref();
        let files = files.map(|file| (file.name.as_str(), file.sha256.as_str()));
        add(&source.name, &source.version, &source.license, &files);
    }
    text
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

fn licence_files(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.with_context(|| format!("listing {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && is_licence(path))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let bytes = std::fs::read(path);
            let bytes = bytes.with_context(|| format!("reading {}", path.display()))?;
            Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
        })
        .collect()
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begin = name.to_uppercase();
    let begin = begin.split(['.', '-', '_']).next().unwrap_or_default();
    NAMES.contains(&begin)
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
            ("README.md", false),
        ] {
            assert_eq!(is_licence(Path::new(name)), is, "{name}");
        }
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
