//! Tests of the installer's medium.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use truthdb_vm_tests::disk::empty;
use truthdb_vm_tests::{Bus, Disk, Machine, Spec};

use crate::Artefacts;
use crate::runtime::check_quiet;

/// From power on to the installer's first screen, on a real processor.
const BOOT: Duration = Duration::from_secs(60);
/// What the installer says on the serial line, whatever it shows there.
const FIRST_WORDS: &str = "TruthDB";
/// Bytes of the disk that could be installed on.
const DISK_BYTES: u64 = 16 << 30;
/// The boot record of a CD lies in the sector behind the volume descriptor. EDK2 looks at it on sticks too, and so
/// hides a partition table that is missing; other firmware does not.
const BOOT_RECORD: std::ops::Range<usize> = 17 * 2048..18 * 2048;

pub(crate) fn usb(artefacts: &Artefacts) -> Result<()> {
    let folder = folder(artefacts, "iso-usb")?;
    let mut bytes = std::fs::read(&artefacts.iso).context("reading the ISO")?;
    bytes
        .get_mut(BOOT_RECORD)
        .context("the ISO is cut short")?
        .fill(0);
    let stick = folder.join("stick.raw");
    std::fs::write(&stick, bytes).context("writing the stick")?;
    first_screen(&folder, Disk::new(&stick, "raw", Bus::Usb))
}

fn folder(artefacts: &Artefacts, name: &str) -> Result<PathBuf> {
    let folder = artefacts.work.join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

fn first_screen(folder: &Path, medium: Disk) -> Result<()> {
    let target = folder.join("target.qcow2");
    empty(&target, DISK_BYTES)?;
    let spec = Spec {
        disks: vec![medium, Disk::new(&target, "qcow2", Bus::Virtio)],
        network: false,
        ..Spec::default()
    };
    let mut machine = Machine::start(&spec, folder)?;
    machine.wait_for_serial("BdsDxe: starting", BOOT)?;
    let mut most_lines = 0;
    machine.wait("the installer shows its first screen", BOOT, |machine| {
        let screen = machine.screen()?;
        most_lines = most_lines.max(screen.console_lines());
        let serial = machine.serial();
        let said = serial.rsplit("BdsDxe: starting").next().unwrap_or_default();
        Ok((said.contains(FIRST_WORDS) && screen.is_drawn()).then_some(()))
    })?;
    machine.keep_screen("first")?;
    check_quiet(&machine)?;
    // The firmware's own lines may still have stood there.
    ensure!(
        most_lines <= 3,
        "{most_lines} lines of console text were on the screen"
    );
    Ok(())
}
