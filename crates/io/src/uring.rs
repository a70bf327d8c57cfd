//! The queue of io_uring.
//!
//! A slot owns everything that the kernel may touch (file, chunk or buffer) from submission until
//! the completion is reaped; dropping the queue waits for what is in flight. Slots and rings are
//! made once: steady state allocates nothing.
#![allow(
    unsafe_code,
    reason = "the kernel gets addresses of memory that the slots keep alive"
)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags};

use crate::clock::monotonic_now;
use crate::file::{OsFile, check_aligned, check_progress};
use crate::storage::Wake;
use crate::{AlignedBuf, AppendChunk, BLOCK_BYTES, Completion, File, IoQueue, Waker, WriteSource};

/// Times an operation is given to the kernel again when it answers `EAGAIN`.
const AGAIN_MAX: u32 = 64;

/// Longest piece of one submission, in bytes: what Linux transfers at most in one call, in whole
/// blocks.
const PIECE_BYTES_MAX: usize = 0x7fff_f000;

/// The `user_data` of the read that ends a wait; operations have their slot's index.
const WAKE_DATA: u64 = u64::MAX;

/// Whether io_uring can be used here; the error says why not.
pub(crate) fn probe() -> Result<(), String> {
    let ring = IoUring::new(2).map_err(|error| format!("io_uring_setup: {error}"))?;
    if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        return Err("io_uring of this kernel is too old (before Linux 5.11)".to_owned());
    }
    let mut probe = Probe::new();
    let registered = ring.submitter().register_probe(&mut probe);
    registered.map_err(|error| format!("io_uring_register: {error}"))?;
    let needed = [
        ("write", opcode::Write::CODE),
        ("read", opcode::Read::CODE),
        ("fsync", opcode::Fsync::CODE),
    ];
    match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(format!(
            "io_uring of this kernel lacks the operation {name}"
        )),
        None => Ok(()),
    }
}

pub(crate) struct UringQueue {
    ring: IoUring,
    /// The ring is made disabled and enabled by the thread that uses it first: from then on it is
    /// that thread's.
    enabled: bool,
    slots: Vec<Option<Operation>>,
    free: Vec<usize>,
    wake: Arc<EventWake>,
    /// Where the kernel puts the eventfd's counter; in its hands while `wake_armed`.
    wake_buf: AlignedBuf,
    wake_armed: bool,
    /// How long to look before sleeping.
    spin: Duration,
    /// Writes that the calling thread did itself.
    ready: Vec<Completion>,
}

struct Operation {
    file: Arc<dyn File>,
    tag: u64,
    offset: u64,
    bytes: usize,
    done: usize,
    again: u32,
    work: Work,
}

enum Work {
    Write {
        chunk: Arc<AppendChunk>,
        start: usize,
        durable: bool,
    },
    Read {
        buf: AlignedBuf,
    },
    Sync,
}

impl UringQueue {
    pub(crate) fn new(depth: usize) -> io::Result<UringQueue> {
        // One more for the read that ends a wait.
        let entries = u32::try_from(depth + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (ring, disabled) = new_ring(entries)?;
        let wake_fd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(UringQueue {
            ring,
            enabled: !disabled,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            wake: Arc::new(EventWake {
                state: AtomicU32::new(IDLE),
                fd: wake_fd,
            }),
            wake_buf: AlignedBuf::new_zeroed(BLOCK_BYTES),
            wake_armed: false,
            spin: Duration::ZERO,
            ready: Vec::with_capacity(depth),
        })
    }

    fn push(&mut self, operation: Operation) {
        // A file of another storage is noticed here, before the operation takes a slot.
        OsFile::of(&operation.file);
        let depth = self.slots.len();
        let Some(slot) = self.free.pop() else {
            panic!("more than {depth} operations in flight")
        };
        self.slots[slot] = Some(operation);
        self.submit_slot(slot);
    }

    /// Puts what is left of a slot's operation into the submission ring.
    fn submit_slot(&mut self, slot: usize) {
        let operation = self.slots[slot]
            .as_mut()
            .expect("a slot in use holds its operation");
        let entry = operation.entry().user_data(slot as u64);
        self.submit_entry(&entry);
    }

    fn submit_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: file and memory of the entry are owned by a slot (or are the queue's own eventfd
        // and its buffer) until the completion is reaped, and `drop` waits for that.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the ring has an entry for every slot and one for the wake-up");
    }

    /// Submits what is queued and, with `want` 1, waits for a completion until the timeout.
    /// Returns early when interrupted: callers look at what has come and call again.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        let submitter = self.ring.submitter();
        let result = match timeout {
            Some(timeout) if want > 0 => {
                let timespec = Timespec::from(timeout);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&timespec))
            }
            _ => submitter.submit_and_wait(want),
        };
        match result.map_err(|error| (Errno::from_io_error(&error), error)) {
            // Busy: completions must be reaped first, or the kernel is short of memory for a
            // moment.
            Ok(_) | Err((Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Like `enter`, for callers that cannot go on without.
    fn must_enter(&mut self, want: usize, timeout: Option<Duration>) {
        if let Err(error) = self.enter(want, timeout) {
            panic!(
                "io_uring_enter failed (a queue belongs to the thread that used it first): {error}"
            );
        }
    }

    /// Submits if there is anything to submit, or the kernel has completions that it only posts
    /// when asked.
    fn submit(&mut self) {
        let needed = {
            let submission = self.ring.submission();
            !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
        };
        if needed {
            self.must_enter(0, None);
        }
    }

    /// Takes completions out of the ring.
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.ready);
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            if entry.user_data() == WAKE_DATA {
                self.wake_armed = false;
                continue;
            }
            let slot = usize::try_from(entry.user_data()).expect("user data is a slot's index");
            self.finish(slot, entry.result(), completions);
        }
    }

    /// One completion: the end of the operation, or a step after which the rest is submitted.
    fn finish(&mut self, slot: usize, result: i32, completions: &mut Vec<Completion>) {
        let operation = self.slots[slot]
            .as_mut()
            .expect("a slot in use holds its operation");
        let result = match operation.advance(result) {
            Progress::Rest => return self.submit_slot(slot),
            Progress::Done(result) => result,
        };
        let operation = self.slots[slot].take().expect("seen above");
        self.free.push(slot);
        let read = match operation.work {
            Work::Read { buf } => Some((buf, if result.is_ok() { operation.done } else { 0 })),
            Work::Write { .. } | Work::Sync => None,
        };
        completions.push(Completion {
            tag: operation.tag,
            result,
            read,
        });
    }

    /// Looks for completions and calls without sleeping; whether there were any.
    fn look(&mut self, completions: &mut Vec<Completion>, timeout_ns: Option<u64>) -> bool {
        let before = completions.len();
        let longest = timeout_ns.map_or(self.spin, |ns| self.spin.min(Duration::from_nanos(ns)));
        let begin = monotonic_now();
        loop {
            self.submit();
            self.reap(completions);
            if completions.len() > before || self.wake.is_called() {
                return true;
            }
            if monotonic_now().saturating_duration_since(begin) >= longest {
                return false;
            }
            // Whoever is about to call may need this CPU.
            std::thread::yield_now();
        }
    }

    /// Puts a read of the eventfd into the ring, so that a wake-up is a completion.
    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let fd = Fd(self.wake.fd.as_raw_fd());
        let entry = opcode::Read::new(fd, self.wake_buf.as_ptr_mut(), 8)
            .offset(u64::MAX)
            .build();
        self.submit_entry(&entry.user_data(WAKE_DATA));
        self.wake_armed = true;
    }
}

/// The ring with the cheapest flags that the kernel takes, and whether it is still disabled.
fn new_ring(entries: u32) -> io::Result<(IoUring, bool)> {
    // Linux 6.1: completions are posted by the one thread that uses the ring, when it asks.
    let result = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_r_disabled()
        .build(entries);
    if let Ok(ring) = result {
        return Ok((ring, true));
    }
    // Linux 5.19: no interrupts of the thread to post completions.
    let result = IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    if let Ok(ring) = result {
        return Ok((ring, false));
    }
    Ok((IoUring::new(entries)?, false))
}

/// What one completion of the kernel means for its operation.
enum Progress {
    Done(io::Result<()>),
    Rest,
}

impl Operation {
    fn entry(&mut self) -> squeue::Entry {
        let fd = Fd(OsFile::of(&self.file).as_fd().as_raw_fd());
        let offset = self.offset + self.done as u64;
        let piece = (self.bytes - self.done).min(PIECE_BYTES_MAX);
        let piece = u32::try_from(piece).expect("bounded above");
        match &mut self.work {
            Work::Write {
                chunk,
                start,
                durable,
            } => {
                let rest = chunk.frozen(*start + self.done..*start + self.bytes);
                let flags = if *durable {
                    ReadWriteFlags::DSYNC
                } else {
                    ReadWriteFlags::empty()
                };
                opcode::Write::new(fd, rest.as_ptr(), piece)
                    .offset(offset)
                    .rw_flags(flags.bits().cast_signed())
                    .build()
            }
            Work::Read { buf } => {
                // `wrapping_add` stays within the buffer: `done <= bytes`, and `bytes <= buf.len()`
                // was asserted at submission.
                let start = buf.as_ptr_mut().wrapping_add(self.done);
                opcode::Read::new(fd, start, piece).offset(offset).build()
            }
            Work::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    fn advance(&mut self, result: i32) -> Progress {
        let Ok(bytes) = usize::try_from(result) else {
            let interrupted = -result == Errno::INTR.raw_os_error();
            let again = -result == Errno::AGAIN.raw_os_error() && self.again < AGAIN_MAX;
            self.again += u32::from(again);
            if interrupted || again {
                return Progress::Rest;
            }
            return Progress::Done(Err(io::Error::from_raw_os_error(-result)));
        };
        self.done += bytes;
        let whole = self.done == self.bytes;
        match self.work {
            Work::Sync => Progress::Done(Ok(())),
            Work::Write { .. } if whole => Progress::Done(Ok(())),
            Work::Write { .. } => match check_progress(bytes) {
                Ok(()) => Progress::Rest,
                Err(error) => Progress::Done(Err(error)),
            },
            // Direct reads stop at an odd length only at the end of the file.
            Work::Read { .. } if whole || bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) => {
                Progress::Done(Ok(()))
            }
            Work::Read { .. } => Progress::Rest,
        }
    }
}

impl IoQueue for UringQueue {
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
        let WriteSource {
            chunk,
            start,
            bytes,
        } = source;
        // What is not frozen is noticed here, before the operation takes a slot.
        chunk.frozen(start..start + bytes);
        let work = Work::Write {
            chunk,
            start,
            durable,
        };
        let file = Arc::clone(file);
        self.push(Operation {
            file,
            tag,
            offset,
            bytes,
            done: 0,
            again: 0,
            work,
        });
    }

    fn write_at_once(
        &mut self,
        file: &Arc<dyn File>,
        source: WriteSource,
        offset: u64,
        durable: bool,
        tag: u64,
    ) {
        check_aligned(source.start, offset);
        check_aligned(source.bytes, offset);
        let bytes = source
            .chunk
            .frozen(source.start..source.start + source.bytes);
        let result = OsFile::of(file).write_all(bytes, offset, durable);
        self.ready.push(Completion {
            tag,
            result,
            read: None,
        });
    }

    fn read(&mut self, file: &Arc<dyn File>, buf: AlignedBuf, bytes: usize, offset: u64, tag: u64) {
        check_aligned(bytes, offset);
        assert!(
            bytes <= buf.len(),
            "read of {bytes} bytes into {}",
            buf.len()
        );
        let work = Work::Read { buf };
        let file = Arc::clone(file);
        self.push(Operation {
            file,
            tag,
            offset,
            bytes,
            done: 0,
            again: 0,
            work,
        });
    }

    fn sync(&mut self, file: &Arc<dyn File>, tag: u64) {
        let file = Arc::clone(file);
        self.push(Operation {
            file,
            tag,
            offset: 0,
            bytes: 0,
            done: 0,
            again: 0,
            work: Work::Sync,
        });
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        self.submit();
        self.reap(completions);
        // Rests of short transfers go out at once.
        self.submit();
    }

    fn wait(&mut self, completions: &mut Vec<Completion>, timeout_ns: Option<u64>) {
        let before = completions.len();
        self.reap(completions);
        if completions.len() > before {
            self.submit();
            self.wake.end_wait();
            return;
        }
        if !self.spin.is_zero() && self.look(completions, timeout_ns) {
            self.submit();
            self.wake.end_wait();
            return;
        }
        let deadline =
            timeout_ns.and_then(|ns| monotonic_now().checked_add(Duration::from_nanos(ns)));
        let mut left = timeout_ns.map(Duration::from_nanos);
        loop {
            if left == Some(Duration::ZERO) || !self.wake.begin_wait() {
                self.poll(completions);
                self.wake.end_wait();
                return;
            }
            self.arm_wake();
            self.must_enter(1, left);
            let woken = self.wake.end_wait();
            self.reap(completions);
            if woken || completions.len() > before {
                self.submit();
                return;
            }
            // Interrupted, a late wake-up of an earlier wait, or time is up.
            left = deadline.map(|deadline| deadline.saturating_duration_since(monotonic_now()));
        }
    }

    fn spin(&mut self, longest: Duration) {
        self.spin = longest;
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.ready.len()
    }

    fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake) as Arc<dyn Wake>)
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        if self.wake_armed {
            self.wake.signal();
        }
        self.ready.clear();
        let mut completions = Vec::new();
        while self.in_flight() > 0 || self.wake_armed {
            if self.enter(1, None).is_err() {
                // The kernel does not say when it is done (dropped by a thread that is not the
                // ring's): memory that it may still write to must outlive the queue.
                mem::forget(mem::take(&mut self.slots));
                let buf = mem::replace(&mut self.wake_buf, AlignedBuf::new_zeroed(0));
                mem::forget(buf);
                return;
            }
            self.reap(&mut completions);
            completions.clear();
        }
    }
}

/// The queue's thread is busy and nobody has called.
const IDLE: u32 = 0;
/// The queue's thread sleeps, or is about to: a call must go through the eventfd.
const WAITING: u32 = 1;
/// Somebody has called.
const WOKEN: u32 = 2;

/// An eventfd that is only written to when the queue's thread sleeps.
struct EventWake {
    state: AtomicU32,
    fd: OwnedFd,
}

impl EventWake {
    /// Announces sleep; false if somebody has called since the last wait.
    fn begin_wait(&self) -> bool {
        let exchange =
            self.state
                .compare_exchange(IDLE, WAITING, Ordering::AcqRel, Ordering::Acquire);
        exchange.is_ok()
    }

    /// Back to work; true if somebody has called.
    fn end_wait(&self) -> bool {
        self.state.swap(IDLE, Ordering::AcqRel) == WOKEN
    }

    /// Whether somebody has called since the last wait.
    fn is_called(&self) -> bool {
        self.state.load(Ordering::Acquire) == WOKEN
    }

    fn signal(&self) {
        // Any number but 0 wakes. Fails only when the counter is full, and then the reader is awake
        // anyway.
        let _ = rustix::io::write(&self.fd, &1_u64.to_le_bytes());
    }
}

impl Wake for EventWake {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == WAITING {
            self.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: i32 = 4096;

    fn operation(work: Work, blocks: usize) -> Operation {
        let file = OsFile::new(tempfile::tempfile().unwrap().into());
        let bytes = blocks * BLOCK_BYTES;
        Operation {
            file: Arc::new(file),
            tag: 1,
            offset: 0,
            bytes,
            done: 0,
            again: 0,
            work,
        }
    }

    fn write(blocks: usize) -> Operation {
        let mut writer = crate::ChunkWriter::new(blocks * BLOCK_BYTES);
        writer.zero_fill_to(blocks * BLOCK_BYTES);
        writer.freeze(writer.len());
        let work = Work::Write {
            chunk: writer.into_chunk(),
            start: 0,
            durable: true,
        };
        operation(work, blocks)
    }

    fn read(blocks: usize) -> Operation {
        let buf = AlignedBuf::new_zeroed(blocks * BLOCK_BYTES);
        operation(Work::Read { buf }, blocks)
    }

    /// Steps through results of the kernel; all but the last must leave a rest.
    fn steps(operation: &mut Operation, results: &[i32]) -> io::Result<()> {
        for (index, result) in results.iter().enumerate() {
            match operation.advance(*result) {
                Progress::Rest => assert!(index + 1 < results.len(), "more is expected"),
                Progress::Done(result) => {
                    assert_eq!(index + 1, results.len(), "done too early");
                    return result;
                }
            }
        }
        unreachable!("the last result ends the operation")
    }

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let mut operation = write(4);
        steps(
            &mut operation,
            &[BLOCK, -Errno::INTR.raw_os_error(), 2 * BLOCK, BLOCK],
        )
        .unwrap();
        let mut operation = read(4);
        steps(
            &mut operation,
            &[BLOCK, -Errno::AGAIN.raw_os_error(), 3 * BLOCK],
        )
        .unwrap();
        assert_eq!(operation.done, 4 * BLOCK_BYTES);
    }

    #[test]
    fn reads_end_at_the_end_of_the_file() {
        for (results, done) in [(&[0][..], 0), (&[BLOCK, 0], 4096), (&[BLOCK, 10], 4106)] {
            let mut operation = read(4);
            steps(&mut operation, results).unwrap();
            assert_eq!(operation.done, done);
        }
    }

    #[test]
    fn writes_that_stop_and_errors_are_reported() {
        for results in [&[0][..], &[BLOCK, 100]] {
            let error = steps(&mut write(4), results).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WriteZero);
        }
        let error = steps(&mut write(4), &[BLOCK, -Errno::IO.raw_os_error()]).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
        let again = vec![-Errno::AGAIN.raw_os_error(); AGAIN_MAX as usize + 1];
        let error = steps(&mut write(4), &again).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn waking_a_busy_thread_does_not_touch_the_eventfd() {
        let wake = EventWake {
            state: AtomicU32::new(IDLE),
            fd: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
        };
        let mut count = [0; 8];
        wake.wake();
        assert_eq!(rustix::io::read(&wake.fd, &mut count), Err(Errno::AGAIN));
        assert!(!wake.begin_wait(), "the call is not lost");
        assert!(wake.end_wait());
        assert!(wake.begin_wait());
        wake.wake();
        wake.wake();
        assert!(wake.end_wait());
        assert_eq!(rustix::io::read(&wake.fd, &mut count), Ok(8));
        assert_eq!(count, 1_u64.to_le_bytes(), "one signal for one sleep");
    }
}
