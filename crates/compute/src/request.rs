//! What callers ask for: plain values, no behaviour.

use bytes::Bytes;
use truthdb_module::{Limits, WasiProfile};

use crate::token::Token;

/// BLAKE3 of a module's bytes: its name in the content store and in the log.
pub type ModuleHash = [u8; 32];

/// Most rows of one page of a scan or query, each partition.
pub const PAGE_ROWS_MAX: u32 = 10_000;
/// Bytes of keys and values of one page of a scan, each partition; one row more may be in it.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// Longest argument of a query operator, in bytes.
pub const QUERY_ARGUMENTS_BYTES_MAX: usize = 1 << 20;
/// Longest module, in bytes.
pub const MODULE_BYTES_MAX: usize = 32 << 20;
/// Longest name of a module, in bytes of `a` to `z`, `0` to `9`, `-`.
pub const MODULE_NAME_BYTES_MAX: usize = 64;
/// Longest reason that an operator gives, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

/// The moment that a query looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum At {
    /// What is applied now.
    #[default]
    Now,
    /// The state as of exactly these sequences; partitions that the token does not name are not
    /// asked. The answer has the same bytes for ever.
    Token(Token),
    /// The state as of the last event with this time or an earlier one, nanoseconds UTC. While the
    /// time lies in the future this is what is committed now; the answer's token names it.
    Time(u64),
}

/// What all queries have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// The moment.
    pub at: At,
    /// The state must have applied at least these sequences; the query waits for that within its
    /// deadline. `None`: whatever is applied.
    pub min_sequence: Option<Token>,
    /// Milliseconds until an error is returned instead of an answer. `None`: the configured
    /// default ([`crate::ComputeConfig::query_deadline`]), which is also the most.
    pub deadline_ms: Option<u64>,
    /// Ask this generation of the module instead of the one that was current at the moment:
    /// re-derived history under another code.
    pub generation: Option<u32>,
}

/// A read of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetRequest {
    /// The module, by name.
    pub module: String,
    /// The table, by name.
    pub table: String,
    /// The key.
    pub key: Vec<u8>,
    /// The partition; `None`: all of them, since only the module knows which one has the key.
    pub partition: Option<u32>,
    /// Moment and bounds.
    pub options: ReadOptions,
}

/// A read of a range of keys, in bytewise order over all partitions that are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRequest {
    /// The module, by name.
    pub module: String,
    /// The table, by name.
    pub table: String,
    /// Keys from here on, included.
    pub start: Vec<u8>,
    /// Keys before this. `None`: to the end. For a prefix use [`ScanRequest::prefix_end`].
    pub end: Option<Vec<u8>>,
    /// Last key first.
    pub reverse: bool,
    /// At most this many rows (1 to [`PAGE_ROWS_MAX`]; a key that several partitions have is
    /// returned whole, so a few more are possible).
    pub limit: u32,
    /// The page token of the answer before ([`RowsAnswer::next`](crate::RowsAnswer::next)). It
    /// holds the place and the moment; `options.at` is ignored then.
    pub page: Option<Vec<u8>>,
    /// The partition; `None`: all.
    pub partition: Option<u32>,
    /// Moment and bounds.
    pub options: ReadOptions,
}

impl ScanRequest {
    /// The end of the range of keys that begin with `prefix`: the next prefix in bytewise order;
    /// `None` if there is none.
    pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
        let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
        let mut end = prefix[..=last].to_vec();
        end[last] += 1;
        Some(end)
    }
}

/// A call of a query operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryRequest {
    /// The operator, a module of kind `query`, by name.
    pub operator: String,
    /// What it is asked; the operator's own encoding, at most [`QUERY_ARGUMENTS_BYTES_MAX`].
    pub arguments: Vec<u8>,
    /// The partition; `None`: all.
    pub partition: Option<u32>,
    /// Moment and bounds.
    pub options: ReadOptions,
}

/// How a new generation of a module begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationMode {
    /// From the first event, beside the generation that answers now; it takes over once it has
    /// caught up. For a name that has no generation yet it answers at once, as far as it has got.
    #[default]
    Rebuild,
    /// With the tables of the generation before (none, for a first one), from here on. If that one
    /// is halted, from the batch that it is halted at.
    Continue,
    /// As `Continue`, after one call of the new code's `migrate`.
    Migrate,
}

impl ActivationMode {
    /// The name used in events, options and answers.
    pub fn name(self) -> &'static str {
        match self {
            ActivationMode::Rebuild => "rebuild",
            ActivationMode::Continue => "continue",
            ActivationMode::Migrate => "migrate",
        }
    }
}

/// Activation of a published module, in all partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivateRequest {
    /// Hash of the published bytes. Their manifest names the module.
    pub hash: ModuleHash,
    /// How it begins, if there is a generation before.
    pub mode: ActivationMode,
    /// Limits, recorded with the activation.
    pub limits: Limits,
    /// WASI profile, recorded with the activation.
    pub wasi: WasiProfile,
}

/// The operator's decision that a module is not given some events of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkipRequest {
    /// The module, by name.
    pub module: String,
    /// The partition.
    pub partition: u32,
    /// First sequence that is skipped: not before the batch that the module is halted at.
    pub first_sequence: u64,
    /// Last one.
    pub last_sequence: u64,
    /// Why, at most [`REASON_BYTES_MAX`] bytes; recorded.
    pub reason: String,
}

/// Which code a replay runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayCode {
    /// What the log says: each event is given to the generation whose turn it was. The generation is
    /// that whose tables are made; `None`: the current one.
    Recorded {
        /// The generation.
        generation: Option<u32>,
    },
    /// This published module from the first event on, activated or not.
    Published {
        /// Its hash.
        hash: ModuleHash,
    },
    /// These bytes from the first event on; nothing is published.
    Bytes {
        /// The component.
        wasm: Bytes,
    },
}

/// Re-application of the log to a module, beside everything that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayRequest {
    /// The module, by name. For [`ReplayCode::Published`] and [`ReplayCode::Bytes`] it may be
    /// another name than the code's own manifest says.
    pub module: String,
    /// Which code.
    pub code: ReplayCode,
    /// The partition; `None`: all, one after another.
    pub partition: Option<u32>,
    /// Where to stop; `Now`: what is committed when the replay begins.
    pub to: At,
    /// Report the changes of batches from this sequence on to the sink. `None`: none of them.
    pub changes_from: Option<u64>,
}

/// A comparison of two codes, or of a code with what is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareRequest {
    /// The module, by name.
    pub module: String,
    /// One side.
    pub left: ReplayCode,
    /// The other side.
    pub right: ReplayCode,
    /// The partition; `None`: all.
    pub partition: Option<u32>,
    /// The moment at which the states are compared.
    pub to: At,
    /// At most this many differing rows are returned, each partition; all are counted.
    pub rows_max: usize,
}

/// A check of recorded state against the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyRequest {
    /// The module, by name; `None`: all of them.
    pub module: Option<String>,
    /// The partition; `None`: all.
    pub partition: Option<u32>,
    /// Where to stop; `Now`: what is committed when the check begins.
    pub to: At,
}
