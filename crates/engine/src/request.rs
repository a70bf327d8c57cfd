//! What callers ask for and what they get: plain values, no behaviour.

use std::fmt;

use truthdb_log::StoredBatch;

/// What the caller knows about a stream before it appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpectedRevision {
    /// Anything.
    #[default]
    Any,
    /// The stream has no event.
    NoStream,
    /// The stream has at least one event.
    Exists,
    /// The stream's last event has exactly this revision.
    Exact(u64),
}

impl fmt::Display for ExpectedRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExpectedRevision::Any => f.write_str("any"),
            ExpectedRevision::NoStream => f.write_str("no stream"),
            ExpectedRevision::Exists => f.write_str("an existing stream"),
            ExpectedRevision::Exact(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// One alternative of an append condition: an event matches if it has one of the types (any, if
/// empty) and all of the tags.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConditionItem {
    /// Event types, any of them. Empty: any type.
    pub types: Vec<String>,
    /// Tags, all of them. Empty: any tags.
    pub tags: Vec<String>,
}

/// "Fail if an event that matches one of these items exists after sequence `after`" (of the batch's
/// partition).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppendCondition {
    /// The alternatives (1 to 16). Each needs a type or a tag.
    pub items: Vec<ConditionItem>,
    /// Events up to this sequence do not count. 0: all count.
    pub after: u64,
}

/// A durable named position, stored in the same commit as the events it comes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorUpdate {
    /// Name, at most 200 bytes. A cursor belongs to the partition it is committed in.
    pub name: String,
    /// What the caller has processed; the engine does not interpret it.
    pub position: u64,
}

/// An acknowledged append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Partition of the batch.
    pub partition: u32,
    /// Sequence of its first event.
    pub first_sequence: u64,
    /// Sequence of its last event (a cursor stored with it comes after).
    pub last_sequence: u64,
    /// Timestamp of its events, nanoseconds UTC.
    pub timestamp_ns: u64,
    /// Revision of the last event in that event's stream.
    pub last_revision: u64,
    /// Whether it is on stable storage (always, with `flush-each-group`).
    pub durable: bool,
    /// Whether these event ids had been appended before; nothing was written then.
    pub duplicate: bool,
}

/// Which way to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Oldest first.
    #[default]
    Forward,
    /// Newest first.
    Backward,
}

/// Where a read of a partition begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// The first event (forward) or the last one (backward).
    Start,
    /// This sequence, included.
    Sequence(u64),
    /// Forward: the first event with this timestamp (nanoseconds UTC) or a later one. Backward: the
    /// last one at or before it.
    Time(u64),
    /// Where the page before ended, with the place on the disk: as [`ReadFrom::Sequence`], without
    /// looking the place up and reading over what was had already.
    Resume(Resume),
}

/// Where a forward page ended: a sequence, and where its batch begins on the disk.
///
/// Only a hint for speed, and true only in the process that gave it: where a segment was sealed or
/// trimmed meanwhile the sequence alone counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    pub(crate) sequence: u64,
    pub(crate) segment: u32,
    /// Sealing may move batches.
    pub(crate) sealed: bool,
    /// Offset in the file, bytes.
    pub(crate) offset: u64,
}

impl Resume {
    /// The sequence to go on from.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// Which events of a partition to return. Empty: all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Streams whose names begin so.
    pub stream_prefix: Option<String>,
    /// Event types, any of them.
    pub types: Vec<String>,
    /// Tags, all of them.
    pub tags: Vec<String>,
}

impl Filter {
    /// Whether every event passes.
    pub fn is_empty(&self) -> bool {
        self.stream_prefix.is_none() && self.types.is_empty() && self.tags.is_empty()
    }
}

/// A read of one page of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// The partition.
    pub partition: u32,
    /// Where to begin.
    pub from: ReadFrom,
    /// Which way.
    pub direction: Direction,
    /// Which events.
    pub filter: Filter,
    /// At most this many events.
    pub events_max: usize,
    /// At most about this many bytes (a single larger batch is returned whole).
    pub bytes_max: usize,
}

/// A page of a partition's events.
#[derive(Debug, Clone)]
pub struct ReadPage {
    /// Runs of events with consecutive sequences, in the order of reading; events inside a run are
    /// always ascending.
    pub batches: Vec<StoredBatch>,
    /// Bytes of memory that the batches hold on to as long as they live, about; `None`: not known,
    /// and possibly much more than they need themselves.
    pub held_bytes: Option<usize>,
    /// Which way it was read.
    pub direction: Direction,
    /// Sequence to continue from, in the same direction. `None`: nothing is left (backward), or
    /// (forward) never.
    pub next: Option<u64>,
    /// The same with its place on the disk, when that is known.
    pub resume: Option<Resume>,
    /// Forward: whether the page reaches what was committed when it was read. Backward: whether it
    /// reaches the first event.
    pub at_end: bool,
    /// Last committed sequence of the partition when the page was read.
    pub committed: u64,
}

/// Where a read of a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevisionFrom {
    /// The first event (forward) or the last one (backward).
    Start,
    /// This revision, included.
    Revision(u64),
}

/// A read of one page of a stream. Its partition follows from its name, except for `$` streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReadRequest {
    /// The stream.
    pub stream: String,
    /// Needed for streams whose name begins with `$`, which exist once in each partition; else `None`.
    pub partition: Option<u32>,
    /// Where to begin.
    pub from: RevisionFrom,
    /// Which way.
    pub direction: Direction,
    /// At most this many events.
    pub events_max: usize,
    /// At most about this many bytes.
    pub bytes_max: usize,
}

/// A page of a stream's events.
#[derive(Debug, Clone)]
pub struct StreamPage {
    /// The partition it was read from.
    pub partition: u32,
    /// Runs of events, in the order of reading; events inside a run are always ascending.
    pub batches: Vec<StoredBatch>,
    /// Which way it was read.
    pub direction: Direction,
    /// Revision to continue from, in the same direction. `None`: nothing is left.
    pub next: Option<u64>,
    /// The stream's last revision when the page was read.
    pub last_revision: u64,
    /// Revisions below this were trimmed.
    pub first_revision: u64,
}

/// The end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHead {
    /// The partition.
    pub partition: u32,
    /// Revision of the last event.
    pub last_revision: u64,
    /// Sequence of the last event.
    pub last_sequence: u64,
}

/// A stored cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// What was committed.
    pub position: u64,
    /// Sequence of the event that stored it.
    pub sequence: u64,
    /// When, nanoseconds UTC.
    pub timestamp_ns: u64,
}
