//! Processors, memory, firmware, network devices and clock.

use std::path::Path;

use uuid::Uuid;

use super::{System, efi, image};
use crate::flow::{Hardware, NetworkDevice, SecureBoot};

/// Values that makers leave in place of a name.
const NO_NAMES: [&str; 5] = [
    "to be filled by o.e.m.",
    "default string",
    "system product name",
    "system manufacturer",
    "not specified",
];
/// UUIDs that many machines have, and that therefore name none.
const NO_UUIDS: [u128; 4] = [
    0,
    u128::MAX,
    0x0302_0100_0504_0706_0809_0a0b_0c0d_0e0f,
    0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f,
];

/// Looks at the machine, for the system in `payload`.
#[must_use]
pub fn look(system: &System, payload: &Path) -> Hardware {
    let is_name =
        |text: &String| !text.is_empty() && !NO_NAMES.contains(&text.to_ascii_lowercase().as_str());
    let names =
        ["sys_vendor", "product_name"].map(|file| system.text(&format!("sys/class/dmi/id/{file}")));
    let names: Vec<String> = names.into_iter().filter(is_name).collect();
    let cpus = system.text("proc/cpuinfo");
    let models = cpus
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let cpu_model = models
        .filter_map(|rest| rest.split_once(':'))
        .map(|(_, model)| model.split_whitespace().collect::<Vec<_>>().join(" "))
        .next();
    let count = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    Hardware {
        product: names.join(" "),
        uuid: usable_uuid(&system.text("sys/class/dmi/id/product_uuid")),
        cpus: u32::try_from(count).unwrap_or(u32::MAX).max(1),
        cpu_model: cpu_model.unwrap_or_default(),
        memory_bytes: memory_bytes(&system.text("proc/meminfo"), "MemTotal:").unwrap_or(0),
        efi: system.path("sys/firmware/efi").exists(),
        efi_variables: !system.names(efi::VARIABLES).is_empty(),
        secure_boot: secure_boot(system),
        system_is_signed: image::is_signed_file(payload),
        network: network(system),
        clock_s: clock_s(),
        sent_to_disk_s: efi::sent_to_disk_s(system),
    }
}

fn usable_uuid(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    (!NO_UUIDS.contains(&uuid.as_u128())).then_some(uuid)
}

/// Bytes of memory that programs and files in memory can still have, as the kernel estimates them.
#[must_use]
pub fn available_memory(system: &System) -> Option<u64> {
    memory_bytes(&system.text("proc/meminfo"), "MemAvailable:")
}

fn memory_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

fn secure_boot(system: &System) -> SecureBoot {
    match efi::read_global(system, "SecureBoot").as_deref() {
        Some([1, ..]) => SecureBoot::On,
        Some([0, ..]) => SecureBoot::Off,
        _ => SecureBoot::Unknown,
    }
}

/// Devices with hardware behind them, by name.
fn network(system: &System) -> Vec<NetworkDevice> {
    let names = system.names("sys/class/net");
    let is_real = |name: &String| {
        system
            .path(&format!("sys/class/net/{name}/device"))
            .exists()
    };
    names
        .into_iter()
        .filter(is_real)
        .map(|name| NetworkDevice {
            mac: system
                .text(&format!("sys/class/net/{name}/address"))
                .to_ascii_lowercase(),
            // Reading it fails while the device is down.
            link: match system
                .text(&format!("sys/class/net/{name}/carrier"))
                .as_str()
            {
                "1" => Some(true),
                "0" => Some(false),
                _ => None,
            },
            name,
        })
        .collect()
}

/// Seconds since 1970 by the machine's clock.
#[must_use]
pub fn clock_s() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0)
}

/// Milliseconds since some moment; never backwards.
#[must_use]
pub fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanoseconds) = (now.tv_sec, now.tv_nsec);
    u64::try_from(seconds).unwrap_or(0) * 1000 + u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000
}
