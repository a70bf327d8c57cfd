//! Verification: everything that was written is read back from the medium.

use super::{CHUNK_BYTES, Cause, Run, Step, esp, ext4, tables};
use crate::plan::Sha256;

/// Compares bytes first, then what they mean. The answer is how many bytes were compared, and what
/// `e2fsck` said.
pub(super) fn run(run: &mut Run<'_>) -> Result<(u64, String), Cause> {
    let written = std::mem::take(&mut run.written);
    let total: u64 = written.iter().map(|piece| piece.range.bytes()).sum();
    run.begin(Step::Verify, total);
    let mut done = 0;
    let mut buffer = vec![0u8; CHUNK_BYTES];
    for piece in &written {
        let bytes = piece.range.bytes();
        let length = usize::try_from(bytes).unwrap_or(CHUNK_BYTES);
        if length > buffer.len() {
            buffer.resize(length, 0);
        }
        run.read(piece.range.start, &mut buffer[..length])?;
        if Sha256::of(&buffer[..length]) != piece.sha256 {
            return Err(Cause::Mismatch {
                offset: piece.range.start,
            });
        }
        done += bytes;
        run.tell(done, total);
    }
    tables::verify(run)?;
    esp::verify(run)?;
    let said = ext4::verify(run)?;
    Ok((total, said))
}
