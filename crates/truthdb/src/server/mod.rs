//! The server: everything that `truthdb serve` runs above the engine.
//!
//! Async code lives here and only here. The engine has its own threads; reads that need the disk go
//! to a bounded pool; network threads never wait for either.
//!
//! One port carries gRPC and HTTP/JSON (`http`, `grpc`), another the native protocol (`native`).
//! Every request passes `access` first. What all three have in common is in `append` (writing) and
//! `scan` (reading and following); they only translate.

mod access;
mod append;
pub(crate) mod compute;
pub(crate) mod config;
mod convert;
mod errors;
mod grpc;
mod http;
mod listen;
mod logging;
mod metrics;
mod modules;
mod native;
mod readers;
mod run;
mod scan;
pub(crate) mod state;
mod tls;
pub(crate) mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use truthdb_api::{ApiError, ErrorCode, Outcome};
use truthdb_compute::Compute;
use truthdb_engine::Engine;
use truthdb_io::Clock;

use access::Access;
use config::Config;
use metrics::Metrics;
use readers::ReaderPool;

pub(crate) use run::{ServeOptions, create, directory_failure, open_failure, open_world, run};

/// When a refused request should come again, milliseconds.
const RETRY_AFTER_MS: u64 = 100;

/// What every connection shares.
pub(crate) struct Shared {
    pub engine: Engine,
    /// Modules and their state.
    pub compute: Compute,
    pub config: Config,
    pub access: Access,
    pub metrics: Arc<Metrics>,
    pub readers: ReaderPool,
    /// Answers questions about state, so that they cannot take the places of reads.
    pub queries: ReaderPool,
    /// One permit for each decision about modules that is under way.
    pub decisions: Arc<Semaphore>,
    /// One permit: one verification of state at a time.
    pub verify_state_slot: Arc<Semaphore>,
    pub clock: Arc<dyn Clock>,
    /// When the server started, monotonic nanoseconds.
    pub started_ns: u64,
    /// One permit for each connection.
    pub connections: Arc<Semaphore>,
    /// One permit for each byte of requests being received or answered, in KiB.
    pub inflight_kib: Arc<Semaphore>,
    /// One permit: one verification at a time.
    pub verify_slot: Arc<Semaphore>,
    /// One permit: one backup at a time.
    pub backup_slot: Arc<Semaphore>,
    /// Plans of trims that may be executed.
    pub trim_plans: parking_lot::Mutex<grpc::TrimPlans>,
    /// Tasks of connections.
    pub tracker: TaskTracker,
    /// Open subscriptions of each partition.
    pub subscriptions: Arc<[AtomicU32]>,
    commits: Vec<watch::Receiver<u64>>,
    stopping: watch::Receiver<bool>,
}

impl Shared {
    /// Follows the commits of a partition.
    ///
    /// # Panics
    ///
    /// If there is no such partition: [`Shared::check_partition`] comes first.
    pub(crate) fn commits(&self, partition: u32) -> watch::Receiver<u64> {
        self.commits[usize::try_from(partition).expect("a u32 fits")].clone()
    }

    /// Becomes true when the server stops.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Refuses partitions that are not there.
    pub(crate) fn check_partition(&self, partition: u32) -> Result<(), ApiError> {
        let count = self.engine.partition_count();
        if partition < count {
            return Ok(());
        }
        let message = format!("there is no partition {partition}; the database has {count}");
        Err(ApiError::new(ErrorCode::NotFound, message).with_partition(partition))
    }

    /// Counts a subscription as long as the slot lives.
    pub(crate) fn subscription_slot(self: &Arc<Self>, partition: u32) -> Result<Slot, ApiError> {
        let most = i64::try_from(self.config.limits.subscriptions_max).unwrap_or(i64::MAX);
        let before = self.metrics.subscriptions.fetch_add(1, Ordering::AcqRel);
        let slot = Slot {
            metrics: Arc::clone(&self.metrics),
            partitions: Arc::clone(&self.subscriptions),
            partition: usize::try_from(partition).expect("a u32 fits"),
        };
        slot.partitions[slot.partition].fetch_add(1, Ordering::AcqRel);
        if before >= most {
            drop(slot);
            let message = format!("the limit of {most} subscriptions is reached");
            return Err(ApiError::overloaded(message, RETRY_AFTER_MS).with_partition(partition));
        }
        Ok(slot)
    }

    /// Reserves memory for a request of so many bytes.
    pub(crate) fn reserve_bytes(
        &self,
        bytes: usize,
    ) -> Result<tokio::sync::OwnedSemaphorePermit, ApiError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        Arc::clone(&self.inflight_kib)
            .try_acquire_many_owned(kib)
            .map_err(|_| {
                ApiError::overloaded("too many bytes of requests are in flight", RETRY_AFTER_MS)
            })
    }
}

/// One of `limits.subscriptions_max`.
pub(crate) struct Slot {
    metrics: Arc<Metrics>,
    partitions: Arc<[AtomicU32]>,
    partition: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.metrics.subscriptions.fetch_sub(1, Ordering::AcqRel);
        self.partitions[self.partition].fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ends when the server stops.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The answer when the server is about to end.
pub(crate) fn stopping_error() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the server is shutting down")
        .with_outcome(Outcome::DidNotHappen)
}

/// Long work on a thread of its own: it may block and must not take a reader's place.
pub(crate) async fn run_apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?
}
