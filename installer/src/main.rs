//! `truthdb-installer`: the program that BusyBox init starts on the installation medium.
//!
//! Exit code 0: the machine was asked to start again or to turn off. 1: it could not run at all, with one
//! line on standard error that says why.

use std::io::Write as _;
use std::process::ExitCode;

use truthdb_installer::app;
use truthdb_installer::log::Ring;
use truthdb_installer::platform::command_line_value;
use truthdb_installer::work::Places;

fn main() -> ExitCode {
    let places = Places::of_medium();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {}
        ["--version"] => {
            let version = env!("CARGO_PKG_VERSION");
            return say(&format!(
                "truthdb-installer {version}\nsystem {}\n",
                places.version()
            ));
        }
        _ => {
            let _ = writeln!(
                std::io::stderr(),
                "truthdb-installer takes no arguments but --version; it is started by init on the installation \
                 medium"
            );
            return ExitCode::from(1);
        }
    }
    let wanted = command_line_value(&places.system.text("proc/cmdline"), "truthdb.log");
    let level = wanted.as_deref().and_then(|level| level.parse().ok());
    let messages = Ring::new(wanted.is_some());
    messages.install(level.unwrap_or(tracing::Level::INFO));
    match app::run(places, messages) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "the installer cannot run: {error}");
            ExitCode::from(1)
        }
    }
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    }
}
