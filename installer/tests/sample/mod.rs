//! A machine and its disks, for the tests of the flow and of the screens.

#![allow(dead_code, reason = "each test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "helpers of a test fail the test")]

use std::sync::Arc;

use truthdb_installer::executor::{Progress, Step};
use truthdb_installer::flow::{
    Answers, BootEntry, Disk, Effect, Event, Failure, Field, Finish, FoundSystem, Hardware,
    Network, NetworkDevice, Outcome, Prepared, Secrets, SecureBoot, Session, Settings, State, step,
};
use truthdb_installer::input::Key;
use truthdb_installer::plan::{
    ESP_BYTES, FileContent, Mode, OldPartition, Plan, Request, Runtime, Seed, TargetIdentity,
    TargetKind,
};

pub(crate) fn hardware() -> Hardware {
    Hardware {
        product: "Sample Systems R7525".into(),
        uuid: None,
        cpus: 32,
        cpu_model: "AMD EPYC 7313 16-Core Processor".into(),
        memory_bytes: 137_438_953_472,
        efi_variables: true,
        efi: true,
        secure_boot: SecureBoot::Off,
        system_is_signed: true,
        network: vec![
            NetworkDevice {
                name: "eth0".into(),
                mac: "52:54:00:12:34:56".into(),
                link: Some(true),
            },
            NetworkDevice {
                name: "eth1".into(),
                mac: "52:54:00:12:34:57".into(),
                link: Some(false),
            },
        ],
        clock_s: 1_764_000_000,
        sent_to_disk_s: None,
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        hostname: "truthdb-4f3a".into(),
        network: Network::Dhcp,
        partitions: 8,
        time_server: "pool.ntp.org".into(),
        serial_console: true,
    }
}

pub(crate) fn disk(number: u8) -> Disk {
    Disk {
        identity: TargetIdentity {
            kind: TargetKind::Disk,
            path: format!("/dev/nvme{number}n1").into(),
            model: "Sample SSD 980 PRO".into(),
            serial: format!("S5GXNF0R90{number}14{number}"),
            wwn: format!("eui.002538511140{number:04}"),
            size_bytes: 1_920_383_410_176,
            sector_bytes: 512,
            disk_sequence: Some(u64::from(number) + 1),
        },
        bus: "nvme".into(),
        contents: Vec::new(),
        partitions: Vec::new(),
        disk_id: None,
        truthdb: None,
        refused: None,
    }
}

/// An empty one, one full of old things, one with a TruthDB, one that is too small.
pub(crate) fn disks() -> Vec<Disk> {
    let mut old = disk(1);
    old.contents = vec![
        "a partition table with 3 partitions".into(),
        "LVM".into(),
        "ext4 \"srv\"".into(),
    ];
    let mut truthdb = disk(2);
    truthdb.truthdb = Some(FoundSystem {
        version: Ok("0.0.9".into()),
        answers: None,
        has_primary_table: true,
        is_complete: true,
        is_kept: false,
        is_unused: false,
    });
    truthdb.contents = vec!["TruthDB 0.0.9".into()];
    let plan = Plan::new(&request(&truthdb, Mode::Install)).unwrap();
    truthdb.disk_id = Some(plan.disk_id);
    truthdb.partitions = [&plan.esp, &plan.data]
        .map(|partition| OldPartition {
            number: partition.number,
            first_sector: partition.first_sector,
            last_sector: partition.last_sector,
            kind: Some(partition.kind),
            id: Some(partition.id),
            name: partition.name.clone(),
        })
        .to_vec();
    let mut stick = disk(3);
    stick.identity.model = "USB Stick".into();
    stick.identity.path = "/dev/sda".into();
    stick.identity.serial = String::new();
    stick.identity.size_bytes = 4_004_511_744;
    stick.bus = "usb".into();
    stick.refused = Some("it holds this installer".into());
    vec![disk(0), old, truthdb, stick]
}

pub(crate) fn request(disk: &Disk, mode: Mode) -> Request {
    let file = |path: &str| FileContent {
        path: path.into(),
        mode: 0o600,
        bytes: path.as_bytes().into(),
    };
    let files = [
        "config/truthdb.toml",
        "config/node.toml",
        "server/tokens.toml",
    ];
    let is_fresh = mode == Mode::Install;
    Request {
        target: disk.identity.clone(),
        mode,
        seed: Seed::fixed([9; 32]),
        created_s: 1_764_000_000,
        esp_bytes: ESP_BYTES,
        runtime: Runtime {
            version: "0.1.0".into(),
            image: vec![7u8; 100_000].into(),
        },
        data_files: if is_fresh {
            files.map(file).to_vec()
        } else {
            Vec::new()
        },
        data_directories: Vec::new(),
        old_partitions: disk.partitions.clone(),
        old_disk_id: disk.disk_id,
        boot_entry: true,
        answers: None,
    }
}

pub(crate) fn prepared(disk: &Disk, mode: Mode) -> Prepared {
    let secrets = Secrets {
        token: format!("tdb_0f1e2d3c4b5a_{}", "0123456789abcdef".repeat(4)),
        fingerprint: ["5f:3c:9a:01"; 8].join(":"),
    };
    Prepared {
        plan: Arc::new(Plan::new(&request(disk, mode)).unwrap()),
        secrets: (mode == Mode::Install).then_some(secrets),
    }
}

pub(crate) fn outcome() -> Outcome {
    Outcome {
        written_bytes: 231_000_000,
        verified_bytes: 214_000_000,
        data_check: "truthdb-data: 18/262144 files, 42801/468451584 blocks".into(),
        boot_entry: BootEntry::Registered,
        seconds: 6,
    }
}

pub(crate) fn failure() -> Failure {
    Failure {
        doing: "Write the data partition".into(),
        cause: "The disk refuses to write at byte 1074790400 (input/output error). Replace it, or choose \
                another one."
            .into(),
        consequence: "What was on the disk is lost, at least in part, and it does not boot. Trying again is safe."
            .into(),
    }
}

/// An outcome of the last order, as the program tells it; other events as they are.
pub(crate) fn told(session: &Session, event: Event) -> Event {
    match event {
        Event::Disks(_) | Event::Planned(_) => Event::Of {
            order: session.order,
            outcome: Box::new(event),
        },
        event => event,
    }
}

/// Walks through events; gives every effect on the way.
pub(crate) fn walk(
    session: Session,
    events: impl IntoIterator<Item = Event>,
) -> (Session, Vec<Effect>) {
    let mut all = Vec::new();
    let mut session = session;
    for event in events {
        let event = told(&session, event);
        let (next, effects) = step(session, event);
        session = next;
        all.extend(effects);
    }
    (session, all)
}

pub(crate) fn keys(text: &str) -> Vec<Event> {
    text.chars().map(|c| Event::Key(Key::Char(c))).collect()
}

/// At the choice of the disk, with all sample disks.
pub(crate) fn at_disks() -> Session {
    let events = [
        Event::Started,
        Event::Hardware(Ok((hardware(), settings()))),
        Event::Key(Key::Enter),
        Event::Disks(Ok(disks())),
    ];
    walk(Session::new("0.1.0"), events).0
}

/// At the confirmation of a disk.
pub(crate) fn at_confirm(number: usize, mode: Mode) -> Session {
    let mut session = at_disks();
    session.state = State::Planning { disk: number, mode };
    let prepared = prepared(&session.disks[number], mode);
    walk(session, [Event::Planned(Ok(prepared))]).0
}

pub(crate) fn names(effects: &[Effect]) -> Vec<&'static str> {
    effects
        .iter()
        .map(|effect| match effect {
            Effect::ProbeHardware => "ProbeHardware",
            Effect::ProbeAnswers => "ProbeAnswers",
            Effect::ProbeDisks { .. } => "ProbeDisks",
            Effect::MakePlan { .. } => "MakePlan",
            Effect::Execute { .. } => "Execute",
            Effect::ExportLogs => "ExportLogs",
            Effect::StartDiskNext { .. } => "StartDiskNext",
            Effect::Reboot => "Reboot",
            Effect::PowerOff => "PowerOff",
        })
        .collect()
}

pub(crate) fn key(key: Key) -> Event {
    Event::Key(key)
}

pub(crate) fn progress(step: Step) -> Event {
    Event::Progressed(Progress {
        step,
        done_bytes: 1,
        total_bytes: 2,
    })
}

pub(crate) fn answers(change: &dyn Fn(&mut Answers)) -> Answers {
    let mut answers = Answers {
        disk: disk(1).identity.serial,
        wipe: true,
        mode: Mode::Install,
        values: vec![
            (Field::Hostname, "node-3".into()),
            (Field::Address, "10.0.0.3/24".into()),
        ],
        finish: Finish::Reboot,
        again: false,
    };
    change(&mut answers);
    answers
}
