//! A validator that reads the flights in the air from the module `positions`: nothing arrives that has
//! not departed.

use serde::Deserialize;
use truthdb_sdk::Json;
use truthdb_sdk::prelude::*;

/// There is no departure of this flight that has not ended.
const NOT_IN_THE_AIR: u32 = 1;

/// The payloads of `FlightDeparted` and `FlightArrived`, as far as they matter here.
#[derive(Debug, Deserialize)]
pub struct Moved {
    flight: String,
}

truthdb_sdk::validator! {
    /// Refuses an arrival without a departure.
    pub Arrivals = "arrivals";
    tables {
        /// When it departed, by registration and flight.
        airborne: Table<(String, String), String> = 1 of "positions",
    }
    on "aircraft/*" / "FlightDeparted" (Json<Moved>) => departed;
    on "aircraft/*" / "FlightArrived" (Json<Moved>) => arrived;
}

/// A departure needs nothing but a payload that says of which flight: what does not would halt `positions`.
fn departed(_: &Tables, _: &Event<'_>, _: Json<Moved>) -> Result<(), Rejection> {
    Ok(())
}

fn arrived(tables: &Tables, event: &Event<'_>, Json(moved): Json<Moved>) -> Result<(), Rejection> {
    let key = (aircraft(event).to_owned(), flight_key(event, &moved.flight));
    let mut is_airborne = tables.airborne.get(&key).is_some();
    // What comes earlier in the same batch is in no table yet.
    for earlier in event.earlier().filter(|one| one.stream() == event.stream()) {
        let of = earlier.decode::<Json<Moved>>().map(|Json(moved)| moved);
        if of.is_ok_and(|moved| flight_key(&earlier, &moved.flight) == key.1) {
            is_airborne = earlier.event_type() == "FlightDeparted";
        }
    }
    if is_airborne {
        return Ok(());
    }
    Err(Rejection::new(
        NOT_IN_THE_AIR,
        format!(
            "flight {} of {} has not departed, or has arrived before",
            key.1, key.0
        ),
    ))
}

fn aircraft<'a>(event: &Event<'a>) -> &'a str {
    let stream = event.stream();
    stream.split_once('/').map_or(stream, |(_, name)| name)
}

/// As `positions` has it.
fn flight_key(event: &Event<'_>, flight: &str) -> String {
    event
        .metadata("correlation_id")
        .unwrap_or(flight)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, TestEvent};

    use super::*;

    fn event(event_type: &str, flight: &str) -> TestEvent {
        let payload = format!(r#"{{"flight":"{flight}"}}"#);
        TestEvent::new("aircraft/N1", event_type, payload)
            .metadata("correlation_id", &format!("{flight}/day"))
    }

    fn codes(events: &[TestEvent]) -> Vec<Option<u32>> {
        testing::validate::<Arrivals>(&[], events)
            .iter()
            .map(|verdict| verdict.as_ref().err().map(|rejection| rejection.code))
            .collect()
    }

    #[test]
    fn what_departs_earlier_in_the_batch_may_arrive_once() {
        let verdicts = codes(&[
            event("FlightArrived", "UA1"),
            event("FlightDeparted", "UA1"),
            event("FlightArrived", "UA2"),
            event("FlightArrived", "UA1"),
            event("FlightArrived", "UA1"),
        ]);
        let no = Some(NOT_IN_THE_AIR);
        assert_eq!(verdicts, [no, None, no, None, no]);
    }

    #[test]
    fn another_aircraft_s_departure_does_not_count() {
        let departed = TestEvent::new("aircraft/N2", "FlightDeparted", r#"{"flight":"UA1"}"#);
        let arrived = TestEvent::new("aircraft/N1", "FlightArrived", r#"{"flight":"UA1"}"#);
        assert_eq!(codes(&[departed, arrived]), [None, Some(NOT_IN_THE_AIR)]);
    }

    #[test]
    fn a_payload_of_another_form_is_refused() {
        let wrong = TestEvent::new("aircraft/N1", "FlightDeparted", "at noon");
        assert_eq!(codes(&[wrong]), [Some(Rejection::BAD_PAYLOAD)]);
    }
}
