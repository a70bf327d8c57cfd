//! Talking to a server: the native protocol for events, gRPC for administration.

use std::future::Future;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use tokio::runtime::{Builder, Runtime};
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use truthdb_api::v1::admin_client::AdminClient;
use truthdb_api::v1::log_client::LogClient;
use truthdb_api::v1::modules_client::ModulesClient;
use truthdb_api::v1::state_client::StateClient;
use truthdb_api::{ApiError, GRPC_MESSAGE_BYTES_MAX};
use truthdb_client::{Client, ClientConfig, ClientError, Tls};

use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};

/// Where the administration of a server is reached.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GrpcArgs {
    /// Server to talk to for administration: host:port of its gRPC and HTTP.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "TRUTHDB_GRPC",
        default_value = "127.0.0.1:7433"
    )]
    pub grpc: String,
}

/// Runs a command's network part to its end.
///
/// # Errors
///
/// The command's own, and `environment` when the machine gives no reactor.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime: Runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::environment("cannot start the network", error))?;
    runtime.block_on(work)
}

fn config(globals: &Globals, address: &str) -> Result<ClientConfig, Failure> {
    let mut config = ClientConfig::new(address);
    config.token.clone_from(&globals.token);
    // A person waits: an address where nothing listens should show soon.
    config.retry.tries_max = 5;
    if let Some(text) = &globals.tls_fingerprint {
        config.tls = Tls::PinnedFingerprint(parse_fingerprint(text)?);
    }
    if let Some(path) = &globals.tls_ca {
        let pem = std::fs::read(path).map_err(|error| {
            Failure::environment(format!("cannot read {}", path.display()), error)
        })?;
        config.tls = Tls::Roots(pem);
    }
    Ok(config)
}

fn parse_fingerprint(text: &str) -> Result<[u8; 32], Failure> {
    let wrong = || {
        Failure::usage("--tls-fingerprint: a SHA-256 fingerprint is 64 hexadecimal digits")
            .with_action("Copy it from what the server prints at its start.")
    };
    parse_hash(text).ok_or_else(wrong)
}

/// 32 bytes from 64 hexadecimal digits, colons between them allowed.
pub(crate) fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("ASCII digits");
        *byte = u8::from_str_radix(pair, 16).expect("hexadecimal digits");
    }
    Some(hash)
}

/// Connects by the native protocol.
///
/// # Errors
///
/// `network`, `access`, or what the client says.
pub(crate) async fn client(globals: &Globals) -> Result<Client, Failure> {
    Client::connect(config(globals, &globals.server)?)
        .await
        .map_err(client_failure)
}

/// Adds the token to every call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A gRPC connection that carries the token.
pub(crate) type Grpc = InterceptedService<Channel, Bearer>;

async fn grpc(globals: &Globals, args: &GrpcArgs) -> Result<Grpc, Failure> {
    let config = config(globals, &args.grpc)?;
    let value = config.token.as_ref().map(|token| {
        MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Failure::usage("--token: it holds characters that no token has"))
    });
    let bearer = Bearer(value.transpose()?);
    // Opened here and not by the channel, so that a refusal keeps its own words.
    let stream = truthdb_client::open_stream(&config)
        .await
        .map_err(client_failure)?;
    let opened = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = opened.lock().expect("nobody panics with it").take();
        let lost = || std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection lost");
        std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
    });
    // The name is only for the header: the stream is connected already.
    let channel =
        Endpoint::from_static("http://truthdb")
            .connect_with_connector(connector)
            .await
            .map_err(|error| {
                let message = format!("cannot speak gRPC to {}", args.grpc);
                Failure::new(ExitClass::Network, message).with_source(error).with_action(
                "Check --grpc: it is the address of gRPC and HTTP, not of the native protocol.",
            )
            })?;
    Ok(InterceptedService::new(channel, bearer))
}

/// Connects to a server's administration.
///
/// # Errors
///
/// `network`, `access`.
pub(crate) async fn admin(
    globals: &Globals,
    args: &GrpcArgs,
) -> Result<AdminClient<Grpc>, Failure> {
    let client = AdminClient::new(grpc(globals, args).await?);
    Ok(client.max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX))
}

/// Connects to a server's log by gRPC, for the listings that the native protocol does not have.
///
/// # Errors
///
/// `network`, `access`.
pub(crate) async fn log(globals: &Globals, args: &GrpcArgs) -> Result<LogClient<Grpc>, Failure> {
    let client = LogClient::new(grpc(globals, args).await?);
    Ok(client.max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX))
}

/// Connects to a server's modules.
///
/// # Errors
///
/// `network`, `access`.
pub(crate) async fn modules(
    globals: &Globals,
    args: &GrpcArgs,
) -> Result<ModulesClient<Grpc>, Failure> {
    let client = ModulesClient::new(grpc(globals, args).await?);
    Ok(client.max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX))
}

/// Connects to a server's state.
///
/// # Errors
///
/// `network`, `access`.
pub(crate) async fn state(
    globals: &Globals,
    args: &GrpcArgs,
) -> Result<StateClient<Grpc>, Failure> {
    let client = StateClient::new(grpc(globals, args).await?);
    // A page from each of many partitions.
    Ok(client.max_decoding_message_size(usize::MAX))
}

/// The failure of a gRPC call.
pub(crate) fn call_failure(status: Status) -> Failure {
    ApiError::from_status(&status).into()
}

/// The failure of a call of the client.
pub(crate) fn client_failure(error: ClientError) -> Failure {
    let class = match error {
        ClientError::Api(error) => return error.into(),
        ClientError::Event(_) | ClientError::InvalidArgument(_) => ExitClass::Usage,
        ClientError::SeveralPartitions { .. } | ClientError::OtherDatabase { .. } => {
            ExitClass::Refused
        }
        ClientError::PinMismatch { .. } | ClientError::Tls(_) => ExitClass::Access,
        _ => ExitClass::Network,
    };
    let mut failure = Failure::new(class, error.to_string());
    if let ClientError::PinMismatch { .. } = &error {
        failure = failure.with_action(
            "If the server got a new certificate, take the fingerprint from its own start message.",
        );
    }
    match std::error::Error::source(&error) {
        Some(source) => failure.with_source(source.to_string()),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_with_and_without_colons_and_nothing_else_is() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(parse_hash(&plain), Some([0xab; 32]));
        assert_eq!(parse_hash(&colons), Some([0xab; 32]));
        for wrong in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert_eq!(parse_hash(wrong), None, "{wrong}");
        }
    }
}
