//! The data partition: found by its label, checked, made ready for the server. Mounting itself is a line of
//! `/etc/inittab` between [`prepare`] and [`ready`].
//!
//! What is wrong is said once, in the state and on the console, and nothing is started on it: a damaged or missing
//! disk must not be looped over, and never be taken for an empty one.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::json;

use crate::attended::{Attended, GoingDown, Wait};
use crate::check::check;
use crate::config::NodeConfig;
use crate::disks::Disks;
use crate::log;
use crate::paths::System;
use crate::state;

/// The link through which `/etc/fstab` knows the partition.
const DEVICE_LINK: &str = "dev/truthdb-data";
/// What is said when a sound file system is not mounted. The words of `mount` go to the kernel's log, with its own.
const NOT_MOUNTED: &str = "the data partition cannot be mounted; the kernel's messages say why. Nothing was started \
                           on it. Let support look at the disk, or install anew and restore a backup";
/// User and group of the server.
pub(crate) const SERVER_ID: u32 = 100;
/// Directories and files of others in the root of the partition, which stay root's.
const NOT_THE_SERVERS: [&str; 3] = ["lost+found", "config", "log"];

/// Before the mount: finds and checks the partition, and makes the link that the mount goes through.
///
/// # Errors
///
/// Why there is nothing to mount, for the console; also in the state.
pub(crate) fn prepare(system: &System) -> Result<()> {
    prepare_while(system, &mut Attended::new(system))
}

fn prepare_while(system: &System, wait: &mut dyn Wait) -> Result<()> {
    std::fs::create_dir_all(system.run("")).context("making /run/truthdb")?;
    log::make_pipe(system)?;
    let outcome = find_and_check(system, wait);
    if let Err(error) = &outcome {
        if error.is::<GoingDown>() {
            // No fault: init goes on with its table, finds nothing to mount, and takes its signal.
            return state::set(system, "data", json!({ "state": "going down" }));
        }
        let problem = format!("{error:#}");
        state::set(
            system,
            "data",
            json!({ "state": "unusable", "problem": problem }),
        )?;
    }
    outcome
}

fn find_and_check(system: &System, wait: &mut dyn Wait) -> Result<()> {
    let mut disks = Disks::new(system);
    let device = disks.wait_for_partition(wait)?;
    let name = device
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    state::set(
        system,
        "data",
        json!({ "state": "checking", "device": name }),
    )?;
    check(system, &device, &name, wait)?;
    // Another disk may have come up meanwhile.
    disks.partition_now(wait)?;
    std::os::unix::fs::symlink(&device, system.path(DEVICE_LINK))
        .context("making the link to the data partition")?;
    state::set(
        system,
        "data",
        json!({ "state": "checked", "device": name }),
    )
}

/// After the mount: reads the configuration, names the machine, gives the server what is its own.
///
/// # Errors
///
/// Why the server cannot be started, for the console; also in the state.
pub(crate) fn ready(system: &System) -> Result<()> {
    let device = |path: PathBuf| std::fs::metadata(&path).map(|about| about.dev());
    let mounted = device(system.data(""))? != device(system.path(""))?;
    if !mounted && !system.path(DEVICE_LINK).exists() {
        // Said already, by `prepare`.
        return Ok(());
    }
    let outcome = if mounted {
        name_machine(system).and_then(|()| hand_over(system))
    } else {
        Err(anyhow!("{NOT_MOUNTED}"))
    };
    outcome.inspect_err(|error| {
        let problem = json!({ "state": "unusable", "problem": format!("{error:#}") });
        let _ = state::set(system, "data", problem);
    })
}

fn name_machine(system: &System) -> Result<()> {
    let (config, problem) = NodeConfig::load(system);
    rustix::system::sethostname(config.hostname.as_bytes()).context("setting the host name")?;
    tell_config(system, &config, problem)
}

/// Says what the configuration is, and what is wrong with it, now that there is a place for a log.
fn tell_config(system: &System, config: &NodeConfig, problem: Option<String>) -> Result<()> {
    if let Err(error) = std::fs::create_dir_all(system.data("log")) {
        // A full disk costs the log on it, not the server.
        log::keep(system, "ready", &format!("no folder for the log: {error}"));
    }
    if let Some(problem) = &problem {
        log::keep(system, "ready", problem);
    }
    state::set(
        system,
        "node",
        json!({ "hostname": config.hostname, "problem": problem }),
    )
}

/// Makes the partition the server's, and says that it is.
fn hand_over(system: &System) -> Result<()> {
    give_to_server(system)?;
    let name = state::read(system)
        .get("data")
        .and_then(|data| data.get("device"))
        .cloned();
    state::set(system, "data", json!({ "state": "ready", "device": name }))
}

/// The root of the partition, and what is in it, belongs to the server, except what is root's.
fn give_to_server(system: &System) -> Result<()> {
    let root = system.data("");
    own(&root)?;
    for entry in std::fs::read_dir(&root).context("listing the data partition")? {
        let entry = entry.context("listing the data partition")?;
        let name = entry.file_name();
        if !NOT_THE_SERVERS.iter().any(|other| name == *other) {
            own_all(&entry.path())?;
        }
    }
    let config = system.data("config");
    if config.is_dir() {
        // The server reads its configuration and changes nothing in it.
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o755))
            .context("opening the configuration to the server")?;
    }
    Ok(())
}

fn own_all(path: &Path) -> Result<()> {
    let about = path.symlink_metadata();
    let about = about.with_context(|| format!("looking at {}", path.display()))?;
    if about.uid() == SERVER_ID && about.gid() == SERVER_ID && !is_first_level(path) {
        return Ok(());
    }
    if about.is_symlink() {
        bail!("{} is a link: the server's files are none", path.display());
    }
    if about.is_dir() {
        let entries = std::fs::read_dir(path);
        for entry in entries.with_context(|| format!("listing {}", path.display()))? {
            own_all(
                &entry
                    .with_context(|| format!("listing {}", path.display()))?
                    .path(),
            )?;
        }
    }
    own(path)
}

/// Directories right below the root are looked into at every start: an installer may have added files.
fn is_first_level(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("data"))
}

fn own(path: &Path) -> Result<()> {
    chown(path, Some(SERVER_ID), Some(SERVER_ID))
        .with_context(|| format!("giving {} to the server", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::disks::LABEL;

    /// A clock that goes on by the pauses only, and what happens meanwhile.
    pub(crate) struct Clock<'a> {
        pub(crate) now: Duration,
        pub(crate) is_shown: bool,
        /// When the node is asked to go down.
        down_at: Option<Duration>,
        meanwhile: Box<dyn FnMut(Duration) + 'a>,
    }

    impl Default for Clock<'_> {
        fn default() -> Self {
            Self::with(|_| ())
        }
    }

    impl<'a> Clock<'a> {
        pub(crate) fn with(meanwhile: impl FnMut(Duration) + 'a) -> Self {
            Self {
                now: Duration::ZERO,
                is_shown: false,
                down_at: None,
                meanwhile: Box::new(meanwhile),
            }
        }

        pub(crate) fn down_after_a_second() -> Self {
            let down_at = Some(Duration::from_secs(1));
            Self {
                down_at,
                ..Self::default()
            }
        }
    }

    impl Wait for Clock<'_> {
        fn elapsed(&self) -> Duration {
            self.now
        }

        fn pause(&mut self, time: Duration) -> Result<(), GoingDown> {
            self.now += time;
            (self.meanwhile)(self.now);
            // Threads and programs beside this go on.
            std::thread::yield_now();
            match self.down_at {
                Some(at) if self.now >= at => Err(GoingDown),
                _ => Ok(()),
            }
        }

        fn show(&mut self) {
            self.is_shown = true;
        }
    }

    pub(crate) fn system_with(disks: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for path in ["sys/class/block", "dev", "sbin", "run/truthdb"] {
            std::fs::create_dir_all(system.path(path)).unwrap();
        }
        for (name, label) in disks {
            connect(&system, name, label);
        }
        (folder, system)
    }

    pub(crate) fn connect(system: &System, name: &str, label: &str) {
        let mut image = vec![0; 4096];
        image[1024 + 0x38] = 0x53;
        image[1024 + 0x39] = 0xef;
        image[1024 + 0x78..1024 + 0x78 + label.len()].copy_from_slice(label.as_bytes());
        std::fs::write(system.path("dev").join(name), image).unwrap();
        std::fs::write(system.path("sys/class/block").join(name), "").unwrap();
    }

    /// A program of the system that is a script of this machine's shell.
    pub(crate) fn program(system: &System, path: &str, script: &str) {
        std::fs::write(system.path(path), format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(system.path(path), mode).unwrap();
    }

    /// What is said of a partition whose check is a script.
    fn prepared(script: &str) -> (tempfile::TempDir, System, Result<(), String>) {
        let (folder, system) = system_with(&[("vda2", LABEL)]);
        program(&system, "sbin/e2fsck", script);
        let outcome = prepare_while(&system, &mut Clock::default());
        (folder, system, outcome.map_err(|error| error.to_string()))
    }

    #[test]
    fn a_sound_partition_gets_its_link_and_a_damaged_one_none() {
        // 1 says that errors were repaired.
        let (_folder, system, outcome) = prepared("exit 1");
        outcome.unwrap();
        assert!(system.path(DEVICE_LINK).exists());
        assert_eq!(state::problem(&system, "data"), "");
        let (_folder, system, outcome) = prepared("echo Root inode is not a directory.; exit 4");
        let error = outcome.unwrap_err();
        assert!(
            error.contains("vda2 is damaged beyond what is repaired by itself")
                && error.ends_with("Root inode is not a directory."),
            "{error}"
        );
        assert_eq!(state::problem(&system, "data"), error);
        assert!(!system.path(DEVICE_LINK).exists());
    }

    #[test]
    fn a_second_partition_that_comes_up_during_the_check_is_refused_too() {
        let (_folder, system) = system_with(&[("vda2", LABEL)]);
        let (block, dev) = (system.path("sys/class/block"), system.path("dev"));
        let script = format!(
            "cp {1}/vda2 {1}/sdb2\ncp {0}/vda2 {0}/sdb2",
            block.display(),
            dev.display()
        );
        program(&system, "sbin/e2fsck", &script);
        let error = prepare_while(&system, &mut Clock::default()).unwrap_err();
        assert!(error.to_string().contains("sdb2"), "{error}");
        assert!(!system.path(DEVICE_LINK).exists());
    }

    #[test]
    fn a_wish_to_go_down_is_no_fault_and_starts_nothing() {
        let (_folder, system) = system_with(&[]);
        prepare_while(&system, &mut Clock::down_after_a_second()).unwrap();
        assert_eq!(state::read(&system)["data"]["state"], "going down");
        assert_eq!(state::problem(&system, "data"), "");
        assert!(!system.path(DEVICE_LINK).exists());
    }

    #[test]
    fn a_log_that_has_no_room_on_the_disk_costs_nothing_else() {
        let (_folder, system) = system_with(&[]);
        std::fs::create_dir_all(system.data("")).unwrap();
        // Where a folder would have to be made.
        std::fs::write(system.data("log"), "").unwrap();
        tell_config(&system, &NodeConfig::default(), None).unwrap();
        assert_eq!(state::read(&system)["node"]["hostname"], "truthdb");
        let log = std::fs::read_to_string(system.run("log")).unwrap();
        assert!(log.starts_with("ready: no folder for the log: "), "{log}");
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_in_the_log_and_in_the_state() {
        let (_folder, system) = system_with(&[]);
        std::fs::create_dir_all(system.data("config")).unwrap();
        std::fs::write(system.data("config/node.toml"), "hostname = 7").unwrap();
        let (config, problem) = NodeConfig::load(&system);
        tell_config(&system, &config, problem).unwrap();
        let problem = state::problem(&system, "node");
        assert!(
            problem.contains("config/node.toml is not used"),
            "{problem}"
        );
        for log in [system.run("log"), system.data("log/node.log")] {
            let log = std::fs::read_to_string(log).unwrap();
            assert_eq!(log, format!("ready: {problem}\n"));
        }
    }
}
