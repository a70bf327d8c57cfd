//! Configuration as a pure function of the machine.
//!
//! | value | from |
//! |---|---|
//! | name | `truthdb-` and six digits of the machine's UUID, else of the first hardware address, else of nothing |
//! | partitions | one for each two processors, 1 to 16, and no more than the memory holds |
//! | read cache | a sixteenth of the memory, 64 MiB to 8 GiB |
//! | tail cache of a partition | a thirty-second of the memory for all partitions together, 1 to 256 MiB each |
//! | bytes of requests at once | a sixteenth of the memory, 64 MiB to 1 GiB |
//! | machine | its UUID, else its lowest hardware address, else nothing |
//!
//! So at most a fifth of the memory is spoken for here. Each partition remembers events and streams besides, which
//! takes some 32 MiB when it is full: more partitions than take half of the memory are refused.

use crate::flow::{Hardware, Network, Settings};
use crate::plan::{Sha256, human_bytes};

const MIB: u64 = 1 << 20;
/// Digits of the machine's identity in its name.
const NAME_DIGITS: usize = 6;
/// A time server that answers everywhere.
const TIME_SERVER: &str = "pool.ntp.org";
/// Memory that a machine has for each partition at least: one takes half of it, with a million event ids, 65 536
/// streams and its buffers, as the server keeps them unless it is told otherwise.
const MEMORY_BYTES_EACH: u64 = 64 * MIB;
/// The hardware address of a device that has none.
const NO_MAC: &str = "00:00:00:00:00:00";

/// Partitions that a machine's memory holds, at least 1.
fn partitions_max(hardware: &Hardware) -> u32 {
    let count = hardware.memory_bytes / MEMORY_BYTES_EACH;
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// Whether the machine's memory holds so many partitions.
///
/// # Errors
///
/// How many it holds, for people.
pub fn check_partitions(hardware: &Hardware, partitions: u32) -> Result<(), String> {
    let most = partitions_max(hardware);
    if partitions <= most {
        return Ok(());
    }
    let needed = human_bytes(u64::from(partitions) * MEMORY_BYTES_EACH);
    let memory = human_bytes(hardware.memory_bytes);
    Err(format!(
        "{partitions} database partitions need {needed} of memory, and this machine has {memory}. Choose at \
         most {most} in the settings, or add memory."
    ))
}

/// The lowest hardware address, in the order of their digits: the kernel's names may change places.
fn lowest_mac(hardware: &Hardware) -> &str {
    let macs = hardware.network.iter().map(|device| &device.mac[..]);
    let real = macs.filter(|mac| !mac.is_empty() && *mac != NO_MAC);
    real.min().unwrap_or_default()
}

/// What tells the machine from others: its UUID, else its lowest hardware address, else nothing.
fn machine_identity(hardware: &Hardware) -> String {
    let uuid = hardware.uuid.map(|uuid| uuid.to_string());
    uuid.unwrap_or_else(|| lowest_mac(hardware).to_owned())
}

/// What is set for a machine before anybody changes it.
#[must_use]
pub fn default_settings(hardware: &Hardware) -> Settings {
    let identity = machine_identity(hardware);
    let name = if identity.is_empty() {
        "truthdb".to_owned()
    } else {
        let digits = Sha256::of(identity.as_bytes()).to_string();
        format!("truthdb-{}", &digits[..NAME_DIGITS])
    };
    Settings {
        hostname: name,
        network: Network::Dhcp,
        partitions: (hardware.cpus / 2)
            .clamp(1, 16)
            .min(partitions_max(hardware)),
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
pub fn server_toml(hardware: &Hardware, settings: &Settings) -> String {
    let memory = hardware.memory_bytes;
    let partitions = u64::from(settings.partitions.max(1));
    let read_cache = part(memory, 16, (64, 8 << 10));
    let tail_cache = part(memory, 32 * partitions, (1, 256));
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
    let machine = machine_identity(hardware);
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
    use crate::flow::{MEMORY_BYTES_MIN, NetworkDevice, SecureBoot};
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
        let server = |hardware: &Hardware| server_toml(hardware, &default_settings(hardware));
        let text = server(&hardware(8, 16 << 30));
        assert_eq!(text, server(&hardware(8, 16 << 30)));
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

    #[test]
    fn the_machine_is_its_uuid_else_its_lowest_address_whatever_the_order() {
        let machine = |hardware: &Hardware| {
            let text = node_toml(hardware, &default_settings(hardware));
            let node: toml::Table = toml::from_str(&text).unwrap();
            node["machine"].as_str().unwrap().to_owned()
        };
        let mut some = hardware(2, 4 << 30);
        assert_eq!(machine(&some), Uuid::from_u128(7).to_string());
        some.uuid = None;
        let device = |name: &str, mac: &str| NetworkDevice {
            name: name.into(),
            mac: mac.into(),
            link: None,
        };
        some.network = vec![
            device("eth0", "52:54:00:12:34:57"),
            device("eth1", "52:54:00:12:34:56"),
            device("eth2", "00:00:00:00:00:00"),
            device("eth3", ""),
        ];
        let one = (machine(&some), default_settings(&some).hostname);
        assert_eq!(one.0, "52:54:00:12:34:56");
        some.network.reverse();
        assert_eq!((machine(&some), default_settings(&some).hostname), one);
        some.network.clear();
        assert_eq!(machine(&some), "");
    }

    #[test]
    fn more_partitions_than_the_memory_holds_are_refused_with_the_most() {
        let small = hardware(16, 1 << 30);
        assert_eq!(check_partitions(&small, 16), Ok(()));
        let said = check_partitions(&small, 256).unwrap_err();
        assert!(
            said.contains("at most 16") && said.contains("17.1 GB"),
            "{said}"
        );
        assert_eq!(check_partitions(&hardware(1, 16 << 30), 256), Ok(()));
        // A machine that does not say what it has still gets one.
        assert_eq!(check_partitions(&hardware(1, 0), 1), Ok(()));
        assert_eq!(default_settings(&hardware(64, 512 << 20)).partitions, 8);
    }

    proptest! {
        /// Any machine gets a file that parses, with sizes in the bounds that the server accepts.
        #[test]
        fn any_machine_gets_a_usable_configuration(
            cpus in 1u32..1000,
            memory in prop_oneof![any::<u64>(), (900u64 << 20)..(64 << 30)],
            name in "[a-z0-9\"\\\\]{1,20}",
            partitions in 1u32..=256,
        ) {
            let hardware = hardware(cpus, memory);
            let mut settings = default_settings(&hardware);
            prop_assert!(check_partitions(&hardware, settings.partitions).is_ok());
            settings.partitions = partitions.min(partitions_max(&hardware));
            let text = server_toml(&hardware, &settings);
            let server: toml::Table = toml::from_str(&text).unwrap();
            let mib = |section: &str, key: &str| {
                let text = server[section][key].as_str().unwrap().to_owned();
                text.strip_suffix(" MiB").unwrap().parse::<u64>().unwrap()
            };
            prop_assert!((64..=8192).contains(&mib("engine", "read_cache_bytes")));
            prop_assert!((1..=256).contains(&mib("engine", "tail_cache_bytes")));
            prop_assert!((64..=1024).contains(&mib("limits", "inflight_bytes_max")));
            let tails = u64::from(settings.partitions) * mib("engine", "tail_cache_bytes");
            let sum = mib("engine", "read_cache_bytes") + tails + mib("limits", "inflight_bytes_max");
            if memory >= MEMORY_BYTES_MIN {
                prop_assert!(tails <= memory / 32 / MIB);
                prop_assert!(sum <= memory / 5 / MIB, "{} MiB of {}", sum, memory / MIB);
            }
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
