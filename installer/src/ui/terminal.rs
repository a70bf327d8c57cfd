//! The serial line: a terminal in raw mode that is drawn on and typed on.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::{Page, View, text};
use crate::input::Key;
use crate::input::serial::Decoder;

/// Ctrl-L, as in every program of terminals: for who has just connected, or reads what the line has garbled.
const REDRAW: u8 = 0x0c;

/// A terminal. Its settings are put back when it is dropped.
pub struct Terminal {
    input: File,
    output: File,
    before: Termios,
    decoder: Decoder,
    shown: Option<Page>,
    is_new: bool,
}

impl Terminal {
    /// The program's standard input and output.
    ///
    /// # Errors
    ///
    /// When they are no terminal.
    pub fn standard() -> io::Result<Terminal> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Terminal::open(input, output)
    }

    /// A terminal by its files.
    ///
    /// # Errors
    ///
    /// When they are no terminal.
    pub fn open(input: File, output: File) -> io::Result<Terminal> {
        let before = tcgetattr(&input)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw)?;
        Ok(Terminal {
            input,
            output,
            before,
            decoder: Decoder::new(),
            shown: None,
            is_new: true,
        })
    }

    /// What to wait for.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// Reads what was typed; call it when there is something. An error means that the line is gone.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn read(&mut self) -> io::Result<Vec<Key>> {
        let mut bytes = [0u8; 256];
        let read = self.input.read(&mut bytes)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes[..read].contains(&REDRAW) {
            self.shown = None;
            self.is_new = true;
        }
        Ok(bytes[..read]
            .iter()
            .filter_map(|byte| self.decoder.byte(*byte))
            .collect())
    }

    /// Whether everything is to be drawn again.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether an Escape waits for what follows.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.decoder.is_waiting()
    }

    /// Nothing followed an Escape.
    pub fn pause(&mut self) -> Option<Key> {
        self.decoder.pause()
    }
}

impl View for Terminal {
    fn show(&mut self, page: &Page) -> io::Result<()> {
        if self.shown.as_ref() == Some(page) {
            return Ok(());
        }
        // A new title begins with an empty terminal, as whatever was there may be of somebody else.
        let clear = self.is_new
            || self
                .shown
                .as_ref()
                .is_none_or(|shown| shown.title != page.title);
        self.output.write_all(&text::screen(page, clear))?;
        self.output.flush()?;
        self.shown = Some(page.clone());
        self.is_new = false;
        Ok(())
    }

    fn name(&self) -> String {
        "the serial line".into()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.input, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    #[test]
    fn control_l_draws_everything_again() {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let line = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap());
        let line = line.unwrap();
        let mut terminal = Terminal::open(line.try_clone().unwrap(), line).unwrap();
        let mut far = File::from(controller);
        let drawn = |far: &mut File| {
            let mut bytes = [0; 4096];
            let read = far.read(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..read]).into_owned()
        };
        let page = crate::ui::pages::of(&crate::flow::Session::new("1"));
        terminal.show(&page).unwrap();
        assert!(drawn(&mut far).contains("TruthDB"));
        far.write_all(b"x\x0c").unwrap();
        assert_eq!(terminal.read().unwrap(), [Key::Char('x')]);
        assert!(terminal.is_new());
        terminal.show(&page).unwrap();
        assert!(drawn(&mut far).starts_with("\x1b[2J"));
    }
}
