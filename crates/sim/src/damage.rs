//! Damage that the disk does not report, once in a run: what it may cost, and what never.

use std::sync::Arc;

use truthdb_io::BLOCK_BYTES;
use truthdb_io::sim::{SimFault, SimOp};

use crate::sim::{Sim, Violation};
use crate::work;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DamageKind {
    /// One byte of a file differs; with the block as it was left, to tell whether it is still there.
    Rot {
        path: String,
        offset: u64,
        mask: u8,
        block: Vec<u8>,
    },
    /// Blocks of a file cannot be read.
    Unreadable { path: String },
    /// A write was acknowledged and not stored.
    Lost,
    /// A write was stored somewhere else.
    Misdirected,
}

/// The damage of a run.
#[derive(Debug, Clone)]
pub(crate) struct Damage {
    pub(crate) kind: DamageKind,
}

impl Damage {
    fn path(&self) -> Option<&str> {
        match &self.kind {
            DamageKind::Rot { path, .. } | DamageKind::Unreadable { path } => Some(path),
            DamageKind::Lost | DamageKind::Misdirected => None,
        }
    }

    /// Whether it may touch a partition.
    pub(crate) fn concerns(&self, partition: usize) -> bool {
        let path = self.path();
        path.is_none_or(|path| path.starts_with(&format!("partition-{partition:04}/")))
    }

    /// Whether it may touch what all partitions need.
    pub(crate) fn concerns_database(&self) -> bool {
        self.path().is_none_or(|path| path.starts_with("metadata/"))
    }

    /// Whether it may take a tail of the log with it that headers prove to have been durable.
    pub(crate) fn may_hit_proof(&self) -> bool {
        self.kind == DamageKind::Misdirected
    }
}

impl Sim {
    /// Does the damage of this run, if it was not done yet.
    pub(crate) fn inflict(&mut self) -> Result<(), Violation> {
        if self.damage.is_some() || self.mended || self.live.is_none() {
            return Ok(());
        }
        let kind = match self.draw(8) {
            0 => {
                let passes = self.draw(6);
                self.world
                    .fail_nth(Some(SimOp::Write), passes, SimFault::Lost);
                Some(DamageKind::Lost)
            }
            1 => {
                let passes = self.draw(6);
                self.world
                    .fail_nth(Some(SimOp::Write), passes, SimFault::Misdirected);
                Some(DamageKind::Misdirected)
            }
            2 | 3 => {
                // A torn end of the log, then a disk that loses what recovery writes.
                self.damage = Some(Damage {
                    kind: DamageKind::Lost,
                });
                self.note(|| "  a torn end, and a disk that lies after it".to_owned());
                self.tear_end()?;
                self.lying = true;
                return Ok(());
            }
            4 => self.make_unreadable(),
            _ => self.rot(),
        };
        self.damage = kind.map(|kind| Damage { kind });
        self.note_damage();
        Ok(())
    }

    /// Brings several groups under way; then power fails, or the disk loses the first of them and the process dies.
    fn tear_end(&mut self) -> Result<(), Violation> {
        let is_lost = self.prng.coin();
        if is_lost {
            self.lose_writes(1);
        }
        for round in 0..3 {
            for _ in 0..2 {
                let batch = work::batch(&mut self.prng, &self.profile, &self.models);
                self.submit(Arc::new(batch))?;
            }
            if round == 0 {
                let pending = self.sides.iter().flat_map(|side| &side.pending);
                let open = pending.filter(|pending| pending.result.is_none());
                self.torn = open.map(|pending| Arc::clone(&pending.batch)).collect();
            }
            for partition in 0..self.sides.len() {
                self.step(partition);
            }
        }
        if is_lost {
            self.kill();
        } else {
            self.world.crash();
        }
        Ok(())
    }

    /// After a recovery that could not cut: the clients send again what they had sent first, so that a group like the
    /// torn one takes its place, and power fails before another one follows. What lies behind it fits in all but the
    /// checksum of its predecessor, and is from another life of the log.
    pub(crate) fn append_and_lose_power(&mut self) -> Result<(), Violation> {
        // With the same time it would be the same group to the byte, and what follows it its successor by right.
        self.world.jump_utc_ns(1 << 46);
        for batch in std::mem::take(&mut self.torn) {
            self.submit(batch)?;
        }
        for _ in 0..6 {
            for partition in 0..self.sides.len() {
                self.step(partition);
                self.wait(partition);
            }
            self.take_answers()?;
            if self.sides.iter().all(|side| side.pending.is_empty()) {
                break;
            }
        }
        self.note(|| "  power fails again".to_owned());
        self.world.crash();
        self.reopen()
    }

    fn note_damage(&mut self) {
        if let Some(damage) = self.damage.clone() {
            self.note(|| match damage.kind {
                DamageKind::Rot {
                    path, offset, mask, ..
                } => format!("  bit rot: {path} at {offset}, mask {mask:#04x}"),
                other => format!("  {other:?}"),
            });
        }
    }

    /// A file and an offset in it that holds something, most often.
    fn place(&mut self) -> Option<(String, u64, Vec<u8>)> {
        let mut paths = self.world.paths();
        paths.retain(|path| path.starts_with("partition-") || path.ends_with("manifest.bin"));
        if self.prng.below(4) != 0 {
            paths.retain(|path| path.ends_with(".log"));
        }
        let index = self.prng.below(paths.len().max(1) as u64);
        let path = paths
            .into_iter()
            .nth(usize::try_from(index).expect("below a length"))?;
        let bytes = self.world.read_file(&path).ok()?;
        let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
        let skip = if end > BLOCK_BYTES && self.prng.below(8) != 0 {
            BLOCK_BYTES
        } else {
            0
        };
        let offset = skip as u64 + self.prng.below((end - skip) as u64);
        Some((path, offset, bytes))
    }

    fn rot(&mut self) -> Option<DamageKind> {
        let (path, offset, bytes) = self.place()?;
        let mask = 1 << self.prng.below(8);
        self.world.corrupt(&path, offset, mask).ok()?;
        let at = usize::try_from(offset).expect("a file in memory");
        let start = at - at % BLOCK_BYTES;
        let mut block = bytes[start..bytes.len().min(start + BLOCK_BYTES)].to_vec();
        block[at - start] ^= mask;
        Some(DamageKind::Rot {
            path,
            offset,
            mask,
            block,
        })
    }

    fn make_unreadable(&mut self) -> Option<DamageKind> {
        let (path, offset, _) = self.place()?;
        self.world.make_unreadable(&path, offset, 1).ok()?;
        Some(DamageKind::Unreadable { path })
    }

    /// Takes bit rot back, if the block still is as it was left. Says whether it did.
    pub(crate) fn take_back(&mut self) -> bool {
        let Some(Damage {
            kind:
                DamageKind::Rot {
                    path,
                    offset,
                    mask,
                    block,
                },
        }) = self.damage.clone()
        else {
            return false;
        };
        let at = usize::try_from(offset).expect("a file in memory");
        let start = at - at % BLOCK_BYTES;
        let same = self
            .world
            .read_file(&path)
            .is_ok_and(|bytes| bytes.get(start..start + block.len()) == Some(&block[..]));
        same && self.world.corrupt(&path, offset, mask).is_ok()
    }
}
