//! TLS: a certificate of one's own, made at the first start, or files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::config::{Tls, TlsMode};

/// Where the certificate of one's own lies, below the data directory.
const DIRECTORY: &str = "server/tls";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it must be.
    #[error("{path} is not usable: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// TLS, ready to accept connections.
pub(crate) struct ServerTls {
    /// For connections.
    pub acceptor: tokio_rustls::TlsAcceptor,
    /// SHA-256 of the certificate, hex with colons: what clients pin.
    pub fingerprint: String,
}

/// Sets TLS up as configured; `None` when it is off.
///
/// # Errors
///
/// Files that are missing or not usable.
pub(crate) fn set_up(tls: &Tls, data: &Path) -> Result<Option<ServerTls>, TlsError> {
    let (certificate, key) = match tls.mode {
        TlsMode::Off => return Ok(None),
        TlsMode::Files => (tls.certificate_file.clone(), tls.key_file.clone()),
        TlsMode::SelfSigned => own_certificate(tls, &data.join(DIRECTORY))?,
    };
    let unusable = |path: &Path, reason: String| TlsError::Unusable {
        path: path.to_owned(),
        reason,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(&certificate, error.to_string()))?;
    let Some(first) = chain.first() else {
        return Err(unusable(&certificate, "it holds no certificate".into()));
    };
    let fingerprint = fingerprint(first);
    let secret =
        PrivateKeyDer::from_pem_file(&key).map_err(|error| unusable(&key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| unusable(&key, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"truthdb".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    Ok(Some(ServerTls {
        acceptor,
        fingerprint,
    }))
}

/// SHA-256 of a certificate's DER, hex with colons.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    // rustls brings ring, which has SHA-256; another crate for it is not needed.
    let provider = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = provider.tls13().expect("this is a suite of TLS 1.3");
    let digest = suite.common.hash_provider.hash(certificate);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// The certificate of one's own; made if it is not there.
fn own_certificate(tls: &Tls, directory: &Path) -> Result<(PathBuf, PathBuf), TlsError> {
    let certificate = directory.join("certificate.pem");
    let key = directory.join("key.pem");
    let exists = |path: &Path| {
        path.try_exists().map_err(|source| TlsError::Io {
            what: "look at",
            path: path.to_owned(),
            source,
        })
    };
    match (exists(&certificate)?, exists(&key)?) {
        (true, true) => return Ok((certificate, key)),
        (true, false) => {
            let reason = "its key.pem is missing; restore it, or remove the certificate to have \
                          a new one made, which clients must pin again";
            return Err(TlsError::Unusable {
                path: certificate,
                reason: reason.into(),
            });
        }
        // A key alone is what a crash between the two writes leaves; both are made again.
        (false, _) => {}
    }
    let unusable = |error: rcgen::Error| TlsError::Unusable {
        path: certificate.clone(),
        reason: error.to_string(),
    };
    let secret = rcgen::KeyPair::generate().map_err(unusable)?;
    let mut params = rcgen::CertificateParams::new(tls.names.clone()).map_err(unusable)?;
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "truthdb");
    // Clients pin the certificate; an end of its life would only be an outage.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let made = params.self_signed(&secret).map_err(unusable)?;
    std::fs::create_dir_all(directory).map_err(|source| TlsError::Io {
        what: "create",
        path: directory.to_owned(),
        source,
    })?;
    store(&key, &secret.serialize_pem())?;
    store(&certificate, &made.pem())?;
    tracing::info!(path = %certificate.display(), "made a self-signed certificate");
    Ok((certificate, key))
}

fn store(path: &Path, text: &str) -> Result<(), TlsError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let io = |source| TlsError::Io {
        what: "write",
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io)?;
    rustix::fs::rename(&temporary, path).map_err(|error| io(error.into()))
}
