//! Asks the server on this machine: HTTP over TLS, on the loopback interface, with the node's own
//! certificate as the only one that is trusted.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

/// How long the server may take for anything.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// A longer answer is cut: metrics have some kilobytes for each partition.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// A name that every certificate of a node is for.
const NAME: &str = "localhost";

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: String,
}

/// Asks for a path. `certificate` is the server's; `token` may be empty.
///
/// # Errors
///
/// What the operating system or TLS says.
pub(crate) fn get(
    address: SocketAddr,
    certificate: &Path,
    path: &str,
    token: &str,
) -> io::Result<Answer> {
    let socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let name = ServerName::try_from(NAME).map_err(invalid)?;
    let connection = ClientConnection::new(config(certificate)?, name).map_err(invalid)?;
    let mut stream = StreamOwned::new(connection, socket);
    // HTTP/1.0: the answer ends with the connection, in one piece.
    let authorization = if token.is_empty() {
        String::new()
    } else {
        format!("Authorization: Bearer {token}\r\n")
    };
    let request = format!("GET {path} HTTP/1.0\r\nHost: {NAME}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
        // A connection that ends without TLS's goodbye still brought its answer.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        _ => {}
    }
    parse(&answer).ok_or_else(|| invalid("the server's answer is not HTTP"))
}

fn config(certificate: &Path) -> io::Result<Arc<ClientConfig>> {
    let certificate = CertificateDer::from_pem_file(certificate).map_err(invalid)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(invalid)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(invalid)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some(Answer {
        status: status.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed_and_noise_is_none() {
        let answer = parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n{}").unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, "{}"));
        for noise in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 x\r\n\r\n",
            b"\xff\r\n\r\n",
            b"SSH-2.0",
        ] {
            assert_eq!(parse(noise), None);
        }
    }

    #[test]
    fn nobody_listening_is_an_error_at_once() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(get(address, Path::new("/none"), "/readyz", "").is_err());
    }
}
