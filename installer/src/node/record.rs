//! The record of an installation, for whoever has to help the node years after: it stays with the data, since the
//! installer's own messages end with the installer.

use std::fmt::Write as _;

use crate::flow::{Hardware, SecureBoot};
use crate::plan::{FileContent, Sha256};

/// Where it is kept: beside the node's messages, whose files have other names and bounds of their own.
pub const RECORD_PATH: &str = "log/install.txt";

/// What an installation was made from, besides its plan.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The machine.
    pub hardware: &'a Hardware,
    /// Version of the system that is installed.
    pub version: &'a str,
    /// Hash of the answers that ordered it; `None` for a person.
    pub answers: Option<Sha256>,
}

/// The record of an installation by this plan, given as text. The plan cannot hold the hash of its own text, so it
/// is the plan without this file. There is no secret in it, and nothing that the clock or a cable decides.
#[must_use]
pub fn record(origin: &Origin<'_>, plan: &str) -> FileContent {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_record(&mut text, origin, plan);
    FileContent {
        path: RECORD_PATH.to_owned(),
        mode: 0o644,
        bytes: text.into_bytes().into(),
    }
}

fn write_record(out: &mut String, origin: &Origin<'_>, plan: &str) -> std::fmt::Result {
    let hardware = origin.hardware;
    let or_unknown = |text: &str| {
        let text = if text.is_empty() { "not known" } else { text };
        text.to_owned()
    };
    let uuid = hardware.uuid.map(|uuid| uuid.to_string());
    let answers = origin.answers.map(|answers| format!("answers {answers}"));
    writeln!(out, "How TruthDB came onto this disk.\n")?;
    writeln!(out, "installer: {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "system: {}", origin.version)?;
    writeln!(
        out,
        "ordered by: {}",
        answers.unwrap_or_else(|| "a person".to_owned())
    )?;
    writeln!(out, "machine: {}", or_unknown(&hardware.product))?;
    writeln!(out, "uuid: {}", or_unknown(&uuid.unwrap_or_default()))?;
    writeln!(
        out,
        "processors: {}, {}",
        hardware.cpus,
        or_unknown(&hardware.cpu_model)
    )?;
    writeln!(out, "memory: {} bytes", hardware.memory_bytes)?;
    let variables = if hardware.efi_variables {
        "kept"
    } else {
        "not kept"
    };
    let secure_boot = match hardware.secure_boot {
        SecureBoot::On => "on",
        SecureBoot::Off => "off",
        SecureBoot::Unknown => "not known",
    };
    writeln!(
        out,
        "firmware: boot entries {variables}, Secure Boot {secure_boot}"
    )?;
    for device in &hardware.network {
        writeln!(out, "network: {} {}", device.name, device.mac)?;
    }
    writeln!(
        out,
        "\nThe plan, without this file, whose hash it cannot hold:\n"
    )?;
    out.push_str(plan);
    Ok(())
}
