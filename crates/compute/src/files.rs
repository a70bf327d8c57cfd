//! Derived files of a partition as readers use them: where its delta logs and snapshots are, and what they
//! can do for a state that is wanted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use truthdb_engine::Engine;
use truthdb_io::{Storage, World};
use truthdb_module::Limits;
use truthdb_state::{
    DeltaLog, DeltaPlace, DeltaReader, DeltaRecord, Fingerprint, NAME_BYTES_MAX, PastRange,
    PastView, Snapshot, SnapshotError, SnapshotReader, StatePlace, Tables,
};

use crate::answer::SnapshotInfo;
use crate::catalogue::LineSpec;
use crate::control::hex;
use crate::error::{ComputeError, chain};
use crate::programs::Programs;
use crate::reader::time_in_log;
use crate::runner::Runner;
use crate::shared::{PartitionShared, Version};

/// Events between snapshot and moment up to which a state of the past is made for all rows at once: a
/// second question then costs next to nothing. Beyond, only for the rows that were asked for.
const WHOLE_EVENTS_MAX: u64 = 100_000;

/// Where a partition's files are, for whoever reads them.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) engine: Engine,
    pub(crate) programs: Arc<Programs>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) place: StatePlace,
}

/// What files could do for a runner.
pub(crate) struct Brought {
    pub(crate) runner: Runner,
    /// The state is that of the sequence that was asked for. Else it is that of a place from which a
    /// guest may go on.
    pub(crate) is_complete: bool,
}

/// A module's name, if it has at most so many bytes; else its beginning and its hash.
fn short(module: &str, bytes_max: usize) -> Cow<'_, str> {
    if module.len() <= bytes_max {
        return Cow::Borrowed(module);
    }
    let hash = hex(&blake3::hash(module.as_bytes()).as_bytes()[..8]);
    let kept = bytes_max.saturating_sub(hash.len() + 1);
    // No name has the mark.
    Cow::Owned(format!(
        "{}~{hash}",
        &module[..module.floor_char_boundary(kept)]
    ))
}

impl Files {
    pub(crate) fn new(
        engine: &Engine,
        world: &World,
        programs: &Arc<Programs>,
        partition: u32,
    ) -> Files {
        Files {
            engine: engine.clone(),
            programs: Arc::clone(programs),
            storage: Arc::clone(&world.storage),
            place: StatePlace {
                database_id: engine.database_id(),
                partition,
            },
        }
    }

    /// What ends the names of the delta logs that this process may use: one made under other semantics
    /// is another one.
    pub(crate) fn semantics(&self) -> String {
        format!(".{}", hex(&self.semantics_id(&Limits::default())[..4]))
    }

    /// What names the way in which this process makes states under these limits.
    pub(crate) fn semantics_id(&self, limits: &Limits) -> [u8; 32] {
        self.programs.runtime().semantics_id(limits)
    }

    pub(crate) fn deltas(&self, module: &str, line: u32) -> DeltaLog {
        let semantics = self.semantics();
        let place = DeltaPlace {
            place: self.place,
            module: format!(
                "{}{semantics}",
                short(module, NAME_BYTES_MAX - semantics.len())
            ),
            generation: line,
        };
        DeltaLog::new(Arc::clone(&self.storage), place)
    }

    /// Whether the log holds what a derived file was made from: files may be ahead of a log whose
    /// last groups were lost, and its sequences may have been given again.
    pub(crate) fn fits_log(&self, sequence: u64, timestamp_ns: u64) -> bool {
        let partition = self.place.partition;
        let first = self.engine.first_sequence(partition);
        let gone = sequence < first && sequence <= self.engine.committed(partition);
        gone || time_in_log(&self.engine, partition, sequence) == Some(timestamp_ns)
    }

    /// The newest usable state of a line in a snapshot after `after` and up to `until`. Damaged ones
    /// are given to `damaged`.
    fn in_snapshots(
        &self,
        reader: &SnapshotReader,
        spec: &LineSpec,
        after: u64,
        until: u64,
        damaged: &mut dyn FnMut(&SnapshotError),
    ) -> Option<(Tables, u64, u64)> {
        self.newest_of(reader, spec, after, until, damaged, |entry| {
            let Entry {
                snapshot,
                index,
                applied,
                timestamp_ns,
            } = entry;
            Ok((snapshot.load(index)?, applied, timestamp_ns))
        })
    }

    /// What `take` makes of the newest usable entry of a line after `after` and up to `until`.
    fn newest_of<T>(
        &self,
        reader: &SnapshotReader,
        spec: &LineSpec,
        after: u64,
        until: u64,
        damaged: &mut dyn FnMut(&SnapshotError),
        mut take: impl FnMut(Entry) -> Result<T, SnapshotError>,
    ) -> Option<T> {
        let mut below = until;
        while let Some(sequence) = reader.newest_of(&spec.module, spec.line, below) {
            if sequence <= after {
                return None;
            }
            let found = self.entry_of(reader, spec, sequence, after);
            match found.and_then(|entry| entry.map(&mut take).transpose()) {
                Ok(Some(taken)) => return Some(taken),
                Ok(None) => {}
                Err(error) => damaged(&error),
            }
            below = sequence.checked_sub(1)?;
        }
        None
    }

    fn entry_of(
        &self,
        reader: &SnapshotReader,
        spec: &LineSpec,
        sequence: u64,
        after: u64,
    ) -> Result<Option<Entry>, SnapshotError> {
        let snapshot = reader.open(sequence)?;
        let manifest = snapshot.manifest();
        if !self.fits_log(sequence, manifest.timestamp_ns) {
            tracing::warn!(
                partition = self.place.partition,
                sequence,
                "the snapshot is not of this log's history and is passed over"
            );
            return Ok(None);
        }
        let entry = manifest.entries.iter().position(|entry| {
            entry.state.module == spec.module && entry.state.generation == spec.line
        });
        let Some(index) = entry else { return Ok(None) };
        let state = &manifest.entries[index].state;
        let applied = state.applied_sequence;
        let step = &spec.steps[spec.step_at(applied)];
        // A state that was made under other semantics is made again, not trusted.
        let semantics_id = self.semantics_id(&step.limits);
        let fits = step.hash == state.module_hash && semantics_id == state.semantics_id;
        if applied <= after || !fits {
            return Ok(None);
        }
        let time = if applied == sequence {
            Some(manifest.timestamp_ns)
        } else {
            time_in_log(&self.engine, self.place.partition, applied)
        };
        Ok(Some(Entry {
            snapshot,
            index,
            applied,
            timestamp_ns: time.unwrap_or(0),
        }))
    }

    /// A line's state at a sequence, as a snapshot after `after` and the deltas that lead on from it; if there
    /// is nothing in memory either, the deltas from the beginning on. None if they do not reach so far, or if
    /// the code and with it the tables changed in between. If they are many, it is that of these rows only.
    fn past_view(
        &self,
        reader: Option<&SnapshotReader>,
        spec: &LineSpec,
        after: u64,
        until: u64,
        rows: Option<PastRange>,
    ) -> Option<PastView> {
        // A damaged one is told of by the way through memory, which looks at the same ones.
        let snapshot = reader.and_then(|reader| {
            self.newest_of(reader, spec, after, until, &mut |_| (), |entry| {
                Ok(PastView::new(Arc::new(entry.snapshot), entry.index))
            })
        });
        let mut view = match snapshot {
            Some(view) => view,
            None if after == 0 => {
                let tables = spec.steps[0].manifest.tables.len();
                PastView::empty(u32::try_from(tables).ok()?, spec.first_sequence() - 1)
            }
            None => return None,
        };
        if let Some(rows) = rows
            && until - view.sequence() > WHOLE_EVENTS_MAX
        {
            view.narrow(rows);
        }
        if spec.step_at(view.sequence()) != spec.step_at(until) {
            return None;
        }
        let log = self.deltas(&spec.module, spec.line);
        let mut deltas = log.read_after(view.sequence()).ok()?;
        match view.advance(&mut deltas, until) {
            Ok(true) => Some(view),
            // The way through memory says what is wrong with them.
            Ok(false) | Err(_) => None,
        }
    }

    /// Brings a runner as near to a sequence as snapshots and deltas allow: with `is_exact` to it, if
    /// they reach so far, else to the last place before it from which a guest may go on.
    pub(crate) fn bring_to(
        &self,
        reader: Option<&SnapshotReader>,
        empty: Runner,
        near: Option<Runner>,
        until: u64,
        is_exact: bool,
        damaged: &mut dyn FnMut(&SnapshotError),
    ) -> Brought {
        let mut runner = near.unwrap_or(empty);
        let spec = Arc::clone(&runner.spec);
        let found = reader
            .and_then(|reader| self.in_snapshots(reader, &spec, runner.applied, until, damaged));
        if let Some((tables, applied, time)) = found {
            runner.reset(tables, applied, time);
        }
        if runner.applied == until {
            return Brought {
                runner,
                is_complete: true,
            };
        }
        let mut boundary = version_of(&mut runner);
        let is_complete = match self.apply_deltas(&mut runner, &mut boundary, until) {
            Ok(is_complete) => is_complete,
            Err(reason) => {
                tracing::warn!(
                    partition = self.place.partition,
                    module = spec.module,
                    sequence = runner.applied,
                    "the delta log cannot be used further: {reason}; the rest is made again from the log"
                );
                false
            }
        };
        let is_complete = is_complete && is_exact;
        if !is_complete {
            let tables = Tables::from_view(&boundary.view);
            runner.reset(tables, boundary.sequence, boundary.timestamp_ns);
        }
        Brought {
            runner,
            is_complete,
        }
    }

    /// Applies records up to a sequence. True if the records account for all of it.
    fn apply_deltas(
        &self,
        runner: &mut Runner,
        boundary: &mut Version,
        until: u64,
    ) -> Result<bool, String> {
        let log = self.deltas(&runner.spec.module, runner.spec.line);
        let mut reader = log
            .read_after(runner.applied)
            .map_err(|error| chain(&error))?;
        loop {
            let record = match reader.next_record() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(runner.applied >= until),
                Err(error) => return Err(chain(&error)),
            };
            if record.last_sequence > until {
                return Ok(true);
            }
            let (last, time) = (record.last_sequence, record.timestamp_ns);
            if !runner.apply_changes(&record.changes, last, time) {
                return Err("a record is of other tables".to_owned());
            }
            if runner.fingerprint() != record.fingerprint_after {
                return Err(format!(
                    "after event {last} the fingerprint is {}, recorded is {}",
                    runner.fingerprint(),
                    record.fingerprint_after
                ));
            }
            // Records end where memory begins anew: what begins behind its first batch is behind it.
            if runner.spec.memory_start(last + 1) > record.first_sequence {
                *boundary = version_of(runner);
            }
        }
    }
}

/// A line's state in an open snapshot.
struct Entry {
    snapshot: Snapshot,
    index: usize,
    applied: u64,
    timestamp_ns: u64,
}

fn version_of(runner: &mut Runner) -> Version {
    Version {
        sequence: runner.applied,
        timestamp_ns: runner.timestamp_ns,
        view: runner.view(),
    }
}

/// What readers use of the files of all partitions.
pub(crate) struct PastFiles {
    files: Vec<Files>,
    shared: Vec<Arc<PartitionShared>>,
}

impl PastFiles {
    pub(crate) fn new(
        engine: &Engine,
        world: &World,
        programs: &Arc<Programs>,
        shared: &[Arc<PartitionShared>],
    ) -> PastFiles {
        PastFiles {
            files: (0..engine.partition_count())
                .map(|partition| Files::new(engine, world, programs, partition))
                .collect(),
            shared: shared.to_vec(),
        }
    }

    fn reader(&self, partition: u32) -> Option<SnapshotReader> {
        self.shared[partition as usize].snapshots.read().clone()
    }

    /// A line's state at a sequence on disk, from a snapshot after `after`; perhaps of these rows only.
    pub(crate) fn past_view(
        &self,
        partition: u32,
        spec: &LineSpec,
        after: u64,
        sequence: u64,
        rows: Option<PastRange>,
    ) -> Option<PastView> {
        let reader = self.reader(partition);
        let files = &self.files[partition as usize];
        files.past_view(reader.as_ref(), spec, after, sequence, rows)
    }

    /// As near to a sequence as files bring it.
    pub(crate) fn bring_to(
        &self,
        partition: u32,
        empty: Runner,
        near: Option<Runner>,
        sequence: u64,
    ) -> Brought {
        let reader = self.reader(partition);
        let mut damaged = |error: &SnapshotError| {
            tracing::warn!(partition, error = %chain(error),
                "a snapshot is damaged; an older one or the log is used");
        };
        let files = &self.files[partition as usize];
        files.bring_to(reader.as_ref(), empty, near, sequence, true, &mut damaged)
    }

    pub(crate) fn snapshots(&self, partition: u32) -> Result<Vec<SnapshotInfo>, ComputeError> {
        let Some(reader) = self.reader(partition) else {
            return Ok(Vec::new());
        };
        let mut infos = Vec::new();
        for sequence in reader.sequences() {
            let snapshot = match reader.open(sequence) {
                Ok(snapshot) => snapshot,
                Err(SnapshotError::Missing { .. }) => continue,
                Err(error) => {
                    return Err(ComputeError::Storage {
                        what: format!("reading the snapshot of event {sequence}"),
                        source: Arc::new(error),
                    });
                }
            };
            let manifest = snapshot.manifest();
            infos.push(SnapshotInfo {
                partition,
                sequence,
                timestamp_ns: manifest.timestamp_ns,
                modules: manifest
                    .entries
                    .iter()
                    .map(|entry| {
                        let state = &entry.state;
                        let (name, applied) = (state.module.clone(), state.applied_sequence);
                        (name, state.generation, applied, entry.fingerprint)
                    })
                    .collect(),
                bytes: manifest.entries.iter().map(|entry| entry.bytes).sum(),
            });
        }
        Ok(infos)
    }

    /// What is recorded about a line up to a sequence.
    pub(crate) fn recorded(&self, partition: u32, module: &str, line: u32, until: u64) -> Recorded {
        let files = &self.files[partition as usize];
        let log = files.deltas(module, line);
        let first = log.files().ok().and_then(|files| files.first().cloned());
        let deltas = first.and_then(|file| log.read_after(file.first_sequence - 1).ok());
        let mut snapshots = BTreeMap::new();
        for info in self.snapshots(partition).unwrap_or_default() {
            // One that is not of this log's history is not used either.
            if !files.fits_log(info.sequence, info.timestamp_ns) {
                continue;
            }
            for (name, generation, applied, fingerprint) in info.modules {
                if name == module && generation == line && applied <= until {
                    snapshots
                        .entry(applied)
                        .or_insert_with(Vec::new)
                        .push(fingerprint);
                }
            }
        }
        Recorded {
            deltas,
            next: None,
            snapshots,
        }
    }
}

/// What files record about one line, to be compared with a replay.
pub(crate) struct Recorded {
    deltas: Option<DeltaReader>,
    next: Option<DeltaRecord>,
    snapshots: BTreeMap<u64, Vec<Fingerprint>>,
}

impl Recorded {
    /// Fingerprints of the delta records that end at a sequence, or ended before it at no batch.
    pub(crate) fn deltas_at(&mut self, sequence: u64) -> Vec<Fingerprint> {
        let mut found = Vec::new();
        while let Some(reader) = &mut self.deltas {
            if self.next.is_none() {
                self.next = match reader.next_record() {
                    Ok(Some(record)) => Some(record),
                    // A torn end is no difference: it is not used either.
                    Ok(None) | Err(_) => None,
                };
                if self.next.is_none() {
                    self.deltas = None;
                }
            }
            match self.next.take() {
                Some(record) if record.last_sequence <= sequence => {
                    found.push(record.fingerprint_after);
                }
                later => {
                    self.next = later;
                    break;
                }
            }
        }
        found
    }

    /// Last sequence and fingerprint of the next delta record, if it is not after `until`.
    pub(crate) fn delta_until(&mut self, until: u64) -> Option<(u64, Fingerprint)> {
        if self.next.is_none() {
            let reader = self.deltas.as_mut()?;
            self.next = reader.next_record().ok().flatten();
        }
        let next = self.next.as_ref()?;
        (next.last_sequence <= until).then_some((next.last_sequence, next.fingerprint_after))
    }

    /// What is left of the states in snapshots, from a sequence on.
    pub(crate) fn snapshots_from(&mut self, first: u64) -> Vec<(u64, Fingerprint)> {
        let left = self.snapshots.split_off(&first).into_iter();
        left.flat_map(|(at, all)| all.into_iter().map(move |one| (at, one)))
            .collect()
    }

    /// Fingerprints of the states in snapshots that were applied up to a sequence.
    pub(crate) fn snapshots_at(&mut self, sequence: u64) -> Vec<Fingerprint> {
        self.snapshots.remove(&sequence).unwrap_or_default()
    }
}
