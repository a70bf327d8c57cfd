//! gRPC: the services of the `.proto` file, reflection and health.

mod admin;
mod log;
mod modules;
mod state;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::service::Routes;
use tonic::{Request, Status};
use truthdb_api::{ApiError, ErrorCode, Outcome, v1};

use super::Shared;
use super::access::Standing;

pub(super) use admin::{TrimPlans, prove, status, trim_execute, trim_plan};
pub(super) use log::{
    cursor_commit, cursor_get, cursor_list, database, list_streams, stream_head, stream_partition,
};

/// Messages that wait in a streaming answer: with the one being sent, that is its memory.
const ANSWERS_WAITING_MAX: usize = 1;
/// Bytes of the largest answer about state: a page of a megabyte from each of many partitions.
const STATE_ANSWER_BYTES_MAX: usize = 256 << 20;
/// Services by name, for health checks.
const SERVICES: [&str; 5] = [
    "",
    "truthdb.v1.Log",
    "truthdb.v1.Admin",
    "truthdb.v1.Modules",
    "truthdb.v1.State",
];

/// A streaming answer.
pub(super) type Answers<T> =
    std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

/// All services, as routes.
///
/// # Errors
///
/// Never with the descriptors of this build; reflection checks them.
pub(super) async fn routes(
    shared: &Arc<Shared>,
) -> Result<Routes, tonic_reflection::server::Error> {
    let bytes_max = shared.config.limits.request_bytes_max;
    let log = v1::log_server::LogServer::new(log::LogService::new(Arc::clone(shared)))
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(truthdb_api::GRPC_MESSAGE_BYTES_MAX);
    let admin = v1::admin_server::AdminServer::new(admin::AdminService::new(Arc::clone(shared)))
        .max_decoding_message_size(bytes_max);
    let modules = modules::ModulesService::new(Arc::clone(shared));
    let modules = v1::modules_server::ModulesServer::new(modules)
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(truthdb_api::GRPC_MESSAGE_BYTES_MAX);
    let state = state::StateService::new(Arc::clone(shared));
    let state = v1::state_server::StateServer::new(state)
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(STATE_ANSWER_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(truthdb_api::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let (reporter, health) = tonic_health::server::health_reporter();
    for service in SERVICES {
        reporter
            .set_service_status(service, tonic_health::ServingStatus::Serving)
            .await;
    }
    let mut stopping = shared.stopping();
    shared.tracker.spawn(async move {
        if stopping.wait_for(|stopping| *stopping).await.is_ok() {
            for service in SERVICES {
                let status = tonic_health::ServingStatus::NotServing;
                reporter.set_service_status(service, status).await;
            }
        }
    });
    Ok(Routes::new(log)
        .add_service(admin)
        .add_service(modules)
        .add_service(state)
        .add_service(reflection)
        .add_service(health))
}

/// Ends a unary call at the deadline that the client gave.
pub(super) async fn within<T, R>(
    request: &Request<R>,
    call: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, Status> {
    let outcome = match deadline(request) {
        None => call.await,
        Some(deadline) => match tokio::time::timeout(deadline, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ApiError::new(
                ErrorCode::Deadline,
                "the deadline passed first",
            )),
        },
    };
    outcome.map_err(Status::from)
}

/// The time that the client gives (header `grpc-timeout`).
fn deadline<R>(request: &Request<R>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (unit_at, unit) = text.char_indices().next_back()?;
    let number: u64 = text[..unit_at].parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number.saturating_mul(3600)),
        'M' => Duration::from_secs(number.saturating_mul(60)),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Where a streaming answer's task puts its messages.
pub(super) struct Sender<T> {
    sender: mpsc::Sender<T>,
    slow: Duration,
    standing: Standing,
}

impl<T: Send + 'static> Sender<T> {
    /// Waits for the client to take what is before this.
    ///
    /// # Errors
    ///
    /// `SLOW_CONSUMER` when it does not; then, and when it is gone, the task ends.
    pub(super) async fn send(&self, message: T) -> Result<(), ApiError> {
        match tokio::time::timeout(self.slow, self.sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ApiError::new(ErrorCode::Unavailable, "the client is gone")
                .with_outcome(Outcome::DidNotHappen)),
            Err(_) => Err(ApiError::new(
                ErrorCode::SlowConsumer,
                "nothing of the answer was taken for too long",
            )),
        }
    }

    /// The same from a thread that may block. Such a thread does not end with its task: it hears here
    /// that its token was revoked.
    pub(super) fn send_blocking(
        &self,
        runtime: &tokio::runtime::Handle,
        message: T,
    ) -> Result<(), ApiError> {
        let standing = self.standing.clone();
        runtime.block_on(async {
            tokio::select! {
                biased;
                error = standing.ended() => Err(error),
                sent = self.send(message) => sent,
            }
        })
    }
}

/// The standing that the guard gave to a request.
///
/// # Panics
///
/// If it gave none: every request passes it.
pub(super) fn standing<R>(request: &Request<R>) -> Standing {
    let standing = request.extensions().get::<Standing>();
    standing.expect("the guard admits every request").clone()
}

/// Runs `work` as a task and turns what it sends, and its error, into a streaming answer, which ends
/// with its standing.
pub(super) fn answers<T, W, F>(shared: &Arc<Shared>, standing: Standing, work: W) -> Answers<T>
where
    T: Send + 'static,
    W: FnOnce(Sender<T>) -> F,
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(ANSWERS_WAITING_MAX);
    let slow = shared.config.limits.slow_consumer_timeout;
    let metrics = Arc::clone(&shared.metrics);
    let own = standing.clone();
    let task = work(Sender {
        sender,
        slow,
        standing,
    });
    let (outcome, ended) = tokio::sync::oneshot::channel();
    let handle = shared.tracker.spawn(async move {
        let result = tokio::select! {
            result = task => result,
            error = own.ended() => {
                metrics
                    .access_refused
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Err(error)
            }
        };
        if let Err(error) = &result
            && error.code == ErrorCode::SlowConsumer
        {
            metrics
                .slow_consumers
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        // The client may be gone.
        let _ = outcome.send(result);
    });
    // The task ends with the answer, whether that was read to its end or dropped.
    let state = Some((receiver, ended, AbortOnDrop(handle.abort_handle())));
    Box::pin(futures::stream::unfold(state, |state| async move {
        let (mut receiver, ended, guard) = state?;
        if let Some(message) = receiver.recv().await {
            return Some((Ok(message), Some((receiver, ended, guard))));
        }
        match ended.await {
            Ok(Err(error)) => Some((Err(Status::from(error)), None)),
            Ok(Ok(())) | Err(_) => None,
        }
    }))
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
