//! What is in an artefact, as CycloneDX: exactly its own parts of others with versions, licences and the hashes of all
//! their source files, the crates that our programs are built from, and the files that were given.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::hash;
use crate::manifest::{Manifest, PinnedFile};
use crate::parts::{Contents, Library, Part};
use crate::process::{output, tool};
use crate::userland;

/// The fonts of the screens: name, version, licence, files in `installer/assets/fonts`.
const FONTS: [(&str, &str, &str, &[&str]); 2] = [
    (
        "Inter",
        "4.0-beta7",
        "OFL-1.1",
        &["Inter-Regular.otf", "Inter-SemiBold.otf"],
    ),
    (
        "DejaVu Sans Mono",
        "2.37",
        "Bitstream-Vera",
        &["DejaVuSansMono.ttf"],
    ),
];

/// The bill of materials of an artefact.
///
/// # Errors
///
/// cargo cannot say what our programs are built from.
pub(crate) fn cyclonedx(
    root: &Path,
    manifest: &Manifest,
    libraries: &Libraries,
    artefact: (&str, &str, &str),
    contents: &Contents,
) -> Result<Value> {
    let (name, version, sha256) = artefact;
    let mut components = Vec::new();
    for part in &contents.parts {
        components.extend(of_part(*part, root, manifest, libraries)?);
    }
    let packages: Vec<&str> = contents.packages.iter().copied().collect();
    components.extend(crates(root, &packages)?);
    components.extend(contents.given.iter().cloned());
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "firmware", "name": name, "version": version,
            "hashes": hashes(sha256),
        }},
        "components": once(components),
    }))
}

/// Each component once, in the order in which they came: two programs may have been given with the same crates.
fn once(components: Vec<Value>) -> Vec<Value> {
    let mut seen = std::collections::BTreeSet::new();
    let is_new = |component: &Value| seen.insert(component.to_string());
    components.into_iter().filter(is_new).collect()
}

/// Libraries of this machine that are linked into programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Libraries {
    /// Version of Rust.
    pub(crate) rust: String,
    /// The C library that Rust brings.
    pub(crate) rust_musl: Library,
    /// The C library in BusyBox and e2fsprogs.
    pub(crate) musl: Library,
}

impl Libraries {
    /// Asks the compilers.
    ///
    /// # Errors
    ///
    /// One is missing, or has not the library.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let ask = |argument: &str, value: &str| {
            let mut rustc = tool("rustc");
            output(rustc.current_dir(root).args([argument, value]))
        };
        let version = ask("--version", "--verbose")?;
        let release = version
            .lines()
            .find_map(|line| line.strip_prefix("release: "));
        let folder = PathBuf::from(ask("--print", "sysroot")?.trim())
            .join("lib/rustlib/x86_64-unknown-linux-musl/lib/self-contained");
        Ok(Self {
            rust: release.context("rustc says no release")?.to_owned(),
            rust_musl: Library::musl(&folder.join("libc.a"))
                .context("the musl of Rust: `rustup target add x86_64-unknown-linux-musl`")?,
            musl: Library::musl(Path::new(userland::MUSL))
                .context("the musl of Debian: `apt-get install musl-tools` brings it")?,
        })
    }
}

/// The components of a part.
fn of_part(
    part: Part,
    root: &Path,
    manifest: &Manifest,
    libraries: &Libraries,
) -> Result<Vec<Value>> {
    let (kernel, stub) = (&manifest.kernel, &manifest.stub);
    let source = |name: &str| {
        let source = manifest.source(name)?;
        let files: Vec<Value> = source.files.iter().map(pinned).collect();
        let about = (
            "application",
            name,
            source.version.as_str(),
            source.license.as_str(),
        );
        Ok(vec![component(about, files)])
    };
    Ok(match part {
        Part::Linux => {
            let licence = "GPL-2.0-only WITH Linux-syscall-note";
            let about = (
                "operating-system",
                &*kernel.package,
                &*kernel.version,
                licence,
            );
            vec![component(about, vec![file(&kernel.file, &kernel.sha256)])]
        }
        Part::Stub => {
            let licence = "LGPL-2.1-or-later";
            let about = ("firmware", &*stub.package, &*stub.version, licence);
            vec![component(about, vec![file(&stub.file, &stub.sha256)])]
        }
        Part::BusyBox => return source("busybox"),
        Part::E2fsprogs => return source("e2fsprogs"),
        Part::Musl => vec![musl(&libraries.musl, "in BusyBox and e2fsprogs")],
        Part::RustStd => {
            let about = ("library", "rust-std", &*libraries.rust, "MIT OR Apache-2.0");
            vec![
                component(about, Vec::new()),
                musl(&libraries.rust_musl, "in our programs, as Rust brings it"),
            ]
        }
        Part::Fonts => FONTS
            .iter()
            .map(|(name, version, licence, names)| {
                let hashed = |name: &&str| {
                    let path = root.join("installer/assets/fonts").join(name);
                    Ok(file(name, &hash::of_file(&path)?))
                };
                let files = names.iter().map(hashed).collect::<Result<_>>()?;
                Ok(component(("data", name, version, licence), files))
            })
            .collect::<Result<_>>()?,
    })
}

fn musl(library: &Library, description: &str) -> Value {
    let files = vec![file("libc.a", &library.sha256)];
    let version = library.version.as_deref().unwrap_or_default();
    let mut musl = component(("library", "musl", version, "MIT"), files);
    musl["description"] = description.into();
    musl
}

fn pinned(pin: &PinnedFile) -> Value {
    file(&pin.name, &pin.sha256)
}

fn file(name: &str, sha256: &str) -> Value {
    json!({ "type": "file", "name": name, "hashes": hashes(sha256) })
}

fn hashes(sha256: &str) -> Value {
    json!([{ "alg": "SHA-256", "content": sha256 }])
}

/// A component: its kind, name, version and licence, and the files that it came in.
fn component(about: (&str, &str, &str, &str), files: Vec<Value>) -> Value {
    let (kind, name, version, license) = about;
    let mut component = json!({
        "type": kind, "name": name,
        "licenses": [{ "expression": license }],
    });
    if !version.is_empty() {
        component["version"] = version.into();
    }
    if !files.is_empty() {
        component["components"] = files.into();
    }
    component
}

/// The crates that packages are built from, as components.
///
/// # Errors
///
/// cargo cannot say.
pub(crate) fn crates(root: &Path, packages: &[&str]) -> Result<Vec<Value>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let listed = output(
        tool(cargo)
            .current_dir(root)
            .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
            .args([
                "--target",
                "x86_64-unknown-linux-musl",
                "--format",
                "{p}\t{l}",
            ])
            .args(packages.iter().flat_map(|package| ["--package", package])),
    )
    .context("asking cargo for the crates")?;
    Ok(parse(&listed))
}

/// The list of `cargo tree`, sorted and without repetitions.
fn parse(listed: &str) -> Vec<Value> {
    let mut lines: Vec<(&str, &str, &str)> = listed
        .lines()
        .filter_map(|line| {
            let (package, rest) = line.split_once('\t')?;
            let license = rest.trim_end_matches(" (*)");
            let mut words = package.split(' ');
            Some((
                words.next()?,
                words.next()?.trim_start_matches('v'),
                license,
            ))
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    let component = |(name, version, license): (&str, &str, &str)| {
        json!({
            "type": "library", "name": name, "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"),
            "licenses": [{ "expression": license.replace('/', " OR ") }],
        })
    };
    lines.into_iter().map(component).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    fn manifest() -> Manifest {
        toml::from_str(crate::manifest::tests::ours()).unwrap()
    }

    /// Libraries as of a machine with everything installed.
    pub(crate) fn libraries() -> Libraries {
        let library = |version: &str| Library {
            version: Some(version.into()),
            sha256: hash::of_bytes(version.as_bytes()),
        };
        Libraries {
            rust: "1.95.0".into(),
            rust_musl: library("1.2.5"),
            musl: library("1.2.3"),
        }
    }

    fn bill(contents: &Contents) -> Value {
        let artefact = ("artefact", "0.1.0", "ab");
        cyclonedx(root(), &manifest(), &libraries(), artefact, contents).unwrap()
    }

    /// Names of the components, without those of crates of others.
    fn names(bill: &Value) -> Vec<&str> {
        let components = bill["components"].as_array().unwrap().iter();
        components
            .filter(|one| {
                let name = one["name"].as_str().unwrap();
                one["purl"].is_null() || name.starts_with("truthdb")
            })
            .map(|one| one["name"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn an_artefact_names_its_own_parts_and_no_others() {
        let kernel = bill(&Contents::of(&[Part::Linux]));
        assert_eq!(names(&kernel), ["linux-source-6.12"]);
        let node = bill(&Contents::program("truthdb-node"));
        assert_eq!(names(&node), ["rust-std", "musl", "truthdb-node"]);
        let installer = bill(&Contents::program("truthdb-installer"));
        assert_eq!(
            names(&installer),
            [
                "rust-std",
                "musl",
                "Inter",
                "DejaVu Sans Mono",
                "truthdb-installer"
            ]
        );
        let crates = installer["components"].as_array().unwrap();
        assert!(crates.iter().any(|one| one["name"] == "tiny-skia"));
        assert!(!crates.iter().any(|one| one["name"] == "wasmtime"));
    }

    #[test]
    fn every_source_file_is_there_with_its_hash() {
        let parts = [Part::Linux, Part::Stub, Part::BusyBox, Part::E2fsprogs];
        let bill = bill(&Contents::of(&parts));
        let files: Vec<&Value> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|one| one["components"].as_array().unwrap())
            .collect();
        let manifest = manifest();
        let sources = manifest.source.iter().flat_map(|source| &source.files);
        let mut pins: Vec<(&str, &str)> = vec![
            (&manifest.kernel.file, &manifest.kernel.sha256),
            (&manifest.stub.file, &manifest.stub.sha256),
        ];
        pins.extend(sources.map(|file| (&*file.name, &*file.sha256)));
        assert_eq!(files.len(), pins.len());
        for (name, sha256) in pins {
            let found = files.iter().find(|file| file["name"] == name);
            assert_eq!(found.unwrap()["hashes"][0]["content"], sha256, "{name}");
        }
    }

    #[test]
    fn a_given_program_takes_the_place_of_the_crates_of_this_tree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any");
        std::fs::write(&path, "program").unwrap();
        let given = Contents::given("truthdb", &path).unwrap();
        let bill = bill(&given.clone().and(&given));
        assert_eq!(names(&bill), ["truthdb"]);
        let only = &bill["components"][0];
        assert_eq!(only["hashes"][0]["content"], hash::of_bytes(b"program"));
    }

    #[test]
    fn crates_are_listed_once_and_in_order() {
        let listed = "truthdb v0.1.0 (/somewhere)\tApache-2.0\nzstd v0.13.5\tMIT\n\
                      anyhow v1.0.104\tMIT/Apache-2.0\nzstd v0.13.5\tMIT (*)\n\n";
        let crates = parse(listed);
        let names: Vec<&str> = crates.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["anyhow", "truthdb", "zstd"]);
        assert_eq!(crates[0]["purl"], "pkg:cargo/anyhow@1.0.104");
        assert_eq!(crates[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
    }
}
