//! Draws a page into a picture in memory, for any size of screen.
//!
//! The same page and size give the same pixels: golden files hold this module to it. A device only
//! copies what was drawn.

use tiny_skia::Pixmap;

use super::fields::{form, input};
use super::font::{Face, Fonts};
use super::lists::{choices, draw_lines};
use super::painter::{Area, Color, Painter, palette};
use super::{Block, KeyHint, Page, StepState, Tone};

/// Space left and right of everything.
const MARGIN: f32 = 44.0;
/// Text of this width is read without losing the line.
const COLUMN_MAX: f32 = 980.0;
const HEAD_HEIGHT: f32 = 64.0;
const FOOT_HEIGHT: f32 = 58.0;
/// How much the foot grows by another row of keys.
const FOOT_ROW: f32 = 33.0;
/// Space right of a key's action.
const HINT_GAP: f32 = 20.0;
/// Screens lower than this have no room to spare.
pub(super) const LOW: f32 = 640.0;
pub(super) const BODY: f32 = 17.0;
pub(super) const SMALL: f32 = 14.5;
const LINE_HEIGHT: f32 = 1.42;

/// Screens larger than this, in pixels of a side, are refused.
pub const SIDE_PIXELS_MAX: u32 = 16_384;

/// Draws pages; keeps the fonts.
pub struct Renderer {
    fonts: Fonts,
}

impl Default for Renderer {
    fn default() -> Renderer {
        Renderer::new()
    }
}

impl Renderer {
    /// A renderer with the bundled fonts.
    #[must_use]
    pub fn new() -> Renderer {
        Renderer {
            fonts: Fonts::new(),
        }
    }

    /// Draws a page. `None` for a size that no screen has.
    #[must_use]
    pub fn render(&self, page: &Page, width: u32, height: u32) -> Option<Pixmap> {
        if width > SIDE_PIXELS_MAX || height > SIDE_PIXELS_MAX {
            return None;
        }
        let mut pixels = Pixmap::new(width, height)?;
        let (red, green, blue) = palette::BACKGROUND.channels();
        pixels.fill(tiny_skia::Color::from_rgba8(red, green, blue, 255));
        let mut painter = Painter::new(&self.fonts, &mut pixels);
        if page.splash {
            splash(&mut painter, page);
        } else {
            draw(&mut painter, page);
        }
        Some(pixels)
    }
}

pub(super) fn tone_color(tone: Tone) -> Color {
    match tone {
        Tone::Plain | Tone::Good => palette::ACCENT,
        Tone::Careful => palette::CAREFUL,
        Tone::Bad => palette::BAD,
    }
}

/// The mark: three events in a log, the last one being appended.
fn mark(painter: &mut Painter<'_>, (x, y): (f32, f32), size: f32) {
    let bar = |painter: &mut Painter<'_>, row: f32, width: f32, color| {
        let area = Area {
            x,
            y: y + row * size * 0.36,
            width: width * size,
            height: size * 0.26,
        };
        painter.fill(area, size * 0.13, color);
    };
    bar(painter, 0.0, 1.0, palette::TEXT);
    bar(painter, 1.0, 1.0, palette::TEXT);
    bar(painter, 2.0, 0.56, palette::ACCENT);
    painter.dot(
        (x + 0.87 * size, y + 0.85 * size),
        size * 0.13,
        palette::ACCENT,
    );
}

fn splash(painter: &mut Painter<'_>, page: &Page) {
    let size = 96.0;
    let (middle, top) = (painter.width / 2.0, painter.height * 0.34);
    mark(painter, (middle - size / 2.0, top), size);
    let mut centred = |style: (Face, f32, Color), y: f32, text: &str| {
        let width = painter.text_width(style.0, style.1, text);
        painter.text(style, (middle - width / 2.0, y), text);
    };
    centred(
        (Face::SemiBold, 40.0, palette::TEXT),
        top + size + 62.0,
        &page.program,
    );
    centred(
        (Face::Regular, BODY, palette::QUIET),
        top + size + 100.0,
        &page.title,
    );
    if !page.intro.is_empty() {
        centred(
            (Face::Regular, BODY, palette::TEXT),
            top + size + 132.0,
            &page.intro,
        );
    }
    if !page.keys.is_empty() {
        foot(painter, &page.keys);
    }
}

/// Space between blocks.
fn gap(painter: &Painter<'_>) -> f32 {
    if painter.height < LOW { 8.0 } else { 16.0 }
}

fn draw(painter: &mut Painter<'_>, page: &Page) {
    let x = margin(painter);
    let width = painter.width - 2.0 * x;
    head(painter, page);
    let mut y = HEAD_HEIGHT + 44.0;
    let title_color = match page.tone {
        Tone::Plain => palette::TEXT,
        tone => tone_color(tone),
    };
    for line in painter.wrap(Face::SemiBold, 28.0, &page.title, width) {
        painter.text((Face::SemiBold, 28.0, title_color), (x, y), &line);
        y += 36.0;
    }
    if !page.intro.is_empty() {
        y = paragraph(
            painter,
            (x, y - 6.0),
            width,
            (Face::Regular, BODY, palette::QUIET),
            &page.intro,
        );
    }
    y += if page.intro.is_empty() { 2.0 } else { 14.0 };
    let bottom = painter.height - foot_height(painter, &page.keys) - 10.0;
    let gap = gap(painter);
    // Blocks of a fixed height first, to know what is left for the one that takes the rest. What the
    // machine is gives way to what speaks against it.
    let needed = |one: &Block| match one {
        Block::Choices { .. } | Block::Lines { .. } => 0.0,
        other => block(&mut painter.dry(), other, (x, 0.0), width, f32::INFINITY),
    };
    let fixed: f32 = page.blocks.iter().map(|one| needed(one) + gap).sum();
    let left = bottom - y - fixed;
    let rooms: Vec<f32> = page
        .blocks
        .iter()
        .map(|one| match one {
            Block::Facts(_) => needed(one) + left.min(0.0),
            _ => left,
        })
        .map(|room| room.max(0.0))
        .collect();
    for (one, room) in page.blocks.iter().zip(rooms) {
        y += block(painter, one, (x, y), width, room) + gap;
    }
    // Last: the keys stay visible whatever a small screen has no room for.
    foot(painter, &page.keys);
}

/// Everything stands in one column, in the middle of a wide screen.
fn margin(painter: &Painter<'_>) -> f32 {
    MARGIN.max((painter.width - COLUMN_MAX) / 2.0)
}

fn head(painter: &mut Painter<'_>, page: &Page) {
    let left = margin(painter);
    mark(painter, (left, 21.0), 26.0);
    painter.text(
        (Face::SemiBold, 19.0, palette::TEXT),
        (left + 40.0, 41.0),
        &page.program,
    );
    let style = (Face::Regular, SMALL, palette::FAINT);
    let right = painter.width - left;
    let width = painter.text_width(style.0, style.1, &page.corner);
    painter.text(style, (right - width, 40.0), &page.corner);
    if let Some((at, of)) = page.position {
        let mut x = right - width - 28.0;
        for number in (0..of).rev() {
            let color = if number < at {
                palette::ACCENT
            } else {
                palette::LINE
            };
            let is_now = number + 1 == at;
            let length = if is_now { 22.0 } else { 7.0 };
            x -= length;
            let area = Area {
                x,
                y: 31.0,
                width: length,
                height: 7.0,
            };
            painter.fill(area, 3.5, color);
            x -= 6.0;
        }
    }
    let line = Area {
        x: 0.0,
        y: HEAD_HEIGHT,
        width: painter.width,
        height: 1.0,
    };
    painter.fill(line, 0.0, palette::LINE);
}

/// Size of the letters in the foot.
fn foot_size(painter: &Painter<'_>) -> f32 {
    if painter.width < 900.0 { 13.0 } else { SMALL }
}

/// The widths of a key and of what it does.
fn hint_widths(painter: &Painter<'_>, hint: &KeyHint) -> (f32, f32) {
    let size = foot_size(painter);
    (
        painter.text_width(Face::SemiBold, size, hint.key) + 16.0,
        painter.text_width(Face::Regular, size, &hint.action),
    )
}

/// The keys in as many rows as they need.
fn foot_rows<'k>(painter: &Painter<'_>, keys: &'k [KeyHint]) -> Vec<Vec<&'k KeyHint>> {
    let room = painter.width - 2.0 * margin(painter);
    let mut rows: Vec<Vec<&KeyHint>> = vec![Vec::new()];
    let mut x = 0.0;
    for hint in keys {
        let (key, action) = hint_widths(painter, hint);
        let width = key + 8.0 + action;
        if x > 0.0 && x + width > room {
            rows.push(Vec::new());
            x = 0.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push(hint);
        }
        x += width + HINT_GAP;
    }
    rows
}

fn foot_height(painter: &Painter<'_>, keys: &[KeyHint]) -> f32 {
    FOOT_HEIGHT + FOOT_ROW * line_total(foot_rows(painter, keys).len().saturating_sub(1))
}

fn foot(painter: &mut Painter<'_>, keys: &[KeyHint]) {
    let height = foot_height(painter, keys);
    let top = painter.height - height;
    let area = Area {
        x: 0.0,
        y: top,
        width: painter.width,
        height,
    };
    painter.fill(area, 0.0, palette::BACKGROUND);
    let line = Area {
        height: 1.0,
        ..area
    };
    painter.fill(line, 0.0, palette::LINE);
    let mut y = top + 16.0;
    for row in foot_rows(painter, keys) {
        let mut x = margin(painter);
        for hint in row {
            x = draw_hint(painter, hint, (x, y));
        }
        y += FOOT_ROW;
    }
}

/// Draws a key and what it does; the answer is where the next one begins.
fn draw_hint(painter: &mut Painter<'_>, hint: &KeyHint, (x, y): (f32, f32)) -> f32 {
    let size = foot_size(painter);
    let (key_width, action_width) = hint_widths(painter, hint);
    let cap = Area {
        x,
        y,
        width: key_width,
        height: 27.0,
    };
    painter.fill(cap, 6.0, palette::RAISED);
    painter.outline(cap, 6.0, palette::LINE, 1.0);
    let baseline = y + 18.5;
    painter.text(
        (Face::SemiBold, size, palette::TEXT),
        (x + 8.0, baseline),
        hint.key,
    );
    painter.text(
        (Face::Regular, size, palette::QUIET),
        (x + key_width + 8.0, baseline),
        &hint.action,
    );
    x + key_width + 8.0 + action_width + HINT_GAP
}

/// Draws a paragraph from this line on; the answer is the first line behind it.
pub(super) fn paragraph(
    painter: &mut Painter<'_>,
    (x, y): (f32, f32),
    width: f32,
    style: (Face, f32, Color),
    text: &str,
) -> f32 {
    let mut y = y;
    for line in painter.wrap(style.0, style.1, text, width) {
        painter.text(style, (x, y + style.1), &line);
        y += style.1 * LINE_HEIGHT;
    }
    y
}

/// Draws a block; the answer is its height.
fn block(
    painter: &mut Painter<'_>,
    block: &Block,
    (x, y): (f32, f32),
    width: f32,
    left: f32,
) -> f32 {
    match block {
        Block::Text(text) => {
            paragraph(
                painter,
                (x, y),
                width,
                (Face::Regular, BODY, palette::TEXT),
                text,
            ) - y
        }
        Block::Facts(facts) => draw_facts(painter, facts, (x, y), width, left),
        Block::Callout { tone, text } => callout(painter, *tone, text, (x, y), width),
        Block::Choices { items, selected } => {
            choices(painter, items, *selected, (x, y), width, left);
            left
        }
        Block::Form(fields) => form(painter, fields, (x, y), width),
        Block::Input { label, value } => input(painter, label, value, (x, y), width),
        Block::Progress {
            steps,
            per_mille,
            label,
        } => progress(painter, steps, *per_mille, label, (x, y), width),
        Block::Lines { lines, scroll } => {
            draw_lines(painter, lines, *scroll, (x, y), width, left);
            left
        }
        Block::Code { label, text, also } => code(painter, label, text, also, (x, y), width),
    }
}

fn draw_facts(
    painter: &mut Painter<'_>,
    facts: &[(String, String)],
    (x, y): (f32, f32),
    width: f32,
    room: f32,
) -> f32 {
    let between = if painter.height < LOW { 0.0 } else { 4.0 };
    let names = facts
        .iter()
        .map(|(name, _)| painter.text_width(Face::Regular, BODY, name))
        .fold(0.0, f32::max);
    let indent = (names + 28.0).min(width * 0.4);
    let mut at = y;
    let style = (Face::Regular, BODY, palette::TEXT);
    for (name, value) in facts {
        let place = (x + indent, at);
        let end = paragraph(&mut painter.dry(), place, width - indent, style, value);
        // Half a pixel is no room, and what was measured fits.
        if end - y > room + 0.5 {
            break;
        }
        painter.text((Face::Regular, BODY, palette::FAINT), (x, at + BODY), name);
        paragraph(painter, place, width - indent, style, value);
        at = end + between;
    }
    at - y
}

fn callout(
    painter: &mut Painter<'_>,
    tone: Tone,
    text: &str,
    (x, y): (f32, f32),
    width: f32,
) -> f32 {
    let inner = width - 40.0;
    let (size, above) = if painter.height < LOW {
        (15.0, 7.0)
    } else {
        (16.0, 11.0)
    };
    let lines = painter.wrap(Face::Regular, size, text, inner);
    let height = line_count(&lines) * size * LINE_HEIGHT + 2.0 * above;
    painter.fill(
        Area {
            x,
            y,
            width,
            height,
        },
        8.0,
        palette::RAISED,
    );
    painter.fill(
        Area {
            x,
            y,
            width: 5.0,
            height,
        },
        2.5,
        tone_color(tone),
    );
    paragraph(
        painter,
        (x + 22.0, y + above),
        inner,
        (Face::Regular, size, palette::TEXT),
        text,
    );
    height
}

fn line_count(lines: &[String]) -> f32 {
    line_total(lines.len())
}

#[expect(clippy::cast_precision_loss, reason = "a page has some dozen lines")]
pub(super) fn line_total(count: usize) -> f32 {
    count as f32
}

#[expect(clippy::cast_precision_loss, reason = "thousandths are small")]
fn progress(
    painter: &mut Painter<'_>,
    steps: &[(String, StepState)],
    per_mille: u32,
    label: &str,
    (x, y): (f32, f32),
    width: f32,
) -> f32 {
    let mut at = y + 4.0;
    for (title, state) in steps {
        let middle = (x + 10.0, at + 13.0);
        let (color, text) = match state {
            StepState::Done => (palette::ACCENT, palette::QUIET),
            StepState::Active => (palette::ACCENT, palette::TEXT),
            StepState::Waiting => (palette::LINE, palette::FAINT),
        };
        painter.dot(middle, 9.0, color);
        if *state == StepState::Done {
            painter.text(
                (Face::SemiBold, 13.0, palette::BACKGROUND),
                (x + 5.0, at + 17.5),
                "✓",
            );
        } else {
            painter.dot(middle, 6.0, palette::BACKGROUND);
        }
        let face = if *state == StepState::Active {
            Face::SemiBold
        } else {
            Face::Regular
        };
        painter.text((face, BODY, text), (x + 34.0, at + 19.0), title);
        at += 33.0;
    }
    at += 14.0;
    painter.fill(
        Area {
            x,
            y: at,
            width,
            height: 12.0,
        },
        6.0,
        palette::RAISED,
    );
    let done = width * per_mille.min(1000) as f32 / 1000.0;
    if done > 0.0 {
        painter.fill(
            Area {
                x,
                y: at,
                width: done.max(12.0),
                height: 12.0,
            },
            6.0,
            palette::ACCENT,
        );
    }
    at += 16.0;
    paragraph(
        painter,
        (x, at),
        width,
        (Face::Regular, SMALL, palette::QUIET),
        label,
    ) - y
}

fn code(
    painter: &mut Painter<'_>,
    label: &str,
    text: &str,
    also: &(String, String),
    (x, y): (f32, f32),
    width: f32,
) -> f32 {
    let side = if painter.height < 640.0 { 140.0 } else { 190.0 };
    painter.fill(
        Area {
            x,
            y,
            width,
            height: side + 32.0,
        },
        10.0,
        palette::RAISED,
    );
    qr(
        painter,
        text,
        Area {
            x: x + 16.0,
            y: y + 16.0,
            width: side,
            height: side,
        },
    );
    let (left, inner) = (x + side + 40.0, width - side - 64.0);
    let quiet = (Face::Regular, SMALL, palette::QUIET);
    let mono = |size| (Face::Mono, size, palette::TEXT);
    let at = paragraph(painter, (left, y + 14.0), inner, quiet, label);
    let at = paragraph(painter, (left, at + 2.0), inner, mono(15.0), text);
    let at = paragraph(painter, (left, at + 10.0), inner, quiet, &also.0);
    paragraph(painter, (left, at + 2.0), inner, mono(13.0), &also.1);
    side + 32.0
}

/// A QR code, dark on white with the quiet zone that readers want.
#[expect(clippy::cast_precision_loss, reason = "a code has at most 177 modules")]
fn qr(painter: &mut Painter<'_>, text: &str, area: Area) {
    // Neighbours overlap a little: rounding would draw light seams between them.
    const OVERLAP: f32 = 0.4;
    let Ok(code) = qrcodegen::QrCode::encode_text(text, qrcodegen::QrCodeEcc::Medium) else {
        return;
    };
    painter.fill(area, 4.0, palette::WHITE);
    let module = area.width / (code.size() as f32 + 8.0);
    for row in 0..code.size() {
        for column in 0..code.size() {
            if code.get_module(column, row) {
                let dark = Area {
                    x: area.x + (column as f32 + 4.0) * module,
                    y: area.y + (row as f32 + 4.0) * module,
                    width: module + OVERLAP,
                    height: module + OVERLAP,
                };
                painter.fill(dark, 0.0, palette::BLACK);
            }
        }
    }
}
