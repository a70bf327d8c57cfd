//! The EFI system partition: FAT32, made in memory, copied with its first sector last.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider,
};

use super::sparse::BLOCK_BYTES;
use super::tables::TargetReader;
use super::{CHUNK_BYTES, Cause, Run, SparseImage, Step};
use crate::plan::{
    ABOUT_PATH, ByteRange, COMPLETE, ESP_LABEL, Plan, SYSTEM_BYTES_MAX, Sha256, cluster_bytes,
};

/// A longer description is none of ours.
const ABOUT_BYTES_MAX: u64 = 64 << 10;

/// FAT's own epoch, for every file: the time of an installation is in the log, and the clock of a new
/// machine is often wrong.
#[derive(Debug)]
struct FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

static FIXED_TIME: FixedTime = FixedTime;

/// Makes the partition's content.
pub(super) fn make(plan: &Plan) -> Result<SparseImage, Cause> {
    let bytes = plan.range(&plan.esp).bytes();
    let sector_bytes = plan.target.sector_bytes;
    let mut image = SparseImage::new(bytes);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_sector(u16::try_from(sector_bytes).unwrap_or(512))
        .bytes_per_cluster(cluster_bytes(bytes, sector_bytes))
        .volume_id(plan.esp_volume_id)
        .volume_label(ESP_LABEL);
    fatfs::format_volume(&mut image, options).map_err(Cause::Fat)?;
    let paths = plan.esp_files.iter().map(|file| &file.content.path[..]);
    with_volume(&mut image, |root| {
        for path in paths {
            for (end, _) in path.match_indices('/') {
                root.create_dir(&path[..end])?;
            }
        }
        Ok(())
    })
    .map_err(Cause::Fat)?;
    mend_dot_entries(&mut image);
    with_volume(&mut image, |root| {
        for file in &plan.esp_files {
            let mut out = root.create_file(&file.content.path)?;
            out.write_all(&file.content.bytes)?;
            out.flush()?;
        }
        Ok(())
    })
    .map_err(Cause::Fat)?;
    Ok(image)
}

/// Does something with the root directory of a volume in memory.
fn with_volume(
    image: &mut SparseImage,
    change: impl FnOnce(fatfs::Dir<'_, &mut SparseImage>) -> io::Result<()>,
) -> io::Result<()> {
    image.rewind()?;
    let volume = FileSystem::new(image, FsOptions::new().time_provider(&FIXED_TIME))?;
    change(volume.root_dir())?;
    volume.unmount()
}

/// Puts `.` and `..` where the standard wants them.
///
/// fatfs gives both a long name, so that neither is in the first two slots of its directory, and lets
/// the `..` of a directory in the root name the root's cluster instead of 0; firmware may not mind,
/// `fsck.vfat` does. The volume holds directories only when this is called, so no file's bytes can
/// look like one.
fn mend_dot_entries(image: &mut SparseImage) {
    const SLOT: usize = 32;
    const ATTRIBUTES: usize = 11;
    const LONG_NAME: u8 = 0x0f;
    const DELETED: u8 = 0xe5;
    const ROOT_CLUSTER: u8 = 2;
    // The root's number has one byte that is not 0.
    const CLUSTER_BYTES: [usize; 4] = [20, 21, 26, 27];
    const CLUSTER_LOW: usize = 26;
    for sector in image.blocks_mut().flat_map(|block| block.chunks_mut(512)) {
        let slot = |at: usize| &sector[at * SLOT..(at + 1) * SLOT];
        let is_new_directory = slot(0)[ATTRIBUTES] == LONG_NAME
            && slot(1).starts_with(b".          ")
            && slot(2)[ATTRIBUTES] == LONG_NAME
            && slot(3).starts_with(b"..         ");
        if !is_new_directory {
            continue;
        }
        sector.copy_within(SLOT..2 * SLOT, 0);
        sector.copy_within(3 * SLOT..4 * SLOT, SLOT);
        for slot in [2, 3] {
            sector[slot * SLOT..(slot + 1) * SLOT].fill(0);
            sector[slot * SLOT] = DELETED;
        }
        let parent: Vec<u8> = CLUSTER_BYTES.iter().map(|at| sector[SLOT + at]).collect();
        if parent == [0, 0, ROOT_CLUSTER, 0] {
            sector[SLOT + CLUSTER_LOW] = 0;
        }
    }
}

/// Copies all but the first sector, without which the rest is no file system.
pub(super) fn copy(run: &mut Run<'_>, image: &SparseImage) -> Result<(), Cause> {
    let start = run.plan.range(&run.plan.esp).start;
    let total = (image.block_count() * BLOCK_BYTES) as u64 - first_sector(run, image)?.len() as u64;
    run.begin(Step::WriteSystem, total);
    let mut done = 0;
    let mut pending: Vec<u8> = Vec::with_capacity(CHUNK_BYTES);
    let mut pending_at = 0;
    for (offset, block) in image.blocks() {
        let skipped = if offset == 0 {
            first_sector(run, image)?.len()
        } else {
            0
        };
        let offset = offset + skipped as u64;
        let joins = pending_at + pending.len() as u64 == offset;
        if !joins || pending.len() + block.len() > CHUNK_BYTES {
            done += flush_pending(run, start + pending_at, &mut pending)?;
            run.tell(done, total);
            pending_at = offset;
        }
        pending.extend_from_slice(&block[skipped..]);
    }
    done += flush_pending(run, start + pending_at, &mut pending)?;
    run.tell(done, total);
    Ok(())
}

fn first_sector<'a>(run: &Run<'_>, image: &'a SparseImage) -> Result<&'a [u8], Cause> {
    let sector_bytes = usize::try_from(run.plan.target.sector_bytes).unwrap_or(512);
    match image.blocks().next() {
        Some((0, block)) => Ok(&block[..sector_bytes]),
        _ => Err(Cause::Fat(io::ErrorKind::InvalidData.into())),
    }
}

fn flush_pending(run: &mut Run<'_>, offset: u64, pending: &mut Vec<u8>) -> Result<u64, Cause> {
    let bytes = pending.len() as u64;
    if bytes > 0 {
        run.write(offset, pending)?;
        pending.clear();
    }
    Ok(bytes)
}

/// Writes the first sector: from here on the partition is one. A sector is written whole or not.
pub(super) fn activate(run: &mut Run<'_>, image: &SparseImage) -> Result<(), Cause> {
    let start = run.plan.range(&run.plan.esp).start;
    run.write(start, first_sector(run, image)?)
}

/// Every planned file must be there with its hash, read through the file system.
pub(super) fn verify(run: &mut Run<'_>) -> Result<(), Cause> {
    let range = run.plan.range(&run.plan.esp);
    let not_as_planned = |reason: String| Cause::NotAsPlanned {
        what: "the system partition",
        reason,
    };
    let reader = TargetReader::new(run.target, range.start, range.bytes());
    let volume = FileSystem::new(reader, FsOptions::new().time_provider(&FIXED_TIME))
        .map_err(|error| not_as_planned(error.to_string()))?;
    for file in &run.plan.esp_files {
        let path = &file.content.path;
        let bytes = read_file(&volume, path, SYSTEM_BYTES_MAX)
            .map_err(|error| not_as_planned(format!("{path} cannot be read: {error}")))?;
        if Sha256::of(&bytes) != file.sha256 {
            return Err(not_as_planned(format!("{path} has another hash")));
        }
    }
    Ok(())
}

/// Notes that everything was verified: one word in one sector, which is written whole or not. Until then a
/// disk that starts is an installation that was cut off, whose token nobody has seen.
pub(super) fn complete(run: &mut Run<'_>, image: &SparseImage) -> Result<(), Cause> {
    let failed = |reason: &str| Cause::NotAsPlanned {
        what: "the system partition",
        reason: reason.to_owned(),
    };
    let about = run.plan.esp_files.iter();
    let about = about
        .map(|file| &file.content)
        .find(|file| file.path == ABOUT_PATH);
    let text = &about
        .ok_or_else(|| failed("it does not say what it holds"))?
        .bytes;
    let sector_bytes = usize::try_from(run.plan.target.sector_bytes).unwrap_or(512);
    // It names the hash of the system, so nothing else begins as it does.
    let found = image.blocks().find_map(|(offset, block)| {
        let mut sectors = block.chunks(sector_bytes).enumerate();
        let (at, sector) = sectors.find(|(_, sector)| sector.starts_with(text))?;
        Some((offset + (at * sector_bytes) as u64, sector.to_vec()))
    });
    let (offset, mut sector) =
        found.ok_or_else(|| failed("its description is not in one sector"))?;
    let word = text.len() - 1 - COMPLETE[0].len();
    sector[word..word + COMPLETE[1].len()].copy_from_slice(COMPLETE[1].as_bytes());
    let offset = run.plan.range(&run.plan.esp).start + offset;
    run.write_unchecked(offset, &sector)?;
    run.flush()?;
    let mut found = vec![0; sector.len()];
    run.read(offset, &mut found)?;
    if found == sector {
        Ok(())
    } else {
        Err(Cause::Mismatch { offset })
    }
}

/// A file of at most so many bytes; no more of it is read.
fn read_file<T: Read + Write + Seek>(
    volume: &FileSystem<T>,
    path: &str,
    bytes_max: u64,
) -> io::Result<Vec<u8>> {
    let mut file = volume.root_dir().open_file(path)?;
    // A large one is refused before it takes the memory of a small machine.
    if file.seek(SeekFrom::End(0))? > bytes_max {
        let reason = format!("it has more than {bytes_max} bytes, and is no file of ours");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The system that an EFI system partition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspContent {
    /// Its version.
    pub version: String,
    /// The image.
    pub image: Arc<[u8]>,
    /// Hash of the answers that ordered it, if it was answers.
    pub answers: Option<Sha256>,
    /// Whether its installation was verified to its end.
    pub is_complete: bool,
    /// Whether it was put beside data that was there already.
    pub is_kept: bool,
}

/// What `EFI/TruthDB/system.toml` says.
#[derive(serde::Deserialize)]
struct About {
    version: String,
    file: String,
    sha256: String,
    answers: Option<String>,
    complete: Option<bool>,
    kept: Option<bool>,
}

/// Reads the system from an EFI system partition, and checks its hash.
///
/// # Errors
///
/// What is missing or damaged, for people.
pub fn read_esp(target: &mut dyn super::Target, range: ByteRange) -> Result<EspContent, String> {
    let reader = TargetReader::new(target, range.start, range.bytes());
    let volume = FileSystem::new(reader, FsOptions::new().time_provider(&FIXED_TIME))
        .map_err(|error| format!("the system partition cannot be read: {error}"))?;
    let read = |path: &str, bytes_max| {
        read_file(&volume, path, bytes_max)
            .map_err(|error| format!("{path} cannot be read: {error}"))
    };
    let about = read(ABOUT_PATH, ABOUT_BYTES_MAX)?;
    let about = String::from_utf8(about).map_err(|_| format!("{ABOUT_PATH} is damaged"))?;
    let about: About = toml::from_str(&about)
        .map_err(|error| format!("{ABOUT_PATH} is damaged: {}", error.message()))?;
    let image = read(&about.file, SYSTEM_BYTES_MAX)?;
    if Sha256::of(&image).to_string() != about.sha256 {
        return Err(format!("{} is damaged", about.file));
    }
    Ok(EspContent {
        version: about.version,
        image: image.into(),
        answers: about.answers.as_deref().and_then(Sha256::parse),
        is_complete: about.complete != Some(false),
        is_kept: about.kept == Some(true),
    })
}
