//! Rules on the tree as a whole: sizes, foreign places, pinned actions.

use super::{File, Finding};

/// Larger files stay out of the history for ever, so they are kept out of it.
const FILE_BYTES_MAX: u64 = 1_500_000;

/// No large files.
pub(super) fn large_files(files: &[File]) -> Vec<Finding> {
    files
        .iter()
        .filter(|file| file.bytes > FILE_BYTES_MAX)
        .map(|file| {
            Finding::new(
                &file.path,
                format!("{} bytes, more than {FILE_BYTES_MAX}", file.bytes),
            )
        })
        .collect()
}

/// Folders at the root of a machine that belong to one person or one runner.
const MACHINE_FOLDERS: [&str; 4] = ["home", "root", "Users", "work"];

/// Hosts of package registries: the tools know theirs, and mirrors must work.
const REGISTRY_HOSTS: [&str; 5] = [
    concat!("py", "pi.org"),
    concat!("registry.np", "mjs"),
    concat!("deb.deb", "ian.org"),
    concat!("static.cra", "tes.io"),
    concat!("index.cra", "tes.io"),
];

/// Nothing names the machine it was made on, or the host of a registry.
pub(super) fn foreign_places(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.name() != "Cargo.lock") {
        for (number, line) in file.lines() {
            if let Some(folder) = MACHINE_FOLDERS
                .iter()
                .find(|folder| names_folder(line, folder))
            {
                findings.push(Finding::at(
                    file,
                    number,
                    format!("names a path below /{folder}"),
                ));
            }
            if let Some(host) = REGISTRY_HOSTS.iter().find(|host| line.contains(*host)) {
                findings.push(Finding::at(
                    file,
                    number,
                    format!("names the registry host {host}"),
                ));
            }
        }
    }
    findings
}

/// Whether a path below the root's `folder` begins somewhere in the line (a relative path or an address may
/// hold the same letters).
fn names_folder(line: &str, folder: &str) -> bool {
    let path = format!("/{folder}/");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + path.len()..].chars().next();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/})>".contains(c))
            && after.is_some_and(|c| c.is_alphanumeric() || c == '.')
    })
}

/// Workflows name actions by commit, with the version beside: a tag can be moved.
pub(super) fn pinned_actions(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.path.starts_with(".github/"))
    {
        for (number, line) in file.lines() {
            let Some((_, action)) = line.split_once("uses: ") else {
                continue;
            };
            let (action, version) = action.split_once(" # ").unwrap_or((action, ""));
            let commit = action.rsplit('@').next().unwrap_or_default();
            let is_commit = commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit());
            if !(action.starts_with("./") || is_commit && version.starts_with('v')) {
                findings.push(Finding::at(
                    file,
                    number,
                    "pin as `name@<commit> # v<version>`",
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::test_files::file;
    use super::*;

    #[test]
    fn a_large_file_is_found() {
        let of = |bytes| File {
            path: "a.bin".to_owned(),
            bytes,
            text: None,
        };
        assert_eq!(large_files(&[of(FILE_BYTES_MAX)]), []);
        assert_eq!(large_files(&[of(FILE_BYTES_MAX + 1)]).len(), 1);
    }

    #[test]
    fn a_machine_s_path_is_found_but_not_a_relative_one() {
        let places = |line: &str| foreign_places(&[file("a.md", line)]).len();
        for folder in MACHINE_FOLDERS {
            assert_eq!(places(&format!("cd /{folder}/somebody")), 1, "{folder}");
            assert_eq!(
                places(&format!("see docs/{folder}/page and a.b/{folder}/c")),
                0,
                "{folder}"
            );
        }
    }

    #[test]
    fn a_registry_s_host_is_found() {
        for host in REGISTRY_HOSTS {
            assert_eq!(
                foreign_places(&[file("a.toml", &format!("https://{host}/x"))]).len(),
                1
            );
        }
    }

    #[test]
    fn an_action_by_tag_is_found() {
        let uses = |action: &str| {
            pinned_actions(&[file(
                ".github/workflows/a.yml",
                &format!("  - uses: {action}\n"),
            )])
            .len()
        };
        assert_eq!(uses("actions/checkout@v5"), 1);
        assert_eq!(uses(&format!("actions/checkout@{}", "a".repeat(40))), 1);
        assert_eq!(
            uses(&format!("actions/checkout@{} # v5.0.0", "a".repeat(40))),
            0
        );
    }
}
