//! Kernels: from Debian's source package and the fragments to a bzImage, in the cache.
//!
//! Nothing of the build host gets into a kernel but its compiler, which is part of the cache's key: user, host, time
//! and version are fixed, and the build folder lies inside of the source, so that no path is absolute.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::json;

use crate::cache::{self, Cache, Entry};
use crate::fetch;
use crate::hash::{self, Inputs};
use crate::kconfig::{Hardening, demands, gate};
use crate::manifest::Manifest;
use crate::process::{self, isolated_tool, output, tool, watched};

/// Counts up when this file builds in another way.
const RECIPE: &str = "2";
/// Folder of the build inside of the source.
const BUILD: &str = "build";

/// Programs of the build host whose versions would get into the configuration, although nothing of them gets into the
/// kernel: names that lead to none.
const NOT_ASKED: [&str; 2] = ["RUSTC=no-rustc", "PAHOLE=no-pahole"];

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Boots broadly, with graphics and tools for an installation.
    Installer,
    /// The installed system: smaller, stricter, locked down.
    Runtime,
}

impl Kernel {
    /// Its name, in folders and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kernel::Installer => "installer",
            Kernel::Runtime => "runtime",
        }
    }
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "installer" => Ok(Kernel::Installer),
            "runtime" => Ok(Kernel::Runtime),
            other => bail!("there is no kernel {other:?}: there are installer and runtime"),
        }
    }
}

/// Everything that decides what a kernel is.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    kernel: Kernel,
    base: String,
    own: String,
    hardening: String,
    compiler: String,
}

impl Recipe {
    /// Reads the fragments, and asks the compiler for its version.
    ///
    /// # Errors
    ///
    /// A missing file or compiler.
    pub(crate) fn read(root: &Path, kernel: Kernel) -> Result<Self> {
        let text = |path: String| {
            let path = root.join(path);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let version = |name| output(tool(name).arg("--version"));
        Ok(Self {
            kernel,
            base: text("kernel-base/base.config".into())?,
            own: text(format!("{}-kernel/kernel.config", kernel.name()))?,
            hardening: text("kernel-base/hardening.toml".into())?,
            compiler: version("gcc")? + &version("ld")?,
        })
    }

    /// The inputs, from which the cache knows the kernel again. No application is among them.
    pub(crate) fn inputs(&self, manifest: &Manifest) -> Inputs {
        Inputs::default()
            .named("recipe", RECIPE)
            .named("source", &manifest.kernel.sha256)
            .named("timestamp", &manifest.kernel.timestamp)
            .content("base", &self.base)
            .content("own", &self.own)
            .content("compiler", &self.compiler)
    }

    /// Name of the kernel in the cache.
    fn name(&self) -> String {
        format!("kernel-{}", self.kernel.name())
    }

    /// The kernel's folder in the cache, if it is there and whole: nothing is built then.
    pub(crate) fn cached(&self, cache: &Cache, manifest: &Manifest) -> Option<PathBuf> {
        cache.find(&self.name(), &self.inputs(manifest), check)
    }

    /// The kernel in the cache, built if it is not there. Its folder has `vmlinuz`, `config`, and `kernel.json`.
    ///
    /// # Errors
    ///
    /// A wrong fragment, a lost symbol, a broken rule of the hardening list, or a failed build.
    pub(crate) fn build(&self, cache: &Cache, manifest: &Manifest) -> Result<Entry> {
        let inputs = self.inputs(manifest);
        let make = |folder: &Path| self.make(cache, manifest, folder);
        let entry = cache.entry(&self.name(), &inputs, check, make)?;
        // The list is no input of the kernel: a changed list is held against the configuration that is there.
        let config = std::fs::read_to_string(entry.folder.join("config"))
            .context("reading the kernel's configuration from the cache")?;
        Hardening::parse(&self.hardening)?.check(self.kernel.name(), &config)?;
        Ok(entry)
    }

    fn make(&self, cache: &Cache, manifest: &Manifest, folder: &Path) -> Result<()> {
        let source = unpack(cache, manifest, folder)?;
        let config = self.configure(&source)?;
        let build = source.join(BUILD);
        let mut make = isolated_tool("nice");
        make.args(["-n", "10", "make", "bzImage"])
            .arg(format!("O={BUILD}"))
            .arg(format!("-j{}", jobs()))
            .args(NOT_ASKED)
            .current_dir(&source)
            .envs([
                ("KBUILD_BUILD_TIMESTAMP", manifest.kernel.timestamp.as_str()),
                ("KBUILD_BUILD_USER", "truthdb"),
                ("KBUILD_BUILD_HOST", "truthdb"),
                ("KBUILD_BUILD_VERSION", "1"),
            ]);
        let log = folder.join("build.log");
        let is_unit = |line: &str| line.starts_with("  CC ") || line.starts_with("  AS ");
        watched(
            &mut make,
            &log,
            &format!("{} kernel", self.kernel.name()),
            is_unit,
        )?;
        let image = process::read(&build.join("arch/x86/boot/bzImage"))?;
        let release = process::read(&build.join("include/config/kernel.release"))?;
        let about = json!({
            "package": manifest.kernel.package,
            "version": manifest.kernel.version,
            "release": String::from_utf8_lossy(&release).trim(),
            "config_sha256": hash::of_bytes(config.as_bytes()),
            "sha256": hash::of_bytes(&image),
            "compiler": self.compiler.lines().next().unwrap_or_default(),
        });
        process::write(&folder.join("vmlinuz"), &image)?;
        process::write(&folder.join("config"), config.as_bytes())?;
        process::write(
            &folder.join("kernel.json"),
            format!("{about:#}\n").as_bytes(),
        )?;
        std::fs::remove_dir_all(folder.join("source")).context("removing the kernel's source")?;
        Ok(())
    }

    /// Resolves the configuration and holds it against the demands: seconds, before the minutes of the build.
    fn configure(&self, source: &Path) -> Result<String> {
        let own = format!("{}-kernel/kernel.config", self.kernel.name());
        let demands = demands(&[("kernel-base/base.config", &self.base), (&own, &self.own)])?;
        let make = |target: &str| {
            let build = format!("O={BUILD}");
            output(
                isolated_tool("make")
                    .args(["-s", &build, target])
                    .args(NOT_ASKED)
                    .current_dir(source),
            )
        };
        make("allnoconfig")?;
        let path = source.join(BUILD).join(".config");
        let nothing = String::from_utf8(process::read(&path)?)?;
        let wanted = format!("{nothing}\n{}\n{}", self.base, self.own);
        process::write(&path, wanted.as_bytes())?;
        make("olddefconfig")?;
        let config = String::from_utf8(process::read(&path)?)?;
        gate(&demands, &config)?;
        let kept = Hardening::parse(&self.hardening)?.check(self.kernel.name(), &config)?;
        println!(
            "      {} demands and {kept} hardening rules are kept",
            demands.len()
        );
        Ok(config)
    }
}

/// What is noted beside a kernel in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct About {
    /// What `uname -r` says.
    pub(crate) release: String,
    /// Hash of the image.
    pub(crate) sha256: String,
    /// Hash of the configuration.
    pub(crate) config_sha256: String,
}

impl About {
    /// Reads the note in a kernel's folder.
    ///
    /// # Errors
    ///
    /// A note that is not there, or none.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("kernel.json");
        serde_json::from_slice(&process::read(&path)?)
            .with_context(|| format!("in {}", path.display()))
    }
}

/// Holds a kernel in the cache against the note beside it.
fn check(folder: &Path) -> Result<()> {
    let about = About::read(folder)?;
    cache::check_file(&folder.join("vmlinuz"), &about.sha256)?;
    cache::check_file(&folder.join("config"), &about.config_sha256)
}

/// Unpacks the source into the folder.
fn unpack(cache: &Cache, manifest: &Manifest, folder: &Path) -> Result<PathBuf> {
    let pin = &manifest.kernel;
    let deb = fetch::binary(cache, &pin.package, &pin.version, &pin.file, &pin.sha256)?;
    println!("      unpacking {}", pin.package);
    let source = folder.join("source");
    let package = folder.join("package");
    output(tool("dpkg-deb").arg("-x").arg(&deb).arg(&package))?;
    std::fs::create_dir_all(&source).with_context(|| process::disk_advice(&source))?;
    let archive = package.join(format!("usr/src/{}.tar.xz", pin.package));
    output(
        tool("tar")
            .args(["--strip-components=1", "-xJf"])
            .arg(archive)
            .arg("-C")
            .arg(&source),
    )?;
    std::fs::remove_dir_all(&package).context("removing the unpacked package")?;
    Ok(source)
}

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Puts something that passes for the kernel of a recipe into a cache.
    pub(crate) fn store(cache: &Cache, recipe: &Recipe, manifest: &Manifest) -> PathBuf {
        let make = |folder: &Path| {
            let about = json!({
                "release": "6.12.0-test",
                "sha256": hash::of_bytes(b"kernel"),
                "config_sha256": hash::of_bytes(b"config"),
            });
            process::write(&folder.join("kernel.json"), about.to_string().as_bytes())?;
            process::write(&folder.join("vmlinuz"), b"kernel")?;
            process::write(&folder.join("config"), b"config")
        };
        let entry = cache.entry(&recipe.name(), &recipe.inputs(manifest), check, make);
        entry.unwrap().folder
    }

    fn recipe() -> Recipe {
        Recipe {
            kernel: Kernel::Runtime,
            base: "CONFIG_PCI=y\n".into(),
            own: "CONFIG_INET=y\n".into(),
            hardening: String::new(),
            compiler: "gcc 12".into(),
        }
    }

    fn manifest() -> Manifest {
        toml::from_str(crate::manifest::tests::ours()).unwrap()
    }

    #[test]
    fn a_kernel_depends_on_source_fragments_and_compiler_and_on_nothing_else() {
        let key = |recipe: &Recipe, manifest: &Manifest| recipe.inputs(manifest).key();
        let same = key(&recipe(), &manifest());
        let mut other = recipe();
        other.own.push_str("CONFIG_IPV6=y\n");
        assert_ne!(key(&other, &manifest()), same);
        let mut other = recipe();
        other.compiler = "gcc 13".into();
        assert_ne!(key(&other, &manifest()), same);
        let mut newer = manifest();
        newer.kernel.sha256 = "0".repeat(64);
        assert_ne!(key(&recipe(), &newer), same);
        // Another stub, other programs, another list of hardening rules: the same kernel.
        let mut elsewhere = manifest();
        elsewhere.stub.sha256 = "0".repeat(64);
        elsewhere.source.clear();
        let mut other = recipe();
        other.hardening = "[y]\n".into();
        assert_eq!(key(&other, &elsewhere), same);
    }

    #[test]
    fn a_kernel_in_the_cache_is_held_against_its_note() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let (recipe, manifest) = (recipe(), manifest());
        assert_eq!(recipe.cached(&cache, &manifest), None);
        let folder = store(&cache, &recipe, &manifest);
        assert_eq!(recipe.cached(&cache, &manifest), Some(folder.clone()));
        for damaged in ["vmlinuz", "config", "kernel.json"] {
            let path = folder.join(damaged);
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, "other bytes").unwrap();
            assert!(check(&folder).is_err(), "{damaged}");
            assert_eq!(recipe.cached(&cache, &manifest), None, "{damaged}");
            std::fs::write(&path, whole).unwrap();
        }
        check(&folder).unwrap();
    }

    #[test]
    fn kernels_are_named() {
        assert_eq!("runtime".parse::<Kernel>().unwrap(), Kernel::Runtime);
        assert!("debug".parse::<Kernel>().is_err());
    }
}
