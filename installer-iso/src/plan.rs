//! What a run will do, as a value: for each input where it comes from. It is made, with every given file looked at,
//! and shown before any work, so that a mistyped option costs no minutes.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::bzimage;
use crate::cache::Cache;
use crate::disk::{self, Format};
use crate::fetch;
use crate::images::{ISO, RUNTIME_PACKAGES};
use crate::kernel::{Kernel, Recipe};
use crate::manifest::Manifest;
use crate::options::Options;
use crate::process;
use crate::profile::{self, Kind};
use crate::sign::Signer;
use crate::userland;
use crate::workshop;

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A kernel, into the cache.
    Kernel(Kernel),
    /// The installed system.
    Runtime,
    /// The installation medium.
    Iso,
    /// Disk images.
    Disk,
    /// All of them.
    Release,
}

impl What {
    /// The command that makes it.
    pub(crate) fn command(self) -> &'static str {
        match self {
            What::Kernel(_) => "kernel",
            What::Runtime => "runtime",
            What::Iso => "iso",
            What::Disk => "disk",
            What::Release => "release",
        }
    }
}

/// An input of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thing {
    /// A kernel.
    Kernel(Kernel),
    /// BusyBox or e2fsprogs.
    Others(&'static str),
    /// One of our programs, by its package.
    Program(&'static str),
    /// The finished system.
    System,
    /// The EFI stub.
    Stub,
    /// The picture before Linux starts.
    Splash,
    /// A configuration file of the data partition.
    Configuration(&'static str),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Thing::Kernel(kernel) => return write!(f, "{} kernel", kernel.name()),
            Thing::Others(name) | Thing::Program(name) | Thing::Configuration(name) => name,
            Thing::System => Kind::Runtime.artefact(),
            Thing::Stub => "boot stub",
            Thing::Splash => "splash",
        };
        f.write_str(name)
    }
}

/// Where an input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// By an option.
    Given(PathBuf),
    /// It is there from before.
    Cache(PathBuf),
    /// By this run; how.
    Made(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Given(path) => write!(f, "given: {}", path.display()),
            Source::Cache(path) => write!(f, "from the cache: {}", path.display()),
            Source::Made(how) => f.write_str(how),
        }
    }
}

/// What there is to make it from.
pub(crate) struct Stock<'a> {
    /// Root of the repository.
    pub(crate) root: &'a Path,
    /// Results of slow steps.
    pub(crate) cache: &'a Cache,
    /// Pinned inputs.
    pub(crate) manifest: &'a Manifest,
    /// Who signs images, if they are signed.
    pub(crate) signer: Option<&'a Signer>,
    /// Where BusyBox or e2fsprogs is in the cache, by its name; that depends on the compiler of this machine.
    pub(crate) others: &'a dyn Fn(&str) -> Result<Option<PathBuf>>,
}

/// What a run will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    what: What,
    version: String,
    out: PathBuf,
    signed: Option<String>,
    inputs: Vec<(Thing, Source)>,
    /// Kernel messages and the node's log on the serial console.
    pub(crate) debug: bool,
    /// Formats of disk images; none if there are no disk images.
    pub(crate) formats: Vec<Format>,
    /// Size of a disk image.
    pub(crate) disk_bytes: u64,
}

impl Plan {
    /// Looks up where each input comes from, and at every file that is given. Nothing is made.
    ///
    /// # Errors
    ///
    /// A given file that is not there, or not what it is given as; a missing compiler.
    pub(crate) fn new(
        what: What,
        options: &Options,
        version: &str,
        out: &Path,
        stock: &Stock<'_>,
    ) -> Result<Self> {
        let mut inputs = Vec::new();
        for (thing, given) in wanted(what, options) {
            let source = match given {
                Some(path) => {
                    check(thing, &path, stock.signer)
                        .with_context(|| format!("the {thing} that is given cannot be used"))?;
                    Source::Given(path)
                }
                None => stock.source(thing, options)?,
            };
            inputs.push((thing, source));
        }
        let has_disks = matches!(what, What::Disk | What::Release);
        let (formats, disk_bytes) = if has_disks {
            disk::formats_and_size(&options.formats, options.size_mib)
        } else {
            (Vec::new(), 0)
        };
        Ok(Self {
            what,
            version: version.to_owned(),
            out: out.to_owned(),
            signed: stock.signer.map(Signer::to_string),
            inputs,
            debug: options.debug,
            formats,
            disk_bytes,
        })
    }

    /// The file that is given for an input.
    pub(crate) fn given(&self, thing: Thing) -> Option<&Path> {
        match self.source(thing) {
            Some(Source::Given(path)) => Some(path),
            _ => None,
        }
    }

    /// Where an input comes from; `None` if it is not needed.
    pub(crate) fn source(&self, thing: Thing) -> Option<&Source> {
        let found = self.inputs.iter().find(|(input, _)| *input == thing);
        found.map(|(_, source)| source)
    }

    /// What comes out.
    fn artefacts(&self) -> String {
        let system = Kind::Runtime.artefact();
        let disks = || {
            let names: Vec<&str> = self.formats.iter().map(|f| f.artefact()).collect();
            format!("{}, {} MiB", names.join(", "), self.disk_bytes >> 20)
        };
        match self.what {
            What::Kernel(kernel) => format!("the {} kernel", kernel.name()),
            What::Runtime => system.to_owned(),
            What::Iso => ISO.to_owned(),
            What::Disk => disks(),
            What::Release => format!("{ISO}, {system}, {}", disks()),
        }
    }
}

/// Shown before work starts.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line =
            |name: &str, value: &dyn fmt::Display| writeln!(f, "      {name:<20} {value}");
        line("to be made", &self.artefacts())?;
        line("version", &self.version)?;
        for (thing, source) in &self.inputs {
            line(&thing.to_string(), source)?;
        }
        if self.source(Thing::Stub).is_some() {
            line("command line", &profile::command_line(self.debug))?;
            let signed = self.signed.as_deref().unwrap_or("no");
            line("signed", &signed)?;
        }
        if self.what.command() != "kernel" {
            line("into", &self.out.display())?;
        }
        Ok(())
    }
}

/// The inputs of what is made, and which of them are given.
fn wanted(what: What, options: &Options) -> Vec<(Thing, Option<PathBuf>)> {
    if let What::Kernel(kernel) = what {
        return vec![(Thing::Kernel(kernel), None)];
    }
    let has_installer = matches!(what, What::Iso | What::Release);
    let (runtime_kernel, installer_kernel) = match what {
        What::Iso => (&options.runtime_kernel, &options.kernel),
        _ => (&options.kernel, &None),
    };
    let mut wanted = Vec::new();
    let mut add = |thing: Thing, given: &Option<PathBuf>| wanted.push((thing, given.clone()));
    if options.runtime.is_some() {
        add(Thing::System, &options.runtime);
    } else {
        add(Thing::Kernel(Kernel::Runtime), runtime_kernel);
        let given = [&options.truthdb, &options.node, &options.console];
        for (package, given) in RUNTIME_PACKAGES.into_iter().zip(given) {
            add(Thing::Program(package), given);
        }
    }
    if has_installer {
        add(Thing::Kernel(Kernel::Installer), installer_kernel);
        add(Thing::Program("truthdb-installer"), &options.installer);
    }
    add(Thing::Others("busybox"), &None);
    add(Thing::Others("e2fsprogs"), &None);
    if options.runtime.is_none() || has_installer {
        add(Thing::Stub, &None);
        add(Thing::Splash, &options.splash);
    }
    let given = [&options.config, &options.node_config];
    for (path, given) in disk::CONFIGURATION_FILES.into_iter().zip(given) {
        if given.is_some() {
            add(Thing::Configuration(path), given);
        }
    }
    wanted
}

impl Stock<'_> {
    /// Where something comes from that is not given.
    fn source(&self, thing: Thing, options: &Options) -> Result<Source> {
        let (cache, manifest) = (self.cache, self.manifest);
        Ok(match thing {
            Thing::Kernel(kernel) => {
                let recipe = Recipe::read(self.root, kernel)?;
                let how = "to be built, which takes minutes";
                cached_or(recipe.cached(cache, manifest), how)
            }
            Thing::Others(name) => cached_or((self.others)(name)?, "to be built from source"),
            Thing::Stub => {
                let path = cache.downloads_folder().join(&manifest.stub.file);
                let found = fetch::is_there(cache, &manifest.stub.file).then_some(path);
                cached_or(found, "to be fetched")
            }
            Thing::Program(_) => {
                let profile = options.profile.as_deref().unwrap_or("release");
                Source::Made(format!("to be built by cargo, profile {profile}"))
            }
            Thing::System => Source::Made("to be made".into()),
            Thing::Splash => Source::Made("to be drawn".into()),
            Thing::Configuration(_) => Source::Made("none".into()),
        })
    }
}

fn cached_or(found: Option<PathBuf>, how: &str) -> Source {
    found.map_or_else(|| Source::Made(how.into()), Source::Cache)
}

/// Whether a given file is what it is given as.
fn check(thing: Thing, path: &Path, signer: Option<&Signer>) -> Result<()> {
    ensure!(path.is_file(), "there is no file {}", path.display());
    let within = || format!("in {}", path.display());
    match thing {
        Thing::Kernel(_) => bzimage::release(&process::read(path)?)
            .map(|_| ())
            .with_context(within),
        Thing::Program(_) => userland::check_static(path, path),
        Thing::System => workshop::system_in(path, signer).map(|_| ()),
        Thing::Splash => {
            let is_picture = process::read(path)?.starts_with(b"BM");
            ensure!(is_picture, "{} is no BMP picture", path.display());
            Ok(())
        }
        Thing::Configuration(_) => {
            let text = std::fs::read_to_string(path).with_context(within)?;
            let parsed: Result<toml::Table, _> = toml::from_str(&text);
            parsed.map(|_| ()).with_context(within)
        }
        // No option gives these.
        Thing::Others(_) | Thing::Stub => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    /// A plan with a cache of its own, and a manifest that may be changed.
    fn plan(what: What, options: &Options, version: &str, cache: &Cache) -> Result<Plan> {
        let manifest = manifest();
        let stock = Stock {
            root: root(),
            cache,
            manifest: &manifest,
            signer: None,
            // As on a machine with a compiler that nothing was built with.
            others: &|_| Ok(None),
        };
        Plan::new(what, options, version, Path::new("out"), &stock)
    }

    fn manifest() -> Manifest {
        toml::from_str(crate::manifest::tests::ours()).unwrap()
    }

    #[test]
    fn another_application_rebuilds_no_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned());
        let kernels = [Kernel::Runtime, Kernel::Installer];
        let options = Options::default();
        let before = plan(What::Iso, &options, "0.1.0-gaaa", &cache).unwrap();
        for kernel in kernels {
            let source = before.source(Thing::Kernel(kernel)).unwrap();
            assert!(source.to_string().contains("takes minutes"), "{source}");
        }
        for kernel in kernels {
            let recipe = Recipe::read(root(), kernel).unwrap();
            kernel::tests::store(&cache, &recipe, &manifest());
        }
        // Another commit, another program, another profile: the kernels are those that are there.
        let program = folder.path().join("truthdb");
        std::fs::write(&program, static_program()).unwrap();
        let other = Options {
            truthdb: Some(program),
            profile: Some("fast".into()),
            ..Options::default()
        };
        for (options, version) in [(&options, "0.1.0-gaaa"), (&other, "0.2.0-gbbb-changed")] {
            let plan = plan(What::Iso, options, version, &cache).unwrap();
            for kernel in kernels {
                let source = plan.source(Thing::Kernel(kernel)).unwrap();
                assert!(matches!(source, Source::Cache(_)), "{version}: {source}");
            }
        }
    }

    /// The header of a program that asks for no loader.
    fn static_program() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf
    }

    #[test]
    fn each_input_is_shown_with_its_source_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache"));
        let given = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            Some(path)
        };
        let kernel = bzimage::tests::image("6.12 #1");
        let options = Options {
            kernel: given("kernel", &kernel),
            runtime_kernel: given("runtime-kernel", &kernel),
            console: given("console", &static_program()),
            splash: given("splash.bmp", b"BM"),
            ..Options::default()
        };
        let plan = plan(What::Iso, &options, "0.1.0", &cache).unwrap();
        let lines: Vec<String> = plan.to_string().lines().map(str::to_owned).collect();
        let place = format!("given: {}/", folder.path().display());
        for (name, source) in [
            ("to be made", "truthdb-installer.iso"),
            ("version", "0.1.0"),
            ("runtime kernel", &format!("{place}runtime-kernel")),
            ("truthdb", "to be built by cargo, profile release"),
            ("truthdb-console", &format!("{place}console")),
            ("installer kernel", &format!("{place}kernel")),
            ("busybox", "to be built from source"),
            ("boot stub", "to be fetched"),
            ("splash", &format!("{place}splash.bmp")),
            ("signed", "no"),
            ("into", "out"),
        ] {
            let wanted = format!("      {name:<20} {source}");
            assert!(lines.contains(&wanted), "{wanted}\n{lines:#?}");
        }
        assert!(!folder.path().join("cache").exists(), "nothing is made");
    }

    #[test]
    fn what_is_mistyped_or_something_else_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned());
        let text = folder.path().join("text");
        std::fs::write(&text, "= no toml").unwrap();
        let nowhere = folder.path().join("nowhere");
        let none = Options::default();
        type Place = fn(&mut Options) -> &mut Option<PathBuf>;
        let places: [(What, Place, &str); 7] = [
            (What::Runtime, |options| &mut options.kernel, "no bzImage"),
            (
                What::Iso,
                |options| &mut options.runtime_kernel,
                "no bzImage",
            ),
            (What::Runtime, |options| &mut options.truthdb, "ELF"),
            (What::Iso, |options| &mut options.runtime, "no runtime"),
            (What::Runtime, |options| &mut options.splash, "no BMP"),
            (What::Disk, |options| &mut options.config, "in "),
            (What::Disk, |options| &mut options.node_config, "in "),
        ];
        for (what, place, says) in places {
            for (path, says) in [(&nowhere, "there is no file"), (&text, says)] {
                let mut options = none.clone();
                *place(&mut options) = Some(path.clone());
                let given = wanted(what, &options);
                let errors: Vec<String> = given
                    .into_iter()
                    .filter_map(|(thing, path)| check(thing, &path?, None).err())
                    .map(|error| format!("{error:#}"))
                    .collect();
                assert_eq!(errors.len(), 1, "{what:?} {says}");
                assert!(errors[0].contains(says), "{says}: {}", errors[0]);
            }
        }
        // The kernel is the first that is looked at, without any compiler.
        let options = Options {
            kernel: Some(nowhere),
            ..none
        };
        let error = plan(What::Runtime, &options, "0.1.0", &cache).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("the runtime kernel that is given"),
            "{error}"
        );
    }
}
