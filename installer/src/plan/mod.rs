//! The plan: everything an installation will do to a disk, as a value.
//!
//! A [`Plan`] is made by [`Plan::new`] from a [`Request`], a pure function: the same request gives the
//! same plan, and the same plan gives the same bytes on the disk. It names the disk by identity, every
//! partition by its first and last sector, every file by its hash, every byte range that is erased,
//! and the boot entry. People read it (as text, see [`Plan::text`]) before they confirm it, the log
//! keeps it, and [`crate::executor`] carries it out without deciding anything.
//!
//! What this module does not do: it reads no device, and writes nothing.

mod ids;
mod layout;
mod text;

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

pub use ids::{Seed, Sha256};
pub use layout::{
    DATA_BYTES_MIN, DISK_BYTES_MIN, ERASED_AT_EDGES_BYTES, ESP_BYTES, ESP_BYTES_MIN_512,
    ESP_BYTES_MIN_4096, MIB, SYSTEM_BYTES_MAX,
};
pub use text::human_bytes;

pub(crate) use layout::{cluster_bytes, merge as merge_ranges};

/// Label of the data partition and of its file system: how the runtime finds it.
pub const DATA_LABEL: &str = "truthdb-data";
/// Name of the EFI system partition in the partition table.
pub const ESP_NAME: &str = "truthdb-esp";
/// Label of the EFI system partition's file system, padded as FAT wants it.
pub const ESP_LABEL: [u8; 11] = *b"TRUTHDB-ESP";
/// Partition type of an EFI system partition (UEFI 2.10, table 5.7).
pub const ESP_TYPE: Uuid = Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
/// Partition type "Linux file system data".
pub const LINUX_TYPE: Uuid = Uuid::from_u128(0x0fc63daf_8483_4772_8e79_3d69d8477de4);
/// The path firmware starts when it has no boot entry (UEFI 2.10, 3.5.1.1).
pub const FALLBACK_PATH: &str = "EFI/BOOT/BOOTX64.EFI";
/// What the system is, on the EFI system partition.
pub(crate) const ABOUT_PATH: &str = "EFI/TruthDB/system.toml";
/// Whether an installation was verified to its end, as `system.toml` says it: at first, and then, in the
/// same place.
pub(crate) const COMPLETE: [&str; 2] = ["false", "true "];
/// Name of our boot entry in the firmware's menu.
pub const BOOT_ENTRY_NAME: &str = "TruthDB";

/// What the plan is carried out on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A whole disk. Its identity is checked again before the first write.
    Disk,
    /// An image file of the same size.
    Image,
}

/// The disk, as it was when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetIdentity {
    /// Disk or image.
    pub kind: TargetKind,
    /// Where it was found. A hint for people, never the identity.
    pub path: PathBuf,
    /// The maker's name for it; may be empty.
    pub model: String,
    /// Serial number; empty when the disk tells none.
    pub serial: String,
    /// World-wide name; empty when the disk tells none.
    pub wwn: String,
    /// Bytes of the whole disk.
    pub size_bytes: u64,
    /// Bytes of a logical sector: 512 or 4096.
    pub sector_bytes: u32,
    /// The kernel's count of disks (`diskseq`), which tells a re-plugged disk from the one seen before.
    pub disk_sequence: Option<u64>,
}

/// What systems and programs put before the digits of a world-wide name.
const WWN_PREFIXES: [&str; 7] = ["wwn-", "naa.", "eui.", "uuid.", "nvme.", "t10.", "0x"];

/// A world-wide name without what differs by who tells it: `naa.5000…` in sysfs is `0x5000…` in `lsblk`.
fn bare_wwn(name: &str) -> String {
    let mut name = name.trim().to_ascii_lowercase();
    for prefix in WWN_PREFIXES {
        if let Some(rest) = name.strip_prefix(prefix) {
            name = rest.to_owned();
        }
    }
    name.retain(|c| c != '-');
    name
}

impl TargetIdentity {
    /// Whether a person means this disk by that name: its serial number to the letter, or its world-wide name in
    /// any of its spellings.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        let wwn = bare_wwn(name);
        !name.is_empty() && (self.serial == name || (!wwn.is_empty() && bare_wwn(&self.wwn) == wwn))
    }

    /// An image file.
    #[must_use]
    pub fn image(path: PathBuf, size_bytes: u64, sector_bytes: u32) -> TargetIdentity {
        TargetIdentity {
            kind: TargetKind::Image,
            path,
            model: String::new(),
            serial: String::new(),
            wwn: String::new(),
            size_bytes,
            sector_bytes,
            disk_sequence: None,
        }
    }
}

/// What is done to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything on the disk is replaced.
    Install,
    /// The system is replaced by the one on this medium; the data partition is not written.
    ReinstallKeepData,
    /// The system that is there is made bootable again; the data partition is not written.
    RepairBoot,
}

/// The program that the disk will boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Its version: letters, digits, `.`, `-`, `_` and `+`, at most 40 of them.
    pub version: String,
    /// The unified kernel image.
    pub image: Arc<[u8]>,
}

/// A file and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// Path on its file system, without a leading `/`: letters, digits, `.`, `-`, `_`, `+` between `/`.
    pub path: String,
    /// Permission bits on the data partition; FAT has none.
    pub mode: u32,
    /// The bytes.
    pub bytes: Arc<[u8]>,
}

/// A partition that is on the disk already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldPartition {
    /// Number in its table, from 1.
    pub number: u32,
    /// First sector.
    pub first_sector: u64,
    /// Last sector, which still belongs to it.
    pub last_sector: u64,
    /// Partition type, where the table is a GPT.
    pub kind: Option<Uuid>,
    /// The partition's own identifier, where the table is a GPT.
    pub id: Option<Uuid>,
    /// Its name in a GPT; empty otherwise.
    pub name: String,
}

/// All that a plan is made from.
#[derive(Debug, Clone)]
pub struct Request {
    /// The disk.
    pub target: TargetIdentity,
    /// What to do to it.
    pub mode: Mode,
    /// Where all identifiers come from. Random for a machine, fixed for a reproducible image.
    pub seed: Seed,
    /// The time that file systems are stamped with, seconds since 1970.
    pub created_s: u64,
    /// Bytes of the EFI system partition: a multiple of 1 MiB, usually [`ESP_BYTES`].
    pub esp_bytes: u64,
    /// The system. With [`Mode::RepairBoot`], the one read from the disk.
    pub runtime: Runtime,
    /// Files of the data partition. Must be empty unless the mode is [`Mode::Install`].
    pub data_files: Vec<FileContent>,
    /// Directories of the data partition that must exist, with their permission bits.
    pub data_directories: Vec<(String, u32)>,
    /// The partitions that are there: erased by an installation, kept by the other modes.
    pub old_partitions: Vec<OldPartition>,
    /// The disk's own GUID where one is kept; needed by the modes that keep data.
    pub old_disk_id: Option<Uuid>,
    /// Whether to register a boot entry with the firmware, as best effort.
    pub boot_entry: bool,
    /// Hash of the answers that ordered it, kept beside the system: they are not followed twice.
    pub answers: Option<Sha256>,
}

/// A file of the plan, with its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Path, permissions and bytes.
    pub content: FileContent,
    /// SHA-256 of the bytes.
    pub sha256: Sha256,
}

/// A partition of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPartition {
    /// Number in the table, from 1.
    pub number: u32,
    /// Partition type.
    pub kind: Uuid,
    /// The partition's own identifier.
    pub id: Uuid,
    /// Name in the table.
    pub name: String,
    /// First sector.
    pub first_sector: u64,
    /// Last sector, which still belongs to it.
    pub last_sector: u64,
}

/// A range of bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Byte behind the last one.
    pub end: u64,
}

impl ByteRange {
    /// Number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.end - self.start
    }
}

/// The boot entry that firmware is asked to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBootEntry {
    /// What the firmware's menu shows.
    pub name: String,
    /// The file it starts, with `/`.
    pub path: String,
}

/// What is done with the data partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataPlan {
    /// Made anew, as ext4.
    Format {
        /// UUID of the file system.
        filesystem_id: Uuid,
        /// Seed of its directory hashes.
        hash_seed: Uuid,
        /// Bytes for each inode; a power of two.
        bytes_per_inode: u64,
        /// Its directories, parents first, with permission bits.
        directories: Vec<(String, u32)>,
        /// Its files.
        files: Vec<PlannedFile>,
    },
    /// Not written at all.
    Keep,
}

/// Everything an installation will do. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The disk.
    pub target: TargetIdentity,
    /// What is done to it.
    pub mode: Mode,
    /// The time that file systems are stamped with, seconds since 1970.
    pub created_s: u64,
    /// GUID of the disk.
    pub disk_id: Uuid,
    /// The EFI system partition.
    pub esp: PlannedPartition,
    /// Serial number of its FAT.
    pub esp_volume_id: u32,
    /// Files of the EFI system partition, in the order they are written; the one that makes the disk
    /// bootable is the last.
    pub esp_files: Vec<PlannedFile>,
    /// The data partition.
    pub data: PlannedPartition,
    /// What is done with it.
    pub data_plan: DataPlan,
    /// Ranges that are overwritten with zeros before anything else, in ascending order, apart from
    /// each other.
    pub erase: Vec<ByteRange>,
    /// Places that are written and read back before anything is made, to find a disk that lies.
    pub probes: Vec<u64>,
    /// The boot entry, if one is wanted.
    pub boot_entry: Option<PlannedBootEntry>,
}

/// Why there can be no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The disk cannot hold the system and a data partition.
    #[error("the disk has {size_bytes} bytes, and {needed_bytes} are needed: choose a larger disk")]
    TooSmall {
        /// Bytes of the disk.
        size_bytes: u64,
        /// Bytes it must have.
        needed_bytes: u64,
    },
    /// Not a sector size that disks have.
    #[error("the disk has sectors of {0} bytes; 512 and 4096 are supported")]
    SectorSize(u32),
    /// The EFI system partition cannot be made as asked.
    #[error("an EFI system partition of {esp_bytes} bytes: {reason}")]
    Esp {
        /// Bytes asked for.
        esp_bytes: u64,
        /// What is wrong with that.
        reason: &'static str,
    },
    /// The system is larger than what is read back from a disk.
    #[error(
        "the system has {system_bytes} bytes, and {SYSTEM_BYTES_MAX} are taken at most: make the medium again"
    )]
    SystemTooLong {
        /// Bytes of the system's image.
        system_bytes: u64,
    },
    /// The files do not fit on the EFI system partition, with room for the next version.
    #[error(
        "the system has {system_bytes} bytes; twice that and a fifth do not fit on an EFI system \
         partition of {esp_bytes} bytes"
    )]
    SystemTooLarge {
        /// Bytes of the system's image.
        system_bytes: u64,
        /// Bytes of the partition.
        esp_bytes: u64,
    },
    /// A path that the plan does not take.
    #[error("the path {0:?} is not usable: letters, digits and .-_+ between slashes")]
    Path(String),
    /// Two files with one path.
    #[error("there are two files with the path {0:?}")]
    DoublePath(String),
    /// A version that cannot be part of a file's name.
    #[error("the version {0:?} is not usable: 1 to 40 letters, digits and .-_+")]
    Version(String),
    /// A kept disk does not have the partitions that an installation makes.
    #[error("the disk holds no TruthDB that could be kept: {0}; install instead")]
    NothingToKeep(&'static str),
    /// Files for a data partition that is not written.
    #[error("files for the data partition were given, and the plan keeps it as it is")]
    FilesOfKeptData,
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    ///
    /// See [`PlanError`]; nothing was done to any disk.
    pub fn new(request: &Request) -> Result<Plan, PlanError> {
        layout::check_request(request)?;
        let esp_files = esp_files(request);
        let (disk_id, esp, data) = match request.mode {
            Mode::Install => layout::fresh(request),
            Mode::ReinstallKeepData | Mode::RepairBoot => layout::kept(request)?,
        };
        layout::check_room(request, &esp)?;
        let data_plan = match request.mode {
            Mode::Install => data_plan(request, &data)?,
            Mode::ReinstallKeepData | Mode::RepairBoot => DataPlan::Keep,
        };
        let system_path = esp_files[0].content.path.clone();
        Ok(Plan {
            target: request.target.clone(),
            mode: request.mode,
            created_s: request.created_s,
            disk_id,
            esp_volume_id: request.seed.volume_id(),
            erase: layout::erased(request, &esp, &data),
            probes: layout::probes(request),
            esp,
            esp_files,
            data,
            data_plan,
            boot_entry: request.boot_entry.then(|| PlannedBootEntry {
                name: BOOT_ENTRY_NAME.to_owned(),
                path: system_path,
            }),
        })
    }

    /// The range of a partition, in bytes.
    #[must_use]
    pub fn range(&self, partition: &PlannedPartition) -> ByteRange {
        let sector_bytes = u64::from(self.target.sector_bytes);
        ByteRange {
            start: partition.first_sector * sector_bytes,
            end: (partition.last_sector + 1) * sector_bytes,
        }
    }

    /// Bytes that the data partition takes at most while it is made away from the disk. It grows with the
    /// disk: the descriptors of its groups, many times over, and a bitmap for each 16 groups.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        let DataPlan::Format { files, .. } = &self.data_plan else {
            return 0;
        };
        let files = files.iter().map(|file| file.content.bytes.len() as u64);
        // Each file lies beside the file system as well, until it is in it.
        let files: u64 = files.map(|bytes| 2 * bytes.next_multiple_of(4096)).sum();
        layout::filesystem_bytes(self.range(&self.data).bytes()) + files
    }

    /// Bytes of memory that carrying the plan out takes at most, the scratch file included.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let system: u64 = self
            .esp_files
            .iter()
            .map(|file| file.content.bytes.len() as u64)
            .sum();
        self.scratch_bytes() + system + layout::WORKING_BYTES
    }

    /// Whether carrying the plan out destroys what is on the disk.
    #[must_use]
    pub fn destroys_data(&self) -> bool {
        self.mode == Mode::Install
    }
}

/// Path of a version's system on the EFI system partition.
#[must_use]
pub fn system_path(version: &str) -> String {
    format!("EFI/TruthDB/truthdb-{version}.efi")
}

/// The system under its own name, what it is, and, last, the path that firmware falls back to.
fn esp_files(request: &Request) -> Vec<PlannedFile> {
    let runtime = &request.runtime;
    let file = |path: String, bytes: Arc<[u8]>| PlannedFile {
        sha256: Sha256::of(&bytes),
        content: FileContent {
            path,
            mode: 0o755,
            bytes,
        },
    };
    let system = file(system_path(&runtime.version), Arc::clone(&runtime.image));
    let mut about = format!(
        "version = \"{}\"\nfile = \"{}\"\nsha256 = \"{}\"\nbytes = {}\n",
        runtime.version,
        system.content.path,
        system.sha256,
        runtime.image.len()
    );
    if let Some(answers) = request.answers {
        about.push_str(&format!("answers = \"{answers}\"\n"));
    }
    // Cut off, this is a node with its data, and no installation that nobody has seen the end of.
    if request.mode != Mode::Install {
        about.push_str("kept = true\n");
    }
    about.push_str(&format!("complete = {}\n", COMPLETE[0]));
    let fallback = file(FALLBACK_PATH.to_owned(), Arc::clone(&runtime.image));
    vec![
        system,
        file(ABOUT_PATH.to_owned(), about.into_bytes().into()),
        fallback,
    ]
}

fn data_plan(request: &Request, data: &PlannedPartition) -> Result<DataPlan, PlanError> {
    let mut directories = request.data_directories.clone();
    let mut files: Vec<PlannedFile> = Vec::new();
    for content in &request.data_files {
        if files.iter().any(|file| file.content.path == content.path) {
            return Err(PlanError::DoublePath(content.path.clone()));
        }
        files.push(PlannedFile {
            sha256: Sha256::of(&content.bytes),
            content: content.clone(),
        });
    }
    // Every parent, in the order that mkdir needs; those that were not asked for are readable.
    let paths = files.iter().map(|file| file.content.path.clone());
    let mut parents: Vec<String> = paths
        .chain(directories.iter().map(|(path, _)| path.clone()))
        .flat_map(|path| {
            let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
            ends.into_iter()
                .map(move |end| path[..end].to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    parents.sort();
    parents.dedup();
    for parent in parents {
        if !directories.iter().any(|(path, _)| *path == parent) {
            directories.push((parent, 0o755));
        }
    }
    directories.sort();
    let bytes = (data.last_sector - data.first_sector + 1) * u64::from(request.target.sector_bytes);
    Ok(DataPlan::Format {
        filesystem_id: request.seed.id("data file system"),
        hash_seed: request.seed.id("data directory hash"),
        bytes_per_inode: layout::bytes_per_inode(bytes),
        directories,
        files,
    })
}
