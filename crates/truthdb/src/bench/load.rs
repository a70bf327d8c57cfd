//! Closed and paced loops of writers, and the window in which they are measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use truthdb_io::{Clock as _, SystemClock};

use super::events::{Author, Digest, Payload};
use super::stats::Latencies;
use super::target::Target;
use crate::exit::{ExitClass, Failure};

/// Time before the measured window.
pub(super) const WARM_UP: Duration = Duration::from_millis(500);

/// What a load is.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Writers at once.
    pub writers: u64,
    /// Events of each append.
    pub batch: usize,
    /// Appends each second of all writers together; `None`: as fast as acknowledgements come.
    pub appends_per_s: Option<f64>,
    /// Payloads.
    pub payload: Payload,
}

/// What writers saw.
#[derive(Debug)]
pub(super) struct Written {
    /// Everything acknowledged, before and after the window too.
    pub acknowledged: Digest,
    /// Appends acknowledged within the window, with their times.
    pub latencies: Latencies,
    /// Length of the window in seconds.
    pub seconds: f64,
}

struct Phases {
    clock: SystemClock,
    measured: AtomicBool,
    stopped: AtomicBool,
    /// Appends acknowledged so far, for those who watch.
    appends: AtomicU64,
}

/// Writers at work.
pub(super) struct Running {
    phases: Arc<Phases>,
    tasks: JoinSet<Result<(Digest, Latencies), Failure>>,
    window_start_ns: u64,
}

impl Running {
    /// Starts the writers of a load.
    pub(super) fn start(target: &Target, load: &Load) -> Running {
        let phases = Arc::new(Phases {
            clock: SystemClock::new(),
            measured: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            appends: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        for writer in 0..load.writers {
            let (target, load, phases) = (target.clone(), load.clone(), Arc::clone(&phases));
            tasks.spawn(write(writer, target, load, phases));
        }
        Running {
            phases,
            tasks,
            window_start_ns: 0,
        }
    }

    /// Begins to measure.
    pub(super) fn begin_window(&mut self) {
        self.window_start_ns = self.phases.clock.monotonic_ns();
        self.phases.measured.store(true, Ordering::Release);
    }

    /// Appends acknowledged so far.
    pub(super) fn appends(&self) -> u64 {
        self.phases.appends.load(Ordering::Relaxed)
    }

    /// Ends the window. The writers go on until [`Running::finish`].
    pub(super) fn end_window(&self) -> f64 {
        self.phases.measured.store(false, Ordering::Release);
        (self.phases.clock.monotonic_ns() - self.window_start_ns) as f64 / 1e9
    }

    /// Lets every writer finish its append, and adds up.
    ///
    /// # Errors
    ///
    /// The first append that failed.
    pub(super) async fn finish(mut self, seconds: f64) -> Result<Written, Failure> {
        self.phases.stopped.store(true, Ordering::Release);
        let (mut acknowledged, mut latencies) = (Digest::default(), Latencies::new());
        while let Some(joined) = self.tasks.join_next().await {
            let (digest, recorded) = joined.map_err(|error| {
                Failure::new(ExitClass::Internal, "a writer panicked").with_source(error)
            })??;
            acknowledged.add(digest);
            latencies.add(&recorded);
        }
        Ok(Written {
            acknowledged,
            latencies,
            seconds,
        })
    }
}

async fn write(
    writer: u64,
    mut target: Target,
    load: Load,
    phases: Arc<Phases>,
) -> Result<(Digest, Latencies), Failure> {
    let mut author = Author::new(writer, &load.payload);
    let (mut digest, mut latencies) = (Digest::default(), Latencies::new());
    let mut pace = load
        .appends_per_s
        .map(|rate| Pace::new(rate, writer, load.writers));
    while !phases.stopped.load(Ordering::Acquire) {
        let start = match &mut pace {
            None => phases.clock.monotonic_ns(),
            Some(pace) => pace.next(&phases.clock).await,
        };
        digest.add(target.append(&mut author, load.batch).await?);
        let end = phases.clock.monotonic_ns();
        phases.appends.fetch_add(1, Ordering::Relaxed);
        if phases.measured.load(Ordering::Acquire) {
            latencies.record_ns(end.saturating_sub(start));
        }
    }
    Ok((digest, latencies))
}

/// When the next append of a writer is due.
struct Pace {
    interval_ns: u64,
    due_ns: u64,
}

impl Pace {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an interval of nanoseconds, at most hours"
    )]
    fn new(appends_per_s: f64, writer: u64, writers: u64) -> Pace {
        let interval_ns = (writers as f64 / appends_per_s.max(0.001) * 1e9) as u64;
        // Spread evenly, so that the writers do not march in step.
        Pace {
            interval_ns,
            due_ns: interval_ns / writers.max(1) * writer,
        }
    }

    /// Waits until an append is due and returns from when its time counts. An append that is late
    /// because the last one took too long counts from when it was due; one that is late because
    /// this program's timer was, from when it went out.
    async fn next(&mut self, clock: &SystemClock) -> u64 {
        let due = self.due_ns;
        self.due_ns += self.interval_ns;
        let now = clock.monotonic_ns();
        if now >= due {
            return due;
        }
        tokio::time::sleep(Duration::from_nanos(due - now)).await;
        clock.monotonic_ns()
    }
}
