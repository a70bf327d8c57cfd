//! `truthdb token`: create, list and revoke access tokens of a data directory.

use serde_json::json;
use truthdb_io::Clock as _;

use crate::cli::Globals;
use crate::cmd::config::{load, print};
use crate::exit::{ExitClass, Failure};
use crate::server::tokens::{Permission, TokenDirectory, TokenError};

/// Create, list and revoke access tokens. A running server takes changes up at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a token and print it. It is not stored and cannot be shown again.
    Create {
        /// What people call it.
        name: String,
        /// What it allows; several are separated by commas. `admin` allows everything.
        #[arg(long, value_delimiter = ',', required = true)]
        permissions: Vec<Permission>,
    },
    /// List tokens: name, id, permissions, when made.
    List,
    /// Take a token out of force.
    Revoke {
        /// Its name or id.
        name: String,
    },
}

fn failure(error: TokenError) -> Failure {
    let class = match &error {
        TokenError::Io { .. } => ExitClass::Environment,
        TokenError::Damaged { .. } => ExitClass::Damaged,
        TokenError::Refused(_) => ExitClass::Refused,
    };
    Failure::new(class, "the tokens cannot be used").with_source(error)
}

/// Runs the command.
pub(crate) fn run(args: Args, globals: &Globals) -> Result<(), Failure> {
    let config = load(globals)?;
    let directory = &config.data.directory;
    if !directory.join(truthdb_log::MANIFEST_PATH).exists() {
        let message = format!("there is no database in {}", directory.display());
        return Err(Failure::new(ExitClass::Environment, message)
            .with_action("Name the data directory with --data or --config."));
    }
    let tokens = TokenDirectory::new(directory);
    match args.action {
        Action::Create { name, permissions } => {
            let now_ns = truthdb_io::SystemClock::new().utc_ns();
            let created = jiff::Timestamp::from_nanosecond(i128::from(now_ns))
                .map_or_else(|_| String::new(), |now| now.to_string());
            let token = tokens
                .create(&name, &permissions, created)
                .map_err(failure)?;
            if globals.json {
                return print(&format!("{}\n", json!({"name": name, "token": token})));
            }
            print(&format!("{token}\n"))
        }
        Action::List => {
            let entries = tokens.list().map_err(failure)?;
            for entry in entries {
                let names: Vec<&str> = entry.permissions.iter().map(|p| p.name()).collect();
                let line = if globals.json {
                    json!({"name": entry.name, "id": entry.id, "permissions": names,
                           "created": entry.created})
                    .to_string()
                } else {
                    let (name, id) = (entry.name, entry.id);
                    format!("{name:<24} {id}  {:<20} {}", names.join(","), entry.created)
                };
                print(&format!("{line}\n"))?;
            }
            Ok(())
        }
        Action::Revoke { name } => tokens.revoke(&name).map_err(failure),
    }
}
