//! The screen through `/dev/fb0`, for machines whose kernel has a framebuffer and no DRM.
//!
//! The size comes from sysfs and the pixels go through `write`: no call that needs `unsafe`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::draw::{Renderer, SIDE_PIXELS_MAX};
use super::{Page, View};

/// File of sysfs with the bits of a pixel.
const DEPTH: &str = "bits_per_pixel";

/// A framebuffer.
pub struct FbView {
    path: PathBuf,
    file: File,
    width: u32,
    height: u32,
    stride_bytes: usize,
    pixel_bytes: usize,
    renderer: Rc<Renderer>,
}

impl FbView {
    /// Opens a framebuffer: its device, and its folder below `/sys/class/graphics`.
    ///
    /// # Errors
    ///
    /// What the operating system says, and `InvalidData` for a format that is not known.
    pub fn open(device: &Path, sysfs: &Path, renderer: &Rc<Renderer>) -> io::Result<FbView> {
        let read = |name: &str| std::fs::read_to_string(sysfs.join(name));
        let number = |text: &str| {
            let parsed = text.trim().parse::<u32>();
            parsed.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a number is expected"))
        };
        let size = read("virtual_size")?;
        let (width, height) = size
            .trim()
            .split_once(',')
            .ok_or(io::ErrorKind::InvalidData)?;
        let (width, height) = (number(width)?, number(height)?);
        let depth = read(DEPTH)?;
        let pixel_bytes = match number(&depth)? {
            16 => 2,
            24 => 3,
            32 => 4,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let stride_bytes = usize::try_from(number(&read("stride")?)?).unwrap_or(0);
        let row_bytes = usize::try_from(width).unwrap_or(0) * pixel_bytes;
        if width == 0
            || height == 0
            || width > SIDE_PIXELS_MAX
            || height > SIDE_PIXELS_MAX
            || stride_bytes < row_bytes
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Where no text console has set the mode, nobody has: a picture would be written, and not be seen. Writing the
        // depth that is there makes the kernel set it. Old drivers have nothing to set, and refuse.
        if let Err(error) = std::fs::write(sysfs.join(DEPTH), &depth) {
            tracing::debug!("setting the mode of {}: {error}", device.display());
        }
        Ok(FbView {
            path: device.to_owned(),
            file: OpenOptions::new().write(true).open(device)?,
            width,
            height,
            stride_bytes,
            pixel_bytes,
            renderer: Rc::clone(renderer),
        })
    }

    fn put(&self, row: &mut Vec<u8>, pixel: &[u8]) {
        let (red, green, blue) = (pixel[0], pixel[1], pixel[2]);
        match self.pixel_bytes {
            2 => {
                let packed =
                    u16::from(red >> 3) << 11 | u16::from(green >> 2) << 5 | u16::from(blue >> 3);
                row.extend_from_slice(&packed.to_le_bytes());
            }
            3 => row.extend_from_slice(&[blue, green, red]),
            _ => row.extend_from_slice(&[blue, green, red, 0]),
        }
    }
}

impl View for FbView {
    fn show(&mut self, page: &Page) -> io::Result<()> {
        let picture = self
            .renderer
            .render(page, self.width, self.height)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let row_bytes = usize::try_from(self.width).unwrap_or(0) * 4;
        let height = usize::try_from(self.height).unwrap_or(0);
        let mut rows = Vec::with_capacity(self.stride_bytes * height);
        for pixels in picture.data().chunks_exact(row_bytes) {
            rows.resize(rows.len().next_multiple_of(self.stride_bytes), 0);
            for pixel in pixels.chunks_exact(4) {
                self.put(&mut rows, pixel);
            }
        }
        // All at once: of a write of exactly one row, Linux takes the changed part to be empty, and shows nothing
        // (6.12, drm_fb_helper_memory_range_to_clip).
        self.file.write_all_at(&rows, 0)
    }

    fn name(&self) -> String {
        format!("{} {}×{}", self.path.display(), self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Session;

    #[test]
    fn every_format_gets_the_same_picture() {
        let directory = tempfile::tempdir().unwrap();
        let (device, sysfs) = (directory.path().join("fb0"), directory.path().join("sys"));
        std::fs::create_dir(&sysfs).unwrap();
        let page = crate::ui::pages::of(&Session::new("1"));
        let renderer = Rc::new(Renderer::new());
        let picture = renderer.render(&page, 640, 480).unwrap();
        for (bits, bytes) in [(16, 2), (24, 3), (32, 4)] {
            std::fs::write(&device, b"").unwrap();
            std::fs::write(sysfs.join("virtual_size"), "640,480\n").unwrap();
            std::fs::write(sysfs.join("bits_per_pixel"), format!("{bits}\n")).unwrap();
            std::fs::write(sysfs.join("stride"), format!("{}\n", 640 * bytes + 64)).unwrap();
            let mut view = FbView::open(&device, &sysfs, &renderer).unwrap();
            view.show(&page).unwrap();
            let shown = std::fs::read(&device).unwrap();
            let at = 163 * (640 * bytes + 64) + 300 * bytes;
            let pixel = picture.pixel(300, 163).unwrap();
            let expected = match bytes {
                2 => {
                    let packed = u16::from(pixel.red() >> 3) << 11
                        | u16::from(pixel.green() >> 2) << 5
                        | u16::from(pixel.blue() >> 3);
                    packed.to_le_bytes().to_vec()
                }
                _ => vec![pixel.blue(), pixel.green(), pixel.red()],
            };
            assert_eq!(&shown[at..at + expected.len()], expected, "{bits}");
        }
        std::fs::write(sysfs.join("virtual_size"), "x").unwrap();
        assert!(FbView::open(&device, &sysfs, &renderer).is_err());
    }
}
