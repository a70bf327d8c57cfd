//! The log of the node: one named pipe that every program writes into, and the bounded files behind it. Verbs that run
//! while nobody reads the pipe write into the files themselves.
//!
//! The reader of the pipe (`truthdb-node watch`) keeps a ring in memory for the console and appends to the data
//! partition. Both are bounded: the oldest file makes room. When the disk is full, gone or hangs, the ring goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat};
use rustix::io::ioctl_fionread;

use crate::paths::System;
use crate::state::replace;

/// Bytes of a file of the ring in memory; there are two.
const RING_FILE_BYTES: u64 = 128 << 10;
/// Bytes of a file on the data partition.
const DISK_FILE_BYTES: u64 = 4 << 20;
/// Files on the data partition.
const DISK_FILES: usize = 8;
/// How often it is tried to find a reader of the pipe: init starts the reader and those who speak at the same time.
const READER_TRIES: u32 = 100;
/// The pause between two tries.
const READER_INTERVAL: Duration = Duration::from_millis(20);

/// Makes the pipe.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn make_pipe(system: &System) -> Result<()> {
    let path = system.run("log.pipe");
    if path.exists() {
        return Ok(());
    }
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &path, FileType::Fifo, mode, 0).context("making the pipe of the log")
}

/// The pipe, for writing and for reading: held open for both, it has no end of file, and a writer never finds it
/// without a reader.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn open_pipe(system: &System) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(system.run("log.pipe"))
        .context("opening the pipe of the log")
}

/// Takes what is in the pipe at this moment, and waits for no more.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn take_waiting(pipe: &mut File, take: &mut dyn FnMut(&[u8])) -> Result<()> {
    let waiting = ioctl_fionread(&*pipe).context("looking into the pipe of the log")?;
    let mut left = usize::try_from(waiting).unwrap_or(usize::MAX);
    let mut bytes = [0; 4096];
    while left > 0 {
        let most = left.min(bytes.len());
        let read = pipe.read(&mut bytes[..most]).context("reading the log")?;
        take(&bytes[..read]);
        left = if read == 0 { 0 } else { left - read };
    }
    Ok(())
}

/// Lets a program say everything it says into the log.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn redirect(system: &System, command: &mut Command) -> Result<()> {
    let pipe = open_pipe(system)?;
    command
        .stdin(std::process::Stdio::null())
        .stdout(pipe.try_clone().context("sharing the pipe of the log")?)
        .stderr(pipe);
    Ok(())
}

/// Says a line in the log, which must have a reader or get one soon: what nobody reads is lost when the last writer
/// closes the pipe.
pub(crate) fn say(system: &System, who: &str, line: &str) {
    if let Some(mut pipe) = pipe_with_a_reader(system, &mut std::thread::sleep) {
        let _ = pipe.write_all(format!("{who}: {line}\n").as_bytes());
    }
}

fn pipe_with_a_reader(system: &System, sleep: &mut dyn FnMut(Duration)) -> Option<File> {
    let mut options = OpenOptions::new();
    // Without a reader such an opening fails instead of waiting.
    options
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    for _ in 0..READER_TRIES {
        match options.open(system.run("log.pipe")) {
            Ok(pipe) => {
                // A full pipe is waited for.
                fcntl_setfl(&pipe, OFlags::empty()).ok()?;
                return Some(pipe);
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                sleep(READER_INTERVAL);
            }
            Err(_) => return None,
        }
    }
    None
}

/// Puts a line into the files of the log, for verbs that run before there is a reader of the pipe, or after it.
pub(crate) fn keep(system: &System, who: &str, line: &str) {
    append(system, format!("{who}: {line}\n").as_bytes());
}

/// Appends bytes to the files of the log, while `watch` does not.
pub(crate) fn append(system: &System, bytes: &[u8]) {
    Memory::new(system).append(bytes);
    Disk::new(system).append(0, bytes);
}

/// A file that is rotated: `name`, then `name.1`, `name.2` … with growing age.
#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    file_bytes_max: u64,
    files: usize,
    open: Option<(File, u64)>,
}

impl Rotated {
    fn new(path: PathBuf, file_bytes_max: u64, files: usize) -> Self {
        Self {
            path,
            file_bytes_max,
            files,
            open: None,
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|(_, at)| *at >= self.file_bytes_max)
        {
            self.open = None;
            self.shift()?;
        }
        if self.open.is_none() {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path);
            let file = file.context("opening a file of the log")?;
            let length = file.metadata().context("reading a file of the log")?.len();
            self.open = Some((file, length));
        }
        let Some((file, at)) = &mut self.open else {
            return Ok(());
        };
        file.write_all(bytes).context("writing the log")?;
        *at += bytes.len() as u64;
        Ok(())
    }

    fn shift(&self) -> Result<()> {
        let name = |age: usize| match age {
            0 => self.path.clone(),
            age => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{age}"));
                PathBuf::from(name)
            }
        };
        for age in (0..self.files - 1).rev() {
            if name(age).exists() {
                replace(&name(age), &name(age + 1))?;
            }
        }
        Ok(())
    }
}

/// The log in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    ring: Rotated,
    /// On the console too; for the image that is made for looking at faults.
    console: Option<File>,
}

impl Memory {
    /// With the console only if the kernel's command line says `truthdb.debug`.
    pub(crate) fn new(system: &System) -> Self {
        let command_line = std::fs::read_to_string(system.path("proc/cmdline"));
        let debug =
            command_line.is_ok_and(|line| line.split(' ').any(|w| w.trim() == "truthdb.debug"));
        Self {
            ring: Rotated::new(system.run("log"), RING_FILE_BYTES, 2),
            console: debug
                .then(|| {
                    OpenOptions::new()
                        .write(true)
                        .open(system.path("dev/console"))
                        .ok()
                })
                .flatten(),
        }
    }

    /// Appends bytes, which need not end with a line. A place that does not take them misses them.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let _ = self.ring.append(bytes);
        if let Some(console) = &mut self.console {
            let _ = console.write_all(bytes);
        }
    }
}

/// The log on the data partition.
#[derive(Debug)]
pub(crate) struct Disk {
    files: Rotated,
    /// Whether the data partition is there.
    is_there: bool,
    /// Bytes that it did not take since it took any.
    missed: u64,
}

impl Disk {
    pub(crate) fn new(system: &System) -> Self {
        Self {
            files: Rotated::new(system.data("log/node.log"), DISK_FILE_BYTES, DISK_FILES),
            is_there: system.data("log").is_dir(),
            missed: 0,
        }
    }

    /// Appends bytes, which need not end with a line; `missed` others before them never got here. What a full disk does
    /// not take is missed too, and counted where the log goes on.
    pub(crate) fn append(&mut self, missed: u64, bytes: &[u8]) {
        if !self.is_there {
            return;
        }
        self.missed += missed;
        if self.missed > 0 && self.write(gap(self.missed).as_bytes()) {
            self.missed = 0;
        }
        if self.missed > 0 || !self.write(bytes) {
            self.missed += bytes.len() as u64;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let written = self.files.append(bytes).is_ok();
        if !written {
            // Full or gone: tried again with the next line, from a fresh file handle.
            self.files.open = None;
        }
        written
    }
}

/// What stands in place of bytes that the disk did not take. The line before may have been cut.
pub(crate) fn gap(missed: u64) -> String {
    format!("\nlog: {missed} bytes are missing here: the disk did not take them\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_is_bounded_and_keeps_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.log");
        let mut log = Rotated::new(path.clone(), 100, 3);
        for number in 0..100 {
            log.append(format!("line {number:04}\n").as_bytes())
                .unwrap();
        }
        let mut total = 0;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            total += entry.unwrap().metadata().unwrap().len();
        }
        assert!(total <= 3 * 110, "{total} bytes");
        assert!(
            std::fs::read_to_string(path)
                .unwrap()
                .ends_with("line 0099\n")
        );
        assert!(!folder.path().join("node.log.3").exists());
    }

    #[test]
    fn a_log_goes_on_where_it_was_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.log");
        Rotated::new(path.clone(), 100, 3).append(b"one\n").unwrap();
        Rotated::new(path.clone(), 100, 3).append(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn without_a_disk_the_ring_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        append(&system, b"hello\n");
        assert_eq!(std::fs::read(system.run("log")).unwrap(), b"hello\n");
    }

    #[test]
    fn what_is_said_comes_out_of_the_pipe_also_when_the_reader_is_late() {
        use std::io::Read as _;
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        let nobody = pipe_with_a_reader(&system, &mut |_| panic!("no pipe is no reason to wait"));
        assert!(nobody.is_none());
        std::fs::create_dir_all(system.run("")).unwrap();
        make_pipe(&system).unwrap();
        let mut reader = None;
        let mut late = |_| reader = Some(open_pipe(&system).unwrap());
        let mut pipe = pipe_with_a_reader(&system, &mut late).unwrap();
        pipe.write_all(b"early, ").unwrap();
        say(&system, "time", "no server");
        let mut bytes = [0; 23];
        reader.unwrap().read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"early, time: no server\n");
    }

    #[test]
    fn what_is_said_before_there_is_a_reader_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        std::fs::create_dir_all(system.data("log")).unwrap();
        keep(&system, "ready", "config/node.toml is not used");
        append(&system, b"the reader goes on\n");
        for file in [system.run("log"), system.data("log/node.log")] {
            assert_eq!(
                std::fs::read_to_string(file).unwrap(),
                "ready: config/node.toml is not used\nthe reader goes on\n"
            );
        }
    }

    #[test]
    fn what_the_disk_did_not_take_is_counted_where_it_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.data("log")).unwrap();
        let mut disk = Disk::new(&system);
        disk.append(0, b"one\n");
        // Nothing can be opened where a folder is.
        disk.files.open = None;
        let (file, aside) = (system.data("log/node.log"), system.data("log/aside"));
        replace(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        disk.append(0, b"two\n");
        disk.append(5, b"three\n");
        std::fs::remove_dir(&file).unwrap();
        replace(&aside, &file).unwrap();
        disk.append(0, b"four\n");
        disk.append(0, b"five\n");
        let expected = format!("one\n{}four\nfive\n", gap(4 + 5 + 6));
        assert_eq!(std::fs::read_to_string(file).unwrap(), expected);
    }
}
