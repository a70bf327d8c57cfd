//! The port that carries gRPC and HTTP/JSON, and the middleware that every request passes.

mod events;
mod json;
mod modules;
pub(crate) mod openapi;
mod operate;
mod state;
mod subscribe;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tower::ServiceExt as _;
use truthdb_api::{ApiError, ErrorCode};

use super::access::{grpc_operation, http_operation};
use super::listen::{Serve, TimedStream};
use super::metrics::Metrics;
use super::{Shared, stopped};

/// Streams of one HTTP/2 connection at once.
const HTTP2_STREAMS_MAX: u32 = 1024;
/// Header bytes of one request.
const HEADER_BYTES_MAX: usize = 32 << 10;
/// Buffer of an HTTP/1 connection.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 << 10;
/// How long a client has to close its connection when the server stops and everything is answered.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes of a body that is too long which are still taken, so that the client gets to the answer.
const DRAIN_BYTES_MAX: usize = 64 << 20;
/// Bytes that wait to be sent on one HTTP/2 stream.
const HTTP2_SEND_BYTES_MAX: usize = 512 << 10;

/// A handler's error, as HTTP.
#[derive(Debug)]
pub(super) struct HttpError(ApiError);

impl From<ApiError> for HttpError {
    fn from(error: ApiError) -> Self {
        HttpError(error)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.0.context.retry_after_ms;
        let mut response = (status, axum::Json(self.0)).into_response();
        let headers = response.headers_mut();
        if let Some(ms) = retry_after {
            headers.insert(header::RETRY_AFTER, ms.div_ceil(1000).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            let bearer = header::HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// The routes of HTTP/JSON. Each is in the table of operations, which the middleware demands.
fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/healthz", get(operate::healthz))
        .route("/readyz", get(operate::readyz))
        .route("/metrics", get(operate::metrics))
        .route("/openapi.json", get(operate::openapi))
        .route("/v1/database", get(operate::database))
        .route("/v1/status", get(operate::status))
        .route("/v1/append", post(events::append))
        .route("/v1/subscribe", get(subscribe::subscribe))
        .route("/v1/streams/{stream}/events", get(events::read_stream))
        .route("/v1/streams/{stream}/head", get(events::stream_head))
        .route(
            "/v1/partitions/{partition}/events",
            get(events::read_partition),
        )
        .route(
            "/v1/partitions/{partition}/streams",
            get(events::list_streams),
        )
        .route(
            "/v1/partitions/{partition}/cursors",
            get(events::list_cursors),
        )
        .route(
            "/v1/partitions/{partition}/cursors/{name}",
            get(events::get_cursor).post(events::commit_cursor),
        )
        .route(
            "/v1/partitions/{partition}/events/{sequence}/proof",
            get(operate::proof),
        )
        .route("/v1/partitions/{partition}/trim", post(operate::trim))
        .route("/v1/modules", get(modules::list).post(modules::publish))
        .route("/v1/modules/{module}", get(modules::one))
        .route("/v1/modules/{module}/activate", post(modules::activate))
        .route("/v1/modules/{module}/halt", post(modules::halt))
        .route("/v1/modules/{module}/resume", post(modules::resume))
        .route("/v1/modules/{module}/skip", post(modules::skip))
        .route("/v1/modules/{module}/remove", post(modules::remove))
        .route(
            "/v1/snapshots",
            get(modules::list_snapshots).post(modules::take_snapshot),
        )
        .route("/v1/snapshots/prune", post(modules::prune_snapshots))
        .route("/v1/state/{module}/{table}/row", get(state::row))
        .route("/v1/state/{module}/{table}/rows", get(state::rows))
        .route("/v1/query/{operator}", post(state::query))
}

/// Serves the gRPC and HTTP port.
pub(crate) struct HttpService {
    shared: Arc<Shared>,
    router: Router,
    builder: auto::Builder<TokioExecutor>,
}

impl HttpService {
    /// A service with these gRPC routes.
    pub(crate) fn new(shared: Arc<Shared>, grpc: tonic::service::Routes) -> HttpService {
        let body_max = shared.config.limits.request_bytes_max;
        let router = routes()
            .layer(DefaultBodyLimit::max(body_max))
            .with_state(Arc::clone(&shared))
            .merge(grpc.into_axum_router())
            .method_not_allowed_fallback(no_such_method)
            .fallback(no_such_route)
            .layer(from_fn_with_state(Arc::clone(&shared), guard));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(shared.config.limits.header_timeout)
            .max_buf_size(HTTP1_BUFFER_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).expect("a small constant"))
            .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
            .adaptive_window(true)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        HttpService {
            shared,
            router,
            builder,
        }
    }
}

impl Serve for HttpService {
    fn refusal(&self) -> Vec<u8> {
        let error = ApiError::overloaded("the limit of connections is reached", 1000);
        let body = serde_json::to_string(&error).expect("an error is JSON");
        format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
             retry-after: 1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    fn gauge<'a>(&self, metrics: &'a Metrics) -> &'a AtomicI64 {
        &metrics.http_connections
    }

    async fn serve(&self, stream: TimedStream) {
        let requests = TaskTracker::new();
        let (router, counted) = (self.router.clone(), requests.clone());
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let token = counted.token();
            let answer = router.clone().oneshot(request.map(Body::new));
            async move {
                let answer = answer.await?;
                // Counts until the last byte of the answer is on its way.
                Ok::<_, Infallible>(answer.map(|body| Counted {
                    body,
                    _token: token,
                }))
            }
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut stopping = self.shared.stopping();
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = stopped(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                requests.close();
                // A client of HTTP/2 has to agree to the end; one that does not must not hold it up.
                let answered = async {
                    requests.wait().await;
                    tokio::time::sleep(GOODBYE_TIMEOUT).await;
                };
                tokio::select! {
                    outcome = connection => outcome,
                    () = answered => Ok(()),
                }
            }
        };
        if let Err(error) = outcome {
            tracing::debug!("a connection ended: {error}");
        }
    }
}

/// An answer's body that counts as under way as long as it lives.
struct Counted {
    body: Body,
    _token: TaskTrackerToken,
}

impl axum::body::HttpBody for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The bearer token of a request.
fn token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

fn refuse(grpc: bool, error: ApiError) -> Response {
    if grpc {
        Status::from(error).into_http()
    } else {
        HttpError(error).into_response()
    }
}

/// Lets a request pass that the table of operations knows and that its token may make.
async fn guard(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let grpc = is_grpc(request.headers());
    let matched = request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str);
    let operation = match matched {
        // The fallback answers.
        None => return next.run(request).await,
        Some(pattern) => http_operation(request.method().as_str(), pattern)
            .or_else(|| grpc_operation(request.uri().path())),
    };
    let Some(operation) = operation else {
        return no_such_method(request).await;
    };
    let admitted = shared
        .access
        .admit(operation, token(request.headers()))
        .await;
    let standing = match admitted {
        Ok(standing) => standing,
        Err(error) => {
            if matches!(
                error.code,
                ErrorCode::Unauthenticated | ErrorCode::PermissionDenied
            ) {
                shared
                    .metrics
                    .access_refused
                    .fetch_add(1, Ordering::Relaxed);
            }
            return refuse(grpc, error);
        }
    };
    request.extensions_mut().insert(standing);
    let begun_ns = shared.clock.monotonic_ns();
    let response = next.run(request).await;
    let taken_ns = shared.clock.monotonic_ns().saturating_sub(begun_ns);
    shared.metrics.other.record(Duration::from_nanos(taken_ns));
    response
}

async fn no_such_route(request: Request) -> Response {
    let path = request.uri().path();
    if is_grpc(request.headers()) {
        return Status::unimplemented(format!("there is no method {path}")).into_http();
    }
    let message = format!("there is no route {path}; GET /openapi.json lists them");
    HttpError(ApiError::new(ErrorCode::NotFound, message)).into_response()
}

async fn no_such_method(request: Request) -> Response {
    if is_grpc(request.headers()) {
        return no_such_route(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let error = ApiError::invalid_argument(format!("{path} does not take {method}"));
    let mut response = HttpError(error).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// Reads a JSON body within the limits of size and time.
pub(super) async fn json_body<T: serde::de::DeserializeOwned>(
    shared: &Shared,
    headers: &HeaderMap,
    body: Body,
) -> Result<(T, tokio::sync::OwnedSemaphorePermit), HttpError> {
    let most = shared.config.limits.request_bytes_max;
    let (bytes, permit) = bytes_body(shared, headers, body, "request_bytes_max", most).await?;
    let value = serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::invalid_argument(format!("the body is not acceptable: {error}"))
    })?;
    Ok((value, permit))
}

/// Reads a body of at most so many bytes (a limit with a name) within the limits of memory and time.
pub(super) async fn bytes_body(
    shared: &Shared,
    headers: &HeaderMap,
    body: Body,
    limit_name: &str,
    most: usize,
) -> Result<(bytes::Bytes, tokio::sync::OwnedSemaphorePermit), HttpError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<usize>().ok());
    if let Some(announced) = announced.filter(|announced| *announced > most) {
        if announced <= DRAIN_BYTES_MAX {
            drain(shared, body).await;
        }
        return Err(too_large(limit_name, most, announced).into());
    }
    // A body whose length is not announced may be as long as any.
    let permit = shared.reserve_bytes(announced.unwrap_or(most))?;
    let limit = shared.config.limits.request_timeout;
    let bytes = match tokio::time::timeout(limit, axum::body::to_bytes(body, most)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let error = error.into_inner();
            if error.is::<http_body_util::LengthLimitError>() {
                return Err(too_large(limit_name, most, most + 1).into());
            }
            return Err(
                ApiError::invalid_argument(format!("the body ended early: {error}")).into(),
            );
        }
        Err(_) => {
            return Err(
                ApiError::new(ErrorCode::Deadline, "the body was not complete in time")
                    .with_outcome(truthdb_api::Outcome::DidNotHappen)
                    .into(),
            );
        }
    };
    Ok((bytes, permit))
}

/// Takes a body and forgets it.
async fn drain(shared: &Shared, body: Body) {
    let mut chunks = body.into_data_stream();
    let all = async { while let Some(Ok(_)) = chunks.next().await {} };
    // A client that takes longer will not get to its answer.
    let _ = tokio::time::timeout(shared.config.limits.request_timeout, all).await;
}

fn too_large(limit: &str, most: usize, actual: usize) -> ApiError {
    let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    ApiError::limit_exceeded(limit, number(most), number(actual))
}

/// The parameters of a query, each checked to be one of the known.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>, known: &[&str]) -> Result<Query, ApiError> {
        let uri = format!("/?{}", query.unwrap_or_default());
        let uri: http::Uri = uri
            .parse()
            .map_err(|_| ApiError::invalid_argument("the query is malformed"))?;
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri)
            .map_err(|error| ApiError::invalid_argument(error.body_text()))?
            .0;
        for (name, _) in &pairs {
            if !known.contains(&name.as_str()) {
                let known = known.join(", ");
                let message = format!("unknown parameter {name}; known are: {known}");
                return Err(ApiError::invalid_argument(message));
            }
        }
        Ok(Query(pairs))
    }

    pub(super) fn one(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        self.one(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::invalid_argument(format!("{name}={text:?} is not a whole number"))
                })
            })
            .transpose()
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, ApiError> {
        match self.one(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => {
                let message = format!("{name}={text:?} is neither true nor false");
                Err(ApiError::invalid_argument(message))
            }
        }
    }
}

/// The partition that a query names, if it names one.
fn partition(query: &Query) -> Result<Option<u32>, ApiError> {
    let number = query.number("partition")?;
    number
        .map(|number| {
            u32::try_from(number).map_err(|_| {
                ApiError::new(
                    ErrorCode::NotFound,
                    format!("there is no partition {number}"),
                )
            })
        })
        .transpose()
}

/// A number in a path.
pub(super) fn path_number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|_| ApiError::invalid_argument(format!("{name} {text:?} is not a whole number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::access::{Door, OPERATIONS};

    /// axum does not list its routes: the source is the list.
    #[test]
    fn every_route_is_in_the_table_of_operations_and_the_other_way_round() {
        let source = include_str!("mod.rs");
        let body = source
            .split("fn routes()")
            .nth(1)
            .unwrap()
            .split("\n}\n")
            .next()
            .unwrap();
        let mut routes: Vec<(String, String)> = Vec::new();
        for part in body.split(".route(").skip(1) {
            let path = part.split('"').nth(1).unwrap();
            for (call, method) in [("get(", "GET"), ("post(", "POST"), ("put(", "PUT")] {
                if part.contains(call) {
                    routes.push((method.to_owned(), path.to_owned()));
                }
            }
        }
        for (method, path) in &routes {
            assert!(
                http_operation(method, path).is_some(),
                "{method} {path} is not in the table"
            );
        }
        for operation in OPERATIONS {
            if let Door::Http(method, path) = operation.door {
                let known = routes.iter().any(|(m, p)| m == method && p == path);
                assert!(known, "{method} {path} has no route");
            }
        }
    }

    #[test]
    fn a_bearer_token_is_found_whatever_the_case_of_its_scheme() {
        let mut headers = HeaderMap::new();
        assert_eq!(token(&headers), None);
        headers.insert(header::AUTHORIZATION, "bearer  abc ".parse().unwrap());
        assert_eq!(token(&headers), Some(&b"abc"[..]));
        headers.insert(header::AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(token(&headers), None);
    }
}
