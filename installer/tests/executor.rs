//! The executor on image files: judged by the tools of others, on clean and on dirty disks, with
//! errors at every call, and with the power cut at every flush.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "helpers of a test fail the test, and its sizes are small"
)]

mod executor_data;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use truthdb_installer::executor::{
    self, Cause, Changed, ExecuteError, FileTarget, Report, Step, Target, Tools, read_esp,
    read_table,
};
use truthdb_installer::plan::{
    ByteRange, ESP_BYTES_MIN_512, FALLBACK_PATH, FileContent, MIB, Mode, Plan, Request, Runtime,
    Seed, Sha256, TargetIdentity,
};

/// Small, so that a test takes a second: the smallest data partition, and ESPs of 64 and 264 MiB.
const DISK_BYTES: u64 = 1400 * MIB;

fn request(path: &Path, sector_bytes: u32, seed: u8) -> Request {
    let file = |path: &str, mode, text: &str| FileContent {
        path: path.into(),
        mode,
        bytes: text.as_bytes().into(),
    };
    Request {
        target: TargetIdentity::image(path.into(), DISK_BYTES, sector_bytes),
        mode: Mode::Install,
        seed: Seed::fixed([seed; 32]),
        created_s: 1_767_225_600,
        esp_bytes: if sector_bytes == 512 {
            ESP_BYTES_MIN_512
        } else {
            264 * MIB
        },
        runtime: Runtime {
            version: format!("0.1.{seed}"),
            image: (0..1_000_001u32)
                .map(|at| (at % 251) as u8 ^ seed)
                .collect(),
        },
        data_files: vec![
            file(
                "config/truthdb.toml",
                0o644,
                "[data]\ndirectory = \"/data\"\n",
            ),
            file("server/tokens.toml", 0o600, "# none\n"),
            file("empty", 0o600, ""),
        ],
        data_directories: vec![("log".into(), 0o755), ("server".into(), 0o700)],
        old_partitions: Vec::new(),
        old_disk_id: None,
        boot_entry: true,
        answers: None,
    }
}

fn tools(directory: &Path) -> Tools {
    Tools::of_system(directory)
}

fn execute(plan: &Plan, target: &mut dyn Target, scratch: &Path) -> Result<Report, ExecuteError> {
    executor::run(plan, target, &tools(scratch), &mut |_| ())
}

/// The request that keeps the data of what was installed.
fn kept(plan: &Plan, mode: Mode, seed: u8) -> Request {
    let mut request = request(&plan.target.path, plan.target.sector_bytes, seed);
    let mut file = File::open(&plan.target.path).unwrap();
    let (primary, backup) = read_table(&mut file, plan.target.sector_bytes).unwrap();
    let table = primary.valid().or_else(|| backup.valid()).unwrap().clone();
    request.mode = mode;
    request.data_files.clear();
    request.data_directories.clear();
    request.old_partitions = table.partitions;
    request.old_disk_id = Some(table.disk_id);
    request
}

/// Runs a judge that must be satisfied, and gives what it says.
fn judge(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {said}{errors}"
    );
    said
}

fn judge_image(plan: &Plan, directory: &Path) {
    let image = plan.target.path.to_str().unwrap();
    if plan.target.sector_bytes == 512 {
        let said = judge("/sbin/sgdisk", &["-v", image]);
        assert!(said.contains("No problems found"), "{said}");
    }
    let esp = plan.range(&plan.esp);
    let copy = directory.join("esp.img");
    copy_range(Path::new(image), esp, &copy);
    judge("/sbin/fsck.vfat", &["-n", copy.to_str().unwrap()]);
    let data = format!("{image}?offset={}", plan.range(&plan.data).start);
    judge("/sbin/e2fsck", &["-f", "-n", &data]);
    let said = judge("/sbin/debugfs", &["-R", "stat /server/tokens.toml", &data]);
    assert!(
        said.contains("Mode:  0600") && said.contains("User:     0"),
        "{said}"
    );
    let said = judge("/sbin/debugfs", &["-R", "cat /config/truthdb.toml", &data]);
    assert_eq!(said, "[data]\ndirectory = \"/data\"\n");
    let said = judge("/sbin/debugfs", &["-R", "show_super_stats -h", &data]);
    let on_error = said
        .lines()
        .find(|line| line.starts_with("Errors behavior:"));
    assert!(
        on_error.is_some_and(|line| line.ends_with("Remount read-only")),
        "{said}"
    );
}

fn copy_range(from: &Path, range: ByteRange, to: &Path) {
    let mut from = File::open(from).unwrap();
    from.seek(SeekFrom::Start(range.start)).unwrap();
    let mut out = File::create(to).unwrap();
    io::copy(&mut from.take(range.bytes()), &mut out).unwrap();
}

fn hash_of(path: &Path) -> Sha256 {
    Sha256::of(&std::fs::read(path).unwrap())
}

fn install(path: &Path, sector_bytes: u32, seed: u8, scratch: &Path) -> Plan {
    let plan = Plan::new(&request(path, sector_bytes, seed)).unwrap();
    let mut target = FileTarget::create_image(path, DISK_BYTES).unwrap();
    execute(&plan, &mut target, scratch).unwrap();
    plan
}

#[test]
fn the_judges_are_satisfied_and_the_same_plan_gives_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    for sector_bytes in [512, 4096] {
        let path = directory.path().join("a.img");
        let plan = install(&path, sector_bytes, 1, directory.path());
        judge_image(&plan, directory.path());
        let first = hash_of(&path);
        let again = directory.path().join("b.img");
        install(&again, sector_bytes, 1, directory.path());
        assert_eq!(first, hash_of(&again), "{sector_bytes}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), 3, "scratch files stay: {left:?}");
}

#[test]
fn a_disk_full_of_old_bytes_is_no_different() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dirty.img");
    let file = File::create(&path).unwrap();
    let dirt = vec![0xa5u8; 1 << 20];
    for at in 0..DISK_BYTES / MIB {
        file.write_all_at(&dirt, at * MIB).unwrap();
    }
    drop(file);
    let plan = Plan::new(&request(&path, 512, 3)).unwrap();
    let mut steps = Vec::new();
    let mut target = FileTarget::open_image(&path).unwrap();
    let report = executor::run(
        &plan,
        &mut target,
        &tools(directory.path()),
        &mut |progress| {
            assert!(progress.done_bytes <= progress.total_bytes, "{progress:?}");
            if steps.last() != Some(&progress.step) {
                steps.push(progress.step);
            }
        },
    )
    .unwrap();
    assert_eq!(steps, Step::ALL);
    assert!(report.verified_bytes > 64 * MIB && report.written_bytes > report.verified_bytes);
    assert!(
        report.data_check.contains("truthdb-data"),
        "{}",
        report.data_check
    );
    judge_image(&plan, directory.path());
}

#[test]
fn data_survives_a_reinstallation_and_a_repair() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let plan = install(&path, 512, 1, directory.path());
    let data = plan.range(&plan.data);
    let data_copy = directory.path().join("data.img");
    copy_range(&path, data, &data_copy);
    let before = hash_of(&data_copy);

    // The primary table is lost; the backup is enough.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 1024], 0).unwrap();
    let reinstall = Plan::new(&kept(&plan, Mode::ReinstallKeepData, 2)).unwrap();
    let mut target = FileTarget::open_image(&path).unwrap();
    execute(&reinstall, &mut target, directory.path()).unwrap();
    judge_image(&reinstall, directory.path());
    let system = read_esp(&mut target, reinstall.range(&reinstall.esp)).unwrap();
    assert_eq!(system.version, "0.1.2");

    // A repair takes the system that is there.
    let mut repair = kept(&plan, Mode::RepairBoot, 4);
    repair.runtime = Runtime {
        version: system.version,
        image: system.image,
    };
    let repair = Plan::new(&repair).unwrap();
    execute(&repair, &mut target, directory.path()).unwrap();
    judge_image(&repair, directory.path());
    copy_range(&path, data, &data_copy);
    assert_eq!(before, hash_of(&data_copy));

    // Another disk in its place is refused before anything is written.
    let other = directory.path().join("other.img");
    install(&other, 512, 7, directory.path());
    let before = hash_of(&other);
    let mut target = FileTarget::open_image(&other).unwrap();
    let error = execute(&repair, &mut target, directory.path()).unwrap_err();
    assert!(matches!(error.cause, Cause::OtherDisk(_)), "{error}");
    assert_eq!(error.changed, Changed::Nothing);
    assert_eq!(before, hash_of(&other));
}

/// A target that counts calls, fails at one of them, and keeps what was written for later.
struct Faulty<'a> {
    inner: &'a mut FileTarget,
    calls: usize,
    fail_at: usize,
    /// Reads return a flipped bit from this byte of the disk.
    flip_at: Option<u64>,
    /// Places behind this fold back, as on a disk that claims to be larger than it is.
    real_bytes: u64,
    log: Option<Vec<Call>>,
}

#[derive(Clone)]
enum Call {
    Write(u64, Vec<u8>),
    Flush,
}

impl<'a> Faulty<'a> {
    fn new(inner: &'a mut FileTarget, fail_at: usize) -> Faulty<'a> {
        Faulty {
            inner,
            calls: 0,
            fail_at,
            flip_at: None,
            real_bytes: u64::MAX,
            log: None,
        }
    }

    fn count(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.calls == self.fail_at {
            return Err(io::Error::other("the disk is gone"));
        }
        Ok(())
    }
}

impl Target for Faulty<'_> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.count()?;
        if let Some(log) = &mut self.log {
            log.push(Call::Write(offset, bytes.to_vec()));
        }
        self.inner.write_at(offset % self.real_bytes, bytes)
    }
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.count()?;
        self.inner.read_at(offset % self.real_bytes, bytes)?;
        if let Some(at) = self.flip_at.and_then(|at| at.checked_sub(offset))
            && let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at))
        {
            *byte ^= 1;
        }
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.count()?;
        if let Some(log) = &mut self.log {
            log.push(Call::Flush);
        }
        self.inner.flush()
    }
    fn check_identity(&mut self, expected: &TargetIdentity) -> Result<(), String> {
        self.inner.check_identity(expected)
    }
    fn is_gone(&mut self, expected: &TargetIdentity) -> bool {
        self.inner.is_gone(expected)
    }
    fn path(&self) -> &Path {
        self.inner.path()
    }
}

/// What firmware would start from a disk: the system behind the fallback path, if it can be reached
/// through a valid table and a readable file system.
fn bootable(disk: &mut (impl io::Read + io::Seek)) -> Option<Sha256> {
    esp_file(disk, FALLBACK_PATH).map(|bytes| Sha256::of(&bytes))
}

fn esp_file(disk: &mut (impl io::Read + io::Seek), path: &str) -> Option<Vec<u8>> {
    let (primary, backup) = read_table(disk, 512).ok()?;
    let table = primary.valid().or_else(|| backup.valid())?;
    let esp = table.partitions.first()?;
    let window = Window {
        disk,
        start: esp.first_sector * 512,
        position: 0,
    };
    let volume = fatfs::FileSystem::new(window, fatfs::FsOptions::new()).ok()?;
    let mut file = volume.root_dir().open_file(path).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// A partition of a disk, to be read.
struct Window<'a, T> {
    disk: &'a mut T,
    start: u64,
    position: u64,
}

impl<T: io::Read + io::Seek> io::Read for Window<'_, T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.disk
            .seek(SeekFrom::Start(self.start + self.position))?;
        let read = self.disk.read(out)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl<T> io::Seek for Window<'_, T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
            SeekFrom::Current(by) => self.position.checked_add_signed(by).unwrap(),
        };
        Ok(self.position)
    }
}

impl<T> io::Write for Window<'_, T> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_error_at_any_call_is_told_and_leaves_no_half_of_a_system() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let old = install(&path, 512, 1, directory.path());
    let plan = Plan::new(&kept(&old, Mode::ReinstallKeepData, 2)).unwrap();
    let systems = [&old, &plan].map(|plan| plan.esp_files[0].sha256);
    let mut failed = 0;
    // Every call until the disk is complete; of the many small reads of the verification, some.
    for fail_at in (1..60).chain((60..).step_by(13)) {
        let mut target = FileTarget::open_image(&path).unwrap();
        let outcome = execute(
            &plan,
            &mut Faulty::new(&mut target, fail_at),
            directory.path(),
        );
        let mut file = File::open(&path).unwrap();
        match outcome {
            Ok(_) => break,
            Err(error) => {
                failed += 1;
                assert!(error.to_string().contains("the disk is gone"), "{error}");
                assert!(error.to_string().contains(&error.changed.to_string()));
                let found = bootable(&mut file);
                match error.changed {
                    Changed::Nothing => assert!(found.is_some_and(|hash| systems.contains(&hash))),
                    // The first write may be the one that failed.
                    _ if error.step == Step::Erase => {
                        assert!(found.is_none_or(|hash| systems.contains(&hash)), "{error}");
                    }
                    // Verification reads a disk that is complete.
                    _ if error.step == Step::Verify => assert_eq!(found, Some(systems[1])),
                    _ => assert!(found.is_none_or(|hash| hash == systems[1]), "{error}"),
                }
            }
        }
    }
    assert!(failed > 20, "only {failed} calls");
    judge_image(&plan, directory.path());
}

/// A disk that is taken out: calls fail from some moment on, and it vanishes from the machine a little later.
struct Pulled<'a> {
    inner: Faulty<'a>,
    error: rustix::io::Errno,
    is_out: bool,
}

impl Pulled<'_> {
    fn check(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        self.is_out |= outcome.is_err();
        if self.is_out {
            return Err(self.error.into());
        }
        Ok(())
    }
}

impl Target for Pulled<'_> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let outcome = self.inner.write_at(offset, bytes);
        self.check(outcome)
    }
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let outcome = self.inner.read_at(offset, bytes);
        self.check(outcome)
    }
    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.inner.flush();
        self.check(outcome)
    }
    fn check_identity(&mut self, expected: &TargetIdentity) -> Result<(), String> {
        self.inner.check_identity(expected)
    }
    fn is_gone(&mut self, _: &TargetIdentity) -> bool {
        self.is_out
    }
    fn path(&self) -> &Path {
        self.inner.path()
    }
}

#[test]
fn a_disk_that_is_taken_out_is_said_to_be_gone_whatever_the_error() {
    use rustix::io::Errno;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let mut request = request(&path, 512, 1);
    request.target.model = "Sample SSD".into();
    request.target.serial = "S1".into();
    let plan = Plan::new(&request).unwrap();
    for (fail_at, error) in [
        (1, Errno::NOSPC),
        (5, Errno::IO),
        (20, Errno::NODEV),
        (90, Errno::NXIO),
    ] {
        let mut target = FileTarget::create_image(&path, DISK_BYTES).unwrap();
        let mut pulled = Pulled {
            inner: Faulty::new(&mut target, fail_at),
            error,
            is_out: false,
        };
        let error = execute(&plan, &mut pulled, directory.path()).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error.cause, Cause::Gone(_)), "{said}");
        assert!(said.contains("Sample SSD S1"), "{said}");
        assert!(
            said.contains("is no longer there") && said.contains("Connect it again"),
            "{said}"
        );
        assert_eq!(error.changed, Changed::NotBootable);
    }
}

/// What sysfs says of a disk decides, and what the open device says.
#[test]
fn a_disk_is_gone_when_its_device_or_its_entry_is() {
    use std::sync::{Arc, Mutex};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let expected = TargetIdentity {
        disk_sequence: Some(4),
        ..TargetIdentity::image(path.clone(), MIB, 512)
    };
    let told = Arc::new(Mutex::new(Ok(expected.clone())));
    let entry = Arc::clone(&told);
    std::fs::write(&path, vec![0; MIB as usize]).unwrap();
    let probe = Box::new(move |_: &Path| entry.lock().unwrap().clone());
    let mut target = FileTarget::open_disk(&path, probe).unwrap();
    assert!(!target.is_gone(&expected));
    let vanished = Err("it is gone".to_owned());
    let empty = TargetIdentity {
        size_bytes: 0,
        ..expected.clone()
    };
    let replaced = TargetIdentity {
        disk_sequence: Some(5),
        ..expected.clone()
    };
    for now in [vanished, Ok(empty), Ok(replaced)] {
        *told.lock().unwrap() = now;
        assert!(target.is_gone(&expected));
    }
    *told.lock().unwrap() = Ok(expected.clone());
    File::create(&path).unwrap();
    assert!(target.is_gone(&expected));
}

#[test]
fn an_error_during_an_installation_is_told_and_doing_it_again_works() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let mut target = FileTarget::create_image(&path, DISK_BYTES).unwrap();
    let plan = Plan::new(&request(&path, 512, 1)).unwrap();
    let mut whole = Faulty::new(&mut target, usize::MAX);
    execute(&plan, &mut whole, directory.path()).unwrap();
    let calls = whole.calls;
    let mut steps = Vec::new();
    // Each call is the same code; a spread of them reaches every step.
    for fail_at in (1..=calls).step_by(calls / 40) {
        let mut faulty = Faulty::new(&mut target, fail_at);
        let error = execute(&plan, &mut faulty, directory.path()).unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        if !matches!(error.step, Step::CheckTarget | Step::Erase | Step::Verify) {
            let found = bootable(&mut File::open(&path).unwrap());
            assert!(found.is_none(), "{error}");
        }
        steps.push(error.step);
    }
    for step in [Step::Erase, Step::ProbeDisk, Step::WriteData, Step::Verify] {
        assert!(steps.contains(&step), "{step} was not reached: {steps:?}");
    }
    execute(&plan, &mut target, directory.path()).unwrap();
    judge_image(&plan, directory.path());
}

#[test]
fn a_disk_that_lies_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let mut target = FileTarget::create_image(&path, DISK_BYTES).unwrap();
    let plan = Plan::new(&request(&path, 512, 1)).unwrap();
    let mut folded = Faulty::new(&mut target, usize::MAX);
    folded.real_bytes = 1 << 30;
    let error = execute(&plan, &mut folded, directory.path()).unwrap_err();
    assert!(matches!(error.cause, Cause::Mismatch { .. }), "{error}");
    assert_eq!(
        (error.step, error.changed),
        (Step::ProbeDisk, Changed::NotBootable)
    );

    let mut flipped = Faulty::new(&mut target, usize::MAX);
    let data_start = plan.range(&plan.data).start;
    flipped.flip_at = Some(data_start + 1024 + 56);
    let error = execute(&plan, &mut flipped, directory.path()).unwrap_err();
    assert!(
        matches!(error.cause, Cause::Mismatch { offset } if offset >= data_start),
        "{error}"
    );
    assert_eq!(error.step, Step::Verify);
}

#[test]
fn a_missing_or_failing_tool_is_named_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let mut target = FileTarget::create_image(&path, DISK_BYTES).unwrap();
    let plan = Plan::new(&request(&path, 512, 1)).unwrap();
    for program in ["/nowhere/mke2fs", "/bin/false"] {
        let mut tools = tools(directory.path());
        tools.mke2fs = program.into();
        let error = executor::run(&plan, &mut target, &tools, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains(program), "{error}");
        assert_eq!(
            (error.step, error.changed),
            (Step::Prepare, Changed::Nothing)
        );
    }
}

/// A disk in memory, as blocks that were written.
struct Model {
    blocks: BTreeMap<u64, Vec<u8>>,
    position: u64,
}

const MODEL_BLOCK: u64 = 4096;

impl Model {
    fn of(file: &File) -> Model {
        let mut blocks = BTreeMap::new();
        let mut block = vec![0u8; MODEL_BLOCK as usize];
        for at in 0..DISK_BYTES / MODEL_BLOCK {
            file.read_exact_at(&mut block, at * MODEL_BLOCK).unwrap();
            if block.iter().any(|byte| *byte != 0) {
                blocks.insert(at, block.clone());
            }
        }
        Model {
            blocks,
            position: 0,
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!(offset % 512, 0);
        for (at, byte_run) in bytes.chunks(512).enumerate() {
            let place = offset + at as u64 * 512;
            let empty = || vec![0u8; MODEL_BLOCK as usize];
            let block = self.blocks.entry(place / MODEL_BLOCK).or_insert_with(empty);
            let within = (place % MODEL_BLOCK) as usize;
            block[within..within + byte_run.len()].copy_from_slice(byte_run);
        }
    }
}

impl io::Read for Model {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let within = (self.position % MODEL_BLOCK) as usize;
        let left = (DISK_BYTES - self.position).min(MODEL_BLOCK - within as u64) as usize;
        let length = out.len().min(left);
        match self.blocks.get(&(self.position / MODEL_BLOCK)) {
            Some(block) => out[..length].copy_from_slice(&block[within..within + length]),
            None => out[..length].fill(0),
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl io::Seek for Model {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(by) => DISK_BYTES.checked_add_signed(by).unwrap(),
            SeekFrom::Current(by) => self.position.checked_add_signed(by).unwrap(),
        };
        Ok(self.position)
    }
}

/// The power is cut in every phase between two flushes. Writes since the last flush reach the disk
/// or not, in any combination, sector by sector at the torn one. A disk that firmware would then
/// start has the old system whole, or the new one whole and everything else with it.
#[test]
fn whatever_is_left_by_a_power_cut_boots_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let old = install(&path, 512, 1, directory.path());
    let before = File::open(&path).unwrap();
    let mut base = Model::of(&before);
    let plan = Plan::new(&request(&path, 512, 2)).unwrap();
    let systems = [&old, &plan].map(|plan| plan.esp_files[0].sha256);
    assert_eq!(bootable(&mut base), Some(systems[0]));
    let mut target = FileTarget::open_image(&path).unwrap();
    let mut recorder = Faulty::new(&mut target, usize::MAX);
    recorder.log = Some(Vec::new());
    execute(&plan, &mut recorder, directory.path()).unwrap();
    let log = recorder.log.take().unwrap();
    let epochs: Vec<&[Call]> = log.split(|call| matches!(call, Call::Flush)).collect();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(6));
    for (number, epoch) in epochs.iter().enumerate() {
        let writes: Vec<(u64, &[u8])> = epoch
            .iter()
            .filter_map(|call| match call {
                Call::Write(at, bytes) => Some((*at, &bytes[..])),
                Call::Flush => None,
            })
            .collect();
        let subsets = prop::collection::vec(any::<bool>(), writes.len());
        runner
            .run(&(subsets, 0usize..2048), |(kept, torn)| {
                let mut cut = Model {
                    blocks: base.blocks.clone(),
                    position: 0,
                };
                for (at, bytes) in writes
                    .iter()
                    .zip(&kept)
                    .filter(|(_, kept)| **kept)
                    .map(|(w, _)| *w)
                {
                    let torn = (torn * 512).min(bytes.len());
                    cut.write(
                        at,
                        if torn % 1024 == 0 {
                            bytes
                        } else {
                            &bytes[..torn]
                        },
                    );
                }
                match bootable(&mut cut) {
                    None => {}
                    Some(hash) if hash == systems[0] => {
                        prop_assert!(number == 0, "old at {}", number)
                    }
                    Some(hash) => {
                        prop_assert_eq!(hash, systems[1]);
                        // Everything but the last MiB of writes was flushed by then.
                        prop_assert!(
                            number + 5 >= epochs.len(),
                            "new at {} of {}",
                            number,
                            epochs.len()
                        );
                        // That all was verified is written in the last phase, behind which nothing is.
                        let about = esp_file(&mut cut, "EFI/TruthDB/system.toml").unwrap();
                        let is_complete = String::from_utf8(about)
                            .unwrap()
                            .contains("complete = true");
                        prop_assert!(!is_complete || number + 2 == epochs.len());
                    }
                }
                Ok(())
            })
            .unwrap();
        for (at, bytes) in writes {
            base.write(at, bytes);
        }
    }
    assert_eq!(bootable(&mut base), Some(systems[1]));
    let found = read_esp(&mut target, plan.range(&plan.esp)).unwrap();
    assert!(found.is_complete);
}
