//! Pinned files of Debian's archive, by apt, into the cache.
//!
//! apt runs with a state of its own, so that nothing of the system is changed, without privileges, and also for a host
//! of another architecture. Only the addresses of archives are the system's, or Debian's own where the system knows
//! none of Debian's (Ubuntu); `TRUTHDB_DEBIAN_ARCHIVES` gives others. What comes is believed only for its hash.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::hash;
use crate::manifest::{PinnedFile, SourcePackage};
use crate::process::{self, output, tool, write};

/// The environment variable that names Debian archives, separated by spaces, in place of those that the machine's own
/// apt is set to.
const ARCHIVES_VARIABLE: &str = "TRUTHDB_DEBIAN_ARCHIVES";
/// Debian's own archives, for a machine whose apt knows none of Debian's, with the suites of each.
const ARCHIVES_OF_DEBIAN: [(&str, &str); 2] = [
    ("http://ftp.debian.org/debian", "bookworm bookworm-updates"),
    (
        "http://security.debian.org/debian-security",
        "bookworm-security",
    ),
];

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

/// Whether a pinned file is at hand, for the plan; its hash is looked at when it is used.
pub(crate) fn is_there(cache: &Cache, name: &str) -> bool {
    cache.downloads_folder().join(name).is_file()
}

fn get(cache: &Cache, files: &[PinnedFile], ask: &[&str]) -> Result<Vec<PathBuf>> {
    let folder = cache.downloads()?;
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.name)).collect();
    if !paths.iter().all(|path| path.is_file()) {
        println!("      fetching {}", ask.last().unwrap_or(&""));
        let state = folder.join("apt");
        prepare(&state)?;
        let ask = || output(apt(&state).current_dir(&folder).args(ask));
        let mut asked = ask();
        let mut updated = Ok(String::new());
        // First what is known already; then with new lists; then of Debian's own archives too, since those that are
        // called like Debian's may be of somebody else.
        for sources in [sources, sources_and_debian] {
            if asked.is_ok() {
                break;
            }
            write(&state.join("truthdb.sources"), sources()?.as_bytes())?;
            // Another archive may have the file if one is out of reach.
            updated = output(apt(&state).args(["update", "--error-on=any"]));
            asked = ask();
        }
        asked.map_err(|missing| not_there(missing, updated.err(), files, &folder))?;
    }
    for (path, file) in paths.iter().zip(files) {
        check(path, &file.sha256)?;
    }
    Ok(paths)
}

/// Why a pinned file does not come, and what helps.
fn not_there(
    missing: anyhow::Error,
    out_of_reach: Option<anyhow::Error>,
    files: &[PinnedFile],
    folder: &Path,
) -> anyhow::Error {
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let by_hand = format!(
        "put {} into {} by hand",
        names.join(" and "),
        folder.display()
    );
    if process::is_disk_full(&missing) {
        return missing;
    }
    match out_of_reach {
        Some(error) => error.context(format!(
            "an archive of Debian is out of reach: try again, name another in {ARCHIVES_VARIABLE}, or {by_hand}"
        )),
        None => missing.context(format!(
            "the archive has no such version any more: {by_hand}, or move the pin in \
             installer-iso/manifest.toml to a version that it has"
        )),
    }
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
    write(&state.join("status"), b"")
}

/// What apt is told of archives: those of Debian 12, with the sources of packages. Trusted, and however old, because
/// every file is checked against the manifest's hash.
fn sources() -> Result<String> {
    // What it would fetch, which it also knows before it has ever fetched a list, and without privileges.
    let known = || output(tool("apt-get").args(["update", "--print-uris"]));
    let named = std::env::var(ARCHIVES_VARIABLE).ok();
    let text = sources_named_or_known(named.as_deref(), known)?;
    if !text.is_empty() {
        return Ok(text);
    }
    let names = ARCHIVES_OF_DEBIAN.map(|(archive, _)| archive).join(" and ");
    println!(
        "      apt knows no archive of Debian: {names} are asked ({ARCHIVES_VARIABLE} names others)"
    );
    Ok(sources_of_debian())
}

/// The same, and Debian's own archives unless others are named.
fn sources_and_debian() -> Result<String> {
    let text = sources()?;
    let is_named = std::env::var_os(ARCHIVES_VARIABLE).is_some_and(|named| !named.is_empty());
    let own = sources_of_debian();
    Ok(if is_named || text == own {
        text
    } else {
        text + &own
    })
}

/// The stanzas of the archives that the variable names; without it, of those that apt knows.
fn sources_named_or_known(
    named: Option<&str>,
    known: impl FnOnce() -> Result<String>,
) -> Result<String> {
    match named.filter(|named| !named.trim().is_empty()) {
        Some(named) => Ok(sources_of(named)),
        None => Ok(sources_of(&archives_in(&known()?))),
    }
}

/// The stanzas of Debian's own archives.
fn sources_of_debian() -> String {
    let stanzas = ARCHIVES_OF_DEBIAN.map(|(archive, suites)| stanza(archive, suites));
    stanzas.concat()
}

/// Debian's archives among those that apt would fetch lists from: `'ADDRESS/dists/SUITE/…' …` on each line.
fn archives_in(lines: &str) -> String {
    let of_line = |line: &str| {
        let (archive, _) = line.strip_prefix('\'')?.split_once("/dists/")?;
        let name = name_of(archive);
        let is_debian = name == "debian" || name.starts_with("debian-");
        is_debian.then(|| archive.to_owned())
    };
    let archives: Vec<String> = lines.lines().filter_map(of_line).collect();
    archives.join(" ")
}

/// The name of an archive: the last part of its address, before the moment if it is one as it once was
/// (`…/debian/20261120T000000Z`).
fn name_of(archive: &str) -> &str {
    let is_moment = |part: &str| {
        part.len() == 16
            && part.ends_with('Z')
            && part.bytes().filter(u8::is_ascii_digit).count() == 14
    };
    let mut parts = archive.trim_end_matches('/').rsplit('/');
    let last = parts.next().unwrap_or(archive);
    if is_moment(last) {
        parts.next().unwrap_or(last)
    } else {
        last
    }
}

/// A stanza for each archive; that of security updates is told by its name.
fn sources_of(archives: &str) -> String {
    let mut archives: Vec<&str> = archives.split_whitespace().collect();
    archives.sort_unstable();
    archives.dedup();
    let of_archive = |archive: &&str| {
        let is_security = name_of(archive).ends_with("security");
        let suite = if is_security {
            "bookworm-security"
        } else {
            "bookworm"
        };
        stanza(archive, suite)
    };
    archives.iter().map(of_archive).collect()
}

fn stanza(archive: &str, suites: &str) -> String {
    format!(
        "Types: deb deb-src\nURIs: {archive}\nSuites: {suites}\nComponents: main\nTrusted: yes\n\
         Check-Valid-Until: no\n\n"
    )
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
    fn archives_become_stanzas_once_each() {
        let text = sources_of("http://a/debian/\nhttp://a/debian-security/\nhttp://a/debian/\n");
        assert_eq!(text.matches("URIs: http://a/debian/\n").count(), 1);
        assert!(text.contains("debian-security/\nSuites: bookworm-security\n"));
        assert!(sources_of(" \n").is_empty());
    }

    #[test]
    fn an_archive_as_it_once_was_is_known_by_its_name() {
        let lines = "'http://a/archive/debian/20261120T000000Z/dists/trixie/InRelease' x 0 \n\
                     'http://a/archive/debian-security/20261120T000000Z/dists/trixie-security/InRelease' y 0\n";
        let text = sources_of(&archives_in(lines));
        assert!(
            text.contains("URIs: http://a/archive/debian/20261120T000000Z\nSuites: bookworm\n"),
            "{text}"
        );
        assert!(
            text.contains("debian-security/20261120T000000Z\nSuites: bookworm-security\n"),
            "{text}"
        );
        assert_eq!(text.matches("Check-Valid-Until: no\n").count(), 2);
    }

    #[test]
    fn archives_are_those_that_apt_would_fetch_from() {
        let lines = "'http://a/debian/dists/trixie/InRelease' a_debian_dists_trixie_InRelease 0 \n\
                     'http://a/debian/dists/trixie/main/binary-amd64/Packages.xz' x 0\n\
                     'http://a/debian-security/dists/trixie-security/InRelease' y 0\n\
                     'http://b/tools/dists/all/InRelease' z 0\nReading package lists...\n";
        assert_eq!(
            archives_in(lines),
            "http://a/debian http://a/debian http://a/debian-security"
        );
        let text = sources_of(&archives_in(lines));
        assert_eq!(text.matches("Types:").count(), 2);
    }

    #[test]
    fn without_an_archive_of_debian_its_own_are_taken() {
        let ubuntu = || {
            Ok(
                "'http://a/ubuntu/dists/noble/InRelease' a_ubuntu_dists_noble_InRelease 0 \n"
                    .into(),
            )
        };
        assert_eq!(sources_named_or_known(None, ubuntu).unwrap(), "");
        assert_eq!(sources_named_or_known(Some(" "), ubuntu).unwrap(), "");
        let named = sources_named_or_known(Some("http://b/debian"), ubuntu).unwrap();
        assert!(named.contains("URIs: http://b/debian\n"), "{named}");
        let text = sources_of_debian();
        assert_eq!(text.matches("Types: deb deb-src\n").count(), 2);
        assert!(text.contains("/debian\nSuites: bookworm bookworm-updates\n"));
        assert!(text.contains("/debian-security\nSuites: bookworm-security\n"));
    }

    #[test]
    fn an_archive_out_of_reach_is_not_one_without_the_version() {
        let files = [PinnedFile {
            name: "some_1.deb".into(),
            sha256: String::new(),
        }];
        let say = |out_of_reach| {
            let missing = anyhow::anyhow!("no version 1");
            let error = not_there(missing, out_of_reach, &files, Path::new("/cache"));
            format!("{error:#}")
        };
        let full = anyhow::anyhow!("The disk is full: make room");
        let full = not_there(full, None, &files, Path::new("/cache"));
        assert_eq!(format!("{full:#}"), "The disk is full: make room");
        let gone = say(None);
        assert!(
            gone.contains("no such version any more") && gone.contains("no version 1"),
            "{gone}"
        );
        let unreachable = say(Some(anyhow::anyhow!("cannot connect")));
        assert!(
            unreachable.contains("out of reach") && unreachable.contains("cannot connect"),
            "{unreachable}"
        );
        for text in [gone, unreachable] {
            assert!(
                text.contains("put some_1.deb into /cache by hand"),
                "{text}"
            );
        }
    }

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
