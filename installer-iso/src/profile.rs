//! What an image is: a declarative value, and the list of its files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::cpio::{Archive, Node};
use crate::manifest::Manifest;
use crate::process;

/// Characters that make BusyBox init start a shell for a line of its table.
const SHELL_CHARACTERS: &str = "~`!$^&*()=|\\{}[];\"'<>?";
/// Longest command line that the kernel takes.
const COMMAND_LINE_BYTES_MAX: usize = 2047;
/// What both command lines begin with: no kernel text on any console, the serial line as console where there is one,
/// the first process from the initramfs.
const COMMAND_LINE: &str =
    "console=ttynull console=ttyS0,115200 rdinit=/sbin/init quiet loglevel=1";

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The installed system.
    Runtime,
    /// The installer.
    Installer,
}

impl Kind {
    /// Name of the folder with its files, below `root`.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Kind::Runtime => "runtime",
            Kind::Installer => "installer",
        }
    }

    /// Name of its unified kernel image.
    pub(crate) fn artefact(self) -> &'static str {
        match self {
            Kind::Runtime => "TruthDBRuntime.efi",
            Kind::Installer => "TruthDBInstaller.efi",
        }
    }

    /// Applets of BusyBox that the image has, by path.
    fn applets(self) -> &'static [&'static str] {
        match self {
            Kind::Runtime => &[
                "sbin/init",
                "sbin/mount",
                "sbin/umount",
                "sbin/udhcpc",
                "sbin/ntpd",
                "sbin/ip",
            ],
            Kind::Installer => &["sbin/init", "sbin/mount", "sbin/umount"],
        }
    }

    /// Empty directories, which the mounts need.
    fn directories(self) -> &'static [&'static str] {
        match self {
            Kind::Runtime => &["proc", "sys", "run", "tmp", "data"],
            Kind::Installer => &["proc", "sys", "run", "tmp"],
        }
    }
}

/// A pinned input: a key of `os-release`, behind `TRUTHDB_`, and its value.
pub(crate) type Pin = (&'static str, String);

/// The pins that every image has.
pub(crate) fn pins_of(manifest: &Manifest) -> Result<Vec<Pin>> {
    let stub = &manifest.stub;
    Ok(vec![
        ("STUB", format!("{} {}", stub.package, stub.version)),
        ("BUSYBOX", manifest.source("busybox")?.version.clone()),
        ("E2FSPROGS", manifest.source("e2fsprogs")?.version.clone()),
    ])
}

/// The kernel's command line.
pub(crate) fn command_line(debug: bool) -> String {
    if debug {
        let loud = COMMAND_LINE.replace(" quiet loglevel=1", " loglevel=7");
        format!("{loud} truthdb.debug")
    } else {
        COMMAND_LINE.to_owned()
    }
}

/// An image before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Which one.
    pub(crate) kind: Kind,
    /// Version of the product.
    pub(crate) version: String,
    /// Kernel messages and the node's log on the serial console.
    pub(crate) debug: bool,
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// What the kernel calls itself.
    pub(crate) release: String,
    /// The pinned inputs, as `os-release` names them.
    pub(crate) pins: Vec<Pin>,
    /// Programs by their path in the image.
    pub(crate) programs: Vec<(String, PathBuf)>,
    /// Other files by their path in the image.
    pub(crate) payload: Vec<(String, PathBuf)>,
    /// The picture before Linux starts.
    pub(crate) splash: Option<PathBuf>,
}

impl Profile {
    /// The kernel's command line.
    pub(crate) fn command_line(&self) -> String {
        command_line(self.debug)
    }

    /// `os-release`, for whoever looks at the image with a tool that knows UKIs, and for the programs in it.
    pub(crate) fn os_release(&self) -> String {
        let name = match self.kind {
            Kind::Runtime => "TruthDB",
            Kind::Installer => "TruthDB Installer",
        };
        let version = &self.version;
        let mut text = format!(
            "ID=truthdb\nNAME=\"{name}\"\nPRETTY_NAME=\"{name} {version}\"\n\
             VERSION_ID={version}\nIMAGE_ID=truthdb-{}\nIMAGE_VERSION={version}\n\
             TRUTHDB_KERNEL=\"{}\"\n",
            self.kind.folder(),
            self.release
        );
        for (key, value) in &self.pins {
            text.push_str(&format!("TRUTHDB_{key}=\"{value}\"\n"));
        }
        text
    }

    /// Whether everything that it names is there and fits together.
    ///
    /// # Errors
    ///
    /// The first thing that does not, and what to do.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure!(
            self.command_line().len() <= COMMAND_LINE_BYTES_MAX,
            "the command line is longer than the kernel takes"
        );
        let all = self
            .programs
            .iter()
            .chain(&self.payload)
            .map(|(_, from)| from);
        for path in all.chain([&self.kernel]).chain(&self.splash) {
            let bytes = path.metadata().ok().filter(|found| found.is_file());
            let bytes = bytes.with_context(|| format!("{} is not there", path.display()))?;
            ensure!(bytes.len() > 0, "{} is empty", path.display());
        }
        Ok(())
    }

    /// The initramfs: `os-release`, the files below `root`, the programs, BusyBox's names, device nodes.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or a line of `/etc/inittab` that would need a shell.
    pub(crate) fn initramfs(&self, root: &Path) -> Result<Archive> {
        let mut archive = Archive::default();
        let content = self.os_release().into_bytes();
        archive.add(
            "etc/os-release",
            Node::File {
                mode: 0o644,
                content,
            },
        )?;
        for directory in self.kind.directories() {
            let mode = if *directory == "tmp" { 0o1777 } else { 0o755 };
            archive.add(directory, Node::Directory { mode })?;
        }
        for (name, minor, major, mode) in [("console", 1, 5, 0o600), ("null", 3, 1, 0o666)] {
            let device = Node::Device { mode, major, minor };
            archive.add(&format!("dev/{name}"), device)?;
        }
        add_tree(&mut archive, &root.join(self.kind.folder()), "")?;
        for (to, from) in &self.programs {
            add_file(&mut archive, to, from, 0o755)?;
        }
        for (to, from) in &self.payload {
            add_file(&mut archive, to, from, 0o644)?;
        }
        for applet in self.kind.applets() {
            let target = "/bin/busybox".to_owned();
            archive.add(applet, Node::Link { target })?;
        }
        if self.kind == Kind::Runtime {
            for (link, target) in [
                ("bin/udhcpc-event", "truthdb-node"),
                ("etc/resolv.conf", "/run/truthdb/resolv.conf"),
            ] {
                let target = target.to_owned();
                archive.add(link, Node::Link { target })?;
            }
        }
        check_inittab(&archive)?;
        Ok(archive)
    }
}

fn add_file(archive: &mut Archive, to: &str, from: &Path, mode: u32) -> Result<()> {
    let content = process::read(from)?;
    archive.add(to, Node::File { mode, content })
}

/// Adds the files of a folder; none of them is a program.
fn add_tree(archive: &mut Archive, folder: &Path, within: &str) -> Result<()> {
    let entries = std::fs::read_dir(folder);
    for entry in entries.with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
        let name = entry.file_name();
        let name = name.to_str().context("a file name is not UTF-8")?;
        let path = format!("{within}{name}");
        if entry.path().is_dir() {
            add_tree(archive, &entry.path(), &format!("{path}/"))?;
        } else {
            add_file(archive, &path, &entry.path(), 0o644)?;
        }
    }
    Ok(())
}

/// Every line of the table names a program that the image has, and needs no shell.
fn check_inittab(archive: &Archive) -> Result<()> {
    let found = archive.entries().find(|(path, _)| *path == "etc/inittab");
    let Some((_, Node::File { content, .. })) = found else {
        anyhow::bail!("the image has no /etc/inittab: init would look for shells");
    };
    let table = std::str::from_utf8(content).context("/etc/inittab is not UTF-8")?;
    for line in table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let command = line.splitn(4, ':').nth(3);
        let command = command.with_context(|| format!("/etc/inittab: {line:?} has no command"))?;
        ensure!(
            !command.contains(|c| SHELL_CHARACTERS.contains(c)),
            "/etc/inittab: {line:?} has a character that makes BusyBox init start a shell"
        );
        let program = command.split(' ').next().unwrap_or_default();
        let program = program.trim_start_matches('/');
        ensure!(
            archive.entries().any(|(path, _)| path == program),
            "/etc/inittab: {line:?} names a program that the image does not have"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("root")
    }

    /// A profile with one small file in every place.
    fn profile(kind: Kind, folder: &Path) -> Profile {
        let program = folder.join("program");
        std::fs::write(&program, "program").unwrap();
        let names: &[&str] = match kind {
            Kind::Runtime => &[
                "bin/busybox",
                "bin/truthdb",
                "bin/truthdb-node",
                "bin/truthdb-console",
                "sbin/e2fsck",
            ],
            Kind::Installer => &["bin/busybox", "bin/truthdb-installer"],
        };
        let programs = names
            .iter()
            .map(|name| ((*name).to_owned(), program.clone()));
        Profile {
            kind,
            version: "0.1.0".into(),
            debug: false,
            kernel: program.clone(),
            release: "6.12.117-truthdb".into(),
            pins: pins_of(&toml::from_str(crate::manifest::tests::ours()).unwrap()).unwrap(),
            programs: programs.collect(),
            payload: Vec::new(),
            splash: None,
        }
    }

    #[test]
    fn both_images_are_whole_and_have_no_shell() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [Kind::Runtime, Kind::Installer] {
            let archive = profile(kind, folder.path()).initramfs(&root()).unwrap();
            let paths: Vec<&str> = archive.entries().map(|(path, _)| path).collect();
            assert!(
                ["sbin/init", "dev/console", "etc/os-release"]
                    .iter()
                    .all(|path| paths.contains(path)),
                "{paths:?}"
            );
            let shells = ["sh", "ash", "bash", "getty", "login"];
            for path in paths {
                let name = path.rsplit('/').next().unwrap();
                assert!(!shells.contains(&name), "{path}");
            }
        }
    }

    /// What the installer's `--version` reads: a changed key is changed there too.
    #[test]
    fn an_image_says_what_it_is_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut profile = profile(Kind::Runtime, folder.path());
        profile.pins = vec![("STUB", "systemd-boot-efi 252".into())];
        assert_eq!(
            profile.os_release(),
            "ID=truthdb\nNAME=\"TruthDB\"\nPRETTY_NAME=\"TruthDB 0.1.0\"\nVERSION_ID=0.1.0\n\
             IMAGE_ID=truthdb-runtime\nIMAGE_VERSION=0.1.0\nTRUTHDB_KERNEL=\"6.12.117-truthdb\"\n\
             TRUTHDB_STUB=\"systemd-boot-efi 252\"\n"
        );
        let manifest: Manifest = toml::from_str(crate::manifest::tests::ours()).unwrap();
        let pins = pins_of(&manifest).unwrap();
        let keys: Vec<&str> = pins.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["STUB", "BUSYBOX", "E2FSPROGS"]);
        assert!(pins[0].1.ends_with(&manifest.stub.version));
    }

    #[test]
    fn a_line_that_needs_a_shell_or_a_program_that_is_missing_is_refused() {
        for (table, says) in [
            ("::sysinit:/sbin/mount -o mode=0755 a b\n", "start a shell"),
            ("::respawn:/bin/other\n", "does not have"),
            ("::respawn\n", "no command"),
        ] {
            let mut archive = Archive::default();
            let content = table.as_bytes().to_vec();
            archive
                .add(
                    "etc/inittab",
                    Node::File {
                        mode: 0o644,
                        content,
                    },
                )
                .unwrap();
            archive
                .add(
                    "sbin/mount",
                    Node::Link {
                        target: "/bin/busybox".into(),
                    },
                )
                .unwrap();
            let error = check_inittab(&archive).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(check_inittab(&Archive::default()).is_err());
    }

    #[test]
    fn after_an_error_of_its_file_system_nothing_is_written_to_the_data_partition() {
        let table = include_str!("../root/runtime/etc/fstab");
        let data: Vec<&str> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields[1] == "/data")
            .unwrap();
        // Also on a node whose file system was made to go on: the option goes before what the file system says.
        assert!(
            data[3]
                .split(',')
                .any(|option| option == "errors=remount-ro")
        );
    }

    #[test]
    fn only_the_debug_profile_is_loud() {
        let folder = tempfile::tempdir().unwrap();
        let mut profile = profile(Kind::Runtime, folder.path());
        assert!(profile.command_line().contains(" quiet loglevel=1"));
        profile.debug = true;
        assert!(!profile.command_line().contains("quiet"));
        assert!(profile.command_line().ends_with("truthdb.debug"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut profile = profile(Kind::Runtime, folder.path());
        profile.validate().unwrap();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        profile.splash = Some(empty);
        let error = profile.validate().unwrap_err().to_string();
        assert!(error.ends_with("empty is empty"), "{error}");
        profile.splash = Some("nowhere.bmp".into());
        assert!(
            profile
                .validate()
                .unwrap_err()
                .to_string()
                .contains("nowhere.bmp")
        );
    }
}
