//! Before the machine goes down: the server stops by itself, so that the next start has nothing to recover, and
//! nobody holds the data partition when it is unmounted. A line of `/etc/inittab`; init itself gives processes one
//! second only.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::paths::System;

/// The server answers what is under way for 20 seconds at most, then flushes.
const SERVER_WAIT: Duration = Duration::from_secs(40);
/// The keeper of the log ends at once.
const WATCH_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(20);

/// Stops the server, then the keeper of the log.
///
/// # Errors
///
/// None of them ended in time.
pub(crate) fn run(system: &System) -> Result<()> {
    let server = stop(system, "server.pid", "truthdb", SERVER_WAIT);
    let watch = stop(system, "watch.pid", "truthdb-node", WATCH_WAIT);
    server.and(watch)
}

fn stop(system: &System, file: &str, name: &str, wait: Duration) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(system.run(file)) else {
        // Never started.
        return Ok(());
    };
    let number: i32 = text.trim().parse().with_context(|| format!("in {file}"))?;
    let comm = system.path(format!("proc/{number}/comm"));
    // The number may be another process's by now.
    let is_there = || std::fs::read_to_string(&comm).is_ok_and(|found| found.trim() == name);
    if !is_there() {
        return Ok(());
    }
    let pid = Pid::from_raw(number).with_context(|| format!("in {file}"))?;
    kill_process(pid, Signal::TERM).with_context(|| format!("ending {name}"))?;
    for _ in 0..wait.as_millis() / INTERVAL.as_millis() {
        if !is_there() {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
    anyhow::bail!("{name} did not end within {} seconds", wait.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_never_was_or_is_another_now_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        stop(&system, "server.pid", "truthdb", Duration::ZERO).unwrap();
        std::fs::create_dir_all(system.run("")).unwrap();
        std::fs::create_dir_all(system.path("proc/1234567")).unwrap();
        std::fs::write(system.run("server.pid"), "1234567").unwrap();
        std::fs::write(system.path("proc/1234567/comm"), "other\n").unwrap();
        stop(&system, "server.pid", "truthdb", Duration::ZERO).unwrap();
    }
}
