//! `/run/truthdb/state.json`: what the node did and found, for the console and for people. One object, a key for each
//! part; each writer replaces its own key, and the file as a whole, so that a reader never sees half of it.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

use crate::paths::System;

/// Sets a part of the state.
///
/// # Errors
///
/// What the file system in memory says.
pub(crate) fn set(system: &System, part: &str, value: Value) -> Result<()> {
    change(system, part, |was| *was = value)
}

/// Adds to a part of the state what is wrong; whatever else is known of it stays.
///
/// # Errors
///
/// As for [`set`].
pub(crate) fn set_problem(system: &System, part: &str, problem: &str) -> Result<()> {
    change(system, part, |was| {
        if !was.is_object() {
            *was = Value::Object(Map::new());
        }
        was["problem"] = problem.into();
    })
}

/// Changes a part of the state; a part that is not there yet is null.
///
/// # Errors
///
/// As for [`set`].
pub(crate) fn change(system: &System, part: &str, how: impl FnOnce(&mut Value)) -> Result<()> {
    let path = system.run("state.json");
    let folder = system.run("");
    std::fs::create_dir_all(&folder).context("making /run/truthdb")?;
    // Several verbs run at once: one writer at a time.
    let lock = File::create(system.run("state.lock")).context("making the lock of the state")?;
    lock.lock().context("locking the state")?;
    let mut state = read(system);
    how(state.entry(part).or_insert(Value::Null));
    let fresh = system.run("state.json.new");
    let mut file = File::create(&fresh).context("making the state")?;
    file.write_all(format!("{:#}\n", Value::Object(state)).as_bytes())
        .context("writing the state")?;
    replace(&fresh, &path)
}

/// What is wrong with a part of the state; empty if nothing is.
pub(crate) fn problem(system: &System, part: &str) -> String {
    let state = read(system);
    let problem = state.get(part).and_then(|part| part["problem"].as_str());
    problem.unwrap_or_default().to_owned()
}

/// The state; empty if there is none yet.
pub(crate) fn read(system: &System) -> Map<String, Value> {
    std::fs::read(system.run("state.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Gives a finished file its name.
///
/// # Errors
///
/// What the file system says.
#[expect(
    clippy::disallowed_methods,
    reason = "files in memory, and a log whose rotation may be lost in a power failure"
)]
pub(crate) fn replace(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("renaming to {}", to.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_do_not_touch_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        set(&system, "data", json!({"state": "missing"})).unwrap();
        set(&system, "network", json!({"state": "up"})).unwrap();
        set(&system, "data", json!({"state": "ready"})).unwrap();
        let state = read(&system);
        assert_eq!(state["data"]["state"], "ready");
        assert_eq!(state["network"]["state"], "up");
    }

    #[test]
    fn a_problem_is_added_to_what_is_known_and_goes_with_the_next_state() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        set_problem(&system, "server", "no space").unwrap();
        set(&system, "network", json!({"state": "up"})).unwrap();
        set_problem(&system, "network", "no route").unwrap();
        assert_eq!(problem(&system, "server"), "no space");
        assert_eq!(problem(&system, "network"), "no route");
        assert_eq!(read(&system)["network"]["state"], "up");
        set(&system, "network", json!({"state": "up"})).unwrap();
        assert_eq!(problem(&system, "network"), "");
    }
}
