//! Addresses and routers that are in force: those of IPv4 as the node's network program set them, those of IPv6 as the
//! kernel has them, since routers announce them to it.

use std::net::Ipv6Addr;

use serde_json::Value;
use truthdb_installer::platform::System;

/// Where the node can be reached, and what is the way out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// IPv4: the address with its prefix length, and the card.
    pub(crate) ipv4: String,
    /// IPv6, as far as it is valid everywhere: the same.
    pub(crate) ipv6: Vec<String>,
    /// Routers that know the way to everywhere.
    pub(crate) gateways: Vec<String>,
}

impl Addresses {
    /// Looks; `network` is the network's part of the node's state.
    pub(crate) fn look(system: &System, network: &Value) -> Addresses {
        let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
        let (address, card) = (text("address"), text("interface"));
        let with_card = |address: String, card: &str| format!("{address}  ({card})");
        let in_kernel = ipv6(&system.text("proc/net/if_inet6"));
        let mut ipv6: Vec<String> = in_kernel
            .into_iter()
            .map(|(address, card)| with_card(address, &card))
            .collect();
        let mut ipv4 = String::new();
        if !address.is_empty() {
            let shown = with_card(address, &card);
            if !shown.contains(':') {
                ipv4 = shown;
            } else if !ipv6.contains(&shown) {
                // Just set: the kernel has not listed it yet.
                ipv6.insert(0, shown);
            }
        }
        let mut gateways = ipv6_routers(&system.text("proc/net/ipv6_route"));
        let gateway = text("gateway");
        if !gateway.is_empty() && !gateways.contains(&gateway) {
            gateways.insert(0, gateway);
        }
        Addresses {
            ipv4,
            ipv6,
            gateways,
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

/// Global addresses with their cards, of `/proc/net/if_inet6`; not those that another machine has as well.
fn ipv6(text: &str) -> Vec<(String, String)> {
    const GLOBAL: &str = "00";
    const IS_DUPLICATE: u32 = 0x08;
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, _, prefix, scope, flags, card] = fields[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        if scope != GLOBAL || flags & IS_DUPLICATE != 0 {
            return None;
        }
        let prefix = u8::from_str_radix(prefix, 16).ok()?;
        Some((format!("{}/{prefix}", hex(address)?), card.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Routers of the routes to everywhere, of `/proc/net/ipv6_route`.
fn ipv6_routers(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [to, "00", _, _, router, ..] = fields[..] else {
            return None;
        };
        let router = hex(router)?;
        let is_one = hex(to)?.is_unspecified() && !router.is_unspecified();
        is_one.then(|| router.to_string())
    };
    let mut routers: Vec<String> = text.lines().filter_map(line).collect();
    routers.sort();
    routers.dedup();
    routers
}

fn hex(digits: &str) -> Option<Ipv6Addr> {
    let number = u128::from_str_radix(digits, 16).ok()?;
    Some(Ipv6Addr::from_bits(number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INET6: &str = "\
fe80000000000000e87f42fffea91dad 03 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000001 03 40 00 c0     eth0
20010db8000000000000000000000002 03 40 00 c8     eth0
nonsense
";
    const NOWHERE: &str = "00000000000000000000000000000000";

    /// A route to a neighbourhood, one to everywhere, and the one that refuses what no other takes.
    fn routes() -> String {
        format!(
            "20010db8000000000000000000000000 40 {NOWHERE} 00 {NOWHERE} 00000100 1 0 1 eth0\n\
             {NOWHERE} 00 {NOWHERE} 00 fe800000000000000000000000000002 00000400 1 0 3 eth0\n\
             {NOWHERE} 00 {NOWHERE} 00 {NOWHERE} ffffffff 1 0 200200 lo\nnonsense\n"
        )
    }

    fn system() -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/net")).unwrap();
        std::fs::write(folder.path().join("proc/net/if_inet6"), INET6).unwrap();
        std::fs::write(folder.path().join("proc/net/ipv6_route"), routes()).unwrap();
        let system = System::at(folder.path());
        (folder, system)
    }

    #[test]
    fn all_addresses_and_routers_are_found() {
        let (_folder, system) = system();
        let network = json!({
            "interface": "eth0", "address": "192.0.2.10/24", "gateway": "192.0.2.1"
        });
        let found = Addresses::look(&system, &network);
        assert_eq!(found.ipv4, "192.0.2.10/24  (eth0)");
        assert_eq!(found.ipv6, ["2001:db8::1/64  (eth0)"]);
        assert_eq!(found.gateways, ["192.0.2.1", "fe80::2"]);
    }

    #[test]
    fn a_fixed_address_of_ipv6_is_shown_once() {
        let (_folder, system) = system();
        let network = |address: &str| json!({ "interface": "eth0", "address": address, "gateway": "fe80::2" });
        let found = Addresses::look(&system, &network("2001:db8::1/64"));
        assert_eq!(found.ipv4, "");
        assert_eq!(found.ipv6, ["2001:db8::1/64  (eth0)"]);
        assert_eq!(found.gateways, ["fe80::2"]);
        let found = Addresses::look(&system, &network("2001:db8::9/64"));
        assert_eq!(found.ipv6.len(), 2);
    }

    #[test]
    fn a_machine_without_a_network_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let found = Addresses::look(&System::at(folder.path()), &Value::Null);
        assert!(found.is_empty() && found.gateways.is_empty());
    }
}
