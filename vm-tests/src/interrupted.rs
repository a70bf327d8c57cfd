//! Installations whose power is cut, at moments that chance chooses.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use truthdb_vm_tests::disk::{overlay, read};
use truthdb_vm_tests::terminal::{page, plain};
use truthdb_vm_tests::{Bus, Disk, Machine, Spec};

use crate::Artefacts;
use crate::install::{BOOT, Bench, DISK_BYTES, INSTALL, Secrets, wait_for_append};

/// How often the power is cut.
const CUTS: u32 = 3;
/// A variable of the environment with the seed of an earlier run.
const SEED: &str = "TRUTHDB_VM_SEED";
/// Steps of an installation that are done when the power is cut: any number of them.
const STEPS: u64 = 8;
/// A step takes about so long, in milliseconds of a real processor.
const STEP_MS: u64 = 400;
/// What comes before the first partition on a disk: its table.
const TABLE_SECTORS: u64 = 34;

/// Numbers that follow from a seed: SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The power is cut again and again while answers are followed. What is left never starts by half; then the same
/// answers are followed to the end, although nobody cleans up.
pub(crate) fn power_cuts(artefacts: &Artefacts) -> Result<()> {
    let bench = Bench::new(artefacts, "install-power-cuts")?;
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed
            .parse()
            .with_context(|| format!("{SEED} is no number"))?,
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    println!("      install-power-cuts: the seed is {seed} ({SEED}={seed} repeats it)");
    let mut chance = Chance(seed);
    let disk = bench.disk("disk", DISK_BYTES, Bus::Virtio)?;
    let answers = "disk = \"TDB-VIRTIO-2\"\nwipe = true\n";
    // Even where the one before got to its end.
    let again = bench.answers(&format!("{answers}again = true\n"))?;
    let mut shown = None;
    for _ in 0..CUTS {
        shown = cut(&bench, &again, &disk, &mut chance)?;
    }
    let stick = bench.answers(answers)?;
    let mut machine = Machine::start(&spec(&bench, stick, &disk), &bench.folder)?;
    let end = ["TruthDB is installed", "is on this disk already"];
    let last = machine.wait("the answers are followed to the end", INSTALL, |machine| {
        let page = page(&machine.serial());
        let is_end = end.iter().any(|text| page.contains(text));
        Ok(is_end.then_some(page))
    })?;
    let secrets = match (Secrets::on(&last), shown) {
        (Ok(secrets), _) | (Err(_), Some(secrets)) => secrets,
        (Err(error), None) => return Err(error.context("a node whose token nobody has seen")),
    };
    machine.eject(0)?;
    machine.type_serial(b"\r")?;
    if Secrets::on(&last).is_ok() {
        machine.wait_for_serial("Have you written down the token?", BOOT)?;
        machine.type_serial(b"\r")?;
    }
    let client = bench.client(&machine, &secrets);
    wait_for_append(&mut machine, &client, "orders", 0)
}

fn spec(bench: &Bench<'_>, stick: Disk, disk: &Disk) -> Spec {
    Spec {
        disks: vec![bench.medium(), stick, disk.clone()],
        screen: false,
        ..Spec::default()
    }
}

/// One installation that is cut; the secrets, if it got so far as to show them.
fn cut(
    bench: &Bench<'_>,
    stick: &Disk,
    disk: &Disk,
    chance: &mut Chance,
) -> Result<Option<Secrets>> {
    let (steps, pause_ms) = (chance.below(STEPS), chance.below(STEP_MS));
    let mut machine = Machine::start(&spec(bench, stick.clone(), disk), &bench.folder)?;
    machine.wait("the installation has got that far", INSTALL, |machine| {
        let page = page(&machine.serial());
        let done = page.matches("[x] ").count() as u64;
        let is_far = page.contains("Installing TruthDB") && done >= steps;
        Ok((is_far || page.contains("TruthDB is installed")).then_some(()))
    })?;
    // A moment within the step, unless it was the last.
    let moment = machine.deadline(Duration::from_millis(pause_ms));
    moment.until(|| {
        let is_installed = page(&machine.serial()).contains("TruthDB is installed");
        Ok(is_installed.then_some(()))
    })?;
    let said = machine.serial();
    machine.pull_the_plug()?;
    let last = page(&said);
    let step = last.lines().find(|line| line.starts_with("[>]"));
    let step = step.unwrap_or("behind the last step");
    let table = read(&disk.path, 0, TABLE_SECTORS)?;
    if table[512..].starts_with(b"EFI PART") {
        println!("      install-power-cuts: cut at {step:?}: it starts");
        return starts(bench, disk).map(|()| Secrets::on(&plain(&said)).ok());
    }
    println!("      install-power-cuts: cut at {step:?}: nothing starts");
    ensure!(
        table.iter().all(|byte| *byte == 0),
        "there is half of a table on the disk"
    );
    Ok(None)
}

/// A disk with a table holds all that the node needs. It starts from a layer above the disk: answers make a node anew
/// that nobody has started, and ask about one that was.
fn starts(bench: &Bench<'_>, disk: &Disk) -> Result<()> {
    let started = bench.folder.join("started.qcow2");
    overlay(&disk.path, &started)?;
    let spec = Spec {
        disks: vec![Disk::new(&started, "qcow2", Bus::Virtio)],
        screen: false,
        ..Spec::default()
    };
    let mut machine = Machine::start(&spec, &bench.folder)?;
    machine.wait_for_serial("Serving.", BOOT)?;
    machine.pull_the_plug()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_cuts_at_the_same_moments() {
        let moments = |seed| {
            let mut chance = Chance(seed);
            [(); 20].map(|()| chance.below(STEPS))
        };
        assert_eq!(moments(7), moments(7));
        assert_ne!(moments(7), moments(8));
        assert!(moments(7).iter().all(|steps| *steps < STEPS));
    }
}
