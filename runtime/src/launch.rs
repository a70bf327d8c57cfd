//! Starting the server: when its disk is ready, as a user without privileges, and ever slower when it keeps failing.

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
use crate::starts::{PAUSE_MAX, Start};
use crate::state;

/// The server's part of the state.
const PART: &str = "server";
/// A server that ran so long was started well. One that is killed for want of memory, or stops because of what it
/// reads, may take minutes to get there.
const RAN_WELL: Duration = Duration::from_secs(600);
/// What the server takes for `limits.shutdown_timeout_s` unless its configuration says another.
const SHUTDOWN_TIMEOUT_S: u64 = 20;
/// The most that it takes for it.
const SHUTDOWN_TIMEOUT_S_MAX: u64 = 600;
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
    let mut start = Start::next_unless(system, PART, RAN_WELL);
    tell(system, &mut start, free_bytes(system))?;
    start.wait(system, PART)?;
    tell_started(system, &start)?;
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

/// Says that the server ended, each time, and when it is started again. Want of space is said once in the log and
/// waited for long: until somebody makes room, a start only fills the log.
fn tell(system: &System, start: &mut Start, free_bytes: Option<u64>) -> Result<()> {
    let has_no_room = free_bytes.is_some_and(|free| free < ROOM_BYTES_MIN);
    let problem = if has_no_room && start.failures > 0 {
        start.pause = PAUSE_MAX;
        Some(NO_ROOM.to_owned())
    } else {
        ended(start).map(|ended| match start.pause.as_secs() {
            0 => format!("{ended}; it is started again. Its messages say why."),
            pause => format!("{ended}; it is started again in {pause} s. Its messages say why."),
        })
    };
    if let Some(problem) = &problem
        && (problem != NO_ROOM || state::problem(system, PART) != NO_ROOM)
    {
        log::say(system, PART, problem);
    }
    state::set(system, PART, json!({ "problem": problem }))
}

/// What is shown of a server that was started again, until it answers; and for the end what its configuration says of
/// it now.
fn tell_started(system: &System, start: &Start) -> Result<()> {
    let shutdown_timeout_s = configured_shutdown_timeout_s(system);
    state::change(system, PART, |server| {
        if let Some(ended) = ended(start).filter(|_| server["problem"] != NO_ROOM) {
            let text = format!(
                "{ended}; it was started again, and is opening the database. Its messages say why it ended."
            );
            server["problem"] = text.into();
        }
        server["shutdown_timeout_s"] = shutdown_timeout_s.into();
    })
}

/// That the server ended, if it was started before.
fn ended(start: &Start) -> Option<String> {
    let ran = human(start.ran?);
    Some(match start.failures {
        0 | 1 => format!("The server ended after {ran}"),
        times => format!("The server ended {times} times in a row, at last after {ran}"),
    })
}

/// A time in its largest unit that says enough.
fn human(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How long the server that runs gives to requests under way when it is stopped. As it was at its start, and without
/// the disk, which may hang.
pub(crate) fn shutdown_timeout(system: &System) -> Duration {
    let state = state::read(system);
    let noted = state.get(PART).map(|server| &server["shutdown_timeout_s"]);
    let seconds = noted.and_then(Value::as_u64);
    Duration::from_secs(seconds.unwrap_or(SHUTDOWN_TIMEOUT_S))
}

fn configured_shutdown_timeout_s(system: &System) -> u64 {
    let text = std::fs::read_to_string(config_file(system)).unwrap_or_default();
    let config: toml::Table = toml::from_str(&text).unwrap_or_default();
    let limits = config.get("limits");
    let seconds = limits.and_then(|limits| limits.get("shutdown_timeout_s")?.as_integer());
    // A server that is told something else does not start.
    seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds <= SHUTDOWN_TIMEOUT_S_MAX)
        .unwrap_or(SHUTDOWN_TIMEOUT_S)
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
            ran: (failures > 0).then_some(Duration::from_secs(3)),
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
        assert_eq!(
            problem,
            "The server ended 4 times in a row, at last after 3 s; it is started again in 4 s. Its messages say why."
        );
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
    fn every_end_of_the_server_is_said_and_what_comes_after_it_is_shown() {
        use std::io::Read as _;
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        std::fs::create_dir_all(system.path("proc")).unwrap();
        log::make_pipe(&system).unwrap();
        let mut pipe = log::open_pipe(&system).unwrap();
        let mut now = 10;
        let mut shown = Vec::new();
        for ran in [0, 90, 599, 600] {
            now += ran;
            std::fs::write(system.path("proc/uptime"), format!("{now}.00 1.00\n")).unwrap();
            let mut start = Start::next_unless(&system, PART, RAN_WELL);
            tell(&system, &mut start, EMPTY).unwrap();
            start.note(&system, PART).unwrap();
            now += start.pause.as_secs();
            tell_started(&system, &start).unwrap();
            shown.push(state::problem(&system, PART));
        }
        let opening =
            "it was started again, and is opening the database. Its messages say why it ended.";
        assert_eq!(
            shown,
            [
                String::new(),
                format!("The server ended after 90 s; {opening}"),
                format!("The server ended 2 times in a row, at last after 9 min; {opening}"),
                format!("The server ended after 10 min; {opening}"),
            ]
        );
        let said = "server: The server ended after 90 s; it is started again in 1 s. Its messages say why.\n\
                    server: The server ended 2 times in a row, at last after 9 min; it is started again in 2 s. \
                    Its messages say why.\n\
                    server: The server ended after 10 min; it is started again. Its messages say why.\n";
        let mut bytes = vec![0; said.len()];
        pipe.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), said);
    }

    #[test]
    fn a_server_gets_the_time_to_stop_that_its_configuration_gave_at_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.path("etc")).unwrap();
        assert_eq!(shutdown_timeout(&system).as_secs(), 20);
        let mut start = Start::next(&system, PART);
        for (text, expected) in [
            ("[limits]\nshutdown_timeout_s = 300\n", 300),
            ("[limits]\nshutdown_timeout_s = 0\n", 0),
            ("[limits]\nshutdown_timeout_s = -1\n", 20),
            ("[limits]\nshutdown_timeout_s = 100000\n", 20),
            ("[limits]\n", 20),
            ("nonsense", 20),
        ] {
            std::fs::write(system.path("etc/truthdb.toml"), text).unwrap();
            tell(&system, &mut start, EMPTY).unwrap();
            tell_started(&system, &start).unwrap();
            assert_eq!(shutdown_timeout(&system).as_secs(), expected, "{text}");
        }
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
