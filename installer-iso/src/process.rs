//! Starting the tools of the build host, with messages that say what to do when one is missing or fails.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Lines of a failed command's output that are shown.
const TAIL_LINES: usize = 30;
/// Off a terminal, progress is told each so many units.
const UNITS_PER_LINE: usize = 250;

/// Tools and the Debian package that each comes in.
const PACKAGES: [(&str, &str); 26] = [
    ("apt-get", "apt"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("cp", "coreutils"),
    ("date", "coreutils"),
    ("dpkg-deb", "dpkg"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("git", "git"),
    ("gzip", "gzip"),
    ("ld", "binutils"),
    ("make", "make"),
    ("musl-gcc", "musl-tools"),
    ("nice", "coreutils"),
    ("openssl", "openssl"),
    ("patch", "patch"),
    ("qemu-img", "qemu-utils"),
    ("sbsign", "sbsigntool"),
    ("sh", "dash"),
    ("sha256sum", "coreutils"),
    ("strip", "binutils"),
    ("tar", "tar"),
    ("xorriso", "xorriso"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("bzip2", "bzip2"),
];
/// Tools of Rust, which no package brings in the version that is wanted.
const OF_RUST: [&str; 2] = ["cargo", "rustc"];

/// A tool, with nothing of the user's locale and time zone in its environment.
pub(crate) fn tool(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    command.env("LC_ALL", "C").env("TZ", "UTC");
    command
}

/// A tool of which nothing in the environment changes what it makes: `make` takes any variable for one of its own, and
/// compilers have theirs.
pub(crate) fn isolated_tool(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = tool(name);
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    let kept = ["PATH", "HOME", "TMPDIR"];
    command.envs(
        kept.iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?))),
    );
    command
}

/// Runs a command quietly and returns its standard output.
///
/// # Errors
///
/// A missing tool, with the package that brings it; a failure, with the end of what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let out = command.stdin(Stdio::null()).output();
    let out = out.map_err(|error| cannot_start(command, error))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("`{line}` ended with {}:\n{}", out.status, explain(&said));
    }
    String::from_utf8(out.stdout).with_context(|| format!("what `{line}` said is not UTF-8"))
}

/// Runs a command that says a line for each unit of work; `is_unit` tells which lines count. Shows the count, and
/// keeps everything that was said in `log`.
///
/// # Errors
///
/// As for [`output`].
pub(crate) fn watched(
    command: &mut Command,
    log: &Path,
    what: &str,
    is_unit: fn(&str) -> bool,
) -> Result<()> {
    let line = line_of(command);
    let mut file =
        std::fs::File::create(log).with_context(|| format!("making the log {}", log.display()))?;
    let errors = file.try_clone().context("sharing the log")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn();
    let mut child = child.map_err(|error| cannot_start(command, error))?;
    let stdout = child.stdout.take().context("standard output is piped")?;
    let mut units = 0;
    let terminal = std::io::stdout().is_terminal();
    for said in BufReader::new(stdout).lines() {
        let said = said.with_context(|| format!("reading from `{line}`"))?;
        writeln!(file, "{said}").with_context(|| disk_advice(log))?;
        if is_unit(&said) {
            units += 1;
            if terminal {
                print!("\r      {what}: {units} files");
                let _ = std::io::stdout().flush();
            } else if units % UNITS_PER_LINE == 0 {
                println!("      {what}: {units} files");
            }
        }
    }
    if terminal && units > 0 {
        println!();
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{line}`"))?;
    if !status.success() {
        let said = std::fs::read(log).unwrap_or_default();
        bail!(
            "`{line}` ended with {status}; everything it said is in {}:\n{}",
            log.display(),
            explain(&String::from_utf8_lossy(&said))
        );
    }
    Ok(())
}

/// The command as one would type it.
fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn cannot_start(command: &Command, error: std::io::Error) -> anyhow::Error {
    if error.kind() != std::io::ErrorKind::NotFound {
        return anyhow::Error::new(error).context(format!("cannot start `{}`", line_of(command)));
    }
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    if OF_RUST.contains(&&*name) {
        return anyhow::anyhow!(
            "{name} is not installed: rustup brings it, in the version that rust-toolchain.toml names"
        );
    }
    match PACKAGES.iter().find(|(tool, _)| *tool == name) {
        Some((_, package)) => anyhow::anyhow!(
            "{name} is not installed: `apt-get install {package}` brings it \
             (`cargo xtask image` installs what is missing by itself)"
        ),
        None => anyhow::anyhow!("{} is not there", program.display()),
    }
}

/// The end of what a command said, and advice where a cause can be told.
fn explain(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let mut text = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    // The kernel's words, and apt's.
    if said.contains("No space left on device") || said.contains("have enough free space") {
        text.push_str(&format!("\n{DISK_IS_FULL}: {DISK_ADVICE}"));
    }
    text
}

/// Whether a command failed because the disk is full; its error says so, with advice.
pub(crate) fn is_disk_full(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains(DISK_IS_FULL)
}

const DISK_IS_FULL: &str = "The disk is full";

const DISK_ADVICE: &str = "a kernel build needs about 4 GiB for its time; make room, or set \
    XDG_CACHE_HOME and CARGO_TARGET_DIR to folders on a larger disk";

/// What to say when something cannot be written.
pub(crate) fn disk_advice(path: &Path) -> String {
    format!(
        "writing {} (if the disk is full: {DISK_ADVICE})",
        path.display()
    )
}

/// Writes a file, with advice if that fails. It has its name when it is whole.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    whole(path, |part| {
        std::fs::write(part, bytes).with_context(|| disk_advice(path))
    })
}

/// Has a file made as `NAME.part`, and gives it its name when it is whole: after a full disk or Ctrl-C nothing stands
/// under the name that is not what it says, and what stood there before still does.
///
/// # Errors
///
/// Those of `make`, which leaves nothing behind then, or of the file system.
pub(crate) fn whole(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| disk_advice(parent))?;
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    // A tool may take what an earlier try left for something to go on with.
    remove_if_there(&part)?;
    let outcome = make(&part).and_then(|()| give_name(&part, path));
    if outcome.is_err() {
        // Room, for whoever tries again on a full disk; what went wrong is said in any case.
        let _ = std::fs::remove_file(&part);
    }
    outcome
}

/// Renames a file or folder.
///
/// # Errors
///
/// What the file system says.
#[expect(
    clippy::disallowed_methods,
    reason = "what is lost in a power failure is made again; the database's rename is for data"
)]
pub(crate) fn give_name(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("giving {} its name", to.display()))
}

/// Removes a file, if it is there.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Reads a file.
///
/// # Errors
///
/// What the file system says, with the path.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Whether a test has what it needs of the machine. Where it does not it is left out, which counts as passed;
    /// whoever has installed everything says so by `TRUTHDB_TOOLS=all`, and then it fails.
    pub(crate) fn has(what: &str, is_there: bool, brought_by: &str) -> bool {
        if !is_there {
            let text = format!("{what} is not installed: `apt-get install {brought_by}` brings it");
            let all = std::env::var_os("TRUTHDB_TOOLS").is_some_and(|value| value == "all");
            assert!(
                !all,
                "TRUTHDB_TOOLS says that all tools are there, and {text}"
            );
            eprintln!("skipped: {text}");
        }
        is_there
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/image");
        let names = || -> Vec<_> {
            let entries = std::fs::read_dir(folder.path().join("a")).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        write(&path, b"before").unwrap();
        let failed = whole(&path, |part| {
            std::fs::write(part, "ha").unwrap();
            bail!("the disk is full")
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        assert_eq!(read(&path).unwrap(), b"before");
        assert_eq!(names(), ["image"], "no part is left");
        // What a try left that was interrupted is no beginning for the next.
        std::fs::write(folder.path().join("a/image.part"), "ha").unwrap();
        let made = whole(&path, |part| {
            assert!(!part.exists());
            assert_eq!(read(&path).unwrap(), b"before");
            write(part, b"after")
        });
        made.unwrap();
        assert_eq!(read(&path).unwrap(), b"after");
        assert_eq!(names(), ["image"]);
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let mut command = Command::new("xorriso");
        let error = cannot_start(command.arg("-version"), std::io::ErrorKind::NotFound.into());
        assert!(
            error.to_string().contains("apt-get install xorriso"),
            "{error}"
        );
    }

    #[test]
    fn every_tool_that_is_started_has_its_advice() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut names = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            for (_, rest) in text
                .match_indices("tool(\"")
                .map(|(at, _)| text.split_at(at + 6))
            {
                let name = rest.split('"').next().unwrap();
                // The script of a source package that was unpacked before.
                if name == "../configure" {
                    continue;
                }
                names += 1;
                let error = cannot_start(&Command::new(name), std::io::ErrorKind::NotFound.into());
                assert!(error.to_string().contains("brings it"), "{name}: {error}");
            }
        }
        assert!(names > 20, "{names}");
        for named_elsewhere in [
            "cargo",
            "/usr/bin/cargo",
            "rustc",
            "gzip",
            "ld",
            "xz",
            "bzip2",
        ] {
            let error = cannot_start(
                &Command::new(named_elsewhere),
                std::io::ErrorKind::NotFound.into(),
            );
            assert!(error.to_string().contains("brings it"), "{error}");
        }
    }

    #[test]
    fn a_full_disk_gets_advice() {
        let text = explain("cc1: fatal error: x.o: No space left on device\nmake: *** Error 1\n");
        assert!(text.contains("The disk is full: a kernel build"), "{text}");
        assert!(!explain("make: *** Error 1").contains("disk"));
    }

    #[test]
    fn a_failure_carries_what_was_said() {
        let error = output(tool("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("broken") && text.contains('3'), "{text}");
    }

    #[test]
    fn units_are_counted_and_everything_is_logged() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let is_unit = |line: &str| line.contains("CC");
        watched(
            tool("sh").args(["-c", "echo '  CC a.o'; echo warning >&2; exit 0"]),
            &log,
            "kernel",
            is_unit,
        )
        .unwrap();
        let said = std::fs::read_to_string(log).unwrap();
        assert!(
            said.contains("CC a.o") && said.contains("warning"),
            "{said}"
        );
    }
}
