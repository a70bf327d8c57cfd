//! `truthdb backup`: a consistent copy, while the server serves or from a closed directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use serde_json::json;
use truthdb_api::v1;
use truthdb_api::v1::backup_response::Message;
use truthdb_io::{AlignedBuf, BLOCK_BYTES, File};
use truthdb_log::{
    HeadRun, MANIFEST_PATH, SCHEMA_PATH, index_dir, run_file_name, segment_path, trim_path,
};

use super::backup_set::{
    BackupSet, COPY_BYTES, FileEntry, FileWriter, Index, Known, PartitionEntry, heads_of,
    segment_of,
};
use super::connect::{self, GrpcArgs, block_on, call_failure};
use super::offline::{Offline, OfflineSegment};
use super::output::{self, Output};
use super::verify::verify_storage;
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};

/// Copy a database consistently while it serves.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --data the directory is copied here, and no server may run on it. A directory \
                  that holds a\nbackup of the same database is brought up to date: sealed segments \
                  that are there are not copied\nagain, and until the new backup is whole the old \
                  one is.\n\nAccess tokens and TLS keys of the server are no part of a backup."
)]
pub(crate) struct Args {
    /// Directory for the backup: empty, absent, or with a backup of the same database.
    to: PathBuf,
    /// Read back and verify everything that the backup consists of.
    #[arg(long)]
    verify: bool,
    /// At a server: take at most so many bytes a second. 0: no bound.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    bytes_per_second: u64,
    /// Where to ask.
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// What was copied, and what was there already.
#[derive(Default)]
struct Copied {
    files: u64,
    bytes: u64,
    kept: u64,
    kept_bytes: u64,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let (set, before, _lock) = BackupSet::create(&args.to)?;
    let (index, copied) = match &globals.data {
        Some(directory) => offline(globals, directory, &set, before.as_ref())?,
        None => block_on(online(&args, globals, &set, before.as_ref()))?,
    };
    set.publish(&index)?;
    let verdict = if args.verify {
        for file in &index.files {
            set.read(file, &mut |_| Ok(()))?;
        }
        let manifest = set.manifest(&index)?;
        Some(verify_storage(&set.view(&index)?, &manifest, &[], true, globals.json).of_segments())
    } else {
        None
    };
    let mut out = Output::new();
    if globals.json {
        out.json(&json!({
            "database_id": index.database_id,
            "directory": args.to.display().to_string(),
            "taken": index.taken,
            "taken_ns": index.taken_ns,
            "partitions": index.partitions,
            "files_copied": copied.files,
            "bytes_copied": copied.bytes,
            "files_kept": copied.kept,
            "bytes_kept": copied.kept_bytes,
            "bytes": index.bytes(),
            "verified": verdict.as_ref().map(|verdict| verdict.is_whole()),
        }))?;
    } else {
        out.line(&format!(
            "Backup of database {} in {}: {} copied in {} files, {} kept in {}.",
            index.database_id,
            args.to.display(),
            output::bytes(copied.bytes),
            copied.files,
            output::bytes(copied.kept_bytes),
            copied.kept,
        ))?;
        for partition in &index.partitions {
            out.line(&format!(
                "partition {}: sequences {} to {}",
                partition.partition, partition.first_sequence, partition.last_sequence
            ))?;
        }
    }
    out.flush()?;
    drop(out);
    match verdict {
        Some(verdict) if !globals.json => {
            verdict.tell(false)?;
            verdict.settle()
        }
        Some(verdict) => verdict.settle(),
        None => Ok(()),
    }
}

fn check_same(before: Option<&Index>, database_id: &[u8]) -> Result<(), Failure> {
    match before {
        Some(before) if before.database_id != output::hex(database_id) => {
            let message = format!(
                "the directory holds a backup of database {}",
                before.database_id
            );
            Err(Failure::new(ExitClass::Refused, message)
                .with_action("Give another directory: a backup is of one database."))
        }
        _ => Ok(()),
    }
}

async fn online(
    args: &Args,
    globals: &Globals,
    set: &BackupSet,
    before: Option<&Index>,
) -> Result<(Index, Copied), Failure> {
    let mut admin = connect::admin(globals, &args.grpc).await?;
    let known = before.map(|index| set.known(index)).unwrap_or_default();
    let have = known.iter().filter_map(|(path, (_, chain))| {
        let (partition, segment) = segment_of(path)?;
        let chain = chain.to_vec().into();
        Some(v1::SegmentRef {
            partition,
            segment,
            chain,
        })
    });
    let have_heads = known.iter().filter_map(|(path, (_, chain))| {
        let (partition, (first_segment, last_segment)) = heads_of(path)?;
        let chain = chain.to_vec().into();
        Some(v1::HeadsRef {
            partition,
            first_segment,
            last_segment,
            chain,
        })
    });
    let request = v1::BackupRequest {
        have: have.collect(),
        have_heads: have_heads.collect(),
        bytes_per_second_max: args.bytes_per_second,
    };
    let mut messages = admin
        .backup(request)
        .await
        .map_err(call_failure)?
        .into_inner();
    let mut receiver = Receiver::new(known, globals.json);
    while let Some(message) = messages.message().await.map_err(call_failure)? {
        match message.message {
            Some(Message::Begin(begin)) => {
                check_same(before, &begin.database_id)?;
                receiver.begin(begin)?;
            }
            Some(Message::File(file)) => {
                receiver.writer = Some(set.begin(&file.path, file.bytes)?);
                receiver.path = file.path;
            }
            Some(Message::Chunk(chunk)) => receiver.chunk(&chunk)?,
            Some(Message::FileEnd(end)) => receiver.file_end(&end.blake3)?,
            Some(Message::End(_)) => return receiver.end(),
            None => {}
        }
    }
    Err(broken("it ended before its end"))
}

fn broken(what: &str) -> Failure {
    Failure::new(ExitClass::Network, format!("the backup broke off: {what}"))
        .with_action("Make it again. The backup before this one is intact.")
}

/// Puts what a server sends into the set.
struct Receiver<'a> {
    known: Known,
    begin: Option<v1::BackupBegin>,
    /// Chain hashes of the sealed segments and runs of stream heads that belong to the backup, by path.
    chains: BTreeMap<String, [u8; 32]>,
    files: Vec<FileEntry>,
    copied: Copied,
    path: String,
    writer: Option<FileWriter<'a>>,
    bar: ProgressBar,
}

impl<'a> Receiver<'a> {
    fn new(known: Known, quiet: bool) -> Receiver<'a> {
        let bar = output::byte_bar(0, quiet);
        bar.set_message("copying");
        Receiver {
            known,
            begin: None,
            chains: BTreeMap::new(),
            files: Vec::new(),
            copied: Copied::default(),
            path: String::new(),
            writer: None,
            bar,
        }
    }

    fn begin(&mut self, begin: v1::BackupBegin) -> Result<(), Failure> {
        self.bar.set_length(begin.bytes);
        let sealed = begin.partitions.iter().flat_map(|one| &one.sealed);
        let sealed = sealed.map(|segment| {
            let path = segment_path(segment.partition, segment.segment);
            (path, &segment.chain)
        });
        let heads = begin.partitions.iter().flat_map(|one| &one.heads);
        let heads = heads.map(|run| {
            let path = heads_path(run.partition, (run.first_segment, run.last_segment));
            (path, &run.chain)
        });
        for (path, chain) in sealed.chain(heads) {
            let chain = chain[..]
                .try_into()
                .map_err(|_| broken("a chain hash is short"))?;
            self.chains.insert(path, chain);
        }
        self.begin = Some(begin);
        Ok(())
    }

    fn chunk(&mut self, chunk: &v1::BackupChunk) -> Result<(), Failure> {
        let writer = self
            .writer
            .as_mut()
            .ok_or_else(|| broken("bytes without a file"))?;
        if chunk.offset != writer.written() {
            return Err(broken("bytes are missing"));
        }
        writer.write(&chunk.data)?;
        self.bar
            .inc(u64::try_from(chunk.data.len()).expect("a length fits"));
        Ok(())
    }

    fn file_end(&mut self, blake3: &[u8]) -> Result<(), Failure> {
        let writer = self
            .writer
            .take()
            .ok_or_else(|| broken("the end of no file"))?;
        let chain = self.chains.get(&self.path).copied();
        let entry = writer.finish(Some(blake3), chain)?;
        self.copied.files += 1;
        self.copied.bytes += entry.bytes;
        self.files.push(entry);
        Ok(())
    }

    fn end(mut self) -> Result<(Index, Copied), Failure> {
        self.bar.finish_and_clear();
        let begin = self
            .begin
            .take()
            .ok_or_else(|| broken("it has no beginning"))?;
        for (path, chain) in &self.chains {
            if self.files.iter().any(|file| file.path == *path) {
                continue;
            }
            match self.known.get(path) {
                Some((entry, known)) if known == chain => {
                    self.copied.kept += 1;
                    self.copied.kept_bytes += entry.bytes;
                    self.files.push(entry.clone());
                }
                _ => return Err(broken(path)),
            }
        }
        let partitions = begin.partitions.iter().map(|partition| PartitionEntry {
            partition: partition.partition,
            first_sequence: partition.first_sequence,
            last_sequence: partition.last_sequence,
        });
        let partitions = partitions.collect();
        let index = Index::new(
            &begin.database_id,
            begin.timestamp_ns,
            partitions,
            self.files,
        );
        Ok((index, self.copied))
    }
}

fn offline(
    globals: &Globals,
    directory: &Path,
    set: &BackupSet,
    before: Option<&Index>,
) -> Result<(Index, Copied), Failure> {
    let offline = Offline::open(globals, directory, "backup")?;
    let manifest = *offline.manifest();
    check_same(before, &manifest.database_id)?;
    let known = before.map(|index| set.known(index)).unwrap_or_default();
    let (mut files, mut partitions, mut copied) = (Vec::new(), Vec::new(), Copied::default());
    for partition in 0..manifest.partition_count {
        let segments = offline.segments(partition)?;
        let heads = offline.irreplaceable_heads(partition, &segments)?;
        let sources: Vec<Source<'_>> = segments
            .iter()
            .map(|segment| Source::of_segment(partition, segment))
            .chain(heads.iter().map(|run| Source::of_heads(run)))
            .collect::<Result<_, _>>()?;
        let bar = output::byte_bar(sources.iter().map(|file| file.bytes).sum(), globals.json);
        bar.set_message(format!("copying partition {partition}"));
        for source in &sources {
            match known.get(&source.path) {
                Some((entry, known)) if source.chain == Some(*known) => {
                    copied.kept += 1;
                    copied.kept_bytes += entry.bytes;
                    files.push(entry.clone());
                }
                _ => {
                    let entry = copy_file(set, source, &bar)?;
                    copied.files += 1;
                    copied.bytes += entry.bytes;
                    files.push(entry);
                }
            }
        }
        bar.finish_and_clear();
        partitions.push(partition_entry(partition, &segments));
    }
    let trims = (0..manifest.partition_count).map(trim_path);
    for path in trims.chain([SCHEMA_PATH, MANIFEST_PATH].map(str::to_owned)) {
        if let Some(entry) = copy_small(set, directory, &path)? {
            copied.files += 1;
            copied.bytes += entry.bytes;
            files.push(entry);
        }
    }
    let taken_ns = offline.world.clock.utc_ns();
    Ok((
        Index::new(&manifest.database_id, taken_ns, partitions, files),
        copied,
    ))
}

fn partition_entry(partition: u32, segments: &[OfflineSegment]) -> PartitionEntry {
    let first_sequence = segments
        .first()
        .map_or(1, |first| first.header.base_sequence);
    let last_sequence = segments
        .last()
        .map_or(0, |last| last.next_sequence.saturating_sub(1));
    PartitionEntry {
        partition,
        first_sequence,
        last_sequence,
    }
}

/// A file of the log that is copied: a segment or a run of stream heads.
struct Source<'a> {
    path: String,
    bytes: u64,
    chain: Option<[u8; 32]>,
    file: &'a Arc<dyn File>,
}

impl<'a> Source<'a> {
    fn of_segment(partition: u32, segment: &'a OfflineSegment) -> Result<Source<'a>, Failure> {
        Ok(Source {
            path: segment_path(partition, segment.segment),
            bytes: segment.bytes(),
            chain: segment.footer.as_ref().map(|footer| footer.chain),
            file: &segment.file,
        })
    }

    fn of_heads(run: &'a HeadRun) -> Result<Source<'a>, Failure> {
        let path = run.path().to_owned();
        let bytes = run
            .file()
            .len()
            .map_err(|error| Failure::environment(format!("cannot read {path}"), error))?;
        Ok(Source {
            path,
            bytes,
            chain: Some(run.chain()),
            file: run.file(),
        })
    }
}

fn copy_file(
    set: &BackupSet,
    source: &Source<'_>,
    bar: &ProgressBar,
) -> Result<FileEntry, Failure> {
    let (path, bytes) = (&source.path, source.bytes);
    let mut writer = set.begin(path, bytes)?;
    let mut buffer = AlignedBuf::new_zeroed(COPY_BYTES);
    while writer.written() < bytes {
        let offset = writer.written();
        let left = usize::try_from(bytes - offset)
            .unwrap_or(usize::MAX)
            .min(COPY_BYTES);
        let wanted = left.next_multiple_of(BLOCK_BYTES);
        let read = source
            .file
            .read_at(&mut buffer, wanted, offset)
            .map_err(|error| {
                Failure::environment(format!("cannot read {path} at offset {offset}"), error)
            })?;
        let read = read.min(left);
        if read == 0 {
            return Err(Failure::new(
                ExitClass::Damaged,
                format!("{path} ends before its end"),
            ));
        }
        writer.write(&buffer[..read])?;
        bar.inc(u64::try_from(read).expect("at most a MiB"));
    }
    writer.finish(None, source.chain)
}

/// Path of the run of stream heads of these segments.
fn heads_path(partition: u32, (first, last): (u32, u32)) -> String {
    format!("{}/{}", index_dir(partition), run_file_name(first, last))
}

/// Copies a small file; `None` if it is not there.
fn copy_small(set: &BackupSet, data: &Path, path: &str) -> Result<Option<FileEntry>, Failure> {
    let bytes = match std::fs::read(data.join(path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        result => {
            result.map_err(|error| Failure::environment(format!("cannot read {path}"), error))?
        }
    };
    let mut writer = set.begin(path, u64::try_from(bytes.len()).expect("a length fits"))?;
    writer.write(&bytes)?;
    writer.finish(None, None).map(Some)
}
