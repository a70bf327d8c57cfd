//! Asks the server on this machine over the loopback interface: HTTP over TLS with the node's own certificate as the
//! only one that is trusted, or plain where the server's configuration has no TLS.

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use truthdb_installer::plan::Sha256;

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

/// Asks for a path. `certificate` is the server's, `None` without TLS; `token` may be empty.
///
/// # Errors
///
/// What the operating system or TLS says.
pub(crate) fn get(
    address: SocketAddr,
    certificate: Option<&Path>,
    path: &str,
    token: &str,
) -> io::Result<Answer> {
    let socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let Some(certificate) = certificate else {
        return talk(socket, path, token);
    };
    let name = ServerName::try_from(NAME).map_err(invalid)?;
    let connection = ClientConnection::new(config(certificate)?, name).map_err(invalid)?;
    talk(StreamOwned::new(connection, socket), path, token)
}

fn talk(mut stream: impl io::Read + io::Write, path: &str, token: &str) -> io::Result<Answer> {
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

/// SHA-256 of a certificate, hexadecimal with colons, as clients pin it.
pub(crate) fn fingerprint(certificate: &Path) -> Option<String> {
    let certificate = CertificateDer::from_pem_file(certificate).ok()?;
    let hash = Sha256::of(&certificate);
    let pairs: Vec<String> = hash.0.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(pairs.join(":"))
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
        assert!(get(address, Some(Path::new("/none")), "/readyz", "").is_err());
    }

    #[test]
    fn without_tls_the_same_is_asked() {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = io::Read::read(&mut stream, &mut request).unwrap();
            io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\nready").unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let answer = get(address, None, "/readyz", "secret").unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, "ready"));
        let request = server.join().unwrap();
        assert!(request.contains("GET /readyz ") && request.contains("Bearer secret"));
    }
}
