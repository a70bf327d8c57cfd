//! Starting programs: the repository's root and target directory, and commands whose output is
//! passed on while it is also kept.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, bail};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the root of the repository")
}

/// Where cargo puts what it builds, as its configuration and environment say.
pub(crate) fn target_dir() -> &'static Path {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    TARGET.get_or_init(|| match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    })
}

/// The cargo that runs this program, so that nested builds use the same toolchain.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Variables for every program that is started from now on.
static ENVIRONMENT: Mutex<Vec<(&'static str, OsString)>> = Mutex::new(Vec::new());

/// Sets variables for every program that is started from now on.
pub(crate) fn set_environment(variables: impl IntoIterator<Item = (&'static str, OsString)>) {
    environment().extend(variables);
}

fn environment() -> MutexGuard<'static, Vec<(&'static str, OsString)>> {
    ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program to be started in the root of the repository.
///
/// What the outer cargo says about *this* package is taken away: build scripts that watch it (ring's does) would
/// otherwise run again, and everything that depends on them, whenever cargo is started from elsewhere.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let environment = environment();
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    command
}

/// The command as one would type it.
pub(crate) fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut line = name.to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&quoted(&argument.to_string_lossy()));
    }
    line
}

/// An argument as a shell takes it for one.
fn quoted(argument: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,=+@%$".contains(&byte);
    if !argument.is_empty() && argument.bytes().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Runs a command with its output shown, and fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("    $ {}", line_of(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line_of(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line_of(command));
    }
    Ok(())
}

/// Runs a command silently and returns its standard output; a failure carries what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line_of(command)))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!(
            "`{}` ended with {}: {}",
            line_of(command),
            out.status,
            said.trim()
        );
    }
    String::from_utf8(out.stdout).context("output is not UTF-8")
}

/// Whether a command can be started and succeeds; its output is not shown.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command, passes both of its outputs on line by line, and returns them together with its status.
pub(crate) fn tee(command: &mut Command) -> Result<(ExitStatus, String)> {
    println!("    $ {}", line_of(command));
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", line_of(command)))?;
    let text = Mutex::new(String::new());
    let stdout = child.stdout.take().expect("standard output is piped");
    let stderr = child.stderr.take().expect("standard error is piped");
    std::thread::scope(|scope| {
        scope.spawn(|| pass_on(stdout, &text));
        scope.spawn(|| pass_on(stderr, &text));
    });
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{}`", line_of(command)))?;
    Ok((
        status,
        text.into_inner()
            .expect("a thread that passes lines on does not panic"),
    ))
}

fn pass_on(from: impl Read, text: &Mutex<String>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
        let said = String::from_utf8_lossy(&line);
        let mut stdout = std::io::stdout().lock();
        // A closed standard output must not stop the step: its verdict still counts.
        let _ = stdout.write_all(said.as_bytes());
        text.lock()
            .expect("no thread panics while it holds the text")
            .push_str(&said);
        line.clear();
    }
}

/// Takes terminal colours out of a text, so that it can be searched.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // A control sequence ends at its first letter.
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(
            plain("\u{1b}[32;1m     Summary\u{1b}[0m 3 tests"),
            "     Summary 3 tests"
        );
    }

    #[test]
    fn a_line_can_be_typed() {
        let mut command = command("/usr/bin/truthdb");
        command.args(["read", "aircraft/N1", "5 days", "it's", r#"{"a":1}"#, ""]);
        let line = r#"truthdb read aircraft/N1 '5 days' 'it'\''s' '{"a":1}' ''"#;
        assert_eq!(line_of(&command), line);
    }

    #[test]
    fn tee_keeps_both_outputs_and_the_status() {
        let (status, text) =
            tee(command("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(text.contains("out\n") && text.contains("err\n"), "{text:?}");
    }
}
