//! The screens through DRM/KMS: all that are connected, to whatever cards, show the same; each has two dumb
//! buffers. A server's management port has a card of its own, and the monitor is often on another one.
//!
//! Legacy mode setting, which every driver has: simpledrm on the firmware's framebuffer, virtio-gpu,
//! bochs, Hyper-V and the real ones. Cards come and go (a native driver replaces simpledrm under an
//! open file, screens are plugged in late): every error means that the view is dropped and opened
//! again, by whoever owns it. A screen that does not work beside others is left out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ::drm::Device as CardDevice;
use ::drm::buffer::{Buffer as _, DrmFourcc};
use ::drm::control::dumbbuffer::DumbBuffer;
use ::drm::control::{ClipRect, Device as ControlDevice, Mode, connector, crtc, framebuffer};

use tiny_skia::Pixmap;

use super::draw::Renderer;
use super::{Page, View};

/// Where cards are.
const CARDS: &str = "/dev/dri";

struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl CardDevice for Card {}
impl ControlDevice for Card {}

/// A buffer that a screen can be pointed at.
struct Buffer {
    memory: DumbBuffer,
    handle: framebuffer::Handle,
}

/// A connected screen, with its best mode.
type Connected = (connector::Handle, Mode);

/// A screen that is drawn on.
struct Output {
    connector: connector::Handle,
    crtc: crtc::Handle,
    mode: Mode,
    buffers: [Buffer; 2],
    shown: usize,
}

/// A card, with the screens that were connected to it.
struct CardView {
    path: PathBuf,
    card: Card,
    seen: Vec<Connected>,
    outputs: Vec<Output>,
}

/// All screens.
pub struct DrmView {
    paths: Vec<PathBuf>,
    cards: Vec<CardView>,
    renderer: Rc<Renderer>,
}

impl DrmView {
    /// Opens all cards, and all screens that are connected.
    ///
    /// # Errors
    ///
    /// What went wrong with the last card that was tried; `NotFound` when there is no screen.
    pub fn open(renderer: &Rc<Renderer>) -> io::Result<DrmView> {
        let paths = card_paths()?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no card has a connected screen");
        let mut cards = Vec::new();
        for path in &paths {
            match CardView::open(path) {
                Ok(card) => cards.push(card),
                Err(error) => {
                    tracing::debug!("{}: {error}", path.display());
                    last = error;
                }
            }
        }
        if cards.iter().all(|card| card.outputs.is_empty()) {
            return Err(last);
        }
        Ok(DrmView {
            paths,
            cards,
            renderer: Rc::clone(renderer),
        })
    }

    /// Whether the cards and screens are still those that were there.
    #[must_use]
    pub fn is_current(&self) -> bool {
        card_paths().is_ok_and(|paths| paths == self.paths)
            && self.cards.iter().all(CardView::is_current)
    }
}

fn card_paths() -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(CARDS)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with("card")
        })
        .collect();
    paths.sort();
    Ok(paths)
}

impl CardView {
    fn open(path: &Path) -> io::Result<CardView> {
        let card = Card(OpenOptions::new().read(true).write(true).open(path)?);
        let seen = connected(&card, |_| true)?;
        let mut view = CardView {
            path: path.to_owned(),
            card,
            seen,
            outputs: Vec::new(),
        };
        for (connector, mode) in view.seen.clone() {
            match view.add_output(connector, mode) {
                Ok(()) => {}
                Err(error) => tracing::debug!("{}: a screen: {error}", path.display()),
            }
        }
        Ok(view)
    }

    fn add_output(&mut self, connector: connector::Handle, mode: Mode) -> io::Result<()> {
        let taken: Vec<crtc::Handle> = self.outputs.iter().map(|output| output.crtc).collect();
        let crtc = find_controller(&self.card, connector, &taken)?;
        let (width, height) = mode.size();
        let size = (u32::from(width), u32::from(height));
        self.outputs.push(Output {
            connector,
            crtc,
            mode,
            buffers: [
                make_buffer(&self.card, size)?,
                make_buffer(&self.card, size)?,
            ],
            shown: 0,
        });
        Ok(())
    }

    /// A place without a screen is not probed again and again: that can make others flicker.
    fn is_current(&self) -> bool {
        let is_seen = |handle| self.seen.iter().any(|(seen, _)| *seen == handle);
        connected(&self.card, is_seen).is_ok_and(|now| now == self.seen)
    }

    /// Draws on all of its screens, as far as they work; the last error.
    fn show(
        &mut self,
        picture: &mut impl FnMut(u32, u32) -> io::Result<Rc<Pixmap>>,
    ) -> Option<io::Error> {
        let CardView {
            path,
            card,
            outputs,
            ..
        } = self;
        let mut last = None;
        outputs.retain_mut(|output| {
            let (width, height) = output.buffers[0].memory.size();
            let shown = picture(width, height).and_then(|picture| output.show(card, &picture));
            if let Err(error) = shown {
                tracing::info!("{}: a screen is left out: {error}", path.display());
                output.free(card);
                last = Some(error);
                return false;
            }
            true
        });
        last
    }
}

impl Output {
    fn show(&mut self, card: &Card, picture: &Pixmap) -> io::Result<()> {
        let back = 1 - self.shown;
        let buffer = &mut self.buffers[back];
        let pitch = usize::try_from(buffer.memory.pitch()).unwrap_or(usize::MAX);
        let row_bytes = usize::try_from(picture.width()).unwrap_or(0) * 4;
        let mut mapping = card.map_dumb_buffer(&mut buffer.memory)?;
        let rows = picture.data().chunks_exact(row_bytes);
        for (to, from) in mapping.as_mut().chunks_mut(pitch).zip(rows) {
            for (to, from) in to.chunks_exact_mut(4).zip(from.chunks_exact(4)) {
                to.copy_from_slice(&[from[2], from[1], from[0], 0]);
            }
        }
        drop(mapping);
        let handle = self.buffers[back].handle;
        let connectors = [self.connector];
        card.set_crtc(
            self.crtc,
            Some(handle),
            (0, 0),
            &connectors,
            Some(self.mode),
        )?;
        // Drivers with a shadow copy want to be told; the others do not know the call.
        let (right, bottom) = self.mode.size();
        let _ = card.dirty_framebuffer(handle, &[ClipRect::new(0, 0, right, bottom)]);
        self.shown = back;
        Ok(())
    }

    fn free(&self, card: &Card) {
        for buffer in &self.buffers {
            // The card may be gone; the kernel frees everything with the file.
            let _ = card.destroy_framebuffer(buffer.handle);
            let _ = card.destroy_dumb_buffer(buffer.memory);
        }
    }
}

impl Drop for CardView {
    fn drop(&mut self) {
        for output in &self.outputs {
            output.free(&self.card);
        }
    }
}

fn make_buffer(card: &Card, size: (u32, u32)) -> io::Result<Buffer> {
    let memory = card.create_dumb_buffer(size, DrmFourcc::Xrgb8888, 32)?;
    let handle = card.add_framebuffer(&memory, 24, 32)?;
    Ok(Buffer { memory, handle })
}

/// The connected screens, each with its best mode. `probe` says which are asked, and not looked up.
fn connected(card: &Card, probe: impl Fn(connector::Handle) -> bool) -> io::Result<Vec<Connected>> {
    let resources = card.resource_handles()?;
    let handles = resources.connectors().iter();
    Ok(handles
        .filter_map(|handle| {
            let info = card.get_connector(*handle, probe(*handle)).ok()?;
            let mode = info.modes().first().copied()?;
            (info.state() == connector::State::Connected).then_some((*handle, mode))
        })
        .collect())
}

/// A controller that can drive a screen: the one that does already, unless it is taken.
fn find_controller(
    card: &Card,
    connector: connector::Handle,
    taken: &[crtc::Handle],
) -> io::Result<crtc::Handle> {
    let resources = card.resource_handles()?;
    let info = card.get_connector(connector, false)?;
    let encoders = info.current_encoder().into_iter();
    for encoder in encoders.chain(info.encoders().iter().copied()) {
        let Ok(encoder) = card.get_encoder(encoder) else {
            continue;
        };
        let possible = resources.filter_crtcs(encoder.possible_crtcs());
        let driving = encoder.crtc().into_iter();
        let mut free = driving
            .chain(possible.iter().copied())
            .filter(|crtc| possible.contains(crtc) && !taken.contains(crtc));
        if let Some(crtc) = free.next() {
            return Ok(crtc);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "no controller is left for it",
    ))
}

impl View for DrmView {
    fn show(&mut self, page: &Page) -> io::Result<()> {
        // Screens of the same size share a picture: drawing is what takes the time.
        let mut drawn: Vec<Rc<Pixmap>> = Vec::new();
        let renderer = Rc::clone(&self.renderer);
        let mut picture = |width: u32, height: u32| {
            let same =
                |picture: &&Rc<Pixmap>| (picture.width(), picture.height()) == (width, height);
            if let Some(picture) = drawn.iter().find(same) {
                return Ok(Rc::clone(picture));
            }
            let picture = renderer
                .render(page, width, height)
                .ok_or(io::ErrorKind::InvalidInput)?;
            let picture = Rc::new(picture);
            drawn.push(Rc::clone(&picture));
            Ok(picture)
        };
        let mut last = None;
        for card in &mut self.cards {
            last = card.show(&mut picture).or(last);
        }
        if self.cards.iter().any(|card| !card.outputs.is_empty()) {
            return Ok(());
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn name(&self) -> String {
        let cards = self.cards.iter();
        let names: Vec<String> = cards
            .flat_map(|card| {
                card.outputs.iter().map(|output| {
                    let (width, height) = output.mode.size();
                    format!("{} {width}×{height}", card.path.display())
                })
            })
            .collect();
        names.join(", ")
    }
}
