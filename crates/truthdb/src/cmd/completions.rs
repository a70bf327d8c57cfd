//! `truthdb completions`: shell completions, the manual page, and the list of exit codes.

use clap::CommandFactory as _;

use crate::cli::{Cli, Globals};
use crate::cmd::config::print;
use crate::exit::{ExitClass, Failure};

/// Print shell completions, the manual page, or the list of exit codes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to print.
    what: What,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
    /// The manual page.
    Man,
    /// The list of exit codes.
    ExitCodes,
}

/// Runs the command.
pub(crate) fn run(args: Args, _globals: &Globals) -> Result<(), Failure> {
    let shell = match args.what {
        What::Bash => clap_complete::Shell::Bash,
        What::Zsh => clap_complete::Shell::Zsh,
        What::Fish => clap_complete::Shell::Fish,
        What::Man => return print(&manual()?),
        What::ExitCodes => return print(&exit_codes()),
    };
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "truthdb", &mut out);
    print(&String::from_utf8_lossy(&out))
}

fn manual() -> Result<String, Failure> {
    let mut out = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut out)
        .map_err(|error| Failure::environment("cannot make the manual page", error))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn exit_codes() -> String {
    let mut text = String::from("  0  ok             Done.\n");
    for (_, code, name, meaning) in ExitClass::TABLE {
        text.push_str(&format!("{code:>3}  {name:<14} {meaning}\n"));
    }
    text
}
