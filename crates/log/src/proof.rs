//! Inclusion proofs: that one event is in the history that a chain hash stands for.
//!
//! The proof holds the event itself, its path to the tree of its batch, the batch's fields and path
//! to the root of its
//! segment, and the chain of segment hashes up to the newest seal. Who trusts one published chain
//! hash needs nothing else.
//! The event of an unsealed segment is proven up to a root computed on the fly; its chain ends
//! there (`sealed` is false).
//!
//! `clients/verify-proof` checks the same JSON without any code of this program.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use truthdb_event::EventRef;
use truthdb_io::Storage;

use crate::batch::StoredBatch;
use crate::error::ReadError;
use crate::layout::Place;
use crate::merkle::{
    Hash, PathBuilder, PathStep, TreeBuilder, ZERO_HASH, batch_leaf, chain_hash, event_leaf,
    leaf_of_batch, leaf_of_event, path_shape, root_of_path,
};
use crate::reader::SegmentReader;
use crate::scan::SegmentScan;
use crate::segment::Footer;

/// Version of the proof's JSON.
pub const PROOF_VERSION: u32 = 1;

/// An inclusion proof. All hashes are lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Version of this structure, [`PROOF_VERSION`].
    pub version: u32,
    /// Database id, hexadecimal.
    pub database_id: String,
    /// Partition.
    pub partition: u32,
    /// The event.
    pub event: ProofEvent,
    /// Its batch.
    pub batch: ProofBatch,
    /// Its segment.
    pub segment: ProofSegment,
    /// The segments after it, up to the newest sealed one, ascending.
    pub later_segments: Vec<ProofLink>,
    /// Chain hash of the last segment: what one compares with a published one.
    pub chain: String,
}

/// The event of a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofEvent {
    /// Sequence.
    pub sequence: u64,
    /// Revision in its stream.
    pub revision: u64,
    /// Canonical bytes, base64 (RFC 4648, with padding).
    pub canonical: String,
    /// From the event's leaf to the tree of its batch.
    pub path: Vec<ProofStep>,
}

/// The batch of a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofBatch {
    /// Sequence of its first event.
    pub first_sequence: u64,
    /// Number of events.
    pub event_count: u32,
    /// Time of its events, nanoseconds since 1970 UTC.
    pub timestamp_ns: u64,
    /// From the batch's leaf to the root of its segment.
    pub path: Vec<ProofStep>,
}

/// The segment of a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofSegment {
    /// Segment number.
    pub segment: u32,
    /// Sequence of its first event.
    pub base_sequence: u64,
    /// Sequence of its last event.
    pub last_sequence: u64,
    /// Chain hash of the segment before.
    pub previous_chain: String,
    /// Whether the segment is sealed. If not, its root is that of the events so far and its chain
    /// hash will be another.
    pub sealed: bool,
}

/// A later segment of a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofLink {
    /// Segment number.
    pub segment: u32,
    /// Sequence of its first event.
    pub base_sequence: u64,
    /// Sequence of its last event; `base_sequence - 1` if it has none.
    pub last_sequence: u64,
    /// Root over its batches.
    pub root: String,
}

/// A neighbour on the way up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofStep {
    /// `left` or `right` of the way.
    pub side: Side,
    /// Its hash.
    pub hash: String,
}

/// On which side a neighbour is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The neighbour comes first.
    Left,
    /// The neighbour comes second.
    Right,
}

/// What a checked proof says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Canonical bytes of the event.
    pub canonical: Vec<u8>,
    /// Chain hash that the proof leads to.
    pub chain: Hash,
    /// Number of the segment with that chain hash.
    pub segment: u32,
    /// Whether that segment is sealed.
    pub sealed: bool,
}

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProofError {
    /// Made by a newer program.
    #[error("proof version {found} is not known, only {PROOF_VERSION}")]
    Version {
        /// Version found.
        found: u32,
    },
    /// Text that is not what it should be.
    #[error("{field} is not valid {encoding}")]
    Encoding {
        /// Where.
        field: &'static str,
        /// What it should be.
        encoding: &'static str,
    },
    /// The numbers contradict each other.
    #[error("{0}")]
    Inconsistent(&'static str),
    /// The hashes lead elsewhere.
    #[error("the path leads to the chain hash {found}, the proof claims {claimed}")]
    Chain {
        /// What the path gives.
        found: String,
        /// What the proof claims.
        claimed: String,
    },
}

/// Why no proof could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProveError {
    /// The segment cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The segment does not hold the event.
    #[error("there is no event {sequence} in {path}")]
    NoEvent {
        /// Sequence asked for.
        sequence: u64,
        /// Segment's file.
        path: String,
    },
    /// The segment's events do not give the root of its footer.
    #[error("{path}: its events do not give the root of its footer; run `truthdb verify`")]
    Root {
        /// Segment's file.
        path: String,
    },
}

/// The segment to prove an event of.
#[derive(Debug, Clone, Copy)]
pub enum ProveSegment<'a> {
    /// A sealed segment.
    Sealed(&'a Footer),
    /// An unsealed one: only events up to `data_end` count.
    Unsealed {
        /// Where its data ends, in bytes.
        data_end: u64,
        /// Chain hash of the segment before, [`ZERO_HASH`] for the first.
        previous_chain: Hash,
    },
}

/// Makes the proof of an event. Reads its whole segment.
///
/// `later` are the footers of the sealed segments after it, ascending; ignored for an unsealed segment.
///
/// # Errors
///
/// [`ProveError`].
pub fn prove_event(
    storage: &Arc<dyn Storage>,
    place: Place,
    segment: &ProveSegment<'_>,
    sequence: u64,
    later: &[Footer],
) -> Result<Proof, ProveError> {
    let (reader, header) = SegmentReader::open(storage.as_ref(), place)?;
    let data_end = match segment {
        ProveSegment::Sealed(footer) => footer.data_end,
        ProveSegment::Unsealed { data_end, .. } => *data_end,
    };
    let file = Arc::clone(reader.file());
    let (target, index) = find_batch(storage, &reader, &header, data_end, sequence)?;
    let mut path = PathBuilder::new(index);
    let mut last_sequence = header.base_sequence - 1;
    let mut scan = SegmentScan::new(storage.as_ref(), file, &header, data_end)?;
    while let Some(scanned) = scan.next_batch()? {
        path.push(leaf_of_batch(&scanned.batch));
        last_sequence = scanned.batch.last_sequence();
    }
    let no_event = || ProveError::NoEvent {
        sequence,
        path: reader.path().to_owned(),
    };
    let (batch_path, root) = path.finish().ok_or_else(no_event)?;
    let (previous_chain, sealed) = match segment {
        ProveSegment::Sealed(footer) => {
            if footer.root != root || footer.last_sequence != last_sequence {
                return Err(ProveError::Root {
                    path: reader.path().to_owned(),
                });
            }
            (footer.previous_chain, true)
        }
        ProveSegment::Unsealed { previous_chain, .. } => (*previous_chain, false),
    };
    let later = if sealed { later } else { &[] };
    let own = chain_hash(
        &place,
        header.base_sequence,
        last_sequence,
        &root,
        &previous_chain,
    );
    let chain = later.last().map_or(own, |footer| footer.chain);
    Ok(Proof {
        version: PROOF_VERSION,
        database_id: hex(&place.database_id),
        partition: place.partition,
        event: proof_event(&target, sequence).ok_or_else(no_event)?,
        batch: ProofBatch {
            first_sequence: target.first_sequence,
            event_count: target.event_count,
            timestamp_ns: target.timestamp_ns,
            path: steps(&batch_path),
        },
        segment: ProofSegment {
            segment: place.segment,
            base_sequence: header.base_sequence,
            last_sequence,
            previous_chain: hex(&previous_chain),
            sealed,
        },
        later_segments: later.iter().map(link).collect(),
        chain: hex(&chain),
    })
}

/// The batch that holds a sequence, and its index in the segment.
fn find_batch(
    storage: &Arc<dyn Storage>,
    reader: &SegmentReader,
    header: &crate::segment::SegmentHeader,
    data_end: u64,
    sequence: u64,
) -> Result<(StoredBatch, u64), ProveError> {
    let file = Arc::clone(reader.file());
    let mut scan = SegmentScan::new(storage.as_ref(), file, header, data_end)?;
    let mut index = 0;
    while let Some(scanned) = scan.next_batch()? {
        let batch = scanned.batch;
        if (batch.first_sequence..=batch.last_sequence()).contains(&sequence) {
            return Ok((batch, index));
        }
        index += 1;
    }
    Err(ProveError::NoEvent {
        sequence,
        path: reader.path().to_owned(),
    })
}

fn proof_event(batch: &StoredBatch, sequence: u64) -> Option<ProofEvent> {
    let mut path = PathBuilder::new(sequence - batch.first_sequence);
    batch
        .events()
        .for_each(|event| path.push(leaf_of_event(&event)));
    let event = batch.event_at(sequence)?;
    Some(ProofEvent {
        sequence,
        revision: event.revision,
        canonical: base64_encode(event.bytes),
        path: steps(&path.finish()?.0),
    })
}

fn link(footer: &Footer) -> ProofLink {
    ProofLink {
        segment: footer.place.segment,
        base_sequence: footer.base_sequence,
        last_sequence: footer.last_sequence,
        root: hex(&footer.root),
    }
}

/// Checks a proof on its own. That its chain hash is the one that was published is for the caller to compare.
///
/// # Errors
///
/// [`ProofError`]: why it proves nothing.
pub fn check_proof(proof: &Proof) -> Result<Proven, ProofError> {
    if proof.version != PROOF_VERSION {
        return Err(ProofError::Version {
            found: proof.version,
        });
    }
    check_numbers(proof)?;
    let canonical = base64_decode(&proof.event.canonical).ok_or(ProofError::Encoding {
        field: "event.canonical",
        encoding: "base64",
    })?;
    if EventRef::parse(&canonical).is_err() {
        return Err(ProofError::Inconsistent(
            "the canonical bytes are not an event",
        ));
    }
    let (event, batch, segment) = (&proof.event, &proof.batch, &proof.segment);
    let index = event.sequence - batch.first_sequence;
    check_shape(&event.path, index, u64::from(batch.event_count))?;
    let path = unsteps(&event.path, "event.path")?;
    let events = root_of_path(
        event_leaf(event.sequence, event.revision, &canonical),
        &path,
    );
    let leaf = batch_leaf(
        batch.first_sequence,
        batch.event_count,
        batch.timestamp_ns,
        &events,
    );
    let path = unsteps(&batch.path, "batch.path")?;
    let root = root_of_path(leaf, &path);

    let database_id = unhex(&proof.database_id, "database_id")?;
    let mut place = Place {
        database_id,
        partition: proof.partition,
        segment: segment.segment,
    };
    let previous = unhex(&segment.previous_chain, "segment.previous_chain")?;
    let (base, last) = (segment.base_sequence, segment.last_sequence);
    let mut chain = chain_hash(&place, base, last, &root, &previous);
    for later in &proof.later_segments {
        place.segment = later.segment;
        let root = unhex(&later.root, "later_segments.root")?;
        chain = chain_hash(
            &place,
            later.base_sequence,
            later.last_sequence,
            &root,
            &chain,
        );
    }
    let claimed = unhex(&proof.chain, "chain")?;
    if chain != claimed {
        return Err(ProofError::Chain {
            found: hex(&chain),
            claimed: hex(&claimed),
        });
    }
    Ok(Proven {
        canonical,
        chain,
        segment: place.segment,
        sealed: segment.sealed,
    })
}

/// The numbers must fit each other, so that a path cannot be used for another place than its own.
fn check_numbers(proof: &Proof) -> Result<(), ProofError> {
    let (event, batch, segment) = (&proof.event, &proof.batch, &proof.segment);
    let inside = |first: u64, count: u64, value: u64| {
        value.checked_sub(first).is_some_and(|index| index < count)
    };
    if !inside(
        batch.first_sequence,
        batch.event_count.into(),
        event.sequence,
    ) {
        return Err(ProofError::Inconsistent(
            "the event does not lie in the batch",
        ));
    }
    let batch_last = batch
        .first_sequence
        .checked_add(u64::from(batch.event_count) - 1);
    if batch.first_sequence < segment.base_sequence
        || batch_last.is_none_or(|last| last > segment.last_sequence)
        || segment.base_sequence == 0
    {
        return Err(ProofError::Inconsistent(
            "the batch does not lie in the segment",
        ));
    }
    if segment.segment == 0
        || (segment.segment == 1
            && unhex::<32>(&segment.previous_chain, "segment.previous_chain")? != ZERO_HASH)
    {
        return Err(ProofError::Inconsistent(
            "the chain does not begin with zeros",
        ));
    }
    if !segment.sealed && !proof.later_segments.is_empty() {
        return Err(ProofError::Inconsistent("segments follow an unsealed one"));
    }
    let (mut number, mut last) = (segment.segment, segment.last_sequence);
    for later in &proof.later_segments {
        let follows = number.checked_add(1) == Some(later.segment)
            && last.checked_add(1) == Some(later.base_sequence)
            && later.last_sequence >= last;
        if !follows {
            return Err(ProofError::Inconsistent(
                "a later segment does not follow the one before",
            ));
        }
        (number, last) = (later.segment, later.last_sequence);
    }
    Ok(())
}

/// The root that a batch's events give: for callers that check a batch as a whole.
pub fn events_root(batch: &StoredBatch) -> Hash {
    let mut tree = TreeBuilder::default();
    batch
        .events()
        .for_each(|event| tree.push(leaf_of_event(&event)));
    tree.root()
}

fn steps(path: &[PathStep]) -> Vec<ProofStep> {
    let side = |step: &PathStep| {
        if step.is_left {
            Side::Left
        } else {
            Side::Right
        }
    };
    path.iter()
        .map(|step| ProofStep {
            side: side(step),
            hash: hex(&step.hash),
        })
        .collect()
}

/// A path must have the shape of a leaf's index among so many leaves.
fn check_shape(steps: &[ProofStep], index: u64, count: u64) -> Result<(), ProofError> {
    let shape = path_shape(index, count);
    let fits = shape
        .iter()
        .zip(steps)
        .all(|(left, step)| (step.side == Side::Left) == *left);
    if shape.len() != steps.len() || !fits {
        return Err(ProofError::Inconsistent(
            "a path does not have the shape of its index",
        ));
    }
    Ok(())
}

fn unsteps(steps: &[ProofStep], field: &'static str) -> Result<Vec<PathStep>, ProofError> {
    let step = |step: &ProofStep| {
        Ok(PathStep {
            hash: unhex(&step.hash, field)?,
            is_left: step.side == Side::Left,
        })
    };
    steps.iter().map(step).collect()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn unhex<const N: usize>(text: &str, field: &'static str) -> Result<[u8; N], ProofError> {
    let error = ProofError::Encoding {
        field,
        encoding: "lower-case hexadecimal of its length",
    };
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return Err(error);
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(error),
        }
    }
    Ok(bytes)
}

fn base64_encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn base64_decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
