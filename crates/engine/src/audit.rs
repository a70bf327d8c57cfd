//! Proof and verification of an open database.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use truthdb_log::{
    Footer, Proof, ProveError, ProveSegment, VerifyProgress, VerifyReport, prove_event,
    verify_open_database,
};

use crate::engine::Engine;
use crate::error::ReadError;
use crate::shared::SegmentBody;

impl Engine {
    /// Makes the proof that a committed event is part of the partition's history. Reads the event's
    /// whole segment.
    ///
    /// # Errors
    /// [`ReadError::Trimmed`], [`ReadError::Invalid`] if the event is not committed or waits for
    /// the seal of an earlier
    /// segment, [`ReadError::Prove`] if the segment is damaged.
    pub fn prove(&self, partition: u32, sequence: u64) -> Result<Proof, ReadError> {
        let shared = self.shared(partition)?;
        let view = shared.view();
        let committed = shared.committed();
        if sequence == 0 || sequence > committed {
            return Err(ReadError::Invalid {
                reason: format!(
                    "sequence {sequence} is not committed; the last one of partition {partition} is {committed}"
                ),
            });
        }
        let located = view
            .locate(sequence)
            .filter(|_| sequence >= view.first_sequence);
        let Some(at) = located else {
            let first_sequence = view.first_sequence;
            return Err(ReadError::Trimmed {
                partition,
                sequence,
                first_sequence,
            });
        };
        let segment = &view.segments[at];
        let place = self.inner.manifest.place(partition, segment.number);
        let prove = |part: &ProveSegment<'_>, later: &[Footer]| {
            prove_event(&self.inner.world.storage, place, part, sequence, later).map_err(
                |source: ProveError| ReadError::Prove {
                    source: Arc::new(source),
                },
            )
        };
        match segment.body() {
            SegmentBody::Sealed(sealed) => {
                let later: Vec<Footer> = view.segments[at + 1..]
                    .iter()
                    .map_while(|segment| match segment.body() {
                        SegmentBody::Sealed(sealed) => Some(sealed.footer),
                        SegmentBody::Unsealed(_) => None,
                    })
                    .collect();
                prove(&ProveSegment::Sealed(&sealed.footer), &later)
            }
            SegmentBody::Unsealed(unsealed) => {
                let previous_chain = match at.checked_sub(1).map(|b| view.segments[b].body()) {
                    None => shared.chain_before_first(),
                    Some(SegmentBody::Sealed(sealed)) => sealed.footer.chain,
                    Some(SegmentBody::Unsealed(_)) => {
                        return Err(ReadError::Invalid {
                            reason: "the segment before the event's is being sealed; try again in a moment"
                                .to_owned(),
                        });
                    }
                };
                let data_end = unsealed.end_offset.load(Ordering::Acquire);
                prove(
                    &ProveSegment::Unsealed {
                        data_end,
                        previous_chain,
                    },
                    &[],
                )
            }
        }
    }

    /// Verifies the sealed segments of a partition, or of all, while the database is open. `deep`
    /// also follows every stream
    /// from segment to segment. `progress` ends the work by [`ControlFlow::Break`].
    ///
    /// # Errors
    /// [`ReadError::NoSuchPartition`]. What is wrong with the data is in the report.
    pub fn verify(
        &self,
        partition: Option<u32>,
        deep: bool,
        progress: &mut dyn FnMut(VerifyProgress<'_>) -> ControlFlow<()>,
    ) -> Result<VerifyReport, ReadError> {
        let count = self.partition_count();
        let partitions: Vec<u32> = match partition {
            Some(partition) if partition >= count => {
                return Err(ReadError::NoSuchPartition { partition, count });
            }
            Some(partition) => vec![partition],
            None => (0..count).collect(),
        };
        let first_segment = |partition: u32| {
            let view = self.shared(partition).map(|shared| shared.view());
            view.ok()
                .and_then(|view| view.segments.first().map(|segment| segment.number))
                .unwrap_or(0)
        };
        Ok(verify_open_database(
            &self.inner.world.storage,
            &self.inner.manifest,
            &partitions,
            deep,
            &first_segment,
            progress,
        ))
    }
}
