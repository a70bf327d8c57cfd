//! Starts that do not last. init starts an ended process again at once and for ever, so whoever becomes a server or a
//! client waits before that: not at all at first, then ever longer while the starts before it did not last.

use std::time::Duration;

use anyhow::{Error, Result};
use serde_json::{Value, json};

use crate::log;
use crate::paths::System;
use crate::state;

/// What ran so long was started well: the next failure is the first again.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Longest pause between two starts.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Where starts are noted in the state, by part.
const STARTS: &str = "starts";

/// A start that is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// How many before it, in a row, did not last.
    pub(crate) failures: u64,
    /// How long to wait before it.
    pub(crate) pause: Duration,
    /// How long the one before it ran; `None` for the first.
    pub(crate) ran: Option<Duration>,
}

impl Start {
    /// The next start of a part of the node.
    pub(crate) fn next(system: &System, part: &str) -> Self {
        Self::next_unless(system, part, RAN_WELL)
    }

    /// The same for a part that was started well only if it ran so long.
    pub(crate) fn next_unless(system: &System, part: &str, ran_well: Duration) -> Self {
        judge(&noted(system, part), uptime_seconds(system), ran_well)
    }

    /// Notes the start, and waits until it is time.
    ///
    /// # Errors
    ///
    /// What the file system in memory says.
    pub(crate) fn wait(&self, system: &System, part: &str) -> Result<()> {
        self.note(system, part)?;
        std::thread::sleep(self.pause);
        Ok(())
    }

    pub(crate) fn note(&self, system: &System, part: &str) -> Result<()> {
        let at = uptime_seconds(system) + self.pause.as_secs();
        state::change(system, STARTS, |starts| {
            // What was said in a row of failures is not said again in the same one.
            let said = match self.failures {
                0 => Value::Null,
                _ => starts[part]["said"].clone(),
            };
            starts[part] =
                json!({ "at_uptime_s": at, "quick_failures": self.failures, "said": said });
        })
    }
}

/// Tells why a part could not be started: in its state, and in the log if it is another reason than the last time.
/// Best effort, since there is nobody left to tell what goes wrong in here.
pub(crate) fn failed(system: &System, part: &str, error: &Error) {
    let why = format!("{error:#}");
    let _ = state::set_problem(system, part, &why);
    if noted(system, part)["said"] != *why {
        log::say(system, part, &why);
        let _ = state::change(system, STARTS, |starts| starts[part]["said"] = why.into());
    }
}

fn noted(system: &System, part: &str) -> Value {
    let mut starts = state::read(system).remove(STARTS).unwrap_or_default();
    starts
        .get_mut(part)
        .map_or(Value::Null, |noted| noted.take())
}

/// Starts in a row that did not last, and the pause before the next: 0, 1, 2, 4 … seconds.
fn judge(before: &Value, now: u64, ran_well: Duration) -> Start {
    let started = before["at_uptime_s"].as_u64();
    let ran = started.map(|started| Duration::from_secs(now.saturating_sub(started)));
    if ran.is_none_or(|ran| ran >= ran_well) {
        return Start {
            failures: 0,
            pause: Duration::ZERO,
            ran,
        };
    }
    let failures = before["quick_failures"].as_u64().unwrap_or(0) + 1;
    let doublings = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(10);
    Start {
        failures,
        pause: Duration::from_secs(1 << doublings).min(PAUSE_MAX),
        ran,
    }
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
    use anyhow::anyhow;

    use super::*;

    fn system_at(seconds: u64) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        std::fs::create_dir_all(system.path("proc")).unwrap();
        set_clock(&system, seconds);
        (folder, system)
    }

    fn set_clock(system: &System, seconds: u64) {
        std::fs::write(system.path("proc/uptime"), format!("{seconds}.25 7.00\n")).unwrap();
    }

    #[test]
    fn what_keeps_failing_is_started_ever_slower() {
        let (_folder, system) = system_at(10);
        let mut pauses = Vec::new();
        let mut now = 10;
        for _ in 0..9 {
            let start = Start::next(&system, "server");
            pauses.push(start.pause.as_secs());
            start.note(&system, "server").unwrap();
            now += start.pause.as_secs();
            set_clock(&system, now);
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        let other = Start::next(&system, "network");
        assert_eq!(other.failures, 0, "each part for itself");
        set_clock(&system, now + 60);
        let next = Start::next(&system, "server");
        assert_eq!(next.pause, Duration::ZERO, "it ran well for a minute");
        assert_eq!(next.ran, Some(Duration::from_secs(60)));
        let next = Start::next_unless(&system, "server", Duration::from_secs(61));
        assert_eq!(next.pause, PAUSE_MAX, "that is not long for this part");
    }

    #[test]
    fn a_reason_is_in_the_state_each_time_and_in_the_log_once() {
        use std::io::Read as _;
        let (_folder, system) = system_at(10);
        log::make_pipe(&system).unwrap();
        let mut pipe = log::open_pipe(&system).unwrap();
        state::set(&system, "network", json!({ "interface": "eth0" })).unwrap();
        for _ in 0..3 {
            let start = Start::next(&system, "network");
            start.note(&system, "network").unwrap();
            failed(&system, "network", &anyhow!("no route"));
        }
        assert_eq!(state::problem(&system, "network"), "no route");
        assert_eq!(state::read(&system)["network"]["interface"], "eth0");
        failed(&system, "network", &anyhow!("no address"));
        // It ran well, then the same again: that is news.
        set_clock(&system, 100);
        Start::next(&system, "network")
            .note(&system, "network")
            .unwrap();
        failed(&system, "network", &anyhow!("no address"));
        let said = "network: no route\nnetwork: no address\nnetwork: no address\n";
        log::say(&system, "test", "end");
        let mut bytes = vec![0; said.len() + "test: end\n".len()];
        pipe.read_exact(&mut bytes).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            format!("{said}test: end\n")
        );
    }
}
