//! Addresses: by DHCP or as configured. BusyBox's `udhcpc` and `ip` do the work; this decides which card, and turns
//! what DHCP says into addresses, routes, name servers and time servers.

use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::config::{NetworkConfig, NetworkMode, NodeConfig};
use crate::log;
use crate::paths::System;
use crate::state;

/// How often the cards are looked at while none has a link.
const LINK_INTERVAL: Duration = Duration::from_millis(100);
/// The answers of DHCP that are asked for besides the usual ones.
const DHCP_OPTIONS: [&str; 2] = ["-O", "ntpsrv"];

/// Gets an address, and stays: as `udhcpc`, or waiting while a fixed address is in force.
///
/// # Errors
///
/// A program of the image that cannot be started.
pub(crate) fn run(system: &System) -> Result<()> {
    let (config, _) = NodeConfig::load(system);
    ip(system, &["link", "set", "lo", "up"])?;
    let card = wait_for_link(system, &config.network)?;
    state::set(
        system,
        "network",
        json!({ "state": "linked", "interface": card }),
    )?;
    match config.network.mode {
        NetworkMode::Dhcp => become_dhcp_client(system, &card, &config.hostname),
        NetworkMode::Static => {
            configure(system, &card, &config.network)?;
            loop {
                // Nothing more to do; ending would make init start this again.
                std::thread::park();
            }
        }
    }
}

fn become_dhcp_client(system: &System, card: &str, hostname: &str) -> Result<()> {
    let mut client = Command::new(system.path("sbin/udhcpc"));
    client
        .args(["-f", "-i", card, "-t", "5", "-T", "2", "-A", "5"])
        .args(DHCP_OPTIONS)
        .arg("-x")
        .arg(format!("hostname:{hostname}"));
    log::redirect(system, &mut client)?;
    Err(client.exec()).context("starting udhcpc")
}

fn configure(system: &System, card: &str, config: &NetworkConfig) -> Result<()> {
    ip(system, &["addr", "flush", "dev", card])?;
    ip(system, &["addr", "add", &config.address, "dev", card])?;
    if !config.gateway.is_empty() {
        ip(
            system,
            &[
                "route",
                "replace",
                "default",
                "via",
                &config.gateway,
                "dev",
                card,
            ],
        )?;
    }
    resolv(system, &config.dns)?;
    let about = json!({
        "state": "up", "mode": "static", "interface": card, "address": config.address,
        "gateway": config.gateway, "dns": config.dns,
    });
    state::set(system, "network", about)
}

/// The card to use, once it has a link. All are switched on meanwhile, since a card that is off shows none.
fn wait_for_link(system: &System, config: &NetworkConfig) -> Result<String> {
    let mut told = false;
    loop {
        let cards = cards(system);
        let wanted: Vec<&Card> = cards
            .iter()
            .filter(|card| card.is(&config.interface))
            .collect();
        if let Some(card) = wanted.iter().find(|card| card.has_link) {
            return Ok(card.name.clone());
        }
        for card in &wanted {
            ip(system, &["link", "set", &card.name, "up"])?;
        }
        if !told {
            let found: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
            let about = json!({ "state": "no link", "wanted": config.interface, "found": found });
            state::set(system, "network", about)?;
            told = true;
        }
        std::thread::sleep(LINK_INTERVAL);
    }
}

/// A network card.
#[derive(Debug, PartialEq, Eq)]
struct Card {
    name: String,
    mac: String,
    has_link: bool,
}

impl Card {
    /// Whether it is the wanted one: by name, by MAC address, or any.
    fn is(&self, wanted: &str) -> bool {
        wanted.is_empty() || self.name == wanted || self.mac.eq_ignore_ascii_case(wanted)
    }
}

/// The cards, by name; only those that a device stands behind.
fn cards(system: &System) -> Vec<Card> {
    let Ok(entries) = std::fs::read_dir(system.path("sys/class/net")) else {
        return Vec::new();
    };
    let mut cards: Vec<Card> = entries
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .map(|entry| {
            let text = |name| {
                let text = std::fs::read_to_string(entry.path().join(name));
                text.unwrap_or_default().trim().to_owned()
            };
            Card {
                name: entry.file_name().to_string_lossy().into_owned(),
                mac: text("address"),
                has_link: text("carrier") == "1",
            }
        })
        .collect();
    cards.sort_by(|a, b| a.name.cmp(&b.name));
    cards
}

/// What `udhcpc` calls when something happened; what it learnt is in the environment.
///
/// # Errors
///
/// Addresses that cannot be set.
pub(crate) fn event(system: &System, event: &str) -> Result<()> {
    let lease = Lease::from(|name| std::env::var(name).unwrap_or_default());
    match event {
        "deconfig" => {
            ip(system, &["addr", "flush", "dev", &lease.interface])?;
            ip(system, &["link", "set", &lease.interface, "up"])?;
            let about = json!({ "state": "asking", "mode": "dhcp", "interface": lease.interface });
            state::set(system, "network", about)
        }
        "bound" | "renew" => apply(system, &lease),
        // The server refused, or there is none: udhcpc asks again by itself.
        "nak" | "leasefail" => {
            log::say(system, "network", "no answer from a DHCP server");
            Ok(())
        }
        other => bail!("udhcpc says {other:?}, which is not known"),
    }
}

/// What DHCP said, as far as it is used; texts that are no addresses are left out.
#[derive(Debug, PartialEq, Eq)]
struct Lease {
    interface: String,
    address: Option<IpAddr>,
    prefix: u8,
    router: Option<IpAddr>,
    dns: Vec<String>,
    time_servers: Vec<String>,
}

impl Lease {
    fn from(variable: impl Fn(&str) -> String) -> Self {
        let list = |name: &str| -> Vec<String> {
            let text = variable(name);
            let words = text.split_whitespace();
            words
                .filter(|word| word.parse::<IpAddr>().is_ok())
                .map(str::to_owned)
                .collect()
        };
        let first = |name: &str| list(name).first().and_then(|word| word.parse().ok());
        Self {
            interface: variable("interface"),
            address: first("ip"),
            prefix: variable("mask")
                .parse()
                .ok()
                .filter(|bits| *bits <= 32)
                .unwrap_or(24),
            router: first("router"),
            dns: list("dns"),
            time_servers: list("ntpsrv"),
        }
    }
}

fn apply(system: &System, lease: &Lease) -> Result<()> {
    let address = lease.address.context("DHCP gave no address")?;
    let address = format!("{address}/{}", lease.prefix);
    let before = state::read(system);
    let same = before
        .get("network")
        .is_some_and(|network| network["address"] == json!(address) && network["state"] == "up");
    if !same {
        ip(system, &["addr", "flush", "dev", &lease.interface])?;
        ip(system, &["addr", "add", &address, "dev", &lease.interface])?;
    }
    if let Some(router) = lease.router {
        let router = router.to_string();
        ip(
            system,
            &[
                "route",
                "replace",
                "default",
                "via",
                &router,
                "dev",
                &lease.interface,
            ],
        )?;
    }
    let (config, _) = NodeConfig::load(system);
    let dns = if config.network.dns.is_empty() {
        &lease.dns
    } else {
        &config.network.dns
    };
    resolv(system, dns)?;
    let about = json!({
        "state": "up", "mode": "dhcp", "interface": lease.interface, "address": address,
        "gateway": lease.router, "dns": dns, "time_servers": lease.time_servers,
    });
    state::set(system, "network", about)
}

fn resolv(system: &System, servers: &[String]) -> Result<()> {
    let lines: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let fresh = system.run("resolv.conf.new");
    std::fs::write(&fresh, lines).context("writing the list of name servers")?;
    state::replace(&fresh, &system.run("resolv.conf"))
}

/// BusyBox's `ip`. That something is so already is no failure.
fn ip(system: &System, arguments: &[&str]) -> Result<()> {
    let outcome = Command::new(system.path("sbin/ip"))
        .args(arguments)
        .output()
        .context("starting ip")?;
    let said = String::from_utf8_lossy(&outcome.stderr);
    if outcome.status.success() || said.contains("File exists") {
        return Ok(());
    }
    bail!("`ip {}`: {}", arguments.join(" "), said.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(pairs: &[(&str, &str)]) -> Lease {
        Lease::from(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found
                .map(|(_, value)| (*value).to_owned())
                .unwrap_or_default()
        })
    }

    #[test]
    fn a_lease_is_read_from_the_environment() {
        let lease = lease(&[
            ("interface", "eth0"),
            ("ip", "10.0.2.15"),
            ("mask", "24"),
            ("router", "10.0.2.2 10.0.2.9"),
            ("dns", "10.0.2.3 nonsense"),
            ("ntpsrv", "192.0.2.1 192.0.2.2"),
        ]);
        assert_eq!(lease.address, "10.0.2.15".parse().ok());
        assert_eq!((lease.prefix, lease.router), (24, "10.0.2.2".parse().ok()));
        assert_eq!(lease.dns, ["10.0.2.3"]);
        assert_eq!(lease.time_servers, ["192.0.2.1", "192.0.2.2"]);
    }

    #[test]
    fn what_a_hostile_server_sends_becomes_no_argument() {
        let lease = lease(&[("ip", "-x"), ("mask", "99"), ("ntpsrv", "$(reboot) -p")]);
        assert_eq!(lease.address, None);
        assert_eq!(lease.prefix, 24);
        assert_eq!(lease.time_servers, Vec::<String>::new());
    }

    #[test]
    fn a_card_is_chosen_by_name_or_address_and_only_devices_count() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for (name, mac, carrier, device) in [
            ("lo", "00:00:00:00:00:00", "1", false),
            ("eth1", "52:54:00:00:00:01", "1", true),
            ("eth0", "52:54:00:00:00:00", "0", true),
        ] {
            let card = system.path("sys/class/net").join(name);
            std::fs::create_dir_all(&card).unwrap();
            std::fs::write(card.join("address"), format!("{mac}\n")).unwrap();
            std::fs::write(card.join("carrier"), format!("{carrier}\n")).unwrap();
            if device {
                std::fs::create_dir(card.join("device")).unwrap();
            }
        }
        let cards = cards(&system);
        let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        assert!(cards[0].is("") && cards[0].is("eth0") && cards[0].is("52:54:00:00:00:00"));
        assert!(!cards[0].is("eth1"));
        assert!(cards[1].has_link && !cards[0].has_link);
    }
}
