//! Looks at the node: files of the machine, and what the server says of itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;
use truthdb_installer::platform::System;
use truthdb_installer::platform::machine::{clock_s, monotonic_ms};

use crate::ask;
use crate::node::{Health, Node};

/// Port of the server's HTTP side, unless its configuration says another.
const HTTP_PORT: u16 = 7433;
/// Messages that are shown.
const LOG_LINES_MAX: usize = 200;

/// Looks, and remembers what it saw last, for rates.
pub(crate) struct Gatherer {
    system: System,
    last: Option<(u64, u64)>,
}

impl Gatherer {
    pub(crate) fn new(system: System) -> Gatherer {
        Gatherer { system, last: None }
    }

    /// Looks at everything. Whatever cannot be known is left out.
    pub(crate) fn look(&mut self) -> Node {
        let system = &self.system;
        let state: Value =
            serde_json::from_str(&system.text("run/truthdb/state.json")).unwrap_or(Value::Null);
        let (health, partitions) = self.health();
        let events = self.events();
        let now_ms = monotonic_ms();
        let events_a_second = match (self.last, events) {
            (Some((then_ms, then)), Some(events)) if now_ms > then_ms => {
                Some(events.saturating_sub(then).saturating_mul(1000) / (now_ms - then_ms))
            }
            _ => None,
        };
        self.last = events.map(|events| (now_ms, events));
        Node {
            name: self.name(&state),
            version: version(&self.system.text("etc/os-release")),
            network: network(&state),
            health,
            data_problem: text_at(&state, "/data/problem"),
            partitions,
            events,
            events_a_second,
            disk: self.disk(),
            time: time(clock_s()),
            shown_once: self.system.text("run/truthdb/shown-once.txt"),
            log: self.log(),
        }
    }

    fn name(&self, state: &Value) -> String {
        let said = text_at(state, "/node/hostname");
        if said.is_empty() {
            self.system.text("proc/sys/kernel/hostname")
        } else {
            said
        }
    }

    /// The server's configuration: the node's own, else the one that the image brings.
    fn config(&self) -> toml::Table {
        let own = "data/config/truthdb.toml";
        let is_own = self.system.path(own).is_file();
        let text = self
            .system
            .text(if is_own { own } else { "etc/truthdb.toml" });
        toml::from_str(&text).unwrap_or_default()
    }

    fn address(&self) -> SocketAddr {
        let config = self.config();
        let listen = config
            .get("listen")
            .and_then(|listen| listen.get("http")?.as_str());
        let port = listen.and_then(|listen| listen.parse::<SocketAddr>().ok());
        SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            port.map_or(HTTP_PORT, |address| address.port()),
        ))
    }

    fn get(&self, path: &str, token: &str) -> std::io::Result<ask::Answer> {
        let config = self.config();
        let tls = config.get("tls");
        let text = |key: &str| tls.and_then(|tls| tls.get(key)?.as_str());
        let certificate = match text("mode").unwrap_or("off") {
            "off" => None,
            "files" => text("certificate_file").map(|file| self.system.path(file)),
            _ => Some(self.system.path("data/server/tls/certificate.pem")),
        };
        ask::get(self.address(), certificate.as_deref(), path, token)
    }

    fn health(&self) -> (Health, Vec<(u64, String)>) {
        let answer = match self.get("/readyz", "") {
            Ok(answer) => answer,
            Err(error) => return (Health::Down(error.to_string()), Vec::new()),
        };
        let body: Value = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
        let partitions = partitions(&body);
        let health = if answer.status == 200 {
            Health::Ready
        } else {
            let bad: Vec<String> = partitions
                .iter()
                .filter(|(_, state)| state != "open")
                .map(|(number, state)| format!("partition {number} is {state}"))
                .collect();
            Health::Degraded(if bad.is_empty() {
                "the server is stopping".to_owned()
            } else {
                bad.join(", ")
            })
        };
        (health, partitions)
    }

    fn events(&self) -> Option<u64> {
        let token = self.system.text("data/config/console-token");
        if token.is_empty() {
            return None;
        }
        let answer = self.get("/metrics", &token).ok()?;
        (answer.status == 200).then(|| sum(&answer.body, "truthdb_committed_sequence"))
    }

    /// Room on the data partition; `None` while it is not mounted.
    fn disk(&self) -> Option<(u64, u64)> {
        let device = |path| std::fs::metadata(self.system.path(path)).map(|about| about.dev());
        if device("data").ok()? == device("").ok()? {
            return None;
        }
        let found = rustix::fs::statvfs(self.system.path("data")).ok()?;
        Some((
            found.f_bavail * found.f_frsize,
            found.f_blocks * found.f_frsize,
        ))
    }

    /// The end of the log in memory: the older of its two files, and the newer one.
    fn log(&self) -> Vec<String> {
        let read = |name: &str| std::fs::read(self.system.path(name)).unwrap_or_default();
        let bytes = [read("run/truthdb/log.1"), read("run/truthdb/log")].concat();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(LOG_LINES_MAX);
        // Bytes of a network may be in it: nothing of them may steer a terminal.
        let plain = |line: &&str| line.chars().filter(|c| !c.is_control()).collect();
        lines[first..].iter().map(plain).collect()
    }
}

/// Whether the node's state is shown on the serial line: unless its configuration says no.
pub(crate) fn has_serial_console(system: &System) -> bool {
    let config: toml::Table =
        toml::from_str(&system.text("data/config/node.toml")).unwrap_or_default();
    let wanted = config.get("serial_console").and_then(toml::Value::as_bool);
    wanted.unwrap_or(true)
}

fn text_at(state: &Value, pointer: &str) -> String {
    let found = state.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

fn partitions(body: &Value) -> Vec<(u64, String)> {
    let list = body.get("partitions").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|one| {
            let number = one.get("partition")?.as_u64()?;
            Some((number, one.get("state")?.as_str()?.to_owned()))
        })
        .collect()
}

/// Interface and address, as far as the node's own network program said them.
fn network(state: &Value) -> String {
    let interface = text_at(state, "/network/interface");
    let address = text_at(state, "/network/address");
    match (interface.is_empty(), address.is_empty()) {
        (true, _) => "no network yet".to_owned(),
        (false, true) => format!("{interface}: no address yet"),
        (false, false) => format!("{address}  ({interface})"),
    }
}

/// `VERSION_ID` of an `os-release`.
fn version(os_release: &str) -> String {
    let line = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_ID="));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

/// Sum of a metric over all its labels.
fn sum(metrics: &str, name: &str) -> u64 {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_it = rest.starts_with('{') || rest.starts_with(' ');
        is_it.then(|| rest.rsplit(' ').next()?.parse::<u64>().ok())?
    });
    values.fold(0, u64::saturating_add)
}

/// Time of day and days are enough to see whether a clock is right.
fn time(seconds: u64) -> String {
    truthdb_installer::node::timestamp(seconds)
        .replace('T', "  ")
        .replace('Z', "  UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_partitions() {
        let text = "# HELP truthdb_committed_sequence x\ntruthdb_committed_sequence{partition=\"0\"} 12\n\
                    truthdb_committed_sequence{partition=\"1\"} 30\ntruthdb_committed_sequence_x 5\nnoise\n";
        assert_eq!(sum(text, "truthdb_committed_sequence"), 42);
    }

    #[test]
    fn a_node_without_anything_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let node = Gatherer::new(System::at(folder.path())).look();
        assert!(matches!(node.health, Health::Down(_)));
        assert_eq!(node.network, "no network yet");
        assert_eq!((node.events, node.disk, node.log.len()), (None, None, 0));
    }

    #[test]
    fn the_serial_line_is_left_alone_when_the_configuration_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        assert!(has_serial_console(&system));
        std::fs::create_dir_all(folder.path().join("data/config")).unwrap();
        let config = folder.path().join("data/config/node.toml");
        std::fs::write(config, "serial_console = false\n").unwrap();
        assert!(!has_serial_console(&system));
    }

    #[test]
    fn what_the_node_says_of_itself_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("run/truthdb")).unwrap();
        std::fs::create_dir_all(folder.path().join("data/config")).unwrap();
        std::fs::create_dir_all(folder.path().join("etc")).unwrap();
        let write =
            |path: &str, text: &str| std::fs::write(folder.path().join(path), text).unwrap();
        write(
            "run/truthdb/state.json",
            r#"{"node": {"hostname": "db-7"}, "network": {"interface": "eth0", "address": "10.0.0.7/24"},
                "data": {"state": "unusable", "problem": "e2fsck could not repair it"}}"#,
        );
        let long = format!("{}\none\n", "x".repeat(200_000));
        write("run/truthdb/log.1", &long);
        write("run/truthdb/log", "two\x1b[2J\n");
        write("etc/os-release", "ID=truthdb\nVERSION_ID=\"0.1.0\"\n");
        write(
            "data/config/truthdb.toml",
            "[listen]\nhttp = \"0.0.0.0:9\"\n",
        );
        let mut gatherer = Gatherer::new(System::at(folder.path()));
        assert_eq!(gatherer.address().port(), 9);
        let node = gatherer.look();
        assert_eq!((&node.name[..], &node.version[..]), ("db-7", "0.1.0"));
        assert_eq!(node.network, "10.0.0.7/24  (eth0)");
        assert_eq!(node.data_problem, "e2fsck could not repair it");
        assert_eq!(node.log[1..], ["one", "two[2J"]);
        assert_eq!(node.disk, None, "not a file system of its own");
    }
}
