//! What a new node gets: its name, its configuration, its certificate and its first token.
//!
//! Configuration follows from the machine and what was set, by pure functions: the same machine gives
//! the same bytes. Certificate and token are random, and made here so that they can be shown before
//! the node has ever started; what is stored is what the server itself would have stored.

mod config;
mod record;
mod secrets;

use crate::flow::{Hardware, Network, Secrets, Settings};
use crate::plan::FileContent;

pub use config::{check_partitions, default_settings, node_toml, server_toml};
pub use record::{Origin, RECORD_PATH, record};
pub use secrets::{Identity, SecretsError, timestamp};

/// The files of a new node's data partition, and what is shown of them once.
///
/// # Errors
///
/// When there is no randomness, or no certificate can be made.
pub fn files(
    hardware: &Hardware,
    settings: &Settings,
    created_s: u64,
) -> Result<(Vec<FileContent>, Secrets), SecretsError> {
    let identity = Identity::generate(settings, created_s)?;
    let file = |path: &str, mode, bytes: String| FileContent {
        path: path.to_owned(),
        mode,
        bytes: bytes.into_bytes().into(),
    };
    let files = vec![
        file("config/node.toml", 0o644, node_toml(hardware, settings)),
        file(
            "config/truthdb.toml",
            0o644,
            server_toml(hardware, settings),
        ),
        file("config/console-token", 0o600, identity.console_token),
        file("server/tokens.toml", 0o600, identity.tokens_toml),
        file(
            "server/tls/certificate.pem",
            0o644,
            identity.certificate_pem,
        ),
        file("server/tls/key.pem", 0o600, identity.key_pem),
    ];
    Ok((
        files,
        Secrets {
            token: identity.token,
            fingerprint: identity.fingerprint,
        },
    ))
}

/// Directories of a new node's data partition, with their permissions.
#[must_use]
pub fn directories() -> Vec<(String, u32)> {
    [
        ("config", 0o755),
        ("log", 0o755),
        ("server", 0o700),
        ("server/tls", 0o700),
    ]
    .map(|(path, mode)| (path.to_owned(), mode))
    .to_vec()
}

/// Names and addresses that the certificate is for.
fn certificate_names(settings: &Settings) -> Vec<String> {
    let mut names = vec![
        settings.hostname.clone(),
        "localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
    ];
    if let Network::Static { address, .. } = &settings.network
        && let Some((address, _)) = address.split_once('/')
    {
        names.push(address.to_owned());
    }
    names
}
