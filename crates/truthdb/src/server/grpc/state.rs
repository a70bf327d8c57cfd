//! The service `truthdb.v1.State`.

use std::ops::ControlFlow;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use truthdb_api::{ApiError, ErrorCode, v1};

use super::{Answers, Sender, answers, standing, within};
use crate::server::{Shared, run_apart, state};

/// The least time between two reports of progress.
const PROGRESS_INTERVAL_NS: u64 = 1_000_000_000;
/// When work that is exclusive may be asked for again, milliseconds.
const BUSY_RETRY_MS: u64 = 5_000;

pub(super) struct StateService {
    shared: Arc<Shared>,
}

impl StateService {
    pub(super) fn new(shared: Arc<Shared>) -> StateService {
        StateService { shared }
    }
}

#[tonic::async_trait]
impl v1::state_server::State for StateService {
    type VerifyStream = Answers<v1::StateVerifyResponse>;

    async fn get(
        &self,
        request: Request<v1::StateGetRequest>,
    ) -> Result<Response<v1::StateRows>, Status> {
        let call = state::get(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn scan(
        &self,
        request: Request<v1::StateScanRequest>,
    ) -> Result<Response<v1::StateRows>, Status> {
        let call = state::scan(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn query(
        &self,
        request: Request<v1::StateQueryRequest>,
    ) -> Result<Response<v1::StateAnswer>, Status> {
        let call = state::query(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn verify(
        &self,
        request: Request<v1::StateVerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let standing = standing(&request);
        let request = request.into_inner();
        if let Some(partition) = request.partition {
            self.shared.check_partition(partition)?;
        }
        let slot = Arc::clone(&self.shared.verify_state_slot)
            .try_acquire_owned()
            .map_err(|_| {
                ApiError::overloaded("another verification of state is running", BUSY_RETRY_MS)
            })?;
        let shared = Arc::clone(&self.shared);
        Ok(Response::new(answers(
            &self.shared,
            standing,
            |sender| async move {
                let runtime = tokio::runtime::Handle::current();
                let work = move || {
                    let _slot = slot;
                    verify(&shared, &request, &sender, &runtime)
                };
                run_apart(work).await
            },
        )))
    }
}

fn verify(
    shared: &Shared,
    request: &v1::StateVerifyRequest,
    sender: &Sender<v1::StateVerifyResponse>,
    runtime: &tokio::runtime::Handle,
) -> Result<(), ApiError> {
    let mut reported_ns = shared.clock.monotonic_ns();
    let stopping = shared.stopping();
    let mut gone = None;
    let report = state::verify(&shared.compute, request, &mut |progress| {
        if *stopping.borrow() {
            return ControlFlow::Break(());
        }
        let now_ns = shared.clock.monotonic_ns();
        if now_ns.saturating_sub(reported_ns) < PROGRESS_INTERVAL_NS {
            return ControlFlow::Continue(());
        }
        reported_ns = now_ns;
        let message = v1::StateVerifyResponse {
            message: Some(v1::state_verify_response::Message::Progress(progress)),
        };
        match sender.send_blocking(runtime, message) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                gone = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(error) = gone {
        return Err(error);
    }
    let report = report.map_err(|error| match error.code {
        ErrorCode::Unavailable => crate::server::stopping_error(),
        _ => error,
    })?;
    for message in state::verify_messages(&report) {
        sender.send_blocking(runtime, message)?;
    }
    Ok(())
}
