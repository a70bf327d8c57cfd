//! The process that stays: it keeps the log, and listens to the power button.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::log::{self, Sink};
use crate::paths::System;
use crate::power::{Inputs, Keys, tell_init};

/// How long nothing may happen before it is looked for new keyboards.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// Kernel messages up to this level (warnings) get into the log.
const KERNEL_LEVEL_MAX: u8 = 4;
/// Largest record of the kernel's log.
const KERNEL_RECORD_BYTES: usize = 8 << 10;

/// Runs until it is ended.
///
/// # Errors
///
/// No pipe.
pub(crate) fn run(system: &System) -> Result<()> {
    std::fs::write(system.run("watch.pid"), std::process::id().to_string())
        .context("writing the number of this process")?;
    let pipe = log::open_pipe(system)?;
    let mut reader = pipe.try_clone().context("sharing the pipe of the log")?;
    let mut kernel = open_nonblocking(system, "dev/kmsg").ok();
    let mut sink = Sink::new(system);
    let mut inputs = Inputs::default();
    let mut keys = Keys::default();
    loop {
        inputs.look(system);
        let mut waiting = vec![PollFd::new(&pipe, PollFlags::IN)];
        let kernel_at = kernel.as_ref().map(|file| PollFd::new(file, PollFlags::IN));
        waiting.extend(kernel_at);
        for descriptor in inputs.descriptors() {
            waiting.push(PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
        }
        let ready = poll(&mut waiting, Some(&LOOK_AGAIN)).unwrap_or(0);
        let pipe_ready = waiting[0].revents().contains(PollFlags::IN);
        drop(waiting);
        if ready == 0 {
            continue;
        }
        if pipe_ready {
            let mut bytes = [0; 4096];
            let read = reader.read(&mut bytes).context("reading the log")?;
            sink.append(&bytes[..read]);
        }
        if let Some(file) = &mut kernel {
            read_kernel(file, &mut sink);
        }
        if let Some(wish) = inputs.read(&mut keys) {
            sink.append(format!("power: {wish:?}\n").as_bytes());
            tell_init(wish);
        }
    }
}

fn open_nonblocking(system: &System, path: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(system.path(path))
        .with_context(|| format!("opening {path}"))
}

/// Everything that the kernel said since the last time; records that were overwritten are missed.
fn read_kernel(file: &mut File, sink: &mut Sink) {
    let mut record = [0; KERNEL_RECORD_BYTES];
    loop {
        match file.read(&mut record) {
            Ok(bytes) if bytes > 0 => {
                if let Some(line) = kernel_line(&String::from_utf8_lossy(&record[..bytes])) {
                    sink.append(line.as_bytes());
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
}
