//! What a module says about itself, and which events it wants.

use std::collections::BTreeSet;

use wasmtime::component::{ComponentType, Lift, Lower};

use crate::MANIFEST_ITEMS_MAX;

/// The version of the contract between module and host.
pub const ABI_VERSION: u32 = 1;
/// Longest name of a module and of a table, in bytes. The shortest is 1.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest version text of a module, in bytes.
pub const VERSION_BYTES_MAX: usize = 64;
/// Longest pattern of a subscription, in bytes: a name of full length and the `*`.
const PATTERN_BYTES_MAX: usize = 256;

/// What a module does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum ModuleKind {
    /// Accepts or refuses events before they are appended.
    #[component(name = "validator")]
    Validator,
    /// Folds events into tables.
    #[component(name = "reducer")]
    Reducer,
    /// A reducer that also emits derived events.
    #[component(name = "processor")]
    Processor,
    /// Answers questions from tables of other modules.
    #[component(name = "query")]
    Query,
}

impl ModuleKind {
    /// The name of the world.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validator => "validator",
            Self::Reducer => "reducer",
            Self::Processor => "processor",
            Self::Query => "query",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Validator, Self::Reducer, Self::Processor, Self::Query]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// Whether its tables are its own, and written by it.
    pub fn owns_tables(self) -> bool {
        matches!(self, Self::Reducer | Self::Processor)
    }
}

impl std::fmt::Display for ModuleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A table of rows. Its index in [`Manifest::tables`] is its number in every call.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct TableDecl {
    /// Its name, unique in the manifest.
    pub name: String,
    /// Of the encoding of keys and values; shown by tools.
    pub version: u32,
    /// The module whose table is read, for validators and queries; empty if it is the module's own.
    pub module: String,
}

/// Events that a module wants. A pattern is an exact name, or a prefix and a final `*`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Subscription {
    /// Pattern of the stream's name. Only one that begins with `$` matches streams of the database.
    pub stream: String,
    /// Pattern of the event's type.
    #[component(name = "event-type")]
    pub event_type: String,
}

impl Subscription {
    /// Whether an event of this stream and type is wanted.
    pub fn matches(&self, stream: &str, event_type: &str) -> bool {
        (!stream.starts_with('$') || self.stream.starts_with('$'))
            && matches(&self.stream, stream)
            && matches(&self.event_type, event_type)
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// What a module says about itself; recorded when it is published.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Manifest {
    /// Its name: `a` to `z`, `0` to `9`, `-`; 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Its version, for people; at most [`VERSION_BYTES_MAX`] bytes.
    pub version: String,
    /// The contract it was built for.
    pub abi: u32,
    /// What it does.
    pub kind: ModuleKind,
    /// Which events it wants; empty for queries.
    pub subscriptions: Vec<Subscription>,
    /// The tables that it writes, or reads from others.
    pub tables: Vec<TableDecl>,
}

impl Manifest {
    /// The index of the first subscription that matches.
    pub fn subscription_of(&self, stream: &str, event_type: &str) -> Option<u32> {
        let index = self
            .subscriptions
            .iter()
            .position(|wanted| wanted.matches(stream, event_type))?;
        u32::try_from(index).ok()
    }

    /// Checks everything that does not depend on the database.
    ///
    /// # Errors
    ///
    /// A text that names the field and what it must be.
    pub fn check(&self) -> Result<(), String> {
        check_name("name", &self.name)?;
        if self.version.len() > VERSION_BYTES_MAX || self.version.chars().any(char::is_control) {
            return Err(format!(
                "version must be at most {VERSION_BYTES_MAX} bytes without control characters"
            ));
        }
        if self.abi != ABI_VERSION {
            return Err(format!(
                "abi is {}, this host has {ABI_VERSION}: rebuild the module with a matching SDK",
                self.abi
            ));
        }
        self.check_subscriptions()?;
        self.check_tables()
    }

    fn check_subscriptions(&self) -> Result<(), String> {
        let count = self.subscriptions.len();
        match self.kind {
            ModuleKind::Query if count > 0 => {
                return Err("a query gets no events: its subscriptions must be empty".to_owned());
            }
            ModuleKind::Query => {}
            _ if count == 0 => {
                return Err(format!("a {} needs at least one subscription", self.kind));
            }
            _ => {}
        }
        if count > MANIFEST_ITEMS_MAX {
            return Err(format!(
                "it has {count} subscriptions, at most {MANIFEST_ITEMS_MAX} are allowed"
            ));
        }
        for wanted in &self.subscriptions {
            for (field, pattern) in [
                ("stream", &wanted.stream),
                ("event-type", &wanted.event_type),
            ] {
                let name = pattern.strip_suffix('*').unwrap_or(pattern);
                if pattern.is_empty()
                    || pattern.len() > PATTERN_BYTES_MAX
                    || name.contains('*')
                    || name.chars().any(char::is_control)
                {
                    return Err(format!(
                        "the {field} pattern {pattern:?} must be a name of 1 to {PATTERN_BYTES_MAX} bytes, \
                         or a prefix and a final `*`"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), String> {
        let count = self.tables.len();
        if count > MANIFEST_ITEMS_MAX {
            return Err(format!(
                "it has {count} tables, at most {MANIFEST_ITEMS_MAX} are allowed"
            ));
        }
        let mut names = BTreeSet::new();
        for table in &self.tables {
            check_name("the name of a table", &table.name)?;
            if self.kind.owns_tables() {
                if !table.module.is_empty() {
                    return Err(format!(
                        "table {} names the module {}: a {} has tables of its own only",
                        table.name, table.module, self.kind
                    ));
                }
            } else {
                check_name(
                    &format!("the module of table {}", table.name),
                    &table.module,
                )?;
            }
            if !names.insert((&table.module, &table.name)) {
                return Err(format!("there are two tables of the name {}", table.name));
            }
        }
        Ok(())
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_allowed) {
        return Err(format!(
            "{what} is {name:?}: it must be 1 to {NAME_BYTES_MAX} bytes of a to z, 0 to 9, and `-`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            name: "balance".to_owned(),
            version: "1".to_owned(),
            abi: ABI_VERSION,
            kind: ModuleKind::Reducer,
            subscriptions: vec![wanted("account-*", "deposit"), wanted("*", "audit*")],
            tables: vec![TableDecl {
                name: "balances".to_owned(),
                version: 1,
                module: String::new(),
            }],
        }
    }

    fn wanted(stream: &str, event_type: &str) -> Subscription {
        Subscription {
            stream: stream.to_owned(),
            event_type: event_type.to_owned(),
        }
    }

    #[test]
    fn the_first_subscription_that_matches_counts() {
        let manifest = manifest();
        assert_eq!(manifest.subscription_of("account-1", "deposit"), Some(0));
        assert_eq!(manifest.subscription_of("account-1", "audited"), Some(1));
        assert_eq!(manifest.subscription_of("account-1", "deposits"), None);
        assert_eq!(manifest.subscription_of("x", "deposit"), None);
    }

    #[test]
    fn streams_of_the_database_are_matched_by_their_own_patterns_only() {
        assert!(!wanted("*", "*").matches("$module/balance", "activated"));
        assert!(wanted("$module/*", "*").matches("$module/balance", "activated"));
        assert!(!wanted("$module/*", "*").matches("module", "activated"));
    }

    #[test]
    fn each_mistake_is_named() {
        manifest().check().unwrap();
        let broken = |change: fn(&mut Manifest)| {
            let mut broken = manifest();
            change(&mut broken);
            broken.check().unwrap_err()
        };
        assert!(broken(|m| m.name = "Balance".to_owned()).contains("name is \"Balance\""));
        assert!(broken(|m| m.name = "a".repeat(65)).contains("64 bytes"));
        assert!(broken(|m| m.version = "v".repeat(65)).contains("version"));
        assert!(broken(|m| m.abi = 2).contains("abi is 2"));
        assert!(broken(|m| m.subscriptions.clear()).contains("at least one"));
        assert!(
            broken(|m| m.subscriptions[0].stream = "a*b".to_owned()).contains("stream pattern")
        );
        assert!(broken(|m| m.subscriptions[0].event_type.clear()).contains("event-type pattern"));
        assert!(broken(|m| m.tables[0].name.clear()).contains("name of a table"));
        assert!(broken(|m| m.tables[0].module = "x".to_owned()).contains("of its own only"));
        assert!(broken(|m| m.tables.push(m.tables[0].clone())).contains("two tables"));
        assert!(
            broken(|m| m.subscriptions = vec![wanted("a", "b"); MANIFEST_ITEMS_MAX + 1])
                .contains("65 subscriptions")
        );
        assert!(broken(|m| m.kind = ModuleKind::Query).contains("no events"));
        let of_no_module = broken(|m| m.kind = ModuleKind::Validator);
        assert!(of_no_module.contains("the module of table balances"));
    }

    #[test]
    fn kinds_have_names() {
        for kind in [
            ModuleKind::Validator,
            ModuleKind::Reducer,
            ModuleKind::Processor,
            ModuleKind::Query,
        ] {
            assert_eq!(ModuleKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(ModuleKind::from_name("filter"), None);
    }
}
