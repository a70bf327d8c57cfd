//! Disk images of an installed system, made by the installer's own plan and executor on a file: what is tested with
//! an image is what an installation does. Raw, and from it qcow2 and fixed VHD.
//!
//! An image has no node of its own in it: no access token, no certificate, no host name. They are made at the first
//! start. Its GUIDs follow from its inputs, so that it is reproducible; machines that start from one image share them.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use truthdb_installer::executor::{self, FileTarget, Tools};
use truthdb_installer::plan::{
    ESP_BYTES, FileContent, Mode, Plan, Request, Runtime, Seed, Sha256, TargetIdentity,
};

use crate::process::{self, output, tool};

/// Size of an image, which is the least that the installer accepts; the file system is as large, and the files are
/// sparse.
pub(crate) const IMAGE_BYTES_DEFAULT: u64 = 8192 << 20;
/// What sizes are whole numbers of.
const MIB: u64 = 1 << 20;
/// Bytes of a sector of every format.
const SECTOR_BYTES: u32 = 512;
/// Bytes of the footer of a VHD.
const FOOTER_BYTES: usize = 512;
/// Seconds between 1970 and 2000, from where VHD counts.
const VHD_EPOCH: u64 = 946_684_800;

/// Configuration files of the data partition that may be given: the server's, and the node's.
pub(crate) const CONFIGURATION_FILES: [&str; 2] = ["config/truthdb.toml", "config/node.toml"];

/// A format of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// The disk, byte for byte.
    Raw,
    /// QEMU's, for KVM and clouds.
    Qcow2,
    /// Hyper-V's with a fixed size, as Azure takes it.
    Vhd,
}

impl Format {
    /// The name of an image of this format.
    pub(crate) fn artefact(self) -> &'static str {
        match self {
            Format::Raw => "truthdb.raw",
            Format::Qcow2 => "truthdb.qcow2",
            Format::Vhd => "truthdb.vhd",
        }
    }
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            "vhd" => Ok(Format::Vhd),
            other => bail!("there is no format {other:?}: there are raw, qcow2 and vhd"),
        }
    }
}

/// All formats, in the order in which they are made: the disk that the others are made from is taken for the raw one.
const FORMATS: [Format; 3] = [Format::Qcow2, Format::Vhd, Format::Raw];

/// The formats that are asked for, by default all, and the size of the disk that all of them are made from.
pub(crate) fn formats_and_size(asked: &[Format], size_mib: Option<u64>) -> (Vec<Format>, u64) {
    let is_asked = |format: &Format| asked.is_empty() || asked.contains(format);
    let formats: Vec<Format> = FORMATS.into_iter().filter(is_asked).collect();
    let wanted = size_mib.map_or(IMAGE_BYTES_DEFAULT, |mib| mib.saturating_mul(MIB));
    let bytes = if formats.contains(&Format::Vhd) {
        vhd_size(wanted)
    } else {
        wanted
    };
    (formats, bytes)
}

/// What goes into an image.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    /// The system.
    pub(crate) image: Vec<u8>,
    /// Its version.
    pub(crate) version: &'a str,
    /// Configuration files of the data partition, by path.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// The time of the file systems, seconds since 1970.
    pub(crate) epoch: u64,
}

/// Makes a raw image.
///
/// # Errors
///
/// The installer's.
pub(crate) fn raw(
    contents: Contents<'_>,
    bytes: u64,
    tools: &Path,
    scratch: &Path,
    to: &Path,
) -> Result<()> {
    std::fs::create_dir_all(scratch).with_context(|| process::disk_advice(scratch))?;
    let image: Arc<[u8]> = contents.image.into();
    let files = contents.files.into_iter();
    let data_files: Vec<FileContent> = files
        .map(|(path, bytes)| FileContent {
            path: path.to_owned(),
            mode: 0o644,
            bytes: bytes.into(),
        })
        .collect();
    let mut seed = contents.version.as_bytes().to_vec();
    seed.extend_from_slice(&Sha256::of(&image).0);
    let request = Request {
        target: TargetIdentity::image(to.to_owned(), bytes, SECTOR_BYTES),
        mode: Mode::Install,
        seed: Seed::fixed(Sha256::of(&seed).0),
        created_s: contents.epoch,
        esp_bytes: ESP_BYTES,
        runtime: Runtime {
            version: contents.version.to_owned(),
            image,
        },
        data_files,
        data_directories: [("config", 0o755), ("log", 0o755), ("server", 0o700)]
            .map(|(path, mode)| (path.to_owned(), mode))
            .into(),
        old_partitions: Vec::new(),
        old_disk_id: None,
        boot_entry: false,
        answers: None,
    };
    let plan = Plan::new(&request).context("planning the disk image")?;
    let mut target =
        FileTarget::create_image(to, bytes).with_context(|| process::disk_advice(to))?;
    let tools = Tools {
        mke2fs: tools.join("mke2fs"),
        debugfs: tools.join("debugfs"),
        e2fsck: tools.join("e2fsck"),
        scratch: scratch.to_owned(),
    };
    let mut step = None;
    let report = executor::run(&plan, &mut target, &tools, &mut |progress| {
        if step != Some(progress.step) {
            step = Some(progress.step);
            println!("      {}", progress.step.title());
        }
    });
    let report = report.map_err(|error| anyhow::anyhow!("{error}"))?;
    println!(
        "      {} bytes written, {} read back; {}",
        report.written_bytes, report.verified_bytes, report.data_check
    );
    Ok(())
}

/// Makes an image from a disk, which is moved for the raw one.
///
/// # Errors
///
/// `qemu-img`'s, or a full disk.
pub(crate) fn convert(raw: &Path, format: Format, epoch: u64, to: &Path) -> Result<()> {
    match format {
        Format::Raw => process::give_name(raw, to),
        Format::Qcow2 => {
            let arguments = ["convert", "-f", "raw", "-O", "qcow2", "-c"];
            output(tool("qemu-img").args(arguments).arg(raw).arg(to)).map(|_| ())
        }
        Format::Vhd => vhd(raw, epoch, to),
    }
}

/// A fixed VHD: the disk, and a footer behind it.
fn vhd(raw: &Path, epoch: u64, to: &Path) -> Result<()> {
    let copy = ["--sparse=always", "--reflink=auto"];
    output(tool("cp").args(copy).arg(raw).arg(to))?;
    let bytes = raw.metadata().context("reading the raw image")?.len();
    ensure!(
        bytes == vhd_size(bytes),
        "a VHD cannot have {bytes} bytes: the next size that it can have is {}",
        vhd_size(bytes)
    );
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(to)
        .with_context(|| format!("opening {}", to.display()))?;
    std::io::Write::write_all(&mut file, &footer(bytes, epoch))
        .with_context(|| process::disk_advice(to))
}

#[expect(
    clippy::big_endian_bytes,
    reason = "the format has its numbers in this order"
)]
fn footer(bytes: u64, epoch: u64) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    let mut put = |at: usize, field: &[u8]| footer[at..at + field.len()].copy_from_slice(field);
    put(0, b"conectix");
    // Reserved bit, version 1.0, no further header, time.
    put(8, &2u32.to_be_bytes());
    put(12, &0x0001_0000u32.to_be_bytes());
    put(16, &u64::MAX.to_be_bytes());
    let time = u32::try_from(epoch.saturating_sub(VHD_EPOCH)).unwrap_or(u32::MAX);
    put(24, &time.to_be_bytes());
    put(28, b"tdb ");
    put(32, &0x0001_0000u32.to_be_bytes());
    put(36, b"Wi2k");
    put(40, &bytes.to_be_bytes());
    put(48, &bytes.to_be_bytes());
    let (cylinders, heads, sectors) = geometry(bytes);
    put(56, &cylinders.to_be_bytes());
    put(58, &[heads, sectors]);
    // Fixed size.
    put(60, &2u32.to_be_bytes());
    put(68, b"TruthDB fixed VH");
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

/// The least size from this one on that a VHD's geometry describes to the byte, in whole MiB. Some programs go by the
/// geometry, and would cut off the end of the disk, where the second partition table lies.
pub(crate) fn vhd_size(bytes: u64) -> u64 {
    let is_exact = |bytes: u64| {
        let (cylinders, heads, sectors) = geometry(bytes);
        let described = u64::from(cylinders) * u64::from(heads) * u64::from(sectors);
        // The largest geometry stands for every size beyond it.
        described * u64::from(SECTOR_BYTES) == bytes || cylinders == u16::MAX
    };
    let first = bytes.div_ceil(MIB);
    let mut sizes = (first..).map(|mib| mib * MIB);
    sizes.find(|bytes| is_exact(*bytes)).unwrap_or(bytes)
}

/// Cylinders, heads and sectors, as the format computes them from the size.
fn geometry(bytes: u64) -> (u16, u8, u8) {
    /// More sectors than this have no geometry of their own.
    const SECTORS_MAX: u64 = 65_535 * 16 * 255;
    let total = (bytes / u64::from(SECTOR_BYTES)).min(SECTORS_MAX);
    let (heads, sectors) = if total >= 65_535 * 16 * 63 {
        (16, 255)
    } else {
        let heads = (total / 17).div_ceil(1024).max(4);
        if heads <= 16 && total / 17 < heads * 1024 {
            (heads, 17)
        } else if total / 31 < 16 * 1024 {
            (16, 31)
        } else {
            (16, 63)
        }
    };
    let cylinders = u16::try_from(total / (heads * sectors)).unwrap_or(u16::MAX);
    let byte = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    (cylinders, byte(heads), byte(sectors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_has_the_size_and_a_checksum_that_holds() {
        let footer = footer(8192 << 20, 1_700_000_000);
        assert_eq!(&footer[..8], b"conectix");
        assert_eq!(footer[48..56], [0, 0, 0, 2, 0, 0, 0, 0]);
        let without: u32 = (0..FOOTER_BYTES)
            .filter(|at| !(64..68).contains(at))
            .map(|at| u32::from(footer[at]))
            .sum();
        let sum = footer[64..68]
            .iter()
            .fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte));
        assert_eq!(sum, !without);
    }

    #[test]
    fn geometries_follow_the_format() {
        // 8 GiB: 16 heads, 63 sectors.
        assert_eq!(geometry(8192 << 20), (16_644, 16, 63));
        // Beyond what fits, the largest.
        assert_eq!(geometry(4 << 40), (65_535, 16, 255));
    }

    #[test]
    fn sizes_are_those_that_a_geometry_describes() {
        // Multiples of 63 MiB, of 255 MiB for larger ones, any beyond the largest geometry.
        assert_eq!(vhd_size(8192 << 20), 8253 << 20);
        assert_eq!(vhd_size(8253 << 20), 8253 << 20);
        assert_eq!(vhd_size((8253 << 20) + 1), 8316 << 20);
        assert_eq!(vhd_size(40_000 << 20), 40_035 << 20);
        assert_eq!(vhd_size(4 << 40), 4 << 40);
    }

    #[test]
    fn a_vhd_among_the_formats_rounds_all_of_them_up() {
        let (formats, bytes) = formats_and_size(&[], None);
        assert_eq!((formats.len(), bytes), (3, 8253 << 20));
        let (_, bytes) = formats_and_size(&[Format::Qcow2], None);
        assert_eq!(bytes, 8192 << 20);
        let (_, bytes) = formats_and_size(&[Format::Raw, Format::Vhd], Some(9000));
        assert_eq!(bytes, 9009 << 20);
    }

    #[test]
    fn each_format_is_made_once_and_the_raw_one_when_nothing_else_needs_the_disk() {
        let asked = [Format::Raw, Format::Vhd, Format::Raw];
        let (formats, _) = formats_and_size(&asked, None);
        assert_eq!(formats, [Format::Vhd, Format::Raw]);
        let folder = tempfile::tempdir().unwrap();
        let [disk, vhd, raw] = ["disk", "vhd", "raw"].map(|name| folder.path().join(name));
        let bytes = vhd_size(MIB);
        let file = std::fs::File::create(&disk).unwrap();
        file.set_len(bytes).unwrap();
        convert(&disk, Format::Vhd, 1_700_000_000, &vhd).unwrap();
        convert(&disk, Format::Raw, 1_700_000_000, &raw).unwrap();
        assert!(!disk.exists() && raw.metadata().unwrap().len() == bytes);
        let footer_bytes = u64::try_from(FOOTER_BYTES).unwrap();
        assert_eq!(vhd.metadata().unwrap().len(), bytes + footer_bytes);
    }

    #[test]
    fn formats_are_named() {
        assert_eq!("vhd".parse::<Format>().unwrap().artefact(), "truthdb.vhd");
        assert!("vmdk".parse::<Format>().is_err());
    }
}
