//! What the flow's effects do: looking at the machine, making a plan, carrying it out.
//!
//! Each is a function that takes what it needs and gives the event for the flow; the program runs them
//! on a thread of their own.

use std::path::PathBuf;
use std::sync::Arc;

use crate::answers;
use crate::executor::{self, ExecuteError, FileTarget, Progress, Tools, read_esp};
use crate::flow::{BootEntry, Disk, Event, Failure, Outcome, Prepared, Session, Settings};
use crate::node;
use crate::plan::{
    ByteRange, ESP_BYTES, ESP_NAME, Mode, Plan, Request, Runtime, Seed, Sha256, human_bytes,
};
use crate::platform::machine::{available_memory, clock_s, look, monotonic_ms};
use crate::platform::{System, disks, efi, sticks};

/// Least time between two reports of progress, in milliseconds.
const PROGRESS_MS: u64 = 100;
/// Bytes of the kernel's messages that are taken along.
const KERNEL_LOG_BYTES_MAX: usize = 512 << 10;

/// Where the installer finds what it installs and what it works with.
#[derive(Debug, Clone)]
pub struct Places {
    /// The machine.
    pub system: System,
    /// The runtime's image.
    pub payload: PathBuf,
    /// Its version, one line.
    pub payload_version: PathBuf,
    /// The programs of e2fsprogs.
    pub tools: Tools,
}

impl Places {
    /// Those of the installation medium.
    #[must_use]
    pub fn of_medium() -> Places {
        Places {
            system: System::real(),
            payload: "/payload/TruthDBRuntime.efi".into(),
            payload_version: "/payload/version".into(),
            tools: Tools {
                mke2fs: "/sbin/mke2fs".into(),
                debugfs: "/sbin/debugfs".into(),
                e2fsck: "/sbin/e2fsck".into(),
                scratch: "/run".into(),
            },
        }
    }

    /// Version of the system on this medium; the program's own when the medium does not say.
    #[must_use]
    pub fn version(&self) -> String {
        let text = std::fs::read_to_string(&self.payload_version).unwrap_or_default();
        let version = text.trim();
        if version.is_empty() {
            env!("CARGO_PKG_VERSION").to_owned()
        } else {
            version.to_owned()
        }
    }
}

/// The machine, and the answers for it if there are any. The answers come first.
#[must_use]
pub fn probe_hardware(places: &Places) -> Vec<Event> {
    let system = &places.system;
    let hardware = look(system, &places.payload);
    tracing::info!(?hardware, "the machine");
    let mut events: Vec<Event> = probe_answers(places).into_iter().collect();
    let settings = node::default_settings(&hardware);
    events.push(Event::Hardware(Ok((hardware, settings))));
    events
}

/// The answers, if there are any.
#[must_use]
pub fn probe_answers(places: &Places) -> Option<Event> {
    let system = &places.system;
    let given = match answers::from_command_line(&system.text("proc/cmdline")) {
        Some(text) => Ok(Some(text)),
        None => sticks::answers(system),
    };
    match given {
        Ok(text) => text.map(|text| Event::Answers(answers::parse(&text))),
        Err(reason) => Some(Event::Answers(Err(reason))),
    }
}

/// The disks.
#[must_use]
pub fn probe_disks(places: &Places) -> Event {
    let system = &places.system;
    let found = disks::all(system, efi::boot_partition(system));
    for disk in &found {
        tracing::info!(?disk, "a disk");
    }
    Event::Disks(Ok(found))
}

/// A plan for a disk.
#[must_use]
pub fn make_plan(
    places: &Places,
    disk: &Disk,
    mode: Mode,
    settings: &Settings,
    answers: Option<Sha256>,
) -> Event {
    let made = prepare(places, disk, mode, settings, answers);
    let made = made.map_err(|cause| Failure {
        doing: "Making the plan".into(),
        cause,
        consequence: "Nothing was written to the disk.".into(),
    });
    if let Ok(prepared) = &made {
        tracing::info!("the plan\n{}", prepared.plan.text());
    }
    Event::Planned(made)
}

fn prepare(
    places: &Places,
    disk: &Disk,
    mode: Mode,
    settings: &Settings,
    answers: Option<Sha256>,
) -> Result<Prepared, String> {
    let hardware = look(&places.system, &places.payload);
    let created_s = clock_s();
    let seed =
        Seed::random().map_err(|error| format!("the machine gives no randomness: {error}"))?;
    let (runtime, files, directories, secrets) = match mode {
        Mode::Install => {
            let (files, secrets) =
                node::files(&hardware, settings, created_s).map_err(|error| error.to_string())?;
            (payload(places)?, files, node::directories(), Some(secrets))
        }
        Mode::ReinstallKeepData => (payload(places)?, Vec::new(), Vec::new(), None),
        Mode::RepairBoot => (system_on(disk, places)?, Vec::new(), Vec::new(), None),
    };
    node::check_partitions(&hardware, settings.partitions).or_else(|reason| match mode {
        Mode::Install => Err(reason),
        // What is kept has the partitions that it has.
        Mode::ReinstallKeepData | Mode::RepairBoot => Ok(()),
    })?;
    let mut request = Request {
        target: disk.identity.clone(),
        mode,
        seed,
        created_s,
        esp_bytes: ESP_BYTES,
        runtime,
        data_files: files,
        data_directories: directories,
        old_partitions: disk.partitions.clone(),
        old_disk_id: disk.disk_id,
        boot_entry: true,
        // A node that is kept was made by the answers that made it, whoever mends its system.
        answers: answers.or_else(|| {
            let kept = disk.truthdb.as_ref().filter(|_| mode != Mode::Install);
            kept.and_then(|found| found.answers)
        }),
    };
    let mut plan = Plan::new(&request).map_err(|error| error.to_string())?;
    if mode == Mode::Install {
        let origin = node::Origin {
            hardware: &hardware,
            version: &request.runtime.version,
            answers,
        };
        let record = node::record(&origin, &plan.text());
        request.data_files.push(record);
        plan = Plan::new(&request).map_err(|error| error.to_string())?;
    }
    check_memory(places, &plan)?;
    Ok(Prepared {
        plan: Arc::new(plan),
        secrets,
    })
}

/// Whether the machine has the memory to make what the plan wants: said now, not in the middle.
fn check_memory(places: &Places, plan: &Plan) -> Result<(), String> {
    let needed = plan.memory_bytes();
    match available_memory(&places.system) {
        Some(free) if free < needed => Err(format!(
            "to prepare a disk of this size, {} of free memory are needed, and this machine has {}. Add memory, \
             or choose a smaller disk.",
            human_bytes(needed),
            human_bytes(free)
        )),
        _ => executor::check_room(plan, &places.tools).map_err(|cause| cause.to_string()),
    }
}

/// Has the firmware start a disk next.
#[must_use]
pub fn start_disk_next(places: &Places, disk: &Disk) -> Event {
    let taken = efi::start_disk_next(&places.system, disk);
    tracing::info!(?taken, "the disk is to be started next");
    Event::DiskNext(taken)
}

fn payload(places: &Places) -> Result<Runtime, String> {
    let image = std::fs::read(&places.payload).map_err(|error| {
        format!(
            "the system to be installed is not on this medium ({}: {error}). Make the medium again.",
            places.payload.display()
        )
    })?;
    Ok(Runtime {
        version: places.version(),
        image: image.into(),
    })
}

/// The system that a disk holds, to be made bootable again.
fn system_on(disk: &Disk, places: &Places) -> Result<Runtime, String> {
    let advice =
        |reason: String| format!("{reason}. Reinstall the system and keep the data instead.");
    let esp = disk.partitions.iter().find(|old| old.name == ESP_NAME);
    let esp = esp.ok_or_else(|| advice("the system partition is missing".into()))?;
    let sector_bytes = u64::from(disk.identity.sector_bytes);
    let range = ByteRange {
        start: esp.first_sector.saturating_mul(sector_bytes),
        end: esp
            .last_sector
            .saturating_add(1)
            .saturating_mul(sector_bytes),
    };
    let device = device(places, disk);
    let mut target =
        FileTarget::open_to_read(&device).map_err(|error| advice(error.to_string()))?;
    let found = read_esp(&mut target, range).map_err(advice)?;
    Ok(Runtime {
        version: found.version,
        image: found.image,
    })
}

fn device(places: &Places, disk: &Disk) -> PathBuf {
    let path = &disk.identity.path;
    let relative = path.strip_prefix("/").unwrap_or(path);
    places.system.path(&relative.to_string_lossy())
}

/// Carries a plan out. Progress goes to `tell`, not more often than ten times a second.
pub fn execute(places: &Places, prepared: &Prepared, tell: &mut dyn FnMut(Event)) -> Event {
    let began_ms = monotonic_ms();
    let plan = &prepared.plan;
    let outcome = run(places, plan, tell).map(|report| {
        let boot_entry = match efi::register(&places.system, plan) {
            Ok(()) => BootEntry::Registered,
            Err(reason) => BootEntry::FallbackOnly(reason),
        };
        tracing::info!(?report, ?boot_entry, "done");
        Outcome {
            written_bytes: report.written_bytes,
            verified_bytes: report.verified_bytes,
            data_check: report.data_check,
            boot_entry,
            seconds: (monotonic_ms() - began_ms).div_ceil(1000),
        }
    });
    if let Err(failure) = &outcome {
        tracing::error!(?failure, "the plan was not carried out");
    }
    Event::Executed(outcome)
}

fn run(
    places: &Places,
    plan: &Plan,
    tell: &mut dyn FnMut(Event),
) -> Result<executor::Report, Failure> {
    let path = &plan.target.path;
    let device = places
        .system
        .path(&path.strip_prefix("/").unwrap_or(path).to_string_lossy());
    let system = places.system.clone();
    let identity_path = path.clone();
    let identity = Box::new(move |_: &std::path::Path| disks::identity(&system, &identity_path));
    let mut target = FileTarget::open_disk(&device, identity).map_err(|error| Failure {
        doing: "Opening the disk".into(),
        cause: format!(
            "{} cannot be opened for this program alone ({error}). Look again, and choose the disk again.",
            path.display()
        ),
        consequence: "Nothing was written to the disk.".into(),
    })?;
    let mut last: Option<(Progress, u64)> = None;
    let mut progress = |now: Progress| {
        let now_ms = monotonic_ms();
        let is_due = last.is_none_or(|(before, told_ms)| {
            before.step != now.step || now_ms - told_ms >= PROGRESS_MS
        });
        if is_due {
            last = Some((now, now_ms));
            tell(Event::Progressed(now));
        }
    };
    executor::run(plan, &mut target, &places.tools, &mut progress).map_err(
        |ExecuteError {
             step,
             cause,
             changed,
         }| Failure {
            doing: step.title().into(),
            cause: first_upper(&cause.to_string()),
            consequence: changed.to_string(),
        },
    )
}

fn first_upper(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// Everything a person needs to help from afar, as one text: no token and no key.
#[must_use]
pub fn support_text(session: &Session, messages: &str, system: &System) -> String {
    let mut text = format!(
        "TruthDB installer {}\nsystem on the medium: {}\nstate: {}\n\n",
        env!("CARGO_PKG_VERSION"),
        session.version,
        session.state.name()
    );
    let mut part = |title: &str, content: &str| {
        text.push_str(&format!("== {title}\n{}\n\n", content.trim_end()));
    };
    let page = crate::ui::pages::of(session);
    let is_secret = matches!(session.state, crate::flow::State::Finished { .. });
    if !is_secret {
        part("screen", &crate::ui::text::lines(&page).join("\n"));
    }
    part("command line", &system.text("proc/cmdline"));
    part("machine", &format!("{:#?}", session.hardware));
    part("disks", &format!("{:#?}", session.disks));
    part("messages", messages);
    part("kernel", &kernel_log(system));
    text
}

/// The kernel's messages, as far as it still has them.
fn kernel_log(system: &System) -> String {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(system.path("dev/kmsg"));
    let Ok(mut file) = opened else {
        return "not to be had".into();
    };
    let mut text = String::new();
    // One message a read; the end is an error that says "would block".
    let mut record = [0u8; 8192];
    while text.len() < KERNEL_LOG_BYTES_MAX {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(read) => text.push_str(&String::from_utf8_lossy(&record[..read])),
            // A message was overwritten while it was read; the next one follows.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    text
}
