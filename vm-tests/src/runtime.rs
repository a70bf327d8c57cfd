//! Tests of the installed system.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use truthdb_vm_tests::disk::{Ext4, copy_sparse, overlay};
use truthdb_vm_tests::load::Load;
use truthdb_vm_tests::{Bus, Disk, Machine, Spec, http};

use crate::Artefacts;

/// From power on to a database that answers, on a real processor.
const BOOT: Duration = Duration::from_secs(60);
/// From the power button to the end.
const STOP: Duration = Duration::from_secs(30);
/// Events that are acknowledged before the power is cut.
const EVENTS_BEFORE_CUT: u64 = 200;
/// What the kernel says first, if it says anything.
const KERNEL_TEXT: [&str; 3] = ["Linux version", "[    0.", "Command line:"];

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
}

/// Nothing of the kernel's is on the serial line.
pub(crate) fn check_quiet(machine: &Machine) -> Result<()> {
    let serial = machine.serial();
    let loud = KERNEL_TEXT.iter().find(|text| serial.contains(**text));
    ensure!(
        loud.is_none(),
        "the kernel is heard on the serial line:\n{serial}"
    );
    Ok(())
}

pub(crate) fn power_cut(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "power-cut", "raw")?;
    let mut machine = bench.start(Bus::Virtio, Spec::default())?;
    // Every screen between the first one of the firmware and the answer is looked at.
    let mut most_lines = 0;
    machine.wait("the database answers", BOOT, |machine| {
        let screen = machine.screen()?;
        // The firmware draws its own, until it hands over; then nobody writes text.
        if !machine.serial().contains("BdsDxe: starting") {
            return Ok(None);
        }
        most_lines = most_lines.max(screen.console_lines());
        let answer = http::get(machine.port(), "/readyz");
        Ok(answer.ok().filter(|answer| answer.status == 200))
    })?;
    check_quiet(&machine)?;
    machine.keep_screen("serving")?;
    // The firmware's own lines (it says which entry it starts) may still stand there; a kernel writes more.
    ensure!(
        most_lines <= 3,
        "{most_lines} lines of console text were on the screen"
    );
    let load = Load::start(machine.port(), "load", 4);
    machine.wait("events are acknowledged", BOOT, |_| {
        Ok((load.count() >= EVENTS_BEFORE_CUT).then_some(()))
    })?;
    machine.pull_the_plug()?;
    let acknowledged = load.stop();
    let mut machine = bench.start(Bus::Virtio, Spec::default())?;
    machine.wait_for_http("/readyz", BOOT)?;
    acknowledged.check(machine.port())?;
    println!(
        "      power-cut: {} acknowledged events are there",
        acknowledged.total()
    );
    machine.press_power()?;
    machine.wait_for_end(STOP)?;
    // The log of the node, kept on the disk, says how the server stopped.
    let serial = machine.serial();
    ensure!(
        !serial.contains("did not end"),
        "the server was not stopped cleanly:\n{serial}"
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
    machine.wait_for_end(STOP)
}

pub(crate) fn full(artefacts: &Artefacts) -> Result<()> {
    let folder = artefacts.work.join("full");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let image = folder.join("full.raw");
    copy_sparse(&artefacts.disk, &image)?;
    Ext4::find(&image)?.fill(&image)?;
    let spec = Spec {
        disks: vec![Disk::new(&image, "raw", Bus::Virtio)],
        ..Spec::default()
    };
    let mut machine = Machine::start(&spec, &folder)?;
    machine.wait_for_serial("The data partition is full", BOOT)?;
    machine.press_power()?;
    machine.wait_for_end(STOP)?;
    std::fs::remove_file(&image).context("removing the full disk")
}

pub(crate) fn damaged(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "damaged", "raw")?;
    Ext4::find(&artefacts.disk)?.damage(&bench.disk)?;
    let mut machine = bench.start(Bus::Virtio, Spec::default())?;
    machine.wait_for_serial("is damaged beyond what is repaired by itself", BOOT)?;
    ensure!(
        http::get(machine.port(), "/healthz").is_err(),
        "something answers although the disk is damaged"
    );
    machine.press_power()?;
    machine.wait_for_end(STOP)?;
    // The console shows it for as long as it runs; what looked at the disk said it once.
    let said = machine.serial().matches("truthdb-node prepare:").count();
    ensure!(said == 1, "the disk was looked at {said} times");
    Ok(())
}
