//! A page as text, for serial lines and logs.
//!
//! 78 columns, ASCII apart from what people typed or disks are called, no colours: it must be readable
//! on the worst of consoles. [`screen`] adds what redraws a terminal in place.

use super::lists::first_shown;
use super::{Block, Choice, Page, StepState, Tone};

/// Columns of a line.
const COLUMNS: usize = 78;
/// Lines of a terminal.
const ROWS: usize = 24;
/// Lines of a plan that are shown at least, whatever else is on the page.
const PLAN_LINES_MIN: usize = 4;
/// A key that the terminal itself takes, in the line above the others.
const REDRAW: &str = " [Ctrl-L] Draw again ---";

/// The page as lines.
#[must_use]
pub fn lines(page: &Page) -> Vec<String> {
    let plain = |line: String| line.replace('·', "-").replace('×', "x").replace('…', "...");
    lines_of(page).into_iter().map(plain).collect()
}

fn lines_of(page: &Page) -> Vec<String> {
    let keys = foot(page);
    if page.splash {
        let mut out = vec![page.program.clone(), String::new(), page.title.clone()];
        out.extend(wrap(&page.intro, 0));
        out.extend(keys);
        return out;
    }
    let mut out = head(page);
    let mut blocks: Vec<Vec<String>> = page.blocks.iter().map(fixed).collect();
    // What takes the room that is left: a page that is longer than the terminal loses its top.
    let used = out.len() + keys.len() + blocks.iter().map(|lines| lines.len() + 1).sum::<usize>();
    let room = ROWS.saturating_sub(used);
    for (block, lines) in page.blocks.iter().zip(&mut blocks) {
        match block {
            Block::Choices { items, selected } => *lines = choices(items, *selected, room),
            Block::Lines {
                lines: all, scroll, ..
            } => *lines = part(all, *scroll, room),
            _ => {}
        }
    }
    for lines in blocks {
        out.push(String::new());
        out.extend(lines);
    }
    out.extend(keys);
    out
}

fn head(page: &Page) -> Vec<String> {
    let position = page
        .position
        .map_or_else(String::new, |(at, of)| format!("  step {at} of {of}"));
    let mut out = vec![format!("{}  {}{position}", page.program, page.corner)];
    out.push("=".repeat(COLUMNS));
    let sign = match page.tone {
        Tone::Bad => "!! ",
        Tone::Careful => "! ",
        Tone::Plain | Tone::Good => "",
    };
    out.extend(wrap(&format!("{sign}{}", page.title), 0));
    out.extend(wrap(&page.intro, 0));
    out
}

/// The keys, each in one piece.
fn foot(page: &Page) -> Vec<String> {
    if page.splash && page.keys.is_empty() {
        return Vec::new();
    }
    let rule = "-".repeat(COLUMNS - REDRAW.len()) + REDRAW;
    let mut out = vec![String::new(), rule];
    for (number, hint) in page.keys.iter().enumerate() {
        let hint = format!("[{}] {}", hint.serial, hint.action);
        let Some(line) = out.last_mut().filter(|_| number > 0) else {
            out.push(hint);
            continue;
        };
        if line.chars().count() + 3 + hint.chars().count() <= COLUMNS {
            line.push_str("   ");
            line.push_str(&hint);
        } else {
            out.push(hint);
        }
    }
    out
}

/// As many as there is room for, with the mark among them.
fn choices(items: &[Choice], selected: Option<usize>, room: usize) -> Vec<String> {
    let each: Vec<Vec<String>> = items
        .iter()
        .enumerate()
        .map(|(number, item)| choice(item, selected == Some(number)))
        .collect();
    let all: usize = each.iter().map(Vec::len).sum();
    if all <= room {
        return each.concat();
    }
    let tallest = each.iter().map(Vec::len).max().unwrap_or(1);
    let shown = (room.saturating_sub(1) / tallest).clamp(1, items.len());
    let first = first_shown(selected.unwrap_or(0), shown, items.len());
    let mut out = each[first..first + shown].concat();
    out.push(format!(
        "({first} more above, {} more below: arrow keys)",
        items.len() - first - shown
    ));
    out
}

fn choice(item: &Choice, marked: bool) -> Vec<String> {
    let mut out = hang(if marked { "> " } else { "  " }, 2, &item.title);
    out.extend(hang("    ", 4, &item.detail));
    if !item.note.is_empty() {
        out.extend(hang("    ", 4, &item.note));
    }
    out
}

/// The lines from `scroll` on, as far as there is room.
fn part(lines: &[String], scroll: usize, room: usize) -> Vec<String> {
    let cut = |line: &String| line.chars().take(COLUMNS).collect();
    if lines.len() <= room {
        return lines.iter().map(cut).collect();
    }
    let shown = room.saturating_sub(1).max(PLAN_LINES_MIN).min(lines.len());
    let first = scroll.min(lines.len() - shown);
    let mut out: Vec<String> = lines[first..first + shown].iter().map(cut).collect();
    let below = lines.len() - first - shown;
    out.push(format!(
        "({first} more lines above, {below} below: arrow keys)"
    ));
    out
}

/// The page as bytes that redraw a terminal in place.
#[must_use]
pub fn screen(page: &Page, clear: bool) -> Vec<u8> {
    let mut out = String::from(if clear { "\x1b[2J\x1b[H" } else { "\x1b[H" });
    for (number, line) in lines(page).iter().enumerate() {
        // Not behind the last line of the terminal: it would move everything up.
        if number > 0 {
            out.push_str("\r\n");
        }
        // Names of disks are outside bytes: nothing of them may steer the terminal.
        out.extend(line.chars().filter(|c| !c.is_control()));
        out.push_str("\x1b[K");
    }
    out.push_str("\x1b[J");
    out.into_bytes()
}

/// A block that takes the lines it needs.
fn fixed(block: &Block) -> Vec<String> {
    let mut out = Vec::new();
    add_block(&mut out, block);
    out
}

fn add_block(out: &mut Vec<String>, block: &Block) {
    match block {
        // They take the room that is left.
        Block::Choices { .. } | Block::Lines { .. } => {}
        Block::Text(text) => out.extend(wrap(text, 0)),
        Block::Facts(facts) => {
            let indent = facts
                .iter()
                .map(|(name, _)| name.chars().count())
                .max()
                .unwrap_or(0)
                + 2;
            for (name, value) in facts {
                let pad = indent - name.chars().count();
                out.extend(hang(&format!("{name}{}", " ".repeat(pad)), indent, value));
            }
        }
        Block::Callout { tone, text } => {
            let sign = match tone {
                Tone::Good => "+ ",
                Tone::Plain => "  ",
                Tone::Careful => "! ",
                Tone::Bad => "!!",
            };
            out.extend(hang(&format!("{sign} "), 3, text));
        }
        Block::Form(fields) => {
            for field in fields {
                let marked = if field.focused { "> " } else { "  " };
                let label = format!("{marked}{:<21}{}", field.label, field.value);
                out.push(label + if field.focused { "_" } else { "" });
                if field.focused || field.wrong {
                    out.push(format!("{:23}({})", "", field.hint));
                }
            }
        }
        Block::Input { label, value } => {
            out.extend(wrap(label, 0));
            out.push(format!("> {value}_"));
        }
        Block::Progress {
            steps,
            per_mille,
            label,
        } => {
            for (title, state) in steps {
                let sign = match state {
                    StepState::Done => "[x]",
                    StepState::Active => "[>]",
                    StepState::Waiting => "[ ]",
                };
                out.push(format!("{sign} {title}"));
            }
            let bar = usize::try_from(per_mille / 20).unwrap_or(0).min(50);
            out.push(format!("[{}{}]", "#".repeat(bar), ".".repeat(50 - bar)));
            out.extend(wrap(label, 0));
        }
        Block::Code { label, text, also } => {
            out.push(format!("{label}:"));
            out.push(text.clone());
            out.push(format!("{}:", also.0));
            // Not broken into lines: it is to be copied.
            out.push(also.1.clone());
        }
    }
}

/// A text behind a beginning, with its further lines under its first.
fn hang(begin: &str, indent: usize, text: &str) -> Vec<String> {
    let mut lines = wrap(text, indent);
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines[0] = format!("{begin}{}", lines[0].trim_start());
    lines
}

/// Breaks a text into lines; an empty one gives none.
fn wrap(text: &str, indent: usize) -> Vec<String> {
    let mut out = Vec::new();
    for paragraph in text.split('\n').filter(|paragraph| !paragraph.is_empty()) {
        let mut line = " ".repeat(indent);
        let mut is_empty = true;
        for word in paragraph.split(' ') {
            if !is_empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
                out.push(std::mem::replace(&mut line, " ".repeat(indent)));
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        out.push(line);
    }
    out
}
