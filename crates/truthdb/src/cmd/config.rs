//! `truthdb config`: check configuration files, and print the reference of all keys.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::Globals;
use crate::exit::{ExitClass, Failure};
use crate::server::config::{self, Config, ConfigError, Loaded};

/// Check configuration files, and print the reference of all keys.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Check a file: bad values are errors with file, line and reason, unknown keys warnings.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a commented file with every key at its default.
    Default,
    /// Print the reference of all keys, as Markdown.
    Reference,
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    match args.action {
        Action::Check { file } => {
            let loaded = read(Some(&file), std::iter::empty())?;
            if globals.json {
                return print(&format!(
                    "{}\n",
                    json!({"ok": true, "warnings": loaded.warnings})
                ));
            }
            for warning in &loaded.warnings {
                print(&format!("warning: {warning}\n"))?;
            }
            print(&format!("{} is usable.\n", file.display()))
        }
        Action::Default => print(&config::default_file()),
        Action::Reference => print(&config::reference_page()),
    }
}

fn read(
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Failure> {
    config::load(path, environment).map_err(|error| match error {
        ConfigError::Wrong { .. } => Failure::new(ExitClass::Config, error.to_string())
            .with_action("See `truthdb config reference`."),
        error @ ConfigError::Read { .. } => {
            Failure::new(ExitClass::Config, "the configuration is not to be had").with_source(error)
        }
    })
}

/// The configuration that the global options name: file, environment, `--data`.
///
/// Unknown keys are told on standard error.
///
/// # Errors
///
/// `config`, with the place of the first bad value.
pub(crate) fn load(globals: &Globals) -> Result<Config, Failure> {
    // A variable that is not Unicode cannot be meant for the configuration.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded = read(globals.config.as_deref(), environment)?;
    for warning in &loaded.warnings {
        let _ = writeln!(std::io::stderr(), "truthdb: warning: {warning}");
    }
    let mut config = loaded.config;
    if let Some(data) = &globals.data {
        config.data.directory.clone_from(data);
    }
    Ok(config)
}

/// Writes to standard output.
///
/// # Errors
///
/// `environment`, when it is closed.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::environment("cannot write to standard output", error))
}
