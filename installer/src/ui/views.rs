//! All views of a program at once: whatever screen there is, and the serial line; and all its keys.
//!
//! Screens come and go: a view that fails is dropped and looked for again, as is a better one while
//! there is none. The program calls [`Views::wait`] in its loop and gets keys.

use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::draw::Renderer;
use super::terminal::Terminal;
use super::{Page, View};
use crate::input::evdev::Keyboards;
use crate::input::serial::ESCAPE_WAIT_MS;
use crate::input::{Key, Layout};
use crate::platform::command_line_value;
use crate::platform::machine::monotonic_ms;

/// How often screens and keyboards are looked for, in milliseconds.
const LOOK_MS: u64 = 1500;
/// How often the serial line is redrawn at most, in milliseconds: it takes a while to send a page.
const TERMINAL_MS: u64 = 500;

/// A way to a screen.
type Way = fn(&Rc<Renderer>) -> io::Result<Screen>;

/// Which screens are used. A screen that stays black in one way may work in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screens {
    /// Whatever works, DRM before the framebuffer.
    Any,
    /// DRM only.
    Drm,
    /// The framebuffer only.
    Framebuffer,
    /// None: the serial line only.
    None,
}

impl Screens {
    /// Key on the kernel's command line.
    const KEY: &str = "truthdb.screen";

    /// What the kernel's command line says: `truthdb.screen=drm`, `framebuffer` or `none`; else any.
    #[must_use]
    pub fn of_command_line(line: &str) -> Screens {
        match command_line_value(line, Screens::KEY).as_deref() {
            Some("drm") => Screens::Drm,
            Some("framebuffer") => Screens::Framebuffer,
            Some("none") => Screens::None,
            Some(other) => {
                tracing::warn!(
                    "{}={other:?} is not known: there are drm, framebuffer, none",
                    Screens::KEY
                );
                Screens::Any
            }
            None => Screens::Any,
        }
    }

    /// The ways to a screen, in the order in which they are tried.
    fn ways(self) -> &'static [Way] {
        match self {
            Screens::Any => &[Screen::by_drm, Screen::by_framebuffer],
            Screens::Drm => &[Screen::by_drm],
            Screens::Framebuffer => &[Screen::by_framebuffer],
            Screens::None => &[],
        }
    }
}

enum Screen {
    #[cfg(feature = "ui-drm")]
    Drm(super::drm::DrmView),
    #[cfg(feature = "ui-fb")]
    Fb {
        view: super::fb::FbView,
        /// The cards that were there, none of which worked.
        cards: Vec<String>,
    },
}

impl Screen {
    fn by_drm(renderer: &Rc<Renderer>) -> io::Result<Screen> {
        #[cfg(feature = "ui-drm")]
        return super::drm::DrmView::open(renderer).map(Screen::Drm);
        #[cfg(not(feature = "ui-drm"))]
        return left_out(renderer);
    }

    fn by_framebuffer(renderer: &Rc<Renderer>) -> io::Result<Screen> {
        #[cfg(feature = "ui-fb")]
        {
            let device = std::path::Path::new("/dev/fb0");
            let sysfs = std::path::Path::new("/sys/class/graphics/fb0");
            let cards = cards();
            super::fb::FbView::open(device, sysfs, renderer).map(|view| Screen::Fb { view, cards })
        }
        #[cfg(not(feature = "ui-fb"))]
        return left_out(renderer);
    }

    fn view(&mut self) -> &mut dyn View {
        match self {
            #[cfg(feature = "ui-drm")]
            Screen::Drm(view) => view,
            #[cfg(feature = "ui-fb")]
            Screen::Fb { view, .. } => view,
        }
    }

    fn is_current(&self) -> bool {
        match self {
            #[cfg(feature = "ui-drm")]
            Screen::Drm(view) => view.is_current(),
            // Another card may work: the framebuffer is given up for it.
            #[cfg(feature = "ui-fb")]
            Screen::Fb { cards: then, .. } => *then == cards(),
        }
    }
}

/// What a program says that was built without one of the ways to a screen.
#[cfg(not(all(feature = "ui-drm", feature = "ui-fb")))]
fn left_out(_: &Rc<Renderer>) -> io::Result<Screen> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Names of the DRM devices.
#[cfg(feature = "ui-fb")]
fn cards() -> Vec<String> {
    crate::platform::System::real().names("dev/dri")
}

/// All views and all keys.
pub struct Views {
    renderer: Rc<Renderer>,
    screens: Screens,
    screen: Option<Screen>,
    terminal: Option<Terminal>,
    keyboards: Keyboards,
    page: Option<Page>,
    looked_ms: Option<u64>,
    terminal_shown_ms: u64,
    terminal_is_late: bool,
}

impl Views {
    /// Opens what there is. Without a screen and without a terminal there still are keys to wait for,
    /// and a screen may be plugged in. The terminal is used only if that is wanted.
    #[must_use]
    pub fn open(screens: Screens, with_terminal: bool) -> Views {
        let terminal = match with_terminal.then(Terminal::standard) {
            Some(Ok(terminal)) => Some(terminal),
            Some(Err(error)) => {
                tracing::info!("no terminal: {error}");
                None
            }
            None => None,
        };
        let mut views = Views {
            renderer: Rc::new(Renderer::new()),
            screens,
            screen: None,
            terminal,
            keyboards: Keyboards::new(),
            page: None,
            looked_ms: None,
            terminal_shown_ms: 0,
            terminal_is_late: false,
        };
        views.look();
        views
    }

    /// Looks for screens and keyboards, if that was not done lately.
    fn look(&mut self) {
        let now_ms = monotonic_ms();
        if self
            .looked_ms
            .is_some_and(|looked| now_ms - looked < LOOK_MS)
        {
            return;
        }
        self.looked_ms = Some(now_ms);
        self.keyboards.rescan();
        if self
            .screen
            .as_ref()
            .is_some_and(|screen| !screen.is_current())
        {
            tracing::info!("the screen has changed");
            self.screen = None;
        }
        if self.screen.is_none() {
            self.screen = self.first_that_works();
        }
    }

    /// The first screen that opens and takes the page. A card may open, and refuse to show anything.
    fn first_that_works(&self) -> Option<Screen> {
        for way in self.screens.ways() {
            let opened = way(&self.renderer).and_then(|mut screen| {
                if let Some(page) = &self.page {
                    screen.view().show(page)?;
                }
                Ok(screen)
            });
            match opened {
                Ok(mut screen) => {
                    tracing::info!("screen {}", screen.view().name());
                    return Some(screen);
                }
                Err(error) => tracing::debug!("no screen: {error}"),
            }
        }
        None
    }

    /// Shows a page on all views.
    pub fn show(&mut self, page: &Page) {
        if self.page.as_ref() != Some(page) {
            self.page = Some(page.clone());
            if let Some(screen) = &mut self.screen {
                let shown = screen.view().show(page);
                self.judge(shown);
            }
            self.terminal_is_late = true;
        }
        self.show_late();
    }

    fn judge(&mut self, shown: io::Result<()>) {
        if let Err(error) = shown {
            tracing::warn!("the screen does not work any more: {error}");
            self.screen = None;
        }
    }

    /// Redraws the terminal, if it is behind and not just redrawn. A new title is shown at once.
    fn show_late(&mut self) {
        let now_ms = monotonic_ms();
        let (Some(terminal), Some(page)) = (&mut self.terminal, &self.page) else {
            return;
        };
        let is_progress = page
            .blocks
            .iter()
            .any(|block| matches!(block, super::Block::Progress { .. }));
        if !self.terminal_is_late || (is_progress && now_ms - self.terminal_shown_ms < TERMINAL_MS)
        {
            return;
        }
        if let Err(error) = terminal.show(page) {
            tracing::warn!("the serial line does not work any more: {error}");
            self.terminal = None;
        }
        self.terminal_shown_ms = now_ms;
        self.terminal_is_late = false;
    }

    /// Waits for keys, for `also`, or for `timeout_ms`; gives the keys.
    pub fn wait(
        &mut self,
        also: Option<BorrowedFd<'_>>,
        layout: Layout,
        timeout_ms: u64,
    ) -> Vec<Key> {
        let escape = self.terminal.as_ref().is_some_and(Terminal::is_waiting);
        let timeout_ms = match (escape, self.terminal_is_late) {
            (true, _) => ESCAPE_WAIT_MS,
            (false, true) => timeout_ms.min(TERMINAL_MS),
            (false, false) => timeout_ms.min(LOOK_MS),
        };
        let typed = {
            let mut waited: Vec<PollFd<'_>> = Vec::new();
            if let Some(terminal) = &self.terminal {
                waited.push(PollFd::from_borrowed_fd(terminal.handle(), PollFlags::IN));
            }
            let keyboards = self.keyboards.handles();
            waited.extend(keyboards.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            waited.extend(also.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let timeout = Timespec {
                tv_sec: i64::try_from(timeout_ms / 1000).unwrap_or(1),
                tv_nsec: i64::try_from(timeout_ms % 1000 * 1_000_000).unwrap_or(0),
            };
            let ready = poll(&mut waited, Some(&timeout)).unwrap_or(0);
            let is_typed = self.terminal.is_some()
                && waited
                    .first()
                    .is_some_and(|first| !first.revents().is_empty());
            (ready > 0, is_typed)
        };
        let (ready, is_typed) = typed;
        let mut keys = Vec::new();
        if is_typed {
            keys.extend(self.read_terminal());
        } else if escape && !ready {
            keys.extend(self.terminal.as_mut().and_then(Terminal::pause));
        }
        keys.extend(self.keyboards.read(layout));
        self.look();
        self.show_late();
        keys
    }

    fn read_terminal(&mut self) -> Vec<Key> {
        let Some(terminal) = &mut self.terminal else {
            return Vec::new();
        };
        match terminal.read() {
            Ok(keys) => {
                self.terminal_is_late |= terminal.is_new();
                keys
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Vec::new(),
            Err(error) => {
                tracing::warn!("the serial line is gone: {error}");
                self.terminal = None;
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_which_screens_are_used() {
        for (line, screens) in [
            ("quiet", Screens::Any),
            ("quiet truthdb.screen=drm", Screens::Drm),
            ("truthdb.screen=framebuffer quiet", Screens::Framebuffer),
            ("truthdb.screen=none", Screens::None),
            ("truthdb.screen=fb", Screens::Any),
            ("truthdb.screen", Screens::Any),
        ] {
            assert_eq!(Screens::of_command_line(line), screens, "{line}");
        }
        assert_eq!(Screens::Any.ways().len(), 2);
    }
}
