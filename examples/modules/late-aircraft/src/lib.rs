//! Says when an aircraft becomes late: one event `LateAircraft`, in the stream `late/<registration>`, at
//! the first departure or arrival that is an hour or more behind its plan. It is not said again until the
//! aircraft has been less late in between.

use serde::{Deserialize, Serialize};
use truthdb_sdk::Json;
use truthdb_sdk::prelude::*;

/// An aircraft this many minutes behind its plan is late.
const LATE_MINUTES: i32 = 60;
/// Flights that name no aircraft share this stream.
const UNKNOWN: &str = "unknown";

/// The payloads of `FlightDeparted` and `FlightArrived`, as far as they matter here.
#[derive(Debug, Deserialize)]
pub struct Moved {
    flight: String,
    origin: String,
    destination: String,
    #[serde(alias = "arrived")]
    departed: String,
    delay_minutes: Option<i32>,
}

/// The payload of `LateAircraft`.
#[derive(Debug, Serialize)]
struct LateAircraft<'a> {
    aircraft: &'a str,
    flight: &'a str,
    airport: &'a str,
    at: &'a str,
    delay_minutes: i32,
}

truthdb_sdk::processor! {
    /// Events when aircraft become late.
    pub Late = "late-aircraft";
    tables {
        /// The aircraft that are late now, and by how many minutes.
        late: Table<String, i32> = 1,
    }
    on "aircraft/*" / "FlightDeparted" (Json<Moved>) => departed;
    on "aircraft/*" / "FlightArrived" (Json<Moved>) => arrived;
}

fn departed(
    tables: &Tables,
    event: &Event<'_>,
    Json(moved): Json<Moved>,
    out: &mut Emitter,
) -> Result<(), Fault> {
    seen(tables, event, &moved, &moved.origin, out)
}

fn arrived(
    tables: &Tables,
    event: &Event<'_>,
    Json(moved): Json<Moved>,
    out: &mut Emitter,
) -> Result<(), Fault> {
    seen(tables, event, &moved, &moved.destination, out)
}

fn seen(
    tables: &Tables,
    event: &Event<'_>,
    moved: &Moved,
    airport: &str,
    out: &mut Emitter,
) -> Result<(), Fault> {
    let stream = event.stream();
    let aircraft = stream.split_once('/').map_or(stream, |(_, name)| name);
    // Who arrived after a diversion has no delay in the data: that says nothing either way.
    let Some(delay_minutes) = moved.delay_minutes.filter(|_| aircraft != UNKNOWN) else {
        return Ok(());
    };
    let key = aircraft.to_owned();
    if delay_minutes < LATE_MINUTES {
        tables.late.delete(&key);
        return Ok(());
    }
    if tables.late.get(&key).is_none() {
        let said = LateAircraft {
            aircraft,
            flight: &moved.flight,
            airport,
            at: &moved.departed,
            delay_minutes,
        };
        let payload = serde_json::to_vec(&said)
            .map_err(|error| Fault::new(format!("event {}: {error}", event.sequence())))?;
        let stream = format!("late/{aircraft}");
        out.emit(&stream, "LateAircraft", "application/json", &payload);
    }
    tables.late.set(&key, &delay_minutes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use truthdb_sdk::testing::{self, TestEvent};

    use super::*;

    fn moved(aircraft: &str, arrived: bool, delay: Option<i32>) -> TestEvent {
        let (event_type, at) = if arrived {
            ("FlightArrived", "arrived")
        } else {
            ("FlightDeparted", "departed")
        };
        let delay = delay.map_or_else(|| "null".to_owned(), |delay| delay.to_string());
        let payload = format!(
            r#"{{"flight":"UA1","origin":"EWR","destination":"IAH",
                "{at}":"2013-01-01T10:00:00Z","delay_minutes":{delay}}}"#
        );
        TestEvent::new(&format!("aircraft/{aircraft}"), event_type, payload)
    }

    #[test]
    fn it_is_said_once_for_each_time_however_it_is_cut() {
        let events = [
            moved("N1", false, Some(59)),
            moved("N1", true, Some(60)),
            moved("N1", false, Some(90)),
            moved("N1", true, None),
            moved("N1", false, Some(300)),
            moved("N1", true, Some(10)),
            moved("N1", false, Some(61)),
            moved("unknown", false, Some(500)),
            moved("N2", false, Some(0)),
        ];
        let outcome = testing::check::<Late>(&events).unwrap();
        let sources: Vec<usize> = outcome.emits.iter().map(|emit| emit.source).collect();
        assert_eq!(sources, [1, 6]);
        let first = &outcome.emits[0];
        assert_eq!(first.stream, "late/N1");
        assert_eq!(
            String::from_utf8_lossy(&first.payload),
            r#"{"aircraft":"N1","flight":"UA1","airport":"IAH","at":"2013-01-01T10:00:00Z","delay_minutes":60}"#
        );
        let late = outcome.get(&Late::tables().late, &"N1".to_owned());
        assert_eq!((late, outcome.len()), (Some(61), 1));
    }
}
