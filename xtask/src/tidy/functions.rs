//! Function lengths, read from the layout that rustfmt gives: a function ends at the first closing brace
//! that stands in the column where it began.

use super::source::Ratchet;
use super::{File, Finding, is_test};

/// Longer functions outside of tests are an error, unless the ratchet knows them.
const FUNCTION_LINES_MAX: usize = 100;

/// Functions that no longer fit on a screen.
pub(super) fn lengths(files: &[File], ratchet: &Ratchet) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.is_rust() && !is_test(&file.path))
    {
        for function in functions(file) {
            let place = format!("{}:{}", file.path, function.name);
            if let Some(verdict) = ratchet.judge(&place, function.lines, FUNCTION_LINES_MAX) {
                findings.push(Finding::new(place, verdict));
            }
        }
    }
    findings
}

struct Function<'a> {
    name: &'a str,
    lines: usize,
}

/// The functions before the unit tests of a file, with their lines from signature to closing brace.
fn functions(file: &File) -> Vec<Function<'_>> {
    let lines: Vec<&str> = file.product_lines().map(|(_, line)| line).collect();
    let mut functions = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let closes = |line: &&str| {
            line.strip_prefix(indent)
                .is_some_and(|rest| rest == "}" || rest == ";")
                || line.ends_with(';') && line.len() - line.trim_start().len() == indent.len()
        };
        let one_line = line.ends_with('}') || line.ends_with(';');
        let length = if one_line {
            1
        } else {
            lines[begin..].iter().take_while(|l| !closes(l)).count() + 1
        };
        functions.push(Function {
            name,
            lines: length,
        });
    }
    functions
}

/// The name of the function whose signature begins in this line.
fn function_name(line: &str) -> Option<&str> {
    const QUALIFIERS: [&str; 5] = ["async", "const", "unsafe", "extern", "\"C\""];
    let mut words = line.split_whitespace().skip_while(|word| {
        word.starts_with("pub")
            || word.starts_with("in") && word.ends_with(')')
            || QUALIFIERS.contains(word)
    });
    let name = words
        .next()
        .filter(|word| *word == "fn")
        .and_then(|_| words.next())?;
    Some(name.split(['(', '<']).next().unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::super::test_files::file;
    use super::*;

    fn of(lines: usize) -> String {
        format!(
            "    pub(crate) fn grown(\n        &self,\n    ) {{\n{}    }}\n",
            "        x;\n".repeat(lines - 4)
        )
    }

    #[test]
    fn a_long_function_is_found_with_its_exact_length() {
        let none = Ratchet::default();
        assert_eq!(lengths(&[file("a.rs", &of(FUNCTION_LINES_MAX))], &none), []);
        let found = lengths(&[file("a.rs", &of(FUNCTION_LINES_MAX + 1))], &none);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].to_string().contains("a.rs:grown: 101 lines"),
            "{}",
            found[0]
        );
    }

    #[test]
    fn lengths_are_of_each_function_alone() {
        let text = "fn a() {\n    x;\n}\n\nasync fn b() -> u8 {\n    1\n}\nfn c() {}\ntrait T {\n    fn d(&self);\n}\n";
        let file = file("a.rs", text);
        let found: Vec<_> = functions(&file).iter().map(|f| (f.name, f.lines)).collect();
        assert_eq!(found, [("a", 3), ("b", 3), ("c", 1), ("d", 1)]);
    }

    #[test]
    fn functions_in_tests_may_be_long() {
        let text = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", of(200));
        assert_eq!(lengths(&[file("a.rs", &text)], &Ratchet::default()), []);
    }
}
