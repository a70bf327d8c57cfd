//! A test of the disk before anything is made on it: marks are written at places all over it, then
//! all of them are read back. A disk that is smaller than it says folds later places onto earlier
//! ones; one that is broken refuses or forgets.

use super::{Cause, Run, Step};
use crate::plan::Sha256;

/// Bytes of a mark.
const MARK_BYTES: usize = 64 << 10;

pub(super) fn run(run: &mut Run<'_>) -> Result<(), Cause> {
    let places = run.plan.probes.clone();
    if places.is_empty() {
        return Ok(());
    }
    let total = (2 * places.len() * MARK_BYTES) as u64;
    run.begin(Step::ProbeDisk, total);
    let mut done = 0;
    for place in &places {
        run.write_unchecked(*place, &mark(run, *place))?;
        done += MARK_BYTES as u64;
        run.tell(done, total);
    }
    run.flush()?;
    let mut found = vec![0u8; MARK_BYTES];
    for place in &places {
        run.read(*place, &mut found)?;
        if found != mark(run, *place) {
            return Err(Cause::Mismatch { offset: *place });
        }
        done += MARK_BYTES as u64;
        run.tell(done, total);
    }
    // The marks at both ends lie where nothing may be found if the power goes now.
    let zeros = vec![0u8; MARK_BYTES];
    for place in &places {
        run.write_unchecked(*place, &zeros)?;
    }
    run.flush()
}

/// Bytes that name the disk and the place.
fn mark(run: &Run<'_>, place: u64) -> Vec<u8> {
    let mut seed = run.plan.disk_id.as_bytes().to_vec();
    seed.extend_from_slice(&place.to_le_bytes());
    let mut bytes = Vec::with_capacity(MARK_BYTES);
    let mut block = Sha256::of(&seed);
    while bytes.len() < MARK_BYTES {
        bytes.extend_from_slice(&block.0);
        block = Sha256::of(&block.0);
    }
    bytes
}
