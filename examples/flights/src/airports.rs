//! What the clocks at the airports show.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::Minute;

const AIRPORTS: &str = include_str!("../data/airports.csv");
const MINUTES_A_DAY: i32 = 24 * 60;

/// Destinations that the table does not have; none of them keeps daylight saving time.
const ATLANTIC: [&str; 4] = ["BQN", "PSE", "SJU", "STT"];

/// Time zones of airports.
#[derive(Debug)]
pub struct Airports {
    zones: BTreeMap<String, TimeZone>,
}

#[derive(Deserialize)]
struct Row {
    faa: String,
    tz: i32,
    dst: String,
}

impl Airports {
    /// Reads the table that is compiled in.
    ///
    /// # Errors
    ///
    /// A row that cannot be read, which would be a defect of the data.
    pub fn load() -> Result<Airports> {
        let mut zones = BTreeMap::new();
        for row in csv::Reader::from_reader(AIRPORTS.as_bytes()).deserialize() {
            let row: Row = row.context("airports.csv")?;
            zones.insert(row.faa, zone(row.tz, row.dst == "A")?);
        }
        for code in ATLANTIC {
            zones.insert(code.to_owned(), zone(-4, false)?);
        }
        Ok(Airports { zones })
    }

    /// The minute of the day, 0 to 1439, that the clock at an airport shows; `None` for an unknown airport.
    pub fn clock(&self, airport: &str, at: Minute) -> Option<i32> {
        let local = self.zones.get(airport)?.to_datetime(at.timestamp());
        Some(i32::from(local.hour()) * 60 + i32::from(local.minute()))
    }

    /// The first moment from `earliest` on at which the clock at an airport shows `minute_of_day`;
    /// `None` for an
    /// unknown airport.
    pub fn next(&self, airport: &str, minute_of_day: i32, earliest: Minute) -> Option<Minute> {
        let away = minute_of_day - self.clock(airport, earliest)?;
        let guess = earliest + away.rem_euclid(MINUTES_A_DAY);
        // Between the two the clock may have been set forward or back.
        let off = minute_of_day - self.clock(airport, guess)?;
        let corrected = guess + off;
        let holds = corrected >= earliest && self.clock(airport, corrected)? == minute_of_day;
        Some(if off != 0 && holds { corrected } else { guess })
    }
}

/// Hours from UTC in winter, and whether clocks change as in the United States.
fn zone(hours: i32, changes: bool) -> Result<TimeZone> {
    // POSIX counts west of Greenwich.
    let west = -hours;
    let rule = if changes {
        format!("STD{west}DST,M3.2.0,M11.1.0")
    } else {
        format!("STD{west}")
    };
    TimeZone::posix(&rule).with_context(|| format!("no time zone: {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(text: &str) -> Minute {
        Minute::parse(text).unwrap()
    }

    #[test]
    fn the_file_is_the_one_of_the_provenance() {
        let hash = blake3::hash(AIRPORTS.as_bytes()).to_hex();
        assert_eq!(
            &hash[..],
            "7b8e477c2975368c944edac60dc0e166c7e5566bb192d2adea6500f23547f5c9"
        );
    }

    #[test]
    fn clocks_follow_zone_and_season() {
        let airports = Airports::load().unwrap();
        let clock = |airport, text| airports.clock(airport, minute(text));
        assert_eq!(clock("JFK", "2013-01-01T10:15:00Z"), Some(5 * 60 + 15));
        assert_eq!(clock("JFK", "2013-03-10T06:59:00Z"), Some(60 + 59));
        assert_eq!(clock("JFK", "2013-03-10T07:00:00Z"), Some(3 * 60));
        assert_eq!(clock("JFK", "2013-11-03T06:00:00Z"), Some(60));
        assert_eq!(clock("PHX", "2013-07-01T12:00:00Z"), Some(5 * 60));
        assert_eq!(clock("SJU", "2013-07-01T12:00:00Z"), Some(8 * 60));
        assert_eq!(clock("nowhere", "2013-07-01T12:00:00Z"), None);
    }

    #[test]
    fn the_next_time_a_clock_shows_is_never_earlier_and_at_most_a_day_away() {
        let airports = Airports::load().unwrap();
        let next = |airport, at, from| {
            airports
                .next(airport, at, minute(from))
                .unwrap()
                .to_string()
        };
        assert_eq!(
            next("IAH", 8 * 60 + 30, "2013-01-01T14:04:00Z"),
            "2013-01-01T14:30:00Z"
        );
        assert_eq!(
            next("IAH", 8 * 60 + 30, "2013-01-01T14:30:00Z"),
            "2013-01-01T14:30:00Z"
        );
        assert_eq!(
            next("IAH", 8 * 60 + 30, "2013-01-01T14:31:00Z"),
            "2013-01-02T14:30:00Z"
        );
        // Five in the morning of the day on which clocks are set forward is an hour nearer.
        assert_eq!(
            next("JFK", 5 * 60, "2013-03-10T06:00:00Z"),
            "2013-03-10T09:00:00Z"
        );
        assert_eq!(
            next("JFK", 5 * 60, "2013-11-03T04:00:00Z"),
            "2013-11-03T10:00:00Z"
        );
    }
}
