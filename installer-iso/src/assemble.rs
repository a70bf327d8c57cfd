//! From a profile to artefacts: initramfs, unified kernel image, FAT volume, ISO. Pure but for `xorriso`: the same
//! inputs give the same bytes, in every folder.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::fat;
use crate::hash;
use crate::process::{self, output, tool};
use crate::profile::Profile;
use crate::uki;

/// Compression of an initramfs; higher ones gain nothing below a window of 8 MiB, which is what the kernel takes.
const ZSTD_LEVEL: i32 = 19;
/// Where firmware looks on a removable medium.
pub(crate) const FALLBACK_PATH: &str = "EFI/BOOT/BOOTX64.EFI";
/// Label of the ISO.
const VOLUME: &str = "TRUTHDB";
/// GUID of the ISO's partition table; those of its partitions follow from it.
const DISK_GUID: &str = "54525554-4844-4221-8000-000000000001";
/// Type of an EFI system partition.
const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
/// Type of a partition with data, for the ISO 9660 part.
const DATA_TYPE: &str = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7";

/// The unified kernel image of a profile. `scratch` keeps the compressed initramfs for the next time.
///
/// # Errors
///
/// A file that cannot be read, or a stub that does not take the sections.
pub(crate) fn unified_kernel_image(
    profile: &Profile,
    root: &Path,
    stub: &[u8],
    scratch: &Path,
) -> Result<Vec<u8>> {
    let initramfs = profile.initramfs(root)?.bytes()?;
    let kept = scratch.join(format!("initramfs-{}.zst", profile.kind.folder()));
    let initrd = compressed(&initramfs, &kept)?;
    let kernel = process::read(&profile.kernel)?;
    let os_release = profile.os_release();
    let command_line = profile.command_line();
    let splash = profile.splash.as_deref().map(process::read).transpose()?;
    let mut sections: Vec<uki::Section<'_>> = vec![
        (".osrel", os_release.as_bytes()),
        (".cmdline", command_line.as_bytes()),
        (".uname", profile.release.as_bytes()),
    ];
    if let Some(splash) = &splash {
        sections.push((".splash", splash));
    }
    sections.push((".initrd", &initrd));
    sections.push((".linux", &kernel));
    uki::append(stub, &sections)
}

/// Refuses an image that firmware would stumble over.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn check_image(image: &[u8]) -> Result<()> {
    let own = [".text", ".sbat"];
    let added = [
        ".osrel", ".cmdline", ".uname", ".splash", ".initrd", ".linux",
    ];
    uki::check(image, &[&own[..], &added[..]].concat()).context("the image is not as it must be")
}

/// Compresses. What was made before is taken if it was made from the same bytes: this takes longer than all other
/// steps of an image together.
fn compressed(content: &[u8], kept: &Path) -> Result<Vec<u8>> {
    let note = kept.with_extension("made-from");
    let made_from = |result: &[u8]| {
        format!(
            "from {}\nby zstd {}, level {ZSTD_LEVEL}\nresult {}\n",
            hash::of_bytes(content),
            zstd::zstd_safe::version_string(),
            hash::of_bytes(result)
        )
    };
    if let (Ok(before), Ok(noted)) = (std::fs::read(kept), std::fs::read_to_string(&note))
        && noted == made_from(&before)
    {
        return Ok(before);
    }
    let result = zstd::bulk::compress(content, ZSTD_LEVEL).context("compressing initramfs")?;
    process::write(kept, &result)?;
    process::write(&note, made_from(&result).as_bytes())?;
    Ok(result)
}

/// An ISO that boots as CD and as USB stick: the FAT volume with what firmware reads (the image by [`FALLBACK_PATH`])
/// is a partition of type ESP, and El Torito points into it, so that it is there once. See docs/adr/0014-images.md for
/// the options.
///
/// # Errors
///
/// xorriso's.
pub(crate) fn iso(
    firmware_files: &[(&str, &[u8])],
    files: &[(&str, &[u8])],
    epoch: u64,
    scratch: &Path,
    to: &Path,
) -> Result<()> {
    let folder = scratch.join("iso");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("emptying the scratch folder")?;
    }
    for (name, content) in files {
        process::write(&folder.join(name), content)?;
    }
    let volume = scratch.join("efi.img");
    process::write(&volume, &fat::volume(firmware_files)?)?;
    if to.exists() {
        std::fs::remove_file(to).with_context(|| format!("removing {}", to.display()))?;
    }
    let date = output(tool("date").args(["-u", "-d", &format!("@{epoch}"), "+%Y%m%d%H%M%S00"]))?;
    let date = date.trim();
    output(
        tool("xorriso")
            .env("SOURCE_DATE_EPOCH", epoch.to_string())
            .args([
                "-as",
                "mkisofs",
                "-quiet",
                "-iso-level",
                "3",
                "-r",
                "-V",
                VOLUME,
            ])
            .args(["-partition_offset", "16", "-partition_cyl_align", "all"])
            .args(["-appended_part_as_gpt", "-append_partition", "2", ESP_TYPE])
            .arg(&volume)
            .args(["-iso_mbr_part_type", DATA_TYPE])
            .args([
                "-e",
                "--interval:appended_partition_2:all::",
                "-no-emul-boot",
            ])
            .args(["--gpt_disk_guid", DISK_GUID])
            .arg(format!("--modification-date={date}"))
            .args(["--set_all_file_dates", date, "-o"])
            .arg(to)
            .arg(&folder),
    )?;
    check_iso(&process::read(to)?)
}

/// Whether an ISO has what firmware looks for: a protective MBR, a partition table with an ESP, an El Torito record.
///
/// # Errors
///
/// What is missing.
fn check_iso(iso: &[u8]) -> Result<()> {
    let at = |offset: usize, bytes: &[u8]| iso.get(offset..offset + bytes.len()) == Some(bytes);
    ensure!(at(0x1fe, &[0x55, 0xaa]), "the ISO has no MBR");
    ensure!(at(512, b"EFI PART"), "the ISO has no GPT");
    ensure!(
        at(16 * 2048 + 1, b"CD001"),
        "the ISO has no volume descriptor"
    );
    ensure!(
        at(17 * 2048 + 7, b"EL TORITO SPECIFICATION"),
        "the ISO has no boot record"
    );
    // The type GUID of an ESP, as GPT stores it, is the first field of an entry.
    let esp = [
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9,
        0x3b,
    ];
    let table = iso
        .get(1024..1024 + 128 * 128)
        .context("the ISO is cut short")?;
    let entry = table.chunks(128).find(|entry| entry.starts_with(&esp));
    let entry = entry.context("the ISO has no EFI system partition")?;
    let first = u64::from_le_bytes(*entry[32..].first_chunk().context("a GPT entry")?);
    let volume = usize::try_from(first * 512)?;
    ensure!(
        iso.get(volume + 510..volume + 512) == Some(&[0x55, 0xaa][..]),
        "the EFI system partition of the ISO has no boot sector"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::has;

    #[test]
    fn what_was_compressed_before_is_taken_for_the_same_bytes_only() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("initramfs-runtime.zst");
        let first = compressed(b"one initramfs", &kept).unwrap();
        assert_eq!(
            zstd::bulk::decompress(&first, 100).unwrap(),
            b"one initramfs"
        );
        // It is taken as it lies there: a note that fits to other bytes shows it.
        let note = kept.with_extension("made-from");
        let noted = std::fs::read_to_string(&note).unwrap();
        let other = b"what was made before".to_vec();
        std::fs::write(&kept, &other).unwrap();
        let fits = noted.replace(&hash::of_bytes(&first), &hash::of_bytes(&other));
        std::fs::write(&note, fits).unwrap();
        assert_eq!(compressed(b"one initramfs", &kept).unwrap(), other);
        // Damaged, or of other bytes: made again.
        std::fs::write(&kept, "damaged").unwrap();
        assert_eq!(compressed(b"one initramfs", &kept).unwrap(), first);
        let second = compressed(b"other initramfs", &kept).unwrap();
        assert_eq!(
            zstd::bulk::decompress(&second, 100).unwrap(),
            b"other initramfs"
        );
        assert_eq!(compressed(b"one initramfs", &kept).unwrap(), first);
    }

    #[test]
    fn an_iso_has_what_firmware_looks_for_and_repeats_in_another_folder() {
        let is_there = output(tool("xorriso").arg("-version")).is_ok();
        if !has("xorriso", is_there, "xorriso") {
            return;
        }
        let image = vec![0x5a; 3 << 20];
        let isos: Vec<Vec<u8>> = (0..2)
            .map(|_| {
                let folder = tempfile::tempdir().unwrap();
                let to = folder.path().join("out.iso");
                let files = [("README.TXT", &b"TruthDB"[..])];
                let firmware_files = [(FALLBACK_PATH, &image[..])];
                iso(&firmware_files, &files, 1_700_000_000, folder.path(), &to).unwrap();
                std::fs::read(to).unwrap()
            })
            .collect();
        assert!(isos[0] == isos[1], "two folders, two different images");
        assert!(check_iso(&isos[0][..40_000]).is_err());
        let mut without = isos[0].clone();
        without[512] = 0;
        assert!(check_iso(&without).unwrap_err().to_string().contains("GPT"));
    }
}
