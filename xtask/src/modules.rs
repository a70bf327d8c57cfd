//! Modules in other languages than Rust, and the host of modules on another libc.
//!
//! The Rust modules are built by the tests that need them (`crates/guests`); this adds what takes toolchains
//! of its own, or a second build of everything.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lexopt::prelude::Long;

use crate::install::{self, Libc};
use crate::process::{cargo, command, output, root, run, target_dir};
use crate::summary::Count;
use crate::tools;

/// The name of the program that runs modules and says what came out.
const CHECK: &str = "module-check";

/// `cargo xtask modules`: the module `balance` from four languages, built and compared.
pub(crate) fn main(parser: &mut lexopt::Parser) -> Result<bool> {
    let mut on_musl = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("musl") => on_musl = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let count = if on_musl {
        libcs()?
    } else {
        languages(Libc::Host)?
    };
    Ok(count.failed == 0)
}

/// The SDK and the example modules as guests see them: a part of the SDK exists for guests only.
pub(crate) fn clippy() -> Command {
    let mut clippy = cargo();
    clippy.args(["clippy", "--locked", "--keep-going"]);
    clippy.args([
        "--target",
        "wasm32-unknown-unknown",
        "--package",
        "truthdb-sdk",
    ]);
    for module in [
        "arrivals",
        "balance",
        "covered",
        "delays",
        "delays-next",
        "hostile",
        "late-aircraft",
        "positions",
        "richest",
        "tally",
        "top-routes",
    ] {
        clippy.args(["--package", &format!("truthdb-example-{module}")]);
    }
    clippy.args(["--", "-D", "warnings"]);
    clippy
}

/// Builds the module `balance` from C, JavaScript and Python, and compares what each does with the Rust one.
pub(crate) fn languages(libc: Libc) -> Result<Count> {
    let folder = target_dir().join("modules/languages");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let python = install::guest_tools()?;
    let built = [
        ("c", from_c(&python, &folder)?),
        ("javascript", from_javascript(&python, &folder)?),
        ("python", from_python(&python, &folder)?),
    ];
    let mut check = tools::started(CHECK, &[], &[], libc)?;
    check.env("TRUTHDB_MODULE_CACHE", folder.join("compiled"));
    for (language, file) in &built {
        let mut argument = std::ffi::OsString::from(format!("{language}="));
        argument.push(file);
        check.arg(argument);
    }
    let said = output(&mut check)?;
    print!("{said}");
    Ok(lines_of(&said))
}

/// Runs faults and modules in the build of this machine's libc and in the static one: every fault, every
/// row and every unit of fuel must be the same.
pub(crate) fn libcs() -> Result<Count> {
    let dynamic = output(&mut check_as_tested()?)?;
    let fixed = output(&mut tools::started(CHECK, &[], &[], Libc::Musl)?)?;
    print!("{fixed}");
    for (one, other) in dynamic.lines().zip(fixed.lines()) {
        ensure!(
            one == other,
            "the static build differs:\n  dynamic: {one}\n  static:  {other}"
        );
    }
    ensure!(
        dynamic.lines().count() == fixed.lines().count(),
        "the static build says more or less than the other"
    );
    Ok(lines_of(&fixed))
}

/// Each line is a fault or a module that came out as it should.
fn lines_of(said: &str) -> Count {
    Count {
        passed: said.lines().count() as u64,
        failed: 0,
    }
}

/// The program that runs modules as the tests of this machine's libc are built, with what these have built already.
fn check_as_tested() -> Result<Command> {
    let mut build = cargo();
    build.args([
        "build",
        "--locked",
        "--workspace",
        "--tests",
        "--bin",
        CHECK,
    ]);
    run(&mut build)?;
    Ok(command(Libc::Host.folder("debug").join(CHECK)))
}

fn sources(language: &str) -> PathBuf {
    root().join("examples/modules/balance").join(language)
}

fn contract() -> PathBuf {
    root().join("crates/sdk/wit")
}

fn from_c(python: &Path, folder: &Path) -> Result<PathBuf> {
    let (core, module) = (
        folder.join("balance-c.core.wasm"),
        folder.join("balance-c.wasm"),
    );
    run(command(python)
        .args(["-m", "ziglang", "cc", "--target=wasm32-freestanding", "-O2"])
        .args(["-Wall", "-Wextra", "-Werror", "-nostdlib", "-fno-builtin"])
        .args(["-Wl,--no-entry", "-Wl,--strip-all", "-o"])
        .arg(&core)
        .arg(sources("c").join("balance.c")))?;
    run(command(python.with_file_name("wasm-tools"))
        .args(["component", "embed", "--world", "processor"])
        .arg(contract())
        .arg(&core)
        .arg("-o")
        .arg(&module))?;
    Ok(module)
}

fn from_javascript(python: &Path, folder: &Path) -> Result<PathBuf> {
    let module = folder.join("balance-js.wasm");
    let node = python.with_file_name("node");
    let packages = install::componentize_js(&node)?;
    let mut build = command(&node);
    install::with_path(&mut build, &node)?;
    run(build
        .arg(packages.join("node_modules/@bytecodealliance/componentize-js/src/cli.js"))
        .arg(sources("js").join("balance.js"))
        .arg("--wit")
        .arg(contract())
        .args(["--world-name", "processor"])
        .args([
            "--disable",
            "stdio",
            "random",
            "clocks",
            "http",
            "fetch-event",
        ])
        .arg("--out")
        .arg(&module))?;
    Ok(module)
}

fn from_python(python: &Path, folder: &Path) -> Result<PathBuf> {
    let module = folder.join("balance-python.wasm");
    // The compiler leaves compiled Python beside the source: it gets a copy.
    let source = folder.join("python");
    std::fs::create_dir_all(&source).with_context(|| format!("making {}", source.display()))?;
    std::fs::copy(
        sources("python").join("balance.py"),
        source.join("balance.py"),
    )
    .context("copying the Python module")?;
    run(command(python.with_file_name("componentize-py"))
        .arg("--wit-path")
        .arg(contract())
        .args(["--world", "processor", "componentize", "--stub-wasi"])
        .arg("--python-path")
        .arg(&source)
        .arg("balance")
        .arg("--output")
        .arg(&module))?;
    Ok(module)
}
