//! States of a long past: where snapshots of it are, and what is read of it.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

mod support;

use support::Machine;
use truthdb_compute::*;

const BATCH_EVENTS: u64 = 2048;
const STREAMS: u64 = 300;

/// Appends batches that go on with event `first`; each event says its number.
fn append(machine: &mut Machine, first: u64, batches: u64) {
    for batch in 0..batches {
        let events: Vec<(String, String)> = (0..BATCH_EVENTS)
            .map(|n| {
                let number = first + batch * BATCH_EVENTS + n;
                let stream = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % STREAMS;
                (format!("account-{stream}"), number.to_string())
            })
            .collect();
        let batch: Vec<(&str, &str, &[u8])> = events
            .iter()
            .map(|(stream, payload)| (stream.as_str(), "order", payload.as_bytes()))
            .collect();
        machine.append(&batch);
    }
}

fn get(machine: &Machine, stream: u64, sequence: u64) -> RowsAnswer {
    let request = GetRequest {
        module: "tally".to_owned(),
        table: "last".to_owned(),
        key: format!("account-{stream}").into_bytes(),
        partition: None,
        options: ReadOptions {
            at: At::Token(Token::of(0, sequence)),
            ..ReadOptions::default()
        },
    };
    machine.compute().get(&request).unwrap()
}

/// The same machine without any derived file, whose answers come from the events alone.
fn from_the_log(machine: &mut Machine) {
    machine.kill();
    for path in machine.derived_files() {
        machine.world.remove_file(&path).unwrap();
    }
    machine.config.compute = false;
    machine.open();
}

#[test]
fn a_rebuild_leaves_snapshots_on_its_way() {
    let mut machine = Machine::new(1);
    machine.config.snapshot_every_events = 10_000;
    machine.config.retained_views = 1;
    machine.restart();
    append(&mut machine, 0, 60);
    machine.activate(b"tally", ActivationMode::Rebuild);
    machine.settle();
    append(&mut machine, 60 * BATCH_EVENTS, 6);
    machine.settle();
    let sequences = |machine: &Machine| -> Vec<u64> {
        let snapshots = machine.compute().snapshots(None).unwrap();
        snapshots.iter().map(|snapshot| snapshot.sequence).collect()
    };
    let first = sequences(&machine);
    let farthest = first
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap();
    assert!(first[0] < 50_000 && farthest < 60_000, "{first:?}");

    // A rebuild beside the generation that answers leaves its own, and takes nothing from the other.
    machine.activate(b"tally-impure", ActivationMode::Rebuild);
    machine.settle();
    let second = sequences(&machine);
    assert!(first.iter().all(|sequence| second.contains(sequence)));
    let added = second
        .iter()
        .filter(|s| !first.contains(s) && **s < 100_000);
    assert!(added.count() >= 2, "{first:?} {second:?}");

    machine.restart();
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink);
    let report = report.unwrap();
    assert_eq!(report.differences, []);
    assert!(
        report.modules.iter().all(|m| m.snapshots >= 2),
        "{report:?}"
    );
    let last = machine.engine().committed(0);
    let points: Vec<u64> = (1..20).map(|n| n * 6101 % last).collect();
    let ask = |machine: &Machine| -> Vec<_> {
        let counts = |at: &u64| machine.rows("tally", "counts", At::Token(Token::of(0, *at)));
        points.iter().map(counts).collect()
    };
    let answers = ask(&machine);
    from_the_log(&mut machine);
    assert_eq!(ask(&machine), answers);
}

#[test]
fn far_from_a_snapshot_a_question_is_answered_for_its_rows_alone() {
    let mut machine = Machine::new(1);
    machine.config.retained_views = 1;
    machine.restart();
    machine.activate(b"tally", ActivationMode::Rebuild);
    append(&mut machine, 0, 2);
    let reply = machine.compute().submit_snapshot(0);
    machine.wait(&reply);
    append(&mut machine, 2 * BATCH_EVENTS, 60);
    machine.settle();
    machine.restart();
    let last = machine.engine().committed(0);
    let moment = last - 3000;
    let scan = |machine: &Machine| machine.rows("tally", "last", At::Token(Token::of(0, moment)));
    let gets = |machine: &Machine| -> Vec<_> {
        // One that nobody has, and more than are answered one by one.
        let streams = [7, 299, 1000, 8, 9, 10, 11, 12];
        streams
            .iter()
            .map(|stream| get(machine, *stream, moment))
            .collect()
    };
    let answers = (gets(&machine), scan(&machine), gets(&machine));
    assert_eq!(answers.0[2].rows, []);
    assert!(answers.0.iter().filter(|one| one.rows.len() == 1).count() == 7);
    // A scan first, then rows in it.
    machine.restart();
    assert_eq!(
        (scan(&machine), gets(&machine)),
        (answers.1.clone(), answers.0.clone())
    );
    from_the_log(&mut machine);
    assert_eq!((gets(&machine), scan(&machine)), (answers.0, answers.1));
}

#[test]
fn an_operator_reads_the_past_where_it_lies_and_comes_over_damage() {
    let mut machine = Machine::new(1);
    machine.config.retained_views = 1;
    machine.restart();
    machine.activate(b"tally", ActivationMode::Rebuild);
    machine.activate(b"sum", ActivationMode::Rebuild);
    // A row that no delta after the snapshot has.
    machine.append(&[("s", "arrive", b"x"), ("s", "arrive", b"y")]);
    append(&mut machine, 0, 3);
    let reply = machine.compute().submit_snapshot(0);
    machine.wait(&reply);
    append(&mut machine, 3 * BATCH_EVENTS, 3);
    machine.settle();
    let moment = machine.engine().committed(0) - 100;
    let ask = |machine: &Machine| {
        let request = QueryRequest {
            operator: "sum".to_owned(),
            arguments: b"arrive".to_vec(),
            partition: None,
            options: ReadOptions {
                at: At::Token(Token::of(0, moment)),
                ..ReadOptions::default()
            },
        };
        machine.compute().query(&request).unwrap()
    };
    machine.restart();
    let answer = ask(&machine);
    assert_eq!(answer.rows[0].value, 2_u64.to_le_bytes());
    machine.kill();
    let image = machine.world.image();
    let is_chunk = |path: &String| path.contains("/chunks/");
    let chunks: Vec<String> = machine.world.paths().into_iter().filter(is_chunk).collect();
    assert!(!chunks.is_empty());
    for path in chunks {
        machine.world.restore(&image);
        machine.open();
        let bytes = machine.world.read_file(&path).unwrap().len() as u64;
        machine.world.corrupt(&path, bytes / 2, 0x10).unwrap();
        assert_eq!(ask(&machine), answer, "{path}");
        machine.kill();
    }
    machine.world.restore(&image);
    machine.open();
    from_the_log(&mut machine);
    assert_eq!(ask(&machine), answer);
}
