//! A page as text, for serial lines and logs.
//!
//! 78 columns, ASCII apart from what people typed or disks are called, no colours: it must be readable
//! on the worst of consoles. [`screen`] adds what redraws a terminal in place.

use super::{Block, Page, StepState, Tone};

/// Columns of a line.
const COLUMNS: usize = 78;
/// Lines of a plan that are shown at once.
const PLAN_LINES: usize = 12;

/// The page as lines.
#[must_use]
pub fn lines(page: &Page) -> Vec<String> {
    let plain = |line: String| line.replace('·', "-").replace('×', "x").replace('…', "...");
    lines_of(page).into_iter().map(plain).collect()
}

fn lines_of(page: &Page) -> Vec<String> {
    if page.splash {
        return vec![page.program.clone(), String::new(), page.title.clone()];
    }
    let mut out = Vec::new();
    let position = page
        .position
        .map_or_else(String::new, |(at, of)| format!("  step {at} of {of}"));
    out.push(format!("{}  {}{position}", page.program, page.corner));
    out.push("=".repeat(COLUMNS));
    let sign = match page.tone {
        Tone::Bad => "!! ",
        Tone::Careful => "! ",
        Tone::Plain | Tone::Good => "",
    };
    out.extend(wrap(&format!("{sign}{}", page.title), 0));
    out.extend(wrap(&page.intro, 0));
    for block in &page.blocks {
        out.push(String::new());
        add_block(&mut out, block);
    }
    out.push(String::new());
    out.push("-".repeat(COLUMNS));
    let keys: Vec<String> = page
        .keys
        .iter()
        .map(|hint| format!("[{}] {}", hint.serial, hint.action))
        .collect();
    out.extend(wrap(&keys.join("   "), 0));
    out
}

/// The page as bytes that redraw a terminal in place.
#[must_use]
pub fn screen(page: &Page, clear: bool) -> Vec<u8> {
    let mut out = String::from(if clear { "\x1b[2J\x1b[H" } else { "\x1b[H" });
    for line in lines(page) {
        // Names of disks are outside bytes: nothing of them may steer the terminal.
        out.extend(line.chars().filter(|c| !c.is_control()));
        out.push_str("\x1b[K\r\n");
    }
    out.push_str("\x1b[J");
    out.into_bytes()
}

fn add_block(out: &mut Vec<String>, block: &Block) {
    match block {
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
        Block::Choices { items, selected } => {
            for (number, item) in items.iter().enumerate() {
                let marked = *selected == Some(number);
                out.extend(hang(if marked { "> " } else { "  " }, 2, &item.title));
                out.extend(hang("    ", 4, &item.detail));
                if !item.note.is_empty() {
                    out.extend(hang("    ", 4, &item.note));
                }
            }
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
        Block::Lines { lines, scroll } => {
            let first = (*scroll).min(lines.len().saturating_sub(PLAN_LINES));
            for line in lines.iter().skip(first).take(PLAN_LINES) {
                out.push(line.chars().take(COLUMNS).collect());
            }
            let hidden = lines.len().saturating_sub(PLAN_LINES);
            if hidden > 0 {
                out.push(format!("({hidden} more lines: arrow keys)"));
            }
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
