//! The installer's pages: a pure function of the session.

use super::{Block, Choice, FormField, KeyHint, Page, StepState, Tone};
use crate::executor::{Progress, Step};
use crate::flow::{
    BootEntry, Disk, Form, Hardware, Outcome, Prepared, Secrets, SecureBoot, Session, State,
    Verdict, plan_lines,
};
use crate::plan::{Mode, human_bytes};

/// Screens a person walks through, for the dots in the head.
const POSITIONS: usize = 5;

/// The page of a session.
#[must_use]
pub fn of(session: &Session) -> Page {
    let mut page = of_state(session);
    page.corner = format!(
        "Installer {}  ·  keyboard {}",
        session.version,
        session.layout.title()
    );
    if let Some(reason) = &session.answers_refused {
        let text = format!("The answer file is not followed any further: {reason}");
        page.blocks.insert(0, callout(Tone::Careful, text));
    }
    if !matches!(session.state, State::Reboot { .. } | State::Exit) {
        page.keys.push(layout_key());
    }
    page
}

fn of_state(session: &Session) -> Page {
    match &session.state {
        State::BootSplash => waiting(session, "Looking at this machine…", "Leave"),
        State::Searching => waiting(session, "Looking for disks…", "Back"),
        State::Planning { .. } => waiting(session, "Making the plan…", "Back"),
        State::Reboot {
            power_off: false, ..
        } => splash("Starting the machine again…"),
        State::Reboot {
            power_off: true, ..
        }
        | State::Exit => splash("Turning the machine off…"),
        State::Welcome => welcome(session),
        State::DiskSelect { selected, notice } => disks(session, *selected, notice.as_deref()),
        State::ModeSelect { disk, selected } => modes(&session.disks[*disk], *selected),
        State::Advanced { form, notice, .. } => advanced(form, notice.as_deref()),
        State::Confirm {
            disk,
            prepared,
            words,
            typed,
            scroll,
            notice,
        } => {
            let mut page = confirm(session, &session.disks[*disk], prepared, *scroll);
            if let Some(words) = words {
                ask_for_words(&mut page, &session.disks[*disk], words, typed);
            }
            page.blocks.extend(notice_block(notice.as_deref()));
            page.keys.push(escape("Back"));
            page
        }
        State::Installing {
            prepared, progress, ..
        } => installing(prepared, *progress),
        State::Verifying {
            prepared, progress, ..
        } => installing(prepared, Some(*progress)),
        State::Finished {
            prepared,
            outcome,
            asked,
            notice,
        } => finished(session, prepared, outcome, *asked, notice.as_deref()),
        State::AlreadyInstalled { disk, notice } => {
            already_installed(&session.disks[*disk], notice.as_deref())
        }
        State::Error {
            failure, notice, ..
        } => error(failure, notice.as_deref()),
        State::ConfirmExit { .. } => leave(session.executed),
    }
}

fn page(at: usize, title: &str, intro: &str) -> Page {
    Page {
        splash: false,
        program: "TruthDB".to_owned(),
        corner: String::new(),
        position: (at > 0).then_some((at, POSITIONS)),
        title: title.to_owned(),
        tone: Tone::Plain,
        intro: intro.to_owned(),
        blocks: Vec::new(),
        keys: Vec::new(),
    }
}

fn splash(title: &str) -> Page {
    Page {
        splash: true,
        ..page(0, title, "")
    }
}

/// The picture while something is looked for. It may take long, so there is a way out.
fn waiting(session: &Session, title: &str, out: &str) -> Page {
    let mut page = splash(title);
    page.intro = session.notice.clone().unwrap_or_default();
    page.keys = vec![escape(out), export_key()];
    page
}

fn callout(tone: Tone, text: impl Into<String>) -> Block {
    Block::Callout {
        tone,
        text: text.into(),
    }
}

fn key(key: &'static str, serial: &'static str, action: &str) -> KeyHint {
    KeyHint {
        key,
        serial,
        action: action.to_owned(),
    }
}

fn enter(action: &str) -> KeyHint {
    key("Enter", "Enter", action)
}

fn escape(action: &str) -> KeyHint {
    key("Esc", "Esc", action)
}

fn settings_key() -> KeyHint {
    key("F2", "Ctrl-A", "Settings")
}

fn export_key() -> KeyHint {
    key("F8", "Ctrl-E", "Logs to a stick")
}

fn layout_key() -> KeyHint {
    key("F9", "Ctrl-K", "Keyboard")
}

fn correct_key() -> KeyHint {
    key("Backspace", "Backspace", "Correct")
}

fn empty_key() -> KeyHint {
    key("Del", "Ctrl-U", "Empty it")
}

fn notice_block(notice: Option<&str>) -> Option<Block> {
    notice.map(|text| callout(Tone::Careful, text))
}

fn fact(name: &str, value: impl Into<String>) -> (String, String) {
    (name.to_owned(), value.into())
}

fn welcome(session: &Session) -> Page {
    let mut page = page(
        1,
        "Install TruthDB on this machine",
        "One disk of this machine will be given to TruthDB, as a whole. Nothing is changed before you have \
         chosen the disk and confirmed it.",
    );
    page.blocks.extend(notice_block(session.notice.as_deref()));
    let Some(hardware) = &session.hardware else {
        return page;
    };
    page.blocks.push(Block::Facts(machine_facts(hardware)));
    for check in hardware.checks() {
        let tone = match check.verdict {
            Verdict::Good => Tone::Good,
            Verdict::Doubtful => Tone::Careful,
            Verdict::Bad => Tone::Bad,
        };
        page.blocks.push(callout(tone, check.text));
    }
    if hardware.is_sufficient() {
        page.keys.push(enter("Choose a disk"));
    } else {
        // No disk will be given to it, and small screens need the room for the reasons.
        page.intro.clear();
    }
    page.keys.extend([
        settings_key(),
        key("F5", "Ctrl-R", "Look again"),
        export_key(),
        escape("Leave"),
    ]);
    page
}

fn machine_facts(hardware: &Hardware) -> Vec<(String, String)> {
    let network: Vec<String> = hardware
        .network
        .iter()
        .map(|device| match device.link {
            Some(true) => format!("{} (connected)", device.name),
            Some(false) => format!("{} (no cable)", device.name),
            None => device.name.clone(),
        })
        .collect();
    let or_unknown = |text: &str| {
        if text.is_empty() {
            "unknown".to_owned()
        } else {
            text.to_owned()
        }
    };
    let secure_boot = match hardware.secure_boot {
        SecureBoot::On => ", Secure Boot on",
        SecureBoot::Off => ", Secure Boot off",
        SecureBoot::Unknown => "",
    };
    let firmware = if hardware.efi { "UEFI" } else { "legacy" };
    vec![
        fact("Machine", or_unknown(&hardware.product)),
        fact(
            "Processor",
            format!("{} ×  {}", hardware.cpus, or_unknown(&hardware.cpu_model)),
        ),
        fact("Memory", human_bytes(hardware.memory_bytes)),
        fact("Network", or_unknown(&network.join(", "))),
        fact("Firmware", format!("{firmware}{secure_boot}")),
    ]
}

fn disks(session: &Session, selected: Option<usize>, notice: Option<&str>) -> Page {
    let mut page = page(
        2,
        "Choose the disk for TruthDB",
        "The whole disk is used. What it holds now is shown under it.",
    );
    page.blocks.extend(notice_block(notice));
    let items: Vec<Choice> = session.disks.iter().map(disk_choice).collect();
    let offered = items.iter().any(|item| item.enabled);
    if !offered {
        let text = if items.is_empty() {
            "No disk was found. Check the cables and the controller's settings, or add a disk, then look \
             again. A RAID controller may have to be set to pass disks through."
        } else {
            "None of these disks can be used; each says why. Add another disk, then look again."
        };
        page.blocks.push(callout(Tone::Bad, text));
    }
    if !items.is_empty() {
        page.blocks.push(Block::Choices { items, selected });
    }
    if offered {
        page.keys.push(key("↑ ↓", "arrows", "Choose"));
        page.keys.push(enter("Go on"));
    }
    page.keys.extend([
        settings_key(),
        key("F5", "Ctrl-R", "Look again"),
        export_key(),
        escape("Back"),
    ]);
    page
}

fn disk_choice(disk: &Disk) -> Choice {
    let (note, tone) = match (&disk.refused, &disk.truthdb) {
        (Some(reason), _) => (format!("Not offered: {reason}"), Tone::Careful),
        (None, Some(system)) => {
            let text = format!("Holds {}: its data can be kept", system.title());
            (text, Tone::Good)
        }
        (None, None) if disk.contents.is_empty() => ("Empty".to_owned(), Tone::Good),
        (None, None) => (format!("Holds {}", disk.contents.join(", ")), Tone::Careful),
    };
    Choice {
        title: disk.title(),
        detail: disk.detail(),
        note,
        tone,
        enabled: disk.refused.is_none(),
    }
}

fn modes(disk: &Disk, selected: usize) -> Page {
    let mut page = page(2, "There is a TruthDB on this disk", &disk.title());
    let items = crate::flow::MODES.map(|mode| {
        let (title, detail, note, tone) = match mode {
            Mode::ReinstallKeepData => (
                "Reinstall, and keep the data",
                "Replaces the system by the one on this medium. Events, settings and tokens stay.",
                "",
                Tone::Good,
            ),
            Mode::RepairBoot => (
                "Repair the start",
                "Makes the system that is on the disk start again. Nothing else is changed.",
                "",
                Tone::Good,
            ),
            Mode::Install => (
                "Install anew",
                "Erases everything on the disk, with every event.",
                "The data cannot be brought back.",
                Tone::Bad,
            ),
        };
        Choice {
            title: title.to_owned(),
            detail: detail.to_owned(),
            note: note.to_owned(),
            tone,
            enabled: true,
        }
    });
    page.blocks.push(Block::Choices {
        items: items.to_vec(),
        selected: Some(selected),
    });
    page.keys = vec![
        key("↑ ↓", "arrows", "Choose"),
        enter("Go on"),
        escape("Back"),
    ];
    page
}

fn advanced(form: &Form, notice: Option<&str>) -> Page {
    let mut page = page(0, "Settings", "");
    page.blocks.extend(notice_block(notice));
    let fields = form.fields().enumerate().map(|(at, (field, value))| {
        let error = form.error(field);
        FormField {
            label: field.label().to_owned(),
            value: value.to_owned(),
            hint: error.clone().unwrap_or_else(|| field.hint().to_owned()),
            wrong: error.is_some(),
            focused: form.focus == at,
        }
    });
    page.blocks.push(Block::Form(fields.collect()));
    page.keys = vec![
        key("↑ ↓ Tab", "arrows, Tab", "Field"),
        correct_key(),
        empty_key(),
        enter("Take over"),
        escape("Drop changes"),
    ];
    page
}

fn confirm(session: &Session, disk: &Disk, prepared: &Prepared, scroll: usize) -> Page {
    let plan = &prepared.plan;
    let title = match plan.mode {
        Mode::Install => "Erase this disk, and install TruthDB",
        Mode::ReinstallKeepData => "Replace the system, and keep the data",
        Mode::RepairBoot => "Make this disk start again",
    };
    let mut page = page(3, title, &format!("{}\n{}", disk.title(), disk.detail()));
    if plan.destroys_data() {
        page.tone = Tone::Bad;
        let text = if disk.contents.is_empty() {
            "Nothing was found on this disk. Whatever is there will be gone.".to_owned()
        } else {
            format!(
                "Everything on this disk will be gone: {}.",
                disk.contents.join(", ")
            )
        };
        page.blocks.push(callout(Tone::Bad, text));
    }
    let found = disk.truthdb.as_ref();
    let newer = found.filter(|found| found.is_newer_than(&session.version));
    if let Some(found) = newer.filter(|_| plan.mode == Mode::ReinstallKeepData) {
        page.blocks.push(callout(
            Tone::Careful,
            format!(
                "The disk holds {}, and this medium has the older {}: it may not read the data of a newer one.",
                found.title(),
                session.version
            ),
        ));
    }
    page.blocks.extend(other_nodes(session, prepared));
    page.blocks.push(Block::Lines {
        lines: plan_lines(plan, session.settings.as_ref()),
        scroll,
    });
    page.keys = vec![
        enter(if plan.destroys_data() {
            "Erase and install"
        } else {
            "Go on"
        }),
        key("↑ ↓ PgUp PgDn", "arrows, PgUp, PgDn", "Read the plan"),
    ];
    page
}

fn ask_for_words(page: &mut Page, disk: &Disk, words: &str, typed: &str) {
    let label = if words == "ERASE" && disk.confirmation() == "ERASE" {
        "To go on, type the word ERASE:".to_owned()
    } else {
        format!("To go on, type the last characters of the disk's serial number, {words}:")
    };
    page.blocks.push(Block::Input {
        label,
        value: typed.to_owned(),
    });
    page.keys.extend([correct_key(), empty_key()]);
}

/// Said before and after: a node does not guess which of two disks holds its data.
fn other_nodes(session: &Session, prepared: &Prepared) -> Option<Block> {
    let others: Vec<String> = session
        .other_nodes(&prepared.plan.target)
        .map(|disk| {
            let identity = &disk.identity;
            if identity.serial.is_empty() {
                format!("{}, {}", disk.title(), identity.path.display())
            } else {
                format!("{}, serial {}", disk.title(), identity.serial)
            }
        })
        .collect();
    let first = others.first()?;
    let more = match others.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Some(callout(
        Tone::Careful,
        format!(
            "Another disk holds a TruthDB: {first}{more}. Take it out: with two, no node starts."
        ),
    ))
}

fn installing(prepared: &Prepared, progress: Option<Progress>) -> Page {
    let title = match prepared.plan.mode {
        Mode::Install => "Installing TruthDB",
        Mode::ReinstallKeepData => "Reinstalling TruthDB",
        Mode::RepairBoot => "Repairing the start",
    };
    let mut page = page(
        4,
        title,
        "Please leave the machine on. If the power fails, start this medium again: nothing has to be \
         cleaned up.",
    );
    let now = progress.map(|progress| progress.step);
    let steps = Step::ALL
        .into_iter()
        .filter(|step| applies(*step, prepared.plan.mode))
        .map(|step| {
            let state = match now {
                Some(now) if step < now => StepState::Done,
                Some(now) if step == now => StepState::Active,
                _ => StepState::Waiting,
            };
            (step.title().to_owned(), state)
        })
        .collect();
    let (per_mille, label) = match progress {
        Some(progress) if progress.total_bytes > 0 => (
            u32::try_from(progress.done_bytes.saturating_mul(1000) / progress.total_bytes)
                .unwrap_or(1000),
            format!(
                "{} of {}",
                human_bytes(progress.done_bytes),
                human_bytes(progress.total_bytes)
            ),
        ),
        _ => (0, "…".to_owned()),
    };
    page.blocks.push(Block::Progress {
        steps,
        per_mille,
        label,
    });
    page
}

/// Whether a mode has this step.
fn applies(step: Step, mode: Mode) -> bool {
    mode == Mode::Install || !matches!(step, Step::ProbeDisk | Step::WriteData)
}

fn finished(
    session: &Session,
    prepared: &Prepared,
    outcome: &Outcome,
    asked: Option<bool>,
    notice: Option<&str>,
) -> Page {
    let title = match prepared.plan.mode {
        Mode::Install => "TruthDB is installed",
        Mode::ReinstallKeepData => "The system was replaced, and the data kept",
        Mode::RepairBoot => "The disk starts again",
    };
    let mut page = page(
        5,
        title,
        "Take the installation medium out, and start the machine again.",
    );
    page.tone = Tone::Good;
    page.blocks.extend(notice_block(notice));
    if let Some(power_off) = asked {
        let way = if power_off {
            "turns the machine off"
        } else {
            "starts the machine again"
        };
        // In place of the sentence under the title: small screens have no room for both.
        page.intro.clear();
        page.blocks.push(callout(
            Tone::Careful,
            format!("Have you written down the token? Enter {way} now, Esc goes back."),
        ));
    }
    if let Some(Secrets { token, fingerprint }) = &prepared.secrets {
        page.blocks.push(Block::Code {
            label: "Admin token: shown now, and never again. Write it down, or scan the code"
                .to_owned(),
            text: token.clone(),
            also: (
                "Certificate fingerprint (SHA-256), for clients to pin".to_owned(),
                fingerprint.clone(),
            ),
        });
    }
    page.blocks.extend(other_nodes(session, prepared));
    let boot = match &outcome.boot_entry {
        BootEntry::Registered => "registered with the firmware, as the first choice".to_owned(),
        BootEntry::FallbackOnly(reason) => {
            format!("by the disk's fallback path only ({reason})")
        }
    };
    page.blocks.push(Block::Facts(vec![
        fact("Start", boot),
        fact(
            "Checked",
            format!(
                "{} written, {} read back and compared, in {} s",
                human_bytes(outcome.written_bytes),
                human_bytes(outcome.verified_bytes),
                outcome.seconds
            ),
        ),
        fact("Data", outcome.data_check.clone()),
    ]));
    page.keys = match asked {
        Some(true) => vec![enter("Turn off"), escape("Back")],
        Some(false) => vec![enter("Start again"), escape("Back")],
        None => vec![enter("Start again"), key("P", "P", "Turn off")],
    };
    page.keys.push(export_key());
    page
}

fn already_installed(disk: &Disk, notice: Option<&str>) -> Page {
    let found = disk.truthdb.as_ref();
    let system = found.map_or_else(|| "TruthDB".to_owned(), crate::flow::FoundSystem::title);
    let mut page = page(
        5,
        &format!("{system} is on this disk already"),
        &format!("{}\n{}", disk.title(), disk.detail()),
    );
    page.tone = Tone::Good;
    page.blocks.push(callout(
        Tone::Good,
        "The answer file was carried out on this disk before. Nothing was written now.",
    ));
    page.blocks.push(Block::Text(
        "Take the installation medium out, and start the machine again. To install once more, choose the \
         disk here, or say again = true in the answer file."
            .to_owned(),
    ));
    page.blocks.extend(notice_block(notice));
    page.keys = vec![
        enter("Start again"),
        key("P", "P", "Turn off"),
        escape("Disks"),
        export_key(),
    ];
    page
}

fn error(failure: &crate::flow::Failure, notice: Option<&str>) -> Page {
    let mut page = page(0, "This did not work", &failure.doing);
    page.tone = Tone::Bad;
    page.blocks.push(callout(Tone::Bad, failure.cause.clone()));
    if !failure.consequence.is_empty() {
        page.blocks.push(Block::Text(failure.consequence.clone()));
    }
    page.blocks.extend(notice_block(notice));
    page.keys = vec![enter("Try again"), escape("Back"), export_key()];
    page
}

fn leave(executed: bool) -> Page {
    let intro = if executed {
        "The machine is turned off. A disk of it was written to here, and may not start: to go on another \
         time, start this medium again."
    } else {
        "The machine is turned off. Nothing was changed on it."
    };
    let mut page = page(0, "Leave without installing?", intro);
    page.keys = vec![enter("Leave, and turn off"), escape("Stay")];
    page
}
