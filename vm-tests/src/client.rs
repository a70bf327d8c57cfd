//! A client of an installed node, as a person has it: the program `truthdb`, an address, a token, a fingerprint.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Who asks whom.
#[derive(Debug, Clone)]
pub struct Client {
    /// The program.
    pub program: PathBuf,
    /// Port of this machine behind which the native protocol of the node is.
    pub port: u16,
    /// An access token; empty for none.
    pub token: String,
    /// The certificate's fingerprint.
    pub fingerprint: String,
}

impl Client {
    /// Runs the program; what it says.
    ///
    /// # Errors
    ///
    /// What it says when it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .arg("--json")
            .args(["--server", &format!("127.0.0.1:{}", self.port)])
            .args(["--tls-fingerprint", &self.fingerprint]);
        if !self.token.is_empty() {
            command.args(["--token", &self.token]);
        }
        let outcome = command.args(arguments).output();
        let outcome = outcome.with_context(|| format!("starting {}", self.program.display()))?;
        if !outcome.status.success() {
            bail!(
                "`truthdb {}` ended with {}: {}",
                arguments.join(" "),
                outcome.status,
                String::from_utf8_lossy(&outcome.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&outcome.stdout).into_owned())
    }

    /// Appends an event with a number.
    ///
    /// # Errors
    ///
    /// What the program says.
    pub fn append(&self, stream: &str, number: u64) -> Result<()> {
        let payload = format!("{{\"n\":{number}}}");
        self.run(&["append", stream, "counted", &payload])
            .map(|_| ())
    }

    /// The events of a stream.
    ///
    /// # Errors
    ///
    /// What the program says.
    pub fn read(&self, stream: &str) -> Result<Vec<Value>> {
        let said = self.run(&["read", stream])?;
        let events = said.lines().map(serde_json::from_str);
        events
            .collect::<Result<_, _>>()
            .with_context(|| format!("in what was read: {said}"))
    }
}
