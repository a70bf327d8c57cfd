//! Starting the server: when its disk is ready, as a user without privileges, and ever slower when it keeps failing,
//! since init starts it again at once and for ever.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::{Value, json};

use crate::config::NodeConfig;
use crate::data::SERVER_ID;
use crate::log;
use crate::paths::System;
use crate::state;

/// How often it is looked whether the data partition is ready.
const READY_INTERVAL: Duration = Duration::from_millis(200);
/// A server that ran so long was started well: the next failure is the first again.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Longest pause between two starts.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Open files that the server may have: connections, segments, indexes.
const OPEN_FILES: u64 = 65_536;
/// Memory that it may pin for its ring.
const LOCKED_BYTES: u64 = 256 << 20;

/// Becomes the server.
///
/// # Errors
///
/// A program of the image that cannot be started.
pub(crate) fn serve(system: &System) -> Result<()> {
    wait_until_ready(system);
    let pause = pause_before_start(system)?;
    std::thread::sleep(pause);
    let (config, _) = NodeConfig::load(system);
    let limit = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, limit(OPEN_FILES)).context("setting the limit of open files")?;
    setrlimit(Resource::Memlock, limit(LOCKED_BYTES)).context("setting the limit of memory")?;
    let mut server = Command::new(system.path("bin/truthdb"));
    server
        .arg("--config")
        .arg(config_file(system))
        .arg("serve")
        .arg("--init-if-empty")
        .arg("--partitions")
        .arg(config.partitions.to_string())
        .uid(SERVER_ID)
        .gid(SERVER_ID)
        .current_dir(system.data(""));
    log::redirect(system, &mut server)?;
    // The first start shows an access token on standard output: for the console, never for the log.
    let mut shown = OpenOptions::new();
    shown.create(true).append(true).mode(0o600);
    let shown = shown.open(system.run("shown-once.txt"));
    server.stdout(shown.context("opening the file for what is shown once")?);
    // This process becomes the server, so its number is the server's.
    std::fs::write(system.run("server.pid"), std::process::id().to_string())
        .context("writing the number of the server's process")?;
    Err(server.exec()).context("starting the server")
}

/// The node's configuration, else the one that the image brings.
fn config_file(system: &System) -> PathBuf {
    let own = system.data("config/truthdb.toml");
    if own.is_file() {
        own
    } else {
        system.path("etc/truthdb.toml")
    }
}

fn wait_until_ready(system: &System) {
    let ready = || {
        let state = state::read(system);
        state
            .get("data")
            .is_some_and(|data| data["state"] == "ready")
    };
    while !ready() {
        std::thread::sleep(READY_INTERVAL);
    }
}

/// Notes this start, and how long to wait before it.
fn pause_before_start(system: &System) -> Result<Duration> {
    let now = uptime_seconds(system);
    let before = state::read(system).remove("server").unwrap_or_default();
    let (failures, pause) = judge(&before, now);
    state::set(
        system,
        "server",
        json!({ "started_at_uptime_s": now + pause.as_secs(), "quick_failures": failures }),
    )?;
    if failures > 0 {
        let text =
            format!("the server ended {failures} times soon after its start; next in {pause:?}");
        log::say(system, "serve", &text);
    }
    Ok(pause)
}

/// Starts in a row that did not last, and the pause before the next: 0, 1, 2, 4 … seconds.
fn judge(before: &Value, now: u64) -> (u64, Duration) {
    let Some(started) = before["started_at_uptime_s"].as_u64() else {
        return (0, Duration::ZERO);
    };
    if now.saturating_sub(started) >= RAN_WELL.as_secs() {
        return (0, Duration::ZERO);
    }
    let failures = before["quick_failures"].as_u64().unwrap_or(0) + 1;
    let doublings = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(10);
    (failures, Duration::from_secs(1 << doublings).min(PAUSE_MAX))
}

fn uptime_seconds(system: &System) -> u64 {
    let text = std::fs::read_to_string(system.path("proc/uptime")).unwrap_or_default();
    text.split('.')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_keeps_failing_is_started_ever_slower() {
        let mut state = Value::Null;
        let mut pauses = Vec::new();
        let mut now = 10;
        for _ in 0..9 {
            let (failures, pause) = judge(&state, now);
            pauses.push(pause.as_secs());
            now += pause.as_secs();
            state = json!({ "started_at_uptime_s": now, "quick_failures": failures });
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(
            judge(&state, now + 60),
            (0, Duration::ZERO),
            "it ran well for a minute"
        );
    }

    #[test]
    fn the_nodes_own_configuration_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        assert_eq!(config_file(&system), system.path("etc/truthdb.toml"));
        std::fs::create_dir_all(system.data("config")).unwrap();
        std::fs::write(system.data("config/truthdb.toml"), "").unwrap();
        assert_eq!(config_file(&system), system.data("config/truthdb.toml"));
    }
}
