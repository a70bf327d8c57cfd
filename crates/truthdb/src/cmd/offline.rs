//! Data directories without a server: the lock, the manifest, and the segments as they are.
//!
//! Nothing here changes the log. The lock is taken, because what a running server is about to
//! write looks like damage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use truthdb_io::{File, Storage, World};
use truthdb_log::{
    DatabaseLayout, Footer, HeadRun, HeadRuns, HeadsError, HeadsIdentity, IndexError, KeySeed,
    Manifest, RecoveryError, RecoveryMode, SealedSegments, SegmentEnd, SegmentHeader,
    SegmentReader, index_dir, open_database_layout, parse_segment_name, read_trim_point,
    recover_segment, segment_path, wal_dir,
};

use super::config::load;
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};
use crate::server::{directory_failure, open_world};

/// An opened data directory. Nobody else opens it as long as this lives.
pub(crate) struct Offline {
    /// The directory.
    pub directory: PathBuf,
    /// The world below it.
    pub world: World,
    /// The manifest, the foreign files, and the lock.
    pub layout: DatabaseLayout,
}

/// A segment of an [`Offline`] directory.
pub(crate) struct OfflineSegment {
    /// Its number.
    pub segment: u32,
    /// Its header.
    pub header: SegmentHeader,
    /// Its footer, if it is sealed.
    pub footer: Option<Footer>,
    /// Where its events end, in bytes: whatever follows was never acknowledged.
    pub data_end: u64,
    /// Sequence that follows its last event.
    pub next_sequence: u64,
    /// The open file.
    pub file: Arc<dyn File>,
}

impl OfflineSegment {
    /// Bytes of the file that belong to the log.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.footer {
            Some(footer) => footer.file_bytes().unwrap_or(0),
            None => self.data_end.next_multiple_of(4096),
        }
    }
}

/// The world below the directory that `--data` or the configuration names.
///
/// # Errors
///
/// `config`, `environment`.
pub(crate) fn world(globals: &Globals, directory: &Path) -> Result<World, Failure> {
    let config = load(globals)?;
    Ok(open_world(directory, config.data.io_backend)?.0)
}

impl Offline {
    /// Takes the lock on a directory and checks that everything is there.
    ///
    /// # Errors
    ///
    /// `locked`, `newer-format`, `damaged`, `environment`: each says what to do.
    pub(crate) fn open(
        globals: &Globals,
        directory: &Path,
        command: &str,
    ) -> Result<Offline, Failure> {
        let world = world(globals, directory)?;
        let holder = format!("truthdb {command}, process {}", std::process::id());
        let layout = open_database_layout(&world, &holder).map_err(|error| {
            let failure = directory_failure(directory, error);
            if failure.class != ExitClass::Locked {
                return failure;
            }
            failure.with_action(
                "Stop the server that has it open, or ask that server: leave out --data.",
            )
        })?;
        Ok(Offline {
            directory: directory.to_owned(),
            world,
            layout,
        })
    }

    /// The manifest.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.layout.manifest
    }

    /// The disk.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.world.storage
    }

    /// Refuses partitions that are not there.
    ///
    /// # Errors
    ///
    /// `usage`.
    pub(crate) fn check_partition(&self, partition: u32) -> Result<(), Failure> {
        let count = self.manifest().partition_count;
        if partition < count {
            return Ok(());
        }
        let message = format!("there is no partition {partition}; the database has {count}");
        Err(Failure::usage(message))
    }

    /// The segments of a partition, oldest first, as recovery would find them. Nothing is changed.
    ///
    /// # Errors
    ///
    /// `damaged` and the like, naming the file.
    pub(crate) fn segments(&self, partition: u32) -> Result<Vec<OfflineSegment>, Failure> {
        let storage = self.storage().as_ref();
        let directory = wal_dir(partition);
        let fail = |error: RecoveryError| self.recovery_failure(error);
        let trim = read_trim_point(storage, self.manifest(), partition).map_err(fail)?;
        let entries = storage
            .list(&directory)
            .map_err(|error| Failure::environment(format!("cannot list {directory}"), error))?;
        let mut numbers: Vec<u32> = entries
            .iter()
            .filter_map(|entry| parse_segment_name(&entry.name))
            .filter(|segment| *segment >= trim.first_segment)
            .collect();
        numbers.sort_unstable();
        let mut segments: Vec<OfflineSegment> = Vec::with_capacity(numbers.len());
        for (index, segment) in numbers.iter().enumerate() {
            let expected = numbers.first().map_or(*segment, |first| {
                first.saturating_add(u32::try_from(index).unwrap_or(u32::MAX))
            });
            if *segment != expected {
                let missing = segment_path(partition, expected);
                return Err(
                    Failure::new(ExitClass::Damaged, format!("{missing} is missing"))
                        .with_action("Restore it from a backup with `truthdb repair`."),
                );
            }
            segments.push(self.segment(partition, *segment)?);
        }
        if segments.is_empty() {
            let message = format!("{directory} holds no segment");
            return Err(Failure::new(ExitClass::Damaged, message)
                .with_action("Restore the database from a backup."));
        }
        for index in 0..segments.len() {
            if segments[index].footer.is_none() {
                let next = segments
                    .get(index + 1)
                    .map(|next| SegmentEnd::before(&next.header));
                self.find_end(partition, &mut segments[index], next)?;
            }
        }
        Ok(segments)
    }

    /// The runs of stream heads that know the streams of segments before the oldest of these.
    ///
    /// # Errors
    ///
    /// `damaged`, if some of them are lost; `newer-format`, `environment`.
    pub(crate) fn irreplaceable_heads(
        &self,
        partition: u32,
        segments: &[OfflineSegment],
    ) -> Result<Vec<Arc<HeadRun>>, Failure> {
        let first = segments.first().map_or(1, |first| first.segment);
        let footers: Vec<&Footer> = segments.iter().filter_map(|s| s.footer.as_ref()).collect();
        let chain_of = |segment: u32| {
            let of = |number: u32| footers.iter().find(|f| f.place.segment == number);
            of(segment)
                .map(|own| own.chain)
                .or_else(|| of(segment + 1).map(|next| next.previous_chain))
        };
        let sealed = SealedSegments {
            first,
            last: footers.last().map_or(first - 1, |f| f.place.segment),
            chain_of: &chain_of,
        };
        let identity = HeadsIdentity {
            database_id: self.manifest().database_id,
            partition,
            key_check: KeySeed(self.manifest().key_seed).check(),
        };
        let directory = index_dir(partition);
        let survey = HeadRuns::survey(self.storage(), &directory, identity, &sealed);
        let failed = |error| heads_failure(&self.directory, error);
        let survey = survey.map_err(failed)?;
        match survey.lost {
            Some(lost) => Err(failed(lost)),
            None => Ok(survey.runs.irreplaceable(first).to_vec()),
        }
    }

    fn segment(&self, partition: u32, segment: u32) -> Result<OfflineSegment, Failure> {
        let storage = self.storage().as_ref();
        let place = self.manifest().place(partition, segment);
        let damaged = |error: truthdb_log::ReadError| read_failure(&self.directory, error);
        let (reader, header) = SegmentReader::open(storage, place).map_err(damaged)?;
        let footer = reader.footer().map_err(damaged)?;
        let file = Arc::clone(reader.file());
        let data_end = footer.as_ref().map_or(0, |footer| footer.data_end);
        let next_sequence = footer.as_ref().map_or(0, |footer| footer.last_sequence + 1);
        Ok(OfflineSegment {
            segment,
            header,
            footer,
            data_end,
            next_sequence,
            file,
        })
    }

    fn find_end(
        &self,
        partition: u32,
        segment: &mut OfflineSegment,
        next: Option<SegmentEnd>,
    ) -> Result<(), Failure> {
        let place = self.manifest().place(partition, segment.segment);
        let storage = self.storage().as_ref();
        let found = recover_segment(storage, place, next, RecoveryMode::Look, &mut |_| {})
            .map_err(|error| self.recovery_failure(error))?;
        segment.data_end = found.tail_offset;
        segment.next_sequence = found.next_sequence;
        Ok(())
    }

    fn recovery_failure(&self, error: RecoveryError) -> Failure {
        recovery_failure(&self.directory, error)
    }
}

/// The failure of a partition that cannot be opened.
pub(crate) fn recovery_failure(directory: &Path, error: RecoveryError) -> Failure {
    let class = match &error {
        RecoveryError::NewerFormat { .. } => ExitClass::NewerFormat,
        RecoveryError::Io { .. } => ExitClass::Environment,
        _ => ExitClass::Damaged,
    };
    let action = match (&error, class) {
        (RecoveryError::Corrupt { path, offset, .. }, _) => {
            inspect_action(&directory.join(path), *offset)
        }
        (_, ExitClass::Damaged) => {
            format!("See `truthdb verify --data {}`.", directory.display())
        }
        (_, ExitClass::NewerFormat) => "Use the release that wrote it, or a newer one.".to_owned(),
        _ => "See that the disk and the permissions are in order.".to_owned(),
    };
    let message = format!("the log in {} cannot be read", directory.display());
    Failure::new(class, message)
        .with_source(error)
        .with_action(action)
}

fn heads_failure(directory: &Path, error: HeadsError) -> Failure {
    let message = format!("the stream heads in {} cannot be read", directory.display());
    match &error {
        HeadsError::Index(IndexError::Newer { .. }) => {
            Failure::new(ExitClass::NewerFormat, message)
                .with_source(error)
                .with_action("Use the release that wrote it, or a newer one.")
        }
        HeadsError::Index(IndexError::Io { .. }) => Failure::environment(message, error),
        _ => Failure::new(ExitClass::Damaged, message)
            .with_source(error)
            .with_action(format!(
                "See `truthdb verify --data {}`, and restore the database from a backup.",
                directory.display()
            )),
    }
}

fn inspect_action(file: &Path, offset: u64) -> String {
    format!(
        "Look at it with `truthdb inspect {} --offset {offset}`; see `truthdb repair --help` for \
         the ways out.",
        file.display()
    )
}

/// The failure of a segment that cannot be read.
pub(crate) fn read_failure(directory: &Path, error: truthdb_log::ReadError) -> Failure {
    let message = format!("the log in {} cannot be read", directory.display());
    match &error {
        truthdb_log::ReadError::Corrupt(corruption) => {
            let newer = matches!(
                &corruption.reason,
                truthdb_log::CorruptReason::Format(truthdb_log::FormatError::NewerFormat { .. })
            );
            let class = if newer {
                ExitClass::NewerFormat
            } else {
                ExitClass::Damaged
            };
            let action = inspect_action(&directory.join(&corruption.path), corruption.offset);
            Failure::new(class, message)
                .with_source(error)
                .with_action(action)
        }
        _ => Failure::environment(message, error),
    }
}
