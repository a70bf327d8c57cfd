//! What `read` and `subscribe` have in common: filters, and events as lines.

use truthdb_client::{EventMatch, Filter, RecordedEvent, StreamFilter, Text};

use super::event_json::{EventJson, preview};
use super::output::{self, Output};
use crate::exit::Failure;

/// Characters of a payload in a line for people.
const PREVIEW_CHARS: usize = 80;

/// Which events are wanted.
#[derive(Debug, clap::Args)]
pub(crate) struct FilterArgs {
    /// Only events of this type; may be given again (any of them).
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only events with this tag; may be given again (all of them).
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Only events of streams whose names begin so.
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Also events of the system's streams, whose names begin with `$`.
    #[arg(long, conflicts_with = "prefix")]
    system: bool,
}

/// Names as the protocol has them.
///
/// # Errors
///
/// `usage`: a name is too long.
pub(crate) fn text(names: &[String]) -> Result<Vec<Text>, Failure> {
    let text = |name: &String| {
        Text::new(name.as_str()).map_err(|error| Failure::usage(format!("{name:?}: {error}")))
    };
    names.iter().map(text).collect()
}

impl FilterArgs {
    /// The filter, together with the one stream that is wanted, if only one is.
    ///
    /// # Errors
    ///
    /// `usage`: a name is too long.
    pub(crate) fn filter(&self) -> Result<Filter, Failure> {
        let mut filter = Filter::default();
        if let Some(prefix) = &self.prefix {
            let prefix = Text::new(prefix.as_str())
                .map_err(|error| Failure::usage(format!("--prefix: {error}")))?;
            filter.streams = StreamFilter::Prefix(prefix);
        }
        if self.system {
            filter.streams = StreamFilter::AllWithSystem;
        }
        if !(self.types.is_empty() && self.tags.is_empty()) {
            filter.matches = vec![EventMatch {
                types: text(&self.types)?,
                tags: text(&self.tags)?,
            }];
        }
        Ok(filter)
    }

    /// Whether it says anything about streams.
    pub(crate) fn names_streams(&self) -> bool {
        self.prefix.is_some() || self.system
    }
}

/// Prints events, one line each.
pub(crate) struct EventLines {
    out: Output,
    json: bool,
    header_due: bool,
}

impl EventLines {
    /// To standard output.
    pub(crate) fn new(json: bool) -> EventLines {
        EventLines {
            out: Output::new(),
            json,
            header_due: !json,
        }
    }

    /// Prints an event.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn event(&mut self, recorded: &RecordedEvent) -> Result<(), Failure> {
        if self.json {
            return self.out.json(&EventJson::new(recorded));
        }
        if std::mem::take(&mut self.header_due) {
            self.out.line(&format!(
                "{:>12}  {:<30}  {:<28}  {:<24}  PAYLOAD",
                "SEQUENCE", "TIME", "STREAM@REVISION", "TYPE"
            ))?;
        }
        let event = recorded.event();
        self.out.line(&format!(
            "{:>12}  {:<30}  {:<28}  {:<24}  {}",
            recorded.sequence(),
            output::timestamp(recorded.timestamp_ns()),
            format!("{}@{}", event.stream(), recorded.revision()),
            event.event_type(),
            preview(event.payload(), PREVIEW_CHARS),
        ))
    }

    /// Gives everything to the reader.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush()
    }
}
