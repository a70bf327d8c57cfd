//! `truthdb init`: create a database.

use serde_json::json;
use truthdb_log::CreateOptions;

use crate::cli::Globals;
use crate::cmd::config::{load, print};
use crate::exit::Failure;
use crate::server;

/// Create a database in an empty or absent directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of partitions. Fixed for ever: it decides where each stream lives.
    #[arg(long, default_value_t = 1)]
    partitions: u32,
    /// Bytes of a segment: a multiple of 4096, from 16 MiB (16777216) to 1 GiB. Fixed for ever.
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let config = load(globals)?;
    let directory = &config.data.directory;
    let (world, _) = server::open_world(directory, config.data.io_backend)?;
    let mut options = CreateOptions {
        partition_count: args.partitions,
        holder: format!("truthdb init, process {}", std::process::id()),
        ..CreateOptions::default()
    };
    if let Some(bytes) = args.segment_bytes {
        options.segment_bytes = bytes;
    }
    let id = server::create(&world, directory, &options)?;
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.display().to_string();
    if globals.json {
        let value = json!({"database_id": id, "directory": path, "partitions": args.partitions});
        return print(&format!("{value}\n"));
    }
    print(&format!(
        "Made database {id} with {} partitions in {path}.\n",
        args.partitions
    ))
}
