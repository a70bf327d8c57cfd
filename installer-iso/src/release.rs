//! A release: everything that is published, in a folder named by its version, with sums, provenance, and the sources of
//! what is under the GPL. Nothing is published from a tree that is not committed, and no version twice.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::disk::Format;
use crate::fetch;
use crate::git;
use crate::hash;
use crate::images::{self, ISO};
use crate::kernel::Kernel;
use crate::options::Options;
use crate::parts::{Contents, Part};
use crate::plan::What;
use crate::process::{self, output, tool};
use crate::sign::Signer;
use crate::steps::Steps;
use crate::workshop::{PACKAGES, Workshop};

/// The list of sums.
const SUMS: &str = "SHA256SUMS";
/// Where it came from.
const PROVENANCE: &str = "provenance.json";
/// What `docker build` makes the container from.
///
/// Volumes are made from the folder that the image has in their place, with its owner: without one a new volume is
/// root's, and the server could not write into it.
const DOCKERFILE: &str = "\
# docker build --tag truthdb:VERSION .    (how it is run: docs/operations.md, \"In a container\")
FROM scratch
COPY truthdb /truthdb
COPY truthdb.toml /etc/truthdb.toml
COPY LICENCES.txt /LICENCES.txt
COPY --chown=100:100 data /data
ENV TRUTHDB_CONFIG=/etc/truthdb.toml
VOLUME /data
EXPOSE 7433 7434
USER 100:100
ENTRYPOINT [\"/truthdb\"]
CMD [\"serve\", \"--init-if-empty\"]
";
/// The server's configuration on a node that nobody has configured.
const NODE_CONFIGURATION: &str = "installer-iso/root/runtime/etc/truthdb.toml";
/// What stands above it in a container.
const CONTAINER_CONFIGURATION_HEAD: &str = "\
# The server's configuration in a container. Reachable from outside, therefore encrypted and closed to everybody without
# a token; the first start makes certificate and token, and shows both in what `docker logs` shows.
";

/// Steps after the images.
const OWN_STEPS: usize = 3;

/// `truthdb-image release`.
///
/// # Errors
///
/// Options that would change what is published, a tree that is not committed, a version that is there already, or those
/// of the builds.
pub(crate) fn release(options: &Options) -> Result<()> {
    options.check_for(What::Release)?;
    let mut workshop = Workshop::open(options)?;
    let place = options.out.clone().unwrap_or_else(|| "dist".into());
    let version = workshop.version.clone();
    let folder = place.join(format!("truthdb-{version}"));
    may_release(&version, &folder)?;
    // Made under another name: a folder with a version's name is whole.
    let making = place.join(format!("making-truthdb-{version}"));
    git::check_place(&workshop.root, &making)?;
    workshop.out.clone_from(&making);
    if making.exists() {
        std::fs::remove_dir_all(&making).context("removing what an earlier try left")?;
    }
    let plan = workshop.plan(What::Release, options)?;
    println!("{plan}");
    std::fs::create_dir_all(&making).with_context(|| process::disk_advice(&making))?;
    let images = images::RUNTIME_STEPS + images::disk_steps(&plan) + images::ISO_STEPS;
    let mut steps = Steps::new(images + OWN_STEPS);
    let system = images::make_runtime(&workshop, &plan, &mut steps)?;
    images::make_disk(&workshop, &plan, &system, &mut steps)?;
    images::make_iso(&workshop, &plan, &system, &mut steps)?;
    steps.run("programs, kernels, container", || {
        collect(&workshop, &system.contents)
    })?;
    steps.run("sources", || sources(&workshop))?;
    steps.run("provenance", || provenance(&workshop))?;
    let after = Workshop::open(&Options::default())?;
    ensure!(
        after.version == version,
        "the tree changed while the release was made: it began as {version} and is {}. Nothing is published; leave the \
         tree alone, and start again",
        after.version
    );
    std::fs::remove_dir_all(workshop.scratch()).context("removing what lies between the steps")?;
    let count = sums(&making)?;
    process::give_name(&making, &folder)?;
    workshop.out.clone_from(&folder);
    print!("{}", images::summary(&workshop, &steps));
    println!("{count} files: {}", folder.display());
    Ok(())
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

/// Programs, kernels and the context of a container, beside the images.
fn collect(workshop: &Workshop, system: &Contents) -> Result<()> {
    let out = &workshop.out;
    let copy = |from: &Path, to: &str| {
        std::fs::copy(from, out.join(to)).with_context(|| process::disk_advice(&out.join(to)))
    };
    let programs = workshop.scratch().join("programs");
    for package in PACKAGES {
        let name = format!("{package}-x86_64-linux");
        copy(&programs.join(package), &name)?;
        workshop.describe(&name, &Contents::program(package))?;
    }
    for kernel in [Kernel::Installer, Kernel::Runtime] {
        let image = workshop.kernel(kernel, None)?.path;
        let name = format!("vmlinuz-{}", kernel.name());
        copy(&image, &name)?;
        copy(&image.with_file_name("config"), &format!("{name}.config"))?;
        workshop.describe(&name, &Contents::of(&[Part::Linux]))?;
    }
    copy(&workshop.licences()?, "LICENCES.txt")?;
    container(workshop, &programs.join("truthdb"))?;
    for format in [Format::Raw, Format::Vhd] {
        packed(workshop, format.artefact(), system)?;
    }
    ensure!(out.join(ISO).is_file(), "the ISO is missing");
    Ok(())
}

/// Packs a disk image, which is large and mostly holes.
fn packed(workshop: &Workshop, name: &str, system: &Contents) -> Result<()> {
    workshop.forget(name)?;
    output(
        tool("zstd")
            .args(["-q", "-9", "-f", "--rm"])
            .arg(workshop.out.join(name)),
    )?;
    workshop.describe(&format!("{name}.zst"), system)
}

/// What `docker build` takes to make an image with the server and nothing else.
fn container(workshop: &Workshop, program: &Path) -> Result<()> {
    let folder = workshop.scratch().join("container");
    let name = "truthdb-container.tar.gz";
    let licences = workshop.licences()?;
    container_context(&workshop.root, &folder, program, &licences)?;
    archive(&folder, workshop.epoch, &workshop.out.join(name))?;
    workshop.describe(name, &Contents::program("truthdb"))
}

/// The files of it, in an empty folder.
fn container_context(root: &Path, folder: &Path, program: &Path, licences: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).context("emptying the scratch folder")?;
    }
    let data = folder.join("data");
    std::fs::create_dir_all(&data).with_context(|| process::disk_advice(&data))?;
    process::write(&folder.join("Dockerfile"), DOCKERFILE.as_bytes())?;
    let of_node = process::read(&root.join(NODE_CONFIGURATION))?;
    let of_node = String::from_utf8(of_node).context("the node's configuration is not UTF-8")?;
    let configuration = container_configuration(&of_node);
    process::write(&folder.join("truthdb.toml"), configuration.as_bytes())?;
    for (from, name) in [(program, "truthdb"), (licences, "LICENCES.txt")] {
        std::fs::copy(from, folder.join(name)).with_context(|| process::disk_advice(folder))?;
    }
    Ok(())
}

/// The node's configuration, under words about a container.
fn container_configuration(of_node: &str) -> String {
    let settings = of_node.lines().skip_while(|line| line.starts_with('#'));
    let mut text = CONTAINER_CONFIGURATION_HEAD.to_owned();
    for line in settings {
        text.push_str(line);
        text.push('\n');
    }
    text
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
    let name = format!("truthdb-{}", workshop.version);
    git::archive(&workshop.root, &name, &folder.join("recipes.tar.gz"))?;
    let readme = format!(
        "The sources of the parts of TruthDB {} that are under the GPL, as they were used: upstream's and Debian's \n\
         files (Linux, BusyBox, e2fsprogs), and in recipes.tar.gz the repository of TruthDB at this version, with the\n\
         configurations, and the program that builds them (docs/building.md in it). The boot stub ({} {}, LGPL)\n\
         is Debian's unchanged binary; its source is Debian's source package systemd of the same version.\n",
        workshop.version, stub.package, stub.version
    );
    process::write(&folder.join("README.txt"), readme.as_bytes())?;
    let name = format!("truthdb-{}-sources.tar", workshop.version);
    archive(&folder, workshop.epoch, &workshop.out.join(name))
}

/// A tar archive of a folder, with the commit's time and root as owner of everything.
fn archive(folder: &Path, epoch: u64, to: &Path) -> Result<()> {
    let to = std::path::absolute(to).context("the place of an archive")?;
    let mut tar = tool("tar");
    tar.arg("-C")
        .arg(folder)
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{epoch}"))
        .args(["--mode=u=rwX,go=rX", "--format=posix"])
        .arg("--pax-option=delete=atime,delete=ctime");
    if to.extension().is_some_and(|end| end == "gz") {
        tar.args(["--use-compress-program", "gzip -n"]);
    }
    output(tar.arg("-cf").arg(&to).arg(".")).map(|_| ())
}

/// Where the artefacts came from, into its file.
fn provenance(workshop: &Workshop) -> Result<()> {
    let said = output(
        tool("git")
            .current_dir(&workshop.root)
            .args(["rev-parse", "HEAD"]),
    )?;
    let version_of = |program: &str| -> Result<(String, String)> {
        let said = output(tool(program).arg("--version"))?;
        let first = said.lines().next().unwrap_or_default();
        Ok((program.to_owned(), first.to_owned()))
    };
    let tools = [
        "rustc", "gcc", "musl-gcc", "ld", "xorriso", "qemu-img", "tar",
    ];
    let names = files(&workshop.out)?.into_iter();
    let hashed = |name: String| {
        let sha256 = hash::of_file(&workshop.out.join(&name))?;
        Ok((name, sha256))
    };
    let signer = workshop.signer.as_ref();
    let origin = Origin {
        version: workshop.version.clone(),
        commit: said.trim().to_owned(),
        signer: signer.map(Signer::fingerprint).transpose()?,
        lock: hash::of_file(&workshop.root.join("Cargo.lock"))?,
        manifest: hash::of_file(&workshop.root.join("installer-iso/manifest.toml"))?,
        tools: tools.into_iter().map(version_of).collect::<Result<_>>()?,
        artefacts: names.map(hashed).collect::<Result<_>>()?,
    };
    let text = format!("{:#}\n", origin.statement());
    process::write(&workshop.out.join(PROVENANCE), text.as_bytes())
}

/// What the provenance says.
struct Origin {
    version: String,
    commit: String,
    /// Hash of the certificate that the images are signed for.
    signer: Option<String>,
    /// Hash of the list of crates.
    lock: String,
    /// Hash of the list of everything else.
    manifest: String,
    /// Programs and what they say of their version.
    tools: Vec<(String, String)>,
    /// Names and hashes.
    artefacts: Vec<(String, String)>,
}

impl Origin {
    /// In the form of in-toto and SLSA, so that tools can read it. It is not signed.
    fn statement(&self) -> Value {
        let tools = self.tools.iter();
        let tools: Vec<Value> = tools
            .map(|(name, version)| json!({ "name": name, "version": version }))
            .collect();
        let artefacts = self.artefacts.iter();
        let subjects: Vec<Value> = artefacts
            .map(|(name, sha256)| json!({ "name": name, "digest": { "sha256": sha256 } }))
            .collect();
        json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subjects,
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {
                    "buildType": "cargo xtask release",
                    "externalParameters": { "version": self.version, "signingCertificateSha256": self.signer },
                    "internalParameters": { "tools": tools },
                    "resolvedDependencies": [
                        { "name": "the repository", "digest": { "gitCommit": self.commit } },
                        { "name": "Cargo.lock", "digest": { "sha256": self.lock } },
                        { "name": "installer-iso/manifest.toml", "digest": { "sha256": self.manifest } },
                    ],
                },
                "runDetails": { "builder": { "id": "truthdb-image" } },
            },
        })
    }
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

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

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

    #[test]
    fn archives_repeat_and_name_nobody() {
        let archives: Vec<(Vec<u8>, Vec<u8>)> = ["one", "other"]
            .map(|name| {
                let scratch = tempfile::tempdir().unwrap();
                let folder = scratch.path().join(name);
                process::write(&folder.join("b"), b"two").unwrap();
                process::write(&folder.join("a/within"), b"one").unwrap();
                let [plain, packed] = ["x.tar", "x.tar.gz"].map(|to| scratch.path().join(to));
                for to in [&plain, &packed] {
                    archive(&folder, 1_700_000_000, to).unwrap();
                }
                let listed = output(tool("tar").arg("-tvf").arg(&packed)).unwrap();
                let lines: Vec<&str> = listed.lines().collect();
                assert_eq!(lines.len(), 4, "{listed}");
                let of_root = |line: &&str| line.contains(" 0/0 ") && line.contains(" 2023-11-14 ");
                assert!(lines.iter().all(of_root), "{listed}");
                assert!(lines[2].ends_with(" ./a/within"), "{listed}");
                [plain, packed].map(|to| std::fs::read(to).unwrap()).into()
            })
            .into();
        assert!(archives[0] == archives[1], "two folders, two archives");
        assert!(archives[0].1.starts_with(&[0x1f, 0x8b]), "packed");
    }

    #[test]
    fn a_container_has_the_server_its_configuration_a_place_for_data_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("container");
        let [program, licences] = ["p", "l"].map(|name| scratch.path().join(name));
        std::fs::write(&program, "program").unwrap();
        std::fs::write(&licences, "licences").unwrap();
        process::write(&folder.join("left"), b"by an earlier try").unwrap();
        container_context(root(), &folder, &program, &licences).unwrap();
        assert_eq!(
            files(&folder).unwrap(),
            ["Dockerfile", "LICENCES.txt", "truthdb", "truthdb.toml"]
        );
        let packed = scratch.path().join("context.tar.gz");
        archive(&folder, 1_700_000_000, &packed).unwrap();
        let listed = output(tool("tar").arg("-tf").arg(&packed)).unwrap();
        let listed: Vec<&str> = listed.lines().collect();
        for line in DOCKERFILE.lines().filter(|line| line.starts_with("COPY ")) {
            let name = line.split(' ').rev().nth(1).unwrap();
            let is_packed = |entry: &&str| entry.trim_end_matches('/') == format!("./{name}");
            assert!(listed.iter().any(is_packed), "{line}");
        }
        // Nothing in it, or it would be no place for a new database.
        assert!(
            listed.contains(&"./data/") && listed.len() == 6,
            "{listed:?}"
        );
        // Whoever runs it owns its data, and configuration and data are where the one says that the other is.
        assert!(DOCKERFILE.contains("COPY --chown=100:100 data /data\n"));
        assert!(DOCKERFILE.contains("USER 100:100\n") && DOCKERFILE.contains("VOLUME /data\n"));
        assert!(DOCKERFILE.contains("COPY truthdb.toml /etc/truthdb.toml\n"));
        assert!(DOCKERFILE.contains("ENV TRUTHDB_CONFIG=/etc/truthdb.toml\n"));
    }

    #[test]
    fn a_container_is_configured_as_a_node_that_nobody_has_configured() {
        let of_node = std::fs::read_to_string(root().join(NODE_CONFIGURATION)).unwrap();
        let text = container_configuration(&of_node);
        let [ours, the_nodes]: [toml::Table; 2] =
            [&text, &of_node].map(|text| toml::from_str(text).unwrap());
        assert_eq!(ours, the_nodes);
        assert_eq!(ours["data"]["directory"].as_str(), Some("/data"));
        // Reachable by the ports that the image names, and by nobody without a token.
        for (listen, port) in [("http", "7433"), ("native", "7434")] {
            let address = ours["listen"][listen].as_str().unwrap();
            assert_eq!(address, format!("0.0.0.0:{port}"));
            assert!(
                DOCKERFILE
                    .lines()
                    .any(|line| line.starts_with("EXPOSE ") && line.contains(port))
            );
        }
        assert_eq!(ours["auth"]["enabled"].as_bool(), Some(true));
        assert!(text.starts_with("# The server's configuration in a container."));
        assert!(!text.contains("console"), "{text}");
    }

    #[test]
    fn the_provenance_names_every_artefact_and_every_list_of_inputs() {
        let origin = Origin {
            version: "0.1.0-gabc".into(),
            commit: "abcdef".into(),
            signer: None,
            lock: "1".into(),
            manifest: "2".into(),
            tools: vec![("gcc".into(), "gcc 12".into())],
            artefacts: vec![("a.iso".into(), "3".into()), ("b".into(), "4".into())],
        };
        let statement = origin.statement();
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(statement["subject"][0]["name"], "a.iso");
        assert_eq!(statement["subject"][1]["digest"]["sha256"], "4");
        let built = &statement["predicate"]["buildDefinition"];
        assert_eq!(built["externalParameters"]["version"], "0.1.0-gabc");
        assert!(built["externalParameters"]["signingCertificateSha256"].is_null());
        let inputs = &built["resolvedDependencies"];
        assert_eq!(inputs[0]["digest"]["gitCommit"], "abcdef");
        assert_eq!(inputs[1]["digest"]["sha256"], "1");
        assert_eq!(inputs[2]["digest"]["sha256"], "2");
        assert_eq!(built["internalParameters"]["tools"][0]["version"], "gcc 12");
    }
}
