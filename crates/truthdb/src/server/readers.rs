//! A bounded pool of threads for reads that need the disk.
//!
//! The network threads never wait for a disk: they hand a read over and go on. The queue is bounded;
//! above it a read is refused at once.
//!
//! A read that panics is a bug. A release build ends the process then (`panic = "abort"`): a violated
//! invariant must not leave half of it serving, and a start recovers. Where panics unwind, in the
//! profiles `dev` and `fast`, the read is answered with `INTERNAL` and its thread takes the next one:
//! the pool keeps its size, and no caller waits for ever.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use truthdb_api::{ApiError, ErrorCode, Outcome};

/// When a refused read should come again, milliseconds.
const RETRY_AFTER_MS: u64 = 50;

type Job = Box<dyn FnOnce() + Send>;

struct Queue {
    jobs: VecDeque<Job>,
    stopped: bool,
}

struct Inner {
    queue: Mutex<Queue>,
    work: Condvar,
    waiting_max: usize,
}

/// The pool.
pub(crate) struct ReaderPool {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl ReaderPool {
    /// Starts the threads, named `name-0` and so on.
    pub(crate) fn start(
        name: &str,
        threads: usize,
        waiting_max: usize,
    ) -> std::io::Result<ReaderPool> {
        let queue = Mutex::new(Queue {
            jobs: VecDeque::new(),
            stopped: false,
        });
        let inner = Arc::new(Inner {
            queue,
            work: Condvar::new(),
            waiting_max,
        });
        let threads = (0..threads)
            .map(|number| {
                let inner = Arc::clone(&inner);
                std::thread::Builder::new()
                    .name(format!("{name}-{number}"))
                    .spawn(move || inner.run())
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(ReaderPool {
            inner,
            threads: Mutex::new(threads),
        })
    }

    /// Runs `read` on a thread of the pool.
    ///
    /// # Errors
    ///
    /// `OVERLOADED` when too many wait; `UNAVAILABLE` when the pool has stopped; `INTERNAL` when the
    /// read panicked, where that does not end the process.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut queue = self.inner.queue.lock();
            if queue.stopped {
                return Err(stopped());
            }
            if queue.jobs.len() >= self.inner.waiting_max {
                return Err(ApiError::overloaded(
                    "too many reads are waiting",
                    RETRY_AFTER_MS,
                ));
            }
            queue.jobs.push_back(Box::new(move || {
                // What the read owns is dropped with it, and what it shares with others is behind
                // locks that do not remember a panic.
                let outcome = catch_unwind(AssertUnwindSafe(read)).map_err(|_| panicked());
                // Whoever asked may be gone; then there is nobody to tell.
                let _ = sender.send(outcome);
            }));
        }
        self.inner.work.notify_one();
        receiver.await.map_err(|_| stopped())?
    }

    /// Reads that wait for a thread.
    pub(crate) fn waiting(&self) -> usize {
        self.inner.queue.lock().jobs.len()
    }

    /// Drops what waits, and ends the threads after what they are doing.
    pub(crate) fn stop(&self) {
        {
            let mut queue = self.inner.queue.lock();
            queue.stopped = true;
            queue.jobs.clear();
        }
        self.inner.work.notify_all();
        for thread in self.threads.lock().drain(..) {
            thread.join().expect("a read that panics is caught");
        }
    }
}

fn panicked() -> ApiError {
    tracing::error!("a read panicked: this is a bug, report it with the message before this one");
    ApiError::new(
        ErrorCode::Internal,
        "the read failed because of a bug of the server",
    )
    .with_outcome(Outcome::DidNotHappen)
}

fn stopped() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the server is shutting down")
        .with_outcome(Outcome::DidNotHappen)
}

impl Inner {
    fn run(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    if let Some(job) = queue.jobs.pop_front() {
                        break job;
                    }
                    if queue.stopped {
                        return;
                    }
                    self.work.wait(&mut queue);
                }
            };
            job();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_that_panics_is_answered_and_the_pool_keeps_its_size() {
        const THREADS: usize = 2;
        let pool = ReaderPool::start("reader", THREADS, 16).unwrap();
        for _ in 0..3 * THREADS {
            let outcome = pool.run(|| -> u32 { panic!("planted by the test") }).await;
            assert_eq!(outcome.unwrap_err().code, ErrorCode::Internal);
        }
        // Each waits for the others: only as many threads as at the start can answer them.
        let all = Arc::new(std::sync::Barrier::new(THREADS));
        let meet = || {
            let all = Arc::clone(&all);
            pool.run(move || all.wait().is_leader())
        };
        let (first, second) = tokio::join!(meet(), meet());
        assert_ne!(first.unwrap(), second.unwrap());
        pool.stop();
    }

    #[tokio::test]
    async fn a_read_above_the_bound_is_refused_and_the_others_are_answered() {
        let pool = ReaderPool::start("reader", 1, 1).unwrap();
        let (release, hold) = std::sync::mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let first = pool.run(move || {
            let _ = started.send(());
            hold.recv().unwrap();
            1
        });
        let second = async {
            running.await.unwrap();
            // Joined below: the second is queued at its first poll, then the third is refused.
            pool.run(|| 2).await
        };
        let third = async {
            while pool.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            let refused = pool.run(|| 3).await;
            release.send(()).unwrap();
            refused
        };
        let (first, second, third) = tokio::join!(first, second, third);
        assert_eq!((first, second), (Ok(1), Ok(2)));
        assert_eq!(third.unwrap_err().code, ErrorCode::Overloaded);
        pool.stop();
        assert_eq!(
            pool.run(|| 4).await.unwrap_err().code,
            ErrorCode::Unavailable
        );
    }
}
