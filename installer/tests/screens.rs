//! Every screen, as text and as picture. `TRUTHDB_BLESS=1` accepts what is drawn now; look at it first:
//! with `TRUTHDB_PICTURES=folder` the test writes every picture there.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

mod sample;

use std::fmt::Write as _;

use sample::{at_confirm, at_disks, failure, hardware, keys, outcome, prepared, settings, walk};
use truthdb_installer::executor::{Progress, Step};
use truthdb_installer::flow::{BootEntry, Event, Outcome, SecureBoot, Session, State};
use truthdb_installer::input::Key;
use truthdb_installer::plan::{Mode, Sha256};
use truthdb_installer::ui::draw::Renderer;
use truthdb_installer::ui::{Page, pages, text};

const SIZES: [(u32, u32); 4] = [(640, 480), (1024, 768), (1920, 1080), (3840, 2160)];

fn screens() -> Vec<(&'static str, Page)> {
    let welcome = walk(
        Session::new("0.1.0"),
        [
            Event::Started,
            Event::Hardware(Ok((hardware(), settings()))),
        ],
    )
    .0;
    let mut doubtful = hardware();
    doubtful.secure_boot = SecureBoot::On;
    doubtful.clock_s = 0;
    doubtful.memory_bytes = 512 << 20;
    let doubtful = walk(
        Session::new("0.1.0"),
        [Event::Started, Event::Hardware(Ok((doubtful, settings())))],
    )
    .0;
    let down = Event::Key(Key::Down);
    let selected = walk(at_disks(), [down.clone(), down.clone()]).0;
    let mode = walk(selected.clone(), [down.clone(), Event::Key(Key::Enter)]).0;
    let mut none = at_disks();
    none.disks.clear();
    let settings = walk(
        at_disks(),
        [
            Event::Key(Key::Advanced),
            down.clone(),
            Event::Key(Key::Delete),
        ],
    )
    .0;
    let refused = walk(settings.clone(), [Event::Key(Key::Enter)]).0;
    let confirm = walk(at_confirm(1, Mode::Install), keys("900")).0;
    let keep = at_confirm(2, Mode::ReinstallKeepData);
    let start = |session: Session, words: &str| {
        walk(
            session,
            keys(words).into_iter().chain([Event::Key(Key::Enter)]),
        )
        .0
    };
    let installing = start(at_confirm(1, Mode::Install), "901141");
    let at = |step, done_bytes| {
        Event::Progressed(Progress {
            step,
            done_bytes,
            total_bytes: 134_000_000,
        })
    };
    let installing = walk(installing, [at(Step::WriteData, 61_000_000)]).0;
    let verifying = walk(installing.clone(), [at(Step::Verify, 121_000_000)]).0;
    let finished = walk(verifying.clone(), [Event::Executed(Ok(outcome()))]).0;
    let error = walk(installing.clone(), [Event::Executed(Err(failure()))]).0;
    let exported = Event::Exported(Ok(
        "The logs are on the stick LOGS, in truthdb-logs.txt.".into()
    ));
    let error = walk(error, [exported]).0;
    let mut already = at_disks();
    already.state = State::AlreadyInstalled {
        disk: 2,
        notice: Some(
            "The disk cannot be started from here: the firmware keeps no note (denied).".into(),
        ),
    };
    let mut asked = at_disks();
    asked.state = State::ModeSelect {
        disk: 2,
        selected: 0,
    };
    asked.answers_refused = Some(
        "the disk holds TruthDB 0.0.9. It is erased only by a file that says again = true".into(),
    );
    let mut leave = welcome.clone();
    leave.state = State::ConfirmExit {
        back: Box::new(State::Welcome),
    };
    let of = |name, session: &Session| (name, pages::of(session));
    let mut all = vec![
        of("splash", &Session::new("0.1.0")),
        of("welcome", &welcome),
        of("welcome-bad", &doubtful),
        of("disks", &selected),
        of("no-disks", &none),
        of("modes", &mode),
        of("modes-answers", &asked),
        of("settings", &settings),
        of("settings-refused", &refused),
        of("confirm", &confirm),
        of("confirm-keep", &keep),
        of("installing", &installing),
        of("verifying", &verifying),
        of("finished", &finished),
        of("already", &already),
        of("error", &error),
        of("leave", &leave),
    ];
    all.extend(endings());
    all.extend(rare_ones());
    all
}

/// The words are typed, and the plan is carried out.
fn carried_out(session: Session, outcome: Outcome) -> Session {
    let words = match &session.state {
        State::Confirm { words, .. } => words.clone().unwrap_or_default(),
        _ => String::new(),
    };
    let end = [Event::Key(Key::Enter), Event::Executed(Ok(outcome))];
    walk(session, keys(&words).into_iter().chain(end)).0
}

/// Last pages.
fn endings() -> Vec<(&'static str, Page)> {
    let mut fallback = outcome();
    fallback.boot_entry = BootEntry::FallbackOnly(
        "the firmware refuses a new order of boot entries: no space left on device".into(),
    );
    let mut alone = at_confirm(1, Mode::Install);
    alone.disks.truncate(2);
    let fallback = carried_out(alone.clone(), fallback);
    let enter = Event::Key(Key::Enter);
    let asked = walk(carried_out(alone, outcome()), [enter]).0;
    let beside = carried_out(at_confirm(1, Mode::Install), outcome());
    let kept = carried_out(at_confirm(2, Mode::ReinstallKeepData), outcome());
    let repaired = carried_out(at_confirm(2, Mode::RepairBoot), outcome());
    let of = |name, session: &Session| (name, pages::of(session));
    vec![
        of("finished-fallback", &fallback),
        of("finished-asked", &asked),
        of("finished-beside-another", &beside),
        of("finished-keep", &kept),
        of("finished-repair", &repaired),
    ]
}

/// Pages of machines that are not the usual ones.
fn rare_ones() -> Vec<(&'static str, Page)> {
    let mut nameless = at_disks();
    nameless.disks[0].identity.serial = String::new();
    nameless.state = State::Planning {
        disk: 0,
        mode: Mode::Install,
    };
    let plan = prepared(&nameless.disks[0], Mode::Install);
    let erase = walk(nameless, [Event::Planned(Ok(plan))]).0;
    let repair = at_confirm(2, Mode::RepairBoot);
    let mut older = at_confirm(2, Mode::ReinstallKeepData);
    older.disks[2].truthdb.as_mut().unwrap().version = Ok("0.2.0".into());
    let mut many = at_disks();
    many.disks = (0..24).map(sample::disk).collect();
    many.state = State::DiskSelect {
        selected: Some(13),
        notice: None,
    };
    let waiting = [
        Event::Started,
        Event::Answers(Ok(sample::answers(&|answers| answers.disk = "ZX81".into()))),
        Event::Hardware(Ok((hardware(), settings()))),
        Event::Disks(Ok(sample::disks())),
    ];
    let waiting = walk(Session::new("0.1.0"), waiting).0;
    let mut worst = hardware();
    worst.memory_bytes = 512 << 20;
    (worst.efi, worst.efi_variables) = (false, false);
    worst.network.clear();
    worst.clock_s = 0;
    let worst = [Event::Started, Event::Hardware(Ok((worst, settings())))];
    let worst = walk(Session::new("0.1.0"), worst).0;
    let searching = walk(at_disks(), [Event::Key(Key::Rescan)]).0;
    let said = Event::Exported(Err("there is no stick with a FAT file system".into()));
    let searching = walk(searching, [said]).0;
    let mut left = worst.clone();
    left.executed = true;
    let left = walk(left, [Event::Key(Key::Escape)]).0;
    let of = |name, session: &Session| (name, pages::of(session));
    vec![
        of("confirm-erase", &erase),
        of("confirm-repair", &repair),
        of("confirm-older", &older),
        of("disks-many", &many),
        of("disks-waiting", &waiting),
        of("welcome-worst", &worst),
        of("searching", &searching),
        of("leave-begun", &left),
    ]
}

fn check(name: &str, found: &str) {
    let path = format!("{}/tests/screens/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("TRUTHDB_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "{path} differs (TRUTHDB_BLESS=1 accepts the change):\n{found}"
    );
}

#[test]
fn screens_as_text() {
    let mut all = String::new();
    for (name, page) in screens() {
        writeln!(all, "##### {name}").unwrap();
        // One more would push the first line out of a terminal of 24.
        assert!(
            text::lines(&page).len() <= 24,
            "{name}: {:#?}",
            text::lines(&page)
        );
        for line in text::lines(&page) {
            assert!(line.chars().count() <= 110, "{name}: {line}");
            writeln!(all, "{}", line.trim_end()).unwrap();
        }
        all.push('\n');
    }
    check("serial.txt", &all);
}

/// The hash of each picture is compared; pixels differ when a font, a shape or a text does.
#[test]
fn screens_as_pictures() {
    let renderer = Renderer::new();
    let folder = std::env::var_os("TRUTHDB_PICTURES");
    let mut hashes = String::new();
    for (name, page) in screens() {
        for (width, height) in SIZES {
            let picture = renderer.render(&page, width, height).unwrap();
            writeln!(
                hashes,
                "{name} {width}x{height} {}",
                Sha256::of(picture.data())
            )
            .unwrap();
            if let Some(folder) = &folder {
                let file = format!("{name}-{width}x{height}.png");
                picture
                    .save_png(std::path::Path::new(folder).join(file))
                    .unwrap();
            }
        }
    }
    check("pictures.txt", &hashes);
}

#[test]
fn odd_sizes_and_endless_texts_are_drawn() {
    let renderer = Renderer::new();
    let (_, mut page) = screens().remove(9);
    page.title = "endless".repeat(200);
    page.intro = "\u{1f600} \u{0} \n".repeat(50);
    for (width, height) in [(1, 1), (320, 200), (200, 2000), (16_384, 3)] {
        assert!(
            renderer.render(&page, width, height).is_some(),
            "{width}x{height}"
        );
    }
    assert!(renderer.render(&page, 0, 5).is_none() && renderer.render(&page, 20_000, 5).is_none());
}
