//! A storage in memory for the tests of derived files: quick enough to flip every byte.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use truthdb_io::{AlignedBuf, DirEntry, File, IoQueue, OpenMode, Space, Storage};

type Bytes = Arc<Mutex<Vec<u8>>>;

/// Files by path. Everything is durable at once.
#[derive(Default)]
pub(crate) struct MemoryStorage {
    files: Mutex<BTreeMap<String, Bytes>>,
}

struct MemoryFile(Bytes);

impl MemoryStorage {
    pub(crate) fn shared() -> (Arc<MemoryStorage>, Arc<dyn Storage>) {
        let memory = Arc::new(MemoryStorage::default());
        let storage: Arc<dyn Storage> = Arc::clone(&memory) as Arc<dyn Storage>;
        (memory, storage)
    }

    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        self.files.lock().unwrap()[path].lock().unwrap().clone()
    }

    pub(crate) fn put(&self, path: &str, bytes: Vec<u8>) {
        self.files
            .lock()
            .unwrap()
            .insert(path.to_owned(), Arc::new(Mutex::new(bytes)));
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.files.lock().unwrap().keys().cloned().collect()
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Storage for MemoryStorage {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut files = self.files.lock().unwrap();
        if mode == OpenMode::CreateNew {
            if files.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            files.insert(path.to_owned(), Bytes::default());
        }
        let bytes = files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemoryFile(Arc::clone(bytes))))
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let prefix = format!("{path}/");
        let files = self.files.lock().unwrap();
        let entries = files.iter().filter_map(|(name, bytes)| {
            let name = name
                .strip_prefix(&prefix)
                .filter(|name| !name.contains('/'))?
                .to_owned();
            Some(DirEntry {
                name,
                bytes: bytes.lock().unwrap().len() as u64,
                is_dir: false,
            })
        });
        Ok(entries.collect())
    }

    fn durable_create_dir(&self, _path: &str) -> io::Result<()> {
        Ok(())
    }

    fn durable_rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        let bytes = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), bytes);
        Ok(())
    }

    fn durable_remove(&self, path: &str) -> io::Result<()> {
        let removed = self.files.lock().unwrap().remove(path);
        removed
            .map(|_| ())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _path: &str) -> io::Result<()> {
        Ok(())
    }

    fn queue(&self, _depth: usize) -> io::Result<Box<dyn IoQueue>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn lock(&self, _path: &str, _holder: &str) -> io::Result<Box<dyn Send + Sync>> {
        Ok(Box::new(()))
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space {
            free_bytes: u64::MAX,
            total_bytes: u64::MAX,
        })
    }

    fn backend(&self) -> &'static str {
        "memory"
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read_at(&self, buf: &mut AlignedBuf, bytes: usize, offset: u64) -> io::Result<usize> {
        let data = self.0.lock().unwrap();
        let start = at(offset).min(data.len());
        let read = bytes.min(data.len() - start);
        buf[..read].copy_from_slice(&data[start..start + read]);
        Ok(read)
    }

    fn write_at(&self, buf: &AlignedBuf, bytes: usize, offset: u64) -> io::Result<()> {
        let mut data = self.0.lock().unwrap();
        let end = at(offset) + bytes;
        if data.len() < end {
            data.resize(end, 0);
        }
        data[at(offset)..end].copy_from_slice(&buf[..bytes]);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut data = self.0.lock().unwrap();
        let bytes = at(bytes).max(data.len());
        data.resize(bytes, 0);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(at(bytes), 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
