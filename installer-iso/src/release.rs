//! A release: everything that is published, in a folder named by its version, with sums, provenance, and the sources of
//! what is under the GPL. Nothing is published from a tree that is not committed, and no version twice.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::disk::Format;
use crate::fetch;
use crate::hash;
use crate::images::{self, ISO, RUNTIME_PACKAGES, Workshop};
use crate::kernel::Kernel;
use crate::options::Options;
use crate::process::{self, output, tool};
use crate::sign::Signer;

/// The list of sums.
const SUMS: &str = "SHA256SUMS";
/// Where it came from.
const PROVENANCE: &str = "provenance.json";
/// Folders and files of the repository that a rebuild of the GPL parts takes, besides upstream's files.
const RECIPES: [&str; 8] = [
    "installer-iso/manifest.toml",
    "installer-iso/userland",
    "installer-iso/src",
    "kernel-base",
    "installer-kernel",
    "runtime-kernel",
    "docs/building.md",
    "LICENSE",
];

/// `truthdb-image release`.
///
/// # Errors
///
/// A tree that is not committed, a version that is there already, or those of the builds.
pub(crate) fn release(options: &Options) -> Result<()> {
    let place = options.out.clone().unwrap_or_else(|| "dist".into());
    let probe = Workshop::open(&Options {
        out: Some(place.clone()),
        ..Options::default()
    })?;
    let folder = place.join(format!("truthdb-{}", probe.version));
    may_release(&probe.version, &folder)?;
    // Made under another name: a folder with a version's name is whole.
    let making = place.join(format!("making-truthdb-{}", probe.version));
    if making.exists() {
        std::fs::remove_dir_all(&making).context("removing what an earlier try left")?;
    }
    build(options, &making)?;
    let workshop = Workshop::open(&Options {
        out: Some(making.clone()),
        ..options.clone()
    })?;
    collect(&workshop)?;
    sources(&workshop)?;
    provenance(&workshop)?;
    let after = Workshop::open(&Options {
        out: Some(making.clone()),
        ..Options::default()
    })?;
    ensure!(
        after.version == probe.version,
        "the tree changed while the release was made: it began as {} and is {}. Nothing is published; leave the tree \
         alone, and start again",
        probe.version,
        after.version
    );
    std::fs::remove_dir_all(workshop.scratch()).context("removing what lies between the steps")?;
    let count = sums(&making)?;
    publish(&making, &folder)?;
    println!("{count} files: {}", folder.display());
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a release that is lost in a power failure is made again"
)]
fn publish(making: &Path, folder: &Path) -> Result<()> {
    std::fs::rename(making, folder).with_context(|| format!("naming {}", folder.display()))
}

/// Refuses what must not be published.
fn may_release(version: &str, folder: &Path) -> Result<()> {
    ensure!(
        version.contains("-g"),
        "a release is made from a git repository, since its version names the commit"
    );
    ensure!(
        !version.ends_with("-changed"),
        "the tree has changes that are not committed: `git status` shows them. Commit them, or put them away"
    );
    ensure!(
        !folder.exists(),
        "{} is there already: a version is released once. Commit something new, or remove the folder if it was \
         never published",
        folder.display()
    );
    Ok(())
}

/// All images.
fn build(options: &Options, out: &Path) -> Result<()> {
    let with = |runtime: Option<PathBuf>| Options {
        out: Some(out.to_owned()),
        runtime,
        ..options.clone()
    };
    let runtime = out.join("TruthDBRuntime.efi");
    images::runtime(&with(None))?;
    images::disk(&with(Some(runtime.clone())))?;
    images::iso(&with(Some(runtime)))
}

/// Programs, kernels and the context of a container, beside the images.
fn collect(workshop: &Workshop) -> Result<()> {
    let out = &workshop.out;
    let copy = |from: &Path, to: &str| {
        std::fs::copy(from, out.join(to)).with_context(|| process::disk_advice(&out.join(to)))
    };
    let programs = workshop.scratch().join("programs");
    for package in RUNTIME_PACKAGES.iter().chain(&["truthdb-installer"]) {
        let name = format!("{package}-x86_64-linux");
        copy(&programs.join(package), &name)?;
        workshop.describe(&name, &[package])?;
    }
    for kernel in [Kernel::Installer, Kernel::Runtime] {
        let (image, _) = workshop.kernel(kernel, None)?;
        let name = format!("vmlinuz-{}", kernel.name());
        copy(&image, &name)?;
        copy(&image.with_file_name("config"), &format!("{name}.config"))?;
        workshop.describe(&name, &[])?;
    }
    copy(&workshop.scratch().join("licences.txt"), "LICENCES.txt")?;
    container(workshop, &programs.join("truthdb"))?;
    for format in [Format::Raw, Format::Vhd] {
        packed(workshop, format.artefact())?;
    }
    ensure!(out.join(ISO).is_file(), "the ISO is missing");
    Ok(())
}

/// Packs a disk image, which is large and mostly holes.
fn packed(workshop: &Workshop, name: &str) -> Result<()> {
    let out = &workshop.out;
    for side in ["sha256", "cdx.json"] {
        let path = out.join(format!("{name}.{side}"));
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    output(
        tool("zstd")
            .args(["-q", "-9", "-f", "--rm"])
            .arg(out.join(name)),
    )?;
    workshop.describe(&format!("{name}.zst"), &RUNTIME_PACKAGES)
}

/// What `docker build` takes to make an image with the server and nothing else.
fn container(workshop: &Workshop, program: &Path) -> Result<()> {
    let folder = workshop.scratch().join("container");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("emptying the scratch folder")?;
    }
    let dockerfile = "# docker build --tag truthdb:VERSION .\n\
        FROM scratch\n\
        COPY truthdb /truthdb\n\
        COPY LICENCES.txt /LICENCES.txt\n\
        VOLUME /data\n\
        EXPOSE 7433 7434\n\
        USER 100:100\n\
        ENTRYPOINT [\"/truthdb\"]\n\
        CMD [\"--data\", \"/data\", \"serve\", \"--init-if-empty\"]\n";
    process::write(&folder.join("Dockerfile"), dockerfile.as_bytes())?;
    for (from, name) in [
        (program.to_owned(), "truthdb"),
        (workshop.scratch().join("licences.txt"), "LICENCES.txt"),
    ] {
        std::fs::copy(&from, folder.join(name)).with_context(|| process::disk_advice(&folder))?;
    }
    let name = "truthdb-container.tar.gz";
    archive(workshop, &folder, &["."], name)?;
    workshop.describe(name, &["truthdb"])
}

/// The sources of the parts under the GPL, and what a rebuild takes.
fn sources(workshop: &Workshop) -> Result<()> {
    let folder = workshop.scratch().join("sources");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("emptying the scratch folder")?;
    }
    std::fs::create_dir_all(&folder).with_context(|| process::disk_advice(&folder))?;
    let manifest = &workshop.manifest;
    let mut files = Vec::new();
    for package in &manifest.source {
        files.extend(fetch::source(&workshop.cache, package)?);
    }
    let (kernel, stub) = (&manifest.kernel, &manifest.stub);
    let cache = &workshop.cache;
    let deb = fetch::binary(
        cache,
        &kernel.package,
        &kernel.version,
        &kernel.file,
        &kernel.sha256,
    )?;
    files.push(deb);
    for file in &files {
        let name = file.file_name().context("a file has a name")?;
        std::fs::copy(file, folder.join(name)).with_context(|| process::disk_advice(&folder))?;
    }
    let recipes = folder.join("recipes.tar.gz");
    archive(
        workshop,
        &workshop.root,
        &RECIPES,
        &recipes.to_string_lossy(),
    )?;
    let readme = format!(
        "The sources of the parts of TruthDB {} that are under the GPL, as they were used: upstream's and Debian's \n\
         files (Linux, BusyBox, e2fsprogs), and in recipes.tar.gz the configurations and the program that builds them\n\
         (docs/building.md in it). The boot stub ({} {}, LGPL) is Debian's unchanged binary; its source is Debian's\n\
         source package systemd of the same version.\n",
        workshop.version, stub.package, stub.version
    );
    process::write(&folder.join("README.txt"), readme.as_bytes())?;
    let name = format!("truthdb-{}-sources.tar", workshop.version);
    archive(workshop, &folder, &["."], &name)
}

/// A tar archive of files below a folder, with the commit's time and root as owner of everything.
fn archive(workshop: &Workshop, folder: &Path, files: &[&str], name: &str) -> Result<()> {
    let to = std::path::absolute(workshop.out.join(name)).context("the place of an archive")?;
    let mut tar = tool("tar");
    tar.arg("-C")
        .arg(folder)
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{}", workshop.epoch))
        .args(["--mode=u=rwX,go=rX", "--format=posix"])
        .arg("--pax-option=delete=atime,delete=ctime");
    if name.ends_with(".gz") {
        tar.args(["--use-compress-program", "gzip -n"]);
    }
    output(tar.arg("-cf").arg(&to).args(files)).map(|_| ())
}

/// Where the artefacts came from, in the form of in-toto and SLSA, so that tools can read it. It is not signed.
fn provenance(workshop: &Workshop) -> Result<()> {
    let git = |arguments: &[&str]| -> Result<String> {
        let said = output(tool("git").current_dir(&workshop.root).args(arguments))?;
        Ok(said.trim().to_owned())
    };
    let version_of = |program: &str| -> Result<String> {
        let said = output(tool(program).arg("--version"))?;
        Ok(said.lines().next().unwrap_or_default().to_owned())
    };
    let lock = hash::of_file(&workshop.root.join("Cargo.lock"))?;
    let manifest = hash::of_file(&workshop.root.join("installer-iso/manifest.toml"))?;
    let tools: Vec<Value> = [
        "rustc", "gcc", "musl-gcc", "ld", "xorriso", "qemu-img", "tar",
    ]
    .into_iter()
    .map(|program| Ok(json!({ "name": program, "version": version_of(program)? })))
    .collect::<Result<_>>()?;
    let subjects: Vec<Value> = files(&workshop.out)?
        .into_iter()
        .map(|name| {
            let sha256 = hash::of_file(&workshop.out.join(&name))?;
            Ok(json!({ "name": name, "digest": { "sha256": sha256 } }))
        })
        .collect::<Result<_>>()?;
    let signer = workshop
        .signer
        .as_ref()
        .map(Signer::fingerprint)
        .transpose()?;
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "cargo xtask release",
                "externalParameters": { "version": workshop.version, "signingCertificateSha256": signer },
                "internalParameters": { "tools": tools },
                "resolvedDependencies": [
                    { "name": "the repository", "digest": { "gitCommit": git(&["rev-parse", "HEAD"])? } },
                    { "name": "Cargo.lock", "digest": { "sha256": lock } },
                    { "name": "installer-iso/manifest.toml", "digest": { "sha256": manifest } },
                ],
            },
            "runDetails": { "builder": { "id": "truthdb-image" } },
        },
    });
    let text = format!("{statement:#}\n");
    process::write(&workshop.out.join(PROVENANCE), text.as_bytes())
}

/// The files of a folder, sorted; no folders.
fn files(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.with_context(|| format!("listing {}", folder.display()))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    let mut names: Vec<String> = files
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Writes the list of sums; the number of files in it.
fn sums(folder: &Path) -> Result<usize> {
    let names = files(folder)?;
    let mut text = String::new();
    for name in &names {
        text.push_str(&format!("{}  {name}\n", hash::of_file(&folder.join(name))?));
    }
    process::write(&folder.join(SUMS), text.as_bytes())?;
    Ok(names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_committed_or_is_there_already_is_not_released() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("truthdb-0.1.0-gabc");
        may_release("0.1.0-gabc", &there).unwrap();
        for (version, says) in [
            ("0.1.0-gabc-changed", "git status"),
            ("0.1.0", "repository"),
        ] {
            let error = may_release(version, &there).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        std::fs::create_dir(&there).unwrap();
        let error = may_release("0.1.0-gabc", &there).unwrap_err().to_string();
        assert!(error.contains("released once"), "{error}");
    }

    #[test]
    fn sums_are_those_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("b"), "two").unwrap();
        std::fs::write(folder.path().join("a"), "one").unwrap();
        assert_eq!(sums(folder.path()).unwrap(), 2);
        let checked = tool("sha256sum")
            .args(["--check", SUMS])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }
}
