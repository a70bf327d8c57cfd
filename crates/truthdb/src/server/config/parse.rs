//! Reading a configuration file and the environment.

use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::DeTable;

use super::Config;
use super::keys::{KEYS, Key, SECTIONS};

/// Environment variables that override keys begin so; the rest is `<SECTION>__<KEY>`.
const ENVIRONMENT_PREFIX: &str = "TRUTHDB_";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A value, or the file's syntax, is wrong.
    #[error("{place}: {reason}")]
    Wrong {
        /// `file:line`, or the environment variable.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

/// A configuration, and what to tell the operator about it.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Unknown keys, each with its place and the nearest known one.
    pub warnings: Vec<String>,
}

/// Parses one TOML value.
pub(super) fn value(text: &str) -> Result<Value, String> {
    let line = format!("value = {text}");
    let mut table: toml::Table = line
        .parse()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    match table.remove("value") {
        Some(value) if table.is_empty() => Ok(value),
        _ => Err("not one value".into()),
    }
}

/// Reads the file, if one is given, and then the environment.
///
/// # Errors
///
/// The first value that is not acceptable, with its place.
pub(crate) fn load(
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded {
        config: Config::defaults(),
        warnings: Vec::new(),
    };
    let mut source = "the defaults and the environment".to_owned();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        source = path.display().to_string();
        apply_file(&mut loaded, &source, &text)?;
    }
    apply_environment(&mut loaded, environment)?;
    loaded
        .config
        .finish()
        .map_err(|reason| ConfigError::Wrong {
            place: source,
            reason,
        })?;
    Ok(loaded)
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

fn apply_file(loaded: &mut Loaded, file: &str, text: &str) -> Result<(), ConfigError> {
    let place = |offset: usize| format!("{file}:{}", line_of(text, offset));
    let wrong = |offset, reason| ConfigError::Wrong {
        place: place(offset),
        reason,
    };
    let syntax = |error: toml::de::Error| {
        let offset = error.span().map_or(0, |span| span.start);
        wrong(offset, error.message().to_owned())
    };
    // Once for the places, once for the values.
    let places = DeTable::parse(text).map_err(syntax)?;
    let values: toml::Table = text.parse().map_err(syntax)?;
    // In the order of the file, which the parser's table does not keep.
    let mut sections: Vec<_> = places.get_ref().iter().collect();
    sections.sort_by_key(|(section, _)| section.span().start);
    for (section, content) in sections {
        let at = section.span().start;
        let section = section.get_ref().as_ref();
        let Some(keys) = content.get_ref().as_table() else {
            let known = nearest(section, KEYS.iter().map(|key| key.name));
            let hint = known
                .and_then(|name| KEYS.iter().find(|key| key.name == name))
                .map_or_else(String::new, |key| {
                    format!("; did you mean {} in section [{}]?", key.name, key.section)
                });
            let warning = format!(
                "{}: unknown key {section} outside any section{hint}",
                place(at)
            );
            loaded.warnings.push(warning);
            continue;
        };
        if !SECTIONS.iter().any(|(name, _)| *name == section) {
            let hint = did_you_mean(section, SECTIONS.iter().map(|(name, _)| *name));
            loaded
                .warnings
                .push(format!("{}: unknown section [{section}]{hint}", place(at)));
            continue;
        }
        let mut keys: Vec<_> = keys.iter().collect();
        keys.sort_by_key(|(name, _)| name.span().start);
        for (name, content) in keys {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            let Some(key) = find(section, name) else {
                let hint = did_you_mean(name, names(section));
                let warning = format!("{}: unknown key {section}.{name}{hint}", place(at));
                loaded.warnings.push(warning);
                continue;
            };
            let value = values
                .get(section)
                .and_then(|section| section.get(name))
                .expect("both passes see the same keys");
            (key.set)(&mut loaded.config, value).map_err(|reason| {
                wrong(content.span().start, format!("{section}.{name}: {reason}"))
            })?;
        }
    }
    Ok(())
}

fn apply_environment(
    loaded: &mut Loaded,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    // In the order of their names, so that messages do not depend on the environment's order.
    let mut variables: Vec<_> = environment.collect();
    variables.sort();
    for (variable, text) in variables {
        let Some((section, name)) = variable
            .strip_prefix(ENVIRONMENT_PREFIX)
            .and_then(|rest| rest.split_once("__"))
            .map(|(section, name)| (section.to_lowercase(), name.to_lowercase()))
        else {
            continue;
        };
        let Some(key) = find(&section, &name) else {
            let hint = did_you_mean(&name, names(&section));
            let warning =
                format!("environment variable {variable}: unknown key {section}.{name}{hint}");
            loaded.warnings.push(warning);
            continue;
        };
        // Strings may be given without their quotes.
        let parsed = value(&text).unwrap_or_else(|_| Value::String(text.clone()));
        (key.set)(&mut loaded.config, &parsed)
            .or_else(|reason| {
                (key.set)(&mut loaded.config, &Value::String(text.clone())).map_err(|_| reason)
            })
            .map_err(|reason| ConfigError::Wrong {
                place: format!("environment variable {variable}"),
                reason: format!("{section}.{name}: {reason}"),
            })?;
    }
    Ok(())
}

fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
}

fn names(section: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter()
        .filter(move |key| key.section == section)
        .map(|key| key.name)
}

fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |known| format!("; did you mean {known}?"))
}

/// The known name that is nearest to `name`, if one is near enough to be meant.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Loaded, String> {
        let mut loaded = Loaded {
            config: Config::defaults(),
            warnings: Vec::new(),
        };
        apply_file(&mut loaded, "file.toml", text).map_err(|error| error.to_string())?;
        loaded.config.finish()?;
        Ok(loaded)
    }

    #[test]
    fn the_defaults_of_the_engine_are_those_of_the_table() {
        let config = Config::defaults();
        assert_eq!(config.engine, truthdb_engine::EngineConfig::default());
        assert_eq!(config.compute, truthdb_compute::ComputeConfig::default());
        assert_eq!(config.listen.http.to_string(), "127.0.0.1:7433");
    }

    #[test]
    fn every_key_belongs_to_a_section_and_none_is_listed_twice() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(
                SECTIONS.iter().any(|(name, _)| *name == key.section),
                "{}",
                key.section
            );
            let twice = KEYS[..index]
                .iter()
                .any(|k| k.section == key.section && k.name == key.name);
            assert!(!twice, "{}.{}", key.section, key.name);
        }
    }

    #[test]
    fn values_are_taken_up_with_their_units() {
        let loaded = parse(
            "[engine]\ngroup_bytes_max = \"128 KiB\"\ncompression = \"zstd\"\n\
             [durability]\ninterval_ms = 7\nmode = \"flush-interval\"\n\
             [node]\nroles = [\"query\"]\n",
        )
        .unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        assert_eq!(loaded.config.engine.group_bytes_max, 128 << 10);
        assert!(loaded.config.engine.compress);
        assert!(!loaded.config.engine.ingest);
        let interval = std::time::Duration::from_millis(7);
        assert_eq!(
            loaded.config.engine.durability,
            truthdb_engine::Durability::FlushInterval(interval)
        );
    }

    #[test]
    fn unknown_keys_warn_with_line_and_nearest_key() {
        let loaded = parse("[listen]\nhtpp = \"x\"\n[lisen]\na = 1\n").unwrap();
        assert_eq!(
            loaded.warnings,
            [
                "file.toml:2: unknown key listen.htpp; did you mean http?",
                "file.toml:3: unknown section [lisen]; did you mean listen?",
            ]
        );
    }

    #[test]
    fn bad_values_fail_with_line_and_reason() {
        for (text, expected) in [
            (
                "[limits]\n\nconnections_max = 0\n",
                "file.toml:3: limits.connections_max: 0 is out",
            ),
            (
                "[node]\nroles = [\"computer\"]\n",
                "file.toml:2: node.roles: \"computer\" is not a role",
            ),
            (
                "[compute]\nsnapshot_every_events = 7\n",
                "file.toml:2: compute.snapshot_every_events: 7 is out",
            ),
            (
                "[log]\nlevel = 3\n",
                "file.toml:2: log.level: expected a string, found the integer",
            ),
            ("[log\n", "file.toml:1: "),
            (
                "[engine]\ngroup_bytes_max = \"1 KiB\"",
                "file.toml:2: engine.group_bytes_max: 1024",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_network_address_without_tls_and_tokens_is_refused_unless_said_in_so_many_words() {
        let open = "[listen]\nhttp = \"0.0.0.0:7433\"\n";
        assert!(
            parse(open)
                .unwrap_err()
                .contains("neither TLS nor tokens are on")
        );
        let said = format!("{open}allow_insecure_off_loopback = true\n");
        assert!(parse(&said).is_ok());
        let tls = format!("{open}[tls]\nmode = \"self-signed\"\n");
        assert!(parse(&tls).unwrap_err().contains("tokens are off"));
        assert!(parse(&format!("{tls}[auth]\nenabled = true\n")).is_ok());
    }

    #[test]
    fn the_environment_overrides_and_is_checked() {
        let with =
            |name: &str, value: &str| load(None, [(name.to_owned(), value.to_owned())].into_iter());
        let loaded = with("TRUTHDB_LISTEN__HTTP", "127.0.0.1:1").unwrap();
        assert_eq!(loaded.config.listen.http.port(), 1);
        let loaded = with("TRUTHDB_AUTH__ENABLED", "true").unwrap();
        assert!(loaded.config.auth_enabled);
        let error = with("TRUTHDB_AUTH__ENABLED", "maybe")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("environment variable TRUTHDB_AUTH__ENABLED"),
            "{error}"
        );
        let loaded = with("TRUTHDB_AUTH__ENABLE", "true").unwrap();
        assert!(
            loaded.warnings[0].ends_with("did you mean enabled?"),
            "{:?}",
            loaded.warnings
        );
        assert!(with("TRUTHDB_SERVER", "x").unwrap().warnings.is_empty());
    }
}
