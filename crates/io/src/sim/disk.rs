//! The simulated medium: blocks of files, durable and volatile, and the names that lead to them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::names::Names;
use super::prng::SimPrng;
use crate::BLOCK_BYTES;

/// Smallest unit that a device writes whole, in bytes: a torn write mixes old and new sectors.
const SECTOR_BYTES: usize = 512;

const BLOCK: u64 = BLOCK_BYTES as u64;

type Block = Arc<[u8; BLOCK_BYTES]>;

/// Orders changes in time.
pub(super) type Stamp = u64;

/// One block of a file: what is on the medium, and later contents that still may be lost.
#[derive(Debug, Clone)]
struct Cell {
    durable: Block,
    volatile: Vec<(Stamp, Block)>,
    /// A sync failed and forgot these volatile contents: they are seen, but never become durable.
    doomed: bool,
}

impl Cell {
    fn current(&self) -> &Block {
        self.volatile
            .last()
            .map_or(&self.durable, |(_, block)| block)
    }

    /// Makes what was written until `limit` durable.
    fn flush(&mut self, limit: Stamp) {
        if self.doomed {
            return;
        }
        let count = self.volatile.partition_point(|(stamp, _)| *stamp <= limit);
        if let Some((_, block)) = self.volatile.drain(..count).next_back() {
            self.durable = block;
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Inode {
    durable_len: u64,
    volatile_lens: Vec<(Stamp, u64)>,
    /// Absent blocks are zero.
    cells: BTreeMap<u64, Cell>,
    /// Blocks with volatile contents.
    dirty: BTreeSet<u64>,
    /// Blocks that cannot be read until they are written again.
    unreadable: BTreeSet<u64>,
    /// Open files; the inode lives on without a name as long as there are some.
    handles: usize,
}

impl Inode {
    fn len(&self) -> u64 {
        self.volatile_lens
            .last()
            .map_or(self.durable_len, |(_, len)| *len)
    }

    fn flush_data(&mut self, limit: Stamp) {
        let cells = &mut self.cells;
        self.dirty.retain(|index| {
            let Some(cell) = cells.get_mut(index) else {
                return false;
            };
            cell.flush(limit);
            !cell.volatile.is_empty()
        });
    }

    fn flush_len(&mut self, limit: Stamp) {
        let count = self
            .volatile_lens
            .partition_point(|(stamp, _)| *stamp <= limit);
        if let Some((_, len)) = self.volatile_lens.drain(..count).next_back() {
            self.durable_len = len;
        }
    }
}

/// A write that was under way when power failed.
pub(super) struct Interrupted<'a> {
    pub(super) inode: u64,
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
}

/// Files and their names.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    pub(super) names: Names,
    /// Of the newest change.
    stamp: Stamp,
    /// Size of the file system in bytes.
    pub(super) capacity: u64,
    /// All zero blocks are this one: reserved and zeroed space costs no memory.
    zero: Block,
}

impl Disk {
    pub(super) fn new(capacity: u64) -> Disk {
        Disk {
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: Names::default(),
            stamp: 0,
            capacity,
            zero: Arc::new([0; BLOCK_BYTES]),
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }

    fn inode(&self, inode: u64) -> &Inode {
        self.inodes
            .get(&inode)
            .expect("inodes live as long as names and handles")
    }

    fn inode_mut(&mut self, inode: u64) -> &mut Inode {
        self.inodes
            .get_mut(&inode)
            .expect("inodes live as long as names and handles")
    }

    /// A new empty file without a name.
    pub(super) fn create(&mut self) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        inode
    }

    pub(super) fn acquire(&mut self, inode: u64) {
        self.inode_mut(inode).handles += 1;
    }

    pub(super) fn release(&mut self, inode: u64) {
        self.inode_mut(inode).handles -= 1;
        self.collect();
    }

    /// Forgets files that neither names nor handles lead to.
    pub(super) fn collect(&mut self) {
        let named = self.names.inodes();
        self.inodes
            .retain(|inode, node| node.handles > 0 || named.contains(inode));
    }

    /// Nothing is open: a disk that is put into another machine, or the same one after a boot.
    pub(super) fn close_all(&mut self) {
        for node in self.inodes.values_mut() {
            node.handles = 0;
        }
        self.collect();
    }

    pub(super) fn len(&self, inode: u64) -> u64 {
        self.inode(inode).len()
    }

    /// Bytes in use: lengths in whole blocks.
    pub(super) fn used(&self) -> u64 {
        self.inodes
            .values()
            .map(|node| node.len().next_multiple_of(BLOCK))
            .sum()
    }

    /// Whether a file can grow to `len`.
    pub(super) fn has_room(&self, inode: u64, len: u64) -> bool {
        let present = self.len(inode).next_multiple_of(BLOCK);
        let growth = len.next_multiple_of(BLOCK).saturating_sub(present);
        self.used().saturating_add(growth) <= self.capacity
    }

    pub(super) fn set_len(&mut self, inode: u64, len: u64) {
        self.stamp += 1;
        let (stamp, zero) = (self.stamp, Arc::clone(&self.zero));
        let node = self.inode_mut(inode);
        let old = node.len();
        if len == old {
            return;
        }
        node.volatile_lens.push((stamp, len));
        if len > old {
            return;
        }
        for (index, cell) in node.cells.range_mut(len / BLOCK..) {
            let block = cut(cell.current(), *index, len, &zero);
            cell.volatile.push((stamp, block));
            cell.doomed = false;
            node.dirty.insert(*index);
        }
    }

    /// Reads up to the end of the file; `EIO` from unreadable blocks.
    pub(super) fn read(&self, inode: u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let node = self.inode(inode);
        let left = node.len().saturating_sub(offset);
        let bytes = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        let end = offset + bytes as u64;
        if bytes > 0
            && node
                .unreadable
                .range(offset / BLOCK..=(end - 1) / BLOCK)
                .next()
                .is_some()
        {
            return Err(super::faults::fault_error(super::SimFault::Latent));
        }
        for (index, within, range) in pieces(offset, bytes) {
            let block = node.cells.get(&index).map_or(&self.zero, Cell::current);
            into[range.clone()].copy_from_slice(&block[within..within + range.len()]);
        }
        Ok(bytes)
    }

    /// Writes, extending the file; with `durable`, these blocks (and a length that they extend)
    /// survive.
    pub(super) fn write(&mut self, inode: u64, offset: u64, bytes: &[u8], durable: bool) {
        self.stamp += 1;
        let (stamp, zero) = (self.stamp, Arc::clone(&self.zero));
        let node = self.inode_mut(inode);
        for (index, within, range) in pieces(offset, bytes.len()) {
            let cell = node.cells.entry(index).or_insert_with(|| new_cell(&zero));
            let piece = &bytes[range];
            let block = overwrite(cell.current(), within, piece, &zero);
            cell.doomed = false;
            if durable {
                cell.durable = block;
                cell.volatile.clear();
                node.dirty.remove(&index);
            } else {
                cell.volatile.push((stamp, block));
                node.dirty.insert(index);
            }
            node.unreadable.remove(&index);
        }
        let end = offset + bytes.len() as u64;
        if end > node.len() {
            node.volatile_lens.push((stamp, end));
        }
        // As with O_DSYNC: the length that is needed to read the data back is durable with it.
        if durable && end > node.durable_len {
            node.flush_len(stamp);
        }
    }

    /// Stores each sector of a failed write or leaves it.
    pub(super) fn write_part(&mut self, inode: u64, offset: u64, bytes: &[u8], prng: &mut SimPrng) {
        let mut at = offset;
        for sector in bytes.chunks(SECTOR_BYTES) {
            if prng.coin() && at + sector.len() as u64 <= self.len(inode) {
                self.write(inode, at, sector, false);
            }
            at += sector.len() as u64;
        }
    }

    /// Stores a write where it does not belong: another place of the same file, or another file.
    /// Writes nothing beyond the end of that file.
    pub(super) fn write_elsewhere(
        &mut self,
        inode: u64,
        bytes: &[u8],
        durable: bool,
        prng: &mut SimPrng,
    ) {
        let target = if prng.coin() {
            self.other_inode(prng)
        } else {
            inode
        };
        let Some(offset) = self.random_block(target, prng) else {
            return;
        };
        let room = self.len(target) - offset;
        let bytes = usize::try_from(room).map_or(bytes, |room| &bytes[..room.min(bytes.len())]);
        self.write(target, offset, bytes, durable);
    }

    fn other_inode(&self, prng: &mut SimPrng) -> u64 {
        let pick = usize::try_from(prng.below(self.inodes.len() as u64));
        let pick = pick.expect("below a number of inodes");
        *self
            .inodes
            .keys()
            .nth(pick)
            .expect("below the number of inodes")
    }

    /// The offset of some block of a file; none if it is empty.
    pub(super) fn random_block(&self, inode: u64, prng: &mut SimPrng) -> Option<u64> {
        let blocks = self.len(inode).div_ceil(BLOCK);
        (blocks > 0).then(|| prng.below(blocks) * BLOCK)
    }

    /// Makes a file's data and length of until `limit` durable, and, as the device's cache is one,
    /// all other files' data too.
    pub(super) fn flush(&mut self, inode: u64, limit: Stamp) {
        self.flush_device(limit);
        self.inode_mut(inode).flush_len(limit);
    }

    /// Makes data of all files durable that was written until `limit`.
    pub(super) fn flush_device(&mut self, limit: Stamp) {
        for node in self.inodes.values_mut() {
            if !node.dirty.is_empty() {
                node.flush_data(limit);
            }
        }
    }

    /// A sync failed: some of the file's volatile blocks will never become durable.
    pub(super) fn doom(&mut self, inode: u64, prng: &mut SimPrng) {
        let node = self.inode_mut(inode);
        for index in &node.dirty {
            if let Some(cell) = node.cells.get_mut(index) {
                cell.doomed |= prng.coin();
            }
        }
    }

    /// Makes the blocks of a range unreadable until they are written again.
    pub(super) fn make_unreadable(&mut self, inode: u64, offset: u64, bytes: u64) {
        let node = self.inode_mut(inode);
        node.unreadable
            .extend(offset / BLOCK..(offset + bytes).div_ceil(BLOCK));
    }

    /// Flips the bits of `mask` in one byte, on the medium and in every volatile content.
    pub(super) fn flip(&mut self, inode: u64, offset: u64, mask: u8) {
        let zero = Arc::clone(&self.zero);
        let node = self.inode_mut(inode);
        let at = usize::try_from(offset % BLOCK).expect("below the size of a block");
        let cell = node
            .cells
            .entry(offset / BLOCK)
            .or_insert_with(|| new_cell(&zero));
        let volatile = cell.volatile.iter_mut().map(|(_, block)| block);
        for block in std::iter::once(&mut cell.durable).chain(volatile) {
            Arc::make_mut(block)[at] ^= mask;
        }
    }

    /// Power fails. Of each volatile sector any of its contents may have reached the medium, of
    /// each interrupted write all, nothing, or some sectors; of lengths any; of directory changes
    /// each or not.
    pub(super) fn crash(&mut self, interrupted: &[Interrupted<'_>], prng: &mut SimPrng) {
        for write in interrupted {
            self.crash_write(write, prng);
        }
        let zero = Arc::clone(&self.zero);
        for node in self.inodes.values_mut() {
            node.crash(&zero, prng);
        }
        self.names.crash(prng);
        self.collect();
    }

    /// Adds what an interrupted write may have stored to the volatile contents.
    fn crash_write(&mut self, write: &Interrupted<'_>, prng: &mut SimPrng) {
        match prng.below(4) {
            0 => {}
            1 => self.write(write.inode, write.offset, write.bytes, true),
            _ => {
                let mut at = write.offset;
                for sector in write.bytes.chunks(SECTOR_BYTES) {
                    if prng.coin() {
                        self.write(write.inode, at, sector, false);
                    }
                    at += sector.len() as u64;
                }
            }
        }
    }
}

impl Inode {
    fn crash(&mut self, zero: &Block, prng: &mut SimPrng) {
        for index in std::mem::take(&mut self.dirty) {
            let Some(cell) = self.cells.get_mut(&index) else {
                continue;
            };
            let mut mixed = *cell.durable;
            for (number, sector) in mixed.chunks_mut(SECTOR_BYTES).enumerate() {
                let pick = usize::try_from(prng.below(cell.volatile.len() as u64 + 1));
                let pick = pick.expect("below a number of versions");
                if let Some((_, block)) = cell.volatile.get(pick) {
                    let start = number * SECTOR_BYTES;
                    sector.copy_from_slice(&block[start..start + SECTOR_BYTES]);
                }
            }
            *cell = Cell {
                durable: Arc::new(mixed),
                volatile: Vec::new(),
                doomed: false,
            };
        }
        let pick = usize::try_from(prng.below(self.volatile_lens.len() as u64 + 1));
        let pick = pick.expect("below a number of lengths");
        if let Some((_, len)) = self.volatile_lens.get(pick) {
            self.durable_len = *len;
        }
        self.volatile_lens.clear();
        self.handles = 0;
        let len = self.durable_len;
        // What is beyond the end is gone: a file that grows again is zero there.
        self.cells.retain(|index, _| index * BLOCK < len);
        if let Some(cell) = self.cells.get_mut(&(len / BLOCK)) {
            cell.durable = cut(&cell.durable, len / BLOCK, len, zero);
        }
    }
}

fn new_cell(zero: &Block) -> Cell {
    Cell {
        durable: Arc::clone(zero),
        volatile: Vec::new(),
        doomed: false,
    }
}

/// Block `index` without what is beyond `len`.
fn cut(block: &Block, index: u64, len: u64, zero: &Block) -> Block {
    let keep = len.saturating_sub(index * BLOCK);
    match usize::try_from(keep) {
        Ok(0) => Arc::clone(zero),
        Ok(keep) if keep < BLOCK_BYTES => {
            let mut bytes = **block;
            bytes[keep..].fill(0);
            Arc::new(bytes)
        }
        _ => Arc::clone(block),
    }
}

/// A copy of `old` with `piece` at `within`.
fn overwrite(old: &Block, within: usize, piece: &[u8], zero: &Block) -> Block {
    if piece.len() == BLOCK_BYTES && piece == &zero[..] {
        return Arc::clone(zero);
    }
    let mut bytes = **old;
    bytes[within..within + piece.len()].copy_from_slice(piece);
    Arc::new(bytes)
}

/// Cuts a range of a file at blocks: block, first byte in it, range within the caller's bytes.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == bytes {
            return None;
        }
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK).expect("below the size of a block");
        let count = (BLOCK_BYTES - within).min(bytes - done);
        let range = done..done + count;
        done += count;
        Some((at / BLOCK, within, range))
    })
}
