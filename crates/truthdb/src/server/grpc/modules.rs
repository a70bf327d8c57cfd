//! The service `truthdb.v1.Modules`.

use std::sync::Arc;

use bytes::BytesMut;
use tonic::{Request, Response, Status, Streaming};
use truthdb_api::{ApiError, ErrorCode, Outcome, v1};

use super::within;
use crate::server::{Shared, modules};

pub(super) struct ModulesService {
    shared: Arc<Shared>,
}

impl ModulesService {
    pub(super) fn new(shared: Arc<Shared>) -> ModulesService {
        ModulesService { shared }
    }

    /// The whole module, within the limits of size, memory and time.
    async fn receive(
        &self,
        mut chunks: Streaming<v1::PublishRequest>,
    ) -> Result<(BytesMut, Vec<tokio::sync::OwnedSemaphorePermit>), ApiError> {
        let (mut wasm, mut permits) = (BytesMut::new(), Vec::new());
        let limit = self.shared.config.limits.request_timeout;
        let receive = async {
            while let Some(part) = chunks.message().await.map_err(|status| {
                ApiError::from_status(&status).with_outcome(Outcome::DidNotHappen)
            })? {
                modules::check_bytes(wasm.len() + part.chunk.len())?;
                permits.push(self.shared.reserve_bytes(part.chunk.len())?);
                wasm.extend_from_slice(&part.chunk);
            }
            Ok::<(), ApiError>(())
        };
        let received = tokio::time::timeout(limit, receive).await;
        match received {
            Ok(outcome) => outcome.map(|()| (wasm, permits)),
            Err(_) => Err(ApiError::new(
                ErrorCode::Deadline,
                "the module was not complete in time",
            )
            .with_outcome(Outcome::DidNotHappen)),
        }
    }
}

#[tonic::async_trait]
impl v1::modules_server::Modules for ModulesService {
    async fn publish(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<v1::PublishResponse>, Status> {
        let (wasm, _permits) = self.receive(request.into_inner()).await?;
        let published = modules::publish(&self.shared, wasm.freeze()).await?;
        Ok(Response::new(published))
    }

    async fn activate(
        &self,
        request: Request<v1::ActivateRequest>,
    ) -> Result<Response<v1::DecisionResponse>, Status> {
        let call = modules::activate(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn halt(
        &self,
        request: Request<v1::HaltRequest>,
    ) -> Result<Response<v1::DecisionResponse>, Status> {
        let call = modules::halt(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::DecisionResponse>, Status> {
        let call = modules::resume(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn skip(
        &self,
        request: Request<v1::SkipRequest>,
    ) -> Result<Response<v1::DecisionResponse>, Status> {
        let call = modules::skip(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::DecisionResponse>, Status> {
        let call = modules::remove(&self.shared, request.get_ref().clone());
        within(&request, call).await.map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListModulesRequest>,
    ) -> Result<Response<v1::ListModulesResponse>, Status> {
        within(&request, modules::list(&self.shared))
            .await
            .map(Response::new)
    }

    async fn get(
        &self,
        request: Request<v1::GetModuleRequest>,
    ) -> Result<Response<v1::ModuleStatus>, Status> {
        let call = modules::get(&self.shared, request.get_ref().module.clone());
        within(&request, call).await.map(Response::new)
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let call = modules::list_snapshots(&self.shared, request.get_ref().partition);
        within(&request, call).await.map(Response::new)
    }

    async fn take_snapshot(
        &self,
        request: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        let call = modules::take_snapshot(&self.shared, request.get_ref().partition);
        within(&request, call).await.map(Response::new)
    }

    async fn prune_snapshots(
        &self,
        request: Request<v1::PruneSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let call = modules::prune_snapshots(&self.shared, *request.get_ref());
        within(&request, call).await.map(Response::new)
    }
}
