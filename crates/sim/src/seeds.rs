//! Many seeds, on several threads; stops at the first one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::sim::{Figures, Sim, Violation};

/// A seed and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was wrong.
    pub violation: Violation,
    /// The command of `truthdb-sim` that replays it.
    command: &'static str,
}

impl Failure {
    /// Of a world with modules.
    pub(crate) fn of_state(seed: u64, violation: Violation) -> Failure {
        Failure {
            seed,
            violation,
            command: "state",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seed = self.seed;
        write!(
            f,
            "seed {seed}: {}\nreplay: truthdb-sim {} --seed {seed} --trace",
            self.violation.0, self.command
        )
    }
}

/// Runs one seed; a panic is a violation like others.
///
/// # Errors
/// What was wrong.
pub fn run_seed(seed: u64) -> Result<Figures, Failure> {
    let mut sim = Sim::new(seed, false);
    run_sim(seed, &mut sim)
}

/// As [`run_seed`], with a simulation that was made before.
///
/// # Errors
/// What was wrong.
pub fn run_sim(seed: u64, sim: &mut Sim) -> Result<Figures, Failure> {
    let result = catch_unwind(AssertUnwindSafe(|| sim.run()));
    let violation = match result {
        Ok(Ok(figures)) => return Ok(figures),
        Ok(Err(violation)) => violation,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Violation(format!("panic: {}", text.unwrap_or("of an unknown kind")))
        }
    };
    Err(Failure {
        seed,
        violation,
        command: "run",
    })
}

/// Sums over many runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Runs.
    pub runs: u64,
    /// Batches handed over.
    pub submitted: u64,
    /// Batches acknowledged.
    pub acknowledged: u64,
    /// Events in the models at the end.
    pub events: u64,
    /// Restarts.
    pub restarts: u64,
}

impl Totals {
    fn add(&mut self, figures: &Figures) {
        self.runs += 1;
        self.submitted += figures.submitted;
        self.acknowledged += figures.acknowledged;
        self.events += figures.events;
        self.restarts += figures.restarts;
    }
}

/// Runs `count` seeds from `start` on with `jobs` threads. `progress` hears of each run that is done.
///
/// # Errors
/// The failing seed with the smallest number that was found before all threads stopped.
pub fn run_seeds(
    start: u64,
    count: u64,
    jobs: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Totals, Failure> {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let index = next.fetch_add(1, Ordering::AcqRel);
                    if index >= count {
                        return;
                    }
                    match run_seed(start + index) {
                        Ok(figures) => {
                            let mut totals = totals.lock().expect("no holder panics");
                            totals.add(&figures);
                            progress(totals.runs);
                        }
                        Err(found) => {
                            stop.store(true, Ordering::Release);
                            let mut failure = failure.lock().expect("no holder panics");
                            if failure.as_ref().is_none_or(|f| found.seed < f.seed) {
                                *failure = Some(found);
                            }
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner().expect("no holder panics") {
        Some(failure) => Err(failure),
        None => Ok(totals.into_inner().expect("no holder panics")),
    }
}
