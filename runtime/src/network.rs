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
use crate::starts::Start;
use crate::state;

/// The network's part of the state.
const PART: &str = "network";
/// How often the cards are looked at while none has a link.
const LINK_INTERVAL: Duration = Duration::from_millis(100);
/// Looks at cards without a link before the log says so: a link takes some seconds to come up.
const LOOKS_BEFORE_SAID: u64 = 100;
/// The answers of DHCP that are asked for besides the usual ones.
const DHCP_OPTIONS: [&str; 2] = ["-O", "ntpsrv"];

/// Gets an address, and stays: as `udhcpc`, or waiting while a fixed address is in force.
///
/// # Errors
///
/// A program of the image that cannot be started, or a fixed address that does not fit.
pub(crate) fn run(system: &System) -> Result<()> {
    Start::next(system, PART).wait(system, PART)?;
    let (config, _) = NodeConfig::load(system);
    ip(system, &["link", "set", "lo", "up"])?;
    let card = wait_for_link(system, &config.network)?;
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

/// Sets a fixed address. What is set already is no error, so that trying again disturbs nobody who is connected.
fn configure(system: &System, card: &str, config: &NetworkConfig) -> Result<()> {
    let advice = "correct [network] in config/node.toml";
    let set = ip(system, &address_words(card, &config.address));
    if set.is_err() {
        let about = json!({ "state": "failed", "mode": "static", "interface": card });
        state::set(system, PART, about)?;
    }
    set.with_context(|| format!("the address {} cannot be set: {advice}", config.address))?;
    resolv(system, &config.dns)?;
    let routed = if config.gateway.is_empty() {
        Ok(())
    } else {
        ip(system, &route_words(card, &config.gateway))
    };
    let gateway = routed.as_ref().map_or("", |()| &config.gateway);
    // Without its gateway the node still is where the address says.
    let about = json!({
        "state": "up", "mode": "static", "interface": card, "address": config.address,
        "gateway": gateway, "dns": config.dns,
    });
    state::set(system, PART, about)?;
    let (gateway, address) = (&config.gateway, &config.address);
    routed.with_context(|| {
        format!("the gateway {gateway} does not fit the address {address}: {advice}")
    })
}

/// The words that give an address to a card.
fn address_words<'a>(card: &'a str, address: &'a str) -> [&'a str; 6] {
    [family(address), "addr", "add", address, "dev", card]
}

/// The words that make a router the way to everywhere.
fn route_words<'a>(card: &'a str, router: &'a str) -> [&'a str; 8] {
    let family = family(router);
    [
        family, "route", "replace", "default", "via", router, "dev", card,
    ]
}

/// The option that names an address's family: one of them leaves the other's addresses and routes alone.
fn family(address: &str) -> &'static str {
    if address.contains(':') { "-6" } else { "-4" }
}

/// The card to use, once it has a link. All are switched on meanwhile, since a card that is off shows none.
fn wait_for_link(system: &System, config: &NetworkConfig) -> Result<String> {
    let mut looks = 0;
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
        let problem = why_no_link(&cards, &config.interface);
        if state::problem(system, PART) != problem {
            let about = json!({ "state": "no link", "problem": problem });
            state::set(system, PART, about)?;
        }
        if looks == LOOKS_BEFORE_SAID {
            log::say(system, PART, &problem);
        }
        looks += 1;
        std::thread::sleep(LINK_INTERVAL);
    }
}

/// Why there is no card to use.
fn why_no_link(cards: &[Card], wanted: &str) -> String {
    let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
    let names = names.join(", ");
    if cards.is_empty() {
        "no network card was found".to_owned()
    } else if cards.iter().any(|card| card.is(wanted)) {
        let wanted = if wanted.is_empty() { &names } else { wanted };
        format!("no link on {wanted}: is its cable connected?")
    } else {
        format!(
            "there is no card {wanted}, which network.interface in config/node.toml names; there is {names}"
        )
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
/// Addresses that cannot be set; also in the state.
pub(crate) fn event(system: &System, event: &str) -> Result<()> {
    let lease = Lease::from(|name| std::env::var(name).unwrap_or_default());
    let outcome = take(system, event, &lease);
    outcome.inspect_err(|error| {
        let _ = state::set_problem(system, PART, &format!("{error:#}"));
    })
}

fn take(system: &System, event: &str, lease: &Lease) -> Result<()> {
    match event {
        "deconfig" => {
            // The addresses of the other family are the kernel's: routers announce them.
            ip(system, &["-4", "addr", "flush", "dev", &lease.interface])?;
            ip(system, &["link", "set", &lease.interface, "up"])?;
            let about = json!({ "state": "asking", "mode": "dhcp", "interface": lease.interface });
            state::set(system, PART, about)
        }
        "bound" | "renew" => apply(system, lease),
        // udhcpc asks again by itself.
        "nak" => no_answer(system, "the DHCP server refuses an address"),
        "leasefail" => no_answer(system, "no DHCP server answers"),
        other => bail!("udhcpc says {other:?}, which is not known"),
    }
}

/// Says why there is no address: in the log only when it is news.
fn no_answer(system: &System, why: &str) -> Result<()> {
    if state::problem(system, PART) == why {
        return Ok(());
    }
    log::say(system, PART, why);
    state::set_problem(system, PART, why)
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
        ip(system, &["-4", "addr", "flush", "dev", &lease.interface])?;
        ip(system, &address_words(&lease.interface, &address))?;
    }
    if let Some(router) = lease.router {
        ip(system, &route_words(&lease.interface, &router.to_string()))?;
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
    state::set(system, PART, about)
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

    /// A node whose `ip` is another program of this machine.
    fn node(ip: &str) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for path in [system.run(""), system.path("sbin")] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::os::unix::fs::symlink(ip, system.path("sbin/ip")).unwrap();
        (folder, system)
    }

    fn fixed(address: &str, gateway: &str) -> NetworkConfig {
        NetworkConfig {
            mode: NetworkMode::Static,
            address: address.into(),
            gateway: gateway.into(),
            dns: vec!["192.0.2.3".into(), "2001:db8::3".into()],
            ..NetworkConfig::default()
        }
    }

    #[test]
    fn addresses_of_both_families_become_words_for_ip() {
        let words = |address, gateway| {
            let (address, route) = (address_words("eth0", address), route_words("eth0", gateway));
            (address.join(" "), route.join(" "))
        };
        assert_eq!(
            words("192.0.2.10/24", "192.0.2.1"),
            (
                "-4 addr add 192.0.2.10/24 dev eth0".into(),
                "-4 route replace default via 192.0.2.1 dev eth0".into()
            )
        );
        assert_eq!(
            words("2001:db8::10/64", "fe80::1"),
            (
                "-6 addr add 2001:db8::10/64 dev eth0".into(),
                "-6 route replace default via fe80::1 dev eth0".into()
            )
        );
    }

    #[test]
    fn a_fixed_address_is_set_with_its_name_servers() {
        for (address, gateway) in [
            ("192.0.2.10/24", "192.0.2.1"),
            ("2001:db8::10/64", "2001:db8::1"),
            ("2001:db8::10/64", ""),
        ] {
            let (_folder, system) = node("/bin/true");
            configure(&system, "eth0", &fixed(address, gateway)).unwrap();
            let state = &state::read(&system)[PART];
            assert_eq!(
                (&state["state"], &state["address"]),
                (&json!("up"), &json!(address))
            );
            assert_eq!(state["gateway"], gateway);
            assert_eq!(
                std::fs::read_to_string(system.run("resolv.conf")).unwrap(),
                "nameserver 192.0.2.3\nnameserver 2001:db8::3\n"
            );
        }
    }

    #[test]
    fn a_fixed_address_that_does_not_fit_is_an_error_that_names_it() {
        let (_folder, system) = node("/bin/false");
        let error = configure(&system, "eth0", &fixed("192.0.2.10/24", "192.0.2.1")).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("192.0.2.10/24 cannot be set: correct"),
            "{error}"
        );
        assert_eq!(state::read(&system)[PART]["state"], "failed");
    }

    #[test]
    fn why_there_is_no_address_is_in_the_state() {
        let (_folder, system) = node("/bin/true");
        let mut lease = lease(&[("interface", "eth0")]);
        take(&system, "deconfig", &lease).unwrap();
        assert_eq!(state::read(&system)[PART]["interface"], "eth0");
        take(&system, "leasefail", &lease).unwrap();
        assert_eq!(state::problem(&system, PART), "no DHCP server answers");
        lease.address = "192.0.2.10".parse().ok();
        take(&system, "bound", &lease).unwrap();
        assert_eq!(state::problem(&system, PART), "");
        assert!(take(&system, "magic", &lease).is_err());
    }

    #[test]
    fn why_there_is_no_link_names_the_cards() {
        let card = |name: &str| Card {
            name: name.into(),
            mac: "52:54:00:00:00:00".into(),
            has_link: false,
        };
        let cards = [card("eth0"), card("eth1")];
        assert_eq!(why_no_link(&[], ""), "no network card was found");
        assert!(why_no_link(&cards, "").contains("no link on eth0, eth1: is"));
        assert!(why_no_link(&cards, "eth1").contains("no link on eth1:"));
        let other = why_no_link(&cards, "eth9");
        assert!(
            other.contains("no card eth9") && other.contains("eth0, eth1"),
            "{other}"
        );
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
