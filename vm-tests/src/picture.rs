//! Pictures of screens, as far as a test looks at them.

use anyhow::{Context as _, Result, ensure};

/// Height and width of a character of the firmware's and the kernel's console.
const CELL: (usize, usize) = (8, 16);

/// The colour of the appliance's mark: red, green, blue.
const ACCENT: [u8; 3] = [0x3d, 0xd1, 0xb6];
/// So many pixels of it are in the splash at least.
const ACCENT_PIXELS_MIN: usize = 200;

/// A picture with 8 bits for each of red, green and blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Three bytes for each pixel, row by row.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Reads a binary PPM, as QEMU writes it.
    ///
    /// # Errors
    ///
    /// Anything else.
    pub fn parse(bytes: &[u8]) -> Result<Picture> {
        let mut at = 0;
        let mut word = || -> Result<&str> {
            let rest = bytes.get(at..).context("the picture is cut short")?;
            let start = rest.iter().position(|byte| !byte.is_ascii_whitespace());
            let start = at + start.context("the picture is cut short")?;
            let length = bytes[start..].iter().position(u8::is_ascii_whitespace);
            let end = start + length.context("the picture is cut short")?;
            at = end + 1;
            std::str::from_utf8(&bytes[start..end]).context("the picture's header is no text")
        };
        ensure!(word()? == "P6", "the picture is no binary PPM");
        let width = word()?.parse().context("the picture's width")?;
        let height = word()?.parse().context("the picture's height")?;
        ensure!(word()? == "255", "the picture has another depth");
        let pixels = bytes.get(at..).unwrap_or_default().to_vec();
        ensure!(
            Some(pixels.len()) == usize::checked_mul(width, height).and_then(|n| n.checked_mul(3)),
            "the picture is cut short"
        );
        Ok(Picture {
            width,
            height,
            pixels,
        })
    }

    /// Whether every pixel has the same colour.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        let mut pixels = self.pixels.chunks_exact(3);
        let first = pixels.next();
        pixels.all(|pixel| Some(pixel) == first)
    }

    /// Whether something is drawn that a text console does not draw: at least a hundredth of the picture in colours
    /// other than black, white and grey.
    #[must_use]
    pub fn is_drawn(&self) -> bool {
        let coloured = self.pixels.chunks_exact(3).filter(|pixel| {
            let (least, most) = (pixel.iter().min(), pixel.iter().max());
            most.zip(least)
                .is_some_and(|(most, least)| most - least > 8)
        });
        coloured.count() * 100 >= self.width * self.height
    }

    /// Whether it is the appliance's picture on black, as the boot stub shows it: some of the mark's colour, and
    /// nothing in the corners.
    #[must_use]
    pub fn is_splash(&self) -> bool {
        let accent = self.pixels.chunks_exact(3).filter(|p| **p == ACCENT);
        let corners = [0, self.width.saturating_sub(1)];
        let last_row = self.width * self.height.saturating_sub(1);
        let is_black = |at: usize| self.pixels.get(at * 3..at * 3 + 3) == Some(&[0, 0, 0][..]);
        let black = corners
            .iter()
            .all(|at| is_black(*at) && is_black(last_row + at));
        black && accent.count() >= ACCENT_PIXELS_MIN
    }

    /// Rows of characters in the first column of a text console: cells that have nothing but the console's grey and
    /// black, and some of each. A picture that is drawn has other colours, or nothing there.
    #[must_use]
    pub fn console_lines(&self) -> usize {
        let (width, height) = CELL;
        if self.width < width {
            return 0;
        }
        (0..self.height / height)
            .filter(|row| {
                let cell = (0..height).flat_map(|y| {
                    let start = ((row * height + y) * self.width) * 3;
                    self.pixels[start..start + width * 3].chunks_exact(3)
                });
                let (mut lit, mut other) = (0, 0);
                for pixel in cell {
                    match pixel {
                        [0, 0, 0] => {}
                        [r, g, b] if r == g && g == b && *r >= 0x90 => lit += 1,
                        _ => other += 1,
                    }
                }
                other == 0 && (4..100).contains(&lit)
            })
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn black(width: usize, height: usize) -> Picture {
        Picture {
            width,
            height,
            pixels: vec![0; width * height * 3],
        }
    }

    #[test]
    fn a_picture_is_read_and_what_is_none_is_refused() {
        let picture = Picture::parse(b"P6\n2 1\n255\nabcdef").unwrap();
        assert_eq!((picture.width, picture.height), (2, 1));
        assert_eq!(picture.pixels, b"abcdef");
        for bad in [
            &b"P6\n2 1\n255\nabcde"[..],
            b"P5\n1 1\n255\na",
            b"",
            b"P6\n99999999999 9",
        ] {
            assert!(Picture::parse(bad).is_err());
        }
    }

    #[test]
    fn the_splash_is_the_mark_on_black() {
        let mut screen = black(64, 64);
        assert!(!screen.is_splash());
        for pixel in screen.pixels.chunks_exact_mut(3).skip(640).take(300) {
            pixel.copy_from_slice(&ACCENT);
        }
        assert!(screen.is_splash());
        screen.pixels[..3].copy_from_slice(&[10, 10, 10]);
        assert!(!screen.is_splash());
    }

    #[test]
    fn text_of_a_console_is_told_from_a_picture() {
        let mut screen = black(64, 64);
        assert!(screen.is_blank());
        assert_eq!(screen.console_lines(), 0);
        // A letter in the second row, as grey dots.
        for (x, y) in [(1, 18), (2, 19), (3, 20), (3, 21), (2, 22)] {
            let at = (y * 64 + x) * 3;
            screen.pixels[at..at + 3].fill(0xaa);
        }
        assert_eq!(screen.console_lines(), 1);
        assert!(!screen.is_blank() && !screen.is_drawn());
        // The same in colour: something drawn.
        for pixel in screen.pixels.chunks_exact_mut(3) {
            if pixel[0] == 0xaa {
                pixel[2] = 0xff;
            }
        }
        assert_eq!(screen.console_lines(), 0);
        for pixel in screen.pixels.chunks_exact_mut(3).take(64) {
            pixel.copy_from_slice(&[10, 40, 90]);
        }
        assert!(screen.is_drawn());
    }
}
