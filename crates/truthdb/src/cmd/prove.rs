//! `truthdb prove`: a proof that an event is part of the log, and its check.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use truthdb_api::v1;
use truthdb_client::Read;
use truthdb_event::EventRef;
use truthdb_log::{
    Footer, Proof, ProveError, ProveSegment, SegmentScan, ZERO_HASH, check_proof, prove_event,
};

use super::connect::{self, GrpcArgs, block_on, call_failure, client, client_failure, parse_hash};
use super::offline::{Offline, OfflineSegment, read_failure};
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};

/// Print a proof that an event is part of the log, or check one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    truthdb prove --partition 0 4711 > proof.json\n  \
    truthdb prove --stream order-1 --revision 0 > proof.json\n  \
    truthdb prove --check proof.json --chain 9f86d0…")]
#[command(group = clap::ArgGroup::new("event").required(true))]
pub(crate) struct Args {
    /// The event's sequence.
    #[arg(group = "event")]
    sequence: Option<u64>,
    /// The partition of the sequence.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    partition: u32,
    /// The event's stream, with --revision.
    #[arg(long, value_name = "STREAM", group = "event", requires = "revision")]
    stream: Option<String>,
    /// The event's revision in its stream.
    #[arg(long, value_name = "REVISION", requires = "stream")]
    revision: Option<u64>,
    /// Check the proof in this file (`-`: standard input). Needs no server and no database.
    #[arg(long, value_name = "FILE", group = "event")]
    check: Option<PathBuf>,
    /// With --check: the chain hash that was published; the proof must lead to it.
    #[arg(long, value_name = "HEX", requires = "check")]
    chain: Option<String>,
    /// Where to ask.
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    if let Some(file) = &args.check {
        return check(file, args.chain.as_deref(), globals.json);
    }
    let proof = match &globals.data {
        Some(directory) => offline(&args, globals, directory)?,
        None => block_on(online(&args, globals))?,
    };
    if !proof.segment.sealed {
        output::note(
            "truthdb: the event's segment is not sealed yet: the chain hash of this proof is not \
             that of a sealed segment, and a later proof will lead to another one.",
        );
    }
    let mut out = Output::new();
    let text = if globals.json {
        serde_json::to_string(&proof)
    } else {
        serde_json::to_string_pretty(&proof)
    };
    out.line(&text.expect("a proof is serialisable"))?;
    out.flush()
}

async fn online(args: &Args, globals: &Globals) -> Result<Proof, Failure> {
    let (partition, sequence) = match (&args.stream, args.revision, args.sequence) {
        (Some(stream), Some(revision), _) => {
            let client = client(globals).await?;
            let read = Read::stream(stream.as_str())
                .from_revision(revision)
                .limit(1);
            let pages = client.read(read).map_err(client_failure)?;
            let events = pages.collect().await.map_err(client_failure)?;
            match events.first() {
                Some(event) if event.revision() == revision => {
                    (event.partition(), event.sequence())
                }
                _ => return Err(no_event(stream, revision)),
            }
        }
        (_, _, Some(sequence)) => (args.partition, sequence),
        _ => {
            return Err(Failure::usage(
                "a sequence, or --stream and --revision, is needed",
            ));
        }
    };
    let mut admin = connect::admin(globals, &args.grpc).await?;
    let request = v1::ProveRequest {
        partition,
        sequence,
    };
    let reply = admin
        .prove(request)
        .await
        .map_err(call_failure)?
        .into_inner();
    serde_json::from_str(&reply.proof_json).map_err(|error| {
        Failure::new(ExitClass::Network, "the server's proof is not one").with_source(error)
    })
}

fn no_event(stream: &str, revision: u64) -> Failure {
    let message = format!("stream {stream} has no revision {revision}");
    Failure::new(ExitClass::Refused, message)
        .with_action("See what it has with `truthdb read STREAM --backward --limit 1`.")
}

fn offline(args: &Args, globals: &Globals, directory: &Path) -> Result<Proof, Failure> {
    let offline = Offline::open(globals, directory, "prove")?;
    let count = offline.manifest().partition_count;
    let partition = match &args.stream {
        Some(stream) => truthdb_event::partition_of(stream, count),
        None => args.partition,
    };
    offline.check_partition(partition)?;
    let segments = offline.segments(partition)?;
    let sequence = match (&args.stream, args.revision, args.sequence) {
        (Some(stream), Some(revision), _) => find_revision(&offline, &segments, stream, revision)?,
        (_, _, Some(sequence)) => sequence,
        _ => {
            return Err(Failure::usage(
                "a sequence, or --stream and --revision, is needed",
            ));
        }
    };
    let holds = |segment: &&OfflineSegment| segment.header.base_sequence <= sequence;
    let at = segments.iter().take_while(holds).count();
    let Some(at) = at.checked_sub(1) else {
        let message = format!("sequence {sequence} of partition {partition} is not there any more");
        return Err(Failure::new(ExitClass::Refused, message)
            .with_action("It was trimmed; a backup made before that has it."));
    };
    let segment = &segments[at];
    let later: Vec<Footer> = segments[at + 1..]
        .iter()
        .map_while(|segment| segment.footer)
        .collect();
    let part = match &segment.footer {
        Some(footer) => ProveSegment::Sealed(footer),
        None => {
            let before = at.checked_sub(1).map(|before| segments[before].footer);
            let previous_chain = match before {
                None => ZERO_HASH,
                Some(Some(footer)) => footer.chain,
                Some(None) => {
                    let message = "the segment before the event's waits for its seal";
                    return Err(Failure::new(ExitClass::TryLater, message)
                        .with_action("Start the server: it seals the segment."));
                }
            };
            ProveSegment::Unsealed {
                data_end: segment.data_end,
                previous_chain,
            }
        }
    };
    let place = offline.manifest().place(partition, segment.segment);
    prove_event(offline.storage(), place, &part, sequence, &later).map_err(|error| match error {
        ProveError::Read(error) => read_failure(directory, error),
        error @ ProveError::NoEvent { .. } => {
            Failure::new(ExitClass::Refused, "there is no such event").with_source(error)
        }
        error => Failure::new(ExitClass::Damaged, "the event cannot be proven").with_source(error),
    })
}

/// The sequence of a revision, by reading the partition from its newest segment back.
fn find_revision(
    offline: &Offline,
    segments: &[OfflineSegment],
    stream: &str,
    revision: u64,
) -> Result<u64, Failure> {
    let read_failure = |error| read_failure(&offline.directory, error);
    for segment in segments.iter().rev() {
        let file = std::sync::Arc::clone(&segment.file);
        let storage = offline.storage().as_ref();
        let mut scan = SegmentScan::new(storage, file, &segment.header, segment.data_end)
            .map_err(read_failure)?;
        while let Some(scanned) = scan.next_batch().map_err(read_failure)? {
            let found = scanned
                .batch
                .events()
                .find(|stored| stored.revision == revision && stored.event().stream() == stream);
            if let Some(found) = found {
                return Ok(found.sequence);
            }
        }
    }
    Err(no_event(stream, revision))
}

fn check(file: &Path, chain: Option<&str>, json: bool) -> Result<(), Failure> {
    let read = || -> std::io::Result<Vec<u8>> {
        if file != Path::new("-") {
            return std::fs::read(file);
        }
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read()
        .map_err(|error| Failure::environment(format!("cannot read {}", file.display()), error))?;
    let proves_nothing = |error: Box<dyn std::error::Error + Send + Sync>| {
        let message = format!("{} proves nothing", file.display());
        Failure::new(ExitClass::Damaged, message).with_source(error)
    };
    let proof: Proof =
        serde_json::from_slice(&bytes).map_err(|error| proves_nothing(error.into()))?;
    let proven = check_proof(&proof).map_err(|error| proves_nothing(error.into()))?;
    if let Some(text) = chain {
        let expected = parse_hash(text)
            .ok_or_else(|| Failure::usage("--chain: a chain hash is 64 hexadecimal digits"))?;
        if expected != proven.chain {
            let reason = format!(
                "it leads to the chain hash {}, not to {}",
                output::hex(&proven.chain),
                output::hex(&expected)
            );
            return Err(proves_nothing(reason.into()));
        }
    }
    let event = EventRef::parse(&proven.canonical).map_err(|error| proves_nothing(error.into()))?;
    let mut out = Output::new();
    if json {
        out.json(&json!({
            "proven": true,
            "database_id": proof.database_id,
            "partition": proof.partition,
            "sequence": proof.event.sequence,
            "stream": event.stream(),
            "revision": proof.event.revision,
            "id": event.id().to_string(),
            "type": event.event_type(),
            "timestamp_ns": proof.batch.timestamp_ns,
            "segment": proven.segment,
            "sealed": proven.sealed,
            "chain": output::hex(&proven.chain),
            "chain_compared": chain.is_some(),
        }))?;
        return out.flush();
    }
    let mut facts = output::facts();
    let mut fact = |name: &str, value: String| {
        facts.add_row(vec![name.to_owned(), value]);
    };
    fact(
        "event",
        format!("{}@{}", event.stream(), proof.event.revision),
    );
    fact("type", event.event_type().to_owned());
    fact("id", event.id().to_string());
    fact(
        "sequence",
        format!("{} of partition {}", proof.event.sequence, proof.partition),
    );
    fact("time", output::timestamp(proof.batch.timestamp_ns));
    fact("database", proof.database_id.clone());
    fact("chain", output::hex(&proven.chain));
    out.table(&facts)?;
    out.line(match (chain.is_some(), proven.sealed) {
        (true, _) => {
            "Proven: the event is part of the history that the given chain hash stands for."
        }
        (false, true) => {
            "The proof is consistent. Compare the chain hash with the published one, or give it \
             with --chain: only that proves the event."
        }
        (false, false) => {
            "The proof is consistent, but its segment was not sealed: no published chain hash \
             stands for it. Make another proof after the seal."
        }
    })?;
    out.flush()
}
