//! Shapes and text in units that fit every screen, on a picture in memory.

use tiny_skia::{FillRule, Paint, PathBuilder, Pixmap, Rect, Stroke, Transform};

use super::font::{Face, Fonts};

/// A colour, as 0xRRGGBB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Color(pub(super) u32);

impl Color {
    pub(super) fn channels(self) -> (u8, u8, u8) {
        let [blue, green, red, _] = self.0.to_le_bytes();
        (red, green, blue)
    }
}

/// The palette: a deep blue, quiet text, one colour that says "here".
pub(super) mod palette {
    use super::Color;

    pub(in crate::ui) const BACKGROUND: Color = Color(0x0d_16_24);
    pub(in crate::ui) const RAISED: Color = Color(0x15_21_33);
    pub(in crate::ui) const LINE: Color = Color(0x26_36_4d);
    pub(in crate::ui) const TEXT: Color = Color(0xe8_ee_f6);
    pub(in crate::ui) const QUIET: Color = Color(0x9b_ac_c4);
    pub(in crate::ui) const FAINT: Color = Color(0x5d_70_8c);
    pub(in crate::ui) const ACCENT: Color = Color(0x3d_d1_b6);
    pub(in crate::ui) const ACCENT_DEEP: Color = Color(0x16_3f_48);
    pub(in crate::ui) const CAREFUL: Color = Color(0xf3_bd_5b);
    pub(in crate::ui) const BAD: Color = Color(0xff_7a_70);
    pub(in crate::ui) const WHITE: Color = Color(0xff_ff_ff);
    pub(in crate::ui) const BLACK: Color = Color(0x00_00_00);
}

/// A screen of this many units is drawn as designed; others are scaled.
const DESIGN: (f32, f32) = (1280.0, 720.0);
/// Smaller screens show less rather than smaller letters.
const SCALE_MIN: f32 = 0.82;

/// A rectangle in units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) x: f32,
    pub(super) y: f32,
    pub(super) width: f32,
    pub(super) height: f32,
}

/// Draws, in units. When dry, it only measures.
pub(super) struct Painter<'a> {
    pub(super) fonts: &'a Fonts,
    pixels: Option<&'a mut Pixmap>,
    scale: f32,
    pub(super) width: f32,
    pub(super) height: f32,
}

impl<'a> Painter<'a> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "screens have some thousand pixels"
    )]
    pub(super) fn new(fonts: &'a Fonts, pixels: &'a mut Pixmap) -> Painter<'a> {
        let (width, height) = (pixels.width() as f32, pixels.height() as f32);
        let scale = (width / DESIGN.0).min(height / DESIGN.1).max(SCALE_MIN);
        Painter {
            fonts,
            pixels: Some(pixels),
            scale,
            width: width / scale,
            height: height / scale,
        }
    }

    /// The same, measuring only.
    pub(super) fn dry(&self) -> Painter<'a> {
        Painter {
            fonts: self.fonts,
            pixels: None,
            scale: self.scale,
            width: self.width,
            height: self.height,
        }
    }

    pub(super) fn text_width(&self, face: Face, size: f32, text: &str) -> f32 {
        self.fonts.width(face, size * self.scale, text) / self.scale
    }

    pub(super) fn wrap(&self, face: Face, size: f32, text: &str, width: f32) -> Vec<String> {
        self.fonts
            .wrap(face, size * self.scale, text, width * self.scale)
    }

    pub(super) fn fit(&self, face: Face, size: f32, text: &str, width: f32) -> String {
        self.fonts
            .fit(face, size * self.scale, text, width * self.scale)
    }

    /// A line of text, with its baseline at `y`.
    pub(super) fn text(&mut self, style: (Face, f32, Color), at: (f32, f32), text: &str) {
        let (scale, fonts) = (self.scale, self.fonts);
        if let Some(pixels) = self.pixels.as_deref_mut() {
            let (face, size, color) = style;
            let place = (at.0 * scale, (at.1 * scale).round());
            fonts.draw(pixels, (face, size * scale, color), place, text);
        }
    }

    /// A filled rectangle with round corners.
    pub(super) fn fill(&mut self, area: Area, radius: f32, color: Color) {
        let scale = self.scale;
        let Some(pixels) = self.pixels.as_deref_mut() else {
            return;
        };
        let Some(path) = rounded(area, radius, scale) else {
            return;
        };
        pixels.fill_path(
            &path,
            &paint(color),
            FillRule::Winding,
            Transform::identity(),
            None,
        );
    }

    /// The outline of a rectangle with round corners.
    pub(super) fn outline(&mut self, area: Area, radius: f32, color: Color, thickness: f32) {
        let scale = self.scale;
        let Some(pixels) = self.pixels.as_deref_mut() else {
            return;
        };
        let Some(path) = rounded(area, radius, scale) else {
            return;
        };
        let stroke = Stroke {
            width: (thickness * scale).max(1.0),
            ..Stroke::default()
        };
        pixels.stroke_path(&path, &paint(color), &stroke, Transform::identity(), None);
    }

    /// A filled circle.
    pub(super) fn dot(&mut self, (x, y): (f32, f32), radius: f32, color: Color) {
        let area = Area {
            x: x - radius,
            y: y - radius,
            width: 2.0 * radius,
            height: 2.0 * radius,
        };
        self.fill(area, radius, color);
    }
}

fn paint(color: Color) -> Paint<'static> {
    let (red, green, blue) = color.channels();
    let mut paint = Paint::default();
    paint.set_color_rgba8(red, green, blue, 255);
    paint.anti_alias = true;
    paint
}

fn rounded(area: Area, radius: f32, scale: f32) -> Option<tiny_skia::Path> {
    let rect = Rect::from_xywh(
        area.x * scale,
        area.y * scale,
        (area.width * scale).max(1.0),
        (area.height * scale).max(1.0),
    )?;
    let radius = (radius * scale)
        .min(rect.width() / 2.0)
        .min(rect.height() / 2.0);
    if radius < 0.5 {
        return Some(PathBuilder::from_rect(rect));
    }
    // A quarter of a circle by a cubic curve: its handles are this part of the radius.
    let handle = radius * 0.552_285;
    let (left, top, right, bottom) = (rect.left(), rect.top(), rect.right(), rect.bottom());
    let mut path = PathBuilder::new();
    path.move_to(left + radius, top);
    path.line_to(right - radius, top);
    path.cubic_to(
        right - radius + handle,
        top,
        right,
        top + radius - handle,
        right,
        top + radius,
    );
    path.line_to(right, bottom - radius);
    path.cubic_to(
        right,
        bottom - radius + handle,
        right - radius + handle,
        bottom,
        right - radius,
        bottom,
    );
    path.line_to(left + radius, bottom);
    path.cubic_to(
        left + radius - handle,
        bottom,
        left,
        bottom - radius + handle,
        left,
        bottom - radius,
    );
    path.line_to(left, top + radius);
    path.cubic_to(
        left,
        top + radius - handle,
        left + radius - handle,
        top,
        left + radius,
        top,
    );
    path.close();
    path.finish()
}
