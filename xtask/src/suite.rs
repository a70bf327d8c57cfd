//! `cargo xtask test`: named steps, each timed and counted; all run, and all failures are reported.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lexopt::prelude::{Long, ValueExt as _};

use crate::appliance;
use crate::demo;
use crate::install::{self, Libc};
use crate::modules;
use crate::process::{cargo, command, root, run, target_dir, tee};
use crate::summary::Count;
use crate::tidy;
use crate::tools;

/// A step: its name, whether `--quick` has it, what it is for, and what it does.
struct Step {
    name: &'static str,
    quick: bool,
    what: &'static str,
    run: fn(Libc) -> Result<Count>,
}

/// Seeds of the simulator, from 1 on.
const SIM_SEEDS: u64 = 2000;
/// Processes killed under load.
const CRASH_KILLS: u64 = 50;

const STEPS: [Step; 18] = [
    step("fmt", true, "formatting", |_| fmt()),
    step("tidy", true, "style rules of our own", |_| tidy::check()),
    step("clippy", true, "lints, warnings are errors", |_| clippy()),
    step("tests", true, "unit and integration tests", |_| tests()),
    step(
        "verifier",
        true,
        "the stand-alone verifier of proofs",
        |_| verifier(),
    ),
    step("docs", true, "documentation and its examples", |_| docs()),
    step("fuzz", true, "decoders, fed with mutated inputs", fuzz),
    step(
        "sim",
        true,
        "the engine on a simulated machine that fails",
        sim,
    ),
    step("workflows", true, "workflow files", |_| workflows()),
    step(
        "canaries",
        false,
        "planted bugs, which the simulator must find",
        canaries,
    ),
    step("crash", false, "real processes, killed under load", crash),
    step(
        "deny",
        false,
        "licences and sources of dependencies",
        |_| deny(),
    ),
    step("static", false, "the static binary", |_| static_binary()),
    step("libcs", false, "faults and modules with both libcs", |_| {
        modules::libcs()
    }),
    step(
        "languages",
        false,
        "the same module in four languages",
        modules::languages,
    ),
    step(
        "images",
        false,
        "images, assembled twice with the same bytes",
        |_| appliance::images_step(),
    ),
    step(
        "vm",
        false,
        "the images, booted in virtual machines",
        |_| appliance::vm_step(),
    ),
    step("demo", false, "`cargo xtask run --once`", demonstration),
];

const fn step(
    name: &'static str,
    quick: bool,
    what: &'static str,
    run: fn(Libc) -> Result<Count>,
) -> Step {
    Step {
        name,
        quick,
        what,
        run,
    }
}

/// Runs the steps; the answer is whether all passed.
pub(crate) fn main(parser: &mut lexopt::Parser) -> Result<bool> {
    let mut quick = false;
    let mut only = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => quick = true,
            Long("only") => only.push(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some(unknown) = only
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != **name))
    {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!(
            "there is no step {unknown:?}; there are {}",
            names.join(", ")
        );
    }
    let wanted = |step: &&Step| {
        if only.is_empty() {
            step.quick || !quick
        } else {
            only.iter().any(|name| name == step.name)
        }
    };
    install::toolchain()?;
    // A part of the suite needs Rust only.
    let is_whole = !quick && only.is_empty();
    let libc = if is_whole { Libc::Musl } else { Libc::Host };
    let kept = if is_whole {
        install::compile_cache()?
    } else {
        None
    };
    if is_whole {
        // Steps that need what is missing fail by themselves, and the others still run.
        if let Err(error) = appliance::tools_of_tests() {
            println!("    tools of tests are missing: {error:#}");
        }
        if let Err(error) = appliance::begin_kernels() {
            println!("    the kernels are not built ahead: {error:#}");
        }
    }
    let outcomes = STEPS.iter().filter(wanted);
    let outcomes: Vec<Outcome> = outcomes.map(|step| Outcome::of(step, libc)).collect();
    if let Some(kept) = kept
        && let Err(error) = kept.end()
    {
        println!("    the cache of compilers does not end: {error:#}");
    }
    Ok(report(&outcomes))
}

struct Outcome {
    name: &'static str,
    count: Count,
    took: Duration,
    error: Option<anyhow::Error>,
}

impl Outcome {
    fn of(step: &Step, libc: Libc) -> Self {
        println!("\n==> {}: {}", step.name, step.what);
        let start = now();
        let (count, error) = match (step.run)(libc) {
            Ok(count) => (count, None),
            Err(error) => (
                Count {
                    passed: 0,
                    failed: 1,
                },
                Some(error),
            ),
        };
        let took = start.elapsed();
        if let Some(error) = &error {
            println!("    error: {error:#}");
        }
        println!(
            "    {} passed, {} failed in {:.1} s",
            count.passed,
            count.failed,
            took.as_secs_f64()
        );
        Self {
            name: step.name,
            count,
            took,
            error,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a step takes is for people, not for logic"
)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Prints a line for each step, and the totals in the last line; the answer is whether nothing failed.
fn report(outcomes: &[Outcome]) -> bool {
    let total = outcomes
        .iter()
        .fold(Count::default(), |sum, outcome| sum.plus(outcome.count));
    println!("\n==> summary");
    for Outcome {
        name,
        count,
        took,
        error,
    } in outcomes
    {
        let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
        let seconds = took.as_secs_f64();
        println!(
            "    {name:<10} {verdict:<7} {:>6} passed {:>4} failed {seconds:>8.1} s",
            count.passed, count.failed
        );
        if let Some(error) = error {
            println!("        {error:#}");
        }
    }
    // Whoever calls this reads the last line.
    println!("{} passed, {} failed", total.passed, total.failed);
    total.failed == 0
}

/// Runs a command and counts what its output says.
fn counted(command: &mut Command) -> Result<Count> {
    let (status, output) = tee(command)?;
    Ok(Count::of_step(&output, status.success()))
}

fn fmt() -> Result<Count> {
    counted(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<Count> {
    let workspace = counted(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--keep-going",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    Ok(workspace.plus(counted(&mut modules::clippy())?))
}

fn tests() -> Result<Count> {
    let mut nextest = install::cargo_tool(&install::NEXTEST)?;
    counted(nextest.args([
        "nextest",
        "run",
        "--workspace",
        "--locked",
        "--no-fail-fast",
    ]))
}

fn verifier() -> Result<Count> {
    let python = install::python()?;
    counted(command(python).arg("clients/verify-proof/test_verify_proof.py"))
}

/// Some seconds of it; `cargo xtask fuzz --runs N` is for longer.
fn fuzz(libc: Libc) -> Result<Count> {
    counted(&mut tools::fuzz(libc)?)
}

fn docs() -> Result<Count> {
    let build = counted(
        cargo()
            .args([
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--locked",
            ])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    Ok(build.plus(counted(cargo().args([
        "test",
        "--workspace",
        "--doc",
        "--locked",
    ]))?))
}

/// Each seed is a test.
fn sim(libc: Libc) -> Result<Count> {
    let arguments = ["seeds".into(), format!("--count={SIM_SEEDS}").into()];
    each(SIM_SEEDS, &mut tools::sim(&arguments, libc)?)
}

fn canaries(libc: Libc) -> Result<Count> {
    let (status, output) = tee(&mut tools::canaries(libc)?)?;
    let found = output
        .lines()
        .filter(|line| line.contains(": found by seed "))
        .count();
    Ok(Count {
        passed: found as u64,
        failed: u64::from(!status.success()),
    })
}

/// Each kill is a test.
fn crash(libc: Libc) -> Result<Count> {
    let arguments = ["crash-loop".into(), format!("--kills={CRASH_KILLS}").into()];
    each(CRASH_KILLS, &mut tools::sim(&arguments, libc)?)
}

/// So many tests if the command succeeds; else one failure, since it stops there.
fn each(tests: u64, command: &mut Command) -> Result<Count> {
    let (status, _) = tee(command)?;
    Ok(if status.success() {
        Count {
            passed: tests,
            failed: 0,
        }
    } else {
        Count {
            passed: 0,
            failed: 1,
        }
    })
}

/// The schema of workflow files, and an audit of what they may do. Offline: nothing is asked of the network.
fn workflows() -> Result<Count> {
    let python = install::python()?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join(".github/workflows"))
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .context("reading .github/workflows")?;
    files.sort();
    let tool = |name: &str| command(python.with_file_name(name));
    let schema = counted(
        tool("check-jsonschema")
            .args(["--builtin-schema", "vendor.github-workflows"])
            .args(&files),
    )?;
    let audit = counted(
        tool("zizmor")
            .args(["--offline", "--quiet", "--no-progress"])
            .args(&files),
    )?;
    Ok(schema.plus(audit))
}

fn deny() -> Result<Count> {
    let mut deny = install::cargo_tool(&install::DENY)?;
    counted(deny.args([
        "--locked",
        "--all-features",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// Builds the static binary, and makes and verifies a database with it.
fn static_binary() -> Result<Count> {
    let binary = tools::programs(&["truthdb"], &[], Libc::Musl)?.join("truthdb");
    let elf = std::fs::read(&binary).context("reading the static binary")?;
    ensure!(
        !needs_interpreter(&elf)?,
        "{} is not static",
        binary.display()
    );
    let folder = scratch("static")?;
    let data = folder.join("data");
    run(command(&binary).arg("--version"))?;
    run(command(&binary)
        .arg("init")
        .arg("--data")
        .arg(&data)
        .args(["--partitions", "2"]))?;
    run(command(&binary).arg("verify").arg("--data").arg(&data))?;
    std::fs::remove_dir_all(&folder).context("removing the scratch folder")?;
    // Static, starts, makes a database, verifies it.
    Ok(Count {
        passed: 4,
        failed: 0,
    })
}

/// Whether an ELF file asks for a dynamic loader.
fn needs_interpreter(elf: &[u8]) -> Result<bool> {
    const PROGRAM_INTERPRETER: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*elf.get(at..)?.first_chunk()?));
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "it is not a 64-bit little-endian ELF file"
    );
    let headers = || Some((u64_at(32)?, usize::from(u16_at(54)?), u16_at(56)?));
    let (offset, entry_bytes, count) = headers().context("the ELF file is cut short")?;
    let offset = usize::try_from(offset).context("the ELF file is too large")?;
    let mut kinds = (0..usize::from(count)).map(|index| {
        let header = elf.get(offset + index * entry_bytes..)?;
        Some(u32::from_le_bytes(*header.first_chunk()?))
    });
    Ok(kinds.any(|kind| kind == Some(PROGRAM_INTERPRETER)))
}

/// The demonstration as a newcomer sees it, in a folder and on ports of its own.
fn demonstration(libc: Libc) -> Result<Count> {
    let folder = scratch("demo")?;
    let port = demo::free_ports()?.to_string();
    let mut demo = command(std::env::current_exe().context("the path of this program")?);
    demo.args(["run", "--once", "--port", &port, "--data"])
        .arg(folder.join("demo"));
    if libc == Libc::Musl {
        demo.arg("--static");
    }
    let count = counted(&mut demo)?;
    std::fs::remove_dir_all(&folder).context("removing the scratch folder")?;
    Ok(count)
}

/// An empty folder below the target directory.
fn scratch(name: &str) -> Result<PathBuf> {
    let folder: &Path = &target_dir().join("xtask").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("emptying {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_binary_is_told_from_a_static_one() {
        let mut elf = vec![0u8; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 2;
        elf[64] = 1;
        elf[64 + 56] = 6;
        assert!(!needs_interpreter(&elf).unwrap());
        elf[64 + 56] = 3;
        assert!(needs_interpreter(&elf).unwrap());
        assert!(needs_interpreter(b"#!/bin/sh").is_err());
    }

    #[test]
    fn steps_have_distinct_names() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(
                STEPS[..at].iter().all(|other| other.name != step.name),
                "{}",
                step.name
            );
        }
    }
}
