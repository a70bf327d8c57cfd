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
            let pins = pins(&places.system.text("etc/os-release"));
            return say(&format!(
                "truthdb-installer {version}\nsystem {}\n{pins}",
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

/// What a medium says that it was made of: the keys of `os-release` that begin with `TRUTHDB_`, a line for each. Empty
/// on a machine that is no medium of ours.
fn pins(os_release: &str) -> String {
    let pin = |line: &str| {
        let (key, value) = line.strip_prefix("TRUTHDB_")?.split_once('=')?;
        let key = key.to_lowercase().replace('_', " ");
        Some(format!("{key} {}\n", value.trim_matches('"')))
    };
    os_release.lines().filter_map(pin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_says_what_it_was_made_of() {
        let medium = "ID=truthdb\nIMAGE_VERSION=0.1.0\nTRUTHDB_KERNEL=\"6.12.117-truthdb\"\n\
                      TRUTHDB_KERNEL_SOURCE=\"linux-source-6.12 6.12.117-1~deb12u1\"\n\
                      TRUTHDB_KERNEL_SHA256=\"ab12\"\nTRUTHDB_BUSYBOX=\"1:1.35.0-4+deb12u1\"\n";
        assert_eq!(
            pins(medium),
            "kernel 6.12.117-truthdb\nkernel source linux-source-6.12 6.12.117-1~deb12u1\n\
             kernel sha256 ab12\nbusybox 1:1.35.0-4+deb12u1\n"
        );
        assert_eq!(pins("ID=debian\nVERSION_ID=\"12\"\n"), "");
    }
}
