//! Rules on single source files: headers, names, words, lengths, and the one door to the disk.

use anyhow::{Context as _, Result};

use super::{File, Finding, is_test};

/// Longer source files are named in the output, as a reminder.
const FILE_LINES_NOTED: usize = 800;
/// Longer source files are an error, unless the ratchet knows them.
const FILE_LINES_MAX: usize = 1000;
/// Columns of Rust files: rustfmt holds code to 100, and leaves comments to their author.
const RUST_COLUMNS_MAX: usize = 120;
/// Columns of prose and scripts.
const PROSE_COLUMNS_MAX: usize = 140;

/// Lengths that were there before the rule: they may shrink and never grow.
#[derive(Default)]
pub(super) struct Ratchet {
    entries: Vec<(String, usize)>,
}

impl Ratchet {
    /// Reads lines of the form `place lines`; `#` begins a comment.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut entries = Vec::new();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (place, lines) = line
                .rsplit_once(' ')
                .context("a ratchet line is `place lines`")?;
            entries.push((
                place.to_owned(),
                lines.parse().context("the ratchet counts lines")?,
            ));
        }
        Ok(Self { entries })
    }

    /// Judges a length: over the limit is a finding, unless the ratchet has exactly this length for
    /// the place.
    pub(super) fn judge(&self, place: &str, lines: usize, lines_max: usize) -> Option<String> {
        match self.entries.iter().find(|(known, _)| known == place) {
            Some((_, known)) if lines > *known => Some(format!(
                "grew from {known} to {lines} lines; it may only shrink"
            )),
            Some((_, known)) if lines < *known => Some(format!(
                "shrank to {lines} lines: say so in xtask/src/tidy/ratchet.txt"
            )),
            Some(_) => None,
            None if lines > lines_max => {
                Some(format!("{lines} lines, more than {lines_max}: split it"))
            }
            None => None,
        }
    }
}

/// Every module says in its first line what it is for.
pub(super) fn module_docs(files: &[File]) -> Vec<Finding> {
    let modules = files.iter().filter(|file| file.is_rust());
    modules
        .filter(|file| !file.text.as_deref().unwrap_or_default().starts_with("//! "))
        .map(|file| Finding::new(&file.path, "begin with `//! ` and what this file is for"))
        .collect()
}

/// Modules whose name says nothing attract everything.
pub(super) fn drawer_modules(files: &[File]) -> Vec<Finding> {
    const DRAWERS: [&str; 6] = ["utils", "util", "common", "helpers", "helper", "misc"];
    let is_drawer = |path: &str| {
        path.split('/')
            .any(|part| DRAWERS.contains(&part.strip_suffix(".rs").unwrap_or(part)))
    };
    files
        .iter()
        .filter(|file| file.is_rust() && is_drawer(&file.path))
        .map(|file| Finding::new(&file.path, "name the module by what it knows"))
        .collect()
}

/// Words that mean "not finished", put together here so that this file does not hold them.
const MARKS: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("to", "do!"),
    concat!("unimpl", "emented!"),
];

/// Nothing in the tree is unfinished.
pub(super) fn banned_words(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        if file.name() == "Cargo.lock" || file.name().ends_with(".csv") {
            continue;
        }
        for (number, line) in file.lines() {
            for mark in MARKS.iter().filter(|mark| has_word(line, mark)) {
                findings.push(Finding::at(
                    file,
                    number,
                    format!("`{mark}`: finish it, or say why not"),
                ));
            }
        }
    }
    findings
}

/// Whether `word` stands in `line` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(|c| is_part(c) && !word.ends_with('!'))
    })
}

/// Tests run, do not wait for time to pass, and are not repeated until they pass.
pub(super) fn honest_tests(files: &[File]) -> Vec<Finding> {
    const IGNORED: &str = concat!("#[ig", "nore");
    const SLEEPS: [&str; 2] = [concat!("thread::sl", "eep("), concat!("time::sl", "eep(")];
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let mut in_tests = is_test(&file.path);
        for (number, line) in file.lines() {
            in_tests |= line == "#[cfg(test)]";
            if line.contains(IGNORED) {
                findings.push(Finding::at(
                    file,
                    number,
                    "a test that does not run proves nothing",
                ));
            }
            if in_tests && SLEEPS.iter().any(|sleep| line.contains(sleep)) {
                findings.push(Finding::at(
                    file,
                    number,
                    "wait for the event, not for time to pass",
                ));
            }
        }
    }
    findings
}

/// Source files stay readable in one sitting.
pub(super) fn file_lengths(files: &[File], ratchet: &Ratchet) -> Vec<Finding> {
    let rust = files.iter().filter(|file| file.is_rust());
    rust.filter_map(|file| {
        let verdict = ratchet.judge(&file.path, file.lines().count(), FILE_LINES_MAX)?;
        Some(Finding::new(&file.path, verdict))
    })
    .collect()
}

/// Source files on their way to being too long.
pub(super) fn long_files(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.is_rust() && file.lines().count() > FILE_LINES_NOTED)
        .map(|file| format!("{} has {} lines", file.path, file.lines().count()))
        .collect()
}

/// Lines fit beside each other on a screen.
pub(super) fn line_lengths(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        let columns_max = match file.name().rsplit_once('.') {
            Some((_, "rs")) => RUST_COLUMNS_MAX,
            Some((_, "md" | "sh" | "py" | "proto")) => PROSE_COLUMNS_MAX,
            _ => continue,
        };
        for (number, line) in file.lines() {
            let columns = line.chars().count();
            if columns > columns_max && !cannot_break(line) {
                let message = format!("{columns} columns, more than {columns_max}");
                findings.push(Finding::at(file, number, message));
            }
        }
    }
    findings
}

/// Table rows, texts that stand alone in a line, and links cannot be broken into lines.
fn cannot_break(line: &str) -> bool {
    line.trim_start().starts_with(['|', '"'])
        || line.contains("](")
        || line.split_whitespace().any(|word| word.contains("://"))
}

/// `log` and `engine` reach disk and clock through `truthdb_io` only, so that a simulator can be
/// the other side.
/// clippy's list catches the calls; this catches the names.
pub(super) fn one_door(files: &[File]) -> Vec<Finding> {
    const NAMES: [&str; 6] = [
        "std::fs",
        "std::net",
        "std::thread::sleep",
        "std::env",
        "Instant",
        "SystemTime",
    ];
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| {
        ["crates/log/src/", "crates/engine/src/", "crates/event/src/"]
            .iter()
            .any(|source| file.path.starts_with(source))
            && file.is_rust()
            && !is_test(&file.path)
    }) {
        for (number, line) in file.product_lines() {
            let code = line.split("//").next().unwrap_or_default();
            for name in NAMES.iter().filter(|name| has_word(code, name)) {
                let message = format!("`{name}` is behind the door: go through `truthdb_io`");
                findings.push(Finding::at(file, number, message));
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
    fn a_module_without_a_header_is_found() {
        assert_eq!(module_docs(&[file("a.rs", "//! What it is for.\n")]), []);
        assert_eq!(module_docs(&[file("a.rs", "use std::io;\n")]).len(), 1);
        assert_eq!(module_docs(&[file("a.rs", "")]).len(), 1);
    }

    #[test]
    fn a_drawer_is_found_as_file_and_as_folder() {
        let drawer = |path| drawer_modules(&[file(path, "")]).len();
        assert_eq!(drawer("crates/x/src/utils.rs"), 1);
        assert_eq!(drawer("crates/x/tests/common/mod.rs"), 1);
        assert_eq!(drawer("crates/x/src/commons.rs"), 0);
    }

    #[test]
    fn each_mark_is_found_as_a_word_only() {
        for mark in MARKS {
            assert_eq!(
                banned_words(&[file("a.md", &format!("// {mark} later"))]).len(),
                1,
                "{mark}"
            );
        }
        let harmless = format!("{}S {}ED", MARKS[2], MARKS[3]);
        assert_eq!(banned_words(&[file("a.md", &harmless)]), []);
    }

    #[test]
    fn sleeping_and_ignored_tests_are_found() {
        let sleeping = concat!(
            "#[cfg(test)]\nmod tests {\n    std::thread::sl",
            "eep(x);\n}\n"
        );
        assert_eq!(honest_tests(&[file("a.rs", sleeping)]).len(), 1);
        let product = concat!("fn wait() {\n    std::thread::sl", "eep(x);\n}\n");
        assert_eq!(honest_tests(&[file("a.rs", product)]), []);
        let ignored = concat!("#[ig", "nore]\n");
        assert_eq!(honest_tests(&[file("a.rs", ignored)]).len(), 1);
    }

    #[test]
    fn a_long_file_is_found_and_the_ratchet_only_turns_one_way() {
        let of = |lines: usize| [file("a.rs", &"x\n".repeat(lines))];
        let none = Ratchet::default();
        assert_eq!(file_lengths(&of(FILE_LINES_MAX), &none), []);
        assert_eq!(file_lengths(&of(FILE_LINES_MAX + 1), &none).len(), 1);
        let known = Ratchet::parse("# known\na.rs 1200\n").unwrap();
        assert_eq!(file_lengths(&of(1200), &known), []);
        assert_eq!(file_lengths(&of(1201), &known).len(), 1);
        assert_eq!(file_lengths(&of(1199), &known).len(), 1);
    }

    #[test]
    fn long_lines_are_found_but_not_tables_and_links() {
        let long = "word ".repeat(40);
        assert_eq!(line_lengths(&[file("a.rs", &long)]).len(), 1);
        assert_eq!(line_lengths(&[file("a.md", &long)]).len(), 1);
        assert_eq!(line_lengths(&[file("a.md", &format!("| {long}"))]), []);
        assert_eq!(
            line_lengths(&[file("a.rs", &format!("// see https://{}", "x".repeat(200)))]),
            []
        );
        assert_eq!(line_lengths(&[file("a.csv", &long)]), []);
    }

    #[test]
    fn a_second_door_is_found_outside_of_tests() {
        let door = |path, text| one_door(&[file(path, text)]).len();
        assert_eq!(door("crates/log/src/a.rs", "use std::fs;\n"), 1);
        assert_eq!(
            door("crates/engine/src/a.rs", "let now = Instant::now();\n"),
            1
        );
        assert_eq!(
            door(
                "crates/engine/src/a.rs",
                "use std::time::Duration; // not std::fs\n"
            ),
            0
        );
        assert_eq!(
            door(
                "crates/log/src/a.rs",
                "#[cfg(test)]\nmod tests { use std::fs; }\n"
            ),
            0
        );
        assert_eq!(door("crates/truthdb/src/a.rs", "use std::fs;\n"), 0);
    }
}
