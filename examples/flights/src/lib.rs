//! A year of real flights as about a million events: what happened to each aircraft, in the order of time.
//!
//! [`Flights`] reads the data that is compiled in, [`History`] turns it into events. Loading them over the
//! network is the business of the program `flights-load`.
//!
//! Rules, where the data leaves a choice:
//! - A flight is published 24 hours before its scheduled departure (`FlightScheduled`); the data
//!   does not say when
//!   it really was.
//! - `FlightDeparted` is at the scheduled departure plus the delay, exact to the minute, in UTC.
//! - The data gives arrivals as what the clock at the destination showed. `FlightArrived` is the
//!   first moment at
//!   which that clock showed it, not earlier than the departure plus the minutes in the air. For a
//!   flight that was
//!   diverted first (no minutes in the air) these are taken as its distance at 600 miles an hour,
//!   the least possible.
//! - `FlightCancelled` is at the scheduled departure; the data does not say when it was decided.
//! - A flight that departed and has no arrival in the data (458) ends with its departure.
//!
//! Each aircraft is a stream, `aircraft/<registration>`; flights that name none share `aircraft/unknown`.
//! Event ids follow from the flight and the type, so that loading twice appends once.
//!
//! This crate does not talk to a server and does not know partitions.

mod airports;
mod data;
mod history;
mod minute;

pub use airports::Airports;
pub use data::{Flight, Flights};
pub use history::{EventKind, History, Moment, batches};
pub use minute::Minute;
