//! The map of the command line: global options, and one subcommand for each module of `cmd`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::cmd;
use crate::exit::Failure;

/// TruthDB: an event-sourced database. One program: the server and its command line.
#[derive(Debug, Parser)]
#[command(
    name = "truthdb",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "Exit codes: see `truthdb completions exit-codes` and docs/operations.md.")]
pub(crate) struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// Configuration file (TOML). Without it the defaults hold; `TRUTHDB_<SECTION>__<KEY>` overrides both.
    #[arg(long, global = true, value_name = "FILE", env = "TRUTHDB_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data directory, for commands that work on it; overrides the configuration's `data.directory`.
    #[arg(long, global = true, value_name = "DIR", env = "TRUTHDB_DATA")]
    pub data: Option<PathBuf>,
    /// Server to talk to, for commands that need one: host:port of its native protocol.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "TRUTHDB_SERVER",
        default_value = "127.0.0.1:7434"
    )]
    pub server: String,
    /// Token to present to the server.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "TRUTHDB_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
    /// Speak TLS to the server, trusting only the certificate with this SHA-256 fingerprint (hex,
    /// colons allowed).
    #[arg(
        long,
        global = true,
        value_name = "HEX",
        env = "TRUTHDB_TLS_FINGERPRINT"
    )]
    pub tls_fingerprint: Option<String>,
    /// Speak TLS to the server, trusting certificates signed by the ones in this PEM file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TRUTHDB_TLS_CA",
        conflicts_with = "tls_fingerprint"
    )]
    pub tls_ca: Option<PathBuf>,
    /// Print JSON instead of text for people (one value, or one line each for streams).
    #[arg(long, global = true)]
    pub json: bool,
}

macro_rules! commands {
    ($($(#[$doc:meta])* $variant:ident $module:ident;)*) => {
        /// What to do.
        #[derive(Debug, Subcommand)]
        pub(crate) enum Command {
            $($(#[$doc])* $variant(cmd::$module::Args),)*
        }

        /// Runs the command.
        pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
            match cli.command {
                $(Command::$variant(args) => cmd::$module::run(args, &cli.globals),)*
            }
        }
    };
}

commands! {
    /// Run the server.
    Serve serve;
    /// Create a database in an empty or absent directory.
    Init init;
    /// Append events through a server.
    Append append;
    /// Read events from a server.
    Read read;
    /// Follow a partition: what is there, then what comes.
    Subscribe subscribe;
    /// Show, commit and list durable cursors.
    Cursor cursor;
    /// Write, publish, activate, upgrade and watch modules.
    Module module;
    /// Ask about the state that modules make: now, and as of any moment before.
    Query query;
    /// List, take and prune snapshots of state.
    Snapshot snapshot;
    /// Make state again from the log alone: to look at it, to verify it, to compare code.
    Replay replay;
    /// Look at the files of a data directory, structure by structure.
    Inspect inspect;
    /// Check stored data: checksums, chains, roots, gaplessness.
    Verify verify;
    /// Print a proof that an event is part of the log.
    Prove prove;
    /// Repair a damaged partition: plan, show, and only then do.
    Repair repair;
    /// Remove the oldest segments of a partition: plan, show, and only then do.
    Trim trim;
    /// Copy a database consistently while it serves.
    Backup backup;
    /// Put a backup in place as a data directory.
    Restore restore;
    /// Measure this machine and this server.
    Bench bench;
    /// Show what a server is doing.
    Status status;
    /// Check configuration files, and print the reference of all keys.
    Config config;
    /// Create, list and revoke access tokens.
    Token token;
    /// Print shell completions or the manual page.
    Completions completions;
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
