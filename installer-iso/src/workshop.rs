//! What every command works with: the repository, the cache, the pins, and how each input of an image is come by.

use std::cell::{OnceCell, RefCell};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::artefacts::Artefact;
use crate::assemble;
use crate::binaries::{Builds, stripped};
use crate::bzimage;
use crate::cache::Cache;
use crate::fetch;
use crate::git;
use crate::hash;
use crate::kernel::{About, Kernel, Recipe};
use crate::licences;
use crate::manifest::Manifest;
use crate::options::Options;
use crate::parts::{Contents, Part};
use crate::plan::{Plan, Stock, Thing, What};
use crate::process::{self, output, tool};
use crate::profile::Pin;
use crate::sbom::{self, Libraries};
use crate::sign::{self, Signer};
use crate::splash;
use crate::uki;
use crate::userland;

/// All our programs, each of a package of its name.
pub(crate) const PACKAGES: [&str; 4] = [
    "truthdb",
    "truthdb-node",
    "truthdb-console",
    "truthdb-installer",
];

/// The folder with the files of the images' initial file systems.
pub(crate) const ROOT_FILES: &str = "installer-iso/root";

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
    /// What was made, in this order.
    pub(crate) made: RefCell<Vec<Artefact>>,
    /// The licences, once they are written.
    licences: OnceCell<PathBuf>,
    /// What the compilers said of their libraries.
    libraries: OnceCell<Libraries>,
}

/// A kernel that goes into an image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TakenKernel {
    /// The image.
    pub(crate) path: PathBuf,
    /// What it calls itself.
    pub(crate) release: String,
    /// What it is made of, for `os-release`.
    pub(crate) pins: Vec<Pin>,
    /// The same, for the bill of materials.
    pub(crate) contents: Contents,
}

/// Our programs in an image.
pub(crate) struct Programs {
    /// Where each is, by its path in the image.
    pub(crate) by_path: Vec<(String, PathBuf)>,
    /// What they are made of.
    pub(crate) contents: Contents,
}

impl Workshop {
    /// Reads the manifest and asks git for the version.
    ///
    /// # Errors
    ///
    /// What is wrong in the manifest, or with the key for signing.
    pub(crate) fn open(options: &Options) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let root = root
            .context("this crate lies in the root of the repository")?
            .to_owned();
        let manifest = Manifest::read(&root.join("installer-iso/manifest.toml"))?;
        let (version, epoch) = git::version(&root)?;
        let profile = options.profile.as_deref().unwrap_or("release");
        let builds = Builds::new(root.clone(), profile.to_owned());
        let default = builds.target_dir().join("appliance").join(&version);
        Ok(Self {
            root,
            cache: Cache::of_user()?,
            manifest,
            builds,
            signer: Signer::of(options)?,
            version,
            epoch,
            out: options.out.clone().unwrap_or(default),
            made: RefCell::default(),
            licences: OnceCell::new(),
            libraries: OnceCell::new(),
        })
    }

    /// Where each input will come from; nothing is made for it.
    ///
    /// # Errors
    ///
    /// A given file that is not there, or not what it is given as; a file that would get into an image unseen.
    pub(crate) fn plan(&self, what: What, options: &Options) -> Result<Plan> {
        if !matches!(what, What::Kernel(_)) {
            git::check_tracked(&self.root, ROOT_FILES)?;
        }
        let stock = Stock {
            root: &self.root,
            cache: &self.cache,
            manifest: &self.manifest,
            signer: self.signer.as_ref(),
            others: &|name| userland::cached(&self.root, &self.cache, &self.manifest, name),
        };
        Plan::new(what, options, &self.version, &self.out, &stock)
    }

    /// A folder for what lies between the steps.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.out.join("parts")
    }

    /// A kernel: given, from the cache, or built.
    ///
    /// # Errors
    ///
    /// Those of the build.
    pub(crate) fn kernel(&self, kernel: Kernel, given: Option<&Path>) -> Result<TakenKernel> {
        if let Some(given) = given {
            return given_kernel(given);
        }
        let entry = Recipe::read(&self.root, kernel)?.build(&self.cache, &self.manifest)?;
        let note = if entry.cached {
            "from the cache"
        } else {
            "built"
        };
        println!("      {note}: {}", entry.folder.display());
        let about = About::read(&entry.folder)?;
        let pin = &self.manifest.kernel;
        Ok(TakenKernel {
            path: entry.folder.join("vmlinuz"),
            release: about.release,
            pins: vec![
                ("KERNEL_SOURCE", format!("{} {}", pin.package, pin.version)),
                ("KERNEL_CONFIG_SHA256", about.config_sha256),
                ("KERNEL_SHA256", about.sha256),
            ],
            contents: Contents::of(&[Part::Linux]),
        })
    }

    /// The folder with the stub's package.
    fn stub_package(&self) -> Result<PathBuf> {
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
        Ok(folder)
    }

    /// The EFI stub.
    ///
    /// # Errors
    ///
    /// It cannot be fetched.
    pub(crate) fn stub(&self) -> Result<Vec<u8>> {
        process::read(&self.stub_package()?.join(&self.manifest.stub.path))
    }

    /// The picture before Linux starts: given, or drawn.
    ///
    /// # Errors
    ///
    /// It cannot be drawn or written.
    pub(crate) fn splash(&self, plan: &Plan) -> Result<PathBuf> {
        if let Some(given) = plan.given(Thing::Splash) {
            return Ok(given.to_owned());
        }
        let path = self.scratch().join("splash.bmp");
        process::write(&path, &splash::picture()?)?;
        Ok(path)
    }

    /// Our programs: given, or built; and stripped.
    ///
    /// # Errors
    ///
    /// Those of the build, or a program that is not static.
    pub(crate) fn programs(&self, plan: &Plan, wanted: &[&'static str]) -> Result<Programs> {
        let given = |package| plan.given(Thing::Program(package));
        let missing: Vec<&str> = wanted
            .iter()
            .copied()
            .filter(|package| given(package).is_none())
            .collect();
        let mut built = self.builds.build(&missing)?.into_iter();
        let mut by_path = Vec::new();
        let mut contents = Contents::default();
        for package in wanted.iter().copied() {
            let (program, made_of) = match given(package) {
                Some(path) => (path.to_owned(), Contents::given(package, path)?),
                None => {
                    let program = built.next().context("a program for each package")?;
                    (program, Contents::program(package))
                }
            };
            contents = contents.and(&made_of);
            let program = stripped(&program, &self.scratch().join("programs"), package)?;
            by_path.push((format!("bin/{package}"), program));
        }
        Ok(Programs { by_path, contents })
    }

    /// The system that goes onto a medium or a disk, with its version.
    ///
    /// # Errors
    ///
    /// It is not ours, or not signed where it must be.
    pub(crate) fn system(&self, path: &Path) -> Result<(Vec<u8>, String)> {
        system_in(path, self.signer.as_ref())
    }

    /// The licences of everything in any of the images.
    ///
    /// # Errors
    ///
    /// One is missing.
    pub(crate) fn licences(&self) -> Result<PathBuf> {
        if let Some(path) = self.licences.get() {
            return Ok(path.clone());
        }
        let (root, cache, stub) = (&self.root, &self.cache, self.stub_package()?);
        let text = licences::text(root, cache, &self.manifest, &stub, &PACKAGES)?;
        let path = self.scratch().join("licences.txt");
        process::write(&path, text.as_bytes())?;
        Ok(self.licences.get_or_init(|| path).clone())
    }

    fn libraries(&self) -> Result<&Libraries> {
        if let Some(libraries) = self.libraries.get() {
            return Ok(libraries);
        }
        let libraries = Libraries::read(&self.root)?;
        Ok(self.libraries.get_or_init(|| libraries))
    }

    /// Has an artefact made, and gives it its name when it is whole, then its hash and bill of materials. Those of an
    /// earlier one go first, so that nothing is said of an artefact that is not true of it.
    ///
    /// # Errors
    ///
    /// Those of `make`, or a full disk.
    pub(crate) fn publish(
        &self,
        name: &str,
        contents: &Contents,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.out.join(name);
        said_of(&self.out, name)
            .iter()
            .try_for_each(|side| process::remove_if_there(side))?;
        process::whole(&path, make)?;
        self.describe(name, contents)?;
        Ok(path)
    }

    /// Writes the hash and the bill of materials of an artefact.
    ///
    /// # Errors
    ///
    /// A full disk, or cargo cannot say what our programs are built from.
    pub(crate) fn describe(&self, name: &str, contents: &Contents) -> Result<()> {
        let path = self.out.join(name);
        let sha256 = hash::of_file(&path)?;
        let [sum_file, bom_file] = said_of(&self.out, name);
        let sum = format!("{sha256}  {name}\n");
        process::write(&sum_file, sum.as_bytes())?;
        let artefact = (name, self.version.as_str(), sha256.as_str());
        let (root, manifest) = (&self.root, &self.manifest);
        let bom = sbom::cyclonedx(root, manifest, self.libraries()?, artefact, contents)?;
        let bom = format!("{bom:#}\n");
        process::write(&bom_file, bom.as_bytes())?;
        println!("      {}", path.display());
        self.made.borrow_mut().push(Artefact {
            name: name.to_owned(),
            bytes: path.metadata().context("reading an artefact")?.len(),
            sha256,
        });
        Ok(())
    }

    /// Takes back what was said of an artefact that is not kept.
    ///
    /// # Errors
    ///
    /// What was written of it is not there.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        for path in said_of(&self.out, name) {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        self.made.borrow_mut().retain(|made| made.name != name);
        Ok(())
    }
}

/// Where the hash and the bill of materials of an artefact are.
fn said_of(out: &Path, name: &str) -> [PathBuf; 2] {
    ["sha256", "cdx.json"].map(|side| out.join(format!("{name}.{side}")))
}

/// A kernel that was given: what it is follows from its bytes, and not from where they lay.
fn given_kernel(path: &Path) -> Result<TakenKernel> {
    let image = process::read(path)?;
    let release = bzimage::release(&image).with_context(|| format!("in {}", path.display()))?;
    Ok(TakenKernel {
        path: path.to_owned(),
        release,
        pins: vec![
            ("KERNEL_SOURCE", "given to the build as a file".into()),
            ("KERNEL_SHA256", hash::of_bytes(&image)),
        ],
        contents: Contents::given("vmlinuz", path)?,
    })
}

/// A system in a file, with its version.
///
/// # Errors
///
/// It is not ours, not whole, or not signed where it must be.
pub(crate) fn system_in(path: &Path, signer: Option<&Signer>) -> Result<(Vec<u8>, String)> {
    let image = process::read(path)?;
    let version = version_of(&image)
        .with_context(|| format!("{} is no runtime of TruthDB", path.display()))?;
    assemble::check_image(&image)
        .with_context(|| format!("{} is damaged, or cut short", path.display()))?;
    sign::check_given(signer, &image, path)?;
    Ok((image, version))
}

/// The version that a unified kernel image says it is.
pub(crate) fn version_of(image: &[u8]) -> Result<String> {
    let section = uki::section(image, ".osrel")?.context("it does not say what it is")?;
    let text = std::str::from_utf8(section).context("what it says is not UTF-8")?;
    ensure!(text.contains("ID=truthdb\n"), "it is of another product");
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("IMAGE_VERSION="));
    Ok(version.context("it does not say its version")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_kernel_is_known_by_its_bytes_and_not_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let image = bzimage::tests::image("6.12.5-own (somebody@somewhere) #1");
        let [one, other] = ["one/vmlinuz", "other/kernel"].map(|name| folder.path().join(name));
        let [one, other] = [one, other].map(|path| {
            process::write(&path, &image).unwrap();
            let kernel = given_kernel(&path).unwrap();
            assert_eq!(kernel.path, path);
            (kernel.release, kernel.pins, kernel.contents)
        });
        assert_eq!(one, other);
        assert_eq!(one.0, "6.12.5-own");
        let sha256 = ("KERNEL_SHA256", hash::of_bytes(&image));
        assert!(one.1.contains(&sha256), "{:?}", one.1);
        let no_kernel = folder.path().join("text");
        process::write(&no_kernel, b"#!/bin/sh").unwrap();
        let error = format!("{:#}", given_kernel(&no_kernel).unwrap_err());
        assert!(error.contains("no bzImage"), "{error}");
    }

    /// A runtime with something in every section.
    fn runtime() -> Vec<u8> {
        let kernel = [7; 5000];
        let sections: [uki::Section<'_>; 7] = [
            (".sbat", b"sbat"),
            (".osrel", b"ID=truthdb\nIMAGE_VERSION=0.1.0-gabc\n"),
            (".cmdline", b"quiet"),
            (".uname", b"6.12"),
            (".splash", b"BM"),
            (".initrd", &[3; 3000]),
            (".linux", &kernel),
        ];
        uki::append(&uki::tests::stub(7), &sections).unwrap()
    }

    #[test]
    fn a_system_that_is_cut_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("TruthDBRuntime.efi");
        let image = runtime();
        process::write(&path, &image).unwrap();
        let (bytes, version) = system_in(&path, None).unwrap();
        assert!(bytes == image && version == "0.1.0-gabc");
        // Where its version is still there, and where only its last byte is missing.
        for end in [image.len() - 4000, image.len() - 6000, image.len() - 1] {
            process::write(&path, &image[..end]).unwrap();
            assert!(version_of(&image[..end]).is_ok());
            let error = format!("{:#}", system_in(&path, None).unwrap_err());
            assert!(error.contains("cut short"), "{error}");
        }
    }

    #[test]
    fn what_was_said_of_an_artefact_goes_before_another_takes_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            out: Some(folder.path().to_owned()),
            ..Options::default()
        };
        let workshop = Workshop::open(&options).unwrap();
        workshop.libraries.set(sbom::tests::libraries()).unwrap();
        let [image, sum, bom] =
            ["x.img", "x.img.sha256", "x.img.cdx.json"].map(|name| folder.path().join(name));
        for path in [&image, &sum, &bom] {
            process::write(path, b"before").unwrap();
        }
        let is_told = || sum.exists() || bom.exists();
        let failed = workshop.publish("x.img", &Contents::default(), |part| {
            assert!(!is_told());
            process::write(part, b"half")?;
            anyhow::bail!("the disk is full")
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        assert_eq!(process::read(&image).unwrap(), b"before");
        assert!(!is_told(), "of the one before nothing is said");
        assert!(workshop.made.borrow().is_empty());
        let made = |part: &Path| process::write(part, b"whole");
        workshop
            .publish("x.img", &Contents::default(), made)
            .unwrap();
        let text = std::fs::read_to_string(&sum).unwrap();
        assert_eq!(text, format!("{}  x.img\n", hash::of_bytes(b"whole")));
        assert!(bom.exists());
        workshop.forget("x.img").unwrap();
        assert!(!is_told() && workshop.made.borrow().is_empty());
    }

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
