//! The commands: which steps an image takes, from which inputs, and what comes out.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::artefacts;
use crate::assemble;
use crate::disk::{self, Contents as DiskContents};
use crate::git;
use crate::kernel::Kernel;
use crate::options::Options;
use crate::parts::{Contents, Part};
use crate::plan::{Plan, Thing, What};
use crate::process;
use crate::profile::{self, Kind, Profile};
use crate::sign;
use crate::steps::Steps;
use crate::userland;
use crate::workshop::{Programs, ROOT_FILES, TakenKernel, Workshop};

/// Name of the ISO.
pub(crate) const ISO: &str = "truthdb-installer.iso";
/// Where the licences are in an image.
const LICENCES_PATH: &str = "usr/share/licences.txt";
/// Packages whose crates are in the runtime.
pub(crate) const RUNTIME_PACKAGES: [&str; 3] = ["truthdb", "truthdb-node", "truthdb-console"];

/// The system that is installed, and what it is made of.
pub(crate) struct System {
    path: PathBuf,
    /// What it is made of.
    pub(crate) contents: Contents,
}

/// What a command works with, after its plan was shown.
fn begin(what: What, options: &Options) -> Result<(Workshop, Plan)> {
    options.check_for(what)?;
    let workshop = Workshop::open(options)?;
    let plan = workshop.plan(what, options)?;
    println!("{plan}");
    std::fs::create_dir_all(&workshop.out).with_context(|| process::disk_advice(&workshop.out))?;
    Ok((workshop, plan))
}

/// What was made, and how long it took.
pub(crate) fn summary(workshop: &Workshop, steps: &Steps) -> String {
    let made = artefacts::table(&workshop.made.borrow());
    format!("in {}:\n{made}{}", workshop.out.display(), steps.summary())
}

/// `truthdb-image kernel`.
///
/// # Errors
///
/// Those of the build.
pub(crate) fn kernel(options: &Options) -> Result<()> {
    let Some(name) = options.words.first() else {
        bail!("which kernel: installer or runtime?");
    };
    let kernel: Kernel = name.parse()?;
    let (workshop, plan) = begin(What::Kernel(kernel), options)?;
    let mut steps = Steps::new(1);
    let given = plan.given(Thing::Kernel(kernel));
    let taken = steps.run(&format!("{name} kernel"), || workshop.kernel(kernel, given))?;
    let bytes = taken.path.metadata().context("reading the kernel")?.len();
    let sha256 = crate::hash::of_file(&taken.path)?;
    println!("      {}, {bytes} bytes, {sha256}", taken.release);
    println!("{}", taken.path.display());
    print!("{}", steps.summary());
    Ok(())
}

/// `truthdb-image runtime`.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn runtime(options: &Options) -> Result<()> {
    let (workshop, plan) = begin(What::Runtime, options)?;
    let mut steps = Steps::new(RUNTIME_STEPS);
    make_runtime(&workshop, &plan, &mut steps)?;
    print!("{}", summary(&workshop, &steps));
    Ok(())
}

/// `truthdb-image iso`.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn iso(options: &Options) -> Result<()> {
    let (workshop, plan) = begin(What::Iso, options)?;
    let mut steps = Steps::new(system_steps(&plan) + ISO_STEPS);
    let system = system(&workshop, &plan, &mut steps)?;
    make_iso(&workshop, &plan, &system, &mut steps)?;
    print!("{}", summary(&workshop, &steps));
    Ok(())
}

/// `truthdb-image disk`.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn disk(options: &Options) -> Result<()> {
    let (workshop, plan) = begin(What::Disk, options)?;
    let mut steps = Steps::new(system_steps(&plan) + disk_steps(&plan));
    let system = system(&workshop, &plan, &mut steps)?;
    make_disk(&workshop, &plan, &system, &mut steps)?;
    print!("{}", summary(&workshop, &steps));
    Ok(())
}

fn system_steps(plan: &Plan) -> usize {
    match plan.given(Thing::System) {
        Some(_) => 0,
        None => RUNTIME_STEPS,
    }
}

/// The system: given, or made.
fn system(workshop: &Workshop, plan: &Plan, steps: &mut Steps) -> Result<System> {
    let Some(given) = plan.given(Thing::System) else {
        return make_runtime(workshop, plan, steps);
    };
    Ok(System {
        path: given.to_owned(),
        contents: Contents::given(Kind::Runtime.artefact(), given)?,
    })
}

/// Steps of [`make_runtime`].
pub(crate) const RUNTIME_STEPS: usize = 4;

/// The installed system.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn make_runtime(workshop: &Workshop, plan: &Plan, steps: &mut Steps) -> Result<System> {
    let taken = steps.run("runtime kernel", || {
        workshop.kernel(Kernel::Runtime, plan.given(Thing::Kernel(Kernel::Runtime)))
    })?;
    let others = steps.run("programs of others", || {
        userland::build(&workshop.root, &workshop.cache, &workshop.manifest)
    })?;
    let mut programs = steps.run("the server and what is around it", || {
        workshop.programs(plan, &RUNTIME_PACKAGES)
    })?;
    let (busybox, e2fsprogs) = (&others.busybox.folder, &others.e2fsprogs.folder);
    programs.by_path.extend([
        ("bin/busybox".into(), busybox.join("busybox")),
        ("sbin/e2fsck".into(), e2fsprogs.join("e2fsck")),
    ]);
    steps.run("unified kernel image of the runtime", || {
        let payload = vec![(LICENCES_PATH.into(), workshop.licences()?)];
        make_image(workshop, plan, Kind::Runtime, taken, programs, payload)
    })
}

/// A unified kernel image, checked, signed if it is to be, and published.
fn make_image(
    workshop: &Workshop,
    plan: &Plan,
    kind: Kind,
    kernel: TakenKernel,
    programs: Programs,
    payload: Vec<(String, PathBuf)>,
) -> Result<System> {
    let mut pins = kernel.pins;
    pins.extend(profile::pins_of(&workshop.manifest)?);
    let profile = Profile {
        kind,
        version: workshop.version.clone(),
        debug: plan.debug,
        kernel: kernel.path,
        release: kernel.release,
        pins,
        programs: programs.by_path,
        payload,
        splash: Some(workshop.splash(plan)?),
    };
    profile.validate()?;
    // Again, since minutes may have gone by.
    git::check_tracked(&workshop.root, ROOT_FILES)?;
    let root = workshop.root.join(ROOT_FILES);
    let (stub, scratch) = (workshop.stub()?, workshop.scratch());
    let image = assemble::unified_kernel_image(&profile, &root, &stub, &scratch)?;
    let image = match &workshop.signer {
        Some(signer) => signer.sign(&image, &scratch)?,
        None => image,
    };
    assemble::check_image(&image)?;
    let mut contents = contents_of(&kernel.contents, &programs.contents);
    if let Some(given) = plan.given(Thing::Splash) {
        contents = contents.and(&Contents::given("splash.bmp", given)?);
    }
    let path = workshop.publish(kind.artefact(), &contents, |part| {
        process::write(part, &image)
    })?;
    Ok(System { path, contents })
}

/// What a unified kernel image is made of, but for a given picture.
fn contents_of(kernel: &Contents, programs: &Contents) -> Contents {
    let always = [Part::Stub, Part::BusyBox, Part::E2fsprogs, Part::Musl];
    Contents::of(&always).and(kernel).and(programs)
}

/// What is in the installer's image besides its kernel: the installer, and the system that it installs.
fn with_system(installer: Contents, system: &System) -> Contents {
    installer.and(&system.contents)
}

/// Steps of [`make_iso`].
pub(crate) const ISO_STEPS: usize = 5;

/// The installation medium, with a system in it.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn make_iso(
    workshop: &Workshop,
    plan: &Plan,
    system: &System,
    steps: &mut Steps,
) -> Result<()> {
    let taken = steps.run("installer kernel", || {
        let given = plan.given(Thing::Kernel(Kernel::Installer));
        workshop.kernel(Kernel::Installer, given)
    })?;
    let others = steps.run("programs of others", || {
        userland::build(&workshop.root, &workshop.cache, &workshop.manifest)
    })?;
    let mut programs = steps.run("the installer", || {
        workshop.programs(plan, &["truthdb-installer"])
    })?;
    let busybox = others.busybox.folder.join("busybox");
    programs.by_path.push(("bin/busybox".into(), busybox));
    for name in ["mke2fs", "e2fsck", "debugfs"] {
        let path = others.e2fsprogs.folder.join(name);
        programs.by_path.push((format!("sbin/{name}"), path));
    }
    programs.contents = with_system(programs.contents, system);
    let image = steps.run("unified kernel image of the installer", || {
        let (_, version) = workshop.system(&system.path)?;
        let version_file = workshop.scratch().join("version");
        process::write(&version_file, format!("{version}\n").as_bytes())?;
        let payload = vec![
            ("payload/TruthDBRuntime.efi".into(), system.path.clone()),
            ("payload/version".into(), version_file),
            (LICENCES_PATH.into(), workshop.licences()?),
        ];
        make_image(workshop, plan, Kind::Installer, taken, programs, payload)
    })?;
    steps.run("ISO", || {
        workshop.publish(ISO, &image.contents, |part| {
            write_iso(workshop, &image.path, part)
        })
    })?;
    Ok(())
}

fn write_iso(workshop: &Workshop, image: &Path, to: &Path) -> Result<()> {
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
    let mut firmware_files = vec![(assemble::FALLBACK_PATH, process::read(image)?)];
    if let Some(signer) = &workshop.signer {
        firmware_files.push((sign::CERTIFICATE_FILE, signer.certificate_der()?));
    }
    let firmware_files: Vec<(&str, &[u8])> = firmware_files
        .iter()
        .map(|(name, content)| (*name, &content[..]))
        .collect();
    let (epoch, scratch) = (workshop.epoch, workshop.scratch());
    assemble::iso(&firmware_files, &files, epoch, &scratch, to)
}

/// Steps of [`make_disk`].
pub(crate) fn disk_steps(plan: &Plan) -> usize {
    2 + plan.formats.len()
}

/// Disk images with a system on them.
///
/// # Errors
///
/// Those of the steps.
pub(crate) fn make_disk(
    workshop: &Workshop,
    plan: &Plan,
    system: &System,
    steps: &mut Steps,
) -> Result<()> {
    let others = steps.run("programs of others", || {
        userland::build(&workshop.root, &workshop.cache, &workshop.manifest)
    })?;
    // Between the steps, since it is an artefact only where it is asked for.
    let raw = workshop.scratch().join("disk.raw");
    steps.run("disk, by the installer's executor", || {
        let (image, version) = workshop.system(&system.path)?;
        let mut files = Vec::new();
        for path in disk::CONFIGURATION_FILES {
            if let Some(given) = plan.given(Thing::Configuration(path)) {
                files.push((path, process::read(given)?));
            }
        }
        let contents = DiskContents {
            image,
            version: &version,
            files,
            epoch: workshop.epoch,
        };
        let tools = &others.e2fsprogs.folder;
        disk::raw(contents, plan.disk_bytes, tools, &workshop.scratch(), &raw)
    })?;
    for format in &plan.formats {
        let name = format.artefact();
        steps.run(name, || {
            workshop.publish(name, &system.contents, |part| {
                disk::convert(&raw, *format, workshop.epoch, part)
            })
        })?;
    }
    process::remove_if_there(&raw)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::workshop::PACKAGES;

    #[test]
    fn the_installer_names_what_it_installs_too() {
        let linux = Contents::of(&[Part::Linux]);
        let programs = RUNTIME_PACKAGES.map(Contents::program);
        let programs = programs.iter().fold(Contents::default(), Contents::and);
        let runtime = contents_of(&linux, &programs);
        let all = [
            Part::Linux,
            Part::Stub,
            Part::BusyBox,
            Part::E2fsprogs,
            Part::Musl,
            Part::RustStd,
            Part::Fonts,
        ];
        assert_eq!(runtime.parts, BTreeSet::from(all));
        assert_eq!(runtime.packages, BTreeSet::from(RUNTIME_PACKAGES));
        let system = System {
            path: PathBuf::new(),
            contents: runtime,
        };
        let installer = with_system(Contents::program("truthdb-installer"), &system);
        let installer = contents_of(&linux, &installer);
        assert_eq!(installer.parts, BTreeSet::from(all));
        assert_eq!(installer.packages, BTreeSet::from(PACKAGES));
    }
}
