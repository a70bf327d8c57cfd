//! Starting the server: when its disk is ready, as a user without privileges, and ever slower when it keeps failing.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::json;

use crate::config::NodeConfig;
use crate::data::SERVER_ID;
use crate::log;
use crate::paths::System;
use crate::starts::{PAUSE_MAX, Start};
use crate::state;

/// The server's part of the state.
const PART: &str = "server";
/// How often it is looked whether the data partition is ready.
const READY_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes that must be free on the data partition: without room for a segment, a server without a database cannot make
/// one.
const ROOM_BYTES_MIN: u64 = 64 << 20;
/// What is said of a server that does not start for want of them. The service console shows it as it stands.
const NO_ROOM: &str = "The data partition is full: the server does not start without space, and is tried again each \
                       minute. Its messages say more. Make room on the disk with another system, or install on a \
                       larger disk and restore a backup.";
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
    let mut start = Start::next(system, PART);
    tell(system, &mut start, free_bytes(system))?;
    start.wait(system, PART)?;
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
pub(crate) fn config_file(system: &System) -> PathBuf {
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

/// Says why a server that keeps ending is waited for. Want of space is said once in the log and waited for long: until
/// somebody makes room, a start only fills the log.
fn tell(system: &System, start: &mut Start, free_bytes: Option<u64>) -> Result<()> {
    let has_no_room = free_bytes.is_some_and(|free| free < ROOM_BYTES_MIN);
    let problem = match start.failures {
        0 => String::new(),
        _ if has_no_room => {
            start.pause = PAUSE_MAX;
            NO_ROOM.to_owned()
        }
        times => format!(
            "The server ended {times} times soon after its start; the next start is in {} s. \
             Its messages say why.",
            start.pause.as_secs()
        ),
    };
    if !problem.is_empty() && state::problem(system, PART) != problem {
        log::say(system, PART, &problem);
    }
    let problem = Some(problem).filter(|problem| !problem.is_empty());
    state::set(system, PART, json!({ "problem": problem }))
}

/// Bytes that the server may still write on the data partition.
fn free_bytes(system: &System) -> Option<u64> {
    let found = rustix::fs::statvfs(system.data("")).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Option<u64> = Some(1 << 40);
    const FULL: Option<u64> = Some(ROOM_BYTES_MIN - 1);

    /// What is told before the start after so many that did not last, and its pause.
    fn told(system: &System, failures: u64, free_bytes: Option<u64>) -> (String, u64) {
        let mut start = Start {
            failures,
            pause: Duration::from_secs(failures),
        };
        tell(system, &mut start, free_bytes).unwrap();
        (state::problem(system, PART), start.pause.as_secs())
    }

    #[test]
    fn a_server_without_room_is_waited_for_long_and_said_once() {
        use std::io::Read as _;
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        log::make_pipe(&system).unwrap();
        let mut pipe = log::open_pipe(&system).unwrap();
        // A full disk alone is no reason: a server with a database starts on it.
        assert_eq!(told(&system, 0, FULL), (String::new(), 0));
        for failures in 1..4 {
            assert_eq!(told(&system, failures, FULL), (NO_ROOM.to_owned(), 60));
        }
        let (problem, pause) = told(&system, 4, EMPTY);
        assert!(problem.contains("ended 4 times"), "{problem}");
        assert_eq!(pause, 4);
        assert_eq!(told(&system, 0, EMPTY), (String::new(), 0));
        let said = format!("server: {NO_ROOM}\nserver: {problem}\n");
        log::say(&system, "test", "end");
        let mut bytes = vec![0; said.len() + "test: end\n".len()];
        pipe.read_exact(&mut bytes).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            format!("{said}test: end\n")
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
