//! Addresses: by DHCP or as configured. BusyBox's `udhcpc` and `ip` do the work; this decides which card, and turns
//! what DHCP says into addresses, routes, name servers and time servers.

use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, getppid, kill_process};
use serde_json::{Value, json};

use crate::cards::{self, Card};
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
/// The state between a card that brought nothing and the next one.
const NEXT_CARD: &str = "next card";
/// The state of a card that DHCP servers are asked on.
const ASKING: &str = "asking";
/// How another card is named.
const NAMES_ANOTHER: &str = "network.interface in config/node.toml names another";
/// The answers of DHCP that are asked for besides the usual ones.
const DHCP_OPTIONS: [&str; 2] = ["-O", "ntpsrv"];

/// Gets an address, and stays: as `udhcpc`, or waiting while a fixed address is in force.
///
/// # Errors
///
/// A program of the image that cannot be started, or a fixed address that does not fit.
pub(crate) fn run(system: &System) -> Result<()> {
    let last = last_card(system);
    let mut is_news = last.is_none();
    // To go on with the next card is no failure, and took its time.
    if last.is_none() {
        let start = Start::next(system, PART);
        is_news = start.failures == 0;
        start.wait(system, PART)?;
    }
    let (config, _) = NodeConfig::load(system);
    ip(system, &["link", "set", "lo", "up"])?;
    let card = wait_for_link(system, &config.network, last.as_deref())?;
    if is_news && config.network.interface.is_empty() {
        tell_others(system, &card);
    }
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

/// The card that brought nothing, if it is another one's turn. That is so once: whatever goes wrong from here on is a
/// failure.
fn last_card(system: &System) -> Option<String> {
    let network = state::read(system).remove(PART)?;
    if network["state"] != NEXT_CARD {
        return None;
    }
    state::change(system, PART, |network| network["state"] = ASKING.into()).ok()?;
    network["interface"].as_str().map(str::to_owned)
}

/// Says, in the log, that the choice of a card was the node's own.
fn tell_others(system: &System, card: &str) {
    let cards = cards::all(system);
    let linked = cards::linked(&cards);
    if linked.len() > 1 {
        let line = format!(
            "of {}, which have a link, {card} is used; {NAMES_ANOTHER}",
            linked.join(", ")
        );
        log::say(system, PART, &line);
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

/// The card to use, once it has a link: after the last one, or the first. All are switched on meanwhile, since a card
/// that is off shows none.
fn wait_for_link(system: &System, config: &NetworkConfig, last: Option<&str>) -> Result<String> {
    let mut looks = 0;
    // Since there is a link: another card's, which goes before, may come up a little later.
    let mut linked_looks = 0;
    loop {
        let cards = cards::all(system);
        let wanted: Vec<Card> = cards
            .iter()
            .filter(|card| card.is(&config.interface))
            .cloned()
            .collect();
        // One that cannot be switched on must not keep the node from the others.
        let broken = switch_on(system, &wanted);
        let has_waited = LINK_INTERVAL * linked_looks >= cards::SETTLE;
        if let Some(card) = cards::choose(&wanted, has_waited, last) {
            if !broken.is_empty() {
                log::say(system, PART, broken.trim_start());
            }
            return Ok(card.to_owned());
        }
        if !cards::linked(&wanted).is_empty() {
            linked_looks += 1;
            std::thread::sleep(LINK_INTERVAL);
            continue;
        }
        let problem = cards::why_no_link(&cards, &config.interface) + &broken;
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

/// Switches cards on that have no link. What is wrong with those that cannot be; empty if nothing is.
fn switch_on(system: &System, cards: &[Card]) -> String {
    let off = cards.iter().filter(|card| !card.has_link);
    let broken = off.filter_map(|card| {
        let outcome = ip(system, &["link", "set", &card.name, "up"]);
        let error = outcome.err()?;
        Some(format!(" {} cannot be switched on: {error:#}.", card.name))
    });
    broken.collect()
}

/// What `udhcpc` calls when something happened; what it learnt is in the environment.
///
/// # Errors
///
/// Addresses that cannot be set; also in the state.
pub(crate) fn event(system: &System, event: &str) -> Result<()> {
    let lease = Lease::from(|name| std::env::var(name).unwrap_or_default());
    let outcome = take(system, event, &lease);
    if let Ok(Then::End) = outcome {
        // udhcpc is the parent of what it calls. init starts the network again, which takes the next card.
        let client = getppid().context("udhcpc has ended")?;
        kill_process(client, Signal::TERM).context("ending udhcpc")?;
    }
    outcome.map(drop).inspect_err(|error| {
        let _ = state::set_problem(system, PART, &format!("{error:#}"));
    })
}

/// What `udhcpc` is to do after an event.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// As it does by itself.
    GoOn,
    /// It is to end: it is another card's turn.
    End,
}

fn take(system: &System, event: &str, lease: &Lease) -> Result<Then> {
    match event {
        "deconfig" => deconfigure(system, lease)?,
        "bound" | "renew" => apply(system, lease)?,
        // udhcpc asks again by itself.
        "nak" => no_answer(system, "the DHCP server refuses an address")?,
        "leasefail" => return no_lease(system, lease),
        other => bail!("udhcpc says {other:?}, which is not known"),
    }
    Ok(Then::GoOn)
}

fn deconfigure(system: &System, lease: &Lease) -> Result<()> {
    // The addresses of the other family are the kernel's: routers announce them.
    ip(system, &["-4", "addr", "flush", "dev", &lease.interface])?;
    ip(system, &["link", "set", &lease.interface, "up"])?;
    state::change(system, PART, |network| {
        let mut about = json!({ "state": ASKING, "mode": "dhcp", "interface": lease.interface });
        // It is the next card's turn: what the others brought is still so.
        if network["state"] == ASKING && network["asked"].is_array() {
            for kept in ["asked", "problem"] {
                about[kept] = network[kept].take();
            }
        }
        *network = about;
    })
}

/// Notes that nobody answers on a card. udhcpc would go on with it; if the choice of the card was the node's own and
/// another one has a link, that is asked next.
fn no_lease(system: &System, lease: &Lease) -> Result<Then> {
    let card = &lease.interface;
    let mut asked: Vec<String> = asked(system);
    if !asked.contains(card) {
        asked.push(card.clone());
    }
    no_answer(
        system,
        &format!("no DHCP server answers on {}", asked.join(", ")),
    )?;
    let (config, _) = NodeConfig::load(system);
    let cards = cards::all(system);
    let has_other = cards::linked(&cards)
        .iter()
        .any(|linked| *linked != card.as_str());
    let is_next = has_other && config.network.interface.is_empty();
    state::change(system, PART, |network| {
        network["asked"] = json!(asked);
        network["interface"] = json!(card);
        network["state"] = if is_next { NEXT_CARD } else { ASKING }.into();
    })?;
    Ok(if is_next { Then::End } else { Then::GoOn })
}

/// The cards that nobody answered on, since there was an address last.
fn asked(system: &System) -> Vec<String> {
    let state = state::read(system);
    let asked = state
        .get(PART)
        .and_then(|network| network["asked"].as_array());
    let names = asked.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
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
    let routed = lease.router.map_or(Ok(()), |router| {
        let router = router.to_string();
        // The lease of a single address has its router outside: it is told that the router is on the card's network.
        let words = route_words(&lease.interface, &router);
        ip(system, &[&words[..], &["onlink"]].concat())
    });
    let router = lease.router.filter(|_| routed.is_ok());
    let (config, _) = NodeConfig::load(system);
    let dns = if config.network.dns.is_empty() {
        &lease.dns
    } else {
        &config.network.dns
    };
    resolv(system, dns)?;
    let about = json!({
        "state": "up", "mode": "dhcp", "interface": lease.interface, "address": address,
        "gateway": router, "dns": dns, "time_servers": lease.time_servers,
    });
    // Without its router the node still is where the address says.
    state::set(system, PART, about)?;
    routed.context("the router that DHCP names cannot be used")
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
    use crate::cards::tests::put;
    use crate::data::tests::program;

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
        assert_eq!(
            state::problem(&system, PART),
            "no DHCP server answers on eth0"
        );
        lease.address = "192.0.2.10".parse().ok();
        take(&system, "bound", &lease).unwrap();
        assert_eq!(state::problem(&system, PART), "");
        assert!(take(&system, "magic", &lease).is_err());
    }

    #[test]
    fn where_no_server_answers_the_next_card_with_a_link_is_asked() {
        let (_folder, system) = node("/bin/true");
        put(&system, "eth0", Some(3), true);
        put(&system, "eth1", Some(4), true);
        let config = NetworkConfig::default();
        let mut last = None;
        // Round and round, with one text for all that were asked.
        for (card, problem) in [
            ("eth0", "no DHCP server answers on eth0"),
            ("eth1", "no DHCP server answers on eth0, eth1"),
            ("eth0", "no DHCP server answers on eth0, eth1"),
        ] {
            assert_eq!(
                wait_for_link(&system, &config, last.as_deref()).unwrap(),
                card
            );
            let lease = lease(&[("interface", card)]);
            assert_eq!(take(&system, "deconfig", &lease).unwrap(), Then::GoOn);
            assert_eq!(take(&system, "leasefail", &lease).unwrap(), Then::End);
            assert_eq!(state::problem(&system, PART), problem);
            last = last_card(&system);
            assert_eq!(last.as_deref(), Some(card));
            assert_eq!(last_card(&system), None, "its turn comes once");
        }
        // A server answers: all that was is forgotten.
        let lease = lease(&[("interface", "eth1"), ("ip", "192.0.2.10")]);
        take(&system, "bound", &lease).unwrap();
        assert!(asked(&system).is_empty());
        take(&system, "deconfig", &lease).unwrap();
        assert_eq!(state::problem(&system, PART), "");
    }

    #[test]
    fn a_card_that_is_named_or_the_only_one_with_a_link_is_asked_for_ever() {
        let (_folder, system) = node("/bin/true");
        put(&system, "eth0", Some(3), true);
        put(&system, "eth1", Some(4), false);
        let lease = lease(&[("interface", "eth0")]);
        assert_eq!(take(&system, "leasefail", &lease).unwrap(), Then::GoOn);
        put(&system, "eth1", None, true);
        std::fs::create_dir_all(system.data("config")).unwrap();
        let text = "[network]\ninterface = 'eth0'\n";
        std::fs::write(system.data("config/node.toml"), text).unwrap();
        assert_eq!(take(&system, "leasefail", &lease).unwrap(), Then::GoOn);
        assert_eq!(last_card(&system), None);
    }

    /// A node whose `ip` is a script.
    fn node_with(script: &str) -> (tempfile::TempDir, System) {
        let (folder, system) = node("/bin/true");
        std::fs::remove_file(system.path("sbin/ip")).unwrap();
        program(&system, "sbin/ip", script);
        (folder, system)
    }

    #[test]
    fn a_card_that_cannot_be_switched_on_leaves_the_others() {
        let (_folder, system) = node_with("case $3 in eth0) echo no firmware >&2; exit 1;; esac");
        put(&system, "eth0", Some(3), false);
        put(&system, "eth1", Some(4), false);
        let broken = switch_on(&system, &cards::all(&system));
        assert!(
            broken.contains("eth0 cannot be switched on: ") && broken.contains("no firmware"),
            "{broken}"
        );
        assert!(!broken.contains("eth1 "), "{broken}");
        put(&system, "eth1", None, true);
        let config = NetworkConfig {
            interface: "eth1".into(),
            ..NetworkConfig::default()
        };
        assert_eq!(wait_for_link(&system, &config, None).unwrap(), "eth1");
    }

    #[test]
    fn a_lease_whose_router_cannot_be_used_leaves_its_address_and_name_servers() {
        let script = "case \"$*\" in *route*) echo unreachable >&2; exit 1;; esac";
        let (_folder, system) = node_with(script);
        let lease = lease(&[
            ("interface", "eth0"),
            ("ip", "192.0.2.10"),
            ("mask", "32"),
            ("router", "198.51.100.1"),
            ("dns", "192.0.2.3"),
        ]);
        let error = take(&system, "bound", &lease).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("the router that DHCP names cannot be used")
                && error.contains("unreachable"),
            "{error}"
        );
        let state = &state::read(&system)[PART];
        assert_eq!(
            (&state["state"], &state["address"]),
            (&json!("up"), &json!("192.0.2.10/32"))
        );
        assert_eq!(state["gateway"], Value::Null);
        assert_eq!(
            std::fs::read_to_string(system.run("resolv.conf")).unwrap(),
            "nameserver 192.0.2.3\n"
        );
    }

    #[test]
    fn a_router_outside_the_prefix_is_told_to_be_on_the_cards_network() {
        let (_folder, system) =
            node_with("case \"$*\" in *route*) echo \"$*\" > \"$0.said\";; esac");
        let lease = lease(&[
            ("interface", "eth0"),
            ("ip", "192.0.2.10"),
            ("mask", "32"),
            ("router", "198.51.100.1"),
        ]);
        take(&system, "bound", &lease).unwrap();
        assert_eq!(
            std::fs::read_to_string(system.path("sbin/ip.said")).unwrap(),
            "-4 route replace default via 198.51.100.1 dev eth0 onlink\n"
        );
        assert_eq!(state::read(&system)[PART]["gateway"], "198.51.100.1");
    }
}
