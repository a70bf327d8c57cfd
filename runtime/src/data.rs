//! The data partition: found by its label, checked, made ready for the server. Mounting itself is a line of
//! `/etc/inittab` between [`prepare`] and [`ready`].
//!
//! What is wrong is said once, in the state and on the console, and nothing is started on it: a damaged or missing
//! disk must not be looped over, and never be taken for an empty one.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::json;

use crate::config::NodeConfig;
use crate::log;
use crate::paths::System;
use crate::state;

/// Label of the partition.
const LABEL: &str = "truthdb-data";
/// How long disks are waited for after the first process started: controllers find them meanwhile.
const DISKS_WAIT: Duration = Duration::from_secs(30);
/// How often the list of disks is looked at.
const DISKS_INTERVAL: Duration = Duration::from_millis(20);
/// How long it is waited for a second one after the first: controllers are looked for at the same time, and one of
/// them is some 200 ms behind another. Every start takes so much longer, so it is not more.
const SETTLE: Duration = Duration::from_millis(300);
/// The link through which `/etc/fstab` knows the partition.
const DEVICE_LINK: &str = "dev/truthdb-data";
/// What is said when a sound file system is not mounted. The words of `mount` go to the kernel's log, with its own.
const NOT_MOUNTED: &str = "the data partition cannot be mounted; the kernel's messages say why. Nothing was started \
                           on it. Let support look at the disk, or install anew and restore a backup";
/// User and group of the server.
pub(crate) const SERVER_ID: u32 = 100;
/// Directories and files of others in the root of the partition, which stay root's.
const NOT_THE_SERVERS: [&str; 3] = ["lost+found", "config", "log"];
/// Last lines of what e2fsck says that go into the state: the last ones say why it gave up.
const FINDINGS_SHOWN: usize = 3;
/// Where e2fsck begins to advise people who have a shell.
const ADVICE: &str = "The superblock could not be read";
/// Exit codes of e2fsck up to this one mean a file system without errors: 1 and 2 say that it repaired some.
const E2FSCK_CLEAN_MAX: i32 = 2;

/// Before the mount: finds and checks the partition, and makes the link that the mount goes through.
///
/// # Errors
///
/// Why there is nothing to mount, for the console; also in the state.
pub(crate) fn prepare(system: &System) -> Result<()> {
    std::fs::create_dir_all(system.run("")).context("making /run/truthdb")?;
    log::make_pipe(system)?;
    let outcome = find_and_check(system);
    if let Err(error) = &outcome {
        let problem = format!("{error:#}");
        state::set(
            system,
            "data",
            json!({ "state": "unusable", "problem": problem }),
        )?;
    }
    outcome
}

fn find_and_check(system: &System) -> Result<()> {
    let device = wait_for_partition(system, &mut std::thread::sleep)?;
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
    check(system, &device, &name)?;
    // Another disk may have come up meanwhile.
    the_one(system)?;
    std::os::unix::fs::symlink(&device, system.path(DEVICE_LINK))
        .context("making the link to the data partition")?;
    state::set(
        system,
        "data",
        json!({ "state": "checked", "device": name }),
    )
}

fn check(system: &System, device: &Path, name: &str) -> Result<()> {
    let outcome = Command::new(system.path("sbin/e2fsck"))
        .arg("-p")
        .arg(device)
        .output()
        .context("starting e2fsck")?;
    if outcome.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let findings = findings(&(said + &String::from_utf8_lossy(&outcome.stderr)));
    // All of it for whoever has to repair it, or wants to know what was repaired.
    for line in &findings {
        log::keep(system, "e2fsck", line);
    }
    if matches!(outcome.status.code(), Some(0..=E2FSCK_CLEAN_MAX)) {
        return Ok(());
    }
    let first = findings.len().saturating_sub(FINDINGS_SHOWN);
    bail!(
        "the file system on {name} is damaged beyond what is repaired by itself. Nothing was started \
         on it. Let support look at the disk, or install anew with \
         the installer's medium and restore a backup. The check says: {}",
        findings[first..].join(" ")
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

/// Waits for the partition, and then a little for another one with its label. `sleep` is the machine's.
fn wait_for_partition(system: &System, sleep: &mut dyn FnMut(Duration)) -> Result<PathBuf> {
    let tries = DISKS_WAIT.as_millis() / DISKS_INTERVAL.as_millis();
    for _ in 0..tries {
        if !labelled(system).is_empty() {
            sleep(SETTLE);
            return the_one(system);
        }
        sleep(DISKS_INTERVAL);
    }
    bail!(
        "no partition labelled {LABEL} was found within {} seconds. If the disk is connected, \
         start the installer's medium to see what is on it",
        DISKS_WAIT.as_secs()
    )
}

/// The only partition with the label.
fn the_one(system: &System) -> Result<PathBuf> {
    let mut found = labelled(system);
    if found.len() > 1 {
        let names: Vec<String> = found
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        bail!(
            "more than one partition is labelled {LABEL}: {}. Nothing was started. Take out \
             the disk that does not belong to this node",
            names.join(", ")
        );
    }
    found.pop().with_context(|| {
        format!(
            "the partition labelled {LABEL} was there and is gone: see to the disk's connection"
        )
    })
}

/// Devices whose ext4 file system has the label; a device that cannot be read has none.
fn labelled(system: &System) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(system.path("sys/class/block")) else {
        return Vec::new();
    };
    let mut devices: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| system.path("dev").join(entry.file_name()))
        .filter(|device| label_of(device).as_deref() == Some(LABEL))
        .collect();
    devices.sort();
    devices
}

/// The label in the superblock of ext2 and its successors.
fn label_of(device: &Path) -> Option<String> {
    const SUPERBLOCK: u64 = 1024;
    const MAGIC_AT: usize = 0x38;
    const LABEL_AT: usize = 0x78;
    let mut superblock = [0; 0x88];
    let file = File::open(device).ok()?;
    file.read_exact_at(&mut superblock, SUPERBLOCK).ok()?;
    if superblock[MAGIC_AT..MAGIC_AT + 2] != [0x53, 0xef] {
        return None;
    }
    let label = superblock[LABEL_AT..].split(|byte| *byte == 0).next()?;
    String::from_utf8(label.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system_with(disks: &[(&str, &str)]) -> (tempfile::TempDir, System) {
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

    fn connect(system: &System, name: &str, label: &str) {
        let mut image = vec![0; 4096];
        image[1024 + 0x38] = 0x53;
        image[1024 + 0x39] = 0xef;
        image[1024 + 0x78..1024 + 0x78 + label.len()].copy_from_slice(label.as_bytes());
        std::fs::write(system.path("sys/class/block").join(name), "").unwrap();
        std::fs::write(system.path("dev").join(name), image).unwrap();
    }

    /// e2fsck as another program of this machine.
    fn check_with(system: &System, program: &str) {
        std::os::unix::fs::symlink(program, system.path("sbin/e2fsck")).unwrap();
    }

    fn no_time(_: Duration) {}

    #[test]
    fn the_partition_is_found_by_its_label_among_others() {
        let (_folder, system) = system_with(&[("sda1", "other"), ("vda2", LABEL), ("vda1", "")]);
        std::fs::write(system.path("sys/class/block/sr0"), "").unwrap();
        std::fs::write(system.path("dev/sr0"), "short").unwrap();
        assert_eq!(
            wait_for_partition(&system, &mut no_time).unwrap(),
            system.path("dev/vda2")
        );
    }

    #[test]
    fn two_partitions_with_the_label_are_refused() {
        let (_folder, system) = system_with(&[("sda2", LABEL), ("sdb2", LABEL)]);
        let error = wait_for_partition(&system, &mut no_time)
            .unwrap_err()
            .to_string();
        assert!(error.contains("sda2") && error.contains("sdb2"), "{error}");
    }

    #[test]
    fn a_second_partition_behind_a_slower_controller_is_refused_too() {
        let (_folder, system) = system_with(&[]);
        let mut waited = Duration::ZERO;
        let mut later = |pause| {
            if waited.is_zero() {
                connect(&system, "sda2", LABEL);
            }
            waited += pause;
            if waited > Duration::from_millis(200) {
                connect(&system, "sdb2", LABEL);
            }
        };
        let error = wait_for_partition(&system, &mut later)
            .unwrap_err()
            .to_string();
        assert!(error.contains("sda2") && error.contains("sdb2"), "{error}");
        assert!(waited < Duration::from_millis(500), "{waited:?}");
    }

    #[test]
    fn a_disk_that_is_pulled_out_at_once_is_said_to_be_gone() {
        let (_folder, system) = system_with(&[("sda2", LABEL)]);
        let mut pull = |_| std::fs::remove_file(system.path("sys/class/block/sda2")).unwrap();
        let error = wait_for_partition(&system, &mut pull)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is gone"), "{error}");
    }

    #[test]
    fn a_sound_partition_gets_its_link_and_a_damaged_one_none() {
        let (_folder, system) = system_with(&[("vda2", LABEL)]);
        check_with(&system, "/bin/false");
        // 1 says that errors were repaired.
        prepare(&system).unwrap();
        assert!(system.path(DEVICE_LINK).exists());
        // `env -p` ends with 125, and says why.
        let (_folder, system) = system_with(&[("vda2", LABEL)]);
        check_with(&system, "/usr/bin/env");
        let error = prepare(&system).unwrap_err().to_string();
        assert!(
            error.contains("vda2 is damaged beyond what is repaired by itself"),
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
            "#!/bin/sh\ncp {0}/vda2 {0}/sdb2\ncp {1}/vda2 {1}/sdb2\n",
            block.display(),
            dev.display()
        );
        std::fs::write(system.path("sbin/e2fsck"), script).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(system.path("sbin/e2fsck"), mode).unwrap();
        let error = prepare(&system).unwrap_err().to_string();
        assert!(error.contains("sdb2"), "{error}");
        assert!(!system.path(DEVICE_LINK).exists());
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

    #[test]
    fn a_label_that_only_begins_alike_is_another() {
        let (_folder, system) = system_with(&[("sda2", "truthdb-data2")]);
        assert_eq!(labelled(&system), Vec::<PathBuf>::new());
    }
}
