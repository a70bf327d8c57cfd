//! Bytes at any offset and of any length on files that know only whole blocks.

use std::io;
use std::sync::Arc;

use truthdb_io::{AlignedBuf, BLOCK_BYTES, File, OpenMode, Storage};

use crate::limits::{to_u64, to_usize};

/// Most bytes that one read or write moves.
const PIECE_BYTES: usize = 256 * 1024;

const _: () = assert!(PIECE_BYTES.is_multiple_of(BLOCK_BYTES));

/// Rounds up to a whole block.
pub(crate) const fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Writes `bytes` from `offset` (a whole block) on, padded with zeros to a whole block. Not durable.
pub(crate) fn write(file: &dyn File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut buf = AlignedBuf::new_zeroed(align(bytes.len()).min(PIECE_BYTES));
    let mut at = offset;
    for piece in bytes.chunks(PIECE_BYTES) {
        let padded = align(piece.len());
        buf[..piece.len()].copy_from_slice(piece);
        buf[piece.len()..padded].fill(0);
        file.write_at(&buf, padded, at)?;
        at += to_u64(padded);
    }
    Ok(())
}

/// Up to `bytes` bytes from `offset` on, fewer only at the end of the file.
pub(crate) fn read(file: &dyn File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let block = to_u64(BLOCK_BYTES);
    let skip = to_usize(offset % block);
    let mut at = offset - offset % block;
    let wanted = skip.saturating_add(bytes);
    let mut buf = AlignedBuf::new_zeroed(align(wanted.min(PIECE_BYTES)));
    let mut read = Vec::with_capacity(align(wanted.min(PIECE_BYTES)));
    while read.len() < wanted {
        let piece = align((wanted - read.len()).min(PIECE_BYTES));
        let got = file.read_at(&mut buf, piece, at)?;
        read.extend_from_slice(&buf[..got]);
        at += to_u64(got);
        if got < piece {
            break;
        }
    }
    read.truncate(wanted);
    read.drain(..skip.min(read.len()));
    Ok(read)
}

/// The whole file, if it has at most `bytes_max` bytes.
pub(crate) fn read_file(storage: &dyn Storage, path: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = storage.open(path, OpenMode::Read)?;
    let bytes = file.len()?;
    if bytes > bytes_max {
        let text = format!("{bytes} bytes are more than the {bytes_max} that it may have");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    read(&*file, 0, to_usize(bytes))
}

/// Makes a new file with these bytes, padded to a whole block, and syncs it. Its name is not durable
/// before its directory is. A file that is in the way is removed: it was never part of anything.
pub(crate) fn write_new(storage: &dyn Storage, path: &str, bytes: &[u8]) -> io::Result<()> {
    let file = create(storage, path)?;
    write(&*file, bytes, 0)?;
    file.sync()
}

/// Makes a new file, in place of one that is there.
pub(crate) fn create(storage: &dyn Storage, path: &str) -> io::Result<Arc<dyn File>> {
    match storage.open(path, OpenMode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            storage.durable_remove(path)?;
            storage.open(path, OpenMode::CreateNew)
        }
        result => result,
    }
}

/// Removes a file that may be gone already.
pub(crate) fn remove(storage: &dyn Storage, path: &str) -> io::Result<()> {
    match storage.durable_remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use truthdb_io::sim::SimWorld;

    use super::*;

    #[test]
    fn any_range_of_a_file_is_read() {
        let world = SimWorld::new(1);
        let storage = world.storage();
        let bytes: Vec<u8> = (0..600_000_u32)
            .map(|n| n.to_le_bytes()[n as usize % 3])
            .collect();
        write_new(&*storage, "file", &bytes).unwrap();
        let file = storage.open("file", OpenMode::Read).unwrap();
        for (offset, length) in [
            (0, 1),
            (1, 5000),
            (4095, 2),
            (4096, 0),
            (7, 599_000),
            (123, 300_000),
        ] {
            let found = read(&*file, offset as u64, length).unwrap();
            assert_eq!(found, bytes[offset..offset + length], "{offset} {length}");
        }
        let padded = align(bytes.len());
        let tail = read(&*file, 599_999, 1 << 20).unwrap();
        assert_eq!(tail.len(), padded - 599_999);
        assert_eq!(tail[0], bytes[599_999]);
        assert!(read(&*file, to_u64(padded) + 9, 10).unwrap().is_empty());
        assert!(read_file(&*storage, "file", 4096).is_err());
        write_new(&*storage, "file", b"again").unwrap();
        assert_eq!(
            read_file(&*storage, "file", 4096).unwrap()[..6],
            *b"again\0"
        );
    }
}
