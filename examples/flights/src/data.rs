//! The rows of the data set.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::Minute;

/// Parts of one file; zstd frames may follow each other.
const PARTS: [&[u8]; 4] = [
    include_bytes!("../data/flights.1.csv.zst"),
    include_bytes!("../data/flights.2.csv.zst"),
    include_bytes!("../data/flights.3.csv.zst"),
    include_bytes!("../data/flights.4.csv.zst"),
];

/// All flights, in the order of the file.
#[derive(Debug)]
pub struct Flights(Vec<Flight>);

/// One flight, planned and flown or cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// Carrier code, such as `UA`.
    pub carrier: String,
    /// Flight number, unique for a carrier on a day from an airport.
    pub number: u16,
    /// Registration of the aircraft.
    pub aircraft: Option<String>,
    /// Airport of departure.
    pub origin: String,
    /// Airport of arrival.
    pub destination: String,
    /// Distance in miles.
    pub distance_miles: u16,
    /// Departure as planned.
    pub scheduled: Minute,
    /// Arrival as planned, as the minute of the day that the clock at the destination shows.
    pub scheduled_arrival_clock: i32,
    /// Minutes after the plan at which it departed (negative: before); `None` if it was cancelled.
    pub departure_delay: Option<i32>,
    /// What the clock at the destination showed at arrival, as the minute of the day.
    pub arrival_clock: Option<i32>,
    /// Minutes after the plan at which it arrived; also `None` for flights that were diverted first.
    pub arrival_delay: Option<i32>,
    /// Minutes in the air; also `None` for flights that were diverted first.
    pub air_minutes: Option<i32>,
}

/// A row as it stands in the file. `NA` means none, also for registrations.
#[derive(Deserialize)]
struct Row<'a> {
    time_hour: &'a str,
    minute: i32,
    dep_time: &'a str,
    dep_delay: &'a str,
    sched_arr_time: i32,
    arr_time: &'a str,
    arr_delay: &'a str,
    carrier: &'a str,
    flight: u16,
    tailnum: &'a str,
    origin: &'a str,
    dest: &'a str,
    air_time: &'a str,
    distance: u16,
}

impl Flights {
    /// Unpacks and reads the data that is compiled in: 336,776 flights.
    ///
    /// # Errors
    ///
    /// Data that cannot be read, which would be a defect of this crate.
    pub fn load() -> Result<Flights> {
        let text = unpack()?;
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let names = reader.headers().context("column names")?.clone();
        let mut record = csv::StringRecord::new();
        let mut flights = Vec::new();
        while reader.read_record(&mut record).context("flights.csv")? {
            let row: Row<'_> = record.deserialize(Some(&names)).context("flights.csv")?;
            flights.push(flight(&row).with_context(|| format!("row {}", flights.len() + 1))?);
        }
        Ok(Flights(flights))
    }

    /// The flights, in the order of the file.
    pub fn as_slice(&self) -> &[Flight] {
        &self.0
    }
}

/// The whole file.
fn unpack() -> Result<Vec<u8>> {
    let mut text = Vec::with_capacity(27 << 20);
    for part in PARTS {
        let mut decoder = zstd::Decoder::new(part).context("flights.csv.zst")?;
        decoder.read_to_end(&mut text).context("flights.csv.zst")?;
    }
    Ok(text)
}

fn flight(row: &Row<'_>) -> Result<Flight> {
    let departure_delay = number(row.dep_delay)?;
    if departure_delay.is_some() != number(row.dep_time)?.is_some() {
        bail!("a departure has both a time and a delay, or neither");
    }
    Ok(Flight {
        carrier: row.carrier.to_owned(),
        number: row.flight,
        aircraft: (row.tailnum != "NA").then(|| row.tailnum.to_owned()),
        origin: row.origin.to_owned(),
        destination: row.dest.to_owned(),
        distance_miles: row.distance,
        scheduled: Minute::parse(row.time_hour)? + row.minute,
        scheduled_arrival_clock: minute_of_day(row.sched_arr_time),
        departure_delay,
        arrival_clock: number(row.arr_time)?.map(minute_of_day),
        arrival_delay: number(row.arr_delay)?,
        air_minutes: number(row.air_time)?,
    })
}

fn number(text: &str) -> Result<Option<i32>> {
    if text == "NA" {
        return Ok(None);
    }
    Ok(Some(
        text.parse()
            .with_context(|| format!("no number: {text:?}"))?,
    ))
}

/// The minute of the day of HHMM; 2400 is the first of the next day.
fn minute_of_day(hours_minutes: i32) -> i32 {
    (hours_minutes / 100 % 24) * 60 + hours_minutes % 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_one_of_the_provenance() {
        let text = unpack().unwrap();
        assert_eq!(text.len(), 26_788_874);
        let hash = blake3::hash(&text).to_hex();
        assert_eq!(
            &hash[..],
            "1b37b36b4db5ebee127eafd27aaaf96b638e029572a0c3d086de3cddb9de86f6"
        );
    }

    #[test]
    fn the_first_row_is_read_exactly() {
        let flights = Flights::load().unwrap();
        let expected = Flight {
            carrier: "UA".to_owned(),
            number: 1545,
            aircraft: Some("N14228".to_owned()),
            origin: "EWR".to_owned(),
            destination: "IAH".to_owned(),
            distance_miles: 1400,
            scheduled: Minute::parse("2013-01-01T10:15:00Z").unwrap(),
            scheduled_arrival_clock: 8 * 60 + 19,
            departure_delay: Some(2),
            arrival_clock: Some(8 * 60 + 30),
            arrival_delay: Some(11),
            air_minutes: Some(227),
        };
        assert_eq!(flights.as_slice()[0], expected);
    }

    #[test]
    fn counts_are_those_of_the_provenance() {
        let flights = Flights::load().unwrap();
        let count =
            |wanted: fn(&Flight) -> bool| flights.as_slice().iter().filter(|f| wanted(f)).count();
        assert_eq!(count(|_| true), 336_776);
        assert_eq!(count(|flight| flight.departure_delay.is_none()), 8_255);
        assert_eq!(count(|flight| flight.arrival_clock.is_some()), 328_063);
        assert_eq!(
            count(|f| f.arrival_clock.is_some() && f.air_minutes.is_none()),
            717
        );
        assert_eq!(count(|flight| flight.aircraft.is_none()), 2_512);
    }

    #[test]
    fn midnight_has_two_names() {
        assert_eq!(minute_of_day(2400), 0);
        assert_eq!(minute_of_day(0), 0);
        assert_eq!(minute_of_day(2359), 1439);
    }
}
