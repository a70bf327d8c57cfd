//! The commands: which steps an image takes, from which inputs, and what comes out.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::assemble;
use crate::binaries::{Builds, stripped};
use crate::cache::Cache;
use crate::disk::{self, Contents, Format};
use crate::fetch;
use crate::hash;
use crate::kernel::{Kernel, Recipe};
use crate::licences;
use crate::manifest::Manifest;
use crate::options::Options;
use crate::process::{self, output, tool};
use crate::profile::{Kind, Profile};
use crate::sbom;
use crate::sign::{self, Signer};
use crate::splash;
use crate::steps::Steps;
use crate::uki;
use crate::userland;

/// Name of the ISO.
pub(crate) const ISO: &str = "truthdb-installer.iso";
/// Where the licences are in an image.
const LICENCES_PATH: &str = "usr/share/licences.txt";

/// What every command works with.
pub(crate) struct Workshop {
    /// Root of the repository.
    pub(crate) root: PathBuf,
    /// Results of slow steps.
    pub(crate) cache: Cache,
    /// Pinned inputs.
    pub(crate) manifest: Manifest,
    builds: Builds,
    /// Who signs images, if they are signed.
    pub(crate) signer: Option<Signer>,
    /// Version of the product, with the commit.
    pub(crate) version: String,
    /// The commit's time, seconds since 1970.
    pub(crate) epoch: u64,
    /// Where artefacts go.
    pub(crate) out: PathBuf,
}

impl Workshop {
    /// Reads the manifest and asks git for the version.
    ///
    /// # Errors
    ///
    /// What is wrong in the manifest, or a folder that cannot be made.
    pub(crate) fn open(options: &Options) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let root = root
            .context("this crate lies in the root of the repository")?
            .to_owned();
        let manifest = Manifest::read(&root.join("installer-iso/manifest.toml"))?;
        let (version, epoch) = version(&root)?;
        let profile = options
            .profile
            .clone()
            .unwrap_or_else(|| "release".to_owned());
        let builds = Builds::new(root.clone(), profile);
        let default = builds.target_dir().join("appliance").join(&version);
        let out = options.out.clone().unwrap_or(default);
        std::fs::create_dir_all(&out).with_context(|| process::disk_advice(&out))?;
        Ok(Self {
            root,
            cache: Cache::of_user()?,
            manifest,
            builds,
            signer: Signer::of(options)?,
            version,
            epoch,
            out,
        })
    }

    /// A folder for what lies between the steps.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.out.join("parts")
    }

    /// The kernel's image and version.
    pub(crate) fn kernel(
        &self,
        kernel: Kernel,
        given: Option<&PathBuf>,
    ) -> Result<(PathBuf, String)> {
        if let Some(given) = given {
            return Ok((given.clone(), format!("given as {}", given.display())));
        }
        let entry = Recipe::read(&self.root, kernel)?.build(&self.cache, &self.manifest)?;
        let note = if entry.cached {
            "from the cache"
        } else {
            "built"
        };
        println!("      {note}: {}", entry.folder.display());
        let about: Value =
            serde_json::from_slice(&process::read(&entry.folder.join("kernel.json"))?)
                .context("in the cache's kernel.json")?;
        let release = about["release"].as_str().unwrap_or_default().to_owned();
        Ok((entry.folder.join("vmlinuz"), release))
    }

    fn stub(&self) -> Result<Vec<u8>> {
        let pin = &self.manifest.stub;
        let deb = fetch::binary(
            &self.cache,
            &pin.package,
            &pin.version,
            &pin.file,
            &pin.sha256,
        )?;
        let folder = self.scratch().join("stub");
        output(tool("dpkg-deb").arg("-x").arg(&deb).arg(&folder))?;
        process::read(&folder.join(&pin.path))
    }

    /// The picture before Linux starts: given, or drawn.
    fn splash(&self, given: Option<&PathBuf>) -> Result<Option<PathBuf>> {
        if let Some(given) = given {
            return Ok(Some(given.clone()));
        }
        let path = self.scratch().join("splash.bmp");
        process::write(&path, &splash::picture()?)?;
        Ok(Some(path))
    }

    /// Our programs, by their path in the image: given, or built and stripped.
    fn programs(&self, wanted: &[(&str, &Option<PathBuf>)]) -> Result<Vec<(String, PathBuf)>> {
        let missing: Vec<&str> = wanted
            .iter()
            .filter(|(_, given)| given.is_none())
            .map(|(package, _)| *package)
            .collect();
        let mut built = self.builds.build(&missing)?.into_iter();
        let mut programs = Vec::new();
        for (package, given) in wanted {
            let program = match given {
                Some(given) => given.clone(),
                None => built.next().context("a program for each package")?,
            };
            let program = stripped(&program, &self.scratch().join("programs"), package)?;
            programs.push((format!("bin/{package}"), program));
        }
        Ok(programs)
    }

    /// The system that goes onto a medium or a disk, with its version.
    fn system(&self, path: &Path) -> Result<(Vec<u8>, String)> {
        let image = process::read(path)?;
        let version = version_of(&image)
            .with_context(|| format!("{} is no runtime of TruthDB", path.display()))?;
        sign::check_given(self.signer.as_ref(), &image, path)?;
        Ok((image, version))
    }

    /// The licences of everything in any of the images.
    pub(crate) fn licences(&self) -> Result<PathBuf> {
        let packages = [&RUNTIME_PACKAGES[..], &["truthdb-installer"]].concat();
        let text = licences::text(&self.root, &self.cache, &self.manifest, &packages)?;
        let path = self.scratch().join("licences.txt");
        process::write(&path, text.as_bytes())?;
        Ok(path)
    }

    /// Writes an artefact with its hash and bill of materials.
    fn publish(&self, name: &str, bytes: &[u8], packages: &[&str]) -> Result<PathBuf> {
        let path = self.out.join(name);
        process::write(&path, bytes)?;
        self.describe(name, packages)?;
        Ok(path)
    }

    /// Writes the hash and the bill of materials of an artefact.
    pub(crate) fn describe(&self, name: &str, packages: &[&str]) -> Result<()> {
        let path = self.out.join(name);
        let sha256 = hash::of_file(&path)?;
        let sum = format!("{sha256}  {name}\n");
        process::write(&self.out.join(format!("{name}.sha256")), sum.as_bytes())?;
        let artefact = (name, self.version.as_str(), sha256.as_str());
        let bom = sbom::cyclonedx(&self.root, &self.manifest, artefact, packages)?;
        let bom = format!("{bom:#}\n");
        process::write(&self.out.join(format!("{name}.cdx.json")), bom.as_bytes())?;
        let bytes = path.metadata().context("reading an artefact")?.len();
        println!("      {:>11} bytes  {sha256}  {}", bytes, path.display());
        Ok(())
    }
}

/// Packages whose crates are in the runtime.
pub(crate) const RUNTIME_PACKAGES: [&str; 3] = ["truthdb", "truthdb-node", "truthdb-console"];

/// `truthdb-image kernel`.
///
/// # Errors
///
/// Those of the build.
pub(crate) fn kernel(options: &Options) -> Result<()> {
    let [name] = options.words.as_slice() else {
        bail!("which kernel: installer or runtime?");
    };
    let kernel: Kernel = name.parse()?;
    let workshop = Workshop::open(options)?;
    let mut steps = Steps::new(1);
    let (path, release) = steps.run(&format!("{name} kernel"), || workshop.kernel(kernel, None))?;
    let bytes = path.metadata().context("reading the kernel")?.len();
    println!("      {release}, {bytes} bytes, {}", hash::of_file(&path)?);
    println!("{}", path.display());
    print!("{}", steps.summary());
    Ok(())
}

/// `truthdb-image runtime`.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn runtime(options: &Options) -> Result<()> {
    let workshop = Workshop::open(options)?;
    let mut steps = Steps::new(RUNTIME_STEPS);
    let path = runtime_image(&workshop, options, options.kernel.as_ref(), &mut steps)?;
    println!("{}", path.display());
    print!("{}", steps.summary());
    Ok(())
}

/// Steps of [`runtime_image`].
pub(crate) const RUNTIME_STEPS: usize = 4;

fn runtime_image(
    workshop: &Workshop,
    options: &Options,
    kernel: Option<&PathBuf>,
    steps: &mut Steps,
) -> Result<PathBuf> {
    let (kernel, release) = steps.run("runtime kernel", || {
        workshop.kernel(Kernel::Runtime, kernel)
    })?;
    let others = steps.run("programs of others", || {
        userland::build(&workshop.root, &workshop.cache, &workshop.manifest)
    })?;
    let mut programs = steps.run("the server and what is around it", || {
        workshop.programs(&[
            ("truthdb", &options.truthdb),
            ("truthdb-node", &options.node),
            ("truthdb-console", &options.console),
        ])
    })?;
    programs.push(("bin/busybox".into(), others.busybox.folder.join("busybox")));
    programs.push(("sbin/e2fsck".into(), others.e2fsprogs.folder.join("e2fsck")));
    let profile = Profile {
        kind: Kind::Runtime,
        version: workshop.version.clone(),
        debug: options.debug,
        kernel,
        programs,
        payload: vec![(LICENCES_PATH.into(), workshop.licences()?)],
        splash: workshop.splash(options.splash.as_ref())?,
    };
    steps.run("unified kernel image of the runtime", || {
        make_image(workshop, &profile, &release, &RUNTIME_PACKAGES)
    })
}

fn make_image(
    workshop: &Workshop,
    profile: &Profile,
    release: &str,
    packages: &[&str],
) -> Result<PathBuf> {
    println!("{profile}");
    profile.validate()?;
    let root = workshop.root.join("installer-iso/root");
    let image = assemble::unified_kernel_image(profile, &root, &workshop.stub()?, release)?;
    let image = match &workshop.signer {
        Some(signer) => {
            println!("      signed        {signer}");
            signer.sign(&image, &workshop.scratch())?
        }
        None => image,
    };
    workshop.publish(profile.kind.artefact(), &image, packages)
}

/// `truthdb-image iso`.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn iso(options: &Options) -> Result<()> {
    let workshop = Workshop::open(options)?;
    let own = if options.runtime.is_some() {
        0
    } else {
        RUNTIME_STEPS
    };
    let mut steps = Steps::new(own + 5);
    let runtime = match &options.runtime {
        Some(given) => given.clone(),
        None => runtime_image(&workshop, options, None, &mut steps)?,
    };
    let (kernel, release) = steps.run("installer kernel", || {
        workshop.kernel(Kernel::Installer, options.kernel.as_ref())
    })?;
    let others = steps.run("programs of others", || {
        userland::build(&workshop.root, &workshop.cache, &workshop.manifest)
    })?;
    let mut programs = steps.run("the installer", || {
        workshop.programs(&[("truthdb-installer", &options.installer)])
    })?;
    programs.push(("bin/busybox".into(), others.busybox.folder.join("busybox")));
    for name in ["mke2fs", "e2fsck", "debugfs"] {
        programs.push((format!("sbin/{name}"), others.e2fsprogs.folder.join(name)));
    }
    let (_, version) = workshop.system(&runtime)?;
    let version_file = workshop.scratch().join("version");
    process::write(&version_file, format!("{version}\n").as_bytes())?;
    let profile = Profile {
        kind: Kind::Installer,
        version: workshop.version.clone(),
        debug: options.debug,
        kernel,
        programs,
        payload: vec![
            ("payload/TruthDBRuntime.efi".into(), runtime),
            ("payload/version".into(), version_file),
            (LICENCES_PATH.into(), workshop.licences()?),
        ],
        splash: workshop.splash(options.splash.as_ref())?,
    };
    let image = steps.run("unified kernel image of the installer", || {
        make_image(&workshop, &profile, &release, &["truthdb-installer"])
    })?;
    let path = workshop.out.join(ISO);
    steps.run("ISO", || {
        let readme = format!(
            "TruthDB {} installer for 64-bit UEFI machines.\r\n\
             LICENCES.TXT says what it is made of, and where the sources of its parts are.\r\n",
            workshop.version
        );
        let licences = process::read(&workshop.licences()?)?;
        let files = [
            ("README.TXT", readme.as_bytes()),
            ("LICENCES.TXT", &licences[..]),
        ];
        let image = process::read(&image)?;
        let mut firmware_files = vec![(assemble::FALLBACK_PATH, image)];
        if let Some(signer) = &workshop.signer {
            firmware_files.push((sign::CERTIFICATE_FILE, signer.certificate_der()?));
        }
        let firmware_files: Vec<(&str, &[u8])> = firmware_files
            .iter()
            .map(|(name, content)| (*name, &content[..]))
            .collect();
        assemble::iso(
            &firmware_files,
            &files,
            workshop.epoch,
            &workshop.scratch(),
            &path,
        )?;
        workshop.describe(
            ISO,
            &[
                "truthdb-installer",
                "truthdb",
                "truthdb-node",
                "truthdb-console",
            ],
        )
    })?;
    println!("{}", path.display());
    print!("{}", steps.summary());
    Ok(())
}

/// `truthdb-image disk`.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn disk(options: &Options) -> Result<()> {
    let workshop = Workshop::open(options)?;
    let all = [Format::Raw, Format::Qcow2, Format::Vhd];
    let formats = if options.formats.is_empty() {
        &all[..]
    } else {
        &options.formats
    };
    let own = if options.runtime.is_some() {
        0
    } else {
        RUNTIME_STEPS
    };
    let mut steps = Steps::new(own + 2 + formats.len());
    let runtime = match &options.runtime {
        Some(given) => given.clone(),
        None => runtime_image(&workshop, options, options.kernel.as_ref(), &mut steps)?,
    };
    let others = steps.run("programs of others", || {
        userland::build(&workshop.root, &workshop.cache, &workshop.manifest)
    })?;
    let raw = workshop.out.join(Format::Raw.artefact());
    steps.run("disk, by the installer's executor", || {
        let (image, version) = workshop.system(&runtime)?;
        let mut files = Vec::new();
        for (path, given) in [
            ("config/truthdb.toml", &options.config),
            ("config/node.toml", &options.node_config),
        ] {
            if let Some(given) = given {
                files.push((path, process::read(given)?));
            }
        }
        let contents = Contents {
            image,
            version: &version,
            files,
            epoch: workshop.epoch,
        };
        let asked = options
            .size_mib
            .map_or(disk::IMAGE_BYTES_DEFAULT, |mib| mib << 20);
        // All formats are made from one disk.
        let bytes = if formats.contains(&Format::Vhd) {
            disk::vhd_size(asked)
        } else {
            asked
        };
        if bytes != asked {
            println!("      {} MiB, a size that a VHD can have", bytes >> 20);
        }
        let tools = &others.e2fsprogs.folder;
        disk::raw(contents, bytes, tools, &workshop.scratch(), &raw)
    })?;
    for format in formats {
        let name = format.artefact();
        steps.run(name, || {
            disk::convert(&raw, *format, workshop.epoch, &workshop.out.join(name))?;
            workshop.describe(name, &RUNTIME_PACKAGES)
        })?;
    }
    print!("{}", steps.summary());
    Ok(())
}

/// The version that a unified kernel image says it is.
fn version_of(image: &[u8]) -> Result<String> {
    let section = uki::section(image, ".osrel")?.context("it does not say what it is")?;
    let text = std::str::from_utf8(section).context("what it says is not UTF-8")?;
    ensure!(text.contains("ID=truthdb\n"), "it is of another product");
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("IMAGE_VERSION="));
    Ok(version.context("it does not say its version")?.to_owned())
}

/// Version of the product with the commit that it is made from, and the commit's time.
fn version(root: &Path) -> Result<(String, u64)> {
    let git = |arguments: &[&str]| output(tool("git").current_dir(root).args(arguments));
    let number = env!("CARGO_PKG_VERSION");
    let Ok(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else {
        // Sources without history, as from an archive.
        return Ok((number.to_owned(), 0));
    };
    let changed = !git(&["status", "--porcelain"])?.trim().is_empty();
    let epoch = git(&["log", "-1", "--format=%ct"])?;
    let epoch = epoch.trim().parse().context("the time of the commit")?;
    let dirty = if changed { "-changed" } else { "" };
    Ok((format!("{number}-g{}{dirty}", commit.trim()), epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_says_its_version_and_another_image_is_refused() {
        let stub = uki::tests::stub(2);
        let image = |text: &str| uki::append(&stub, &[(".osrel", text.as_bytes())]).unwrap();
        let ours = image("ID=truthdb\nIMAGE_VERSION=0.1.0-gabc\n");
        assert_eq!(version_of(&ours).unwrap(), "0.1.0-gabc");
        assert!(version_of(&image("ID=other\nIMAGE_VERSION=1\n")).is_err());
        assert!(version_of(&stub).is_err());
    }
}
