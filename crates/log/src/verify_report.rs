//! What verification says.

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; the database deals with it.
    Note,
    /// Something derived is wrong and will be made again.
    Warning,
    /// Events are damaged or missing, or cannot be read.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// File, relative to the data directory.
    pub path: String,
    /// Where in the file, in bytes, if it is at one place.
    pub offset: Option<u64>,
    /// First sequence concerned, if known.
    pub first_sequence: Option<u64>,
    /// Last sequence concerned, if known.
    pub last_sequence: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// How far verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress<'a> {
    /// File being read.
    pub path: &'a str,
    /// Bytes of segments read.
    pub bytes_done: u64,
    /// Bytes of all segments.
    pub bytes_total: u64,
}

/// What verification saw.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VerifyReport {
    /// Segments read.
    pub segments: u64,
    /// Events read and found whole.
    pub events: u64,
    /// Bytes of segments read.
    pub bytes: u64,
    /// For each partition: number, newest sealed segment and its chain hash in hexadecimal.
    pub chains: Vec<(u32, u32, String)>,
    /// Whether the caller ended it early.
    pub interrupted: bool,
    /// What is wrong, in the order of the files.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// The worst finding.
    pub fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}
