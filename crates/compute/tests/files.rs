//! Delta logs and snapshots: they make a start quick and the past near, and are never needed.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

mod support;

use support::{LONG_NAME, Machine};
use truthdb_compute::*;
use truthdb_io::sim::{SimFault, SimOp};
use truthdb_module::NAME_BYTES_MAX;
use truthdb_state::{EventList, StatePlace, control_list_path};

/// A machine with a history over several memory starts, with a snapshot in the middle.
fn history(code: &[u8]) -> (Machine, Vec<RowsAnswer>) {
    let mut machine = Machine::new(1);
    machine.activate(code, ActivationMode::Rebuild);
    let mut seen = Vec::new();
    for round in 0..60_u64 {
        let events: Vec<(String, String)> = (0..200)
            .map(|n| (format!("s{}", n % 17), format!("{round}-{n}")))
            .collect();
        let batch: Vec<(&str, &str, &[u8])> = events
            .iter()
            .map(|(stream, payload)| (stream.as_str(), "order", payload.as_bytes()))
            .collect();
        machine.append(&batch);
        if round == 30 {
            let reply = machine.compute().submit_snapshot(0);
            machine.wait(&reply);
        }
        if round % 7 == 0 {
            machine.settle();
            seen.push(machine.rows("tally", "last", At::Now));
        }
    }
    machine.settle();
    seen.push(machine.rows("tally", "last", At::Now));
    (machine, seen)
}

fn check(machine: &Machine, seen: &[RowsAnswer], what: &str) {
    let last = seen.last().unwrap();
    let now = machine.rows("tally", "last", At::Now);
    assert_eq!(
        now.stamps[0].fingerprint, last.stamps[0].fingerprint,
        "{what}"
    );
    for expected in seen {
        let again = machine.rows("tally", "last", At::Token(expected.token()));
        assert_eq!(&again, expected, "{what}");
    }
}

#[test]
fn a_restart_goes_on_from_files_and_runs_few_events_again() {
    let (mut machine, seen) = history(b"tally");
    assert_eq!(machine.compute().snapshots(None).unwrap().len(), 1);
    machine.restart();
    let status = machine.compute().module("tally").unwrap();
    let events = status.generations[0].events;
    assert!(
        events < EPOCH_EVENTS + 400,
        "{events} events were given to the guest again"
    );
    check(&machine, &seen, "from files");
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    let module = &report.modules[0];
    assert!(
        module.snapshots == 1 && module.deltas >= 60 && module.live,
        "{module:?}"
    );
    assert!(module.checkpoints >= 1);
}

#[test]
fn without_any_derived_file_the_state_is_the_same() {
    for code in [&b"tally"[..], b"tally-impure"] {
        let (mut machine, seen) = history(code);
        machine.kill();
        for path in machine.derived_files() {
            machine.world.remove_file(&path).unwrap();
        }
        machine.open();
        check(&machine, &seen, "all deleted");
        // The fold that began anew passed the mark: its snapshot is there again, and the delta log.
        assert_eq!(machine.compute().snapshots(None).unwrap().len(), 1);
        machine.restart();
        check(&machine, &seen, "made again");
    }
}

#[test]
fn a_power_cut_that_takes_what_was_not_flushed_makes_no_difference() {
    let (mut machine, seen) = history(b"tally-impure");
    machine.crash();
    machine.open();
    check(&machine, &seen, "after a power cut");
}

#[test]
fn damage_to_any_derived_file_makes_no_difference() {
    let (mut machine, seen) = history(b"tally");
    machine.kill();
    let image = machine.world.image();
    for path in machine.derived_files() {
        for part in [1, 3, 9] {
            machine.world.restore(&image);
            let bytes = machine.world.read_file(&path).unwrap().len() as u64;
            let offset = (bytes * part / 10).min(bytes.saturating_sub(1));
            machine.world.corrupt(&path, offset, 0x10).unwrap();
            machine.open();
            check(&machine, &seen, &format!("{path} at {offset}"));
            machine.kill();
        }
    }
}

#[test]
fn damage_to_a_snapshot_while_it_is_in_use_makes_no_difference() {
    let (mut machine, seen) = history(b"tally");
    machine.kill();
    let image = machine.world.image();
    let chunks: Vec<String> = machine
        .derived_files()
        .into_iter()
        .filter(|path| path.contains("/chunks/"))
        .collect();
    assert!(!chunks.is_empty());
    for path in chunks {
        machine.world.restore(&image);
        machine.open();
        let bytes = machine.world.read_file(&path).unwrap().len() as u64;
        machine.world.corrupt(&path, bytes / 2, 0x10).unwrap();
        check(&machine, &seen, &path);
        machine.kill();
    }
}

#[test]
fn a_past_state_is_the_same_from_memory_files_and_the_log() {
    let (mut machine, _) = history(b"tally-impure");
    let last = machine.engine().committed(0);
    let ask = |machine: &Machine, sequence| {
        machine.rows("tally", "counts", At::Token(Token::of(0, sequence)))
    };
    let points: Vec<u64> = (0..40).map(|n| 1 + n * 7919 % last).collect();
    let from_memory: Vec<_> = points.iter().map(|point| ask(&machine, *point)).collect();
    machine.restart();
    let from_files: Vec<_> = points.iter().map(|point| ask(&machine, *point)).collect();
    assert_eq!(from_files, from_memory);
    machine.kill();
    for path in machine.derived_files() {
        machine.world.remove_file(&path).unwrap();
    }
    machine.config.compute = false;
    machine.open();
    let from_log: Vec<_> = points.iter().map(|point| ask(&machine, *point)).collect();
    assert_eq!(from_log, from_memory);
    let again = machine
        .compute()
        .replay(
            &ReplayRequest {
                module: "tally".to_owned(),
                code: ReplayCode::Recorded { generation: None },
                partition: Some(0),
                to: At::Token(Token::of(0, points[3])),
                changes_from: None,
            },
            &mut NoSink,
        )
        .unwrap();
    assert_eq!(
        again[0].stamp.fingerprint,
        from_memory[3].stamps[0].fingerprint
    );
}

#[test]
fn a_page_goes_on_at_the_same_moment() {
    let (mut machine, seen) = history(b"tally");
    let mut request = ScanRequest {
        module: "tally".to_owned(),
        table: "last".to_owned(),
        start: Vec::new(),
        end: None,
        reverse: false,
        limit: 5,
        page: None,
        partition: None,
        options: ReadOptions::default(),
    };
    for reverse in [false, true] {
        request.reverse = reverse;
        request.page = None;
        let mut rows = Vec::new();
        loop {
            let answer = machine.compute().scan(&request).unwrap();
            rows.extend(answer.rows);
            match answer.next {
                Some(next) => request.page = Some(next),
                None => break,
            }
            if rows.len() == 5 {
                machine.append(&[("s3", "order", b"later")]);
                machine.settle();
            }
        }
        if !reverse {
            assert_eq!(rows, seen.last().unwrap().rows);
        } else {
            assert!(rows.is_sorted_by(|a, b| a.key > b.key) && rows.len() == 17);
        }
    }
}

#[test]
fn a_state_that_was_made_under_other_semantics_is_made_again_and_compared() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally", ActivationMode::Rebuild);
    for n in 0..30_u32 {
        machine.append(&[("s1", "order", n.to_string().as_bytes())]);
    }
    let reply = machine.compute().submit_snapshot(0);
    machine.wait(&reply);
    assert_eq!(machine.compute().snapshots(None).unwrap().len(), 1);
    machine.append(&[("s1", "order", b"x")]);
    machine.settle();
    let before = machine.fingerprints("tally", "counts");
    let left = delta_files(&machine);
    assert!(!left.is_empty());
    // Another version computes something else. The snapshot would hide it; the checkpoint shows it.
    (machine.is_upgraded, machine.is_wrong) = (true, true);
    machine.restart();
    let status = machine.compute().module("tally").unwrap();
    assert!(status.generations[0].semantics_differ);
    let state = &status.generations[0].state;
    assert!(
        matches!(state, FoldState::Halted { reason, .. } if reason.contains("checkpoint")),
        "{state:?}"
    );
    // The version of before finds what it left.
    let kept = delta_files(&machine);
    assert!(left.iter().all(|file| kept.contains(file)));
    (machine.is_upgraded, machine.is_wrong) = (false, false);
    machine.restart();
    assert_eq!(machine.fingerprints("tally", "counts"), before);
    let events = machine.compute().module("tally").unwrap().generations[0].events;
    assert!(events < 31, "{events} events were given to the guest again");
    // One that comes to the same has no use for it.
    machine.is_upgraded = true;
    machine.restart();
    assert_eq!(machine.fingerprints("tally", "counts"), before);
    let now = delta_files(&machine);
    assert!(!now.is_empty() && now.iter().all(|file| !left.contains(file)));
}

fn delta_files(machine: &Machine) -> Vec<String> {
    let paths = machine.world.paths().into_iter();
    paths.filter(|path| path.contains("/deltas/")).collect()
}

#[test]
fn a_generation_that_is_over_and_was_recorded_wrongly_is_found() {
    let mut machine = Machine::new(1);
    machine.is_wrong = true;
    machine.restart();
    machine.activate(b"tally", ActivationMode::Rebuild);
    for n in 0..30_u32 {
        machine.append(&[("s1", "order", n.to_string().as_bytes())]);
    }
    let reply = machine.compute().submit_snapshot(0);
    machine.wait(&reply);
    machine.activate(b"tally-impure", ActivationMode::Rebuild);
    machine.append(&[("s1", "order", b"x")]);
    machine.is_wrong = false;
    machine.restart();
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    let of = |what: &str| {
        let found = report.differences.iter().filter(|d| d.what == what);
        found.map(|d| d.generation).collect::<Vec<_>>()
    };
    // One for each batch, and one that only accounts for what has no effect.
    assert_eq!(of("delta"), [1; 31]);
    assert_eq!(of("snapshot"), [1]);
    assert_eq!(of("state-checkpoint"), [1]);
    assert_eq!(report.differences.len(), 33);
    let live: Vec<bool> = report.modules.iter().map(|m| m.live).collect();
    assert_eq!(live, [false, true]);
}

#[test]
fn a_module_with_the_longest_name_has_deltas_too() {
    assert_eq!(LONG_NAME.len(), NAME_BYTES_MAX);
    let mut machine = Machine::new(1);
    machine.activate(b"long", ActivationMode::Rebuild);
    for n in 0..30_u32 {
        machine.append(&[("s1", "order", n.to_string().as_bytes())]);
    }
    machine.settle();
    assert!(!delta_files(&machine).is_empty());
    let before = machine.fingerprints(LONG_NAME, "counts");
    machine.restart();
    assert_eq!(machine.fingerprints(LONG_NAME, "counts"), before);
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    assert!(report.modules[0].deltas >= 30);
}

/// A machine whose first segment is sealed and has all control events but one, and its list of them.
fn listed() -> (Machine, String) {
    let mut machine = Machine::new(1);
    machine.activate(b"tally", ActivationMode::Rebuild);
    let reply = machine.compute().submit_snapshot(0);
    machine.wait(&reply);
    fill(&mut machine, b"x");
    machine.activate(b"tally-twice", ActivationMode::Continue);
    machine.append(&[("s1", "order", b"last")]);
    machine.settle();
    let path = control_list_path(&place(&machine));
    assert!(machine.world.paths().contains(&path), "no list was written");
    (machine, path)
}

/// Fills a segment and lets it be sealed.
fn fill(machine: &mut Machine, with: &[u8]) {
    let payload = with.repeat(900 << 10);
    for _ in 0..20 {
        machine.append(&[("s1", "other", &payload)]);
    }
    machine.settle();
    assert!(machine.engine().last_sealed(0).is_some());
}

fn place(machine: &Machine) -> StatePlace {
    StatePlace {
        database_id: machine.engine().database_id(),
        partition: 0,
    }
}

/// Opens it with this file as its list; the file that is there then.
fn open_with(machine: &mut Machine, path: &str, list: Option<&[u8]>) -> Vec<u8> {
    machine.kill();
    match list {
        Some(bytes) => machine.world.write_file(path, bytes).unwrap(),
        None => machine.world.remove_file(path).unwrap(),
    }
    machine.open();
    machine.world.read_file(path).unwrap()
}

#[test]
fn a_list_of_control_events_that_cannot_be_used_is_made_again() {
    let (mut machine, path) = listed();
    let before = machine.fingerprints("tally", "counts");
    let good = machine.world.read_file(&path).unwrap();
    let list = EventList::decode(&good, &place(&machine)).unwrap();
    assert_eq!(list.history.segment, 1);
    // Published, activated, and the mark with its checkpoint.
    assert_eq!(list.events.len(), 4);
    let mut damaged = good.clone();
    damaged[300] ^= 1;
    let mut foreign = list.clone();
    foreign.history.chain[0] ^= 1;
    let mut elsewhere = place(&machine);
    elsewhere.database_id[0] ^= 1;
    // What decides about modules is compared with the log, one by one.
    let mut forged = list.clone();
    let (first, second) = (forged.events[0].1.clone(), forged.events[1].1.clone());
    forged.events[0].1 = second;
    forged.events[1].1 = first;
    for bytes in [
        None,
        Some(damaged),
        Some(good[..good.len().min(100)].to_vec()),
        Some(Vec::new()),
        Some(foreign.encode(&place(&machine))),
        Some(list.encode(&elsewhere)),
        Some(forged.encode(&place(&machine))),
        Some(good.clone()),
    ] {
        let now = open_with(&mut machine, &path, bytes.as_deref());
        assert_eq!(now, good);
        assert_eq!(machine.fingerprints("tally", "counts"), before);
    }
}

#[test]
fn a_list_that_lacks_an_event_is_found_by_a_verification() {
    let (mut machine, path) = listed();
    let good = machine.world.read_file(&path).unwrap();
    let mut list = EventList::decode(&good, &place(&machine)).unwrap();
    let differences = |machine: &Machine| {
        let report = machine
            .compute()
            .verify(&VerifyRequest::default(), &mut NoSink)
            .unwrap();
        let differences = report.differences.into_iter();
        differences
            .map(|d| (d.what, d.sequence))
            .collect::<Vec<_>>()
    };
    assert_eq!(differences(&machine), []);
    let (sequence, _) = list.events.pop().unwrap();
    let lacking = list.encode(&place(&machine));
    assert_eq!(open_with(&mut machine, &path, Some(&lacking)), lacking);
    assert_eq!(
        differences(&machine),
        [("control list".to_owned(), sequence)]
    );
    machine.kill();
    machine.world.remove_file(&path).unwrap();
    machine.open();
    assert_eq!(differences(&machine), []);
}

#[test]
fn a_list_of_a_history_that_was_another_is_not_used() {
    let mut machine = Machine::new(1);
    machine.append(&[("s1", "order", b"first")]);
    machine.kill();
    let image = machine.world.image();
    machine.open();
    machine.activate(b"tally-twice", ActivationMode::Rebuild);
    fill(&mut machine, b"x");
    let path = control_list_path(&place(&machine));
    let other = machine.world.read_file(&path).unwrap();
    machine.kill();
    machine.world.restore(&image);
    machine.open();
    machine.activate(b"tally", ActivationMode::Rebuild);
    fill(&mut machine, b"y");
    let mine = machine.world.read_file(&path).unwrap();
    assert_ne!(mine, other);
    assert_eq!(open_with(&mut machine, &path, Some(&other)), mine);
    assert_eq!(machine.count("tally", "order"), 1);
}

#[test]
fn a_power_cut_while_the_list_is_written_makes_no_difference() {
    let (mut machine, path) = listed();
    let before = machine.fingerprints("tally", "counts");
    let good = machine.world.read_file(&path).unwrap();
    machine.kill();
    machine.world.remove_file(&path).unwrap();
    let image = machine.world.image();
    let mut cuts = 0;
    for op in [
        SimOp::Create,
        SimOp::Write,
        SimOp::Sync,
        SimOp::Rename,
        SimOp::SyncDir,
    ] {
        for passes in 0..6 {
            machine.world.restore(&image);
            machine.world.fail_nth(Some(op), passes, SimFault::Crash);
            cuts += u32::from(machine.try_open().is_none());
            machine.world.clear_planned();
            machine.crash();
            machine.open();
            assert_eq!(machine.world.read_file(&path).unwrap(), good);
            assert_eq!(machine.fingerprints("tally", "counts"), before);
        }
    }
    assert!(cuts > 10, "{cuts}");
}
