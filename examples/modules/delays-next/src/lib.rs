//! The module `delays` as its next version has it: rows by airport and carrier also count what was
//! cancelled and what left late. Cancellations lie all over the history, so the upgrade is a rebuild: the
//! new tables are folded from the first event, beside the old ones, which answer until the new ones have
//! caught up. `carriers` is of another form and therefore has another version; `routes` is as it was.

use serde::{Deserialize, Serialize};
use truthdb_sdk::Json;
use truthdb_sdk::prelude::*;

/// A departure this many minutes after its plan is late.
const LATE_MINUTES: i32 = 15;

/// A row by airport and carrier: JSON, to be read by people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Departures {
    /// How many there were.
    pub departures: u64,
    /// The sum of their delays; early departures count as less than nothing.
    pub delay_minutes: i64,
    /// Their mean delay; 0 if there were none.
    pub mean_delay: f64,
    /// How many of them were late.
    pub late: u64,
    /// Flights that never left.
    pub cancelled: u64,
}

truthdb_sdk::record! {
    /// A row by day and route, for the query operator `top-routes`.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct RouteDay {
        /// Departures of the day.
        pub departures: u32,
        /// The sum of their delays.
        pub delay_minutes: i32,
    }
}

/// The payload of `FlightDeparted`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Departed {
    flight: String,
    origin: String,
    destination: String,
    departed: String,
    delay_minutes: i32,
}

/// The payload of `FlightCancelled`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Cancelled {
    flight: String,
    origin: String,
}

truthdb_sdk::reducer! {
    /// Departures, delays and cancellations.
    pub Delays = "delays";
    tables {
        /// By airport of departure and carrier.
        carriers: Table<(String, String), Json<Departures>> = 2,
        /// By day (UTC), origin and destination.
        routes: Table<(String, String, String), RouteDay> = 1,
    }
    on "aircraft/*" / "FlightDeparted" (Json<Departed>) => departed;
    on "aircraft/*" / "FlightCancelled" (Json<Cancelled>) => cancelled;
}

fn departed(tables: &Tables, event: &Event<'_>, Json(flight): Json<Departed>) -> Result<(), Fault> {
    let carrier = carrier(event, &flight.flight)?;
    let day = flight
        .departed
        .get(..10)
        .ok_or_else(|| Fault::new(format!("event {}: no day", event.sequence())))?;
    change(tables, &flight.origin, carrier, |row| {
        row.add(flight.delay_minutes);
    });
    let key = (day.to_owned(), flight.origin, flight.destination);
    let mut row = tables.routes.get(&key).unwrap_or_default();
    row.departures += 1;
    row.delay_minutes += flight.delay_minutes;
    tables.routes.set(&key, &row);
    Ok(())
}

fn cancelled(
    tables: &Tables,
    event: &Event<'_>,
    Json(flight): Json<Cancelled>,
) -> Result<(), Fault> {
    let carrier = carrier(event, &flight.flight)?;
    change(tables, &flight.origin, carrier, |row| row.cancelled += 1);
    Ok(())
}

/// The first two characters of a flight's number.
fn carrier<'a>(event: &Event<'_>, flight: &'a str) -> Result<&'a str, Fault> {
    flight
        .get(..2)
        .ok_or_else(|| Fault::new(format!("event {}: no carrier", event.sequence())))
}

fn change(tables: &Tables, airport: &str, carrier: &str, change: impl FnOnce(&mut Departures)) {
    let key = (airport.to_owned(), carrier.to_owned());
    let Json(mut row) = tables.carriers.get(&key).unwrap_or_default();
    change(&mut row);
    tables.carriers.set(&key, &Json(row));
}

impl Departures {
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of flights are far below 2^53"
    )]
    fn add(&mut self, delay: i32) {
        self.departures += 1;
        self.delay_minutes += i64::from(delay);
        self.late += u64::from(delay >= LATE_MINUTES);
        self.mean_delay = self.delay_minutes as f64 / self.departures as f64;
    }
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, TestEvent};

    use super::*;

    #[test]
    fn cancellations_and_late_departures_are_counted_however_they_are_cut() {
        let events: Vec<TestEvent> = (0..40)
            .map(|n| {
                if n % 8 == 0 {
                    let payload = r#"{"flight":"UA1","origin":"JFK","destination":"LAX"}"#;
                    return TestEvent::new("aircraft/N1", "FlightCancelled", payload);
                }
                let payload = format!(
                    r#"{{"flight":"UA1","origin":"JFK","destination":"LAX",
                        "departed":"2013-07-04T12:00:00Z","delay_minutes":{n}}}"#
                );
                TestEvent::new("aircraft/N1", "FlightDeparted", payload)
            })
            .collect();
        let outcome = testing::check::<Delays>(&events).unwrap();
        let key = ("JFK".to_owned(), "UA".to_owned());
        let Json(row) = outcome.get(&Delays::tables().carriers, &key).unwrap();
        assert_eq!((row.departures, row.cancelled), (35, 5));
        // 15 to 39 without 16, 24 and 32.
        assert_eq!(row.late, 22);
        assert_eq!(row.delay_minutes, (0..40).sum::<i64>() - (8 + 16 + 24 + 32));
    }

    #[test]
    fn a_cancellation_without_a_carrier_halts_it() {
        let payload = r#"{"flight":"U","origin":"JFK"}"#;
        let event = TestEvent::new("aircraft/N1", "FlightCancelled", payload);
        let failure = testing::check::<Delays>(&[event]).unwrap_err();
        assert!(failure.to_string().contains("no carrier"), "{failure}");
    }
}
