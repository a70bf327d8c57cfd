//! `truthdb-console`: the console of an installed node.
//!
//! It shows what the node is and how it does, and takes no input but "show more" and, after a
//! word that confirms it, starting again and turning off. There is no shell behind it. It looks at files below
//! `/run/truthdb` and `/data`, asks the server over its own port, and draws with the views of the installer.

mod addresses;
mod ask;
mod gather;
mod node;
mod page;

use std::process::ExitCode;

use truthdb_installer::input::Layout;
use truthdb_installer::log::Ring;
use truthdb_installer::platform::machine::monotonic_ms;
use truthdb_installer::platform::{System, power};
use truthdb_installer::ui::views::{Screens, Views};

use page::{Screen, after};

/// How often the node is looked at, in milliseconds.
const LOOK_MS: u64 = 2000;

fn main() -> ExitCode {
    let messages = Ring::new(false);
    messages.install(tracing::Level::INFO);
    let system = System::real();
    let screens = Screens::of_command_line(&system.text("proc/cmdline"));
    let mut views = Views::open(screens, gather::has_serial_console(&system));
    let mut screen = Screen::Summary;
    let mut gatherer = gather::Gatherer::new(system.clone());
    let mut node = gatherer.look();
    let mut looked_ms = monotonic_ms();
    loop {
        views.show(&page::of(&node, &screen));
        let age_ms = monotonic_ms().saturating_sub(looked_ms);
        let keys = views.wait(None, Layout::Us, LOOK_MS.saturating_sub(age_ms));
        let (to, wanted) = after(screen, &keys, node.log.len());
        screen = to;
        let asked = match wanted {
            None => Ok(()),
            Some(page::Wanted::Restart) => power::reboot(&system),
            Some(page::Wanted::TurnOff) => power::power_off(&system),
        };
        if let Err(error) = asked {
            screen = Screen::Refused(error.to_string());
        }
        if monotonic_ms().saturating_sub(looked_ms) >= LOOK_MS {
            node = gatherer.look();
            looked_ms = monotonic_ms();
        }
    }
}
