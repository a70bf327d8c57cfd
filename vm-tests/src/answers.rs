//! Sticks: with an answer file for the installer, or to be written to by it.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Bytes of a stick.
const STICK_BYTES: u64 = 16 << 20;
/// Bytes of a volume's label.
const LABEL_BYTES: usize = 11;

/// Makes a FAT volume with a label and one file.
///
/// # Errors
///
/// What the file system says, or a label that is too long.
pub fn volume(path: &Path, label: &str, name: &str, content: &[u8]) -> Result<()> {
    ensure!(label.len() <= LABEL_BYTES, "{label:?} is too long");
    let mut padded = [b' '; LABEL_BYTES];
    padded[..label.len()].copy_from_slice(label.as_bytes());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let mut file = file.with_context(|| format!("making {}", path.display()))?;
    file.set_len(STICK_BYTES).context("making a stick")?;
    let options = fatfs::FormatVolumeOptions::new().volume_label(padded);
    fatfs::format_volume(&mut file, options).context("formatting a stick")?;
    let volume = fatfs::FileSystem::new(&mut file, fatfs::FsOptions::new());
    let volume = volume.context("opening a stick")?;
    let mut inside = volume
        .root_dir()
        .create_file(name)
        .context("making a file")?;
    inside.write_all(content).context("writing a file")?;
    inside.flush().context("writing a file")?;
    drop(inside);
    volume.unmount().context("closing a stick")
}

/// A file in the root of a FAT volume.
///
/// # Errors
///
/// It is not there, or not a text.
pub fn text_on(path: &Path, name: &str) -> Result<String> {
    let stick = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let options = fatfs::FsOptions::new().update_accessed_date(false);
    let volume = fatfs::FileSystem::new(stick, options).context("opening a stick")?;
    let mut text = String::new();
    let file = volume.root_dir().open_file(name);
    let mut file = file.with_context(|| format!("looking for {name} on a stick"))?;
    file.read_to_string(&mut text)
        .with_context(|| format!("reading {name} on a stick"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stick_has_its_label_and_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stick");
        volume(&path, "TRUTHDB-CFG", "truthdb-install.toml", b"disk = 1").unwrap();
        let volume = fatfs::FileSystem::new(
            std::fs::File::open(&path).unwrap(),
            fatfs::FsOptions::new().update_accessed_date(false),
        );
        let volume = volume.unwrap();
        assert_eq!(volume.volume_label(), "TRUTHDB-CFG");
        let names: Vec<String> = volume
            .root_dir()
            .iter()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            names.contains(&"truthdb-install.toml".to_owned()),
            "{names:?}"
        );
        assert_eq!(text_on(&path, "truthdb-install.toml").unwrap(), "disk = 1");
        assert!(text_on(&path, "other").is_err());
        assert!(super::volume(&path, "TWELVE-LONG-", "x", b"").is_err());
    }
}
