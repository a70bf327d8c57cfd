//! What keys do, state by state.

use super::transitions::{confirm, is_sufficient, plan, reboot, search};
use super::unattended::needs_name;
use super::{Effect, Field, Form, Origin, Session, State, plan_lines};
use crate::input::Key;
use crate::plan::Mode;

/// What can be done with a disk that holds a TruthDB, in the order offered: keeping data comes first.
pub(crate) const MODES: [Mode; 3] = [Mode::ReinstallKeepData, Mode::RepairBoot, Mode::Install];
/// Characters that are taken for the confirmation at most.
const TYPED_CHARS_MAX: usize = 40;
/// Lines of the plan that a page key moves by: no more than any view shows at once.
const PAGE_LINES: usize = 4;

/// What a key does.
pub(super) fn on_key(session: &mut Session, key: Key) -> Vec<Effect> {
    match &mut session.state {
        State::BootSplash => match key {
            Key::Escape => leave(session),
            Key::Export => vec![Effect::ExportLogs],
            _ => Vec::new(),
        },
        State::Welcome => on_welcome_key(session, key),
        State::Searching | State::Planning { .. } => on_waiting_key(session, key),
        State::DiskSelect { .. } => on_disk_key(session, key),
        State::ModeSelect { .. } => on_mode_key(session, key),
        State::Advanced { .. } => on_form_key(session, key),
        State::Confirm { .. } => on_confirm_key(session, key),
        State::Finished { .. } => on_finished_key(session, key),
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
        State::ConfirmExit { .. } => on_leave_key(session, key),
        State::Installing { .. } | State::Verifying { .. } | State::Reboot { .. } | State::Exit => {
            Vec::new()
        }
    }
}

fn leave(session: &mut Session) -> Vec<Effect> {
    session.state = State::ConfirmExit {
        back: Box::new(session.state.clone()),
    };
    Vec::new()
}

fn on_leave_key(session: &mut Session, key: Key) -> Vec<Effect> {
    let State::ConfirmExit { back } = &session.state else {
        return Vec::new();
    };
    match key {
        // The program alone would be started again by init.
        Key::Enter => {
            session.state = State::Exit;
            vec![Effect::PowerOff]
        }
        Key::Escape => {
            session.state = (**back).clone();
            // What was found in the meantime was not taken.
            if session.state == State::BootSplash {
                return vec![Effect::ProbeHardware];
            }
            Vec::new()
        }
        _ => Vec::new(),
    }
}

/// While something is looked for or made. A disk that does not answer must not keep anybody here.
fn on_waiting_key(session: &mut Session, key: Key) -> Vec<Effect> {
    match (key, &session.state) {
        (Key::Escape, State::Planning { disk, .. }) => {
            let disk = *disk;
            back_to_disks(session, Some(disk));
            Vec::new()
        }
        (Key::Escape, _) => {
            session.state = State::Welcome;
            Vec::new()
        }
        (Key::Export, _) => vec![Effect::ExportLogs],
        _ => Vec::new(),
    }
}

fn open_form(session: &mut Session) -> Vec<Effect> {
    let Some(settings) = &session.settings else {
        return Vec::new();
    };
    let mut form = Form::of(settings);
    let notice = needs_name(session).then(|| {
        form.set(Field::Hostname, "");
        format!(
            "This machine tells no UUID and no hardware address that a name could follow from. Give the \
             node a name of its own, other than {}.",
            settings.hostname
        )
    });
    session.state = State::Advanced {
        form,
        notice,
        back: Box::new(session.state.clone()),
    };
    Vec::new()
}

/// A plan that a person asks for. A node that nothing names is named first.
fn plan_by_hand(session: &mut Session, disk: usize, mode: Mode) -> Vec<Effect> {
    if mode == Mode::Install && needs_name(session) {
        return open_form(session);
    }
    plan(session, disk, mode)
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
        Key::Export => vec![Effect::ExportLogs],
        Key::Escape => leave(session),
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
            plan_by_hand(session, at, Mode::Install)
        }
        Key::Export => vec![Effect::ExportLogs],
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
            return plan_by_hand(session, disk, mode);
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
    let lines = plan_lines(&prepared.plan, session.settings.as_ref());
    let last_line = lines.len().saturating_sub(1);
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

/// While a token is shown, which nobody will see again, the machine goes down at the second word only.
fn on_finished_key(session: &mut Session, key: Key) -> Vec<Effect> {
    let State::Finished {
        prepared,
        asked,
        notice,
        ..
    } = &mut session.state
    else {
        return Vec::new();
    };
    *notice = None;
    let power_off = match (key, *asked) {
        (Key::Enter, Some(power_off)) => return reboot(session, power_off),
        (Key::Enter, None) => false,
        (Key::Char('p' | 'P'), _) => true,
        (Key::Escape, _) => {
            *asked = None;
            return Vec::new();
        }
        (Key::Export, _) => return vec![Effect::ExportLogs],
        _ => return Vec::new(),
    };
    if prepared.secrets.is_none() {
        return reboot(session, power_off);
    }
    *asked = Some(power_off);
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
