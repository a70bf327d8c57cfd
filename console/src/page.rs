//! The console's pages and keys, both pure.

use truthdb_installer::input::Key;
use truthdb_installer::plan::human_bytes;
use truthdb_installer::ui::{Block, KeyHint, Page, Tone};

use crate::node::{Health, Node};

/// Lines of the log that a page key moves by.
const PAGE_LINES: usize = 10;
/// Bytes that must be free on the data partition: the database needs a segment of this size to go on.
const ROOM_BYTES_MIN: u64 = 64 << 20;
/// Partitions that are named one by one.
const PARTITIONS_NAMED_MAX: usize = 16;

/// Which page is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Screen {
    /// What the node is and how it does.
    Summary,
    /// Its last messages, this many lines from the end.
    More(usize),
    /// Start it again?
    ConfirmRestart,
    /// Turn it off?
    ConfirmOff,
    /// It was asked, and could not be done.
    Refused(String),
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Start the node again.
    Restart,
    /// Turn it off.
    TurnOff,
}

/// The next page, and what is to be done. `lines` is the length of the log.
pub(crate) fn next(screen: Screen, key: Key, lines: usize) -> (Screen, Option<Wanted>) {
    let to = match (screen, key) {
        (Screen::Summary, Key::Char('m' | 'M')) => Screen::More(0),
        (Screen::Summary, Key::Char('r' | 'R')) => Screen::ConfirmRestart,
        (Screen::Summary, Key::Char('o' | 'O')) => Screen::ConfirmOff,
        (Screen::More(back), Key::Up) => Screen::More((back + 1).min(lines)),
        (Screen::More(back), Key::PageUp) => Screen::More((back + PAGE_LINES).min(lines)),
        (Screen::More(back), Key::Down) => Screen::More(back.saturating_sub(1)),
        (Screen::More(back), Key::PageDown) => Screen::More(back.saturating_sub(PAGE_LINES)),
        (Screen::ConfirmRestart, Key::Enter) => return (Screen::Summary, Some(Wanted::Restart)),
        (Screen::ConfirmOff, Key::Enter) => return (Screen::Summary, Some(Wanted::TurnOff)),
        (_, Key::Escape) => Screen::Summary,
        (screen, _) => screen,
    };
    (to, None)
}

fn key(key: &'static str, action: &str) -> KeyHint {
    KeyHint {
        key,
        serial: key,
        action: action.to_owned(),
    }
}

fn page(node: &Node, title: String) -> Page {
    Page {
        splash: false,
        program: "TruthDB".to_owned(),
        corner: format!("{}  ·  {}", node.version, node.time),
        position: None,
        title,
        tone: Tone::Plain,
        intro: String::new(),
        blocks: Vec::new(),
        keys: vec![key("Esc", "Back")],
    }
}

/// The page to be shown.
pub(crate) fn of(node: &Node, screen: &Screen) -> Page {
    match screen {
        Screen::Summary => summary(node),
        Screen::More(back) => {
            let mut page = page(node, "Messages".to_owned());
            page.blocks.push(Block::Lines {
                lines: node.log.clone(),
                // The view keeps the last lines on the screen when this is too far.
                scroll: node.log.len().saturating_sub(*back + PAGE_LINES),
            });
            page.keys.insert(0, key("↑ ↓", "Scroll"));
            page
        }
        Screen::ConfirmRestart => confirm(
            node,
            "Start this node again?",
            "It is not reachable for a moment.",
            "Start again",
        ),
        Screen::ConfirmOff => confirm(
            node,
            "Turn this node off?",
            "It is not reachable until somebody turns it on.",
            "Turn off",
        ),
        Screen::Refused(reason) => {
            let mut page = page(node, "This did not work".to_owned());
            page.tone = Tone::Bad;
            page.intro.clone_from(reason);
            page
        }
    }
}

fn confirm(node: &Node, title: &str, intro: &str, action: &str) -> Page {
    let mut page = page(node, title.to_owned());
    page.tone = Tone::Careful;
    page.intro = intro.to_owned();
    page.keys.insert(0, key("Enter", action));
    page
}

fn summary(node: &Node) -> Page {
    let mut page = page(node, node.name.clone());
    let (tone, text) = match &node.health {
        Health::Ready => (Tone::Good, "Serving.".to_owned()),
        Health::Degraded(what) => (Tone::Bad, format!("Not everything is served: {what}.")),
        Health::Down(why) => (Tone::Bad, format!("The server does not answer ({why}).")),
    };
    page.blocks.push(Block::Callout { tone, text });
    if !node.data_problem.is_empty() {
        page.blocks.push(Block::Callout {
            tone: Tone::Bad,
            text: format!("The data partition: {}", node.data_problem),
        });
    }
    if node.disk.is_some_and(|(free, _)| free < ROOM_BYTES_MIN) {
        page.blocks.push(Block::Callout {
            tone: Tone::Bad,
            text: "The data partition is full: nothing is appended until there is room.".to_owned(),
        });
    }
    if !node.shown_once.trim().is_empty() {
        page.blocks.push(Block::Callout {
            tone: Tone::Careful,
            text: "Shown until this node starts again, and never after. Write it down.".to_owned(),
        });
        page.blocks
            .push(Block::Text(node.shown_once.trim().to_owned()));
    }
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![fact("Address", node.network.clone())];
    if !node.partitions.is_empty() {
        facts.push(fact("Partitions", partitions(node)));
    }
    if let Some(events) = node.events {
        let rate = node
            .events_a_second
            .map(|rate| format!("  ·  {rate} a second"));
        facts.push(fact(
            "Events",
            format!("{events}{}", rate.unwrap_or_default()),
        ));
    }
    if let Some((free, total)) = node.disk {
        facts.push(fact(
            "Disk",
            format!("{} of {} free", human_bytes(free), human_bytes(total)),
        ));
    }
    page.blocks.push(Block::Facts(facts));
    page.keys = vec![
        key("M", "Messages"),
        key("R", "Start again"),
        key("O", "Turn off"),
    ];
    page
}

fn partitions(node: &Node) -> String {
    let open = node
        .partitions
        .iter()
        .filter(|(_, state)| state == "open")
        .count();
    let others: Vec<String> = node
        .partitions
        .iter()
        .filter(|(_, state)| state != "open")
        .take(PARTITIONS_NAMED_MAX)
        .map(|(number, state)| format!("{number} {state}"))
        .collect();
    let count = node.partitions.len();
    if others.is_empty() {
        format!("{count}, all open")
    } else {
        format!("{open} of {count} open; {}", others.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use truthdb_installer::ui::draw::Renderer;
    use truthdb_installer::ui::text;

    fn node() -> Node {
        Node {
            name: "truthdb-4f3a11".into(),
            version: "0.1.0".into(),
            network: "192.0.2.10/24  (eth0)".into(),
            health: Health::Ready,
            data_problem: String::new(),
            partitions: (0..8).map(|number| (number, "open".into())).collect(),
            events: Some(1_204_991),
            events_a_second: Some(8120),
            disk: Some((1_700_000_000_000, 1_900_000_000_000)),
            time: "2026-11-25  18:00:00  UTC".into(),
            shown_once: String::new(),
            log: (0..40).map(|line| format!("message {line}")).collect(),
        }
    }

    #[test]
    fn power_needs_two_keys_and_everything_else_nothing() {
        let keys = [
            Key::Enter,
            Key::Char('x'),
            Key::Up,
            Key::Escape,
            Key::Tab,
            Key::Char('m'),
        ];
        for key in keys {
            assert_eq!(next(Screen::Summary, key, 9).1, None);
        }
        let (screen, wanted) = next(Screen::Summary, Key::Char('r'), 9);
        assert_eq!((&screen, wanted), (&Screen::ConfirmRestart, None));
        assert_eq!(
            next(screen.clone(), Key::Escape, 9),
            (Screen::Summary, None)
        );
        assert_eq!(next(screen, Key::Enter, 9).1, Some(Wanted::Restart));
        assert_eq!(
            next(Screen::ConfirmOff, Key::Enter, 9).1,
            Some(Wanted::TurnOff)
        );
        assert_eq!(next(Screen::More(9), Key::Up, 9).0, Screen::More(9));
        assert_eq!(next(Screen::More(0), Key::Down, 9).0, Screen::More(0));
    }

    #[test]
    fn every_page_says_what_it_must() {
        let said = |node: &Node, screen: &Screen| text::lines(&of(node, screen)).join("\n");
        let good = said(&node(), &Screen::Summary);
        for part in [
            "truthdb-4f3a11",
            "Serving.",
            "192.0.2.10/24",
            "8, all open",
            "8120 a second",
            "1.7 TB of 1.9 TB free",
        ] {
            assert!(good.contains(part), "{part}: {good}");
        }
        let mut bad = node();
        bad.health = Health::Degraded("partition 3 is fenced".into());
        bad.partitions[3].1 = "fenced".into();
        bad.data_problem = "it is damaged".into();
        bad.disk = Some((1 << 20, 8 << 30));
        bad.shown_once = "admin token: tdb_x\n".into();
        let bad = said(&bad, &Screen::Summary);
        for part in [
            "partition 3 is fenced",
            "7 of 8 open; 3 fenced",
            "it is damaged",
            "The data partition is full",
            "admin token: tdb_x",
        ] {
            assert!(bad.contains(part), "{part}: {bad}");
        }
        assert!(said(&node(), &Screen::More(0)).contains("message 39"));
        assert!(said(&node(), &Screen::ConfirmOff).contains("[Enter] Turn off"));
    }

    #[test]
    fn every_page_is_drawn() {
        let renderer = Renderer::new();
        let screens = [
            Screen::Summary,
            Screen::More(0),
            Screen::ConfirmRestart,
            Screen::ConfirmOff,
            Screen::Refused("no".into()),
        ];
        for screen in screens {
            for (width, height) in [(640, 480), (1920, 1080)] {
                assert!(
                    renderer
                        .render(&of(&node(), &screen), width, height)
                        .is_some()
                );
            }
        }
    }
}
