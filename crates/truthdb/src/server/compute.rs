//! Opening modules and state beside the engine, for the server and for work on a stopped database.
//!
//! What differs from machine to machine is here: where compiled modules are kept, and the key of
//! their checksums. None of it can change what a module computes.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use truthdb_compute::{Compute, ComputeError, NativeRuntime, Runtime, WasmRuntime};
use truthdb_engine::Engine;
use truthdb_io::World;
use truthdb_module::{ArtefactCache, DirectoryCache, Host, HostConfig};

use super::config::Config;
use crate::exit::{ExitClass, Failure};

/// Compiled modules, below the data directory.
const CACHE_DIRECTORY: &str = "server/modules";
/// The key of their checksums, below the data directory. Readable by its owner only.
const CACHE_KEY: &str = "server/modules.key";

/// Opens modules and state as the configuration says. A node without `compute`, `query` and `replay`
/// runs no module, and gets no WebAssembly engine.
///
/// # Errors
///
/// `environment`: the WebAssembly engine or a thread cannot start, or the key cannot be kept.
pub(crate) fn open(
    config: &Config,
    directory: &Path,
    engine: &Engine,
    world: &World,
) -> Result<Compute, Failure> {
    let roles = &config.compute;
    let runtime: Arc<dyn Runtime> = if roles.compute || roles.query || roles.replay {
        Arc::new(WasmRuntime::new(host(config, directory)?))
    } else {
        Arc::new(NativeRuntime::default())
    };
    Compute::open(engine, world, runtime, config.compute.clone()).map_err(compute_failure)
}

/// The host of modules.
///
/// # Errors
///
/// As [`open`].
pub(crate) fn host(config: &Config, directory: &Path) -> Result<Host, Failure> {
    let mut host = HostConfig {
        fold_instances_max: config.modules.fold_instances_max,
        query_instances_max: config.modules.query_instances_max,
        ..HostConfig::default()
    };
    if config.modules.keep_compiled {
        host.cache_key = cache_key(directory)?;
        let cache = DirectoryCache::new(directory.join(CACHE_DIRECTORY));
        host.cache = Some(Box::new(cache) as Box<dyn ArtefactCache>);
    }
    new_host(host)
}

/// A host that keeps nothing, for looking at a module's bytes.
///
/// # Errors
///
/// `environment`: the WebAssembly engine cannot start.
pub(crate) fn passing_host() -> Result<Host, Failure> {
    new_host(HostConfig {
        fold_instances_max: 1,
        query_instances_max: 1,
        ..HostConfig::default()
    })
}

/// A host for measurements in this process. Compiled code is kept in a folder, as a server does.
///
/// # Errors
///
/// `environment`: the WebAssembly engine cannot start.
pub(crate) fn measured_host(cache: &Path) -> Result<Host, Failure> {
    new_host(HostConfig {
        fold_instances_max: 16,
        query_instances_max: 8,
        cache: Some(Box::new(DirectoryCache::new(cache.to_owned())) as Box<dyn ArtefactCache>),
        ..HostConfig::default()
    })
}

fn new_host(config: HostConfig) -> Result<Host, Failure> {
    Host::new(config)
        .map_err(|error| Failure::environment("the WebAssembly engine cannot start", error))
}

/// The failure of an operation on modules or state.
pub(crate) fn compute_failure(error: ComputeError) -> Failure {
    match &error {
        ComputeError::Thread { .. } => {
            Failure::environment("modules and state cannot be opened", error)
        }
        ComputeError::Storage { .. } => Failure::environment("derived files are in the way", error),
        _ => super::errors::compute_error(&error).into(),
    }
}

/// The key of the checksums of compiled modules: made once, then kept.
fn cache_key(directory: &Path) -> Result<[u8; 32], Failure> {
    let path = directory.join(CACHE_KEY);
    let failure = |error| {
        Failure::environment(format!("cannot keep {}", path.display()), error)
            .with_action("See to the permissions, or set compute.keep_compiled = false.")
    };
    let mut key = [0; 32];
    match std::fs::File::open(&path) {
        Ok(mut file) => {
            if file.read_exact(&mut key).is_ok() {
                return Ok(key);
            }
            // Torn, or not ours: a new key only means that modules are compiled again.
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failure(error)),
    }
    getrandom::fill(&mut key).map_err(|error| {
        Failure::new(ExitClass::Environment, "the machine gives no random bytes").with_source(error)
    })?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failure)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(failure)?;
    file.write_all(&key).map_err(failure)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_made_anew_when_it_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let key = cache_key(dir.path()).unwrap();
        assert_eq!(cache_key(dir.path()).unwrap(), key);
        std::fs::write(dir.path().join(CACHE_KEY), b"torn").unwrap();
        let other = cache_key(dir.path()).unwrap();
        assert_ne!(other, key);
        assert_eq!(cache_key(dir.path()).unwrap(), other);
    }
}
