//! The reference page and the commented default file, made from the table of keys.

use std::fmt::Write as _;

use super::keys::{KEYS, SECTIONS};

/// Width of the comments in the default file.
const COMMENT_COLUMNS: usize = 96;

/// `docs/config.md`.
pub(crate) fn reference_page() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Made by `truthdb config reference`; a test compares. Change the table of keys. -->\n\n\
         One TOML file, given with `--config` or `TRUTHDB_CONFIG`. Every key is optional.\n\
         `truthdb config default` prints a commented file with every default, and\n\
         `truthdb config check FILE` checks one.\n\n\
         An environment variable `TRUTHDB_<SECTION>__<KEY>` overrides a key of the file, for \
         instance\n`TRUTHDB_LISTEN__HTTP=127.0.0.1:8000`. Sizes are numbers of bytes or strings \
         such as `\"64 MiB\"`.\nA key that is not known is a warning at start; a value that is \
         not accepted ends the start with\nfile, line and reason, and exit code 3.\n",
    );
    for (section, about) in SECTIONS {
        let _ = write!(page, "\n## [{section}]\n\n{about}\n\n");
        page.push_str("| key | default | accepts | meaning |\n|---|---|---|---|\n");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let _ = writeln!(
                page,
                "| `{}` | `{}` | {} | {} |",
                key.name, key.default, key.accepts, key.doc
            );
        }
    }
    page
}

/// A file with every key at its default, commented out.
pub(crate) fn default_file() -> String {
    let mut file = String::from(
        "# Configuration of TruthDB. Every key is optional; the values here are the defaults.\n",
    );
    for (section, about) in SECTIONS {
        let _ = write!(file, "\n# {about}\n[{section}]\n");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            for line in wrap(&format!("{} Accepts: {}.", key.doc, key.accepts)) {
                let _ = writeln!(file, "# {line}");
            }
            let _ = writeln!(file, "#{} = {}", key.name, key.default);
        }
    }
    file
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.len() + 1 + word.len() > COMMENT_COLUMNS {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TRUTHDB_BLESS=1 cargo test` writes the page.
    #[test]
    fn the_reference_page_is_the_one_in_the_docs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");
        if std::env::var_os("TRUTHDB_BLESS").is_some() {
            std::fs::write(path, reference_page()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            page,
            reference_page(),
            "run the tests once with TRUTHDB_BLESS=1"
        );
    }

    #[test]
    fn the_default_file_gives_the_defaults_without_warnings_even_when_uncommented() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("truthdb.toml");
        let uncommented: String = default_file()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        for text in [default_file(), uncommented] {
            std::fs::write(&path, text).unwrap();
            let loaded = super::super::load(Some(&path), std::iter::empty()).unwrap();
            assert_eq!(loaded.warnings, Vec::<String>::new());
            let defaults = super::super::Config::defaults();
            assert_eq!(format!("{:?}", loaded.config), format!("{defaults:?}"));
        }
    }
}
