//! Reads of state: now, and as of any moment before.
//!
//! A state at a sequence is that after the last batch that ends there or before. It is taken from
//! the versions in memory, else from the nearest version or snapshot and the delta log, and where
//! the files do not reach, the guest is run from the last place where its memory began. All of these
//! give the same bytes, since the fold made what they hold.
//!
//! Nothing here can write: guests of queries have no call for it. Waiting is bounded by deadlines.

use std::sync::Arc;
use std::time::Duration;

use truthdb_engine::{Direction, Engine, Filter, ReadFrom, ReadRequest};
use truthdb_io::World;
use truthdb_module::Manifest;
use truthdb_state::{PastRange, SnapshotError, Tables, View};

use crate::answer::{FoldState, Row, RowsAnswer, Stamp};
use crate::catalogue::LineSpec;
use crate::config::ComputeConfig;
use crate::error::{ComputeError, chain};
use crate::files::PastFiles;
use crate::past::{Moment, PastStates, Rows, Wanted};
use crate::programs::Programs;
use crate::reader::{LogReader, time_in_log};
use crate::request::{At, GetRequest, PAGE_BYTES_MAX, PAGE_ROWS_MAX, ReadOptions, ScanRequest};
use crate::runner::{Runner, Source};
use crate::shared::{PartitionShared, Version};
use crate::token::Token;

/// Questions about one moment whose rows are made for each alone; after these, the state is made for all.
const NARROW_QUESTIONS: u32 = 4;

/// Version of page tokens.
const PAGE_TOKEN_VERSION: u8 = 1;

/// A state that can be read.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) rows: Rows,
    pub(crate) stamp: Stamp,
    pub(crate) manifest: Arc<Manifest>,
}

/// Why a state could not be read.
pub(crate) enum Unread {
    /// The question cannot be answered.
    Answer(ComputeError),
    /// The snapshot that it lies in: it can still be made in memory.
    Snapshot(SnapshotError),
}

impl From<ComputeError> for Unread {
    fn from(error: ComputeError) -> Unread {
        Unread::Answer(error)
    }
}

impl From<SnapshotError> for Unread {
    fn from(error: SnapshotError) -> Unread {
        Unread::Snapshot(error)
    }
}

/// See the module's description.
pub(crate) struct Reads {
    pub(crate) engine: Engine,
    pub(crate) world: World,
    pub(crate) config: Arc<ComputeConfig>,
    pub(crate) programs: Arc<Programs>,
    pub(crate) partitions: Vec<Arc<PartitionShared>>,
    pub(crate) files: PastFiles,
    /// Folds run on their own threads, so that waiting for them makes sense.
    pub(crate) threaded: bool,
    past: PastStates,
}

/// When a query must have ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: u64,
    ms: u64,
}

impl Deadline {
    pub(crate) fn left(&self, world: &World) -> Result<Duration, ComputeError> {
        let now = world.clock.monotonic_ns();
        match self.at.checked_sub(now) {
            Some(left) if left > 0 => Ok(Duration::from_nanos(left)),
            _ => Err(ComputeError::Deadline {
                deadline_ms: self.ms,
            }),
        }
    }
}

impl Reads {
    pub(crate) fn new(
        engine: &Engine,
        world: &World,
        config: &Arc<ComputeConfig>,
        programs: &Arc<Programs>,
        partitions: &[Arc<PartitionShared>],
        threaded: bool,
    ) -> Reads {
        Reads {
            files: PastFiles::new(engine, world, programs, partitions),
            engine: engine.clone(),
            world: world.clone(),
            config: Arc::clone(config),
            programs: Arc::clone(programs),
            partitions: partitions.to_vec(),
            threaded,
            past: PastStates::default(),
        }
    }

    pub(crate) fn deadline(&self, options: &ReadOptions) -> Deadline {
        let most = u64::try_from(self.config.query_deadline.as_millis()).unwrap_or(u64::MAX);
        let ms = options.deadline_ms.unwrap_or(most).min(most);
        Deadline {
            at: self
                .world
                .clock
                .monotonic_ns()
                .saturating_add(ms.saturating_mul(1_000_000)),
            ms,
        }
    }

    pub(crate) fn require_query(&self) -> Result<(), ComputeError> {
        if self.config.query {
            Ok(())
        } else {
            Err(ComputeError::Role { role: "query" })
        }
    }

    /// The partitions that a request asks.
    pub(crate) fn asked(
        &self,
        partition: Option<u32>,
        options: &ReadOptions,
    ) -> Result<Vec<u32>, ComputeError> {
        let count = self.engine.partition_count();
        let check = |token: &Token| match token.entries().find(|(p, _)| *p >= count) {
            Some(_) => Err(ComputeError::ForeignToken {
                token: token.clone(),
                count,
            }),
            None => Ok(()),
        };
        if let Some(token) = &options.min_sequence {
            check(token)?;
        }
        let mut asked: Vec<u32> = match partition {
            Some(partition) if partition >= count => {
                return Err(ComputeError::NoSuchPartition { partition, count });
            }
            Some(partition) => vec![partition],
            None => (0..count).collect(),
        };
        if let At::Token(token) = &options.at {
            check(token)?;
            asked.retain(|partition| token.get(*partition).is_some());
            if asked.is_empty() {
                return Err(ComputeError::invalid(format!(
                    "the token {token} names none of the partitions that are asked"
                )));
            }
        }
        Ok(asked)
    }

    /// The sequence of a moment in a partition; `None`: whatever is applied.
    pub(crate) fn sequence_of(&self, partition: u32, at: &At) -> Result<Option<u64>, ComputeError> {
        match at {
            At::Now => Ok(None),
            At::Token(token) => Ok(token.get(partition)),
            At::Time(time) => {
                let page = self.engine.read(&ReadRequest {
                    partition,
                    from: ReadFrom::Time(*time),
                    direction: Direction::Backward,
                    filter: Filter::default(),
                    events_max: 1,
                    bytes_max: 1,
                })?;
                Ok(Some(
                    page.batches.last().map_or(0, |batch| batch.last_sequence()),
                ))
            }
        }
    }

    /// What `read` makes of a module's state, which may lie in a snapshot; should that turn out to be
    /// damaged, the state is made in memory, from an older one or the log.
    fn with_rows<T>(
        &self,
        partition: u32,
        module: &str,
        options: &ReadOptions,
        deadline: Deadline,
        range: &NamedRange<'_>,
        read: impl Fn(&State) -> Result<T, Unread>,
    ) -> Result<(T, Stamp), ComputeError> {
        let at = self.sequence_of(partition, &options.at)?;
        let ask = Ask::Range(range);
        let state = self.state(partition, module, at, options, deadline, ask)?;
        match read(&state) {
            Ok(answer) => return Ok((answer, state.stamp)),
            Err(Unread::Answer(error)) => return Err(error),
            Err(Unread::Snapshot(error)) => warn_of_damage(partition, module, &error),
        }
        let at = Some(state.stamp.sequence);
        let state = self.state(partition, module, at, options, deadline, Ask::Memory)?;
        match read(&state) {
            Ok(answer) => Ok((answer, state.stamp)),
            Err(Unread::Answer(error)) => Err(error),
            Err(Unread::Snapshot(_)) => unreachable!("it was asked for in memory"),
        }
    }

    /// A module's state at a sequence; none: as far as applied.
    pub(crate) fn state(
        &self,
        partition: u32,
        module: &str,
        at: Option<u64>,
        options: &ReadOptions,
        deadline: Deadline,
        ask: Ask<'_>,
    ) -> Result<State, ComputeError> {
        let least = options
            .min_sequence
            .as_ref()
            .and_then(|token| token.get(partition));
        let shared = &self.partitions[partition as usize];
        let wanted = at.unwrap_or(0).max(least.unwrap_or(0));
        self.wait_controlled(shared, module, wanted, deadline)?;
        let catalogue = shared.catalogue();
        let no_module = || ComputeError::NoSuchModule {
            module: module.to_owned(),
        };
        let life = catalogue.modules.get(module).ok_or_else(no_module)?;
        let generation = match (options.generation, at) {
            (Some(number), _) => life.generation(number),
            (None, None) => life.current(),
            (None, Some(sequence)) => life.at(sequence),
        };
        let Some(generation) = generation.filter(|g| g.manifest.kind.owns_tables()) else {
            let Some(first) = life.generations.first() else {
                return Err(no_module());
            };
            if !first.manifest.kind.owns_tables() {
                return Err(ComputeError::invalid(format!(
                    "module {module:?} is a {}: it has no tables of its own",
                    first.manifest.kind
                )));
            }
            if at.is_none() && options.generation.is_none() {
                return Err(no_module());
            }
            return Err(ComputeError::NoState {
                module: module.to_owned(),
                partition,
                sequence: at.unwrap_or(0),
                reason: "no generation of it answers there".to_owned(),
            });
        };
        let line = generation.line;
        let spec = Arc::new(catalogue.line(module, line).ok_or_else(no_module)?);
        let (reached, rows) = match at {
            None => {
                // A generation that took over a moment ago answers from its first turn on.
                let mut least = least;
                loop {
                    let version = self.newest(shared, module, line, least, deadline)?;
                    let turn = life.at(version.sequence).map(|g| g.line);
                    if turn == Some(line) || options.generation.is_some() {
                        break (version.sequence, Rows::Memory(version.view));
                    }
                    least = Some(version.sequence + 1);
                }
            }
            Some(sequence) => {
                let manifest = &spec.steps[spec.step_at(sequence)].manifest;
                let wanted = match ask {
                    Ask::Memory => Wanted::Memory,
                    Ask::All => Wanted::All,
                    Ask::Range(range) => Wanted::Range(range.of(module, manifest)?),
                };
                let rows = self.past(&spec, partition, sequence, deadline, &wanted)?;
                (sequence, rows)
            }
        };
        let step = &spec.steps[spec.step_at(reached)];
        let stamp = Stamp {
            partition,
            module: module.to_owned(),
            generation: step.generation,
            module_hash: step.hash,
            sequence: reached,
            timestamp_ns: time_in_log(&self.engine, partition, reached).unwrap_or(0),
            fingerprint: rows.fingerprint(),
        };
        Ok(State {
            rows,
            stamp,
            manifest: Arc::clone(&step.manifest),
        })
    }

    /// Waits until the control events up to a sequence are known.
    fn wait_controlled(
        &self,
        shared: &PartitionShared,
        module: &str,
        wanted: u64,
        deadline: Deadline,
    ) -> Result<(), ComputeError> {
        loop {
            let applied = shared.controlled();
            if applied >= wanted {
                return Ok(());
            }
            let not_yet = ComputeError::NotYet {
                module: module.to_owned(),
                partition: shared.partition,
                applied,
                wanted,
            };
            if !self.threaded {
                return Err(not_yet);
            }
            let left = deadline.left(&self.world).map_err(|_| not_yet)?;
            shared.wait_controlled(wanted, left);
        }
    }

    fn newest(
        &self,
        shared: &PartitionShared,
        module: &str,
        line: u32,
        least: Option<u64>,
        deadline: Deadline,
    ) -> Result<Version, ComputeError> {
        let least = least.unwrap_or(0);
        loop {
            // Between the event and the fold's next step there is no line yet.
            if let Some(line) = shared.line(module, line) {
                let (version, state) = line.version();
                if version.sequence >= least {
                    return Ok(version);
                }
                if let FoldState::Halted { sequence, reason } = state {
                    return Err(ComputeError::Halted {
                        module: module.to_owned(),
                        partition: shared.partition,
                        sequence,
                        reason,
                    });
                }
                let left =
                    self.wait_left(module, shared.partition, version.sequence, least, deadline)?;
                line.wait_beyond(version.sequence, left);
            } else {
                let left = self.wait_left(module, shared.partition, 0, least, deadline)?;
                shared.wait_controlled(u64::MAX, left.min(Duration::from_millis(1)));
            }
        }
    }

    fn wait_left(
        &self,
        module: &str,
        partition: u32,
        applied: u64,
        wanted: u64,
        deadline: Deadline,
    ) -> Result<Duration, ComputeError> {
        let not_yet = ComputeError::NotYet {
            module: module.to_owned(),
            partition,
            applied,
            wanted,
        };
        if !self.threaded {
            return Err(not_yet);
        }
        deadline.left(&self.world).map_err(|_| not_yet)
    }

    /// A line's state at a sequence: from memory, from a snapshot and the deltas after it, or made by the
    /// guest from where these end.
    fn past(
        &self,
        spec: &Arc<LineSpec>,
        partition: u32,
        sequence: u64,
        deadline: Deadline,
        wanted: &Wanted,
    ) -> Result<Rows, ComputeError> {
        if sequence < spec.first_sequence() {
            let count = u32::try_from(spec.steps[0].manifest.tables.len()).unwrap_or(0);
            return Ok(Rows::Memory(Tables::new(count).view()));
        }
        let (module, line) = (spec.module.clone(), spec.line);
        let shared = &self.partitions[partition as usize];
        let mut base = None;
        if let Some(live) = shared.line(&module, line) {
            let version = self.newest(shared, &module, line, Some(sequence), deadline)?;
            if version.sequence == sequence {
                return Ok(Rows::Memory(version.view));
            }
            base = live.version_at(sequence).filter(|(_, boundary)| *boundary);
        }
        if let Some((version, _)) = base.as_ref().filter(|(v, _)| v.sequence == sequence) {
            return Ok(Rows::Memory(version.view.clone()));
        }
        let moment = Moment {
            partition,
            module,
            line,
            sequence,
        };
        let asked_before = match self.past.find(&moment, wanted) {
            Ok(rows) => return Ok(rows),
            Err(asked_before) => asked_before,
        };
        // What is in memory is nearer than any snapshot before it.
        let after = base.as_ref().map_or(0, |(version, _)| version.sequence);
        let on_disk = match wanted {
            Wanted::Memory => None,
            Wanted::All => self.files.past_view(partition, spec, after, sequence, None),
            Wanted::Range(rows) => {
                let rows = (asked_before < NARROW_QUESTIONS).then(|| rows.clone());
                self.files.past_view(partition, spec, after, sequence, rows)
            }
        };
        let rows = match on_disk {
            Some(view) => Rows::Disk(Arc::new(view)),
            None => {
                let near = base.map(|(version, _)| version);
                Rows::Memory(self.made(spec, partition, near, sequence, deadline)?)
            }
        };
        self.past.keep(moment, rows.clone());
        Ok(rows)
    }

    /// A line's state at a sequence, made in memory from a version, or from a snapshot, by deltas and,
    /// where these end, by the guest.
    fn made(
        &self,
        spec: &Arc<LineSpec>,
        partition: u32,
        near: Option<Version>,
        sequence: u64,
        deadline: Deadline,
    ) -> Result<View, ComputeError> {
        let source = Source::Here(Arc::clone(&self.programs));
        let database_id = self.engine.database_id();
        let empty = Runner::new(database_id, partition, Arc::clone(spec), source.clone());
        let near = near.map(|version| {
            let tables = Tables::from_view(&version.view);
            let (at, time) = (version.sequence, version.timestamp_ns);
            Runner::at(
                database_id,
                partition,
                Arc::clone(spec),
                source,
                tables,
                at,
                time,
            )
        });
        let brought = self.files.bring_to(partition, empty, near, sequence);
        let mut runner = brought.runner;
        if !brought.is_complete {
            self.run_to(&mut runner, partition, sequence, deadline)?;
        }
        Ok(runner.view())
    }

    /// Runs the guest from where the files end.
    fn run_to(
        &self,
        runner: &mut Runner,
        partition: u32,
        sequence: u64,
        deadline: Deadline,
    ) -> Result<(), ComputeError> {
        let mut reader = LogReader::new(&self.engine, partition, runner.applied + 1);
        while let Some(batch) = reader.next_batch(sequence)? {
            runner.apply(&batch).map_err(|stop| ComputeError::Halted {
                module: runner.spec.module.clone(),
                partition,
                sequence: batch.first_sequence,
                reason: stop.to_string(),
            })?;
            if self.threaded {
                deadline.left(&self.world)?;
            }
        }
        Ok(())
    }

    /// One key.
    pub(crate) fn get(&self, request: &GetRequest) -> Result<RowsAnswer, ComputeError> {
        self.require_query()?;
        let deadline = self.deadline(&request.options);
        let mut answer = RowsAnswer {
            rows: Vec::new(),
            stamps: Vec::new(),
            next: None,
        };
        for partition in self.asked(request.partition, &request.options)? {
            let (module, options) = (&request.module, &request.options);
            let range = NamedRange {
                table: &request.table,
                rows: PastRange::of_key(0, &request.key),
            };
            let (value, stamp) =
                self.with_rows(partition, module, options, deadline, &range, |state| {
                    let table = table_index(module, &state.manifest, &request.table)?;
                    Ok(state.rows.get(table, &request.key)?)
                })?;
            if let Some(value) = value {
                answer.rows.push(Row {
                    partition,
                    key: request.key.clone(),
                    value,
                });
            }
            answer.stamps.push(stamp);
        }
        Ok(answer)
    }

    /// A range of keys.
    pub(crate) fn scan(&self, request: &ScanRequest) -> Result<RowsAnswer, ComputeError> {
        self.require_query()?;
        if request.limit == 0 || request.limit > PAGE_ROWS_MAX {
            return Err(ComputeError::invalid(format!(
                "limit must be 1 to {PAGE_ROWS_MAX}, it is {}",
                request.limit
            )));
        }
        let mut request = request.clone();
        if let Some(page) = request.page.take() {
            continue_page(&mut request, &page)?;
        }
        let deadline = self.deadline(&request.options);
        let mut pages = Vec::new();
        let mut stamps = Vec::new();
        for partition in self.asked(request.partition, &request.options)? {
            let (module, options) = (&request.module, &request.options);
            let range = NamedRange {
                table: &request.table,
                rows: PastRange {
                    table: 0,
                    start: request.start.clone(),
                    end: request.end.clone(),
                },
            };
            let (page, stamp) =
                self.with_rows(partition, module, options, deadline, &range, |state| {
                    let table = table_index(module, &state.manifest, &request.table)?;
                    Ok(partition_page(&state.rows, table, partition, &request)?)
                })?;
            pages.push(page);
            stamps.push(stamp);
        }
        let token: Token = stamps.iter().map(|s| (s.partition, s.sequence)).collect();
        let (rows, more) = merge_pages(pages, &request);
        let next = match rows.last() {
            Some(last) if more => Some(encode_page(&token, &last.key)),
            _ => None,
        };
        Ok(RowsAnswer { rows, stamps, next })
    }
}

/// What a question needs of a state whose tables are not known yet.
#[derive(Clone, Copy)]
pub(crate) enum Ask<'a> {
    /// All rows, in memory: nothing that can be damaged is between.
    Memory,
    /// All rows.
    All,
    /// These rows.
    Range(&'a NamedRange<'a>),
}

/// Rows of a table that is known by its name; its index in `rows` is not filled in.
pub(crate) struct NamedRange<'a> {
    table: &'a str,
    rows: PastRange,
}

impl NamedRange<'_> {
    /// The rows in the tables of a manifest.
    fn of(&self, module: &str, manifest: &Manifest) -> Result<PastRange, ComputeError> {
        Ok(PastRange {
            table: table_index(module, manifest, self.table)?,
            ..self.rows.clone()
        })
    }
}

pub(crate) fn warn_of_damage(partition: u32, module: &str, error: &SnapshotError) {
    tracing::warn!(
        partition,
        module,
        error = %chain(error),
        "a snapshot is damaged; an older one or the log is used"
    );
}

pub(crate) fn table_index(
    module: &str,
    manifest: &Manifest,
    table: &str,
) -> Result<u32, ComputeError> {
    let found = manifest.tables.iter().position(|t| t.name == table);
    found
        .and_then(|index| u32::try_from(index).ok())
        .ok_or_else(|| ComputeError::NoSuchTable {
            module: module.to_owned(),
            table: table.to_owned(),
            tables: table_names(manifest).join(", "),
        })
}

pub(crate) fn table_names(manifest: &Manifest) -> Vec<String> {
    manifest.tables.iter().map(|t| t.name.clone()).collect()
}

/// Up to a limit of rows of one partition, and whether there are more.
fn partition_page(
    view: &Rows,
    table: u32,
    partition: u32,
    request: &ScanRequest,
) -> Result<(Vec<Row>, bool), SnapshotError> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    let (limit, reverse) = (u64::from(request.limit), request.reverse);
    let end = request.end.as_deref();
    let more = view.scan(
        table,
        (&request.start, end),
        limit,
        reverse,
        &mut |key, value| {
            bytes += key.len() + value.len();
            if !rows.is_empty() && bytes > PAGE_BYTES_MAX {
                return false;
            }
            rows.push(Row {
                partition,
                key: key.to_vec(),
                value: value.to_vec(),
            });
            true
        },
    )?;
    Ok((rows, more))
}

/// Rows of all partitions in one order. What lies beyond the last row of a partition that has more is
/// left for the next page.
fn merge_pages(pages: Vec<(Vec<Row>, bool)>, request: &ScanRequest) -> (Vec<Row>, bool) {
    let before = |a: &[u8], b: &[u8]| if request.reverse { a > b } else { a < b };
    let mut bound: Option<Vec<u8>> = None;
    for (rows, more) in &pages {
        if let (true, Some(last)) = (*more, rows.last())
            && bound
                .as_deref()
                .is_none_or(|bound| before(&last.key, bound))
        {
            bound = Some(last.key.clone());
        }
    }
    let mut more = bound.is_some();
    let mut rows: Vec<Row> = pages.into_iter().flat_map(|(rows, _)| rows).collect();
    rows.sort_by(|a, b| {
        let by_key = if request.reverse {
            b.key.cmp(&a.key)
        } else {
            a.key.cmp(&b.key)
        };
        by_key.then(a.partition.cmp(&b.partition))
    });
    if let Some(bound) = bound {
        rows.retain(|row| !before(&bound, &row.key));
    }
    let limit = request.limit as usize;
    if rows.len() > limit {
        // A key is never torn: the page goes on to the end of its last one.
        let key = rows[limit - 1].key.clone();
        let end = limit
            + rows[limit..]
                .iter()
                .take_while(|row| row.key == key)
                .count();
        more |= rows.len() > end;
        rows.truncate(end);
    }
    (rows, more)
}

/// A page token: version, length of the moment's text, the text, the last key.
fn encode_page(token: &Token, last_key: &[u8]) -> Vec<u8> {
    let text = token.to_string();
    let length = u32::try_from(text.len()).expect("a token is short");
    let mut page = vec![PAGE_TOKEN_VERSION];
    page.extend_from_slice(&length.to_le_bytes());
    page.extend_from_slice(text.as_bytes());
    page.extend_from_slice(last_key);
    page
}

fn continue_page(request: &mut ScanRequest, page: &[u8]) -> Result<(), ComputeError> {
    let parsed = (|| {
        let rest = page.strip_prefix(&[PAGE_TOKEN_VERSION])?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (text, key) = rest.split_at_checked(length)?;
        let token: Token = std::str::from_utf8(text).ok()?.parse().ok()?;
        Some((token, key))
    })();
    let Some((token, key)) = parsed else {
        return Err(ComputeError::invalid(
            "the page token is damaged; use that of the answer before unchanged",
        ));
    };
    request.options.at = At::Token(token);
    request.options.min_sequence = None;
    if request.reverse {
        request.end = Some(key.to_vec());
    } else {
        request.start = key.to_vec();
        request.start.push(0);
    }
    Ok(())
}
