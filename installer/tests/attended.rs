//! The flow and a person: who presses a key has taken over, gets out of everything, and loses no token.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

mod sample;

use sample::{
    answers, at_confirm, at_disks, failure, hardware, key, keys, names, outcome, prepared,
    progress, settings, walk,
};
use truthdb_installer::executor::Step;
use truthdb_installer::flow::{
    Answers, Effect, Event, Field, Form, Hardware, Session, Settings, State, step,
};
use truthdb_installer::input::Key;
use truthdb_installer::plan::Mode;
use truthdb_installer::ui::{pages, text};

fn page(session: &Session) -> String {
    let lines = text::lines(&pages::of(session)).join(" ");
    lines.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn known() -> Event {
    Event::Hardware(Ok((hardware(), settings())))
}

fn planned(number: usize, mode: Mode) -> Event {
    Event::Planned(Ok(prepared(&sample::disks()[number], mode)))
}

/// An unattended installation, up to the moment before it is carried out.
fn way() -> Vec<Event> {
    vec![
        Event::Started,
        Event::Answers(Ok(answers(&|_| ()))),
        known(),
        Event::Disks(Ok(sample::disks())),
        planned(1, Mode::Install),
    ]
}

#[test]
fn a_key_before_an_unattended_installation_stops_it_at_the_words() {
    assert!(names(&walk(Session::new("1"), way()).1).contains(&"Execute"));
    let states = ["BootSplash", "BootSplash", "Searching", "Planning"];
    for (at, state) in (1..).zip(states) {
        for pressed in [Key::Tab, Key::Char('x'), Key::Rescan, Key::Enter] {
            let mut events = way();
            let before = walk(Session::new("1"), events[..at].to_vec()).0;
            assert_eq!(before.state.name(), state);
            events.insert(at, key(pressed));
            let (session, effects) = walk(Session::new("1"), events);
            assert!(!names(&effects).contains(&"Execute"), "{at} {pressed:?}");
            assert!(session.attended && session.answers.is_none());
        }
        // The layout of the keyboard is no decision.
        let mut events = way();
        events.insert(at, key(Key::Layout));
        let (_, effects) = walk(Session::new("1"), events);
        assert!(names(&effects).contains(&"Execute"));
    }
    // While the plan was being made: it is shown, and the words are asked for.
    let mut events = way();
    events.insert(4, key(Key::Tab));
    let (session, _) = walk(Session::new("1"), events);
    assert!(matches!(
        session.state,
        State::Confirm { words: Some(_), .. }
    ));
    assert!(page(&session).contains("To go on, type"));
    assert!(page(&session).contains("not followed any further: a key was pressed"));
}

#[test]
fn the_machine_stays_on_with_the_token_when_a_person_has_confirmed_or_looked() {
    let asks = Event::Answers(Ok(answers(&|answers| answers.wipe = false)));
    let mut events = way();
    events[1] = asks;
    let (session, _) = walk(Session::new("1"), events);
    let words = sample::disks()[1].confirmation();
    let mut events = keys(&words);
    events.extend([key(Key::Enter), Event::Executed(Ok(outcome()))]);
    let (session, effects) = walk(session, events);
    assert_eq!(names(&effects), ["Execute"]);
    assert_eq!(session.state.name(), "Finished");
    assert!(page(&session).contains("the machine stays on"));
    // A key while it is written.
    let mut events = way();
    events.extend([
        progress(Step::Verify),
        key(Key::Tab),
        Event::Executed(Ok(outcome())),
    ]);
    let (session, effects) = walk(Session::new("1"), events);
    assert_eq!(session.state.name(), "Finished");
    assert!(!names(&effects).contains(&"Reboot"));
}

#[test]
fn leaving_turns_the_machine_off() {
    let welcome = walk(Session::new("1"), [Event::Started, known()]).0;
    let (asked, effects) = walk(welcome.clone(), [key(Key::Escape)]);
    assert_eq!((asked.state.name(), effects), ("ConfirmExit", vec![]));
    assert!(page(&asked).contains("Nothing was changed on it."));
    let (stayed, effects) = walk(asked.clone(), [key(Key::Escape)]);
    assert_eq!((stayed.state, effects), (State::Welcome, vec![]));
    let (left, effects) = walk(asked, [key(Key::Enter)]);
    assert_eq!(
        (&left.state, names(&effects)),
        (&State::Exit, vec!["PowerOff"])
    );
    assert!(page(&left).contains("Turning the machine off"));
    // It does not go: that is said, and there is a way on.
    let (refused, _) = walk(left, [Event::NotLeft("no init".into())]);
    assert_eq!(refused.state.name(), "Error");
    assert!(page(&refused).contains("no init"));
    let (again, effects) = walk(refused, [key(Key::Enter)]);
    assert_eq!(names(&effects), ["ProbeHardware"]);
    assert_eq!(again.state, State::BootSplash);
}

#[test]
fn nothing_is_said_to_be_unchanged_after_a_failed_installation() {
    let events = keys("900140").into_iter().chain([
        key(Key::Enter),
        progress(Step::WriteData),
        Event::Executed(Err(failure())),
        key(Key::Escape),
        key(Key::Escape),
    ]);
    let (session, _) = walk(at_confirm(0, Mode::Install), events);
    assert_eq!(session.state.name(), "ConfirmExit");
    let page = page(&session);
    assert!(!page.contains("Nothing was changed") && page.contains("may not start"));
}

fn finished(mode: Mode) -> Session {
    let at = at_confirm(2, mode);
    let words = match &at.state {
        State::Confirm { words, .. } => words.clone().unwrap_or_default(),
        _ => String::new(),
    };
    let events = keys(&words)
        .into_iter()
        .chain([key(Key::Enter), Event::Executed(Ok(outcome()))]);
    walk(at, events).0
}

#[test]
fn a_token_goes_at_the_second_word_only() {
    let token = "tdb_0f1e2d3c4b5a";
    for (first, effect) in [
        (Key::Enter, "Reboot"),
        (Key::Char('p'), "PowerOff"),
        (Key::Char('P'), "PowerOff"),
    ] {
        let (asked, effects) = walk(finished(Mode::Install), [key(first)]);
        assert_eq!((asked.state.name(), effects), ("Finished", vec![]));
        let shown = page(&asked);
        assert!(shown.contains("Have you written down the token?") && shown.contains(token));
        let (back, effects) = walk(asked.clone(), [key(Key::Escape), key(Key::Export)]);
        assert_eq!(names(&effects), ["ExportLogs"]);
        assert!(!page(&back).contains("Have you written down"));
        let (gone, effects) = walk(asked, [key(Key::Enter)]);
        assert_eq!(
            (gone.state.name(), names(&effects)),
            ("Reboot", vec![effect])
        );
        assert!(!page(&gone).contains(token));
        // The machine refuses: the token is still there.
        let (refused, effects) = walk(gone, [Event::NotLeft("no init".into())]);
        assert_eq!((refused.state.name(), effects), ("Finished", vec![]));
        let shown = page(&refused);
        assert!(shown.contains(token) && shown.contains("no init"));
        assert!(!shown.contains("Have you written down"));
    }
    // Without a token there is nothing to be asked.
    for mode in [Mode::ReinstallKeepData, Mode::RepairBoot] {
        let (_, effects) = walk(finished(mode), [key(Key::Enter)]);
        assert_eq!(names(&effects), ["Reboot"]);
    }
}

#[test]
fn what_was_set_survives_another_look_at_the_machine() {
    let other = || {
        let changed = Settings {
            partitions: 4,
            ..settings()
        };
        Event::Hardware(Ok((hardware(), changed)))
    };
    let welcome = walk(Session::new("1"), [Event::Started, known()]).0;
    // Nobody has set anything: the machine may have changed.
    let (session, _) = walk(welcome.clone(), [key(Key::Rescan), other()]);
    assert_eq!(session.settings.unwrap().partitions, 4);
    let typed = keys("db-7").into_iter().chain([key(Key::Enter)]);
    let (session, _) = walk(welcome, [key(Key::Advanced), key(Key::Delete)]);
    let (session, _) = walk(session, typed);
    let (mut session, _) = walk(session, [key(Key::Rescan), other()]);
    let set = session.settings.clone().unwrap();
    assert_eq!((&set.hostname[..], set.partitions), ("db-7", 8));
    // And after an error.
    session.state = State::BootSplash;
    let events = [Event::Hardware(Err(failure())), key(Key::Enter), other()];
    let (session, _) = walk(session, events);
    assert_eq!(session.settings, Some(set));
}

#[test]
fn whatever_takes_long_is_left_by_escape_and_its_outcome_is_not_taken() {
    let welcome = walk(Session::new("1"), [Event::Started, known()]).0;
    let (searching, effects) = walk(welcome, [key(Key::Enter)]);
    let [Effect::ProbeDisks { order: first }] = effects[..] else {
        panic!("{effects:?}")
    };
    let (session, effects) = walk(searching, [key(Key::Export), key(Key::Escape)]);
    assert_eq!(
        (session.state.clone(), names(&effects)),
        (State::Welcome, vec!["ExportLogs"])
    );
    let (session, _) = walk(session, [key(Key::Enter)]);
    let late = Event::Of {
        order: first,
        outcome: Box::new(Event::Disks(Ok(Vec::new()))),
    };
    assert_eq!(step(session.clone(), late).0, session);
    let (session, _) = walk(session, [Event::Disks(Ok(sample::disks()))]);
    assert_eq!(session.disks.len(), 4);

    // A plan for one disk, and then for another: the first one is not shown as the second.
    let (planning, effects) = walk(session, [key(Key::Down), key(Key::Enter)]);
    let [Effect::MakePlan { order: first, .. }] = effects[..] else {
        panic!("{effects:?}")
    };
    let (session, effects) = walk(
        planning,
        [key(Key::Escape), key(Key::Down), key(Key::Enter)],
    );
    assert_eq!(
        (session.state.name(), names(&effects)),
        ("Planning", vec!["MakePlan"])
    );
    let late = Event::Of {
        order: first,
        outcome: Box::new(planned(0, Mode::Install)),
    };
    assert_eq!(step(session.clone(), late).0, session);
    let (session, _) = walk(session, [planned(1, Mode::Install)]);
    assert_eq!(session.state.name(), "Confirm");
    // What says nothing of its order is nobody's.
    let searching = walk(at_disks(), [key(Key::Rescan)]).0;
    let nobodys = step(searching.clone(), Event::Disks(Ok(Vec::new()))).0;
    assert_eq!(nobodys, searching);
}

#[test]
fn the_first_look_at_the_machine_can_be_left_and_taken_up_again() {
    let splash = walk(Session::new("1"), [Event::Started]).0;
    let (asked, _) = walk(splash, [key(Key::Escape), known()]);
    assert_eq!(asked.state.name(), "ConfirmExit");
    let (session, effects) = walk(asked, [key(Key::Escape)]);
    assert_eq!(
        (session.state.name(), names(&effects)),
        ("BootSplash", vec!["ProbeHardware"])
    );
    assert_eq!(walk(session, [known()]).0.state, State::Welcome);
}

#[test]
fn logs_are_exported_wherever_somebody_may_be_stuck() {
    let said = || Event::Exported(Ok("The logs are on the stick LOGS".into()));
    let splash = walk(Session::new("1"), [Event::Started]).0;
    let mut small = hardware();
    small.memory_bytes = 512 << 20;
    let small = Event::Hardware(Ok((small, settings())));
    let refused = walk(splash.clone(), [small]).0;
    let mut no_disk = at_disks();
    no_disk.disks.clear();
    let searching = walk(at_disks(), [key(Key::Rescan)]).0;
    for session in [splash, refused, no_disk, searching] {
        let name = session.state.name();
        assert!(page(&session).contains("Logs to a stick"), "{name}");
        let (session, effects) = walk(session, [key(Key::Export), said()]);
        assert_eq!(
            (session.state.name(), names(&effects)),
            (name, vec!["ExportLogs"])
        );
        assert!(page(&session).contains("on the stick LOGS"), "{name}");
    }
}

#[test]
fn answers_that_are_taken_end_what_was_said_of_others() {
    let events = [
        Event::Started,
        known(),
        Event::Answers(Err("line 1: unknown".into())),
    ];
    let (session, _) = walk(Session::new("1"), events);
    assert!(page(&session).contains("line 1: unknown"));
    let (session, _) = walk(session, [Event::Answers(Ok(answers(&|_| ())))]);
    assert_eq!(
        (session.state.name(), session.answers_refused),
        ("Searching", None)
    );
}

fn nameless() -> Hardware {
    let mut machine = hardware();
    machine.uuid = None;
    for device in &mut machine.network {
        device.mac = "00:00:00:00:00:00".into();
    }
    machine
}

#[test]
fn a_node_that_nothing_names_is_named_by_a_person() {
    let known = Event::Hardware(Ok((nameless(), settings())));
    let events = [
        Event::Started,
        known,
        key(Key::Enter),
        Event::Disks(Ok(sample::disks())),
        key(Key::Down),
        key(Key::Enter),
    ];
    let (session, effects) = walk(Session::new("1"), events);
    assert_eq!(names(&effects), ["ProbeHardware", "ProbeDisks"]);
    let State::Advanced { form, .. } = &session.state else {
        panic!("{:?}", session.state)
    };
    assert_eq!(form.fields().next(), Some((Field::Hostname, "")));
    assert!(page(&session).contains("Give the node a name"));
    // Not without one, and not with the one that every such machine has.
    let (session, _) = walk(session, [key(Key::Enter)]);
    assert_eq!(session.state.name(), "Advanced");
    let typed = |name: &str| {
        keys(name)
            .into_iter()
            .chain([key(Key::Enter), key(Key::Enter)])
    };
    let (session, _) = walk(session, typed(&settings().hostname));
    assert_eq!(session.state.name(), "Advanced");
    let (session, effects) = walk(session, typed("db-7"));
    assert_eq!(
        (session.state.name(), names(&effects)),
        ("Planning", vec!["MakePlan"])
    );
    // Data that is kept has its name already.
    let known = Event::Hardware(Ok((nameless(), settings())));
    let mut kept = walk(Session::new("1"), [Event::Started, known]).0;
    kept.disks = sample::disks();
    kept.state = State::ModeSelect {
        disk: 2,
        selected: 0,
    };
    assert_eq!(names(&walk(kept, [key(Key::Enter)]).1), ["MakePlan"]);
}

#[test]
fn answers_for_a_machine_that_nothing_names_must_have_a_name() {
    let start = |change: &dyn Fn(&mut Answers)| {
        let events = [
            Event::Started,
            Event::Answers(Ok(answers(change))),
            Event::Hardware(Ok((nameless(), settings()))),
        ];
        walk(Session::new("1"), events).0
    };
    assert_eq!(start(&|_| ()).state, State::Searching);
    let session = start(&|answers| answers.values.clear());
    assert_eq!(session.state, State::Welcome);
    assert!(session.answers_refused.unwrap().contains("hostname"));
    let keep = |answers: &mut Answers| {
        answers.values.clear();
        answers.mode = Mode::ReinstallKeepData;
    };
    assert_eq!(start(&keep).state, State::Searching);
}

#[test]
fn another_disk_with_a_truthdb_is_named_before_and_after() {
    let session = at_confirm(1, Mode::Install);
    let other = "serial S5GXNF0R902142";
    let said = |session: &Session| {
        let page = page(session);
        page.contains("Another disk holds a TruthDB") && page.contains(other)
    };
    assert!(said(&session));
    let events = keys("901141")
        .into_iter()
        .chain([key(Key::Enter), Event::Executed(Ok(outcome()))]);
    assert!(said(&walk(session, events).0));
    // Not of the disk that is chosen itself, by whatever path it is seen.
    let mut session = at_confirm(2, Mode::ReinstallKeepData);
    assert!(!page(&session).contains("Another disk"));
    let mut again = session.disks[2].clone();
    again.identity.path = "/dev/nvme9n1".into();
    session.disks.push(again);
    assert!(!page(&session).contains("Another disk"));
}

#[test]
fn an_older_medium_is_said_to_be_older() {
    let warned = |on_disk: &str, medium: &str, mode| {
        let mut session = at_confirm(2, mode);
        session.disks[2].truthdb.as_mut().unwrap().version = Ok(on_disk.into());
        session.version = medium.into();
        page(&session).contains("this medium has the older")
    };
    let keep = Mode::ReinstallKeepData;
    assert!(warned("0.2.0", "0.1.9", keep) && warned("0.10.0", "0.9.0", keep));
    assert!(warned("1.0.0-rc1", "0.9.9+3", keep));
    for (on_disk, medium) in [
        ("0.1.0", "0.1.0"),
        ("0.0.9", "0.1.0"),
        ("odd", "0.1.0"),
        ("2.0", "1.0"),
    ] {
        assert!(!warned(on_disk, medium, keep), "{on_disk} {medium}");
    }
    assert!(!warned("0.2.0", "0.1.0", Mode::RepairBoot));
}

#[test]
fn what_a_node_is_set_to_is_read_before_it_is_confirmed() {
    let session = at_confirm(0, Mode::Install);
    let shown = page(&session);
    for part in [
        "node: truthdb-4f3a, 8 database partitions",
        "address: by DHCP",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let mut form = Form::of(&settings());
    form.set(Field::Address, "192.0.2.10/24");
    form.set(Field::Gateway, "192.0.2.1");
    let mut fixed = session;
    fixed.settings = Some(form.settings().unwrap());
    assert!(page(&fixed).contains("192.0.2.10/24, router 192.0.2.1, name server none"));
    let kept = page(&at_confirm(2, Mode::ReinstallKeepData));
    assert!(!kept.contains("database partitions"));
}

/// Every line of the plan comes into view by its keys, on the serial line too, and every hash in one piece.
#[test]
fn the_whole_plan_can_be_read() {
    let mut session = at_confirm(1, Mode::Install);
    let State::Confirm { prepared, .. } = &session.state else {
        unreachable!()
    };
    let plan = prepared.plan.clone();
    let mut seen = String::new();
    for _ in 0..20 {
        seen += &text::lines(&pages::of(&session)).join("\n");
        session = walk(session, [key(Key::PageDown)]).0;
    }
    for line in plan.text().lines() {
        for word in line.split(' ') {
            assert!(seen.contains(word), "{word}");
        }
    }
    assert!(seen.contains("BootOrder") && seen.contains("BootNext"));
}
