//! What is measured: a server over one of its protocols, or an engine in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use truthdb_api::v1;
use truthdb_api::v1::log_client::LogClient;
use truthdb_client::{Client, ClientConfig, NewBatch, Read};
use truthdb_engine::{
    AppendBatch, AppendError, AppendSink, Appended, Direction, EncodedEvents, Engine, EngineConfig,
    Filter, ReadFrom, ReadRequest,
};
use truthdb_event::EventRef;
use truthdb_log::CreateOptions;

use super::child::Server;
use super::events::{Author, Digest, Payload};
use crate::exit::{ExitClass, Failure};
use crate::server::config::IoBackend;
use crate::server::open_world;

/// How appends travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Protocol {
    /// The native protocol: one client, shared by all writers.
    Native,
    /// gRPC: one HTTP/2 connection, one unary call for each append.
    Grpc,
    /// No network: an engine in this process.
    Engine,
}

impl Protocol {
    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Protocol::Native => "native",
            Protocol::Grpc => "grpc",
            Protocol::Engine => "engine",
        }
    }
}

/// Takes appends. Cheap to clone.
#[derive(Clone)]
pub(super) enum Target {
    /// See [`Protocol::Native`].
    Native(Client),
    /// See [`Protocol::Grpc`].
    Grpc(LogClient<Channel>),
    /// See [`Protocol::Engine`].
    Engine(Engine),
}

/// A failed request of the measurement itself.
pub(super) fn failed(
    what: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Failure {
    Failure::new(ExitClass::Network, what).with_source(error)
}

/// Passes one outcome to the task that waits for it.
struct OneShot(Mutex<Option<oneshot::Sender<Result<Appended, AppendError>>>>);

impl AppendSink for OneShot {
    fn complete(&self, _: u64, result: Result<Appended, AppendError>, _: Box<AppendBatch>) {
        if let Some(sender) = self.0.lock().take() {
            // The task has gone only when the measurement failed.
            let _ = sender.send(result);
        }
    }
}

/// Connects to a server by the native protocol.
///
/// # Errors
///
/// `network`: it cannot be reached.
pub(super) async fn connect(server: &Server) -> Result<Client, Failure> {
    Client::connect(ClientConfig::new(&server.native))
        .await
        .map_err(|error| failed("cannot connect to the server to measure", error))
}

/// Makes a database, if there is none, and opens it in this process.
///
/// # Errors
///
/// Those of the directory and the engine.
pub(super) fn open_engine(
    directory: &Path,
    config: EngineConfig,
    segment_bytes: u64,
) -> Result<Engine, Failure> {
    let (world, _) = open_world(directory, IoBackend::Auto)?;
    if !directory.join("metadata").exists() {
        let options = CreateOptions {
            segment_bytes,
            ..CreateOptions::default()
        };
        crate::server::create(&world, directory, &options)?;
    }
    Engine::open(world, config)
        .map_err(|error| Failure::environment("the engine to measure does not open", error))
}

impl Target {
    /// Connects to a server.
    ///
    /// # Errors
    ///
    /// `network`: it cannot be reached.
    pub(super) async fn connect(server: &Server, protocol: Protocol) -> Result<Target, Failure> {
        if protocol != Protocol::Grpc {
            return Ok(Target::Native(connect(server).await?));
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", server.http))
            .map_err(|error| failed("the server's address is no address", error))?
            .tcp_nodelay(true);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| failed("cannot connect to the server to measure", error))?;
        Ok(Target::Grpc(LogClient::new(channel)))
    }

    /// Appends the next batch of a writer and returns what was acknowledged.
    ///
    /// # Errors
    ///
    /// The append failed: the measurement is void.
    pub(super) async fn append(
        &mut self,
        author: &mut Author,
        events: usize,
    ) -> Result<Digest, Failure> {
        let mut digest = Digest {
            events: events as u64,
            sum: 0,
        };
        match self {
            Target::Native(client) => {
                let mut batch = NewBatch::new();
                for _ in 0..events {
                    let (pushed, sum) = author.next(|event| batch.push(event));
                    pushed.map_err(|error| failed("the batch is not legal", error))?;
                    digest.sum = digest.sum.wrapping_add(sum);
                }
                let acknowledged = client.append(batch).await;
                acknowledged.map_err(|error| failed("an append failed", error))?;
            }
            Target::Grpc(client) => {
                let mut request = v1::AppendRequest::default();
                for _ in 0..events {
                    let (event, sum) = author.next(grpc_event);
                    request.events.push(event?);
                    digest.sum = digest.sum.wrapping_add(sum);
                }
                let acknowledged = client.append(request).await;
                acknowledged.map_err(|error| failed("an append failed", error))?;
            }
            Target::Engine(engine) => {
                let mut bytes = Vec::new();
                for _ in 0..events {
                    let (encoded, sum) = author.next(|event| event.encode_into(&mut bytes));
                    encoded.map_err(|error| failed("the event is not legal", error))?;
                    digest.sum = digest.sum.wrapping_add(sum);
                }
                append_to_engine(engine, bytes).await?;
            }
        }
        Ok(digest)
    }

    /// Reads partition 0 from its first event to its last and checks every event. Returns the
    /// digest of what was there.
    ///
    /// # Errors
    ///
    /// It cannot be read, or an event is not what was written.
    pub(super) async fn read_all(&self, payload: &Payload) -> Result<Digest, Failure> {
        match self {
            Target::Native(client) => read_native(client, payload).await,
            Target::Grpc(_) => Err(Failure::new(
                ExitClass::Internal,
                "reading back goes by the native protocol",
            )),
            Target::Engine(engine) => read_engine(engine, payload),
        }
    }
}

fn grpc_event(event: truthdb_event::EventBuilder<'_>) -> Result<v1::NewEvent, Failure> {
    let mut bytes = Vec::new();
    event
        .encode_into(&mut bytes)
        .map_err(|error| failed("the event is not legal", error))?;
    let event = EventRef::parse(&bytes).map_err(|error| failed("the event is not legal", error))?;
    Ok(v1::NewEvent {
        id: event.id().as_bytes().to_vec().into(),
        stream: event.stream().to_owned(),
        r#type: event.event_type().to_owned(),
        payload: event.payload().to_vec().into(),
        ..v1::NewEvent::default()
    })
}

/// Pause before an append that was refused for the time being is tried again, as a client does it.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

async fn append_to_engine(engine: &Engine, bytes: Vec<u8>) -> Result<(), Failure> {
    let bytes = bytes::Bytes::from(bytes);
    loop {
        let events = EncodedEvents {
            bytes: bytes.clone(),
            ..EncodedEvents::default()
        };
        let batch = engine
            .prepare(None, events)
            .map_err(|error| failed("the engine refuses the batch", error))?;
        let (sender, receiver) = oneshot::channel();
        let sink = Arc::new(OneShot(Mutex::new(Some(sender))));
        let outcome = match engine.append(batch, sink, 0) {
            Ok(()) => receiver
                .await
                .map_err(|error| failed("the engine lost an append", error))?,
            Err((error, _)) => Err(error),
        };
        match outcome {
            Ok(_) => return Ok(()),
            // Seals may be slower than appends for a while; that what waits for them is bounded is as it should be.
            Err(AppendError::Overloaded { .. }) => tokio::time::sleep(RETRY_PAUSE).await,
            Err(error) => return Err(failed("an append failed", error)),
        }
    }
}

/// An event came back with other bytes than were written.
pub(super) fn wrong_event(sequence: u64) -> Failure {
    let message = format!("event {sequence} is not what its writer appended");
    Failure::new(ExitClass::Damaged, message)
}

async fn read_native(client: &Client, payload: &Payload) -> Result<Digest, Failure> {
    let mut digest = Digest::default();
    let mut pages = client
        .read(Read::partition(0))
        .map_err(|error| failed("cannot read everything back", error))?;
    let read_failed = |error| failed("cannot read everything back", error);
    while let Some(page) = pages.next().await.map_err(read_failed)? {
        for event in page.events() {
            if !digest.read(&event.event(), payload) {
                return Err(wrong_event(event.sequence()));
            }
        }
    }
    Ok(digest)
}

fn read_engine(engine: &Engine, payload: &Payload) -> Result<Digest, Failure> {
    let mut digest = Digest::default();
    let mut request = ReadRequest {
        partition: 0,
        from: ReadFrom::Start,
        direction: Direction::Forward,
        filter: Filter::default(),
        events_max: 10_000,
        bytes_max: 4 << 20,
    };
    loop {
        let page = engine
            .read(&request)
            .map_err(|error| failed("cannot read everything back", error))?;
        for event in page.events() {
            if !digest.read(&event.event(), payload) {
                return Err(wrong_event(event.sequence));
            }
        }
        match page.next {
            Some(next) if !page.at_end => request.from = ReadFrom::Sequence(next),
            _ => return Ok(digest),
        }
    }
}
