//! The process that stays: it keeps the log, and listens to the power button. Each in a thread of its own, and the disk
//! in a third one: neither a disk that hangs nor a full log keeps the button from being heard.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use signal_hook::consts::SIGTERM;

use crate::disk_log::DiskLog;
use crate::log::{self, Disk, Memory};
use crate::paths::System;
use crate::power::{Inputs, Keys, ask_init};

/// How long nothing may happen before it is looked for new keyboards.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// Kernel messages up to this level (warnings) get into the log.
const KERNEL_LEVEL_MAX: u8 = 4;
/// Largest record of the kernel's log.
const KERNEL_RECORD_BYTES: usize = 8 << 10;

/// Runs until it is asked to end.
///
/// # Errors
///
/// No pipe, or no thread.
pub(crate) fn run(system: &System) -> Result<()> {
    let (ended, end) = UnixStream::pair().context("making a pair of sockets")?;
    signal_hook::low_level::pipe::register(SIGTERM, end).context("waiting for SIGTERM")?;
    std::fs::write(system.run("watch.pid"), std::process::id().to_string())
        .context("writing the number of this process")?;
    let of_keys = system.clone();
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || listen(&of_keys))
        .context("starting the thread of the power button")?;
    keep_log(system, &ended)
}

/// Listens to the keys, for ever.
fn listen(system: &System) {
    let mut inputs = Inputs::default();
    let mut keys = Keys::default();
    loop {
        inputs.look(system);
        let mut waiting: Vec<PollFd<'_>> = inputs
            .descriptors()
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        let ready = poll(&mut waiting, Some(&LOOK_AGAIN)).unwrap_or(0);
        drop(waiting);
        if ready == 0 {
            continue;
        }
        if let Some(wish) = inputs.read(&mut keys) {
            ask_init(system, wish);
            log::say(system, "power", &format!("{wish:?}"));
        }
    }
}

/// The log, in memory and on the disk.
struct Kept {
    memory: Memory,
    disk: DiskLog,
}

impl Kept {
    fn new(system: &System) -> Result<Self> {
        // Made by the thread that writes: to look for the folder may hang, too.
        let (mut disk, of_disk) = (None, system.clone());
        let disk = DiskLog::start(move |missed, bytes| {
            disk.get_or_insert_with(|| Disk::new(&of_disk))
                .append(missed, bytes);
        })?;
        let memory = Memory::new(system);
        Ok(Self { memory, disk })
    }

    fn append(&mut self, bytes: &[u8]) {
        self.memory.append(bytes);
        if let Some(said) = self.disk.append(bytes) {
            self.memory.append(said.as_bytes());
        }
    }
}

/// Keeps the log until something comes out of `ended`; then what has been said is written before this returns.
fn keep_log(system: &System, ended: &UnixStream) -> Result<()> {
    let mut pipe = log::open_pipe(system)?;
    let mut kernel = open_nonblocking(system, "dev/kmsg").ok();
    let mut kept = Kept::new(system)?;
    let mut is_ended = false;
    while !is_ended {
        let mut waiting = vec![
            PollFd::new(&pipe, PollFlags::IN),
            PollFd::new(ended, PollFlags::IN),
        ];
        waiting.extend(kernel.as_ref().map(|file| PollFd::new(file, PollFlags::IN)));
        if poll(&mut waiting, None).is_err() {
            // A signal: what it has sent is there the next time.
            continue;
        }
        is_ended = !waiting[1].revents().is_empty();
        drop(waiting);
        if let Some(file) = &mut kernel {
            read_kernel(file, &mut |line| kept.append(line));
        }
        log::take_waiting(&mut pipe, &mut |bytes| kept.append(bytes))?;
    }
    kept.disk.finish();
    Ok(())
}

fn open_nonblocking(system: &System, path: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(system.path(path))
        .with_context(|| format!("opening {path}"))
}

/// Everything that the kernel said since the last time; records that were overwritten are missed.
fn read_kernel(file: &mut File, take: &mut dyn FnMut(&[u8])) {
    let mut record = [0; KERNEL_RECORD_BYTES];
    loop {
        match file.read(&mut record) {
            Ok(bytes) if bytes > 0 => {
                if let Some(line) = kernel_line(&String::from_utf8_lossy(&record[..bytes])) {
                    take(line.as_bytes());
                }
            }
            // Overwritten before it was read: the next read goes on with the oldest that is there.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            _ => return,
        }
    }
}

/// A record as a line of the log; `None` below warnings.
fn kernel_line(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let microseconds: u64 = fields.nth(1)?.parse().ok()?;
    if priority & 7 > u32::from(KERNEL_LEVEL_MAX) {
        return None;
    }
    let text = text.lines().next().unwrap_or_default();
    let (seconds, rest) = (microseconds / 1_000_000, microseconds % 1_000_000);
    Some(format!("kernel: [{seconds}.{rest:06}] {text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_the_kernel_are_kept_and_the_rest_is_not() {
        let warning = "4,1234,2500000,-;nvme0: timeout\n SUBSYSTEM=nvme\n";
        assert_eq!(
            kernel_line(warning).unwrap(),
            "kernel: [2.500000] nvme0: timeout\n"
        );
        assert_eq!(kernel_line("6,1,10,-;hello\n"), None);
        // Facility and level share a number: 30 is a daemon's notice of level 6.
        assert_eq!(kernel_line("30,1,10,-;hello\n"), None);
        assert_eq!(kernel_line("nonsense"), None);
    }

    #[test]
    fn what_was_said_before_the_end_is_written() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        std::fs::create_dir_all(system.run("")).unwrap();
        std::fs::create_dir_all(system.data("log")).unwrap();
        log::make_pipe(&system).unwrap();
        let mut pipe = log::open_pipe(&system).unwrap();
        let said = format!("{}\nstopped\n", "x".repeat(20_000));
        pipe.write_all(said.as_bytes()).unwrap();
        // Asked to end before it has read anything.
        let (ended, mut end) = UnixStream::pair().unwrap();
        end.write_all(b"X").unwrap();
        keep_log(&system, &ended).unwrap();
        for file in [system.run("log"), system.data("log/node.log")] {
            assert_eq!(std::fs::read_to_string(file).unwrap(), said);
        }
    }
}
