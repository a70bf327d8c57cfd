//! Before the machine goes down: the server stops by itself, so that the next start has nothing to recover, and
//! nobody holds the data partition when it is unmounted. A line of `/etc/inittab`; init itself gives processes one
//! second only.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::launch;
use crate::log;
use crate::paths::System;

/// What the server takes after the time that its configuration gives to requests under way: it flushes.
const FLUSH_WAIT: Duration = Duration::from_secs(20);
/// The keeper of the log writes what it has been told.
const WATCH_WAIT: Duration = Duration::from_secs(5);
/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(20);

/// Stops the server, then the keeper of the log.
///
/// # Errors
///
/// One of them did not end in time.
pub(crate) fn run(system: &System) -> Result<()> {
    // Held open, so that what nobody has read yet outlives the processes that said it and the one that reads it.
    let pipe = log::open_pipe(system).ok();
    let server_wait = launch::shutdown_timeout(system) + FLUSH_WAIT;
    let server = stop(system, "server.pid", "truthdb", server_wait);
    // From here on it takes seconds, unless a disk hangs.
    let forced = start_last_resort(system);
    let watch = stop(system, "watch.pid", "truthdb-node", WATCH_WAIT);
    if let (Some(mut pipe), Ok(())) = (pipe, &watch) {
        log::take_waiting(&mut pipe, &mut |bytes| log::append(system, bytes))?;
    }
    server.and(watch).and(forced)
}

/// Starts the process that ends the machine when init cannot. Nobody waits for it.
fn start_last_resort(system: &System) -> Result<()> {
    let mut force = Command::new(system.path("bin/truthdb-node"));
    force
        .arg("force")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let started = force.stderr(Stdio::null()).spawn();
    started.map(drop).context("starting the last resort")
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

    #[test]
    fn what_nobody_has_read_is_written_at_the_end() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        std::fs::create_dir_all(system.data("log")).unwrap();
        std::fs::create_dir_all(system.path("bin")).unwrap();
        std::os::unix::fs::symlink("/bin/true", system.path("bin/truthdb-node")).unwrap();
        run(&system).unwrap();
        log::make_pipe(&system).unwrap();
        let mut pipe = log::open_pipe(&system).unwrap();
        pipe.write_all(b"stopped\n").unwrap();
        run(&system).unwrap();
        let log = std::fs::read_to_string(system.data("log/node.log")).unwrap();
        assert_eq!(log, "stopped\n");
    }
}
