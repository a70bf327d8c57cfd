//! TLS by rustls: roots from PEM, or one pinned certificate.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{ClientConfig, ClientError, Tls};

/// Bytes both ways, over TCP or TLS.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Connects to `config.addr`, protected as the configuration says, for a protocol other than the
/// native one: the same certificates are trusted. Nothing is sent.
///
/// # Errors
/// A server that cannot be reached in [`ClientConfig::connect_timeout`], or whose certificate is
/// not trusted.
pub async fn open_stream(config: &ClientConfig) -> Result<Box<dyn ByteStream>, ClientError> {
    let connector = connector(config)?;
    let unreachable = |why: &dyn std::fmt::Display| {
        let message = format!("cannot reach {}: {why}", config.addr);
        ClientError::unavailable(message, truthdb_api::Outcome::DidNotHappen)
    };
    let attempt = async {
        let socket = TcpStream::connect(&config.addr).await;
        let socket = socket.map_err(|error| unreachable(&error))?;
        socket
            .set_nodelay(true)
            .map_err(|error| unreachable(&error))?;
        let stream: Box<dyn ByteStream> = match connector {
            None => Box::new(socket),
            Some((connector, name)) => {
                let stream = connector.connect(name, socket).await;
                Box::new(stream.map_err(|error| handshake_error(&error))?)
            }
        };
        Ok(stream)
    };
    match tokio::time::timeout(config.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(unreachable(&"no answer in time")),
    }
}

/// A connector and the name to ask for; `None` without TLS.
pub(crate) fn connector(
    config: &ClientConfig,
) -> Result<Option<(TlsConnector, ServerName<'static>)>, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?;
    let tls = match &config.tls {
        Tls::None => return Ok(None),
        Tls::PinnedFingerprint(pinned) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                pinned: *pinned,
                provider,
            }))
            .with_no_client_auth(),
        Tls::Roots(pem) => builder
            .with_root_certificates(roots(pem)?)
            .with_no_client_auth(),
    };
    let name = match &config.server_name {
        Some(name) => name.clone(),
        None => host_of(&config.addr).to_owned(),
    };
    let name = ServerName::try_from(name).map_err(tls_error)?;
    Ok(Some((TlsConnector::from(Arc::new(tls)), name)))
}

fn tls_error(error: impl std::fmt::Display) -> ClientError {
    ClientError::Tls(error.to_string())
}

fn roots(pem: &[u8]) -> Result<rustls::RootCertStore, ClientError> {
    let mut store = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        store
            .add(certificate.map_err(tls_error)?)
            .map_err(tls_error)?;
    }
    if store.is_empty() {
        return Err(ClientError::Tls(
            "the PEM text holds no certificate".to_owned(),
        ));
    }
    Ok(store)
}

/// The host of `host:port` or `[v6]:port`.
fn host_of(addr: &str) -> &str {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What [`Pinned`] refuses, carried through rustls to the caller.
#[derive(Debug, thiserror::Error)]
#[error("fingerprint {actual} instead of {pinned}")]
struct Mismatch {
    pinned: String,
    actual: String,
}

/// The caller's error for a failed handshake.
pub(crate) fn handshake_error(error: &std::io::Error) -> ClientError {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
            match inner.downcast_ref::<Mismatch>() {
                Some(mismatch) => ClientError::PinMismatch {
                    pinned: mismatch.pinned.clone(),
                    actual: mismatch.actual.clone(),
                },
                None => tls_error(error),
            }
        }
        Some(other) => tls_error(other),
        None => ClientError::unavailable(
            format!("the TLS handshake broke off: {error}"),
            truthdb_api::Outcome::DidNotHappen,
        ),
    }
}

/// Accepts exactly one certificate. The handshake's signature is still verified, so that having
/// seen the certificate is not enough to pose as its owner.
#[derive(Debug)]
struct Pinned {
    pinned: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let actual = ring::digest::digest(&ring::digest::SHA256, end_entity);
        if actual.as_ref() == self.pinned {
            return Ok(ServerCertVerified::assertion());
        }
        let mismatch = Mismatch {
            pinned: hex(&self.pinned),
            actual: hex(actual.as_ref()),
        };
        Err(CertificateError::Other(OtherError(Arc::new(mismatch))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_taken_from_names_and_from_both_kinds_of_address() {
        assert_eq!(host_of("db.example:7434"), "db.example");
        assert_eq!(host_of("127.0.0.1:7434"), "127.0.0.1");
        assert_eq!(host_of("[::1]:7434"), "::1");
    }
}
