//! FAT volumes with files in them, made in memory: no mounting, no privileges, no tool of the host.
//!
//! The volume is sized from its contents, and the same files give the same bytes: times are FAT's epoch, the
//! volume's id is fixed.

use std::io::{Cursor, Write as _};

use anyhow::{Context as _, Result};
use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

/// The id of every volume: `TRUT`.
const VOLUME_ID: u32 = 0x5452_5554;
/// The label, padded as FAT has it.
const LABEL: [u8; 11] = *b"TRUTHDB    ";
/// Volumes are multiples of this, which is a track of every geometry in use.
const GRANULE_BYTES: usize = 1 << 20;
/// Largest cluster that the file system chooses below 512 MiB.
const CLUSTER_BYTES: usize = 8 << 10;

/// FAT's epoch.
#[derive(Debug)]
struct Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time {
            hour: 0,
            min: 0,
            sec: 0,
            millis: 0,
        };
        DateTime {
            date: self.get_current_date(),
            time,
        }
    }
}

static EPOCH: Epoch = Epoch;

/// A volume with the files, by path; directories are made as needed.
///
/// # Errors
///
/// A path that FAT does not take.
pub(crate) fn volume(files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; volume_bytes(files)];
    let options = FormatVolumeOptions::new()
        .volume_id(VOLUME_ID)
        .volume_label(LABEL);
    fatfs::format_volume(Cursor::new(&mut bytes), options).context("making a FAT volume")?;
    let volume = FileSystem::new(
        Cursor::new(&mut bytes),
        FsOptions::new().time_provider(&EPOCH),
    )?;
    for (path, content) in files {
        write(&volume.root_dir(), path, content)
            .with_context(|| format!("writing {path} into a FAT volume"))?;
    }
    volume.unmount().context("finishing a FAT volume")?;
    Ok(bytes)
}

/// Whole clusters for every file and directory, and a granule for tables and root directory: a table of FAT16 takes
/// 128 KiB at most, and there are two.
fn volume_bytes(files: &[(&str, &[u8])]) -> usize {
    let content: usize = files
        .iter()
        .map(|(path, content)| {
            let directories = path.matches('/').count() * CLUSTER_BYTES;
            content.len().next_multiple_of(CLUSTER_BYTES) + directories
        })
        .sum();
    (content + GRANULE_BYTES).next_multiple_of(GRANULE_BYTES)
}

fn write<T: std::io::Read + std::io::Write + std::io::Seek>(
    root: &fatfs::Dir<'_, T>,
    path: &str,
    content: &[u8],
) -> std::io::Result<()> {
    for (end, _) in path.match_indices('/') {
        root.create_dir(&path[..end])?;
    }
    let mut file = root.create_file(path)?;
    file.truncate()?;
    file.write_all(content)?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn files_are_read_back_and_bytes_repeat() {
        let system = vec![3; 3 << 20];
        let files: [(&str, &[u8]); 2] = [
            ("EFI/BOOT/BOOTX64.EFI", &system),
            ("EFI/readme.txt", b"hello"),
        ];
        let bytes = volume(&files).unwrap();
        assert_eq!(bytes, volume(&files).unwrap());
        assert_eq!(bytes.len(), 5 << 20);
        let volume = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        for (path, content) in files {
            let mut read = Vec::new();
            let mut file = volume.root_dir().open_file(path).unwrap();
            file.read_to_end(&mut read).unwrap();
            assert_eq!(read, content, "{path}");
        }
    }

    #[test]
    fn the_size_follows_from_the_content() {
        assert_eq!(volume_bytes(&[("A", &[0; 1])]), 2 << 20);
        assert_eq!(volume_bytes(&[("A", &[0; 20 << 20])]), 21 << 20);
    }
}
