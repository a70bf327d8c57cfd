//! The example modules of `examples/modules` as WebAssembly, for tests and benchmarks.
//!
//! [`wasm`] builds them with cargo when it is first asked, into `target/modules`, and gives their
//! bytes: core modules, which `Host::adapt` of `truthdb-module` makes components of. It needs the
//! toolchain's target `wasm32-unknown-unknown`, which `rust-toolchain.toml` names.
//!
//! It is for development only: nothing of the product depends on it. It is not a build script, so that
//! a plain build of the workspace compiles no WebAssembly.

mod raw;

pub use raw::{RawFault, raw_faults, raw_reducer};

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A module in `examples/modules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Balances of accounts: a processor with two tables, the one that exists in four languages.
    Balance,
    /// Sums over payloads: a reducer with one write a batch.
    Tally,
    /// Nobody withdraws what is not there: a validator that reads the tables of [`Guest::Balance`].
    Covered,
    /// The richest accounts: a query over the tables of [`Guest::Balance`].
    Richest,
    /// What modules must not do, on request: a processor.
    Hostile,
    /// A reducer that uses WASI, preview 1.
    Worldly,
    /// Departures and delays of the flights: a reducer.
    Delays,
    /// The next version of [`Guest::Delays`], under the same name.
    DelaysNext,
    /// Where each aircraft of the flights was last seen: a reducer.
    Positions,
    /// Events when aircraft of the flights become late: a processor.
    LateAircraft,
    /// Nothing arrives that has not departed: a validator that reads the tables of [`Guest::Positions`].
    Arrivals,
    /// The most delayed routes of a window: a query over the tables of [`Guest::Delays`].
    TopRoutes,
}

impl Guest {
    const ALL: [Self; 12] = [
        Self::Balance,
        Self::Tally,
        Self::Covered,
        Self::Richest,
        Self::Hostile,
        Self::Worldly,
        Self::Delays,
        Self::DelaysNext,
        Self::Positions,
        Self::LateAircraft,
        Self::Arrivals,
        Self::TopRoutes,
    ];

    /// The name of its crate.
    fn package(self) -> &'static str {
        match self {
            Self::Balance => "truthdb-example-balance",
            Self::Tally => "truthdb-example-tally",
            Self::Covered => "truthdb-example-covered",
            Self::Richest => "truthdb-example-richest",
            Self::Hostile => "truthdb-example-hostile",
            Self::Worldly => "truthdb-example-worldly",
            Self::Delays => "truthdb-example-delays",
            Self::DelaysNext => "truthdb-example-delays-next",
            Self::Positions => "truthdb-example-positions",
            Self::LateAircraft => "truthdb-example-late-aircraft",
            Self::Arrivals => "truthdb-example-arrivals",
            Self::TopRoutes => "truthdb-example-top-routes",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Worldly => "wasm32-wasip1",
            _ => "wasm32-unknown-unknown",
        }
    }
}

/// The bytes of a module.
///
/// # Panics
///
/// If it cannot be built: with what cargo said.
pub fn wasm(guest: Guest) -> Vec<u8> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let target = BUILT.get_or_init(build);
    let file = target
        .join(guest.target())
        .join("guest")
        .join(format!("{}.wasm", guest.package().replace('-', "_")));
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Builds all modules; the answer is the target directory. A build that has nothing to do takes a
/// fraction of a second, and cargo itself makes builds of several test processes wait for each other.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate is two folders below the root of the repository");
    let folder = root.join("target/modules");
    for target in ["wasm32-unknown-unknown", "wasm32-wasip1"] {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(root)
            .args(["build", "--locked", "--quiet", "--profile", "guest"])
            .args(["--target", target])
            .arg("--target-dir")
            .arg(&folder)
            // Flags for the host's processor or for coverage mean nothing to a guest.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET");
        for guest in Guest::ALL.iter().filter(|guest| guest.target() == target) {
            command.args(["--package", guest.package()]);
        }
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("cargo cannot be started: {error}"));
        assert!(
            output.status.success(),
            "the example modules cannot be built (if the target is missing: `rustup target add \
             {target}`):\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_is_a_core_module() {
        for guest in Guest::ALL {
            assert!(wasm(guest).starts_with(b"\0asm\x01\0\0\0"), "{guest:?}");
        }
    }
}
