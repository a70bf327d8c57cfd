//! The program: the flow's machine between the views and the work.
//!
//! One loop: keys and outcomes go into [`step`], the page of the new state goes to the views, effects go
//! to threads whose outcomes come back. Nothing is decided here.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::flow::{Effect, Event, Session, State, step};
use crate::log::Ring;
use crate::platform::{System, power, sticks};
use crate::ui::pages;
use crate::ui::views::{Screens, Views};
use crate::work::{self, Places};

/// A note that outlives this program, and no start of the machine: a person has taken over, or a plan was
/// begun. Init starts a program again that has crashed; it must not begin anything by itself then.
const NOTE: &str = "run/truthdb-installer-note";
/// What is in it when a plan was begun.
const NOTE_OF_PLAN: &str = "a plan was begun\n";
/// What is in it otherwise.
const NOTE_OF_PERSON: &str = "a person has taken over\n";

/// How long the loop waits when nothing happens, in milliseconds.
const WAIT_MS: u64 = 60_000;

/// What a thread sends its outcome by.
#[derive(Clone)]
struct Outbox {
    events: Sender<Event>,
    wake: std::sync::Arc<PipeWriter>,
}

impl Outbox {
    fn send(&self, event: Event) {
        // The loop outlives every thread; if it ended, nobody wants the event.
        let _ = self.events.send(event);
        let _ = (&*self.wake).write_all(&[0]);
    }
}

struct App {
    places: Places,
    messages: Ring,
    session: Session,
    outbox: Outbox,
    inbox: Receiver<Event>,
    woken: PipeReader,
    /// Names and sizes of block devices, as last looked at.
    devices: Vec<(String, Option<u64>)>,
    /// Whether they had changed then: what has just appeared may not be readable yet, so it is looked at once more.
    devices_are_new: bool,
}

/// Runs the installer until a person leaves it or the machine is to start again; gives the exit code.
///
/// # Errors
///
/// When not even a pipe can be made.
pub fn run(places: Places, messages: Ring) -> io::Result<u8> {
    let mut app = App::new(places, messages)?;
    app.devices = app.block_devices();
    let screens = Screens::of_command_line(&app.places.system.text("proc/cmdline"));
    let mut views = Views::open(screens, true);
    views.show(&pages::of(&app.session));
    if let Some(code) = app.take(Event::Started, &mut views) {
        return Ok(code);
    }
    loop {
        views.show(&pages::of(&app.session));
        let layout = app.session.layout;
        let keys = views.wait(Some(app.woken.as_fd()), layout, WAIT_MS);
        let mut events: Vec<Event> = keys.into_iter().map(Event::Key).collect();
        while let Ok(event) = app.inbox.try_recv() {
            let mut byte = [0u8; 1];
            app.woken.read_exact(&mut byte)?;
            events.push(event);
        }
        if app.devices_have_changed() {
            events.push(Event::DevicesChanged);
        }
        for event in events {
            if let Some(code) = app.take(event, &mut views) {
                views.show(&pages::of(&app.session));
                return Ok(code);
            }
        }
    }
}

/// The beginning, which knows what came before it since the machine was started.
fn first_session(places: &Places) -> Session {
    let mut session = Session::new(&places.version());
    let note = places.system.path(NOTE);
    if let Ok(text) = std::fs::read_to_string(note) {
        tracing::warn!("this program was started again");
        session.attended = true;
        session.executed = text == NOTE_OF_PLAN;
    }
    session
}

/// Keeps the note, if there is something to be noted.
fn keep_note(system: &System, session: &Session) {
    let text = match (session.executed, session.attended) {
        (true, _) => NOTE_OF_PLAN,
        (false, true) => NOTE_OF_PERSON,
        (false, false) => return,
    };
    if let Err(error) = std::fs::write(system.path(NOTE), text) {
        tracing::warn!("no note is kept: {error}");
    }
}

impl App {
    fn new(places: Places, messages: Ring) -> io::Result<App> {
        let (events, inbox) = channel();
        let (woken, wake) = io::pipe()?;
        Ok(App {
            session: first_session(&places),
            places,
            messages,
            outbox: Outbox {
                events,
                wake: std::sync::Arc::new(wake),
            },
            inbox,
            woken,
            devices: Vec::new(),
            devices_are_new: false,
        })
    }

    /// With their sizes: a slot of a card reader is there before its card.
    fn block_devices(&self) -> Vec<(String, Option<u64>)> {
        let system = &self.places.system;
        let names = system.names("sys/block").into_iter();
        names
            .map(|name| {
                let sectors = system.number(&format!("sys/block/{name}/size"));
                (name, sectors)
            })
            .collect()
    }

    /// Looked at only where the flow can do something with it, so that nothing is missed while it cannot.
    fn devices_have_changed(&mut self) -> bool {
        if !matches!(
            self.session.state,
            State::Welcome | State::DiskSelect { .. }
        ) {
            return false;
        }
        let now = self.block_devices();
        let tell = now != self.devices || self.devices_are_new;
        self.devices_are_new = now != self.devices;
        self.devices = now;
        tell
    }

    /// Takes an event; gives the exit code when it was the last.
    fn take(&mut self, event: Event, views: &mut Views) -> Option<u8> {
        let before = self.session.state.name();
        let noted = (self.session.attended, self.session.executed);
        let (session, effects) = step(self.session.clone(), event);
        self.session = session;
        let after = self.session.state.name();
        if before != after {
            tracing::info!("{before} -> {after}");
        }
        if noted != (self.session.attended, self.session.executed) {
            keep_note(&self.places.system, &self.session);
        }
        let goes_down = |effect: &Effect| matches!(effect, Effect::Reboot | Effect::PowerOff);
        if effects.iter().any(goes_down) {
            // Shown before, since this program is ended soon after.
            views.show(&pages::of(&self.session));
        }
        effects
            .into_iter()
            .find_map(|effect| self.carry_out(effect))
    }

    fn carry_out(&mut self, effect: Effect) -> Option<u8> {
        let places = self.places.clone();
        let outbox = self.outbox.clone();
        match effect {
            Effect::ProbeHardware => {
                thread::spawn(move || {
                    for event in work::probe_hardware(&places) {
                        outbox.send(event);
                    }
                });
            }
            Effect::ProbeAnswers => {
                thread::spawn(move || {
                    if let Some(event) = work::probe_answers(&places) {
                        outbox.send(event);
                    }
                });
            }
            Effect::ProbeDisks { order } => {
                thread::spawn(move || outbox.send(of(order, work::probe_disks(&places))));
            }
            Effect::MakePlan {
                order,
                disk,
                mode,
                settings,
                answers,
            } => {
                thread::spawn(move || {
                    let made = work::make_plan(&places, &disk, mode, &settings, answers);
                    outbox.send(of(order, made));
                });
            }
            Effect::StartDiskNext { disk } => {
                thread::spawn(move || outbox.send(work::start_disk_next(&places, &disk)));
            }
            Effect::Execute { prepared } => {
                thread::spawn(move || {
                    let told = outbox.clone();
                    let done = work::execute(&places, &prepared, &mut |event| told.send(event));
                    outbox.send(done);
                });
            }
            Effect::ExportLogs => {
                let system = places.system.clone();
                let text = work::support_text(&self.session, &self.messages.text(), &system);
                thread::spawn(move || {
                    outbox.send(Event::Exported(sticks::export(
                        &system,
                        "truthdb-logs",
                        &text,
                    )));
                });
            }
            Effect::Reboot => return self.leave(power::reboot(&places.system)),
            Effect::PowerOff => return self.leave(power::power_off(&places.system)),
        }
        None
    }

    /// The machine is about to stop. If it refuses, the flow says so, and goes on.
    fn leave(&mut self, asked: io::Result<()>) -> Option<u8> {
        let Err(error) = asked else {
            return Some(0);
        };
        self.outbox.send(Event::NotLeft(error.to_string()));
        None
    }
}

fn of(order: u64, outcome: Event) -> Event {
    Event::Of {
        order,
        outcome: Box::new(outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Key;
    use crate::ui::views::Screens;

    /// On a machine of files, which has no init to be asked for anything.
    fn app_at(root: &std::path::Path) -> (App, Views) {
        std::fs::create_dir_all(root.join("run")).unwrap();
        let mut places = Places::of_medium();
        places.system = System::at(root);
        let app = App::new(places, Ring::new(false)).unwrap();
        (app, Views::open(Screens::None, false))
    }

    #[test]
    fn an_installer_that_is_started_again_by_init_is_attended_if_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (mut app, mut views) = app_at(folder.path());
        assert!(!app.session.attended);
        app.take(Event::Key(Key::Layout), &mut views);
        assert!(!app_at(folder.path()).0.session.attended);
        app.take(Event::Key(Key::Tab), &mut views);
        let again = app_at(folder.path()).0.session;
        assert_eq!((again.attended, again.executed), (true, false));
        app.session.executed = true;
        keep_note(&app.places.system, &app.session);
        let again = app_at(folder.path()).0.session;
        assert_eq!((again.attended, again.executed), (true, true));
    }

    #[test]
    fn a_machine_that_does_not_go_down_is_told_to_the_flow() {
        let folder = tempfile::tempdir().unwrap();
        let (mut app, mut views) = app_at(folder.path());
        app.session.state = State::ConfirmExit {
            back: Box::new(State::Welcome),
        };
        assert_eq!(app.take(Event::Key(Key::Enter), &mut views), None);
        assert_eq!(app.session.state, State::Exit);
        let event = app.inbox.try_recv().unwrap();
        assert!(matches!(event, Event::NotLeft(_)), "{event:?}");
        assert_eq!(app.take(event, &mut views), None);
        assert_eq!(app.session.state.name(), "Error");
    }
}
