//! Looks at the node: files of the machine, and what the server says of itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use serde_json::Value;
use truthdb_installer::platform::System;
use truthdb_installer::platform::machine::{clock_s, monotonic_ms};

use crate::addresses::Addresses;
use crate::ask;
use crate::node::{Health, Node, Problems};

/// Port of the server's HTTP side, unless its configuration says another.
const HTTP_PORT: u16 = 7433;
/// Messages that are shown.
const LOG_LINES_MAX: usize = 200;

/// Looks, and remembers what it saw last, for rates.
pub(crate) struct Gatherer {
    system: System,
    last: Option<(u64, u64)>,
    /// What was said of the server's starts when it answered: nothing of that is wrong any more.
    over: String,
}

impl Gatherer {
    pub(crate) fn new(system: System) -> Gatherer {
        Gatherer {
            system,
            last: None,
            over: String::new(),
        }
    }

    /// Looks at everything. Whatever cannot be known is left out.
    pub(crate) fn look(&mut self) -> Node {
        let system = &self.system;
        let state: Value =
            serde_json::from_str(&system.text("run/truthdb/state.json")).unwrap_or(Value::Null);
        let (health, partitions) = self.health();
        let mut problems = self.problems(&state);
        if !matches!(health, Health::Down(_)) {
            self.over.clone_from(&problems.server);
        }
        if problems.server == self.over {
            problems.server.clear();
        }
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
            addresses: Addresses::look(system, &state["network"]),
            no_address: no_address(&state),
            time_servers: time_servers(&state),
            health,
            problems,
            partitions,
            events,
            events_a_second,
            disk: self.disk(),
            time: time(clock_s()),
            shown_once: self.shown_once(),
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

    fn problems(&self, state: &Value) -> Problems {
        let of = |part: &str| text_at(state, &format!("/{part}/problem"));
        let mut problems = Problems {
            data: of("data"),
            server: of("server"),
            node: of("node"),
            network: of("network"),
            time: of("time"),
        };
        let card = text_at(state, "/network/interface");
        let carrier = self.system.text(&format!("sys/class/net/{card}/carrier"));
        if problems.network.is_empty() && carrier == "0" {
            problems.network = format!("{card} has lost its link: look at the cable");
        }
        problems
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

    /// Where the server listens, as this machine reaches it.
    fn address(&self) -> SocketAddr {
        let config = self.config();
        let listen = config
            .get("listen")
            .and_then(|listen| listen.get("http")?.as_str());
        let listen = listen.and_then(|listen| listen.to_socket_addrs().ok()?.next());
        let Some(mut address) = listen else {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT));
        };
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        address
    }

    /// The server's certificate; none where it is asked without TLS.
    fn certificate(&self) -> Option<PathBuf> {
        let config = self.config();
        let tls = config.get("tls");
        let text = |key: &str| tls.and_then(|tls| tls.get(key)?.as_str());
        match text("mode").unwrap_or("off") {
            "off" => None,
            // As the server has it, which runs in the folder of its data.
            "files" => text("certificate_file").map(|file| self.system.path("data").join(file)),
            _ => Some(self.system.path("data/server/tls/certificate.pem")),
        }
    }

    fn get(&self, path: &str, token: &str) -> std::io::Result<ask::Answer> {
        ask::get(self.address(), self.certificate().as_deref(), path, token)
    }

    /// What the server shows once, and what clients pin: who writes down the one needs the other.
    fn shown_once(&self) -> String {
        let shown = self.system.text("run/truthdb/shown-once.txt");
        match self.certificate().and_then(|file| ask::fingerprint(&file)) {
            Some(fingerprint) if !shown.is_empty() => {
                format!(
                    "{shown}\nThe fingerprint of the certificate, which clients pin:\n{fingerprint}"
                )
            }
            _ => shown,
        }
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

    /// Events of all partitions. A server that demands tokens says them to the node's own only.
    fn events(&self) -> Option<u64> {
        let token = self.system.text("data/config/console-token");
        let auth = self.config().get("auth").cloned();
        let enabled = auth.and_then(|auth| auth.get("enabled")?.as_bool());
        if token.is_empty() && enabled.unwrap_or(false) {
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

/// A text of the state in one line, with nothing in it that steers a terminal.
fn text_at(state: &Value, pointer: &str) -> String {
    let found = state.pointer(pointer).and_then(Value::as_str);
    let words: Vec<&str> = found.unwrap_or_default().split_whitespace().collect();
    words.join(" ").replace(char::is_control, "")
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

/// What is said in place of an address.
fn no_address(state: &Value) -> String {
    let interface = text_at(state, "/network/interface");
    if interface.is_empty() {
        "no network yet".to_owned()
    } else {
        format!("{interface}: no address yet")
    }
}

/// Whom the time client asks; whether they answer, nobody knows here.
fn time_servers(state: &Value) -> String {
    let servers = state.pointer("/time/servers").and_then(Value::as_array);
    let servers: Vec<&str> = servers
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if servers.is_empty() {
        "none yet".to_owned()
    } else {
        servers.join(", ")
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
        assert!(node.addresses.is_empty());
        assert_eq!(
            (&node.no_address[..], &node.time_servers[..]),
            ("no network yet", "none yet")
        );
        assert_eq!(node.problems, Problems::default());
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
        assert_eq!(node.addresses.ipv4, "10.0.0.7/24  (eth0)");
        assert_eq!(node.problems.data, "e2fsck could not repair it");
        assert_eq!(node.log[1..], ["one", "two[2J"]);
        assert_eq!(node.disk, None, "not a file system of its own");
    }

    #[test]
    fn the_server_is_asked_where_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("etc")).unwrap();
        let gatherer = Gatherer::new(System::at(folder.path()));
        for (listen, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:2", "[::1]:2"),
            ("192.0.2.10:3", "192.0.2.10:3"),
            ("[2001:db8::1]:4", "[2001:db8::1]:4"),
            ("127.0.0.1:5", "127.0.0.1:5"),
            ("nonsense", "127.0.0.1:7433"),
        ] {
            let text = format!("[listen]\nhttp = {listen:?}\n");
            std::fs::write(folder.path().join("etc/truthdb.toml"), text).unwrap();
            assert_eq!(gatherer.address().to_string(), asked);
        }
    }

    #[test]
    fn a_certificate_of_ones_own_is_where_the_server_looks_for_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("etc")).unwrap();
        let gatherer = Gatherer::new(System::at(folder.path()));
        for (file, expected) in [
            ("config/own.pem", folder.path().join("data/config/own.pem")),
            ("/data/own.pem", PathBuf::from("/data/own.pem")),
        ] {
            let text = format!("[tls]\nmode = \"files\"\ncertificate_file = {file:?}\n");
            std::fs::write(folder.path().join("etc/truthdb.toml"), text).unwrap();
            assert_eq!(gatherer.certificate(), Some(expected));
        }
    }

    #[test]
    fn a_token_is_shown_with_what_clients_pin() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["run/truthdb", "data/server/tls", "etc"] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let write =
            |path: &str, text: &str| std::fs::write(folder.path().join(path), text).unwrap();
        // Only the bytes between the lines count.
        let pem = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
        write("etc/truthdb.toml", "[tls]\nmode = \"self-signed\"\n");
        write("data/server/tls/certificate.pem", pem);
        let gatherer = Gatherer::new(System::at(folder.path()));
        assert_eq!(gatherer.shown_once(), "");
        write(
            "run/truthdb/shown-once.txt",
            "The first access token:\ntdb_x\n",
        );
        let shown = gatherer.shown_once();
        assert!(
            shown.starts_with("The first access token:\ntdb_x\n"),
            "{shown}"
        );
        // SHA-256 of "abc", by its specification.
        assert!(shown.contains("\nba:78:16:bf:"), "{shown}");
        assert!(shown.ends_with(":f2:00:15:ad"), "{shown}");
    }

    #[test]
    fn what_every_part_says_of_itself_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "run/truthdb/state.json",
            r#"{"server": {"problem": "no space"}, "node": {"problem": "line 1:\n  hostname\u001b"},
                "network": {"interface": "eth0", "problem": "no DHCP server answers"},
                "time": {"problem": "nothing sets the clock"}}"#,
        );
        write("sys/class/net/eth0/carrier", "0\n");
        let mut gatherer = Gatherer::new(System::at(folder.path()));
        let node = gatherer.look();
        let problems = &node.problems;
        assert_eq!(problems.server, "no space");
        assert_eq!(problems.node, "line 1: hostname");
        assert_eq!(problems.network, "no DHCP server answers");
        assert_eq!(problems.time, "nothing sets the clock");
        assert_eq!(node.no_address, "eth0: no address yet");
        write(
            "run/truthdb/state.json",
            r#"{"network": {"interface": "eth0", "address": "10.0.0.7/24"},
                "time": {"state": "running", "servers": ["ntp.example", "10.0.0.1"]}}"#,
        );
        let node = gatherer.look();
        assert!(node.problems.network.contains("eth0 has lost its link"));
        assert_eq!(node.time_servers, "ntp.example, 10.0.0.1");
    }

    /// A server that answers everything with metrics, once.
    fn server() -> (u16, std::thread::JoinHandle<String>) {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = std::io::Read::read(&mut stream, &mut request).unwrap();
            let answer = b"HTTP/1.0 200 OK\r\n\r\ntruthdb_committed_sequence{partition=\"0\"} 7\n";
            std::io::Write::write_all(&mut stream, answer).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (port, thread)
    }

    #[test]
    fn what_was_wrong_with_a_start_is_over_once_the_server_answers() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("run/truthdb")).unwrap();
        std::fs::create_dir_all(folder.path().join("etc")).unwrap();
        let state = |problem: &str| {
            let text = format!("{{\"server\": {{\"problem\": {problem:?}}}}}");
            std::fs::write(folder.path().join("run/truthdb/state.json"), text).unwrap();
        };
        let mut gatherer = Gatherer::new(System::at(folder.path()));
        let mut look = |port: u16| {
            let text = format!("[listen]\nhttp = \"127.0.0.1:{port}\"\n");
            std::fs::write(folder.path().join("etc/truthdb.toml"), text).unwrap();
            let node = gatherer.look();
            let is_down = matches!(node.health, Health::Down(_));
            (is_down, node.problems.server)
        };
        state("ended after 9 s");
        assert_eq!(look(1), (true, "ended after 9 s".to_owned()));
        let (port, thread) = server();
        assert_eq!(look(port), (false, String::new()));
        thread.join().unwrap();
        assert_eq!(look(1), (true, String::new()));
        state("ended after 90 s");
        assert_eq!(look(1), (true, "ended after 90 s".to_owned()));
    }

    #[test]
    fn events_are_asked_for_without_a_token_only_where_none_is_demanded() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("data/config")).unwrap();
        let (port, thread) = server();
        let configure = |auth: bool| {
            let text = format!("[listen]\nhttp = \"0.0.0.0:{port}\"\n[auth]\nenabled = {auth}\n");
            std::fs::write(folder.path().join("data/config/truthdb.toml"), text).unwrap();
        };
        let gatherer = Gatherer::new(System::at(folder.path()));
        configure(true);
        assert_eq!(gatherer.events(), None);
        configure(false);
        assert_eq!(gatherer.events(), Some(7));
        assert!(!thread.join().unwrap().contains("Bearer"));
    }
}
