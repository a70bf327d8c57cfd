//! Access tokens: the file of their hashes, and their verification.
//!
//! A token is `tdb_<id>_<secret>`: the id finds its entry, so that an unknown one costs nothing, and
//! the secret is 256 random bits. The file holds Argon2id hashes. A token that was verified is
//! remembered under a keyed hash, so that Argon2 runs once for each token and start.
//!
//! The file is read again when it changes, which is looked at for every request, and every
//! [`LOOK_INTERVAL`] for the sake of what goes on without one: a revoked token ends with the next
//! request, and an answer that is under way soon after ([`TokenStore::changes`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use truthdb_api::{ApiError, ErrorCode};
use truthdb_io::Clock;

/// Tokens begin so, which lets scanners for leaked secrets find them.
const TOKEN_PREFIX: &str = "tdb_";
/// Hexadecimal digits of a token's id.
const ID_DIGITS: usize = 12;
/// Tokens in the file at most, which bounds the memory of the verified ones.
pub(crate) const TOKENS_MAX: usize = 10_000;
/// How often the file is looked at when no request does. What a token began ends so soon after it was
/// revoked, or a little later: `docs/security.md` promises [`REVOKED_WITHIN`].
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which nothing of a revoked token goes on.
pub(crate) const REVOKED_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(LOOK_INTERVAL.as_millis() * 3 < REVOKED_WITHIN.as_millis());
/// Wrong secrets for one token within [`FAILURE_WINDOW_NS`], above which none is tried.
const FAILURES_MAX: u32 = 10;
/// Length of the window in which failures count.
const FAILURE_WINDOW_NS: u64 = 60_000_000_000;
/// Secrets tried at the same time: each takes about 19 MiB and some 20 ms of a CPU.
const CHECKS_AT_ONCE_MAX: usize = 2;
/// The file, below the data directory.
const FILE: &str = "server/tokens.toml";

/// What a token allows. `admin` allows everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Permission {
    /// Appends and cursor commits.
    Append,
    /// Reads, subscriptions, metrics.
    Read,
    /// Questions about state, and the list of modules.
    Query,
    /// The life of modules, snapshots, and what `query` allows: whoever brings code reads state.
    Deploy,
    /// Everything: status, verification, trims, backups, and what the others allow.
    Admin,
}

impl Permission {
    /// The name in the file and in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Permission::Append => "append",
            Permission::Read => "read",
            Permission::Query => "query",
            Permission::Deploy => "deploy",
            Permission::Admin => "admin",
        }
    }
}

/// A token's entry in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenEntry {
    /// Finds the entry; part of the token.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it allows.
    pub permissions: Vec<Permission>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Argon2id hash of the whole token.
    pub hash: String,
}

/// The file.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct TokenFile {
    #[serde(default, rename = "token")]
    tokens: Vec<TokenEntry>,
}

/// Who calls.
#[derive(Debug)]
pub(crate) struct Principal {
    entry: TokenEntry,
}

impl Principal {
    /// Whether the token allows this.
    pub(crate) fn may(&self, permission: Permission) -> bool {
        let permissions = &self.entry.permissions;
        let implied = permission == Permission::Query && permissions.contains(&Permission::Deploy);
        implied || permissions.contains(&permission) || permissions.contains(&Permission::Admin)
    }

    /// The token's name.
    pub(crate) fn name(&self) -> &str {
        &self.entry.name
    }
}

/// Why the file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The file cannot be read or written.
    #[error("cannot {what} the token file {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it must be.
    #[error("the token file {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The change cannot be made.
    #[error("{0}")]
    Refused(String),
}

/// The tokens of a data directory, as an operator changes them.
pub(crate) struct TokenDirectory {
    path: PathBuf,
}

impl TokenDirectory {
    /// The tokens of this data directory.
    pub(crate) fn new(data: &Path) -> TokenDirectory {
        TokenDirectory {
            path: data.join(FILE),
        }
    }

    /// All entries; none if there is no file.
    pub(crate) fn list(&self) -> Result<Vec<TokenEntry>, TokenError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                return Err(TokenError::Io {
                    what: "read",
                    path: self.path.clone(),
                    source,
                });
            }
        };
        let file: TokenFile = toml::from_str(&text).map_err(|error| self.damaged(&error))?;
        for entry in &file.tokens {
            PasswordHash::new(&entry.hash)
                .map_err(|error| self.damaged(&format!("token {}: {error}", entry.id)))?;
        }
        Ok(file.tokens)
    }

    fn damaged(&self, reason: &dyn std::fmt::Display) -> TokenError {
        TokenError::Damaged {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }

    /// Makes a token and returns it: it is not stored and cannot be shown again.
    pub(crate) fn create(
        &self,
        name: &str,
        permissions: &[Permission],
        created: String,
    ) -> Result<String, TokenError> {
        let _lock = self.lock()?;
        let mut tokens = self.list()?;
        if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
            return Err(TokenError::Refused(
                "a token's name has 1 to 100 characters".into(),
            ));
        }
        if tokens.iter().any(|entry| entry.name == name) {
            return Err(TokenError::Refused(format!(
                "there is a token named {name} already"
            )));
        }
        if permissions.is_empty() {
            return Err(TokenError::Refused(
                "a token needs at least one permission".into(),
            ));
        }
        if tokens.len() >= TOKENS_MAX {
            return Err(TokenError::Refused(format!(
                "there are {TOKENS_MAX} tokens already"
            )));
        }
        let id = random_hex::<{ ID_DIGITS / 2 }>()?;
        let token = format!("{TOKEN_PREFIX}{id}_{}", random_hex::<32>()?);
        let hash = Argon2::default()
            .hash_password(token.as_bytes())
            .map_err(|error| TokenError::Refused(format!("cannot hash the token: {error}")))?
            .to_string();
        let permissions = permissions.to_vec();
        tokens.push(TokenEntry {
            id,
            name: name.to_owned(),
            permissions,
            created,
            hash,
        });
        self.store(TokenFile { tokens })?;
        Ok(token)
    }

    /// Removes the token with this name or id.
    pub(crate) fn revoke(&self, name: &str) -> Result<(), TokenError> {
        let _lock = self.lock()?;
        let mut tokens = self.list()?;
        let before = tokens.len();
        tokens.retain(|entry| entry.name != name && entry.id != name);
        if tokens.len() == before {
            return Err(TokenError::Refused(format!(
                "there is no token named {name}"
            )));
        }
        self.store(TokenFile { tokens })
    }

    /// Keeps two `truthdb token` at the same time from losing each other's change.
    fn lock(&self) -> Result<std::fs::File, TokenError> {
        let io = |source| TokenError::Io {
            what: "lock",
            path: self.path.clone(),
            source,
        };
        let directory = self.path.parent().expect("the path has a directory");
        std::fs::create_dir_all(directory).map_err(io)?;
        let file = std::fs::File::create(directory.join("tokens.lock")).map_err(io)?;
        file.lock().map_err(io)?;
        Ok(file)
    }

    fn store(&self, file: TokenFile) -> Result<(), TokenError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let io = |source| TokenError::Io {
            what: "write",
            path: self.path.clone(),
            source,
        };
        let text = toml::to_string(&file).map_err(|error| self.damaged(&error))?;
        let temporary = self.path.with_extension("toml.new");
        let mut out = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io)?;
        out.write_all(text.as_bytes())
            .and_then(|()| out.sync_all())
            .map_err(io)?;
        rustix::fs::rename(&temporary, &self.path).map_err(|error| io(error.into()))?;
        let directory = self.path.parent().expect("the path has a directory");
        std::fs::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io)
    }
}

fn random_hex<const N: usize>() -> Result<String, TokenError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| TokenError::Refused(format!("no randomness: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What is known of a token id whose secret was wrong.
#[derive(Debug, Clone, Copy)]
struct Failures {
    since_ns: u64,
    count: u32,
}

#[derive(Default)]
struct State {
    stamp: Option<FileStamp>,
    entries: HashMap<String, TokenEntry>,
    /// By keyed hash of the token. At most one for each entry.
    verified: HashMap<[u8; 32], Arc<Principal>>,
    /// By token id. At most one for each entry.
    failures: HashMap<String, Failures>,
}

/// What tells one version of the file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    modified: (i64, i64),
    inode: u64,
    bytes: u64,
}

/// Verifies tokens for the server.
pub(crate) struct TokenStore {
    directory: TokenDirectory,
    clock: Arc<dyn Clock>,
    cache_key: [u8; 32],
    state: Mutex<State>,
    generation: watch::Sender<u64>,
    checks: tokio::sync::Semaphore,
}

impl TokenStore {
    /// Opens the tokens of a data directory.
    pub(crate) fn open(data: &Path, clock: Arc<dyn Clock>) -> Result<Arc<TokenStore>, TokenError> {
        let mut cache_key = [0u8; 32];
        getrandom::fill(&mut cache_key)
            .map_err(|error| TokenError::Refused(format!("no randomness: {error}")))?;
        let store = TokenStore {
            directory: TokenDirectory::new(data),
            clock,
            cache_key,
            state: Mutex::default(),
            generation: watch::Sender::new(0),
            checks: tokio::sync::Semaphore::new(CHECKS_AT_ONCE_MAX),
        };
        store.refresh()?;
        Ok(Arc::new(store))
    }

    /// Grows whenever the file has changed: who was recognised before must be looked at again.
    pub(crate) fn generation(&self) -> u64 {
        if let Err(error) = self.refresh() {
            // The entries known so far stay in force; the operator has to see why a change does not.
            tracing::error!("{error}; the tokens known before stay in force");
        }
        *self.generation.borrow()
    }

    /// Tells when the file has changed: whoever was recognised before must be looked at again. What
    /// changed before this call is not told.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Looks at the file again and again, for the sake of [`TokenStore::changes`]. Does not end.
    pub(crate) async fn watch(&self) {
        let mut due = tokio::time::interval(LOOK_INTERVAL);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let _ = self.generation();
        }
    }

    fn stamp(&self) -> Option<FileStamp> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(&self.directory.path).ok()?;
        Some(FileStamp {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: metadata.ino(),
            bytes: metadata.len(),
        })
    }

    fn refresh(&self) -> Result<(), TokenError> {
        let stamp = self.stamp();
        let mut state = self.state.lock();
        if state.stamp == stamp {
            return Ok(());
        }
        // Said once for each version of the file, also when it is damaged.
        state.stamp = stamp;
        let entries = self.directory.list()?;
        state.entries = entries
            .into_iter()
            .map(|entry| (entry.id.clone(), entry))
            .collect();
        let State {
            entries,
            verified,
            failures,
            ..
        } = &mut *state;
        verified.retain(|_, principal| {
            entries.get(&principal.entry.id).is_some_and(|entry| {
                entry.hash == principal.entry.hash
                    && entry.permissions == principal.entry.permissions
            })
        });
        failures.retain(|id, _| entries.contains_key(id));
        drop(state);
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// Says who a token is.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED`; `OVERLOADED` after too many wrong secrets for the same token.
    pub(crate) async fn verify(&self, token: Option<&[u8]>) -> Result<Arc<Principal>, ApiError> {
        let _ = self.generation();
        let Some(token) = token else {
            return Err(unauthenticated("the request has no token"));
        };
        let key = *blake3::keyed_hash(&self.cache_key, token).as_bytes();
        let text = std::str::from_utf8(token).map_err(|_| unauthenticated("unknown token"))?;
        let entry = {
            let state = self.state.lock();
            if let Some(principal) = state.verified.get(&key) {
                return Ok(Arc::clone(principal));
            }
            let id = token_id(text).ok_or_else(|| unauthenticated("unknown token"))?;
            let entry = state
                .entries
                .get(id)
                .ok_or_else(|| unauthenticated("unknown token"))?;
            self.check_failures(&state, id)?;
            entry.clone()
        };
        let permit = self.checks.acquire().await.map_err(|_| stopping())?;
        let (secret, hash) = (token.to_vec(), entry.hash.clone());
        let right = tokio::task::spawn_blocking(move || {
            PasswordHash::new(&hash)
                .is_ok_and(|hash| Argon2::default().verify_password(&secret, &hash).is_ok())
        })
        .await
        .map_err(|_| stopping())?;
        drop(permit);
        self.conclude(entry, key, right)
    }

    fn check_failures(&self, state: &State, id: &str) -> Result<(), ApiError> {
        let Some(failures) = state.failures.get(id) else {
            return Ok(());
        };
        let age_ns = self.clock.monotonic_ns().saturating_sub(failures.since_ns);
        if failures.count < FAILURES_MAX || age_ns >= FAILURE_WINDOW_NS {
            return Ok(());
        }
        let wait_ms = (FAILURE_WINDOW_NS - age_ns) / 1_000_000 + 1;
        Err(ApiError::overloaded(
            "too many wrong secrets for this token",
            wait_ms,
        ))
    }

    fn conclude(
        &self,
        entry: TokenEntry,
        key: [u8; 32],
        right: bool,
    ) -> Result<Arc<Principal>, ApiError> {
        let mut state = self.state.lock();
        let now = state.entries.get(&entry.id);
        if now.is_none_or(|now| now.hash != entry.hash) {
            return Err(unauthenticated("the token was revoked"));
        }
        if right {
            state.failures.remove(&entry.id);
            let principal = Arc::new(Principal { entry });
            state.verified.insert(key, Arc::clone(&principal));
            return Ok(principal);
        }
        let now_ns = self.clock.monotonic_ns();
        let fresh = Failures {
            since_ns: now_ns,
            count: 0,
        };
        let failures = state.failures.entry(entry.id).or_insert(fresh);
        if now_ns.saturating_sub(failures.since_ns) >= FAILURE_WINDOW_NS {
            *failures = fresh;
        }
        failures.count += 1;
        Err(unauthenticated("unknown token"))
    }
}

fn token_id(token: &str) -> Option<&str> {
    let (id, _) = token.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    (id.len() == ID_DIGITS).then_some(id)
}

fn unauthenticated(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

fn stopping() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the server is shutting down")
        .with_outcome(truthdb_api::Outcome::DidNotHappen)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct StillClock(AtomicU64);

    impl Clock for StillClock {
        fn utc_ns(&self) -> u64 {
            0
        }
        fn monotonic_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn create(directory: &TokenDirectory, name: &str) -> String {
        directory
            .create(name, &[Permission::Read], "2026-01-01T00:00:00Z".into())
            .unwrap()
    }

    #[tokio::test]
    async fn a_token_is_known_until_it_is_revoked_and_a_wrong_secret_never() {
        let data = tempfile::tempdir().unwrap();
        let directory = TokenDirectory::new(data.path());
        let token = create(&directory, "reader");
        let clock = Arc::new(StillClock(AtomicU64::new(0)));
        let store = TokenStore::open(data.path(), clock.clone()).unwrap();
        for _ in 0..2 {
            let principal = store.verify(Some(token.as_bytes())).await.unwrap();
            assert!(principal.may(Permission::Read) && !principal.may(Permission::Append));
        }
        let mut wrong = token.clone();
        wrong.replace_range(
            token.len() - 1..,
            if token.ends_with('0') { "1" } else { "0" },
        );
        for _ in 0..FAILURES_MAX {
            let error = store.verify(Some(wrong.as_bytes())).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unauthenticated);
        }
        let error = store.verify(Some(wrong.as_bytes())).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Overloaded);
        clock.0.store(FAILURE_WINDOW_NS, Ordering::Relaxed);
        let error = store.verify(Some(wrong.as_bytes())).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        // The right one is remembered, whatever strangers try.
        assert!(store.verify(Some(token.as_bytes())).await.is_ok());
        directory.revoke("reader").unwrap();
        let error = store.verify(Some(token.as_bytes())).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }

    /// The installer writes this file before a server has ever run; `installer/src/node/secrets.rs` has
    /// the other half of the test.
    #[tokio::test]
    async fn the_file_that_the_installer_writes_is_taken() {
        let golden = include_str!("../../../../installer/tests/golden/tokens.toml");
        let (token, file) = golden.split_once('\n').unwrap();
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("server")).unwrap();
        std::fs::write(data.path().join(FILE), file).unwrap();
        let clock = Arc::new(StillClock(AtomicU64::new(0)));
        let store = TokenStore::open(data.path(), clock).unwrap();
        let token = token.trim_start_matches("# ");
        let principal = store.verify(Some(token.as_bytes())).await.unwrap();
        assert!(principal.may(Permission::Admin));
        assert_eq!(principal.name(), "installer-admin");
        let names: Vec<String> = store
            .directory
            .list()
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names, ["installer-admin", "console"]);
    }

    #[test]
    fn the_file_holds_no_token_and_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let data = tempfile::tempdir().unwrap();
        let directory = TokenDirectory::new(data.path());
        let token = create(&directory, "a");
        let text = std::fs::read_to_string(&directory.path).unwrap();
        assert!(text.contains("$argon2id$") && !text.contains(&token));
        let mode = std::fs::metadata(&directory.path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            directory
                .create("a", &[Permission::Read], String::new())
                .is_err()
        );
        assert!(directory.revoke("b").is_err());
    }
}
