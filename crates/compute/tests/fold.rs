//! The fold on a simulated machine with native guests.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

mod support;

use support::Machine;
use truthdb_compute::*;
use truthdb_engine::AppendError;
use truthdb_module::{Limits, WasiProfile};

fn order(machine: &mut Machine, count: u64) {
    for n in 0..count {
        let stream = format!("s{}", n % 7);
        machine.append(&[(&stream, "order", n.to_string().as_bytes())]);
    }
    machine.settle();
}

#[test]
fn what_is_published_and_activated_folds_and_is_there_after_a_restart() {
    let mut machine = Machine::new(2);
    order(&mut machine, 20);
    machine.activate(b"tally", ActivationMode::Rebuild);
    assert_eq!(machine.count("tally", "order"), 20);
    order(&mut machine, 5);
    assert_eq!(machine.count("tally", "order"), 25);
    let before = machine.fingerprints("tally", "counts");
    machine.restart();
    assert_eq!(machine.fingerprints("tally", "counts"), before);
    assert_eq!(machine.count("tally", "order"), 25);
    order(&mut machine, 1);
    assert_eq!(machine.count("tally", "order"), 26);
}

#[test]
fn a_state_of_any_moment_can_be_asked_for_again() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally", ActivationMode::Rebuild);
    let mut seen = Vec::new();
    for _ in 0..30 {
        order(&mut machine, 1);
        let answer = machine.rows("tally", "last", At::Now);
        seen.push(answer);
    }
    machine.restart();
    for expected in seen {
        let again = machine.rows("tally", "last", At::Token(expected.token()));
        assert_eq!(again, expected);
        let time = expected.stamps[0].timestamp_ns;
        let by_time = machine.rows("tally", "last", At::Time(time));
        assert_eq!(by_time.rows, expected.rows);
    }
}

#[test]
fn a_guest_that_traps_halts_its_module_and_nothing_else() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally-boom", ActivationMode::Rebuild);
    machine.activate(b"echo", ActivationMode::Rebuild);
    order(&mut machine, 3);
    let bad = machine.append(&[("s0", "order", b"fine"), ("s0", "order", b"boom")]);
    order(&mut machine, 3);
    assert_eq!(
        machine.count("tally", "order"),
        3,
        "the batch was rolled back"
    );
    assert_eq!(machine.count("echo", "order"), 8);
    let status = machine.compute().module("tally").unwrap();
    let state = &status.generations[0].state;
    assert!(
        matches!(state, FoldState::Halted { sequence, reason }
            if *sequence == bad.first_sequence && reason.contains("unreachable")),
        "{state:?}"
    );
    // Also after a restart, and only an operator's decision lets it go on.
    machine.restart();
    let status = machine.compute().module("tally").unwrap();
    assert_eq!(&status.generations[0].state, state);
    let reply = machine.compute().submit_skip(SkipRequest {
        module: "tally".to_owned(),
        partition: 0,
        first_sequence: bad.last_sequence,
        last_sequence: bad.last_sequence,
        reason: "it is bad".to_owned(),
    });
    machine.wait(&reply);
    assert!(reply.error().is_none(), "{:?}", reply.error());
    assert_eq!(machine.count("tally", "order"), 7);
    let before = machine.fingerprints("tally", "counts");
    machine.restart();
    assert_eq!(machine.fingerprints("tally", "counts"), before);
}

#[test]
fn the_memory_of_an_impure_guest_makes_no_difference() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally-impure", ActivationMode::Rebuild);
    for round in 0..6 {
        order(&mut machine, 40);
        if round == 2 {
            let reply = machine.compute().submit_snapshot(0);
            machine.wait(&reply);
        }
        let before = machine.fingerprints("tally", "counts");
        machine.restart();
        assert_eq!(
            machine.fingerprints("tally", "counts"),
            before,
            "round {round}"
        );
    }
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    assert!(report.modules[0].live);
}

#[test]
fn derived_events_are_appended_exactly_once() {
    let mut machine = Machine::new(3);
    order(&mut machine, 30);
    machine.activate(b"echo", ActivationMode::Rebuild);
    let echoes = |machine: &Machine| {
        let mut found = Vec::new();
        for n in 0..7 {
            let stream = format!("echo-s{n}");
            let head = machine.engine().stream_head(&stream, None).unwrap();
            found.push(head.map_or(0, |head| head.last_revision + 1));
        }
        found
    };
    assert_eq!(echoes(&machine).iter().sum::<u64>(), 30);
    for _ in 0..4 {
        order(&mut machine, 10);
        machine.kill();
        machine.open();
    }
    assert_eq!(echoes(&machine).iter().sum::<u64>(), 70);
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    assert_eq!(report.modules.iter().map(|m| m.derived).sum::<u64>(), 70);
}

#[test]
fn an_upgrade_by_rebuild_takes_over_when_it_has_caught_up() {
    let mut machine = Machine::new(2);
    machine.activate(b"tally", ActivationMode::Rebuild);
    order(&mut machine, 20);
    let before = machine.rows("tally", "counts", At::Now);
    machine.activate(b"tally-twice", ActivationMode::Rebuild);
    assert_eq!(machine.count("tally", "order"), 40);
    // A moment before the switch is answered by the generation of then, the same bytes as then.
    let then = machine.rows("tally", "counts", At::Token(before.token()));
    assert_eq!(then, before);
    machine.restart();
    assert_eq!(machine.count("tally", "order"), 40);
    assert_eq!(
        machine.rows("tally", "counts", At::Token(before.token())),
        before
    );
    let status = machine.compute().module("tally").unwrap();
    assert!(
        status
            .generations
            .iter()
            .all(|g| g.generation == 2 && g.current)
    );
}

/// What is verified of a module: generation, derived events, whether it is live.
fn verified(machine: &Machine, module: &str) -> Vec<(u32, u64, bool)> {
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
    let of = report.modules.iter().filter(|m| m.stamp.module == module);
    of.map(|m| {
        assert_eq!(m.unverified, None);
        (m.stamp.generation, m.derived, m.live)
    })
    .collect()
}

#[test]
fn generations_that_are_over_are_verified_up_to_their_end() {
    let mut machine = Machine::new(1);
    order(&mut machine, 20);
    machine.activate(b"echo", ActivationMode::Rebuild);
    machine.activate(b"tally-boom", ActivationMode::Rebuild);
    order(&mut machine, 10);
    machine.append(&[("s0", "order", b"boom")]);
    order(&mut machine, 5);
    machine.activate(b"echo-again", ActivationMode::Rebuild);
    machine.activate(b"tally", ActivationMode::Rebuild);
    order(&mut machine, 7);
    let now = [(1, 36, false), (2, 7, true)];
    assert_eq!(verified(&machine, "echo"), now);
    assert_eq!(verified(&machine, "tally"), [(1, 0, false), (2, 0, true)]);
    machine.restart();
    assert_eq!(verified(&machine, "echo"), now);
    for module in ["echo", "tally"] {
        let reply = machine.compute().submit_remove(module);
        machine.wait(&reply);
    }
    order(&mut machine, 3);
    assert_eq!(verified(&machine, "echo"), [(1, 36, false), (2, 7, false)]);
    machine.restart();
    assert_eq!(verified(&machine, "tally"), [(1, 0, false), (2, 0, false)]);
    machine.kill();
    machine.config.compute = false;
    machine.config.query = false;
    machine.open();
    assert_eq!(verified(&machine, "echo"), [(1, 36, false), (2, 7, false)]);
}

#[test]
fn an_upgrade_by_continue_goes_on_with_the_tables() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally", ActivationMode::Rebuild);
    order(&mut machine, 20);
    machine.activate(b"tally-twice", ActivationMode::Continue);
    order(&mut machine, 5);
    assert_eq!(machine.count("tally", "order"), 30);
    machine.restart();
    assert_eq!(machine.count("tally", "order"), 30);
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, []);
}

#[test]
fn a_fix_takes_over_at_the_batch_that_stopped_the_code_before() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally-boom", ActivationMode::Rebuild);
    order(&mut machine, 3);
    machine.append(&[("s0", "order", b"boom")]);
    order(&mut machine, 3);
    machine.activate(b"tally", ActivationMode::Continue);
    assert_eq!(machine.count("tally", "order"), 7);
    machine.restart();
    assert_eq!(machine.count("tally", "order"), 7);
}

#[test]
fn a_validator_decides_with_the_state_of_the_event_before() {
    let mut machine = Machine::new(2);
    machine.activate(b"tally", ActivationMode::Rebuild);
    machine.activate(b"guard", ActivationMode::Rebuild);
    for round in 0..3 {
        let stream = format!("flight-{round}");
        let refused = machine
            .try_append(&[(&stream, "arrive", b"early")])
            .unwrap_err();
        assert!(
            matches!(&refused, AppendError::Rejected { validator, code: 7, index: 0, .. } if validator == "guard"),
            "{refused:?}"
        );
        machine.append(&[(&stream, "depart", b"departed")]);
        // At once, without waiting for the fold.
        machine.append(&[(&stream, "arrive", b"landed")]);
        machine
            .try_append(&[(&stream, "arrive", b"again")])
            .unwrap_err();
        machine.restart();
    }
    let reply = machine.compute().submit_remove("guard");
    machine.wait(&reply);
    machine.append(&[("flight-9", "arrive", b"early")]);
}

#[test]
fn an_upgrade_while_a_validator_waits_for_its_state_is_not_missed() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally", ActivationMode::Rebuild);
    let (cap, twice) = (machine.publish(b"cap"), machine.publish(b"tally-twice"));
    // So much more than the fold applies in a step that it is behind when the validator comes.
    for n in 0..1500_u32 {
        let payload = n.to_string();
        machine
            .queue(&[("s1", "order", payload.as_bytes())])
            .unwrap();
    }
    machine.commit();
    let committed = machine.outcomes().len();
    assert_eq!(committed, 1500);
    let (rebuild, go_on) = (ActivationMode::Rebuild, ActivationMode::Continue);
    for (hash, mode) in [(cap, rebuild), (twice, go_on)] {
        machine.compute().submit_activate(ActivateRequest {
            hash,
            mode,
            limits: Limits::default(),
            wasi: WasiProfile::None,
        });
    }
    // The validator's activation is committed and read; the upgrade is encoded, but not committed
    // while the fold catches up with all that is.
    machine.step_folds();
    machine.commit();
    machine.step_folds();
    machine.step_folds();
    machine.step_writers();
    for _ in 0..50 {
        machine.step_folds();
    }
    machine.settle();
    let status = machine.compute().module("tally").unwrap();
    assert!(
        status
            .generations
            .iter()
            .any(|g| g.current && g.generation == 2)
    );
    // One for each order by the old code, two by the new one.
    for _ in 0..250 {
        machine.append(&[("s1", "order", b"x")]);
    }
    let refused = machine.try_append(&[("s1", "order", b"x")]).unwrap_err();
    assert!(
        matches!(refused, AppendError::Rejected { code: 8, .. }),
        "{refused:?}"
    );
}

#[test]
fn a_validator_does_not_decide_beyond_a_module_that_is_halted() {
    let mut machine = Machine::new(1);
    machine.activate(b"tally", ActivationMode::Rebuild);
    machine.activate(b"guard", ActivationMode::Rebuild);
    machine.append(&[("s1", "depart", b"departed")]);
    let reply = machine.compute().submit_halt("tally", 0);
    machine.wait(&reply);
    for _ in 0..2 {
        let refused = machine.try_append(&[("s1", "arrive", b"x")]).unwrap_err();
        assert!(
            matches!(&refused, AppendError::ValidatorNotReady { reason, .. }
                if reason.contains("tally is halted")),
            "{refused:?}"
        );
        machine.restart();
    }
    let reply = machine.compute().submit_resume("tally", 0);
    machine.wait(&reply);
    machine.append(&[("s1", "arrive", b"x")]);
}

#[test]
fn a_query_operator_is_asked_in_each_partition_and_merges() {
    let mut machine = Machine::new(3);
    machine.activate(b"tally", ActivationMode::Rebuild);
    order(&mut machine, 21);
    machine.activate(b"sum", ActivationMode::Rebuild);
    let request = QueryRequest {
        operator: "sum".to_owned(),
        arguments: b"order".to_vec(),
        partition: None,
        options: ReadOptions::default(),
    };
    let answer = machine.compute().query(&request).unwrap();
    assert_eq!(answer.rows[0].value, 21_u64.to_le_bytes());
    order(&mut machine, 9);
    let then = QueryRequest {
        options: ReadOptions {
            at: At::Token(answer.token()),
            ..ReadOptions::default()
        },
        ..request.clone()
    };
    assert_eq!(machine.compute().query(&then).unwrap(), answer);
    let now = machine.compute().query(&request).unwrap();
    assert_eq!(now.rows[0].value, 30_u64.to_le_bytes());
}

#[test]
fn two_codes_are_compared_row_by_row_and_to_the_first_batch() {
    let mut machine = Machine::new(1);
    order(&mut machine, 3);
    machine.activate(b"tally", ActivationMode::Rebuild);
    let bytes = |bytes: &'static [u8]| ReplayCode::Bytes {
        wasm: bytes::Bytes::from_static(bytes),
    };
    let request = CompareRequest {
        module: "tally".to_owned(),
        left: ReplayCode::Recorded { generation: None },
        right: bytes(b"tally-twice"),
        partition: None,
        to: At::Now,
        rows_max: 10,
    };
    let found = machine.compute().compare(&request, &mut NoSink).unwrap();
    assert_eq!(found[0].first_batch, Some((1, 1)));
    assert_eq!(found[0].differing, 1);
    assert_eq!(found[0].rows[0].key, b"order");
    let same = CompareRequest {
        right: bytes(b"tally"),
        ..request
    };
    let found = machine.compute().compare(&same, &mut NoSink).unwrap();
    assert_eq!((found[0].differing, found[0].first_batch), (0, None));
}
