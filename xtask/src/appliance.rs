//! Kernels, images and virtual machines: `cargo xtask kernel`, `image`, `vm`, and their steps of the suite.
//!
//! The work is in two programs of the workspace (`truthdb-image`, `truthdb-vm`), so that this one stays quick to
//! build. Here are the packages of the build host that they need, and the order of things.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail, ensure};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::install::debian_package;
use crate::process::{cargo, command, root, run, set_environment, succeeds, target_dir, tee};
use crate::summary::Count;

/// Debian packages that building takes, each with a program that it brings.
const BUILD_PACKAGES: [(&str, &str); 12] = [
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("patch", "patch"),
    ("bzip2", "bzip2"),
    ("xz-utils", "xz"),
    ("zstd", "zstd"),
    ("musl-tools", "musl-gcc"),
    ("xorriso", "xorriso"),
    ("qemu-utils", "qemu-img"),
];
/// cargo's profile of what the suite puts into images: optimised, and quick to build.
const TEST_PROFILE: &str = "fast";

/// `cargo xtask kernel`: the words are passed on.
pub(crate) fn kernel(parser: &mut lexopt::Parser) -> Result<bool> {
    let words: Vec<OsString> = parser.raw_args()?.collect();
    build_packages()?;
    image_tool("kernel", &words)?;
    Ok(true)
}

/// `cargo xtask image`: the options are passed on, but for `--boot`.
pub(crate) fn image(parser: &mut lexopt::Parser) -> Result<bool> {
    let what = match parser.next()? {
        Some(Value(what)) => what,
        Some(Long("help") | Short('h')) => {
            image_tool("help", &["--help".into()])?;
            return Ok(true);
        }
        _ => bail!("which image: iso, runtime or disk?"),
    };
    let what = what.string()?;
    ensure!(
        ["iso", "runtime", "disk"].contains(&what.as_str()),
        "there is no image {what:?}: there are iso, runtime and disk"
    );
    let mut words: Vec<OsString> = parser.raw_args()?.collect();
    signing_packages(&words)?;
    let boots = words.iter().any(|word| word == "--boot");
    words.retain(|word| word != "--boot");
    ensure!(
        !boots || what != "runtime",
        "--boot starts an iso or a disk"
    );
    build_packages()?;
    if !boots {
        image_tool(&what, &words)?;
        return Ok(true);
    }
    // A place that is known, to find the result in.
    ensure!(
        words.iter().all(|word| !is_option(word, "--out")),
        "--boot has a folder of its own: leave --out away"
    );
    let out = target_dir().join("appliance/boot");
    words.extend(["--out".into(), out.clone().into_os_string()]);
    if what == "disk" {
        words.extend(["--format".into(), "raw".into()]);
    }
    image_tool(&what, &words)?;
    machine_packages()?;
    let file = if what == "iso" {
        "truthdb-installer.iso"
    } else {
        "truthdb.raw"
    };
    run(&mut vm_tool(&[
        "boot".into(),
        out.join(file).into_os_string(),
    ])?)?;
    Ok(true)
}

/// `cargo xtask release`: the options are passed on.
pub(crate) fn release(parser: &mut lexopt::Parser) -> Result<bool> {
    let words: Vec<OsString> = parser.raw_args()?.collect();
    build_packages()?;
    signing_packages(&words)?;
    image_tool("release", &words)?;
    Ok(true)
}

/// `cargo xtask vm`: builds the images and boots them, or measures how long that takes.
pub(crate) fn vm(parser: &mut lexopt::Parser) -> Result<bool> {
    let mut only = Vec::new();
    let mut times = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("only") => only.push(parser.value()?.string()?),
            Long("times") => times = true,
            other => return Err(other.unexpected().into()),
        }
    }
    build_test_images()?;
    if times {
        machine_packages()?;
        run(&mut vm_tool(&tested("times"))?)?;
        return Ok(true);
    }
    let count = boot_tests(&only)?;
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0)
}

/// The kernels that are built ahead, until somebody waits for them.
static AHEAD: Mutex<Option<JoinHandle<Result<()>>>> = Mutex::new(None);

/// What tests of the image builder would do without by themselves; in the whole suite they must not.
pub(crate) fn tools_of_tests() -> Result<()> {
    build_packages()?;
    signing_package()?;
    debian_package("openssl", || is_there("openssl"))?;
    let stub = Path::new("/usr/lib/systemd/boot/efi/linuxx64.efi.stub");
    debian_package("systemd-boot-efi", || stub.exists())?;
    set_environment([("TRUTHDB_TOOLS", "all".into())]);
    Ok(())
}

/// Builds the kernels that the cache does not have beside the other steps of the suite, with what these leave of the
/// processors: they take a quarter of an hour. What comes of it, [`images_step`] says.
pub(crate) fn begin_kernels() -> Result<()> {
    run(cargo().args(["build", "--locked", "--quiet", "--package", "truthdb-image"]))?;
    let builder = target_dir().join("debug/truthdb-image");
    let log = target_dir().join("xtask/kernels.log");
    std::fs::create_dir_all(target_dir().join("xtask")).context("making the folder of xtask")?;
    println!("    kernels: beside the other steps, see {}", log.display());
    let file = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let build = move || {
        for kernel in ["runtime", "installer"] {
            let status = command("nice")
                .args(["-n", "19"])
                .arg(&builder)
                .args(["kernel", kernel])
                .stdin(Stdio::null())
                .stdout(file.try_clone().context("the file for output")?)
                .stderr(file.try_clone().context("the file for output")?)
                .status()
                .context("cannot start `nice`")?;
            ensure!(
                status.success(),
                "the {kernel} kernel ended with {status}, see {}",
                log.display()
            );
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().name("kernels".into());
    let thread = thread.spawn(build).context("starting a thread")?;
    *AHEAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    Ok(())
}

/// Waits for what [`begin_kernels`] has begun. Where it failed, the images build theirs, and say why they cannot.
fn finish_kernels() {
    let thread = AHEAD.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(thread) = thread else { return };
    if !thread.is_finished() {
        println!("    waiting for the kernels");
    }
    match thread.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => println!("    not built ahead: {error:#}"),
        Err(_) => println!("    not built ahead: the thread that builds kernels panicked"),
    }
}

/// The suite's step `images`: everything is built, and images are assembled twice, in different folders, with the same
/// bytes.
pub(crate) fn images_step() -> Result<Count> {
    finish_kernels();
    build_test_images()?;
    let [one, two] = [test_folder(), target_dir().join("appliance/test-again")];
    let programs = one.join("parts/programs");
    if two.exists() {
        // What a run left behind that was cut off would be taken for a part of this one.
        std::fs::remove_dir_all(&two).with_context(|| format!("emptying {}", two.display()))?;
    }
    let out = given("--out", two.clone());
    let mut words: Vec<OsString> = out.to_vec();
    words.extend(runtime_programs(&programs));
    image_tool("runtime", &words)?;
    let mut words: Vec<OsString> = out.to_vec();
    words.extend(given("--runtime", two.join("TruthDBRuntime.efi")));
    words.extend(given("--config", plain_config()));
    image_tool("disk", &words)?;
    let mut words: Vec<OsString> = out.to_vec();
    words.extend(given("--runtime", two.join("TruthDBRuntime.efi")));
    words.extend(given("--installer", programs.join("truthdb-installer")));
    image_tool("iso", &words)?;
    let mut count = Count::default();
    for name in [
        "TruthDBRuntime.efi",
        "TruthDBInstaller.efi",
        "truthdb-installer.iso",
        "truthdb.raw",
        "truthdb.vhd",
    ] {
        let same = succeeds(command("cmp").arg(one.join(name)).arg(two.join(name)));
        if same {
            count.passed += 1;
        } else {
            count.failed += 1;
            println!(
                "    {name} differs between {} and {}",
                one.display(),
                two.display()
            );
        }
    }
    // Sparse, and the largest of what is left behind.
    std::fs::remove_dir_all(&two).context("removing the second build")?;
    Ok(count)
}

/// An option that gives a file.
fn given(option: &str, path: impl Into<PathBuf>) -> [OsString; 2] {
    [OsString::from(option), path.into().into_os_string()]
}

/// The programs of the runtime, given from a folder.
fn runtime_programs(folder: &Path) -> Vec<OsString> {
    let programs = [
        ("--truthdb", "truthdb"),
        ("--node", "truthdb-node"),
        ("--console", "truthdb-console"),
    ];
    let options = programs.map(|(option, name)| given(option, folder.join(name)));
    options.into_iter().flatten().collect()
}

/// The suite's step `vm`. The step before it has built the images; alone it builds them itself.
pub(crate) fn vm_step() -> Result<Count> {
    build_test_images()?;
    boot_tests(&[])
}

/// The images that are tested, once in a run.
fn build_test_images() -> Result<()> {
    static BUILT: AtomicBool = AtomicBool::new(false);
    if BUILT.load(Ordering::Relaxed) {
        return Ok(());
    }
    build_packages()?;
    let out = [OsString::from("--out"), test_folder().into_os_string()];
    let mut words: Vec<OsString> = out.to_vec();
    words.extend(["--profile", TEST_PROFILE, "--config"].map(Into::into));
    words.push(plain_config().into_os_string());
    image_tool("disk", &words)?;
    let mut words: Vec<OsString> = out.to_vec();
    words.extend(["--profile", TEST_PROFILE, "--runtime"].map(Into::into));
    words.push(test_folder().join("TruthDBRuntime.efi").into_os_string());
    image_tool("iso", &words)?;
    BUILT.store(true, Ordering::Relaxed);
    Ok(())
}

/// Key and certificate that the distribution's firmware for tests trusts. Everybody has them.
const TEST_KEY: [&str; 2] = [
    "/usr/share/ovmf/PkKek-1-snakeoil.key",
    "/usr/share/ovmf/PkKek-1-snakeoil.pem",
];
/// Pass phrase of the key.
const TEST_KEY_PHRASE: &str = "pass:snakeoil";

/// The medium once more, from the same programs, signed with the key for tests; its path.
fn build_signed_medium() -> Result<PathBuf> {
    let folder = target_dir().join("appliance/test-signed");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    debian_package("openssl", || is_there("openssl"))?;
    let [locked, certificate] = TEST_KEY;
    let key = folder.join("test.key");
    run(command("openssl")
        .args(["rsa", "-in", locked, "-passin", TEST_KEY_PHRASE, "-out"])
        .arg(&key))?;
    // The same bytes are compressed again, which takes longest; the image builder looks whether they are the same.
    let parts = folder.join("parts");
    std::fs::create_dir_all(&parts).with_context(|| format!("making {}", parts.display()))?;
    for name in ["initramfs-runtime.zst", "initramfs-runtime.made-from"] {
        let from = test_folder().join("parts").join(name);
        std::fs::copy(&from, parts.join(name))
            .with_context(|| format!("copying {}", from.display()))?;
    }
    let programs = test_folder().join("parts/programs");
    let mut all = given("--out", folder.clone()).to_vec();
    all.extend(given("--sign-key", key));
    all.extend(given("--sign-certificate", certificate));
    signing_packages(&all)?;
    let mut words = all.clone();
    words.extend(runtime_programs(&programs));
    image_tool("runtime", &words)?;
    let mut words = all;
    words.extend(given("--runtime", folder.join("TruthDBRuntime.efi")));
    words.extend(given("--installer", programs.join("truthdb-installer")));
    image_tool("iso", &words)?;
    Ok(folder.join("truthdb-installer.iso"))
}

fn boot_tests(only: &[String]) -> Result<Count> {
    machine_packages()?;
    let mut words = tested("test");
    words.push("--signed-iso".into());
    words.push(build_signed_medium()?.into_os_string());
    words.push("--truthdb".into());
    words.push(
        test_folder()
            .join("parts/programs/truthdb")
            .into_os_string(),
    );
    for name in only {
        words.extend(["--only".into(), name.into()]);
    }
    let (status, output) = tee(&mut vm_tool(&words)?)?;
    // The program's last line counts; its lines about single tests do not look like totals.
    Ok(Count::of_step(&output, status.success()))
}

/// A command of the harness, with the images that were built.
fn tested(command: &str) -> Vec<OsString> {
    let folder = test_folder();
    let mut words = vec![OsString::from(command)];
    for (option, path) in [
        ("--disk", folder.join("truthdb.raw")),
        ("--iso", folder.join("truthdb-installer.iso")),
        ("--work", target_dir().join("appliance/vm")),
    ] {
        words.extend([OsString::from(option), path.into_os_string()]);
    }
    words
}

fn test_folder() -> PathBuf {
    target_dir().join("appliance/test")
}

fn plain_config() -> PathBuf {
    root().join("vm-tests/config/plain.toml")
}

fn image_tool(what: &str, words: &[OsString]) -> Result<()> {
    run(built_tool("truthdb-image")?.arg(what).args(words))
}

/// A program of the workspace, started where the user is: the files that are named on the command line are named from
/// there.
fn built_tool(package: &str) -> Result<std::process::Command> {
    let mut tool = cargo();
    tool.current_dir(std::env::current_dir().context("the folder one is in")?)
        .args(["run", "--locked", "--quiet", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .args(["--package", package, "--"]);
    Ok(tool)
}

/// Whether a word is this option, alone or with its value.
fn is_option(word: &OsStr, option: &str) -> bool {
    let word = word.to_string_lossy();
    word.strip_prefix(option)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

fn vm_tool(words: &[OsString]) -> Result<std::process::Command> {
    let mut tool = built_tool("truthdb-vm-tests")?;
    tool.args(words);
    Ok(tool)
}

fn build_packages() -> Result<()> {
    for (package, program) in BUILD_PACKAGES {
        debian_package(package, || is_there(program))?;
    }
    // objtool, which checks the kernel's object files.
    debian_package("libelf-dev", || Path::new("/usr/include/libelf.h").exists())?;
    debian_package("linux-libc-dev", || {
        Path::new("/usr/include/linux/version.h").exists()
    })
}

/// What signing takes, if something is to be signed.
fn signing_packages(words: &[OsString]) -> Result<()> {
    if !words.iter().any(|word| is_option(word, "--sign-key")) {
        return Ok(());
    }
    signing_package()
}

fn signing_package() -> Result<()> {
    debian_package("sbsigntool", || is_there("sbsign"))
}

fn machine_packages() -> Result<()> {
    debian_package("e2fsprogs", || Path::new("/sbin/debugfs").exists())?;
    debian_package("qemu-system-x86", || is_there("qemu-system-x86_64"))?;
    debian_package("ovmf", || {
        Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists()
    })
}

/// Whether a program is in the search path. Some cannot be asked for a version without doing something.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_in_the_search_path() {
        assert!(is_there("sh"));
        assert!(!is_there("no-such-program-anywhere"));
    }

    #[test]
    fn options_are_known_with_their_value_and_without() {
        for word in ["--out", "--out=dist"] {
            assert!(is_option(OsStr::new(word), "--out"), "{word}");
        }
        for word in ["--outer", "out", "--"] {
            assert!(!is_option(OsStr::new(word), "--out"), "{word}");
        }
    }
}
