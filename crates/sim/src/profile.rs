//! What a seed decides: the engine's settings, the weights of actions, and what may go wrong.

use std::time::Duration;

use truthdb_engine::{Durability, EngineConfig};
use truthdb_io::sim::{SimFaults, SimPrng};

/// What may go wrong in a run; decides what the oracle may expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Power cuts and kills only.
    Clean,
    /// Also errors that the disk reports: `EIO`, `ENOSPC`, slowness. What is stored stays good.
    Errors,
    /// Also damage that the disk does not report: once in the run.
    Damage,
}

/// Something that the simulation does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Hands a batch to the engine.
    Append,
    /// Hands a batch over again that was handed over before.
    Retry,
    /// Lets a writer do what it can.
    Step,
    /// Lets a writer wait for the disk.
    Wait,
    /// Does one piece of maintenance.
    Maintain,
    /// Reads a page of a partition.
    Read,
    /// Reads a page of a stream, or a cursor.
    ReadStream,
    /// Trims the start of a partition.
    Trim,
    /// Copies the database and opens the copy.
    Backup,
    /// Moves the wall clock.
    Jump,
    /// Power fails at this moment.
    Crash,
    /// Power will fail during an operation soon.
    CrashSoon,
    /// The process dies.
    Kill,
    /// A clean stop and a start.
    Restart,
    /// Damages what is stored.
    Damage,
    /// The file system becomes full, or has room again.
    Space,
}

/// All that follows from the seed before the first step.
#[derive(Debug, Clone)]
pub struct Profile {
    /// What may go wrong.
    pub class: Class,
    /// Partitions of the database.
    pub partitions: u32,
    /// Settings of the engine.
    pub config: EngineConfig,
    /// Random faults while the engine runs.
    pub faults: SimFaults,
    /// Number of actions.
    pub actions: u32,
    /// Actions and their weights.
    pub weights: Vec<(Action, u32)>,
    /// Number of streams.
    pub streams: u64,
    /// Largest payload in bytes of most events.
    pub payload_max: u64,
    /// Payloads that are large, so that segments are filled: parts per million.
    pub large_ppm: u32,
    /// Most events of a batch.
    pub batch_max: u64,
    /// Appends handed over before the writer has its turn, at most.
    pub burst: u64,
}

fn pick<T: Copy>(prng: &mut SimPrng, from: &[T]) -> T {
    let index = prng.below(from.len() as u64);
    from[usize::try_from(index).expect("below a length")]
}

/// Nothing, or a weight of up to `max`, as swarm testing has it: what is absent matters, too.
fn weight(prng: &mut SimPrng, max: u64) -> u32 {
    if prng.below(3) == 0 {
        0
    } else {
        u32::try_from(prng.between(1, max)).expect("weights are small")
    }
}

impl Profile {
    /// The profile that a random sequence decides.
    pub fn draw(prng: &mut SimPrng) -> Profile {
        let class = pick(
            prng,
            &[Class::Clean, Class::Clean, Class::Errors, Class::Damage],
        );
        let rolling = prng.below(8) == 0;
        let durability = match prng.below(5) {
            0 => Durability::FlushInterval(Duration::from_millis(prng.between(1, 40))),
            1 if class == Class::Clean => Durability::Os,
            _ => Durability::FlushEachGroup,
        };
        let config = EngineConfig {
            durability,
            writes_in_flight_max: pick(prng, &[1, 2, 3, 4]),
            group_bytes_max: pick(prng, &[64 << 10, 256 << 10, 1 << 20]),
            queue_bytes_max: pick(prng, &[64 << 10, 1 << 20, 16 << 20]),
            queue_batches_max: pick(prng, &[1, 3, 16, 64]),
            tail_cache_bytes: pick(prng, &[1 << 20, 4 << 20]),
            read_cache_bytes: pick(prng, &[1 << 16, 4 << 20]),
            stream_cache_entries: pick(prng, &[1, 4, 64]),
            idempotency_window_events: pick(prng, &[1, 7, 50, 1000]),
            closed_segments_max: pick(prng, &[1, 2, 4]),
            mark_idle: Duration::from_millis(prng.between(1, 60)),
            compress: prng.coin(),
            ..EngineConfig::default()
        };
        let mut profile = Profile {
            class,
            partitions: pick(prng, &[1, 1, 2, 3]),
            config,
            faults: faults(class, prng),
            actions: u32::try_from(prng.between(60, 500)).expect("small"),
            weights: Vec::new(),
            streams: pick(prng, &[1, 3, 8, 40]),
            payload_max: pick(prng, &[0, 40, 600, 6000]),
            large_ppm: 0,
            batch_max: pick(prng, &[1, 3, 12]),
            burst: pick(prng, &[1, 2, 6]),
        };
        if rolling {
            profile.partitions = pick(prng, &[1, 1, 2]);
            profile.large_ppm = pick(prng, &[200_000, 500_000]);
            profile.actions = u32::try_from(prng.between(150, 300)).expect("small");
        }
        profile.weights = profile.draw_weights(rolling, prng);
        profile
    }

    fn draw_weights(&self, rolling: bool, prng: &mut SimPrng) -> Vec<(Action, u32)> {
        let errors = self.class == Class::Errors;
        let only = |allowed: bool, weight: u32| if allowed { weight } else { 0 };
        let damage = prng.between(2, 12);
        vec![
            (Action::Append, 60),
            (Action::Retry, weight(prng, 25)),
            (Action::Step, 50),
            (Action::Wait, 40),
            (Action::Maintain, 20),
            (Action::Read, weight(prng, 25)),
            (Action::ReadStream, weight(prng, 20)),
            (Action::Trim, only(rolling, weight(prng, 10))),
            (Action::Backup, u32::from(prng.below(6) == 0)),
            (Action::Jump, weight(prng, 5)),
            (Action::Crash, weight(prng, 4)),
            (Action::CrashSoon, weight(prng, 4)),
            (Action::Kill, weight(prng, 3)),
            (Action::Restart, weight(prng, 3)),
            (
                Action::Damage,
                only(
                    self.class == Class::Damage,
                    u32::try_from(damage).expect("small"),
                ),
            ),
            (Action::Space, only(errors, weight(prng, 4))),
        ]
    }

    /// The next action.
    pub fn action(&self, prng: &mut SimPrng) -> Action {
        let total: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = prng.below(u64::from(total));
        for (action, weight) in &self.weights {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return *action,
            }
        }
        unreachable!("a number below the sum of the weights falls into one")
    }
}

fn faults(class: Class, prng: &mut SimPrng) -> SimFaults {
    let mut faults = SimFaults {
        reorder: prng.below(4) != 0,
        durable_write_flushes_ppm: pick(prng, &[0, 500_000]),
        ..SimFaults::default()
    };
    if class == Class::Errors {
        let mut ppm = |max: u64| {
            if prng.coin() {
                u32::try_from(prng.between(100, max)).expect("small")
            } else {
                0
            }
        };
        faults.read_error_ppm = ppm(5_000);
        faults.write_error_ppm = ppm(8_000);
        faults.sync_error_ppm = ppm(8_000);
        faults.no_space_ppm = ppm(50_000);
        faults.directory_error_ppm = ppm(8_000);
        faults.slow_ppm = ppm(100_000);
    }
    faults
}
