//! `truthdb-vm`: tests of the real images in virtual machines, and a machine to look at by hand. Started by
//! `cargo xtask vm` and `cargo xtask image --boot`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

mod boot;
mod first_start;
mod install;
mod interrupted;
mod medium;
mod runtime;
mod times;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};
use truthdb_vm_tests::machine::acceleration;
use truthdb_vm_tests::wait::Deadline;

const USAGE: &str = "\
Usage: truthdb-vm test --disk IMAGE --iso IMAGE --signed-iso IMAGE --truthdb FILE --work DIR [--only NAME]... [--jobs N]
       truthdb-vm times --disk IMAGE --iso IMAGE --work DIR
       truthdb-vm list
       truthdb-vm boot FILE [--cd | --usb]

  test   Boots the images and looks at them from outside; the last line counts.
         --disk  raw image of an installed system, with vm-tests/config/plain.toml as configuration; the same
                 as qcow2 and VHD lie beside it
         --iso   the installer's medium; its unified kernel image lies beside it
         --signed-iso  the same medium, with both images signed by the key for tests of the distribution's firmware
         --truthdb  the program that clients have
         --work  folder for disks, logs and screens of the machines
         --only  the named tests
         --jobs  tests at a time (default: as many as there are processors)
  times  Boots both images, and counts instructions up to the first picture and the first answer.
  boot   Starts a machine with an image, its serial line in this terminal.
";

/// What the tests get.
pub(crate) struct Artefacts {
    /// Raw image of an installed system.
    pub(crate) disk: PathBuf,
    /// The installer's medium.
    pub(crate) iso: PathBuf,
    /// The same, signed with the key for tests of the firmware.
    pub(crate) signed_iso: PathBuf,
    /// The program that clients have.
    pub(crate) truthdb: PathBuf,
    /// Folder for everything that a test makes.
    pub(crate) work: PathBuf,
}

/// A test: its name, what it shows, and the test.
struct Test {
    name: &'static str,
    what: &'static str,
    run: fn(&Artefacts) -> Result<()>,
}

/// Those that take longest first: they run two at a time, and the last must not run alone for long.
const TESTS: [Test; 14] = [
    Test {
        name: "full",
        what: "no room for a database, then none for events: said on the console, reads go on; stops cleanly",
        run: runtime::full,
    },
    Test {
        name: "install-power-cuts",
        what: "answers, the power cut at random moments: nothing starts by half; then the same answers just work",
        run: interrupted::power_cuts,
    },
    Test {
        name: "install-keys",
        what: "CD, keyboard, two disks: installed, serves with the token shown; power cut; reinstalled by serial line",
        run: install::by_keys,
    },
    Test {
        name: "install-unattended",
        what: "no screen, NVMe disks of 4096-byte sectors, a wrong clock: answers on a stick, once; fixed address",
        run: install::unattended,
    },
    Test {
        name: "install-bad-disks",
        what: "too small, protected, a bad sector, pulled out, power cut: said, logs on a stick; a rerun just works",
        run: install::bad_disks,
    },
    Test {
        name: "power-cut",
        what: "virtio, two processors: serves; survives a power cut under load; the power button stops it cleanly",
        run: runtime::power_cut,
    },
    Test {
        name: "secure-boot-own-keys",
        what: "Secure Boot on, images signed with a key that is enrolled: installed, and the node serves",
        run: install::own_keys,
    },
    Test {
        name: "repaired-ahci",
        what: "AHCI, four processors, from the qcow2, a file system that needs a check: repaired, serves; Ctrl-Alt-Del",
        run: runtime::repaired_ahci,
    },
    Test {
        name: "first-start",
        what: "an image that nobody configured: TLS, a token shown until the restart; the console's keys",
        run: first_start::first_start,
    },
    Test {
        name: "headless-nvme",
        what: "NVMe, one processor, neither screen nor keyboard, from the VHD: serves",
        run: runtime::headless_nvme,
    },
    Test {
        name: "install-no-variables",
        what: "firmware variables out of reach, framebuffer: installed by the command line; what is missing is said",
        run: install::no_variables,
    },
    Test {
        name: "damaged",
        what: "a file system beyond repair, or none: said on the console, nothing is started; the power button works",
        run: runtime::damaged,
    },
    Test {
        name: "iso-usb",
        what: "the ISO on a USB stick that firmware cannot take for a CD: the installer's first screen",
        run: medium::usb,
    },
    Test {
        name: "secure-boot",
        what: "Secure Boot on: the firmware refuses the image, and says so",
        run: install::secure_boot,
    },
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(Value(command)) => match command.string()?.as_str() {
            "test" => test(&mut parser),
            "times" => times::main(&mut parser).map(|()| true),
            "boot" => boot::main(&mut parser).map(|()| true),
            "list" => {
                for test in &TESTS {
                    println!("{:<20} {}", test.name, test.what);
                }
                Ok(true)
            }
            other => bail!("there is no command {other:?}\n{USAGE}"),
        },
        Some(Long("help") | Short('h')) | None => {
            print!("{USAGE}");
            Ok(true)
        }
        Some(other) => Err(other.unexpected().into()),
    }
}

fn test(parser: &mut lexopt::Parser) -> Result<bool> {
    let (mut disk, mut iso, mut signed_iso) = (None, None, None);
    let (mut truthdb, mut work) = (None, None);
    let mut only = Vec::new();
    let mut jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("disk") => disk = Some(PathBuf::from(parser.value()?)),
            Long("iso") => iso = Some(PathBuf::from(parser.value()?)),
            Long("signed-iso") => signed_iso = Some(PathBuf::from(parser.value()?)),
            Long("truthdb") => truthdb = Some(PathBuf::from(parser.value()?)),
            Long("work") => work = Some(PathBuf::from(parser.value()?)),
            Long("only") => only.push(parser.value()?.string()?),
            Long("jobs") => jobs = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some(unknown) = only
        .iter()
        .find(|name| TESTS.iter().all(|test| test.name != **name))
    {
        bail!("there is no test {unknown:?}; `truthdb-vm list` names them");
    }
    let artefacts = Artefacts {
        disk: disk.context("--disk is missing")?,
        iso: iso.context("--iso is missing")?,
        signed_iso: signed_iso.context("--signed-iso is missing")?,
        truthdb: truthdb.context("--truthdb is missing")?,
        work: work.context("--work is missing")?,
    };
    let wanted = |test: &&Test| only.is_empty() || only.iter().any(|name| name == test.name);
    let mut left: Vec<&Test> = TESTS.iter().filter(wanted).collect();
    println!(
        "      machines run on {}, {} at a time",
        acceleration(),
        jobs.clamp(1, left.len().max(1))
    );
    // The first one in the list is started first.
    left.reverse();
    let (count, left) = (left.len(), Mutex::new(left));
    let passed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, count.max(1)) {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let Some(test) = next else { break };
                    if one(test, &artefacts) {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let passed = passed.into_inner();
    let failed = count - passed;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// Runs a test; whether it passed.
fn one(test: &Test, artefacts: &Artefacts) -> bool {
    println!("      {}: {}", test.name, test.what);
    let took = Deadline::after(std::time::Duration::ZERO);
    let outcome = (test.run)(artefacts);
    let seconds = took.elapsed().as_secs_f64();
    match &outcome {
        Ok(()) => println!("      {}: ok, {seconds:.1} s", test.name),
        Err(error) => println!(
            "      {}: FAILED after {seconds:.1} s: {error:#}",
            test.name
        ),
    }
    outcome.is_ok()
}
