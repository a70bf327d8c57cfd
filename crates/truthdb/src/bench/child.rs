//! The server under measurement: this same program as a process of its own.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use truthdb_io::{Clock as _, SystemClock};

use crate::exit::{ExitClass, Failure};

/// Longest time to start or to stop, seconds.
const WAIT_S: u64 = 60;

/// A running server.
pub(super) struct Server {
    child: Child,
    /// `host:port` of the native protocol.
    pub native: String,
    /// `host:port` of gRPC and HTTP.
    pub http: String,
    /// From the start of the process until it listened, nanoseconds.
    pub start_ns: u64,
}

impl Server {
    /// Starts a server on free loopback ports. Settings are environment variables of its
    /// configuration, such as `DURABILITY__MODE`.
    ///
    /// # Errors
    ///
    /// It does not start; its own messages are on standard error then.
    pub(super) fn start(directory: &Path, settings: &[(&str, String)]) -> Result<Server, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::environment("cannot find this program's file", error))?;
        let ports = directory.with_extension("ports");
        // A file of an earlier server on the same directory would be taken for this one's.
        let _ = std::fs::remove_file(&ports);
        let clock = SystemClock::new();
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TRUTHDB_") {
                command.env_remove(name);
            }
        }
        command
            .arg("--data")
            .arg(directory)
            .args(["serve", "--init-if-empty", "--ports-file"])
            .arg(&ports)
            .env("TRUTHDB_LISTEN__HTTP", "127.0.0.1:0")
            .env("TRUTHDB_LISTEN__NATIVE", "127.0.0.1:0")
            .env("TRUTHDB_LOG__LEVEL", "warn")
            .envs(
                settings
                    .iter()
                    .map(|(name, value)| (format!("TRUTHDB_{name}"), value)),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command
            .spawn()
            .map_err(|error| Failure::environment("cannot start the server", error))?;
        let (native, http) = (String::new(), String::new());
        let mut server = Server {
            child,
            native,
            http,
            start_ns: 0,
        };
        while !ports.exists() {
            if let Ok(Some(status)) = server.child.try_wait() {
                let message = format!("the server to measure ended at once: {status}");
                return Err(Failure::new(ExitClass::Environment, message));
            }
            if clock.monotonic_ns() > WAIT_S * 1_000_000_000 {
                let message = format!("the server to measure was not ready after {WAIT_S} s");
                return Err(Failure::new(ExitClass::Environment, message));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        server.start_ns = clock.monotonic_ns();
        let text = std::fs::read(&ports)
            .map_err(|error| Failure::environment("cannot read the server's addresses", error))?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(ExitClass::Internal, "the server's addresses are no JSON")
                .with_source(error)
        })?;
        server.native = value["native"].as_str().unwrap_or_default().to_owned();
        server.http = value["http"].as_str().unwrap_or_default().to_owned();
        Ok(server)
    }

    /// Its process id, as `/proc` names it.
    pub(super) fn process(&self) -> String {
        self.child.id().to_string()
    }

    /// The sum over all partitions of each metric of the Prometheus page.
    ///
    /// # Errors
    ///
    /// `network`: the page does not come.
    pub(super) fn metrics(&self) -> Result<Metrics, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(ExitClass::Network, "cannot read the server's metrics").with_source(error)
        };
        let mut stream = TcpStream::connect(&self.http).map_err(failed)?;
        stream
            .set_read_timeout(Some(Duration::from_secs(WAIT_S)))
            .map_err(failed)?;
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.http
        );
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut page = String::new();
        stream.read_to_string(&mut page).map_err(failed)?;
        Ok(Metrics(page))
    }

    fn end(&mut self, signal: Signal) -> Result<(), Failure> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended already; waiting for it tells.
            let _ = kill_process(pid, signal);
        }
        let clock = SystemClock::new();
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => return Ok(()),
                Ok(None) if clock.monotonic_ns() < WAIT_S * 1_000_000_000 => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => {
                    let message = format!("the server did not stop within {WAIT_S} s");
                    return Err(Failure::new(ExitClass::Internal, message));
                }
                Err(error) => {
                    return Err(Failure::environment("cannot wait for the server", error));
                }
            }
        }
    }

    /// Stops it as an operator would.
    ///
    /// # Errors
    ///
    /// It does not stop.
    pub(super) fn stop(mut self) -> Result<(), Failure> {
        self.end(Signal::TERM)
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub(super) fn kill(mut self) -> Result<(), Failure> {
        self.end(Signal::KILL)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a failed measurement: no server may stay behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Prometheus page.
pub(super) struct Metrics(String);

impl Metrics {
    /// The sum of a metric over its labels; 0 if it is not there.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_metric_is_summed_over_its_labels_only() {
        let page = "a_total{partition=\"0\"} 2\na_total{partition=\"1\"} 3\na_total_b 7\nb 1\n";
        let metrics = super::Metrics(page.to_owned());
        assert!((metrics.sum("a_total") - 5.0).abs() < 1e-9);
        assert!((metrics.sum("b") - 1.0).abs() < 1e-9);
    }
}
