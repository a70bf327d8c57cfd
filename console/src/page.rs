//! The console's pages and keys, both pure.

use truthdb_installer::input::Key;
use truthdb_installer::plan::human_bytes;
use truthdb_installer::ui::{Block, KeyHint, Page, Tone};

use crate::node::{Health, Node};

/// Lines of the log that a page key moves by.
const PAGE_LINES: usize = 10;
/// Bytes that a partition of the database needs for its next segment.
const SEGMENT_BYTES: u64 = 64 << 20;
/// What the server calls a partition that has no space for its next segment.
const DISK_FULL: &str = "disk-full";
/// Characters of what a part says is wrong with it: some lines, so that the page stays on the screen. All of it is in
/// the messages.
const PROBLEM_CHARS_MAX: usize = 420;
/// Partitions that are named one by one.
const PARTITIONS_NAMED_MAX: usize = 16;

/// Which page is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Screen {
    /// What the node is and how it does.
    Summary,
    /// Its last messages, this many lines from the end.
    More(usize),
    /// Is this meant? With what is typed of the word that says so.
    Confirm(Wanted, String),
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

impl Wanted {
    /// What is typed to confirm it: letters that are on the same keys of most layouts, since the console knows one
    /// layout only.
    fn word(self) -> &'static str {
        match self {
            Wanted::Restart => "reboot",
            Wanted::TurnOff => "off",
        }
    }
}

/// The page after some keys that came at once, and what is to be done. What follows a key that changes the page is
/// dropped: it was typed by somebody who had not seen that page, or by a machine.
pub(crate) fn after(mut screen: Screen, keys: &[Key], lines: usize) -> (Screen, Option<Wanted>) {
    for key in keys {
        let before = std::mem::discriminant(&screen);
        let (to, wanted) = next(screen, *key, lines);
        screen = to;
        if wanted.is_some() || std::mem::discriminant(&screen) != before {
            return (screen, wanted);
        }
    }
    (screen, None)
}

/// The next page, and what is to be done. `lines` is the length of the log.
fn next(screen: Screen, key: Key, lines: usize) -> (Screen, Option<Wanted>) {
    let to = match (screen, key) {
        (Screen::Confirm(wanted, typed), key) => return confirmed(wanted, typed, key),
        (Screen::Summary, Key::Char('m' | 'M')) => Screen::More(0),
        (Screen::Summary, Key::Char('r' | 'R')) => Screen::Confirm(Wanted::Restart, String::new()),
        (Screen::Summary, Key::Char('o' | 'O')) => Screen::Confirm(Wanted::TurnOff, String::new()),
        (Screen::More(back), Key::Up) => Screen::More((back + 1).min(lines)),
        (Screen::More(back), Key::PageUp) => Screen::More((back + PAGE_LINES).min(lines)),
        (Screen::More(back), Key::Down) => Screen::More(back.saturating_sub(1)),
        (Screen::More(back), Key::PageDown) => Screen::More(back.saturating_sub(PAGE_LINES)),
        (_, Key::Escape) => Screen::Summary,
        (screen, _) => screen,
    };
    (to, None)
}

/// A key on the page of a confirmation. Whatever does not go on with the word leaves the page: a name typed at what
/// looks like a login, or a line that sends back what it shows, never comes to the word's end.
fn confirmed(wanted: Wanted, mut typed: String, key: Key) -> (Screen, Option<Wanted>) {
    let rest = wanted.word().strip_prefix(&*typed).unwrap_or_default();
    match key {
        Key::Enter if rest.is_empty() => return (Screen::Summary, Some(wanted)),
        Key::Char(c) if rest.starts_with(c.to_ascii_lowercase()) => {
            typed.push(c.to_ascii_lowercase());
        }
        Key::Backspace if !typed.is_empty() => {
            typed.pop();
        }
        _ => return (Screen::Summary, None),
    }
    (Screen::Confirm(wanted, typed), None)
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
        Screen::Confirm(wanted, typed) => confirm(node, *wanted, typed),
        Screen::Refused(reason) => {
            let mut page = page(node, "This did not work".to_owned());
            page.tone = Tone::Bad;
            page.intro.clone_from(reason);
            page
        }
    }
}

fn confirm(node: &Node, wanted: Wanted, typed: &str) -> Page {
    let (title, intro, action) = match wanted {
        Wanted::Restart => (
            "Start this node again?",
            "It is not reachable for a moment.",
            "Start again",
        ),
        Wanted::TurnOff => (
            "Turn this node off?",
            "It is not reachable until somebody turns it on.",
            "Turn off",
        ),
    };
    let mut page = page(node, title.to_owned());
    page.tone = Tone::Careful;
    page.intro = intro.to_owned();
    page.blocks.push(Block::Input {
        label: format!("If that is meant, type the word {} here:", wanted.word()),
        value: typed.to_owned(),
    });
    if typed == wanted.word() {
        page.keys.insert(0, key("Enter", action));
    }
    page
}

fn summary(node: &Node) -> Page {
    let mut page = page(node, node.name.clone());
    page.blocks.push(health(node));
    let problems = &node.problems;
    if !problems.data.is_empty() {
        let text = format!("The data partition: {}", short(&problems.data));
        page.blocks.push(callout(Tone::Bad, text));
    }
    page.blocks.extend(room(node));
    page.blocks.extend(others(node));
    if !node.shown_once.trim().is_empty() {
        let text = "Shown until this node starts again, and never after. Write it down.";
        page.blocks.push(callout(Tone::Careful, text.to_owned()));
        page.blocks
            .push(Block::Text(node.shown_once.trim().to_owned()));
    }
    page.blocks.push(Block::Facts(facts(node)));
    page.keys = vec![
        key("M", "Messages"),
        key("R", "Start again"),
        key("O", "Turn off"),
    ];
    page
}

fn callout(tone: Tone, text: String) -> Block {
    Block::Callout { tone, text }
}

/// The beginning of a text; all of it if that is not long.
fn short(text: &str) -> String {
    if text.chars().count() <= PROBLEM_CHARS_MAX {
        return text.to_owned();
    }
    let begin: String = text.chars().take(PROBLEM_CHARS_MAX).collect();
    format!("{begin}…")
}

/// How the server does, and if it does not run, why.
fn health(node: &Node) -> Block {
    let problems = &node.problems;
    match &node.health {
        Health::Ready => callout(Tone::Good, "Serving.".to_owned()),
        Health::Degraded(what) => callout(Tone::Bad, format!("Not everything is served: {what}.")),
        Health::Down(_) if !problems.server.is_empty() => {
            callout(Tone::Bad, short(&problems.server))
        }
        Health::Down(_) if !problems.data.is_empty() => callout(
            Tone::Bad,
            "Not serving: the server was not started.".to_owned(),
        ),
        Health::Unknown => {
            let text = format!(
                "Nothing is known of this node since {}: its disk seems to hang.",
                node.time.replace("  ", " ")
            );
            callout(Tone::Bad, text)
        }
        Health::Down(why) => callout(Tone::Bad, format!("The server does not answer ({why}).")),
    }
}

/// Whether there is room for events, as the server says: only it knows how much it has reserved.
fn room(node: &Node) -> Option<Block> {
    let full: Vec<String> = node
        .partitions
        .iter()
        .filter(|(_, state)| state == DISK_FULL)
        .map(|(number, _)| number.to_string())
        .collect();
    if !full.is_empty() {
        let whose = if full.len() == node.partitions.len() {
            String::new()
        } else {
            format!(
                " to partition {}",
                full[..full.len().min(PARTITIONS_NAMED_MAX)].join(", ")
            )
        };
        let text = format!(
            "The data partition is full: appends{whose} are refused until there is room; reading goes on. \
             Trim streams, or set retention in the configuration."
        );
        return Some(callout(Tone::Bad, text));
    }
    let is_low = node.disk.is_some_and(|(free, _)| free < SEGMENT_BYTES);
    (is_low && !node.partitions.is_empty()).then(|| {
        let text = "The data partition is almost full: appends go on in the room that is reserved already.";
        callout(Tone::Careful, text.to_owned())
    })
}

/// What is wrong with the rest of the node, one below the other, which takes less room than a piece for each.
fn others(node: &Node) -> Option<Block> {
    let problems = &node.problems;
    let all = [
        ("The configuration: ", &problems.node),
        ("The network: ", &problems.network),
        ("", &problems.time),
    ];
    let said: Vec<String> = all
        .iter()
        .filter(|(_, problem)| !problem.is_empty())
        .map(|(what, problem)| format!("{}.", sentence(&format!("{what}{}", short(problem)))))
        .collect();
    (!said.is_empty()).then(|| callout(Tone::Careful, said.join("\n")))
}

/// A text with a capital letter at its beginning.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

fn facts(node: &Node) -> Vec<(String, String)> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = Vec::new();
    let addresses = &node.addresses;
    if addresses.is_empty() {
        facts.push(fact("Address", node.no_address.clone()));
    }
    if !addresses.ipv4.is_empty() {
        facts.push(fact("Address", addresses.ipv4.clone()));
    }
    if !addresses.ipv6.is_empty() {
        facts.push(fact("IPv6", addresses.ipv6.join(", ")));
    }
    if !addresses.gateways.is_empty() {
        facts.push(fact("Gateway", addresses.gateways.join(", ")));
    }
    if node.problems.time.is_empty() {
        facts.push(fact("Time servers", node.time_servers.clone()));
    }
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
    facts
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
    use crate::addresses::Addresses;
    use crate::node::Problems;
    use truthdb_installer::input::serial::Decoder;
    use truthdb_installer::ui::draw::Renderer;
    use truthdb_installer::ui::text;

    fn node() -> Node {
        Node {
            name: "truthdb-4f3a11".into(),
            version: "0.1.0".into(),
            addresses: Addresses {
                ipv4: "192.0.2.10/24  (eth0)".into(),
                ipv6: vec!["2001:db8::10/64  (eth0)".into()],
                gateways: vec!["192.0.2.1".into(), "fe80::2".into()],
            },
            no_address: "no network yet".into(),
            time_servers: "pool.ntp.org".into(),
            health: Health::Ready,
            problems: Problems::default(),
            partitions: (0..8).map(|number| (number, "open".into())).collect(),
            events: Some(1_204_991),
            events_a_second: Some(8120),
            disk: Some((1_700_000_000_000, 1_900_000_000_000)),
            time: "2026-11-25  18:00:00  UTC".into(),
            shown_once: String::new(),
            log: (0..40).map(|line| format!("message {line}")).collect(),
        }
    }

    fn confirm(wanted: Wanted, typed: &str) -> Screen {
        Screen::Confirm(wanted, typed.to_owned())
    }

    fn keys(text: &str) -> Vec<Key> {
        let mut decoder = Decoder::new();
        text.bytes().filter_map(|byte| decoder.byte(byte)).collect()
    }

    /// The page after keys that came one by one, and everything that was to be done.
    fn slowly(mut screen: Screen, keys: &[Key]) -> (Screen, Vec<Wanted>) {
        let mut done = Vec::new();
        for key in keys {
            let (to, wanted) = after(screen, std::slice::from_ref(key), 9);
            screen = to;
            done.extend(wanted);
        }
        (screen, done)
    }

    #[test]
    fn power_needs_a_key_and_a_word() {
        let (restart, off) = (Wanted::Restart, Wanted::TurnOff);
        for (text, expected) in [
            ("rreboot\r", &[restart][..]),
            ("OOff\r", &[off]),
            ("ROFF\r", &[]),
            ("rreboo\r", &[]),
            ("rrebootx\r", &[]),
        ] {
            assert_eq!(slowly(Screen::Summary, &keys(text)).1, expected, "{text}");
        }
        let (screen, _) = slowly(confirm(off, ""), &keys("of\x7ff"));
        assert_eq!(screen, confirm(off, "of"));
        // The word may come at once, on a page that was seen.
        assert_eq!(
            after(confirm(restart, ""), &keys("reboot\r"), 9),
            (Screen::Summary, Some(restart))
        );
        assert_eq!(after(confirm(off, "of"), &keys("\r"), 9).1, None);
    }

    #[test]
    fn every_other_key_leaves_a_confirmation() {
        for key in [Key::Enter, Key::Escape, Key::Char('x'), Key::Up, Key::Tab] {
            for screen in [confirm(Wanted::Restart, ""), confirm(Wanted::TurnOff, "of")] {
                let left = after(screen, &[key], 9);
                assert_eq!(left, (Screen::Summary, None), "{key:?}");
            }
        }
        assert_eq!(next(Screen::More(9), Key::Up, 9).0, Screen::More(9));
        assert_eq!(next(Screen::More(0), Key::Down, 9).0, Screen::More(0));
    }

    #[test]
    fn words_that_are_typed_at_a_login_do_nothing() {
        for text in [
            "root\r",
            "offline\r",
            "reboot\r",
            "operator\n",
            "off\r\n",
            "exit\r",
        ] {
            assert_eq!(after(Screen::Summary, &keys(text), 9).1, None, "{text}");
            assert_eq!(slowly(Screen::Summary, &keys(text)).1, [], "{text}");
        }
        // What follows the key that changes the page was not meant for that page.
        assert_eq!(
            after(Screen::Summary, &keys("rreboot\r"), 9),
            (confirm(Wanted::Restart, ""), None)
        );
        assert_eq!(
            after(Screen::More(0), &[Key::Up, Key::Up, Key::Down], 9).0,
            Screen::More(1)
        );
    }

    #[test]
    fn a_line_that_sends_back_what_it_shows_does_nothing() {
        let node = node();
        let mut screens = vec![
            Screen::Summary,
            Screen::More(0),
            Screen::Refused("no".into()),
        ];
        for wanted in [Wanted::Restart, Wanted::TurnOff] {
            for length in 0..=wanted.word().len() {
                screens.push(confirm(wanted, &wanted.word()[..length]));
            }
        }
        for shown in &screens {
            let echo = text::screen(&of(&node, shown), true);
            let echo = keys(&String::from_utf8(echo).unwrap());
            for at in &screens {
                assert_eq!(slowly(at.clone(), &echo).1, [], "{shown:?} at {at:?}");
            }
        }
    }

    /// Lines of a serial terminal.
    const TERMINAL_LINES: usize = 24;

    /// A page's text with its line breaks as spaces, as a reader takes it.
    fn said(node: &Node, screen: &Screen) -> String {
        let lines = text::lines(&of(node, screen));
        let words = lines.iter().flat_map(|line| line.split(' '));
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        words.join(" ")
    }

    fn says(node: &Node, parts: &[&str]) {
        let said = said(node, &Screen::Summary);
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn every_page_says_what_it_must() {
        says(
            &node(),
            &[
                "truthdb-4f3a11",
                "Serving.",
                "Address 192.0.2.10/24 (eth0)",
                "IPv6 2001:db8::10/64 (eth0)",
                "Gateway 192.0.2.1, fe80::2",
                "Time servers pool.ntp.org",
                "8, all open",
                "8120 a second",
                "1.7 TB of 1.9 TB free",
            ],
        );
        let mut bad = node();
        bad.health = Health::Degraded("partition 3 is fenced".into());
        bad.partitions[3].1 = "fenced".into();
        bad.shown_once = "admin token: tdb_x\n".into();
        says(
            &bad,
            &[
                "partition 3 is fenced",
                "7 of 8 open; 3 fenced",
                "admin token: tdb_x",
            ],
        );
        bad.health = Health::Unknown;
        says(
            &bad,
            &["known of this node since 2026-11-25 18:00:00 UTC: its disk"],
        );
        assert!(said(&node(), &Screen::More(0)).contains("message 39"));
        let asked = said(&node(), &confirm(Wanted::TurnOff, "of"));
        assert!(asked.contains("type the word off here: > of_"), "{asked}");
        assert!(!asked.contains("[Enter]"), "{asked}");
        let asked = said(&node(), &confirm(Wanted::TurnOff, "off"));
        assert!(asked.contains("[Enter] Turn off"), "{asked}");
    }

    #[test]
    fn a_full_disk_is_what_the_server_says_it_is() {
        const FULL: &str = "The data partition is full";
        let mut node = node();
        node.disk = Some((1 << 20, 8 << 30));
        // What is reserved still takes events.
        says(&node, &["Serving.", "almost full: appends go on"]);
        assert!(!said(&node, &Screen::Summary).contains(FULL));
        node.health = Health::Degraded("partition 3 is disk-full".into());
        node.partitions[3].1 = "disk-full".into();
        says(&node, &[FULL, "appends to partition 3 are refused"]);
        for one in &mut node.partitions {
            one.1 = "disk-full".into();
        }
        says(
            &node,
            &[
                FULL,
                "appends are refused until there is room",
                "Trim streams",
            ],
        );
        // A server that does not run says nothing: whoever tries to start it does.
        node.health = Health::Down("Connection refused".into());
        node.partitions.clear();
        assert!(!said(&node, &Screen::Summary).contains("full"));
        node.problems.server = "The data partition is full: the server does not start".into();
        says(
            &node,
            &["The data partition is full: the server does not start"],
        );
        assert!(!said(&node, &Screen::Summary).contains("refused"));
    }

    /// As the node says it without time servers.
    const NO_SERVERS: &str =
        "nothing sets the clock: no time server is configured or named by DHCP";

    #[test]
    fn the_first_start_of_a_disk_image_stays_on_the_screen() {
        let mut fresh = node();
        fresh.problems.time = NO_SERVERS.into();
        fresh.shown_once = format!(
            "The first access token, with every permission. It is shown only now:\ntdb_{}\n\
             The fingerprint of the certificate, which clients pin:\n{}",
            "0".repeat(77),
            ["00"; 32].join(":")
        );
        says(&fresh, &["tdb_000", "00:00:00", "Nothing sets the clock"]);
        let lines = text::lines(&of(&fresh, &Screen::Summary));
        assert!(lines.len() <= TERMINAL_LINES, "{lines:#?}");
    }

    #[test]
    fn what_is_wrong_with_a_part_is_said_and_stays_on_the_screen() {
        let mut bad = node();
        bad.problems.node =
            "config/node.toml is not used, and the defaults are taken: line 7: a host \
                             name has letters, digits and hyphens"
                .into();
        bad.problems.network = "no DHCP server answers".into();
        bad.problems.time = NO_SERVERS.into();
        bad.addresses = Addresses::default();
        says(
            &bad,
            &[
                "The configuration: config/node.toml is not used",
                "The network: no DHCP server answers.",
                "Nothing sets the clock: no time server",
                "Address no network yet",
            ],
        );
        assert!(!said(&bad, &Screen::Summary).contains("pool.ntp.org"));
        assert!(text::lines(&of(&bad, &Screen::Summary)).len() <= TERMINAL_LINES);
        let mut bad = node();
        bad.health = Health::Down("Connection refused".into());
        bad.problems.data = "it is damaged. ".repeat(100);
        bad.partitions.clear();
        says(
            &bad,
            &[
                "Not serving",
                "The data partition: it is damaged.",
                "damaged. ...",
            ],
        );
        assert!(text::lines(&of(&bad, &Screen::Summary)).len() <= TERMINAL_LINES);
    }

    #[test]
    fn every_page_is_drawn() {
        let renderer = Renderer::new();
        let screens = [
            Screen::Summary,
            Screen::More(0),
            confirm(Wanted::Restart, ""),
            confirm(Wanted::TurnOff, "off"),
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
