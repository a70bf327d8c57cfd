//! Tests of the installed system.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use truthdb_vm_tests::disk::{Ext4, copy_sparse, flatten, overlay};
use truthdb_vm_tests::load::Load;
use truthdb_vm_tests::{Bus, Disk, Machine, Spec, http};

use crate::Artefacts;

/// From power on to a database that answers, on a real processor.
const BOOT: Duration = Duration::from_secs(60);
/// From the power button to the end.
const STOP: Duration = Duration::from_secs(30);
/// What the server says last when it stops by itself.
const STOPPED: &str = "\"message\":\"stopped\",\"clean_partitions\":";
/// From an empty database to a full disk.
const FILLING: Duration = Duration::from_secs(120);
/// Blocks of 4 KiB: room for a database and some segments of events.
const ROOM_BLOCKS: u64 = 60_000;
/// Bytes of an event that fills a disk.
const LARGE_BYTES: usize = 700_000;
/// Lines of text of the firmware that may still stand on a screen.
pub(crate) const FIRMWARE_LINES: usize = 3;
/// Events that are acknowledged before the power is cut.
const EVENTS_BEFORE_CUT: u64 = 200;
/// Writers of these events, each with one under way.
const WRITERS: usize = 4;
/// What the kernel says first, if it says anything.
const KERNEL_TEXT: [&str; 2] = ["Linux version", "Command line:"];
/// The kernel's last words at a shutdown and a restart, which no level of messages keeps off the line; and what stands
/// before them.
const LAST_WORDS: &str = "reboot: ";

/// A machine with a disk of its own that begins as the image.
struct Bench {
    folder: PathBuf,
    disk: PathBuf,
}

impl Bench {
    /// The disk begins as the image in the format with this extension.
    fn new(artefacts: &Artefacts, name: &str, format: &str) -> Result<Bench> {
        let folder = artefacts.work.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let disk = folder.join("disk.qcow2");
        overlay(&artefacts.disk.with_extension(format), &disk)?;
        Ok(Bench { folder, disk })
    }

    fn start(&self, bus: Bus, spec: Spec) -> Result<Machine> {
        let spec = Spec {
            disks: vec![Disk::new(&self.disk, "qcow2", bus)],
            ..spec
        };
        Machine::start(&spec, &self.folder)
    }

    /// Waits until the machine is off. Nothing was left to be recovered: neither a journal nor a log of the database
    /// that was not closed, and the node's own log on the disk says so.
    fn stopped_cleanly(&self, artefacts: &Artefacts, machine: &mut Machine) -> Result<()> {
        machine.wait_for_end(STOP)?;
        check_quiet(machine)?;
        let ext4 = Ext4::find(&artefacts.disk)?;
        ext4.check_clean(&self.disk)?;
        let raw = self.folder.join("stopped.raw");
        flatten(&self.disk, &raw)?;
        let log = ext4.file(&raw, "/log/node.log");
        std::fs::remove_file(&raw).context("removing a copy of a disk")?;
        let log = log?;
        ensure!(
            log.contains(STOPPED) && !log.contains("did not end"),
            "the node's log does not say that the server has stopped by itself:\n{log}"
        );
        Ok(())
    }
}

/// Nothing of the kernel's is on the serial line, but its last words.
pub(crate) fn check_quiet(machine: &Machine) -> Result<()> {
    let serial = machine.serial();
    let loud = serial.lines().find(|line| is_of_kernel(line));
    ensure!(
        loud.is_none(),
        "the kernel is heard on the serial line: {loud:?}\n{serial}"
    );
    Ok(())
}

/// A line of the kernel's begins with the seconds since its start: `[   12.345678] `.
fn is_of_kernel(line: &str) -> bool {
    let has_time = line.match_indices('[').any(|(at, _)| {
        let stamp = line[at + 1..].split(']').next().unwrap_or_default();
        let parts = stamp.trim_start().split_once('.');
        parts.is_some_and(|(seconds, rest)| {
            let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            !seconds.is_empty() && is_number(seconds) && rest.len() == 6 && is_number(rest)
        })
    });
    KERNEL_TEXT.iter().any(|text| line.contains(text)) || has_time && !line.contains(LAST_WORDS)
}

pub(crate) fn power_cut(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "power-cut", "raw")?;
    let mut machine = bench.start(Bus::Virtio, Spec::default())?;
    screens_until_serving(&mut machine)?;
    machine.wait_for_http("/readyz", BOOT)?;
    check_quiet(&machine)?;
    let flushes = machine.flushes()?;
    let load = Load::start(machine.port(), "load", WRITERS);
    machine.wait("events are acknowledged", BOOT, |_| {
        Ok((load.count() >= EVENTS_BEFORE_CUT).then_some(()))
    })?;
    let flushes = machine.flushes()? - flushes;
    machine.pull_the_plug()?;
    // What QEMU was given outlives QEMU, flushed or not: that the machine itself asked for it is counted. Each writer
    // has one event under way, so that a flush is for as many events at most.
    ensure!(
        flushes >= EVENTS_BEFORE_CUT / WRITERS as u64,
        "{EVENTS_BEFORE_CUT} events were acknowledged after {flushes} flushes of the disk"
    );
    let acknowledged = load.stop();
    let mut machine = bench.start(Bus::Virtio, Spec::default())?;
    machine.wait_for_http("/readyz", BOOT)?;
    acknowledged.check(machine.port())?;
    println!(
        "      power-cut: {} acknowledged events are there, after {flushes} flushes",
        acknowledged.total()
    );
    machine.press_power()?;
    bench.stopped_cleanly(artefacts, &mut machine)
}

/// Looks at the screen again and again from the firmware's end to the console's page: the splash, then pictures, and no
/// line of text but the firmware's own.
fn screens_until_serving(machine: &mut Machine) -> Result<()> {
    let (mut most_lines, mut splash) = (0, false);
    machine.wait("the console says that the node serves", BOOT, |machine| {
        let screen = machine.screen()?;
        // The firmware draws its own, until it hands over; then nobody writes text.
        if !machine.serial().contains("BdsDxe: starting") {
            return Ok(None);
        }
        most_lines = most_lines.max(screen.console_lines());
        splash |= screen.is_splash();
        let serves = machine.serial().contains("Serving.") && screen.is_drawn();
        Ok(serves.then_some(()))
    })?;
    machine.keep_screen("serving")?;
    ensure!(splash, "the splash was not seen");
    // The firmware's own lines (it says which entry it starts) may still stand there; a kernel writes more.
    ensure!(
        most_lines <= FIRMWARE_LINES,
        "{most_lines} lines of console text were on the screen"
    );
    Ok(())
}

pub(crate) fn headless_nvme(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "headless-nvme", "vhd")?;
    let spec = Spec {
        cpus: 1,
        memory_mib: 512,
        screen: false,
        ..Spec::default()
    };
    let mut machine = bench.start(Bus::Nvme, spec)?;
    machine.wait_for_http("/readyz", BOOT)?;
    check_quiet(&machine)
}

pub(crate) fn repaired_ahci(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "repaired-ahci", "qcow2")?;
    // Marked as having errors: every block and inode is looked at, and nothing is found.
    let ext4 = Ext4::find(&artefacts.disk)?;
    ext4.mark_unclean(&artefacts.disk, &bench.disk)?;
    let spec = Spec {
        cpus: 4,
        ends_at_reboot: true,
        ..Spec::default()
    };
    let mut machine = bench.start(Bus::Ahci, spec)?;
    machine.wait_for_http("/readyz", BOOT)?;
    machine.press(&["ctrl", "alt", "delete"])?;
    // Its errors are gone from the superblock: it was checked.
    bench.stopped_cleanly(artefacts, &mut machine)
}

/// No room before there is a database, then one that fills up while it serves.
pub(crate) fn full(artefacts: &Artefacts) -> Result<()> {
    let bench = Filled::new(artefacts, "full", 64)?;
    let mut machine = bench.start()?;
    machine.wait_for_serial("The data partition is full", BOOT)?;
    machine.press_power()?;
    machine.wait_for_end(STOP)?;
    let bench = Filled::new(artefacts, "full", ROOM_BLOCKS)?;
    let mut machine = bench.start()?;
    machine.wait_for_http("/readyz", BOOT)?;
    let refused = machine.wait("an append is refused", FILLING, |machine| {
        // No answer in time is none yet: the machine is emulated.
        let answer = http::post(machine.port(), "/v1/append", &large_event());
        Ok(answer.ok().filter(|answer| answer.status != 200))
    })?;
    ensure!(
        refused.status == 507 && refused.body.contains("DISK_FULL"),
        "a full disk is answered with {}: {}",
        refused.status,
        refused.body
    );
    machine.wait_for_serial("The data partition is full", BOOT)?;
    machine.keep_screen("full")?;
    let read = http::get(machine.port(), "/v1/streams/large/events?limit=1")?;
    ensure!(
        read.status == 200,
        "reads are answered with {}: {}",
        read.status,
        read.body
    );
    machine.press_power()?;
    machine.wait_for_end(STOP)?;
    bench.remove()
}

/// An event that fills a disk quickly.
fn large_event() -> String {
    let payload = "x".repeat(LARGE_BYTES);
    json!({ "events": [{ "stream": "large", "type": "filled", "payload": payload }] }).to_string()
}

/// A disk of its own with little room on its data partition.
struct Filled {
    folder: PathBuf,
    image: PathBuf,
}

impl Filled {
    fn new(artefacts: &Artefacts, name: &str, blocks_left: u64) -> Result<Filled> {
        let folder = artefacts.work.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let image = folder.join("full.raw");
        copy_sparse(&artefacts.disk, &image)?;
        Ext4::find(&image)?.fill(&image, blocks_left)?;
        Ok(Filled { folder, image })
    }

    fn start(&self) -> Result<Machine> {
        let spec = Spec {
            disks: vec![Disk::new(&self.image, "raw", Bus::Virtio)],
            ..Spec::default()
        };
        Machine::start(&spec, &self.folder)
    }

    fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.image).context("removing the full disk")
    }
}

pub(crate) fn damaged(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "damaged", "raw")?;
    Ext4::find(&artefacts.disk)?.damage(&artefacts.disk, &bench.disk)?;
    let mut machine = bench.start(Bus::Virtio, Spec::default())?;
    machine.wait_for_serial("is damaged beyond what is repaired by itself", BOOT)?;
    // The console's page: everything else of the node has started, and a server could be reached.
    machine.wait_for_serial("Not serving: the server was not started.", BOOT)?;
    machine.wait_for_serial("10.0.2.15", BOOT)?;
    ensure!(
        http::get(machine.port(), "/healthz").is_err(),
        "something answers although the disk is damaged"
    );
    machine.press_power()?;
    machine.wait_for_end(STOP)?;
    // The console shows it for as long as it runs; what looked at the disk said it once.
    let said = machine.serial().matches("truthdb-node prepare:").count();
    ensure!(said == 1, "the disk was looked at {said} times");
    ensure!(
        !machine.serial().contains("umount"),
        "the console is told that what was never mounted cannot be unmounted"
    );
    missing(artefacts)
}

/// Without a data disk it is waited for one, minutes long, before init comes to the lines of its table that listen: on
/// the screen, and with a power button that works.
fn missing(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "missing", "raw")?;
    Ext4::find(&artefacts.disk)?.erase(&bench.disk)?;
    let mut machine = bench.start(Bus::Virtio, Spec::default())?;
    machine.wait_for_serial("truthdb-data", BOOT)?;
    machine.wait("the console is on the screen", BOOT, |machine| {
        Ok(machine.screen()?.is_drawn().then_some(()))
    })?;
    machine.keep_screen("missing")?;
    machine.press_power()?;
    machine.wait_for_end(STOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_told_from_what_the_node_says() {
        for line in [
            "[    0.000000] Linux version 6.12",
            "[   12.345678] EXT4-fs (vda2): mounted",
            "x [12.345678] y",
        ] {
            assert!(is_of_kernel(line), "{line}");
        }
        for line in [
            "[   12.345678] reboot: Power down",
            "TruthDB [x] done",
            "[12.3] [] [a.bcdefg]",
            "",
        ] {
            assert!(!is_of_kernel(line), "{line}");
        }
    }
}
