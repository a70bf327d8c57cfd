//! A start after a clean stop costs one small read for each sealed segment and a fixed amount
//! besides, however much the segments hold and however far the window of event ids reaches back.
//!
//! The history is made by hand: 1,600 files of 64 MiB with a header and a footer and nothing in
//! between, and no index at all. An engine that wants to know more of them cannot open.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail the test")]

use std::any::Any;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use truthdb_engine::{Engine, EngineConfig, PartitionState};
use truthdb_io::{
    AlignedBuf, Backend, Completion, DirEntry, File, FileStorage, IoQueue, OpenMode, Space,
    Storage, Waker, World, WriteSource,
};
use truthdb_log::{
    CreateOptions, Footer, HeadRunWriter, HeadsIdentity, IdHash, KeySeed, Manifest,
    RecentIdsBinding, SegmentHeader, SegmentKind, TrimPoint, ZERO_HASH, create_database, index_dir,
    open_database_layout, recent_ids_path, segment_path, write_recent_ids,
};

const SEGMENTS: u32 = 1600;
const SEGMENT_BYTES: u64 = 64 << 20;
/// Events of 64 KiB: the million ids of the window lie in a thousand segments.
const EVENTS: u64 = 1000;

/// What was asked of the disk.
#[derive(Default)]
struct Asked {
    opens: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

impl Asked {
    fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

struct Counting {
    inner: FileStorage,
    asked: Arc<Asked>,
}

struct CountingFile {
    inner: Arc<dyn File>,
    asked: Arc<Asked>,
}

struct CountingQueue {
    inner: Box<dyn IoQueue>,
    asked: Arc<Asked>,
}

impl Storage for Counting {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.asked.opens.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner.open(path, mode)?;
        let asked = Arc::clone(&self.asked);
        Ok(Arc::new(CountingFile { inner, asked }))
    }
    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        self.inner.list(path)
    }
    fn durable_create_dir(&self, path: &str) -> io::Result<()> {
        self.inner.durable_create_dir(path)
    }
    fn durable_rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.durable_rename(from, to)
    }
    fn durable_remove(&self, path: &str) -> io::Result<()> {
        self.inner.durable_remove(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.inner.sync_dir(path)
    }
    fn queue(&self, depth: usize) -> io::Result<Box<dyn IoQueue>> {
        let inner = self.inner.queue(depth)?;
        let asked = Arc::clone(&self.asked);
        Ok(Box::new(CountingQueue { inner, asked }))
    }
    fn lock(&self, path: &str, holder: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.inner.lock(path, holder)
    }
    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }
}

impl File for CountingFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, buf: &mut AlignedBuf, bytes: usize, offset: u64) -> io::Result<usize> {
        self.asked.read(bytes);
        self.inner.read_at(buf, bytes, offset)
    }
    fn write_at(&self, buf: &AlignedBuf, bytes: usize, offset: u64) -> io::Result<()> {
        self.inner.write_at(buf, bytes, offset)
    }
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.inner.allocate(bytes)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.inner.set_len(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn as_any(&self) -> &dyn Any {
        self.inner.as_any()
    }
}

impl IoQueue for CountingQueue {
    fn write(
        &mut self,
        file: &Arc<dyn File>,
        source: WriteSource,
        offset: u64,
        durable: bool,
        tag: u64,
    ) {
        self.inner.write(file, source, offset, durable, tag);
    }
    fn read(&mut self, file: &Arc<dyn File>, buf: AlignedBuf, bytes: usize, offset: u64, tag: u64) {
        self.asked.read(bytes);
        self.inner.read(file, buf, bytes, offset, tag);
    }
    fn sync(&mut self, file: &Arc<dyn File>, tag: u64) {
        self.inner.sync(file, tag);
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) {
        self.inner.poll(completions);
    }
    fn wait(&mut self, completions: &mut Vec<Completion>, timeout_ns: Option<u64>) {
        self.inner.wait(completions, timeout_ns);
    }
    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

fn world(dir: &Path, asked: &Arc<Asked>) -> World {
    let inner = FileStorage::open(dir, Backend::Auto).unwrap();
    World::system(Arc::new(Counting {
        inner,
        asked: Arc::clone(asked),
    }))
}

fn footer(manifest: &Manifest, segment: u32) -> Footer {
    let hash = |segment: u32| match segment {
        0 => ZERO_HASH,
        _ => [u8::try_from(segment % 251 + 1).unwrap(); 32],
    };
    let first = u64::from(segment - 1) * EVENTS + 1;
    Footer {
        kind: SegmentKind::Active,
        place: manifest.place(0, segment),
        base_sequence: first,
        last_sequence: first + EVENTS - 1,
        batch_count: EVENTS,
        first_timestamp_ns: first,
        last_timestamp_ns: first + 1,
        data_end: SEGMENT_BYTES - 8192,
        sparse_offset: SEGMENT_BYTES - 8192,
        sparse_entries: 1,
        event_bytes: SEGMENT_BYTES / 2,
        last_batch_checksum: first,
        root: [9; 32],
        previous_chain: hash(segment - 1),
        chain: hash(segment),
        trim: TrimPoint::NONE,
    }
}

/// A database whose partition has [`SEGMENTS`] sealed segments, as a clean stop leaves it.
fn make_history(dir: &Path, world: &World) -> Manifest {
    let options = CreateOptions {
        partition_count: 1,
        segment_bytes: SEGMENT_BYTES,
        ..CreateOptions::default()
    };
    create_database(world, &options).unwrap();
    let manifest = open_database_layout(world, "a test").unwrap().manifest;
    for segment in 1..=SEGMENTS {
        let footer = footer(&manifest, segment);
        let header = SegmentHeader {
            kind: SegmentKind::Active,
            place: footer.place,
            base_sequence: footer.base_sequence,
            segment_bytes: SEGMENT_BYTES,
            previous_checksum: footer.last_batch_checksum,
            trim: TrimPoint::NONE,
            created_ns: 1,
        };
        let file = std::fs::File::create(dir.join(segment_path(0, segment))).unwrap();
        file.write_all_at(&header.encode(), 0).unwrap();
        file.write_all_at(&footer.encode(), SEGMENT_BYTES - 4096)
            .unwrap();
    }
    let last = footer(&manifest, SEGMENTS);
    let key_check = KeySeed(manifest.key_seed).check();
    let identity = HeadsIdentity {
        database_id: manifest.database_id,
        partition: 0,
        key_check,
    };
    let directory = index_dir(0);
    HeadRunWriter::create(
        &world.storage,
        &directory,
        &identity,
        1,
        SEGMENTS,
        &last.chain,
    )
    .and_then(HeadRunWriter::finish)
    .unwrap();
    let binding = RecentIdsBinding {
        database_id: manifest.database_id,
        partition: 0,
        key_check,
        next_sequence: last.last_sequence + 1,
        last_checksum: last.last_batch_checksum,
    };
    let first = binding.next_sequence - 1_000_000;
    let hash = |sequence: u64| IdHash(sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut ids: Vec<_> = (first..binding.next_sequence)
        .map(|sequence| (hash(sequence), sequence))
        .collect();
    write_recent_ids(&world.storage, &binding, first, &mut ids).unwrap();
    manifest
}

#[test]
fn a_start_after_a_clean_stop_reads_a_footer_of_each_segment_and_little_more() {
    // Not in /tmp: that may be a tmpfs, which has no direct I/O.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let asked = Arc::new(Asked::default());
    make_history(dir.path(), &world(dir.path(), &asked));
    let before = [&asked.opens, &asked.reads, &asked.read_bytes].map(|n| n.load(Ordering::Relaxed));
    let engine = Engine::open(world(dir.path(), &asked), EngineConfig::default()).unwrap();
    let after = [&asked.opens, &asked.reads, &asked.read_bytes].map(|n| n.load(Ordering::Relaxed));
    let report = engine.report().clone();
    assert!(
        matches!(engine.status().partitions[0].state, PartitionState::Open),
        "{report:?}"
    );
    assert_eq!(
        report.partitions[0].last_sequence,
        u64::from(SEGMENTS) * EVENTS
    );
    let [opens, reads, bytes] = [0, 1, 2].map(|i| after[i] - before[i]);
    println!(
        "{opens} opens, {reads} reads, {bytes} bytes, {} ms",
        report.duration_ns / 1_000_000
    );
    let segments = u64::from(SEGMENTS);
    assert!(opens <= segments + 20, "{opens} files were opened");
    // The ids take 12 MB; a footer is a block.
    assert!(reads <= segments + 300, "{reads} reads");
    assert!(
        bytes <= segments * 4096 + (13 << 20),
        "{bytes} bytes were read"
    );
    engine.shutdown();
    assert!(dir.path().join(recent_ids_path(0)).exists());
}
