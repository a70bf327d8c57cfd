//! A module that looks for a world outside: clock, random numbers, files, arguments, output. It is built
//! for preview 1 of WASI, runs under the profile *deterministic* only, and writes what it found into its
//! table, so that tests can see that every look is a function of the log.

use std::hash::BuildHasher as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use truthdb_sdk::prelude::*;

truthdb_sdk::reducer! {
    /// Looks around.
    pub Worldly = "worldly";
    tables { found: Table<String, u64> = 1 }
    on "world" / "look" (()) => look;
    on "world" / "sleep" (()) => sleep;
    on "world" / "exit" (()) => exit;
}

#[allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "to look at the clock and to print is what this module is for"
)]
fn look(tables: &Tables, event: &Event<'_>, _: ()) -> Result<(), Fault> {
    let found = |what: &str, value: u64| {
        let key = format!("{} {what}", event.sequence());
        tables.found.set(&key, &value);
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Fault::new("the clock is before 1970"))?;
    found("time", u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    found("random", std::hash::RandomState::new().hash_one(0));
    found("arguments", std::env::args().count() as u64);
    found("variables", std::env::vars().count() as u64);
    found("file", u64::from(std::fs::read("/etc/hostname").is_ok()));
    println!("standard output of {}", event.sequence());
    eprint!("standard error without an end of line");
    Ok(())
}

#[allow(
    clippy::disallowed_methods,
    reason = "to sleep is what this module is for"
)]
fn sleep(tables: &Tables, event: &Event<'_>, _: ()) -> Result<(), Fault> {
    let begin = std::time::Instant::now();
    std::thread::sleep(Duration::from_secs(3600));
    let key = format!("{} slept", event.sequence());
    let slept = begin.elapsed().as_nanos();
    tables
        .found
        .set(&key, &u64::try_from(slept).unwrap_or(u64::MAX));
    Ok(())
}

fn exit(_: &Tables, _: &Event<'_>, _: ()) -> Result<(), Fault> {
    std::process::exit(3)
}
