//! Which partition is the node's: the only one with the label of its file system.
//!
//! Each device is read once, by a thread of its own, and looked at again only when it is another one: a disk that is
//! dying answers after minutes, and neither holds the others nor is asked again and again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use crate::attended::Wait;
use crate::log;
use crate::paths::System;
use crate::state;

/// Label of the partition.
pub(crate) const LABEL: &str = "truthdb-data";
/// How long the partition is waited for: shelves spin their disks up one after the other, and may be switched on after
/// the node.
const DISKS_WAIT: Duration = Duration::from_secs(300);
/// A wait that takes so long is shown.
const SHOWN_AFTER: Duration = Duration::from_secs(10);
/// How often the list of disks is looked at, and how often in a wait that is long already.
const DISKS_INTERVAL: Duration = Duration::from_millis(20);
const DISKS_INTERVAL_LATE: Duration = Duration::from_millis(200);
/// How often it is looked for answers while a device is read.
const ANSWERS_INTERVAL: Duration = Duration::from_millis(2);
/// How long it is waited for a second one after the first: controllers are looked for at the same time, and one of
/// them is some 200 ms behind another. Every start takes so much longer, so it is not more.
const SETTLE: Duration = Duration::from_millis(300);
/// How long a device may take to answer, before it is done without: as long as the installer waits.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Why the only partition may be no more.
const GONE: &str = "the partition labelled truthdb-data was there and is gone: see to the disk's connection, and start \
                    the node again";

/// A device as it is now: another disk, or another partition in its place, is another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Device {
    name: String,
    /// The kernel's number of the disk, which no other disk gets.
    disk: String,
    sectors: String,
}

impl Device {
    fn of(system: &System, name: String) -> Self {
        let folder = system.path("sys/class/block").join(&name);
        let text = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap_or_default();
        // A partition lies in the folder of its disk.
        let disk = match text("diskseq") {
            number if number.is_empty() => text("../diskseq"),
            number => number,
        };
        Self {
            disk,
            sectors: text("size"),
            name,
        }
    }
}

/// What is known of a device.
#[derive(Debug)]
enum Known {
    /// It was asked then.
    Asked(Duration),
    /// It was waited for long enough. It may answer still.
    Silent,
    /// It cannot be read. Why.
    Unreadable(String),
    /// Whether it has the label.
    IsOurs(bool),
}

/// What a device answers.
type Answer = (Device, io::Result<bool>);

/// Starts a read, beside everything else.
type Start = fn(Box<dyn FnOnce() + Send>) -> io::Result<()>;

/// The devices of the machine, and what is known of each.
pub(crate) struct Disks<'a> {
    system: &'a System,
    known: BTreeMap<Device, Known>,
    answers: Receiver<Answer>,
    to_answers: Sender<Answer>,
    start: Start,
}

impl<'a> Disks<'a> {
    /// Nothing is known yet.
    pub(crate) fn new(system: &'a System) -> Self {
        let (to_answers, answers) = channel();
        Self {
            system,
            known: BTreeMap::new(),
            answers,
            to_answers,
            start: |read| std::thread::Builder::new().spawn(read).map(drop),
        }
    }

    /// Waits for the partition, and then a little for another one with its label.
    ///
    /// # Errors
    ///
    /// There is none, or more than one; or the node is asked to go down.
    pub(crate) fn wait_for_partition(&mut self, wait: &mut dyn Wait) -> Result<PathBuf> {
        let began = wait.elapsed();
        let mut found_at = None;
        let mut shown = String::new();
        loop {
            let now = wait.elapsed();
            self.look(now);
            let waited = now.saturating_sub(began);
            if let Some(partition) = self.only_one()? {
                let found_at = *found_at.get_or_insert(now);
                if now.saturating_sub(found_at) >= SETTLE && self.asked().is_empty() {
                    return Ok(partition);
                }
            } else if found_at.is_some() {
                bail!(GONE);
            } else if waited >= DISKS_WAIT {
                bail!(self.none());
            }
            let mut interval = self.interval();
            if waited >= SHOWN_AFTER {
                self.tell_waiting(&mut shown)?;
                wait.show();
                interval = interval.max(DISKS_INTERVAL_LATE);
            }
            wait.pause(interval)?;
        }
    }

    /// The partition, as it is after everything that is there now has answered.
    ///
    /// # Errors
    ///
    /// As for [`Disks::wait_for_partition`].
    pub(crate) fn partition_now(&mut self, wait: &mut dyn Wait) -> Result<PathBuf> {
        loop {
            self.look(wait.elapsed());
            let found = self.only_one()?;
            if self.asked().is_empty() {
                let Some(partition) = found else { bail!(GONE) };
                return Ok(partition);
            }
            wait.pause(self.interval())?;
        }
    }

    fn interval(&self) -> Duration {
        if self.asked().is_empty() {
            DISKS_INTERVAL
        } else {
            ANSWERS_INTERVAL
        }
    }

    /// Asks the devices that are new, forgets those that are gone, and hears what there is to hear.
    fn look(&mut self, now: Duration) {
        let entries = std::fs::read_dir(self.system.path("sys/class/block"));
        let names = entries.into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // The kernel's list has a device a moment before it has its file.
        let there: Vec<Device> = names
            .filter(|name| self.file(name).exists())
            .map(|name| Device::of(self.system, name))
            .collect();
        self.known.retain(|device, _| there.contains(device));
        for device in there {
            if !self.known.contains_key(&device) {
                self.ask(device, now);
            }
        }
        for (device, answer) in self.answers.try_iter() {
            // Of one that is gone by now, nothing is wanted.
            if let Some(known) = self.known.get_mut(&device) {
                *known = match answer {
                    Ok(is_ours) => Known::IsOurs(is_ours),
                    Err(error) => Known::Unreadable(error.to_string()),
                };
            }
        }
        for known in self.known.values_mut() {
            if matches!(known, Known::Asked(at) if now.saturating_sub(*at) >= ANSWER_WAIT) {
                *known = Known::Silent;
            }
        }
    }

    fn ask(&mut self, device: Device, now: Duration) {
        let (file, answers) = (self.file(&device.name), self.to_answers.clone());
        let asked = device.clone();
        let read = move || {
            let answer = is_ours(&file);
            // Nobody waits any more, perhaps.
            let _ = answers.send((asked, answer));
        };
        let known = match (self.start)(Box::new(read)) {
            Ok(()) => Known::Asked(now),
            Err(error) => Known::Unreadable(error.to_string()),
        };
        self.known.insert(device, known);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.system.path("dev").join(name)
    }

    fn named(&self, which: impl Fn(&Known) -> bool) -> Vec<&str> {
        let found = self.known.iter().filter(|(_, known)| which(known));
        found.map(|(device, _)| device.name.as_str()).collect()
    }

    /// Devices that may answer soon.
    fn asked(&self) -> Vec<&str> {
        self.named(|known| matches!(known, Known::Asked(_)))
    }

    /// The only partition with the label, if there is one by now.
    fn only_one(&self) -> Result<Option<PathBuf>> {
        let names = self.named(|known| matches!(known, Known::IsOurs(true)));
        let files: Vec<PathBuf> = names.iter().map(|name| self.file(name)).collect();
        if files.len() > 1 {
            let names: Vec<String> = files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            bail!(
                "more than one partition is labelled {LABEL}: {}. Nothing was started. Take out \
                 the disk that does not belong to this node, and start it again",
                names.join(", ")
            );
        }
        Ok(files.into_iter().next())
    }

    /// Says what it is waited for, if that is news.
    fn tell_waiting(&self, shown: &mut String) -> Result<()> {
        let asked = self.asked();
        let problem = if asked.is_empty() {
            format!(
                "no partition labelled {LABEL} is there yet. It is waited for, {} minutes in all: see to the disk, its \
                 cable and its power.{}",
                DISKS_WAIT.as_secs() / 60,
                self.broken()
            )
        } else {
            format!(
                "{} has not answered yet and is waited for",
                asked.join(", ")
            )
        };
        if *shown == problem {
            return Ok(());
        }
        log::keep(self.system, "prepare", &problem);
        let about = json!({ "state": "waiting", "problem": problem });
        state::set(self.system, "data", about)?;
        *shown = problem;
        Ok(())
    }

    fn none(&self) -> String {
        format!(
            "no partition labelled {LABEL} was found within {} minutes. Connect the disk, and start the node again. If \
             it is connected, start the installer's medium to see what is on it.{}",
            DISKS_WAIT.as_secs() / 60,
            self.broken()
        )
    }

    /// What is to be said of devices that tell nothing; empty if all do.
    fn broken(&self) -> String {
        let said = self.known.iter().filter_map(|(device, known)| match known {
            Known::Unreadable(why) => Some(format!(" {} cannot be read: {why}.", device.name)),
            Known::Silent => Some(format!(" {} does not answer.", device.name)),
            _ => None,
        });
        said.collect()
    }
}

/// Whether an ext4 file system with the label is on a device.
fn is_ours(device: &Path) -> io::Result<bool> {
    /// What the kernel calls a drive without a medium, and a device without a disk.
    const EMPTY: [rustix::io::Errno; 2] = [rustix::io::Errno::NOMEDIUM, rustix::io::Errno::NXIO];
    let is_empty = |error: &io::Error| {
        let number = error.raw_os_error();
        error.kind() == io::ErrorKind::UnexpectedEof
            || EMPTY
                .iter()
                .any(|errno| Some(errno.raw_os_error()) == number)
    };
    match label_of(device) {
        Ok(label) => Ok(label == LABEL.as_bytes()),
        Err(error) if is_empty(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The label in the superblock of ext2 and its successors; empty where there is none.
fn label_of(device: &Path) -> io::Result<Vec<u8>> {
    const SUPERBLOCK: u64 = 1024;
    const MAGIC_AT: usize = 0x38;
    const LABEL_AT: usize = 0x78;
    let mut superblock = [0; 0x88];
    File::open(device)?.read_exact_at(&mut superblock, SUPERBLOCK)?;
    if superblock[MAGIC_AT..MAGIC_AT + 2] != [0x53, 0xef] {
        return Ok(Vec::new());
    }
    let label = superblock[LABEL_AT..].split(|byte| *byte == 0).next();
    Ok(label.unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::{Clock, connect, system_with};

    /// Reads at once, and never reads what nobody may read.
    fn disks(system: &System) -> Disks<'_> {
        Disks {
            start: |read| {
                read();
                Ok(())
            },
            ..Disks::new(system)
        }
    }

    fn found(system: &System, clock: &mut Clock<'_>) -> Result<PathBuf, String> {
        let found = disks(system).wait_for_partition(clock);
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn the_partition_is_found_by_its_label_among_others() {
        let (_folder, system) = system_with(&[("sda1", "other"), ("vda2", LABEL), ("vda1", "")]);
        std::fs::write(system.path("sys/class/block/sr0"), "").unwrap();
        std::fs::write(system.path("dev/sr0"), "short").unwrap();
        let clock = &mut Clock::default();
        assert_eq!(found(&system, clock).unwrap(), system.path("dev/vda2"));
        assert!(clock.now < Duration::from_millis(500), "{:?}", clock.now);
        // The same by threads.
        let mut disks = Disks::new(&system);
        let found = disks.wait_for_partition(&mut Clock::default());
        assert_eq!(found.unwrap(), system.path("dev/vda2"));
    }

    #[test]
    fn two_partitions_with_the_label_are_refused() {
        let (_folder, system) = system_with(&[("sda2", LABEL), ("sdb2", LABEL)]);
        let error = found(&system, &mut Clock::default()).unwrap_err();
        assert!(error.contains("sda2") && error.contains("sdb2"), "{error}");
    }

    #[test]
    fn a_second_partition_behind_a_slower_controller_is_refused_too() {
        let (_folder, system) = system_with(&[]);
        let mut clock = Clock::with(|now| {
            connect(&system, "sda2", LABEL);
            if now > Duration::from_millis(200) {
                connect(&system, "sdb2", LABEL);
            }
        });
        let error = found(&system, &mut clock).unwrap_err();
        assert!(error.contains("sda2") && error.contains("sdb2"), "{error}");
        assert!(clock.now < Duration::from_millis(500), "{:?}", clock.now);
    }

    #[test]
    fn a_disk_that_is_pulled_out_at_once_is_said_to_be_gone() {
        let (_folder, system) = system_with(&[("sda2", LABEL)]);
        let mut clock = Clock::with(|_| {
            let _ = std::fs::remove_file(system.path("sys/class/block/sda2"));
        });
        let error = found(&system, &mut clock).unwrap_err();
        assert!(error.contains("is gone"), "{error}");
    }

    #[test]
    fn a_disk_that_spins_up_late_is_used_and_the_wait_for_it_is_shown() {
        let (_folder, system) = system_with(&[]);
        let mut waited = String::new();
        let mut clock = Clock::with(|now| {
            if now == Duration::from_secs(100) {
                waited = state::problem(&system, "data");
                connect(&system, "sda2", LABEL);
            }
        });
        assert_eq!(found(&system, &mut clock).unwrap(), system.path("dev/sda2"));
        assert!(clock.is_shown);
        drop(clock);
        assert!(
            waited.contains("is there yet. It is waited for"),
            "{waited}"
        );
    }

    #[test]
    fn without_a_disk_the_wait_ends_and_says_which_ones_tell_nothing() {
        let (_folder, system) = system_with(&[]);
        // What cannot be read: a folder.
        std::fs::write(system.path("sys/class/block/sdb"), "").unwrap();
        std::fs::create_dir(system.path("dev/sdb")).unwrap();
        let clock = &mut Clock::default();
        let error = found(&system, clock).unwrap_err();
        assert!(error.contains("found within 5 minutes"), "{error}");
        assert!(error.contains("sdb cannot be read: "), "{error}");
        assert_eq!(clock.now, DISKS_WAIT);
    }

    #[test]
    fn a_device_is_read_once_however_it_answers_and_another_in_its_place_again() {
        let (_folder, system) = system_with(&[("sda1", "other"), ("sdb1", "other")]);
        std::fs::remove_file(system.path("dev/sdb1")).unwrap();
        std::fs::create_dir(system.path("dev/sdb1")).unwrap();
        let mut disks = disks(&system);
        disks.look(Duration::ZERO);
        // Nobody looks again: what stands there now is not seen.
        std::fs::remove_dir(system.path("dev/sdb1")).unwrap();
        for name in ["sda1", "sdb1"] {
            connect(&system, name, LABEL);
        }
        disks.look(Duration::ZERO);
        assert_eq!(disks.only_one().unwrap(), None);
        for name in ["sda1", "sdb1"] {
            std::fs::remove_file(system.path("sys/class/block").join(name)).unwrap();
            std::fs::create_dir(system.path("sys/class/block").join(name)).unwrap();
        }
        std::fs::write(system.path("sys/class/block/sda1/diskseq"), "7\n").unwrap();
        disks.look(Duration::ZERO);
        assert_eq!(disks.only_one().unwrap(), Some(system.path("dev/sda1")));
    }

    #[test]
    fn a_disk_that_does_not_answer_holds_a_node_for_so_long_only_and_the_others_not_at_all() {
        let (_folder, system) = system_with(&[("sda1", "other"), ("vda2", LABEL)]);
        let mut disks = disks(&system);
        disks.look(Duration::ZERO);
        let stuck = Device::of(&system, "sda1".into());
        disks.known.insert(stuck, Known::Asked(Duration::ZERO));
        let clock = &mut Clock::default();
        let found = disks.wait_for_partition(clock).unwrap();
        assert_eq!(found, system.path("dev/vda2"));
        assert!(clock.is_shown);
        let most = ANSWER_WAIT + DISKS_INTERVAL_LATE;
        assert!((ANSWER_WAIT..most).contains(&clock.now), "{:?}", clock.now);
        assert_eq!(disks.broken(), " sda1 does not answer.");
    }

    #[test]
    fn a_wish_to_go_down_ends_the_wait() {
        let (_folder, system) = system_with(&[]);
        let clock = &mut Clock::down_after_a_second();
        let error = disks(&system).wait_for_partition(clock).unwrap_err();
        assert!(error.is::<crate::attended::GoingDown>(), "{error}");
    }

    #[test]
    fn a_label_that_only_begins_alike_is_another() {
        let (_folder, system) = system_with(&[("sda2", "truthdb-data2")]);
        assert!(!is_ours(&system.path("dev/sda2")).unwrap());
    }
}
