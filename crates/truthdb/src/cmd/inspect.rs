//! `truthdb inspect`: the files of a data directory, structure by structure.
//!
//! Nothing is locked and nothing is changed, so that it also works beside a running server, on a
//! copy, and on what is left of a damaged disk.

use std::path::{Path, PathBuf};

use serde::Serialize;
use truthdb_io::{Backend, FileStorage, OpenMode, Storage};
use truthdb_log::{
    InspectOptions, Manifest, SegmentReader, directory_state, index_dir, inspect_file,
    parse_partition_dir, parse_segment_name, read_manifest, read_schema, wal_dir,
};

use super::chain_text;
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::Failure;
use crate::server::directory_failure;

/// Look at the files of a data directory, structure by structure.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A file is explained down to the field, whether it is damaged or not; what \
                  contradicts it is\nmarked with `!`. A directory is summarised. Works beside a \
                  running server."
)]
pub(crate) struct Args {
    /// A file of a data directory, or the directory itself. Without it: the directory of --data.
    path: Option<PathBuf>,
    /// Where in a segment to begin, in bytes; from there the next batch or block is searched.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// Batches, blocks or rows to show, at most.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    limit: usize,
    /// Show the events of each batch.
    #[arg(long)]
    events: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let path = args
        .path
        .as_ref()
        .or(globals.data.as_ref())
        .ok_or_else(|| {
            Failure::usage("name a file or a data directory, as an argument or with --data")
        })?;
    let kind = std::fs::metadata(path).map_err(|error| {
        Failure::environment(format!("cannot look at {}", path.display()), error)
    })?;
    if kind.is_dir() {
        directory(path, globals.json)
    } else {
        file(path, &args, globals.json)
    }
}

fn storage(root: &Path) -> Result<FileStorage, Failure> {
    FileStorage::open(root, Backend::Blocking)
        .map_err(|error| Failure::environment(format!("cannot use {}", root.display()), error))
}

fn file(path: &Path, args: &Args, json: bool) -> Result<(), Failure> {
    let fail = |error| Failure::environment(format!("cannot read {}", path.display()), error);
    let absolute = std::path::absolute(path).map_err(fail)?;
    let name = absolute.file_name().and_then(|name| name.to_str());
    let (Some(parent), Some(name)) = (absolute.parent(), name) else {
        return Err(Failure::usage(format!(
            "{} is not a file's name",
            path.display()
        )));
    };
    let opened = storage(parent)?.open(name, OpenMode::Read).map_err(fail)?;
    let options = InspectOptions {
        offset: args.offset,
        items_max: args.limit,
        events: args.events,
    };
    let inspection = inspect_file(&path.display().to_string(), &opened, options).map_err(fail)?;
    let mut out = Output::new();
    if json {
        out.json(&inspection)?;
    } else {
        out.text(&inspection.to_text())?;
    }
    out.flush()
}

/// A data directory in short.
#[derive(Serialize)]
struct Summary {
    directory: String,
    database_id: String,
    format_version: u16,
    created: String,
    partition_count: u32,
    segment_bytes: u64,
    partitions: Vec<Partition>,
    /// What is wrong at first sight.
    problems: Vec<String>,
}

/// A partition in short.
#[derive(Serialize)]
struct Partition {
    partition: u32,
    segments: Vec<Segment>,
    index_files: usize,
    index_bytes: u64,
    /// Files that are not the log's.
    foreign: Vec<String>,
}

/// A segment in short.
#[derive(Serialize)]
struct Segment {
    segment: u32,
    state: &'static str,
    first_sequence: Option<u64>,
    last_sequence: Option<u64>,
    events: Option<u64>,
    bytes: u64,
    chain: Option<String>,
}

fn directory(root: &Path, json: bool) -> Result<(), Failure> {
    let storage = storage(root)?;
    let refused = |error| directory_failure(root, error);
    directory_state(&storage).map_err(refused)?;
    let schema = read_schema(&storage).map_err(refused)?;
    let manifest = read_manifest(&storage).map_err(refused)?;
    let mut summary = Summary {
        directory: root.display().to_string(),
        database_id: output::hex(&manifest.database_id),
        format_version: schema.format_version,
        created: output::timestamp(manifest.created_ns),
        partition_count: manifest.partition_count,
        segment_bytes: manifest.segment_bytes,
        partitions: Vec::new(),
        problems: Vec::new(),
    };
    for partition in 0..manifest.partition_count {
        match summarise(&storage, &manifest, partition, &mut summary.problems) {
            Ok(found) => summary.partitions.push(found),
            Err(error) => {
                summary
                    .problems
                    .push(format!("{}: {error}", wal_dir(partition)));
            }
        }
    }
    let entries = storage.list("").unwrap_or_default();
    let beyond = entries.iter().filter(|entry| {
        parse_partition_dir(&entry.name).is_some_and(|number| number >= manifest.partition_count)
    });
    for entry in beyond {
        summary
            .problems
            .push(format!("{}: the manifest does not know it", entry.name));
    }
    let mut out = Output::new();
    if json {
        out.json(&summary)?;
    } else {
        tell(&summary, &mut out)?;
    }
    out.flush()
}

fn summarise(
    storage: &FileStorage,
    manifest: &Manifest,
    partition: u32,
    problems: &mut Vec<String>,
) -> std::io::Result<Partition> {
    let wal = wal_dir(partition);
    let (mut segments, mut foreign) = (Vec::new(), Vec::new());
    for entry in storage.list(&wal)? {
        match parse_segment_name(&entry.name) {
            Some(number) => {
                let found = segment(storage, manifest, partition, number, entry.bytes);
                segments.push(found.unwrap_or_else(|error| {
                    problems.push(chain_text(&error));
                    Segment {
                        segment: number,
                        state: "unreadable",
                        first_sequence: None,
                        last_sequence: None,
                        events: None,
                        bytes: entry.bytes,
                        chain: None,
                    }
                }));
            }
            None if entry.name.ends_with(".new") => {}
            None => foreign.push(format!("{wal}/{}", entry.name)),
        }
    }
    segments.sort_by_key(|segment| segment.segment);
    for pair in segments.windows(2) {
        if pair[0].segment + 1 != pair[1].segment {
            let missing = truthdb_log::segment_path(partition, pair[0].segment + 1);
            problems.push(format!("{missing} is missing"));
        }
    }
    let indexes = storage.list(&index_dir(partition)).unwrap_or_default();
    Ok(Partition {
        partition,
        segments,
        index_files: indexes.len(),
        index_bytes: indexes.iter().map(|entry| entry.bytes).sum(),
        foreign,
    })
}

fn segment(
    storage: &FileStorage,
    manifest: &Manifest,
    partition: u32,
    number: u32,
    bytes: u64,
) -> Result<Segment, truthdb_log::ReadError> {
    let (reader, header) = SegmentReader::open(storage, manifest.place(partition, number))?;
    let footer = reader.footer()?;
    Ok(Segment {
        segment: number,
        state: match (&footer, reader.kind()) {
            (None, _) => "unsealed",
            (Some(_), truthdb_log::SegmentKind::Active) => "sealed",
            (Some(_), truthdb_log::SegmentKind::Packed) => "packed",
        },
        first_sequence: Some(header.base_sequence),
        last_sequence: footer.as_ref().map(|footer| footer.last_sequence),
        events: footer.as_ref().map(truthdb_log::Footer::event_count),
        bytes,
        chain: footer.as_ref().map(|footer| output::hex(&footer.chain)),
    })
}

fn tell(summary: &Summary, out: &mut Output) -> Result<(), Failure> {
    let mut facts = output::facts();
    let mut fact = |name: &str, value: String| {
        facts.add_row(vec![name.to_owned(), value]);
    };
    fact("directory", summary.directory.clone());
    fact("database", summary.database_id.clone());
    fact("format version", summary.format_version.to_string());
    fact("created", summary.created.clone());
    fact("partitions", summary.partition_count.to_string());
    fact("segment size", output::bytes(summary.segment_bytes));
    out.table(&facts)?;
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    for partition in &summary.partitions {
        out.line(&format!(
            "\npartition {}: {} index files, {}",
            partition.partition,
            partition.index_files,
            output::bytes(partition.index_bytes)
        ))?;
        let header = [
            "segment", "state", "first", "last", "events", "bytes", "chain",
        ];
        let mut table = output::table(&header, &[0, 2, 3, 4, 5]);
        for segment in &partition.segments {
            let chain = segment.chain.as_deref().unwrap_or_default();
            table.add_row(vec![
                segment.segment.to_string(),
                segment.state.to_owned(),
                number(segment.first_sequence),
                number(segment.last_sequence),
                number(segment.events),
                segment.bytes.to_string(),
                chain.chars().take(16).collect(),
            ]);
        }
        out.table(&table)?;
        for path in &partition.foreign {
            out.line(&format!("{path} is not the log's"))?;
        }
    }
    for problem in &summary.problems {
        out.line(&format!("! {problem}"))?;
    }
    Ok(())
}
