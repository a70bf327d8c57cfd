//! Power cuts and kills at every operation of the disk: old or new, never half; derived events once.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends, wherever it is"
)]

mod support;

use support::{Machine, big};
use truthdb_compute::*;
use truthdb_io::sim::SimFault;
use truthdb_module::{Limits, WasiProfile};

/// Publishes and activates an upgrade by rebuild, with appends beside it, until the machine is gone.
fn upgrade(machine: &mut Machine) {
    let Ok(inspected) = machine.compute().inspect(&big()) else {
        return;
    };
    let hash = inspected.hash;
    let publish = machine.compute().submit_publish(inspected);
    machine.wait(&publish);
    let _ = machine.try_append(&[("s1", "order", b"a"), ("s1", "order", b"b")]);
    if !machine.is_up() || publish.error().is_some() {
        return;
    }
    let activate = machine.compute().submit_activate(ActivateRequest {
        hash,
        mode: ActivationMode::Rebuild,
        limits: Limits::default(),
        wasi: WasiProfile::None,
    });
    machine.wait(&activate);
    for stream in ["s0", "s1", "s2"] {
        if machine.is_up() {
            let _ = machine.try_append(&[(stream, "order", b"c")]);
        }
    }
    if machine.is_up() {
        machine.settle();
    }
}

/// Events of a type in all partitions.
fn events_of(machine: &Machine, event_type: &str) -> u64 {
    use truthdb_engine::{Direction, Filter, ReadFrom, ReadRequest};
    let mut count = 0;
    for partition in 0..machine.partitions {
        let page = machine
            .engine()
            .read(&ReadRequest {
                partition,
                from: ReadFrom::Start,
                direction: Direction::Forward,
                filter: Filter {
                    types: vec![event_type.to_owned()],
                    ..Filter::default()
                },
                events_max: 10_000,
                bytes_max: 8 << 20,
            })
            .unwrap();
        count += page.events().len() as u64;
    }
    count
}

fn check(machine: &Machine, what: &str) -> u32 {
    let orders = events_of(machine, "order");
    let status = machine.compute().module("tally").unwrap();
    let current: Vec<u32> = status
        .generations
        .iter()
        .filter(|g| g.current)
        .map(|g| g.generation)
        .collect();
    assert_eq!(current.len(), machine.partitions as usize, "{what}");
    assert!(
        current.iter().all(|g| *g == current[0]),
        "{what}: {current:?}"
    );
    assert_eq!(
        machine.count("tally", "order"),
        orders * u64::from(current[0]),
        "{what}"
    );
    assert_eq!(
        events_of(machine, "echoed"),
        orders,
        "{what}: derived exactly once"
    );
    let report = machine
        .compute()
        .verify(&VerifyRequest::default(), &mut NoSink)
        .unwrap();
    assert_eq!(report.differences, [], "{what}");
    let is_over = |m: &VerifiedModule| m.stamp.module == "tally" && m.stamp.generation < current[0];
    assert!(
        report.modules.iter().all(|m| m.live != is_over(m)),
        "{what}"
    );
    current[0]
}

#[test]
fn an_upgrade_that_is_cut_off_anywhere_leaves_the_old_version_or_the_new_one() {
    let mut base = Machine::new(2);
    base.activate(b"tally", ActivationMode::Rebuild);
    base.activate(b"echo", ActivationMode::Rebuild);
    for n in 0..6 {
        base.append(&[(&format!("s{n}"), "order", b"x")]);
    }
    base.settle();
    assert_eq!(check(&base, "before"), 1);
    base.live = None;
    base.world.kill();
    let image = base.world.image();
    let (mut old, mut new) = (0, 0);
    let mut cut = 0;
    loop {
        base.world.restore(&image);
        base.open();
        base.world.fail_nth(None, cut, SimFault::Crash);
        upgrade(&mut base);
        let ended = base.is_up();
        base.world.clear_planned();
        base.live = None;
        base.world.crash();
        base.open();
        base.settle();
        match check(&base, &format!("cut at operation {cut}")) {
            1 => old += 1,
            _ => new += 1,
        }
        if ended {
            break;
        }
        cut += 3;
    }
    assert!(old > 0 && new > 1, "{old} old, {new} new");
}

/// A processor is removed where a checkpoint is due, and what it derived last is not stored yet: its turn
/// is over only when it is.
#[test]
fn what_was_derived_at_the_end_of_a_turn_is_owed_whatever_was_recorded_there() {
    let mut machine = Machine::new(2);
    machine.config.checkpoint_every_events = 1;
    machine.restart();
    machine.activate(b"echo", ActivationMode::Rebuild);
    // Decided in the first partition, derived into the second.
    let engine = machine.engine();
    let names = (0..).map(|n| format!("s{n}"));
    let stream = names
        .filter(|name| engine.partition_of(name) == 0)
        .find(|name| engine.partition_of(&format!("echo-{name}")) == 1)
        .unwrap();
    // The removal becomes the last event of an epoch, the order the one before.
    let epoch = 4096;
    let mut orders = 0;
    while machine.engine().committed(0) < epoch - 3 {
        let left = epoch - 3 - machine.engine().committed(0);
        let batch: Vec<_> = (0..left.min(100))
            .map(|_| (stream.as_str(), "order", &b"x"[..]))
            .collect();
        orders += batch.len() as u64;
        machine.append(&batch);
        machine.settle();
    }
    assert_eq!(machine.engine().committed(0), epoch - 3);
    machine.queue(&[(&stream, "order", b"last")]).unwrap();
    orders += 1;
    machine.commit_partition(0);
    let removal = machine.compute().submit_remove("echo");
    for _ in 0..20 {
        machine.step_folds();
        machine.commit_partition(0);
    }
    assert!(machine.engine().committed(0) >= epoch - 1);
    assert_eq!(events_of(&machine, "echoed"), orders - 1);
    drop(removal);
    machine.restart();
    machine.settle();
    assert_eq!(events_of(&machine, "echoed"), orders);
}
