//! docs/cli.md is what `--help` says. `TRUTHDB_BLESS=1` writes it anew.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

mod cli_support;
mod server_support;

use std::fmt::Write as _;

use cli_support::cli;

/// The subcommands that a help text lists; lines that only continue a description are indented more.
fn commands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    let names = listed
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned));
    names.filter(|name| name != "help").collect()
}

/// Options that every command takes: described once, at the top.
const GLOBAL: [&str; 9] = [
    "      --config <",
    "      --data <",
    "      --server <",
    "      --token <",
    "      --tls-fingerprint <",
    "      --tls-ca <",
    "      --json",
    "  -h, --help",
    "  -V, --version",
];

/// Without the options that every command takes.
fn own_part(help: &str) -> String {
    let mut kept = String::new();
    let mut skipping = false;
    for line in help.lines() {
        let begins_option = line.starts_with("      --") || line.starts_with("  -");
        if begins_option || !(line.is_empty() || line.starts_with(' ')) {
            skipping = GLOBAL.iter().any(|option| line.starts_with(option));
        }
        if !skipping {
            writeln!(kept, "{line}").unwrap();
        }
    }
    let kept = kept.trim_end();
    let kept = kept.strip_suffix("Options:").unwrap_or(kept);
    format!("{}\n", kept.trim_end())
}

fn describe(page: &mut String, path: &[String]) {
    let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let help = cli(&arguments).ok().stdout;
    let name: String = path.iter().map(|part| format!(" {part}")).collect();
    if !path.is_empty() {
        let level = "#".repeat(path.len() + 1);
        writeln!(page, "\n{level} truthdb{name}\n").unwrap();
    }
    let text = if path.is_empty() {
        help.clone()
    } else {
        own_part(&help)
    };
    let text: String = text
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    writeln!(page, "```text\n{}```", text).unwrap();
    for command in commands(&help) {
        let mut path = path.to_vec();
        path.push(command);
        describe(page, &path);
    }
}

#[test]
fn the_page_of_commands_is_what_the_program_says() {
    let mut page = String::from(
        "# Commands\n\n\
         <!-- Made from `--help` by the test cli_docs; TRUTHDB_BLESS=1 writes it anew. -->\n\n\
         The options of the program itself, shown first, may be given to every command.\n\n",
    );
    describe(&mut page, &[]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
    if std::env::var_os("TRUTHDB_BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == page,
        "docs/cli.md is not what --help says; TRUTHDB_BLESS=1 writes it anew"
    );
}

/// The page of faults names tests as `file::test`.
#[test]
fn every_test_that_the_page_of_faults_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let named = page.split('`').filter(|part| part.starts_with("crates/"));
    let mut count = 0;
    for name in named {
        let (file, test) = name.split_once("::").unwrap();
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(source.contains(&format!("fn {test}(")), "{name}");
        count += 1;
    }
    assert!(count > 30, "{count} tests are named");
}
