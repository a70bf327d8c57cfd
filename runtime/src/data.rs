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

use anyhow::{Context as _, Result, bail};
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
/// The link through which `/etc/fstab` knows the partition.
const DEVICE_LINK: &str = "dev/truthdb-data";
/// User and group of the server.
pub(crate) const SERVER_ID: u32 = 100;
/// Directories and files of others in the root of the partition, which stay root's.
const NOT_THE_SERVERS: [&str; 3] = ["lost+found", "config", "log"];
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
    let device = wait_for_partition(system)?;
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
    let outcome = Command::new(system.path("sbin/e2fsck"))
        .arg("-p")
        .arg(&device)
        .output()
        .context("starting e2fsck")?;
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&outcome.stderr);
    // The check's own words, for whoever has to repair it.
    std::fs::write(system.run("e2fsck.txt"), &said).context("keeping what e2fsck said")?;
    match outcome.status.code() {
        Some(0..=E2FSCK_CLEAN_MAX) => {}
        _ => bail!(
            "the file system on {name} is damaged beyond what is repaired by itself; nothing was \
             started on it, and its content was left as it is. Let somebody look at the disk, or \
             install anew and restore a backup. e2fsck says: {}",
            said.trim()
        ),
    }
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
    if !mounted {
        if !system.path(DEVICE_LINK).exists() {
            // Said already, by `prepare`.
            return Ok(());
        }
        let problem = "the data partition cannot be mounted";
        state::set(
            system,
            "data",
            json!({ "state": "unusable", "problem": problem }),
        )?;
        bail!("{problem}");
    }
    let (config, problem) = NodeConfig::load(system);
    rustix::system::sethostname(config.hostname.as_bytes()).context("setting the host name")?;
    state::set(
        system,
        "node",
        json!({ "hostname": config.hostname, "problem": problem }),
    )?;
    give_to_server(system)?;
    std::fs::create_dir_all(system.data("log")).context("making the folder of the log")?;
    let previous = state::read(system);
    let name = previous
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

fn wait_for_partition(system: &System) -> Result<PathBuf> {
    let tries = DISKS_WAIT.as_millis() / DISKS_INTERVAL.as_millis();
    for _ in 0..tries {
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
        if let Some(device) = found.pop() {
            return Ok(device);
        }
        std::thread::sleep(DISKS_INTERVAL);
    }
    bail!(
        "no partition labelled {LABEL} was found within {} seconds. If the disk is connected, \
         start the installer's medium to see what is on it",
        DISKS_WAIT.as_secs()
    )
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
        for path in ["sys/class/block", "dev"] {
            std::fs::create_dir_all(system.path(path)).unwrap();
        }
        for (name, label) in disks {
            let mut image = vec![0; 4096];
            image[1024 + 0x38] = 0x53;
            image[1024 + 0x39] = 0xef;
            image[1024 + 0x78..1024 + 0x78 + label.len()].copy_from_slice(label.as_bytes());
            std::fs::write(system.path("sys/class/block").join(name), "").unwrap();
            std::fs::write(system.path("dev").join(name), image).unwrap();
        }
        (folder, system)
    }

    #[test]
    fn the_partition_is_found_by_its_label_among_others() {
        let (_folder, system) = system_with(&[("sda1", "other"), ("vda2", LABEL), ("vda1", "")]);
        std::fs::write(system.path("sys/class/block/sr0"), "").unwrap();
        std::fs::write(system.path("dev/sr0"), "short").unwrap();
        assert_eq!(
            wait_for_partition(&system).unwrap(),
            system.path("dev/vda2")
        );
    }

    #[test]
    fn two_partitions_with_the_label_are_refused() {
        let (_folder, system) = system_with(&[("sda2", LABEL), ("sdb2", LABEL)]);
        let error = wait_for_partition(&system).unwrap_err().to_string();
        assert!(error.contains("sda2") && error.contains("sdb2"), "{error}");
    }

    #[test]
    fn a_label_that_only_begins_alike_is_another() {
        let (_folder, system) = system_with(&[("sda2", "truthdb-data2")]);
        assert_eq!(labelled(&system), Vec::<PathBuf>::new());
    }
}
