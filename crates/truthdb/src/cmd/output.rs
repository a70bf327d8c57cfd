//! What commands print: text for people, JSON for programs, progress on a terminal.
//!
//! Results go to standard output, everything else to standard error. When the reader of standard
//! output has gone (`| head`), the command has done its work: it ends quietly, with code 0.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

use crate::exit::Failure;

/// Standard output, buffered.
pub(crate) struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
}

impl Output {
    /// Takes standard output.
    pub(crate) fn new() -> Output {
        Output {
            stdout: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        }
    }

    /// Writes text as it is.
    ///
    /// # Errors
    ///
    /// `environment`, when the disk behind a redirection is full or the like.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// Writes a line.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.text(text)?;
        self.bytes(b"\n")
    }

    /// Writes a value as one line of JSON.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).expect("values of commands are serialisable");
        self.line(&text)
    }

    /// Writes a table with a blank line between it and what came before.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn table(&mut self, table: &Table) -> Result<(), Failure> {
        let text: String = table
            .lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect();
        self.text(&text)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.bytes(bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.stdout.write_all(bytes);
        settle(written)
    }

    /// Gives everything to the reader.
    ///
    /// # Errors
    ///
    /// As [`Output::text`].
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.stdout.flush();
        settle(flushed)
    }
}

/// Ends the process when nobody reads any more; other errors are the machine's.
fn settle(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => {
            result.map_err(|error| Failure::environment("cannot write to standard output", error))
        }
    }
}

/// A table without lines; the columns named in `right` are numbers.
pub(crate) fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table of names and values.
pub(crate) fn facts() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// Tells the operator something beside the result, on standard error.
pub(crate) fn note(text: &str) {
    // Nothing is left to do when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A bar that counts bytes on standard error; hidden when that is no terminal.
pub(crate) fn byte_bar(total: u64, quiet: bool) -> ProgressBar {
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
    bar(ProgressBar::new(total), template, quiet)
}

/// A bar that counts events on standard error; hidden when that is no terminal.
pub(crate) fn event_bar(total: u64, quiet: bool) -> ProgressBar {
    let template = "{msg} [{bar:30}] {human_pos}/{human_len} events {per_sec} eta {eta}";
    bar(ProgressBar::new(total), template, quiet)
}

/// A counter of things on standard error; hidden when that is no terminal.
pub(crate) fn counter(template: &str, quiet: bool) -> ProgressBar {
    let bar = bar(ProgressBar::new_spinner(), template, quiet);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn bar(bar: ProgressBar, template: &str, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).expect("the templates are constants");
    bar.set_style(style.progress_chars("=> "));
    bar
}

/// Bytes for people: binary units, one digit after the point.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // In tenths of the unit, so that no floating point is needed.
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time for people and for JSON: RFC 3339 with nine digits; empty for 0.
pub(crate) fn timestamp(ns: u64) -> String {
    if ns == 0 {
        return String::new();
    }
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map_or_else(|_| String::new(), |timestamp| format!("{timestamp:.9}"))
}

/// Parses a time: nanoseconds since 1970 UTC, or RFC 3339.
///
/// # Errors
///
/// What is accepted, for clap.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    if let Ok(ns) = text.parse::<u64>() {
        return Ok(ns);
    }
    text.parse::<jiff::Timestamp>()
        .ok()
        .and_then(|timestamp| u64::try_from(timestamp.as_nanosecond()).ok())
        .ok_or_else(|| {
            "a time is RFC 3339, such as 2026-01-31T12:00:00Z, or nanoseconds since 1970".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable_and_never_rounded_up() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1_048_575), "1023.9 KiB");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(bytes(u64::MAX), "16383.9 PiB");
    }

    #[test]
    fn times_parse_back_to_what_was_printed() {
        let ns = 1_700_000_000_000_000_001;
        assert_eq!(parse_time(&timestamp(ns)), Ok(ns));
        assert_eq!(parse_time("5"), Ok(5));
        assert!(parse_time("yesterday").is_err());
    }
}
