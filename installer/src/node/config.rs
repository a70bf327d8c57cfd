//! Configuration as a pure function of the machine.
//!
//! | value | from |
//! |---|---|
//! | name | `truthdb-` and six digits of the machine's UUID, else of the first hardware address, else of nothing |
//! | partitions | one for each two processors, 1 to 16 |
//! | read cache | a sixteenth of the memory, 64 MiB to 8 GiB |
//! | tail cache of a partition | a thirty-second of the memory for all partitions together, 16 to 256 MiB each |
//! | bytes of requests at once | a sixteenth of the memory, 64 MiB to 1 GiB |
//!
//! So at most some seventh of the memory is spoken for: the rest is the kernel's and what connections need.

use crate::flow::{Hardware, Network, Settings};
use crate::plan::Sha256;

const MIB: u64 = 1 << 20;
/// Digits of the machine's identity in its name.
const NAME_DIGITS: usize = 6;
/// A time server that answers everywhere.
const TIME_SERVER: &str = "pool.ntp.org";

/// What is set for a machine before anybody changes it.
#[must_use]
pub fn default_settings(hardware: &Hardware) -> Settings {
    let mac = hardware.network.iter().map(|device| &device.mac);
    let mac = mac.min().map(String::as_str).unwrap_or_default();
    let identity = hardware
        .uuid
        .map_or_else(|| mac.to_owned(), |uuid| uuid.to_string());
    let name = if identity.is_empty() {
        "truthdb".to_owned()
    } else {
        let digits = Sha256::of(identity.as_bytes()).to_string();
        format!("truthdb-{}", &digits[..NAME_DIGITS])
    };
    Settings {
        hostname: name,
        network: Network::Dhcp,
        partitions: (hardware.cpus / 2).clamp(1, 16),
        time_server: TIME_SERVER.to_owned(),
        serial_console: true,
    }
}

/// A part of the memory in whole MiB, within bounds.
fn part(memory_bytes: u64, divisor: u64, (least, most): (u64, u64)) -> u64 {
    (memory_bytes / divisor / MIB).clamp(least, most)
}

/// The server's configuration.
#[must_use]
pub fn server_toml(hardware: &Hardware) -> String {
    let memory = hardware.memory_bytes;
    let partitions = u64::from(default_settings(hardware).partitions);
    let read_cache = part(memory, 16, (64, 8 << 10));
    let tail_cache = part(memory, 32 * partitions, (16, 256));
    let inflight = part(memory, 16, (64, 1 << 10));
    format!(
        "\
# Made by the installer from this machine's memory and processors. Every key is explained in docs/config.md.

[data]
directory = \"/data\"

[listen]
http = \"0.0.0.0:7433\"
native = \"0.0.0.0:7434\"

[tls]
mode = \"self-signed\"

[auth]
enabled = true

[engine]
read_cache_bytes = \"{read_cache} MiB\"
tail_cache_bytes = \"{tail_cache} MiB\"

[limits]
inflight_bytes_max = \"{inflight} MiB\"
"
    )
}

/// The appliance's own configuration: name, network, time, console.
#[must_use]
pub fn node_toml(hardware: &Hardware, settings: &Settings) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let list = |text: &str| {
        if text.is_empty() {
            "[]".to_owned()
        } else {
            format!("[{}]", quoted(text))
        }
    };
    let machine = hardware
        .uuid
        .map(|uuid| uuid.to_string())
        .unwrap_or_default();
    let (mode, address, gateway, dns) = match &settings.network {
        Network::Dhcp => ("dhcp", "", "", ""),
        Network::Static {
            address,
            gateway,
            dns,
        } => ("static", &address[..], &gateway[..], &dns[..]),
    };
    let mut text = format!(
        "\
# Made by the installer.
hostname = {}
machine = {}
partitions = {}
time_servers = {}
serial_console = {}

[network]
mode = {}
",
        quoted(&settings.hostname),
        quoted(&machine),
        settings.partitions,
        list(&settings.time_server),
        settings.serial_console,
        quoted(mode),
    );
    if mode == "static" {
        text.push_str(&format!("address = {}\n", quoted(address)));
        if !gateway.is_empty() {
            text.push_str(&format!("gateway = {}\n", quoted(gateway)));
        }
        text.push_str(&format!("dns = {}\n", list(dns)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{NetworkDevice, SecureBoot};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn hardware(cpus: u32, memory_bytes: u64) -> Hardware {
        Hardware {
            product: String::new(),
            uuid: Some(Uuid::from_u128(7)),
            cpus,
            cpu_model: String::new(),
            memory_bytes,
            efi_variables: true,
            efi: true,
            secure_boot: SecureBoot::Off,
            system_is_signed: false,
            network: vec![NetworkDevice {
                name: "eth0".into(),
                mac: "52:54:00:12:34:56".into(),
                link: None,
            }],
            clock_s: 0,
            sent_to_disk_s: None,
        }
    }

    #[test]
    fn the_same_machine_gives_the_same_bytes() {
        let text = server_toml(&hardware(8, 16 << 30));
        assert_eq!(text, server_toml(&hardware(8, 16 << 30)));
        assert!(text.contains("read_cache_bytes = \"1024 MiB\""), "{text}");
        assert!(text.contains("tail_cache_bytes = \"128 MiB\""), "{text}");
        let mut other = hardware(8, 16 << 30);
        other.clock_s = 9;
        other.network[0].link = Some(true);
        assert_eq!(
            default_settings(&other),
            default_settings(&hardware(8, 16 << 30))
        );
    }

    #[test]
    fn the_name_follows_from_the_uuid_else_from_the_address() {
        let with_uuid = default_settings(&hardware(1, 0)).hostname;
        let mut other = hardware(1, 0);
        other.uuid = None;
        let with_mac = default_settings(&other).hostname;
        other.network.clear();
        let bare = default_settings(&other).hostname;
        assert_eq!(bare, "truthdb");
        assert!(with_uuid.starts_with("truthdb-") && with_mac.starts_with("truthdb-"));
        assert_ne!(with_uuid, with_mac);
    }

    proptest! {
        /// Any machine gets a file that parses, with sizes in the bounds that the server accepts.
        #[test]
        fn any_machine_gets_a_usable_configuration(
            cpus in 1u32..1000,
            memory in any::<u64>(),
            name in "[a-z0-9\"\\\\]{1,20}",
        ) {
            let hardware = hardware(cpus, memory);
            let server: toml::Table = toml::from_str(&server_toml(&hardware)).unwrap();
            let mib = |section: &str, key: &str| {
                let text = server[section][key].as_str().unwrap().to_owned();
                text.strip_suffix(" MiB").unwrap().parse::<u64>().unwrap()
            };
            prop_assert!((64..=8192).contains(&mib("engine", "read_cache_bytes")));
            prop_assert!((16..=256).contains(&mib("engine", "tail_cache_bytes")));
            prop_assert!((64..=1024).contains(&mib("limits", "inflight_bytes_max")));
            let mut settings = default_settings(&hardware);
            settings.hostname = name.clone();
            settings.network = Network::Static {
                address: "10.0.0.1/8".into(),
                gateway: String::new(),
                dns: name.clone(),
            };
            let node: toml::Table = toml::from_str(&node_toml(&hardware, &settings)).unwrap();
            prop_assert_eq!(node["hostname"].as_str(), Some(&name[..]));
            prop_assert_eq!(node["network"]["dns"][0].as_str(), Some(&name[..]));
            prop_assert_eq!(node["partitions"].as_integer(), Some(i64::from(settings.partitions)));
        }
    }
}
