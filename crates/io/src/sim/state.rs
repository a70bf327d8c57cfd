//! The simulated machine: time, operations under way, faults, and what crashes leave.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::disk::{Disk, Interrupted, Stamp};
use super::faults::{Planned, SimFault, SimFaults, SimOp, fault_error};
use super::prng::SimPrng;
use super::trace::Trace;
use crate::{AlignedBuf, BLOCK_BYTES, Completion, WriteSource};

/// Size of the simulated file system unless set otherwise, in bytes.
const CAPACITY_BYTES: u64 = 1 << 40;

/// Where simulated time starts: 2024-01-01T00:00:00Z, in nanoseconds.
const UTC_START_NS: u64 = 1_704_067_200_000_000_000;

pub(super) struct State {
    prng: SimPrng,
    pub(super) random: SimPrng,
    /// Monotonic time; starts at 0 and goes on over crashes.
    pub(super) now_ns: u64,
    pub(super) utc_start_ns: u64,
    /// Number of boots, the present one included.
    pub(super) boots: u64,
    pub(super) faults: SimFaults,
    pub(super) plan: Vec<Planned>,
    pub(super) disk: Disk,
    pub(super) locks: BTreeSet<String>,
    pub(super) operations: u64,
    pub(super) trace: Trace,
    /// Queued operations by the time at which they complete.
    under_way: BTreeMap<(u64, u64), UnderWay>,
    queues: BTreeMap<u64, QueueState>,
    next_id: u64,
}

#[derive(Default)]
struct QueueState {
    ready: Vec<Completion>,
    /// When the last of its operations completes, to keep the order if asked to.
    last_due_ns: u64,
}

/// What an operation on a file does.
pub(super) enum Request {
    Write {
        data: Data,
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

/// The bytes of a write.
pub(super) enum Data {
    Chunk(WriteSource),
    Copy(Vec<u8>),
}

impl Data {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Data::Chunk(source) => source
                .chunk
                .frozen(source.start..source.start + source.bytes),
            Data::Copy(bytes) => bytes,
        }
    }
}

impl Request {
    fn op(&self) -> SimOp {
        match self {
            Request::Write { .. } => SimOp::Write,
            Request::Read { .. } => SimOp::Read,
            Request::Sync => SimOp::Sync,
        }
    }
}

/// An operation that the device has and has not finished.
pub(super) struct UnderWay {
    pub(super) queue: u64,
    pub(super) tag: u64,
    pub(super) inode: u64,
    pub(super) writable: bool,
    pub(super) request: Request,
    /// What was written before it is what a sync covers.
    issued: Stamp,
    fault: Option<SimFault>,
}

/// Keeps the file of an operation alive until its completion is applied.
type Read = Option<(AlignedBuf, usize)>;

impl State {
    pub(super) fn new(seed: u64) -> State {
        let mut prng = SimPrng::new(seed);
        let random = SimPrng::new(prng.next_u64());
        State {
            prng,
            random,
            now_ns: 0,
            utc_start_ns: UTC_START_NS,
            boots: 1,
            faults: SimFaults::default(),
            plan: Vec::new(),
            disk: Disk::new(CAPACITY_BYTES),
            locks: BTreeSet::new(),
            operations: 0,
            trace: Trace::default(),
            under_way: BTreeMap::new(),
            queues: BTreeMap::new(),
            next_id: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Counts an operation and says what goes wrong with it.
    fn begin(&mut self, op: SimOp) -> Option<SimFault> {
        self.operations += 1;
        let mut planned = None;
        self.plan.retain_mut(|plan| {
            if plan.op.is_some_and(|planned| planned != op) || planned.is_some() {
                return true;
            }
            if plan.passes > 0 {
                plan.passes -= 1;
                return true;
            }
            planned = Some(plan.fault);
            false
        });
        planned.or_else(|| self.faults.draw(op, &mut self.prng))
    }

    /// One operation outside a queue: counts it, lets its time pass, and gives its fault. If power
    /// failed meanwhile, that is the answer.
    pub(super) fn spend(&mut self, op: SimOp, text: &str) -> io::Result<Option<SimFault>> {
        let fault = self.begin(op);
        let latency = self.faults.latency_ns(&mut self.prng);
        let boots = self.boots;
        self.advance_to(self.now_ns.saturating_add(latency));
        if self.boots != boots {
            return Err(fault_error(SimFault::Crash));
        }
        let now = self.now_ns;
        let code = fault.map_or(0, |fault| fault as u64 + 1);
        self.trace
            .record(&[op as u64, code, now], text.as_bytes(), || {
                format!("{now} {op:?} {text}{}", fault_text(fault))
            });
        Ok(fault)
    }

    /// Like `spend`, for an operation that either happens or, by a fault that is not a crash, does
    /// not.
    pub(super) fn spend_or_fail(&mut self, op: SimOp, text: &str) -> io::Result<Option<SimFault>> {
        match self.spend(op, text)? {
            None => Ok(None),
            Some(SimFault::Crash) => Ok(Some(SimFault::Crash)),
            Some(fault) => Err(fault_error(fault)),
        }
    }

    /// Like `spend`, for a change of directories: without room it does not happen, by an error it
    /// may have happened.
    pub(super) fn spend_change(&mut self, op: SimOp, text: &str) -> io::Result<Option<SimFault>> {
        let fault = self.spend(op, text)?;
        match fault {
            None | Some(SimFault::Lost | SimFault::Crash) => Ok(fault),
            Some(SimFault::NoSpace) => Err(fault_error(SimFault::NoSpace)),
            Some(error) if self.prng.coin() => Err(fault_error(error)),
            Some(_) => Ok(fault),
        }
    }

    /// One operation on a file outside a queue.
    pub(super) fn run(
        &mut self,
        inode: u64,
        writable: bool,
        request: Request,
    ) -> (io::Result<()>, Read) {
        let op = request.op();
        let fault = match self.spend(op, &format!("{} #{inode}", describe(&request))) {
            Ok(fault) => fault,
            Err(error) => return (Err(error), None),
        };
        let issued = self.disk.stamp();
        let under_way = UnderWay {
            queue: 0,
            tag: 0,
            inode,
            writable,
            request,
            issued,
            fault,
        };
        if fault == Some(SimFault::Crash) {
            let id = self.id();
            self.under_way.insert((self.now_ns, id), under_way);
            self.crash();
            return (Err(fault_error(SimFault::Crash)), None);
        }
        self.apply(under_way)
    }

    /// Gives an operation of a queue to the device.
    pub(super) fn give(
        &mut self,
        queue: u64,
        tag: u64,
        inode: u64,
        writable: bool,
        request: Request,
    ) {
        let fault = self.begin(request.op());
        let mut due = self
            .now_ns
            .saturating_add(self.faults.latency_ns(&mut self.prng));
        let state = self.queues.entry(queue).or_default();
        if !self.faults.reorder {
            due = due.max(state.last_due_ns);
        }
        state.last_due_ns = state.last_due_ns.max(due);
        let id = self.id();
        let now = self.now_ns;
        self.trace.record(&[100, queue, tag, inode, now], &[], || {
            let text = describe(&request);
            format!(
                "{now} queue {queue}: submit {tag} {text} #{inode}{}",
                fault_text(fault)
            )
        });
        let issued = self.disk.stamp();
        let under_way = UnderWay {
            queue,
            tag,
            inode,
            writable,
            request,
            issued,
            fault,
        };
        self.under_way.insert((due, id), under_way);
    }

    pub(super) fn add_queue(&mut self) -> u64 {
        let queue = self.id();
        self.queues.insert(queue, QueueState::default());
        queue
    }

    /// Waits for what a queue has under way, as dropping a real one does, and forgets the queue.
    pub(super) fn drop_queue(&mut self, queue: u64) {
        while let Some(due) = self.last_due(queue) {
            self.advance_to(due);
        }
        self.queues.remove(&queue);
    }

    fn last_due(&self, queue: u64) -> Option<u64> {
        let mut under_way = self.under_way.iter().rev();
        under_way
            .find(|(_, op)| op.queue == queue)
            .map(|((due, _), _)| *due)
    }

    /// When the next operation of a queue completes.
    pub(super) fn next_due(&self, queue: u64) -> Option<u64> {
        let mut under_way = self.under_way.iter();
        under_way
            .find(|(_, op)| op.queue == queue)
            .map(|((due, _), _)| *due)
    }

    /// Completions of a queue since the last call.
    pub(super) fn take_ready(&mut self, queue: u64) -> Vec<Completion> {
        self.queues
            .get_mut(&queue)
            .map(|queue| std::mem::take(&mut queue.ready))
            .unwrap_or_default()
    }

    /// Lets time pass until `time_ns`, completing what is due, or until power fails.
    pub(super) fn advance_to(&mut self, time_ns: u64) {
        while let Some(entry) = self.under_way.first_entry() {
            let (due, id) = *entry.key();
            if due > time_ns {
                break;
            }
            let under_way = entry.remove();
            self.now_ns = self.now_ns.max(due);
            if under_way.fault == Some(SimFault::Crash) {
                self.under_way.insert((due, id), under_way);
                self.crash();
                return;
            }
            let (queue, tag) = (under_way.queue, under_way.tag);
            let (result, read) = self.apply(under_way);
            let now = self.now_ns;
            let failed = u64::from(result.is_err());
            let data = read.as_ref().map_or(&[][..], |(buf, bytes)| &buf[..*bytes]);
            self.trace
                .record(&[101, queue, tag, failed, now], data, || {
                    let text = result
                        .as_ref()
                        .map_or_else(ToString::to_string, |()| "done".to_owned());
                    format!("{now} queue {queue}: {tag} {text}")
                });
            if let Some(state) = self.queues.get_mut(&queue) {
                state.ready.push(Completion { tag, result, read });
            }
        }
        self.now_ns = self.now_ns.max(time_ns);
    }

    /// Does what the device does when an operation completes.
    fn apply(&mut self, under_way: UnderWay) -> (io::Result<()>, Read) {
        let UnderWay {
            inode,
            writable,
            request,
            issued,
            fault,
            ..
        } = under_way;
        match request {
            Request::Write {
                data,
                offset,
                durable,
            } => {
                if !writable {
                    const EBADF: i32 = 9;
                    return (Err(io::Error::from_raw_os_error(EBADF)), None);
                }
                let result = self.apply_write(inode, data.bytes(), offset, durable, fault);
                if durable && result.is_ok() {
                    self.maybe_flush_device(issued);
                }
                (result, None)
            }
            Request::Read {
                mut buf,
                bytes,
                offset,
            } => {
                let result = self.apply_read(inode, &mut buf[..bytes], offset, fault);
                let done = result.as_ref().map_or(0, |bytes| *bytes);
                (result.map(drop), Some((buf, done)))
            }
            Request::Sync => (self.apply_sync(inode, issued, fault), None),
        }
    }

    fn apply_write(
        &mut self,
        inode: u64,
        bytes: &[u8],
        offset: u64,
        durable: bool,
        fault: Option<SimFault>,
    ) -> io::Result<()> {
        let op = [SimOp::Write as u64, inode, offset, u64::from(durable)];
        self.trace.record(&op, bytes, String::new);
        if !self.disk.has_room(inode, offset + bytes.len() as u64) {
            return Err(fault_error(SimFault::NoSpace));
        }
        match fault {
            None => self.disk.write(inode, offset, bytes, durable),
            Some(SimFault::Lost) => {}
            Some(SimFault::Misdirected) => {
                self.disk
                    .write_elsewhere(inode, bytes, durable, &mut self.prng);
            }
            Some(fault) => {
                if fault == SimFault::Error {
                    self.disk.write_part(inode, offset, bytes, &mut self.prng);
                }
                return Err(fault_error(fault));
            }
        }
        Ok(())
    }

    fn maybe_flush_device(&mut self, issued: Stamp) {
        if self.prng.chance_ppm(self.faults.durable_write_flushes_ppm) {
            self.disk.flush_device(issued);
        }
    }

    fn apply_read(
        &mut self,
        inode: u64,
        into: &mut [u8],
        offset: u64,
        fault: Option<SimFault>,
    ) -> io::Result<usize> {
        match fault {
            None => self.disk.read(inode, offset, into),
            Some(SimFault::Misdirected) => {
                let elsewhere = self
                    .disk
                    .random_block(inode, &mut self.prng)
                    .unwrap_or(offset);
                let bytes = self.disk.read(inode, offset, into)?;
                // The length is the file system's and stays right; the contents are another
                // block's.
                let first = bytes.min(BLOCK_BYTES);
                self.disk.read(inode, elsewhere, &mut into[..first])?;
                Ok(bytes)
            }
            Some(fault) => {
                if fault == SimFault::Latent && !into.is_empty() {
                    self.disk.make_unreadable(inode, offset, into.len() as u64);
                }
                Err(fault_error(fault))
            }
        }
    }

    fn apply_sync(&mut self, inode: u64, issued: Stamp, fault: Option<SimFault>) -> io::Result<()> {
        match fault {
            None => self.disk.flush(inode, issued),
            Some(SimFault::Lost) => {}
            Some(fault) => {
                if fault == SimFault::Error {
                    self.disk.doom(inode, &mut self.prng);
                }
                return Err(fault_error(fault));
            }
        }
        Ok(())
    }

    /// Power fails now. The next boot begins with what is on the medium.
    pub(super) fn crash(&mut self) {
        let under_way = std::mem::take(&mut self.under_way);
        for op in under_way.values() {
            // A sync under way may have done all of its work.
            if matches!(op.request, Request::Sync) && self.prng.coin() {
                self.disk.flush(op.inode, op.issued);
            }
        }
        let interrupted: Vec<_> = under_way.values().filter_map(interrupted).collect();
        self.disk.crash(&interrupted, &mut self.prng);
        self.queues.clear();
        self.locks.clear();
        self.boots += 1;
        let (now, boots) = (self.now_ns, self.boots);
        self.trace.record(&[102, now, boots], &[], || {
            format!("{now} power fails, boot {boots}")
        });
    }

    /// The process dies and the machine lives: the kernel finishes what it has, nothing is lost.
    pub(super) fn kill(&mut self) {
        let boots = self.boots;
        if let Some(((due, _), _)) = self.under_way.last_key_value() {
            self.advance_to(*due);
        }
        // Unless power fails while the kernel finishes.
        if self.boots == boots {
            let disk = self.disk.clone();
            self.replace_disk(disk);
        }
    }

    /// Another disk takes the place of the present one; whatever is open or under way is gone.
    pub(super) fn replace_disk(&mut self, mut disk: Disk) {
        disk.close_all();
        self.under_way.clear();
        self.queues.clear();
        self.locks.clear();
        self.boots += 1;
        self.disk = disk;
        let (now, boots) = (self.now_ns, self.boots);
        self.trace.record(&[103, now, boots], &[], || {
            format!("{now} new process, boot {boots}")
        });
    }
}

fn interrupted(op: &UnderWay) -> Option<Interrupted<'_>> {
    match &op.request {
        Request::Write { data, offset, .. } if op.writable => Some(Interrupted {
            inode: op.inode,
            offset: *offset,
            bytes: data.bytes(),
        }),
        _ => None,
    }
}

fn fault_text(fault: Option<SimFault>) -> String {
    fault.map_or_else(String::new, |fault| format!(" [{fault:?}]"))
}

fn describe(request: &Request) -> String {
    match request {
        Request::Write {
            data,
            offset,
            durable,
        } => {
            let durable = if *durable { "durable " } else { "" };
            format!("{durable}write {}+{}", offset, data.bytes().len())
        }
        Request::Read { bytes, offset, .. } => format!("read {offset}+{bytes}"),
        Request::Sync => "sync".to_owned(),
    }
}
