//! The clock: BusyBox's `ntpd`, with the configured servers or those that DHCP names. Without any it waits, and the
//! console says that nothing sets the clock.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::config::NodeConfig;
use crate::log;
use crate::paths::System;
use crate::state;

/// How often it is looked whether there are servers now.
const SERVERS_INTERVAL: Duration = Duration::from_secs(1);

/// Becomes the time client.
///
/// # Errors
///
/// A program of the image that cannot be started.
pub(crate) fn run(system: &System) -> Result<()> {
    let mut told = false;
    let servers = loop {
        let servers = servers(system);
        let is_up = state::read(system)
            .get("network")
            .is_some_and(|network| network["state"] == "up");
        if is_up && !servers.is_empty() {
            break servers;
        }
        if is_up && !told {
            let problem = "no time server is configured, and DHCP names none";
            state::set(
                system,
                "time",
                json!({ "state": "not set", "problem": problem }),
            )?;
            told = true;
        }
        std::thread::sleep(SERVERS_INTERVAL);
    };
    state::set(
        system,
        "time",
        json!({ "state": "running", "servers": servers }),
    )?;
    let mut client = Command::new(system.path("sbin/ntpd"));
    client.arg("-n");
    for server in &servers {
        client.args(["-p", server]);
    }
    log::redirect(system, &mut client)?;
    Err(client.exec()).context("starting ntpd")
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
