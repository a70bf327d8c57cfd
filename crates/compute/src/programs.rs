//! Programs by hash: module bytes from the log, made into something that runs, once for all
//! partitions.
//!
//! Making a program may take half a minute for a language with an interpreter of its own. A thread
//! does it, so that a fold goes on with its other modules; with a stepped engine it is done where it
//! is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use truthdb_engine::{Direction, Engine, ReadError, RevisionFrom, StreamReadRequest};
use truthdb_io::{AlignedBuf, BLOCK_BYTES, OpenMode, Storage, World};

use crate::catalogue::Step;
use crate::control::{CODE_STREAM_PREFIX, hex};
use crate::guest::{Program, Runtime};
use crate::request::{MODULE_BYTES_MAX, ModuleHash};

/// Folder of the copies of module bytes, below the data directory. Derived: the log has them.
pub(crate) const CODE_DIR: &str = "modules";

/// Whether a program can be used.
#[derive(Clone)]
pub(crate) enum Found {
    Ready(Arc<dyn Program>),
    Loading,
    Failed(Arc<str>),
}

/// What makes one program different from another.
type Key = (ModuleHash, String);

struct Inner {
    programs: BTreeMap<Key, Found>,
    /// Still to be made, for the thread.
    wanted: Vec<(Key, u32, Step)>,
    stopping: bool,
}

/// See the module's description.
pub(crate) struct Programs {
    engine: Engine,
    world: World,
    runtime: Arc<dyn Runtime>,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// A thread makes the programs.
    threaded: bool,
    /// Called when a program was made.
    wake: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl Programs {
    pub(crate) fn new(
        engine: &Engine,
        world: &World,
        runtime: Arc<dyn Runtime>,
        threaded: bool,
    ) -> Programs {
        Programs {
            engine: engine.clone(),
            world: world.clone(),
            runtime,
            inner: Mutex::new(Inner {
                programs: BTreeMap::new(),
                wanted: Vec::new(),
                stopping: false,
            }),
            changed: Condvar::new(),
            threaded,
            wake: Mutex::new(None),
        }
    }

    pub(crate) fn runtime(&self) -> &dyn Runtime {
        self.runtime.as_ref()
    }

    /// Has a function called when a program was made.
    pub(crate) fn on_change(&self, wake: Box<dyn Fn() + Send + Sync>) {
        *self.wake.lock() = Some(wake);
    }

    fn key(step: &Step) -> Key {
        (step.hash, format!("{:?} {:?}", step.limits, step.wasi))
    }

    /// The program of a step, as far as it is made; begins to make it.
    pub(crate) fn get(&self, partition: u32, step: &Step) -> Found {
        let key = Programs::key(step);
        let mut inner = self.inner.lock();
        if let Some(found) = inner.programs.get(&key) {
            return found.clone();
        }
        if self.threaded {
            inner.programs.insert(key.clone(), Found::Loading);
            inner.wanted.push((key, partition, step.clone()));
            drop(inner);
            self.changed.notify_all();
            return Found::Loading;
        }
        drop(inner);
        self.make(key, partition, step)
    }

    /// As [`Programs::get`], and makes the program on this thread if nobody did.
    pub(crate) fn load(&self, partition: u32, step: &Step) -> Found {
        let key = Programs::key(step);
        let known = self.inner.lock().programs.get(&key).cloned();
        match known {
            Some(Found::Ready(program)) => Found::Ready(program),
            _ => self.make(key, partition, step),
        }
    }

    /// Lets a failed program be made again.
    pub(crate) fn forget_failures(&self) {
        let mut inner = self.inner.lock();
        inner
            .programs
            .retain(|_, found| !matches!(found, Found::Failed(_)));
    }

    fn make(&self, key: Key, partition: u32, step: &Step) -> Found {
        let found = match self.bytes(partition, &step.hash) {
            Ok(bytes) => match self.runtime.load(&bytes, &step.limits, step.wasi) {
                Ok(program) => Found::Ready(program),
                Err(reason) => Found::Failed(reason.into()),
            },
            Err(reason) => Found::Failed(reason.into()),
        };
        self.inner.lock().programs.insert(key, found.clone());
        if let Some(wake) = &*self.wake.lock() {
            wake();
        }
        found
    }

    /// The thread that makes programs.
    pub(crate) fn run(&self) {
        loop {
            let (key, partition, step) = {
                let mut inner = self.inner.lock();
                loop {
                    if inner.stopping {
                        return;
                    }
                    if let Some(wanted) = inner.wanted.pop() {
                        break wanted;
                    }
                    self.changed.wait(&mut inner);
                }
            };
            self.make(key, partition, &step);
        }
    }

    pub(crate) fn stop(&self) {
        self.inner.lock().stopping = true;
        self.changed.notify_all();
    }

    /// A module's bytes: from their copy in the data directory, else from the log.
    ///
    /// # Errors
    /// In words, since whoever needs them waits and says why.
    pub(crate) fn bytes(&self, partition: u32, hash: &ModuleHash) -> Result<Bytes, String> {
        if let Some(bytes) = self.read_copy(hash) {
            return Ok(bytes);
        }
        let bytes = self
            .read_log(partition, hash)
            .map_err(|error| crate::error::chain(&error))?;
        if blake3::hash(&bytes).as_bytes() != hash {
            return Err(format!(
                "the bytes of module {} in partition {partition} are not whole; publish them again",
                hex(hash)
            ));
        }
        self.write_copy(hash, &bytes);
        Ok(bytes)
    }

    /// The newest whole set of chunks of a code.
    fn read_log(&self, partition: u32, hash: &ModuleHash) -> Result<Bytes, ReadError> {
        let mut request = StreamReadRequest {
            stream: format!("{CODE_STREAM_PREFIX}{}", hex(hash)),
            partition: Some(partition),
            from: RevisionFrom::Start,
            direction: Direction::Forward,
            events_max: 64,
            bytes_max: 8 << 20,
        };
        let mut bytes = Vec::new();
        loop {
            let page = match self.engine.read_stream(&request) {
                Err(ReadError::StreamNotFound { .. }) => break,
                page => page?,
            };
            for batch in &page.batches {
                for stored in batch.events() {
                    let event = stored.event();
                    // A publication that was cut off is followed by another one.
                    if event.metadata_value("$offset") == Some("0") {
                        bytes.clear();
                    }
                    if bytes.len() + event.payload().len() <= MODULE_BYTES_MAX {
                        bytes.extend_from_slice(event.payload());
                    }
                    if blake3::hash(&bytes).as_bytes() == hash {
                        return Ok(Bytes::from(bytes));
                    }
                }
            }
            match page.next {
                Some(next) if next <= page.last_revision => {
                    request.from = RevisionFrom::Revision(next);
                }
                _ => break,
            }
        }
        Ok(Bytes::from(bytes))
    }

    fn copy_path(hash: &ModuleHash) -> String {
        format!("{CODE_DIR}/{}.wasm", hex(hash))
    }

    fn read_copy(&self, hash: &ModuleHash) -> Option<Bytes> {
        let file = self
            .world
            .storage
            .open(&Programs::copy_path(hash), OpenMode::Read)
            .ok()?;
        let length = usize::try_from(file.len().ok()?).ok()?;
        if length > MODULE_BYTES_MAX + 2 * BLOCK_BYTES {
            return None;
        }
        let padded = length.next_multiple_of(BLOCK_BYTES);
        let mut buffer = AlignedBuf::new_zeroed(padded.max(BLOCK_BYTES));
        let read = file.read_at(&mut buffer, padded, 0).ok()?;
        let size = buffer.first_chunk::<8>().copied().map(u64::from_le_bytes)?;
        let end = usize::try_from(size).ok()?.checked_add(8)?;
        let bytes = buffer.get(8..end.min(read))?;
        (blake3::hash(bytes).as_bytes() == hash).then(|| Bytes::copy_from_slice(bytes))
    }

    /// Keeps a copy beside the log. Failing is no harm: the log has the bytes.
    fn write_copy(&self, hash: &ModuleHash, bytes: &[u8]) {
        if let Err(error) = write_copy(self.world.storage.as_ref(), hash, bytes) {
            tracing::debug!(module = hex(hash), error = %error,
                "no copy of the module was kept in the data directory; it is read from the log");
        }
    }
}

/// A length, the bytes, and zeros up to a whole block.
fn write_copy(storage: &dyn Storage, hash: &ModuleHash, bytes: &[u8]) -> std::io::Result<()> {
    storage.durable_create_dir(CODE_DIR)?;
    let path = Programs::copy_path(hash);
    let new = format!("{path}.new");
    if let Err(error) = storage.durable_remove(&new)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let file = storage.open(&new, OpenMode::CreateNew)?;
    let padded = (bytes.len() + 8).next_multiple_of(BLOCK_BYTES);
    let mut buffer = AlignedBuf::new_zeroed(padded);
    buffer[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    buffer[8..8 + bytes.len()].copy_from_slice(bytes);
    file.write_at(&buffer, padded, 0)?;
    file.sync()?;
    storage.durable_rename(&new, &path)
}
