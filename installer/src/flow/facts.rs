//! What is known of the machine, as plain values: [`crate::platform`] finds them, the flow decides on
//! them, the screens show them.

use uuid::Uuid;

use crate::plan::{DATA_LABEL, DISK_BYTES_MIN, OldPartition, Sha256, TargetIdentity};

/// Least memory of a machine that TruthDB is installed on, in bytes. Firmware keeps some of a GiB.
pub const MEMORY_BYTES_MIN: u64 = 900 << 20;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkDevice {
    /// The kernel's name, for instance `eth0`.
    pub name: String,
    /// Its hardware address, in lower case with colons.
    pub mac: String,
    /// Whether a cable is plugged in; `None` when the device does not say.
    pub link: Option<bool>,
}

/// Whether the firmware checks what it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecureBoot {
    /// It does.
    On,
    /// It does not.
    Off,
    /// It does not say.
    Unknown,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// Maker and model, as the firmware tells them; may be empty.
    pub product: String,
    /// The machine's UUID, if the firmware tells a usable one.
    pub uuid: Option<Uuid>,
    /// Processors that are online.
    pub cpus: u32,
    /// Model of the first processor; may be empty.
    pub cpu_model: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Whether the machine was started by UEFI, and boot entries can be kept.
    pub efi_variables: bool,
    /// Whether it was started by UEFI at all.
    pub efi: bool,
    /// Secure Boot.
    pub secure_boot: SecureBoot,
    /// Whether the system that this medium installs carries a signature, which Secure Boot asks for.
    pub system_is_signed: bool,
    /// Network devices, by name.
    pub network: Vec<NetworkDevice>,
    /// Seconds since 1970 by the machine's clock.
    pub clock_s: u64,
    /// The same, when an installer last sent this machine to its disk; `None` if none has.
    pub sent_to_disk_s: Option<u64>,
}

/// How a check of the machine went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Well.
    Good,
    /// It works, and should be known.
    Doubtful,
    /// It cannot work.
    Bad,
}

/// A check of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// How it went.
    pub verdict: Verdict,
    /// What was looked at, and what to do about it.
    pub text: String,
}

/// A machine that is back on the medium this soon, in seconds, does not start its disk.
const BACK_SOON_S: u64 = 15 * 60;
/// What a device says that has no hardware address.
const NO_MAC: &str = "00:00:00:00:00:00";
/// The first second of 2025: a clock before it was never set.
const CLOCK_PLAUSIBLE_S: u64 = 1_735_689_600;

impl Hardware {
    /// The checks, those that went badly first.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut add = |verdict, text: &str| {
            checks.push(Check {
                verdict,
                text: text.to_owned(),
            });
        };
        if self.memory_bytes < MEMORY_BYTES_MIN {
            add(
                Verdict::Bad,
                "Too little memory: TruthDB needs 1 GiB. Add memory.",
            );
        }
        if !self.efi {
            add(
                Verdict::Bad,
                "Not started by UEFI: the disk could not boot. Turn off legacy boot (CSM) in the \
                 firmware's settings, and start this medium again.",
            );
        } else if !self.efi_variables {
            add(
                Verdict::Doubtful,
                "The firmware keeps no boot entries here: the disk will start by its fallback path.",
            );
        }
        if self.secure_boot == SecureBoot::On && !self.system_is_signed {
            add(
                Verdict::Bad,
                "Secure Boot is on, and the system on this medium is not signed: the disk would not start. \
                 Turn Secure Boot off in the firmware's settings, or make a medium whose system is signed too.",
            );
        } else if self.secure_boot == SecureBoot::On {
            add(
                Verdict::Doubtful,
                "Secure Boot is on: the installed system starts only if its signature is trusted \
                 by this firmware, as this medium's is.",
            );
        }
        if self.network.is_empty() {
            add(
                Verdict::Doubtful,
                "No network device is known. TruthDB can be installed, and nobody will reach it.",
            );
        }
        if self.clock_s < CLOCK_PLAUSIBLE_S {
            add(
                Verdict::Doubtful,
                "The machine's clock is not set. Its time server will set it after the start.",
            );
        }
        if checks.is_empty() {
            checks.push(Check {
                verdict: Verdict::Good,
                text: "This machine can run TruthDB.".to_owned(),
            });
        }
        checks.sort_by_key(|check| match check.verdict {
            Verdict::Bad => 0,
            Verdict::Doubtful => 1,
            Verdict::Good => 2,
        });
        checks
    }

    /// Whether the machine was sent to its disk a moment ago, and came back.
    #[must_use]
    pub fn is_back_soon(&self) -> bool {
        self.sent_to_disk_s
            .and_then(|sent_s| self.clock_s.checked_sub(sent_s))
            .is_some_and(|since_s| since_s < BACK_SOON_S)
    }

    /// Whether the machine tells nothing that is its own, so that a name cannot follow from it.
    #[must_use]
    pub fn is_nameless(&self) -> bool {
        let tells = |device: &NetworkDevice| !matches!(&device.mac[..], "" | NO_MAC);
        self.uuid.is_none() && !self.network.iter().any(tells)
    }

    /// Whether nothing stands against an installation.
    #[must_use]
    pub fn is_sufficient(&self) -> bool {
        self.checks()
            .iter()
            .all(|check| check.verdict != Verdict::Bad)
    }
}

/// A TruthDB that is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSystem {
    /// Version of the system on its EFI system partition; the reason when it cannot be read.
    pub version: Result<String, String>,
    /// Hash of the answers that ordered it, if it was answers and they can be read.
    pub answers: Option<Sha256>,
    /// Whether the primary partition table is valid. An installation writes it last.
    pub has_primary_table: bool,
    /// Whether the installation was verified to its end, as far as the system can say.
    pub is_complete: bool,
    /// Whether the system was put beside data that was there already: a keep or a repair.
    pub is_kept: bool,
    /// Whether the data partition's file system is there, and was never mounted: no node has ever run on it.
    pub is_unused: bool,
}

impl FoundSystem {
    /// Whether it is what an installation by these answers leaves that was interrupted: nobody has seen
    /// its token. What has neither a table nor a system was interrupted before it said whose it is.
    ///
    /// A node whose system was being replaced, or whose disk was damaged at its beginning, looks much the
    /// same, and holds data: what has ever run, or was kept, is a node.
    #[must_use]
    pub fn is_cut_off(&self, answers: Sha256) -> bool {
        let is_begun = !self.is_complete && self.answers == Some(answers);
        let has_no_system = !self.has_primary_table && self.version.is_err();
        self.is_unused && !self.is_kept && (is_begun || has_no_system)
    }

    /// Whether these answers were carried out to the end.
    #[must_use]
    pub fn is_done(&self, answers: Sha256) -> bool {
        self.has_primary_table && self.is_complete && self.answers == Some(answers)
    }

    /// Whether a version is lower than the one on the disk, as far as both have numbers.
    #[must_use]
    pub fn is_newer_than(&self, version: &str) -> bool {
        let found = self.version.as_ref().ok();
        let found = found.and_then(|found| version_numbers(found));
        found
            .zip(version_numbers(version))
            .is_some_and(|(found, given)| found > given)
    }

    /// What it is called.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.version {
            Ok(version) if self.is_complete => format!("TruthDB {version}"),
            Ok(version) => format!("TruthDB {version}, whose installation was not finished"),
            Err(_) => "TruthDB, whose system is damaged".to_owned(),
        }
    }
}

/// The three numbers of a version such as `1.20.3-rc1`.
fn version_numbers(version: &str) -> Option<[u64; 3]> {
    let end = version.find(['-', '+', '_']).unwrap_or(version.len());
    let mut parts = version[..end].split('.').map(str::parse::<u64>);
    let mut next = || parts.next()?.ok();
    let numbers = [next()?, next()?, next()?];
    parts.next().is_none().then_some(numbers)
}

/// A disk, with what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Which one it is.
    pub identity: TargetIdentity,
    /// How it is attached: `nvme`, `sata`, `usb`, `virtio` and the like.
    pub bus: String,
    /// What was found on it, one finding each; empty for an empty disk.
    pub contents: Vec<String>,
    /// Its partitions.
    pub partitions: Vec<OldPartition>,
    /// GUID of the disk, where it has a valid GPT.
    pub disk_id: Option<Uuid>,
    /// The TruthDB on it, if its partitions are those of one.
    pub truthdb: Option<FoundSystem>,
    /// Why it is not offered; `None` for one that is.
    pub refused: Option<String>,
}

impl Disk {
    /// Whether it is large enough.
    #[must_use]
    pub fn is_large_enough(&self) -> bool {
        self.identity.size_bytes >= DISK_BYTES_MIN
    }

    /// Whether it has a data partition that a node would take for its own.
    #[must_use]
    pub fn holds_data(&self) -> bool {
        self.partitions.iter().any(|old| old.name == DATA_LABEL)
    }

    /// Whether it is this disk, by whatever path.
    #[must_use]
    pub fn is(&self, target: &TargetIdentity) -> bool {
        let same = |one: &str, other: &str| !one.is_empty() && one == other;
        let one = &self.identity;
        let has_same_name = same(&one.serial, &target.serial)
            && (&one.model, one.size_bytes) == (&target.model, target.size_bytes);
        one.path == target.path || same(&one.wwn, &target.wwn) || has_same_name
    }

    /// What a person types to have it erased: the last characters of its serial number, or a word.
    #[must_use]
    pub fn confirmation(&self) -> String {
        const CHARS: usize = 6;
        const CHARS_MIN: usize = 4;
        let serial: Vec<char> = self
            .identity
            .serial
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        if serial.len() < CHARS_MIN {
            return "ERASE".to_owned();
        }
        let text: String = serial[serial.len().saturating_sub(CHARS)..]
            .iter()
            .collect();
        text.to_ascii_uppercase()
    }

    /// Its model and size, in one line.
    #[must_use]
    pub fn title(&self) -> String {
        let size = crate::plan::human_bytes(self.identity.size_bytes);
        let model = if self.identity.model.is_empty() {
            "Disk"
        } else {
            &self.identity.model
        };
        format!("{model}  ·  {size}")
    }

    /// Serial number, attachment and path, in one line.
    #[must_use]
    pub fn detail(&self) -> String {
        let serial = if self.identity.serial.is_empty() {
            "no serial number".to_owned()
        } else {
            format!("serial {}", self.identity.serial)
        };
        format!(
            "{serial}  ·  {}  ·  {}",
            self.bus,
            self.identity.path.display()
        )
    }
}
