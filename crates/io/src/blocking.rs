//! The queue of plain system calls, for kernels without io_uring.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use crate::clock::monotonic_now;
use crate::file::{OsFile, check_aligned};
use crate::storage::Wake;
use crate::{AlignedBuf, Completion, File, IoQueue, Waker, WriteSource};

/// Makes the calls on the thread that polls; operations finish in the order of their submission.
pub(crate) struct BlockingQueue {
    depth: usize,
    queued: VecDeque<Operation>,
    wake: Arc<ParkWake>,
}

struct Operation {
    file: Arc<dyn File>,
    tag: u64,
    work: Work,
}

enum Work {
    Write {
        source: WriteSource,
        offset: u64,
        durable: bool,
    },
    Read {
        buf: AlignedBuf,
        bytes: usize,
        offset: u64,
    },
    Sync,
}

impl BlockingQueue {
    pub(crate) fn new(depth: usize) -> BlockingQueue {
        BlockingQueue {
            depth,
            queued: VecDeque::with_capacity(depth),
            wake: Arc::new(ParkWake {
                woken: Mutex::new(false),
                changed: Condvar::new(),
            }),
        }
    }

    fn push(&mut self, file: &Arc<dyn File>, tag: u64, work: Work) {
        assert!(
            self.queued.len() < self.depth,
            "more than {} operations in flight",
            self.depth
        );
        // A file of another storage is noticed here, where the caller is on the stack.
        OsFile::of(file);
        self.queued.push_back(Operation {
            file: Arc::clone(file),
            tag,
            work,
        });
    }
}

impl Operation {
    fn run(self) -> Completion {
        let file = OsFile::of(&self.file);
        let tag = self.tag;
        match self.work {
            Work::Write {
                source,
                offset,
                durable,
            } => {
                let range = source.start..source.start + source.bytes;
                let result = write(file, source.chunk.frozen(range), offset, durable);
                Completion {
                    tag,
                    result,
                    read: None,
                }
            }
            Work::Read {
                mut buf,
                bytes,
                offset,
            } => match file.read_up_to(&mut buf[..bytes], offset) {
                Ok(done) => Completion {
                    tag,
                    result: Ok(()),
                    read: Some((buf, done)),
                },
                Err(error) => Completion {
                    tag,
                    result: Err(error),
                    read: Some((buf, 0)),
                },
            },
            Work::Sync => Completion {
                tag,
                result: file.sync(),
                read: None,
            },
        }
    }
}

/// A write, durable in one call where the kernel can (Linux 4.7 and later), otherwise in two.
fn write(file: &OsFile, bytes: &[u8], offset: u64, durable: bool) -> io::Result<()> {
    match file.write_all(bytes, offset, durable) {
        Err(error) if durable && error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            file.write_all(bytes, offset, false)?;
            file.sync()
        }
        result => result,
    }
}

impl IoQueue for BlockingQueue {
    fn write(
        &mut self,
        file: &Arc<dyn File>,
        source: WriteSource,
        offset: u64,
        durable: bool,
        tag: u64,
    ) {
        check_aligned(source.start, offset);
        check_aligned(source.bytes, offset);
        // What is not frozen is noticed here, where the caller is on the stack.
        source
            .chunk
            .frozen(source.start..source.start + source.bytes);
        self.push(
            file,
            tag,
            Work::Write {
                source,
                offset,
                durable,
            },
        );
    }

    fn read(&mut self, file: &Arc<dyn File>, buf: AlignedBuf, bytes: usize, offset: u64, tag: u64) {
        check_aligned(bytes, offset);
        assert!(
            bytes <= buf.len(),
            "read of {bytes} bytes into {}",
            buf.len()
        );
        self.push(file, tag, Work::Read { buf, bytes, offset });
    }

    fn sync(&mut self, file: &Arc<dyn File>, tag: u64) {
        self.push(file, tag, Work::Sync);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.extend(self.queued.drain(..).map(Operation::run));
    }

    fn wait(&mut self, completions: &mut Vec<Completion>, timeout_ns: Option<u64>) {
        if self.queued.is_empty() {
            self.wake.park(timeout_ns);
        } else {
            self.poll(completions);
        }
    }

    fn in_flight(&self) -> usize {
        self.queued.len()
    }

    fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake) as Arc<dyn Wake>)
    }
}

struct ParkWake {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl ParkWake {
    fn lock(&self) -> MutexGuard<'_, bool> {
        // A flag cannot be left half changed.
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn park(&self, timeout_ns: Option<u64>) {
        let deadline =
            timeout_ns.and_then(|ns| monotonic_now().checked_add(Duration::from_nanos(ns)));
        let mut woken = self.lock();
        while !*woken {
            woken = match deadline {
                None => self
                    .changed
                    .wait(woken)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(monotonic_now());
                    if left.is_zero() {
                        break;
                    }
                    let result = self.changed.wait_timeout(woken, left);
                    result.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        *woken = false;
    }
}

impl Wake for ParkWake {
    fn wake(&self) {
        *self.lock() = true;
        self.changed.notify_one();
    }
}
