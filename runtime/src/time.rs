//! The clock: BusyBox's `ntpd`, with the configured servers or those that DHCP names. Without any it waits; the state,
//! which the service console shows, and the log say that nothing sets the clock.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::config::NodeConfig;
use crate::log;
use crate::paths::System;
use crate::starts::Start;
use crate::state;

/// The clock's part of the state.
const PART: &str = "time";
/// What is said without time servers.
const NO_SERVERS: &str = "nothing sets the clock: no time server is configured or named by DHCP";
/// How often it is looked whether there are servers now.
const SERVERS_INTERVAL: Duration = Duration::from_secs(1);

/// Becomes the time client.
///
/// # Errors
///
/// A program of the image that cannot be started.
pub(crate) fn run(system: &System) -> Result<()> {
    Start::next(system, PART).wait(system, PART)?;
    let servers = loop {
        let servers = servers(system);
        let is_up = is_up(system);
        if is_up && !servers.is_empty() {
            break servers;
        }
        if is_up {
            tell_no_servers(system)?;
        }
        std::thread::sleep(SERVERS_INTERVAL);
    };
    let about = json!({ "state": "running", "servers": servers });
    state::set(system, PART, about)?;
    let mut client = Command::new(system.path("sbin/ntpd"));
    client.arg("-n");
    for server in &servers {
        client.args(["-p", server]);
    }
    log::redirect(system, &mut client)?;
    Err(client.exec()).context("starting ntpd")
}

fn is_up(system: &System) -> bool {
    let state = state::read(system);
    state
        .get("network")
        .is_some_and(|network| network["state"] == "up")
}

/// Says, once, that nothing sets the clock.
fn tell_no_servers(system: &System) -> Result<()> {
    if state::problem(system, PART) == NO_SERVERS {
        return Ok(());
    }
    log::say(system, PART, NO_SERVERS);
    let about = json!({ "state": "not set", "problem": NO_SERVERS });
    state::set(system, PART, about)
}

/// The configured servers, else those of DHCP.
fn servers(system: &System) -> Vec<String> {
    let (config, _) = NodeConfig::load(system);
    if !config.time_servers.is_empty() {
        return config.time_servers;
    }
    let state = state::read(system);
    let named = state
        .get("network")
        .and_then(|network| network["time_servers"].as_array());
    named
        .into_iter()
        .flatten()
        .filter_map(|server| server.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_nothing_sets_the_clock_is_in_the_state_and_once_in_the_log() {
        use std::io::Read as _;
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        log::make_pipe(&system).unwrap();
        let mut pipe = log::open_pipe(&system).unwrap();
        for _ in 0..2 {
            tell_no_servers(&system).unwrap();
        }
        assert_eq!(state::problem(&system, PART), NO_SERVERS);
        log::say(&system, "test", "end");
        let said = format!("time: {NO_SERVERS}\ntest: end\n");
        let mut bytes = vec![0; said.len()];
        pipe.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), said);
    }

    #[test]
    fn configured_servers_go_before_those_of_dhcp() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        assert_eq!(servers(&system), Vec::<String>::new());
        state::set(&system, "network", json!({ "time_servers": ["192.0.2.1"] })).unwrap();
        assert_eq!(servers(&system), ["192.0.2.1"]);
        std::fs::create_dir_all(system.data("config")).unwrap();
        std::fs::write(
            system.data("config/node.toml"),
            "time_servers = ['ntp.example']",
        )
        .unwrap();
        assert_eq!(servers(&system), ["ntp.example"]);
    }
}
