//! A thread that writes the log to the disk, behind a queue of bounded length: a disk that hangs keeps this thread, and
//! nobody else. What does not fit into the queue is counted, and said where the log goes on.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

use crate::log::gap;

/// Pieces of at most some KiB that wait for the disk.
const WAITING_MAX: usize = 256;
/// What is said when the first bytes do not fit.
const BEHIND: &str = "\nlog: the disk does not take the log, which goes on in memory\n";

/// Bytes for the disk.
struct Piece {
    /// How many before them did not fit into the queue.
    missed: u64,
    bytes: Vec<u8>,
}

/// The writing end of the queue.
pub(crate) struct DiskLog {
    queue: SyncSender<Piece>,
    thread: JoinHandle<()>,
    missed: u64,
}

impl DiskLog {
    /// Starts the thread. `write` takes how many bytes were missed, and those that come after them.
    ///
    /// # Errors
    ///
    /// No thread.
    pub(crate) fn start(mut write: impl FnMut(u64, &[u8]) + Send + 'static) -> Result<Self> {
        let (queue, pieces) = sync_channel::<Piece>(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("disk-log".to_owned())
            .spawn(move || {
                for piece in pieces {
                    write(piece.missed, &piece.bytes);
                }
            })
            .context("starting the thread that writes the log")?;
        Ok(Self {
            queue,
            thread,
            missed: 0,
        })
    }

    /// Hands bytes over, and never waits; what there is to be said about it.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Option<String> {
        let piece = Piece {
            missed: self.missed,
            bytes: bytes.to_vec(),
        };
        let before = self.missed;
        if self.queue.try_send(piece).is_err() {
            self.missed += bytes.len() as u64;
            return (before == 0).then(|| BEHIND.to_owned());
        }
        self.missed = 0;
        (before > 0).then(|| gap(before))
    }

    /// Waits until everything is written.
    pub(crate) fn finish(self) {
        if self.missed > 0 {
            let _ = self.queue.send(Piece {
                missed: self.missed,
                bytes: Vec::new(),
            });
        }
        drop(self.queue);
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_disk_that_hangs_keeps_nobody_and_costs_what_does_not_fit() {
        let (go_on, hangs) = channel::<()>();
        let (written, all) = channel();
        let mut log = DiskLog::start(move |missed, bytes: &[u8]| {
            // Until the other end is dropped.
            let _ = hangs.recv();
            written.send((missed, bytes.to_vec())).unwrap();
        })
        .unwrap();
        let pieces = WAITING_MAX + 100;
        let said: Vec<String> = (0..pieces).filter_map(|_| log.append(b"1234")).collect();
        assert_eq!(said, [BEHIND]);
        drop(go_on);
        log.finish();
        let written: Vec<(u64, Vec<u8>)> = all.iter().collect();
        let kept = written.iter().filter(|(_, bytes)| bytes == b"1234").count();
        // One may have been taken out of the queue before it was full.
        assert!((WAITING_MAX..=WAITING_MAX + 1).contains(&kept), "{kept}");
        let missed: u64 = written.iter().map(|(missed, _)| missed).sum();
        assert_eq!(missed, 4 * (pieces - kept) as u64);
    }

    #[test]
    fn what_was_missed_is_said_once_it_goes_on() {
        let (go_on, hangs) = channel::<()>();
        let (written, all) = channel();
        let mut log = DiskLog::start(move |missed, _: &[u8]| {
            let _ = hangs.recv();
            written.send(missed).unwrap();
        })
        .unwrap();
        while log.append(b"x").is_none() {}
        drop(go_on);
        // Everything that waited is written: there is room again.
        for _ in 0..WAITING_MAX {
            assert_eq!(all.recv().unwrap(), 0);
        }
        assert_eq!(log.append(b"y"), Some(gap(1)));
        assert_eq!(log.append(b"z"), None);
        log.finish();
        assert_eq!(all.iter().sum::<u64>(), 1);
    }
}
