//! The events: which, when, in which order, and their bytes.

use anyhow::{Context as _, Result};
use serde_json::json;
use truthdb_event::{EventBuilder, EventId};

use crate::{Airports, Flight, Flights, Minute};

/// A flight is published this long before its scheduled departure.
const PUBLISHED_MINUTES_BEFORE: i32 = 24 * 60;
/// 600 miles an hour: no airliner is faster over ground for a whole flight.
const MILES_A_MINUTE_MAX: i32 = 10;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A flight was published.
    Scheduled,
    /// It will not take place.
    Cancelled,
    /// It left the gate.
    Departed,
    /// It reached the gate of its destination.
    Arrived,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [EventKind; 4] = [
        EventKind::Scheduled,
        EventKind::Cancelled,
        EventKind::Departed,
        EventKind::Arrived,
    ];

    /// The event type.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Scheduled => "FlightScheduled",
            EventKind::Cancelled => "FlightCancelled",
            EventKind::Departed => "FlightDeparted",
            EventKind::Arrived => "FlightArrived",
        }
    }
}

/// Something that happened to a flight at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub at: Minute,
    /// What.
    pub kind: EventKind,
    /// Index of the flight in the order of the file.
    flight: u32,
}

/// All that happened to all flights, in the order of time; what happened in the same minute stands
/// in the order
/// of the file.
#[derive(Debug)]
pub struct History {
    flights: Flights,
    moments: Vec<Moment>,
}

impl History {
    /// Loads the data set and puts its 1,001,615 events in order.
    ///
    /// # Errors
    ///
    /// Data that cannot be read, which would be a defect of this crate.
    pub fn load() -> Result<History> {
        let flights = Flights::load()?;
        let airports = Airports::load()?;
        let mut moments = Vec::with_capacity(1 << 20);
        for (index, flight) in flights.as_slice().iter().enumerate() {
            let index = u32::try_from(index).context("too many flights")?;
            let mut add = |at, kind| {
                moments.push(Moment {
                    at,
                    kind,
                    flight: index,
                })
            };
            add(
                flight.scheduled + -PUBLISHED_MINUTES_BEFORE,
                EventKind::Scheduled,
            );
            let Some(delay) = flight.departure_delay else {
                add(flight.scheduled, EventKind::Cancelled);
                continue;
            };
            let departed = flight.scheduled + delay;
            add(departed, EventKind::Departed);
            if let Some(arrived) = arrival(&airports, flight, departed)? {
                add(arrived, EventKind::Arrived);
            }
        }
        // The moments of one flight have different times, so the file's order decides between flights only.
        moments.sort_by_key(|moment| (moment.at, moment.flight));
        Ok(History { flights, moments })
    }

    /// All moments in order.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// The flight that a moment is of.
    pub fn flight(&self, moment: Moment) -> &Flight {
        let index = usize::try_from(moment.flight).expect("an index in memory");
        &self.flights.as_slice()[index]
    }

    /// The stream that a moment belongs to.
    pub fn stream(&self, moment: Moment) -> String {
        format!(
            "aircraft/{}",
            self.flight(moment).aircraft.as_deref().unwrap_or("unknown")
        )
    }

    /// Hands the event of a moment, ready to be encoded, to `take`.
    pub fn event<T>(&self, moment: Moment, take: impl FnOnce(EventBuilder<'_>) -> T) -> T {
        let flight = self.flight(moment);
        let key = format!(
            "{}{}/{}/{}",
            flight.carrier, flight.number, flight.origin, flight.scheduled
        );
        let payload = payload(flight, moment).to_string();
        take(
            EventBuilder::new(&self.stream(moment), moment.kind.name())
                .id(event_id(&key, moment.kind))
                .content_type("application/json")
                .tag(&format!("carrier:{}", flight.carrier))
                .tag(&format!("origin:{}", flight.origin))
                .tag(&format!("dest:{}", flight.destination))
                .metadata("correlation_id", &key)
                .metadata("business_time", &moment.at.to_string())
                .payload(payload.as_bytes()),
        )
    }
}

/// Cuts moments into batches: the events of one hour, at most so many of them. A batch is one step of derived
/// state, so the state as of each full hour is one that was.
pub fn batches(moments: &[Moment], events_max: usize) -> impl Iterator<Item = &[Moment]> {
    moments
        .chunk_by(|one, other| one.at.hour() == other.at.hour())
        .flat_map(move |hour| hour.chunks(events_max))
}

/// When a flight that left at `departed` arrived, by the clock of its destination.
fn arrival(airports: &Airports, flight: &Flight, departed: Minute) -> Result<Option<Minute>> {
    let Some(clock) = flight.arrival_clock else {
        return Ok(None);
    };
    let least = i32::from(flight.distance_miles) / MILES_A_MINUTE_MAX;
    let earliest = departed + flight.air_minutes.unwrap_or(least);
    let arrived = airports.next(&flight.destination, clock, earliest);
    Ok(Some(arrived.with_context(|| {
        format!("no airport {}", flight.destination)
    })?))
}

fn payload(flight: &Flight, moment: Moment) -> serde_json::Value {
    let number = format!("{}{}", flight.carrier, flight.number);
    let route = (&flight.origin, &flight.destination);
    let at = moment.at.to_string();
    match moment.kind {
        EventKind::Scheduled => json!({
            "flight": number, "origin": route.0, "destination": route.1,
            "departure": flight.scheduled.to_string(), "distance_miles": flight.distance_miles,
        }),
        EventKind::Cancelled => json!({
            "flight": number, "origin": route.0, "destination": route.1,
            "departure": flight.scheduled.to_string(),
        }),
        EventKind::Departed => json!({
            "flight": number, "origin": route.0, "destination": route.1,
            "departed": at, "delay_minutes": flight.departure_delay,
        }),
        EventKind::Arrived => json!({
            "flight": number, "origin": route.0, "destination": route.1,
            "arrived": at, "delay_minutes": flight.arrival_delay, "air_minutes": flight.air_minutes,
        }),
    }
}

/// The id of an event: a hash of what it is about, in the form of a UUID of version 8.
fn event_id(flight_key: &str, kind: EventKind) -> EventId {
    let hash = blake3::hash(format!("{}/{flight_key}", kind.name()).as_bytes());
    let mut id: [u8; 16] = *hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    EventId::from_bytes(id)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::LazyLock;

    use truthdb_event::EventRef;

    use super::*;

    static HISTORY: LazyLock<History> = LazyLock::new(|| History::load().unwrap());

    #[test]
    fn there_is_each_event_once() {
        let count = |kind| {
            HISTORY
                .moments()
                .iter()
                .filter(|moment| moment.kind == kind)
                .count()
        };
        assert_eq!(
            EventKind::ALL.map(count),
            [336_776, 8_255, 328_521, 328_063]
        );
        assert_eq!(HISTORY.moments().len(), 1_001_615);
    }

    #[test]
    fn events_are_in_the_order_of_time() {
        assert!(
            HISTORY
                .moments()
                .is_sorted_by_key(|moment| (moment.at, moment.flight))
        );
        let first = HISTORY.moments().first().unwrap();
        assert_eq!(first.at.to_string(), "2012-12-31T10:15:00Z");
    }

    #[test]
    fn a_flight_is_scheduled_then_leaves_then_arrives() {
        let mut flights: BTreeMap<u32, Vec<Moment>> = BTreeMap::new();
        for moment in HISTORY.moments() {
            flights.entry(moment.flight).or_default().push(*moment);
        }
        for moments in flights.values() {
            let kinds: Vec<EventKind> = moments.iter().map(|moment| moment.kind).collect();
            let is_cancelled = kinds == [EventKind::Scheduled, EventKind::Cancelled];
            let is_flown = [
                EventKind::Scheduled,
                EventKind::Departed,
                EventKind::Arrived,
            ]
            .starts_with(&kinds);
            assert!(is_cancelled || is_flown && kinds.len() > 1, "{kinds:?}");
            assert!(moments.is_sorted_by(|a, b| a.at < b.at), "{moments:?}");
        }
    }

    #[test]
    fn arrivals_agree_with_schedule_and_delay() {
        // The data says each arrival twice: by the clock, and as a delay against the plan. Each gives a time.
        let airports = Airports::load().unwrap();
        let mut compared = 0;
        for moment in HISTORY
            .moments()
            .iter()
            .filter(|moment| moment.kind == EventKind::Arrived)
        {
            let flight = HISTORY.flight(*moment);
            let Some(delay) = flight.arrival_delay else {
                continue;
            };
            let least = i32::from(flight.distance_miles) / MILES_A_MINUTE_MAX;
            let planned = airports
                .next(
                    &flight.destination,
                    flight.scheduled_arrival_clock,
                    flight.scheduled + least,
                )
                .unwrap();
            assert_eq!(moment.at, planned + delay, "{flight:?}");
            compared += 1;
        }
        assert_eq!(compared, 327_346);
    }

    #[test]
    fn an_event_says_who_when_and_where() {
        let moment = *HISTORY
            .moments()
            .iter()
            .find(|moment| moment.kind == EventKind::Arrived)
            .unwrap();
        let mut bytes = Vec::new();
        HISTORY
            .event(moment, |event| event.encode_into(&mut bytes))
            .unwrap();
        let event = EventRef::parse(&bytes).unwrap();
        assert_eq!(event.event_type(), "FlightArrived");
        assert_eq!(event.stream(), HISTORY.stream(moment));
        assert_eq!(event.content_type(), "application/json");
        let metadata: BTreeMap<_, _> = event.metadata().collect();
        assert_eq!(metadata["business_time"], moment.at.to_string());
        let payload: serde_json::Value = serde_json::from_slice(event.payload()).unwrap();
        assert_eq!(payload["arrived"], moment.at.to_string());
    }

    #[test]
    fn event_ids_are_distinct_and_never_change() {
        let mut bytes = Vec::new();
        let mut ids = BTreeSet::new();
        for moment in HISTORY.moments() {
            bytes.clear();
            HISTORY
                .event(*moment, |event| event.encode_into(&mut bytes))
                .unwrap();
            ids.insert(EventRef::parse(&bytes).unwrap().id());
        }
        assert_eq!(ids.len(), HISTORY.moments().len());
        let known = event_id("UA1545/EWR/2013-01-01T10:15:00Z", EventKind::Departed);
        assert_eq!(known.to_string(), "0f810731-2e70-8ab6-b1e6-c46afb9d0406");
    }

    #[test]
    fn a_batch_is_of_one_hour_and_none_is_too_long() {
        let moments = &HISTORY.moments()[..20_000];
        let all: Vec<Moment> = batches(moments, 50).flatten().copied().collect();
        assert_eq!(all, moments);
        for batch in batches(moments, 50) {
            assert!((1..=50).contains(&batch.len()));
            let hour = batch[0].at.hour();
            assert!(batch.iter().all(|moment| moment.at.hour() == hour));
        }
    }

    #[test]
    fn one_aircraft_s_year_is_whole() {
        let year: Vec<_> = HISTORY
            .moments()
            .iter()
            .filter(|moment| HISTORY.stream(**moment) == "aircraft/N14228")
            .collect();
        assert_eq!(year.len(), 333);
    }
}
