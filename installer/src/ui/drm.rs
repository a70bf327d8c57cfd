//! The screen through DRM/KMS: two dumb buffers on the first card with a connected screen.
//!
//! Legacy mode setting, which every driver has: simpledrm on the firmware's framebuffer, virtio-gpu,
//! bochs, Hyper-V and the real ones. Cards come and go (a native driver replaces simpledrm under an
//! open file, screens are plugged in late): every error means that the view is dropped and opened
//! again, by whoever owns it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ::drm::Device as CardDevice;
use ::drm::buffer::{Buffer as _, DrmFourcc};
use ::drm::control::dumbbuffer::DumbBuffer;
use ::drm::control::{ClipRect, Device as ControlDevice, Mode, connector, crtc, framebuffer};

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

/// A buffer that the screen can be pointed at.
struct Buffer {
    memory: DumbBuffer,
    handle: framebuffer::Handle,
}

/// A screen.
pub struct DrmView {
    path: PathBuf,
    card: Card,
    connector: connector::Handle,
    crtc: crtc::Handle,
    mode: Mode,
    buffers: [Buffer; 2],
    shown: usize,
    renderer: Rc<Renderer>,
}

impl DrmView {
    /// Opens the first card with a connected screen.
    ///
    /// # Errors
    ///
    /// What went wrong with the last card that was tried; `NotFound` when there is none.
    pub fn open(renderer: &Rc<Renderer>) -> io::Result<DrmView> {
        let mut cards: Vec<PathBuf> = std::fs::read_dir(CARDS)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().starts_with("card")
            })
            .collect();
        cards.sort();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no card has a connected screen");
        for path in cards {
            match DrmView::open_card(&path, renderer) {
                Ok(view) => return Ok(view),
                Err(error) => {
                    tracing::debug!("{}: {error}", path.display());
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn open_card(path: &Path, renderer: &Rc<Renderer>) -> io::Result<DrmView> {
        let card = Card(OpenOptions::new().read(true).write(true).open(path)?);
        let (connector, crtc, mode) = find_output(&card)?;
        let size = mode.size();
        let size = (u32::from(size.0), u32::from(size.1));
        let buffers = [make_buffer(&card, size)?, make_buffer(&card, size)?];
        Ok(DrmView {
            path: path.to_owned(),
            card,
            connector,
            crtc,
            mode,
            buffers,
            shown: 0,
            renderer: Rc::clone(renderer),
        })
    }

    /// Whether the screen is still there and still has this mode.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let found = self.card.get_connector(self.connector, true);
        found.is_ok_and(|info| {
            info.state() == connector::State::Connected
                && info.modes().first().is_some_and(|mode| *mode == self.mode)
        })
    }
}

fn make_buffer(card: &Card, size: (u32, u32)) -> io::Result<Buffer> {
    let memory = card.create_dumb_buffer(size, DrmFourcc::Xrgb8888, 32)?;
    let handle = card.add_framebuffer(&memory, 24, 32)?;
    Ok(Buffer { memory, handle })
}

/// The connected screen, its best mode, and a controller that can drive it.
fn find_output(card: &Card) -> io::Result<(connector::Handle, crtc::Handle, Mode)> {
    let resources = card.resource_handles()?;
    for handle in resources.connectors() {
        let Ok(info) = card.get_connector(*handle, true) else {
            continue;
        };
        let Some(mode) = info.modes().first().copied() else {
            continue;
        };
        if info.state() != connector::State::Connected {
            continue;
        }
        let encoders = info.current_encoder().into_iter();
        for encoder in encoders.chain(info.encoders().iter().copied()) {
            let Ok(encoder) = card.get_encoder(encoder) else {
                continue;
            };
            let possible = resources.filter_crtcs(encoder.possible_crtcs());
            let driving = encoder.crtc().filter(|crtc| possible.contains(crtc));
            if let Some(crtc) = driving.or_else(|| possible.first().copied()) {
                return Ok((*handle, crtc, mode));
            }
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "no screen is connected",
    ))
}

impl View for DrmView {
    fn show(&mut self, page: &Page) -> io::Result<()> {
        let back = 1 - self.shown;
        let (width, height) = self.buffers[back].memory.size();
        let picture = self
            .renderer
            .render(page, width, height)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let buffer = &mut self.buffers[back];
        let pitch = usize::try_from(buffer.memory.pitch()).unwrap_or(usize::MAX);
        let mut mapping = self.card.map_dumb_buffer(&mut buffer.memory)?;
        let row_bytes = usize::try_from(width).unwrap_or(0) * 4;
        let rows = picture.data().chunks_exact(row_bytes);
        for (to, from) in mapping.as_mut().chunks_mut(pitch).zip(rows) {
            for (to, from) in to.chunks_exact_mut(4).zip(from.chunks_exact(4)) {
                to.copy_from_slice(&[from[2], from[1], from[0], 0]);
            }
        }
        drop(mapping);
        let handle = self.buffers[back].handle;
        let connectors = [self.connector];
        self.card.set_crtc(
            self.crtc,
            Some(handle),
            (0, 0),
            &connectors,
            Some(self.mode),
        )?;
        // Drivers with a shadow copy want to be told; the others do not know the call.
        let (right, bottom) = self.mode.size();
        let _ = self
            .card
            .dirty_framebuffer(handle, &[ClipRect::new(0, 0, right, bottom)]);
        self.shown = back;
        Ok(())
    }

    fn name(&self) -> String {
        let (width, height) = self.mode.size();
        format!("{} {width}×{height}", self.path.display())
    }
}

impl Drop for DrmView {
    fn drop(&mut self) {
        for buffer in &self.buffers {
            // The card may be gone; the kernel frees everything with the file.
            let _ = self.card.destroy_framebuffer(buffer.handle);
            let _ = self.card.destroy_dumb_buffer(buffer.memory);
        }
    }
}
