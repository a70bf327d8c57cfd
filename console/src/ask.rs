//! Asks the server on this machine: HTTP over TLS with the certificate of the server's configuration as the only one
//! that is trusted, or plain where the configuration has no TLS.

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use truthdb_installer::plan::Sha256;

/// How long the server may take for anything.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// A longer answer is cut: metrics have some kilobytes for each partition.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// What is said of a certificate that is not the one that was expected.
const OTHER_CERTIFICATE: &str = "its certificate is not the one in the configured file, as when that was replaced \
                                 since the server's start";

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
        return talk(socket, address, path, token);
    };
    let name = ServerName::from(address.ip());
    let connection = ClientConnection::new(config(certificate)?, name).map_err(invalid)?;
    talk(StreamOwned::new(connection, socket), address, path, token)
}

fn talk(
    mut stream: impl io::Read + io::Write,
    address: SocketAddr,
    path: &str,
    token: &str,
) -> io::Result<Answer> {
    // HTTP/1.0: the answer ends with the connection, in one piece.
    let authorization = if token.is_empty() {
        String::new()
    } else {
        format!("Authorization: Bearer {token}\r\n")
    };
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{authorization}\r\n");
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned {
        certificate,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(invalid)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Trusts one certificate, whoever has issued it, whatever name it is for, and whatever the time: the connection stays
/// on this machine, whose clock may be wrong, and the file says which certificate is the server's.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
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
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity != self.certificate {
            return Err(Error::General(OTHER_CERTIFICATE.to_owned()));
        }
        Ok(ServerCertVerified::assertion())
    }

    // Whoever answers has the certificate's key: a certificate alone is known to everybody.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
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
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::crypto::ring::sign::any_supported_type;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{ServerConfig, ServerConnection};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    /// A server of one answer over TLS. Its key need not be the certificate's.
    fn serve(certificate: CertificateDer<'static>, key: &KeyPair) -> SocketAddr {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let shown = CertifiedKey::new(vec![certificate], any_supported_type(&key).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = StreamOwned::new(connection, socket);
            // A client that refuses the certificate sends nothing.
            if stream.read(&mut [0; 512]).is_ok() {
                io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\nready").unwrap();
                stream.conn.send_close_notify();
                io::Write::flush(&mut stream).unwrap();
            }
        });
        address
    }

    /// A certificate for a name of no interest here, at a time that is not now, by an authority of its own.
    fn issued(year: i32) -> (rcgen::Certificate, KeyPair) {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = Issuer::new(authority, KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = rcgen::date_time_ymd(year + 1, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    }

    #[test]
    fn the_certificate_of_the_file_is_trusted_whoever_when_and_for_whom() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("certificate.pem");
        for year in [2001, 2999] {
            let (certificate, key) = issued(year);
            std::fs::write(&file, certificate.pem()).unwrap();
            let address = serve(certificate.der().clone(), &key);
            let answer = get(address, Some(&file), "/readyz", "").unwrap();
            assert_eq!((answer.status, &answer.body[..]), (200, "ready"));
        }
    }

    #[test]
    fn another_certificate_and_another_key_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("certificate.pem");
        let (certificate, _) = issued(2001);
        std::fs::write(&file, certificate.pem()).unwrap();
        let (other, other_key) = issued(2001);
        let refused = |address| get(address, Some(&file), "/readyz", "secret").unwrap_err();
        let error = refused(serve(other.der().clone(), &other_key));
        assert!(error.to_string().contains(OTHER_CERTIFICATE), "{error}");
        // The right certificate, shown by somebody without its key.
        let error = refused(serve(certificate.der().clone(), &other_key));
        assert!(error.to_string().contains("BadSignature"), "{error}");
    }

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
