//! What happens without a person: answers are taken and followed, until somebody presses a key.

use super::transitions::{is_sufficient, offered, plan, search};
use super::{Answers, Effect, Field, Finish, Form, Hardware, Session, State};
use crate::input::Key;
use crate::plan::Mode;

/// Takes note of a key: from here on it is a person's turn, and nothing begins by itself. Only asking for
/// another look at the machine may be asking for answers that are on a stick now.
pub(super) fn touched(session: &mut Session, key: Key) {
    if key == Key::Rescan && session.state == State::Welcome {
        return;
    }
    let given_up = session.answers.take();
    take_over(session);
    let Some(answers) = given_up else {
        return;
    };
    let reason = match session.state {
        State::BootSplash | State::Welcome | State::Searching | State::Planning { .. } => {
            "a key was pressed".to_owned()
        }
        State::DiskSelect { .. } => {
            format!(
                "disk {:?} is not there, and a key was pressed",
                answers.disk
            )
        }
        State::Confirm { .. } | State::Installing { .. } | State::Verifying { .. }
            if answers.finish != Finish::Wait =>
        {
            "a key was pressed, so the machine stays on at the end".to_owned()
        }
        _ => return,
    };
    session.answers_refused = Some(reason);
}

/// Whether the node's name would be the one that every machine of this kind gets.
pub(super) fn needs_name(session: &Session) -> bool {
    let name = |settings: &Option<super::Settings>| {
        settings.as_ref().map(|settings| settings.hostname.clone())
    };
    session.hardware.as_ref().is_some_and(Hardware::is_nameless)
        && name(&session.settings) == name(&session.defaults)
}

pub(super) fn on_answers(session: &mut Session, answers: Result<Answers, String>) -> Vec<Effect> {
    let is_welcome = session.state == State::Welcome;
    if !is_welcome && session.state != State::BootSplash {
        return Vec::new();
    }
    match answers {
        _ if session.attended => {
            let reason = "a person has taken over. Start this medium again to have it followed";
            session.answers_refused = Some(reason.to_owned());
        }
        Ok(answers) => {
            session.answers = Some(answers);
            session.answers_refused = None;
        }
        Err(reason) => session.answers_refused = Some(reason),
    }
    // A stick that came late: the machine is known already.
    if is_welcome {
        return take_answers(session);
    }
    Vec::new()
}

/// Sticks and disks take seconds to appear, longer than everything before the first page.
pub(super) fn on_devices(session: &mut Session) -> Vec<Effect> {
    if session.attended {
        return Vec::new();
    }
    match session.state {
        State::Welcome if session.answers.is_none() => vec![Effect::ProbeAnswers],
        State::DiskSelect { .. } if session.answers.is_some() => search(session),
        _ => Vec::new(),
    }
}

/// Puts the answers' values into the settings, and goes on to the disks.
pub(super) fn take_answers(session: &mut Session) -> Vec<Effect> {
    let (Some(settings), Some(answers)) = (&session.settings, &session.answers) else {
        return Vec::new();
    };
    if !is_sufficient(session) {
        return Vec::new();
    }
    let is_named = answers
        .values
        .iter()
        .any(|(field, _)| *field == Field::Hostname);
    if answers.mode == Mode::Install && !is_named && needs_name(session) {
        take_over(session);
        session.answers_refused = Some(
            "this machine tells no UUID and no hardware address that a name could follow from, and \
             the file has no hostname"
                .to_owned(),
        );
        return Vec::new();
    }
    let mut form = Form::of(settings);
    for (field, text) in &answers.values {
        form.set(*field, text);
    }
    match form.settings() {
        Ok(settings) => {
            session.settings = Some(settings);
            search(session)
        }
        Err((field, reason)) => {
            take_over(session);
            session.answers_refused = Some(format!("{}: {reason}", field.label()));
            Vec::new()
        }
    }
}

/// The one disk that the answers name, by serial number or WWN.
pub(super) fn answer_disk(session: &mut Session, answers: &Answers) -> Vec<Effect> {
    let is_named = |at: &usize| answers.names(&session.disks[*at].identity);
    let named: Vec<usize> = offered(session).filter(is_named).collect();
    let is_refused = session
        .disks
        .iter()
        .any(|disk| answers.names(&disk.identity));
    match named[..] {
        [disk] => follow(session, disk, answers),
        [] if !session.attended && !is_refused => {
            let text = format!(
                "Waiting for disk {:?}, which the answer file names. Any key ends the waiting.",
                answers.disk
            );
            if let State::DiskSelect { notice, .. } = &mut session.state {
                *notice = Some(text);
            }
            Vec::new()
        }
        ref others => {
            let count = others.len();
            session.answers_refused = Some(format!(
                "the answer file names disk {:?}, which {count} disks are that can be used",
                answers.disk
            ));
            take_over(session);
            Vec::new()
        }
    }
}

/// From here on it is a person's turn, if anybody's.
pub(super) fn take_over(session: &mut Session) {
    session.answers = None;
    session.attended = true;
}

/// Follows the answers on their disk, unless that was done before, or would erase a TruthDB that they do
/// not speak of: a medium that stays first in the boot order is started again and again.
fn follow(session: &mut Session, disk: usize, answers: &Answers) -> Vec<Effect> {
    let Some(found) = &session.disks[disk].truthdb else {
        return plan(session, disk, answers.mode);
    };
    let is_there = match answers.mode {
        Mode::RepairBoot => found.version.is_ok(),
        Mode::Install | Mode::ReinstallKeepData => found.version.as_ref() == Ok(&session.version),
    };
    let is_done = is_there && found.is_done(answers.id());
    if !answers.again && is_done {
        return already_installed(session, disk, answers.finish);
    }
    if !answers.again && answers.mode == Mode::Install && !found.is_cut_off(answers.id()) {
        session.answers_refused = Some(format!(
            "the disk holds {}. It is erased only by a file that says again = true",
            found.title()
        ));
        take_over(session);
        session.state = State::ModeSelect { disk, selected: 0 };
        return Vec::new();
    }
    plan(session, disk, answers.mode)
}

fn already_installed(session: &mut Session, disk: usize, finish: Finish) -> Vec<Effect> {
    take_over(session);
    let is_back_soon = session
        .hardware
        .as_ref()
        .is_some_and(Hardware::is_back_soon);
    let wants_disk = finish == Finish::Reboot;
    session.state = State::AlreadyInstalled {
        disk,
        notice: (wants_disk && is_back_soon).then(|| {
            "The firmware was told to start the disk, and came back to this medium. Take the medium \
             out, or put the disk first in the firmware's settings."
                .into()
        }),
    };
    match finish {
        Finish::Reboot if !is_back_soon => vec![Effect::StartDiskNext {
            disk: Box::new(session.disks[disk].clone()),
        }],
        Finish::PowerOff => vec![Effect::PowerOff],
        Finish::Reboot | Finish::Wait => Vec::new(),
    }
}

pub(super) fn on_disk_next(session: &mut Session, taken: Result<(), String>) -> Vec<Effect> {
    let State::AlreadyInstalled { notice, .. } = &mut session.state else {
        return Vec::new();
    };
    match taken {
        // Without this the machine would come back here for ever.
        Err(reason) => {
            *notice = Some(format!("The disk cannot be started from here: {reason}."));
            Vec::new()
        }
        Ok(()) => vec![Effect::Reboot],
    }
}
