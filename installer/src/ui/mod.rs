//! Screens: what is shown as a value, and the views that show it.
//!
//! A [`Page`] is what there is to be seen: a title, blocks, and the keys that do something. It is made
//! by a pure function ([`pages::of`] for the installer) and shown by views: [`draw`] makes pixels of
//! it for DRM and the framebuffer, [`text`] makes lines of it for a serial line. So every view shows the
//! same, several may be up at once, and each can be tested without a device. The service console of an
//! installed node makes pages of its own and uses the same views.

pub mod draw;
#[cfg(feature = "ui-drm")]
pub mod drm;
#[cfg(feature = "ui-fb")]
pub mod fb;
mod fields;
mod font;
mod lists;
pub mod pages;
mod painter;
pub mod terminal;
pub mod text;
pub mod views;

/// How something is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Plain,
    /// Good news.
    Good,
    /// To be known.
    Careful,
    /// Bad news, or about to destroy something.
    Bad,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepState {
    /// Done.
    Done,
    /// Being done.
    Active,
    /// To be done.
    Waiting,
}

/// Something to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What it is.
    pub title: String,
    /// More about it.
    pub detail: String,
    /// What should be known before choosing it.
    pub note: String,
    /// How the note is meant.
    pub tone: Tone,
    /// Whether it can be chosen.
    pub enabled: bool,
}

/// A field of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormField {
    /// What it is called.
    pub label: String,
    /// What was typed.
    pub value: String,
    /// What may be typed, or what is wrong.
    pub hint: String,
    /// Whether it is wrong.
    pub wrong: bool,
    /// Whether it takes the keys.
    pub focused: bool,
}

/// A piece of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// Names and values.
    Facts(Vec<(String, String)>),
    /// Something to be known, in its colour.
    Callout {
        /// How it is meant.
        tone: Tone,
        /// What there is to be known.
        text: String,
    },
    /// A list to choose from. Takes the room that is left.
    Choices {
        /// What there is.
        items: Vec<Choice>,
        /// Which has the mark.
        selected: Option<usize>,
    },
    /// A form.
    Form(Vec<FormField>),
    /// A line to be typed.
    Input {
        /// What is asked for.
        label: String,
        /// What was typed.
        value: String,
    },
    /// Steps and a bar.
    Progress {
        /// The steps.
        steps: Vec<(String, StepState)>,
        /// How much is done, in thousandths.
        per_mille: u32,
        /// What the bar says.
        label: String,
    },
    /// Lines in a fixed width, from `scroll` on. Takes the room that is left.
    Lines {
        /// The lines.
        lines: Vec<String>,
        /// The first to be shown.
        scroll: usize,
    },
    /// A secret to be written down, and as a QR code.
    Code {
        /// What it is.
        label: String,
        /// The text.
        text: String,
        /// Another text beside it, with its label.
        also: (String, String),
    },
}

/// A key that does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHint {
    /// The key on a keyboard.
    pub key: &'static str,
    /// The key on a serial line.
    pub serial: &'static str,
    /// What it does.
    pub action: String,
}

/// What there is to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Only the picture, with the title under it.
    pub splash: bool,
    /// Name of the program, beside the mark.
    pub program: String,
    /// What stands at the right of the head: a version, a layout.
    pub corner: String,
    /// Which step of how many.
    pub position: Option<(usize, usize)>,
    /// The title.
    pub title: String,
    /// How the page is meant as a whole.
    pub tone: Tone,
    /// A sentence under the title; may be empty.
    pub intro: String,
    /// The pieces.
    pub blocks: Vec<Block>,
    /// The keys.
    pub keys: Vec<KeyHint>,
}

/// Something that can show a page.
pub trait View {
    /// Shows it.
    ///
    /// # Errors
    ///
    /// What went wrong; the view may be opened again.
    fn show(&mut self, page: &Page) -> std::io::Result<()>;

    /// What it is, for the log.
    fn name(&self) -> String;
}
