//! What is typed into: a form, and a line.

use super::FormField;
use super::draw::{BODY, LOW, SMALL, line_total, paragraph};
use super::font::Face;
use super::painter::{Area, Painter, palette};

/// The hints of all fields stand beside them; on a narrow screen, that of the one with the focus stands below all.
pub(super) fn form(
    painter: &mut Painter<'_>,
    fields: &[FormField],
    (x, y): (f32, f32),
    width: f32,
) -> f32 {
    const LABELS: f32 = 190.0;
    const FIELD_MAX: f32 = 420.0;
    const HINT_MIN: f32 = 120.0;
    let is_wide = width - LABELS - FIELD_MAX - 16.0 > HINT_MIN;
    let (row, height, field_max) = if is_wide {
        (52.0, 36.0, FIELD_MAX)
    } else {
        (36.0, 31.0, f32::INFINITY)
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

pub(super) fn input(
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
        height: if painter.height < LOW { 36.0 } else { 42.0 },
    };
    text_field(painter, area, value, true, false);
    at + area.height - y
}
