//! `truthdb restore`: a backup becomes a data directory.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde_json::json;
use truthdb_io::{OpenMode, Storage, World};
use truthdb_log::{
    DirectoryState, LOCK_PATH, MANIFEST_PATH, METADATA_DIR, Manifest, directory_state, index_dir,
    partition_dir, wal_dir,
};

use super::backup_set::{BackupSet, FileEntry, Index, segment_of};
use super::offline;
use super::output::{self, Output};
use super::verify::{Verdict, verify_storage};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};
use crate::server::directory_failure;

/// Put a backup in place as a data directory.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The directory that --data names must be empty or absent. Every byte is checked on \
                  the way, and\nwhat was written is verified as a whole. The database keeps its id: \
                  never serve two copies of\none database to the same clients."
)]
pub(crate) struct Args {
    /// Directory of the backup.
    from: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let Some(directory) = &globals.data else {
        return Err(
            Failure::usage("restore needs --data: where the database is to be")
                .with_action("Give an empty or absent directory."),
        );
    };
    let (set, index) = BackupSet::open(&args.from)?;
    let manifest = set.manifest(&index)?;
    check_complete(&index, &manifest)?;
    let world = offline::world(globals, directory)?;
    let verdict = copy(&set, &index, &manifest, &world, directory, globals.json)?;
    check_chains(&index, &verdict)?;
    let mut out = Output::new();
    if globals.json {
        out.json(&json!({
            "database_id": index.database_id,
            "directory": directory.display().to_string(),
            "taken": index.taken,
            "taken_ns": index.taken_ns,
            "files": index.files.len(),
            "bytes": index.bytes(),
            "verification": verdict,
        }))?;
    } else {
        out.line(&format!(
            "Restored database {} as of {} to {}: {}.",
            index.database_id,
            index.taken,
            directory.display(),
            output::bytes(index.bytes()),
        ))?;
    }
    out.flush()?;
    drop(out);
    if !globals.json {
        verdict.tell(false)?;
    }
    verdict.settle()
}

/// Every partition of the manifest is there, and nothing else.
fn check_complete(index: &Index, manifest: &Manifest) -> Result<(), Failure> {
    let found: BTreeSet<u32> = index
        .files
        .iter()
        .filter_map(|file| segment_of(&file.path))
        .map(|(partition, _)| partition)
        .collect();
    let own = output::hex(&manifest.database_id) == index.database_id;
    if own && found.iter().copied().eq(0..manifest.partition_count) {
        return Ok(());
    }
    Err(Failure::new(
        ExitClass::Damaged,
        "the backup's index contradicts its manifest",
    )
    .with_action("Use another backup."))
}

fn copy(
    set: &BackupSet,
    index: &Index,
    manifest: &Manifest,
    world: &World,
    directory: &Path,
    quiet: bool,
) -> Result<Verdict, Failure> {
    let storage = world.storage.as_ref();
    let refused = |error| {
        directory_failure(directory, error)
            .with_action("Restore to an empty or absent directory; remove a broken attempt first.")
    };
    let fail = |error| {
        Failure::environment(format!("cannot write to {}", directory.display()), error)
            .with_action("Remove the directory and restore again.")
    };
    if directory_state(storage).map_err(refused)? != DirectoryState::Fresh {
        let message = format!("{} holds a database", directory.display());
        return Err(Failure::new(ExitClass::Environment, message)
            .with_action("Restore to an empty or absent directory."));
    }
    storage.durable_create_dir(METADATA_DIR).map_err(fail)?;
    let holder = format!("truthdb restore, process {}", std::process::id());
    let _lock = storage.lock(LOCK_PATH, &holder).map_err(|error| {
        if error.kind() == std::io::ErrorKind::WouldBlock {
            Failure::new(
                ExitClass::Locked,
                format!("{} is in use", directory.display()),
            )
            .with_source(error)
        } else {
            fail(error)
        }
    })?;
    for partition in 0..manifest.partition_count {
        let snapshots = format!("{}/snapshots", partition_dir(partition));
        for dir in [wal_dir(partition), index_dir(partition), snapshots] {
            storage.durable_create_dir(&dir).map_err(fail)?;
        }
    }
    let bar = output::byte_bar(index.bytes(), quiet);
    bar.set_message("restoring");
    // The manifest last: without it a broken attempt is no database.
    let (manifest_file, others): (Vec<_>, Vec<_>) = index
        .files
        .iter()
        .partition(|file| file.path == MANIFEST_PATH);
    for file in others.into_iter().chain(manifest_file) {
        copy_file(set, file, manifest, storage, directory, &bar)?;
    }
    bar.finish_and_clear();
    Ok(verify_storage(&world.storage, manifest, &[], true, quiet).of_segments())
}

fn copy_file(
    set: &BackupSet,
    entry: &FileEntry,
    manifest: &Manifest,
    storage: &dyn Storage,
    directory: &Path,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let fail = |error| {
        Failure::environment(format!("cannot write {}", entry.path), error)
            .with_action("Remove the directory and restore again.")
    };
    let new_path = format!("{}.new", entry.path);
    let mut file = fs::File::create(directory.join(&new_path)).map_err(fail)?;
    set.read(entry, &mut |bytes| {
        bar.inc(u64::try_from(bytes.len()).expect("at most a MiB"));
        file.write_all(bytes).map_err(fail)
    })?;
    file.sync_all().map_err(fail)?;
    drop(file);
    if segment_of(&entry.path).is_some() && entry.chain.is_none() {
        // It will be written again: it gets the space that it had.
        let file = storage.open(&new_path, OpenMode::ReadWrite).map_err(fail)?;
        file.allocate(manifest.segment_bytes).map_err(fail)?;
        file.sync().map_err(fail)?;
    }
    storage.durable_rename(&new_path, &entry.path).map_err(fail)
}

/// The verified chain of each partition ends where the backup says.
fn check_chains(index: &Index, verdict: &Verdict) -> Result<(), Failure> {
    for (partition, segment, chain) in verdict.chains() {
        let said = index
            .files
            .iter()
            .find(|file| segment_of(&file.path) == Some((partition, segment)))
            .and_then(|file| file.chain.as_deref());
        if said != Some(chain) {
            let message = format!(
                "partition {partition} does not end in the chain hash that the backup names"
            );
            return Err(
                Failure::new(ExitClass::Damaged, message).with_action("Use another backup.")
            );
        }
    }
    Ok(())
}
