//! What callers get: plain values.

use std::ops::ControlFlow;

use truthdb_module::ModuleKind;
use truthdb_state::{Changes, View};

use crate::request::{ActivationMode, ModuleHash};
use crate::token::Token;

/// 32 bytes that stand for a module's whole state: equal on every replay.
pub type Fingerprint = truthdb_state::Fingerprint;

/// What an answer was computed from, in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The partition.
    pub partition: u32,
    /// The module whose state it is.
    pub module: String,
    /// Its generation.
    pub generation: u32,
    /// Hash of the code that was current at the moment.
    pub module_hash: ModuleHash,
    /// The state holds everything up to here.
    pub sequence: u64,
    /// Time of the last event that the state holds, nanoseconds UTC; 0 before the first.
    pub timestamp_ns: u64,
    /// Fingerprint of the module's whole state at that moment.
    pub fingerprint: Fingerprint,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The partition that has it.
    pub partition: u32,
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// The answer to a get or a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsAnswer {
    /// Rows by key, then by partition. For a get: at most one from each partition.
    pub rows: Vec<Row>,
    /// One for each partition that was asked.
    pub stamps: Vec<Stamp>,
    /// Page token for what follows; `None`: nothing does.
    pub next: Option<Vec<u8>>,
}

/// A row of a query operator's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerRow {
    /// Key, in the operator's own encoding.
    pub key: Vec<u8>,
    /// Value, in the operator's own encoding.
    pub value: Vec<u8>,
}

/// The answer of a query operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryAnswer {
    /// The rows that the operator's merge step made, in its order.
    pub rows: Vec<AnswerRow>,
    /// Hash of the operator.
    pub operator_hash: ModuleHash,
    /// One for each partition and module that was read.
    pub stamps: Vec<Stamp>,
    /// Fuel that the operator used in all partitions and in its merge. A function of the code, the
    /// arguments and the states that were read; 0 for code that is not metered.
    pub fuel: u64,
}

fn token_of(stamps: &[Stamp]) -> Token {
    stamps.iter().map(|s| (s.partition, s.sequence)).collect()
}

impl RowsAnswer {
    /// The moment of the answer, for `at` and `min_sequence`.
    pub fn token(&self) -> Token {
        token_of(&self.stamps)
    }
}

impl QueryAnswer {
    /// The moment of the answer, for `at` and `min_sequence`.
    pub fn token(&self) -> Token {
        token_of(&self.stamps)
    }
}

/// A module that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Name from its manifest.
    pub module: String,
    /// BLAKE3 of its bytes.
    pub hash: ModuleHash,
    /// Length in bytes.
    pub bytes: u64,
    /// What it does.
    pub kind: ModuleKind,
    /// The same bytes had been published before; nothing was appended.
    pub existed: bool,
    /// Where the event is.
    pub token: Token,
}

/// A decision that is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The module.
    pub module: String,
    /// The generation that it concerns; 0 if it concerns none.
    pub generation: u32,
    /// Where the events are. The first partition's is the decision; a partition that is missing here
    /// had not written its copy within the time waited, and does so by itself.
    pub token: Token,
}

/// Whether a module folds in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoldState {
    /// It has applied what is committed.
    Live,
    /// It applies older events.
    CatchingUp,
    /// Its code is read from the log or compiled.
    Loading,
    /// It stopped at a batch and waits for an operator.
    Halted {
        /// First event of the batch.
        sequence: u64,
        /// What happened.
        reason: String,
    },
    /// Something outside is in the way; it goes on by itself.
    Waiting {
        /// What for.
        reason: String,
    },
    /// It is removed; its states of before can be asked for.
    Retired,
}

impl FoldState {
    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            FoldState::Live => "live",
            FoldState::CatchingUp => "catching-up",
            FoldState::Loading => "loading",
            FoldState::Halted { .. } => "halted",
            FoldState::Waiting { .. } => "waiting",
            FoldState::Retired => "retired",
        }
    }
}

/// A generation of a module in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationStatus {
    /// The partition.
    pub partition: u32,
    /// Its number, from 1.
    pub generation: u32,
    /// Hash of its code.
    pub module_hash: ModuleHash,
    /// How it began.
    pub mode: ActivationMode,
    /// It answers queries of the present. A generation that is rebuilt beside it does not yet.
    pub current: bool,
    /// Sequence of its activation.
    pub activated_at: u64,
    /// Its state holds everything up to here.
    pub applied: u64,
    /// What is committed: the goal.
    pub committed: u64,
    /// What it does.
    pub state: FoldState,
    /// Fingerprint at `applied`.
    pub fingerprint: Fingerprint,
    /// Rows of its tables.
    pub rows: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Events given to it since the start of the process.
    pub events: u64,
    /// Derived events appended since the start of the process.
    pub emitted: u64,
    /// Fuel used since the start of the process; 0 for code that is not metered.
    pub fuel: u64,
    /// Last sequence whose derived events are all stored; 0 for modules that emit none.
    pub emitted_through: u64,
    /// This process's engine is another than the one recorded at the activation: let
    /// [`crate::Compute::verify`] say whether it makes the same state.
    pub semantics_differ: bool,
}

/// A module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleStatus {
    /// Its name.
    pub module: String,
    /// What it does.
    pub kind: ModuleKind,
    /// Its tables by name, in the order of their indexes.
    pub tables: Vec<String>,
    /// Hash of the code that answers now.
    pub module_hash: ModuleHash,
    /// Its generations, by partition, then number; removed modules have none.
    pub generations: Vec<GenerationStatus>,
    /// Published codes of this name: hash, and bytes.
    pub published: Vec<(ModuleHash, u64)>,
}

/// State of all folds of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeStatus {
    /// Roles that run: `compute`, `query`, `replay`.
    pub roles: Vec<&'static str>,
    /// Each partition.
    pub partitions: Vec<PartitionFold>,
    /// Modules by name.
    pub modules: Vec<ModuleStatus>,
}

/// The fold of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionFold {
    /// The partition.
    pub partition: u32,
    /// The control events up to here are known.
    pub controlled: u64,
    /// Least applied sequence of the current generations; what is committed if there are none.
    pub applied: u64,
    /// What is committed.
    pub committed: u64,
    /// Newest snapshot; 0 if there is none.
    pub snapshot: u64,
    /// Last problem with derived files or the log, if it persists.
    pub problem: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The partition.
    pub partition: u32,
    /// Its sequence, which is its name.
    pub sequence: u64,
    /// Time of that event, nanoseconds UTC.
    pub timestamp_ns: u64,
    /// Each module in it: name, generation, applied sequence, fingerprint.
    pub modules: Vec<(String, u32, u64, Fingerprint)>,
    /// Bytes of its chunks, shared ones included.
    pub bytes: u64,
}

/// How far long work has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The partition worked on.
    pub partition: u32,
    /// Sequence that was reached.
    pub sequence: u64,
    /// Sequence at which that partition is done.
    pub target: u64,
    /// Events given to guests so far, all partitions.
    pub events: u64,
}

/// A batch that a replay re-applied.
#[derive(Debug, Clone)]
pub struct ReplayedBatch {
    /// The partition.
    pub partition: u32,
    /// First sequence of the batch.
    pub first_sequence: u64,
    /// Last sequence of the batch.
    pub last_sequence: u64,
    /// Time of the batch, nanoseconds UTC.
    pub timestamp_ns: u64,
    /// What the guest changed, in order of table and key.
    pub changes: Changes,
    /// Fingerprint after it.
    pub fingerprint: Fingerprint,
}

/// Takes what a replay makes, on the caller's thread.
pub trait ReplaySink {
    /// A batch from [`crate::ReplayRequest::changes_from`] on. `Break` stops the replay.
    fn batch(&mut self, batch: ReplayedBatch) -> ControlFlow<()> {
        let _ = batch;
        ControlFlow::Continue(())
    }

    /// Called now and then. `Break` stops the replay.
    fn progress(&mut self, progress: Progress) -> ControlFlow<()> {
        let _ = progress;
        ControlFlow::Continue(())
    }
}

/// A sink that takes nothing and never stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSink;

impl ReplaySink for NoSink {}

/// A state that a replay made, of one partition.
#[derive(Debug, Clone)]
pub struct ReplayedState {
    /// What it was made from.
    pub stamp: Stamp,
    /// Names of its tables, in the order of their indexes.
    pub tables: Vec<String>,
    /// Rows of all tables.
    pub rows: u64,
    /// The tables, to be read at leisure.
    pub view: View,
    /// Where the guest failed, if it did: the batch's first sequence and the reason. The state is
    /// that before it.
    pub halted: Option<(u64, String)>,
}

/// Something that was recorded and does not follow from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The partition.
    pub partition: u32,
    /// The module.
    pub module: String,
    /// The generation.
    pub generation: u32,
    /// Where: sequence of the checkpoint, snapshot, delta record or derived event.
    pub sequence: u64,
    /// What differs, in words: `state-checkpoint`, `snapshot`, `delta`, `live state`, `derived event`; or
    /// `control list`, which is of no module.
    pub what: String,
    /// What was recorded.
    pub recorded: String,
    /// What the log gives.
    pub replayed: String,
}

/// What a verification compared, of one generation's tables in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedModule {
    /// What the log gives.
    pub stamp: Stamp,
    /// Checkpoints in the log that were compared.
    pub checkpoints: u64,
    /// Snapshots that were compared.
    pub snapshots: u64,
    /// Delta records that were compared.
    pub deltas: u64,
    /// Derived events that were compared.
    pub derived: u64,
    /// Whether the running fold's state was compared too.
    pub live: bool,
    /// Why it could not be compared any further than `stamp`, if so: the log does not hold any more
    /// what it is made from.
    pub unverified: Option<String>,
}

/// The answer to "is my state true?".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyReport {
    /// What was compared.
    pub modules: Vec<VerifiedModule>,
    /// What differs. Empty: everything recorded follows from the log.
    pub differences: Vec<Difference>,
}

/// A row that differs between two states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowDifference {
    /// Name of the table.
    pub table: String,
    /// Key.
    pub key: Vec<u8>,
    /// Value on the left; `None`: no row.
    pub left: Option<Vec<u8>>,
    /// Value on the right; `None`: no row.
    pub right: Option<Vec<u8>>,
}

/// Two states of one partition, compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// The partition.
    pub partition: u32,
    /// What the left state was made from.
    pub left: Stamp,
    /// What the right state was made from.
    pub right: Stamp,
    /// How many rows differ.
    pub differing: u64,
    /// The first of them.
    pub rows: Vec<RowDifference>,
    /// First batch after which the states differ: its first and last sequence. `None`: they never do.
    pub first_batch: Option<(u64, u64)>,
}
