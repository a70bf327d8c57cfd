//! Where each aircraft was last seen, and which flights are in the air: folded from departures and
//! arrivals. The rows of `aircraft` are JSON, to be read by people; `since` is the time of the event in
//! the world, which the payload carries, not the time at which the log got it.

use serde::{Deserialize, Serialize};
use truthdb_sdk::Json;
use truthdb_sdk::prelude::*;

/// Flights that name no aircraft share this stream: nobody can say where "it" is.
const UNKNOWN: &str = "unknown";

/// The last known place of an aircraft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Place {
    /// It stands at an airport, where a flight brought it.
    Landed {
        /// The airport.
        airport: String,
        /// The flight.
        flight: String,
        /// When it arrived.
        since: String,
    },
    /// It is in the air, or has vanished from the data on the way.
    Flying {
        /// Where it left.
        origin: String,
        /// Where it is bound.
        destination: String,
        /// The flight.
        flight: String,
        /// When it departed.
        since: String,
    },
}

/// The payload of `FlightDeparted`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Departed {
    flight: String,
    origin: String,
    destination: String,
    departed: String,
}

/// The payload of `FlightArrived`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Arrived {
    flight: String,
    destination: String,
    arrived: String,
}

truthdb_sdk::reducer! {
    /// Where each aircraft was last seen.
    pub Positions = "positions";
    tables {
        /// The last known place, by registration.
        aircraft: Table<String, Json<Place>> = 1,
        /// When it departed, by registration and flight (the event's `correlation_id`). Arrivals remove it.
        airborne: Table<(String, String), String> = 1,
    }
    on "aircraft/*" / "FlightDeparted" (Json<Departed>) => departed;
    on "aircraft/*" / "FlightArrived" (Json<Arrived>) => arrived;
}

fn departed(
    tables: &Tables,
    event: &Event<'_>,
    Json(departed): Json<Departed>,
) -> Result<(), Fault> {
    let aircraft = registration(event);
    let key = (aircraft.clone(), flight_key(event, &departed.flight));
    tables.airborne.set(&key, &departed.departed);
    if aircraft != UNKNOWN {
        let place = Place::Flying {
            origin: departed.origin,
            destination: departed.destination,
            flight: departed.flight,
            since: departed.departed,
        };
        tables.aircraft.set(&aircraft, &Json(place));
    }
    Ok(())
}

fn arrived(tables: &Tables, event: &Event<'_>, Json(arrived): Json<Arrived>) -> Result<(), Fault> {
    let aircraft = registration(event);
    let key = (aircraft.clone(), flight_key(event, &arrived.flight));
    tables.airborne.delete(&key);
    if aircraft != UNKNOWN {
        let place = Place::Landed {
            airport: arrived.destination,
            flight: arrived.flight,
            since: arrived.arrived,
        };
        tables.aircraft.set(&aircraft, &Json(place));
    }
    Ok(())
}

/// The stream's name after the slash.
fn registration(event: &Event<'_>) -> String {
    let stream = event.stream();
    stream
        .split_once('/')
        .map_or(stream, |(_, name)| name)
        .to_owned()
}

/// What ties the events of one flight together: its number alone comes back every day.
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

    fn departure(aircraft: &str, flight: &str, day: u32) -> TestEvent {
        let payload = format!(
            r#"{{"flight":"{flight}","origin":"EWR","destination":"IAH",
                "departed":"2013-01-{day:02}T10:00:00Z","delay_minutes":2}}"#
        );
        TestEvent::new(&format!("aircraft/{aircraft}"), "FlightDeparted", payload)
            .metadata("correlation_id", &format!("{flight}/{day}"))
    }

    fn arrival(aircraft: &str, flight: &str, day: u32) -> TestEvent {
        let payload = format!(
            r#"{{"flight":"{flight}","origin":"EWR","destination":"IAH",
                "arrived":"2013-01-{day:02}T14:00:00Z","delay_minutes":null}}"#
        );
        TestEvent::new(&format!("aircraft/{aircraft}"), "FlightArrived", payload)
            .metadata("correlation_id", &format!("{flight}/{day}"))
    }

    #[test]
    fn the_last_event_says_where_an_aircraft_is() {
        let mut events: Vec<TestEvent> = (1..30)
            .flat_map(|day| [departure("N1", "UA1", day), arrival("N1", "UA1", day)])
            .collect();
        events.push(departure("N2", "UA2", 3));
        let outcome = testing::check::<Positions>(&events).unwrap();
        let tables = Positions::tables();
        let place = |name: &str| outcome.get(&tables.aircraft, &name.to_owned()).unwrap().0;
        assert_eq!(
            place("N1"),
            Place::Landed {
                airport: "IAH".to_owned(),
                flight: "UA1".to_owned(),
                since: "2013-01-29T14:00:00Z".to_owned(),
            }
        );
        assert!(matches!(place("N2"), Place::Flying { .. }));
        // Two places, one flight in the air.
        assert_eq!(outcome.len(), 3);
        let key = ("N2".to_owned(), "UA2/3".to_owned());
        assert!(outcome.get(&tables.airborne, &key).is_some());
    }

    #[test]
    fn flights_of_no_aircraft_have_no_place_but_are_in_the_air() {
        let events = [
            departure("unknown", "UA1", 1),
            departure("unknown", "UA1", 2),
            arrival("unknown", "UA1", 1),
        ];
        let outcome = testing::check::<Positions>(&events).unwrap();
        assert_eq!(outcome.len(), 1);
    }

    #[test]
    fn a_payload_of_another_form_halts_it() {
        let event = TestEvent::new("aircraft/N1", "FlightDeparted", "{}");
        let failure = testing::check::<Positions>(&[event]).unwrap_err();
        assert!(failure.to_string().contains("missing field"), "{failure}");
    }
}
