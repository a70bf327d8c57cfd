//! The part of the demonstration about derived state: modules over the flights, the past, a replay, an
//! upgrade, and whether it is all true.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{AIRCRAFT, Demo, STREAM, Server, shown};
use crate::process::{cargo, command, line_of, output, run, target_dir};

/// The modules in the order of their deployment: who reads tables comes after who makes them.
const MODULES: [&str; 5] = [
    "positions",
    "delays",
    "late-aircraft",
    "top-routes",
    "arrivals",
];
/// The code that `delays` is upgraded to.
const NEXT: &str = "delays-next";
/// The moment that is asked about.
const NOON: &str = "2013-07-04T12:00:00Z";
/// Departures and cancellations of the year, as examples/flights/PROVENANCE.md counts them.
const DEPARTURES: u64 = 328_521;
const CANCELLED: u64 = 8_255;
/// An aircraft this many minutes behind its plan is late, says the module `late-aircraft`.
const LATE_MINUTES: i64 = 60;
const PARTITIONS: u32 = 4;

/// What was seen before the upgrade and must be seen again after it.
struct Seen {
    /// The sequences up to which things had happened at noon, as a token.
    noon: String,
    /// The answer about the aircraft, without what is of no account.
    place: Value,
    /// Fingerprints of `positions` and of `delays` as of then, by partition.
    positions: BTreeMap<u64, String>,
    delays: BTreeMap<u64, String>,
}

/// Builds the modules, all in one call: they share most of what they need.
pub(super) fn build() -> Result<()> {
    println!("==> Building the modules of the example (WebAssembly)");
    let mut build = cargo();
    build.args(["build", "--locked", "--profile", "guest"]);
    build.args(["--target", "wasm32-unknown-unknown", "--target-dir"]);
    build.arg(target_dir().join("modules"));
    for name in MODULES.iter().chain([&NEXT]) {
        build.args(["--package", &format!("truthdb-example-{name}")]);
    }
    run(&mut build)
}

/// Where [`build`] puts a module.
fn file(name: &str) -> PathBuf {
    let file = format!("truthdb_example_{}.wasm", name.replace('-', "_"));
    target_dir()
        .join("modules/wasm32-unknown-unknown/guest")
        .join(file)
}

/// The JSON values of an output, one a line.
fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).context("reading an answer"))
        .collect()
}

/// The one JSON value of an output.
fn one(command: &mut Command) -> Result<Value> {
    let text = output(command.arg("--json"))?;
    serde_json::from_str(&text).context("reading an answer")
}

/// Fingerprints by partition, of a list of stamps.
fn fingerprints(stamps: &Value) -> BTreeMap<u64, String> {
    let stamps = stamps.as_array().map(Vec::as_slice).unwrap_or_default();
    let pair = |stamp: &Value| {
        let partition = stamp["partition"].as_u64()?;
        Some((partition, stamp["fingerprint"].as_str()?.to_owned()))
    };
    stamps.iter().filter_map(pair).collect()
}

impl Demo {
    /// State from the log, from the first deployment to the last verification. The server is stopped on
    /// the way, for a replay of its files; the answer is the one that runs at the end.
    pub(super) fn show_state(&self, server: Server, year: &str) -> Result<Server> {
        let is_new = self.deploy()?;
        let seen = self.show_past(year)?;
        self.show_late(year)?;
        self.show_routes()?;
        self.show_validator()?;
        let server = self.show_replay(server, &seen)?;
        self.show_upgrade(&seen, is_new)?;
        println!(
            "\n==> Is the state true? Everything is computed again from the first event and compared"
        );
        run(self.admin("replay").arg("--verify"))?;
        Ok(server)
    }

    /// Deploys the modules, unless they are there; says whether they are new.
    fn deploy(&self) -> Result<bool> {
        let listed = one(&mut self.module(&["list"]))?.to_string();
        if MODULES
            .iter()
            .all(|name| listed.contains(&format!("\"{name}\"")))
        {
            println!("\n==> The modules of the last time are deployed");
            run(&mut self.module(&["list"]))?;
            return Ok(false);
        }
        println!("\n==> Deploying modules: two reducers, a processor, a query, a validator");
        for name in MODULES {
            run(self.module(&["upgrade"]).arg(file(name)).arg("--wait"))?;
        }
        run(&mut self.module(&["list"]))?;
        Ok(true)
    }

    /// A call about modules.
    fn module(&self, words: &[&str]) -> Command {
        self.about_state("module", words)
    }

    /// A question.
    fn query(&self, words: &[&str]) -> Command {
        self.about_state("query", words)
    }

    /// A verb whose own verbs take the server.
    fn about_state(&self, verb: &str, words: &[&str]) -> Command {
        let mut command = command(&self.truthdb);
        command.arg(verb).args(words);
        command.args(["--grpc", &format!("127.0.0.1:{}", self.http_port)]);
        command
    }

    /// Where the aircraft was at noon: by the time in the events, not by that of the log.
    fn show_past(&self, year: &str) -> Result<Seen> {
        println!("\n==> Where was {AIRCRAFT} on 4 July 2013 at noon UTC?");
        println!(
            "    The log got these events today; that is what --as-of asks for. In 2013 there was no log:"
        );
        let get = ["get", "positions", "aircraft", AIRCRAFT];
        run(self.query(&get).args(["--as-of", NOON]))?;
        let answer = one(self.query(&get).args(["--as-of", NOON]))?;
        ensure!(
            answer["rows"] == Value::Array(Vec::new()),
            "there is state as of a time before the log"
        );
        println!(
            "    When something happened in the world is in the events. In each partition they are in its order,"
        );
        println!("    so that the last one before noon is found by halving:");
        let noon = self.noon()?;
        println!("    As of these sequences the state is that of noon, and will be for ever:");
        run(self.query(&get).args(["--at", &noon]))?;
        let answer = one(self.query(&get).args(["--at", &noon]))?;
        let text = answer["rows"][0]["value_text"]
            .as_str()
            .context("the aircraft has no place at noon")?;
        let place: Value = serde_json::from_str(text).context("reading the place")?;
        let (event, at) = last_move(year)?;
        ensure!(
            place["flight"] == event["payload"]["flight"] && place["since"] == at.as_str(),
            "the place {place} is not that of the last event before noon: {event}"
        );
        println!("    Its own stream says the same: the last event before noon is of {at}.");
        let delays = self.end_of_scan(&noon)?;
        Ok(Seen {
            place,
            positions: fingerprints(&answer["stamps"]),
            delays: fingerprints(&delays["stamps"]),
            noon,
        })
    }

    /// What ends a scan of `delays` as of a moment: from what it was computed.
    fn end_of_scan(&self, moment: &str) -> Result<Value> {
        let mut scan = self.query(&["scan", "delays", "carriers", "--limit", "1"]);
        let text = output(scan.args(["--at", moment, "--json"]))?;
        lines(&text)?.pop().context("a scan without an end")
    }

    /// The last sequences of all partitions before noon, as a token.
    fn noon(&self) -> Result<String> {
        let mut places = Vec::new();
        for partition in 0..PARTITIONS {
            let (mut low, mut high) = (1u64, 1u64 << 32);
            while low < high {
                let middle = low.midpoint(high);
                if self.happened_before_noon(partition, middle)? {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            places.push(format!("{partition}:{}", low - 1));
        }
        let mut example = self.first_from(0, 1);
        println!("    $ {}   (and so on)", line_of(example.arg("--json")));
        Ok(places.join(","))
    }

    /// The first event of an aircraft from a sequence on.
    fn first_from(&self, partition: u32, sequence: u64) -> Command {
        let mut read = self.online("read");
        read.args(["--partition", &partition.to_string()])
            .args(["--from-sequence", &sequence.to_string()])
            .args(["--prefix", "aircraft/", "--limit", "1"]);
        read
    }

    fn happened_before_noon(&self, partition: u32, sequence: u64) -> Result<bool> {
        let text = output(self.first_from(partition, sequence).arg("--json"))?;
        let Some(event) = lines(&text)?.pop() else {
            return Ok(false);
        };
        let at = event["metadata"]["business_time"].as_str();
        Ok(at.context("an event without a time")? < NOON)
    }

    /// The events that the processor derived, against what the aircraft's own stream says.
    fn show_late(&self, year: &str) -> Result<()> {
        println!("\n==> Events derived from events: when {AIRCRAFT} became late");
        let stream = format!("late/{AIRCRAFT}");
        run(self.online("read").args([&stream, "--limit", "3"]))?;
        let derived = lines(&output(self.online("read").args([&stream, "--json"]))?)?;
        let expected = became_late(&lines(year)?);
        println!("    ... {} times in the year", derived.len());
        ensure!(
            derived.len() == expected && expected > 0,
            "{stream} should have {expected} events"
        );
        Ok(())
    }

    fn show_routes(&self) -> Result<()> {
        println!("\n==> Departures and mean delay by airport and carrier");
        let scan = ["scan", "delays", "carriers"];
        run(self
            .query(&scan)
            .args(["--prefix", "text:JFK", "--partition", "0"]))?;
        let departures = self.sum_of_carriers("departures")?;
        println!("    ... {departures} departures in all");
        ensure!(departures == DEPARTURES, "there should be {DEPARTURES}");

        println!("\n==> The five most delayed routes of July with at least 100 departures");
        let question = "5 2013-07-01 2013-07-31 100";
        let ask = ["run", "top-routes", question];
        run(&mut self.query(&ask))?;
        let answer = one(&mut self.query(&ask))?;
        let rows = answer["rows"].as_array().context("no rows")?;
        ensure!(rows.len() == 5, "there should be five routes");
        Ok(())
    }

    /// The sum of a number over all rows of `delays`.
    fn sum_of_carriers(&self, name: &str) -> Result<u64> {
        let text = output(self.query(&["scan", "delays", "carriers"]).arg("--json"))?;
        let mut sum = 0;
        for row in lines(&text)? {
            if let Some(text) = row["value_text"].as_str() {
                let value: Value = serde_json::from_str(text).context("reading a row")?;
                sum += value[name].as_u64().with_context(|| format!("no {name}"))?;
            }
        }
        Ok(sum)
    }

    fn show_validator(&self) -> Result<()> {
        println!("\n==> Nothing arrives that has not departed: the validator refuses this");
        let payload = r#"{"flight":"UA9999","origin":"EWR","destination":"IAH","arrived":"2013-12-31T23:00:00Z"}"#;
        let mut append = self.online("append");
        append.args([STREAM, "FlightArrived", payload]);
        append.args([
            "--metadata",
            "correlation_id=UA9999/EWR/2013-12-31T20:00:00Z",
        ]);
        println!("    $ {}", line_of(&append));
        let refused = append.output().context("starting truthdb")?;
        let said = String::from_utf8_lossy(&refused.stderr);
        for line in said.lines() {
            println!("    {line}");
        }
        ensure!(
            !refused.status.success() && said.contains("has not departed"),
            "the arrival was not refused"
        );
        Ok(())
    }

    /// The state of noon once more, by a replay of the stopped server's files from the first event.
    fn show_replay(&self, server: Server, seen: &Seen) -> Result<Server> {
        println!(
            "\n==> The same moment by a replay from the first event, of the stopped server's files"
        );
        server.stop()?;
        let rows = self.folder.join("positions.json");
        let mut replay = self.offline("replay");
        replay
            .args(["positions", "--at", &seen.noon, "--rows-to"])
            .arg(&rows);
        run(&mut replay)?;
        let states = lines(&output(replay.arg("--json"))?)?;
        ensure!(
            fingerprints(&Value::Array(states)) == seen.positions,
            "the replay gives another state than the server did"
        );
        let text = std::fs::read_to_string(&rows).context("reading the replayed rows")?;
        let replayed = lines(&text)?
            .into_iter()
            .find(|row| row["table"] == "aircraft" && row["key_text"] == AIRCRAFT)
            .context("the replay knows no such aircraft")?;
        let text = replayed["value_text"].as_str().context("a row as text")?;
        let place: Value = serde_json::from_str(text).context("reading the place")?;
        ensure!(place == seen.place, "the replay says {place}");
        println!(
            "    The same place and the same fingerprints. All rows: {}",
            shown(&rows)
        );
        println!(
            "\n==> What would other code have made of these events? Nothing is deployed for that"
        );
        let mut compare = self.offline("replay");
        compare
            .args(["delays", "--partition", "0", "--rows-max", "3", "--compare"])
            .arg(file(NEXT));
        run(&mut compare)?;
        self.serve()
    }

    /// Upgrades `delays`, and asks about the past again.
    fn show_upgrade(&self, seen: &Seen, is_new: bool) -> Result<()> {
        if is_new {
            println!("\n==> Upgrading: new tables from the first event, while the old ones answer");
            run(self.module(&["upgrade"]).arg(file(NEXT)).arg("--wait"))?;
        }
        run(&mut self.module(&["status", "delays"]))?;
        let scan = ["scan", "delays", "carriers"];
        run(self
            .query(&scan)
            .args(["--prefix", "text:JFK", "--partition", "0"]))?;
        let (departures, cancelled) = (
            self.sum_of_carriers("departures")?,
            self.sum_of_carriers("cancelled")?,
        );
        println!("    ... {departures} departures and {cancelled} cancellations in all");
        ensure!(
            (departures, cancelled) == (DEPARTURES, CANCELLED),
            "there should be {DEPARTURES} and {CANCELLED}"
        );
        println!("\n==> The past stays what it was: before the upgrade the old code answers");
        let at_noon = [&scan[..], &["--prefix", "text:JFK", "--partition", "0"]].concat();
        run(self.query(&at_noon).args(["--at", &seen.noon]))?;
        let end = self.end_of_scan(&seen.noon)?;
        ensure!(
            fingerprints(&end["stamps"]) == seen.delays,
            "the upgrade has changed the past"
        );
        Ok(())
    }
}

/// The aircraft's last departure or arrival before noon, and its time in the world.
fn last_move(year: &str) -> Result<(Value, String)> {
    let time = |event: &Value| {
        event["metadata"]["business_time"]
            .as_str()
            .map(str::to_owned)
    };
    lines(year)?
        .into_iter()
        .filter(|event| event["type"] == "FlightDeparted" || event["type"] == "FlightArrived")
        .filter_map(|event| time(&event).map(|at| (event, at)))
        .take_while(|(_, at)| at.as_str() < NOON)
        .last()
        .context("the aircraft did not move before noon")
}

/// How often an aircraft became late, by the events of its stream.
fn became_late(events: &[Value]) -> usize {
    let mut is_late = false;
    let mut times = 0;
    for event in events {
        let is_move = event["type"] == "FlightDeparted" || event["type"] == "FlightArrived";
        let Some(delay) = event["payload"]["delay_minutes"]
            .as_i64()
            .filter(|_| is_move)
        else {
            continue;
        };
        times += usize::from(delay >= LATE_MINUTES && !is_late);
        is_late = delay >= LATE_MINUTES;
    }
    times
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lateness_counts_from_its_beginning_to_its_end() {
        let event =
            |kind: &str, delay: Value| json!({"type": kind, "payload": {"delay_minutes": delay}});
        let events = [
            event("FlightDeparted", json!(60)),
            event("FlightScheduled", json!(0)),
            event("FlightArrived", json!(90)),
            event("FlightArrived", Value::Null),
            event("FlightDeparted", json!(10)),
            event("FlightDeparted", json!(61)),
        ];
        assert_eq!(became_late(&events), 2);
    }

    #[test]
    fn the_last_move_is_before_noon_and_no_plan() {
        let event = |kind: &str, at: &str| {
            json!({"type": kind, "metadata": {"business_time": at}}).to_string()
        };
        let year = [
            event("FlightDeparted", "2013-07-04T09:00:00Z"),
            event("FlightArrived", "2013-07-04T11:59:00Z"),
            event("FlightScheduled", "2013-07-04T11:59:00Z"),
            event("FlightDeparted", "2013-07-04T12:00:00Z"),
        ];
        let (found, at) = last_move(&year.join("\n")).unwrap();
        assert_eq!(found["type"], "FlightArrived");
        assert_eq!(at, "2013-07-04T11:59:00Z");
        assert!(last_move("").is_err());
    }
}
