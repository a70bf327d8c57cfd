//! The data partition: ext4, made by `mke2fs` and filled by `debugfs` in a sparse scratch file, then
//! copied to its place.
//!
//! The scratch file is as large as the partition and holds only the blocks that the tools wrote. A new
//! one reads as zeros, so `mke2fs` is told not to write the zeros of inode tables and journal
//! (`assume_storage_prezeroed`): a disk of 30 TB has 916 MB of tables, which would all be memory. The
//! copy writes them to the disk all the same, from the holes of the scratch file: so it is complete
//! whatever the disk held before, and the kernel has nothing to initialise in the background afterwards.
//! What is left in memory is descriptors and bitmaps, which grow with the disk: see [`Plan::scratch_bytes`].
//!
//! Both tools run under a fixed time and fixed identifiers: the same plan gives the same bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{CHUNK_BYTES, Cause, Run, Step, Superblock};
use crate::plan::{
    ByteRange, DATA_LABEL, DataPlan, MIB, Plan, PlannedFile, Sha256, human_bytes, merge_ranges,
};

/// Journal of the file system, in MiB: metadata only.
const JOURNAL_MIB: u32 = 64;
/// Last words of a tool that an error carries.
const LAST_WORDS_CHARS: usize = 400;

/// The features are listed, so that neither a configuration file nor another version of the tools
/// changes what is made. No `resize_inode`: it ends at 16 TiB, and the partition is as large as the disk.
const MKE2FS_CONF: &str = "\
[defaults]
\tbase_features = sparse_super,large_file,filetype,dir_index,ext_attr
\tdefault_mntopts = acl,user_xattr
\tenable_periodic_fsck = 0
\tblocksize = 4096
\tinode_size = 256
[fs_types]
\text4 = {
\t\tfeatures = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
\t}
";

/// The programs of e2fsprogs, and a place for the scratch file.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Makes file systems.
    pub mke2fs: PathBuf,
    /// Writes files into them without mounting.
    pub debugfs: PathBuf,
    /// Checks them.
    pub e2fsck: PathBuf,
    /// A directory on a file system with sparse files, with room for [`Plan::scratch_bytes`].
    pub scratch: PathBuf,
}

impl Tools {
    /// The tools of a build machine, found where Debian has them.
    #[must_use]
    pub fn of_system(scratch: &Path) -> Tools {
        Tools {
            mke2fs: "/sbin/mke2fs".into(),
            debugfs: "/sbin/debugfs".into(),
            e2fsck: "/sbin/e2fsck".into(),
            scratch: scratch.to_owned(),
        }
    }
}

/// A file that is removed when it is no longer needed.
struct ScratchFile {
    path: PathBuf,
    file: File,
}

impl ScratchFile {
    fn create(directory: &Path, name: &str) -> Result<ScratchFile, Cause> {
        let path = directory.join(format!("truthdb-{}-{name}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|error| scratch(directory, error.to_string()))?;
        Ok(ScratchFile { path, file })
    }

    fn with(directory: &Path, name: &str, bytes: &[u8]) -> Result<ScratchFile, Cause> {
        let made = ScratchFile::create(directory, name)?;
        made.file
            .write_all_at(bytes, 0)
            .map_err(|error| scratch(directory, error.to_string()))?;
        Ok(made)
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("the scratch file {} stays: {error}", self.path.display());
        }
    }
}

fn scratch(directory: &Path, reason: String) -> Cause {
    Cause::Scratch {
        directory: directory.to_owned(),
        reason,
    }
}

/// The data partition, made and not yet copied.
pub(super) struct DataImage {
    scratch: ScratchFile,
    /// What is copied: what was written, and what must be zero.
    ranges: Vec<ByteRange>,
}

/// Whether the scratch directory has room for the data partition of a plan.
pub(super) fn check_room(plan: &Plan, directory: &Path) -> Result<(), Cause> {
    let about = rustix::fs::statvfs(directory)
        .map_err(|error| scratch(directory, io::Error::from(error).to_string()))?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    let needed = plan.scratch_bytes();
    if free < needed {
        let (needed, free) = (human_bytes(needed), human_bytes(free));
        let reason = format!("a disk of this size needs {needed} there, and {free} are free");
        return Err(scratch(directory, reason));
    }
    Ok(())
}

/// Makes the data partition of a plan; `None` if the plan keeps the one that is there.
pub(super) fn make(plan: &Plan, tools: &Tools) -> Result<Option<DataImage>, Cause> {
    let DataPlan::Format {
        directories, files, ..
    } = &plan.data_plan
    else {
        return Ok(None);
    };
    check_room(plan, &tools.scratch)?;
    let bytes = plan.range(&plan.data).bytes();
    let image = ScratchFile::create(&tools.scratch, "data.img")?;
    image
        .file
        .set_len(bytes)
        .map_err(|error| scratch(&tools.scratch, error.to_string()))?;
    if !data_ranges(&image.file)
        .map_err(|error| scratch(&tools.scratch, error.to_string()))?
        .is_empty()
    {
        return Err(scratch(&tools.scratch, "its files cannot be sparse".into()));
    }
    format(plan, tools, &image)?;
    seed(plan, tools, &image, directories, files)?;
    for file in files {
        let found = cat(tools, &image.path.display().to_string(), &file.content.path)?;
        if Sha256::of(&found) != file.sha256 {
            let reason = format!("{} was not written as given", file.content.path);
            return Err(tool_failed(&tools.debugfs, reason));
        }
    }
    let mut ranges =
        data_ranges(&image.file).map_err(|error| scratch(&tools.scratch, error.to_string()))?;
    let unclear = |reason: String| tool_failed(&tools.mke2fs, reason);
    let superblock = Superblock::of_image(&image.file).map_err(unclear)?;
    ranges.extend(
        superblock.zero_ranges(&image.file).map_err(|error| {
            tool_failed(&tools.mke2fs, format!("its tables are unclear: {error}"))
        })?,
    );
    ranges.sort();
    Ok(Some(DataImage {
        scratch: image,
        ranges: merge_ranges(&ranges),
    }))
}

fn format(plan: &Plan, tools: &Tools, image: &ScratchFile) -> Result<(), Cause> {
    let DataPlan::Format {
        filesystem_id,
        hash_seed,
        bytes_per_inode,
        ..
    } = &plan.data_plan
    else {
        return Ok(());
    };
    let config = ScratchFile::with(&tools.scratch, "mke2fs.conf", MKE2FS_CONF.as_bytes())?;
    let extended =
        format!("hash_seed={hash_seed},root_owner=0:0,nodiscard,assume_storage_prezeroed=1");
    let mut command = tool(plan, &tools.mke2fs);
    command
        .env("MKE2FS_CONFIG", &config.path)
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-o", "Linux",
        ])
        // After an error nothing is written any more, whoever mounts it.
        .args(["-e", "remount-ro"])
        .args(["-L", DATA_LABEL, "-U", &filesystem_id.to_string()])
        .args(["-E", &extended])
        .args(["-J", &format!("size={JOURNAL_MIB}")])
        .args(["-i", &bytes_per_inode.to_string()])
        .arg(&image.path);
    run_tool(&tools.mke2fs, &mut command).map(drop)
}

fn seed(
    plan: &Plan,
    tools: &Tools,
    image: &ScratchFile,
    directories: &[(String, u32)],
    files: &[PlannedFile],
) -> Result<(), Cause> {
    let mut script = String::new();
    let mut sources = Vec::new();
    let mut line = |text: String| {
        script.push_str(&text);
        script.push('\n');
    };
    for (path, mode) in directories {
        line(format!("mkdir /{path}"));
        line(format!("sif /{path} mode 0{:o}", 0o040_000 | mode));
    }
    for (number, file) in files.iter().enumerate() {
        let source = ScratchFile::with(
            &tools.scratch,
            &format!("file-{number}"),
            &file.content.bytes,
        )?;
        let path = &file.content.path;
        line(format!("write {} /{path}", source.path.display()));
        line(format!(
            "sif /{path} mode 0{:o}",
            0o100_000 | file.content.mode
        ));
        for owner in ["uid", "gid"] {
            line(format!("sif /{path} {owner} 0"));
        }
        sources.push(source);
    }
    let script = ScratchFile::with(&tools.scratch, "debugfs.cmd", script.as_bytes())?;
    let mut command = tool(plan, &tools.debugfs);
    command
        .args(["-w", "-f"])
        .arg(&script.path)
        .arg(&image.path);
    run_tool(&tools.debugfs, &mut command).map(drop)
}

/// A file's bytes, read by `debugfs` from an image or from `device?offset=bytes`.
fn cat(tools: &Tools, image: &str, path: &str) -> Result<Vec<u8>, Cause> {
    let mut command = clean(&tools.debugfs);
    command.args(["-R", &format!("cat /{path}")]).arg(image);
    run_tool(&tools.debugfs, &mut command)
}

/// The tool with nothing of our environment, under the plan's time.
fn tool(plan: &Plan, path: &Path) -> Command {
    let mut command = clean(path);
    command.env("E2FSPROGS_FAKE_TIME", plan.created_s.to_string());
    command
}

fn clean(path: &Path) -> Command {
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("MKE2FS_SYNC", "0")
        // Zeros are written as such: a file system under the scratch file may call a range that was zeroed
        // in another way a hole.
        .env("UNIX_IO_NOZEROOUT", "1")
        .stdin(Stdio::null());
    command
}

/// Runs a tool, and gives what it printed.
fn run_tool(path: &Path, command: &mut Command) -> Result<Vec<u8>, Cause> {
    let output = command
        .output()
        .map_err(|error| tool_failed(path, format!("it cannot be started: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.is_empty() {
        words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    let skipped = words.chars().count().saturating_sub(LAST_WORDS_CHARS);
    let words: String = words.chars().skip(skipped).collect();
    Err(tool_failed(path, format!("{}: {words}", output.status)))
}

fn tool_failed(path: &Path, reason: String) -> Cause {
    Cause::Tool {
        tool: path.to_owned(),
        reason,
    }
}

/// The ranges of a sparse file that are not holes.
fn data_ranges(file: &File) -> io::Result<Vec<ByteRange>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(ranges),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        ranges.push(ByteRange { start, end });
        at = end;
    }
}

impl DataImage {
    /// Copies what was written to its place on the disk.
    pub(super) fn copy(self, run: &mut Run<'_>) -> Result<(), Cause> {
        let base = run.plan.range(&run.plan.data).start;
        let total = self.ranges.iter().map(|range| range.bytes()).sum();
        run.begin(Step::WriteData, total);
        let mut done = 0;
        let mut buffer = vec![0u8; CHUNK_BYTES];
        for range in &self.ranges {
            let mut at = range.start;
            while at < range.end {
                let bytes = (range.end - at).min(MIB);
                let piece = &mut buffer[..usize::try_from(bytes).unwrap_or(CHUNK_BYTES)];
                self.scratch
                    .file
                    .read_exact_at(piece, at)
                    .map_err(|error| scratch(&run.tools.scratch, error.to_string()))?;
                run.write(base + at, piece)?;
                at += bytes;
                done += bytes;
                run.tell(done, total);
            }
        }
        Ok(())
    }
}

/// Looks at a data partition that is kept, before anything is written. The answer is one line for people: the
/// node itself repairs what can be repaired, so findings are told and stand in nobody's way.
pub(super) fn check_kept(run: &mut Run<'_>) -> Result<Option<String>, Cause> {
    if run.plan.data_plan != DataPlan::Keep {
        return Ok(None);
    }
    let start = run.plan.range(&run.plan.data).start;
    let superblock = Superblock::read(run.target, start).map_err(Cause::NoData)?;
    let said = if superblock.needs_recovery() {
        // Without its journal it looks worse than it is.
        "kept; it was not shut down, and is recovered when it starts".to_owned()
    } else {
        match run_tool(&run.tools.e2fsck, &mut e2fsck(run)) {
            Ok(said) => return Ok(Some(format!("kept; {}", last_line(&said)))),
            Err(Cause::Tool { reason, .. }) => {
                let reason = reason
                    .lines()
                    .map(str::trim)
                    .filter(|line| !line.is_empty());
                let reason: Vec<&str> = reason.collect();
                format!(
                    "kept; it has errors, which the node repairs when it starts, if it can: {}",
                    reason.join(" ")
                )
            }
            Err(other) => other.to_string(),
        }
    };
    tracing::warn!(said, "the data partition");
    Ok(Some(said))
}

fn e2fsck(run: &Run<'_>) -> Command {
    let mut command = clean(&run.tools.e2fsck);
    command.args(["-f", "-n", &device(run)]);
    command
}

/// The data partition, as the tools name it.
fn device(run: &Run<'_>) -> String {
    let start = run.plan.range(&run.plan.data).start;
    format!("{}?offset={start}", run.target.path().display())
}

fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.trim().lines().last().unwrap_or_default().to_owned()
}

/// Checks the new file system on the disk with `e2fsck`, and reads its files back. The answer is the
/// last line that `e2fsck` says. One that is kept was looked at before, and not written since.
pub(super) fn verify(run: &mut Run<'_>) -> Result<String, Cause> {
    let DataPlan::Format { files, .. } = &run.plan.data_plan else {
        return Ok(String::new());
    };
    let not_as_planned = |reason| Cause::NotAsPlanned {
        what: "the data partition",
        reason,
    };
    let said = run_tool(&run.tools.e2fsck, &mut e2fsck(run)).map_err(|cause| match cause {
        Cause::Tool { reason, .. } => not_as_planned(reason),
        other => other,
    })?;
    let device = device(run);
    for file in files {
        let found = cat(run.tools, &device, &file.content.path)?;
        if Sha256::of(&found) != file.sha256 {
            let reason = format!("{} has another hash", file.content.path);
            return Err(not_as_planned(reason));
        }
    }
    Ok(last_line(&said))
}
