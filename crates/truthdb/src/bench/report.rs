//! What a measurement prints: tables for people, one JSON value for programs.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::machine;
use crate::cmd::output::{Output, table};
use crate::exit::Failure;

struct Section {
    title: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// The figures of one run.
pub(super) struct Report {
    sections: Vec<Section>,
    notes: Vec<String>,
    json: Map<String, Value>,
    figures: Vec<Value>,
}

impl Report {
    /// A report of a measurement in a directory.
    pub(super) fn new(what: &str, directory: &Path) -> Report {
        let mut json = Map::new();
        json.insert("bench".to_owned(), what.into());
        json.insert("machine".to_owned(), machine::description(directory));
        Report {
            sections: Vec::new(),
            notes: Vec::new(),
            json,
            figures: Vec::new(),
        }
    }

    /// Adds a table, and the same figures and more for programs.
    pub(super) fn section(
        &mut self,
        title: impl Into<String>,
        header: &[&str],
        rows: Vec<Vec<String>>,
        figures: Value,
    ) {
        let (title, header) = (
            title.into(),
            header.iter().map(|name| (*name).to_owned()).collect(),
        );
        self.figures
            .push(json!({"title": title, "figures": figures}));
        self.sections.push(Section {
            title,
            header,
            rows,
        });
    }

    /// Adds a sentence that belongs to the figures.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Prints everything.
    ///
    /// # Errors
    ///
    /// `environment`: the output or the file cannot be written.
    pub(super) fn print(mut self, json: bool, file: Option<&Path>) -> Result<(), Failure> {
        let machine = self.json["machine"].clone();
        self.json.insert(
            "sections".to_owned(),
            std::mem::take(&mut self.figures).into(),
        );
        self.json
            .insert("notes".to_owned(), self.notes.clone().into());
        let value = Value::Object(std::mem::take(&mut self.json));
        if let Some(path) = file {
            std::fs::write(path, format!("{value:#}\n")).map_err(|error| {
                Failure::environment(format!("cannot write {}", path.display()), error)
            })?;
        }
        let mut output = Output::new();
        if json {
            output.json(&value)?;
            return output.flush();
        }
        let text = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
        output.line(&format!(
            "TruthDB {} on {} x {}, Linux {}, device {}, load average {}, {}",
            text("version"),
            machine["cpus"],
            text("cpu"),
            text("kernel"),
            text("device"),
            text("load_average"),
            text("date"),
        ))?;
        for Section {
            title,
            header,
            rows,
        } in &self.sections
        {
            output.line(&format!("\n{title}"))?;
            let header: Vec<&str> = header.iter().map(String::as_str).collect();
            let right: Vec<usize> = (0..header.len()).collect();
            let mut printed = table(&header, &right);
            printed.add_rows(rows.iter().cloned());
            output.table(&printed)?;
        }
        for note in &self.notes {
            output.line(&format!("\n{note}"))?;
        }
        output.flush()
    }
}
