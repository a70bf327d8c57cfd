//! The programs of others in an image, built from Debian's source packages as static programs with musl: BusyBox
//! without a shell, and e2fsprogs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::cache::{self, Cache, Entry};
use crate::fetch;
use crate::hash::{self, Inputs};
use crate::kconfig::{Demands, demands, gate, resolved};
use crate::manifest::{Manifest, SourcePackage};
use crate::process::{self, isolated_tool, output, tool, watched};

/// Counts up when this file builds in another way.
const RECIPE: &str = "2";
/// Keeps the time of the build out of BusyBox: its configuration program writes it down for the banner.
const NO_TIMESTAMP: (&str, &str) = ("KCONFIG_NOTIMESTAMP", "1");
/// musl's compiler, and behind its own headers those of the kernel, which musl does not bring.
const COMPILER: &str = "musl-gcc -idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu";
/// musl's library, which is linked into both, where Debian's package `musl-dev` has it.
pub(crate) const MUSL: &str = "/usr/lib/x86_64-linux-musl/libc.a";
/// Names the version of the kernel's headers, which package `linux-libc-dev` brings.
const KERNEL_HEADERS: &str = "/usr/include/linux/version.h";
/// Programs of e2fsprogs, and where its build leaves them.
const E2FSPROGS: [(&str, &str, &str); 3] = [
    ("e2fsck", "e2fsck", "e2fsck"),
    ("misc", "mke2fs", "mke2fs"),
    ("debugfs", "debugfs", "debugfs"),
];
/// Their names.
const E2FSPROGS_NAMES: [&str; 3] = [E2FSPROGS[0].2, E2FSPROGS[1].2, E2FSPROGS[2].2];

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Userland {
    /// The folder with `busybox`.
    pub(crate) busybox: Entry,
    /// The folder with `mke2fs`, `e2fsck` and `debugfs`.
    pub(crate) e2fsprogs: Entry,
}

/// What one of them is built from.
struct Recipe<'a> {
    source: &'a SourcePackage,
    /// The configuration in `installer-iso/userland`.
    config: String,
    /// What comes of it.
    programs: &'static [&'static str],
}

impl<'a> Recipe<'a> {
    fn read(
        root: &Path,
        manifest: &'a Manifest,
        (name, config): (&str, &str),
        programs: &'static [&'static str],
    ) -> Result<Self> {
        let path = root.join("installer-iso/userland").join(config);
        let config = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let source = manifest.source(name)?;
        Ok(Self {
            source,
            config,
            programs,
        })
    }

    /// From the cache, or made.
    fn build(&self, cache: &Cache, make: fn(&Path, &str, &Path) -> Result<()>) -> Result<Entry> {
        let inputs = inputs(self.source, &self.config)?;
        let check = |folder: &Path| cache::check_sums(folder, self.programs);
        cache.entry(&self.source.name, &inputs, check, |folder| {
            let source = unpack(cache, self.source, folder)?;
            make(&source, &self.config, folder)?;
            done(folder)?;
            cache::note_sums(folder, self.programs)
        })
    }
}

/// The recipes of BusyBox and e2fsprogs.
fn recipes<'a>(root: &Path, manifest: &'a Manifest) -> Result<[Recipe<'a>; 2]> {
    let busybox = ("busybox", "busybox.config");
    let e2fsprogs = ("e2fsprogs", "e2fsprogs.configure");
    Ok([
        Recipe::read(root, manifest, busybox, &["busybox"])?,
        Recipe::read(root, manifest, e2fsprogs, &E2FSPROGS_NAMES)?,
    ])
}

/// The folder of one of them in the cache, if it is there and whole.
///
/// # Errors
///
/// A missing compiler or configuration.
pub(crate) fn cached(
    root: &Path,
    cache: &Cache,
    manifest: &Manifest,
    name: &str,
) -> Result<Option<PathBuf>> {
    let recipes = recipes(root, manifest)?;
    let recipe = recipes.iter().find(|recipe| recipe.source.name == name);
    let recipe = recipe.with_context(|| format!("there is no recipe for {name}"))?;
    let inputs = inputs(recipe.source, &recipe.config)?;
    Ok(cache.find(name, &inputs, |folder| {
        cache::check_sums(folder, recipe.programs)
    }))
}

/// Both, from the cache or built.
///
/// # Errors
///
/// A missing compiler, a file with a wrong hash, a lost option, a failed build.
pub(crate) fn build(root: &Path, cache: &Cache, manifest: &Manifest) -> Result<Userland> {
    let [busybox, e2fsprogs] = recipes(root, manifest)?;
    Ok(Userland {
        busybox: busybox.build(cache, make_busybox)?,
        e2fsprogs: e2fsprogs.build(cache, make_e2fsprogs)?,
    })
}

fn inputs(source: &SourcePackage, config: &str) -> Result<Inputs> {
    let compiler =
        output(tool("musl-gcc").arg("--version"))? + &output(tool("ld").arg("--version"))?;
    let headers = hash::of_file(Path::new(KERNEL_HEADERS))?;
    // Not by asking the compiler: it names the library of the gcc that it is a wrapper of.
    let library = hash::of_file(Path::new(MUSL))?;
    let files = source.files.iter();
    Ok(files.fold(
        Inputs::default()
            .named("recipe", RECIPE)
            .content("config", config)
            .named("compiler", &compiler)
            .named("libc", &library)
            .named("headers", &headers),
        |inputs, file| inputs.named(&file.name, &file.sha256),
    ))
}

/// Upstream's archive with Debian's patches applied, in the folder.
fn unpack(cache: &Cache, package: &SourcePackage, folder: &Path) -> Result<PathBuf> {
    let files = fetch::source(cache, package)?;
    println!("      unpacking {} {}", package.name, package.version);
    let source = folder.join("source");
    for (file, strip, into) in [
        (&files[0], "--strip-components=1", source.clone()),
        (&files[1], "--strip-components=0", folder.join("packaging")),
    ] {
        std::fs::create_dir_all(&into).with_context(|| process::disk_advice(&into))?;
        output(
            tool("tar")
                .args([strip, "-xf"])
                .arg(file)
                .arg("-C")
                .arg(&into),
        )?;
    }
    let patches = folder.join("packaging/debian/patches");
    let series = std::fs::read_to_string(patches.join("series"))
        .with_context(|| format!("reading the list of patches of {}", package.name))?;
    for patch in series
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let arguments = ["--silent", "-p1", "-i"];
        output(
            tool("patch")
                .args(arguments)
                .arg(patches.join(patch))
                .current_dir(&source),
        )
        .with_context(|| format!("applying {patch} to {}", package.name))?;
    }
    Ok(source)
}

fn make_busybox(source: &Path, config: &str, folder: &Path) -> Result<()> {
    let wanted = demands(&[("installer-iso/userland/busybox.config", config)])?;
    // Answers for `allnoconfig`, which takes choices from here and leaves everything else off.
    process::write(&source.join("allno.config"), config.as_bytes())?;
    let configure = |target: &str| {
        let mut make = isolated_tool("make");
        make.args(["-s", target])
            .current_dir(source)
            .env(NO_TIMESTAMP.0, NO_TIMESTAMP.1);
        make
    };
    output(&mut configure("allnoconfig"))?;
    let path = source.join(".config");
    let nothing = String::from_utf8(process::read(&path)?)?;
    process::write(&path, merged(&nothing, &wanted).as_bytes())?;
    // New questions are answered with their defaults: an empty line each.
    let answers = folder.join("answers");
    process::write(&answers, "\n".repeat(2000).as_bytes())?;
    let stdin = std::fs::File::open(&answers).context("opening the answers")?;
    let status = configure("oldconfig")
        .stdin(stdin)
        .stdout(std::process::Stdio::null())
        .status()
        .context("configuring BusyBox")?;
    ensure!(status.success(), "configuring BusyBox ended with {status}");
    gate(&wanted, &String::from_utf8(process::read(&path)?)?)?;
    let mut make = make(source);
    make.arg("busybox")
        .arg(format!("CC={COMPILER}"))
        .arg("HOSTCC=gcc")
        .env(NO_TIMESTAMP.0, NO_TIMESTAMP.1);
    build_and_strip(
        &mut make,
        folder,
        "BusyBox",
        &[(source.join("busybox"), "busybox")],
    )?;
    let program = process::read(&folder.join("busybox"))?;
    ensure!(
        !has_time_of_build(&program),
        "BusyBox has the time of its build in it: another build of the same sources would differ"
    );
    Ok(())
}

/// Whether BusyBox's banner has a time behind its version: `BusyBox v1.35.0 (2026-11-25 20:16:41 UTC)`.
fn has_time_of_build(program: &[u8]) -> bool {
    const BANNER: &[u8] = b"BusyBox v";
    let mut banners = program
        .windows(BANNER.len())
        .enumerate()
        .filter(|(_, window)| *window == BANNER)
        .map(|(at, _)| &program[at..])
        .map(|rest| rest.split(|byte| *byte == 0).next().unwrap_or(rest));
    banners.any(|banner| banner.windows(4).any(|window| window == b" UTC"))
}

/// A configuration with the demands in it. Unlike the kernel's, this configuration program wants each symbol once, and
/// a choice left as it stands: a demand that is met already moves no line.
fn merged(nothing: &str, wanted: &Demands) -> String {
    let before = resolved(nothing);
    let changed: Demands = wanted
        .iter()
        .filter(|(symbol, value)| before.get(symbol.as_str()).copied() != value.as_deref())
        .map(|(symbol, value)| (symbol.clone(), value.clone()))
        .collect();
    let is_kept = |line: &&str| {
        let symbol = line.trim_start_matches("# ").strip_prefix("CONFIG_");
        let symbol = symbol.and_then(|rest| rest.split(['=', ' ']).next());
        symbol.is_none_or(|symbol| !changed.contains_key(symbol))
    };
    let mut text: String = nothing
        .lines()
        .filter(is_kept)
        .map(|line| format!("{line}\n"))
        .collect();
    for (symbol, value) in &changed {
        match value {
            Some(value) => text.push_str(&format!("CONFIG_{symbol}={value}\n")),
            None => text.push_str(&format!("# CONFIG_{symbol} is not set\n")),
        }
    }
    text
}

fn make_e2fsprogs(source: &Path, arguments: &str, folder: &Path) -> Result<()> {
    let build = source.join("build");
    std::fs::create_dir_all(&build).with_context(|| process::disk_advice(&build))?;
    let arguments = arguments.lines().filter(|line| !line.starts_with('#'));
    println!("      configuring e2fsprogs");
    output(
        isolated_tool("../configure")
            .args(arguments)
            .args([
                format!("CC={COMPILER}"),
                "CFLAGS=-Os -g0 -fno-strict-aliasing".into(),
                "LDFLAGS=-static".into(),
                "BUILD_CC=gcc".into(),
            ])
            .current_dir(&build),
    )?;
    let mut libraries = make(&build);
    watched(
        libraries.arg("libs"),
        &folder.join("libs.log"),
        "e2fsprogs",
        is_unit,
    )?;
    for (within, target, name) in E2FSPROGS {
        let within = build.join(within);
        let mut program = make(&within);
        let built = [(within.join(target), name)];
        build_and_strip(program.arg(target), folder, name, &built)?;
    }
    Ok(())
}

fn make(folder: &Path) -> Command {
    let mut make = isolated_tool("make");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    make.arg(format!("-j{jobs}")).current_dir(folder);
    make
}

fn build_and_strip(
    make: &mut Command,
    folder: &Path,
    what: &str,
    programs: &[(PathBuf, &str)],
) -> Result<()> {
    watched(make, &folder.join(format!("{what}.log")), what, is_unit)?;
    for (built, name) in programs {
        strip(built, &folder.join(name))?;
    }
    Ok(())
}

fn is_unit(line: &str) -> bool {
    line.trim_start().starts_with("CC ")
}

/// Removes what is not source code any more.
fn done(folder: &Path) -> Result<()> {
    for left in ["source", "packaging"] {
        std::fs::remove_dir_all(folder.join(left))
            .with_context(|| format!("removing {left} of a build"))?;
    }
    Ok(())
}

/// A program without symbols and debug information, which would carry paths of the build host.
///
/// # Errors
///
/// A program that is not static, or cannot be read.
pub(crate) fn strip(program: &Path, to: &Path) -> Result<()> {
    output(
        tool("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(to)
            .arg(program),
    )?;
    check_static(to, program)
}

/// Refuses a program that no image could run; `named` is what it is called in the message.
///
/// # Errors
///
/// It asks for a dynamic loader, or is no program of the right kind.
pub(crate) fn check_static(program: &Path, named: &Path) -> Result<()> {
    let elf = process::read(program)?;
    ensure!(
        !needs_interpreter(&elf).with_context(|| format!("in {}", named.display()))?,
        "{} is not static: it asks for a dynamic loader, which no image has",
        named.display()
    );
    Ok(())
}

/// Whether an ELF file asks for a dynamic loader.
fn needs_interpreter(elf: &[u8]) -> Result<bool> {
    const PROGRAM_INTERPRETER: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*elf.get(at..)?.first_chunk()?));
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "it is not a 64-bit little-endian ELF file"
    );
    let headers = || Some((u64_at(32)?, usize::from(u16_at(54)?), u16_at(56)?));
    let (offset, entry_bytes, count) = headers().context("the ELF file is cut short")?;
    let offset = usize::try_from(offset).context("the ELF file is too large")?;
    let mut kinds = (0..usize::from(count)).map(|index| {
        let header = elf.get(offset + index * entry_bytes..)?;
        Some(u32::from_le_bytes(*header.first_chunk()?))
    });
    Ok(kinds.any(|kind| kind == Some(PROGRAM_INTERPRETER)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_banner_with_a_time_is_found() {
        let with = b"\x7fELF\0BusyBox v1.35.0 (2026-11-25 20:16:41 UTC)\0more";
        assert!(has_time_of_build(with));
        let without = b"\x7fELF\0BusyBox v1.35.0 ()\0at 12:00 UTC\0";
        assert!(!has_time_of_build(without));
    }

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let mut elf = vec![0u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        assert!(!needs_interpreter(&elf).unwrap());
        elf[64] = 3;
        assert!(needs_interpreter(&elf).unwrap());
        assert!(needs_interpreter(b"#!/bin/sh").is_err());
    }

    #[test]
    fn a_demand_that_is_met_moves_no_line_and_each_symbol_is_there_once() {
        let nothing = "# CONFIG_INIT is not set\nCONFIG_SH_IS_NONE=y\n# CONFIG_ASH is not set\n";
        let fragment = "CONFIG_INIT=y\nCONFIG_SH_IS_NONE=y\n# CONFIG_ASH is not set\n";
        let wanted = demands(&[("busybox.config", fragment)]).unwrap();
        let text = merged(nothing, &wanted);
        assert_eq!(
            text,
            "CONFIG_SH_IS_NONE=y\n# CONFIG_ASH is not set\nCONFIG_INIT=y\n"
        );
    }

    #[test]
    fn busybox_brings_no_shell_and_nothing_that_needs_one() {
        let config = include_str!("../userland/busybox.config");
        let wanted = demands(&[("busybox.config", config)]).unwrap();
        for symbol in ["ASH", "HUSH", "GETTY", "TELNETD", "FEATURE_SH_STANDALONE"] {
            assert_eq!(wanted.get(symbol), Some(&None), "{symbol}");
        }
        assert_eq!(wanted["SH_IS_NONE"].as_deref(), Some("y"));
    }
}
