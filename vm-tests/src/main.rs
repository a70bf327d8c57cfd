//! `truthdb-vm`: tests of the real images in virtual machines, and a machine to look at by hand. Started by
//! `cargo xtask vm` and `cargo xtask image --boot`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

mod boot;
mod medium;
mod runtime;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};
use truthdb_vm_tests::machine::acceleration;
use truthdb_vm_tests::wait::Deadline;

const USAGE: &str = "\
Usage: truthdb-vm test --disk IMAGE --iso IMAGE --work DIR [--only NAME]...
       truthdb-vm list
       truthdb-vm boot FILE [--cd | --usb]

  test   Boots the images and looks at them from outside; the last line counts.
         --disk  raw image of an installed system, with vm-tests/config/plain.toml as configuration
         --iso   the installer's medium
         --work  folder for disks, logs and screens of the machines
         --only  the named tests
  boot   Starts a machine with an image, its serial line in this terminal.
";

/// What the tests get.
pub(crate) struct Artefacts {
    /// Raw image of an installed system.
    pub(crate) disk: PathBuf,
    /// The installer's medium.
    pub(crate) iso: PathBuf,
    /// Folder for everything that a test makes.
    pub(crate) work: PathBuf,
}

/// A test: its name, what it shows, and the test.
struct Test {
    name: &'static str,
    what: &'static str,
    run: fn(&Artefacts) -> Result<()>,
}

const TESTS: [Test; 6] = [
    Test {
        name: "power-cut",
        what: "virtio, two processors: serves; survives a power cut under load; the power button stops it cleanly",
        run: runtime::power_cut,
    },
    Test {
        name: "headless-nvme",
        what: "NVMe, one processor, neither screen nor keyboard: serves",
        run: runtime::headless_nvme,
    },
    Test {
        name: "repaired-ahci",
        what: "AHCI, four processors, a file system that needs a check: repaired, serves; Ctrl-Alt-Del restarts",
        run: runtime::repaired_ahci,
    },
    Test {
        name: "damaged",
        what: "a file system beyond repair: said on the console, nothing is started on it",
        run: runtime::damaged,
    },
    Test {
        name: "iso-cd",
        what: "the ISO in a CD drive, an empty disk beside it: the installer's first screen, and no text before it",
        run: medium::cd,
    },
    Test {
        name: "iso-usb",
        what: "the ISO on a USB stick that firmware cannot take for a CD: the installer's first screen",
        run: medium::usb,
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
            "boot" => boot::main(&mut parser).map(|()| true),
            "list" => {
                for test in &TESTS {
                    println!("{:<16} {}", test.name, test.what);
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
    let (mut disk, mut iso, mut work, mut only) = (None, None, None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("disk") => disk = Some(PathBuf::from(parser.value()?)),
            Long("iso") => iso = Some(PathBuf::from(parser.value()?)),
            Long("work") => work = Some(PathBuf::from(parser.value()?)),
            Long("only") => only.push(parser.value()?.string()?),
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
        work: work.context("--work is missing")?,
    };
    println!("      machines run on {}", acceleration());
    let (mut passed, mut failed) = (0, 0);
    for test in &TESTS {
        if !only.is_empty() && only.iter().all(|name| name != test.name) {
            continue;
        }
        println!("      {}: {}", test.name, test.what);
        let took = Deadline::after(std::time::Duration::ZERO);
        let outcome = (test.run)(&artefacts);
        let seconds = took.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("      {}: ok, {seconds:.1} s", test.name);
            }
            Err(error) => {
                failed += 1;
                println!(
                    "      {}: FAILED after {seconds:.1} s: {error:#}",
                    test.name
                );
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}
