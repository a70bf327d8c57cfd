//! `truthdb append`: one event from the command line, or many from lines of JSON.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde_json::json;
use tokio::task::JoinHandle;
use truthdb_client::{
    Appended, Client, ClientError, EventBuilder, EventId, EventMatch, ExpectedRevision, NewBatch,
};

use super::connect::{block_on, client, client_failure};
use super::event_json::EventLine;
use super::event_lines::text;
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};

/// Longest line of JSON: the largest event in base64, with room for its other fields.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// A batch is sent when its lines have so many bytes.
const BATCH_LINE_BYTES: usize = 1 << 20;

/// Append events through a server.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    truthdb append order-1 order-placed '{\"cents\":100}' --expect none\n  \
    truthdb append --ndjson events.ndjson\n  \
    truthdb --json read --partition 0 | truthdb --server other:7434 append --ndjson -")]
pub(crate) struct Args {
    /// Stream to append to.
    #[arg(required_unless_present = "ndjson", conflicts_with = "ndjson")]
    stream: Option<String>,
    /// Type of the event.
    #[arg(required_unless_present = "ndjson", conflicts_with = "ndjson")]
    event_type: Option<String>,
    /// Payload; without it the event has none.
    #[arg(conflicts_with = "ndjson")]
    payload: Option<String>,
    /// Take the payload from this file (`-`: standard input), byte for byte.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["payload", "ndjson"])]
    payload_file: Option<PathBuf>,
    /// Content type of the payload. Without it: application/json if it is JSON, otherwise none.
    #[arg(long, value_name = "TYPE", conflicts_with = "ndjson")]
    content_type: Option<String>,
    /// Id of the event (UUID), which makes repeating the command harmless. Without it one is made.
    #[arg(long, value_name = "UUID", conflicts_with = "ndjson")]
    id: Option<EventId>,
    /// Tag of the event; may be given again.
    #[arg(long, value_name = "TAG", conflicts_with = "ndjson")]
    tag: Vec<String>,
    /// Metadata of the event; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair, conflicts_with = "ndjson")]
    metadata: Vec<(String, String)>,
    /// What the stream must be like: `any`, `none` (no event yet), `exists`, or its newest revision.
    #[arg(long, value_name = "REVISION", value_parser = parse_expected, conflicts_with = "ndjson")]
    expect: Option<ExpectedRevision>,
    /// Fail if the partition has an event of this type after --unless-after; may be given again.
    #[arg(long, value_name = "TYPE", conflicts_with = "ndjson")]
    unless_type: Vec<String>,
    /// Fail if the partition has an event with this tag (and all others given) after --unless-after.
    #[arg(long, value_name = "TAG", conflicts_with = "ndjson")]
    unless_tag: Vec<String>,
    /// Sequence up to which events are known to the caller, for --unless-type and --unless-tag.
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    unless_after: u64,
    /// Commit this cursor of the partition together with the event.
    #[arg(long, value_name = "NAME=POSITION", value_parser = parse_cursor, conflicts_with = "ndjson")]
    cursor: Option<(String, u64)>,
    /// Append the events of this file (`-`: standard input), one JSON object on each line, in the
    /// shape that `read --json` prints. Events of a partition keep their order. When every line has
    /// an `id`, repeating the command with the same --batch-events is harmless.
    #[arg(long, value_name = "FILE")]
    ndjson: Option<PathBuf>,
    /// With --ndjson: events that are committed together, at most.
    #[arg(long, value_name = "EVENTS", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch_events: u32,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_cursor(text: &str) -> Result<(String, u64), String> {
    let (name, position) = text.rsplit_once('=').ok_or("expected NAME=POSITION")?;
    let position = position
        .parse()
        .map_err(|_| "the position is a sequence, a whole number")?;
    Ok((name.to_owned(), position))
}

fn parse_expected(text: &str) -> Result<ExpectedRevision, String> {
    Ok(match text {
        "any" => ExpectedRevision::Any,
        "none" => ExpectedRevision::NoStream,
        "exists" => ExpectedRevision::StreamExists,
        number => ExpectedRevision::Exact(number.parse().map_err(|_| {
            "expected `any`, `none`, `exists` or the stream's newest revision".to_owned()
        })?),
    })
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    match &args.ndjson {
        Some(path) => block_on(append_lines(path, &args, globals)),
        None => append_one(&args, globals),
    }
}

fn append_one(args: &Args, globals: &Globals) -> Result<(), Failure> {
    let payload = payload(args)?;
    let (Some(stream), Some(event_type)) = (&args.stream, &args.event_type) else {
        return Err(Failure::usage(
            "a stream and a type are needed, or --ndjson",
        ));
    };
    let detected = if is_json(&payload) {
        "application/json"
    } else {
        ""
    };
    let mut event = EventBuilder::new(stream, event_type)
        .content_type(args.content_type.as_deref().unwrap_or(detected))
        .payload(&payload);
    if let Some(id) = args.id {
        event = event.id(id);
    }
    for tag in &args.tag {
        event = event.tag(tag);
    }
    for (key, value) in &args.metadata {
        event = event.metadata(key, value);
    }
    let mut batch = NewBatch::new();
    let id = batch.push(event).map_err(client_failure)?;
    if let Some(expected) = args.expect {
        batch = batch.expect(stream, expected).map_err(client_failure)?;
    }
    if !(args.unless_type.is_empty() && args.unless_tag.is_empty()) {
        let one = EventMatch {
            types: text(&args.unless_type)?,
            tags: text(&args.unless_tag)?,
        };
        batch = batch.condition(args.unless_after, vec![one]);
    }
    if let Some((name, position)) = &args.cursor {
        batch = batch.cursor(name, *position).map_err(client_failure)?;
    }
    let appended = block_on(async {
        let client = client(globals).await?;
        client.append(batch).await.map_err(client_failure)
    })?;
    let mut out = Output::new();
    let revision = appended.last_revisions.first().copied();
    if globals.json {
        out.json(&json!({
            "partition": appended.partition,
            "sequence": appended.first_sequence,
            "stream": stream,
            "revision": revision,
            "id": id.to_string(),
            "timestamp": output::timestamp(appended.timestamp_ns),
            "timestamp_ns": appended.timestamp_ns,
            "already_appended": appended.already_appended,
            "durability": durability(&appended),
        }))?;
    } else {
        let already = if appended.already_appended {
            " (had been appended before)"
        } else {
            ""
        };
        out.line(&format!(
            "{stream}@{} is sequence {} of partition {}, id {id}{already}",
            revision.unwrap_or_default(),
            appended.first_sequence,
            appended.partition
        ))?;
    }
    out.flush()
}

fn durability(appended: &Appended) -> &'static str {
    match appended.durability {
        truthdb_client::Durability::FlushEachGroup => "flush-each-group",
        truthdb_client::Durability::FlushInterval => "flush-interval",
        truthdb_client::Durability::Os => "os",
    }
}

fn is_json(payload: &[u8]) -> bool {
    !payload.is_empty() && serde_json::from_slice::<serde::de::IgnoredAny>(payload).is_ok()
}

fn payload(args: &Args) -> Result<Vec<u8>, Failure> {
    let Some(path) = &args.payload_file else {
        return Ok(args.payload.clone().unwrap_or_default().into_bytes());
    };
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut bytes);
        read.map_err(|error| Failure::environment("cannot read standard input", error))?;
        return Ok(bytes);
    }
    std::fs::read(path)
        .map_err(|error| Failure::environment(format!("cannot read {}", path.display()), error))
}

/// Lines that go into one batch of one partition.
#[derive(Default)]
struct Filling {
    batch: NewBatch,
    bytes: usize,
    first_line: u64,
    last_line: u64,
}

/// A batch on its way.
struct Sent {
    task: JoinHandle<Result<Appended, ClientError>>,
    events: u64,
    lines: (u64, u64),
}

/// What was done so far.
#[derive(Default)]
struct Done {
    events: u64,
    batches: u64,
    already_appended: u64,
}

/// Appends lines. Of each partition one batch is under way and one is being filled, so that events
/// of a partition keep their order whatever is retried.
struct Lines {
    client: Client,
    filling: BTreeMap<u32, Filling>,
    sent: BTreeMap<u32, Sent>,
    done: Done,
    bar: ProgressBar,
}

impl Lines {
    async fn take(&mut self, text: &str, number: u64, batch_events: usize) -> Result<(), Failure> {
        let wrong = |reason: String| {
            Failure::usage(format!("line {number}: {reason}"))
                .with_action("Correct the line. Lines before it may have been appended already.")
        };
        let line: EventLine<'_> =
            serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let partition = self.client.partition_of(&line.stream);
        let full = self.filling.get(&partition).is_some_and(|filling| {
            filling.batch.len() >= batch_events || filling.bytes + text.len() > BATCH_LINE_BYTES
        });
        if full {
            self.send(partition).await?;
        }
        let filling = self.filling.entry(partition).or_default();
        line.push_to(&mut filling.batch).map_err(wrong)?;
        if filling.first_line == 0 {
            filling.first_line = number;
        }
        filling.last_line = number;
        filling.bytes += text.len();
        Ok(())
    }

    async fn send(&mut self, partition: u32) -> Result<(), Failure> {
        let Some(filling) = self.filling.remove(&partition) else {
            return Ok(());
        };
        self.settle(partition).await?;
        let client = self.client.clone();
        let events = u64::try_from(filling.batch.len()).expect("at most 10,000");
        let task = tokio::spawn(async move { client.append(filling.batch).await });
        let lines = (filling.first_line, filling.last_line);
        self.sent.insert(
            partition,
            Sent {
                task,
                events,
                lines,
            },
        );
        Ok(())
    }

    async fn settle(&mut self, partition: u32) -> Result<(), Failure> {
        let Some(sent) = self.sent.remove(&partition) else {
            return Ok(());
        };
        let result = sent.task.await.map_err(|error| {
            Failure::new(ExitClass::Internal, "an append ended unexpectedly").with_source(error)
        })?;
        let appended = result.map_err(|error| {
            let mut failure = client_failure(error);
            let (first, last) = sent.lines;
            let message = failure.message;
            failure.message = format!(
                "lines {first} to {last}, those of partition {partition}: {message} \
                 ({} events were appended before)",
                self.done.events
            );
            failure
        })?;
        self.done.events += sent.events;
        self.done.batches += 1;
        self.done.already_appended += if appended.already_appended {
            sent.events
        } else {
            0
        };
        self.bar.set_position(self.done.events);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        let partitions: Vec<u32> = self.filling.keys().copied().collect();
        for partition in partitions {
            self.send(partition).await?;
        }
        let partitions: Vec<u32> = self.sent.keys().copied().collect();
        for partition in partitions {
            self.settle(partition).await?;
        }
        Ok(())
    }
}

async fn append_lines(path: &Path, args: &Args, globals: &Globals) -> Result<(), Failure> {
    let mut input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::with_capacity(1 << 20, std::io::stdin()))
    } else {
        let file = std::fs::File::open(path).map_err(|error| {
            Failure::environment(format!("cannot open {}", path.display()), error)
        })?;
        Box::new(BufReader::with_capacity(1 << 20, file))
    };
    let bar = output::counter("{spinner} {pos} events appended, {per_sec}", globals.json);
    let mut lines = Lines {
        client: client(globals).await?,
        filling: BTreeMap::new(),
        sent: BTreeMap::new(),
        done: Done::default(),
        bar,
    };
    let batch_events = usize::try_from(args.batch_events).expect("at most 10,000");
    let (mut text, mut number) = (String::new(), 0u64);
    loop {
        text.clear();
        let read = (&mut input).take(LINE_BYTES_MAX).read_line(&mut text);
        let bytes = read.map_err(|error| {
            Failure::environment(format!("cannot read line {}", number + 1), error)
        })?;
        if bytes == 0 {
            break;
        }
        number += 1;
        if u64::try_from(bytes).is_ok_and(|bytes| bytes >= LINE_BYTES_MAX) {
            return Err(Failure::usage(format!(
                "line {number} is longer than 8 MiB"
            )));
        }
        if !text.trim().is_empty() {
            lines.take(&text, number, batch_events).await?;
        }
    }
    lines.finish().await?;
    lines.bar.finish_and_clear();
    let done = &lines.done;
    let mut out = Output::new();
    if globals.json {
        out.json(&json!({
            "events": done.events,
            "batches": done.batches,
            "already_appended": done.already_appended,
        }))?;
    } else {
        out.line(&format!(
            "{} events appended in {} batches ({} had been appended before)",
            done.events, done.batches, done.already_appended
        ))?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_and_cursors_are_read() {
        assert_eq!(parse_expected("none"), Ok(ExpectedRevision::NoStream));
        assert_eq!(parse_expected("7"), Ok(ExpectedRevision::Exact(7)));
        assert!(parse_expected("soon").is_err());
        assert_eq!(parse_cursor("a=b=9"), Ok(("a=b".to_owned(), 9)));
        assert!(parse_cursor("a").is_err());
        assert_eq!(parse_pair("k=a=b"), Ok(("k".to_owned(), "a=b".to_owned())));
    }
}
