//! The certificate and the first token of a node, in the form in which the server keeps them
//! (`docs/security.md`): it finds both at its first start and makes none of its own.

use argon2::Argon2;
use argon2::password_hash::PasswordHasher as _;
use serde::Serialize;

use super::certificate_names;
use crate::flow::Settings;
use crate::plan::Sha256;

/// Bytes of a token's id and of its secret.
const TOKEN_BYTES: (usize, usize) = (6, 32);
/// What the admin's token is called in the list of tokens.
const ADMIN_NAME: &str = "installer-admin";
/// What the token of the node's own console is called.
const CONSOLE_NAME: &str = "console";

/// Why no secrets could be made.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// No randomness.
    #[error("the machine gives no randomness: {0}")]
    Random(getrandom::Error),
    /// No certificate.
    #[error("no certificate can be made: {0}")]
    Certificate(rcgen::Error),
    /// No hash.
    #[error("the token cannot be hashed: {0}")]
    Hash(String),
}

/// Certificate and tokens.
pub struct Identity {
    /// The token, shown once and stored nowhere.
    pub token: String,
    /// The token of the node's own console, which may read: kept on the data partition for root alone.
    /// Whoever can read it there can read the events there as well.
    pub console_token: String,
    /// The file of tokens, with their hashes.
    pub tokens_toml: String,
    /// The certificate.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
    /// SHA-256 of the certificate, hexadecimal with colons: what clients pin.
    pub fingerprint: String,
}

#[derive(Serialize)]
struct TokenFile<'a> {
    token: [Token<'a>; 2],
}

#[derive(Serialize)]
struct Token<'a> {
    id: &'a str,
    name: &'a str,
    permissions: [&'a str; 1],
    created: &'a str,
    hash: &'a str,
}

impl Identity {
    /// Makes a new one.
    ///
    /// # Errors
    ///
    /// See [`SecretsError`].
    pub fn generate(settings: &Settings, created_s: u64) -> Result<Identity, SecretsError> {
        let created = timestamp(created_s);
        let admin = NewToken::generate()?;
        let console = NewToken::generate()?;
        let file = TokenFile {
            token: [
                admin.entry(ADMIN_NAME, "admin", &created),
                console.entry(CONSOLE_NAME, "read", &created),
            ],
        };
        let tokens_toml =
            toml::to_string(&file).map_err(|error| SecretsError::Hash(error.to_string()))?;
        let (certificate_pem, key_pem, fingerprint) =
            certificate(settings).map_err(SecretsError::Certificate)?;
        Ok(Identity {
            token: admin.text,
            console_token: console.text,
            tokens_toml,
            certificate_pem,
            key_pem,
            fingerprint,
        })
    }
}

/// A token with its hash.
struct NewToken {
    id: String,
    text: String,
    hash: String,
}

impl NewToken {
    fn generate() -> Result<NewToken, SecretsError> {
        let id = random_hex(TOKEN_BYTES.0)?;
        let text = format!("tdb_{id}_{}", random_hex(TOKEN_BYTES.1)?);
        let hash = Argon2::default()
            .hash_password(text.as_bytes())
            .map_err(|error| SecretsError::Hash(error.to_string()))?
            .to_string();
        Ok(NewToken { id, text, hash })
    }

    fn entry<'a>(&'a self, name: &'a str, permission: &'a str, created: &'a str) -> Token<'a> {
        Token {
            id: &self.id,
            name,
            permissions: [permission],
            created,
            hash: &self.hash,
        }
    }
}

fn random_hex(bytes: usize) -> Result<String, SecretsError> {
    let mut random = vec![0u8; bytes];
    getrandom::fill(&mut random).map_err(SecretsError::Random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The same kind of certificate as the server makes: clients pin it, so an end of its life would only
/// be an outage.
fn certificate(settings: &Settings) -> Result<(String, String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(certificate_names(settings))?;
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "truthdb");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let made = params.self_signed(&key)?;
    let hash = Sha256::of(made.der());
    let pairs: Vec<String> = hash.0.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((made.pem(), key.serialize_pem(), pairs.join(":")))
}

/// Seconds since 1970 as RFC 3339, by the algorithm for days in the civil calendar of Howard Hinnant.
#[must_use]
pub fn timestamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Network;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), expected);
        }
    }

    /// `crates/truthdb` has the other half of this test: its server takes the token of the golden file.
    /// What is generated must differ from it in nothing but the random parts.
    #[test]
    fn the_file_of_tokens_is_the_one_that_the_server_takes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokens.toml");
        let golden = std::fs::read_to_string(path).unwrap();
        let made = Identity::generate(&settings(), 1_767_225_600).unwrap();
        if std::env::var_os("TRUTHDB_BLESS").is_some() && golden.is_empty() {
            let text = format!("# {}\n{}", made.token, made.tokens_toml);
            std::fs::write(path, text).unwrap();
            return;
        }
        let (_, golden) = golden.split_once('\n').unwrap();
        // Hexadecimal runs and the parts of a hash behind its parameters are random.
        let shape = |text: &str| -> Vec<String> {
            let lines = text.lines().map(|line| match line.split_once(" = ") {
                Some(("id", id)) => format!("id of {} characters", id.len()),
                Some(("hash", hash)) => {
                    let parts: Vec<&str> = hash.split('$').collect();
                    let random: Vec<usize> = parts[4..].iter().map(|part| part.len()).collect();
                    format!("{} {random:?}", parts[..4].join("$"))
                }
                _ => line.to_owned(),
            });
            lines.collect()
        };
        assert_eq!(shape(golden), shape(&made.tokens_toml));
    }

    fn settings() -> Settings {
        Settings {
            hostname: "node-1".into(),
            network: Network::Dhcp,
            partitions: 1,
            time_server: String::new(),
            serial_console: true,
        }
    }

    #[test]
    fn two_nodes_share_nothing_and_the_token_is_stored_nowhere() {
        let settings = settings();
        let [one, two] = [0, 1].map(|_| Identity::generate(&settings, 0).unwrap());
        assert_ne!(one.token, two.token);
        assert_ne!(one.fingerprint, two.fingerprint);
        for token in [&one.token, &one.console_token] {
            assert!(!one.tokens_toml.contains(token.as_str()));
        }
        assert!(one.token.starts_with("tdb_") && one.token.len() == 4 + 12 + 1 + 64);
        assert_eq!(one.fingerprint.len(), 32 * 3 - 1);
    }
}
