//! Installing what is missing, and saying so: toolchain parts, Debian packages, cargo tools, Python packages.
//!
//! Tools that are not part of the toolchain go into a cache outside of the repository, in a folder named by
//! tool and version, so that a fresh clone on the same machine finds them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, line_of, output, run, succeeds};

/// A tool from the Cargo registry, in the one version that is known to work.
pub(crate) struct CargoTool {
    package: &'static str,
    version: &'static str,
}

/// The test runner: one process for each test, with time limits.
pub(crate) const NEXTEST: CargoTool = CargoTool {
    package: "cargo-nextest",
    version: "0.9.151",
};
/// Licences, sources and duplicates of the dependencies.
pub(crate) const DENY: CargoTool = CargoTool {
    package: "cargo-deny",
    version: "0.20.2",
};

/// What the Python environment holds: the hash of the proof verifier, and the linters of the workflow files.
const PYTHON_PACKAGES: [&str; 3] = [
    "blake3==1.0.11",
    "check-jsonschema==0.39.0",
    "zizmor==1.32.0",
];

/// The target of the static binary.
pub(crate) const MUSL_TARGET: &str = "x86_64-unknown-linux-musl";

/// The folder for tools: `$XDG_CACHE_HOME/truthdb`, by default `~/.cache/truthdb`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(cache).join("truthdb"));
    }
    let home = std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/truthdb"))
}

/// A cargo tool, ready to be started by its own name (`cargo-nextest nextest run`, `cargo-deny check`).
pub(crate) fn cargo_tool(tool: &CargoTool) -> Result<Command> {
    let folder = cache_dir()?.join(format!("{}-{}", tool.package, tool.version));
    let binary = folder.join("bin").join(tool.package);
    if !binary.is_file() {
        println!(
            "    installing {} {} (some minutes, once)",
            tool.package, tool.version
        );
        run(crate::process::cargo()
            .args(["install", "--locked", "--version", tool.version, "--root"])
            .arg(&folder)
            .arg(tool.package)
            // A folder of its own: the repository's build must not wait for this one, nor the other
            // way round.
            .env("CARGO_TARGET_DIR", folder.join("build")))?;
        // Only the binary is wanted, and the build is several hundred megabytes.
        std::fs::remove_dir_all(folder.join("build")).context("removing the build of the tool")?;
    }
    Ok(command(binary))
}

/// The components and the musl target that `rust-toolchain.toml` names.
pub(crate) fn toolchain() -> Result<()> {
    let installed = |kind: &str| output(command("rustup").args([kind, "list", "--installed"]));
    if !succeeds(command("rustup").arg("--version")) {
        // A toolchain without rustup brings its own parts; what is missing shows in the step that needs it.
        return Ok(());
    }
    for (kind, names) in [
        ("component", &["clippy", "rustfmt"][..]),
        ("target", &[MUSL_TARGET][..]),
    ] {
        let present = installed(kind)?;
        for name in names {
            if !present.lines().any(|line| line.starts_with(name)) {
                println!("    installing the toolchain's {kind} {name}");
                run(command("rustup").args([kind, "add", name]))?;
            }
        }
    }
    Ok(())
}

/// A Debian package, unless `probe` says that what it brings is there.
pub(crate) fn debian_package(package: &str, probe: impl Fn() -> bool) -> Result<()> {
    if probe() {
        return Ok(());
    }
    println!("    installing the Debian package {package}");
    let is_root = output(command("id").arg("-u"))?.trim() == "0";
    let apt = |arguments: &[&str]| {
        let mut apt = if is_root {
            command("apt-get")
        } else {
            command("sudo")
        };
        if !is_root {
            apt.arg("apt-get");
        }
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    let install = ["install", "-y", "--no-install-recommends", package];
    // Package lists may be absent or old: refresh them only if the first attempt fails.
    if run(&mut apt(&install)).is_err() {
        run(&mut apt(&["update"]))?;
        run(&mut apt(&install))?;
    }
    if !probe() {
        bail!("{package} is installed, but what it should bring is still missing");
    }
    Ok(())
}

/// The C compiler for the static binary.
pub(crate) fn musl_tools() -> Result<()> {
    debian_package("musl-tools", || {
        succeeds(command("musl-gcc").arg("--version"))
    })
}

/// A Python interpreter with the packages above, in a virtual environment in the cache.
pub(crate) fn python() -> Result<PathBuf> {
    // The folder's name says what it holds, so that a changed list makes a new one.
    let folder = cache_dir()?.join(format!(
        "python-{}",
        PYTHON_PACKAGES.join("_").replace("==", "-")
    ));
    let interpreter = folder.join("bin/python");
    let complete = folder.join("complete");
    if !complete.is_file() {
        println!(
            "    installing into a Python environment: {}",
            PYTHON_PACKAGES.join(", ")
        );
        make_venv(&folder)?;
        run(command(&interpreter)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(PYTHON_PACKAGES))?;
        std::fs::write(&complete, "").context("marking the Python environment as complete")?;
    }
    Ok(interpreter)
}

fn make_venv(folder: &Path) -> Result<()> {
    debian_package("python3-venv", || {
        succeeds(command("python3").args(["-c", "import venv, ensurepip"]))
    })?;
    let mut venv = command("python3");
    venv.args(["-m", "venv", "--clear"]).arg(folder);
    run(&mut venv).with_context(|| format!("`{}` failed", line_of(&venv)))
}
