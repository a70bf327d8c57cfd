//! The flow as a machine: recorded walks, and properties over all walks.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

mod sample;

use proptest::prelude::*;
use sample::{
    answers, at_confirm, at_disks, disk, failure, hardware, key, keys, names, outcome, prepared,
    progress, settings, walk,
};
use truthdb_installer::executor::Step;
use truthdb_installer::flow::{
    Answers, Disk, Effect, Event, Field, Finish, FoundSystem, Hardware, Network, SecureBoot,
    Session, State, Verdict, step,
};
use truthdb_installer::input::{Key, Layout};
use truthdb_installer::plan::Mode;

#[test]
fn an_installation_by_keys_takes_five_of_them_besides_the_words() {
    let one = disk(0);
    let words = one.confirmation();
    assert_eq!(words, "900140");
    let mut events = vec![
        Event::Started,
        Event::Hardware(Ok((hardware(), settings()))),
        key(Key::Enter),
        Event::Disks(Ok(vec![one.clone()])),
        key(Key::Enter),
        Event::Planned(Ok(prepared(&one, Mode::Install))),
    ];
    events.extend(keys(&words.to_lowercase()));
    events.push(key(Key::Enter));
    events.extend(Step::ALL.map(progress));
    events.push(Event::Executed(Ok(outcome())));
    events.extend([key(Key::Enter), key(Key::Enter)]);
    assert_eq!(keys_besides(&events, &words), 5);
    let (session, effects) = walk(Session::new("0.1.0"), events);
    let expected = [
        "ProbeHardware",
        "ProbeDisks",
        "MakePlan",
        "Execute",
        "Reboot",
    ];
    assert_eq!(names(&effects), expected);
    assert_eq!(session.state.name(), "Reboot");
}

/// Keys that are pressed, without those that type the words.
fn keys_besides(events: &[Event], words: &str) -> usize {
    let pressed = events
        .iter()
        .filter(|event| matches!(event, Event::Key(_)))
        .count();
    pressed - words.chars().count()
}

/// The longest of the usual ways: of several disks the third one, with a TruthDB on it, which is installed anew.
#[test]
fn less_than_ten_keys_install_over_an_old_node_on_the_third_disk() {
    let disk = sample::disks()[2].clone();
    let words = disk.confirmation();
    let mut events = vec![
        Event::Started,
        Event::Hardware(Ok((hardware(), settings()))),
        key(Key::Enter),
        Event::Disks(Ok(sample::disks())),
        key(Key::Up),
        key(Key::Up),
        key(Key::Enter),
        key(Key::Up),
        key(Key::Enter),
        Event::Planned(Ok(prepared(&disk, Mode::Install))),
    ];
    events.extend(keys(&words));
    events.push(key(Key::Enter));
    events.push(Event::Executed(Ok(outcome())));
    events.extend([key(Key::Enter), key(Key::Enter)]);
    assert!(keys_besides(&events, &words) < 10);
    let (session, effects) = walk(Session::new("0.1.0"), events);
    assert_eq!(session.state.name(), "Reboot");
    assert!(names(&effects).contains(&"Execute"));
}

#[test]
fn a_system_that_nobody_signed_is_not_installed_where_signatures_are_asked_for() {
    let on_machine = |system_is_signed| {
        let mut machine = hardware();
        machine.secure_boot = SecureBoot::On;
        machine.system_is_signed = system_is_signed;
        let events = [
            Event::Started,
            Event::Hardware(Ok((machine.clone(), settings()))),
            key(Key::Enter),
        ];
        let check = machine.checks().remove(0);
        let (session, effects) = walk(Session::new("0.1.0"), events);
        (check, session.state, names(&effects))
    };
    let (check, state, effects) = on_machine(false);
    assert_eq!((state, check.verdict), (State::Welcome, Verdict::Bad));
    assert_eq!(effects, ["ProbeHardware"]);
    assert!(check.text.contains("Turn Secure Boot off"), "{check:?}");
    let (check, _, effects) = on_machine(true);
    assert_eq!(effects, ["ProbeHardware", "ProbeDisks"]);
    assert_eq!(check.verdict, Verdict::Doubtful);
}

#[test]
fn nothing_is_chosen_for_anybody_when_two_disks_qualify() {
    let session = at_disks();
    assert!(matches!(
        session.state,
        State::DiskSelect { selected: None, .. }
    ));
    let (session, effects) = walk(session, [key(Key::Enter)]);
    assert_eq!(effects, []);
    let State::DiskSelect { notice, .. } = &session.state else {
        unreachable!()
    };
    assert!(notice.is_some());
    // The stick with the installer can be looked at, and not chosen.
    let (session, effects) = walk(session, [key(Key::Up), key(Key::Enter)]);
    assert_eq!(effects, []);
    let State::DiskSelect { selected, notice } = &session.state else {
        unreachable!()
    };
    assert_eq!(*selected, Some(3));
    assert!(notice.as_ref().unwrap().contains("this installer"));
}

#[test]
fn a_disk_with_a_truthdb_offers_to_keep_the_data_first() {
    let session = at_disks();
    let down = key(Key::Down);
    let (session, _) = walk(session, [down.clone(), down.clone(), down, key(Key::Enter)]);
    assert_eq!(
        session.state,
        State::ModeSelect {
            disk: 2,
            selected: 0
        }
    );
    let (_, effects) = walk(session, [key(Key::Enter)]);
    assert!(
        matches!(
            &effects[..],
            [Effect::MakePlan {
                mode: Mode::ReinstallKeepData,
                ..
            }]
        ),
        "{effects:?}"
    );
}

#[test]
fn wrong_words_do_nothing_and_say_so() {
    for wrong in ["", "900141", "yes", "erase", "90014"] {
        let mut events = keys(wrong);
        events.push(key(Key::Enter));
        let (session, effects) = walk(at_confirm(0, Mode::Install), events);
        assert_eq!(effects, [], "{wrong}");
        let State::Confirm { notice, typed, .. } = &session.state else {
            unreachable!()
        };
        assert!(notice.is_some() && typed.is_empty());
    }
    let (_, effects) = walk(at_confirm(2, Mode::RepairBoot), [key(Key::Enter)]);
    assert_eq!(names(&effects), ["Execute"]);
}

#[test]
fn an_error_can_be_tried_again_left_and_taken_along() {
    let (session, _) = walk(
        at_confirm(0, Mode::Install),
        keys("900140").into_iter().chain([
            key(Key::Enter),
            progress(Step::WriteData),
            Event::Executed(Err(failure())),
        ]),
    );
    assert_eq!(session.state.name(), "Error");
    let (exported, effects) = walk(
        session.clone(),
        [
            key(Key::Export),
            Event::Exported(Ok("Written to STICK".into())),
        ],
    );
    assert_eq!(names(&effects), ["ExportLogs"]);
    let State::Error { notice, .. } = &exported.state else {
        unreachable!()
    };
    assert_eq!(notice.as_deref(), Some("Written to STICK"));
    // Trying again looks at the disks anew, and asks for the words anew.
    let (again, effects) = walk(exported, [key(Key::Enter)]);
    assert_eq!(
        (again.state.name(), names(&effects)),
        ("Searching", vec!["ProbeDisks"])
    );
    let (back, effects) = walk(session, [key(Key::Escape)]);
    assert_eq!((back.state.name(), effects), ("Welcome", vec![]));
}

#[test]
fn settings_are_taken_over_or_dropped() {
    let (session, _) = walk(at_disks(), [key(Key::Advanced), key(Key::Delete)]);
    let typed = walk(
        session.clone(),
        keys("db-7").into_iter().chain([key(Key::Enter)]),
    )
    .0;
    assert_eq!(typed.settings.unwrap().hostname, "db-7");
    assert_eq!(typed.state.name(), "DiskSelect");
    let wrong = walk(
        session.clone(),
        keys("-").into_iter().chain([key(Key::Enter)]),
    )
    .0;
    let State::Advanced { notice, .. } = &wrong.state else {
        unreachable!()
    };
    assert!(notice.is_some());
    let dropped = walk(session, keys("x").into_iter().chain([key(Key::Escape)])).0;
    assert_eq!(dropped.settings, Some(settings()));
}

#[test]
fn the_keyboard_can_be_changed_everywhere() {
    for session in [Session::new("1"), at_disks(), at_confirm(0, Mode::Install)] {
        let (next, effects) = walk(session.clone(), [key(Key::Layout)]);
        assert_eq!((next.layout, effects), (Layout::German, vec![]));
        assert_eq!(next.state, session.state);
    }
}

fn unattended(answers: Answers) -> (Session, Vec<Effect>) {
    let events = [
        Event::Started,
        Event::Answers(Ok(answers)),
        Event::Hardware(Ok((hardware(), settings()))),
        Event::Disks(Ok(sample::disks())),
        Event::Planned(Ok(prepared(&sample::disks()[1], Mode::Install))),
        progress(Step::Verify),
        Event::Executed(Ok(outcome())),
    ];
    walk(Session::new("0.1.0"), events)
}

#[test]
fn an_answer_file_needs_no_key_and_has_the_same_safety() {
    let (session, effects) = unattended(answers(&|_| ()));
    let expected = [
        "ProbeHardware",
        "ProbeDisks",
        "MakePlan",
        "Execute",
        "Reboot",
    ];
    assert_eq!(names(&effects), expected);
    let Effect::MakePlan { settings, .. } = &effects[2] else {
        unreachable!()
    };
    assert_eq!(settings.hostname, "node-3");
    assert!(
        matches!(&settings.network, Network::Static { address, .. } if address == "10.0.0.3/24")
    );
    // The token is on the page that stays.
    assert_eq!(session.state.name(), "Finished");
    // By WWN as well.
    let wwn = unattended(answers(&|answers| answers.disk = disk(1).identity.wwn));
    assert!(names(&wwn.1).contains(&"Execute"));

    for (change, stops_at) in [
        (
            &(|answers: &mut Answers| answers.wipe = false) as &dyn Fn(&mut Answers),
            "Confirm",
        ),
        (&|answers| answers.disk = "S5GX".into(), "DiskSelect"),
        (&|answers| answers.disk = String::new(), "DiskSelect"),
        // The stick with the installer has no serial number; it must not match nothing.
        (
            &|answers| answers.disk = "/dev/nvme1n1".into(),
            "DiskSelect",
        ),
        (
            &|answers| answers.values = vec![(Field::Hostname, "-".into())],
            "Welcome",
        ),
    ] {
        let (session, effects) = unattended(answers(change));
        assert_eq!(session.state.name(), stops_at);
        assert!(!names(&effects).contains(&"Execute"), "{stops_at}");
    }
}

/// The named disk with a TruthDB on it, as an installation by these answers leaves it.
fn installed(by: Option<&Answers>, version: &str) -> Disk {
    let mut disk = sample::disks()[1].clone();
    disk.truthdb = Some(FoundSystem {
        version: Ok(version.into()),
        answers: by.map(Answers::id),
        has_primary_table: true,
        is_complete: true,
        is_kept: false,
        is_unused: false,
    });
    disk
}

/// Starts the medium with answers on a machine with this disk.
fn started(answers: &Answers, hardware: Hardware, disk: &Disk) -> (Session, Vec<Effect>) {
    let events = [
        Event::Started,
        Event::Answers(Ok(answers.clone())),
        Event::Hardware(Ok((hardware, settings()))),
        Event::Disks(Ok(vec![disk.clone()])),
    ];
    walk(Session::new("0.1.0"), events)
}

#[test]
fn answers_that_were_carried_out_send_the_machine_to_its_disk_and_write_nothing() {
    let reboot = answers(&|_| ());
    let disk = installed(Some(&reboot), "0.1.0");
    let (session, effects) = started(&reboot, hardware(), &disk);
    let expected = ["ProbeHardware", "ProbeDisks", "StartDiskNext"];
    assert_eq!(names(&effects), expected);
    let (session, effects) = walk(session, [Event::DiskNext(Ok(()))]);
    assert_eq!(names(&effects), ["Reboot"]);
    assert_eq!(session.state.name(), "AlreadyInstalled");
    // Firmware that does not take it: the machine stays, and says so.
    let (session, _) = started(&reboot, hardware(), &disk);
    let (session, effects) = walk(session, [Event::DiskNext(Err("no variables".into()))]);
    assert_eq!(effects, []);
    let State::AlreadyInstalled { notice, .. } = &session.state else {
        unreachable!()
    };
    assert!(notice.as_ref().unwrap().contains("no variables"));
    // Firmware that takes it and starts the medium all the same: the second time it stays.
    let mut back = hardware();
    back.sent_to_disk_s = Some(back.clock_s - 90);
    let (session, effects) = started(&reboot, back.clone(), &disk);
    assert_eq!(names(&effects), ["ProbeHardware", "ProbeDisks"]);
    let State::AlreadyInstalled { notice, .. } = &session.state else {
        unreachable!()
    };
    assert!(notice.as_ref().unwrap().contains("came back"));
    // A day later it is sent again.
    back.clock_s += 86_400;
    let (_, effects) = started(&reboot, back, &disk);
    assert!(names(&effects).contains(&"StartDiskNext"));

    for (finish, expected) in [
        (Finish::Wait, &[][..]),
        (Finish::PowerOff, &["PowerOff"][..]),
    ] {
        let answers = answers(&|answers| answers.finish = finish);
        let (session, effects) = started(&answers, hardware(), &disk);
        assert_eq!(session.state.name(), "AlreadyInstalled");
        assert_eq!(names(&effects)[2..], *expected);
        let (session, effects) = walk(session, [key(Key::Enter)]);
        assert_eq!(session.state.name(), "Reboot");
        assert_eq!(names(&effects), ["Reboot"]);
    }
    let (session, _) = started(&reboot, hardware(), &disk);
    let (session, _) = walk(session, [key(Key::Escape), key(Key::Enter)]);
    assert_eq!(session.state.name(), "ModeSelect");
}

#[test]
fn a_person_who_has_taken_over_is_not_overtaken_by_answers() {
    let unsure = answers(&|answers| answers.wipe = false);
    let (session, _) = unattended(unsure);
    assert_eq!(session.state.name(), "Confirm");
    // Another disk instead, by keys: the answers, read again with the machine, do not start anything.
    let down = key(Key::Down);
    let (session, _) = walk(session, [key(Key::Escape), down, key(Key::Enter)]);
    assert_eq!(session.state.name(), "ModeSelect");
    let plan = prepared(&sample::disks()[2], Mode::ReinstallKeepData);
    let (session, _) = walk(session, [key(Key::Enter), Event::Planned(Ok(plan))]);
    assert_eq!(session.state.name(), "Confirm");
    let back = key(Key::Escape);
    let events = [
        back.clone(),
        back,
        key(Key::Rescan),
        Event::Answers(Ok(answers(&|_| ()))),
        Event::Hardware(Ok((hardware(), settings()))),
    ];
    let (session, effects) = walk(session, events);
    assert_eq!(
        (session.state, names(&effects)),
        (State::Welcome, vec!["ProbeHardware"])
    );
}

#[test]
fn answers_erase_a_truthdb_only_if_they_say_so() {
    let plain = answers(&|_| ());
    let forced = answers(&|answers| answers.again = true);
    let update = answers(&|answers| answers.mode = Mode::ReinstallKeepData);
    let other = answers(&|answers| answers.values.clear());
    let mut no_table = installed(Some(&plain), "0.1.0");
    no_table.truthdb.as_mut().unwrap().has_primary_table = false;
    let mut damaged = installed(None, "");
    damaged.truthdb.as_mut().unwrap().version = Err("damaged".into());
    let with = |disk: &Disk, change: &dyn Fn(&mut FoundSystem)| {
        let mut disk = disk.clone();
        change(disk.truthdb.as_mut().unwrap());
        disk
    };
    let cut_off = with(&damaged, &|found| {
        found.has_primary_table = false;
        found.is_unused = true;
    });
    // The same of a node that has run: something wrote over the beginning of its disk.
    let overwritten = with(&cut_off, &|found| found.is_unused = false);
    let unfinished = |by| {
        with(&installed(Some(by), "0.1.0"), &|found| {
            found.is_complete = false;
            found.is_unused = true;
        })
    };
    // A node of the same answers whose system was being replaced by hand.
    let kept = with(&unfinished(&plain), &|found| found.is_kept = true);
    let has_run = with(&unfinished(&plain), &|found| found.is_unused = false);
    for (answers, disk, expected) in [
        // By hand, by other answers, of another version, damaged: a person decides.
        (&plain, installed(None, "0.1.0"), "ModeSelect"),
        (&plain, installed(Some(&other), "0.1.0"), "ModeSelect"),
        (&plain, installed(Some(&plain), "0.0.9"), "ModeSelect"),
        (&plain, damaged.clone(), "ModeSelect"),
        (&plain, no_table, "ModeSelect"),
        (&plain, overwritten, "ModeSelect"),
        (&plain, kept, "ModeSelect"),
        (&plain, has_run, "ModeSelect"),
        // What an interrupted installation leaves is no node.
        (&plain, cut_off, "Planning"),
        (&plain, unfinished(&plain), "Planning"),
        (&plain, unfinished(&other), "ModeSelect"),
        (&update, unfinished(&update), "Planning"),
        (&forced, installed(Some(&plain), "0.1.0"), "Planning"),
        (&forced, damaged.clone(), "Planning"),
        // Data is kept: done for each version once.
        (&update, installed(Some(&plain), "0.1.0"), "Planning"),
        (&update, installed(Some(&update), "0.0.9"), "Planning"),
        (
            &update,
            installed(Some(&update), "0.1.0"),
            "AlreadyInstalled",
        ),
        (&update, damaged, "Planning"),
    ] {
        let (session, effects) = started(answers, hardware(), &disk);
        assert_eq!(session.state.name(), expected, "{:?}", disk.truthdb);
        if expected == "ModeSelect" {
            let reason = session.answers_refused.as_ref().unwrap();
            assert!(reason.contains("again = true"), "{reason}");
            // Keeping the data has the mark.
            let (_, effects) = walk(session, [key(Key::Enter)]);
            assert!(
                matches!(
                    &effects[..],
                    [Effect::MakePlan {
                        mode: Mode::ReinstallKeepData,
                        answers: None,
                        ..
                    }]
                ),
                "{effects:?}"
            );
        } else if let Some(Effect::MakePlan { answers: by, .. }) = effects.last() {
            assert_eq!(*by, Some(answers.id()));
        }
    }
}

#[test]
fn a_stick_and_a_disk_that_come_late_are_waited_for_until_somebody_presses_a_key() {
    let known = || Event::Hardware(Ok((hardware(), settings())));
    let welcome = walk(Session::new("1"), [Event::Started, known()]).0;
    let (session, effects) = walk(welcome.clone(), [Event::DevicesChanged]);
    assert_eq!(effects, [Effect::ProbeAnswers]);
    let given = || Event::Answers(Ok(answers(&|_| ())));
    let none_yet = Event::Disks(Ok(sample::disks()[..1].to_vec()));
    let (waiting, effects) = walk(session, [given(), none_yet]);
    assert_eq!(names(&effects), ["ProbeDisks"]);
    let State::DiskSelect { notice, .. } = &waiting.state else {
        panic!("{:?}", waiting.state)
    };
    assert!(
        notice
            .as_ref()
            .is_some_and(|text| text.starts_with("Waiting"))
    );
    let (_, effects) = walk(
        waiting.clone(),
        [
            Event::DevicesChanged,
            Event::Disks(Ok(sample::disks())),
            Event::Planned(Ok(prepared(&sample::disks()[1], Mode::Install))),
        ],
    );
    assert_eq!(names(&effects), ["ProbeDisks", "MakePlan", "Execute"]);

    // A person was faster: from then on nothing begins by itself, on this disk or another.
    let person = walk(waiting, [key(Key::Down)]).0;
    assert_eq!(person.answers, None);
    assert!(person.answers_refused.is_some());
    assert_eq!(walk(person, [Event::DevicesChanged]).1, []);
    let person = walk(welcome, [key(Key::Tab)]).0;
    let (person, effects) = walk(person, [Event::DevicesChanged, given()]);
    assert_eq!((person.state, effects), (State::Welcome, vec![]));
}

#[test]
fn a_machine_that_cannot_run_it_goes_no_further() {
    let mut small = hardware();
    small.memory_bytes = 512 << 20;
    for session in [
        walk(
            Session::new("1"),
            [
                Event::Started,
                Event::Hardware(Ok((small.clone(), settings()))),
            ],
        )
        .0,
        walk(
            Session::new("1"),
            [
                Event::Answers(Ok(answers(&|_| ()))),
                Event::Hardware(Ok((small.clone(), settings()))),
            ],
        )
        .0,
    ] {
        assert_eq!(session.state, State::Welcome);
        assert_eq!(walk(session, [key(Key::Enter)]).1, []);
    }
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        4 => Just(Key::Enter),
        2 => Just(Key::Down),
        1 => prop::sample::select(vec![
            Key::Escape, Key::Up, Key::Left, Key::Right, Key::Tab, Key::BackTab, Key::PageUp,
            Key::PageDown, Key::Backspace, Key::Delete, Key::Advanced, Key::Rescan, Key::Export,
            Key::Layout,
        ]),
        2 => prop::sample::select("0149ERASEerasep ".chars().collect::<Vec<_>>()).prop_map(Key::Char),
    ]
}

/// Events as the world may send them, in any order and as often as it likes.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => any_key().prop_map(Event::Key),
        1 => Just(Event::Started),
        1 => Just(Event::DevicesChanged),
        2 => any::<bool>().prop_map(|fails| {
            Event::Hardware(if fails { Err(failure()) } else { Ok((hardware(), settings())) })
        }),
        2 => (0usize..5, any::<bool>()).prop_map(|(count, fails)| {
            let disks = sample::disks().into_iter().take(count).collect();
            Event::Disks(if fails { Err(failure()) } else { Ok(disks) })
        }),
        2 => (0usize..3, any::<bool>()).prop_map(|(mode, fails)| {
            let mode = [Mode::Install, Mode::ReinstallKeepData, Mode::RepairBoot][mode];
            Event::Planned(if fails { Err(failure()) } else { Ok(prepared(&sample::disks()[2], mode)) })
        }),
        1 => prop::sample::select(Step::ALL.to_vec()).prop_map(progress),
        1 => any::<bool>().prop_map(|fails| {
            Event::Executed(if fails { Err(failure()) } else { Ok(outcome()) })
        }),
        1 => any::<bool>().prop_map(|fails| {
            Event::Exported(if fails { Err("no stick".into()) } else { Ok("done".into()) })
        }),
        1 => any::<bool>().prop_map(|fails| {
            Event::DiskNext(if fails { Err("refused".into()) } else { Ok(()) })
        }),
        1 => Just(Event::NotLeft("no".into())),
        1 => (any::<bool>(), any::<bool>(), 0usize..3).prop_map(|(wipe, again, disk)| {
            Event::Answers(Ok(answers(&|answers| {
                answers.wipe = wipe;
                answers.again = again;
                answers.disk = sample::disks()[disk].identity.serial.clone();
            })))
        }),
    ]
}

/// Whether some key leads out of a state, without anything else happening.
fn has_a_way_on(session: &Session) -> bool {
    [Key::Enter, Key::Escape].into_iter().any(|key| {
        let (next, effects) = step(session.clone(), Event::Key(key));
        next.state != session.state || !effects.is_empty()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// On any walk: an effect that destroys data is preceded by its own confirmation, with the words
    /// of that disk, or by an answer file that says `wipe`, and by that only while nobody has pressed
    /// a key; what comes of an order that was given up changes nothing; every state but those that write
    /// has a way on; and the page of every state can be made and drawn as text.
    #[test]
    fn no_walk_destroys_what_was_not_confirmed(
        events in prop::collection::vec((any_event(), prop::bool::weighted(0.8)), 0..60),
    ) {
        let mut session = Session::new("0.1.0");
        let mut has_touched = false;
        for (event, is_of_the_last_order) in events {
            let before = session.clone();
            let event = sample::told(&session, event);
            if let (Event::Of { order, outcome }, false) = (&event, is_of_the_last_order) {
                let late = Event::Of { order: order.wrapping_sub(1), outcome: outcome.clone() };
                prop_assert_eq!(step(session.clone(), late), (session.clone(), vec![]));
                continue;
            }
            has_touched |= match event {
                Event::Key(Key::Layout) => false,
                Event::Key(Key::Rescan) => before.state != State::Welcome,
                Event::Key(_) => true,
                _ => false,
            };
            let (next, effects) = step(session, event.clone());
            prop_assert!(!next.attended || next.answers.is_none());
            prop_assert!(!has_touched || next.attended);
            for effect in &effects {
                let Effect::Execute { prepared } = effect else { continue };
                prop_assert!(next.executed);
                let typed = match &before.state {
                    State::Confirm { prepared: shown, words, typed, .. } => {
                        prop_assert_eq!(event.clone(), Event::Key(Key::Enter));
                        prop_assert_eq!(shown, prepared);
                        words.as_ref().is_none_or(|words| typed.trim().eq_ignore_ascii_case(words))
                    }
                    _ => false,
                };
                let answered = !has_touched
                    && before.answers.as_ref().is_some_and(|answers| {
                        let State::Planning { disk, .. } = before.state else { return false };
                        let disk = &before.disks[disk];
                        let is_free = disk.truthdb.as_ref().is_none_or(|found| found.is_cut_off(answers.id()));
                        let is_named = answers.names(&prepared.plan.target);
                        let may_erase = answers.wipe && (is_free || answers.again);
                        is_named && (may_erase || !prepared.plan.destroys_data())
                    });
                prop_assert!(typed || answered, "{:?} by {:?}", before.state.name(), event);
            }
            if !matches!(
                next.state,
                State::Installing { .. } | State::Verifying { .. } | State::Reboot { .. } | State::Exit
            ) {
                prop_assert!(has_a_way_on(&next), "{:?}", next.state);
            }
            let page = truthdb_installer::ui::pages::of(&next);
            let lines = truthdb_installer::ui::text::lines(&page);
            prop_assert!(!lines.is_empty());
            // The token is on the last screen, and nowhere before.
            let token = "tdb_0f1e2d3c4b5a";
            if next.state.name() != "Finished" {
                prop_assert!(!lines.iter().any(|line| line.contains(token)));
            }
            let shown = format!("{:?}", next.state);
            prop_assert!(!shown.contains(token));
            session = next;
        }
    }

    /// However often a medium with its answers is started, first in the boot order: what it has installed is
    /// installed once, whatever comes in between.
    #[test]
    fn a_medium_that_stays_in_installs_once(
        finish in prop::sample::select(vec![Finish::Wait, Finish::Reboot, Finish::PowerOff]),
        mode in prop::sample::select(vec![Mode::Install, Mode::ReinstallKeepData]),
        starts in prop::collection::vec((0u64..100_000, any::<bool>(), 0usize..4), 1..12),
    ) {
        let answers = answers(&|answers| {
            answers.finish = finish;
            answers.mode = mode;
        });
        let mut disk = if mode == Mode::Install {
            sample::disks()[1].clone()
        } else {
            installed(None, "0.0.9")
        };
        let mut machine = hardware();
        let mut installations = 0;
        for (pause_s, takes_it, cut) in starts {
            machine.clock_s += pause_s;
            let (session, effects) = started(&answers, machine.clone(), &disk);
            match &effects[2..] {
                [Effect::MakePlan { answers: by, .. }] => {
                    // With a table and data to keep, and the identity that the answers name.
                    let mut target = sample::disks()[2].clone();
                    target.identity = disk.identity.clone();
                    let plan = prepared(&target, mode);
                    let (_, effects) = walk(session, [Event::Planned(Ok(plan))]);
                    prop_assert_eq!(names(&effects), ["Execute"]);
                    disk = installed(Some(&answers), "0.1.0");
                    let found = disk.truthdb.as_mut().unwrap();
                    found.answers = *by;
                    // The power fails while the system is written, before the table, or while all is verified.
                    found.is_complete = cut == 0;
                    found.has_primary_table = cut == 0 || cut == 3 || mode != Mode::Install;
                    found.is_kept = mode != Mode::Install;
                    found.is_unused = mode == Mode::Install;
                    if cut == 1 {
                        found.answers = None;
                        found.version = Err("damaged".into());
                    }
                    installations += usize::from(cut == 0);
                }
                [Effect::StartDiskNext { .. }] => {
                    let taken = Event::DiskNext(if takes_it { Ok(()) } else { Err("no".into()) });
                    let (_, effects) = walk(session, [taken]);
                    prop_assert_eq!(names(&effects), if takes_it { vec!["Reboot"] } else { vec![] });
                    machine.sent_to_disk_s = Some(machine.clock_s);
                }
                [Effect::PowerOff] => prop_assert_eq!(finish, Finish::PowerOff),
                [] => prop_assert_eq!(session.state.name(), "AlreadyInstalled"),
                other => prop_assert!(false, "{:?}", names(other)),
            }
        }
        prop_assert!(installations <= 1);
    }
}
