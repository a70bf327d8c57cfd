//! An engine with its folds in this process, for what is measured with modules in two forms.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use truthdb_compute::{
    ActivateRequest, ActivationMode, Compute, ComputeConfig, ComputeError, FoldState, Token,
};
use truthdb_engine::{Appended, EncodedEvents, Engine, EngineConfig};
use truthdb_event::{EventBuilder, EventId};
use truthdb_io::{Clock as _, SystemClock};
use truthdb_module::{Limits, WasiProfile, Workload};

use super::natives::{Code, Measured, Modules};
use super::stats::Latencies;
use super::target::open_engine;
use crate::exit::{ExitClass, Failure};
use crate::server::compute::compute_failure;
use crate::server::config::IoBackend;
use crate::server::open_world;

/// Segments of these databases, bytes: the default of `truthdb init`.
const SEGMENT_BYTES: u64 = 64 << 20;
/// How long folds may take to catch up, seconds.
const CATCH_UP_S_MAX: u64 = 3600;

/// An open database.
pub(super) struct Node {
    pub engine: Engine,
    pub compute: Compute,
    code: Code,
}

/// xorshift64: equal events in equal measurements.
#[derive(Debug, Clone)]
pub(super) struct Numbers(u64);

impl Numbers {
    /// A sequence of numbers; other seeds, other numbers.
    pub(super) fn new(seed: u64) -> Numbers {
        Numbers(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next below a bound.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

fn append_failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(ExitClass::Environment, "an append failed").with_source(error)
}

/// Appends events of one stream each. `first`: a number that no other event of the database has.
pub(super) fn append(
    engine: &Engine,
    first: u64,
    events: impl Iterator<Item = (String, &'static str, String)>,
) -> Result<Appended, Failure> {
    let mut bytes = Vec::new();
    for (number, (stream, event_type, payload)) in (first..).zip(events) {
        let mut id = [0x5e; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        EventBuilder::new(&stream, event_type)
            .id(EventId::from_bytes(id))
            .payload(payload.as_bytes())
            .encode_into(&mut bytes)
            .map_err(append_failed)?;
    }
    let input = EncodedEvents {
        bytes: bytes.into(),
        ..EncodedEvents::default()
    };
    loop {
        let batch = engine.prepare(None, input.clone()).map_err(append_failed)?;
        match engine.append_blocking(batch) {
            // A validator that has no state yet, or a full queue: the same again.
            Err(error) if error.is_retryable() => std::thread::sleep(Duration::from_micros(100)),
            Err(error) => return Err(append_failed(error)),
            Ok(appended) => return Ok(appended),
        }
    }
}

impl Node {
    /// Opens a database, which is made if it is not there, with one partition.
    ///
    /// # Errors
    ///
    /// It does not open.
    pub(super) fn open(
        data: &Path,
        modules: &Modules,
        code: Code,
        config: ComputeConfig,
    ) -> Result<Node, Failure> {
        let engine = open_engine(data, EngineConfig::default(), SEGMENT_BYTES)?;
        let (world, _) = open_world(data, IoBackend::Auto)?;
        let runtime = modules.runtime(code, &data.with_extension("compiled"))?;
        let compute = Compute::open(&engine, &world, runtime, config).map_err(compute_failure)?;
        Ok(Node {
            engine,
            compute,
            code,
        })
    }

    /// Stops it cleanly.
    pub(super) fn close(self) {
        self.compute.shutdown();
        self.engine.shutdown();
    }

    /// Publishes and activates a module.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub(super) fn activate(&self, modules: &Modules, module: Measured) -> Result<(), Failure> {
        let bytes = modules.bytes(module, self.code)?;
        let published = self.compute.publish(&bytes).map_err(compute_failure)?;
        let request = ActivateRequest {
            hash: published.hash,
            mode: ActivationMode::Rebuild,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        };
        self.compute.activate(&request).map_err(compute_failure)?;
        Ok(())
    }

    /// Appends events of a workload in batches. Returns, for each batch, its last sequence.
    ///
    /// # Errors
    ///
    /// An append fails.
    pub(super) fn fill(
        &self,
        workload: Workload,
        numbers: &mut Numbers,
        first: u64,
        events: u64,
        batch_events: u64,
    ) -> Result<Vec<u64>, Failure> {
        let mut ends = Vec::new();
        let mut done = 0;
        while done < events {
            let count = batch_events.min(events - done);
            let made = (0..count).map(|_| workload.event(numbers.next()));
            ends.push(append(&self.engine, first + done, made)?.last_sequence);
            done += count;
        }
        Ok(ends)
    }

    /// Waits until a module has applied everything that is committed now.
    ///
    /// # Errors
    ///
    /// It is halted, or does not catch up.
    pub(super) fn wait_applied(&self, module: &str) -> Result<(), Failure> {
        let committed = self.engine.committed(0);
        let clock = SystemClock::new();
        while clock.monotonic_ns() < CATCH_UP_S_MAX * 1_000_000_000 {
            match self.compute.module(module) {
                Ok(status) => {
                    for one in status.generations.iter().filter(|one| one.current) {
                        if let FoldState::Halted { reason, .. } = &one.state {
                            let message = format!("module {module} is halted: {reason}");
                            return Err(Failure::new(ExitClass::Internal, message));
                        }
                        if one.applied >= committed {
                            return Ok(());
                        }
                    }
                }
                Err(ComputeError::NoSuchModule { .. }) => {}
                Err(error) => return Err(compute_failure(error)),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let message = format!("module {module} has not caught up within {CATCH_UP_S_MAX} s");
        Err(Failure::new(ExitClass::Internal, message))
    }
}

/// Writers that append in closed loops until they are told to stop.
pub(super) struct Writers {
    stop: Arc<AtomicBool>,
    measured: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Result<Latencies, Failure>>>,
}

/// What writers append.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writing {
    /// Writers at once, a thread each.
    pub writers: u64,
    /// Events of an append.
    pub batch: u64,
    /// Accounts that they move money of.
    pub accounts: u32,
    /// What they append: `deposit` or `withdraw`.
    pub event_type: &'static str,
    /// Pause after each append.
    pub pause: Duration,
}

impl Writers {
    /// Starts them. Withdrawals are of nothing, so that they are covered.
    pub(super) fn start(engine: &Engine, writing: Writing, first: u64) -> Writers {
        let mut writers = Writers {
            stop: Arc::default(),
            measured: Arc::default(),
            next: Arc::new(AtomicU64::new(first)),
            threads: Vec::new(),
        };
        for writer in 0..writing.writers {
            let engine = engine.clone();
            let (stop, measured) = (Arc::clone(&writers.stop), Arc::clone(&writers.measured));
            let next = Arc::clone(&writers.next);
            writers.threads.push(std::thread::spawn(move || {
                let mut numbers = Numbers::new(first ^ (writer + 1));
                let mut latencies = Latencies::new();
                let clock = SystemClock::new();
                let amount = if writing.event_type == "deposit" {
                    "1"
                } else {
                    "0"
                };
                while !stop.load(Ordering::Relaxed) {
                    let first = next.fetch_add(writing.batch, Ordering::Relaxed);
                    let start = clock.monotonic_ns();
                    let events = (0..writing.batch).map(|_| {
                        let account = numbers.below(u64::from(writing.accounts));
                        (
                            format!("account-{account}"),
                            writing.event_type,
                            amount.to_owned(),
                        )
                    });
                    append(&engine, first, events)?;
                    if measured.load(Ordering::Relaxed) {
                        latencies.record_ns(clock.monotonic_ns().saturating_sub(start));
                    }
                    if !writing.pause.is_zero() {
                        std::thread::sleep(writing.pause);
                    }
                }
                Ok(latencies)
            }));
        }
        writers
    }

    /// Whether what they see is kept from now on.
    pub(super) fn measure(&self, measured: bool) {
        self.measured.store(measured, Ordering::Relaxed);
    }

    /// Stops them; what they saw, and the first number that no event has.
    ///
    /// # Errors
    ///
    /// The first append that failed.
    pub(super) fn finish(self) -> Result<(Latencies, u64), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = Latencies::new();
        for thread in self.threads {
            let seen = thread
                .join()
                .map_err(|_| Failure::new(ExitClass::Internal, "a writer panicked"))??;
            latencies.add(&seen);
        }
        Ok((latencies, self.next.load(Ordering::Relaxed)))
    }
}

/// A token of the only partition.
pub(super) fn token(sequence: u64) -> Token {
    Token::of(0, sequence)
}
