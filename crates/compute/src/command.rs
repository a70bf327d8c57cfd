//! Commands: what operators ask of a fold, and how they hear of the outcome.
//!
//! The fold of a partition decides about a command with the catalogue of everything before it and
//! one command at a time, so that two operators cannot decide against the same past.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::answer::{Decided, Published};
use crate::error::ComputeError;
use crate::guest::Inspected;
use crate::request::{ActivateRequest, SkipRequest};

/// What an operator wants.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Publish(Inspected),
    Activate(ActivateRequest),
    Remove { module: String },
    Halt { module: String, reason: String },
    Resume { module: String, reason: String },
    Skip(SkipRequest),
    Snapshot,
    Prune(truthdb_state::PrunePolicy),
}

/// What became of it.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Published(Published),
    Decided(Decided),
}

/// An order and who waits for its outcome.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) order: Order,
    pub(crate) reply: Arc<Reply>,
}

/// The outcome of a command, once there is one.
#[derive(Debug, Default)]
pub struct Reply {
    done: Mutex<Option<Result<Outcome, ComputeError>>>,
    changed: Condvar,
}

impl Reply {
    pub(crate) fn complete(&self, result: Result<Outcome, ComputeError>) {
        *self.done.lock() = Some(result);
        self.changed.notify_all();
    }

    /// Whether there is an outcome.
    pub fn is_done(&self) -> bool {
        self.done.lock().is_some()
    }

    /// Why it failed; `None` if it did not, or has no outcome yet.
    pub fn error(&self) -> Option<ComputeError> {
        match &*self.done.lock() {
            Some(Err(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Waits for the outcome; `None` if there is none in time.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Result<Outcome, ComputeError>> {
        let mut done = self.done.lock();
        while done.is_none() {
            if self.changed.wait_for(&mut done, timeout).timed_out() {
                break;
            }
        }
        done.take()
    }
}
