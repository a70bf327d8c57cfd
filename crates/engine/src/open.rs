//! Opening a database: discover, recover, index, and put the machines together.
//!
//! Partitions are independent: one that is damaged comes up fenced and says why, the others serve.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use truthdb_io::{OpenMode, World};
use truthdb_log::{
    ActiveIndex, Cut, DirectoryError, Discovery, Footer, HeadRuns, HeadsIdentity, KeyHasher,
    KeySeed, Manifest, Place, RecentIdsBinding, RecoveredSegment, RecoveryError, RecoveryMode,
    ScannedBatch, SealedSegments, SegmentEnd, SegmentHeader, SegmentKind, SegmentReader,
    SegmentState, ZERO_HASH, create_segment, discover_segments, index_batch, index_dir,
    open_database_layout, recover_segment, segment_path,
};

use crate::append::{Preparer, TRIM_STREAM};
use crate::cache::ReadCache;
use crate::config::EngineConfig;
use crate::engine::{Engine, Inner, Stepper};
use crate::error::ReadError;
use crate::maintenance::Maintenance;
use crate::pages::read_stream_page;
use crate::queue::AppendQueue;
use crate::request::{Direction, RevisionFrom, StreamReadRequest};
use crate::sealed::{OpenSegments, Sealed};
use crate::shared::{
    MaintenanceSignal, PartitionShared, Segment, SegmentBody, SharedStart, Unsealed, View,
};
use crate::status::{AtomicCounters, PartitionState};
use crate::writer::{PartitionWriter, WriterStart};

/// Why a database did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is none, it is incomplete, in use, or of a newer version.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread {
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A setting is out of its range.
    #[error("{key} is {value}: {reason}")]
    Config {
        /// Name of the setting.
        key: &'static str,
        /// What it is.
        value: u64,
        /// What is possible.
        reason: &'static str,
    },
}

/// Why one partition did not open.
#[derive(Debug, thiserror::Error)]
enum PartitionError {
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error("the index of stream heads cannot be opened")]
    Heads(#[from] truthdb_log::HeadsError),
    #[error("an index cannot be opened")]
    Read(#[from] ReadError),
    #[error("a new segment cannot be made")]
    Segment(#[from] DirectoryError),
    #[error("{path} cannot be opened")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// A partition as the engine holds it.
pub(crate) enum PartitionSlot {
    Open(Arc<PartitionShared>),
    Fenced { partition: u32, reason: Arc<str> },
}

/// What recovery found at the end of a partition's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredTail {
    /// Events read again from unsealed segments.
    pub events: u64,
    /// The last stop was clean.
    pub clean_stop: bool,
    /// The torn tail that was cut: file and what was cut of it.
    pub cut: Option<(String, Cut)>,
}

/// What opening a partition found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionReport {
    /// The partition.
    pub partition: u32,
    /// Last sequence.
    pub last_sequence: u64,
    /// Segments.
    pub segments: usize,
    /// What recovery found, or why the partition is fenced.
    pub tail: Result<RecoveredTail, String>,
    /// Time it took, nanoseconds.
    pub duration_ns: u64,
}

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenReport {
    /// Each partition, by number.
    pub partitions: Vec<PartitionReport>,
    /// Files in the directory that are not the database's.
    pub foreign: Vec<String>,
    /// Time it took, nanoseconds.
    pub duration_ns: u64,
}

/// Everything a partition's opening needs.
struct Opener<'a> {
    world: &'a World,
    config: &'a Arc<EngineConfig>,
    manifest: &'a Manifest,
    files: &'a Arc<OpenSegments>,
    cache: &'a Arc<ReadCache>,
    signal: &'a Arc<MaintenanceSignal>,
}

struct Opened {
    shared: Arc<PartitionShared>,
    writer: Option<PartitionWriter>,
    tail: RecoveredTail,
}

fn check_config(config: &EngineConfig) -> Result<(), OpenError> {
    let range = |key, value: usize, low: usize, high: usize, reason| {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(OpenError::Config {
            key,
            value: value as u64,
            reason,
        })
    };
    range(
        "writes_in_flight_max",
        config.writes_in_flight_max,
        1,
        16,
        "must be 1 to 16",
    )?;
    let (low, high) = (64 << 10, 16 << 20);
    range(
        "group_bytes_max",
        config.group_bytes_max,
        low,
        high,
        "must be 64 KiB to 16 MiB",
    )?;
    range(
        "queue_batches_max",
        config.queue_batches_max,
        1,
        1 << 20,
        "must be 1 to 1048576",
    )?;
    range(
        "queue_bytes_max",
        config.queue_bytes_max,
        1 << 16,
        1 << 34,
        "must be 64 KiB to 16 GiB",
    )?;
    let tail = config.tail_cache_bytes;
    range(
        "tail_cache_bytes",
        tail,
        1 << 20,
        1 << 34,
        "must be 1 MiB to 16 GiB",
    )?;
    let window = config.idempotency_window_events;
    range(
        "idempotency_window_events",
        window,
        1,
        1 << 30,
        "must be 1 to 1073741824",
    )?;
    range(
        "closed_segments_max",
        config.closed_segments_max,
        1,
        64,
        "must be 1 to 64",
    )
}

impl Engine {
    /// Opens a database without starting a thread; the caller steps its machines.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_stepped(
        world: World,
        config: EngineConfig,
    ) -> Result<(Engine, Stepper), OpenError> {
        Engine::open_with(world, config, 1)
    }

    /// Opens a database; `threads` recover partitions at the same time.
    pub(crate) fn open_with(
        world: World,
        config: EngineConfig,
        threads: usize,
    ) -> Result<(Engine, Stepper), OpenError> {
        check_config(&config)?;
        let started = world.clock.monotonic_ns();
        let layout = open_database_layout(&world, "an open database")?;
        for path in &layout.foreign {
            tracing::warn!(path = %path, "this file is not the database's; it is left alone");
        }
        let manifest = layout.manifest;
        let hasher = KeyHasher::new(KeySeed(manifest.key_seed));
        let mut config = config;
        if manifest.partition_count as usize * 2 > threads {
            config.lone_writer_spin = Duration::ZERO;
        }
        let config = Arc::new(config);
        let signal = Arc::new(MaintenanceSignal::default());
        let files = Arc::new(OpenSegments::new(world.clone(), hasher.clone()));
        let cache = Arc::new(ReadCache::new(config.read_cache_bytes));
        let opener = Opener {
            world: &world,
            config: &config,
            manifest: &manifest,
            files: &files,
            cache: &cache,
            signal: &signal,
        };
        let mut slots = Vec::new();
        let mut writers = Vec::new();
        let mut report = OpenReport {
            foreign: layout.foreign,
            ..OpenReport::default()
        };
        for (slot, writer, line) in opener.open_all(threads) {
            slots.push(slot);
            writers.push(writer);
            report.partitions.push(line);
        }
        report.duration_ns = world.clock.monotonic_ns() - started;
        let preparer = Arc::new(Preparer {
            hasher,
            random: Arc::clone(&world.random),
            partition_count: manifest.partition_count,
        });
        let open = slots.iter().filter_map(|slot| match slot {
            PartitionSlot::Open(shared) => Some(Arc::clone(shared)),
            PartitionSlot::Fenced { .. } => None,
        });
        let maintenance = Maintenance::new(
            world.clone(),
            Arc::clone(&config),
            open.collect(),
            files,
            Arc::clone(&signal),
            Arc::clone(&preparer),
            manifest,
        );
        let inner = Arc::new(Inner {
            world,
            config,
            manifest,
            preparer,
            partitions: slots,
            report,
            signal,
            threads: Mutex::new(Vec::new()),
            lock: Mutex::new(Some(layout.lock)),
        });
        Ok((
            Engine { inner },
            Stepper {
                writers,
                maintenance,
            },
        ))
    }
}

/// How far a partition's log reaches, segment by segment.
struct LogEnd {
    next_sequence: u64,
    timestamp_ns: u64,
    previous_checksum: u64,
    /// The last unsealed segment, and where its next group goes.
    active: Option<(Arc<Segment>, Arc<Unsealed>, u64)>,
    tail: RecoveredTail,
}

impl LogEnd {
    /// The end of the sealed segments.
    fn after(last: Option<&Footer>) -> LogEnd {
        LogEnd {
            next_sequence: last.map_or(1, |footer| footer.last_sequence + 1),
            timestamp_ns: last.map_or(0, |footer| footer.last_timestamp_ns),
            previous_checksum: last.map_or(0, |footer| footer.last_batch_checksum),
            active: None,
            tail: RecoveredTail {
                events: 0,
                clean_stop: true,
                cut: None,
            },
        }
    }

    /// Goes on with a recovered segment, and returns it.
    fn extend(&mut self, recovered: RecoveredSegment, body: Arc<Unsealed>) -> Arc<Segment> {
        let events = recovered.next_sequence - recovered.header.base_sequence;
        self.tail.events += events;
        self.tail.clean_stop = recovered.clean_stop || events == 0;
        self.next_sequence = recovered.next_sequence;
        self.timestamp_ns = self.timestamp_ns.max(recovered.last_timestamp_ns);
        self.previous_checksum = recovered.last_checksum;
        let segment = Arc::new(unsealed_segment(&recovered.header, &body));
        if let Some(cut) = recovered.cut {
            tracing::warn!(path = %segment.path, offset = cut.offset, bytes = cut.bytes, rule = cut.rule,
                "torn tail was cut: these bytes were never acknowledged");
            self.tail.cut = Some((segment.path.clone(), cut));
        }
        self.active = Some((Arc::clone(&segment), body, recovered.write_offset()));
        segment
    }
}

type OpenedSlot = (PartitionSlot, Option<PartitionWriter>, PartitionReport);

impl Opener<'_> {
    /// Opens all partitions, in order of their numbers.
    fn open_all(&self, threads: usize) -> Vec<OpenedSlot> {
        let count = self.manifest.partition_count;
        if threads <= 1 || count == 1 {
            return (0..count).map(|partition| self.open(partition)).collect();
        }
        let next = AtomicU32::new(0);
        let work = || {
            let mut opened = Vec::new();
            loop {
                let partition = next.fetch_add(1, Ordering::Relaxed);
                if partition >= count {
                    return opened;
                }
                opened.push((partition, self.open(partition)));
            }
        };
        let mut opened: Vec<(u32, OpenedSlot)> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let joined = handles.into_iter().map(|handle| handle.join());
            joined
                .flat_map(|result| result.expect("opening reports errors, it does not panic"))
                .collect()
        });
        opened.sort_by_key(|(partition, _)| *partition);
        opened.into_iter().map(|(_, slot)| slot).collect()
    }

    fn open(&self, partition: u32) -> OpenedSlot {
        let started = self.world.clock.monotonic_ns();
        let result = self.open_partition(partition);
        let duration_ns = self.world.clock.monotonic_ns() - started;
        match result {
            Ok(Opened {
                shared,
                writer,
                tail,
            }) => {
                let report = PartitionReport {
                    partition,
                    last_sequence: shared.committed(),
                    segments: shared.view().segments.len(),
                    tail: Ok(tail),
                    duration_ns,
                };
                (PartitionSlot::Open(shared), writer, report)
            }
            Err(error) => {
                let reason: Arc<str> = format!(
                    "{}. Look with `truthdb inspect` and `truthdb verify`, mend with `truthdb repair`",
                    crate::error::chain(&error)
                )
                .into();
                tracing::error!(partition, reason = %reason, "partition is fenced; the others serve");
                let report = PartitionReport {
                    partition,
                    last_sequence: 0,
                    segments: 0,
                    tail: Err(reason.to_string()),
                    duration_ns,
                };
                (PartitionSlot::Fenced { partition, reason }, None, report)
            }
        }
    }

    fn open_partition(&self, partition: u32) -> Result<Opened, PartitionError> {
        let storage = self.world.storage.as_ref();
        let mut found = discover_segments(storage, partition, self.manifest)?;
        for path in &found.foreign {
            tracing::warn!(path = %path, "this file is not the database's; it is left alone");
        }
        let counters = Arc::new(AtomicCounters::default());
        let mut segments = Vec::new();
        for footer in found.segments.iter().filter_map(|info| info.footer()) {
            segments.push(self.sealed_segment(footer, &counters));
        }
        let heads = self.open_heads(partition, &found, &segments)?;
        let needs_segment = found.segments.iter().all(|info| info.footer().is_some());
        let made = if needs_segment && self.config.ingest {
            Some(self.make_first_unsealed(partition, &mut found)?)
        } else {
            None
        };
        let mut end = LogEnd::after(found.segments.iter().rev().find_map(|info| info.footer()));
        for (recovered, body) in self.recover_unsealed(&found, &heads, made)? {
            segments.push(end.extend(recovered, body));
        }
        let LogEnd {
            next_sequence,
            timestamp_ns,
            previous_checksum,
            active,
            tail,
        } = end;
        let first_sequence = found.trim.first_sequence;
        let state = if self.config.ingest {
            PartitionState::Open
        } else {
            PartitionState::ReadOnly
        };
        let queue = AppendQueue::new(
            partition,
            self.config.queue_bytes_max,
            self.config.queue_batches_max,
        );
        let chain_before_first = chain_before_first(&found, &heads);
        let shared = Arc::new(PartitionShared::new(SharedStart {
            database_id: self.manifest.database_id,
            partition,
            segment_bytes: self.manifest.segment_bytes,
            cache: Arc::clone(self.cache),
            buffers: Arc::clone(&self.files.buffers),
            queue,
            committed: next_sequence - 1,
            timestamp_ns,
            view: View {
                segments,
                first_sequence,
            },
            heads,
            state,
            counters,
            trim: found.trim,
            chain_before_first,
            maintenance: Arc::clone(self.signal),
        }));
        self.resume_trim(&shared)?;
        let writer = match active {
            Some((segment, unsealed, offset)) if self.config.ingest => {
                let end = RecentIdsBinding {
                    database_id: self.manifest.database_id,
                    partition,
                    key_check: self.files.hasher.seed().check(),
                    next_sequence,
                    last_checksum: previous_checksum,
                };
                let events = self.config.idempotency_window_events;
                let ids = crate::recent_ids::load(self.world, &shared, &end, events)?;
                let path = segment.path.clone();
                let start = WriterStart {
                    segment,
                    unsealed,
                    offset,
                    next_sequence,
                    previous_checksum,
                    timestamp_ns,
                    ids,
                    key_check: end.key_check,
                };
                let writer = PartitionWriter::new(
                    Arc::clone(self.config),
                    self.world.clone(),
                    Arc::clone(&shared),
                    start,
                );
                Some(writer.map_err(|source| PartitionError::Io { path, source })?)
            }
            _ => None,
        };
        Ok(Opened {
            shared,
            writer,
            tail,
        })
    }

    fn sealed_segment(&self, footer: &Footer, counters: &Arc<AtomicCounters>) -> Arc<Segment> {
        let place = footer.place;
        let body = SegmentBody::Sealed(Arc::new(Sealed::new(*footer, self.files, counters)));
        Arc::new(Segment::new(
            place.segment,
            footer.base_sequence,
            self.manifest.segment_bytes,
            segment_path(place.partition, place.segment),
            body,
        ))
    }

    /// Opens the runs of stream heads and fills what is missing of them.
    fn open_heads(
        &self,
        partition: u32,
        found: &Discovery,
        segments: &[Arc<Segment>],
    ) -> Result<HeadRuns, PartitionError> {
        let footers: Vec<&Footer> = found
            .segments
            .iter()
            .filter_map(|info| info.footer())
            .collect();
        let chain_of = |segment: u32| {
            let first = footers.first()?;
            if segment + 1 == first.place.segment {
                return Some(first.previous_chain);
            }
            let index = segment.checked_sub(first.place.segment)?;
            footers.get(index as usize).map(|footer| footer.chain)
        };
        let sealed = SealedSegments {
            first: found.segments.first().map_or(1, |info| info.place.segment),
            last: footers
                .last()
                .map_or(found.trim.first_segment - 1, |f| f.place.segment),
            chain_of: &chain_of,
        };
        let identity = HeadsIdentity {
            database_id: self.manifest.database_id,
            partition,
            key_check: self.files.hasher.seed().check(),
        };
        let directory = index_dir(partition);
        let (mut heads, rejected) =
            HeadRuns::open(&self.world.storage, &directory, identity, &sealed)?;
        for run in rejected {
            tracing::warn!(partition, error = %run.error, "run of stream heads is made again from the indexes");
        }
        for range in heads.missing() {
            for number in range {
                let segment = segments.iter().find(|segment| segment.number == number);
                let Some(SegmentBody::Sealed(sealed)) = segment.map(|segment| segment.body())
                else {
                    continue;
                };
                heads.add_segment(sealed.index()?.as_ref())?;
            }
        }
        Ok(heads)
    }

    /// Every segment is sealed, after a clean stop: makes the one that appends go to.
    fn make_first_unsealed(
        &self,
        partition: u32,
        found: &mut Discovery,
    ) -> Result<Place, PartitionError> {
        let last = found.segments.last().and_then(|info| info.footer());
        let number = last.map_or(found.trim.first_segment, |footer| footer.place.segment + 1);
        let header = SegmentHeader {
            kind: SegmentKind::Active,
            place: self.manifest.place(partition, number),
            base_sequence: last.map_or(1, |footer| footer.last_sequence + 1),
            segment_bytes: self.manifest.segment_bytes,
            previous_checksum: last.map_or(0, |footer| footer.last_batch_checksum),
            trim: found.trim,
            created_ns: self.world.clock.utc_ns(),
        };
        create_segment(self.world.storage.as_ref(), &header)?;
        found.segments.push(truthdb_log::SegmentInfo {
            place: header.place,
            file_bytes: header.segment_bytes,
            state: SegmentState::Unsealed(Box::new(header)),
        });
        Ok(header.place)
    }

    /// Recovers the unsealed segments in order, and indexes their events in the same pass. One that
    /// was `made` for this start is known to be empty.
    fn recover_unsealed(
        &self,
        found: &Discovery,
        heads: &HeadRuns,
        made: Option<Place>,
    ) -> Result<Vec<(RecoveredSegment, Arc<Unsealed>)>, PartitionError> {
        let unsealed: Vec<(Place, SegmentHeader)> = found
            .segments
            .iter()
            .filter_map(|info| match &info.state {
                SegmentState::Unsealed(header) => Some((info.place, **header)),
                SegmentState::Sealed(_) => None,
            })
            .collect();
        let mut done: Vec<(RecoveredSegment, Arc<Unsealed>)> = Vec::new();
        for (i, (place, header)) in unsealed.iter().enumerate() {
            let end = unsealed
                .get(i + 1)
                .map(|(_, next)| SegmentEnd::before(next));
            let mut index = ActiveIndex::new(header.base_sequence);
            let mut failed = None;
            let mode = if self.config.ingest {
                RecoveryMode::Repair
            } else {
                RecoveryMode::Look
            };
            let storage = self.world.storage.as_ref();
            let mut take = |scanned: ScannedBatch| {
                index_batch(
                    &mut index,
                    &self.files.hasher,
                    scanned.offset,
                    &scanned.batch,
                    |stream, revision| {
                        if revision == 0 {
                            return 0;
                        }
                        let earlier = done.iter().rev();
                        let here =
                            earlier.filter_map(|(_, body)| body.index.read().stream_head(stream));
                        if let Some(head) = here.into_iter().next() {
                            return head.last_sequence;
                        }
                        match heads.get(stream) {
                            Ok(head) => head.map_or(0, |head| head.last_sequence),
                            Err(error) => {
                                failed.get_or_insert(error);
                                0
                            }
                        }
                    },
                );
            };
            let recovered = if made == Some(*place) {
                RecoveredSegment::just_made(header)
            } else {
                recover_segment(storage, *place, end, mode, &mut take)?
            };
            if let Some(error) = failed {
                return Err(error.into());
            }
            let path = segment_path(place.partition, place.segment);
            let open_mode = if self.config.ingest {
                OpenMode::ReadWrite
            } else {
                OpenMode::Read
            };
            let file = storage
                .open(&path, open_mode)
                .map_err(|source| PartitionError::Io { path, source })?;
            let body = Arc::new(Unsealed {
                header: *header,
                reader: SegmentReader::new(Arc::clone(&file), *place, SegmentKind::Active)
                    .with_buffers(&self.files.buffers),
                file,
                index: RwLock::new(index),
                end_offset: AtomicU64::new(recovered.write_offset()),
                closed: AtomicBool::new(end.is_some()),
            });
            done.push((recovered, body));
        }
        Ok(done)
    }

    /// A trim that was committed and not carried out before the stop goes on.
    fn resume_trim(&self, shared: &PartitionShared) -> Result<(), PartitionError> {
        let request = StreamReadRequest {
            stream: TRIM_STREAM.to_owned(),
            partition: Some(shared.partition),
            from: RevisionFrom::Start,
            direction: Direction::Backward,
            events_max: 1,
            bytes_max: 1,
        };
        match read_stream_page(shared, &self.files.hasher, &request) {
            Ok(page) => {
                let events = page.events();
                let payload = events.first().map(|event| event.event().payload());
                if let Some(point) = payload.and_then(crate::trim::decode_point) {
                    shared.set_trim_point(point);
                }
                Ok(())
            }
            Err(ReadError::StreamNotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Chain hash that the oldest segment must name as its predecessor's. If all before it were trimmed and it has no
/// footer yet, the stream heads are what still knows it.
fn chain_before_first(found: &Discovery, heads: &HeadRuns) -> [u8; 32] {
    let Some(first) = found.segments.first() else {
        return ZERO_HASH;
    };
    let before = first.place.segment - 1;
    match first.footer() {
        Some(footer) => footer.previous_chain,
        None => heads.chain_of(before).unwrap_or(ZERO_HASH),
    }
}

fn unsealed_segment(header: &SegmentHeader, body: &Arc<Unsealed>) -> Segment {
    Segment::new(
        header.place.segment,
        header.base_sequence,
        header.segment_bytes,
        segment_path(header.place.partition, header.place.segment),
        SegmentBody::Unsealed(Arc::clone(body)),
    )
}
