//! The files of a backup.
//!
//! `backup.json` names every file that belongs to the backup, with its length and BLAKE3; it is
//! written last and put in place by a rename. Files have names that contain their hash
//! (`…/segment-00000001.log.1f3a…`), so that an incremental backup never overwrites what the one
//! before it needs: at every moment the directory holds one whole backup, the old or the new one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use truthdb_io::{Backend, DirEntry, File, FileStorage, IoQueue, OpenMode, Space, Storage};
use truthdb_log::{
    Footer, Manifest, parse_partition_dir, parse_run_file_name, parse_segment_name, run_chain,
};

use super::connect::parse_hash;
use super::output;
use crate::exit::{ExitClass, Failure};

/// Version of `backup.json`.
const FORMAT: u32 = 1;
/// Name of the index.
const INDEX: &str = "backup.json";
/// Name of the lock, which also marks a directory as one for backups.
const LOCK: &str = "backup.lock";
/// Bytes that are copied at once.
pub(crate) const COPY_BYTES: usize = 1 << 20;

/// What a backup consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// Version of this structure.
    format: u32,
    /// Database id, hexadecimal.
    pub database_id: String,
    /// When its content was fixed, RFC 3339.
    pub taken: String,
    /// The same in nanoseconds since 1970.
    pub taken_ns: u64,
    /// Partitions.
    pub partitions: Vec<PartitionEntry>,
    /// Files, by path.
    pub files: Vec<FileEntry>,
}

/// A partition of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartitionEntry {
    /// Its number.
    pub partition: u32,
    /// First sequence.
    pub first_sequence: u64,
    /// Last sequence that was committed when the backup began.
    pub last_sequence: u64,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Its path in the data directory.
    pub path: String,
    /// Its path in the backup.
    pub stored: String,
    /// Its bytes.
    pub bytes: u64,
    /// BLAKE3 of its bytes, hexadecimal.
    pub blake3: String,
    /// Chain hash, hexadecimal, of a sealed segment, or of the last segment of a run of stream heads.
    pub chain: Option<String>,
}

/// Files of a backup that never change, with their chain hashes, by path.
pub(crate) type Known = BTreeMap<String, (FileEntry, [u8; 32])>;

/// Partition and segment of a segment's path.
pub(crate) fn segment_of(path: &str) -> Option<(u32, u32)> {
    let (directory, rest) = path.split_once('/')?;
    let name = rest.strip_prefix("wal/")?;
    Some((parse_partition_dir(directory)?, parse_segment_name(name)?))
}

/// Partition, and first and last segment, of the path of a run of stream heads.
pub(crate) fn heads_of(path: &str) -> Option<(u32, (u32, u32))> {
    let (directory, rest) = path.split_once('/')?;
    let name = rest.strip_prefix("index/")?;
    Some((parse_partition_dir(directory)?, parse_run_file_name(name)?))
}

/// Whether a path is one that a backup may hold. Others are refused, whoever names them.
fn is_legal(path: &str) -> bool {
    let trim = |path: &str| {
        path.strip_suffix("/trim.bin")
            .is_some_and(|dir| parse_partition_dir(dir).is_some())
    };
    matches!(path, "metadata/manifest.bin" | "metadata/schema.bin")
        || trim(path)
        || segment_of(path).is_some()
        || heads_of(path).is_some()
}

/// A directory for backups.
pub(crate) struct BackupSet {
    root: PathBuf,
    storage: FileStorage,
}

impl BackupSet {
    /// The directory of an existing backup, for reading.
    ///
    /// # Errors
    ///
    /// `environment`, if there is none; `damaged`, `newer-format`.
    pub(crate) fn open(root: &Path) -> Result<(BackupSet, Index), Failure> {
        let set = BackupSet::at(root)?;
        match set.index()? {
            Some(index) => Ok((set, index)),
            None => {
                let message = format!("there is no backup in {}", root.display());
                Err(Failure::new(ExitClass::Environment, message).with_action(
                    "A backup holds a file backup.json, written when it is whole. If this one was \
                     interrupted, make it again.",
                ))
            }
        }
    }

    fn at(root: &Path) -> Result<BackupSet, Failure> {
        let storage = FileStorage::open(root, Backend::Blocking).map_err(|error| {
            Failure::environment(format!("cannot use {}", root.display()), error)
        })?;
        Ok(BackupSet {
            root: root.to_owned(),
            storage,
        })
    }

    /// A directory to write a backup to, and the backup that it holds. The lock is held as long as
    /// the guard lives.
    ///
    /// # Errors
    ///
    /// `environment`, if something else is in the directory; `locked`, if another backup is being
    /// made there.
    #[expect(
        clippy::type_complexity,
        reason = "the three parts of one opened directory"
    )]
    pub(crate) fn create(
        root: &Path,
    ) -> Result<(BackupSet, Option<Index>, Box<dyn Send + Sync>), Failure> {
        let set = BackupSet::at(root)?;
        let fail = |error| Failure::environment(format!("cannot use {}", root.display()), error);
        let entries = match set.storage.list("") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            result => result.map_err(fail)?,
        };
        let is_ours = entries
            .iter()
            .any(|entry| entry.name == INDEX || entry.name == LOCK);
        if let (Some(first), false) = (entries.first(), is_ours) {
            let message = format!("{} holds {}, and no backup", root.display(), first.name);
            return Err(Failure::new(ExitClass::Environment, message)
                .with_action("Give an empty or absent directory, or one with a backup."));
        }
        set.storage.durable_create_dir("").map_err(fail)?;
        let holder = format!("truthdb backup, process {}", std::process::id());
        let lock = set.storage.lock(LOCK, &holder).map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                let message = format!("another backup to {} is being made", root.display());
                Failure::new(ExitClass::Locked, message).with_source(error)
            } else {
                fail(error)
            }
        })?;
        let index = set.index()?;
        Ok((set, index, lock))
    }

    fn index(&self) -> Result<Option<Index>, Failure> {
        let path = self.root.join(INDEX);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|error| {
                Failure::environment(format!("cannot read {}", path.display()), error)
            })?,
        };
        let damaged = |reason: Box<dyn std::error::Error + Send + Sync>| {
            Failure::new(ExitClass::Damaged, format!("{} is damaged", path.display()))
                .with_source(reason)
                .with_action("Make the backup again, into another directory.")
        };
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version =
            serde_json::from_slice(&text).map_err(|error| damaged(error.into()))?;
        if version.format > FORMAT {
            let message = format!(
                "{} has format version {}, this program reads versions up to {FORMAT}",
                path.display(),
                version.format
            );
            return Err(Failure::new(ExitClass::NewerFormat, message)
                .with_action("Use the release that wrote it, or a newer one."));
        }
        let index: Index = serde_json::from_slice(&text).map_err(|error| damaged(error.into()))?;
        for file in &index.files {
            let legal = is_legal(&file.path)
                && file
                    .stored
                    .strip_prefix(&file.path)
                    .is_some_and(|rest| !rest.contains('/'));
            if !legal || parse_hash(&file.blake3).is_none() {
                return Err(damaged(
                    format!("{} is no file of a backup", file.path).into(),
                ));
            }
        }
        Ok(Some(index))
    }

    /// The sealed segments and runs of stream heads that are there, with their chain hashes, by path. Footer or first
    /// page of each is looked at; contents are what `--verify` is for.
    pub(crate) fn known(&self, index: &Index) -> Known {
        let mut known = Known::new();
        for file in &index.files {
            let Some(chain) = file.chain.as_deref().and_then(parse_hash) else {
                continue;
            };
            if self.chain_in(file) == Some(chain) {
                known.insert(file.path.clone(), (file.clone(), chain));
            }
        }
        known
    }

    /// The chain hash that a segment's footer or a run's first page names.
    fn chain_in(&self, entry: &FileEntry) -> Option<[u8; 32]> {
        use std::os::unix::fs::FileExt as _;
        const BLOCK_BYTES: u64 = 4096;
        let file = fs::File::open(self.root.join(&entry.stored)).ok()?;
        let mut block = [0; 4096];
        let bytes = file.metadata().ok()?.len();
        if bytes != entry.bytes {
            return None;
        }
        if heads_of(&entry.path).is_some() {
            file.read_exact_at(&mut block, 0).ok()?;
            return run_chain(&block);
        }
        file.read_exact_at(&mut block, bytes.checked_sub(BLOCK_BYTES)?)
            .ok()?;
        Footer::decode(&block).ok().map(|footer| footer.chain)
    }

    /// Begins a file.
    ///
    /// # Errors
    ///
    /// `refused` for a path that no backup holds; `environment`.
    pub(crate) fn begin(&self, path: &str, bytes: u64) -> Result<FileWriter<'_>, Failure> {
        if !is_legal(path) {
            let message = format!("{path:?} is no path of a backup");
            return Err(Failure::new(ExitClass::Refused, message));
        }
        let fail = |error| self.write_failure(path, error);
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.storage.durable_create_dir(parent).map_err(fail)?;
        let new_path = format!("{path}.new");
        let file = fs::File::create(self.root.join(&new_path)).map_err(fail)?;
        Ok(FileWriter {
            set: self,
            path: path.to_owned(),
            new_path,
            file,
            hasher: blake3::Hasher::new(),
            bytes,
            written: 0,
        })
    }

    fn write_failure(&self, path: &str, error: io::Error) -> Failure {
        let message = format!("cannot write {path} to {}", self.root.display());
        Failure::environment(message, error).with_action("The backup before this one is intact.")
    }

    /// Makes this the backup, and removes what no longer belongs to it.
    ///
    /// # Errors
    ///
    /// `environment`.
    pub(crate) fn publish(&self, index: &Index) -> Result<(), Failure> {
        let fail = |error| self.write_failure(INDEX, error);
        let new_path = format!("{INDEX}.new");
        let text = serde_json::to_string_pretty(index).expect("an index is serialisable");
        let mut file = fs::File::create(self.root.join(&new_path)).map_err(fail)?;
        file.write_all(format!("{text}\n").as_bytes())
            .map_err(fail)?;
        file.sync_all().map_err(fail)?;
        self.storage
            .durable_rename(&new_path, INDEX)
            .map_err(fail)?;
        self.sweep(index).map_err(fail)
    }

    fn sweep(&self, index: &Index) -> io::Result<()> {
        let mut directories = vec!["metadata".to_owned()];
        for entry in self.storage.list("")? {
            if parse_partition_dir(&entry.name).is_some() {
                directories.push(format!("{}/wal", entry.name));
                directories.push(format!("{}/index", entry.name));
                directories.push(entry.name);
            }
        }
        for directory in directories {
            let entries = match self.storage.list(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result?,
            };
            for entry in entries.iter().filter(|entry| !entry.is_dir) {
                let path = format!("{directory}/{}", entry.name);
                if !index.files.iter().any(|file| file.stored == path) {
                    self.storage.durable_remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a file of the backup to its end, hands its bytes over, and checks length and hash.
    ///
    /// # Errors
    ///
    /// `damaged`, if it is not what was written; `environment`; what `take` says.
    pub(crate) fn read(
        &self,
        entry: &FileEntry,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = self.root.join(&entry.stored);
        let damaged = |what: &str| {
            Failure::new(
                ExitClass::Damaged,
                format!("{} of the backup {what}", path.display()),
            )
            .with_action("Use another backup.")
        };
        let fail = |error| Failure::environment(format!("cannot read {}", path.display()), error);
        let mut file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("is missing"));
            }
            result => result.map_err(fail)?,
        };
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut bytes = 0u64;
        loop {
            let read = file.read(&mut buffer).map_err(fail)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            bytes += u64::try_from(read).expect("at most a MiB");
            take(&buffer[..read])?;
        }
        if bytes != entry.bytes {
            return Err(damaged(&format!(
                "has {bytes} bytes instead of {}",
                entry.bytes
            )));
        }
        if hasher.finalize().to_hex().as_str() != entry.blake3 {
            return Err(damaged("is not what was written: its BLAKE3 differs"));
        }
        Ok(())
    }

    /// The backup as a data directory that can only be read.
    ///
    /// # Errors
    ///
    /// `environment`.
    pub(crate) fn view(&self, index: &Index) -> Result<Arc<dyn Storage>, Failure> {
        let storage = BackupSet::at(&self.root)?.storage;
        let files = index
            .files
            .iter()
            .map(|file| (file.path.clone(), file.clone()))
            .collect();
        Ok(Arc::new(View { storage, files }))
    }

    /// The manifest in the backup.
    ///
    /// # Errors
    ///
    /// `damaged`, `newer-format`, `environment`.
    pub(crate) fn manifest(&self, index: &Index) -> Result<Manifest, Failure> {
        let storage = self.view(index)?;
        truthdb_log::read_schema(storage.as_ref())
            .and_then(|_| truthdb_log::read_manifest(storage.as_ref()))
            .map_err(|error| crate::server::directory_failure(&self.root, error))
    }
}

impl Index {
    /// An index of these files.
    pub(crate) fn new(
        database_id: &[u8],
        taken_ns: u64,
        partitions: Vec<PartitionEntry>,
        mut files: Vec<FileEntry>,
    ) -> Index {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Index {
            format: FORMAT,
            database_id: output::hex(database_id),
            taken: output::timestamp(taken_ns),
            taken_ns,
            partitions,
            files,
        }
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A file of a backup that is being written.
pub(crate) struct FileWriter<'a> {
    set: &'a BackupSet,
    path: String,
    new_path: String,
    file: fs::File,
    hasher: blake3::Hasher,
    bytes: u64,
    written: u64,
}

impl FileWriter<'_> {
    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    ///
    /// `environment`.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.hasher.update(data);
        self.written += u64::try_from(data.len()).expect("a length fits");
        self.file
            .write_all(data)
            .map_err(|error| self.set.write_failure(&self.path, error))
    }

    /// Makes the file durable under its name. `expected` is the hash that the sender computed.
    ///
    /// # Errors
    ///
    /// `network`, if bytes are missing or differ from what was sent; `environment`.
    pub(crate) fn finish(
        self,
        expected: Option<&[u8]>,
        chain: Option<[u8; 32]>,
    ) -> Result<FileEntry, Failure> {
        let hash = self.hasher.finalize();
        let same = expected.is_none_or(|expected| expected == hash.as_bytes());
        if self.written != self.bytes || !same {
            let message = format!("{} did not arrive as it was sent", self.path);
            return Err(Failure::new(ExitClass::Network, message)
                .with_action("Make the backup again. The one before this is intact."));
        }
        let fail = |error| self.set.write_failure(&self.path, error);
        self.file.sync_all().map_err(fail)?;
        let blake3 = hash.to_hex().to_string();
        let stored = format!("{}.{}", self.path, &blake3[..16]);
        self.set
            .storage
            .durable_rename(&self.new_path, &stored)
            .map_err(fail)?;
        Ok(FileEntry {
            path: self.path,
            stored,
            bytes: self.bytes,
            blake3,
            chain: chain.map(|chain| output::hex(&chain)),
        })
    }
}

/// The files of a backup under the paths that they have in a data directory.
struct View {
    storage: FileStorage,
    files: BTreeMap<String, FileEntry>,
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a backup is only read")
}

impl Storage for View {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        if mode != OpenMode::Read {
            return Err(read_only());
        }
        let entry = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        self.storage.open(&entry.stored, OpenMode::Read)
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let entries = self.files.values().filter_map(|file| {
            let (directory, name) = file.path.rsplit_once('/')?;
            let entry = DirEntry {
                name: name.to_owned(),
                bytes: file.bytes,
                is_dir: false,
            };
            (directory == path).then_some(entry)
        });
        Ok(entries.collect())
    }

    fn durable_create_dir(&self, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn durable_rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn durable_remove(&self, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn IoQueue>> {
        self.storage.queue(depth)
    }

    fn lock(&self, _: &str, _: &str) -> io::Result<Box<dyn Send + Sync>> {
        Err(read_only())
    }

    fn space(&self) -> io::Result<Space> {
        self.storage.space()
    }

    fn backend(&self) -> &'static str {
        self.storage.backend()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_a_log_are_legal() {
        for legal in [
            "metadata/manifest.bin",
            "metadata/schema.bin",
            "partition-0000/trim.bin",
            "partition-0003/wal/segment-00000012.log",
            "partition-0003/index/heads-00000001-00000016.run",
        ] {
            assert!(is_legal(legal), "{legal}");
        }
        for illegal in [
            "",
            "backup.json",
            "metadata/lock",
            "../metadata/manifest.bin",
            "partition-0000/../trim.bin",
            "/partition-0000/trim.bin",
            "partition-0000/wal/segment-00000012.log.new",
            "partition-0000/wal/../segment-00000012.log",
            "partition-0000/index/heads-00000002-00000001.run",
            "partition-0000/index/segment-00000001.idx",
            "server/tokens.toml",
        ] {
            assert!(!is_legal(illegal), "{illegal}");
        }
    }

    #[test]
    fn a_backup_that_breaks_off_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("b");
        let (set, none, lock) = BackupSet::create(&root).unwrap();
        assert_eq!(none, None);
        let write = |set: &BackupSet, bytes: &[u8]| {
            let length = u64::try_from(bytes.len()).unwrap();
            let mut file = set.begin("metadata/schema.bin", length).unwrap();
            file.write(bytes).unwrap();
            file.finish(None, None).unwrap()
        };
        let first = write(&set, b"first");
        let index = Index::new(&[7; 16], 5, Vec::new(), vec![first.clone()]);
        set.publish(&index).unwrap();
        let second = write(&set, b"second");
        drop((set, lock));
        // Not published: the first is still the backup, and whole.
        let (set, found) = BackupSet::open(&root).unwrap();
        assert_eq!(found, index);
        let mut bytes = Vec::new();
        let mut take = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        };
        set.read(&first, &mut take).unwrap();
        assert_eq!(bytes, b"first");
        // Published: what the first alone needed is gone.
        let index = Index::new(&[7; 16], 6, Vec::new(), vec![second]);
        set.publish(&index).unwrap();
        let failure = set.read(&first, &mut |_| Ok(())).unwrap_err();
        assert_eq!(failure.class, ExitClass::Damaged);
    }

    #[test]
    fn a_damaged_newer_or_foreign_directory_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let class = |text: &str| {
            fs::write(dir.path().join(INDEX), text).unwrap();
            BackupSet::open(dir.path()).err().unwrap().class
        };
        assert_eq!(class("{"), ExitClass::Damaged);
        assert_eq!(class(r#"{"format":2,"other":1}"#), ExitClass::NewerFormat);
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("letter.txt"), "dear").unwrap();
        assert_eq!(
            BackupSet::create(other.path()).err().unwrap().class,
            ExitClass::Environment
        );
        assert_eq!(
            BackupSet::open(other.path()).err().unwrap().class,
            ExitClass::Environment
        );
    }
}
