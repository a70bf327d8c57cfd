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
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use truthdb_installer::input::Layout;
use truthdb_installer::log::Ring;
use truthdb_installer::platform::machine::monotonic_ms;
use truthdb_installer::platform::{System, power};
use truthdb_installer::ui::views::{Screens, Views};

use gather::Gatherer;
use node::{Health, Node};
use page::{Screen, Wanted, after};

/// How often the node is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How soon what was seen is shown, in milliseconds.
const SHOW_MS: u64 = 500;
/// A look that takes longer than this does not end: the server is given some seconds, and a disk that works needs less.
const LOOK_MS_MAX: u64 = 30_000;

fn main() -> ExitCode {
    let messages = Ring::new(false);
    messages.install(tracing::Level::INFO);
    let system = System::real();
    let screens = Screens::of_command_line(&system.text("proc/cmdline"));
    let mut views = Views::open(screens, gather::has_serial_console(&system));
    let mut screen = Screen::Summary;
    let mut gatherer = Gatherer::new(system.clone());
    let mut node = gatherer.look();
    let mut looked_ms = monotonic_ms();
    let looks = look_for_ever(gatherer);
    loop {
        views.show(&page::of(&node, &screen));
        let keys = views.wait(None, Layout::Us, SHOW_MS);
        let (to, wanted) = after(screen, &keys, node.log.len());
        screen = to;
        if let Some(Err(error)) = wanted.map(|wanted| ask(&system, wanted)) {
            screen = Screen::Refused(error.to_string());
        }
        if let Some(fresh) = looks.try_iter().last() {
            node = fresh;
            looked_ms = monotonic_ms();
        } else if monotonic_ms().saturating_sub(looked_ms) >= LOOK_MS_MAX {
            node.health = Health::Unknown;
        }
    }
}

/// Looks at the node again and again in a thread of its own: where its disk hangs, so does the look, and the keys still
/// switch off.
fn look_for_ever(mut gatherer: Gatherer) -> Receiver<Node> {
    let (sender, looks) = channel();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(LOOK);
            if sender.send(gatherer.look()).is_err() {
                return;
            }
        }
    });
    looks
}

/// Asks for it, and notes what was asked: init does not tell, and `truthdb-node force` has to know where init hangs.
fn ask(system: &System, wanted: Wanted) -> std::io::Result<()> {
    let (note, ask): (_, fn(&System) -> _) = match wanted {
        Wanted::Restart => ("restart", power::reboot),
        Wanted::TurnOff => ("off", power::power_off),
    };
    let _ = std::fs::write(system.path("run/truthdb/power"), note);
    ask(system)
}
