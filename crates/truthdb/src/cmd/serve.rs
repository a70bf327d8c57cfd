//! `truthdb serve`: run the server.

use std::path::PathBuf;

use truthdb_log::CreateOptions;

use crate::cli::Globals;
use crate::cmd::config::load;
use crate::exit::Failure;
use crate::server::{self, ServeOptions};

/// Run the server until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Make a database if the data directory is empty or absent.
    #[arg(long)]
    init_if_empty: bool,
    /// Partitions of the database that --init-if-empty makes.
    #[arg(long, default_value_t = 1, requires = "init_if_empty")]
    partitions: u32,
    /// Write the addresses that are listened on to this file, as JSON, when the server is ready.
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let config = load(globals)?;
    let init_if_empty = args.init_if_empty.then(|| CreateOptions {
        partition_count: args.partitions,
        holder: format!("truthdb serve, process {}", std::process::id()),
        ..CreateOptions::default()
    });
    server::run(
        config,
        &ServeOptions {
            init_if_empty,
            ports_file: args.ports_file,
        },
    )
}
