//! The check of the data partition's file system: `e2fsck -p` repairs by itself what is safe to repair. Its outcome
//! is told so that nobody erases sound data because a check was cut off.

use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::attended::Wait;
use crate::log;
use crate::paths::System;
use crate::state;

/// Last lines of what e2fsck says that go into the state: the last ones say why it gave up.
const FINDINGS_SHOWN: usize = 3;
/// Where e2fsck begins to advise people who have a shell.
const ADVICE: &str = "The superblock could not be read";
/// Exit codes of e2fsck up to this one mean a file system without errors: 1 and 2 say that it repaired some.
const CLEAN_MAX: i32 = 2;
/// The bits of an exit code that say something about the file system: errors that stay, and an operation that failed,
/// which a bad superblock is too.
const ABOUT_FILE_SYSTEM: i32 = 4 | 8;
/// Words of an error of the disk, the memory or the system, by musl and by e2fsprogs: they say nothing about the file
/// system, whatever the exit code is.
const NOT_CARRIED_OUT: [&str; 8] = [
    "I/O error",
    "Input/output error",
    "Out of memory",
    "Memory allocation",
    "No such device",
    "No such file",
    "Resource busy",
    "Read-only file system",
];
/// A check that takes so long is shown. That of a sound file system takes a moment.
const SHOWN_AFTER: Duration = Duration::from_secs(3);
/// First and longest pause between two looks whether it has ended.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long e2fsck may take to end when it is asked to; then init ends it.
const END_WAIT: Duration = Duration::from_secs(10);

/// Checks the file system on a device, which people know by this name.
///
/// # Errors
///
/// Why it cannot be used, for the console; or the node is asked to go down, and the check has ended.
pub(crate) fn check(system: &System, device: &Path, name: &str, wait: &mut dyn Wait) -> Result<()> {
    let child = Command::new(system.path("sbin/e2fsck"))
        .arg("-p")
        .arg(device)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting e2fsck")?;
    let outcome = attend(system, child, name, wait)?;
    if outcome.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let findings = findings(&(said + &String::from_utf8_lossy(&outcome.stderr)));
    // All of it for whoever has to repair it, or wants to know what was repaired.
    for line in &findings {
        log::keep(system, "e2fsck", line);
    }
    judge(name, outcome.status, &findings)
}

/// Waits until it has ended, and tells that it takes long.
fn attend(system: &System, child: Child, name: &str, wait: &mut dyn Wait) -> Result<Output> {
    let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let began = wait.elapsed();
    // What it says is read all the time, so that it never waits for a reader.
    let reader = std::thread::Builder::new()
        .spawn(move || child.wait_with_output())
        .context("waiting for e2fsck")?;
    let mut pause = PAUSES.0;
    let mut is_shown = false;
    while !reader.is_finished() {
        if !is_shown && wait.elapsed().saturating_sub(began) >= SHOWN_AFTER {
            tell_long(system, name)?;
            wait.show();
            is_shown = true;
        }
        if let Err(going_down) = wait.pause(pause) {
            end(process, &reader);
            return Err(going_down.into());
        }
        pause = (pause * 2).min(PAUSES.1);
    }
    let outcome: io::Result<Output> = reader
        .join()
        .map_err(|_| anyhow!("the reader of what e2fsck says has failed"))?;
    outcome.context("waiting for e2fsck")
}

fn tell_long(system: &System, name: &str) -> Result<()> {
    let problem = format!(
        "the file system on {name} is being checked, and the server starts after that. With errors on a large disk \
         this takes long. Do not cut the power: the power button ends the check safely"
    );
    log::keep(system, "prepare", &problem);
    let about = json!({ "state": "checking", "device": name, "problem": problem });
    state::set(system, "data", about)
}

/// Asks the check to end, which it does between two steps. The next start checks again.
fn end(process: Option<Pid>, reader: &JoinHandle<io::Result<Output>>) {
    const INTERVAL: Duration = Duration::from_millis(20);
    let Some(process) = process.filter(|_| !reader.is_finished()) else {
        return;
    };
    let _ = kill_process(process, Signal::TERM);
    for _ in 0..END_WAIT.as_millis() / INTERVAL.as_millis() {
        if reader.is_finished() {
            return;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// What the outcome means.
fn judge(name: &str, status: ExitStatus, findings: &[String]) -> Result<()> {
    let code = status.code();
    if code.is_some_and(|code| (0..=CLEAN_MAX).contains(&code)) {
        return Ok(());
    }
    let first = findings.len().saturating_sub(FINDINGS_SHOWN);
    let said = findings[first..].join(" ");
    let is_outside = |line: &String| NOT_CARRIED_OUT.iter().any(|words| line.contains(words));
    let is_about_file_system =
        code.is_some_and(|code| code & ABOUT_FILE_SYSTEM != 0) && !findings.iter().any(is_outside);
    if is_about_file_system {
        bail!(
            "the file system on {name} is damaged beyond what is repaired by itself. Nothing was started \
             on it. Let support look at the disk, or install anew with \
             the installer's medium and restore a backup. The check says: {said}"
        )
    }
    // By signal, for instance of a kernel without memory, it says nothing.
    let said = if said.is_empty() {
        status.to_string()
    } else {
        format!("{said} ({status})")
    };
    bail!(
        "the file system on {name} could not be checked, which does not mean that it is damaged. Nothing was started \
         on it. Start the node again; if this stays, see to the disk, its cable and the machine's memory. The check \
         ended so: {said}"
    )
}

/// What e2fsck found, a line each. Its advice is left out: there is nobody who could run it.
fn findings(said: &str) -> Vec<String> {
    said.split("\n\n")
        .flat_map(|paragraph| {
            paragraph
                .lines()
                .take_while(|line| !line.starts_with(ADVICE))
        })
        .map(|line| line.replace("; RUN fsck MANUALLY", ""))
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty() && !line.ends_with(':'))
        .filter(|line| !line.starts_with("(i.e., without"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attended::GoingDown;
    use crate::data::tests::{Clock, program, system_with};

    /// What is said after a check that is a script.
    fn checked(script: &str) -> Result<(), String> {
        let (_folder, system) = system_with(&[]);
        program(&system, "sbin/e2fsck", script);
        let outcome = check(
            &system,
            Path::new("/dev/vda2"),
            "vda2",
            &mut Clock::default(),
        );
        outcome.map_err(|error| error.to_string())
    }

    #[test]
    fn data_is_damaged_only_when_the_check_says_so() {
        for script in ["exit 0", "exit 1", "exit 2", "echo fixed; exit 1"] {
            checked(script).unwrap();
        }
        for script in [
            "echo 'vda2: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.'; exit 4",
            "echo 'Superblock checksum does not match superblock while trying to open /dev/vda2' >&2; exit 8",
            "echo 'vda2: UNEXPECTED INCONSISTENCY.'; exit 12",
        ] {
            let error = checked(script).unwrap_err();
            assert!(error.contains("is damaged beyond"), "{script}: {error}");
            assert!(error.contains("install anew"), "{script}: {error}");
        }
    }

    #[test]
    fn a_check_that_was_not_carried_out_says_nothing_about_the_data() {
        for script in [
            "kill -KILL $$",
            "echo 'e2fsck: I/O error while trying to open /dev/vda2' >&2; exit 8",
            "echo 'e2fsck: Out of memory while trying to open /dev/vda2' >&2; exit 8",
            "echo 'Error reading block 7 (I/O error).'; echo 'UNEXPECTED INCONSISTENCY.'; exit 4",
            "exit 16",
            "exit 32",
        ] {
            let error = checked(script).unwrap_err();
            assert!(error.contains("could not be checked"), "{script}: {error}");
            assert!(error.contains("Start the node again"), "{script}: {error}");
            assert!(!error.contains("install anew"), "{script}: {error}");
        }
        assert!(checked("kill -KILL $$").unwrap_err().contains("signal: 9"));
    }

    #[test]
    fn a_check_that_takes_long_is_shown_and_what_it_says_is_kept_whole() {
        let (_folder, system) = system_with(&[]);
        let gate = system.path("gate");
        let script = format!(
            "until [ -e {} ]; do sleep 0.01; done\nseq 100000\necho enough >&2\nexit 4",
            gate.display()
        );
        program(&system, "sbin/e2fsck", &script);
        let mut said = String::new();
        let mut clock = Clock::with(|now| {
            if now > SHOWN_AFTER * 2 && said.is_empty() {
                said = state::problem(&system, "data");
                std::fs::write(&gate, "").unwrap();
            }
        });
        let error = check(&system, Path::new("/dev/vda2"), "vda2", &mut clock).unwrap_err();
        assert!(clock.is_shown);
        drop(clock);
        assert!(said.contains("vda2 is being checked"), "{said}");
        let error = error.to_string();
        assert!(error.ends_with("99999 100000 enough"), "{error}");
    }

    #[test]
    fn a_wish_to_go_down_ends_the_check_as_it_wants_to_be_ended() {
        let (_folder, system) = system_with(&[]);
        let (begun, ended) = (system.path("begun"), system.path("ended"));
        let script = format!(
            "trap 'echo > {}; exit 32' TERM\necho > {}\nwhile :; do sleep 0.01; done",
            ended.display(),
            begun.display()
        );
        program(&system, "sbin/e2fsck", &script);
        struct Button<'a>(&'a Path);
        impl Wait for Button<'_> {
            fn elapsed(&self) -> Duration {
                Duration::ZERO
            }
            fn pause(&mut self, _: Duration) -> Result<(), GoingDown> {
                if self.0.exists() {
                    Err(GoingDown)
                } else {
                    Ok(())
                }
            }
            fn show(&mut self) {}
        }
        let outcome = check(&system, Path::new("/dev/vda2"), "vda2", &mut Button(&begun));
        assert!(outcome.unwrap_err().is::<GoingDown>());
        assert!(ended.exists());
    }

    #[test]
    fn what_the_check_found_is_told_without_its_advice() {
        let no_superblock = "/dev/vda2: \nThe superblock could not be read or does not describe a valid \
            ext2/ext3/ext4\nfilesystem.  If the device is valid and it really contains an ext2/ext3/ext4\n\
            filesystem (and not swap or ufs or something else), then the superblock\nis corrupt, and you \
            might try running e2fsck with an alternate superblock:\n    e2fsck -b 8193 <device>\n or\n    \
            e2fsck -b 32768 <device>\n\n/sbin/e2fsck: Superblock checksum does not match superblock while \
            trying to open /dev/vda2\n";
        assert_eq!(
            findings(no_superblock),
            [
                "/sbin/e2fsck: Superblock checksum does not match superblock while trying to open /dev/vda2"
            ]
        );
        let inconsistent = "truthdb-data contains a file system with errors, check forced.\n\
            truthdb-data: Root inode is not a directory.  \n\ntruthdb-data: UNEXPECTED INCONSISTENCY; \
            RUN fsck MANUALLY.\n\t(i.e., without -a or -p options)\n";
        assert_eq!(
            findings(inconsistent),
            [
                "truthdb-data contains a file system with errors, check forced.",
                "truthdb-data: Root inode is not a directory.",
                "truthdb-data: UNEXPECTED INCONSISTENCY."
            ]
        );
    }
}
