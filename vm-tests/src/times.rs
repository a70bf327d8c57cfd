//! How long the images take to boot, measured where nothing but emulation may be at hand.
//!
//! Seconds of an emulated machine say more about the host than about the image. Instructions do not: they are counted
//! from power on to each mark, and are the same on a busy host but for a few interrupts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lexopt::prelude::Long;
use truthdb_vm_tests::disk::{empty, overlay};
use truthdb_vm_tests::wait::Deadline;
use truthdb_vm_tests::{Bus, Disk, Machine, Spec, http};

/// From one mark to the next, on a real processor.
const STEP: Duration = Duration::from_secs(60);
/// Bytes of the disk that the installer finds.
const DISK_BYTES: u64 = 16 << 30;

/// The marks of one machine, as far as they were reached.
struct Marks {
    machine: Machine,
    since: Deadline,
    before: (u64, f64),
}

impl Marks {
    fn start(name: &str, disks: Vec<Disk>, folder: &Path) -> Result<Marks> {
        println!("{name}");
        let spec = Spec {
            disks,
            cpus: 1,
            counts_instructions: true,
            ..Spec::default()
        };
        Ok(Marks {
            machine: Machine::start(&spec, folder)?,
            since: Deadline::after(Duration::ZERO),
            before: (0, 0.0),
        })
    }

    fn reach(
        &mut self,
        mark: &str,
        mut reached: impl FnMut(&mut Machine) -> Result<bool>,
    ) -> Result<()> {
        self.machine
            .wait(mark, STEP, |machine| Ok(reached(machine)?.then_some(())))?;
        let now = (
            self.machine.instructions()?,
            self.since.elapsed().as_secs_f64(),
        );
        let (instructions, seconds) = (now.0 - self.before.0, now.1 - self.before.1);
        println!(
            "  {mark:<40} {:>9.1} M instructions, {seconds:>6.1} s emulated",
            instructions as f64 / 1e6
        );
        self.before = now;
        Ok(())
    }

    fn reach_firmware(&mut self) -> Result<()> {
        self.reach("firmware starts the image", |machine| {
            Ok(machine.serial().contains("BdsDxe: starting"))
        })?;
        self.reach("the image shows its splash", |machine| {
            Ok(machine.screen()?.is_splash())
        })
    }
}

/// Boots both images and prints the marks.
///
/// # Errors
///
/// An image that does not boot; with a report.
pub(crate) fn main(parser: &mut lexopt::Parser) -> Result<()> {
    let (mut disk, mut iso, mut work) = (None, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("disk") => disk = Some(PathBuf::from(parser.value()?)),
            Long("iso") => iso = Some(PathBuf::from(parser.value()?)),
            Long("work") => work = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    let folder = work.context("--work is missing")?.join("times");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    medium(&iso.context("--iso is missing")?, &folder)?;
    node(&disk.context("--disk is missing")?, &folder)
}

fn medium(iso: &Path, folder: &Path) -> Result<()> {
    let target = folder.join("target.qcow2");
    empty(&target, DISK_BYTES)?;
    let disks = vec![
        Disk::new(iso, "raw", Bus::Cd),
        Disk::new(&target, "qcow2", Bus::Virtio),
    ];
    let mut marks = Marks::start("installer's medium", disks, folder)?;
    marks.reach_firmware()?;
    marks.reach("the installer shows its first picture", |machine| {
        Ok(machine.screen()?.is_drawn())
    })
}

fn node(image: &Path, folder: &Path) -> Result<()> {
    let disk = folder.join("disk.qcow2");
    overlay(image, &disk)?;
    let disks = vec![Disk::new(&disk, "qcow2", Bus::Virtio)];
    let mut marks = Marks::start("installed node", disks, folder)?;
    marks.reach_firmware()?;
    marks.reach("the database answers a query", |machine| {
        let answer = http::get(machine.port(), "/v1/partitions/0/events");
        Ok(answer.is_ok_and(|answer| answer.status == 200))
    })
}
