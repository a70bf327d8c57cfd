//! QEMU's control protocol: one line of JSON each way over a socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// An answer that takes longer is none.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// A connection to a running QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and says hello.
    ///
    /// # Errors
    ///
    /// No QEMU listens there.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(socket).context("connecting to QEMU's control socket")?;
        stream
            .set_read_timeout(Some(ANSWER_WAIT))
            .context("setting a timeout")?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
        };
        qmp.read().context("waiting for QEMU's greeting")?;
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its answer. Events in between are passed over.
    ///
    /// # Errors
    ///
    /// What QEMU says, or that it is gone.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("sending {command} to QEMU"))?;
        loop {
            let mut answer = self
                .read()
                .with_context(|| format!("waiting for {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"]);
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self
            .stream
            .read_line(&mut line)
            .context("reading from QEMU")?
            == 0
        {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU says {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn answers_are_found_among_events_and_refusals_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let qemu = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut stream = stream;
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            for answer in [
                "{\"return\": {}}\n",
                "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"running\"}}\n",
                "{\"error\": {\"desc\": \"no screen\"}}\n",
            ] {
                lines.read_line(&mut String::new()).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut qmp = Qmp::connect(&socket).unwrap();
        assert_eq!(
            qmp.run("query-status", &json!({})).unwrap()["status"],
            "running"
        );
        let refused = qmp.run("screendump", &json!({})).unwrap_err().to_string();
        assert!(refused.contains("no screen"), "{refused}");
        qemu.join().unwrap();
        assert!(qmp.run("quit", &json!({})).is_err(), "it is gone");
    }
}
