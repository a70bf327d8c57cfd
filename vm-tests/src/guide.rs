//! Drives the installer from outside, as a person does: reads its pages on the serial line, presses keys on a keyboard
//! or types on the line.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::terminal;
use crate::{Machine, Spec};

/// From power on to the first page, on a real processor.
const BOOT: Duration = Duration::from_secs(60);
/// From a key to the page behind it.
const PAGE: Duration = Duration::from_secs(30);
/// From the confirmation to the last page.
const INSTALL: Duration = Duration::from_secs(120);
/// Looks at a page, five a second, after which it is drawn anew.
const LOOKS_PER_REDRAW: u32 = 100;
/// Looks at a page after which the installer is to look again at the machine.
const LOOKS_PER_LOOK_AGAIN: u32 = 10;
/// What stands on the page of an error.
const ERROR: &str = "This did not work";

/// How keys get into the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// On a USB keyboard.
    Keyboard,
    /// On the serial line.
    Serial,
}

/// A running installer.
#[derive(Debug)]
pub struct Guide {
    /// The machine it runs on.
    pub machine: Machine,
    keys: Keys,
    keep_screens: bool,
}

impl Guide {
    /// Starts a machine and waits for the installer.
    ///
    /// # Errors
    ///
    /// It does not come up.
    pub fn start(spec: &Spec, folder: &Path, keys: Keys) -> Result<Guide> {
        let machine = Machine::start(spec, folder)?;
        Ok(Guide {
            keep_screens: spec.screen,
            machine,
            keys,
        })
    }

    /// The page on the serial line.
    #[must_use]
    pub fn page(&self) -> String {
        terminal::page(&self.machine.serial())
    }

    /// Waits for the first page.
    ///
    /// # Errors
    ///
    /// It does not come.
    pub fn wait_for_welcome(&mut self) -> Result<String> {
        self.wait_within("Install TruthDB on this machine", BOOT)
    }

    /// Waits for a page that has a text; the page. Its screen is kept.
    ///
    /// # Errors
    ///
    /// The deadline passed, or the installer shows an error instead.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        self.wait_within(text, PAGE)
    }

    /// Waits for the end of an installation; the last page.
    ///
    /// # Errors
    ///
    /// As for [`Guide::wait_for`].
    pub fn wait_for_end(&mut self, text: &str) -> Result<String> {
        self.wait_within(text, INSTALL)
    }

    /// Waits for an error, and leaves it for the first page; the page of the error.
    ///
    /// # Errors
    ///
    /// None came, or there is no way on.
    pub fn wait_for_error(&mut self) -> Result<String> {
        let page = self.wait_within(ERROR, INSTALL)?;
        self.leave_error()?;
        Ok(page)
    }

    /// Waits for an error, and asks for the logs on a stick with this label before it is left for the first page;
    /// the page of the error.
    ///
    /// # Errors
    ///
    /// None came, the logs are not said to be on the stick, or there is no way on.
    pub fn wait_for_error_and_export(&mut self, label: &str) -> Result<String> {
        let page = self.wait_within(ERROR, INSTALL)?;
        self.key("f8", b"\x1b[19~")?;
        let said = format!("The logs are on the stick {label},");
        self.machine
            .wait("the logs are on the stick", PAGE, |machine| {
                let page = terminal::page(&machine.serial());
                Ok(page.contains(&said).then_some(()))
            })?;
        self.leave_error()?;
        Ok(page)
    }

    fn leave_error(&mut self) -> Result<()> {
        self.escape()?;
        self.machine.wait("the error is left", PAGE, |machine| {
            let page = terminal::page(&machine.serial());
            Ok((!page.contains(ERROR)).then_some(()))
        })
    }

    fn wait_within(&mut self, text: &str, time: Duration) -> Result<String> {
        let mut looks = 0u32;
        let found = self
            .machine
            .wait(&format!("a page says {text:?}"), time, |machine| {
                let page = terminal::page(&machine.serial());
                looks += 1;
                // A byte may be doubled between the machine and the log. Firmware gets no key: it could take it.
                if looks.is_multiple_of(LOOKS_PER_REDRAW) && page.contains("TruthDB") {
                    machine.type_serial(b"\x0c")?;
                }
                if page.contains(ERROR) && text != ERROR {
                    bail!("the installer shows an error:\n{page}");
                }
                Ok(page.contains(text).then_some(page))
            })?;
        if self.keep_screens {
            let name: String = text
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            self.machine
                .keep_screen(&name)
                .context("keeping a screen")?;
        }
        Ok(found)
    }

    /// Presses Enter.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn enter(&mut self) -> Result<()> {
        self.key("ret", b"\r")
    }

    /// Leaves the last page of a new installation for a restart: the token is asked about once.
    ///
    /// # Errors
    ///
    /// QEMU's, or the question does not come.
    pub fn restart(&mut self) -> Result<()> {
        self.enter()?;
        self.wait_for("Have you written down the token?")?;
        self.enter()
    }

    /// Has the installer look again, by the serial line, until the page has a text: what is slow comes up later.
    ///
    /// # Errors
    ///
    /// It does not come up.
    pub fn look_again_until(&mut self, text: &str) -> Result<()> {
        let mut looks = 0u32;
        let what = format!("a page says {text:?}");
        self.machine.wait(&what, PAGE, |machine| {
            let page = terminal::page(&machine.serial());
            looks += 1;
            if looks.is_multiple_of(LOOKS_PER_LOOK_AGAIN) && page.contains("Look again") {
                machine.type_serial(b"\x12")?;
            }
            Ok(page.contains(text).then_some(()))
        })
    }

    /// Goes through the list of disks with the mark, down to its last one; all that was shown on the way.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn all_disks(&mut self) -> Result<String> {
        let mut all = self.page();
        // A list that is longer than the screen says how much of it is not shown.
        while self.page().contains(" more below") && !self.page().contains(" 0 more below") {
            let before = self.page();
            self.down()?;
            self.machine.wait("the list moves", PAGE, |machine| {
                Ok((terminal::page(&machine.serial()) != before).then_some(()))
            })?;
            all.push_str(&self.page());
        }
        Ok(all)
    }

    /// Presses the arrow down.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn down(&mut self) -> Result<()> {
        self.key("down", b"\x1b[B")
    }

    /// Presses Escape.
    ///
    /// # Errors
    ///
    /// QEMU's.
    pub fn escape(&mut self) -> Result<()> {
        self.key("esc", b"\x1b")
    }

    fn key(&mut self, key: &str, bytes: &[u8]) -> Result<()> {
        match self.keys {
            Keys::Keyboard => self.machine.press(&[key]),
            Keys::Serial => self.machine.type_serial(bytes),
        }
    }

    /// Types a text, and waits until it stands on the page: keys are not pressed faster than they are read.
    ///
    /// # Errors
    ///
    /// QEMU's, or it does not get there.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        match self.keys {
            Keys::Keyboard => self.machine.type_keys(text)?,
            Keys::Serial => self.machine.type_serial(text.as_bytes())?,
        }
        self.wait_for(&format!("> {text}_")).map(|_| ())
    }

    /// From the first page to the confirmation of a disk that is named by a part of its title.
    ///
    /// # Errors
    ///
    /// A page that does not come.
    pub fn choose(&mut self, disk: &str) -> Result<()> {
        self.enter()?;
        self.wait_for("Choose the disk for TruthDB")?;
        self.mark(disk)?;
        self.enter()
    }

    /// Moves the mark to a disk.
    ///
    /// # Errors
    ///
    /// No such disk.
    pub fn mark(&mut self, disk: &str) -> Result<()> {
        let disks = self.page().lines().count();
        for _ in 0..disks {
            let before = marked(&self.page());
            if before.contains(disk) {
                return Ok(());
            }
            self.down()?;
            self.machine.wait("the mark moves", PAGE, |machine| {
                let now = marked(&terminal::page(&machine.serial()));
                Ok((now != before).then_some(()))
            })?;
        }
        bail!("there is no disk {disk:?} on the page:\n{}", self.page())
    }

    /// Types the words that erase a disk, and starts. They are asked for on the page.
    ///
    /// # Errors
    ///
    /// A page that does not come.
    pub fn confirm(&mut self) -> Result<()> {
        let page = self.wait_for("To go on, type")?;
        let asked = page.split("To go on, type").nth(1).unwrap_or_default();
        let asked = asked.split(':').next().unwrap_or_default();
        let words = asked.split_whitespace().next_back();
        let words = words.context("the page does not say what to type")?;
        self.type_text(words)?;
        self.enter()
    }
}

/// What has the mark on a page: its line, and the lines below that belong to it. Empty without a mark.
fn marked(page: &str) -> String {
    let mut lines = page.lines().skip_while(|line| !line.starts_with("> "));
    let title = lines.next().unwrap_or_default();
    let rest = lines.take_while(|line| line.starts_with("    "));
    [title]
        .into_iter()
        .chain(rest)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_mark_is_found_with_its_details() {
        let page = "Disks\n  Disk A\n    serial 1\n> Disk B\n    serial 2\n    Empty\n  Disk C\n";
        assert_eq!(marked(page), "> Disk B\n    serial 2\n    Empty");
        assert_eq!(marked("Disks\n  Disk A\n"), "");
    }
}
