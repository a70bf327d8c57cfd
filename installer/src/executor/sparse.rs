//! A file system image in memory that remembers which blocks were written.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes of a block: a multiple of every sector, page and cluster we make.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

/// An image of a fixed size. Blocks that were never written read as zeros and take no memory.
#[derive(Debug)]
pub struct SparseImage {
    bytes: u64,
    position: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl SparseImage {
    /// An empty image of this many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> SparseImage {
        SparseImage {
            bytes,
            position: 0,
            blocks: BTreeMap::new(),
        }
    }

    /// The blocks that were written, with the offset of each, in ascending order. The last one may
    /// reach beyond the image's end.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let offset = |index: &u64| index * BLOCK_BYTES as u64;
        self.blocks
            .iter()
            .map(move |(index, block)| (offset(index), &block[..]))
    }

    /// The same, to be changed.
    pub(super) fn blocks_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.blocks.values_mut().map(|block| &mut block[..])
    }

    /// Number of blocks that were written.
    pub(super) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The piece at the current position that lies in one block: its block, and its place there.
    fn piece(&self, wanted: usize) -> (u64, usize, usize) {
        let left = self.bytes.saturating_sub(self.position);
        let within = self.position % BLOCK_BYTES as u64;
        let room = (BLOCK_BYTES as u64 - within).min(left);
        let length = usize::try_from(room).unwrap_or(BLOCK_BYTES).min(wanted);
        let start = usize::try_from(within).unwrap_or(0);
        (self.position / BLOCK_BYTES as u64, start, length)
    }
}

impl Read for SparseImage {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let (index, start, length) = self.piece(out.len());
        match self.blocks.get(&index) {
            Some(block) => out[..length].copy_from_slice(&block[start..start + length]),
            None => out[..length].fill(0),
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl Write for SparseImage {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (index, start, length) = self.piece(bytes.len());
        if length > 0 {
            let empty = || vec![0u8; BLOCK_BYTES].into_boxed_slice();
            let block = self.blocks.entry(index).or_insert_with(empty);
            block[start..start + length].copy_from_slice(&bytes[..length]);
        }
        self.position += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for SparseImage {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_reads_what_a_plain_vector_would(
            writes in prop::collection::vec((0u64..300_000, 1usize..100_000, any::<u8>()), 0..8)
        ) {
            let bytes = 300_000u64;
            let mut model = std::io::Cursor::new(vec![0u8; 300_000]);
            let mut image = SparseImage::new(bytes);
            for (at, length, value) in writes {
                let length = length.min(usize::try_from(bytes - at).unwrap());
                let piece = vec![value; length];
                for disk in [&mut model as &mut dyn WriteSeek, &mut image] {
                    disk.seek(SeekFrom::Start(at)).unwrap();
                    disk.write_all(&piece).unwrap();
                }
            }
            let mut found = Vec::new();
            image.rewind().unwrap();
            image.read_to_end(&mut found).unwrap();
            prop_assert!(found == model.into_inner());
        }
    }

    trait WriteSeek: Write + Seek {}
    impl<T: Write + Seek> WriteSeek for T {}

    #[test]
    fn nothing_can_be_written_behind_the_end() {
        let mut image = SparseImage::new(10);
        image.seek(SeekFrom::Start(8)).unwrap();
        assert_eq!(image.write(b"abc").unwrap(), 2);
        assert_eq!(image.write(b"c").unwrap(), 0);
        assert!(image.seek(SeekFrom::Current(-11)).is_err());
    }
}
