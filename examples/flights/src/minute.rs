//! Points in time to the minute, as the data has them.

use std::fmt;
use std::ops::{Add, Sub};

use anyhow::{Context as _, Result};
use jiff::Timestamp;

/// A point in time in UTC, in whole minutes since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Minute(i32);

impl Minute {
    /// The minute that begins at this timestamp (RFC 3339); seconds are cut off.
    ///
    /// # Errors
    ///
    /// Text that is no timestamp.
    pub fn parse(text: &str) -> Result<Minute> {
        let timestamp: Timestamp = text
            .parse()
            .with_context(|| format!("no timestamp: {text:?}"))?;
        Ok(Minute(
            i32::try_from(timestamp.as_second().div_euclid(60)).context("beyond year 6000")?,
        ))
    }

    /// The hour that it lies in, in hours since 1970.
    pub fn hour(self) -> i32 {
        self.0.div_euclid(60)
    }

    /// The timestamp at which this minute begins.
    pub fn timestamp(self) -> Timestamp {
        Timestamp::from_second(i64::from(self.0) * 60).expect("32 bits of minutes are in range")
    }
}

impl Add<i32> for Minute {
    type Output = Minute;

    fn add(self, minutes: i32) -> Minute {
        Minute(self.0 + minutes)
    }
}

impl Sub for Minute {
    type Output = i32;

    fn sub(self, earlier: Minute) -> i32 {
        self.0 - earlier.0
    }
}

impl fmt::Display for Minute {
    /// RFC 3339 in UTC, as in `2013-01-01T10:15:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.timestamp().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_minutes_convert_both_ways() {
        let minute = Minute::parse("2013-01-01T10:15:00Z").unwrap();
        assert_eq!(minute.to_string(), "2013-01-01T10:15:00Z");
        assert_eq!((minute + 60).to_string(), "2013-01-01T11:15:00Z");
        assert_eq!(minute + 7 - minute, 7);
        assert_eq!(minute.hour(), (minute + 44).hour());
        assert_eq!(minute.hour() + 1, (minute + 45).hour());
        assert!(Minute::parse("yesterday").is_err());
    }
}
