//! Style as tests: the rules of this repository that neither rustfmt nor clippy knows.
//!
//! Each check is a pure function over file names and texts (or over `cargo metadata`), returns what it found
//! as [`Finding`]s, and has its own unit tests. This module gathers the inputs and prints the findings.

mod arrows;
mod functions;
mod records;
mod source;
mod tree;

use std::fmt;

use anyhow::{Context as _, Result};

use crate::process::{cargo, command, output, root};
use crate::summary::Count;

/// Something that breaks a rule: where, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    place: String,
    message: String,
}

impl Finding {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }

    fn at(file: &File, line: usize, message: impl Into<String>) -> Self {
        Self::new(format!("{}:{line}", file.path), message)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A file of the repository.
pub(crate) struct File {
    /// Path from the root, with `/`.
    path: String,
    /// Length in bytes.
    bytes: u64,
    /// Its text; `None` for a file that is not UTF-8.
    text: Option<String>,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Lines with their numbers, from 1; none for a file that is not text.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .as_deref()
            .unwrap_or_default()
            .lines()
            .enumerate()
            .map(|(at, line)| (at + 1, line))
    }

    /// The lines before the unit tests at the end of a source file.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().take_while(|(_, line)| *line != "#[cfg(test)]")
    }
}

/// Files that a test may be: rules on length are for the product.
fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.contains("/tests/")
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
        || name.starts_with("test_")
}

/// Runs all checks and prints what they found; the answer is whether nothing was.
pub(crate) fn main() -> Result<bool> {
    let count = check()?;
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0)
}

/// Runs all checks; each is one test.
pub(crate) fn check() -> Result<Count> {
    let files = read_files()?;
    let metadata = output(cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata = serde_json::from_str(&metadata).context("`cargo metadata` printed no JSON")?;
    let ratchet = source::Ratchet::parse(include_str!("ratchet.txt"))?;
    let checks: [(&str, Vec<Finding>); 14] = [
        (
            "crates depend in one direction",
            arrows::directions(&metadata),
        ),
        (
            "crates inherit the lints of the workspace",
            arrows::lints_inherited(&metadata, &files),
        ),
        (
            "modules begin with a doc comment",
            source::module_docs(&files),
        ),
        ("no module is a drawer", source::drawer_modules(&files)),
        ("no left-over marks", source::banned_words(&files)),
        (
            "no ignored, sleeping or retrying tests",
            source::honest_tests(&files),
        ),
        ("files are short", source::file_lengths(&files, &ratchet)),
        ("functions are short", functions::lengths(&files, &ratchet)),
        ("lines are short", source::line_lengths(&files)),
        (
            "log and engine have one door to disk and clock",
            source::one_door(&files),
        ),
        ("no large files", tree::large_files(&files)),
        (
            "no machine's paths, no registry's hosts",
            tree::foreign_places(&files),
        ),
        ("actions are pinned by commit", tree::pinned_actions(&files)),
        (
            "decisions are numbered, dependencies explained",
            records::all(&files, &metadata),
        ),
    ];
    let mut count = Count::default();
    for (name, findings) in checks {
        if findings.is_empty() {
            count.passed += 1;
        } else {
            count.failed += 1;
            println!("tidy: {name}: {} findings", findings.len());
            for finding in findings {
                println!("  {finding}");
            }
        }
    }
    for note in source::long_files(&files) {
        println!("note: {note}");
    }
    Ok(count)
}

/// Every file that is tracked, or new and not ignored.
fn read_files() -> Result<Vec<File>> {
    let list = output(command("git").args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--deduplicate",
    ]))?;
    let mut files = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        let full = root().join(path);
        // A file that is deleted and not yet committed is still listed.
        if !full.is_file() {
            continue;
        }
        let content = std::fs::read(&full).with_context(|| format!("reading {path}"))?;
        let bytes = content.len() as u64;
        files.push(File {
            path: path.to_owned(),
            bytes,
            text: String::from_utf8(content).ok(),
        });
    }
    Ok(files)
}

#[cfg(test)]
mod test_files {
    use super::File;

    /// A file of the repository, for the tests of the checks.
    pub(super) fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            bytes: text.len() as u64,
            text: Some(text.to_owned()),
        }
    }
}
