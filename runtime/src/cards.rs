//! Network cards: which there are, and which one the node uses.
//!
//! Without a configured one the order is that of their places on the machine's buses, which is the same at each start,
//! unlike the kernel's names and the moment at which a link comes up.

use std::path::PathBuf;
use std::time::Duration;

use crate::paths::System;

/// How long it is waited for the link of a card that goes before one that has a link already: both come up within
/// seconds, and in any order.
pub(crate) const SETTLE: Duration = Duration::from_secs(4);

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) has_link: bool,
    /// Its device, by its place in the machine.
    place: PathBuf,
}

impl Card {
    /// Whether it is the wanted one: by name, by MAC address, or any.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        wanted.is_empty() || self.name == wanted || self.mac.eq_ignore_ascii_case(wanted)
    }
}

/// The cards, by place; only those that a device stands behind.
pub(crate) fn all(system: &System) -> Vec<Card> {
    let Ok(entries) = std::fs::read_dir(system.path("sys/class/net")) else {
        return Vec::new();
    };
    let mut cards: Vec<Card> = entries
        .flatten()
        .filter_map(|entry| {
            let place = std::fs::canonicalize(entry.path().join("device")).ok()?;
            let text = |name| {
                let text = std::fs::read_to_string(entry.path().join(name));
                text.unwrap_or_default().trim().to_owned()
            };
            Some(Card {
                name: entry.file_name().to_string_lossy().into_owned(),
                mac: text("address"),
                has_link: text("carrier") == "1",
                place,
            })
        })
        .collect();
    cards.sort_by(|a, b| (&a.place, &a.name).cmp(&(&b.place, &b.name)));
    cards
}

/// Names of those that have a link.
pub(crate) fn linked(cards: &[Card]) -> Vec<&str> {
    let linked = cards.iter().filter(|card| card.has_link);
    linked.map(|card| card.name.as_str()).collect()
}

/// The card to use, of those that are wanted. The first one waits for nobody; another has to have waited for it.
/// After one that brought nothing it is the next one that has a link, and behind the last the first again.
pub(crate) fn choose<'a>(cards: &'a [Card], waited: bool, after: Option<&str>) -> Option<&'a str> {
    let place = |name: &str| cards.iter().position(|card| card.name == name);
    if let Some(last) = after.and_then(place) {
        let (before, behind) = cards.split_at(last + 1);
        return [linked(behind), linked(before)].concat().first().copied();
    }
    let first = cards.first().filter(|card| card.has_link);
    match first {
        Some(first) => Some(&first.name),
        None if waited => linked(cards).first().copied(),
        None => None,
    }
}

/// Why there is no card to use. `wanted` is the configured one.
pub(crate) fn why_no_link(cards: &[Card], wanted: &str) -> String {
    let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
    let names = names.join(", ");
    if cards.is_empty() {
        "no network card was found".to_owned()
    } else if cards.iter().any(|card| card.is(wanted)) {
        let wanted = if wanted.is_empty() { &names } else { wanted };
        format!("no link on {wanted}: is its cable connected?")
    } else {
        format!(
            "there is no card {wanted}, which network.interface in config/node.toml names; there is {names}"
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Puts a card into a system: in this slot, if a device stands behind it.
    pub(crate) fn put(system: &System, name: &str, slot: Option<u8>, has_link: bool) {
        let card = system.path("sys/class/net").join(name);
        std::fs::create_dir_all(&card).unwrap();
        let number: String = name.chars().filter(char::is_ascii_digit).collect();
        std::fs::write(card.join("address"), format!("52:54:00:00:00:0{number}\n")).unwrap();
        std::fs::write(card.join("carrier"), format!("{}\n", u8::from(has_link))).unwrap();
        if let Some(slot) = slot {
            let device = system.path(format!("sys/devices/pci0000:00/0000:00:{slot:02x}.0"));
            std::fs::create_dir_all(&device).unwrap();
            let link = card.join("device");
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(device, link).unwrap();
        }
    }

    fn system_with(cards: &[(&str, Option<u8>, bool)]) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for (name, slot, has_link) in cards {
            put(&system, name, *slot, *has_link);
        }
        (folder, system)
    }

    fn chosen(cards: &[Card], waited: bool, after: Option<&str>) -> String {
        let chosen = choose(cards, waited, after);
        chosen.unwrap_or("none").to_owned()
    }

    #[test]
    fn a_card_is_chosen_by_name_or_address_and_only_devices_count() {
        let (_folder, system) = system_with(&[
            ("lo", None, true),
            ("eth1", Some(4), true),
            ("eth0", Some(3), false),
        ]);
        let cards = all(&system);
        let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        assert!(cards[0].is("") && cards[0].is("eth0") && cards[0].is("52:54:00:00:00:00"));
        assert!(!cards[0].is("eth1"));
        assert!(cards[1].has_link && !cards[0].has_link);
    }

    #[test]
    fn the_order_is_that_of_the_slots_whatever_the_kernel_calls_them() {
        for names in [["eth0", "eth1"], ["eth1", "eth0"]] {
            let cards = [(names[0], Some(9), true), (names[1], Some(31), true)];
            let (_folder, system) = system_with(&cards);
            assert_eq!(chosen(&all(&system), false, None), names[0]);
        }
    }

    #[test]
    fn a_card_waits_for_the_one_before_it_and_then_no_longer() {
        let (_folder, system) = system_with(&[("eth0", Some(3), false), ("eth1", Some(4), true)]);
        assert_eq!(chosen(&all(&system), false, None), "none");
        assert_eq!(chosen(&all(&system), true, None), "eth1");
        put(&system, "eth0", None, true);
        assert_eq!(chosen(&all(&system), false, None), "eth0");
        put(&system, "eth0", None, false);
        put(&system, "eth1", None, false);
        assert_eq!(chosen(&all(&system), true, None), "none");
    }

    #[test]
    fn after_a_card_comes_the_next_with_a_link_and_after_the_last_the_first() {
        let cards = [
            ("eth0", Some(3), true),
            ("eth1", Some(4), false),
            ("eth2", Some(5), true),
        ];
        let (_folder, system) = system_with(&cards);
        let cards = all(&system);
        assert_eq!(chosen(&cards, false, Some("eth0")), "eth2");
        assert_eq!(chosen(&cards, false, Some("eth2")), "eth0");
        assert_eq!(chosen(&cards[..1], false, Some("eth0")), "eth0");
        // It was taken out.
        assert_eq!(chosen(&cards, false, Some("eth7")), "eth0");
    }

    #[test]
    fn why_there_is_no_link_names_the_cards() {
        let (_folder, system) = system_with(&[("eth0", Some(3), false), ("eth1", Some(4), false)]);
        let cards = all(&system);
        assert_eq!(why_no_link(&[], ""), "no network card was found");
        assert!(why_no_link(&cards, "").contains("no link on eth0, eth1: is"));
        assert!(why_no_link(&cards, "eth1").contains("no link on eth1:"));
        let other = why_no_link(&cards, "eth9");
        assert!(
            other.contains("no card eth9") && other.contains("eth0, eth1"),
            "{other}"
        );
    }
}
