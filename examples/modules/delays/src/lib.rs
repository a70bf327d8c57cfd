//! Departures and mean delay by airport and carrier, and by day and route. The mean is of whole
//! minutes over whole departures, divided once for each row: no rounding error accumulates.

use serde::{Deserialize, Serialize};
use truthdb_sdk::Json;
use truthdb_sdk::prelude::*;

/// A row by airport and carrier: JSON, to be read by people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Departures {
    /// How many there were.
    pub departures: u64,
    /// The sum of their delays; early departures count as less than nothing.
    pub delay_minutes: i64,
    /// Their mean delay.
    pub mean_delay: f64,
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

truthdb_sdk::reducer! {
    /// Departures and delays.
    pub Delays = "delays";
    tables {
        /// By airport of departure and carrier.
        carriers: Table<(String, String), Json<Departures>> = 1,
        /// By day (UTC), origin and destination.
        routes: Table<(String, String, String), RouteDay> = 1,
    }
    on "aircraft/*" / "FlightDeparted" (Json<Departed>) => departed;
}

fn departed(tables: &Tables, event: &Event<'_>, Json(flight): Json<Departed>) -> Result<(), Fault> {
    let (carrier, day) = flight
        .flight
        .split_at_checked(2)
        .zip(flight.departed.split_at_checked(10))
        .map(|((carrier, _), (day, _))| (carrier.to_owned(), day.to_owned()))
        .ok_or_else(|| Fault::new(format!("event {}: no carrier or no day", event.sequence())))?;
    let key = (flight.origin.clone(), carrier);
    let Json(mut row) = tables.carriers.get(&key).unwrap_or_default();
    row.add(flight.delay_minutes);
    tables.carriers.set(&key, &Json(row));
    let key = (day, flight.origin, flight.destination);
    let mut row = tables.routes.get(&key).unwrap_or_default();
    row.departures += 1;
    row.delay_minutes += flight.delay_minutes;
    tables.routes.set(&key, &row);
    Ok(())
}

impl Departures {
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of flights are far below 2^53"
    )]
    fn add(&mut self, delay: i32) {
        self.departures += 1;
        self.delay_minutes += i64::from(delay);
        self.mean_delay = self.delay_minutes as f64 / self.departures as f64;
    }
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, TestEvent};

    use super::*;

    fn departure(flight: &str, destination: &str, day: u32, delay: i32) -> TestEvent {
        let payload = format!(
            r#"{{"flight":"{flight}","origin":"JFK","destination":"{destination}",
                "departed":"2013-07-{day:02}T12:00:00Z","delay_minutes":{delay}}}"#
        );
        TestEvent::new("aircraft/N1", "FlightDeparted", payload)
    }

    #[test]
    fn means_are_those_of_all_departures_however_they_are_cut() {
        let events: Vec<TestEvent> = (0..40)
            .map(|n| departure(if n % 4 == 0 { "DL7" } else { "UA1" }, "LAX", 1 + n % 2, 3))
            .chain([departure("DL7", "SFO", 9, -60)])
            .collect();
        let outcome = testing::check::<Delays>(&events).unwrap();
        let tables = Delays::tables();
        let row = |carrier: &str| {
            let key = ("JFK".to_owned(), carrier.to_owned());
            outcome.get(&tables.carriers, &key).unwrap().0
        };
        assert_eq!((row("UA").departures, row("UA").delay_minutes), (30, 90));
        assert_eq!((row("DL").departures, row("DL").delay_minutes), (11, -30));
        assert!((row("DL").mean_delay - -30.0 / 11.0).abs() < 1e-12);
        let key = ("2013-07-02".to_owned(), "JFK".to_owned(), "LAX".to_owned());
        let day = outcome.get(&tables.routes, &key).unwrap();
        assert_eq!((day.departures, day.delay_minutes), (20, 60));
        assert_eq!(outcome.len(), 2 + 3);
    }

    #[test]
    fn a_flight_without_a_carrier_halts_it() {
        let failure = testing::check::<Delays>(&[departure("U", "LAX", 1, 0)]).unwrap_err();
        assert!(failure.to_string().contains("no carrier"), "{failure}");
    }
}
