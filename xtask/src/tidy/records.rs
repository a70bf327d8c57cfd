//! Decision records: numbered without gaps, titled, and one line in the record of dependencies for
//! each of them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::arrows::dependencies;
use super::{File, Finding};

const FOLDER: &str = "docs/adr/";
const DEPENDENCIES: &str = "docs/adr/0006-dependencies.md";

/// All rules on decision records.
pub(super) fn all(files: &[File], metadata: &Value) -> Vec<Finding> {
    let mut findings = numbering(files);
    findings.extend(explained(files, metadata));
    findings.extend(used(files, metadata));
    findings
}

/// Records are `NNNN-name.md`, from 0001 on, each number once, with the number in the title.
fn numbering(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut numbers = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with(FOLDER)) {
        let number = file.name().split('-').next().unwrap_or_default();
        match number.parse::<usize>() {
            Ok(value) if number.len() == 4 && file.name().ends_with(".md") => numbers.push(value),
            _ => {
                findings.push(Finding::new(&file.path, "name it `NNNN-title.md`"));
                continue;
            }
        }
        let title = file.lines().next().map_or("", |(_, line)| line);
        if !title.starts_with(&format!("# {number}")) {
            findings.push(Finding::new(
                &file.path,
                format!("begin with `# {number}` and a title"),
            ));
        }
    }
    numbers.sort_unstable();
    let expected: Vec<usize> = (1..=numbers.len()).collect();
    if numbers != expected {
        findings.push(Finding::new(
            FOLDER,
            format!("numbers have gaps or doubles: {numbers:?}"),
        ));
    }
    findings
}

/// The crates that have a line of their own in the record: `| `name` | ...`.
fn lines_of_record(files: &[File]) -> BTreeSet<&str> {
    let record = files.iter().find(|file| file.path == DEPENDENCIES);
    let lines = record.into_iter().flat_map(File::lines);
    lines
        .filter_map(|(_, line)| line.strip_prefix("| `")?.split('`').next())
        .collect()
}

/// Every direct dependency has its line in the record, and every line its dependency.
fn explained(files: &[File], metadata: &Value) -> Vec<Finding> {
    let explained = lines_of_record(files);
    let direct: BTreeSet<&str> = dependencies(metadata)
        .filter(|(_, _, is_own)| !is_own)
        .map(|(_, name, _)| name)
        .collect();
    let unexplained = direct.difference(&explained).map(|name| {
        Finding::new(
            DEPENDENCIES,
            format!("add a line for `{name}`: what for, why not own code"),
        )
    });
    let unused = explained.difference(&direct).map(|name| {
        Finding::new(
            DEPENDENCIES,
            format!("`{name}` is no dependency (any more): remove its line"),
        )
    });
    unexplained.chain(unused).collect()
}

/// The workspace lists no dependency that no crate has.
fn used(files: &[File], metadata: &Value) -> Vec<Finding> {
    let direct: BTreeSet<&str> = dependencies(metadata).map(|(_, name, _)| name).collect();
    let Some(manifest) = files.iter().find(|file| file.path == "Cargo.toml") else {
        return vec![Finding::new("Cargo.toml", "is missing")];
    };
    let section = manifest
        .lines()
        .skip_while(|(_, line)| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|(_, line)| !line.starts_with('['));
    section
        .filter(|(_, line)| !line.starts_with('#') && !line.contains("path = "))
        .filter_map(|(number, line)| Some((number, line.split_once(" = ")?.0)))
        .filter(|(_, name)| !direct.contains(name))
        .map(|(number, name)| Finding::at(manifest, number, format!("no crate uses `{name}`")))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::test_files::file;
    use super::*;

    fn metadata(dependency: &str) -> Value {
        json!({ "packages": [{ "name": "x", "dependencies": [{ "name": dependency, "path": null }] }] })
    }

    #[test]
    fn records_have_consecutive_numbers_and_titles() {
        let first = || file("docs/adr/0001-a.md", "# 0001: A\n");
        assert_eq!(
            numbering(&[first(), file("docs/adr/0002-b.md", "# 0002: B\n")]),
            []
        );
        assert_eq!(
            numbering(&[first(), file("docs/adr/0003-b.md", "# 0003: B\n")]).len(),
            1
        );
        assert_eq!(
            numbering(&[first(), file("docs/adr/0001-b.md", "# 0001: B\n")]).len(),
            1
        );
        assert_eq!(numbering(&[file("docs/adr/0001-a.md", "# A\n")]).len(), 1);
        assert_eq!(
            numbering(&[first(), file("docs/adr/notes.md", "# notes\n")]).len(),
            1
        );
    }

    #[test]
    fn a_dependency_without_a_line_and_a_line_without_a_dependency_are_found() {
        let record = [file(DEPENDENCIES, "| `anyhow` | errors of tools |\n")];
        assert_eq!(explained(&record, &metadata("anyhow")), []);
        assert_eq!(explained(&record, &metadata("other")).len(), 2);
    }

    #[test]
    fn a_dependency_that_no_crate_uses_is_found() {
        let manifest =
            "[workspace.dependencies]\n# Why.\nanyhow = \"1\"\nother = \"1\"\n\n[lints]\nx = 1\n";
        let found = used(&[file("Cargo.toml", manifest)], &metadata("anyhow"));
        assert_eq!(
            found,
            [Finding::new("Cargo.toml:4", "no crate uses `other`")]
        );
    }
}
