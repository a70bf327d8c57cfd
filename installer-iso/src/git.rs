//! What git knows of the sources: the version's commit, what it tracks, what it ignores, and all of it as an archive.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{output, tool};

/// Whether there is a history to ask; sources from an archive have none.
fn has_history(root: &Path) -> bool {
    // A folder, or in a second work tree a file.
    root.join(".git").exists()
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    output(tool("git").current_dir(root).args(arguments))
}

/// Version of the product with the commit that it is made from, and the commit's time. Sources without history have
/// the version alone.
///
/// # Errors
///
/// Git's, where there is a history: images that do not name their commit would pass for those of an archive.
pub(crate) fn version(root: &Path) -> Result<(String, u64)> {
    let number = env!("CARGO_PKG_VERSION");
    if !has_history(root) {
        return Ok((number.to_owned(), 0));
    }
    let asked = || -> Result<(String, u64)> {
        let commit = git(root, &["rev-parse", "--short=10", "HEAD"])?;
        let changed = !git(root, &["status", "--porcelain"])?.trim().is_empty();
        let epoch = git(root, &["log", "-1", "--format=%ct"])?;
        let epoch = epoch.trim().parse().context("the time of the commit")?;
        let dirty = if changed { "-changed" } else { "" };
        Ok((format!("{number}-g{}{dirty}", commit.trim()), epoch))
    };
    asked().with_context(|| {
        format!(
            "the version names the commit, and git does not say it (if the sources belong to another user: `git config \
             --global --add safe.directory {}`)",
            root.display()
        )
    })
}

/// Refuses a folder with files that git does not track: an editor's, say, which `git status` does not show where git
/// is told to ignore them, and which would get into an image that names a commit.
///
/// # Errors
///
/// The files, or git's.
pub(crate) fn check_tracked(root: &Path, folder: &str) -> Result<()> {
    if !has_history(root) {
        return Ok(());
    }
    // Without the rules about what is to be ignored.
    let others = git(root, &["ls-files", "--others", "--", folder])?;
    let others: Vec<&str> = others.lines().collect();
    ensure!(
        others.is_empty(),
        "git does not track {}, and everything in {folder} goes into images: `git add` it, or put it away",
        others.join(", ")
    );
    Ok(())
}

/// Refuses a place for artefacts among the sources: what git does not ignore changes the tree that they are made from.
///
/// # Errors
///
/// It is such a place, or git's errors.
pub(crate) fn check_place(root: &Path, place: &Path) -> Result<()> {
    let place = resolved(place)?;
    let root = root
        .canonicalize()
        .with_context(|| format!("looking at {}", root.display()))?;
    if !has_history(&root) || !place.starts_with(&root) {
        return Ok(());
    }
    let mut asking = tool("git");
    asking.current_dir(&root).args(["check-ignore", "-q", "--"]);
    let status = asking.arg(&place).status().context("starting git")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(1) => bail!(
            "{} is among the sources, and git does not ignore it: what is made there would change the tree that it is \
             made from. Give a place outside of {}, or below `dist` or `target`",
            place.display(),
            root.display()
        ),
        _ => bail!("`git check-ignore` ended with {status}"),
    }
}

/// A path without links and dots in what is there of it already.
fn resolved(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("in {}", path.display()))?;
    let mut missing: Vec<OsString> = Vec::new();
    let mut there = path.as_path();
    loop {
        if let Ok(mut whole) = there.canonicalize() {
            whole.extend(missing.iter().rev());
            return Ok(whole);
        }
        match (there.file_name(), there.parent()) {
            (Some(name), Some(parent)) => {
                missing.push(name.to_owned());
                there = parent;
            }
            _ => bail!("{} cannot be resolved", path.display()),
        }
    }
}

/// Packs everything that is tracked, as it is in the commit, with the commit's time and root as owner.
///
/// # Errors
///
/// Git's.
pub(crate) fn archive(root: &Path, prefix: &str, to: &Path) -> Result<()> {
    let to = std::path::absolute(to).context("the place of an archive")?;
    // Nobody's settings: modes, and which gzip.
    let settings = ["-c", "tar.umask=0022", "-c", "tar.tar.gz.command=gzip -n"];
    output(
        tool("git")
            .current_dir(root)
            .args(settings)
            .args(["archive", "--format=tar.gz"])
            .arg(format!("--prefix={prefix}/"))
            .arg("--output")
            .arg(&to)
            .arg("HEAD"),
    )
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with one commit, in which a file is ignored that the repository itself says nothing of.
    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let run = |arguments: &[&str]| git(root, arguments).unwrap();
        run(&["init", "-q"]);
        std::fs::create_dir(root.join("root")).unwrap();
        std::fs::write(root.join("root/inittab"), "init").unwrap();
        std::fs::write(root.join("program"), "#!/bin/sh\n").unwrap();
        std::fs::write(root.join(".gitignore"), "/dist\n").unwrap();
        std::fs::write(root.join(".git/info/exclude"), "*.swp\n").unwrap();
        commit(root, "one");
        folder
    }

    fn commit(root: &Path, message: &str) {
        git(root, &["add", "-A"]).unwrap();
        let who = ["-c", "user.name=x", "-c", "user.email=x@example.org"];
        let what = [
            "commit",
            "-q",
            "--no-gpg-sign",
            "--no-verify",
            "-m",
            message,
        ];
        git(root, &[&who[..], &what[..]].concat()).unwrap();
    }

    #[test]
    fn a_version_names_the_commit_and_whether_there_are_changes() {
        let folder = repository();
        let (version_before, epoch) = version(folder.path()).unwrap();
        let number = env!("CARGO_PKG_VERSION");
        assert!(
            version_before.starts_with(&format!("{number}-g")),
            "{version_before}"
        );
        assert!(epoch > 0);
        std::fs::write(folder.path().join("program"), "changed").unwrap();
        let (changed, _) = version(folder.path()).unwrap();
        assert_eq!(changed, format!("{version_before}-changed"));
    }

    #[test]
    fn sources_without_history_have_no_commit_and_a_history_that_git_cannot_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(
            version(root).unwrap(),
            (env!("CARGO_PKG_VERSION").to_owned(), 0)
        );
        // As where git is missing or says "dubious ownership": it fails, and there is something to ask it.
        std::fs::write(root.join(".git"), "gitdir: /nowhere\n").unwrap();
        let error = format!("{:#}", version(root).unwrap_err());
        assert!(error.contains("safe.directory"), "{error}");
        assert!(error.contains("git rev-parse"), "{error}");
    }

    #[test]
    fn a_file_that_git_ignores_is_found_before_it_gets_into_an_image() {
        let folder = repository();
        let root = folder.path();
        check_tracked(root, "root").unwrap();
        std::fs::write(root.join("elsewhere.swp"), "x").unwrap();
        check_tracked(root, "root").unwrap();
        std::fs::write(root.join("root/.inittab.swp"), "x").unwrap();
        assert!(
            !version(root).unwrap().0.ends_with("-changed"),
            "git status is silent"
        );
        let error = check_tracked(root, "root").unwrap_err().to_string();
        assert!(error.contains("root/.inittab.swp"), "{error}");
        // From an archive there is nobody to ask.
        std::fs::remove_dir_all(root.join(".git")).unwrap();
        check_tracked(root, "root").unwrap();
    }

    #[test]
    fn artefacts_go_where_they_do_not_change_the_tree() {
        let folder = repository();
        let root = folder.path();
        let outside = tempfile::tempdir().unwrap();
        let link = outside.path().join("link");
        std::os::unix::fs::symlink(root, &link).unwrap();
        for place in [
            root.join("dist/making"),
            link.join("dist"),
            outside.path().join("new/one"),
        ] {
            check_place(root, &place).unwrap();
        }
        for place in [
            root.join("out/making"),
            link.join("out"),
            root.join("making"),
        ] {
            let error = check_place(root, &place).unwrap_err().to_string();
            assert!(error.contains("among the sources"), "{error}");
        }
        std::fs::remove_dir_all(root.join(".git")).unwrap();
        check_place(root, &root.join("out")).unwrap();
    }

    #[test]
    fn an_archive_has_the_commit_and_repeats() {
        let folder = repository();
        let root = folder.path();
        std::fs::write(root.join("root/left.swp"), "x").unwrap();
        let packed = tempfile::tempdir().unwrap();
        let [one, other] = ["one.tar.gz", "other.tar.gz"].map(|name| packed.path().join(name));
        archive(root, "truthdb-1", &one).unwrap();
        // Other bits of the work tree, and other settings, are not in it.
        git(root, &["config", "tar.umask", "0077"]).unwrap();
        std::fs::write(root.join("program"), "changed").unwrap();
        archive(root, "truthdb-1", &other).unwrap();
        let [first, second] = [&one, &other].map(|path| std::fs::read(path).unwrap());
        assert!(first == second, "two archives of one commit differ");
        let listed = output(tool("tar").arg("-tvf").arg(&one)).unwrap();
        assert!(
            listed.lines().all(|line| line.contains(" root/root ")),
            "{listed}"
        );
        assert!(listed.contains("-rw-r--r--"), "{listed}");
        let names: Vec<&str> = listed
            .lines()
            .filter_map(|line| line.split(' ').next_back())
            .collect();
        let wanted = ["", ".gitignore", "program", "root/", "root/inittab"];
        assert_eq!(names, wanted.map(|name| format!("truthdb-1/{name}")));
    }
}
