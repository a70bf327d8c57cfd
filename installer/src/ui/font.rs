//! The bundled fonts, and text set with them.

use ab_glyph::{Font as _, FontRef, GlyphId, PxScale, ScaleFont as _, point};
use tiny_skia::{Pixmap, PremultipliedColorU8};

use super::painter::Color;

static REGULAR: &[u8] = include_bytes!("../../assets/fonts/Inter-Regular.otf");
static SEMI_BOLD: &[u8] = include_bytes!("../../assets/fonts/Inter-SemiBold.otf");
static MONO: &[u8] = include_bytes!("../../assets/fonts/DejaVuSansMono.ttf");

/// Shown for a character that the fonts do not have.
const REPLACEMENT: char = '·';

/// A typeface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Regular,
    SemiBold,
    Mono,
}

/// The three typefaces.
pub(super) struct Fonts {
    regular: FontRef<'static>,
    semi_bold: FontRef<'static>,
    mono: FontRef<'static>,
}

impl Fonts {
    pub(super) fn new() -> Fonts {
        let parse = |bytes: &'static [u8]| {
            FontRef::try_from_slice(bytes).expect("the bundled fonts are fonts: a test draws them")
        };
        Fonts {
            regular: parse(REGULAR),
            semi_bold: parse(SEMI_BOLD),
            mono: parse(MONO),
        }
    }

    fn font(&self, face: Face) -> &FontRef<'static> {
        match face {
            Face::Regular => &self.regular,
            Face::SemiBold => &self.semi_bold,
            Face::Mono => &self.mono,
        }
    }

    fn glyph(&self, face: Face, c: char) -> GlyphId {
        let font = self.font(face);
        match font.glyph_id(c) {
            GlyphId(0) => font.glyph_id(REPLACEMENT),
            found => found,
        }
    }

    /// Width of a text in pixels.
    pub(super) fn width(&self, face: Face, size: f32, text: &str) -> f32 {
        let font = self.font(face).as_scaled(PxScale::from(size));
        let mut last: Option<GlyphId> = None;
        text.chars().fold(0.0, |width, c| {
            let id = self.glyph(face, c);
            let kern = last.map_or(0.0, |last| font.kern(last, id));
            last = Some(id);
            width + kern + font.h_advance(id)
        })
    }

    /// Breaks a text into lines no wider than this. A word that is too wide is broken itself.
    pub(super) fn wrap(&self, face: Face, size: f32, text: &str, width: f32) -> Vec<String> {
        let mut lines = Vec::new();
        for paragraph in text.split('\n') {
            let mut line = String::new();
            for word in paragraph.split(' ') {
                let joined = if line.is_empty() {
                    word.to_owned()
                } else {
                    format!("{line} {word}")
                };
                if self.width(face, size, &joined) <= width {
                    line = joined;
                    continue;
                }
                if !line.is_empty() {
                    lines.push(std::mem::take(&mut line));
                }
                line = self.break_word(face, size, word, width, &mut lines);
            }
            lines.push(line);
        }
        lines
    }

    fn break_word(
        &self,
        face: Face,
        size: f32,
        word: &str,
        width: f32,
        lines: &mut Vec<String>,
    ) -> String {
        let mut piece = String::new();
        for c in word.chars() {
            piece.push(c);
            if self.width(face, size, &piece) > width && piece.chars().count() > 1 {
                piece.pop();
                lines.push(std::mem::replace(&mut piece, c.to_string()));
            }
        }
        piece
    }

    /// The beginning of a text that fits, with an ellipsis when it is not all.
    pub(super) fn fit(&self, face: Face, size: f32, text: &str, width: f32) -> String {
        if self.width(face, size, text) <= width {
            return text.to_owned();
        }
        let mut short: Vec<char> = text.chars().collect();
        while short.pop().is_some() {
            let shown: String = short.iter().chain(['…'].iter()).collect();
            if self.width(face, size, &shown) <= width {
                return shown;
            }
        }
        String::new()
    }

    /// Draws a text with its baseline at `y`.
    pub(super) fn draw(
        &self,
        pixels: &mut Pixmap,
        (face, size, color): (Face, f32, Color),
        (x, y): (f32, f32),
        text: &str,
    ) {
        let scale = PxScale::from(size);
        let font = self.font(face);
        let scaled = font.as_scaled(scale);
        let mut at = x;
        let mut last: Option<GlyphId> = None;
        for c in text.chars() {
            let id = self.glyph(face, c);
            at += last.map_or(0.0, |last| scaled.kern(last, id));
            last = Some(id);
            let glyph = id.with_scale_and_position(scale, point(at, y));
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                outline.draw(|dx, dy, coverage| {
                    let place = (bounds.min.x + dx as f32, bounds.min.y + dy as f32);
                    blend(pixels, place, color, coverage);
                });
            }
            at += scaled.h_advance(id);
        }
    }
}

/// Lays a colour over a pixel. Pixels outside are none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "coordinates are checked against the picture, colours are 0 to 255"
)]
fn blend(pixels: &mut Pixmap, (x, y): (f32, f32), color: Color, coverage: f32) {
    let (width, height) = (pixels.width(), pixels.height());
    if x < 0.0 || y < 0.0 || x >= width as f32 || y >= height as f32 {
        return;
    }
    let at = y as usize * width as usize + x as usize;
    let alpha = (coverage.clamp(0.0, 1.0) * 255.0) as u32;
    let Some(pixel) = pixels.pixels_mut().get_mut(at) else {
        return;
    };
    let mix = |under: u8, over: u8| {
        let mixed = u32::from(over) * alpha + u32::from(under) * (255 - alpha);
        ((mixed + 127) / 255) as u8
    };
    let (red, green, blue) = color.channels();
    let mixed = PremultipliedColorU8::from_rgba(
        mix(pixel.red(), red),
        mix(pixel.green(), green),
        mix(pixel.blue(), blue),
        255,
    );
    if let Some(mixed) = mixed {
        *pixel = mixed;
    }
}
