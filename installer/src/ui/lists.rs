//! Lists that take the room that is left, and show the part of them with the mark.

use super::Choice;
use super::draw::{LOW, SMALL, tone_color};
use super::font::Face;
use super::painter::{Area, Painter, palette};

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
pub(super) fn first_shown(selected: usize, shown: usize, count: usize) -> usize {
    selected
        .saturating_sub(shown / 2)
        .min(count.saturating_sub(shown))
}

pub(super) fn choices(
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

pub(super) fn draw_lines(
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
    let above = if painter.height < LOW { 6.0 } else { 10.0 };
    let shown = fitting(room - 2.0 * above, HEIGHT, lines.len());
    let first = scroll.min(lines.len().saturating_sub(shown));
    let mut at = y + above + 14.0;
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
