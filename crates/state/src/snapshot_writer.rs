//! Writing a snapshot, a bounded step at a time.
//!
//! Order of writes: each chunk that no published snapshot has, as a file of its own, synced; the
//! directory of the chunks, synced; the manifest under its `.new` name, synced; the rename. A crash
//! before the rename leaves files that nobody refers to: the next collection removes them. A chunk of
//! an unpublished snapshot may be torn and is never believed: the next snapshot that needs it writes
//! it again.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::blocks;
use crate::canary::{Canary, planted};
use crate::chunk::{Chunk, ChunkHash, ChunkPosition, ChunkRef};
use crate::limits::{NAME_BYTES_MAX, TABLES_MAX, to_u64};
use crate::snapshot::{SNAPSHOT_ENTRIES_MAX, SnapshotEntry, SnapshotManifest, SnapshotState};
use crate::store::{Contents, NEW_SUFFIX, Published, SnapshotError, SnapshotStore, io_error};
use crate::view::View;

/// One state that goes into a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotInput {
    /// Whose state it is.
    pub state: SnapshotState,
    /// The rows.
    pub view: View,
}

/// What has been done of a snapshot so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotProgress {
    /// Sequence that names it.
    pub sequence: u64,
    /// Rows in chunks so far.
    pub rows_done: u64,
    /// Rows of all states.
    pub rows: u64,
    /// Chunks written.
    pub chunks_written: u64,
    /// Chunks that an earlier snapshot has already.
    pub chunks_reused: u64,
    /// Bytes of the files written, the manifest included.
    pub bytes_written: u64,
}

/// What a step has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotStep {
    /// There is more to do.
    Working(SnapshotProgress),
    /// The snapshot is published.
    Published(SnapshotProgress),
}

enum Phase {
    Chunks,
    SyncChunks,
    WriteManifest,
    Publish,
}

/// A snapshot being written.
pub(crate) struct SnapshotWriter {
    manifest: SnapshotManifest,
    views: Vec<View>,
    /// The entry whose chunks are being made.
    entry: usize,
    position: ChunkPosition,
    phase: Phase,
    /// Chunks that are on disk, whole and durable, before this snapshot.
    present: BTreeSet<ChunkHash>,
    /// Chunks of this snapshot so far.
    needed: BTreeSet<ChunkHash>,
    progress: SnapshotProgress,
}

impl SnapshotWriter {
    /// Whether a chunk must not be collected: the snapshot refers to it, or may come to.
    pub(crate) fn needs(&self, hash: ChunkHash) -> bool {
        self.needed.contains(&hash) || self.present.contains(&hash)
    }
}

impl SnapshotStore {
    /// Begins a snapshot of these states, which [`SnapshotStore::step`] then writes. The views are
    /// kept until it is done. Looks up which chunks are there, and writes nothing.
    ///
    /// # Errors
    /// [`SnapshotError::InProgress`], [`SnapshotError::Exists`], or [`SnapshotError::Io`].
    ///
    /// # Panics
    /// If a limit of names, tables or states is exceeded, two states have one name and generation, or
    /// a state has applied more than `sequence`: bugs of the caller.
    pub fn begin(
        &mut self,
        sequence: u64,
        timestamp_ns: u64,
        mut inputs: Vec<SnapshotInput>,
    ) -> Result<(), SnapshotError> {
        if self.writer.is_some() {
            return Err(SnapshotError::InProgress);
        }
        let shift = u64::from(planted(Canary::SnapshotOffByOne));
        let sequence = sequence + shift;
        if self.shared.published().contains_key(&sequence) {
            return Err(SnapshotError::Exists { sequence });
        }
        inputs.sort_by(|a, b| name(&a.state).cmp(&name(&b.state)));
        check(sequence, &inputs);
        let present = self.present_chunks(&inputs)?;
        let entries = inputs.iter().map(|input| SnapshotEntry {
            state: SnapshotState {
                applied_sequence: input.state.applied_sequence + shift,
                ..input.state.clone()
            },
            fingerprint: input.view.fingerprint(),
            rows: input.view.rows(),
            bytes: input.view.bytes(),
            chunks: Vec::new(),
        });
        let entries: Vec<SnapshotEntry> = entries.collect();
        self.writer = Some(SnapshotWriter {
            progress: SnapshotProgress {
                sequence,
                rows: entries.iter().map(|entry| entry.rows).sum(),
                ..SnapshotProgress::default()
            },
            manifest: SnapshotManifest {
                place: self.shared.place,
                sequence,
                timestamp_ns,
                entries,
            },
            views: inputs.into_iter().map(|input| input.view).collect(),
            entry: 0,
            position: ChunkPosition::default(),
            phase: Phase::Chunks,
            present,
            needed: BTreeSet::new(),
        });
        Ok(())
    }

    /// The chunks that are there and that, for one of these states, the newest readable snapshot that has
    /// it refers to.
    fn present_chunks(
        &self,
        inputs: &[SnapshotInput],
    ) -> Result<BTreeSet<ChunkHash>, SnapshotError> {
        let mut wanted: BTreeSet<(&str, u32)> = inputs.iter().map(|i| name(&i.state)).collect();
        let mut referred = BTreeSet::new();
        for sequence in self.sequences().into_iter().rev() {
            // A damaged one is found out by whoever loads it.
            let Ok(contents) = self.shared.contents(sequence) else {
                continue;
            };
            let before = wanted.len();
            wanted.retain(|(module, generation)| !contents.has(module, *generation));
            if wanted.len() < before {
                referred.extend(contents.chunks.iter().copied());
            }
            if wanted.is_empty() {
                break;
            }
        }
        if referred.is_empty() {
            return Ok(referred);
        }
        let there = self.listed_chunks()?;
        Ok(referred.intersection(&there).copied().collect())
    }

    /// Names of the chunks in the directory.
    pub(crate) fn listed_chunks(&self) -> Result<BTreeSet<ChunkHash>, SnapshotError> {
        let directory = self.shared.chunks_directory();
        let entries = self
            .shared
            .storage
            .list(&directory)
            .map_err(io_error(&directory, "listing"))?;
        Ok(entries
            .iter()
            .filter_map(|entry| parse_chunk_name(&entry.name))
            .collect())
    }

    /// Whether a snapshot is being written, and how far it is.
    pub fn in_progress(&self) -> Option<SnapshotProgress> {
        self.writer.as_ref().map(|writer| writer.progress)
    }

    /// Gives up the snapshot being written, if there is one.
    pub fn abort(&mut self) {
        self.writer = None;
    }

    /// Does the next part of the snapshot being written: at most one chunk, or one of the few steps
    /// of publishing.
    ///
    /// # Errors
    /// [`SnapshotError::NotInProgress`], or [`SnapshotError::Io`]: the snapshot is given up then, and
    /// those before it are as they were.
    pub fn step(&mut self) -> Result<SnapshotStep, SnapshotError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(SnapshotError::NotInProgress);
        };
        let is_published = match writer.phase {
            Phase::Chunks => {
                self.step_chunk(&mut writer)?;
                false
            }
            Phase::SyncChunks => {
                let directory = self.shared.chunks_directory();
                self.shared
                    .storage
                    .sync_dir(&directory)
                    .map_err(io_error(&directory, "syncing"))?;
                writer.phase = Phase::WriteManifest;
                false
            }
            Phase::WriteManifest => {
                let path = self.new_path(&writer);
                let bytes = writer.manifest.encode();
                writer.progress.bytes_written += to_u64(bytes.len());
                blocks::write_new(&*self.shared.storage, &path, &bytes)
                    .map_err(io_error(&path, "writing"))?;
                writer.phase = Phase::Publish;
                false
            }
            Phase::Publish => {
                self.publish(&mut writer)?;
                true
            }
        };
        if is_published {
            return Ok(SnapshotStep::Published(writer.progress));
        }
        let progress = writer.progress;
        self.writer = Some(writer);
        Ok(SnapshotStep::Working(progress))
    }

    fn new_path(&self, writer: &SnapshotWriter) -> String {
        let path = self.shared.manifest_path(writer.manifest.sequence);
        format!("{path}{NEW_SUFFIX}")
    }

    fn step_chunk(&self, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        let Some(view) = writer.views.get(writer.entry) else {
            writer.phase = Phase::SyncChunks;
            return Ok(());
        };
        let Some(chunk) = Chunk::next(view, &mut writer.position) else {
            writer.entry += 1;
            writer.position = ChunkPosition::default();
            return Ok(());
        };
        let reference = ChunkRef::of(&chunk);
        let is_new = writer.needed.insert(reference.hash);
        if writer.present.contains(&reference.hash) || !is_new {
            writer.progress.chunks_reused += 1;
        } else {
            let path = self.shared.chunk_path(reference.hash);
            let bytes = chunk
                .encode(&self.shared.place)
                .map_err(io_error(&path, "compressing"))?;
            blocks::write_new(&*self.shared.storage, &path, &bytes)
                .map_err(io_error(&path, "writing"))?;
            writer.progress.chunks_written += 1;
            writer.progress.bytes_written += to_u64(blocks::align(bytes.len()));
        }
        writer.progress.rows_done += u64::from(reference.rows);
        writer.manifest.entries[writer.entry].chunks.push(reference);
        Ok(())
    }

    fn publish(&mut self, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        let sequence = writer.manifest.sequence;
        let (new, path) = (self.new_path(writer), self.shared.manifest_path(sequence));
        let contents = Arc::new(Contents::of(&writer.manifest));
        let chunks = &contents.chunks;
        let mut published = Published::default();
        published.contents = Some(Arc::clone(&contents));
        if let Err(error) = self.shared.storage.durable_rename(&new, &path) {
            // It may be published all the same. If it cannot be removed, its chunks must stay.
            if blocks::remove(&*self.shared.storage, &path).is_err() {
                self.shared.published().insert(sequence, published);
                if let Some(collector) = &mut self.collector {
                    collector.keep(chunks);
                }
            }
            return Err(io_error(&path, "renaming")(error));
        }
        self.shared.published().insert(sequence, published);
        if let Some(collector) = &mut self.collector {
            collector.keep(chunks);
        }
        Ok(())
    }
}

fn name(state: &SnapshotState) -> (&str, u32) {
    (&state.module, state.generation)
}

fn check(sequence: u64, inputs: &[SnapshotInput]) {
    assert!(
        inputs.len() <= SNAPSHOT_ENTRIES_MAX,
        "at most {SNAPSHOT_ENTRIES_MAX} states"
    );
    assert!(
        inputs.is_sorted_by(|a, b| name(&a.state) < name(&b.state)),
        "each module has one state of a generation"
    );
    for SnapshotInput { state, view } in inputs {
        assert!(
            state.applied_sequence <= sequence,
            "a state is not ahead of its snapshot"
        );
        let is_short = |name: &str| name.len() <= NAME_BYTES_MAX;
        assert!(
            is_short(&state.module) && state.tables.iter().all(|table| is_short(&table.name)),
            "names have at most {NAME_BYTES_MAX} bytes"
        );
        assert!(
            to_u64(state.tables.len()) == u64::from(view.table_count())
                && view.table_count() <= TABLES_MAX,
            "each table is declared"
        );
    }
}

/// The hash of a chunk's file name.
fn parse_chunk_name(name: &str) -> Option<ChunkHash> {
    let hash = blake3::Hash::from_hex(name.strip_suffix(".bin")?).ok()?;
    Some(ChunkHash(*hash.as_bytes()))
}
