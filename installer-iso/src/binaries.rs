//! Our own static programs, built by cargo, without anything of the build host in them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, tool};
use crate::userland::strip;

/// The target of static programs.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// The package of the server.
const SERVER: &str = "truthdb";
/// cargo's profile of what leaves the house. Other builds keep the paths of their machine, and so share what they
/// compile with each other.
const PUBLISHED: &str = "release";

/// How our programs are built.
#[derive(Debug, Clone)]
pub(crate) struct Builds {
    root: PathBuf,
    profile: String,
}

impl Builds {
    /// Builds from the sources in `root`, with one of cargo's profiles.
    pub(crate) fn new(root: PathBuf, profile: String) -> Self {
        Self { root, profile }
    }

    /// Builds packages; each has a program of its name. Returns where they are, in the same order.
    ///
    /// # Errors
    ///
    /// cargo's.
    pub(crate) fn build(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        // The server alone, as the suite's step `static` builds it: together with others, its dependencies would get
        // their features too, and be compiled a second time.
        let (server, others): (Vec<&str>, Vec<&str>) =
            packages.iter().partition(|package| **package == SERVER);
        for group in [server, others] {
            if !group.is_empty() {
                self.build_together(&group)?;
            }
        }
        let folder = match self.profile.as_str() {
            "dev" => "debug",
            other => other,
        };
        let target = self.target_dir();
        let built = |package: &&str| target.join(TARGET).join(folder).join(package);
        Ok(packages.iter().map(built).collect())
    }

    fn build_together(&self, packages: &[&str]) -> Result<()> {
        let target = self.target_dir();
        let mut build = nested_cargo();
        build
            .current_dir(&self.root)
            .args([
                "build",
                "--locked",
                "--target",
                TARGET,
                "--profile",
                &self.profile,
            ])
            .args(packages.iter().flat_map(|package| ["--package", package]));
        if self.profile == PUBLISHED {
            of_nobody(&mut build);
            build.env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(&target));
        }
        let status = build.status().context("starting cargo")?;
        ensure!(
            status.success(),
            "building {} ended with {status}",
            packages.join(", ")
        );
        Ok(())
    }

    /// Paths of this machine are replaced in what the programs say about places in sources. These flags go before all
    /// others that cargo could be told, and paths may have spaces in them.
    fn rustflags(&self, target: &Path) -> OsString {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let places = [
            (Some(self.root.as_path()), "/source"),
            (Some(target), "/build"),
            (home.as_deref(), "/cargo"),
        ];
        let mut flags = OsString::new();
        for (path, name) in places {
            let Some(path) = path else { continue };
            if !flags.is_empty() {
                flags.push("\u{1f}");
            }
            flags.push("--remap-path-prefix=");
            flags.push(path);
            flags.push("=");
            flags.push(name);
        }
        flags
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target_dir(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => self.root.join(directory),
            None => self.root.join("target"),
        }
    }
}

/// Takes away what somebody has set for builds of their own: a processor of theirs, or another profile.
fn of_nobody(cargo: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let is_own = text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_BUILD_RUSTFLAGS")
            || text == "RUSTFLAGS";
        if is_own {
            cargo.env_remove(&name);
        }
    }
}

/// cargo, without what an outer one says about the package of this program: build scripts that watch it (ring's does)
/// would run again, and everything that depends on them, whenever cargo is started from elsewhere.
fn nested_cargo() -> Command {
    let mut cargo = tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// A stripped copy of a program, in a folder, under a name.
///
/// # Errors
///
/// A program that is not static.
pub(crate) fn stripped(program: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| process::disk_advice(folder))?;
    let to = folder.join(name);
    strip(program, &to)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_separated_by_what_no_path_has() {
        let builds = Builds::new("/with a space/truthdb".into(), PUBLISHED.into());
        let flags = builds.rustflags(Path::new("/target"));
        let flags: Vec<&str> = flags.to_str().unwrap().split('\u{1f}').collect();
        assert_eq!(
            flags[..2],
            [
                "--remap-path-prefix=/with a space/truthdb=/source",
                "--remap-path-prefix=/target=/build"
            ]
        );
    }
}
