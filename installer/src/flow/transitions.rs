//! The transitions, state by state.

use super::{
    Answers, Disk, Effect, Event, Failure, Field, Finish, Form, Origin, Prepared, Session, State,
};
use crate::executor::{Progress, Step};
use crate::input::Key;
use crate::plan::Mode;

/// What can be done with a disk that holds a TruthDB, in the order offered: keeping data comes first.
pub(crate) const MODES: [Mode; 3] = [Mode::ReinstallKeepData, Mode::RepairBoot, Mode::Install];
/// Characters that are taken for the confirmation at most.
const TYPED_CHARS_MAX: usize = 40;
/// Lines of the plan that a page key moves by.
const PAGE_LINES: usize = 10;

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
            // Asking for another look may be asking for answers that are on a stick now.
            session.attended |= key != Key::Rescan || session.state != State::Welcome;
            on_key(&mut session, key)
        }
        Event::Answers(answers) => on_answers(&mut session, answers),
        Event::DevicesChanged => on_devices(&mut session),
        Event::Hardware(found) => on_hardware(&mut session, found),
        Event::Disks(found) => on_disks(&mut session, found),
        Event::Planned(made) => on_planned(&mut session, made),
        Event::Progressed(progress) => on_progress(&mut session, progress),
        Event::Executed(outcome) => on_executed(&mut session, outcome),
        Event::DiskNext(taken) => on_disk_next(&mut session, taken),
        Event::Exported(outcome) => {
            let text = outcome.unwrap_or_else(|reason| format!("Not exported: {reason}"));
            if let State::Error { notice, .. }
            | State::Finished { notice, .. }
            | State::AlreadyInstalled { notice, .. } = &mut session.state
            {
                *notice = Some(text);
            }
            Vec::new()
        }
    };
    (session, effects)
}

fn started(session: &mut Session) -> Vec<Effect> {
    match session.state {
        State::BootSplash => vec![Effect::ProbeHardware],
        _ => Vec::new(),
    }
}

fn on_hardware(
    session: &mut Session,
    found: Result<(super::Hardware, super::Settings), Failure>,
) -> Vec<Effect> {
    if session.state != State::BootSplash {
        return Vec::new();
    }
    match found {
        Err(failure) => fail(session, failure, Origin::Hardware),
        Ok((hardware, settings)) => {
            session.hardware = Some(hardware);
            session.settings = Some(settings);
            session.state = State::Welcome;
            take_answers(session)
        }
    }
}

fn on_answers(session: &mut Session, answers: Result<Answers, String>) -> Vec<Effect> {
    let is_welcome = session.state == State::Welcome;
    if !is_welcome && session.state != State::BootSplash {
        return Vec::new();
    }
    match answers {
        _ if session.attended => {
            let reason = "a key was pressed. Start this medium again to have it followed";
            session.answers_refused = Some(reason.to_owned());
        }
        Ok(answers) => session.answers = Some(answers),
        Err(reason) => session.answers_refused = Some(reason),
    }
    // A stick that came late: the machine is known already.
    if is_welcome {
        return take_answers(session);
    }
    Vec::new()
}

/// Sticks and disks take seconds to appear, longer than everything before the first page.
fn on_devices(session: &mut Session) -> Vec<Effect> {
    if session.attended {
        return Vec::new();
    }
    match session.state {
        State::Welcome if session.answers.is_none() => vec![Effect::ProbeAnswers],
        State::DiskSelect { .. } if session.answers.is_some() => search(session),
        _ => Vec::new(),
    }
}

fn is_sufficient(session: &Session) -> bool {
    let hardware = session.hardware.as_ref();
    hardware.is_some_and(super::Hardware::is_sufficient)
}

/// Puts the answers' values into the settings, and goes on to the disks.
fn take_answers(session: &mut Session) -> Vec<Effect> {
    let (Some(settings), Some(answers)) = (&session.settings, &session.answers) else {
        return Vec::new();
    };
    if !is_sufficient(session) {
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

fn search(session: &mut Session) -> Vec<Effect> {
    session.state = State::Searching;
    vec![Effect::ProbeDisks]
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
                notice: None,
            };
            match session.answers.clone() {
                Some(answers) => answer_disk(session, &answers),
                None => Vec::new(),
            }
        }
    }
}

fn offered(session: &Session) -> impl Iterator<Item = usize> {
    let disks = session.disks.iter().enumerate();
    disks
        .filter(|(_, disk)| disk.refused.is_none())
        .map(|(at, _)| at)
}

/// The one disk that the answers name, by serial number or WWN.
fn answer_disk(session: &mut Session, answers: &Answers) -> Vec<Effect> {
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
fn take_over(session: &mut Session) {
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
        .is_some_and(super::Hardware::is_back_soon);
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

fn on_disk_next(session: &mut Session, taken: Result<(), String>) -> Vec<Effect> {
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

fn plan(session: &mut Session, disk: usize, mode: Mode) -> Vec<Effect> {
    let (Some(settings), Some(chosen)) = (&session.settings, session.disks.get(disk)) else {
        return Vec::new();
    };
    let effect = Effect::MakePlan {
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
                notice: None,
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
fn confirm(session: &mut Session) -> Vec<Effect> {
    let State::Confirm { disk, prepared, .. } = &session.state else {
        return Vec::new();
    };
    let (disk, prepared) = (*disk, prepared.clone());
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

fn on_executed(session: &mut Session, outcome: Result<super::Outcome, Failure>) -> Vec<Effect> {
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

fn reboot(session: &mut Session, power_off: bool) -> Vec<Effect> {
    session.state = State::Reboot { power_off };
    vec![if power_off {
        Effect::PowerOff
    } else {
        Effect::Reboot
    }]
}

fn fail(session: &mut Session, failure: Failure, origin: Origin) -> Vec<Effect> {
    // What failed once must not be tried for ever.
    take_over(session);
    session.state = State::Error {
        failure,
        origin,
        notice: None,
    };
    Vec::new()
}

fn on_key(session: &mut Session, key: Key) -> Vec<Effect> {
    if matches!(session.state, State::DiskSelect { .. })
        && let Some(answers) = session.answers.clone()
    {
        take_over(session);
        session.answers_refused = Some(format!(
            "disk {:?} is not there, and a key was pressed",
            answers.disk
        ));
    }
    // A key that would leave asks first, and comes back here.
    let asks_to_leave =
        key == Key::Escape && matches!(session.state, State::Welcome | State::DiskSelect { .. });
    match &mut session.state {
        State::Welcome if asks_to_leave => leave(session),
        State::Welcome => on_welcome_key(session, key),
        State::DiskSelect { .. } => on_disk_key(session, key),
        State::ModeSelect { .. } => on_mode_key(session, key),
        State::Advanced { .. } => on_form_key(session, key),
        State::Confirm { .. } => on_confirm_key(session, key),
        State::Finished { .. } => match key {
            Key::Enter => reboot(session, false),
            Key::Char('p' | 'P') => reboot(session, true),
            Key::Export => vec![Effect::ExportLogs],
            _ => Vec::new(),
        },
        State::AlreadyInstalled { disk, .. } => match key {
            Key::Enter => reboot(session, false),
            Key::Char('p' | 'P') => reboot(session, true),
            Key::Export => vec![Effect::ExportLogs],
            Key::Escape => {
                let disk = *disk;
                back_to_disks(session, Some(disk));
                Vec::new()
            }
            _ => Vec::new(),
        },
        State::Error { .. } => on_error_key(session, key),
        State::ConfirmExit { back } => match key {
            Key::Enter => {
                session.state = State::Exit { code: 2 };
                vec![Effect::Exit { code: 2 }]
            }
            Key::Escape => {
                session.state = (**back).clone();
                Vec::new()
            }
            _ => Vec::new(),
        },
        State::BootSplash
        | State::Searching
        | State::Planning { .. }
        | State::Installing { .. }
        | State::Verifying { .. }
        | State::Reboot { .. }
        | State::Exit { .. } => Vec::new(),
    }
}

fn leave(session: &mut Session) -> Vec<Effect> {
    session.state = State::ConfirmExit {
        back: Box::new(session.state.clone()),
    };
    Vec::new()
}

fn open_form(session: &mut Session) -> Vec<Effect> {
    if let Some(settings) = &session.settings {
        session.state = State::Advanced {
            form: Form::of(settings),
            notice: None,
            back: Box::new(session.state.clone()),
        };
    }
    Vec::new()
}

fn on_welcome_key(session: &mut Session, key: Key) -> Vec<Effect> {
    match key {
        Key::Enter if is_sufficient(session) => search(session),
        Key::Advanced => open_form(session),
        // The machine may have been given a cable or more memory in the meantime.
        Key::Rescan => {
            session.state = State::BootSplash;
            vec![Effect::ProbeHardware]
        }
        _ => Vec::new(),
    }
}

fn on_disk_key(session: &mut Session, key: Key) -> Vec<Effect> {
    let State::DiskSelect { selected, notice } = &mut session.state else {
        return Vec::new();
    };
    *notice = None;
    match key {
        Key::Up | Key::Down => {
            let count = session.disks.len();
            if count > 0 {
                let last = count - 1;
                *selected = Some(match (*selected, key) {
                    (None, Key::Down) => 0,
                    (None, _) => last,
                    (Some(at), Key::Down) => {
                        if at < last {
                            at + 1
                        } else {
                            0
                        }
                    }
                    (Some(at), _) => at.checked_sub(1).unwrap_or(last),
                });
            }
            Vec::new()
        }
        Key::Enter => {
            let Some(at) = *selected else {
                *notice = Some("Choose a disk with the arrow keys first.".into());
                return Vec::new();
            };
            let disk = &session.disks[at];
            if let Some(reason) = &disk.refused {
                *notice = Some(format!("This disk cannot be used: {reason}"));
                return Vec::new();
            }
            if disk.truthdb.is_some() {
                session.state = State::ModeSelect {
                    disk: at,
                    selected: 0,
                };
                return Vec::new();
            }
            take_over(session);
            plan(session, at, Mode::Install)
        }
        Key::Advanced => open_form(session),
        Key::Rescan => search(session),
        Key::Escape => {
            session.state = State::Welcome;
            Vec::new()
        }
        _ => Vec::new(),
    }
}

fn on_mode_key(session: &mut Session, key: Key) -> Vec<Effect> {
    let State::ModeSelect { disk, selected } = &mut session.state else {
        return Vec::new();
    };
    let disk = *disk;
    match key {
        Key::Up => *selected = selected.checked_sub(1).unwrap_or(MODES.len() - 1),
        Key::Down => *selected = (*selected + 1) % MODES.len(),
        Key::Enter => {
            let mode = MODES[*selected % MODES.len()];
            take_over(session);
            return plan(session, disk, mode);
        }
        Key::Escape => back_to_disks(session, Some(disk)),
        _ => {}
    }
    Vec::new()
}

fn back_to_disks(session: &mut Session, selected: Option<usize>) {
    session.state = State::DiskSelect {
        selected,
        notice: None,
    };
}

fn on_form_key(session: &mut Session, key: Key) -> Vec<Effect> {
    let State::Advanced { form, notice, back } = &mut session.state else {
        return Vec::new();
    };
    *notice = None;
    match key {
        Key::Up | Key::BackTab => form.move_focus(false),
        Key::Down | Key::Tab => form.move_focus(true),
        Key::Backspace => form.erase_char(),
        Key::Delete => form.clear(),
        Key::Char(c) => form.type_char(c),
        Key::Escape => session.state = (**back).clone(),
        Key::Enter => match form.settings() {
            Ok(settings) => {
                let back = (**back).clone();
                session.settings = Some(settings);
                session.state = back;
            }
            Err((field, reason)) => {
                form.focus = Field::ALL
                    .iter()
                    .position(|other| *other == field)
                    .unwrap_or(0);
                *notice = Some(format!("{}: {reason}", field.label()));
            }
        },
        _ => {}
    }
    Vec::new()
}

fn on_confirm_key(session: &mut Session, key: Key) -> Vec<Effect> {
    let State::Confirm {
        disk,
        prepared,
        words,
        typed,
        scroll,
        notice,
    } = &mut session.state
    else {
        return Vec::new();
    };
    *notice = None;
    let last_line = prepared.plan.text().lines().count().saturating_sub(1);
    match key {
        Key::Up => *scroll = scroll.saturating_sub(1),
        Key::Down => *scroll = (*scroll + 1).min(last_line),
        Key::PageUp => *scroll = scroll.saturating_sub(PAGE_LINES),
        Key::PageDown => *scroll = (*scroll + PAGE_LINES).min(last_line),
        Key::Backspace => {
            typed.pop();
        }
        Key::Delete => typed.clear(),
        Key::Char(c)
            if words.is_some() && !c.is_control() && typed.chars().count() < TYPED_CHARS_MAX =>
        {
            typed.push(c);
        }
        Key::Escape => {
            let disk = *disk;
            back_to_disks(session, Some(disk));
        }
        Key::Enter => {
            let is_right = words
                .as_ref()
                .is_none_or(|words| typed.trim().eq_ignore_ascii_case(words));
            if is_right {
                return confirm(session);
            }
            *notice = Some("That is not what is asked for. Nothing was done.".into());
            typed.clear();
        }
        _ => {}
    }
    Vec::new()
}

fn on_error_key(session: &mut Session, key: Key) -> Vec<Effect> {
    let State::Error { origin, .. } = &session.state else {
        return Vec::new();
    };
    let origin = origin.clone();
    match key {
        Key::Enter => match origin {
            Origin::Hardware => {
                session.state = State::BootSplash;
                vec![Effect::ProbeHardware]
            }
            // Planned or executed: the disk is looked at again, and confirmed again, since it may
            // not be the same any more.
            Origin::Disks | Origin::Planning { .. } | Origin::Executing { .. } => search(session),
        },
        Key::Escape => {
            session.state = match origin {
                Origin::Hardware => State::ConfirmExit {
                    back: Box::new(session.state.clone()),
                },
                _ => State::Welcome,
            };
            Vec::new()
        }
        Key::Export => vec![Effect::ExportLogs],
        _ => Vec::new(),
    }
}
