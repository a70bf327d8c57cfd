//! What the code under test holds of the simulated world. All of it belongs to one boot and fails
//! after the next crash.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faults::{SimFault, SimOp, fault_error, power_failed};
use super::names::{Node, parent};
use super::state::{Data, Request, State};
use crate::file::{LOCK_HOLDER_BYTES_MAX, check_aligned, check_path};
use crate::storage::Wake;
use crate::{
    AlignedBuf, Clock, Completion, DirEntry, File, IoQueue, OpenMode, Random, Space, Storage,
    Waker, WriteSource,
};

/// Time that one poll takes, so that polling without waiting ends, in nanoseconds.
const POLL_NS: u64 = 1_000;

pub(super) type Shared = Arc<Mutex<State>>;

/// The world's state. A panic elsewhere while it was held does not matter: the simulation is over
/// then, and only drops follow.
pub(super) fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A share of the world that is good for one boot.
#[derive(Clone)]
struct Booted {
    state: Shared,
    boots: u64,
}

impl Booted {
    fn lock(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        if state.boots == self.boots {
            Ok(state)
        } else {
            Err(power_failed())
        }
    }
}

/// The simulated data directory as one boot sees it.
pub struct SimStorage {
    booted: Booted,
}

impl SimStorage {
    pub(super) fn new(state: &Shared) -> SimStorage {
        let boots = lock(state).boots;
        SimStorage {
            booted: Booted {
                state: Arc::clone(state),
                boots,
            },
        }
    }

    fn file(&self, state: &mut State, inode: u64, writable: bool) -> SimFile {
        state.disk.acquire(inode);
        SimFile {
            booted: self.booted.clone(),
            inode,
            writable,
        }
    }
}

/// Like `check_path`, for files: the root is none.
fn check_file_path(path: &str) -> io::Result<()> {
    check_path(path)?;
    if path.is_empty() {
        Err(io::ErrorKind::InvalidInput.into())
    } else {
        Ok(())
    }
}

/// Does what an operation does. If power fails during it, what it did is under way, and it gives
/// nothing else, not even an error of its own.
fn conclude<T>(
    state: &mut State,
    fault: Option<SimFault>,
    operation: impl FnOnce(&mut State) -> io::Result<T>,
) -> io::Result<T> {
    let result = operation(state);
    if fault == Some(SimFault::Crash) {
        state.crash();
        return Err(power_failed());
    }
    result
}

/// Ends a change of directories: durable, unless the fault says otherwise.
fn settle(state: &mut State, dirs: &[&str], fault: Option<SimFault>) -> io::Result<()> {
    match fault {
        None => {
            for dir in dirs {
                state.disk.names.sync(dir);
            }
            state.disk.collect();
            Ok(())
        }
        // Seen, but not durable.
        Some(SimFault::Lost | SimFault::Crash) => Ok(()),
        // The change was made and its sync failed.
        Some(fault) => Err(fault_error(fault)),
    }
}

fn create(state: &mut State, path: &str) -> io::Result<u64> {
    let disk = &mut state.disk;
    disk.names.check_dir(parent(path))?;
    if disk.names.get(path).is_some() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    if disk.used() >= disk.capacity {
        return Err(fault_error(SimFault::NoSpace));
    }
    let inode = disk.create();
    disk.names.link(path, Node::File(inode));
    Ok(inode)
}

/// Makes a directory and those above it; gives the directories whose entries may have changed.
fn create_dirs<'a>(state: &mut State, path: &'a str) -> io::Result<Vec<&'a str>> {
    let ends = path
        .match_indices('/')
        .map(|(at, _)| at)
        .chain([path.len()]);
    let dirs: Vec<&str> = ends.map(|end| &path[..end]).collect();
    for dir in &dirs {
        match state.disk.names.get(dir) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => state.disk.names.link(dir, Node::Dir),
        }
    }
    Ok(dirs.into_iter().map(parent).collect())
}

fn list(state: &State, path: &str) -> io::Result<Vec<DirEntry>> {
    state.disk.names.check_dir(path)?;
    let entry = |(name, node): (&str, Node)| {
        let (bytes, is_dir) = match node {
            Node::Dir => (0, true),
            Node::File(inode) => (state.disk.len(inode), false),
        };
        DirEntry {
            name: name.to_owned(),
            bytes,
            is_dir,
        }
    };
    let mut entries: Vec<_> = state.disk.names.entries(path).map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

impl Storage for SimStorage {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        check_file_path(path)?;
        let state = &mut *self.booted.lock()?;
        let new = mode == OpenMode::CreateNew;
        let fault = state.spend_or_fail(if new { SimOp::Create } else { SimOp::Open }, path)?;
        let inode = conclude(state, fault, |state| {
            if new {
                create(state, path)
            } else {
                state.disk.names.file(path)
            }
        })?;
        Ok(Arc::new(self.file(state, inode, mode != OpenMode::Read)))
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        check_path(path)?;
        let state = &mut *self.booted.lock()?;
        let fault = state.spend_or_fail(SimOp::List, path)?;
        conclude(state, fault, |state| list(state, path))
    }

    fn durable_create_dir(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        let state = &mut *self.booted.lock()?;
        let fault = state.spend_change(SimOp::CreateDir, path)?;
        conclude(state, fault, |state| {
            let changed = create_dirs(state, path)?;
            settle(state, &changed, fault)
        })
    }

    fn durable_rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_file_path(from)?;
        check_file_path(to)?;
        let state = &mut *self.booted.lock()?;
        let fault = state.spend_change(SimOp::Rename, &format!("{from} -> {to}"))?;
        conclude(state, fault, |state| {
            let names = &mut state.disk.names;
            names.file(from)?;
            names.check_dir(parent(to))?;
            if names.get(to) == Some(Node::Dir) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            names.rename(from, to);
            settle(state, &[parent(from), parent(to)], fault)
        })
    }

    fn durable_remove(&self, path: &str) -> io::Result<()> {
        check_file_path(path)?;
        let state = &mut *self.booted.lock()?;
        let fault = state.spend_change(SimOp::Remove, path)?;
        conclude(state, fault, |state| {
            state.disk.names.file(path)?;
            state.disk.names.unlink(path);
            settle(state, &[parent(path)], fault)
        })
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        let state = &mut *self.booted.lock()?;
        let fault = state.spend_change(SimOp::SyncDir, path)?;
        conclude(state, fault, |state| {
            state.disk.names.check_dir(path)?;
            settle(state, &[path], fault)
        })
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn IoQueue>> {
        assert!(depth > 0, "a queue needs room for one operation");
        let id = self.booted.lock()?.add_queue();
        Ok(Box::new(SimQueue {
            booted: self.booted.clone(),
            id,
            depth,
            queued: Vec::new(),
            outstanding: Vec::new(),
            woken: Arc::new(SimWake(AtomicBool::new(false))),
        }))
    }

    fn lock(&self, path: &str, holder: &str) -> io::Result<Box<dyn Send + Sync>> {
        check_file_path(path)?;
        let state = &mut *self.booted.lock()?;
        state.disk.names.check_dir(parent(path))?;
        let inode = match state.disk.names.get(path) {
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(inode)) => inode,
            None => {
                let inode = state.disk.create();
                state.disk.names.link(path, Node::File(inode));
                inode
            }
        };
        if !state.locks.insert(path.to_owned()) {
            let mut text = [0; LOCK_HOLDER_BYTES_MAX];
            let bytes = state.disk.read(inode, 0, &mut text)?;
            let text = format!("locked by {}", String::from_utf8_lossy(&text[..bytes]));
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        let text = &holder.as_bytes()[..holder.floor_char_boundary(LOCK_HOLDER_BYTES_MAX)];
        state.disk.set_len(inode, 0);
        state.disk.write(inode, 0, text, false);
        Ok(Box::new(SimLock {
            booted: self.booted.clone(),
            path: path.to_owned(),
        }))
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.booted.lock()?;
        let total_bytes = state.disk.capacity;
        Ok(Space {
            free_bytes: total_bytes.saturating_sub(state.disk.used()),
            total_bytes,
        })
    }

    fn backend(&self) -> &'static str {
        "simulated"
    }
}

struct SimLock {
    booted: Booted,
    path: String,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        // After a crash nothing is locked any more.
        if let Ok(mut state) = self.booted.lock() {
            state.locks.remove(&self.path);
        }
    }
}

/// An open file of the simulated disk.
struct SimFile {
    booted: Booted,
    inode: u64,
    writable: bool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(mut state) = self.booted.lock() {
            state.disk.release(self.inode);
        }
    }
}

impl SimFile {
    fn of(file: &Arc<dyn File>) -> &SimFile {
        file.as_any()
            .downcast_ref()
            .expect("a queue gets files of its own storage only")
    }

    fn check_writable(&self) -> io::Result<()> {
        const EINVAL: i32 = 22;
        if self.writable {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(EINVAL))
        }
    }

    /// Changes the length; reserving only ever enlarges it.
    fn resize(&self, op: SimOp, bytes: u64) -> io::Result<()> {
        self.check_writable()?;
        let state = &mut *self.booted.lock()?;
        let fault = state.spend_or_fail(op, &format!("#{} to {bytes}", self.inode))?;
        conclude(state, fault, |state| {
            if !state.disk.has_room(self.inode, bytes) {
                return Err(fault_error(SimFault::NoSpace));
            }
            if op == SimOp::SetLen || bytes > state.disk.len(self.inode) {
                state.disk.set_len(self.inode, bytes);
            }
            Ok(())
        })
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.booted.lock()?.disk.len(self.inode))
    }

    fn read_at(&self, buf: &mut AlignedBuf, bytes: usize, offset: u64) -> io::Result<usize> {
        check_aligned(bytes, offset);
        let own = std::mem::replace(buf, AlignedBuf::new_zeroed(0));
        let request = Request::Read {
            buf: own,
            bytes,
            offset,
        };
        let (result, read) = self.booted.lock()?.run(self.inode, self.writable, request);
        match read {
            Some((own, bytes)) => {
                *buf = own;
                result.map(|()| bytes)
            }
            None => result.map(|()| 0),
        }
    }

    fn write_at(&self, buf: &AlignedBuf, bytes: usize, offset: u64) -> io::Result<()> {
        check_aligned(bytes, offset);
        let data = Data::Copy(buf[..bytes].to_vec());
        let request = Request::Write {
            data,
            offset,
            durable: false,
        };
        self.booted
            .lock()?
            .run(self.inode, self.writable, request)
            .0
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.resize(SimOp::Allocate, bytes)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.resize(SimOp::SetLen, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.booted
            .lock()?
            .run(self.inode, self.writable, Request::Sync)
            .0
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct SimQueue {
    booted: Booted,
    id: u64,
    depth: usize,
    /// Not yet given to the device.
    queued: Vec<Queued>,
    /// Everything submitted and not yet returned. The files stay open so long.
    outstanding: Vec<(u64, Arc<dyn File>)>,
    woken: Arc<SimWake>,
}

struct Queued {
    tag: u64,
    inode: u64,
    writable: bool,
    request: Request,
}

impl SimQueue {
    fn push(&mut self, file: &Arc<dyn File>, tag: u64, request: Request) {
        let depth = self.depth;
        assert!(
            self.outstanding.len() < depth,
            "more than {depth} operations in flight"
        );
        let SimFile {
            inode, writable, ..
        } = *SimFile::of(file);
        self.queued.push(Queued {
            tag,
            inode,
            writable,
            request,
        });
        self.outstanding.push((tag, Arc::clone(file)));
    }

    /// Takes what is ready; after a crash, everything fails.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        // Files are dropped after the state is free again: closing them needs it.
        let mut closed = Vec::new();
        match self.booted.lock() {
            Ok(mut state) => {
                for completion in state.take_ready(self.id) {
                    let mut tags = self.outstanding.iter();
                    let at = tags.position(|(tag, _)| *tag == completion.tag);
                    let at = at.expect("completions are of submitted operations");
                    closed.push(self.outstanding.swap_remove(at));
                    completions.push(completion);
                }
            }
            Err(_) => {
                self.queued.clear();
                for (tag, file) in self.outstanding.drain(..) {
                    completions.push(Completion {
                        tag,
                        result: Err(power_failed()),
                        read: None,
                    });
                    closed.push((tag, file));
                }
            }
        }
    }

    /// Gives everything queued to the device.
    fn give(&mut self) {
        if let Ok(mut state) = self.booted.lock() {
            for Queued {
                tag,
                inode,
                writable,
                request,
            } in self.queued.drain(..)
            {
                state.give(self.id, tag, inode, writable, request);
            }
        }
    }

    /// Lets time pass until an operation of this queue completes or the timeout.
    fn sleep(&self, timeout_ns: Option<u64>) {
        let Ok(mut state) = self.booted.lock() else {
            return;
        };
        let deadline = timeout_ns.map(|ns| state.now_ns.saturating_add(ns));
        let until = match (state.next_due(self.id), deadline) {
            (Some(due), Some(deadline)) => due.min(deadline),
            (Some(time), None) | (None, Some(time)) => time,
            (None, None) => {
                panic!("a wait that nothing can end: no operation, no wake, no timeout")
            }
        };
        state.advance_to(until);
    }
}

impl IoQueue for SimQueue {
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
            Request::Write {
                data: Data::Chunk(source),
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
        self.push(file, tag, Request::Read { buf, bytes, offset });
    }

    fn sync(&mut self, file: &Arc<dyn File>, tag: u64) {
        self.push(file, tag, Request::Sync);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        self.give();
        if let Ok(mut state) = self.booted.lock() {
            let until = state.now_ns.saturating_add(POLL_NS);
            state.advance_to(until);
        }
        self.collect(completions);
    }

    fn wait(&mut self, completions: &mut Vec<Completion>, timeout_ns: Option<u64>) {
        let before = completions.len();
        self.give();
        self.collect(completions);
        let woken = self.woken.0.swap(false, Ordering::AcqRel);
        if !woken && completions.len() == before {
            self.sleep(timeout_ns);
            self.collect(completions);
        }
    }

    fn in_flight(&self) -> usize {
        self.outstanding.len()
    }

    fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.woken) as Arc<dyn Wake>)
    }
}

impl Drop for SimQueue {
    fn drop(&mut self) {
        self.give();
        if let Ok(mut state) = self.booted.lock() {
            state.drop_queue(self.id);
        }
    }
}

struct SimWake(AtomicBool);

impl Wake for SimWake {
    fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The simulated clocks. Time passes only by operations, waits, and
/// [`advance_ns`](super::SimWorld::advance_ns).
pub struct SimClock {
    pub(super) state: Shared,
}

impl Clock for SimClock {
    fn utc_ns(&self) -> u64 {
        let state = lock(&self.state);
        state.utc_start_ns.saturating_add(state.now_ns)
    }

    fn monotonic_ns(&self) -> u64 {
        lock(&self.state).now_ns
    }
}

/// Random bytes that depend on the seed alone.
pub struct SimRandom {
    pub(super) state: Shared,
}

impl Random for SimRandom {
    fn fill(&self, bytes: &mut [u8]) {
        lock(&self.state).random.fill(bytes);
    }
}
