//! Draws a page into a picture in memory, for any size of screen.
//!
//! The same page and size give the same pixels: golden files hold this module to it. A device only
//! copies what was drawn.

use tiny_skia::Pixmap;

use super::font::{Face, Fonts};
use super::painter::{Area, Color, Painter, palette};
use super::{Block, Choice, FormField, KeyHint, Page, StepState, Tone};

/// Space left and right of everything.
const MARGIN: f32 = 44.0;
/// Text of this width is read without losing the line.
const COLUMN_MAX: f32 = 980.0;
/// Space between blocks.
const GAP: f32 = 16.0;
const HEAD_HEIGHT: f32 = 64.0;
const FOOT_HEIGHT: f32 = 58.0;
const BODY: f32 = 17.0;
const SMALL: f32 = 14.5;
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

fn tone_color(tone: Tone) -> Color {
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
    let bottom = painter.height - FOOT_HEIGHT - 10.0;
    // Blocks of a fixed height first, to know what is left for the one that takes the rest.
    let fixed: f32 = page
        .blocks
        .iter()
        .map(|one| match one {
            Block::Choices { .. } | Block::Lines { .. } => GAP,
            other => block(&mut painter.dry(), other, (x, 0.0), width, 0.0) + GAP,
        })
        .sum();
    let left = (bottom - y - fixed).max(0.0);
    for one in &page.blocks {
        y += block(painter, one, (x, y), width, left) + GAP;
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

fn foot(painter: &mut Painter<'_>, keys: &[KeyHint]) {
    let top = painter.height - FOOT_HEIGHT;
    let area = Area {
        x: 0.0,
        y: top,
        width: painter.width,
        height: FOOT_HEIGHT,
    };
    painter.fill(area, 0.0, palette::BACKGROUND);
    let line = Area {
        x: 0.0,
        y: top,
        width: painter.width,
        height: 1.0,
    };
    painter.fill(line, 0.0, palette::LINE);
    let mut x = margin(painter);
    let size = if painter.width < 900.0 { 13.0 } else { SMALL };
    for hint in keys {
        let key_width = painter.text_width(Face::SemiBold, size, hint.key) + 16.0;
        let action_width = painter.text_width(Face::Regular, size, &hint.action);
        let cap = Area {
            x,
            y: top + 16.0,
            width: key_width,
            height: 27.0,
        };
        painter.fill(cap, 6.0, palette::RAISED);
        painter.outline(cap, 6.0, palette::LINE, 1.0);
        painter.text(
            (Face::SemiBold, size, palette::TEXT),
            (x + 8.0, top + 34.5),
            hint.key,
        );
        x += key_width + 8.0;
        painter.text(
            (Face::Regular, size, palette::QUIET),
            (x, top + 34.5),
            &hint.action,
        );
        x += action_width + 20.0;
    }
}

/// Draws a paragraph from this line on; the answer is the first line behind it.
fn paragraph(
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
        Block::Facts(facts) => draw_facts(painter, facts, (x, y), width),
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
) -> f32 {
    let names = facts
        .iter()
        .map(|(name, _)| painter.text_width(Face::Regular, BODY, name))
        .fold(0.0, f32::max);
    let indent = (names + 28.0).min(width * 0.4);
    let mut at = y;
    for (name, value) in facts {
        painter.text((Face::Regular, BODY, palette::FAINT), (x, at + BODY), name);
        let style = (Face::Regular, BODY, palette::TEXT);
        at = paragraph(painter, (x + indent, at), width - indent, style, value) + 4.0;
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
    let lines = painter.wrap(Face::Regular, 16.0, text, inner);
    let height = line_count(&lines) * 16.0 * LINE_HEIGHT + 22.0;
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
        (x + 22.0, y + 11.0),
        inner,
        (Face::Regular, 16.0, palette::TEXT),
        text,
    );
    height
}

fn line_count(lines: &[String]) -> f32 {
    line_total(lines.len())
}

#[expect(clippy::cast_precision_loss, reason = "a page has some dozen lines")]
fn line_total(count: usize) -> f32 {
    count as f32
}

/// How many of `count` things of this height fit, at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the quotient is small and not negative"
)]
fn fitting(room: f32, height: f32, count: usize) -> usize {
    ((room / height).max(1.0) as usize).min(count)
}

/// The first of those shown, so that the one with the mark is among them.
fn first_shown(selected: usize, shown: usize, count: usize) -> usize {
    selected
        .saturating_sub(shown / 2)
        .min(count.saturating_sub(shown))
}

fn choices(
    painter: &mut Painter<'_>,
    items: &[Choice],
    selected: Option<usize>,
    (x, y): (f32, f32),
    width: f32,
    room: f32,
) {
    let height = |item: &Choice| if item.note.is_empty() { 66.0 } else { 90.0 };
    let tallest = items.iter().map(height).fold(66.0, f32::max) + 10.0;
    let shown = fitting(room, tallest, items.len());
    let first = first_shown(selected.unwrap_or(0), shown, items.len());
    let mut at = y;
    for (number, item) in items.iter().enumerate().skip(first).take(shown) {
        let area = Area {
            x,
            y: at,
            width,
            height: height(item),
        };
        choice(painter, item, selected == Some(number), area);
        at += area.height + 10.0;
    }
    let hidden = items.len() - shown;
    if hidden > 0 {
        let text = format!("{hidden} more: ↑ ↓");
        painter.text(
            (Face::Regular, SMALL, palette::FAINT),
            (x + 4.0, at + 10.0),
            &text,
        );
    }
}

fn choice(painter: &mut Painter<'_>, item: &Choice, is_selected: bool, area: Area) {
    let Area { x, y, width, .. } = area;
    painter.fill(
        area,
        10.0,
        if is_selected {
            palette::ACCENT_DEEP
        } else {
            palette::RAISED
        },
    );
    if is_selected {
        painter.outline(area, 10.0, palette::ACCENT, 2.0);
    }
    let (ring, middle) = (9.0, (x + 28.0, y + 33.0));
    painter.dot(
        middle,
        ring,
        if is_selected {
            palette::ACCENT
        } else {
            palette::LINE
        },
    );
    painter.dot(
        middle,
        ring - 3.0,
        if is_selected {
            palette::ACCENT_DEEP
        } else {
            palette::RAISED
        },
    );
    if is_selected {
        painter.dot(middle, 4.0, palette::ACCENT);
    }
    let inner = width - 72.0;
    let title_color = if item.enabled {
        palette::TEXT
    } else {
        palette::FAINT
    };
    let title = painter.fit(Face::SemiBold, 18.0, &item.title, inner);
    painter.text(
        (Face::SemiBold, 18.0, title_color),
        (x + 52.0, y + 28.0),
        &title,
    );
    let detail = painter.fit(Face::Regular, 15.0, &item.detail, inner);
    painter.text(
        (Face::Regular, 15.0, palette::QUIET),
        (x + 52.0, y + 51.0),
        &detail,
    );
    let note = painter.fit(Face::Regular, 15.0, &item.note, inner);
    painter.text(
        (Face::Regular, 15.0, tone_color(item.tone)),
        (x + 52.0, y + 75.0),
        &note,
    );
}

/// The hints of all fields stand beside them; on a narrow screen, that of the one with the focus stands below all.
fn form(painter: &mut Painter<'_>, fields: &[FormField], (x, y): (f32, f32), width: f32) -> f32 {
    const LABELS: f32 = 190.0;
    const FIELD_MAX: f32 = 420.0;
    const HINT_MIN: f32 = 120.0;
    let is_wide = width - LABELS - FIELD_MAX - 16.0 > HINT_MIN;
    let (row, height, field_max) = if is_wide {
        (52.0, 36.0, FIELD_MAX)
    } else {
        (42.0, 34.0, f32::INFINITY)
    };
    let mut at = y;
    for field in fields {
        let color = if field.focused {
            palette::TEXT
        } else {
            palette::QUIET
        };
        let baseline = at + height / 2.0 + 6.0;
        painter.text((Face::Regular, BODY, color), (x, baseline), &field.label);
        let area = Area {
            x: x + LABELS,
            y: at,
            width: (width - LABELS).min(field_max),
            height,
        };
        text_field(painter, area, &field.value, field.focused, field.wrong);
        let hint_at = if is_wide {
            Some((area.x + area.width + 16.0, baseline - 1.0))
        } else {
            let below = y + row * line_total(fields.len());
            field.focused.then_some((area.x, below + 12.0))
        };
        if let Some((hint_x, hint_y)) = hint_at {
            let hint_color = if field.wrong {
                palette::BAD
            } else {
                palette::FAINT
            };
            let hint = painter.fit(Face::Regular, SMALL, &field.hint, x + width - hint_x);
            painter.text((Face::Regular, SMALL, hint_color), (hint_x, hint_y), &hint);
        }
        at += row;
    }
    at - y + if is_wide { 0.0 } else { 20.0 }
}

fn text_field(painter: &mut Painter<'_>, area: Area, value: &str, focused: bool, wrong: bool) {
    let border = match (wrong, focused) {
        (true, _) => palette::BAD,
        (false, true) => palette::ACCENT,
        (false, false) => palette::LINE,
    };
    painter.fill(area, 6.0, palette::RAISED);
    painter.outline(area, 6.0, border, if focused { 2.0 } else { 1.0 });
    // The end of what is typed matters, so the beginning gives way.
    let mut shown: Vec<char> = value.chars().collect();
    let text = |shown: &[char]| shown.iter().collect::<String>();
    while painter.text_width(Face::Mono, 16.0, &text(&shown)) > area.width - 28.0
        && !shown.is_empty()
    {
        shown.remove(0);
    }
    let shown = text(&shown);
    let baseline = area.y + area.height / 2.0 + 6.0;
    painter.text(
        (Face::Mono, 16.0, palette::TEXT),
        (area.x + 12.0, baseline),
        &shown,
    );
    if focused {
        let width = painter.text_width(Face::Mono, 16.0, &shown);
        let caret = Area {
            x: area.x + 13.0 + width,
            y: area.y + 8.0,
            width: 2.0,
            height: area.height - 16.0,
        };
        painter.fill(caret, 0.0, palette::ACCENT);
    }
}

fn input(
    painter: &mut Painter<'_>,
    label: &str,
    value: &str,
    (x, y): (f32, f32),
    width: f32,
) -> f32 {
    let at = paragraph(
        painter,
        (x, y),
        width,
        (Face::Regular, BODY, palette::TEXT),
        label,
    ) + 8.0;
    let area = Area {
        x,
        y: at,
        width: width.min(420.0),
        height: 42.0,
    };
    text_field(painter, area, value, true, false);
    at + area.height - y
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

fn draw_lines(
    painter: &mut Painter<'_>,
    lines: &[String],
    scroll: usize,
    (x, y): (f32, f32),
    width: f32,
    room: f32,
) {
    const SIZE: f32 = 13.0;
    const HEIGHT: f32 = 19.0;
    painter.fill(
        Area {
            x,
            y,
            width,
            height: room,
        },
        8.0,
        palette::RAISED,
    );
    let shown = fitting(room - 20.0, HEIGHT, lines.len());
    let first = scroll.min(lines.len().saturating_sub(shown));
    let mut at = y + 24.0;
    for line in lines.iter().skip(first).take(shown) {
        let color = if line.starts_with(' ') {
            palette::QUIET
        } else {
            palette::TEXT
        };
        let line = painter.fit(Face::Mono, SIZE, line, width - 46.0);
        painter.text((Face::Mono, SIZE, color), (x + 16.0, at), &line);
        at += HEIGHT;
    }
    if lines.len() > shown {
        scroll_bar(
            painter,
            Area {
                x: x + width - 12.0,
                y: y + 10.0,
                width: 4.0,
                height: room - 20.0,
            },
            first,
            shown,
            lines.len(),
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "a plan has some hundred lines")]
fn scroll_bar(painter: &mut Painter<'_>, area: Area, first: usize, shown: usize, count: usize) {
    painter.fill(area, 2.0, palette::LINE);
    let part = |lines: usize| area.height * lines as f32 / count as f32;
    let thumb = Area {
        y: area.y + part(first),
        height: part(shown).max(8.0),
        ..area
    };
    painter.fill(thumb, 2.0, palette::QUIET);
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
