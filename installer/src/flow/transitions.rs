//! The transitions: what events make of a session, and what both keys and answers lead to.

use super::keys::on_key;
use super::unattended::{
    answer_disk, on_answers, on_devices, on_disk_next, take_answers, take_over, touched,
};
use super::{
    Answers, Disk, Effect, Event, Failure, Finish, Hardware, Origin, Outcome, Prepared, Session,
    Settings, State,
};
use crate::executor::{Progress, Step};
use crate::input::Key;
use crate::plan::Mode;

/// The next session, and what is to be done.
#[must_use]
pub fn step(mut session: Session, event: Event) -> (Session, Vec<Effect>) {
    if let Event::Key(Key::Layout) = event {
        session.layout = session.layout.next();
        return (session, Vec::new());
    }
    let effects = match event {
        Event::Started => started(&mut session),
        Event::Key(key) => {
            touched(&mut session, key);
            session.notice = None;
            on_key(&mut session, key)
        }
        Event::Answers(answers) => on_answers(&mut session, answers),
        Event::DevicesChanged => on_devices(&mut session),
        Event::Hardware(found) => on_hardware(&mut session, found),
        Event::Of { order, outcome } if order == session.order => match *outcome {
            Event::Disks(found) => on_disks(&mut session, found),
            Event::Planned(made) => on_planned(&mut session, made),
            _ => Vec::new(),
        },
        // Of an order that was given up, or of none at all.
        Event::Of { .. } | Event::Disks(_) | Event::Planned(_) => Vec::new(),
        Event::Progressed(progress) => on_progress(&mut session, progress),
        Event::Executed(outcome) => on_executed(&mut session, outcome),
        Event::DiskNext(taken) => on_disk_next(&mut session, taken),
        Event::Exported(outcome) => {
            let text = outcome.unwrap_or_else(|reason| format!("Not exported: {reason}"));
            say(&mut session, text);
            Vec::new()
        }
        Event::NotLeft(reason) => on_not_left(&mut session, &reason),
    };
    (session, effects)
}

/// Shows what came of a request.
fn say(session: &mut Session, text: String) {
    match &mut session.state {
        State::DiskSelect { notice, .. }
        | State::Advanced { notice, .. }
        | State::Confirm { notice, .. }
        | State::Error { notice, .. }
        | State::Finished { notice, .. }
        | State::AlreadyInstalled { notice, .. } => *notice = Some(text),
        _ => session.notice = Some(text),
    }
}

fn started(session: &mut Session) -> Vec<Effect> {
    match session.state {
        State::BootSplash => vec![Effect::ProbeHardware],
        _ => Vec::new(),
    }
}

fn on_hardware(session: &mut Session, found: Result<(Hardware, Settings), Failure>) -> Vec<Effect> {
    if session.state != State::BootSplash {
        return Vec::new();
    }
    match found {
        Err(failure) => fail(session, failure, Origin::Hardware),
        Ok((hardware, settings)) => {
            // What somebody has set stays, however often the machine is looked at.
            if session.settings == session.defaults {
                session.settings = Some(settings.clone());
            }
            session.defaults = Some(settings);
            session.hardware = Some(hardware);
            session.state = State::Welcome;
            take_answers(session)
        }
    }
}

pub(super) fn is_sufficient(session: &Session) -> bool {
    let hardware = session.hardware.as_ref();
    hardware.is_some_and(Hardware::is_sufficient)
}

pub(super) fn search(session: &mut Session) -> Vec<Effect> {
    session.order += 1;
    session.state = State::Searching;
    vec![Effect::ProbeDisks {
        order: session.order,
    }]
}

fn on_disks(session: &mut Session, found: Result<Vec<Disk>, Failure>) -> Vec<Effect> {
    if session.state != State::Searching {
        return Vec::new();
    }
    match found {
        Err(failure) => fail(session, failure, Origin::Disks),
        Ok(disks) => {
            session.disks = disks;
            let offered: Vec<usize> = offered(session).collect();
            // Nothing is chosen for anybody when there is a choice.
            let only = (offered.len() == 1).then(|| offered[0]);
            session.state = State::DiskSelect {
                selected: only,
                notice: session.notice.take(),
            };
            match session.answers.clone() {
                Some(answers) => answer_disk(session, &answers),
                None => Vec::new(),
            }
        }
    }
}

pub(super) fn offered(session: &Session) -> impl Iterator<Item = usize> {
    let disks = session.disks.iter().enumerate();
    disks
        .filter(|(_, disk)| disk.refused.is_none())
        .map(|(at, _)| at)
}

pub(super) fn plan(session: &mut Session, disk: usize, mode: Mode) -> Vec<Effect> {
    let (Some(settings), Some(chosen)) = (&session.settings, session.disks.get(disk)) else {
        return Vec::new();
    };
    session.order += 1;
    let effect = Effect::MakePlan {
        order: session.order,
        disk: Box::new(chosen.clone()),
        mode,
        settings: Box::new(settings.clone()),
        answers: session.answers.as_ref().map(Answers::id),
    };
    session.state = State::Planning { disk, mode };
    vec![effect]
}

fn on_planned(session: &mut Session, made: Result<Prepared, Failure>) -> Vec<Effect> {
    let State::Planning { disk, mode } = session.state else {
        return Vec::new();
    };
    match made {
        Err(failure) => fail(session, failure, Origin::Planning { disk, mode }),
        Ok(prepared) => {
            let words = prepared
                .plan
                .destroys_data()
                .then(|| session.disks[disk].confirmation());
            // By the disk that they name, and by no other that somebody chose.
            let may_start = session.answers.as_ref().is_some_and(|answers| {
                answers.names(&prepared.plan.target) && (answers.wipe || words.is_none())
            });
            session.state = State::Confirm {
                disk,
                prepared,
                words: words.clone(),
                typed: String::new(),
                scroll: 0,
                notice: session.notice.take(),
            };
            if may_start {
                return confirm(session);
            }
            Vec::new()
        }
    }
}

/// Starts the plan at [`State::Confirm`]: the only place that makes [`Effect::Execute`]. The caller
/// has seen the right words, or an answer file that names the disk and says that it may be wiped.
pub(super) fn confirm(session: &mut Session) -> Vec<Effect> {
    let State::Confirm { disk, prepared, .. } = &session.state else {
        return Vec::new();
    };
    let (disk, prepared) = (*disk, prepared.clone());
    session.executed = true;
    session.state = State::Installing {
        disk,
        prepared: prepared.clone(),
        progress: None,
    };
    vec![Effect::Execute { prepared }]
}

fn on_progress(session: &mut Session, now: Progress) -> Vec<Effect> {
    match &mut session.state {
        State::Installing { disk, prepared, .. } if now.step == Step::Verify => {
            session.state = State::Verifying {
                disk: *disk,
                prepared: prepared.clone(),
                progress: now,
            };
        }
        State::Installing { progress, .. } => *progress = Some(now),
        State::Verifying { progress, .. } => *progress = now,
        _ => {}
    }
    Vec::new()
}

fn on_executed(session: &mut Session, outcome: Result<Outcome, Failure>) -> Vec<Effect> {
    let (State::Installing { disk, prepared, .. } | State::Verifying { disk, prepared, .. }) =
        &session.state
    else {
        return Vec::new();
    };
    let (disk, prepared) = (*disk, prepared.clone());
    match outcome {
        Err(failure) => {
            let mode = prepared.plan.mode;
            fail(session, failure, Origin::Executing { disk, mode })
        }
        Ok(outcome) => {
            session.state = State::Finished {
                prepared,
                outcome,
                asked: None,
                notice: None,
            };
            // The last page stays while the machine goes down: nobody sees the token otherwise.
            match session.answers.as_ref().map(|answers| answers.finish) {
                Some(Finish::Reboot) => vec![Effect::Reboot],
                Some(Finish::PowerOff) => vec![Effect::PowerOff],
                Some(Finish::Wait) | None => Vec::new(),
            }
        }
    }
}

pub(super) fn reboot(session: &mut Session, power_off: bool) -> Vec<Effect> {
    session.state = State::Reboot {
        power_off,
        back: Box::new(session.state.clone()),
    };
    vec![if power_off {
        Effect::PowerOff
    } else {
        Effect::Reboot
    }]
}

pub(super) fn fail(session: &mut Session, failure: Failure, origin: Origin) -> Vec<Effect> {
    // What failed once must not be tried for ever.
    take_over(session);
    session.state = State::Error {
        failure,
        origin,
        notice: None,
    };
    Vec::new()
}

/// The machine stays on. What was shown comes back, since it may hold a token that nobody has seen yet.
fn on_not_left(session: &mut Session, reason: &str) -> Vec<Effect> {
    let text = format!(
        "The machine cannot be restarted or turned off from here ({reason}). Use its power button."
    );
    if let State::Reboot { back, .. } = &session.state {
        session.state = (**back).clone();
    }
    if session.state == State::Exit {
        let failure = Failure {
            doing: "Leaving the installer".into(),
            cause: text,
            consequence: String::new(),
        };
        return fail(session, failure, Origin::Hardware);
    }
    if let State::Finished { asked, .. } = &mut session.state {
        *asked = None;
    }
    say(session, text);
    Vec::new()
}
