//! Pinned files of Debian's archive, by apt, into the cache.
//!
//! apt runs with a state of its own: package lists and sources of the system are neither used nor changed, so that
//! it works on any Debian or Ubuntu, without privileges, and for a host of another architecture. What comes is
//! believed only for its hash.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::hash;
use crate::manifest::{PinnedFile, SourcePackage};
use crate::process::{output, tool, write};

/// Where the pinned versions are. Trusted, because every file is checked against the manifest's hash.
const SOURCES: &str = "\
Types: deb deb-src
URIs: http://deb.debian.org/debian
Suites: bookworm
Components: main
Trusted: yes

Types: deb deb-src
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Trusted: yes
";

/// The file of a binary package.
///
/// # Errors
///
/// The archive does not have that version, or the file has another hash.
pub(crate) fn binary(
    cache: &Cache,
    package: &str,
    version: &str,
    file: &str,
    sha256: &str,
) -> Result<PathBuf> {
    let file = PinnedFile {
        name: file.to_owned(),
        sha256: sha256.to_owned(),
    };
    get(
        cache,
        &[file],
        &["download", &format!("{package}={version}")],
    )?
    .pop()
    .context("one file was asked for")
}

/// The files of a source package.
///
/// # Errors
///
/// As for [`binary`].
pub(crate) fn source(cache: &Cache, package: &SourcePackage) -> Result<Vec<PathBuf>> {
    let wanted = format!("{}={}", package.name, package.version);
    get(
        cache,
        &package.files,
        &["source", "--download-only", &wanted],
    )
}

fn get(cache: &Cache, files: &[PinnedFile], ask: &[&str]) -> Result<Vec<PathBuf>> {
    let folder = cache.downloads()?;
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.name)).collect();
    if !paths.iter().all(|path| path.is_file()) {
        println!("      fetching {}", ask.last().unwrap_or(&""));
        let state = folder.join("apt");
        prepare(&state)?;
        let first = output(apt(&state).current_dir(&folder).args(ask));
        if first.is_err() {
            // No package lists yet, or old ones.
            output(apt(&state).arg("update"))?;
            output(apt(&state).current_dir(&folder).args(ask)).with_context(|| {
                let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
                format!(
                    "the archive has no such version any more: put {} into {} by hand, or move \
                     the pin in installer-iso/manifest.toml to a version that it has",
                    names.join(" and "),
                    folder.display()
                )
            })?;
        }
    }
    for (path, file) in paths.iter().zip(files) {
        check(path, &file.sha256)?;
    }
    Ok(paths)
}

/// Refuses a file with another hash.
fn check(path: &Path, sha256: &str) -> Result<()> {
    let found = hash::of_file(path)?;
    if found != sha256 {
        bail!(
            "{} has the SHA-256 {found}, installer-iso/manifest.toml wants {sha256}: remove the \
             file and try again; if it comes with that hash again, the archive and the manifest \
             disagree, and the file must not be used before somebody knows why",
            path.display()
        );
    }
    Ok(())
}

fn prepare(state: &Path) -> Result<()> {
    for folder in ["lists/partial", "cache/archives/partial"] {
        let folder = state.join(folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    write(&state.join("status"), b"")?;
    write(&state.join("truthdb.sources"), SOURCES.as_bytes())
}

fn apt(state: &Path) -> Command {
    let mut apt = tool("apt-get");
    for (option, path) in [
        ("Dir::Etc::SourceList", "truthdb.sources"),
        ("Dir::Etc::SourceParts", "none"),
        ("Dir::State::Lists", "lists"),
        ("Dir::State::Status", "status"),
        ("Dir::Cache", "cache"),
    ] {
        apt.arg("-o")
            .arg(format!("{option}={}", state.join(path).display()));
    }
    apt.args([
        "-o",
        "APT::Architecture=amd64",
        "-o",
        "APT::Sandbox::User=root",
        "-q",
    ]);
    apt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_hash_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let file = "some_1.deb";
        std::fs::write(cache.downloads().unwrap().join(file), "other bytes").unwrap();
        let wanted = hash::of_bytes(b"the bytes");
        // The file is there, so nothing is asked of the network.
        let error = binary(&cache, "some", "1", file, &wanted)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&wanted) && error.contains("remove the file"),
            "{error}"
        );
        let right = hash::of_bytes(b"other bytes");
        assert!(binary(&cache, "some", "1", file, &right).is_ok());
    }
}
