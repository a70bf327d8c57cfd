//! The database's directory: making one, and opening one.
//!
//! Order of writes when a database is made: the marker `metadata/creating`, every directory and
//! first segment, the schema, and the manifest last; then the marker goes. A crash before the
//! manifest leaves a directory with a marker and no manifest: neither complete nor fresh, and
//! making the database again may sweep it, because nobody ever wrote events to it. A crash after
//! the manifest leaves a complete database with a marker to remove.
//!
//! A directory with partitions but without manifest and marker has lost its manifest. It is never
//! taken for a fresh one.

use std::io;

use truthdb_io::{AlignedBuf, BLOCK_BYTES, OpenMode, Storage, World};

use crate::layout::{FormatError, to_u64};
use crate::manifest::{Manifest, PARTITIONS_MAX, Schema};
use crate::segment::{
    SEGMENT_BYTES_DEFAULT, SegmentHeader, SegmentKind, TrimPoint, check_segment_bytes, index_dir,
    parse_partition_dir, partition_dir, segment_new_path, segment_path, wal_dir,
};

/// Directory of the manifest, the schema and the lock.
pub const METADATA_DIR: &str = "metadata";
/// Path of the manifest.
pub const MANIFEST_PATH: &str = "metadata/manifest.bin";
/// Path of the schema.
pub const SCHEMA_PATH: &str = "metadata/schema.bin";
/// Path of the lock.
pub const LOCK_PATH: &str = "metadata/lock";
/// Path of the marker that is there while a database is being made.
pub const CREATING_PATH: &str = "metadata/creating";

/// Entries of the data directory that are not the log's, and no reason to warn.
const KNOWN_OTHERS: &[&str] = &["server", "modules", "config", "log", "lost+found"];
/// Directories of a partition, besides its segments and indexes. The first is made with the database.
const SNAPSHOTS_DIR: &str = "snapshots";
const DELTAS_DIR: &str = "deltas";
/// A list beside them, which modules keep, and the next one while it is written.
const CONTROL_LISTS: [&str; 2] = ["control-events.bin", "control-events.bin.new"];

/// Why a database cannot be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// The directory is absent or empty.
    #[error("there is no database in this directory: make one with `truthdb init`")]
    NotInitialised,
    /// Making the database was cut short; nothing was ever written to it.
    #[error("making this database was interrupted: run `truthdb init` again, nothing is lost")]
    Interrupted,
    /// A file or directory that must be there is not.
    #[error("{path} is missing: {advice}")]
    Missing {
        /// What is missing, relative to the data directory.
        path: String,
        /// What it means and what to do.
        advice: &'static str,
    },
    /// A file is there, but empty.
    #[error("{path} is empty: it was damaged, restore it from a backup")]
    Empty {
        /// The file, relative to the data directory.
        path: String,
    },
    /// A file is there, but the disk cannot read it.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The file, relative to the data directory.
        path: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A file was read, but it is not what was written.
    #[error("{path} is damaged: restore it from a backup")]
    Damaged {
        /// The file, relative to the data directory.
        path: String,
        /// What differs.
        #[source]
        source: FormatError,
    },
    /// A newer release made this database.
    #[error(
        "{path} has format version {found}, this program reads versions up to {supported}: \
         use the release that wrote it, or a newer one"
    )]
    NewerFormat {
        /// The file, relative to the data directory.
        path: String,
        /// Version on disk.
        found: u16,
        /// Newest version that this program reads.
        supported: u16,
    },
    /// A partition is there that the manifest does not know.
    #[error(
        "{path} is there, but the manifest says {partition_count} partitions: \
         files of two databases are mixed"
    )]
    UnexpectedPartition {
        /// The directory, relative to the data directory.
        path: String,
        /// Partitions of the database.
        partition_count: u32,
    },
    /// A database is to be made where something is already.
    #[error("{path} is in the way: a database is made in an empty directory")]
    NotEmpty {
        /// What is there, relative to the data directory.
        path: String,
    },
    /// Another process has the database open.
    #[error("the database is in use: {holder}")]
    Locked {
        /// What the lock says about its holder.
        holder: String,
    },
    /// An option for the new database is not possible.
    #[error("{option} is {value}: it must be {reason}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What was asked for.
        value: u64,
        /// What is possible.
        reason: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The file or directory, relative to the data directory.
        path: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// What a directory holds, told apart without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryState {
    /// It does not exist, or nothing is in it: a database may be made here.
    Fresh,
    /// Making a database was cut short: it may be made again.
    Interrupted,
    /// A manifest is there.
    Database,
}

/// What a new database is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Partitions, 1 to [`PARTITIONS_MAX`]. Fixed for ever.
    pub partition_count: u32,
    /// Size of a segment in bytes: a multiple of 4096, 16 MiB to 1 GiB.
    pub segment_bytes: u64,
    /// Text for the lock that says who works here, at most 256 bytes.
    pub holder: String,
}

impl Default for CreateOptions {
    /// One partition, segments of 64 MiB.
    fn default() -> CreateOptions {
        CreateOptions {
            partition_count: 1,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            holder: "making a database".to_owned(),
        }
    }
}

/// An opened directory. The lock is held as long as this lives.
pub struct DatabaseLayout {
    /// What the database was made with.
    pub manifest: Manifest,
    /// Format versions and limits it was made with.
    pub schema: Schema,
    /// Files in it that are not the database's, relative to the data directory; worth a warning.
    pub foreign: Vec<String>,
    /// The lock on the directory.
    pub lock: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for DatabaseLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseLayout")
            .field("manifest", &self.manifest)
            .field("schema", &self.schema)
            .field("foreign", &self.foreign)
            .finish_non_exhaustive()
    }
}

/// What is in the directory.
///
/// # Errors
///
/// [`DirectoryError::Missing`] if there is data but no manifest; [`DirectoryError::NotEmpty`] if
/// there are files of others and no database.
pub fn directory_state(storage: &dyn Storage) -> Result<DirectoryState, DirectoryError> {
    let root = list_or_empty(storage, "")?;
    let metadata = list_or_empty(storage, METADATA_DIR)?;
    let has = |path: &str| {
        metadata
            .iter()
            .any(|name| format!("{METADATA_DIR}/{name}") == path)
    };
    if has(MANIFEST_PATH) {
        return Ok(DirectoryState::Database);
    }
    if has(CREATING_PATH) {
        return Ok(DirectoryState::Interrupted);
    }
    if has(SCHEMA_PATH) || root.iter().any(|name| parse_partition_dir(name).is_some()) {
        let advice = "the directory holds a database that lost it, restore it from a backup";
        return Err(DirectoryError::Missing {
            path: MANIFEST_PATH.to_owned(),
            advice,
        });
    }
    let other = |name: &&String| *name != METADATA_DIR && !KNOWN_OTHERS.contains(&name.as_str());
    match root.iter().find(other) {
        Some(name) => Err(DirectoryError::NotEmpty { path: name.clone() }),
        None => Ok(DirectoryState::Fresh),
    }
}

/// Makes a database in an empty or absent directory, durably. See the module's documentation for
/// the order.
///
/// # Errors
///
/// [`DirectoryError::NotEmpty`] if anything is there, and what the operating system refuses. After
/// an error or a crash the same call may be made again.
pub fn create_database(world: &World, options: &CreateOptions) -> Result<Manifest, DirectoryError> {
    let storage = world.storage.as_ref();
    check_options(options)?;
    // Refuse before anything is touched, and again under the lock.
    refuse_database(storage)?;
    do_io(
        "create",
        METADATA_DIR,
        storage.durable_create_dir(METADATA_DIR),
    )?;
    let _lock = lock(storage, &options.holder)?;
    refuse_database(storage)?;
    sweep_interrupted(storage, options.partition_count)?;

    let random = |_| {
        let mut bytes = [0u8; 16];
        world.random.fill(&mut bytes);
        bytes
    };
    let [database_id, key_seed] = [0, 1].map(random);
    let manifest = Manifest {
        database_id,
        partition_count: options.partition_count,
        segment_bytes: options.segment_bytes,
        key_seed,
        created_ns: world.clock.utc_ns(),
    };
    // The marker's content says nothing; a whole block, because all files are written in blocks.
    write_block_file(storage, CREATING_PATH, &vec![0u8; BLOCK_BYTES])?;
    for partition in 0..manifest.partition_count {
        let snapshots = format!("{}/{SNAPSHOTS_DIR}", partition_dir(partition));
        for dir in [wal_dir(partition), index_dir(partition), snapshots] {
            do_io("create", &dir, storage.durable_create_dir(&dir))?;
        }
        let header = SegmentHeader {
            kind: SegmentKind::Active,
            place: manifest.place(partition, 1),
            base_sequence: 1,
            segment_bytes: manifest.segment_bytes,
            previous_checksum: 0,
            trim: TrimPoint::NONE,
            created_ns: manifest.created_ns,
        };
        create_segment(storage, &header)?;
    }
    write_block_file(storage, SCHEMA_PATH, &Schema::CURRENT.encode())?;
    write_block_file(storage, MANIFEST_PATH, &manifest.encode())?;
    do_io(
        "remove",
        CREATING_PATH,
        storage.durable_remove(CREATING_PATH),
    )?;
    Ok(manifest)
}

/// Opens a database's directory: takes the lock, then checks that everything is there and of a
/// version this program reads.
///
/// Segments are not looked at; see [`crate::discover_segments`].
///
/// # Errors
///
/// Missing, empty and unreadable are three different errors; each says what to do.
pub fn open_database_layout(world: &World, holder: &str) -> Result<DatabaseLayout, DirectoryError> {
    let storage = world.storage.as_ref();
    match directory_state(storage) {
        Ok(DirectoryState::Database) => {}
        Ok(DirectoryState::Interrupted) => return Err(DirectoryError::Interrupted),
        Ok(DirectoryState::Fresh) => return Err(DirectoryError::NotInitialised),
        Err(error) => return Err(error),
    }
    let lock = lock(storage, holder)?;
    let schema = read_schema(storage)?;
    let manifest = read_manifest(storage)?;
    let mut foreign = Vec::new();
    for name in list_or_empty(storage, "")? {
        match parse_partition_dir(&name) {
            Some(partition) if partition < manifest.partition_count => {}
            Some(_) => {
                let partition_count = manifest.partition_count;
                return Err(DirectoryError::UnexpectedPartition {
                    path: name,
                    partition_count,
                });
            }
            None if name == METADATA_DIR || KNOWN_OTHERS.contains(&name.as_str()) => {}
            None => foreign.push(name),
        }
    }
    foreign.extend(check_metadata_dir(storage)?);
    for partition in 0..manifest.partition_count {
        check_partition_dir(storage, partition, &mut foreign)?;
    }
    if storage.open(CREATING_PATH, OpenMode::Read).is_ok() {
        do_io(
            "remove",
            CREATING_PATH,
            storage.durable_remove(CREATING_PATH),
        )?;
    }
    Ok(DatabaseLayout {
        manifest,
        schema,
        foreign,
        lock,
    })
}

/// Reads the manifest, without the lock.
///
/// # Errors
///
/// Missing, empty, unreadable, damaged and newer are different errors.
pub fn read_manifest(storage: &dyn Storage) -> Result<Manifest, DirectoryError> {
    let advice = "restore it from a backup";
    let block = read_block_file(storage, MANIFEST_PATH, advice)?;
    Manifest::decode(&block).map_err(|source| damaged(MANIFEST_PATH, source))
}

/// Reads the schema, without the lock.
///
/// # Errors
///
/// Missing, empty, unreadable, damaged and newer are different errors.
pub fn read_schema(storage: &dyn Storage) -> Result<Schema, DirectoryError> {
    let advice = "restore it from a backup";
    let block = read_block_file(storage, SCHEMA_PATH, advice)?;
    Schema::decode(&block).map_err(|source| damaged(SCHEMA_PATH, source))
}

/// Makes a preallocated, empty segment and gives it its name, durably.
///
/// # Errors
///
/// What the operating system refuses. A file under the temporary name may be left, which the next
/// call removes.
pub fn create_segment(storage: &dyn Storage, header: &SegmentHeader) -> Result<(), DirectoryError> {
    let (partition, segment) = (header.place.partition, header.place.segment);
    let (path, new_path) = (
        segment_path(partition, segment),
        segment_new_path(partition, segment),
    );
    remove_if_there(storage, &new_path)?;
    let file = do_io(
        "create",
        &new_path,
        storage.open(&new_path, OpenMode::CreateNew),
    )?;
    do_io(
        "reserve space for",
        &new_path,
        file.allocate(header.segment_bytes),
    )?;
    let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
    block.copy_from_slice(&header.encode());
    do_io("write", &new_path, file.write_at(&block, BLOCK_BYTES, 0))?;
    do_io("sync", &new_path, file.sync())?;
    do_io("rename", &path, storage.durable_rename(&new_path, &path))
}

fn check_options(options: &CreateOptions) -> Result<(), DirectoryError> {
    if !(1..=PARTITIONS_MAX).contains(&options.partition_count) {
        return Err(DirectoryError::Option {
            option: "partition count",
            value: options.partition_count.into(),
            reason: "1 to 1024",
        });
    }
    let value = options.segment_bytes;
    check_segment_bytes(value).map_err(|reason| DirectoryError::Option {
        option: "segment bytes",
        value,
        reason,
    })
}

fn refuse_database(storage: &dyn Storage) -> Result<(), DirectoryError> {
    match directory_state(storage)? {
        DirectoryState::Database => Err(DirectoryError::NotEmpty {
            path: MANIFEST_PATH.to_owned(),
        }),
        DirectoryState::Fresh | DirectoryState::Interrupted => Ok(()),
    }
}

/// Removes the files of a database that was never finished. Called only where marker and manifest
/// say so.
fn sweep_interrupted(storage: &dyn Storage, partition_count: u32) -> Result<(), DirectoryError> {
    for name in list_or_empty(storage, "")? {
        let Some(partition) = parse_partition_dir(&name) else {
            continue;
        };
        if partition >= partition_count {
            return Err(DirectoryError::NotEmpty { path: name });
        }
        let wal = wal_dir(partition);
        for file in list_or_empty(storage, &wal)? {
            let path = format!("{wal}/{file}");
            do_io("remove", &path, storage.durable_remove(&path))?;
        }
    }
    remove_if_there(storage, SCHEMA_PATH)
}

fn check_metadata_dir(storage: &dyn Storage) -> Result<Vec<String>, DirectoryError> {
    let names = list_or_empty(storage, METADATA_DIR)?;
    let paths = names.iter().map(|name| format!("{METADATA_DIR}/{name}"));
    Ok(paths
        .filter(|path| {
            let known = path.strip_suffix(".new").unwrap_or(path);
            ![MANIFEST_PATH, SCHEMA_PATH, LOCK_PATH, CREATING_PATH].contains(&known)
        })
        .collect())
}

/// Checks that a partition's directories are there. A missing index directory is made again: it
/// holds nothing that cannot be rebuilt.
fn check_partition_dir(
    storage: &dyn Storage,
    partition: u32,
    foreign: &mut Vec<String>,
) -> Result<(), DirectoryError> {
    let dir = partition_dir(partition);
    for path in [dir.clone(), wal_dir(partition)] {
        match storage.list(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let advice = "part of the database was lost, restore it from a backup";
                return Err(DirectoryError::Missing { path, advice });
            }
            Err(source) => return Err(DirectoryError::Unreadable { path, source }),
        }
    }
    let index = index_dir(partition);
    do_io("create", &index, storage.durable_create_dir(&index))?;
    let names = list_or_empty(storage, &dir)?;
    // `damaged`: copies that a repair put aside.
    let known = [
        "wal",
        "index",
        SNAPSHOTS_DIR,
        DELTAS_DIR,
        "trim.bin",
        "trim.bin.new",
        "damaged",
    ];
    let known = |name: &str| known.contains(&name) || CONTROL_LISTS.contains(&name);
    let others = names.iter().filter(|name| !known(name));
    foreign.extend(others.map(|name| format!("{dir}/{name}")));
    Ok(())
}

fn lock(storage: &dyn Storage, holder: &str) -> Result<Box<dyn Send + Sync>, DirectoryError> {
    match storage.lock(LOCK_PATH, holder) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(DirectoryError::Locked {
            holder: error.to_string(),
        }),
        result => do_io("lock", LOCK_PATH, result),
    }
}

fn damaged(path: &str, source: FormatError) -> DirectoryError {
    let path = path.to_owned();
    match source {
        FormatError::NewerFormat {
            found, supported, ..
        } => DirectoryError::NewerFormat {
            path,
            found,
            supported,
        },
        source => DirectoryError::Damaged { path, source },
    }
}

fn do_io<T>(action: &'static str, path: &str, result: io::Result<T>) -> Result<T, DirectoryError> {
    result.map_err(|source| DirectoryError::Io {
        action,
        path: path.to_owned(),
        source,
    })
}

fn remove_if_there(storage: &dyn Storage, path: &str) -> Result<(), DirectoryError> {
    match storage.durable_remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => do_io("remove", path, result),
    }
}

fn list_or_empty(storage: &dyn Storage, path: &str) -> Result<Vec<String>, DirectoryError> {
    match storage.list(path) {
        Ok(entries) => Ok(entries.into_iter().map(|entry| entry.name).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(DirectoryError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_block_file(
    storage: &dyn Storage,
    path: &str,
    advice: &'static str,
) -> Result<AlignedBuf, DirectoryError> {
    let unreadable = |source| DirectoryError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = match storage.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DirectoryError::Missing {
                path: path.to_owned(),
                advice,
            });
        }
        Err(source) => return Err(unreadable(source)),
    };
    let length = file.len().map_err(unreadable)?;
    if length == 0 {
        return Err(DirectoryError::Empty {
            path: path.to_owned(),
        });
    }
    if length != to_u64(BLOCK_BYTES) {
        let source = FormatError::misplaced("file", "length", BLOCK_BYTES, length);
        return Err(DirectoryError::Damaged {
            path: path.to_owned(),
            source,
        });
    }
    let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
    let read = file
        .read_at(&mut block, BLOCK_BYTES, 0)
        .map_err(unreadable)?;
    if read != BLOCK_BYTES {
        return Err(unreadable(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(block)
}

/// Writes a file of one block under a temporary name, syncs it, and gives it its name.
fn write_block_file(
    storage: &dyn Storage,
    path: &str,
    content: &[u8],
) -> Result<(), DirectoryError> {
    let new_path = format!("{path}.new");
    remove_if_there(storage, &new_path)?;
    let file = do_io(
        "create",
        &new_path,
        storage.open(&new_path, OpenMode::CreateNew),
    )?;
    let mut block = AlignedBuf::new_zeroed(BLOCK_BYTES);
    block.copy_from_slice(content);
    do_io("write", &new_path, file.write_at(&block, BLOCK_BYTES, 0))?;
    do_io("sync", &new_path, file.sync())?;
    do_io("rename", path, storage.durable_rename(&new_path, path))
}
