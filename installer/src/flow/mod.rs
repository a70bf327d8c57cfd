//! The flow of an installation: one explicit state machine, and pure.
//!
//! [`step`] takes a [`Session`] and an [`Event`] and gives the next session with the [`Effect`]s to be
//! carried out. It knows no device and no clock; whatever is slow or may fail is an effect, whose
//! outcome comes back as an event. So every path can be walked without hardware.
//!
//! What must stay true, and is tested by properties: [`Effect::Execute`] with a plan that destroys
//! data appears only at [`State::Confirm`], after the words of that very plan were typed, or were
//! given by an answer file that names the disk and says `wipe = true`. A TruthDB is erased by answers
//! only if they say `again = true` too, and answers that were carried out on a disk are not carried
//! out once more. A person who presses a key has taken over: nothing begins by itself from then on. Every
//! state but those that write has a way on. An event that does not belong to a state changes nothing, and
//! neither does what comes of an order that was given up.

mod facts;
mod keys;
mod reading;
mod settings;
mod transitions;
mod unattended;

use std::sync::Arc;

use crate::executor::Progress;
use crate::input::{Key, Layout};
use crate::plan::{Mode, Plan, Sha256, TargetIdentity};

pub use facts::{
    Check, Disk, FoundSystem, Hardware, MEMORY_BYTES_MIN, NetworkDevice, SecureBoot, Verdict,
};
pub(crate) use keys::MODES;
pub use reading::plan_lines;
pub use settings::{Field, Form, Network, PARTITIONS_MAX, Settings};
pub use transitions::step;

/// What happens after an unattended installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The last screen stays, until a key is pressed.
    Wait,
    /// The machine starts again.
    Reboot,
    /// The machine is turned off.
    PowerOff,
}

/// What an answer file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Serial number or WWN of the disk.
    pub disk: String,
    /// Whether what is on the disk may be erased.
    pub wipe: bool,
    /// What to do.
    pub mode: Mode,
    /// Values for the form, as texts.
    pub values: Vec<(Field, String)>,
    /// What to do afterwards.
    pub finish: Finish,
    /// Whether it is done even on a disk that holds a TruthDB, or on which it was done before.
    pub again: bool,
}

impl Answers {
    /// What tells these answers from others: what they make of the disk. The order of the keys, comments,
    /// `finish`, and the permissions to erase are not part of it.
    #[must_use]
    pub fn id(&self) -> Sha256 {
        let mut values = self.values.clone();
        values.sort();
        Sha256::of(format!("answers 1 {:?} {:?} {values:?}", self.disk, self.mode).as_bytes())
    }

    /// Whether this is the disk that they name, by serial number or WWN.
    #[must_use]
    pub fn names(&self, target: &TargetIdentity) -> bool {
        target.is_named(&self.disk)
    }
}

/// What is shown once, at the end of an installation.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The admin token.
    pub token: String,
    /// SHA-256 of the certificate, hexadecimal with colons.
    pub fingerprint: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Sessions are logged; a token is not.
        write!(f, "Secrets(fingerprint {})", self.fingerprint)
    }
}

/// A plan that was made, and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The plan.
    pub plan: Arc<Plan>,
    /// What the new node will be called by; `None` when its data is kept.
    pub secrets: Option<Secrets>,
}

/// How the firmware took the boot entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootEntry {
    /// It is there, and first.
    Registered,
    /// It is not; the disk starts by its fallback path. Why.
    FallbackOnly(String),
}

/// How an installation ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes read back and compared.
    pub verified_bytes: u64,
    /// What was said of the data partition.
    pub data_check: String,
    /// The boot entry.
    pub boot_entry: BootEntry,
    /// How long it took, in seconds.
    pub seconds: u64,
}

/// Why something failed, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was being done.
    pub doing: String,
    /// What went wrong, and what to do.
    pub cause: String,
    /// What it means for the disk; empty when no disk was involved.
    pub consequence: String,
}

/// Where an error came from, which says what its retry does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Looking at the machine.
    Hardware,
    /// Looking at the disks.
    Disks,
    /// Making the plan.
    Planning {
        /// The disk, as an index.
        disk: usize,
        /// What was to be done.
        mode: Mode,
    },
    /// Carrying it out.
    Executing {
        /// The disk, as an index.
        disk: usize,
        /// What was done.
        mode: Mode,
    },
}

/// Where in the flow we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The picture, until the machine is known.
    BootSplash,
    /// The machine, and whether it suffices.
    Welcome,
    /// The disks are being looked at.
    Searching,
    /// Which disk.
    DiskSelect {
        /// The disk with the mark; `None` until one is chosen.
        selected: Option<usize>,
        /// Why the last key did nothing.
        notice: Option<String>,
    },
    /// What to do with a disk that holds a TruthDB.
    ModeSelect {
        /// The disk.
        disk: usize,
        /// The mark.
        selected: usize,
    },
    /// Everything that can be set.
    Advanced {
        /// The form.
        form: Form,
        /// The error that keeps it from being accepted.
        notice: Option<String>,
        /// Where to go back to.
        back: Box<State>,
    },
    /// The plan is being made.
    Planning {
        /// The disk.
        disk: usize,
        /// What is to be done.
        mode: Mode,
    },
    /// The plan, and the words that start it.
    Confirm {
        /// The disk.
        disk: usize,
        /// The plan.
        prepared: Prepared,
        /// What must be typed; `None` for a plan that destroys nothing.
        words: Option<String>,
        /// What was typed so far.
        typed: String,
        /// First line of the plan on the screen.
        scroll: usize,
        /// Why the last key did nothing.
        notice: Option<String>,
    },
    /// The plan is being carried out.
    Installing {
        /// The disk.
        disk: usize,
        /// The plan.
        prepared: Prepared,
        /// How far it is.
        progress: Option<Progress>,
    },
    /// Everything is read back.
    Verifying {
        /// The disk.
        disk: usize,
        /// The plan.
        prepared: Prepared,
        /// How far it is.
        progress: Progress,
    },
    /// Done. The token is shown, once.
    Finished {
        /// The plan.
        prepared: Prepared,
        /// How it went.
        outcome: Outcome,
        /// The question whether the token was written down, if it is asked: `true` when the machine would
        /// be turned off after it.
        asked: Option<bool>,
        /// What came of the last request.
        notice: Option<String>,
    },
    /// The answers were carried out on their disk before: nothing is written.
    AlreadyInstalled {
        /// The disk.
        disk: usize,
        /// What came of the last request.
        notice: Option<String>,
    },
    /// The machine is about to start again, or to be turned off.
    Reboot {
        /// Turned off instead.
        power_off: bool,
        /// What was shown before, in case that the machine refuses.
        back: Box<State>,
    },
    /// Something failed.
    Error {
        /// What.
        failure: Failure,
        /// Where.
        origin: Origin,
        /// What came of the last request.
        notice: Option<String>,
    },
    /// Leave, which turns the machine off?
    ConfirmExit {
        /// Where to go back to.
        back: Box<State>,
    },
    /// A person has left: the machine is about to be turned off, and the program ends.
    Exit,
}

impl State {
    /// The name of the state, for logs and tests.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            State::BootSplash => "BootSplash",
            State::Welcome => "Welcome",
            State::Searching => "Searching",
            State::DiskSelect { .. } => "DiskSelect",
            State::ModeSelect { .. } => "ModeSelect",
            State::Advanced { .. } => "Advanced",
            State::Planning { .. } => "Planning",
            State::Confirm { .. } => "Confirm",
            State::Installing { .. } => "Installing",
            State::Verifying { .. } => "Verifying",
            State::Finished { .. } => "Finished",
            State::AlreadyInstalled { .. } => "AlreadyInstalled",
            State::Reboot { .. } => "Reboot",
            State::Error { .. } => "Error",
            State::ConfirmExit { .. } => "ConfirmExit",
            State::Exit => "Exit",
        }
    }
}

/// Everything the flow knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Where we are.
    pub state: State,
    /// Version of the system that would be installed.
    pub version: String,
    /// The machine, once it is known.
    pub hardware: Option<Hardware>,
    /// Its disks, as last looked at.
    pub disks: Vec<Disk>,
    /// What is set, once the machine is known.
    pub settings: Option<Settings>,
    /// What would be set if nobody had changed anything.
    pub defaults: Option<Settings>,
    /// The keyboard's layout.
    pub layout: Layout,
    /// What an answer file said. Used up at the first error, so that a person takes over.
    pub answers: Option<Answers>,
    /// Whether a person has pressed a key, or has to take over: nothing begins by itself from then on.
    pub attended: bool,
    /// Why an answer file was not taken, to be shown.
    pub answers_refused: Option<String>,
    /// What came of the last request, where the state has no place for it.
    pub notice: Option<String>,
    /// Whether a plan was begun since the machine was started.
    pub executed: bool,
    /// The number of the last order: what comes of an earlier one is not wanted any more.
    pub order: u64,
}

impl Session {
    /// The beginning.
    #[must_use]
    pub fn new(version: &str) -> Session {
        Session {
            state: State::BootSplash,
            version: version.to_owned(),
            hardware: None,
            disks: Vec::new(),
            settings: None,
            defaults: None,
            layout: Layout::Us,
            answers: None,
            attended: false,
            answers_refused: None,
            notice: None,
            executed: false,
            order: 0,
        }
    }

    /// The other disks with a data partition of a TruthDB: a node that finds two does not start.
    pub fn other_nodes<'a>(&'a self, target: &'a TargetIdentity) -> impl Iterator<Item = &'a Disk> {
        let others = self.disks.iter();
        others.filter(move |disk| disk.holds_data() && !disk.is(target))
    }
}

/// What happens to the flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The program has started.
    Started,
    /// A key.
    Key(Key),
    /// The machine is known, or cannot be.
    Hardware(Result<(Hardware, Settings), Failure>),
    /// There is an answer file, or one that cannot be taken.
    Answers(Result<Answers, String>),
    /// A disk or a stick has come or gone.
    DevicesChanged,
    /// What came of an order: [`Event::Disks`] or [`Event::Planned`]. Only of the last one it is wanted.
    Of {
        /// The number of the order.
        order: u64,
        /// What came of it.
        outcome: Box<Event>,
    },
    /// The disks are known, or cannot be.
    Disks(Result<Vec<Disk>, Failure>),
    /// The plan was made, or cannot be.
    Planned(Result<Prepared, Failure>),
    /// The plan is carried out so far.
    Progressed(Progress),
    /// The plan was carried out, or failed.
    Executed(Result<Outcome, Failure>),
    /// The firmware was told to start the disk next, or does not take it.
    DiskNext(Result<(), String>),
    /// The logs were written to a stick, or could not be. The text is for people.
    Exported(Result<String, String>),
    /// The machine refuses to start again or to be turned off. Why.
    NotLeft(String),
}

/// What the flow wants done. The outcome comes back as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Look at the machine, and for an answer file.
    ProbeHardware,
    /// Look for an answer file once more.
    ProbeAnswers,
    /// Look at the disks. The outcome comes as [`Event::Of`].
    ProbeDisks {
        /// The number of this order.
        order: u64,
    },
    /// Make a plan. The outcome comes as [`Event::Of`].
    MakePlan {
        /// The number of this order.
        order: u64,
        /// The disk.
        disk: Box<Disk>,
        /// What to do.
        mode: Mode,
        /// What is set.
        settings: Box<Settings>,
        /// What tells the answers that want it, if it is answers.
        answers: Option<Sha256>,
    },
    /// Carry a plan out. The one effect that may destroy data.
    Execute {
        /// The plan.
        prepared: Prepared,
    },
    /// Have the firmware start the system on this disk next, whatever comes first in its order.
    StartDiskNext {
        /// The disk.
        disk: Box<Disk>,
    },
    /// Write the logs to a USB stick.
    ExportLogs,
    /// Start the machine again.
    Reboot,
    /// Turn the machine off.
    PowerOff,
}
