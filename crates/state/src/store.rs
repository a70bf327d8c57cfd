//! Snapshots of one partition on disk: which there are, reading them, and setting bad ones aside.
//!
//! Model: `snapshots/snapshot-<sequence>.bin` is a manifest; `snapshots/chunks/<hash>.bin` are the
//! chunks that manifests refer to. A manifest appears by a rename when all its chunks are durable, so
//! a snapshot is there whole or not at all. [`SnapshotStore`] belongs to the one thread that writes,
//! prunes and collects; [`SnapshotReader`]s are for everybody, and what they hold open is neither
//! pruned nor collected.
//!
//! Invariants: a chunk is believed to be on disk only if a published manifest refers to it; a chunk
//! that a published or in-progress snapshot refers to is never removed; a snapshot that cannot be
//! read as it was written is renamed, reported, and never used. It is derived data: nothing here
//! stops a partition.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use truthdb_io::Storage;

use crate::blocks;
use crate::builder::{TablesBuilder, UnsortedRow};
use crate::chunk::{CHUNK_FILE_BYTES_MAX, Chunk, ChunkHash, ChunkRef};
use crate::collect::Collector;
use crate::layout::{StateFormatError, StatePlace};
use crate::limits::small;
use crate::prune::PrunePolicy;
use crate::snapshot::{SNAPSHOT_FILE_BYTES_MAX, SnapshotEntry, SnapshotManifest};
use crate::snapshot_writer::SnapshotWriter;
use crate::tables::Tables;

/// Suffix of what was set aside.
const BAD_SUFFIX: &str = ".bad";
/// Suffix of a manifest that is being written.
pub(crate) const NEW_SUFFIX: &str = ".new";

/// What went wrong with a snapshot. State can always be rebuilt from the log of events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The operating system's error. A snapshot that was being written is given up.
    #[error("{path}: {action} failed; snapshots are derived, the log of events is not concerned")]
    Io {
        /// File or directory, relative to the data directory.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A snapshot is not what was written. [`SnapshotStore::set_aside`] takes it out of the way.
    #[error("the snapshot of sequence {sequence} is damaged: {path}")]
    Damaged {
        /// Its sequence.
        sequence: u64,
        /// The damaged file, relative to the data directory.
        path: String,
        /// The damaged chunk, if it is one.
        chunk: Option<ChunkHash>,
        /// What differs.
        #[source]
        reason: DamageReason,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot of sequence {sequence}")]
    Missing {
        /// Its sequence.
        sequence: u64,
    },
    /// There is one of this sequence already.
    #[error("there is a snapshot of sequence {sequence} already")]
    Exists {
        /// Its sequence.
        sequence: u64,
    },
    /// One is being written.
    #[error("a snapshot is being written: finish or abort it first")]
    InProgress,
    /// None is being written.
    #[error("no snapshot is being written")]
    NotInProgress,
}

/// What differs from what was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DamageReason {
    /// The structure of a file.
    #[error(transparent)]
    Format(#[from] StateFormatError),
    /// The disk cannot read a file that must be there, or it is gone.
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    /// Rows out of order over the border of two chunks.
    #[error(transparent)]
    Row(#[from] UnsortedRow),
    /// The rows are not those that the manifest was written for.
    #[error("{what} of module {module}, generation {generation} is another than the rows give")]
    State {
        /// Whose state.
        module: String,
        /// Its generation.
        generation: u32,
        /// What differs.
        what: &'static str,
    },
}

pub(crate) fn io_error(
    path: &str,
    action: &'static str,
) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// What a snapshot holds, for those who do not need all of its manifest.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The chunks that it refers to.
    pub(crate) chunks: BTreeSet<ChunkHash>,
    /// Modules and generations of its states.
    pub(crate) states: BTreeSet<(String, u32)>,
}

impl Contents {
    pub(crate) fn of(manifest: &SnapshotManifest) -> Contents {
        let states = manifest.entries.iter().map(|entry| &entry.state);
        Contents {
            chunks: manifest.chunks().collect(),
            states: states.map(|s| (s.module.clone(), s.generation)).collect(),
        }
    }

    pub(crate) fn has(&self, module: &str, generation: u32) -> bool {
        let is_it = |state: &&(String, u32)| state.0 == module && state.1 == generation;
        self.states.iter().any(|state| is_it(&state))
    }
}

/// A published snapshot, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// What it holds, once its manifest was read.
    pub(crate) contents: Option<Arc<Contents>>,
    /// How many readers hold it open.
    pins: usize,
}

/// What the store and its readers share.
pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) place: StatePlace,
    published: Mutex<BTreeMap<u64, Published>>,
}

impl Shared {
    pub(crate) fn published(&self) -> MutexGuard<'_, BTreeMap<u64, Published>> {
        // Every change of the map is one call on it: a panic elsewhere leaves it whole.
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn directory(&self) -> String {
        format!("{}/snapshots", self.place.directory())
    }

    pub(crate) fn chunks_directory(&self) -> String {
        format!("{}/chunks", self.directory())
    }

    pub(crate) fn manifest_path(&self, sequence: u64) -> String {
        format!("{}/snapshot-{sequence:08}.bin", self.directory())
    }

    pub(crate) fn chunk_path(&self, hash: ChunkHash) -> String {
        format!("{}/{hash}.bin", self.chunks_directory())
    }

    /// Reads a manifest that is published.
    pub(crate) fn read_manifest(&self, sequence: u64) -> Result<SnapshotManifest, SnapshotError> {
        let path = self.manifest_path(sequence);
        let damaged = |reason| SnapshotError::Damaged {
            sequence,
            path: path.clone(),
            chunk: None,
            reason,
        };
        let bytes = blocks::read_file(&*self.storage, &path, SNAPSHOT_FILE_BYTES_MAX)
            .map_err(|error| damaged(DamageReason::Unreadable(error)))?;
        let manifest = SnapshotManifest::decode(&bytes)
            .map_err(|error| damaged(DamageReason::Format(error)))?;
        if manifest.place != self.place || manifest.sequence != sequence {
            let (structure, field) = ("manifest of the snapshot", "place");
            let error = StateFormatError::Misplaced { structure, field };
            return Err(damaged(DamageReason::Format(error)));
        }
        if let Some(published) = self.published().get_mut(&sequence)
            && published.contents.is_none()
        {
            published.contents = Some(Arc::new(Contents::of(&manifest)));
        }
        Ok(manifest)
    }

    /// What a published snapshot holds; its manifest is read if it was not before.
    pub(crate) fn contents(&self, sequence: u64) -> Result<Arc<Contents>, SnapshotError> {
        let known = match self.published().get(&sequence) {
            Some(published) => published.contents.clone(),
            None => return Err(SnapshotError::Missing { sequence }),
        };
        match known {
            Some(contents) => Ok(contents),
            None => Ok(Arc::new(Contents::of(&self.read_manifest(sequence)?))),
        }
    }
}

/// The sequence of a manifest's file name.
fn parse_name(name: &str, suffix: &str) -> Option<u64> {
    let digits = name
        .strip_prefix("snapshot-")?
        .strip_suffix(suffix)?
        .strip_suffix(".bin")?;
    let is_number = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// What was found when the snapshots of a partition were opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotsFound {
    /// Published snapshots, ascending.
    pub sequences: Vec<u64>,
    /// Manifests that were being written when the process ended; they were removed.
    pub unfinished: Vec<String>,
    /// Files that were set aside earlier, relative to the data directory.
    pub set_aside: Vec<String>,
}

/// What a loaded snapshot gives.
#[derive(Debug)]
pub struct Loaded {
    /// What the snapshot says.
    pub manifest: SnapshotManifest,
    /// The tables of each entry, in its order.
    pub tables: Vec<Tables>,
}

/// A snapshot that was not used.
#[derive(Debug)]
pub struct PassedOver {
    /// Its sequence.
    pub sequence: u64,
    /// Why.
    pub error: SnapshotError,
    /// Where its damaged file is now, relative to the data directory; none if it could not be
    /// renamed.
    pub set_aside: Option<String>,
}

/// The snapshots of one partition, for the thread that writes them.
pub struct SnapshotStore {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: Option<SnapshotWriter>,
    pub(crate) collector: Option<Collector>,
}

impl std::fmt::Debug for SnapshotStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotStore")
            .field("place", &self.shared.place)
            .field("sequences", &self.sequences())
            .finish_non_exhaustive()
    }
}

impl SnapshotStore {
    /// Opens the snapshots of a partition. Reads no manifest: the time does not grow with what they
    /// hold.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn open(
        storage: Arc<dyn Storage>,
        place: StatePlace,
    ) -> Result<(SnapshotStore, SnapshotsFound), SnapshotError> {
        let shared = Shared {
            storage,
            place,
            published: Mutex::default(),
        };
        let (directory, chunks) = (shared.directory(), shared.chunks_directory());
        shared
            .storage
            .durable_create_dir(&chunks)
            .map_err(io_error(&chunks, "creating"))?;
        let entries = shared
            .storage
            .list(&directory)
            .map_err(io_error(&directory, "listing"))?;
        let mut found = SnapshotsFound::default();
        for entry in entries {
            let path = format!("{directory}/{}", entry.name);
            if let Some(sequence) = parse_name(&entry.name, "") {
                found.sequences.push(sequence);
            } else if parse_name(&entry.name, NEW_SUFFIX).is_some() {
                blocks::remove(&*shared.storage, &path).map_err(io_error(&path, "removing"))?;
                found.unfinished.push(path);
            } else if entry.name.ends_with(BAD_SUFFIX) {
                found.set_aside.push(path);
            }
        }
        found.sequences.sort_unstable();
        let published = found.sequences.iter().map(|s| (*s, Published::default()));
        shared.published().extend(published);
        let store = SnapshotStore {
            shared: Arc::new(shared),
            writer: None,
            collector: None,
        };
        Ok((store, found))
    }

    /// A reader of these snapshots.
    pub fn reader(&self) -> SnapshotReader {
        SnapshotReader {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Sequences of the published snapshots, ascending.
    pub fn sequences(&self) -> Vec<u64> {
        self.shared.published().keys().copied().collect()
    }

    /// Loads the newest snapshot at or before a sequence that is whole. Those that are not are set
    /// aside, and older ones are tried.
    pub fn load_newest(&self, at_or_before: u64) -> (Option<Loaded>, Vec<PassedOver>) {
        let mut passed_over = Vec::new();
        let mut candidates = self.sequences();
        candidates.retain(|sequence| *sequence <= at_or_before);
        for sequence in candidates.into_iter().rev() {
            match self.reader().open(sequence).and_then(|s| s.load_all()) {
                Ok(loaded) => return (Some(loaded), passed_over),
                Err(error) => {
                    let set_aside = self.set_aside(&error);
                    passed_over.push(PassedOver {
                        sequence,
                        error,
                        set_aside,
                    });
                }
            }
        }
        (None, passed_over)
    }

    /// Takes a damaged snapshot out of the way, and the damaged chunk if it is one: both are renamed,
    /// so that they can be looked at, and are never used again. Gives the new path of the damaged
    /// file; none if the error names no damage or nothing could be renamed (the snapshot is not
    /// listed any more in any case).
    pub fn set_aside(&self, error: &SnapshotError) -> Option<String> {
        let SnapshotError::Damaged {
            sequence,
            path,
            chunk,
            ..
        } = error
        else {
            return None;
        };
        self.shared.published().remove(sequence);
        let manifest = self.shared.manifest_path(*sequence);
        let rename = |path: &str| {
            let aside = format!("{path}{BAD_SUFFIX}");
            let renamed = self.shared.storage.durable_rename(path, &aside);
            renamed.is_ok().then_some(aside)
        };
        let aside = rename(&manifest);
        match chunk {
            Some(_) => rename(path),
            None => aside,
        }
    }

    /// Removes what was set aside. Gives the number of files.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; some of them may be gone.
    pub fn remove_set_aside(&self) -> Result<usize, SnapshotError> {
        let mut removed = 0;
        for directory in [self.shared.directory(), self.shared.chunks_directory()] {
            let entries = self
                .shared
                .storage
                .list(&directory)
                .map_err(io_error(&directory, "listing"))?;
            for entry in entries.iter().filter(|e| e.name.ends_with(BAD_SUFFIX)) {
                let path = format!("{directory}/{}", entry.name);
                blocks::remove(&*self.shared.storage, &path)
                    .map_err(io_error(&path, "removing"))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Those that stay. A snapshot need not have the states of all modules: it stays if the policy keeps it
    /// for one of them.
    fn kept(&self, policy: &PrunePolicy, sequences: &[u64]) -> BTreeSet<u64> {
        let Some(newest) = sequences.last().copied() else {
            return BTreeSet::new();
        };
        let mut of_states: BTreeMap<(String, u32), Vec<u64>> = BTreeMap::new();
        let mut kept: BTreeSet<u64> = policy.newest(sequences).iter().copied().collect();
        for sequence in sequences {
            match self.shared.contents(*sequence) {
                Ok(contents) => {
                    for state in &contents.states {
                        of_states.entry(state.clone()).or_default().push(*sequence);
                    }
                }
                // Whoever reads it sets it aside.
                Err(_) => {
                    kept.insert(*sequence);
                }
            }
        }
        for sequences in of_states.values() {
            kept.extend(policy.kept(sequences, newest));
        }
        kept
    }

    /// Removes the snapshots that the policy keeps for none of their states and nobody holds open, oldest
    /// first. Gives their sequences. Their chunks go with [`SnapshotStore::collect_step`].
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; some of them may be gone.
    pub fn prune(&mut self, policy: &PrunePolicy) -> Result<Vec<u64>, SnapshotError> {
        let sequences = self.sequences();
        let kept = self.kept(policy, &sequences);
        let mut removed = Vec::new();
        for sequence in sequences.into_iter().filter(|s| !kept.contains(s)) {
            // From here on nobody can open it.
            let taken = {
                let mut published = self.shared.published();
                let is_pinned = published.get(&sequence).is_none_or(|p| p.pins > 0);
                if is_pinned {
                    None
                } else {
                    published.remove(&sequence)
                }
            };
            let Some(taken) = taken else {
                continue;
            };
            let path = self.shared.manifest_path(sequence);
            if let Err(error) = blocks::remove(&*self.shared.storage, &path) {
                // It may still be there, and so must its chunks.
                self.shared.published().insert(sequence, taken);
                return Err(io_error(&path, "removing")(error));
            }
            removed.push(sequence);
        }
        Ok(removed)
    }
}

/// Reads the snapshots of one partition. Clones read the same.
#[derive(Clone)]
pub struct SnapshotReader {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader")
            .field("place", &self.shared.place)
            .finish_non_exhaustive()
    }
}

impl SnapshotReader {
    /// Sequences of the published snapshots, ascending.
    pub fn sequences(&self) -> Vec<u64> {
        self.shared.published().keys().copied().collect()
    }

    /// The newest published snapshot at or before a sequence.
    pub fn newest_at_or_before(&self, sequence: u64) -> Option<u64> {
        let published = self.shared.published();
        let (newest, _) = published.range(..=sequence).next_back()?;
        Some(*newest)
    }

    /// The newest published snapshot at or before a sequence that has, or may have, the state of a module's
    /// generation: what it holds is known once its manifest was read.
    pub fn newest_of(&self, module: &str, generation: u32, at_or_before: u64) -> Option<u64> {
        let published = self.shared.published();
        let may_have = |published: &Published| {
            let contents = published.contents.as_ref();
            contents.is_none_or(|contents| contents.has(module, generation))
        };
        let mut before = published.range(..=at_or_before).rev();
        let (newest, _) = before.find(|(_, published)| may_have(published))?;
        Some(*newest)
    }

    /// Opens a snapshot: reads and checks its manifest. It is kept until the answer is dropped.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`] or [`SnapshotError::Damaged`].
    pub fn open(&self, sequence: u64) -> Result<Snapshot, SnapshotError> {
        match self.shared.published().get_mut(&sequence) {
            Some(published) => published.pins += 1,
            None => return Err(SnapshotError::Missing { sequence }),
        }
        let pin = Pin {
            shared: Arc::clone(&self.shared),
            sequence,
        };
        let manifest = self.shared.read_manifest(sequence)?;
        Ok(Snapshot { manifest, pin })
    }
}

/// Keeps a snapshot from being pruned.
struct Pin {
    shared: Arc<Shared>,
    sequence: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(published) = self.shared.published().get_mut(&self.sequence) {
            published.pins = published.pins.saturating_sub(1);
        }
    }
}

/// An open snapshot.
pub struct Snapshot {
    manifest: SnapshotManifest,
    pin: Pin,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// What it holds.
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    fn damaged(&self, chunk: Option<ChunkHash>, reason: DamageReason) -> SnapshotError {
        let sequence = self.manifest.sequence;
        let path = match chunk {
            Some(hash) => self.pin.shared.chunk_path(hash),
            None => self.pin.shared.manifest_path(sequence),
        };
        SnapshotError::Damaged {
            sequence,
            path,
            chunk,
            reason,
        }
    }

    /// Reads one of its chunks and checks it against its name.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], also if the disk cannot read it.
    pub fn chunk(&self, chunk: &ChunkRef) -> Result<Chunk, SnapshotError> {
        let shared = &self.pin.shared;
        let path = shared.chunk_path(chunk.hash);
        let damaged = |reason| self.damaged(Some(chunk.hash), reason);
        let bytes = blocks::read_file(&*shared.storage, &path, CHUNK_FILE_BYTES_MAX)
            .map_err(|error| damaged(DamageReason::Unreadable(error)))?;
        let found = Chunk::decode_file(&bytes, &shared.place, chunk.hash)
            .map_err(|error| damaged(DamageReason::Format(error)))?;
        if ChunkRef::of_hashed(&found, chunk.hash) != *chunk {
            let (structure, field) = ("chunk", "table, rows or first key");
            let error = StateFormatError::Misplaced { structure, field };
            return Err(self.damaged(None, error.into()));
        }
        Ok(found)
    }

    /// Loads the state of one entry, and compares rows and fingerprint with what it says.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`].
    ///
    /// # Panics
    /// If the entry is not one of this snapshot's.
    pub fn load(&self, entry: usize) -> Result<Tables, SnapshotError> {
        let entry = &self.manifest.entries[entry];
        let mut builder = TablesBuilder::new(small(entry.state.tables.len()));
        for reference in &entry.chunks {
            let chunk = self.chunk(reference)?;
            for at in 0..chunk.len() {
                let (key, value) = chunk.row(at);
                builder
                    .push(chunk.table(), key, value)
                    .map_err(|error| self.damaged(None, error.into()))?;
            }
        }
        let tables = builder.finish();
        match difference(entry, &tables) {
            None => Ok(tables),
            Some(what) => Err(self.damaged(
                None,
                DamageReason::State {
                    module: entry.state.module.clone(),
                    generation: entry.state.generation,
                    what,
                },
            )),
        }
    }

    /// Loads all entries.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`].
    pub fn load_all(self) -> Result<Loaded, SnapshotError> {
        let entries = 0..self.manifest.entries.len();
        let tables = entries
            .map(|entry| self.load(entry))
            .collect::<Result<_, _>>()?;
        Ok(Loaded {
            manifest: self.manifest,
            tables,
        })
    }
}

fn difference(entry: &SnapshotEntry, tables: &Tables) -> Option<&'static str> {
    [
        ("the number of rows", tables.rows() != entry.rows),
        ("the number of bytes", tables.bytes() != entry.bytes),
        ("the fingerprint", tables.fingerprint() != entry.fingerprint),
    ]
    .into_iter()
    .find_map(|(what, differs)| differs.then_some(what))
}
