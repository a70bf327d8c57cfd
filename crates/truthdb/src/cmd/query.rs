//! `truthdb query`: questions about the state that modules make. Events themselves are read with
//! `truthdb read`.

use std::path::{Path, PathBuf};

use truthdb_api::v1;

use super::connect::{self, GrpcArgs, block_on, call_failure};
use super::module_show;
use super::output::{self, Output};
use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};
use crate::{key_text, state_json};

/// Rows asked for at once.
const PAGE_ROWS: u32 = 1000;
/// Characters of a key or value in a table for people.
const SHOWN_CHARS: usize = 120;

/// Ask about the state that modules make: now, and as of any moment before.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys are written in parts, one after another, in the encoding of the SDK:\n  \
    N14228 or text:N14228    a text        u64:17, i32:-5    numbers of 8 to 128 bits\n  \
    bool:true                a truth value hex:00ff, raw:ab  bytes as they are\n\n\
Examples:\n  \
    truthdb query get positions aircraft N14228 --at 2:125000\n  \
    truthdb query scan positions aircraft --prefix raw:N1 --limit 20\n  \
    truthdb query run top-routes '10 2013-07-01 2013-07-31' --as-of 2026-11-25T12:00:00Z\n\n\
An answer names its moment as a token. With --at it gives the same answer for ever. --as-of is the time at \
which the log got its events; when something happened in the world is what payloads say. Events themselves \
are read with `truthdb read`.")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// The value of one key, in the partitions that have it.
    Get {
        /// The module.
        module: String,
        /// The table.
        table: String,
        /// The key, in parts.
        #[arg(required = true)]
        key: Vec<String>,
        /// Write the value's bytes, and nothing else, to this file (`-`: standard output).
        #[arg(long, value_name = "FILE")]
        value_to: Option<PathBuf>,
        /// Moment and bounds.
        #[command(flatten)]
        options: Options,
    },
    /// The rows of a range of keys, in order.
    Scan {
        /// The module.
        module: String,
        /// The table.
        table: String,
        /// Keys from here on, included: the key's parts, separated by `/`.
        #[arg(long, value_name = "KEY")]
        start: Option<String>,
        /// Keys before this.
        #[arg(long, value_name = "KEY")]
        end: Option<String>,
        /// Only keys that begin so. The beginning of a text is `raw:`, a whole one `text:`.
        #[arg(long, value_name = "KEY")]
        prefix: Option<String>,
        /// The last key first.
        #[arg(long)]
        reverse: bool,
        /// End after about so many rows.
        #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// Moment and bounds.
        #[command(flatten)]
        options: Options,
    },
    /// The answer of a query operator.
    Run {
        /// The operator: a module of kind `query`.
        operator: String,
        /// What it is asked, as text.
        #[arg(default_value = "")]
        arguments: String,
        /// What it is asked, as a file's bytes.
        #[arg(long, value_name = "FILE", conflicts_with = "arguments")]
        arguments_from: Option<PathBuf>,
        /// Moment and bounds.
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, clap::Args)]
struct Options {
    /// As of exactly these sequences: a token, such as 0:17 or 0:17,1:4.
    #[arg(long, value_name = "TOKEN", value_parser = state_json::parse_token)]
    at: Option<v1::Token>,
    /// As of this time: RFC 3339, or nanoseconds since 1970.
    #[arg(long, value_name = "TIME", value_parser = output::parse_time, conflicts_with = "at")]
    as_of: Option<u64>,
    /// Wait until the state holds at least these sequences: one's own writes.
    #[arg(long, value_name = "TOKEN", value_parser = state_json::parse_token)]
    min_sequence: Option<v1::Token>,
    /// Answer within so many milliseconds. 0: what the server allows.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    deadline_ms: u64,
    /// Ask this generation instead of the one that was current at the moment.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    generation: u32,
    /// Only this partition.
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Where to ask.
    #[command(flatten)]
    grpc: GrpcArgs,
}

impl Options {
    fn request(&self) -> v1::StateOptions {
        use v1::state_options::Moment;
        v1::StateOptions {
            moment: match (&self.at, self.as_of) {
                (Some(token), _) => Some(Moment::At(token.clone())),
                (None, Some(time)) => Some(Moment::AsOfNs(time)),
                (None, None) => None,
            },
            min_sequence: self.min_sequence.clone(),
            deadline_ms: self.deadline_ms,
            generation: self.generation,
            partition: self.partition,
        }
    }
}

/// A key of a command line: parts in arguments of their own.
fn key(parts: &[String]) -> Result<Vec<u8>, Failure> {
    key_text::key(parts.iter().map(String::as_str)).map_err(Failure::usage)
}

/// A key of an option: parts separated by `/`.
fn option_key(name: &str, text: Option<&String>) -> Result<Option<Vec<u8>>, Failure> {
    let Some(text) = text else { return Ok(None) };
    key_text::key(text.split('/'))
        .map(Some)
        .map_err(|reason| Failure::usage(format!("{name}: {reason}")))
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    match args.action {
        Action::Get {
            module,
            table,
            key: parts,
            value_to,
            options,
        } => {
            let request = v1::StateGetRequest {
                module,
                table,
                key: key(&parts)?.into(),
                options: Some(options.request()),
            };
            block_on(get(request, value_to, &options.grpc, globals))
        }
        Action::Scan {
            module,
            table,
            start,
            end,
            prefix,
            reverse,
            limit,
            options,
        } => {
            let request = v1::StateScanRequest {
                module,
                table,
                start: option_key("--start", start.as_ref())?
                    .unwrap_or_default()
                    .into(),
                end: option_key("--end", end.as_ref())?.map(Into::into),
                prefix: option_key("--prefix", prefix.as_ref())?
                    .unwrap_or_default()
                    .into(),
                reverse,
                options: Some(options.request()),
                ..v1::StateScanRequest::default()
            };
            block_on(scan(request, limit, &options.grpc, globals))
        }
        Action::Run {
            operator,
            arguments,
            arguments_from,
            options,
        } => {
            let arguments = match arguments_from {
                None => arguments.into_bytes(),
                Some(file) => std::fs::read(&file).map_err(|error| {
                    Failure::environment(format!("cannot read {}", file.display()), error)
                })?,
            };
            let request = v1::StateQueryRequest {
                operator,
                arguments: arguments.into(),
                options: Some(options.request()),
            };
            block_on(run_operator(request, &options.grpc, globals))
        }
    }
}

async fn get(
    request: v1::StateGetRequest,
    value_to: Option<PathBuf>,
    grpc: &GrpcArgs,
    globals: &Globals,
) -> Result<(), Failure> {
    let mut server = connect::state(globals, grpc).await?;
    let answer = server
        .get(request)
        .await
        .map_err(call_failure)?
        .into_inner();
    if let Some(file) = value_to {
        return write_value(&answer, &file);
    }
    let mut out = Output::new();
    if globals.json {
        out.json(&state_json::rows(&answer))?;
        return out.flush();
    }
    if answer.rows.is_empty() {
        out.line("There is no such key.")?;
    } else {
        out.table(&rows_table(&answer.rows))?;
    }
    tell_moment(&mut out, &answer.stamps, answer.token.as_ref())?;
    out.flush()
}

fn write_value(answer: &v1::StateRows, file: &Path) -> Result<(), Failure> {
    let value = match &answer.rows[..] {
        [row] => &row.value,
        [] => return Err(Failure::new(ExitClass::Refused, "there is no such key")),
        _ => {
            let message = "several partitions have this key";
            return Err(
                Failure::new(ExitClass::Refused, message).with_action("Name one with --partition.")
            );
        }
    };
    if file.as_os_str() == "-" {
        let mut out = Output::new();
        out.raw(value)?;
        return out.flush();
    }
    std::fs::write(file, value)
        .map_err(|error| Failure::environment(format!("cannot write {}", file.display()), error))
}

fn rows_table(rows: &[v1::StateRow]) -> comfy_table::Table {
    let mut table = output::table(&["partition", "key", "value"], &[0]);
    for row in rows {
        table.add_row(vec![
            row.partition.to_string(),
            key_text::show(&row.key, SHOWN_CHARS),
            key_text::show(&row.value, SHOWN_CHARS),
        ]);
    }
    table
}

fn tell_moment(
    out: &mut Output,
    stamps: &[v1::Stamp],
    token: Option<&v1::Token>,
) -> Result<(), Failure> {
    out.line("")?;
    module_show::stamps(out, stamps)?;
    out.line(&format!("token: {}", state_json::token(token)))
}

async fn scan(
    mut request: v1::StateScanRequest,
    limit: Option<u64>,
    grpc: &GrpcArgs,
    globals: &Globals,
) -> Result<(), Failure> {
    let mut server = connect::state(globals, grpc).await?;
    let mut out = Output::new();
    let mut left = limit.unwrap_or(u64::MAX);
    let last = loop {
        request.page_size = u32::try_from(left).unwrap_or(u32::MAX).min(PAGE_ROWS);
        let page = server.scan(request.clone()).await;
        let page = page.map_err(call_failure)?.into_inner();
        left = left.saturating_sub(u64::try_from(page.rows.len()).unwrap_or(u64::MAX));
        if globals.json {
            for row in &page.rows {
                out.json(&state_json::row(Some(row.partition), &row.key, &row.value))?;
            }
        } else {
            out.table(&rows_table(&page.rows))?;
        }
        request.page_token.clone_from(&page.next_page_token);
        if left == 0 || page.next_page_token.is_empty() {
            break v1::StateRows {
                rows: Vec::new(),
                ..page
            };
        }
    };
    if globals.json {
        out.json(&state_json::rows(&last))?;
    } else {
        tell_moment(&mut out, &last.stamps, last.token.as_ref())?;
    }
    out.flush()
}

async fn run_operator(
    request: v1::StateQueryRequest,
    grpc: &GrpcArgs,
    globals: &Globals,
) -> Result<(), Failure> {
    let mut server = connect::state(globals, grpc).await?;
    let answer = server
        .query(request)
        .await
        .map_err(call_failure)?
        .into_inner();
    let mut out = Output::new();
    if globals.json {
        out.json(&state_json::answer(&answer))?;
        return out.flush();
    }
    let mut table = output::table(&["key", "value"], &[]);
    for row in &answer.rows {
        table.add_row(vec![
            key_text::show(&row.key, SHOWN_CHARS),
            key_text::show(&row.value, SHOWN_CHARS),
        ]);
    }
    out.table(&table)?;
    tell_moment(&mut out, &answer.stamps, answer.token.as_ref())?;
    out.line(&format!("fuel: {}", answer.fuel))?;
    out.flush()
}
