//! `truthdb read`: events of a partition or of a stream.

use truthdb_client::Read;

use super::connect::{block_on, client, client_failure};
use super::event_lines::{EventLines, FilterArgs};
use super::output;
use crate::cli::Globals;
use crate::exit::Failure;

/// Read events from a server.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    truthdb read order-1\n  \
    truthdb read --partition 0 --backward --limit 10\n  \
    truthdb --json read --partition 0 --from-time 2026-01-31T12:00:00Z --type order-placed")]
pub(crate) struct Args {
    /// Stream to read. Without it a partition is read.
    stream: Option<String>,
    /// Partition to read; with a stream only for those of the system (`$…`).
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Newest first.
    #[arg(long)]
    backward: bool,
    /// Start at this sequence of the partition, inclusive.
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "stream")]
    from_sequence: Option<u64>,
    /// Start at this revision of the stream, inclusive.
    #[arg(long, value_name = "REVISION", requires = "stream")]
    from_revision: Option<u64>,
    /// Start at this time, inclusive: RFC 3339, or nanoseconds since 1970.
    #[arg(
        long,
        value_name = "TIME",
        value_parser = output::parse_time,
        conflicts_with_all = ["stream", "from_sequence"]
    )]
    from_time: Option<u64>,
    /// Nothing after this sequence, inclusive.
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "backward")]
    until_sequence: Option<u64>,
    /// End after so many events.
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Which events.
    #[command(flatten)]
    filter: FilterArgs,
}

impl Args {
    fn request(&self) -> Result<Read, Failure> {
        let mut read = match (&self.stream, self.partition) {
            (Some(_), _) if self.filter.names_streams() => {
                let message = "--prefix and --system are for reading a partition, not a stream";
                return Err(Failure::usage(message));
            }
            (Some(stream), Some(partition)) => Read::system_stream(partition, stream),
            (Some(stream), None) => Read::stream(stream),
            (None, partition) => Read::partition(partition.unwrap_or(0)),
        };
        if self.backward {
            read = read.backward();
        }
        if let Some(sequence) = self.from_sequence {
            read = read.from_sequence(sequence);
        }
        if let Some(revision) = self.from_revision {
            read = read.from_revision(revision);
        }
        if let Some(time) = self.from_time {
            read = read.from_timestamp_ns(time);
        }
        if let Some(sequence) = self.until_sequence {
            read = read.until_sequence(sequence);
        }
        if let Some(limit) = self.limit {
            read = read.limit(limit);
        }
        Ok(read.filter(self.filter.filter()?))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let request = args.request()?;
    let mut lines = EventLines::new(globals.json);
    block_on(async {
        let client = client(globals).await?;
        let mut pages = client.read(request).map_err(client_failure)?;
        while let Some(page) = pages.next().await.map_err(client_failure)? {
            for event in page.events() {
                lines.event(event)?;
            }
        }
        lines.flush()
    })
}
