//! `truthdb subscribe`: what is there, then what comes.

use truthdb_client::{Client, Message, Subscribe, Subscription};

use super::connect::{block_on, client, client_failure};
use super::event_lines::{EventLines, FilterArgs};
use super::output;
use crate::cli::Globals;
use crate::exit::Failure;

/// Follow a partition: what is there, then what comes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    truthdb subscribe --partition 0 --prefix order-\n  \
    truthdb --json subscribe --partition 0 --cursor billing --commit --until-caught-up")]
pub(crate) struct Args {
    /// Partition to follow.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    partition: u32,
    /// Start at this sequence, inclusive. Without any start: at the first event there is.
    #[arg(long, value_name = "SEQUENCE")]
    from_sequence: Option<u64>,
    /// Start at this time, inclusive: RFC 3339, or nanoseconds since 1970.
    #[arg(
        long,
        value_name = "TIME",
        value_parser = output::parse_time,
        conflicts_with = "from_sequence"
    )]
    from_time: Option<u64>,
    /// Only what is appended from now on.
    #[arg(long, conflicts_with_all = ["from_sequence", "from_time"])]
    from_head: bool,
    /// Start after the position of this durable cursor of the partition.
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["from_sequence", "from_time", "from_head"]
    )]
    cursor: Option<String>,
    /// Commit the cursor after what was printed; a cursor that was never committed starts at the
    /// first event.
    #[arg(long, requires = "cursor")]
    commit: bool,
    /// End when everything that is there was printed.
    #[arg(long)]
    until_caught_up: bool,
    /// End after so many events.
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Which events.
    #[command(flatten)]
    filter: FilterArgs,
}

impl Args {
    async fn request(&self, client: &Client) -> Result<Subscribe, Failure> {
        let mut subscribe = Subscribe::partition(self.partition).filter(self.filter.filter()?);
        if let Some(sequence) = self.from_sequence {
            subscribe = subscribe.from_sequence(sequence);
        }
        if let Some(time) = self.from_time {
            subscribe = subscribe.from_timestamp_ns(time);
        }
        if self.from_head {
            subscribe = subscribe.from_head();
        }
        let Some(cursor) = &self.cursor else {
            return Ok(subscribe);
        };
        if self.commit {
            let known = client
                .cursor_get(self.partition, cursor)
                .await
                .map_err(client_failure)?;
            if known.is_none() {
                return Ok(subscribe);
            }
        }
        subscribe.from_cursor(cursor).map_err(client_failure)
    }

    /// Commits the cursor, if that is wanted and there is something new.
    async fn commit(&self, client: &Client, position: &mut u64, to: u64) -> Result<(), Failure> {
        match &self.cursor {
            Some(cursor) if self.commit && to > *position => {
                *position = to;
                let committed = client.cursor_commit(self.partition, cursor, to).await;
                committed.map(|_| ()).map_err(client_failure)
            }
            _ => Ok(()),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let client = client(globals).await?;
        let request = args.request(&client).await?;
        let subscription = client.subscribe(request).await.map_err(client_failure)?;
        follow(&args, globals, &client, subscription).await
    })
}

async fn follow(
    args: &Args,
    globals: &Globals,
    client: &Client,
    mut subscription: Subscription,
) -> Result<(), Failure> {
    let mut lines = EventLines::new(globals.json);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut committed = subscription.position();
    loop {
        match subscription.next().await.map_err(client_failure)? {
            Message::Events(page) => {
                let mut last = None;
                for event in page.events() {
                    lines.event(event)?;
                    last = Some(event.sequence());
                    left -= 1;
                    if left == 0 {
                        break;
                    }
                }
                lines.flush()?;
                if left == 0 {
                    let last = last.unwrap_or_default();
                    return args.commit(client, &mut committed, last).await;
                }
                args.commit(client, &mut committed, last.unwrap_or_default())
                    .await?;
            }
            Message::CaughtUp(position) if args.until_caught_up => {
                return args.commit(client, &mut committed, position.position).await;
            }
            Message::CaughtUp(_) | Message::Heartbeat(_) => {}
            Message::Interrupted(error) => {
                output::note(&format!(
                    "truthdb: reconnecting: {}",
                    super::chain_text(&error)
                ));
            }
        }
    }
}
