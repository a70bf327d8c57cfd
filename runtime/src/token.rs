//! The service console's own access token on a node that nobody installed: a disk image that started for the first
//! time. The server makes the first token, the admin's; then this makes one that may only read, which the installer
//! would have made, so that the console can show events and rates.
//!
//! The token is kept on the data partition for root alone: whoever can read it there can read the events there as well.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::data::SERVER_ID;
use crate::launch::config_file;
use crate::log;
use crate::paths::System;
use crate::state;

/// What the token is called in the list of tokens, as the installer calls it.
const NAME: &str = "console";
/// How often it is looked whether the server has made its first token.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// Makes the token, if there is none and the server wants one.
///
/// # Errors
///
/// Why there is none; the next start of the node tries again.
pub(crate) fn run(system: &System) -> Result<()> {
    if !is_wanted(system) {
        return Ok(());
    }
    // Not before the admin's: the server makes that one only where there is no token at all.
    while !system.data("server/tokens.toml").exists() {
        std::thread::sleep(FIRST_INTERVAL);
    }
    make(system, Some(SERVER_ID))?;
    log::say(
        system,
        "token",
        "made the service console's own access token",
    );
    Ok(())
}

fn is_wanted(system: &System) -> bool {
    let state = state::read(system);
    let is_ready = state
        .get("data")
        .is_some_and(|data| data["state"] == "ready");
    is_ready && !system.data("config/console-token").exists() && demands_tokens(system)
}

/// Whether the server's configuration demands tokens; one that cannot be read is the server's to complain of.
fn demands_tokens(system: &System) -> bool {
    let text = std::fs::read_to_string(config_file(system)).unwrap_or_default();
    let config: toml::Table = toml::from_str(&text).unwrap_or_default();
    let enabled = config.get("auth").and_then(|auth| auth.get("enabled"));
    enabled.and_then(toml::Value::as_bool).unwrap_or(false)
}

/// Makes the token with the server's own program, as its user, since the files are its.
fn make(system: &System, user: Option<u32>) -> Result<()> {
    let truthdb = |words: &[&str]| {
        let mut command = Command::new(system.path("bin/truthdb"));
        command.arg("--config").arg(config_file(system)).args(words);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        command.output().context("starting truthdb")
    };
    // One whose text was lost between the two files: the power failed. That there is none is the rule.
    truthdb(&["token", "revoke", NAME])?;
    let made = truthdb(&["token", "create", NAME, "--permissions", "read"])?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(
        made.status.success(),
        "the service console has no access token, and shows no events: {}",
        said.trim()
    );
    let folder = system.data("config");
    std::fs::create_dir_all(&folder).context("making the folder of the configuration")?;
    let fresh = system.data("config/console-token.new");
    let mut file = OpenOptions::new();
    file.create(true).write(true).truncate(true).mode(0o600);
    let mut file = file.open(&fresh).context("making the file of the token")?;
    file.write_all(made.stdout.trim_ascii())
        .and_then(|()| file.sync_all())
        .context("writing the token")?;
    state::replace(&fresh, &system.data("config/console-token"))?;
    let folder = File::open(&folder).context("opening the folder of the configuration")?;
    folder.sync_all().context("keeping the token")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use serde_json::json;

    use super::*;

    /// A node whose `truthdb` is another program of this machine.
    fn node(truthdb: &str) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for path in ["bin", "etc", "data/server"] {
            std::fs::create_dir_all(system.path(path)).unwrap();
        }
        symlink(truthdb, system.path("bin/truthdb")).unwrap();
        std::fs::write(system.path("etc/truthdb.toml"), "[auth]\nenabled = true\n").unwrap();
        state::set(&system, "data", json!({ "state": "ready" })).unwrap();
        (folder, system)
    }

    #[test]
    fn a_token_that_may_read_is_made_and_kept_for_root() {
        let (_folder, system) = node("/bin/echo");
        assert!(is_wanted(&system));
        make(&system, None).unwrap();
        let path = system.data("config/console-token");
        let words = std::fs::read_to_string(&path).unwrap();
        assert!(
            words.ends_with("token create console --permissions read"),
            "{words}"
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!is_wanted(&system), "the next start leaves it");
    }

    #[test]
    fn a_refusal_leaves_no_file_that_looks_like_a_token() {
        let (_folder, system) = node("/bin/false");
        assert!(make(&system, None).is_err());
        assert!(is_wanted(&system));
    }

    #[test]
    fn no_token_is_made_without_a_disk_or_for_a_server_that_wants_none() {
        let (_folder, system) = node("/bin/false");
        state::set(&system, "data", json!({ "state": "unusable" })).unwrap();
        assert!(!is_wanted(&system));
        state::set(&system, "data", json!({ "state": "ready" })).unwrap();
        std::fs::write(system.path("etc/truthdb.toml"), "[listen]\n").unwrap();
        assert!(!is_wanted(&system));
    }
}
